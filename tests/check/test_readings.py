"""A small machine goes through the same states by CPython, by numba with bounds checking and by Z3.

How many steps are taken is what CI has time for; STEPS=100000 in the environment makes it that many, in some minutes.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from pmuvisor import records
from pmuvisor.check import models, steps
from pmuvisor.check.explore import operands
from pmuvisor.check.model import DONE, HERE, NOT_NOW, Model
from pmuvisor.check.models import PRESETS
from pmuvisor.check.packing import Workspace
from pmuvisor.check.symbolic import Int, word
from pmuvisor.compiled import compiled

STEPS = int(os.environ.get("STEPS", "10000"))
"""That happen, under all designs together; of those that are not possible there are some ten times as many."""
WALK = 400
"""Steps after which a walk begins anew."""
BEGINS = -1
WITHOUT_END = dict.fromkeys(("accesses", "executions", "switches", "openings", "settings"), "60000")
PRESET = dataclasses.replace(models.adjusted(PRESETS["tiny"], WITHOUT_END), registers=models.EVERY)


def walk(model: Model, seed: int) -> Iterator[tuple[Any, int, int]]:
    """Yield at each step CPython's state, the action's number, and what came of it, NOT_NOW as well.

    Where a walk begins, no action has been taken, and BEGINS has come of it.
    """
    rng = random.Random(seed)
    taken, result = 0, DONE
    while taken < STEPS // len(models.DESIGNS):
        if taken % WALK == 0 and result != NOT_NOW:
            m = model.begin(model.every)
            yield m, 0, BEGINS
        number = rng.randrange(len(model.actions))
        result = model.step(m, *model.actions[number].operands)
        yield m, number, result
        taken += result != NOT_NOW


@pytest.fixture(scope="module")
def by_numba() -> Any:
    """One function for all designs: it is compiled for each layout."""
    return compiled(steps.step, boundscheck=True, also=(HERE,))


@pytest.mark.parametrize("design", models.DESIGNS)
def test_all_three_readings_take_the_same_steps(design: str, by_numba: Any) -> None:
    """Z3 is given no formula: of terms that are values it makes values, and a question that it cannot answer raises.

    Every integer of Z3's is compared at each step that happens; of numba's at every 50th, which has in it all
    that came before.
    """
    model = models.model(PRESET, design)
    leaves = records.leaves(model.record, model.sizes)
    space = Workspace(model.record, model.sizes)
    theirs, mine = model.begin(model.every), model.begin(model.every)
    signed, happened = operands(model), 0
    for m, number, result in walk(model, seed=5):
        if result == BEGINS:
            space.store(m)
            for leaf in leaves:
                records.put(theirs, leaf.path, Int(word(records.get(m, leaf.path))))
            continue
        action = model.actions[number]
        assert by_numba(space.row[0], *map(int, signed[number])) == result, action.words
        assert model.step(theirs, *action.operands) == result, action.words
        happened += result != NOT_NOW
        if result != NOT_NOW:
            for leaf in leaves:
                assert word(records.get(theirs, leaf.path)) is word(records.get(m, leaf.path)), (action.words, leaf)
        if result != NOT_NOW and happened % 50 == 0:
            space.load(mine)
            assert mine == m, action.words
    assert happened == STEPS // len(models.DESIGNS)
