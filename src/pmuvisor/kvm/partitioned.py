"""The `partitioned` design, and `lazy`: the guest's counters are real ones, [0, HPMN) and the cycle counter.

The host keeps the counters from HPMN up and the instruction counter. With FEAT_FGT the common registers are not
trapped; without it MDCR_EL2.{TPM, TPMCR} trap them all and the handlers here do the same work. Source: the "ARM64 PMU
Partitioning" series (v7) and the review of its MDCR_EL2 and context-swap patches on the kvmarm list.

A vCPU whose residency is FREE, as that of every vCPU of another design is, is loaded here too: nothing of its PMU comes
to the CPU, and all its accesses trap.
"""

from __future__ import annotations

from pmuvisor.arch import pmu
from pmuvisor.arch.events import CPU_CYCLES
from pmuvisor.arch.pmu import Features, Pe
from pmuvisor.arch.sysreg import (
    CYCLE,
    EVENT_COUNTERS,
    FGT_PMCCFILTR,
    FGT_PMEVTYPERN,
    FGT_PMOVS,
    FGT_PMUSERENR,
    FGT_R_PMCEIDN,
    FGT_R_PMMIR,
    FILTER_NSH,
    FILTER_P,
    FILTER_U,
    MDCR_HCCD,
    MDCR_HLP,
    MDCR_HPMD,
    MDCR_HPME,
    MDCR_TDOSA,
    MDCR_TDRA,
    MDCR_TPM,
    MDCR_TPMCR,
    MDCR_TPMS,
    MDCR_TTRF,
    PMCCFILTR_EL0,
    PMCCNTR_EL0,
    PMCEID0_EL0,
    PMCEID1_EL0,
    PMCNTENCLR_EL0,
    PMCNTENSET_EL0,
    PMCR_C,
    PMCR_E,
    PMCR_EL0,
    PMCR_LP,
    PMCR_N_SHIFT,
    PMCR_P,
    PMEVTYPER0_EL0,
    PMICFILTR_EL0,
    PMICNTR_EL0,
    PMINTENCLR_EL1,
    PMINTENSET_EL1,
    PMMIR_EL1,
    PMOVSCLR_EL0,
    PMOVSSET_EL0,
    PMSELR_EL0,
    PMSWINC_EL0,
    PMUACR_EL1,
    PMUSERENR_CR,
    PMUSERENR_EL0,
    PMUSERENR_EN,
    PMUSERENR_ER,
    PMUSERENR_SW,
    PMUV3P1,
    PMUV3P5,
    PMUV3P9,
    PMXEVCNTR_EL0,
    PMXEVTYPER_EL0,
    PMZR_EL0,
    is_pmevcntr,
    is_pmevtyper,
    pmevcntr,
)
from pmuvisor.kvm import filters, lazy, spe
from pmuvisor.kvm.vcpu import (
    DONE,
    FREE,
    GUEST_OWNED,
    UNDEF,
    HostContext,
    Vcpu,
    Vm,
    implemented_counter_mask,
    is_type,
)

EL2 = 2
"""Where KVM's own accesses come from."""
GUEST_REGISTERS = 7
"""The guest's registers swapped at load and put whatever its counters: PMCR, PMSELR, PMUSERENR, PMCNTEN, PMINTEN,
PMOVS, PMCCNTR. Load writes PMCCFILTR besides."""
GUEST_PMUSERENR = PMUSERENR_EN | PMUSERENR_SW | PMUSERENR_CR | PMUSERENR_ER
"""The bits of PMUSERENR_EL0 that a guest has, whose PMU is PMUv3p5 at most."""
HOST_REGISTERS = 3
"""The host's that make room for them: PMCR, PMSELR, PMUSERENR."""


# ---- what hardware is told --------------------------------------------------------------------------------


def count_refused(core: Features, nr_counters: int) -> bool:
    """Tell whether a CPU cannot give a guest `nr_counters` event counters: the ioctl refuses such a number."""
    return nr_counters > core.event_counters or (nr_counters == 0 and core.hpmn0 == 0)


def uses_fgt(pe: Pe, vm: Vm, vcpu: Vcpu) -> bool:
    """State kvm_vcpu_pmu_use_fgt(): fine-grained traps let the guest at its own counters.

    Not where PMUv3p9 has come without FEAT_FGT2: nothing but MDCR_EL2.TPM would keep the guest from PMUACR_EL1.
    """
    if vcpu.residency != GUEST_OWNED or vm.use_fgt == 0 or pe.core.fgt == 0:
        return False
    if pe.core.pmuver >= PMUV3P9 and pe.core.fgt2 == 0:
        return False
    return vm.nr_counters != 0 or pe.core.hpmn0 == 1


