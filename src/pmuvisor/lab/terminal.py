"""`pmuvisor run` at a terminal: the guest's console both ways, Ctrl-C, the table, the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pmuvisor.arch import cores
from pmuvisor.board.machine import Machine, Status
from pmuvisor.lab import report
from pmuvisor.lab.run import Request, RequestError, Result
from pmuvisor.lab.run import run as run_guest

EXIT_STATUS = {Status.POWEROFF: 0, Status.RESET: 0, Status.HUNG: 1, Status.TIMEOUT: 1, Status.EXIT: 130}
_CHUNK = 4096


def run(arguments: argparse.Namespace) -> int:
    """Run the guest that the command line asks for; return the exit status."""
    request = Request(
        guest=arguments.guest,
        core=cores.core(arguments.core),
        design=arguments.design,
        fgt=not arguments.no_fgt,
        counters=arguments.counters,
        kernel=_path(arguments.kernel),
        initrd=_path(arguments.initrd),
        append=arguments.append,
        memory=arguments.memory,
        vcpus=arguments.smp,
        timeout=arguments.timeout,
    )
    to_stdout = arguments.json == "-"
    path = None if to_stdout else _path(arguments.json)
    people = sys.stderr if to_stdout else sys.stdout
    if path is not None:
        _check_writable(path)
    result = _run(request, people)
    if path is not None:
        write_whole(path, json.dumps(result.as_json(), indent=1) + "\n")
    report.show(result, people)
    if to_stdout:
        json.dump(result.as_json(), sys.stdout, indent=1)
        print()
    return 1 if result.panic else EXIT_STATUS[result.status]


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _run(request: Request, people: TextIO) -> Result:
    last = b"\n"

    def show(data: bytes) -> None:
        nonlocal last
        people.buffer.write(data)
        people.buffer.flush()
        last = data[-1:]

    people.flush()
    with _keyboard() as poll, _ctrl_c() as started:
        result = run_guest(request, show, poll, started)
    if last != b"\n":
        print(file=people)
    return result


def _check_writable(path: Path) -> None:
    """Raise RequestError now, rather than after the run, where no file could be written at `path`."""
    if path.is_dir():
        raise RequestError(f"json: {path}: is a directory, expected a file to write to")
    try:
        if path.exists() and not path.is_file():
            return
        with tempfile.NamedTemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        raise RequestError(f"json: {path}: cannot be written: {error.strerror}") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: it is there whole, or as it was. What is no regular file, as a pipe, is written to."""
    if path.exists() and not path.is_file():
        path.write_text(text)
        return
    path = path.resolve()
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(text)
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
def _ctrl_c() -> Iterator[Callable[[Machine], None]]:
    """Make SIGINT and SIGTERM end the run at the next slice; the context is given the machine when it is there."""
    asked = []

    def started(machine: Machine) -> None:
        asked.append(machine)

    def handle(number: int, frame: object) -> None:
        if not asked:
            raise KeyboardInterrupt
        asked[0].interrupted = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _keyboard() -> Iterator[Callable[[Machine], bool]]:
    """Feed the standard input to the guest: a terminal's keys one by one, a file or pipe as the guest takes it."""
    try:
        fd = sys.stdin.fileno()
    except (ValueError, AttributeError, OSError):
        yield lambda machine: False
        return
    if not os.isatty(fd):
        yield _feeder(fd)
        return
    if os.tcgetpgrp(fd) != os.getpgrp():  # in the background: to touch the terminal would stop this process
        yield lambda machine: False
        return
    import termios
    import tty

    saved = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield _feeder(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def _feeder(fd: int) -> Callable[[Machine], bool]:
    """Return a poll that gives what there is to read to the machine, and says whether the guest could get more."""
    held = b""
    over = stat.S_ISDIR(os.fstat(fd).st_mode)

    def poll(machine: Machine) -> bool:
        nonlocal held, over
        while True:
            if not held and not over and select.select([fd], [], [], 0)[0]:
                held = os.read(fd, _CHUNK)
                over = not held
            taken = machine.uart.receive(held) if held else 0
            held = held[taken:]
            if not taken:
                return machine.uart.listening and (bool(held) or not over)

    return poll
