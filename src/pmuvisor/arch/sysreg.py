"""Encodings and fields of the registers that the PMU and its traps use.

A register is named in the semantics by an integer, its `key`: op0<1:0>:op1:CRn:CRm:op2, 16 bits, in the order of the
A64 MRS and MSR encodings (Arm ARM C5.1). PMEVCNTR<n>_EL0 and PMEVTYPER<n>_EL0 are consecutive keys. Names are for
people: `name_of` and `BY_NAME` belong to reports and command lines, not to the semantics.
"""

from __future__ import annotations


def encode(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """Return the 16-bit key of a System register, or of a System instruction (op0 = 1)."""
    return ((op0 & 3) << 14) | (op1 << 11) | (crn << 7) | (crm << 3) | op2


PMCR_EL0 = encode(3, 3, 9, 12, 0)
PMCNTENSET_EL0 = encode(3, 3, 9, 12, 1)
PMCNTENCLR_EL0 = encode(3, 3, 9, 12, 2)
PMOVSCLR_EL0 = encode(3, 3, 9, 12, 3)
PMSWINC_EL0 = encode(3, 3, 9, 12, 4)
PMSELR_EL0 = encode(3, 3, 9, 12, 5)
PMCEID0_EL0 = encode(3, 3, 9, 12, 6)
PMCEID1_EL0 = encode(3, 3, 9, 12, 7)
PMCCNTR_EL0 = encode(3, 3, 9, 13, 0)
PMXEVTYPER_EL0 = encode(3, 3, 9, 13, 1)
PMXEVCNTR_EL0 = encode(3, 3, 9, 13, 2)
PMZR_EL0 = encode(3, 3, 9, 13, 4)
PMUSERENR_EL0 = encode(3, 3, 9, 14, 0)
PMOVSSET_EL0 = encode(3, 3, 9, 14, 3)
PMEVCNTR0_EL0 = encode(3, 3, 14, 8, 0)
PMEVTYPER0_EL0 = encode(3, 3, 14, 12, 0)
PMCCFILTR_EL0 = encode(3, 3, 14, 15, 7)
PMICNTR_EL0 = encode(3, 3, 9, 4, 0)
PMICFILTR_EL0 = encode(3, 3, 9, 6, 0)
PMINTENSET_EL1 = encode(3, 0, 9, 14, 1)
PMINTENCLR_EL1 = encode(3, 0, 9, 14, 2)
PMUACR_EL1 = encode(3, 0, 9, 14, 4)
PMMIR_EL1 = encode(3, 0, 9, 14, 6)
MDCR_EL2 = encode(3, 4, 1, 1, 1)
HDFGRTR_EL2 = encode(3, 4, 3, 1, 4)
HDFGWTR_EL2 = encode(3, 4, 3, 1, 5)
HDFGRTR2_EL2 = encode(3, 4, 3, 1, 0)
HDFGWTR2_EL2 = encode(3, 4, 3, 1, 1)
ID_AA64DFR0_EL1 = encode(3, 0, 0, 5, 0)

# The Statistical Profiling Extension
PMSCR_EL1 = encode(3, 0, 9, 9, 0)
PMSNEVFR_EL1 = encode(3, 0, 9, 9, 1)
PMSICR_EL1 = encode(3, 0, 9, 9, 2)
PMSIRR_EL1 = encode(3, 0, 9, 9, 3)
PMSFCR_EL1 = encode(3, 0, 9, 9, 4)
PMSEVFR_EL1 = encode(3, 0, 9, 9, 5)
PMSLATFR_EL1 = encode(3, 0, 9, 9, 6)
PMSIDR_EL1 = encode(3, 0, 9, 9, 7)
PMBLIMITR_EL1 = encode(3, 0, 9, 10, 0)
PMBPTR_EL1 = encode(3, 0, 9, 10, 1)
PMBSR_EL1 = encode(3, 0, 9, 10, 3)
PMSDSFR_EL1 = encode(3, 0, 9, 10, 4)
PMBIDR_EL1 = encode(3, 0, 9, 10, 7)
PMSCR_EL2 = encode(3, 4, 9, 9, 0)

MAX_EVENT_COUNTERS = 31
CYCLE = 31
"""The cycle counter's bit in every mask of counters (CYCLE_COUNTER_ID)."""
INSTRUCTION = 32
"""The instruction counter's bit in every mask of counters (INSTRUCTION_COUNTER_ID)."""
EVENT_COUNTERS = 0x7FFF_FFFF
"""All bits that an event counter can have in a mask of counters."""

# PMCR_EL0
PMCR_E = 1 << 0
PMCR_P = 1 << 1
PMCR_C = 1 << 2
PMCR_D = 1 << 3
PMCR_X = 1 << 4
PMCR_DP = 1 << 5
PMCR_LC = 1 << 6
PMCR_LP = 1 << 7
PMCR_FZO = 1 << 9
PMCR_N_SHIFT = 11

# PMUSERENR_EL0
PMUSERENR_EN = 1 << 0
PMUSERENR_SW = 1 << 1
PMUSERENR_CR = 1 << 2
PMUSERENR_ER = 1 << 3
PMUSERENR_UEN = 1 << 4
PMUSERENR_IR = 1 << 5
PMUSERENR_TID = 1 << 6

# PMEVTYPER<n>_EL0, PMCCFILTR_EL0, PMICFILTR_EL0: bit numbers of the filters
FILTER_P = 31
FILTER_U = 30
FILTER_NSK = 29
FILTER_NSU = 28
FILTER_NSH = 27
FILTER_M = 26
FILTER_MT = 25
FILTER_SH = 24

# PMEVTYPER<n>_EL0: the threshold function
TYPER_TC_SHIFT = 61
TYPER_TE_SHIFT = 60
TYPER_TLC_SHIFT = 54
TYPER_TH_SHIFT = 32

# PMMIR_EL1
PMMIR_THWIDTH_SHIFT = 20
PMMIR_EDGE_SHIFT = 24

# PMSCR_EL1 and PMSCR_EL2: E0SPE and E1SPE are E0HSPE and E2SPE in the latter
PMSCR_E0SPE = 1 << 0
PMSCR_E1SPE = 1 << 1
PMSCR_CX = 1 << 3
PMSCR_PA = 1 << 4
PMSCR_TS = 1 << 5
PMSCR_PCT = 1 << 6

# PMSIRR_EL1 and PMSICR_EL1
PMSIRR_RND = 1 << 0
PMSIRR_INTERVAL_SHIFT = 8
PMSICR_COUNT = 0xFFFF_FFFF
PMSICR_ECOUNT_SHIFT = 56

# PMSFCR_EL1
PMSFCR_FE = 1 << 0
PMSFCR_FT = 1 << 1
PMSFCR_FL = 1 << 2
PMSFCR_FNE = 1 << 3
PMSFCR_FDS = 1 << 4
PMSFCR_B = 1 << 16
PMSFCR_LD = 1 << 17
PMSFCR_ST = 1 << 18

# PMSIDR_EL1: FE, FT and FL are the three lowest bits
PMSIDR_FILTERS = 7
PMSIDR_ARCHINST_SHIFT = 3
PMSIDR_LDS_SHIFT = 4
PMSIDR_ERND_SHIFT = 5
PMSIDR_FNE_SHIFT = 6
PMSIDR_FDS_SHIFT = 7
PMSIDR_INTERVAL_SHIFT = 8
PMSIDR_MAXSIZE_SHIFT = 12
PMSIDR_COUNTSIZE_SHIFT = 16

# PMBLIMITR_EL1
PMBLIMITR_E = 1 << 0
PMBLIMITR_FM = 3 << 1
PMBLIMITR_FM_DISCARD = 2 << 1
PMBLIMITR_PMFZ = 1 << 5
PMBLIMITR_LIMIT_SHIFT = 12

# PMBSR_EL1
PMBSR_FSC = 0x3F
PMBSR_BSC_FULL = 1
PMBSR_COLL = 1 << 16
PMBSR_S = 1 << 17
PMBSR_EA = 1 << 18
PMBSR_DL = 1 << 19
PMBSR_EC_SHIFT = 26
PMBSR_EC_OTHER = 0x00
PMBSR_EC_STAGE1 = 0x24
PMBSR_EC_STAGE2 = 0x25
FSC_TRANSLATION = 0x07
"""A translation fault at level 3."""
FSC_ALIGNMENT = 0x21

# PMBIDR_EL1
PMBIDR_P = 1 << 4
PMBIDR_F = 1 << 5
PMBIDR_EA_IGNORED = 1 << 8
PMBIDR_MAXBUFFSIZE_SHIFT = 32

# MDCR_EL2
MDCR_HPMN = 0x1F
MDCR_TPMCR = 1 << 5
MDCR_TPM = 1 << 6
MDCR_HPME = 1 << 7
MDCR_TDOSA = 1 << 10
MDCR_TDRA = 1 << 11
MDCR_E2PB_SHIFT = 12
MDCR_E2PB = 3 << MDCR_E2PB_SHIFT
MDCR_TPMS = 1 << 14
MDCR_HPMD = 1 << 17
MDCR_TTRF = 1 << 19
MDCR_HCCD = 1 << 23
MDCR_E2TB = 3 << 24
MDCR_HLP = 1 << 26
MDCR_HPMFZO = 1 << 29

# HDFGRTR_EL2 and HDFGWTR_EL2: bit numbers (a set bit traps)
FGT_PMEVCNTRN = 12
FGT_PMEVTYPERN = 13
FGT_PMCCFILTR = 14
FGT_PMCCNTR = 15
FGT_PMCNTEN = 16
FGT_PMINTEN = 17
FGT_PMOVS = 18
FGT_PMSELR = 19
FGT_W_PMSWINC = 20
FGT_W_PMCR = 21
FGT_R_PMMIR = 22
FGT_PMBLIMITR = 23
FGT_PMBPTR = 24
FGT_PMBSR = 25
FGT_PMSCR = 26
FGT_PMSEVFR = 27
FGT_PMSFCR = 28
FGT_PMSICR = 29
FGT_R_PMSIDR = 30
FGT_PMSIRR = 31
FGT_PMSLATFR = 32
FGT_PMUSERENR = 57
FGT_R_PMCEIDN = 58
FGT_NPMSNEVFR = 62
"""Of this one a clear bit traps."""
FGT_R_PMBIDR = 63

# HDFGRTR2_EL2 and HDFGWTR2_EL2: bit numbers (a clear bit traps)
FGT2_NPMICNTR = 2
FGT2_NPMICFILTR = 3
FGT2_NPMUACR = 4
FGT2_NPMSDSFR = 19
FGT2_W_NPMZR = 21

# MDCR_EL3 and SCR_EL3: those that Non-secure state can see
MDCR_EL3_TPM = 1 << 6
MDCR_EL3_ENPM2 = 1 << 7
SCR_EL3_FGTEN = 1 << 27
SCR_EL3_FGTEN2 = 1 << 59

# ID_AA64DFR0_EL1.PMSVer
PMSVER_SHIFT = 32
SPE = 1
SPEV1P1 = 2
SPEV1P2 = 3
SPEV1P4 = 5

# ID_AA64DFR0_EL1.PMUVer
PMUV3P0 = 1
PMUV3P1 = 4
PMUV3P4 = 5
PMUV3P5 = 6
PMUV3P7 = 7
PMUV3P8 = 8
PMUV3P9 = 9

# ESR_ELx
EC_UNKNOWN = 0x00
EC_SYS64 = 0x18
ESR_EC_SHIFT = 26
ESR_IL = 1 << 25


def pmevcntr(n: int) -> int:
    """Return the key of PMEVCNTR<n>_EL0, n from 0 to 30."""
    return PMEVCNTR0_EL0 + n


def pmevtyper(n: int) -> int:
    """Return the key of PMEVTYPER<n>_EL0, n from 0 to 30; 31 is PMCCFILTR_EL0's."""
    return PMEVTYPER0_EL0 + n


def is_pmevcntr(key: int) -> bool:
    """Tell whether `key` is a PMEVCNTR<n>_EL0, n from 0 to 30."""
    return PMEVCNTR0_EL0 <= key < PMEVCNTR0_EL0 + MAX_EVENT_COUNTERS


def is_pmevtyper(key: int) -> bool:
    """Tell whether `key` is a PMEVTYPER<n>_EL0, n from 0 to 30."""
    return PMEVTYPER0_EL0 <= key < PMEVTYPER0_EL0 + MAX_EVENT_COUNTERS


def sys64_iss(key: int, rt: int, write: int) -> int:
    """Return the ISS of a trapped MSR or MRS (Arm ARM, "ISS encoding for an exception from MSR, MRS, or System
    instruction execution"): `rt` is the number of the general-purpose register, `write` is 1 for MSR.
    """
    op0 = (key >> 14) & 3
    op1 = (key >> 11) & 7
    crn = (key >> 7) & 15
    crm = (key >> 3) & 15
    op2 = key & 7
    return (op0 << 20) | (op2 << 17) | (op1 << 14) | (crn << 10) | (rt << 5) | (crm << 1) | (1 - write)


def sys64_esr(key: int, rt: int, write: int) -> int:
    """Return the ESR_ELx, 32 bits, of a trapped MSR or MRS: EC 0x18, IL, and its ISS."""
    return (EC_SYS64 << ESR_EC_SHIFT) | ESR_IL | sys64_iss(key, rt, write)


def undefined_esr() -> int:
    """Return the ESR_ELx of an UNDEFINED instruction: EC 0, IL, ISS 0."""
    return (EC_UNKNOWN << ESR_EC_SHIFT) | ESR_IL


BY_NAME: dict[str, int] = {
    name: value
    for name, value in list(globals().items())
    if name.endswith(("_EL0", "_EL1", "_EL2")) and isinstance(value, int)
}
BY_NAME |= {f"PMEVCNTR{n}_EL0": pmevcntr(n) for n in range(MAX_EVENT_COUNTERS)}
BY_NAME |= {f"PMEVTYPER{n}_EL0": pmevtyper(n) for n in range(MAX_EVENT_COUNTERS)}
"""Every register named here, by its name in the Arm ARM."""
_NAMES = {key: name for name, key in BY_NAME.items()}
SPE_SAMPLING_KEYS = (
    PMSCR_EL1,
    PMSNEVFR_EL1,
    PMSICR_EL1,
    PMSIRR_EL1,
    PMSFCR_EL1,
    PMSEVFR_EL1,
    PMSLATFR_EL1,
    PMSIDR_EL1,
    PMSDSFR_EL1,
)
"""The keys of the Statistical Profiling Unit's registers that say what is sampled."""
SPE_BUFFER_KEYS = (PMBLIMITR_EL1, PMBPTR_EL1, PMBSR_EL1, PMBIDR_EL1)
"""The keys of those that say where records go."""
SPE_KEYS: tuple[int, ...] = (*SPE_SAMPLING_KEYS, *SPE_BUFFER_KEYS)
PMU_KEYS: tuple[int, ...] = tuple(
    sorted(key for name, key in BY_NAME.items() if name.startswith("PM") and key not in (*SPE_KEYS, PMSCR_EL2))
)
"""The keys of the registers of the PMU."""


def name_of(key: int) -> str:
    """Return the Arm ARM's name of a register, or its S<op0>_<op1>_C<n>_C<m>_<op2> form where none is known."""
    if key in _NAMES:
        return _NAMES[key]
    op0, op1, crn, crm, op2 = (key >> 14) & 3, (key >> 11) & 7, (key >> 7) & 15, (key >> 3) & 15, key & 7
    return f"S{op0 or 4}_{op1}_C{crn}_C{crm}_{op2}"
