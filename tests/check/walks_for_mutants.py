"""Compiled walks that break nothing: what mutants are held to that the walks by CPython let live (docs/mutation.md).

Not for every run of the tests: it compiles for a minute. Machine code that was kept would be that of the unbroken
sources, so XDG_CACHE_HOME has to name a place where nothing can be written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from pmuvisor import numba_cache
from pmuvisor.check import models
from pmuvisor.check.models import PRESETS
from pmuvisor.check.walks import Walker

BUDGETS = ("accesses", "executions", "switches", "openings", "settings")
OF_ONE_SIZE = ("tiny", "trapped", "newest", "first", "short", "icntr", "el0", "restored")


def test_nothing_is_kept() -> None:
    assert not numba_cache.use()


def walkers(names: tuple[str, ...]) -> Iterator[Walker]:
    """Yield walkers of presets of one size, under both partitioned designs, all with the same machine code."""
    walk = None
    for name in names:
        for design in ("partitioned", "lazy"):
            preset = models.adjusted(PRESETS[name], dict.fromkeys(BUDGETS, "60000"))
            preset = dataclasses.replace(preset, registers=models.EVERY)
            walker = Walker(models.model(preset, design), threads=1)
            walk = walk or walker._walk
            walker._walk = walk
            yield walker


@pytest.mark.parametrize("names", [OF_ONE_SIZE, ("large",)], ids=["small", "large"])
def test_nothing_breaks_on_long_walks(names: tuple[str, ...]) -> None:
    for walker in walkers(names):
        result = walker.run(seed=1, walks=400, length=2000)
        assert result.violation is None, walker.model.title
        assert result.complete
