"""A world in time, without guests' code: CPUs run tasks and vCPU threads in slices, and counters count what they do.

One event after the other, in the order of time, and at one time by number, CPUs first. Between two events of its own a
CPU does nothing but what its task does; so its counters are brought up to date only then. A CPU's next event is the end
of a slice, the multiplexing timer, an overflow that interrupts, or its task's going to sleep; a task's is its waking.

PMBIRQ is no event of the queue: nothing but the unit's own CPU has to do with it, so it is taken where it comes while
the CPU is brought up to date, at the very operation, of which there can be several in a nanosecond.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor.arch import pmu, spe, spe_record
from pmuvisor.arch.events import CHAIN, CPU_CYCLES, INST_RETIRED
from pmuvisor.arch.spe_record import Sample
from pmuvisor.arch.sysreg import CYCLE, INSTRUCTION
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.world import World
from pmuvisor.linux import activity, arm_spe, perf, sched
from pmuvisor.linux.activity import NEVER
from pmuvisor.linux.host import NO_SESSION, NO_TASK, NO_VCPU, TASK_SLEEPING
from pmuvisor.records import U16, U62, Each, LedgerCount, record

EL0, EL1, EL2 = 0, 1, 2
FAR = 1 << 40
"""So many events do not happen in a run."""
FAR_OVERFLOWS = FAR >> 32
"""So many overflows of a counter of 32 bits."""


@record
class Timeline:
    """A world, and when what will happen in it. Entries of the queue are CPUs, and after them tasks."""

    world: World
    now: U62
    kinds: Annotated[list[int], Each("kinds", 16)]
    """The events that tasks make, by their numbers."""
    mhz: Annotated[list[int], Each("cpus", 16)]
    queue: Annotated[list[int], Each("entries", 16)]
    """A heap of entries by `due`, then by their number."""
    place: Annotated[list[int], Each("entries", 16)]
    """Where in the queue each entry is."""
    due: Annotated[list[int], Each("entries", 62)]
    accounted: Annotated[list[int], Each("cpus", 62)]
    """Up to when the counters of a CPU know what its task has done."""
    slice_end: Annotated[list[int], Each("cpus", 62)]
    mux_at: Annotated[list[int], Each("cpus", 62)]
    """When the multiplexing timer of a CPU fires, if it is needed."""
    slice_ns: U62
    mux_ns: U62
    quantum_ns: U62
    """How long a guest that has code is executed before another CPU's turn."""
    executed: Annotated[list[int], Each("executed", 62)]
    """By vCPU and kind, what its guest has done: what its counters ought to show."""
    sample: Sample
    """The operation that is being sampled."""
    happenings: LedgerCount
    interrupts: LedgerCount
    rotations: LedgerCount
    cpu_count: U16


# ---- the queue --------------------------------------------------------------------------------------------


def before(t: Timeline, a: int, b: int) -> bool:
    """Tell whether entry `a` comes before entry `b`."""
    return t.due[a] < t.due[b] or (t.due[a] == t.due[b] and a < b)


def put_entry(t: Timeline, at: int, entry: int) -> None:
    """Put an entry at a place of the heap."""
    t.queue[at] = entry
    t.place[entry] = at


def schedule(t: Timeline, entry: int, due: int) -> None:
    """Set when an entry is due, and let it rise or sink to its place."""
    t.due[entry] = due
    at = t.place[entry]
    while at > 0 and before(t, entry, t.queue[(at - 1) >> 1]):
        put_entry(t, at, t.queue[(at - 1) >> 1])
        at = (at - 1) >> 1
    size = len(t.queue)
    while True:
        child = 2 * at + 1
        if child + 1 < size and before(t, t.queue[child + 1], t.queue[child]):
            child += 1
        if child >= size or not before(t, t.queue[child], entry):
            break
        put_entry(t, at, t.queue[child])
        at = child
    put_entry(t, at, entry)


# ---- what a CPU has done ----------------------------------------------------------------------------------


def resident(t: Timeline, c: int) -> int:
    """Return the vCPU that is loaded on a CPU, or NO_VCPU."""
    current = t.world.host.cpus[c].current
    if current == NO_TASK:
        return NO_VCPU
    return t.world.host.tasks[current].preempt_notifier


