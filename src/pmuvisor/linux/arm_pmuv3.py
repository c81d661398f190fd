"""The PMUv3 driver: which counter an event gets, how it is programmed, what an overflow does.

States drivers/perf/arm_pmu.c and arm_pmuv3.c of Linux 6.12 on a VHE host, with what the partitioning series adds: the
counters that a resident vCPU has taken are not in `cntr_mask`, and the host's range goes by MDCR_EL2.HPME meanwhile.
All of it happens on one CPU with interrupts off; programming the hardware is a write at EL2.
"""

from __future__ import annotations

from pmuvisor.arch import pmu
from pmuvisor.arch.events import CHAIN, CPU_CYCLES, INST_RETIRED
from pmuvisor.arch.sysreg import (
    CYCLE,
    EVENT_COUNTERS,
    FILTER_NSH,
    FILTER_P,
    FILTER_U,
    INSTRUCTION,
    MDCR_HPME,
    PMCNTENCLR_EL0,
    PMCNTENSET_EL0,
    PMCR_C,
    PMCR_E,
    PMCR_EL0,
    PMCR_LC,
    PMCR_LP,
    PMCR_P,
    PMINTENCLR_EL1,
    PMINTENSET_EL1,
    PMOVSCLR_EL0,
    PMUV3P5,
)
from pmuvisor.linux.host import NO_COUNTER, NO_EVENT, Cpu, Host, PerfEvent

EL2 = 2
"""Where the kernel runs."""
FULL_MASK = (1 << 64) - 1
MAX_LEFT = (1 << 63) - 1
EAGAIN = 11
EINVAL = 22
"""Negated, what a function returns that cannot do its work (include/uapi/asm-generic/errno-base.h)."""

# ---- what an event needs ----------------------------------------------------------------------------------


def has_long_event(cpu: Cpu) -> int:
    """State armv8pmu_has_long_event(): event counters of 64 bits, from PMUv3p5."""
    return int(cpu.pe.core.pmuver >= PMUV3P5)


def event_is_chained(cpu: Cpu, event: PerfEvent) -> int:
    """State armv8pmu_event_is_chained(): 64 bits of two counters. The fixed counters are 64 bits wide anyway."""
    fixed = event.idx in (CYCLE, INSTRUCTION)
    return int(event.long == 1 and has_long_event(cpu) == 0 and not fixed)


def event_mask(cpu: Cpu, event: PerfEvent) -> int:
    """Return the counters that an active event has, two where they are chained."""
    return (1 << event.idx) | ((event_is_chained(cpu, event) << event.idx) >> 1)


def set_event_filter(event: PerfEvent) -> int:
    """State armv8pmu_set_event_filter() on VHE: PMEVTYPER<n>_EL0 of an event, 32 bits.

    The kernel is at EL2; EL1 is guests' alone; EL0 is the host's as well as guests', which `restore_guest` tells apart.
    """
    el2 = (1 - event.exclude_kernel) & (1 - event.exclude_host)
    no_el1 = event.exclude_guest | event.exclude_kernel
    no_el0 = event.exclude_host | event.exclude_user
    return (el2 << FILTER_NSH) | (no_el1 << FILTER_P) | (no_el0 << FILTER_U) | event.config


def switch_needed(event: PerfEvent) -> int:
    """State kvm_pmu_switch_needed(): EL0 is to count in the host or in guests, not in both."""
    return (1 - event.exclude_user) & (event.exclude_host ^ event.exclude_guest)


# ---- which counter ----------------------------------------------------------------------------------------


def all_counters(cpu: Cpu) -> int:
    """Return the counters that this CPU's PMU has, whoever has taken them (arm_pmu.cntr_mask after the probe)."""
    return pmu.event_counters(cpu.pe) | pmu.fixed_counters(cpu.pe)


def lowest(mask: int) -> int:
    """Return the number of the lowest bit set of `mask`, 33 bits; NO_COUNTER where there is none."""
    low = mask & -mask
    number = NO_COUNTER & -(1 - pmu.nonzero(mask))
    for i in range(INSTRUCTION + 1):
        number |= i & -((low >> i) & 1)
    return number


def get_event_idx(cpu: Cpu, event: PerfEvent, cntr_mask: int, used_mask: int) -> int:
    """State armv8pmu_get_event_idx(): the counter for `event`, or NO_COUNTER.

    The cycle counter for CPU_CYCLES and the instruction counter for INST_RETIRED where they are free; a pair whose
    odd counter is returned for 64 bits of short counters; else the lowest free event counter.
    """
    free = cntr_mask & ~used_mask
    if event.config == CPU_CYCLES and (free >> CYCLE) & 1 == 1:
        return CYCLE
    if event.config == INST_RETIRED and (free >> INSTRUCTION) & 1 == 1:
        return INSTRUCTION
    free &= EVENT_COUNTERS
    if event.long == 1 and has_long_event(cpu) == 0:
        free &= (free << 1) & 0x2AAA_AAAA
    return lowest(free)


