"""What a benchmark hands back: figures, each the median of its rounds, beside the peer's where there is a peer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    rounds: int = 3
    scale: float = 1.0
    """Part of the usual work, for a quick look: figures of short runs are worse."""

    def count(self, usual: int) -> int:
        """Return how often to do what is usually done `usual` times."""
        return max(1, round(usual * self.scale))


@dataclass(frozen=True)
class Figure:
    """One row of the table: a value of pmuvisor's, of each round, and the same of the peer's."""

    name: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float] = ()
    note: str = ""
    """Said in place of the peer's figure, or of ours where there is none."""
    digits: int = 1

    @property
    def value(self) -> float | None:
        """The median of ours."""
        return statistics.median(self.ours) if self.ours else None

    @property
    def peer_value(self) -> float | None:
        """The median of the peer's."""
        return statistics.median(self.peer) if self.peer else None

    @property
    def ratio(self) -> float | None:
        """How often the peer's figure goes into ours."""
        ours, peer = self.value, self.peer_value
        return ours / peer if ours is not None and peer else None

    def as_json(self) -> dict[str, Any]:
        """Return the figure as an object for JSON."""
        values = {"name": self.name, "unit": self.unit, "value": self.value, "rounds": list(self.ours)}
        peer = {"peer": self.peer_value, "peer_rounds": list(self.peer), "ratio": self.ratio, "note": self.note}
        return values | peer


@dataclass(frozen=True)
class Section:
    """One benchmark's figures. `how` says what was done, for a reader who wants to do it again."""

    name: str
    title: str
    how: str
    figures: list[Figure] = field(default_factory=list)
    plot: Callable[[Path], None] | None = None
    """Draws the figures into a file, where they are worth it."""

    def as_json(self) -> dict[str, Any]:
        """Return the section as an object for JSON."""
        again = f"python -m benchmarks --only {self.name}"
        return {"title": self.title, "how": self.how, "again": again, "figures": [f.as_json() for f in self.figures]}


Benchmark = Callable[[Options], Section]
