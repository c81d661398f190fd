"""Cost tables: the built-in one, a user's, `pmuvisor costs`, and what a run does with them."""

import json
from pathlib import Path

import pytest

from pmuvisor import cli
from pmuvisor.arch.cores import cores
from pmuvisor.board.clock import PRICED
from pmuvisor.lab import costs
from pmuvisor.lab.costs import CostError, built_in, load

WHOLE = '[[default.costs]]\nsource = "somebody"\n' + "".join(f"{name} = 10\n" for name in PRICED)


def refused(tmp_path: Path, text: str | bytes) -> str:
    """The line with which a file is refused, without the file's name."""
    path = tmp_path / "my.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CostError) as error:
        load(path)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


# ---- the built-in table -------------------------------------------------------------------------------------------


def test_the_neoverse_n1s_are_the_nanoseconds_that_were_measured_at_3_ghz() -> None:
    figures = built_in().figures("neoverse-n1")
    assert (figures["exits.hvc"].cycles, figures["exits.mmio"].cycles) == (306 * 3, 451 * 3)
    assert not figures["exits.hvc"].source.assumed
    assert all(figures[name].source.assumed for name in PRICED if name not in ("exits.hvc", "exits.mmio"))


@pytest.mark.parametrize("name", cores())
def test_every_core_has_a_cost_for_every_item_and_what_is_not_its_own_is_assumed(name: str) -> None:
    figures = built_in().figures(name)
    assert tuple(figures) == PRICED
    assert all(figure.cycles > 0 and len(figure.source.text) > 40 for figure in figures.values())
    assert name in built_in().by_core or all(figure.source.assumed for figure in figures.values())


def test_what_the_file_says_of_sums_holds() -> None:
    of = {name: figure.cycles for name, figure in built_in().figures("max").items()}
    assert of["exits.irq"] + of["interrupts_injected"] == 902 * 3
    assert of["registers_swapped"] == 14 * 3
    assert of["interrupts_injected"] == of["exits.mmio"] - of["exits.hvc"]
    assert of["loads"] == of["puts"] == 40 * of["registers_swapped"]
    assert of["overflows"] == 2 * 10 * of["registers_swapped"]
    assert of["perf_switched"] == 2 * 4 * of["registers_swapped"]
    assert of["rescheduled"] == 8 * of["perf_switched"]
    assert of["perf_enabled"] == of["perf_disabled"] == 300
    assert of["perf_read"] == 2 * of["registers_swapped"] + 300


# ---- a user's -----------------------------------------------------------------------------------------------------


def test_a_core_overrides_the_default(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    mine = '[[max.costs]]\nassumption = """two\n  words"""\nexits.wfi = 0\nloads = 10_000_000\n'
    path.write_text(WHOLE + mine)
    figures = load(path).figures("max")
    assert [figures[name].cycles for name in ("exits.wfi", "loads", "puts")] == [0, 10_000_000, 10]
    assert (figures["loads"].source.text, figures["loads"].source.assumed) == ("two words", True)
    assert load(path).figures("neoverse-n1")["loads"].cycles == 10


HEAD = '[[default.costs]]\nsource = "a"\n'
BAD = [
    ("", "default.costs: exits.mmio: missing: expected a whole number from 0 to 10000000, in cycles, with its source"),
    (WHOLE.replace("perf_read = 10\n", ""), "default.costs: perf_read: missing: expected a whole number"),
    (WHOLE.replace("loads = 10", "loads = -1"), "default.costs[0].loads: -1: expected a whole number from 0 to"),
    (WHOLE.replace("loads = 10", "loads = 10000001"), "default.costs[0].loads: 10000001: expected a whole number"),
    (WHOLE.replace("loads = 10", "loads = 1.5"), "default.costs[0].loads: 1.5: expected a whole number from 0 to"),
    (WHOLE.replace("loads = 10", "loads = true"), "default.costs[0].loads: true: expected a whole number from 0"),
    (WHOLE.replace("exits.hvc = 10", 'exits.hvc = "1"'), "default.costs[0].exits.hvc: '1': expected a whole number"),
    (WHOLE.replace("loads = 10", "load = 10"), "default.costs[0].load: unknown key (near: loads): expected one of"),
    (WHOLE.replace("exits.hvc", "exits.hcv"), "default.costs[0].exits.hcv: unknown key (near: hvc): expected one of"),
    (HEAD + "exits = 3\n", "default.costs[0].exits: 3: expected a table"),
    (HEAD, "default.costs[0]: no cost: expected one or more that the source is for"),
    (HEAD + "loads = 1\n" + HEAD + "loads = 1\n", "default.costs[1].loads: there is one already: expected each item"),
    (WHOLE.replace('source = "somebody"', ""), "default.costs[0]: neither: expected one 'source' or one 'assumption'"),
    (WHOLE.replace("source", 'assumption = "b"\nsource'), "default.costs[0]: source and assumption: expected one 's"),
    (WHOLE.replace('"somebody"', '" "'), "default.costs[0].source: ' ': expected a printable text of 1 to 1000"),
    (WHOLE.replace('"somebody"', '"\\u001b[2J"'), "default.costs[0].source: '\\x1b[2J': expected a printable text"),
    (WHOLE.replace('"somebody"', f'"{"x" * 1001}"'), "default.costs[0].source: 'xxxxxxxxxx"),
    (WHOLE.replace('"somebody"', "3"), "default.costs[0].source: 3: expected a printable text of 1 to 1000"),
    (WHOLE + "[neoverse-n7]\n", "neoverse-n7: unknown key (near: neoverse-"),
    (WHOLE + "[max]\ncpi = 1\n", "max.cpi: unknown key: expected one of costs"),
    (WHOLE + "[max]\n", "max.costs: missing: expected groups, each begun by [[max.costs]]"),
    (WHOLE + "[max]\ncosts = []\n", "max.costs: an empty list: expected groups, each begun by [[max.costs]]"),
    (WHOLE + "[max.costs]\nloads = 1\n", "max.costs: a table: expected groups, each begun by [[max.costs]]"),
    ("max = 3\n", "max: 3: expected a table"),
    ("default = [", "not TOML: "),
    (b"\xff", "byte 0: not UTF-8: expected a TOML file"),
    (b"#" * (1 << 20) + b"##", "too large: expected at most 1 MiB"),
]


@pytest.mark.parametrize(("text", "line"), BAD)
def test_a_file_that_cannot_be_used_is_refused_with_its_key(tmp_path: Path, text: str | bytes, line: str) -> None:
    assert refused(tmp_path, text).startswith(line)


@pytest.mark.parametrize("command", [["run", "demo"], ["costs"]])
def test_a_file_that_is_not_there_ends_the_command_with_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.toml"
    assert cli.main([*command, "--costs", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"pmuvisor: {path}: cannot be read: No such file or directory\n")


# ---- pmuvisor costs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cores())
def test_a_cores_costs_are_shown_in_80_columns_with_every_source(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "costs", name)
    assert out.startswith(f"{name}: costs in cycles, of which a microsecond has {cores()[name].mhz:,}\n")
    assert max(map(len, out.splitlines())) <= 80
    firsts = [line.split()[:2] for line in out.splitlines() if line]
    for item, figure in built_in().figures(name).items():
        assert [item, f"{figure.cycles:,}"] in firsts
        assert all(word in out for word in figure.source.text.split() if len(word) < 40)


def test_json_has_each_item_with_its_source_and_says_whether_it_is_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my.toml"
    path.write_text(WHOLE)
    out = json.loads(printed(capsys, "costs", "cortex-a76", "--costs", str(path), "--json"))
    assert (out["core"], out["mhz"], list(out["costs"])) == ("cortex-a76", 2400, list(PRICED))
    assert out["costs"]["loads"] == {"cycles": 10, "source": "somebody", "assumed": False}


# ---- a run --------------------------------------------------------------------------------------------------------


def run_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, object], str]:
    path = tmp_path / "out.json"
    assert cli.main(["run", "demo", "--json", str(path), *words]) == 0
    result: dict[str, object] = json.loads(path.read_text())
    return result, capfd.readouterr().out


