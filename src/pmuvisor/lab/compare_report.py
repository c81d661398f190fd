"""A comparison of designs for people: one table, the places where the guest measured something else, one chart."""

from __future__ import annotations

import importlib.util
import io
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from pmuvisor.lab import tables
from pmuvisor.lab.compare import DesignRun, Difference
from pmuvisor.lab.report import EXITS, number, printable
from pmuvisor.lab.run import RequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 4
"""Differences of a design that are printed."""
NOT_THE_PMU = "what has nothing to do with the PMU"
PARTS: dict[str, tuple[str, ...]] = {
    "accesses trapped": ("exits.pmu",),
    "perf events of the counters": (
        "perf_created",
        "perf_released",
        "perf_enabled",
        "perf_disabled",
        "perf_read",
        "perf_switched",
    ),
    "overflows and interrupts": ("exits.irq", "overflows", "interrupts_injected"),
    "registers swapped, host events moved": ("registers_swapped", "rescheduled"),
    NOT_THE_PMU: (
        *("exits.mmio", "exits.hvc", "exits.wfi", "exits.sgi", "loads", "puts"),
        *("exits.spe", "spe_drained", "spe_injected", "spe_stage2"),
    ),
}
"""The parts of a bar, and the items of the ledger in each."""
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "lightgrey")


def show(title: str, runs: Sequence[DesignRun], file: TextIO) -> None:
    """Print the table of a comparison and, below it, where designs differ from the first in what the guest measured."""
    for line in title.split("\n"):
        print(textwrap.shorten(printable(line, file.encoding or "utf-8"), tables.WIDTH, placeholder=" ..."), file=file)
    print(file=file)
    table = tables.empty()
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(run.design.replace("-", "-\n"), justify="right", overflow="fold")
    for words, cell in _rows(runs):
        table.add_row(words, *(cell(run) for run in runs))
    tables.show(table, file)
    for run in runs[1:]:
        if run.differences:
            print(file=file)
            print(*_differences(runs[0].design, run), sep="\n", file=file)


def _rows(runs: Sequence[DesignRun]) -> list[tuple[str, Callable[[DesignRun], str]]]:
    def count(name: str) -> Callable[[DesignRun], str]:
        return lambda run: number(run.ledger.get(name, 0))

    rows: list[tuple[str, Callable[[DesignRun], str]]] = [
        ("the guest's end", lambda run: run.status),
        ("what it measured", lambda run: _equality(run, runs[0])),
        ("event counters", lambda run: number(run.counters)),
        ("accesses to its PMU", lambda run: number(run.accesses)),
        ("  trapped", count("pmu_trapped")),
        ("exits to the host", lambda run: number(sum(run.ledger.get(n, 0) for n in EXITS))),
        ("PMU interrupts injected", count("interrupts_injected")),
        ("perf events created", count("perf_created")),
        ("PMU registers swapped", count("registers_swapped")),
        ("host events moved", count("rescheduled")),
    ]
    if any(run.lost_ns is not None for run in runs):
        rows.append(("host events waited, ms", lambda run: f"{(run.lost_ns or 0) / 1e6:,.1f}"))
    rows += [
        ("overhead, cycles", lambda run: number(run.overhead_cycles)),
        ("  for the PMU", lambda run: number(pmu_cycles(run))),
        ("guest's time, ms", lambda run: f"{run.seconds * 1e3:,.3f}"),
        ("overhead", lambda run: f"{100 * run.overhead:.2f} %"),
        ("  for the PMU", lambda run: f"{100 * run.overhead * _share(run):.2f} %"),
    ]
    return rows


def pmu_cycles(run: DesignRun) -> int:
    """Return what of the overhead is the virtual PMU's, in cycles."""
    return run.overhead_cycles - sum(run.overhead_by.get(name, 0) for name in PARTS[NOT_THE_PMU])


def _share(run: DesignRun) -> float:
    return pmu_cycles(run) / run.overhead_cycles if run.overhead_cycles else 0.0


def _equality(run: DesignRun, first: DesignRun) -> str:
    if run is first:
        return "(reference)"
    return f"differs: {len(run.differences)}" if run.differences else "equal"


def _differences(first: str, run: DesignRun) -> list[str]:
    out = [f"{run.design} differs from {first} in what the guest printed:"]
    for difference in run.differences[:SHOWN]:
        out += _lines(first, run.design, difference)
    more = len(run.differences) - SHOWN
    return [*out, *([f"  and {more:,} more"] if more > 0 else [])]


def _lines(first: str, design: str, difference: Difference) -> list[str]:
    """Return both lines, below each other; of long ones what is around the place where they part."""
    name = max(len(first), len(design))
    room = tables.WIDTH - name - 4
    both = [printable(line, "utf-8") or "(nothing)" for line in (difference.first, difference.here)]
    parting = next((n for n, (a, b) in enumerate(zip(*both, strict=False)) if a != b), min(map(len, both)))
    begin = 0 if max(map(len, both)) <= room else max(0, parting - room // 2)
    return [
        f"  {of:{name}}  {_cut(line, begin, room)}".rstrip() for of, line in zip((first, design), both, strict=True)
    ]


def _cut(line: str, begin: int, room: int) -> str:
    shown = line if not begin else "..." + line[begin + 3 :]
    return shown if len(shown) <= room else shown[: room - 3] + "..."


# ---- the chart --------------------------------------------------------------------------------------------


def check_plot() -> None:
    """Raise RequestError where matplotlib is not there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RequestError("plot: matplotlib is not installed: expected after `pip install pmuvisor[plot]`")


def plot(title: str, runs: Sequence[DesignRun], kind: str) -> bytes:
    """Return a chart of the overheads, a bar for each design: the same runs give the same bytes. `kind`: png or svg."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    style = {"svg.hashsalt": "pmuvisor", "svg.fonttype": "none", "font.size": 10}
    out = io.BytesIO()
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(8, 2.2 + 0.45 * len(runs)), layout="constrained")
        _bars(axes, runs)
        lines = [textwrap.shorten(printable(line, "utf-8"), 100, placeholder=" ...") for line in title.split("\n")]
        axes.set_title("\n".join(lines), fontsize=10, parse_math=False)
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, metadata=metadata, dpi=120)
        pyplot.close(figure)
    return out.getvalue()


def _bars(axes: Axes, runs: Sequence[DesignRun]) -> None:
    names = [run.design for run in runs]
    left = [0.0] * len(runs)
    for (part, items), color in zip(PARTS.items(), COLORS, strict=True):
        widths = [_percent(run, items) for run in runs]
        axes.barh(names, widths, left=left, label=part, color=color)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("overhead, % of the time without it (a model: docs/costs.md)")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _percent(run: DesignRun, items: Sequence[str]) -> float:
    if not run.overhead_cycles:
        return 0.0
    return 100 * run.overhead * sum(run.overhead_by.get(name, 0) for name in items) / run.overhead_cycles
