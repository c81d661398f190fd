"""Random walks over machines too large to explore, and what is left of one in which a property breaks."""

from __future__ import annotations

import pytest

from pmuvisor.check import defects, models, state
from pmuvisor.check.explore import Exploration
from pmuvisor.check.found import Violation
from pmuvisor.check.models import PRESETS
from pmuvisor.check.walks import Walker
from pmuvisor.cli import main

LARGE = models.model(PRESETS["large"], "lazy")
UPFRONT = next(defect for defect in defects.ALL if defect.name == "lazy-no-upfront-load")
REPLACED = {UPFRONT.sound: UPFRONT.defective}


def test_walks_over_a_large_machine_break_nothing_and_are_the_same_for_the_same_seeds() -> None:
    one, other = (Walker(LARGE, threads=threads).run(seed=7, walks=40, length=2000) for threads in (1, 2))
    assert (one.violation, one.walks, one.steps, one.complete) == (None, 40, 80_000, True)
    assert (other.violation, other.walks, other.steps) == (None, 40, 80_000)
    trails = [[Walker(LARGE)._one(Walker(LARGE)._spaces[0], seed, 50)[1].tolist() for seed in (7, 8)] for _ in range(2)]
    assert trails[0] == trails[1]
    assert trails[0][0] != trails[0][1]


def test_a_walk_that_breaks_a_property_is_shrunk_to_actions_all_of_which_are_needed() -> None:
    walker = Walker(LARGE, REPLACED)
    result = walker.run(seed=1, walks=50, length=1000)
    assert result.violation is not None
    assert result.seed is not None
    found = result.violation
    assert LARGE.properties[found.property].name == "guest-counts"
    assert LARGE.actions[found.actions[-1]].operands[0] == state.EXECUTE, "it is an instruction that is not counted"
    assert 3 <= len(found.actions) < result.walked
    assert len(Exploration(LARGE, REPLACED).replay(found)) == len(found.actions) + 1
    for left_out in range(len(found.actions)):
        with pytest.raises(RuntimeError):
            walker.shrink(Violation(found.property, (*found.actions[:left_out], *found.actions[left_out + 1 :])))


def test_of_a_long_way_only_what_is_needed_is_left() -> None:
    model = models.model(PRESETS["tiny"], "lazy")
    words = [action.words for action in model.actions]
    way = (
        "the next thread comes to CPU 0, and its vCPU is loaded",
        "the host opens event 0, CPU_CYCLES on CPU 0",
        "CPU 0 enters the guest",
        "CPU 0 exits the guest, for an interrupt",
        "the thread on CPU 0 is preempted, and its vCPU put",
        "the next thread comes to CPU 0, and its vCPU is loaded",
        "CPU 0 enters the guest",
        "the guest on CPU 0 executes an instruction at EL1",
    )
    broken = [each.name for each in model.properties].index("guest-counts")
    walker = Walker(model, REPLACED)
    found = walker.shrink(Violation(broken, tuple(map(words.index, way))))
    assert [words[action] for action in found.actions] == [way[5], way[6], way[7]]
    for left_out in range(3):
        with pytest.raises(RuntimeError):
            walker.shrink(Violation(broken, (*found.actions[:left_out], *found.actions[left_out + 1 :])))


def test_the_command_says_the_seed_and_how_much_was_left(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check", "--preset", "large", "--design", "lazy", "--walks", "50", "--seed", "3"]
    assert main([*arguments, "--defect", UPFRONT.name]) == 1
    printed = capsys.readouterr().out
    assert "broken: guest-counts" in printed
    assert "seed of the walk that breaks a property" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert main(arguments) == 0
    assert "50,000" in capsys.readouterr().out


# ---- other machines than the presets' -------------------------------------------------------------------------


def test_sizes_and_budgets_can_be_set() -> None:
    changes = {"counters": "3,3,2", "vcpus": "4", "guest_counters": "2", "half_bits": "4", "switches": "9"}
    preset = models.adjusted(PRESETS["tiny"], {**changes, "events": "2:cycles:5,0:instructions"})
    m = models.machine(preset, models.DESIGNS["lazy"])
    assert [cpu.pe.core.event_counters for cpu in m.world.host.cpus] == [3, 3, 2]
    assert len(m.world.vcpus) == 4
    assert m.world.vms[0].nr_counters == 2
    assert m.left[state.SWITCHES] == 9
    assert [(event.cpu, event.sample_period) for event in m.world.host.events[:2]] == [(2, 5), (0, 0)]
    assert m.world.host.cpus[0].pe.core.half_mask == 15


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("vcpus", "0", "vcpus '0': expected a number from 1 to 16"),
        ("vcpus", "-1", "vcpus '-1': expected a number from 1 to 16"),
        ("half_bits", "33", "half_bits '33': expected a number from 1 to 32"),
        ("guest_counters", "3", "guest_counters 3: CPU 0 has only 2"),
        ("counters", "2,x", "counters 'x': expected a number from 1 to 31"),
        ("counters", "2," * 8 + "2", "counters: 9 CPUs: expected 8 at most"),
        ("events", "0:steps", "events '0:steps': expected CPU:cycles or CPU:instructions"),
        ("events", "1:cycles", "events: CPU 1: there are only 1"),
        ("programmed", "2", "programmed 2: there are only 1 vCPUs"),
        ("registers", "1", "registers: expected one of counters, events, vcpus, guest_counters"),
    ],
)
def test_a_machine_that_cannot_be_is_refused_in_one_line(
    name: str, value: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--set", f"{name}={value}"]) == 2
    error = capsys.readouterr().err
    assert f"set: {line}" in error
    assert error.count("\n") == 1


def test_a_property_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--property", "x"]) == 2
    assert "property 'x': expected one of hpmn-legal, isolation," in capsys.readouterr().err
