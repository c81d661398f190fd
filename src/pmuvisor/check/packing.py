"""A stored state: of a record's bytes only the bits that vary in a model, side by side.

The layout says which bits are the ledger's, and those are no part of a state. Of the others those count that have been
seen to differ from the initial state; a successor in which another one does shows it, and the plan is made wider.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from pmuvisor import records
from pmuvisor.records import Role, Sizes

WORD = 64
Words = npt.NDArray[np.uint64]


class Workspace:
    """One record as the compiled code has it, and the same bytes as words."""

    def __init__(self, cls: type[Any], sizes: Sizes) -> None:
        self.cls, self.sizes = cls, sizes
        dtype = records.layout(cls, sizes)
        self.words: Words = np.zeros(-(-dtype.itemsize // 8), np.uint64)
        self.row = self.words.view(np.uint8)[: dtype.itemsize].view(dtype)

    def store(self, record: Any) -> None:
        """Set the record."""
        records.store(record, self.row, self.sizes)

    def load(self, record: Any) -> None:
        """Read the record into another one."""
        records.load(record, self.row, self.sizes)

    def ledger(self) -> Words:
        """Return which bits are the ledger's."""
        marked = Workspace(self.cls, self.sizes)
        made = records.new(self.cls, self.sizes)
        for leaf in records.leaves(self.cls, self.sizes):
            if leaf.role is Role.LEDGER:
                records.put(made, leaf.path, (1 << leaf.width) - 1)
        marked.store(made)
        return marked.words


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where the varying bits of a record are in a packed state.

    A move takes bits of one word of the record, turned, to one word of the packed state. Few moves are worth more than
    a few bits: words of a record are sparse, and one goes into the gaps of another as it is.
    """

    varying: Words
    moves: Words
    """Of each move: the word and its bits in the record, by how much they are turned left, the word packed."""
    words: int
    """Words of a packed state."""
    bits: int


SPLIT = 8
"""A word is moved in parts only where a part has so many bits."""
_TURNS = np.arange(WORD, dtype=np.uint64)


def plan(varying: Words) -> Plan:
    """Return the plan for the bits set in `varying`: word by word, always the move that fills most of it."""
    left = varying.copy()
    moves: list[tuple[int, int, int, int]] = []
    packed = 0
    while left.any():
        free = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
        while (best := _best(left, free)) is not None:
            word, bits, turn = best
            moves.append((word, bits, turn, packed))
            left[word] &= ~np.uint64(bits)
            free &= ~_turned(np.uint64(bits), np.uint64(turn))
        packed += 1
    made = np.array(moves, np.uint64).reshape(-1, 4)
    return Plan(varying.copy(), made, max(1, packed), sum(int(mask).bit_count() for mask in varying))


def _best(left: Words, free: Any) -> tuple[int, int, int] | None:
    """Return the word, the bits and the turn that fill most of `free`; None where nothing is worth a move."""
    words = np.flatnonzero(left)
    if not len(words):
        return None
    masks = left[words][:, None]
    fit = _turned(masks, _TURNS) & free
    gain = _count(fit)
    gain[(gain < SPLIT) & (gain < _count(masks))] = 0
    row, turn = divmod(int(gain.argmax()), WORD)
    if gain[row, turn] == 0:
        return None
    return int(words[row]), int(_turned(fit[row, turn], np.uint64(-turn % WORD))), turn


def _count(masks: Any) -> Any:
    """Return how many bits of each are set (Warren, Hacker's Delight, 5-1)."""
    fives, threes, fs = (np.uint64(0xFFFF_FFFF_FFFF_FFFF // of) for of in (3, 5, 17))
    masks = masks - (masks >> np.uint64(1) & fives)
    masks = (masks & threes) + (masks >> np.uint64(2) & threes)
    masks = masks + (masks >> np.uint64(4)) & fs
    return (masks * np.uint64(0x0101_0101_0101_0101) >> np.uint64(56)).astype(np.int64)


def _turned(bits: Any, by: Any) -> Any:
    """Return the bits of a word, turned left."""
    return (bits << by) | (bits >> ((np.uint64(WORD) - by) & np.uint64(WORD - 1)))


def pack(words: Words, moves: Words, packed: Words) -> None:
    """Write the varying bits of a record to `packed`."""
    packed[:] = np.uint64(0)
    for r in range(len(moves)):
        packed[moves[r, 3]] |= _turned(words[moves[r, 0]] & moves[r, 1], moves[r, 2])


def amend(words: Words, clean: Words, moves: Words, packed: Words) -> None:
    """Make `packed`, which is `clean` packed, what `words` is; few words differ."""
    for r in range(len(moves)):
        changed = words[moves[r, 0]] ^ clean[moves[r, 0]]
        if changed != 0:
            packed[moves[r, 3]] ^= _turned(changed & moves[r, 1], moves[r, 2])


def unpack(packed: Words, moves: Words, initial: Words, words: Words) -> None:
    """Make `words` the record that was packed; what does not vary is as in `initial`."""
    copy(initial, words)
    for r in range(len(moves)):
        back = (np.uint64(WORD) - moves[r, 2]) & np.uint64(WORD - 1)
        value = _turned(packed[moves[r, 3]], back) & moves[r, 1]
        words[moves[r, 0]] = (words[moves[r, 0]] & ~moves[r, 1]) | value


def copy(source: Words, target: Words) -> None:
    """Copy all words."""
    for i in range(len(target)):
        target[i] = source[i]


def restore(words: Words, clean: Words, fixed: Words) -> bool:
    """Make `words` what `clean` is; tell whether a bit of `fixed` was different."""
    found = np.uint64(0)
    for i in range(len(words)):
        found |= (words[i] ^ clean[i]) & fixed[i]
        words[i] = clean[i]
    return bool(found != 0)
