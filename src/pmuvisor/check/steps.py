"""One step of a small machine: an action happens if it can, and the properties that it could break are asked for.

The rules of semantic code hold: `step` is compiled with all that it calls, and replayed by CPython.
"""

from __future__ import annotations

from pmuvisor.arch import pmu, traps
from pmuvisor.arch.events import BR_RETIRED, CPU_CYCLES, INST_RETIRED
from pmuvisor.arch.sysreg import (
    CYCLE,
    FILTER_NSH,
    FILTER_P,
    FILTER_U,
    INSTRUCTION,
    PMCCNTR_EL0,
    PMCEID0_EL0,
    PMCEID1_EL0,
    PMCNTENCLR_EL0,
    PMCNTENSET_EL0,
    PMCR_C,
    PMCR_EL0,
    PMCR_P,
    PMINTENCLR_EL1,
    PMINTENSET_EL1,
    PMOVSCLR_EL0,
    PMOVSSET_EL0,
    PMXEVCNTR_EL0,
)
from pmuvisor.check import properties, upstream
from pmuvisor.check.common import breaks, forget_pmu, in_guest, resident, spend, thread_moves, tidy_queues
from pmuvisor.check.model import BROKEN, DONE, NOT_NOW
from pmuvisor.check.properties import (
    ATTRIBUTES,
    COSTS_NOTHING,
    DELIVERED,
    DIRECT,
    FILTERED,
    GUEST_COUNTS,
    GUEST_REGISTERS,
    HOST_BACK,
    HOST_COUNTS,
    HPMN_LEGAL,
    ISOLATION,
    OVERFLOWS,
    PROGRESS,
    READS,
    cpu_of,
)
from pmuvisor.check.state import (
    ACCESS,
    ACCESSES,
    CLOSE,
    ENTER,
    EVENTS,
    EXECUTE,
    EXECUTIONS,
    EXIT,
    FROM_EL0,
    GUEST_EL,
    HANDLE,
    HOST_EL,
    INTERRUPT,
    MOVE,
    OPEN,
    ROTATE,
    SET_FILTER,
    SET_FIXED,
    SET_PMU,
    SETTINGS,
    SWITCH_IN,
    SWITCH_OUT,
    SWITCHES,
    USER_EL,
    Machine,
)
from pmuvisor.kvm import access, emulated, filters, restored
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import FIXED_COUNTERS_ONLY, Vcpu, Vm, is_type
from pmuvisor.linux import activity, perf
from pmuvisor.linux.host import NO_COUNTER, NO_TASK, NO_VCPU, STATE_INACTIVE, Cpu, PerfEvent

UNKNOWN = 0x5A5A_5A5A_5A5A
"""What is in the general-purpose register that an access is to be read to."""
NO_EXCEPTION, UNDEFINED, TRAP = 0, 1, 2
"""What a guest takes instead of what it wanted to do."""


def step(m: Machine, kind: int, a: int, b: int, c: int, d: int) -> int:
    """Let an action happen. Return NOT_NOW, having changed nothing; DONE; or BROKEN + the first property broken."""
    m.outcome = 0
    m.read = 0
    m.expected = 0
    m.returned = 0
    done = happen(m, kind, a, b, c, d)
    if done == NOT_NOW:
        return NOT_NOW
    for v in range(len(m.world.vcpus)):
        if has_events(m, v):
            upstream.follow(m, v)
    result = judge_step(m, kind, a)
    tidy(m)
    return result


def happen(m: Machine, kind: int, a: int, b: int, c: int, d: int) -> int:
    """Let an action happen, if it can."""
    if kind == ACCESS:
        return guest_accesses(m, a, b, c, d)
    if kind == HANDLE:
        return kvm_handles(m, a)
    if kind == EXECUTE:
        return instruction_retires(m, a, b, c)
    if kind == ENTER:
        return kvm_enters(m, a)
    if kind == EXIT:
        return kvm_exits(m, a)
    if kind == INTERRUPT:
        return cpu_interrupted(m, a)
    return host_acts(m, kind, a, b, c)


