"""PMUv3: which counters count, what overflow does, what a register reads as and what writing it changes.

Each function states one of the Arm ARM's pseudocode functions (J1.3.1, "shared/debug/pmu", and J1.1.1,
"aarch64/debug/pmu") or the "Accessing" part of one register's page, and is named after it. Who may reach a register at
all is `traps`' matter: `read` and `write` here assume that the access was allowed.

Sets of counters are masks: bit n is event counter n, bit 31 the cycle counter, bit 32 the instruction counter. `el` is
the Exception level, 0 to 2, in Non-secure state. Amounts are at most 2**62 and at most the counter's mask.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor.arch.events import CHAIN, INST_RETIRED, SW_INCR
from pmuvisor.arch.sysreg import (
    CYCLE,
    EVENT_COUNTERS,
    FGT2_NPMICFILTR,
    FGT2_NPMICNTR,
    FILTER_M,
    FILTER_MT,
    FILTER_NSH,
    FILTER_NSK,
    FILTER_NSU,
    FILTER_P,
    FILTER_SH,
    FILTER_U,
    INSTRUCTION,
    MDCR_EL3_ENPM2,
    MDCR_HCCD,
    MDCR_HLP,
    MDCR_HPMD,
    MDCR_HPME,
    MDCR_HPMFZO,
    MDCR_HPMN,
    PMCCFILTR_EL0,
    PMCCNTR_EL0,
    PMCEID0_EL0,
    PMCEID1_EL0,
    PMCNTENCLR_EL0,
    PMCNTENSET_EL0,
    PMCR_C,
    PMCR_D,
    PMCR_DP,
    PMCR_E,
    PMCR_EL0,
    PMCR_FZO,
    PMCR_LC,
    PMCR_LP,
    PMCR_N_SHIFT,
    PMCR_P,
    PMCR_X,
    PMEVCNTR0_EL0,
    PMEVTYPER0_EL0,
    PMICFILTR_EL0,
    PMICNTR_EL0,
    PMINTENCLR_EL1,
    PMINTENSET_EL1,
    PMMIR_EDGE_SHIFT,
    PMMIR_EL1,
    PMMIR_THWIDTH_SHIFT,
    PMOVSCLR_EL0,
    PMOVSSET_EL0,
    PMSELR_EL0,
    PMSWINC_EL0,
    PMUACR_EL1,
    PMUSERENR_CR,
    PMUSERENR_EL0,
    PMUSERENR_EN,
    PMUSERENR_ER,
    PMUSERENR_IR,
    PMUSERENR_SW,
    PMUSERENR_TID,
    PMUSERENR_UEN,
    PMUV3P1,
    PMUV3P5,
    PMUV3P7,
    PMUV3P8,
    PMUV3P9,
    PMXEVCNTR_EL0,
    PMXEVTYPER_EL0,
    PMZR_EL0,
    SCR_EL3_FGTEN,
    SCR_EL3_FGTEN2,
    TYPER_TC_SHIFT,
    TYPER_TE_SHIFT,
    TYPER_TH_SHIFT,
    TYPER_TLC_SHIFT,
    is_pmevcntr,
    is_pmevtyper,
)
from pmuvisor.arch.unpredictable import (
    UNPREDICTABLE_CHAIN,
    UNPREDICTABLE_EVENT,
    UNPREDICTABLE_HPMN,
    UNPREDICTABLE_SEL,
)
from pmuvisor.records import U1, U4, U5, U6, U7, U16, U32, U33, U64, Bits, Each, Role, record

EVENT_FIELD = 0xFFFF
"""PMEVTYPER<n>_EL0.evtCount with the extension of PMUv3p1."""


@record
class Features:
    """What a core implements of the PMU: constant in a run."""

    event_counters: U5
    """N, 0 to 31."""
    pmuver: U4
    """ID_AA64DFR0_EL1.PMUVer."""
    hpmn0: U1
    fgt: U1
    fgt2: U1
    icntr: U1
    """FEAT_PMUv3_ICNTR."""
    el3: U1
    sel2: U1
    """FEAT_SEL2: Secure EL2."""
    mt: U1
    """The core is multithreaded: PMEVTYPER<n>_EL0.MT is not RES0."""
    aarch32: U1
    """Some Exception level can use AArch32: PMCR_EL0.LC is not RES1."""
    identity: U16
    """PMCR_EL0.{IMP, IDCODE}."""
    pmceid0: U64
    pmceid1: U64
    pmmir: U32
    half_bits: U6
    """Where short counters overflow: 32, less in a model scaled down."""
    half_mask: U64
    counter_mask: U64
    """The bits that a 64-bit counter has: all of them, less in a model scaled down."""
    counter_top: U6
    """The number of its highest bit."""


@record
class Pe:
    """One PE's PMU, and the EL2 registers that govern it."""

    core: Features
    pmcr: U32
    """The bits of PMCR_EL0 that are state: E, D, X, DP, LC, LP, FZO."""
    cnten: U33
    inten: U33
    ovs: U33
    selr: U5
    userenr: U7
    uacr: U33
    """PMUACR_EL1, which is there from PMUv3p9."""
    evcntr: Annotated[list[int], Each("event_counters", "counter_width")]
    evtyper: Annotated[list[int], Each("event_counters", 64)]
    ccntr: Annotated[int, Bits("counter_width")]
    ccfiltr: U32
    icntr: Annotated[int, Bits("counter_width")]
    icfiltr: U32
    divider: U6
    """Cycles since PMCCNTR_EL0 last counted, where PMCR_EL0.D divides by 64."""
    mdcr_el2: U64
    hdfgrtr_el2: U64
    hdfgwtr_el2: U64
    hdfgrtr2_el2: U64
    hdfgwtr2_el2: U64
    mdcr_el3: U64
    """What firmware at EL3 has set; of it and SCR_EL3 Non-secure state sees TPM and EnPM2, FGTEn and FGTEn2."""
    scr_el3: U64
    tge: U1
    """HCR_EL2.TGE with E2H = 1: the host and its processes run, not a guest."""
    unpredictable: Annotated[int, Bits(8), Role.LEDGER]
    """Which of `unpredictable.CHOICES` a run has come to depend on."""


