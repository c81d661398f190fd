"""The one door through which every guest access to a PMU register passes.

Hardware decides first where the access goes (`arch.traps`). What it lets through acts on the hardware; what it traps to
EL2 is handled by the VM's design between an exit and an entry. Nothing else in kvm/ or board/ reads or writes a guest's
PMU register on the guest's behalf.
"""

from __future__ import annotations

from pmuvisor.arch import pmu, traps
from pmuvisor.arch.pmu import Pe
from pmuvisor.kvm import partitioned
from pmuvisor.kvm import vcpu as life
from pmuvisor.kvm.vcpu import Vcpu, Vm

DIRECT = 0
"""Carried out by the hardware, without an exit."""
TRAPPED = 1
"""Exited to KVM, which carried it out."""
UNDEFINED = 2
"""The guest takes an Undefined Instruction exception, by the hardware's decision."""
TRAPPED_UNDEFINED = 3
"""Exited to KVM, which injected an Undefined Instruction exception."""
TO_EL1 = 4
"""The guest's EL1 takes a trap (EC 0x18) of an access from its EL0."""


def guest_access(pe: Pe, vm: Vm, vcpu: Vcpu, el: int, key: int, write: int, value: int) -> int:
    """Carry out a guest's MRS (`write` 0) or MSR of PMU register `key` at `el`, 0 or 1.

    Returns DIRECT, TRAPPED, UNDEFINED, TRAPPED_UNDEFINED or TO_EL1; what was read is in `vcpu.value`.
    """
    where = traps.access(pe, el, key, write)
    if where in (traps.UNDEFINED, traps.TRAP_EL3):
        # Firmware that traps the PMU for itself gives the guest an Undefined Instruction exception, as TF-A does.
        return UNDEFINED
    if where == traps.TRAP_EL1:
        return TO_EL1
    if where == traps.TRAP_EL2:
        return _trapped(pe, vm, vcpu, el, key, write, value)
    vcpu.direct += 1
    if write == 1:
        pmu.write(pe, el, key, value)
    else:
        vcpu.value = pmu.read(pe, el, key)
    return DIRECT


def _trapped(pe: Pe, vm: Vm, vcpu: Vcpu, el: int, key: int, write: int, value: int) -> int:
    vcpu.trapped += 1
    life.guest_exit(pe)
    if write == 1:
        outcome = partitioned.trapped_write(pe, vm, vcpu, el, key, value)
    else:
        outcome = partitioned.trapped_read(pe, vm, vcpu, key)
    life.guest_enter(pe)
    partitioned.flush_hwstate(pe, vm, vcpu)
    if outcome == partitioned.UNDEF:
        return TRAPPED_UNDEFINED
    return TRAPPED
