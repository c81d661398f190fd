"""Where Unicorn keeps a vCPU's state, found by experiment at start-up.

Unicorn's interface has no word for the syndrome of an exception, for the interrupt masks, or for the internal functions
that enter an exception and leave a block: the engine needs all three. Each offset here is measured in a scratch engine
(write a known pattern, look where it went), so another build of the same version works and a different one is refused.
This module is not for running anything: see `engine`.
"""

import ctypes
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from unicorn import UC_ARCH_ARM64, UC_HOOK_BLOCK, UC_HOOK_INTR, UC_MODE_ARM, Uc
from unicorn import arm64_const as uc_const
from unicorn.unicorn_py3.unicorn import uclib

ENV_XREGS = 64
"""X0's offset in the register state that internal functions take: sixteen 32-bit registers come before."""

EXCP_UDEF, EXCP_SWI, EXCP_PREFETCH_ABORT, EXCP_DATA_ABORT, EXCP_IRQ, EXCP_BKPT = 1, 2, 3, 4, 5, 7
EXCP_HVC, EXCP_SMC = 11, 13
"""QEMU's numbers of exceptions, as UC_HOOK_INTR gives them."""

SYSREG = tuple[int, int, int, int, int]
"""op0, op1, CRn, CRm, op2."""

SCR_EL3: SYSREG = (3, 6, 1, 1, 0)
HCR_EL2: SYSREG = (3, 4, 1, 1, 0)
CONTEXTIDR_EL1: SYSREG = (3, 0, 13, 0, 1)


class UnsupportedUnicorn(RuntimeError):
    """Unicorn is not laid out inside as version 2.1.4 is."""


@cache
def internal(name: str) -> int:
    """The address of a function of Unicorn's core that the library exports and its headers do not name."""
    try:
        address = ctypes.cast(getattr(uclib, name + "_aarch64"), ctypes.c_void_p).value
    except AttributeError:
        raise UnsupportedUnicorn(f"this build of Unicorn does not export {name}, as 2.1.4 for Linux does") from None
    assert address is not None
    return address


def exported(name: str) -> int:
    """The address of a function of Unicorn's public interface."""
    address = ctypes.cast(getattr(uclib, name), ctypes.c_void_p).value
    assert address is not None
    return address


def new_unicorn() -> Uc:
    """An engine of Unicorn's whose pages are those of the guest: its own default is 1 KiB.

    With that, each of a guest's pages would count as a large one, whose flush is a flush of everything.
    """
    uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
    uc.ctl_set_page_size(4096)  # before any other access: the first one makes the CPU
    return uc


@dataclass(frozen=True)
class Layout:
    """Offsets in bytes: `cpu` and `tcg` in the engine handle, `cpu_*`, `tcg_*` in those objects, the others from X0."""

    cpu: int
    tcg: int
    tcg_invalidations: int
    cpu_xregs: int
    cpu_exception: int
    cpu_io_pc: int
    cpu_next_block: int
    cpu_pre_el_change: int
    cpu_post_el_change: int
    pc: int
    pstate: int
    daif: int
    ttbr0: int
    ttbr1: int
    contextidr: int
    syndrome: int
    fault_address: int
    target_el: int


def peek(address: int, size: int) -> bytes:
    """Memory of this process, or nothing where there is none (a wild pointer must not end the process)."""
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        try:
            memory.seek(address)
            return memory.read(size)
        except (OSError, OverflowError, ValueError):
            return b""


def words(address: int, count: int) -> npt.NDArray[np.uint64]:
    return np.frombuffer(ctypes.string_at(address, 8 * count), np.uint64)


