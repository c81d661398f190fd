"""How fast a host without guests' code runs, and what an event costs on more CPUs and with more vCPUs."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import event_loop
from benchmarks.figures import Figure, Options, Section
from pmuvisor.lab.compiled_host import CHUNK
from pmuvisor.lab.hosting import Hosting
from pmuvisor.lab.scenario import load

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCENARIO = """
duration = "1000s"
[host]
cpus = [{{core = "neoverse-n1", number = {cpus}}}]
[[perf]]
name = "counted"
events = ["CPU_CYCLES", "INST_RETIRED", "CPU_CYCLES", "INST_RETIRED", "CPU_CYCLES", "INST_RETIRED"]
cpu = "0-{last}"
[[perf]]
name = "sampled"
events = ["INST_RETIRED"]
period = 1000003
cpu = "0-{last}"
"""
VM = """
[[vm]]
name = "vm{number}"
guest = "busy"
vcpus = {vcpus}
counters = 4
burst = "1700us"
pause = "900us"
"""
VCPUS_OF_VM = 500
"""vCPUs of a VM at most; KVM allows 512."""
BY_CPUS = ((2, 4), (8, 16), (32, 64), (128, 256))
BY_VCPUS = ((16, 10), (16, 100), (16, 1000))
"""CPUs and vCPUs of the hosts that are compared."""
INTERPRETED, COMPILED, LOOPS = 20_000, 400_000, 300_000
"""Events of a measurement."""
HOW = f"""Every CPU of a host of Neoverse N1 has 6 events open and one that samples, for 2 event counters beside a
guest; vCPUs run for 1.7 ms and sleep for 0.9 ms. An event is one of the host's queue: a slice or burst that ends, a
wake, the multiplexing timer, a counter's overflow, with the context swaps and rescheduling that follow from it.
Opening the sessions is not in it, nor is compiling. Event loop alone: {event_loop.ENTITIES:,} entities, each due
again after a pseudo-random delay; both sides have the same delays in the same order, which is checked. Times are the
process's CPU time."""


@dataclass(frozen=True)
class Point:
    """What an event costs on one host, in ns, of each round."""

    cpus: int
    vcpus: int
    costs: Sequence[float]

    @property
    def cost(self) -> float:
        """The median."""
        return statistics.median(self.costs)


@dataclass(frozen=True)
class Curves:
    """What is compared: hosts with more CPUs, and hosts with more vCPUs."""

    by_cpus: Sequence[Point]
    by_vcpus: Sequence[Point]


Shapes = Sequence[tuple[int, int]]


def measure(options: Options, by_cpus: Shapes = BY_CPUS, by_vcpus: Shapes = BY_VCPUS) -> Section:
    """Time the host in CPython and compiled, on hosts of different sizes, and the event loop against SimPy's."""
    curves = Curves(_points(options, by_cpus), _points(options, by_vcpus))
    first = by_cpus[0]
    interpreted = [1e6 / _cost(first, options.count(INTERPRETED), compiled=False) for _ in range(options.rounds)]
    fast = [1e6 / cost for cost in curves.by_cpus[0].costs]
    size = _size(*first)
    figures = [
        Figure(f"{size}, CPython", "k/s", interpreted, digits=0),
        Figure(f"{size}, compiled", "k/s", fast, digits=0),
        *_event_loops(options),
        *_figures(curves.by_cpus, "CPUs"),
        *_figures(curves.by_vcpus, "vCPUs"),
    ]
    return Section("host", "A host without guests' code", HOW, figures, functools.partial(plot, curves))


def _size(cpus: int, vcpus: int) -> str:
    return f"{cpus} CPUs, {vcpus:,} vCPUs"


def _figures(points: Sequence[Point], what: str) -> list[Figure]:
    rows = [Figure(f"an event, {_size(p.cpus, p.vcpus)}", "ns", p.costs, digits=0) for p in points]
    costs = [p.cost for p in points]
    return [*rows, Figure(f"  dearest to cheapest, by {what}", "x", [max(costs) / min(costs)], digits=2)]


def _event_loops(options: Options) -> list[Figure]:
    native = event_loop.machine_code()
    cases = [
        ("event loop, compiled; SimPy's processes", native, event_loop.simpy_processes),
        ("event loop, compiled; SimPy's callbacks", native, event_loop.simpy_callbacks),
        ("event loop, CPython; SimPy's processes", event_loop.in_cpython, event_loop.simpy_processes),
    ]
    figures = []
    for name, ours, peer in cases:
        pairs = [event_loop.rates(ours, peer, options.count(LOOPS)) for _ in range(options.rounds)]
        figures.append(Figure(name, "k/s", [a / 1e3 for a, _ in pairs], [b / 1e3 for _, b in pairs], digits=0))
    return figures


# ---- one host ------------------------------------------------------------------------------------------------


def _points(options: Options, shapes: Shapes) -> list[Point]:
    events = max(3 * CHUNK, options.count(COMPILED))
    return [Point(*shape, [_cost(shape, events, compiled=True) for _ in range(options.rounds)]) for shape in shapes]


def _scenario(cpus: int, vcpus: int) -> str:
    """Return the file of a host with so many CPUs and vCPUs."""
    sizes = [min(VCPUS_OF_VM, vcpus - first) for first in range(0, vcpus, VCPUS_OF_VM)]
    vms = (VM.format(number=number, vcpus=size) for number, size in enumerate(sizes))
    return SCENARIO.format(cpus=cpus, last=cpus - 1) + "".join(vms)


def _cost(shape: tuple[int, int], events: int, *, compiled: bool) -> float:
    """Return the ns of CPU time that an event takes, between the first time that progress is told and the last."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "host.toml"
        path.write_text(_scenario(*shape))
        hosting = Hosting(load(path), compiled=compiled)
    told: list[tuple[float, int]] = []

    def progress(now: int) -> None:
        happened = (len(told) + 1) * CHUNK if compiled else hosting.t.happenings
        told.append((time.process_time(), happened))
        hosting.interrupted = happened - told[0][1] >= events

    hosting.run(progress)
    (begin, before), (end, after) = told[0], told[-1]
    return (end - begin) / (after - before) * 1e9


# ---- the figure ----------------------------------------------------------------------------------------------


def plot(curves: Curves, path: Path) -> None:
    """Draw what an event costs, as SVG: the same points give the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.hashsalt": "pmuvisor", "svg.fonttype": "none", "font.size": 10}
    with matplotlib.rc_context(style):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
        _curve(left, [p.cpus for p in curves.by_cpus], curves.by_cpus, "CPUs, two vCPUs for each")
        of = curves.by_vcpus[0].cpus
        _curve(right, [p.vcpus for p in curves.by_vcpus], curves.by_vcpus, f"vCPUs on {of} CPUs")
        left.set_ylabel("ns for an event, compiled")
        left.set_ylim(0, 1.25 * max(max(p.costs) for p in (*curves.by_cpus, *curves.by_vcpus)))
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def _curve(axes: Axes, x: list[int], points: Sequence[Point], label: str) -> None:
    """Draw medians as a line, and every round as a dot."""
    for at, point in zip(x, points, strict=True):
        axes.plot([at] * len(point.costs), point.costs, "o", color="tab:gray", markersize=3)
        axes.annotate(f"{point.cost:.0f}", (at, point.cost), (0, 8), textcoords="offset points", ha="center")
    axes.plot(x, [p.cost for p in points], "-", color="tab:blue")
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{number:,}" for number in x])
    axes.minorticks_off()
    axes.margins(x=0.1)
    axes.set_xlabel(label)
    axes.grid(axis="y", alpha=0.3)