def account(t: Timeline, c: int, until: int) -> None:
    """Bring the counters of CPU `c` up to `until`: its task has run since the last time, and nothing else happened."""
    passed = until - t.accounted[c]
    t.accounted[c] = until
    current = t.world.host.cpus[c].current
    if current == NO_TASK or passed == 0:
        return
    task = t.world.host.tasks[current]
    task.runtime += passed
    if task.burst != 0:
        task.burst_left -= passed
    if task.has_code == 1:
        return
    v = task.preempt_notifier
    if v != NO_VCPU:
        worlds.vcpu_enter(t.world, c, v, until - passed)
    for kind in range(len(t.kinds)):
        account_kind(t, c, kind, passed)
    if v != NO_VCPU:
        worlds.vcpu_exit(t.world, c, v)
    else:
        profile(t, c, passed)


def account_kind(t: Timeline, c: int, kind: int, passed: int) -> None:
    """Count the events of one kind that the task on CPU `c` has made in the time that has passed."""
    cpu = t.world.host.cpus[c]
    task = t.world.host.tasks[cpu.current]
    event = t.kinds[kind]
    if event == CPU_CYCLES:
        task.cycles += passed * t.mhz[c]
        total = task.cycles // 1000
        done = (task.cycles - passed * t.mhz[c]) // 1000
    else:
        total = activity.happened(task.rate[kind], task.runtime)
        done = activity.happened(task.rate[kind], task.runtime - passed)
    el0 = activity.at_el0(total, task.user) - activity.at_el0(done, task.user)
    other = total - done - el0
    if pmu.is_implemented(cpu.pe, event) == 0:
        return
    v = task.preempt_notifier
    above = EL2
    if v != NO_VCPU:
        above = EL1
        t.executed[v * len(t.kinds) + kind] += total - done
    count_at(cpu.pe, EL0, event, el0)
    count_at(cpu.pe, above, event, other)
    in_guest = int(v != NO_VCPU)
    activity.note_context(t.world.host, c, cpu.ctx, event, in_guest, el0, other)
    activity.note_context(t.world.host, c, task.ctx, event, in_guest, el0, other)


def count_at(pe: pmu.Pe, el: int, event: int, amount: int) -> None:
    """Count events at one level; of CPU_CYCLES in the cycle counter as well."""
    if amount != 0:
        if event == CPU_CYCLES:
            pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, el), amount)
        pmu.pmu_event(pe, el, event, amount)


# ---- what its Statistical Profiling Unit has sampled ---------------------------------------------------------


def profile(t: Timeline, c: int, passed: int) -> None:
    """Let the unit of CPU `c` sample what its task, which is of the host, has done in the time that has passed.

    Each instruction is an operation. While a guest runs there is nothing to sample for the host: PMSCR_EL1 is 0 then,
    which the buffer's owner EL2 leaves in charge of EL1 and EL0. The task was come back to by an exception return: what
    the kernel wrote before has its effect.
    """
    cpu = t.world.host.cpus[c]
    if cpu.spu.unsynchronised != 0:
        spe.isb(cpu.spu)
    kind = kind_of(t, INST_RETIRED)
    levels = profiled_levels(cpu.spu)
    if kind == len(t.kinds) or levels == 0:
        return
    task = t.world.host.tasks[cpu.current]
    total = activity.happened(task.rate[kind], task.runtime)
    done = activity.happened(task.rate[kind], task.runtime - passed)
    while done < total and levels != 0:
        done = operate(t, c, levels, done, total)
        levels = profiled_levels(cpu.spu)


def profiled_levels(spu: spe.Spu) -> int:
    """Return a mask of the levels where the unit samples the host: EL0, EL2 (HCR_EL2.TGE is 1)."""
    el0 = int(spe.statistical_profiling_enabled(spu, EL0, 1))
    el2 = int(spe.statistical_profiling_enabled(spu, EL2, 1))
    return (el0 << EL0) | (el2 << EL2)


def operate(t: Timeline, c: int, levels: int, done: int, total: int) -> int:
    """After its first `done` operations the task on CPU `c` goes on up to the next that is sampled, or up to `total`.

    `levels` is the mask of those where they are sampled, at least one. Return how many it has done then.
    """
    cpu = t.world.host.cpus[c]
    user = t.world.host.tasks[cpu.current].user
    el0 = (levels >> EL0) & 1
    el2 = (levels >> EL2) & 1
    before = activity.counted(user, el0, el2, done)
    reached = activity.total_for(user, el0, el2, before + spe.operations_to_sample(cpu.spu))
    if reached == 0 or reached > total:
        reached = total
    if spe.count_operations(cpu.spu, activity.counted(user, el0, el2, reached) - before) == 1:
        take_sample(t, c, activity.at_el0(reached, user) - activity.at_el0(reached - 1, user))
    return reached


