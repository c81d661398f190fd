"""Explore a small machine completely, or to the first violation: the driver of `search`.

It gives the search room as states come, makes the plan of packed states wider where more varies than was known, and
says how far it is. What it finds it replays in CPython, by the same functions, before it is told to anybody.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pmuvisor import numba_cache, records
from pmuvisor.check import packing, search
from pmuvisor.check.found import Result, Violation
from pmuvisor.check.model import BROKEN, DONE, Model
from pmuvisor.check.packing import Plan, Workspace
from pmuvisor.compiled import Replaced, compiled, substituted

FIRST_ROOM = 1 << 14
MOST_STATES = (1 << 31) - 1
CHUNK = 8192
"""States that are expanded before somebody is told how far it is."""
WORTH_A_THREAD = 512
"""States that are worth the time that it takes to wake another thread."""


class CheckpointError(ValueError):
    """A file that an exploration cannot go on from."""


class ReplayError(RuntimeError):
    """CPython does not come to what the compiled functions came to: a defect of pmuvisor, not of a design."""


class Worker:
    """What a thread expands with: a state's record, and room for candidates."""

    def __init__(self, model: Model, initial: Any) -> None:
        self.space = Workspace(model.record, model.sizes)
        self.space.store(initial)
        self.clean = np.zeros_like(self.space.words)
        self.found = np.zeros((0, 1), np.uint64)
        self.hashes = np.zeros(0, np.int64)
        self.origins = np.zeros((0, 2), np.int32)
        self.wider = np.zeros_like(self.space.words)
        self.at = np.zeros(search.TOLD, np.int64)

    def make_room(self, candidates: int, words: int) -> None:
        """Have room for so many candidates, of `words` each."""
        if self.found.shape[1] != words or len(self.found) < candidates:
            self.found = np.empty((candidates, words), np.uint64)
            self.hashes = np.empty(candidates, np.int64)
            self.origins = np.empty((candidates, 2), np.int32)


