"""A VM as userspace holds it: the file descriptor that KVM_CREATE_VM returns, and what its vCPUs share.

What the virtual PMU is made of ends in the VM's record (`kvm.vcpu.Vm`), where the semantics finds it. What only the
checks of the ioctls need stays here: kvm->arch's flags, the features, the interrupt controller.
"""

from __future__ import annotations

import errno
from ctypes import sizeof
from typing import TYPE_CHECKING, Any

from pmuvisor.arch.sysreg import PMUV3P0
from pmuvisor.kvm import restored
from pmuvisor.kvm.uapi import abi
from pmuvisor.kvm.uapi.abi import kvm_create_device, kvm_device_attr, kvm_pmu_event_filter, kvm_vcpu_init
from pmuvisor.kvm.uapi.memory import error
from pmuvisor.kvm.uapi.vcpu import Vcpu
from pmuvisor.kvm.uapi.vgic import Vgic
from pmuvisor.kvm.vcpu import FIXED_COUNTERS_ONLY, LAZY, PARTITIONED

if TYPE_CHECKING:
    from pmuvisor.kvm.uapi.system import HostPmu, System


class Vm:
    """A file descriptor of a VM (struct kvm)."""

    def __init__(self, system: System, number: int, ipa_bits: int) -> None:
        self.system = system
        self.number = number
        """Which of the world's VMs it is."""
        self.record = system.world.vms[number]
        self.ipa_bits = ipa_bits
        self.vcpus: list[Vcpu] = []
        self.max_vcpus = abi.VGIC_V3_MAX_CPUS
        self.vgic: Vgic | None = None
        self.features = 0
        """kvm->arch.vcpu_features, a mask: of every vCPU."""
        self.features_configured = False
        """KVM_ARCH_FLAG_VCPU_FEATURES_CONFIGURED: a KVM_ARM_VCPU_INIT has succeeded, its features are the VM's."""
        self.ran_once = False
        """KVM_ARCH_FLAG_HAS_RAN_ONCE."""
        self.dead = False
        """kvm->vm_dead: no ioctl works any more."""
        self.pmu: HostPmu | None = None
        """kvm->arch.arm_pmu: the default one, or that of SET_PMU."""
        self.pmu_asked_for = False
        """It is that of SET_PMU."""
        self.count_asked_for = False
        """The number of event counters is one that userspace has set, not the PMU's."""
        self.id_registers_initialized = False
        """KVM_ARCH_FLAG_ID_REGS_INITIALIZED: from the first KVM_ARM_VCPU_INIT on."""
        self.set_supported_cpus(system.possible_cpus)

    # ---- what the checks ask ------------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Raise EIO for a VM that is dead, or closed."""
        if self.dead:
            raise error(errno.EIO, "the VM is dead")

    def has_pmu(self) -> bool:
        """State kvm_vcpu_has_pmu(), which looks at the VM's features."""
        return bool(self.features >> abi.KVM_ARM_VCPU_PMU_V3 & 1)

    def has_spe(self) -> bool:
        """State vcpu_has_spe(), which looks at the VM's features."""
        return bool(self.features >> abi.KVM_ARM_VCPU_SPE & 1)

    def pmsver(self) -> int:
        """Return ID_AA64DFR0_EL1.PMSVer of its guest: the host's, with SPE."""
        spe = self.system.spe
        return spe.pmsver if spe is not None and self.has_spe() else 0

    def fixed_counters_only(self) -> bool:
        """Tell whether FIXED_COUNTERS_ONLY is set."""
        return self.record.design == FIXED_COUNTERS_ONLY

    def partitioned(self) -> bool:
        """Tell whether guest counters are real ones."""
        return self.record.design in (PARTITIONED, LAZY)

    def max_counters(self) -> int:
        """State kvm_arm_pmu_get_max_counters(). A partition leaves the host what the boot parameter reserves."""
        if self.fixed_counters_only():
            return 0
        assert self.pmu is not None
        return self.pmu.max_guest_counters if self.partitioned() else self.pmu.event_counters

    def set_supported_cpus(self, cpus: int) -> None:
        """Set kvm->arch.supported_cpus, a mask: elsewhere KVM_RUN fails. They are all the CPUs of some PMUs."""
        self.supported_cpus = cpus
        self.record.supported_pmus = 0
        for c, cpu in enumerate(self.system.world.host.cpus):
            self.record.supported_pmus |= (cpus >> c & 1) << cpu.pmu

    # ---- kvm->arch.arm_pmu and what goes with it ----------------------------------------------------------

    def set_arm_pmu(self, pmu: HostPmu) -> None:
        """State kvm_arm_set_pmu(): the guest has the counters of this PMU, all that its design lets it have."""
        self.pmu = pmu
        self.record.pmu = pmu.number
        self.record.nr_counters = self.max_counters()
        self.count_asked_for = False

    def set_nr_counters(self, n: int) -> None:
        """State kvm_arm_set_nr_counters(), for a number that somebody asked for."""
        self.record.nr_counters = n
        self.count_asked_for = True

    def refused_count(self, n: int) -> bool:
        """Tell whether this VM cannot have `n` event counters: more than there are, or what HPMN cannot be."""
        if not self.partitioned():
            return n > self.max_counters()
        assert self.pmu is not None
        return self.pmu.partition_refused(n)

    def set_filter(self, wanted: kvm_pmu_event_filter) -> None:
        """Add a range to the event filter. The first one decides what becomes of all the other events: the opposite."""
        record = self.record
        allow = wanted.action == abi.KVM_PMU_EVENT_ALLOW
        restored.begin_filter(record, self.system.nr_events >> 6, int(not allow))
        for event in range(wanted.base_event, wanted.base_event + wanted.nevents):
            restored.filter_event(record, event, int(not allow))

    def set_features(self, features: int) -> None:
        """Set what its vCPUs have. The buffer that a guest with SPE enables is pinned, as the series does it."""
        self.features = features
        self.record.spe = self.record.spe_pinned = int(self.has_spe())

    def initialize_id_registers(self) -> None:
        """State kvm_reset_id_regs(): at the first reset of a vCPU, the VM gets the ID registers of its features."""
        if not self.id_registers_initialized:
            self.record.pmuver = self.system.pmuver_limit if self.has_pmu() else 0
            self.id_registers_initialized = True

    # ---- ioctls -------------------------------------------------------------------------------------------

    def ioctl(self, request: int, arg: Any = 0) -> int:
        """State kvm_vm_ioctl() and kvm_arch_vm_ioctl(). Returns what KVM returns; raises OSError with its errno."""
        self.check_alive()
        if request == abi.KVM_CREATE_VCPU:
            return self.system.install(self._create_vcpu(self.system.plain(arg)))
        if request == abi.KVM_CREATE_DEVICE:
            return self._ioctl_create_device(arg)
        if request == abi.KVM_CHECK_EXTENSION:
            return self.system.check_extension(self.system.plain(arg), self)
        if request == abi.KVM_CREATE_IRQCHIP:
            raise error(errno.ENODEV, "KVM_CREATE_IRQCHIP makes a GICv2, which this host cannot emulate")
        if request == abi.KVM_ARM_PREFERRED_TARGET:
            target = kvm_vcpu_init(target=abi.KVM_ARM_TARGET_GENERIC_V8)
            self.system.memory.copy_to_user(arg, bytes(target))
            return 0
        if request in (abi.KVM_SET_DEVICE_ATTR, abi.KVM_HAS_DEVICE_ATTR):
            attr = kvm_device_attr.from_buffer_copy(self.system.memory.copy_from_user(arg, sizeof(kvm_device_attr)))
            raise error(errno.ENXIO, f"a VM has no group {attr.group} of attributes")
        raise error(errno.EINVAL, f"a VM has no ioctl {request:#x}")

    def _create_vcpu(self, vcpu_id: int) -> Vcpu:
        """State kvm_vm_ioctl_create_vcpu() and kvm_arch_vcpu_precreate()."""
        if vcpu_id >= abi.VGIC_V3_MAX_CPUS:
            raise error(errno.EINVAL, f"vCPU {vcpu_id}: expected an id below {abi.VGIC_V3_MAX_CPUS}")
        if len(self.vcpus) >= self.max_vcpus:
            raise error(errno.EINVAL, f"the VM has {self.max_vcpus} vCPUs already")
        if self.vgic is not None and self.vgic.initialized:
            raise error(errno.EBUSY, "the VGIC is initialised: it knows all vCPUs")
        number = self.system.take_vcpu()
        if any(vcpu.vcpu_id == vcpu_id for vcpu in self.vcpus):
            self.system.give_vcpu(number)
            raise error(errno.EEXIST, f"vCPU {vcpu_id} exists")
        vcpu = Vcpu(self, vcpu_id, number)
        self.system.create_vcpu(vcpu)
        self.vcpus.append(vcpu)
        return vcpu

    def _ioctl_create_device(self, arg: Any) -> int:
        memory = self.system.memory
        wanted = kvm_create_device.from_buffer_copy(memory.copy_from_user(arg, sizeof(kvm_create_device)))
        if wanted.type != abi.KVM_DEV_TYPE_ARM_VGIC_V3:
            raise error(errno.ENODEV, f"no device of type {wanted.type}: this host has VGICv3 (7)")
        if not wanted.flags & abi.KVM_CREATE_DEVICE_TEST:
            wanted.fd = self.system.install(self._create_vgic())
        memory.copy_to_user(arg, bytes(wanted))
        return 0

    def _create_vgic(self) -> Vgic:
        """State kvm_vgic_create()."""
        if self.vgic is not None:
            raise error(errno.EEXIST, "the VM has an interrupt controller")
        if any(vcpu.has_run_once for vcpu in self.vcpus):
            raise error(errno.EBUSY, "a vCPU has run")
        self.vgic = Vgic(self)
        return self.vgic

    # ---- the same, typed ----------------------------------------------------------------------------------

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """KVM_CREATE_VCPU. Raises EIO, EINVAL, EBUSY, EEXIST, and ENOMEM where the world has no more room."""
        vcpu = self.system.file(self.ioctl(abi.KVM_CREATE_VCPU, vcpu_id))
        assert isinstance(vcpu, Vcpu)
        return vcpu

    def create_vgic(self) -> Vgic:
        """KVM_CREATE_DEVICE of a VGICv3. Raises EIO, EEXIST, EBUSY."""
        wanted = kvm_create_device(type=abi.KVM_DEV_TYPE_ARM_VGIC_V3)
        self.ioctl(abi.KVM_CREATE_DEVICE, wanted)
        vgic = self.system.file(wanted.fd)
        assert isinstance(vgic, Vgic)
        return vgic

    def preferred_target(self) -> kvm_vcpu_init:
        """KVM_ARM_PREFERRED_TARGET."""
        target = kvm_vcpu_init()
        self.ioctl(abi.KVM_ARM_PREFERRED_TARGET, target)
        return target

    def close(self) -> None:
        """Close the VM and all that was made of it: its place in the world can be another one's."""
        self.system.close_vm(self)


def nr_events(pmuver: int) -> int:
    """Return how many events a filter speaks of (__kvm_pmu_event_mask): 10 bits of number, 16 from PMUv3p1."""
    return 1 << (10 if pmuver == PMUV3P0 else 16)
