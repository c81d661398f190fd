"""A small machine goes through the same states by CPython, by numba with bounds checking and by Z3.

How many steps Z3 takes is what CI has time for; STEPS_BY_Z3=100000 in the environment makes it as many as the others.
"""

from __future__ import annotations

import os
import random

import pytest
import z3

from pmuvisor import records
from pmuvisor.check import models, steps
from pmuvisor.check.model import HERE, NOT_NOW
from pmuvisor.check.models import PRESETS
from pmuvisor.check.packing import Workspace
from pmuvisor.check.symbolic import Int, paths, word
from pmuvisor.compiled import compiled

STEPS = 100_000
STEPS_BY_Z3 = int(os.environ.get("STEPS_BY_Z3", "400"))
WALK = 400
"""Steps after which a walk begins anew."""


def test_numba_takes_a_hundred_thousand_steps_as_cpython_does() -> None:
    """Each result is compared, NOT_NOW as well, and every 50th state, which has all that came before in it."""
    step = compiled(steps.step, boundscheck=True, also=(HERE,))
    for seed, design in enumerate(models.DESIGNS):
        model = models.model(PRESETS["tiny"], design)
        space = Workspace(model.record, model.sizes)
        m, mine = model.begin(model.every), model.begin(model.every)
        rng = random.Random(seed)
        taken = 0
        while taken < STEPS // len(models.DESIGNS):
            if taken % WALK == 0:
                records.assign(m, model.begin(model.every))
                space.store(m)
            action = rng.choice(model.actions)
            result = model.step(m, *action.operands)
            assert step(space.row[0], *action.operands) == result, (taken, action.words)
            taken += 1
            if taken % 50 == 49:
                space.load(mine)
                assert mine == m, (taken, action.words)
    assert len(step.signatures) == 2, "with room for perf events of guests, and without"


@pytest.mark.parametrize("design", models.DESIGNS)
def test_z3_takes_steps_as_cpython_does(design: str) -> None:
    """Every integer is a term of a value that Z3 knows; what is left of it is simplified by Z3."""
    model = models.model(PRESETS["tiny"], design)
    leaves = records.leaves(model.record, model.sizes)
    rng = random.Random(5)
    m = model.begin(model.every)
    taken = 0
    while taken < STEPS_BY_Z3 // len(models.DESIGNS):
        if taken % WALK == 0:
            m = model.begin(model.every)
        action = rng.choice(model.actions)
        theirs = records.copy(m)
        result = model.step(m, *action.operands)
        if result == NOT_NOW:
            continue
        taken += 1
        for leaf in leaves:
            records.put(theirs, leaf.path, Int(z3.BitVecVal(records.get(theirs, leaf.path), 64)))
        (found,) = [found for _, found in paths(lambda: model.step(theirs, *action.operands))]  # noqa: B023
        assert found == result, action.words
        for leaf in leaves:
            value = z3.simplify(word(records.get(theirs, leaf.path))).as_long()
            assert value == records.get(m, leaf.path), (action.words, leaf.path)
