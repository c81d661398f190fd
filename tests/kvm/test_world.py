"""A host and its VMs while the scheduler moves vCPUs: counters taken and given back, counts of both sides exact.

Expected counts are kept beside the model: what was executed where, by whom, and who was to see it.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm.machines import CYCLE, EL0, EL1, EL2, LD_RETIRED, Machine, saved_counts
from pmuvisor.arch.cores import core
from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED
from pmuvisor.kvm.world import World
from pmuvisor.linux import perf
from pmuvisor.linux.host import NO_COUNTER, NO_VCPU, STATE_ACTIVE, STATE_ERROR, STATE_INACTIVE

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
            m.execute_late(c, rng.choice(levels), rng.randrange(1, 5000))
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


@pytest.mark.parametrize("cores", [["cortex-a55", "cortex-x1"], ["max", "neoverse-n1"]])
def test_hpmn_is_the_vm_s_count_on_its_own_cpus_and_all_counters_elsewhere(cores: list[str]) -> None:
    m = Machine(cores, [(3, 1)])
    hpmn = []
    for c in (0, 1, 0):
        m.run(0, c)
        hpmn.append(m.host.cpus[c].pe.mdcr_el2 & 0x1F)
        m.switch(c, sleep=True)
        assert m.host.cpus[c].pe.mdcr_el2 == core(cores[c]).event_counters
    assert hpmn == [3, core(cores[1]).event_counters, 3]


def test_an_overflow_of_the_guest_s_is_pending_until_its_guest_clears_it_wherever_that_is() -> None:
    m = Machine(["neoverse-n1", "neoverse-n1"], [(3, 2)])
    m.run(0)
    m.write("PMINTENSET_EL1", 1)
    m.program_guest(0)
    m.write("PMEVCNTR0_EL0", 0xFFFF_FFFF)
    m.execute(0, EL1, 1)
    assert m.host.cpus[0].pe.ovs == 0
    m.switch(0, sleep=True)
    m.run(1)
    assert (m.irq_level(0), m.read("PMOVSSET_EL0")) == (0, 0)
    m.run(0, 1)
    assert (m.irq_level(1), m.read("PMOVSSET_EL0", 1), m.host.cpus[1].pe.ovs) == (1, 1, 0)
    m.write("PMOVSCLR_EL0", 1, 1)
    assert (m.irq_level(1), m.world.vcpus[0].overflows, m.world.vcpus[0].injected) == (0, 1, 1)
