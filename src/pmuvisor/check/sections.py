"""What may happen to a scene, one atomic section each, to the real CPU and to the PMU that the guest believes to have.

The rules of semantic code hold. A section that is not possible returns NOT_NOW and has changed nothing.
"""

from __future__ import annotations

from pmuvisor.arch import pmu, traps
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import (
    CYCLE,
    FILTER_U,
    INSTRUCTION,
    PMCCFILTR_EL0,
    PMCEID0_EL0,
    PMCEID1_EL0,
    PMXEVTYPER_EL0,
    is_pmevtyper,
)
from pmuvisor.check import invariants, properties
from pmuvisor.check.invariants import cpu_of, is_owned, vcpu_of, vm_of
from pmuvisor.check.model import DONE, NOT_NOW
from pmuvisor.check.scene import C, Scene, V
from pmuvisor.kvm import access, filters
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import is_type
from pmuvisor.linux import perf
from pmuvisor.linux.host import Cpu

CARRIED_OUT, TAKES_UNDEFINED, TAKES_TRAP_TO_EL1, NEITHER = 0, 1, 2, 3
"""How an access ends for a guest."""


# ---- accesses -------------------------------------------------------------------------------------------------


def guest_accesses(s: Scene, el: int, key: int, write: int, value: int) -> int:
    """The guest executes an MRS or MSR: the hardware carries it out or refuses it, or it exits."""
    pe = cpu_of(s).pe
    if pe.tge == 1:
        return NOT_NOW
    if traps.access(pe, el, key, write) == traps.TRAP_EL2:
        worlds.vcpu_exit(s.world, C, V)
        s.mirror.trapped = 1
        return DONE
    ought_to_access(s, el, key, write, value, access.guest_access(s.world, C, V, el, key, write, value, 0))
    return DONE


def need_not_exit(s: Scene, el: int, key: int, write: int) -> int:
    """Return 1 where the guest need not have exited for an access."""
    return int(is_owned(s) and not properties.may_exit(cpu_of(s).pe, vm_of(s), s.mirror.pe, el, key, write))


def kvm_handles(s: Scene, el: int, key: int, write: int, value: int) -> int:
    """KVM handles an access that has exited; the thread may have been preempted since."""
    if cpu_of(s).pe.tge == 0 or vcpu_of(s).loaded == 0 or s.mirror.trapped == 0:
        return NOT_NOW
    if is_owned(s) and not can_have_exited(cpu_of(s).pe, el, key, write):
        return NOT_NOW
    s.mirror.trapped = 0
    outcome = access.handle_trap(s.world, C, V, el, key, write, value, 0)
    if outcome == access.AGAIN:
        s.mirror.touched = 1
    else:
        ought_to_access(s, el, key, write, value, outcome)
    return DONE


def can_have_exited(pe: Pe, el: int, key: int, write: int) -> bool:
    """Tell whether an access can have: it exists, and PMUSERENR_EL0, which has not changed since, let it."""
    return traps.exists(pe, el, key, write) and (el == 1 or traps.pmuserenr_allows(pe, key, write))


def ought_to_access(s: Scene, el: int, key: int, write: int, value: int, outcome: int) -> None:
    """Let the access happen to the mirror; keep what was read, or how it ended, and ought to be.

    Where the guest's PMUSERENR_EL0 shuts EL0 out, hardware asks that before it compares a counter with HPMN: of one
    that the guest does not have its EL1 takes a trap, not an Undefined Instruction exception. So it is with any HPMN.
    """
    mirror = s.mirror
    mirror.touched = 1
    s.read = how_it_ended(outcome)
    s.expected = how_it_ought_to_end(traps.access(mirror.pe, el, key, write))
    if el == 0 and s.expected == TAKES_UNDEFINED and s.read == TAKES_TRAP_TO_EL1:
        s.expected = s.read
    if s.expected != CARRIED_OUT or s.read != CARRIED_OUT:
        return
    if write == 0:
        s.read = vcpu_of(s).value
        s.expected = ought_to_read(s, el, key)
    elif is_type(key):
        write_type(s, pmu.counter_of(mirror.pe, key), value)
    else:
        pmu.write(mirror.pe, el, key, value)


def how_it_ended(outcome: int) -> int:
    """Return how an access ended for the guest, which does not see whether KVM took part."""
    if outcome in (access.DIRECT, access.TRAPPED):
        return CARRIED_OUT
    if outcome in (access.UNDEFINED, access.TRAPPED_UNDEFINED):
        return TAKES_UNDEFINED
    if outcome == access.TO_EL1:
        return TAKES_TRAP_TO_EL1
    return NEITHER