class Scratch:
    """A throw-away engine to measure."""

    CODE, DATA, MMIO = 0x1000, 0x2000, 0x9000_0000

    def __init__(self) -> None:
        self.uc = new_unicorn()
        self.uc.mem_map(0, 0x10000)
        self.handle: int = self.uc._uch.value
        self.cpu_at, self.cpu, self.x0 = self._find_x0()

    def _find_x0(self) -> tuple[int, int, int]:
        magic = [0xFEED_0000_0000_0000 | i * 0x1111 for i in range(29)]
        for i, value in enumerate(magic):
            self.uc.reg_write(uc_const.UC_ARM64_REG_X0 + i, value)
        pattern = struct.pack("<29Q", *magic)
        # The CPU object is what begins last before its registers; what lies before it in the heap may be near enough.
        found: list[tuple[int, int, int]] = []
        for i, pointer in enumerate(struct.unpack("<256Q", peek(self.handle, 2048))):
            window = peek(pointer, 0x10000) if 0x10000 < pointer < 1 << 47 else b""
            places = (pointer + match.start() for match in re.finditer(re.escape(pattern), window))
            found += [(pointer, 8 * i, x0) for x0 in places if self._follows(x0)]
        if not found:
            raise UnsupportedUnicorn("cannot find the CPU state inside Unicorn")
        cpu, cpu_at, x0 = max(found)
        return cpu_at, cpu, x0

    def _follows(self, x0: int) -> bool:
        """Whether X0 is there, and not a copy of the pattern that a buffer of this search has left in memory."""
        before = int(self.uc.reg_read(uc_const.UC_ARM64_REG_X0))
        changed = self._sets_x0(x0, before ^ 1)
        return self._sets_x0(x0, before) and changed

    def _sets_x0(self, x0: int, value: int) -> bool:
        self.uc.reg_write(uc_const.UC_ARM64_REG_X0, value)
        return peek(x0, 8) == struct.pack("<Q", value)

    def run(self, *code: int) -> None:
        """Run a few instructions at a fresh address (no stale translation) and stop at the end or at an exception."""
        self.uc.ctl_remove_cache(self.CODE, self.CODE + 0x100)
        self.uc.mem_write(self.CODE, struct.pack(f"<{len(code)}I", *code))
        self.uc.emu_start(self.CODE, self.CODE + 4 * len(code))

    def offset(self, change: Callable[[], object], restore: Callable[[], object]) -> int:
        """Where in the register state a change shows; 8-byte granules."""
        before = words(self.x0, 0x200).copy()
        change()
        after = words(self.x0, 0x200).copy()
        restore()
        where = np.flatnonzero(before != after)
        if len(where) == 0:
            raise UnsupportedUnicorn("a register write left no trace in the CPU state")
        return int(where[-1]) * 8

    def register(self, regid: int) -> int:
        old = self.uc.reg_read(regid)
        return self.offset(lambda: self.uc.reg_write(regid, old ^ 0x1230), lambda: self.uc.reg_write(regid, old))

    def system_register(self, encoding: SYSREG) -> int:
        old = self.uc.cpr_read(*encoding)
        return self.offset(lambda: self.uc.cpr_write(*encoding, old ^ 0x1230),
                           lambda: self.uc.cpr_write(*encoding, old))  # fmt: skip


def _exceptions(s: Scratch) -> tuple[int, int]:
    """Offset of the exception number in the CPU object, and of the exception's syndrome in the register state."""
    candidates: set[int] | None = None
    syndromes: list[int] = []

    def on_interrupt(uc: Uc, number: int, _: object) -> None:
        nonlocal candidates
        state = np.frombuffer(ctypes.string_at(s.cpu, s.x0 - s.cpu), np.int32)
        here = set(np.flatnonzero(state == number).tolist())
        candidates = here if candidates is None else candidates & here
        if number == EXCP_SWI:
            syndromes.append(ctypes.string_at(s.x0, 0x2000).find(struct.pack("<I", 0x5600_1234)))
        uc.emu_stop()

    hook = s.uc.hook_add(UC_HOOK_INTR, on_interrupt)
    for word in (0xD4000001 | 0x1234 << 5, 0x00000000, 0xD4200000):  # svc #0x1234, udf #0, brk #0
        s.run(word, 0xD503201F)
    s.uc.hook_del(hook)
    if not candidates or len(candidates) != 1 or syndromes[:1] in ([], [-1]):
        raise UnsupportedUnicorn("cannot find the pending exception inside Unicorn")
    return 4 * candidates.pop(), syndromes[0]


