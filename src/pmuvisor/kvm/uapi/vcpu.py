"""A vCPU as userspace holds it: the file descriptor that KVM_CREATE_VCPU returns.

Its PMU's registers are in its record (`kvm.vcpu.Vcpu`). What KVM_RUN does is in `run`, the PMU's attributes are in
`pmu_attr`, the registers in `one_reg`.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from ctypes import sizeof
from typing import TYPE_CHECKING, Any

from pmuvisor.kvm.uapi import abi, one_reg, pmu_attr, spe_attr
from pmuvisor.kvm.uapi import run as running
from pmuvisor.kvm.uapi.abi import kvm_device_attr, kvm_mp_state, kvm_one_reg, kvm_pmu_event_filter, kvm_vcpu_init
from pmuvisor.kvm.uapi.memory import error

if TYPE_CHECKING:
    from pmuvisor.kvm.uapi.vm import Vm


_GROUPS: dict[int, dict[int, Callable[[Vcpu, kvm_device_attr], None]]] = {
    abi.KVM_ARM_VCPU_PMU_V3_CTRL: {
        abi.KVM_SET_DEVICE_ATTR: pmu_attr.set_attr,
        abi.KVM_GET_DEVICE_ATTR: pmu_attr.get_attr,
        abi.KVM_HAS_DEVICE_ATTR: pmu_attr.has_attr,
    },
    abi.KVM_ARM_VCPU_SPE_CTRL: {
        abi.KVM_SET_DEVICE_ATTR: spe_attr.set_attr,
        abi.KVM_GET_DEVICE_ATTR: spe_attr.get_attr,
        abi.KVM_HAS_DEVICE_ATTR: spe_attr.has_attr,
    },
}
"""The groups of attributes: what each ioctl does (kvm_arm_vcpu_set_attr() and its like)."""


class Vcpu:
    """A file descriptor of a vCPU (struct kvm_vcpu), and the page `run` that it shares with its VMM."""

    def __init__(self, vm: Vm, vcpu_id: int, number: int) -> None:
        self.vm = vm
        self.system = vm.system
        self.memory = vm.system.memory
        self.vcpu_id = vcpu_id
        self.index = len(vm.vcpus)
        """Its place among the VM's vCPUs (vcpu_idx)."""
        self.number = number
        """Which of the world's vCPUs it is."""
        self.record = vm.system.world.vcpus[number]
        self.run_page = abi.kvm_run()
        self.initialized = False
        """KVM_ARM_VCPU_INIT was done (VCPU_INITIALIZED)."""
        self.has_run_once = False
        self.mp_state = abi.KVM_MP_STATE_RUNNABLE
        self.irq_num = 0
        """vcpu->arch.pmu.irq_num: 0, which is an SGI's, while it is not set."""
        self.pmu_created = False
        """vcpu->arch.pmu.created: KVM_ARM_VCPU_PMU_V3_INIT was done."""
        self.spe_irq_num = 0
        """vcpu->arch.spe.irq_num: 0 while it is not set."""
        self.spe_initialized = False
        """vcpu->arch.spe.initialized: KVM_ARM_VCPU_SPE_INIT was done."""
        self.mmio_result: int | None = None
        """What userspace gave for the guest's last MMIO read, until the guest takes it."""
        self.beyond: dict[int, int] = {}
        """What userspace has written of PMEVCNTR<n>_EL0 and PMEVTYPER<n>_EL0 that no core of this host has."""

    def irq_initialized(self) -> bool:
        """State kvm_arm_pmu_irq_initialized()."""
        return self.irq_num >= abi.VGIC_NR_SGIS

    # ---- ioctls -------------------------------------------------------------------------------------------

    def ioctl(self, request: int, arg: Any = 0) -> int:
        """State kvm_vcpu_ioctl() and kvm_arch_vcpu_ioctl(). Returns what KVM returns; raises OSError with its errno."""
        self.vm.check_alive()
        if abi.ioc_type(request) != abi.KVMIO:
            raise error(errno.EINVAL, f"{request:#x} is no ioctl of KVM's")
        if request == abi.KVM_RUN:
            if self.system.plain(arg) != 0:
                raise error(errno.EINVAL, "KVM_RUN takes no argument")
            return running.run(self)
        if request == abi.KVM_ARM_VCPU_INIT:
            data = self.memory.copy_from_user(arg, sizeof(kvm_vcpu_init))
            return self._init(kvm_vcpu_init.from_buffer_copy(data))
        if request in (abi.KVM_GET_ONE_REG, abi.KVM_SET_ONE_REG):
            return self._one_reg(request, arg)
        if request == abi.KVM_GET_REG_LIST:
            return self._reg_list(arg)
        if request in (abi.KVM_SET_DEVICE_ATTR, abi.KVM_GET_DEVICE_ATTR, abi.KVM_HAS_DEVICE_ATTR):
            return self._device_attr(request, arg)
        if request in (abi.KVM_GET_MP_STATE, abi.KVM_SET_MP_STATE):
            return self._mp_state(request, arg)
        raise error(errno.EINVAL, f"a vCPU has no ioctl {request:#x}")

    # ---- KVM_ARM_VCPU_INIT --------------------------------------------------------------------------------

    def _init(self, wanted: kvm_vcpu_init) -> int:
        """State kvm_arch_vcpu_ioctl_vcpu_init() and kvm_vcpu_set_target()."""
        power_off = bool(wanted.features[0] >> abi.KVM_ARM_VCPU_POWER_OFF & 1)
        features = wanted.features[0] & ~(1 << abi.KVM_ARM_VCPU_POWER_OFF)
        if wanted.target != abi.KVM_ARM_TARGET_GENERIC_V8:
            raise error(errno.EINVAL, f"target {wanted.target}: expected KVM_ARM_TARGET_GENERIC_V8 (5)")
        if features >> abi.KVM_VCPU_MAX_FEATURES or any(wanted.features[1:]):
            raise error(errno.ENOENT, f"features {features:#x}: KVM knows {abi.KVM_VCPU_MAX_FEATURES}")
        if features & ~self.system.supported_features:
            raise error(errno.EINVAL, f"features {features & ~self.system.supported_features:#x} are not this host's")
        if self.vm.features_configured and features != self.vm.features:
            raise error(errno.EINVAL, f"features {features:#x}: the VM's vCPUs have {self.vm.features:#x}")
        if not self.initialized:
            self._set_target(features)
        self._reset()
        self.vm.features_configured = True
        self.initialized = True
        self.mp_state = abi.KVM_MP_STATE_STOPPED if power_off else abi.KVM_MP_STATE_RUNNABLE
        return 0

    def _set_target(self, features: int) -> None:
        """State __kvm_vcpu_set_target() and kvm_setup_vcpu(): a VM with a PMU that has none gets this CPU's."""
        self.vm.set_features(features)
        if self.vm.has_pmu() and self.vm.pmu is None:
            self.vm.set_arm_pmu(self.system.probe_armpmu())

    def _reset(self) -> None:
        """State kvm_reset_vcpu(), as far as the PMU and SPE go."""
        self.vm.initialize_id_registers()
        self.system.reset_vcpu(self)
        self.beyond.clear()

    # ---- registers ----------------------------------------------------------------------------------------

    def _check_initialized(self) -> None:
        if not self.initialized:
            raise error(errno.ENOEXEC, "KVM_ARM_VCPU_INIT was not done")

    def _one_reg(self, request: int, arg: Any) -> int:
        """State kvm_arm_get_reg() and kvm_arm_set_reg(), kvm_sys_reg_get_user() and kvm_sys_reg_set_user()."""
        self._check_initialized()
        wanted = kvm_one_reg.from_buffer_copy(self.memory.copy_from_user(arg, sizeof(kvm_one_reg)))
        if (wanted.id & ~abi.KVM_REG_SIZE_MASK) >> 32 != abi.KVM_REG_ARM64 >> 32:
            raise error(errno.EINVAL, f"register {wanted.id:#x} is not arm64's")
        if request == abi.KVM_SET_ONE_REG:
            value = self.memory.get_user(wanted.addr, 8)
            self._register(wanted.id).set(self, value)
        else:
            self.memory.put_user(wanted.addr, self._register(wanted.id).get(self), 8)
        return 0

    def _register(self, number: int) -> one_reg.Register:
        register = one_reg.REGISTERS.get(number & 0xFFFF)
        if register is None or abi.sys_reg_id(register.key) != number or register not in one_reg.visible(self):
            raise error(errno.ENOENT, f"no register {number:#x}")
        return register

    def _reg_list(self, arg: Any) -> int:
        """State KVM_GET_REG_LIST: the number of registers is written in any case."""
        self._check_initialized()
        room = self.memory.get_user(arg, 8)
        ids = [abi.sys_reg_id(register.key) for register in one_reg.visible(self)]
        self.memory.put_user(arg, len(ids), 8)
        if room < len(ids):
            raise error(errno.E2BIG, f"there are {len(ids)} registers")
        self.memory.copy_to_user(arg, b"".join(number.to_bytes(8, "little") for number in ids), 8)
        return 0

    # ---- attributes and the rest --------------------------------------------------------------------------

    def _device_attr(self, request: int, arg: Any) -> int:
        attr = kvm_device_attr.from_buffer_copy(self.memory.copy_from_user(arg, sizeof(kvm_device_attr)))
        if attr.group not in _GROUPS:
            raise error(errno.ENXIO, f"a vCPU has no group {attr.group} of attributes")
        _GROUPS[attr.group][request](self, attr)
        return 0

    def _mp_state(self, request: int, arg: Any) -> int:
        """State kvm_arch_vcpu_ioctl_get_mpstate() and set_mpstate(), without KVM_MP_STATE_SUSPENDED."""
        if request == abi.KVM_GET_MP_STATE:
            self.memory.put_user(arg, self.mp_state, sizeof(kvm_mp_state))
            return 0
        state = self.memory.get_user(arg, sizeof(kvm_mp_state))
        if state not in (abi.KVM_MP_STATE_RUNNABLE, abi.KVM_MP_STATE_STOPPED):
            raise error(errno.EINVAL, f"state {state}: expected RUNNABLE (0) or STOPPED (5)")
        self.mp_state = state
        return 0

    # ---- the same, typed ----------------------------------------------------------------------------------

    def init(self, *features: int) -> None:
        """KVM_ARM_VCPU_INIT with these features. Raises EINVAL, ENOENT, ENODEV."""
        wanted = kvm_vcpu_init(target=abi.KVM_ARM_TARGET_GENERIC_V8)
        for feature in features:
            wanted.features[feature >> 5] |= 1 << (feature & 31)
        self.ioctl(abi.KVM_ARM_VCPU_INIT, wanted)

    def run(self) -> int:
        """KVM_RUN; returns `run_page.exit_reason`. Raises EINTR and what docs/uapi.md lists."""
        self.ioctl(abi.KVM_RUN, 0)
        return int(self.run_page.exit_reason)

    def set_attr(self, attr: int, value: Any = None, group: int = abi.KVM_ARM_VCPU_PMU_V3_CTRL) -> None:
        """KVM_SET_DEVICE_ATTR, of the PMU unless `group` says otherwise.

        `value` is an int, of which an attribute that takes 32 bits reads the lower ones, a structure, or None for an
        attribute without a value.
        """
        if value is None:
            self.ioctl(abi.KVM_SET_DEVICE_ATTR, kvm_device_attr(group=group, attr=attr))
            return
        thing = ctypes.c_uint64(value & ((1 << 64) - 1)) if isinstance(value, int) else value
        with self.memory.mapped(thing) as addr:
            self.ioctl(abi.KVM_SET_DEVICE_ATTR, kvm_device_attr(group=group, attr=attr, addr=addr))

    def get_attr(self, attr: int, group: int = abi.KVM_ARM_VCPU_PMU_V3_CTRL) -> int:
        """KVM_GET_DEVICE_ATTR. An attribute without a value gives 0 where it is set."""
        value = ctypes.c_uint64()
        with self.memory.mapped(value) as addr:
            self.ioctl(abi.KVM_GET_DEVICE_ATTR, kvm_device_attr(group=group, attr=attr, addr=addr))
        return value.value

    def has_attr(self, attr: int, group: int = abi.KVM_ARM_VCPU_PMU_V3_CTRL) -> bool:
        """KVM_HAS_DEVICE_ATTR."""
        try:
            self.ioctl(abi.KVM_HAS_DEVICE_ATTR, kvm_device_attr(group=group, attr=attr))
        except OSError as problem:
            if problem.errno == errno.ENXIO:
                return False
            raise
        return True

    def set_filter(self, base_event: int, nevents: int, action: int) -> None:
        """KVM_ARM_VCPU_PMU_V3_FILTER of the events [base_event, base_event + nevents)."""
        self.set_attr(
            abi.KVM_ARM_VCPU_PMU_V3_FILTER,
            kvm_pmu_event_filter(base_event=base_event, nevents=nevents, action=action),
        )

    def get_one_reg(self, number: int) -> int:
        """KVM_GET_ONE_REG of an id (`abi.sys_reg_id_of` gives that of a name)."""
        value = ctypes.c_uint64()
        with self.memory.mapped(value) as addr:
            self.ioctl(abi.KVM_GET_ONE_REG, kvm_one_reg(id=number, addr=addr))
        return value.value

    def set_one_reg(self, number: int, value: int) -> None:
        """KVM_SET_ONE_REG of an id."""
        with self.memory.mapped(ctypes.c_uint64(value)) as addr:
            self.ioctl(abi.KVM_SET_ONE_REG, kvm_one_reg(id=number, addr=addr))

    def reg_list(self) -> list[int]:
        """KVM_GET_REG_LIST, asked twice as a VMM does: for the number, and for the ids."""
        number = ctypes.c_uint64(0)
        try:
            self.ioctl(abi.KVM_GET_REG_LIST, number)
        except OSError as problem:
            if problem.errno != errno.E2BIG:
                raise
        ids = (ctypes.c_uint64 * (1 + number.value))(number.value)
        self.ioctl(abi.KVM_GET_REG_LIST, ids)
        return list(ids)[1:]

    def save(self) -> dict[int, int]:
        """Read every register that there is, by its id."""
        return {number: self.get_one_reg(number) for number in self.reg_list()}

    def restore(self, registers: dict[int, int]) -> None:
        """Write registers that were saved, in their order: ID registers come first, as KVM_GET_REG_LIST has them."""
        for number, value in registers.items():
            self.set_one_reg(number, value)