def host_acts(m: Machine, kind: int, a: int, b: int, c: int) -> int:
    """Let something happen that the host's scheduler, perf or userspace does."""
    if kind == SWITCH_OUT:
        return thread_leaves(m, a)
    if kind == SWITCH_IN:
        return thread_comes(m, a)
    if kind == MOVE:
        return thread_moves(m, a, b, SWITCHES)
    if kind == OPEN:
        return event_opens(m, b)
    if kind == CLOSE:
        return event_closes(m, b)
    if kind == ROTATE:
        return events_rotate(m, a)
    return userspace_acts(m, kind, a, b, c)


def userspace_acts(m: Machine, kind: int, a: int, b: int, c: int) -> int:
    """Let something happen that the VMM does."""
    if m.left[SETTINGS] == 0:
        return NOT_NOW
    if kind == SET_FILTER:
        return filter_set(m, a, b)
    if kind == SET_PMU:
        return pmu_set(m, a)
    if kind == SET_FIXED:
        return fixed_set(m)
    return register_restored(m, a, b, c)


def has_events(m: Machine, v: int) -> bool:
    """Tell whether the counters of a vCPU are perf events."""
    return worlds.is_emulated(m.world.vms[m.world.vm_of[v]])


def excuses(m: Machine, v: int, number: int) -> bool:
    """Tell whether a thing that upstream does not do for vCPUs with perf events is let be."""
    return has_events(m, v) and upstream.excuses(m, number)


# ---- the guest --------------------------------------------------------------------------------------------


def guest_accesses(m: Machine, c: int, key: int, how: int, value: int) -> int:
    """The guest on CPU `c` executes an MRS or MSR at EL1, or EL0: the hardware carries it out, or it exits."""
    if not in_guest(m, c) or m.left[ACCESSES] == 0:
        return NOT_NOW
    v = resident(m, c)
    mirror = m.mirrors[v]
    write = how & 1
    el = GUEST_EL
    if how >= FROM_EL0:
        el = USER_EL
    m.left[ACCESSES] -= 1
    properties.view_host(m, c)
    if traps.access(m.world.host.cpus[c].pe, el, key, write) == traps.TRAP_EL2:
        exits(m, c, v)
        mirror.trapped = 1
        mirror.key = key
        mirror.write = write
        mirror.el = el
        mirror.value = value
        return DONE
    m.outcome = access.guest_access(m.world, c, v, el, key, write, value, 0)
    ought_to_access(m, v, el, key, write, value)
    return DONE


def exits(m: Machine, c: int, v: int) -> None:
    """The guest on CPU `c` exits. Interrupts are enabled next (kvm_arch_vcpu_ioctl_run()): PMUIRQ is taken if it is up.

    It may come later, which matters where the overflow would be lost, and that is excused (`upstream.LATE_INTERRUPT`).
    """
    worlds.vcpu_exit(m.world, c, v)
    if excuses(m, v, upstream.LATE_INTERRUPT):
        if pmu.check_for_pmu_overflow(m.world.host.cpus[c].pe) == 1:
            worlds.handle_irq(m.world, c, v)
        properties.view_host(m, c)


def kvm_handles(m: Machine, c: int) -> int:
    """KVM handles the access that has exited. A vCPU that has become the owner of its PMU executes it again."""
    v = resident(m, c)
    if v == NO_VCPU or m.mirrors[v].trapped == 0:
        return NOT_NOW
    mirror = m.mirrors[v]
    properties.view_host(m, c)
    mirror.trapped = 0
    m.world.vcpus[v].value = UNKNOWN
    m.outcome = access.handle_trap(m.world, c, v, mirror.el, mirror.key, mirror.write, mirror.value, 0)
    if m.outcome == access.AGAIN:
        m.left[ACCESSES] += 1
        mirror.touched = 1
    else:
        ought_to_access(m, v, mirror.el, mirror.key, mirror.write, mirror.value)
    mirror.key = 0
    mirror.write = 0
    mirror.el = 0
    mirror.value = 0
    return DONE


