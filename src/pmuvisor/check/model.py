"""What can be explored: a record that actions change step by step, and properties that must hold.

A model is data and plain functions. `models.pmu` makes those of KVM's designs; somebody's own is one module with a
record and a step (docs/your-own-design.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pmuvisor.compiled import Replaced
from pmuvisor.records import Path, Sizes

HERE = "pmuvisor.check."
"""Where functions are that are compiled, or replaced, with those of arch/, linux/ and kvm/."""

NOT_NOW = 0
"""What a step returns of an action that is not possible in this state, which it has left alone."""
DONE = 1
BROKEN = 2
"""Of one that is done and breaks property p (`Model.properties`): BROKEN + p."""


class Property(NamedTuple):
    """A property: its name, its sentence, and where it comes from."""

    name: str
    sentence: str
    source: str


@dataclasses.dataclass(frozen=True)
class Action:
    """One thing that may happen: the operands of a model's step, and its words."""

    operands: tuple[int, int, int, int, int]
    words: str


Words = tuple[str, Mapping[str, str]]
"""What an integer of a state is called, and the names of its values."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A small machine, all that may happen to it, and what must hold."""

    title: str
    """Who it is of and how large it is, in a few words."""
    record: type[Any]
    sizes: Sizes
    begin: Callable[[int], Any]
    """Make the state as it begins; of the mask of the properties that are asked for, bit p for the p-th."""
    step: Callable[[Any, int, int, int, int, int], int]
    """Let an action happen to a state: `Action.operands`. Return NOT_NOW, DONE or BROKEN + p. Semantic code."""
    actions: tuple[Action, ...]
    """In the order in which they are tried."""
    properties: tuple[Property, ...]
    words: Callable[[Path], Words | None]
    """What an integer of a state is to be called in a story; None for one that is not told."""
    replaced: Replaced = dataclasses.field(default_factory=dict)
    """Semantic functions and what stands in their place: somebody's own design."""
    never: tuple[Callable[..., Any], ...] = ()
    """Functions that no step of this model calls, which need not be compiled: what is called there is an error."""
    homes: tuple[str, ...] = ()
    """Further modules, beside those of pmuvisor, whose functions are semantic code ("mine.")."""

    @property
    def every(self) -> int:
        """Return the mask of all its properties."""
        return (1 << len(self.properties)) - 1

    @property
    def also(self) -> tuple[str, ...]:
        """Return where its semantic functions are, beside arch/, linux/ and kvm/."""
        return (HERE, *self.homes)
