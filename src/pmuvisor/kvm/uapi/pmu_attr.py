"""The attributes of a vCPU's PMU: the group KVM_ARM_VCPU_PMU_V3_CTRL (arch/arm64/kvm/pmu-emul.c).

Each function makes its checks in KVM's order; docs/uapi.md has them side by side. FIXED_COUNTERS_ONLY is as its series
(v7) has it, and PARTITION is ours.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from ctypes import sizeof
from typing import TYPE_CHECKING

from pmuvisor.kvm import restored
from pmuvisor.kvm.uapi import abi
from pmuvisor.kvm.uapi.abi import kvm_device_attr, kvm_pmu_event_filter
from pmuvisor.kvm.uapi.memory import error
from pmuvisor.kvm.vcpu import EMULATED, FIXED_COUNTERS_ONLY, LAZY, PARTITIONED

if TYPE_CHECKING:
    from pmuvisor.kvm.uapi.system import HostPmu
    from pmuvisor.kvm.uapi.vcpu import Vcpu
    from pmuvisor.kvm.uapi.vm import Vm

PARTITION_FLAGS = {
    EMULATED: 0,
    PARTITIONED: abi.PARTITION_ENABLE,
    LAZY: abi.PARTITION_ENABLE | abi.PARTITION_LAZY,
}
"""The value of KVM_ARM_VCPU_PMU_V3_PARTITION for each design that it chooses."""


def set_attr(vcpu: Vcpu, attr: kvm_device_attr) -> None:
    """State kvm_arm_pmu_v3_set_attr()."""
    if not vcpu.vm.has_pmu():
        raise error(errno.ENODEV, "the vCPU has no PMU: KVM_ARM_VCPU_INIT with KVM_ARM_VCPU_PMU_V3")
    if vcpu.pmu_created:
        raise error(errno.EBUSY, "the vCPU's PMU is initialised")
    if attr.attr not in _SETTERS:
        raise error(errno.ENXIO, f"no attribute {attr.attr} of a PMU")
    _SETTERS[attr.attr](vcpu, attr.addr)


def get_attr(vcpu: Vcpu, attr: kvm_device_attr) -> None:
    """State kvm_arm_pmu_v3_get_attr()."""
    if attr.attr not in _GETTERS:
        raise error(errno.ENXIO, f"no attribute {attr.attr} of a PMU that can be read")
    _GETTERS[attr.attr](vcpu, attr.addr)


def has_attr(vcpu: Vcpu, attr: kvm_device_attr) -> None:
    """State kvm_arm_pmu_v3_has_attr()."""
    if attr.attr not in _SETTERS or not vcpu.vm.has_pmu():
        raise error(errno.ENXIO, f"no attribute {attr.attr} of a PMU, or no PMU")


# ---- one by one -------------------------------------------------------------------------------------------


def set_irq(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_PMU_V3_IRQ: the overflow interrupt, a PPI, the same for all, or an SPI, each vCPU another."""
    if vcpu.vm.vgic is None:
        raise error(errno.EINVAL, "the VM has no interrupt controller in the kernel")
    irq = vcpu.memory.get_user(addr, 4, signed=True)
    if not (abi.irq_is_ppi(irq) or abi.irq_is_spi(irq)):
        raise error(errno.EINVAL, f"interrupt {irq}: expected a PPI or an SPI, 16 to 1019")
    if not irq_is_valid(vcpu.vm, irq):
        raise error(errno.EINVAL, f"interrupt {irq}: a PPI must be that of the other vCPUs, an SPI must not")
    if vcpu.irq_initialized():
        raise error(errno.EBUSY, f"the interrupt is {vcpu.irq_num} already")
    vcpu.irq_num = irq


def irq_is_valid(vm: Vm, irq: int) -> bool:
    """State pmu_irq_is_valid()."""
    others = [vcpu.irq_num for vcpu in vm.vcpus if vcpu.irq_initialized()]
    if abi.irq_is_ppi(irq):
        return all(other == irq for other in others)
    return irq not in others