def _io_pc(s: Scratch) -> int:
    """Offset in the CPU object of the host address of the load or store that is doing MMIO."""
    restore = uclib.cpu_restore_state_aarch64
    restore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_bool]
    restore.restype = ctypes.c_bool
    seen: list[npt.NDArray[np.uint64]] = []
    found: set[int] = set()

    def read(uc: Uc, offset: int, size: int, _: object) -> int:
        seen.append(words(s.cpu, (s.x0 - s.cpu) // 8).copy())
        if len(seen) == 2:
            for i in np.flatnonzero(seen[0] != seen[1]).tolist():
                if restore(s.cpu, int(seen[1][i]), False) and uc.reg_read(uc_const.UC_ARM64_REG_PC) == s.CODE + 8:
                    found.add(8 * i)
        return 0

    s.uc.mmio_map(s.MMIO, 0x1000, read, None, None, None)
    s.uc.reg_write(uc_const.UC_ARM64_REG_X1, s.MMIO)
    s.run(0xB9400022, 0xD503201F, 0xB9400822, 0xD503201F)  # ldr w2,[x1]; nop; ldr w2,[x1,#8]; nop
    if len(found) != 1:
        raise UnsupportedUnicorn("cannot find the address of an MMIO access inside Unicorn")
    return found.pop()


def _next_block(s: Scratch) -> int:
    """Offset in the CPU object of how many instructions the next block may have, where that is not -1."""
    lengths: list[int] = []
    hook = s.uc.hook_add(UC_HOOK_BLOCK, lambda uc, address, size, _: lengths.append(size))
    state = np.frombuffer(peek(s.cpu, s.x0 - s.cpu), np.int32)
    for offset in (4 * np.flatnonzero(state == -1)[:16]).tolist():
        word = ctypes.c_int32.from_address(s.cpu + offset)
        word.value = 2
        lengths.clear()
        s.run(*[0xD503201F] * 4)
        found = lengths == [8, 8] and word.value == -1
        word.value = -1
        if found:
            s.uc.hook_del(hook)
            return int(offset)
    raise UnsupportedUnicorn("cannot find how Unicorn limits a block inside it")


def _el_change(s: Scratch, name: str) -> int:
    """Offset in the CPU object of the list of functions called when the exception level changes."""
    wanted = struct.pack("<Q", internal(name))
    base = s.x0 - s.cpu
    for i, pointer in enumerate(words(s.x0, 0x1000).tolist()):
        if 0x10000 < pointer < 1 << 47 and peek(pointer, 8) == wanted:
            return base + 8 * i
    raise UnsupportedUnicorn("cannot find the exception level hooks inside Unicorn")


def _invalidations(s: Scratch) -> tuple[int, int]:
    """Where Unicorn counts the translations that it threw away: offset of the translator, and in it of the count."""
    count = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)(internal("tcg_tb_phys_invalidate_count"))
    ruler = np.arange(0x1000, dtype=np.uint64)
    offset = 8 * count(ruler.ctypes.data)

    def look() -> dict[int, bytes]:
        pointers = enumerate(struct.unpack("<512Q", peek(s.handle, 4096)))
        return {8 * i: peek(p + offset, 8) for i, p in pointers if 0x10000 < p < 1 << 47}

    found: set[int] | None = None
    for _ in range(2):
        s.run(0x14000002, 0xD503201F, 0xD503201F, 0xD503201F)  # b .+8: the branch is a translation of its own
        before = look()
        s.uc.ctl_remove_cache(s.CODE, s.CODE + 4)
        after = look()
        here = {i for i, b in before.items() if len(b) == 8 and _plus_one(b) == after.get(i)}
        found = here if found is None else found & here
    if not found or len(found) != 1:
        raise UnsupportedUnicorn("cannot find the count of dropped translations inside Unicorn")
    return found.pop(), offset


def _plus_one(word: bytes) -> bytes:
    return (int.from_bytes(word, "little") + 1 & (1 << 64) - 1).to_bytes(8, "little")


def _pstate(s: Scratch) -> tuple[int, int]:
    """Offsets of PSTATE (mode bits) and of DAIF, which QEMU keeps apart."""
    reg = uc_const.UC_ARM64_REG_PSTATE
    daif = s.offset(lambda: s.uc.reg_write(reg, 0x0005 | 0x400003C0 ^ 0x3C0), lambda: s.uc.reg_write(reg, 0x400003C5))
    before = ctypes.string_at(s.x0, 0x400)
    s.uc.reg_write(reg, 0x400003C4)
    after = ctypes.string_at(s.x0, 0x400)
    s.uc.reg_write(reg, 0x400003C5)
    where = [i for i in range(len(before)) if before[i] == 5 and after[i] == 4]
    if len(where) != 1 or ctypes.c_uint32.from_address(s.x0 + daif).value != 0x3C0:
        raise UnsupportedUnicorn("cannot find PSTATE inside Unicorn")
    return where[0], daif


def _check_env(s: Scratch) -> None:
    """An internal function must see the register state where we think it is."""
    get_fpscr = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)(internal("vfp_get_fpscr"))
    s.uc.reg_write(uc_const.UC_ARM64_REG_FPCR, 0x0140_0000)
    if get_fpscr(s.x0 - ENV_XREGS) & 0x07C0_0000 != 0x0140_0000:
        raise UnsupportedUnicorn("the register state does not begin where version 2.1.4 has it")


@cache
def layout() -> Layout:
    """Measure this build of Unicorn; the answer holds for the whole process."""
    s = Scratch()
    _check_env(s)
    pstate, daif = _pstate(s)
    exception, syndrome = _exceptions(s)
    tcg, invalidations = _invalidations(s)
    return Layout(
        cpu=s.cpu_at,
        tcg=tcg,
        tcg_invalidations=invalidations,
        cpu_xregs=s.x0 - s.cpu,
        cpu_exception=exception,
        cpu_io_pc=_io_pc(s),
        cpu_next_block=_next_block(s),
        cpu_pre_el_change=_el_change(s, "pmu_pre_el_change"),
        cpu_post_el_change=_el_change(s, "pmu_post_el_change"),
        pc=s.register(uc_const.UC_ARM64_REG_PC),
        pstate=pstate,
        daif=daif,
        ttbr0=s.register(uc_const.UC_ARM64_REG_TTBR0_EL1),
        ttbr1=s.register(uc_const.UC_ARM64_REG_TTBR1_EL1),
        contextidr=s.system_register(CONTEXTIDR_EL1),
        syndrome=syndrome,
        fault_address=syndrome + 8,
        target_el=syndrome + 16,
    )
