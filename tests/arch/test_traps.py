"""Where an access goes, held to tables taken from the Arm ARM's register pages."""

from __future__ import annotations

import pytest

from arch.support import MASK64, P1, P4, P5, P9, make_pe
from pmuvisor.arch import sysreg
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import BY_NAME, PMU_KEYS, name_of, pmevcntr, pmevtyper
from pmuvisor.arch.traps import ALLOWED, TRAP_EL1, TRAP_EL2, TRAP_EL3, UNDEFINED, access, is_pmu_register
from pmuvisor.arch.unpredictable import UNPREDICTABLE_EVENT_COUNTER

EL0, EL1, EL2 = 0, 1, 2
READ, WRITE = 0, 1
EN, SW, CR, ER = 1, 2, 4, 8
TPMCR, TPM = 1 << 5, 1 << 6


def keys(*names: str) -> list[int]:
    return [BY_NAME[name] for name in names]


def open_pe(n: int = 6, pmuver: int = P9, *, hpmn: int | None = None, **core: int) -> Pe:
    """Return a PE on which nothing traps and EL0 may do everything."""
    pe = make_pe(n, pmuver, hpmn=hpmn, icntr=1, **core)
    pe.userenr = EN
    pe.hdfgrtr2_el2 = pe.hdfgwtr2_el2 = MASK64
    return pe


def everywhere(pe: Pe, key: int) -> list[int]:
    """Return where reads at EL0, EL1, EL2 and writes at EL0, EL1, EL2 go."""
    return [access(pe, el, key, write) for write in (READ, WRITE) for el in (EL0, EL1, EL2)]


# ---- existence ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "reads", "writes"),
    [
        # whether the accessor exists at EL0, EL1 and EL2
        (("PMSWINC_EL0",), (0, 0, 0), (1, 1, 1)),
        (("PMCEID0_EL0", "PMCEID1_EL0"), (1, 1, 1), (0, 0, 0)),
        (("PMMIR_EL1",), (0, 1, 1), (0, 0, 0)),
        (("PMINTENSET_EL1", "PMINTENCLR_EL1"), (0, 1, 1), (0, 1, 1)),
        (("PMUSERENR_EL0",), (1, 1, 1), (0, 1, 1)),
        (
            ("PMCR_EL0", "PMCNTENSET_EL0", "PMCNTENCLR_EL0", "PMOVSSET_EL0", "PMOVSCLR_EL0", "PMSELR_EL0"),
            (1, 1, 1),
            (1, 1, 1),
        ),
        (
            ("PMCCNTR_EL0", "PMCCFILTR_EL0", "PMXEVCNTR_EL0", "PMXEVTYPER_EL0", "PMEVCNTR5_EL0", "PMEVTYPER5_EL0"),
            (1, 1, 1),
            (1, 1, 1),
        ),
    ],
)
def test_an_accessor_that_does_not_exist_is_undefined(
    names: tuple[str, ...], reads: tuple[int, ...], writes: tuple[int, ...]
) -> None:
    for key in keys(*names):
        expected = [ALLOWED if there else UNDEFINED for there in (*reads, *writes)]
        assert everywhere(open_pe(), key) == expected, name_of(key)


def test_every_named_pmu_register_is_one_and_no_other_is() -> None:
    assert {key for key in range(1 << 16) if is_pmu_register(key)} == set(PMU_KEYS)
    assert len(PMU_KEYS) == 31 + 31 + 15 + 2 + 4  # counters, types, EL0's others, the instruction counter's, EL1's


def test_pmmir_exists_from_p4_and_the_instruction_counter_with_its_feature() -> None:
    pe = make_pe(6, P1)
    assert access(pe, EL1, sysreg.PMMIR_EL1, READ) == UNDEFINED
    pe.core.pmuver = P4
    assert access(pe, EL1, sysreg.PMMIR_EL1, READ) == ALLOWED
    for key in (sysreg.PMICNTR_EL0, sysreg.PMICFILTR_EL0):
        assert everywhere(make_pe(6), key) == [UNDEFINED] * 6


def test_a_register_of_another_unit_is_undefined_here() -> None:
    assert everywhere(open_pe(), sysreg.MDCR_EL2) == [UNDEFINED] * 6


