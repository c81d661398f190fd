"""Breadth-first search over packed states, compiled: who comes after whom, each state once, the shortest way known.

States are in the order in which they were found, which is the order in which they are expanded: the queue is the store.
Several threads expand slices of it, each into candidates of its own, which are then added in order: what is found, and
in which order, is the same however many there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pmuvisor.check.model import BROKEN, NOT_NOW
from pmuvisor.check.packing import differs, pack, unpack

FINISHED = 0
"""All that was asked for has been expanded."""
VIOLATED = 1
"""A step has broken a property."""
WIDER = 2
"""Bits vary that the plan does not have."""

# What `expand` and `walk` tell of their work, in `at`
FOUND = 0
"""How many candidates there are."""
STEPS = 1
STATE = 2
"""The state that was expanded when a property broke, the action by which, and which property."""
ACTION = 3
PROPERTY = 4
TOLD = 5


def step(m: Any, kind: int, a: int, b: int, c: int, d: int) -> int:
    """Stand for a model's step, by which it is replaced when this is compiled."""
    return NOT_NOW


def _hash(packed: Any) -> Any:
    h = np.uint64(0x9E3779B97F4A7C15)
    for i in range(len(packed)):
        h = (h ^ packed[i]) * np.uint64(0xFF51AFD7ED558CCD)
        h ^= h >> np.uint64(32)
    return h


def find(packed: Any, states: Any, table: Any) -> Any:
    """Return the place in `table` of a state, or the free one where it belongs."""
    mask = np.uint64(len(table) - 1)
    place = _hash(packed) & mask
    while True:
        other = table[place]
        if other < 0:
            return place
        same = True
        for i in range(len(packed)):
            if states[other, i] != packed[i]:
                same = False
                break
        if same:
            return place
        place = (place + np.uint64(1)) & mask


def index(states: Any, count: int, table: Any) -> None:
    """Fill an empty table with the first `count` states, which are all different."""
    for s in range(count):
        table[find(states[s], states, table)] = s


def repack(old: Any, count: int, old_runs: Any, runs: Any, initial: Any, words: Any, states: Any) -> None:
    """Pack states by another plan."""
    for s in range(count):
        unpack(old[s], old_runs, initial, words)
        pack(words, runs, states[s])


def expand(
    row: Any,
    words: Any,
    initial: Any,
    fixed: Any,
    runs: Any,
    actions: Any,
    states: Any,
    table: Any,
    first: int,
    last: int,
    found: Any,
    origins: Any,
    wider: Any,
    at: Any,
) -> int:
    """Expand the states from `first` to `last`, exclusive. What is not in the table is written to `found`.

    `origins` says from which state each candidate comes, and by which action. `at` is told in `FOUND` and its like;
    `wider` gets the bits that vary though `fixed` has them, and no candidate is complete then.
    """
    at[:] = 0
    packed = np.empty(states.shape[1], np.uint64)
    widened = False
    for s in range(first, last):
        fresh = False
        for a in range(len(actions)):
            if not fresh:
                unpack(states[s], runs, initial, words)
                fresh = True
            result = step(row[0], actions[a, 0], actions[a, 1], actions[a, 2], actions[a, 3], actions[a, 4])
            if result == NOT_NOW:
                continue
            fresh = False
            if result >= BROKEN:
                at[STATE] = s
                at[ACTION] = a
                at[PROPERTY] = result - BROKEN
                return VIOLATED
            at[STEPS] += 1
            if differs(words, initial, fixed):
                widened = True
                for i in range(len(words)):
                    wider[i] |= (words[i] ^ initial[i]) & fixed[i]
                continue
            pack(words, runs, packed)
            if table[find(packed, states, table)] < 0:
                found[at[FOUND]] = packed
                origins[at[FOUND], 0] = s
                origins[at[FOUND], 1] = a
                at[FOUND] += 1
    if widened:
        return WIDER
    return FINISHED


def add(found: Any, origins: Any, number: int, states: Any, parents: Any, causes: Any, table: Any, count: int) -> int:
    """Add those of the first `number` candidates that are new; return how many states there are then."""
    for i in range(number):
        place = find(found[i], states, table)
        if table[place] < 0:
            table[place] = count
            states[count] = found[i]
            parents[count] = origins[i, 0]
            causes[count] = origins[i, 1]
            count += 1
    return count


def walk(row: Any, words: Any, initial: Any, actions: Any, seed: int, length: int, trail: Any, at: Any) -> int:
    """Let `length` random actions happen, one after the other, of those that can; the same for the same seed.

    `trail` gets them. The draws are those of xorshift64* (Marsaglia; Vigna, "An experimental exploration of Marsaglia's
    xorshift generators, scrambled"), an action that cannot happen costs one.
    """
    at[:] = 0
    words[:] = initial
    random = (np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
    patience = 50 * length
    while at[STEPS] < length and patience > 0:
        patience -= 1
        random ^= random >> np.uint64(12)
        random ^= random << np.uint64(25)
        random ^= random >> np.uint64(27)
        a = np.int64(((random * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(33)) % np.uint64(len(actions)))
        result = step(row[0], actions[a, 0], actions[a, 1], actions[a, 2], actions[a, 3], actions[a, 4])
        if result == NOT_NOW:
            continue
        trail[at[STEPS]] = a
        at[STEPS] += 1
        if result >= BROKEN:
            at[PROPERTY] = result - BROKEN
            return VIOLATED
    return FINISHED
