"""What a guest's counters read, by guests of a few instructions whose counts are plain to see.

Each guest counts a window: from the write that enables the counters, which is counted (unless it traps: what the host
emulates, the guest does not execute), to the write that disables them, which is not.
"""

from collections.abc import Callable, Iterable, Mapping

import pytest

from a64 import (
    CNTV_CTL_EL0,
    CNTV_CVAL_EL0,
    ELR_EL1,
    ERET,
    HVC,
    ICC_EOIR1_EL1,
    ICC_IAR1_EL1,
    ISB,
    NE,
    NOP,
    PSCI_SYSTEM_OFF,
    SMC,
    SPSR_EL1,
    SVC,
    UART,
    WFI,
    Program,
    add,
    br,
    daifclr,
    ldr,
    ldrw,
    mrs,
    msr,
    str_,
    strw,
    subs,
)
from board.machine_support import RESULTS, board
from pmuvisor.arch import events, sysreg
from pmuvisor.arch.unpredictable import UNPREDICTABLE_EVENT
from pmuvisor.board.machine import Status

TIMER_INTID = 27
PMU_INTID = 23
IRQ_VECTOR, SVC_FROM_EL0 = 0x280, 0x400
P_EXCLUDES_EL1, U_EXCLUDES_EL0 = 1 << 31, 1 << 30
PMEVTYPER0, PMEVCNTR0 = sysreg.PMEVTYPER0_EL0, sysreg.PMEVCNTR0_EL0
ENABLE, DISABLE = msr(sysreg.PMCNTENSET_EL0, 20), msr(sysreg.PMCNTENCLR_EL0, 20)

Body = Callable[[Program], object]


def counting(
    body: Body,
    types: list[int],
    prepare: Body = lambda p: None,
    values: list[int] | None = None,
    handlers: Mapping[int, Iterable[int]] | None = None,
) -> Program:
    """Counts `types` on counters 0, 1, ... over `body`, and leaves the readings, the cycle counter's last."""
    p = Program().use_vectors()
    for key in (sysreg.PMCNTENCLR_EL0, sysreg.PMINTENCLR_EL1, sysreg.PMOVSCLR_EL0):
        p.write(key, 0xFFFF_FFFF)  # UNKNOWN at reset
    prepare(p)
    p.write(sysreg.PMCR_EL0, 1 | 1 << 6 | 1 << 2)  # E, LC, C
    for n, event in enumerate(types):
        p.write(PMEVTYPER0 + n, event).write(PMEVCNTR0 + n, (values or [0] * len(types))[n])
    p.mov(20, 1 << 31 | (1 << len(types)) - 1).mov(21, UART).mov(22, RESULTS + 0x800)(ISB, ENABLE)
    body(p)
    p.label("done")(DISABLE, ISB).mov(11, RESULTS)
    for n in range(len(types)):
        p(mrs(5, PMEVCNTR0 + n), str_(5, 11, 8 * n))
    p(mrs(5, sysreg.PMCCNTR_EL0), str_(5, 11, 8 * len(types)))
    return p.psci(PSCI_SYSTEM_OFF).vectors(handlers)


def readings(guest: Program, number: int, fgt: bool = True, core_name: str = "max") -> list[int]:
    b = board(guest, fgt=fgt, core_name=core_name)
    outcome = b.run()
    assert outcome.status is Status.POWEROFF, f"{outcome.reason}\n{outcome.registers}"
    return [b.result(n) for n in range(number)]


def test_pmceid_advertises_what_is_counted_and_nothing_else() -> None:
    p = Program()(mrs(1, sysreg.PMCEID0_EL0), mrs(2, sysreg.PMCEID1_EL0)).mov(11, RESULTS)
    common, rest = readings(p(str_(1, 11), str_(2, 11, 8)).psci(PSCI_SYSTEM_OFF), 2)
    advertised = {n for n in range(32) if common >> n & 1} | {32 + n for n in range(32) if rest >> n & 1}
    # Numbers of Arm DDI 0487, D13.12.3, in the order of the issue that asked for them.
    assert advertised == {0, 8, 0x11, 0x1E, 6, 7, 0x13, 0x21, 0x0D, 0x0E, 0x0C, 9, 0x0A, 0x1B, 0x1D, 0x23, 0x24}


