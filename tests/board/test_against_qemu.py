"""Real code against QEMU: the board and QEMU, counting instructions, print the same, instruction for instruction.

What a program prints on the board is also held to counts by hand, so that two that are wrong alike are noticed.
Where QEMU is known to deviate, KNOWN says why and what it prints instead.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from board.el1_by_hand import BY_HAND
from board.el1_deviations import KNOWN
from board.el1_programs import (
    FOLDER,
    PROGRAMS,
    Printed,
    build,
    needs_compiler,
    needs_qemu,
    parse,
    run_on_board,
    run_on_qemu,
)
from board.el1_random import random_program
from pmuvisor.board import machine

pytestmark = needs_compiler


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def elf(program: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(FOLDER / f"{program}.S", tmp_path_factory.mktemp("el1"))


@pytest.fixture(scope="module")
def ours(program: str, elf: Path) -> Printed:
    return parse(program, run_on_board(elf))


def test_the_board_prints_what_was_counted_by_hand(program: str, ours: Printed) -> None:
    by_hand = BY_HAND[program]
    assert {label: ours.get(label) for label in by_hand} == by_hand


def test_what_is_printed_does_not_depend_on_how_long_a_slice_is(
    program: str, elf: Path, ours: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LONG_SLICE", 7)
    assert parse(program, run_on_board(elf)) == ours


@needs_qemu
def test_the_board_and_qemu_print_the_same_but_for_known_deviations(program: str, elf: Path, ours: Printed) -> None:
    known = {label: value for labels in KNOWN.get(program, {}).values() for label, value in labels.items()}
    theirs = parse(program, run_on_qemu(elf))
    assert list(theirs) == list(ours)
    assert theirs == ours | known
    assert [label for label, value in known.items() if ours[label] == value] == []  # a deviation that is none


@needs_qemu
@pytest.mark.parametrize("seed", range(24))
def test_a_random_program_prints_the_same_on_both(seed: int, tmp_path: Path) -> None:
    source = tmp_path / "random.S"
    source.write_text(random_program(seed))
    random_elf = build(source, tmp_path)
    assert parse("random", run_on_board(random_elf)) == parse("random", run_on_qemu(random_elf))


def test_every_program_has_counts_by_hand_and_no_deviation_is_of_none() -> None:
    assert sorted(BY_HAND) == PROGRAMS
    assert KNOWN.keys() <= BY_HAND.keys()
