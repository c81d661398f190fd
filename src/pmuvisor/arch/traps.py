"""Where an access to a PMU register goes: through, UNDEFINED, or trapped to EL1, EL2 or EL3.

States the "Accessing" part of each PMU register's page (Arm ARM D24.5), in its order: existence; counters from N up;
PMUSERENR_EL0 for EL0; HDFGRTR/HDFGWTR(2)_EL2 and MDCR_EL2.{TPM, TPMCR} for EL0 and EL1; the counters that EL2 keeps;
MDCR_EL3.{EnPM2, TPM} for all. A trap carries EC 0x18 and the full ISS (`sysreg.sys64_esr`); an UNDEFINED one EC 0.
"""

from __future__ import annotations

from pmuvisor.arch.pmu import (
    Pe,
    counter_of,
    fgt2_enabled,
    fgt_enabled,
    get_num_event_counters_accessible,
    user_enable,
)
from pmuvisor.arch.sysreg import (
    CYCLE,
    FGT2_NPMICFILTR,
    FGT2_NPMICNTR,
    FGT2_NPMUACR,
    FGT2_W_NPMZR,
    FGT_PMCCFILTR,
    FGT_PMCCNTR,
    FGT_PMCNTEN,
    FGT_PMEVCNTRN,
    FGT_PMEVTYPERN,
    FGT_PMINTEN,
    FGT_PMOVS,
    FGT_PMSELR,
    FGT_PMUSERENR,
    FGT_R_PMCEIDN,
    FGT_R_PMMIR,
    FGT_W_PMCR,
    FGT_W_PMSWINC,
    MDCR_EL3_ENPM2,
    MDCR_EL3_TPM,
    MDCR_TPM,
    MDCR_TPMCR,
    PMCCFILTR_EL0,
    PMCCNTR_EL0,
    PMCEID0_EL0,
    PMCEID1_EL0,
    PMCNTENCLR_EL0,
    PMCNTENSET_EL0,
    PMCR_EL0,
    PMICFILTR_EL0,
    PMICNTR_EL0,
    PMINTENCLR_EL1,
    PMINTENSET_EL1,
    PMMIR_EL1,
    PMOVSCLR_EL0,
    PMOVSSET_EL0,
    PMSELR_EL0,
    PMSWINC_EL0,
    PMUACR_EL1,
    PMUSERENR_CR,
    PMUSERENR_EL0,
    PMUSERENR_EN,
    PMUSERENR_ER,
    PMUSERENR_SW,
    PMUSERENR_TID,
    PMUSERENR_UEN,
    PMUV3P4,
    PMUV3P9,
    PMXEVCNTR_EL0,
    PMXEVTYPER_EL0,
    PMZR_EL0,
    is_pmevcntr,
    is_pmevtyper,
)
from pmuvisor.arch.unpredictable import UNPREDICTABLE_EVENT_COUNTER

ALLOWED = 0
UNDEFINED = 1
TRAP_EL1 = 2
TRAP_EL2 = 3
TRAP_EL3 = 4

NO_TRAP_BIT = 63
"""Stands for "no bit of this register traps that"; bit 63 of both is another unit's or RES0."""


def is_pmu_register(key: int) -> bool:
    """Tell whether `key` is the encoding of a register of the PMU, implemented or not."""
    if is_pmevcntr(key) or is_pmevtyper(key) or PMCR_EL0 <= key <= PMCEID1_EL0:
        return True
    if key in (PMCCNTR_EL0, PMXEVTYPER_EL0, PMXEVCNTR_EL0, PMUSERENR_EL0, PMOVSSET_EL0, PMCCFILTR_EL0):
        return True
    if key in (PMICNTR_EL0, PMICFILTR_EL0, PMUACR_EL1, PMZR_EL0):
        return True
    return key in (PMINTENSET_EL1, PMINTENCLR_EL1, PMMIR_EL1)


