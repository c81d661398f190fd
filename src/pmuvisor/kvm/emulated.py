"""The `emulated` design, and `fixed-counters-only`: each guest counter is a perf event of the host.

States arch/arm64/kvm/pmu-emul.c and the PMU's part of sys_regs.c, upstream Linux 7. Every guest access traps. The value
of a counter is what its register holds and what its event has counted; the event counts in the guest only, is pinned,
and its sampling period is what is left to the overflow. SW_INCR and CHAIN have no event. `fixed-counters-only` is the
same without event counters; its events are of the PMU of the CPU where the vCPU is.

All of it runs in the vCPU's thread on CPU `c`, after an exit. Counter `i` is 0 to 30, or CYCLE (31).
"""

from __future__ import annotations

from pmuvisor.arch import pmu
from pmuvisor.arch.events import (
    CHAIN,
    CPU_CYCLES,
    STALL_SLOT,
    STALL_SLOT_BACKEND,
    STALL_SLOT_FRONTEND,
    SW_INCR,
)
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import (
    CYCLE,
    FILTER_NSK,
    FILTER_NSU,
    FILTER_P,
    FILTER_U,
    PMCCNTR_EL0,
    PMCEID0_EL0,
    PMCEID1_EL0,
    PMCNTENCLR_EL0,
    PMCNTENSET_EL0,
    PMCR_C,
    PMCR_E,
    PMCR_EL0,
    PMCR_LC,
    PMCR_LP,
    PMCR_N_SHIFT,
    PMCR_P,
    PMEVCNTR0_EL0,
    PMEVTYPER0_EL0,
    PMINTENCLR_EL1,
    PMINTENSET_EL1,
    PMMIR_EL1,
    PMOVSCLR_EL0,
    PMOVSSET_EL0,
    PMSELR_EL0,
    PMSWINC_EL0,
    PMUSERENR_CR,
    PMUSERENR_EL0,
    PMUSERENR_EN,
    PMUSERENR_ER,
    PMUSERENR_SW,
    PMUV3P5,
    PMXEVCNTR_EL0,
    PMXEVTYPER_EL0,
    is_pmevcntr,
    is_pmevtyper,
)
from pmuvisor.kvm import filters
from pmuvisor.kvm.vcpu import (
    DONE,
    FIXED_COUNTERS_ONLY,
    UNDEF,
    Vcpu,
    Vm,
    enabled_counter_mask,
    event_mask,
    evtyper_mask,
    implemented_counter_mask,
    is_type,
)
from pmuvisor.linux import arm_pmuv3, perf
from pmuvisor.linux.host import ANY_CPU, STATE_INACTIVE, Host, PerfEvent

PMCR_MASK = 0xFF
"""ARMV8_PMU_PMCR_MASK: what of PMCR_EL0 a guest writes, all of it stored but P and C."""


# ---- a counter and its perf event -------------------------------------------------------------------------


def event_of(vcpu: Vcpu, i: int) -> int:
    """Return the number of the perf event that counter `i` has, if it has one (kvm_pmc.perf_event)."""
    if i == CYCLE:
        return vcpu.first_event + len(vcpu.evcntr)
    return vcpu.first_event + i


def register_value(vcpu: Vcpu, i: int) -> int:
    """Return what the register of counter `i` holds: its value without that of its event."""
    if i == CYCLE:
        return vcpu.ccntr
    return vcpu.evcntr[i]


def set_register_value(pe: Pe, vcpu: Vcpu, i: int, value: int) -> None:
    """Set what the register of counter `i` holds."""
    if i == CYCLE:
        vcpu.ccntr = value & pe.core.counter_mask
    else:
        vcpu.evcntr[i] = value & pe.core.counter_mask


def event_type(vcpu: Vcpu, i: int) -> int:
    """Return PMEVTYPER<i>_EL0, or PMCCFILTR_EL0."""
    if i == CYCLE:
        return vcpu.ccfiltr
    return vcpu.evtyper[i]


