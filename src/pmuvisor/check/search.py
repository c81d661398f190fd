"""Breadth-first search over packed states, compiled: who comes after whom, each state once, the shortest way known.

States are in the order in which they were found, which is the order in which they are expanded: the queue is the store.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pmuvisor.check import steps
from pmuvisor.check.packing import differs, pack, unpack
from pmuvisor.check.state import BROKEN, NOT_NOW

FINISHED = 0
"""All that was asked for has been expanded."""
VIOLATED = 1
"""A step has broken a property."""
FULL = 2
"""There is no room for the successors of another state."""
WIDER = 3
"""A bit varies that the plan does not have: `varying` has it now."""


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
    parents: Any,
    causes: Any,
    table: Any,
    at: Any,
) -> int:
    """Expand states from `at[0]` on, up to `at[2]`, and add what is new: `at[1]` is how many there are.

    `parents` and `causes` say from which state each was found, and by which action. `at[3]` counts the steps; `at[4]`
    is the action at which a property broke, and `at[5]` which.
    """
    packed = np.empty(states.shape[1], np.uint64)
    number = len(actions)
    while at[0] < at[2]:
        if at[1] + number > len(states) or 2 * (at[1] + number) > len(table):
            return FULL
        fresh = False
        taken = 0
        for a in range(number):
            if not fresh:
                unpack(states[at[0]], runs, initial, words)
                fresh = True
            result = steps.step(row[0], actions[a, 0], actions[a, 1], actions[a, 2], actions[a, 3], actions[a, 4])
            if result == NOT_NOW:
                continue
            fresh = False
            if result >= BROKEN:
                at[4] = a
                at[5] = result - BROKEN
                return VIOLATED
            if differs(words, initial, fixed):
                return WIDER
            pack(words, runs, packed)
            taken += 1
            place = find(packed, states, table)
            if table[place] < 0:
                table[place] = at[1]
                states[at[1]] = packed
                parents[at[1]] = at[0]
                causes[at[1]] = a
                at[1] += 1
        at[0] += 1
        at[3] += taken
    return FINISHED
