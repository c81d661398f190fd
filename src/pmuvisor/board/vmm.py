"""What a VMM does before a VM can run: its ioctls, in the order in which QEMU makes them.

Whoever runs a guest here, `pmuvisor run` or a scenario, sets its VM up by KVM's userspace API: what is legal, and what
a VM's record becomes, is decided in one place.
"""

from __future__ import annotations

from collections.abc import Iterator

from pmuvisor.board import memmap
from pmuvisor.kvm.uapi import System, Vgic, Vm, abi
from pmuvisor.kvm.uapi.pmu_attr import PARTITION_FLAGS
from pmuvisor.kvm.vcpu import FIXED_COUNTERS_ONLY


def pmu_attributes(design: int, counters: int, pmu_type: int | None = None) -> Iterator[tuple[int, int | None]]:
    """Yield the attributes that give a VM a design (`kvm.vcpu.Vm.design`) and event counters, with their values.

    `pmu_type` is that of the PMU which is asked for; None for the one of the CPU where the VMM is. FIXED_COUNTERS_ONLY
    takes all PMUs, and has no event counters.
    """
    if design == FIXED_COUNTERS_ONLY:
        yield abi.KVM_ARM_VCPU_PMU_V3_FIXED_COUNTERS_ONLY, None
        return
    if pmu_type is not None:
        yield abi.KVM_ARM_VCPU_PMU_V3_SET_PMU, pmu_type
    if PARTITION_FLAGS[design]:
        yield abi.KVM_ARM_VCPU_PMU_V3_PARTITION, PARTITION_FLAGS[design]
    yield abi.KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, counters


def create_vm(
    kvm: System, vcpus: int, design: int, counters: int, pmu_type: int | None = None, *, spe: bool = False
) -> Vm:
    """Create a VM with its vCPUs and their PMU; all but the first are off. It has no interrupt controller.

    vCPUs are initialised once more at the end, as QEMU does when a machine starts. Raises what the ioctls raise, EINVAL
    for a number of event counters that this design cannot have on this host, and for `spe` on a host without SPE.
    """
    vm = kvm.create_vm()
    for number in range(vcpus):
        vm.create_vcpu(number)
        _init(vm, number, spe)
    for attr, value in pmu_attributes(design, counters, pmu_type):
        vm.vcpus[0].set_attr(attr, value)
    for number in range(vcpus):
        _init(vm, number, spe)
    return vm


def _init(vm: Vm, number: int, spe: bool) -> None:
    features = [abi.KVM_ARM_VCPU_PSCI_0_2, abi.KVM_ARM_VCPU_PMU_V3]
    if spe:
        features.append(abi.KVM_ARM_VCPU_SPE)
    if number:
        features.append(abi.KVM_ARM_VCPU_POWER_OFF)
    vm.vcpus[number].init(*features)


def create_irqchip(vm: Vm) -> Vgic:
    """Give a VM a VGICv3 where the board has it, and its PMU and SPE their interrupts: the VM's vCPUs are all there.

    Nothing of either can be set any more. Raises what the ioctls raise.
    """
    vgic = vm.create_vgic()
    vgic.set_attr(abi.KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, memmap.INTID_COUNT)
    vgic.set_attr(abi.KVM_DEV_ARM_VGIC_GRP_ADDR, abi.KVM_VGIC_V3_ADDR_TYPE_DIST, memmap.GICD_BASE)
    vgic.set_attr(abi.KVM_DEV_ARM_VGIC_GRP_ADDR, abi.KVM_VGIC_V3_ADDR_TYPE_REDIST, memmap.GICR_BASE)
    vgic.set_attr(abi.KVM_DEV_ARM_VGIC_GRP_CTRL, abi.KVM_DEV_ARM_VGIC_CTRL_INIT)
    for vcpu in vm.vcpus:
        vcpu.set_attr(abi.KVM_ARM_VCPU_PMU_V3_IRQ, memmap.PMU_INTID)
        vcpu.set_attr(abi.KVM_ARM_VCPU_PMU_V3_INIT)
        if vm.record.spe:
            vcpu.set_attr(abi.KVM_ARM_VCPU_SPE_IRQ, memmap.SPE_INTID, group=abi.KVM_ARM_VCPU_SPE_CTRL)
            vcpu.set_attr(abi.KVM_ARM_VCPU_SPE_INIT, group=abi.KVM_ARM_VCPU_SPE_CTRL)
    return vgic
