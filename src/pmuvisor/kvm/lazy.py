"""The `lazy` design: `partitioned`, and nothing is swapped for a guest that does not use its PMU.

On the model of KVM's debug registers (kvm_vcpu_load_debug, kvm_debug_set_guest_ownership), as the review of the lazy
context swaps asks for: whose the registers are is decided when the vCPU is loaded; the first access to any of them
while they are nobody's goes back to the preemptible kernel, which puts the vCPU and loads it again as their owner
(`world.set_guest_ownership`); and when the vCPU is scheduled out, it starts over.
"""

from __future__ import annotations

from pmuvisor.kvm.vcpu import EMULATED, FIXED_COUNTERS_ONLY, FREE, GUEST_OWNED, LAZY, Vcpu, Vm, enabled_counter_mask


def residency_at_load(vm: Vm, vcpu: Vcpu) -> int:
    """Return whether a vCPU's registers come to the CPU when it is loaded: GUEST_OWNED or FREE.

    Of a lazy one they do if some counter is enabled (kvm_pmu_counter_is_enabled): by PMCNTEN and by PMCR_EL0.E.
    """
    if vm.design in (EMULATED, FIXED_COUNTERS_ONLY):
        return FREE
    if vm.design == LAZY and enabled_counter_mask(vcpu) == 0:
        return FREE
    return GUEST_OWNED
