"""Whether Unicorn's TLB is as `native_fill` has it, found by experiment, and where the function is that fills it.

Where it is not, the engine works without: stores to executable memory are slower, nothing else is different. In the
experiment a scratch engine translates three addresses, and each entry of the TLB must hold exactly what it should.
"""

import ctypes
import mmap
import struct
from dataclasses import dataclass
from functools import cache

from unicorn import UC_PROT_ALL
from unicorn import arm64_const as uc_const

from pmuvisor.board import cpustate, native_fill
from pmuvisor.board.cpustate import Scratch, peek

_FILL = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                         ctypes.c_bool, ctypes.c_size_t)  # fmt: skip
_RESET = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
NEVER = (1 << 64) - 1
PAGE = 4096
RAM = 0x10_0000
TABLE = 0x4000
GB = 1 << 30
BLOCK, EL0, NO_EXECUTE = 1 | 1 << 10, 1 << 6, 3 << 53
SCTLR_EL1, TTBR0_EL1, TCR_EL1 = (3, 0, 1, 0, 0), (3, 0, 2, 0, 0), (3, 0, 2, 0, 2)
TCR = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23
"""39-bit addresses below, none above."""
SEARCH = 0x4000
"""How far before X0 the tables are looked for."""
NOP = bytes.fromhex("1f2003d5")
CODE = (0xF9400022, 0xF8400864, 0xF90000A6)  # ldr x2, [x1]; ldtr x4, [x3]; str x6, [x5]


@dataclass(frozen=True)
class TlbLayout:
    functions: tuple[int, ...]
    """Offsets in the CPU object of the words that hold `tlb_fill`."""
    tables: int
    """Offset from X0 of the first MMU index's mask and table."""


@cache
def tlb_layout() -> TlbLayout | None:
    """Measure this build of Unicorn; None where it is not to be meddled with."""
    if cpustate.layout().cpu_pre_el_change != native_fill.CPU_EL_CHANGE:
        return None
    try:
        cpustate.internal("tlb_reset_dirty")
        scratch = Scratch()
        wanted = struct.pack("<Q", cpustate.internal("arm_cpu_tlb_fill"))
    except cpustate.UnsupportedUnicorn:
        return None
    state = peek(scratch.cpu, scratch.x0 - scratch.cpu + 0x8000)
    functions = tuple(i for i in range(0, len(state) - 7, 8) if state[i : i + 8] == wanted)
    tables = _Experiment(scratch, functions).tables()
    return None if tables is None else TlbLayout(functions, tables)


class _Experiment:
    """Three pages of memory, seen through a translation table whose virtual addresses are not the physical ones."""

    DATA, EL0_CODE, EL1_CODE = (n * GB + RAM + (n + 4) * PAGE for n in (1, 2, 3))

    def __init__(self, scratch: Scratch, functions: tuple[int, ...]) -> None:
        self.s = scratch
        self.memory = mmap.mmap(-1, 16 * PAGE)
        self.host = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.fills: list[tuple[int, int, int]] = []
        """Page, access and MMU index."""
        self.original = _FILL(cpustate.internal("arm_cpu_tlb_fill"))
        self.spy = _FILL(self._fill)
        for offset in functions:
            ctypes.c_void_p.from_address(scratch.cpu + offset).value = ctypes.cast(self.spy, ctypes.c_void_p).value
        self._map()

    def _fill(self, cpu: int, address: int, size: int, access: int, mmu: int, probe: bool, host_pc: int) -> bool:
        self.fills.append((address & ~(PAGE - 1), access, mmu))
        return bool(self.original(cpu, address, size, access, mmu, probe, host_pc))

    def _map(self) -> None:
        uc = self.s.uc
        uc.mem_map_ptr(RAM, 16 * PAGE, UC_PROT_ALL, self.host)
        uc.mem_write(TABLE, struct.pack("<4Q", BLOCK, BLOCK | NO_EXECUTE, BLOCK | EL0, BLOCK))
        registers = {cpustate.SCR_EL3: 0x501, cpustate.HCR_EL2: 1 << 31, TTBR0_EL1: TABLE, TCR_EL1: TCR, SCTLR_EL1: 1}
        for encoding, value in registers.items():
            uc.cpr_write(*encoding, value)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(cpustate.internal("tlb_flush"))(self.s.cpu)

    def tables(self) -> int | None:
        """Offset of the tables from X0, where everything is as it should be."""
        pages = (self.DATA, self.EL0_CODE, self.EL1_CODE)
        for register, address in zip((1, 3, 5), pages, strict=True):
            self.s.uc.reg_write(uc_const.UC_ARM64_REG_X0 + register, address)
        self.s.run(*CODE)
        found: set[int] | None = None
        for page, access, code in zip(pages, (0, 0, 1), (NEVER, pages[1], pages[2]), strict=True):
            mmu = next((m for p, a, m in self.fills if (p, a) == (page, access)), None)
            here = set() if mmu is None else self._places(page, code, mmu)
            found = here if found is None else found & here
        if found is None or len(found) != 1:
            return None
        base = found.pop()
        return base if self._flags_work(base) else None

    def _places(self, page: int, code: int, mmu: int) -> set[int]:
        """Where the tables may be, by one entry that must be in them."""
        wanted = self._entry(page, code, native_fill.NOT_DIRTY)
        first = self.s.x0 - SEARCH + 16 * mmu
        around = peek(first, SEARCH + 8)
        found = ((at, _entry_address(around, at, page)) for at in range(0, len(around) - 15, 8))
        return {at - SEARCH for at, entry in found if entry and peek(entry, 40) == wanted}

    def _entry(self, page: int, code: int, flags: int) -> bytes:
        physical = page % GB
        words = {native_fill.READ: page, native_fill.WRITE: page | flags, native_fill.CODE: code,
                 native_fill.PHYSICAL: physical, native_fill.ADDEND: self.host + physical - RAM - page}  # fmt: skip
        return struct.pack("<5Q", *(words[at] & NEVER for at in range(0, 40, 8)))

    def _flags_work(self, base: int) -> bool:
        """Whether the flags do what `native_fill` wants of them: tried on the page that EL1 may execute."""
        page = self.EL1_CODE
        mmu = next(m for p, _, m in self.fills if p == page)
        entry = _entry_address(peek(self.s.x0 + base + 16 * mmu, 16), 0, page)
        ctypes.c_uint64.from_address(entry + native_fill.WRITE).value = page
        _RESET(cpustate.internal("tlb_reset_dirty"))(self.s.cpu, self.host + page % GB - RAM, PAGE)
        if peek(entry, 40) != self._entry(page, page, native_fill.NOT_DIRTY):
            return False
        ctypes.c_uint64.from_address(entry + native_fill.CODE).value = page | native_fill.INVALID
        self.s.uc.mem_write(page % GB, NOP)
        self.s.uc.emu_start(page, page + 4)
        return (page, native_fill.FETCH, mmu) in self.fills


def _entry_address(tables: bytes, at: int, page: int) -> int:
    """Address of a page's entry in the table whose mask and address are there; 0 where they cannot be."""
    mask, table = struct.unpack_from("<2Q", tables, at)
    size = 1 << native_fill.ENTRY_BITS
    if mask % size or mask & (mask + size) or mask >> 32 or not 0x10000 < table < 1 << 47:
        return 0
    index = (page >> 12) & (mask >> native_fill.ENTRY_BITS)
    return int(table + index * size)
