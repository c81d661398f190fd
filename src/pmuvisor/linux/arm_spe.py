"""The SPE driver of the host: sessions as perf has them, the AUX buffer, PMBIRQ, draining.

States drivers/perf/arm_spe_pmu.c of Linux 6.12, and of kernel/events/ring_buffer.c what it needs of an AUX buffer that
is not overwritten. The kernel is at EL2: what the driver calls PMSCR_EL1 is PMSCR_EL2 there (HCR_EL2.E2H). Snapshots
are not there. Who reads a session's bytes, and when, is somebody else's: `aux_read`.
"""

from __future__ import annotations

from pmuvisor.arch import spe
from pmuvisor.arch.sysreg import (
    PMBLIMITR_E,
    PMBLIMITR_EL1,
    PMBPTR_EL1,
    PMBSR_COLL,
    PMBSR_DL,
    PMBSR_EC_OTHER,
    PMBSR_EC_SHIFT,
    PMBSR_EL1,
    PMBSR_FSC,
    PMBSR_S,
    PMSCR_EL2,
    PMSEVFR_EL1,
    PMSFCR_EL1,
    PMSICR_EL1,
    PMSIRR_EL1,
    PMSIRR_INTERVAL_SHIFT,
    PMSLATFR_EL1,
)
from pmuvisor.linux.host import (
    NO_SESSION,
    NO_TASK,
    STATE_ACTIVE,
    STATE_INACTIVE,
    STATE_OFF,
    Cpu,
    Host,
    SpeSession,
)

EINVAL = 22
PAGE = 4096

AUX_TRUNCATED = 1 << 0
AUX_PARTIAL = 1 << 1
AUX_COLLISION = 1 << 2
"""SpeSession.aux_flags (PERF_AUX_FLAG_*)."""

FAULT_SPURIOUS = 0
FAULT_FATAL = 1
FAULT_OK = 2
"""What is to be done about a buffer management event (enum arm_spe_pmu_buf_fault_action)."""

