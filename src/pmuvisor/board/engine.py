"""One guest CPU: Unicorn with exact counts, exact stops and an architecture around it.

`Engine` runs instructions of EL1 and EL0 until a count is reached, an interrupt may be taken, or the guest asks for
something that is not a CPU's business. It knows no machine: which registers and devices exist, when an interrupt line
is high and what time costs is the caller's to say.

What each lane counts, after the Arm ARM's events (D13, "PMU events and event numbers"); where the manual leaves a
choice, the choice is named:

INST        0x08. SVC, HVC, SMC, WFI and ERET retire. An instruction that faults, is UNDEFINED or traps does not, nor
            does BRK, whose exception returns to itself.
LD, ST      0x06, 0x07. One for each memory-reading or -writing instruction: a pair or a structure is one, a
            read-modify-write atomic is one of each, a prefetch none. DC ZVA is a store. Choice: a store-exclusive that
            fails is a store.
MEM         0x13. LD + ST.
BR          0x21. Every branch, taken or not. Choice: ERET and exception-generating instructions are not branches.
BR_IMMED    0x0D. B, BL, B.cond, CBZ, CBNZ, TBZ, TBNZ, taken or not.
BR_RETURN   0x0E. RET; not ERET.
PC_WRITE    0x0C. Branches that are taken, and ERET. Choice: SVC and its like are not counted. A conditional branch to
            the very next instruction counts as not taken.
EXC_TAKEN   0x09. By the level it was taken from. HVC and SMC, which leave the guest, are not counted.
EXC_RETURN  0x0A. ERET, by the level it was executed at; not one that was illegal.

A limit: Unicorn's CPU does not check the alignment of SP, so SCTLR_EL1.SA and SA0 have no effect.
"""

import ctypes
import itertools
import mmap
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import numpy as np
import numpy.typing as npt
from unicorn import (
    UC_HOOK_BLOCK,
    UC_HOOK_INSN,
    UC_HOOK_INTR,
    UC_HOOK_MEM_FETCH_PROT,
    UC_HOOK_MEM_INVALID,
    UC_PROT_ALL,
    UC_PROT_EXEC,
    UcError,
)
from unicorn import arm64_const as uc_const
from unicorn.unicorn_py3.unicorn import uclib

from pmuvisor.arch.sysreg import encode
from pmuvisor.board import cpustate, engine_fill, native, native_decode, native_fill
from pmuvisor.board import engine_registers as registers
from pmuvisor.board.engine_profile import Profile, Profiler, Records
from pmuvisor.board.engine_registers import Action
from pmuvisor.board.native_memory import CFunction

__all__ = ["Action", "Barrier", "Engine", "EngineFailure", "GuestMemory", "Lane", "MemoryBoundsError", "Stop", "Watch"]

RAM_BASE = 0x4000_0000
MASK64 = (1 << 64) - 1
PSTATE_EL1H_MASKED = 0x3C5
SCTLR_EL1_RESET = 0x00C5_0838
PHYSICAL_END = 1 << 44
"""The first address that is not physical: ID_AA64MMFR0_EL1.PARange."""
TABLE_END = 1 << 48
"""The first address that a translation table cannot name."""
PROBE = 0x5EED_0000_1234_5678
PC_ALIGNMENT_ESR = 0x22 << 26 | 1 << 25
ILLEGAL_STATE_ESR = 0x0E << 26 | 1 << 25

MmioRead = Callable[[int, int], int]
MmioWrite = Callable[[int, int, int], None]
OnSysreg = Callable[[int, bool, int], int]


class Lane(IntEnum):
    """An event that the engine counts; see the module's text."""

    INST = native.INST
    LD = native.LD
    ST = native.ST
    MEM = native.MEM
    BR = native.BR
    BR_IMMED = native.BR_IMMED
    BR_RETURN = native.BR_RETURN
    PC_WRITE = native.PC_WRITE
    EXC_TAKEN = native.EXC_TAKEN
    EXC_RETURN = native.EXC_RETURN


class Stop(IntEnum):
    """Why `run` returned."""

    LIMIT = 0
    WATCH = 1
    IRQ = 2
    """The interrupt line is high and unmasked: call `take_irq`."""
    WFI = 3
    """The PC is past the WFI."""
    HVC = 4
    """The PC is past the HVC; its immediate is `immediate`."""
    SMC = 5
    REQUEST = 6
    STUCK = 7
    """Exceptions are taken for ever without one instruction retiring."""
    FAILED = 8
    """The engine cannot go on; `failure` says why."""
    PROFILE = 9
    """There are as many records as the profile has room for."""
    BARRIER = 10
    """The PC is past one of `barriers`; `barrier` says which."""


