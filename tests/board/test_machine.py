"""The machine: vCPUs, time, interrupts and devices together, under guests of a few instructions."""

import threading
import time
from collections.abc import Iterator

import pytest

from a64 import (
    CNTV_CTL_EL0,
    CNTV_CVAL_EL0,
    CNTVCT_EL0,
    HVC,
    ICC_IAR1_EL1,
    ICC_SGI1R_EL1,
    ISB,
    NE,
    NOP,
    PSCI_CPU_OFF,
    PSCI_CPU_ON,
    PSCI_SYSTEM_OFF,
    PSCI_SYSTEM_RESET,
    RET,
    SMC,
    UART,
    WFI,
    Program,
    add_register,
    and_register,
    cmp,
    copy,
    daifclr,
    ldrw,
    low_bits,
    movz,
    mrs,
    msr,
    str_,
    strw,
    subs,
)
from board.machine_support import RESULTS, Board, board
from pmuvisor.arch import sysreg
from pmuvisor.arch.cores import core
from pmuvisor.board import machine
from pmuvisor.board.machine import Config, CountError, Machine, Status

IRQ_VECTOR = 0x280
MPIDR_EL1 = 0xC005
TIMER_INTID = 27
SGI = 3
PSCI_AFFINITY_INFO = 0xC400_0004
PSCI_ALREADY_ON = (1 << 64) - 4
PSCI_INVALID_PARAMETERS = (1 << 64) - 2
TICK = 16
"""Nanoseconds, and so instructions, in a tick of the 62.5 MHz counter."""


# ---- the demo guest: its counts are known by hand ------------------------------------------------------------------

DEMOS = [
    ("max", 0, True),
    ("max", 0, False),
    ("max", 1, True),
    ("max", 1, False),
    ("max", None, True),
    ("max", None, False),
    ("max", 8, True),
    ("max", 8, False),
    ("cortex-a76", 1, True),
    ("cortex-a76", None, False),
    ("cortex-a76", 6, True),
]


@pytest.mark.parametrize(("core_name", "counters", "fgt"), DEMOS)
def test_demo_counts_exactly(core_name: str, counters: int | None, fgt: bool) -> None:
    demo = board(core_name=core_name, counters=counters, fgt=fgt)
    assert demo.run().status is Status.POWEROFF
    assert b"demo: all counts exact\n" in demo.console
    assert b"FAIL" not in demo.console


def test_demo_is_the_same_run_every_time() -> None:
    runs = []
    for _ in range(2):
        demo = board()
        demo.run()
        runs.append((bytes(demo.console), demo.machine.ledger(), demo.machine.now_ns()))
    assert runs[0] == runs[1]


def test_without_fine_grained_traps_every_pmu_access_traps() -> None:
    demo = board(fgt=False)
    demo.run()
    ledger = demo.machine.ledger()
    assert ledger["pmu_direct"] == 0
    assert ledger["pmu_trapped"] == ledger["exits.pmu"] > 200


@pytest.mark.parametrize(
    ("core_name", "counters", "lowest"), [("max", 9, 0), ("cortex-a76", 0, 1), ("cortex-a76", 7, 1)]
)
def test_a_count_that_the_core_cannot_give_is_refused(core_name: str, counters: int, lowest: int) -> None:
    with pytest.raises(CountError, match=rf"counters {counters}: core {core_name} can give a guest {lowest} to [68]$"):
        Machine(Config(core(core_name), 16 << 20, counters=counters), lambda _: None)


# ---- PSCI ----------------------------------------------------------------------------------------------------------


def turn_on(program: Program, cpu: int, label: str, context: int = 0) -> Program:
    return program.mov(1, cpu).adr(2, label).mov(3, context).psci(PSCI_CPU_ON)


def wait_until_off(program: Program, cpu: int) -> Program:
    label = f"wait {program.here}"
    program.label(label).mov(1, cpu).mov(2, 0).psci(PSCI_AFFINITY_INFO)
    return program(cmp(0, 1)).b_if(NE, label)


def save(program: Program, register: int, number: int) -> Program:
    return program.mov(11, RESULTS + 8 * number)(str_(register, 11))


