"""Which events an instruction word counts, compiled. The choices are explained in `engine`."""

from pmuvisor.board.native_memory import compiled

A_LD, A_ST, A_BR, A_PC = 1, 1 << 16, 1 << 32, 1 << 48
B_IMMED, B_RETURN, B_COND = 1, 1 << 16, 1 << 32


@compiled
def classify_branch(w: int) -> tuple[int, int]:
    """Packed counts of a word of the branch, exception and system group."""
    if (w & 0x7C000000) == 0x14000000:  # B, BL
        return A_BR | A_PC, B_IMMED
    if (w & 0x7C000000) == 0x34000000:  # CBZ, CBNZ, TBZ, TBNZ
        return A_BR, B_IMMED | B_COND
    if (w & 0xFE000000) == 0x54000000:  # B.cond; conditions 14 and 15 are both "always"
        if (w & 0xE) == 0xE:
            return A_BR | A_PC, B_IMMED
        return A_BR, B_IMMED | B_COND
    if (w & 0xFE000000) == 0xD6000000:
        opc = (w >> 21) & 0xF
        if opc == 2:
            return A_BR | A_PC, B_RETURN
        if opc == 4:  # ERET: a software change of the PC, counted as an exception return and not as a branch
            return A_PC, 0
        return A_BR | A_PC, 0
    if (w & 0xFFFFFFE0) == 0xD50B7420:  # DC ZVA "behaves as a set of Stores"
        return A_ST, 0
    return 0, 0


@compiled
def classify_register_form(w: int) -> int:
    """Loads and stores of one register, with any addressing mode but literal; and the atomics of FEAT_LSE."""
    load = (w >> 22) & 1
    vector = (w >> 26) & 1
    unsigned_offset = (w >> 24) & 1
    if not unsigned_offset and (w >> 21) & 1 and (w >> 10) & 3 != 2 and not vector:
        if (w >> 10) & 1:  # LDRAA, LDRAB
            return A_LD
        if (w & 0xF000) == 0xC000:  # LDAPR
            return A_LD
        return A_LD | A_ST
    if vector:
        return A_LD if load else A_ST
    opc = (w >> 22) & 3
    if opc == 0:
        return A_ST
    if opc == 2 and (w >> 30) & 3 == 3:  # PRFM
        return 0
    return A_LD


@compiled
def classify(w: int) -> tuple[int, int]:
    """Packed counts (A, B) of one instruction; see the lanes' documentation in `engine`."""
    if (w >> 26) & 7 == 5:
        return classify_branch(w)
    if (w & 0x0A000000) != 0x08000000:
        return 0, 0
    one = A_LD if (w >> 22) & 1 else A_ST
    if (w & 0x3F000000) == 0x08000000:  # exclusive, ordered, compare and swap
        if (w >> 21) & 1 and ((w >> 23) & 1 or not (w >> 31) & 1):
            return A_LD | A_ST, 0
        return one, 0
    if (w & 0x3A000000) == 0x38000000:
        return classify_register_form(w), 0
    if (w & 0x3B000000) == 0x18000000:  # literal
        return (0 if (w >> 24) == 0xD8 else A_LD), 0
    if (w & 0x3F200C00) == 0x19000000:  # LDAPUR, STLUR
        return (A_LD if (w >> 22) & 3 else A_ST), 0
    if (w & 0x3A000000) == 0x28000000 or (w & 0xBE000000) == 0x0C000000:  # pairs; vector structures
        return one, 0
    return 0, 0


BARRIER_PSB, BARRIER_DSB, BARRIER_ISB = 1, 2, 4


@compiled
def barrier(w: int) -> int:
    """Which of these barriers a word is: PSB CSYNC; DSB with any option, SSBB and PSSBB too; ISB; else 0."""
    if w == 0xD503223F:
        return BARRIER_PSB
    if (w & 0xFFFFF0FF) == 0xD503309F:
        return BARRIER_DSB
    return BARRIER_ISB if (w & 0xFFFFF0FF) == 0xD50330DF else 0
