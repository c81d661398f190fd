"""What a record is: one declaration, three readings.

The state of the semantics (arch/, linux/, kvm/) is plain records: integers of a declared width, fixed-length arrays,
and other records. From one declaration come the slotted class that CPython runs, the NumPy layout that numba compiles
against, and the list of leaves with their widths from which a prover makes its bit vectors.

    @record
    class Counter:
        enabled: U1
        value: U64

    @record
    class Unit:
        counter: Annotated[list[Counter], Each("counters")]
        spare: Annotated[list[int], Each("counters", 32)]
        reads: LedgerCount

Lengths and widths may be names ("counters"), given a number when an instance or a layout is made: the same class
serves 31 counters of 64 bits and 2 of 4. This module knows nothing of what the records mean.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Sizes = Mapping[str, int]
"""Numbers for the names used as lengths and widths."""
Path = tuple[str | int, ...]
"""The way from a record to one of its integers: field names and array indices."""


class Role(enum.Enum):
    """What a field is for. Ghosts belong to a state's identity, the ledger does not."""

    STATE = "state"
    GHOST = "ghost"
    LEDGER = "ledger"


class RecordError(TypeError):
    """A declaration or a use of a record that breaks its rules."""


class WidthError(ValueError):
    """A value that does not fit the declared width of its field."""


@dataclasses.dataclass(frozen=True)
class Bits:
    """Width of an integer field in bits, 1 to 64, or the name of a size that gives it."""

    width: int | str


@dataclasses.dataclass(frozen=True)
class Each:
    """Length of an array field, and for an array of integers the width of each in bits; either may be a name."""

    length: int | str
    width: int | str | None = None


U1 = Annotated[int, Bits(1)]
U2 = Annotated[int, Bits(2)]
U3 = Annotated[int, Bits(3)]
U4 = Annotated[int, Bits(4)]
U5 = Annotated[int, Bits(5)]
U6 = Annotated[int, Bits(6)]
U7 = Annotated[int, Bits(7)]
U8 = Annotated[int, Bits(8)]
U16 = Annotated[int, Bits(16)]
U32 = Annotated[int, Bits(32)]
U33 = Annotated[int, Bits(33)]
U62 = Annotated[int, Bits(62)]
U64 = Annotated[int, Bits(64)]
LedgerCount = Annotated[int, Bits(62), Role.LEDGER]
"""A count of what a run cost; left out of a state's identity."""


class Field(NamedTuple):
    """One field of a record, as declared."""

    name: str
    width: int | str | None
    length: int | str | None
    record: type[Any] | None
    role: Role


class Leaf(NamedTuple):
    """One integer of a record with all sizes known; `width` in bits."""

    path: Path
    width: int
    role: Role


@dataclass_transform()
def record(cls: type[T]) -> type[T]:
    """Make `cls` a record class: slotted, compared by value, unhashable, as declared by its annotations."""
    return dataclasses.dataclass(slots=True)(cls)


_fields: dict[type[Any], tuple[Field, ...]] = {}


def fields(cls: type[Any]) -> tuple[Field, ...]:
    """Return the fields of a record class in declaration order. Raises RecordError for a bad declaration."""
    if cls not in _fields:
        if not dataclasses.is_dataclass(cls):
            raise RecordError(f"{cls.__name__} is not a record")
        hints = get_type_hints(cls, include_extras=True)
        _fields[cls] = tuple(_field(cls, f.name, hints[f.name]) for f in dataclasses.fields(cls))
    return _fields[cls]


def _field(cls: type[Any], name: str, hint: Any) -> Field:
    base: Any = hint
    marks: list[Any] = []
    if get_origin(hint) is Annotated:
        base, *marks = get_args(hint)
    role = next((m for m in marks if isinstance(m, Role)), Role.STATE)
    bits = next((m for m in marks if isinstance(m, Bits)), None)
    each = next((m for m in marks if isinstance(m, Each)), None)
    if base is int and bits is not None:
        return Field(name, bits.width, None, None, role)
    if get_origin(base) is list and each is not None:
        item: Any = get_args(base)[0]
        if item is int and each.width is not None:
            return Field(name, each.width, each.length, None, role)
        if hasattr(item, "__dataclass_fields__") and each.width is None:
            return Field(name, None, each.length, item, role)
    if bits is None and each is None and hasattr(base, "__dataclass_fields__"):
        return Field(name, None, None, base, role)
    raise RecordError(f"{cls.__name__}.{name}: expected an integer with Bits, a record, or a list of either with Each")