class Barrier(IntFlag):
    """Instructions that a run can be stopped behind."""

    PSB = native_decode.BARRIER_PSB
    """PSB CSYNC."""
    DSB = native_decode.BARRIER_DSB
    """With any option; SSBB and PSSBB are two of them."""
    ISB = native_decode.BARRIER_ISB


@dataclass(frozen=True)
class Watch:
    """Stop when the sum of some lanes at some exception levels reaches a value."""

    lanes: int
    """Bit mask over `Lane`."""
    els: int
    """Bit 0: EL0; bit 1: EL1."""
    target: int
    """The sum, counted since the engine was created."""


class EngineFailure(RuntimeError):
    """Unicorn refused something that it cannot refuse to a well-formed engine."""


class MemoryBoundsError(ValueError):
    """An access to guest memory outside of it."""


class GuestMemory:
    """The RAM that all vCPUs of a machine share. Pages take no room in the host until they are used."""

    def __init__(self, size: int, base: int = RAM_BASE) -> None:
        """`size` and `base` in bytes, multiples of 4096."""
        if size <= 0 or size % 4096 or base % 4096:
            raise ValueError(f"guest memory of {size} bytes at {base:#x} is not made of 4096-byte pages")
        self.base = base
        self.size = size
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._map = mmap.mmap(-1, size, flags=flags)
        self._view = memoryview(self._map)
        self.host_address: int = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def _offset(self, address: int, length: int) -> int:
        offset = address - self.base
        if offset < 0 or offset + length > self.size:
            end = self.base + self.size
            raise MemoryBoundsError(f"{length} bytes at {address:#x} are outside of RAM ({self.base:#x} to {end:#x})")
        return offset

    def read(self, address: int, length: int) -> bytes:
        """Bytes at a physical address."""
        offset = self._offset(address, length)
        return bytes(self._view[offset : offset + length])

    def write(self, address: int, data: bytes) -> None:
        """Put bytes at a physical address. Engines that may have run code there need `invalidate_code`."""
        offset = self._offset(address, len(data))
        self._view[offset : offset + len(data)] = data


_SYSREG_CALL = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_MMIO_CALL = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def _c_function(name: str, restype: type | None, *argtypes: type) -> Callable[..., int]:
    """A function of Unicorn's core by address (not by the library's shared object, whose types others may set)."""
    return ctypes.CFUNCTYPE(restype, *argtypes)(cpustate.internal(name))


