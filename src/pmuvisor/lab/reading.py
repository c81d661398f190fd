"""Reading files of TOML that people write: every value is checked where it is taken, and an error names its key.

A `Kind` says what is expected of a value and reads it. A `Table` gives its values by key, and knows its keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
D = TypeVar("D")

MAX_BYTES = 1 << 20
MAX_DOTS = 64
"""In one line of a file: tomllib takes a time that is the square of a key's parts."""
MAX_ITEMS = 1024
"""Of one list."""
MAX_TABLES = 256
"""Of one array of tables."""
_SHOWN = 40
"""Characters of a value that an error shows."""
_LISTED = 20
"""How many names an error lists of those that were expected."""
MICROSECOND, MILLISECOND, SECOND = 1_000, 1_000_000, 1_000_000_000
_TIMES = {"s": SECOND, "ms": MILLISECOND, "us": MICROSECOND, "ns": 1}
_SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Problem(ValueError):
    """What is wrong with a file: one line without the file's name."""


class KeyProblem(Problem):
    """What is wrong at a key: one line of the key, what is there, and what was expected."""

    def __init__(self, key: str, wrong: str, expected: str) -> None:
        super().__init__(f"{key}: {wrong}: expected {expected}")


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a file says. Raises Problem for one that is not TOML."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise Problem(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise Problem(f"too large: expected at most {MAX_BYTES >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Problem(f"byte {error.start}: not UTF-8: expected a TOML file") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MAX_DOTS and not line.lstrip().startswith("#"):
            raise Problem(f"line {number}: more than {MAX_DOTS} dots: expected keys of few parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise Problem("lists or tables nested too deep: expected a few levels") from None
    except ValueError as error:
        raise Problem(f"not TOML: {' '.join(str(error).split())}") from None


# ---- what errors say --------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """Return a value for an error: short and on one line, whatever it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value) if len(value) <= _SHOWN else repr(value[:_SHOWN]) + "..."
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return str(value)
    if isinstance(value, list):
        return "a list"
    return "a table" if isinstance(value, dict) else "a date or time"


def key_of(parent: str, name: str) -> str:
    """Return the key `name` of the table `parent`, "" being the file itself; quoted where TOML asks for quotes."""
    part = name if re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) else shown(name)
    return f"{parent}.{part}" if parent else part


def listed(names: Iterable[str]) -> str:
    """Return the names that were expected, the first of them where there are many."""
    first = list(names)
    more = ["..."] if len(first) > _LISTED else []
    return ", ".join([*first[:_LISTED], *more])


def near(name: str, names: Iterable[str]) -> str:
    """Return a hint at the name that is most like `name`, or nothing where none is."""
    close = difflib.get_close_matches(name[:_SHOWN], list(names), 1)
    return f" (near: {close[0]})" if close else ""


def chosen(value: object, key: str, names: Sequence[str], what: str = "") -> str:
    """Return `value` where it is one of `names`, which are `what`."""
    if isinstance(value, str) and value in names:
        return value
    hint = near(value, names) if isinstance(value, str) else ""
    expected = f"one of {listed(names)}" if names else f"the name of {what}, and there is none"
    raise KeyProblem(key, shown(value) + hint, expected)


# ---- kinds of values --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind(Generic[T]):
    """A kind of value: what was expected where another is found, and how it is read; None for what is not of it."""

    expected: str
    parse: Callable[[object], T | None]

    def read(self, value: object, key: str) -> T:
        """Return the value at `key`, read. Raises KeyProblem for one of another kind."""
        parsed = self.parse(value)
        if parsed is None:
            raise KeyProblem(key, shown(value), self.expected)
        return parsed


def number(lowest: int, highest: int) -> Kind[int]:
    """An integer; true and false are none."""
    return Kind(
        f"a whole number from {lowest} to {highest}",
        lambda value: value if type(value) is int and lowest <= value <= highest else None,
    )


def scaled(lowest: Fraction, highest: int, scale: int, unit: str = "") -> Kind[int]:
    """A number with a fraction, in units of 1/`scale`, rounded to the nearest."""

    def parse(value: object) -> int | None:
        if type(value) is float and not math.isfinite(value):
            return None
        if type(value) not in (int, float) or not lowest <= value <= highest:  # type: ignore[operator]
            return None
        return round(Fraction(str(value)) * scale)

    return Kind(f"a number{unit} from {float(lowest):g} to {highest}", parse)


def text(expected: str, pattern: str) -> Kind[str]:
    """A text that is all of `pattern`."""
    return Kind(expected, lambda value: value if isinstance(value, str) and re.fullmatch(pattern, value) else None)


def _amount(value: object, units: dict[str, int]) -> Fraction | None:
    """Return the amount of a text of a number and a unit."""
    if not isinstance(value, str):
        return None
    found = re.fullmatch(r"([0-9]{1,13}(?:\.[0-9]{1,9})?) ?([A-Za-z]{1,2})", value)
    if found is None or found[2] not in units:
        return None
    return Fraction(found[1]) * units[found[2]]


def time_text(ns: int) -> str:
    """Return a time as one would write it: `2s`, `1500us`."""
    unit = next(unit for unit, size in _TIMES.items() if ns % size == 0)
    return f"{ns // _TIMES[unit]}{unit}" if ns else "0s"


def time(lowest: int, highest: int) -> Kind[int]:
    """A time in nanoseconds, written with its unit."""

    def parse(value: object) -> int | None:
        ns = _amount(value, _TIMES)
        return int(ns) if ns is not None and ns.denominator == 1 and lowest <= ns <= highest else None

    range_ = f"from {time_text(lowest)} to {time_text(highest)}"
    return Kind(f'a time {range_} with its unit (s, ms, us, ns), such as "500ms"', parse)


def size(lowest: int, highest: int) -> Kind[int]:
    """A size in bytes, whole MiB, written with its unit."""

    def parse(value: object) -> int | None:
        wanted = _amount(value, _SIZES)
        return int(wanted) if wanted is not None and lowest <= wanted <= highest and wanted % (1 << 20) == 0 else None

    return Kind(f'whole MiB from {lowest >> 20}M to {highest >> 30}G, such as "256M" or "1G"', parse)


def size_text(size: int) -> str:
    """Return a size as one would write it: `8K`, `64M`."""
    unit = next(unit for unit, bytes_ in reversed(_SIZES.items()) if size % bytes_ == 0)
    return f"{size // _SIZES[unit]}{unit}"


def power_of_two(lowest: int, highest: int) -> Kind[int]:
    """A size in bytes, a power of two, written with its unit."""

    def parse(value: object) -> int | None:
        wanted = _amount(value, _SIZES)
        if wanted is None or wanted.denominator != 1 or not lowest <= wanted <= highest:
            return None
        return int(wanted) if int(wanted).bit_count() == 1 else None

    return Kind(f'a power of two from {size_text(lowest)} to {size_text(highest)}, such as "4M"', parse)


FLAG: Kind[bool] = Kind("true or false", lambda value: value if isinstance(value, bool) else None)


# ---- tables -----------------------------------------------------------------------------------------------


class Table:
    """A table of the file. Raises KeyProblem for what is no table, and for a key that is not one of `known`."""

    def __init__(self, value: object, key: str, known: Sequence[str]) -> None:
        if not isinstance(value, dict):
            raise KeyProblem(key, shown(value), "a table")
        self.values: dict[str, Any] = value
        self.name = key
        for name in value:
            if name not in known:
                raise KeyProblem(self.key(name), f"unknown key{near(name, known)}", f"one of {listed(known)}")

    def __contains__(self, name: str) -> bool:
        """Tell whether the table has a key."""
        return name in self.values

    def key(self, name: str) -> str:
        """Return the whole key of one of the table's."""
        return key_of(self.name, name)

    def need(self, name: str, expected: str) -> Any:
        """Return a value that has to be there."""
        if name not in self.values:
            raise KeyProblem(self.key(name), "missing", expected)
        return self.values[name]

    def take(self, name: str, kind: Kind[T]) -> T:
        """Return a value that has to be there, read."""
        return kind.read(self.need(name, kind.expected), self.key(name))

    def take_or(self, name: str, kind: Kind[T], default: D) -> T | D:
        """Return a value, read, or `default` where it is not there."""
        return kind.read(self.values[name], self.key(name)) if name in self.values else default


def items(value: object, key: str, expected: str, most: int = MAX_ITEMS) -> list[tuple[Any, str]]:
    """Return the items of a list that is not empty, each with its key."""
    if not isinstance(value, list) or not value:
        raise KeyProblem(key, "an empty list" if value == [] else shown(value), expected)
    if len(value) > most:
        raise KeyProblem(key, f"{len(value)} items", f"at most {most}")
    return [(item, f"{key}[{n}]") for n, item in enumerate(value)]


def tables(parent: Table, name: str, known: Sequence[str]) -> list[Table]:
    """Return the tables of an array of tables; none where it is not there."""
    if name not in parent:
        return []
    made = items(parent.values[name], name, f"tables, each begun by [[{name}]]", MAX_TABLES)
    return [Table(item, key, known) for item, key in made]
