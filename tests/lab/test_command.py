"""A command in a guest, as far as a machine without Linux can be one: what it printed, how it ended, what it is given.

The guest here is a few instructions that say by the second serial port what pmuvisor's /init would.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from pathlib import Path

import pytest

from a64 import NE, PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET, UART, Program, and_register, cmp, ldrw, movz, strw
from pmuvisor import cli
from pmuvisor.arch.cores import core
from pmuvisor.board.initramfs import cpio_newc
from pmuvisor.board.machine import Machine, Status
from pmuvisor.lab import guests, report
from pmuvisor.lab.run import Request, RequestError, Result, run

UART1 = 0x0904_0000
UART_FR, RX_EMPTY = 0x18, 1 << 4


class Script(Program):
    """A guest that says what it is told to, and ends."""

    def out(self, text: bytes, uart: int = UART) -> Script:
        self.mov(9, uart)
        for byte in text:
            self(movz(3, byte), strw(3, 9))
        return self

    def control(self, text: bytes) -> Script:
        return self.out(text, UART1)

    def echo(self, last: int) -> Script:
        """Send back what comes, up to `last` and without it."""
        self.mov(9, UART).mov(4, RX_EMPTY).label("next")
        self(ldrw(3, 9, UART_FR), and_register(3, 3, 4)).cbnz(3, "next")
        self(ldrw(3, 9), cmp(3, last)).b_if(NE, "more").b("over").label("more")(strw(3, 9)).b("next")
        self.label("over")
        return self

    def end(self, function: int = PSCI_SYSTEM_OFF) -> bytes:
        self.psci(function)
        return self.code()


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "root.cpio"
    image.write_bytes(cpio_newc([]))
    monkeypatch.setattr(guests, "cached_root", lambda: guests.RootFiles(image, "6.1", "1.35"))


def request(tmp_path: Path, guest: bytes, **more: object) -> Request:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(guest)
    settings: dict[str, object] = {"kernel": kernel, "memory": 16 << 20, "command": ("true",), "timeout": 20}
    return Request("linux", core("max"), **settings | more)  # type: ignore[arg-type]


def ran(tmp_path: Path, guest: bytes) -> Result:
    return run(request(tmp_path, guest))


def test_what_is_printed_between_start_and_end_is_the_commands(tmp_path: Path) -> None:
    guest = Script().out(b"boot").control(b"start\r\n").out(b"a\r\nb").control(b"exit 7\r\n").out(b"Power down").end()
    shown = bytearray()
    result = run(request(tmp_path, guest), shown.extend)
    assert (result.command, result.exit_status, result.output) == (("true",), 7, "a\r\nb")
    assert bytes(shown) == b"a\r\nb"
    assert result.console == "boota\r\nbPower down"
    assert result.as_json()["exit_status"] == 7
    assert (result.status, result.reason) == (Status.POWEROFF, "the guest powered off")


def test_an_output_that_says_what_init_says_is_only_output(tmp_path: Path) -> None:
    result = ran(tmp_path, Script().control(b"start\n").out(b"exit 0\n").control(b"exit 1\n").end())
    assert (result.exit_status, result.output) == (1, "exit 0\n")


def test_a_guest_that_ends_before_its_command_says_so(tmp_path: Path) -> None:
    result = ran(tmp_path, Script().control(b"start\n").out(b"x").end())
    assert (result.exit_status, result.output) == (None, "x")
    assert result.reason == "the guest powered off before its command ended"
    panic = Script().control(b"start\n").out(b"Kernel panic - not syncing: x\n").end(PSCI_SYSTEM_RESET)
    result = ran(tmp_path, panic)
    assert (result.exit_status, result.reason) == (
        None,
        "the guest asked for a reset (Kernel panic - not syncing: x)",
    )


def test_a_command_that_nobody_types_for_is_told_that_its_input_is_over(tmp_path: Path) -> None:
    result = ran(tmp_path, Script().control(b"start\n").echo(last=4).control(b"exit 0\n").end())
    assert (result.exit_status, result.output) == (0, "")


def test_a_poll_may_type_for_it(tmp_path: Path) -> None:
    pieces = iter([b"hello\n", b"\x04"])

    def poll(machine: Machine) -> bool:
        machine.uart.receive(next(pieces, b""))
        return True

    guest = Script().control(b"start\n").echo(last=4).control(b"exit 0\n").end()
    assert run(request(tmp_path, guest), poll=poll).output == "hello\n"


def test_the_report_says_how_the_command_ended(tmp_path: Path) -> None:
    file = io.StringIO()
    report.show(ran(tmp_path, Script().control(b"start\nexit 3\n").end()), file)
    assert "\nthe command's exit status: 3\n" in file.getvalue()


def test_a_run_without_a_command_has_no_status_of_one(tmp_path: Path) -> None:
    result = run(request(tmp_path, Script().control(b"start\nexit 3\n").out(b"x").end(), command=()))
    assert (result.command, result.exit_status, result.output, result.console) == ((), None, "", "x")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"guest": "demo", "kernel": None}, "command: only the guest linux runs one, not 'demo'"),
        ({"initrd": Path("x")}, "initrd: a command runs in the root that was fetched: expected one of the two"),
        ({"command": (), "added": (guests.added("x"),)}, "add: it is for a command: expected -- COMMAND"),
    ],
)
def test_what_does_not_go_with_a_command(tmp_path: Path, more: dict[str, object], said: str) -> None:
    wrong = dataclasses.replace(request(tmp_path, b"\0" * 64), **more)  # type: ignore[arg-type]
    with pytest.raises(RequestError) as error:
        run(wrong)
    assert str(error.value) == said


# ---- the command line -----------------------------------------------------------------------------------------------


def command_line(tmp_path: Path, guest: bytes, *options: str, typed: bytes = b"") -> int:
    """`pmuvisor run linux OPTIONS -- true`, with a pipe for its input."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(guest)
    reader, writer = os.pipe()
    os.write(writer, typed)
    os.close(writer)
    before = sys.stdin
    with os.fdopen(reader) as sys.stdin:
        try:
            return cli.main(
                ["run", "linux", "--kernel", str(kernel), "--timeout", "20", *options, "--", "true", "--smp"]
            )
        finally:
            sys.stdin = before


