"""Run a guest on a machine and say what virtualizing its PMU cost."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pmuvisor.arch.cores import Core
from pmuvisor.board import memmap
from pmuvisor.board.fdt import virt_device_tree
from pmuvisor.board.images import Image, ImageKind, load_image, load_initrd, plan_layout
from pmuvisor.board.machine import Config, Machine, Outcome, Status
from pmuvisor.lab import guests

DESIGNS = ("partitioned",)
LINUX_BOOTARGS = "console=ttyAMA0 earlycon=pl011,0x9000000 panic=-1"
"""What a Linux guest is booted with before the user's own words; panic=-1 makes a panic a reset."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A run to be made. `guest` is `demo`, `linux` or a file."""

    guest: str
    core: Core
    design: str = "partitioned"
    fgt: bool = True
    counters: int | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    memory: int = 256 << 20
    vcpus: int = 1
    timeout: float | None = None

    def config(self) -> Config:
        """Return the machine that this run needs."""
        return Config(self.core, self.memory, self.vcpus, self.counters, self.fgt)


@dataclasses.dataclass(frozen=True)
class Result:
    """A run that was made."""

    guest: str
    core: str
    design: str
    fgt: bool
    counters: int
    vcpus: int
    status: Status
    reason: str
    registers: str
    console: str
    instructions: int
    virtual_seconds: float
    wall_seconds: float
    ledger: dict[str, int]

    @property
    def mips(self) -> float:
        """Millions of guest instructions in a second of wall time."""
        return self.instructions / self.wall_seconds / 1e6 if self.wall_seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the result as an object for JSON."""
        out = dataclasses.asdict(self)
        out["status"] = str(self.status)
        out["mips"] = round(self.mips, 1)
        return out


@dataclasses.dataclass(frozen=True)
class _Guest:
    image: Image
    initrd: bytes
    bootargs: str


def prepare(request: Request) -> tuple[Machine, list[bytes]]:
    """Return a machine with the guest in it, ready to run, and the list in which its console is collected.

    Raises ImageError, GuestError or CountError, each one line, before anything has been started.
    """
    config = request.config()
    config.guest_counters()
    guest = _load(request)
    # A device tree's size does not depend on the addresses in it: the first one only says how much room to plan for.
    room = _device_tree(request, guest, (0, 0) if guest.initrd else None)
    layout = plan_layout(guest.image, len(guest.initrd), len(room), memmap.RAM_BASE, request.memory)
    console: list[bytes] = []
    machine = Machine(config, console.append)
    machine.boot(guest.image, layout, _device_tree(request, guest, layout.initrd), guest.initrd)
    return machine, console


def _device_tree(request: Request, guest: _Guest, initrd: tuple[int, int] | None) -> bytes:
    return virt_device_tree(request.memory, request.vcpus, guest.bootargs, initrd)


def _load(request: Request) -> _Guest:
    kernel: str | os.PathLike[str] = request.guest
    initrd = b""
    is_linux = request.guest == "linux"
    if request.kernel is not None:
        kernel = request.kernel
    elif is_linux:
        cached = guests.cached_linux()
        if cached is None:
            raise guests.GuestError("linux: no kernel fetched yet: run `pmuvisor guest fetch linux`, or give --kernel")
        kernel = cached.image
    elif request.guest == "demo":
        kernel = guests.builtin_guest("demo")
    image = load_image(kernel, memmap.RAM_BASE, request.memory)
    if request.initrd is not None:
        initrd = load_initrd(request.initrd, request.memory)
    elif is_linux:
        initrd = guests.linux_initrd()
    words = [LINUX_BOOTARGS] if is_linux or image.kind is ImageKind.LINUX else []
    return _Guest(image, initrd, " ".join([*words, *([request.append] if request.append else [])]))


def run(
    request: Request,
    show: Callable[[bytes], None] | None = None,
    poll: Callable[[Machine], bool] | None = None,
    started: Callable[[Machine], None] | None = None,
) -> Result:
    """Run a guest to its end.

    `show` is given the console as it comes; `poll` may feed input to the machine's `uart` and says whether more can
    come; `started` is given the machine just before it runs, to be able to interrupt it.
    """
    machine, console = prepare(request)
    if started is not None:
        started(machine)
    shown = 0

    def between() -> bool:
        nonlocal shown
        if show is not None and shown < len(console):
            show(b"".join(console[shown:]))
            shown = len(console)
        return poll(machine) if poll is not None else False

    begin = time.perf_counter()
    outcome = machine.run(request.timeout, between)
    wall = time.perf_counter() - begin
    if show is not None:
        show(b"".join(console[shown:]))
    return _result(request, machine, outcome, b"".join(console).decode("utf-8", "replace"), wall)


def _result(request: Request, machine: Machine, outcome: Outcome, console: str, wall: float) -> Result:
    return Result(
        guest=request.guest,
        core=request.core.name,
        design=request.design,
        fgt=request.fgt and request.core.fgt,
        counters=machine.vm.nr_counters,
        vcpus=request.vcpus,
        status=outcome.status,
        reason=outcome.reason + _panic(console, outcome.status),
        registers=outcome.registers,
        console=console,
        instructions=machine.instructions(),
        virtual_seconds=machine.now_ns() / 1e9,
        wall_seconds=wall,
        ledger=machine.ledger(),
    )


def _panic(console: str, status: Status) -> str:
    """Return what a Linux guest said when it panicked, if it did."""
    at = console.rfind("Kernel panic - ")
    if at < 0 or status is Status.POWEROFF:
        return ""
    return f" ({console[at:].splitlines()[0].strip()})"