class Engine:
    """One vCPU."""

    def __init__(self, ram: GuestMemory, on_sysreg: OnSysreg) -> None:
        """`on_sysreg(key, write, value)` does accesses whose action is CALL; what it returns is what an MRS reads."""
        self.ram = ram
        self.failure = ""
        self.immediate = 0
        self.barrier = Barrier(0)
        """The barrier that the last Stop.BARRIER was for."""
        self._on_sysreg = on_sysreg
        self._raised: BaseException | None = None
        self._in_callback = False
        self._limit = 0
        self._profiler: Profiler | None = None
        self._regions: list[object] = []
        self._layout = cpustate.layout()
        self._uc = cpustate.new_unicorn()
        self._handle: int = self._uc._uch.value
        self._uc.reg_write(uc_const.UC_ARM64_REG_X5, PROBE)  # the first access makes the CPU
        self._cpu = ctypes.c_uint64.from_address(self._handle + self._layout.cpu).value
        self._xregs = self._cpu + self._layout.cpu_xregs
        self._env = self._xregs - cpustate.ENV_XREGS
        self._check_build()
        self._st = np.zeros(native.STATE_WORDS, np.int64)
        self._fast = self._st.data  # the same words, at half the price of NumPy's for one at a time
        self._at_state: int = self._st.ctypes.data
        self._words = np.zeros(1024, np.int64)
        self._rows = np.zeros(native.ROWS * native.ROW_WORDS, np.int64)
        self._actions = np.zeros(1 << 16, np.uint8)
        self._values = np.zeros(1 << 16, np.int64)
        self._special = np.zeros(1 << 16, np.uint8)
        self._call_sysreg = _SYSREG_CALL(self._sysreg)
        self._bind_functions()
        self._bind_state()
        self._fill_registers()
        self._map_ram()
        self._uc.ctl_exits_enabled(True)
        self._uc.ctl_set_exits([])
        self._map_far_addresses()
        self._hook()
        self._replace_fill()
        self.start(ram.base)

    # --- construction -----------------------------------------------------------------------------------------------

    def _check_build(self) -> None:
        if (uc_const.UC_ARM64_REG_CP_REG, uc_const.UC_ARM64_REG_X0) != (native.REG_CP, native.REG_X0):
            raise cpustate.UnsupportedUnicorn("Unicorn's register numbers are not those of version 2.1.4")
        if not self._cpu or ctypes.c_uint64.from_address(self._xregs + 40).value != PROBE:
            raise cpustate.UnsupportedUnicorn("the CPU state is not where a scratch engine had it")

    def _bind_functions(self) -> None:
        p, u = ctypes.c_void_p, ctypes.c_uint64
        self._do_interrupt = _c_function("arm_cpu_do_interrupt", None, p)
        self._rebuild_flags = _c_function("arm_rebuild_hflags", None, p)
        self._tlb_flush = _c_function("tlb_flush", None, p)
        self._drop_code = _c_function("tb_invalidate_phys_range", None, p, u, u)
        self._drop_all_code = _c_function("tb_flush", None, p)
        self._emu_start = ctypes.CFUNCTYPE(ctypes.c_int, p, u, u, u, ctypes.c_size_t)(cpustate.exported("uc_emu_start"))
        self._counts = ctypes.CFUNCTYPE(None, p)(native.on_counts.address)
        self._forget_decoded = ctypes.CFUNCTYPE(None, p)(native.on_forget.address)
        self._block_done = ctypes.CFUNCTYPE(None, p)(native.on_block_done.address)

    def _bind_state(self) -> None:
        st, at, x0, cpu = self._st, self._layout, self._xregs, self._cpu
        tcg = ctypes.c_uint64.from_address(self._handle + at.tcg).value
        words = {
            native.SELF: st.ctypes.data, native.UC: self._handle, native.CPU: cpu, native.ENV: self._env,
            native.XREGS: x0, native.AT_PC: x0 + at.pc, native.AT_PSTATE: x0 + at.pstate, native.AT_DAIF: x0 + at.daif,
            native.AT_SYNDROME: x0 + at.syndrome, native.AT_FAULT: x0 + at.fault_address,
            native.AT_TARGET_EL: x0 + at.target_el, native.AT_EXCEPTION: cpu + at.cpu_exception,
            native.AT_IO_PC: cpu + at.cpu_io_pc, native.AT_NEXT_BLOCK: cpu + at.cpu_next_block,
            native.AT_TTBR0: x0 + at.ttbr0, native.AT_TTBR1: x0 + at.ttbr1,
            native.AT_INVALIDATIONS: tcg + at.tcg_invalidations,
            native.AT_WORDS: self._words.ctypes.data, native.AT_ROWS: self._rows.ctypes.data,
            native.AT_ACTIONS: self._actions.ctypes.data, native.AT_VALUES: self._values.ctypes.data,
            native.AT_SPECIAL: self._special.ctypes.data, native.CLOCK_MUL: 1, native.CLOCK_DIV: 1,
            native.FALL: native.NOWHERE,
            native.FN_STOP: cpustate.exported("uc_emu_stop"), native.FN_RAISE: cpustate.internal("raise_exception"),
            native.FN_LEAVE: cpustate.internal("cpu_loop_exit_noexc"),
            native.FN_INTERRUPT: cpustate.internal("arm_cpu_do_interrupt"),
            native.FN_RESTORE: cpustate.internal("cpu_restore_state"),
            native.FN_TLB_FLUSH: cpustate.internal("tlb_flush"),
            native.FN_DROP_CODE: cpustate.internal("tb_invalidate_phys_range"),
            native.RAM_BASE: self.ram.base,
            native.RAM_SIZE: self.ram.size,
            native.FN_REG_WRITE: cpustate.exported("uc_reg_write"),
            native.FN_VMEM_READ: cpustate.exported("uc_vmem_read"),
            native.FN_VMEM_TRANSLATE: cpustate.exported("uc_vmem_translate"),
            native.FN_CLOCK: _address(ctypes.CDLL(None).clock_gettime),
            native.FN_SYSREG: _address(self._call_sysreg),
            native.FN_SLOW_BLOCK: native.on_slow_block.address, native.FN_FILL_ROW: native.on_row_miss.address,
        }  # fmt: skip
        for index, value in words.items():
            st[index] = value

    def _fill_registers(self) -> None:
        for number, (action, value) in registers.defaults().items():
            self.set_action(number, action, value)
        for number, special in registers.SPECIAL.items():
            self._special[number] = special

    def _map_ram(self) -> None:
        self._check(uclib.uc_mem_map_ptr(self._uc._uch, ctypes.c_uint64(self.ram.base), ctypes.c_size_t(self.ram.size),
                                         UC_PROT_ALL, ctypes.c_void_p(self.ram.host_address)), "map RAM")  # fmt: skip

    def _check(self, error: int, what: str) -> None:
        if error:
            raise EngineFailure(f"Unicorn cannot {what}: {UcError(error)}")

    def _hook(self) -> None:
        data = ctypes.c_void_p(self._st.ctypes.data)
        hooks = [(UC_HOOK_BLOCK, native.on_block, 0), (UC_HOOK_INTR, native.on_exception, 0),
                 (UC_HOOK_INSN, native.on_read, uc_const.UC_ARM64_INS_MRS),
                 (UC_HOOK_INSN, native.on_read, uc_const.UC_ARM64_INS_SYSL),
                 (UC_HOOK_INSN, native.on_write, uc_const.UC_ARM64_INS_MSR),
                 (UC_HOOK_INSN, native.on_write, uc_const.UC_ARM64_INS_SYS)]  # fmt: skip
        for kind, function, instruction in hooks:
            self._add_hook(kind, function, instruction)
        self._add_hook(UC_HOOK_MEM_INVALID, native.on_unmapped, 0, 0, self.ram.base - 1)
        self._add_hook(UC_HOOK_MEM_INVALID, native.on_unmapped, 0, self.ram.base + self.ram.size, PHYSICAL_END - 1)
        for offset, function in ((self._layout.cpu_pre_el_change, native.on_el_change),
                                 (self._layout.cpu_post_el_change, native.on_el_changed)):  # fmt: skip
            entry = ctypes.c_uint64.from_address(self._cpu + offset).value
            ctypes.c_uint64.from_address(entry).value = function.address
            ctypes.c_uint64.from_address(entry + 8).value = data.value or 0

    def _add_hook(self, kind: int, function: CFunction, instruction: int, first: int = 1, last: int = 0) -> None:
        """Install a hook for addresses from `first` to `last`, for all where that is empty."""
        handle = ctypes.c_size_t()
        error = uclib.uc_hook_add(
            self._uc._uch,
            ctypes.byref(handle),
            kind,
            ctypes.c_void_p(function.address),
            ctypes.c_void_p(self._st.ctypes.data),
            ctypes.c_uint64(first),
            ctypes.c_uint64(last),
            ctypes.c_int(instruction),
        )
        self._check(error, "install a hook")

    def _map_far_addresses(self) -> None:
        """Let accesses beyond the physical addresses, which a guest's tables can name, abort.

        They are made a device, since a hook there would be dear: Unicorn compares a hook's range with the physical
        address where memory is unmapped, but also with the virtual ones of stores, which go down a slow path if in it.
        A hook for fetches alone does not.
        """
        data = ctypes.c_void_p(self._st.ctypes.data)
        read, write = (ctypes.c_void_p(f.address) for f in (native.on_far_read, native.on_far_write))
        size = ctypes.c_size_t(TABLE_END - PHYSICAL_END)
        error = uclib.uc_mmio_map(self._uc._uch, ctypes.c_uint64(PHYSICAL_END), size, read, data, write, data)
        self._check(error, "map what is not memory")
        self._add_hook(UC_HOOK_MEM_FETCH_PROT, native.on_unmapped, 0, PHYSICAL_END, TABLE_END - 1)

    def _replace_fill(self) -> None:
        """Keep stores to pages that could be executed, but are not, off Unicorn's slow path, where that is possible."""
        layout = engine_fill.tlb_layout()
        if layout is None:
            return
        self._pages = np.zeros(self.ram.size >> 12, np.uint8)
        self._st[native.AT_PAGES] = self._pages.ctypes.data
        self._st[native.AT_TLB] = self._xregs + layout.tables
        self._st[native.FN_FILL] = cpustate.internal("arm_cpu_tlb_fill")
        self._st[native.FN_RESET_DIRTY] = cpustate.internal("tlb_reset_dirty")
        for offset in layout.functions:
            ctypes.c_uint64.from_address(self._cpu + offset).value = native_fill.on_fill.address

    # --- state of the CPU -------------------------------------------------------------------------------------------

    def _word(self, offset: int) -> ctypes.c_uint64:
        return ctypes.c_uint64.from_address(self._xregs + offset)

    @property
    def pc(self) -> int:
        """Address of the next instruction; in an MMIO or system register callback that of the accessing one."""
        return self._word(self._layout.pc).value

    @pc.setter
    def pc(self, value: int) -> None:
        self._settle()
        self._word(self._layout.pc).value = value

    @property
    def pstate(self) -> int:
        """PSTATE in the form of an SPSR."""
        return int(self._uc.reg_read(uc_const.UC_ARM64_REG_PSTATE))

    @pstate.setter
    def pstate(self, value: int) -> None:
        self._settle()
        self._bank_sp(value)
        self._uc.reg_write(uc_const.UC_ARM64_REG_PSTATE, value)
        self._rebuild_flags(self._env)

    def _bank_sp(self, pstate: int) -> None:
        """SP is a copy of the selected SP_ELx: put it back before another is selected."""
        banks = (uc_const.UC_ARM64_REG_SP_EL0, uc_const.UC_ARM64_REG_SP_EL1)
        old, new = self.pstate, pstate
        self._uc.reg_write(banks[int(old & 0xD == 5)], self.sp)
        self.sp = int(self._uc.reg_read(banks[int(new & 0xD == 5)]))

    @property
    def el(self) -> int:
        """The exception level, 0 or 1."""
        return (ctypes.c_uint32.from_address(self._xregs + self._layout.pstate).value >> 2) & 3

    @property
    def sp(self) -> int:
        """The selected stack pointer."""
        return self._word(8 * 31).value

    @sp.setter
    def sp(self, value: int) -> None:
        self._word(8 * 31).value = value

    def get_x(self, n: int) -> int:
        """X0 to X30; X31 reads as zero."""
        return self._word(8 * n).value if 0 <= n < 31 else 0

    def set_x(self, n: int, value: int) -> None:
        """Set X0 to X30; a write to X31 is ignored."""
        if 0 <= n < 31:
            self._word(8 * n).value = value

    def read_register(self, op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
        """A register that Unicorn holds, as the engine and not as the guest sees it."""
        return int(self._uc.cpr_read(op0, op1, crn, crm, op2))

    def write_register(self, op0: int, op1: int, crn: int, crm: int, op2: int, value: int) -> None:
        """Write a register that Unicorn holds; follow a change of translation with `flush_tlb`."""
        self._uc.cpr_write(op0, op1, crn, crm, op2, value)

    def start(self, pc: int, x0: int = 0) -> None:
        """Put the CPU in the state in which PSCI CPU_ON starts one: EL1h, interrupts masked, MMU off."""
        self._settle()
        self._uc.reg_write(uc_const.UC_ARM64_REG_PSTATE, PSTATE_EL1H_MASKED)
        for n in range(32):
            self._word(8 * n).value = 0
        for name in ("TCR_EL1", "TTBR0_EL1", "TTBR1_EL1", "CPACR_EL1", "SPSR_EL1", "ELR_EL1", "SP_EL0", "ESR_EL1",
                     "FAR_EL1", "MAIR_EL1", "VBAR_EL1", "CONTEXTIDR_EL1", "TPIDR_EL1", "CSSELR_EL1",
                     "TPIDR_EL0", "TPIDRRO_EL0"):  # fmt: skip
            self.write_register(*registers.PASS[name], 0)
        self._uc.reg_write(uc_const.UC_ARM64_REG_SP_EL1, 0)
        self._uc.reg_write(uc_const.UC_ARM64_REG_FPCR, 0)
        self.write_register(*registers.PASS["SCTLR_EL1"], SCTLR_EL1_RESET)
        # Non-secure below a 64-bit EL2 and EL3 that are not there for the guest: HVC reaches the engine, nothing else.
        self.write_register(*cpustate.SCR_EL3, 1 | 1 << 8 | 1 << 10)
        self.write_register(*cpustate.HCR_EL2, 1 << 31)
        for encoding in registers.STORE.values():
            self._values[encode(*encoding)] = 0
        self._word(self._layout.pc).value = pc
        self.set_x(0, x0)
        self._rebuild_flags(self._env)
        self.flush_tlb()

    def fetch(self, address: int) -> bytes | None:
        """The instruction word at a virtual address, or None where the guest could not execute."""
        buffer = ctypes.create_string_buffer(4)
        error = uclib.uc_vmem_read(self._uc._uch, ctypes.c_uint64(address), UC_PROT_EXEC, buffer, ctypes.c_size_t(4))
        return None if error else buffer.raw

    # --- what the machine offers the guest --------------------------------------------------------------------------

    def set_action(self, number: int, action: Action, value: int = 0) -> None:
        """Say what an access to a system register does. `number` is its key (`sysreg.encode`)."""
        if action is Action.PASS and number not in registers.defaults():
            raise ValueError(f"{number:#x} is not a register that can be left to Unicorn")
        self._actions[number] = action
        self._values[number] = _signed(value)

    def map_mmio(self, base: int, size: int, read: MmioRead, write: MmioWrite) -> None:
        """Put a device at physical `base`; `read(offset, size)` and `write(offset, size, value)` in bytes.

        A 64-bit access arrives as two of 32 bits, the lower first.
        """

        def on_read(offset: int, width: int, _: int) -> int:
            return _signed(self._guard(lambda: read(offset, width)) or 0)

        def on_write(offset: int, width: int, value: int) -> int:
            self._guard(lambda: write(offset, width, value & MASK64))
            return 0

        calls = (_MMIO_CALL(on_read), _MMIO_CALL(on_write))
        region = np.array([self._st.ctypes.data, *map(_address, calls)], np.int64)
        self._regions.append((calls, region))
        data = ctypes.c_void_p(region.ctypes.data)
        error = uclib.uc_mmio_map(self._uc._uch, ctypes.c_uint64(base), ctypes.c_size_t(size),
                                  ctypes.c_void_p(native.on_mmio_read.address), data,
                                  ctypes.c_void_p(native.on_mmio_write.address), data)  # fmt: skip
        self._check(error, f"map a device of {size:#x} bytes at {base:#x}")

    def _sysreg(self, number: int, write: int, value: int) -> int:
        return _signed(self._guard(lambda: self._on_sysreg(number, bool(write), value & MASK64)) or 0)

    def _guard(self, callback: Callable[[], int | None]) -> int | None:
        """Run the machine's code inside Unicorn's: an exception must wait until Unicorn has returned."""
        self._in_callback = True
        try:
            return callback()
        except BaseException as error:  # KeyboardInterrupt too: re-raised by run()
            self._raised = self._raised or error
            self.request_stop()
            return None
        finally:
            self._in_callback = False

    # --- counts and conditions --------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Instructions retired since creation, at all levels; in a callback those before the accessing one.

        Exact there too, but for a device that answers the table walk of a block's load or store: then the PC, and so
        the count, may lie up to one block back.
        """
        self._counts(self._at_state)
        return int(self._fast[native.COPY] + self._fast[native.COPY + native.N_LANES])

    def counts(self) -> npt.NDArray[np.int64]:
        """All lanes since creation, by EL0 and EL1; exact as `total` is."""
        self._counts(self._at_state)
        copy = self._st[native.COPY : native.COPY + 2 * native.N_LANES].copy()
        return copy.reshape(2, native.N_LANES)

    def watch(self, watches: Sequence[Watch]) -> None:
        """Replace what `run` stops for besides its limit. `run` returns WATCH until a reached one is taken away."""
        if len(watches) > native.N_WATCHES:
            raise ValueError(f"{len(watches)} watches, at most {native.N_WATCHES}")
        for i, w in enumerate(watches):
            at = native.WATCH + 3 * i
            self._st[at : at + 3] = (w.lanes, w.els, min(w.target, (1 << 63) - 1))
        self._st[native.N_WATCH] = len(watches)
        self._look_soon()

    @property
    def detail(self) -> bool:
        """Whether the lanes are counted that need decoding: LD, ST, MEM, BR, BR_IMMED, BR_RETURN, PC_WRITE.

        To be set between runs or in `on_sysreg`; in an MMIO callback the block in progress would be counted wrongly.
        """
        return bool(self._st[native.DETAIL])

    @detail.setter
    def detail(self, on: bool) -> None:
        if on == self.detail:
            return
        self._settle()
        self._st[native.DETAIL] = int(on)
        self._st[native.DECODE] = int(on or self.barriers)

    @property
    def barriers(self) -> Barrier:
        """Behind which barriers `run` stops, at once and with Stop.BARRIER. To be set between runs or in `on_sysreg`.

        Every block is looked up while there are any, which costs what `detail` does.
        """
        return Barrier(int(self._st[native.BARRIERS]))

    @barriers.setter
    def barriers(self, mask: Barrier) -> None:
        if mask == self.barriers:
            return
        self._st[native.BARRIERS] = int(mask)
        self._st[native.DECODE] = int(mask or self.detail)
        self._forget_decoded(self._at_state)
        self._look_soon()

    @property
    def irq_line(self) -> bool:
        """The level of the interrupt line; it may be set in callbacks too."""
        return bool(self._st[native.IRQ])

    @irq_line.setter
    def irq_line(self, high: bool) -> None:
        self._st[native.IRQ] = int(high)
        self._values[registers.ISR_EL1] = 0x80 if high else 0
        self._look_soon()

    def request_stop(self) -> None:
        """Let `run` return REQUEST at the next block boundary; after a system register access, right after it."""
        self._st[native.REQUEST] |= native.REQUEST_STOP
        self._look_soon()

    def set_clock(self, origin: int, per_instruction: int, per_tick: int) -> None:
        """Set what the generic counter reads: (`origin` + `total` * `per_instruction`) // `per_tick`, modulo 2^64.

        All three are in one unit of time, whatever it is: no count is ever rounded twice.
        """
        if per_instruction < 0 or per_tick < 1:
            raise ValueError(f"{per_instruction} units for an instruction and {per_tick} for a tick: at least 0 and 1")
        ticks, rest = divmod(origin, per_tick)
        st = self._st
        st[native.CLOCK_BASE], st[native.CLOCK_REST] = _signed(ticks), rest
        st[native.CLOCK_MUL], st[native.CLOCK_DIV] = per_instruction, per_tick

    def advance_clock(self, units: int) -> None:
        """Let time pass without an instruction, in the unit of `set_clock`. In callbacks too."""
        self._fast[native.CLOCK_REST] += units

    def lower_limit(self, limit: int) -> None:
        """End the run in progress at `limit`, if that is below what `run` was given.

        In callbacks. A limit that is reached already ends it at the next block boundary; after a system register
        access, right after it.
        """
        if limit < self._limit:
            self._limit = limit
            if limit < self._fast[native.LIMIT]:
                self._fast[native.LIMIT] = limit
            self._look_soon()

    # --- profiling --------------------------------------------------------------------------------------------------

    def profile(self, profile: Profile | None) -> None:
        """Sample operations from now on as `profile` says, or no more; see `engine_profile`.

        To be set between runs or in `on_sysreg`, whose access is then the first operation if it retires, but not in an
        MMIO callback. Records that were not taken stay. ValueError for a profile that cannot be.
        """
        if self._profiler is None:
            if profile is None:
                return
            self._profiler = Profiler(self._st, self._xregs + self._layout.contextidr, self._zva_bytes())
        if self._st[native.IN_MMIO]:
            raise EngineFailure("an MMIO access cannot change what is sampled")
        self._profiler.set(profile, self.counts())
        self._look_soon()

    def take_records(self) -> Records:
        """The records since the last call. Between runs and in callbacks, exact there as `counts` is."""
        if self._profiler is None:
            return Records(b"", (), 0, 0, 0, 0)
        return self._profiler.take(self.counts())

    def _zva_bytes(self) -> int:
        return 4 << (self.read_register(*registers.PASS["DCZID_EL0"]) & 15)

    # --- exceptions -------------------------------------------------------------------------------------------------

    def take_irq(self) -> None:
        """Take an IRQ exception now, between two runs. The caller has seen Stop.IRQ: PSTATE.I is not checked."""
        self._enter(cpustate.EXCP_IRQ, None, None)

    def inject(self, esr: int, far: int | None = None) -> None:
        """Take a synchronous exception to EL1, with this syndrome and, if given, this faulting address.

        In `on_sysreg`: the accessing instruction takes it, and does not complete. Between two runs: the instruction at
        the PC does. Not in MMIO callbacks.
        """
        number = cpustate.EXCP_UDEF if far is None else cpustate.EXCP_DATA_ABORT
        if self._in_callback:
            if self._st[native.IN_MMIO]:
                raise EngineFailure("an MMIO access cannot take an exception")
            if far is not None:
                self._word(self._layout.fault_address).value = far & MASK64
            self._st[native.INJECT_ESR] = esr
            self._st[native.INJECT] = number
        else:
            self._enter(number, esr, far)

    def _enter(self, number: int, esr: int | None, far: int | None) -> None:
        self._settle()
        self._st[native.COUNT + self.el * native.N_LANES + native.EXC_TAKEN] += 1
        if esr is not None:
            ctypes.c_uint32.from_address(self._xregs + self._layout.syndrome).value = esr
        if far is not None:
            self._word(self._layout.fault_address).value = far & MASK64
        ctypes.c_uint32.from_address(self._xregs + self._layout.target_el).value = 1
        exception = ctypes.c_int32.from_address(self._cpu + self._layout.cpu_exception)
        exception.value = number
        self._st[native.ILLEGAL_SPSR] = 0
        self._st[native.IN_ENTRY] = 1
        self._do_interrupt(self._cpu)
        self._st[native.IN_ENTRY] = 0
        exception.value = -1

    def _look_soon(self) -> None:
        """Send the next block the slow way, where conditions are looked at."""
        st = self._fast
        st[native.SLACK_BASE] -= st[native.SLACK] + 1
        st[native.SLACK] = -1

    def _settle(self) -> None:
        """Bring the lanes up to date before something else than the guest moves the PC or the level."""
        self._counts(self._st.ctypes.data)
        fall, at = int(self._st[native.FALL]), native.COUNT + self.el * native.N_LANES + native.PC_WRITE
        if fall not in (native.NOWHERE, _signed(self.pc)):
            self._st[at] += 1
        self._st[native.FALL] = native.NOWHERE

    # --- code and translation ---------------------------------------------------------------------------------------

    @property
    def code_changed(self) -> bool:
        """The guest executed an IC instruction that concerns all CPUs, since `take_code_changes`."""
        return bool(self._st[native.CODE_CHANGED])

    def take_code_changes(self) -> list[int] | None:
        """The physical pages that IC instructions named, None for all; clears `code_changed`.

        What it returns is for `invalidate_code` of every other engine on this memory.
        """
        st, n = self._st, int(self._st[native.N_CODE_PAGES])
        pages = None if st[native.CODE_ALL] else [int(p) for p in st[native.PAGES : native.PAGES + n]]
        st[native.CODE_CHANGED] = st[native.CODE_ALL] = st[native.N_CODE_PAGES] = 0
        return pages

    def invalidate_code(self, pages: Iterable[int] | None = None) -> None:
        """Forget translated code: of these physical pages, or all. Between runs only."""
        self._forget_decoded(self._st.ctypes.data)
        if pages is None:
            self._drop_all_code(self._cpu)
            return
        for page in pages:
            offset = page - self.ram.base
            if 0 <= offset < self.ram.size:
                self._drop_code(self._handle, offset, offset + 4096)

    @property
    def tlb_changed(self) -> bool:
        """The guest executed a TLBI that concerns all CPUs; the machine clears it when it has told them."""
        return bool(self._st[native.TLB_CHANGED])

    @tlb_changed.setter
    def tlb_changed(self, value: bool) -> None:
        self._st[native.TLB_CHANGED] = int(value)

    def flush_tlb(self) -> None:
        """Forget all translations. Between runs only."""
        self._tlb_flush(self._cpu)
        self._forget_decoded(self._st.ctypes.data)

    # --- running ----------------------------------------------------------------------------------------------------

    def run(self, limit: int) -> Stop:
        """Run until `total` is exactly `limit`, or until there is another reason to stop.

        What a callback raised is raised here, after its instruction has completed.
        """
        st = self._st
        self._limit = limit
        while True:
            st[native.LIMIT] = self._limit
            stop = self._condition()
            if stop is not None:
                return stop
            error = self._slice()
            if error:
                self.failure = f"Unicorn stopped at {self.pc:#x}: {UcError(error)}"
                return Stop.FAILED
            stop = self._outcome(int(st[native.WHY]))
            if stop is not None:
                return stop

    def _condition(self) -> Stop | None:
        """A reason not to run the instruction at the PC; takes the exceptions that the PC itself causes."""
        st = self._st
        if self._raised is not None:
            raised, self._raised = self._raised, None
            st[native.REQUEST] = 0
            raise raised
        if st[native.REQUEST]:
            request = int(st[native.REQUEST])
            st[native.REQUEST] = 0
            if request & native.REQUEST_FORGET:
                self.invalidate_code()
            if request & native.REQUEST_STOP:
                return Stop.REQUEST
        if st[native.BARRIER_PASSED]:
            self.barrier = Barrier(int(st[native.BARRIER_PASSED]))
            st[native.BARRIER_PASSED] = 0
            return Stop.BARRIER
        if st[native.PROFILE_LOOK] and self._profiler is not None and self._profiler.full():
            return Stop.PROFILE
        lanes = self.counts()
        if int(lanes[:, Lane.INST].sum()) >= st[native.LIMIT]:
            return Stop.LIMIT
        if self._watch_reached(lanes):
            return Stop.WATCH
        if st[native.IRQ] and not self._word(self._layout.daif).value & native.PSTATE_I:
            return Stop.IRQ
        if ctypes.c_uint32.from_address(self._xregs + self._layout.pstate).value & native.PSTATE_IL:
            self._enter(cpustate.EXCP_UDEF, ILLEGAL_STATE_ESR, None)
        elif self.pc & 3:
            self._enter(cpustate.EXCP_DATA_ABORT, PC_ALIGNMENT_ESR, self.pc)
        return None

    def _watch_reached(self, lanes: npt.NDArray[np.int64]) -> bool:
        for i in range(int(self._st[native.N_WATCH])):
            mask, els, target = (int(v) for v in self._st[native.WATCH + 3 * i : native.WATCH + 3 * i + 3])
            chosen = itertools.product((0, 1), Lane)
            if sum(int(lanes[el, lane]) for el, lane in chosen if els >> el & 1 and mask >> lane & 1) >= target:
                return True
        return False

    def _slice(self) -> int:
        """Let Unicorn run until a hook stops it or the guest waits; Unicorn's error, if any."""
        st = self._st
        st[native.WHY] = native.WHY_NONE
        st[native.BLOCK_N] = 0
        self._look_soon()
        st[native.EXC_LEFT] = native.EXCEPTIONS_PER_SLICE
        st[native.DEADLINE] = time.monotonic_ns() + native.SLICE_NS
        error = int(self._emu_start(self._handle, self.pc, 0, 0, 0))
        if st[native.SAMPLE] | st[native.BARRIER]:
            self._block_done(self._at_state)
        return error

    def _outcome(self, why: int) -> Stop | None:
        """What `run` returns after a slice that ended like this; None to go on."""
        if why == native.WHY_NONE:
            return Stop.WFI
        if why in (native.WHY_HVC, native.WHY_SMC):
            self.immediate = ctypes.c_uint32.from_address(self._xregs + self._layout.syndrome).value & 0xFFFF
            return Stop.HVC if why == native.WHY_HVC else Stop.SMC
        if why == native.WHY_STUCK:
            return Stop.STUCK
        if why == native.WHY_FAILED:
            self.failure = self.failure or f"exception {self._st[native.EXCEPTION]} at {self.pc:#x}"
            return Stop.FAILED
        return None


def _address(function: object) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert address is not None
    return address


def _signed(value: int) -> int:
    """A 64-bit value as the state's signed words hold it."""
    value &= MASK64
    return value - (1 << 64) if value >> 63 else value
