"""The catalogue: defects that were made, or caught in review, each one function in the place of a sound one.

Each function here is wrong in the way that its defect's words say. Those of the sound designs are in kvm/ alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from pmuvisor.arch import pmu
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import (
    CYCLE,
    FILTER_NSH,
    MDCR_HCCD,
    MDCR_HPMD,
    MDCR_HPME,
    PMCNTENSET_EL0,
    PMCR_E,
    PMCR_EL0,
    PMXEVCNTR_EL0,
)
from pmuvisor.kvm import access, emulated, lazy, partitioned, restored, vcpu
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.access import AGAIN
from pmuvisor.kvm.partitioned import EL2
from pmuvisor.kvm.vcpu import FREE, GUEST_OWNED, LAZY, PARTITIONED, Vcpu, Vm, implemented_counter_mask
from pmuvisor.kvm.world import World
from pmuvisor.linux import arm_pmuv3, perf
from pmuvisor.linux.host import EVENT_ALL, EVENT_CPU, Cpu, Host

PARTITIONING = "ARM64 PMU Partitioning series"
LAZY_REVIEW = "review of its lazy context swaps (v5)"
MDCR_REVIEW = "review of its MDCR_EL2 patch (v5)"
FIXED_SERIES = "[PATCH v7 3/4] KVM: arm64: PMU: Introduce FIXED_COUNTERS_ONLY"


@dataclasses.dataclass(frozen=True)
class Defect:
    """One defect of the catalogue."""

    name: str
    sound: Callable[..., Any]
    """The function that is replaced,"""
    defective: Callable[..., Any]
    """and by what."""
    source: str
    effect: str
    """What it does to a user."""
    design: str
    preset: str
    """Where it is found."""


# ---- the partition ----------------------------------------------------------------------------------------


def pmcr_p_from_el2(pe: Pe, vm: Vm, value: int) -> None:
    """The guest's PMCR_EL0 is replayed as it is, at EL2, where P means all event counters."""
    pmu.write(pe, EL2, PMCR_EL0, value)


def guest_mask_and(vm: Vm) -> int:
    """The mask of the guest's counters is built with & for |, and is empty."""
    return ((1 << vm.nr_counters) - 1) & (1 << CYCLE)


def cycle_through_pmxevcntr(pe: Pe, vm: Vm, vcpu: Vcpu) -> None:
    """The cycle counter is loaded as counter 31 of PMSELR_EL0 and PMXEVCNTR_EL0, which has none."""
    kept = pe.ccntr
    partitioned.load_registers(pe, vm, vcpu)
    pe.ccntr = kept
    pe.selr = CYCLE
    if pe.selr < pe.core.event_counters:
        pmu.write(pe, EL2, PMXEVCNTR_EL0, vcpu.ccntr)
    pe.selr = vcpu.selr


def leave_instruction_counter(world: World, vm: int) -> int:
    """The instruction counter stays the host's, though it counts only while the guest's PMCR_EL0.E is set."""
    return implemented_counter_mask(world.vms[vm])


def resched_not_between(host: Host, c: int, cntr_mask: int, now: int) -> None:
    """The counters that the PMU has are changed after events are scheduled in again, not between."""
    perf.resched_out(host, c, EVENT_ALL | EVENT_CPU, now)
    perf.perf_event_sched_in(host, c, host.cpus[c].current, now)
    host.cpus[c].hw.cntr_mask = cntr_mask
    arm_pmuv3.armpmu_enable(host.cpus[c])


def resched_skipped(world: World, c: int, v: int, now: int) -> None:
    """Events that occupy the guest's counters stay on them."""
    world.host.cpus[c].hw.cntr_mask &= ~(implemented_counter_mask(world.vms[world.vm_of[v]]) | (1 << 32))


def reservation_kept_after_put(world: World, c: int, v: int, now: int) -> None:
    """The counters are not given back."""