def mdcr_hpmn(pe: Pe, vm: Vm, vcpu: Vcpu) -> int:
    """State kvm_mdcr_hpmn(): the VM's count where its counters are on this CPU, else all of this CPU's counters."""
    if vcpu.residency != GUEST_OWNED:
        return pe.core.event_counters
    return vm.nr_counters


def setup_mdcr_el2(pe: Pe, vm: Vm, vcpu: Vcpu) -> int:
    """State kvm_arm_setup_mdcr_el2(): MDCR_EL2 while `vcpu` is loaded; E2TB stays zero, and so does E2PB without SPE.

    HPME keeps the host's range counting while the guest's PMCR_EL0.E governs only its own, and HLP keeps its counters
    as long as the host's PMCR_EL0.LP had them. Where the vCPU is FREE, or the CPU cannot run it, nothing is prohibited:
    all counters are the host's there, in the first range.
    """
    mdcr = mdcr_hpmn(pe, vm, vcpu) | MDCR_HPME | MDCR_TPMS | MDCR_TTRF | MDCR_TDRA | MDCR_TDOSA
    if vcpu.residency == GUEST_OWNED:
        if pe.core.pmuver >= PMUV3P5 and (pe.pmcr & PMCR_LP) != 0:
            mdcr |= MDCR_HLP
        if pe.core.pmuver >= PMUV3P1:
            mdcr |= MDCR_HPMD
        if pe.core.pmuver >= PMUV3P5:
            mdcr |= MDCR_HCCD
    if not uses_fgt(pe, vm, vcpu):
        mdcr |= MDCR_TPM | MDCR_TPMCR
    if vcpu.unsupported_cpu == 0:
        mdcr = spe.mdcr_el2(vm, mdcr)
    return mdcr


def hdfgwtr(pe: Pe, vm: Vm, vcpu: Vcpu) -> int:
    """Return HDFGWTR_EL2 while loaded: event types (the filter) and overflow state (virtual) stay trapped.

    From PMUv3p9, PMUSERENR_EL0 as well, which the series leaves to the guest: its UEN would let the host's PMUACR_EL1
    decide what the guest's EL0 reads, in a guest that KVM shows PMUv3p5 at most.
    """
    if not uses_fgt(pe, vm, vcpu):
        return 0
    bits = virtual_state_traps()
    if pe.core.pmuver >= PMUV3P9:
        bits |= 1 << FGT_PMUSERENR
    return bits


def virtual_state_traps() -> int:
    """Return the bits of HDFGRTR_EL2 and HDFGWTR_EL2 for what the hardware does not hold as the guest wrote it."""
    return (1 << FGT_PMOVS) | (1 << FGT_PMEVTYPERN) | (1 << FGT_PMCCFILTR)


def hdfgrtr(pe: Pe, vm: Vm, vcpu: Vcpu) -> int:
    """Return HDFGRTR_EL2 while loaded: as for writes, PMMIR_EL1 (RAZ to guests), PMCEID<n> where a filter hides events.

    HDFGRTR2_EL2 and HDFGWTR2_EL2 stay zero, which traps the instruction counter.
    """
    if not uses_fgt(pe, vm, vcpu):
        return 0
    bits = virtual_state_traps() | (1 << FGT_R_PMMIR)
    if vm.filter_words != 0:
        bits |= 1 << FGT_R_PMCEIDN
    return bits


# ---- the event filter -------------------------------------------------------------------------------------

EXCLUDE_EL1_EL0 = (1 << FILTER_P) | (1 << FILTER_U)
"""The filter bits of a counter that is to count nothing of a guest's."""


def guest_evtyper_bits(pe: Pe) -> int:
    """Return the bits of PMEVTYPER<n>_EL0 that a guest has: NSH is RES0 without nested virtualization.

    KVM does not show a guest FEAT_PMUv3_TH, whose fields are the upper half.
    """
    return pmu.evtyper_bits(pe, 0) & ~(1 << FILTER_NSH) & 0xFFFF_FFFF


