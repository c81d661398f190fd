"""Stage 1 of a guest, walked for who writes on its behalf: held to the engine's address translation instructions."""

from __future__ import annotations

import functools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from board.engine_support import guest, words
from pmuvisor.board.engine import PHYSICAL_END, RAM_BASE, Engine
from pmuvisor.board.translation import Regime, Translated, translate_write

AT_S1E1W_X1, MRS_X2_PAR_EL1 = 0xD508_7821, 0xD538_7402
SCTLR_EL1, TTBR0_EL1, TTBR1_EL1, TCR_EL1 = (3, 0, 1, 0, 0), (3, 0, 2, 0, 0), (3, 0, 2, 0, 1), (3, 0, 2, 0, 2)
SCTLR_ON = 0x00C5_0839
PAR_F = 1
ADDRESS = (1 << 48) - (1 << 12)

CODE_TABLE = RAM_BASE + 0x8_0000
TABLES = RAM_BASE + 0x10_0000
TABLE_BYTES = 0x1_0000
T0SZ_25, IPS_44_BITS, TBI1 = 25, 4 << 32, 1 << 38
GRANULE_4K, GRANULE_64K = 2 << 30, 3 << 30
VALID, TABLE, ACCESS_FLAG, READ_ONLY, APTABLE_READ_ONLY = 1, 2, 1 << 10, 1 << 7, 1 << 62


@functools.cache
def engine() -> Engine:
    """An engine whose code is at its own address with the MMU on: TTBR1's half is the tests'."""
    e = guest(words(AT_S1E1W_X1, MRS_X2_PAR_EL1))
    e.ram.write(CODE_TABLE + 8, struct.pack("<Q", RAM_BASE | VALID | ACCESS_FLAG))
    return e


def asked(tcr: int, va: int) -> tuple[bool, int]:
    """Let the engine translate a write by EL1: whether it faults; the fault status code, or the address of its page."""
    e = engine()
    e.start(RAM_BASE)
    for register, value in ((TTBR0_EL1, CODE_TABLE), (TTBR1_EL1, TABLES), (TCR_EL1, tcr), (SCTLR_EL1, SCTLR_ON)):
        e.write_register(*register, value)
    e.flush_tlb()
    e.set_x(1, va)
    e.run(e.total + 2)
    par = e.get_x(2)
    e.write_register(*SCTLR_EL1, SCTLR_ON & ~1)
    return bool(par & PAR_F), (par >> 1) & 0x3F if par & PAR_F else par & ADDRESS


descriptors = st.builds(
    lambda kind, attributes: kind | attributes,
    st.sampled_from([0, RAM_BASE | VALID, *(TABLES + n * TABLE_BYTES | VALID | TABLE for n in range(4))]),
    st.sampled_from([0, ACCESS_FLAG, ACCESS_FLAG, ACCESS_FLAG | READ_ONLY, ACCESS_FLAG | APTABLE_READ_ONLY]),
)


@given(
    st.lists(descriptors, min_size=4, max_size=4),
    st.sampled_from([GRANULE_4K, GRANULE_64K]),
    st.integers(25, 39),  # beyond, walks begin at a level that has no blocks, where the engine takes them all the same
    st.integers(0, (1 << 39) - 1),
    st.booleans(),
    st.booleans(),
)
def test_a_write_goes_where_the_engine_says_that_one_of_el1_would(
    entries: list[int], granule: int, size: int, offset: int, below_the_half: bool, tagged: bool
) -> None:
    # Each of four tables is one descriptor as often as there is room: whatever the address, the walk goes through them.
    for number, entry in enumerate(entries):
        engine().ram.write(TABLES + number * TABLE_BYTES, struct.pack("<Q", entry) * (TABLE_BYTES // 8))
    tcr = T0SZ_25 | (64 - size) << 16 | granule | IPS_44_BITS | (TBI1 if tagged else 0)
    va = (1 << 64) - (1 << size) + (offset & ((1 << size) - 1))
    if below_the_half:
        va -= 1 << size
    if tagged:
        va &= ~(0x5A << 56)
    faults, value = asked(tcr, va)
    found = translate_write(engine().ram, Regime(SCTLR_ON, tcr, CODE_TABLE, TABLES), va)
    assert (found.fault is not None) == faults
    assert value == (found.fault if faults else found.address & ADDRESS)
    if not faults:
        assert found.address & 0xFFF == va & 0xFFF


def test_without_the_mmu_an_address_is_its_own_up_to_the_end_of_physical_addresses() -> None:
    off = Regime(SCTLR_ON & ~1, 0, 0, 0)
    assert translate_write(engine().ram, off, RAM_BASE + 5) == Translated(RAM_BASE + 5)
    assert translate_write(engine().ram, off, PHYSICAL_END) == Translated(fault=0)


@pytest.mark.parametrize(("bit", "va"), [(7, 0x4000_0000), (23, (1 << 64) - 4096)])
def test_a_half_whose_walks_are_disabled_is_not_mapped(bit: int, va: int) -> None:
    tcr = T0SZ_25 | 25 << 16 | GRANULE_4K | IPS_44_BITS
    regime = Regime(SCTLR_ON, tcr | 1 << bit, CODE_TABLE, CODE_TABLE)
    assert translate_write(engine().ram, regime, va) == Translated(fault=0x04)


@pytest.mark.parametrize(("granule", "size", "level"), [(GRANULE_4K, 48, 0), (GRANULE_64K, 48, 1)])
def test_a_block_at_a_level_that_has_none_is_no_translation(granule: int, size: int, level: int) -> None:
    engine().ram.write(TABLES, struct.pack("<Q", RAM_BASE | VALID | ACCESS_FLAG) * (TABLE_BYTES // 8))
    tcr = T0SZ_25 | (64 - size) << 16 | granule | IPS_44_BITS
    assert translate_write(engine().ram, Regime(SCTLR_ON, tcr, 0, TABLES), (1 << 64) - 4096) == Translated(
        fault=0x04 | level
    )


def test_a_table_outside_of_memory_is_an_external_abort_on_the_walk() -> None:
    regime = Regime(SCTLR_ON, T0SZ_25 | GRANULE_4K, 0x1000, 0)
    assert translate_write(engine().ram, regime, 0x4000_0000) == Translated(fault=0x15)
