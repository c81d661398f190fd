"""Exceptions: entry, return, counts around them, interrupts, and what leaves the guest."""

import random

import pytest

from board.engine_support import Stepper, assemble, guest, needs_assembler, registers, words
from pmuvisor.arch.sysreg import encode
from pmuvisor.board.engine import RAM_BASE, Engine, Lane, Stop, Watch
from pmuvisor.board.engine_dump import dump

NOP, WFI, HERE, SVC, HVC, SMC, UDF = 0xD503201F, 0xD503207F, 0x14000000, 0xD4000001, 0xD4000002, 0xD4000003, 0
VECTORS = RAM_BASE + 0x800
SYNC_SAME, IRQ_SAME, SYNC_LOWER, IRQ_LOWER = 0x200, 0x280, 0x400, 0x480
VBAR_EL1, ESR_EL1, ELR_EL1, FAR_EL1, SPSR_EL1, SP_EL0 = (
    (3, 0, 12, 0, 0), (3, 0, 5, 2, 0), (3, 0, 4, 0, 1), (3, 0, 6, 0, 0), (3, 0, 4, 0, 0), (3, 0, 4, 1, 0),
)  # fmt: skip


def with_vectors(code: bytes, *, el: int = 1, detail: bool = False) -> Engine:
    """A guest whose vectors all stop it with WFI."""
    engine = guest(code, detail=detail)
    engine.ram.write(VECTORS, words(WFI, HERE, *[NOP] * 30) * 16)
    engine.write_register(*VBAR_EL1, VECTORS)
    if el == 0:
        engine.pstate = 0x3C0
    return engine


# name, code, ESR (of an abort from EL0), ELR, retired before the entry
FAULTS = [
    ("svc", words(NOP, SVC | 0x77 << 5, NOP), 0x15 << 26 | 1 << 25 | 0x77, RAM_BASE + 8, 2),
    ("brk", words(NOP, 0xD4200000 | 5 << 5, NOP), 0x3C << 26 | 1 << 25 | 5, RAM_BASE + 4, 1),
    ("udf", words(NOP, NOP, UDF, NOP), 1 << 25, RAM_BASE + 8, 2),
    ("unknown sysreg", words(NOP, 0xD51BFFE0, NOP), 1 << 25, RAM_BASE + 4, 1),
    ("data abort, load", words(0xD2A02001, NOP, 0xF9400022, NOP, NOP), 0x24 << 26 | 1 << 25 | 0x410, RAM_BASE + 8, 2),
    ("data abort, store", words(0xD2A02001, 0xF9000022, NOP, NOP), 0x24 << 26 | 1 << 25 | 0x450, RAM_BASE + 4, 1),
    ("prefetch abort", words(0xD2A02001, NOP, 0xD61F0020, NOP), 0x20 << 26 | 1 << 25 | 0x10, 0x0100_0000, 3),
    ("fetch from a device", words(0xD2A12001, NOP, 0xD61F0020), 0x20 << 26 | 1 << 25 | 0x10, 0x0900_0000, 3),
]


