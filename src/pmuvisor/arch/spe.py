"""SPE: the Statistical Profiling Unit of one PE, its registers, its sampling counter and its buffer.

States the Arm ARM's chapter "The Statistical Profiling Extension", and the pseudocode functions that the docstrings
name. What a record looks like is `spe_record`'s matter.

The unit is not the PE. It acts on the registers as they were at the PE's last context synchronization event, it holds
records back before it writes them, and what it has done to PMBPTR_EL1 and PMBSR_EL1 can be read only after the barriers
that the architecture asks for:

- a direct write of PMSCR_ELx, PMBLIMITR_EL1, PMBPTR_EL1, PMBSR_EL1 or MDCR_EL2.E2PB reaches the unit at the next
  `isb`, or before that (`take_effect`): `Spu.unsynchronised` says which it need not know of. Writes of the other
  registers reach it at once, which is a choice.
- a record waits in the unit (`Spu.pending`) until there is no room for another, or until `psb_csync`, which translates
  its address and initiates its write. `dsb` completes what was initiated.
- an indirect write of PMBPTR_EL1 or PMBSR_EL1 is seen by a direct read after an `isb` when nothing is incomplete.

The write pointer's page and the one after it are translated by whoever has the tables: `Spu.fault` holds what that came
to in the EL1&0 regime of the guest `Spu.guest`; the host's buffers are always mapped. Non-secure state only.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor.arch.pmu import Pe, fgt2_enabled, fgt_enabled, nonzero
from pmuvisor.arch.spe_record import Filter, SpeFeatures, filterable_events
from pmuvisor.arch.sysreg import (
    FGT2_NPMSDSFR,
    FGT_NPMSNEVFR,
    FGT_PMBLIMITR,
    FGT_PMBPTR,
    FGT_PMBSR,
    FGT_PMSCR,
    FGT_PMSEVFR,
    FGT_PMSFCR,
    FGT_PMSICR,
    FGT_PMSIRR,
    FGT_PMSLATFR,
    FGT_R_PMBIDR,
    FGT_R_PMSIDR,
    FSC_ALIGNMENT,
    FSC_TRANSLATION,
    MDCR_E2PB,
    MDCR_E2PB_SHIFT,
    MDCR_TPMS,
    PMBIDR_EA_IGNORED,
    PMBIDR_EL1,
    PMBIDR_F,
    PMBIDR_P,
    PMBLIMITR_E,
    PMBLIMITR_EL1,
    PMBLIMITR_FM,
    PMBLIMITR_FM_DISCARD,
    PMBLIMITR_PMFZ,
    PMBPTR_EL1,
    PMBSR_BSC_FULL,
    PMBSR_COLL,
    PMBSR_DL,
    PMBSR_EA,
    PMBSR_EC_OTHER,
    PMBSR_EC_SHIFT,
    PMBSR_EC_STAGE1,
    PMBSR_EC_STAGE2,
    PMBSR_EL1,
    PMBSR_S,
    PMSCR_CX,
    PMSCR_E0SPE,
    PMSCR_E1SPE,
    PMSCR_EL1,
    PMSCR_EL2,
    PMSCR_PA,
    PMSCR_PCT,
    PMSCR_TS,
    PMSDSFR_EL1,
    PMSEVFR_EL1,
    PMSFCR_B,
    PMSFCR_EL1,
    PMSFCR_FDS,
    PMSFCR_FE,
    PMSFCR_FL,
    PMSFCR_FNE,
    PMSFCR_FT,
    PMSFCR_LD,
    PMSFCR_ST,
    PMSICR_COUNT,
    PMSICR_ECOUNT_SHIFT,
    PMSICR_EL1,
    PMSIDR_ARCHINST_SHIFT,
    PMSIDR_COUNTSIZE_SHIFT,
    PMSIDR_EL1,
    PMSIDR_ERND_SHIFT,
    PMSIDR_FDS_SHIFT,
    PMSIDR_FILTERS,
    PMSIDR_FNE_SHIFT,
    PMSIDR_INTERVAL_SHIFT,
    PMSIDR_LDS_SHIFT,
    PMSIDR_MAXSIZE_SHIFT,
    PMSIRR_EL1,
    PMSIRR_INTERVAL_SHIFT,
    PMSIRR_RND,
    PMSLATFR_EL1,
    PMSNEVFR_EL1,
    SPE_BUFFER_KEYS,
    SPE_SAMPLING_KEYS,
    SPEV1P2,
)
from pmuvisor.arch.traps import ALLOWED, TRAP_EL2, UNDEFINED
from pmuvisor.records import U2, U8, U16, U32, U64, Bits, Each, Role, record

EL1, EL2 = 1, 2
HOST = 0
"""Spu.guest, and whose a sampled operation is: nobody's guest, the host. A guest is 1 and more."""
LOST = 0xFFFF
"""Spu.written_to of a record that was not written."""
WRITTEN = 16
"""Records whose end is kept for who has the bytes: as many as leave the unit in one step, and "inflight" is less."""
NEVER = 1 << 62
"""More operations than there are."""
STAGE2 = 1 << 6
"""In Spu.fault: the fault is stage 2's; the bits below are the fault status code, and 0 is no fault."""
PAGE_SHIFT = 12
OFFSET = (1 << PAGE_SHIFT) - 1
"""The bits of an address that are within its page."""

