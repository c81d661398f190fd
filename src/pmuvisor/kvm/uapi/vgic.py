"""The VGICv3 of a VM, as far as the checks of the virtual PMU look at it, and KVM_CREATE_DEVICE's handle to it.

Its registers and interrupts belong to whoever models an interrupt controller. Here are its life (created, initialised,
mapped), where its frames are, how many interrupts it has, and who owns them (arch/arm64/kvm/vgic).
"""

from __future__ import annotations

import ctypes
import errno
from ctypes import sizeof
from typing import TYPE_CHECKING, Any

from pmuvisor.kvm.uapi import abi
from pmuvisor.kvm.uapi.abi import kvm_device_attr
from pmuvisor.kvm.uapi.memory import UserMemory, error

if TYPE_CHECKING:
    from pmuvisor.kvm.uapi.vm import Vm

UNDEFINED_ADDRESS = (1 << 64) - 1
"""VGIC_ADDR_UNDEF: where a frame is that has no address yet."""
_FRAME = 0x1_0000
_TIMER_PPIS = (27, 30)
"""The PPIs of the virtual and the physical timer, which every vCPU has."""


class Vgic:
    """A device of type KVM_DEV_TYPE_ARM_VGIC_V3: kvm->arch.vgic."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.nr_spis = 0
        """0 until userspace says how many interrupts there are, or `init` does."""
        self.initialized = False
        self.ready = False
        """Mapped into the guest's memory, at the first KVM_RUN."""
        self.dist_base = UNDEFINED_ADDRESS
        self.redist_base = UNDEFINED_ADDRESS
        self._owners: dict[tuple[int, int], object] = {}

    # ---- what the PMU asks --------------------------------------------------------------------------------

    def valid_spi(self, irq: int) -> bool:
        """State vgic_valid_spi()."""
        return abi.VGIC_NR_PRIVATE_IRQS <= irq < abi.VGIC_NR_PRIVATE_IRQS + self.nr_spis

    def set_owner(self, vcpu_index: int, irq: int, owner: object) -> None:
        """State kvm_vgic_set_owner() of a VGIC that is initialised: one device drives an interrupt.

        Raises EINVAL, EEXIST.
        """
        if not abi.irq_is_ppi(irq) and not self.valid_spi(irq):
            raise error(errno.EINVAL, f"interrupt {irq} is neither a PPI nor one of the VGIC's SPIs")
        place = (vcpu_index if abi.irq_is_ppi(irq) else -1, irq)
        if self._owners.setdefault(place, owner) is not owner:
            raise error(errno.EEXIST, f"interrupt {irq} is another device's")

    def enable_timers(self, vcpu_index: int) -> None:
        """State kvm_timer_enable(), timer_irqs_are_valid(): the timers take their PPIs. Raises EINVAL."""
        for irq in _TIMER_PPIS:
            if self._owners.setdefault((vcpu_index, irq), self) is not self:
                raise error(errno.EINVAL, f"PPI {irq} is a timer's")

    def init(self) -> None:
        """State vgic_init(). Done once, it does nothing again."""
        if not self.nr_spis:
            self.nr_spis = abi.VGIC_NR_IRQS_LEGACY - abi.VGIC_NR_PRIVATE_IRQS
        self.initialized = True

    def map_resources(self) -> None:
        """State kvm_vgic_map_resources() of a VGICv3, before a vCPU first runs. Raises ENXIO, EINVAL, EBUSY."""
        if self.ready:
            return
        if self.redist_base == UNDEFINED_ADDRESS:
            raise error(errno.ENXIO, "the redistributors have no address")
        if self.dist_base == UNDEFINED_ADDRESS:
            raise error(errno.ENXIO, "the distributor has no address")
        if self._overlap(self.redist_base):
            raise error(errno.EINVAL, "distributor and redistributors overlap")
        if not self.initialized:
            raise error(errno.EBUSY, "the VGIC is not initialised")
        self.ready = True

    # ---- the device's ioctls ------------------------------------------------------------------------------

    def ioctl(self, request: int, arg: Any = 0) -> int:
        """State kvm_device_ioctl(). Raises OSError with KVM's errno."""
        self.vm.check_alive()
        if request not in (abi.KVM_SET_DEVICE_ATTR, abi.KVM_GET_DEVICE_ATTR, abi.KVM_HAS_DEVICE_ATTR):
            raise error(errno.ENOTTY, f"a device has no ioctl {request:#x}")
        memory = self.vm.system.memory
        attr = kvm_device_attr.from_buffer_copy(memory.copy_from_user(arg, sizeof(kvm_device_attr)))
        if request == abi.KVM_SET_DEVICE_ATTR:
            self._set_attr(memory, attr)
        elif request == abi.KVM_GET_DEVICE_ATTR:
            self._get_attr(memory, attr)
        elif not self._has_attr(attr):
            raise error(errno.ENXIO, f"no attribute {attr.attr} in group {attr.group}")
        return 0

    def _has_attr(self, attr: kvm_device_attr) -> bool:
        """State vgic_v3_has_attr() for the groups that are here."""
        if attr.group == abi.KVM_DEV_ARM_VGIC_GRP_ADDR:
            return attr.attr in (abi.KVM_VGIC_V3_ADDR_TYPE_DIST, abi.KVM_VGIC_V3_ADDR_TYPE_REDIST)
        if attr.group == abi.KVM_DEV_ARM_VGIC_GRP_CTRL:
            return bool(attr.attr == abi.KVM_DEV_ARM_VGIC_CTRL_INIT)
        return bool(attr.group == abi.KVM_DEV_ARM_VGIC_GRP_NR_IRQS)

    def _set_attr(self, memory: UserMemory, attr: kvm_device_attr) -> None:
        """State vgic_set_common_attr()."""
        if attr.group == abi.KVM_DEV_ARM_VGIC_GRP_ADDR:
            self._set_address(attr.attr, memory.get_user(attr.addr, 8))
        elif attr.group == abi.KVM_DEV_ARM_VGIC_GRP_NR_IRQS:
            self._set_nr_irqs(memory.get_user(attr.addr, 4))
        elif self._has_attr(attr):
            self.init()
        else:
            raise error(errno.ENXIO, f"no attribute {attr.attr} in group {attr.group}")

    def _get_attr(self, memory: UserMemory, attr: kvm_device_attr) -> None:
        """State vgic_get_common_attr()."""
        if attr.group == abi.KVM_DEV_ARM_VGIC_GRP_NR_IRQS:
            memory.put_user(attr.addr, self.nr_spis + abi.VGIC_NR_PRIVATE_IRQS, 4)
        elif attr.group == abi.KVM_DEV_ARM_VGIC_GRP_ADDR and self._has_attr(attr):
            dist = attr.attr == abi.KVM_VGIC_V3_ADDR_TYPE_DIST
            memory.put_user(attr.addr, self.dist_base if dist else self.redist_base, 8)
        else:
            raise error(errno.ENXIO, f"no attribute {attr.attr} in group {attr.group}")

    def _set_nr_irqs(self, value: int) -> None:
        least = abi.VGIC_NR_PRIVATE_IRQS + 32
        if not least <= value <= abi.VGIC_MAX_RESERVED or value & 31:
            raise error(errno.EINVAL, f"{value} interrupts: expected a multiple of 32 from {least} to 992")
        if self.nr_spis:
            raise error(errno.EBUSY, "the number of interrupts is set already")
        self.nr_spis = value - abi.VGIC_NR_PRIVATE_IRQS

    def _set_address(self, frame: int, base: int) -> None:
        """State kvm_vgic_addr() of a write; the redistributors' is vgic_v3_set_redist_base() of one region."""
        if frame == abi.KVM_VGIC_V3_ADDR_TYPE_DIST:
            self._check_range(self.dist_base, base, abi.KVM_VGIC_V3_DIST_SIZE)
            self.dist_base = base
        elif frame == abi.KVM_VGIC_V3_ADDR_TYPE_REDIST:
            size = self._redist_size()
            if base + size >> 64:
                raise error(errno.EINVAL, "the redistributors would end beyond 64 bits")
            if self.redist_base != UNDEFINED_ADDRESS:
                raise error(errno.EEXIST, "the redistributors have an address")
            if self._overlap(base):
                raise error(errno.EINVAL, "distributor and redistributors overlap")
            self._check_range(self.redist_base, base, size)
            self.redist_base = base
        else:
            raise error(errno.ENXIO, f"no frame {frame}")

    def _redist_size(self) -> int:
        return len(self.vm.vcpus) * abi.KVM_VGIC_V3_REDIST_SIZE

    def _overlap(self, redist_base: int) -> bool:
        dist = self.dist_base
        if dist == UNDEFINED_ADDRESS:
            return False
        return dist < redist_base + self._redist_size() and redist_base < dist + abi.KVM_VGIC_V3_DIST_SIZE

    def _check_range(self, old: int, base: int, size: int) -> None:
        """State vgic_check_iorange()."""
        if old != UNDEFINED_ADDRESS:
            raise error(errno.EEXIST, "the frame has an address")
        if base % _FRAME:
            raise error(errno.EINVAL, f"address {base:#x}: expected a multiple of {_FRAME:#x}")
        if base + size > 1 << self.vm.ipa_bits:
            raise error(errno.E2BIG, f"address {base:#x}: the guest's memory has {self.vm.ipa_bits} bits")

    # ---- the same, typed ----------------------------------------------------------------------------------

    def set_attr(self, group: int, attr: int, value: int = 0) -> None:
        """KVM_SET_DEVICE_ATTR with a value of 64 bits, of which a group that takes 32 reads the lower ones.

        Raises what docs/uapi.md lists.
        """
        memory = self.vm.system.memory
        with memory.mapped(ctypes.c_uint64(value)) as addr:
            self.ioctl(abi.KVM_SET_DEVICE_ATTR, kvm_device_attr(group=group, attr=attr, addr=addr))