# ---- arithmetic that reads the same for Python's integers, signed 64-bit ones and bit vectors -------------


def nonzero(value: int) -> int:
    """Return 1 where `value`, 64 bits, is not zero, else 0, without a branch."""
    return ((value | -value) >> 63) & 1


def equal(a: int, b: int) -> int:
    """Return 1 where `a` and `b` are equal, else 0, without a branch."""
    return 1 - nonzero(a ^ b)


# ---- ranges -----------------------------------------------------------------------------------------------


def effective_hpmn(pe: Pe) -> int:
    """State EffectiveHPMN(): how many event counters are in the first range."""
    hpmn = pe.mdcr_el2 & MDCR_HPMN
    if hpmn > pe.core.event_counters or (hpmn == 0 and pe.core.hpmn0 == 0):
        pe.unpredictable |= UNPREDICTABLE_HPMN
        hpmn = pe.core.event_counters
    return hpmn


def event_counters(pe: Pe) -> int:
    """Return the mask of all event counters implemented."""
    return (1 << pe.core.event_counters) - 1


def fixed_counters(pe: Pe) -> int:
    """Return the mask of the counters in neither range, which follow the first range's controls."""
    return (1 << CYCLE) | (pe.core.icntr << INSTRUCTION)


def first_range(pe: Pe) -> int:
    """State GetPMUCounterRange() = R1: event counters below HPMN, the cycle and the instruction counter."""
    return ((1 << effective_hpmn(pe)) - 1) | fixed_counters(pe)


def second_range(pe: Pe) -> int:
    """State GetPMUCounterRange() = R2: event counters from HPMN up."""
    return event_counters(pe) & ~((1 << effective_hpmn(pe)) - 1)


def get_num_event_counters_accessible(pe: Pe, el: int) -> int:
    """State GetNumEventCountersAccessible() at `el`; HPMN holds for the host's processes at EL0 as well."""
    if el < 2:
        return effective_hpmn(pe)
    return pe.core.event_counters


def user_enable(pe: Pe, el: int) -> int:
    """Return 1 where PMUSERENR_EL0.UEN puts accesses from `el` under PMUACR_EL1: at EL0, from PMUv3p9."""
    if el != 0 or pe.core.pmuver < PMUV3P9:
        return 0
    return nonzero(pe.userenr & PMUSERENR_UEN)


def get_pmu_access_mask(pe: Pe, el: int) -> int:
    """State GetPMUAccessMask(): the counters that `el` can reach; EL0 the instruction counter with UEN only."""
    mask = ((1 << get_num_event_counters_accessible(pe, el)) - 1) | fixed_counters(pe)
    uen = user_enable(pe, el)
    if el == 0:
        mask &= ~((1 - uen) << INSTRUCTION)
    return mask & (pe.uacr | (uen - 1))


