"""A VM and its vCPUs as KVM keeps them, and the life of a vCPU on a CPU: load, enter, exit, put.

VHE: the host runs at EL2 with HCR_EL2.{E2H, TGE} = 1, so that MDCR_EL2 and the fine-grained traps are written once, at
load, and hold until put (Linux arch/arm64/kvm, kvm_arch_vcpu_load and kvm_arch_vcpu_put). What is particular to one
design of the virtual PMU is in that design's own module.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor.arch.pmu import Pe
from pmuvisor.records import U1, U2, U4, U5, U7, U16, U32, U33, U64, Bits, Each, LedgerCount, record

PARTITIONED = 1
"""Vm.design: guest counters are real ones, [0, HPMN) and the cycle counter."""


@record
class Vm:
    """What the vCPUs of one VM share."""

    design: U2
    use_fgt: U1
    """The host may use fine-grained traps where the CPU has them; 0 makes it do without, as for a test."""
    nr_counters: U5
    """kvm->arch.nr_pmu_counters: event counters of the guest, refused at the ioctl where a CPU cannot give them."""
    filter_words: U16
    denied: Annotated[list[int], Each("filter_words", 64)]
    """The event filter: bit e & 63 of word e >> 6 denies event e; events beyond the last word are allowed."""


@record
class Vcpu:
    """One vCPU: its PMU registers while it is not loaded, its virtual overflow state always."""

    loaded: U1
    unsupported_cpu: U1
    """Loaded on a CPU that cannot run it: KVM_RUN fails, and nothing of the guest's was put into that CPU."""
    pmcr: U32
    cnten: U33
    inten: U33
    ovs: U33
    """PMOVS as the guest has it, apart from what its counters have overflowed since the host last looked."""
    selr: U5
    userenr: U4
    evcntr: Annotated[list[int], Each("event_counters", "counter_width")]
    evtyper: Annotated[list[int], Each("event_counters", 32)]
    """As the guest wrote them; what the hardware holds has the event filter applied and EL2 excluded."""
    ccntr: Annotated[int, Bits("counter_width")]
    ccfiltr: U32
    irq_level: U1
    """The level of the guest's PMU interrupt, as of the last entry."""
    value: U64
    """What the last access through `access` read."""
    direct: LedgerCount
    """Guest accesses to PMU registers that went to the hardware."""
    trapped: LedgerCount
    """Guest accesses to PMU registers that exited to KVM."""
    swapped: LedgerCount
    """System registers written or read by load and put, those of the host included."""
    loads: LedgerCount
    puts: LedgerCount
    overflows: LedgerCount
    """Overflows of guest counters recorded by the host's interrupt handler."""
    injected: LedgerCount
    """Rises of the guest's PMU interrupt line."""


@record
class HostContext:
    """What the host needs back on this CPU at put."""

    pmcr: U32
    selr: U5
    userenr: U7
    mdcr_el2: U64


def reset(vcpu: Vcpu) -> None:
    """Reset the guest's PMU registers (KVM_ARM_VCPU_INIT), with the values of a Warm reset that KVM chooses: zero."""
    vcpu.pmcr = 1 << 6
    vcpu.cnten = 0
    vcpu.inten = 0
    vcpu.ovs = 0
    vcpu.selr = 0
    vcpu.userenr = 0
    for i in range(len(vcpu.evcntr)):
        vcpu.evcntr[i] = 0
        vcpu.evtyper[i] = 0
    vcpu.ccntr = 0
    vcpu.ccfiltr = 0
    vcpu.irq_level = 0


def guest_enter(pe: Pe) -> None:
    """Leave the host for the guest: HCR_EL2.TGE = 0."""
    pe.tge = 0


def guest_exit(pe: Pe) -> None:
    """Leave the guest for the host: HCR_EL2.TGE = 1."""
    pe.tge = 1
