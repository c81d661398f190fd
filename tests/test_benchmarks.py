"""The benchmarks run, and their guest is what its source says. No figure is asserted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUESTS = ROOT / "benchmarks" / "guests"
CROSS = "aarch64-linux-gnu-"

needs_compiler = pytest.mark.skipif(
    not (shutil.which(CROSS + "gcc") and shutil.which("make")), reason="no aarch64-linux-gnu-gcc, or no make, here"
)


def benchmarks(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({} if path is None else {"PATH": path})
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@needs_compiler
def test_the_guest_is_what_its_source_says(tmp_path: Path) -> None:
    out = tmp_path / "bench.elf"
    subprocess.run(["make", "-C", str(GUESTS), f"OUT={out}", str(out)], check=True, capture_output=True, timeout=60)
    versions = [
        subprocess.run([CROSS + tool, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
        for tool in ("gcc", "ld")
    ]
    if versions == (GUESTS / "BUILT-WITH").read_text().splitlines():
        assert out.read_bytes() == (GUESTS / "bench.elf").read_bytes()


def test_the_guest_is_small() -> None:
    assert (GUESTS / "bench.elf").stat().st_size < 8 << 10


def test_one_short_round_without_a_peer(tmp_path: Path) -> None:
    """What there is no QEMU for is said in the row, and the rest is measured."""
    out = tmp_path / "figures.json"
    ran = benchmarks("--only", "compute", "--rounds", "1", "--scale", "0.001", "--json", str(out), path=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert "no qemu-system-aarch64 here" in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80
    told = json.loads(out.read_text())
    assert list(told["benchmarks"]) == ["compute"]
    figures = told["benchmarks"]["compute"]["figures"]
    assert [figure["name"] for figure in figures] == [
        "nothing counted",
        "a counter on INST_RETIRED",
        "a counter on LD_RETIRED",
    ]
    assert all(len(figure["rounds"]) == 1 and figure["peer"] is None for figure in figures)


def test_a_sample_is_taken_and_an_exact_stop_made() -> None:
    ran = benchmarks("--only", "overflow", "--rounds", "1", "--scale", "0.01")
    assert ran.returncode == 0, ran.stderr
    assert "the exact stop alone" in ran.stdout


@pytest.mark.parametrize("arguments", [("--rounds", "0"), ("--scale", "-1"), ("--only", "nothing")])
def test_arguments_that_mean_nothing_are_refused(arguments: tuple[str, str]) -> None:
    ran = benchmarks(*arguments)
    assert ran.returncode == 2
    assert arguments[1] in ran.stderr.splitlines()[-1]
