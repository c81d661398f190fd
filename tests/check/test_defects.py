"""The catalogue: each defect is found, breaks what a reviewer said, and its trace is one that CPython replays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pmuvisor.check import catalogue, defects, models, plain, properties, story
from pmuvisor.check.explore import Exploration, ReplayError
from pmuvisor.check.found import Violation
from pmuvisor.check.models import PRESETS
from pmuvisor.cli import EXPLORATIONS, EXPLORATIONS_OF_SPE, EXPLORED, main

BREAKS = {
    "pmcr-p-from-el2": "isolation",
    "guest-mask-and": "guest-registers",
    "cycle-through-pmxevcntr": "guest-counts",
    "leave-instruction-counter": "host-counts",
    "resched-not-between": "host-counts",
    "resched-skipped": "host-counts",
    "reservation-kept-after-put": "host-back",
    "overflow-dropped": "overflows",
    "overflow-to-host": "overflows",
    "filter-at-write-only": "filtered",
    "lazy-some-registers-only": "guest-registers",
    "lazy-unguarded-transition": "guest-registers",
    "lazy-directed-load": "guest-counts",
    "lazy-no-upfront-load": "guest-counts",
    "lazy-zero-not-free": "costs-nothing",
    "fast-path-before-load": "isolation",
    "handled-on-unsupported-cpu": "isolation",
    "hpmn-not-sanitised": "hpmn-legal",
    "hpmn-zero": "hpmn-legal",
    "hpme-clear": "host-counts",
    "el2-counted": "guest-counts",
    "fixed-stale-event": "guest-counts",
    "hetero-cycle-stuck": "guest-counts",
    "fixed-after-filter": "attributes",
    "spe-owner-before-drain": "translated",
    "spe-owner-not-synchronised": "translated",
    "spe-irq-race": "translated",
    "spe-enabled-with-service": "profiled",
    "spe-irq-left-raised": "pmbirq",
    "spe-host-not-resumed": "resumed",
}
"""What the review, or the series' own words, say that each does, as the property that has a sentence for it."""


def test_the_catalogue_has_the_defects_of_all_designs_once_each() -> None:
    assert [defect.name for defect in catalogue.ALL] == list(BREAKS)


@pytest.mark.parametrize("defect", catalogue.ALL, ids=[defect.name for defect in catalogue.ALL])
def test_a_defect_breaks_what_its_review_says_and_the_trace_replays(defect: defects.Defect) -> None:
    model, replaced = catalogue.named(defect.preset, defect.design), {defect.sound: defect.defective}
    found = plain.explore(model, replaced)
    assert found.violation is not None
    assert model.properties[found.violation.property].name == BREAKS[defect.name]
    exploration = Exploration(model, replaced)
    assert len(exploration.replay(found.violation)) == len(found.violation.actions) + 1
    with pytest.raises(ReplayError):
        Exploration(model).replay(found.violation)


def test_a_story_says_who_does_what_and_what_becomes_of_it() -> None:
    """By hand: P at EL2 zeroes event counter 1, which the host's event has been given."""
    defect = defects.ALL[0]
    exploration = Exploration(models.model(PRESETS["trapped"], "partitioned"), {defect.sound: defect.defective})
    words = [action.words for action in exploration.model.actions]
    way = (
        "the next thread comes to CPU 0, and its vCPU is loaded",
        "the host opens event 0, CPU_CYCLES on CPU 0",
        "CPU 0 enters the guest",
        "the guest on CPU 0 writes 0x3 to PMCR_EL0",
        "KVM handles the access that exited on CPU 0",
    )
    violation = Violation(properties.ISOLATION, tuple(map(words.index, way)))
    lines = story.tell(exploration.model, exploration.replay(violation), violation)
    told = "\n".join(lines)
    assert [line[5:] for line in lines if line[:3].strip().isdigit()] == list(way)
    assert "vCPU 0: residency: FREE -> GUEST_OWNED" in told
    assert "CPU 0: PMEVCNTR1_EL0: 0xf -> 0" in told
    assert "ought to have: PMEVCNTR1" not in told
    assert lines[-2].startswith("broken: isolation: no guest access changes a host counter")


# ---- the commands -------------------------------------------------------------------------------------------


def test_a_defect_is_told_at_80_columns_with_exit_status_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert main(["check", "--defect", "hpmn-zero", "--json", str(out)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80
    assert any(line.startswith("broken: hpmn-legal") for line in printed)
    result = json.loads(out.read_text())
    assert result["violation"]["property"] == "hpmn-legal"
    assert len(result["violation"]["trace"]) == 1
    assert result["complete"] is False


def test_a_property_that_is_not_asked_for_is_not_broken() -> None:
    defect = next(defect for defect in defects.ALL if defect.name == "hpmn-zero")
    asked = 1 << properties.ISOLATION
    replaced = {defect.sound: defect.defective}
    found = plain.explore(models.model(PRESETS[defect.preset], defect.design), replaced, asked, most=200)
    assert found.violation is None
    assert models.machine(PRESETS["tiny"], models.DESIGNS["lazy"], asked).asked == asked


def test_every_defect_is_listed_with_its_source_and_effect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["defects", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["defects"]
    assert {row["name"] for row in rows} == set(BREAKS)
    assert all(row["source"] and row["effect"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--defect", "x"], "argument --defect: 'x': expected one of pmcr-p-from-el2, guest-mask-and,"),
        (["--preset", "huge"], "argument --preset: invalid choice: 'huge'"),
    ],
)
def test_what_is_not_known_is_refused(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check", *arguments])
    assert end.value.code == 2
    assert line in capsys.readouterr().err


def test_a_preset_is_refused_in_a_design_that_it_cannot_be_of(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--preset", "spe", "--design", "lazy"], ["--preset", "tiny", "--design", "spe"]):
        assert main(["check", *arguments]) == 2
        expected = f"design: {arguments[3]}: expected one that preset {arguments[1]} can be of: "
        assert expected in capsys.readouterr().err


def test_the_command_line_knows_all_presets_and_designs() -> None:
    assert (*EXPLORATIONS, *EXPLORATIONS_OF_SPE) == catalogue.PRESETS
    assert [name for name in catalogue.PRESETS if catalogue.fits(name, "spe")] == list(EXPLORATIONS_OF_SPE)
    assert (*models.DESIGNS, "spe") == EXPLORED
    assert catalogue.default_preset(None) == "tiny"
    assert catalogue.default_preset("spe") == "spe"


def test_a_checkpoint_that_is_none_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.write_bytes(b"no")
    assert main(["check", "--checkpoint", str(file)]) == 2
    expected = f"checkpoint: {file}: it is no checkpoint: expected a checkpoint of this exploration"
    assert expected in capsys.readouterr().err
    assert file.read_bytes() == b"no"
