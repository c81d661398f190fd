"""The attributes of a vCPU's PMU: what each does, and each errno in KVM's order of checks (pmu-emul.c, vcpu.rst)."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
from errno import EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENXIO, EPERM

import pytest

from pmuvisor.arch.cores import Core, core
from pmuvisor.kvm.uapi import Vcpu
from pmuvisor.kvm.uapi import abi as k
from pmuvisor.kvm.vcpu import EMULATED, LAZY, PARTITIONED
from pmuvisor.kvm.vcpu import FIXED_COUNTERS_ONLY as FIXED_DESIGN

from .uapi_support import (
    ALLOW,
    BIG,
    DENY,
    FILTER,
    FIXED,
    INIT,
    IRQ,
    LITTLE,
    PARTITION,
    PMU,
    SET_NR_COUNTERS,
    SET_PMU,
    SHORT_EVENTS,
    give_vgic,
    idle,
    refused,
    run_guest,
    system,
    vcpu_with_pmu,
)

ALL = (IRQ, INIT, FILTER, SET_PMU, SET_NR_COUNTERS, FIXED, PARTITION)
WITH_VALUE = {IRQ: 23, FILTER: k.kvm_pmu_event_filter(nevents=1), SET_PMU: 8, SET_NR_COUNTERS: 2, PARTITION: 1}


def attribute(vcpu: Vcpu, request: int, attr: int, addr: int = 0, group: int = k.KVM_ARM_VCPU_PMU_V3_CTRL) -> None:
    vcpu.ioctl(request, k.kvm_device_attr(group=group, attr=attr, addr=addr))


def second_vcpu_after_a_run() -> Vcpu:
    """Return a vCPU whose PMU is not initialised, of a VM that has run."""
    first = vcpu_with_pmu()
    other = first.vm.create_vcpu(1)
    other.init(*PMU)
    first.set_attr(INIT)
    run_guest(first, idle)
    return other


# ---- all of them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [k.KVM_SET_DEVICE_ATTR, k.KVM_GET_DEVICE_ATTR, k.KVM_HAS_DEVICE_ATTR])
@pytest.mark.parametrize("arg", [None, 0, 0x1234, bytes(23)])
def test_an_attribute_that_is_no_memory_is_efault(request_: int, arg: object) -> None:
    with refused(EFAULT):
        vcpu_with_pmu().ioctl(request_, arg)


@pytest.mark.parametrize("request_", [k.KVM_SET_DEVICE_ATTR, k.KVM_GET_DEVICE_ATTR, k.KVM_HAS_DEVICE_ATTR])
def test_another_group_of_attributes_is_enxio(request_: int) -> None:
    with refused(ENXIO):
        attribute(vcpu_with_pmu(), request_, IRQ, group=1)


@pytest.mark.parametrize("attr", ALL)
def test_set_without_a_pmu_is_enodev_before_all_else(attr: int) -> None:
    vcpu = system().create_vm().create_vcpu(0)
    for _ in range(2):
        with refused(ENODEV):
            attribute(vcpu, k.KVM_SET_DEVICE_ATTR, attr)
        vcpu.init(k.KVM_ARM_VCPU_PSCI_0_2)


@pytest.mark.parametrize("attr", [*ALL, 7])
def test_set_after_init_is_ebusy_before_the_attribute_is_looked_at(attr: int) -> None:
    vcpu = vcpu_with_pmu()
    vcpu.set_attr(INIT)
    with refused(EBUSY):
        attribute(vcpu, k.KVM_SET_DEVICE_ATTR, attr)


def test_an_unknown_attribute_is_enxio() -> None:
    vcpu = vcpu_with_pmu()
    for request in (k.KVM_SET_DEVICE_ATTR, k.KVM_GET_DEVICE_ATTR, k.KVM_HAS_DEVICE_ATTR):
        with refused(ENXIO):
            attribute(vcpu, request, 7)


@pytest.mark.parametrize("attr", [INIT, FILTER, SET_PMU, SET_NR_COUNTERS])
def test_what_can_only_be_set_is_enxio_to_get(attr: int) -> None:
    with refused(ENXIO):
        vcpu_with_pmu().get_attr(attr)


@pytest.mark.parametrize("attr", ALL)
def test_has_tells_of_all_attributes_of_a_vcpu_with_a_pmu(attr: int) -> None:
    assert vcpu_with_pmu().has_attr(attr)


@pytest.mark.parametrize("attr", ALL)
def test_has_without_a_pmu_is_enxio(attr: int) -> None:
    vcpu = system().create_vm().create_vcpu(0)
    vcpu.init(k.KVM_ARM_VCPU_PSCI_0_2)
    with refused(ENXIO):
        attribute(vcpu, k.KVM_HAS_DEVICE_ATTR, attr)


@pytest.mark.parametrize("attr", WITH_VALUE)
@pytest.mark.parametrize("addr", [0, 0x1234])
def test_a_value_that_is_nowhere_is_efault(attr: int, addr: int) -> None:
    vcpu = vcpu_with_pmu()
    give_vgic(vcpu.vm)
    with refused(EFAULT):
        attribute(vcpu, k.KVM_SET_DEVICE_ATTR, attr, addr)


def test_a_value_whose_end_is_nowhere_is_efault() -> None:
    vcpu = vcpu_with_pmu()
    with vcpu.memory.mapped(bytes(7)) as addr, refused(EFAULT):
        attribute(vcpu, k.KVM_SET_DEVICE_ATTR, FILTER, addr)


def test_features_are_the_vms_so_that_a_vcpu_without_init_has_a_pmu_too() -> None:
    first = vcpu_with_pmu()
    second = first.vm.create_vcpu(1)
    second.set_attr(SET_NR_COUNTERS, 1)
    assert first.vm.record.nr_counters == 1


# ---- IRQ --------------------------------------------------------------------------------------------------


def test_irq_without_a_vgic_is_einval_before_the_value_is_read() -> None:
    with refused(EINVAL):
        attribute(vcpu_with_pmu(), k.KVM_SET_DEVICE_ATTR, IRQ, 0x1234)


@pytest.mark.parametrize("irq", [-1, 0, 15, 1020, 1 << 30])
def test_irq_that_is_neither_ppi_nor_spi_is_einval(irq: int) -> None:
    vcpu = vcpu_with_pmu()
    give_vgic(vcpu.vm)
    with refused(EINVAL):
        vcpu.set_attr(IRQ, irq)


@pytest.mark.parametrize("irq", [16, 31, 32, 1019])
def test_irq_is_read_back(irq: int) -> None:
    vcpu = vcpu_with_pmu()
    give_vgic(vcpu.vm, init=False)
    vcpu.set_attr(IRQ, irq)
    assert vcpu.get_attr(IRQ) == irq


def two_vcpus() -> tuple[Vcpu, Vcpu]:
    first = vcpu_with_pmu()
    second = first.vm.create_vcpu(1)
    second.init(*PMU)
    give_vgic(first.vm)
    return first, second


def test_irq_of_another_ppi_than_the_other_vcpus_is_einval() -> None:
    first, second = two_vcpus()
    first.set_attr(IRQ, 23)
    with refused(EINVAL):
        second.set_attr(IRQ, 22)
    second.set_attr(IRQ, 23)


def test_irq_of_an_spi_that_another_vcpu_has_is_einval() -> None:
    first, second = two_vcpus()
    first.set_attr(IRQ, 40)
    with refused(EINVAL):
        second.set_attr(IRQ, 40)
    second.set_attr(IRQ, 41)


def test_irq_set_twice_is_ebusy_and_to_another_ppi_einval() -> None:
    first, _ = two_vcpus()
    first.set_attr(IRQ, 23)
    with refused(EBUSY):
        first.set_attr(IRQ, 23)
    with refused(EINVAL):
        first.set_attr(IRQ, 24)


def test_irq_of_an_spi_set_twice_is_einval_as_it_is_in_use() -> None:
    first, _ = two_vcpus()
    first.set_attr(IRQ, 40)
    with refused(EINVAL):
        first.set_attr(IRQ, 40)
    with refused(EBUSY):
        first.set_attr(IRQ, 41)


def test_get_irq_without_a_vgic_is_einval_even_without_a_pmu() -> None:
    vcpu = system().create_vm().create_vcpu(0)
    with refused(EINVAL):
        vcpu.get_attr(IRQ)


def test_get_irq_without_a_pmu_is_enodev() -> None:
    vcpu = system().create_vm().create_vcpu(0)
    give_vgic(vcpu.vm)
    with refused(ENODEV):
        vcpu.get_attr(IRQ)


def test_get_irq_before_it_is_set_is_enxio() -> None:
    vcpu = vcpu_with_pmu()
    give_vgic(vcpu.vm)
    with refused(ENXIO):
        vcpu.get_attr(IRQ)


def test_get_irq_into_nowhere_is_efault() -> None:
    vcpu = vcpu_with_pmu()
    give_vgic(vcpu.vm)
    vcpu.set_attr(IRQ, 23)
    with refused(EFAULT):
        attribute(vcpu, k.KVM_GET_DEVICE_ATTR, IRQ, 0)
    with vcpu.memory.mapped(b"four") as constant, refused(EFAULT):
        attribute(vcpu, k.KVM_GET_DEVICE_ATTR, IRQ, constant)


# ---- INIT -------------------------------------------------------------------------------------------------


def test_init_before_the_vgic_is_initialised_is_enodev() -> None:
    vcpu = vcpu_with_pmu()
    give_vgic(vcpu.vm, init=False)
    with refused(ENODEV):
        vcpu.set_attr(INIT)


def test_init_without_an_interrupt_is_enxio() -> None:
    vcpu = vcpu_with_pmu()
    give_vgic(vcpu.vm)
    with refused(ENXIO):
        vcpu.set_attr(INIT)


def test_init_with_an_spi_that_the_vgic_has_not_is_einval() -> None:
    vcpu = vcpu_with_pmu()
    give_vgic(vcpu.vm, nr_irqs=64)
    vcpu.set_attr(IRQ, 64)
    with refused(EINVAL):
        vcpu.set_attr(INIT)


def test_init_with_an_interrupt_that_has_an_owner_is_eexist() -> None:
    vcpu = vcpu_with_pmu()
    vgic = give_vgic(vcpu.vm)
    vgic.set_owner(0, 40, "another device")
    vcpu.set_attr(IRQ, 40)
    with refused(EEXIST):
        vcpu.set_attr(INIT)


def test_init_twice_is_ebusy() -> None:
    vcpu = vcpu_with_pmu()
    vcpu.set_attr(INIT)
    with refused(EBUSY):
        vcpu.set_attr(INIT)


def test_each_vcpu_owns_its_own_ppi() -> None:
    for vcpu in two_vcpus():
        vcpu.set_attr(IRQ, 23)
        vcpu.set_attr(INIT)
        assert vcpu.pmu_created


# ---- FILTER -----------------------------------------------------------------------------------------------


def denied(vcpu: Vcpu) -> set[int]:
    record = vcpu.vm.record
    return {event for event in range(64 * record.filter_words) if record.denied[event >> 6] >> (event & 63) & 1}


def test_the_first_filter_decides_what_is_done_with_the_rest() -> None:
    vcpu = vcpu_with_pmu()
    vcpu.set_filter(0x10, 4, DENY)
    assert denied(vcpu) == {0x10, 0x11, 0x12, 0x13}
    other = vcpu_with_pmu()
    other.set_filter(0x10, 4, ALLOW)
    assert denied(other) == set(range(0x1_0000)) - {0x10, 0x11, 0x12, 0x13}


def test_an_opposite_filter_of_the_same_range_does_not_undo_the_default() -> None:
    vcpu = vcpu_with_pmu()
    vcpu.set_filter(0, 10, ALLOW)
    vcpu.set_filter(0, 10, DENY)
    assert denied(vcpu) == set(range(0x1_0000))


def test_a_filter_may_cross_words_and_be_empty() -> None:
    vcpu = vcpu_with_pmu()
    vcpu.set_filter(5, 0, DENY)
    assert denied(vcpu) == set()
    vcpu.set_filter(60, 70, DENY)
    vcpu.set_filter(64, 64, ALLOW)
    assert denied(vcpu) == {60, 61, 62, 63, 128, 129}


@pytest.mark.parametrize(("of", "events"), [(SHORT_EVENTS, 1 << 10), (BIG, 1 << 16)])
def test_a_filter_beyond_the_events_of_the_pmu_is_einval(of: str | Core, events: int) -> None:
    vcpu = vcpu_with_pmu(system(of))
    with refused(EINVAL):
        vcpu.set_filter(events - 1, 2, DENY)
    vcpu.set_filter(events - 1, 1, DENY)
    assert denied(vcpu) == {events - 1}


def test_a_filter_that_neither_allows_nor_denies_is_einval() -> None:
    with refused(EINVAL):
        vcpu_with_pmu().set_filter(0, 1, 2)


def test_a_filter_after_a_run_is_ebusy_and_einval_comes_before() -> None:
    vcpu = second_vcpu_after_a_run()
    with refused(EINVAL):
        vcpu.set_filter(0, 1, 2)
    with refused(EBUSY):
        vcpu.set_filter(0, 1, DENY)


# ---- SET_PMU ----------------------------------------------------------------------------------------------


def hetero() -> Vcpu:
    """Return a vCPU on a host with two little CPUs, of the PMU of type 8, and two big ones, of type 9."""
    return vcpu_with_pmu(system(LITTLE, LITTLE, BIG, BIG))


def test_a_vm_gets_the_pmu_of_the_cpu_where_it_is_initialised_and_may_run_everywhere() -> None:
    kvm = system(LITTLE, LITTLE, BIG, BIG)
    kvm.cpu = 3
    vm = vcpu_with_pmu(kvm).vm
    assert vm.pmu is not None
    assert (vm.pmu.type, vm.supported_cpus) == (9, 0b1111)


def test_set_pmu_ties_the_vm_to_the_cpus_of_that_pmu() -> None:
    vcpu = hetero()
    vcpu.set_attr(SET_PMU, 9)
    assert (vcpu.vm.supported_cpus, vcpu.vm.record.pmu) == (0b1100, 1)


def test_set_pmu_of_an_unknown_type_is_enxio() -> None:
    with refused(ENXIO):
        hetero().set_attr(SET_PMU, 10)


def test_set_pmu_of_another_pmu_after_a_filter_is_ebusy() -> None:
    vcpu = hetero()
    vcpu.set_filter(0, 1, DENY)
    vcpu.set_attr(SET_PMU, 8)
    with refused(EBUSY):
        vcpu.set_attr(SET_PMU, 9)


def test_set_pmu_after_a_run_is_ebusy_and_enxio_comes_before() -> None:
    vcpu = second_vcpu_after_a_run()
    with refused(ENXIO):
        vcpu.set_attr(SET_PMU, 10)
    with refused(EBUSY):
        vcpu.set_attr(SET_PMU, 8)


def test_set_pmu_cancels_a_number_of_counters() -> None:
    vcpu = hetero()
    vcpu.set_attr(SET_NR_COUNTERS, 2)
    vcpu.set_attr(SET_PMU, 9)
    assert vcpu.vm.record.nr_counters == 6


# ---- SET_NR_COUNTERS --------------------------------------------------------------------------------------


def test_a_number_of_counters_that_the_pmu_has_is_the_guests() -> None:
    vcpu = vcpu_with_pmu()
    for n in (0, 6, 3):
        vcpu.set_attr(SET_NR_COUNTERS, n)
        assert vcpu.get_one_reg(k.sys_reg_id_of("PMCR_EL0")) >> 11 & 31 == n


@pytest.mark.parametrize("n", [7, 32, 0xFFFF_FFFF])
def test_more_counters_than_the_pmu_has_is_einval(n: int) -> None:
    with refused(EINVAL):
        vcpu_with_pmu().set_attr(SET_NR_COUNTERS, n)


def test_a_number_of_counters_after_a_run_is_ebusy_and_einval_comes_before() -> None:
    vcpu = second_vcpu_after_a_run()
    with refused(EINVAL):
        vcpu.set_attr(SET_NR_COUNTERS, 7)
    with refused(EBUSY):
        vcpu.set_attr(SET_NR_COUNTERS, 2)


def test_counters_of_a_vm_that_has_no_pmu_of_the_hosts_are_einval() -> None:
    # KVM_ARM_VCPU_INIT on a CPU without a PMU leaves the feature set, and nothing to have counters of.
    kvm = system()
    pmus, kvm.pmus = kvm.pmus, []
    vcpu = kvm.create_vm().create_vcpu(0)
    with refused(ENODEV):
        vcpu.init(*PMU)
    for attr in (SET_NR_COUNTERS, PARTITION):
        with refused(EINVAL):
            vcpu.set_attr(attr, 1)
    vcpu.set_attr(FIXED)
    vcpu.set_attr(SET_NR_COUNTERS, 0)
    kvm.pmus = pmus
    vcpu.init(*PMU)
    assert (vcpu.get_attr(FIXED), vcpu.vm.record.nr_counters) == (0, 0)


# ---- FIXED_COUNTERS_ONLY ----------------------------------------------------------------------------------


def test_fixed_counters_only_leaves_no_event_counters_and_every_cpu() -> None:
    vcpu = hetero()
    vcpu.set_attr(SET_PMU, 9)
    vcpu.set_attr(FIXED)
    vm = vcpu.vm
    assert (vm.record.design, vm.record.nr_counters, vm.supported_cpus) == (FIXED_DESIGN, 0, 0b1111)
    assert vcpu.get_one_reg(k.sys_reg_id_of("PMCR_EL0")) >> 11 & 31 == 0


def test_get_fixed_counters_only_is_enxio_until_it_is_set() -> None:
    vcpu = hetero()
    with refused(ENXIO):
        vcpu.get_attr(FIXED)
    vcpu.set_attr(FIXED)
    assert vcpu.get_attr(FIXED) == 0
    attribute(vcpu, k.KVM_GET_DEVICE_ATTR, FIXED, 0)


def test_fixed_counters_only_for_the_first_time_after_a_filter_is_ebusy() -> None:
    vcpu = hetero()
    vcpu.set_filter(0, 1, DENY)
    with refused(EBUSY):
        vcpu.set_attr(FIXED)


def test_fixed_counters_only_then_a_filter_then_fixed_counters_only_again_is_fine() -> None:
    vcpu = hetero()
    vcpu.set_attr(FIXED)
    vcpu.set_filter(0x11, 1, DENY)
    vcpu.set_attr(FIXED)
    assert vcpu.get_attr(FIXED) == 0


def test_fixed_counters_only_after_a_run_is_ebusy() -> None:
    with refused(EBUSY):
        second_vcpu_after_a_run().set_attr(FIXED)


def test_the_last_of_set_pmu_and_fixed_counters_only_wins() -> None:
    vcpu = hetero()
    vcpu.set_attr(FIXED)
    vcpu.set_attr(SET_PMU, 8)
    assert (vcpu.vm.record.design, vcpu.vm.record.nr_counters, vcpu.vm.supported_cpus) == (EMULATED, 6, 0b0011)
    with refused(ENXIO):
        vcpu.get_attr(FIXED)
    vcpu.set_attr(FIXED)
    assert vcpu.get_attr(FIXED) == 0


def test_counters_of_a_pmu_that_has_none_are_einval() -> None:
    vcpu = hetero()
    vcpu.set_attr(FIXED)
    vcpu.set_attr(SET_NR_COUNTERS, 0)
    with refused(EINVAL):
        vcpu.set_attr(SET_NR_COUNTERS, 1)


# ---- PARTITION, which is ours -----------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "design"), [(1, PARTITIONED), (3, LAZY), (0, EMULATED)])
def test_partition_says_which_design_and_is_read_back(flags: int, design: int) -> None:
    vcpu = vcpu_with_pmu()
    vcpu.set_attr(PARTITION, 1)
    vcpu.set_attr(PARTITION, flags)
    assert (vcpu.vm.record.design, vcpu.get_attr(PARTITION)) == (design, flags)


def test_get_partition_without_a_pmu_is_enodev() -> None:
    with refused(ENODEV):
        system().create_vm().create_vcpu(0).get_attr(PARTITION)


def test_get_partition_into_nowhere_is_efault() -> None:
    with refused(EFAULT):
        attribute(vcpu_with_pmu(), k.KVM_GET_DEVICE_ATTR, PARTITION, 0)


@pytest.mark.parametrize("flags", [2, 4, 5, 0xFFFF_FFFF])
def test_partition_with_flags_that_do_not_exist_is_einval(flags: int) -> None:
    with refused(EINVAL):
        vcpu_with_pmu(system(reserved_host_counters=None)).set_attr(PARTITION, flags)


@pytest.mark.parametrize("reserved", [None, 7])
def test_partition_on_a_host_that_reserves_nothing_or_too_much_is_eperm(reserved: int | None) -> None:
    with refused(EPERM):
        vcpu_with_pmu(system(reserved_host_counters=reserved)).set_attr(PARTITION, 1)


def test_partition_after_a_run_is_ebusy() -> None:
    with refused(EBUSY):
        second_vcpu_after_a_run().set_attr(PARTITION, 1)


def test_partition_of_fixed_counters_only_is_einval() -> None:
    vcpu = vcpu_with_pmu()
    vcpu.set_attr(FIXED)
    with refused(EINVAL):
        vcpu.set_attr(PARTITION, 1)
    vcpu.set_attr(PARTITION, 0)
    assert vcpu.get_attr(FIXED) == 0


def test_partition_leaves_the_host_what_its_boot_parameter_reserves() -> None:
    vcpu = vcpu_with_pmu(system(reserved_host_counters=2))
    vcpu.set_attr(PARTITION, 1)
    assert vcpu.vm.record.nr_counters == 4
    with refused(EINVAL):
        vcpu.set_attr(SET_NR_COUNTERS, 5)
    vcpu.set_attr(SET_NR_COUNTERS, 4)


def test_partition_of_more_counters_than_guests_may_have_is_einval_and_changes_nothing() -> None:
    vcpu = vcpu_with_pmu(system(reserved_host_counters=2))
    vcpu.set_attr(SET_NR_COUNTERS, 5)
    with refused(EINVAL):
        vcpu.set_attr(PARTITION, 1)
    assert (vcpu.vm.record.design, vcpu.vm.record.nr_counters) == (EMULATED, 5)


def test_partition_of_no_counters_where_hpmn_cannot_be_zero_is_einval() -> None:
    # Cortex-A76 has no FEAT_HPMN0: MDCR_EL2.HPMN = 0 is CONSTRAINED UNPREDICTABLE there. An emulated PMU does not care.
    vcpu = vcpu_with_pmu()
    vcpu.set_attr(SET_NR_COUNTERS, 0)
    with refused(EINVAL):
        vcpu.set_attr(PARTITION, 1)
    vcpu.set_attr(SET_NR_COUNTERS, 1)
    vcpu.set_attr(PARTITION, 1)
    with refused(EINVAL):
        vcpu.set_attr(SET_NR_COUNTERS, 0)


def test_a_partition_is_on_the_cpus_of_its_pmu_only() -> None:
    vcpu = hetero()
    vcpu.set_attr(PARTITION, 1)
    assert vcpu.vm.supported_cpus == 0b0011


def test_a_partition_that_is_undone_leaves_nothing_behind() -> None:
    for pmu, cpus in ((None, 0b1111), (9, 0b1100)):
        vcpu = vcpu_with_pmu(system(LITTLE, LITTLE, BIG, BIG, reserved_host_counters=2))
        if pmu is not None:
            vcpu.set_attr(SET_PMU, pmu)
        vcpu.set_attr(PARTITION, 1)
        vcpu.set_attr(PARTITION, 0)
        assert (vcpu.vm.record.design, vcpu.vm.record.nr_counters, vcpu.vm.supported_cpus) == (EMULATED, 6, cpus)


def test_fixed_counters_only_undoes_a_partition_and_set_pmu_moves_it() -> None:
    vcpu = vcpu_with_pmu(system(LITTLE, LITTLE, BIG, BIG, reserved_host_counters=2))
    vcpu.set_attr(PARTITION, 3)
    vcpu.set_attr(SET_PMU, 9)
    assert (vcpu.get_attr(PARTITION), vcpu.vm.record.nr_counters, vcpu.vm.supported_cpus) == (3, 4, 0b1100)
    vcpu.set_attr(FIXED)
    assert vcpu.get_attr(PARTITION) == 0


def test_set_pmu_of_a_pmu_that_cannot_have_the_partition_is_refused_and_changes_nothing() -> None:
    small = dataclasses.replace(core(LITTLE), name="two counters", event_counters=2)
    for reserved, number in ((2, EINVAL), (3, EPERM)):
        vcpu = vcpu_with_pmu(system(BIG, small, reserved_host_counters=reserved))
        vcpu.set_attr(PARTITION, 1)
        with refused(number):
            vcpu.set_attr(SET_PMU, 9)
        assert (vcpu.vm.record.pmu, vcpu.vm.supported_cpus, vcpu.vm.record.nr_counters) == (0, 0b01, 6 - reserved)


# ---- what VMMs do -----------------------------------------------------------------------------------------


def test_a_vmm_looks_for_a_pmu_of_all_cpus_and_falls_back_to_fixed_counters_only() -> None:
    # As the QEMU series for FIXED_COUNTERS_ONLY does it: SET_PMU of each PMU, until one has every CPU.
    for names, expected in (((BIG, BIG), EMULATED), ((LITTLE, BIG), FIXED_DESIGN)):
        vcpu = vcpu_with_pmu(system(*names))
        kvm = vcpu.system
        for pmu in kvm.pmus:
            vcpu.set_attr(SET_PMU, pmu.type)
            if pmu.cpus == kvm.possible_cpus:
                break
        else:
            vcpu.set_attr(FIXED)
        assert (vcpu.vm.record.design, vcpu.vm.supported_cpus) == (expected, kvm.possible_cpus)


def test_a_vmm_may_try_fixed_counters_only_first() -> None:
    vcpu = hetero()
    vcpu.set_attr(FIXED)
    for type_ in (8, 9):
        vcpu.set_attr(SET_PMU, type_)
    vcpu.set_filter(0x11, 1, ALLOW)
    vcpu.set_attr(INIT)
    assert (vcpu.vm.record.design, vcpu.vm.record.nr_counters, vcpu.vm.supported_cpus) == (EMULATED, 6, 0b1100)


def test_attributes_in_any_legal_order_end_alike() -> None:
    # What SET_PMU cancels, or a filter keeps it from, comes after it.
    steps = {"pmu": (SET_PMU, 9), "partition": (PARTITION, 1), "count": (SET_NR_COUNTERS, 3), "filter": (FILTER, None)}
    ends = []
    for order in itertools.permutations(steps):
        if order.index("pmu") < min(order.index("count"), order.index("filter")):
            vcpu = hetero()
            for attr, value in (steps[name] for name in order):
                vcpu.set_attr(attr, k.kvm_pmu_event_filter(base_event=3, nevents=9) if value is None else value)
            ends.append((vcpu.vm.record, vcpu.vm.supported_cpus))
    assert len(ends) == 8
    assert all(end == ends[0] for end in ends)


def test_the_low_level_ioctl_takes_an_address_as_well_as_an_object() -> None:
    vcpu = vcpu_with_pmu()
    value = ctypes.c_uint32(4)
    wanted = k.kvm_device_attr(attr=SET_NR_COUNTERS, addr=vcpu.memory.map(value))
    assert vcpu.ioctl(k.KVM_SET_DEVICE_ATTR, vcpu.memory.map(wanted)) == 0
    assert vcpu.vm.record.nr_counters == 4
