"""What upstream Linux does not do for a guest whose counters are perf events, and nobody has called a defect.

Exploring `emulated` and `fixed-counters-only` has found each of these, with upstream's functions as they are. A model
excuses them, so that it shows what else breaks: `Machine.excused` has a bit for each of `ALL`. Where one is not excused
the explorer finds it again. How far an excuse goes is said beside each.
"""

from __future__ import annotations

import dataclasses

from pmuvisor.arch import pmu
from pmuvisor.arch.sysreg import CYCLE
from pmuvisor.check.state import Machine
from pmuvisor.kvm import emulated
from pmuvisor.kvm.vcpu import Vcpu
from pmuvisor.linux import arm_pmuv3, perf
from pmuvisor.linux.arm_pmuv3 import FULL_MASK
from pmuvisor.linux.host import STATE_ACTIVE, Host, PerfEvent

OVERFLOW_FROM_ZERO = 0
NEXT_OVERFLOW = 1
LATE_INTERRUPT = 2
TYPE_NOT_TOLD = 3
PMXEVCNTR_31 = 4
EL0_UNDEFINED = 5
FILTER_OF_FIXED = 6
EVENT_IN_CCFILTR = 7


@dataclasses.dataclass(frozen=True)
class Inexact:
    """One thing that upstream does not do."""

    name: str
    what: str
    source: str
    excused: str
    """How a model lets it be."""
    design: str
    preset: str
    """Where it is found, if it is not excused."""
    breaks: str


ALL = (
    Inexact(
        "overflow-from-zero",
        "a counter whose event is made while it is zero never tells of its overflow: its period is 0, and perf takes"
        " the event for one that does not sample",
        "compute_period(), kvm_pmu_create_perf_event(); is_sampling_event() in __perf_event_overflow()",
        "the mirror's PMOVS has of such a counter what the guest's has",
        "emulated",
        "overflows",
        "overflows",
    ),
    Inexact(
        "next-overflow",
        "the second overflow of a counter that did not begin at zero comes early",
        "kvm_pmu_perf_overflow(): the next period is of what the event has counted, not of the counter",
        "the mirror's PMOVS has what the guest's has of a counter whose event is to overflow elsewhere than it",
        "emulated",
        "overflows",
        "overflows",
    ),
    Inexact(
        "late-interrupt",
        "an overflow whose PMUIRQ has not been taken when the event is taken off its counter is lost",
        "armpmu_stop(): armv8pmu_disable_event_irq() clears PMOVS, armpmu_add() does not look at what was complete",
        "PMUIRQ is taken at every exit, before anything else",
        "emulated",
        "tiny",
        "delivered",
    ),
    Inexact(
        "type-not-told",
        "userspace writes an event type or PMCCFILTR_EL0 of a vCPU that has run, and the counter goes on by the old"
        " one, denied or not, or has no event still",
        "sys_reg_descs: PMEVTYPER<n>_EL0 and PMCCFILTR_EL0 have no set_user that asks for KVM_REQ_RELOAD_PMU;"
        " kvm_pmc_enable_perf_event() keeps an event that there is",
        "userspace writes types only while a reload is asked for, of counters without an event",
        "emulated",
        "overflows",
        "filtered",
    ),
    Inexact(
        "pmxevcntr-31",
        "with PMSELR_EL0.SEL = 31 PMXEVCNTR_EL0 is the cycle counter, which the Arm ARM has for PMXEVTYPER_EL0 only",
        "access_pmu_evcntr(), pmu_counter_idx_valid()",
        "the mirror does the same",
        "emulated",
        "el0",
        "reads",
    ),
    Inexact(
        "el0-undefined",
        "an access from EL0 that PMUSERENR_EL0 does not allow is UNDEFINED, not a trap to EL1 (EC 0x18)",
        "check_pmu_access_disabled()",
        "either exception is as good as the other",
        "emulated",
        "el0",
        "reads",
    ),
    Inexact(
        "filter-of-fixed",
        "after FIXED_COUNTERS_ONLY and FILTER, SET_PMU of the VM's PMU is accepted, and the filter with it; the other"
        " way round it is EBUSY",
        "[PATCH v7 3/4] KVM: arm64: PMU: Introduce FIXED_COUNTERS_ONLY, kvm_arm_pmu_v3_set_pmu()",
        "a filter may have been made for FIXED_COUNTERS_ONLY",
        "fixed-counters-only",
        "attributes",
        "attributes",
    ),
    Inexact(
        "event-in-ccfiltr",
        "PMCCFILTR_EL0 keeps what is written where other event types have their event, bits that are RES0",
        "kvm_pmu_set_counter_event_type(), kvm_pmu_evtyper_mask()",
        "the mirror keeps it as well",
        "emulated",
        "el0",
        "guest-registers",
    ),
)
EVERY = (1 << len(ALL)) - 1
"""`Machine.excused` for all of them."""