def exists(pe: Pe, el: int, key: int, write: int) -> bool:
    """Tell whether the register has such an accessor at `el` on this core; if not, the access is UNDEFINED."""
    if key == PMMIR_EL1:
        return write == 0 and el > 0 and pe.core.pmuver >= PMUV3P4
    if key in (PMINTENSET_EL1, PMINTENCLR_EL1):
        return el > 0
    if key == PMUACR_EL1:
        return el > 0 and pe.core.pmuver >= PMUV3P9
    if key == PMZR_EL0:
        return write == 1 and pe.core.pmuver >= PMUV3P9
    if key in (PMCEID0_EL0, PMCEID1_EL0):
        return write == 0
    if key == PMSWINC_EL0:
        return write == 1
    if key == PMUSERENR_EL0:
        return write == 0 or el > 0
    if key in (PMICNTR_EL0, PMICFILTR_EL0):
        return pe.core.icntr == 1
    return is_pmu_register(key)


def event_counter_of(pe: Pe, key: int) -> int:
    """Return the event counter that an access is about, or CYCLE (31) where it is about none."""
    if is_pmevcntr(key) or is_pmevtyper(key) or key in (PMXEVCNTR_EL0, PMXEVTYPER_EL0):
        return counter_of(pe, key)
    return CYCLE


def pmuserenr_allows(pe: Pe, key: int, write: int) -> bool:
    """Tell whether PMUSERENR_EL0 lets EL0 through: EN or UEN for all, ER, CR and SW each for its own registers.

    UEN shuts PMCR_EL0, and alone opens the instruction counter; TID shuts PMCEID<n>_EL0.
    """
    if key == PMUSERENR_EL0:
        return True
    if key in (PMICNTR_EL0, PMICFILTR_EL0):
        return user_enable(pe, 0) == 1
    if key == PMCR_EL0 and user_enable(pe, 0) == 1:
        return False
    if key in (PMCEID0_EL0, PMCEID1_EL0) and (pe.userenr & PMUSERENR_TID) != 0:
        return False
    bits = PMUSERENR_EN | PMUSERENR_UEN
    if key == PMSWINC_EL0:
        bits |= PMUSERENR_SW
    if key == PMCCNTR_EL0 and write == 0:
        bits |= PMUSERENR_CR
    if key == PMSELR_EL0 or ((key == PMXEVCNTR_EL0 or is_pmevcntr(key)) and write == 0):
        bits |= PMUSERENR_ER
    return (pe.userenr & bits) != 0


def fgt_bit(key: int, write: int) -> int:
    """Return the number of the bit of HDFGRTR_EL2 (HDFGWTR_EL2 where `write`) that traps the access.

    PMXEVTYPER_EL0 goes by PMEVTYPERn_EL0 whatever it selects, the cycle counter's filter included.
    """
    if is_pmevcntr(key) or key == PMXEVCNTR_EL0:
        return FGT_PMEVCNTRN
    if is_pmevtyper(key) or key == PMXEVTYPER_EL0:
        return FGT_PMEVTYPERN
    if key == PMCCFILTR_EL0:
        return FGT_PMCCFILTR
    if key == PMCCNTR_EL0:
        return FGT_PMCCNTR
    if key in (PMCNTENSET_EL0, PMCNTENCLR_EL0):
        return FGT_PMCNTEN
    if key in (PMINTENSET_EL1, PMINTENCLR_EL1):
        return FGT_PMINTEN
    if key in (PMOVSSET_EL0, PMOVSCLR_EL0):
        return FGT_PMOVS
    if key == PMSELR_EL0:
        return FGT_PMSELR
    if key == PMUSERENR_EL0:
        return FGT_PMUSERENR
    return _one_way_fgt_bit(key, write)


