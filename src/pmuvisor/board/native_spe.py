"""Samples of executed instructions, compiled: which instruction is sampled, what is known of it, and its record.

`native` counts down to the next sample and calls here, through pointers in its state, when the block that holds it is
about to run. A sample is *open* (native.SAMPLE) from then until the next hook of whatever kind tells what came of it:
that the block ran to its end, or up to where. So a sample costs two slow blocks, and no stop, where the address of a
load or store can be told from the registers at either of the two hooks; elsewhere the block is cut in front of it.

The words of AT_PROFILE, indexed by the names below, are this module's own state; `engine_profile` sets them.
"""

# mypy: disable-error-code="no-any-return"

from typing import Any

import numpy as np
from numba import carray, types

from pmuvisor.arch import spe_record
from pmuvisor.arch.spe import next_random
from pmuvisor.board import native
from pmuvisor.board.native import STATE_WORDS, read_words, sample_left, total
from pmuvisor.board.native_memory import as_pointer, callback, compiled, load32, store8, store64
from pmuvisor.board.native_operands import address, address_registers, lost, operation, written
from pmuvisor.compiled import compiled as semantics
from pmuvisor.records import layout

(
    INDEX,  # of the open sample in the block in progress
    WORD,
    ADDRESS_LATER,  # its address is still to be computed, from the registers after it
    NOW,  # instructions retired before it, by the engine's clock
    LATENCY,
    WITH_CONTEXT,
    WITH_TIMESTAMP,
    LOADS_HAVE_SOURCE,
    ZVA_BYTES,
    AT_CONTEXT,
    PERIOD,
    JITTER,
    RANDOM,
    LAST,  # PROFILE_AT of the last sample: as long as nothing was counted since, its count has not been reloaded
    LAST_RANDOM,  # RANDOM until then
    ROOM,  # records that may still be made
    SAMPLED,
    REJECTED,
    RECORDS,  # in the buffer
    BYTES,  # of them
    AT_RECORDS,
    AT_SIZES,
    AT_SAMPLE,  # the sample, the filter, and the bytes of a record in the making: rows of their records' layouts
    AT_FILTER,
    AT_OUT,
) = range(25)
PROFILE_WORDS = 25

CAPACITY = 4096
"""Records that the buffer holds. Python comes to take them when all but a few are there."""
MARGIN = 8
RECORD_ROOM = spe_record.MAX_RECORD

SAMPLE_LAYOUT = layout(spe_record.Sample)
FILTER_LAYOUT = layout(spe_record.Filter)
OUT_LAYOUT = layout(spe_record.RecordBytes)

collect_record = semantics(spe_record.collect_record)
construct_record = semantics(spe_record.construct_record)
random_after = semantics(next_random)


# --- the sample -----------------------------------------------------------------------------------------------------


@compiled
def profile_words(st: Any) -> Any:
    return carray(as_pointer(st[native.AT_PROFILE]), (PROFILE_WORDS,), np.int64)


@compiled
def sample_row(sp: Any) -> Any:
    return carray(as_pointer(sp[AT_SAMPLE]), (1,), SAMPLE_LAYOUT)


@compiled
def filter_row(sp: Any) -> Any:
    return carray(as_pointer(sp[AT_FILTER]), (1,), FILTER_LAYOUT)


@compiled
def describe(st: Any, sp: Any, word: int, pc: int, el: int, now: int) -> None:
    """Fill in what is known of a sample before its instruction has run."""
    sample = sample_row(sp)[0]
    op_class, op_subclass = operation(word)
    is_exception = word & 0xFFE0001C == 0xD4000000  # SVC, HVC, SMC
    is_load = op_class == spe_record.OP_LOAD_STORE and op_subclass & spe_record.SUBCLASS_STORE == 0
    sp[WORD], sp[NOW], sp[ADDRESS_LATER] = word, now, 0
    sample.pc, sample.el = pc, el
    sample.op_class, sample.op_subclass = op_class, op_subclass
    sample.has_target = 0
    sample.has_va = types.int64(op_class == spe_record.OP_LOAD_STORE)
    sample.events = spe_record.EVENT_RETIRED | (spe_record.EVENT_EXCEPTION if is_exception else 0)
    sample.total_latency = sp[LATENCY]
    sample.has_source = types.int64(is_load) & sp[LOADS_HAVE_SOURCE]
    sample.has_context_el1 = sp[WITH_CONTEXT]
    sample.context_el1 = load32(sp[AT_CONTEXT])
    sample.has_timestamp = sp[WITH_TIMESTAMP]


@compiled
def compute_address(st: Any, sp: Any, done: bool) -> None:
    sample = sample_row(sp)[0]
    sample.va = address(sp[WORD], sample.pc, st[native.XREGS], done, sp[ZVA_BYTES])