def ought_to_access(m: Machine, v: int, el: int, key: int, write: int, value: int) -> None:
    """Let the access happen to the PMU that the guest believes to have; keep what was read, and ought to be.

    Where the guest's PMUSERENR_EL0 shuts EL0 out, hardware asks that before it compares a counter with HPMN: of one
    that the guest does not have its EL1 takes a trap, not an Undefined Instruction exception. So it is with any HPMN.
    """
    mirror = m.mirrors[v]
    mirror.touched = 1
    key = meant(m, v, key)
    m.expected = exception_of(traps.access(mirror.pe, el, key, write))
    m.read = exception_taken(m, v, m.expected)
    if el == USER_EL and m.expected == UNDEFINED and m.read == TRAP:
        m.expected = TRAP
    if m.expected != NO_EXCEPTION or m.read != NO_EXCEPTION:
        return
    if write == 0:
        m.read = m.world.vcpus[v].value
        m.expected = ought_to_read(m, v, el, key)
    elif is_type(key):
        set_type(m, v, pmu.counter_of(mirror.pe, key), value)
    else:
        pmu.write(mirror.pe, el, key, value)


def meant(m: Machine, v: int, key: int) -> int:
    """Return which register an access is to be of: that it is another one can be excused."""
    cycles = key == PMXEVCNTR_EL0 and m.mirrors[v].pe.selr == CYCLE
    if cycles and excuses(m, v, upstream.PMXEVCNTR_31):
        return PMCCNTR_EL0
    return key


def exception_of(where: int) -> int:
    """Return the exception that a guest takes where its own PMU sends an access."""
    if where == traps.UNDEFINED:
        return UNDEFINED
    if where == traps.TRAP_EL1:
        return TRAP
    return NO_EXCEPTION


def exception_taken(m: Machine, v: int, expected: int) -> int:
    """Return the exception that the guest has taken; what is excused of an emulated one's is what it ought to take."""
    if m.outcome == access.TO_EL1:
        return TRAP
    injected = m.outcome == access.TRAPPED_UNDEFINED
    if injected and expected == TRAP and excuses(m, v, upstream.EL0_UNDEFINED):
        return TRAP
    if m.outcome in (access.UNDEFINED, access.TRAPPED_UNDEFINED):
        return UNDEFINED
    return NO_EXCEPTION


def ought_to_read(m: Machine, v: int, el: int, key: int) -> int:
    """Return what a guest ought to read: of an event type what it has written, though that does not count."""
    mirror = m.mirrors[v]
    i = pmu.counter_of(mirror.pe, key)
    if key in (PMCEID0_EL0, PMCEID1_EL0):
        return visible_events(m.world.vms[m.world.vm_of[v]], pmu.read(mirror.pe, el, key), key)
    if is_type(key) and i != CYCLE:
        return mirror.evtyper[i]
    if is_type(key):
        return mirror.ccfiltr
    return pmu.read(mirror.pe, el, key)


def visible_events(vm: Vm, pmceid: int, key: int) -> int:
    """Return what a guest ought to read of PMCEID<n>_EL0: nothing that its filter denies, of fixed counters nothing."""
    if vm.design == FIXED_COUNTERS_ONLY:
        return 0
    first = 32 * (key - PMCEID0_EL0)
    for i in range(32):
        if filters.event_denied(vm, first + i) == 1:
            pmceid &= ~(1 << i)
        if filters.event_denied(vm, 0x4000 + first + i) == 1:
            pmceid &= ~(1 << (32 + i))
    return pmceid


def set_type(m: Machine, v: int, i: int, value: int) -> None:
    """Set an event type of the PMU that a guest believes to have, or its cycle counter's filter where `i` is CYCLE."""
    mirror = m.mirrors[v]
    if i == CYCLE:
        bits = pmu.filter_bits(mirror.pe)
        if excuses(m, v, upstream.EVENT_IN_CCFILTR):
            bits |= pmu.EVENT_FIELD
        mirror.ccfiltr = value & bits & ~(1 << FILTER_NSH)
    else:
        mirror.evtyper[i] = value & pmu.evtyper_bits(mirror.pe, i) & ~(1 << FILTER_NSH) & 0xFFFF_FFFF
    apply_filter(m, v, i)


