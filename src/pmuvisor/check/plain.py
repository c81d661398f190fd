"""The same exploration in CPython: slow, at once, and without numba. For the catalogue, and to compare with.

It keeps whole records, so it is for some thousands of states.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from pmuvisor import records
from pmuvisor.check.found import Result, Violation
from pmuvisor.check.model import BROKEN, NOT_NOW, Model
from pmuvisor.compiled import Replaced, substituted


def explore(model: Model, replaced: Replaced | None = None, asked: int | None = None, most: int = 20_000) -> Result:
    """Explore to the first violation, which no shorter one comes before, or until `most` states have been found."""
    begin = time.perf_counter()
    step = substituted(model.step, {**model.replaced, **(replaced or {})}, also=model.also)
    actions, sizes = model.actions, model.sizes
    first = model.begin(model.every if asked is None else asked)
    seen = {records.key(first, sizes)}
    queue: deque[tuple[Any, tuple[int, ...]]] = deque([(first, ())])
    violation: Violation | None = None
    transitions = 0
    way: tuple[int, ...] = ()
    while queue and violation is None and len(seen) < most:
        machine, way = queue.popleft()
        for number, action in enumerate(actions):
            after = records.copy(machine)
            result = step(after, *action.operands)
            if result >= BROKEN:
                violation = Violation(result - BROKEN, (*way, number))
                break
            if result == NOT_NOW:
                continue
            transitions += 1
            key = records.key(after, sizes)
            if key not in seen:
                seen.add(key)
                queue.append((after, (*way, number)))
    return Result(
        states=len(seen),
        transitions=transitions,
        depth=len(way),
        complete=not queue and violation is None,
        seconds=time.perf_counter() - begin,
        state_bits=8 * len(next(iter(seen))),
        bytes_used=sum(map(len, seen)),
        violation=violation,
    )
