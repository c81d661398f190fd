"""SPE: what a sampled operation's record is. Which samples are recorded, and the bytes of a record.

Each function states one of the Arm ARM's pseudocode functions of the Statistical Profiling Extension (J1.1.1,
"aarch64/debug/statisticalprofiling") and is named after it; packets are those of the "Statistical Profiling Extension
sample record specification". Where records go is `spe`'s matter; what was sampled is told by who executes.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor.arch.sysreg import (
    PMSFCR_B,
    PMSFCR_FDS,
    PMSFCR_FE,
    PMSFCR_FL,
    PMSFCR_FNE,
    PMSFCR_FT,
    PMSFCR_LD,
    PMSFCR_ST,
    SPEV1P1,
    SPEV1P4,
)
from pmuvisor.records import U1, U2, U4, U8, U16, U32, U64, Each, record

MAX_RECORD = 64
"""Bytes of the largest record, PMSIDR_EL1.MaxSize: that of a load comes to 62 at most."""

OP_OTHER = 0
OP_LOAD_STORE = 1
OP_BRANCH = 2
"""Sample.op_class: the class of the Operation Type packet."""

SUBCLASS_STORE = 1 << 0
"""Of OP_LOAD_STORE."""
SUBCLASS_EXTENDED = 1 << 1
"""An atomic, exclusive, or acquire-release access."""
SUBCLASS_ATOMIC = 1 << 2
SUBCLASS_EXCLUSIVE = 1 << 3
SUBCLASS_ACQUIRE_RELEASE = 1 << 4
SUBCLASS_SIMD_FP = 1 << 2
"""Of one that is not extended."""
SUBCLASS_CONDITIONAL = 1 << 0
"""Of OP_BRANCH, and of OP_OTHER."""
SUBCLASS_INDIRECT = 1 << 1
"""Of OP_BRANCH."""

EVENT_EXCEPTION = 1 << 0
EVENT_RETIRED = 1 << 1
EVENT_NOT_TAKEN = 1 << 6
"""Sample.events: bits of the Events packet."""

NON_SECURE = 1 << 63
"""Of an address packet."""
ADDRESS_EL_SHIFT = 61

# Headers of packets: header_hi:sz:header_lo, where sz is the logarithm of the payload's bytes.
_CONTEXT_EL1 = 0x64
_CONTEXT_EL2 = 0x65
_COUNTER = 0x98
_ADDRESS = 0xB0
_SOURCE = 0x43
_OPERATION = 0x48
_EVENTS = 0x52
_TIMESTAMP = 0x71
_END = 0x01


@record
class SpeFeatures:
    """What a core implements of the Statistical Profiling Extension: constant in a run."""

    pmsver: U4
    """ID_AA64DFR0_EL1.PMSVer; 0 is no SPE."""
    fne: U1
    """FEAT_SPE_FnE: filtering by inverse event, PMSNEVFR_EL1."""
    fds: U1
    """FEAT_SPE_FDS: filtering by data source, PMSDSFR_EL1."""
    ernd: U1
    """FEAT_SPE_ERnd: the random part of an interval is a second counter's."""
    lds: U1
    """PMSIDR_EL1.LDS: the data source is known of every load."""
    interval: U4
    """PMSIDR_EL1.Interval, the least interval recommended, as encoded."""
    count_size: U4
    """PMSIDR_EL1.CountSize: 2 for counters of 12 bits, 3 for 16."""
    max_size: U4
    """PMSIDR_EL1.MaxSize: the logarithm of the largest record's bytes."""
    align: U4
    """PMBIDR_EL1.Align: the logarithm of the bytes that a record is padded to; 6 at most here."""


@record
class Filter:
    """The filter registers, as sampling uses them."""

    core: SpeFeatures
    pmsfcr: U64
    pmsevfr: U64
    pmsnevfr: U64
    pmslatfr: U16
    pmsdsfr: U64


