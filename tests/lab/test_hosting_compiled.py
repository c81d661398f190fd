"""A scenario run as machine code is the scenario that CPython runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.test_hosting import BUSY, CYCLES, INST, MS, N1, perf, scenario, spe, vm, without_wall
from pmuvisor import cli
from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED
from pmuvisor.lab import compiled_host
from pmuvisor.lab.compiled_host import room_for
from pmuvisor.lab.hosting import Hosting
from pmuvisor.lab.run import RequestError
from pmuvisor.lab.scenario import Activity, Scenario, TaskSpec

SIZES = {"cpus": 2, "cpu_words": 1, "tasks": 3, "events": 4, "context_events": 2, "vms": 1, "vcpus": 2}
SIZES |= {"filter_words": 0, "event_counters": 6, "counter_width": 64, "kinds": 2, "entries": 5, "executed": 4}
SIZES |= {"inflight": 4, "spe_sessions": 0}

FILE = """
duration = "40ms"
[host]
cpus = ["neoverse-n1", "neoverse-n1"]
[[vm]]
name = "a"
guest = "busy"
vcpus = 3
burst = "1700us"
pause = "600us"
[[perf]]
name = "all"
events = ["CPU_CYCLES", "INST_RETIRED"]
cpu = "0-1"
"""


def busy_host(seed: int = 0) -> Scenario:
    """More of everything than CPUs and counters, and sessions that come and go."""
    sleepy = Activity(rates=((INST_RETIRED, 777_777),), user=250, burst=1_700_000, pause=900_000)
    tasks = tuple(TaskSpec(name=f"t{n}", cpus=0b111, activity=(sleepy, BUSY)[n % 2]) for n in range(3))
    sessions = (
        perf("all", *[INST, CYCLES] * 4, cpus=0b111, duration=60 * MS),
        perf("late", INST, cpus=0b010, duration=60 * MS, start=11 * MS + 7, stop=33 * MS, pinned=True, period=300_007),
        perf("vm", INST, vm=0, duration=60 * MS, exclude_user=True),
    )
    profiles = (
        spe("cpus", cpus=0b011, duration=60 * MS, stop=30 * MS, jitter=True),
        spe("unread", cpus=0b100, duration=60 * MS, stop=30 * MS, buffer=1 << 14, read=False, exclude_user=True),
        spe("tasks", tasks=(0, 1), duration=60 * MS, start=30 * MS, buffer=1 << 14, exclude_kernel=True),
    )
    vms = (vm("a", vcpus=3, on=0b111, activity=sleepy), vm("b", vcpus=2, on=0b011))
    kinds = (INST_RETIRED, CPU_CYCLES)
    return scenario(60 * MS, (N1,) * 3, vms=vms, tasks=tasks, perf=sessions, spe=profiles, kinds=kinds, seed=seed)


@pytest.mark.parametrize(("seed", "chunk"), [(0, 20_000), (7, 13)])
def test_machine_code_leaves_the_very_state_and_result(seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_host, "CHUNK", chunk)
    fast, slow = Hosting(busy_host(seed), compiled=True), Hosting(busy_host(seed))
    assert without_wall(fast.run()) == without_wall(slow.run())
    assert fast.t == slow.t
    assert slow.t.happenings > 200
    assert min(slow.t.interrupts, slow.t.rotations, sum(v.rescheduled for v in slow.t.world.vcpus)) > 10
    assert [session.truncated for session in slow.host.spe_sessions] == [0, 0, 1, 0, 0]
    assert sum(session.interrupts for session in slow.host.spe_sessions) > 10


def test_progress_is_told_and_the_run_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_host, "CHUNK", 50)
    hosting = Hosting(busy_host(), compiled=True)
    told = []

    def stop(now: int) -> None:
        told.append(now)
        hosting.interrupted = now > 20 * MS

    result = hosting.run(stop)
    assert result.interrupted
    assert told == sorted(set(told))
    assert 0.020 < told[-1] / 1e9 == result.virtual_seconds < 0.040


@pytest.mark.parametrize("guest", ["demo", "guest.elf"])
def test_a_guest_that_has_code_is_refused(guest: str) -> None:
    with pytest.raises(RequestError, match=f"^compile: vm x runs {guest}: expected busy, a guest without code$"):
        Hosting(scenario(MS, vms=(vm("b"), vm("x", guest))), compiled=True)


@given(st.fixed_dictionaries({name: st.integers(1, 5000) for name in compiled_host.ROOM[0]}), st.integers(2, 16))
def test_there_is_room_for_everything(numbers: dict[str, int], kinds: int) -> None:
    sizes = SIZES | numbers | {"kinds": kinds, "cpu_words": (numbers["cpus"] + 31) // 32}
    sizes |= {"entries": numbers["cpus"] + numbers["tasks"], "executed": numbers["vcpus"] * kinds}
    room = room_for(sizes)
    assert room.keys() == sizes.keys()
    assert all(room[name] >= number for name, number in sizes.items())
    # A guest's counts are at vCPU * kinds + kind; and who has room for this has room for anything smaller.
    assert room["kinds"] == kinds
    assert room_for(room) == room


def test_small_hosts_share_one_layout() -> None:
    assert room_for(SIZES) == room_for(SIZES | {"cpus": 16, "tasks": 60, "entries": 76, "vcpus": 50, "executed": 100})


# ---- the command line ------------------------------------------------------------------------------------------


def result_of(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["run", *words, "--json", "-"]) == 0
    result: dict[str, Any] = json.loads(capfd.readouterr().out)
    return result | {"wall_seconds": 0}


def test_compile_is_an_option_of_a_scenario(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.toml"
    file.write_text(FILE)
    result = result_of(capfd, str(file), "--compile")
    assert result == result_of(capfd, str(file))
    assert result["host"]["switches"] > 30


def test_compile_is_no_option_of_a_guest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "demo", "--compile"])
    assert end.value.code == 2
    assert "argument --compile: 'demo' is no scenario: expected FILE.toml" in capfd.readouterr().err
    file = tmp_path / "x.toml"
    file.write_text(FILE.replace('"busy"', '"demo"').replace('burst = "1700us"\npause = "600us"\n', ""))
    assert cli.main(["run", str(file), "--compile"]) == 2
    assert capfd.readouterr() == ("", "pmuvisor: compile: vm a runs demo: expected busy, a guest without code\n")
