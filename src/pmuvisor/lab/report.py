"""What a run cost, as tables for people: plain text of at most 80 columns, the same on a terminal and in a file."""

from __future__ import annotations

import textwrap
from typing import TextIO

from rich.table import Table

from pmuvisor.arch.unpredictable import BY_NAME
from pmuvisor.board.machine import Status
from pmuvisor.lab import tables
from pmuvisor.lab.run import Result
from pmuvisor.lab.tables import WIDTH

EXITS = {
    "exits.pmu": "trapped PMU accesses",
    "exits.spe": "trapped SPE accesses",
    "exits.irq": "PMUIRQ and PMBIRQ (host interrupts)",
    "exits.mmio": "device accesses (MMIO)",
    "exits.sgi": "inter-processor interrupts sent",
    "exits.wfi": "waits for an interrupt (WFI)",
    "exits.hvc": "hypercalls (PSCI)",
}
"""Exits of the ledger, by cause, in words."""
_REST = {
    "loads": "vCPU loads",
    "puts": "vCPU puts",
    "registers_swapped": "PMU registers swapped by loads and puts",
    "overflows": "overflows of the guest's counters",
    "interrupts_injected": "PMU interrupts injected",
}
_SPE = {
    "spe_drained": "SPE buffer drained at exits",
    "spe_injected": "SPE interrupts injected",
    "spe_stage2": "SPE faults at stage 2, resolved",
}
_KINDS = ("direct", "trapped", "undefined")


def show(result: Result, file: TextIO) -> None:
    """Print how the run ended, in one line, and where it hung its registers; then the bill."""
    if result.registers and result.status in (Status.HUNG, Status.TIMEOUT):
        print(result.registers, file=file)
    print(printable(f"{result.guest}: {result.status}: {result.reason}", file.encoding or "utf-8"), file=file)
    if result.exit_status is not None:
        print(f"the command's exit status: {result.exit_status}", file=file)
    print(textwrap.fill(_setting(result), WIDTH), file=file)
    for table in (_accesses(result.ledger), _costs(result), _time(result)):
        print(file=file)
        tables.show(table, file)
    for name in result.unpredictable:
        print(file=file)
        print(textwrap.fill(open_case(name), WIDTH, subsequent_indent="  "), file=file)


def open_case(name: str) -> str:
    """Say of a choice of `arch.unpredictable` what the case is and what was chosen."""
    choice = BY_NAME[name]
    return (
        f"The run depends on what the architecture leaves open ({name}): {choice.case}. Chosen here: {choice.chosen}. "
        f"Source: {choice.source}."
    )


def printable(line: str, encoding: str) -> str:
    """A file's name, and a panic in the guest's words, may hold anything: none of it may drive the terminal."""
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line.encode(encoding, "backslashreplace").decode(encoding)


def _setting(result: Result) -> str:
    traps = ""
    if result.design in ("partitioned", "lazy"):
        traps = f" {'with' if result.fgt else 'without'} fine-grained traps"
    return (
        f"{result.design}{traps}, core {result.core}, {count(result.vcpus, 'vCPU')}, {result.counters} of "
        f"{count(result.host_counters, 'event counter')}"
    )


def count(n: int, what: str) -> str:
    """Return a number of things in words: "1 vCPU", "2 vCPUs"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def _accesses(ledger: dict[str, int]) -> Table | str:
    totals = [sum(n for name, n in ledger.items() if name.startswith(f"{kind}.")) for kind in _KINDS]
    if not any(totals):
        return "The guest did not access its PMU."
    names = sorted({name.split(".", 1)[1] for name in ledger if name.split(".", 1)[0] in _KINDS})
    rows = [(name, *(number(ledger.get(f"{kind}.{name}", 0)) for kind in _KINDS)) for name in names]
    whose = "PMU and SPE" if _has_profiled(ledger) else "PMU"
    return tables.table(("guest accesses to", *_KINDS), [*rows, (f"all {whose} registers", *map(number, totals))])


def _has_profiled(ledger: dict[str, int]) -> bool:
    """Tell whether the guest has accessed its profiling unit: if not, there is nothing to say of it."""
    return ledger.get("spe_direct", 0) + ledger.get("exits.spe", 0) > 0


def _costs(result: Result) -> Table:
    ledger = result.ledger
    rows = [("exits to the host", ledger["exits"])]
    profiled = _has_profiled(ledger)
    rows += [(f"  {words}", ledger[name]) for name, words in EXITS.items() if profiled or name != "exits.spe"]
    rows += [(words, ledger[name]) for name, words in (_REST | _SPE if profiled else _REST).items()]
    millions = result.instructions / 1e6
    cells = [(words, number(n), f"{n / millions:,.2f}" if n and millions else "-") for words, n in rows]
    return tables.table(("what it cost", "count", "per M instructions"), cells)


def _time(result: Result) -> Table:
    executing = max(0.0, result.virtual_seconds - result.overhead_seconds - result.idle_seconds)
    rows = [
        ("instructions executed", f"{result.instructions:,}"),
        ("guest's time (a model: docs/costs.md)", f"{result.virtual_seconds:.3f} s"),
        ("  executing", f"{executing:.3f} s"),
        (f"  virtualization, {100 * result.overhead_share:.1f} %", f"{result.overhead_seconds:.3f} s"),
        ("  idle", f"{result.idle_seconds:.3f} s"),
        ("wall time", f"{result.wall_seconds:.2f} s"),
        ("speed", f"{result.mips:.0f} MIPS"),
    ]
    return tables.table(("the run", ""), rows)


def number(n: int) -> str:
    """Return a count as a table has it."""
    return f"{n:,}" if n else "-"
