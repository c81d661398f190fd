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
    """Where each run of varying bits is in the record, and where in a packed state."""

    varying: Words
    runs: npt.NDArray[np.int64]
    """Of each run: the word, the lowest bit and the number of bits in the record; the word and the bit packed."""
    words: int
    """Words of a packed state."""
    bits: int


def plan(varying: Words) -> Plan:
    """Return the plan for the bits set in `varying`. A run crosses no word, neither in the record nor packed."""
    runs: list[tuple[int, int, int, int, int]] = []
    at = 0
    for word, mask in enumerate(map(int, varying)):
        bit = 0
        while mask >> bit:
            if not mask >> bit & 1:
                bit += 1
                continue
            length = 1
            room = min(WORD - bit, WORD - at % WORD)
            while length < room and mask >> (bit + length) & 1:
                length += 1
            runs.append((word, bit, length, at // WORD, at % WORD))
            at += length
            bit += length
    made = np.array(runs, np.int64).reshape(-1, 5)
    return Plan(varying.copy(), made, max(1, -(-at // WORD)), at)


def _mask(length: int) -> Any:
    return np.uint64(0xFFFF_FFFF_FFFF_FFFF) >> np.uint64(64 - length)


def pack(words: Words, runs: npt.NDArray[np.int64], packed: Words) -> None:
    """Write the varying bits of a record to `packed`."""
    packed[:] = np.uint64(0)
    for r in range(len(runs)):
        value = (words[runs[r, 0]] >> np.uint64(runs[r, 1])) & _mask(runs[r, 2])
        packed[runs[r, 3]] |= value << np.uint64(runs[r, 4])


def unpack(packed: Words, runs: npt.NDArray[np.int64], initial: Words, words: Words) -> None:
    """Make `words` the record that was packed; what does not vary is as in `initial`."""
    words[:] = initial
    for r in range(len(runs)):
        mask = _mask(runs[r, 2]) << np.uint64(runs[r, 1])
        value = (packed[runs[r, 3]] >> np.uint64(runs[r, 4])) << np.uint64(runs[r, 1])
        words[runs[r, 0]] = (words[runs[r, 0]] & ~mask) | (value & mask)


def differs(words: Words, initial: Words, fixed: Words) -> bool:
    """Tell whether a bit of `fixed` is not as in `initial`."""
    found = np.uint64(0)
    for i in range(len(words)):
        found |= (words[i] ^ initial[i]) & fixed[i]
    return bool(found != 0)
