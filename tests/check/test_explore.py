"""Explorations: of sound designs, which nothing breaks; compiled and plain; stopped and resumed."""

from __future__ import annotations

import dataclasses
import io
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuvisor.check import models, packing, plain
from pmuvisor.check.explore import CheckpointError, Exploration
from pmuvisor.check.found import Result
from pmuvisor.check.models import PRESETS, Preset
from pmuvisor.check.packing import Workspace
from pmuvisor.check.state import Machine

SHORT = dataclasses.replace(PRESETS["tiny"], accesses=1, executions=1, switches=1, openings=1, settings=0)
"""Of the same sizes as tiny, and so of the same machine code."""
DESIGNS = list(models.DESIGNS)


# ---- sound designs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
def test_tiny_is_explored_completely_and_has_ten_thousand_states(design: str) -> None:
    found = Exploration(models.model(PRESETS["tiny"], design)).run()
    assert (found.complete, found.violation) == (True, None)
    assert found.states >= 10_000


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
    packing.pack(words, plan.moves, packed)
    again = np.empty_like(words)
    packing.unpack(packed, plan.moves, initial, again)
    assert (again == (words & varying) | (initial & ~varying)).all()
    changed = again.copy()
    changed[rng.randrange(len(masks))] ^= np.uint64(rng.getrandbits(64))
    packing.amend(changed, again, plan.moves, packed)
    expected = np.empty_like(packed)
    packing.pack(changed, plan.moves, expected)
    assert (packed == expected).all()
    differs = bool(((changed ^ again) & ~varying).any())
    assert packing.restore(changed, again, ~varying) == differs
    assert (changed == again).all()


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


def test_what_is_found_does_not_depend_on_how_many_threads_find_it() -> None:
    model = models.model(PRESETS["tiny"], "partitioned")
    one, three = (Exploration(model, threads=threads) for threads in (1, 3))
    assert dataclasses.replace(one.run(), seconds=0) == dataclasses.replace(three.run(), seconds=0)
    assert (one._states[: one._count] == three._states[: three._count]).all()
    assert (one._parents[: one._count] == three._parents[: three._count]).all()


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


def test_an_exploration_that_is_killed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Killed by SIGKILL, at a moment of no one's choice, after a checkpoint has been written."""
    file = tmp_path / "kept"
    command = [sys.executable, "-c", KEEPING, "check", "--preset", "small", "--checkpoint", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as exploring:
        deadline = time.monotonic() + 240
        while not file.exists() and exploring.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.5)
        exploring.kill()
    assert exploring.returncode == -signal.SIGKILL
    resumed = Exploration(models.model(PRESETS["small"], "partitioned"))
    with file.open("rb") as kept:
        resumed.resume(kept)
    begun, expanded = resumed._count, resumed._expanded
    assert 1 < expanded < begun
    found = resumed.run()
    assert begun < found.states
    assert (found.complete, found.violation) == (True, None)
    assert (found.states, found.transitions) == SMALL


KEEPING = """
import sys
from pmuvisor import cli
from pmuvisor.lab import checking
checking._CHECKPOINT_SECONDS = 0.1
sys.exit(cli.main(sys.argv[1:]))
"""
SMALL = 2_069_390, 8_897_723
"""What an exploration of `small` without a stop comes to."""


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
