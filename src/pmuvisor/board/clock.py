"""What time is made of: instructions, what virtualization costs, and idling, at the clock of a core.

All of it is exact. A core of f MHz makes f cycles in 1000 ns; so time is counted in a unit that both a cycle and a
nanosecond are whole numbers of, and is rounded only where somebody reads it, always from the totals.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pmuvisor.arch.cores import Core, CoreError
from pmuvisor.board import memmap
from pmuvisor.kvm.vcpu import Vcpu

NS_PER_TICK = 1_000_000_000 // memmap.COUNTER_HZ

COUNTED_BY_BOARD = ("mmio", "hvc", "wfi", "irq", "sgi")
"""Exits that a board counts; each is "exits.NAME" in the ledger."""
COUNTED_BY_KVM = {
    "exits.pmu": "trapped",
    "loads": "loads",
    "puts": "puts",
    "registers_swapped": "swapped",
    "interrupts_injected": "injected",
    "exits.spe": "spe_trapped",
    "spe_drained": "spe_drained",
    "spe_injected": "spe_injected",
    "spe_stage2": "spe_stage2",
    "overflows": "overflows",
    "rescheduled": "rescheduled",
    "perf_created": "perf_created",
    "perf_released": "perf_released",
    "perf_enabled": "perf_enabled",
    "perf_disabled": "perf_disabled",
    "perf_read": "perf_read",
    "perf_switched": "perf_switched",
}
"""Items of the ledger that a vCPU's record counts, and the field that does."""
PRICED = (*(f"exits.{name}" for name in COUNTED_BY_BOARD), *COUNTED_BY_KVM)
"""Every item of the ledger that has a cost."""


@dataclass(frozen=True)
class Costs:
    """What each item of `PRICED` costs on a core, in its cycles. Raises ValueError for any other set of items."""

    cycles: Mapping[str, int]

    def __post_init__(self) -> None:
        """Refuse a table with a gap: what is not priced would be free without anybody having said so."""
        if set(self.cycles) != set(PRICED):
            raise ValueError(f"costs: expected one for each of {', '.join(PRICED)}")

    def of(self, ledger: Mapping[str, int]) -> int:
        """Return what a ledger comes to, in cycles."""
        return sum(cycles * ledger[name] for name, cycles in self.cycles.items())


class Bill:
    """What one vCPU's ledger comes to, at any time: computed of the counts, so that none can be forgotten."""

    def __init__(self, costs: Costs | None, vcpu: Vcpu, exits: Counter[str]) -> None:
        """Without `costs` everything is free. `exits` has all of `COUNTED_BY_BOARD` as long as this is used."""
        self._free = costs is None
        weights = dict.fromkeys(PRICED, 0) if costs is None else costs.cycles
        self._vcpu = vcpu
        self._exits = exits
        self._of_vcpu = operator.attrgetter(*COUNTED_BY_KVM.values())
        self._of_exits = operator.itemgetter(*COUNTED_BY_BOARD)
        self._weights = tuple(weights[name] for name in (*COUNTED_BY_KVM, *(f"exits.{of}" for of in COUNTED_BY_BOARD)))

    def cycles(self) -> int:
        """Return the overhead so far, in cycles."""
        if self._free:
            return 0
        counts = self._of_vcpu(self._vcpu) + self._of_exits(self._exits)
        total: int = sum(map(operator.mul, counts, self._weights))
        return total


@dataclass(frozen=True)
class Rate:
    """How fast a core goes: the unit of time, 1 / `per_ns` ns, of which a cycle takes `per_cycle`."""

    per_cycle: int
    per_ns: int

    @property
    def per_tick(self) -> int:
        """Return the units of a tick of the system counter."""
        return self.per_ns * NS_PER_TICK

    def cycles_in(self, units: int) -> int:
        """Return how many cycles it takes until `units` have passed: at least so many, and not one more."""
        return -(-units // self.per_cycle)

    def at(self, mhz: int) -> bool:
        """Tell whether this is the rate of a core of `mhz`."""
        return self.per_cycle * mhz == 1000 * self.per_ns


def rate(mhz: int) -> Rate:
    """Return the rate of a core of `mhz` MHz, at least 1: a cycle is 1000 / `mhz` ns."""
    common = math.gcd(1000, mhz)
    return Rate(1000 // common, mhz // common)


def rate_of(core: Core) -> Rate:
    """Return the rate of a core. Raises CoreError for one without a clock."""
    if core.mhz == 0:
        raise CoreError(f"core {core.name}: mhz 0: expected a clock, for a guest to run by")
    return rate(core.mhz)
