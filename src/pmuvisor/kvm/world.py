"""The host with its VMs: what happens to a vCPU when the scheduler moves its thread.

A vCPU is loaded when its thread comes to a CPU and put when it leaves (kvm_sched_in, kvm_sched_out). Around a load the
`partitioned` design takes the guest's counters from the host's perf, and gives them back at put.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.pmu import reset as pmu_reset
from pmuvisor.arch.sysreg import INSTRUCTION
from pmuvisor.kvm import partitioned, pmu, vcpu
from pmuvisor.kvm.vcpu import PARTITIONED, HostContext, Vcpu, Vm
from pmuvisor.linux import arm_pmuv3, perf, sched
from pmuvisor.linux.host import NO_TASK, NO_VCPU, Cpu, Host
from pmuvisor.records import Each, LedgerCount, record


@record
class World:
    """A host and its VMs."""

    host: Host
    saved: Annotated[list[HostContext], Each("cpus")]
    """What the host needs back on each CPU."""
    vms: Annotated[list[Vm], Each("vms")]
    pmu_of: Annotated[list[int], Each("vms", 8)]
    """The PMU that each VM is tied to (KVM_ARM_VCPU_PMU_V3_SET_PMU): its vCPUs run on that one's CPUs only."""
    vcpus: Annotated[list[Vcpu], Each("vcpus")]
    vm_of: Annotated[list[int], Each("vcpus", 8)]
    rescheduled: LedgerCount
    """How often host events were taken off their counters, and put back on others, for a vCPU's sake."""


def boot_cpu(cpu: Cpu, pe: Pe, number: int) -> None:
    """Make `cpu`, which is all zero, a CPU of the host's PMU `number`, idle, as `pe`, which has been reset, has it.

    `cpu.pe` may have room for more counters than `pe`: it is that of the host's largest PMU.
    """
    cpu.pe.core = pe.core
    pmu_reset(cpu.pe)
    cpu.pmu = number
    cpu.current = NO_TASK
    vcpu.guest_exit(cpu.pe)
    arm_pmuv3.reset(cpu)


# ---- the guest's counters, while it is there ---------------------------------------------------------------


def taken_counters(world: World, vm: int) -> int:
    """Return the counters that the host does without while a vCPU of `vm` is loaded.

    Those of the guest; and the instruction counter, which is not the guest's, but counts only while PMCR_EL0.E is set,
    which the guest clears as it likes, and not at EL2 (MDCR_EL2.HPMD). The series leaves it to the host all the same.
    """
    return partitioned.guest_mask(world.vms[vm]) | (1 << INSTRUCTION)


def reserve_counters(world: World, c: int, vm: int, now: int) -> None:
    """Take a guest's counters from the host, on one CPU: events that occupy them are moved, if there are any."""
    hw = world.host.cpus[c].hw
    taken = taken_counters(world, vm)
    if hw.used_mask & taken != 0:
        world.rescheduled += 1
        perf.perf_pmu_resched_update(world.host, c, hw.cntr_mask & ~taken, now)
    else:
        hw.cntr_mask &= ~taken


def release_counters(world: World, c: int, now: int) -> None:
    """Give the counters back. Host events that have to wait for one are tried again at once."""
    cpu = world.host.cpus[c]
    counters = arm_pmuv3.all_counters(cpu)
    waiting = cpu.ctx.rotate_necessary
    if cpu.current != NO_TASK:
        waiting |= world.host.tasks[cpu.current].ctx.rotate_necessary
    if waiting == 1:
        world.rescheduled += 1
        perf.perf_pmu_resched_update(world.host, c, counters, now)
    else:
        cpu.hw.cntr_mask = counters


# ---- load and put -----------------------------------------------------------------------------------------


def vcpu_load(world: World, c: int, v: int, now: int) -> None:
    """State kvm_arch_vcpu_load(), as far as the PMU goes. A CPU of another PMU is noticed before anything is done."""
    cpu = world.host.cpus[c]
    vm = world.vm_of[v]
    supported = int(world.pmu_of[vm] == cpu.pmu)
    takes = supported == 1 and world.vms[vm].design == PARTITIONED
    if takes:
        reserve_counters(world, c, vm, now)
    partitioned.vcpu_load(cpu.pe, world.saved[c], world.vms[vm], world.vcpus[v], supported)
    if takes:
        cpu.hw.guest_resident = 1
        arm_pmuv3.armpmu_enable(cpu)
    pmu.restore_guest(cpu)


def vcpu_put(world: World, c: int, v: int, now: int) -> None:
    """State kvm_arch_vcpu_put(), as far as the PMU goes."""
    cpu = world.host.cpus[c]
    vm = world.vm_of[v]
    pmu.restore_host(cpu)
    partitioned.vcpu_put(cpu.pe, world.saved[c], world.vms[vm], world.vcpus[v])
    if cpu.hw.guest_resident == 1:
        cpu.hw.guest_resident = 0
        release_counters(world, c, now)
        arm_pmuv3.armpmu_enable(cpu)


def vcpu_enter(world: World, c: int, v: int) -> None:
    """Enter the guest of the vCPU that is loaded on CPU `c`: requests first, then its interrupt line."""
    cpu = world.host.cpus[c]
    if cpu.hw.resync_el0 == 1:
        pmu.restore_guest(cpu)
    vcpu.guest_enter(cpu.pe)
    partitioned.flush_hwstate(cpu.pe, world.vms[world.vm_of[v]], world.vcpus[v])


def vcpu_exit(world: World, c: int) -> None:
    """Leave the guest on CPU `c` for the host."""
    vcpu.guest_exit(world.host.cpus[c].pe)


def handle_irq(world: World, c: int, v: int) -> int:
    """PMUIRQ on CPU `c`, where vCPU `v` is loaded, or NO_VCPU: each overflow goes to whose counter it is.

    Return how many samples the host's events took.
    """
    cpu = world.host.cpus[c]
    if v == NO_VCPU:
        flags = arm_pmuv3.getreset_flags(cpu)
    else:
        flags = partitioned.handle_irq(cpu.pe, world.vms[world.vm_of[v]], world.vcpus[v])
    if flags == 0:
        return 0
    return arm_pmuv3.handle_irq(world.host, c, flags)


# ---- a switch of tasks ------------------------------------------------------------------------------------


def switch_out(world: World, c: int, now: int) -> int:
    """The task on CPU `c` leaves it, and the vCPU that it runs is put (kvm_sched_out). Return the task, or NO_TASK."""
    number = sched.sched_out(world.host, c, now)
    if number != NO_TASK:
        v = world.host.tasks[number].preempt_notifier
        if v != NO_VCPU:
            vcpu_put(world, c, v, now)
    return number


def switch_in(world: World, c: int, now: int) -> int:
    """The next task comes to CPU `c`, and the vCPU that it runs is loaded (kvm_sched_in). Return it, or NO_TASK."""
    number = sched.sched_in(world.host, c, now)
    if number != NO_TASK:
        v = world.host.tasks[number].preempt_notifier
        if v != NO_VCPU:
            vcpu_load(world, c, v, now)
    return number
