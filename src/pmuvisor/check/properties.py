"""What must always hold, each property a function that tells whether it does.

`ALL` has them with their sentences, in the order in which a step asks for them. A step asks for what it can have
changed; the first that does not hold ends an exploration.
"""

from __future__ import annotations

from pmuvisor.arch import pmu, traps
from pmuvisor.arch.events import CPU_CYCLES
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import (
    CYCLE,
    MDCR_HPMN,
    PMCEID0_EL0,
    PMCEID1_EL0,
    PMCR_E,
    PMMIR_EL1,
    PMOVSCLR_EL0,
    PMOVSSET_EL0,
    PMUSERENR_EL0,
    PMUV3P9,
)
from pmuvisor.check import upstream
from pmuvisor.check.model import Property
from pmuvisor.check.state import HostView, Machine
from pmuvisor.kvm import access, emulated, filters
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import FIXED_COUNTERS_ONLY, FREE, GUEST_OWNED, LAZY, Vcpu, Vm, is_type
from pmuvisor.linux import arm_pmuv3
from pmuvisor.linux.host import NO_COUNTER, STATE_INACTIVE, Cpu

HPMN_LEGAL = 0
ISOLATION = 1
HOST_COUNTS = 2
HOST_BACK = 3
GUEST_COUNTS = 4
FILTERED = 5
GUEST_REGISTERS = 6
OVERFLOWS = 7
DELIVERED = 8
COSTS_NOTHING = 9
READS = 10
ATTRIBUTES = 11
PROGRESS = 12
DIRECT = 13

ALL = (
    Property("hpmn-legal", "MDCR_EL2.HPMN is always legal for the CPU it is on", "Arm ARM, MDCR_EL2.HPMN"),
    Property(
        "isolation",
        "no guest access changes a host counter, its type, enable, overflow or interrupt state",
        "Arm ARM, MDCR_EL2.HPMN; partitioning series v7",
    ),
    Property(
        "host-counts",
        "a host event's count is what happened while it was scheduled",
        "perf_event_open(2); perf_pmu_resched_update() of the partitioning series",
    ),
    Property(
        "host-back",
        "where no vCPU is loaded the host has all counters, MDCR_EL2 is its own, and nothing of a guest's is left; once"
        " a guest's counters are the host's again, no event waits for one that is free",
        "kvm_vcpu_put_pmu() of the partitioning series",
    ),
    Property(
        "guest-counts",
        "a guest's counters hold what the guest executed at EL1 and EL0 under its filter, wherever the vCPU is",
        "Arm ARM, CountPMUEvents()",
    ),
    Property("filtered", "an event that the VM's filter denies never counts", "KVM_ARM_VCPU_PMU_V3_FILTER"),
    Property(
        "guest-registers",
        "a guest's controls are as it wrote them, wherever the vCPU is",
        "Arm ARM, PMUv3 registers",
    ),
    Property(
        "overflows",
        "an overflow of a guest's counter is in that guest's PMOVS, and nothing else is",
        "Arm ARM, PMOVSSET_EL0; partitioning series v7",
    ),
    Property(
        "delivered",
        "at each entry the guest's interrupt line has the level of its overflows that are enabled",
        "kvm_pmu_flush_hwstate(); Arm ARM, CheckPMUOverflowCondition()",
    ),
    Property(
        "costs-nothing",
        "while a guest has not touched its PMU, lazily nothing is swapped, no counter is taken from the host",
        "review of the lazy context swaps",
    ),
    Property(
        "reads",
        "a guest reads what its own PMU would have read, and takes the same exceptions",
        "Arm ARM, PMUv3 registers",
    ),
    Property(
        "attributes",
        "a VM's event filter was made when it had the PMU that it has",
        "KVM_ARM_VCPU_PMU_V3_SET_PMU; [PATCH v7 3/4] KVM: arm64: PMU: Introduce FIXED_COUNTERS_ONLY",
    ),
    Property(
        "progress",
        "a guest that is to execute its access again owns its PMU by then, and a PMUIRQ that was handled is down",
        "lazy context swaps; armv8pmu_handle_irq(): what comes again for ever is never over",
    ),
    Property(
        "direct",
        "with fine-grained traps, a guest that owns its PMU exits for what is virtual of it and for nothing else",
        "partitioning series v7: HDFGRTR_EL2 and HDFGWTR_EL2 of a loaded vCPU",
    ),
)
EVERY = (1 << len(ALL)) - 1
"""`Machine.asked` for all of them."""


