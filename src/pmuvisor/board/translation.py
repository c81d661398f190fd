"""Where a write by the EL1&0 translation regime leads: stage 1 of a guest, for who writes on its behalf.

The engine's own translation is that of the level which is executing. The Statistical Profiling Unit writes as EL1
whatever executes, so it walks the guest's tables itself (Arm ARM, "The AArch64 Virtual Memory System Architecture",
AArch64.S1Walk()). There is no hardware management of the Access flag and dirty state, and no upper half of attributes
that would matter to a write but APTable.
"""

from __future__ import annotations

from dataclasses import dataclass

from pmuvisor.board.engine import PHYSICAL_END, GuestMemory, MemoryBoundsError

FSC_ADDRESS_SIZE = 0x00
FSC_TRANSLATION = 0x04
FSC_ACCESS_FLAG = 0x08
FSC_PERMISSION = 0x0C
FSC_EXTERNAL = 0x10
FSC_EXTERNAL_ON_WALK = 0x14
"""Fault status codes; a level, 0 to 3, is added to all but FSC_EXTERNAL."""

_GRANULES_0 = {0: 12, 1: 16, 2: 14}
_GRANULES_1 = {1: 14, 2: 12, 3: 16}
"""By TCR_EL1.TG0 and TG1, the logarithm of a page's bytes."""
_BLOCK_LEVELS = {12: 1, 14: 2, 16: 2}
"""By granule, the first level at which a descriptor can be a block."""
_VALID, _TABLE, _ACCESS_FLAG, _READ_ONLY, _APTABLE_READ_ONLY = 1 << 0, 1 << 1, 1 << 10, 1 << 7, 1 << 62
_ADDRESS = (1 << 48) - 1


@dataclass(frozen=True, slots=True)
class Regime:
    """The registers of the EL1&0 translation regime."""

    sctlr: int
    tcr: int
    ttbr0: int
    ttbr1: int


@dataclass(frozen=True, slots=True)
class Translated:
    """What a translation came to: an address, or a fault."""

    address: int = 0
    """Of 48 bits, what stage 1 gives: an intermediate physical address."""
    fault: int | None = None
    """The fault status code."""


def translate_write(memory: GuestMemory, regime: Regime, va: int) -> Translated:
    """Return where a write by EL1 to `va` goes."""
    if regime.sctlr & 1 == 0:
        if va >= PHYSICAL_END:
            return Translated(fault=FSC_ADDRESS_SIZE)
        return Translated(va)
    high = (va >> 55) & 1
    size = 64 - (regime.tcr >> (16 if high else 0) & 0x3F)
    granules, field = (_GRANULES_1, regime.tcr >> 30) if high else (_GRANULES_0, regime.tcr >> 14)
    granule = granules.get(field & 3, 12)
    disabled = regime.tcr >> (23 if high else 7) & 1
    tbi = regime.tcr >> (38 if high else 37) & 1
    top = (va & ~(0xFF << 56) if tbi else va) >> size
    expected = (1 << (64 - size - 8 * tbi)) - 1 if high else 0
    if disabled or size > 48 or size <= granule or top != expected:
        return Translated(fault=FSC_TRANSLATION)
    table = (regime.ttbr1 if high else regime.ttbr0) & _ADDRESS & ~1
    return _walk(memory, table, va & ((1 << size) - 1), size, granule)


def _walk(memory: GuestMemory, table: int, va: int, size: int, granule: int) -> Translated:
    stride = granule - 3
    level = 4 - -(-(size - granule) // stride)
    read_only = False
    while True:
        shift = granule + stride * (3 - level)
        index = va >> shift & ((1 << stride) - 1)
        try:
            entry = int.from_bytes(memory.read(table + 8 * index, 8), "little")
        except MemoryBoundsError:
            return Translated(fault=FSC_EXTERNAL_ON_WALK | level)
        is_table = entry & _TABLE != 0
        if entry & _VALID == 0 or (not is_table and not _BLOCK_LEVELS[granule] <= level < 3):
            return Translated(fault=FSC_TRANSLATION | level)
        if level == 3 or not is_table:
            return _leaf(entry, va, shift, level, read_only)
        read_only |= entry & _APTABLE_READ_ONLY != 0
        table = entry & _ADDRESS & ~((1 << granule) - 1)
        level += 1


def _leaf(entry: int, va: int, shift: int, level: int, read_only: bool) -> Translated:
    """Return what a page or block descriptor says of a write."""
    if entry & _ACCESS_FLAG == 0:
        return Translated(fault=FSC_ACCESS_FLAG | level)
    if read_only or entry & _READ_ONLY:
        return Translated(fault=FSC_PERMISSION | level)
    offset = (1 << shift) - 1
    address = (entry & _ADDRESS & ~offset) | (va & offset)
    if address >= PHYSICAL_END:
        return Translated(fault=FSC_ADDRESS_SIZE | level)
    return Translated(address)
