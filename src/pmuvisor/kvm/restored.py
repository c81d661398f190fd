"""What userspace sets of a VM's PMU while its vCPUs do not run: attributes before the first run, registers at any time.

The decisions and effects that KVM_SET_DEVICE_ATTR and KVM_SET_ONE_REG (kvm.uapi) are made of, where they are those of
KVM's state alone. What an ioctl has to say about its arguments, and errno, is the uapi's.
"""

from __future__ import annotations

from pmuvisor.arch.sysreg import (
    CYCLE,
    PMCCFILTR_EL0,
    PMCCNTR_EL0,
    PMCNTENCLR_EL0,
    PMCNTENSET_EL0,
    PMCR_C,
    PMCR_EL0,
    PMCR_LC,
    PMCR_P,
    PMEVCNTR0_EL0,
    PMEVTYPER0_EL0,
    PMINTENCLR_EL1,
    PMINTENSET_EL1,
    PMOVSCLR_EL0,
    PMOVSSET_EL0,
    PMSELR_EL0,
    PMUSERENR_EL0,
    is_pmevcntr,
    is_pmevtyper,
)
from pmuvisor.kvm import emulated
from pmuvisor.kvm.vcpu import EMULATED, FIXED_COUNTERS_ONLY, Vcpu, Vm, implemented_counter_mask
from pmuvisor.linux.arm_pmuv3 import FULL_MASK
from pmuvisor.linux.host import Host

TYPE_MASK = (1 << 32) - 1
"""What is stored of an event type that userspace writes."""

# ---- attributes -------------------------------------------------------------------------------------------


def set_pmu_is_refused(vm: Vm, ran_once: int, same: int) -> bool:
    """Tell whether kvm_arm_pmu_v3_set_pmu() says EBUSY: after a run, or a filter of another PMU's events.

    `same` is 1 where the PMU asked for is kvm->arch.arm_pmu already.
    """
    return ran_once == 1 or (vm.filter_words != 0 and same == 0)


def fixed_counters_only_is_refused(vm: Vm, ran_once: int) -> bool:
    """Tell whether kvm_arm_pmu_v3_set_pmu_fixed_counters_only() says EBUSY: after a run, or for the first time after a
    filter.
    """
    return ran_once == 1 or (vm.filter_words != 0 and vm.design != FIXED_COUNTERS_ONLY)


def leave_fixed_counters_only(vm: Vm) -> None:
    """SET_PMU clears KVM_ARCH_FLAG_PMU_V3_FIXED_COUNTERS_ONLY: of it and the other attribute the last one wins."""
    if vm.design == FIXED_COUNTERS_ONLY:
        vm.design = EMULATED


def begin_filter(vm: Vm, words: int, deny: int) -> None:
    """Give a VM an event filter, if it has none: what the first range of events is not, all others are."""
    if vm.filter_words == 0:
        vm.filter_words = words
        for word in range(words):
            vm.denied[word] = FULL_MASK & -(1 - deny)


def filter_event(vm: Vm, event: int, deny: int) -> None:
    """Let a VM's event filter, which there is, deny or allow an event."""
    bit = 1 << (event & 63)
    vm.denied[event >> 6] = (vm.denied[event >> 6] & ~bit) | (bit & -deny)


# ---- registers --------------------------------------------------------------------------------------------


def set_one_reg(host: Host, c: int, vm: Vm, vcpu: Vcpu, key: int, value: int, now: int) -> None:
    """State KVM_SET_ONE_REG of a register of the PMU, of a vCPU that is not loaded, in its thread on CPU `c`.

    A SET or CLR register is the whole value (set_pmreg()). Counters that the records have no room for, and
    PMCR_EL0.N, are the caller's.
    """
    mine = value & implemented_counter_mask(vm)
    if key in (PMCNTENSET_EL0, PMCNTENCLR_EL0):
        vcpu.cnten = mine
        vcpu.reload_pmu = 1
    elif key in (PMINTENSET_EL1, PMINTENCLR_EL1):
        vcpu.inten = mine
        vcpu.reload_pmu = 1
    elif key in (PMOVSSET_EL0, PMOVSCLR_EL0):
        vcpu.ovs = mine
        vcpu.reload_pmu = 1
    elif key == PMCR_EL0:
        set_pmcr(host, vcpu, value)
    elif key == PMCCNTR_EL0:
        set_counter(host, c, vm, vcpu, CYCLE, value, now)
    elif is_pmevcntr(key):
        set_counter(host, c, vm, vcpu, key - PMEVCNTR0_EL0, value, now)
    else:
        store_register(vcpu, key, value)


def set_counter(host: Host, c: int, vm: Vm, vcpu: Vcpu, i: int, value: int, now: int) -> None:
    """State set_pmu_evcntr(): the register, and of an emulated counter its event."""
    if vm.design in (EMULATED, FIXED_COUNTERS_ONLY):
        emulated.set_counter_value_user(host, c, vcpu, i, value, now)
    else:
        emulated.set_register_value(host.cpus[c].pe, vcpu, i, value)


def set_pmcr(host: Host, vcpu: Vcpu, value: int) -> None:
    """State set_pmcr(), without N: P and C zero nothing.

    KVM stores them where the guest can read them; here they read as zero, as the architecture has it.
    """
    vcpu.pmcr = value & emulated.PMCR_MASK & ~(PMCR_P | PMCR_C)
    if has_32bit_el0(host) == 0:
        vcpu.pmcr |= PMCR_LC
    vcpu.reload_pmu = 1


def has_32bit_el0(host: Host) -> int:
    """State kvm_supports_32bit_el0(): 1 where every CPU can use AArch32."""
    every = 1
    for c in range(len(host.cpus)):
        every &= host.cpus[c].pe.core.aarch32
    return every


def store_register(vcpu: Vcpu, key: int, value: int) -> None:
    """State sys_reg_set_user() of a register without a set_user: it is stored, and no perf event is told."""
    if key == PMSELR_EL0:
        vcpu.selr = value & 0x1F
    elif key == PMUSERENR_EL0:
        vcpu.userenr = value & 0xF
    elif key == PMCCFILTR_EL0:
        vcpu.ccfiltr = value & TYPE_MASK
    elif is_pmevtyper(key):
        vcpu.evtyper[key - PMEVTYPER0_EL0] = value & TYPE_MASK
