"""What each executed instruction would be as a sample, one at a time, by what capstone prints of it."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from functools import cache

import capstone
from unicorn import UC_HOOK_CODE, Uc

from pmuvisor.arch import spe_record
from pmuvisor.arch.spe_record import Filter, RecordBytes, Sample, SpeFeatures
from pmuvisor.board.engine import Engine, Stop
from pmuvisor.board.engine_profile import Profile
from pmuvisor.records import new

MASK64 = (1 << 64) - 1
CONTEXTIDR_EL1 = (3, 0, 13, 0, 1)
ELR_EL1 = (3, 0, 4, 0, 1)


@dataclass(frozen=True)
class Operation:
    """An instruction that retired, and what it would be as a sample."""

    pc: int
    el: int
    text: str
    op_class: int
    op_subclass: int
    events: int
    target: int | None
    va: int | None
    context: int


@cache
def disassemble(word: int, pc: int) -> str:
    """Mnemonic and operands; empty for what capstone does not know."""
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    found = next(decoder.disasm(struct.pack("<I", word), pc), None)
    return "" if found is None else f"{found.mnemonic} {found.op_str}"


# --- loads and stores -----------------------------------------------------------------------------------------------

LOAD = re.compile(r"(ld|cas|swp)")
STORE = re.compile(r"(st|dc zva)")
ATOMIC = re.compile(r"(ld|st)(add|clr|eor|set|smax|smin|umax|umin)|swp|cas")
EXCLUSIVE = re.compile(r"(ld|st)(a|l)?x[rp]")
ORDERED = re.compile(
    r"lda[rx]|ldla|ldapu?r|stl[rxlu]|(ldadd|ldclr|ldeor|ldset|ld[su]max|ld[su]min|swp|casp?)(a|l|al)[bh]?\b"
    r"|st(add|clr|eor|set|[su]max|[su]min)l[bh]?\b"
)
MEMORY = re.compile(r"\[(sp|x\d+)(?:, (?:#(-?\w+)|(\w+)(?:, (\w+)(?: #(\w+))?)?))?\](!?)")


def number(text: str | None) -> int:
    return int(text, 0) if text else 0


def register_value(name: str, x: list[int]) -> int:
    """`x` is X0 to X30 and SP."""
    if name in ("xzr", "wzr"):
        return 0
    if name in ("sp", "wsp"):
        return x[31]
    value = x[int(name[1:])]
    return value & 0xFFFF_FFFF if name[0] == "w" else value


def accessed(text: str, x: list[int]) -> int | None:
    """The first byte that an instruction accesses."""
    if text.startswith("dc zva"):
        return register_value(text.split(", ")[1], x) & ~63
    if text.startswith("prfm") or not (LOAD.match(text) or STORE.match(text)):
        return None
    found = MEMORY.search(text)
    if found is None:
        return number(text.rsplit("#", 1)[1])
    base, offset, index, extend, amount, _ = found.groups()
    value = register_value(base, x) + number(offset)
    if index:
        part = register_value(index, x)
        if extend == "sxtw":
            part = (part ^ 1 << 31) - (1 << 31)
        value += part << number(amount)
    return value & MASK64


def access_type(text: str) -> int:
    name = text.split()[0]
    store = 0 if LOAD.match(name) else spe_record.SUBCLASS_STORE
    extended = spe_record.SUBCLASS_ATOMIC if ATOMIC.match(name) else 0
    extended |= spe_record.SUBCLASS_EXCLUSIVE if EXCLUSIVE.match(name) else 0
    extended |= spe_record.SUBCLASS_ACQUIRE_RELEASE if ORDERED.match(name) else 0
    if extended:
        return store | extended | spe_record.SUBCLASS_EXTENDED
    vector = re.match(r"\w+ \{|\w+ [bhsdq]\d", text)
    return store | (spe_record.SUBCLASS_SIMD_FP if vector else 0)


# --- branches -------------------------------------------------------------------------------------------------------


def branch(text: str, pc: int, after: int, x: list[int], elr: int) -> tuple[int, int | None] | None:
    """Subclass, and target if it is taken, of a branch."""
    name, _, operands = text.partition(" ")
    if name in ("b", "bl"):
        return 0, number(operands.lstrip("#"))
    if name.startswith("b.") or name in ("cbz", "cbnz", "tbz", "tbnz"):
        target = number(operands.rsplit("#", 1)[1])
        always = name in ("b.al", "b.nv")
        taken = always or after != pc + 4
        return 0 if always else spe_record.SUBCLASS_CONDITIONAL, target if taken else None
    if name in ("br", "blr", "ret"):
        return spe_record.SUBCLASS_INDIRECT, register_value(operands or "x30", x)
    if name == "eret":
        return spe_record.SUBCLASS_INDIRECT, elr
    return None


CONDITIONAL_DATA = re.compile(r"(cs(el|inc|inv|neg|et|etm)|cinc|cinv|cneg|ccmp|ccmn|fcsel|fccmpe?)\b")
EXCEPTIONS = ("svc", "hvc", "smc")


def operation(word: int, pc: int, el: int, after: int, x: list[int], elr: int, context: int) -> Operation:
    """What an instruction that retired would be as a sample."""
    text = disassemble(word, pc)
    events, target = spe_record.EVENT_RETIRED, None
    va, jump = accessed(text, x), branch(text, pc, after, x, elr)
    if va is not None:
        op_class, subclass = spe_record.OP_LOAD_STORE, access_type(text)
    elif jump is not None:
        op_class, (subclass, target) = spe_record.OP_BRANCH, jump
        events |= spe_record.EVENT_NOT_TAKEN if target is None else 0
    else:
        op_class = spe_record.OP_OTHER
        subclass = spe_record.SUBCLASS_CONDITIONAL if CONDITIONAL_DATA.match(text) else 0
        events |= spe_record.EVENT_EXCEPTION if text.startswith(EXCEPTIONS) else 0
    return Operation(pc, el, text, op_class, subclass, events, target, va, context)


class Recorder:
    """Runs an engine one instruction at a time, and keeps what retired."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.operations: list[Operation] = []
        self._started: list[tuple[int, int, list[int], int, int, int]] = []
        engine._uc.hook_add(UC_HOOK_CODE, self._on_instruction)

    def _on_instruction(self, uc: Uc, address: int, size: int, _: object) -> None:
        engine = self.engine
        x = [*(engine.get_x(n) for n in range(31)), engine.sp]
        elr, context = engine.read_register(*ELR_EL1), engine.read_register(*CONTEXTIDR_EL1)
        word = int.from_bytes(engine.fetch(address) or b"", "little")
        self._started.append((address, engine.el, x, elr, context, word))

    def run(self, limit: int) -> Stop:
        """Up to `limit` instructions."""
        while self.engine.total < limit:
            before = self.engine.total
            stop = self.engine.run(before + 1)
            if self.engine.total == before + 1:
                pc, el, x, elr, context, word = self._started[-1]
                self.operations.append(operation(word, pc, el, self.engine.pc, x, elr, context))
            self._started.clear()
            if stop is not Stop.LIMIT:
                return stop
        return Stop.LIMIT


