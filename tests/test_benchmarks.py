"""The benchmarks run, and their guest is what its source says. No figure is asserted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import event_loop, host
from benchmarks.event_loop import Run
from benchmarks.figures import Options
from benchmarks.host import Curves, Point

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


def test_a_host_is_measured_and_its_event_loop_beside_simpy() -> None:
    section = host.measure(Options(rounds=1, scale=0.001), [(2, 4), (4, 8)], [(4, 3)])
    assert [figure.unit for figure in section.figures] == ["k/s"] * 5 + ["ns", "ns", "x"] + ["ns", "x"]
    assert all(figure.value is not None and figure.value > 0 for figure in section.figures)
    assert [figure.name for figure in section.figures if figure.peer] == [
        "event loop, compiled; SimPy's processes",
        "event loop, compiled; SimPy's callbacks",
        "event loop, CPython; SimPy's processes",
    ]


def test_the_event_loops_do_the_same_in_the_same_order() -> None:
    native = event_loop.machine_code()
    runs = [event_loop.in_cpython(5000), native(5000)]
    assert len({run.state for run in (*runs, event_loop.simpy_processes(5000), event_loop.simpy_callbacks(5000))}) == 1
    assert runs[0].events == runs[1].events
    assert 4500 < runs[0].events < 6500  # 1000 entities, and then one event in 512.5 ticks
    with pytest.raises(event_loop.OrderError, match="0x7 in SimPy"):
        event_loop.rates(native, lambda events: Run(1.0, 7), 5000)


def test_the_figure_of_the_host_is_the_same_for_the_same_costs(tmp_path: Path) -> None:
    curves = Curves([Point(2, 4, [1.0, 4.0, 2.0]), Point(8, 16, [3.0])], [Point(16, 10, [5.0]), Point(16, 1000, [7.0])])
    host.plot(curves, tmp_path / "a.svg")
    host.plot(curves, tmp_path / "b.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    texts = re.findall("<text[^>]*>([^<]*)</text>", drawn)
    assert {"2", "3", "5", "7", "8", "10", "1,000", "CPUs, two vCPUs for each", "vCPUs on 16 CPUs"} <= set(texts)


def test_a_figure_of_what_is_not_measured_is_refused() -> None:
    ran = benchmarks("--only", "overflow", "--plot", "x.svg")
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].endswith("argument --plot: expected host to be measured")


@pytest.mark.parametrize("arguments", [("--rounds", "0"), ("--scale", "-1"), ("--only", "nothing")])
def test_arguments_that_mean_nothing_are_refused(arguments: tuple[str, str]) -> None:
    ran = benchmarks(*arguments)
    assert ran.returncode == 2
    assert arguments[1] in ran.stderr.splitlines()[-1]
