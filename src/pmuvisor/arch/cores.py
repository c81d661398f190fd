"""Cores: the data file beside this module, read into the `Features` that the semantics works with."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Iterable
from importlib import resources
from typing import Any

from pmuvisor import records
from pmuvisor.arch import pmu
from pmuvisor.arch.events import pmceid
from pmuvisor.arch.pmu import Features, Pe
from pmuvisor.arch.sysreg import (
    MAX_EVENT_COUNTERS,
    PMUV3P0,
    PMUV3P1,
    PMUV3P4,
    PMUV3P5,
    PMUV3P7,
    PMUV3P8,
    PMUV3P9,
)

FULL_MASK = (1 << 64) - 1
PMU_VERSIONS = {PMUV3P0, PMUV3P1, PMUV3P4, PMUV3P5, PMUV3P7, PMUV3P8, PMUV3P9}


class CoreError(ValueError):
    """A core that is not in the data file, or that cannot be."""


@dataclasses.dataclass(frozen=True)
class Core:
    """One core of the data file."""

    name: str
    source: str
    event_counters: int
    """N, 0 to 31."""
    pmuver: int
    """ID_AA64DFR0_EL1.PMUVer."""
    implementer: int
    """PMCR_EL0.IMP, 8 bits."""
    idcode: int
    """PMCR_EL0.IDCODE, 8 bits."""
    mhz: int
    """Clock frequency in MHz."""
    about: str = ""
    hpmn0: bool = False
    fgt: bool = False
    fgt2: bool = False
    icntr: bool = False
    el3: bool = False
    sel2: bool = False
    mt: bool = False
    aarch32: bool = False

    def __post_init__(self) -> None:
        """Raise CoreError for a core that the architecture does not have."""
        if not 0 <= self.event_counters <= MAX_EVENT_COUNTERS:
            raise CoreError(f"core {self.name}: event_counters {self.event_counters}: expected 0 to 31")
        if self.pmuver not in PMU_VERSIONS:
            raise CoreError(f"core {self.name}: pmuver {self.pmuver}: expected one of {sorted(PMU_VERSIONS)}")
        if self.icntr and not (self.fgt2 and self.pmuver >= PMUV3P9):
            raise CoreError(f"core {self.name}: icntr: FEAT_PMUv3_ICNTR comes with FEAT_FGT2 and FEAT_PMUv3p9 only")


@functools.cache
def cores() -> dict[str, Core]:
    """Return every core of the data file, by name, in the file's order."""
    text = resources.files("pmuvisor.arch").joinpath("cores.toml").read_text()
    return {name: Core(name=name, **fields) for name, fields in tomllib.loads(text).items()}


def core(name: str) -> Core:
    """Return the core called `name`. Raises CoreError, which names those there are."""
    if name not in cores():
        raise CoreError(f"core {name!r}: expected one of {', '.join(cores())}")
    return cores()[name]


def make_pe(of: Core, counted: Iterable[int]) -> Pe:
    """Return a PE of this core, reset, that counts the events `counted`: PMCEID<n>_EL0 is computed from them."""
    sizes = {"event_counters": of.event_counters, "counter_width": 64}
    pe = records.new(Pe, sizes)
    events = tuple(counted)
    set_features(
        pe.core,
        event_counters=of.event_counters,
        pmuver=of.pmuver,
        identity=(of.implementer << 8) | of.idcode,
        pmceid0=pmceid(events, 0),
        pmceid1=pmceid(events, 1),
        **{name: int(getattr(of, name)) for name in ("hpmn0", "fgt", "fgt2", "icntr", "el3", "sel2", "mt", "aarch32")},
    )
    pmu.reset(pe)
    return pe


def set_features(features: Features, **values: Any) -> None:
    """Set fields of `features`, with counters of the architecture's widths unless `values` says otherwise."""
    widths = {"half_bits": 32, "half_mask": (1 << 32) - 1, "counter_mask": FULL_MASK, "counter_top": 63}
    for name, value in {**widths, **values}.items():
        setattr(features, name, value)