def is_64bit(vm: Vm, i: int) -> bool:
    """State kvm_pmc_is_64bit(): the cycle counter, and from PMUv3p5 every counter."""
    return i == CYCLE or vm.pmuver >= PMUV3P5


def has_64bit_overflow(vcpu: Vcpu, i: int) -> bool:
    """State kvm_pmc_has_64bit_overflow(): PMCR_EL0.LC for the cycle counter, LP for the others."""
    if i == CYCLE:
        return (vcpu.pmcr & PMCR_LC) != 0
    return (vcpu.pmcr & PMCR_LP) != 0


def counter_can_chain(vcpu: Vcpu, i: int) -> bool:
    """State kvm_pmu_counter_can_chain(): an even counter that overflows at 32 bits has a neighbour to tell."""
    return (i & 1) == 0 and i + 1 < CYCLE and not has_64bit_overflow(vcpu, i)


def counter_value(host: Host, c: int, vm: Vm, vcpu: Vcpu, i: int, now: int) -> int:
    """State kvm_pmu_get_counter_value(), 64 bits, or 32 of a short counter."""
    core = host.cpus[c].pe.core
    value = register_value(vcpu, i)
    number = event_of(vcpu, i)
    if host.events[number].attached == 1:
        vcpu.perf_read += 1
        perf.perf_event_read(host, number, now)
        value += host.events[number].count
    if is_64bit(vm, i):
        return value & core.counter_mask
    return value & core.half_mask


def release_perf_event(host: Host, vcpu: Vcpu, i: int, now: int) -> None:
    """State kvm_pmu_release_perf_event()."""
    number = event_of(vcpu, i)
    if host.events[number].attached == 1:
        vcpu.perf_released += 1
        perf.perf_event_disable(host, number, now)
        perf.perf_remove_from_context(host, number, now)


def stop_counter(host: Host, c: int, vm: Vm, vcpu: Vcpu, i: int, now: int) -> None:
    """State kvm_pmu_stop_counter(): keep the value, let the event go."""
    if host.events[event_of(vcpu, i)].attached == 1:
        value = counter_value(host, c, vm, vcpu, i, now)
        set_register_value(host.cpus[c].pe, vcpu, i, value)
        release_perf_event(host, vcpu, i, now)


def set_counter_value(host: Host, c: int, vm: Vm, vcpu: Vcpu, i: int, value: int, now: int) -> None:
    """State kvm_pmu_set_counter_value(): a new event, since the period to the overflow is another."""
    release_perf_event(host, vcpu, i, now)
    set_register_value(host.cpus[c].pe, vcpu, i, value)
    create_perf_event(host, c, vm, vcpu, i, now)


def set_counter_value_user(host: Host, c: int, vcpu: Vcpu, i: int, value: int, now: int) -> None:
    """State kvm_pmu_set_counter_value_user(): the next entry makes a new event for the new value."""
    release_perf_event(host, vcpu, i, now)
    set_register_value(host.cpus[c].pe, vcpu, i, value)
    vcpu.reload_pmu = 1


def compute_period(pe: Pe, vm: Vm, vcpu: Vcpu, i: int, value: int) -> int:
    """State compute_period(): how many events are left until a counter of `value` overflows; 0 where it is at zero."""
    if is_64bit(vm, i) and has_64bit_overflow(vcpu, i):
        return -value & pe.core.counter_mask
    return -value & pe.core.half_mask


def event_number(vm: Vm, vcpu: Vcpu, i: int) -> int:
    """Return the event that a counter is to count."""
    if i == CYCLE:
        return CPU_CYCLES
    return vcpu.evtyper[i] & event_mask(vm)


def pmu_of_events(host: Host, c: int, vm: Vm) -> int:
    """Return the PMU of the host that a new event is for: the VM's, or of `fixed-counters-only` this CPU's."""
    if vm.design == FIXED_COUNTERS_ONLY:
        return host.cpus[c].pmu
    return vm.pmu


