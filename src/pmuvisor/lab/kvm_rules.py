"""How KVM's emulated PMU deviates from the architecture for a guest with a virtual EL2.

Linux 7.2: arch/arm64/kvm/{emulate-nested, sys_regs, pmu-emul}.c. EL1 and EL0 are those of a guest of that guest, whose
accesses all trap to KVM, which forwards them to the virtual EL2 or emulates them.
"""

from __future__ import annotations

from pmuvisor.arch import pmu, traps
from pmuvisor.arch.events import CHAIN, SW_INCR
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import (
    CYCLE,
    EVENT_COUNTERS,
    FGT_PMEVCNTRN,
    FGT_PMEVTYPERN,
    MDCR_TPM,
    PMCCFILTR_EL0,
    PMCCNTR_EL0,
    PMCNTENCLR_EL0,
    PMCNTENSET_EL0,
    PMCR_E,
    PMCR_EL0,
    PMINTENCLR_EL1,
    PMINTENSET_EL1,
    PMOVSCLR_EL0,
    PMOVSSET_EL0,
    PMSWINC_EL0,
    PMU_KEYS,
    PMXEVCNTR_EL0,
    PMXEVTYPER_EL0,
)
from pmuvisor.lab.references import (
    DONE,
    Effect,
    Rule,
    answer_without_fgt,
    architecture_answer,
    architecture_effect,
    beyond,
    exception,
)
from pmuvisor.lab.vectors import Answer, Operation

_SELECTED = (PMXEVCNTR_EL0, PMXEVTYPER_EL0)
_ENABLES = {PMCNTENSET_EL0: "cnten", PMCNTENCLR_EL0: "cnten", PMINTENSET_EL1: "inten", PMINTENCLR_EL1: "inten"}
_SETS = {**_ENABLES, PMOVSSET_EL0: "ovs", PMOVSCLR_EL0: "ovs"}
_answer_selected = answer_without_fgt((1 << FGT_PMEVCNTRN) | (1 << FGT_PMEVTYPERN))


def _answer(pe: Pe, op: Operation) -> Answer:
    return _answer_selected(pe, op) if op.key in _SELECTED else architecture_answer(pe, op)


def _goes_through(pe: Pe, op: Operation) -> bool:
    return _answer(pe, op).esr == 0


def _trapped(pe: Pe, op: Operation) -> Answer:
    return exception(op, traps.TRAP_EL2)


def _undefined(pe: Pe, op: Operation) -> Answer:
    return exception(op, traps.UNDEFINED)


# ---- where an access goes -----------------------------------------------------------------------------------------


def _refused_by_pmuserenr(pe: Pe, op: Operation) -> bool:
    return op.el == 0 and traps.access(pe, 0, op.key, op.write) == traps.TRAP_EL1


def _forwarded(pe: Pe, op: Operation) -> bool:
    """Tell whether an access from EL0 would be trapped to EL2 if PMUSERENR_EL0 let it through."""
    return _answer(pe, op._replace(el=1)).exception_el == 2


def _beyond_n_trapped(pe: Pe, op: Operation) -> bool:
    return op.el < 2 and beyond(pe, op.key) and (pe.mdcr_el2 & MDCR_TPM) != 0


def _selects_cycle_counter(pe: Pe, op: Operation) -> bool:
    if pe.selr != CYCLE or (op.el < 2 and (pe.mdcr_el2 & MDCR_TPM) != 0):
        return False
    return op.el > 0 or traps.pmuserenr_allows(pe, op.key, op.write)


def _read_cycle_counter(pe: Pe, op: Operation) -> Answer:
    return DONE if op.write else Answer(pe.ccntr, 0, 0)


def _write_cycle_counter(pe: Pe, op: Operation) -> None:
    pmu.write(pe, op.el, PMCCNTR_EL0, op.value)


# ---- what it reads and does ---------------------------------------------------------------------------------------


def _reads_second_range(pe: Pe, op: Operation) -> bool:
    return op.el < 2 and op.write == 0 and _goes_through(pe, op)


def _read_whole(pe: Pe, op: Operation) -> Answer:
    return Answer(getattr(pe, _SETS[op.key]), 0, 0)


def _increments(pe: Pe, op: Operation) -> bool:
    return _goes_through(pe, op)


def _increment(across: bool) -> Effect:
    """Return kvm_pmu_counter_increment, whose CHAIN goes `across` from the first range to the second or does not."""

    def effect(pe: Pe, op: Operation) -> None:
        enabled = pe.cnten & -(pe.pmcr & PMCR_E) & EVENT_COUNTERS
        hits = op.value & enabled & pmu.get_pmu_access_mask(pe, op.el) & pmu.selecting(pe, SW_INCR)
        chains = enabled & pmu.selecting(pe, CHAIN)
        if not across:
            chains &= ~(1 << pmu.effective_hpmn(pe))
        long = pmu.long_counters(pe)
        chained = 0
        for i in range(pe.core.event_counters):
            more = ((hits >> i) & 1) + (chained & (chains >> i))
            chained = pmu.increment_event_counter(pe, i, more, (long >> i) & 1)

    return effect


def _toggles_e(pe: Pe, op: Operation) -> bool:
    return op.el < 2 and op.write == 1 and ((pe.pmcr ^ op.value) & PMCR_E) != 0 and _goes_through(pe, op)