# Spu.unsynchronised
SYNC_PMSCR_EL1 = 1 << 0
SYNC_PMSCR_EL2 = 1 << 1
SYNC_PMBLIMITR = 1 << 2
SYNC_PMBPTR = 1 << 3
SYNC_PMBSR = 1 << 4
SYNC_E2PB = 1 << 5
SYNC_ALL = (1 << 6) - 1

# Spu.unpredictable
UNPREDICTABLE_POINTER = 1 << 0
"""The write pointer left no room for a record below the limit when the buffer was enabled: nothing is written, and the
buffer is full (Arm ARM, "Restrictions on the current write pointer")."""
UNPREDICTABLE_INTERVAL = 1 << 1
"""PMSIRR_EL1.INTERVAL is 0: it is taken as 1."""


@record
class SpuControls:
    """What the unit acts on."""

    pmscr_el1: U8
    pmscr_el2: U8
    pmblimitr: U64
    e2pb: U2


@record
class Spu:
    """One PE's Statistical Profiling Unit."""

    pmscr_el1: U8
    pmscr_el2: U8
    pmsicr: U64
    pmsirr: U32
    filter: Filter
    pmblimitr: U64
    pmbptr: U64
    """As a direct read has it; where the unit writes next is `pointer`."""
    pmbsr: U64
    """As a direct read has it; what the unit knows is `status`."""
    e2pb: U2
    """MDCR_EL2.E2PB as it was written."""
    seen: SpuControls
    pointer: U64
    status: U64
    unsynchronised: Annotated[int, Bits(6)]
    guest: U16
    """Whose the EL1&0 translation regime is (VTTBR_EL2): a guest, or HOST while there is none."""
    random: U32
    """The generator of PMSIRR_EL1.RND's bytes: the next is its lowest eight bits. Not zero."""
    pending: Annotated[list[int], Each("inflight", 8)]
    """Bytes of each record that has not been written yet, in order."""
    nr_pending: U8
    initiated: U8
    """Writes of records that are not known to be complete: 255 stands for as many or more."""
    fault_page: Annotated[int, Bits(52)]
    """The page, an address without its lowest 12 bits, that `fault` begins with."""
    fault: Annotated[list[int], Each(2, 7)]
    """What the translation of that page and of the next comes to in the EL1&0 regime."""
    unpredictable: Annotated[int, Bits(2), Role.LEDGER]
    source: Annotated[list[int], Each("inflight", 16), Role.GHOST]
    """Whose operation each pending record is of."""
    pointer_of: Annotated[int, Bits(16), Role.GHOST]
    """Whose buffer PMBPTR_EL1 is in: set by whoever writes it."""
    in_buffer_of: Annotated[int, Bits(16), Role.GHOST]
    """Whose buffer `pointer` is in."""
    exposed: Annotated[int, Bits(1), Role.GHOST]
    """The buffer was enabled while `pointer` was in a buffer of another regime than its translation's: the unit may
    translate it at any time then, and keep what it finds (the series disables the buffer "to avoid the wrong
    translation table entries being cached")."""
    lost: Annotated[int, Bits(62), Role.GHOST]
    """Records that were formed and never written, though nothing was wrong with the buffer: it was disabled, or its
    service bit set, while they waited."""
    misplaced: Annotated[int, Bits(62), Role.GHOST]
    """Records written into a buffer that is not their operation's owner's, or through another's translation."""
    formed: Annotated[int, Bits(62), Role.LEDGER]
    written: Annotated[int, Bits(62), Role.LEDGER]
    nr_written: Annotated[int, Bits(8), Role.LEDGER]
    """How many of `written_to` are of use to whoever keeps the bytes; it zeroes this when it has looked."""
    written_to: Annotated[list[int], Each(WRITTEN, 16), Role.LEDGER]
    """Of the records that left `pending`: through whose regime each was written, or LOST."""
    written_at: Annotated[list[int], Each(WRITTEN, 64), Role.LEDGER]


