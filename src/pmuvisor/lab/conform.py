"""`pmuvisor conform` at a terminal: what was equal, what a rule allows, and what nothing explains."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pmuvisor.arch.unpredictable import choices_reached
from pmuvisor.lab import tables
from pmuvisor.lab.replay import REFERENCES, Report, replay
from pmuvisor.lab.vectors import read_vectors


def run(arguments: argparse.Namespace) -> int:
    """Replay the files that the command line names; return the exit status: 1 where there is a mismatch."""
    vectors = read_vectors(Path(arguments.operations), Path(arguments.answers))
    with _progress(len(vectors)) as progress:
        report = replay(REFERENCES[arguments.reference], vectors, progress)
    if arguments.json:
        print(json.dumps(report.as_json(), indent=1))
    else:
        show(report, sys.stdout)
    return 1 if report.mismatches else 0


def show(report: Report, file: TextIO) -> None:
    """Print a report for people."""
    reference = report.reference
    print(textwrap.fill(f"{reference.name}: {reference.about}; core {reference.core}", tables.WIDTH), file=file)
    print(file=file)
    used = [rule for rule in reference.rules if report.allowed[rule.name]]
    as_expected = "as the emulated design answers" if reference.emulated else "as the architecture says"
    rows = [(as_expected, report.equal)]
    rows += [(rule.name, report.allowed[rule.name]) for rule in used]
    rows += [("mismatches", report.mismatches), ("all", report.operations)]
    tables.show(tables.table(("answers", "operations"), [(name, f"{count:,}") for name, count in rows]), file)
    for rule in used:
        print(file=file)
        print(textwrap.fill(f"{rule.name}: {rule.sentence}. {rule.source}.", tables.WIDTH), file=file)
    for choice in choices_reached(report.unpredictable):
        print(file=file)
        print(textwrap.fill(f"left open by the architecture: {choice.case}; {choice.chosen}.", tables.WIDTH), file=file)
    for mismatch in report.first_mismatches:
        print(file=file)
        print(*mismatch.lines(), sep="\n", file=file)
    hidden = report.mismatches - len(report.first_mismatches)
    if hidden:
        print(f"\nand {hidden:,} more", file=file)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar where standard error is a terminal; the context is told how many operations are done."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("operations", total=total)
        yield lambda done: bar.update(task, completed=done)
