"""What it costs a guest that its operations are sampled for SPE."""

from __future__ import annotations

import time

from benchmarks import guest
from benchmarks.figures import Figure, Options, Section
from benchmarks.overflow import computing_engine
from pmuvisor.arch.spe_record import Filter
from pmuvisor.board.engine import Stop
from pmuvisor.board.engine_profile import Profile
from pmuvisor.records import new

LENGTH = 50_000_000
WARM = 1_000_000
INTERVALS = (10_000, 1_000)
EL1 = 2
HOW = f"""The guest of `compute` on the engine without a machine, {LENGTH:,} instructions: without a profile, and with
one operation in so many sampled, whose records of 64 bytes have a timestamp and are taken at the end. Kept: the speed
with a profile, as a part of the speed without, in the same round."""


def measure(options: Options) -> Section:
    """Time the same work with no operation sampled, one in 10,000, and one in 1,000."""
    length = options.count(LENGTH)
    plain: list[float] = []
    kept: dict[int, list[float]] = {interval: [] for interval in INTERVALS}
    cost: dict[int, list[float]] = {interval: [] for interval in INTERVALS}
    for _ in range(options.rounds):
        base = _seconds(length, None)
        plain.append(length / base / 1e6)
        for interval in INTERVALS:
            took = _seconds(length, interval)
            kept[interval].append(100 * base / took)
            cost[interval].append((took - base) / (length / interval) * 1e6)
    figures = [Figure("no profile", "MIPS", plain, digits=0)]
    for interval in INTERVALS:
        figures += [
            Figure(f"speed kept, one sample in {interval:,}", "%", kept[interval], digits=1),
            Figure(f"one sample, one in {interval:,}", "us", cost[interval], digits=2),
        ]
    return Section("profile", "Statistical profiling", HOW, figures)


def _seconds(length: int, interval: int | None) -> float:
    engine = computing_engine()
    if interval is not None:
        core = new(Filter)
        core.core.align = 6
        engine.profile(Profile(EL1, interval, interval, core, timestamp=True))
    engine.run(WARM)
    engine.take_records()
    begin = time.perf_counter()
    stop = engine.run(WARM + length)
    taken = engine.take_records()
    elapsed = time.perf_counter() - begin
    if stop is not Stop.LIMIT or (interval is not None and len(taken.sizes) < length // interval):
        raise guest.GuestFailure(f"{stop!r} at {engine.pc:#x} with {len(taken.sizes)} records")
    return elapsed