def mask_of(cpu: Cpu, event: PerfEvent, idx: int) -> int:
    """Return the counters that `event` takes with `idx`."""
    pair = event.long == 1 and has_long_event(cpu) == 0 and idx < CYCLE
    return (1 << idx) | ((int(pair) << idx) >> 1)


# ---- programming ------------------------------------------------------------------------------------------


def max_period(cpu: Cpu, event: PerfEvent) -> int:
    """State arm_pmu_event_max_period(): 64 bits for an event that asks for them, else 32; fewer in a scaled model."""
    if event.long == 1:
        return cpu.pe.core.counter_mask
    return cpu.pe.core.half_mask


def needs_bias(cpu: Cpu, event: PerfEvent) -> int:
    """State armv8pmu_event_needs_bias(): a long counter is to overflow at 32 bits, so its upper half is all ones."""
    return int(event.long == 0 and (has_long_event(cpu) == 1 or event.idx >= CYCLE))


def read_counter(cpu: Cpu, event: PerfEvent) -> int:
    """State armv8pmu_read_counter(): the value, of a chained pair 32 bits of each."""
    value = pmu.counter_value(cpu.pe, event.idx)
    if event_is_chained(cpu, event) == 1:
        value = (value << cpu.pe.core.half_bits) | pmu.counter_value(cpu.pe, event.idx - 1)
    if needs_bias(cpu, event) == 1:
        value &= cpu.pe.core.half_mask
    return value


def write_counter(cpu: Cpu, event: PerfEvent, value: int) -> None:
    """State armv8pmu_write_counter()."""
    if event_is_chained(cpu, event) == 1:
        half = cpu.pe.core.half_mask
        pmu.write_counter(cpu.pe, event.idx, (value >> cpu.pe.core.half_bits) & half)
        pmu.write_counter(cpu.pe, event.idx - 1, value & half)
    else:
        pmu.write_counter(cpu.pe, event.idx, value | (~cpu.pe.core.half_mask & -needs_bias(cpu, event)))


def enable_event(cpu: Cpu, event: PerfEvent) -> None:
    """State armv8pmu_enable_event(): the type, the interrupt and at last the counter.

    What counts in guests only is enabled as well: on VHE it is the filter that keeps it from counting in the host.
    """
    mask = event_mask(cpu, event)
    pmu.write(cpu.pe, EL2, PMCNTENCLR_EL0, mask)
    if event_is_chained(cpu, event) == 1:
        pmu.write_control(cpu.pe, event.idx - 1, set_event_filter(event))
        pmu.write_control(cpu.pe, event.idx, CHAIN | (1 << FILTER_NSH))
    else:
        pmu.write_control(cpu.pe, event.idx, set_event_filter(event))
    pmu.write(cpu.pe, EL2, PMINTENSET_EL1, 1 << event.idx)
    if switch_needed(event) == 1:
        cpu.hw.events_host |= mask & -(1 - event.exclude_host)
        cpu.hw.events_guest |= mask & -(1 - event.exclude_guest)
    pmu.write(cpu.pe, EL2, PMCNTENSET_EL0, mask)


def disable_event(cpu: Cpu, event: PerfEvent) -> None:
    """State armv8pmu_disable_event(): the counter, its interrupt and an overflow that is pending."""
    mask = event_mask(cpu, event)
    cpu.hw.events_host &= ~mask
    cpu.hw.events_guest &= ~mask
    pmu.write(cpu.pe, EL2, PMCNTENCLR_EL0, mask)
    pmu.write(cpu.pe, EL2, PMINTENCLR_EL1, 1 << event.idx)
    pmu.write(cpu.pe, EL2, PMOVSCLR_EL0, 1 << event.idx)


# ---- an event's life (struct pmu) -------------------------------------------------------------------------


def hw_period(cpu: Cpu, event: PerfEvent) -> int:
    """Return hw_perf_event.sample_period: of a counting event half of what its counter holds."""
    if event.sample_period != 0:
        return event.sample_period
    return half_period(cpu, event)


def half_period(cpu: Cpu, event: PerfEvent) -> int:
    """Return half of the longest period: more is not loaded, so that a late interrupt finds no second overflow."""
    return (max_period(cpu, event) >> 1) & MAX_LEFT


def event_set_period(cpu: Cpu, event: PerfEvent) -> int:
    """State armpmu_event_set_period(): load the counter so that it overflows after what is left of the period.

    Return 1 where a period was complete.
    """
    period = hw_period(cpu, event)
    left = event.period_left
    complete = 0
    if left == 0 or (left >> 63) & 1 == 1:
        left = (left + period) & FULL_MASK
        if left == 0 or (left >> 63) & 1 == 1:
            left = period
        complete = 1
    event.period_left = left
    if (left >> 63) & 1 == 0:
        left = min(left, half_period(cpu, event))
    event.prev_count = -left & FULL_MASK
    write_counter(cpu, event, event.prev_count & max_period(cpu, event))
    return complete


