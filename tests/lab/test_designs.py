"""`pmuvisor designs`, and that docs/designs.md has the same table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pmuvisor import cli
from pmuvisor.arch.cores import core
from pmuvisor.board import machine
from pmuvisor.board.machine import Config, CountError
from pmuvisor.lab.designs import ASPECTS, DESIGNS, Design

PAGE = Path(__file__).parents[2] / "docs" / "designs.md"


def test_the_table_has_every_design_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["designs"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "…" not in out
    assert all(part in out for design in DESIGNS for part in design.name.split("-"))
    assert [line.split("  ")[0] for line in out.splitlines() if line[:1].isalpha()] == list(ASPECTS.values())


def test_the_json_has_every_design_with_all_that_is_said_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["designs", "--json"]) == 0
    assert [Design(**each) for each in json.loads(capsys.readouterr().out)] == list(DESIGNS)
    assert [field.name for field in dataclasses.fields(Design)] == ["name", *ASPECTS]


def test_the_designs_are_those_that_run_in_the_same_order() -> None:
    names = [design.name for design in DESIGNS]
    assert names == list(machine.DESIGNS) == list(cli.DESIGNS)
    assert list(machine.DESIGNS.values()) == list(range(len(DESIGNS)))


def test_the_page_has_the_same_table_and_a_section_for_each_design() -> None:
    lines = PAGE.read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert table[0] == ["", *(design.name for design in DESIGNS)]
    assert table[2:] == [[title, *(getattr(design, field) for design in DESIGNS)] for field, title in ASPECTS.items()]
    assert [line[3:] for line in lines if line.startswith("## ")][:4] == [design.name for design in DESIGNS]


@pytest.mark.parametrize(
    ("name", "on", "lowest"),
    [
        ("emulated", "cortex-a76", 0),
        ("partitioned", "cortex-a76", 1),
        ("partitioned", "max", 0),  # FEAT_HPMN0
        ("lazy", "cortex-a76", 1),
        ("fixed-counters-only", "cortex-a76", 0),
    ],
)
def test_a_guest_gets_as_many_event_counters_as_the_table_says(name: str, on: str, lowest: int) -> None:
    of = core(on)
    highest = 0 if name == "fixed-counters-only" else of.event_counters
    for wanted in range(-1, of.event_counters + 2):
        config = Config(of, counters=wanted, design=name)
        if lowest <= wanted <= highest:
            assert config.guest_counters() == wanted
        else:
            with pytest.raises(CountError):
                config.guest_counters()
