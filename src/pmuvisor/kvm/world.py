"""The host with its VMs: the life of a vCPU of any design, when the scheduler moves its thread and when it runs.

A vCPU is loaded when its thread comes to a CPU and put when it leaves (kvm_sched_in, kvm_sched_out). Around a load as
GUEST_OWNED the guest's counters are taken from the host's perf, and given back at put.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor.arch import pmu as arch_pmu
from pmuvisor.arch import spe as arch_spe
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.pmu import reset as pmu_reset
from pmuvisor.arch.spe_record import SpeFeatures
from pmuvisor.arch.sysreg import INSTRUCTION
from pmuvisor.kvm import emulated, lazy, partitioned, pmu, spe, vcpu
from pmuvisor.kvm.vcpu import EMULATED, FIXED_COUNTERS_ONLY, GUEST_OWNED, HostContext, Vcpu, Vm
from pmuvisor.linux import arm_pmuv3, arm_spe, perf, sched
from pmuvisor.linux.host import NO_SESSION, NO_TASK, NO_VCPU, Cpu, Host
from pmuvisor.records import Each, record

LOAD_SECTIONS = 3
"""Of a load (`load_section`)."""


@record
class World:
    """A host and its VMs."""

    host: Host
    saved: Annotated[list[HostContext], Each("cpus")]
    """What the host needs back on each CPU."""
    vms: Annotated[list[Vm], Each("vms")]
    vcpus: Annotated[list[Vcpu], Each("vcpus")]
    vm_of: Annotated[list[int], Each("vcpus", 8)]


def boot_cpu(cpu: Cpu, pe: Pe, number: int) -> None:
    """Make `cpu`, which is all zero, a CPU of the host's PMU `number`, idle, as `pe`, which has been reset, has it.

    `cpu.pe` may have room for more counters than `pe`: it is that of the host's largest PMU.
    """
    cpu.pe.core = pe.core
    pmu_reset(cpu.pe)
    cpu.pmu = number
    cpu.current = NO_TASK
    cpu.spe_session = NO_SESSION
    vcpu.guest_exit(cpu.pe)
    arm_pmuv3.reset(cpu)


def boot_spu(cpu: Cpu, features: SpeFeatures, seed: int) -> None:
    """Give a CPU of the host a Statistical Profiling Unit, which the driver finds; `seed` is of random intervals."""
    cpu.spu.filter.core = features
    arch_spe.reset(cpu.spu, seed)
    arm_spe.reset_local(cpu)


def create_vcpu(world: World, v: int, vm: int, task: int, first_event: int) -> None:
    """State kvm_arch_vcpu_create() and KVM_ARM_VCPU_INIT: vCPU `v` of a VM, run by a thread, its registers reset.

    `first_event` is where its perf events begin in `Host.events`.
    """
    world.vm_of[v] = vm
    world.vcpus[v].task = task
    world.vcpus[v].first_event = first_event
    world.host.tasks[task].preempt_notifier = v
    vcpu.reset_registers(world.host.cpus[0].pe.core, world.vms[vm], world.vcpus[v])
    spe.reset_registers(world.vcpus[v], vcpu.UNKNOWN)


# ---- the guest's counters, while it is there ---------------------------------------------------------------


def taken_counters(world: World, vm: int) -> int:
    """Return the counters that the host does without while a vCPU of `vm` is loaded.

    Those of the guest; and the instruction counter, which is not the guest's, but counts only while PMCR_EL0.E is set,
    which the guest clears as it likes, and not at EL2 (MDCR_EL2.HPMD). The series leaves it to the host all the same.
    """
    return vcpu.implemented_counter_mask(world.vms[vm]) | (1 << INSTRUCTION)


def reserve_counters(world: World, c: int, v: int, now: int) -> None:
    """Take a guest's counters from the host, on one CPU: events that occupy them are moved, if there are any."""
    hw = world.host.cpus[c].hw
    taken = taken_counters(world, world.vm_of[v])
    if hw.used_mask & taken != 0:
        world.vcpus[v].rescheduled += 1
        perf.perf_pmu_resched_update(world.host, c, hw.cntr_mask & ~taken, now)
    else:
        hw.cntr_mask &= ~taken


def release_counters(world: World, c: int, v: int, now: int) -> None:
    """Give the counters back. Host events that have to wait for one are tried again at once."""
    cpu = world.host.cpus[c]
    counters = arm_pmuv3.all_counters(cpu)
    waiting = cpu.ctx.rotate_necessary
    if cpu.current != NO_TASK:
        waiting |= world.host.tasks[cpu.current].ctx.rotate_necessary
    if waiting == 1:
        world.vcpus[v].rescheduled += 1
        perf.perf_pmu_resched_update(world.host, c, counters, now)
    else:
        cpu.hw.cntr_mask = counters


# ---- load and put -----------------------------------------------------------------------------------------