# ---- registers ----------------------------------------------------------------------------------------------


def reset(spu: Spu, seed: int) -> None:
    """Reset the unit: PMBLIMITR_EL1.E is 0. What the architecture leaves UNKNOWN is 0 as well.

    `seed`, 32 bits, is where the random part of intervals begins; 0 is taken as 1.
    """
    spu.pmscr_el1 = 0
    spu.pmscr_el2 = 0
    spu.pmsicr = 0
    spu.pmsirr = 0
    spu.filter.pmsfcr = 0
    spu.filter.pmsevfr = 0
    spu.filter.pmsnevfr = 0
    spu.filter.pmslatfr = 0
    spu.filter.pmsdsfr = 0
    spu.pmblimitr = 0
    spu.pmbptr = 0
    spu.pmbsr = 0
    spu.e2pb = 0
    spu.unsynchronised = SYNC_ALL
    spu.nr_pending = 0
    spu.initiated = 0
    spu.random = seed & 0xFFFF_FFFF
    if spu.random == 0:
        spu.random = 1
    isb(spu)


def pmsidr(core: SpeFeatures) -> int:
    """Return PMSIDR_EL1: all filters are there, and each architectural instruction is an operation (ArchInst)."""
    value = PMSIDR_FILTERS | (1 << PMSIDR_ARCHINST_SHIFT) | (core.lds << PMSIDR_LDS_SHIFT)
    value |= (core.ernd << PMSIDR_ERND_SHIFT) | (core.fne << PMSIDR_FNE_SHIFT) | (core.fds << PMSIDR_FDS_SHIFT)
    value |= (core.interval << PMSIDR_INTERVAL_SHIFT) | (core.max_size << PMSIDR_MAXSIZE_SHIFT)
    return value | (core.count_size << PMSIDR_COUNTSIZE_SHIFT)


def pmbidr(spu: Spu, el: int) -> int:
    """Return PMBIDR_EL1 as `el` reads it: P where EL2 owns the buffer. External aborts of its writes are ignored."""
    prohibited = PMBIDR_P & -(int(el < EL2) & int(spu.e2pb == 0))
    return spu.filter.core.align | PMBIDR_F | PMBIDR_EA_IGNORED | prohibited


def writable(core: SpeFeatures, key: int) -> int:
    """Return the bits of a register that are not RES0 on this core."""
    if key in (PMSCR_EL1, PMSCR_EL2):
        return PMSCR_E0SPE | PMSCR_E1SPE | PMSCR_CX | PMSCR_PA | PMSCR_TS | PMSCR_PCT
    if key == PMSICR_EL1:
        return PMSICR_COUNT | ((0xFF & -core.ernd) << PMSICR_ECOUNT_SHIFT)
    if key == PMSIRR_EL1:
        return (0xFF_FFFF << PMSIRR_INTERVAL_SHIFT) | PMSIRR_RND
    if key == PMSFCR_EL1:
        bits = PMSFCR_FE | PMSFCR_FT | PMSFCR_FL | PMSFCR_B | PMSFCR_LD | PMSFCR_ST
        return bits | (PMSFCR_FNE & -core.fne) | (PMSFCR_FDS & -core.fds)
    if key in (PMSEVFR_EL1, PMSNEVFR_EL1):
        return filterable_events(core)
    if key == PMSLATFR_EL1:
        if core.count_size == 2:
            return 0xFFF
        return 0xFFFF
    if key == PMBLIMITR_EL1:
        bits = wrap(~OFFSET) | PMBLIMITR_FM | PMBLIMITR_E
        if core.pmsver >= SPEV1P2:
            bits |= PMBLIMITR_PMFZ
        return bits
    if key == PMBSR_EL1:
        return (0x3F << PMBSR_EC_SHIFT) | PMBSR_DL | PMBSR_EA | PMBSR_S | PMBSR_COLL | 0xFFFF
    if key in (PMBPTR_EL1, PMSDSFR_EL1):
        return wrap(-1)
    return 0


