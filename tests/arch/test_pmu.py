"""PMUv3 by hand counts and by the Arm ARM's pages."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from arch.support import (
    CYCLE,
    INSTRUCTION,
    MASK64,
    P0,
    P1,
    P4,
    P5,
    P7,
    P9,
    make_pe,
    randomize,
)
from pmuvisor.arch import pmu, sysreg, traps, unpredictable
from pmuvisor.arch.pmu import Pe

SW_INCR, INST_RETIRED, CHAIN = 0x00, 0x08, 0x1E
E, D, DP, LC, LP, FZO = 1, 1 << 3, 1 << 5, 1 << 6, 1 << 7, 1 << 9
HPME, HPMD, HCCD, HLP, HPMFZO = 1 << 7, 1 << 17, 1 << 23, 1 << 26, 1 << 29
P, U, NSK, NSU, NSH = 1 << 31, 1 << 30, 1 << 29, 1 << 28, 1 << 27
EL0, EL1, EL2 = 0, 1, 2


def counting(n: int = 6, pmuver: int = P5, *, hpmn: int | None = None, **core: int) -> Pe:
    """Return a PE whose counters are all enabled, in both ranges, and count INST_RETIRED at every Exception level."""
    pe = make_pe(n, pmuver, hpmn=hpmn, **core)
    pe.pmcr |= E
    pe.mdcr_el2 |= HPME
    pe.cnten = ((1 << n) - 1) | CYCLE | (pe.core.icntr << 32)
    pe.ccfiltr = NSH
    pe.icfiltr = NSH * pe.core.icntr
    for i in range(n):
        pe.evtyper[i] = INST_RETIRED | NSH
    return pe


# ---- ranges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "hpmn", "hpmn0", "first", "second"),
    [
        (6, 6, 1, 0b111111, 0),
        (6, 4, 1, 0b001111, 0b110000),
        (6, 1, 0, 0b000001, 0b111110),
        (6, 0, 1, 0b000000, 0b111111),
        (6, 0, 0, 0b111111, 0),  # chosen: behaves as N
        (6, 7, 1, 0b111111, 0),
        (6, 31, 1, 0b111111, 0),
        (31, 30, 1, 0x3FFF_FFFF, 0x4000_0000),
        (31, 31, 1, 0x7FFF_FFFF, 0),
        (0, 0, 1, 0, 0),
    ],
)
def test_hpmn_divides_the_event_counters(n: int, hpmn: int, hpmn0: int, first: int, second: int) -> None:
    pe = make_pe(n, hpmn=hpmn, hpmn0=hpmn0)
    assert pmu.first_range(pe) == first | CYCLE
    assert pmu.second_range(pe) == second


def test_the_instruction_counter_goes_with_the_first_range() -> None:
    assert pmu.first_range(make_pe(6, P9, hpmn=2, icntr=1)) == 0b11 | CYCLE | INSTRUCTION
    assert pmu.second_range(make_pe(6, P9, hpmn=2, icntr=1)) == 0b111100


@pytest.mark.parametrize(
    ("hpmn", "hpmn0", "reported"), [(6, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (7, 1, 1), (31, 1, 1)]
)
def test_an_hpmn_that_is_not_legal_is_reported_when_a_read_depends_on_it(hpmn: int, hpmn0: int, reported: int) -> None:
    pe = make_pe(6, hpmn=hpmn, hpmn0=hpmn0)
    assert traps.access(pe, EL1, sysreg.PMCNTENSET_EL0, 0) == traps.ALLOWED
    pmu.read(pe, EL1, sysreg.PMCNTENSET_EL0)
    assert pe.unpredictable == reported * unpredictable.UNPREDICTABLE_HPMN


# ---- what counts ---------------------------------------------------------------------------------------------


def test_e_enables_the_first_range_and_hpme_the_second() -> None:
    pe = counting(6, P9, hpmn=4, icntr=1)
    both = 0b111111 | CYCLE | INSTRUCTION
    assert pmu.count_pmu_events(pe, EL1) == both
    pe.pmcr &= ~E
    assert pmu.count_pmu_events(pe, EL1) == 0b110000
    pe.pmcr |= E
    pe.mdcr_el2 &= ~HPME
    assert pmu.count_pmu_events(pe, EL1) == 0b001111 | CYCLE | INSTRUCTION
    pe.cnten = 0b0101
    assert pmu.count_pmu_events(pe, EL1) == 0b0101


def test_hpmd_prohibits_the_first_range_at_el2_from_p1() -> None:
    for pmuver, at_el2 in ((P0, 0b111111 | CYCLE), (P1, 0b110000 | CYCLE), (P7, 0b110000 | CYCLE)):
        pe = counting(6, pmuver, hpmn=4)
        pe.mdcr_el2 |= HPMD
        assert pmu.count_pmu_events(pe, EL2) == at_el2
        assert pmu.count_pmu_events(pe, EL1) == 0b111111 | CYCLE


def test_dp_extends_the_prohibition_to_the_cycle_counter() -> None:
    pe = counting(6, P1, hpmn=4)
    pe.pmcr |= DP
    assert pmu.count_pmu_events(pe, EL2) == 0b111111 | CYCLE
    pe.mdcr_el2 |= HPMD
    assert pmu.count_pmu_events(pe, EL2) == 0b110000
    pe.core.pmuver = P0
    assert pmu.count_pmu_events(pe, EL2) == 0b111111 | CYCLE


def test_hccd_stops_the_cycle_counter_at_el2_from_p5_whatever_dp() -> None:
    for pmuver, cycle in ((P4, CYCLE), (P5, 0)):
        pe = counting(2, pmuver)
        pe.mdcr_el2 |= HCCD
        assert pmu.count_pmu_events(pe, EL2) == 0b11 | cycle
        assert pmu.count_pmu_events(pe, EL1) == 0b11 | CYCLE


def test_hpmd_prohibits_the_instruction_counter_at_el2() -> None:
    pe = counting(2, P9, hpmn=1, icntr=1)
    pe.mdcr_el2 |= HPMD
    assert pmu.count_pmu_events(pe, EL2) == 0b10 | CYCLE


@pytest.mark.parametrize(("pmuver", "frozen"), [(P5, False), (P7, True)])
def test_fzo_freezes_the_first_range_on_an_overflow_in_it_from_p7(pmuver: int, frozen: bool) -> None:
    pe = counting(6, pmuver, hpmn=4)
    pe.pmcr |= FZO
    pe.ovs = 0b000010
    assert pmu.count_pmu_events(pe, EL1) == (0b110000 if frozen else 0b111111) | CYCLE
    pe.ovs = 0b010000
    assert pmu.count_pmu_events(pe, EL1) == 0b111111 | CYCLE


def test_hpmfzo_freezes_the_second_range_on_an_overflow_in_it() -> None:
    pe = counting(6, P7, hpmn=4)
    pe.mdcr_el2 |= HPMFZO
    pe.ovs = 0b010000
    assert pmu.count_pmu_events(pe, EL1) == 0b001111 | CYCLE
    pe.ovs = 0b000010
    assert pmu.count_pmu_events(pe, EL1) == 0b111111 | CYCLE


def test_a_cycle_counter_overflow_freezes_nothing_and_an_instruction_counter_overflow_does() -> None:
    pe = counting(2, P9, icntr=1)
    pe.pmcr |= FZO
    pe.ovs = CYCLE
    assert pmu.count_pmu_events(pe, EL1) == 0b11 | CYCLE | INSTRUCTION
    pe.ovs = INSTRUCTION
    assert pmu.count_pmu_events(pe, EL1) == CYCLE


def test_a_freeze_reaches_the_cycle_counter_only_with_dp() -> None:
    pe = counting(2, P7)
    pe.pmcr |= FZO | DP
    pe.ovs = 0b01
    assert pmu.count_pmu_events(pe, EL1) == 0


@pytest.mark.parametrize(
    ("bits", "with_el3", "without_el3"),
    [
        # For each Exception level 0, 1, 2: does it count in Non-secure state?
        (0, (1, 1, 0), (1, 1, 0)),
        (NSH, (1, 1, 1), (1, 1, 1)),
        (P, (1, 0, 0), (1, 0, 0)),
        (U, (0, 1, 0), (0, 1, 0)),
        (P | NSK, (1, 1, 0), (1, 0, 0)),
        (U | NSU, (1, 1, 0), (0, 1, 0)),
        (NSK, (1, 0, 0), (1, 1, 0)),
        (NSU, (0, 1, 0), (1, 1, 0)),
        (P | U | NSH, (0, 0, 1), (0, 0, 1)),
        (1 << 26 | 1 << 25 | 1 << 24, (1, 1, 0), (1, 1, 0)),  # M, MT and SH say nothing of Non-secure state
    ],
)
def test_filters_exclude_by_exception_level(bits: int, with_el3: tuple[int, ...], without_el3: tuple[int, ...]) -> None:
    for el3, expected in ((1, with_el3), (0, without_el3)):
        pe = counting(1, P9, icntr=1, el3=el3)
        pe.evtyper[0] = pe.ccfiltr = pe.icfiltr = bits
        for el in (EL0, EL1, EL2):
            everything = 0b1 | CYCLE | INSTRUCTION
            assert pmu.count_pmu_events(pe, el) == everything * expected[el], (el3, el)


# ---- overflow and CHAIN -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pmuver", "lp", "hlp", "value", "first", "second"),
    [
        # value + 1 in counter 0 (first range) and counter 2 (second): (new value, overflow)
        (P4, 1, 1, 0xFFFF_FFFF, (0, 1), (0, 1)),
        (P5, 0, 0, 0xFFFF_FFFF, (1 << 32, 1), (1 << 32, 1)),
        (P5, 1, 0, 0xFFFF_FFFF, (1 << 32, 0), (1 << 32, 1)),
        (P5, 0, 1, 0xFFFF_FFFF, (1 << 32, 1), (1 << 32, 0)),
        (P5, 1, 1, MASK64, (0, 1), (0, 1)),
        (P5, 0, 0, MASK64, (0, 1), (0, 1)),
        (P5, 1, 1, MASK64 - 1, (MASK64, 0), (MASK64, 0)),
        (P5, 0, 0, 0x1_0000_0000, (0x1_0000_0001, 0), (0x1_0000_0001, 0)),
        (P5, 0, 0, 0x7FFF_FFFF, (0x8000_0000, 0), (0x8000_0000, 0)),
        (P5, 1, 1, (1 << 63) - 1, (1 << 63, 0), (1 << 63, 0)),
    ],
)
def test_overflow_is_at_32_bits_or_at_64_by_lp_and_hlp(
    pmuver: int, lp: int, hlp: int, value: int, first: tuple[int, int], second: tuple[int, int]
) -> None:
    pe = counting(3, pmuver, hpmn=2)
    pe.pmcr |= LP * lp
    pe.mdcr_el2 |= HLP * hlp
    pe.evcntr[0] = pe.evcntr[2] = value
    pmu.pmu_event(pe, EL1, INST_RETIRED, 1)
    assert (pe.evcntr[0], pe.ovs & 1) == first
    assert (pe.evcntr[2], pe.ovs >> 2 & 1) == second


def chained(n: int = 4, pmuver: int = P5, *, hpmn: int | None = None) -> Pe:
    pe = counting(n, pmuver, hpmn=hpmn)
    for odd in range(1, n, 2):
        pe.evtyper[odd] = CHAIN | NSH
    return pe


def test_an_even_counter_that_overflows_feeds_its_odd_neighbour() -> None:
    pe = chained()
    pe.evcntr[2] = 0xFFFF_FFFF
    pmu.pmu_event(pe, EL1, INST_RETIRED, 1)
    assert list(pe.evcntr) == [1, 0, 1 << 32, 1]
    assert pe.ovs == 0b0100


def test_a_bulk_amount_feeds_one_chain_event_for_each_wrap() -> None:
    pe = chained(2, P4)
    pe.evcntr[0] = 0xFFFF_FFF0
    pmu.pmu_event(pe, EL1, INST_RETIRED, 0x5_0000_0010)
    assert list(pe.evcntr) == [0, 6]  # one wrap for the first 0x10, then five more
    assert pe.ovs == 0b01


def test_many_wraps_feed_no_counter_that_does_not_count_chain() -> None:
    pe = chained(4, P4)
    pe.evtyper[1] = SW_INCR
    pmu.pmu_event(pe, EL1, INST_RETIRED, 0x7_0000_0000)
    assert list(pe.evcntr) == [0, 0, 0, 7]


def test_a_chain_that_overflows_the_odd_counter_stops_there() -> None:
    pe = chained(3, P4)
    pe.evtyper[2] = CHAIN | NSH
    pe.evcntr[0] = pe.evcntr[1] = 0xFFFF_FFFF
    pe.evcntr[2] = 5
    pmu.pmu_event(pe, EL1, INST_RETIRED, 1)
    assert list(pe.evcntr) == [0, 0, 5]
    assert pe.ovs == 0b011


def test_a_long_counter_makes_no_chain_event() -> None:
    pe = chained(2)
    pe.pmcr |= LP
    pe.evcntr[0] = MASK64
    pmu.pmu_event(pe, EL1, INST_RETIRED, 1)
    assert list(pe.evcntr) == [0, 0]
    assert pe.ovs == 0b01


def test_a_chain_event_obeys_the_odd_counters_own_enable_and_filter() -> None:
    for disable in (True, False):
        pe = chained(2)
        pe.evcntr[0] = 0xFFFF_FFFF
        if disable:
            pe.cnten &= ~0b10
        else:
            pe.evtyper[1] |= P
        pmu.pmu_event(pe, EL1, INST_RETIRED, 1)
        assert pe.evcntr[1] == 0


def test_the_last_counter_overflows_into_nothing() -> None:
    pe = chained(3)
    pe.evcntr[2] = 0xFFFF_FFFF
    pmu.pmu_event(pe, EL1, INST_RETIRED, 1)
    assert list(pe.evcntr) == [1, 0, 1 << 32]
    assert pe.ovs == 0b100


def test_a_chain_from_one_range_into_the_other_is_a_named_choice_and_not_counted() -> None:
    pe = chained(4, hpmn=3)
    pe.evcntr[0] = pe.evcntr[2] = 0xFFFF_FFFE
    pmu.pmu_event(pe, EL1, INST_RETIRED, 1)
    assert pe.unpredictable == 0
    pmu.pmu_event(pe, EL1, INST_RETIRED, 1)
    assert list(pe.evcntr) == [1 << 32, 1, 1 << 32, 0]
    assert pe.unpredictable == unpredictable.UNPREDICTABLE_CHAIN
    pe.evcntr[2] = 0xFFFF_FFFF
    pmu.pmu_event(pe, EL1, INST_RETIRED, 1)
    assert pe.unpredictable == unpredictable.UNPREDICTABLE_CHAIN  # as before


def test_a_chain_within_a_range_and_an_overflow_that_nobody_chains_are_no_choice() -> None:
    pe = chained(4, hpmn=3)
    pe.evcntr[0] = 0xFFFF_FFFF
    pmu.pmu_event(pe, EL1, INST_RETIRED, 1)
    assert (pe.evcntr[1], pe.unpredictable) == (1, 0)
    pe.evtyper[3] = INST_RETIRED
    pe.evcntr[2] = 0xFFFF_FFFF
    pmu.pmu_event(pe, EL1, INST_RETIRED, 1)
    assert (pe.ovs, pe.unpredictable) == (0b0101, 0)


# ---- the fixed counters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aarch32", "lc", "value", "overflow"),
    [
        (1, 0, 0xFFFF_FFFF, 1),
        (1, 0, 0xFFFF_FFFF_FFFF_FFFF, 1),
        (1, LC, 0xFFFF_FFFF, 0),
        (1, LC, 0xFFFF_FFFF_FFFF_FFFF, 1),
        (0, LC, 0xFFFF_FFFF, 0),  # LC is RES1 without AArch32
        (0, 0, 0xFFFF_FFFF, 0),
        (0, 0, 0xFFFF_FFFF_FFFF_FFFF, 1),
    ],
)
def test_the_cycle_counter_overflows_at_32_bits_only_if_lc_is_clear(
    aarch32: int, lc: int, value: int, overflow: int
) -> None:
    pe = counting(1, aarch32=aarch32)
    pmu.write(pe, EL1, sysreg.PMCR_EL0, E | lc)
    pe.ccntr = value
    pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, EL1), 1)
    assert pe.ccntr == (value + 1) % 2**64
    assert pe.ovs == overflow << 31


def test_d_counts_every_64th_cycle_and_remembers_the_rest() -> None:
    pe = counting(1)
    pmu.write(pe, EL1, sysreg.PMCR_EL0, E | D)
    seen = []
    for cycles in (63, 1, 64, 100, 28, 1000):  # sums: 63, 64, 128, 228, 256, 1256
        pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, EL1), cycles)
        seen.append(pe.ccntr)
    assert seen == [0, 1, 2, 3, 4, 19]


def test_d_is_ignored_where_lc_is_set_and_res0_without_aarch32() -> None:
    for aarch32, value in ((1, E | D | LC), (0, E | D)):
        pe = counting(1, aarch32=aarch32)
        pmu.write(pe, EL1, sysreg.PMCR_EL0, value)
        pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, EL1), 100)
        assert pe.ccntr == 100


def test_a_cycle_counter_that_does_not_count_keeps_its_divider() -> None:
    pe = counting(1)
    pmu.write(pe, EL1, sysreg.PMCR_EL0, E | D)
    pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, EL1), 63)
    pe.cnten = 0
    pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, EL1), 63)
    pe.cnten = CYCLE
    pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, EL1), 1)
    assert pe.ccntr == 1


def test_the_instruction_counter_overflows_at_64_bits_whatever_lp() -> None:
    pe = counting(1, P9, icntr=1)
    pe.icntr = 0xFFFF_FFFF
    pmu.pmu_event(pe, EL1, INST_RETIRED, 1)
    assert (pe.icntr, pe.ovs) == (1 << 32, 0)
    pe.icntr = MASK64 - 1
    pmu.pmu_event(pe, EL1, INST_RETIRED, 3)
    assert (pe.icntr, pe.ovs) == (1, INSTRUCTION)


def test_the_instruction_counter_counts_by_its_own_filter() -> None:
    pe = counting(1, P9, icntr=1)
    pe.icfiltr = U
    pmu.pmu_event(pe, EL0, INST_RETIRED, 5)
    pmu.pmu_event(pe, EL2, INST_RETIRED, 5)
    assert pe.icntr == 0
    pmu.pmu_event(pe, EL1, INST_RETIRED, 5)
    assert pe.icntr == 5


# ---- SW_INCR -------------------------------------------------------------------------------------------------------


def incrementing(hpmn: int = 2) -> Pe:
    pe = counting(4, hpmn=hpmn)
    for i in range(4):
        pe.evtyper[i] = SW_INCR | NSH
    return pe


def test_pmswinc_increments_the_counters_named_that_count_sw_incr() -> None:
    pe = incrementing(4)
    pe.evtyper[1] = INST_RETIRED
    pmu.write(pe, EL1, sysreg.PMSWINC_EL0, MASK64 & ~0b1000)
    assert list(pe.evcntr) == [1, 0, 1, 0]
    assert pe.ccntr == 0


def test_pmswinc_reaches_the_second_range_from_el2_only() -> None:
    for el, expected in ((EL0, [1, 1, 0, 0]), (EL1, [1, 1, 0, 0]), (EL2, [1, 1, 1, 1])):
        pe = incrementing()
        pmu.write(pe, el, sysreg.PMSWINC_EL0, 0xF)
        assert list(pe.evcntr) == expected


def test_pmswinc_needs_the_ranges_enable_and_obeys_the_filter() -> None:
    pe = incrementing()
    pe.pmcr &= ~E
    pmu.write(pe, EL2, sysreg.PMSWINC_EL0, 0xF)
    assert list(pe.evcntr) == [0, 0, 1, 1]
    pe.pmcr |= E
    pe.mdcr_el2 &= ~HPME
    pe.evtyper[0] |= U
    pmu.write(pe, EL0, sysreg.PMSWINC_EL0, 0xF)
    assert list(pe.evcntr) == [0, 1, 1, 1]


def test_pmswinc_overflows_and_chains() -> None:
    pe = incrementing(4)
    pe.evtyper[1] = CHAIN
    pe.evcntr[0] = 0xFFFF_FFFF
    pmu.write(pe, EL1, sysreg.PMSWINC_EL0, 0b01)
    assert list(pe.evcntr) == [1 << 32, 1, 0, 0]
    assert pe.ovs == 0b01


# ---- the interrupt ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overflowed", "enabled", "e", "hpme", "line"),
    [
        (0b0001, 0b0001, 1, 0, 1),
        (0b0001, 0b0001, 0, 1, 0),
        (0b0001, 0b0010, 1, 1, 0),
        (0b1000, 0b1000, 0, 1, 1),
        (0b1000, 0b1000, 1, 0, 0),
        (CYCLE, CYCLE, 1, 0, 1),
        (CYCLE, CYCLE, 0, 1, 0),
        (INSTRUCTION, INSTRUCTION, 1, 0, 1),
        (INSTRUCTION, INSTRUCTION, 0, 1, 0),
        (0, 0b1111, 1, 1, 0),
    ],
)
@pytest.mark.parametrize("cnten", [0, 0b1111 | CYCLE | INSTRUCTION])
def test_the_interrupt_line_needs_overflow_its_enable_and_the_ranges_enable_but_not_pmcnten(
    overflowed: int, enabled: int, e: int, hpme: int, line: int, cnten: int
) -> None:
    pe = make_pe(4, P9, hpmn=2, icntr=1)
    pe.pmcr |= e
    pe.mdcr_el2 |= hpme << 7
    pe.cnten, pe.ovs, pe.inten = cnten, overflowed, enabled
    assert pmu.check_for_pmu_overflow(pe) == line


# ---- registers -------------------------------------------------------------------------------------------------------


def test_pmcr_p_zeroes_the_first_range_from_el1_and_every_event_counter_from_el2() -> None:
    for el, expected in ((EL0, [0, 0, 7, 7]), (EL1, [0, 0, 7, 7]), (EL2, [0, 0, 0, 0])):
        pe = make_pe(4, P9, hpmn=2, icntr=1)
        for i in range(4):
            pe.evcntr[i] = 7
        pe.ccntr, pe.icntr, pe.ovs = 9, 9, 0b1111 | CYCLE | INSTRUCTION
        pmu.write(pe, el, sysreg.PMCR_EL0, 1 << 1)
        assert list(pe.evcntr) == expected
        assert (pe.ccntr, pe.icntr, pe.ovs) == (9, 9, 0b1111 | CYCLE | INSTRUCTION)


def test_pmcr_c_zeroes_the_cycle_counter_alone() -> None:
    pe = make_pe(2, P9, icntr=1)
    pe.evcntr[0], pe.ccntr, pe.icntr, pe.ovs = 7, MASK64, 9, CYCLE
    pmu.write(pe, EL1, sysreg.PMCR_EL0, 1 << 2)
    assert (pe.evcntr[0], pe.ccntr, pe.icntr, pe.ovs) == (7, 0, 9, CYCLE)
    assert pmu.read(pe, EL1, sysreg.PMCR_EL0) & 0b110 == 0


@pytest.mark.parametrize("tge", [0, 1])
def test_pmcr_n_reads_hpmn_from_el1_and_el0_and_n_from_el2(tge: int) -> None:
    pe = make_pe(6, hpmn=4, identity=0x4101)
    pe.tge = tge
    assert [pmu.read(pe, el, sysreg.PMCR_EL0) for el in (EL0, EL1, EL2)] == [0x4101_2000, 0x4101_2000, 0x4101_3000]


@pytest.mark.parametrize(
    ("pmuver", "aarch32", "reads"),
    [(P0, 1, 0x79), (P4, 1, 0x79), (P5, 1, 0xF9), (P7, 1, 0x2F9), (P0, 0, 0x71), (P5, 0, 0xF1), (P9, 0, 0x2F1)],
)
def test_pmcr_keeps_the_fields_of_its_version(pmuver: int, aarch32: int, reads: int) -> None:
    pe = make_pe(0, pmuver, aarch32=aarch32)
    pmu.write(pe, EL1, sysreg.PMCR_EL0, MASK64)
    assert pmu.read(pe, EL1, sysreg.PMCR_EL0) == reads
    pmu.write(pe, EL1, sysreg.PMCR_EL0, 0)
    assert pmu.read(pe, EL1, sysreg.PMCR_EL0) == (0 if aarch32 else 1 << 6)


@pytest.mark.parametrize(
    ("pmuver", "core", "evtyper", "ccfiltr"),
    [
        (P0, {"el3": 1, "sel2": 0, "mt": 0}, 0xFC00_03FF, 0xFC00_0000),
        (P1, {"el3": 1, "sel2": 0, "mt": 0}, 0xFC00_FFFF, 0xFC00_0000),
        (P5, {"el3": 1, "sel2": 1, "mt": 1}, 0xFF00_FFFF, 0xFD00_0000),
        (P5, {"el3": 0, "sel2": 0, "mt": 1}, 0xCA00_FFFF, 0xC800_0000),
        (P5, {"el3": 0, "sel2": 1, "mt": 0}, 0xC800_FFFF, 0xC800_0000),
    ],
)
def test_types_and_filters_keep_the_fields_of_the_core(
    pmuver: int, core: dict[str, int], evtyper: int, ccfiltr: int
) -> None:
    pe = make_pe(2, pmuver, icntr=1, **core)
    pe.hdfgwtr2_el2 = 1 << 3  # nPMICFILTR_EL0: not trapped
    for key in (sysreg.pmevtyper(1), sysreg.PMCCFILTR_EL0, sysreg.PMICFILTR_EL0):
        pmu.write(pe, EL1, key, MASK64)
    assert pmu.read(pe, EL1, sysreg.pmevtyper(1)) == evtyper
    assert pmu.read(pe, EL1, sysreg.PMCCFILTR_EL0) == ccfiltr
    assert pmu.read(pe, EL1, sysreg.PMICFILTR_EL0) == ccfiltr | 0x0008  # evtCount is read-only: INST_RETIRED


def test_counters_are_32_bits_wide_before_p5_but_the_cycle_counter_never_is() -> None:
    for pmuver, kept in ((P4, 0xFFFF_FFFF), (P5, MASK64)):
        pe = make_pe(1, pmuver)
        for key in (sysreg.pmevcntr(0), sysreg.PMCCNTR_EL0):
            pmu.write(pe, EL1, key, MASK64)
        assert pmu.read(pe, EL1, sysreg.pmevcntr(0)) == kept
        assert pmu.read(pe, EL1, sysreg.PMCCNTR_EL0) == MASK64


def test_small_registers_keep_their_bits() -> None:
    pe = make_pe(31, P9, pmmir=0x1234_5678, pmceid0=0x8000_0000_0002_0001, pmceid1=0x1)
    for key in (sysreg.PMSELR_EL0, sysreg.PMUSERENR_EL0):
        pmu.write(pe, EL1, key, MASK64)
    assert pmu.read(pe, EL1, sysreg.PMSELR_EL0) == 31
    assert pmu.read(pe, EL1, sysreg.PMUSERENR_EL0) == 0x5F
    assert pmu.read(pe, EL1, sysreg.PMMIR_EL1) == 0x1234_5678
    assert pmu.read(pe, EL1, sysreg.PMCEID0_EL0) == 0x8000_0000_0002_0001
    pe.core.pmuver = P0
    assert pmu.read(pe, EL1, sysreg.PMCEID0_EL0) == 0x0002_0001


def test_pmxev_reach_what_pmselr_selects() -> None:
    pe = make_pe(3)
    pe.selr = 2
    pmu.write(pe, EL1, sysreg.PMXEVCNTR_EL0, 11)
    pmu.write(pe, EL1, sysreg.PMXEVTYPER_EL0, P | 0x77)
    assert (list(pe.evcntr), list(pe.evtyper)) == ([0, 0, 11], [0, 0, P | 0x77])
    assert pmu.read(pe, EL1, sysreg.PMXEVCNTR_EL0) == 11
    assert pmu.read(pe, EL1, sysreg.PMXEVTYPER_EL0) == P | 0x77
    pe.selr = 31
    pmu.write(pe, EL1, sysreg.PMXEVTYPER_EL0, U | 0x77)
    assert pe.ccfiltr == U
    assert pmu.read(pe, EL1, sysreg.PMXEVTYPER_EL0) == U


PAIRS = [
    (sysreg.PMCNTENSET_EL0, sysreg.PMCNTENCLR_EL0, "cnten"),
    (sysreg.PMINTENSET_EL1, sysreg.PMINTENCLR_EL1, "inten"),
    (sysreg.PMOVSSET_EL0, sysreg.PMOVSCLR_EL0, "ovs"),
]


@pytest.mark.parametrize(("set_key", "clear_key", "field"), PAIRS)
def test_set_and_clear_registers_show_and_change_what_the_level_can_reach(
    set_key: int, clear_key: int, field: str
) -> None:
    first, everything = 0b0011 | CYCLE, 0b1111 | CYCLE
    for el, mask in ((EL0, first), (EL1, first | INSTRUCTION), (EL2, everything | INSTRUCTION)):
        pe = make_pe(4, P9, hpmn=2, icntr=1)
        pe.hdfgrtr2_el2 = pe.hdfgwtr2_el2 = 1 << 3  # nPMICFILTR_EL0: not trapped
        pmu.write(pe, el, set_key, MASK64)
        assert getattr(pe, field) == mask
        setattr(pe, field, everything | INSTRUCTION)
        assert pmu.read(pe, el, set_key) == pmu.read(pe, el, clear_key) == mask
        pmu.write(pe, el, clear_key, MASK64)
        assert getattr(pe, field) == (everything | INSTRUCTION) & ~mask


def test_a_trapped_instruction_counter_hides_its_bits_from_the_mask_registers() -> None:
    pe = make_pe(1, P9, icntr=1)
    pe.cnten = INSTRUCTION
    for read_open, write_open in ((0, 1), (1, 0)):
        pe.hdfgrtr2_el2, pe.hdfgwtr2_el2 = read_open << 3, write_open << 3
        assert pmu.read(pe, EL1, sysreg.PMCNTENSET_EL0) == INSTRUCTION * read_open
        pe.inten = 0
        pmu.write(pe, EL1, sysreg.PMINTENSET_EL1, MASK64)
        assert pe.inten == 0b1 | CYCLE | INSTRUCTION * write_open
    assert pmu.read(pe, EL2, sysreg.PMCNTENSET_EL0) == INSTRUCTION


def test_a_core_without_an_instruction_counter_has_no_bit_for_it() -> None:
    pe = make_pe(1, P9)
    pe.hdfgwtr2_el2 = 1 << 3
    pmu.write(pe, EL2, sysreg.PMCNTENSET_EL0, MASK64)
    assert pe.cnten == 0b1 | CYCLE


def test_reset_disables_everything_and_gives_el1_all_counters() -> None:
    pe = randomize(make_pe(6, P7, aarch32=0, hpmn0=0), random.Random(5))
    pmu.reset(pe)
    assert pmu.read(pe, EL1, sysreg.PMCR_EL0) == 6 << 11 | 1 << 6
    assert [pmu.read(pe, EL2, key) for key in (sysreg.PMCNTENSET_EL0, sysreg.PMINTENSET_EL1, sysreg.PMOVSSET_EL0)] == [
        0,
        0,
        0,
    ]
    assert pmu.read(pe, EL1, sysreg.PMUSERENR_EL0) == 0
    assert pe.mdcr_el2 == 6


# ---- what the architecture leaves open -------------------------------------------------------------------------------


def overflow_across_the_ranges(pe: Pe) -> None:
    pe.evcntr[2] = 0xFFFF_FFFF
    pmu.pmu_event(pe, EL1, INST_RETIRED, 1)


@pytest.mark.parametrize(
    ("pe", "act", "choice"),
    [
        (make_pe(4, hpmn=9), pmu.first_range, "HPMN"),
        (make_pe(4, fgt=0, fgt2=0), lambda pe: traps.access(pe, EL1, sysreg.pmevcntr(4), 0), "EVENT_COUNTER"),
        (make_pe(4, hpmn=2, fgt=0, fgt2=0), lambda pe: traps.access(pe, EL1, sysreg.pmevcntr(3), 0), "EVENT_COUNTER"),
        (chained(4, hpmn=3), overflow_across_the_ranges, "CHAIN"),
        (make_pe(4, fgt=0, fgt2=0), lambda pe: pmu.read(pe, EL1, sysreg.PMSELR_EL0), "SEL"),
        (make_pe(4), lambda pe: pmu.write(pe, EL1, sysreg.pmevtyper(0), 0x77), "EVENT"),
    ],
)
def test_a_choice_that_was_reached_is_remembered_beside_the_others(
    pe: Pe, act: Callable[[Pe], object], choice: str
) -> None:
    bit = getattr(unpredictable, f"UNPREDICTABLE_{choice}")
    pe.selr = 4
    for before in (0, bit, 0xFF):
        pe.unpredictable = before
        act(pe)
        assert pe.unpredictable == before | bit


def test_the_filters_of_a_common_event_do_not_make_it_another() -> None:
    pe = make_pe(1)
    pmu.write(pe, EL1, sysreg.pmevtyper(0), INST_RETIRED | NSH | P)
    assert pe.unpredictable == 0


@pytest.mark.parametrize("value", [1, 1 << 31, 1 << 62, 1 << 63, (1 << 63) + 1, (1 << 64) - 1])
def test_nonzero_and_equal_see_every_one_of_64_bits(value: int) -> None:
    assert (pmu.nonzero(value), pmu.nonzero(0)) == (1, 0)
    assert (pmu.equal(value, value), pmu.equal(value, 0)) == (1, 0)
