"""The queue of kvm/timeline.py alone, and SimPy, on the same pattern: who is due goes on after a random-like delay."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import simpy

from pmuvisor import records
from pmuvisor.compiled import compiled
from pmuvisor.kvm import timeline
from pmuvisor.kvm.timeline import Timeline

ENTITIES = 1000
MEAN_TICKS = 512
"""Between two events: an entity's delays are 1 to 1024 times 1000 ticks, so that no two entities are due at once."""
SIZES = dict.fromkeys(("cpus", "cpu_words", "tasks", "events", "context_events", "vms", "vcpus", "executed"), 1)
SIZES |= {"filter_words": 0, "event_counters": 1, "counter_width": 64, "kinds": 1, "entries": ENTITIES}
SIZES |= {"inflight": 1, "spe_sessions": 1}


class OrderError(RuntimeError):
    """The two did not do the same: a ratio would mean nothing."""


@dataclass(frozen=True)
class Run:
    """One run. `state` depends on the delay of every event in their order."""

    seconds: float
    state: int
    events: int = 0


def run_loop(t: Timeline, end: int) -> int:
    """Let every entity that is due go on after a delay, until `end`. Semantic code: CPython runs it, or numba."""
    state = 1
    while t.due[t.queue[0]] < end:
        entry = t.queue[0]
        t.now = t.due[entry]
        t.happenings += 1
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        timeline.schedule(t, entry, t.now + (((state >> 8) & 1023) + 1) * ENTITIES)
    return state


def in_cpython(events: int) -> Run:
    """Run it on records."""
    t = _timeline()
    begin = time.process_time()
    state = run_loop(t, events * MEAN_TICKS)
    return Run(time.process_time() - begin, state, t.happenings)


def machine_code() -> Callable[[int], Run]:
    """Compile it; return what runs it on a row."""
    loop = compiled(run_loop, also=(__name__,))
    layout = records.layout(Timeline, SIZES)
    loop.compile((numba.from_dtype(layout), numba.int64))

    def run(events: int) -> Run:
        row: Any = np.zeros(1, layout)
        records.store(_timeline(), row, SIZES)
        begin = time.process_time()
        state = loop(row[0], events * MEAN_TICKS)
        return Run(time.process_time() - begin, int(state), int(row[0]["happenings"]))

    return run


def _timeline() -> Timeline:
    t = records.new(Timeline, SIZES)
    for entry in range(ENTITIES):
        t.queue[entry] = t.place[entry] = t.due[entry] = entry
    return t


def simpy_processes(events: int) -> Run:
    """Run it in SimPy as one writes it there: each entity is a process that waits."""
    environment = simpy.Environment()
    state = 1

    def entity(first: int) -> Generator[simpy.Timeout, None, None]:
        nonlocal state
        yield environment.timeout(first)
        while True:
            state = (state * 1103515245 + 12345) & 0x7FFFFFFF
            yield environment.timeout((((state >> 8) & 1023) + 1) * ENTITIES)

    for number in range(ENTITIES):
        environment.process(entity(number))
    begin = time.process_time()
    environment.run(until=events * MEAN_TICKS)
    return Run(time.process_time() - begin, state)


def simpy_callbacks(events: int) -> Run:
    """Run it in SimPy without its processes: each timeout's callback makes the next one."""
    environment = simpy.Environment()
    state = 1

    def happen(event: simpy.Event) -> None:
        nonlocal state
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        wait((((state >> 8) & 1023) + 1) * ENTITIES)

    def wait(delay: int) -> None:
        callbacks = environment.timeout(delay).callbacks
        assert callbacks is not None
        callbacks.append(happen)

    for number in range(ENTITIES):
        wait(number)
    begin = time.process_time()
    environment.run(until=events * MEAN_TICKS)
    return Run(time.process_time() - begin, state)


def rates(ours: Callable[[int], Run], peer: Callable[[int], Run], events: int) -> tuple[float, float]:
    """Return both sides' events in a second, of one run each. Raises OrderError where they did not do the same."""
    mine, other = ours(events), peer(events)
    if mine.state != other.state:
        raise OrderError(f"after {mine.events} events: {mine.state:#x} here, {other.state:#x} in SimPy")
    return mine.events / mine.seconds, mine.events / other.seconds
