"""What is proved of: one CPU, one vCPU beside the PMU that its guest believes to have, and the host's own registers.

The rules of semantic code hold. The numbers of counters and what the core implements are constants of a proof;
everything else is any value, as far as the invariants (`invariants`) let it.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor.check.state import Mirror
from pmuvisor.kvm.world import World
from pmuvisor.records import U5, U7, U32, U64, Role, record

C, V = 0, 0
"""The CPU and the vCPU: there is one of each."""


@record
class Scene:
    """The state."""

    world: World
    mirror: Mirror
    ccfiltr: U32
    """PMCCFILTR_EL0 as the guest is to read it; the mirror's is as it is to count, not at all where it is denied."""
    selr: U5
    """The host's own PMSELR_EL0, which nothing changes for good,"""
    userenr: U7
    """and its PMUSERENR_EL0."""
    read: Annotated[U64, Role.LEDGER]
    """What the last access has read, or how it ended where that is not as it ought to be."""
    expected: Annotated[U64, Role.LEDGER]