def is_supported(world: World, c: int, v: int) -> int:
    """Return 1 where the vCPU can run on CPU `c` (kvm->arch.supported_cpus, vcpu_set_on_unsupported_cpu)."""
    return (world.vms[world.vm_of[v]].supported_pmus >> world.host.cpus[c].pmu) & 1


def vcpu_load(world: World, c: int, v: int, now: int) -> None:
    """State kvm_arch_vcpu_load(), as far as the PMU and SPE go. Whether the CPU can run the vCPU comes first."""
    load_as(world, c, v, lazy.residency_at_load(world.vms[world.vm_of[v]], world.vcpus[v]), now)


def load_as(world: World, c: int, v: int, residency: int, now: int) -> None:
    """Load a vCPU on CPU `c`, with its PMU if `residency` is GUEST_OWNED."""
    for section in range(LOAD_SECTIONS):
        load_section(world, c, v, residency, now, section)


def load_section(world: World, c: int, v: int, residency: int, now: int, section: int) -> None:
    """Do one of the `LOAD_SECTIONS` of a load: preemption is off in all of them, and interrupts are on between two.

    The host's counters are taken and its profiling ends (kvm_vcpu_spe_load() as far as interrupts are off); the
    sampling registers are swapped (the rest of it); MDCR_EL2 and all else (kvm_vcpu_load_debug()).
    """
    cpu = world.host.cpus[c]
    supported = is_supported(world, c, v)
    profiled = spe.is_here(world.vms[world.vm_of[v]], supported)
    if section == 0:
        if supported == 1 and residency == GUEST_OWNED:
            reserve_counters(world, c, v, now)
        if profiled:
            spe.drain_host(cpu.spu, world.saved[c])
    elif section == 1:
        if profiled:
            spe.swap_in(cpu.spu, world.saved[c], world.vcpus[v])
    else:
        load_debug(world, c, v, supported, residency)


def load_debug(world: World, c: int, v: int, supported: int, residency: int) -> None:
    """State kvm_vcpu_load_debug(), kvm_vcpu_load_fgt() and kvm_vcpu_load_pmu(): MDCR_EL2 says whose is what."""
    cpu = world.host.cpus[c]
    vm = world.vms[world.vm_of[v]]
    partitioned.load_as(cpu.pe, world.saved[c], vm, world.vcpus[v], supported, residency)
    if spe.is_here(vm, supported):
        own_buffer(world, c, v)
    spe.fine_grained_traps(cpu.pe, cpu.spu, vm)
    if supported == 1 and residency == GUEST_OWNED:
        cpu.hw.guest_resident = 1
        arm_pmuv3.armpmu_enable(cpu)
    if vm.design == FIXED_COUNTERS_ONLY:
        emulated.load_pmu(world.host, c, world.vcpus[v])
    pmu.restore_guest(cpu)


def own_buffer(world: World, c: int, v: int) -> None:
    """MDCR_EL2 has been written for a vCPU with SPE: the profiling buffer is the EL1&0 regime's, and that is its."""
    cpu = world.host.cpus[c]
    cpu.spu.guest = v + 1
    arch_spe.write_mdcr_el2(cpu.spu, cpu.pe.mdcr_el2)
    arch_spe.isb(cpu.spu)


def return_buffer(world: World, c: int, v: int) -> None:
    """MDCR_EL2 is the host's again: so is the profiling buffer, and its sampling goes on."""
    cpu = world.host.cpus[c]
    arch_spe.write_mdcr_el2(cpu.spu, cpu.pe.mdcr_el2)
    spe.put(cpu.spu, world.saved[c], world.vcpus[v])
    cpu.spu.guest = arch_spe.HOST


def vcpu_put(world: World, c: int, v: int, now: int) -> None:
    """State kvm_arch_vcpu_put(), as far as the PMU and SPE go."""
    cpu = world.host.cpus[c]
    vm = world.vms[world.vm_of[v]]
    spe_here = spe.is_here(vm, 1 - world.vcpus[v].unsupported_cpu)
    pmu.restore_host(cpu)
    partitioned.vcpu_put(cpu.pe, world.saved[c], vm, world.vcpus[v])
    if spe_here:
        return_buffer(world, c, v)
    if cpu.hw.guest_resident == 1:
        cpu.hw.guest_resident = 0
        release_counters(world, c, v, now)
        arm_pmuv3.armpmu_enable(cpu)


def set_guest_ownership(world: World, c: int, v: int, now: int) -> None:
    """Make a lazy vCPU that is FREE the owner of its PMU: a full put and load, which nothing preempts.

    On the model of kvm_debug_set_guest_ownership(), in the preemptible kernel. The guest then executes again the
    instruction that has trapped.
    """
    vcpu_put(world, c, v, now)
    load_as(world, c, v, GUEST_OWNED, now)