# ---- where things are -------------------------------------------------------------------------------------


def implemented(vm: Vm) -> int:
    """Return the guest's counters as a mask."""
    return ((1 << vm.nr_counters) - 1) | (1 << CYCLE)


def is_on_cpu(vcpu: Vcpu) -> bool:
    """Tell whether the guest's registers are on a CPU, not in memory."""
    return vcpu.loaded == 1 and vcpu.residency == GUEST_OWNED


def cpu_of(m: Machine, v: int) -> int:
    """Return the CPU where a vCPU's thread is, or was last."""
    return m.world.host.tasks[m.world.vcpus[v].task].cpu


# ---- the host's -------------------------------------------------------------------------------------------


def hpmn_is_legal(m: Machine, c: int) -> bool:
    """HPMN is at most N, and 0 only with FEAT_HPMN0."""
    pe = m.world.host.cpus[c].pe
    hpmn = pe.mdcr_el2 & MDCR_HPMN
    return hpmn <= pe.core.event_counters and (hpmn != 0 or pe.core.hpmn0 == 1)


def host_counters(m: Machine, c: int, v: int) -> int:
    """Return the counters on CPU `c` that are not the guest's of vCPU `v`, which is loaded there."""
    if m.world.vcpus[v].residency == GUEST_OWNED:
        return ~implemented(m.world.vms[m.world.vm_of[v]])
    return -1


def view_host(m: Machine, c: int) -> None:
    """Keep in `Machine.before` what a guest's access must leave alone."""
    pe = m.world.host.cpus[c].pe
    for i in range(pe.core.event_counters):
        m.before.evcntr[i] = pe.evcntr[i]
        m.before.evtyper[i] = pe.evtyper[i]
    m.before.icntr = pe.icntr
    m.before.cnten = pe.cnten
    m.before.inten = pe.inten
    m.before.ovs = pe.ovs


def is_isolated(m: Machine, c: int, v: int) -> bool:
    """Nothing of the host's on CPU `c` is other than `view_host` found it."""
    pe = m.world.host.cpus[c].pe
    before: HostView = m.before
    host = host_counters(m, c, v)
    changed = ((pe.cnten ^ before.cnten) | (pe.inten ^ before.inten) | (pe.ovs ^ before.ovs)) & host
    changed |= pe.icntr ^ before.icntr
    for i in range(pe.core.event_counters):
        mine = -((host >> i) & 1)
        changed |= ((pe.evcntr[i] ^ before.evcntr[i]) | (pe.evtyper[i] ^ before.evtyper[i])) & mine
    return changed == 0


def counts_of_host_are_exact(m: Machine) -> bool:
    """Every event's count, with what is still in its counter, is what happened while it was scheduled."""
    for number in range(len(m.world.host.events)):
        event = m.world.host.events[number]
        if event.attached == 1 and event.count + upstream.uncounted(m.world.host, event) != event.seen:
            return False
    return True


def host_is_whole(m: Machine, c: int) -> bool:
    """Without a vCPU on it, a CPU is as its host has programmed it."""
    cpu: Cpu = m.world.host.cpus[c]
    pe = cpu.pe
    left_over = (pe.cnten | pe.inten | pe.ovs) & ~cpu.hw.used_mask
    whole = cpu.hw.cntr_mask == arm_pmuv3.all_counters(cpu) and cpu.hw.guest_resident == 0
    own = pe.mdcr_el2 == pe.core.event_counters and pe.hdfgrtr_el2 == 0 and pe.hdfgwtr_el2 == 0
    runs = (pe.pmcr & PMCR_E) == pmu.nonzero(cpu.hw.used_mask)
    users = pe.userenr == m.userenr and pe.selr == 0
    return whole and own and runs and users and left_over == 0


