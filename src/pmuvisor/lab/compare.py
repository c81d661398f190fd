"""The same guest, or scenario, under one design after the other, and what each cost.

What a guest measured is what it printed: lines are compared with those of the first design, numbers with a decimal
point left out, since they are times, rates and shares (perf, time(1), the kernel's timestamps), and times are what the
designs differ in.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pmuvisor.arch.cores import Core
from pmuvisor.board.machine import Config
from pmuvisor.lab import run
from pmuvisor.lab.costs import CostTable, built_in
from pmuvisor.lab.hosting import Hosting, HostingResult, check_counters
from pmuvisor.lab.scenario import Scenario, VmSpec

Progress = Callable[[str], None]
"""Is told which design is run."""
_TIME = re.compile(r"\d+\.\d+(e[-+]?\d+)?")
_BLANKS = re.compile(r"[ \t]+")
MAX_LINES = 4000
"""Lines at the end of what a guest printed that are compared."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A place where a guest printed something else than under the first design; "" stands for no line."""

    line: int
    """Its number under this design, from 1."""
    first: str
    here: str


@dataclasses.dataclass(frozen=True)
class DesignRun:
    """What came of a guest or a scenario under one design."""

    design: str
    status: str
    """How the guest ended; of a scenario each VM, as NAME: STATUS."""
    fine: bool
    counters: int
    """Event counters that the guest has; of a scenario those of all VMs."""
    output: str
    """What the guest printed, or its command; of a scenario each VM, and what counters show of one without code."""
    printed: tuple[str, ...]
    """The same as it is compared."""
    differences: tuple[Difference, ...]
    """From the first design, in order."""
    ledger: dict[str, int]
    lost_ns: int | None
    """How long host events waited for a counter, all together; None where there are none."""
    overhead_by: dict[str, int]
    """What each item of the ledger cost, in cycles (docs/costs.md)."""
    overhead_seconds: float
    felt_seconds: float
    """What of it is in `seconds`: all but that of a scenario's vCPUs without code."""
    seconds: float
    """The guest's time from its start to its end, or that of its command; of a scenario, what its vCPUs had of CPUs."""

    @property
    def accesses(self) -> int:
        """Return how often guests accessed their PMU's registers."""
        return self.ledger["pmu_direct"] + self.ledger["pmu_trapped"]

    @property
    def overhead_cycles(self) -> int:
        """Return what virtualization cost, in cycles."""
        return sum(self.overhead_by.values())

    @property
    def overhead(self) -> float:
        """Return the overhead as a share of the time without it."""
        rest = self.seconds - self.felt_seconds
        return self.overhead_seconds / rest if rest > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return it as an object for JSON."""
        out = dataclasses.asdict(self)
        del out["printed"]
        more = {"accesses": self.accesses, "overhead_cycles": self.overhead_cycles, "overhead": self.overhead}
        return out | more


def measured(text: str) -> tuple[str, ...]:
    """Return what a guest printed, line by line, as it is compared: without what is a time, blanks as one."""
    lines = (_BLANKS.sub(" ", _TIME.sub("#", line)).strip() for line in text.splitlines())
    return tuple(line for line in lines if line)[-MAX_LINES:]


def differences(first: Sequence[str], here: Sequence[str]) -> tuple[Difference, ...]:
    """Return where two printouts differ, line by line: each with the one that stands in its place."""
    found: list[Difference] = []
    matcher = difflib.SequenceMatcher(None, first, here, autojunk=False)
    for tag, a, a_end, b, b_end in matcher.get_opcodes():
        if tag == "equal":
            continue
        for offset in range(max(a_end - a, b_end - b)):
            one = first[a + offset] if a + offset < a_end else ""
            other = here[b + offset] if b + offset < b_end else ""
            found.append(Difference(min(b + offset, b_end) + 1, one, other))
    return tuple(found)


# ---- a guest ----------------------------------------------------------------------------------------------


def compare_guest(
    request: run.Request,
    designs: Sequence[str],
    progress: Progress = lambda design: None,
    started: Callable[[Any], None] | None = None,
) -> list[DesignRun]:
    """Run a guest under each of `designs`, and compare what it measured with the first.

    Raises what `run.run` raises, before anything has been started. Where a run is interrupted, the ones before it
    remain.
    """
    requests = [_under(request, design) for design in designs]
    for each in requests:
        each.config().guest_counters()
    done: list[DesignRun] = []
    for each in requests:
        progress(each.design)
        result = run.run(each, started=started)
        if result.status == "exit":
            break
        done.append(_of_guest(each, result, done))
    return done


def _under(request: run.Request, design: str) -> run.Request:
    under = dataclasses.replace(request, design=design)
    return dataclasses.replace(under, counters=None) if under.base == "fixed-counters-only" else under


def _of_guest(request: run.Request, result: run.Result, before: Sequence[DesignRun]) -> DesignRun:
    output = result.output if request.command else result.console
    printed = measured(output)
    part = result if result.of_command is None else result.of_command
    return DesignRun(
        design=result.design,
        status=_end(result),
        fine=result.status in ("poweroff", "reset") and not result.panic and not result.exit_status,
        counters=result.counters,
        output=output,
        printed=printed,
        differences=differences(before[0].printed, printed) if before else (),
        ledger=part.ledger,
        lost_ns=None,
        overhead_by=_prices(request.costs, request.core, part.ledger),
        overhead_seconds=part.overhead_seconds,
        felt_seconds=part.overhead_seconds,
        seconds=part.virtual_seconds,
    )


def _end(result: run.Result) -> str:
    if result.panic:
        return "panic"
    return str(result.status) if result.exit_status is None else f"exit {result.exit_status}"


# ---- a scenario -------------------------------------------------------------------------------------------


def compare_scenario(
    scenario: Scenario,
    designs: Sequence[str],
    costs: CostTable | None = None,
    progress: Progress = lambda design: None,
    started: Callable[[Any], None] | None = None,
) -> list[DesignRun]:
    """Run a scenario with all of its VMs under each of `designs`, as `compare_guest` does.

    Raises CountError, before anything has run, for a VM that has other counters than one of the designs can give.
    """
    done: list[DesignRun] = []
    vms = {design: tuple(_vm_under(vm, design, scenario) for vm in scenario.vms) for design in designs}
    for of_design in vms.values():
        for vm in of_design:
            check_counters(vm)
    for design in designs:
        progress(design)
        hosting = Hosting(dataclasses.replace(scenario, vms=vms[design]), costs=costs)
        if started is not None:
            started(hosting)
        result = hosting.run()
        if result.interrupted:
            break
        done.append(_of_scenario(scenario, design, result, costs, done))
    return done


def _vm_under(vm: VmSpec, design: str, scenario: Scenario) -> VmSpec:
    """Return a VM under another design, on the same CPUs; those of `fixed-counters-only` take all kinds."""
    if design == "fixed-counters-only":
        return dataclasses.replace(vm, design=design, counters=0, runs_anywhere=True)
    counters = vm.counters
    if vm.design == "fixed-counters-only":  # which says nothing of how many another design is to have
        counters = min(Config(vm.core, design=design).guest_counters(), scenario.host.max_guest_counters)
    anywhere = vm.runs_anywhere and design == "emulated"
    return dataclasses.replace(vm, design=design, counters=counters, runs_anywhere=anywhere)


def _of_scenario(
    scenario: Scenario, design: str, result: HostingResult, costs: CostTable | None, before: Sequence[DesignRun]
) -> DesignRun:
    lines = [f"{vm.name}: {line}" for vm in result.vms for line in (*vm.console.splitlines(), *vm.counted)]
    printed = measured("\n".join(lines))
    prices = [_prices(costs, spec.core, vm.ledger) for spec, vm in zip(scenario.vms, result.vms, strict=True)]
    seconds = [sum(p.values()) / (spec.core.mhz * 1e6) for spec, p in zip(scenario.vms, prices, strict=True)]
    lost = sum(session.enabled - session.running for session in result.host_perf)
    bad = [vm for vm in result.vms if vm.panic or vm.status not in ("running", "poweroff", "reset")]
    return DesignRun(
        design=design,
        status=", ".join(f"{vm.name}: {'panic' if vm.panic else vm.status}" for vm in bad) or "well",
        fine=not bad,
        counters=sum(vm.counters for vm in result.vms),
        output="\n".join(lines),
        printed=printed,
        differences=differences(before[0].printed, printed) if before else (),
        ledger=_sum(vm.ledger for vm in result.vms),
        lost_ns=lost if result.host_perf else None,
        overhead_by=_sum(prices),
        overhead_seconds=sum(seconds),
        felt_seconds=sum(vm.overhead_seconds for vm in result.vms),
        seconds=sum(vm.run_seconds for vm in result.vms),
    )


def _sum(of: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in of:
        total.update(each)
    return dict(total)


def _prices(costs: CostTable | None, core: Core, ledger: dict[str, int]) -> dict[str, int]:
    """Return what each item of a ledger cost, in cycles of `core`. A guest without code has no exits of a board's."""
    of = (costs or built_in()).of(core.name)
    return {name: cycles * ledger.get(name, 0) for name, cycles in of.cycles.items()}
