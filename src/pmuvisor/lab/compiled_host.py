"""A host whose guests have no code, compiled: what happens between two points of a scenario's agenda, as machine code.

The state is a record in CPython, where sessions open and close, and a row of its NumPy layout while numba's code runs;
it goes from the one into the other and back, and every integer is the same as if CPython had done all of it.

numba knows the length of each array when it compiles, which takes half a minute. So a row has room for more than the
record: most scenarios share one layout, and the machine code of a layout is kept on disk (numba_cache.py; numba's own
key in that folder is the function's signature, which is the layout).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from pmuvisor import numba_cache, records
from pmuvisor.compiled import compiled
from pmuvisor.kvm import timeline
from pmuvisor.kvm.timeline import Timeline
from pmuvisor.linux.activity import NEVER

CHUNK = 20_000
"""How much happens between two calls of CPython: some 20 ms."""
ROOM = (
    {"cpus": 16, "tasks": 64, "events": 256, "context_events": 64, "vms": 16, "vcpus": 64, "spe_sessions": 16},
    {"cpus": 128, "tasks": 512, "events": 2048, "context_events": 256, "vms": 128, "vcpus": 512, "spe_sessions": 128},
    {"cpus": 128, "tasks": 4096, "events": 16384, "context_events": 1024, "vms": 4096, "vcpus": 4096}
    | {"spe_sessions": 255},
)
"""What rows have room for; a host that fits into none gets a layout of its own. What is not used costs no memory."""
MAX_EVENT_COUNTERS = 31


def happen_until(t: Timeline, end: int, happenings: int) -> None:
    """Let happen what is due before `end`, until there were so many happenings. Semantic code."""
    while t.due[t.queue[0]] < end and t.happenings < happenings:
        timeline.happen(t)


def room_for(sizes: records.Sizes) -> dict[str, int]:
    """Return sizes at which everything of a timeline of `sizes` has its place, the same for many hosts.

    What is beyond stays idle: a CPU on which no task may run, an entry that is never due. How many kinds of events
    there are is how often the code of a kind runs: that is left as it is.
    """
    fitting = [of for of in ROOM if all(sizes[name] <= number for name, number in of.items())]
    room = {**sizes, **fitting[0]} if fitting else dict(sizes)
    room["cpu_words"] = (room["cpus"] + 31) // 32
    room["event_counters"] = MAX_EVENT_COUNTERS
    room["entries"] = room["cpus"] + room["tasks"]
    room["executed"] = room["vcpus"] * room["kinds"]
    return room


class CompiledHost:
    """A timeline's machine code and row."""

    def __init__(self, t: Timeline, sizes: records.Sizes) -> None:
        """Compile, which takes half a minute where that layout's machine code is not on disk yet."""
        self._t = t
        self._sizes = sizes
        room = room_for(sizes)
        self._row = np.zeros(1, records.layout(Timeline, room))
        # Entries that are never due are behind all others: they stay where they are put, and the others where they
        # would be without them.
        beyond = slice(sizes["entries"], room["entries"])
        self._row[0]["queue"][beyond] = self._row[0]["place"][beyond] = np.arange(beyond.start, beyond.stop)
        self._row[0]["due"][beyond] = NEVER
        self._run = compiled(happen_until, also=(__name__,), cache=numba_cache.use())
        self._run.compile((numba.typeof(self._row[0]), numba.int64, numba.int64))

    def happen_until(self, end: int, goes_on: Callable[[int], bool]) -> None:
        """Let happen what is due before `end`; `goes_on` is told the time now and then, and may end it."""
        if self._t.due[self._t.queue[0]] >= end:
            return
        row: Any = self._row[0]
        records.store(self._t, self._row, self._sizes)
        while row["due"][row["queue"][0]] < end:
            self._run(row, end, row["happenings"] + CHUNK)
            if not goes_on(int(row["now"])):
                break
        records.load(self._t, self._row, self._sizes)
