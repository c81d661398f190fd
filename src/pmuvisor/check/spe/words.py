"""What the integers of a small machine's state are called, where a story tells of the profiling unit."""

from __future__ import annotations

from pmuvisor.arch.sysreg import FSC_TRANSLATION, PMBSR_BSC_FULL, PMBSR_EC_SHIFT, PMBSR_EC_STAGE2, PMBSR_S
from pmuvisor.check.model import Words
from pmuvisor.records import Path

_REGISTERS = {
    "pmscr_el1": "PMSCR_EL1",
    "pmscr_el2": "PMSCR_EL2",
    "pmsicr": "PMSICR_EL1",
    "pmsirr": "PMSIRR_EL1",
    "pmsfcr": "PMSFCR_EL1",
    "pmsevfr": "PMSEVFR_EL1",
    "pmslatfr": "PMSLATFR_EL1",
    "pmblimitr": "PMBLIMITR_EL1",
    "pmbptr": "PMBPTR_EL1",
    "pmbsr": "PMBSR_EL1",
}
_UNIT = {
    "e2pb": "MDCR_EL2.E2PB",
    "pointer": "PMBPTR_EL1",
    "status": "PMBSR_EL1",
    "nr_pending": "records that wait in the unit",
    "in_buffer_of": "the unit's pointer is in the buffer of",
    "exposed": "a buffer that may be enabled with another's tables",
    "lost": "records lost",
    "misplaced": "records in another's buffer",
}
_SEEN = {"e2pb": "the unit knows MDCR_EL2.E2PB as"}
_BUFFER = ("pmblimitr", "pmbptr", "pmbsr")
"""The registers that are told where they are in memory, too."""
_SESSION = {
    "state": "state",
    "handle_open": "has a buffer in the unit",
    "aux_head": "bytes for its reader",
    "formed": "records that it ought to have",
}
_OWNERS = {"0": "the host", "1": "vCPU 0", "2": "vCPU 1"}
_E2PB = {"0": "the host's", "2": "the guest's"}
_STATUS = {
    "0": "0",
    str(PMBSR_S): "service",
    str(PMBSR_S | PMBSR_BSC_FULL): "service, full",
    str(PMBSR_S | PMBSR_EC_STAGE2 << PMBSR_EC_SHIFT | FSC_TRANSLATION): "service, stage 2 fault",
}
_NAMED = {"in_buffer_of": _OWNERS, "status": _STATUS, "e2pb": _E2PB, "pmbsr": _STATUS}
_STATES = {"1": "off", "2": "inactive", "3": "active"}
_HERE = ("pmbptr", "pmbsr")
"""What a direct read has, which is told as the unit's own."""


def words(path: Path) -> Words | None:
    """Return what an integer of the state is called, and the names of its values; None for what is not told."""
    match path:
        case ("world", "host", "cpus", int(c), "pe", "tge"):
            return f"CPU {c}: HCR_EL2.TGE", {}
        case ("world", "host", "cpus", int(c), "spu", *found):
            return _of_unit(f"CPU {c}: ", tuple(found))
        case ("world", "host", "spe_sessions", int(), str(field)) if field in _SESSION:
            return f"session: {_SESSION[field]}", _STATES if field == "state" else {}
        case ("world", "vcpus", int(v), "spe", str(field)) if field in _BUFFER:
            return f"vCPU {v}, in memory: {_REGISTERS[field]}", _NAMED.get(field, {})
        case ("world", "vcpus", int(v), "spe_irq_level"):
            return f"vCPU {v}: PMBIRQ", {}
        case ("world", "saved", int(c), "spe", str(field)) if field in _BUFFER:
            return f"CPU {c}, kept for the host: {_REGISTERS[field]}", _NAMED.get(field, {})
        case ("world", "saved", int(c), "pmscr_el2"):
            return f"CPU {c}, kept for the host: PMSCR_EL2", {}
    return None


def _of_unit(where: str, path: Path) -> Words | None:
    match path:
        case ("seen", str(field)) if field in _SEEN:
            return where + _SEEN[field], _NAMED.get(field, {})
        case ("filter", str(field)) if field in _REGISTERS:
            return where + _REGISTERS[field], {}
        case (str(field),) if field in _REGISTERS and field not in _HERE:
            return where + _REGISTERS[field], {}
        case (str(field),) if field in _UNIT:
            return where + _UNIT[field], _NAMED.get(field, {})
    return None
