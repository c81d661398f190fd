"""Run a guest on a machine and say what virtualizing its PMU cost."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pmuvisor.arch.cores import Core, cores
from pmuvisor.arch.unpredictable import choices_reached
from pmuvisor.board import memmap
from pmuvisor.board.fdt import virt_device_tree
from pmuvisor.board.images import Image, ImageKind, load_image, load_initrd, plan_layout
from pmuvisor.board.machine import Config, Machine, Outcome, Status
from pmuvisor.lab import costs, guests
from pmuvisor.lab.costs import CostTable
from pmuvisor.own import OwnDesign

LINUX_BOOTARGS = "console=ttyAMA0 earlycon=pl011,0x9000000 panic=-1"
"""What a Linux guest is booted with before the user's own words; panic=-1 makes a panic a reset."""
COMMAND_BOOTARGS = "console=ttyAMA0 panic=-1 quiet loglevel=1 cryptomgr.notests=1"
"""The same for a guest that runs a command: the kernel says nothing but a panic, since this is not what the command
printed, and it does not test its ciphers, which is more than half of its boot."""
COMMAND_MEMORY = 512 << 20
"""Bytes of RAM that a guest needs to run a command without being short of it; its root alone is 30 MB."""
END_OF_FILE = b"\x04"
"""What ends the input of a command: its terminal's end-of-file character."""
_PANIC = re.compile(r"Kernel panic - [^\r\n]*|^bugcheck: [^\r\n]*", re.MULTILINE)
CONSOLE_LIMIT = 4 << 20
"""Bytes of the guest's console, from its end, that a result keeps: a guest can print for ever."""
SHOW_AT = 4096
"""Bytes of console that are shown before the end of a slice."""


M = TypeVar("M", bound=Machine)


class RequestError(ValueError):
    """A run that cannot be made as asked for: one line that names the field and what was expected."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A run to be made. `guest` is one of `guests.BUILTIN`, `linux` or a file."""

    guest: str
    core: Core
    design: str = "partitioned"
    """One of `board.machine.DESIGNS`, or the name of `own`."""
    fgt: bool = True
    counters: int | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    memory: int = 256 << 20
    vcpus: int = 1
    timeout: float | None = None
    costs: CostTable | None = dataclasses.field(default_factory=costs.built_in)
    """What virtualization takes of the guest's time; None for nothing."""
    command: tuple[str, ...] = ()
    """What a Linux guest is to run, with its arguments, in the root that was fetched; empty for its own init."""
    added: tuple[guests.Added, ...] = ()
    """Files of the user's, for the command."""
    terminal: guests.Terminal | None = None
    """The terminal at which a person uses the command; None where nobody does: no terminal is its output then."""
    spe: bool = False
    """The guest has SPE, the Statistical Profiling Extension."""
    spe_pinned: bool = True
    """Its profiling buffer is pinned and mapped at stage 2 when the guest enables it."""
    own: OwnDesign | None = None
    """Somebody's own design, which is one more that `design` can name."""

    @property
    def base(self) -> str:
        """Return the one of our designs that this run's is, or begins with."""
        return self.own.base if self.own is not None and self.design == self.own.name else self.design

    def config(self) -> Config:
        """Return the machine that this run needs."""
        of = None if self.costs is None else self.costs.of(self.core.name)
        return Config(
            self.core,
            self.memory,
            self.vcpus,
            self.counters,
            self.fgt,
            self.base,
            of,
            spe=self.spe,
            spe_pinned=self.spe_pinned,
        )


@dataclasses.dataclass(frozen=True)
class Part:
    """What of a run was between two moments of it, or from its start."""

    instructions: int
    virtual_seconds: float
    overhead_cycles: int
    overhead_seconds: float
    idle_seconds: float
    ledger: dict[str, int]

    def __sub__(self, before: Part) -> Part:
        """Return what came after another moment of the same run."""
        return Part(
            self.instructions - before.instructions,
            self.virtual_seconds - before.virtual_seconds,
            self.overhead_cycles - before.overhead_cycles,
            self.overhead_seconds - before.overhead_seconds,
            self.idle_seconds - before.idle_seconds,
            {name: count - before.ledger.get(name, 0) for name, count in self.ledger.items()},
        )


