"""The profiling buffer: where records go, when it is full, what faults do, and when any of it can be seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arch.spe_support import (
    BASE,
    COLL,
    DL,
    E2SPE,
    EL0,
    EL1,
    EL2,
    FULL,
    PAGE,
    V1P1,
    E,
    S,
    enabled_spu,
    form,
    get,
    guest_spu,
    make_spu,
    put,
    synchronize,
)
from pmuvisor import records
from pmuvisor.arch import spe
from pmuvisor.arch.spe import Spu
from pmuvisor.arch.sysreg import BY_NAME

MASK64 = (1 << 64) - 1
STAGE1, STAGE2 = 0x24 << 26, 0x25 << 26
FAULTS = {"stage 1": (0x0F, STAGE1), "stage 2": (spe.STAGE2 | 0x07, STAGE2)}
ALIGNMENT = 0x21
TOP = MASK64 & ~0xFFF
"""The largest LIMIT there is."""


def write(spu: Spu, name: str, value: int) -> None:
    spe.write(spu, BY_NAME[name], value)


# ---- written, and full ----------------------------------------------------------------------------------------


def test_a_record_is_written_at_the_write_pointer_and_moves_it() -> None:
    spu = enabled_spu()
    spe.form_record(spu, 64, 0)
    spe.form_record(spu, 64, 0)
    synchronize(spu)
    assert (spu.nr_written, spu.written_to[:2], spu.written_at[:2]) == (2, [0, 0], [BASE, BASE + 64])
    assert get(spu, "PMBPTR") == BASE + 128
    assert get(spu, "PMBSR") == 0


def test_records_wait_in_the_unit_in_order_and_the_oldest_leaves_for_a_new_one() -> None:
    spu = enabled_spu(inflight=3, align=0)
    for size in (10, 20, 30):
        spe.form_record(spu, size, 0)
    assert (spu.nr_pending, spu.pointer) == (3, BASE)
    spe.form_record(spu, 40, 0)
    assert (spu.nr_pending, spu.pending[:3], spu.pointer) == (3, [20, 30, 40], BASE + 10)
    spe.psb_csync(spu)
    assert (spu.nr_pending, spu.pointer) == (0, BASE + 100)


@pytest.mark.parametrize("inflight", [1, 2, 5])
@pytest.mark.parametrize("room", [1, 2, 3, 64, 65])
def test_the_buffer_is_full_with_the_last_record_that_fits(inflight: int, room: int) -> None:
    spu = enabled_spu(first=2 * PAGE - room * 64, inflight=inflight)
    for n in range(room):
        assert spe.pmbirq(spu) == 0, n
        assert spe.statistical_profiling_enabled(spu, EL2, 1)
        form(spu)
    # All that waited has been written, and nothing more is sampled.
    assert spe.pmbirq(spu) == 1
    assert not spe.statistical_profiling_enabled(spu, EL2, 1)
    assert (spu.nr_pending, spu.written, spu.lost) == (0, room, 0)
    synchronize(spu)
    assert (get(spu, "PMBPTR"), get(spu, "PMBSR")) == (BASE + 2 * PAGE, FULL)


def test_a_buffer_has_to_have_room_for_a_record_of_the_largest_size() -> None:
    spu = enabled_spu(size=PAGE, first=PAGE - 100, align=0)
    form(spu, size=40)  # 60 bytes are left, and a record may have 64
    assert (spu.written, spe.pmbirq(spu)) == (1, 1)


@given(st.integers(0, MASK64), st.integers(0, MASK64), st.integers(4, 11))
def test_the_buffer_is_full_where_the_pointer_is_above_the_limit_less_a_record(at: int, limit: int, size: int) -> None:
    for pointer in (at, limit & TOP, (limit & TOP) - (1 << size) & MASK64, (limit & TOP) - (1 << size) + 1 & MASK64):
        spu = make_spu(max_size=size)
        spu.seen.pmblimitr = limit & TOP | E
        # SPEBufferIsFull(), in integers without a width
        assert spe.room_for_record(spu, pointer) == int(pointer <= (limit & TOP) - (1 << size))


@given(st.integers(0, MASK64), st.integers(0, MASK64))
def test_below_compares_without_sign(a: int, b: int) -> None:
    assert spe.below(a, b) == int(a < b)


@pytest.mark.parametrize(
    ("pointer", "limit"),
    [(BASE, BASE), (BASE + PAGE, BASE), (BASE, 0), (0, 0), (TOP - 64, 0), (TOP, PAGE), (TOP - 32, TOP), (TOP, TOP)],
)
def test_a_pointer_that_leaves_no_room_is_noted_writes_nothing_and_requires_service(pointer: int, limit: int) -> None:
    spu = make_spu()
    put(spu, PMBPTR=pointer, PMBLIMITR=limit | E, PMSCR_EL2=E2SPE)
    assert spe.records_to_service(spu) == 0
    form(spu)
    assert (spu.written, spu.nr_pending, spe.pmbirq(spu)) == (0, 0, 1)
    assert spu.unpredictable == spe.UNPREDICTABLE_POINTER
    synchronize(spu)
    assert (get(spu, "PMBPTR"), get(spu, "PMBSR")) == (pointer, FULL)


def test_a_buffer_can_be_at_the_top_of_the_address_space() -> None:
    spu = make_spu()
    put(spu, PMBPTR=TOP - 3 * 64, PMBLIMITR=TOP | E, PMSCR_EL2=E2SPE)
    assert spe.records_to_service(spu) == 3
    form(spu, 3)
    synchronize(spu)
    assert (get(spu, "PMBPTR"), get(spu, "PMBSR")) == (TOP, FULL)


@given(st.integers(0, 200), st.integers(1, 6), st.integers(0, 5))
def test_records_to_service_says_after_how_many_the_unit_requires_it(room: int, inflight: int, before: int) -> None:
    spu = enabled_spu(size=4 * PAGE, first=4 * PAGE - room * 64, inflight=inflight)
    form(spu, before)
    left = spe.records_to_service(spu) - spu.nr_pending if spe.profiling_buffer_enabled(spu) else 0
    assert left == max(0, room - before)
    for _ in range(left):
        assert spe.pmbirq(spu) == 0
        form(spu)
    assert spe.pmbirq(spu) == int(room > 0 or before > 0)


def test_in_discard_mode_nothing_is_written_and_service_is_never_required() -> None:
    spu = make_spu()
    put(spu, PMBPTR=BASE, PMBLIMITR=BASE | 4 | E, PMSCR_EL2=E2SPE)
    assert spe.records_to_service(spu) == spe.NEVER
    form(spu, 10)
    synchronize(spu)
    assert (spu.formed, spu.written, spu.nr_pending) == (10, 0, 0)
    assert (get(spu, "PMBPTR"), get(spu, "PMBSR")) == (BASE, 0)


def test_there_is_no_discard_mode_before_spev1p2() -> None:
    spu = make_spu(pmsver=V1P1, fne=0)
    put(spu, PMBPTR=BASE, PMBLIMITR=BASE + PAGE | 4 | E, PMSCR_EL2=E2SPE)
    form(spu)
    synchronize(spu)
    assert get(spu, "PMBPTR") == BASE + 64


@given(st.integers(0, 300), st.integers(1, 4), st.sampled_from([64, 32]))
def test_many_records_written_through_are_as_many_formed_and_written(many: int, inflight: int, size: int) -> None:
    one, all_at_once = (guest_spu(size=16 * PAGE, first=100 * 64, inflight=inflight, align=5) for _ in range(2))
    many = min(many, spe.records_to_service(one))
    for _ in range(many):
        spe.form_record(one, size, 1)
        one.fault_page = one.pointer >> 12
        spe.psb_csync(one)
        one.nr_written = 0
    spe.write_through(all_at_once, many, size)
    for name in ("pointer", "status", "initiated", "written", "formed", "nr_pending", "lost", "misplaced"):
        assert getattr(one, name) == getattr(all_at_once, name), name


# ---- faults ---------------------------------------------------------------------------------------------------


def test_a_pointer_that_is_not_aligned_is_a_stage_1_alignment_fault() -> None:
    spu = enabled_spu(first=32)
    form(spu)
    synchronize(spu)
    assert (get(spu, "PMBPTR"), get(spu, "PMBSR")) == (BASE + 32, S | STAGE1 | ALIGNMENT)
    assert spu.written == 0


@pytest.mark.parametrize("kind", FAULTS)
def test_a_page_that_is_not_mapped_is_a_fault_and_nothing_is_written(kind: str) -> None:
    fault, ec = FAULTS[kind]
    spu = guest_spu()
    spu.fault[0] = fault
    spe.form_record(spu, 64, 1)
    synchronize(spu)
    assert (get(spu, "PMBPTR"), get(spu, "PMBSR")) == (BASE, S | ec | fault & 0x3F)
    assert (spu.nr_written, spu.written_to[0], spu.written, spu.lost) == (1, spe.LOST, 0, 0)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_record_that_goes_on_in_a_page_that_is_not_mapped_is_partly_written(kind: str) -> None:
    fault, ec = FAULTS[kind]
    spu = guest_spu(first=PAGE - 20, align=0)
    spu.fault[1] = fault
    form(spu, size=57, source=1)
    synchronize(spu)
    # The pointer is where the write faulted, and DL says that the record before it is not whole.
    assert (get(spu, "PMBPTR"), get(spu, "PMBSR")) == (BASE + PAGE, S | DL | ec | fault & 0x3F)
    assert spu.written == 0


def test_a_record_that_ends_with_its_page_does_not_touch_the_next() -> None:
    spu = guest_spu(first=PAGE - 57, align=0)
    spu.fault[1] = 7
    form(spu, size=57, source=1)
    spe.psb_csync(spu)
    assert (spu.written, spe.pmbirq(spu)) == (1, 0)
    spu.fault_page += 1
    spu.fault[0] = 7
    form(spu, size=57, source=1)
    synchronize(spu)
    assert get(spu, "PMBSR") == S | STAGE1 | 7


def test_only_two_pages_are_known_and_any_other_is_not_mapped() -> None:
    spu = guest_spu()
    spu.fault_page -= 2
    form(spu)
    synchronize(spu)
    assert get(spu, "PMBSR") == S | STAGE1 | 7


def test_the_hosts_buffer_is_always_mapped() -> None:
    spu = enabled_spu()
    spu.fault[0] = spu.fault[1] = 7
    form(spu)
    synchronize(spu)
    assert (spu.written, get(spu, "PMBSR")) == (1, 0)


def test_the_first_event_is_kept_and_what_was_sampled_after_it_is_not_written() -> None:
    spu = guest_spu(inflight=3)
    for _ in range(3):
        spe.form_record(spu, 64, 1)
    spu.fault[0] = 7
    spe.initiate(spu)
    spu.fault[0] = 0
    synchronize(spu)
    assert spu.written_to[:3] == [spe.LOST] * 3
    assert (get(spu, "PMBPTR"), get(spu, "PMBSR")) == (BASE, S | STAGE1 | 7)
    spe.management_event(spu, 0, 1)
    spe.isb(spu)
    assert get(spu, "PMBSR") == S | STAGE1 | 7
    # Service was required: that is no record lost for nothing.
    assert spu.lost == 0


def test_a_record_that_waits_when_the_buffer_is_disabled_is_lost() -> None:
    spu = enabled_spu()
    form(spu)
    put(spu, PMBLIMITR=0)
    synchronize(spu)
    assert (spu.lost, spu.written) == (1, 0)


def test_an_event_keeps_the_collision_flag() -> None:
    spu = enabled_spu(first=2 * PAGE - 64)
    put(spu, PMBSR=COLL)
    form(spu)
    synchronize(spu)
    assert get(spu, "PMBSR") == COLL | FULL


def test_a_record_in_another_owners_buffer_is_noted() -> None:
    spu = enabled_spu()
    form(spu, source=1)
    spe.psb_csync(spu)
    assert (spu.misplaced, spu.exposed) == (1, 0)
    spu = guest_spu()
    form(spu, source=1)
    spe.psb_csync(spu)
    assert (spu.misplaced, spu.exposed) == (0, 0)
    # The owner changes, the pointer does not.
    spe.write_mdcr_el2(spu, 0)
    spe.isb(spu)
    assert spu.exposed == 1


# ---- what can be seen when -------------------------------------------------------------------------------------

BARRIERS = ("psb_csync", "dsb", "isb")


def barrier(spu: Spu, name: str) -> None:
    {"psb_csync": spe.psb_csync, "dsb": spe.dsb, "isb": spe.isb}[name](spu)


@pytest.mark.parametrize("left_out", [None, *BARRIERS])
def test_what_the_unit_did_is_read_after_psb_dsb_and_isb_and_not_without_one(left_out: str | None) -> None:
    spu = enabled_spu(first=2 * PAGE - 64 * 3, inflight=4)
    form(spu, 2)
    for name in BARRIERS:
        if name != left_out:
            barrier(spu, name)
    expected = BASE + 2 * PAGE - 64 * (3 if left_out else 1)
    assert get(spu, "PMBPTR") == expected


@pytest.mark.parametrize("left_out", [None, "dsb", "isb"])
def test_an_event_is_read_after_dsb_and_isb_and_raises_its_interrupt_before(left_out: str | None) -> None:
    spu = enabled_spu(first=2 * PAGE - 64)
    form(spu)
    assert spe.pmbirq(spu) == 1
    for name in ("dsb", "isb"):
        if name != left_out:
            barrier(spu, name)
    assert get(spu, "PMBSR") == (0 if left_out else FULL)


def test_barriers_in_another_order_are_not_enough() -> None:
    spu = enabled_spu(inflight=4)
    form(spu)
    for name in ("isb", "dsb", "psb_csync"):
        barrier(spu, name)
    assert get(spu, "PMBPTR") == BASE


@pytest.mark.parametrize("how", ["isb", "take_effect"])
def test_a_write_of_pmblimitr_reaches_the_unit_at_an_isb_or_before(how: str) -> None:
    spu = enabled_spu()
    write(spu, "PMBLIMITR_EL1", 0)
    assert get(spu, "PMBLIMITR") == 0
    assert spe.statistical_profiling_enabled(spu, EL2, 1)
    spe.take_effect(spu, spe.SYNC_ALL & ~spe.SYNC_PMBLIMITR)
    assert spe.statistical_profiling_enabled(spu, EL2, 1)
    spe.isb(spu) if how == "isb" else spe.take_effect(spu, spe.SYNC_PMBLIMITR)
    assert not spe.statistical_profiling_enabled(spu, EL2, 1)


@pytest.mark.parametrize("how", ["isb", "take_effect"])
def test_a_write_of_pmscr_reaches_the_unit_at_an_isb_or_before(how: str) -> None:
    host, guest = enabled_spu(), guest_spu()
    for spu, name, el, tge, bit in (
        (host, "PMSCR_EL2", EL2, 1, spe.SYNC_PMSCR_EL2),
        (guest, "PMSCR_EL1", EL1, 0, spe.SYNC_PMSCR_EL1),
    ):
        write(spu, name, 0)
        spe.take_effect(spu, spe.SYNC_ALL & ~bit)
        assert spe.statistical_profiling_enabled(spu, el, tge)
        spe.isb(spu) if how == "isb" else spe.take_effect(spu, bit)
        assert not spe.statistical_profiling_enabled(spu, el, tge)


@pytest.mark.parametrize("how", ["isb", "take_effect"])
def test_a_write_of_pmbptr_reaches_the_unit_at_an_isb_or_before(how: str) -> None:
    spu = enabled_spu()
    write(spu, "PMBPTR_EL1", BASE + PAGE)
    assert get(spu, "PMBPTR") == BASE + PAGE
    form(spu)
    spe.psb_csync(spu)
    assert spu.written_at[0] == BASE
    spu.nr_written = 0
    spe.isb(spu) if how == "isb" else spe.take_effect(spu, spe.SYNC_PMBPTR)
    spe.form_record(spu, 64, 0)
    spe.psb_csync(spu)
    assert spu.written_at[0] == BASE + PAGE


@pytest.mark.parametrize("how", ["isb", "take_effect"])
def test_a_write_of_pmbsr_lets_pmbirq_fall_or_rise_at_an_isb_or_before(how: str) -> None:
    spu = enabled_spu()
    for value in (S, 0):
        write(spu, "PMBSR_EL1", value)
        assert get(spu, "PMBSR") == value
        assert spe.pmbirq(spu) == int(value == 0)
        spe.isb(spu) if how == "isb" else spe.take_effect(spu, spe.SYNC_PMBSR)
        assert spe.pmbirq(spu) == int(value != 0)


@pytest.mark.parametrize("how", ["isb", "take_effect"])
def test_a_write_of_e2pb_changes_the_owner_at_an_isb_or_before(how: str) -> None:
    spu = enabled_spu()
    spu.guest = 3
    spe.write_mdcr_el2(spu, 0b10 << 12)
    assert (spe.profiling_buffer_owner(spu), spe.buffer_regime(spu)) == (EL2, 0)
    spe.isb(spu) if how == "isb" else spe.take_effect(spu, spe.SYNC_E2PB)
    assert (spe.profiling_buffer_owner(spu), spe.buffer_regime(spu)) == (EL1, 3)


@given(st.integers(0, 63), st.integers(0, 63), st.integers(0, 63))
def test_taking_effect_in_pieces_is_taking_effect_at_once(first: int, second: int, rest: int) -> None:
    at_once, in_pieces = enabled_spu(), enabled_spu()
    for spu in (at_once, in_pieces):
        for name in ("PMSCR_EL1", "PMSCR_EL2", "PMBLIMITR_EL1", "PMBPTR_EL1", "PMBSR_EL1"):
            write(spu, name, 3 << 17 | 1)
        spe.write_mdcr_el2(spu, 3 << 12)
    for piece in (first, second, rest):
        spe.take_effect(in_pieces, piece)
    spe.take_effect(at_once, first | second | rest)
    at_once.exposed = in_pieces.exposed = 0  # in between the buffer may have been one regime's, the pointer another's
    assert records.key(in_pieces, {"inflight": 2}) == records.key(at_once, {"inflight": 2})


# ---- who is profiled -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tge", [0, 1])
@pytest.mark.parametrize("el", [EL0, EL1, EL2])
@pytest.mark.parametrize("e2pb", [0, 1, 2, 3])
def test_who_is_profiled_is_up_to_the_owner_and_the_levels_enable(e2pb: int, el: int, tge: int) -> None:
    for state in range(64):
        pmscr_el1, pmscr_el2, enable, service = state & 3, state >> 2 & 3, state >> 4 & 1, state >> 5
        spu = make_spu()
        spe.write_mdcr_el2(spu, e2pb << 12)
        put(spu, PMSCR=pmscr_el1, PMSCR_EL2=pmscr_el2, PMBLIMITR=BASE | enable, PMBSR=S * service)
        owner = EL1 if e2pb else EL2
        bit = {
            EL2: pmscr_el2 & 2,
            EL1: pmscr_el1 & 2,
            EL0: (pmscr_el2 if tge else pmscr_el1) & 1,
        }[el]
        expected = enable and not service and not owner < el and not (tge and owner == EL1) and bit
        assert spe.statistical_profiling_enabled(spu, el, tge) == bool(expected)


def test_what_a_record_has_of_context_address_and_time_is_up_to_both_levels() -> None:
    cx, pa, ts = 8, 16, 32
    for state in range(64):
        one, two = state & 7, state >> 3
        for e2pb in (0, 2):
            spu = make_spu()
            spe.write_mdcr_el2(spu, e2pb << 12)
            put(spu, PMSCR=one << 3, PMSCR_EL2=two << 3)
            one_has, two_has = one << 3, two << 3
            for el, tge in ((EL0, 0), (EL0, 1), (EL1, 0), (EL2, 1)):
                assert spe.collect_context_el1(spu, el, tge) == (one_has & cx != 0 and el != EL2 and not tge)
            assert spe.collect_context_el2(spu) == (two_has & cx != 0)
            assert spe.collect_physical_address(spu) == (two_has & pa != 0 and (e2pb == 0 or one_has & pa != 0))
            assert spe.collect_timestamp(spu) == ((one_has if e2pb else two_has) & ts != 0)
