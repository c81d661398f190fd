"""The invariant: how a CPU, the vCPU that may be on it and the PMU that its guest believes to have fit together.

Each function says one thing and returns what is wrong with it: integers that are all zero where it holds. So they read
the same for a state of CPython's and for one of variables, and few of them need a branch. None of them asks a function
of kvm/ what it would do. `ALL` has them by the property that they are part of; together they are preserved by whatever
happens (`prove`), and they hold along every exploration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pmuvisor.arch import pmu
from pmuvisor.arch.events import CPU_CYCLES
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import (
    CYCLE,
    FGT_PMCCFILTR,
    FGT_PMEVTYPERN,
    FGT_PMOVS,
    FGT_PMUSERENR,
    FGT_R_PMCEIDN,
    FGT_R_PMMIR,
    FILTER_NSH,
    FILTER_P,
    FILTER_U,
    INSTRUCTION,
    MDCR_HCCD,
    MDCR_HLP,
    MDCR_HPMD,
    MDCR_HPME,
    MDCR_HPMN,
    MDCR_TDOSA,
    MDCR_TDRA,
    MDCR_TPM,
    MDCR_TPMCR,
    MDCR_TPMS,
    MDCR_TTRF,
    PMCR_E,
    PMCR_LC,
    PMCR_LP,
    PMUSERENR_CR,
    PMUSERENR_EN,
    PMUSERENR_ER,
    PMUSERENR_SW,
    PMUV3P1,
    PMUV3P5,
    PMUV3P9,
)
from pmuvisor.check.scene import C, Scene, V
from pmuvisor.kvm import filters
from pmuvisor.kvm.vcpu import GUEST_OWNED, LAZY, PARTITIONED, Vcpu, Vm
from pmuvisor.linux.host import Cpu

# ---- who is where -------------------------------------------------------------------------------------------


def cpu_of(s: Scene) -> Cpu:
    """Return the CPU."""
    return s.world.host.cpus[C]


def vcpu_of(s: Scene) -> Vcpu:
    """Return the vCPU."""
    return s.world.vcpus[V]


def vm_of(s: Scene) -> Vm:
    """Return its VM."""
    return s.world.vms[s.world.vm_of[V]]


def is_owned(s: Scene) -> bool:
    """The guest's registers are on the CPU, not in memory."""
    return vcpu_of(s).loaded == 1 and vcpu_of(s).residency == GUEST_OWNED


def is_free(s: Scene) -> bool:
    """The vCPU is loaded on a CPU that can run it, and its registers are in memory."""
    return vcpu_of(s).loaded == 1 and vcpu_of(s).unsupported_cpu == 0 and vcpu_of(s).residency != GUEST_OWNED


def of_guest(s: Scene) -> int:
    """Return the guest's counters as a mask."""
    return ((1 << vm_of(s).nr_counters) - 1) | (1 << CYCLE)


def of_cpu(s: Scene) -> int:
    """Return the counters that the CPU has."""
    core = cpu_of(s).pe.core
    return ((1 << core.event_counters) - 1) | (1 << CYCLE) | (core.icntr << INSTRUCTION)


def on_loan(s: Scene) -> int:
    """Return the counters that are the guest's now."""
    if is_owned(s):
        return of_guest(s)
    return 0


# ---- HPMN, residency, traps -----------------------------------------------------------------------------------


def hpmn_is_legal(s: Scene) -> list[int]:
    """HPMN is at most N, and 0 only with FEAT_HPMN0 (Arm ARM, MDCR_EL2.HPMN)."""
    pe = cpu_of(s).pe
    hpmn = pe.mdcr_el2 & MDCR_HPMN
    return [int(hpmn > pe.core.event_counters), int(hpmn == 0) & (1 - pe.core.hpmn0)]


def only_a_loaded_vcpu_owns_and_only_where_it_can_run(s: Scene) -> list[int]:
    """GUEST_OWNED is what a loaded vCPU is, on a CPU that can run it."""
    vcpu = vcpu_of(s)
    supported = (vm_of(s).supported_pmus >> cpu_of(s).pmu) & 1
    return [
        vcpu.residency & (1 - vcpu.loaded),
        vcpu.residency & vcpu.unsupported_cpu,
        (vcpu.unsupported_cpu ^ (1 - supported)) & vcpu.loaded,
    ]


def a_guest_runs_only_where_it_can(s: Scene) -> list[int]:
    """Who is in the guest is loaded, on a CPU that can run it, and none of its accesses waits for KVM."""
    vcpu, in_guest = vcpu_of(s), 1 - cpu_of(s).pe.tge
    return [in_guest & (1 - vcpu.loaded), in_guest & vcpu.unsupported_cpu, in_guest & s.mirror.trapped]


