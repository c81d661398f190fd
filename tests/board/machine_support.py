"""Machines with hand-assembled guests in them."""

from dataclasses import dataclass, field

from a64 import Program
from pmuvisor.arch.cores import core
from pmuvisor.board import memmap
from pmuvisor.board.clock import Costs
from pmuvisor.board.fdt import virt_device_tree
from pmuvisor.board.images import load_image, plan_layout
from pmuvisor.board.machine import Config, Machine, Outcome
from pmuvisor.lab.guests import builtin_guest

MEMORY = 16 << 20
RESULTS = 0x4010_0000
"""Where a guest leaves what it found: 64-bit words."""


@dataclass
class Board:
    """A machine, what its guest printed, and what it left behind."""

    machine: Machine
    console: bytearray = field(default_factory=bytearray)

    def result(self, number: int = 0) -> int:
        return int.from_bytes(self.machine.memory.read(RESULTS + 8 * number, 8), "little")

    def run(self, timeout: float = 30) -> Outcome:
        return self.machine.run(timeout)


def board(
    guest: Program | None = None,
    *,
    core_name: str = "max",
    vcpus: int = 1,
    counters: int | None = None,
    fgt: bool = True,
    costs: Costs | None = None,
) -> Board:
    """A machine about to run a program, or the demo."""
    image = load_image(guest.code() if guest else builtin_guest("demo"), memmap.RAM_BASE, MEMORY)
    console = bytearray()
    machine = Machine(Config(core(core_name), MEMORY, vcpus, counters, fgt, costs=costs), console.extend)
    dtb = virt_device_tree(MEMORY, vcpus)
    machine.boot(image, plan_layout(image, 0, len(dtb), memmap.RAM_BASE, MEMORY), dtb)
    return Board(machine, console)