def some_of_each(p: Program) -> None:
    """15 instructions: 2 loads, 3 stores, 1 call and its return, 2 more branches, of which one is not taken."""
    p(ldr(5, 22), ldr(6, 22, 8), str_(5, 22), str_(6, 22, 8), str_(6, 22, 16))
    p.bl("function").b("over").label("function")(NOP, 0xD65F_03C0).label("over")
    p.cbnz(31, "over")(SVC)


EVENTS = {
    # event: what the body retires, and the write that begins the window
    events.INST_RETIRED: 1 + 5 + 1 + 1 + 2 + 1 + 1 + 4,
    events.INST_SPEC: 16,
    events.CPU_CYCLES: 16,
    events.BUS_CYCLES: 16,
    events.LD_RETIRED: 2,
    events.ST_RETIRED: 3,
    events.MEM_ACCESS: 5,
    events.BR_RETIRED: 4,
    events.BR_IMMED_RETIRED: 3,
    events.BR_RETURN_RETIRED: 1,
    events.PC_WRITE_RETIRED: 4,
    events.EXC_TAKEN: 1,
    events.EXC_RETURN: 1,
    events.STALL_FRONTEND: 0,
    events.STALL_BACKEND: 0,
}
HANDLER = [NOP, NOP, NOP, ERET]
"""Of the SVC: with it, 4 instructions more."""


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_counted(event: int) -> None:
    assert readings(counting(some_of_each, [event], handlers={0x200: HANDLER}), 2) == [EVENTS[event], 16], (
        "and the cycle counter: one for each instruction"
    )


def test_an_event_that_the_core_does_not_implement_counts_nothing() -> None:
    # The Cortex-A55 has LD_RETIRED, the Cortex-A76 has not (ARM-software/data, pmu/cortex-a76.json).
    for core_name, expected in (("cortex-a55", 2), ("cortex-a76", 0)):
        guest = counting(some_of_each, [events.LD_RETIRED, events.INST_RETIRED], handlers={0x200: HANDLER})
        assert readings(guest, 2, core_name=core_name) == [expected, 16 - (core_name != "max")]


@pytest.mark.parametrize(("core_name", "reached"), [("cortex-a76", UNPREDICTABLE_EVENT), ("max", 0)])
def test_a_machine_says_which_open_cases_its_guest_depended_on(core_name: str, reached: int) -> None:
    b = board(counting(lambda p: None, [0x77]), core_name=core_name)
    assert b.run().status is Status.POWEROFF
    assert b.machine.unpredictable() == reached


def test_a_window_reads_the_instructions_between_its_writes() -> None:
    assert readings(counting(lambda p: p(*[NOP] * 37), [events.INST_RETIRED]), 2) == [38, 38]


def test_a_trapped_access_is_not_counted_and_a_direct_one_is() -> None:
    def body(p: Program) -> None:
        p(*[mrs(5, sysreg.PMCNTENSET_EL0)] * 5, *[NOP] * 10)

    assert readings(counting(body, [events.INST_RETIRED]), 1, fgt=True) == [5 + 10 + 1]
    assert readings(counting(body, [events.INST_RETIRED]), 1, fgt=False) == [10], "nor the write that begins the window"


