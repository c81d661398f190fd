"""A host and its VMs while the scheduler moves vCPUs: counters taken and given back, counts of both sides exact.

Expected counts are kept beside the model: what was executed where, by whom, and who was to see it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmuvisor import records
from pmuvisor.arch import pmu, sysreg
from pmuvisor.arch.cores import core, make_pe
from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED
from pmuvisor.kvm import access, world
from pmuvisor.kvm.vcpu import PARTITIONED, Vcpu
from pmuvisor.kvm.world import World
from pmuvisor.linux import perf, sched
from pmuvisor.linux.host import (
    ANY_CPU,
    NO_COUNTER,
    NO_EVENT,
    NO_TASK,
    NO_VCPU,
    STATE_ACTIVE,
    STATE_ERROR,
    STATE_INACTIVE,
    TASK_RUNNABLE,
    PerfEvent,
)

EL0, EL1, EL2 = 0, 1, 2
CYCLE = 1 << 31
LD_RETIRED = 0x06


@dataclass
class Machine:
    """A world with a clock, and what its events and guests ought to have counted."""

    cores: list[str]
    vms: list[tuple[int, int]]
    """Of each VM its event counters, and its number of vCPUs; all of it on PMU 0."""
    host_tasks: int = 0
    events: int = 0
    now: int = 0
    guest: list[dict[int, int]] = field(default_factory=list)
    """By vCPU and event number, what its counters ought to show."""

    def __post_init__(self) -> None:
        kinds = sorted(set(self.cores), key=self.cores.index)
        vcpus = sum(number for _, number in self.vms)
        cores = [core(name) for name in self.cores]
        sizes = {
            "cpus": len(cores),
            "cpu_words": 1,
            "kinds": 0,
            "tasks": vcpus + self.host_tasks,
            "events": 40,
            "context_events": 40,
            "vms": len(self.vms),
            "vcpus": vcpus,
            "filter_words": 0,
            "event_counters": max(c.event_counters for c in cores),
            "counter_width": 64,
        }
        self.world = records.new(World, sizes, checked=True)
        self.host = self.world.host
        for c, of in enumerate(cores):
            world.boot_cpu(self.host.cpus[c], make_pe(of, range(64)), kinds.index(self.cores[c]))
        v = 0
        for number, (counters, of_vm) in enumerate(self.vms):
            vm = self.world.vms[number]
            vm.design, vm.use_fgt, vm.nr_counters, vm.pmuver, vm.supported_pmus = PARTITIONED, 1, counters, 6, 1
            for _ in range(of_vm):
                self.world.vm_of[v] = number
                self.world.vcpus[v].task, self.world.vcpus[v].pmcr = v, 1 << 6
                v += 1
        for number, task in enumerate(self.host.tasks):
            task.preempt_notifier = number if number < vcpus else NO_VCPU
            task.allowed[0] = (1 << len(cores)) - 1
        self.guest = [dict.fromkeys((INST_RETIRED, CPU_CYCLES), 0) for _ in range(vcpus)]

    # ---- host events ----

    def open(self, **attributes: int) -> int:
        number = self.events
        event = self.host.events[number]
        event.cpu, event.task, event.leader, event.next_sibling = ANY_CPU, NO_TASK, number, NO_EVENT
        event.idx, event.state = NO_COUNTER, STATE_INACTIVE
        for name, value in attributes.items():
            setattr(event, name, value)
        at = next(c for c, cpu in enumerate(self.host.cpus) if cpu.pmu == event.pmu)
        assert perf.perf_event_open(self.host, at, number) == 0
        perf.perf_install_in_context(self.host, number, self.now)
        self.events += 1
        return number

    def close(self, number: int) -> None:
        perf.perf_remove_from_context(self.host, number, self.now)

    def event(self, number: int) -> PerfEvent:
        perf.perf_event_read(self.host, number, self.now)
        return self.host.events[number]

    # ---- what runs ----

    def wake(self, number: int) -> None:
        self.host.tasks[number].state = TASK_RUNNABLE
        sched.enqueue_task(self.host, 0, number)

    def switch(self, c: int, sleep: bool = False) -> int:
        """Take the task off CPU `c` and let the next one come; return that."""
        if sleep and self.host.cpus[c].current != NO_TASK:
            sched.go_to_sleep(self.host, c)
        world.switch_out(self.world, c, self.now)
        return world.switch_in(self.world, c, self.now)

    def resident(self, c: int) -> int:
        current = self.host.cpus[c].current
        return NO_VCPU if current == NO_TASK else self.host.tasks[current].preempt_notifier

    def execute(self, c: int, el: int, instructions: int) -> None:
        """Instructions, and as many cycles, on CPU `c`: of the host at EL2 or EL0, or of the guest that is there."""
        cpu, v = self.host.cpus[c], self.resident(c)
        in_guest = v != NO_VCPU and el < EL2
        if in_guest:
            world.vcpu_enter(self.world, c, v, self.now)
        for event in (INST_RETIRED, CPU_CYCLES):
            pmu.pmu_event(cpu.pe, el, event, instructions)
        pmu.increment_cycle_counter(cpu.pe, pmu.count_pmu_events(cpu.pe, el), instructions)
        self._note(c, el, in_guest, instructions)
        if in_guest:
            world.vcpu_exit(self.world, c)
        if pmu.check_for_pmu_overflow(cpu.pe):
            world.handle_irq(self.world, c, v)
        self.now += instructions

    def _note(self, c: int, el: int, in_guest: bool, instructions: int) -> None:
        if in_guest:
            for counted in self.guest[self.resident(c)]:
                self.guest[self.resident(c)][counted] += instructions
        for event in self.host.events[: self.events]:
            wanted = not (
                (event.exclude_guest if in_guest else event.exclude_host)
                or (event.exclude_user if el == EL0 else event.exclude_kernel)
            )
            of_this = event.cpu == c or (event.task != NO_TASK and event.task == self.host.cpus[c].current)
            if event.attached and wanted and of_this and event.state == STATE_ACTIVE:
                event.seen += instructions

    def access(self, c: int, name: str, write: int, value: int = 0) -> int:
        """The guest on CPU `c` reads or writes a PMU register at EL1."""
        v = self.resident(c)
        vcpu = self.world.vcpus[v]
        world.vcpu_enter(self.world, c, v, self.now)
        outcome = access.guest_access(self.world, c, v, EL1, sysreg.BY_NAME[name], write, value, self.now)
        world.vcpu_exit(self.world, c)
        assert outcome in (access.DIRECT, access.TRAPPED), (name, outcome)
        return vcpu.value

    def program_guest(self, c: int) -> None:
        """Counter 0 counts instructions, the cycle counter cycles; both from now on."""
        self.access(c, "PMEVTYPER0_EL0", 1, INST_RETIRED)
        self.access(c, "PMCNTENSET_EL0", 1, 1 | CYCLE)
        self.access(c, "PMCR_EL0", 1, 1 | 1 << 6)

    def guest_counts(self, c: int) -> dict[int, int]:
        return {
            INST_RETIRED: self.access(c, "PMEVCNTR0_EL0", 0),
            CPU_CYCLES: self.access(c, "PMCCNTR_EL0", 0),
        }


def saved_counts(vcpu: Vcpu) -> dict[int, int]:
    return {INST_RETIRED: vcpu.evcntr[0], CPU_CYCLES: vcpu.ccntr}


# ---- what a load takes, and a put gives back ------------------------------------------------------------------


def rescheduled(of: World) -> int:
    return sum(v.rescheduled for v in of.vcpus)


def test_without_host_events_nothing_is_ever_rescheduled() -> None:
    m = Machine(["neoverse-n1", "neoverse-n1"], [(4, 3)])
    for v in range(3):
        m.wake(v)
    for turn in range(60):
        m.switch(turn % 2)
        m.execute(turn % 2, EL1, 1000)
    assert rescheduled(m.world) == 0
    assert sum(v.loads for v in m.world.vcpus) == 60


def test_host_events_outside_of_the_guests_counters_are_not_rescheduled() -> None:
    m = Machine(["neoverse-n1"], [(2, 1)])
    low = [m.open(cpu=0, config=LD_RETIRED) for _ in range(2)]
    high = [m.open(cpu=0, config=INST_RETIRED) for _ in range(4)]
    for number in low:
        m.close(number)
    assert [m.host.events[n].idx for n in high] == [2, 3, 4, 5]
    m.wake(0)
    m.switch(0)
    m.execute(0, EL1, 100)
    m.switch(0, sleep=True)
    assert rescheduled(m.world) == 0
    assert [m.event(n).count for n in high] == [100] * 4


def test_host_events_in_the_guests_counters_are_moved_to_others_and_lose_nothing() -> None:
    m = Machine(["neoverse-n1"], [(4, 1)])
    events = [m.open(cpu=0, config=CPU_CYCLES), m.open(cpu=0, config=INST_RETIRED)]
    assert [m.host.events[n].idx for n in events] == [31, 0]
    m.execute(0, EL2, 50)
    m.wake(0)
    m.switch(0)
    assert [m.host.events[n].idx for n in events] == [4, 5]
    assert rescheduled(m.world) == 1
    m.execute(0, EL1, 100)
    m.switch(0, sleep=True)
    m.execute(0, EL2, 7)
    assert [m.event(n).count for n in events] == [157, 157]
    assert m.host.cpus[0].hw.cntr_mask == 0x3F | CYCLE


def test_host_events_that_have_no_counter_while_a_guest_is_there_come_back_at_put() -> None:
    m = Machine(["neoverse-n1"], [(6, 1)])
    events = [m.open(cpu=0, config=INST_RETIRED) for _ in range(3)]
    m.wake(0)
    m.switch(0)
    assert [m.host.events[n].state for n in events] == [STATE_INACTIVE] * 3
    m.execute(0, EL1, 100)
    m.switch(0, sleep=True)
    assert [m.host.events[n].state for n in events] == [STATE_ACTIVE] * 3
    m.execute(0, EL2, 50)
    for n in events:
        event = m.event(n)
        assert (event.count, event.total_time_enabled, event.total_time_running) == (50, 150, 50)
    assert rescheduled(m.world) == 2


def test_a_pinned_host_event_whose_counter_is_taken_ends_in_error() -> None:
    # As Linux does with a pinned event that cannot be scheduled: it is not tried again.
    m = Machine(["neoverse-n1"], [(6, 1)])
    pinned = m.open(cpu=0, config=INST_RETIRED, pinned=1)
    m.wake(0)
    m.switch(0)
    assert m.host.events[pinned].state == STATE_ERROR
    m.switch(0, sleep=True)
    assert m.host.events[pinned].state == STATE_ERROR


def test_the_instruction_counter_is_not_used_while_a_guest_holds_its_enable() -> None:
    m = Machine(["max"], [(4, 1)])
    event = m.open(cpu=0, config=INST_RETIRED)
    assert m.host.events[event].idx == 32
    m.wake(0)
    m.switch(0)
    assert m.host.events[event].idx == 4
    m.access(0, "PMCR_EL0", 1, 0)  # the guest's enable, of the instruction counter as well
    m.execute(0, EL1, 100)
    m.execute(0, EL2, 10)
    m.switch(0, sleep=True)
    assert m.event(event).count == 110


# ---- who counts what ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, 1 + 10 + 100 + 1000),
        ({"exclude_guest": 1}, 1 + 10),
        ({"exclude_host": 1}, 100 + 1000),
        ({"exclude_user": 1}, 1 + 100),
        ({"exclude_kernel": 1}, 10 + 1000),
        ({"exclude_guest": 1, "exclude_user": 1}, 1),
        ({"exclude_guest": 1, "exclude_kernel": 1}, 10),
        ({"exclude_host": 1, "exclude_kernel": 1}, 1000),
        ({"exclude_host": 1, "exclude_user": 1}, 100),
    ],
)
def test_a_host_event_counts_the_levels_that_it_does_not_exclude(attributes: dict[str, int], expected: int) -> None:
    m = Machine(["neoverse-n1"], [(3, 1)], host_tasks=1)
    event = m.open(cpu=0, config=INST_RETIRED, **attributes)
    m.execute(0, EL2, 1)
    m.wake(1)
    assert m.switch(0) == 1
    m.execute(0, EL0, 10)
    m.switch(0, sleep=True)
    m.wake(0)
    m.switch(0)
    m.execute(0, EL1, 100)
    m.execute(0, EL0, 1000)
    m.switch(0, sleep=True)
    assert m.event(event).count == expected


def test_a_cpu_of_another_pmu_loads_nothing_and_keeps_all_its_counters() -> None:
    m = Machine(["cortex-a55", "cortex-x1"], [(4, 1)])
    event = m.open(cpu=1, pmu=1, config=INST_RETIRED)
    m.host.tasks[0].allowed[0] = 0b10
    m.wake(0)
    assert m.switch(1) == 0
    assert m.world.vcpus[0].unsupported_cpu == 1
    assert m.host.cpus[1].hw.cntr_mask == 0x3F | CYCLE
    m.execute(1, EL2, 10)
    m.switch(1, sleep=True)
    assert m.event(event).count == 10
    assert rescheduled(m.world) == 0


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from(["neoverse-n1", "neoverse-n2", "max"]))
def test_guest_and_host_counts_are_exact_whatever_the_scheduler_does(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    counters = rng.randrange(1, core(kind).event_counters)
    m = Machine([kind, kind], [(counters, 3)], host_tasks=2)
    programmed: set[int] = set()
    opened: list[int] = []
    for task in range(5):
        m.wake(task)
    for _ in range(80):
        c, what = rng.randrange(2), rng.random()
        if what < 0.35:
            m.switch(c)
            v = m.resident(c)
            if v != NO_VCPU and v not in programmed:
                m.program_guest(c)
                m.guest[v] = dict.fromkeys(m.guest[v], 0)
                programmed.add(v)
        elif what < 0.8:
            levels = [EL0, EL1, EL2] if m.resident(c) != NO_VCPU else [EL0, EL2]
            m.execute(c, rng.choice(levels), rng.randrange(1, 5000))
        elif what < 0.9 and m.events < 20:
            attributes = {"cpu": c} if rng.random() < 0.6 else {"task": rng.randrange(5)}
            attributes |= {name: rng.randrange(2) for name in ("exclude_user", "exclude_kernel")}
            attributes |= rng.choice([{}, {"exclude_guest": 1}, {"exclude_host": 1}])
            attributes["sample_period"] = rng.choice([0, 0, rng.randrange(100, 20000)])
            attributes["pinned"] = int(rng.random() < 0.2)
            opened.append(m.open(config=rng.choice([INST_RETIRED, CPU_CYCLES]), **attributes))
        elif what < 0.95 and opened:
            m.close(opened.pop(rng.randrange(len(opened))))
        else:
            perf.perf_rotate_context(m.host, c, m.now)
        for cpu in m.host.cpus:
            assert cpu.hw.used_mask & ~cpu.hw.cntr_mask == 0
    for c in range(2):
        m.switch(c, sleep=True)
    for number in opened:
        event = m.event(number)
        assert event.count == event.seen, number
    for v in programmed:
        if m.world.vcpus[v].loaded == 0:
            assert saved_counts(m.world.vcpus[v]) == m.guest[v]
    for c in range(2):
        if m.resident(c) in programmed:
            assert m.guest_counts(c) == m.guest[m.resident(c)]


def test_the_load_and_put_that_docs_host_md_draws() -> None:
    m = Machine(["neoverse-n1"], [(4, 1)])
    names = ("cycles", "A", "B", "C")
    numbers = [m.open(cpu=0, config=config) for config in (CPU_CYCLES, INST_RETIRED, INST_RETIRED, INST_RETIRED)]

    def counters() -> dict[str, int]:
        return {name: m.host.events[n].idx for name, n in zip(names, numbers, strict=True)}

    waits = NO_COUNTER
    assert counters() == {"cycles": 31, "A": 0, "B": 1, "C": 2}
    m.execute(0, EL2, 100)
    m.wake(0)
    m.switch(0)
    assert counters() == {"cycles": 4, "A": 5, "B": waits, "C": waits}
    m.program_guest(0)
    m.execute(0, EL1, 200)
    perf.perf_rotate_context(m.host, 0, m.now)
    assert counters() == {"cycles": waits, "A": 4, "B": 5, "C": waits}
    m.execute(0, EL1, 300)
    m.switch(0, sleep=True)
    assert counters() == {"cycles": 31, "A": 0, "B": 1, "C": 2}
    m.execute(0, EL2, 400)
    told = [(e.count, e.total_time_running, e.total_time_enabled) for e in map(m.event, numbers)]
    assert told == [(700, 700, 1000), (1000, 1000, 1000), (800, 800, 1000), (500, 500, 1000)]
    assert saved_counts(m.world.vcpus[0]) == {INST_RETIRED: 500, CPU_CYCLES: 500}
    assert rescheduled(m.world) == 2
