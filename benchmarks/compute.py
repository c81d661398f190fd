"""How fast a guest computes, and what it costs to count it meanwhile."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import guest, qemu
from benchmarks.figures import Figure, Options, Section
from pmuvisor.arch import events

REPEATS = 400
HOW = """A bare-metal guest (benchmarks/guests/bench.c) sorts and checksums 16 KiB, again and again. pmuvisor: the time
of the run. QEMU: the time of the process less that of the same guest with nothing to sort; the instructions are those
that pmuvisor counted, and both have to print the same checksum."""


def measure(options: Options) -> Section:
    """Time the guest without a counter, with one that counts instructions, and with one that needs decoding."""
    plain = guest.Params(guest.Task.COMPUTE, options.count(REPEATS))
    rows = [
        ("nothing counted", plain, True),
        ("a counter on INST_RETIRED", replace(plain, counters=1), True),
        ("a counter on LD_RETIRED", replace(plain, counters=1, event=events.LD_RETIRED), False),
    ]
    ours: list[list[float]] = [[] for _ in rows]
    peers: list[list[float]] = [[] for _ in rows]
    for _ in range(options.rounds):
        for i, (_, params, peer) in enumerate(rows):
            run = guest.on_pmuvisor(params)
            ours[i].append(run.instructions / run.seconds / 1e6)
            if peer and qemu.present():
                peers[i].append(run.instructions / _qemu_seconds(params, run.said) / 1e6)
    figures = [
        Figure(name, "MIPS", ours[i], peers[i], "" if peers[i] else _why_no_peer(peer), digits=0)
        for i, (name, _, peer) in enumerate(rows)
    ]
    return Section("compute", "A guest that computes, speed", HOW, figures)


def _why_no_peer(peer: bool) -> str:
    return qemu.ABSENT if peer else "not a QEMU event"


def _qemu_seconds(params: guest.Params, expected: str) -> float:
    start = guest.on_qemu(replace(params, repeats=0)).seconds
    run = guest.on_qemu(params)
    if run.said != expected:
        raise guest.GuestFailure(f"on QEMU the guest said {run.said!r}, on pmuvisor {expected!r}")
    return max(run.seconds - start, 1e-9)
