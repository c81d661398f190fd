"""The command line as its user meets it: what it refuses and how, what it prints, how it ends."""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from a64 import UART, Program, elf, movz, strw
from pmuvisor import cli
from pmuvisor.board import machine
from pmuvisor.board.cpustate import UnsupportedUnicorn
from pmuvisor.lab.terminal import write_whole

COMMAND = [sys.executable, "-m", "pmuvisor.cli"]
HEAVY = {"numba", "numpy", "unicorn", "z3", "capstone", "fdt", "elftools"}
SPIN = Program().label("x").b("x").code()


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command is refused."""
    status: object
    try:
        status = cli.main(words)
    except SystemExit as end:
        status = end.code
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    lines: list[str] = err.splitlines()
    if not lines[0].startswith("usage: "):
        assert len(lines) == 1
    assert lines[-1].startswith("pmuvisor")
    return lines[-1]


# ---- bad input -----------------------------------------------------------------------------------------------------

BAD_OPTIONS = [
    (["nonsense"], "invalid choice: 'nonsense'"),
    (["run"], "required: GUEST"),
    (["run", "demo", "--core", "z80"], "core 'z80': expected one of max, "),
    (["run", "demo", "--counters", "9"], "counters 9: core max can give a guest 0 to 8"),
    (["run", "demo", "--core", "cortex-a76", "--counters", "0"], "counters 0: core cortex-a76 can give a guest 1 to 6"),
    (["run", "demo", "--counters", "32"], "--counters: '32': expected a number from 0 to 31"),
    (["run", "demo", "--counters", "two"], "--counters: 'two': expected a number"),
    (["run", "demo", "--memory", "lots"], "--memory: 'lots': expected a size such as 256M or 1G"),
    (["run", "demo", "--memory", "1.5G"], "--memory: '1.5G': expected a size"),
    (["run", "demo", "--memory", "0"], "--memory: '0': expected a whole number of MiB from 1M to 64G"),
    (["run", "demo", "--memory", "1025K"], "--memory: '1025K': expected a whole number of MiB"),
    (["run", "demo", "--memory", "\u0665M"], "expected a size"),
    (["run", "demo", "--smp", "0"], "--smp: '0': expected a number from 1 to 8"),
    (["run", "demo", "--smp", "9"], "--smp: '9': expected a number from 1 to 8"),
    (["run", "demo", "--timeout", "0"], "--timeout: '0': expected a number of seconds above 0"),
    (["run", "demo", "--timeout", "nan"], "--timeout: 'nan': expected a number of seconds"),
    (["run", "demo", "--timeout", "inf"], "--timeout: 'inf': expected a number of seconds"),
    (["run", "demo", "--timeout=-1"], "--timeout: '-1': expected a number of seconds"),
    (["run", "demo", "--json", ""], "--json: '': expected the name of a file"),
    (["run", "demo", "--json", "{folder}"], "json: {folder}: is a directory, expected a file"),
    (["run", "demo", "--json", "{folder}/no/such"], "json: {folder}/no/such: cannot be written: No such file or dir"),
    (["run", "demo", "--initrd", "{folder}/none"], "{folder}/none: no such file"),
    (["run", "demo", "--initrd", "{folder}/big", "--memory", "32M"], "{folder}/big: has 41943040 bytes, more than"),
    (["run", "demo", "--append", "two\nlines"], "append: the kernel command line must be printable ASCII, on one line"),
    (["run", "demo", "--append", "caf\u00e9"], "append: the kernel command line must be printable ASCII"),
    (
        ["run", "demo", "--append", "x" * 2048],
        "append: the kernel command line has 2048 bytes, Linux reads at most",
    ),
    (
        ["run", "elapsed", "--design", "fixed-counters-only", "--counters", "1"],
        "fixed-counters-only has none: expected 0",
    ),
    (["run", "demo", "--kernel", "{folder}/spin"], "kernel: it is for the guest linux"),
    (["run", "linux", "--kernel", "{folder}"], "{folder}: is a directory, expected a regular file"),
    (["run", "linux"], "linux: no kernel fetched yet: run `pmuvisor guest fetch linux`, or give --kernel"),
    (["run", "demo", "--design", "magic"], "--design: invalid choice: 'magic'"),
    (["run", "demo", "--", "true"], "command: only the guest linux runs one, not 'demo'"),
    (["run", "linux", "--"], "argument COMMAND: expected the name of a program after --"),
    (["run", "linux", "--", ""], "argument COMMAND: expected the name of a program after --"),
    (["run", "--", "linux"], "required: GUEST"),
    (["compare", "linux", "--"], "argument COMMAND: expected the name of a program after --"),
    (["compare", "demo", "--", "true"], "command: only the guest linux runs one, not 'demo'"),
    (["run", "{folder}/x.toml", "--", "true"], "argument COMMAND: not of a scenario: expected only {folder}/x.toml"),
    (["run", "{folder}/x.toml", "--add", "a"], "argument --add: not of a scenario: expected in {folder}/x.toml"),
    (["run", "linux", "--add", "{folder}/spin"], "add: it is for a command: expected -- COMMAND"),
    (["run", "linux", "--add", "x:y", "--", "true"], "add 'x:y': expected PATH to start with /"),
    (
        ["run", "linux", "--initrd", "{folder}/spin", "--", "true"],
        "initrd: a command runs in the root that was fetched",
    ),
    (
        ["run", "linux", "--kernel", "{folder}/spin", "--", "true"],
        "linux: no programs for a command fetched yet: run `pmuvisor guest fetch perf`",
    ),
    (["guest"], "required: ACTION"),
    (["guest", "fetch", "bsd"], "invalid choice: 'bsd'"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guests")
    (path / "spin").write_bytes(SPIN)
    with (path / "big").open("wb") as file:
        file.truncate(40 << 20)
    return path


@pytest.mark.parametrize(("words", "said"), BAD_OPTIONS, ids=lambda value: None)
def test_a_bad_option_is_refused_in_one_line(
    words: list[str],
    said: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = sorted(folder.iterdir())
    line = refused(capfd, *(word.replace("{folder}", str(folder)) for word in words))
    assert said.replace("{folder}", str(folder)) in line
    assert sorted(folder.iterdir()) == before


BAD_FILES = {
    "empty": (b"", "is empty, expected an arm64 Linux Image, "),
    "text": (b"Not a guest, but a text that is long enough to be told from one by its bytes.\n", "is a text file"),
    "of another machine": (
        elf(SPIN, machine=62),
        "is an ELF file for Advanced Micro Devices X86-64, expected one for AArch64",
    ),
    "relocatable": (elf(SPIN, file_type=1), "is an ELF file that is a relocatable object, expected an executable"),
    "cut in its header": (elf(SPIN)[:40], "is truncated: it ends inside of its ELF header"),
    "cut in its segment": (
        elf(SPIN * 100)[:-1],
        "is truncated: its ELF segment at 0x40200000 does not end in",
    ),
    "bigger than memory": (bytes(32) * (1 << 20), "is a flat binary of 33554432 bytes for 0x40080000, which is not in"),
    "placed outside": (elf(SPIN, address=0x8000_0000), "with a segment of 4 bytes at 0x80000000, which is not inside"),
    "half a gzip": (b"\x1f\x8b\x08" + bytes(7), "is truncated: its gzip data has no end"),
    "no gzip": (b"\x1f\x8b\x08" + b"\xff" * 70, "is corrupt: its gzip data cannot be decompressed"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_file_that_is_no_guest_is_refused_in_one_line(
    what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, said = BAD_FILES[what]
    path = tmp_path / "guest"
    path.write_bytes(data)
    line = refused(capfd, "run", str(path), "--memory", "32M", "--json", str(tmp_path / "result"))
    assert line.startswith(f"pmuvisor: {path}: ")
    assert said in line
    assert not (tmp_path / "result").exists()


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(capfd, "run", f"{tmp_path}/x") == f"pmuvisor: {tmp_path}/x: no such file"
    assert refused(capfd, "run", str(tmp_path)).endswith(": is a directory, expected a regular file")


def fail_with(error: Exception) -> type:
    class Failing:
        def __init__(self, *arguments: object) -> None:
            raise error

    return Failing


def test_a_unicorn_that_cannot_do_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "Engine", fail_with(UnsupportedUnicorn("this build of Unicorn does not export x")))
    assert refused(capfd, "run", "demo") == "pmuvisor: this build of Unicorn does not export x"


def test_memory_that_the_computer_has_not_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "GuestMemory", fail_with(OSError(12, "Cannot allocate memory")))
    said = refused(capfd, "run", "demo", "--memory", "64G")
    assert said == "pmuvisor: memory 65536M: more than this computer can give a guest"


# ---- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["run"], ["guest"], ["guest", "fetch"]])
def test_help_is_there_at_once_and_fits_80_columns(words: list[str]) -> None:
    """At once: without what takes long to import."""
    program = "import sys; sys.stdout.reconfigure(errors='strict'); from pmuvisor import cli\n"
    program += f"try: cli.main([*{words!r}, '--help'])\nfinally: print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"COLUMNS": "80"}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: pmuvisor")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not HEAVY & {name.strip("' ").split(".")[0] for name in done.stderr.strip("[]\n").split(",")}


# ---- a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, object]]:
    """What the demo printed, and its JSON."""
    path = tmp_path_factory.mktemp("demo") / "result.json"
    done = subprocess.run([*COMMAND, "run", "demo", "--json", path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, json.loads(path.read_text())


def test_the_json_says_all_that_happened(demo: tuple[str, dict[str, object]]) -> None:
    printed, result = demo
    assert (result["design"], result["status"]) == ("partitioned", "poweroff")
    assert printed.startswith(str(result["console"]))
    assert str(result["console"]).endswith("demo: all counts exact\n")
    assert isinstance(result["instructions"], int)
    assert isinstance(result["wall_seconds"], float)
    ledger = result["ledger"]
    assert isinstance(ledger, dict)
    assert all(isinstance(name, str) and isinstance(count, int) for name, count in ledger.items())
    # The 100 software increments and the PMU's interrupts of the demo's source.
    assert (ledger["direct.PMSWINC_EL0"], ledger["overflows"], ledger["interrupts_injected"]) == (100, 2, 2)


def test_the_report_fits_80_columns_without_blanks_at_line_ends(demo: tuple[str, dict[str, object]]) -> None:
    printed, result = demo
    report = printed.removeprefix(str(result["console"])).splitlines()
    assert report[0] == "demo: poweroff: the guest powered off"
    assert max(map(len, report)) <= 80
    assert [line for line in report if line != line.rstrip()] == []
    assert ["PMSWINC_EL0", "100", "-", "-"] in [line.split() for line in report]


def test_json_to_the_output_leaves_the_rest_to_stderr() -> None:
    done = subprocess.run([*COMMAND, "run", "demo", "--json", "-"], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["status"] == "poweroff"
    assert done.stderr.startswith("demo: pmuvisor's bare-metal guest\n")
    assert "what it cost" in done.stderr


# ---- ending early --------------------------------------------------------------------------------------------------


@pytest.fixture
def talker(tmp_path: Path) -> Path:
    """A guest that prints a line, and then for ever nothing but a letter."""
    path = tmp_path / "talker"
    path.write_bytes(Program().say("up\n").mov(9, UART)(movz(10, ord("a"))).label("x")(strw(10, 9)).b("x").code())
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("code", [SPIN, b""], ids=["computing", "printing"])
def test_ctrl_c_ends_with_the_table_and_the_json(talker: Path, code: bytes, number: int, tmp_path: Path) -> None:
    if code:
        talker.write_bytes(Program().say("up\n" + "." * 4096).code() + code)
    command = [*COMMAND, "run", str(talker), "--json", str(tmp_path / "result")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        printed, complaints = process.communicate(timeout=30)
    assert (process.returncode, complaints) == (130, b"")
    assert f"\n{talker}: exit: interrupted\n".encode() in printed
    assert b"what it cost" in printed
    assert json.loads((tmp_path / "result").read_text())["status"] == "exit"


def test_a_reader_that_leaves_ends_the_run_quietly(talker: Path) -> None:
    command = [*COMMAND, "run", str(talker)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"up\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_without_an_output_a_run_still_writes_its_json(tmp_path: Path) -> None:
    shell = f'exec "$0" "$@" --json {tmp_path}/result >&-'
    done = subprocess.run(["sh", "-c", shell, *COMMAND, "run", "demo"], stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads((tmp_path / "result").read_text())["status"] == "poweroff"


# ---- writing the JSON ----------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_a_link_to_it_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("before")
    link.symlink_to(target)
    write_whole(link, b"after")
    assert link.is_symlink()
    assert target.read_text() == "after"
    assert sorted(tmp_path.iterdir()) == [link, target]


def test_what_is_no_file_is_written_to_and_not_replaced() -> None:
    reading, writing = os.pipe()
    write_whole(Path(f"/dev/fd/{writing}"), b"text")
    assert os.read(reading, 10) == b"text"
    os.close(reading)
    os.close(writing)


def test_an_image_of_a_wrong_word_size_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = bytearray(elf(SPIN))
    struct.pack_into("<B", image, 4, 1)
    (tmp_path / "elf32").write_bytes(image)
    assert "is a 32-bit ELF file, expected a 64-bit one" in refused(capfd, "run", str(tmp_path / "elf32"))
