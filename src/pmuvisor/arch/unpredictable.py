"""Where the architecture leaves the PMU's behaviour open, and what was chosen here.

Each choice has a bit in `Pe.unpredictable`, which is set when a run comes to depend on it: a report can then say that
what was seen is one of several behaviours that the Arm ARM allows.
"""

from __future__ import annotations

from typing import NamedTuple

UNPREDICTABLE_HPMN = 1 << 0
UNPREDICTABLE_EVENT_COUNTER = 1 << 1
UNPREDICTABLE_CHAIN = 1 << 2
UNPREDICTABLE_SEL = 1 << 3
UNPREDICTABLE_EVENT = 1 << 4


class Choice(NamedTuple):
    """One case that the architecture leaves open."""

    bit: int
    name: str
    """The name of its constant here, in lower case and without the prefix."""
    case: str
    source: str
    chosen: str


CHOICES = (
    Choice(
        UNPREDICTABLE_HPMN,
        "hpmn",
        "MDCR_EL2.HPMN is above N, or 0 without FEAT_HPMN0",
        "EffectiveHPMN(), Unpredictable_RES_HPMN",
        "it behaves as N",
    ),
    Choice(
        UNPREDICTABLE_EVENT_COUNTER,
        "event_counter",
        "without FEAT_FGT, access to an event counter beyond the accessible ones",
        "PMEVCNTR<n>_EL0, PMEVTYPER<n>_EL0, PMXEVCNTR_EL0, PMXEVTYPER_EL0, Unpredictable_PMUEVENTCOUNTER",
        "the access is UNDEFINED",
    ),
    Choice(
        UNPREDICTABLE_CHAIN,
        "chain",
        "the first range's last counter overflows, and the second's first counts CHAIN",
        "AArch64.IncrementEventCounter(), Unpredictable_COUNT_CHAIN",
        "it is not counted: nothing that EL1 or EL0 does reaches a counter of the second range",
    ),
    Choice(
        UNPREDICTABLE_SEL,
        "sel",
        "without FEAT_FGT, a read of PMSELR_EL0 that selects no counter implemented",
        "PMSELR_EL0.SEL",
        "it reads as written",
    ),
    Choice(
        UNPREDICTABLE_EVENT,
        "event",
        "before PMUv3p8, PMEVTYPER<n>_EL0 selects an event that is not counted and no common event's number",
        "PMEVTYPER<n>_EL0.evtCount",
        "nothing is counted, and evtCount reads as written",
    ),
)
"""Every choice, by its bit."""


BY_NAME = {choice.name: choice for choice in CHOICES}


def choices_reached(unpredictable: int) -> tuple[Choice, ...]:
    """Return the choices whose bits are set in `Pe.unpredictable`."""
    return tuple(choice for choice in CHOICES if unpredictable & choice.bit)
