"""/dev/kvm, VMs, KVM_ARM_VCPU_INIT and the VGIC: what is made, and each errno in KVM's order of checks."""

from __future__ import annotations

import ctypes
from errno import E2BIG, EBADF, EBUSY, EEXIST, EFAULT, EINVAL, EIO, ENODEV, ENOENT, ENOMEM, ENOTTY, ENXIO

import pytest

from pmuvisor.kvm.uapi import UserMemory, Vcpu, Vgic, Vm
from pmuvisor.kvm.uapi import abi as k

from .uapi_support import (
    BIG,
    INIT,
    LITTLE,
    PMU,
    SHORT_EVENTS,
    give_vgic,
    idle,
    refused,
    run_guest,
    set_vgic_attr,
    system,
    vcpu_with_pmu,
)

UNKNOWN = 0x1DE7_EC7E_DBAD_C0DE
"""What KVM's reset_unknown() makes of a register."""

# ---- numbers and layouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"),
    [
        # As strace prints them for an arm64 VMM.
        ("KVM_CREATE_VM", 0xAE01),
        ("KVM_CHECK_EXTENSION", 0xAE03),
        ("KVM_CREATE_VCPU", 0xAE41),
        ("KVM_CREATE_IRQCHIP", 0xAE60),
        ("KVM_RUN", 0xAE80),
        ("KVM_GET_ONE_REG", 0x4010_AEAB),
        ("KVM_SET_ONE_REG", 0x4010_AEAC),
        ("KVM_ARM_VCPU_INIT", 0x4020_AEAE),
        ("KVM_ARM_PREFERRED_TARGET", 0x8020_AEAF),
        ("KVM_GET_REG_LIST", 0xC008_AEB0),
        ("KVM_GET_MP_STATE", 0x8004_AE98),
        ("KVM_SET_MP_STATE", 0x4004_AE99),
        ("KVM_CREATE_DEVICE", 0xC00C_AEE0),
        ("KVM_SET_DEVICE_ATTR", 0x4018_AEE1),
        ("KVM_GET_DEVICE_ATTR", 0x4018_AEE2),
        ("KVM_HAS_DEVICE_ATTR", 0x4018_AEE3),
    ],
)
def test_an_ioctl_has_kvms_number(name: str, number: int) -> None:
    assert getattr(k, name) == number


def test_kvm_run_is_laid_out_as_kvms() -> None:
    # Offsets counted in include/uapi/linux/kvm.h.
    assert k.kvm_run.exit_reason.offset == 8
    page = k.kvm_run()
    start = ctypes.addressof(page)
    assert ctypes.addressof(page.fail_entry) - start == 32
    assert type(page.fail_entry).cpu.offset == 8
    assert (type(page.mmio).data.offset, type(page.mmio).len.offset, type(page.mmio).is_write.offset) == (8, 16, 20)
    assert type(page.system_event).data.offset == 8
    assert ctypes.addressof(page.s) - start == 32 + 256 + 16
    assert ctypes.sizeof(k.kvm_run) == 32 + 256 + 16 + 2048


def test_a_register_has_kvms_id() -> None:
    # KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG | op0:op1:CRn:CRm:op2 of S3_3_C9_C12_0.
    assert k.sys_reg_id_of("PMCR_EL0") == 0x6030_0000_0013_DCE0


# ---- the VMM's memory -------------------------------------------------------------------------------------


def test_memory_is_what_was_mapped_and_nothing_around_it() -> None:
    memory = UserMemory()
    first, second = bytearray(b"first"), bytearray(b"second")
    at, after = memory.map(first), memory.map(second)
    assert memory.copy_from_user(at + 1, 4) == b"irst"
    memory.copy_to_user(after, b"S")
    assert second == b"Second"
    for wrong in (at - 1, at + 5, after - 1, 0):
        with refused(EFAULT):
            memory.copy_from_user(wrong, 1)
    with refused(EFAULT):
        memory.copy_from_user(at, 6)


