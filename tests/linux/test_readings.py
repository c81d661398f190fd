"""The host in its three readings: CPython and numba go through the same states, Z3 proves what holds of all."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import z3

from arch.support import P1, P5, P9
from linux.support import fill, make_host, probed_cpu, sizes_of
from pmuvisor import records
from pmuvisor.arch import pmu
from pmuvisor.arch.events import BR_RETIRED, CPU_CYCLES, INST_RETIRED
from pmuvisor.check.compiled import compiled
from pmuvisor.check.symbolic import Int, paths, symbolic, word
from pmuvisor.linux import arm_pmuv3, perf
from pmuvisor.linux.host import ANY_CPU, NO_COUNTER, NO_TASK, STATE_INACTIVE, STATE_OFF, Host, PerfEvent

CPUS, TASKS, EVENTS = 2, 2, 12
OPEN, CLOSE, ENABLE, DISABLE, READ, ROTATE, SWITCH, RESCHED_UPDATE, HAPPEN = range(9)


def operate(host: Host, operation: int, c: int, number: int, value: int, now: int) -> int:
    """Do one of the things that can happen to a host; `value` is a CPU's mask, a task or an amount."""
    cpu = host.cpus[c]
    if operation == OPEN:
        result = perf.perf_event_open(host, c, number)
        if result == 0:
            perf.perf_install_in_context(host, number, now)
        return result
    if operation == CLOSE:
        perf.perf_remove_from_context(host, number, now)
    elif operation == ENABLE:
        perf.perf_event_enable(host, number, now)
    elif operation == DISABLE:
        perf.perf_event_disable(host, number, now)
    elif operation == READ:
        perf.perf_event_read(host, number, now)
    elif operation == ROTATE:
        return perf.perf_rotate_context(host, c, now)
    elif operation == RESCHED_UPDATE:
        perf.perf_pmu_resched_update(host, c, value, now)
    elif operation == SWITCH:
        if cpu.current != NO_TASK:
            perf.perf_event_task_sched_out(host, c, now)
        if value != NO_TASK:
            host.tasks[value].cpu = c
            perf.perf_event_task_sched_in(host, c, value, now)
    elif operation == HAPPEN:
        pmu.increment_cycle_counter(cpu.pe, pmu.count_pmu_events(cpu.pe, number), value)
        pmu.pmu_event(cpu.pe, number, INST_RETIRED, value)
        if pmu.check_for_pmu_overflow(cpu.pe) == 1:
            return arm_pmuv3.handle_irq(host, c, arm_pmuv3.getreset_flags(cpu))
    return 0


def random_event(rng: random.Random, host: Host, number: int) -> None:
    """Fill in an event to be opened, of a CPU or a task, mostly in a group that it can be in."""
    of_cpu, of_task = {"cpu": rng.randrange(CPUS)}, {"cpu": ANY_CPU, "task": rng.randrange(TASKS)}
    attributes: dict[str, int] = rng.choice([of_cpu, of_task])
    leaders = [i for i, event in enumerate(host.events) if event.attached and event.leader == i]
    if leaders and rng.random() < 0.4:
        leader = host.events[rng.choice(leaders)]
        attributes = {"leader": leader.leader, "cpu": leader.cpu, "task": leader.task, "pmu": leader.pmu}
    else:
        attributes["pmu"] = host.cpus[attributes["cpu"]].pmu if "task" not in attributes else rng.randrange(2)
        attributes["pinned"] = int(rng.random() < 0.3)
    zeros = {"count": 0, "period_left": 0, "samples": 0, "total_time_enabled": 0, "total_time_running": 0, "pinned": 0}
    others = {
        "config": rng.choice([INST_RETIRED, INST_RETIRED, CPU_CYCLES, BR_RETIRED]),
        "long": int(rng.random() < 0.3),
        "state": rng.choice([STATE_OFF, STATE_INACTIVE, STATE_INACTIVE]),
        "sample_period": rng.choice([0, 1, 1000, (1 << 31) - 1, 1 << 40]),
        "exclude_user": rng.getrandbits(1),
    }
    fill(host.events[number], number, **(zeros | {"task": NO_TASK, "pmu": 0} | others | attributes))


def random_operation(rng: random.Random, host: Host) -> tuple[int, int, int, int]:
    attached = [i for i, event in enumerate(host.events) if event.attached]
    free = [i for i in range(EVENTS) if i not in attached]
    operation = rng.choice([*range(9), OPEN, ROTATE, HAPPEN])
    c, number, value = rng.randrange(CPUS), 0, 0
    if operation in (CLOSE, ENABLE, DISABLE, READ):
        if not attached:
            return ROTATE, c, 0, 0
        number = rng.choice(attached)
    elif operation == OPEN:
        if not free:
            return ROTATE, c, 0, 0
        number = rng.choice(free)
        random_event(rng, host, number)
        c = next(c for c in range(CPUS) if host.cpus[c].pmu == host.events[number].pmu)
    elif operation == SWITCH:
        running = [cpu.current for cpu in host.cpus]
        value = rng.choice([NO_TASK, *(task for task in range(TASKS) if task not in running)])
    elif operation == RESCHED_UPDATE:
        value = rng.getrandbits(6) | rng.getrandbits(1) << 31
    elif operation == HAPPEN:
        number = rng.choice([0, 2])
        value = rng.choice([1, 999, 1 << 20, (1 << 31) - 1])
    return operation, c, number, value


@cache
def compiled_operate() -> Any:
    return compiled(operate, boundscheck=True, also=(f"{__name__}.",))