def take_sample(t: Timeline, c: int, at_el0: int) -> None:
    """An operation on CPU `c` is sampled, at EL0 or at EL2; the interrupt of the buffer that it may fill is taken.

    A model: every operation is of the class "other", takes a cycle, and retires. That interrupt is where a reader is
    woken: the unit never gets beyond a watermark without it.
    """
    cpu = t.world.host.cpus[c]
    number = cpu.spe_session
    t.sample.el = EL2 - EL2 * at_el0
    t.sample.op_class = spe_record.OP_OTHER
    t.sample.events = spe_record.EVENT_RETIRED
    t.sample.total_latency = 1
    if spe_record.collect_record(cpu.spu.filter, t.sample) == 0:
        return
    if number != NO_SESSION:
        t.world.host.spe_sessions[number].formed += 1
    spe.form_record(cpu.spu, 1 << cpu.spu.filter.core.max_size, spe.HOST)
    if spe.pmbirq(cpu.spu) == 1:
        arm_spe.irq_handler(t.world.host, c)
        arm_spe.read_if_woken(t.world.host, number)


# ---- when a CPU's next event is ---------------------------------------------------------------------------


def kind_of(t: Timeline, event: int) -> int:
    """Return which of the kinds an event is; as many as there are where it is none."""
    for kind in range(len(t.kinds)):
        if t.kinds[kind] == event:
            return kind
    return len(t.kinds)


def next_overflow(t: Timeline, c: int) -> int:
    """Return when the first counter of CPU `c` that may interrupt overflows, if its task goes on as it does."""
    cpu = t.world.host.cpus[c]
    soonest = NEVER
    armed = cpu.pe.cnten & cpu.pe.inten
    for i in range(INSTRUCTION + 1):
        if (armed >> i) & 1 == 1:
            soonest = min(soonest, time_to_overflow(t, c, i))
    return min(NEVER, t.accounted[c] + soonest)


def time_to_overflow(t: Timeline, c: int, i: int) -> int:
    """Return how long it takes until counter `i` of CPU `c` overflows; NEVER where its task does nothing to it."""
    cpu = t.world.host.cpus[c]
    task = t.world.host.tasks[cpu.current]
    remaining = overflow_room(cpu.pe, i)
    i -= is_chained(cpu.pe, i)
    event = counted_event(cpu.pe, i)
    kind = kind_of(t, event)
    above = EL2 - int(task.preempt_notifier != NO_VCPU)
    el0 = 1 - activity.excludes(pmu.counter_control(cpu.pe, i), EL0)
    other = 1 - activity.excludes(pmu.counter_control(cpu.pe, i), above)
    if kind == len(t.kinds) or remaining >= FAR or el0 + other == 0:
        return NEVER
    if event == CPU_CYCLES:
        done = task.cycles // 1000
    else:
        done = activity.happened(task.rate[kind], task.runtime)
    total = activity.total_for(task.user, el0, other, activity.counted(task.user, el0, other, done) + remaining)
    if total == 0:
        return NEVER
    if event == CPU_CYCLES:
        return (total * 1000 - task.cycles + t.mhz[c] - 1) // t.mhz[c]
    return activity.runtime_for(task.rate[kind], total) - task.runtime


def is_chained(pe: pmu.Pe, i: int) -> int:
    """Return 1 where counter `i` counts the overflows of counter `i` - 1, which is enabled."""
    if i >= CYCLE or (i & 1) == 0:
        return 0
    return pmu.equal(counted_event(pe, i), CHAIN) & (pe.cnten >> (i - 1)) & 1


def overflow_room(pe: pmu.Pe, i: int) -> int:
    """Return after how many events counter `i` overflows; of one that is chained, events of its lower neighbour."""
    room = pmu.counter_room(pe, i)
    if is_chained(pe, i) == 0:
        return room
    if room > FAR_OVERFLOWS:
        return FAR
    return ((room - 1) << pe.core.half_bits) + pmu.counter_room(pe, i - 1)


