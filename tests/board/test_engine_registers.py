"""System registers: what each action does at each level, what is refused, and the defaults."""

import random
from collections.abc import Callable

import pytest

from board.engine_support import guest, no_sysreg, words
from pmuvisor.arch.sysreg import encode
from pmuvisor.board import engine_registers
from pmuvisor.board.engine import RAM_BASE, Action, Engine, Lane, Stop

NOP, WFI, HERE, ERET = 0xD503201F, 0xD503207F, 0x14000000, 0xD69F03E0
VECTORS = RAM_BASE + 0x800
SYNC_SAME, SYNC_LOWER = 0x200, 0x400
ESR_EL1, ELR_EL1, VBAR_EL1 = (3, 0, 5, 2, 0), (3, 0, 4, 0, 1), (3, 0, 12, 0, 0)
UNDEFINED = 1 << 25

PMCCNTR_EL0 = encode(3, 3, 9, 13, 0)  # Unicorn has it
PMEVCNTR9_EL0 = encode(3, 3, 14, 9, 1)  # Unicorn has it not
PMINTENSET_EL1 = encode(3, 0, 9, 14, 1)  # Unicorn has it
ICC_IAR1_EL1 = encode(3, 0, 12, 12, 0)  # Unicorn has it not
REACHED_FROM_EL0 = {PMCCNTR_EL0, PMEVCNTR9_EL0}
ALL_FOUR = [PMCCNTR_EL0, PMEVCNTR9_EL0, PMINTENSET_EL1, ICC_IAR1_EL1]


def mrs(number: int, rt: int = 1) -> int:
    return 0xD5200000 | number << 5 | rt


def msr(number: int, rt: int = 1) -> int:
    return 0xD5000000 | number << 5 | rt


def with_vectors(code: bytes, el: int, on_sysreg: Callable[[int, bool, int], int] = no_sysreg) -> Engine:
    engine = guest(code, on_sysreg)
    engine.ram.write(VECTORS, words(WFI, HERE, *[NOP] * 30) * 16)
    engine.write_register(*VBAR_EL1, VECTORS)
    if el == 0:
        engine.pstate = 0x3C0
    return engine


def is_undefined(engine: Engine, at: int) -> bool:
    esr, elr = engine.read_register(*ESR_EL1), engine.read_register(*ELR_EL1)
    return engine.el == 1 and esr == UNDEFINED and elr == at


def test_key_and_instruction_agree() -> None:
    assert mrs(PMCCNTR_EL0) == 0xD53B9D01


@pytest.mark.parametrize("el", [0, 1])
@pytest.mark.parametrize("number", ALL_FOUR)
def test_const_reads_its_value_and_refuses_writes(number: int, el: int) -> None:
    engine = with_vectors(words(NOP, mrs(number), 0x91000422, msr(number), HERE), el)  # add x2,x1,#1
    engine.set_action(number, Action.CONST, 0xFFFF_0000_0000_0041)
    assert engine.run(100) is Stop.WFI
    if el == 0 and number not in REACHED_FROM_EL0:
        assert is_undefined(engine, RAM_BASE + 4)
    else:
        assert (engine.get_x(1), engine.get_x(2)) == (0xFFFF_0000_0000_0041, 0xFFFF_0000_0000_0042)
        assert is_undefined(engine, RAM_BASE + 12)
        assert engine.total == 4


@pytest.mark.parametrize("number", ALL_FOUR)
def test_store_keeps_what_was_written(number: int) -> None:
    engine = with_vectors(words(mrs(number, 2), msr(number, 1), mrs(number, 3), mrs(number, 31), WFI), 1)
    engine.set_action(number, Action.STORE, 5)
    engine.set_x(1, 0xABCD_EF01_2345_6789)
    assert engine.run(100) is Stop.WFI
    assert (engine.get_x(2), engine.get_x(3)) == (5, 0xABCD_EF01_2345_6789)
    assert engine.total == 5


