"""The engine's hot paths, compiled: what happens at every block, system register access and exception.

Each function here that Unicorn calls is a C function made by numba; it sees one array of 64-bit integers per engine
(the *state*, indexed by the names below) and the CPU state at the addresses that `cpustate` found. Functions of Unicorn
are called through addresses in the state, not through ctypes objects: only so can numba cache the machine code on disk.
This module decides nothing that is not hot; `engine` does the rest in Python between two stops.
"""

# mypy: disable-error-code="no-any-return"
# (an element of the state is an integer to numba and anything to mypy)

from typing import Any

import numpy as np
from numba import carray, types

from pmuvisor.board.native_decode import A_PC, barrier, classify
from pmuvisor.board.native_memory import as_pointer, call, callback, compiled, load8, load32, load64, store32, store64

N_LANES = 10
INST, LD, ST, MEM, BR, BR_IMMED, BR_RETURN, PC_WRITE, EXC_TAKEN, EXC_RETURN = range(N_LANES)

N_WATCHES = 32
N_PAGES = 32

# Index of each word of the state.
(
    SLACK,  # instructions that may still be charged before the slow path must look; every block lowers it
    SLACK_BASE,  # what SLACK was when the lanes were last right: the difference has retired at the current level
    BLOCK,  # address of the block in progress
    BLOCK_N,  # its instructions; 0 when none is in progress
    FALL,  # where the last block's conditional branch falls through, or NOWHERE
    LIMIT,
    N_WATCH,
    WHY,  # why a hook stopped the run
    EXCEPTION,  # what Unicorn stopped for, when WHY is FAILED
    IRQ,
    REQUEST,
    DETAIL,
    DECODE,  # blocks are looked up in the decode cache: for DETAIL, or for BARRIERS
    ILLEGAL_SPSR,  # an ERET would be illegal: every block must look whether one was
    ACC_A,  # packed detail counts since the lanes were last right: LD, ST, BR, PC_WRITE, 16 bits each
    ACC_B,  # BR_IMMED, BR_RETURN
    DEADLINE,  # monotonic nanoseconds
    STREAK,  # exceptions since an instruction retired
    STREAK_TOTAL,
    EXC_LEFT,
    IN_ENTRY,  # an exception entry is in progress: an exception level change now is no ERET
    INJECT,
    INJECT_ESR,
    GENERATION,  # bumped by whatever may change what an address holds
    TAG_LOW,  # identity of the translation of the lower and of the upper half of the address space
    TAG_HIGH,
    CLOCK_BASE,  # ticks of the generic counter that are there besides CLOCK_REST, modulo 2^64
    CLOCK_REST,  # the guest's time at instruction 0 less those, in units of which CLOCK_DIV are a tick
    CLOCK_MUL,  # units that an instruction takes
    CLOCK_DIV,
    CODE_CHANGED,
    CODE_ALL,
    N_CODE_PAGES,
    TLB_CHANGED,
    IN_MMIO,
    SCRATCH,
    SCRATCH2,
    SELF,  # address of the state
    UC,
    CPU,
    ENV,
    XREGS,
    AT_PC,
    AT_PSTATE,
    AT_DAIF,
    AT_SYNDROME,
    AT_FAULT,
    AT_TARGET_EL,
    AT_EXCEPTION,
    AT_IO_PC,
    AT_TTBR0,
    AT_TTBR1,
    AT_INVALIDATIONS,
    INVALIDATIONS,  # translations dropped when the decode cache was last known to be right
    AT_WORDS,  # room for the words of a block
    AT_ROWS,  # the decode cache
    AT_ACTIONS,
    AT_VALUES,
    AT_SPECIAL,
    FN_STOP,
    FN_RAISE,
    FN_LEAVE,
    FN_INTERRUPT,
    FN_RESTORE,
    FN_REG_WRITE,
    FN_VMEM_READ,
    FN_VMEM_TRANSLATE,
    FN_TLB_FLUSH,
    FN_CLOCK,
    FN_SYSREG,
    FN_SLOW_BLOCK,
    FN_FILL_ROW,
    FN_DROP_CODE,
    RAM_BASE,
    RAM_SIZE,
    FN_FILL,
    FN_RESET_DIRTY,
    AT_TLB,  # the TLB's tables, by MMU index: mask and address of each
    AT_PAGES,  # what is known of each physical page, one byte each; see `native_fill`
    AT_NEXT_BLOCK,  # how many instructions Unicorn's next block may have; -1: as many as it likes
    BARRIERS,  # instructions to stop behind: bits of `native_decode.barrier`
    BARRIER,  # that with which the block in progress ends
    BARRIER_PASSED,  # one that was executed, for Python to look at
    PROFILE,  # exception levels at which operations are sampled; 0: no profiling. See `native_spe`
    PROFILE_AT,  # which of the instructions counted there, since the beginning, is the next sample
    PROFILE_LOOK,  # there must not be another sample before Python has looked
    SAMPLE,  # the sampled operation is one of the block in progress
    AT_PROFILE,
    FN_SAMPLE_PLAN,
    FN_SAMPLE_NEXT,
    FN_SAMPLE_CUT,
    FN_SAMPLE_ACCESS,
) = range(92)
COUNT = 92  # [2][N_LANES]
WATCH = COUNT + 2 * N_LANES  # [N_WATCHES][3]: lanes, els, target
PAGES = WATCH + 3 * N_WATCHES  # [N_PAGES] physical pages whose code changed
COPY = PAGES + N_PAGES  # [2][N_LANES] lanes exact at the PC, for Python to read
STATE_WORDS = COPY + 2 * N_LANES