def nobody_waits(m: Machine, c: int) -> bool:
    """No event of CPU `c` is off while there is a counter for it."""
    host = m.world.host
    hw = host.cpus[c].hw
    for number in range(len(host.events)):
        event = host.events[number]
        waits = event.attached == 1 and event.cpu == c and event.state == STATE_INACTIVE
        if waits and arm_pmuv3.get_event_idx(host.cpus[c], event, hw.cntr_mask, hw.used_mask) != NO_COUNTER:
            return False
    return True


# ---- a guest's --------------------------------------------------------------------------------------------


def counter_value(m: Machine, v: int, i: int) -> int:
    """Return what counter `i` of a guest holds, wherever the vCPU is: world.counter_value() that changes nothing."""
    vcpu = m.world.vcpus[v]
    if worlds.is_emulated(m.world.vms[m.world.vm_of[v]]):
        return upstream.counter_value(m, v, i)
    if is_on_cpu(vcpu):
        return pmu.counter_value(m.world.host.cpus[cpu_of(m, v)].pe, i)
    return emulated.register_value(vcpu, i)


def counts_of_guest_are_exact(m: Machine, v: int, filtered: int) -> bool:
    """Each counter holds what a PMU's of its own would: those of denied events if `filtered` is 1, else the others."""
    mirror = m.mirrors[v]
    vm = m.world.vms[m.world.vm_of[v]]
    for i in range(vm.nr_counters):
        denied = 1 - filters.event_allowed(vm, mirror.evtyper[i] & pmu.EVENT_FIELD)
        if counter_value(m, v, i) != mirror.pe.evcntr[i] and denied == filtered:
            return False
    denied = 1 - filters.event_allowed(vm, CPU_CYCLES)
    return denied != filtered or counter_value(m, v, CYCLE) == mirror.pe.ccntr


def registers_are_the_guests(m: Machine, v: int) -> bool:
    """PMCNTEN, PMINTEN, PMCR, PMSELR, PMUSERENR and the event types are as the guest has written them."""
    vcpu, mirror = m.world.vcpus[v], m.mirrors[v]
    vm = m.world.vms[m.world.vm_of[v]]
    mine = implemented(vm)
    changed = vcpu.ccfiltr ^ mirror.ccfiltr
    for i in range(vm.nr_counters):
        changed |= vcpu.evtyper[i] ^ mirror.evtyper[i]
    if is_on_cpu(vcpu):
        pe = m.world.host.cpus[cpu_of(m, v)].pe
        changed |= ((pe.cnten ^ mirror.pe.cnten) | (pe.inten ^ mirror.pe.inten)) & mine
        changed |= (pe.pmcr ^ mirror.pe.pmcr) | (pe.selr ^ mirror.pe.selr) | (pe.userenr ^ mirror.pe.userenr)
    else:
        changed |= ((vcpu.cnten ^ mirror.pe.cnten) | (vcpu.inten ^ mirror.pe.inten)) & mine
        changed |= (vcpu.pmcr ^ mirror.pe.pmcr) | (vcpu.selr ^ mirror.pe.selr) | (vcpu.userenr ^ mirror.pe.userenr)
    return changed == 0


def overflows_are_the_guests(m: Machine, v: int) -> bool:
    """What the guest's PMOVS shows, in KVM's memory or still in the hardware, is what its counters overflowed."""
    vcpu = m.world.vcpus[v]
    ovs = vcpu.ovs
    if worlds.is_emulated(m.world.vms[m.world.vm_of[v]]):
        ovs |= upstream.pending(m, v)
    elif is_on_cpu(vcpu):
        ovs |= m.world.host.cpus[cpu_of(m, v)].pe.ovs
    mine = implemented(m.world.vms[m.world.vm_of[v]])
    return (ovs ^ m.mirrors[v].pe.ovs) & mine == 0