def read(spu: Spu, el: int, key: int) -> int:
    """Return what an MRS at `el`, which was allowed, reads."""
    if key == PMSIDR_EL1:
        return pmsidr(spu.filter.core)
    if key == PMBIDR_EL1:
        return pmbidr(spu, el)
    if key == PMSCR_EL1:
        return spu.pmscr_el1
    if key == PMSCR_EL2:
        return spu.pmscr_el2
    if key == PMSICR_EL1:
        return spu.pmsicr
    if key == PMSIRR_EL1:
        return spu.pmsirr
    if key == PMBLIMITR_EL1:
        return spu.pmblimitr
    if key == PMBPTR_EL1:
        return spu.pmbptr
    if key == PMBSR_EL1:
        return spu.pmbsr
    return read_filter(spu.filter, key)


def read_filter(f: Filter, key: int) -> int:
    """Return what an MRS of a filter register reads."""
    if key == PMSFCR_EL1:
        return f.pmsfcr
    if key == PMSEVFR_EL1:
        return f.pmsevfr
    if key == PMSNEVFR_EL1:
        return f.pmsnevfr
    if key == PMSLATFR_EL1:
        return f.pmslatfr
    return f.pmsdsfr


def write(spu: Spu, key: int, value: int) -> None:
    """Carry out an MSR, which was allowed. The unit need not know of it before the next `isb`."""
    value &= writable(spu.filter.core, key)
    if key == PMSCR_EL1:
        spu.pmscr_el1 = value
        spu.unsynchronised |= SYNC_PMSCR_EL1
    elif key == PMSCR_EL2:
        spu.pmscr_el2 = value
        spu.unsynchronised |= SYNC_PMSCR_EL2
    elif key == PMSICR_EL1:
        spu.pmsicr = value
    elif key == PMSIRR_EL1:
        spu.pmsirr = value
    elif key == PMBLIMITR_EL1:
        spu.pmblimitr = value
        spu.unsynchronised |= SYNC_PMBLIMITR
    elif key == PMBPTR_EL1:
        spu.pmbptr = value
        spu.unsynchronised |= SYNC_PMBPTR
    elif key == PMBSR_EL1:
        spu.pmbsr = value
        spu.unsynchronised |= SYNC_PMBSR
    else:
        write_filter(spu.filter, key, value)


def write_filter(f: Filter, key: int, value: int) -> None:
    """Carry out an MSR of a filter register."""
    if key == PMSFCR_EL1:
        f.pmsfcr = value
    elif key == PMSEVFR_EL1:
        f.pmsevfr = value
    elif key == PMSNEVFR_EL1:
        f.pmsnevfr = value
    elif key == PMSLATFR_EL1:
        f.pmslatfr = value
    elif key == PMSDSFR_EL1:
        f.pmsdsfr = value


def write_mdcr_el2(spu: Spu, mdcr: int) -> None:
    """MDCR_EL2 has been written: its E2PB says who owns the buffer."""
    spu.e2pb = (mdcr & MDCR_E2PB) >> MDCR_E2PB_SHIFT
    spu.unsynchronised |= SYNC_E2PB


# ---- who may access what ------------------------------------------------------------------------------------


def is_spe_register(key: int) -> bool:
    """Tell whether `key` is a register of the unit that EL1 can name, implemented or not."""
    return key in SPE_SAMPLING_KEYS or key in SPE_BUFFER_KEYS


def fgt_bit(key: int) -> int:
    """Return the bit of HDFGRTR_EL2 and HDFGWTR_EL2 that is for a register; the two ID registers' is the former's."""
    if key == PMBLIMITR_EL1:
        return FGT_PMBLIMITR
    if key == PMBPTR_EL1:
        return FGT_PMBPTR
    if key == PMBSR_EL1:
        return FGT_PMBSR
    if key == PMBIDR_EL1:
        return FGT_R_PMBIDR
    if key == PMSCR_EL1:
        return FGT_PMSCR
    if key == PMSEVFR_EL1:
        return FGT_PMSEVFR
    if key == PMSFCR_EL1:
        return FGT_PMSFCR
    if key == PMSICR_EL1:
        return FGT_PMSICR
    if key == PMSIDR_EL1:
        return FGT_R_PMSIDR
    if key == PMSIRR_EL1:
        return FGT_PMSIRR
    if key == PMSLATFR_EL1:
        return FGT_PMSLATFR
    return FGT_NPMSNEVFR


