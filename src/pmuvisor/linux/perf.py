"""perf's core: contexts, groups, who is scheduled on a CPU's PMU, rotation, the times and counts of an event.

States kernel/events/core.c of Linux 6.12, and perf_pmu_resched_update() of the partitioning series. A function that the
kernel runs on a CPU by a cross call takes that CPU, `c`; `now` is that CPU's time in nanoseconds. perf's software and
other hardware PMUs, inheritance, cgroups and exclusive groups are not there.
"""

from __future__ import annotations

from pmuvisor.arch.events import CHAIN
from pmuvisor.linux import arm_pmuv3
from pmuvisor.linux.arm_pmuv3 import EAGAIN, EINVAL
from pmuvisor.linux.host import (
    ANY_CPU,
    EVENT_ALL,
    EVENT_CPU,
    EVENT_FLEXIBLE,
    EVENT_PINNED,
    EVENT_TIME,
    NO_COUNTER,
    NO_EVENT,
    NO_TASK,
    STATE_ACTIVE,
    STATE_ERROR,
    STATE_INACTIVE,
    STATE_OFF,
    Host,
    PerfContext,
    PerfEvent,
)

ENOENT = 2
"""Negated, what perf_event_open() returns where no PMU has the event."""

# ---- time -------------------------------------------------------------------------------------------------


def update_context_time(ctx: PerfContext, now: int) -> None:
    """State update_context_time(): a context's time runs while it is scheduled in."""
    if ctx.is_active & EVENT_TIME != 0:
        ctx.time += now - ctx.timestamp
    ctx.timestamp = now


def context_of(host: Host, event: PerfEvent) -> PerfContext:
    """Return the context that an event is in: its task's, or its CPU's."""
    if event.task != NO_TASK:
        return host.tasks[event.task].ctx
    return host.cpus[event.cpu].ctx


def effective_state(host: Host, event: PerfEvent) -> int:
    """State __perf_effective_state(): an event whose leader is off, or in error, is so too."""
    leader = host.events[event.leader].state
    if leader <= STATE_OFF:
        return leader
    return event.state


def perf_event_update_time(host: Host, ctx: PerfContext, event: PerfEvent) -> None:
    """State perf_event_update_time(): enabled while it and its group's leader are not off, running while active."""
    delta = ctx.time - event.tstamp
    event.tstamp = ctx.time
    state = effective_state(host, event)
    if state >= STATE_INACTIVE:
        event.total_time_enabled += delta
    if state == STATE_ACTIVE:
        event.total_time_running += delta


def perf_event_set_state(host: Host, ctx: PerfContext, number: int, state: int) -> None:
    """State perf_event_set_state(). A leader that goes off or on takes its siblings' times with it."""
    event = host.events[number]
    if event.state == state:
        return
    perf_event_update_time(host, ctx, event)
    if event.leader == number and int(event.state <= STATE_OFF) != int(state <= STATE_OFF):
        sibling = event.next_sibling
        while sibling != NO_EVENT:
            perf_event_update_time(host, ctx, host.events[sibling])
            sibling = host.events[sibling].next_sibling
    event.state = state


# ---- lists of groups --------------------------------------------------------------------------------------


def append_group(ctx: PerfContext, leader: int, pinned: int) -> None:
    """Put a group at the end of its list (perf_event_groups_insert)."""
    if pinned == 1:
        ctx.pinned[ctx.nr_pinned] = leader
        ctx.nr_pinned += 1
    else:
        ctx.flexible[ctx.nr_flexible] = leader
        ctx.nr_flexible += 1


def delete_group(ctx: PerfContext, leader: int, pinned: int) -> None:
    """Take a group out of its list (perf_event_groups_delete)."""
    groups = ctx.flexible
    number = ctx.nr_flexible
    if pinned == 1:
        groups = ctx.pinned
        number = ctx.nr_pinned
    found = 0
    for i in range(number):
        if found == 1:
            groups[i - 1] = groups[i]
        if groups[i] == leader:
            found = 1
    if pinned == 1:
        ctx.nr_pinned -= found
    else:
        ctx.nr_flexible -= found


