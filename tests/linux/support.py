"""Hosts for the tests of linux/: CPUs, tasks and events, and what a system call does to them."""

from __future__ import annotations

from collections.abc import Iterable

from arch.support import P1
from arch.support import make_pe as make_bare_pe
from pmuvisor import records
from pmuvisor.arch import pmu
from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED
from pmuvisor.arch.pmu import Pe
from pmuvisor.linux import arm_pmuv3, perf
from pmuvisor.linux.host import (
    ANY_CPU,
    NO_COUNTER,
    NO_EVENT,
    NO_TASK,
    STATE_ACTIVE,
    STATE_ERROR,
    STATE_INACTIVE,
    STATE_OFF,
    Cpu,
    Host,
    PerfEvent,
)

INTERVAL = 4_000_000
"""perf_event_mux_interval_ms of a kernel with CONFIG_HZ=250, in nanoseconds."""
CONTEXT_EVENTS = 24


def sizes_of(cpus: int = 1, tasks: int = 1, events: int = 24, n: int = 6) -> dict[str, int]:
    return {
        "cpus": cpus,
        "kinds": 0,
        "cpu_words": (cpus + 31) // 32,
        "tasks": tasks,
        "events": events,
        "context_events": CONTEXT_EVENTS,
        "event_counters": n,
        "counter_width": 64,
        "inflight": 2,
        "spe_sessions": 2,
    }


def make_host(
    cpus: int = 1, tasks: int = 1, events: int = 24, n: int = 6, pmuver: int = P1, pmus: Iterable[int] = (), **core: int
) -> Host:
    """Return a host whose driver has been probed: `n` counters per CPU, all idle; `pmus` are the PMUs of its CPUs."""
    host = records.new(Host, sizes_of(cpus, tasks, events, n), checked=True)
    probe(host, n, pmuver, pmus, **core)
    return host


def probe(host: Host, n: int, pmuver: int, pmus: Iterable[int] = (), **core: int) -> None:
    """Give the CPUs of a new host their PEs, of `n` counters, and let the driver find them."""
    numbers = list(pmus) or [0] * len(host.cpus)
    for c, cpu in enumerate(host.cpus):
        records.assign(cpu.pe, make_bare_pe(n, pmuver, checked=0, **core))
        cpu.pe.tge = 1
        cpu.pmu = numbers[c]
        cpu.current = NO_TASK
        arm_pmuv3.reset(cpu)


def probed_cpu(n: int, pmuver: int, icntr: int) -> Cpu:
    """Return a CPU whose integers take any value, a symbolic one too."""
    cpu = records.new(Cpu, sizes_of(n=n))
    records.assign(cpu, make_host(n=n, pmuver=pmuver, icntr=icntr).cpus[0])
    return cpu


def fill(event: PerfEvent, number: int, **attributes: int) -> None:
    """Make `event` one that has just been asked for: of CPU 0, enabled, in no group, but for `attributes`."""
    values = {
        "config": INST_RETIRED,
        "cpu": 0,
        "task": NO_TASK,
        "leader": number,
        "next_sibling": NO_EVENT,
        "state": STATE_INACTIVE,
        "idx": NO_COUNTER,
    }
    for name, value in (values | attributes).items():
        setattr(event, name, value)


def make_event(**attributes: int) -> PerfEvent:
    event = records.new(PerfEvent, checked=True)
    fill(event, 0, **attributes)
    return event


def happen(pe: Pe, event: int, amount: int, el: int) -> None:
    """Let the hardware's `event` happen `amount` times at `el`, cycles for the cycle counter as well."""
    if event == CPU_CYCLES:
        pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, el), amount)
    pmu.pmu_event(pe, el, event, amount)


def take_interrupt(host: Host, c: int) -> int:
    """Take the PMU's interrupt on CPU `c` if it is there; return how many samples were taken."""
    if pmu.check_for_pmu_overflow(host.cpus[c].pe) == 0:
        return 0
    return arm_pmuv3.handle_irq(host, c, arm_pmuv3.getreset_flags(host.cpus[c]))


