"""What holds of the PMU in every state, on every core, for every value: properties, with Hypothesis.

What is expected is said by `reference`, counter by counter, and by tables of the fields that the manual's pages give
each register.
"""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from arch import reference
from arch.strategies import KEYS, LEVELS, VALUES, WRITES, pes
from arch.support import (
    MASK64,
    P1,
    P5,
    P9,
    evtyper_fields,
    filter_fields,
    make_pe,
    pmcr_fields,
    second_range_of,
    sizes_of,
    userenr_fields,
)
from pmuvisor import records
from pmuvisor.arch import pmu, traps
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import BY_NAME, PMU_KEYS, name_of

SW_INCR, INST_RETIRED, CPU_CYCLES = 0x00, 0x08, 0x11
E, FZO, DP = 1, 1 << 9, 1 << 5
HPME, HPMFZO = 1 << 7, 1 << 29
NSH = 1 << 27
EL0, EL1, EL2 = 0, 1, 2
READ, WRITE = 0, 1
RECENT = pes(pmuver=P9, icntr=1)
ALL = (*range(31), 31, 32)
"""Every counter that there can be."""


STATE = [field.name for field in records.fields(Pe) if field.role is not records.Role.LEDGER]


def changed(before: Pe, after: Pe) -> set[str]:
    """Return the names of the fields that differ, the ledger left out."""
    return {name for name in STATE if getattr(before, name) != getattr(after, name)}


def do_write(pe: Pe, el: int, key: int, value: int) -> bool:
    """Write as software does: the access is carried out where it is allowed. Return whether it was."""
    if traps.access(pe, el, key, WRITE) != traps.ALLOWED:
        return False
    pmu.write(pe, el, key, value)
    return True