def is_empty(ctx: PerfContext) -> bool:
    """Tell whether a context has no event: each is in a group, and each group has a leader."""
    return ctx.nr_pinned + ctx.nr_flexible == 0


# ---- one event, one group ---------------------------------------------------------------------------------


def event_sched_out(host: Host, c: int, ctx: PerfContext, number: int) -> None:
    """State event_sched_out(): take an active event off its counter."""
    event = host.events[number]
    if event.state == STATE_ACTIVE:
        arm_pmuv3.delete(host.cpus[c], event)
        perf_event_set_state(host, ctx, number, STATE_INACTIVE)


def event_sched_in(host: Host, c: int, ctx: PerfContext, number: int) -> int:
    """State event_sched_in(): give an event a counter. Return 0 or -EAGAIN; one that is off needs none."""
    event = host.events[number]
    if event.state <= STATE_OFF:
        return 0
    perf_event_set_state(host, ctx, number, STATE_ACTIVE)
    if arm_pmuv3.add(host.cpus[c], event, number) != 0:
        perf_event_set_state(host, ctx, number, STATE_INACTIVE)
        return -EAGAIN
    return 0


def group_sched_out(host: Host, c: int, ctx: PerfContext, leader: int) -> None:
    """State group_sched_out(): all of a group, if its leader is active."""
    if host.events[leader].state == STATE_ACTIVE:
        number = leader
        while number != NO_EVENT:
            event_sched_out(host, c, ctx, number)
            number = host.events[number].next_sibling


def group_sched_in(host: Host, c: int, ctx: PerfContext, leader: int) -> int:
    """State group_sched_in(): all of a group or nothing. Return 0 or -EAGAIN."""
    number = leader
    while number != NO_EVENT:
        if event_sched_in(host, c, ctx, number) != 0:
            partial = leader
            while partial != number:
                event_sched_out(host, c, ctx, partial)
                partial = host.events[partial].next_sibling
            return -EAGAIN
        number = host.events[number].next_sibling
    return 0


# ---- a context on its CPU ---------------------------------------------------------------------------------


def event_filter_match(host: Host, c: int, event: PerfEvent) -> bool:
    """State event_filter_match() and pmu_filter(): a task's event is for one kind of core, and may be for one CPU."""
    return event.pmu == host.cpus[c].pmu and (event.cpu == ANY_CPU or event.cpu == c)


def merge_sched_in(host: Host, c: int, ctx: PerfContext, leader: int, can_add_hw: int) -> int:
    """State merge_sched_in(): try a group, if all before it could go on. Return whether the next may be tried."""
    event = host.events[leader]
    if event.state <= STATE_OFF or not event_filter_match(host, c, event):
        return can_add_hw
    if can_add_hw == 1:
        group_sched_in(host, c, ctx, leader)
    if event.state == STATE_INACTIVE:
        if event.pinned == 1:
            perf_event_set_state(host, ctx, leader, STATE_ERROR)
        else:
            ctx.rotate_necessary = 1
        return 0
    return can_add_hw


def groups_sched_in(host: Host, c: int, ctx: PerfContext, event_type: int) -> None:
    """State __pmu_ctx_sched_in(): the groups of one list, in its order."""
    can_add_hw = 1
    if event_type == EVENT_PINNED:
        for i in range(ctx.nr_pinned):
            can_add_hw = merge_sched_in(host, c, ctx, ctx.pinned[i], can_add_hw)
    else:
        for i in range(ctx.nr_flexible):
            can_add_hw = merge_sched_in(host, c, ctx, ctx.flexible[i], can_add_hw)


def groups_sched_out(host: Host, c: int, ctx: PerfContext, event_type: int) -> None:
    """State __pmu_ctx_sched_out()."""
    if event_type & EVENT_PINNED != 0:
        for i in range(ctx.nr_pinned):
            group_sched_out(host, c, ctx, ctx.pinned[i])
    if event_type & EVENT_FLEXIBLE != 0:
        for i in range(ctx.nr_flexible):
            group_sched_out(host, c, ctx, ctx.flexible[i])
        ctx.rotate_necessary = 0


