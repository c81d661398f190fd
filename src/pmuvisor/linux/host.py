"""The host's state: CPUs with their PMUs, perf events and their contexts, tasks.

VHE: the kernel runs at EL2, its processes at EL0 with HCR_EL2.TGE = 1. Events, CPUs and tasks are known by their
number; NO_EVENT, NO_TASK and ANY_CPU stand for none. Times are nanoseconds.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.spe import Spu
from pmuvisor.records import U1, U2, U3, U6, U8, U16, U32, U33, U62, U64, Bits, Each, LedgerCount, Role, record

NO_EVENT = 0xFFFF
NO_TASK = 0xFFFF
NO_VCPU = 0xFFFF
ANY_CPU = 0xFF
NO_SESSION = 0xFF
NO_COUNTER = 63
"""hw_perf_event.idx of an event that has no counter."""

# PerfEvent.state (enum perf_event_state)
STATE_ERROR = 0
"""A pinned event that could not be scheduled."""
STATE_OFF = 1
STATE_INACTIVE = 2
STATE_ACTIVE = 3

# Task.state
TASK_SLEEPING = 0
TASK_RUNNABLE = 1

# PerfContext.is_active, and what a scheduling function is asked to do (enum event_type_t)
EVENT_FLEXIBLE = 1
EVENT_PINNED = 2
EVENT_TIME = 4
EVENT_ALL = EVENT_FLEXIBLE | EVENT_PINNED
EVENT_CPU = 8


@record
class PerfEvent:
    """struct perf_event, its attributes and its hardware part; one record is one counter that somebody opened."""

    attached: U1
    """It is in a context."""
    pmu: U8
    """Which of the host's PMUs (struct arm_pmu): cores of one kind share one."""
    cpu: U8
    """The CPU that it is for, or ANY_CPU for a task's."""
    task: U16
    """The task that it is for, or NO_TASK for a CPU's."""
    config: U16
    """The event's number, PMEVTYPER<n>_EL0.evtCount."""
    long: U1
    """perf_event_attr.config1:0, a counter of 64 bits."""
    pinned: U1
    exclude_user: U1
    exclude_kernel: U1
    exclude_host: U1
    exclude_guest: U1
    sample_period: U64
    """0 for an event that only counts."""
    overflow_handler: U1
    """It is KVM's, which wants to know of its overflows: they are no samples (perf_event.overflow_handler)."""
    overflowed: U1
    """It has overflowed, and whoever opened it has not been told yet."""
    leader: U16
    """The leader of its group; itself where it is one."""
    next_sibling: U16
    """The group's next event, or NO_EVENT: siblings are scheduled in the order in which they were opened."""
    state: U2
    idx: U6
    """The counter that it has while it is active; of a chained pair the odd one."""
    count: U64
    prev_count: U64
    period_left: U64
    """Two's complement."""
    samples: U62
    tstamp: U62
    total_time_enabled: U62
    total_time_running: U62
    switched: LedgerCount
    """How often it was given a counter, or had it taken, since whoever pays for that last looked."""
    true: Annotated[int, Bits(62), Role.GHOST]
    """What happened, while it was enabled, of what it is to count."""
    seen: Annotated[int, Bits(62), Role.GHOST]
    """What of it happened while it was active: what `count` must be."""


@record
class PerfContext:
    """struct perf_event_context: the events of one CPU or one task, groups by their leaders.

    Lists are in the order in which groups are tried; what is opened or rotated goes to the end.
    """

    pinned: Annotated[list[int], Each("context_events", 16)]
    nr_pinned: U16
    flexible: Annotated[list[int], Each("context_events", 16)]
    nr_flexible: U16
    is_active: U3
    rotate_necessary: U1
    """Some flexible group could not go on, so the next rotation has something to do."""
    time: U62
    """How long it has been scheduled in."""
    timestamp: U62
    """When `time` was brought up to date."""


@record
class PmuHwEvents:
    """struct pmu_hw_events: which counters of this CPU's PMU the driver has, and for which events."""

    cntr_mask: U33
    """The counters that the driver may use. In Linux it is the arm_pmu's; a resident vCPU takes some on its own CPU."""
    used_mask: U33
    events: Annotated[list[int], Each(33, 16)]
    guest_resident: U1
    """The first range and its enable PMCR_EL0.E are a guest's: the driver's enable is MDCR_EL2.HPME."""
    resync_el0: U1
    """Counters were programmed since KVM last looked at who counts EL0 (KVM_REQ_RESYNC_PMU_EL0)."""
    events_host: U33
    """struct kvm_pmu_events: counters that count EL0 outside of guests only."""
    events_guest: U33
    """Counters that count EL0 in guests only."""


