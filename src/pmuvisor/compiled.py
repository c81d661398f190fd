"""The compiled reading: semantic functions under numba, over the records' derived layout.

`compiled(f)` is `f` with every semantic function that it calls, directly or not, compiled by numba; the module's own
functions are left as they were. Arguments are rows of a layout (see `records.layout`) and integers.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, cast

import numba

_SEMANTIC = ("pmuvisor.arch.", "pmuvisor.linux.", "pmuvisor.kvm.")


def compiled(
    function: Callable[..., Any], *, boundscheck: bool = False, also: tuple[str, ...] = (), cache: bool = False
) -> Any:
    """Return `function` compiled in numba's nopython mode.

    `boundscheck` makes an index out of range an IndexError, for tests. `also` names further modules, outside
    of arch/, linux/ and kvm/, whose functions are semantic code too. `cache` keeps the machine code of `function`, and
    in it that of all it calls, in numba's folder (see `numba_cache.use`), whose name knows our sources but neither of a
    function replaced at run time nor of `boundscheck`: ValueError for both together.
    """
    if cache and boundscheck:
        raise ValueError("cache: expected no boundscheck with it")
    return _compile(cast(types.FunctionType, function), {}, boundscheck, (*_SEMANTIC, *also), cache)


def _compile(
    function: types.FunctionType,
    done: dict[types.FunctionType, Any],
    boundscheck: bool,
    homes: tuple[str, ...],
    cache: bool = False,
) -> Any:
    if function in done:
        return done[function]
    world = dict(function.__globals__)
    twin = types.FunctionType(function.__code__, world, function.__name__, function.__defaults__)
    twin.__kwdefaults__ = function.__kwdefaults__
    made = done[function] = _once(numba.njit(twin, boundscheck=boundscheck, cache=cache))
    names = function.__code__.co_names
    for name in names:
        called = world.get(name)
        if isinstance(called, types.ModuleType) and f"{called.__name__}.".startswith(homes):
            part = types.ModuleType(called.__name__)
            for attribute in set(names) & set(vars(called)):
                setattr(part, attribute, _twin(vars(called)[attribute], done, boundscheck, homes))
            world[name] = part
        elif name in world:
            world[name] = _twin(called, done, boundscheck, homes)
    return made


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


def _twin(value: Any, done: dict[types.FunctionType, Any], boundscheck: bool, homes: tuple[str, ...]) -> Any:
    """Return a semantic function compiled, anything else as it is."""
    if isinstance(value, types.FunctionType) and f"{value.__module__}.".startswith(homes):
        return _compile(value, done, boundscheck, homes)
    return value