def get_pmu_read_mask(pe: Pe, el: int) -> int:
    """State GetPMUReadMask(): the bits of PMCNTEN*, PMINTEN* and PMOVS* that a read at `el` shows."""
    trapped = instruction_counter_trapped(pe, el, pe.hdfgrtr2_el2, FGT2_NPMICFILTR)
    return get_pmu_access_mask(pe, el) & ~(trapped << INSTRUCTION)


def get_pmu_write_mask(pe: Pe, el: int, write_counter: int) -> int:
    """State GetPMUWriteMask(): the counters that a write at `el` changes.

    `write_counter` is 1 where it changes the counters' values, 0 where their controls.
    """
    mask = get_pmu_access_mask(pe, el)
    read_only = EVENT_COUNTERS & -nonzero(pe.userenr & PMUSERENR_ER)
    read_only |= nonzero(pe.userenr & PMUSERENR_CR) << CYCLE
    read_only |= nonzero(pe.userenr & PMUSERENR_IR) << INSTRUCTION
    mask &= ~(read_only & -user_enable(pe, el))
    trap = FGT2_NPMICFILTR
    if write_counter == 1:
        trap = FGT2_NPMICNTR
    return mask & ~(instruction_counter_trapped(pe, el, pe.hdfgwtr2_el2, trap) << INSTRUCTION)


def instruction_counter_trapped(pe: Pe, el: int, hdfgxtr2: int, bit: int) -> int:
    """Return 1 where `bit` of HDFGRTR2_EL2 or HDFGWTR2_EL2, or MDCR_EL3.EnPM2, keeps the instruction counter from `el`.

    What GetPMUReadMask() and GetPMUWriteMask() ask: its bits are RAZ/WI where the register would be trapped.
    """
    trapped = pe.core.el3 & (1 - nonzero(pe.mdcr_el3 & MDCR_EL3_ENPM2))
    if el < 2 and pe.tge == 0:
        trapped |= (1 - fgt2_enabled(pe)) | (1 - ((hdfgxtr2 >> bit) & 1))
    return trapped


def fgt_enabled(pe: Pe) -> int:
    """Return 1 where the bits of HDFGRTR_EL2 and HDFGWTR_EL2 have effect: FEAT_FGT, and EL3 enables it."""
    return pe.core.fgt & ((1 - pe.core.el3) | nonzero(pe.scr_el3 & SCR_EL3_FGTEN))


def fgt2_enabled(pe: Pe) -> int:
    """Return 1 where EL3 enables HDFGRTR2_EL2 and HDFGWTR2_EL2; where it does not, all that they can trap is."""
    return (1 - pe.core.el3) | nonzero(pe.scr_el3 & SCR_EL3_FGTEN2)


# ---- what counts ------------------------------------------------------------------------------------------


def filtered_at(pe: Pe, control: int, el: int) -> int:
    """Return 1 where the filter bits of `control` (PMEVTYPER<n>, PMCCFILTR, PMICFILTR) exclude Non-secure `el`."""
    if el == 0:
        return ((control >> FILTER_U) ^ ((control >> FILTER_NSU) & pe.core.el3)) & 1
    if el == 1:
        return ((control >> FILTER_P) ^ ((control >> FILTER_NSK) & pe.core.el3)) & 1
    return 1 - ((control >> FILTER_NSH) & 1)


def filtered(pe: Pe, el: int) -> int:
    """Return the mask of the counters that are filtered at `el`."""
    mask = (filtered_at(pe, pe.ccfiltr, el) << CYCLE) | (filtered_at(pe, pe.icfiltr, el) << INSTRUCTION)
    for i in range(pe.core.event_counters):
        mask |= filtered_at(pe, pe.evtyper[i], el) << i
    return mask


def should_pmu_freeze(pe: Pe, counters: int) -> int:
    """State ShouldPMUFreeze(): 1 where one of `counters`, other than the cycle counter, has overflowed."""
    return nonzero(pe.ovs & counters & ~(1 << CYCLE))


