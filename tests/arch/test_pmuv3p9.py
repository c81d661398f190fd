"""PMUv3p9, the threshold fields and what EL3 decides: expected values by the pages of PMUSERENR_EL0, PMUACR_EL1,
PMZR_EL0, PMICFILTR_EL0, PMEVTYPER<n>_EL0, MDCR_EL3 and SCR_EL3 (Arm ARM D24).
"""

from __future__ import annotations

import pytest

from arch.support import CYCLE, INSTRUCTION, MASK64, P0, P1, P4, P5, P7, P8, P9, make_pe
from pmuvisor.arch import pmu, sysreg, unpredictable
from pmuvisor.arch.events import INST_RETIRED, SW_INCR
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import BY_NAME, PMU_KEYS
from pmuvisor.arch.traps import ALLOWED, TRAP_EL1, TRAP_EL2, TRAP_EL3, UNDEFINED, access

EL0, EL1, EL2 = 0, 1, 2
EN, SW, CR, ER, UEN, IR, TID = (1 << n for n in range(7))
NPMICNTR, NPMICFILTR, NPMUACR, NPMZR = 1 << 2, 1 << 3, 1 << 4, 1 << 21
OPEN = NPMICNTR | NPMICFILTR | NPMUACR | NPMZR


def p9(n: int = 4, *, userenr: int = 0, uacr: int = 0, hpmn: int | None = None, **core: int) -> Pe:
    """Return a PMUv3p9 with an instruction counter, all fine-grained traps open, and counters that hold 7."""
    pe = make_pe(n, P9, icntr=1, hpmn=hpmn, **core)
    pe.hdfgrtr2_el2 = pe.hdfgwtr2_el2 = OPEN
    pe.userenr, pe.uacr = userenr, uacr
    for i in range(n):
        pe.evcntr[i] = 7
    pe.ccntr = pe.icntr = 7
    return pe


def values(pe: Pe) -> list[int]:
    return [*pe.evcntr, pe.ccntr, pe.icntr]


# ---- who may reach what at EL0 ----------------------------------------------------

BY_UEN = (
    *("PMCCFILTR_EL0", "PMCCNTR_EL0", "PMCNTENCLR_EL0", "PMCNTENSET_EL0", "PMEVCNTR0_EL0", "PMEVTYPER0_EL0"),
    *("PMOVSCLR_EL0", "PMOVSSET_EL0", "PMSELR_EL0", "PMXEVCNTR_EL0", "PMXEVTYPER_EL0", "PMICFILTR_EL0", "PMICNTR_EL0"),
)


@pytest.mark.parametrize("name", BY_UEN)
@pytest.mark.parametrize("write", [0, 1])
def test_uen_opens_the_registers_of_its_page_to_el0(name: str, write: int) -> None:
    assert access(p9(userenr=UEN), EL0, BY_NAME[name], write) == ALLOWED
    assert access(p9(), EL0, BY_NAME[name], write) == TRAP_EL1


@pytest.mark.parametrize(
    ("name", "write"), [("PMCEID0_EL0", 0), ("PMCEID1_EL0", 0), ("PMSWINC_EL0", 1), ("PMZR_EL0", 1)]
)
def test_uen_opens_what_has_one_accessor_only(name: str, write: int) -> None:
    assert access(p9(userenr=UEN), EL0, BY_NAME[name], write) == ALLOWED
    assert access(p9(), EL0, BY_NAME[name], write) == TRAP_EL1
    assert access(p9(userenr=UEN), EL0, BY_NAME[name], 1 - write) == UNDEFINED


@pytest.mark.parametrize(("userenr", "where"), [(EN, ALLOWED), (UEN, TRAP_EL1), (UEN | EN, TRAP_EL1), (0, TRAP_EL1)])
def test_uen_shuts_pmcr(userenr: int, where: int) -> None:
    for write in (0, 1):
        assert access(p9(userenr=userenr), EL0, sysreg.PMCR_EL0, write) == where


@pytest.mark.parametrize("userenr", [0, EN, SW | CR | ER | EN, IR | TID | EN])
def test_nothing_but_uen_opens_the_instruction_counter(userenr: int) -> None:
    for name in ("PMICNTR_EL0", "PMICFILTR_EL0"):
        assert access(p9(userenr=userenr), EL0, BY_NAME[name], 0) == TRAP_EL1


