"""Event numbers (Arm ARM D14.3, "Common event numbers") and what PMCEID<n>_EL0 says of them."""

from __future__ import annotations

from collections.abc import Iterable

SW_INCR = 0x0000
LD_RETIRED = 0x0006
ST_RETIRED = 0x0007
INST_RETIRED = 0x0008
EXC_TAKEN = 0x0009
EXC_RETURN = 0x000A
PC_WRITE_RETIRED = 0x000C
BR_IMMED_RETIRED = 0x000D
BR_RETURN_RETIRED = 0x000E
CPU_CYCLES = 0x0011
MEM_ACCESS = 0x0013
INST_SPEC = 0x001B
BUS_CYCLES = 0x001D
CHAIN = 0x001E
BR_RETIRED = 0x0021
STALL_FRONTEND = 0x0023
STALL_BACKEND = 0x0024
STALL_SLOT_BACKEND = 0x003D
STALL_SLOT_FRONTEND = 0x003E
STALL_SLOT = 0x003F

BY_NAME: dict[str, int] = {
    name: value for name, value in list(globals().items()) if name.isupper() and isinstance(value, int)
}
"""Every event named here, by its name in the Arm ARM."""


def name_of(event: int) -> str:
    """Return the Arm ARM's name of an event, or its number in hexadecimal where none is known."""
    return next((name for name, number in BY_NAME.items() if number == event), f"{event:#06x}")


def pmceid(counted: Iterable[int], which: int) -> int:
    """Return PMCEID<which>_EL0, 64 bits, of a PE that counts the events `counted`.

    Bits [31:0] of PMCEID0 are events 0x0000 to 0x001F and of PMCEID1 0x0020 to 0x003F; bits [63:32] are the same of
    events 0x4000 and up (Arm ARM D24.5, "PMCEID0_EL0"). The CPU reads the upper half as zero before PMUv3p1.
    """
    value = 0
    for event in counted:
        low = event & 0x3FFF
        if event & ~0x4000 == low and low >> 5 == which:
            value |= 1 << ((low & 31) + (32 if event & 0x4000 else 0))
    return value