def create_perf_event(host: Host, c: int, vm: Vm, vcpu: Vcpu, i: int, now: int) -> None:
    """State kvm_pmu_create_perf_event(): a pinned event that counts in the guest only.

    None for SW_INCR and CHAIN, nor for an event that the VM's filter denies.
    """
    stop_counter(host, c, vm, vcpu, i, now)
    config = event_number(vm, vcpu, i)
    if i != CYCLE and config in (SW_INCR, CHAIN):
        return
    if filters.event_denied(vm, config) == 1:
        return
    vcpu.perf_created += 1
    number = event_of(vcpu, i)
    event = host.events[number]
    perf.init_event(event, number)
    event.pmu = pmu_of_events(host, c, vm)
    event.cpu = ANY_CPU
    event.task = vcpu.task
    event.config = config
    event.long = int(is_64bit(vm, i))
    event.pinned = 1
    set_exclusions(event, event_type(vcpu, i))
    event.overflow_handler = 1
    value = counter_value(host, c, vm, vcpu, i, now)
    event.sample_period = compute_period(host.cpus[c].pe, vm, vcpu, i, value)
    perf.perf_event_create_kernel_counter(host, number, (enabled_counter_mask(vcpu) >> i) & 1, now)


def set_exclusions(event: PerfEvent, control: int) -> None:
    """Set where an event counts by a guest's PMEVTYPER<n>_EL0: never in the host, nor at EL2."""
    event.exclude_user = ((control >> FILTER_U) ^ (control >> FILTER_NSU)) & 1
    event.exclude_kernel = ((control >> FILTER_P) ^ (control >> FILTER_NSK)) & 1
    event.exclude_host = 1
    event.exclude_guest = 0


def reprogram_counter_mask(host: Host, c: int, vm: Vm, vcpu: Vcpu, counters: int, now: int) -> None:
    """State kvm_pmu_reprogram_counter_mask(): let those of `counters` count that are enabled, and no other."""
    enabled = enabled_counter_mask(vcpu)
    for i in range(CYCLE + 1):
        if (counters >> i) & 1 == 1:
            if (enabled >> i) & 1 == 1:
                enable_perf_event(host, c, vm, vcpu, i, now)
            else:
                disable_perf_event(host, vcpu, i, now)


def enable_perf_event(host: Host, c: int, vm: Vm, vcpu: Vcpu, i: int, now: int) -> None:
    """State kvm_pmc_enable_perf_event(): a new event where there is none, or one of a PMU that this CPU is not of.

    The latter is `fixed-counters-only`'s: an event of another design stays on the VM's PMU, and waits until the vCPU is
    back on one of its CPUs.
    """
    number = event_of(vcpu, i)
    event = host.events[number]
    if event.attached == 0 or (vm.design == FIXED_COUNTERS_ONLY and event.pmu != host.cpus[c].pmu):
        create_perf_event(host, c, vm, vcpu, i, now)
    else:
        vcpu.perf_enabled += int(event.state < STATE_INACTIVE)
        perf.perf_event_enable(host, number, now)


def disable_perf_event(host: Host, vcpu: Vcpu, i: int, now: int) -> None:
    """State kvm_pmc_disable_perf_event()."""
    number = event_of(vcpu, i)
    if host.events[number].attached == 1:
        vcpu.perf_disabled += int(host.events[number].state >= STATE_INACTIVE)
        perf.perf_event_disable(host, number, now)


# ---- life cycle -------------------------------------------------------------------------------------------


def load_pmu(host: Host, c: int, vcpu: Vcpu) -> None:
    """State kvm_vcpu_load_pmu() of `fixed-counters-only`: ask for a reload where an event is of another PMU.

    Over whatever fixed counters there are, not the cycle counter alone.
    """
    stale = 0
    enabled = enabled_counter_mask(vcpu)
    for i in range(CYCLE + 1):
        if (enabled >> i) & 1 == 1:
            event = host.events[event_of(vcpu, i)]
            stale |= event.attached & (1 - pmu.equal(event.pmu, host.cpus[c].pmu))
    vcpu.reload_pmu |= stale