def overflow_dropped(pe: Pe, vm: Vm, vcpu: Vcpu) -> int:
    """The host's handler clears the guest's overflows, and does not record them."""
    flags = pe.ovs
    pe.ovs = 0
    if vcpu.residency != GUEST_OWNED:
        return flags
    return flags & ~implemented_counter_mask(vm)


def overflow_to_host(pe: Pe, vm: Vm, vcpu: Vcpu) -> int:
    """All overflows are the host driver's."""
    flags = pe.ovs
    pe.ovs = 0
    return flags


def filter_at_write_only(pe: Pe, vm: Vm, vcpu: Vcpu) -> None:
    """Event types are loaded as the vCPU has them: the filter is applied where the guest writes them, only."""
    partitioned.load_registers(pe, vm, vcpu)
    for i in range(vm.nr_counters):
        pmu.write_control(pe, i, vcpu.evtyper[i] & partitioned.guest_evtyper_bits(pe))


def hpmn_not_sanitised(pe: Pe, vm: Vm, vcpu: Vcpu) -> int:
    """HPMN is the VM's count whatever CPU it is on, and whoever's its counters are."""
    return vm.nr_counters


def hpmn_zero(pe: Pe, vm: Vm, vcpu: Vcpu) -> int:
    """Where no counters are the guest's, HPMN is 0."""
    if vcpu.residency != GUEST_OWNED:
        return 0
    return vm.nr_counters


def hpme_clear(cpu: Cpu) -> None:
    """The driver starts its counters by PMCR_EL0.E as ever, and HPME, which governs its range now, is clear."""
    cpu.hw.resync_el0 = 1
    cpu.pe.mdcr_el2 &= ~MDCR_HPME
    if cpu.hw.guest_resident == 0:
        cpu.pe.pmcr |= PMCR_E


def el2_counted(pe: Pe, vm: Vm, vcpu: Vcpu) -> None:
    """A guest's event types do not filter EL2, and neither HPMD nor HCCD is set."""
    partitioned.load_registers(pe, vm, vcpu)
    for i in range(vm.nr_counters):
        pe.evtyper[i] |= 1 << FILTER_NSH
    pe.mdcr_el2 &= ~(MDCR_HPMD | MDCR_HCCD)


# ---- lazy -------------------------------------------------------------------------------------------------


def lazy_some_registers_only(world: World, c: int, v: int, el: int, key: int, write: int, value: int, now: int) -> int:
    """Only an access of PMCNTENSET_EL0 makes a vCPU the owner of its PMU; others are handled on what is there."""
    world.vcpus[v].trapped += 1
    if key == PMCNTENSET_EL0 and world.vms[world.vm_of[v]].design == LAZY and world.vcpus[v].residency == FREE:
        worlds.set_guest_ownership(world, c, v, now)
        return AGAIN
    if write == 1:
        return access.trapped_write(world, c, v, el, key, value, now)
    return access.trapped_read(world, c, v, el, key, now)


def lazy_unguarded_transition(world: World, c: int, v: int, now: int) -> None:
    """The vCPU is marked as the owner, and loaded when it enters: a thread that is preempted before is put as one."""
    world.vcpus[v].residency = GUEST_OWNED


def lazy_directed_load(world: World, c: int, v: int, now: int) -> None:
    """The PMU's registers alone are loaded: no host event is moved, MDCR_EL2 stays."""
    world.vcpus[v].residency = GUEST_OWNED
    partitioned.load_registers(world.host.cpus[c].pe, world.vms[world.vm_of[v]], world.vcpus[v])


def lazy_no_upfront_load(vm: Vm, vcpu: Vcpu) -> int:
    """A lazy vCPU is always loaded as FREE, be its counters enabled or not."""
    return GUEST_OWNED & -int(vm.design == PARTITIONED)


def lazy_zero_not_free(vm: Vm, vcpu: Vcpu) -> int:
    """A vCPU that nothing has happened to yet is not FREE."""
    return GUEST_OWNED


