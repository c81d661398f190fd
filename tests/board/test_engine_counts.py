"""Exact stops and exact counts."""

import random

import pytest
from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, Uc
from unicorn import arm64_const as uc_const

from a64 import mrs
from board.engine_support import (
    COMPUTE,
    RAM_SIZE,
    STACK,
    Stepper,
    assemble,
    guest,
    needs_assembler,
    registers,
    words,
)
from pmuvisor.arch.sysreg import PMCCNTR_EL0, encode
from pmuvisor.board.engine import RAM_BASE, Action, Engine, Lane, Stop, Watch

BOTH = 3
NOP, WFI, HERE = 0xD503201F, 0xD503207F, 0x14000000
X = [uc_const.UC_ARM64_REG_X0 + n for n in range(29)] + [uc_const.UC_ARM64_REG_X29, uc_const.UC_ARM64_REG_X30]


def plain_unicorn(code: bytes, x0: int, count: int) -> list[int]:
    """The state after `count` instructions, by Unicorn's own single stepping and no engine."""
    uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
    uc.mem_map(RAM_BASE, RAM_SIZE)
    uc.mem_write(RAM_BASE, code)
    uc.reg_write(uc_const.UC_ARM64_REG_X0, x0)
    uc.reg_write(uc_const.UC_ARM64_REG_SP, STACK)
    uc.emu_start(RAM_BASE, 0, 0, count)
    tail = (uc_const.UC_ARM64_REG_SP, uc_const.UC_ARM64_REG_PC, uc_const.UC_ARM64_REG_NZCV)
    return [uc.reg_read(r) for r in (*X, *tail)]


def engine_state(engine: Engine) -> list[int]:
    return [*registers(engine)[:-1], engine.pstate & 0xF000_0000]


@needs_assembler
@pytest.mark.parametrize("detail", [False, True])
def test_run_stops_after_exactly_the_asked_number_of_instructions(detail: bool) -> None:
    code, chooser = assemble(COMPUTE), random.Random(7)
    for count in sorted(chooser.sample(range(1, 9000), 12)):
        engine = guest(code, detail=detail, x0=5)
        assert engine.run(count) is Stop.LIMIT
        assert engine.total == count
        assert engine_state(engine) == plain_unicorn(code, 5, count)


@needs_assembler
def test_many_small_runs_do_what_one_long_run_does() -> None:
    code, chooser = assemble(COMPUTE), random.Random(8)
    sliced, whole = guest(code, detail=True, x0=4), guest(code, detail=True, x0=4)
    at = 0
    while at < 8000:
        at += chooser.randrange(1, 90)
        assert sliced.run(at) is Stop.LIMIT
        assert sliced.total == at
    assert whole.run(at) is Stop.LIMIT
    assert registers(sliced) == registers(whole)
    assert (sliced.counts() == whole.counts()).all()


@needs_assembler
def test_lanes_equal_an_instruction_by_instruction_reference() -> None:
    code = assemble(COMPUTE)
    stepped, free = guest(code, detail=True, x0=1), guest(code, detail=True, x0=1)
    stepper = Stepper(stepped)
    while stepper.step() is not Stop.WFI:
        pass
    assert free.run(1 << 40) is Stop.WFI
    assert registers(free) == registers(stepped)
    assert free.counts()[1].tolist() == list(stepper.lanes[1].values())
    assert (free.counts() == stepped.counts()).all()


def test_lanes_of_a_hand_counted_loop() -> None:
    # mov x1,#10; 1: ldr x2,[sp]; str x2,[sp]; subs x1,x1,#1; b.ne 1b; wfi
    code = words(0xD2800141, 0xF94003E2, 0xF90003E2, 0xF1000421, 0x54FFFFA1, WFI)
    engine = guest(code, detail=True)
    assert engine.run(1000) is Stop.WFI
    expected = {Lane.INST: 42, Lane.LD: 10, Lane.ST: 10, Lane.MEM: 20, Lane.BR: 10, Lane.BR_IMMED: 10, Lane.PC_WRITE: 9}
    assert {lane: n for lane, n in zip(Lane, engine.counts()[1].tolist(), strict=True) if n} == expected
    assert engine.counts()[0].tolist() == [0] * len(Lane)