@pytest.mark.parametrize(("userenr", "where"), [(EN, ALLOWED), (EN | TID, TRAP_EL1), (UEN | TID, TRAP_EL1)])
def test_tid_shuts_the_event_identification(userenr: int, where: int) -> None:
    for name in ("PMCEID0_EL0", "PMCEID1_EL0"):
        assert access(p9(userenr=userenr), EL0, BY_NAME[name], 0) == where
        assert access(p9(userenr=userenr), EL1, BY_NAME[name], 0) == ALLOWED


def test_tid_traps_a_host_process_to_el2() -> None:
    pe = p9(userenr=EN | TID)
    pe.tge = 1
    assert access(pe, EL0, sysreg.PMCEID0_EL0, 0) == TRAP_EL2


@pytest.mark.parametrize(("pmuver", "icntr", "reads"), [(P8, 0, 0x0F), (P9, 0, 0x5F), (P9, 1, 0x7F)])
def test_pmuserenr_keeps_the_fields_of_its_version(pmuver: int, icntr: int, reads: int) -> None:
    pe = make_pe(1, pmuver, icntr=icntr)
    pmu.write(pe, EL1, sysreg.PMUSERENR_EL0, MASK64)
    assert pmu.read(pe, EL1, sysreg.PMUSERENR_EL0) == reads


# ---- PMUACR_EL1 ----------------------------------------------------


@pytest.mark.parametrize(("el", "icntr", "reads"), [(EL1, 1, 0b0011), (EL2, 1, 0b1111), (EL1, 0, 0b0011)])
def test_pmuacr_has_a_bit_for_each_counter_that_the_level_can_reach(el: int, icntr: int, reads: int) -> None:
    pe = make_pe(4, P9, icntr=icntr, hpmn=2)
    pmu.write(pe, el, sysreg.PMUACR_EL1, MASK64)
    assert pmu.read(pe, el, sysreg.PMUACR_EL1) == reads | CYCLE | INSTRUCTION * icntr


def test_el1_does_not_change_pmuacrs_bits_of_the_second_range() -> None:
    pe = p9(hpmn=2, uacr=0b1010)
    pmu.write(pe, EL1, sysreg.PMUACR_EL1, 0b0101)
    assert pe.uacr == 0b1001
    assert pmu.read(pe, EL1, sysreg.PMUACR_EL1) == 0b0001


@pytest.mark.parametrize("pmuver", [P0, P1, P4, P5, P7, P8])
def test_before_p9_there_is_neither_pmuacr_nor_pmzr(pmuver: int) -> None:
    pe = make_pe(1, pmuver)
    for el in (EL0, EL1, EL2):
        for write in (0, 1):
            assert access(pe, el, sysreg.PMUACR_EL1, write) == UNDEFINED
            assert access(pe, el, sysreg.PMZR_EL0, write) == UNDEFINED


def test_el0_has_no_pmuacr() -> None:
    assert access(p9(userenr=UEN), EL0, sysreg.PMUACR_EL1, 0) == UNDEFINED


COUNTER_REGISTERS = [
    ("PMEVCNTR1_EL0", 0b10, 5),
    ("PMEVTYPER1_EL0", 0b10, 0x77),
    ("PMXEVCNTR_EL0", 0b10, 5),
    ("PMXEVTYPER_EL0", 0b10, 0x77),
    ("PMCCNTR_EL0", CYCLE, 5),
    ("PMCCFILTR_EL0", CYCLE, 1 << 31),
    ("PMICNTR_EL0", INSTRUCTION, 5),
    ("PMICFILTR_EL0", INSTRUCTION, 1 << 31 | INST_RETIRED),
]
READ_ONLY = {0b10: ER, CYCLE: CR, INSTRUCTION: IR}


@pytest.mark.parametrize(("name", "bit", "value"), COUNTER_REGISTERS)
def test_with_uen_pmuacr_makes_a_counter_and_its_type_raz_wi_at_el0(name: str, bit: int, value: int) -> None:
    key = BY_NAME[name]
    for uacr in (bit, MASK64 & ~bit & (0xF | CYCLE | INSTRUCTION)):
        pe = p9(userenr=UEN, uacr=uacr)
        pe.selr = 1
        pmu.write(pe, EL1, key, 0)
        before = pmu.read(pe, EL1, key)
        pmu.write(pe, EL0, key, value)
        opens = uacr == bit
        assert pmu.read(pe, EL1, key) == (value if opens else before)
        pmu.write(pe, EL1, key, value)
        assert pmu.read(pe, EL0, key) == (value if opens else 0)


