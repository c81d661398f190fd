"""Guests that misbehave, each in a process of its own: it must end by itself, in its status, with one clear line.

What could crash the process or keep it for ever would otherwise be the end of the tests, not of a test.
"""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from a64 import (
    BRK,
    CNTV_CTL_EL0,
    CNTV_CVAL_EL0,
    ELR_EL1,
    ERET,
    FLAT_ENTRY,
    GICD,
    GICR,
    HVC,
    ISB,
    NOP,
    PSCI_CPU_OFF,
    PSCI_CPU_ON,
    PSCI_SYSTEM_OFF,
    SCTLR_EL1,
    SP,
    SPSR_EL1,
    SVC,
    UART,
    UDF,
    VBAR_EL1,
    WFI,
    Program,
    add,
    br,
    daifclr,
    daifset,
    ldr,
    movz,
    mrs,
    msr,
    strw,
)
from pmuvisor.arch import sysreg
from pmuvisor.board import gicv3, timer

BOUND = 60
"""Seconds after which a process counts as one that hangs."""
UNMAPPED = 0x2000_0000
RAM_END = 0x4000_0000 + (256 << 20)
STUCK = "vCPU 0 takes exceptions for ever without executing an instruction"
MAIR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1 = 0xC510, 0xC102, 0xC100, 0xC101
FOUR_KB_39_BITS = 0x80_0019_0019 | 1 << 31
MMU_ON = 0x30D0_0801


def ended(folder: Path, image: bytes, *options: str) -> dict[str, Any]:
    """Run a guest with the command line; return its JSON."""
    guest, out = folder / "guest", folder / "result.json"
    guest.write_bytes(image)
    command = [sys.executable, "-m", "pmuvisor.cli", "run", str(guest), "--json", str(out), "--timeout", "20", *options]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=BOUND, check=False)
    assert done.stderr == b""
    result: dict[str, Any] = json.loads(out.read_text())
    assert done.returncode == (0 if result["status"] in ("poweroff", "reset") else 1)
    line = f"\n{guest}: {result['status']}: {result['reason']}\n"
    assert ("\n" + done.stdout.decode(errors="replace")).count(line) == 1
    return result


def hung(folder: Path, guest: Program, reason: str, *options: str) -> str:
    """Run a guest that hangs, in less time than it was given; return its registers."""
    result = ended(folder, guest.code(), *options)
    assert (result["status"], result["reason"]) == ("hung", reason)
    assert result["wall_seconds"] < 10
    return str(result["registers"])


# ---- guests that fault for ever ------------------------------------------------------------------------------------


def faulting(vbar: int, first: int = UDF) -> Program:
    return Program().write(VBAR_EL1, vbar)(ISB, first)


def page_tables(root: int) -> Program:
    """Translation on, with tables at `root`, a physical address that holds none."""
    p = Program().write(MAIR_EL1, 0xFF).write(TCR_EL1, FOUR_KB_39_BITS).write(TTBR0_EL1, root).write(TTBR1_EL1, root)
    return p(ISB).write(SCTLR_EL1, MMU_ON)(ISB).psci(PSCI_SYSTEM_OFF)


def vector_not_executable() -> Program:
    """A block of 1 GiB that maps everything, executable at EL0 only: the next fetch faults, and the vector's too."""
    table = 0x4010_0000
    privileged_execute_never, normal_used = 1 << 53, 1 << 10 | 3 << 8 | 1
    p = Program().mov(1, table).mov(2, 0x4000_0000 | privileged_execute_never | normal_used)
    p(0xF900_0422).use_vectors()  # str x2, [x1, #8]
    p.write(MAIR_EL1, 0xFF).write(TCR_EL1, FOUR_KB_39_BITS).write(TTBR0_EL1, table)
    return p(ISB).write(SCTLR_EL1, MMU_ON)(ISB).psci(PSCI_SYSTEM_OFF).vectors()