def count_pmu_events(pe: Pe, el: int) -> int:
    """State CountPMUEvents() for every counter at once: the mask of those that count at `el`."""
    first = first_range(pe)
    second = second_range(pe)
    enabled = pe.cnten & ((first & -(pe.pmcr & PMCR_E)) | (second & -nonzero(pe.mdcr_el2 & MDCR_HPME)))
    stopped_first = 0
    stopped_second = 0
    cycle_prohibited = 0
    if el == 2 and pe.core.pmuver >= PMUV3P1:
        stopped_first = nonzero(pe.mdcr_el2 & MDCR_HPMD)
    if pe.core.pmuver >= PMUV3P7:
        stopped_first |= nonzero(pe.pmcr & PMCR_FZO) & should_pmu_freeze(pe, first)
        stopped_second = nonzero(pe.mdcr_el2 & MDCR_HPMFZO) & should_pmu_freeze(pe, second)
    if el == 2 and pe.core.pmuver >= PMUV3P5:
        cycle_prohibited = nonzero(pe.mdcr_el2 & MDCR_HCCD)
    stopped = (first & ~(1 << CYCLE) & -stopped_first) | (second & -stopped_second)
    stopped |= ((stopped_first & nonzero(pe.pmcr & PMCR_DP)) | cycle_prohibited) << CYCLE
    return enabled & ~stopped & ~filtered(pe, el)


def long_counters(pe: Pe) -> int:
    """Return the mask of the event counters that overflow at 64 bits: PMCR_EL0.LP or MDCR_EL2.HLP, from PMUv3p5."""
    if pe.core.pmuver < PMUV3P5:
        return 0
    first = first_range(pe) & -nonzero(pe.pmcr & PMCR_LP)
    return (first | (second_range(pe) & -nonzero(pe.mdcr_el2 & MDCR_HLP))) & EVENT_COUNTERS


def event_counter_mask(pe: Pe) -> int:
    """Return the bits that an event counter has: 64 of them from PMUv3p5, else 32."""
    if pe.core.pmuver < PMUV3P5:
        return pe.core.half_mask
    return pe.core.counter_mask


def carry_out(pe: Pe, old: int, amount: int, total: int) -> int:
    """Return the carry of the 64-bit addition old + amount = total."""
    return (((old & amount) | ((old | amount) & ~total)) >> pe.core.counter_top) & 1


def counter_room(pe: Pe, i: int) -> int:
    """Return after how many events counter `i` overflows, at most 2**62: see its width."""
    width = pe.core.half_bits
    long = (long_counters(pe) >> i) & 1
    if i == CYCLE:
        long = effective_lc(pe)
    if i == INSTRUCTION or long == 1:
        width = pe.core.counter_top + 1
    value = counter_value(pe, i)
    if width > 62:
        room = -value & pe.core.counter_mask
        if (room >> 62) != 0 or room == 0:
            return 1 << 62
        return room
    return (1 << width) - (value & ((1 << width) - 1))


def increment_event_counter(pe: Pe, i: int, amount: int, long: int) -> int:
    """State AArch64.IncrementEventCounter(): return how many CHAIN events the addition makes for the next counter.

    `long` is 1 for one of `long_counters`.
    """
    old = pe.evcntr[i]
    total = (old + amount) & event_counter_mask(pe)
    wraps = ((old & pe.core.half_mask) + amount) >> pe.core.half_bits
    overflow = (nonzero(wraps) & (1 - long)) | (carry_out(pe, old, amount, total) & long)
    pe.evcntr[i] = total
    pe.ovs |= overflow << i
    return wraps & -((1 - long) & (1 - (i & 1)))


def chained_counters(pe: Pe, counting: int) -> int:
    """Return which of `counting` count CHAIN, the overflows of their lower neighbours."""
    return counting & selecting(pe, CHAIN)


def count_events(pe: Pe, counting: int, hits: int, amount: int) -> None:
    """Add `amount` to each event counter of `hits`, and what overflows from an even one to its neighbour's CHAIN.

    What PMUEvent() does once it knows which counters are `counting`.
    """
    long = long_counters(pe)
    chains = chained_counters(pe, counting)
    crossing = chains & (1 << effective_hpmn(pe))
    linked = chains & ~crossing
    chained = 0
    for i in range(pe.core.event_counters):
        pe.unpredictable |= UNPREDICTABLE_CHAIN & -(nonzero(chained) & (crossing >> i) & 1)
        more = (amount & -((hits >> i) & 1)) + (chained & -((linked >> i) & 1))
        chained = increment_event_counter(pe, i, more, (long >> i) & 1)


