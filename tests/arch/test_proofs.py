"""What Z3 proves of the PMU: 31 counters of 64 bits, every value of every register, MDCR_EL2.HPMN included.

The state is a record of variables; a core is a constant. Every feasible path through the semantics is followed, and on
each the negation of the property must be unsatisfiable. The properties are said here, counter by counter; nothing of
the semantics' masks is used to say them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import z3

from arch.support import P0, P5, P9, make_pe, sizes_of
from pmuvisor import records
from pmuvisor.arch import sysreg
from pmuvisor.arch.pmu import Pe, check_for_pmu_overflow, read, write
from pmuvisor.arch.sysreg import PMCR_EL0, PMU_KEYS
from pmuvisor.arch.traps import ALLOWED, access
from pmuvisor.check.symbolic import Int, paths, symbolic, word

N, CYCLE, INSTRUCTION = 31, 31, 32
CORES = {
    "p0": {"pmuver": P0, "fgt": 0, "fgt2": 0},
    "p5": {"pmuver": P5},
    "p5 without HPMN0": {"pmuver": P5, "hpmn0": 0},
    "p9": {"pmuver": P9, "icntr": 1},
}
all_cores = pytest.mark.parametrize("core", [pytest.param(core, id=name) for name, core in CORES.items()])


def symbolic_pe(core: Pe, prefix: str = "pe") -> Pe:
    """Return a PE of a concrete core in which every register is a variable."""
    made = symbolic(Pe, prefix, sizes_of(core))
    made.core = records.copy(core.core)
    return made


def legal(pe: Pe) -> list[Any]:
    """Say that the state is one that can be reached: before PMUv3p5 the upper half of an event counter is RES0."""
    return [] if pe.core.pmuver >= P5 else [z3.LShR(word(value), 32) == 0 for value in pe.evcntr]


def first_range_size(pe: Pe) -> Any:
    """Say the effective HPMN as a term: N where the field is 0 without FEAT_HPMN0; with N = 31 it is never above N."""
    hpmn = word(pe.mdcr_el2) & 31
    return z3.If(hpmn == 0, z3.BitVecVal(0 if pe.core.hpmn0 else N, 64), hpmn)


def in_second_range(pe: Pe, i: int) -> Any:
    return z3.UGE(z3.BitVecVal(i, 64), first_range_size(pe))


def bit(value: Any, i: int) -> Any:
    return z3.Extract(i, i, word(value)) == 1


def prove(solver: Any, claim: Any, of: str) -> None:
    solver.push()
    solver.add(z3.Not(claim))
    assert solver.check() == z3.unsat, of
    solver.pop()


def same_second_range(before: Pe, after: Pe) -> Any:
    """Say that of each counter from HPMN up nothing has changed."""
    return z3.And(
        [
            z3.Implies(
                in_second_range(before, i),
                z3.And(
                    word(after.evcntr[i]) == word(before.evcntr[i]),
                    word(after.evtyper[i]) == word(before.evtyper[i]),
                    *(bit(getattr(after, f), i) == bit(getattr(before, f), i) for f in ("cnten", "inten", "ovs")),
                ),
            )
            for i in range(N)
        ]
    )


def accesses(core: Pe, run: Callable[[int], Any]) -> Iterator[tuple[int, Any, Any]]:
    """Follow `run` of every PMU register along all paths: yield the register, the solver and what `run` returned."""
    for key in PMU_KEYS:
        for solver, result in paths(lambda key=key: run(key), legal(symbolic_pe(core))):  # type: ignore[misc]
            yield key, solver, result


@all_cores
@pytest.mark.parametrize("el", [0, 1])
def test_no_write_below_el2_changes_a_counter_of_the_second_range(core: dict[str, int], el: int) -> None:
    of = make_pe(N, **core)
    before = symbolic_pe(of)
    value: Any = Int(z3.BitVec("value", 64))

    def run(key: int) -> tuple[Pe, bool]:
        pe = symbolic_pe(of)
        allowed = access(pe, el, key, 1) == ALLOWED
        if allowed:
            write(pe, el, key, value)
        return pe, allowed

    reached = set()
    for key, solver, (after, allowed) in accesses(of, run):
        reached |= {key} if allowed else set()
        prove(solver, same_second_range(before, after), f"{sysreg.name_of(key)} written at EL{el}")
    # So that it is not about nothing, the registers that the manual lets this level write: PMEVCNTR and PMEVTYPER; from
    # PMCR to PMSELR, PMCCNTR, PMXEVTYPER, PMXEVCNTR, PMOVSSET, PMCCFILTR; EL1's PMUSERENR and PMINTEN*; and p9's.
    assert len(reached) == 31 * 2 + 11 + 3 * el + (3 + el) * (core["pmuver"] == P9), [*map(sysreg.name_of, reached)]


@all_cores
@pytest.mark.parametrize("el", [0, 1])
def test_no_read_below_el2_depends_on_a_counter_of_the_second_range(core: dict[str, int], el: int) -> None:
    of = make_pe(N, **core)
    one, two = symbolic_pe(of), symbolic_pe(of, "other")
    # Two machines, alike in all but what is the second range's.
    alike = [same_outside_second_range(one, two)]

    def run(key: int) -> Any:
        pair = []
        for prefix in ("pe", "other"):
            pe = symbolic_pe(of, prefix)
            where = access(pe, el, key, 0)
            pair.append((where, read(pe, el, key) if where == ALLOWED else 0))
        return pair

    reached = set()
    for key in PMU_KEYS:
        for solver, ((where, value), (other_where, other_value)) in paths(lambda key=key: run(key), alike):  # type: ignore[misc]
            reached |= {key} if where == ALLOWED else set()
            assert where == other_where
            prove(solver, word(value) == word(other_value), f"{sysreg.name_of(key)} read at EL{el}")
    # As above with PMCEID<n> and PMUSERENR, and PMMIR for EL1 from PMUv3p4; without PMSWINC and PMZR.
    assert len(reached) == 31 * 2 + 13 + (2 + (core["pmuver"] >= P5)) * el + (2 + el) * (core["pmuver"] == P9)


def same_outside_second_range(one: Pe, two: Pe) -> Any:
    """Say that two machines are alike in all but the counters from HPMN up."""
    claims = []
    for leaf in records.leaves(Pe, sizes_of(one)):
        a, b = records.get(one, leaf.path), records.get(two, leaf.path)
        name, index = leaf.path[0], leaf.path[-1]
        if name in ("evcntr", "evtyper") and isinstance(index, int):
            claims.append(z3.Or(in_second_range(one, index), word(a) == word(b)))
        elif name in ("cnten", "inten", "ovs"):
            claims += [z3.Or(in_second_range(one, i), bit(a, i) == bit(b, i)) for i in range(N)]
            claims += [bit(a, i) == bit(b, i) for i in (CYCLE, INSTRUCTION)]
        elif name != "core":
            claims.append(word(a) == word(b))
    return z3.And(claims)


@all_cores
@pytest.mark.parametrize("el", [0, 1, 2])
def test_pmcr_p_zeroes_the_first_range_and_from_el2_every_event_counter_and_nothing_else(
    core: dict[str, int], el: int
) -> None:
    of = make_pe(N, **core)
    before = symbolic_pe(of)

    def run() -> Pe:
        pe = symbolic_pe(of)
        # The other fields of PMCR_EL0 as they are, C clear.
        write(pe, el, PMCR_EL0, ((pe.pmcr >> 3) << 3) | (pe.pmcr & 1) | 2)
        return pe

    # EL0 writes PMCR_EL0 only where PMUSERENR_EL0.UEN is clear (`access`).
    uen_clear = [(word(before.userenr) & 16) == 0]
    followed = 0
    for solver, after in paths(run, uen_clear):
        followed += 1
        for i in range(N):
            kept = in_second_range(before, i) if el < 2 else z3.BoolVal(False)
            expected = z3.If(kept, word(before.evcntr[i]), z3.BitVecVal(0, 64))
            prove(solver, word(after.evcntr[i]) == expected, f"counter {i} at EL{el}")
        for leaf in records.leaves(Pe, sizes_of(of)):
            if leaf.path[0] not in ("core", "evcntr", "pmcr", "unpredictable"):
                a, b = (word(records.get(pe, leaf.path)) for pe in (before, after))
                prove(solver, a == b, f"{leaf.path} at EL{el}")
    assert followed > 0


@all_cores
def test_the_interrupt_line_is_up_for_an_overflow_that_is_enabled_in_a_range_that_is(core: dict[str, int]) -> None:
    of = make_pe(N, **core)
    before = symbolic_pe(of)
    e, hpme = bit(before.pmcr, 0), bit(before.mdcr_el2, 7)

    def raises(i: int) -> Any:
        enabled = e if i >= CYCLE else z3.If(in_second_range(before, i), hpme, e)
        return z3.And(bit(before.ovs, i), bit(before.inten, i), enabled)

    counters = [*range(N), CYCLE] + [INSTRUCTION] * of.core.icntr
    # A bit that no counter has is never set.
    implemented = [bit(getattr(before, f), INSTRUCTION) == z3.BoolVal(False) for f in ("ovs", "inten")]
    followed = 0
    for solver, level in paths(lambda: check_for_pmu_overflow(symbolic_pe(of)), [] if of.core.icntr else implemented):
        followed += 1
        prove(solver, (word(level) == 1) == z3.Or([raises(i) for i in counters]), "the level")
        prove(solver, z3.ULE(word(level), 1), "the level is a bit")
    assert followed > 0