def a_partitioned_vcpu_is_never_free(s: Scene) -> list[int]:
    """The partitioned design loads its vCPUs as GUEST_OWNED wherever they can run."""
    return [int(vm_of(s).design == PARTITIONED and is_free(s))]


def the_driver_has_the_counters_that_are_not_on_loan(s: Scene) -> list[int]:
    """The guest's counters are taken from the driver while they are on loan, the instruction counter with them."""
    hw = cpu_of(s).hw
    has = of_cpu(s)
    if is_owned(s):
        has &= ~(of_guest(s) | (1 << INSTRUCTION))
    return [hw.cntr_mask ^ has, hw.guest_resident ^ int(is_owned(s))]


def events_are_on_counters_that_the_driver_has(s: Scene) -> list[int]:
    """No host event is on a counter of the guest's; KVM switches filters of counters that have an event only."""
    hw = cpu_of(s).hw
    return [hw.used_mask & ~hw.cntr_mask, (hw.events_host | hw.events_guest) & ~hw.used_mask]


def is_fine_grained(s: Scene) -> bool:
    """FEAT_FGT lets the guest at its counters; with PMUv3p9 it takes FEAT_FGT2, and for none of them FEAT_HPMN0."""
    core, vm = cpu_of(s).pe.core, vm_of(s)
    if core.fgt == 0 or vm.use_fgt == 0 or (core.pmuver >= PMUV3P9 and core.fgt2 == 0):
        return False
    return vm.nr_counters != 0 or core.hpmn0 == 1


def mdcr_el2_ought_to_be(s: Scene) -> int:
    """Return MDCR_EL2: the host's own, or with all that traps; an owner's HPMN is its count, and EL2 is not counted.

    HPME is the driver's enable while the guest has PMCR_EL0.E: set where there is an event. Where the vCPU is no owner
    all counters are in the first range.
    """
    core, hw = cpu_of(s).pe.core, cpu_of(s).hw
    if vcpu_of(s).loaded == 0:
        return core.event_counters
    traps = MDCR_TPMS | MDCR_TTRF | MDCR_TDRA | MDCR_TDOSA
    if not is_owned(s):
        return core.event_counters | traps | MDCR_HPME | MDCR_TPM | MDCR_TPMCR
    mdcr = vm_of(s).nr_counters | traps | (MDCR_HPME & -pmu.nonzero(hw.used_mask))
    if core.pmuver >= PMUV3P1:
        mdcr |= MDCR_HPMD
    if core.pmuver >= PMUV3P5:
        mdcr |= MDCR_HCCD | MDCR_HLP
    if not is_fine_grained(s):
        mdcr |= MDCR_TPM | MDCR_TPMCR
    return mdcr


def write_traps_ought_to_be(s: Scene) -> int:
    """Return HDFGWTR_EL2: of an owner event types and overflow state trap, and with PMUv3p9 PMUSERENR_EL0."""
    if not is_owned(s) or not is_fine_grained(s):
        return 0
    bits = (1 << FGT_PMOVS) | (1 << FGT_PMEVTYPERN) | (1 << FGT_PMCCFILTR)
    if cpu_of(s).pe.core.pmuver >= PMUV3P9:
        bits |= 1 << FGT_PMUSERENR
    return bits


def read_traps_ought_to_be(s: Scene) -> int:
    """Return HDFGRTR_EL2: as for writes, and what the guest is not to be told: PMMIR_EL1, PMCEID<n> with a filter."""
    if not is_owned(s) or not is_fine_grained(s):
        return 0
    bits = (1 << FGT_PMOVS) | (1 << FGT_PMEVTYPERN) | (1 << FGT_PMCCFILTR) | (1 << FGT_R_PMMIR)
    if vm_of(s).filter_words != 0:
        bits |= 1 << FGT_R_PMCEIDN
    return bits


def what_traps_is_as_residency_says(s: Scene) -> list[int]:
    """MDCR_EL2 and the fine-grained traps are as the vCPU's residency asks for, FEAT_FGT2's trap everything."""
    pe = cpu_of(s).pe
    return [
        pe.mdcr_el2 ^ mdcr_el2_ought_to_be(s),
        pe.hdfgrtr_el2 ^ read_traps_ought_to_be(s),
        pe.hdfgwtr_el2 ^ write_traps_ought_to_be(s),
        pe.hdfgrtr2_el2 | pe.hdfgwtr2_el2,
    ]


def while_it_is_free_everything_traps_to_kvm(s: Scene) -> list[int]:
    """PMUSERENR_EL0 sends nothing to the guest's EL1, and PMSELR_EL0 selects a counter that exists."""
    if not is_free(s):
        return []
    open_wide = PMUSERENR_EN | PMUSERENR_SW | PMUSERENR_CR | PMUSERENR_ER
    return [cpu_of(s).pe.selr, cpu_of(s).pe.userenr ^ open_wide]


