"""A VM and its vCPUs as KVM keeps them, and the life of a vCPU on a CPU: load, enter, exit, put.

VHE: the host runs at EL2 with HCR_EL2.{E2H, TGE} = 1, so that MDCR_EL2 and the fine-grained traps are written once, at
load, and hold until put (Linux arch/arm64/kvm, kvm_arch_vcpu_load and kvm_arch_vcpu_put). What is particular to one
design of the virtual PMU is in that design's own module.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor.arch.pmu import Features, Pe
from pmuvisor.arch.sysreg import (
    CYCLE,
    FILTER_M,
    FILTER_NSH,
    FILTER_NSK,
    FILTER_NSU,
    FILTER_P,
    FILTER_U,
    PMCCFILTR_EL0,
    PMCR_E,
    PMUV3P1,
    PMXEVTYPER_EL0,
    is_pmevtyper,
)
from pmuvisor.records import U1, U2, U4, U5, U7, U8, U16, U32, U33, U64, Bits, Each, LedgerCount, record

# Vm.design
EMULATED = 0
"""Every access traps; each guest counter is a perf event of the host (upstream Linux)."""
PARTITIONED = 1
"""Guest counters are real ones, [0, HPMN) and the cycle counter."""
LAZY = 2
"""As PARTITIONED, but nothing is swapped until the guest touches its PMU."""
FIXED_COUNTERS_ONLY = 3
"""As EMULATED, without event counters, on every CPU whose PMU is compatible."""

# Vcpu.residency
FREE = 0
"""Nothing of the guest's PMU is on this CPU, and all its accesses trap."""
GUEST_OWNED = 1
"""The guest's PMU registers are on this CPU."""

DONE = 0
UNDEF = 1
"""What a design's handler says of a trapped access: carried out, or the guest takes an Undefined Instruction
exception."""

UNKNOWN = 0x1DE7_EC7E_DBAD_C0DE
"""What KVM makes of a register whose reset value is architecturally UNKNOWN (reset_unknown): no guest is to rely on
another."""


@record
class SpeContext:
    """The registers of the Statistical Profiling Unit while they are not in it (ctxt_sys_reg)."""

    pmscr_el1: U8
    pmsicr: U64
    pmsirr: U32
    pmsfcr: U64
    pmsevfr: U64
    pmsnevfr: U64
    pmslatfr: U16
    pmsdsfr: U64
    pmblimitr: U64
    pmbptr: U64
    pmbsr: U64


@record
class Vm:
    """What the vCPUs of one VM share."""

    design: U2
    use_fgt: U1
    """The host may use fine-grained traps where the CPU has them; 0 makes it do without, as for a test."""
    nr_counters: U5
    """kvm->arch.nr_pmu_counters: event counters of the guest, refused at the ioctl where a CPU cannot give them."""
    pmuver: U4
    """ID_AA64DFR0_EL1.PMUVer as the guest has it: PMUv3p5 at most."""
    pmu: U8
    """kvm->arch.arm_pmu: the PMU of the host that its counters are of."""
    supported_pmus: U16
    """kvm->arch.supported_cpus, by kind: bit p lets its vCPUs run on the CPUs of PMU p."""
    spe: U1
    """KVM_ARM_VCPU_SPE: its vCPUs have the Statistical Profiling Extension."""
    spe_pinned: U1
    """The buffer that the guest enables is pinned and mapped at stage 2 as a whole, then and there."""
    spe_max_buffer: U64
    """Bytes of the largest buffer that its guest may enable; 0 for any."""
    filter_words: U16
    denied: Annotated[list[int], Each("filter_words", 64)]
    """The event filter: bit e & 63 of word e >> 6 denies event e; events beyond the last word are allowed."""


