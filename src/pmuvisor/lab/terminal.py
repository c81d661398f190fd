"""`pmuvisor run` at a terminal: guests' consoles, Ctrl-C, the tables, the JSON file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import select
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO, cast

from pmuvisor.arch import cores
from pmuvisor.board.machine import Machine, Status
from pmuvisor.lab import costs, guests, hosting_report, report
from pmuvisor.lab.costs import CostTable
from pmuvisor.lab.hosting import Hosting, HostingResult
from pmuvisor.lab.run import COMMAND_MEMORY, END_OF_FILE, Request, RequestError, Result, command_runs
from pmuvisor.lab.run import run as run_guest
from pmuvisor.lab.scenario import Scenario, load
from pmuvisor.lab.spe_out import SpeOut

EXIT_STATUS = {Status.POWEROFF: 0, Status.RESET: 0, Status.HUNG: 1, Status.TIMEOUT: 1, Status.EXIT: 130}
GUEST_MEMORY = 256 << 20
"""Bytes of RAM of a guest that runs no command."""
ESCAPE = b"\x1d"
"""Ctrl-], the key that ends an interactive command's run; all others are the guest's."""
_CHUNK = 4096
_PROGRESS_SECONDS = 0.2
"""Wall time between two lines of progress."""


class Interruptible(Protocol):
    """What can be asked to end a run soon."""

    interrupted: bool


def run(arguments: argparse.Namespace) -> int:
    """Run the guest that the command line asks for; return the exit status: of a command, the command's."""
    request = request_of(arguments, arguments.design)
    if request.command and arguments.json != "-":
        request = dataclasses.replace(request, terminal=_terminal())
    path, people = where_to(arguments.json)
    trace = _path(arguments.spe_out)
    if trace is not None:
        check_writable(trace, "spe-out")
    kept = SpeOut()
    result = _run(request, people, kept.keep if trace is not None else None)
    tables = sys.stderr if request.command else people
    if trace is not None:
        with whole_file(trace) as file:
            kept.write(file, request.vcpus, request.guest, request.core.midr)
    write_result(result.as_json(), arguments.json, path, lambda: report.show(result, tables))
    if trace is not None:
        print(f"\n{kept.told(trace)}", file=tables)
    return _status(result)


def request_of(arguments: argparse.Namespace, design: str) -> Request:
    """Return the run of a guest that the command line describes, under a design; nobody is at a command's terminal."""
    core = cores.variant(cores.core(arguments.core), event_counters=arguments.host_counters, mhz=arguments.mhz)
    command = tuple(arguments.words or ())
    memory = COMMAND_MEMORY if command else GUEST_MEMORY
    return Request(
        guest=arguments.guest,
        core=core,
        design=design,
        fgt=not arguments.no_fgt,
        counters=arguments.counters,
        kernel=_path(arguments.kernel),
        initrd=_path(arguments.initrd),
        append=arguments.append,
        memory=memory if arguments.memory is None else arguments.memory,
        vcpus=arguments.smp,
        timeout=arguments.timeout,
        spe=arguments.spe or arguments.spe_unpinned or getattr(arguments, "spe_out", None) is not None,
        spe_pinned=not arguments.spe_unpinned,
        costs=cost_table(arguments.costs),
        command=command,
        added=tuple(guests.added(text) for text in arguments.add),
        own=arguments.own,
    )


def _status(result: Result) -> int:
    if result.panic or (result.command and result.exit_status is None and EXIT_STATUS[result.status] == 0):
        return 1
    return EXIT_STATUS[result.status] or result.exit_status or 0


def _terminal() -> guests.Terminal | None:
    """Return the terminal that this runs at, if what is typed and what is printed are both its."""
    if not (_isatty(sys.stdin) and _isatty(sys.stdout)) or os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp():
        return None
    columns, rows = os.get_terminal_size(sys.stdin.fileno())
    known = {"rows": rows, "columns": columns} if rows and columns else {}
    return guests.Terminal(**known, name=os.environ.get("TERM", "vt100"))