def selecting(pe: Pe, event: int) -> int:
    """Return the mask of the event counters whose PMEVTYPER<n>_EL0 selects `event`."""
    mask = 0
    for i in range(pe.core.event_counters):
        mask |= equal(pe.evtyper[i] & EVENT_FIELD, event) << i
    return mask


def pmu_event(pe: Pe, el: int, event: int, amount: int) -> None:
    """State PMUEvent() and AArch64.PMUCycle(): `event` happened `amount` times at `el`.

    Where a freeze-on-overflow bit is set, or a counter would overflow twice, the caller gives the amounts up to each
    overflow separately: all counters count what led to it, and only then freeze.
    """
    counting = count_pmu_events(pe, el)
    if event == INST_RETIRED:
        increment_instruction_counter(pe, counting, amount)
    count_events(pe, counting, counting & selecting(pe, event), amount)


def pmu_sw_increment(pe: Pe, el: int, value: int) -> None:
    """State PMUSwIncrement(): a write of `value` to PMSWINC_EL0 at `el`."""
    counting = count_pmu_events(pe, el)
    hits = value & counting & ((1 << get_num_event_counters_accessible(pe, el)) - 1)
    if (pe.userenr & PMUSERENR_SW) == 0:
        hits &= pe.uacr | (user_enable(pe, el) - 1)
    count_events(pe, counting, hits & selecting(pe, SW_INCR), 1)


def increment_cycle_counter(pe: Pe, counting: int, cycles: int) -> None:
    """State AArch64.IncrementCycleCounter(), for `cycles` cycles, where the cycle counter is one of `counting`."""
    amount = cycles & -((counting >> CYCLE) & 1)
    long = effective_lc(pe)
    if (pe.pmcr & PMCR_D) != 0 and long == 0:
        amount += pe.divider
        pe.divider = amount & 63
        amount = amount >> 6
    total = (pe.ccntr + amount) & pe.core.counter_mask
    wraps = nonzero(((pe.ccntr & pe.core.half_mask) + amount) >> pe.core.half_bits)
    overflow = (wraps & (1 - long)) | (carry_out(pe, pe.ccntr, amount, total) & long)
    pe.ccntr = total
    pe.ovs |= overflow << CYCLE


def increment_instruction_counter(pe: Pe, counting: int, amount: int) -> None:
    """State IncrementInstructionCounter(), where the instruction counter is one of `counting`: always 64 bits."""
    amount &= -((counting >> INSTRUCTION) & 1)
    total = (pe.icntr + amount) & pe.core.counter_mask
    pe.ovs |= carry_out(pe, pe.icntr, amount, total) << INSTRUCTION
    pe.icntr = total


def effective_lc(pe: Pe) -> int:
    """Return PMCR_EL0.LC, which is RES1 where no Exception level can use AArch32."""
    return nonzero(pe.pmcr & PMCR_LC) | (1 - pe.core.aarch32)


def overflow_interrupts(pe: Pe) -> int:
    """Return the mask of the counters that drive the interrupt: overflowed, enabled to interrupt, range enabled.

    CheckPMUOverflowCondition(PMUOverflowCondition_IRQ). PMCNTEN takes no part in it.
    """
    on = (first_range(pe) & -(pe.pmcr & PMCR_E)) | (second_range(pe) & -nonzero(pe.mdcr_el2 & MDCR_HPME))
    return pe.ovs & pe.inten & on


def check_for_pmu_overflow(pe: Pe) -> int:
    """State CheckForPMUOverflow(): the level of PMUIRQ, 0 or 1."""
    return nonzero(overflow_interrupts(pe))


# ---- registers --------------------------------------------------------------------------------------------


def zero_pmu_counters(pe: Pe, el: int, value: int) -> None:
    """State ZeroPMUCounters(): PMZR_EL0 written at `el`, or the counters that PMCR_EL0.{P, C} mean."""
    keep = ~(value & get_pmu_write_mask(pe, el, 1))
    for i in range(pe.core.event_counters):
        pe.evcntr[i] = pe.evcntr[i] & -((keep >> i) & 1)
    pe.ccntr = pe.ccntr & -((keep >> CYCLE) & 1)
    pe.icntr = pe.icntr & -((keep >> INSTRUCTION) & 1)


def clear_event_counters(pe: Pe, el: int) -> None:
    """State ClearEventCounters(): PMCR_EL0.P written at `el`. At EL2 it zeroes the second range as well."""
    zero_pmu_counters(pe, el, EVENT_COUNTERS)