def reload_pmu(host: Host, c: int, vm: Vm, vcpu: Vcpu, now: int) -> None:
    """State kvm_vcpu_reload_pmu(): every counter's event as its registers say."""
    mask = implemented_counter_mask(vm)
    vcpu.reload_pmu = 0
    vcpu.ovs &= mask
    vcpu.inten &= mask
    vcpu.cnten &= mask
    reprogram_counter_mask(host, c, vm, vcpu, mask, now)


def perf_overflow(host: Host, c: int, vm: Vm, vcpu: Vcpu, i: int) -> None:
    """State kvm_pmu_perf_overflow(), in the host's PMU interrupt handler: counter `i` has overflowed.

    The next period is taken from what the event has counted, not from the counter's value: where the counter did not
    begin at zero the next overflow comes too early by as much, unless the guest writes the counter meanwhile.
    """
    cpu = host.cpus[c]
    event = host.events[event_of(vcpu, i)]
    event.overflowed = 0
    vcpu.overflows += 1
    arm_pmuv3.event_stop(cpu, event)
    event.sample_period = compute_period(cpu.pe, vm, vcpu, i, event.count)
    event.period_left = 0
    vcpu.ovs |= 1 << i
    if counter_can_chain(vcpu, i):
        counter_increment(cpu.pe, vm, vcpu, 1 << (i + 1), CHAIN)
    arm_pmuv3.event_start(cpu, event)


def handle_overflows(host: Host, c: int, vm: Vm, vcpu: Vcpu) -> None:
    """Let every counter whose event has overflowed know."""
    for i in range(CYCLE + 1):
        if (implemented_counter_mask(vm) >> i) & 1 == 1:
            event = host.events[event_of(vcpu, i)]
            if event.attached == 1 and event.overflowed == 1:
                perf_overflow(host, c, vm, vcpu, i)


def counter_increment(pe: Pe, vm: Vm, vcpu: Vcpu, counters: int, event: int) -> None:
    """State kvm_pmu_counter_increment(): `event` happened to `counters`; an overflow is CHAIN for the next counter.

    By PMCR_EL0.E and PMCNTEN alone: no filter is asked.
    """
    enabled = enabled_counter_mask(vcpu)
    chained = 0
    for i in range(vm.nr_counters):
        wanted = pmu.equal(event_number(vm, vcpu, i), event) & (counters >> i) & 1
        more = (wanted | (chained & pmu.equal(event_number(vm, vcpu, i), CHAIN))) & (enabled >> i) & 1
        value = vcpu.evcntr[i] + more
        if is_64bit(vm, i):
            value &= pe.core.counter_mask
        else:
            value &= pe.core.half_mask
        overflow_bits = pe.core.half_mask
        if has_64bit_overflow(vcpu, i):
            overflow_bits = pe.core.counter_mask
        overflow = more & (1 - pmu.nonzero(value & overflow_bits))
        if more == 1:
            vcpu.evcntr[i] = value
        vcpu.ovs |= overflow << i
        chained = overflow & int(counter_can_chain(vcpu, i))


def note_switched(host: Host, vcpu: Vcpu) -> None:
    """Enter into a vCPU's ledger how often its perf events have been switched."""
    for i in range(len(vcpu.evcntr) + 1):
        event = host.events[vcpu.first_event + i]
        vcpu.perf_switched += event.switched
        event.switched = 0


# ---- a guest's accesses -----------------------------------------------------------------------------------


def access_enabled(el: int, vcpu: Vcpu, bits: int) -> bool:
    """State check_pmu_access_disabled(): EL1 may always, EL0 by one of `bits` of PMUSERENR_EL0."""
    return el > 0 or (vcpu.userenr & bits) != 0


def needed_bits(key: int, write: int) -> int:
    """Return the bits of PMUSERENR_EL0 that let EL0 at a register."""
    if key == PMSWINC_EL0:
        return PMUSERENR_SW | PMUSERENR_EN
    if key == PMCCNTR_EL0 and write == 0:
        return PMUSERENR_CR | PMUSERENR_EN
    if key == PMSELR_EL0 or ((key == PMXEVCNTR_EL0 or is_pmevcntr(key)) and write == 0):
        return PMUSERENR_ER | PMUSERENR_EN
    return PMUSERENR_EN


