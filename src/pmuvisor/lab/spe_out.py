"""`pmuvisor run --spe-out FILE`: the records that a guest's profiling took, as a perf.data file.

They are the guest's own: what its vCPUs' units wrote into the guest's buffers, kept as it was written, whatever the
guest did with it afterwards. `perf report -D` and `perf script` of an x86-64 or arm64 Linux read the file.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import BinaryIO

from pmuvisor.arch.spe_record import MAX_RECORD
from pmuvisor.lab import perfdata
from pmuvisor.lab.perfdata import AuxTrace, Task

LIMIT = 1 << 30
"""Bytes of records that are kept, of all vCPUs together: the first ones."""


class SpeOut:
    """The records of one run, while it runs, and the file that they become."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._data: dict[int, bytearray] = {}
        self._room = limit
        self.records = 0
        """How many were kept."""
        self.dropped = 0
        """How many came after there was no more room."""

    def keep(self, vcpu: int, data: bytes) -> None:
        """Keep whole records that vCPU `vcpu` has written, of `MAX_RECORD` bytes each, as cores here have them."""
        number = len(data) // MAX_RECORD
        if self.dropped or len(data) > self._room:
            self.dropped += number
            return
        self._room -= len(data)
        self.records += number
        self._data.setdefault(vcpu, bytearray()).extend(data)

    def told(self, path: PurePath) -> str:
        """Say in one line what is in the file."""
        if self.records == 0:
            return f"{path}: no records: the guest profiled nothing"
        more = f"; {self.dropped:,} more had no room" if self.dropped else ""
        return f"{path}: {self.records:,} profiling records (perf report -D -i {path}){more}"

    def write(self, file: BinaryIO, vcpus: int, guest: str, midr: int) -> None:
        """Write the file. Linux names its tasks by number; another guest is one task, called as the guest is."""
        traces = [AuxTrace(vcpu, bytes(self._data.get(vcpu, b"")), tid=0) for vcpu in range(vcpus)]
        name = "".join(c if c.isascii() and c.isprintable() else "?" for c in PurePath(guest).name)
        tasks = [] if guest == "linux" else [Task(0, 0, name[: perfdata.MAX_COMM] or "guest")]
        perfdata.write(file, traces, tasks=tasks, midr=midr)
