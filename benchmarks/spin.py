"""How many states a second are explored, beside Spin on the same model."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure, Options, Section
from benchmarks.models import partition
from pmuvisor.check.explore import Exploration
from pmuvisor.check.found import Result

TWIN = Path(__file__).parent / "models" / "partition.pml"
NEEDED = ("spin", "gcc")
ABSENT = "no spin, or no gcc, here"
SIZES = ((0, 1, 1), (270_000, 2, 2), (980_000, 3, 2), (2_880_000, 4, 2))
"""Ticks and accesses that a model is given for so many states or more."""
USUAL = 3_000_000
"""States of a measurement, or somewhat fewer."""
GCC = ("-O3", "-march=native", "-DSAFETY", "-DNOREDUCE", "-DNOFAIR", "-DNOBOUNDCHECK", "-DNOCOMP")
HOW = f"""Two CPUs, two vCPUs and two events of the host (benchmarks/models/partition.py), explored completely, and its
twin in Promela (partition.pml), which has to have as many states and transitions. One core; times are the process's
CPU time. Spin: gcc {" ".join(GCC)}, none of its lossy modes, a hash table of two slots or more for a state; its
depth-first search is the faster one, and does not find the shortest way, which pmuvisor keeps for every state. Bytes of
a state: all that is kept, over the states. All cores: by the clock. To start: of pmuvisor's process, from its imports'
end to the first state, with nothing kept from earlier runs, and with its machine code kept; Spin: spin -a and gcc."""


class DifferentStatesError(RuntimeError):
    """pmuvisor and Spin do not find the same states: one of the two models is not the other's twin."""


@dataclass(frozen=True)
class Found:
    """What an exploration came to."""

    states: int
    transitions: int
    seconds: float
    bytes_used: float


def present() -> bool:
    """Whether there is a Spin to compare with, and a compiler for what it writes."""
    return all(shutil.which(program) for program in NEEDED)


def version() -> str:
    """Spin's own word for its version, or that there is none."""
    if not present():
        return ABSENT
    said = subprocess.run(["spin", "-V"], check=True, capture_output=True, text=True).stdout
    return " ".join(said.split()[:3:2])


# ---- Spin ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verifier:
    """A verifier that Spin and gcc have made in a folder of its own."""

    folder: Path
    seconds: float
    """What it took to make it."""

    def run(self, states: int) -> Found:
        """Explore completely, with a hash table for so many states. Raises RuntimeError where a property breaks."""
        begin = _seconds_of_children()
        slots = states.bit_length() + 1
        said = _run(self.folder, "./pan", "-m10000", f"-w{max(10, slots)}")
        seconds = _seconds_of_children() - begin
        if re.search(r"errors: 0\b", said) is None or "max search depth too small" in said:
            raise RuntimeError(f"Spin did not explore all of the model: {said}")
        megabytes = _number(r"([\d.]+)\s+(?:total actual memory usage|memory usage \(Mbyte\))", said)
        initial = 1  # Spin's transitions are those that come to a state, and one comes to the initial state
        transitions = int(_number(r"(\d+) transitions", said)) - initial
        return Found(int(_number(r"(\d+) states, stored", said)), transitions, seconds, megabytes * (1 << 20))


def verifier(
    folder: Path,
    ticks: int,
    accesses: int,
    *,
    breadth_first: bool = False,
    twin: Path = TWIN,
    options: tuple[str, ...] = GCC,
) -> Verifier:
    """Make the verifier of the twin."""
    begin = _seconds_of_children()
    folder.mkdir()
    seen, bfs = (("-DSEEN",), ("-DBFS",)) if breadth_first else ((), ())
    _run(folder, "spin", f"-DTICKS={ticks}", f"-DACCESSES={accesses}", *seen, "-a", str(twin))
    _run(folder, "gcc", *options, *bfs, "-o", "pan", "pan.c")
    return Verifier(folder, _seconds_of_children() - begin)


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)
    return done.stdout


def _number(pattern: str, said: str) -> float:
    found = re.search(pattern, said)
    if found is None:
        raise RuntimeError(f"{pattern}: not in what Spin said: {said}")
    return float(found[1])


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- pmuvisor -----------------------------------------------------------------------------------------------