def event_update(cpu: Cpu, event: PerfEvent) -> None:
    """State armpmu_event_update(): take what the counter has counted since the last time."""
    now = read_counter(cpu, event)
    delta = (now - event.prev_count) & max_period(cpu, event)
    event.prev_count = now
    event.count = (event.count + delta) & FULL_MASK
    event.period_left = (event.period_left - delta) & FULL_MASK


def add(cpu: Cpu, event: PerfEvent, number: int) -> int:
    """State armpmu_add(): give `event`, whose number is given, a counter; return 0 or -EAGAIN."""
    idx = get_event_idx(cpu, event, cpu.hw.cntr_mask, cpu.hw.used_mask)
    if idx == NO_COUNTER:
        return -EAGAIN
    event.idx = idx
    cpu.hw.used_mask |= mask_of(cpu, event, idx)
    cpu.hw.events[idx] = number
    event.switched += 1
    event_start(cpu, event)
    return 0


def event_start(cpu: Cpu, event: PerfEvent) -> None:
    """State armpmu_start() with PERF_EF_RELOAD, of an event that has a counter."""
    event_set_period(cpu, event)
    enable_event(cpu, event)


def event_stop(cpu: Cpu, event: PerfEvent) -> None:
    """State armpmu_stop() with PERF_EF_UPDATE: the counter stops, and what it has counted is taken."""
    disable_event(cpu, event)
    event_update(cpu, event)


def delete(cpu: Cpu, event: PerfEvent) -> None:
    """State armpmu_del(): take the counter back, with what it has counted."""
    event_stop(cpu, event)
    event.switched += 1
    cpu.hw.events[event.idx] = NO_EVENT
    cpu.hw.used_mask &= ~mask_of(cpu, event, event.idx)
    event.idx = NO_COUNTER


# ---- the PMU as a whole -----------------------------------------------------------------------------------


def start(cpu: Cpu) -> None:
    """State armv8pmu_start(): let the host's counters count. PMCR_EL0.E is a resident guest's.

    A vCPU that is loaded is asked to look at the filters before it enters its guest (kvm_vcpu_pmu_resync_el0).
    """
    cpu.hw.resync_el0 = 1
    if cpu.hw.guest_resident == 1:
        cpu.pe.mdcr_el2 |= MDCR_HPME
    else:
        cpu.pe.pmcr |= PMCR_E


def stop(cpu: Cpu) -> None:
    """State armv8pmu_stop()."""
    if cpu.hw.guest_resident == 1:
        cpu.pe.mdcr_el2 &= ~MDCR_HPME
    else:
        cpu.pe.pmcr &= ~PMCR_E


def armpmu_enable(cpu: Cpu) -> None:
    """State armpmu_disable() and armpmu_enable() around a change: the PMU runs while an event is on it."""
    if cpu.hw.used_mask != 0:
        start(cpu)
    else:
        stop(cpu)


def reset(cpu: Cpu) -> None:
    """State armv8pmu_reset() and the probe: all counters are the driver's, none counts."""
    core = cpu.pe.core
    cpu.hw.cntr_mask = all_counters(cpu)
    cpu.hw.used_mask = 0
    for i in range(INSTRUCTION + 1):
        cpu.hw.events[i] = NO_EVENT
    pmu.write(cpu.pe, EL2, PMCNTENCLR_EL0, cpu.hw.cntr_mask)
    pmu.write(cpu.pe, EL2, PMINTENCLR_EL1, cpu.hw.cntr_mask)
    cpu.hw.events_host = 0
    cpu.hw.events_guest = 0
    pmcr = PMCR_P | PMCR_C | PMCR_LC
    if core.pmuver >= PMUV3P5:
        pmcr |= PMCR_LP
    pmu.write(cpu.pe, EL2, PMCR_EL0, pmcr)


def getreset_flags(cpu: Cpu) -> int:
    """State armv8pmu_getreset_flags(): which counters have overflowed, cleared."""
    flags = pmu.read(cpu.pe, EL2, PMOVSCLR_EL0)
    pmu.write(cpu.pe, EL2, PMOVSCLR_EL0, flags)
    return flags


def handle_irq(host: Host, c: int, flags: int) -> int:
    """State armv8pmu_handle_irq() for the overflows `flags`, read and cleared, that are the host's.

    Return how many samples were taken. An overflow of a counter without an event is left alone; one of an event of
    KVM's is noted in it, for KVM to see to before the guest is entered.
    """
    cpu = host.cpus[c]
    samples = 0
    stop(cpu)
    for i in range(INSTRUCTION + 1):
        number = cpu.hw.events[i]
        if (flags >> i) & 1 == 1 and number != NO_EVENT:
            event = host.events[number]
            event_update(cpu, event)
            complete = event_set_period(cpu, event)
            if event.sample_period != 0 and complete == 1:
                event.overflowed = event.overflow_handler
                event.samples += 1
                samples += 1 - event.overflow_handler
    start(cpu)
    return samples