# --- what a profile makes of them -----------------------------------------------------------------------------------


def features(**given: int) -> SpeFeatures:
    core = new(SpeFeatures)
    for name, value in {"pmsver": 3, "lds": 1, "count_size": 2, "max_size": 6, "align": 6, "fne": 1, **given}.items():
        setattr(core, name, value)
    return core


def everything(**given: int) -> Filter:
    """A filter that rejects nothing."""
    made = new(Filter)
    made.core = features(**given)
    return made


def next_random(state: int) -> int:
    """The generator by its definition: 32 bits, shifts of 13, 17 and 5."""
    state = (state ^ state << 13) & 0xFFFF_FFFF
    state ^= state >> 17
    return (state ^ state << 5) & 0xFFFF_FFFF


@dataclass
class Counter:
    """PMSICR_EL1.COUNT, one operation after the other."""

    profile: Profile
    count: int
    random: int

    @staticmethod
    def of(profile: Profile) -> Counter:
        return Counter(profile, profile.first, profile.random)

    def samples(self) -> bool:
        """Count an operation; whether it is sampled."""
        if self.count == 0:
            self.count = self.profile.period - 1
            if self.profile.jitter:
                self.count += self.random & 0xFF
                self.random = next_random(self.random)
            return False if self.count else self._at_once()
        self.count -= 1
        return self.count == 0

    def _at_once(self) -> bool:
        # A period of one, which no PMSIRR_EL1 has: each operation is sampled.
        return True


def record_of(op: Operation, profile: Profile, time: int) -> bytes | None:
    """The record that a sample of an operation becomes, None where a filter rejects it."""
    sample = new(Sample)
    sample.pc, sample.el, sample.op_class, sample.op_subclass = op.pc, op.el, op.op_class, op.op_subclass
    sample.events, sample.total_latency = op.events, profile.total_latency
    sample.has_target, sample.target = int(op.target is not None), op.target or 0
    sample.has_va, sample.va = int(op.va is not None), op.va or 0
    is_load = op.op_class == spe_record.OP_LOAD_STORE and not op.op_subclass & spe_record.SUBCLASS_STORE
    sample.has_source = int(is_load and profile.filter.core.lds)
    sample.has_context_el1, sample.context_el1 = int(profile.context), op.context
    sample.has_timestamp, sample.timestamp = int(profile.timestamp), time
    if not spe_record.collect_record(profile.filter, sample):
        return None
    out = new(RecordBytes)
    spe_record.construct_record(profile.filter.core, sample, out)
    return bytes(out.data[: out.size])


@dataclass(frozen=True)
class Expected:
    """What an engine must have sampled of some operations."""

    records: tuple[bytes, ...]
    at: tuple[int, ...]
    """The number of each recorded operation, from 1."""
    sampled: int
    left: int
    random: int

    @staticmethod
    def of(operations: list[Operation], profile: Profile) -> Expected:
        """By the counter's rule, for an engine whose clock is the count of instructions, from 0."""
        counter, records, at, sampled = Counter.of(profile), list[bytes](), list[int](), 0
        for i, op in enumerate(operations):
            if not profile.els >> op.el & 1 or not counter.samples():
                continue
            sampled += 1
            record = record_of(op, profile, i)
            if record is not None:
                records.append(record)
                at.append(i + 1)
        return Expected(tuple(records), tuple(at), sampled, counter.count, counter.random)


def split(data: bytes, sizes: tuple[int, ...]) -> tuple[bytes, ...]:
    """The records of some bytes."""
    out = []
    for size in sizes:
        out.append(data[:size])
        data = data[size:]
    assert data == b""
    return tuple(out)


__all__ = ["Counter", "Expected", "Operation", "Recorder", "everything", "features", "record_of", "replace", "split"]
