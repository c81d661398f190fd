"""Stores to memory that could be executed, but is not, kept off Unicorn's slow path.

Unicorn sends every store to an executable page past its translated code, since the page may hold some: with the MMU off
that is every store. Here a translation that was made for a load or a store of a page from which nothing was ever
fetched stores directly, and cannot be used to fetch; so the first fetch asks for a translation of its own, and that
sends all stores to the page, through whatever address, the slow way again. `engine` installs this in Unicorn's place
where `cpustate` finds the TLB to be as this module has it.
"""

# mypy: disable-error-code="no-any-return"

from typing import Any

import numpy as np
from numba import carray, types

from pmuvisor.board import native
from pmuvisor.board.native_memory import as_pointer, call, call7, callback, compiled, load8, load64, store8, store64

CPU_EL_CHANGE = 0xD720
"""Where in the CPU object the list is whose first entry holds the state: a TLB fill gets no data of ours."""

ENTRY_BITS = 6
READ, WRITE, CODE, PHYSICAL, ADDEND = 0, 8, 16, 24, 32
"""Offsets in an entry of the TLB: the page's address with flags, for each access; -1 where it is not allowed."""
NOT_DIRTY, INVALID = 1 << 8, 1 << 9
"""Flags: stores go the slow way; the next access asks again."""
FETCH = 2

UNSEEN, DIRECT, CODE_PAGE = range(3)
"""What is known of a physical page: nothing; stores may go to it directly; it is, or has been, executed."""


@compiled
def entry_of(st: Any, mmu: int, page: int) -> int:
    fast = st[native.AT_TLB] + 16 * mmu
    return load64(fast + 8) + (((page >> 12) & (load64(fast) >> ENTRY_BITS)) << ENTRY_BITS)


@compiled
def fetched(st: Any, entry: int, page: int, mark: int) -> None:
    """Code of a page is about to be translated: from now on every store to it is looked at."""
    if load8(mark) == DIRECT:
        host = page + load64(entry + ADDEND)
        call(st[native.FN_RESET_DIRTY], st[native.CPU], host, 4096, 0, 0)
    store8(mark, CODE_PAGE)


@compiled
def accessed(entry: int, page: int, mark: int) -> None:
    """A page was loaded from or stored to. INVALID, not -1: that would say that it may not execute."""
    if load8(mark) == CODE_PAGE or load64(entry + CODE) != page:
        return
    store64(entry + CODE, page | INVALID)
    if load64(entry + WRITE) == page | NOT_DIRTY:
        store8(mark, DIRECT)
        store64(entry + WRITE, page)


@callback(types.uint8, types.int64, types.int64, types.int32, types.int32, types.int32, types.uint8, types.int64)
def on_fill(cpu: int, address: int, size: int, access: int, mmu: int, probe: int, host_pc: int) -> int:
    """Takes the place of CPUClass.tlb_fill. What it calls does not return where the guest gets an exception."""
    st = carray(as_pointer(load64(load64(cpu + CPU_EL_CHANGE) + 8)), (native.STATE_WORDS,), np.int64)
    done = call7(st[native.FN_FILL], cpu, address, size, access, mmu, probe, host_pc) & 0xFF
    page = address & ~0xFFF
    entry = entry_of(st, types.int64(mmu), page)
    ram = load64(entry + PHYSICAL) - st[native.RAM_BASE]
    if done == 0 or ram < 0 or ram >= st[native.RAM_SIZE]:
        return done
    mark = st[native.AT_PAGES] + (ram >> 12)
    if access == FETCH and load64(entry + CODE) == page:
        fetched(st, entry, page, mark)
    elif access != FETCH:
        accessed(entry, page, mark)
    return done