@pytest.mark.parametrize(
    ("words", "direct"),
    [
        ([ldrw(5, 21, 0x18)], 0),
        ([strw(31, 21)], 0),
        ([ldr(5, 21, 0x18)], 0),
        ([str_(31, 21)], 0),
        ([0xA9401EA6], 0),  # ldp x6, x7, [x21]
        ([SMC], 0),
        ([HVC], 1),
    ],
    ids=["device read", "device write", "64-bit device read", "64-bit device write", "device pair", "SMC", "HVC"],
)
def test_what_the_host_emulates_the_guest_does_not_retire(words: list[int], direct: int) -> None:
    """A device access aborts at stage 2 and an SMC is trapped; an HVC is executed, and returns behind itself."""
    types = [events.INST_RETIRED, events.LD_RETIRED, events.ST_RETIRED]
    guest = counting(lambda p: p(NOP, *words * 3, NOP), types, lambda p: p.mov(0, 0x8400_0000))
    assert readings(guest, 4) == [3 + 3 * direct, 0, 0, 3 + 3 * direct]


def test_counts_hold_over_a_wait() -> None:
    """WFI is trapped, the vCPU is put and loaded again when its timer wakes it: it retires the instructions around."""

    def body(p: Program) -> None:
        p(NOP, NOP, WFI, NOP)

    def prepare(p: Program) -> None:
        p.gic(TIMER_INTID).write(CNTV_CVAL_EL0, 100_000).write(CNTV_CTL_EL0, 1)

    b = board(counting(body, [events.INST_RETIRED, events.CPU_CYCLES], prepare))
    assert b.run().status is Status.POWEROFF
    assert [b.result(n) for n in range(3)] == [4, 4, 4]
    ledger = b.machine.ledger()
    assert (ledger["exits.wfi"], ledger["loads"], ledger["puts"]) == (1, 2, 1)
    assert b.machine.idle_ns > 1_000_000


EL0_LOOPS = 1000


def to_el0_and_back(p: Program) -> None:
    """1 + 2 x 1000 + 1 instructions at EL0, SVC included."""
    p.adr(28, "done").adr(1, "el0")(msr(ELR_EL1, 1), msr(SPSR_EL1, 31), ERET).label("el0").mov(2, EL0_LOOPS)
    p.label("loop")(subs(2, 2, 1)).b_if(NE, "loop")(SVC)


def test_loads_from_devices_before_a_counter_of_loads_is_enabled_are_not_taken_off_it() -> None:
    def prepare(p: Program) -> None:
        p.write(PMEVTYPER0 + 1, events.LD_RETIRED).write(PMEVCNTR0 + 1, 0)

    def body(p: Program) -> None:
        p(*[ldrw(5, 21, 0x18)] * 3)  # while only counter 0, of instructions, counts
        p.mov(19, 0b10)(msr(sysreg.PMCNTENSET_EL0, 19), ldr(5, 22), ldr(6, 22))
        p(msr(sysreg.PMCNTENCLR_EL0, 19), mrs(5, PMEVCNTR0 + 1), str_(5, 22))

    b = board(counting(body, [events.INST_RETIRED], prepare))
    assert b.run().status is Status.POWEROFF
    assert int.from_bytes(b.machine.memory.read(RESULTS + 0x800, 8), "little") == 2


@pytest.mark.parametrize(
    ("filters", "expected"),
    [(P_EXCLUDES_EL1, 2 + 2 * EL0_LOOPS), (U_EXCLUDES_EL0, 7), (0, 2 + 2 * EL0_LOOPS + 7)],
    ids=["P", "U", "none"],
)
def test_filters_separate_el0_from_el1(filters: int, expected: int) -> None:
    """At EL1: the write that begins the window, five to go to EL0, and the handler's branch."""
    guest = counting(to_el0_and_back, [events.INST_RETIRED | filters], handlers={SVC_FROM_EL0: [br(28)]})
    assert readings(guest, 1) == [expected]


def test_an_even_counter_that_overflows_feeds_its_odd_neighbour() -> None:
    guest = counting(lambda p: p(*[NOP] * 20), [events.INST_RETIRED, events.CHAIN], values=[(1 << 32) - 10, 5])
    low, high = readings(guest, 2)
    assert low & 0xFFFF_FFFF == 21 - 10
    assert high == 6