# ---- what is the host's ---------------------------------------------------------------------------------------


def host_pmcr(s: Scene) -> int:
    """Return PMCR_EL0 as armv8pmu_reset() leaves it, E clear: long counters, from PMUv3p5 for events as well."""
    if cpu_of(s).pe.core.pmuver >= PMUV3P5:
        return PMCR_LC | PMCR_LP
    return PMCR_LC


def the_host_has_its_registers_or_they_are_kept(s: Scene) -> list[int]:
    """PMCR_EL0, PMSELR_EL0, PMUSERENR_EL0 are the host's, or saved while a vCPU is loaded; E is the driver's."""
    pe, saved, vcpu = cpu_of(s).pe, s.world.saved[C], vcpu_of(s)
    wrong = []
    if not is_owned(s):
        wrong += [pe.pmcr ^ (host_pmcr(s) | pmu.nonzero(cpu_of(s).hw.used_mask))]
    if vcpu.loaded == 1:
        wrong += [(saved.pmcr & ~PMCR_E) ^ host_pmcr(s), saved.selr ^ s.selr, saved.userenr ^ s.userenr]
        wrong += [saved.mdcr_el2 ^ pe.core.event_counters]
    if vcpu.loaded == 0 or vcpu.unsupported_cpu == 1:
        wrong += [pe.selr ^ s.selr, pe.userenr ^ s.userenr]
    return wrong


def a_counter_of_nobodys_is_off(s: Scene) -> list[int]:
    """Without an event and not on loan, a counter does not count, interrupt or show an overflow."""
    pe = cpu_of(s).pe
    return [(pe.cnten | pe.inten | pe.ovs) & ~(cpu_of(s).hw.used_mask | on_loan(s))]


def registers_have_the_bits_that_the_core_has(s: Scene) -> list[int]:
    """PMEVTYPER<n>_EL0, the filters and, before PMUv3p5, the upper half of PMEVCNTR<n>_EL0 have no bit that is RES0."""
    pe = cpu_of(s).pe
    wrong = [(pe.ccfiltr | pe.icfiltr) & ~pmu.filter_bits(pe)]
    for i in range(pe.core.event_counters):
        wrong += [pe.evtyper[i] & ~pmu.evtyper_bits(pe, i), pe.evcntr[i] & ~pmu.event_counter_mask(pe)]
    return wrong


# ---- what is the guest's --------------------------------------------------------------------------------------


def guest_type_bits(pe: Pe) -> int:
    """Return the bits of an event type that a guest has: no NSH without nested virtualization, no thresholds."""
    return pmu.evtyper_bits(pe, 0) & ~(1 << FILTER_NSH) & 0xFFFF_FFFF


def guest_filter_bits(pe: Pe) -> int:
    """Return the bits of PMCCFILTR_EL0 that a guest has."""
    return pmu.filter_bits(pe) & ~(1 << FILTER_NSH)


def counts_as(s: Scene, evtyper: int) -> int:
    """Return what a type, as the guest wrote or userspace restored it, is to count as.

    Never at EL2, whatever its bits; where its event is denied, at EL1 and EL0 not at all.
    """
    denied = filters.event_allowed(vm_of(s), evtyper & pmu.EVENT_FIELD) - 1
    return (evtyper & guest_type_bits(cpu_of(s).pe) & ~denied) | (
        ((evtyper & pmu.EVENT_FIELD) | (1 << FILTER_P) | (1 << FILTER_U)) & denied
    )


def cycles_count_as(s: Scene, ccfiltr: int) -> int:
    """Return what a PMCCFILTR_EL0 is to count as; the filter knows the counter as CPU_CYCLES."""
    denied = filters.event_allowed(vm_of(s), CPU_CYCLES) - 1
    return (ccfiltr & guest_filter_bits(cpu_of(s).pe) & ~denied) | (((1 << FILTER_P) | (1 << FILTER_U)) & denied)


def types_are_as_the_guest_wrote_them(s: Scene) -> list[int]:
    """The vCPU has event types and PMCCFILTR_EL0 as written; the mirror counts by them and the VM's filter."""
    vcpu, mirror = vcpu_of(s), s.mirror
    wrong = [vcpu.ccfiltr ^ s.ccfiltr, mirror.pe.ccfiltr ^ cycles_count_as(s, s.ccfiltr)]
    for i in range(vm_of(s).nr_counters):
        wrong += [vcpu.evtyper[i] ^ mirror.evtyper[i], mirror.pe.evtyper[i] ^ counts_as(s, mirror.evtyper[i])]
    return wrong


def hardware_counts_by_the_types_that_the_filter_leaves(s: Scene) -> list[int]:
    """What the hardware counts by is the guest's types with the filter enforced, and EL2 excluded."""
    if not is_owned(s):
        return []
    pe = cpu_of(s).pe
    wrong = [pe.evtyper[i] ^ s.mirror.pe.evtyper[i] for i in range(vm_of(s).nr_counters)]
    return [*wrong, pe.ccfiltr ^ s.mirror.pe.ccfiltr]


