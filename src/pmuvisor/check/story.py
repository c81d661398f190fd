"""A violation as somebody tells it: who does what, and what becomes of each register, event and residency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pmuvisor import records
from pmuvisor.check.found import Violation
from pmuvisor.check.model import Model
from pmuvisor.records import Role


def tell(model: Model, trail: Sequence[Any], violation: Violation) -> list[str]:
    """Return the lines of a violation's story, of the states before and after each action (`Exploration.replay`)."""
    lines: list[str] = []
    for number, action in enumerate(violation.actions):
        lines.append(f"{number + 1:3}  {model.actions[action].words}")
        lines += [f"       {change}" for change in changes(model, trail[number], trail[number + 1])]
    broken = model.properties[violation.property]
    return [*lines, f"broken: {broken.name}: {broken.sentence}", f"source: {broken.source}"]


def changes(model: Model, before: Any, after: Any) -> Iterator[str]:
    """Yield what a reader wants to know of how two states differ."""
    for leaf in records.leaves(model.record, model.sizes):
        old, new = records.get(before, leaf.path), records.get(after, leaf.path)
        if leaf.role is not Role.LEDGER and old != new:
            words = model.words(leaf.path)
            if words is not None:
                yield f"{words[0]}: {words[1].get(str(old), _number(old))} -> {words[1].get(str(new), _number(new))}"


def _number(value: int) -> str:
    return f"{value:#x}" if value > 9 else str(value)
