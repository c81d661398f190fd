"""The compiled reading: semantic functions under numba, over the records' derived layout.

`compiled(f)` is `f` with every semantic function that it calls, directly or not, compiled by numba; the module's own
functions are left as they were. Arguments are rows of a layout (see `records.layout`) and integers. `substituted(f)` is
a twin of the same kind left to CPython, with some functions replaced.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, cast

import numba

from pmuvisor.numba_whole import Part, Whole

SEMANTIC = ("pmuvisor.arch.", "pmuvisor.linux.", "pmuvisor.kvm.")
"""Where semantic functions are: how their modules' names begin."""


Replaced = Mapping[Callable[..., Any], Callable[..., Any]]
"""Semantic functions, and what is called in their place."""


def compiled(
    function: Callable[..., Any],
    *,
    boundscheck: bool = False,
    also: tuple[str, ...] = (),
    cache: bool | str = False,
    replaced: Replaced | None = None,
) -> Any:
    """Return `function` compiled in numba's nopython mode, with `replaced` in the place of others.

    `boundscheck` makes an index out of range an IndexError, for tests. `also` names further modules, outside
    of arch/, linux/ and kvm/, whose functions are semantic code too. `cache` keeps the machine code of `function`, and
    in it that of all it calls, in numba's folder (see `numba_cache.use`), whose name knows our sources but neither of a
    function replaced nor of `boundscheck`: with either it is a name for what is kept. ValueError for True with either.
    It runs without CPython's global lock: several threads can, each on a state of its own.
    """
    if cache is True and (boundscheck or replaced):
        raise ValueError("cache: expected a name with boundscheck or replaced")

    def make(twin: types.FunctionType, outermost: bool) -> Any:
        if not outermost:
            inner = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": Part}
            return _once(numba.njit(twin, boundscheck=boundscheck, **inner))
        if isinstance(cache, str):
            twin.__qualname__ += f"-{cache}"
        whole = {"cache": bool(cache), "nogil": True, "pipeline_class": Whole}
        return _once(numba.njit(twin, boundscheck=boundscheck, **whole))

    return Twins(make, (*SEMANTIC, *also), replaced or {}).of(function, outermost=True)


def substituted(function: Callable[..., Any], replaced: Replaced, *, also: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Return `function` for CPython, with some that it calls, directly or not, replaced. `also` as of `compiled`."""
    made: Callable[..., Any] = Twins(lambda twin, outermost: twin, (*SEMANTIC, *also), replaced).of(function)
    return made


class Twins:
    """Functions made of semantic ones: copies whose global names stand for functions made in the same way."""

    def __init__(
        self, make: Callable[[types.FunctionType, bool], Any], homes: tuple[str, ...], replaced: Replaced
    ) -> None:
        self._make = make
        self._homes = homes
        self._replaced = replaced
        self._done: dict[Any, Any] = {}

    def of(self, function: Callable[..., Any], *, outermost: bool = False, itself: bool = False) -> Any:
        """Return the twin of a semantic function, or of what replaces it, which may call what it replaces: `itself`."""
        if (function, itself) in self._done:
            return self._done[function, itself]
        source = cast(types.FunctionType, function if itself else self._replaced.get(function, function))
        world = dict(source.__globals__)
        twin = types.FunctionType(source.__code__, world, source.__name__, source.__defaults__)
        twin.__kwdefaults__ = source.__kwdefaults__
        made = self._done[function, itself] = self._make(twin, outermost)
        calls_itself = None if source is function else function
        names = source.__code__.co_names
        for name in names:
            called = world.get(name)
            if isinstance(called, types.ModuleType) and f"{called.__name__}.".startswith(self._homes):
                part = types.ModuleType(called.__name__)
                for attribute in set(names) & set(vars(called)):
                    setattr(part, attribute, self._instead(vars(called)[attribute], calls_itself))
                world[name] = part
            elif name in world:
                world[name] = self._instead(called, calls_itself)
        return made

    def _instead(self, value: Any, as_it_is: Callable[..., Any] | None) -> Any:
        """Return the twin of a semantic function, of `as_it_is` that of itself; anything else as it is."""
        if isinstance(value, types.FunctionType) and f"{value.__module__}.".startswith(self._homes):
            return self.of(value, itself=value is as_it_is)
        return value


def _once(made: Any) -> Any:
    """Let a compiled function take its integers as 64-bit ones, whatever calls it.

    Fields are as narrow as they are declared, and numba would compile a function for each combination of widths that it
    is called with: twice the time.
    """
    template = made.get_call_template

    def get_call_template(args: Any, kws: Any) -> Any:
        return template(tuple(_wide(arg) for arg in args), {name: _wide(arg) for name, arg in kws.items()})

    made.get_call_template = get_call_template
    return made


def _wide(argument: Any) -> Any:
    """Return int64 for the numba type of a signed integer or a truth value, any other type as it is."""
    kind = numba.types.unliteral(argument)
    if isinstance(kind, numba.types.Boolean) or (isinstance(kind, numba.types.Integer) and kind.signed):
        return numba.types.int64
    return argument
