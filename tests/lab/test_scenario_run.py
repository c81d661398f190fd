"""`pmuvisor run FILE.toml` as its user meets it: what is printed where, how it ends, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pmuvisor import cli

COMMAND = [sys.executable, "-m", "pmuvisor.cli", "run"]
DEMOS = """
duration = "{duration}"
host.cpus = ["neoverse-n1", "cortex-x1"]
[[vm]]
name = "a"
guest = "demo"
[[vm]]
name = "b"
guest = "demo"
[[task]]
name = "t"
[[perf]]
name = "p"
cpu = "0"
events = ["INST_RETIRED", "CPU_CYCLES"]
"""


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    path = tmp_path / "demos.toml"
    path.write_text(DEMOS.format(duration="60ms"))
    return path


def test_lines_of_consoles_have_the_name_of_their_vm(demos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(demos)]) == 0
    lines = capfd.readouterr().out.splitlines()
    for name in ("a", "b"):
        console = [line for line in lines if line.startswith(f"{name}: demo: ")]
        assert console[-2:] == [f"{name}: demo: all counts exact", f"{name}: demo: poweroff: the guest powered off"]
    end = lines.index("b: demo: poweroff: the guest powered off")
    assert all(line.startswith(("a: ", "b: ")) for line in lines[:end])
    assert [line.split()[0] for line in lines[end:] if line[:1].isalnum()][:3] == ["b:", "VM", "a"]


def test_json_goes_to_stdout_and_the_rest_to_stderr(demos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(demos), "--json", "-"]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert [vm["name"] for vm in result["vms"]] == ["a", "b"]
    assert {"name", "count", "true", "enabled", "running"} <= set(result["host_perf"][0])
    assert [row["name"] for row in result["host_perf"]] == ["p:INST_RETIRED", "p:CPU_CYCLES"]
    assert "host perf" in err
    assert "a: demo: all counts exact" in err


def test_ctrl_c_ends_with_the_tables_and_the_json(demos: Path, tmp_path: Path) -> None:
    demos.write_text(DEMOS.format(duration="1000s"))
    command = [*COMMAND, str(demos), "--json", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout
        assert process.stdout.readline().startswith(b"a: demo: ")
        process.send_signal(signal.SIGINT)
        printed, complaints = process.communicate(timeout=30)
    assert (process.returncode, complaints) == (130, b"")
    assert b"context switches" in printed
    result = json.loads((tmp_path / "out").read_text())
    assert result["interrupted"]
    assert result["virtual_seconds"] < 1000


def test_a_terminal_is_told_how_far_it_is(demos: Path) -> None:
    demos.write_text(DEMOS.format(duration="2s"))
    mine, theirs = os.openpty()
    try:
        with subprocess.Popen([*COMMAND, str(demos)], stdout=subprocess.DEVNULL, stderr=theirs) as process:
            told = os.read(mine, 100)
            process.kill()
    finally:
        os.close(mine)
        os.close(theirs)
    assert told.strip().endswith(b"%")
    assert told.strip(b"\r %").isdigit()


def test_a_vcpu_that_cannot_enter_its_guest_is_a_failure(demos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demos.write_text(
        DEMOS.format(duration="5ms") + '[[vm]]\nname = "c"\nguest = "busy"\ncore = "neoverse-n1"\ncpus = "1"\n'
    )
    assert cli.main(["run", str(demos)]) == 1
    assert "c: busy: fail-entry: vCPU 0 cannot run on CPU 1 (KVM_EXIT_FAIL_ENTRY" in capfd.readouterr().out


@pytest.mark.parametrize(
    "option", [["--smp", "2"], ["--no-fgt"], ["--counters", "3"], ["--timeout", "1"], ["--core", "cortex-x1"]]
)
def test_what_the_file_decides_is_no_option(demos: Path, option: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["run", str(demos), *option])
    assert end.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    last = f"pmuvisor run: error: argument {option[0]}: not of a scenario: expected in {demos}"
    assert err.splitlines()[-1] == last


def test_a_guest_that_is_no_program_is_refused_before_another_starts(
    demos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (demos.parent / "bad").write_bytes(b"\x7fELF")
    demos.write_text(DEMOS.format(duration="5ms").replace('"b"\nguest = "demo"', '"b"\nguest = "bad"'))
    assert cli.main(["run", str(demos)]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"pmuvisor: {demos.parent / 'bad'}: ")