def vcpu_reset(world: World, c: int, v: int) -> None:
    """Reset the PMU of a vCPU that is not loaded (KVM_ARM_VCPU_INIT, PSCI), in its thread on CPU `c`.

    State kvm_reset_sys_regs(): the registers are reset, and KVM_REQ_RELOAD_PMU lets perf events follow at the next
    entry. In Linux newer than 6.12 none is released: a counter's value is then UNKNOWN and what its event had counted.
    """
    vcpu.reset_registers(world.host.cpus[c].pe.core, world.vms[world.vm_of[v]], world.vcpus[v])
    spe.reset_registers(world.vcpus[v], vcpu.UNKNOWN)


def is_emulated(vm: Vm) -> bool:
    """Tell whether the VM's counters are perf events."""
    return vm.design in (EMULATED, FIXED_COUNTERS_ONLY)


def vcpu_enter(world: World, c: int, v: int, now: int) -> None:
    """Enter the guest of the vCPU that is loaded on CPU `c`: requests first, then its interrupt line."""
    check_requests(world, c, v, now)
    cpu = world.host.cpus[c]
    if is_emulated(world.vms[world.vm_of[v]]):
        emulated.note_switched(world.host, world.vcpus[v])
    if world.vcpus[v].unsupported_cpu == 0:
        spe.restore_guest_buffer(cpu.spu, world.vms[world.vm_of[v]], world.vcpus[v], v + 1)
    vcpu.guest_enter(cpu.pe)
    arch_spe.isb(cpu.spu)
    flush_hwstate(world, c, v)


def check_requests(world: World, c: int, v: int, now: int) -> None:
    """State check_vcpu_requests(): KVM_REQ_RELOAD_PMU and KVM_REQ_RESYNC_PMU_EL0."""
    cpu = world.host.cpus[c]
    if world.vcpus[v].reload_pmu == 1:
        world.vcpus[v].reload_pmu = 0
        vm = world.vms[world.vm_of[v]]
        if is_emulated(vm):
            emulated.reload_pmu(world.host, c, vm, world.vcpus[v], now)
    if cpu.hw.resync_el0 == 1:
        pmu.restore_guest(cpu)


def flush_hwstate(world: World, c: int, v: int) -> None:
    """State kvm_pmu_flush_hwstate(), and its like for SPE: set the guest's interrupt lines, on entry."""
    partitioned.flush_hwstate(world.host.cpus[c].pe, world.vms[world.vm_of[v]], world.vcpus[v])
    spe.flush_hwstate(world.vms[world.vm_of[v]], world.vcpus[v])


def vcpu_exit(world: World, c: int, v: int) -> None:
    """Leave the guest on CPU `c` for the host: its profiling buffer is drained, and KVM does what it has to about that.

    Who has the guest's memory maps the page at its write pointer at stage 2 where `Vcpu.spe_stage2` has grown.
    """
    cpu = world.host.cpus[c]
    vcpu.guest_exit(cpu.pe)
    arch_spe.isb(cpu.spu)
    if world.vcpus[v].unsupported_cpu == 0:
        service = spe.save_guest_buffer(cpu.spu, world.vms[world.vm_of[v]], world.vcpus[v])
        if service == 1 and spe.is_stage2_fault(world.vcpus[v]):
            spe.resolve_stage2_fault(world.vcpus[v])


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
    samples = arm_pmuv3.handle_irq(world.host, c, flags)
    if v != NO_VCPU and is_emulated(world.vms[world.vm_of[v]]):
        emulated.handle_overflows(world.host, c, world.vms[world.vm_of[v]], world.vcpus[v])
    return samples


def counter_value(world: World, v: int, i: int, now: int) -> int:
    """Return what counter `i` of vCPU `v`'s guest holds now, wherever the vCPU is. CYCLE is 31."""
    vm = world.vms[world.vm_of[v]]
    c = world.host.tasks[world.vcpus[v].task].cpu
    if is_emulated(vm):
        return emulated.counter_value(world.host, c, vm, world.vcpus[v], i, now)
    if world.vcpus[v].residency == GUEST_OWNED:
        return arch_pmu.counter_value(world.host.cpus[c].pe, i)
    return emulated.register_value(world.vcpus[v], i)


# ---- a switch of tasks ------------------------------------------------------------------------------------


def switch_out(world: World, c: int, now: int) -> int:
    """The task on CPU `c` leaves it, and the vCPU that it runs is put (kvm_sched_out). Return the task, or NO_TASK.

    A choice: of a VM with SPE that comes first. In Linux perf takes a thread's events off before KVM hears of it, which
    the series leaves as it is: a profiling session of the vCPU's own thread would end with the guest's write pointer.
    """
    v = NO_VCPU
    if world.host.cpus[c].current != NO_TASK:
        v = world.host.tasks[world.host.cpus[c].current].preempt_notifier
    first = v != NO_VCPU and world.vms[world.vm_of[v]].spe == 1
    if first:
        vcpu_put(world, c, v, now)
    number = sched.sched_out(world.host, c, now)
    if v != NO_VCPU and not first:
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