def counted_event(pe: pmu.Pe, i: int) -> int:
    """Return the event that a counter counts."""
    if i == CYCLE:
        return CPU_CYCLES
    if i == INSTRUCTION:
        return INST_RETIRED
    return pe.evtyper[i] & pmu.EVENT_FIELD


def plan(t: Timeline, c: int) -> None:
    """Set when CPU `c`'s next event is. An idle one has none."""
    cpu = t.world.host.cpus[c]
    due = NEVER
    if cpu.current != NO_TASK:
        task = t.world.host.tasks[cpu.current]
        due = t.slice_end[c]
        if task.has_code == 1:
            due = min(due, t.accounted[c] + t.quantum_ns)
        else:
            due = min(due, next_overflow(t, c))
        if task.burst != 0:
            due = min(due, t.accounted[c] + task.burst_left)
        if needs_rotation(t, c):
            due = min(due, t.mux_at[c])
    elif cpu.ctx.rotate_necessary == 1:
        due = t.mux_at[c]
    schedule(t, c, max(due, t.now))


def needs_rotation(t: Timeline, c: int) -> bool:
    """Tell whether some group waits for a counter of CPU `c`."""
    cpu = t.world.host.cpus[c]
    if cpu.ctx.rotate_necessary == 1:
        return True
    return cpu.current != NO_TASK and t.world.host.tasks[cpu.current].ctx.rotate_necessary == 1


# ---- what happens -----------------------------------------------------------------------------------------


def change_task(t: Timeline, c: int) -> None:
    """The task on CPU `c`, if there is one, gives way to the next.

    A vCPU that comes to a CPU where it cannot run fails to enter (KVM_EXIT_FAIL_ENTRY), and its thread ends.
    """
    worlds.switch_out(t.world, c, t.now)
    while True:
        number = worlds.switch_in(t.world, c, t.now)
        if number == NO_TASK:
            break
        v = t.world.host.tasks[number].preempt_notifier
        if v == NO_VCPU:
            break
        if t.world.vcpus[v].unsupported_cpu == 0:
            worlds.check_requests(t.world, c, v, t.now)
            break
        sched.go_to_sleep(t.world.host, c)
        worlds.switch_out(t.world, c, t.now)
    t.slice_end[c] = t.now + t.slice_ns


def cpu_event(t: Timeline, c: int) -> None:
    """Whatever is due on CPU `c` happens now."""
    cpu = t.world.host.cpus[c]
    account(t, c, t.now)
    if pmu.check_for_pmu_overflow(cpu.pe) == 1:
        t.interrupts += 1
        worlds.handle_irq(t.world, c, resident(t, c))
    if t.mux_at[c] <= t.now:
        t.mux_at[c] = t.now + t.mux_ns
        t.rotations += perf.perf_rotate_context(t.world.host, c, t.now)
    if cpu.current != NO_TASK:
        number = cpu.current
        task = t.world.host.tasks[number]
        if task.burst != 0 and task.burst_left == 0:
            task.burst_left = task.burst
            sched.go_to_sleep(t.world.host, c)
            change_task(t, c)
            schedule(t, t.cpu_count + number, t.now + task.pause)
        elif t.slice_end[c] <= t.now:
            change_task(t, c)
    plan(t, c)


def wake(t: Timeline, number: int) -> None:
    """A task wakes now, and runs at once where a CPU is idle."""
    schedule(t, t.cpu_count + number, NEVER)
    if t.world.host.tasks[number].state != TASK_SLEEPING:
        return
    c = sched.try_to_wake_up(t.world.host, number)
    if t.world.host.cpus[c].current == NO_TASK:
        t.accounted[c] = t.now
        change_task(t, c)
        plan(t, c)


def happen(t: Timeline) -> None:
    """The next event happens."""
    entry = t.queue[0]
    t.now = t.due[entry]
    t.happenings += 1
    if entry < t.cpu_count:
        cpu_event(t, entry)
    else:
        wake(t, entry - t.cpu_count)


def run_until(t: Timeline, end: int) -> None:
    """Let everything happen that is due before `end`, and bring all CPUs to that time."""
    while t.due[t.queue[0]] < end:
        happen(t)
    t.now = end
    for c in range(t.cpu_count):
        account(t, c, end)
        plan(t, c)
