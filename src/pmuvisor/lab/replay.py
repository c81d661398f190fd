"""Replay operations on the model, and compare its answers with an implementation's.

An operation is *equal* where the implementation answered as the architecture says and left the same state behind;
*allowed* where it did exactly what one of the reference's rules says instead; otherwise it is a mismatch. The model's
state goes on as the implementation's does, so that a difference is not counted again in what follows from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from pmuvisor import records
from pmuvisor.arch import cores, pmu, traps
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import (
    CYCLE,
    HDFGRTR_EL2,
    HDFGWTR_EL2,
    MDCR_EL2,
    PMCCFILTR_EL0,
    PMCCNTR_EL0,
    PMCNTENCLR_EL0,
    PMCNTENSET_EL0,
    PMCR_C,
    PMCR_EL0,
    PMCR_P,
    PMINTENCLR_EL1,
    PMINTENSET_EL1,
    PMOVSCLR_EL0,
    PMOVSSET_EL0,
    PMSELR_EL0,
    PMSWINC_EL0,
    PMUSERENR_EL0,
    PMXEVCNTR_EL0,
    PMXEVTYPER_EL0,
    is_pmevcntr,
    pmevcntr,
    pmevtyper,
)
from pmuvisor.arch.unpredictable import choices_reached
from pmuvisor.lab import kvm_rules, qemu_rules
from pmuvisor.lab.guest_answers import GuestAnswers
from pmuvisor.lab.references import (
    NO_ACCESSOR,
    Effect,
    Reference,
    Reply,
    Rule,
    architecture_answer,
    architecture_effect,
    beyond,
)
from pmuvisor.lab.vectors import Answer, Operation, Vectors

REFERENCES: dict[str, Reference] = {
    reference.name: reference
    for reference in (
        Reference(
            "bare",
            "QEMU 11.1, -cpu max without EL3, at EL2, EL1 and EL0; MDCR_EL2.HPMN = N",
            "qemu-max",
            qemu_rules.RULES,
        ),
        Reference(
            "part",
            "Linux 7.2 KVM, a guest at virtual EL2 and its own guest at EL1 and EL0",
            "kvm-nested",
            kvm_rules.RULES,
        ),
        Reference(
            "el1",
            "Linux 7.2 KVM, a guest at EL1 and EL0 under the emulated design",
            "qemu-max",
            (),
            emulated=True,
        ),
    )
}
SHOWN_MISMATCHES = 5
"""Mismatches of a replay that are kept with their history; all are counted."""
SHOWN_BEFORE = 10
"""Operations just before a mismatch that its history has, besides the last writes of what its answer depends on."""
PROGRESS_EVERY = 1000
"""Operations between two calls of `progress`."""
_ALL = (1 << 64) - 1

_SETS = {
    register: pair
    for pair in (
        (PMCNTENSET_EL0, PMCNTENCLR_EL0),
        (PMINTENSET_EL1, PMINTENCLR_EL1),
        (PMOVSSET_EL0, PMOVSCLR_EL0),
    )
    for register in pair
}
"""The register that sets and the one that clears, for each of both."""
_BY_NUMBER = (PMSELR_EL0, PMXEVCNTR_EL0, PMXEVTYPER_EL0)
"""What reaches any counter by its number."""


class Mismatch(NamedTuple):
    """An answer that neither the architecture nor a rule explains."""

    number: int
    operation: Operation
    got: Answer
    rule: Rule | None
    """A rule of the reference that applies here, if there is one."""
    expected: Answer
    """What the architecture says."""
    by_rule: Answer
    """What `rule` says instead."""
    history: tuple[tuple[int, Operation, Answer], ...]
    """Operations before it with the implementation's answers: the last ones, and what the answer depends on."""

    def lines(self) -> list[str]:
        """Return it in words."""
        out = [f"operation {self.number}: {self.operation}"]
        out.append(f"  expected {self.expected.describe(self.operation)}")
        if self.rule is not None:
            out.append(f"  or, by {self.rule.name}, {self.by_rule.describe(self.operation)}")
        out.append(f"  got {self.got.describe(self.operation)}")
        return [*out, "  after", *(f"    {line}" for line in self._after())]

    def as_json(self) -> dict[str, Any]:
        """Return it as an object for JSON."""
        out: dict[str, Any] = {"operation": self.number, "instruction": str(self.operation)}
        out |= {"expected": self.expected._asdict(), "got": self.got._asdict()}
        if self.rule is not None:
            out |= {"rule": self.rule.name, "expected_by_rule": self.by_rule._asdict()}
        return out | {"after": self._after()}

    def _after(self) -> list[str]:
        return [f"{number}: {op}: {answer.describe(op)}" for number, op, answer in self.history]