def test_what_happens_before_an_overflow_that_freezes_is_counted() -> None:
    """PMCR_EL0.FZO: the 20th instruction overflows counter 0, after ten loads; nothing more is counted."""

    def prepare(p: Program) -> None:
        p.mov(19, sysreg.PMCR_E | sysreg.PMCR_LC | sysreg.PMCR_FZO)

    def body(p: Program) -> None:
        p(msr(sysreg.PMCR_EL0, 19), *[ldr(5, 22)] * 10, *[NOP] * 20, *[ldr(5, 22)] * 5)

    guest = counting(body, [events.INST_RETIRED, events.LD_RETIRED], prepare, values=[(1 << 32) - 20, 0])
    assert readings(guest, 2) == [1 << 32, 10]


OVERFLOWS = [
    # event, after how many of them, which instruction of it the interrupt finds next
    (events.INST_RETIRED, 1, 1),
    (events.INST_RETIRED, 4_001, 1),
    (events.INST_RETIRED, 4_003, 3),
    (events.LD_RETIRED, 1, 2),
    (events.LD_RETIRED, 999, 2),
    (events.ST_RETIRED, 1_000, 3),
    (events.BR_RETIRED, 77, 0),
    (events.MEM_ACCESS, 5, 2),
]


@pytest.mark.parametrize("fgt", [True, False])
@pytest.mark.parametrize(("event", "after", "next_one"), OVERFLOWS)
def test_an_overflow_interrupts_right_after_its_event(event: int, after: int, next_one: int, fgt: bool) -> None:
    """Of an endless loop: nop, load, store, branch back."""

    def prepare(p: Program) -> None:
        p.gic(PMU_INTID).write(sysreg.PMINTENSET_EL1, 1)(daifclr(2))

    def body(p: Program) -> None:
        p.label("loop")(NOP, ldr(5, 22), str_(5, 22)).b("loop")

    handler = Program().mov(11, RESULTS)(mrs(5, ELR_EL1), str_(5, 11), mrs(6, sysreg.PMOVSCLR_EL0), str_(6, 11, 8))
    handler.psci(PSCI_SYSTEM_OFF)
    first = 1 if fgt and event == events.INST_RETIRED else 0  # the write that begins the window
    guest = counting(body, [event], prepare, [(1 << 32) - after - first], {IRQ_VECTOR: handler.words()})
    elr, overflow_status = readings(guest, 2, fgt=fgt)
    assert (elr - guest.address("loop")) // 4 == next_one
    assert overflow_status == 1


@pytest.mark.parametrize("fgt", [True, False])
def test_every_overflow_interrupts_once(fgt: bool) -> None:
    """Ten periods of 1,000 instructions at EL0, as a sampling profiler would have them: the handler sets the next."""

    def prepare(p: Program) -> None:
        p.gic(PMU_INTID).write(sysreg.PMINTENSET_EL1, 1).mov(24, 0)

    handler = Program()(mrs(5, ICC_IAR1_EL1), msr(sysreg.PMOVSCLR_EL0, 20), msr(PMEVCNTR0, 23), ISB)
    handler(msr(ICC_EOIR1_EL1, 5), add(24, 24, 1), ERET)
    save = Program().mov(11, RESULTS)(str_(24, 11)).psci(PSCI_SYSTEM_OFF)

    def body(p: Program) -> None:
        p.mov(23, (1 << 32) - 1000).adr(1, "el0")(msr(ELR_EL1, 1), msr(SPSR_EL1, 31), ERET).label("el0")
        p.mov(2, 5_000).label("loop")(subs(2, 2, 1)).b_if(NE, "loop")(SVC)

    handlers = {0x480: handler.words(), SVC_FROM_EL0: save.words()}
    types, values = [events.INST_RETIRED | P_EXCLUDES_EL1], [(1 << 32) - 1000]
    b = board(counting(body, types, prepare, values, handlers), fgt=fgt)
    assert b.run().status is Status.POWEROFF
    assert b.result() == 10
    ledger = b.machine.ledger()
    assert (ledger["overflows"], ledger["interrupts_injected"]) == (10, 10)
