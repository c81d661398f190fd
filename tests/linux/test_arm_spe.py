"""The SPE driver: which piece of its AUX buffer the unit gets, what an interrupt does, what starts and stops keep."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arch.spe_packets import decode
from kvm.machines import EL0, EL2
from kvm.spe_machine import AUX_BASE, AUX_SIZE, PAGE, SpeMachine
from pmuvisor import records
from pmuvisor.arch import spe
from pmuvisor.arch.sysreg import PMBLIMITR_EL1, PMBPTR_EL1, PMBSR_EL1, PMSICR_EL1
from pmuvisor.linux import arm_spe
from pmuvisor.linux.arm_spe import (
    AUX_COLLISION,
    AUX_PARTIAL,
    AUX_TRUNCATED,
    FAULT_FATAL,
    FAULT_OK,
    FAULT_SPURIOUS,
)
from pmuvisor.linux.host import NO_SESSION, NO_TASK, STATE_ACTIVE, STATE_INACTIVE, STATE_OFF, SpeSession

E, COLL, S, DL = 1, 1 << 16, 1 << 17, 1 << 19
STAGE1 = 0x24 << 26 | 7
RECORD = 64


# ---- pieces of the buffer ---------------------------------------------------------------------------------------


@dataclass
class Aux:
    """An AUX buffer as a tape without an end, of which the buffer is what lies at a position modulo its size.

    What arm_spe_pmu.c's comments promise: data that nobody has read is not clobbered, the reader is woken by the page
    boundary that follows its watermark, a piece has room for a record, and all that is skipped is padding.
    """

    size: int
    watermark: int
    head: int
    tail: int

    def __post_init__(self) -> None:
        self.free_to = self.tail + self.size - 1
        self.woken_at = self.head // self.watermark * self.watermark
        self.start = self.head
        self.truncated = False

    def skip_to(self, position: int) -> None:
        self.head = position
        if self.head - self.woken_at >= self.watermark:
            self.woken_at = self.head // self.watermark * self.watermark

    def piece_once(self) -> int | None:
        """Return up to where the unit may write, as a position; None where there is no room."""
        aligned = -(-self.head // RECORD) * RECORD
        if aligned != self.head:
            self.skip_to(min(aligned, self.free_to))
        if self.head < self.free_to:
            lap = (self.head // self.size + 1) * self.size
            limit = lap if self.free_to >= lap else self.free_to // PAGE * PAGE
            wakeup = self.woken_at + self.watermark
            if wakeup < min(self.free_to, lap):
                limit = min(limit, -(-wakeup // PAGE) * PAGE)
            if limit > self.head:
                return limit
            self.skip_to(self.free_to)
        self.truncated = True
        return None

    def piece(self) -> int | None:
        limit = self.piece_once()
        if limit is not None and limit - self.head < RECORD:
            self.skip_to(limit)
            limit = self.piece_once()
        return limit


@settings(max_examples=600)
@given(
    st.sampled_from([1, 2, 4, 16]),
    st.one_of(st.integers(1, 16 * PAGE), st.integers(1, 32).map(lambda n: n * PAGE // 2)),
    st.one_of(st.integers(0, 200_000), st.integers(0, 100).map(lambda n: n * PAGE - 32)),
    st.one_of(st.integers(0, 16 * PAGE), st.integers(0, 16).map(lambda n: n * PAGE)),
)
def test_the_next_piece_of_the_buffer_is_what_the_drivers_comments_say(
    pages: int, watermark: int, head: int, unread: int
) -> None:
    size = pages * PAGE
    assume(watermark <= size and unread <= head and unread < size - 1)
    aux = Aux(size, watermark, head, head - unread)
    s = SpeMachine(0, without_spe=1)
    session = records.new(SpeSession, checked=True)
    session.size, session.watermark, session.base = size, watermark, AUX_BASE
    session.aux_head, session.aux_tail, session.aux_wakeup = head, head - unread, head // watermark * watermark
    session.state = STATE_ACTIVE
    arm_spe.aux_output_begin(s.cpu, session)
    limit = aux.piece()
    assert session.aux_head == aux.head
    assert session.padded == aux.head - head
    assert (session.handle_open, session.truncated) == (int(limit is not None), int(aux.truncated))
    assert session.state == (STATE_OFF if aux.truncated else STATE_ACTIVE)
    pmblimitr = spe.read(s.spu, EL2, PMBLIMITR_EL1)
    assert pmblimitr & E == int(limit is not None)
    if limit is not None:
        assert spe.read(s.spu, EL2, PMBPTR_EL1) == AUX_BASE + aux.head % size
        assert pmblimitr & ~0xFFF == AUX_BASE + (limit - 1) % size + 1
        assert limit <= aux.free_to
        assert limit - aux.head >= RECORD


def test_a_buffer_without_room_stops_the_session_and_disables_it() -> None:
    s = SpeMachine(0, without_spe=1)
    s.profile(start=AUX_SIZE - 1, aux_tail=0)
    assert (s.session.state, s.session.stopped, s.session.handle_open) == (STATE_OFF, 1, 0)
    assert s.cpu.spe_session == NO_SESSION
    assert not spe.statistical_profiling_enabled(s.spu, EL2, 1)
    assert s.session.woken == 1


# ---- records -----------------------------------------------------------------------------------------------------


def serials(data: bytes) -> list[int]:
    return [record.pc >> 2 for record in decode(data)]


@pytest.mark.parametrize("start", [0, 7, PAGE - 40, PAGE - RECORD, AUX_SIZE - RECORD - 1, 5 * AUX_SIZE + 100])
@pytest.mark.parametrize("watermark", [PAGE, 3000, AUX_SIZE // 2])
def test_every_record_is_found_once_whatever_the_reader_is_woken_for(start: int, watermark: int) -> None:
    s = SpeMachine(0, random.Random(start), without_spe=1)
    s.profile(start=start, watermark=watermark)
    s.host_runs(700)
    s.stop_profiling()
    assert serials(bytes(s.host_stream)) == s.formed[0]
    assert len(s.formed[0]) == 700
    assert (s.session.truncated, s.session.spurious, s.spu.lost) == (0, 0, 0)
    assert s.session.aux_head - start == s.session.padded + 700 * RECORD


def test_what_was_read_is_what_was_written_up_to_aux_head_also_in_the_middle() -> None:
    s = SpeMachine(0, random.Random(2), without_spe=1)
    s.profile()
    s.host_runs(100)  # one page, and 36 records that are still the driver's
    assert s.session.aux_head == PAGE
    assert serials(bytes(s.host_stream)) == s.formed[0][:64]
    s.stop_profiling()
    assert serials(bytes(s.host_stream)) == s.formed[0]


def test_unread_data_is_not_written_over_and_the_event_that_loses_data_is_disabled() -> None:
    s = SpeMachine(0, random.Random(3), without_spe=1)
    s.prompt = False
    s.profile()
    for _ in range(1000):
        s.operate(0, EL2, 1 << 40)
        s.take_interrupts()
    # Of 4 pages one is never given away: with nothing read it ends above the last byte that is free.
    assert len(s.formed[0]) == 3 * PAGE // RECORD
    assert (s.session.state, s.session.truncated) == (STATE_OFF, 1)
    assert s.cpu.spe_session == NO_SESSION
    s.read_aux()
    assert serials(bytes(s.host_stream)) == s.formed[0]


# ---- the reader ----------------------------------------------------------------------------------------------


def test_the_reader_is_woken_for_each_watermark_that_is_passed() -> None:
    """rb_need_aux_wakeup() of kernel/events/ring_buffer.c: aux_wakeup is the last multiple of the watermark."""
    session = records.new(SpeSession)
    session.watermark, session.state, session.handle_open = PAGE, STATE_ACTIVE, 1
    for size, woken, wakeup in (
        (100, 0, 0),
        (PAGE - 100, 1, PAGE),
        (PAGE + 1, 2, 2 * PAGE),
        (100, 2, 2 * PAGE),
        (2 * PAGE, 3, 4 * PAGE),
    ):
        arm_spe.perf_aux_output_end(session, size)
        assert (session.woken, session.aux_wakeup, session.handle_open) == (woken, wakeup, 0)
    session.aux_flags = AUX_COLLISION
    arm_spe.perf_aux_output_end(session, 0)
    assert (session.woken, session.state, session.truncated) == (3, STATE_ACTIVE, 0)
    for times in (1, 2):
        session.aux_flags = AUX_TRUNCATED
        arm_spe.perf_aux_output_end(session, 0)
        assert (session.woken, session.state, session.truncated) == (3 + times, STATE_OFF, times)


def test_a_prompt_reader_reads_once_for_each_time_it_is_woken() -> None:
    s = SpeMachine(0, without_spe=1)
    session = s.session
    session.prompt, session.woken, session.noticed, session.aux_head, session.aux_tail = 0, 1, 0, 100, 0
    arm_spe.read_if_woken(s.host, NO_SESSION)
    arm_spe.read_if_woken(s.host, 0)
    assert (session.aux_tail, session.noticed) == (0, 0)
    session.prompt = 1
    arm_spe.read_if_woken(s.host, 0)
    assert (session.aux_tail, session.noticed) == (100, 1)
    session.aux_head = 200
    arm_spe.read_if_woken(s.host, 0)
    assert (session.aux_tail, session.noticed) == (100, 1)
    session.woken = 3
    arm_spe.read_if_woken(s.host, 0)
    assert (session.aux_tail, session.noticed) == (200, 3)


def test_where_the_reader_has_left_no_room_the_session_is_off_and_the_reader_woken() -> None:
    """perf_aux_output_begin() returns -EINVAL: errno-base.h has 22."""
    session = records.new(SpeSession)
    session.size, session.aux_flags, session.state = 2 * PAGE, AUX_COLLISION, STATE_ACTIVE
    session.aux_head = 2 * PAGE - 2
    assert arm_spe.perf_aux_output_begin(session) == 0
    assert (session.handle_size, session.handle_open, session.aux_flags) == (1, 1, 0)
    session.aux_head, session.handle_open = 2 * PAGE - 1, 0
    for times in (1, 2):
        assert arm_spe.perf_aux_output_begin(session) == -22
        assert (session.handle_size, session.handle_open, session.state, session.woken) == (0, 0, STATE_OFF, times)


# ---- interrupts --------------------------------------------------------------------------------------------------


def test_a_full_piece_goes_on_with_the_next() -> None:
    s = SpeMachine(0, without_spe=1)
    s.profile(start=PAGE - 2 * RECORD)
    for _ in range(2):
        assert spe.pmbirq(s.spu) == 0
        s.operate(0, EL2, 1 << 40)
    assert spe.pmbirq(s.spu) == 1
    assert arm_spe.irq_handler(s.host, 0) == 1
    assert spe.pmbirq(s.spu) == spe.read(s.spu, EL2, PMBSR_EL1) == 0
    assert spe.read(s.spu, EL2, PMBPTR_EL1) == AUX_BASE + PAGE
    assert spe.read(s.spu, EL2, PMBLIMITR_EL1) == AUX_BASE + 2 * PAGE | E
    assert spe.statistical_profiling_enabled(s.spu, EL2, 1)
    assert (s.session.interrupts, s.session.aux_head) == (1, PAGE)


@pytest.mark.parametrize(
    ("status", "flags", "state"),
    [(STAGE1, 0, STATE_ACTIVE), (STAGE1 | DL, AUX_TRUNCATED | AUX_PARTIAL, STATE_OFF)],
)
def test_a_fault_stops_profiling_and_what_was_written_before_it_is_the_readers(
    status: int, flags: int, state: int
) -> None:
    s = SpeMachine(0, without_spe=1)
    s.profile()
    for _ in range(5):
        s.operate(0, EL2, 1 << 40)
    spe.psb_csync(s.spu)
    s.deliver()
    spe.management_event(s.spu, status >> 26, status & 0xFFFFF)
    assert arm_spe.irq_handler(s.host, 0) == 1
    assert s.session.aux_flags == flags
    assert s.session.state == state
    assert spe.pmbirq(s.spu) == 0
    assert not spe.statistical_profiling_enabled(s.spu, EL2, 1)
    s.read_aux()
    assert serials(bytes(s.host_stream)) == s.formed[0]


@pytest.mark.parametrize(
    ("status", "before", "flags", "action"),
    [
        (0, 0, 0, FAULT_SPURIOUS),
        (DL | COLL | 1, 0, 0, FAULT_SPURIOUS),
        (S | 1, 0, 0, FAULT_OK),
        (S | 1 | DL, AUX_COLLISION, AUX_TRUNCATED | AUX_PARTIAL | AUX_COLLISION, FAULT_OK),
        (S | 1 | DL, AUX_PARTIAL, AUX_TRUNCATED | AUX_PARTIAL, FAULT_OK),
        (S | 1 | COLL, AUX_PARTIAL, AUX_COLLISION | AUX_PARTIAL, FAULT_OK),
        (S | 1 | COLL, AUX_COLLISION, AUX_COLLISION, FAULT_OK),
        (S | 2, 0, 0, FAULT_FATAL),
        (S | STAGE1, 0, 0, FAULT_FATAL),
        *((S | 1 | 1 << bit, 0, 0, FAULT_FATAL) for bit in range(26, 32)),
    ],
)
def test_what_an_interrupt_is_for_is_read_from_pmbsr(status: int, before: int, flags: int, action: int) -> None:
    """PMBSR_EL1 (Arm ARM): EC 0 with BSC 1 is a full buffer; only then does profiling go on."""
    s = SpeMachine(0, without_spe=1)
    s.profile()
    spe.write(s.spu, PMBSR_EL1, status)
    s.session.aux_flags = before
    assert arm_spe.buf_get_fault_act(s.cpu, s.session) == action
    assert (s.session.aux_flags, s.session.handle_open) == (flags, int(action == FAULT_SPURIOUS))


@pytest.mark.parametrize("profiling", [True, False])
def test_an_interrupt_without_an_event_is_spurious_and_changes_nothing(profiling: bool) -> None:
    s = SpeMachine(0, without_spe=1)
    if profiling:
        s.profile()
        s.operate(0, EL2, 1 << 40)
    assert arm_spe.irq_handler(s.host, 0) == 0
    s.deliver()
    assert s.session.spurious == int(profiling)
    assert s.session.interrupts == 0
    if profiling:
        s.host_runs(100)
        s.stop_profiling()
        assert serials(bytes(s.host_stream)) == s.formed[0]


def test_an_event_that_comes_while_a_session_stops_is_taken_with_it() -> None:
    s = SpeMachine(0, without_spe=1)
    s.profile(start=PAGE - RECORD)
    s.operate(0, EL2, 1 << 40)
    assert spe.pmbirq(s.spu) == 1
    arm_spe.unschedule(s.host, 0)
    spe.isb(s.spu)
    assert spe.pmbirq(s.spu) == 0
    assert arm_spe.irq_handler(s.host, 0) == 0
    s.read_aux()
    assert serials(bytes(s.host_stream)) == s.formed[0]


# ---- start and stop, and whose the unit is -----------------------------------------------------------------------


def test_an_interval_that_was_stopped_in_the_middle_goes_on() -> None:
    s = SpeMachine(0, without_spe=1)
    s.profile()
    s.operate(0, EL2, 1)
    s.operate(0, EL2, 300)
    left = spe.read(s.spu, EL2, PMSICR_EL1)
    assert left == 1024 - 300
    arm_spe.unschedule(s.host, 0)
    spe.write(s.spu, PMSICR_EL1, 5)
    arm_spe.schedule(s.host, 0)
    spe.isb(s.spu)
    assert spe.read(s.spu, EL2, PMSICR_EL1) == left


@pytest.mark.parametrize(("period", "pmsirr"), [(0, 1024), (1000, 1024), (1300, 1280), (1 << 40, 0xFFFF_FF00)])
def test_a_period_is_what_the_unit_can_do(period: int, pmsirr: int) -> None:
    s = SpeMachine(0, without_spe=1)  # PMSIDR_EL1.Interval is 4: 1,024 operations at least
    assert arm_spe.sanitised_pmsirr(s.cpu, period, 1) == pmsirr | 1


def session(s: SpeMachine, number: int, task: int) -> SpeSession:
    made = s.host.spe_sessions[number]
    made.task, made.cpu, made.pmscr, made.pmsirr, made.base, made.size = task, 0, 3, 1024, AUX_BASE, AUX_SIZE
    made.watermark = PAGE
    return made


def test_the_unit_is_one_sessions_at_a_time_and_the_next_ones_when_that_is_closed() -> None:
    s = SpeMachine(0, without_spe=1)
    first, second = session(s, 0, NO_TASK), session(s, 1, NO_TASK)
    arm_spe.open_session(s.host, 0)
    arm_spe.open_session(s.host, 1)
    assert (first.state, second.state, s.cpu.spe_session) == (STATE_ACTIVE, STATE_INACTIVE, 0)
    arm_spe.close_session(s.host, 0)
    spe.isb(s.spu)
    assert (second.state, s.cpu.spe_session) == (STATE_ACTIVE, 1)
    assert spe.statistical_profiling_enabled(s.spu, EL0, 1)
    arm_spe.close_session(s.host, 1)
    assert s.cpu.spe_session == NO_SESSION
    assert not spe.statistical_profiling_enabled(s.spu, EL0, 1)


def test_a_tasks_session_comes_and_goes_with_it() -> None:
    s = SpeMachine(0, without_spe=1)
    of_task = session(s, 0, 0)
    arm_spe.open_session(s.host, 0)
    assert (of_task.state, s.cpu.spe_session) == (STATE_INACTIVE, NO_SESSION)
    for _ in range(3):
        s.cpu.current = 0
        arm_spe.task_sched_in(s.host, 0)
        spe.isb(s.spu)
        assert of_task.state == STATE_ACTIVE
        assert s.operate(0, EL0, 1 << 40)
        arm_spe.task_sched_out(s.host, 0)
        s.deliver()
        s.cpu.current = NO_TASK
        assert (of_task.state, s.cpu.spe_session) == (STATE_INACTIVE, NO_SESSION)
        assert not s.operate(0, EL0, 1 << 40)
    s.read_aux()
    assert serials(bytes(s.host_stream)) == s.formed[0]
    assert len(s.formed[0]) == 3