def excuses(m: Machine, number: int) -> bool:
    """Tell whether one of them is let be."""
    return (m.excused >> number) & 1 == 1


# ---- what a perf event is at, without a look that brings it up to date --------------------------------------


def uncounted(host: Host, event: PerfEvent) -> int:
    """Return what an event's counter has counted since its count was brought up to date."""
    if event.state != STATE_ACTIVE:
        return 0
    cpu = host.cpus[perf.where_active(host, event)]
    return (arm_pmuv3.read_counter(cpu, event) - event.prev_count) & arm_pmuv3.max_period(cpu, event)


def counter_value(m: Machine, v: int, i: int) -> int:
    """Return what kvm_pmu_get_counter_value() would of counter `i` of a vCPU, and change nothing."""
    vcpu = m.world.vcpus[v]
    event = m.world.host.events[emulated.event_of(vcpu, i)]
    value = emulated.register_value(vcpu, i)
    if event.attached == 1:
        value += event.count + uncounted(m.world.host, event)
    core = m.world.host.cpus[0].pe.core
    if emulated.is_64bit(m.world.vms[m.world.vm_of[v]], i):
        return value & core.counter_mask
    return value & core.half_mask


def pending(m: Machine, v: int) -> int:
    """Return the counters whose events have overflowed in hardware, and whose handler has not been there yet."""
    host = m.world.host
    mask = 0
    for n in range(m.world.vms[m.world.vm_of[v]].nr_counters + 1):
        i = counter(m, v, n)
        event = host.events[emulated.event_of(m.world.vcpus[v], i)]
        if event.attached == 1 and event.state == STATE_ACTIVE and event.sample_period != 0:
            pe = host.cpus[perf.where_active(host, event)].pe
            left = (event.period_left - uncounted(host, event)) & FULL_MASK
            complete = (left >> 63) | (1 - pmu.nonzero(left))
            mask |= ((pe.ovs >> event.idx) & complete & 1) << i
    return mask


def counter(m: Machine, v: int, n: int) -> int:
    """Return the n-th counter of a guest, of which the cycle counter is the last."""
    if n == m.world.vms[m.world.vm_of[v]].nr_counters:
        return CYCLE
    return n


def inexact_counters(m: Machine, v: int) -> int:
    """Return the counters whose next overflow upstream does not give where it is, as far as that is excused."""
    vcpu: Vcpu = m.world.vcpus[v]
    mask = 0
    for n in range(m.world.vms[m.world.vm_of[v]].nr_counters + 1):
        i = counter(m, v, n)
        event = m.world.host.events[emulated.event_of(vcpu, i)]
        if event.attached == 1:
            mask |= int(is_inexact(m, v, i, event)) << i
    return mask


def is_inexact(m: Machine, v: int, i: int, event: PerfEvent) -> bool:
    """Tell whether a counter's event is not to overflow where the counter does, and that is excused.

    What is left of the period and the counter's value add up to an overflow, before it and after.
    """
    if event.sample_period == 0:
        return excuses(m, OVERFLOW_FROM_ZERO)
    core = m.world.host.cpus[0].pe.core
    mask = core.half_mask
    if emulated.has_64bit_overflow(m.world.vcpus[v], i):
        mask = core.counter_mask
    left = (event.period_left - uncounted(m.world.host, event)) & mask
    return ((left + counter_value(m, v, i)) & mask) != 0 and excuses(m, NEXT_OVERFLOW)


def follow(m: Machine, v: int) -> None:
    """Let a mirror have the overflows of the counters whose events were excused before this step.

    One that has overflowed in this step, as it had to, must show it, though the next time will be another matter.
    """
    mirror = m.mirrors[v]
    shown = m.world.vcpus[v].ovs | pending(m, v)
    mirror.pe.ovs = (mirror.pe.ovs & ~mirror.inexact) | (shown & mirror.inexact)
    mirror.inexact = inexact_counters(m, v)
