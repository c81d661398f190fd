"""What an exploration comes to."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Violation:
    """How a property breaks: the actions from the initial state on, the last of which breaks it."""

    property: int
    """Its place in `Model.properties`."""
    actions: tuple[int, ...]
    """Places in `Model.actions`."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What an exploration came to."""

    states: int
    """Distinct states found."""
    transitions: int
    depth: int
    """Steps of the longest shortest way to a state."""
    complete: bool
    """Every state has been expanded."""
    seconds: float
    state_bits: int
    """Bits of a state that vary; stored in whole words of 64."""
    bytes_used: int
    violation: Violation | None