@needs_assembler
@pytest.mark.parametrize(
    "lanes",
    [(Lane.LD,), (Lane.ST,), (Lane.MEM,), (Lane.BR,), (Lane.PC_WRITE,), (Lane.BR_RETURN,), (Lane.INST,),
     (Lane.LD, Lane.BR_IMMED), (Lane.INST, Lane.MEM)],
)  # fmt: skip
def test_a_watch_stops_right_after_the_instruction_that_reaches_it(lanes: tuple[Lane, ...]) -> None:
    code = assemble(COMPUTE)
    stepped, engine = guest(code, detail=True, x0=3), guest(code, detail=True, x0=3)
    stepper = Stepper(stepped)
    mask = sum(1 << lane for lane in lanes)
    for target in (1, 5, 6, 17):
        engine.watch([Watch(mask, BOTH, target), Watch(1 << Lane.INST, 1, 1)])
        assert engine.run(1 << 40) is Stop.WATCH
        while sum(stepper.lanes[1][lane] for lane in lanes) < target:
            stepper.step()
        assert engine.total == stepped.total
        assert registers(engine) == registers(stepped)


def test_a_reached_watch_stops_again_until_it_is_taken_away() -> None:
    engine = guest(words(*[NOP] * 8, HERE))
    engine.watch([Watch(1 << Lane.INST, BOTH, 3)])
    assert engine.run(100) is Stop.WATCH
    assert engine.run(100) is Stop.WATCH
    assert engine.total == 3
    engine.watch([])
    assert engine.run(100) is Stop.LIMIT


@pytest.mark.parametrize(
    ("replacement", "stops_at"),
    [([], None), ([6], 6), ([20, 7], 7), ([4, 5], 4)],
    ids=["none", "one", "the second first", "the first first"],
)
def test_watches_replaced_in_the_block_that_reaches_the_old_one_are_the_ones_that_hold(
    replacement: list[int], stops_at: int | None
) -> None:
    key, engines = encode(3, 3, 9, 12, 2), list[Engine]()

    def replace(key: int, write: bool, value: int) -> int:
        engines[0].watch([Watch(1 << Lane.INST, BOTH, target) for target in replacement])
        return 0

    msr = 0xD500_0000 | key << 5
    engine = guest(words(NOP, NOP, msr, NOP, NOP, NOP, NOP, HERE), replace)
    engines.append(engine)
    engine.set_action(key, Action.CALL)
    engine.watch([Watch(1 << Lane.INST, BOTH, 3)])
    assert engine.run(50) is (Stop.LIMIT if stops_at is None else Stop.WATCH)
    assert engine.total == (stops_at or 50)


def test_a_watch_of_el0_ignores_el1() -> None:
    engine = guest(words(*[NOP] * 8, HERE))
    engine.watch([Watch(1 << Lane.INST, 1, 3)])
    assert engine.run(50) is Stop.LIMIT
    engine.pstate = 0x3C0
    assert engine.run(100) is Stop.WATCH
    assert engine.total == 53
    assert engine.counts()[:, Lane.INST].tolist() == [3, 50]


def test_detail_can_be_switched_on_between_runs() -> None:
    engine = guest(words(0xF94003E2, 0x17FFFFFF))  # 1: ldr x2,[sp]; b 1b
    engine.run(100)
    engine.detail = True
    engine.run(200)
    assert engine.counts()[1, Lane.LD] == 50
    assert engine.counts()[1, Lane.PC_WRITE] == 50


def test_detail_can_be_switched_by_a_register_write() -> None:
    def on_sysreg(number: int, write: bool, value: int) -> int:
        engine.detail = bool(value)
        return 0

    # ldr; msr pmccntr_el0,x1; ldr; ldr; msr pmccntr_el0,xzr; ldr; wfi
    load, on, off = 0xF94003E2, 0xD51B9D01, 0xD51B9D1F
    engine = guest(words(load, on, load, load, off, load, WFI), on_sysreg)
    engine.set_action(encode(3, 3, 9, 13, 0), Action.CALL)
    engine.set_x(1, 1)
    assert engine.run(100) is Stop.WFI
    assert engine.counts()[1, Lane.LD] == 2


