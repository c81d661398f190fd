"""What an instruction word does with the general registers: the address of a load or store, and what may be written.

Compiled, for `native_spe`. Encodings are those of the Arm ARM's chapter "A64 Base Instruction Encodings" (C4.1). A mask
of registers has a bit for each of X0 to X30; bit 31 is SP.
"""

from pmuvisor.arch.spe_record import (
    OP_BRANCH,
    OP_LOAD_STORE,
    OP_OTHER,
    SUBCLASS_ACQUIRE_RELEASE,
    SUBCLASS_ATOMIC,
    SUBCLASS_CONDITIONAL,
    SUBCLASS_EXCLUSIVE,
    SUBCLASS_EXTENDED,
    SUBCLASS_INDIRECT,
    SUBCLASS_SIMD_FP,
    SUBCLASS_STORE,
)
from pmuvisor.board.native_decode import A_BR, A_LD, A_ST, B_COND, classify
from pmuvisor.board.native_memory import compiled, load64

ALL = 0xFFFF_FFFF
SP = 1 << 31
DC_ZVA = 0xD50B7420


# --- groups ---------------------------------------------------------------------------------------------------------


@compiled
def is_exclusive(w: int) -> bool:
    """Exclusive, ordered, compare and swap: the address is the base register's alone."""
    return (w & 0x3F000000) == 0x08000000


@compiled
def is_literal(w: int) -> bool:
    return (w & 0x3B000000) == 0x18000000


@compiled
def is_unscaled_ordered(w: int) -> bool:
    """LDAPUR, STLUR."""
    return (w & 0x3F200C00) == 0x19000000


@compiled
def is_pair(w: int) -> bool:
    return (w & 0x3A000000) == 0x28000000


@compiled
def is_register_form(w: int) -> bool:
    """Loads and stores of one register, and the atomics of FEAT_LSE."""
    return (w & 0x3A000000) == 0x38000000


@compiled
def is_atomic(w: int) -> bool:
    """The atomics of FEAT_LSE, and LDAPR."""
    return (w & 0x3F200C00) == 0x38200000


@compiled
def has_index(w: int) -> bool:
    """Whether the offset is a register."""
    return (w & 0x3B200C00) == 0x38200800


@compiled
def is_structure(w: int) -> bool:
    """Vector structures: whole registers, or one lane."""
    return (w & 0xBE000000) == 0x0C000000


# --- addresses ------------------------------------------------------------------------------------------------------


@compiled
def signed(value: int, bits: int) -> int:
    return (value ^ (1 << (bits - 1))) - (1 << (bits - 1))


@compiled
def bit(register: int) -> int:
    """The mask of a register in a place where 31 is the zero register."""
    return (1 << register) & ~SP


@compiled
def address_registers(w: int) -> int:
    """The registers that make the address of a load or store."""
    if (w & ~0x1F) == DC_ZVA:
        return bit(w & 31)
    if is_literal(w):
        return 0
    return 1 << ((w >> 5) & 31) | (bit((w >> 16) & 31) if has_index(w) else 0)


@compiled
def scale(w: int) -> int:
    """The logarithm of the bytes that one register of a register form has in memory."""
    size = (w >> 30) & 3
    return 4 if (w >> 26) & 1 and size == 0 and (w >> 23) & 1 else size


@compiled
def pair_offset(w: int) -> int:
    """The offset of a pair, in bytes."""
    opc = (w >> 30) & 3
    shift = 2 + opc if (w >> 26) & 1 else 2 + (opc >> 1)
    return signed((w >> 15) & 0x7F, 7) << shift


@compiled
def immediate(w: int) -> int:
    """The immediate offset of a load or store, whether it is used before the access or after it."""
    if is_pair(w):
        return pair_offset(w)
    if is_unscaled_ordered(w):
        return signed((w >> 12) & 0x1FF, 9)
    if not is_register_form(w):
        return 0
    if (w >> 24) & 1:
        return ((w >> 10) & 0xFFF) << scale(w)
    if not (w >> 21) & 1:
        return signed((w >> 12) & 0x1FF, 9)
    if (w >> 10) & 1:  # LDRAA, LDRAB
        return signed(((w >> 22) & 1) << 9 | (w >> 12) & 0x1FF, 10) << 3
    return 0