@dataclasses.dataclass
class Report:
    """A replay that was made."""

    reference: Reference
    operations: int
    equal: int
    allowed: dict[str, int]
    """How many operations each rule explains: every rule of the reference is in it."""
    mismatches: int
    first_mismatches: list[Mismatch]
    unpredictable: int
    """Pe.unpredictable at the end: the choices that the replay came to depend on."""

    def as_json(self) -> dict[str, Any]:
        """Return the report as an object for JSON."""
        return {
            "reference": self.reference.name,
            "operations": self.operations,
            "equal": self.equal,
            "allowed": self.allowed,
            "mismatches": self.mismatches,
            "first_mismatches": [mismatch.as_json() for mismatch in self.first_mismatches],
            "unpredictable": [choice.name for choice in choices_reached(self.unpredictable)],
        }


class _Verdict(NamedTuple):
    explained: bool
    rule: Rule | None
    """The rule that explains the answer, or where nothing does one that applies."""
    expected: Answer
    by_rule: Answer
    """What `rule` says instead of `expected`."""
    pe: Pe
    """The state after it."""


def replay(reference: Reference, vectors: Vectors, progress: Callable[[int], None] = lambda done: None) -> Report:
    """Replay `vectors` on a PE that was just reset; `progress` is told now and then how many are done."""
    if reference.emulated:
        return _replay_guest(reference, vectors, progress)
    core = cores.core(reference.core)
    pe = cores.make_pe(core, core.events)
    report = Report(reference, len(vectors), 0, {rule.name: 0 for rule in reference.rules}, 0, [], 0)
    for number, (op, theirs) in enumerate(vectors):
        if number % PROGRESS_EVERY == 0:
            progress(number)
        verdict = _judge(reference, pe, op, theirs)
        if not verdict.explained:
            report.mismatches += 1
            if len(report.first_mismatches) < SHOWN_MISMATCHES:
                history = _history(vectors, number, _dependencies(traps.event_counter_of(pe, op.key), op))
                report.first_mismatches.append(Mismatch(number, op, theirs, *verdict[1:4], history))
            _adopt(pe, op, theirs)
        elif verdict.rule is None:
            report.equal += 1
        else:
            report.allowed[verdict.rule.name] += 1
        pe = verdict.pe
    report.unpredictable = pe.unpredictable
    progress(len(vectors))
    return report


def _replay_guest(reference: Reference, vectors: Vectors, progress: Callable[[int], None]) -> Report:
    """Replay `vectors` as a guest of the emulated design, whose answers are to be the same bit for bit."""
    guest = GuestAnswers(cores.core(reference.core))
    report = Report(reference, len(vectors), 0, {}, 0, [], 0)
    for number, (op, theirs) in enumerate(vectors):
        if number % PROGRESS_EVERY == 0:
            progress(number)
        counter = guest.event_counter_of(op)
        ours = Answer(theirs.value, 0, 0) if (op.key, op.write) in NO_ACCESSOR else guest.answer(op)
        if ours == theirs:
            report.equal += 1
            continue
        report.mismatches += 1
        if len(report.first_mismatches) < SHOWN_MISMATCHES:
            history = _history(vectors, number, _dependencies(counter, op))
            report.first_mismatches.append(Mismatch(number, op, theirs, None, ours, ours, history))
    progress(len(vectors))
    return report


def _judge(reference: Reference, pe: Pe, op: Operation, theirs: Answer) -> _Verdict:
    if (op.key, op.write) in NO_ACCESSOR:
        nothing = Answer(theirs.value, 0, 0)
        return _Verdict(theirs == nothing, None, nothing, nothing, pe)
    rules = [rule for rule in reference.by_key[op.key] if rule.applies(pe, op)]
    if rules:
        return _judge_by_rules(rules, pe, op, theirs)
    ours = architecture_answer(pe, op)
    if ours == theirs and op.write and not ours.exception_el:
        architecture_effect(pe, op)
    return _Verdict(ours == theirs, None, ours, ours, pe)