WHY_NONE, WHY_LOOK, WHY_PAUSE, WHY_HVC, WHY_SMC, WHY_STUCK, WHY_FAILED = range(7)
# Look: a condition that Python evaluates (limit, watch, request, interrupt...). Pause: back to Python and on.

UNDEF, PASS, CONST, STORE, CLOCK, CALL = range(6)
SPECIAL_NONE, SPECIAL_TLBI, SPECIAL_IC, SPECIAL_TTBR, SPECIAL_SCTLR, SPECIAL_TCR, SPECIAL_SPSR = range(7)

REQUEST_STOP, REQUEST_FORGET = 1, 2
"""Bits of REQUEST: end the run; forget all translated code."""

LINE = 64
"""Bytes of an instruction cache line, as CTR_EL0.IminLine of Unicorn's CPU says."""
NOWHERE = 1  # no instruction has an odd address
HEARTBEAT = 20_000
"""Instructions between two looks at the clock; small enough that 16-bit packed counts cannot carry."""
SLICE_NS = 40_000_000
EXCEPTIONS_PER_SLICE = 50_000
STUCK_AFTER = 5_000
ROWS = 1 << 14
ROW_WORDS = 5  # address, tag, A, B, fall-through

PSTATE_IL = 1 << 20
PSTATE_I = 0x80
ESR_UNDEF = 0x0200_0000
ESR_TRAP = 0x18 << 26 | 1 << 25
ESR_EXTERNAL_DATA = 0x24 << 26 | 1 << 25 | 1 << 10 | 0x10  # FnV: which virtual address is not known here
ESR_EXTERNAL_FETCH = 0x20 << 26 | 1 << 25 | 0x10

SCTLR_MASK = 0xFFFF_FFFF & ~(1 << 25 | 1 << 24)
"""EE and E0E stay 0: mixed endianness is not offered (ID_AA64MMFR0_EL1.BigEnd = 0)."""

REG_CP, REG_X0 = 290, 199  # UC_ARM64_REG_CP_REG and UC_ARM64_REG_X0, checked by `engine`; X29 is 1, X30 is 2
CNT_EL0 = 3 << 14 | 3 << 11 | 14 << 7
CNTKCTL_EL1 = 3 << 14 | 14 << 7 | 1 << 3


# --- counts ---------------------------------------------------------------------------------------------------------


@compiled
def spill(st: Any, el: int) -> None:
    """Bring the lanes up to what has been charged; all of it was at this level."""
    at = COUNT + el * N_LANES
    st[at + INST] += st[SLACK_BASE] - st[SLACK]
    st[SLACK_BASE] = st[SLACK]
    if st[DETAIL] != 0:
        add_packed(st, at, st[ACC_A], st[ACC_B], 1)
        st[ACC_A] = 0
        st[ACC_B] = 0


@compiled
def look_soon(st: Any) -> None:
    """Send the next block the slow way."""
    st[SLACK_BASE] -= st[SLACK] + 1
    st[SLACK] = -1


@compiled
def add_packed(st: Any, at: int, a: int, b: int, sign: int) -> None:
    st[at + LD] += sign * (a & 0xFFFF)
    st[at + ST] += sign * ((a >> 16) & 0xFFFF)
    st[at + MEM] += sign * ((a & 0xFFFF) + ((a >> 16) & 0xFFFF))
    st[at + BR] += sign * ((a >> 32) & 0xFFFF)
    st[at + PC_WRITE] += sign * ((a >> 48) & 0xFFFF)
    st[at + BR_IMMED] += sign * (b & 0xFFFF)
    st[at + BR_RETURN] += sign * ((b >> 16) & 0xFFFF)


@compiled
def read_words(st: Any, address: int, n: int) -> bool:
    """The words of a block, through the guest's translation, to the buffer; False where they cannot be read."""
    return call(st[FN_VMEM_READ], st[UC], address, 4, st[AT_WORDS], 4 * n) & 0xFFFFFFFF == 0


@compiled
def current_el(st: Any) -> int:
    return (load32(st[AT_PSTATE]) >> 2) & 1