def ctx_sched_in(host: Host, c: int, ctx: PerfContext, event_type: int, now: int) -> None:
    """State ctx_sched_in(): schedule the lists of `event_type`, EVENT_PINNED or EVENT_FLEXIBLE, that are not active."""
    if is_empty(ctx):
        return
    update_context_time(ctx, now)
    changed = event_type & ~ctx.is_active
    ctx.is_active |= event_type | EVENT_TIME
    if changed & EVENT_PINNED != 0:
        groups_sched_in(host, c, ctx, EVENT_PINNED)
    if changed & EVENT_FLEXIBLE != 0:
        groups_sched_in(host, c, ctx, EVENT_FLEXIBLE)


def ctx_sched_out(host: Host, c: int, ctx: PerfContext, event_type: int, now: int) -> None:
    """State ctx_sched_out(): take off the lists of `event_type`; with EVENT_TIME the context's time stops as well."""
    update_context_time(ctx, now)
    changed = event_type & ctx.is_active
    ctx.is_active &= ~event_type
    groups_sched_out(host, c, ctx, changed & EVENT_ALL)


def perf_event_sched_in(host: Host, c: int, task: int, now: int) -> None:
    """State perf_event_sched_in(): CPU pinned, task pinned, CPU flexible, task flexible."""
    cpu_ctx = host.cpus[c].ctx
    ctx_sched_in(host, c, cpu_ctx, EVENT_PINNED, now)
    if task != NO_TASK:
        ctx_sched_in(host, c, host.tasks[task].ctx, EVENT_PINNED, now)
    ctx_sched_in(host, c, cpu_ctx, EVENT_FLEXIBLE, now)
    if task != NO_TASK:
        ctx_sched_in(host, c, host.tasks[task].ctx, EVENT_FLEXIBLE, now)


def resched_out(host: Host, c: int, event_type: int, now: int) -> None:
    """State the first half of ctx_resched(): take off what is of `event_type`'s priority, and all below."""
    cpu = host.cpus[c]
    if event_type & EVENT_PINNED != 0:
        event_type |= EVENT_FLEXIBLE
    if cpu.current != NO_TASK:
        ctx_sched_out(host, c, host.tasks[cpu.current].ctx, event_type & EVENT_ALL, now)
    if event_type & EVENT_CPU != 0:
        ctx_sched_out(host, c, cpu.ctx, event_type & EVENT_ALL, now)
    elif event_type & EVENT_PINNED != 0:
        ctx_sched_out(host, c, cpu.ctx, EVENT_FLEXIBLE, now)


def ctx_resched(host: Host, c: int, event_type: int, now: int) -> None:
    """State ctx_resched(): what was added or enabled takes its place among those of its priority and below.

    `event_type` is EVENT_PINNED or EVENT_FLEXIBLE, with EVENT_CPU where the event is the CPU's.
    """
    resched_out(host, c, event_type, now)
    perf_event_sched_in(host, c, host.cpus[c].current, now)
    arm_pmuv3.armpmu_enable(host.cpus[c])


def resched_for(host: Host, c: int, event: PerfEvent, now: int) -> None:
    """State ctx_resched() as it is called for one event that has been installed or enabled.

    It is of the event's PMU: where that is not this CPU's, nothing moves here, but a context that was empty begins.
    """
    if event.pmu == host.cpus[c].pmu:
        ctx_resched(host, c, event_type_of(host.events[event.leader]), now)
    else:
        perf_event_sched_in(host, c, host.cpus[c].current, now)


def perf_pmu_resched_update(host: Host, c: int, cntr_mask: int, now: int) -> None:
    """State perf_pmu_resched_update(): change the counters that the PMU has while no event is on any of them."""
    resched_out(host, c, EVENT_ALL | EVENT_CPU, now)
    host.cpus[c].hw.cntr_mask = cntr_mask
    perf_event_sched_in(host, c, host.cpus[c].current, now)
    arm_pmuv3.armpmu_enable(host.cpus[c])


def perf_event_task_sched_in(host: Host, c: int, task: int, now: int) -> None:
    """State perf_event_context_sched_in(): `task` begins to run on CPU `c`.

    Its pinned events go before the CPU's flexible ones, which are taken off for that.
    """
    cpu = host.cpus[c]
    cpu.current = task
    ctx = host.tasks[task].ctx
    if is_empty(ctx):
        return
    if ctx.nr_pinned != 0:
        ctx_sched_out(host, c, cpu.ctx, EVENT_FLEXIBLE, now)
    perf_event_sched_in(host, c, task, now)
    arm_pmuv3.armpmu_enable(cpu)