def counter_index(vcpu: Vcpu, key: int) -> int:
    """Return which counter a register of one counter is about."""
    if key in (PMXEVCNTR_EL0, PMXEVTYPER_EL0):
        return vcpu.selr
    if is_pmevcntr(key):
        return key - PMEVCNTR0_EL0
    if is_pmevtyper(key):
        return key - PMEVTYPER0_EL0
    return CYCLE


def is_counter(key: int) -> bool:
    """Tell whether a register is one that access_pmu_evcntr() handles."""
    return is_pmevcntr(key) or key in (PMXEVCNTR_EL0, PMCCNTR_EL0)


def exists(vm: Vm, vcpu: Vcpu, key: int) -> bool:
    """Tell whether KVM knows the register and the guest has the counter that it is about (pmu_counter_idx_valid)."""
    if is_counter(key) or is_type(key):
        i = counter_index(vcpu, key)
        return i < vm.nr_counters or i == CYCLE
    if PMCR_EL0 <= key <= PMCEID1_EL0 or key in (PMINTENSET_EL1, PMINTENCLR_EL1):
        return True
    return key in (PMOVSSET_EL0, PMUSERENR_EL0, PMMIR_EL1)


def trapped_read(host: Host, c: int, vm: Vm, vcpu: Vcpu, el: int, key: int, now: int) -> int:
    """Carry out a guest's trapped MRS; the value is left in `vcpu.value`. Return DONE or UNDEF."""
    if key != PMUSERENR_EL0 and not access_enabled(el, vcpu, needed_bits(key, 0)):
        return UNDEF
    if not exists(vm, vcpu, key):
        return UNDEF
    if is_counter(key):
        vcpu.value = counter_value(host, c, vm, vcpu, counter_index(vcpu, key), now)
    elif is_type(key):
        vcpu.value = event_type(vcpu, counter_index(vcpu, key))
    elif key in (PMCNTENSET_EL0, PMCNTENCLR_EL0):
        vcpu.value = vcpu.cnten
    elif key in (PMINTENSET_EL1, PMINTENCLR_EL1):
        vcpu.value = vcpu.inten
    elif key in (PMOVSSET_EL0, PMOVSCLR_EL0):
        vcpu.value = vcpu.ovs
    else:
        vcpu.value = read_single(host, vm, vcpu, key)
    return DONE


def read_single(host: Host, vm: Vm, vcpu: Vcpu, key: int) -> int:
    """Return a register that is no set of counters and belongs to no single counter. PMMIR_EL1 is RAZ."""
    if key == PMCR_EL0:
        return read_pmcr(vm, vcpu)
    if key == PMSELR_EL0:
        return vcpu.selr
    if key == PMUSERENR_EL0:
        return vcpu.userenr
    if key in (PMCEID0_EL0, PMCEID1_EL0):
        return get_pmceid(host.cpus[cpu_of_pmu(host, vm.pmu)].pe, vm, key - PMCEID0_EL0)
    return 0


def cpu_of_pmu(host: Host, number: int) -> int:
    """Return the first CPU of one of the host's PMUs; 0 where it has none."""
    found = 0
    for c in range(len(host.cpus)):
        if host.cpus[c].pmu == number:
            found = c
            break
    return found


def read_pmcr(vm: Vm, vcpu: Vcpu) -> int:
    """State kvm_vcpu_read_pmcr(): N is the VM's; IMP and IDCODE read as zero."""
    return vcpu.pmcr | (vm.nr_counters << PMCR_N_SHIFT)


