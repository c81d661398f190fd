"""Explore a small machine completely, or to the first violation: the driver of `search`.

It gives the search room as states come, makes the plan of packed states wider where more varies than was known, and
says how far it is. What it finds it replays in CPython, by the same functions, before it is told to anybody.
"""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pmuvisor import numba_cache, records
from pmuvisor.check import models, packing, properties, search, steps
from pmuvisor.check.found import HERE, Result, Violation
from pmuvisor.check.models import Action, Preset
from pmuvisor.check.packing import Plan, Workspace
from pmuvisor.check.state import BROKEN, DONE, Machine
from pmuvisor.compiled import Replaced, compiled, substituted

FIRST_ROOM = 1 << 14
MOST_STATES = (1 << 31) - 1
CHUNK = 4096
"""States that are expanded before somebody is told how far it is."""


class CheckpointError(ValueError):
    """A file that an exploration cannot go on from."""


class ReplayError(RuntimeError):
    """CPython does not come to what the compiled functions came to: a defect of pmuvisor, not of a design."""


class Exploration:
    """One exploration. `replaced` puts other functions in the place of semantic ones: a defect."""

    def __init__(
        self, preset: Preset, design: str, replaced: Replaced | None = None, asked: int = properties.EVERY
    ) -> None:
        numba_cache.use()
        self.preset, self.design, self.asked = preset, design, asked
        self.actions: list[Action] = models.actions(preset)
        self.interrupted = False
        """Set, from a signal handler too, to end it after the states at hand."""
        self._replaced = replaced or {}
        self._expand = compiled(search.expand, also=HERE, cache=not replaced, replaced=replaced)
        self._table_of = compiled(search.index, also=HERE)
        self._repack = compiled(search.repack, also=HERE)
        self.sizes = models.sizes(preset)
        self._workspace = Workspace(Machine, self.sizes)
        self._workspace.store(self.begin())
        self._initial = self._workspace.words.copy()
        self._ledger = self._workspace.ledger()
        self._operands = np.array([action.operands for action in self.actions], np.int64)
        self._plan: Plan = packing.plan(np.zeros_like(self._initial))
        self._states = np.zeros((FIRST_ROOM, self._plan.words), np.uint64)
        self._parents = np.zeros(FIRST_ROOM, np.int32)
        self._causes = np.zeros(FIRST_ROOM, np.int16)
        self._table: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self._at = np.array([0, 1, 0, 0, 0, 0], np.int64)
        self._level_end, self._depth, self._seconds = 1, 0, 0.0

    def begin(self) -> Machine:
        """Return the machine as it begins."""
        return models.machine(self.preset, models.DESIGNS[self.design], self.asked)

    # ---- the search ----

    def run(self, progress: Callable[[Result], None] = lambda so_far: None) -> Result:
        """Explore until a property breaks, all states have been expanded, or `interrupted` is set."""
        begin = time.perf_counter()
        violation = None
        if len(self._table) == 0:
            self._index(4 * len(self._states))
        while violation is None and self._at[0] < self._at[1] and not self.interrupted:
            if self._at[0] == self._level_end:
                self._level_end = int(self._at[1])
                self._depth += 1
            self._at[2] = min(self._level_end, self._at[0] + CHUNK)
            violation = self._go_on()
            progress(self._result(self._seconds + time.perf_counter() - begin, None))
        self._seconds += time.perf_counter() - begin
        return self._result(self._seconds, violation)

    def _go_on(self) -> Violation | None:
        space = self._workspace
        fixed = ~(self._plan.varying | self._ledger)
        found = self._expand(
            *(space.row, space.words, self._initial, fixed, self._plan.runs, self._operands),
            *(self._states, self._parents, self._causes, self._table, self._at),
        )
        if found == search.VIOLATED:
            violation = Violation(int(self._at[5]), self._way_to(int(self._at[0]), int(self._at[4])))
            self.replay(violation)
            return violation
        if found == search.WIDER:
            self._widen()
        elif found == search.FULL:
            self._grow()
        return None

    def _way_to(self, state: int, last: int) -> tuple[int, ...]:
        way = [last]
        while state:
            way.append(int(self._causes[state]))
            state = int(self._parents[state])
        return tuple(reversed(way))

    def _widen(self) -> None:
        """The record at hand differs where no state did: pack all of them anew."""
        varying = self._plan.varying | ((self._workspace.words ^ self._initial) & ~self._ledger)
        wider = packing.plan(varying)
        states = np.zeros((len(self._states), wider.words), np.uint64)
        count = int(self._at[1])
        self._repack(self._states, count, self._plan.runs, wider.runs, self._initial, self._workspace.words, states)
        self._states, self._plan = states, wider
        self._index(len(self._table))

    def _grow(self) -> None:
        self._make_room(min(2 * len(self._states), MOST_STATES))
        self._index(4 * len(self._states))

    def _make_room(self, room: int) -> None:
        self._states = _longer(self._states, room)
        self._parents = _longer(self._parents, room)
        self._causes = _longer(self._causes, room)

    def _index(self, length: int) -> None:
        self._table = np.full(length, -1, np.int32)
        self._table_of(self._states, int(self._at[1]), self._table)

    def _result(self, seconds: float, violation: Violation | None) -> Result:
        arrays = (self._states, self._parents, self._causes, self._table)
        return Result(
            states=int(self._at[1]),
            transitions=int(self._at[3]),
            depth=self._depth,
            complete=bool(self._at[0] == self._at[1]) and violation is None,
            seconds=seconds,
            state_bits=self._plan.bits,
            bytes_used=sum(array.nbytes for array in arrays),
            violation=violation,
        )

    # ---- stop and resume ----

    def save(self, file: BinaryIO) -> None:
        """Write what has been found, so that `resume` goes on from there."""
        count = int(self._at[1])
        np.savez(
            file,
            of=np.frombuffer(self._identity(), np.uint8),
            varying=self._plan.varying,
            states=self._states[:count],
            parents=self._parents[:count],
            causes=self._causes[:count],
            at=self._at,
            level=np.array([self._level_end, self._depth], np.int64),
            seconds=np.array([self._seconds]),
        )

    def resume(self, file: BinaryIO) -> None:
        """Go on from what `save` has written. Raises CheckpointError for a file of another exploration, or none."""
        try:
            with np.load(file, allow_pickle=False) as kept:
                found = {name: kept[name] for name in kept.files}
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
            raise CheckpointError("it is no checkpoint") from None
        count = self._checked(found)
        self._plan = packing.plan(found["varying"])
        self._states, self._parents, self._causes = found["states"], found["parents"], found["causes"]
        self._at = found["at"]
        self._level_end, self._depth = map(int, found["level"])
        self._seconds = float(found["seconds"][0])
        room = FIRST_ROOM
        while room < 2 * count:
            room *= 2
        self._make_room(room)

    def _checked(self, found: dict[str, npt.NDArray[Any]]) -> int:
        """Return how many states a checkpoint has. Raises CheckpointError unless all in it is as `save` writes it."""
        count = len(found.get("states", ()))
        if set(found) != {"of", "varying", "states", "parents", "causes", "at", "level", "seconds"}:
            raise CheckpointError("it is no checkpoint")
        if found["of"].tobytes() != self._identity():
            raise CheckpointError("it is of another exploration, or of another version of pmuvisor")
        shapes: dict[str, tuple[type[Any], tuple[int, ...]]] = {
            "varying": (np.uint64, self._initial.shape),
            "parents": (np.int32, (count,)),
        }
        shapes |= {"causes": (np.int16, (count,)), "at": (np.int64, (6,)), "level": (np.int64, (2,))}
        shapes |= {"seconds": (np.float64, (1,))}
        sound = all(
            found[name].dtype == dtype and found[name].shape == shape for name, (dtype, shape) in shapes.items()
        )
        if sound:
            words = packing.plan(found["varying"]).words
            sound = found["states"].dtype == np.uint64 and found["states"].shape == (count, words)
            at, (level_end, _) = found["at"], found["level"]
            sound = sound and 0 <= at[0] <= level_end <= at[1] == count
            sound = sound and bool(np.all((found["parents"] >= 0) & (found["parents"] <= np.arange(count))))
            sound = sound and bool(np.all((found["causes"] >= 0) & (found["causes"] < len(self.actions))))
        if not sound:
            raise CheckpointError("it is damaged")
        return count

    def _identity(self) -> bytes:
        names = sorted(function.__name__ for function in self._replaced.values())
        what = (self.preset, self.design, self.asked, names, numba_cache.fingerprint())
        return hashlib.sha256(repr(what).encode()).digest()

    # ---- in CPython ----

    def replay(self, violation: Violation) -> list[Machine]:
        """Return the machine before each action of a violation, and after the last.

        Raises ReplayError where CPython does not come to the same violation by the same functions.
        """
        step = substituted(steps.step, self._replaced, also=HERE)
        m = self.begin()
        trail = [records.copy(m)]
        for number, action in enumerate(violation.actions, 1):
            result = step(m, *self.actions[action].operands)
            expected = BROKEN + violation.property if number == len(violation.actions) else DONE
            if result != expected:
                raise ReplayError(f"step {number}, {self.actions[action].words}: {result}")
            trail.append(records.copy(m))
        return trail


def _longer(array: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    made = np.zeros((length, *array.shape[1:]), array.dtype)
    made[: len(array)] = array
    return made