@pytest.mark.parametrize("el", [0, 1])
@pytest.mark.parametrize("number", ALL_FOUR)
def test_call_asks_the_machine_once_for_each_access(number: int, el: int) -> None:
    seen: list[tuple[int, bool, int]] = []

    def on_sysreg(key: int, write: bool, value: int) -> int:
        seen.append((key, write, value))
        return 0xFFFF_FFFF_0000_0007

    # every register that MRS and MSR encode differently: x1, x29, x30, xzr
    code = [mrs(number, 29), mrs(number, 30), mrs(number, 31), msr(number, 1), msr(number, 31), msr(number, 29)]
    engine = with_vectors(words(*code, NOP, 0xD4000001), el, on_sysreg)  # svc #0
    engine.set_action(number, Action.CALL)
    engine.set_x(1, 1 << 63)
    assert engine.run(100) is Stop.WFI
    if el == 0 and number not in REACHED_FROM_EL0:
        assert seen == []
        assert is_undefined(engine, RAM_BASE)
        return
    read = (number, False)
    assert [s[:2] for s in seen[:3]] == [read] * 3
    assert seen[3:] == [(number, True, 1 << 63), (number, True, 0), (number, True, 0xFFFF_FFFF_0000_0007)]
    assert engine.get_x(29) == engine.get_x(30) == 0xFFFF_FFFF_0000_0007
    assert engine.get_x(31) == 0
    assert engine.total == 9


@pytest.mark.parametrize("el", [0, 1])
@pytest.mark.parametrize("number", ALL_FOUR)
def test_a_register_without_an_action_is_undefined(number: int, el: int) -> None:
    for instruction in (mrs(number), msr(number)):
        engine = with_vectors(words(NOP, instruction, NOP), el)
        engine.set_x(1, 7)
        assert engine.run(100) is Stop.WFI
        assert is_undefined(engine, RAM_BASE + 4)
        assert engine.get_x(1) == 7
        assert engine.counts()[el, Lane.INST] == 1 + el


@pytest.mark.parametrize("el", [0, 1])
@pytest.mark.parametrize("number", [PMCCNTR_EL0, PMEVCNTR9_EL0])
def test_inject_in_a_callback_makes_the_access_trap(number: int, el: int) -> None:
    def on_sysreg(number: int, write: bool, value: int) -> int:
        engine.inject(0x18 << 26 | 1 << 25 | 0x1234)
        return 99

    engine = with_vectors(words(NOP, mrs(number), NOP), el, on_sysreg)
    engine.set_action(number, Action.CALL)
    engine.set_x(1, 7)
    assert engine.run(100) is Stop.WFI
    assert engine.read_register(*ESR_EL1) == 0x18 << 26 | 1 << 25 | 0x1234
    assert engine.read_register(*ELR_EL1) == RAM_BASE + 4
    assert engine.get_x(1) == 7
    assert engine.counts()[:, Lane.INST].tolist() == ([1, 1] if el == 0 else [0, 2])
    assert engine.counts()[:, Lane.EXC_TAKEN].tolist() == [1 - el, el]


def test_a_stop_requested_in_a_callback_comes_right_after_the_access() -> None:
    def on_sysreg(number: int, write: bool, value: int) -> int:
        engine.request_stop()
        return 3

    engine = guest(words(NOP, mrs(PMCCNTR_EL0), NOP, WFI), on_sysreg)
    engine.set_action(PMCCNTR_EL0, Action.CALL)
    assert engine.run(100) is Stop.REQUEST
    assert (engine.pc, engine.total, engine.get_x(1)) == (RAM_BASE + 8, 2, 3)
    assert engine.run(100) is Stop.WFI


def test_an_interrupt_raised_in_a_callback_is_taken_right_after_the_access() -> None:
    def on_sysreg(number: int, write: bool, value: int) -> int:
        engine.irq_line = True
        return 0

    engine = guest(words(0xD50342FF, mrs(PMCCNTR_EL0), NOP, NOP, WFI), on_sysreg)
    engine.set_action(PMCCNTR_EL0, Action.CALL)
    assert engine.run(100) is Stop.IRQ
    assert engine.pc == RAM_BASE + 8