def apply_filter(m: Machine, v: int, i: int) -> None:
    """Let a counter count what its type says. A denied event counts at no level of the guest."""
    mirror = m.mirrors[v]
    vm = m.world.vms[m.world.vm_of[v]]
    excluded = (1 << FILTER_P) | (1 << FILTER_U)
    if i == CYCLE:
        mirror.pe.ccfiltr = mirror.ccfiltr
        if filters.event_denied(vm, CPU_CYCLES) == 1:
            mirror.pe.ccfiltr = excluded
    else:
        event = mirror.evtyper[i] & pmu.EVENT_FIELD
        mirror.pe.evtyper[i] = mirror.evtyper[i]
        if filters.event_allowed(vm, event) == 0:
            mirror.pe.evtyper[i] = event | excluded


def instruction_retires(m: Machine, c: int, el: int, of_host: int) -> int:
    """An instruction of the guest, of the host's kernel or of its user space, retires and takes a cycle.

    There is no user space while a vCPU is loaded: KVM_RUN puts it before it returns.
    """
    guest = in_guest(m, c)
    if int(guest) != int(el < HOST_EL) & (1 - of_host) or interrupt_is_overdue(m.world.host.cpus[c].pe):
        return NOT_NOW
    if of_host == 1 and resident(m, c) != NO_VCPU:
        return NOT_NOW
    if spend(m, EXECUTIONS) == 0:
        return NOT_NOW
    count_instruction(m.world.host.cpus[c].pe, el)
    if guest:
        count_instruction(m.mirrors[resident(m, c)].pe, el)
    note(m, c, int(guest), el)
    return DONE


def interrupt_is_overdue(pe: pmu.Pe) -> bool:
    """Tell whether PMUIRQ has to be taken now: late it may be, but not by half of what a counter holds.

    So much the driver leaves (arm_pmu_event_max_period() >> 1): that later events are not taken for earlier ones.
    """
    pending = pmu.overflow_interrupts(pe)
    half = pe.core.half_mask >> 1
    for i in range(pe.core.event_counters):
        if (pending >> i) & 1 == 1 and pe.evcntr[i] & pe.core.half_mask >= half:
            return True
    if (pending >> INSTRUCTION) & 1 == 1 and pe.icntr & pe.core.half_mask >= half:
        return True
    return (pending >> CYCLE) & 1 == 1 and pe.ccntr & pe.core.half_mask >= half


def count_instruction(pe: pmu.Pe, el: int) -> None:
    """One instruction, a branch, and one cycle happen to a PMU."""
    counting = pmu.count_pmu_events(pe, el)
    pmu.pmu_event(pe, el, INST_RETIRED, 1)
    pmu.pmu_event(pe, el, BR_RETIRED, 1)
    pmu.pmu_event(pe, el, CPU_CYCLES, 1)
    pmu.increment_cycle_counter(pe, counting, 1)


def note(m: Machine, c: int, guest: int, el: int) -> None:
    """Note in the host's events what they ought to count of it."""
    host = m.world.host
    el0 = int(el == 0)
    for event in (INST_RETIRED, CPU_CYCLES):
        activity.note_context(host, c, host.cpus[c].ctx, event, guest, el0, 1 - el0)
        if host.cpus[c].current != NO_TASK:
            activity.note_context(host, c, host.tasks[host.cpus[c].current].ctx, event, guest, el0, 1 - el0)


# ---- KVM --------------------------------------------------------------------------------------------------


def kvm_enters(m: Machine, c: int) -> int:
    """The vCPU that is loaded on CPU `c` enters its guest."""
    v = resident(m, c)
    if in_guest(m, c) or v == NO_VCPU or m.world.vcpus[v].unsupported_cpu == 1 or m.mirrors[v].trapped == 1:
        return NOT_NOW
    worlds.vcpu_enter(m.world, c, v, 0)
    return DONE


def kvm_exits(m: Machine, c: int) -> int:
    """Something interrupts the guest on CPU `c`."""
    if not in_guest(m, c):
        return NOT_NOW
    exits(m, c, resident(m, c))
    return DONE


def cpu_interrupted(m: Machine, c: int) -> int:
    """PMUIRQ is up on CPU `c`, and is taken: by an exit first where a guest executes."""
    if pmu.check_for_pmu_overflow(m.world.host.cpus[c].pe) == 0:
        return NOT_NOW
    v = resident(m, c)
    if in_guest(m, c):
        worlds.vcpu_exit(m.world, c, v)
    worlds.handle_irq(m.world, c, v)
    return DONE


# ---- the host ---------------------------------------------------------------------------------------------