def effective_evtyper(pe: Pe, vm: Vm, evtyper: int) -> int:
    """Return what the hardware is given for a guest's `evtyper`: a denied event is excluded at EL1 and EL0.

    State kvm_pmu_apply_event_filter(). With NSK and NSU clear, P and U exclude Non-secure EL1 and EL0; no event counts
    at EL2, whatever userspace restored.
    """
    if filters.event_allowed(vm, evtyper & pmu.EVENT_FIELD) == 1:
        return evtyper & guest_evtyper_bits(pe)
    return (evtyper & pmu.EVENT_FIELD) | EXCLUDE_EL1_EL0


def effective_ccfiltr(pe: Pe, vm: Vm, ccfiltr: int) -> int:
    """Return what the hardware is given for a guest's PMCCFILTR_EL0; the filter knows the counter as CPU_CYCLES."""
    if filters.event_allowed(vm, CPU_CYCLES) == 1:
        return ccfiltr & pmu.filter_bits(pe) & ~(1 << FILTER_NSH)
    return EXCLUDE_EL1_EL0


# ---- load, put, interrupt, entry --------------------------------------------------------------------------


def vcpu_load(pe: Pe, host: HostContext, vm: Vm, vcpu: Vcpu, supported: int) -> None:
    """State kvm_vcpu_load_pmu(): take the guest's counters and fill them, if its design and its state ask for that.

    `supported` is 0 where this CPU cannot run the vCPU, which is noticed before anything else is done. The caller has
    moved host events out of the guest's counters.
    """
    load_as(pe, host, vm, vcpu, supported, lazy.residency_at_load(vm, vcpu))


def load_as(pe: Pe, host: HostContext, vm: Vm, vcpu: Vcpu, supported: int, residency: int) -> None:
    """Load a vCPU as FREE or as GUEST_OWNED; on a CPU that cannot run it nothing of it comes to the CPU."""
    vcpu.loaded = 1
    vcpu.loads += 1
    vcpu.unsupported_cpu = 1 - supported
    vcpu.residency = residency & supported
    host.pmcr = pe.pmcr
    host.selr = pe.selr
    host.userenr = pe.userenr
    host.mdcr_el2 = pe.mdcr_el2
    pe.mdcr_el2 = setup_mdcr_el2(pe, vm, vcpu)
    pe.hdfgrtr_el2 = hdfgrtr(pe, vm, vcpu)
    pe.hdfgwtr_el2 = hdfgwtr(pe, vm, vcpu)
    if vcpu.residency == GUEST_OWNED:
        load_registers(pe, vm, vcpu)
    elif supported == 1:
        trap_everything(pe)


def trap_everything(pe: Pe) -> None:
    """State __activate_traps_common(): all that EL1 and EL0 access is to trap to EL2, by MDCR_EL2.TPM.

    PMUSERENR_EL0 is wide open, or EL0's accesses would go to EL1 first; PMSELR_EL0 selects a counter that exists, or
    PMXEVCNTR_EL0 and PMXEVTYPER_EL0 could be UNDEFINED.
    """
    pe.selr = 0
    pe.userenr = GUEST_PMUSERENR


def load_registers(pe: Pe, vm: Vm, vcpu: Vcpu) -> None:
    """Write the guest's registers into the hardware, event types with the filter enforced.

    Userspace can have restored a filtered type, so the filter is applied here as well as at the guest's writes. The
    counters are written by their own names, never through PMSELR_EL0, which could reach the cycle counter.
    """
    mine = implemented_counter_mask(vm)
    for i in range(vm.nr_counters):
        pmu.write_control(pe, i, effective_evtyper(pe, vm, vcpu.evtyper[i]))
        pmu.write_counter(pe, i, vcpu.evcntr[i])
    pe.ccfiltr = effective_ccfiltr(pe, vm, vcpu.ccfiltr)
    pe.ccntr = vcpu.ccntr
    pe.selr = vcpu.selr
    pe.userenr = vcpu.userenr
    pe.ovs &= ~mine
    pe.inten = (pe.inten & ~mine) | (vcpu.inten & mine)
    pe.cnten = (pe.cnten & ~mine) | (vcpu.cnten & mine)
    pe.pmcr = vcpu.pmcr
    vcpu.swapped += 2 * vm.nr_counters + GUEST_REGISTERS + 1 + HOST_REGISTERS


