"""Random walks over machines too large to be explored, and what is left of one in which a property breaks.

A walk is the same for the same seed. It is long where a property breaks; `shrink` leaves actions out, by delta
debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input"), until each of them is needed.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pmuvisor.check import search
from pmuvisor.check.explore import compiled_walk, operands
from pmuvisor.check.found import Violation
from pmuvisor.check.model import BROKEN, NOT_NOW, Model
from pmuvisor.check.packing import Workspace
from pmuvisor.compiled import Replaced, substituted

MAX_SEED = (1 << 32) - 1


@dataclasses.dataclass(frozen=True)
class WalkResult:
    """What walks came to."""

    walks: int
    """How many were made, the one in which a property broke included."""
    steps: int
    seconds: float
    seed: int | None
    """Of the walk in which a property broke; None where none did."""
    walked: int
    """Its steps."""
    violation: Violation | None
    """What is left of it when it has been shrunk."""
    complete: bool
    """All that were asked for were made, or a property broke."""


class Walker:
    """Makes walks of a model. `replaced`, `asked` and `threads` are as of `explore.Exploration`."""

    def __init__(
        self, model: Model, replaced: Replaced | None = None, asked: int | None = None, threads: int | None = None
    ) -> None:
        self.model = model
        self.interrupted = False
        """Set, from a signal handler too, to end after the walks at hand."""
        self._asked = model.every if asked is None else asked
        self._replaced = replaced or {}
        self._walk = compiled_walk(model, self._replaced)
        self._operands = operands(model)
        self._spaces = [Workspace(model.record, model.sizes) for _ in range(threads or len(os.sched_getaffinity(0)))]
        self._begin = model.begin(self._asked)
        self._spaces[0].store(self._begin)
        self._initial = self._spaces[0].words.copy()

    def run(
        self, seed: int, walks: int, length: int, progress: Callable[[WalkResult], None] = lambda so_far: None
    ) -> WalkResult:
        """Make walks of `length` steps each, of the seeds from `seed` on, until a property breaks; shrink that one."""
        self._one(self._spaces[0], seed, 0)  # so that what is compiled is compiled before the clock runs
        begin = time.perf_counter()
        made, steps = 0, 0

        def so_far(seed: int | None = None, walked: int = 0, violation: Violation | None = None) -> WalkResult:
            seconds = time.perf_counter() - begin
            complete = made == walks or violation is not None
            return WalkResult(made, steps, seconds, seed, walked, violation, complete)

        with ThreadPoolExecutor(len(self._spaces)) as threads:
            while made < walks and not self.interrupted:
                seeds = range(seed + made, seed + min(walks, made + len(self._spaces)))
                for each, (count, trail, broken) in zip(
                    seeds, threads.map(self._one, self._spaces, seeds, [length] * len(seeds)), strict=True
                ):
                    made, steps = made + 1, steps + count
                    if broken is not None:
                        return so_far(each, count, self.shrink(Violation(broken, tuple(map(int, trail[:count])))))
                progress(so_far())
        return so_far()

    def _one(self, space: Workspace, seed: int, length: int) -> tuple[int, Any, int | None]:
        trail = np.zeros(length + 1, np.int16)
        at = np.zeros(search.TOLD, np.int64)
        how = self._walk(space.row, space.words, self._initial, self._operands, seed, length, trail, at)
        return int(at[search.STEPS]), trail, int(at[search.PROPERTY]) if how == search.VIOLATED else None

    def shrink(self, violation: Violation) -> Violation:
        """Return a violation of the same property in whose way no action can be left out, replayed by CPython.

        Raises RuntimeError where CPython does not break the property on the way that is given.
        """
        step = substituted(self.model.step, {**self.model.replaced, **self._replaced}, also=self.model.also)
        way = self._what_happens(step, violation.actions, violation.property)
        if way is None:
            raise RuntimeError("CPython breaks nothing on the way on which the compiled functions did")
        parts = 2
        while len(way) >= 2:
            shorter = self._without_a_part(step, way, parts, violation.property)
            if shorter is not None:
                way, parts = shorter, max(2, parts - 1)
            elif parts >= len(way):
                break
            else:
                parts = min(len(way), 2 * parts)
        return Violation(violation.property, way)

    def _without_a_part(
        self, step: Callable[..., int], way: tuple[int, ...], parts: int, broken: int
    ) -> tuple[int, ...] | None:
        edges = [len(way) * part // parts for part in range(parts + 1)]
        for first, last in itertools.pairwise(edges):
            shorter = self._what_happens(step, (*way[:first], *way[last:]), broken)
            if shorter is not None:
                return shorter
        return None

    def _what_happens(self, step: Callable[..., int], way: Sequence[int], broken: int) -> tuple[int, ...] | None:
        """Return those of `way` that can happen, up to the one that breaks the property; None where none does."""
        m = self.model.begin(self._asked)
        happened = []
        for action in way:
            result = step(m, *self.model.actions[action].operands)
            if result != NOT_NOW:
                happened.append(action)
            if result >= BROKEN:
                return tuple(happened) if result == BROKEN + broken else None
        return None