def controls_are_as_the_guest_wrote_them(s: Scene) -> list[int]:
    """PMCNTEN, PMINTEN, PMCR, PMSELR and PMUSERENR are the mirror's, on the CPU or in memory.

    And the mirror's are those of a PMU with its counters: no other is enabled, no bit that is RES0 is set.
    """
    mirror, mine = s.mirror.pe, of_guest(s)
    wrong = [(mirror.cnten | mirror.inten) & ~mine, mirror.pmcr & ~(pmu.pmcr_state_bits(mirror) | PMCR_LC)]
    wrong += [mirror.userenr & ~pmu.userenr_bits(mirror)]
    if is_owned(s):
        pe = cpu_of(s).pe
        wrong += [(pe.cnten & mine) ^ mirror.cnten, (pe.inten & mine) ^ mirror.inten]
        return [*wrong, pe.pmcr ^ mirror.pmcr, pe.selr ^ mirror.selr, pe.userenr ^ mirror.userenr]
    vcpu = vcpu_of(s)
    wrong += [vcpu.cnten ^ mirror.cnten, vcpu.inten ^ mirror.inten]
    return [*wrong, vcpu.pmcr ^ mirror.pmcr, vcpu.selr ^ mirror.selr, vcpu.userenr ^ mirror.userenr]


def counters_hold_what_they_ought_to(s: Scene) -> list[int]:
    """The guest's counters are the mirror's, on the CPU or in memory."""
    mirror, n = s.mirror.pe, vm_of(s).nr_counters
    unused = ~pmu.event_counter_mask(mirror)
    wrong = [mirror.evcntr[i] & unused for i in range(n)]
    if is_owned(s):
        pe = cpu_of(s).pe
        return [*wrong, *(pe.evcntr[i] ^ mirror.evcntr[i] for i in range(n)), pe.ccntr ^ mirror.ccntr]
    vcpu = vcpu_of(s)
    return [*wrong, *(vcpu.evcntr[i] ^ mirror.evcntr[i] for i in range(n)), vcpu.ccntr ^ mirror.ccntr]


def a_free_guest_counts_nothing(s: Scene) -> list[int]:
    """None of its counters is enabled: there is nothing that it could miss."""
    if not is_free(s):
        return []
    return [s.mirror.pe.cnten & -(s.mirror.pe.pmcr & PMCR_E)]


def overflows_are_in_its_pmovs(s: Scene) -> list[int]:
    """What KVM has recorded and what its counters have overflowed since are the mirror's PMOVS, and nothing else is."""
    recorded, mine = vcpu_of(s).ovs, of_guest(s)
    return [(recorded | (cpu_of(s).pe.ovs & on_loan(s))) ^ s.mirror.pe.ovs, (recorded | s.mirror.pe.ovs) & ~mine]


def what_nobody_has_touched_costs_nothing(s: Scene) -> list[int]:
    """A lazy vCPU whose guest has not touched its PMU is no owner, and nothing of it is enabled."""
    if vm_of(s).design != LAZY:
        return []
    untouched = 1 - s.mirror.touched
    return [int(is_owned(s)) & untouched, s.mirror.pe.pmcr & PMCR_E & untouched]


class Part(NamedTuple):
    """One thing that always holds, and the property that it is part of."""

    property: str
    wrong: Callable[[Scene], list[int]]


ALL = (
    Part("hpmn-legal", hpmn_is_legal),
    Part("residency", only_a_loaded_vcpu_owns_and_only_where_it_can_run),
    Part("residency", a_guest_runs_only_where_it_can),
    Part("residency", a_partitioned_vcpu_is_never_free),
    Part("residency", the_driver_has_the_counters_that_are_not_on_loan),
    Part("residency", events_are_on_counters_that_the_driver_has),
    Part("residency", what_traps_is_as_residency_says),
    Part("residency", while_it_is_free_everything_traps_to_kvm),
    Part("host-back", the_host_has_its_registers_or_they_are_kept),
    Part("host-back", a_counter_of_nobodys_is_off),
    Part("host-back", registers_have_the_bits_that_the_core_has),
    Part("guest-registers", types_are_as_the_guest_wrote_them),
    Part("guest-registers", controls_are_as_the_guest_wrote_them),
    Part("filtered", hardware_counts_by_the_types_that_the_filter_leaves),
    Part("guest-counts", counters_hold_what_they_ought_to),
    Part("guest-counts", a_free_guest_counts_nothing),
    Part("overflows", overflows_are_in_its_pmovs),
    Part("costs-nothing", what_nobody_has_touched_costs_nothing),
)
"""The invariant."""