def _isatty(file: TextIO | None) -> bool:
    try:
        return file is not None and os.isatty(file.fileno())
    except (ValueError, OSError):
        return False


def run_scenario(arguments: argparse.Namespace) -> int:
    """Run the scenario that the command line asks for; return the exit status: 1 where a guest came to a bad end."""
    scenario = load(Path(arguments.guest))
    table = cost_table(arguments.costs)
    if arguments.costs is not None and all(vm.activity is not None for vm in scenario.vms):
        raise RequestError(f"costs: {arguments.guest} has no guest with code: expected one, to feel what they cost")
    path, people = where_to(arguments.json)
    screen = _Screen(scenario, people)
    with ctrl_c() as started:
        if arguments.compile:
            screen.say("compiling")
        hosting = Hosting(scenario, screen.show, compiled=arguments.compile, costs=table)
        started(hosting)
        result = hosting.run(screen.progress)
    screen.close()
    write_result(result.as_json(), arguments.json, path, lambda: hosting_report.show(result, people))
    return _scenario_status(result)


def _scenario_status(result: HostingResult) -> int:
    if result.interrupted:
        return EXIT_STATUS[Status.EXIT]
    fine = {"running", *(str(status) for status, code in EXIT_STATUS.items() if code == 0)}
    return 0 if all(vm.status in fine and not vm.panic for vm in result.vms) else 1


def where_to(name: str | None) -> tuple[Path | None, TextIO]:
    """Return the file for JSON, if there is to be one, and where what is for people goes."""
    path = None if name == "-" else _path(name)
    if path is not None:
        check_writable(path)
    return path, sys.stderr if name == "-" else sys.stdout


def write_result(result: dict[str, Any], name: str | None, path: Path | None, show: Callable[[], None]) -> None:
    """Write the JSON, to a file first and to stdout last; `show` prints what is for people."""
    if path is not None:
        write_whole(path, json.dumps(result, indent=1).encode() + b"\n")
    show()
    if name == "-":
        json.dump(result, sys.stdout, indent=1)
        print()


class _Screen:
    """The consoles of a scenario's guests, line by line with the VM's name; on a terminal, the progress below them."""

    def __init__(self, scenario: Scenario, file: TextIO) -> None:
        self._scenario = scenario
        self._file = file
        self._begun: dict[str, bytes] = {}
        self._shown_at = time.monotonic()
        self._below = False

    def show(self, name: str, data: bytes) -> None:
        """Print the lines that are complete; a line that is not stays for later."""
        *lines, self._begun[name] = (self._begun.get(name, b"") + data).split(b"\n")
        if len(self._begun[name]) > _CHUNK:
            lines.append(self._begun.pop(name))
        self._clear()
        self._file.flush()
        for line in lines:
            self._file.buffer.write(f"{name}: ".encode() + line + b"\n")
        self._file.buffer.flush()

    def progress(self, now: int) -> None:
        """Say how far it is, now and then."""
        if time.monotonic() - self._shown_at > _PROGRESS_SECONDS:
            self._shown_at = time.monotonic()
            self.say(f"{100 * now // self._scenario.duration} %")

    def say(self, what: str) -> None:
        """Say on a terminal, in its last line, what is going on."""
        if sys.stderr.isatty():
            self._clear()
            print(f"\r{what}", end="", file=sys.stderr, flush=True)
            self._below = True

    def close(self) -> None:
        """Print the lines that never ended."""
        for name, line in list(self._begun.items()):
            if line:
                self.show(name, b"\n")
        self._clear()

    def _clear(self) -> None:
        if self._below:
            print("\r         \r", end="", file=sys.stderr, flush=True)
            self._below = False


def cost_table(name: str | None) -> CostTable:
    return costs.built_in() if name is None else costs.load(Path(name))


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _run(request: Request, people: TextIO, on_record: Callable[[int, bytes], None] | None) -> Result:
    last = b"\n"

    def show(data: bytes) -> None:
        nonlocal last
        people.buffer.write(data)
        people.buffer.flush()
        last = data[-1:]

    people.flush()
    with _keyboard(request) as poll, ctrl_c() as started:
        result = run_guest(request, show, poll, started, on_record)
    # A command's output is its own, byte for byte.
    if last != b"\n" and not (request.command and people is sys.stdout and request.terminal is None):
        print(file=people)
    return result


