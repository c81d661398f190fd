"""Hosts, VMs and guests for the tests of kvm/uapi, and how they say that an ioctl was refused."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pmuvisor.arch.cores import Core, core
from pmuvisor.kvm.uapi import Script, System, Vcpu, Vm, Write, boot
from pmuvisor.kvm.uapi import abi as k
from pmuvisor.kvm.uapi.run import Guest

BIG, LITTLE = "cortex-a76", "cortex-a55"
"""Both PMUv3p1, as a host with one PMU for guests must be; six event counters each."""
SHORT_EVENTS = dataclasses.replace(core(BIG), name="cortex-a76 of PMUv3p0", pmuver=1)
"""A core whose events have numbers of 10 bits."""
PMU = (k.KVM_ARM_VCPU_PSCI_0_2, k.KVM_ARM_VCPU_PMU_V3)
IRQ, INIT, FILTER = k.KVM_ARM_VCPU_PMU_V3_IRQ, k.KVM_ARM_VCPU_PMU_V3_INIT, k.KVM_ARM_VCPU_PMU_V3_FILTER
SET_PMU, SET_NR_COUNTERS = k.KVM_ARM_VCPU_PMU_V3_SET_PMU, k.KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS
FIXED, PARTITION = k.KVM_ARM_VCPU_PMU_V3_FIXED_COUNTERS_ONLY, k.KVM_ARM_VCPU_PMU_V3_PARTITION
SPE_CORE = "neoverse-n1"
"""With SPE, PMUv3p1 as BIG and LITTLE, and without fine-grained traps."""
PMU_AND_SPE = (*PMU, k.KVM_ARM_VCPU_SPE)
SPE_IRQ, SPE_MAX, SPE_INIT = k.KVM_ARM_VCPU_SPE_IRQ, k.KVM_ARM_VCPU_SPE_MAX_BUFFER_SIZE, k.KVM_ARM_VCPU_SPE_INIT
BASE, PERIOD = 0x4000_0000, 0x400
ALLOW, DENY = k.KVM_PMU_EVENT_ALLOW, k.KVM_PMU_EVENT_DENY


@contextmanager
def refused(number: int) -> Iterator[None]:
    """What is done inside is refused with this errno."""
    with pytest.raises(OSError) as problem:
        yield
    assert problem.value.errno == number, errno.errorcode[problem.value.errno or 0]


def system(*cores: str | Core, vms: int = 1, vcpus: int = 8, **options: Any) -> System:
    """Return the /dev/kvm of a host with these cores; two of one kind if none is named."""
    kinds = [core(of) if isinstance(of, str) else of for of in cores or (BIG, BIG)]
    return System(boot(kinds, vms=vms, vcpus=vcpus), **options)


def vcpu_with_pmu(kvm: System | None = None) -> Vcpu:
    """Return a vCPU of a new VM, initialised with a PMU, which has no interrupt controller."""
    vcpu = (kvm or system()).create_vm().create_vcpu(0)
    vcpu.init(*PMU)
    return vcpu


def vcpu_with_spe(kvm: System | None = None, *, vgic: bool = True, init: bool = True) -> Vcpu:
    """Return a vCPU of a new VM with PMU and SPE; its VGIC, if it has one, is initialised unless `init` says no."""
    vcpu = (kvm or system(SPE_CORE, SPE_CORE)).create_vm().create_vcpu(0)
    vcpu.init(*PMU_AND_SPE)
    if vgic:
        give_vgic(vcpu.vm, init=init)
    return vcpu


def set_spe(vcpu: Vcpu, attr: int, value: Any = None) -> None:
    """KVM_SET_DEVICE_ATTR of SPE."""
    vcpu.set_attr(attr, value, group=k.KVM_ARM_VCPU_SPE_CTRL)


def ready_with_spe(kvm: System | None = None, *, max_buffer: int = 0) -> Vcpu:
    """Return a vCPU with PMU and SPE that can run."""
    vcpu = vcpu_with_spe(kvm)
    set_spe(vcpu, SPE_IRQ, 21)
    set_spe(vcpu, SPE_MAX, max_buffer)
    set_spe(vcpu, SPE_INIT)
    vcpu.set_attr(IRQ, 23)
    vcpu.set_attr(INIT)
    return vcpu


def set_vgic_attr(vgic: Any, group: int, attr: int, value: Any = None) -> None:
    memory = vgic.vm.system.memory
    if value is None:
        vgic.ioctl(k.KVM_SET_DEVICE_ATTR, k.kvm_device_attr(group=group, attr=attr))
        return
    with memory.mapped(value) as addr:
        vgic.ioctl(k.KVM_SET_DEVICE_ATTR, k.kvm_device_attr(group=group, attr=attr, addr=addr))


def give_vgic(vm: Vm, *, nr_irqs: int = 0, init: bool = True) -> Any:
    """Create a VGICv3 with its frames where QEMU's virt has them."""
    vgic = vm.create_vgic()
    if nr_irqs:
        set_vgic_attr(vgic, k.KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, nr_irqs.to_bytes(4, "little"))
    for frame, base in ((k.KVM_VGIC_V3_ADDR_TYPE_DIST, 0x800_0000), (k.KVM_VGIC_V3_ADDR_TYPE_REDIST, 0x80A_0000)):
        set_vgic_attr(vgic, k.KVM_DEV_ARM_VGIC_GRP_ADDR, frame, base.to_bytes(8, "little"))
    if init:
        set_vgic_attr(vgic, k.KVM_DEV_ARM_VGIC_GRP_CTRL, k.KVM_DEV_ARM_VGIC_CTRL_INIT)
    return vgic


def run_guest(vcpu: Vcpu, guest: Callable[[], Guest]) -> int:
    """Let a vCPU execute a script from its beginning; return KVM_RUN's exit reason."""
    executor = vcpu.system.executor
    assert isinstance(executor, Script)
    executor.set_guest(vcpu.number, guest)
    return vcpu.run()


def profile(size: int = 8192, base: int = BASE) -> Guest:
    """What a guest does to profile itself into a buffer of `size` bytes: a sample each 1024 instructions and one."""
    yield Write("PMSIRR_EL1", PERIOD)
    yield Write("PMSICR_EL1", PERIOD)
    yield Write("PMSFCR_EL1", 0)
    yield Write("PMBPTR_EL1", base)
    yield Write("PMBSR_EL1", 0)
    yield Write("PMSCR_EL1", 3)
    yield Write("PMBLIMITR_EL1", base + size | 1)


def idle() -> Guest:
    """A guest that powers off at once."""
    yield from ()