def thread_leaves(m: Machine, c: int) -> int:
    """The thread on CPU `c` is preempted."""
    if in_guest(m, c) or m.world.host.cpus[c].current == NO_TASK or spend(m, SWITCHES) == 0:
        return NOT_NOW
    m.returned = m.world.host.cpus[c].hw.guest_resident
    worlds.switch_out(m.world, c, 0)
    return DONE


def thread_comes(m: Machine, c: int) -> int:
    """The next thread comes to CPU `c`, which is idle."""
    cpu = m.world.host.cpus[c]
    if cpu.current != NO_TASK or cpu.nr_queued == 0:
        return NOT_NOW
    worlds.switch_in(m.world, c, 0)
    m.ran = 1
    return DONE


def event_opens(m: Machine, number: int) -> int:
    """Somebody opens an event of a CPU that does not execute a guest."""
    event = m.world.host.events[number]
    if event.attached == 1 or in_guest(m, event.cpu) or spend(m, EVENTS) == 0:
        return NOT_NOW
    perf.perf_install_in_context(m.world.host, number, 0)
    return DONE


def event_closes(m: Machine, number: int) -> int:
    """Somebody closes it."""
    event = m.world.host.events[number]
    if event.attached == 0 or in_guest(m, event.cpu) or spend(m, EVENTS) == 0:
        return NOT_NOW
    perf.perf_remove_from_context(m.world.host, number, 0)
    return DONE


def events_rotate(m: Machine, c: int) -> int:
    """The multiplexing timer fires on CPU `c`, where events wait."""
    if in_guest(m, c) or m.world.host.cpus[c].ctx.rotate_necessary == 0 or spend(m, EVENTS) == 0:
        return NOT_NOW
    perf.perf_rotate_context(m.world.host, c, 0)
    return DONE


# ---- userspace --------------------------------------------------------------------------------------------


def register_restored(m: Machine, v: int, key: int, value: int) -> int:
    """Userspace restores a register of a vCPU that is not loaded, event types denied or not.

    Not while an access waits to be handled: KVM_RUN has vcpu->mutex until it has returned (kvm_vcpu_ioctl()).
    """
    vcpu, pe = m.world.vcpus[v], m.mirrors[v].pe
    if (
        vcpu.loaded == 1
        or m.mirrors[v].trapped == 1
        or (is_type(key) and has_events(m, v) and not type_can_be_restored(m, v, key))
    ):
        return NOT_NOW
    m.left[SETTINGS] -= 1
    restored.set_one_reg(m.world.host, cpu_of(m, v), m.world.vms[m.world.vm_of[v]], vcpu, key, value, 0)
    if is_type(key):
        set_type(m, v, pmu.counter_of(pe, key), value)
        return DONE
    m.mirrors[v].touched = 1
    ought_to_be(pe, key, value)
    return DONE


def type_can_be_restored(m: Machine, v: int, key: int) -> bool:
    """Tell whether the next entry makes an event of the type that would be written, or that is not to be excused."""
    vcpu = m.world.vcpus[v]
    i = pmu.counter_of(m.mirrors[v].pe, key)
    attached = m.world.host.events[emulated.event_of(vcpu, i)].attached
    return (attached == 0 and vcpu.reload_pmu == 1) or not excuses(m, v, upstream.TYPE_NOT_TOLD)


def ought_to_be(pe: pmu.Pe, key: int, value: int) -> None:
    """Set a register of the PMU that a guest believes to have: a SET or CLR register is the whole value."""
    mine = value & (pmu.event_counters(pe) | (1 << CYCLE))
    if key in (PMCNTENSET_EL0, PMCNTENCLR_EL0):
        pe.cnten = mine
    elif key in (PMINTENSET_EL1, PMINTENCLR_EL1):
        pe.inten = mine
    elif key in (PMOVSSET_EL0, PMOVSCLR_EL0):
        pe.ovs = mine
    elif key == PMCR_EL0:
        pmu.write(pe, GUEST_EL, key, value & ~(PMCR_P | PMCR_C))
    else:
        pmu.write(pe, GUEST_EL, key, value)