# ---- PMUSERENR_EL0 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "read_with", "write_with"),
    [
        # the bits of PMUSERENR_EL0 any of which lets EL0 through
        ("PMCR_EL0", EN, EN),
        ("PMCNTENSET_EL0", EN, EN),
        ("PMCNTENCLR_EL0", EN, EN),
        ("PMOVSCLR_EL0", EN, EN),
        ("PMOVSSET_EL0", EN, EN),
        ("PMSWINC_EL0", None, EN | SW),
        ("PMSELR_EL0", EN | ER, EN | ER),
        ("PMCEID0_EL0", EN, None),
        ("PMCEID1_EL0", EN, None),
        ("PMCCNTR_EL0", EN | CR, EN),
        ("PMXEVTYPER_EL0", EN, EN),
        ("PMXEVCNTR_EL0", EN | ER, EN),
        ("PMEVCNTR3_EL0", EN | ER, EN),
        ("PMEVTYPER3_EL0", EN, EN),
        ("PMCCFILTR_EL0", EN, EN),
        ("PMICNTR_EL0", 0, 0),
        ("PMICFILTR_EL0", 0, 0),
        ("PMUSERENR_EL0", 0xF, None),
    ],
)
def test_pmuserenr_opens_registers_to_el0(name: str, read_with: int | None, write_with: int | None) -> None:
    for write, opens in ((READ, read_with), (WRITE, write_with)):
        for userenr in range(16):
            pe = open_pe()
            pe.userenr = userenr
            expected = UNDEFINED if opens is None else TRAP_EL1
            if opens is not None and (userenr & opens or opens == 0xF):
                expected = ALLOWED
            assert access(pe, EL0, BY_NAME[name], write) == expected, (write, userenr)
            if opens is not None:
                assert access(pe, EL1, BY_NAME[name], write) == ALLOWED


def test_a_pmuserenr_trap_goes_to_el2_for_a_host_process() -> None:
    pe = make_pe()
    pe.tge = 1
    assert access(pe, EL0, sysreg.PMCCNTR_EL0, READ) == TRAP_EL2


def test_pmuserenr_traps_to_el1_before_el2_is_asked() -> None:
    pe = make_pe()
    pe.mdcr_el2 |= TPM
    pe.hdfgrtr_el2 = MASK64
    assert access(pe, EL0, sysreg.PMCCNTR_EL0, READ) == TRAP_EL1
    pe.userenr = CR
    assert access(pe, EL0, sysreg.PMCCNTR_EL0, READ) == TRAP_EL2


# ---- TPM and TPMCR -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tge", [0, 1])
def test_tpm_traps_every_register_from_el1_and_el0_and_none_from_el2(tge: int) -> None:
    for key in PMU_KEYS:
        free, trapping = open_pe(31), open_pe(31)
        free.tge = trapping.tge = tge
        trapping.mdcr_el2 |= TPM
        expected = [TRAP_EL2 if where == ALLOWED else where for where in everywhere(free, key)]
        expected[2::3] = everywhere(free, key)[2::3]
        assert everywhere(trapping, key) == expected, name_of(key)


def test_tpmcr_traps_pmcr_alone() -> None:
    for key in PMU_KEYS:
        free, trapping = open_pe(31), open_pe(31)
        trapping.mdcr_el2 |= TPMCR
        expected = everywhere(free, key)
        if key == sysreg.PMCR_EL0:
            expected = [TRAP_EL2, TRAP_EL2, ALLOWED, TRAP_EL2, TRAP_EL2, ALLOWED]
        assert everywhere(trapping, key) == expected, name_of(key)


# ---- fine-grained traps -------------------------------------------------------------------------------------------

BOTH = {
    12: keys(*(f"PMEVCNTR{n}_EL0" for n in range(31)), "PMXEVCNTR_EL0"),
    13: keys(*(f"PMEVTYPER{n}_EL0" for n in range(31)), "PMXEVTYPER_EL0"),
    14: keys("PMCCFILTR_EL0"),
    15: keys("PMCCNTR_EL0"),
    16: keys("PMCNTENSET_EL0", "PMCNTENCLR_EL0"),
    17: keys("PMINTENSET_EL1", "PMINTENCLR_EL1"),
    18: keys("PMOVSSET_EL0", "PMOVSCLR_EL0"),
    19: keys("PMSELR_EL0"),
    57: keys("PMUSERENR_EL0"),
}
TRAPPED_READS = BOTH | {22: keys("PMMIR_EL1"), 58: keys("PMCEID0_EL0", "PMCEID1_EL0")}
TRAPPED_WRITES = BOTH | {20: keys("PMSWINC_EL0"), 21: keys("PMCR_EL0")}
"""HDFGRTR_EL2 and HDFGWTR_EL2: the registers that each bit traps; no other bit is the PMU's."""


@pytest.mark.parametrize("number", range(64))
@pytest.mark.parametrize("write", [READ, WRITE])
def test_a_fine_grained_trap_stops_its_registers_in_its_direction_and_no_others(number: int, write: int) -> None:
    mine = (TRAPPED_WRITES if write else TRAPPED_READS).get(number, [])
    for key in PMU_KEYS:
        free, trapping = open_pe(31), open_pe(31)
        if write:
            trapping.hdfgwtr_el2 = 1 << number
        else:
            trapping.hdfgrtr_el2 = 1 << number
        expected = everywhere(free, key)
        for el in (EL0, EL1):
            if key in mine and expected[3 * write + el] == ALLOWED:
                expected[3 * write + el] = TRAP_EL2
        assert everywhere(trapping, key) == expected, name_of(key)


