"""What a symbolic run comes to where everything has one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import z3

from pmuvisor import records
from pmuvisor.check.symbolic import paths, word


def evaluated(
    run: Callable[[], tuple[Any, Any]], assume: Sequence[Any], leaves: Sequence[records.Leaf]
) -> tuple[int, dict[records.Path, int]]:
    """Return what a symbolic run returns and the record it leaves, as values, of the one path that there is."""
    found = []
    for solver, (after, result) in paths(run, assume):
        assert solver.check() == z3.sat
        model = solver.model()
        state = {leaf.path: model.eval(word(records.get(after, leaf.path)), True).as_long() for leaf in leaves}
        found.append((model.eval(word(result), True).as_long(), state))
    assert len(found) == 1
    return found[0]