FAULTING = {
    "no vector set": Program()(UDF),
    "vector in nowhere": faulting(UNMAPPED),
    "vector at a virtual address": faulting(0xFFFF_8000_0000_0000),
    "vector in a device": faulting(UART),
    "vector that is undefined": Program().use_vectors()(UDF).vectors(),
    "vector that breaks": Program().use_vectors()(UDF).vectors(otherwise=[BRK]),
    "vector that loads from nowhere": Program()
    .use_vectors()
    .mov(1, UNMAPPED)(ldr(2, 1))
    .vectors(otherwise=[ldr(2, 1)]),
    "vector not executable": vector_not_executable(),
    "system call without a vector": Program()(SVC),
    "jump to nowhere": Program().mov(1, UNMAPPED)(br(1)),
    "jump to zero": Program().mov(1, 0)(br(1)),
    "jump into a device": Program().mov(1, GICD)(br(1)),
    "jump to an odd address": Program().mov(1, FLAT_ENTRY + 2)(br(1)),
    "jump beyond any address": Program().mov(1, 0x1234_5678_9ABC_DEF0)(br(1)),
    "run out of memory's end": Program().mov(1, RAM_END - 4).mov(2, NOP)(strw(2, 1), br(1)),
    "page tables in nowhere": page_tables(UNMAPPED),
    "page tables in the interrupt controller": page_tables(GICD),
    "page tables in the console": page_tables(UART),
}


@pytest.mark.parametrize("what", FAULTING)
def test_a_guest_that_faults_for_ever_is_hung_and_shows_its_registers(what: str, tmp_path: Path) -> None:
    registers = hung(tmp_path, FAULTING[what], STUCK)
    assert all(name in registers for name in ("PC ", "PSTATE ", "ESR ", "FAR ", "VBAR ", "X30 "))
    assert max(map(len, registers.splitlines())) <= 80


# ---- guests that wait or loop for ever -----------------------------------------------------------------------------

NOTHING_COMES = "every vCPU waits for an interrupt and no device will raise one"


def second_vcpu_at(entry: int) -> Program:
    """The first turns the second on at an address, and waits."""
    return Program().mov(1, 1).mov(2, entry).mov(3, 0).psci(PSCI_CPU_ON).label("x")(WFI).b("x")


def test_a_guest_that_waits_for_nothing_is_hung(tmp_path: Path) -> None:
    hung(tmp_path, Program().label("x")(WFI).b("x"), NOTHING_COMES)


def test_a_guest_whose_vcpus_are_all_off_is_hung(tmp_path: Path) -> None:
    hung(tmp_path, Program().psci(PSCI_CPU_OFF), "every vCPU is off", "--smp", "2")


@pytest.mark.parametrize("entry", [UNMAPPED, UART, RAM_END])
def test_a_second_vcpu_that_starts_in_garbage_is_hung(entry: int, tmp_path: Path) -> None:
    hung(tmp_path, second_vcpu_at(entry), STUCK.replace("vCPU 0", "vCPU 1"), "--smp", "2")


def storm() -> Program:
    """A counter that has overflowed, and a handler that does not care."""
    p = Program().use_vectors().gic(23).write(sysreg.PMEVTYPER0_EL0, 8).write(sysreg.PMEVCNTR0_EL0, 0xFFFF_FFFF)
    p.write(sysreg.PMINTENSET_EL1, 1).write(sysreg.PMCNTENSET_EL0, 1).write(sysreg.PMCR_EL0, 1)
    return p(daifclr(2)).label("x").b("x").vectors(otherwise=[ERET])


def overflowing_always() -> Program:
    """A cycle counter that overflows again at every few instructions, cleared each time."""
    p = Program().use_vectors().gic(23).mov(3, (1 << 64) - 2).mov(4, 1 << 31)
    p.write(sysreg.PMINTENSET_EL1, 1 << 31).write(sysreg.PMCNTENSET_EL0, 1 << 31).write(sysreg.PMCR_EL0, 0x41)
    clear = [msr(sysreg.PMOVSCLR_EL0, 4), msr(sysreg.PMCCNTR_EL0, 3), ERET]
    return p(daifclr(2)).label("x").b("x").vectors(otherwise=clear)