def size(number_or_name: int | str, sizes: Sizes) -> int:
    """Return a length or width, looking a name up in `sizes`. Raises RecordError where it is missing."""
    if isinstance(number_or_name, int):
        return number_or_name
    if number_or_name not in sizes:
        raise RecordError(f"no number given for the size {number_or_name!r}")
    return sizes[number_or_name]


# ---- the class that CPython runs ----------------------------------------------------------------


def new(cls: type[T], sizes: Sizes | None = None, *, checked: bool = False) -> T:
    """Return a record with all integers zero.

    With `checked`, every assignment, also to an element of an array, raises WidthError unless the value is a
    non-negative integer of the declared width: for tests, since it is slow.
    """
    given: Sizes = sizes or {}
    made: T = (_checked_class(cls, given) if checked else cls)(
        **{f.name: _zero(f, given, checked) for f in fields(cls)}
    )
    return made


def _zero(f: Field, sizes: Sizes, checked: bool) -> Any:
    def one() -> Any:
        return 0 if f.record is None else new(f.record, sizes, checked=checked)

    if f.length is None:
        return one()
    items = [one() for _ in range(size(f.length, sizes))]
    if checked and f.width is not None:
        return _CheckedList(items, f.name, size(f.width, sizes))
    return items


def _fits(value: object, width: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0 and value >> width == 0


class _CheckedList(list[int]):
    """An array of integers that refuses a value wider than declared, and an index outside."""

    def __init__(self, items: list[int], name: str, width: int) -> None:
        super().__init__(items)
        self.name = name
        self.width = width

    def __setitem__(self, index: Any, value: Any) -> None:
        if not isinstance(index, int) or not 0 <= index < len(self):
            raise WidthError(f"{self.name}[{index!r}]: expected an index from 0 to {len(self) - 1}")
        if not _fits(value, self.width):
            raise WidthError(f"{self.name}[{index}] = {value!r}: expected an integer of {self.width} bits")
        super().__setitem__(index, value)


_checked: dict[tuple[type[Any], tuple[tuple[str, int], ...]], type[Any]] = {}


def _checked_class(cls: type[Any], sizes: Sizes) -> type[Any]:
    place = (cls, tuple(sorted(sizes.items())))
    if place not in _checked:
        _checked[place] = _make_checked(cls, sizes)
    return _checked[place]


def _make_checked(cls: type[Any], sizes: Sizes) -> type[Any]:
    widths = {f.name: size(f.width, sizes) for f in fields(cls) if f.width is not None and f.length is None}

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if name in widths and not _fits(value, widths[name]):
            raise WidthError(f"{cls.__name__}.{name} = {value!r}: expected an integer of {widths[name]} bits")
        object.__setattr__(self, name, value)

    def __eq__(self: Any, other: object) -> bool:
        return isinstance(other, cls) and all(getattr(self, f.name) == getattr(other, f.name) for f in fields(cls))

    body = {"__slots__": (), "__setattr__": __setattr__, "__eq__": __eq__, "__hash__": None}
    return type(f"Checked{cls.__name__}", (cls,), body)


def _declared(rec: object) -> type[Any]:
    cls = type(rec)
    return cls.__bases__[0] if cls.__name__.startswith("Checked") else cls


def assign(target: T, source: T) -> None:
    """Make `target` equal to `source`, in place. Both must be of one class and one set of sizes."""
    for f in fields(_declared(target)):
        value = getattr(source, f.name)
        if f.length is None and f.record is None:
            setattr(target, f.name, value)
            continue
        mine = getattr(target, f.name)
        if f.length is None:
            assign(mine, value)
        elif f.record is None:
            for i, item in enumerate(value):
                mine[i] = item
        else:
            for one, other in zip(mine, value, strict=True):
                assign(one, other)


def copy(rec: T) -> T:
    """Return an independent record equal to `rec`."""
    cls = _declared(rec)
    out = {}
    for f in fields(cls):
        value = getattr(rec, f.name)
        if f.record is not None:
            value = [copy(item) for item in value] if f.length is not None else copy(value)
        elif f.length is not None:
            value = list(value)
        out[f.name] = value
    made: T = cls(**out)
    return made


# ---- the integers of a record, one by one ------------------------------------------------------------


def leaves(cls: type[Any], sizes: Sizes | None = None) -> tuple[Leaf, ...]:
    """Return every integer of a record in declaration order: the bit vectors that a prover makes."""
    return tuple(_leaves(cls, sizes or {}, (), Role.STATE))


def _leaves(cls: type[Any], sizes: Sizes, path: Path, role: Role) -> Iterator[Leaf]:
    for f in fields(cls):
        mine = f.role if f.role is not Role.STATE else role
        places: list[Path] = [(*path, f.name)]
        if f.length is not None:
            places = [(*path, f.name, i) for i in range(size(f.length, sizes))]
        for place in places:
            if f.record is not None:
                yield from _leaves(f.record, sizes, place, mine)
            else:
                assert f.width is not None
                yield Leaf(place, size(f.width, sizes), mine)


def get(rec: Any, path: Path) -> Any:
    """Return the integer of `rec` at `path`."""
    for step in path:
        rec = rec[step] if isinstance(step, int) else getattr(rec, step)
    return rec


def put(rec: Any, path: Path, value: Any) -> None:
    """Set the integer of `rec` at `path`."""
    owner = get(rec, path[:-1])
    last = path[-1]
    if isinstance(last, int):
        owner[last] = value
    else:
        setattr(owner, last, value)


def check_widths(rec: Any, sizes: Sizes | None = None) -> None:
    """Raise WidthError naming the first integer of `rec` that does not fit its declared width."""
    for leaf in leaves(_declared(rec), sizes):
        if not _fits(get(rec, leaf.path), leaf.width):
            where = ".".join(str(step) for step in leaf.path)
            raise WidthError(f"{where} = {get(rec, leaf.path)!r}: expected an integer of {leaf.width} bits")


def key(rec: Any, sizes: Sizes | None = None) -> bytes:
    """Return the canonical bytes of a state: equal exactly for records equal apart from their ledger."""
    out = bytearray()
    for leaf in leaves(_declared(rec), sizes):
        if leaf.role is not Role.LEDGER:
            out += int(get(rec, leaf.path)).to_bytes((leaf.width + 7) // 8, "little")
    return bytes(out)


# ---- the layout that numba compiles against -------------------------------------------------------------


def storage(width: int) -> np.dtype[Any]:
    """Return the narrowest signed type that holds `width` unsigned bits; 64 bits wrap in an int64.

    Signed, because numba promotes an unsigned field met by a signed constant to a float without a word.
    """
    if not 1 <= width <= 64:
        raise RecordError(f"a field of {width} bits: expected 1 to 64")
    return np.dtype(next(t for t, room in (("i1", 7), ("i2", 15), ("i4", 31), ("i8", 64)) if width <= room))


def layout(cls: type[Any], sizes: Sizes | None = None) -> np.dtype[Any]:
    """Return the NumPy structured type of a record, packed, fields in declaration order."""
    given: Sizes = sizes or {}
    out: list[Any] = []
    for f in fields(cls):
        item = layout(f.record, given) if f.record is not None else storage(size(f.width or 0, given))
        out.append((f.name, item) if f.length is None else (f.name, item, (size(f.length, given),)))
    return np.dtype(out)


def store(rec: Any, row: npt.NDArray[Any], sizes: Sizes | None = None) -> None:
    """Write `rec` into `row`, an array of one element of its layout."""
    for leaf in leaves(_declared(rec), sizes):
        value = int(get(rec, leaf.path))
        owner, last = _owner(row, leaf.path)
        owner[last] = value - (1 << 64) if leaf.width == 64 and value >> 63 else value


def load(rec: Any, row: npt.NDArray[Any], sizes: Sizes | None = None) -> None:
    """Read `rec` from `row`, an array of one element of its layout."""
    for leaf in leaves(_declared(rec), sizes):
        owner, last = _owner(row, leaf.path)
        put(rec, leaf.path, int(owner[last]) & ((1 << leaf.width) - 1))


def _owner(row: npt.NDArray[Any], path: Path) -> tuple[Any, str | int]:
    owner: Any = row[0]
    for step in path[:-1]:
        owner = owner[step]
    return owner, path[-1]
