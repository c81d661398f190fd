"""/dev/kvm of a host: KVM_CREATE_VM and KVM_CHECK_EXTENSION, file descriptors, and the world behind them.

The world is made when the host boots, with room for a stated number of VMs and vCPUs: its arrays have fixed lengths.
Where there is no more room an ioctl is ENOMEM, as when a kernel has no memory; a VM that is closed gives its room back.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pmuvisor import records
from pmuvisor.arch import pmu as arch_pmu
from pmuvisor.arch import spe as arch_spe
from pmuvisor.arch.cores import SPE_INFLIGHT, Core, make_pe, make_spe
from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED
from pmuvisor.arch.pmu import Features
from pmuvisor.arch.spe_record import EVENT_RETIRED, Sample, SpeFeatures, collect_record
from pmuvisor.arch.sysreg import CYCLE, PMCR_LP, PMUV3P5
from pmuvisor.kvm import access, emulated, partitioned
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.uapi import abi
from pmuvisor.kvm.uapi.memory import UserMemory, error
from pmuvisor.kvm.uapi.run import Executor, Script
from pmuvisor.kvm.uapi.vcpu import Vcpu
from pmuvisor.kvm.uapi.vgic import Vgic
from pmuvisor.kvm.uapi.vm import Vm, nr_events
from pmuvisor.kvm.world import World
from pmuvisor.linux import perf

FIRST_PMU_TYPE = 8
"""The `type` of the first PMU in sysfs; perf's own types are below."""
IPA_LIMIT = 48
"""KVM_CAP_ARM_VM_IPA_SIZE: how many bits a guest's addresses may have. A model: cores say nothing of it here."""


@dataclass(frozen=True)
class HostPmu:
    """One of the host's PMUs (struct arm_pmu)."""

    number: int
    type: int
    """What KVM_ARM_VCPU_PMU_V3_SET_PMU knows it by: /sys/bus/event_source/devices/<name>/type."""
    cpus: int
    """arm_pmu.supported_cpus, a mask."""
    core: Features
    max_guest_counters: int
    """How many event counters a partition may have; below 0 where there can be none."""

    @property
    def event_counters(self) -> int:
        """How many event counters it has."""
        return self.core.event_counters

    def partition_refused(self, n: int) -> bool:
        """Tell whether it cannot give a partition `n` event counters: it may not, or MDCR_EL2.HPMN cannot be that."""
        return n > self.max_guest_counters or bool(partitioned.count_refused(self.core, n))