@compiled
def close(st: Any, sp: Any, after: int) -> None:
    """The sample's instruction has retired, and the one at `after` comes next. Count down to the next sample."""
    sample = sample_row(sp)[0]
    if sp[ADDRESS_LATER] != 0:
        compute_address(st, sp, True)
    if sample.op_class == spe_record.OP_BRANCH:
        if sample.op_subclass & spe_record.SUBCLASS_CONDITIONAL != 0 and after == sample.pc + 4:
            sample.events |= spe_record.EVENT_NOT_TAKEN
        else:
            sample.has_target, sample.target = 1, after
    sp[SAMPLED] += 1
    if collect_record(filter_row(sp)[0], sample) == 1:
        append(st, sp, sample)
    else:
        sp[REJECTED] += 1
    st[native.SAMPLE] = 0
    sp[LAST], sp[LAST_RANDOM] = st[native.PROFILE_AT], sp[RANDOM]
    st[native.PROFILE_AT] += distance(sp)
    if sp[JITTER] != 0:
        sp[RANDOM] = random_after(sp[RANDOM])


@compiled
def distance(sp: Any) -> int:
    """Operations from a sample to the next."""
    return sp[PERIOD] + (sp[RANDOM] & 0xFF if sp[JITTER] != 0 else 0)


@compiled
def append(st: Any, sp: Any, sample: Any) -> None:
    """Put the sample's record into the buffer."""
    clock = st[native.CLOCK_REST] + sp[NOW] * st[native.CLOCK_MUL]
    sample.timestamp = st[native.CLOCK_BASE] + clock // st[native.CLOCK_DIV]
    out = carray(as_pointer(sp[AT_OUT]), (1,), OUT_LAYOUT)[0]
    construct_record(filter_row(sp)[0].core, sample, out)
    at = sp[AT_RECORDS] + sp[BYTES]
    for i in range(out.size):
        store8(at + i, out.data[i])
    store64(sp[AT_SIZES] + 8 * sp[RECORDS], out.size)
    sp[BYTES] += out.size
    sp[RECORDS] += 1
    sp[ROOM] -= 1
    if sp[ROOM] == 0 or sp[RECORDS] >= CAPACITY - MARGIN:
        st[native.PROFILE_LOOK] = 1


# --- hooks ----------------------------------------------------------------------------------------------------------


@compiled
def cut_for_address(st: Any, sp: Any, k: int, end: int) -> bool:
    """Find the address of the load or store that is the k-th of the words, of which `end` run; whether it cannot be."""
    needed = address_registers(sp[WORD])
    before, after = 0, lost(sp[WORD])
    for i in range(k):
        before |= written(load32(st[native.AT_WORDS] + 4 * i))
    if needed & before == 0:
        compute_address(st, sp, False)
        return False
    for i in range(k + 1, end):
        after |= written(load32(st[native.AT_WORDS] + 4 * i))
    sp[ADDRESS_LATER] = 1
    return needed & after != 0


@callback(types.int64, types.voidptr, types.int64, types.int64, types.int64, types.int64)
def on_sample_plan(data: Any, block: int, n: int, el: int, k: int) -> int:
    """The k-th of the n instructions of a block is the next sample. How many may run: see `native.room`.

    No more than up to the next one, up to the last record that there is room for, or up to the sample itself where its
    address could not be told otherwise.
    """
    st = carray(data, (STATE_WORDS,), np.int64)
    sp = profile_words(st)
    word = 0
    if read_words(st, block, n):
        word = load32(st[native.AT_WORDS] + 4 * k)
    describe(st, sp, word, block + 4 * k, el, total(st) + k)
    sample = sample_row(sp)[0]
    end = min(n, k + distance(sp))
    if sp[ROOM] == 1 and end > k + 1 and collect_record(filter_row(sp)[0], sample) == 1:
        end = k + 1
    if sample.has_va == 1 and cut_for_address(st, sp, k, end):
        return k
    sp[INDEX] = k
    st[native.SAMPLE] = 1
    return end if end < n else n + 1


@callback(types.void, types.voidptr, types.int64)
def on_sample_next(data: Any, after: int) -> None:
    """The block with the open sample has run to its end, and the instruction at `after` comes next."""
    st = carray(data, (STATE_WORDS,), np.int64)
    close(st, profile_words(st), after)


@callback(types.void, types.voidptr, types.int64)
def on_sample_cut(data: Any, ran: int) -> None:
    """So many instructions of the block with the open sample have run."""
    st = carray(data, (STATE_WORDS,), np.int64)
    sp = profile_words(st)
    if ran > sp[INDEX]:
        close(st, sp, sample_row(sp)[0].pc + 4)


@callback(types.void, types.voidptr, types.int64, types.int64)
def on_sample_access(data: Any, pc: int, el: int) -> None:
    """The access to a system register at `pc`, which the machine did, has retired. No sample is open."""
    st = carray(data, (STATE_WORDS,), np.int64)
    if not (st[native.PROFILE] >> el) & 1 or sample_left(st) != 0:
        return
    sp = profile_words(st)
    describe(st, sp, 0, pc, el, total(st) - 1)  # whatever the word is: of no class and without operands
    close(st, sp, pc + 4)