def amount_of(pe: Pe, drawn: int, parts: int = 1) -> int:
    """Return an amount of which `parts` together are legal: at most 2**62, and at most the counter's mask."""
    return drawn % (min(1 << 62, pe.core.counter_mask) // parts + 1)


AMOUNTS = st.one_of(st.integers(0, 64), st.integers(0, 2**32 + 64), st.integers(0, MASK64))


# ---- set and clear -------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    set: int
    clear: int
    field: str


PAIRS = [
    Pair(BY_NAME["PMCNTENSET_EL0"], BY_NAME["PMCNTENCLR_EL0"], "cnten"),
    Pair(BY_NAME["PMINTENSET_EL1"], BY_NAME["PMINTENCLR_EL1"], "inten"),
    Pair(BY_NAME["PMOVSSET_EL0"], BY_NAME["PMOVSCLR_EL0"], "ovs"),
]


def after(pe: Pe, el: int, *writes: tuple[int, int]) -> Pe:
    """Return what a PE becomes when registers are written one after the other, all of them allowed."""
    done = records.copy(pe)
    for key, value in writes:
        pmu.write(done, el, key, value)
    return done


@settings(max_examples=200)
@given(st.one_of(pes(), RECENT), LEVELS, VALUES)
def test_a_set_and_its_clear_register_change_the_bits_named_that_the_level_can_change(
    pe: Pe, el: int, value: int
) -> None:
    mine = sum(1 << n for n in ALL if reference.lets_change(pe, el, n, value=False))
    for pair in PAIRS:
        before = getattr(pe, pair.field)
        for key, expected in ((pair.set, before | value & mine), (pair.clear, before & ~(value & mine))):
            done = after(pe, el, (key, value))
            assert getattr(done, pair.field) == expected
            assert changed(pe, done) <= {pair.field}


@settings(max_examples=200)
@given(st.one_of(pes(), RECENT), LEVELS)
def test_a_set_and_its_clear_register_read_alike(pe: Pe, el: int) -> None:
    shown = sum(1 << n for n in ALL if reference.shows(pe, el, n))
    for pair in PAIRS:
        expected = getattr(pe, pair.field) & shown
        assert pmu.read(pe, el, pair.set) == pmu.read(pe, el, pair.clear) == expected


@settings(max_examples=60)
@given(pes(), LEVELS, VALUES, VALUES)
def test_two_sets_or_two_clears_are_one_of_both_in_any_order(pe: Pe, el: int, a: int, b: int) -> None:
    for key in (key for pair in PAIRS for key in (pair.set, pair.clear)):
        at_once = after(pe, el, (key, a | b))
        assert after(pe, el, (key, a), (key, b)) == at_once
        assert after(pe, el, (key, b), (key, a)) == at_once


@settings(max_examples=60)
@given(pes(), LEVELS, VALUES, VALUES)
def test_a_set_and_a_clear_commute_but_for_the_bits_in_both_where_the_last_one_wins(
    pe: Pe, el: int, a: int, b: int
) -> None:
    both = sum(1 << n for n in ALL if reference.lets_change(pe, el, n, value=False)) & a & b
    for pair in PAIRS:
        set_last = after(pe, el, (pair.clear, b), (pair.set, a))
        clear_last = after(pe, el, (pair.set, a), (pair.clear, b))
        assert getattr(set_last, pair.field) ^ getattr(clear_last, pair.field) == both
        assert getattr(set_last, pair.field) & both == both
        rest = b & ~a
        assert after(pe, el, (pair.clear, rest), (pair.set, a)) == after(pe, el, (pair.set, a), (pair.clear, rest))


# ---- the second range ----------------------------------------------------------------------------------------


@settings(max_examples=120)
@given(pes(), WRITES)
def test_nothing_written_below_el2_changes_the_second_range(pe: Pe, writes: list[tuple[int, int, int]]) -> None:
    before = second_range_of(pe)
    for el, key, value in writes:
        do_write(pe, min(el, EL1), key, value)
        assert second_range_of(pe) == before, name_of(key)


@settings(max_examples=80)
@given(pes(), pes(), st.sampled_from([EL0, EL1]))
def test_nothing_read_below_el2_tells_of_the_second_range(pe: Pe, other: Pe, el: int) -> None:
    first = reference.first_range_size(pe)
    kept = (1 << pe.core.event_counters) - (1 << first)
    twin = records.copy(pe)
    for i in range(first, min(pe.core.event_counters, other.core.event_counters)):
        twin.evcntr[i] = other.evcntr[i] & 0xF
        twin.evtyper[i] = other.evtyper[i]
    for field in ("cnten", "inten", "ovs", "uacr"):
        setattr(twin, field, getattr(pe, field) & ~kept | getattr(other, field) & kept)
    for key in PMU_KEYS:
        where = traps.access(pe, el, key, READ)
        assert traps.access(twin, el, key, READ) == where
        if where == traps.ALLOWED:
            assert pmu.read(twin, el, key) == pmu.read(pe, el, key), name_of(key)


# ---- traps ---------------------------------------------------------------------------------------------------


@settings(max_examples=250)
@given(st.one_of(pes(), pes(pmuver=P9), RECENT))
def test_an_access_goes_where_the_registers_page_says(pe: Pe) -> None:
    for key in PMU_KEYS:
        for el in (EL0, EL1, EL2):
            for write in (READ, WRITE):
                expected = reference.where(pe, el, name_of(key), write)
                assert traps.access(pe, el, key, write) == expected, (name_of(key), el, write)


@settings(max_examples=60)
@given(pes())
def test_asking_where_an_access_goes_changes_nothing(pe: Pe) -> None:
    """So a trapped or UNDEFINED access changes nothing, whatever the register, the level and the state."""
    before = records.copy(pe)
    for key in (*PMU_KEYS, BY_NAME["MDCR_EL2"]):
        for el in (EL0, EL1, EL2):
            for write in (READ, WRITE):
                traps.access(pe, el, key, write)
        assert changed(before, pe) == set(), name_of(key)


@settings(max_examples=100)
@given(pes(), LEVELS, KEYS, VALUES)
def test_an_access_that_is_not_allowed_changes_nothing_and_a_read_never_does(
    pe: Pe, el: int, key: int, value: int
) -> None:
    before = records.copy(pe)
    allowed = do_write(pe, el, key, value)
    assert allowed or changed(before, pe) == set()
    before = records.copy(pe)
    if traps.access(pe, el, key, READ) == traps.ALLOWED:
        assert 0 <= pmu.read(pe, el, key) <= MASK64
    assert changed(before, pe) == set()


@settings(max_examples=60)
@given(pes())
def test_a_selected_counter_that_goes_through_is_there(pe: Pe) -> None:
    n = pe.core.event_counters
    for el in (EL0, EL1, EL2):
        if traps.access(pe, el, BY_NAME["PMXEVCNTR_EL0"], READ) == traps.ALLOWED:
            assert pe.selr < n
        if traps.access(pe, el, BY_NAME["PMXEVTYPER_EL0"], READ) == traps.ALLOWED:
            assert pe.selr < n or pe.selr == 31


# ---- PMCR_EL0.{P, C} -----------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(pes(), LEVELS, VALUES)
def test_pmcr_p_zeroes_the_event_counters_that_the_level_reaches_and_c_the_cycle_counter(
    pe: Pe, el: int, value: int
) -> None:
    if el == EL0:
        pe.userenr = 1  # with UEN, EL0 does not have PMCR_EL0
    pe = opened(pe, "PMCR_EL0")
    assert traps.access(pe, el, BY_NAME["PMCR_EL0"], WRITE) == traps.ALLOWED
    before = records.copy(pe)
    pmu.write(pe, el, BY_NAME["PMCR_EL0"], value)
    zeroed = pe.core.event_counters if el == EL2 else reference.first_range_size(before)
    if not value >> 1 & 1:
        zeroed = 0
    assert list(pe.evcntr) == [0] * zeroed + before.evcntr[zeroed:]
    assert pe.ccntr == (0 if value >> 2 & 1 else before.ccntr)
    assert changed(before, pe) <= {"evcntr", "ccntr", "pmcr"}
    assert pe.pmcr == before.pmcr & ~pmcr_fields(pe) | value & pmcr_fields(pe)


# ---- reset ---------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(pes())
def test_reset_gives_its_values_from_any_state_again_and_again_and_keeps_the_core(pe: Pe) -> None:
    core = records.copy(pe.core)
    expected = {
        "pmcr": 0 if core.aarch32 else 1 << 6,  # LC is RES1
        "mdcr_el2": core.event_counters,  # HPMN: all counters are EL1's
        "mdcr_el3": core.el3 << 7,  # EnPM2: what firmware leaves
        "scr_el3": core.el3 << 27 | core.el3 << 59,  # FGTEn and FGTEn2: likewise
    }
    tge = pe.tge
    for _ in range(2):
        pmu.reset(pe)
        assert records.copy(pe.core) == core
        assert pe.tge == tge  # HCR_EL2 is not the PMU's
        for leaf in records.leaves(Pe, sizes_of(pe)):
            if leaf.path[0] not in ("core", "tge", "unpredictable"):
                assert records.get(pe, leaf.path) == expected.get(str(leaf.path[0]), 0), leaf.path


# ---- every register's fields ---------------------------------------------------------------------------------

SETS = {BY_NAME[f"PM{name}_EL{el}"] for name, el in (("CNTENSET", 0), ("INTENSET", 1), ("OVSSET", 0))}
CLEARS = {BY_NAME[f"PM{name}_EL{el}"] for name, el in (("CNTENCLR", 0), ("INTENCLR", 1), ("OVSCLR", 0))}


def counter_bits(pe: Pe, counter: int) -> int:
    """Return the bits of a counter's value: 64, of event counters before PMUv3p5 32; fewer in a scaled model."""
    short = counter < 31 and pe.core.pmuver < P5
    return (1 << pe.core.half_bits * (1 if short else 2)) - 1


def fields_of(pe: Pe, el: int, name: str) -> tuple[int, int]:
    """Return the fields of a register that a write stores, and what its other bits read as."""
    counter = reference.counter_of(pe, name)
    if counter is not None and "CNTR" in name:
        return counter_bits(pe, counter), 0
    if counter is not None:
        if counter < 31:
            return evtyper_fields(pe, counter), 0
        return filter_fields(pe), INST_RETIRED if counter == 32 else 0
    reachable = pe.core.event_counters if el == EL2 else reference.first_range_size(pe)
    fixed = pe.core.identity << 16 | reachable << 11 | (0 if pe.core.aarch32 else 1 << 6)
    counters = ((1 << reachable) - 1) | 1 << 31 | pe.core.icntr << 32
    return {
        "PMCR_EL0": (pmcr_fields(pe), fixed),
        "PMSELR_EL0": (31, 0),
        "PMUSERENR_EL0": (userenr_fields(pe), 0),
        "PMUACR_EL1": (counters, 0),
    }[name]


def opened(pe: Pe, name: str) -> Pe:
    """Return the same PE with all traps of this register open."""
    done = records.copy(pe)
    done.mdcr_el2 &= ~(1 << 5 | 1 << 6)
    done.hdfgrtr_el2 = done.hdfgwtr_el2 = 0
    done.mdcr_el3 &= ~(1 << 6)
    if not reference.uen(pe):
        done.userenr |= 1
    done.userenr &= ~(1 << 6)
    if name in reference.FGT2:
        done.mdcr_el3 |= 1 << 7
        done.scr_el3 |= 1 << 59
        done.hdfgrtr2_el2 |= 1 << reference.FGT2[name]
        done.hdfgwtr2_el2 |= 1 << reference.FGT2[name]
    return done


@settings(max_examples=80)
@given(st.one_of(pes(), RECENT), VALUES)
def test_every_register_reads_as_written_in_its_fields_and_as_fixed_in_the_others(pe: Pe, value: int) -> None:
    for key in PMU_KEYS:
        name = name_of(key)
        for el in (EL0, EL1, EL2):
            this = opened(pe, name)
            allowed = reference.where(this, el, name, WRITE) == traps.ALLOWED
            # A trap that is open traps nothing: what is left at EL2 is what is not there.
            assert el < EL2 or allowed == reference.is_there(pe, el, name, WRITE)
            for written in (MASK64, 0, value) if allowed else ():
                check_register(records.copy(this), el, key, written)


def check_register(pe: Pe, el: int, key: int, value: int) -> None:
    """Hold what a register reads as after a write that is allowed to its page."""
    name = name_of(key)
    counter = reference.counter_of(pe, name)
    before = records.copy(pe)
    pmu.write(pe, el, key, value)
    if name in reference.WRITE_ONLY:
        zeroed = {n for n in ALL if value >> n & 1 and reference.lets_change(before, el, n, value=True)}
        if name == "PMZR_EL0":
            assert pe.evcntr == [0 if i in zeroed else old for i, old in enumerate(before.evcntr)]
            assert (pe.ccntr, pe.icntr) == (before.ccntr * (31 not in zeroed), before.icntr * (32 not in zeroed))
            assert changed(before, pe) <= {"evcntr", "ccntr", "icntr"}
        return
    if key in SETS | CLEARS:
        return  # of which the properties above say all
    stored, fixed = fields_of(before, el, name)
    if counter is not None and not reference.reaches(before, el, counter):
        assert pmu.read(pe, el, key) == 0, name
        assert changed(before, pe) == set(), name
    elif counter is not None and not reference.lets_change(before, el, counter, value="CNTR" in name):
        assert changed(before, pe) == set(), name
    else:
        assert pmu.read(pe, el, key) == value & stored | fixed, (name, el)


@settings(max_examples=40)
@given(pes(pmmir=0), st.integers(0, MASK64), st.integers(0, MASK64), st.integers(0, 0xFFF_FFFF))
def test_what_identifies_the_pmu_reads_as_the_core_has_it(pe: Pe, ceid0: int, ceid1: int, pmmir: int) -> None:
    pe.core.pmceid0, pe.core.pmceid1, pe.core.pmmir = ceid0, ceid1, pmmir
    upper = MASK64 if pe.core.pmuver >= P1 else 0xFFFF_FFFF
    for el in (EL0, EL1, EL2):
        assert pmu.read(pe, el, BY_NAME["PMCEID0_EL0"]) == ceid0 & upper
        assert pmu.read(pe, el, BY_NAME["PMCEID1_EL0"]) == ceid1 & upper
        assert pmu.read(pe, el, BY_NAME["PMMIR_EL1"]) == pmmir


@settings(max_examples=100)
@given(pes(), st.integers(0, MASK64), st.integers(0, MASK64), st.integers(0, 0x3F), st.integers(0, MASK64))
def test_an_event_is_implemented_where_its_bit_of_pmceid_says_so(
    pe: Pe, ceid0: int, ceid1: int, common: int, other: int
) -> None:
    pe.core.pmceid0, pe.core.pmceid1 = ceid0, ceid1
    bits = (ceid0 & 0xFFFF_FFFF) | (ceid1 & 0xFFFF_FFFF) << 32
    upper = ceid0 >> 32 | ceid1 >> 32 << 32
    assert pmu.is_implemented(pe, common) == bits >> common & 1
    assert pmu.is_implemented(pe, 0x4000 | common) == (upper >> common & 1 if pe.core.pmuver >= P1 else 0)
    if other & 0xBFC0:
        assert pmu.is_implemented(pe, other & 0xFFFF) == 0


# ---- legal states --------------------------------------------------------------------------------------------


def assert_legal(pe: Pe) -> None:
    """Hold every register to the fields that it has on this core."""
    records.check_widths(pe, sizes_of(pe))
    counters = sum(1 << n for n in reference.implemented(pe))
    assert pe.pmcr & ~pmcr_fields(pe) == (0 if pe.core.aarch32 else 1 << 6)
    assert (pe.cnten | pe.inten | pe.ovs) & ~counters == 0
    assert pe.uacr & ~(counters if pe.core.pmuver >= P9 else 0) == 0
    assert pe.userenr & ~userenr_fields(pe) == 0
    for n, (value, control) in enumerate(zip(pe.evcntr, pe.evtyper, strict=True)):
        assert value & ~counter_bits(pe, n) == 0
        assert control & ~evtyper_fields(pe, n) == 0
    assert pe.ccfiltr & ~filter_fields(pe) == 0
    assert pe.icfiltr & ~(filter_fields(pe) * pe.core.icntr) == 0
    assert pe.icntr == 0 or pe.core.icntr == 1


@settings(max_examples=120)
@given(pes(), WRITES, st.integers(0, MASK64), st.integers(0, 31))
def test_any_sequence_of_writes_and_events_leaves_a_legal_state_and_forgets_no_choice(
    pe: Pe, writes: list[tuple[int, int, int]], amounts: int, chosen: int
) -> None:
    assert_legal(pe)
    pe.unpredictable = chosen
    most = (1 << pe.core.counter_top - 1) - 1
    for turn, (el, key, value) in enumerate(writes):
        do_write(pe, el, key, value)
        pmu.read(pe, el, BY_NAME["PMSELR_EL0"])
        amount = amounts >> turn & most
        pmu.pmu_event(pe, el, INST_RETIRED, amount)
        pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, el), amount)
        assert_legal(pe)
        assert pe.unpredictable & chosen == chosen


