"""Breadth-first search over packed states, compiled: who comes after whom, each state once, the shortest way known.

States are in the order in which they were found, which is the order in which they are expanded: the queue is the store.
Several threads expand slices of it, each into candidates of its own, which are then added in order: what is found, and
in which order, is the same however many there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pmuvisor.check.model import BROKEN, NOT_NOW
from pmuvisor.check.packing import amend, copy, pack, restore, unpack

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


def never(*arguments: Any) -> int:
    """Stand for a function that a model says it never calls: what is not called need not be compiled.

    The loop is there because numba takes what can only raise for a function without a result.
    """
    calls = 0
    for _ in range(1):
        calls += 1
    if calls == 1:
        raise AssertionError("a function is called that the model says is never called")
    return 0


TAG = -1 << 31
"""Of a place in the table: bits of the hash, where all states have the same below; below them a state's number."""
BATCH = 1024
"""Candidates that are looked up together, so that the memory is asked for many places at once."""


def hashed(packed: Any) -> Any:
    """Return the hash of a packed state, a signed integer."""
    h = np.uint64(0x9E3779B97F4A7C15)
    for i in range(len(packed)):
        h = (h ^ packed[i]) * np.uint64(0xFF51AFD7ED558CCD)
        h ^= h >> np.uint64(32)
    return np.int64(h)


def find(packed: Any, h: int, states: Any, table: Any) -> Any:
    """Return the place in `table` of a state whose hash is `h`, or the free one where it belongs."""
    mask = len(table) - 1
    place = h & mask
    while True:
        entry = table[place]
        if entry == -1:
            return place
        if (entry ^ h) & TAG == 0:
            other = entry & ~TAG
            same = True
            for i in range(len(packed)):
                if states[other, i] != packed[i]:
                    same = False
            if same:
                return place
        place = (place + 1) & mask


def index(states: Any, count: int, table: Any) -> None:
    """Fill an empty table with the first `count` states, which are all different."""
    for s in range(count):
        h = hashed(states[s])
        table[find(states[s], h, states, table)] = (h & TAG) | s


def repack(old: Any, count: int, old_moves: Any, moves: Any, initial: Any, words: Any, states: Any) -> None:
    """Pack states by another plan."""
    for s in range(count):
        unpack(old[s], old_moves, initial, words)
        pack(words, moves, states[s])


def sift(found: Any, hashes: Any, origins: Any, first: int, last: int, states: Any, table: Any) -> int:
    """Keep of the candidates from `first` to `last`, exclusive, those that are not in the table; return their end."""
    mask = len(table) - 1
    entries = np.empty(last - first, np.int64)
    for i in range(last - first):
        entries[i] = table[hashes[first + i] & mask]
    kept = first
    for i in range(first, last):
        if entries[i - first] != -1 and table[find(found[i], hashes[i], states, table)] != -1:
            continue
        for w in range(found.shape[1]):
            found[kept, w] = found[i, w]
        hashes[kept] = hashes[i]
        origins[kept, 0] = origins[i, 0]
        origins[kept, 1] = origins[i, 1]
        kept += 1
    return kept


def expand(
    row: Any,
    words: Any,
    clean: Any,
    initial: Any,
    fixed: Any,
    moves: Any,
    actions: Any,
    states: Any,
    table: Any,
    first: int,
    last: int,
    found: Any,
    hashes: Any,
    origins: Any,
    wider: Any,
    at: Any,
) -> int:
    """Expand the states from `first` to `last`, exclusive. What is not in the table is written to `found`.

    `hashes` has the hash of each candidate, and `origins` from which state it comes, and by which action. `at` is told
    in `FOUND` and its like; `wider` gets the bits that vary though `fixed` has them, and no candidate is complete then.
    `clean` is room for the words of the state at hand.
    """
    at[:] = 0
    number = 0
    sifted = 0
    steps = 0
    widened = False
    for s in range(first, last):
        unpack(states[s], moves, initial, clean)
        copy(clean, words)
        for a in range(len(actions)):
            result = step(row[0], actions[a, 0], actions[a, 1], actions[a, 2], actions[a, 3], actions[a, 4])
            if result == NOT_NOW:
                continue
            if result >= BROKEN:
                at[STATE] = s
                at[ACTION] = a
                at[PROPERTY] = result - BROKEN
                return VIOLATED
            steps += 1
            copy(states[s], found[number])
            amend(words, clean, moves, found[number])
            if restore(words, clean, fixed):
                widened = True
                step(row[0], actions[a, 0], actions[a, 1], actions[a, 2], actions[a, 3], actions[a, 4])
                for i in range(len(words)):
                    wider[i] |= (words[i] ^ clean[i]) & fixed[i]
                copy(clean, words)
            elif not widened:
                hashes[number] = hashed(found[number])
                origins[number, 0] = s
                origins[number, 1] = a
                number += 1
        if number - sifted >= BATCH or s == last - 1:
            number = sift(found, hashes, origins, sifted, number, states, table)
            sifted = number
    at[STEPS] = steps
    at[FOUND] = number
    if widened:
        return WIDER
    return FINISHED


def add(
    found: Any,
    hashes: Any,
    origins: Any,
    number: int,
    states: Any,
    parents: Any,
    causes: Any,
    table: Any,
    count: int,
) -> int:
    """Add those of the first `number` candidates that are new; return how many states there are then."""
    for i in range(number):
        h = hashes[i]
        place = find(found[i], h, states, table)
        if table[place] == -1:
            table[place] = (h & TAG) | count
            for w in range(found.shape[1]):
                states[count, w] = found[i, w]
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