def filter_set(m: Machine, event: int, deny: int) -> int:
    """Userspace lets the event filter deny or allow an event; the first one makes the filter."""
    vm = m.world.vms[0]
    if m.ran == 1:
        return NOT_NOW
    m.left[SETTINGS] -= 1
    if vm.filter_words == 0:
        m.filter_of = vm.pmu + 1
        m.filter_fixed = pmu.equal(vm.design, FIXED_COUNTERS_ONLY)
    restored.begin_filter(vm, len(vm.denied), deny)
    restored.filter_event(vm, event, deny)
    mirrors_follow(m)
    return DONE


def pmu_set(m: Machine, number: int) -> int:
    """Userspace selects one of the host's PMUs: the guest has its counters, and runs on its CPUs."""
    vm = m.world.vms[0]
    if restored.set_pmu_is_refused(vm, m.ran, pmu.equal(vm.pmu, number)):
        return NOT_NOW
    m.left[SETTINGS] -= 1
    restored.leave_fixed_counters_only(vm)
    vm.pmu = number
    vm.supported_pmus = 1 << number
    vm.nr_counters = m.world.host.cpus[emulated.cpu_of_pmu(m.world.host, number)].pe.core.event_counters
    mirrors_follow(m)
    return DONE


def fixed_set(m: Machine) -> int:
    """Userspace sets FIXED_COUNTERS_ONLY: no event counters, and every CPU."""
    vm = m.world.vms[0]
    if restored.fixed_counters_only_is_refused(vm, m.ran):
        return NOT_NOW
    m.left[SETTINGS] -= 1
    vm.design = FIXED_COUNTERS_ONLY
    vm.nr_counters = 0
    for c in range(len(m.world.host.cpus)):
        vm.supported_pmus |= 1 << m.world.host.cpus[c].pmu
    mirrors_follow(m)
    return DONE


def mirrors_follow(m: Machine) -> None:
    """The VM has got other counters, or another filter: what its guests believe to have is that."""
    for v in range(len(m.mirrors)):
        pe = m.mirrors[v].pe
        pe.core.event_counters = m.world.vms[0].nr_counters
        pe.mdcr_el2 = pe.core.event_counters
        for i in range(pe.core.event_counters):
            apply_filter(m, v, i)
        apply_filter(m, v, CYCLE)


# ---- what must hold ---------------------------------------------------------------------------------------


def judge_step(m: Machine, kind: int, a: int) -> int:
    """Return DONE, or BROKEN + the first property that does not hold after an action of `kind` on `a`."""
    if kind in (ACCESS, HANDLE):
        moved = m.outcome == access.AGAIN or (kind == HANDLE and has_events(m, resident(m, a)))
        isolated = moved or properties.is_isolated(m, a, resident(m, a))
        if breaks(m, ISOLATION, isolated):
            return BROKEN + ISOLATION
        if breaks(m, READS, properties.read_is_right(m)):
            return BROKEN + READS
        if kind == ACCESS and breaks(m, DIRECT, is_direct(m, resident(m, a))):
            return BROKEN + DIRECT
        if breaks(m, PROGRESS, properties.gets_on(m, resident(m, a))):
            return BROKEN + PROGRESS
    if kind == ENTER and breaks(m, DELIVERED, properties.interrupt_is_delivered(m, resident(m, a))):
        return BROKEN + DELIVERED
    if kind == INTERRUPT and breaks(m, PROGRESS, properties.interrupt_is_down(m, a)):
        return BROKEN + PROGRESS
    if m.returned == 1 and breaks(m, HOST_BACK, properties.nobody_waits(m, a)):
        return BROKEN + HOST_BACK
    if breaks(m, ATTRIBUTES, properties.filter_is_of_its_pmu(m)):
        return BROKEN + ATTRIBUTES
    if breaks(m, HOST_COUNTS, properties.counts_of_host_are_exact(m)):
        return BROKEN + HOST_COUNTS
    for c in range(len(m.world.host.cpus)):
        if breaks(m, HPMN_LEGAL, properties.hpmn_is_legal(m, c)):
            return BROKEN + HPMN_LEGAL
        if breaks(m, HOST_BACK, resident(m, c) != NO_VCPU or properties.host_is_whole(m, c)):
            return BROKEN + HOST_BACK
    for v in range(len(m.world.vcpus)):
        broken = judge_guest(m, v)
        if broken != DONE:
            return broken
    return DONE