# ---- what counts, and what it adds up to ---------------------------------------------------------------------


@settings(max_examples=200)
@given(pes())
def test_what_counts_and_interrupts_is_what_the_rules_say_counter_by_counter(pe: Pe) -> None:
    for el in (EL0, EL1, EL2):
        expected = sum(1 << n for n in reference.implemented(pe) if reference.counts(pe, el, n))
        assert pmu.count_pmu_events(pe, el) == expected
    assert pmu.check_for_pmu_overflow(pe) == reference.interrupts(pe)


@settings(max_examples=300)
@given(pes(), LEVELS, st.sampled_from([SW_INCR, INST_RETIRED, CPU_CYCLES]), AMOUNTS)
def test_events_add_and_overflow_as_unbounded_arithmetic_says(pe: Pe, el: int, event: int, drawn: int) -> None:
    amount = amount_of(pe, drawn)
    hits = {n for n in range(pe.core.event_counters) if pe.evtyper[n] & 0xFFFF == event}
    values, overflows = reference.after_event(pe, el, hits, amount)
    icntr, wrapped = reference.after_instructions(pe, el, amount * (event == INST_RETIRED))
    pmu.pmu_event(pe, el, event, amount)
    assert (list(pe.evcntr), pe.icntr, pe.ovs) == (values, icntr, overflows | wrapped)


