"""The one door through which every guest access to a PMU or SPE register passes.

Hardware decides first where the access goes (`arch.traps`). What it lets through acts on the hardware; what it traps to
EL2 is handled by KVM, for the PMU by the VM's design, between an exit and an entry. Nothing else in kvm/ or board/
reads or writes one of these registers on the guest's behalf.
"""

from __future__ import annotations

from pmuvisor.arch import pmu, spe, traps
from pmuvisor.kvm import emulated, partitioned
from pmuvisor.kvm import spe as kvm_spe
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import FREE, LAZY, UNDEF
from pmuvisor.kvm.world import World

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
AGAIN = 5
"""Exited to KVM, which has made the vCPU the owner of its PMU: the guest executes the instruction again."""


def guest_access(world: World, c: int, v: int, el: int, key: int, write: int, value: int, now: int) -> int:
    """Carry out a guest's MRS (`write` 0) or MSR of PMU register `key` at `el`, 0 or 1, by vCPU `v` on CPU `c`.

    Returns DIRECT, TRAPPED, UNDEFINED, TRAPPED_UNDEFINED, TO_EL1 or AGAIN; what was read is in the vCPU's `value`.
    """
    pe = world.host.cpus[c].pe
    where = traps.access(pe, el, key, write)
    if where in (traps.UNDEFINED, traps.TRAP_EL3):
        # Firmware that traps the PMU for itself gives the guest an Undefined Instruction exception, as TF-A does.
        return UNDEFINED
    if where == traps.TRAP_EL1:
        return TO_EL1
    if where == traps.TRAP_EL2:
        return _trapped(world, c, v, el, key, write, value, now)
    world.vcpus[v].direct += 1
    if write == 1:
        pmu.write(pe, el, key, value)
    else:
        world.vcpus[v].value = pmu.read(pe, el, key)
    return DIRECT


def _trapped(world: World, c: int, v: int, el: int, key: int, write: int, value: int, now: int) -> int:
    worlds.vcpu_exit(world, c, v)
    outcome = handle_trap(world, c, v, el, key, write, value, now)
    worlds.vcpu_enter(world, c, v, now)
    return outcome


def handle_trap(world: World, c: int, v: int, el: int, key: int, write: int, value: int, now: int) -> int:
    """Handle an access that has exited (handle_exit()), in the preemptible kernel. Return AGAIN, TRAPPED or its like.

    The thread may have been preempted since the exit, and is on CPU `c` again or now; it may be before the next entry.
    A choice, which the series does not make: where CPU `c` cannot run the vCPU, nothing of the guest's is in its
    registers, and a handler would work on the host's. The access is left alone, for the guest to execute again.
    """
    vcpu = world.vcpus[v]
    vm = world.vms[world.vm_of[v]]
    vcpu.trapped += 1
    if vcpu.unsupported_cpu == 1 and not worlds.is_emulated(vm):
        return AGAIN
    if vm.design == LAZY and vcpu.residency == FREE:
        worlds.set_guest_ownership(world, c, v, now)
        return AGAIN
    if write == 1:
        return trapped_write(world, c, v, el, key, value, now)
    return trapped_read(world, c, v, el, key, now)


def trapped_read(world: World, c: int, v: int, el: int, key: int, now: int) -> int:
    """Let the VM's design carry out a trapped MRS. Return TRAPPED or TRAPPED_UNDEFINED."""
    vcpu = world.vcpus[v]
    vm = world.vms[world.vm_of[v]]
    if worlds.is_emulated(vm):
        undefined = emulated.trapped_read(world.host, c, vm, vcpu, el, key, now)
    else:
        undefined = partitioned.trapped_read(world.host.cpus[c].pe, vm, vcpu, key)
    if undefined == UNDEF:
        return TRAPPED_UNDEFINED
    return TRAPPED


def trapped_write(world: World, c: int, v: int, el: int, key: int, value: int, now: int) -> int:
    """Let the VM's design carry out a trapped MSR. Return TRAPPED or TRAPPED_UNDEFINED."""
    vcpu = world.vcpus[v]
    vm = world.vms[world.vm_of[v]]
    if worlds.is_emulated(vm):
        undefined = emulated.trapped_write(world.host, c, vm, vcpu, el, key, value, now)
    else:
        undefined = partitioned.trapped_write(world.host.cpus[c].pe, vm, vcpu, el, key, value)
    if undefined == UNDEF:
        return TRAPPED_UNDEFINED
    return TRAPPED


def guest_spe_access(world: World, c: int, v: int, el: int, key: int, write: int, value: int, now: int) -> int:
    """Carry out a guest's MRS (`write` 0) or MSR of SPE register `key` at `el`, 0 or 1, by vCPU `v` on CPU `c`.

    Returns DIRECT, TRAPPED, UNDEFINED or TRAPPED_UNDEFINED; what was read is in the vCPU's `value`.
    """
    cpu = world.host.cpus[c]
    where = spe.access(cpu.pe, cpu.spu, el, key, write)
    if where == traps.UNDEFINED:
        return UNDEFINED
    if where == traps.TRAP_EL2:
        return _trapped_spe(world, c, v, key, write, value, now)
    world.vcpus[v].spe_direct += 1
    if write == 1:
        spe.write(cpu.spu, key, value)
    else:
        world.vcpus[v].value = spe.read(cpu.spu, el, key)
    return DIRECT


def _trapped_spe(world: World, c: int, v: int, key: int, write: int, value: int, now: int) -> int:
    vcpu = world.vcpus[v]
    vm = world.vms[world.vm_of[v]]
    vcpu.spe_trapped += 1
    worlds.vcpu_exit(world, c, v)
    if write == 1:
        undefined = kvm_spe.trapped_write(world.host.cpus[c].spu, vm, vcpu, key, value)
    else:
        undefined = kvm_spe.trapped_read(world.host.cpus[c].spu, vm, vcpu, key)
    worlds.vcpu_enter(world, c, v, now)
    if undefined == UNDEF:
        return TRAPPED_UNDEFINED
    return TRAPPED