def _judge_by_rules(rules: list[Rule], pe: Pe, op: Operation, theirs: Answer) -> _Verdict:
    expected, after = _outcome(pe, op, architecture_answer, architecture_effect)
    outcomes = [_outcome(pe, op, rule.answer, rule.effect) for rule in rules]
    by_rule, after_rule = outcomes[-1]
    if theirs == by_rule and outcomes[-1] != (expected, after):
        simplest = rules[outcomes.index(outcomes[-1])]
        after_rule.unpredictable = pe.unpredictable
        return _Verdict(True, simplest, expected, by_rule, after_rule)
    if theirs == expected:
        after.unpredictable = pe.unpredictable
        return _Verdict(True, None, expected, by_rule, after)
    return _Verdict(False, rules[-1], expected, by_rule, pe)


def _outcome(pe: Pe, op: Operation, reply: Reply, effect: Effect) -> tuple[Answer, Pe]:
    """Return an answer, and the state after it; which choices were reached stays in `pe`, and is 0 in a new state."""
    answer = reply(pe, op)
    if op.write == 0 or answer.exception_el:
        return answer, pe
    after = records.copy(pe)
    effect(after, op)
    pe.unpredictable |= after.unpredictable
    after.unpredictable = 0
    return answer, after


def _adopt(pe: Pe, op: Operation, theirs: Answer) -> None:
    """Go on from an answer that nothing explains: what it says of the state becomes the model's."""
    if theirs.exception_el or (op.key, op.write) in NO_ACCESSOR or beyond(pe, op.key):
        return
    if op.write:
        architecture_effect(pe, op)
    elif op.key in _SETS:
        setting, clearing = _SETS[op.key]
        pmu.write(pe, op.el, clearing, _ALL)
        pmu.write(pe, op.el, setting, theirs.value)
    else:
        # P and C read as zero, and would act.
        pmu.write(pe, op.el, op.key, theirs.value & ~(PMCR_P | PMCR_C) if op.key == PMCR_EL0 else theirs.value)


# ---- what led to a mismatch ---------------------------------------------------------------------------------------


def _history(vectors: Vectors, number: int, wanted: set[int]) -> tuple[tuple[int, Operation, Answer], ...]:
    """Return the last operations before one, and the last write that took place of each register of `wanted`."""
    found: list[tuple[int, Operation, Answer]] = []
    for before in range(number - 1, -1, -1):
        op, answer = vectors.operation(before), vectors.answer(before)
        took_place = op.write == 1 and answer.exception_el == 0 and op.key in wanted
        if before >= number - SHOWN_BEFORE or took_place:
            found.append((before, op, answer))
        if took_place:
            wanted.discard(op.key)
        if not wanted and before < number - SHOWN_BEFORE:
            break
    return tuple(reversed(found))


def _dependencies(counter: int, op: Operation) -> set[int]:
    """Return the registers whose writes decide the answer to `op`, which is about event counter `counter`, if any."""
    found = {op.key, MDCR_EL2, *_SETS.get(op.key, ())}
    if op.el < 2:
        found.add(HDFGWTR_EL2 if op.write else HDFGRTR_EL2)
    if op.el == 0:
        found.add(PMUSERENR_EL0)
    if counter < CYCLE:
        found.update((pmevcntr(counter), pmevtyper(counter), *_BY_NUMBER))
    elif op.key in (PMCCNTR_EL0, PMCCFILTR_EL0, *_BY_NUMBER):
        found.update((PMCCNTR_EL0, PMCCFILTR_EL0, PMCR_EL0, *_BY_NUMBER))
    if counter < CYCLE and (op.key == PMXEVCNTR_EL0 or is_pmevcntr(op.key)):
        found.update((PMSWINC_EL0, PMCR_EL0, PMCNTENSET_EL0, PMCNTENCLR_EL0))
        if counter & 1:  # it may count the CHAIN event of its neighbour
            found.update((pmevcntr(counter - 1), pmevtyper(counter - 1)))
    if op.key in (PMOVSSET_EL0, PMOVSCLR_EL0):
        found.update((PMSWINC_EL0, PMCR_EL0))
    return found
