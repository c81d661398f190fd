"""Which operations are sampled, and which samples become records, by the Arm ARM's pseudocode, one by one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arch.spe_support import V1P0, V1P1, V1P2, V1P4, make_sample, make_spu, put
from pmuvisor.arch import spe, spe_record
from pmuvisor.arch.spe import Spu
from pmuvisor.arch.spe_record import Sample

# ---- the counter -----------------------------------------------------------------------------------------------


@dataclass
class Counter:
    """PMSICR_EL1 and PMSIRR_EL1, by SPEToCollectSample() and SPEResetSampleCounter()."""

    count: int
    ecount: int
    interval: int
    rnd: bool
    ernd: bool
    random: int
    """Marsaglia's xorshift with 13, 17 and 5: the next byte is the lowest of it."""

    def random_byte(self) -> int:
        byte = self.random & 0xFF
        for shift in (13, -17, 5):
            self.random ^= (self.random << shift if shift > 0 else self.random >> -shift) & 0xFFFF_FFFF
        return byte

    def operation(self) -> bool:
        """Count one operation and tell whether it is sampled."""
        if self.count == 0:
            self.count = max(1, self.interval) << 8  # 0 is UNPREDICTABLE, and here 1
            if self.rnd and not self.ernd:
                self.count |= self.random_byte()
        else:
            self.count -= 1
            if self.count == 0:
                if not (self.rnd and self.ernd):
                    return True
                self.ecount = self.random_byte()
                return self.ecount == 0
        if self.rnd and self.ernd and self.ecount:
            self.ecount -= 1
            return self.ecount == 0
        return False

    def state(self) -> tuple[int, int]:
        return self.count | self.ecount << 56, self.random


def spu_of(counter: Counter) -> Spu:
    spu = make_spu(seed=counter.random, ernd=int(counter.ernd))
    spu.pmsirr = counter.interval << 8 | counter.rnd
    spu.pmsicr = counter.count | counter.ecount << 56
    return spu


@st.composite
def counters(draw: st.DrawFn) -> Counter:
    ernd = draw(st.booleans())
    return Counter(
        count=draw(st.one_of(st.integers(0, 3), st.integers(0, 700), st.just(0xFFFF_FFFF))),
        ecount=draw(st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 255))) * ernd,
        interval=draw(st.integers(0, 3)),
        rnd=draw(st.booleans()),
        ernd=ernd,
        random=draw(st.integers(1, 0xFFFF_FFFF)),
    )


@settings(max_examples=150)
@given(counters(), st.lists(st.integers(1, 700), min_size=1, max_size=6))
def test_any_split_of_operations_samples_the_same_as_one_by_one(counter: Counter, pieces: list[int]) -> None:
    spu = spu_of(counter)
    for piece in pieces:
        while piece:
            amount = min(piece, spe.operations_to_sample(spu))
            sampled = spe.count_operations(spu, amount)
            expected = [counter.operation() for _ in range(amount)]
            assert not any(expected[:-1])
            assert sampled == int(expected[-1])
            assert (spu.pmsicr, spu.random) == counter.state()
            piece -= amount


@settings(max_examples=150)
@given(counters())
def test_the_next_sample_is_where_it_is_said_to_be(counter: Counter) -> None:
    said = spe.operations_to_sample(spu_of(counter))
    if said < 2000:
        assert [counter.operation() for _ in range(said)] == [False] * (said - 1) + [True]
    else:
        assert counter.count == 0xFFFF_FFFF
        assert not any(counter.operation() for _ in range(300))


def test_an_interval_of_0_is_1_and_noted() -> None:
    spu = make_spu()
    assert spe.operations_to_sample(spu) == 1 + 256
    assert spu.unpredictable == spe.UNPREDICTABLE_INTERVAL


def intervals(spu: Spu, many: int) -> set[int]:
    lengths = set()
    for _ in range(many):
        lengths.add(spe.operations_to_sample(spu))
        assert spe.count_operations(spu, spe.operations_to_sample(spu)) == 1
    return lengths


def test_with_jitter_intervals_are_up_to_255_longer_and_of_all_lengths() -> None:
    spu = make_spu(seed=99)
    spu.pmsirr = 1024 | 1
    assert intervals(spu, 3000) == set(range(1025, 1281))


def test_with_ernd_each_sample_comes_up_to_255_operations_after_its_turn() -> None:
    spu = make_spu(seed=99, ernd=1)
    spu.pmsirr = 1024 | 1
    lengths = intervals(spu, 3000)
    # Turns are 1,025 operations apart, whatever was added to one.
    assert min(lengths) in range(1025 - 255, 1025 - 200)
    assert max(lengths) in range(1025 + 200, 1025 + 256)


def test_without_jitter_each_interval_is_as_long_and_one_operation_reloads_the_counter() -> None:
    spu = make_spu()
    spu.pmsirr = 512
    for _ in range(5):
        assert spe.operations_to_sample(spu) == 513
        assert spe.count_operations(spu, 513) == 1
        assert spu.pmsicr == 0