@settings(max_examples=200)
@given(pes(), LEVELS, AMOUNTS)
def test_cycles_add_and_overflow_as_unbounded_arithmetic_says(pe: Pe, el: int, drawn: int) -> None:
    cycles = amount_of(pe, drawn)
    before = records.copy(pe)
    ccntr, divider, wrapped = reference.after_cycles(pe, el, cycles)
    pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, el), cycles)
    assert (pe.ccntr, pe.divider, pe.ovs) == (ccntr, divider, before.ovs | wrapped)
    assert changed(before, pe) <= {"ccntr", "divider", "ovs"}


@settings(max_examples=100)
@given(st.one_of(pes(), RECENT))
def test_a_counter_has_room_for_the_events_up_to_its_overflow(pe: Pe) -> None:
    values = {**dict(enumerate(pe.evcntr)), 31: pe.ccntr, 32: pe.icntr}
    for n in reference.implemented(pe):
        size = 1 << reference.overflow_width(pe, n)
        # 2**62 is the most that can be said.
        assert pmu.counter_room(pe, n) == min(size - values[n] % size, 1 << 62)


@settings(max_examples=250)
@given(st.one_of(pes(), RECENT), st.sampled_from([EL0, EL0, EL1, EL2]), VALUES)
def test_pmswinc_is_one_event_for_the_counters_named_that_the_level_reaches(pe: Pe, el: int, value: int) -> None:
    pe.pmcr, pe.mdcr_el2, pe.cnten = pe.pmcr | E, pe.mdcr_el2 | HPME, sum(1 << n for n in reference.implemented(pe))
    for n in range(0, pe.core.event_counters, 2):
        pe.evtyper[n] = SW_INCR | NSH
    # Without PMUSERENR_EL0.SW, UEN puts it under PMUACR_EL1.
    asks = el == EL0 and reference.uen(pe) and not pe.userenr >> 1 & 1
    reachable = pe.core.event_counters if el == EL2 else reference.first_range_size(pe)
    hits = {n for n in range(reachable) if value >> n & 1 and pe.evtyper[n] & 0xFFFF == SW_INCR}
    if asks:
        hits = {n for n in hits if pe.uacr >> n & 1}
    values, overflows = reference.after_event(pe, el, hits, 1)
    before = records.copy(pe)
    pmu.write(pe, el, BY_NAME["PMSWINC_EL0"], value)
    assert (list(pe.evcntr), pe.ovs) == (values, overflows)
    assert changed(before, pe) <= {"evcntr", "ovs"}


