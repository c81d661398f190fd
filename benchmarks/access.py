"""What one access of a guest to a PMU register costs, direct and trapped."""

from __future__ import annotations

from itertools import product

from benchmarks import guest, qemu
from benchmarks.figures import Figure, Options, Section
from benchmarks.guest import Params, Task

ACCESSES = 2_000
QEMU_TIMES = 100
"""How many times more of them QEMU does: it takes that many for its time to be more than its start's noise."""
RUNNING = 4
HOW = f"""A bare-metal guest accesses one register {ACCESSES:,} times in a loop; the time of the same loop without the
access is taken off. {RUNNING} running: that many event counters count INST_RETIRED meanwhile. Trapped: without
fine-grained traps, but for PMEVTYPER0, which traps with them too. QEMU has no hypervisor under the guest: its accesses
are all direct, and stand beside what pmuvisor does with fine-grained traps."""
NAMES = {
    Task.READ_CYCLES: "read PMCCNTR",
    Task.READ_COUNTER: "read PMEVCNTR0",
    Task.WRITE_COUNTER: "write PMEVCNTR0",
    Task.WRITE_ENABLE: "write PMCNTENSET",
    Task.WRITE_TYPE: "write PMEVTYPER0",
}


def measure(options: Options) -> Section:
    """Time each access with and without fine-grained traps, with no counter running and with several."""
    cases = [(task, fgt, running) for task, fgt in product(NAMES, (True, False)) for running in (0, RUNNING)]
    cases = [case for case in cases if case[:2] != (Task.WRITE_TYPE, False)]
    figures = []
    for task, fgt, running in cases:
        ours = [_ours(task, fgt, running, options.count(ACCESSES)) for _ in range(options.rounds)]
        peer = [_qemu(task, running, options) for _ in range(options.rounds)] if fgt and qemu.present() else []
        kind = "direct" if fgt and task is not Task.WRITE_TYPE else "trapped"
        note = "" if peer or not fgt else qemu.ABSENT
        figures.append(Figure(f"{NAMES[task]}, {kind}, {running} running", "us", ours, peer, note, digits=2))
    return Section("access", "One access to a PMU register, time", HOW, figures)


def _ours(task: Task, fgt: bool, running: int, count: int) -> float:
    seconds = [guest.on_pmuvisor(Params(t, count, running), fgt=fgt).seconds for t in (task, Task.LOOP)]
    return (seconds[0] - seconds[1]) / count * 1e6


def _qemu(task: Task, running: int, options: Options) -> float:
    count = options.count(ACCESSES) * QEMU_TIMES
    seconds = [guest.on_qemu(Params(t, count, running)).seconds for t in (task, Task.LOOP)]
    return (seconds[0] - seconds[1]) / count * 1e6