def test_memory_that_was_unmapped_is_efault() -> None:
    memory = UserMemory()
    thing = ctypes.c_uint64(7)
    with memory.mapped(thing) as at:
        assert memory.get_user(at, 8) == 7
    with refused(EFAULT):
        memory.get_user(at, 8)
    with pytest.raises(KeyError):
        memory.unmap(at)


# ---- /dev/kvm ---------------------------------------------------------------------------------------------


def test_extensions() -> None:
    kvm = system(BIG, BIG, BIG)
    known = {"IRQCHIP": 1, "NR_VCPUS": 3, "MAX_VCPUS": 512, "ONE_REG": 1, "DEVICE_CTRL": 1, "ARM_PMU_V3": 1}
    known |= {"VCPU_ATTRIBUTES": 1, "ARM_VM_IPA_SIZE": 48, "MAX_VCPU_ID": 512, "IMMEDIATE_EXIT": 1}
    vm = kvm.create_vm()
    for name, value in known.items():
        capability = getattr(k, f"KVM_CAP_{name}")
        assert kvm.ioctl(k.KVM_CHECK_EXTENSION, capability) == value, name
        assert vm.ioctl(k.KVM_CHECK_EXTENSION, capability) == value, name


def test_an_unknown_extension_is_zero_and_no_error() -> None:
    assert system().ioctl(k.KVM_CHECK_EXTENSION, 9999) == 0


def test_cpus_of_different_pmu_versions_leave_guests_without_a_pmu() -> None:
    # The sanitised ID_AA64DFR0_EL1.PMUVer of CPUs that differ is 0 (FTR_EXACT in arch/arm64/kernel/cpufeature.c).
    kvm = system(BIG, "neoverse-n2")
    assert kvm.ioctl(k.KVM_CHECK_EXTENSION, k.KVM_CAP_ARM_PMU_V3) == 0
    with refused(EINVAL):
        kvm.create_vm().create_vcpu(0).init(*PMU)


def test_the_version_of_the_interface_and_the_size_of_the_shared_pages() -> None:
    kvm = system()
    assert kvm.ioctl(k.KVM_GET_API_VERSION) == 12
    assert kvm.ioctl(k.KVM_GET_VCPU_MMAP_SIZE) == 8192


@pytest.mark.parametrize("request_", [k.KVM_GET_API_VERSION, k.KVM_GET_VCPU_MMAP_SIZE])
def test_an_argument_where_none_is_taken_is_einval(request_: int) -> None:
    with refused(EINVAL):
        system().ioctl(request_, 1)


@pytest.mark.parametrize("machine", [31, 49, 0x100, 1 << 31])
def test_a_vm_of_an_impossible_address_size_is_einval(machine: int) -> None:
    with refused(EINVAL):
        system().create_vm(machine)


@pytest.mark.parametrize("machine", [0, 32, 48])
def test_a_vm_has_a_file_descriptor(machine: int) -> None:
    kvm = system()
    assert isinstance(kvm.file(kvm.ioctl(k.KVM_CREATE_VM, machine)), Vm)
    with refused(EBADF):
        kvm.file(99)


def test_vms_and_vcpus_beyond_the_worlds_room_are_enomem_until_a_vm_is_closed() -> None:
    kvm = system(vms=1, vcpus=1)
    vm = kvm.create_vm()
    vm.create_vcpu(0)
    with refused(ENOMEM):
        vm.create_vcpu(1)
    with refused(ENOMEM):
        kvm.create_vm()
    vm.close()
    with refused(EIO):
        vm.create_vcpu(0)
    assert kvm.create_vm().create_vcpu(0).number == 0


