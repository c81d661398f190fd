"""KVM's userspace API for the virtual PMU, as Python objects: what a VMM author writes, and KVM's errno as OSError.

    world = boot([core("cortex-a76")] * 4)
    kvm = System(world)
    vm = kvm.create_vm()
    vcpu = vm.create_vcpu(0)
    vcpu.init(KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PMU_V3)
    vcpu.set_attr(KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, 4)
    vcpu.set_attr(KVM_ARM_VCPU_PMU_V3_INIT)

Each method is an ioctl; `ioctl(request, arg)` of every object takes KVM's own numbers and structures (`abi`). This is
the shell of kvm/: ordinary Python that may raise, around records and functions that do not. docs/uapi.md has each ioctl
with its errors, in KVM's order.
"""

from pmuvisor.kvm.uapi.memory import UserMemory
from pmuvisor.kvm.uapi.run import Execute, Executor, Mmio, Preempt, Read, Script, Signal, SystemEvent, Write
from pmuvisor.kvm.uapi.system import HostPmu, System, boot
from pmuvisor.kvm.uapi.vcpu import Vcpu
from pmuvisor.kvm.uapi.vgic import Vgic
from pmuvisor.kvm.uapi.vm import Vm

__all__ = [
    "Execute",
    "Executor",
    "HostPmu",
    "Mmio",
    "Preempt",
    "Read",
    "Script",
    "Signal",
    "System",
    "SystemEvent",
    "UserMemory",
    "Vcpu",
    "Vgic",
    "Vm",
    "Write",
    "boot",
]
