"""One declaration of a record, three readings: what each gives, and that they agree."""

from __future__ import annotations

import random
from typing import Annotated, Any

import numpy as np
import pytest
import z3
from hypothesis import given
from hypothesis import strategies as st

from pmuvisor import records
from pmuvisor.check.symbolic import Int, paths, symbolic, word
from pmuvisor.compiled import compiled
from pmuvisor.records import U1, U6, U33, U64, Bits, Each, LedgerCount, RecordError, Role, WidthError, record


@record
class Counter:
    enabled: U1
    value: Annotated[int, Bits("width")]


@record
class Unit:
    mask: U33
    wide: U64
    index: U6
    counter: Annotated[list[Counter], Each("counters")]
    raw: Annotated[list[int], Each("counters", 12)]
    one: Counter
    ghost: Annotated[int, Bits(5), Role.GHOST]
    reads: LedgerCount


SIZES = {"counters": 3, "width": 64}


def tick(unit: Unit, amount: int) -> int:
    """Add to every enabled counter, mask the wide ones, and say which wrapped: a small semantic function."""
    wrapped = 0
    for i in range(3):
        counter = unit.counter[i]
        total = (counter.value + amount * counter.enabled) & 0xFFFF_FFFF_FFFF_FFFF
        carry = (((counter.value & amount) | ((counter.value | amount) & ~total)) >> 63) & counter.enabled
        counter.value = total
        wrapped |= carry << i
    unit.mask = (unit.mask | wrapped | (carry_chain(wrapped) << 30)) & 0x1_FFFF_FFFF
    if (unit.wide >> 63) & 1:
        unit.raw[unit.index & 1] = wrapped
        unit.reads += 1
    unit.wide = (unit.wide ^ (unit.wide << 1)) & 0xFFFF_FFFF_FFFF_FFFF
    return wrapped


def carry_chain(mask: int) -> int:
    return (mask & 1) + (mask & 2)


def random_unit(rng: random.Random) -> Unit:
    unit = records.new(Unit, SIZES)
    for leaf in records.leaves(Unit, SIZES):
        edge = [0, 1, (1 << leaf.width) - 1, 1 << (leaf.width - 1)]
        records.put(unit, leaf.path, rng.choice([*edge, rng.getrandbits(leaf.width)]))
    return unit


def test_leaves_are_every_integer_with_its_width_and_role() -> None:
    leaves = records.leaves(Unit, {"counters": 1, "width": 4})
    assert [(leaf.path, leaf.width) for leaf in leaves] == [
        (("mask",), 33),
        (("wide",), 64),
        (("index",), 6),
        (("counter", 0, "enabled"), 1),
        (("counter", 0, "value"), 4),
        (("raw", 0), 12),
        (("one", "enabled"), 1),
        (("one", "value"), 4),
        (("ghost",), 5),
        (("reads",), 62),
    ]
    assert [leaf.role for leaf in leaves][-2:] == [Role.GHOST, Role.LEDGER]


def test_storage_is_the_narrowest_signed_type_that_holds_the_width() -> None:
    widths = {1: "i1", 7: "i1", 8: "i2", 15: "i2", 16: "i4", 31: "i4", 32: "i8", 64: "i8"}
    assert {w: records.storage(w) for w in widths} == {w: np.dtype(t) for w, t in widths.items()}


def test_a_checked_record_refuses_what_its_fields_cannot_hold() -> None:
    unit = records.new(Unit, SIZES, checked=True)
    unit.mask = (1 << 33) - 1
    for value in (1 << 33, -1, True, 1.0):
        with pytest.raises(WidthError, match="mask"):
            unit.mask = value  # type: ignore[assignment]
    with pytest.raises(WidthError, match="raw"):
        unit.raw[1] = 1 << 12
    with pytest.raises(WidthError, match="index"):
        unit.raw[-1] = 0
    with pytest.raises(WidthError, match="enabled"):
        unit.counter[2].enabled = 2


