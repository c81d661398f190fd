"""Explorations: of sound designs, which nothing breaks; compiled and plain; stopped and resumed."""

from __future__ import annotations

import dataclasses
import io
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuvisor import cli, records
from pmuvisor.check import models, packing, plain, properties, steps
from pmuvisor.check.explore import CheckpointError, Exploration
from pmuvisor.check.found import Result
from pmuvisor.check.model import DONE, NOT_NOW, Action
from pmuvisor.check.models import PRESETS, Preset
from pmuvisor.check.packing import Workspace
from pmuvisor.check.state import Machine

SHORT = dataclasses.replace(PRESETS["tiny"], accesses=1, executions=1, switches=1, openings=1, settings=0)
"""Of the same sizes as tiny, and so of the same machine code."""
DESIGNS = list(models.DESIGNS)


def test_the_command_line_has_every_design_and_preset() -> None:
    assert (list(cli.EXPLORED), list(cli.EXPLORATIONS)) == (DESIGNS, list(PRESETS))


# ---- sound designs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_breaks_a_sound_design_in_any_preset(design: str, preset: str) -> None:
    short = dataclasses.replace(PRESETS[preset], accesses=1, executions=1, switches=1, openings=1, settings=0)
    found = plain.explore(models.model(short, design), most=200)
    assert found.violation is None
    assert found.complete or found.states >= 200


@pytest.mark.parametrize("design", DESIGNS)
def test_tiny_is_explored_completely_and_has_ten_thousand_states(design: str) -> None:
    found = Exploration(models.model(PRESETS["tiny"], design)).run()
    assert (found.complete, found.violation) == (True, None)
    assert found.states >= 10_000


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("name", PRESETS)
def test_long_random_walks_break_nothing_and_keep_every_integer_within_its_width(design: str, name: str) -> None:
    preset = PRESETS[name]
    kinds: dict[int, list[Action]] = {}
    for action in models.actions(preset, models.DESIGNS[design]):
        kinds.setdefault(action.operands[0], []).append(action)
    happened = set()
    for seed in range(12):
        rng = random.Random(seed)
        m = models.machine(preset, models.DESIGNS[design])
        m.left[:] = [60] * 5
        for _ in range(300):
            action = rng.choice(kinds[rng.choice(list(kinds))])
            result = steps.step(m, *action.operands)
            assert result in (NOT_NOW, DONE), (seed, action.words, properties.ALL[result - 2])
            happened |= {action.operands[0]} if result else set()
        records.check_widths(m, models.sizes(preset, models.DESIGNS[design]))
    assert happened >= set(range(8)), "accesses and their handling, instructions, entries, exits, interrupts, switches"


def test_an_action_that_is_not_possible_changes_nothing() -> None:
    preset, sizes = SHORT, models.sizes(SHORT)
    rng = random.Random(7)
    m = models.machine(preset, models.DESIGNS["lazy"])
    for _ in range(400):
        before = records.key(m, sizes)
        if steps.step(m, *rng.choice(models.actions(preset)).operands) == NOT_NOW:
            assert records.key(m, sizes) == before


# ---- compiled, and by CPython -------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
def test_compiled_and_plain_explorations_find_the_same_states_by_the_same_steps(design: str) -> None:
    ours, reference = Exploration(models.model(SHORT, design)).run(), plain.explore(models.model(SHORT, design))
    assert (ours.states, ours.transitions, ours.complete) == (reference.states, reference.transitions, True)
    assert reference.complete
    assert ours.depth == reference.depth


@given(masks=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_what_varies_survives_packing_and_the_rest_is_the_initial_states(masks: list[int], seed: int) -> None:
    rng = random.Random(seed)
    varying = np.array(masks, np.uint64)
    initial, words = (np.array([rng.getrandbits(64) for _ in masks], np.uint64) for _ in range(2))
    plan = packing.plan(varying)
    assert plan.bits == sum(mask.bit_count() for mask in masks)
    packed = np.empty(plan.words, np.uint64)
    packing.pack(words, plan.runs, packed)
    again = np.empty_like(words)
    packing.unpack(packed, plan.runs, initial, again)
    assert (again == (words & varying) | (initial & ~varying)).all()


def test_the_ledger_is_no_part_of_a_stored_state() -> None:
    space = Workspace(Machine, models.sizes(SHORT))
    m = models.machine(SHORT, models.DESIGNS["lazy"])
    space.store(m)
    words = space.words.copy()
    m.world.vcpus[0].swapped += 5
    m.world.vcpus[0].loads += 1
    space.store(m)
    assert (words != space.words).any()
    assert ((words ^ space.words) & ~space.ledger() == 0).all()
    m.world.vcpus[0].cnten ^= 1
    space.store(m)
    assert ((words ^ space.words) & ~space.ledger() != 0).any()


# ---- stop and resume ----------------------------------------------------------------------------------------


def stopped(preset: Preset, after: int) -> tuple[Exploration, bytes]:
    """Return an exploration that was stopped when it had found `after` states or more, and its checkpoint."""
    exploration = Exploration(models.model(preset, "partitioned"))

    def stop(so_far: Result) -> None:
        exploration.interrupted = so_far.states >= after

    exploration.run(stop)
    file = io.BytesIO()
    exploration.save(file)
    return exploration, file.getvalue()


def test_a_resumed_exploration_comes_to_what_one_without_a_stop_comes_to() -> None:
    whole = Exploration(models.model(PRESETS["tiny"], "partitioned")).run()
    _, kept = stopped(PRESETS["tiny"], 20_000)
    resumed = Exploration(models.model(PRESETS["tiny"], "partitioned"))
    resumed.resume(io.BytesIO(kept))
    begun = resumed._count
    found = resumed.run()
    assert 20_000 <= begun < whole.states
    assert (found.states, found.transitions, found.depth) == (whole.states, whole.transitions, whole.depth)
    assert found.complete


def test_a_file_that_is_not_the_explorations_checkpoint_is_refused() -> None:
    _, kept = stopped(SHORT, 1)
    for content in (b"", b"no", kept[:-200], kept[: len(kept) // 2]):
        with pytest.raises(CheckpointError):
            Exploration(models.model(SHORT, "partitioned")).resume(io.BytesIO(content))
    with pytest.raises(CheckpointError, match="another exploration"):
        Exploration(models.model(SHORT, "lazy")).resume(io.BytesIO(kept))


@pytest.mark.parametrize("name", ["parents", "causes", "at", "states", "varying"])
def test_a_checkpoint_with_a_number_that_cannot_be_is_refused(name: str) -> None:
    _, kept = stopped(SHORT, 1)
    arrays = dict(np.load(io.BytesIO(kept), allow_pickle=False))
    arrays[name] = arrays[name][:-1] if name == "states" else np.full_like(arrays[name], -1 if name != "varying" else 3)
    file = io.BytesIO()
    np.savez(file, **arrays)
    with pytest.raises(CheckpointError):
        Exploration(models.model(SHORT, "partitioned")).resume(io.BytesIO(file.getvalue()))