def test_a_vm_that_is_made_where_another_was_has_nothing_of_it() -> None:
    kvm = system()
    scratch = vcpu_with_pmu(kvm)
    scratch.set_one_reg(k.sys_reg_id_of("PMCCNTR_EL0"), 7)
    scratch.set_filter(0, 9, k.KVM_PMU_EVENT_ALLOW)
    scratch.set_attr(INIT)
    run_guest(scratch, idle)
    scratch.vm.close()
    scratch.vm.close()
    vcpu = vcpu_with_pmu(kvm)
    assert vcpu.get_one_reg(k.sys_reg_id_of("PMCCNTR_EL0")) == UNKNOWN
    assert vcpu.record.loads == 0
    assert (vcpu.vm.record.filter_words, vcpu.vm.record.nr_counters) == (0, 6)


def test_what_is_not_kvms_ioctl_is_einval_and_enotty_on_a_device() -> None:
    kvm = system()
    vcpu = vcpu_with_pmu(kvm)
    vgic = vcpu.vm.create_vgic()
    for thing in (kvm, vcpu.vm, vcpu):
        for request in (0xAEFF, k.KVM_GET_API_VERSION if thing is not kvm else k.KVM_RUN, 0x1234_5678):
            with refused(EINVAL):
                thing.ioctl(request)
    with refused(ENOTTY):
        vgic.ioctl(k.KVM_RUN)


# ---- a VM -------------------------------------------------------------------------------------------------


def test_the_preferred_target_is_the_generic_one() -> None:
    assert system().create_vm().preferred_target().target == 5
    with refused(EFAULT):
        system().create_vm().ioctl(k.KVM_ARM_PREFERRED_TARGET, bytes(32))


def test_create_vcpu_with_an_id_that_is_too_large_is_einval() -> None:
    with refused(EINVAL):
        system().create_vm().create_vcpu(512)


def test_create_vcpu_after_the_vgic_was_initialised_is_ebusy() -> None:
    vm = vcpu_with_pmu().vm
    give_vgic(vm)
    with refused(EBUSY):
        vm.create_vcpu(0)


def test_create_vcpu_with_an_id_that_is_taken_is_eexist() -> None:
    vm = vcpu_with_pmu().vm
    with refused(EEXIST):
        vm.create_vcpu(0)
    assert vm.create_vcpu(1).index == 1


def test_the_vm_has_no_attributes_here() -> None:
    vm = system().create_vm()
    for request in (k.KVM_SET_DEVICE_ATTR, k.KVM_HAS_DEVICE_ATTR):
        with refused(EFAULT):
            vm.ioctl(request, None)
        with refused(ENXIO):
            vm.ioctl(request, k.kvm_device_attr())


def test_a_gicv2_is_enodev_on_a_host_that_has_none() -> None:
    vm = system().create_vm()
    with refused(ENODEV):
        vm.ioctl(k.KVM_CREATE_IRQCHIP)
    with refused(ENODEV):
        vm.ioctl(k.KVM_CREATE_DEVICE, k.kvm_create_device(type=k.KVM_DEV_TYPE_ARM_VGIC_V2))


def test_create_device_from_nowhere_is_efault() -> None:
    with refused(EFAULT):
        system().create_vm().ioctl(k.KVM_CREATE_DEVICE, bytes(11))


def test_create_device_can_be_tried_without_making_one() -> None:
    vm = system().create_vm()
    vm.ioctl(k.KVM_CREATE_DEVICE, k.kvm_create_device(type=7, flags=k.KVM_CREATE_DEVICE_TEST))
    assert vm.vgic is None


def test_a_second_vgic_is_eexist() -> None:
    vm = system().create_vm()
    assert isinstance(vm.create_vgic(), Vgic)
    with refused(EEXIST):
        vm.create_vgic()


def test_a_vgic_after_a_vcpu_has_run_is_ebusy() -> None:
    vcpu = vcpu_with_pmu()
    vcpu.set_attr(INIT)
    run_guest(vcpu, idle)
    with refused(EBUSY):
        vcpu.vm.create_vgic()


# ---- KVM_ARM_VCPU_INIT ------------------------------------------------------------------------------------


def new_vcpu() -> Vcpu:
    return system().create_vm().create_vcpu(0)


def test_vcpu_init_from_nowhere_is_efault() -> None:
    with refused(EFAULT):
        new_vcpu().ioctl(k.KVM_ARM_VCPU_INIT, bytes(31))


