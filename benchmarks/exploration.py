"""How long it takes to explore each design completely, and to find each defect of the catalogue."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.figures import Figure, Options, Section
from pmuvisor.check import defects, plain
from pmuvisor.check.defects import Defect
from pmuvisor.check.explore import Exploration
from pmuvisor.check.found import Result
from pmuvisor.check.model import Model
from pmuvisor.check.models import DESIGNS, PRESETS, model

PRESET, SMALLER = "small", "tiny"
HOW = f"""Every state of the preset {PRESET} of each design, on all cores, by the clock; what is compiled, once, is not
in it. Bytes of a state: all that is kept, over the states. Each defect of the catalogue in its own preset, by CPython
alone, with nothing compiled: the time to the first trace that breaks a property, which is a shortest one."""


class NotAsExpectedError(RuntimeError):
    """A sound design breaks, or a defect is not found."""


def measure(options: Options, catalogue: Sequence[Defect] = defects.ALL) -> Section:
    """Explore all designs, then look for all defects."""
    preset = PRESETS[PRESET if options.scale >= 1 else SMALLER]
    figures: list[Figure] = []
    for design in DESIGNS:
        figures += _design(f"{design}, {preset.name}", model(preset, design), options.rounds)
    figures += [_defect(defect, options.rounds) for defect in catalogue]
    return Section("exploration", "Designs explored, defects found", HOW, figures)


def _design(name: str, of: Model, rounds: int) -> list[Figure]:
    _compile(of)
    found = [_explore(of) for _ in range(rounds)]
    return [
        Figure(f"{name}: states", "", [float(result.states) for result in found], digits=0),
        Figure("  to explore them", "s", [result.seconds for result in found]),
        Figure("  a second", "k/s", [result.states / result.seconds / 1e3 for result in found], digits=0),
        Figure("  memory of a state", "B", [result.bytes_used / result.states for result in found], digits=0),
    ]


def _compile(of: Model) -> None:
    exploration = Exploration(of)

    def stop(so_far: Result) -> None:
        exploration.interrupted = True

    exploration.run(stop)


def _explore(of: Model) -> Result:
    result = Exploration(of).run()
    if not result.complete:
        raise NotAsExpectedError(f"{of.title}: a property breaks")
    return result


def _defect(defect: Defect, rounds: int) -> Figure:
    seconds, steps = [], 0
    for _ in range(rounds):
        begin = time.perf_counter()
        found = plain.explore(model(PRESETS[defect.preset], defect.design), {defect.sound: defect.defective})
        seconds.append(time.perf_counter() - begin)
        if found.violation is None:
            raise NotAsExpectedError(f"{defect.name}: not found")
        steps = len(found.violation.actions)
    return Figure(f"defect {defect.name}", "s", seconds, note="1 step" if steps == 1 else f"{steps} steps", digits=2)