def _write_pmcr_and_reload(pe: Pe, op: Operation) -> None:
    architecture_effect(pe, op)
    kept = pmu.first_range(pe)
    pe.cnten &= kept
    pe.inten &= kept
    pe.ovs &= kept


def _sets_event_of_cycle_counter(pe: Pe, op: Operation) -> bool:
    of_cycle_counter = op.key == PMCCFILTR_EL0 or pe.selr == CYCLE
    return op.write == 1 and of_cycle_counter and _goes_through(pe, op)


def _store_event_of_cycle_counter(pe: Pe, op: Operation) -> None:
    pe.ccfiltr = op.value & (pmu.filter_bits(pe) | pmu.EVENT_FIELD)


RULES = (
    Rule(
        "trap-to-el2-before-pmuserenr",
        "An access from EL0 that EL2 traps goes to EL2 though PMUSERENR_EL0 refuses it",
        "KVM: triage_sysreg_trap runs before access_*; manual: the accessibility of each register",
        frozenset(PMU_KEYS),
        lambda pe, op: _refused_by_pmuserenr(pe, op) and _forwarded(pe, op),
        _trapped,
    ),
    Rule(
        "pmuserenr-undefined",
        "An access from EL0 that PMUSERENR_EL0 refuses is UNDEFINED (EC 0x00), not trapped to EL1 (EC 0x18)",
        "KVM: check_pmu_access_disabled; manual: PMUSERENR_EL0",
        frozenset(PMU_KEYS),
        lambda pe, op: _refused_by_pmuserenr(pe, op) and not _forwarded(pe, op),
        _undefined,
    ),
    Rule(
        "no-fgt-of-pmxev",
        "HDFGRTR_EL2 and HDFGWTR_EL2 do not trap PMXEVCNTR_EL0 and PMXEVTYPER_EL0",
        "KVM: encoding_to_fgt; manual: HDFGRTR_EL2.{PMEVCNTRn_EL0, PMEVTYPERn_EL0}",
        frozenset(_SELECTED),
        lambda pe, op: op.el == 1 or (op.el == 0 and not _refused_by_pmuserenr(pe, op)),
        _answer_selected,
    ),
    Rule(
        "pmxev-beyond-n-traps-first",
        "PMXEVCNTR_EL0 and PMXEVTYPER_EL0 with PMSELR_EL0.SEL >= N trap by MDCR_EL2.TPM before they are UNDEFINED",
        "KVM: triage_sysreg_trap runs before pmu_counter_idx_valid; manual: PMXEVCNTR_EL0, PMXEVTYPER_EL0",
        frozenset(_SELECTED),
        _beyond_n_trapped,
        _trapped,
    ),
    Rule(
        "pmxevcntr-cycle-counter",
        "PMXEVCNTR_EL0 with PMSELR_EL0.SEL = 31 is the cycle counter",
        "KVM: access_pmu_evcntr, pmu_counter_idx_valid; manual: PMXEVCNTR_EL0",
        frozenset((PMXEVCNTR_EL0,)),
        _selects_cycle_counter,
        _read_cycle_counter,
        _write_cycle_counter,
    ),
    Rule(
        "second-range-readable",
        "Reads of PMCNTEN*, PMINTEN* and PMOVS* at EL1 and EL0 show the second range as well",
        "KVM: access_{pmcnten, pminten, pmovs}; manual: PMCNTENSET_EL0, PMINTENSET_EL1, PMOVSSET_EL0",
        frozenset(_SETS),
        _reads_second_range,
        _read_whole,
    ),
    Rule(
        "sw-incr-gated-by-pmcr-e-alone",
        "PMSWINC_EL0 goes by PMCR_EL0.E and PMCNTEN alone: no filter, no MDCR_EL2.HPMD, nor HPME for the second range",
        "KVM: kvm_pmu_counter_increment; manual: PMSWINC_EL0, CountPMUEvents()",
        frozenset((PMSWINC_EL0,)),
        _increments,
        effect=_increment(across=False),
    ),
    Rule(
        "chain-across-hpmn",
        "The overflow of the first range's last counter is CHAIN for the second range's first",
        "KVM: kvm_pmu_counter_can_chain; manual: event 0x001E, CHAIN, which leaves it open",
        frozenset((PMSWINC_EL0,)),
        _increments,
        effect=_increment(across=True),
    ),
    Rule(
        "pmcr-e-clears-second-range",
        "A write at EL1 or EL0 that changes PMCR_EL0.E clears the second range's PMCNTEN, PMINTEN and PMOVS",
        "KVM: kvm_vcpu_reload_pmu with the PMCR_EL0.N that EL1 sees; manual: PMCR_EL0.E",
        frozenset((PMCR_EL0,)),
        _toggles_e,
        effect=_write_pmcr_and_reload,
    ),
    Rule(
        "pmccfiltr-event-bits",
        "PMCCFILTR_EL0, also as PMXEVTYPER_EL0, keeps the bits of an event number",
        "KVM: kvm_pmu_set_counter_event_type; manual: PMCCFILTR_EL0",
        frozenset((PMCCFILTR_EL0, PMXEVTYPER_EL0)),
        _sets_event_of_cycle_counter,
        _answer,
        _store_event_of_cycle_counter,
    ),
)
