"""The bytes of a record: two decoders that know nothing of the semantics, one of them perf, read the sample in them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arch.spe_packets import ADDRESS, CONTEXT, COUNTER, EVENTS, OPERATION, SOURCE, Record, decode
from arch.spe_support import make_core, make_sample
from lab.test_perfdata import needs_perf, packets, written
from pmuvisor import records
from pmuvisor.arch import spe_record
from pmuvisor.arch.spe_record import RecordBytes, Sample, SpeFeatures
from pmuvisor.lab.perfdata import AuxTrace

LOW56 = (1 << 56) - 1
NS = 1 << 63
EVENT_NAMES = {
    0: "EXCEPTION-GEN", 1: "RETIRED", 2: "L1D-ACCESS", 3: "L1D-REFILL", 4: "TLB-ACCESS", 5: "TLB-REFILL",
    6: "NOT-TAKEN", 7: "MISPRED", 8: "LLC-ACCESS", 9: "LLC-REFILL", 10: "REMOTE-ACCESS", 11: "ALIGNMENT",
}  # fmt: skip
"""As perf calls the bits of an Events packet."""


def random_sample(rng: random.Random) -> Sample:
    """A sample of any kind, as far as one operation can be of it."""
    op_class = rng.randrange(3)
    load_store, branch = int(op_class == 1), int(op_class == 2)
    return make_sample(
        pc=rng.getrandbits(64),
        el=rng.randrange(3),
        op_class=op_class,
        op_subclass=rng.choice(list(OPERATIONS[op_class])),
        has_target=branch & rng.getrandbits(1),
        target=rng.getrandbits(64),
        has_va=load_store,
        va=rng.getrandbits(rng.choice([48, 64])),
        has_pa=load_store & rng.getrandbits(1),
        pa=rng.getrandbits(rng.choice([48, 64])),
        events=rng.getrandbits(12),
        total_latency=rng.choice([rng.getrandbits(16), rng.getrandbits(8)]),
        issue_latency=rng.getrandbits(16),
        has_translation_latency=load_store & rng.getrandbits(1),
        translation_latency=rng.getrandbits(16),
        has_source=load_store & rng.getrandbits(1),
        source=rng.getrandbits(16),
        has_context_el1=rng.getrandbits(1),
        context_el1=rng.getrandbits(32),
        has_context_el2=rng.getrandbits(1),
        context_el2=rng.getrandbits(32),
        has_timestamp=rng.getrandbits(1),
        timestamp=rng.getrandbits(63),
    )


def bytes_of(core: SpeFeatures, sample: Sample) -> bytes:
    out = records.new(RecordBytes)
    out.data[:] = [0xAA] * len(out.data)  # whatever was there before
    spe_record.construct_record(core, sample, out)
    return bytes(out.data[: out.size])


def expected_packets(core: SpeFeatures, sample: Sample) -> dict[tuple[str, int], int]:
    """Return what the packets of a sample are to say, by the pages of the packets."""
    top = 0xFFF if core.count_size == 2 else 0xFFFF
    expected = {
        (COUNTER, 0): min(sample.total_latency, top),
        (COUNTER, 1): min(sample.issue_latency, top),
        (ADDRESS, 0): sample.pc & LOW56 | sample.el << 61 | NS,
        (OPERATION, sample.op_class): sample.op_subclass,
        (EVENTS, 0): sample.events,
    }
    optional = [
        (sample.has_context_el1, (CONTEXT, 0), sample.context_el1),
        (sample.has_context_el2, (CONTEXT, 1), sample.context_el2),
        (sample.has_translation_latency, (COUNTER, 2), min(sample.translation_latency, top)),
        (sample.has_target, (ADDRESS, 1), sample.target & LOW56 | sample.el << 61 | NS),
        (sample.has_va, (ADDRESS, 2), sample.va),
        (sample.has_pa, (ADDRESS, 3), sample.pa & LOW56 | NS),
        (sample.has_source, (SOURCE, 0), sample.source & 0xFF),
        (sample.has_timestamp, ("timestamp", 0), sample.timestamp),
    ]
    return expected | {packet: value for there, packet, value in optional if there}


def one_record(data: bytes) -> Record:
    (record,) = decode(data)
    return record


@settings(max_examples=400)
@given(st.randoms(use_true_random=False), st.integers(0, 6), st.sampled_from([2, 3]))
def test_a_record_decodes_to_its_sample_and_is_padded(rng: random.Random, align: int, count_size: int) -> None:
    core, sample = make_core(align=align, count_size=count_size), random_sample(rng)
    data = bytes_of(core, sample)
    record = one_record(data)
    assert record.packets == expected_packets(core, sample)
    assert len(data) % (1 << align) == 0
    assert len(data) - record.size in range(1 << align)
    assert set(data[record.size :]) <= {0}


def test_the_largest_record_of_a_load_has_62_bytes() -> None:
    everything = {field.name: 1 for field in records.fields(Sample) if field.name.startswith("has_")}
    # A target is a branch's, the data's addresses are a load's: no operation here has both.
    data = bytes_of(make_core(align=0), make_sample(op_class=1, **everything | {"has_target": 0}))
    assert len(data) == 5 + 5 + 3 * 3 + 9 + 9 + 9 + 2 + 2 + 3 + 9 <= spe_record.MAX_RECORD


@pytest.mark.parametrize("timestamp", [0, 1])
def test_a_record_ends_with_its_timestamp_or_an_end(timestamp: int) -> None:
    data = bytes_of(make_core(align=0), make_sample(has_timestamp=timestamp, timestamp=0x1234))
    assert data[-9:] == b"\x71\x34\x12" + bytes(6) if timestamp else data[-1:] == b"\x01"


def test_records_one_after_the_other_are_each_found() -> None:
    rng = random.Random(4)
    for align in (0, 3, 6):
        core = make_core(align=align)
        samples = [random_sample(rng) for _ in range(50)]
        data = b"".join(bytes_of(core, sample) for sample in samples)
        assert [record.packets for record in decode(data)] == [expected_packets(core, sample) for sample in samples]


# ---- perf ------------------------------------------------------------------------------------------------------


OTHER, BRANCH = {0: "OTHER INSN-OTHER", 1: "OTHER COND-SELECT"}, {0: "B", 1: "B COND", 2: "B IND"}
LOAD = {0: "LD GP-REG", 4: "LD SIMD-FP", 2: "LD", 6: "LD AT", 0x0A: "LD EXCL", 0x12: "LD AR"}
STORE = {subclass | 1: name.replace("LD", "ST") for subclass, name in LOAD.items()}
OPERATIONS = (OTHER, LOAD | STORE, BRANCH)
"""By class and subclass, as perf calls an Operation Type packet."""


def perfs_names(core: SpeFeatures, sample: Sample) -> list[str]:
    """What perf shows of each packet, in order."""
    top = 0xFFF if core.count_size == 2 else 0xFFFF
    where = f"el{sample.el} ns=1"
    shown = [(sample.has_context_el1, f"CONTEXT {sample.context_el1:#x} el1")]
    shown += [(sample.has_context_el2, f"CONTEXT {sample.context_el2:#x} el2")]
    shown += [(1, f"LAT {min(sample.total_latency, top)} TOT"), (1, f"LAT {min(sample.issue_latency, top)} ISSUE")]
    shown += [(sample.has_translation_latency, f"LAT {min(sample.translation_latency, top)} XLAT")]
    shown += [(1, f"PC {sample.pc & LOW56:#x} {where}")]
    shown += [(sample.has_target, f"TGT {sample.target & LOW56:#x} {where}"), (sample.has_va, f"VA {sample.va:#x}")]
    shown += [(sample.has_pa, f"PA {sample.pa & LOW56:#x} ns=1 ch=0 pat=0")]
    shown += [(sample.has_source, f"DATA-SOURCE {sample.source & 0xFF}")]
    shown += [(1, OPERATIONS[sample.op_class][sample.op_subclass])]
    shown += [(1, " ".join(["EV", *(name for bit, name in EVENT_NAMES.items() if sample.events >> bit & 1)]))]
    shown += [(sample.has_timestamp, f"TS {sample.timestamp}"), (1 - sample.has_timestamp, "END")]
    return [name for there, name in shown if there]


@needs_perf
@pytest.mark.parametrize("count_size", [2, 3])
def test_perf_reads_every_field_of_random_records(count_size: int, tmp_path: Path) -> None:
    core, rng = make_core(count_size=count_size), random.Random(count_size)
    samples = [random_sample(rng) for _ in range(300)]
    data = b"".join(bytes_of(core, sample) for sample in samples)
    shown = [what for _, what in packets(written(tmp_path / "perf.data", AuxTrace(0, data)))]
    names = [what.strip() for what in shown if what != "PAD"]
    expected = [name for sample in samples for name in perfs_names(core, sample)]
    assert names == expected
