"""The host in its symbolic reading: what holds of every event. The compiled one is held in tests/kvm."""

from __future__ import annotations

from typing import Any

import pytest
import z3

from arch.support import P1, P5, P9
from linux.support import probed_cpu
from pmuvisor.check.symbolic import Int, paths, symbolic, word
from pmuvisor.linux import arm_pmuv3
from pmuvisor.linux.host import NO_COUNTER, PerfEvent

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
    # The kernel's periods are s64; those of 2**63 and more are KVM's, of 64-bit counters that are as far from overflow.
    for solver, (event, complete, counter) in paths(run, [period > 0]):
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
