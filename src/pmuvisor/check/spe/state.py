"""What is explored: a host that profiles, guests that do, beside each guest the unit that it believes to have.

`Mirror.spu` is a Statistical Profiling Unit that nobody shares and nothing virtualizes. It writes each record at once,
into memory that is always mapped, and knows of each register at once: what the architecture lets a unit do, and what a
guest sees of its own once it has synchronized.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor.arch.spe import Spu
from pmuvisor.kvm.world import World
from pmuvisor.records import U1, U16, U64, Bits, Each, Role, record

# Kinds of actions, with their operands
ACCESS = 0
"""The guest on CPU a executes an MRS (c = 0) or MSR (c = 1) of register b, writing d, and an ISB. A trap exits."""
HANDLE = 1
"""KVM handles the access that has exited, on CPU a."""
EXECUTE = 2
"""On CPU a, at exception level b, instructions retire up to the next that is sampled (c = 1), or one (c = 0)."""
ENTER = 3
"""CPU a enters the guest of the vCPU that is loaded there."""
EXIT = 4
"""The guest on CPU a is interrupted by something that is not its unit's."""
INTERRUPT = 5
"""CPU a takes PMBIRQ: it is up, or was when the interrupt controller looked."""
SWITCH_OUT = 6
"""The thread on CPU a is preempted: its vCPU is put."""
SWITCH_IN = 7
"""The next thread comes to CPU a, and the load of its vCPU begins."""
LOAD = 8
"""The load on CPU a goes on with section b: interrupts were on until now."""
MOVE = 9
"""A thread that waits on CPU a is moved to CPU b."""
OPEN = 10
"""Somebody on the host opens session b."""
CLOSE = 11
"""Session b is closed."""
WRITE_OUT = 12
"""The unit of CPU a writes the oldest record that waits in it."""
SYNCHRONISE = 13
"""A context synchronization event happens on CPU a: an exception of the host's, or its return."""
UNMAP = 14
"""Stage 2 has no page any more where vCPU a's write pointer is: its buffer is not pinned."""

# Machine.left, by what an action takes of it
ACCESSES = 0
EXECUTIONS = 1
SWITCHES = 2
SESSIONS = 3
UNMAPPINGS = 4
BUDGETS = 5

GUEST_EL, HOST_EL = 1, 2


@record
class Mirror:
    """What the guest of one vCPU ought to have."""

    spu: Spu
    unmapped: U1
    """Stage 2 does not map the page at its write pointer."""
    trapped: U1
    """An access has exited and waits for KVM to handle it."""
    key: U16
    write: U1
    value: U64


@record
class Machine:
    """The state."""

    world: World
    mirrors: Annotated[list[Mirror], Each("vcpus")]
    loading: Annotated[list[int], Each("cpus", 2)]
    """By CPU, how many sections have been done of a load that is under way; 0 where none is."""
    interval: Annotated[list[int], Each("cpus", 64), Role.GHOST]
    """PMSICR_EL1 of each CPU as the host's last instruction, or its driver, left it."""
    left: Annotated[list[int], Each(BUDGETS, 8)]
    """How many actions of each sort may still happen."""
    asked: U16
    """Which properties are asked for: bit p for `properties.ALL[p]`."""
    read: Annotated[int, Bits(64), Role.LEDGER]
    """Scratch of a step: what the last access that was a read has read,"""
    expected: Annotated[int, Bits(64), Role.LEDGER]
    """and what it ought to have read."""