def trapped_by_fgt(pe: Pe, key: int, write: int) -> bool:
    """Tell whether fine-grained traps send an access from EL1 to EL2; for two registers a clear bit does."""
    if key == PMSDSFR_EL1:
        if pe.core.fgt2 == 0:
            return False
        traps2 = pe.hdfgrtr2_el2
        if write == 1:
            traps2 = pe.hdfgwtr2_el2
        return fgt2_enabled(pe) == 0 or (traps2 >> FGT2_NPMSDSFR) & 1 == 0
    if fgt_enabled(pe) == 0:
        return key == PMSNEVFR_EL1 and pe.core.fgt == 1
    traps = pe.hdfgrtr_el2
    if write == 1:
        traps = pe.hdfgwtr_el2
    return ((traps >> fgt_bit(key)) & 1) ^ int(key == PMSNEVFR_EL1) == 1


def access(pe: Pe, spu: Spu, el: int, key: int, write: int) -> int:
    """Return where an MRS (`write` 0) or MSR of an SPE register at `el` goes: ALLOWED, UNDEFINED or TRAP_EL2.

    States the "Accessing" part of the registers' pages: no accessor for EL0; fine-grained traps; MDCR_EL2.TPMS for the
    sampling registers; MDCR_EL2.E2PB = x0 for the buffer's, but for PMBIDR_EL1. MDCR_EL3.NSPB is as firmware that gives
    the buffer to Non-secure state has it.
    """
    core = spu.filter.core
    if el == 0 or core.pmsver == 0 or (write == 1 and key in (PMSIDR_EL1, PMBIDR_EL1)):
        return UNDEFINED
    if (key == PMSNEVFR_EL1 and core.fne == 0) or (key == PMSDSFR_EL1 and core.fds == 0):
        return UNDEFINED
    if el == EL2:
        return ALLOWED
    if trapped_by_fgt(pe, key, write):
        return TRAP_EL2
    if key in SPE_SAMPLING_KEYS and (pe.mdcr_el2 & MDCR_TPMS) != 0:
        return TRAP_EL2
    if key in SPE_BUFFER_KEYS and key != PMBIDR_EL1 and (spu.e2pb & 1) == 0:
        return TRAP_EL2
    return ALLOWED


# ---- what is enabled, as the unit sees it -------------------------------------------------------------------


def profiling_buffer_owner(spu: Spu) -> int:
    """State ProfilingBufferOwner(): EL2 or EL1."""
    if spu.seen.e2pb == 0:
        return EL2
    return EL1


def buffer_regime(spu: Spu) -> int:
    """Return whose translation the unit's writes go through: HOST's, or a guest's."""
    if spu.seen.e2pb == 0:
        return HOST
    return spu.guest


def profiling_buffer_enabled(spu: Spu) -> bool:
    """State ProfilingBufferEnabled(): PMBLIMITR_EL1.E is set, and no service is required."""
    return (spu.seen.pmblimitr & PMBLIMITR_E) != 0 and (spu.status & PMBSR_S) == 0


def statistical_profiling_enabled(spu: Spu, el: int, tge: int) -> bool:
    """State StatisticalProfilingEnabled() for `el`; `tge` is HCR_EL2.TGE."""
    if spu.filter.core.pmsver == 0 or not profiling_buffer_enabled(spu):
        return False
    owner = profiling_buffer_owner(spu)
    if owner < el or (tge == 1 and owner == EL1):
        return False
    if el == EL2:
        return (spu.seen.pmscr_el2 & PMSCR_E1SPE) != 0
    if el == EL1:
        return (spu.seen.pmscr_el1 & PMSCR_E1SPE) != 0
    if tge == 1:
        return (spu.seen.pmscr_el2 & PMSCR_E0SPE) != 0
    return (spu.seen.pmscr_el1 & PMSCR_E0SPE) != 0


def discards(spu: Spu) -> bool:
    """Tell whether the buffer is in discard mode: samples are taken and thrown away."""
    fill = spu.seen.pmblimitr & PMBLIMITR_FM
    return spu.filter.core.pmsver >= SPEV1P2 and fill == PMBLIMITR_FM_DISCARD