def test_a_bad_declaration_is_refused_by_name() -> None:
    @record
    class Bad:
        text: str

    with pytest.raises(RecordError, match=r"Bad\.text"):
        records.fields(Bad)
    with pytest.raises(RecordError, match="counters"):
        records.new(Unit)


def test_a_copy_is_equal_and_independent() -> None:
    unit = random_unit(random.Random(1))
    twin = records.copy(unit)
    assert twin == unit
    twin.counter[1].value ^= 1
    assert twin != unit
    records.assign(unit, twin)
    assert twin == unit
    assert unit.counter[1] is not twin.counter[1]


@given(st.integers(0, 2**32), st.data())
def test_the_key_tells_states_apart_and_leaves_the_ledger_out(seed: int, data: st.DataObject) -> None:
    unit = random_unit(random.Random(seed))
    twin = records.copy(unit)
    twin.reads = 7
    assert records.key(unit, SIZES) == records.key(twin, SIZES)
    leaf = data.draw(st.sampled_from([x for x in records.leaves(Unit, SIZES) if x.role is not Role.LEDGER]))
    records.put(twin, leaf.path, records.get(twin, leaf.path) ^ 1)
    assert records.key(unit, SIZES) != records.key(twin, SIZES)


@given(st.integers(0, 2**32))
def test_a_record_survives_its_numpy_layout(seed: int) -> None:
    unit = random_unit(random.Random(seed))
    row = np.zeros(1, records.layout(Unit, SIZES))
    records.store(unit, row, SIZES)
    back = records.new(Unit, SIZES)
    records.load(back, row, SIZES)
    assert back == unit


def symbolic_outcome(unit: Unit, amount: int) -> dict[Any, int]:
    """Run `tick` on variables only, then look the one path of this state up and evaluate it."""

    def run() -> tuple[Unit, Any]:
        made = symbolic(Unit, "u", SIZES)
        return made, tick(made, Int(z3.BitVec("amount", 64)))  # type: ignore[arg-type]

    start = symbolic(Unit, "u", SIZES)
    state = [word(records.get(start, x.path)) == records.get(unit, x.path) for x in records.leaves(Unit, SIZES)]
    found = []
    for solver, (after, result) in paths(run, [*state, z3.BitVec("amount", 64) == amount]):
        assert solver.check() == z3.sat
        model = solver.model()
        out: dict[Any, int] = {"result": model.eval(word(result), True).as_long()}
        for leaf in records.leaves(Unit, SIZES):
            out[leaf.path] = model.eval(word(records.get(after, leaf.path)), True).as_long()
        found.append(out)
    assert len(found) == 1
    return found[0]


def test_one_function_gives_equal_results_in_cpython_under_numba_and_on_bit_vectors() -> None:
    fast = compiled(tick, boundscheck=True, also=(f"{__name__}.",))
    rng = random.Random(7)
    for turn in range(400):
        unit = random_unit(rng)
        unit.reads &= 0xFFFF
        amount = rng.choice([0, 1, rng.getrandbits(62)])
        row = np.zeros(1, records.layout(Unit, SIZES))
        records.store(unit, row, SIZES)
        symbolic_result = symbolic_outcome(unit, amount) if turn % 8 == 0 else None
        assert fast(row[0], amount) == tick(unit, amount)
        compiled_unit = records.new(Unit, SIZES)
        records.load(compiled_unit, row, SIZES)
        assert compiled_unit == unit
        records.check_widths(unit, SIZES)
        if symbolic_result is not None:
            for leaf in records.leaves(Unit, SIZES):
                assert symbolic_result[leaf.path] == records.get(unit, leaf.path)


def test_a_fork_explores_both_ways_and_only_the_feasible_ones() -> None:
    def choose() -> int:
        x: Any = Int(z3.BitVec("x", 64))
        if (x & 1) == 0:
            return 2 if x == 5 else 0
        return 1

    assert sorted(result for _, result in paths(choose)) == [0, 1]