@compiled
def writes_back(w: int) -> bool:
    """Whether the base register is changed by the immediate offset."""
    if is_pair(w):
        return (w >> 23) & 1 == 1
    if not is_register_form(w) or (w >> 24) & 1:
        return False
    return (w >> 10) & 1 == 1 and ((w >> 21) & 1 == 0 or (w >> 11) & 1 == 1)


@compiled
def is_post_index(w: int) -> bool:
    """Whether the immediate offset is added after the access only."""
    if is_pair(w):
        return (w >> 23) & 3 == 1
    return is_register_form(w) and (w & 0x01200C00) == 0x00000400


@compiled
def extended(index: int, w: int) -> int:
    """An index register's value, extended and shifted."""
    option = (w >> 13) & 7
    if option == 2:
        index &= 0xFFFFFFFF
    elif option == 6:
        index = signed(index & 0xFFFFFFFF, 32)
    return index << (scale(w) if (w >> 12) & 1 else 0)


@compiled
def register(xregs: int, number: int) -> int:
    return 0 if number == 31 else load64(xregs + 8 * number)


@compiled
def address(w: int, pc: int, xregs: int, done: bool, zva: int) -> int:
    """The first byte that a load or store at `pc` accesses, by the registers at `xregs`: before it, or when it is done.

    After it, the registers are of use where it has written none that `lost` names. `zva` is DC ZVA's bytes.
    """
    if (w & ~0x1F) == DC_ZVA:
        return register(xregs, w & 31) & -zva
    if is_literal(w):
        return pc + (signed((w >> 5) & 0x7FFFF, 19) << 2)
    base = load64(xregs + 8 * ((w >> 5) & 31))
    if has_index(w):
        return base + extended(register(xregs, (w >> 16) & 31), w)
    offset = 0 if is_post_index(w) else immediate(w)
    return base + offset - (immediate(w) if done and writes_back(w) else 0)


# --- what is written ------------------------------------------------------------------------------------------------


@compiled
def written_by_access(w: int) -> int:
    """`written` for the group of loads and stores."""
    t, n, t2, s = bit(w & 31), 1 << ((w >> 5) & 31), bit((w >> 10) & 31), bit((w >> 16) & 31)
    vector = (w >> 26) & 1
    if is_exclusive(w):
        return t | t2 | s | (bit(((w >> 16) + 1) & 31) if (w >> 21) & 1 else 0)  # of CASP, S and its neighbour
    if is_literal(w) or is_unscaled_ordered(w):
        return 0 if vector else t
    if is_pair(w):
        loads = (w >> 22) & 1 and not vector
        return (t | t2 if loads else 0) | (n if writes_back(w) else 0)
    if is_register_form(w):
        loads = ((w >> 22) & 3 or is_atomic(w)) and not vector
        return (t if loads else 0) | (n if writes_back(w) else 0)
    if is_structure(w):
        return n if (w >> 23) & 1 else 0
    return ALL


@compiled
def written_by_immediate(w: int) -> int:
    """`written` for data processing with an immediate: only ADD, SUB and the logical ones may write SP."""
    kind = (w >> 23) & 7
    sets_flags = (w >> 29) & 1 if kind == 2 else (w >> 29) & 3 == 3
    if (kind == 2 or kind == 4) and not sets_flags:
        return 1 << (w & 31)
    return ALL if kind == 3 else bit(w & 31)  # 3: tags


@compiled
def written_by_register(w: int) -> int:
    """`written` for data processing with registers: only ADD and SUB of an extended register may write SP."""
    if (w & 0x3FE00000) == 0x0B200000:
        return 1 << (w & 31)
    if (w & 0x3FE00000) == 0x3A400000:  # CCMN, CCMP
        return 0
    return bit(w & 31)


@compiled
def written_by_system(w: int) -> int:
    """`written` for branches, exceptions and system instructions."""
    if (w & 0x7C000000) == 0x14000000:  # B, BL
        return 1 << 30 if w >> 31 else 0
    if (w & 0x7C000000) == 0x34000000 or (w & 0xFE000000) == 0x54000000:  # CBZ and its like; B.cond
        return 0
    if (w & 0xFFBFFC1F) == 0xD61F0000:  # BR, RET
        return 0
    if (w & 0xFFFFF01F) == 0xD503201F:  # hints: those of pointer authentication change X17 or X30
        return 0 if (w >> 8) & 15 > 3 or (w >> 5) & 0x7F < 7 else 1 << 17 | 1 << 30
    if (w & 0xFFFFF01F) == 0xD503301F:  # barriers
        return 0
    if (w & 0xFFF00000) == 0xD5300000 or (w & 0xFFF80000) == 0xD5280000:  # MRS, SYSL
        return bit(w & 31)
    if (w & 0xFFE00000) == 0xD5000000:  # MSR, SYS: which SP is selected may change
        return SP
    return SP | 1 << 30  # exceptions and ERET, after which SP is another; BLR


