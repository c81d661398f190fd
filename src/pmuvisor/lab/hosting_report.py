"""What came of a scenario, as tables for people."""

from __future__ import annotations

import textwrap
from typing import TextIO

from rich.table import Table

from pmuvisor.lab import report, tables
from pmuvisor.lab.hosting import HostingResult, SessionResult, SpeResult, VmResult

_HOST = {
    "switches": "context switches",
    "interrupts": "PMU interrupts",
    "rotations": "turns of the multiplexing timer that moved events",
    "rescheduled": "moves of events for a guest's counters, and back",
}


def show(result: HostingResult, file: TextIO) -> None:
    """Print how each VM ended, then what VMs, sessions and the host did."""
    for vm in result.vms:
        print(report.printable(f"{vm.name}: {vm.guest}: {vm.status}: {vm.reason}", file.encoding or "utf-8"), file=file)
    for table in (_vms(result.vms), _sessions(result.host_perf), _profiles(result.host_spe), _host(result)):
        if table is not None:
            print(file=file)
            tables.show(table, file)
    for name in sorted({name for vm in result.vms for name in vm.unpredictable}):
        print(file=file)
        print(textwrap.fill(report.open_case(name), tables.WIDTH, subsequent_indent="  "), file=file)


def _vms(vms: tuple[VmResult, ...]) -> Table | None:
    if not vms:
        return None
    rows = [
        (
            vm.name,
            str(vm.vcpus),
            f"{vm.instructions:,}",
            f"{vm.run_seconds * 1e3:,.1f} ms",
            f"{vm.ledger['loads']:,}",
            f"{vm.migrations:,}",
        )
        for vm in vms
    ]
    return tables.table(("VM", "vCPUs", "instructions", "on CPUs", "loads", "migrations"), rows)


def _place(row: SessionResult) -> str:
    """Return the session that a row is of, and the kind of core where there are several."""
    session, _, event = row.name.rpartition(":")
    core = event.partition("/")[0] if "/" in event else ""
    return f"{session} on {core}" if core else session


def _sessions(sessions: tuple[SessionResult, ...]) -> Table | None:
    """Return for each event how often it was counted and happened, for how long, and by how much scaling is off."""
    if not sessions:
        return None
    table = tables.empty()
    table.add_column("host perf", overflow="fold")
    for name in ("count", "true", "ms", "running", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    before = ""
    order: dict[str, int] = {}
    for row in sessions:
        order.setdefault(_place(row), len(order))
    for row in sorted(sessions, key=lambda row: order[_place(row)]):
        session, event = _place(row), row.name.rpartition(":")[2].rstrip("/").rpartition("/")[2]
        if session != before:
            table.add_row(before := session)
        table.add_row(
            f"  {event}",
            f"{row.count:,}",
            f"{row.true:,}",
            f"{row.enabled / 1e6:,.1f}",
            f"{100 * row.running / row.enabled:.1f} %" if row.enabled else "-",
            "-" if row.error is None else f"{100 * row.error:+.2f} %",
        )
    return table


def _profiles(sessions: tuple[SpeResult, ...]) -> Table | None:
    """Return for each session of SPE what became of its records."""
    if not sessions:
        return None
    table = tables.empty()
    table.add_column("host SPE", overflow="fold")
    names = ("records", "interrupts", "woken", "truncated", "padding", "lost")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in sessions:
        table.add_row(row.name, *(f"{getattr(row, name):,}" for name in names))
    return table


def _host(result: HostingResult) -> Table:
    rows = [(words, f"{result.host[name]:,}") for name, words in _HOST.items()]
    rows.append(("virtual time", f"{result.virtual_seconds * 1e3:,.1f} ms"))
    rows.append(("wall time", f"{result.wall_seconds:.2f} s"))
    return tables.table(("the host", ""), rows)