@pytest.mark.parametrize("pmuver", [P1, P5])
def test_cpython_and_numba_go_through_the_same_states(pmuver: int) -> None:
    fast = compiled_operate()
    sizes = sizes_of(CPUS, TASKS, EVENTS)
    row = np.zeros(1, records.layout(Host, sizes))
    back = records.new(Host, sizes)
    for seed in range(12):
        rng = random.Random(seed)
        host = make_host(CPUS, TASKS, EVENTS, pmuver=pmuver, pmus=[0, 1])
        now = 0
        for _ in range(100):
            operation, c, number, value = random_operation(rng, host)
            records.store(host, row, sizes)
            now += rng.randrange(5_000_000)
            expected = operate(host, operation, c, number, value, now)
            assert fast(row[0], operation, c, number, value, now) == expected
            records.load(back, row, sizes)
            assert back == host, (seed, operation, c, number, value)


# ---- what holds of every event ----------------------------------------------------------------------------


def symbolic_event() -> PerfEvent:
    return symbolic(PerfEvent, "event")


def bit(value: Any, i: int) -> Any:
    return z3.Extract(i, i, word(value)) == 1


def prove(solver: Any, claim: Any) -> None:
    solver.push()
    solver.add(z3.Not(claim))
    assert solver.check() == z3.unsat, solver.model()
    solver.pop()


@pytest.mark.parametrize(("pmuver", "icntr"), [(P1, 0), (P5, 0), (P9, 1)])
def test_whatever_is_free_a_counter_is_given_that_is_the_driver_s_and_nobody_s(pmuver: int, icntr: int) -> None:
    cpu = probed_cpu(31, pmuver, icntr)
    mine, used = (z3.ZeroExt(31, z3.BitVec(name, 33)) for name in ("cntr_mask", "used_mask"))
    free = mine & ~used
    event = symbolic_event()
    a_pair = z3.And(word(event.long) == 1, pmuver == P1)

    def run() -> Any:
        cntr_mask: Any = Int(mine)
        used_mask: Any = Int(used)
        return arm_pmuv3.get_event_idx(cpu, symbolic_event(), cntr_mask, used_mask)

    followed = 0
    for solver, idx in paths(run):
        followed += 1
        given = word(idx)
        is_free = z3.LShR(free, given) & 1 == 1
        below = z3.LShR(free, given - 1) & 1 == 1
        prove(solver, z3.Or(given == NO_COUNTER, z3.And(given <= 32, is_free)))
        prove(solver, z3.Implies(z3.And(a_pair, z3.ULT(given, 31)), z3.And(below, given & 1 == 1)))
        # None is given only where none, or no pair, is free among the event counters.
        pairs = z3.Or([z3.And(bit(Int(free), i), bit(Int(free), i - 1)) for i in range(1, 31, 2)])
        singles = free & 0x7FFF_FFFF != 0
        prove(solver, z3.Implies(given == NO_COUNTER, z3.Not(z3.If(a_pair, pairs, singles))))
    assert followed > 0


def test_whatever_the_exclude_bits_the_filter_lets_count_where_none_of_them_says_no() -> None:
    event = symbolic_event()
    user, kernel, in_host, in_guest = (
        word(value) == 0
        for value in (event.exclude_user, event.exclude_kernel, event.exclude_host, event.exclude_guest)
    )
    followed = 0
    for solver, control in paths(lambda: arm_pmuv3.set_event_filter(symbolic_event())):
        followed += 1
        # PMEVTYPER<n>_EL0: NSH lets EL2 count, P keeps EL1 from it, U EL0.
        prove(solver, bit(control, 27) == z3.And(kernel, in_host))
        prove(solver, bit(control, 31) == z3.Not(z3.And(kernel, in_guest)))
        prove(solver, bit(control, 30) == z3.Not(z3.And(user, in_host)))
        prove(solver, word(control) & 0xFFFF == word(event.config))
    assert followed == 1


@pytest.mark.parametrize("pmuver", [P1, P5])
@pytest.mark.parametrize("idx", [1, 31])
@pytest.mark.parametrize("long", [0, 1])
def test_whatever_is_left_of_a_period_the_counter_is_loaded_with_no_more_and_no_more_than_half(
    pmuver: int, idx: int, long: int
) -> None:
    top = (1 << 64) - 1 if long else (1 << 32) - 1
    period, left = (word(value) for value in (symbolic_event().sample_period, symbolic_event().period_left))

    def run() -> tuple[PerfEvent, Any, Any]:
        cpu = probed_cpu(6, pmuver, 0)
        event = symbolic_event()
        event.idx, event.long = idx, long
        complete = arm_pmuv3.event_set_period(cpu, event)
        return event, complete, arm_pmuv3.read_counter(cpu, event)

    followed = 0
    for solver, (event, complete, counter) in paths(run, [period != 0]):
        followed += 1
        goal = word(event.period_left)
        prove(solver, (word(complete) == 1) == (left <= 0))
        prove(solver, z3.And(goal > 0, z3.Or(goal == left, goal == period, goal == left + period)))
        # What the counter has to go until it overflows.
        to_go = -word(counter) & top
        prove(solver, z3.And(z3.UGE(to_go, 1), z3.ULE(to_go, top >> 1), z3.ULE(to_go, goal)))
        prove(solver, z3.Or(to_go == goal, to_go == top >> 1))
        prove(solver, (word(event.prev_count) ^ word(counter)) & top == 0)
    assert followed > 0