@pytest.mark.parametrize(("name", "bit", "value"), COUNTER_REGISTERS)
def test_with_uen_er_cr_and_ir_make_counters_read_only_at_el0(name: str, bit: int, value: int) -> None:
    key = BY_NAME[name]
    for which in (ER, CR, IR):
        pe = p9(userenr=UEN | which, uacr=0xF | CYCLE | INSTRUCTION)
        pe.selr = 1
        pmu.write(pe, EL1, key, 0)
        before = pmu.read(pe, EL0, key)
        pmu.write(pe, EL0, key, value)
        assert pmu.read(pe, EL0, key) == (before if which == READ_ONLY[bit] else value)


def test_pmxevtyper_with_sel_31_goes_by_the_cycle_counters_bits() -> None:
    pe = p9(userenr=UEN | ER, uacr=CYCLE)
    pe.selr = 31
    pmu.write(pe, EL0, sysreg.PMXEVTYPER_EL0, 1 << 31)
    assert pe.ccfiltr == 1 << 31
    pe.userenr = UEN | CR
    pmu.write(pe, EL0, sysreg.PMXEVTYPER_EL0, 1 << 30)
    assert pe.ccfiltr == 1 << 31


def test_without_uen_pmuacr_and_the_read_only_bits_decide_nothing() -> None:
    pe = p9(userenr=EN | ER | CR | IR)
    pmu.write(pe, EL0, sysreg.PMEVCNTR0_EL0, 5)
    pmu.write(pe, EL0, sysreg.PMCCNTR_EL0, 6)
    assert (pmu.read(pe, EL0, sysreg.PMEVCNTR0_EL0), pmu.read(pe, EL0, sysreg.PMCCNTR_EL0)) == (5, 6)


@pytest.mark.parametrize(
    ("userenr", "uacr", "reads", "writes"),
    [
        (EN, 0, 0b1111 | CYCLE, 0b1111 | CYCLE),
        (UEN, 0b0101 | CYCLE, 0b0101 | CYCLE, 0b0101 | CYCLE),
        (UEN, 0b0101 | INSTRUCTION, 0b0101 | INSTRUCTION, 0b0101 | INSTRUCTION),
        (UEN | ER, 0b0101 | CYCLE, 0b0101 | CYCLE, CYCLE),
        (UEN | CR, 0b0101 | CYCLE, 0b0101 | CYCLE, 0b0101),
        (UEN | IR, 0b0101 | INSTRUCTION, 0b0101 | INSTRUCTION, 0b0101),
    ],
)
def test_the_mask_registers_at_el0_show_and_change_what_pmuacr_opens(
    userenr: int, uacr: int, reads: int, writes: int
) -> None:
    pe = p9(userenr=userenr, uacr=uacr)
    pe.cnten = pe.ovs = 0b1111 | CYCLE | INSTRUCTION
    assert pmu.read(pe, EL0, sysreg.PMCNTENSET_EL0) == pmu.read(pe, EL0, sysreg.PMOVSCLR_EL0) == reads
    for key, field in ((sysreg.PMCNTENCLR_EL0, "cnten"), (sysreg.PMOVSCLR_EL0, "ovs")):
        pmu.write(pe, EL0, key, MASK64)
        assert getattr(pe, field) == (0b1111 | CYCLE | INSTRUCTION) & ~writes


@pytest.mark.parametrize(("userenr", "counted"), [(UEN, [0, 1, 0, 0]), (UEN | SW, [1, 1, 0, 0]), (SW, [1, 1, 0, 0])])
def test_pmswinc_at_el0_asks_pmuacr_only_with_uen_and_without_sw(userenr: int, counted: list[int]) -> None:
    pe = p9(userenr=userenr, uacr=0b1010, hpmn=2)
    pe.pmcr, pe.cnten = 1, 0b1111
    for i in range(4):
        pe.evcntr[i], pe.evtyper[i] = 0, SW_INCR
    pmu.write(pe, EL0, sysreg.PMSWINC_EL0, 0b1111)
    assert list(pe.evcntr) == counted


# ---- PMZR_EL0 ----------------------------------------------------


