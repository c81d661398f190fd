"""The programs of tests/guests/el1: built, run on the board and on QEMU, and what they printed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pmuvisor.arch.cores import Core
from pmuvisor.arch.sysreg import PMUV3P5
from pmuvisor.board import memmap
from pmuvisor.board.fdt import virt_device_tree
from pmuvisor.board.images import load_image, plan_layout
from pmuvisor.board.machine import Config, Machine, Status
from pmuvisor.lab.guests import builtin_guest

FOLDER = Path(__file__).parents[1] / "guests" / "el1"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.S"))

COMPILER = "aarch64-linux-gnu-gcc"
QEMU = "qemu-system-aarch64"
QEMU_VERSION = "7.2"
"""That of Debian 12, whose deviations are known."""

COUNTERS = 6
"""PMCR_EL0.N of `-cpu max`, and of the board's guest."""
CORE = Core(
    name="as QEMU's max",
    about="what QEMU 7.2 says of -cpu max, and EL3",
    event_counters=COUNTERS + 2,
    pmuver=PMUV3P5,
    midr=0xF << 16,
    fgt=True,
    fgt2=False,
    el3=True,
    sel2=False,
    aarch32=True,
    spe=0,
    mhz=1000,
    product="virtual time",
    implementer=0x41,
    idcode=0x01,
)
"""PMU version, identity and AArch32 are those of QEMU's `-cpu max`; two more event counters are not the guest's."""
MEMORY = 16 << 20

Printed = dict[str, int]
"""What a program printed, in order: label to value. The n-th value under a label, from the second on, is `label#n`."""


def qemu_absent() -> str:
    """Why QEMU cannot be compared with; empty where it can."""
    if not shutil.which(QEMU):
        return f"no {QEMU} here"
    said = subprocess.run([QEMU, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    version = said.removeprefix("QEMU emulator version ")
    return "" if version.startswith(QEMU_VERSION + ".") else f"QEMU {version} here, not {QEMU_VERSION}"


needs_compiler = pytest.mark.skipif(not shutil.which(COMPILER), reason=f"no {COMPILER} here")
needs_qemu = pytest.mark.skipif(bool(qemu_absent()), reason=qemu_absent() or "-")


def build(source: Path, folder: Path) -> Path:
    """Build a program, linked as the demo is; a static ELF file that needs no command line."""
    elf, demo = folder / f"{source.stem}.elf", builtin_guest("demo").parent
    link = f"-Wl,--build-id=none,--no-warn-rwx-segments,-n,-T,{demo / 'guest.ld'}"
    command = [
        COMPILER,
        "-nostdlib",
        "-static",
        "-no-pie",
        f"-I{FOLDER}",
        f"-I{demo}",
        link,
        "-o",
        str(elf),
        str(source),
    ]
    subprocess.run(command, check=True, timeout=60)
    return elf


def run_on_board(elf: Path) -> str:
    """What a program prints on the board, which it turns off."""
    console = bytearray()
    machine = Machine(Config(CORE, MEMORY, counters=COUNTERS), console.extend)
    image, dtb = load_image(elf, memmap.RAM_BASE, MEMORY), virt_device_tree(MEMORY, 1)
    machine.boot(image, plan_layout(image, 0, len(dtb), memmap.RAM_BASE, MEMORY), dtb)
    outcome = machine.run(30)
    assert outcome.status is Status.POWEROFF, f"{outcome.reason}\n{outcome.registers}\n{console.decode()}"
    return console.decode()


def run_on_qemu(elf: Path) -> str:
    """What a program prints on QEMU's virt board, counting instructions, with all time virtual."""
    command = [QEMU, "-M", "virt,gic-version=3", "-cpu", "max", "-icount", "shift=0,sleep=off", "-nographic"]
    command += ["-monitor", "none", "-serial", "stdio", "-nic", "none", "-no-reboot", "-kernel", str(elf)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True)
    return result.stdout


def parse(program: str, console: str) -> Printed:
    """Read the lines "program: label 0xvalue"."""
    printed: Printed = {}
    times: dict[str, int] = {}
    for line in console.splitlines():
        name, colon, rest = line.partition(": ")
        label, _, value = rest.rpartition(" ")
        assert (name, colon) == (program, ": "), line
        assert label, line
        times[label] = times.get(label, 0) + 1
        printed[label if times[label] == 1 else f"{label}#{times[label]}"] = int(value, 16)
    return printed
