"""`pmuvisor check` and `pmuvisor defects`: explorations at a terminal, what they find, and the catalogue."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, TextIO

from pmuvisor.check import catalogue, plain, story
from pmuvisor.check.defects import Defect
from pmuvisor.check.explore import CheckpointError, Exploration
from pmuvisor.check.found import Result, Violation
from pmuvisor.check.model import Model
from pmuvisor.check.walks import Walker, WalkResult
from pmuvisor.compiled import Replaced
from pmuvisor.lab import tables
from pmuvisor.lab.progress import Clock, say
from pmuvisor.lab.run import RequestError
from pmuvisor.lab.tables import WIDTH
from pmuvisor.lab.terminal import check_writable, ctrl_c, where_to, whole_file, write_result

_CHECKPOINT_SECONDS = 10
PLAIN_STATES = 3_000
"""States in which a defect is sought by CPython, some seconds, before anything is compiled."""
Where = tuple[Path | None, TextIO]
"""The file for JSON, and where what is for people goes (`terminal.where_to`)."""
COMPILING = "compiling, some 20 s, unless it has been kept from the last time"
INTERRUPTED = 130


def check(arguments: argparse.Namespace) -> int:
    """Explore, and print what was found; return the exit status. Raises RequestError."""
    defect = None if arguments.defect is None else catalogue.defect(arguments.defect)
    of = _model(arguments, defect)
    asked = of.every if arguments.property is None else 1 << _place(of, arguments.property)
    where = where_to(arguments.json)
    checkpoint = None if arguments.checkpoint is None else Path(arguments.checkpoint)
    if checkpoint is not None:
        check_writable(checkpoint, "checkpoint")
    if arguments.walks is not None:
        return _walk(arguments, of, defect, asked, where)
    exploration = Exploration(of, _replaced(defect), asked, arguments.threads)
    if checkpoint is not None and checkpoint.exists():
        _resume(exploration, checkpoint)
    result = _explore(exploration, checkpoint, defect)
    return _end(arguments, exploration, defect, where, result, _table(result), _as_json(exploration, result))


def _end(
    arguments: argparse.Namespace,
    exploration: Exploration,
    defect: Defect | None,
    where: Where,
    result: Result | WalkResult,
    table: Any,
    as_json: dict[str, object],
) -> int:
    """Print what came of an exploration, or of walks: the story, the table, the JSON; return the exit status."""
    path, people = where
    lines = _story(exploration, result.violation)

    def show() -> None:
        print(_title(exploration.model, defect), *_told(lines), sep="\n", file=people)
        tables.show(table, people)

    write_result(as_json, arguments.json, path, show)
    if result.violation is not None:
        return 1
    return 0 if result.complete else INTERRUPTED


def _model(arguments: argparse.Namespace, defect: Defect | None) -> Model:
    """Return what is to be explored: of somebody's own design, where there is one, unless another is named."""
    own, preset, design = arguments.own, arguments.preset, arguments.design
    if defect is not None:
        preset = preset or defect.preset
        design = design or (defect.design if catalogue.fits(preset, defect.design) else None)
    preset = preset or catalogue.default_preset(design)
    changes = dict(_change(text) for text in arguments.set)
    try:
        return catalogue.named(preset, design, changes, own)
    except catalogue.DesignError as error:
        raise RequestError(f"design: {error}") from None
    except catalogue.PresetError as error:
        raise RequestError(f"set: {error}") from None


def _change(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _place(of: Model, name: str) -> int:
    names = [each.name for each in of.properties]
    if name not in names:
        raise RequestError(f"property {name!r}: expected one of {', '.join(names)}")
    return names.index(name)


def _resume(exploration: Exploration, path: Path) -> None:
    try:
        with path.open("rb") as file:
            exploration.resume(file)
    except (CheckpointError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"checkpoint: {path}: {why}: expected a checkpoint of this exploration") from None


def _explore(exploration: Exploration, checkpoint: Path | None, defect: Defect | None) -> Result:
    """Run an exploration, with the checkpoint as its memory. A defect is sought without compiling anything first."""
    if defect is not None and checkpoint is None:
        say("looking without compiling")
        found = plain.explore(exploration.model, _replaced(defect), exploration.asked, PLAIN_STATES)
        say("")
        if found.violation is not None or found.complete:
            return found
    say(COMPILING)
    with ctrl_c() as started:
        started(exploration)
        result = exploration.run(_Progress(exploration, checkpoint))
    say("")
    if checkpoint is not None:
        _save(exploration, checkpoint)
    return result


def _save(exploration: Exploration, path: Path) -> None:
    with whole_file(path) as file:
        exploration.save(file)


def _replaced(defect: Defect | None) -> Replaced | None:
    return None if defect is None else {defect.sound: defect.defective}


def _title(of: Model, defect: Defect | None) -> str:
    words = of.title
    return words if defect is None else textwrap.fill(f"{words}; with the defect {defect.name}", WIDTH)


def _story(exploration: Exploration, violation: Violation | None) -> list[str]:
    if violation is None:
        return []
    return story.tell(exploration.model, exploration.replay(violation), violation)


def _told(lines: list[str]) -> list[str]:
    told: list[str] = []
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 5)
        told += textwrap.wrap(line, WIDTH, subsequent_indent=indent, drop_whitespace=True) or [""]
    return told


# ---- random walks -----------------------------------------------------------------------------------------