@pytest.mark.parametrize(
    ("el", "left"), [(EL2, [0, 0, 0, 0, 0, 0]), (EL1, [0, 0, 7, 7, 0, 0]), (EL0, [0, 0, 7, 7, 0, 7])]
)
def test_pmzr_zeroes_the_counters_that_the_level_can_write(el: int, left: list[int]) -> None:
    pe = p9(hpmn=2, userenr=EN)
    pe.ovs = 0b1111
    pmu.write(pe, el, sysreg.PMZR_EL0, MASK64)
    assert values(pe) == left
    assert pe.ovs == 0b1111


@pytest.mark.parametrize(
    ("userenr", "uacr", "left"),
    [
        (UEN, 0b0001, [0, 7, 7, 7, 7, 7]),
        (UEN, INSTRUCTION | CYCLE, [7, 7, 7, 7, 0, 0]),
        (UEN | ER, 0b1111 | CYCLE, [7, 7, 7, 7, 0, 7]),
        (UEN | CR | IR, 0b1111 | CYCLE | INSTRUCTION, [0, 0, 0, 0, 7, 7]),
    ],
)
def test_pmzr_at_el0_zeroes_what_pmuacr_and_the_read_only_bits_leave(userenr: int, uacr: int, left: list[int]) -> None:
    pe = p9(userenr=userenr, uacr=uacr)
    pmu.write(pe, EL0, sysreg.PMZR_EL0, MASK64)
    assert values(pe) == left


def test_pmzr_zeroes_only_what_is_named() -> None:
    pe = p9()
    pmu.write(pe, EL1, sysreg.PMZR_EL0, 0b0100 | CYCLE)
    assert values(pe) == [7, 7, 0, 7, 0, 7]


@pytest.mark.parametrize(("hdfgwtr2", "icntr"), [(OPEN, 0), (OPEN & ~NPMICNTR, 7), (OPEN & ~NPMICFILTR, 0)])
def test_pmzr_leaves_an_instruction_counter_whose_write_would_be_trapped(hdfgwtr2: int, icntr: int) -> None:
    pe = p9()
    pe.hdfgwtr2_el2 = hdfgwtr2
    pmu.write(pe, EL1, sysreg.PMZR_EL0, MASK64)
    assert pe.icntr == icntr


@pytest.mark.parametrize(("hdfgwtr2", "icntr"), [(OPEN & ~NPMICFILTR, 1), (OPEN & ~NPMICNTR, 7)])
def test_a_write_of_the_instruction_counter_goes_by_its_own_trap_bit(hdfgwtr2: int, icntr: int) -> None:
    pe = p9()
    pe.hdfgwtr2_el2 = hdfgwtr2
    pmu.write(pe, EL1, sysreg.PMICNTR_EL0, 1)
    assert pe.icntr == icntr


# ---- traps to EL2 and EL3 ----------------------------------------------------

FGT2_BITS = [
    ("PMICNTR_EL0", NPMICNTR, (0, 1)),
    ("PMICFILTR_EL0", NPMICFILTR, (0, 1)),
    ("PMUACR_EL1", NPMUACR, (0, 1)),
    ("PMZR_EL0", NPMZR, (1,)),
]


@pytest.mark.parametrize(("name", "bit", "writes"), FGT2_BITS)
def test_a_clear_bit_of_hdfgxtr2_traps_its_register(name: str, bit: int, writes: tuple[int, ...]) -> None:
    for write in writes:
        pe = p9()
        pe.hdfgrtr2_el2, pe.hdfgwtr2_el2 = (bit, 0) if write == 0 else (0, bit)
        assert access(pe, EL1, BY_NAME[name], write) == ALLOWED
        pe.hdfgrtr2_el2, pe.hdfgwtr2_el2 = (MASK64 & ~bit, MASK64) if write == 0 else (MASK64, MASK64 & ~bit)
        assert access(pe, EL1, BY_NAME[name], write) == TRAP_EL2
        assert access(pe, EL2, BY_NAME[name], write) == ALLOWED


@pytest.mark.parametrize(("name", "bit", "writes"), FGT2_BITS)
def test_scr_el3_fgten2_clear_traps_all_that_hdfgxtr2_could(name: str, bit: int, writes: tuple[int, ...]) -> None:
    for write in writes:
        pe = p9(userenr=UEN)
        pe.scr_el3 = 0
        assert access(pe, EL1, BY_NAME[name], write) == TRAP_EL2
        assert access(pe, EL2, BY_NAME[name], write) == ALLOWED
        pe.core.el3 = 0  # nobody to clear it
        assert access(pe, EL1, BY_NAME[name], write) == ALLOWED