def collect_context_el1(spu: Spu, el: int, tge: int) -> bool:
    """State CollectContextIDR1(): CONTEXTIDR_EL1 goes into a record."""
    return el < EL2 and tge == 0 and (spu.seen.pmscr_el1 & PMSCR_CX) != 0


def collect_context_el2(spu: Spu) -> bool:
    """State CollectContextIDR2(): CONTEXTIDR_EL2 goes into a record."""
    return (spu.seen.pmscr_el2 & PMSCR_CX) != 0


def collect_physical_address(spu: Spu) -> bool:
    """State CollectPhysicalAddress(): EL2 has the last word."""
    if (spu.seen.pmscr_el2 & PMSCR_PA) == 0:
        return False
    return profiling_buffer_owner(spu) == EL2 or (spu.seen.pmscr_el1 & PMSCR_PA) != 0


def collect_timestamp(spu: Spu) -> bool:
    """State CollectTimeStamp(), as far as whether there is one; here the virtual and the physical count are equal."""
    if profiling_buffer_owner(spu) == EL2:
        return (spu.seen.pmscr_el2 & PMSCR_TS) != 0
    return (spu.seen.pmscr_el1 & PMSCR_TS) != 0


# ---- the sampling counter -----------------------------------------------------------------------------------


def next_random(state: int) -> int:
    """Return the state of the generator after `state`: xorshift, 32 bits. SPEGetRandomInterval() is open to it."""
    state ^= (state << 13) & 0xFFFF_FFFF
    state ^= state >> 17
    return state ^ ((state << 5) & 0xFFFF_FFFF)


def interval(spu: Spu) -> int:
    """Return PMSIRR_EL1.INTERVAL in operations, without its random part."""
    value = spu.pmsirr & (0xFF_FFFF << PMSIRR_INTERVAL_SHIFT)
    if value == 0:
        spu.unpredictable |= UNPREDICTABLE_INTERVAL
        return 1 << PMSIRR_INTERVAL_SHIFT
    return value


def has_jitter(spu: Spu) -> bool:
    """Tell whether PMSICR_EL1.COUNT is reloaded with a random part."""
    return (spu.pmsirr & PMSIRR_RND) != 0 and spu.filter.core.ernd == 0


def reload_value(spu: Spu) -> int:
    """Return what SPEResetSampleCounter() will set PMSICR_EL1.COUNT to."""
    if has_jitter(spu):
        return interval(spu) | (spu.random & 0xFF)
    return interval(spu)


def has_second_count(spu: Spu) -> bool:
    """Tell whether PMSICR_EL1.ECOUNT counts: FEAT_SPE_ERnd's random part, begun each time COUNT reaches zero."""
    return (spu.pmsirr & PMSIRR_RND) != 0 and spu.filter.core.ernd == 1


def second_count(spu: Spu) -> int:
    """Return how many operations PMSICR_EL1.ECOUNT will add when COUNT reaches zero."""
    if has_second_count(spu):
        return spu.random & 0xFF
    return 0


def operations_to_sample(spu: Spu) -> int:
    """Return how many operations there are up to the next that is sampled, that one included.

    States SPEToCollectSample() for many: an operation that finds COUNT at 0 reloads it; one that makes it 0 is sampled,
    or with FEAT_SPE_ERnd begins ECOUNT, at whose end one is. COUNT goes on meanwhile, and may begin ECOUNT anew.
    """
    ecount = (spu.pmsicr >> PMSICR_ECOUNT_SHIFT) & 0xFF
    count = spu.pmsicr & PMSICR_COUNT
    if has_second_count(spu) and ecount != 0 and (count == 0 or ecount < count):
        return ecount
    if count == 0:
        return 1 + reload_value(spu) + second_count(spu)
    return count + second_count(spu)


