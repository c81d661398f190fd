"""What it costs to stop on the exact instruction at which a counter overflows."""

from __future__ import annotations

import time
from dataclasses import replace

from benchmarks import guest
from benchmarks.figures import Figure, Options, Section
from pmuvisor.board import memmap
from pmuvisor.board.engine import Engine, GuestMemory, Stop
from pmuvisor.board.images import load_image

PERIOD = 10_000
REPEATS = 50
STOPS = 2_000
HOW = f"""The guest of `compute` with a counter that overflows every {PERIOD:,} instructions and interrupts it; its
handler reloads the counter, clears the overflow and ends the interrupt. Time of a sample: what the run takes beyond one
that only counts, by overflow. Time of the stop alone: the engine without a machine, told to stop after every
{PERIOD:,} instructions, against one long run."""


def measure(options: Options) -> Section:
    """Time a run that samples against one that counts, and the engine's exact stops alone."""
    counted = guest.Params(guest.Task.COMPUTE, options.count(REPEATS), counters=1)
    sample, counting, sampling, stop = [], [], [], []
    for _ in range(options.rounds):
        plain = guest.on_pmuvisor(counted)
        run = guest.on_pmuvisor(replace(counted, period=PERIOD))
        expected = plain.seconds / plain.instructions * run.instructions
        sample.append((run.seconds - expected) / run.overflows * 1e6)
        counting.append(plain.instructions / plain.seconds / 1e6)
        sampling.append(run.instructions / run.seconds / 1e6)
        stop.append(_stop_alone(options.count(STOPS)) * 1e6)
    figures = [
        Figure("counting, no overflow", "MIPS", counting, digits=0),
        Figure(f"sampling every {PERIOD:,} instructions", "MIPS", sampling, digits=0),
        Figure("one sample, guest's handler included", "us", sample),
        Figure("the exact stop alone", "us", stop),
    ]
    return Section("overflow", "An exact stop at an overflow", HOW, figures)


def _stop_alone(stops: int) -> float:
    """Seconds of one stop."""
    return (_engine_seconds(stops, PERIOD) - _engine_seconds(1, stops * PERIOD)) / stops


def _engine_seconds(stops: int, period: int) -> float:
    engine = computing_engine()
    with_code = engine.total + 10 * PERIOD  # what is translated before the clock starts is translated for both
    engine.run(with_code)
    begin = time.perf_counter()
    for i in range(stops):
        if engine.run(with_code + (i + 1) * period) is not Stop.LIMIT:
            raise guest.GuestFailure(f"the engine stopped before its limit, at {engine.pc:#x}")
    return time.perf_counter() - begin


def computing_engine() -> Engine:
    """An engine about to run the guest that computes for ever."""
    ram = GuestMemory(guest.MEMORY_MIB << 20)
    engine = Engine(ram, lambda key, write, value: 0)
    image = load_image(guest.elf(guest.Params(guest.Task.COMPUTE, 1 << 40)), memmap.RAM_BASE, ram.size)
    for segment in image.segments:
        ram.write(segment.address, segment.data)
    engine.start(image.entry)
    return engine