def test_total_in_a_sysreg_callback_counts_what_ran_before_the_access() -> None:
    pmccntr, seen = encode(3, 3, 9, 13, 0), []

    def on_sysreg(number: int, write: bool, value: int) -> int:
        seen.append((number, write, engine.total, engine.pc, int(engine.counts()[1, Lane.LD])))
        return 0x1234_5678_9ABC_DEF0

    # nop; ldr x2,[sp]; mrs x1,pmccntr_el0; ldr x2,[sp]; msr pmccntr_el0,x1; wfi
    code = words(NOP, 0xF94003E2, 0xD53B9D01, 0xF94003E2, 0xD51B9D01, WFI)
    engine = guest(code, on_sysreg, detail=True)
    engine.set_action(pmccntr, Action.CALL)
    assert engine.run(100) is Stop.WFI
    assert seen == [(pmccntr, False, 2, RAM_BASE + 8, 1), (pmccntr, True, 4, RAM_BASE + 16, 2)]
    assert engine.get_x(1) == 0x1234_5678_9ABC_DEF0
    assert engine.total == 6
    assert engine.counts()[1, Lane.LD] == 2


def test_total_in_an_mmio_callback_counts_what_ran_before_the_access() -> None:
    seen = []

    def read(offset: int, size: int) -> int:
        seen.append((offset, size, engine.total, engine.pc, int(engine.counts()[1, Lane.ST])))
        return 0xAB

    def write(offset: int, size: int, value: int) -> None:
        seen.append((offset, size, engine.total, engine.pc, value))

    # mov x1,#0x9000000; str x1,[sp]; ldr w2,[x1,#4]; strb w2,[x1,#8]; wfi
    code = words(0xD2A12001, 0xF90003E1, 0xB9400422, 0x39002022, WFI)
    engine = guest(code, detail=True)
    engine.map_mmio(0x0900_0000, 0x1000, read, write)
    assert engine.run(100) is Stop.WFI
    assert seen == [(4, 4, 2, RAM_BASE + 8, 1), (8, 1, 3, RAM_BASE + 12, 0xAB)]
    assert engine.total == 5
    assert engine.counts()[1, Lane.ST] == 2


def test_the_clock_is_the_exact_count_divided() -> None:
    # nop x6; mrs x1,cntvct_el0; nop; mrs x2,cntpct_el0; wfi
    engine = guest(words(*[NOP] * 6, 0xD53BE041, NOP, 0xD53BE022, WFI))
    engine.set_clock(100, 1, 2)
    assert engine.run(100) is Stop.WFI
    assert (engine.get_x(1), engine.get_x(2)) == (53, 54)


@pytest.mark.parametrize(("origin", "per_instruction", "per_tick"), [(0, 5, 192), (191, 500, 22_416), (-1, 2, 80)])
def test_the_clock_is_the_exact_time_divided_whatever_a_tick_is(
    origin: int, per_instruction: int, per_tick: int
) -> None:
    # nop x41; mrs x1,cntvct_el0; nop x90; mrs x2,cntvct_el0; wfi
    for base in (0, 7 << 64, per_tick * ((1 << 64) - 1)):
        engine = guest(words(*[NOP] * 41, 0xD53BE041, *[NOP] * 90, 0xD53BE042, WFI))
        engine.set_clock(base + origin, per_instruction, per_tick)
        engine.advance_clock(1000)
        assert engine.run(1000) is Stop.WFI
        times = [base + origin + 1000 + per_instruction * n for n in (41, 132)]
        assert [engine.get_x(1), engine.get_x(2)] == [time // per_tick % (1 << 64) for time in times]


@pytest.mark.parametrize("arguments", [(0, -1, 1), (0, 1, 0), (0, 1, -16)])
def test_a_clock_that_stands_still_for_ever_or_runs_back_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 0 and 1"):
        guest(words(WFI)).set_clock(*arguments)


@pytest.mark.parametrize(("limit", "stops"), [(0, 3), (3, 3), (4, 4), (6, 6), (500, 40)])
def test_a_limit_lowered_by_a_register_access_ends_the_run_at_that_instruction(limit: int, stops: int) -> None:
    def on_sysreg(number: int, write: bool, value: int) -> int:
        engine.lower_limit(limit)
        return 0

    engine = guest(words(NOP, NOP, mrs(1, PMCCNTR_EL0), *[NOP] * 100), on_sysreg)
    engine.set_action(PMCCNTR_EL0, Action.CALL)
    assert engine.run(40) is Stop.LIMIT
    assert engine.total == stops
