"""How QEMU's CPU model deviates from the architecture: target/arm/cpregs-pmu.c of QEMU 11.1, `-cpu max` without EL3."""

from __future__ import annotations

from pmuvisor.arch import pmu
from pmuvisor.arch.events import CHAIN, SW_INCR
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import (
    CYCLE,
    EVENT_COUNTERS,
    FGT_PMUSERENR,
    FILTER_M,
    FILTER_NSK,
    FILTER_NSU,
    MDCR_TPM,
    PMCCFILTR_EL0,
    PMCCNTR_EL0,
    PMEVTYPER0_EL0,
    PMSELR_EL0,
    PMSWINC_EL0,
    PMUSERENR_CR,
    PMUSERENR_EL0,
    PMUSERENR_ER,
    PMUSERENR_SW,
    PMXEVCNTR_EL0,
    PMXEVTYPER_EL0,
    is_pmevcntr,
)
from pmuvisor.lab.references import (
    DONE,
    EVENT_COUNTER_KEYS,
    EVENT_TYPE_KEYS,
    Rule,
    answer_without_fgt,
    architecture_answer,
    architecture_effect,
    beyond,
)
from pmuvisor.lab.vectors import Answer, Operation

_OF_EL3 = (1 << FILTER_NSK) | (1 << FILTER_NSU) | (1 << FILTER_M)


def _own_bit(op: Operation) -> int:
    """Return the bit of PMUSERENR_EL0 that lets EL0 do this whatever EN says, or 0 where there is none."""
    if op.key == PMSWINC_EL0:
        return PMUSERENR_SW
    if op.key == PMSELR_EL0:
        return PMUSERENR_ER
    if op.write:
        return 0
    if op.key == PMCCNTR_EL0:
        return PMUSERENR_CR
    return PMUSERENR_ER if op.key == PMXEVCNTR_EL0 or is_pmevcntr(op.key) else 0


def _past_tpm(pe: Pe, op: Operation) -> bool:
    return op.el == 0 and (pe.mdcr_el2 & MDCR_TPM) != 0 and (pe.userenr & _own_bit(op)) != 0


def _answer_past_tpm(pe: Pe, op: Operation) -> Answer:
    if not _past_tpm(pe, op):
        return architecture_answer(pe, op)
    mdcr = pe.mdcr_el2
    pe.mdcr_el2 = mdcr & ~MDCR_TPM
    answer = architecture_answer(pe, op)
    pe.mdcr_el2 = mdcr
    return answer


def _beyond_n(pe: Pe, op: Operation) -> bool:
    return beyond(pe, op.key)


def _answer_raz_wi(pe: Pe, op: Operation) -> Answer:
    """Trap where an access to counter 0 traps; it is always there, and in the first range."""
    selected = pe.selr
    pe.selr = 0
    answer = _answer_past_tpm(pe, op)
    pe.selr = selected
    return answer if answer.exception_el else DONE


def _ignore(pe: Pe, op: Operation) -> None:
    pass


def _some_chain(pe: Pe, op: Operation) -> bool:
    return pmu.selecting(pe, CHAIN) != 0


def _increment_without_chain(pe: Pe, op: Operation) -> None:
    counting = pmu.count_pmu_events(pe, op.el) & pmu.get_pmu_access_mask(pe, op.el) & EVENT_COUNTERS
    hits = op.value & counting & pmu.selecting(pe, SW_INCR)
    long = pmu.long_counters(pe)
    for i in range(pe.core.event_counters):
        pmu.increment_event_counter(pe, i, (hits >> i) & 1, (long >> i) & 1)


def _sets_bits_of_el3(pe: Pe, op: Operation) -> bool:
    return op.write == 1 and (op.value & _OF_EL3 & ~pmu.filter_bits(pe)) != 0 and not beyond(pe, op.key)


def _store_bits_of_el3(pe: Pe, op: Operation) -> None:
    architecture_effect(pe, op)
    counter = op.key - PMEVTYPER0_EL0
    if op.key == PMXEVTYPER_EL0:
        counter = pe.selr
    if counter == CYCLE:
        pe.ccfiltr |= op.value & _OF_EL3
    else:
        pe.evtyper[counter] |= op.value & _OF_EL3


RULES = (
    Rule(
        "pmuserenr-past-tpm",
        "PMUSERENR_EL0.{ER, SW, CR} let EL0 past MDCR_EL2.TPM",
        "QEMU: pmreg_access_{xevcntr, selr, swinc, ccntr}; manual: MDCR_EL2.TPM",
        frozenset((*EVENT_COUNTER_KEYS, PMXEVCNTR_EL0, PMSELR_EL0, PMSWINC_EL0, PMCCNTR_EL0)),
        _past_tpm,
        _answer_past_tpm,
    ),
    Rule(
        "pmxev-beyond-n-raz-wi",
        "PMXEVCNTR_EL0 and PMXEVTYPER_EL0 with PMSELR_EL0.SEL >= N are RAZ/WI, where they do not trap",
        "QEMU: pmevcntr_{read, write}, pmevtyper_{read, write}; manual: PMXEVCNTR_EL0, PMXEVTYPER_EL0",
        frozenset((PMXEVCNTR_EL0, PMXEVTYPER_EL0)),
        _beyond_n,
        _answer_raz_wi,
        _ignore,
    ),
    Rule(
        "no-chain-event",
        "CHAIN is never counted",
        "QEMU: pm_events, pmswinc_write; manual: event 0x001E, CHAIN",
        frozenset((PMSWINC_EL0,)),
        _some_chain,
        _answer_past_tpm,
        _increment_without_chain,
    ),
    Rule(
        "filter-bits-without-el3",
        "The filter bits NSK, NSU and M are stored though there is no EL3; they filter nothing",
        "QEMU: pmevtyper_write, pmccfiltr_write; manual: PMEVTYPER<n>_EL0, PMCCFILTR_EL0",
        frozenset((*EVENT_TYPE_KEYS, PMXEVTYPER_EL0, PMCCFILTR_EL0)),
        _sets_bits_of_el3,
        effect=_store_bits_of_el3,
    ),
    Rule(
        "no-fgt-of-pmuserenr",
        "HDFGRTR_EL2 and HDFGWTR_EL2 bit 57 do not trap PMUSERENR_EL0",
        "QEMU: the entry of PMUSERENR_EL0; manual: HDFGRTR_EL2.PMUSERENR_EL0",
        frozenset((PMUSERENR_EL0,)),
        lambda pe, op: op.el < 2,
        answer_without_fgt(1 << FGT_PMUSERENR),
    ),
)