@compiled
def settle(st: Any, pc: int, el: int) -> None:
    """A conditional branch was taken if what follows is not what lies after it."""
    if st[FALL] != NOWHERE and st[FALL] != pc:
        st[COUNT + el * N_LANES + PC_WRITE] += 1
    st[FALL] = NOWHERE


@compiled
def uncharge_tail(st: Any, at: int, pc: int, ran: int) -> None:
    """Take the instructions from `pc` to the end of the block in progress out of the lanes at `at`."""
    rest = st[BLOCK_N] - ran
    st[at + INST] -= rest
    if st[DETAIL] == 0 or not read_words(st, pc, rest):
        return
    for i in range(rest):
        a, b = classify(load32(st[AT_WORDS] + 4 * i))
        add_packed(st, at, a, b, -1)


@compiled
def interrupt_block(st: Any, pc: int, el: int) -> None:
    """The block in progress was charged in full but ends before `pc`."""
    ran = (pc - st[BLOCK]) >> 2
    if st[SAMPLE] != 0:
        call(st[FN_SAMPLE_CUT], st[SELF], ran, 0, 0, 0)
        st[SAMPLE] = 0
    st[BARRIER] = 0
    if 0 <= ran < st[BLOCK_N]:
        uncharge_tail(st, COUNT + el * N_LANES, pc, ran)
        st[FALL] = NOWHERE
    st[BLOCK] = pc
    st[BLOCK_N] = 0


@compiled
def total(st: Any) -> int:
    return st[COUNT + INST] + st[COUNT + N_LANES + INST] + st[SLACK_BASE] - st[SLACK]


@compiled
def weight(lanes: int) -> int:
    """By how much one instruction can raise the sum of these lanes (an atomic is two accesses)."""
    w = 0
    for lane in range(N_LANES):
        if (lanes >> lane) & 1:
            w += 2 if lane == MEM else 1
    return w


@compiled
def watch_left(st: Any, i: int) -> int:
    """What a watch still lacks, by the lanes as they stand."""
    lanes, els, left = st[WATCH + 3 * i], st[WATCH + 3 * i + 1], st[WATCH + 3 * i + 2]
    for el in range(2):
        if (els >> el) & 1:
            for lane in range(N_LANES):
                if (lanes >> lane) & 1:
                    left -= st[COUNT + el * N_LANES + lane]
    return left


@compiled
def instruction_adds(a: int, b: int, lanes: int) -> int:
    """How much one instruction of packed counts (a, b) adds to the sum of these lanes."""
    ld, sto = a & 1, (a >> 16) & 1
    n = (lanes >> INST) & 1
    n += ((lanes >> LD) & ld) + ((lanes >> ST) & sto) + ((lanes >> MEM) & 1) * (ld + sto)
    n += ((lanes >> BR) & 1) * ((a >> 32) & 1) + ((lanes >> PC_WRITE) & 1) * ((a >> 48) & 1)
    return n + ((lanes >> BR_IMMED) & b & 1) + ((lanes >> BR_RETURN) & (b >> 16) & 1)


@compiled
def room(st: Any, address: int, n: int, el: int) -> int:
    """How many of the block's n instructions may run before the limit or a watch is reached; more than n: all."""
    k = st[LIMIT] - total(st)
    if k >= n:
        k = n + 1
    for i in range(st[N_WATCH]):
        left, lanes = watch_left(st, i), st[WATCH + 3 * i]
        if left <= 0:
            return 0
        if not (st[WATCH + 3 * i + 1] >> el) & 1 or left > n * weight(lanes):
            continue
        if st[DETAIL] == 0 or not read_words(st, address, n):
            if (lanes >> INST) & 1 and left <= n:
                k = min(k, left)
            continue
        for j in range(n):
            a, b = classify(load32(st[AT_WORDS] + 4 * j))
            left -= instruction_adds(a, b, lanes)
            if left <= 0:
                k = min(k, j + 1)
                break
    return k


@compiled
def sample_left(st: Any) -> int:
    """How many instructions, of those that are counted for it, there are up to the next sample, that one included."""
    left = st[PROFILE_AT]
    for el in range(2):
        if (st[PROFILE] >> el) & 1:
            left -= st[COUNT + el * N_LANES + INST]
    return left


@compiled
def sample_room(st: Any, address: int, n: int, el: int) -> int:
    """`room` for profiling; sets SAMPLE where the next sample is in what may run."""
    left = sample_left(st)
    if not (st[PROFILE] >> el) & 1 or left > n:
        return n + 1
    return call(st[FN_SAMPLE_PLAN], st[SELF], address, n, el, left - 1)


@compiled
def barrier_room(st: Any, address: int, n: int) -> int:
    """`room` for barriers; sets BARRIER where the block ends with one and there is none before."""
    _, barriers = decoded_row(st, address, n)
    if barriers == 0 or not read_words(st, address, n):
        return n + 1
    for i in range(n):
        found = barrier(load32(st[AT_WORDS] + 4 * i)) & st[BARRIERS]
        if found != 0:
            st[BARRIER] = found
            return i + 1
    return n + 1