def secondary(program: Program) -> Program:
    """Leaves its context and its affinity at the place that its affinity names, and turns itself off."""
    program.label("secondary")(copy(5, 0), mrs(6, MPIDR_EL1))
    program.mov(11, RESULTS)(low_bits(7, 6, 8), add_register(12, 11, 7, shift=4))
    program(str_(5, 12), str_(6, 12, 8))
    return program.psci(PSCI_CPU_OFF)


def test_cpu_on_starts_a_vcpu_with_its_context_and_cpu_off_ends_it() -> None:
    p = Program()
    for cpu in (1, 2, 3):
        turn_on(p, cpu, "secondary", 0x1000 + cpu)
    for cpu in (1, 2, 3):
        wait_until_off(p, cpu)
    turn_on(p, 2, "secondary", 0x77)  # and it can be turned on again
    wait_until_off(p, 2)
    secondary(p.psci(PSCI_SYSTEM_OFF))
    b = board(p, vcpus=4)
    assert b.run().status is Status.POWEROFF
    assert [b.result(2 * cpu) for cpu in (1, 2, 3)] == [0x1001, 0x77, 0x1003]
    assert [b.result(2 * cpu + 1) for cpu in (1, 2, 3)] == [1 << 31 | cpu for cpu in (1, 2, 3)]


def test_cpu_on_resets_the_pmu_of_the_vcpu() -> None:
    """kvm_psci_vcpu_on() resets the vCPU, its PMU included."""
    p = Program()
    for _ in range(2):
        turn_on(p, 1, "secondary")
        wait_until_off(p, 1)
    p.psci(PSCI_SYSTEM_OFF)
    p.label("secondary")(mrs(5, sysreg.PMCNTENSET_EL0), mrs(6, sysreg.PMEVCNTR0_EL0), mrs(7, sysreg.PMINTENSET_EL1))
    for number, register in enumerate((5, 6, 7)):
        save(p, register, number)
    p.mov(8, 1)(msr(sysreg.PMCNTENSET_EL0, 8), msr(sysreg.PMEVCNTR0_EL0, 8), msr(sysreg.PMINTENSET_EL1, 8))
    b = board(p.psci(PSCI_CPU_OFF), vcpus=2)
    assert b.run().status is Status.POWEROFF
    # Linux reset_unknown(), 0x1de7ec7edbadc0de: of the counters that the guest has, and 32 bits of a counter.
    assert [b.result(n) for n in range(3)] == [0x8000_001E, 0xDBAD_C0DE, 0x8000_001E]


def test_cpu_on_refuses_a_vcpu_that_runs_or_is_not_there() -> None:
    p = turn_on(Program(), 0, "here").label("here")
    save(p, 0, 0)
    save(turn_on(p, 2, "here"), 0, 1).psci(PSCI_SYSTEM_OFF)
    b = board(p, vcpus=2)
    assert b.run().status is Status.POWEROFF
    assert (b.result(0), b.result(1)) == (PSCI_ALREADY_ON, PSCI_INVALID_PARAMETERS)


def test_reset_and_smc() -> None:
    b = board(save(Program()(movz(0, 7), SMC), 0, 0).psci(PSCI_SYSTEM_RESET))
    assert b.run().status is Status.RESET
    assert b.result() == (1 << 64) - 1, "SMC: KVM answers NOT_SUPPORTED"


def test_all_vcpus_off_is_hung() -> None:
    outcome = board(Program().psci(PSCI_CPU_OFF), vcpus=2).run()
    assert (outcome.status, outcome.reason) == (Status.HUNG, "every vCPU is off")


def test_waiting_for_nothing_is_hung_at_once() -> None:
    outcome = board(Program().label("x")(WFI).b("x"), vcpus=2).run()
    assert outcome.status is Status.HUNG
    assert outcome.reason == "every vCPU waits for an interrupt and no device will raise one"
    assert "PC 0000000040080004" in outcome.registers


# ---- time and interrupts -------------------------------------------------------------------------------------------


def timer_guest(cval: int, wait: int) -> Program:
    """Takes the timer's interrupt while it executes `wait` for ever; the handler's first instruction reads the time."""
    p = Program().use_vectors().gic(TIMER_INTID)
    p.write(CNTV_CVAL_EL0, cval).write(CNTV_CTL_EL0, 1)(daifclr(2)).label("loop")(wait).b("loop")
    return p.vectors({IRQ_VECTOR: handler()})