def vcpu_put(pe: Pe, host: HostContext, vm: Vm, vcpu: Vcpu) -> None:
    """State kvm_vcpu_put_pmu(): keep the guest's registers, leave its counters idle and the host's state restored.

    PMCR_EL0 was the host's all the time where the vCPU was FREE, for its driver to start and stop: it stays as it is.
    """
    if vcpu.residency == GUEST_OWNED:
        save_registers(pe, vm, vcpu)
        pe.pmcr = host.pmcr
    pe.selr = host.selr
    pe.userenr = host.userenr
    pe.mdcr_el2 = host.mdcr_el2
    pe.hdfgrtr_el2 = 0
    pe.hdfgwtr_el2 = 0
    vcpu.residency = FREE
    vcpu.loaded = 0
    vcpu.puts += 1


def save_registers(pe: Pe, vm: Vm, vcpu: Vcpu) -> None:
    """Read the guest's registers back. Event types and the cycle filter are trapped: the vCPU has them already."""
    mine = implemented_counter_mask(vm)
    for i in range(vm.nr_counters):
        vcpu.evcntr[i] = pe.evcntr[i]
    vcpu.ccntr = pe.ccntr
    vcpu.selr = pe.selr
    vcpu.userenr = pe.userenr
    vcpu.inten = pe.inten & mine
    vcpu.cnten = pe.cnten & mine
    vcpu.ovs |= pe.ovs & mine
    vcpu.pmcr = pe.pmcr
    pe.cnten &= ~mine
    pe.inten &= ~mine
    pe.ovs &= ~mine
    vcpu.swapped += vm.nr_counters + GUEST_REGISTERS + HOST_REGISTERS


def handle_irq(pe: Pe, vm: Vm, vcpu: Vcpu) -> int:
    """State the host's PMU interrupt handler: clear PMOVS, record the loaded guest's part, return the host's.

    All overflow flags are read and cleared at once, as armv8pmu_getreset_flags() does; those of the guest become its
    virtual overflow state, those of the host are for its driver.
    """
    flags = pe.ovs
    pe.ovs = 0
    if vcpu.residency != GUEST_OWNED:
        return flags
    mine = flags & implemented_counter_mask(vm)
    vcpu.ovs |= mine
    for i in range(CYCLE + 1):
        vcpu.overflows += (mine >> i) & 1
    return flags & ~implemented_counter_mask(vm)


def overflow_status(pe: Pe, vm: Vm, vcpu: Vcpu) -> int:
    """Return the guest's PMOVS: its virtual state and what its counters on this CPU have overflowed since."""
    return (vcpu.ovs | (pe.ovs & -vcpu.residency)) & implemented_counter_mask(vm)


def flush_hwstate(pe: Pe, vm: Vm, vcpu: Vcpu) -> None:
    """State kvm_pmu_flush_hwstate(), on entry: set the guest's interrupt line by the architecture's level rule."""
    inten = vcpu.inten
    pmcr = vcpu.pmcr
    if vcpu.residency == GUEST_OWNED:
        inten = pe.inten
        pmcr = pe.pmcr
    level = pmu.nonzero(overflow_status(pe, vm, vcpu) & inten) & (pmcr & PMCR_E)
    vcpu.injected += level & (1 - vcpu.irq_level)
    vcpu.irq_level = level


# ---- trapped accesses -------------------------------------------------------------------------------------


def selected_is_bad(pe: Pe, vm: Vm, key: int) -> bool:
    """Tell whether PMSELR_EL0 selects nothing that PMXEVCNTR_EL0 or PMXEVTYPER_EL0 could be."""
    if key == PMXEVTYPER_EL0 and pe.selr == CYCLE:
        return False
    return pe.selr >= vm.nr_counters


def is_undef(pe: Pe, vm: Vm, key: int) -> bool:
    """Tell whether a trapped access is to something that the guest does not have."""
    if key in (PMICNTR_EL0, PMICFILTR_EL0, PMUACR_EL1, PMZR_EL0):
        return True
    if is_pmevcntr(key):
        return key - pmevcntr(0) >= vm.nr_counters
    if is_pmevtyper(key):
        return key - PMEVTYPER0_EL0 >= vm.nr_counters
    return key in (PMXEVCNTR_EL0, PMXEVTYPER_EL0) and selected_is_bad(pe, vm, key)


def type_index(pe: Pe, key: int) -> int:
    """Return which event type an access is about; CYCLE (31) for PMCCFILTR_EL0."""
    if key == PMXEVTYPER_EL0:
        return pe.selr
    if key == PMCCFILTR_EL0:
        return CYCLE
    return key - PMEVTYPER0_EL0


