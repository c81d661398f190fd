"""tools/mutate_walks.py: a function with all its mutants in it is each of them, or itself, as the switch says."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmuvisor import records
from pmuvisor.kvm import filters
from pmuvisor.kvm.vcpu import Vm

TOOLS = Path(__file__).resolve().parents[1] / "tools"
PATH = "src/pmuvisor/kvm/filters.py"
FUNCTIONS = {"event_denied", "event_allowed", "allowed_pmceid"}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(TOOLS.parent)
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location("mutate_walks", TOOLS / "mutate_walks.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutate_walks", made)
    spec.loader.exec_module(made)
    yield made
    sys.modules.pop("mutate", None)


def answers(of: Any) -> Iterator[object]:
    """Yield what functions of the module say of some filters and events, None where they raise or return nothing."""
    calls = [("event_denied", event) for event in (0, 0x1E, 0x21, 63, 64, 200)]
    calls += [("event_allowed", event) for event in (0, 0x1E, 0x21)]
    calls += [("allowed_pmceid", which) for which in (0, 1)]
    for words, (name, operand) in itertools.product((0, 1, 2), calls):
        vm = records.new(Vm, {"filter_words": 2})
        vm.filter_words = words
        vm.denied[:] = [0x2_4000_0001, 0x80]
        try:
            yield of[name](vm, operand)
        except Exception:
            yield None


def test_a_mutant_switched_on_is_the_one_that_mutate_makes(tool: Any) -> None:
    broken, mutants = tool.schemata(PATH, FUNCTIONS, "")
    space = next(iter(broken.values())).__globals__
    assert {function.__name__ for function in broken} == FUNCTIONS
    assert len(mutants) > 80
    space.update({function.__name__: instead for function, instead in broken.items()})

    def switched_to(number: int) -> list[object]:
        space["switched_on_"] = lambda: number
        return list(answers(space))

    assert switched_to(-1) == list(answers(vars(filters)))
    tree = tool.mutate.parsed(PATH)
    compared = 0
    for mutant, _, _ in tool.mutate.mutants(PATH, tree):
        if mutant in mutants:
            module = types.ModuleType(filters.__name__)
            exec(tool.mutate._compiled(PATH, *tree.body), vars(module))
            assert switched_to(mutant.number) == list(answers(vars(module))), mutant
            compared += 1
    assert compared == len(mutants)


def test_each_kind_of_action_is_drawn_as_often_as_it_weighs(tool: Any) -> None:
    family = next(each for each in tool.families() if each.name == "spe")
    for model in family.machines:
        draws = [int(row[0]) for row in tool.drawn(family, model)]
        kinds = {kind: draws.count(kind) for kind in draws}
        least = min(count / family.weights.get(kind, 1) for kind, count in kinds.items())
        most = max(count / family.weights.get(kind, 1) for kind, count in kinds.items())
        assert most <= 2 * least
        assert set(map(tuple, tool.drawn(family, model))) == set(map(tuple, tool.operands(model)))