def zero_cycle_counter(pe: Pe, el: int) -> None:
    """State ZeroCycleCounter(): PMCR_EL0.C written at `el`."""
    zero_pmu_counters(pe, el, 1 << CYCLE)


def pmcr_state_bits(pe: Pe) -> int:
    """Return the bits of PMCR_EL0 that a write stores on this core: without AArch32 D is RES0, and LC RES1."""
    bits = PMCR_E | PMCR_X | ((PMCR_D | PMCR_LC) & -pe.core.aarch32)
    if pe.core.el3 == 1 or pe.core.pmuver >= PMUV3P1:
        bits |= PMCR_DP
    if pe.core.pmuver >= PMUV3P5:
        bits |= PMCR_LP
    if pe.core.pmuver >= PMUV3P7:
        bits |= PMCR_FZO
    return bits


def filter_bits(pe: Pe) -> int:
    """Return the filter bits that PMEVTYPER<n>, PMCCFILTR and PMICFILTR have on this core."""
    bits = (1 << FILTER_P) | (1 << FILTER_U) | (1 << FILTER_NSH)
    bits |= (pe.core.el3 << FILTER_NSK) | (pe.core.el3 << FILTER_NSU) | (pe.core.el3 << FILTER_M)
    return bits | ((pe.core.el3 & pe.core.sel2) << FILTER_SH)


def evtyper_bits(pe: Pe, i: int) -> int:
    """Return the bits that PMEVTYPER<i>_EL0 has on this core, as a mask that may be negative.

    evtCount is 10 bits wide before PMUv3p1. The threshold fields TH and TC are those of FEAT_PMUv3_TH, TE of
    FEAT_PMUv3_EDGE, TLC, of odd counters, of FEAT_PMUv3_TH2, by PMMIR_EL1. They are stored; counting does not look at
    them, since what one event adds in one cycle is not known here.
    """
    event = EVENT_FIELD
    if pe.core.pmuver < PMUV3P1:
        event = 0x3FF
    width = (pe.core.pmmir >> PMMIR_THWIDTH_SHIFT) & 15
    edge = (pe.core.pmmir >> PMMIR_EDGE_SHIFT) & 15
    # -1 << 61 is the top three bits, and reads so in 64 bits with a sign as well.
    threshold = (((1 << width) - 1) << TYPER_TH_SHIFT) | (-nonzero(width) << TYPER_TC_SHIFT)
    threshold |= nonzero(edge) << TYPER_TE_SHIFT
    threshold |= (3 & -(nonzero(edge >> 1) & i & 1)) << TYPER_TLC_SHIFT
    return filter_bits(pe) | (pe.core.mt << FILTER_MT) | event | threshold


def userenr_bits(pe: Pe) -> int:
    """Return the bits that PMUSERENR_EL0 has on this core."""
    bits = PMUSERENR_EN | PMUSERENR_SW | PMUSERENR_CR | PMUSERENR_ER
    if pe.core.pmuver >= PMUV3P9:
        bits |= PMUSERENR_UEN | PMUSERENR_TID
    if pe.core.icntr == 1:
        bits |= PMUSERENR_IR
    return bits


def is_common_event(pe: Pe, event: int) -> int:
    """Return 1 for the numbers of PMCEID<n>_EL0: to select one that is not counted is to count nothing."""
    extended = event & ~0x4000
    if pe.core.pmuver < PMUV3P1:
        extended = event
    return 1 - nonzero(extended >> 6)


def reset(pe: Pe) -> None:
    """Reset the PMU as a Warm reset does; fields that the architecture leaves UNKNOWN become 0, HPMN becomes N.

    EL3 is as its firmware leaves it to the kernel (Linux Documentation/arch/arm64/booting.rst): nothing is trapped
    there, and fine-grained traps are enabled.
    """
    pe.pmcr = (1 - pe.core.aarch32) << 6
    pe.cnten = 0
    pe.inten = 0
    pe.ovs = 0
    pe.selr = 0
    pe.userenr = 0
    pe.uacr = 0
    for i in range(pe.core.event_counters):
        pe.evcntr[i] = 0
        pe.evtyper[i] = 0
    pe.ccntr = 0
    pe.ccfiltr = 0
    pe.icntr = 0
    pe.icfiltr = 0
    pe.divider = 0
    pe.mdcr_el2 = pe.core.event_counters
    pe.hdfgrtr_el2 = 0
    pe.hdfgwtr_el2 = 0
    pe.hdfgrtr2_el2 = 0
    pe.hdfgwtr2_el2 = 0
    pe.mdcr_el3 = MDCR_EL3_ENPM2 & -pe.core.el3
    pe.scr_el3 = (SCR_EL3_FGTEN | SCR_EL3_FGTEN2) & -pe.core.el3


