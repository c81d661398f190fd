"""The profiling unit's registers: what resets, what is RES0 in which version, and where each access goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arch.spe_support import BASE, EL0, EL1, EL2, V1P0, V1P1, V1P2, V1P4, E, get, make_spu, put
from arch.support import P5, P9, make_pe
from pmuvisor.arch import spe, traps
from pmuvisor.arch.cores import core, make_spe
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.spe import Spu
from pmuvisor.arch.sysreg import BY_NAME, SPE_KEYS

MASK64 = (1 << 64) - 1
READ, WRITE = 0, 1
SAMPLING = ["PMSCR", "PMSNEVFR", "PMSICR", "PMSIRR", "PMSFCR", "PMSEVFR", "PMSLATFR", "PMSIDR", "PMSDSFR"]
BUFFER = ["PMBLIMITR", "PMBPTR", "PMBSR", "PMBIDR"]
EVERY = SAMPLING + BUFFER
READ_ONLY = ("PMSIDR", "PMBIDR")
TPMS, E2PB_SHIFT = 1 << 14, 12
FGTEN, FGTEN2 = 1 << 27, 1 << 59
# HDFGRTR_EL2 and HDFGWTR_EL2, by their pages.
FGT = {
    "PMBLIMITR": 23, "PMBPTR": 24, "PMBSR": 25, "PMSCR": 26, "PMSEVFR": 27, "PMSFCR": 28, "PMSICR": 29,
    "PMSIDR": 30, "PMSIRR": 31, "PMSLATFR": 32, "PMSNEVFR": 62, "PMBIDR": 63,
}  # fmt: skip
NPMSDSFR = 19
"""HDFGRTR2_EL2 and HDFGWTR2_EL2."""


def bits(*positions: int) -> int:
    return sum(1 << position for position in positions)


# ---- values ----------------------------------------------------------------------------------------------------

EVENTS = {
    V1P0: bits(1, 3, 5, 7),
    V1P1: bits(1, 3, 5, 7, 11),
    V1P2: bits(1, 3, 5, 6, 7, 11),
    V1P4: bits(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 19, 20, 21, 22, 23),
}
WRITABLE = {
    "PMSCR": bits(0, 1, 3, 4, 5, 6),
    "PMSIRR": 0xFFFF_FF01,
    "PMBPTR": MASK64,
    "PMBSR": 0x3F << 26 | bits(16, 17, 18, 19) | 0xFFFF,
    "PMSDSFR": MASK64,
}
"""What is not RES0 of the registers that are alike in all versions."""


def expected_bits(name: str, pmsver: int, fne: int, fds: int, ernd: int, count_size: int) -> int:
    if name in ("PMSEVFR", "PMSNEVFR"):
        return EVENTS[pmsver]
    if name == "PMSFCR":
        return bits(0, 1, 2, 16, 17, 18) | fne << 3 | fds << 4
    if name == "PMSICR":
        return 0xFFFF_FFFF | ernd * 0xFF << 56
    if name == "PMSLATFR":
        return 0xFFF if count_size == 2 else 0xFFFF
    if name == "PMBLIMITR":
        return MASK64 & ~0xFFF | bits(0, 1, 2) | (pmsver >= V1P2) << 5
    return WRITABLE[name]


@pytest.mark.parametrize("pmsver", EVENTS)
@pytest.mark.parametrize("ernd", [0, 1])
@pytest.mark.parametrize("count_size", [2, 3])
def test_a_register_keeps_the_bits_that_its_version_has(pmsver: int, ernd: int, count_size: int) -> None:
    features = {"fne": int(pmsver >= V1P2), "fds": ernd, "ernd": ernd, "count_size": count_size}
    for name in EVERY:
        if name in READ_ONLY or (name, features["fds"]) == ("PMSDSFR", 0) or (name, features["fne"]) == ("PMSNEVFR", 0):
            continue
        for value in (MASK64, 0, 0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA):
            spu = make_spu(pmsver=pmsver, **features)
            spe.write(spu, BY_NAME[f"{name}_EL1"], value)
            expected = value & expected_bits(name, pmsver, **features)
            assert get(spu, name) == expected, name


@given(st.sampled_from([*EVERY, "PMSCR_EL2"]), st.integers(0, MASK64))
def test_a_write_changes_its_register_and_no_other(name: str, value: int) -> None:
    names = [f"{each}_EL1" for each in EVERY] + ["PMSCR_EL2"]
    spu = make_spu(fne=1, fds=1)
    for i, each in enumerate(names):
        spe.write(spu, BY_NAME[each], 0x1111_1111_1111_1111 * (i % 15 + 1))
    before = {each: spe.read(spu, EL2, BY_NAME[each]) for each in names}
    name = name if name in names else f"{name}_EL1"
    if name not in ("PMSIDR_EL1", "PMBIDR_EL1"):
        spe.write(spu, BY_NAME[name], value)
    after = {each: spe.read(spu, EL2, BY_NAME[each]) for each in names}
    assert {each for each in names if before[each] != after[each]} <= {name}


def test_reset_disables_the_buffer_and_forgets_what_waited() -> None:
    spu = make_spu()
    put(spu, PMBPTR=BASE, PMBLIMITR=BASE + 4096 | E, PMSCR_EL2=2, PMSFCR=7, PMSEVFR=2, PMSLATFR=9, PMBSR=1 << 17)
    put(spu, PMSIRR=0x1001, PMSICR=5, PMSDSFR=3, PMSNEVFR=2, PMSCR=3, PMBSR=0)
    spe.form_record(spu, 64, 0)
    spe.write_mdcr_el2(spu, 3 << E2PB_SHIFT)
    spe.reset(spu, 9)
    assert (get(spu, "PMBLIMITR") & E, spu.nr_pending, spe.pmbirq(spu)) == (0, 0, 0)
    assert spe.profiling_buffer_owner(spu) == EL2
    for el in (EL0, EL1, EL2):
        assert not spe.statistical_profiling_enabled(spu, el, 0)


def test_pmsidr_and_pmbidr_say_what_the_core_has() -> None:
    spu = make_spu(fne=1, fds=0, ernd=1, lds=1, interval=4, max_size=6, count_size=3, align=4)
    # FE FT FL ArchInst LDS ERnd FnE; Interval [11:8], MaxSize [15:12], CountSize [19:16]
    assert get(spu, "PMSIDR") == 0b0111_1111 | 4 << 8 | 6 << 12 | 3 << 16
    # Align [3:0], P 4, F 5, EA [11:8]
    assert get(spu, "PMBIDR", EL2) == 4 | 1 << 5 | 1 << 8
    spu = make_spu(pmsver=V1P0, fne=0, fds=1, ernd=0, lds=0, interval=8, max_size=11, count_size=2, align=0)
    assert get(spu, "PMSIDR") == 0b1000_1111 | 8 << 8 | 11 << 12 | 2 << 16


@pytest.mark.parametrize("e2pb", range(4))
def test_pmbidr_says_to_el1_that_the_buffer_is_el2s(e2pb: int) -> None:
    spu = make_spu()
    spe.write_mdcr_el2(spu, e2pb << E2PB_SHIFT)
    assert get(spu, "PMBIDR", EL1) >> 4 & 1 == int(e2pb == 0)
    assert get(spu, "PMBIDR", EL2) >> 4 & 1 == 0


def test_cores_have_spe_as_their_version_says() -> None:
    n1, best = make_spe(core("neoverse-n1")), make_spe(core("max"))
    assert (n1.pmsver, n1.fne, n1.fds) == (V1P0, 0, 0)
    assert (best.pmsver, best.fne, best.fds) == (V1P2, 1, 1)
    assert make_spe(core("cortex-a55")).pmsver == 0


# ---- where an access goes --------------------------------------------------------------------------------------


def open_pe(fgt: int = 1, fgt2: int = 1) -> Pe:
    """Return a PE whose fine-grained traps let all of SPE through."""
    pe = make_pe(6, P9 if fgt2 else P5, fgt=fgt, fgt2=fgt2)
    for name in ("hdfgrtr_el2", "hdfgwtr_el2"):
        setattr(pe, name, 1 << FGT["PMSNEVFR"])
    for name in ("hdfgrtr2_el2", "hdfgwtr2_el2"):
        setattr(pe, name, 1 << NPMSDSFR)
    return pe


def untrapped(**features: int) -> Spu:
    spu = make_spu(**features)
    spe.write_mdcr_el2(spu, 3 << E2PB_SHIFT)
    return spu


def where(pe: Pe, spu: Spu, name: str, write: int, el: int = EL1) -> int:
    return spe.access(pe, spu, el, BY_NAME[f"{name}_EL1"], write)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("write", [READ, WRITE])
def test_el0_has_no_accessor_and_id_registers_are_not_written(name: str, write: int) -> None:
    pe, spu = open_pe(), untrapped()
    assert where(pe, spu, name, write, EL0) == traps.UNDEFINED
    expected = traps.UNDEFINED if write and name in READ_ONLY else traps.ALLOWED
    for el in (EL1, EL2):
        assert where(pe, spu, name, write, el) == expected
    assert where(pe, untrapped(pmsver=0), name, write, EL2) == traps.UNDEFINED


@pytest.mark.parametrize(("name", "feature"), [("PMSNEVFR", "fne"), ("PMSDSFR", "fds")])
def test_a_register_of_a_feature_that_is_not_there_is_undefined(name: str, feature: str) -> None:
    pe = open_pe()
    for el in (EL1, EL2):
        assert where(pe, untrapped(**{feature: 0}), name, READ, el) == traps.UNDEFINED
        assert where(pe, untrapped(**{feature: 1}), name, READ, el) == traps.ALLOWED


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("e2pb", range(4))
@pytest.mark.parametrize("tpms", [0, TPMS])
def test_mdcr_el2_traps_sampling_registers_by_tpms_and_the_buffers_by_e2pb(name: str, e2pb: int, tpms: int) -> None:
    pe, spu = open_pe(), make_spu()
    pe.mdcr_el2 |= tpms | e2pb << E2PB_SHIFT
    spe.write_mdcr_el2(spu, pe.mdcr_el2)
    trapped = bool(tpms) if name in SAMPLING else name != "PMBIDR" and e2pb in (0b00, 0b10)
    assert where(pe, spu, name, READ) == (traps.TRAP_EL2 if trapped else traps.ALLOWED)
    assert where(pe, spu, name, READ, EL2) == traps.ALLOWED


@pytest.mark.parametrize("write", [READ, WRITE])
def test_each_fine_grained_trap_is_one_registers(write: int) -> None:
    register = ("hdfgrtr_el2", "hdfgwtr_el2")[write]
    for position in range(64):
        pe, spu = open_pe(), untrapped()
        setattr(pe, register, getattr(pe, register) ^ 1 << position)
        for name in EVERY:
            if write and name in READ_ONLY:
                continue
            trapped = FGT.get(name) == position
            assert where(pe, spu, name, write) == (traps.TRAP_EL2 if trapped else traps.ALLOWED), (name, position)
            assert where(pe, spu, name, 1 - write) != traps.TRAP_EL2
            assert where(pe, spu, name, write, EL2) == traps.ALLOWED


@pytest.mark.parametrize("write", [READ, WRITE])
def test_pmsdsfr_is_the_second_traps_and_a_clear_bit_traps(write: int) -> None:
    pe, spu = open_pe(), untrapped()
    setattr(pe, ("hdfgrtr2_el2", "hdfgwtr2_el2")[write], MASK64 & ~(1 << NPMSDSFR))
    for name in EVERY:
        if name not in READ_ONLY:
            assert where(pe, spu, name, write) == (traps.TRAP_EL2 if name == "PMSDSFR" else traps.ALLOWED)
            assert where(pe, spu, name, 1 - write) == traps.ALLOWED


def test_without_scr_el3_fgten_bits_that_trap_do_not_and_those_that_let_through_do_not_either() -> None:
    pe, spu = open_pe(), untrapped()
    pe.hdfgrtr_el2 = MASK64
    pe.scr_el3 &= ~FGTEN
    assert [name for name in FGT if where(pe, spu, name, READ) == traps.TRAP_EL2] == ["PMSNEVFR"]
    pe.scr_el3 |= FGTEN
    assert [name for name in FGT if where(pe, spu, name, READ) == traps.ALLOWED] == ["PMSNEVFR"]
    pe.scr_el3 &= ~FGTEN2
    assert where(pe, spu, "PMSDSFR", READ) == traps.TRAP_EL2


@pytest.mark.parametrize("name", EVERY)
def test_a_core_without_fine_grained_traps_has_none(name: str) -> None:
    pe, spu = open_pe(fgt=0, fgt2=0), untrapped()
    pe.hdfgrtr_el2 = pe.hdfgwtr_el2 = pe.hdfgrtr2_el2 = pe.hdfgwtr2_el2 = 0
    assert where(pe, spu, name, READ) == traps.ALLOWED
    pe.hdfgrtr_el2 = MASK64
    assert where(pe, spu, name, READ) == traps.ALLOWED


def test_the_registers_are_told_from_all_others() -> None:
    assert {key for key in range(1 << 16) if spe.is_spe_register(key)} == set(SPE_KEYS)
    assert len(SPE_KEYS) == 13