def _one_way_fgt_bit(key: int, write: int) -> int:
    """Return the bit for a register that has one in only one of HDFGRTR_EL2 and HDFGWTR_EL2."""
    if key == PMSWINC_EL0:
        return FGT_W_PMSWINC
    if key == PMCR_EL0 and write == 1:
        return FGT_W_PMCR
    if key == PMMIR_EL1:
        return FGT_R_PMMIR
    if key in (PMCEID0_EL0, PMCEID1_EL0):
        return FGT_R_PMCEIDN
    return NO_TRAP_BIT


def trapped_to_el2(pe: Pe, key: int, write: int) -> bool:
    """Tell whether fine-grained traps, TPM or TPMCR send an access from EL1 or EL0 to EL2."""
    if (pe.mdcr_el2 & MDCR_TPM) != 0:
        return True
    if key == PMCR_EL0 and (pe.mdcr_el2 & MDCR_TPMCR) != 0:
        return True
    if pe.tge == 1:
        return False
    if key in (PMICNTR_EL0, PMICFILTR_EL0, PMUACR_EL1, PMZR_EL0):
        return _trapped_by_fgt2(pe, key, write)
    if fgt_enabled(pe) == 0:
        return False
    bit = fgt_bit(key, write)
    if bit == NO_TRAP_BIT:
        return False
    if write == 1:
        return (pe.hdfgwtr_el2 >> bit) & 1 == 1
    return (pe.hdfgrtr_el2 >> bit) & 1 == 1


def _trapped_by_fgt2(pe: Pe, key: int, write: int) -> bool:
    """Tell whether HDFGRTR2_EL2 or HDFGWTR2_EL2, whose clear bits trap, stop an access."""
    if pe.core.fgt2 == 0:
        return False
    if fgt2_enabled(pe) == 0:
        return True
    bit = FGT2_NPMICFILTR
    if key == PMICNTR_EL0:
        bit = FGT2_NPMICNTR
    elif key == PMUACR_EL1:
        bit = FGT2_NPMUACR
    elif key == PMZR_EL0:
        bit = FGT2_W_NPMZR
    if write == 1:
        return (pe.hdfgwtr2_el2 >> bit) & 1 == 0
    return (pe.hdfgrtr2_el2 >> bit) & 1 == 0


def trapped_to_el3(pe: Pe, key: int) -> bool:
    """Tell whether MDCR_EL3.TPM, or for the instruction counter and PMUACR_EL1 EnPM2, send an access to EL3."""
    if pe.core.el3 == 0:
        return False
    if key in (PMICNTR_EL0, PMICFILTR_EL0, PMUACR_EL1) and (pe.mdcr_el3 & MDCR_EL3_ENPM2) == 0:
        return True
    return (pe.mdcr_el3 & MDCR_EL3_TPM) != 0


def access(pe: Pe, el: int, key: int, write: int) -> int:
    """Return where an MRS (`write` 0) or MSR (`write` 1) of PMU register `key` at `el` goes.

    ALLOWED, UNDEFINED, TRAP_EL1, TRAP_EL2 or TRAP_EL3; where the architecture leaves the outcome open, the choice made
    is recorded in `pe.unpredictable`.
    """
    if not exists(pe, el, key, write):
        return UNDEFINED
    counter = event_counter_of(pe, key)
    if counter >= pe.core.event_counters and (counter != CYCLE or key == PMXEVCNTR_EL0):
        if pe.core.fgt == 0:
            pe.unpredictable |= UNPREDICTABLE_EVENT_COUNTER
        return UNDEFINED
    if el == 0 and not pmuserenr_allows(pe, key, write):
        if pe.tge == 1:
            return TRAP_EL2
        return TRAP_EL1
    if el < 2 and trapped_to_el2(pe, key, write):
        return TRAP_EL2
    if counter != CYCLE and counter >= get_num_event_counters_accessible(pe, el):
        if pe.core.fgt == 1:
            return TRAP_EL2
        pe.unpredictable |= UNPREDICTABLE_EVENT_COUNTER
        return UNDEFINED
    if trapped_to_el3(pe, key):
        return TRAP_EL3
    return ALLOWED