def count_operations(spu: Spu, operations: int) -> int:
    """Count operations at a level where profiling is enabled, `operations_to_sample` at most.

    Return 1 where the last of them is sampled, else 0.
    """
    second = has_second_count(spu)
    sampled = 0
    while operations > 0:
        count = spu.pmsicr & PMSICR_COUNT
        ecount = (spu.pmsicr >> PMSICR_ECOUNT_SHIFT) & 0xFF
        running = second and ecount != 0
        step = operations
        if running:
            step = min(step, ecount)
        if count == 0:
            step = 1
            count = reload_value(spu)
            if has_jitter(spu):
                spu.random = next_random(spu.random)
        else:
            step = min(step, count)
            count -= step
            if count == 0:
                running = False
                sampled = 1
                if second:
                    ecount = second_count(spu)
                    spu.random = next_random(spu.random)
                    sampled = int(ecount == 0)
        if running:
            ecount -= step
            sampled = int(ecount == 0)
        operations -= step
        spu.pmsicr = count | (ecount << PMSICR_ECOUNT_SHIFT)
    return sampled


# ---- the buffer ---------------------------------------------------------------------------------------------


def wrap(value: int) -> int:
    """Return 64 bits of `value`, which may be negative or have more, as a field holds them in every reading."""
    return (value & ((1 << 63) - 1)) | (((value >> 63) & 1) << 63)


def below(a: int, b: int) -> int:
    """Return 1 where `a` is below `b`, both of 64 bits, unsigned."""
    return (((~a & b) | ((~a | b) & (a - b))) >> 63) & 1


def management_event(spu: Spu, ec: int, mss: int) -> None:
    """State OtherSPEManagementEvent() and its like: service is required, unless it is already. PMBIRQ is PMBSR.S."""
    if (spu.status & PMBSR_S) == 0:
        spu.status = (spu.status & PMBSR_COLL) | PMBSR_S | (ec << PMBSR_EC_SHIFT) | mss


def room_for_record(spu: Spu, at: int) -> int:
    """Return 1 where a record of the largest size fits between `at` and the limit (SPEBufferIsFull())."""
    limit = spu.seen.pmblimitr & ~OFFSET
    last = wrap(limit - (1 << spu.filter.core.max_size))
    return (1 - below(last, at)) & (1 - below(limit, at)) & nonzero(limit)


def translation_fault(spu: Spu, at: int) -> int:
    """Return what the translation of `at` comes to: 0, or a fault as in `Spu.fault`."""
    if buffer_regime(spu) == HOST:
        return 0
    page = ((at >> PAGE_SHIFT) - spu.fault_page) & ((1 << 52) - 1)
    if page > 1:
        return FSC_TRANSLATION
    return spu.fault[page]


def fault_event(spu: Spu, fault: int, partial: int) -> None:
    """A write of a record faulted (DebugWriteFault()); `partial` is 1 where part of it was written."""
    ec = PMBSR_EC_STAGE1
    if fault & STAGE2 != 0:
        ec = PMBSR_EC_STAGE2
    management_event(spu, ec, (fault & (STAGE2 - 1)) | (PMBSR_DL & -partial))


def write_to_buffer(spu: Spu, size: int) -> int:
    """State SPEWriteToBuffer(), and what SPECompleteSample() does after it. Return 1 where the record was written."""
    if room_for_record(spu, spu.pointer) == 0:
        spu.unpredictable |= UNPREDICTABLE_POINTER
        management_event(spu, PMBSR_EC_OTHER, PMBSR_BSC_FULL)
        return 0
    if spu.pointer & ((1 << spu.filter.core.align) - 1) != 0:
        fault_event(spu, FSC_ALIGNMENT, 0)
        return 0
    fault = translation_fault(spu, spu.pointer)
    if fault != 0:
        fault_event(spu, fault, 0)
        return 0
    in_page = (1 << PAGE_SHIFT) - (spu.pointer & OFFSET)
    if in_page < size:
        fault = translation_fault(spu, spu.pointer + in_page)
        if fault != 0:
            spu.pointer = wrap(spu.pointer + in_page)
            fault_event(spu, fault, 1)
            return 0
    advance(spu, 1, size)
    return 1


def advance(spu: Spu, records: int, size: int) -> None:
    """The unit has written records of `size` bytes each: its pointer moves on, and the buffer may be full."""
    spu.pointer = wrap(spu.pointer + records * size)
    spu.initiated = min(255, spu.initiated + records)
    spu.written += records
    if room_for_record(spu, spu.pointer) == 0:
        management_event(spu, PMBSR_EC_OTHER, PMBSR_BSC_FULL)


