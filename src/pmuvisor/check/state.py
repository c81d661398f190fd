"""What is explored: a host with its VMs, beside each vCPU the PMU that its guest believes to have, and what is left.

`Mirror.pe` is a PMU that nobody shares and nothing virtualizes, with as many counters as the guest has. Every access
and every instruction of the guest happens to it as well, so that what a guest sees is right where the two are equal.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor.arch.pmu import Pe
from pmuvisor.kvm.world import World
from pmuvisor.records import U1, U4, U8, U16, U32, U33, U64, Bits, Each, Role, record

# Kinds of actions, with their operands
ACCESS = 0
"""The guest on CPU a executes an MRS (bit 0 of c clear) or MSR of register b, writing d, at EL0 if c has FROM_EL0. A
trap exits."""
HANDLE = 1
"""KVM handles the access that has exited, on CPU a."""
EXECUTE = 2
"""An instruction retires on CPU a, at exception level b, the host's if that is EL2 or c is 1; it takes a cycle."""
ENTER = 3
"""CPU a enters the guest of the vCPU that is loaded there."""
EXIT = 4
"""The guest on CPU a is interrupted by something that is not its PMU's."""
INTERRUPT = 5
"""CPU a takes PMUIRQ."""
SWITCH_OUT = 6
"""The thread on CPU a is preempted: its vCPU is put."""
SWITCH_IN = 7
"""The next thread comes to CPU a: its vCPU is loaded."""
MOVE = 8
"""A thread that waits on CPU a is moved to CPU b."""
OPEN = 9
"""Somebody on the host opens event b."""
CLOSE = 10
"""Event b is closed."""
ROTATE = 11
"""The multiplexing timer of CPU a fires."""
WRITE_REGISTER = 12
"""Userspace writes c to register b of vCPU a, which is not loaded (KVM_SET_ONE_REG)."""
SET_FILTER = 13
"""Userspace lets the VM's filter deny event a (b = 1) or allow it, before a vCPU has run (KVM_ARM_VCPU_PMU_V3_FILTER).
"""
SET_PMU = 14
"""Userspace gives the VM the host's PMU a, before a vCPU has run (KVM_ARM_VCPU_PMU_V3_SET_PMU)."""
SET_FIXED = 15
"""Userspace sets KVM_ARM_VCPU_PMU_V3_FIXED_COUNTERS_ONLY, before a vCPU has run."""
FROM_EL0 = 2

# Machine.left, by what an action takes of it
ACCESSES = 0
EXECUTIONS = 1
SWITCHES = 2
EVENTS = 3
SETTINGS = 4
BUDGETS = 5

USER_EL, GUEST_EL, HOST_EL = 0, 1, 2


@record
class Mirror:
    """What the guest of one vCPU ought to see."""

    pe: Pe
    """Its registers; event types as they are to count, those that the VM's filter denies not at all."""
    evtyper: Annotated[list[int], Each("event_counters", 32)]
    """The event types as the guest is to read them,"""
    ccfiltr: U32
    """and PMCCFILTR_EL0."""
    inexact: U33
    """The counters whose overflows are excused after the last step (`upstream.inexact_counters`)."""
    touched: U1
    """The guest has accessed its PMU since it was reset."""
    trapped: U1
    """An access has exited and waits for KVM to handle it."""
    key: U16
    write: U1
    el: U1
    value: U64


@record
class HostView:
    """What no guest may change, as it was before a guest's access."""

    evcntr: Annotated[list[int], Each("event_counters", "counter_width")]
    evtyper: Annotated[list[int], Each("event_counters", 64)]
    icntr: U64
    cnten: U33
    inten: U33
    ovs: U33


@record
class Machine:
    """The state."""

    world: World
    mirrors: Annotated[list[Mirror], Each("vcpus")]
    left: Annotated[list[int], Each(BUDGETS, 16)]
    """How many actions of each sort may still happen."""
    asked: U16
    """Which properties are asked for: bit p for `properties.ALL[p]`."""
    excused: U8
    """What of upstream's that is known to be inexact is let be: bit b for `upstream.ALL[b]`."""
    ran: U1
    """A vCPU has run: no attribute can be set any more. It is 1 from the beginning where none is to be set."""
    userenr: U4
    """PMUSERENR_EL0 of the host, on every CPU."""
    filter_of: U8
    """Which PMU the VM had when its event filter was made, and one; 0: it has had its filter all along."""
    filter_fixed: U1
    """It had FIXED_COUNTERS_ONLY then."""
    before: Annotated[HostView, Role.LEDGER]
    """Scratch of a step."""
    outcome: Annotated[int, Bits(4), Role.LEDGER]
    """How the last access went (`access.DIRECT` and its like)."""
    returned: Annotated[int, Bits(1), Role.LEDGER]
    """A guest's counters have been given back to the host in this step."""
    read: Annotated[int, Bits(64), Role.LEDGER]
    """What the last access that was a read has read."""
    expected: Annotated[int, Bits(64), Role.LEDGER]
    """What it ought to have read."""