def timer_storm() -> Program:
    p = Program().use_vectors().gic(27).write(CNTV_CVAL_EL0, 0).write(CNTV_CTL_EL0, 1)
    return p(daifclr(2)).label("x").b("x").vectors(otherwise=[ERET])


def spinning_vcpus() -> Program:
    p = Program()
    for cpu in (1, 2, 3):
        p.mov(1, cpu).adr(2, "x").mov(3, 0).psci(PSCI_CPU_ON)
    return p.label("x")(daifset(15)).label("y").b("y")


ENDLESS = {
    "loop with interrupts masked": (Program()(daifset(15)).label("x").b("x"), 1),
    "the same on four vCPUs": (spinning_vcpus(), 4),
    "PMU interrupt storm": (storm(), 1),
    "PMU overflow at every few instructions": (overflowing_always(), 1),
    "timer interrupt storm": (timer_storm(), 1),
    "system calls for ever": (Program().use_vectors()(SVC).vectors(otherwise=[SVC]), 1),
    "vector that does something and faults": (Program().use_vectors()(UDF).vectors(otherwise=[NOP, UDF]), 1),
    "return to the fault": (Program().use_vectors()(UDF).vectors(otherwise=[ERET]), 1),
    "hypercalls for ever": (Program().label("x")(HVC).b("x"), 1),
    "misaligned stack": (Program().mov(1, 0x4100_0001)(add(SP, 1, 0)).label("x")(0xA9BF_7BFD).b("x"), 1),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_guest_that_never_ends_is_ended_by_the_timeout(what: str, tmp_path: Path) -> None:
    guest, vcpus = ENDLESS[what]
    result = ended(tmp_path, guest.code(), "--timeout", "0.3", "--smp", str(vcpus))
    if what != "misaligned stack":  # where its stores go wrong in the end it may be stuck first
        assert (result["status"], result["reason"]) == ("timeout", "not over after 0.3 s")
    assert result["wall_seconds"] < 5


def test_a_guest_that_prints_for_ever_is_bounded(tmp_path: Path) -> None:
    guest = Program().mov(9, UART)(movz(10, ord("a"))).label("x")(strw(10, 9)).b("x")
    result = ended(tmp_path, guest.code(), "--timeout", "0.5")
    assert result["status"] == "timeout"
    assert set(result["console"]) == {"a"}
    assert len(result["console"]) <= 4 << 20


# ---- guests made of chance -----------------------------------------------------------------------------------------

SKIP_THE_FAULT = [mrs(30, ELR_EL1), add(30, 30, 4), msr(ELR_EL1, 30), ERET]
SEEDS = 6
DRIVER = """
import json, sys
from pathlib import Path
from pmuvisor.arch.cores import core
from pmuvisor.lab.run import Request, run
for name in sys.argv[1:]:
    result = run(Request(name, core("max"), timeout=1.0, vcpus=2))
    print(json.dumps([result.status, result.reason]), flush=True)
"""


def in_one_process(folder: Path, images: Sequence[bytes]) -> list[list[str]]:
    """Run these guests one after the other; how each ended, and why."""
    names = []
    for number, image in enumerate(images):
        (folder / f"guest{number}").write_bytes(image)
        names.append(str(folder / f"guest{number}"))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *names], capture_output=True, text=True, timeout=BOUND, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def skipping(chance: random.Random) -> Program:
    """A guest whose every fault is skipped; what follows is `chance`'s."""
    return Program().use_vectors().b("go").vectors(otherwise=SKIP_THE_FAULT).label("go")


def test_garbage_ends(tmp_path: Path) -> None:
    images = [random.Random(seed).randbytes(16384) for seed in range(SEEDS)]
    for status, _ in in_one_process(tmp_path, images):
        assert status in ("hung", "timeout")


def test_garbage_that_skips_its_faults_ends(tmp_path: Path) -> None:
    images = []
    for seed in range(SEEDS):
        chance = random.Random(100 + seed)
        images.append(skipping(chance)(*(chance.getrandbits(32) for _ in range(16384))).code())
    for status, _ in in_one_process(tmp_path, images):
        assert status in ("hung", "timeout", "poweroff", "reset")


