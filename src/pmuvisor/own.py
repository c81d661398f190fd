"""A design of somebody's own: one of ours, with functions of theirs in the place of some (docs/your-own-design.md).

    STICKY = OwnDesign("sticky", base="lazy", replaced={lazy.residency_at_load: residency_at_load})
    if __name__ == "__main__":
        raise SystemExit(cli.main(own=STICKY))

That module then has the command line of pmuvisor, in which its design stands beside the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

from pmuvisor.compiled import SEMANTIC, Replaced, Twins

BASES = ("emulated", "partitioned", "lazy", "fixed-counters-only")
"""The designs that another can begin with, in the order of `kvm.vcpu.Vm.design`."""


class DesignError(ValueError):
    """A design that cannot be: what is wrong with it, and what was expected."""


@dataclasses.dataclass(frozen=True)
class OwnDesign:
    """A design: its name, as the command line takes it, the one of ours that it begins with, and what is different.

    Raises DesignError for a name or a base that cannot be, and for what replaces no function of arch/, linux/ or kvm/.
    """

    name: str
    base: str
    replaced: Replaced
    """Functions of arch/, linux/ and kvm/, and what stands in their place: with the same arguments, by the rules of
    semantic code. It may call what it replaces."""

    def __post_init__(self) -> None:
        if re.fullmatch("[a-z][a-z0-9-]*", self.name) is None or self.name in BASES:
            raise DesignError(f"name {self.name!r}: expected a new one of small letters, digits and hyphens")
        if self.base not in BASES:
            raise DesignError(f"base {self.base!r}: expected one of {', '.join(BASES)}")
        for sound, instead in self.replaced.items():
            if not all(isinstance(function, types.FunctionType) for function in (sound, instead)):
                raise DesignError(f"replaced: {sound!r} by {instead!r}: expected functions")
            if not f"{sound.__module__}.".startswith(SEMANTIC):
                raise DesignError(f"replaced: {sound.__module__}.{sound.__name__}: expected one of arch, linux or kvm")

    @property
    def homes(self) -> tuple[str, ...]:
        """Return the modules whose functions are semantic code besides ours."""
        return tuple(sorted({f"{instead.__module__}." for instead in self.replaced.values()}))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Let everything in this process go by this design instead of its base, for as long as the context lasts."""
        homes = (*SEMANTIC, *self.homes)
        twins = Twins(lambda twin, outermost: twin, homes, self.replaced)
        originals: dict[int, Any] = {}
        instead: dict[int, Any] = {}
        for function in _functions(SEMANTIC):
            twin = twins.of(function)
            instead[id(function)], originals[id(twin)] = twin, function
        _exchange(instead)
        try:
            yield
        finally:
            _exchange(originals)


def _functions(homes: tuple[str, ...]) -> Iterator[types.FunctionType]:
    for name, module in list(sys.modules.items()):
        if f"{name}.".startswith(homes):
            for value in list(vars(module).values()):
                if isinstance(value, types.FunctionType) and value.__module__ == name and value.__closure__ is None:
                    yield value


def _exchange(instead: dict[int, Any]) -> None:
    """Put other values in the place of those with these identities, wherever a module of ours has a name for one."""
    for name, module in list(sys.modules.items()):
        if f"{name}.".startswith("pmuvisor."):
            for attribute, value in list(vars(module).items()):
                if id(value) in instead:
                    setattr(module, attribute, instead[id(value)])