def how_it_ought_to_end(where: int) -> int:
    """Return how an access ends on a PMU that nobody shares."""
    if where == traps.ALLOWED:
        return CARRIED_OUT
    if where == traps.UNDEFINED:
        return TAKES_UNDEFINED
    return TAKES_TRAP_TO_EL1


def ought_to_read(s: Scene, el: int, key: int) -> int:
    """Return what the guest ought to read: types as it has written them, PMCEID<n> without what is denied."""
    i = pmu.counter_of(s.mirror.pe, key)
    if key == PMCCFILTR_EL0 or (key == PMXEVTYPER_EL0 and i == CYCLE):
        return s.ccfiltr
    if is_pmevtyper(key) or key == PMXEVTYPER_EL0:
        return s.mirror.evtyper[i]
    value = pmu.read(s.mirror.pe, el, key)
    if key in (PMCEID0_EL0, PMCEID1_EL0):
        value &= filters.allowed_pmceid(vm_of(s), key - PMCEID0_EL0)
    return value


def write_type(s: Scene, i: int, value: int) -> None:
    """Write an event type, or PMCCFILTR_EL0 where `i` is CYCLE; what the filter denies counts nothing of the guest."""
    pe = cpu_of(s).pe
    if i == CYCLE:
        s.ccfiltr = value & invariants.guest_filter_bits(pe)
        s.mirror.pe.ccfiltr = invariants.cycles_count_as(s, s.ccfiltr)
    else:
        s.mirror.evtyper[i] = value & invariants.guest_type_bits(pe)
        s.mirror.pe.evtyper[i] = invariants.counts_as(s, s.mirror.evtyper[i])


# ---- what is counted --------------------------------------------------------------------------------------------


def is_executing(s: Scene, el: int) -> bool:
    """Tell whether `el` can execute now: the guest's EL1 and EL0 while it runs, else EL2, and a process of the host's.

    A process executes with no vCPU loaded: KVM_RUN puts it before it returns.
    """
    if cpu_of(s).pe.tge == 0:
        return el < 2
    return el == 2 or (el == 0 and vcpu_of(s).loaded == 0)


def event_happens(s: Scene, el: int, event: int, amount: int) -> int:
    """An event happens at `el`: to the CPU, and to the guest's mirror if it is the guest's."""
    if not is_executing(s, el):
        return NOT_NOW
    pmu.pmu_event(cpu_of(s).pe, el, event, amount)
    if cpu_of(s).pe.tge == 0:
        pmu.pmu_event(s.mirror.pe, el, event, amount)
    return DONE


def cycles_pass(s: Scene, el: int, amount: int) -> int:
    """Cycles pass at `el`."""
    if not is_executing(s, el):
        return NOT_NOW
    count_cycles(cpu_of(s).pe, el, amount)
    if cpu_of(s).pe.tge == 0:
        count_cycles(s.mirror.pe, el, amount)
    return DONE


def count_cycles(pe: Pe, el: int, amount: int) -> None:
    """Let the cycle counter of a PMU count."""
    pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, el), amount)


# ---- KVM and the host -------------------------------------------------------------------------------------------


def kvm_loads(s: Scene) -> int:
    """The thread comes to the CPU: its vCPU is loaded."""
    if vcpu_of(s).loaded == 1:
        return NOT_NOW
    worlds.vcpu_load(s.world, C, V, 0)
    return DONE


def kvm_puts(s: Scene) -> int:
    """The thread leaves the CPU: its vCPU is put."""
    if vcpu_of(s).loaded == 0 or cpu_of(s).pe.tge == 0:
        return NOT_NOW
    worlds.vcpu_put(s.world, C, V, 0)
    return DONE


def kvm_enters(s: Scene) -> int:
    """The vCPU enters its guest."""
    vcpu = vcpu_of(s)
    if cpu_of(s).pe.tge == 0 or vcpu.loaded == 0 or vcpu.unsupported_cpu == 1 or s.mirror.trapped == 1:
        return NOT_NOW
    worlds.vcpu_enter(s.world, C, V, 0)
    return DONE


def kvm_exits(s: Scene) -> int:
    """Something interrupts the guest."""
    if cpu_of(s).pe.tge == 1:
        return NOT_NOW
    worlds.vcpu_exit(s.world, C, V)
    return DONE