@record
class Sample:
    """One sampled operation, complete: what the pseudocode keeps in SPESample*."""

    pc: U64
    el: U2
    op_class: U2
    op_subclass: U8
    has_target: U1
    target: U64
    """Where a branch went, if it was taken; 64 bits of virtual address."""
    has_va: U1
    va: U64
    has_pa: U1
    pa: U64
    events: U64
    """Of the Events packet: what of it happened."""
    total_latency: U16
    """Cycles."""
    issue_latency: U16
    has_translation_latency: U1
    translation_latency: U16
    has_source: U1
    source: U16
    has_context_el1: U1
    context_el1: U32
    has_context_el2: U1
    context_el2: U32
    has_timestamp: U1
    timestamp: U64


@record
class RecordBytes:
    """A record that is being put together (SPERecordData, SPERecordSize)."""

    data: Annotated[list[int], Each(MAX_RECORD, 8)]
    size: U8


# ---- filters ------------------------------------------------------------------------------------------------


def filterable_events(core: SpeFeatures) -> int:
    """Return the bits of the Events packet that PMSEVFR_EL1 and PMSNEVFR_EL1 have (`mask` of SPEFilterByEvents()).

    Mispredicted, TLB walk, L1 refill and retired; alignment from SPEv1p1; not taken with FEAT_SPE_FnE; from SPEv1p4 the
    further accesses. The cores here have no IMPLEMENTATION DEFINED events, nor SVE's.
    """
    mask = (1 << 7) | (1 << 5) | (1 << 3) | (1 << 1)
    mask |= core.fne << 6
    if core.pmsver >= SPEV1P1:
        mask |= 1 << 11
    if core.pmsver >= SPEV1P4:
        mask |= (0x1F << 19) | (7 << 8) | (1 << 4) | (1 << 2)
    return mask


def rejected_by_events(f: Filter, events: int) -> bool:
    """State SPEFilterByEvents(): every event of PMSEVFR_EL1 is wanted, and none of PMSNEVFR_EL1.

    Where the filter has no event to look at, or one in both, it is CONSTRAINED UNPREDICTABLE; here it rejects nothing
    for a filter without events, and everything for a contradiction, as it would without the special case.
    """
    mask = filterable_events(f.core)
    wanted = f.pmsevfr & mask
    if f.pmsfcr & PMSFCR_FE != 0 and (events & wanted) != wanted:
        return True
    return f.core.fne == 1 and f.pmsfcr & PMSFCR_FNE != 0 and (events & f.pmsnevfr & mask) != 0


def is_load(sample: Sample) -> bool:
    """Tell whether a sample is of an operation that reads memory; an atomic does both."""
    return sample.op_class == OP_LOAD_STORE and (sample.op_subclass & SUBCLASS_STORE) == 0


def is_atomic(sample: Sample) -> bool:
    """Tell whether a sample is of an atomic that returns what it read (SPEOpType_LoadAtomic)."""
    both = SUBCLASS_EXTENDED | SUBCLASS_ATOMIC
    return is_load(sample) and (sample.op_subclass & both) == both


def is_store(sample: Sample) -> bool:
    """Tell whether a sample is of an operation that writes memory."""
    return (sample.op_class == OP_LOAD_STORE and (sample.op_subclass & SUBCLASS_STORE) != 0) or is_atomic(sample)


def rejected_by_type(f: Filter, sample: Sample) -> bool:
    """State SPEFilterByType(), without FEAT_SPE_EFT. With no type to choose it is open; here it rejects nothing."""
    types = PMSFCR_B | PMSFCR_LD | PMSFCR_ST
    if f.pmsfcr & PMSFCR_FT == 0 or f.pmsfcr & types == 0:
        return False
    wanted = f.pmsfcr & PMSFCR_B != 0 and sample.op_class == OP_BRANCH
    wanted = wanted or (f.pmsfcr & PMSFCR_LD != 0 and is_load(sample))
    return not (wanted or (f.pmsfcr & PMSFCR_ST != 0 and is_store(sample)))