@pytest.mark.parametrize("error", [ValueError("a broken device"), KeyboardInterrupt()])
def test_what_a_callback_raises_comes_out_of_run(error: BaseException) -> None:
    def on_sysreg(number: int, write: bool, value: int) -> int:
        raise error

    def read(offset: int, size: int) -> int:
        raise error

    engine = guest(words(mrs(PMCCNTR_EL0), NOP, 0xD2A12001, 0xB9400021, 0x14000001, WFI), on_sysreg)
    engine.set_action(PMCCNTR_EL0, Action.CALL)
    engine.map_mmio(0x0900_0000, 0x1000, read, lambda offset, size, value: None)
    with pytest.raises(type(error)):
        engine.run(100)
    assert (engine.pc, engine.get_x(1)) == (RAM_BASE + 4, 0)
    with pytest.raises(type(error)):
        engine.run(100)
    assert engine.run(100) is Stop.WFI


def test_el0_reaches_the_counter_only_where_cntkctl_allows_it() -> None:
    for control, allowed in ((0, False), (1, False), (2, True)):
        engine = with_vectors(words(NOP, mrs(engine_registers.CNTVCT_EL0, 5), 0xD4000001), 0)
        engine.set_clock(1000, 1, 1)
        engine.set_action(encode(3, 0, 14, 1, 0), Action.STORE, control)
        assert engine.run(100) is Stop.WFI
        if allowed:
            assert engine.get_x(5) == 1001
        else:  # ISS: op0 3, op2 2, op1 3, CRn 14, Rt 5, CRm 0, read
            iss = 3 << 20 | 2 << 17 | 3 << 14 | 14 << 10 | 5 << 5 | 1
            assert engine.read_register(*ESR_EL1) == 0x18 << 26 | 1 << 25 | iss


def test_el0_reaches_its_own_registers_and_not_those_of_el1() -> None:
    reached = [(3, 3, 13, 0, 2), (3, 3, 13, 0, 3), (3, 3, 4, 2, 0), (3, 3, 4, 4, 0), (3, 3, 0, 0, 7), (3, 3, 0, 0, 1)]
    for encoding in reached:
        engine = with_vectors(words(mrs(encode(*encoding)), 0xD4000001), 0)
        engine.write_register(3, 0, 1, 0, 2, 3 << 20)  # FP and SIMD for the FPCR
        engine.write_register(3, 0, 1, 0, 0, engine.read_register(3, 0, 1, 0, 0) | 1 << 15)  # UCT for the CTR
        assert engine.run(10) is Stop.WFI
        assert engine.read_register(*ESR_EL1) >> 26 == 0x15, encoding
    for name, encoding in engine_registers.PASS.items():
        if encoding[:2] not in ((3, 0), (3, 1), (3, 2)):
            continue
        for instruction in (mrs(encode(*encoding)), msr(encode(*encoding))):
            engine = with_vectors(words(instruction, 0xD4000001), 0)
            engine.set_x(1, 0x1F0)
            before = engine.read_register(*encoding) if name != "SPSel" else 0
            assert engine.run(10) is Stop.WFI
            assert is_undefined(engine, RAM_BASE), name
            if name not in ("ESR_EL1", "ELR_EL1", "SPSR_EL1", "SPSel", "CurrentEL", "SP_EL0", "CCSIDR_EL1"):
                assert engine.read_register(*encoding) == before, name


ID_SPACE = [encode(3, 0, 0, crm, op2) for crm in range(1, 8) for op2 in range(8)]


def test_the_id_space_reads_at_el1_only_and_is_never_written() -> None:
    for number in ID_SPACE:
        engine = with_vectors(words(mrs(number), msr(number)), 1)
        assert engine.run(10) is Stop.WFI
        assert is_undefined(engine, RAM_BASE + 4)
        engine = with_vectors(words(mrs(number)), 0)
        assert engine.run(10) is Stop.WFI
        assert is_undefined(engine, RAM_BASE)