def get_irq(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_PMU_V3_IRQ, read."""
    if vcpu.vm.vgic is None:
        raise error(errno.EINVAL, "the VM has no interrupt controller in the kernel")
    if not vcpu.vm.has_pmu():
        raise error(errno.ENODEV, "the vCPU has no PMU")
    if not vcpu.irq_initialized():
        raise error(errno.ENXIO, "the interrupt is not set")
    vcpu.memory.put_user(addr, vcpu.irq_num, 4)


def set_init(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_PMU_V3_INIT, kvm_arm_pmu_v3_init(). `addr` is not looked at."""
    vgic = vcpu.vm.vgic
    if vgic is not None:
        if not vgic.initialized:
            raise error(errno.ENODEV, "the VGIC is not initialised")
        if not vcpu.irq_initialized():
            raise error(errno.ENXIO, "the interrupt is not set")
        vgic.set_owner(vcpu.index, vcpu.irq_num, vcpu)
    vcpu.pmu_created = True


def set_filter(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_PMU_V3_FILTER: a range of events that the guest may count, or may not."""
    vm = vcpu.vm
    data = vcpu.memory.copy_from_user(addr, sizeof(kvm_pmu_event_filter))
    wanted = kvm_pmu_event_filter.from_buffer_copy(data)
    if wanted.base_event + wanted.nevents > vm.system.nr_events:
        raise error(errno.EINVAL, f"events up to {vm.system.nr_events - 1:#x} can be filtered")
    if wanted.action not in (abi.KVM_PMU_EVENT_ALLOW, abi.KVM_PMU_EVENT_DENY):
        raise error(errno.EINVAL, f"action {wanted.action}: expected KVM_PMU_EVENT_ALLOW (0) or KVM_PMU_EVENT_DENY (1)")
    _check_not_ran(vm)
    vm.set_filter(wanted)


def set_pmu(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_PMU_V3_SET_PMU, kvm_arm_pmu_v3_set_pmu(): the PMU of the type that sysfs names, and its CPUs only.

    What FIXED_COUNTERS_ONLY or SET_NR_COUNTERS had asked for is gone. A partition is one of this PMU now.
    """
    vm = vcpu.vm
    pmu_id = vcpu.memory.get_user(addr, 4, signed=True)
    pmu = next((pmu for pmu in vm.system.pmus if pmu.type == pmu_id), None)
    if pmu is None:
        raise error(errno.ENXIO, f"no PMU of type {pmu_id}")
    if restored.set_pmu_is_refused(vm.record, int(vm.ran_once), int(vm.pmu is pmu)):
        raise error(errno.EBUSY, "a vCPU has run, or an event filter of another PMU's events is set")
    if vm.partitioned():
        _check_can_partition(pmu)
        _check_partition(pmu, pmu.max_guest_counters)
    restored.leave_fixed_counters_only(vm.record)
    vm.set_arm_pmu(pmu)
    vm.pmu_asked_for = True
    vm.set_supported_cpus(pmu.cpus)


def set_nr_counters(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, kvm_arm_pmu_v3_set_nr_counters(): the guest's PMCR_EL0.N.

    The kernel's documentation has EBUSY after a run, its code does not look; here it is refused, since MDCR_EL2.HPMN of
    a vCPU that is loaded would change under it.
    """
    vm = vcpu.vm
    n = vcpu.memory.get_user(addr, 4)
    if vm.pmu is None and not vm.fixed_counters_only():
        raise error(errno.EINVAL, "the VM has no PMU of the host's")
    if vm.refused_count(n):
        raise error(errno.EINVAL, f"{n} event counters: this PMU cannot give a guest so many, or so few")
    _check_not_ran(vm)
    vm.set_nr_counters(n)


def set_fixed_counters_only(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_PMU_V3_FIXED_COUNTERS_ONLY: no event counters, on the CPUs of all PMUs. `addr` is not looked at."""
    vm = vcpu.vm
    if restored.fixed_counters_only_is_refused(vm.record, int(vm.ran_once)):
        raise error(errno.EBUSY, "a vCPU has run, or an event filter was set before")
    vm.record.design = FIXED_COUNTERS_ONLY
    vm.set_nr_counters(0)
    cpus = 0
    for pmu in vm.system.pmus:
        cpus |= pmu.cpus
    vm.set_supported_cpus(cpus)


def get_fixed_counters_only(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_PMU_V3_FIXED_COUNTERS_ONLY, read: there is no value, only whether it is set."""
    if not vcpu.vm.fixed_counters_only():
        raise error(errno.ENXIO, "FIXED_COUNTERS_ONLY is not set")


def set_partition(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_PMU_V3_PARTITION (ours): PARTITION_ENABLE, with or without PARTITION_LAZY, or 0 for an emulated PMU.

    A count that nobody asked for becomes what guests may have at most, as in the partitioning series; one that was
    asked for and cannot be given is EINVAL. The CPUs of other PMUs cannot have the partition: KVM_RUN fails there.
    """
    vm = vcpu.vm
    flags = vcpu.memory.get_user(addr, 4)
    design = next((design for design, of in PARTITION_FLAGS.items() if of == flags), None)
    if design is None:
        raise error(errno.EINVAL, f"partition {flags:#x}: expected 0, ENABLE (1) or ENABLE | LAZY (3)")
    pmu = vm.pmu
    if pmu is None:
        raise error(errno.EINVAL, "the VM has no PMU of the host's")
    _check_can_partition(pmu)
    if vm.ran_once:
        raise error(errno.EBUSY, "a vCPU has run")
    if vm.fixed_counters_only():
        if flags:
            raise error(errno.EINVAL, "FIXED_COUNTERS_ONLY leaves no event counters to partition")
        return
    most = pmu.max_guest_counters if flags else pmu.event_counters
    n = vm.record.nr_counters if vm.count_asked_for else most
    if flags:
        _check_partition(pmu, n)
    vm.record.design = design
    vm.record.nr_counters = n
    vm.set_supported_cpus(pmu.cpus if flags or vm.pmu_asked_for else vm.system.possible_cpus)


def get_partition(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_PMU_V3_PARTITION (ours), read: the flags, 0 where there is none."""
    if not vcpu.vm.has_pmu():
        raise error(errno.ENODEV, "the vCPU has no PMU")
    vcpu.memory.put_user(addr, PARTITION_FLAGS.get(vcpu.vm.record.design, 0), 4)


def _check_can_partition(pmu: HostPmu) -> None:
    if pmu.max_guest_counters < 0:
        raise error(errno.EPERM, "the host was booted without arm_pmuv3.reserved_host_counters")


def _check_partition(pmu: HostPmu, n: int) -> None:
    if pmu.partition_refused(n):
        raise error(errno.EINVAL, f"{n} event counters: this PMU cannot give a partition so many, or so few")


def _check_not_ran(vm: Vm) -> None:
    if vm.ran_once:
        raise error(errno.EBUSY, "a vCPU has run")


_SETTERS: dict[int, Callable[[Vcpu, int], None]] = {
    abi.KVM_ARM_VCPU_PMU_V3_IRQ: set_irq,
    abi.KVM_ARM_VCPU_PMU_V3_INIT: set_init,
    abi.KVM_ARM_VCPU_PMU_V3_FILTER: set_filter,
    abi.KVM_ARM_VCPU_PMU_V3_SET_PMU: set_pmu,
    abi.KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS: set_nr_counters,
    abi.KVM_ARM_VCPU_PMU_V3_FIXED_COUNTERS_ONLY: set_fixed_counters_only,
    abi.KVM_ARM_VCPU_PMU_V3_PARTITION: set_partition,
}
_GETTERS: dict[int, Callable[[Vcpu, int], None]] = {
    abi.KVM_ARM_VCPU_PMU_V3_IRQ: get_irq,
    abi.KVM_ARM_VCPU_PMU_V3_FIXED_COUNTERS_ONLY: get_fixed_counters_only,
    abi.KVM_ARM_VCPU_PMU_V3_PARTITION: get_partition,
}