def read_pmcr(pe: Pe, el: int) -> int:
    """Return PMCR_EL0 as read at `el`: N shows the accessible event counters, P and C read as zero."""
    n = get_num_event_counters_accessible(pe, el)
    return pe.pmcr | (effective_lc(pe) << 6) | (n << PMCR_N_SHIFT) | (pe.core.identity << 16)


def write_pmcr(pe: Pe, el: int, value: int) -> None:
    """Write PMCR_EL0 at `el`."""
    bits = pmcr_state_bits(pe)
    pe.pmcr = (pe.pmcr & ~bits) | (value & bits)
    if (value & PMCR_P) != 0:
        clear_event_counters(pe, el)
    if (value & PMCR_C) != 0:
        zero_cycle_counter(pe, el)


def pmceid(pe: Pe, value: int) -> int:
    """Return PMCEID<n>_EL0, whose upper half exists from PMUv3p1."""
    if pe.core.pmuver < PMUV3P1:
        return value & 0xFFFF_FFFF
    return value


def is_implemented(pe: Pe, event: int) -> int:
    """Return 1 where PMCEID<n>_EL0 says that this core counts common event `event`; no other event is counted."""
    which = pmceid(pe, pe.core.pmceid0)
    if (event >> 5) & 1 == 1:
        which = pmceid(pe, pe.core.pmceid1)
    return (which >> ((event & 0x1F) | ((event >> 9) & 0x20))) & is_common_event(pe, event)


def read_selr(pe: Pe) -> int:
    """Return PMSELR_EL0."""
    if pe.core.fgt == 0 and pe.core.event_counters <= pe.selr < CYCLE:
        pe.unpredictable |= UNPREDICTABLE_SEL
    return pe.selr


def uacr_bits(pe: Pe, el: int) -> int:
    """Return the bits of PMUACR_EL1 that are not RAZ/WI at `el`, 1 or 2."""
    return ((1 << get_num_event_counters_accessible(pe, el)) - 1) | fixed_counters(pe)


def counter_value(pe: Pe, counter: int) -> int:
    """Return the value of an event counter, the cycle counter or the instruction counter."""
    if counter == CYCLE:
        return pe.ccntr
    if counter == INSTRUCTION:
        return pe.icntr
    return pe.evcntr[counter]


def counter_control(pe: Pe, counter: int) -> int:
    """Return the register that configures a counter: PMEVTYPER<n>_EL0, PMCCFILTR_EL0 or PMICFILTR_EL0."""
    if counter == CYCLE:
        return pe.ccfiltr
    if counter == INSTRUCTION:
        return pe.icfiltr | INST_RETIRED
    return pe.evtyper[counter]


def is_counter(key: int) -> bool:
    """Tell whether register `key` holds a counter's value."""
    return is_pmevcntr(key) or key in (PMXEVCNTR_EL0, PMCCNTR_EL0, PMICNTR_EL0)


def is_control(key: int) -> bool:
    """Tell whether register `key` holds what a counter counts, and where."""
    return is_pmevtyper(key) or key in (PMXEVTYPER_EL0, PMCCFILTR_EL0, PMICFILTR_EL0)


def counter_of(pe: Pe, key: int) -> int:
    """Return which counter a register of one counter is about: 31 is the cycle counter, 32 the instruction counter.

    PMXEVCNTR_EL0 and PMXEVTYPER_EL0 are about the one that PMSELR_EL0 selects; with SEL = 31 the former has none.
    """
    if is_pmevcntr(key):
        return key - PMEVCNTR0_EL0
    if is_pmevtyper(key):
        return key - PMEVTYPER0_EL0
    if key in (PMXEVCNTR_EL0, PMXEVTYPER_EL0):
        return pe.selr
    if key in (PMICNTR_EL0, PMICFILTR_EL0):
        return INSTRUCTION
    return CYCLE