def cpu_interrupted(s: Scene, v: int) -> int:
    """PMUIRQ is up and is taken, by an exit first where a guest executes; `v` is the vCPU loaded, or NO_VCPU."""
    pe = cpu_of(s).pe
    if (v == V) != (vcpu_of(s).loaded == 1) or pmu.check_for_pmu_overflow(pe) == 0:
        return NOT_NOW
    if pe.tge == 0:
        worlds.vcpu_exit(s.world, C, V)
    worlds.handle_irq(s.world, C, v)
    return DONE


def host_reschedules(s: Scene) -> int:
    """The host opens, closes or rotates events: on the counters that the driver has, anything may be from now on."""
    if cpu_of(s).pe.tge == 0:
        return NOT_NOW
    perf.perf_pmu_resched_update(s.world.host, C, cpu_of(s).hw.cntr_mask, 0)
    return DONE


# ---- what the host has ------------------------------------------------------------------------------------------


def everything_of_the_hosts(s: Scene) -> list[int]:
    """Return all that no access of a guest's may change: counters that are not on loan, and the host's registers."""
    cpu, loan = cpu_of(s), invariants.on_loan(s)
    pe, hw, saved = cpu.pe, cpu.hw, s.world.saved[C]
    of = [pe.cnten & ~loan, pe.inten & ~loan, pe.ovs & ~loan, pe.icntr, pe.icfiltr, pe.uacr, pe.mdcr_el2]
    of += [hw.cntr_mask, hw.used_mask, hw.events_host, hw.events_guest]
    of += [saved.pmcr, saved.selr, saved.userenr, saved.mdcr_el2]
    lent = -((loan >> CYCLE) & 1)
    of += [pe.ccntr & ~lent, pe.ccfiltr & ~lent]
    for i in range(pe.core.event_counters):
        lent = -((loan >> i) & 1)
        of += [pe.evcntr[i] & ~lent, pe.evtyper[i] & ~lent]
    return of


def overflows_of_events(cpu: Cpu) -> list[int]:
    """Return the overflows that are the host's events'."""
    return [cpu.pe.ovs & cpu.hw.used_mask]


def events_of_host(cpu: Cpu) -> list[int]:
    """Return how the host's events are counted, apart from overflows: who has which counter, and its registers.

    Whether an event counts EL0 is KVM's to switch where the event tells guests from the host.
    """
    pe, hw = cpu.pe, cpu.hw
    switched = hw.events_host | hw.events_guest
    of = [hw.used_mask, hw.events_host, hw.events_guest, pe.cnten & hw.used_mask, pe.inten & hw.used_mask]
    of += [pe.ccntr & -((hw.used_mask >> CYCLE) & 1), pe.icntr & -((hw.used_mask >> INSTRUCTION) & 1)]
    of += [type_of_event(cpu, switched, CYCLE, pe.ccfiltr), type_of_event(cpu, switched, INSTRUCTION, pe.icfiltr)]
    for i in range(pe.core.event_counters):
        of += [pe.evcntr[i] & -((hw.used_mask >> i) & 1), type_of_event(cpu, switched, i, pe.evtyper[i])]
    return of


def type_of_event(cpu: Cpu, switched: int, i: int, control: int) -> int:
    """Return the type in counter `i`, 0 where there is no event, without the bit that KVM may switch."""
    return control & -((cpu.hw.used_mask >> i) & 1) & ~(((switched >> i) & 1) << FILTER_U)


def make_lone(s: Scene, alone: Pe) -> None:
    """Make `alone`, a copy of the CPU's PMU, what it would be without a guest.

    All counters are in the first range, enabled by the driver's PMCR_EL0.E; what is on loan is off.
    """
    alone.mdcr_el2 = alone.core.event_counters
    alone.pmcr = invariants.host_pmcr(s) | pmu.nonzero(cpu_of(s).hw.used_mask)
    alone.cnten &= cpu_of(s).hw.used_mask


def how_events_count(cpu: Cpu, pe: Pe, el: int) -> list[int]:
    """Return which of the host's events count at `el` on a PMU, overflow at 64 bits, count their neighbour's overflows.

    That is all that PMUEvent() and IncrementCycleCounter() ask but for the counters' types and values.
    """
    used = cpu.hw.used_mask
    counting = pmu.count_pmu_events(pe, el)
    linked = pmu.chained_counters(pe, counting) & ~(1 << pmu.effective_hpmn(pe))
    return [
        counting & used,
        pmu.long_counters(pe) & used,
        linked & used & (used << 1),
        pmu.effective_lc(pe) & (used >> CYCLE),
    ]


def line_and_level(s: Scene) -> list[int]:
    """Return the guest's interrupt line, and the level that it ought to have."""
    return [vcpu_of(s).irq_level, pmu.check_for_pmu_overflow(s.mirror.pe)]