# ---- a then b ------------------------------------------------------------------------------------------------


def advance(pe: Pe, el: int, amount: int) -> Pe:
    """Return what a PE becomes when `amount` instructions and cycles pass."""
    done = records.copy(pe)
    counting = pmu.count_pmu_events(done, el)
    pmu.pmu_event(done, el, INST_RETIRED, amount)
    pmu.increment_cycle_counter(done, counting, amount)
    return done


@settings(max_examples=150)
@given(pes(), LEVELS, AMOUNTS, AMOUNTS)
def test_a_then_b_is_a_plus_b_where_nothing_freezes(pe: Pe, el: int, drawn_a: int, drawn_b: int) -> None:
    pe.pmcr &= ~FZO
    pe.mdcr_el2 &= ~HPMFZO
    a, b = amount_of(pe, drawn_a, 2), amount_of(pe, drawn_b, 2)
    assert changed(advance(advance(pe, el, a), el, b), advance(pe, el, a + b)) == set()


@settings(max_examples=100)
@given(pes(), LEVELS, AMOUNTS, AMOUNTS)
def test_a_then_b_is_a_plus_b_with_freezing_as_long_as_a_overflows_nothing(
    pe: Pe, el: int, drawn_a: int, drawn_b: int
) -> None:
    a, b = amount_of(pe, drawn_a, 2), amount_of(pe, drawn_b, 2)
    between = advance(pe, el, a)
    if between.ovs == pe.ovs:
        assert changed(advance(between, el, b), advance(pe, el, a + b)) == set()


