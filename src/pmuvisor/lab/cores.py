"""`pmuvisor cores`: the data file of cores as a list, and one core with the source of each of its figures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, TextIO

from pmuvisor.arch.cores import FIGURES, PMU_VERSIONS, SPE_VERSIONS, Core, Source, core, cores, events_as_text
from pmuvisor.lab import tables

_FEATURES = ("fgt", "fgt2", "hpmn0", "icntr")


def show(arguments: argparse.Namespace) -> int:
    """Print the list of cores, or all of the core that is named; return the exit status."""
    chosen = cores() if arguments.name is None else {arguments.name: core(arguments.name)}
    if arguments.json:
        json.dump([_as_json(each) for each in chosen.values()], sys.stdout, indent=1)
        print()
    elif arguments.name is None:
        _show_list(chosen.values(), sys.stdout)
    else:
        _show_one(chosen[arguments.name], sys.stdout)
    return 0


_HEAD = ("core", "PMU", "counters", "SPE", "MHz", "features")


def _show_list(of: Iterable[Core], file: TextIO) -> None:
    table = tables.empty()
    for name in _HEAD:
        table.add_column(name, justify="right" if name in ("counters", "MHz") else "left")
    for each in of:
        table.add_row(*_row(each))
    tables.show(table, file)


def _row(of: Core) -> tables.Row:
    features = " ".join(name.upper() for name in _FEATURES if getattr(of, name))
    spe = SPE_VERSIONS[of.spe] if of.spe else "-"
    return of.name, PMU_VERSIONS[of.pmuver], str(of.event_counters), spe, str(of.mhz), features or "-"


def _show_one(of: Core, file: TextIO) -> None:
    tables.show(f"{of.name}: {of.about}\n", file)
    table = tables.empty()
    for name in ("figure", "value"):
        table.add_column(name, no_wrap=True)
    table.add_column("source", ratio=1, overflow="fold")
    for source, group in groupby(of.sources.items(), lambda item: item[1]):
        names, values = [], []
        for figure, _ in group:
            lines = _value(of, figure)
            names += [figure, *[""] * (len(lines) - 1)]
            values += lines
        table.add_row("\n".join(names), "\n".join(values), _words(source))
        table.add_section()
    tables.show(table, file)


def _words(source: Source) -> str:
    return f"Assumption: {source.text}" if source.assumed else source.text


def _value(of: Core, figure: str) -> list[str]:
    return _SHOWN.get(figure, str)(getattr(of, figure)).split("\n")


def _hex(width: int) -> Callable[[int], str]:
    return lambda value: f"{value:#0{width + 2}x}"


def _translated(value: tuple[tuple[int, int], ...]) -> str:
    return "\n".join(f"{common:#04x} by {own:#04x}" for common, own in value)


_SHOWN: dict[str, Callable[[Any], str]] = {
    "pmuver": lambda value: f"{value} ({PMU_VERSIONS[value]})",
    "implementer": _hex(2),
    "idcode": _hex(2),
    "midr": _hex(8),
    "pmmir": _hex(8),
    "spe": lambda value: f"{value} ({SPE_VERSIONS[value]})",
    "events": lambda value: events_as_text(value).replace(" ", "\n"),
    "translated": _translated,
    **{name: lambda value: "yes" if value else "no" for name in (*_FEATURES, "el3", "sel2", "mt", "aarch32")},
}
"""How a figure is shown, where its number is not the best way."""


def _as_json(of: Core) -> dict[str, Any]:
    return {
        "name": of.name,
        "about": of.about,
        "figures": {
            name: {
                "value": getattr(of, name),
                "source": of.sources[name].text,
                "assumed": of.sources[name].assumed,
            }
            for name in FIGURES
            if name in of.sources
        },
    }