def read(pe: Pe, el: int, key: int) -> int:
    """Return what an allowed MRS of PMU register `key` reads at `el`, 64 bits."""
    if is_counter(key):
        counter = counter_of(pe, key)
        return counter_value(pe, counter) & -((get_pmu_access_mask(pe, el) >> counter) & 1)
    if is_control(key):
        counter = counter_of(pe, key)
        return counter_control(pe, counter) & -((get_pmu_access_mask(pe, el) >> counter) & 1)
    if key in (PMCNTENSET_EL0, PMCNTENCLR_EL0):
        return pe.cnten & get_pmu_read_mask(pe, el)
    if key in (PMINTENSET_EL1, PMINTENCLR_EL1):
        return pe.inten & get_pmu_read_mask(pe, el)
    if key in (PMOVSSET_EL0, PMOVSCLR_EL0):
        return pe.ovs & get_pmu_read_mask(pe, el)
    return _read_single(pe, el, key)


def _read_single(pe: Pe, el: int, key: int) -> int:
    """Read a register that is no set of counters and belongs to no single counter."""
    if key == PMCR_EL0:
        return read_pmcr(pe, el)
    if key == PMSELR_EL0:
        return read_selr(pe)
    if key == PMUSERENR_EL0:
        return pe.userenr
    if key == PMUACR_EL1:
        return pe.uacr & uacr_bits(pe, el)
    if key == PMCEID0_EL0:
        return pmceid(pe, pe.core.pmceid0)
    if key == PMCEID1_EL0:
        return pmceid(pe, pe.core.pmceid1)
    if key == PMMIR_EL1:
        return pe.core.pmmir
    return 0


def write_counter(pe: Pe, counter: int, value: int) -> None:
    """Write a counter's value."""
    if counter == CYCLE:
        pe.ccntr = value & pe.core.counter_mask
    elif counter == INSTRUCTION:
        pe.icntr = value & pe.core.counter_mask
    else:
        pe.evcntr[counter] = value & event_counter_mask(pe)


def write_control(pe: Pe, counter: int, value: int) -> None:
    """Write the register that configures a counter."""
    if counter == CYCLE:
        pe.ccfiltr = value & filter_bits(pe)
    elif counter == INSTRUCTION:
        pe.icfiltr = value & filter_bits(pe)
    else:
        pe.evtyper[counter] = value & evtyper_bits(pe, counter)
        if pe.core.pmuver < PMUV3P8:
            common = is_common_event(pe, pe.evtyper[counter] & EVENT_FIELD)
            pe.unpredictable |= UNPREDICTABLE_EVENT & -(1 - common)


def write(pe: Pe, el: int, key: int, value: int) -> None:
    """Carry out an allowed MSR of `value`, 64 bits, to PMU register `key` at `el`.

    Where PMUACR_EL1 and PMUSERENR_EL0 let EL0 reach a counter but not change it, the write is ignored.
    """
    if is_counter(key):
        counter = counter_of(pe, key)
        if (get_pmu_write_mask(pe, el, 1) >> counter) & 1 == 1:
            write_counter(pe, counter, value)
    elif is_control(key):
        counter = counter_of(pe, key)
        if (get_pmu_write_mask(pe, el, 0) >> counter) & 1 == 1:
            write_control(pe, counter, value)
    else:
        _write_set(pe, el, key, value)


def _write_set(pe: Pe, el: int, key: int, value: int) -> None:
    """Write a register that is a set of counters."""
    mask = get_pmu_write_mask(pe, el, 0)
    if key == PMCNTENSET_EL0:
        pe.cnten |= value & mask
    elif key == PMCNTENCLR_EL0:
        pe.cnten &= ~(value & mask)
    elif key == PMINTENSET_EL1:
        pe.inten |= value & mask
    elif key == PMINTENCLR_EL1:
        pe.inten &= ~(value & mask)
    elif key == PMOVSSET_EL0:
        pe.ovs |= value & mask
    elif key == PMOVSCLR_EL0:
        pe.ovs &= ~(value & mask)
    elif key == PMZR_EL0:
        zero_pmu_counters(pe, el, value)
    else:
        _write_single(pe, el, key, value)


def _write_single(pe: Pe, el: int, key: int, value: int) -> None:
    """Write a register that is no set of counters and belongs to no single counter."""
    if key == PMCR_EL0:
        write_pmcr(pe, el, value)
    elif key == PMSWINC_EL0:
        pmu_sw_increment(pe, el, value)
    elif key == PMSELR_EL0:
        pe.selr = value & 0x1F
    elif key == PMUSERENR_EL0:
        pe.userenr = value & userenr_bits(pe)
    elif key == PMUACR_EL1:
        bits = uacr_bits(pe, el)
        pe.uacr = (pe.uacr & ~bits) | (value & bits)
