"""`pmuvisor designs`: what each design of the virtual PMU is, side by side. docs/designs.md has the same table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from pmuvisor.lab import tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """One design, in words that fit a narrow column."""

    name: str
    """As `--design` and a scenario's `design` take it."""
    counted_by: str
    trapped: str
    """Which of the guest's accesses exit to KVM."""
    swapped: str
    """What comes and goes with the vCPU."""
    when: str
    needs: str
    """Of the hardware."""
    runs_on: str
    """Where the guest can be entered; elsewhere KVM_RUN ends in KVM_EXIT_FAIL_ENTRY."""
    n: str
    """PMCR_EL0.N as the guest reads it."""
    pmceid: str
    pmuver: str
    follows: str
    """Whose it is."""


ASPECTS = {
    "counted_by": "counted by",
    "trapped": "traps",
    "swapped": "swapped",
    "when": "when",
    "needs": "needs",
    "runs_on": "runs on",
    "n": "PMCR.N",
    "pmceid": "PMCEID",
    "pmuver": "PMUVer",
    "follows": "follows",
}
"""The rows of the table: a field of `Design`, and what it is called."""
_PMUVER = "the host's, at most PMUv3p5"
_SERIES = "ARM64 PMU Partitioning, v7"

DESIGNS = (
    Design(
        name="emulated",
        counted_by="perf events of the host, one for each of its counters",
        trapped="every access",
        swapped="its perf events",
        when="with its thread",
        needs="PMUv3",
        runs_on="CPUs of its PMU; all if it asked for none, but counts on its PMU's",
        n="0 to the PMU's",
        pmceid="the PMU's and CHAIN, without STALL_SLOT*",
        pmuver=_PMUVER,
        follows="Linux's pmu-emul.c",
    ),
    Design(
        name="partitioned",
        counted_by="counters 0 to HPMN-1 and the cycle counter",
        trapped="event types, filters, overflow flags; all without FEAT_FGT",
        swapped="its PMU registers, for the host's",
        when="at each load and put",
        needs="VHE; FEAT_FGT to trap little",
        runs_on="CPUs of its PMU",
        n="1 to the PMU's; 0 with FEAT_HPMN0",
        pmceid="the PMU's",
        pmuver=_PMUVER,
        follows=_SERIES,
    ),
    Design(
        name="lazy",
        counted_by="as partitioned",
        trapped="all until the first, then as partitioned",
        swapped="as partitioned",
        when="at the first access, and at a load with a counter enabled",
        needs="as partitioned",
        runs_on="CPUs of its PMU",
        n="as partitioned",
        pmceid="the PMU's",
        pmuver=_PMUVER,
        follows="the review of that series, v5",
    ),
    Design(
        name="fixed-counters-only",
        counted_by="a perf event of the PMU of the CPU where it is",
        trapped="every access",
        swapped="its perf event",
        when="with its thread; a new one on another PMU's CPU",
        needs="PMUv3 on every CPU",
        runs_on="all CPUs",
        n="0",
        pmceid="none",
        pmuver=_PMUVER,
        follows="the series that proposes it, v7",
    ),
)
"""In the order of `Vm.design`."""


def show(arguments: argparse.Namespace) -> int:
    """Print the designs, a column for each, or JSON; return the exit status."""
    if arguments.json:
        json.dump([dataclasses.asdict(design) for design in DESIGNS], sys.stdout, indent=1)
        print()
        return 0
    table = tables.empty()
    table.add_column("", width=10)
    for design in DESIGNS:
        table.add_column(design.name.replace("-", "-\n"), ratio=1)
    for field, title in ASPECTS.items():
        table.add_row(title, *(getattr(design, field) for design in DESIGNS))
        table.add_section()
    tables.show(table, sys.stdout)
    return 0