def test_a_run_prices_its_ledger_by_the_table_of_its_core(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result, out = run_demo(tmp_path, capfd, "--core", "neoverse-n1")
    ledger = result["ledger"]
    assert isinstance(ledger, dict)
    figures = built_in().figures("neoverse-n1")
    overhead = sum(figure.cycles * ledger.get(name, 0) for name, figure in figures.items())
    assert result["overhead_cycles"] == overhead > 0
    assert result["overhead_seconds"] == overhead * 2 // 5 / 1e9
    parts = [result[name] for name in ("virtual_seconds", "overhead_seconds", "idle_seconds", "instructions")]
    virtual, charged, idle, instructions = (float(str(part)) for part in parts)
    assert virtual == pytest.approx(charged + idle + instructions / 2.5e9, abs=2e-9)
    assert result["overhead_share"] == pytest.approx(charged / virtual, abs=1e-6)
    assert f"  virtualization, {100 * charged / virtual:.1f} %" in out
    assert "demo: all counts exact" in out


def test_a_users_table_takes_the_place_of_the_built_in_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.toml"
    path.write_text(WHOLE.replace("= 10\n", "= 0\n"))
    result, _ = run_demo(tmp_path, capfd, "--costs", str(path))
    assert (result["overhead_cycles"], result["overhead_share"]) == (0, 0)
    path.write_text(WHOLE)
    result, _ = run_demo(tmp_path, capfd, "--costs", str(path))
    ledger = result["ledger"]
    assert isinstance(ledger, dict)
    assert result["overhead_cycles"] == 10 * sum(ledger.get(name, 0) for name in PRICED)


def test_the_built_in_file_is_the_one_that_the_package_has() -> None:
    path = Path(costs.__file__).parent / costs.FILE
    assert load(path).by_core == built_in().by_core


SCENARIO = '[host]\ncpus = ["max"]\n[[vm]]\nname = "a"\nguest = "{guest}"\n'


def test_a_scenarios_guest_with_code_is_priced_by_a_users_table(tmp_path: Path) -> None:
    mine, path, out = tmp_path / "my.toml", tmp_path / "x.toml", tmp_path / "out"
    mine.write_text(WHOLE)
    path.write_text('duration = "20ms"\n' + SCENARIO.format(guest="demo"))
    assert cli.main(["run", str(path), "--costs", str(mine), "--json", str(out)]) == 0
    (vm,) = json.loads(out.read_text())["vms"]
    assert vm["overhead_cycles"] == 10 * sum(vm["ledger"][name] for name in PRICED) > 0
    assert vm["overhead_seconds"] == vm["overhead_cycles"] / 1e9


def test_a_table_is_refused_where_no_guest_would_feel_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, path = tmp_path / "my.toml", tmp_path / "x.toml"
    mine.write_text(WHOLE)
    path.write_text('duration = "1ms"\n' + SCENARIO.format(guest="busy"))
    assert cli.main(["run", str(path), "--costs", str(mine)]) == 2
    expected = f"pmuvisor: costs: {path} has no guest with code: expected one, to feel what they cost\n"
    assert capsys.readouterr() == ("", expected)
