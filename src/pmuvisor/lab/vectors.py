"""Files of PMU operations, and of what an implementation answered to them.

An operation is 16 bytes, an answer 24, little endian, the files plain or gzip; the n-th answer belongs to the n-th
operation. Operations and records are numbered from 0. The files may come from anywhere: whatever is wrong with one is a
VectorError of one line, before anything is replayed.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pmuvisor.arch import sysreg
from pmuvisor.arch.sysreg import BY_NAME, EC_SYS64, ESR_EC_SHIFT, name_of, pmevcntr, pmevtyper

MAX_OPERATIONS = 1 << 22
"""More than this in one file is refused: it bounds what a compressed file can take of memory."""
SKIPPED_READ = 0xBAD0_BAD0_BAD0_BAD0
"""The value of a read that an exception skipped."""

_OPERATION = struct.Struct("<BBB5xQ")
_ANSWER = struct.Struct("<QII8x")
_GZIP = b"\x1f\x8b"
_FIRST = (
    *("PMCR_EL0", "PMCNTENSET_EL0", "PMCNTENCLR_EL0", "PMOVSCLR_EL0", "PMSWINC_EL0", "PMSELR_EL0", "PMCEID0_EL0"),
    *("PMCEID1_EL0", "PMCCNTR_EL0", "PMXEVTYPER_EL0", "PMXEVCNTR_EL0", "PMUSERENR_EL0", "PMOVSSET_EL0"),
    *("PMINTENSET_EL1", "PMINTENCLR_EL1", "PMMIR_EL1"),
)
EL2_REGISTERS = {200: sysreg.MDCR_EL2, 201: sysreg.HDFGRTR_EL2, 202: sysreg.HDFGWTR_EL2}
"""The registers that a file may only write, and only at EL2, by their numbers in it."""
REGISTERS: dict[int, int] = {
    **{number: BY_NAME[name] for number, name in enumerate(_FIRST)},
    **{16 + n: pmevcntr(n) for n in range(31)},
    **{47 + n: pmevtyper(n) for n in range(31)},
    78: sysreg.PMCCFILTR_EL0,
    **EL2_REGISTERS,
}
"""The keys of all registers of a file, by their numbers in it."""


class VectorError(ValueError):
    """A file of operations or answers that is none: one line that names it, the record and what was expected."""


class Operation(NamedTuple):
    """An MRS (`write` 0) or MSR of register `key` at `el`, with general-purpose register `rt`."""

    el: int
    write: int
    key: int
    value: int
    rt: int = 0

    def __str__(self) -> str:
        """Return it as an instruction, with the value that it writes."""
        if self.write:
            return f"EL{self.el} msr {name_of(self.key)}, {self.value:#x}"
        return f"EL{self.el} mrs {name_of(self.key)}"


class Answer(NamedTuple):
    """What an operation did: the value read, or the Exception level (0: none) and syndrome of the exception taken."""

    value: int
    exception_el: int
    esr: int

    def describe(self, operation: Operation) -> str:
        """Return it in words, as the answer to `operation`."""
        if self.exception_el or self.esr:
            what = f"an exception taken to EL{self.exception_el} with ESR {self.esr:#x}"
            usual = 0 if operation.write else SKIPPED_READ
            return what if self.value == usual else f"{what}, value {self.value:#x}"
        if operation.write:
            return "done" if self.value == 0 else f"done, value {self.value:#x}"
        return f"{self.value:#x}"


class Vectors:
    """Operations with their answers."""

    def __init__(self, operations: bytes, answers: bytes) -> None:
        self._operations = operations
        self._answers = answers
        self._rt = self._first_rt()

    def __len__(self) -> int:
        """Return the number of operations."""
        return len(self._operations) // _OPERATION.size

    def operation(self, number: int) -> Operation:
        """Return an operation."""
        el, write, register, value = _OPERATION.unpack_from(self._operations, number * _OPERATION.size)
        return Operation(el, write, REGISTERS[register], value, self._rt)

    def answer(self, number: int) -> Answer:
        """Return an answer."""
        return Answer(*_ANSWER.unpack_from(self._answers, number * _ANSWER.size))

    def __iter__(self) -> Iterator[tuple[Operation, Answer]]:
        """Return each operation with its answer."""
        pairs = zip(_OPERATION.iter_unpack(self._operations), _ANSWER.iter_unpack(self._answers), strict=True)
        for (el, write, register, value), answer in pairs:
            yield Operation(el, write, REGISTERS[register], value, self._rt), Answer(*answer)

    def _first_rt(self) -> int:
        """Return Rt of all instructions: operations do not say it, the first syndrome of a trap does."""
        syndromes: Iterator[int] = (esr for _, _, esr in _ANSWER.iter_unpack(self._answers))
        return next((esr >> 5 & 31 for esr in syndromes if esr >> ESR_EC_SHIFT == EC_SYS64), 0)


def read_vectors(operations: Path, answers: Path) -> Vectors:
    """Return what is in two files. Raises VectorError, or OSError where one cannot be read."""
    ops = _records(operations, _OPERATION.size)
    res = _records(answers, _ANSWER.size)
    count, answered = len(ops) // _OPERATION.size, len(res) // _ANSWER.size
    if count != answered:
        raise VectorError(
            f"{answers}: has {answered} answers, expected {count}: one for each operation of {operations}"
        )
    _check_operations(operations, ops)
    for offset in range(16, 24):
        _check(answers, res[offset :: _ANSWER.size], {0}, "its last 8 bytes are not zero")
    return Vectors(ops, res)


def _records(path: Path, size: int) -> bytes:
    """Return a file's bytes, decompressed where they are gzip: a whole number of records of `size` bytes."""
    limit = MAX_OPERATIONS * size
    with path.open("rb") as file:
        data = file.read(len(_GZIP))
        try:
            if data == _GZIP:
                file.seek(0)
                data = gzip.GzipFile(fileobj=file).read(limit + 1)
            else:
                data += file.read(limit + 1 - len(data))
        except EOFError:
            raise VectorError(f"{path}: is truncated: its gzip data has no end") from None
        except (gzip.BadGzipFile, zlib.error):
            raise VectorError(f"{path}: is corrupt: its gzip data cannot be decompressed") from None
    if len(data) > limit:
        raise VectorError(f"{path}: has more than {MAX_OPERATIONS} records of {size} bytes")
    if not data or len(data) % size:
        raise VectorError(f"{path}: has {len(data)} bytes, expected a whole number of records of {size} bytes")
    return data


def _check_operations(path: Path, data: bytes) -> None:
    size = _OPERATION.size
    els, writes, registers = data[0::size], data[1::size], data[2::size]
    _check(path, els, {0, 1, 2}, "Exception level {}, expected 0, 1 or 2")
    _check(path, writes, {0, 1}, "write is {}, expected 0 or 1")
    _check(path, registers, REGISTERS.keys(), "no register has number {}")
    for offset in range(3, 8):
        _check(path, data[offset::size], {0}, "bytes 3 to 7 are not zero")
    for number, register in enumerate(registers):
        if register in EL2_REGISTERS and (els[number], writes[number]) != (2, 1):
            what = f"{'write' if writes[number] else 'read'} of {name_of(REGISTERS[register])} at EL{els[number]}"
            raise VectorError(f"{path}: record {number}: {what}: expected a write at EL2")


def _check(path: Path, column: bytes, allowed: Iterable[int], complaint: str) -> None:
    """Refuse the first record that has another byte than `allowed` in this column."""
    strange = set(column).difference(allowed)
    if strange:
        number = next(i for i, byte in enumerate(column) if byte in strange)
        raise VectorError(f"{path}: record {number}: {complaint.format(column[number])}")