def handler() -> list[int]:
    h = Program()(mrs(4, CNTVCT_EL0), mrs(5, ICC_IAR1_EL1)).mov(11, RESULTS)(str_(4, 11), str_(5, 11, 8))
    return h.psci(PSCI_SYSTEM_OFF).words()


@pytest.mark.parametrize("cval", [1000, 1001, 54_321])
def test_the_timer_interrupts_on_the_first_instruction_of_its_tick(cval: int) -> None:
    b = board(timer_guest(cval, NOP))
    assert b.run().status is Status.POWEROFF
    assert (b.result(0), b.result(1)) == (cval, TIMER_INTID)
    assert b.machine.instructions() == cval * TICK + len(handler())


@pytest.mark.parametrize("cval", [1000, 1_000_000_007])
def test_a_guest_that_waits_is_woken_at_its_tick_whatever_the_wait(cval: int) -> None:
    b = board(timer_guest(cval, WFI))
    assert b.run(5).status is Status.POWEROFF
    assert (b.result(0), b.result(1)) == (cval, TIMER_INTID)
    assert b.machine.now_ns() == cval * TICK + len(handler())


def test_an_interrupt_sent_to_another_vcpu_wakes_it() -> None:
    p = Program()
    turn_on(p, 1, "other")
    p.mov(2, RESULTS).label("not ready")(ldrw(3, 2, 16)).cbz(3, "not ready")
    p.write(ICC_SGI1R_EL1, SGI << 24 | 1 << 1)(ISB).label("idle")(WFI).b("idle")
    p.label("other").use_vectors().gic(SGI, cpu=1)
    save(p.mov(3, 1), 3, 2)(daifclr(2)).label("wait")(WFI).b("wait")
    p.vectors({IRQ_VECTOR: handler()})
    b = board(p, vcpus=2)
    assert b.run(5).status is Status.POWEROFF
    assert b.result(1) == SGI
    assert b.machine.ledger()["exits.sgi"] == 1


# ---- several vCPUs -------------------------------------------------------------------------------------------------


def crowd(vcpus: int) -> Program:
    """Every vCPU prints its letter 300 times, with some work in between; the first waits for the others."""
    p = Program()
    for cpu in range(1, vcpus):
        turn_on(p, cpu, "chatter", ord("a") + cpu)
    p.mov(0, ord("a")).bl("print")
    for cpu in range(1, vcpus):
        wait_until_off(p, cpu)
    p.psci(PSCI_SYSTEM_OFF)
    p.label("chatter").bl("print").psci(PSCI_CPU_OFF)
    p.label("print").mov(9, UART).mov(1, 300).label("letter")(strw(0, 9)).mov(2, 1000)
    p.label("work")(subs(2, 2, 1)).b_if(NE, "work")(subs(1, 1, 1)).b_if(NE, "letter")
    return p(RET)


@pytest.mark.parametrize("vcpus", [2, 4])
def test_several_vcpus_take_turns_in_the_same_order_every_time(vcpus: int) -> None:
    runs = []
    for _ in range(2):
        b = board(crowd(vcpus), vcpus=vcpus)
        assert b.run().status is Status.POWEROFF
        runs.append((bytes(b.console), b.machine.ledger(), b.machine.now_ns()))
    assert runs[0] == runs[1]
    letters = [bytes((ord("a") + cpu,)) for cpu in range(vcpus)]
    assert [runs[0][0].count(letter) for letter in letters] == [300] * vcpus
    assert runs[0][0] != b"".join(letter * 300 for letter in letters), "they take turns"


# ---- ending from outside -------------------------------------------------------------------------------------------

SLOW = {
    "register traps": 0xD53B_9C00,  # mrs x0, pmcr_el0
    "instruction cache": 0xD508_751F,  # ic iallu
    "device reads": ldrw(10, 9),
    "device writes": strw(10, 9),
    "hypercalls": HVC,
    "nothing": NOP,
}


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("what", SLOW)
def test_a_timeout_is_kept_whatever_the_guest_does(what: str, vcpus: int) -> None:
    p = Program().mov(9, UART)
    for cpu in range(1, vcpus):
        turn_on(p, cpu, "loop")
    b = board(p.label("loop").mov(9, UART)(SLOW[what]).b("loop"), vcpus=vcpus, fgt=False)
    seconds = wall_seconds(b, 0.2)
    assert seconds < 2