def test_the_commands_output_is_on_stdout_and_its_status_is_ours(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    guest = Script().out(b"boot").control(b"start\n").out(b"\xff\r\nx").control(b"exit 42\n").out(b"end").end()
    assert command_line(tmp_path, guest, "--json", str(tmp_path / "out.json")) == 42
    out, err = capfdbinary.readouterr()
    assert out == b"\xff\r\nx"
    assert err.startswith(b"linux: poweroff: the guest powered off\nthe command's exit status: 42\n")
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["command"], result["exit_status"], result["output"]) == (["true", "--smp"], 42, "\ufffd\r\nx")


def test_a_guest_that_does_not_come_to_the_commands_end_is_a_failure(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert command_line(tmp_path, Script().control(b"start\n").out(b"x").end()) == 1
    out, err = capfdbinary.readouterr()
    assert (out, err.splitlines()[0]) == (b"x", b"linux: poweroff: the guest powered off before its command ended")


@pytest.mark.parametrize(("typed", "ends"), [(b"", 1), (b"one\n", 1), (b"one\ntwo", 2)])
def test_the_end_of_the_input_is_the_terminals_end_of_file(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], typed: bytes, ends: int
) -> None:
    """In the middle of a line a terminal takes the first one for the end of that line's piece."""
    script = Script().control(b"start\n").echo(last=4)
    if ends == 2:
        script.mov(4, RX_EMPTY).label("again")(ldrw(3, 9, UART_FR), and_register(3, 3, 4)).cbnz(3, "again")
        script(ldrw(3, 9), cmp(3, 4)).b_if(NE, "again")
    assert command_line(tmp_path, script.control(b"exit 0\n").end(), typed=typed) == 0
    assert capfdbinary.readouterr()[0] == typed
