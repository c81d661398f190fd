"""Sound designs, which nothing breaks, by CPython alone: mutants are held to these tests (docs/mutation.md)."""

from __future__ import annotations

import dataclasses
import random

import pytest

from pmuvisor import records
from pmuvisor.check import models, plain, properties, search, steps
from pmuvisor.check.model import DONE, NOT_NOW, Action
from pmuvisor.check.models import PRESETS
from pmuvisor.compiled import substituted

SHORT = dataclasses.replace(PRESETS["tiny"], accesses=1, executions=1, switches=1, openings=1, settings=0)
DESIGNS = list(models.DESIGNS)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("name", PRESETS)
def test_long_random_walks_break_nothing_and_keep_every_integer_within_its_width(design: str, name: str) -> None:
    preset = PRESETS[name]
    kinds: dict[int, list[Action]] = {}
    for action in models.actions(preset, models.DESIGNS[design]):
        kinds.setdefault(action.operands[0], []).append(action)
    happened = set()
    model = models.model(preset, design)
    step = substituted(steps.step, dict.fromkeys(model.never, search.never), also=model.also)
    for seed in range(10):
        rng = random.Random(seed)
        m = models.machine(preset, models.DESIGNS[design])
        m.left[:] = [60] * 5
        for _ in range(200 * preset.cpus):
            action = rng.choice(kinds[rng.choice(list(kinds))])
            result = step(m, *action.operands)
            assert result in (NOT_NOW, DONE), (seed, action.words, properties.ALL[result - 2])
            happened |= {action.operands[0]} if result else set()
        records.check_widths(m, models.sizes(preset, models.DESIGNS[design]))
    assert happened >= set(range(8)), "accesses and their handling, instructions, entries, exits, interrupts, switches"


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"large"}))
def test_nothing_breaks_a_sound_design_in_any_preset(design: str, preset: str) -> None:
    short = dataclasses.replace(PRESETS[preset], accesses=1, executions=1, switches=1, openings=1, settings=0)
    found = plain.explore(models.model(short, design), most=100)
    assert found.violation is None
    assert found.complete or found.states >= 100


def test_userspace_does_not_write_registers_of_a_vcpu_that_has_an_access_to_handle() -> None:
    """kvm_vcpu_ioctl() takes vcpu->mutex, which KVM_RUN has until it has handled the access and returned."""
    model = models.model(PRESETS["wide"], "lazy")
    words = [action.words for action in model.actions]
    m = model.begin(model.every)
    for way, expected in (
        ("the next thread comes to CPU 1, and its vCPU is loaded", DONE),
        ("CPU 1 enters the guest", DONE),
        ("the guest on CPU 1 writes 0x80000001 to PMCNTENSET_EL0, at EL0", DONE),
        ("the thread on CPU 1 is preempted, and its vCPU put", DONE),
        ("userspace restores PMCNTENSET_EL0 of vCPU 1 as 0x80000001", NOT_NOW),
        ("the next thread comes to CPU 1, and its vCPU is loaded", DONE),
        ("KVM handles the access that exited on CPU 1", DONE),
        ("the thread on CPU 1 is preempted, and its vCPU put", DONE),
        ("userspace restores PMCNTENSET_EL0 of vCPU 1 as 0x80000001", DONE),
    ):
        assert model.step(m, *model.actions[words.index(way)].operands) == expected, way


def test_an_action_that_is_not_possible_changes_nothing() -> None:
    preset, sizes = SHORT, models.sizes(SHORT)
    rng = random.Random(7)
    m = models.machine(preset, models.DESIGNS["lazy"])
    for _ in range(400):
        before = records.key(m, sizes)
        if steps.step(m, *rng.choice(models.actions(preset)).operands) == NOT_NOW:
            assert records.key(m, sizes) == before