@compiled
def new_slack(st: Any) -> int:
    """How many instructions can surely be charged without reaching the limit, a watch or a sample."""
    slack = min(HEARTBEAT, st[LIMIT] - total(st))
    if st[IRQ] | st[REQUEST] | st[ILLEGAL_SPSR] != 0:
        slack = 0
    pending = 1 if st[FALL] != NOWHERE else 0
    for i in range(st[N_WATCH]):
        slack = min(slack, (watch_left(st, i) - pending) // max(1, weight(st[WATCH + 3 * i])))
    if st[SAMPLE] | st[BARRIER] != 0:
        return -1
    if (st[PROFILE] >> current_el(st)) & 1:
        slack = min(slack, sample_left(st) - 1)
    return slack


# --- blocks ---------------------------------------------------------------------------------------------------------


@compiled
def new_tags(st: Any, ttbr0: int, ttbr1: int) -> None:
    """The identity of what the guest's tables say; after a change of table, ASID or generation it is another."""
    st[TAG_HIGH] = (((ttbr1 & 0xFFFF_FFFF_FFFF) ^ st[GENERATION] << 48) * 0x1E3779B97F4A7C15) & ~0xFFF
    st[TAG_LOW] = ((st[TAG_HIGH] ^ ttbr0 ^ (ttbr1 >> 48 << 12)) * 0x1F58476D1CE4E5B9) & ~0xFFF


@compiled
def new_generation(st: Any) -> None:
    """What an address holds, or where it leads, may have changed."""
    st[GENERATION] += 1
    st[INVALIDATIONS] = load64(st[AT_INVALIDATIONS])
    new_tags(st, load64(st[AT_TTBR0]), load64(st[AT_TTBR1]))


@compiled
def fill_row(st: Any, row: int, address: int, tag: int, n: int) -> int:
    """Decode a block into its row of the decode cache; the barriers in it that a run is to stop behind.

    A block with one is not found there again, so that to know of them costs nothing where it is.
    """
    a, b, barriers = 0, 0, 0
    if read_words(st, address, n):
        for i in range(n):
            word = load32(st[AT_WORDS] + 4 * i)
            one_a, one_b = classify(word)
            a += one_a
            b += one_b
            barriers |= barrier(word)
    barriers &= st[BARRIERS]
    store64(row, address if barriers == 0 else NOWHERE)
    store64(row + 8, tag)
    store64(row + 16, a)
    store64(row + 24, b & 0xFFFFFFFF)
    store64(row + 32, address + 4 * n if b >> 32 else NOWHERE)
    return barriers


@compiled
def decoded_row(st: Any, address: int, n: int) -> tuple[int, int]:
    """Where the decode cache has a block, and the barriers in it that a run is to stop behind."""
    barriers = 0
    if load64(st[AT_INVALIDATIONS]) != st[INVALIDATIONS]:
        call(st[FN_FILL_ROW], st[SELF], 0, 0, 0, 0)
    row = st[AT_ROWS] + ((address >> 2) & (ROWS - 1)) * (ROW_WORDS * 8)
    tag = (st[TAG_HIGH] if address < 0 else st[TAG_LOW]) ^ n
    if load64(row) != address or load64(row + 8) != tag:
        barriers = call(st[FN_FILL_ROW], st[SELF], row, address, tag, n)
    return row, barriers


@compiled
def charge_detail(st: Any, address: int, row: int) -> None:
    """Charge a block's decoded lanes from its row of the decode cache."""
    fall = st[FALL]
    # No `if`: it would be as unpredictable to the host as the guest's branch was.
    taken = types.int64(fall != NOWHERE) & types.int64(fall != address)
    st[ACC_A] += load64(row + 16) + taken * A_PC
    st[ACC_B] += load64(row + 24)
    st[FALL] = load64(row + 32)


@callback(types.int64, types.voidptr, types.int64, types.int64, types.int64, types.int64)
def on_row_miss(data: Any, row: int, address: int, tag: int, n: int) -> int:
    """Called by `decoded_row`, through a pointer: its own code stays short."""
    st = carray(data, (STATE_WORDS,), np.int64)
    if row != 0:
        return fill_row(st, row, address, tag, n)
    new_generation(st)
    return 0


@compiled
def stop(st: Any, why: int) -> None:
    st[WHY] = why
    call(st[FN_STOP], st[UC], 0, 0, 0, 0)


@compiled
def now_ns(st: Any) -> int:
    """CLOCK_MONOTONIC, for the length of a slice only: nothing that a guest sees depends on it."""
    at = st[SELF] + 8 * SCRATCH
    call(st[FN_CLOCK], 1, at, 0, 0, 0)
    return st[SCRATCH] * 1_000_000_000 + st[SCRATCH2]


@compiled
def block_done(st: Any, address: int) -> None:
    """The block in progress has run to its end, and the instruction at `address` comes after it."""
    if st[SAMPLE] != 0:
        call(st[FN_SAMPLE_NEXT], st[SELF], address, 0, 0, 0)
        st[SAMPLE] = 0
    if st[BARRIER] != 0:
        st[BARRIER_PASSED] = st[BARRIER]
        st[BARRIER] = 0


@compiled
def run_only(st: Any, k: int) -> None:
    """Let Unicorn make a block of the next k instructions alone. Does not return; the slow way comes next."""
    st[SAMPLE] = 0
    st[BARRIER] = 0
    look_soon(st)
    store32(st[AT_NEXT_BLOCK], k)
    call(st[FN_LEAVE], st[CPU], 0, 0, 0, 0)


@callback(types.void, types.voidptr, types.int64, types.int64)
def on_slow_block(data: Any, address: int, n: int) -> None:
    """The careful way past a block boundary: stop here, or charge what may run, and compute a new slack."""
    st = carray(data, (STATE_WORDS,), np.int64)
    pstate = load32(st[AT_PSTATE])
    el = (pstate >> 2) & 1
    st[BLOCK], st[BLOCK_N] = address, 0
    spill(st, el)
    settle(st, address, el)
    block_done(st, address)
    if address & 3 != 0 or pstate & PSTATE_IL != 0 or st[REQUEST] | st[PROFILE_LOOK] | st[BARRIER_PASSED] != 0:
        stop(st, WHY_LOOK)
        return
    k = room(st, address, n, el)
    if k <= 0 or (st[IRQ] != 0 and load32(st[AT_DAIF]) & PSTATE_I == 0):
        stop(st, WHY_LOOK)
        return
    if now_ns(st) >= st[DEADLINE]:
        stop(st, WHY_PAUSE)
        return
    if st[BARRIERS] != 0:
        k = min(k, barrier_room(st, address, n))
    if st[PROFILE] != 0:
        k = min(k, sample_room(st, address, n, el))
    if k < n:
        run_only(st, k)
    st[BLOCK_N] = n
    st[COUNT + el * N_LANES + INST] += n
    if st[DETAIL] != 0:
        row, _ = decoded_row(st, address, n)
        charge_detail(st, address, row)
        spill(st, el)
    st[SLACK] = new_slack(st)
    st[SLACK_BASE] = st[SLACK]


@callback(types.void, types.int64, types.int64, types.uint32, types.voidptr)
def on_block(uc: int, address: int, size: int, data: Any) -> None:
    """UC_HOOK_BLOCK: a block is about to run. A stop from here is exact: nothing of the block has run."""
    st = carray(data, (STATE_WORDS,), np.int64)
    n = types.int64(size >> 2)
    slack = st[SLACK] - n
    if slack < 0 or address & 3 != 0:
        call(st[FN_SLOW_BLOCK], st[SELF], address, n, 0, 0)
        return
    st[SLACK] = slack
    st[BLOCK] = address
    st[BLOCK_N] = n
    if st[DECODE] != 0:
        row, barriers = decoded_row(st, address, n)
        if barriers != 0:
            st[SLACK] += n
            call(st[FN_SLOW_BLOCK], st[SELF], address, n, 0, 0)
        elif st[DETAIL] != 0:
            charge_detail(st, address, row)


# --- exceptions -----------------------------------------------------------------------------------------------------


@compiled
def enter_exception(st: Any, number: int, el: int) -> None:
    """Take the pending exception to EL1 and see to it that the run comes back to Python regularly."""
    spill(st, el)
    st[COUNT + el * N_LANES + EXC_TAKEN] += 1
    st[ILLEGAL_SPSR] = 0
    store32(st[AT_EXCEPTION], number)
    store32(st[AT_TARGET_EL], 1)
    st[IN_ENTRY] = 1
    call(st[FN_INTERRUPT], st[CPU], 0, 0, 0, 0)
    st[IN_ENTRY] = 0
    if st[N_WATCH] | st[PROFILE] != 0:
        look_soon(st)
    now = total(st)
    st[STREAK] = st[STREAK] + 1 if now == st[STREAK_TOTAL] else 0
    st[STREAK_TOTAL] = now


@compiled
def bound_exceptions(st: Any) -> None:
    st[EXC_LEFT] -= 1
    if st[STREAK] >= STUCK_AFTER:
        stop(st, WHY_STUCK)
    elif st[EXC_LEFT] <= 0:
        stop(st, WHY_PAUSE)


@callback(types.void, types.int64, types.uint32, types.voidptr)
def on_exception(uc: int, number: int, data: Any) -> None:
    """UC_HOOK_INTR: the guest took a synchronous exception.

    At SVC, HVC and SMC the PC is past the instruction, which has retired; at all others it is at an instruction that
    has not. A fetch that aborts (3) comes before its block has begun.
    """
    st = carray(data, (STATE_WORDS,), np.int64)
    pc = load64(st[AT_PC])
    el = current_el(st)
    if number == 3:
        settle(st, pc, el)
        block_done(st, pc)
    else:
        interrupt_block(st, pc, el)
    st[BLOCK_N] = 0
    if number == 3 and pc & 3 != 0:  # a PC alignment fault, which the engine takes, comes before what the fetch did
        stop(st, WHY_LOOK)
    elif number == 11 or number == 13:
        stop(st, WHY_HVC if number == 11 else WHY_SMC)
    elif number == 1 or number == 2 or number == 3 or number == 4 or number == 7:
        enter_exception(st, types.int64(number), el)
        bound_exceptions(st)
    else:
        st[EXCEPTION] = number
        stop(st, WHY_FAILED)


@callback(types.void, types.int64, types.voidptr)
def on_el_change(cpu: int, data: Any) -> None:
    """Called by Unicorn's core before an exception entry and before an ERET changes the level."""
    st = carray(data, (STATE_WORDS,), np.int64)
    if st[IN_ENTRY] == 0:
        el = current_el(st)
        spill(st, el)
        st[COUNT + el * N_LANES + EXC_RETURN] += 1
        if st[N_WATCH] | st[PROFILE] != 0:
            look_soon(st)


@callback(types.void, types.int64, types.voidptr)
def on_el_changed(cpu: int, data: Any) -> None:
    """Takes the place of what Unicorn would do for a PMU of its own, which no guest can see."""


@callback(types.uint8, types.int64, types.int32, types.int64, types.int32, types.int64, types.voidptr)
def on_unmapped(uc: int, access: int, address: int, size: int, value: int, data: Any) -> int:
    """UC_HOOK_MEM_INVALID: nothing answers at this physical address. The PC is that of the access."""
    st = carray(data, (STATE_WORDS,), np.int64)
    same_el = current_el(st) << 26
    fetch = access == 21 or access == 24  # UC_MEM_FETCH_UNMAPPED, UC_MEM_FETCH_PROT
    if fetch:
        store64(st[AT_FAULT], load64(st[AT_PC]))
        call(st[FN_RAISE], st[ENV], 3, ESR_EXTERNAL_FETCH | same_el, 1, 0)
    write = access == 20 or access == 22  # UC_MEM_WRITE_UNMAPPED, UC_MEM_WRITE_PROT
    call(st[FN_RAISE], st[ENV], 4, ESR_EXTERNAL_DATA | same_el | (1 << 6 if write else 0), 1, 0)
    return 0


# --- system registers -----------------------------------------------------------------------------------------------


@compiled
def code_changed(st: Any, key: int, address: int) -> None:
    """The guest cleaned instruction caches for all CPUs: forget the translation, remember for the others to forget."""
    st[CODE_CHANGED] = 1
    if (key >> 11) & 7 != 3:  # IC IALLUIS
        st[CODE_ALL] = 1
        st[REQUEST] |= REQUEST_FORGET
        look_soon(st)
        return
    at = st[SELF] + 8 * SCRATCH
    if call(st[FN_VMEM_TRANSLATE], st[UC], address, 1, at, 0) & 0xFFFFFFFF != 0:
        return  # the instruction itself will fault
    # Unicorn notices a store to translated code only through the virtual address that it was executed at.
    line = (st[SCRATCH] & ~(LINE - 1)) - st[RAM_BASE]
    if 0 <= line < st[RAM_SIZE]:
        call(st[FN_DROP_CODE], st[UC], line, line + LINE, 0, 0)
    page, n = st[SCRATCH] & ~0xFFF, st[N_CODE_PAGES]
    if n > 0 and st[PAGES + n - 1] == page:
        return
    if n == N_PAGES:
        st[CODE_ALL] = 1
        return
    st[PAGES + n] = page
    st[N_CODE_PAGES] = n + 1


@compiled
def write_register(st: Any, cp: int, value: int) -> None:
    """Write a register of Unicorn's past the instruction, which would have written another value."""
    for i in range(5):
        store32(st[AT_WORDS] + 4 * i, load32(cp + 4 * i))
    store64(st[AT_WORDS] + 24, value)
    call(st[FN_REG_WRITE], st[UC], REG_CP, st[AT_WORDS], 0, 0)


@compiled
def before_write(st: Any, key: int, cp: int, value: int) -> bool:
    """What must happen before Unicorn itself writes this register. True: it is written, skip the instruction."""
    special = load8(st[AT_SPECIAL] + key)
    if special == SPECIAL_NONE:
        return False
    if special == SPECIAL_TTBR:
        is_ttbr1 = (key & 7) == 1
        new_tags(st, load64(st[AT_TTBR0]) if is_ttbr1 else value, value if is_ttbr1 else load64(st[AT_TTBR1]))
        return False
    if special == SPECIAL_SPSR:
        # There is no AArch32 here: a return to any of its modes has to be illegal, which an unallocated mode is.
        mode = value & 0x1F
        st[ILLEGAL_SPSR] = types.int64(value & PSTATE_IL != 0 or (mode != 0 and mode != 4 and mode != 5))
        if st[ILLEGAL_SPSR] != 0:
            look_soon(st)
        if value & 0x10 == 0:
            return False
        write_register(st, cp, (value & 0xFFFFFFFF & ~0xF) | 4)
        return True
    if special == SPECIAL_TLBI:
        new_generation(st)
        if (key >> 3) & 15 == 3:  # inner shareable
            st[TLB_CHANGED] = 1
    elif special == SPECIAL_IC:
        if (key >> 3) & 15 == 5 and (key >> 11) & 7 == 0:  # IC IALLU is for this CPU alone
            st[REQUEST] |= REQUEST_FORGET
            look_soon(st)
        else:
            code_changed(st, key, value)
    else:
        new_generation(st)
    if special == SPECIAL_SCTLR and value & ~SCTLR_MASK != 0:
        write_register(st, cp, value & SCTLR_MASK)
        call(st[FN_TLB_FLUSH], st[CPU], 0, 0, 0, 0)
        return True
    return False


@compiled
def timer_traps(st: Any, key: int) -> bool:
    """An access from EL0 to the generic timer that CNTKCTL_EL1 traps to EL1."""
    if key & 0x3F80 != CNT_EL0 & 0x3F80 or (key >> 3) & 15 not in (0, 2, 3):
        return False
    control = load64(st[AT_VALUES] + 8 * CNTKCTL_EL1)
    crm = (key >> 3) & 15
    if crm == 0:
        enabled = control & (3 if key & 7 == 0 else 1 if key & 7 == 1 else 2)
    else:
        enabled = control & (1 << 9 if crm == 2 else 1 << 8)
    return enabled == 0


@compiled
def trap_esr(key: int, rt: int, read: int) -> int:
    """The syndrome of a trapped MSR, MRS or system instruction (EC 0x18)."""
    iss = ((key >> 14) & 3) << 20 | (key & 7) << 17 | ((key >> 11) & 7) << 14 | ((key >> 7) & 15) << 10
    return ESR_TRAP | iss | rt << 5 | ((key >> 3) & 15) << 1 | read


@compiled
def raise_here(st: Any, number: int, esr: int) -> None:
    """Leave the instruction in progress by an exception to EL1. Does not return."""
    call(st[FN_RAISE], st[ENV], number, esr, 1, 0)


@compiled
def answer(st: Any, action: int, key: int, read: int, value: int) -> int:
    """What an access to a register that Unicorn does not see does; the value that an MRS gets."""
    at = st[AT_VALUES] + 8 * key
    if action == CLOCK:
        return st[CLOCK_BASE] + (st[CLOCK_REST] + total(st) * st[CLOCK_MUL]) // st[CLOCK_DIV]
    if action == CALL:
        return call(st[FN_SYSREG], key, 1 - read, value, 0, 0)
    if action == STORE and read == 0:
        store64(at, value)
    return load64(at)


@compiled
def access(st: Any, reg: int, cp: int, read: int) -> int:
    """The filter that every access to a system register passes. 0: let Unicorn do it; else it does not return."""
    key = (load32(cp + 8) & 3) << 14 | load32(cp + 12) << 11 | load32(cp) << 7 | load32(cp + 4) << 3 | load32(cp + 16)
    value = load64(cp + 24)
    action = load8(st[AT_ACTIONS] + key)
    el = current_el(st)
    # What EL0 may not reach is left to Unicorn, which makes it UNDEFINED, and to no hand of ours.
    forbidden = el == 0 and (key >> 11) & 7 != 3
    if action == PASS and (read == 1 or forbidden or not before_write(st, key, cp, value)):
        return 0
    rt = reg - REG_X0 if reg >= REG_X0 else reg + 28 if reg <= 2 else 31
    pc = load64(st[AT_PC])
    interrupt_block(st, pc, el)
    result = 0
    if action != PASS:
        read_only = action in (CONST, CLOCK)
        if action == UNDEF or forbidden or (read_only and read == 0):
            raise_here(st, 1, ESR_UNDEF)
        if el == 0 and timer_traps(st, key):
            raise_here(st, 1, trap_esr(key, rt, read))
        result = answer(st, action, key, read, value)
        if st[INJECT] != 0:
            number, st[INJECT] = st[INJECT], 0
            esr = st[INJECT_ESR]
            if esr >> 26 == ESR_TRAP >> 26:  # only here is it known which register the instruction names
                esr |= rt << 5
            raise_here(st, number, esr)
    if read == 1 and rt != 31:
        store64(st[XREGS] + 8 * rt, result)
    # Leaving the block here costs a little, and makes registers that Unicorn knows and does not know alike, and every
    # stop that the access asked for exact.
    store64(st[AT_PC], pc + 4)
    st[COUNT + el * N_LANES + INST] += 1
    if st[PROFILE] != 0:
        call(st[FN_SAMPLE_ACCESS], st[SELF], pc, el, 0, 0)
    call(st[FN_LEAVE], st[CPU], 0, 0, 0, 0)
    return 1


@callback(types.uint32, types.int64, types.uint32, types.int64, types.voidptr)
def on_read(uc: int, reg: int, cp: int, data: Any) -> int:
    """UC_HOOK_INSN for MRS and SYSL."""
    return access(carray(data, (STATE_WORDS,), np.int64), types.int64(reg), cp, 1)


@callback(types.uint32, types.int64, types.uint32, types.int64, types.voidptr)
def on_write(uc: int, reg: int, cp: int, data: Any) -> int:
    """UC_HOOK_INSN for MSR and SYS."""
    return access(carray(data, (STATE_WORDS,), np.int64), types.int64(reg), cp, 0)


# --- MMIO -----------------------------------------------------------------------------------------------------------
# The data of a region: state, Python's read function, its write function (each called with offset, size, value).


@compiled
def device(region: Any, fn: int, offset: int, size: int, value: int) -> int:
    st = carray(as_pointer(region[0]), (STATE_WORDS,), np.int64)
    # The PC is stale unless derived from the host address of the access. That is zero where no load or store does it
    # (a table walk, a fetch): it must not move the PC then, so it is cleared after use.
    host = load64(st[AT_IO_PC])
    if host != 0:
        call(st[FN_RESTORE], st[CPU], host, 0, 0, 0)
        if st[SAMPLE] != 0:
            call(st[FN_SAMPLE_CUT], st[SELF], (load64(st[AT_PC]) - st[BLOCK]) >> 2, 0, 0, 0)
    st[IN_MMIO] = 1
    result = call(fn, offset, size, value, 0, 0)
    st[IN_MMIO] = 0
    store64(st[AT_IO_PC], 0)
    return result


@callback(types.int64, types.int64, types.int64, types.uint32, types.voidptr)
def on_mmio_read(uc: int, offset: int, size: int, data: Any) -> int:
    region = carray(data, (3,), np.int64)
    return device(region, region[1], offset, types.int64(size), 0)


@callback(types.void, types.int64, types.int64, types.uint32, types.int64, types.voidptr)
def on_mmio_write(uc: int, offset: int, size: int, value: int, data: Any) -> None:
    region = carray(data, (3,), np.int64)
    device(region, region[2], offset, types.int64(size), value)


@compiled
def abort_far(st: Any, write: int) -> None:
    """A load or store beyond the physical addresses; what is no such access (a table walk, a fetch) reads zero."""
    host = load64(st[AT_IO_PC])
    if host == 0:
        return
    store64(st[AT_IO_PC], 0)
    call(st[FN_RESTORE], st[CPU], host, 0, 0, 0)
    raise_here(st, 4, ESR_EXTERNAL_DATA | current_el(st) << 26 | write << 6)


@callback(types.int64, types.int64, types.int64, types.uint32, types.voidptr)
def on_far_read(uc: int, offset: int, size: int, data: Any) -> int:
    abort_far(carray(data, (STATE_WORDS,), np.int64), 0)
    return 0


@callback(types.void, types.int64, types.int64, types.uint32, types.int64, types.voidptr)
def on_far_write(uc: int, offset: int, size: int, value: int, data: Any) -> None:
    abort_far(carray(data, (STATE_WORDS,), np.int64), 1)


@callback(types.void, types.voidptr)
def on_counts(data: Any) -> None:
    """Called by Python between blocks or in an MMIO callback: bring the lanes up to the PC.

    An access in progress has not retired; the rest of its block stays charged in BLOCK_N and is given back in a copy
    that `engine` reads, so that the block can go on.
    """
    st = carray(data, (STATE_WORDS,), np.int64)
    pc, el = load64(st[AT_PC]), current_el(st)
    spill(st, el)
    for i in range(N_LANES):
        st[COPY + i] = st[COUNT + i]
        st[COPY + N_LANES + i] = st[COUNT + N_LANES + i]
    at = COPY + el * N_LANES
    if st[IN_MMIO] != 0:
        ran = (pc - st[BLOCK]) >> 2
        if 0 <= ran < st[BLOCK_N]:
            uncharge_tail(st, at, pc, ran)
    elif st[FALL] != NOWHERE and st[FALL] != pc:
        st[at + PC_WRITE] += 1


@callback(types.void, types.voidptr)
def on_forget(data: Any) -> None:
    """Called by Python when it changed what addresses may hold."""
    new_generation(carray(data, (STATE_WORDS,), np.int64))


@callback(types.void, types.voidptr)
def on_block_done(data: Any) -> None:
    """Called by Python when Unicorn has returned: no hook came after the last block where the guest waits."""
    st = carray(data, (STATE_WORDS,), np.int64)
    block_done(st, load64(st[AT_PC]))
