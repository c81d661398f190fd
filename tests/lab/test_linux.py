"""Debian's arm64 kernel, unmodified, with our init: what it counts, samples and multiplexes, and how it ends."""

import re
from functools import cache
from typing import Any

import pytest

from pmuvisor.arch.cores import core
from pmuvisor.board.machine import Status
from pmuvisor.lab.guests import cached_linux
from pmuvisor.lab.run import Request, Result, run

pytestmark = pytest.mark.skipif(
    cached_linux() is None, reason="no Linux kernel in the cache: `pmuvisor guest fetch linux` gets one"
)

CONFIGURATIONS = [(vcpus, fgt) for vcpus in (1, 2, 4) for fgt in (True, False)]
COUNT = 2_000_004
"""A loop of 2,000,000 instructions at EL0, one before it, and three behind it up to the system call that ends it."""


@cache
def boot(vcpus: int = 1, fgt: bool = True, append: str = "pmuvisor.quick", core_name: str = "max") -> Result:
    return run(Request("linux", core(core_name), fgt=fgt, vcpus=vcpus, append=append, timeout=120))


def said(result: Result, pattern: str) -> list[Any]:
    return re.findall(rf"^init: {pattern}$", result.console.replace("\r", ""), re.MULTILINE)


@pytest.mark.parametrize(("vcpus", "fgt"), CONFIGURATIONS)
def test_linux_boots_on_every_vcpu_and_powers_off(vcpus: int, fgt: bool) -> None:
    result = boot(vcpus, fgt)
    assert (result.status, result.reason, result.panic) == (Status.POWEROFF, "the guest powered off", "")
    assert said(result, r"CPUs online (\d+)") == [str(vcpus)]
    assert said(result, "PMU (.*)") == ["armv8_pmuv3"]
    assert said(result, "(power off)") == ["power off"]


@pytest.mark.parametrize(("vcpus", "fgt"), CONFIGURATIONS)
def test_every_round_reads_the_same_number_in_every_configuration(vcpus: int, fgt: bool) -> None:
    rounds = said(boot(vcpus, fgt), r"  round \d: instructions (\d+) expected \d+ exact")
    assert rounds == [str(COUNT)] * 3 * vcpus


@pytest.mark.parametrize(("vcpus", "fgt"), CONFIGURATIONS)
def test_sampling_every_100000_instructions_interrupts_20_times_each_on_its_instruction(vcpus: int, fgt: bool) -> None:
    result = boot(vcpus, fgt)
    samples = said(result, r"  samples (\d+) expected 20, lost 0, distinct addresses 1")
    assert samples == ["20"] * vcpus
    assert said(result, "  (every sample on its instruction)") == ["every sample on its instruction"] * vcpus
    assert said(result, r"    20 at (loop\+\S+)") == ["loop+0x4"] * vcpus
    assert (result.ledger["overflows"], result.ledger["interrupts_injected"]) == (20 * vcpus, 20 * vcpus)


def test_fine_grained_traps_leave_the_counting_and_take_away_traps() -> None:
    """The kernel is the same program either way: only what is trapped differs."""
    direct, trapped = boot(1, True).ledger, boot(1, False).ledger
    assert direct["pmu_direct"] > 0
    assert trapped["pmu_direct"] == 0
    assert trapped["pmu_trapped"] > 2 * direct["pmu_trapped"]


def test_more_events_than_counters_are_multiplexed() -> None:
    """16 events on the 6 counters and the cycle counter that the guest has."""
    result = boot(append="")
    assert result.status is Status.POWEROFF
    (shared,) = said(result, r"  multiplexed: (\d+) events did not run all the time")
    assert 16 - 7 <= int(shared) <= 16
    events = said(result, r"  event \d+: .* scaled (\d+) true (\d+) error .*")
    assert len(events) == 4
    # Rotation is at a 4 ms tick of a loop of 60 ms: an estimate is off by a part of a turn.
    assert all(abs(int(scaled) - int(true)) < 0.05 * int(true) for scaled, true in events)


def test_the_same_boot_is_the_same_bytes() -> None:
    first = boot(2, True)
    again = boot.__wrapped__(2, True)
    assert (again.console, again.ledger, again.instructions) == (first.console, first.ledger, first.instructions)


def test_a_kernel_that_panics_says_so_in_the_reason() -> None:
    result = boot(append="pmuvisor.quick pmuvisor.panic")
    assert result.status is Status.RESET
    assert result.panic.startswith("Kernel panic - not syncing: Attempted to kill init!")
    assert result.reason == f"the guest asked for a reset ({result.panic})"