def test_pass_is_refused_for_registers_not_known_to_be_safe() -> None:
    engine = guest(words(NOP))
    with pytest.raises(ValueError, match="is not a register that can be left to Unicorn"):
        engine.set_action(PMCCNTR_EL0, Action.PASS)


def test_mixed_endianness_cannot_be_switched_on() -> None:
    sctlr = encode(3, 0, 1, 0, 0)
    engine = guest(words(mrs(sctlr, 1), 0xAA030021, msr(sctlr, 1), mrs(sctlr, 2), WFI))  # orr x1,x1,x3
    engine.set_x(3, 1 << 25 | 1 << 24 | 1 << 2)
    assert engine.run(100) is Stop.WFI
    assert engine.get_x(2) == engine.get_x(1) & ~(1 << 25 | 1 << 24)
    assert engine.get_x(2) & 1 << 2
    assert engine.total == 5


def test_restarting_a_cpu_forgets_its_registers_and_keeps_its_counts() -> None:
    tpidr, mdscr = encode(3, 0, 13, 0, 4), encode(2, 0, 0, 2, 2)
    engine = guest(words(msr(tpidr), msr(mdscr), WFI, mrs(tpidr, 2), WFI))
    engine.set_x(1, 77)
    assert engine.run(100) is Stop.WFI
    engine.start(RAM_BASE + 12, 5)
    assert (engine.pstate, engine.get_x(0), engine.get_x(1), engine.total) == (0x3C5, 5, 0, 3)
    assert engine.run(100) is Stop.WFI
    assert (engine.get_x(2), engine.total) == (0, 5)


def random_value(chooser: random.Random) -> int:
    kinds = (
        chooser.getrandbits(64), 1 << chooser.randrange(64), (1 << 64) - 1, chooser.getrandbits(32),
        RAM_BASE + chooser.randrange(1 << 22), 0x0900_0000, 0,
    )  # fmt: skip
    return chooser.choice(kinds)


def random_code(chooser: random.Random, known: list[int]) -> bytes:
    code = []
    for _ in range(24):
        kind, rt = chooser.randrange(10), chooser.randrange(32)
        number = chooser.choice(known) if chooser.random() < 0.9 else chooser.getrandbits(16)
        if kind < 7:
            code.append((mrs if chooser.random() < 0.3 else msr)(number, rt))
        else:
            code.append(chooser.choice((ERET, WFI, 0xD4000001, 0xF9400020, 0xF9000020, 0xD50342FF, 0xD61F0020)))
    return words(*code, HERE)


@pytest.mark.parametrize("seed", range(4))
def test_any_value_in_any_register_leaves_the_engine_alive_and_exact(seed: int) -> None:
    chooser, known = random.Random(seed), list(engine_registers.defaults())
    skip = words(0xD538403D, 0x910013BD, 0xD518403D, ERET)  # elr_el1 += 4 through x29; eret
    engine = guest(words(NOP), lambda number, write, value: chooser.getrandbits(64))
    engine.map_mmio(0x0900_0000, 0x1000, lambda offset, size: chooser.getrandbits(32), lambda *access: None)
    for _ in range(250):
        engine.ram.write(RAM_BASE, random_code(chooser, known))
        for entry in (SYNC_SAME, SYNC_LOWER):
            engine.ram.write(RAM_BASE + entry, skip)
        engine.invalidate_code()
        engine.start(RAM_BASE)
        engine.detail = chooser.random() < 0.5
        engine.write_register(*VBAR_EL1, RAM_BASE)
        for n in range(31):
            engine.set_x(n, random_value(chooser))
        limit = engine.total + 1000
        while engine.run(limit) in (Stop.WFI, Stop.HVC, Stop.SMC):
            pass
        assert engine.total <= limit
        assert not engine.failure
