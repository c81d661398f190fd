"""What an instruction word does with the general registers, against capstone and against what Unicorn executes."""

from __future__ import annotations

import random
import struct
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from unicorn import UC_ARCH_ARM64, UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE, UC_MODE_ARM, Uc, UcError
from unicorn import arm64_const as uc_const

from board.spe_reference import MEMORY, access_type, accessed, disassemble
from pmuvisor.arch import spe_record
from pmuvisor.board import native_operands as operands

CODE, DATA, SIZE = 0x1_0000, 0x100_0000, 0x40_0000
MIDDLE = DATA + SIZE // 2
X = [uc_const.UC_ARM64_REG_X0 + n for n in range(29)] + [uc_const.UC_ARM64_REG_X29, uc_const.UC_ARM64_REG_X30]
REGISTERS = [*X, uc_const.UC_ARM64_REG_SP]
ZVA = 64


@cache
def machine() -> tuple[Uc, list[int]]:
    """A Unicorn with data in the middle of everything, and the addresses that it accesses."""
    uc, seen = Uc(UC_ARCH_ARM64, UC_MODE_ARM), list[int]()
    uc.mem_map(CODE, 0x1000)
    uc.mem_map(DATA, SIZE)
    uc.cpr_write(3, 0, 1, 0, 2, 3 << 20)  # CPACR_EL1.FPEN
    kinds = UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE
    uc.hook_add(kinds, lambda uc, kind, address, size, value, data: seen.append(address) or True)  # type: ignore[func-returns-value]
    return uc, seen


def execute(word: int, before: list[int]) -> tuple[list[int], list[int]] | None:
    """The registers after one instruction, and what it accessed; None where it cannot be executed."""
    uc, seen = machine()
    uc.ctl_remove_cache(CODE, CODE + 8)
    uc.mem_write(CODE, struct.pack("<II", word, 0xD503201F))
    for register, value in zip(REGISTERS, before, strict=True):
        uc.reg_write(register, value)
    seen.clear()
    try:
        uc.emu_start(CODE, 0, 0, 1)
    except UcError:
        return None
    return [int(uc.reg_read(register)) for register in REGISTERS], list(seen)


def state_of(seed: int) -> list[int]:
    """X0 to X30 and SP: addresses in the middle of the data, and small numbers."""
    chooser = random.Random(seed)
    return [chooser.choice((MIDDLE + 16 * chooser.randrange(256), chooser.randrange(256))) for _ in range(32)]


states = st.integers(0, 1 << 32).map(state_of)


def of_group(*bits: str) -> st.SearchStrategy[int]:
    """Words whose bits 28 to 25 are as given; x is any."""

    def make(pattern: str, rest: int) -> int:
        for i, bit in enumerate(pattern):
            if bit != "x":
                rest = rest & ~(1 << (28 - i)) | int(bit) << (28 - i)
        return rest

    return st.builds(make, st.sampled_from(bits), st.integers(0, 0xFFFF_FFFF))


def changed(before: list[int], after: list[int]) -> int:
    return sum(1 << i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new)


@settings(max_examples=600, deadline=None)
@given(of_group("100x", "x101", "x1x0", "x111"), states)
def test_no_register_changes_that_a_word_is_not_said_to_write(word: int, before: list[int]) -> None:
    result = execute(word, before)
    assume(result is not None)
    assert result is not None
    assert changed(before, result[0]) & ~operands.written(word) == 0, disassemble(word, CODE)


HINTS_AND_REGISTERS = [0xD503201F, 0xD503233F, 0xD53B4200, 0xD51B4200, 0xD50342DF, 0xD5033F9F, 0x94000001, 0x14000001,
                       0xB4000040, 0x54000020, 0x36000020, 0xD63F0020, 0xD65F03C0, 0xD61F0020, 0xD50B7420]  # fmt: skip


@pytest.mark.parametrize("word", HINTS_AND_REGISTERS, ids=hex)
def test_no_register_changes_that_a_branch_or_system_instruction_is_not_said_to_write(word: int) -> None:
    before = [MIDDLE] * 32
    before[1] = before[30] = CODE + 4
    result = execute(word, before)
    assert result is not None
    assert changed(before, result[0]) & ~operands.written(word) == 0


@pytest.mark.parametrize(
    ("word", "mask"),
    [(0xF100043F, 0), (0xEB02003F, 0), (0x910043FF, operands.SP), (0xF2400C3F, 0), (0x9240003F, operands.SP),
     (0xFA410820, 0), (0xF9400020, 1), (0xF9000020, 0), (0xF8408420, 3), (0xA9BF7BFD, operands.SP),
     (0xA8C17BFD, operands.SP | 1 << 29 | 1 << 30), (0x3DC00020, 0), (0xD65F03C0, 0), (0x54000001, 0),
     (0xC8007C22, 1 | 1 << 2), (0xD69F03E0, operands.SP | 1 << 30)],
    ids=hex,
)  # fmt: skip
def test_common_words_are_not_said_to_write_what_they_do_not(word: int, mask: int) -> None:
    # cmp #; cmp; add sp; tst; and sp; ccmp; ldr; str; ldr post; stp pre; ldp post; ldr q; ret; b.ne; stxr; eret
    assert operands.written(word) == mask


@settings(max_examples=600, deadline=None)
@given(of_group("x1x0"), states)
def test_the_address_is_that_of_the_access_by_the_registers_before_and_after(word: int, before: list[int]) -> None:
    text = disassemble(word, CODE)
    op_class, subclass = operands.operation(word)
    va = accessed(text, before) if text else None
    result = execute(word, before)
    if result is None:
        return
    after, seen = result
    if subclass & spe_record.SUBCLASS_EXCLUSIVE and not seen:  # a store-exclusive that failed
        return
    assert (op_class == spe_record.OP_LOAD_STORE) == bool(seen), text
    if not seen:
        return
    address = address_of(word, before, done=False)
    assert address in seen, text
    if text:  # capstone knows less words than Unicorn executes
        assert address == va, text
    if operands.address_registers(word) & operands.lost(word) == 0:
        assert address_of(word, after, done=True) == address, text


def address_of(word: int, x: list[int], done: bool) -> int:
    registers = np.array(x, np.uint64)
    return operands.address(word, CODE, registers.ctypes.data, done, ZVA) & (1 << 64) - 1


OF_NO_ENGINE = ("prfm", "prfum", "ldg", "stg", "st2g", "stz", "cpy", "set")
"""Prefetches are no loads; tags, and the copying and setting of memory, are beyond Unicorn's CPUs."""


def lse() -> st.SearchStrategy[int]:
    """Atomics, compare and swap, LDAPR and LDAPUR: not what Unicorn's CPU has."""
    any_word = st.integers(0, 0xFFFF_FFFF)
    atomic = any_word.map(lambda w: w & 0xC0FFFFFF & ~0x0C00 | 0x38200000)
    swap = any_word.map(lambda w: w & 0xC0FFFFFF | 0x08A07C00)
    return atomic | swap | any_word.map(lambda w: w & 0xC0DFF3FF | 0x19000000)


@settings(max_examples=400, deadline=None)
@given(of_group("x1x0") | lse())
def test_the_type_of_an_access_is_what_its_mnemonic_says(word: int) -> None:
    text = disassemble(word, CODE)
    assume(text and MEMORY.search(text) and not text.startswith(OF_NO_ENGINE))
    op_class, subclass = operands.operation(word)
    assert op_class == spe_record.OP_LOAD_STORE, text
    assert subclass == access_type(text), text