@pytest.mark.parametrize("el", [0, 1])
@pytest.mark.parametrize(("code", "esr", "elr", "retired"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_enters_el1_with_its_syndrome_and_counts_what_retired(
    el: int, code: bytes, esr: int, elr: int, retired: int
) -> None:
    engine = with_vectors(code, el=el, detail=True)
    engine.map_mmio(0x0900_0000, 0x1000, lambda offset, size: 0, lambda offset, size, value: None)
    old = engine.pstate
    assert engine.run(100) is Stop.WFI
    if esr >> 26 in (0x20, 0x24):  # aborts: from the same level the class is one higher
        esr += el << 26
    assert engine.read_register(*ESR_EL1) == esr
    assert engine.read_register(*ELR_EL1) == elr
    assert engine.read_register(*SPSR_EL1) == old
    assert engine.pstate & 0x3CF == 0x3C5
    assert engine.pc == VECTORS + (SYNC_SAME if el else SYNC_LOWER) + 4
    lanes = engine.counts()
    assert lanes[el, Lane.INST] - el == retired  # the WFI of the handler runs at EL1
    assert lanes[:, Lane.INST].sum() == retired + 1
    assert lanes[:, Lane.EXC_TAKEN].tolist() == [1 - el, el]
    assert lanes[:, Lane.LD].sum() == lanes[:, Lane.ST].sum() == 0


def test_el0_and_el1_have_their_own_stack_pointers() -> None:
    engine = guest(words(0xD10043FF, SVC))  # sub sp,sp,#16; svc #0
    engine.ram.write(VECTORS + SYNC_LOWER, words(0x910003E1, WFI))  # mov x1,sp; wfi
    engine.write_register(*VBAR_EL1, VECTORS)
    engine.sp = 0x1111_0000
    engine.pstate = 0x3C0
    engine.sp = 0x2222_0000
    assert engine.run(100) is Stop.WFI
    assert engine.get_x(1) == engine.sp == 0x1111_0000
    assert engine.read_register(*SP_EL0) == 0x2221_FFF0


ROUND_TRIP = """
// EL1 drops to EL0, which loads, stores, branches and calls SVC ten times; faults are skipped by the handler.
    adr   x0, vectors
    msr   vbar_el1, x0
    ldr   x0, =0x40200000
    msr   sp_el0, x0
    adr   x0, user
    msr   elr_el1, x0
    mov   x0, #0x3c0
    msr   spsr_el1, x0
    eret
user:
    mov   x19, #10
    mov   x20, sp
    mov   x22, #0x10000000
1:  str   x19, [sp, #-16]!
    svc   #1
    ldr   x21, [sp], #16
    .inst 0
    ldr   x23, [x22]
    nop
    str   x19, [x20]
    mrs   x24, sctlr_el1
    ldr   x21, [x20]
    subs  x19, x19, #1
    b.ne  1b
    adr   x30, 2f
    br    x22
2:  svc   #2
    b     .
    .balign 2048
vectors:
    .space 0x400
    stp   x0, x1, [sp, #-16]!
    mrs   x0, esr_el1
    lsr   x1, x0, #26
    cmp   x1, #0x15
    b.eq  3f
    cmp   x1, #0x20
    b.eq  4f
    mrs   x1, elr_el1
    add   x1, x1, #4
    msr   elr_el1, x1
    ldp   x0, x1, [sp], #16
    eret
4:  msr   elr_el1, x30
    ldp   x0, x1, [sp], #16
    eret
3:  tbnz  x0, #1, 5f
    ldp   x0, x1, [sp], #16
    eret
5:  wfi
    b     .
"""


@needs_assembler
def test_counts_through_faults_calls_and_returns_equal_the_reference() -> None:
    code = assemble(ROUND_TRIP)
    stepped, free = guest(code, detail=True), guest(code, detail=True)
    stepper = Stepper(stepped)
    while stepper.step() is not Stop.WFI:
        pass
    assert free.run(1 << 40) is Stop.WFI
    assert registers(free) == registers(stepped)
    assert (free.counts() == stepped.counts()).all()
    for el in range(2):
        for lane in Lane:
            if lane not in (Lane.EXC_TAKEN, Lane.EXC_RETURN):
                assert free.counts()[el, lane] == stepper.lanes[el][lane], (el, lane)
    # Per round SVC, UDF, load abort, MRS of an EL1 register; then the branch into nowhere and the last SVC.
    assert free.counts()[:, Lane.EXC_TAKEN].tolist() == [42, 0]
    assert free.counts()[:, Lane.EXC_RETURN].tolist() == [0, 42]


@needs_assembler
def test_every_exact_stop_around_exceptions_is_where_the_reference_is() -> None:
    code = assemble(ROUND_TRIP)
    stepped = guest(code)
    states = []
    while stepped.run(stepped.total + 1) is Stop.LIMIT:
        states.append(registers(stepped))
    for count in range(1, len(states), 7):
        engine = guest(code, detail=bool(count & 1))
        assert engine.run(count) is Stop.LIMIT
        assert registers(engine) == states[count - 1]


@needs_assembler
@pytest.mark.parametrize("seed", range(15))
def test_slices_watches_and_flushes_at_random_change_no_count(seed: int) -> None:
    code, chooser = assemble(ROUND_TRIP), random.Random(seed)
    whole, sliced = guest(code, detail=True), guest(code, detail=True)
    assert whole.run(1 << 40) is Stop.WFI
    stop = Stop.LIMIT
    while stop is not Stop.WFI:
        reached = int(sliced.counts().sum()) // 8
        watches = [Watch(1 << chooser.randrange(10), chooser.randrange(1, 4), reached + chooser.randrange(50))]
        sliced.watch(watches * chooser.randrange(3))
        stop = sliced.run(sliced.total + chooser.randrange(1, 60))
        if stop is Stop.WATCH:
            sliced.watch([])
        chooser.choice((sliced.flush_tlb, sliced.invalidate_code, lambda: dump(sliced)))()
        if stop is Stop.WATCH:
            stop = sliced.run(sliced.total + chooser.randrange(1, 20))
    assert (sliced.counts() == whole.counts()).all()
    assert registers(sliced) == registers(whole)


def test_hvc_and_smc_end_the_run_after_the_instruction() -> None:
    engine = guest(words(NOP, HVC | 0x42 << 5, NOP, SMC | 1 << 5, HERE), detail=True)
    assert engine.run(100) is Stop.HVC
    assert (engine.pc, engine.total, engine.immediate) == (RAM_BASE + 8, 2, 0x42)
    assert engine.run(100) is Stop.SMC
    assert (engine.pc, engine.total, engine.immediate) == (RAM_BASE + 16, 4, 1)
    assert engine.counts()[:, Lane.EXC_TAKEN].sum() == 0


def test_hvc_is_undefined_at_el0() -> None:
    engine = with_vectors(words(HVC), el=0)
    assert engine.run(100) is Stop.WFI
    assert engine.read_register(*ESR_EL1) == 1 << 25


def test_wfi_ends_the_run_past_it_and_wfe_and_yield_go_on() -> None:
    engine = guest(words(0xD503205F, 0xD503203F, 0xD503209F, WFI, HERE))  # wfe; yield; sev
    assert engine.run(100) is Stop.WFI
    assert (engine.pc, engine.total) == (RAM_BASE + 16, 4)


def test_a_wfe_spin_loop_reaches_its_limit() -> None:
    engine = guest(words(0xD503205F, 0x17FFFFFF))  # 1: wfe; b 1b
    assert engine.run(10_001) is Stop.LIMIT
    assert engine.total == 10_001


def test_wfi_at_el0_traps_where_sctlr_says_so() -> None:
    engine = with_vectors(words(NOP, WFI, NOP), el=0)
    engine.write_register(3, 0, 1, 0, 0, engine.read_register(3, 0, 1, 0, 0) & ~(1 << 16))
    assert engine.run(100) is Stop.WFI
    assert engine.read_register(*ESR_EL1) >> 26 == 1
    assert engine.read_register(*ELR_EL1) == RAM_BASE + 4
    assert engine.counts()[0, Lane.INST] == 1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_an_exact_stop_at_el0_is_no_trapped_wfi(count: int) -> None:
    engine = with_vectors(words(*[NOP] * 5, HERE), el=0)
    engine.write_register(3, 0, 1, 0, 0, engine.read_register(3, 0, 1, 0, 0) & ~(1 << 16))
    assert engine.run(count) is Stop.LIMIT
    assert (engine.pc, engine.total, engine.el) == (RAM_BASE + 4 * count, count, 0)
    assert engine.counts()[:, Lane.EXC_TAKEN].sum() == 0


def test_a_wfi_that_traps_at_the_limit_is_a_trap() -> None:
    engine = with_vectors(words(NOP, NOP, WFI, NOP, NOP), el=0)
    engine.write_register(3, 0, 1, 0, 0, engine.read_register(3, 0, 1, 0, 0) & ~(1 << 16))
    assert engine.run(3) is Stop.WFI
    assert engine.read_register(*ELR_EL1) == RAM_BASE + 8
    assert engine.counts()[:, Lane.INST].tolist() == [2, 1]


def test_an_interrupt_waits_for_unmasking_and_is_taken_right_after_it() -> None:
    code = words(NOP, NOP, 0xD50342FF, NOP, NOP, WFI)  # msr daifclr,#2
    engine = with_vectors(code)
    engine.irq_line = True
    assert engine.run(100) is Stop.IRQ
    assert (engine.pc, engine.total) == (RAM_BASE + 12, 3)
    engine.take_irq()
    assert engine.pc == VECTORS + IRQ_SAME
    assert engine.read_register(*ELR_EL1) == RAM_BASE + 12
    assert engine.run(100) is Stop.WFI  # masked in the handler
    assert engine.counts()[1, Lane.EXC_TAKEN] == 1


def test_an_interrupt_at_el0_comes_at_the_next_block() -> None:
    engine = with_vectors(words(NOP, 0x17FFFFFF), el=0)
    engine.pstate = 0
    assert engine.run(51) is Stop.LIMIT
    engine.irq_line = True
    assert engine.run(1000) is Stop.IRQ
    assert engine.total == 51
    engine.take_irq()
    assert engine.pc == VECTORS + IRQ_LOWER
    assert engine.counts()[:, Lane.EXC_TAKEN].tolist() == [1, 0]


def test_an_interrupt_raised_by_a_device_stops_the_guest_at_the_next_block() -> None:
    def write(offset: int, size: int, value: int) -> None:
        engine.irq_line = True

    # mov x1,#0x9000000; msr daifclr,#2; str w1,[x1]; b .+4; nop
    engine = with_vectors(words(0xD2A12001, 0xD50342FF, 0xB9000021, 0x14000001, NOP, HERE))
    engine.map_mmio(0x0900_0000, 0x1000, lambda offset, size: 0, write)
    assert engine.run(1000) is Stop.IRQ
    assert engine.pc == RAM_BASE + 16


def test_isr_el1_shows_the_line() -> None:
    engine = guest(words(0xD538C101, WFI, 0xD538C102, WFI))  # mrs x1,isr_el1
    engine.run(10)
    engine.irq_line = True
    engine.run(10)
    assert (engine.get_x(1), engine.get_x(2)) == (0, 0x80)


def test_inject_between_runs_enters_el1_at_the_current_instruction() -> None:
    engine = with_vectors(words(NOP, NOP, HERE))
    engine.run(1)
    engine.inject(0x25 << 26 | 1 << 25 | 0x10, far=0xFFFF_0000_1234_5678)
    assert engine.read_register(*ELR_EL1) == RAM_BASE + 4
    assert engine.read_register(*FAR_EL1) == 0xFFFF_0000_1234_5678
    assert engine.pc == VECTORS + SYNC_SAME


@pytest.mark.parametrize(("mov", "base"), [(0xD2A80001, RAM_BASE), (0xD2A02001, 0x0100_0000)], ids=["RAM", "nowhere"])
def test_a_misaligned_pc_is_a_pc_alignment_fault_whatever_is_there(mov: int, base: int) -> None:
    engine = with_vectors(words(mov, 0xB2400021, 0xD61F0020))  # mov x1,#base; orr x1,x1,#1; br x1
    assert engine.run(100) is Stop.WFI
    assert engine.read_register(*ESR_EL1) == 0x22 << 26 | 1 << 25
    assert engine.read_register(*ELR_EL1) == engine.read_register(*FAR_EL1) == base + 1
    assert engine.counts()[1, Lane.EXC_TAKEN] == 1
    assert engine.total == 4


@pytest.mark.parametrize("spsr", [0x1D0, 0x1D3, 0x3C9, 0x3CD, 0x3C7])
def test_a_return_to_aarch32_or_to_a_level_that_is_not_there_is_illegal(spsr: int) -> None:
    # msr spsr_el1,x1; msr elr_el1,x2; eret
    engine = with_vectors(words(0xD5184001, 0xD5184022, 0xD69F03E0))
    engine.set_x(1, spsr)
    engine.set_x(2, RAM_BASE + 0x100)
    assert engine.run(100) is Stop.WFI
    assert engine.read_register(*ESR_EL1) == 0x0E << 26 | 1 << 25
    assert engine.read_register(*ELR_EL1) == RAM_BASE + 0x100
    assert engine.total == 4


def test_a_vector_that_faults_for_ever_is_stuck() -> None:
    engine = guest(words(UDF))
    engine.write_register(*VBAR_EL1, RAM_BASE + 0x10_0000)
    assert engine.run(1 << 40) is Stop.STUCK
    assert engine.total == 0


def test_a_vector_that_cannot_be_fetched_is_stuck() -> None:
    engine = guest(words(NOP, UDF))
    engine.write_register(*VBAR_EL1, 0x7000_0000)
    assert engine.run(1 << 40) is Stop.STUCK
    assert engine.total == 1


def test_a_loop_of_exceptions_that_retires_instructions_reaches_its_limit() -> None:
    engine = guest(words(SVC, 0x17FFFFFF))
    engine.ram.write(VECTORS + SYNC_SAME, words(0xD69F03E0))
    engine.write_register(*VBAR_EL1, VECTORS)
    assert engine.run(300_000) is Stop.LIMIT
    assert engine.total == 300_000
    assert engine.counts()[1, Lane.EXC_TAKEN] == engine.counts()[1, Lane.EXC_RETURN] == 100_000


def test_a_watch_of_exceptions_stops_at_the_vector_and_after_the_return() -> None:
    engine = guest(words(SVC, 0x17FFFFFF))
    engine.ram.write(VECTORS + SYNC_SAME, words(0xD69F03E0))
    engine.write_register(*VBAR_EL1, VECTORS)
    engine.watch([Watch(1 << Lane.EXC_TAKEN, 3, 3)])
    assert engine.run(1000) is Stop.WATCH
    assert (engine.pc, engine.total) == (VECTORS + SYNC_SAME, 7)
    engine.watch([Watch(1 << Lane.EXC_RETURN, 3, 3)])
    assert engine.run(1000) is Stop.WATCH
    assert (engine.pc, engine.total) == (RAM_BASE + 4, 8)


def test_dump_names_registers_and_the_instruction_in_80_columns() -> None:
    engine = guest(words(0x8B020020, HERE))
    text = dump(engine)
    assert "0x40000000: add x0, x1, x2" in text
    assert "X30" in text
    assert "PSTATE 00000000000003c5" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_number_of_a_register_is_its_encoding() -> None:
    assert encode(3, 3, 9, 12, 0) == 0b11_011_1001_1100_000
