"""`pmuvisor compare` at a terminal: progress, Ctrl-C, the table, the JSON, the chart."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pmuvisor.board.machine import Status
from pmuvisor.lab import compare_report, progress, terminal
from pmuvisor.lab.compare import DesignRun, compare_guest, compare_scenario
from pmuvisor.lab.scenario import load


def run(arguments: argparse.Namespace) -> int:
    """Compare designs for a guest; return the exit status: 1 where it did not end well under one of them."""
    designs = arguments.designs
    request = terminal.request_of(arguments, designs[0])
    cpus = f"{request.vcpus} vCPU{'' if request.vcpus == 1 else 's'}"
    traps = "with" if request.fgt and request.core.fgt else "without"
    of = f"{request.core.name}, {request.core.event_counters} event counters, {request.core.mhz} MHz"
    what = shlex.join((request.guest, *(["--", *request.command] if request.command else [])))
    title = f"{what}\non {of}, {cpus}, {traps} fine-grained traps"

    def make(progress: Callable[[str], None], started: Callable[[Any], None]) -> list[DesignRun]:
        return compare_guest(request, designs, progress, started)

    return _compare(arguments, title, make)


def run_scenario(arguments: argparse.Namespace) -> int:
    """Compare designs for all VMs of a scenario; return the exit status."""
    scenario = load(Path(arguments.guest))
    table = terminal.cost_table(arguments.costs)

    def make(progress: Callable[[str], None], started: Callable[[Any], None]) -> list[DesignRun]:
        return compare_scenario(scenario, arguments.designs, table, progress, started)

    return _compare(arguments, arguments.guest, make)


def _compare(
    arguments: argparse.Namespace,
    title: str,
    make: Callable[[Callable[[str], None], Callable[[Any], None]], list[DesignRun]],
) -> int:
    plot = None if arguments.plot is None else Path(arguments.plot)
    if plot is not None:
        terminal.check_writable(plot, "plot")
        compare_report.check_plot()
    with terminal.ctrl_c() as started:
        runs = make(_progress(arguments.designs), started)
    progress.say("")
    if runs:
        if plot is not None:
            terminal.write_whole(plot, compare_report.plot(title, runs, plot.suffix[1:]))
        if arguments.json:
            print(json.dumps({"title": title, "designs": [run.as_json() for run in runs]}, indent=1))
        else:
            compare_report.show(title, runs, sys.stdout)
    if len(runs) < len(arguments.designs):
        return terminal.EXIT_STATUS[Status.EXIT]
    return 0 if all(run.fine for run in runs) else 1


def _progress(designs: Sequence[str]) -> Callable[[str], None]:
    """Say on a terminal which design is run."""

    def say_which(design: str) -> None:
        progress.say(f"{design} ({designs.index(design) + 1} of {len(designs)})")

    return say_which
