"""The generic timers, held to the architecture's description of them."""

from hypothesis import given
from hypothesis import strategies as st

from pmuvisor.board.timer import ArchTimer


def register(crm: int, op2: int) -> int:
    return 3 << 14 | 3 << 11 | 14 << 7 | crm << 3 | op2


CNTFRQ, CNTPCT, CNTVCT = (register(0, n) for n in range(3))
P_TVAL, P_CTL, P_CVAL = (register(2, n) for n in range(3))
V_TVAL, V_CTL, V_CVAL = (register(3, n) for n in range(3))
ENABLE, IMASK, ISTATUS = 1, 2, 4
TOP = 2**64 - 1


def armed(compare: int, control: int = ENABLE) -> ArchTimer:
    timer = ArchTimer(1)
    timer.write(0, V_CVAL, compare, 0)
    timer.write(0, V_CTL, control, 0)
    return timer


def test_the_line_goes_up_at_the_compare_value_and_stays() -> None:
    timer = armed(1000)
    assert [timer.virtual_level(0, now) for now in (0, 999, 1000, 1001, 10**12)] == [False, False, True, True, True]
    assert not timer.physical_level(0, 1000)


def test_status_shows_even_if_masked() -> None:
    timer = armed(1000, ENABLE | IMASK)
    assert timer.read(0, V_CTL, 999) == ENABLE | IMASK
    assert timer.read(0, V_CTL, 1000) == ENABLE | IMASK | ISTATUS
    assert not timer.virtual_level(0, 1000)
    assert timer.next_deadline(0) is None


def test_a_disabled_timer_does_nothing() -> None:
    timer = armed(1000, 0)
    assert not timer.virtual_level(0, 2000)
    assert timer.read(0, V_CTL, 2000) == 0
    assert timer.next_deadline(0) is None


def test_status_cannot_be_written() -> None:
    timer = armed(1000, TOP)
    assert timer.read(0, V_CTL, 0) == ENABLE | IMASK


def test_timer_value_is_a_signed_32_bit_view_of_the_distance() -> None:
    timer = ArchTimer(1)
    timer.write(0, P_TVAL, 0x10, 1000)
    assert timer.read(0, P_CVAL, 0) == 1016
    assert timer.read(0, P_TVAL, 1010) == 6
    assert timer.read(0, P_TVAL, 1020) == 0xFFFF_FFFC
    timer.write(0, P_TVAL, 0xFFFF_FFFF, 1000)  # -1
    assert timer.read(0, P_CVAL, 0) == 999
    timer.write(0, P_TVAL, 0x1_0000_0005, 1000)  # only 32 bits count
    assert timer.read(0, P_CVAL, 0) == 1005


def test_compare_value_wraps_at_64_bits() -> None:
    timer = ArchTimer(1)
    timer.write(0, V_TVAL, 0x8000_0000, 0)  # -2**31 from zero
    assert timer.read(0, V_CVAL, 0) == 2**64 - 2**31
    timer.write(0, V_CVAL, 2**64 + 5, 0)
    assert timer.read(0, V_CVAL, 0) == 5


def test_a_compare_value_at_the_end_of_time_is_just_far_away() -> None:
    timer = armed(TOP)
    assert not timer.virtual_level(0, 10**18)
    assert timer.next_deadline(10**18) == TOP
    assert timer.virtual_level(0, TOP)
    assert not timer.virtual_level(0, TOP + 1)  # the counter has wrapped to zero


def test_next_deadline_is_the_earliest_that_is_still_to_come() -> None:
    timer = ArchTimer(2)
    for cpu, control, compare, at in ((0, V_CTL, V_CVAL, 500), (0, P_CTL, P_CVAL, 300), (1, V_CTL, V_CVAL, 400)):
        timer.write(cpu, compare, at, 0)
        timer.write(cpu, control, ENABLE, 0)
    assert [timer.next_deadline(now) for now in (0, 299, 300, 400, 499, 500)] == [300, 300, 400, 500, 500, None]


def test_frequency_and_counters_are_read_only() -> None:
    timer = ArchTimer(1)
    assert timer.read(0, CNTFRQ, 0) == 62_500_000
    assert timer.read(0, CNTVCT, 77) == 77
    assert timer.read(0, CNTPCT, 2**64 + 3) == 3
    for key in (CNTFRQ, CNTVCT, CNTPCT):
        assert timer.write(0, key, 1, 0) is False


def test_other_registers_are_not_the_timers() -> None:
    timer = ArchTimer(1)
    for key in (register(1, 0), register(2, 3), register(3, 3), register(0, 3), register(0, 5), 0):
        assert timer.read(0, key, 0) is None
        assert timer.write(0, key, 0, 0) is False


def test_a_cpu_that_is_turned_on_again_finds_its_timers_disabled() -> None:
    timer = ArchTimer(2)
    for cpu in (0, 1):
        timer.write(cpu, V_CTL, ENABLE, 0)
        timer.write(cpu, P_CTL, ENABLE, 0)
    timer.reset_cpu(1)
    assert (timer.virtual_level(1, 5), timer.physical_level(1, 5)) == (False, False)
    assert (timer.virtual_level(0, 5), timer.physical_level(0, 5)) == (True, True)


@given(
    st.lists(
        st.tuples(st.sampled_from([P_TVAL, P_CTL, P_CVAL, V_TVAL, V_CTL, V_CVAL]), st.integers(0, TOP)), max_size=12
    ),
    st.integers(0, TOP),
)
def test_a_deadline_is_the_first_tick_at_which_a_line_goes_up(writes: list[tuple[int, int]], now: int) -> None:
    timer = ArchTimer(1)
    for key, value in writes:
        assert timer.write(0, key, value, now)
        result = timer.read(0, key, now)
        assert result is not None
        assert 0 <= result <= TOP

    def lines(tick: int) -> tuple[bool, bool]:
        return timer.virtual_level(0, tick), timer.physical_level(0, tick)

    deadline = timer.next_deadline(now)
    if deadline is None:
        assert lines(TOP) == lines(now)
    else:
        assert now < deadline <= TOP
        assert lines(deadline - 1) == lines(now)
        assert lines(deadline) != lines(now)