def _walk(arguments: argparse.Namespace, of: Model, defect: Defect | None, asked: int, where: Where) -> int:
    """Make random walks, and print what was found; return the exit status."""
    walker = Walker(of, _replaced(defect), asked, arguments.threads)
    say(COMPILING)
    with ctrl_c() as started:
        started(walker)
        result = walker.run(arguments.seed, arguments.walks, arguments.steps, _WalkProgress(arguments.walks))
    say("")
    exploration = Exploration(of, _replaced(defect), asked)
    return _end(arguments, exploration, defect, where, result, _walk_table(result), _walk_as_json(of, result))


def _walk_table(result: WalkResult) -> Any:
    rate = result.steps / result.seconds if result.seconds else 0.0
    rows = [
        ("random walks", f"{result.walks:,}"),
        ("steps", f"{result.steps:,}"),
        ("steps a second", f"{rate:,.0f}"),
        ("seconds", f"{result.seconds:.1f}"),
    ]
    if result.violation is not None:
        rows.append(("seed of the walk that breaks a property", f"{result.seed}"))
        rows.append(("its steps, and what is left of them", f"{result.walked:,}, {len(result.violation.actions)}"))
    return tables.table(("walked", ""), rows)


def _walk_as_json(of: Model, result: WalkResult) -> dict[str, object]:
    return {
        "model": of.title,
        "walks": result.walks,
        "steps": result.steps,
        "complete": result.complete,
        "seconds": result.seconds,
        "seed": result.seed,
        "violation": _violation_as_json(of, result.violation),
    }


class _WalkProgress:
    """Says on a terminal how many walks have been made."""

    def __init__(self, walks: int) -> None:
        self._walks, self._clock = walks, Clock()

    def __call__(self, so_far: WalkResult) -> None:
        if self._clock.is_due():
            rate = so_far.steps / so_far.seconds
            say(f"{so_far.walks:,} of {self._walks:,} walks, {rate:,.0f} steps a second")


# ---- what was found ---------------------------------------------------------------------------------------


def _table(result: Result) -> Any:
    found = "yes" if result.complete else "a property breaks" if result.violation else "no, interrupted"
    rate = result.states / result.seconds if result.seconds else 0.0
    rows = [
        ("distinct states", f"{result.states:,}"),
        ("transitions", f"{result.transitions:,}"),
        ("depth", f"{result.depth}"),
        ("complete", found),
        ("seconds", f"{result.seconds:.1f}"),
        ("states a second", f"{rate:,.0f}"),
        ("bits of a state", f"{result.state_bits}"),
        ("memory", f"{result.bytes_used / (1 << 20):,.0f} MiB"),
    ]
    return tables.table(("explored", ""), rows)


def _as_json(exploration: Exploration, result: Result) -> dict[str, object]:
    return {
        "model": exploration.model.title,
        "states": result.states,
        "transitions": result.transitions,
        "depth": result.depth,
        "complete": result.complete,
        "seconds": result.seconds,
        "violation": _violation_as_json(exploration.model, result.violation),
    }


def _violation_as_json(of: Model, violation: Violation | None) -> dict[str, object] | None:
    if violation is None:
        return None
    trace = [of.actions[action].words for action in violation.actions]
    return {"property": of.properties[violation.property].name, "trace": trace}


class _Progress:
    """Says on a terminal how far an exploration is, and keeps its checkpoint."""

    def __init__(self, exploration: Exploration, checkpoint: Path | None) -> None:
        self._exploration, self._checkpoint = exploration, checkpoint
        self._clock, self._saved_at = Clock(), time.monotonic()

    def __call__(self, so_far: Result) -> None:
        if self._checkpoint is not None and time.monotonic() - self._saved_at > _CHECKPOINT_SECONDS:
            _save(self._exploration, self._checkpoint)
            self._saved_at = time.monotonic()
        if self._clock.is_due():
            rate = so_far.states / so_far.seconds
            memory = so_far.bytes_used / (1 << 20)
            say(f"{so_far.states:,} states, depth {so_far.depth}, {rate:,.0f} a second, {memory:,.0f} MiB")


# ---- the catalogue ----------------------------------------------------------------------------------------


def show_defects(arguments: argparse.Namespace) -> int:
    """Print the catalogue, or find every defect in it; return the exit status."""
    found = [_find(defect) for defect in catalogue.ALL] if arguments.check else []
    if arguments.json:
        rows: list[dict[str, object]] = [
            {"name": d.name, "source": d.source, "effect": d.effect, "design": d.design} for d in catalogue.ALL
        ]
        for row, (name, length) in zip(rows, found, strict=False):
            row |= {"property": name, "trace_length": length}
        json.dump({"defects": rows}, sys.stdout, indent=1)
        print()
    elif arguments.check:
        cells = [
            (d.name, d.design, name, str(length) if length else "not found")
            for d, (name, length) in zip(catalogue.ALL, found, strict=True)
        ]
        tables.show(tables.table(("defect", "design", "breaks", "steps"), cells), sys.stdout)
    else:
        for defect in catalogue.ALL:
            print(f"{defect.name} ({defect.design})")
            for words in (defect.effect, f"Source: {defect.source}"):
                print(textwrap.fill(words, WIDTH, initial_indent="  ", subsequent_indent="  "))
    return int(any(length == 0 for _, length in found))


def _find(defect: Defect) -> tuple[str, int]:
    """Return the property that a defect breaks, and the steps of the shortest way; 0 where none is found."""
    say(defect.name)
    model = catalogue.named(defect.preset, defect.design)
    found = plain.explore(model, _replaced(defect))
    say("")
    if found.violation is None:
        return "-", 0
    return model.properties[found.violation.property].name, len(found.violation.actions)