def test_scr_el3_fgten_clear_ignores_hdfgxtr() -> None:
    pe = p9()
    pe.hdfgrtr_el2 = MASK64
    assert access(pe, EL1, sysreg.PMCNTENSET_EL0, 0) == TRAP_EL2
    pe.scr_el3 &= ~(1 << 27)
    assert access(pe, EL1, sysreg.PMCNTENSET_EL0, 0) == ALLOWED


@pytest.mark.parametrize("el", [EL0, EL1, EL2])
def test_mdcr_el3_tpm_traps_every_pmu_register_of_every_level_below(el: int) -> None:
    pe = p9(userenr=UEN, uacr=MASK64 >> 31)
    shut = p9(userenr=UEN, uacr=MASK64 >> 31)
    shut.mdcr_el3 |= 1 << 6
    trapped = set()
    for key in PMU_KEYS:
        for write in (0, 1):
            if access(pe, el, key, write) == ALLOWED:
                assert access(shut, el, key, write) == TRAP_EL3
                trapped.add(key)
            else:
                assert access(shut, el, key, write) == access(pe, el, key, write)
    # 4 counters, 4 types; of the others all but PMCR at EL0, and there PMINTEN*, PMMIR and PMUACR are UNDEFINED.
    assert len(trapped) == 8 + 15 + 2 + 4 - (el == EL0) * 5


@pytest.mark.parametrize("name", ["PMICNTR_EL0", "PMICFILTR_EL0", "PMUACR_EL1"])
def test_mdcr_el3_enpm2_clear_traps_what_came_with_p9(name: str) -> None:
    pe = p9()
    pe.mdcr_el3 = 0
    for el in (EL1, EL2):
        assert access(pe, el, BY_NAME[name], 0) == TRAP_EL3
        assert access(pe, el, sysreg.PMZR_EL0, 1) == ALLOWED
    pe.core.el3 = 0
    assert access(pe, EL1, BY_NAME[name], 0) == ALLOWED


def test_el2_is_asked_before_el3() -> None:
    pe = p9()
    pe.mdcr_el3 = 1 << 6
    pe.mdcr_el2 |= 1 << 6
    assert access(pe, EL1, sysreg.PMCNTENSET_EL0, 0) == TRAP_EL2
    assert access(pe, EL2, sysreg.PMCNTENSET_EL0, 0) == TRAP_EL3


@pytest.mark.parametrize("el", [EL1, EL2])
def test_mdcr_el3_enpm2_clear_hides_the_instruction_counter_from_the_mask_registers(el: int) -> None:
    pe = p9()
    pe.cnten = CYCLE | INSTRUCTION
    pe.mdcr_el3 = 0
    assert pmu.read(pe, el, sysreg.PMCNTENSET_EL0) == CYCLE
    pmu.write(pe, el, sysreg.PMCNTENCLR_EL0, MASK64)
    assert pe.cnten == INSTRUCTION
    pmu.write(pe, el, sysreg.PMZR_EL0, MASK64)
    assert pe.icntr == 7


def test_scr_el3_fgten2_clear_hides_the_instruction_counter_from_the_mask_registers_below_el2() -> None:
    pe = p9()
    pe.cnten = CYCLE | INSTRUCTION
    pe.scr_el3 = 0
    assert pmu.read(pe, EL1, sysreg.PMCNTENSET_EL0) == CYCLE
    assert pmu.read(pe, EL2, sysreg.PMCNTENSET_EL0) == CYCLE | INSTRUCTION
    pe.tge = 1  # the host's EL0 has no traps to EL2
    pe.userenr, pe.uacr = UEN, INSTRUCTION
    assert pmu.read(pe, EL0, sysreg.PMCNTENSET_EL0) == INSTRUCTION


# ---- the threshold fields, and PMCR_EL0.DP ----------------------------------------------------

TC, TE, TLC, TH = 7 << 61, 1 << 60, 3 << 54, 0xFFF << 32


