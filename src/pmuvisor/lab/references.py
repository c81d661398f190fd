"""What conform compares with: the architecture's answer to an operation, and how an implementation deviates from it.

A deviation is a rule: which accesses it is about, exactly what the implementation answers to them, and what they leave
behind. Rules come from an implementation's documentation or source and from the manual, never from what a file of
answers happens to hold; docs/conformance.md gives each in full. `qemu_rules` and `kvm_rules` have them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from pmuvisor.arch import pmu, traps
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import (
    CYCLE,
    HDFGRTR_EL2,
    HDFGWTR_EL2,
    MDCR_EL2,
    PMCEID0_EL0,
    PMCEID1_EL0,
    PMMIR_EL1,
    PMSWINC_EL0,
    PMU_KEYS,
    PMXEVCNTR_EL0,
    is_pmevcntr,
    is_pmevtyper,
    sys64_esr,
    undefined_esr,
)
from pmuvisor.lab.vectors import SKIPPED_READ, Answer, Operation

DONE = Answer(0, 0, 0)
"""The answer to a write that took place."""
CONTROLS = {MDCR_EL2: "mdcr_el2", HDFGRTR_EL2: "hdfgrtr_el2", HDFGWTR_EL2: "hdfgwtr_el2"}
"""The registers of EL2 that operations write, as fields of a PE."""
NO_ACCESSOR = {(PMSWINC_EL0, 0), (PMCEID0_EL0, 1), (PMCEID1_EL0, 1), (PMMIR_EL1, 1)}
"""Accesses that have no instruction (key, write): those who made the answers executed none."""
EVENT_COUNTER_KEYS = tuple(key for key in PMU_KEYS if is_pmevcntr(key))
EVENT_TYPE_KEYS = tuple(key for key in PMU_KEYS if is_pmevtyper(key))

# ---- what the architecture says -----------------------------------------------------------------------------------


def architecture_answer(pe: Pe, op: Operation) -> Answer:
    """Return what the architecture answers. Changes nothing but `pe.unpredictable`."""
    if op.key in CONTROLS:
        return DONE
    where = traps.access(pe, op.el, op.key, op.write)
    if where != traps.ALLOWED:
        return exception(op, where)
    return DONE if op.write else Answer(pmu.read(pe, op.el, op.key), 0, 0)


def architecture_effect(pe: Pe, op: Operation) -> None:
    """Carry out a write that was allowed."""
    if op.key in CONTROLS:
        setattr(pe, CONTROLS[op.key], op.value)
    else:
        pmu.write(pe, op.el, op.key, op.value)


def exception(op: Operation, where: int) -> Answer:
    """Return the answer to an access that goes to `where`, one of `traps`, and not through."""
    skipped = 0 if op.write else SKIPPED_READ
    if where == traps.UNDEFINED:
        return Answer(skipped, max(op.el, 1), undefined_esr())
    taken_at = {traps.TRAP_EL1: 1, traps.TRAP_EL2: 2, traps.TRAP_EL3: 3}[where]
    return Answer(skipped, taken_at, sys64_esr(op.key, op.rt, op.write))


def beyond(pe: Pe, key: int) -> bool:
    """Tell whether `key` is about an event counter that the PE has not; PMXEVTYPER_EL0 may select the cycle counter."""
    counter = traps.event_counter_of(pe, key)
    return counter >= pe.core.event_counters and (counter != CYCLE or key == PMXEVCNTR_EL0)


# ---- rules --------------------------------------------------------------------------------------------------------

Condition = Callable[[Pe, Operation], bool]
Reply = Callable[[Pe, Operation], Answer]
Effect = Callable[[Pe, Operation], None]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One deviation of a reference from the architecture."""

    name: str
    sentence: str
    """What the reference does."""
    source: str
    """Where it does that, and where the manual says otherwise."""
    keys: frozenset[int]
    """The registers whose accesses it is about."""
    applies: Condition
    """Whether it does so at this access, in this state before it."""
    answer: Reply = architecture_answer
    """What it answers then. Leaves the state as it was."""
    effect: Effect = architecture_effect
    """What a write does then, where that answer is no exception."""


class Reference:
    """An implementation that operations were put to.

    Where several of `rules` apply to one access, the last of them does all that the reference does.
    """

    def __init__(self, name: str, about: str, core: str, rules: Iterable[Rule], *, emulated: bool = False) -> None:
        self.name = name
        self.about = about
        self.core = core
        """Its name in the data file of cores."""
        self.rules = tuple(rules)
        self.emulated = emulated
        """What is compared is not the architecture but the `emulated` design, as a guest sees it."""
        self.by_key = {key: tuple(r for r in self.rules if key in r.keys) for key in (*PMU_KEYS, *CONTROLS)}


def answer_without_fgt(bits: int) -> Reply:
    """Return a reply as if these bits of HDFGRTR_EL2 and HDFGWTR_EL2 were zero."""

    def answer(pe: Pe, op: Operation) -> Answer:
        before = pe.hdfgrtr_el2, pe.hdfgwtr_el2
        pe.hdfgrtr_el2 &= ~bits
        pe.hdfgwtr_el2 &= ~bits
        given = architecture_answer(pe, op)
        pe.hdfgrtr_el2, pe.hdfgwtr_el2 = before
        return given

    return answer
