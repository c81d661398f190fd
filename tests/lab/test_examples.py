"""The scenarios in examples/, each run by the command line as its reader would, and held to what its comment says."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from pmuvisor import cli
from pmuvisor.arch.cores import core
from pmuvisor.lab import guests

EXAMPLES = Path(__file__).parents[2] / "examples"
MS = 1_000_000


def run(name: str, folder: Path, capfd: pytest.CaptureFixture[str], status: int = 0) -> dict[str, Any]:
    """Run an example, which ends with `status`; return its JSON, by names: `vms`, `host_perf`, `host_spe`."""
    out = folder / "out.json"
    assert cli.main(["run", str(EXAMPLES / f"{name}.toml"), "--json", str(out)]) == status
    shown, errors = capfd.readouterr()
    result: dict[str, Any] = json.loads(out.read_text())
    assert errors == ""
    assert not result["interrupted"]
    for key in ("vms", "host_perf", "host_spe"):
        assert all(f"\n{row['name'].partition(':')[0]}" in f"\n{shown}" for row in result[key])
        result[key] = {row["name"]: row for row in result[key]}
    for row in result["host_perf"].values():
        assert row["count"] <= row["true"]
        assert row["running"] <= row["enabled"]
        assert (row["count"] == row["true"]) or row["running"] < row["enabled"]
    return result


def test_every_example_is_run_here() -> None:
    tested = {name.removeprefix("test_").replace("_", "-") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.toml")} <= tested
    assert all(path.read_text().startswith("# ") for path in EXAMPLES.iterdir())


def test_contention(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run("contention", tmp_path, capfd)
    rows = result["host_perf"]
    # Two CPUs of 2500 MHz that are never idle.
    assert rows["everything:CPU_CYCLES"]["true"] == 2 * 500 * 2_500_000
    assert (rows["always:INST_RETIRED"]["running"], rows["always:INST_RETIRED"]["failed"]) == (1000 * MS, 0)
    assert rows["always:INST_RETIRED"]["count"] == sum(vm["instructions"] for vm in result["vms"].values())
    assert (rows["host-only:INST_RETIRED"]["count"], rows["host-only:INST_RETIRED"]["true"]) == (0, 0)
    # Six events take turns on one counter: a sixth of the time, to a turn of 4 ms on each of the CPUs.
    for name in ("CPU_CYCLES", "INST_RETIRED", "BR_RETIRED", "MEM_ACCESS", "STALL_BACKEND"):
        assert abs(rows[f"everything:{name}"]["running"] - 1000 * MS / 6) <= 8 * MS
    assert sum(vm["ledger"]["loads"] for vm in result["vms"].values()) == result["host"]["switches"]


def test_big_little(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run("big-little", tmp_path, capfd)
    vms, rows = result["vms"], result["host_perf"]
    assert rows["big-vm:INST_RETIRED"]["count"] == vms["big"]["instructions"]
    instructions = sum(row["count"] for name, row in rows.items() if name.startswith("workers") and "INST" in name)
    branches = sum(row["count"] for name, row in rows.items() if name.startswith("workers") and "BR_" in name)
    assert 0 <= instructions * 200 // 1500 - branches <= 6  # 1500 and 200 a microsecond, rounded down for each task
    assert [vm["status"] for vm in vms.values()] == ["running", "running"]


def test_sampling(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = run("sampling", tmp_path, capfd)["host_perf"]
    for name, row in rows.items():
        period = 250_000 if name.startswith("user") else 100_000
        # One for each period; of those that end where a turn does, the overflow is cleared before it interrupts.
        assert row["count"] // period - row["samples"] in (range(10) if name.startswith("shared") else range(2))
        assert row["count"] == row["true"] or name == "shared:INST_RETIRED"
    assert rows["shared:INST_RETIRED"]["count"] < rows["shared:INST_RETIRED"]["true"]
    # Of the run 150 ms; server-1 makes 60 % of 2000 instructions in a microsecond at EL0.
    user = rows["user:INST_RETIRED"]
    assert user["count"] * 1000 == user["running"] * 2000 * 0.6
    assert 0 < user["enabled"] <= 150 * MS


def test_spe_host(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run("spe-host", tmp_path, capfd)
    rows = result["host_spe"]
    # A thousand operations in a microsecond: `server` has half of CPU 0, `batch` all of CPU 1, half of it at EL0.
    expected = {"beside-guest": 50_000_001 // 4097, "alone": 100_000_001 // 4097, "user": 25_000_001 // 4097}
    assert {name: rows[name]["records"] for name in expected} == expected
    assert result["vms"]["guest"]["instructions"] == 100_000_000
    # 4 MiB are read by halves, 128 KiB too.
    assert [rows[name]["woken"] for name in expected] == [0, 0, 64 * expected["user"] >> 16]
    assert rows["unread"] == {
        "name": "unread",
        "records": 2 * 960,
        "bytes": 2 * 65535,
        "interrupts": 4,
        "truncated": 2,
        "lost": 0,
        "padding": 2 * 4095,
        "woken": 4,
    }
    assert all(row["lost"] == 0 for row in rows.values())


def test_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    vms = run("demo", tmp_path, capfd)["vms"]
    assert [vm["status"] for vm in vms.values()] == ["poweroff", "poweroff"]
    assert all("demo: all counts exact" in vm["console"] for vm in vms.values())
    assert [vm["fgt"] for vm in vms.values()] == [True, False]
    direct, trapped = (sum(n for key, n in vm["ledger"].items() if key.startswith("direct.")) for vm in vms.values())
    assert direct > trapped == 0


def test_fixed_counters(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run("fixed-counters", tmp_path, capfd, status=1)
    vms, rows = result["vms"], result["host_perf"]
    died, pinned, fixed = (vms[name] for name in ("default", "pinned", "fixed"))
    # Two turns of 2 ms on a Cortex-A55 of 1800 MHz are 7.2 million instructions, a million to a round: the counter
    # stands still in the middle of round 8, and round 9 is the first without cycles.
    assert core("cortex-a55").mhz == 1800
    assert (died["status"], died["core"], died["migrations"]) == ("reset", "cortex-a55", 1)
    assert died["panic"] == "bugcheck: division by zero: no cycles elapsed in round 9"
    assert died["reason"] == f"the guest asked for a reset ({died['panic']})"
    assert 9_000_000 < died["instructions"] < 9_010_000
    for vm in (pinned, fixed):
        assert (vm["status"], vm["panic"]) == ("poweroff", "")
        assert "elapsed: cycles in each of 200 rounds: 999 to 999 instructions in 1,000 of them" in vm["console"]
        assert vm["ledger"]["pmu_trapped"] == pinned["ledger"]["pmu_trapped"]
    # Each time that it has come to a core of the other kind the cycle counter gets a new event; nothing is lost by it.
    assert (fixed["migrations"], fixed["counters"]) == (8, 0)
    assert fixed["ledger"]["perf_created"] - pinned["ledger"]["perf_created"] == 3
    little, big = rows["fixed:cortex-a55/CPU_CYCLES/"], rows["fixed:cortex-x1/CPU_CYCLES/"]
    assert min(little["running"], big["running"]) > 30 * MS
    assert little["running"] + big["running"] == little["enabled"] == round(fixed["run_seconds"] * 1e9)
    assert 200_000_000 < little["count"] + big["count"] < fixed["instructions"]


@pytest.mark.skipif(guests.cached_linux() is None, reason="no Linux guest fetched")
def test_linux(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run("linux", tmp_path, capfd)
    guest = result["vms"]["linux"]
    assert guest["status"] == "poweroff"
    assert guest["console"].count("instructions 2000004 expected 2000004 exact") == 6
    assert guest["console"].count("every sample on its instruction") == 2
    kernel = result["host_perf"]["guest-kernel:INST_RETIRED"]
    assert (kernel["failed"], kernel["running"]) == (0, kernel["enabled"])
    assert 0 < kernel["count"] == kernel["true"] < guest["instructions"]


@pytest.mark.parametrize(
    ("cores", "pmu", "counted"),
    [
        (["cortex-a76"] * 2, "SET_PMU 8: 6 event counters", "INST_RETIRED 4,500,000 expected 4,500,000 exact"),
        (["cortex-a55", "cortex-x1"], "FIXED_COUNTERS_ONLY", "skipped INST_RETIRED"),
    ],
)
def test_vmm(cores: list[str], pmu: str, counted: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert runpy.run_path(str(EXAMPLES / "vmm.py"))["main"](cores) == 1  # KVM_SYSTEM_EVENT_SHUTDOWN
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"PMU: {pmu}"
    assert counted in "\n".join(lines)
    assert lines[-1] == "demo: all counts exact"


@pytest.mark.skipif(guests.cached_root() is None, reason="no perf for a Linux guest fetched")
@pytest.mark.parametrize(
    ("script", "words", "printed"),
    [
        ("perf-record-gzip.sh", ["1"], r"real\t0m 0\.\d\ds\nuser"),
        ("profile.sh", [], r"\n +[1-9]\d{6,} +instructions:u"),
    ],
)
def test_scripts_for_a_linux_guest(
    script: str, words: list[str], printed: str, capfd: pytest.CaptureFixture[str]
) -> None:
    machine = ["--mhz", "3000", "--host-counters", "16", "--counters", "10", "--timeout", "120"]
    assert cli.main(["run", "linux", *machine, "--add", str(EXAMPLES / script), "--", "sh", script, *words]) == 0
    out, err = capfd.readouterr()
    assert re.search(printed, out), out
    assert "10 of 16 event counters" in err
