"""`pmuvisor cores`, and a core that cannot run a guest."""

import json
import os
import subprocess
import sys

import pytest

from pmuvisor import cli
from pmuvisor.arch.cores import FIGURES, cores

HEAVY = {"numba", "unicorn", "z3", "capstone", "fdt", "elftools"}


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_list_has_a_line_for_each_core(capsys: pytest.CaptureFixture[str]) -> None:
    head, rule, *lines = printed(capsys, "cores").splitlines()
    assert head.split() == ["core", "PMU", "counters", "SPE", "MHz", "features"]
    assert set(rule) == {"─"}
    assert [line.split()[0] for line in lines] == list(cores())
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["neoverse-v1"] == ["PMUv3p4", "6", "SPEv1p1", "2600", "-"]
    assert rows["qemu-max"] == ["PMUv3p5", "6", "-", "1000", "FGT", "HPMN0"]
    assert rows["apple-m1"] == ["not", "PMUv3", "8", "-", "3204", "-"]


@pytest.mark.parametrize("name", [None, *cores()])
def test_what_is_printed_fits_80_columns(name: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "cores", *([name] if name else [])).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines == [line.rstrip() for line in lines]


@pytest.mark.parametrize("name", cores())
def test_a_core_is_shown_with_every_figure_and_every_source(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    of = cores()[name]
    out = printed(capsys, "cores", name)
    assert out.startswith(f"{name}: {of.about[:40]}")
    firsts = [line.split(" ", 1)[0] for line in out.splitlines() if line]
    for figure, source in of.sources.items():
        assert firsts.count(figure) == 1
        assert all(word in out for word in source.text.split() if len(word) < 40)
    assert ("Assumption: " in out) == any(source.assumed for source in of.sources.values())


def test_the_values_of_a_core_are_shown_in_the_manner_of_the_manuals(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line[:40] for line in printed(capsys, "cores", "cortex-a76").splitlines()]
    shown = {line.split()[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    assert (shown["idcode"], shown["midr"], shown["pmuver"]) == ("0x0b", "0x410fd0b0", "4")
    assert (shown["fgt"], shown["aarch32"], shown["events"]) == ("no", "yes", "0x0-0x5")


def test_the_json_has_each_value_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(printed(capsys, "cores", "--json"))
    assert [each["name"] for each in listed] == list(cores())
    assert {figure for each in listed for figure in each["figures"]} == set(FIGURES)
    (alone,) = json.loads(printed(capsys, "cores", "neoverse-n2", "--json"))
    assert alone in listed
    assert (alone["figures"]["pmmir"]["value"], alone["figures"]["pmmir"]["assumed"]) == (5, False)
    assert alone["figures"]["mhz"] == {
        "value": 3400,
        "source": cores()["neoverse-n2"].sources["mhz"].text,
        "assumed": True,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cores", "z80"], "pmuvisor: core 'z80': expected one of max, cortex-a55, "),
        (["run", "demo", "--core", "apple-m1"], "pmuvisor: core apple-m1: it has no PMUv3 registers "),
        (["run", "demo", "--core", "apple-m1", "--counters", "1"], "pmuvisor: core apple-m1: it has no PMUv3 regist"),
    ],
)
def test_a_core_that_is_not_there_or_cannot_be_partitioned_is_refused_in_one_line(
    words: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(said)


@pytest.mark.parametrize("words", [["cores"], ["cores", "--help"]])
def test_the_list_needs_no_engine(words: list[str]) -> None:
    program = f"import sys; from pmuvisor import cli\ntry: cli.main({words!r})\n"
    program += "finally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"COLUMNS": "80"}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not HEAVY & {name.split(".")[0] for name in done.stderr.split()}
