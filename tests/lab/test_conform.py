"""pmuvisor conform: no mismatch with QEMU's and KVM's own answers, rules no wider than they say, and bad files.

The answers of QEMU and KVM are not part of this repository. `qemu_pmu` and `kvm_nested_pmu` are what both do, written
down from their sources without arch/; where the answers are there, they give every one of them.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lab.kvm_nested_pmu import GuestKvmPmu, NestedKvmPmu
from lab.qemu_pmu import (
    CCFILTR,
    CCNTR,
    CEID0,
    CEID1,
    CNTENCLR,
    CNTENSET,
    EVCNTR,
    EVTYPER,
    FGR,
    FGW,
    INTENCLR,
    INTENSET,
    MDCR,
    MMIR,
    OVSCLR,
    OVSSET,
    PMCR,
    SELR,
    SKIPPED_READ,
    SWINC,
    USERENR,
    XEVCNTR,
    XEVTYPER,
    Answer,
    Operation,
    QemuPmu,
    answer_bytes,
    operations_of,
)
from pmuvisor import cli
from pmuvisor.lab import vectors
from pmuvisor.lab.replay import REFERENCES, Report, replay
from pmuvisor.lab.vectors import Vectors

SHARED = Path(__file__).resolve().parents[3] / "shared" / "oracles"
FILES = {"bare-1": "bare", "bare-2": "bare", "part-1": "part", "part-2": "part", "el1-1": "el1", "el1-2": "el1"}
MODELS: dict[str, Callable[[], QemuPmu | NestedKvmPmu]] = {
    "bare": QemuPmu,
    "part": NestedKvmPmu,
    "el1": GuestKvmPmu,
}
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
with_answers = pytest.mark.skipif(not (SHARED / "vectors").exists(), reason="no answers in ../shared/oracles")
with_generator = pytest.mark.skipif(not (SHARED / "genops.py").exists(), reason="no generator in ../shared/oracles")
DONE: Answer = (0, 0, 0)
UNDEFINED = 0x0200_0000
NSH = 1 << 27


def reads(value: int) -> Answer:
    return value, 0, 0


def skipped(el: int, esr: int) -> Answer:
    return SKIPPED_READ, el, esr


def operation_bytes(operations: Sequence[Operation]) -> bytes:
    return b"".join(struct.pack("<BBB5xQ", *operation) for operation in operations)


def conform(reference: str, operations: Sequence[Operation], answers: list[Answer]) -> Report:
    return replay(REFERENCES[reference], Vectors(operation_bytes(operations), answer_bytes(answers)))


def answers_of(reference: str, operations: Sequence[Operation]) -> list[Answer]:
    model = MODELS[reference]()
    return [model.answer(*operation) for operation in operations]


# ---- what QEMU and KVM answered -------------------------------------------------------------------------------------


@with_answers
@pytest.mark.parametrize("name", FILES)
def test_the_stand_ins_answer_as_qemu_and_kvm_did(name: str) -> None:
    operations = list(operations_of(gzip.decompress((SHARED / "vectors" / f"{name}.ops.gz").read_bytes())))
    theirs = gzip.decompress((SHARED / "vectors" / f"{name}.res.gz").read_bytes())
    assert answer_bytes(answers_of(FILES[name], operations)) == theirs


@with_answers
@pytest.mark.parametrize("name", FILES)
def test_no_answer_of_theirs_is_a_mismatch_and_the_document_has_the_counts(name: str) -> None:
    files = (SHARED / "vectors" / f"{name}.{end}.gz" for end in ("ops", "res"))
    report = replay(REFERENCES[FILES[name]], vectors.read_vectors(*files))
    assert report.mismatches == 0
    assert report.equal + sum(report.allowed.values()) == report.operations
    documented = {rule: counts[name] for rule, counts in documented_counts().items() if name in counts}
    if name.startswith("el1"):
        assert report.equal == report.operations
        return
    assert documented == {"as the architecture says": report.equal} | report.allowed


def documented_counts() -> dict[str, dict[str, int]]:
    """The tables of docs/conformance.md with a column for each file: counts by row and column."""
    found: dict[str, dict[str, int]] = {}
    columns: list[str] = []
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if cells[1:] and cells[1] in FILES:
            columns = cells[1:]
        elif columns and re.fullmatch(r"[\d,]+", cells[-1]):
            counts = (int(cell.replace(",", "")) for cell in cells[1:])
            found.setdefault(cells[0], {}).update(zip(columns, counts, strict=True))
        elif not line.startswith("|"):
            columns = []
    return found


@with_generator
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("reference", MODELS)
def test_operations_of_other_seeds_have_no_mismatch(reference: str, seed: int, tmp_path: Path) -> None:
    file = tmp_path / "operations"
    subprocess.run([sys.executable, SHARED / "genops.py", file, "10000", str(1000 + seed), reference], check=True)
    operations = list(operations_of(file.read_bytes()))
    assert conform(reference, operations, answers_of(reference, operations)).mismatches == 0


def rare_operations(rng: random.Random, reference: str, count: int) -> list[Operation]:
    """Operations with more of what is rare: counters about to overflow into CHAIN, SEL beyond N, traps, E toggled."""
    ordinary = (*(SWINC,) * 4, PMCR, CNTENSET, OVSCLR, SELR, CCNTR, XEVTYPER, XEVCNTR, USERENR, OVSSET, INTENSET)
    # As genops.py begins: what KVM makes of registers that are UNKNOWN at reset is not zero.
    out: list[Operation] = [(2, 1, register + n, 0) for n in range(6) for register in (EVTYPER, EVCNTR)]
    out += [(2, 1, register, 0xFFFF_FFFF) for register in (CNTENCLR, INTENCLR, OVSCLR)]
    out += [(2, 1, register, 0) for register in (CCFILTR, CCNTR, USERENR, SELR)]
    for _ in range(count):
        el = rng.choice([2, 1, 1, 0])
        n = rng.randrange(6)
        of_counters = (EVCNTR + n, EVCNTR + n, EVTYPER + n, EVTYPER + n)
        register = rng.choice((*ordinary, *of_counters, CNTENCLR, INTENCLR, CCFILTR))
        if rng.random() < 0.04:
            register = rng.choice([CEID0, CEID1, MMIR, EVCNTR + rng.randrange(31), EVTYPER + rng.randrange(31)])
        value = rng.choice([0, 1, 0x3F, rng.getrandbits(32), rng.getrandbits(64)])
        if register == PMCR:
            value = rng.choice([0, 1, 1, 1, 1, 0x81, rng.getrandbits(8) & ~8])
        elif register in (XEVCNTR, CCNTR) or EVCNTR <= register < EVTYPER:
            value = rng.choice([0, 0xFFFF_FFFF, (1 << 64) - 1, (1 << 64) - (1 << 32) - 1])
        elif register >= EVTYPER or register == XEVTYPER:
            value = rng.choice([0, 0, NSH, 0x3F << 24, rng.getrandbits(8) << 24])
            value |= rng.choice([n % 2 * 0x1E, n % 2 * 0x1E, 0, 0x1E, 0x77])
        elif register == SELR:
            value = rng.choice([n, n, 6, 31, rng.randrange(32)])
        write = rng.randrange(2) if register not in (CEID0, CEID1, MMIR, SWINC) else int(register == SWINC)
        out.append((el, write, register, value if write else 0))
        if reference != "el1" and rng.random() < 0.05:
            controls = sum(rng.getrandbits(1) << bit for bit in (5, 7, 17, 23, 26)) | (rng.random() < 0.3) << 6
            out.append((2, 1, MDCR, controls | (6 if reference == "bare" else rng.randrange(1, 7))))
            out.append((2, 1, rng.choice([FGR, FGW]), rng.choice([0, 0, 1 << rng.randrange(12, 20), 1 << 20, 1 << 21])))
    return out


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reference", MODELS)
def test_rare_operations_have_no_mismatch(reference: str, seed: int) -> None:
    operations = rare_operations(random.Random(seed), reference, 10_000)
    report = conform(reference, operations, answers_of(reference, operations))
    assert report.mismatches == 0
    unused = {name for name, count in report.allowed.items() if count == 0}
    assert unused <= {"no-fgt-of-pmuserenr"}


# ---- each rule, by hand ---------------------------------------------------------------------------------------------

Case = list[tuple[Operation, Answer]]
TPM_ALL = 0x46
"""MDCR_EL2: TPM, and HPMN 6."""
BY_HAND: dict[tuple[str, str], tuple[int, Case]] = {
    ("bare", "pmuserenr-past-tpm"): (
        1,
        [
            ((2, 1, USERENR, 8), DONE),  # ER
            ((2, 1, EVCNTR, 5), DONE),
            ((2, 1, MDCR, TPM_ALL), DONE),
            ((0, 1, EVCNTR, 1), (0, 1, 0x6230_F810)),  # EN is clear: to EL1
            ((1, 0, EVCNTR, 0), skipped(2, 0x6230_F811)),
            ((0, 0, EVCNTR, 0), reads(5)),
        ],
    ),
    ("bare", "pmxev-beyond-n-raz-wi"): (
        4,
        [
            ((2, 1, SELR, 6), DONE),
            ((1, 1, XEVTYPER, 0x77), DONE),
            ((2, 0, XEVTYPER, 0), reads(0)),
            ((2, 1, SELR, 31), DONE),
            ((1, 0, XEVCNTR, 0), reads(0)),
            ((2, 1, FGR, 1 << 12), DONE),
            ((1, 0, XEVCNTR, 0), skipped(2, 0x6234_E41B)),
        ],
    ),
    ("bare", "no-chain-event"): (
        1,
        [
            ((2, 1, EVTYPER, NSH), DONE),
            ((2, 1, EVTYPER + 1, NSH | 0x1E), DONE),
            ((2, 1, EVCNTR, 0xFFFF_FFFF), DONE),
            ((2, 1, CNTENSET, 3), DONE),
            ((2, 1, PMCR, 1), DONE),
            ((2, 1, SWINC, 1), DONE),
            ((2, 0, EVCNTR, 0), reads(1 << 32)),
            ((2, 0, OVSSET, 0), reads(1)),
            ((2, 0, EVCNTR + 1, 0), reads(0)),  # the architecture: 1
        ],
    ),
    ("bare", "filter-bits-without-el3"): (
        1,
        [
            ((2, 1, EVTYPER, 0x2000_0000), DONE),  # NSK without P: filters EL1 where there is an EL3
            ((2, 1, CNTENSET, 1), DONE),
            ((2, 1, PMCR, 1), DONE),
            ((1, 1, SWINC, 1), DONE),
            ((2, 0, EVTYPER, 0), reads(0x2000_0000)),
            ((2, 0, EVCNTR, 0), reads(1)),
        ],
    ),
    ("bare", "no-fgt-of-pmuserenr"): (
        1,
        [((2, 1, USERENR, 9), DONE), ((2, 1, FGR, 1 << 57), DONE), ((1, 0, USERENR, 0), reads(9))],
    ),
    ("part", "trap-to-el2-before-pmuserenr"): (
        1,
        [((2, 1, MDCR, TPM_ALL), DONE), ((0, 0, EVCNTR, 0), skipped(2, 0x6230_F811))],
    ),
    ("part", "pmuserenr-undefined"): (1, [((0, 0, PMCR, 0), skipped(1, UNDEFINED))]),
    ("part", "no-fgt-of-pmxev"): (
        1,
        [((2, 1, FGR, 1 << 12), DONE), ((2, 1, EVCNTR, 9), DONE), ((1, 0, XEVCNTR, 0), reads(9))],
    ),
    ("part", "pmxev-beyond-n-traps-first"): (
        1,
        [
            ((2, 1, SELR, 9), DONE),
            ((1, 0, XEVTYPER, 0), skipped(1, UNDEFINED)),
            ((2, 1, MDCR, TPM_ALL), DONE),
            ((1, 0, XEVTYPER, 0), skipped(2, 0x6232_E41B)),
        ],
    ),
    ("part", "pmxevcntr-cycle-counter"): (
        2,
        [
            ((2, 1, SELR, 31), DONE),
            ((1, 1, XEVCNTR, 7), DONE),
            ((2, 0, CCNTR, 0), reads(7)),
            ((2, 0, XEVCNTR, 0), reads(7)),
        ],
    ),
    ("part", "second-range-readable"): (
        1,
        [
            ((2, 1, MDCR, 2), DONE),
            ((2, 1, CNTENSET, 0x3F), DONE),
            ((1, 1, CNTENCLR, 0x3F), DONE),  # only what EL1 has
            ((1, 0, CNTENSET, 0), reads(0x3C)),  # the architecture: 0
        ],
    ),
    ("part", "sw-incr-gated-by-pmcr-e-alone"): (
        1,
        [
            ((2, 1, CNTENSET, 1), DONE),  # and PMEVTYPER0_EL0.NSH is 0: EL2 is not counted
            ((2, 1, PMCR, 1), DONE),
            ((2, 1, SWINC, 1), DONE),
            ((2, 0, EVCNTR, 0), reads(1)),
        ],
    ),
    ("part", "chain-across-hpmn"): (
        1,
        [
            ((2, 1, MDCR, 0x81), DONE),  # HPME, HPMN 1
            ((2, 1, EVTYPER + 1, 0x1E), DONE),
            ((2, 1, EVCNTR, 0xFFFF_FFFF), DONE),
            ((2, 1, CNTENSET, 3), DONE),
            ((2, 1, PMCR, 1), DONE),
            ((1, 1, SWINC, 1), DONE),
            ((2, 0, EVCNTR + 1, 0), reads(1)),
        ],
    ),
    ("part", "pmcr-e-clears-second-range"): (
        1,
        [
            ((2, 1, MDCR, 2), DONE),
            ((2, 1, INTENSET, 0x8000_003F), DONE),
            ((1, 1, PMCR, 1), DONE),
            ((2, 0, INTENSET, 0), reads(0x8000_0003)),
        ],
    ),
    ("part", "pmccfiltr-event-bits"): (
        2,
        [
            ((2, 1, CCFILTR, NSH | 0x1E), DONE),
            ((2, 0, CCFILTR, 0), reads(NSH | 0x1E)),
            ((2, 1, SELR, 31), DONE),
            ((1, 1, XEVTYPER, 0x123), DONE),
            ((2, 0, CCFILTR, 0), reads(0x123)),
        ],
    ),
}


def test_every_rule_has_a_case_and_its_place_in_the_document() -> None:
    rules = {(name, rule.name) for name, reference in REFERENCES.items() for rule in reference.rules}
    assert rules == set(BY_HAND)
    text = DOCUMENT.read_text()
    assert [rule for _, rule in rules if f"`{rule}`" not in text] == []


@pytest.mark.parametrize(("reference", "rule"), BY_HAND)
def test_a_rule_explains_what_it_says(reference: str, rule: str) -> None:
    count, case = BY_HAND[reference, rule]
    report = conform(reference, [operation for operation, _ in case], [answer for _, answer in case])
    assert report.first_mismatches == []
    assert {name: n for name, n in report.allowed.items() if n} == {rule: count}
    assert report.equal == len(case) - count


@pytest.mark.parametrize(("reference", "rule"), BY_HAND)
def test_a_rule_explains_no_other_answer(reference: str, rule: str) -> None:
    """The last answer depends on the rule: with any other value, syndrome or Exception level it is a mismatch."""
    _, case = BY_HAND[reference, rule]
    *before, (last, (value, el, esr)) = case
    others = [(value ^ (1 << bit), el, esr) for bit in (40, 41, 63)]
    others += [(value, 3, esr), (value, el, esr ^ 1 << 17), (value, el, esr ^ 1 << 26)]
    for other in others:
        operations = [*(operation for operation, _ in before), last]
        report = conform(reference, operations, [*(answer for _, answer in before), other])
        assert report.mismatches == 1


def test_what_the_architecture_says_is_no_mismatch_where_a_rule_applies() -> None:
    """A QEMU that traps by TPM what PMUSERENR_EL0.ER lets through."""
    operations = [(2, 1, USERENR, 8), (2, 1, MDCR, TPM_ALL), (0, 0, SELR, 0)]
    report = conform("bare", operations, [DONE, DONE, skipped(2, 0x623A_E419)])
    assert (report.equal, report.mismatches) == (3, 0)


def test_all_instructions_have_the_register_of_the_first_trap() -> None:
    """Operations do not say Rt: X5 here, and X6 in the last."""
    operations = [(1, 1, INTENSET, 1)] * 3
    answers = [(0, 2, 0x6232_24BC) for _ in operations]
    trapped = [(2, 1, FGW, 1 << 17), *operations]
    assert conform("bare", trapped, [DONE, *answers]).mismatches == 0
    assert conform("bare", trapped, [DONE, *answers[:2], (0, 2, answers[2][2] ^ 3 << 5)]).mismatches == 1


def test_an_access_without_an_instruction_answers_nothing() -> None:
    operations = [(1, 0, SWINC, 0), (1, 1, CEID0, 1), (2, 1, CEID1, 1), (2, 1, MMIR, 1)]
    report = conform("bare", operations, [reads(77), DONE, DONE, DONE])
    assert report.equal == 4
    assert conform("bare", operations[:1], [skipped(1, UNDEFINED)]).mismatches == 1


def test_after_a_mismatch_the_state_is_the_one_that_was_answered() -> None:
    operations = [
        *((2, 0, EVCNTR + 3, 0), (2, 0, EVCNTR + 3, 0)),
        *((1, 1, EVTYPER + 2, 0x77), (2, 0, EVTYPER + 2, 0)),
        *((2, 1, CNTENSET, 0x3F), (2, 0, CNTENCLR, 0), (2, 0, CNTENSET, 0)),
        *((2, 0, PMCR, 0), (2, 0, PMCR, 0)),
    ]
    answers = [reads(5), reads(5), (0, 1, UNDEFINED), reads(0), DONE, reads(0x15), reads(0x15)]
    answers += [reads(0x4101_3080), reads(0x4101_3080)]
    report = conform("bare", operations, answers)
    assert [mismatch.number for mismatch in report.first_mismatches] == [0, 2, 5, 7]
    assert report.mismatches == 4


def test_a_choice_that_the_architecture_leaves_is_reported() -> None:
    case = BY_HAND["part", "chain-across-hpmn"][1]
    report = conform("part", [operation for operation, _ in case], [answer for _, answer in case])
    assert report.as_json()["unpredictable"] == ["chain"]


@pytest.mark.parametrize("reference", MODELS)
def test_any_answers_to_any_operations_are_counted_each_once(reference: str) -> None:
    rng = random.Random(1)
    operations = [
        (rng.randrange(3), rng.randrange(2), rng.randrange(79), rng.getrandbits(64))
        if rng.random() < 0.9
        else (2, 1, MDCR + rng.randrange(3), rng.getrandbits(64))
        for _ in range(5000)
    ]
    answers = [
        (rng.getrandbits(64), rng.choice([0, 0, 1, rng.getrandbits(32)]), rng.getrandbits(32)) for _ in operations
    ]
    report = conform(reference, operations, answers)
    assert report.equal + sum(report.allowed.values()) + report.mismatches == 5000


# ---- the command line -----------------------------------------------------------------------------------------------

OPERATIONS = [operation for operation, _ in BY_HAND["bare", "no-chain-event"][1]]
ANSWERS = [answer for _, answer in BY_HAND["bare", "no-chain-event"][1]]


def write_files(folder: Path, operations: bytes, answers: bytes, pack: bool = False) -> list[str]:
    out = []
    for name, data in (("ops", operations), ("res", answers)):
        path = folder / (f"{name}.gz" if pack else name)
        path.write_bytes(gzip.compress(data) if pack else data)
        out.append(str(path))
    return out


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gzip"])
def test_a_replay_without_mismatch_ends_with_0(pack: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = write_files(tmp_path, operation_bytes(OPERATIONS), answer_bytes(ANSWERS), pack)
    assert cli.main(["conform", *files, "--reference", "bare", "--json"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    result = json.loads(out)
    assert (result["operations"], result["equal"], result["mismatches"]) == (9, 8, 0)
    assert {rule: n for rule, n in result["allowed"].items() if n} == {"no-chain-event": 1}
    assert (result["reference"], result["first_mismatches"]) == ("bare", [])
    assert cli.main(["conform", *files, "--reference", "bare"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert ["no-chain-event", "1"] in [line.split() for line in out.splitlines()]
    assert "no-chain-event: CHAIN is never counted." in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_changed_answer_is_shown_with_what_led_to_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    idle: list[Operation] = [(1, 0, MMIR, 0)] * 50
    operations = [*OPERATIONS[:6], *idle, *OPERATIONS[6:]]
    answers = [*ANSWERS[:6], *(reads(0) for _ in idle), *ANSWERS[6:]]
    answers[-1] = reads(1)  # PMEVCNTR1_EL0
    files = write_files(tmp_path, operation_bytes(operations), answer_bytes(answers))
    assert cli.main(["conform", *files, "--reference", "bare", "--json"]) == 1
    result = json.loads(capfd.readouterr().out)
    assert (result["equal"], result["mismatches"]) == (57, 1)
    (mismatch,) = result["first_mismatches"]
    assert (mismatch["operation"], mismatch["instruction"]) == (58, "EL2 mrs PMEVCNTR1_EL0")
    assert mismatch["expected"] == {"value": 0, "exception_el": 0, "esr": 0}
    assert mismatch["got"] == {"value": 1, "exception_el": 0, "esr": 0}
    # Its type, its neighbour's type and value, the enables, the increment; and the ten before it.
    numbers = [int(line.split(":")[0]) for line in mismatch["after"]]
    assert numbers == [0, 1, 2, 3, 4, 5, *range(48, 58)]
    assert mismatch["after"][5] == "5: EL2 msr PMSWINC_EL0, 0x1: done"
    assert cli.main(["conform", *files, "--reference", "bare"]) == 1
    out = capfd.readouterr().out
    assert "\noperation 58: EL2 mrs PMEVCNTR1_EL0\n  expected 0x0\n  got 0x1\n  after\n" in out


def test_of_many_mismatches_the_first_are_shown_and_all_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = write_files(tmp_path, operation_bytes([(2, 0, CEID0, 0)] * 12), answer_bytes([reads(1)] * 12))
    assert cli.main(["conform", *files, "--reference", "bare"]) == 1
    out = capfd.readouterr().out
    assert ["mismatches", "12"] in [line.split() for line in out.splitlines()]
    assert out.count("EL2 mrs PMCEID0_EL0\n  expected 0x20001\n  got 0x1\n") == 5
    assert out.endswith("\nand 7 more\n")


def test_a_mismatch_names_the_rule_that_it_does_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    operations = [(2, 1, SELR, 7), (2, 0, XEVCNTR, 0)]
    files = write_files(tmp_path, operation_bytes(operations), answer_bytes([DONE, reads(3)]))
    assert cli.main(["conform", *files, "--reference", "bare"]) == 1
    out = capfd.readouterr().out
    assert "  expected an exception taken to EL2 with ESR 0x2000000\n" in out
    assert "  or, by pmxev-beyond-n-raz-wi, 0x0\n  got 0x3\n" in out


def test_a_progress_bar_is_for_a_terminal(tmp_path: Path) -> None:
    files = write_files(tmp_path, operation_bytes(OPERATIONS), answer_bytes(ANSWERS))
    command = [sys.executable, "-m", "pmuvisor.cli", "conform", *files, "--reference", "bare", "--json"]
    ours, theirs = os.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        assert process.stdout is not None
        printed = process.stdout.read()
    shown = b""
    while b"100%" not in shown:
        shown += os.read(ours, 4096)
    os.close(ours)
    assert b"operations" in shown
    assert json.loads(printed)["mismatches"] == 0


GOOD = operation_bytes(OPERATIONS), answer_bytes(ANSWERS)


def with_byte(data: bytes, offset: int, byte: int) -> bytes:
    return data[:offset] + bytes([byte]) + data[offset + 1 :]


BAD_FILES = {
    "no operations": (b"", GOOD[1], "ops: has 0 bytes, expected a whole number of records of 16 bytes"),
    "cut operations": (GOOD[0][:-1], GOOD[1], "ops: has 143 bytes, expected a whole number of records of 16 bytes"),
    "cut answers": (GOOD[0], GOOD[1][:-8], "res: has 208 bytes, expected a whole number of records of 24 bytes"),
    "fewer answers": (GOOD[0], GOOD[1][:-24], "res: has 8 answers, expected 9: one for each operation of "),
    "a level": (with_byte(GOOD[0], 32, 3), GOOD[1], "ops: record 2: Exception level 3, expected 0, 1 or 2"),
    "a direction": (with_byte(GOOD[0], 17, 2), GOOD[1], "ops: record 1: write is 2, expected 0 or 1"),
    "a register": (with_byte(GOOD[0], 66, 79), GOOD[1], "ops: record 4: no register has number 79"),
    "a rest": (with_byte(GOOD[0], 7, 1), GOOD[1], "ops: record 0: bytes 3 to 7 are not zero"),
    "a rest of an answer": (GOOD[0], with_byte(GOOD[1], 71, 1), "res: record 2: its last 8 bytes are not zero"),
    "a read of MDCR_EL2": (
        operation_bytes([(2, 0, MDCR, 0)]),
        GOOD[1][:24],
        "ops: record 0: read of MDCR_EL2 at EL2: expected a write at EL2",
    ),
    "a write of HDFGRTR_EL2 at EL1": (
        operation_bytes([(1, 1, FGR, 0)]),
        GOOD[1][:24],
        "ops: record 0: write of HDFGRTR_EL2 at EL1: expected a write at EL2",
    ),
    "half a gzip": (gzip.compress(GOOD[0])[:-9], GOOD[1], "ops: is truncated: its gzip data has no end"),
    "no gzip": (
        b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 90,
        GOOD[1],
        "ops: is corrupt: its gzip data cannot be decompressed",
    ),
    "a wrong checksum": (
        gzip.compress(GOOD[0])[:-8] + bytes(8),
        GOOD[1],
        "ops: is corrupt: its gzip data cannot be decompressed",
    ),
}


def refused(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["conform", *words, "--reference", "bare", "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line(what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    operations, answers, said = BAD_FILES[what]
    files = write_files(tmp_path, operations, answers)
    assert refused(files, capfd).startswith(f"pmuvisor: {tmp_path}/{said}")


def test_a_missing_file_is_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "ops"
    assert refused([str(missing), str(missing)], capfd) == f"pmuvisor: {missing}: No such file or directory\n"
    assert refused([str(tmp_path), str(tmp_path)], capfd) == f"pmuvisor: {tmp_path}: Is a directory\n"


def test_a_small_file_does_not_become_a_big_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vectors, "MAX_OPERATIONS", 1000)
    files = write_files(tmp_path, bytes(16 * 1001), bytes(24 * 1001), pack=True)
    assert refused(files, capfd) == f"pmuvisor: {tmp_path}/ops.gz: has more than 1000 records of 16 bytes\n"


@pytest.mark.parametrize("words", [[], ["--reference", "el2"]])
def test_a_reference_must_be_one_that_there_is(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["conform", "ops", "res", *words])
    assert end.value.code == 2
    assert "--reference" in capfd.readouterr().err.splitlines()[-1]


def test_help_fits_80_columns_and_names_the_references(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        cli.main(["conform", "--help"])
    assert end.value.code == 0
    out = capfd.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "{" + ",".join(REFERENCES) + "}" in out