def perf_event_task_sched_out(host: Host, c: int, now: int) -> None:
    """State perf_event_context_sched_out(): the task on CPU `c` stops running."""
    cpu = host.cpus[c]
    ctx = host.tasks[cpu.current].ctx
    cpu.current = NO_TASK
    if not is_empty(ctx):
        ctx_sched_out(host, c, ctx, EVENT_ALL | EVENT_TIME, now)
        arm_pmuv3.armpmu_enable(cpu)


# ---- rotation ---------------------------------------------------------------------------------------------


def ctx_event_to_rotate(host: Host, c: int, ctx: PerfContext) -> int:
    """State ctx_event_to_rotate(): the first active flexible group, else the first that could be; or NO_EVENT.

    Whether there is still something to rotate shows when the groups are scheduled in again.
    """
    ctx.rotate_necessary = 0
    for i in range(ctx.nr_flexible):
        if host.events[ctx.flexible[i]].state == STATE_ACTIVE:
            return ctx.flexible[i]
    leader = first_for(host, c, ctx, ANY_CPU)
    if leader == NO_EVENT:
        leader = first_for(host, c, ctx, c)
    return leader


def first_for(host: Host, c: int, ctx: PerfContext, cpu: int) -> int:
    """Return the first flexible group on CPU `c`'s PMU whose attribute is `cpu`, or NO_EVENT."""
    for i in range(ctx.nr_flexible):
        event = host.events[ctx.flexible[i]]
        if event.cpu == cpu and event.pmu == host.cpus[c].pmu:
            return ctx.flexible[i]
    return NO_EVENT


def rotate_ctx(ctx: PerfContext, leader: int) -> None:
    """State rotate_ctx(): the group goes to the end of the flexible ones."""
    delete_group(ctx, leader, 0)
    append_group(ctx, leader, 0)


def perf_rotate_context(host: Host, c: int, now: int) -> int:
    """State perf_rotate_context(), at the multiplexing timer: the groups that waited get their turn.

    Return 1 where the timer is to go on: something waited, if only until now.
    """
    cpu = host.cpus[c]
    cpu_event = NO_EVENT
    task_event = NO_EVENT
    rotations = 0
    if cpu.current != NO_TASK and host.tasks[cpu.current].ctx.rotate_necessary == 1:
        task_event = ctx_event_to_rotate(host, c, host.tasks[cpu.current].ctx)
        rotations = 1
    if cpu.ctx.rotate_necessary == 1:
        cpu_event = ctx_event_to_rotate(host, c, cpu.ctx)
        rotations = 1
    if cpu_event == NO_EVENT and task_event == NO_EVENT:
        return rotations
    if cpu.current != NO_TASK:
        update_context_time(host.tasks[cpu.current].ctx, now)
        groups_sched_out(host, c, host.tasks[cpu.current].ctx, EVENT_FLEXIBLE)
    if cpu_event != NO_EVENT:
        update_context_time(cpu.ctx, now)
        groups_sched_out(host, c, cpu.ctx, EVENT_FLEXIBLE)
        rotate_ctx(cpu.ctx, cpu_event)
        groups_sched_in(host, c, cpu.ctx, EVENT_FLEXIBLE)
    if cpu.current != NO_TASK:
        if task_event != NO_EVENT:
            rotate_ctx(host.tasks[cpu.current].ctx, task_event)
        groups_sched_in(host, c, host.tasks[cpu.current].ctx, EVENT_FLEXIBLE)
    arm_pmuv3.armpmu_enable(cpu)
    return 1


# ---- open, close, enable, disable, read -------------------------------------------------------------------