def wall_seconds(b: Board, timeout: float) -> float:
    begin = time.monotonic()
    outcome = b.run(timeout)
    assert (outcome.status, outcome.reason) == (Status.TIMEOUT, f"not over after {timeout:g} s")
    assert "PC 00000000400" in outcome.registers
    return time.monotonic() - begin


def test_a_run_can_be_interrupted_from_another_thread() -> None:
    b = board(Program().label("x")(mrs(1, 0xDCE8)).b("x"))
    threading.Timer(0.1, lambda: setattr(b.machine, "interrupted", True)).start()
    outcome = b.run(20)
    assert (outcome.status, outcome.reason) == (Status.EXIT, "interrupted")


# ---- input ---------------------------------------------------------------------------------------------------------

UART_FR, UART_IMSC = 0x18, 0x38
UART_INTID = 33


def echo_guest(wait: bool) -> Program:
    """Sends back what it receives, up to a newline; waits for the interrupt, or asks again and again."""
    p = Program().mov(9, UART)
    if wait:
        p.gic(TIMER_INTID).store32(0x0800_0000 + 0x84, 0xFFFF_FFFF)  # GICD_IGROUPR1
        p.store32(0x0800_0000 + 0x104, 1 << (UART_INTID - 32)).mov(9, UART)(movz(10, 0x50), strw(10, 9, UART_IMSC))
    p.label("more")
    if wait:
        p(WFI)
    p.mov(9, UART)(ldrw(3, 9, UART_FR)).mov(4, 16)(and_register(3, 3, 4)).cbnz(3, "more")  # nothing received
    p(ldrw(3, 9), strw(3, 9), cmp(3, ord("\n"))).b_if(NE, "more")
    return p.psci(PSCI_SYSTEM_OFF)


@pytest.mark.parametrize("wait", [True, False], ids=["interrupt", "polling"])
def test_input_reaches_the_guest(wait: bool) -> None:
    b = board(echo_guest(wait))
    pieces: Iterator[bytes] = iter([b"", b"hel", b"", b"lo, guest", b"!\n"])

    def poll() -> bool:
        b.machine.uart.receive(next(pieces, b""))
        return True

    outcome = b.machine.run(10, poll)
    assert outcome.status is Status.POWEROFF
    assert b.console == b"hello, guest!\n"


UART1 = 0x0904_0000
"""Where QEMU's virt has its second UART, whose SPI is 8."""


def test_the_second_uart_is_heard_apart_from_the_console() -> None:
    p = Program()
    for base, text in ((UART, b"a"), (UART1, b"exit "), (UART, b"b"), (UART1, b"7\n")):
        p.mov(9, base)
        for byte in text:
            p(movz(3, byte), strw(3, 9))
    b = board(p.psci(PSCI_SYSTEM_OFF))
    assert b.machine.control() == b""
    assert b.run().status is Status.POWEROFF
    assert b.console == b"ab"
    assert b.machine.control() == b"exit 7\n"


def test_the_second_uart_raises_its_own_interrupt() -> None:
    """SPI 8 is INTID 40: bit 8 of the second word of GICD_ISPENDR."""
    transmit = 1 << 5
    p = Program().mov(9, UART1)(movz(3, transmit), strw(3, 9, UART_IMSC), movz(3, ord("x")), strw(3, 9))
    p.mov(9, 0x0800_0000 + 0x204)(ldrw(3, 9)).mov(9, RESULTS)(str_(3, 9))
    b = board(p.psci(PSCI_SYSTEM_OFF))
    b.run()
    assert b.result() == 1 << 8


def test_of_the_second_uart_only_the_end_is_kept() -> None:
    count = machine.CONTROL_LIMIT + 3
    p = Program().mov(9, UART1).mov(10, count).label("more")
    p(strw(10, 9), subs(10, 10, 1)).b_if(NE, "more")
    b = board(p.psci(PSCI_SYSTEM_OFF))
    b.run()
    assert b.machine.control() == bytes(n & 0xFF for n in range(machine.CONTROL_LIMIT, 0, -1))


def test_without_more_input_a_guest_that_waits_for_it_is_hung() -> None:
    b = board(echo_guest(wait=True))
    assert b.machine.run(10, lambda: False).status is Status.HUNG