def test_pmxevtyper_goes_by_the_event_type_trap_even_where_it_selects_the_cycle_filter() -> None:
    pe = open_pe()
    pe.selr = 31
    pe.hdfgrtr_el2 = 1 << 14
    assert access(pe, EL1, sysreg.PMXEVTYPER_EL0, READ) == ALLOWED
    pe.hdfgrtr_el2 = 1 << 13
    assert access(pe, EL1, sysreg.PMXEVTYPER_EL0, READ) == TRAP_EL2


@pytest.mark.parametrize(("bit", "name"), [(2, "PMICNTR_EL0"), (3, "PMICFILTR_EL0")])
def test_the_second_fine_grained_traps_are_inverted(bit: int, name: str) -> None:
    for write, field in ((READ, "hdfgrtr2_el2"), (WRITE, "hdfgwtr2_el2")):
        for key in PMU_KEYS:
            pe = open_pe(31)
            setattr(pe, field, MASK64 & ~(1 << bit))
            expected = everywhere(open_pe(31), key)
            if key == BY_NAME[name]:
                expected[3 * write + EL1] = TRAP_EL2
            assert everywhere(pe, key) == expected, name_of(key)


def test_without_fgt2_its_registers_trap_nothing() -> None:
    pe = make_pe(6, P9, fgt2=0)
    for key, write in ((sysreg.PMUACR_EL1, READ), (sysreg.PMUACR_EL1, WRITE), (sysreg.PMZR_EL0, WRITE)):
        assert access(pe, EL1, key, write) == ALLOWED
        pe.core.fgt2 = 1
        assert access(pe, EL1, key, write) == TRAP_EL2
        pe.core.fgt2 = 0


def test_fine_grained_traps_need_their_feature_and_spare_host_processes() -> None:
    for fgt, tge, where in ((1, 0, TRAP_EL2), (0, 0, ALLOWED), (1, 1, ALLOWED)):
        pe = make_pe(6, fgt=fgt)
        pe.userenr, pe.hdfgrtr_el2, pe.tge = EN, MASK64, tge
        assert access(pe, EL0, sysreg.PMCCNTR_EL0, READ) == where


@pytest.mark.parametrize(
    ("el3", "fgten", "where"), [(1, 1, TRAP_EL2), (1, 0, ALLOWED), (0, 0, TRAP_EL2), (0, 1, TRAP_EL2)]
)
def test_el3_where_there_is_one_enables_fine_grained_traps(el3: int, fgten: int, where: int) -> None:
    pe = make_pe(6, el3=el3)
    pe.scr_el3, pe.hdfgrtr_el2 = fgten << 27 | (MASK64 & ~(1 << 27)) * el3, MASK64
    assert access(pe, EL1, sysreg.PMCCNTR_EL0, READ) == where


# ---- counters that EL2 keeps, and counters that there are not --------------------------------------------------------


@pytest.mark.parametrize("key_of", [pmevcntr, pmevtyper])
def test_a_counter_of_the_second_range_traps_with_fgt_and_one_beyond_n_is_undefined(key_of: object) -> None:
    assert callable(key_of)
    pe = open_pe(6, hpmn=4)
    at_el1 = [access(pe, EL1, key_of(n), READ) for n in range(31)]
    assert at_el1 == [ALLOWED] * 4 + [TRAP_EL2] * 2 + [UNDEFINED] * 25
    assert [access(pe, EL0, key_of(n), WRITE) for n in range(31)] == at_el1
    assert [access(pe, EL2, key_of(n), READ) for n in range(31)] == [ALLOWED] * 6 + [UNDEFINED] * 25
    assert pe.unpredictable == 0


@pytest.mark.parametrize("write", [READ, WRITE])
def test_a_selected_counter_is_decided_as_the_counter_itself(write: int) -> None:
    for selr in range(32):
        for key, named in ((sysreg.PMXEVCNTR_EL0, pmevcntr), (sysreg.PMXEVTYPER_EL0, pmevtyper)):
            pe = open_pe(6, hpmn=4)
            pe.selr = selr
            for el in (EL0, EL1, EL2):
                expected = access(open_pe(6, hpmn=4), el, named(selr), write) if selr < 31 else UNDEFINED
                if selr == 31 and key == sysreg.PMXEVTYPER_EL0:
                    expected = ALLOWED  # PMCCFILTR_EL0
                assert access(pe, el, key, write) == expected, (selr, name_of(key), el)


