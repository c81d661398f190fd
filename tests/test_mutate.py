"""tools/mutate.py on a module whose mutants are counted by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "mutate.py"
MODULE = '''"""A module."""

LIMIT = 3


def capped(value: int) -> int:
    """Return it."""
    if value > LIMIT:
        return LIMIT
    return value


def one() -> int:
    while True:
        break
    return 1
'''
TESTS = """
from toy.thing import capped, one

def test_a_high_value_is_capped():
    assert capped(5) == 3

def test_a_low_value_is_not():
    assert capped(1) == 1

def test_one():
    assert one() == 1
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in (("src/toy/thing.py", MODULE), ("tests/toy/test_thing.py", TESTS), ("src/toy/__init__.py", "")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def mutate(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *words]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)


def row(done: subprocess.CompletedProcess[str]) -> list[int]:
    """Return mutants; killed on import, by examples, by properties, by slow tests, by time, by a crash; survived."""
    line = next(line for line in done.stdout.splitlines() if line.startswith("all "))
    return [int(number) for number in line.split()[1:]]


def state(project: Path) -> list[str]:
    return (project / "build" / "mutation.jsonl").read_text().splitlines()


def test_every_mutant_runs_once_and_survivors_again_when_the_tests_change(project: Path) -> None:
    # LIMIT = 4, 2; `value > LIMIT`: True, False, >=, <=, LIMIT + 1, 0; `return LIMIT`: left out, LIMIT + 1, 0;
    # `return value`: left out. What lives: >=, which means the same, and LIMIT + 1, for want of a test with 4.
    only = ("src/toy/thing.py", "--functions", "(module)", "capped")
    done = mutate(project, *only)
    assert (done.returncode, row(done)) == (0, [12, 0, 0, 10, 0, 0, 0, 0, 2])
    assert "src/toy/thing.py:8: capped: comparison (#4)\n  - if value > LIMIT:\n  + if value >= LIMIT:\n" in done.stdout
    assert "  + if value > LIMIT + 1:\n" in done.stdout
    assert done.stdout.endswith("\n83.3 % killed\n")
    assert len(state(project)) == 12

    assert mutate(project, *only).stdout == done.stdout
    assert len(state(project)) == 12

    tests = project / "tests" / "toy" / "test_thing.py"
    tests.write_text(TESTS + "\ndef test_four():\n    assert capped(4) == 3\n")
    done = mutate(project, *only, "--least", "95")
    assert (done.returncode, row(done)) == (1, [12, 0, 0, 11, 0, 0, 0, 0, 1])
    assert len(state(project)) == 14


def test_a_sample_is_the_same_each_time_and_no_larger_than_asked(project: Path) -> None:
    every = row(mutate(project, "src/toy/thing.py"))[0]
    some = [row(mutate(project, "src/toy/thing.py", "--one-in", "3", "--fresh"))[0] for _ in range(2)]
    assert 0 < some[0] < every
    assert some[0] == some[1]


def test_an_endless_loop_ends_at_its_limit(project: Path) -> None:
    # `while False`; `continue`; `return` left out, 2, 0. `while True` is what it was.
    done = mutate(project, "src/toy/thing.py", "--functions", "one")
    assert (done.returncode, row(done)[6]) == (0, 1), done.stdout


def test_slow_tests_and_properties_are_told_apart(project: Path) -> None:
    (project / "tests" / "toy" / "test_thing.py").write_text(
        "from hypothesis import given, strategies as st\n"
        "from toy.thing import capped\n\n"
        "@given(st.integers(0, 2))\ndef test_a_low_value_is_not(value):\n    assert capped(value) == value\n"
    )
    slow = project / "tests" / "slow.py"
    slow.write_text("from toy.thing import capped\n\ndef test_high():\n    assert capped(5) == 3\n")
    words = ("src/toy/thing.py", "--functions", "(module)", "capped", "--slow", "tests/slow.py")
    # The property kills True, <=, 0 in the condition, and `return value` left out.
    assert row(mutate(project, *words)) == [12, 0, 0, 0, 4, 6, 0, 0, 2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("src/toy/none.py",), "src/toy/none.py: expected a Python file below src/"),
        (("tests/toy/test_thing.py",), "tests/toy/test_thing.py: expected a Python file below src/"),
        (("src/alone.py", "--tests", "no.py"), "no.py: expected a file of tests, or a folder of such"),
        (("src/alone.py",), "no tests in tests/src: expected some, or --tests"),
    ],
)
def test_bad_input_is_refused_in_one_line(words: tuple[str, ...], said: str, project: Path) -> None:
    (project / "src" / "alone.py").write_text("")
    done = mutate(project, *words)
    assert (done.returncode, done.stderr, done.stdout) == (2, f"mutate: {said}\n", "")


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ("def test_no():\n    assert capped(9) == 9\n", "tests/toy/test_thing.py::test_no"),
        ("def test_no(:\n", "tests/toy/test_thing.py"),
    ],
)
def test_tests_that_fail_anyway_are_refused(more: str, where: str, project: Path) -> None:
    (project / "tests" / "toy" / "test_thing.py").write_text(f"{TESTS}\n{more}")
    done = mutate(project, "src/toy/thing.py")
    assert (done.returncode, done.stderr) == (2, f"mutate: the tests fail without a mutant: {where}\n")
