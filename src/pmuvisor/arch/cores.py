"""Cores: the data file beside this module, read into the `Features` that the semantics works with.

What the file may say is `FIGURES`; what of it the architecture does not allow together is in `_IMPOSSIBLE`.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import Any

from pmuvisor import records
from pmuvisor.arch import pmu
from pmuvisor.arch.events import pmceid
from pmuvisor.arch.pmu import Features, Pe
from pmuvisor.arch.spe_record import SpeFeatures
from pmuvisor.arch.sysreg import (
    MAX_EVENT_COUNTERS,
    PMUV3P0,
    PMUV3P1,
    PMUV3P4,
    PMUV3P5,
    PMUV3P7,
    PMUV3P8,
    PMUV3P9,
    SPEV1P2,
)

FILE = "cores.toml"
FULL_MASK = (1 << 64) - 1
NO_PMU, PMU_IMP_DEF = 0, 0xF
"""ID_AA64DFR0_EL1.PMUVer of a core without a PMU, and of one whose PMU is not PMUv3."""
PMU_VERSIONS = {
    NO_PMU: "none",
    PMUV3P0: "PMUv3",
    PMUV3P1: "PMUv3p1",
    PMUV3P4: "PMUv3p4",
    PMUV3P5: "PMUv3p5",
    PMUV3P7: "PMUv3p7",
    PMUV3P8: "PMUv3p8",
    PMUV3P9: "PMUv3p9",
    PMU_IMP_DEF: "not PMUv3",
}
"""The values of ID_AA64DFR0_EL1.PMUVer, with names."""
SPE_VERSIONS = ("none", "SPE", "SPEv1p1", "SPEv1p2", "SPEv1p3", "SPEv1p4", "SPEv1p5")
"""By ID_AA64DFR0_EL1.PMSVer, a name."""
PMMIR_FIELDS = {"slots": (0, 8), "bus_slots": (8, 8), "bus_width": (16, 4), "thwidth": (20, 4), "edge": (24, 4)}
"""The fields of PMMIR_EL1: lowest bit and width."""
COMMON_EVENTS = (*range(0x40), *range(0x4000, 0x4040))
"""The events that PMCEID<n>_EL0 can tell of (Arm ARM D24.5)."""
ALL = "all"
"""How the file says that a core has every common event."""


class CoreError(ValueError):
    """A core that is not in the data file, that cannot be, or that cannot do what is asked of it: one line."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a figure comes from."""

    text: str
    assumed: bool = False
    """The figure is an assumption, and `text` its reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Core:
    """One core of the data file. Raises CoreError for one that the architecture does not have."""

    name: str
    about: str
    event_counters: int
    """N, 0 to 31; of a core without PMUv3, its counters that can be given an event."""
    pmuver: int
    """ID_AA64DFR0_EL1.PMUVer."""
    midr: int
    """MIDR_EL1, 32 bits, with variant and revision 0."""
    fgt: bool
    fgt2: bool
    el3: bool
    sel2: bool
    """FEAT_SEL2: Secure EL2."""
    aarch32: bool
    """Some Exception level can use AArch32."""
    spe: int
    """ID_AA64DFR0_EL1.PMSVer; 0 is no SPE."""
    mhz: int
    """Clock frequency in MHz of `product`."""
    product: str
    """What is clocked with `mhz`: a core as such has no frequency."""
    implementer: int = 0
    """PMCR_EL0.IMP, 8 bits."""
    idcode: int = 0
    """PMCR_EL0.IDCODE, 8 bits."""
    hpmn0: bool = False
    icntr: bool = False
    """FEAT_PMUv3_ICNTR."""
    mt: bool = False
    """PMEVTYPER<n>_EL0.MT is not RES0."""
    pmmir: int = 0
    """PMMIR_EL1, 32 bits."""
    events: tuple[int, ...] = COMMON_EVENTS
    """The common events that the core implements, ascending."""
    spe_fds: bool = False
    """FEAT_SPE_FDS: PMSDSFR_EL1 is there."""
    translated: tuple[tuple[int, int], ...] = ()
    """Of a core without PMUv3: common events, and the event of its own that KVM counts for each."""
    sources: Mapping[str, Source] = dataclasses.field(default_factory=dict, hash=False)
    """By figure, where the data file has it from."""

    def __post_init__(self) -> None:
        """Raise CoreError for a core that the architecture does not have."""
        for figure, (expected, allowed) in FIGURES.items():
            value = getattr(self, figure)
            if not allowed(value):
                shown = f"{value:#x}" if type(value) is int and "0x" in expected else repr(value)
                raise CoreError(f"core {self.name}: {figure} {shown}: expected {expected}")
        for figure, why, impossible in _IMPOSSIBLE:
            if impossible(self):
                raise CoreError(f"core {self.name}: {figure}: {why}")

    @property
    def pmuv3(self) -> bool:
        """Whether the core has PMUv3, and so its registers."""
        return self.pmuver not in (NO_PMU, PMU_IMP_DEF)


def variant(of: Core, *, event_counters: int | None = None, mhz: int | None = None) -> Core:
    """Return a core with other figures where they are given: who builds a core, or clocks it, chooses some.

    Raises CoreError for one that the architecture does not have.
    """
    figures = {"event_counters": event_counters, "mhz": mhz}
    why = Source("a variant of the core that the user asked for", assumed=True)
    sources = {**of.sources, **{name: why for name, figure in figures.items() if figure is not None}}
    return dataclasses.replace(
        of,
        event_counters=of.event_counters if event_counters is None else event_counters,
        mhz=of.mhz if mhz is None else mhz,
        sources=sources,
    )


# ---- what the file may say ----------------------------------------------------------------------------------

_Rule = tuple[str, Callable[[Any], bool]]


def _number(highest: int, shown: str = "d") -> _Rule:
    return f"{0:{shown}} to {highest:{shown}}", lambda value: type(value) is int and 0 <= value <= highest


def _ascending(value: object, allowed: Iterable[int]) -> bool:
    return (
        isinstance(value, tuple)
        and all(type(event) is int for event in value)
        and set(value) <= set(allowed)
        and list(value) == sorted(set(value))
    )


def _is_translation(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value)
        and _ascending(tuple(common for common, _ in value), COMMON_EVENTS)
        and all(type(own) is int and 0 <= own <= 0xFF for _, own in value)
    )


_FLAG: _Rule = ("true or false", lambda value: type(value) is bool)
FIGURES: dict[str, _Rule] = {
    "event_counters": _number(MAX_EVENT_COUNTERS),
    "pmuver": (f"one of {sorted(PMU_VERSIONS)}", lambda value: type(value) is int and value in PMU_VERSIONS),
    "implementer": _number(0xFF, "#x"),
    "idcode": _number(0xFF, "#x"),
    "midr": _number(0xFFFF_FFFF, "#x"),
    "hpmn0": _FLAG,
    "fgt": _FLAG,
    "fgt2": _FLAG,
    "icntr": _FLAG,
    "el3": _FLAG,
    "sel2": _FLAG,
    "mt": _FLAG,
    "aarch32": _FLAG,
    "spe": _number(len(SPE_VERSIONS) - 1),
    "spe_fds": _FLAG,
    "pmmir": (f"0x0 to 0xfffffff, or fields of {', '.join(PMMIR_FIELDS)}", _number(0xFFF_FFFF)[1]),
    "mhz": _number(100_000),
    "product": ("the name of a product", lambda value: isinstance(value, str) and value != ""),
    "events": ("ascending common events, 0x0 to 0x3f and 0x4000 to 0x403f", lambda v: _ascending(v, COMMON_EVENTS)),
    "translated": ("pairs of a common event, ascending, and one of 8 bits", _is_translation),
}
"""Every figure of a core, with what it is expected to be and whether a value is that."""
_OF_PMUV3 = ("implementer", "idcode", "hpmn0", "icntr", "mt", "pmmir", "events")
"""Figures that a core without PMUv3 does not have."""
_OF_OTHERS = ("translated",)
"""Figures that only a core without PMUv3 has."""
_OPTIONAL = ("spe_fds",)
"""Figures that are false where the file does not say."""

_IMPOSSIBLE: tuple[tuple[str, str, Callable[[Core], bool]], ...] = (
    (
        "midr",
        "expected 0xf in bits 19:16, MIDR_EL1.Architecture: 'see the ID registers'",
        lambda core: (core.midr >> 16) & 0xF != 0xF,
    ),
    ("fgt2", "expected false: FEAT_FGT2 comes with FEAT_FGT only", lambda core: core.fgt2 and not core.fgt),
    (
        "hpmn0",
        "expected false: without FEAT_FGT, ID_AA64DFR0_EL1.HPMN0 can only be 0",
        lambda core: core.hpmn0 and not core.fgt,
    ),
    (
        "icntr",
        "expected false: FEAT_PMUv3_ICNTR comes with FEAT_FGT2 and FEAT_PMUv3p9 only",
        lambda core: core.icntr and not (core.fgt2 and core.pmuver >= PMUV3P9),
    ),
    ("spe_fds", "expected false: FEAT_SPE_FDS comes with SPE only", lambda core: core.spe_fds and core.spe == 0),
    (
        "pmmir",
        "expected 0: PMMIR_EL1 comes with FEAT_PMUv3p4 only",
        lambda core: core.pmmir != 0 and core.pmuver < PMUV3P4,
    ),
    (
        "implementer",
        "expected 0, and idcode 0: PMCR_EL0.IMP reads as zero from FEAT_PMUv3p7",
        lambda core: core.pmuv3 and core.pmuver >= PMUV3P7 and (core.implementer, core.idcode) != (0, 0),
    ),
)
"""What cannot be: the figure, what was expected and why, and whether a core is so (Arm ARM: ID_AA64DFR0_EL1.HPMN0,
PMCR_EL0.{IMP, IDCODE}, PMMIR_EL1 "Configuration", the features' entries in A2)."""


# ---- reading the file ---------------------------------------------------------------------------------------


@functools.cache
def cores() -> dict[str, Core]:
    """Return every core of the data file, by name, in the file's order."""
    return parse(resources.files("pmuvisor.arch").joinpath(FILE).read_text(), FILE)


def core(name: str) -> Core:
    """Return the core called `name`. Raises CoreError, which names those there are."""
    if name not in cores():
        raise CoreError(f"core {name!r}: expected one of {', '.join(cores())}")
    return cores()[name]


def parse(text: str, file: str) -> dict[str, Core]:
    """Return the cores of a data file, `text`. Raises CoreError: one line with `file`, the core and the figure."""
    try:
        return {name: _core(name, table) for name, table in tomllib.loads(text).items()}
    except (tomllib.TOMLDecodeError, CoreError) as error:
        raise CoreError(f"{file}: {error}") from None


def _core(name: str, table: object) -> Core:
    if not isinstance(table, dict) or set(table) != {"about", "figures"} or not isinstance(table["about"], str):
        raise CoreError(f"core {name}: expected a table of the text 'about' and of tables 'figures'")
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    groups = table["figures"]
    for group in groups if isinstance(groups, list) else [groups]:
        source = _source(name, group)
        for figure in group:
            if figure in ("source", "assumption"):
                continue
            if figure not in FIGURES:
                raise CoreError(f"core {name}: {figure}: expected one of {', '.join(FIGURES)}")
            if figure in sources:
                raise CoreError(f"core {name}: {figure}: expected once, with one source")
            values[figure] = _READ.get(figure, _as_is)(group[figure])
            sources[figure] = source
    _check_complete(name, values)
    return Core(name=name, about=table["about"], sources=sources, **values)


def _source(name: str, group: object) -> Source:
    if not isinstance(group, dict) or len(group.keys() & {"source", "assumption"}) != 1:
        raise CoreError(f"core {name}: figures: expected each group to have one 'source' or one 'assumption'")
    key = "source" if "source" in group else "assumption"
    if not isinstance(group[key], str) or not group[key].strip():
        raise CoreError(f"core {name}: {key} {group[key]!r}: expected a text")
    if len(group) == 1:
        raise CoreError(f"core {name}: {key} {group[key]!r}: expected a figure that it is for")
    return Source(" ".join(group[key].split()), key == "assumption")


def _check_complete(name: str, values: dict[str, Any]) -> None:
    """Raise CoreError unless all figures are there, and none of those that such a core has not."""
    without = values.get("pmuver") in (NO_PMU, PMU_IMP_DEF)
    strange, what = (_OF_PMUV3, "without") if without else (_OF_OTHERS, "with")
    for figure in FIGURES:
        if figure in strange and figure in values:
            raise CoreError(f"core {name}: {figure}: expected none in a core {what} PMUv3")
        if figure not in strange and figure not in values and figure not in _OPTIONAL:
            raise CoreError(f"core {name}: {figure}: missing, expected {FIGURES[figure][0]}, with its source")


def _as_is(value: object) -> object:
    return value


def _pairs(value: object) -> object:
    """Return lists of lists as tuples of tuples, and anything else as it is: a check follows."""
    if not isinstance(value, list):
        return value
    return tuple(tuple(pair) if isinstance(pair, list) else pair for pair in value)


def _events(value: object) -> object:
    """Return the numbers of "0x0-0x5 0x8", or of "all"; anything else as it is: a check follows."""
    if not isinstance(value, str):
        return value
    if value == ALL:
        return COMMON_EVENTS
    numbers: list[int] = []
    for word in value.split():
        first, _, last = word.partition("-")
        try:
            run = range(int(first, 16), int(last or first, 16) + 1)
        except ValueError:
            return value
        if not run or run[-1] > COMMON_EVENTS[-1]:
            return value
        numbers += run
    return tuple(numbers)


def _pmmir(value: object) -> object:
    """Return PMMIR_EL1 of its fields by name; anything else, as a number, as it is: a check follows."""
    if not isinstance(value, dict) or not set(value) <= set(PMMIR_FIELDS):
        return value
    for field, number in value.items():
        if type(number) is not int or number >> PMMIR_FIELDS[field][1]:
            return value
    return sum(number << PMMIR_FIELDS[field][0] for field, number in value.items())


_READ: dict[str, Callable[[object], object]] = {"events": _events, "pmmir": _pmmir, "translated": _pairs}
"""How the file's form of a figure becomes the figure, where the two differ."""


def events_as_text(events: Iterable[int]) -> str:
    """Return ascending common events in the form of the data file, as "0x0-0x5 0x8"."""
    numbers = tuple(events)
    if numbers == COMMON_EVENTS:
        return ALL
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(f"{first:#x}" if first == last else f"{first:#x}-{last:#x}" for first, last in runs)


# ---- a PE of a core -----------------------------------------------------------------------------------------


def make_pe(of: Core, counted: Iterable[int]) -> Pe:
    """Return a PE of this core, reset, in a machine that counts the events `counted`.

    PMCEID<n>_EL0 shows the events that both core and machine count. Raises CoreError for a core without PMUv3.
    """
    if not of.pmuv3:
        raise CoreError(
            f"core {of.name}: it has no PMUv3 registers (ID_AA64DFR0_EL1.PMUVer is {of.pmuver:#x}) to give to a guest: "
            "a guest's PMU would have to be emulated, and pmuvisor has no design that does"
        )
    sizes = {"event_counters": of.event_counters, "counter_width": 64}
    pe = records.new(Pe, sizes)
    events = set(counted) & set(of.events)
    set_features(
        pe.core,
        event_counters=of.event_counters,
        pmuver=of.pmuver,
        identity=(of.implementer << 8) | of.idcode,
        pmceid0=pmceid(events, 0),
        pmceid1=pmceid(events, 1),
        pmmir=of.pmmir,
        **{name: int(getattr(of, name)) for name in ("hpmn0", "fgt", "fgt2", "icntr", "el3", "sel2", "mt", "aarch32")},
    )
    pmu.reset(pe)
    return pe


SPE_LOG_BYTES = 6
"""PMSIDR_EL1.MaxSize and PMBIDR_EL1.Align: each record is 64 bytes."""
SPE_INTERVAL = 4
"""PMSIDR_EL1.Interval: 1024 operations at least."""
SPE_COUNT_SIZE = 2
"""PMSIDR_EL1.CountSize: counters of 12 bits."""
SPE_INFLIGHT = 4
"""How many records a unit holds before it has to write one. An assumption: no manual says."""


def make_spe(of: Core) -> SpeFeatures:
    """Return what a core has of SPE. FEAT_SPE_FnE is there from SPEv1p2.

    Sizes and the interval are the Neoverse N1's (TRM 100616, PMSIDR_EL1 and PMBIDR_EL1), assumed for the others.
    """
    features = records.new(SpeFeatures)
    features.pmsver = of.spe
    features.fne = int(of.spe >= SPEV1P2)
    features.fds = int(of.spe_fds)
    features.lds = 1
    features.interval, features.count_size = SPE_INTERVAL, SPE_COUNT_SIZE
    features.max_size = features.align = SPE_LOG_BYTES
    return features


def set_features(features: Features, **values: Any) -> None:
    """Set fields of `features`, with counters of the architecture's widths unless `values` says otherwise."""
    widths = {"half_bits": 32, "half_mask": (1 << 32) - 1, "counter_mask": FULL_MASK, "counter_top": 63}
    for name, value in {**widths, **values}.items():
        setattr(features, name, value)