@record
class SpeSession:
    """An event of arm_spe_pmu: struct perf_event, its AUX buffer, and the handle on that while it is open."""

    attached: U1
    """It is open."""
    cpu: U8
    """The CPU that it is for, or ANY_CPU for a task's."""
    task: U16
    """The task that it is for, or NO_TASK for a CPU's."""
    state: U2
    """STATE_OFF, STATE_INACTIVE or STATE_ACTIVE, as of a perf event."""
    stopped: U1
    """PERF_HES_STOPPED: it has no buffer to write to."""
    pmscr: U8
    pmsfcr: U64
    pmsevfr: U64
    pmslatfr: U16
    pmsirr: U32
    period_left: U64
    """PMSICR_EL1 when it last stopped."""
    base: U64
    """Where its AUX buffer is in the kernel's memory."""
    size: U32
    """Bytes of the AUX buffer, a power of two."""
    watermark: U32
    """perf_event_attr.aux_watermark: after how many bytes the reader is woken."""
    aux_head: U62
    """Bytes that were put into the buffer since it was made (perf_event_mmap_page.aux_head)."""
    aux_tail: U62
    """Bytes that the reader has taken out."""
    aux_wakeup: U62
    handle_head: U62
    """perf_output_handle.head: where the driver is while the handle is open."""
    handle_size: U32
    """Bytes that it may write."""
    handle_wakeup: U62
    handle_open: U1
    aux_flags: U3
    """PERF_AUX_FLAG_* of the handle: AUX_TRUNCATED, AUX_PARTIAL, AUX_COLLISION."""
    truncated: U62
    """How many of its AUX records lost data."""
    padded: U62
    """Bytes of padding that the driver has written."""
    woken: U62
    """How often the reader was woken."""
    prompt: U1
    """The reader is there as soon as it is woken; 0: nobody ever reads. A model."""
    noticed: U62
    """Of how many wake-ups the reader knows."""
    formed: Annotated[int, Bits(62), Role.GHOST]
    """Records that were formed while it had the unit: what its buffer must come to hold."""
    interrupts: LedgerCount
    """How often PMBIRQ was the driver's."""
    spurious: LedgerCount
    """How often it was not (IRQ_NONE)."""


@record
class Task:
    """A thread: a process of the host's, or one that runs a vCPU."""

    ctx: PerfContext
    state: U1
    """TASK_RUNNABLE also while it runs."""
    cpu: U8
    """Where it runs or waits, or ran last."""
    next: U16
    """The task behind it in its CPU's queue."""
    preempt_notifier: U16
    """What wants to know when the task leaves a CPU and comes to one (struct preempt_notifier): the vCPU that it runs,
    or NO_VCPU."""
    allowed: Annotated[list[int], Each("cpu_words", 32)]
    """task_struct.cpus_mask: bit c & 31 of word c >> 5."""
    has_code: U1
    """It is a vCPU's thread whose guest has code that somebody executes, and tells what it did."""
    rate: Annotated[list[int], Each("kinds", 32)]
    """How it makes events, if no guest's code does: events of each kind in a millisecond of its run time."""
    user: U16
    """How many of a thousand of them are at EL0."""
    burst: U62
    """How long it runs before it goes to sleep; 0 for one that never does."""
    pause: U62
    """How long it sleeps."""
    burst_left: U62
    runtime: U62
    """How long it has run."""
    cycles: U62
    """Thousandths of the clock cycles in which it has run."""
    migrations: LedgerCount
    """How often it was found on another CPU than before."""


@record
class Cpu:
    """One CPU of the host."""

    pe: Pe
    spu: Spu
    spe_session: U8
    """The SPE session that is scheduled here, or NO_SESSION."""
    pmu: U8
    """Which of the host's PMUs it belongs to (arm_pmu.supported_cpus)."""
    hw: PmuHwEvents
    ctx: PerfContext
    current: U16
    """The task that runs on it, or NO_TASK while it is idle."""
    first: U16
    """Of the tasks that wait for their turn here, the one that has waited longest."""
    last: U16
    nr_queued: U16
    switches: LedgerCount


@record
class Host:
    """The whole machine."""

    cpus: Annotated[list[Cpu], Each("cpus")]
    tasks: Annotated[list[Task], Each("tasks")]
    events: Annotated[list[PerfEvent], Each("events")]
    spe_sessions: Annotated[list[SpeSession], Each("spe_sessions")]
    spe_open: U8
    """How many of them are open."""
