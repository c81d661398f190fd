"""The numbers and structures of KVM's interface, as include/uapi/linux/kvm.h and arch/arm64's asm/kvm.h lay them out.

Only what concerns the virtual PMU and SPE. Names are the kernel's own. KVM_ARM_VCPU_PMU_V3_PARTITION is ours: no kernel
has settled how a VMM asks for a partitioned PMU; FIXED_COUNTERS_ONLY, and all that is SPE's, are series' under review
(docs/uapi.md).
"""

from __future__ import annotations

import ctypes
from ctypes import sizeof

from pmuvisor.arch import sysreg

# ---- ioctl numbers (asm-generic/ioctl.h: direction, size of the argument, type, number) -------------------

KVMIO = 0xAE
_NONE, _WRITE, _READ = 0, 1, 2


def _ioc(direction: int, number: int, size: int = 0) -> int:
    return direction << 30 | size << 16 | KVMIO << 8 | number


def ioc_type(request: int) -> int:
    """Return the type of an ioctl's number (_IOC_TYPE): KVMIO for all of KVM's."""
    return (request >> 8) & 0xFF


class kvm_device_attr(ctypes.Structure):
    """One attribute of a device, VM or vCPU; `addr` is where in the caller's memory its value is."""

    _fields_ = (
        ("flags", ctypes.c_uint32),
        ("group", ctypes.c_uint32),
        ("attr", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
    )


class kvm_create_device(ctypes.Structure):
    """What KVM_CREATE_DEVICE makes; it writes the device's `fd`."""

    _fields_ = (("type", ctypes.c_uint32), ("fd", ctypes.c_uint32), ("flags", ctypes.c_uint32))


class kvm_one_reg(ctypes.Structure):
    """One register; `addr` is where in the caller's memory its value is."""

    _fields_ = (("id", ctypes.c_uint64), ("addr", ctypes.c_uint64))


class kvm_reg_list(ctypes.Structure):
    """How many registers there are; as many ids of 64 bits follow it in memory."""

    _fields_ = (("n", ctypes.c_uint64),)


class kvm_vcpu_init(ctypes.Structure):
    """The CPU that a guest sees, and what it has: bit f & 31 of features[f >> 5] is feature f."""

    _fields_ = (("target", ctypes.c_uint32), ("features", ctypes.c_uint32 * 7))


class kvm_pmu_event_filter(ctypes.Structure):
    """What is to become of the events [base_event, base_event + nevents)."""

    _fields_ = (
        ("base_event", ctypes.c_uint16),
        ("nevents", ctypes.c_uint16),
        ("action", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
    )


class kvm_mp_state(ctypes.Structure):
    """Whether a vCPU runs."""

    _fields_ = (("mp_state", ctypes.c_uint32),)


class _FailEntry(ctypes.Structure):
    _fields_ = (("hardware_entry_failure_reason", ctypes.c_uint64), ("cpu", ctypes.c_uint32))


class _Mmio(ctypes.Structure):
    _fields_ = (
        ("phys_addr", ctypes.c_uint64),
        ("data", ctypes.c_uint8 * 8),
        ("len", ctypes.c_uint32),
        ("is_write", ctypes.c_uint8),
    )


class _SystemEvent(ctypes.Structure):
    _fields_ = (("type", ctypes.c_uint32), ("ndata", ctypes.c_uint32), ("data", ctypes.c_uint64 * 16))


class _Exit(ctypes.Union):
    _fields_ = (
        ("fail_entry", _FailEntry),
        ("mmio", _Mmio),
        ("system_event", _SystemEvent),
        ("padding", ctypes.c_uint8 * 256),
    )


class _SyncRegs(ctypes.Structure):
    _fields_ = (("device_irq_level", ctypes.c_uint64),)


class _Sync(ctypes.Union):
    _fields_ = (("regs", _SyncRegs), ("padding", ctypes.c_uint8 * 2048))


class kvm_run(ctypes.Structure):
    """The page that a vCPU shares with its VMM: why KVM_RUN returned, in `exit_reason` and a member of that name."""

    _anonymous_ = ("exit",)
    _fields_ = (
        ("request_interrupt_window", ctypes.c_uint8),
        ("immediate_exit", ctypes.c_uint8),
        ("padding1", ctypes.c_uint8 * 6),
        ("exit_reason", ctypes.c_uint32),
        ("ready_for_interrupt_injection", ctypes.c_uint8),
        ("if_flag", ctypes.c_uint8),
        ("flags", ctypes.c_uint16),
        ("cr8", ctypes.c_uint64),
        ("apic_base", ctypes.c_uint64),
        ("exit", _Exit),
        ("kvm_valid_regs", ctypes.c_uint64),
        ("kvm_dirty_regs", ctypes.c_uint64),
        ("s", _Sync),
    )


# /dev/kvm
KVM_GET_API_VERSION = _ioc(_NONE, 0x00)
KVM_CREATE_VM = _ioc(_NONE, 0x01)
KVM_CHECK_EXTENSION = _ioc(_NONE, 0x03)
KVM_GET_VCPU_MMAP_SIZE = _ioc(_NONE, 0x04)
# a VM
KVM_CREATE_VCPU = _ioc(_NONE, 0x41)
KVM_CREATE_IRQCHIP = _ioc(_NONE, 0x60)
KVM_ARM_PREFERRED_TARGET = _ioc(_READ, 0xAF, sizeof(kvm_vcpu_init))
KVM_CREATE_DEVICE = _ioc(_READ | _WRITE, 0xE0, sizeof(kvm_create_device))
# a vCPU
KVM_RUN = _ioc(_NONE, 0x80)
KVM_GET_MP_STATE = _ioc(_READ, 0x98, sizeof(kvm_mp_state))
KVM_SET_MP_STATE = _ioc(_WRITE, 0x99, sizeof(kvm_mp_state))
KVM_GET_ONE_REG = _ioc(_WRITE, 0xAB, sizeof(kvm_one_reg))
KVM_SET_ONE_REG = _ioc(_WRITE, 0xAC, sizeof(kvm_one_reg))
KVM_ARM_VCPU_INIT = _ioc(_WRITE, 0xAE, sizeof(kvm_vcpu_init))
KVM_GET_REG_LIST = _ioc(_READ | _WRITE, 0xB0, sizeof(kvm_reg_list))
# devices, VMs and vCPUs
KVM_SET_DEVICE_ATTR = _ioc(_WRITE, 0xE1, sizeof(kvm_device_attr))
KVM_GET_DEVICE_ATTR = _ioc(_WRITE, 0xE2, sizeof(kvm_device_attr))
KVM_HAS_DEVICE_ATTR = _ioc(_WRITE, 0xE3, sizeof(kvm_device_attr))

KVM_API_VERSION = 12
PAGE_SIZE = 4096

# ---- KVM_CHECK_EXTENSION ----------------------------------------------------------------------------------

KVM_CAP_IRQCHIP = 0
KVM_CAP_NR_VCPUS = 9
KVM_CAP_MP_STATE = 14
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_ONE_REG = 70
KVM_CAP_ARM_PSCI_0_2 = 102
KVM_CAP_DEVICE_CTRL = 89
KVM_CAP_CHECK_EXTENSION_VM = 105
KVM_CAP_ARM_PMU_V3 = 126
KVM_CAP_VCPU_ATTRIBUTES = 127
KVM_CAP_MAX_VCPU_ID = 128
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_ARM_USER_IRQ = 144
KVM_CAP_ARM_VM_IPA_SIZE = 165
KVM_CAP_ARM_SPE = 208
"""The SPE series' number, v4 and v5. Upstream has since given it to another capability (KVM_CAP_XSAVE2, of x86)."""

KVM_VM_TYPE_ARM_IPA_SIZE_MASK = 0xFF

# ---- KVM_ARM_VCPU_INIT ------------------------------------------------------------------------------------

KVM_ARM_TARGET_GENERIC_V8 = 5
KVM_ARM_VCPU_POWER_OFF = 0
KVM_ARM_VCPU_EL1_32BIT = 1
KVM_ARM_VCPU_PSCI_0_2 = 2
KVM_ARM_VCPU_PMU_V3 = 3
KVM_ARM_VCPU_SVE = 4
KVM_ARM_VCPU_PTRAUTH_ADDRESS = 5
KVM_ARM_VCPU_PTRAUTH_GENERIC = 6
KVM_ARM_VCPU_HAS_EL2 = 7
KVM_ARM_VCPU_HAS_EL2_E2H0 = 8
KVM_ARM_VCPU_SPE = 9
"""The first number that is free: the SPE series had 7 (v5), which is HAS_EL2's now."""
KVM_VCPU_MAX_FEATURES = 10

KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_STOPPED = 5

# ---- attributes of a vCPU's PMU ---------------------------------------------------------------------------

KVM_ARM_VCPU_PMU_V3_CTRL = 0
"""The group."""
KVM_ARM_VCPU_PMU_V3_IRQ = 0
KVM_ARM_VCPU_PMU_V3_INIT = 1
KVM_ARM_VCPU_PMU_V3_FILTER = 2
KVM_ARM_VCPU_PMU_V3_SET_PMU = 3
KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS = 4
KVM_ARM_VCPU_PMU_V3_FIXED_COUNTERS_ONLY = 5
KVM_ARM_VCPU_PMU_V3_PARTITION = 6
"""Ours. An unsigned int of the flags below."""
PARTITION_ENABLE = 1 << 0
"""The guest's event counters are real ones."""
PARTITION_LAZY = 1 << 1
"""Nothing is swapped until the guest touches its PMU; with PARTITION_ENABLE only."""

KVM_PMU_EVENT_ALLOW = 0
KVM_PMU_EVENT_DENY = 1

# ---- attributes of a vCPU's SPE: an RFC series' -----------------------------------------------------------

KVM_ARM_VCPU_SPE_CTRL = 3
"""The group."""
KVM_ARM_VCPU_SPE_IRQ = 0
KVM_ARM_VCPU_SPE_MAX_BUFFER_SIZE = 1
"""Of v6 of the series; that number and INIT's are a choice, since v5 had INIT 1 and no maximum."""
KVM_ARM_VCPU_SPE_INIT = 2

# ---- the VGICv3 -------------------------------------------------------------------------------------------

KVM_CREATE_DEVICE_TEST = 1
KVM_DEV_TYPE_ARM_VGIC_V2 = 5
KVM_DEV_TYPE_ARM_VGIC_V3 = 7
KVM_DEV_ARM_VGIC_GRP_ADDR = 0
KVM_DEV_ARM_VGIC_GRP_NR_IRQS = 3
KVM_DEV_ARM_VGIC_GRP_CTRL = 4
KVM_VGIC_V3_ADDR_TYPE_DIST = 2
KVM_VGIC_V3_ADDR_TYPE_REDIST = 3
KVM_DEV_ARM_VGIC_CTRL_INIT = 0
KVM_VGIC_V3_DIST_SIZE = 0x1_0000
KVM_VGIC_V3_REDIST_SIZE = 0x2_0000
VGIC_V3_MAX_CPUS = 512
VGIC_NR_SGIS = 16
VGIC_NR_PRIVATE_IRQS = 32
VGIC_NR_IRQS_LEGACY = 256
VGIC_MAX_SPI = 1019
VGIC_MAX_RESERVED = 1023


def irq_is_ppi(irq: int) -> bool:
    """Tell whether an interrupt is private to a CPU, INTID 16 to 31."""
    return VGIC_NR_SGIS <= irq < VGIC_NR_PRIVATE_IRQS


def irq_is_spi(irq: int) -> bool:
    """Tell whether an interrupt is one that CPUs share, INTID 32 to 1019."""
    return VGIC_NR_PRIVATE_IRQS <= irq <= VGIC_MAX_SPI


# ---- KVM_RUN ----------------------------------------------------------------------------------------------

KVM_EXIT_UNKNOWN = 0
KVM_EXIT_MMIO = 6
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_FAIL_ENTRY_CPU_UNSUPPORTED = 1 << 0
KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2
KVM_SYSTEM_EVENT_CRASH = 3
KVM_ARM_DEV_PMU = 1 << 2
"""kvm_run.s.regs.device_irq_level: the PMU's interrupt, of a VM without an interrupt controller in the kernel."""

# ---- ids of registers -------------------------------------------------------------------------------------

KVM_REG_ARM64 = 0x6000_0000_0000_0000
KVM_REG_SIZE_MASK = 0x00F0_0000_0000_0000
KVM_REG_SIZE_U32 = 0x0020_0000_0000_0000
KVM_REG_SIZE_U64 = 0x0030_0000_0000_0000
KVM_REG_ARM64_SYSREG = 0x0013 << 16


def sys_reg_id(key: int) -> int:
    """Return the id of a System register, ARM64_SYS_REG(): `key` is `arch.sysreg`'s, whose fields KVM orders alike."""
    return KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG | key


def sys_reg_id_of(name: str) -> int:
    """Return the id of the System register that the Arm ARM calls `name`. Raises KeyError for an unknown one."""
    return sys_reg_id(sysreg.BY_NAME[name])