def on_one_core(ticks: int, accesses: int) -> Found:
    """Explore completely on one core, and tell the CPU time."""
    begin = time.process_time()
    result = _explore(ticks, accesses, threads=1)
    return Found(result.states, result.transitions, time.process_time() - begin, result.bytes_used)


def on_all_cores(ticks: int, accesses: int) -> Found:
    """Explore completely on all cores, and tell the time that passed."""
    result = _explore(ticks, accesses, threads=None)
    return Found(result.states, result.transitions, result.seconds, result.bytes_used)


def _explore(ticks: int, accesses: int, threads: int | None) -> Result:
    result = Exploration(partition.model(ticks, accesses), threads=threads).run()
    if not result.complete:
        raise RuntimeError("a property of the model breaks")
    return result


def start_up(rounds: int) -> tuple[list[float], list[float]]:
    """Return the CPU time before a first state, with nothing kept from earlier runs, and with all of it."""
    program = f"from {__name__} import on_one_core; print(on_one_core(0, 0).seconds)"
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for seconds in (cold, warm):
                command, environment = [sys.executable, "-c", program], os.environ | {"XDG_CACHE_HOME": cache}
                ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=600)
                seconds.append(float(ran.stdout))
    return cold, warm


# ---- both ---------------------------------------------------------------------------------------------------


def budgets(options: Options) -> tuple[int, int]:
    """Return the ticks and accesses of a model as large as is asked for."""
    most = options.count(USUAL)
    return max((ticks, accesses) for states, ticks, accesses in SIZES if states <= most)


def compared(ours: Found, theirs: Found) -> Found:
    """Return what Spin has found. Raises DifferentStatesError unless it is what pmuvisor has found."""
    if (ours.states, ours.transitions) != (theirs.states, theirs.transitions):
        raise DifferentStatesError(
            f"pmuvisor has {ours.states:,} states and {ours.transitions:,} transitions, "
            f"Spin {theirs.states:,} and {theirs.transitions:,}"
        )
    return theirs


def measure(options: Options) -> Section:
    """Explore the model and its twin in turn."""
    size = budgets(options)
    on_one_core(0, 0)  # it compiles
    with tempfile.TemporaryDirectory() as folder:
        makers: list[Callable[[], Verifier]] = []
        if present():
            makers.append(lambda: verifier(Path(folder) / "depth", *size))
            makers.append(lambda: verifier(Path(folder) / "breadth", *size, breadth_first=True))
        verifiers = [make() for make in makers]
        ours: list[Found] = []
        everywhere: list[Found] = []
        peers: list[list[Found]] = [[] for _ in verifiers]
        for _ in range(options.rounds):
            ours.append(on_one_core(*size))
            for of, found in zip(verifiers, peers, strict=True):
                found.append(compared(ours[-1], of.run(ours[-1].states)))
            everywhere.append(on_all_cores(*size))
    made = [verifiers[0].seconds] if verifiers else []
    return Section("spin", "States explored, beside Spin", HOW, _figures(ours, everywhere, peers, made, options.rounds))


def _figures(
    ours: list[Found], everywhere: list[Found], peers: list[list[Found]], made: list[float], rounds: int
) -> list[Figure]:
    depth, breadth = peers or [[], []]
    cold, warm = start_up(rounds)
    note = "" if peers else ABSENT
    states = [float(found.states) for found in ours]
    return [
        Figure("distinct states", "", states, [float(found.states) for found in depth], note, digits=0),
        Figure("one core", "k/s", _rates(ours), _rates(depth), note, digits=0),
        Figure("one core; Spin breadth first", "k/s", _rates(ours), _rates(breadth), note, digits=0),
        Figure("all cores", "k/s", _rates(everywhere), digits=0),
        Figure("memory of a state", "B", _sizes(ours), _sizes(depth), note, digits=0),
        Figure("to start; spin -a, gcc", "s", cold, made, note),
        Figure("to start, compiled before", "s", warm, digits=2),
    ]


def _rates(found: list[Found]) -> list[float]:
    return [of.states / of.seconds / 1e3 for of in found]


def _sizes(found: list[Found]) -> list[float]:
    return [of.bytes_used / of.states for of in found]