def handled_on_what_is_there(world: World, c: int, v: int, el: int, key: int, write: int, value: int, now: int) -> int:
    """The handler of an access works on the CPU's registers whether or not the guest's have been loaded."""
    world.vcpus[v].trapped += 1
    if write == 1:
        return access.trapped_write(world, c, v, el, key, value, now)
    return access.trapped_read(world, c, v, el, key, now)


# ---- fixed counters only ----------------------------------------------------------------------------------


def fixed_stale_event(host: Host, c: int, vcpu: Vcpu) -> None:
    """At load nobody looks which PMU the fixed counters' events are of: no reload is asked for."""


def hetero_cycle_stuck(host: Host, c: int, vm: Vm) -> int:
    """A new event is for the VM's PMU, as that of `emulated` is, wherever the vCPU is."""
    return vm.pmu


def fixed_after_filter(vm: Vm, ran_once: int) -> bool:
    """FIXED_COUNTERS_ONLY is accepted though there is an event filter, of the events of the PMU before."""
    return ran_once == 1


# ---- all of them ------------------------------------------------------------------------------------------

ALL = (
    Defect(
        "pmcr-p-from-el2",
        partitioned.write_pmcr,
        pmcr_p_from_el2,
        f"{PARTITIONING}, v7, review of its cover letter",
        "a guest that resets its counters zeroes the host's",
        "partitioned",
        "trapped",
    ),
    Defect(
        "guest-mask-and",
        vcpu.implemented_counter_mask,
        guest_mask_and,
        f"{PARTITIONING}, v7, changes since v6",
        "no counter is the guest's: it counts nothing, or its bits stay in the host's registers",
        "partitioned",
        "tiny",
    ),
    Defect(
        "cycle-through-pmxevcntr",
        partitioned.load_registers,
        cycle_through_pmxevcntr,
        f"{PARTITIONING}, v7, changes since v6",
        "a guest's cycle counter goes on from what another left there",
        "partitioned",
        "tiny",
    ),
    Defect(
        "leave-instruction-counter",
        worlds.taken_counters,
        leave_instruction_counter,
        f"{PARTITIONING}, v7, changes since v6, which leave it to the host",
        "the host's INST_RETIRED stops while a guest has cleared its PMCR_EL0.E, and does not count the host's part",
        "partitioned",
        "icntr",
    ),
    Defect(
        "resched-not-between",
        perf.perf_pmu_resched_update,
        resched_not_between,
        f"{PARTITIONING}, v7, perf_pmu_resched_update()",
        "host events get the guest's counters again",
        "partitioned",
        "tiny",
    ),
    Defect(
        "resched-skipped",
        worlds.reserve_counters,
        resched_skipped,
        f"{PARTITIONING}, v7, dynamic reservation",
        "a host event counts for the guest, and the guest's counter is the host's",
        "partitioned",
        "tiny",
    ),
    Defect(
        "reservation-kept-after-put",
        worlds.release_counters,
        reservation_kept_after_put,
        f"{PARTITIONING}, v7, dynamic reservation",
        "the host has fewer counters for ever",
        "partitioned",
        "tiny",
    ),
    Defect(
        "overflow-dropped",
        partitioned.handle_irq,
        overflow_dropped,
        f"{PARTITIONING}, v7, its interrupt handler",
        "a guest's sampling stops: its interrupt never comes",
        "partitioned",
        "tiny",
    ),
    Defect(
        "overflow-to-host",
        partitioned.handle_irq,
        overflow_to_host,
        f"{PARTITIONING}, v7, its interrupt handler",
        "the host's driver takes a guest's overflow, and the guest never hears of it",
        "partitioned",
        "tiny",
    ),
    Defect(
        "filter-at-write-only",
        partitioned.load_registers,
        filter_at_write_only,
        f"{PARTITIONING}, v7, event filter at vcpu_load()",
        "a VM whose state was restored counts an event that it is denied",
        "partitioned",
        "tiny",
    ),
    Defect(
        "lazy-some-registers-only",
        access.handle_trap,
        lazy_some_registers_only,
        LAZY_REVIEW,
        "a guest that begins with another register reads and changes the host's",
        "lazy",
        "fresh",
    ),
    Defect(
        "lazy-unguarded-transition",
        worlds.set_guest_ownership,
        lazy_unguarded_transition,
        LAZY_REVIEW,
        "a thread preempted at the wrong moment saves the host's registers as its guest's",
        "lazy",
        "fresh",
    ),
    Defect(
        "lazy-directed-load",
        worlds.set_guest_ownership,
        lazy_directed_load,
        LAZY_REVIEW,
        "the guest's registers are on the CPU while MDCR_EL2 and the host's events are as before",
        "lazy",
        "fresh",
    ),
    Defect(
        "lazy-no-upfront-load",
        lazy.residency_at_load,
        lazy_no_upfront_load,
        LAZY_REVIEW,
        "a guest that measures stops counting when it is scheduled again, until its next access",
        "lazy",
        "tiny",
    ),
    Defect(
        "lazy-zero-not-free",
        lazy.residency_at_load,
        lazy_zero_not_free,
        LAZY_REVIEW,
        "a guest that never touches its PMU pays for it, and takes counters from the host",
        "lazy",
        "fresh",
    ),
    Defect(
        "fast-path-before-load",
        access.handle_trap,
        handled_on_what_is_there,
        LAZY_REVIEW,
        "a guest's first access acts on the host's registers",
        "lazy",
        "fresh",
    ),
    Defect(
        "handled-on-unsupported-cpu",
        access.handle_trap,
        handled_on_what_is_there,
        f"{PARTITIONING}, v7, whose handlers do not ask; found by this exploration",
        "a thread that moves between a guest's access and its handling writes another CPU's host counters",
        "partitioned",
        "hetero",
    ),
    Defect(
        "hpmn-not-sanitised",
        partitioned.mdcr_hpmn,
        hpmn_not_sanitised,
        MDCR_REVIEW,
        "HPMN is more than the CPU has: CONSTRAINED UNPREDICTABLE",
        "partitioned",
        "hetero",
    ),
    Defect(
        "hpmn-zero",
        partitioned.mdcr_hpmn,
        hpmn_zero,
        MDCR_REVIEW,
        "HPMN is 0 without FEAT_HPMN0: CONSTRAINED UNPREDICTABLE",
        "lazy",
        "fresh",
    ),
    Defect(
        "hpme-clear",
        arm_pmuv3.start,
        hpme_clear,
        MDCR_REVIEW,
        "the host counts nothing while a guest runs",
        "partitioned",
        "tiny",
    ),
    Defect(
        "el2-counted",
        partitioned.load_registers,
        el2_counted,
        MDCR_REVIEW,
        "a guest counts what KVM executes for it",
        "partitioned",
        "tiny",
    ),
    Defect(
        "fixed-stale-event",
        emulated.load_pmu,
        fixed_stale_event,
        f"{FIXED_SERIES}, kvm_vcpu_load_pmu()",
        "the cycle counter stands still after the vCPU has moved to another kind of core, until the guest writes to it",
        "fixed-counters-only",
        "unlike",
    ),
    Defect(
        "hetero-cycle-stuck",
        emulated.pmu_of_events,
        hetero_cycle_stuck,
        f"{FIXED_SERIES}, its message: what KVM does without it",
        "the cycle counter stands still on other kinds of cores: Windows divides by the cycles that have gone by",
        "fixed-counters-only",
        "unlike",
    ),
    Defect(
        "fixed-after-filter",
        restored.fixed_counters_only_is_refused,
        fixed_after_filter,
        f"{FIXED_SERIES}, kvm_arm_pmu_v3_set_pmu_fixed_counters_only()",
        "a filter made for another PMU decides what the guest's fixed counters count, on every CPU",
        "emulated",
        "attributes",
    ),
)
"""The catalogue, in the order of the reviews."""