@settings(max_examples=100)
@given(pes(pmuver=P9), LEVELS, AMOUNTS, st.integers(0, 3))
def test_what_a_freeze_has_stopped_keeps_its_value_and_the_rest_goes_on(
    pe: Pe, el: int, drawn: int, overflowed: int
) -> None:
    pe.pmcr |= FZO
    pe.mdcr_el2 |= HPMFZO
    first = reference.first_range_size(pe)
    # Nothing, the first range's first counter, the second's first, or both have overflowed.
    pe.ovs = (overflowed & 1 if first else 0) | ((overflowed >> 1) << first if first < pe.core.event_counters else 0)
    free = records.copy(pe)
    free.ovs = 0
    done, unfrozen = advance(pe, el, amount_of(pe, drawn)), advance(free, el, amount_of(pe, drawn))
    for n in range(pe.core.event_counters):
        frozen = bool(pe.ovs & ((1 << first) - 1)) if n < first else bool(pe.ovs >> first)
        assert done.evcntr[n] == (pe.evcntr if frozen else unfrozen.evcntr)[n]
    if overflowed & 1 and first:
        assert done.icntr == pe.icntr
        assert done.ccntr == (pe if pe.pmcr & DP else unfrozen).ccntr


def test_a_then_b_is_not_a_plus_b_where_a_overflow_freezes() -> None:
    pe = make_pe(2, P9, hpmn=1)
    pe.pmcr, pe.cnten = E | FZO, 0b11
    pe.mdcr_el2 |= HPME
    pe.evtyper[0] = pe.evtyper[1] = INST_RETIRED
    pe.evcntr[0] = 0xFFFF_FFFF
    # 1 instruction overflows counter 0, and the first range stops; the second does not.
    assert advance(advance(pe, EL1, 1), EL1, 5).evcntr == [1 << 32, 6]
    assert advance(pe, EL1, 6).evcntr == [(1 << 32) + 5, 6]
