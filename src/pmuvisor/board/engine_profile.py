"""Statistical profiling by the engine: what a sampled operation is, how to ask for samples, and what comes back.

Operations are instructions that retire, at the exception levels asked for, as the engine's INST lane counts them: one
that faults, is UNDEFINED or traps is none; one that the machine emulates (a system register, a device) is one.
Operations count down to a sample, which becomes a record unless a filter rejects it: `spe_record` says which, and what
its bytes are. Where the architecture leaves a choice, the choice is named:

- A prefetch (PRFM) is no load. DC ZVA is a store, of the first byte of its block.
- A conditional branch to the very next instruction was not taken. ERET is an indirect branch; SVC, HVC and SMC are
  none, but have the event of an exception.
- No operation has a physical address or a translation latency; the source of a load is 0, where the core knows it.
- A timestamp is what the engine's clock would read at the operation (`Engine.set_clock`), with the time that passed in
  callbacks before it; of an operation that the machine emulates, also in its own. CONTEXTIDR_EL1 is that before it.

What happens at a sample is compiled (`native_spe`), and loaded when the first profile is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pmuvisor.board import native
from pmuvisor.records import store

if TYPE_CHECKING:
    from pmuvisor.arch.spe_record import Filter

NO_END = (1 << 62) - 1
MAX_LATENCY = 0xFFFF
MAX_ALIGN = 6
"""Logarithm of spe_record.MAX_RECORD."""


@dataclass(frozen=True)
class Profile:
    """What `Engine.profile` samples."""

    els: int
    """Where operations are counted and sampled. Bit 0: EL0; bit 1: EL1."""
    first: int
    """PMSICR_EL1.COUNT: the how many-th operation from now is the first that is sampled. 0: the next operation only
    reloads the count, as after each sample, so the first is the `period`-th, or with jitter one that is drawn."""
    period: int
    """From one sampled operation to the next, without jitter: the value that COUNT is reloaded with, and 1."""
    filter: Filter
    """Which samples become records; copied when the profile is set."""
    jitter: bool = False
    """Whether the lowest byte of the generator's state is added to each reload."""
    random: int = 1
    """State of the generator, of which `arch.spe.next_random` gives the next."""
    room: int = NO_END
    """After how many records `run` returns Stop.PROFILE, and does so until the profile is replaced."""
    total_latency: int = 1
    """Cycles that every operation takes."""
    context: bool = False
    """Whether records have CONTEXTIDR_EL1."""
    timestamp: bool = False
    """Whether records have the time, by the engine's clock (`Engine.set_clock`)."""


@dataclass(frozen=True)
class Records:
    """What `Engine.take_records` returns: all since it was called last, also of profiles that were replaced."""

    data: bytes
    """The records, each padded, one after the other."""
    sizes: tuple[int, ...]
    """The bytes of each."""
    sampled: int
    """Operations that were sampled, whether or not they became a record."""
    rejected: int
    """Samples that a filter rejected."""
    left: int
    """PMSICR_EL1.COUNT: operations to the next sample; 0 right after one, when the next operation reloads it. Of the
    last profile, when it ended, if there is none now."""
    random: int
    """State of the generator then. A profile with `first` and `random` set to these goes on where this one was."""


