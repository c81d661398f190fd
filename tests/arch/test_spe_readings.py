"""The profiling unit in its three readings: CPython, numba and Z3 agree."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import z3

from arch.spe_support import BASE, PAGE, make_spu
from arch.support import MASK64, make_pe, sizes_of
from arch.z3_values import evaluated
from pmuvisor import records
from pmuvisor.arch import spe, spe_record
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.spe import Spu
from pmuvisor.arch.spe_record import RecordBytes, Sample
from pmuvisor.arch.sysreg import PMSCR_EL2, SPE_KEYS
from pmuvisor.arch.traps import ALLOWED
from pmuvisor.check.symbolic import Int, paths, symbolic, word
from pmuvisor.compiled import compiled

ACCESS, ASK, COUNT, FORM, INITIATE, WRITE_THROUGH, PSB, DSB, ISB, EFFECT, MDCR, EVENT = range(12)
NAMES = ("ACCESS", "ASK", "COUNT", "FORM", "INITIATE", "WRITE_THROUGH", "PSB", "DSB", "ISB", "EFFECT", "MDCR", "EVENT")
INFLIGHT = 3
SIZES = {"inflight": INFLIGHT}
NOT_ALLOWED = 1 << 8


def operate(pe: Pe, spu: Spu, operation: int, el: int, key: int, is_write: int, value: int) -> int:
    """Do one of the things that can happen to a profiling unit; return what can be said of it."""
    if operation == ACCESS:
        where = spe.access(pe, spu, el, key, is_write)
        if where != ALLOWED:
            return NOT_ALLOWED | where
        if is_write == 0:
            return spe.read(spu, el, key)
        spe.write(spu, key, value)
    elif operation == ASK:
        return ask(spu, el, is_write, value)
    elif operation == COUNT:
        return spe.count_operations(spu, min(value & 0x3FF, spe.operations_to_sample(spu)))
    elif operation == FORM:
        spe.form_record(spu, 16 + (value & 0x30), el)
    elif operation == INITIATE:
        if spu.nr_pending > 0:
            spe.initiate(spu)
    elif operation == WRITE_THROUGH:
        spe.write_through(spu, value & 0xFF, 64)
    elif operation == PSB:
        spe.psb_csync(spu)
    elif operation == DSB:
        spe.dsb(spu)
    elif operation == ISB:
        spe.isb(spu)
    elif operation == EFFECT:
        spe.take_effect(spu, value & 0x3F)
    elif operation == MDCR:
        spe.write_mdcr_el2(spu, value)
    elif operation == EVENT:
        spe.management_event(spu, value & 0x3F, (value >> 6) & 0x3F)
    return 0


def ask(spu: Spu, el: int, tge: int, value: int) -> int:
    """Return what all the questions about a unit come to."""
    answer = spe.room_for_record(spu, value) | (spe.below(spu.pointer, value) << 1) | (spe.pmbirq(spu) << 2)
    if spe.statistical_profiling_enabled(spu, el, tge):
        answer |= 1 << 3
    if spe.discards(spu):
        answer |= 1 << 4
    if spe.collect_context_el1(spu, el, tge):
        answer |= 1 << 5
    if spe.collect_physical_address(spu):
        answer |= 1 << 6
    if spe.collect_timestamp(spu):
        answer |= 1 << 7
    answer |= spe.translation_fault(spu, value) << 8
    return answer ^ spe.records_to_service(spu)


def near(rng: random.Random, address: int) -> int:
    return (address + rng.choice([0, 0, -64, 64, -57, 1, -PAGE, PAGE, -128, rng.getrandbits(13)])) & MASK64


def random_spu(rng: random.Random) -> Spu:
    """Return a unit of any core in any state, mostly one that is about to be full, to fault or to be disabled."""
    version = rng.choice([0, 1, 2, 3, 3, 5])
    spu = make_spu(
        INFLIGHT, pmsver=version, fne=int(version >= 3), fds=rng.getrandbits(1), ernd=rng.getrandbits(1),
        count_size=rng.choice([2, 3]), align=rng.choice([0, 4, 6]),
    )  # fmt: skip
    kept = [records.get(spu, ("filter", "core", field.name)) for field in records.fields(type(spu.filter.core))]
    for leaf in records.leaves(Spu, SIZES):
        if leaf.path[:2] != ("filter", "core"):
            records.put(spu, leaf.path, rng.choice([0, rng.getrandbits(leaf.width)]))
    assert kept == [records.get(spu, ("filter", "core", field.name)) for field in records.fields(type(spu.filter.core))]
    limit = rng.choice([BASE + PAGE, BASE + PAGE, 0, MASK64 & ~0xFFF])
    spu.seen.pmblimitr, spu.pmblimitr = limit | rng.choice([0, 1, 1, 1, 5]), limit | rng.choice([0, 1, 1])
    spu.pointer, spu.pmbptr = (rng.choice([near(rng, limit)] * 4 + [rng.getrandbits(64)]) for _ in range(2))
    spu.status = rng.choice([0, 0, 0, spu.status])
    spu.guest = rng.randrange(3)
    spu.fault_page = ((spu.pointer >> 12) - rng.choice([0, 0, 0, 1, 2])) & ((1 << 52) - 1)
    for i in range(2):
        spu.fault[i] = rng.choice([0, 0, 7, spe.STAGE2 | 15])
    spu.pmsicr = rng.choice([0, 1, 2, 300, rng.getrandbits(32)]) | (rng.getrandbits(8) * spu.filter.core.ernd) << 56
    spu.pmsirr = rng.choice([0, 1, 257, 512, rng.getrandbits(32) & ~0xFE])
    spu.random |= 1
    spu.nr_pending = rng.randrange(INFLIGHT + 1)
    for i in range(INFLIGHT):
        spu.pending[i] = rng.choice([16, 48, 64]) if i < spu.nr_pending else 0
    spu.initiated = rng.choice([0, 0, 1, 255])
    spu.nr_written = rng.randrange(3)
    for name in ("lost", "misplaced", "formed", "written"):
        setattr(spu, name, rng.randrange(100))
    return spu


def random_arguments(rng: random.Random, spu: Spu) -> tuple[int, int, int, int, int]:
    operation = rng.choice([ACCESS, ACCESS, ASK, COUNT, FORM, FORM, *range(12)])
    value = rng.choice([0, MASK64, rng.getrandbits(64), near(rng, spu.pointer), near(rng, spu.seen.pmblimitr)])
    key = rng.choice([*SPE_KEYS, PMSCR_EL2])
    el = 2 if key == PMSCR_EL2 else rng.randrange(3)
    return operation, el, key, rng.getrandbits(1), value


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def random_pe(rng: random.Random) -> Pe:
    pe = make_pe(2, fgt=rng.getrandbits(1), fgt2=0)
    pe.mdcr_el2 = rng.choice([0, 1 << 14, 3 << 12])
    pe.hdfgrtr_el2, pe.hdfgwtr_el2 = (rng.choice([1 << 62, rng.getrandbits(64)]) for _ in range(2))
    return pe


def test_cpython_and_numba_agree_on_random_states_and_operations() -> None:
    fast = compiled(operate, boundscheck=True, also=(f"{__name__}.",))
    rng = random.Random(31)
    done = set()
    for _ in range(1500):
        pe, spu = random_pe(rng), random_spu(rng)
        rows = [np.zeros(1, records.layout(of, sizes)) for of, sizes in ((Pe, sizes_of(pe)), (Spu, SIZES))]
        records.store(pe, rows[0], sizes_of(pe))
        for _ in range(4):
            records.store(spu, rows[1], SIZES)
            arguments = random_arguments(rng, spu)
            shown = (NAMES[arguments[0]], *arguments[1:])
            expected = operate(pe, spu, *arguments)
            result = int(fast(rows[0][0], rows[1][0], *arguments[:-1], signed(arguments[-1])))
            assert result & MASK64 == expected, shown
            back = records.new(Spu, SIZES)
            records.load(back, rows[1], SIZES)
            different = [leaf.path for leaf in records.leaves(Spu, SIZES) if
                         records.get(back, leaf.path) != records.get(spu, leaf.path)]  # fmt: skip
            assert different == [], shown
            done.add((arguments[0], expected != 0))
    assert len(done) > 14


def test_numba_forms_the_same_records_and_filters_alike() -> None:
    made = compiled(spe_record.construct_record, boundscheck=True)
    filtered = compiled(spe_record.collect_record, boundscheck=True)
    rng = random.Random(32)
    for _ in range(300):
        spu, sample = random_spu(rng), records.new(Sample, checked=True)
        for leaf in records.leaves(Sample):
            records.put(sample, leaf.path, rng.choice([0, 1, rng.getrandbits(leaf.width)]))
        sample.op_class = rng.randrange(3)
        sample.has_target = 0
        out = records.new(RecordBytes)
        spe_record.construct_record(spu.filter.core, sample, out)
        rows = [np.zeros(1, records.layout(of)) for of in (Sample, RecordBytes)]
        unit = np.zeros(1, records.layout(Spu, SIZES))
        records.store(sample, rows[0])
        records.store(spu, unit, SIZES)
        made(unit[0]["filter"]["core"], rows[0][0], rows[1][0])
        back = records.new(RecordBytes)
        records.load(back, rows[1])
        assert bytes(back.data[: back.size]) == bytes(out.data[: out.size])
        assert filtered(unit[0]["filter"], rows[0][0]) == spe_record.collect_record(spu.filter, sample)


def in_z3(pe: Pe, spu: Spu, arguments: tuple[int, int, int, int, int]) -> tuple[int, dict[records.Path, int]]:
    """Run `operate` on variables that are held to this state, and evaluate the one path that there is."""
    operation, el, key, is_write, value = arguments
    start = symbolic(Spu, "spu", SIZES)
    leaves = records.leaves(Spu, SIZES)
    assume = [word(records.get(start, leaf.path)) == records.get(spu, leaf.path) for leaf in leaves]
    assume.append(z3.BitVec("value", 64) == value)

    def run() -> tuple[Spu, Any]:
        made = symbolic(Spu, "spu", SIZES)
        made.filter.core = records.copy(spu.filter.core)  # a core is a constant of a proof
        given: Any = Int(z3.BitVec("value", 64))
        return made, operate(pe, made, operation, el, key, is_write, given)

    return evaluated(run, assume, leaves)


def test_z3_agrees_on_random_states_and_operations() -> None:
    rng = random.Random(33)
    for turn in range(60):
        pe, spu = random_pe(rng), random_spu(rng)
        arguments = (turn % 12, *random_arguments(rng, spu)[1:])
        if arguments[0] != ACCESS:
            arguments = (arguments[0], rng.randrange(3), *arguments[2:])
        result, state = in_z3(pe, spu, arguments)
        shown = (NAMES[arguments[0]], *arguments[1:])
        assert result == operate(pe, spu, *arguments), shown
        assert [path for path, value in state.items() if value != records.get(spu, path)] == [], shown


def test_z3_proves_that_below_is_the_comparison_without_sign() -> None:
    def run() -> Any:
        a: Any = Int(z3.BitVec("a", 64))
        b: Any = Int(z3.BitVec("b", 64))
        return spe.below(a, b)

    for solver, result in paths(run):
        expected = z3.If(z3.ULT(z3.BitVec("a", 64), z3.BitVec("b", 64)), z3.BitVecVal(1, 64), z3.BitVecVal(0, 64))
        assert solver.check(word(result) != expected) == z3.unsat