def test_the_random_bytes_are_those_of_the_seed() -> None:
    one, same, other = (make_spu(seed=seed) for seed in (5, 5, 6))
    assert one.random == same.random != other.random
    state = one.random
    for _ in range(1000):
        state = spe.next_random(state)
        assert 0 < state < 1 << 32
    assert make_spu(seed=0).random != 0


# ---- filters ---------------------------------------------------------------------------------------------------

FE, FT, FL, FNE, FDS = 1, 2, 4, 8, 16
B, LD, ST = 1 << 16, 1 << 17, 1 << 18
ALWAYS = {1, 3, 5, 7}
BY_VERSION = {V1P0: set[int](), V1P1: {11}, V1P2: {11}, V1P4: {2, 4, 8, 9, 10, 11, 19, 20, 21, 22, 23}}
"""Bits of the Events packet that can be filtered by: from FEAT_SPE_FnE 6 as well."""

EXTENDED, ATOMIC, STORE = 2, 4, 1


def is_wanted(spu: Spu, sample: Sample) -> bool:
    """Say SPECollectRecord(), where nothing is UNPREDICTABLE, by the descriptions of the registers' fields."""
    f, core = spu.filter, spu.filter.core
    bits = ALWAYS | BY_VERSION[core.pmsver] | ({6} if core.fne else set())
    wanted = {bit for bit in bits if f.pmsevfr >> bit & 1}
    unwanted = {bit for bit in bits if f.pmsnevfr >> bit & 1}
    happened = {bit for bit in bits if sample.events >> bit & 1}
    if f.pmsfcr & FE and wanted - happened:
        return False
    if core.fne and f.pmsfcr & FNE and unwanted & happened:
        return False
    load_store = sample.op_class == 1
    store = load_store and bool(sample.op_subclass & STORE)
    atomic = load_store and not store and sample.op_subclass & (EXTENDED | ATOMIC) == EXTENDED | ATOMIC
    types = {B: sample.op_class == 2, LD: load_store and not store, ST: store or atomic}
    chosen = [type_bit for type_bit in types if f.pmsfcr & type_bit]
    if f.pmsfcr & FT and chosen and not any(types[type_bit] for type_bit in chosen):
        return False
    if f.pmsfcr & FL and sample.total_latency < f.pmslatfr:
        return False
    by_source = core.fds and f.pmsfcr & FDS and sample.has_source and load_store and not store
    return not (by_source and not f.pmsdsfr >> sample.source % 64 & 1)


MASKS = st.one_of(st.just(0), st.integers(0, 24).map(lambda bit: 1 << bit), st.integers(0, (1 << 26) - 1))


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    return make_sample(
        op_class=draw(st.integers(0, 2)),
        op_subclass=draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 0x12, 0x16])),
        events=draw(MASKS) | draw(st.integers(0, (1 << 26) - 1)),
        total_latency=draw(st.integers(0, 40)),
        has_source=draw(st.integers(0, 1)),
        source=draw(st.integers(0, 0xFFFF)),
    )


CORES = st.tuples(st.sampled_from(list(BY_VERSION)), st.integers(0, 1))
SOURCES = st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize("enables", range(32))
def test_a_sample_is_recorded_where_all_filters_that_are_on_let_it_pass(enables: int) -> None:
    outcomes = set()

    @settings(max_examples=80)
    @given(CORES, samples(), MASKS, MASKS, st.integers(0, 7), st.integers(0, 40), SOURCES)
    def compare(
        core: tuple[int, int], of: Sample, evfr: int, nevfr: int, types: int, latency: int, sources: int
    ) -> None:
        spu = make_spu(pmsver=core[0], fne=int(core[0] >= V1P2), fds=core[1])
        put(spu, PMSEVFR=evfr, PMSNEVFR=nevfr, PMSLATFR=latency, PMSDSFR=sources, PMSFCR=enables | types << 16)
        outcome = spe_record.collect_record(spu.filter, of)
        assert outcome == int(is_wanted(spu, of))
        outcomes.add(outcome)

    compare()
    assert outcomes == ({0, 1} if enables else {1})


def test_filters_that_are_off_let_everything_pass() -> None:
    spu = make_spu()
    put(spu, PMSEVFR=(1 << 64) - 1, PMSNEVFR=(1 << 64) - 1, PMSLATFR=0xFFF, PMSDSFR=0, PMSFCR=7 << 16)
    for op_class, events in product(range(3), (0, 0xFFFF)):
        assert spe_record.collect_record(spu.filter, make_sample(op_class=op_class, events=events)) == 1


def test_the_latency_filter_looks_at_cycles_and_not_at_what_the_packet_shows() -> None:
    spu = make_spu(count_size=2)
    put(spu, PMSLATFR=0xFFF, PMSFCR=FL)
    for cycles, recorded in ((0xFFE, 0), (0xFFF, 1), (0x1001, 1)):
        assert spe_record.collect_record(spu.filter, make_sample(total_latency=cycles)) == recorded