class Exploration:
    """One exploration of a model.

    `replaced` puts other functions in the place of semantic ones: a defect. `asked` is the mask of properties, default
    all; `threads` how many processors are used, default all; what is found does not depend on it.
    """

    def __init__(
        self, model: Model, replaced: Replaced | None = None, asked: int | None = None, threads: int | None = None
    ) -> None:
        self.model, self.asked = model, model.every if asked is None else asked
        self.interrupted = False
        """Set, from a signal handler too, to end it after the states at hand."""
        self._replaced = {**model.replaced, **(replaced or {})}
        self._expand, self._add, self._table_of, self._repack = compiled_search(model, replaced or {})
        begin = self.begin()
        self._workers = [Worker(model, begin) for _ in range(threads or len(os.sched_getaffinity(0)))]
        space = self._workers[0].space
        self._initial = space.words.copy()
        self._ledger = space.ledger()
        self._operands = operands(model)
        self._plan: Plan = packing.plan(np.zeros_like(self._initial))
        self._states = np.zeros((FIRST_ROOM, self._plan.words), np.uint64)
        self._parents = np.zeros(FIRST_ROOM, np.int32)
        self._causes = np.zeros(FIRST_ROOM, np.int16)
        self._table: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._expanded, self._count, self._transitions = 0, 1, 0
        self._level_end, self._depth, self._seconds = 1, 0, 0.0

    def begin(self) -> Any:
        """Return the machine as it begins."""
        return self.model.begin(self.asked)

    # ---- the search ----

    def run(self, progress: Callable[[Result], None] = lambda so_far: None) -> Result:
        """Explore until a property breaks, all states have been expanded, or `interrupted` is set."""
        if len(self._table) == 0:
            self._index(2 * len(self._states))
        self._compile()
        begin = time.perf_counter()
        violation = None
        with ThreadPoolExecutor(len(self._workers)) as threads:
            while violation is None and self._expanded < self._count and not self.interrupted:
                if self._expanded == self._level_end:
                    self._level_end = self._count
                    self._depth += 1
                violation = self._go_on(threads, min(self._level_end, self._expanded + CHUNK))
                progress(self._result(self._seconds + time.perf_counter() - begin, None))
        self._seconds += time.perf_counter() - begin
        return self._result(self._seconds, violation)

    def _compile(self) -> None:
        """Let what is compiled be compiled before the clock runs: nothing is expanded, and nothing added."""
        self._expand_slice(self._workers[0], 0, 0)
        self._take(self._workers[0])

    def _go_on(self, threads: ThreadPoolExecutor, end: int) -> Violation | None:
        """Expand up to `end`. Nothing has happened where the plan had to be made wider: it is to be done again."""
        number = end - self._expanded
        workers = self._workers[: max(1, number // WORTH_A_THREAD)]
        edges = [self._expanded + number * w // len(workers) for w in range(len(workers) + 1)]
        done = list(threads.map(self._expand_slice, workers, edges[:-1], edges[1:]))
        for worker, how in zip(workers, done, strict=True):
            if how == search.VIOLATED:
                at = worker.at
                violation = Violation(
                    int(at[search.PROPERTY]), self._way_to(int(at[search.STATE]), int(at[search.ACTION]))
                )
                self.replay(violation)
                return violation
        if search.WIDER in done:
            self._widen(workers)
            return None
        for worker in workers:
            self._take(worker)
        self._expanded = end
        return None

    def _expand_slice(self, worker: Worker, first: int, last: int) -> int:
        worker.make_room((last - first) * len(self._operands), self._plan.words)
        worker.wider[:] = 0
        space = worker.space
        fixed = ~(self._plan.varying | self._ledger)
        how = self._expand(
            *(space.row, space.words, worker.clean, self._initial, fixed, self._plan.moves),
            *(self._operands, self._states, self._table, first, last),
            *(worker.found, worker.hashes, worker.origins, worker.wider, worker.at),
        )
        return int(how)

    def _take(self, worker: Worker) -> None:
        """Add what a worker has found."""
        number = int(worker.at[search.FOUND])
        while self._count + number > len(self._states):
            self._grow()
        arrays = self._states, self._parents, self._causes, self._table
        self._count = int(self._add(worker.found, worker.hashes, worker.origins, number, *arrays, self._count))
        self._transitions += int(worker.at[search.STEPS])

    def _way_to(self, state: int, last: int) -> tuple[int, ...]:
        way = [last]
        while state:
            way.append(int(self._causes[state]))
            state = int(self._parents[state])
        return tuple(reversed(way))

    def _widen(self, workers: list[Worker]) -> None:
        """A record differs where no state did: pack all of them anew."""
        varying = self._plan.varying.copy()
        for worker in workers:
            varying |= worker.wider
        wider = packing.plan(varying)
        states = np.zeros((len(self._states), wider.words), np.uint64)
        words = self._workers[0].space.words
        self._repack(self._states, self._count, self._plan.moves, wider.moves, self._initial, words, states)
        self._states, self._plan = states, wider
        self._index(len(self._table))

    def _grow(self) -> None:
        if len(self._states) == MOST_STATES:
            raise MemoryError(f"more than {MOST_STATES:,} states")
        self._make_room(min(2 * len(self._states), MOST_STATES))
        self._index(2 * len(self._states))

    def _make_room(self, room: int) -> None:
        self._states = _longer(self._states, room)
        self._parents = _longer(self._parents, room)
        self._causes = _longer(self._causes, room)

    def _index(self, length: int) -> None:
        self._table = np.full(length, -1, np.int64)
        self._table_of(self._states, self._count, self._table)

    def _result(self, seconds: float, violation: Violation | None) -> Result:
        arrays = (self._states, self._parents, self._causes, self._table)
        return Result(
            states=self._count,
            transitions=self._transitions,
            depth=self._depth,
            complete=self._expanded == self._count and violation is None,
            seconds=seconds,
            state_bits=self._plan.bits,
            bytes_used=sum(array.nbytes for array in arrays),
            violation=violation,
        )

    # ---- stop and resume ----

    def save(self, file: BinaryIO) -> None:
        """Write what has been found, so that `resume` goes on from there."""
        count = self._count
        np.savez(
            file,
            of=np.frombuffer(self._identity, np.uint8),
            varying=self._plan.varying,
            states=self._states[:count],
            parents=self._parents[:count],
            causes=self._causes[:count],
            at=np.array([self._expanded, count, self._transitions, self._level_end, self._depth], np.int64),
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
        self._expanded, self._count, self._transitions, self._level_end, self._depth = map(int, found["at"])
        self._seconds = float(found["seconds"][0])
        room = FIRST_ROOM
        while room < 2 * count:
            room *= 2
        self._make_room(room)

    def _checked(self, found: dict[str, npt.NDArray[Any]]) -> int:
        """Return how many states a checkpoint has. Raises CheckpointError unless all in it is as `save` writes it."""
        count = len(found.get("states", ()))
        if set(found) != {"of", "varying", "states", "parents", "causes", "at", "seconds"}:
            raise CheckpointError("it is no checkpoint")
        if found["of"].tobytes() != self._identity:
            raise CheckpointError("it is of another exploration, or of another version of pmuvisor")
        shapes: dict[str, tuple[type[Any], tuple[int, ...]]] = {
            "varying": (np.uint64, self._initial.shape),
            "parents": (np.int32, (count,)),
        }
        shapes |= {"causes": (np.int16, (count,)), "at": (np.int64, (5,)), "seconds": (np.float64, (1,))}
        sound = all(
            found[name].dtype == dtype and found[name].shape == shape for name, (dtype, shape) in shapes.items()
        )
        if sound:
            words = packing.plan(found["varying"]).words
            sound = found["states"].dtype == np.uint64 and found["states"].shape == (count, words)
            expanded, kept, _, level_end, _ = found["at"]
            sound = sound and 0 <= expanded <= level_end <= kept == count
            sound = sound and bool(np.all((found["parents"] >= 0) & (found["parents"] <= np.arange(count))))
            sound = sound and bool(np.all((found["causes"] >= 0) & (found["causes"] < len(self.model.actions))))
        if not sound:
            raise CheckpointError("it is damaged")
        return count

    @functools.cached_property
    def _identity(self) -> bytes:
        """Of whose checkpoint is whose: all sources are read for it, once."""
        what = (self.model.title, self.asked, self.model.actions, self._initial.tobytes())
        key = compiled_key(self.model, self._replaced), numba_cache.fingerprint()
        return hashlib.sha256(repr((what, key)).encode()).digest()

    # ---- in CPython ----

    def replay(self, violation: Violation) -> list[Any]:
        """Return the machine before each action of a violation, and after the last.

        Raises ReplayError where CPython does not come to the same violation by the same functions.
        """
        step = substituted(self.model.step, self._replaced, also=self.model.also)
        m = self.begin()
        trail = [records.copy(m)]
        for number, action in enumerate(violation.actions, 1):
            result = step(m, *self.model.actions[action].operands)
            expected = BROKEN + violation.property if number == len(violation.actions) else DONE
            if result != expected:
                raise ReplayError(f"step {number}, {self.model.actions[action].words}: {result}")
            trail.append(records.copy(m))
        return trail


def _longer(array: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    made = np.zeros((length, *array.shape[1:]), array.dtype)
    made[: len(array)] = array
    return made


def operands(model: Model) -> npt.NDArray[np.int64]:
    """Return the operands of all actions of a model, a row each; 64 bits wrap, as they do in a record."""
    return np.array([action.operands for action in model.actions], np.uint64).reshape(-1, 5).view(np.int64)


def compiled_key(model: Model, replaced: Replaced) -> str:
    """Return a name for the machine code of a model's step, with `replaced`: it knows the sources that are not ours."""
    digest = hashlib.sha256(f"{model.step.__module__}.{model.step.__qualname__}".encode())
    pairs = {**model.replaced, **replaced}.items()
    for sound, instead in sorted((_full_name(sound), _full_name(instead)) for sound, instead in pairs):
        digest.update(f"{sound} {instead}".encode())
    theirs = (model.step, *(instead for _, instead in pairs))
    modules = {function.__module__ for function in theirs}
    modules |= {name for name in sys.modules if f"{name}.".startswith(model.homes)}
    for name in sorted(modules):
        source = inspect.getsourcefile(sys.modules[name])
        digest.update(b"" if source is None else Path(source).read_bytes())
    return digest.hexdigest()[:16]


def _full_name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def compiled_search(model: Model, replaced: Replaced) -> tuple[Any, Any, Any, Any]:
    """Return `search.expand` of a model, `search.add`, `search.index` and `search.repack`, compiled."""
    kept = numba_cache.use()
    return (
        _compiled(model, replaced, search.expand),
        *(compiled(of, also=model.also, cache=kept) for of in (search.add, search.index, search.repack)),
    )


def compiled_walk(model: Model, replaced: Replaced) -> Any:
    """Return `search.walk` of a model, compiled."""
    return _compiled(model, replaced, search.walk)


def _compiled(model: Model, replaced: Replaced, of: Callable[..., Any]) -> Any:
    key: str | bool = compiled_key(model, replaced) if numba_cache.use() else False
    never: dict[Callable[..., Any], Callable[..., Any]] = dict.fromkeys(model.never, search.never)
    instead = {**never, **model.replaced, **replaced, search.step: model.step}
    return compiled(of, also=model.also, cache=key, replaced=instead)