def test_vcpu_init_with_another_target_is_einval_before_the_features_are_looked_at() -> None:
    with refused(EINVAL):
        new_vcpu().ioctl(k.KVM_ARM_VCPU_INIT, k.kvm_vcpu_init(target=6, features=(1 << 9, 0, 0, 0, 0, 0, 0)))


@pytest.mark.parametrize("feature", [10, 31, 32, 223])
def test_vcpu_init_with_a_feature_that_kvm_does_not_know_is_enoent(feature: int) -> None:
    with refused(ENOENT):
        new_vcpu().init(feature)


@pytest.mark.parametrize("feature", [1, 4, 5, 6, 7, 8])
def test_vcpu_init_with_a_feature_that_the_host_has_not_is_einval(feature: int) -> None:
    with refused(EINVAL):
        new_vcpu().init(feature)


def test_vcpu_init_with_other_features_than_the_vms_is_einval() -> None:
    first = vcpu_with_pmu()
    with refused(EINVAL):
        first.init(k.KVM_ARM_VCPU_PSCI_0_2)
    with refused(EINVAL):
        first.vm.create_vcpu(1).init(k.KVM_ARM_VCPU_PSCI_0_2)


def test_vcpu_init_on_a_cpu_without_a_pmu_is_enodev() -> None:
    kvm = system(BIG, BIG)
    kvm.pmus = [pmu for pmu in kvm.pmus if pmu.number == 1]
    vcpu = kvm.create_vm().create_vcpu(0)
    with refused(ENODEV):
        vcpu.init(*PMU)
    vcpu.init(k.KVM_ARM_VCPU_PSCI_0_2)


def test_vcpu_init_with_power_off_leaves_it_stopped_and_is_no_feature() -> None:
    vcpu = new_vcpu()
    vcpu.init(k.KVM_ARM_VCPU_POWER_OFF, *PMU)
    state = k.kvm_mp_state()
    vcpu.ioctl(k.KVM_GET_MP_STATE, state)
    assert state.mp_state == k.KVM_MP_STATE_STOPPED
    vcpu.init(*PMU)
    vcpu.ioctl(k.KVM_GET_MP_STATE, state)
    assert state.mp_state == k.KVM_MP_STATE_RUNNABLE


def test_vcpu_init_again_resets_the_registers_and_keeps_the_configuration() -> None:
    vcpu = vcpu_with_pmu(system(LITTLE, BIG))
    vcpu.set_attr(k.KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, 3)
    vcpu.set_one_reg(k.sys_reg_id_of("PMCNTENSET_EL0"), 5)
    vcpu.init(*PMU)
    assert vcpu.get_one_reg(k.sys_reg_id_of("PMCNTENSET_EL0")) == UNKNOWN & (1 << 31 | 0b111)
    assert vcpu.vm.record.nr_counters == 3


def test_the_state_of_a_vcpu_is_runnable_or_stopped() -> None:
    vcpu = vcpu_with_pmu()
    vcpu.ioctl(k.KVM_SET_MP_STATE, k.kvm_mp_state(mp_state=5))
    assert vcpu.mp_state == 5
    with refused(EINVAL):
        vcpu.ioctl(k.KVM_SET_MP_STATE, k.kvm_mp_state(mp_state=1))
    for request in (k.KVM_SET_MP_STATE, k.KVM_GET_MP_STATE):
        with refused(EFAULT):
            vcpu.ioctl(request, b"")


# ---- the VGIC ---------------------------------------------------------------------------------------------


def new_vgic() -> Vgic:
    return vcpu_with_pmu().vm.create_vgic()


