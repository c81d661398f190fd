"""The benchmarks' bare-metal guest, on pmuvisor and on QEMU."""

from __future__ import annotations

import struct
import tempfile
from dataclasses import astuple, dataclass
from enum import IntEnum
from pathlib import Path

from benchmarks import qemu
from pmuvisor.arch import cores, events
from pmuvisor.board.machine import Status
from pmuvisor.lab import run as lab

ELF = Path(__file__).with_name("guests") / "bench.elf"
MEMORY_MIB = 16
MAGIC = b"PMUBENCH"
NO_EVENT = (1 << 64) - 1
SAID = "bench: result 0x"


class GuestFailure(RuntimeError):
    """The guest did not do its work: a figure of it would mean nothing."""


class Task(IntEnum):
    """What the guest does `repeats` times; the numbers are those of bench.c."""

    COMPUTE = 0
    """Sort 4096 words by quicksort, then their CRC32."""
    LOOP = 1
    """A loop of three instructions that accesses nothing, which the others access something in."""
    READ_CYCLES = 2
    READ_COUNTER = 3
    WRITE_COUNTER = 4
    WRITE_ENABLE = 5
    WRITE_TYPE = 6


@dataclass(frozen=True)
class Params:
    """The words behind the magic ones, as struct params in bench.c has them."""

    task: Task
    repeats: int
    counters: int = 0
    event: int = events.INST_RETIRED
    period: int = 0


def elf(params: Params) -> bytes:
    """The guest, told what to do."""
    image = ELF.read_bytes()
    at = image.index(MAGIC) + len(MAGIC)
    words = struct.pack("<5Q", *astuple(params))
    return image[:at] + words + image[at + len(words) :]


@dataclass(frozen=True)
class Run:
    """One run of the guest."""

    seconds: float
    said: str
    instructions: int = 0
    overflows: int = 0


def on_pmuvisor(params: Params, *, fgt: bool = True) -> Run:
    """Run the guest in this process; the time is that of the run alone, without setting the machine up."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.elf"
        path.write_bytes(elf(params))
        result = lab.run(lab.Request(str(path), cores.core("max"), fgt=fgt, memory=MEMORY_MIB << 20))
    if result.status is not Status.POWEROFF:
        raise GuestFailure(f"{params}: {result.status}: {result.reason}")
    return Run(result.wall_seconds, _said(result.console), result.instructions, result.ledger["overflows"])


def on_qemu(params: Params) -> Run:
    """Run the guest in a QEMU; the time is that of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.elf"
        path.write_bytes(elf(params))
        seconds, console = qemu.run(path, MEMORY_MIB)
    return Run(seconds, _said(console))


def _said(console: str) -> str:
    lines = [line for line in console.splitlines() if line.startswith(SAID)]
    if len(lines) != 1:
        raise GuestFailure(f"expected one line {SAID!r}..., got {console[-200:]!r}")
    return lines[0]