@record
class Vcpu:
    """One vCPU: its PMU registers while it is not loaded, its virtual overflow state always."""

    loaded: U1
    residency: U1
    """Of a vCPU that is loaded: GUEST_OWNED or FREE; always GUEST_OWNED, always FREE or decided at load by design."""
    reload_pmu: U1
    """KVM_REQ_RELOAD_PMU: the next entry is to look at all perf events of the counters."""
    task: U16
    """The thread that runs it."""
    first_event: U16
    """Where its perf events begin in `Host.events`: one for each event counter, then that of the cycle counter."""
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
    spe: SpeContext
    """Its profiling registers: the sampling ones while it is not loaded, the buffer's while it is not in the guest."""
    spe_irq_level: U1
    """The level of the guest's PMBIRQ, as of the last entry."""
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
    rescheduled: LedgerCount
    """How often host events were taken off their counters, and put back on others, for this vCPU's sake."""
    perf_created: LedgerCount
    """Perf events created for the guest's counters."""
    perf_released: LedgerCount
    perf_enabled: LedgerCount
    """How often one of them that was off was enabled; to enable one that is on is to do nothing."""
    perf_disabled: LedgerCount
    """How often one of them that was on was disabled."""
    perf_read: LedgerCount
    spe_direct: LedgerCount
    """Guest accesses to profiling registers that went to the hardware."""
    spe_trapped: LedgerCount
    spe_drained: LedgerCount
    """Exits at which the guest's buffer was enabled, and had to be drained."""
    spe_injected: LedgerCount
    """Rises of the guest's PMBIRQ."""
    spe_stage2: LedgerCount
    """Faults of the guest's buffer at stage 2, which KVM resolved: what was sampled since the fault is lost."""
    perf_switched: LedgerCount
    """How often one of them was given a counter or had it taken: when the thread came or left, and when an event of its
    context was enabled, since perf then schedules all of them anew (ctx_resched)."""


@record
class HostContext:
    """What the host needs back on this CPU at put."""

    pmcr: U32
    selr: U5
    userenr: U7
    mdcr_el2: U64
    spe: SpeContext
    pmscr_el2: U8
    """vcpu_spe.host_pmscr_el2"""


def implemented_counter_mask(vm: Vm) -> int:
    """State kvm_pmu_implemented_counter_mask(): the guest's event counters and its cycle counter."""
    return ((1 << vm.nr_counters) - 1) | (1 << CYCLE)


def enabled_counter_mask(vcpu: Vcpu) -> int:
    """State kvm_pmu_enabled_counter_mask(), of registers that are not on a CPU."""
    return vcpu.cnten & -(vcpu.pmcr & PMCR_E)


def is_type(key: int) -> bool:
    """Tell whether a register is one that access_pmu_evtyper() handles: event types, and PMCCFILTR_EL0."""
    return is_pmevtyper(key) or key in (PMXEVTYPER_EL0, PMCCFILTR_EL0)


def event_mask(vm: Vm) -> int:
    """State kvm_pmu_event_mask(): the bits of an event number that the guest's PMU version has."""
    if vm.pmuver < PMUV3P1:
        return 0x3FF
    return 0xFFFF


def evtyper_mask(core: Features, vm: Vm) -> int:
    """State kvm_pmu_evtyper_mask(): what of PMEVTYPER<n>_EL0 and PMCCFILTR_EL0 an emulated counter has.

    NSH goes by the guest's ID_AA64PFR0_EL1.EL2, which KVM leaves as the host's; it is stored, and filters nothing
    without nested virtualization. `core` stands for its EL3.
    """
    secure = (core.el3 << FILTER_NSK) | (core.el3 << FILTER_NSU) | (core.el3 << FILTER_M)
    return (1 << FILTER_P) | (1 << FILTER_U) | (1 << FILTER_NSH) | secure | event_mask(vm)


def reset_registers(core: Features, vm: Vm, vcpu: Vcpu) -> None:
    """Reset the guest's PMU registers (KVM_ARM_VCPU_INIT: reset_pmu_reg and its like), of a vCPU that is not loaded.

    What the architecture leaves UNKNOWN becomes `UNKNOWN`, so that a guest that relies on zeros fails here as there.
    """
    counters = UNKNOWN & implemented_counter_mask(vm)
    vcpu.pmcr = (1 - core.aarch32) << 6
    vcpu.cnten = counters
    vcpu.inten = counters
    vcpu.ovs = counters
    vcpu.selr = UNKNOWN & 0x1F
    vcpu.userenr = 0
    for i in range(len(vcpu.evcntr)):
        vcpu.evcntr[i] = UNKNOWN & 0xFFFF_FFFF & core.counter_mask
        vcpu.evtyper[i] = UNKNOWN & evtyper_mask(core, vm)
    vcpu.ccntr = UNKNOWN & core.counter_mask
    vcpu.ccfiltr = 0
    vcpu.irq_level = 0
    vcpu.reload_pmu = 1


def guest_enter(pe: Pe) -> None:
    """Leave the host for the guest: HCR_EL2.TGE = 0."""
    pe.tge = 0


def guest_exit(pe: Pe) -> None:
    """Leave the guest for the host: HCR_EL2.TGE = 1."""
    pe.tge = 1