def validate_group(host: Host, c: int, number: int) -> int:
    """State validate_group(): a group must fit a PMU that has nothing else to do. Return 0 or -EINVAL.

    Members that are off, or in error, need no counter: a group can become too large for its PMU when they are enabled.
    `c` is a CPU of the event's PMU. The counters that a guest has taken there count: the event could not run meanwhile,
    but it can at other times.
    """
    cpu = host.cpus[c]
    mask = arm_pmuv3.all_counters(cpu)
    used = 0
    event = host.events[number]
    member = event.leader
    while member != NO_EVENT:
        if host.events[member].state > STATE_OFF:
            idx = arm_pmuv3.get_event_idx(cpu, host.events[member], mask, used)
            if idx == NO_COUNTER:
                return -EINVAL
            used |= arm_pmuv3.mask_of(cpu, host.events[member], idx)
        member = host.events[member].next_sibling
    return 0


def link_sibling(host: Host, number: int) -> None:
    """Put an event at the end of its leader's group (perf_group_attach)."""
    last = host.events[number].leader
    while host.events[last].next_sibling != NO_EVENT:
        last = host.events[last].next_sibling
    host.events[last].next_sibling = number


def perf_event_open(host: Host, c: int, number: int) -> int:
    """State perf_event_open() up to the installation, of an event whose attributes have been filled in.

    `c` is a CPU of the event's PMU. Return 0; -ENOENT for a CPU of another PMU; -EINVAL for CHAIN, which is no event of
    its own, for a group that no PMU has room for, or that is of another context or PMU than its leader. On an error the
    event is in no group.
    """
    event = host.events[number]
    if event.cpu != ANY_CPU and host.cpus[event.cpu].pmu != event.pmu:
        return -ENOENT
    if event.config == CHAIN:
        return -EINVAL
    if event.leader != number:
        leader = host.events[event.leader]
        if leader.leader != event.leader or event.pinned == 1:
            return -EINVAL
        if leader.task != event.task or leader.cpu != event.cpu or leader.pmu != event.pmu:
            return -EINVAL
        link_sibling(host, number)
    result = validate_group(host, c, number)
    if result != 0 and event.leader != number:
        unlink_sibling(host, number)
    return result


def init_event(event: PerfEvent, number: int) -> None:
    """Make a record that was used before an event that has never counted, alone in its group, without attributes."""
    event.long = 0
    event.pinned = 0
    event.exclude_user = 0
    event.exclude_kernel = 0
    event.exclude_host = 0
    event.exclude_guest = 0
    event.sample_period = 0
    event.overflow_handler = 0
    event.overflowed = 0
    event.leader = number
    event.next_sibling = NO_EVENT
    event.idx = NO_COUNTER
    event.count = 0
    event.prev_count = 0
    event.period_left = 0
    event.samples = 0
    event.total_time_enabled = 0
    event.total_time_running = 0
    event.true = 0
    event.seen = 0


def perf_event_create_kernel_counter(host: Host, number: int, enabled: int, now: int) -> None:
    """State perf_event_create_kernel_counter() of an event of its own group, whose attributes have been filled in.

    `enabled` is 0 for one with perf_event_attr.disabled. It cannot fail: there is no other event in its group.
    """
    event = host.events[number]
    event.state = STATE_OFF
    if enabled == 1:
        event.state = STATE_INACTIVE
    perf_install_in_context(host, number, now)


def unlink_sibling(host: Host, number: int) -> None:
    """Take an event that leads no group out of its group (perf_group_detach)."""
    before = host.events[number].leader
    while host.events[before].next_sibling != number:
        before = host.events[before].next_sibling
    host.events[before].next_sibling = host.events[number].next_sibling
    host.events[number].next_sibling = NO_EVENT
    host.events[number].leader = number


def where_active(host: Host, event: PerfEvent) -> int:
    """Return the CPU on which an event's context is scheduled in now, or ANY_CPU where it is on none."""
    if event.task == NO_TASK:
        return event.cpu
    c = host.tasks[event.task].cpu
    if host.cpus[c].current == event.task:
        return c
    return ANY_CPU


def event_type_of(event: PerfEvent) -> int:
    """Return the EVENT_* bits of an event: its list, and whether it is a CPU's."""
    kind = EVENT_FLEXIBLE
    if event.pinned == 1:
        kind = EVENT_PINNED
    if event.task == NO_TASK:
        kind |= EVENT_CPU
    return kind