@compiled
def written(w: int) -> int:
    """The general registers that an instruction may write; more than it does where that is not worth telling."""
    group = (w >> 25) & 15
    if group & 5 == 4:
        return written_by_access(w)
    if group & 14 == 8:
        return written_by_immediate(w)
    if group & 14 == 10:
        return written_by_system(w)
    if group & 7 == 5:
        return written_by_register(w)
    return bit(w & 31) if group & 7 == 7 else ALL  # SIMD and floating point; what is unallocated


@compiled
def lost(w: int) -> int:
    """The registers that are no more what they were before a load or store, and cannot be computed back."""
    mask = written(w)
    if not writes_back(w):
        return mask
    base = 1 << ((w >> 5) & 31)
    loads = (w >> 22) & 1 if is_pair(w) else (w >> 22) & 3
    loaded = bit(w & 31) | (bit((w >> 10) & 31) if is_pair(w) else 0) if loads and not (w >> 26) & 1 else 0
    return mask & ~base | loaded


# --- operation types ------------------------------------------------------------------------------------------------


@compiled
def exclusive_subclass(w: int) -> int:
    """The Operation Type of an exclusive or ordered access, or compare and swap."""
    swap = (w >> 21) & 1 and ((w >> 23) & 1 or not (w >> 31) & 1)
    ordered = (w >> 15) & 1 or ((w >> 22) & 1 if swap else (w >> 23) & 1)
    out = SUBCLASS_EXTENDED | (SUBCLASS_ACQUIRE_RELEASE if ordered else 0)
    if swap:
        return out | SUBCLASS_ATOMIC
    out |= 0 if (w >> 23) & 1 else SUBCLASS_EXCLUSIVE
    return out | (0 if (w >> 22) & 1 else SUBCLASS_STORE)


@compiled
def atomic_subclass(w: int) -> int:
    """The Operation Type of an atomic of FEAT_LSE; one that returns nothing (STADD and its like) is a store."""
    if (w & 0xF000) == 0xC000:  # LDAPR
        return SUBCLASS_EXTENDED | SUBCLASS_ACQUIRE_RELEASE
    out = SUBCLASS_EXTENDED | SUBCLASS_ATOMIC | (SUBCLASS_ACQUIRE_RELEASE if (w >> 22) & 3 else 0)
    returns_nothing = w & 31 == 31 and not (w >> 23) & 1 and not (w >> 15) & 1
    return out | (SUBCLASS_STORE if returns_nothing else 0)


@compiled
def access_subclass(w: int, a: int) -> int:
    """The Operation Type of a load or store; `a` is what it counts."""
    if is_exclusive(w):
        return exclusive_subclass(w)
    if is_atomic(w):
        return atomic_subclass(w)
    store = 0 if a & A_LD else SUBCLASS_STORE
    if is_unscaled_ordered(w):
        return SUBCLASS_EXTENDED | SUBCLASS_ACQUIRE_RELEASE | store
    return store | (SUBCLASS_SIMD_FP if (w >> 26) & 1 and (w & ~0x1F) != DC_ZVA else 0)


@compiled
def is_conditional_data(w: int) -> bool:
    """CSEL, CCMP and their families, of general and of floating-point registers."""
    general = (w & 0x1FE00000) == 0x1A800000 or (w & 0x1FE00000) == 0x1A400000
    return general or (w & 0xFF200400) == 0x1E200400


@compiled
def operation(w: int) -> tuple[int, int]:
    """Class and subclass of an instruction's Operation Type packet."""
    a, b = classify(w)
    if a & (A_LD | A_ST):
        return OP_LOAD_STORE, access_subclass(w, a)
    indirect = (w & 0xFE000000) == 0xD6000000  # ERET, which counts as no branch elsewhere, too
    if a & A_BR or indirect:
        return OP_BRANCH, (SUBCLASS_CONDITIONAL if b & B_COND else 0) | (SUBCLASS_INDIRECT if indirect else 0)
    return OP_OTHER, SUBCLASS_CONDITIONAL if is_conditional_data(w) else 0