@pytest.mark.parametrize(("n", "undefined"), [(4, 0), (6, 1)])
def test_without_fgt_a_counter_out_of_reach_is_a_named_choice(n: int, undefined: int) -> None:
    for key, selr in ((pmevcntr(n), 0), (pmevtyper(n), 0), (sysreg.PMXEVCNTR_EL0, n), (sysreg.PMXEVTYPER_EL0, n)):
        pe = make_pe(6, P5, hpmn=4, fgt=0, fgt2=0)
        pe.selr = selr
        assert access(pe, EL1, key, READ) == UNDEFINED
        assert pe.unpredictable == UNPREDICTABLE_EVENT_COUNTER
        pe.unpredictable = 0
        assert access(pe, EL2, key, READ) == (UNDEFINED if undefined else ALLOWED)
        assert pe.unpredictable == UNPREDICTABLE_EVENT_COUNTER * undefined


def test_a_counter_beyond_n_is_undefined_before_any_trap_and_a_kept_one_after_them() -> None:
    pe = make_pe(6, hpmn=4)
    pe.mdcr_el2 |= TPM
    pe.selr = 6
    for key in (pmevcntr(6), sysreg.PMXEVCNTR_EL0, sysreg.PMXEVTYPER_EL0):
        assert access(pe, EL0, key, READ) == UNDEFINED
        assert access(pe, EL1, key, READ) == UNDEFINED
    assert access(pe, EL0, pmevcntr(5), READ) == TRAP_EL1
    assert access(pe, EL1, pmevcntr(5), READ) == TRAP_EL2


def test_a_host_process_reaches_the_first_range_only() -> None:
    pe = make_pe(6, hpmn=4)
    pe.tge, pe.userenr = 1, EN
    assert [access(pe, EL0, pmevcntr(n), READ) for n in range(6)] == [ALLOWED] * 4 + [TRAP_EL2] * 2


def test_the_places_that_an_access_can_go_are_told_apart() -> None:
    assert len({ALLOWED, UNDEFINED, TRAP_EL1, TRAP_EL2, TRAP_EL3}) == 5


# ---- syndromes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "rt", "write", "esr"),
    [
        # ISS: op0 [21:20], op2 [19:17], op1 [16:14], CRn [13:10], Rt [9:5], CRm [4:1], direction [0], 1 for a read.
        # mrs x5, pmcr_el0 is s3_3_c9_c12_0: 3 << 20 | 3 << 14 | 9 << 10 | 5 << 5 | 12 << 1 | 1 = 0x30e4b9
        (sysreg.PMCR_EL0, 5, READ, 0x6230_E4B9),
        (sysreg.PMCR_EL0, 5, WRITE, 0x6230_E4B8),
        # msr pmovsset_el0, x30 is s3_3_c9_c14_3: 3 << 20 | 3 << 17 | 3 << 14 | 9 << 10 | 30 << 5 | 14 << 1
        (sysreg.PMOVSSET_EL0, 30, WRITE, 0x6236_E7DC),
        # mrs x0, pmevcntr13_el0 is s3_3_c14_c9_5: 3 << 20 | 5 << 17 | 3 << 14 | 14 << 10 | 9 << 1 | 1
        (pmevcntr(13), 0, READ, 0x623A_F813),
        # mrs xzr, pmevtyper30_el0 is s3_3_c14_c15_6: 3 << 20 | 6 << 17 | 3 << 14 | 14 << 10 | 31 << 5 | 15 << 1 | 1
        (pmevtyper(30), 31, READ, 0x623C_FBFF),
        # msr pmintenset_el1, x1 is s3_0_c9_c14_1: 3 << 20 | 1 << 17 | 9 << 10 | 1 << 5 | 14 << 1
        (sysreg.PMINTENSET_EL1, 1, WRITE, 0x6232_243C),
    ],
)
def test_a_trap_tells_the_register_the_direction_and_the_general_purpose_register(
    key: int, rt: int, write: int, esr: int
) -> None:
    assert sysreg.sys64_esr(key, rt, write) == esr


def test_an_undefined_instruction_has_class_0_and_no_syndrome() -> None:
    assert sysreg.undefined_esr() == 0x0200_0000


def test_registers_are_named_as_the_assembler_names_them() -> None:
    assert name_of(pmevtyper(30)) == "PMEVTYPER30_EL0"
    assert name_of(pmevtyper(31)) == "PMCCFILTR_EL0"
    assert name_of(sysreg.encode(3, 0, 1, 0, 0)) == "S3_0_C1_C0_0"
    assert pmevcntr(8) == sysreg.encode(3, 3, 14, 9, 0)