def perf_install_in_context(host: Host, number: int, now: int) -> None:
    """State perf_install_in_context(), on the CPU where the event's context is, if it is on one.

    The event counts from here on, if it is not off. Its counts and times begin at zero. The install of an event that is
    off moves no other, unless it is the context's first.
    """
    event = host.events[number]
    ctx = context_of(host, event)
    c = where_active(host, event)
    if effective_state(host, event) == STATE_OFF and not is_empty(ctx):
        c = ANY_CPU
    if c != ANY_CPU:
        update_context_time(ctx, now)
    event.attached = 1
    event.idx = NO_COUNTER
    event.tstamp = ctx.time
    if event.leader == number:
        append_group(ctx, number, event.pinned)
    if c != ANY_CPU:
        resched_for(host, c, event, now)


def perf_remove_from_context(host: Host, number: int, now: int) -> None:
    """State __perf_remove_from_context(): an event that leads a group leaves the others each a group of its own."""
    event = host.events[number]
    ctx = context_of(host, event)
    c = where_active(host, event)
    if c != ANY_CPU:
        update_context_time(ctx, now)
        event_sched_out(host, c, ctx, number)
    perf_event_set_state(host, ctx, number, STATE_OFF)
    event.attached = 0
    if event.leader != number:
        unlink_sibling(host, number)
    else:
        delete_group(ctx, number, event.pinned)
        promote_siblings(host, ctx, number)
    if c != ANY_CPU:
        stop_empty_context(ctx)
        arm_pmuv3.armpmu_enable(host.cpus[c])


def promote_siblings(host: Host, ctx: PerfContext, leader: int) -> None:
    """State perf_group_detach() of a leader: its siblings lead from now on, counting as they do, flexible all of them.

    A pinned leader's are so too: which list a group is in is an attribute of its own leader, and no sibling is pinned.
    """
    number = host.events[leader].next_sibling
    host.events[leader].next_sibling = NO_EVENT
    while number != NO_EVENT:
        sibling = host.events[number]
        following = sibling.next_sibling
        sibling.leader = number
        sibling.next_sibling = NO_EVENT
        append_group(ctx, number, sibling.pinned)
        number = following


def stop_empty_context(ctx: PerfContext) -> None:
    """A context that has lost its last event is not active."""
    if is_empty(ctx):
        ctx.is_active = 0
        ctx.rotate_necessary = 0


def perf_event_enable(host: Host, number: int, now: int) -> None:
    """State __perf_event_enable(): an event that is off, or in error, is to count."""
    event = host.events[number]
    if event.state >= STATE_INACTIVE:
        return
    ctx = context_of(host, event)
    c = where_active(host, event)
    if c != ANY_CPU:
        update_context_time(ctx, now)
    perf_event_set_state(host, ctx, number, STATE_INACTIVE)
    if c == ANY_CPU or (event.cpu != ANY_CPU and event.cpu != c):
        return
    # A sibling of a group that is not on goes on with its leader.
    if event.leader == number or host.events[event.leader].state == STATE_ACTIVE:
        resched_for(host, c, event, now)


def perf_event_disable(host: Host, number: int, now: int) -> None:
    """State __perf_event_disable(): an event stops; of a leader the whole group comes off its counters."""
    event = host.events[number]
    if event.state < STATE_INACTIVE:
        return
    ctx = context_of(host, event)
    c = where_active(host, event)
    if c != ANY_CPU:
        update_context_time(ctx, now)
        if event.leader == number:
            group_sched_out(host, c, ctx, number)
        else:
            event_sched_out(host, c, ctx, number)
    perf_event_set_state(host, ctx, number, STATE_OFF)
    if c != ANY_CPU:
        arm_pmuv3.armpmu_enable(host.cpus[c])


def perf_event_read(host: Host, number: int, now: int) -> None:
    """State __perf_event_read(): bring an event's count and times up to date."""
    event = host.events[number]
    ctx = context_of(host, event)
    c = where_active(host, event)
    if c != ANY_CPU:
        update_context_time(ctx, now)
        if event.state == STATE_ACTIVE:
            arm_pmuv3.event_update(host.cpus[c], event)
    perf_event_update_time(host, ctx, event)