def is_direct(m: Machine, v: int) -> bool:
    """Tell whether the access has not exited, or for a good reason."""
    return m.mirrors[v].trapped == 0 or properties.exits_for_what_is_virtual(m, v)


def judge_guest(m: Machine, v: int) -> int:
    """Return DONE, or BROKEN + the first property of a guest that does not hold."""
    if breaks(m, COSTS_NOTHING, properties.costs_nothing(m, v)):
        return BROKEN + COSTS_NOTHING
    if breaks(m, FILTERED, properties.counts_of_guest_are_exact(m, v, 1)):
        return BROKEN + FILTERED
    if breaks(m, GUEST_COUNTS, properties.counts_of_guest_are_exact(m, v, 0)):
        return BROKEN + GUEST_COUNTS
    if breaks(m, GUEST_REGISTERS, properties.registers_are_the_guests(m, v)):
        return BROKEN + GUEST_REGISTERS
    if breaks(m, OVERFLOWS, properties.overflows_are_the_guests(m, v)):
        return BROKEN + OVERFLOWS
    return DONE


# ---- one state, one record --------------------------------------------------------------------------------


def tidy(m: Machine) -> None:
    """Give what nobody will ever look at one value, so that equal states are equal records."""
    host = m.world.host
    for c in range(len(host.cpus)):
        if resident(m, c) == NO_VCPU:
            forget_pmu(m.world.saved[c])
    tidy_queues(host)
    for v in range(len(m.world.vcpus)):
        m.world.vcpus[v].value = 0
        forget_loaded(m.world.vcpus[v])
        if has_events(m, v):
            forget_emulated(m, v)
            forget_counters(host.cpus[cpu_of(m, v)])
    for number in range(len(host.events)):
        forget_event(host.events[number])


def forget_emulated(m: Machine, v: int) -> None:
    """Nobody looks at what a perf event was that is gone, nor at what is behind the end of its task's list.

    Of a vCPU that is FREE nothing but PMSELR_EL0, PMUSERENR_EL0 and MDCR_EL2 of the host's is to come back.
    """
    vcpu = m.world.vcpus[v]
    for i in range(len(vcpu.evcntr) + 1):
        event = m.world.host.events[vcpu.first_event + i]
        if event.attached == 0:
            perf.init_event(event, vcpu.first_event + i)
            event.pmu = 0
            event.config = 0
            event.overflow_handler = 0
    ctx = m.world.host.tasks[vcpu.task].ctx
    for i in range(ctx.nr_pinned, len(ctx.pinned)):
        ctx.pinned[i] = 0
    if vcpu.loaded == 1:
        m.world.saved[cpu_of(m, v)].pmcr = 0


def forget_counters(cpu: Cpu) -> None:
    """A counter without an event is written before it counts, where no guest has counters of its own."""
    for i in range(cpu.pe.core.event_counters):
        if (cpu.hw.used_mask >> i) & 1 == 0:
            cpu.pe.evcntr[i] = 0
            cpu.pe.evtyper[i] = 0
    if (cpu.hw.used_mask >> CYCLE) & 1 == 0:
        cpu.pe.ccntr = 0
        cpu.pe.ccfiltr = 0


def forget_event(event: PerfEvent) -> None:
    """Nobody looks at what a closed event has counted, nor at how many samples an open one has taken."""
    event.true = 0
    event.samples = 0
    if event.attached == 0:
        event.state = STATE_INACTIVE
        event.idx = NO_COUNTER
        event.count = 0
        event.seen = 0
        event.prev_count = 0
        event.period_left = 0


def forget_loaded(vcpu: Vcpu) -> None:
    """A vCPU whose registers are on a CPU has none in memory: they will be written before they are read."""
    if properties.is_on_cpu(vcpu):
        vcpu.pmcr = 0
        vcpu.cnten = 0
        vcpu.inten = 0
        vcpu.selr = 0
        vcpu.userenr = 0
        vcpu.ccntr = 0
        for i in range(len(vcpu.evcntr)):
            vcpu.evcntr[i] = 0
    else:
        vcpu.unsupported_cpu = vcpu.unsupported_cpu & vcpu.loaded