class Scene:
    """A host and its clock: each method is a system call, or what an interrupt does, at `now`."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.now = 0
        self.opened = 0

    def open(self, **attributes: int) -> int:
        """Open and install an event; return its number. It has to go well."""
        number, result = self.try_open(**attributes)
        assert result == 0
        return number

    def try_open(self, **attributes: int) -> tuple[int, int]:
        """Open an event, and install it if that went well; return its number and what the system call returns.

        `leader` and the context of a group's event are its leader's; a `task` means any CPU unless one is given.
        """
        number = self.opened
        self.opened += 1
        if "leader" in attributes:
            leader = self.host.events[attributes["leader"]]
            attributes = {"cpu": leader.cpu, "task": leader.task, "pmu": leader.pmu} | attributes
        elif "task" in attributes:
            attributes = {"cpu": ANY_CPU} | attributes
        fill(self.host.events[number], number, **attributes)
        of_pmu = next(c for c, cpu in enumerate(self.host.cpus) if cpu.pmu == self.host.events[number].pmu)
        result = perf.perf_event_open(self.host, of_pmu, number)
        if result == 0:
            perf.perf_install_in_context(self.host, number, self.now)
        return number, result

    def close(self, number: int) -> None:
        perf.perf_remove_from_context(self.host, number, self.now)

    def enable(self, number: int) -> None:
        perf.perf_event_enable(self.host, number, self.now)

    def disable(self, number: int) -> None:
        perf.perf_event_disable(self.host, number, self.now)

    def rotate(self, c: int = 0) -> int:
        return perf.perf_rotate_context(self.host, c, self.now)

    def run(self, ns: int) -> None:
        """Let `ns` nanoseconds pass; at each multiple of INTERVAL every CPU's multiplexing timer expires."""
        end = self.now + ns
        while self.now // INTERVAL < end // INTERVAL:
            self.now = (self.now // INTERVAL + 1) * INTERVAL
            for c in range(len(self.host.cpus)):
                self.rotate(c)
        self.now = end

    def switch(self, c: int, task: int) -> None:
        """Let `task` run on CPU `c`, or nothing (NO_TASK), after what ran there."""
        if self.host.cpus[c].current != NO_TASK:
            self.leave(c)
        if task != NO_TASK:
            self.host.tasks[task].cpu = c
            perf.perf_event_task_sched_in(self.host, c, task, self.now)

    def leave(self, c: int) -> None:
        """Let the task on CPU `c` stop running."""
        perf.perf_event_task_sched_out(self.host, c, self.now)

    def resched_update(self, cntr_mask: int, c: int = 0) -> None:
        perf.perf_pmu_resched_update(self.host, c, cntr_mask, self.now)

    def times(self, number: int) -> tuple[int, int]:
        """Read an event: nanoseconds enabled, nanoseconds running."""
        perf.perf_event_read(self.host, number, self.now)
        event = self.host.events[number]
        return event.total_time_enabled, event.total_time_running

    def state(self, number: int) -> int:
        return self.host.events[number].state

    def states(self, numbers: Iterable[int]) -> str:
        """Say the states of events in a letter each: (E)rror, (O)ff, waiting (.), on a counter (A)."""
        letters = {STATE_ERROR: "E", STATE_OFF: "O", STATE_INACTIVE: ".", STATE_ACTIVE: "A"}
        return "".join(letters[self.state(number)] for number in numbers)

    def happen(self, event: int, amount: int, c: int = 0, el: int = 2) -> int:
        """Let the hardware's `event` happen on CPU `c`; return how many samples its interrupt took."""
        happen(self.host.cpus[c].pe, event, amount, el)
        return take_interrupt(self.host, c)


def check_counters(host: Host) -> None:
    """Assert what always holds: who has which counter is said alike by events and CPUs, within the driver's mask."""
    for cpu in host.cpus:
        used = 0
        for idx, number in enumerate(cpu.hw.events):
            if number != NO_EVENT:
                event = host.events[number]
                assert event.state == STATE_ACTIVE
                assert event.idx == idx
                mask = arm_pmuv3.event_mask(cpu, event)
                assert mask & used == 0
                used |= mask
        assert used == cpu.hw.used_mask
        assert used & ~cpu.hw.cntr_mask == 0
        assert cpu.pe.cnten & cpu.hw.cntr_mask == used
    on = [number for cpu in host.cpus for number in cpu.hw.events if number != NO_EVENT]
    active = [number for number, event in enumerate(host.events) if event.state == STATE_ACTIVE]
    assert sorted(on) == active