def _so_far(machine: Machine) -> Part:
    return Part(
        instructions=machine.instructions(),
        virtual_seconds=machine.now_ns() / 1e9,
        overhead_cycles=machine.overhead_cycles(),
        overhead_seconds=machine.overhead_ns() / 1e9,
        idle_seconds=machine.idle_ns / 1e9,
        ledger=machine.ledger(),
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """A run that was made."""

    guest: str
    core: str
    design: str
    fgt: bool
    counters: int
    host_counters: int
    """Event counters of the core, those of the guest included."""
    vcpus: int
    status: Status
    reason: str
    panic: str
    """What the guest said when its kernel panicked, if it did (`panic_of`)."""
    registers: str
    console: str
    """What the guest printed: the last `CONSOLE_LIMIT` bytes of it."""
    console_dropped: int
    """Bytes that it printed before those."""
    instructions: int
    virtual_seconds: float
    """The guest's time: executing, virtualization and idling."""
    overhead_cycles: int
    """What virtualization took of it (docs/costs.md), in cycles of the core."""
    overhead_seconds: float
    idle_seconds: float
    """Time in which every vCPU waited."""
    wall_seconds: float
    ledger: dict[str, int]
    unpredictable: tuple[str, ...] = ()
    """Where the architecture leaves the behaviour open and the run depended on the choice made: names of
    `arch.unpredictable.CHOICES`."""
    command: tuple[str, ...] = ()
    exit_status: int | None = None
    """The command's, 128 + n where signal n ended it; None where it did not end, or there was none."""
    of_command: Part | None = None
    """What of the run was the command's, from its start to its end; None where it did not end, or there was none."""
    output: str = ""
    """What the command printed: the last `CONSOLE_LIMIT` bytes of it."""

    @property
    def mips(self) -> float:
        """Millions of guest instructions in a second of wall time."""
        return self.instructions / self.wall_seconds / 1e6 if self.wall_seconds else 0.0

    @property
    def overhead_share(self) -> float:
        """What virtualization took of the guest's time, as a share of it."""
        return self.overhead_seconds / self.virtual_seconds if self.virtual_seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the result as an object for JSON."""
        out = dataclasses.asdict(self)
        out["status"] = str(self.status)
        out["mips"] = round(self.mips, 1)
        out["overhead_share"] = round(self.overhead_share, 6)
        return out


@dataclasses.dataclass(frozen=True)
class _Guest:
    image: Image
    initrd: bytes
    bootargs: str


class Console:
    """What a guest prints: the last bytes of it are kept, and what is new is given to `show`, if there is one."""

    def __init__(self, show: Callable[[bytes], None] | None = None) -> None:
        self.dropped = 0
        self._kept = bytearray()
        self._new = bytearray()
        self._show = show

    def write(self, data: bytes) -> None:
        """Take what the guest printed."""
        self._kept += data
        if len(self._kept) >= 2 * CONSOLE_LIMIT:
            self._trim()
        if self._show is not None:
            self._new += data
            if len(self._new) >= SHOW_AT:
                self.flush()

    def flush(self) -> None:
        """Show what has not been shown yet."""
        if self._show is not None and self._new:
            new = bytes(self._new)
            self._new.clear()
            self._show(new)

    def text(self) -> str:
        """Return what is kept, with U+FFFD for what is not UTF-8."""
        self._trim()
        return self._kept.decode("utf-8", "replace")

    def _trim(self) -> None:
        over = max(0, len(self._kept) - CONSOLE_LIMIT)
        del self._kept[:over]
        self.dropped += over


def prepare(
    request: Request, output: Callable[[bytes], None], on_record: Callable[[int, bytes], None] | None = None
) -> Machine:
    """Return a machine with the guest in it, ready to run; `output` will be given what the guest prints.

    `on_record` will be given each profiling record, with its vCPU. Raises what `prepare_as` raises.
    """
    return prepare_as(functools.partial(Machine, on_record=on_record), request, output)


def prepare_as(
    make: Callable[[Config, Callable[[bytes], None]], M], request: Request, output: Callable[[bytes], None]
) -> M:
    """Return a machine as `prepare` does, made by `make`.

    Raises RequestError, ImageError, GuestError or CountError, each one line, before anything has been started.
    """
    config = request.config()
    config.guest_counters()
    if request.spe and not request.core.spe:
        having = ", ".join(name for name, core in cores().items() if core.spe)
        raise RequestError(f"spe: core {request.core.name} has no SPE: expected one of {having}")
    guest = _load(request)
    # A device tree's size does not depend on the addresses in it: the first one only says how much room to plan for.
    room = _device_tree(request, guest, (0, 0) if guest.initrd else None)
    layout = plan_layout(guest.image, len(guest.initrd), len(room), memmap.RAM_BASE, request.memory)
    try:
        machine = make(config, output)
    except (OSError, MemoryError):
        raise RequestError(f"memory {request.memory >> 20}M: more than this computer can give a guest") from None
    machine.boot(guest.image, layout, _device_tree(request, guest, layout.initrd), guest.initrd)
    return machine


def _device_tree(request: Request, guest: _Guest, initrd: tuple[int, int] | None) -> bytes:
    try:
        return virt_device_tree(request.memory, request.vcpus, guest.bootargs, initrd, spe=request.spe)
    except ValueError as error:
        raise RequestError(f"append: {error}") from None


def _load(request: Request) -> _Guest:
    _check_command(request)
    image = load_image(_kernel(request), memmap.RAM_BASE, request.memory)
    is_linux = request.guest == "linux"
    initrd = b""
    if request.command:
        initrd = _command_initrd(request)
    elif request.initrd is not None:
        initrd = load_initrd(request.initrd, request.memory)
    elif is_linux:
        initrd = guests.linux_initrd()
    words = [LINUX_BOOTARGS] if is_linux or image.kind is ImageKind.LINUX else []
    if request.command:
        words = [COMMAND_BOOTARGS]
    return _Guest(image, initrd, " ".join([*words, *([request.append] if request.append else [])]))


def _check_command(request: Request) -> None:
    if not request.command:
        if request.added:
            raise RequestError("add: it is for a command: expected -- COMMAND")
    elif request.guest != "linux":
        raise RequestError(f"command: only the guest linux runs one, not {request.guest!r}")
    elif request.initrd is not None:
        raise RequestError("initrd: a command runs in the root that was fetched: expected one of the two")


def _kernel(request: Request) -> str | os.PathLike[str]:
    if request.kernel is not None:
        if request.guest != "linux":
            raise RequestError("kernel: it is for the guest linux; to run another file, give that as the guest")
        return request.kernel
    if request.guest == "linux":
        cached = guests.cached_linux()
        if cached is None:
            raise guests.GuestError("linux: no kernel fetched yet: run `pmuvisor guest fetch linux`, or give --kernel")
        return cached.image
    return guests.builtin_guest(request.guest) if request.guest in guests.BUILTIN else request.guest


def _command_initrd(request: Request) -> bytes:
    root = guests.cached_root()
    if root is None:
        raise guests.GuestError("linux: no programs for a command fetched yet: run `pmuvisor guest fetch perf`")
    # The module is only for the kernel that it was fetched with.
    kernel = guests.cached_linux() if request.spe and request.kernel is None else None
    modules = kernel.modules() if kernel else ()
    behind = guests.command_initrd(request.command, request.added, request.terminal, request.memory // 2, modules)
    return load_initrd(root.image, request.memory) + behind


def command_runs(machine: Machine) -> bool:
    """Tell whether the guest's command has been started and has not ended."""
    started, status = guests.read_control(machine.control())
    return started and status is None


class _Session:
    """A command in a guest: tells its output from what else is on the console, and knows how it ended."""

    def __init__(self, show: Callable[[bytes], None] | None) -> None:
        self.machine: Machine | None = None
        self.console = Console()
        self.output = Console(show)
        self._runs = False
        self._input_ended = False
        self._began: Part | None = None
        self.of_command: Part | None = None

    def control(self) -> None:
        """The guest has said something about its command: note what the run has come to, at its start and its end."""
        assert self.machine is not None
        started, status = guests.read_control(self.machine.control())
        self._runs = started and status is None
        if started and self._began is None:
            self._began = _so_far(self.machine)
        if status is not None and self._began is not None and self.of_command is None:
            self.of_command = _so_far(self.machine) - self._began

    def write(self, data: bytes) -> None:
        """Take what came from the guest's console."""
        self.console.write(data)
        if self._runs:
            self.output.write(data)

    def end_input(self, machine: Machine) -> bool:
        """Tell a command that nobody types for that its input is at its end: a poll for `Machine.run`."""
        if not self._input_ended and self._runs:
            self._input_ended = True
            machine.uart.receive(END_OF_FILE)
        return False


def run(
    request: Request,
    show: Callable[[bytes], None] | None = None,
    poll: Callable[[Machine], bool] | None = None,
    started: Callable[[Machine], None] | None = None,
    on_record: Callable[[int, bytes], None] | None = None,
) -> Result:
    """Run a guest to its end.

    `show` is given the console as it comes, or of a command what it prints; `poll` may feed input to the machine's
    `uart` and says whether more can come (a command's is lost before `command_runs`); `started` is given the machine
    just before it runs, to be able to interrupt it; `on_record` is as of `prepare`. Raises what that raises.
    """
    if request.own is None or request.design != request.own.name:
        return _run(request, show, poll, started, on_record)
    with request.own.installed():
        return _run(request, show, poll, started, on_record)


def _run(
    request: Request,
    show: Callable[[bytes], None] | None,
    poll: Callable[[Machine], bool] | None,
    started: Callable[[Machine], None] | None,
    on_record: Callable[[int, bytes], None] | None,
) -> Result:
    session = _Session(show)
    console = session.output if request.command else Console(show)
    machine = session.machine = prepare(request, session.write if request.command else console.write, on_record)
    machine.on_control = session.control if request.command else None
    if started is not None:
        started(machine)
    feed = session.end_input if request.command and poll is None else poll

    def between() -> bool:
        console.flush()
        return feed is not None and feed(machine)

    begin = time.perf_counter()
    outcome = machine.run(request.timeout, between)
    wall = time.perf_counter() - begin
    console.flush()
    if not request.command:
        return _result(request, machine, outcome, console, wall)
    result = _result(request, machine, outcome, session.console, wall)
    _, status = guests.read_control(machine.control())
    early = " before its command ended" if status is None and not result.panic else ""
    return dataclasses.replace(
        result,
        reason=result.reason + (early if outcome.status in (Status.POWEROFF, Status.RESET) else ""),
        command=request.command,
        exit_status=status,
        of_command=session.of_command,
        output=session.output.text(),
    )


def _result(request: Request, machine: Machine, outcome: Outcome, console: Console, wall: float) -> Result:
    text = console.text()
    panic = panic_of(text) if outcome.status is not Status.POWEROFF else ""
    whole = _so_far(machine)
    return Result(
        guest=request.guest,
        core=request.core.name,
        design=request.design,
        fgt=request.fgt and request.core.fgt,
        counters=machine.vm.nr_counters,
        host_counters=request.core.event_counters,
        vcpus=request.vcpus,
        status=outcome.status,
        reason=with_panic(outcome.reason, panic),
        panic=panic,
        registers=outcome.registers,
        console=text,
        console_dropped=console.dropped,
        wall_seconds=wall,
        **{field.name: getattr(whole, field.name) for field in dataclasses.fields(Part)},
        unpredictable=tuple(choice.name for choice in choices_reached(machine.unpredictable())),
    )


def panic_of(console: str) -> str:
    """Return the line in which a guest's kernel said last that it cannot go on: Linux's panic, or a `bugcheck: `.

    A reset alone is no failure, as it is how a guest reboots: only this line tells that one was a kernel's death.
    """
    found = ""
    for match in _PANIC.finditer(console):
        found = match[0]
    return found.strip()


def with_panic(reason: str, panic: str) -> str:
    """Return why a run ended, with the guest's own words where its kernel panicked."""
    return f"{reason} ({panic})" if panic else reason
