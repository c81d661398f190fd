"""What the integers of a small machine's state are called, where a story tells of them."""

from __future__ import annotations

from pmuvisor.check.model import Words
from pmuvisor.records import Path


def count(number: int, of: str) -> str:
    """Return a number of things, in the plural where there is not one."""
    return f"{number} {of}{'s' if number != 1 else ''}"


_REGISTERS = {
    "pmcr": "PMCR_EL0",
    "cnten": "PMCNTEN",
    "inten": "PMINTEN",
    "ovs": "PMOVS",
    "selr": "PMSELR_EL0",
    "userenr": "PMUSERENR_EL0",
    "evcntr": "PMEVCNTR{}_EL0",
    "evtyper": "PMEVTYPER{}_EL0",
    "ccntr": "PMCCNTR_EL0",
    "ccfiltr": "PMCCFILTR_EL0",
    "icntr": "PMICNTR_EL0",
    "mdcr_el2": "MDCR_EL2",
    "hdfgrtr_el2": "HDFGRTR_EL2",
    "hdfgwtr_el2": "HDFGWTR_EL2",
    "tge": "HCR_EL2.TGE",
}
_DRIVER = {"cntr_mask": "counters that the driver has", "used_mask": "counters with events"}
_EVENT = {"state": "state", "idx": "counter", "count": "count", "seen": "ought to have counted"}
_STATES = {"0": "error", "1": "off", "2": "inactive", "3": "active"}
_RESIDENCY = {"0": "FREE", "1": "GUEST_OWNED"}


def words(path: Path) -> Words | None:
    """Return what an integer of the state is called, and the names of its values; None for what is not told."""
    where, rest = "", path
    match path:
        case ("world", "host", "cpus", int(c), "pe", *found):
            where, rest = f"CPU {c}: ", tuple(found)
        case ("world", "host", "cpus", int(c), "hw", str(field)) if field in _DRIVER:
            return f"CPU {c}: {_DRIVER[field]}", {}
        case ("world", "host", "events", int(e), str(field)) if field in _EVENT:
            return f"event {e}: {_EVENT[field]}", _STATES if field == "state" else {"63": "none"}
        case ("world", "vcpus", int(v), "residency"):
            return f"vCPU {v}: residency", _RESIDENCY
        case ("world", "vcpus", int(v), "irq_level"):
            return f"vCPU {v}: PMU interrupt line", {}
        case ("world", "vcpus", int(v), *found):
            where, rest = f"vCPU {v}, in memory: ", tuple(found)
        case ("mirrors", int(v), "pe", *found):
            where, rest = f"vCPU {v} ought to have: ", tuple(found)
        case _:
            return None
    if not rest or rest[0] not in _REGISTERS:
        return None
    index = rest[1] if len(rest) > 1 else ""
    return where + _REGISTERS[str(rest[0])].format(index), {}
