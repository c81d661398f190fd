"""A run stops right behind the barriers that it is asked to stop behind, and behind no other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a64 import BRK, DSB_SY, ISB, SVC, mrs
from board.engine_support import Stepper, guest, needs_assembler, words
from board.spe_reference import disassemble, everything
from board.test_engine_profile import MOST, PROGRAMS, operations, started
from pmuvisor.arch.sysreg import PMCCNTR_EL0
from pmuvisor.board.engine import RAM_BASE, Action, Barrier, Engine, Lane, Stop, Watch
from pmuvisor.board.engine_profile import Profile

NOP, WFI, PSB = 0xD503201F, 0xD503207F, 0xD503223F
DMB_SY, DSB_ISH, DSB_NSHLD, SSBB, PSSBB, CLREX = 0xD5033FBF, 0xD5033B9F, 0xD503359F, 0xD503309F, 0xD503349F, 0xD5033F5F
ALL = Barrier.PSB | Barrier.DSB | Barrier.ISB
VBAR_EL1 = (3, 0, 12, 0, 0)


def stops(engine: Engine, limit: int = 1000) -> list[tuple[int, Barrier]]:
    """How many instructions had run at each stop, and what it was for; up to another stop."""
    seen = []
    while (stop := engine.run(limit)) is Stop.BARRIER:
        seen.append((engine.total, engine.barrier))
    assert stop is Stop.WFI
    return seen


KINDS = [
    (PSB, Barrier.PSB), (DSB_SY, Barrier.DSB), (DSB_ISH, Barrier.DSB), (DSB_NSHLD, Barrier.DSB), (SSBB, Barrier.DSB),
    (PSSBB, Barrier.DSB), (ISB, Barrier.ISB), (DMB_SY, Barrier(0)), (CLREX, Barrier(0)), (NOP, Barrier(0)),
    (0xD503225F, Barrier(0)), (0xD503229F, Barrier(0)),
]  # fmt: skip


@pytest.mark.parametrize(("word", "kind"), KINDS, ids=[disassemble(word, 0) for word, _ in KINDS])
@pytest.mark.parametrize("mask", [Barrier(0), Barrier.PSB, Barrier.DSB, Barrier.ISB, ALL])
@pytest.mark.parametrize("detail", [False, True])
def test_each_barrier_stops_a_run_that_asks_for_it(word: int, kind: Barrier, mask: Barrier, detail: bool) -> None:
    engine = guest(words(NOP, word, NOP, NOP, word, word, WFI), detail=detail)
    engine.barriers = mask
    assert stops(engine) == ([(n, kind) for n in (2, 5, 6)] if kind & mask else [])
    assert engine.total == 7


@needs_assembler
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(PROGRAMS)), st.integers(0, 7), st.lists(st.integers(1, 300), max_size=6))
def test_stops_are_those_of_a_count_of_all_instructions(program: str, mask: int, limits: list[int]) -> None:
    ops, engine = operations(program), started(program)
    expected = []
    for i, op in enumerate(ops):
        kinds = {"dsb": Barrier.DSB, "isb": Barrier.ISB, "psb": Barrier.PSB}
        kind = kinds.get(op.text.split()[0], Barrier(0))
        if kind & Barrier(mask):
            expected.append((i + 1, kind))
    engine.barriers = Barrier(mask)
    seen, limit = [], 0
    for more in (*limits, MOST):
        limit = min(limit + more, len(ops))
        while engine.run(limit) is Stop.BARRIER:
            seen.append((engine.total, engine.barrier))
    assert seen == expected


def test_barriers_can_be_asked_for_by_a_register_access_in_the_same_block() -> None:
    def on_sysreg(key: int, write: bool, value: int) -> int:
        engine.barriers = Barrier.DSB if not engine.barriers else Barrier(0)
        return 0

    read = mrs(1, PMCCNTR_EL0)
    engine = guest(words(DSB_SY, read, NOP, DSB_SY, NOP, read, DSB_SY, NOP, WFI), on_sysreg)
    engine.set_action(PMCCNTR_EL0, Action.CALL)
    assert stops(engine) == [(4, Barrier.DSB)]


def test_a_barrier_behind_an_instruction_that_faults_has_not_been_executed() -> None:
    engine = guest(words(0xD2A02001, 0xF9400022, DSB_SY, NOP))  # mov x1,#0x1000000; ldr x2,[x1]
    engine.ram.write(RAM_BASE + 0xA00, words(NOP, ISB, WFI))
    engine.write_register(*VBAR_EL1, RAM_BASE + 0x800)
    engine.barriers = ALL
    assert stops(engine) == [(3, Barrier.ISB)]


def test_a_barrier_at_el0_stops_too() -> None:
    engine = guest(words(NOP, DSB_SY, SVC))
    engine.ram.write(RAM_BASE + 0xC00, words(PSB, WFI))
    engine.write_register(*VBAR_EL1, RAM_BASE + 0x800)
    engine.pstate = 0x3C0
    engine.barriers = ALL
    assert stops(engine) == [(2, Barrier.DSB), (4, Barrier.PSB)]


def test_a_barrier_at_the_end_of_memory_stops_before_the_fetch_that_aborts_goes_on() -> None:
    engine = guest(words(0xD61F0020))  # br x1
    last = engine.ram.base + engine.ram.size - 4
    engine.ram.write(last, words(DSB_SY))
    engine.ram.write(RAM_BASE + 0xA00, words(NOP, WFI))
    engine.write_register(*VBAR_EL1, RAM_BASE + 0x800)
    engine.set_x(1, last)
    engine.barriers = ALL
    assert engine.run(100) is Stop.BARRIER
    assert engine.total == 2
    assert engine.pc == RAM_BASE + 0xA00


def test_a_barrier_and_a_limit_and_a_watch_at_one_place_stop_once_each() -> None:
    engine = guest(words(NOP, DSB_SY, NOP, WFI))
    engine.barriers = ALL
    engine.watch([Watch(1 << Lane.INST, 3, 2)])
    assert [engine.run(2) for _ in range(2)] == [Stop.BARRIER, Stop.LIMIT]
    assert [engine.run(3) for _ in range(2)] == [Stop.WATCH, Stop.WATCH]
    assert (engine.total, engine.pc) == (2, RAM_BASE + 8)


def test_code_that_becomes_a_barrier_stops() -> None:
    # adr x1,1f; ldr w2,2f; str w2,[x1]; dsb; ic ivau,x1; isb; 1: nop; wfi; 2: psb csync
    code = words(0x100000C1, 0x180000E2, 0xB9000022, DSB_SY, 0xD50B7521, ISB, NOP, WFI, PSB)
    engine = guest(code)
    engine.barriers = Barrier.PSB
    assert stops(engine) == [(7, Barrier.PSB)]


@needs_assembler
def test_lanes_are_the_same_with_stops_behind_barriers() -> None:
    chooser = random.Random(1)
    for program in ("levels", "self modifying", "addressing"):
        plain, stopping = started(program), started(program)
        plain.detail = stopping.detail = True
        n = len(operations(program))
        plain.run(n)
        while stopping.total < n:
            stopping.barriers = Barrier(chooser.randrange(8))
            stopping.run(min(n, stopping.total + chooser.randrange(1, 60)))
        assert (plain.counts() == stopping.counts()).all()


def test_without_detail_the_lanes_that_need_decoding_are_not_counted_for_barriers() -> None:
    engine = guest(words(0xF94003E2, DSB_SY, 0xB4FFFFC0, WFI))  # 1: ldr x2,[sp]; dsb; cbz x0,1b
    engine.barriers = Barrier.DSB
    for _ in range(5):
        engine.run(100)
    lanes = engine.counts()[1]
    assert lanes[Lane.INST] == engine.total == 14
    assert lanes[Lane.LD] == lanes[Lane.BR] == lanes[Lane.PC_WRITE] == 0


def test_a_sample_and_a_barrier_in_one_block_are_both_exact() -> None:
    for period in range(1, 9):
        engine = guest(words(0xF94003E2, DSB_SY, 0xF94003E3, NOP, ISB, 0xF94003E4, PSB, 0x17FFFFF9))
        engine.barriers = ALL
        engine.profile(Profile(2, period, period, everything()))
        seen = []
        while engine.run(200) is Stop.BARRIER:
            seen.append(engine.total)
            assert engine.take_records().sampled == seen[-1] // period - (seen[-2] if len(seen) > 1 else 0) // period
        assert seen == [n for n in range(1, 201) if n % 8 in (2, 5, 7)]


def test_a_step_over_a_barrier_counts_it_once() -> None:
    engine = guest(words(NOP, DSB_SY, NOP, WFI), detail=True)
    engine.barriers = ALL
    stepper = Stepper(engine)
    assert [stepper.step() for _ in range(4)] == [Stop.LIMIT, Stop.BARRIER, Stop.LIMIT, Stop.WFI]
    assert engine.total == 4


def test_an_exception_in_place_of_a_barrier_stops_nothing() -> None:
    engine = guest(words(NOP, BRK, DSB_SY))
    engine.ram.write(RAM_BASE + 0xA00, words(NOP, WFI))
    engine.write_register(*VBAR_EL1, RAM_BASE + 0x800)
    engine.barriers = ALL
    assert stops(engine) == []
