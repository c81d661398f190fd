"""The attributes of a vCPU's SPE: the group KVM_ARM_VCPU_SPE_CTRL (arch/arm64/kvm/spe.c of the SPE series, an RFC).

IRQ and INIT make the checks of v5, in its order; MAX_BUFFER_SIZE came with v6, and its checks are ours. docs/uapi.md
has them side by side.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from pmuvisor.kvm.spe import max_buffer_field, max_buffer_size
from pmuvisor.kvm.uapi import abi
from pmuvisor.kvm.uapi.abi import kvm_device_attr
from pmuvisor.kvm.uapi.memory import error

if TYPE_CHECKING:
    from pmuvisor.kvm.uapi.vcpu import Vcpu


def _check_supported(vcpu: Vcpu) -> None:
    """State kvm_vcpu_supports_spe(): a VM has the feature only where the host has SPE. Raises ENXIO."""
    if not vcpu.vm.has_spe():
        raise error(errno.ENXIO, "the vCPU has no SPE: KVM_ARM_VCPU_INIT with KVM_ARM_VCPU_SPE")
    if vcpu.vm.vgic is None:
        raise error(errno.ENXIO, "the VM has no interrupt controller in the kernel")


def set_attr(vcpu: Vcpu, attr: kvm_device_attr) -> None:
    """State kvm_spe_set_attr()."""
    _check_supported(vcpu)
    if vcpu.spe_initialized:
        raise error(errno.EBUSY, "the vCPU's SPE is initialised")
    if attr.attr not in _SETTERS:
        raise error(errno.ENXIO, f"no attribute {attr.attr} of SPE")
    _SETTERS[attr.attr](vcpu, attr.addr)


def get_attr(vcpu: Vcpu, attr: kvm_device_attr) -> None:
    """State kvm_spe_get_attr()."""
    _check_supported(vcpu)
    if attr.attr not in _GETTERS:
        raise error(errno.ENXIO, f"no attribute {attr.attr} of SPE that can be read")
    _GETTERS[attr.attr](vcpu, attr.addr)


def has_attr(vcpu: Vcpu, attr: kvm_device_attr) -> None:
    """State kvm_spe_has_attr()."""
    _check_supported(vcpu)
    if attr.attr not in _SETTERS:
        raise error(errno.ENXIO, f"no attribute {attr.attr} of SPE")


# ---- one by one -------------------------------------------------------------------------------------------


def set_irq(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_SPE_IRQ: the buffer management interrupt, a PPI, the same for all vCPUs (kvm_spe_irq_is_valid()).

    v5 means to refuse what is no PPI, and returns a negative number where a truth value is expected: that is accepted.
    """
    if vcpu.spe_irq_num:
        raise error(errno.EBUSY, f"the interrupt is {vcpu.spe_irq_num} already")
    irq = vcpu.memory.get_user(addr, 4, signed=True)
    if not abi.irq_is_ppi(irq):
        raise error(errno.EINVAL, f"interrupt {irq}: expected a PPI, 16 to 31")
    if any(other.spe_irq_num not in (0, irq) for other in vcpu.vm.vcpus):
        raise error(errno.EINVAL, f"interrupt {irq}: it must be that of the other vCPUs")
    vcpu.spe_irq_num = irq


def get_irq(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_SPE_IRQ, read."""
    if not vcpu.spe_irq_num:
        raise error(errno.ENXIO, "the interrupt is not set")
    vcpu.memory.put_user(addr, vcpu.spe_irq_num, 4)


def set_max_buffer_size(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_SPE_MAX_BUFFER_SIZE: bytes of the largest buffer that the VM's guest may enable; 0 for any.

    It is the VM's, whichever vCPU it is set for, as in v6. What PMBIDR_EL1.MaxBuffSize cannot say is refused, and so is
    another one than before as soon as some vCPU's SPE is initialised, which it is before any vCPU runs.
    """
    vm = vcpu.vm
    size = vcpu.memory.get_user(addr, 8)
    if max_buffer_size(max_buffer_field(size)) != size:
        raise error(errno.EINVAL, f"{size:#x} bytes: expected whole pages, as many as PMBIDR_EL1.MaxBuffSize can say")
    if size == vm.record.spe_max_buffer:
        return
    if any(other.spe_initialized for other in vm.vcpus):
        raise error(errno.EBUSY, "another vCPU's SPE is initialised")
    vm.record.spe_max_buffer = size


def get_max_buffer_size(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_SPE_MAX_BUFFER_SIZE, read."""
    vcpu.memory.put_user(addr, vcpu.vm.record.spe_max_buffer, 8)


def set_init(vcpu: Vcpu, addr: int) -> None:
    """KVM_ARM_VCPU_SPE_INIT. `addr` is not looked at. An interrupt that is the PMU's or a timer's is ENXIO."""
    vgic = vcpu.vm.vgic
    assert vgic is not None
    if not vcpu.spe_irq_num:
        raise error(errno.ENXIO, "the interrupt is not set")
    if not vgic.initialized:
        raise error(errno.ENXIO, "the VGIC is not initialised")
    try:
        vgic.set_owner(vcpu.index, vcpu.spe_irq_num, vcpu.record.spe)
    except OSError:
        raise error(errno.ENXIO, f"interrupt {vcpu.spe_irq_num} is another device's") from None
    vcpu.spe_initialized = True


_SETTERS: dict[int, Callable[[Vcpu, int], None]] = {
    abi.KVM_ARM_VCPU_SPE_IRQ: set_irq,
    abi.KVM_ARM_VCPU_SPE_MAX_BUFFER_SIZE: set_max_buffer_size,
    abi.KVM_ARM_VCPU_SPE_INIT: set_init,
}
_GETTERS: dict[int, Callable[[Vcpu, int], None]] = {
    abi.KVM_ARM_VCPU_SPE_IRQ: get_irq,
    abi.KVM_ARM_VCPU_SPE_MAX_BUFFER_SIZE: get_max_buffer_size,
}