def interrupt_is_delivered(m: Machine, v: int) -> bool:
    """The level of the guest's interrupt line, as set on entry, is that of a PMU of its own."""
    pe = m.mirrors[v].pe
    return m.world.vcpus[v].irq_level == pmu.check_for_pmu_overflow(pe)


def costs_nothing(m: Machine, v: int) -> bool:
    """A lazy vCPU whose guest has not touched its PMU is FREE, and its CPU's counters are the host's."""
    vcpu = m.world.vcpus[v]
    if vcpu.loaded == 0 or m.mirrors[v].touched == 1 or m.world.vms[m.world.vm_of[v]].design != LAZY:
        return True
    cpu = m.world.host.cpus[cpu_of(m, v)]
    return vcpu.residency == FREE and cpu.hw.cntr_mask == arm_pmuv3.all_counters(cpu)


def filter_is_of_its_pmu(m: Machine) -> bool:
    """The filter speaks of the events of the VM's PMU, and FIXED_COUNTERS_ONLY came first if it came at all."""
    vm = m.world.vms[0]
    if m.filter_of == 0:
        return True
    fixed = pmu.equal(vm.design, FIXED_COUNTERS_ONLY)
    if fixed == 0 and m.filter_fixed == 1 and not upstream.excuses(m, upstream.FILTER_OF_FIXED):
        return False
    return m.filter_of == vm.pmu + 1 and fixed <= m.filter_fixed


def gets_on(m: Machine, v: int) -> bool:
    """A guest whose access has trapped, and is to be executed again, has its PMU, on a CPU where it can run."""
    return m.outcome != access.AGAIN or is_on_cpu(m.world.vcpus[v]) or m.world.vcpus[v].unsupported_cpu == 1


def exits_for_what_is_virtual(m: Machine, v: int) -> bool:
    """The access that has exited is one that may, or the guest does not own its PMU."""
    mirror, vm = m.mirrors[v], m.world.vms[m.world.vm_of[v]]
    pe = m.world.host.cpus[cpu_of(m, v)].pe
    owned = is_on_cpu(m.world.vcpus[v])
    return not owned or may_exit(pe, vm, mirror.pe, mirror.el, mirror.key, mirror.write)


def may_exit(pe: Pe, vm: Vm, own: Pe, el: int, key: int, write: int) -> bool:
    """Tell whether a guest that owns its PMU may have to exit for an access: `own` is the PMU that it believes to have.

    Where there are no fine-grained traps, for any. Else for what hardware does not hold for the guest, or not
    everywhere: the event types, which the filter changes; PMOVS, of which KVM has a part; PMMIR_EL1, and PMCEID<n>_EL0
    of a guest with a filter; from PMUv3p9 writes of PMUSERENR_EL0; and for what is UNDEFINED.
    """
    if vm.use_fgt == 0 or pe.core.fgt == 0 or (pe.core.pmuver >= PMUV3P9 and pe.core.fgt2 == 0):
        return True
    if traps.access(own, el, key, write) == traps.UNDEFINED:
        return True
    if key in (PMCEID0_EL0, PMCEID1_EL0):
        return vm.filter_words != 0
    if key == PMUSERENR_EL0:
        return write == 1 and pe.core.pmuver >= PMUV3P9
    return is_type(key) or key in (PMOVSSET_EL0, PMOVSCLR_EL0, PMMIR_EL1)


def interrupt_is_down(m: Machine, c: int) -> bool:
    """The PMU of CPU `c` does not ask for an interrupt."""
    return pmu.check_for_pmu_overflow(m.world.host.cpus[c].pe) == 0


def read_is_right(m: Machine) -> bool:
    """What the last access read is what it ought to have."""
    return m.read == m.expected
