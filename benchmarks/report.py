"""The benchmarks' table."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import qemu, spin
from benchmarks.figures import Figure, Options, Section
from pmuvisor import __version__

WIDTH = 80


def machine() -> dict[str, str]:
    """What the figures are of: processor, Python, versions."""
    versions = {name: importlib.metadata.version(name) for name in ("unicorn", "numba", "numpy", "simpy")}
    return {
        "processor": f"{_processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "pmuvisor": __version__,
        **versions,
        "peer": qemu.version(),
        "spin": spin.version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"


def show(sections: Sequence[Section], about: dict[str, str], options: Options, file: TextIO) -> None:
    """Print all figures as one table, and under it how each came about."""
    console = Console(file=file, highlight=False, width=WIDTH)
    peers = "; ".join((about["peer"], f"SimPy {about['simpy']}", about["spin"]))
    console.print(f"{about['processor']}\n{_versions(about)}\npeers: {peers}", markup=False)
    work = "" if options.scale == 1 else f", {options.scale:g} of the usual work"
    console.print(f"median of {options.rounds} rounds{work}; ratio: pmuvisor to peer", markup=False)
    table = Table(box=box.SIMPLE_HEAD, width=WIDTH, padding=(0, 1, 0, 0))
    table.add_column("", ratio=1)
    for heading in ("pmuvisor", "peer", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for section in sections:
        table.add_section()
        table.add_row(f"[bold]{section.title}[/bold]")
        for figure in section.figures:
            table.add_row(figure.name, _value(figure, figure.value), _value(figure, figure.peer_value), _last(figure))
    console.print(table)
    for section in sections:
        words = " ".join(section.how.split())
        console.print(f"{section.name}: {words}\n  Again: python -m benchmarks --only {section.name}", markup=False)


def _versions(about: dict[str, str]) -> str:
    names = ("pmuvisor", "unicorn", "numba", "numpy")
    return ", ".join([about["python"], *(f"{name} {about[name]}" for name in names)])


def _value(figure: Figure, value: float | None) -> str:
    return "-" if value is None else f"{value:,.{figure.digits}f} {figure.unit}"


def _last(figure: Figure) -> str:
    return figure.note if figure.ratio is None else f"{figure.ratio:.2f}"
