"""Values that several tables of a scenario have: names, cores, CPU lists, events."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pmuvisor.arch.cores import COMMON_EVENTS, Core, cores
from pmuvisor.arch.events import BY_NAME, CHAIN, name_of
from pmuvisor.lab import reading
from pmuvisor.lab.reading import KeyProblem
from pmuvisor.lab.scenario.spec import EventSpec, HostSpec

NAME = reading.text(
    "a name of letters, digits and any of _.:- after the first, 64 at most", r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}"
)
CPU_LIST = reading.text('a CPU list such as "0-3,8"', r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*")


def core_named(value: object, key: str) -> Core:
    """Return a core that has the registers of PMUv3: a host's PMU is driven by them."""
    return cores()[reading.chosen(value, key, [name for name, core in cores().items() if core.pmuv3])]


def core_of_host(value: object, key: str, host: HostSpec) -> Core:
    """Return a core that the host has."""
    return cores()[reading.chosen(value, key, [core.name for core in host.cores])]


def cpu_list(value: object, key: str, host: HostSpec) -> int:
    """Return the mask of a CPU list."""
    mask = 0
    for part in CPU_LIST.read(value, key).split(","):
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers or numbers[-1] >= len(host.cpus):
            raise KeyProblem(key, f"CPUs {part}", f"CPUs of the host, 0 to {len(host.cpus) - 1}, the lower one first")
        mask |= (1 << (numbers[-1] + 1)) - (1 << numbers[0])
    return mask


def cpus_of(mask: int) -> list[int]:
    """Return the numbers of a mask's CPUs, ascending."""
    return [c for c in range(mask.bit_length()) if mask >> c & 1]


def event_of(value: object, key: str) -> EventSpec:
    """Return an event by its name, in upper or lower case, or by its number."""
    number: int | None = None
    hint = ""
    if type(value) is int:
        number = value
    elif isinstance(value, str):
        number = BY_NAME.get(value.upper())
        if number is None and re.fullmatch(r"0x[0-9a-fA-F]{1,4}", value):
            number = int(value, 16)
        hint = reading.near(value.upper(), BY_NAME)
    if number is None or not 0 <= number <= 0xFFFF:
        raise KeyProblem(key, reading.shown(value) + hint, "the name of an event or its number, 0x0 to 0xffff")
    if number == CHAIN:
        raise KeyProblem(key, "CHAIN", "another event: the driver chains counters by itself, for long = true")
    return EventSpec(name=name_of(number), number=number)


def implements(core: Core, event: EventSpec) -> bool:
    """Tell whether a core implements an event, as far as PMCEID<n>_EL0 tell: of those that are not common, nothing."""
    return event.number not in COMMON_EVENTS or event.number in core.events


def check_implemented(event: EventSpec, key: str, on: Iterable[Core]) -> None:
    """Raise KeyProblem for an event that one of the cores does not implement."""
    for core in on:
        if not implements(core, event):
            raise KeyProblem(key, event.name, f"an event that core {core.name} implements")