MIN_INTERVAL = (256, 4096, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""By PMSIDR_EL1.Interval, the driver's min_period."""


# ---- the AUX buffer (kernel/events/ring_buffer.c) -----------------------------------------------------------


def perf_aux_output_begin(session: SpeSession) -> int:
    """State perf_aux_output_begin(): open the handle. Return 0, or -EINVAL where the reader has left no room.

    The event is disabled then, as after lost data.
    """
    session.aux_flags = 0
    session.handle_head = session.aux_head
    session.handle_size = session.size - 1 - (session.aux_head - session.aux_tail)
    session.handle_wakeup = session.aux_wakeup + session.watermark
    if session.handle_size == 0:
        session.state = STATE_OFF
        session.woken += 1
        return -EINVAL
    session.handle_open = 1
    return 0


def perf_aux_output_skip(session: SpeSession, size: int) -> None:
    """State perf_aux_output_skip(): bytes that are no record go by."""
    session.aux_head += size
    session.handle_head = session.aux_head
    session.handle_size -= size
    wake_at_watermark(session)
    session.handle_wakeup = session.aux_wakeup + session.watermark


def perf_aux_output_end(session: SpeSession, size: int) -> None:
    """State perf_aux_output_end(): the bytes are the reader's. An event that has lost data is disabled."""
    session.aux_head += size
    if session.aux_flags & AUX_TRUNCATED != 0:
        session.truncated += 1
        session.state = STATE_OFF
        session.woken += 1
    wake_at_watermark(session)
    session.handle_open = 0


def wake_at_watermark(session: SpeSession) -> None:
    """State rb_need_aux_wakeup(): the reader is woken for each watermark that was passed."""
    if session.aux_head - session.aux_wakeup >= session.watermark:
        session.aux_wakeup = session.aux_head - session.aux_head % session.watermark
        session.woken += 1


def aux_read(session: SpeSession) -> None:
    """The reader has taken all that there was (perf_event_mmap_page.aux_tail)."""
    session.aux_tail = session.aux_head


def read_if_woken(host: Host, number: int) -> None:
    """Let the reader of a session, or of NO_SESSION, do what it was woken for. A model: it needs no time for that.

    perf would also enable again an event that was disabled because it had lost data; this reader does not.
    """
    if number == NO_SESSION:
        return
    session = host.spe_sessions[number]
    if session.prompt == 1 and session.noticed != session.woken:
        session.noticed = session.woken
        aux_read(session)


# ---- where the next records go ------------------------------------------------------------------------------


def pad_buf(session: SpeSession, size: int) -> None:
    """State arm_spe_pmu_pad_buf(): fill with padding, of which no decoder sees anything."""
    session.padded += size
    perf_aux_output_skip(session, size)


def no_space(session: SpeSession) -> int:
    """There is no room for records: the handle is closed, and data is lost. Return 0."""
    session.aux_flags |= AUX_TRUNCATED
    perf_aux_output_end(session, 0)
    return 0


def next_off_once(cpu: Cpu, session: SpeSession) -> int:
    """State __arm_spe_pmu_next_off(): the offset up to which the unit may write; 0 where there is no room."""
    align = 1 << cpu.spu.filter.core.align
    head = session.handle_head % session.size
    if head % align != 0:
        pad_buf(session, min(align - head % align, session.handle_size))
        head = session.handle_head % session.size
    if session.handle_size == 0:
        return no_space(session)
    tail = (session.handle_head + session.handle_size) % session.size
    wakeup = session.handle_wakeup % session.size
    limit = session.size
    if head < tail:
        limit = tail - tail % PAGE
    if session.handle_wakeup < session.handle_head + session.handle_size and head <= wakeup:
        limit = min(limit, wakeup + -wakeup % PAGE)
    if limit > head:
        return limit
    pad_buf(session, session.handle_size)
    return no_space(session)


def next_off(cpu: Cpu, session: SpeSession) -> int:
    """State arm_spe_pmu_next_off(): the same, with the end padded where it has no room for a record of any size."""
    limit = next_off_once(cpu, session)
    head = session.handle_head % session.size
    if limit != 0 and limit - head < 1 << cpu.spu.filter.core.max_size:
        pad_buf(session, limit - head)
        limit = next_off_once(cpu, session)
    return limit


def aux_output_begin(cpu: Cpu, session: SpeSession) -> None:
    """State arm_spe_perf_aux_output_begin(): give the unit a piece of the buffer, or none, and stop."""
    limit = 0
    if perf_aux_output_begin(session) != 0:
        session.stopped = 1
        spe.write(cpu.spu, PMBLIMITR_EL1, 0)
        return
    limit = next_off(cpu, session)
    enable = PMBLIMITR_E & -int(limit != 0)
    cpu.spu.pointer_of = spe.HOST
    spe.write(cpu.spu, PMBPTR_EL1, session.base + session.handle_head % session.size)
    spe.write(cpu.spu, PMBLIMITR_EL1, (session.base + limit) | enable)


def aux_output_end(cpu: Cpu, session: SpeSession) -> None:
    """State arm_spe_perf_aux_output_end(): what PMBPTR_EL1 says was written is the reader's."""
    offset = spe.read(cpu.spu, spe.EL2, PMBPTR_EL1) - session.base
    perf_aux_output_end(session, offset - session.handle_head % session.size)


# ---- start and stop -----------------------------------------------------------------------------------------


def disable_and_drain_local(cpu: Cpu) -> None:
    """State arm_spe_pmu_disable_and_drain_local(): no operation is sampled any more, and all records are written."""
    spe.write(cpu.spu, PMSCR_EL2, 0)
    spe.isb(cpu.spu)
    spe.psb_csync(cpu.spu)
    spe.dsb(cpu.spu)
    spe.write(cpu.spu, PMBLIMITR_EL1, 0)
    spe.isb(cpu.spu)


def reset_local(cpu: Cpu) -> None:
    """State __arm_spe_pmu_reset_local(): the driver takes a CPU whose unit it does not know."""
    disable_and_drain_local(cpu)
    spe.write(cpu.spu, PMBPTR_EL1, 0)
    spe.isb(cpu.spu)
    spe.write(cpu.spu, PMBSR_EL1, 0)
    spe.isb(cpu.spu)


def buf_get_fault_act(cpu: Cpu, session: SpeSession) -> int:
    """State arm_spe_pmu_buf_get_fault_act(): drain, look at PMBSR_EL1, and close the handle unless it is spurious."""
    spe.psb_csync(cpu.spu)
    spe.dsb(cpu.spu)
    spe.isb(cpu.spu)
    pmbsr = spe.read(cpu.spu, spe.EL2, PMBSR_EL1)
    if pmbsr & PMBSR_S == 0:
        return FAULT_SPURIOUS
    if pmbsr & PMBSR_DL != 0:
        session.aux_flags |= AUX_TRUNCATED | AUX_PARTIAL
    if pmbsr & PMBSR_COLL != 0:
        session.aux_flags |= AUX_COLLISION
    action = FAULT_FATAL
    if (pmbsr >> PMBSR_EC_SHIFT) & 0x3F == PMBSR_EC_OTHER and pmbsr & PMBSR_FSC == 1:
        action = FAULT_OK
    aux_output_end(cpu, session)
    return action


def start(cpu: Cpu, session: SpeSession) -> None:
    """State arm_spe_pmu_start() with PERF_EF_RELOAD."""
    session.stopped = 0
    aux_output_begin(cpu, session)
    if session.stopped == 1:
        return
    spe.write(cpu.spu, PMSFCR_EL1, session.pmsfcr)
    spe.write(cpu.spu, PMSEVFR_EL1, session.pmsevfr)
    spe.write(cpu.spu, PMSLATFR_EL1, session.pmslatfr)
    spe.write(cpu.spu, PMSIRR_EL1, session.pmsirr)
    spe.isb(cpu.spu)
    spe.write(cpu.spu, PMSICR_EL1, session.period_left)
    spe.isb(cpu.spu)
    spe.write(cpu.spu, PMSCR_EL2, session.pmscr)


def stop(cpu: Cpu, session: SpeSession) -> None:
    """State arm_spe_pmu_stop() with PERF_EF_UPDATE. A fault that is pending stays with this session's buffer."""
    if session.stopped == 1:
        return
    disable_and_drain_local(cpu)
    if session.handle_open == 1:
        if buf_get_fault_act(cpu, session) == FAULT_SPURIOUS:
            aux_output_end(cpu, session)
        else:
            spe.write(cpu.spu, PMBSR_EL1, 0)
    session.period_left = spe.read(cpu.spu, spe.EL2, PMSICR_EL1)
    session.stopped = 1


def irq_handler(host: Host, c: int) -> int:
    """State arm_spe_pmu_irq_handler(), PMBIRQ on CPU `c`. Return 1 where it was the driver's (IRQ_HANDLED).

    What the driver writes last is synchronized by the return from the interrupt.
    """
    cpu = host.cpus[c]
    if cpu.spe_session == NO_SESSION or host.spe_sessions[cpu.spe_session].handle_open == 0:
        return 0
    session = host.spe_sessions[cpu.spe_session]
    action = buf_get_fault_act(cpu, session)
    if action == FAULT_SPURIOUS:
        session.spurious += 1
        return 0
    session.interrupts += 1
    if action == FAULT_FATAL:
        disable_and_drain_local(cpu)
    elif session.aux_flags & AUX_TRUNCATED == 0:
        aux_output_begin(cpu, session)
        spe.isb(cpu.spu)
    spe.write(cpu.spu, PMBSR_EL1, 0)
    spe.isb(cpu.spu)
    if session.state == STATE_OFF:
        unschedule(host, c)
    return 1


# ---- sessions -----------------------------------------------------------------------------------------------


def sanitised_pmsirr(cpu: Cpu, period: int, jitter: int) -> int:
    """State arm_spe_event_to_pmsirr(): the period within what the unit takes, a multiple of 256."""
    period = max(period, MIN_INTERVAL[cpu.spu.filter.core.interval])
    return (min(period, 0xFFFF_FF00) & (0xFF_FFFF << PMSIRR_INTERVAL_SHIFT)) | jitter


def wants(host: Host, c: int, number: int) -> bool:
    """Tell whether a session is to be scheduled on CPU `c`: it is that CPU's, or its task's."""
    session = host.spe_sessions[number]
    if session.attached == 0 or session.state == STATE_OFF:
        return False
    if session.task == NO_TASK:
        return session.cpu == c
    return session.task == host.cpus[c].current


def schedule(host: Host, c: int) -> None:
    """Give the unit of CPU `c`, if it is free, to the first session that wants it (PERF_PMU_CAP_EXCLUSIVE)."""
    cpu = host.cpus[c]
    if host.spe_open == 0 or cpu.spe_session != NO_SESSION or cpu.spu.filter.core.pmsver == 0:
        return
    for number in range(len(host.spe_sessions)):
        if cpu.spe_session == NO_SESSION and wants(host, c, number):
            cpu.spe_session = number
            host.spe_sessions[number].state = STATE_ACTIVE
            start(cpu, host.spe_sessions[number])
            if host.spe_sessions[number].state == STATE_OFF:
                unschedule(host, c)


def unschedule(host: Host, c: int) -> None:
    """Take the unit of CPU `c` from the session that has it, if there is one (arm_spe_pmu_del())."""
    cpu = host.cpus[c]
    if cpu.spe_session == NO_SESSION:
        return
    session = host.spe_sessions[cpu.spe_session]
    stop(cpu, session)
    if session.state == STATE_ACTIVE:
        session.state = STATE_INACTIVE
    cpu.spe_session = NO_SESSION


def task_sched_in(host: Host, c: int) -> None:
    """A task has come to CPU `c`: its session, if it has one, comes with it."""
    schedule(host, c)


def task_sched_out(host: Host, c: int) -> None:
    """The task on CPU `c` leaves it, and so does a session that is for it."""
    cpu = host.cpus[c]
    if cpu.spe_session != NO_SESSION and host.spe_sessions[cpu.spe_session].task != NO_TASK:
        unschedule(host, c)


def open_session(host: Host, number: int) -> None:
    """Attach a session whose attributes are set, and schedule it where it can run now."""
    session = host.spe_sessions[number]
    session.attached = 1
    host.spe_open += 1
    session.state = STATE_INACTIVE
    session.stopped = 1
    for c in range(len(host.cpus)):
        if wants(host, c, number):
            schedule(host, c)


def close_session(host: Host, number: int) -> None:
    """Detach a session: all that it has is in its buffer."""
    for c in range(len(host.cpus)):
        if host.cpus[c].spe_session == number:
            unschedule(host, c)
    host.spe_sessions[number].attached = 0
    host.spe_open -= 1
    for c in range(len(host.cpus)):
        schedule(host, c)
