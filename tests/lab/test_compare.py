"""`pmuvisor compare`: the same guest under each design, what it measured, what each cost, and the chart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pmuvisor import cli
from pmuvisor.arch.cores import core
from pmuvisor.board.machine import CountError
from pmuvisor.lab import compare_report
from pmuvisor.lab.compare import DesignRun, Difference, compare_guest, compare_scenario, differences, measured
from pmuvisor.lab.costs import built_in
from pmuvisor.lab.run import Request
from pmuvisor.lab.scenario import load

DESIGNS = ("emulated", "partitioned", "lazy", "fixed-counters-only")
BESIDE_HOST = """
duration = "40ms"
host.cpus = ["neoverse-n1", "neoverse-n1"]
[[vm]]
name = "a"
guest = "busy"
vcpus = 3
counters = 4
events = { INST_RETIRED = 2000 }
burst = "3ms"
pause = "1ms"
[[perf]]
name = "all"
cpu = "0-1"
events = ["INST_RETIRED", "CPU_CYCLES", "BR_RETIRED", "MEM_ACCESS", "STALL_FRONTEND", "STALL_BACKEND"]
"""


@pytest.fixture(scope="module")
def demo() -> dict[str, DesignRun]:
    return {run.design: run for run in compare_guest(Request("demo", core("max")), DESIGNS)}


# ---- what a guest measured --------------------------------------------------------------------------------------


def test_times_and_rates_are_not_compared_and_counts_are() -> None:
    perf_stat = "  1,000,003   instructions:u   #  0.98  insn per cycle\n\n  0.001234 seconds time elapsed\n"
    assert measured(perf_stat) == ("1,000,003 instructions:u # # insn per cycle", "# seconds time elapsed")
    assert measured("[    1.25] cpu up\r\n") == measured("[   17.5] cpu up\n") == ("[ #] cpu up",)


def test_a_line_that_is_not_there_does_not_shift_the_others() -> None:
    first, here = ("a", "b", "c", "d"), ("a", "c", "D")
    assert differences(first, here) == (Difference(2, "b", ""), Difference(3, "d", "D"))
    assert differences(first, first) == ()


# ---- a guest ----------------------------------------------------------------------------------------------------


def test_the_demo_counts_the_same_under_every_design_that_has_event_counters(demo: dict[str, DesignRun]) -> None:
    exact = {name: [line for line in run.printed if "exact" in line] for name, run in demo.items()}
    assert len(exact["emulated"]) == 16
    assert exact["emulated"] == exact["partitioned"] == exact["lazy"]
    assert all(run.fine for run in demo.values())
    # What differs is that instructions which trap are not the guest's to retire: 100 writes of PMSWINC_EL0.
    places = [(d.first, d.here) for d in demo["partitioned"].differences]
    assert ("demo: cycles 200", "demo: cycles 300") in places
    assert [d.here for d in demo["lazy"].differences] == [d.here for d in demo["partitioned"].differences]


def test_all_accesses_trap_under_emulation_and_types_filters_and_overflow_flags_in_a_partition(
    demo: dict[str, DesignRun],
) -> None:
    assert demo["emulated"].ledger["pmu_direct"] == demo["fixed-counters-only"].ledger["pmu_direct"] == 0
    trapped = {n.removeprefix("trapped.") for n in demo["partitioned"].ledger if n.startswith("trapped.")}
    assert trapped == {"PMCCFILTR_EL0", "PMXEVTYPER_EL0", "PMOVSCLR_EL0", "PMOVSSET_EL0"}
    # The first access finds the vCPU free, and is made again when it owns its PMU.
    assert demo["lazy"].ledger["pmu_trapped"] == demo["partitioned"].ledger["pmu_trapped"] + 1
    assert demo["lazy"].ledger["registers_swapped"] == demo["partitioned"].ledger["registers_swapped"]


def test_perf_events_stand_behind_emulated_counters_only(demo: dict[str, DesignRun]) -> None:
    assert demo["emulated"].ledger["perf_created"] > 0
    assert demo["partitioned"].ledger["perf_created"] == demo["lazy"].ledger["perf_created"] == 0
    assert demo["emulated"].ledger["registers_swapped"] == 0


@pytest.mark.parametrize("design", DESIGNS)
def test_the_overhead_is_the_ledger_at_the_prices_of_the_table(demo: dict[str, DesignRun], design: str) -> None:
    run = demo[design]
    prices = {name: figure.cycles for name, figure in built_in().figures("max").items()}
    assert run.overhead_by == {name: price * run.ledger[name] for name, price in prices.items()}
    assert run.overhead_cycles == sum(price * run.ledger[name] for name, price in prices.items())
    # 1 GHz: a cycle is a nanosecond; the rest of the guest's time is its instructions, and nothing idles.
    assert run.overhead_seconds == pytest.approx(run.overhead_cycles / 1e9)
    assert run.overhead == pytest.approx(run.overhead_seconds / (run.seconds - run.overhead_seconds))


def test_a_run_that_is_interrupted_leaves_the_designs_before_it() -> None:
    machines = []

    def started(machine: object) -> None:
        machines.append(machine)
        if len(machines) == 2:
            machines[1].interrupted = True  # type: ignore[attr-defined]

    runs = compare_guest(Request("demo", core("max")), DESIGNS, started=started)
    assert [run.design for run in runs] == ["emulated"]


# ---- a scenario -------------------------------------------------------------------------------------------------


def test_a_scenarios_guests_count_what_happened_under_every_design(tmp_path: Path) -> None:
    path = tmp_path / "beside.toml"
    path.write_text(BESIDE_HOST)
    runs = {run.design: run for run in compare_scenario(load(path), DESIGNS)}
    for run in runs.values():
        for line in run.printed:
            counted, _, happened = line.rpartition(" ")[0].rpartition(" ")[0], *line.rpartition(" of ")[1:]
            assert counted.endswith(happened), line
    assert runs["emulated"].printed == runs["partitioned"].printed == runs["lazy"].printed
    assert len(runs["fixed-counters-only"].printed) == 3, "the cycles of three vCPUs"
    lost = {design: run.lost_ns for design, run in runs.items()}
    # Six events of the host, and six counters besides the cycle counter, which the guest has in any case.
    assert lost.pop("fixed-counters-only") == 0
    assert all(ns for ns in lost.values())
    assert runs["partitioned"].ledger["rescheduled"] > 0 == runs["emulated"].ledger["rescheduled"]


def test_a_vm_that_a_design_cannot_have_is_refused_before_any_has_run(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    path.write_text(BESIDE_HOST.replace("counters = 4", 'counters = 0\ndesign = "emulated"'))
    told: list[str] = []
    line = "vm a, partitioned: counters 0: core neoverse-n1 can give a guest 1 to 6"
    with pytest.raises(CountError, match=line):
        compare_scenario(load(path), DESIGNS, progress=told.append)
    assert told == []


# ---- the command ------------------------------------------------------------------------------------------------


def test_the_table_has_80_columns_and_says_where_guests_measured_something_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["compare", "demo"]) == 0
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 80
    assert err == ""
    assert "  emulated     demo: cycles 200\n  partitioned  demo: cycles 300\n" in out
    assert [line.split()[0] for line in out.splitlines() if " differs from " in line] == list(DESIGNS[1:])


def test_json_has_a_design_after_the_other_in_the_order_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "demo", "--designs", "lazy,emulated", "--json", "--counters", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [run["design"] for run in result["designs"]] == ["lazy", "emulated"]
    first, second = result["designs"]
    assert (first["differences"], first["counters"], second["counters"]) == ([], 3, 3)
    empty_window = second["differences"][0]
    assert ("INST_RETIRED 4" in empty_window["first"], "INST_RETIRED 3" in empty_window["here"]) == (True, True)


def test_a_chart_is_the_same_bytes_each_time(demo: dict[str, DesignRun]) -> None:
    for kind, begin in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        charts = {compare_report.plot("demo", list(demo.values()), kind) for _ in range(2)}
        assert len(charts) == 1
        assert charts.pop().startswith(begin)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--designs", "lazy,lazy"], "--designs: 'lazy': twice: expected some of emulated, partitioned, lazy,"),
        (["--designs", "all"], "--designs: 'all': no design: expected some of emulated, partitioned, lazy,"),
        (["--designs", ""], "--designs: '': no design: expected some of"),
        (["--plot", "chart.pdf"], "--plot: 'chart.pdf': expected the name of a .png or .svg file"),
        (["--core", "cortex-a76", "--counters", "7"], "counters 7: core cortex-a76 can give a guest 0 to 6"),
        (["--plot", "/nowhere/chart.svg"], "plot: /nowhere/chart.svg: cannot be written"),
    ],
)
def test_bad_words_get_their_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main(["compare", "demo", *words])
    except SystemExit as end:
        status = int(str(end.code))
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert line in " ".join(err.split())


def test_a_scenario_takes_no_options_of_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", "examples/contention.toml", "--smp", "2"])
    assert end.value.code == 2
    assert "argument --smp: not of a scenario" in capsys.readouterr().err