EVERY_REGISTER = [
    sysreg.encode(op0, op1, crn, crm, op2)
    for op0 in (2, 3)
    for op1 in range(8)
    for crn in range(16)
    for crm in range(16)
    for op2 in range(8)
]
FATAL = [VBAR_EL1, SCTLR_EL1]
"""What ends such a guest at its first wrong value."""
NAMED = [*sysreg.PMU_KEYS, *timer.KEYS, *gicv3.ICC_KEYS, TTBR0_EL1, TTBR1_EL1, TCR_EL1, MAIR_EL1, SPSR_EL1, ELR_EL1]
NAMED += [sysreg.encode(3, 0, 1, 0, 2), sysreg.encode(3, 3, 4, 2, 1)]  # CPACR_EL1, DAIF


def register_writer(seed: int, spare: Sequence[int] = ()) -> bytes:
    """3,000 accesses to system registers but `spare`, of random values, at EL1."""
    chance = random.Random(seed)
    p = skipping(chance)
    for _ in range(3000):
        register = chance.choice([*NAMED, *FATAL] if chance.random() < 0.5 else EVERY_REGISTER)
        values = [chance.getrandbits(64), 1 << chance.randrange(64), (1 << 64) - 1, chance.getrandbits(12), 0]
        if register in spare:
            continue
        if chance.random() < 0.3:
            p(mrs(chance.randrange(31), register))
        else:
            p.write(register, chance.choice(values))
    return p.psci(PSCI_SYSTEM_OFF).code()


def test_random_values_in_every_system_register_end(tmp_path: Path) -> None:
    images = [register_writer(seed) for seed in range(SEEDS)]
    for status, _ in in_one_process(tmp_path, images):
        assert status in ("hung", "timeout", "poweroff")


def test_random_values_in_every_system_register_but_two_leave_a_guest_running(tmp_path: Path) -> None:
    images = [register_writer(seed, FATAL) for seed in range(2 * SEEDS)]
    assert in_one_process(tmp_path, images) == [["poweroff", "the guest powered off"]] * (2 * SEEDS)


PLACES = [GICD, GICD + 0xFF00, GICR, GICR + 0x1_0000, GICR + 0x2_0000, GICR + 0x4_0000, UART, UART + 0xF00, 0]
PLACES += [UNMAPPED, 0x0A00_0000, RAM_END - 64, RAM_END, (1 << 40) - 64]
ACCESSES = [0xF940_0000, 0xF900_0000, 0xB940_0000, 0xB900_0000, 0x3940_0000, 0x3900_0000, 0x7940_0000, 0x7900_0000]
ACCESSES += [0xA940_0000, 0xA900_0000, 0x885F_7C00, 0x8800_7C00, 0x3DC0_0000, 0x3D80_0000]
"""LDR, STR of 64, 32, 8 and 16 bits, LDP, STP, LDXR, STXR, LDR and STR of 128 bits."""


def device_poker(seed: int) -> bytes:
    """3,000 accesses of all widths, aligned and not, to devices, beyond them and where there is nothing."""
    chance = random.Random(seed)
    p = skipping(chance).write(sysreg.encode(3, 0, 1, 0, 2), 3 << 20)  # CPACR_EL1: floating point
    for _ in range(3000):
        address = chance.choice(PLACES) + chance.randrange(0x800) * chance.choice([1, 4, 8])
        p.mov(1, address & ~chance.choice([0, 7])).mov(2, chance.getrandbits(64))
        p(chance.choice(ACCESSES) | 1 << 5 | 2)
    return p.psci(PSCI_SYSTEM_OFF).code()


def test_random_accesses_to_all_devices_leave_a_guest_running(tmp_path: Path) -> None:
    images = [device_poker(seed) for seed in range(SEEDS)]
    assert in_one_process(tmp_path, images) == [["poweroff", "the guest powered off"]] * SEEDS