def get_pmceid(pe: Pe, vm: Vm, which: int) -> int:
    """State kvm_pmu_get_pmceid(): the host's, with SW_INCR and CHAIN, without STALL_SLOT* and what the filter denies.

    `pe` is one of the VM's PMU, wherever the vCPU is. `fixed-counters-only` has none.
    """
    if vm.design == FIXED_COUNTERS_ONLY:
        return 0
    if which == 0:
        mine = (1 << SW_INCR) | (1 << CHAIN)
        return (pmu.pmceid(pe, pe.core.pmceid0) | mine) & filters.allowed_pmceid(vm, 0)
    slots = (1 << (STALL_SLOT & 31)) | (1 << (STALL_SLOT_BACKEND & 31)) | (1 << (STALL_SLOT_FRONTEND & 31))
    return pmu.pmceid(pe, pe.core.pmceid1) & ~slots & filters.allowed_pmceid(vm, 1)


def trapped_write(host: Host, c: int, vm: Vm, vcpu: Vcpu, el: int, key: int, value: int, now: int) -> int:
    """Carry out a guest's trapped MSR of `value` from `el`. Return DONE or UNDEF."""
    if not access_enabled(el, vcpu, needed_bits(key, 1)) or not exists(vm, vcpu, key):
        return UNDEF
    mine = value & implemented_counter_mask(vm)
    if is_counter(key):
        set_counter_value(host, c, vm, vcpu, counter_index(vcpu, key), value, now)
    elif is_type(key):
        set_counter_event_type(host, c, vm, vcpu, counter_index(vcpu, key), value, now)
    elif key == PMCNTENSET_EL0:
        vcpu.cnten |= mine
        reprogram_counter_mask(host, c, vm, vcpu, mine, now)
    elif key == PMCNTENCLR_EL0:
        vcpu.cnten &= ~mine
        reprogram_counter_mask(host, c, vm, vcpu, mine, now)
    elif key == PMINTENSET_EL1:
        vcpu.inten |= mine
    elif key == PMINTENCLR_EL1:
        vcpu.inten &= ~mine
    elif key == PMOVSSET_EL0:
        vcpu.ovs |= mine
    elif key == PMOVSCLR_EL0:
        vcpu.ovs &= ~mine
    else:
        write_single(host, c, vm, vcpu, key, value, now)
    return DONE


def write_single(host: Host, c: int, vm: Vm, vcpu: Vcpu, key: int, value: int, now: int) -> None:
    """Write a register that is no set of counters and belongs to no single counter."""
    if key == PMCR_EL0:
        write_pmcr(host, c, vm, vcpu, value, now)
    elif key == PMSELR_EL0:
        vcpu.selr = value & 0x1F
    elif key == PMUSERENR_EL0:
        vcpu.userenr = value & 0xF
    elif key == PMSWINC_EL0:
        pe = host.cpus[c].pe
        counter_increment(pe, vm, vcpu, value & implemented_counter_mask(vm), SW_INCR)


def write_pmcr(host: Host, c: int, vm: Vm, vcpu: Vcpu, value: int, now: int) -> None:
    """State access_pmcr() and kvm_pmu_handle_pmcr(): E takes effect at the next entry, C and P at once."""
    value &= PMCR_MASK
    if host.cpus[c].pe.core.aarch32 == 0:
        value |= PMCR_LC
    if vm.pmuver < PMUV3P5:
        value &= ~PMCR_LP
    if ((vcpu.pmcr ^ value) & PMCR_E) != 0:
        vcpu.reload_pmu = 1
    vcpu.pmcr = value & ~(PMCR_C | PMCR_P)
    if (value & PMCR_C) != 0:
        set_counter_value(host, c, vm, vcpu, CYCLE, 0, now)
    if (value & PMCR_P) != 0:
        for i in range(vm.nr_counters):
            set_counter_value(host, c, vm, vcpu, i, 0, now)


def set_counter_event_type(host: Host, c: int, vm: Vm, vcpu: Vcpu, i: int, value: int, now: int) -> None:
    """State kvm_pmu_set_counter_event_type()."""
    value &= evtyper_mask(host.cpus[c].pe.core, vm)
    if i == CYCLE:
        vcpu.ccfiltr = value
    else:
        vcpu.evtyper[i] = value
    create_perf_event(host, c, vm, vcpu, i, now)
