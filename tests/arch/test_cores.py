"""The data file of cores, and what cannot be a core."""

import dataclasses

import pytest

from pmuvisor.arch import events, pmu
from pmuvisor.arch.cores import Core, CoreError, core, cores, make_pe
from pmuvisor.arch.sysreg import PMCEID0_EL0, PMCEID1_EL0, PMCR_EL0

PLAIN = Core("plain", "a test", 6, 6, 0x41, 0, 1000)


def test_every_core_names_its_source_and_can_be_made() -> None:
    for name, each in cores().items():
        assert each.name == name
        assert each.source
        assert make_pe(each, [events.CPU_CYCLES]).core.event_counters == each.event_counters


def test_a_core_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(CoreError, match="core 'cortex-a1': expected one of max, "):
        core("cortex-a1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"event_counters": 32}, "event_counters 32: expected 0 to 31"),
        ({"event_counters": -1}, "event_counters -1"),
        ({"pmuver": 2}, "pmuver 2: expected one of"),
        ({"icntr": True, "fgt2": True}, "icntr"),
        ({"icntr": True, "pmuver": 9}, "icntr"),
    ],
)
def test_a_core_that_the_architecture_does_not_have_is_refused(change: dict[str, int], said: str) -> None:
    with pytest.raises(CoreError, match=f"core plain: {said}"):
        dataclasses.replace(PLAIN, **change)  # type: ignore[arg-type]


def test_pmceid_says_which_events_the_core_counts() -> None:
    # 0x08 and 0x11: bits 8 and 17 of PMCEID0; 0x21: bit 1 of PMCEID1; 0x4004: bit 36 of PMCEID0.
    pe = make_pe(PLAIN, [events.INST_RETIRED, events.CPU_CYCLES, events.BR_RETIRED, 0x4004])
    assert pmu.read(pe, 1, PMCEID0_EL0) == 1 << 8 | 1 << 17 | 1 << 36
    assert pmu.read(pe, 1, PMCEID1_EL0) == 1 << 1


def test_pmcr_shows_who_made_the_core() -> None:
    assert pmu.read(make_pe(core("neoverse-n1"), []), 2, PMCR_EL0) >> 11 == 0x41 << 13 | 0x0C << 5 | 6
