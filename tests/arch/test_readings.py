"""The PMU in its three readings: CPython, numba and Z3 agree."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import z3

from arch.support import MASK64, make_pe, near_edge, random_core, randomize, sizes_of
from arch.z3_values import evaluated
from pmuvisor import records
from pmuvisor.arch import sysreg
from pmuvisor.arch.pmu import (
    Pe,
    check_for_pmu_overflow,
    count_pmu_events,
    increment_cycle_counter,
    increment_instruction_counter,
    pmu_event,
    pmu_sw_increment,
    read,
    reset,
    write,
)
from pmuvisor.arch.sysreg import PMU_KEYS
from pmuvisor.arch.traps import ALLOWED, access
from pmuvisor.check.symbolic import Int, symbolic, word
from pmuvisor.compiled import compiled

ACCESS, COUNT, EVENT, CYCLES, INSTRUCTIONS, SW_INCREMENT, RESET = range(7)
NOT_ALLOWED = 1 << 8


def operate(pe: Pe, operation: int, el: int, key: int, is_write: int, value: int) -> int:
    """Do one of the things that can happen to a PMU; `key` is also an event, `value` also an amount."""
    if operation == ACCESS:
        where = access(pe, el, key, is_write)
        if where != ALLOWED:
            return NOT_ALLOWED | where
        if is_write == 0:
            return read(pe, el, key)
        write(pe, el, key, value)
    elif operation == COUNT:
        return count_pmu_events(pe, el) ^ (check_for_pmu_overflow(pe) << 40)
    elif operation == EVENT:
        pmu_event(pe, el, key, value)
    elif operation == CYCLES:
        increment_cycle_counter(pe, count_pmu_events(pe, el), value)
    elif operation == INSTRUCTIONS:
        increment_instruction_counter(pe, count_pmu_events(pe, el), value)
    elif operation == SW_INCREMENT:
        pmu_sw_increment(pe, el, value)
    elif operation == RESET:
        reset(pe)
    return 0


def random_operation(rng: random.Random, pe: Pe) -> tuple[int, int, int, int, int]:
    operation = rng.choice([ACCESS, ACCESS, ACCESS, ACCESS, COUNT, EVENT, CYCLES, INSTRUCTIONS, SW_INCREMENT, RESET])
    if operation == RESET and rng.random() < 0.9:
        operation = ACCESS
    key = rng.choice([0x00, 0x08, 0x11])
    value = near_edge(rng, pe.core.counter_top + 1) >> 2
    if operation == ACCESS:
        key = rng.choice([*PMU_KEYS, *PMU_KEYS[:15], sysreg.MDCR_EL2])
    if operation in (ACCESS, SW_INCREMENT):
        value = rng.choice([MASK64, 0, rng.getrandbits(64), 1 << rng.randrange(64)])
    return operation, rng.randrange(3), key, rng.getrandbits(1), value


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def in_z3(pe: Pe, arguments: tuple[int, int, int, int, int]) -> tuple[int, dict[records.Path, int]]:
    """Run `operate` on variables that are held to this state, and evaluate the one path that there is."""
    sizes = sizes_of(pe)
    operation, el, key, is_write, value = arguments
    start = symbolic(Pe, "pe", sizes)
    leaves = records.leaves(Pe, sizes)
    assume = [word(records.get(start, leaf.path)) == records.get(pe, leaf.path) for leaf in leaves]
    assume.append(z3.BitVec("value", 64) == value)

    def run() -> tuple[Pe, Any]:
        made = symbolic(Pe, "pe", sizes)
        made.core = records.copy(pe.core)  # a core is a constant of a proof: its N bounds the loops
        given: Any = Int(z3.BitVec("value", 64))
        return made, operate(made, operation, el, key, is_write, given)

    return evaluated(run, assume, leaves)


@pytest.mark.parametrize(("n", "scaled", "turns", "z3_turns"), [(31, 0, 3000, 12), (2, 1, 3000, 60)])
def test_cpython_numba_and_z3_agree_on_random_states_and_operations(
    n: int, scaled: int, turns: int, z3_turns: int
) -> None:
    fast = compiled(operate, boundscheck=True, also=(f"{__name__}.",))
    rng = random.Random(20 + n)
    for turn in range(turns):
        pe = randomize(make_pe(scaled=scaled, **random_core(rng, n)), rng)
        sizes = sizes_of(pe)
        row = np.zeros(1, records.layout(Pe, sizes))
        for step in range(4):
            records.store(pe, row, sizes)
            arguments = random_operation(rng, pe)
            symbolic_outcome = in_z3(pe, arguments) if step == 0 and turn % (turns // z3_turns) == 0 else None
            expected = operate(pe, *arguments)
            result = int(fast(row[0], *arguments[:-1], signed(arguments[-1])))
            assert result & MASK64 == expected, arguments
            back = records.new(Pe, sizes)
            records.load(back, row, sizes)
            assert back == pe, arguments
            if symbolic_outcome is not None:
                assert symbolic_outcome[0] == expected, arguments
                for path, value in symbolic_outcome[1].items():
                    assert value == records.get(pe, path), (arguments, path)
