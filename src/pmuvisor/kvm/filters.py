"""The VM's event filter (KVM_ARM_VCPU_PMU_V3_FILTER): which events a guest may count, whatever the design."""

from __future__ import annotations

from pmuvisor.arch.events import CHAIN, SW_INCR
from pmuvisor.kvm.vcpu import Vm, event_mask


def event_denied(vm: Vm, event: int) -> int:
    """Return 1 where the VM has a filter that denies `event`, 16 bits (kvm->arch.pmu_filter)."""
    word = event >> 6
    if word >= vm.filter_words:
        return 0
    return (vm.denied[word] >> (event & 63)) & 1


def event_allowed(vm: Vm, event: int) -> int:
    """Return 1 where the VM's event filter lets `event` count.

    SW_INCR, which is no hardware event, and CHAIN, which is hardly an event, are never filtered (Linux
    Documentation/virt/kvm/devices/vcpu.rst, KVM_ARM_VCPU_PMU_V3_FILTER).
    """
    if event in (SW_INCR, CHAIN):
        return 1
    return 1 - event_denied(vm, event)


def allowed_pmceid(vm: Vm, which: int) -> int:
    """Return the bits of PMCEID<which>_EL0 that the filter leaves (kvm_pmu_get_pmceid), all where there is none.

    What it denies is hidden, be it SW_INCR or CHAIN; and with a filter the upper half, unless the guest's events have
    16 bits.
    """
    allowed = 0
    for bit in range(32):
        allowed |= (1 - event_denied(vm, bit + 32 * which)) << bit
        allowed |= (1 - event_denied(vm, 0x4000 + bit + 32 * which)) << (bit + 32)
    if vm.filter_words != 0 and event_mask(vm) < 0x4000:
        allowed &= 0xFFFF_FFFF
    return allowed