def rejected_by_latency(f: Filter, sample: Sample) -> bool:
    """State SPEFilterByLatency()."""
    return f.pmsfcr & PMSFCR_FL != 0 and sample.total_latency < f.pmslatfr


def rejected_by_data_source(f: Filter, sample: Sample) -> bool:
    """State SPEFilterByDataSource(): of loads whose source is known."""
    if f.core.fds == 0 or f.pmsfcr & PMSFCR_FDS == 0:
        return False
    return sample.has_source == 1 and is_load(sample) and (f.pmsdsfr >> (sample.source & 0x3F)) & 1 == 0


def collect_record(f: Filter, sample: Sample) -> int:
    """State SPECollectRecord(): return 1 where the sample passes all filters and becomes a record."""
    if rejected_by_events(f, sample.events) or rejected_by_type(f, sample):
        return 0
    if rejected_by_latency(f, sample) or rejected_by_data_source(f, sample):
        return 0
    return 1


# ---- the bytes ----------------------------------------------------------------------------------------------


def add_packet(out: RecordBytes, header: int, payload: int) -> None:
    """State SPEAddPacketToRecord(): a header that says how long the payload is, and the payload, least byte first."""
    out.data[out.size] = header
    out.size += 1
    for i in range(1 << ((header >> 4) & 3)):
        out.data[out.size] = (payload >> (8 * i)) & 0xFF
        out.size += 1


def add_instruction_address(out: RecordBytes, index: int, address: int, el: int) -> None:
    """Add an address packet of an instruction: 56 bits, and where it was executed, which is Non-secure here."""
    add_packet(out, _ADDRESS | index, (address & ((1 << 56) - 1)) | NON_SECURE | (el << ADDRESS_EL_SHIFT))


def latency(core: SpeFeatures, cycles: int) -> int:
    """Return what a latency counter shows: it saturates at 12 or 16 bits."""
    top = 0xFFF
    if core.count_size != 2:
        top = 0xFFFF
    return min(cycles, top)


def construct_record(core: SpeFeatures, sample: Sample, out: RecordBytes) -> None:
    """State SPEConstructRecord(): the packets in the pseudocode's order, an end, and the padding.

    A record ends with its timestamp, or an end packet. Data addresses show 64 bits, physical ones 56 and NS.
    """
    out.size = 0
    if sample.has_context_el1 == 1:
        add_packet(out, _CONTEXT_EL1, sample.context_el1)
    if sample.has_context_el2 == 1:
        add_packet(out, _CONTEXT_EL2, sample.context_el2)
    add_packet(out, _COUNTER | 0, latency(core, sample.total_latency))
    add_packet(out, _COUNTER | 1, latency(core, sample.issue_latency))
    if sample.has_translation_latency == 1:
        add_packet(out, _COUNTER | 2, latency(core, sample.translation_latency))
    add_instruction_address(out, 0, sample.pc, sample.el)
    if sample.has_target == 1:
        add_instruction_address(out, 1, sample.target, sample.el)
    if sample.has_va == 1:
        add_packet(out, _ADDRESS | 2, sample.va)
    if sample.has_pa == 1:
        add_packet(out, _ADDRESS | 3, (sample.pa & ((1 << 56) - 1)) | NON_SECURE)
    if sample.has_source == 1:
        add_packet(out, _SOURCE, sample.source & 0xFF)
    add_packet(out, _OPERATION | sample.op_class, sample.op_subclass)
    add_packet(out, _EVENTS, sample.events & 0xFFFF)
    close_record(core, sample, out)


def close_record(core: SpeFeatures, sample: Sample, out: RecordBytes) -> None:
    """End a record, and pad it to a multiple of 1 << PMBIDR_EL1.Align bytes."""
    if sample.has_timestamp == 1:
        add_packet(out, _TIMESTAMP, sample.timestamp)
    else:
        out.data[out.size] = _END
        out.size += 1
    padding = -out.size & ((1 << core.align) - 1)
    for i in range(padding):
        out.data[out.size + i] = 0
    out.size += padding
