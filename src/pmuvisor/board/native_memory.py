"""Memory and C functions at addresses, for compiled code; and the two decorators that compile.

The addresses come in as integers at run time. A ctypes object in compiled code would tie it to one process, and numba
would then not keep it on disk.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from pmuvisor import numba_cache

CACHE = numba_cache.use()
I64 = ir.IntType(64)

F = TypeVar("F", bound=Callable[..., Any])


class CFunction(Protocol):
    """A compiled function that C code can call."""

    @property
    def address(self) -> int: ...


def compiled(function: F) -> F:
    """Compile a function that other compiled functions call."""
    return cast(F, njit(cache=CACHE)(function))


def callback(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], CFunction]:
    """Compile a function that Unicorn, or ctypes, calls."""
    return cast(Callable[[Callable[..., Any]], CFunction], cfunc(result(*arguments), cache=CACHE))


def _load(bits: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def load(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.IntType(bits)
            value = builder.load(builder.inttoptr(args[0], kind.as_pointer()))
            return value if bits == 64 else builder.zext(value, I64)

        return types.int64(types.int64), generate

    return load


def _store(bits: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def store(typing: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.IntType(bits)
            value = args[1] if bits == 64 else builder.trunc(args[1], kind)
            builder.store(value, builder.inttoptr(args[0], kind.as_pointer()))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return store


@intrinsic  # type: ignore[untyped-decorator]
def call(typing: Any, fn: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """The C function at address `fn`; one that takes fewer arguments does not see the rest."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(I64, [I64] * 5)
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int64(*(types.int64,) * 6), generate


@intrinsic  # type: ignore[untyped-decorator]
def call7(typing: Any, fn: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> Any:
    """`call` for up to seven arguments."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(I64, [I64] * 7)
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int64(*(types.int64,) * 8), generate


@intrinsic  # type: ignore[untyped-decorator]
def as_pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


Load = Callable[[int], int]
Store = Callable[[int, int], None]
load64: Load = _load(64)
load32: Load = _load(32)
load8: Load = _load(8)
store64: Store = _store(64)
store32: Store = _store(32)
store8: Store = _store(8)