def counter_key(pe: Pe, key: int) -> int:
    """Return the key by which a counter is accessed: PMXEVCNTR_EL0 resolved to the counter selected."""
    if key == PMXEVCNTR_EL0:
        return pmevcntr(pe.selr)
    return key


def trapped_read(pe: Pe, vm: Vm, vcpu: Vcpu, key: int) -> int:
    """Carry out a guest's trapped MRS; the value is left in `vcpu.value`. Return DONE or UNDEF."""
    if is_undef(pe, vm, key):
        return UNDEF
    mine = implemented_counter_mask(vm)
    if is_type(key):
        i = type_index(pe, key)
        vcpu.value = vcpu.ccfiltr
        if i != CYCLE:
            vcpu.value = vcpu.evtyper[i]
    elif key in (PMOVSSET_EL0, PMOVSCLR_EL0):
        vcpu.value = overflow_status(pe, vm, vcpu)
    elif key in (PMCNTENSET_EL0, PMCNTENCLR_EL0, PMINTENSET_EL1, PMINTENCLR_EL1):
        vcpu.value = pmu.read(pe, EL2, key) & mine
    elif key == PMCR_EL0:
        vcpu.value = (pmu.read(pe, EL2, key) & ~(0x1F << PMCR_N_SHIFT)) | (vm.nr_counters << PMCR_N_SHIFT)
    elif key in (PMCEID0_EL0, PMCEID1_EL0):
        vcpu.value = pmu.read(pe, EL2, key) & filters.allowed_pmceid(vm, key - PMCEID0_EL0)
    elif key == PMMIR_EL1:
        vcpu.value = 0
    else:
        vcpu.value = pmu.read(pe, EL2, counter_key(pe, key))
    return DONE


def trapped_write(pe: Pe, vm: Vm, vcpu: Vcpu, el: int, key: int, value: int) -> int:
    """Carry out a guest's trapped MSR of `value` from `el`. Return DONE or UNDEF."""
    if is_undef(pe, vm, key):
        return UNDEF
    mine = value & implemented_counter_mask(vm)
    if is_type(key):
        write_type(pe, vm, vcpu, type_index(pe, key), value)
    elif key == PMOVSSET_EL0:
        vcpu.ovs |= mine
    elif key == PMOVSCLR_EL0:
        vcpu.ovs &= ~mine
        pe.ovs &= ~mine
    elif key in (PMCNTENSET_EL0, PMCNTENCLR_EL0, PMINTENSET_EL1, PMINTENCLR_EL1):
        pmu.write(pe, EL2, key, mine)
    elif key == PMCR_EL0:
        write_pmcr(pe, vm, value)
    elif key == PMSWINC_EL0:
        # Replayed at EL2 it would be an event at EL2, which the guest's counters exclude: done by hand instead, as
        # the instruction would have at `el`.
        pmu.pmu_sw_increment(pe, el, mine & EVENT_COUNTERS)
    elif key == PMUSERENR_EL0:
        pmu.write(pe, EL2, key, value & GUEST_PMUSERENR)
    elif key in (PMSELR_EL0, PMCCNTR_EL0, PMXEVCNTR_EL0) or is_pmevcntr(key):
        pmu.write(pe, EL2, counter_key(pe, key), value)
    return DONE


def write_type(pe: Pe, vm: Vm, vcpu: Vcpu, i: int, value: int) -> None:
    """Write the guest's event type `i`, or the cycle counter's filter where `i` is CYCLE."""
    if i == CYCLE:
        vcpu.ccfiltr = value & pmu.filter_bits(pe) & ~(1 << FILTER_NSH)
        pe.ccfiltr = effective_ccfiltr(pe, vm, vcpu.ccfiltr)
    else:
        vcpu.evtyper[i] = value & guest_evtyper_bits(pe)
        pmu.write_control(pe, i, effective_evtyper(pe, vm, vcpu.evtyper[i]))


def write_pmcr(pe: Pe, vm: Vm, value: int) -> None:
    """Write the guest's PMCR_EL0 from EL2. P is not replayed: at EL2 it would zero the host's counters too."""
    pmu.write(pe, EL2, PMCR_EL0, value & ~(PMCR_P | PMCR_C))
    if (value & PMCR_P) != 0:
        for i in range(vm.nr_counters):
            pe.evcntr[i] = 0
    if (value & PMCR_C) != 0:
        pe.ccntr = 0