@pytest.mark.parametrize(
    ("thwidth", "edge", "even", "odd"),
    [
        (0, 0, 0, 0),
        (1, 0, TC | 1 << 32, TC | 1 << 32),
        (12, 0, TC | TH, TC | TH),
        (12, 1, TC | TE | TH, TC | TE | TH),
        (7, 2, TC | TE | 0x7F << 32, TC | TE | TLC | 0x7F << 32),
    ],
)
def test_the_threshold_fields_are_those_of_pmmir(thwidth: int, edge: int, even: int, odd: int) -> None:
    pe = make_pe(2, P9, pmmir=edge << 24 | thwidth << 20)
    for i, expected in ((0, even), (1, odd)):
        pmu.write(pe, EL1, sysreg.pmevtyper(i), MASK64)
        assert pmu.read(pe, EL1, sysreg.pmevtyper(i)) >> 32 << 32 == expected
        pe.selr = i
        assert pmu.read(pe, EL1, sysreg.PMXEVTYPER_EL0) >> 32 << 32 == expected


@pytest.mark.parametrize(("pmuver", "el3", "dp"), [(P0, 0, 0), (P0, 1, 1), (P1, 0, 1), (P7, 0, 1)])
def test_pmcr_dp_needs_el3_or_p1(pmuver: int, el3: int, dp: int) -> None:
    pe = make_pe(0, pmuver, el3=el3)
    pmu.write(pe, EL1, sysreg.PMCR_EL0, MASK64)
    assert pmu.read(pe, EL1, sysreg.PMCR_EL0) >> 5 & 1 == dp


@pytest.mark.parametrize(
    ("pmuver", "event", "implemented"),
    [(P5, 0x08, 1), (P5, 0x09, 0), (P5, 0x3F, 1), (P5, 0x4002, 1), (P0, 0x4002, 0), (P5, 0x4021, 1), (P5, 0x48, 0)],
)
def test_pmceid_says_which_common_events_are_implemented(pmuver: int, event: int, implemented: int) -> None:
    # Bits of PMCEID0: 8 and, of 0x4000 up, 2; of PMCEID1: 31 (0x3F) and, of 0x4020 up, 1.
    pe = make_pe(1, pmuver, pmceid0=1 << 8 | 1 << 34, pmceid1=1 << 31 | 1 << 33)
    assert pmu.is_implemented(pe, event) == implemented


# ---- what the architecture leaves open ------------------------------


@pytest.mark.parametrize(
    ("pmuver", "event", "reached"),
    [
        (P5, 0x3F, 0),
        (P5, 0x40, 1),
        (P5, 0x4000, 0),
        (P5, 0x403F, 0),
        (P5, 0x4040, 1),
        (P5, 0xC000, 1),
        (P0, 0x3F, 0),
        (P0, 0x40, 1),
        (P7, 0x77, 1),
        (P8, 0x77, 0),
        (P9, 0xFFFF, 0),
    ],
)
def test_an_event_that_is_not_common_is_an_open_case_before_p8(pmuver: int, event: int, reached: int) -> None:
    pe = make_pe(1, pmuver)
    pmu.write(pe, EL1, sysreg.pmevtyper(0), event)
    assert pe.unpredictable == reached * unpredictable.UNPREDICTABLE_EVENT
    assert pmu.read(pe, EL1, sysreg.pmevtyper(0)) == event


@pytest.mark.parametrize(
    ("fgt", "sel", "reached"), [(0, 3, 0), (0, 4, 1), (0, 30, 1), (0, 31, 0), (1, 4, 0), (1, 30, 0)]
)
def test_reading_a_pmselr_that_selects_nothing_is_an_open_case_without_fgt(fgt: int, sel: int, reached: int) -> None:
    pe = make_pe(4, fgt=fgt, fgt2=0)
    pmu.write(pe, EL1, sysreg.PMSELR_EL0, sel)
    assert pmu.read(pe, EL1, sysreg.PMSELR_EL0) == sel
    assert pe.unpredictable == reached * unpredictable.UNPREDICTABLE_SEL


def test_every_choice_has_a_bit_of_its_own_and_can_be_told_by_it() -> None:
    bits = [choice.bit for choice in unpredictable.CHOICES]
    assert len(set(bits)) == len(bits)
    assert all(bit.bit_count() == 1 for bit in bits)
    for choice in unpredictable.CHOICES:
        assert unpredictable.choices_reached(choice.bit) == (choice,)
        assert getattr(unpredictable, f"UNPREDICTABLE_{choice.name.upper()}") == choice.bit
    assert unpredictable.choices_reached(0) == ()
