"""The benchmark's model: it is what its twin in Promela is, and its properties can break."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks import exploration, spin
from benchmarks.figures import Options
from benchmarks.models import partition
from benchmarks.models.partition import Cpu, Machine, Vcpu
from benchmarks.spin import DifferentStatesError, Found

from pmuvisor import records
from pmuvisor.check import defects, plain
from pmuvisor.check.explore import Exploration
from pmuvisor.check.model import DONE, NOT_NOW

needs_spin = pytest.mark.skipif(not spin.present(), reason=spin.ABSENT)
QUICK = ("-DSAFETY", "-DNOREDUCE")
"""For gcc, which takes its time to optimize."""


def test_nothing_breaks_it_and_every_integer_keeps_within_its_width() -> None:
    found = plain.explore(partition.model(1, 0))
    assert (found.complete, found.violation) == (True, None)
    m = partition.begin(0b111, 20, 20)
    rng, actions = random.Random(1), partition.actions()
    for _ in range(2000):
        assert partition.step(m, *rng.choice(actions).operands) in (NOT_NOW, DONE)
        records.check_widths(m)
    assert (m.ticks, m.accesses) == (0, 0)


def test_compiled_it_has_the_same_states() -> None:
    found, reference = Exploration(partition.model(1, 0)).run(), plain.explore(partition.model(1, 0))
    assert (found.states, found.transitions, found.depth) == (reference.states, reference.transitions, reference.depth)


@needs_spin
@pytest.mark.parametrize("breadth_first", [False, True])
def test_spin_finds_as_many_states_and_transitions_in_the_twin(breadth_first: bool, tmp_path: Path) -> None:
    ours = spin.on_one_core(1, 2)
    verifier = spin.verifier(tmp_path / "twin", 1, 2, breadth_first=breadth_first, options=QUICK)
    theirs = verifier.run(ours.states)
    assert (theirs.states, theirs.transitions) == (ours.states, ours.transitions)
    assert ours.states > 50_000


def test_different_states_are_no_comparison() -> None:
    with pytest.raises(DifferentStatesError, match="Spin 1 and 3"):
        spin.compared(Found(1, 2, 1.0, 1.0), Found(1, 3, 1.0, 1.0))


# ---- what must hold can break -------------------------------------------------------------------------------


def write_anything(cpu: Cpu, vcpu: Vcpu, i: int, value: int) -> None:
    """The guest reaches the host's counters too."""
    cpu.counter[i] = value
    if (cpu.reserved >> i) & 1:
        vcpu.ought[i] = value


def take_as_they_are(m: Machine, c: int) -> None:
    """The guest's counters are not loaded."""
    partition.reserve(m, c, partition.GUESTS)
    m.cpus[c].cnten |= m.vcpus[m.cpus[c].vcpu - 1].cnten


def drop_overflows(m: Machine, c: int) -> int:
    """The host's handler takes the guest's overflows for its own."""
    if m.cpus[c].ovs == 0:
        return NOT_NOW
    m.cpus[c].ovs = 0
    return DONE


BROKEN = [
    (partition.write, write_anything, partition.HOST),
    (partition.take, take_as_they_are, partition.GUEST),
    (partition.interrupt, drop_overflows, partition.OVERFLOW),
]


@pytest.mark.parametrize(("sound", "broken", "of"), BROKEN, ids=["host", "guest", "overflow"])
def test_a_broken_function_breaks_its_property(sound: Callable[..., Any], broken: Callable[..., Any], of: int) -> None:
    found = plain.explore(partition.model(2, 1), {sound: broken}, asked=1 << of)
    assert found.violation is not None
    assert found.violation.property == of


TWINS_BROKEN = [
    (":: (cpus[c].reserved >> n) & 1 -> cpus[c].counter[n] = what;", ":: 1 -> cpus[c].counter[n] = what;"),
    (":: (GUESTS >> i) & 1 -> cpus[c].counter[i] = vcpus[v].counter[i]", ":: 0"),
    ("vcpus[v].ovs = vcpus[v].ovs | theirs;", ""),
]


@needs_spin
@pytest.mark.parametrize(("sound", "broken"), TWINS_BROKEN, ids=["host", "guest", "overflow"])
def test_the_same_in_the_twin_breaks_an_assertion(sound: str, broken: str, tmp_path: Path) -> None:
    text = spin.TWIN.read_text()
    assert text.count(sound) == 1
    (tmp_path / "broken.pml").write_text(text.replace(sound, broken))
    with pytest.raises(RuntimeError, match="errors: 1"):
        spin.verifier(tmp_path / "twin", 2, 1, twin=tmp_path / "broken.pml", options=QUICK).run(100_000)


# ---- the benchmarks -----------------------------------------------------------------------------------------


def test_without_spin_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    section = spin.measure(Options(rounds=1, scale=0.001))
    assert all(figure.value is not None and figure.peer_value is None for figure in section.figures)
    assert sum(figure.note == "no spin, or no gcc, here" for figure in section.figures) == 5


def test_designs_are_explored_and_a_defect_is_found() -> None:
    section = exploration.measure(Options(rounds=1, scale=0.001), defects.ALL[:1])
    assert all(figure.value is not None and figure.value > 0 for figure in section.figures)
    assert section.figures[-1].name == f"defect {defects.ALL[0].name}"
    assert "steps" in section.figures[-1].note
