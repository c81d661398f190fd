"""Cost tables: what each item of the ledger takes, by core, read from the file beside this module or from a user's.

The file's own text says how it is made, docs/costs.md what the items are. Here is what it may say.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Iterable, Mapping
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from pmuvisor.arch.cores import Source, core, cores
from pmuvisor.board.clock import PRICED, Costs
from pmuvisor.lab import reading, tables
from pmuvisor.lab.reading import KeyProblem, Problem, Table

FILE = "costs.toml"
DEFAULT = "default"
"""What a core without costs of its own has."""
MAX_CYCLES = 10_000_000
MAX_SOURCE = 1000
"""Characters of a source."""
_CYCLES = reading.number(0, MAX_CYCLES)
_KNOWN = ("source", "assumption", *dict.fromkeys(name.partition(".")[0] for name in PRICED))
_EXITS = tuple(name.removeprefix("exits.") for name in PRICED if name.startswith("exits."))


class CostError(ValueError):
    """A cost table that cannot be used: one line with the file, the key, and what was expected."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """What an item costs, in cycles, and who says so."""

    cycles: int
    source: Source


@dataclasses.dataclass(frozen=True)
class CostTable:
    """A file of costs."""

    name: str
    by_core: Mapping[str, Mapping[str, Figure]]
    """`DEFAULT`, with every item, and each core that has items of its own."""

    def figures(self, of: str) -> dict[str, Figure]:
        """Return the costs of the core called `of`, item by item, in the order of `PRICED`."""
        figures = {**self.by_core[DEFAULT], **self.by_core.get(of, {})}
        return {name: figures[name] for name in PRICED}

    def of(self, name: str) -> Costs:
        """Return the costs of a core for a board."""
        return Costs({item: figure.cycles for item, figure in self.figures(name).items()})


@functools.cache
def built_in() -> CostTable:
    """Return the table that pmuvisor comes with."""
    with resources.as_file(resources.files("pmuvisor.lab").joinpath(FILE)) as path:
        return load(path, FILE)


def load(path: Path, name: str = "") -> CostTable:
    """Return the table of a file, which errors call `name`. Raises CostError."""
    name = name or str(path)
    try:
        return CostTable(name, _read(reading.read_toml(path)))
    except Problem as problem:
        raise CostError(f"{name}: {problem}") from None


def _read(data: dict[str, Any]) -> dict[str, dict[str, Figure]]:
    file = Table(data, "", (DEFAULT, *cores()))
    by_core = {name: _core(Table(value, name, ("costs",))) for name, value in file.values.items()}
    for item in PRICED:
        if item not in by_core.get(DEFAULT, {}):
            raise KeyProblem(f"{DEFAULT}.costs", f"{item}: missing", f"{_CYCLES.expected}, in cycles, with its source")
    return by_core


def _core(of: Table) -> dict[str, Figure]:
    expected = f"groups, each begun by [[{of.name}.costs]]"
    figures: dict[str, Figure] = {}
    for value, key in reading.items(of.need("costs", expected), of.key("costs"), expected):
        group = Table(value, key, _KNOWN)
        source = _source(group)
        costs = _costs(group)
        if not costs:
            raise KeyProblem(key, "no cost", "one or more that the source is for")
        for item, cycles in costs.items():
            if item in figures:
                raise KeyProblem(f"{key}.{item}", "there is one already", "each item once, with one source")
            figures[item] = Figure(cycles, source)
    return figures


def _source(group: Table) -> Source:
    there = [name for name in ("source", "assumption") if name in group]
    if len(there) != 1:
        raise KeyProblem(group.name, f"{' and '.join(there) or 'neither'}", "one 'source' or one 'assumption'")
    value = group.values[there[0]]
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text or not text.isprintable() or len(text) > MAX_SOURCE:
        expected = f"a printable text of 1 to {MAX_SOURCE} characters"
        raise KeyProblem(group.key(there[0]), reading.shown(value), expected)
    return Source(text, there[0] == "assumption")


def _costs(group: Table) -> dict[str, int]:
    """Return the costs of a group by item; those of exits are a table in it."""
    exits = Table(group.values.get("exits", {}), group.key("exits"), _EXITS)
    costs = {f"exits.{name}": exits.take(name, _CYCLES) for name in exits.values}
    return costs | {name: group.take(name, _CYCLES) for name in PRICED if name in group}


# ---- pmuvisor costs ---------------------------------------------------------------------------------------


def show(arguments: argparse.Namespace) -> int:
    """Print the costs of the core that is named, with their sources; return the exit status."""
    table = built_in() if arguments.costs is None else load(Path(arguments.costs))
    of = core(arguments.name)
    figures = table.figures(of.name)
    if arguments.json:
        json.dump({"core": of.name, "mhz": of.mhz, "costs": _as_json(figures)}, sys.stdout, indent=1)
        print()
    else:
        _show(of.name, of.mhz, figures.items(), sys.stdout)
    return 0


def _as_json(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {
        item: {"cycles": figure.cycles, "source": figure.source.text, "assumed": figure.source.assumed}
        for item, figure in figures.items()
    }


def _show(name: str, mhz: int, figures: Iterable[tuple[str, Figure]], file: TextIO) -> None:
    tables.show(f"{name}: costs in cycles, of which a microsecond has {mhz:,}\n", file)
    table = tables.empty()
    table.add_column("item", no_wrap=True)
    table.add_column("cycles", justify="right", no_wrap=True)
    table.add_column("source", ratio=1, overflow="fold")
    for source, group in groupby(figures, lambda item: item[1].source):
        rows = [(item, f"{figure.cycles:,}") for item, figure in group]
        words = f"Assumption: {source.text}" if source.assumed else source.text
        table.add_row("\n".join(item for item, _ in rows), "\n".join(cycles for _, cycles in rows), words)
        table.add_section()
    tables.show(table, file)