class Profiler:
    """The Python side of one engine's profile."""

    def __init__(self, state: npt.NDArray[np.int64], context_address: int, zva_bytes: int) -> None:
        """`state` is the engine's; `context_address` is where CONTEXTIDR_EL1 is kept."""
        self._native = _native_spe()
        self._st = state
        self._words = np.zeros(self._native.PROFILE_WORDS, np.int64)
        self._records = np.zeros(self._native.CAPACITY * self._native.RECORD_ROOM, np.uint8)
        self._sizes = np.zeros(self._native.CAPACITY, np.int64)
        self._filter = np.zeros(1, self._native.FILTER_LAYOUT)
        self._sample = np.zeros(1, self._native.SAMPLE_LAYOUT)
        self._out = np.zeros(1, self._native.OUT_LAYOUT)
        self._taken = bytearray()
        self._taken_sizes: list[int] = []
        self._els = 0
        self._phase = (0, 0)
        """Records.left and Records.random, of a profile that ended."""
        self._bind(context_address, zva_bytes)

    def _bind(self, context_address: int, zva_bytes: int) -> None:
        spe, words, st = self._native, self._words, self._st
        words[spe.AT_CONTEXT], words[spe.ZVA_BYTES] = context_address, zva_bytes
        for index, array in ((spe.AT_RECORDS, self._records), (spe.AT_SIZES, self._sizes),
                             (spe.AT_FILTER, self._filter), (spe.AT_SAMPLE, self._sample),
                             (spe.AT_OUT, self._out)):  # fmt: skip
            words[index] = array.ctypes.data
        st[native.AT_PROFILE] = words.ctypes.data
        for index, function in ((native.FN_SAMPLE_PLAN, spe.on_sample_plan),
                                (native.FN_SAMPLE_NEXT, spe.on_sample_next), (native.FN_SAMPLE_CUT, spe.on_sample_cut),
                                (native.FN_SAMPLE_ACCESS, spe.on_sample_access)):  # fmt: skip
            st[index] = function.address

    def set(self, profile: Profile | None, lanes: npt.NDArray[np.int64]) -> None:
        """Replace the profile, at these counts."""
        if profile is not None:
            _check(profile)
        self._phase = self._left(lanes)
        self._drain()
        st = self._st
        st[native.PROFILE] = st[native.PROFILE_LOOK] = st[native.SAMPLE] = 0
        self._els = 0 if profile is None else profile.els
        if profile is not None:
            self._begin(profile, self._counted(lanes))

    def _begin(self, p: Profile, counted: int) -> None:
        spe, words = self._native, self._words
        store(p.filter, self._filter)
        words[spe.PERIOD], words[spe.JITTER], words[spe.ROOM] = p.period, p.jitter, p.room
        words[spe.LATENCY], words[spe.LOADS_HAVE_SOURCE] = p.total_latency, p.filter.core.lds
        words[spe.WITH_CONTEXT], words[spe.WITH_TIMESTAMP] = p.context, p.timestamp
        first, random = p.first, p.random
        words[spe.LAST], words[spe.LAST_RANDOM] = -1, random
        if first == 0:
            words[spe.LAST] = counted
            first = p.period + (random & 0xFF if p.jitter else 0)
            random = spe.next_random(random) if p.jitter else random
        words[spe.RANDOM] = random
        self._st[native.PROFILE_AT] = counted + first
        self._st[native.PROFILE] = p.els

    def _counted(self, lanes: npt.NDArray[np.int64]) -> int:
        return sum(int(lanes[el, native.INST]) for el in range(2) if self._els >> el & 1)

    def _left(self, lanes: npt.NDArray[np.int64]) -> tuple[int, int]:
        if not self._els:
            return self._phase
        spe, words, counted = self._native, self._words, self._counted(lanes)
        if counted == words[spe.LAST]:
            return 0, int(words[spe.LAST_RANDOM])
        return int(self._st[native.PROFILE_AT]) - counted, int(words[spe.RANDOM])

    def full(self) -> bool:
        """Whether there is no room for another record; makes some where it is only the buffer that is full."""
        if self._words[self._native.ROOM] <= 0:
            return True
        self._drain()
        self._st[native.PROFILE_LOOK] = 0
        return False

    def _drain(self) -> None:
        spe, words = self._native, self._words
        self._taken += self._records[: words[spe.BYTES]].tobytes()
        self._taken_sizes += self._sizes[: words[spe.RECORDS]].tolist()
        words[spe.BYTES] = words[spe.RECORDS] = 0

    def take(self, lanes: npt.NDArray[np.int64]) -> Records:
        """See `Engine.take_records`; `lanes` are the counts now."""
        spe, words = self._native, self._words
        self._drain()
        data, sizes = bytes(self._taken), tuple(self._taken_sizes)
        sampled, rejected = int(words[spe.SAMPLED]), int(words[spe.REJECTED])
        words[spe.SAMPLED] = words[spe.REJECTED] = 0
        self._taken.clear()
        self._taken_sizes.clear()
        return Records(data, sizes, sampled, rejected, *self._left(lanes))


def _native_spe() -> Any:
    from pmuvisor.board import native_spe  # compiled, or read from a cache, when it is first wanted

    return native_spe


def _check(p: Profile) -> None:
    """Refuse what cannot be sampled."""
    for name, value, low, high in (
        ("els", p.els, 1, 3),
        ("first", p.first, 0, NO_END),
        ("period", p.period, 1, NO_END),
        ("random", p.random, 0, 0xFFFF_FFFF),
        ("room", p.room, 1, NO_END),
        ("total_latency", p.total_latency, 0, MAX_LATENCY),
        ("filter.core.align", p.filter.core.align, 0, MAX_ALIGN),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} of a profile is {value}: expected {low} to {high}")
