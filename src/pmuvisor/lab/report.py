"""What a run cost, as a table for people."""

from __future__ import annotations

from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from pmuvisor.board.machine import Status
from pmuvisor.lab.run import Result

_EXITS = {
    "exits.pmu": "PMU register traps",
    "exits.irq": "PMU overflow (host interrupt)",
    "exits.mmio": "device accesses (MMIO)",
    "exits.sgi": "inter-processor interrupts sent",
    "exits.wfi": "waits for an interrupt (WFI)",
    "exits.hvc": "hypercalls (PSCI)",
}
_KINDS = ("direct", "trapped", "undefined")


def show(result: Result, file: TextIO) -> None:
    """Print how the run ended, the PMU accesses by register, and the rest of the bill."""
    console = Console(file=file, highlight=False, width=None if file.isatty() else 80)
    if result.registers and result.status in (Status.HUNG, Status.TIMEOUT):
        console.print(result.registers, markup=False)
    fgt = "fine-grained traps" if result.fgt else "no fine-grained traps"
    console.print(
        f"{result.guest}: {result.status}: {result.reason}\n"
        f"{result.design} ({fgt}), core {result.core}, {result.vcpus} vCPU, "
        f"{result.counters} event counters for the guest",
        markup=False,
    )
    console.print(_accesses(result.ledger))
    console.print(_costs(result))


def _accesses(ledger: dict[str, int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Guest accesses to PMU registers", title_justify="left")
    table.add_column("register")
    for kind in _KINDS:
        table.add_column(kind, justify="right")
    names = sorted({name.split(".", 1)[1] for name in ledger if name.startswith(_KINDS)})
    for name in names:
        table.add_row(name, *(_number(ledger.get(f"{kind}.{name}", 0)) for kind in _KINDS))
    totals = [sum(n for name, n in ledger.items() if name.startswith(f"{kind}.")) for kind in _KINDS]
    table.add_section()
    table.add_row("all", *(f"{n:,}" for n in totals))
    return table


def _costs(result: Result) -> Table:
    ledger = result.ledger
    table = Table(box=box.SIMPLE_HEAD, title="What it cost", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("exits to the host", f"{ledger['exits']:,}")
    for name, words in _EXITS.items():
        table.add_row(f"  {words}", f"{ledger[name]:,}")
    table.add_row("vCPU loads / puts", f"{ledger['loads']:,} / {ledger['puts']:,}")
    table.add_row("PMU registers swapped by them", f"{ledger['registers_swapped']:,}")
    table.add_row("counter overflows of the guest", f"{ledger['overflows']:,}")
    table.add_row("PMU interrupts injected", f"{ledger['interrupts_injected']:,}")
    table.add_section()
    table.add_row("guest instructions", f"{result.instructions:,}")
    table.add_row("virtual time (model: 1 ns an instruction)", f"{result.virtual_seconds:.3f} s")
    table.add_row("wall time", f"{result.wall_seconds:.2f} s")
    table.add_row("speed", f"{result.mips:.0f} MIPS")
    return table


def _number(n: int) -> str:
    return f"{n:,}" if n else "-"