def boot(
    cores: Sequence[Core],
    *,
    counted: Iterable[int] = range(64),
    vms: int = 1,
    vcpus: int = 8,
    perf_events: int = 0,
    spe_sessions: int = 0,
) -> World:
    """Return a world whose host has these cores, by CPU, and room for `vms` VMs with `vcpus` vCPUs between them.

    `counted` are the events that the machine counts. `perf_events` is room for events of others than KVM: they have the
    numbers after those of the vCPUs; `spe_sessions` is room for sessions of the SPE driver.
    """
    kinds = list(dict.fromkeys(of.name for of in cores))
    cpus = len(cores)
    counters = max(of.event_counters for of in cores)
    sizes = {"cpus": cpus, "cpu_words": (cpus + 31) // 32, "tasks": vcpus, "vms": vms, "vcpus": vcpus, "kinds": 0}
    sizes |= {"events": vcpus * (counters + 1) + perf_events, "context_events": counters + 1 + perf_events}
    sizes |= {"filter_words": max(nr_events(of.pmuver) for of in cores) >> 6}
    sizes |= {"event_counters": counters, "counter_width": 64, "inflight": SPE_INFLIGHT, "spe_sessions": spe_sessions}
    world = records.new(World, sizes)
    for c, of in enumerate(cores):
        worlds.boot_cpu(world.host.cpus[c], make_pe(of, counted), kinds.index(of.name))
        worlds.boot_spu(world.host.cpus[c], make_spe(of), c + 1)
    return world


class System:
    """/dev/kvm of a host (struct file of kvm_chardev_ops), and the thread that calls. The world has no VM yet.

    `reserved_host_counters` is the boot parameter arm_pmuv3.reserved_host_counters: how many event counters of each PMU
    no guest's partition gets; None where it was not given, which leaves no VM to be partitioned. `use_fgt` 0 makes the
    host do without fine-grained traps, for the VMs that are created from then on. `vcpu_events` is how many perf events
    the world has for each vCPU, in their order and before all others: one for each counter unless said otherwise, 0
    where no VM is to be emulated.
    """

    def __init__(
        self,
        world: World,
        *,
        executor: Executor | None = None,
        reserved_host_counters: int | None = 0,
        use_fgt: int = 1,
        vcpu_events: int | None = None,
    ) -> None:
        self.world = world
        self.executor: Executor = executor or Script()
        self.memory = UserMemory()
        self.use_fgt = use_fgt
        self.vcpu_events = len(world.vcpus[0].evcntr) + 1 if vcpu_events is None else vcpu_events
        self.now = 0
        """The time in nanoseconds: an instruction takes one."""
        self.cpu = 0
        """Where the calling thread is (smp_processor_id()). Set it to move the thread between two ioctls."""
        self.possible_cpus = (1 << len(world.host.cpus)) - 1
        self.pmuver_limit = self._pmuver_limit()
        self.nr_events = nr_events(self.pmuver_limit)
        self.pmus = self._pmus(reserved_host_counters) if self.pmuver_limit else []
        self.spe = self._spe()
        """What the CPUs have of SPE, if guests may have it."""
        self.supported_features = 1 << abi.KVM_ARM_VCPU_PSCI_0_2
        if self.pmus:
            self.supported_features |= 1 << abi.KVM_ARM_VCPU_PMU_V3
        if self.spe is not None:
            self.supported_features |= 1 << abi.KVM_ARM_VCPU_SPE
        self._no_vm, self._no_vcpu = records.copy(world.vms[0]), records.copy(world.vcpus[0])
        self._files: dict[int, Vm | Vcpu | Vgic] = {}
        self._next_file = 3
        self._free_vms = list(range(len(world.vms)))
        self._free_vcpus = list(range(len(world.vcpus)))

    def _pmuver_limit(self) -> int:
        """State kvm_arm_pmu_get_pmuver_limit(): PMUv3p5 at most. CPUs that differ in PMUVer leave guests without a PMU.

        The kernel's sanitised ID register has a PMUVer only if all CPUs have the same (FTR_EXACT).
        """
        versions = {cpu.pe.core.pmuver for cpu in self.world.host.cpus}
        return min(versions.pop(), PMUV3P5) if len(versions) == 1 else 0

    def _spe(self) -> SpeFeatures | None:
        """Return what all CPUs have of SPE, if that is the same: a guest finds its PMSIDR_EL1 wherever it runs.

        The series has guests on hosts where only some CPUs have it; here such a host has none for guests.
        """
        units = [cpu.spu.filter.core for cpu in self.world.host.cpus]
        same = len({records.key(unit) for unit in units}) == 1
        return units[0] if same and units[0].pmsver else None

    def _pmus(self, reserved: int | None) -> list[HostPmu]:
        """State kvm_host_pmu_init(): the PMUs that KVM knows, by the CPUs that have them."""
        found: dict[int, int] = {}
        for c, cpu in enumerate(self.world.host.cpus):
            found[cpu.pmu] = found.get(cpu.pmu, 0) | 1 << c
        made = []
        for number, cpus in sorted(found.items()):
            core = self.world.host.cpus[(cpus & -cpus).bit_length() - 1].pe.core
            room = -1 if reserved is None else core.event_counters - reserved
            made.append(HostPmu(number, FIRST_PMU_TYPE + number, cpus, core, room))
        return made

    # ---- file descriptors ---------------------------------------------------------------------------------

    def install(self, what: Vm | Vcpu | Vgic) -> int:
        """Return a new file descriptor for what an ioctl has made."""
        number = self._next_file
        self._next_file += 1
        self._files[number] = what
        return number

    def file(self, number: int) -> Vm | Vcpu | Vgic:
        """Return what a file descriptor stands for. Raises EBADF."""
        if number not in self._files:
            raise error(errno.EBADF, f"file descriptor {number}")
        return self._files[number]

    def plain(self, arg: Any) -> int:
        """Return an ioctl's argument that is a number. Raises EINVAL for an object."""
        if not isinstance(arg, int):
            raise error(errno.EINVAL, f"{type(arg).__name__}: expected a number")
        return arg

    def take_vcpu(self) -> int:
        """Return a vCPU of the world that is free. Raises ENOMEM."""
        if not self._free_vcpus:
            raise error(errno.ENOMEM, f"the world has room for {len(self.world.vcpus)} vCPUs")
        return self._free_vcpus.pop(0)

    def give_vcpu(self, number: int) -> None:
        """Give a vCPU back."""
        self._free_vcpus.insert(0, number)

    def close_vm(self, vm: Vm) -> None:
        """Close a VM, its vCPUs and its devices: the next VM has their place."""
        if vm.dead and vm.number in self._free_vms:
            return
        self._files = {n: f for n, f in self._files.items() if f is not vm and getattr(f, "vm", None) is not vm}
        for vcpu in vm.vcpus:
            self.reset_vcpu(vcpu)
            records.assign(vcpu.record, self._no_vcpu)
        records.assign(vm.record, self._no_vm)
        self._free_vcpus = sorted(self._free_vcpus + [vcpu.number for vcpu in vm.vcpus])
        self._free_vms = sorted([*self._free_vms, vm.number])
        vm.dead = True

    # ---- ioctls -------------------------------------------------------------------------------------------

    def ioctl(self, request: int, arg: Any = 0) -> int:
        """State kvm_dev_ioctl(). Returns what KVM returns; raises OSError with its errno."""
        if request == abi.KVM_CREATE_VM:
            return self.install(self._create_vm(self.plain(arg)))
        if request == abi.KVM_CHECK_EXTENSION:
            return self.check_extension(self.plain(arg))
        if request in (abi.KVM_GET_API_VERSION, abi.KVM_GET_VCPU_MMAP_SIZE):
            if self.plain(arg) != 0:
                raise error(errno.EINVAL, "this ioctl takes no argument")
            return abi.KVM_API_VERSION if request == abi.KVM_GET_API_VERSION else 2 * abi.PAGE_SIZE
        raise error(errno.EINVAL, f"/dev/kvm has no ioctl {request:#x}")

    def _create_vm(self, machine_type: int) -> Vm:
        """State kvm_dev_ioctl_create_vm() and kvm_init_stage2_mmu(): the type is the size of the guest's addresses."""
        bits = machine_type or 40
        if machine_type & ~abi.KVM_VM_TYPE_ARM_IPA_SIZE_MASK or not 32 <= bits <= IPA_LIMIT:
            raise error(errno.EINVAL, f"type {machine_type:#x}: expected 0, or 32 to {IPA_LIMIT} bits of address")
        if not self._free_vms:
            raise error(errno.ENOMEM, f"the world has room for {len(self.world.vms)} VMs")
        number = self._free_vms.pop(0)
        self.world.vms[number].use_fgt = self.use_fgt
        return Vm(self, number, bits)

    def check_extension(self, capability: int, vm: Vm | None = None) -> int:
        """State kvm_vm_ioctl_check_extension(), for what is here; 0 for what is not."""
        cpus = len(self.world.host.cpus)
        answers = {
            abi.KVM_CAP_IRQCHIP: 1,
            abi.KVM_CAP_NR_VCPUS: min(cpus, abi.VGIC_V3_MAX_CPUS),
            abi.KVM_CAP_MP_STATE: 1,
            abi.KVM_CAP_MAX_VCPUS: vm.max_vcpus if vm is not None else abi.VGIC_V3_MAX_CPUS,
            abi.KVM_CAP_MAX_VCPU_ID: vm.max_vcpus if vm is not None else abi.VGIC_V3_MAX_CPUS,
            abi.KVM_CAP_ONE_REG: 1,
            abi.KVM_CAP_ARM_PSCI_0_2: 1,
            abi.KVM_CAP_DEVICE_CTRL: 1,
            abi.KVM_CAP_CHECK_EXTENSION_VM: 1,
            abi.KVM_CAP_ARM_PMU_V3: int(bool(self.pmus)),
            abi.KVM_CAP_VCPU_ATTRIBUTES: 1,
            abi.KVM_CAP_IMMEDIATE_EXIT: 1,
            abi.KVM_CAP_ARM_USER_IRQ: 1,
            abi.KVM_CAP_ARM_VM_IPA_SIZE: IPA_LIMIT,
            abi.KVM_CAP_ARM_SPE: int(self.spe is not None),
        }
        return answers.get(capability, 0)

    def create_vm(self, machine_type: int = 0) -> Vm:
        """KVM_CREATE_VM. Raises EINVAL, and ENOMEM where the world has no more room."""
        vm = self.file(self.ioctl(abi.KVM_CREATE_VM, machine_type))
        assert isinstance(vm, Vm)
        return vm

    # ---- between the objects and the world's records ------------------------------------------------------

    def probe_armpmu(self) -> HostPmu:
        """State kvm_pmu_probe_armpmu(): the PMU of the CPU that the thread is on. Raises ENODEV."""
        for pmu in self.pmus:
            if pmu.cpus >> self.cpu & 1:
                return pmu
        raise error(errno.ENODEV, f"CPU {self.cpu} has no PMU for guests")

    def create_vcpu(self, vcpu: Vcpu) -> None:
        """Tell the world whose vCPU it is. Its thread, and its perf events, have its number."""
        v = vcpu.number
        worlds.create_vcpu(self.world, v, vcpu.vm.number, v, v * self.vcpu_events)

    def reset_vcpu(self, vcpu: Vcpu) -> None:
        """Reset a vCPU's PMU and SPE (kvm_reset_sys_regs())."""
        worlds.vcpu_reset(self.world, self.cpu, vcpu.number)

    def counter_value(self, vcpu: Vcpu, i: int) -> int:
        """State kvm_pmu_get_counter_value() of a vCPU that is not loaded; `i` may be CYCLE.

        A partitioned one's registers are all there is: it has no perf events.
        """
        return emulated.counter_value(self.world.host, self.cpu, vcpu.vm.record, vcpu.record, i, self.now)

    # ---- KVM_RUN ------------------------------------------------------------------------------------------

    def vcpu_load(self, vcpu: Vcpu) -> None:
        """The thread that runs a vCPU comes to its CPU; whoever runs there waits for its next turn."""
        if vcpu.vm.record.pmuver < PMUV3P5:
            # Userspace can have set it before it lowered PMUVer.
            vcpu.record.pmcr &= ~PMCR_LP
        worlds.switch_out(self.world, self.cpu, self.now)
        self.world.host.tasks[vcpu.record.task].cpu = self.cpu
        perf.perf_event_task_sched_in(self.world.host, self.cpu, vcpu.record.task, self.now)
        worlds.vcpu_load(self.world, self.cpu, vcpu.number, self.now)

    def vcpu_put(self, vcpu: Vcpu) -> None:
        """It leaves, and whoever waits there has its turn."""
        perf.perf_event_task_sched_out(self.world.host, self.cpu, self.now)
        worlds.vcpu_put(self.world, self.cpu, vcpu.number, self.now)
        worlds.switch_in(self.world, self.cpu, self.now)

    def preempt(self, vcpu: Vcpu, cpu: int) -> None:
        """It leaves, and comes to another CPU."""
        self.vcpu_put(vcpu)
        self.cpu = cpu
        self.vcpu_load(vcpu)

    def flush_hwstate(self, vcpu: Vcpu) -> None:
        """What is due before the guest may be entered: requests, and its interrupt line."""
        if vcpu.record.unsupported_cpu == 0:
            worlds.check_requests(self.world, self.cpu, vcpu.number, self.now)
        worlds.flush_hwstate(self.world, self.cpu, vcpu.number)

    def vcpu_enter(self, vcpu: Vcpu) -> None:
        """Enter the guest."""
        worlds.vcpu_enter(self.world, self.cpu, vcpu.number, self.now)

    def vcpu_exit(self, vcpu: Vcpu) -> None:
        """Leave it for the host."""
        worlds.vcpu_exit(self.world, self.cpu, vcpu.number)

    def handle_irq(self, vcpu: Vcpu) -> None:
        """The host takes PMUIRQ, if it is asserted, after an exit."""
        if arch_pmu.check_for_pmu_overflow(self.world.host.cpus[self.cpu].pe):
            worlds.handle_irq(self.world, self.cpu, vcpu.number)

    # ---- for executors ------------------------------------------------------------------------------------

    def guest_access(self, vcpu: Vcpu, el: int, key: int, write: int, value: int) -> int | None:
        """A guest's access to a PMU or SPE register, through the one door.

        Returns what was read; None where UNDEFINED.
        """
        outcome = access.AGAIN
        if arch_spe.is_spe_register(key):
            outcome = access.guest_spe_access(self.world, self.cpu, vcpu.number, el, key, write, value, self.now)
        elif not vcpu.vm.has_pmu():
            return None
        while outcome == access.AGAIN:
            outcome = access.guest_access(self.world, self.cpu, vcpu.number, el, key, write, value, self.now)
        if outcome not in (access.DIRECT, access.TRAPPED):
            return None
        return vcpu.record.value if write == 0 else 1

    def execute(self, vcpu: Vcpu, el: int, instructions: int) -> int:
        """Let the guest execute up to so many instructions of one cycle each, until PMUIRQ or PMBIRQ is asserted.

        Returns how many it has executed: the last one is that with which a counter has overflowed, or the profiling
        buffer has come to require service.
        """
        pe, spu = self.world.host.cpus[self.cpu].pe, self.world.host.cpus[self.cpu].spu
        executed = 0
        service = 0
        while executed < instructions and not arch_pmu.check_for_pmu_overflow(pe) and service == 0:
            armed = pe.cnten & pe.inten
            room = [arch_pmu.counter_room(pe, i) for i in range(CYCLE + 2) if armed >> i & 1]
            sampled = arch_spe.statistical_profiling_enabled(spu, el, pe.tge)
            if sampled:
                room.append(arch_spe.operations_to_sample(spu))
            amount = min([instructions - executed, *room])
            self.now += amount
            arch_pmu.increment_cycle_counter(pe, arch_pmu.count_pmu_events(pe, el), amount)
            for event in (INST_RETIRED, CPU_CYCLES):
                arch_pmu.pmu_event(pe, el, event, amount)
            if sampled and arch_spe.count_operations(spu, amount) == 1:
                self._sample(vcpu)
                service = arch_spe.pmbirq(spu)
            executed += amount
        return executed

    def _sample(self, vcpu: Vcpu) -> None:
        """The instruction just executed is sampled: one that accesses no memory, of one cycle.

        The guest's buffer is mapped, wherever it is, and the bytes of the record go nowhere.
        """
        spu = self.world.host.cpus[self.cpu].spu
        spu.fault_page, spu.fault[0], spu.fault[1] = spu.pointer >> arch_spe.PAGE_SHIFT, 0, 0
        sample = records.new(Sample)
        sample.events, sample.total_latency = EVENT_RETIRED, 1
        if collect_record(spu.filter, sample) == 1:
            arch_spe.form_record(spu, 1 << spu.filter.core.align, vcpu.number + 1)