@pytest.mark.parametrize("request_", [k.KVM_SET_DEVICE_ATTR, k.KVM_GET_DEVICE_ATTR, k.KVM_HAS_DEVICE_ATTR])
def test_a_vgic_attribute_from_nowhere_is_efault_and_an_unknown_one_enxio(request_: int) -> None:
    vgic = new_vgic()
    with refused(EFAULT):
        vgic.ioctl(request_, 0)
    for group, attr in ((0, 9), (4, 1), (9, 0)):
        value = bytearray(8)
        with vgic.vm.system.memory.mapped(value) as addr, refused(ENXIO):
            vgic.ioctl(request_, k.kvm_device_attr(group=group, attr=attr, addr=addr))


def test_a_vgic_tells_which_attributes_it_has() -> None:
    vgic = new_vgic()
    for group, attr in ((0, 2), (0, 3), (3, 0), (4, 0)):
        assert vgic.ioctl(k.KVM_HAS_DEVICE_ATTR, k.kvm_device_attr(group=group, attr=attr)) == 0


@pytest.mark.parametrize("number", [0, 32, 63, 65, 1024])
def test_a_number_of_interrupts_that_a_vgic_cannot_have_is_einval(number: int) -> None:
    with refused(EINVAL):
        set_vgic_attr(new_vgic(), 3, 0, number.to_bytes(4, "little"))


@pytest.mark.parametrize("first", [(3, 0, bytes([96, 0, 0, 0])), (4, 0, None)])
def test_the_number_of_interrupts_is_set_once_or_by_init(first: tuple[int, int, bytes | None]) -> None:
    vgic = new_vgic()
    set_vgic_attr(vgic, *first)
    with refused(EBUSY):
        set_vgic_attr(vgic, 3, 0, bytes([64, 0, 0, 0]))


def test_a_vgic_has_256_interrupts_unless_it_is_told() -> None:
    vgic = new_vgic()
    set_vgic_attr(vgic, 4, 0)
    set_vgic_attr(vgic, 4, 0)
    value = bytearray(4)
    with vgic.vm.system.memory.mapped(value) as addr:
        vgic.ioctl(k.KVM_GET_DEVICE_ATTR, k.kvm_device_attr(group=3, addr=addr))
    assert int.from_bytes(value, "little") == 256


def test_a_frame_has_an_address_once_aligned_and_within_the_guests_memory() -> None:
    vgic = new_vgic()
    with refused(EINVAL):
        set_vgic_attr(vgic, 0, 2, (0x1000).to_bytes(8, "little"))
    with refused(E2BIG):
        set_vgic_attr(vgic, 0, 2, (1 << 40).to_bytes(8, "little"))
    set_vgic_attr(vgic, 0, 2, (0x800_0000).to_bytes(8, "little"))
    with refused(EEXIST):
        set_vgic_attr(vgic, 0, 2, (0x800_0000).to_bytes(8, "little"))
    value = bytearray(8)
    with vgic.vm.system.memory.mapped(value) as addr:
        vgic.ioctl(k.KVM_GET_DEVICE_ATTR, k.kvm_device_attr(group=0, attr=2, addr=addr))
    assert int.from_bytes(value, "little") == 0x800_0000


def test_redistributors_that_overlap_the_distributor_are_einval_and_a_second_region_eexist() -> None:
    vgic = new_vgic()
    set_vgic_attr(vgic, 0, 2, (0x800_0000).to_bytes(8, "little"))
    with refused(EINVAL):
        set_vgic_attr(vgic, 0, 3, (0x7FF_0000).to_bytes(8, "little"))
    with refused(EINVAL):
        set_vgic_attr(vgic, 0, 3, ((1 << 64) - 0x1_0000).to_bytes(8, "little"))
    set_vgic_attr(vgic, 0, 3, (0x80A_0000).to_bytes(8, "little"))
    with refused(EEXIST):
        set_vgic_attr(vgic, 0, 3, (0x80A_0000).to_bytes(8, "little"))


def test_events_of_ten_bits_are_a_filter_of_sixteen_words() -> None:
    vcpu = vcpu_with_pmu(system(SHORT_EVENTS))
    vcpu.set_filter(0, 1, k.KVM_PMU_EVENT_DENY)
    assert vcpu.vm.record.filter_words == 16