def initiate(spu: Spu) -> None:
    """The oldest record that waits leaves the unit: its address is translated, and its write initiated.

    Where the buffer is disabled, it is lost.
    """
    size = spu.pending[0]
    source = spu.source[0]
    for i in range(1, spu.nr_pending):
        spu.pending[i - 1] = spu.pending[i]
        spu.source[i - 1] = spu.source[i]
    spu.nr_pending -= 1
    spu.pending[spu.nr_pending] = 0
    spu.source[spu.nr_pending] = 0
    at = spu.pointer
    to = LOST
    if not profiling_buffer_enabled(spu):
        spu.lost += int((spu.status & PMBSR_S) == 0)
    elif write_to_buffer(spu, size) == 1:
        to = buffer_regime(spu)
        spu.misplaced += int(to != source or spu.in_buffer_of != source)
    if spu.nr_written < len(spu.written_to):
        spu.written_to[spu.nr_written] = to
        spu.written_at[spu.nr_written] = at
        spu.nr_written += 1


def form_record(spu: Spu, size: int, source: int) -> None:
    """A sample passed the filters: its record, of `size` bytes padded, waits in the unit.

    Where that has no room, the oldest leaves first; when those that wait fill the buffer, all do, so that no operation
    is sampled that there will be no room for. `source` is whose operation it is: HOST, or a guest.
    """
    spu.formed += 1
    if discards(spu):
        return
    if spu.nr_pending == len(spu.pending):
        initiate(spu)
    spu.pending[spu.nr_pending] = size
    spu.source[spu.nr_pending] = source
    spu.nr_pending += 1
    waiting = 0
    for i in range(spu.nr_pending):
        waiting += spu.pending[i]
    if room_for_record(spu, wrap(spu.pointer + waiting)) == 0:
        psb_csync(spu)


def write_through(spu: Spu, records: int, size: int) -> None:
    """Form and write `records` of `size` bytes, while none waits and all find room, in a page that is mapped.

    It is `form_record` and `initiate` so many times, for whoever has many.
    """
    spu.formed += records
    advance(spu, records, size)


def records_to_service(spu: Spu) -> int:
    """Return after how many more records of the largest size the unit will require service, those that wait included.

    0 where the next one does not find room; NEVER in discard mode. Translation faults are not foreseen.
    """
    if discards(spu):
        return NEVER
    if room_for_record(spu, spu.pointer) == 0:
        return 0
    limit = spu.seen.pmblimitr & ~OFFSET
    size = spu.filter.core.max_size
    return (wrap(limit - spu.pointer) >> size) & ((NEVER - 1) >> (size - 2))


# ---- synchronization ----------------------------------------------------------------------------------------


def psb_csync(spu: Spu) -> None:
    """State ProfilingSynchronizationBarrier(): all that was sampled is formatted, translated, and being written."""
    while spu.nr_pending > 0:
        initiate(spu)


def dsb(spu: Spu) -> None:
    """A DSB: writes that were initiated are complete."""
    spu.initiated = 0


def take_effect(spu: Spu, which: int) -> None:
    """Direct writes of the registers in the mask `which` reach the unit. Without an `isb` they may at any time."""
    which &= spu.unsynchronised
    spu.unsynchronised &= ~which
    if which & SYNC_PMSCR_EL1 != 0:
        spu.seen.pmscr_el1 = spu.pmscr_el1
    if which & SYNC_PMSCR_EL2 != 0:
        spu.seen.pmscr_el2 = spu.pmscr_el2
    if which & SYNC_PMBLIMITR != 0:
        spu.seen.pmblimitr = spu.pmblimitr
    if which & SYNC_PMBPTR != 0:
        spu.pointer = spu.pmbptr
        spu.in_buffer_of = spu.pointer_of
    if which & SYNC_PMBSR != 0:
        spu.status = spu.pmbsr
    if which & SYNC_E2PB != 0:
        spu.seen.e2pb = spu.e2pb
    spu.exposed |= int(profiling_buffer_enabled(spu) and spu.in_buffer_of != buffer_regime(spu))


def isb(spu: Spu) -> None:
    """A context synchronization event: direct writes reach the unit; what it has done to PMBPTR_EL1 and PMBSR_EL1 can
    be read, if its writes are complete.
    """
    take_effect(spu, SYNC_ALL)
    if spu.initiated == 0:
        spu.pmbptr = spu.pointer
        spu.pmbsr = spu.status


def pmbirq(spu: Spu) -> int:
    """Return the level of PMBIRQ: service is required."""
    return nonzero(spu.status & PMBSR_S)