def check_writable(path: Path, option: str = "json") -> None:
    """Raise RequestError now, rather than after the run, where no file could be written at `path`."""
    if path.is_dir():
        raise RequestError(f"{option}: {path}: is a directory, expected a file to write to")
    try:
        if path.exists() and not path.is_file():
            return
        with tempfile.NamedTemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        raise RequestError(f"{option}: {path}: cannot be written: {error.strerror}") from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step: it is there whole, or as it was. What is no regular file, as a pipe, is written to."""
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to, which is at `path` when the context ends well, and is gone when it does not."""
    if path.exists() and not path.is_file():
        with path.open("wb") as pipe:
            yield pipe
        return
    path = path.resolve()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield cast(BinaryIO, file.file)
            file.close()
            os.chmod(file.name, 0o666 & ~_umask())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def ctrl_c() -> Iterator[Callable[[Interruptible], None]]:
    """Make SIGINT and SIGTERM end the run at the next slice; the context is given what runs when it is there."""
    asked: list[Interruptible] = []

    def started(run: Interruptible) -> None:
        asked.append(run)

    def handle(number: int, frame: object) -> None:
        if not asked:
            raise KeyboardInterrupt
        asked[-1].interrupted = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _keyboard(request: Request) -> Iterator[Callable[[Machine], bool]]:
    """Feed the standard input to the guest: a terminal's keys one by one, a file or pipe as the guest takes it.

    A command that has the terminal gets Ctrl-C too, and Ctrl-] ends the run. One that has none is told where its input
    ends.
    """
    end = END_OF_FILE if request.command and request.terminal is None else b""
    ready: Callable[[Machine], bool] = command_runs if request.command else lambda machine: True
    try:
        fd = sys.stdin.fileno()
    except (ValueError, AttributeError, OSError):
        yield _Feeder(None, ready, end)
        return
    if not os.isatty(fd):
        yield _Feeder(fd, ready, end)
        return
    if os.tcgetpgrp(fd) != os.getpgrp():  # in the background: to touch the terminal would stop this process
        yield _Feeder(None, ready, end)
        return
    import termios
    import tty

    saved = termios.tcgetattr(fd)
    try:
        if request.terminal is not None:
            tty.setraw(fd)
        else:
            tty.setcbreak(fd)
        yield _Feeder(fd, ready, end, ESCAPE if request.terminal is not None else b"")
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


class _Feeder:
    """A poll that gives what there is to read to the machine, and says whether the guest could get more.

    `ready` says whether the guest would not lose it; `end` is what says to the guest that its input is over, empty for
    nothing; `escape` is the key that ends the run, empty for none.
    """

    def __init__(self, fd: int | None, ready: Callable[[Machine], bool], end: bytes, escape: bytes = b"") -> None:
        self._fd = fd
        self._ready = ready
        self._end = end
        self._escape = escape
        self._held = b""
        self._last = b"\n"
        self._over = fd is None or stat.S_ISDIR(os.fstat(fd).st_mode)
        if self._over:
            self._held = end

    def __call__(self, machine: Machine) -> bool:
        while True:
            if not self._over and (not self._held or (self._escape and len(self._held) < _CHUNK)):
                self._read(machine)
            taken = machine.uart.receive(self._held) if self._held and self._ready(machine) else 0
            self._held = self._held[taken:]
            if not taken:
                return machine.uart.listening and (bool(self._held) or not self._over)

    def _read(self, machine: Machine) -> None:
        assert self._fd is not None
        if not select.select([self._fd], [], [], 0)[0]:
            return
        new = os.read(self._fd, _CHUNK)
        if self._escape and self._escape in new:
            machine.interrupted = True
        if new:
            self._last = new[-1:]
        else:
            self._over = True
            # In the middle of a line the first one only sends that on.
            new = self._end if self._last == b"\n" else 2 * self._end
        self._held += new
