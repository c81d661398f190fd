"""SPE for a VMM: the feature, its attributes and registers, each errno in the series' order, and guests that profile.

The numbers of PMBIDR_EL1.MaxBuffSize are the Arm ARM's, by hand.
"""

from __future__ import annotations

import dataclasses
import functools
from errno import E2BIG, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENXIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmuvisor.arch.cores import core
from pmuvisor.kvm.uapi import Execute, Preempt, Read, Signal, System, Vcpu, Write
from pmuvisor.kvm.uapi import abi as k
from pmuvisor.kvm.uapi.run import Guest

from .uapi_support import (
    BASE,
    BIG,
    INIT,
    IRQ,
    LITTLE,
    PERIOD,
    PMU,
    PMU_AND_SPE,
    SPE_CORE,
    SPE_INIT,
    SPE_IRQ,
    SPE_MAX,
    give_vgic,
    idle,
    profile,
    ready_with_spe,
    refused,
    run_guest,
    set_spe,
    system,
    vcpu_with_pmu,
    vcpu_with_spe,
)

GROUP = k.KVM_ARM_VCPU_SPE_CTRL
REQUESTS = (k.KVM_SET_DEVICE_ATTR, k.KVM_GET_DEVICE_ATTR, k.KVM_HAS_DEVICE_ATTR)
ALL = (SPE_IRQ, SPE_MAX, SPE_INIT)
PAGE = 4096
FULL = (1 << 64) - 1
S = 1 << 17
"""PMBSR_EL1.S."""


def attribute(vcpu: Vcpu, request: int, attr: int, addr: int = 0) -> None:
    vcpu.ioctl(request, k.kvm_device_attr(group=GROUP, attr=attr, addr=addr))


def read(vcpu: Vcpu, name: str) -> int:
    return vcpu.get_one_reg(k.sys_reg_id_of(name))


def write(vcpu: Vcpu, name: str, value: int) -> None:
    vcpu.set_one_reg(k.sys_reg_id_of(name), value)


# ---- the feature ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "offered"),
    [
        ((SPE_CORE, SPE_CORE), 1),
        ((SPE_CORE, "cortex-a78"), 1),
        (("max",), 1),
        ((BIG, BIG), 0),
        ((SPE_CORE, BIG), 0),
        ((SPE_CORE, "neoverse-n2"), 0),
        (("max", dataclasses.replace(core("max"), name="max without FDS", spe_fds=False)), 0),
    ],
)
def test_spe_is_offered_where_all_cpus_have_the_same(cores: tuple[str, ...], offered: int) -> None:
    kvm = system(*cores)
    assert kvm.ioctl(k.KVM_CHECK_EXTENSION, k.KVM_CAP_ARM_SPE) == offered
    assert kvm.create_vm().ioctl(k.KVM_CHECK_EXTENSION, k.KVM_CAP_ARM_SPE) == offered


@pytest.mark.parametrize("cores", [(BIG,), (SPE_CORE, BIG), (SPE_CORE, "neoverse-n2")])
def test_vcpu_init_with_spe_where_the_host_has_none_for_guests_is_einval(cores: tuple[str, ...]) -> None:
    with refused(EINVAL):
        system(*cores).create_vm().create_vcpu(0).init(k.KVM_ARM_VCPU_PSCI_0_2, k.KVM_ARM_VCPU_SPE)


def test_spe_is_of_all_vcpus_or_of_none_einval() -> None:
    vcpu = vcpu_with_spe(vgic=False)
    other = vcpu.vm.create_vcpu(1)
    with refused(EINVAL):
        other.init(*PMU)
    other.init(*PMU_AND_SPE)


def test_spe_needs_no_pmu_and_its_buffers_are_pinned() -> None:
    vcpu = system(SPE_CORE).create_vm().create_vcpu(0)
    vcpu.init(k.KVM_ARM_VCPU_SPE)
    record = vcpu.vm.record
    assert (record.spe, record.spe_pinned, record.spe_max_buffer) == (1, 1, 0)
    give_vgic(vcpu.vm)
    set_spe(vcpu, SPE_IRQ, 21)
    set_spe(vcpu, SPE_INIT)
    assert run_guest(vcpu, idle) == k.KVM_EXIT_SYSTEM_EVENT


def test_a_vm_without_the_feature_has_no_spe_and_neither_has_the_next_in_its_place() -> None:
    assert vcpu_with_pmu(system(SPE_CORE)).vm.record.spe == 0
    kvm = system(SPE_CORE)
    ready_with_spe(kvm, max_buffer=PAGE).vm.close()
    record = vcpu_with_pmu(kvm).vm.record
    assert (record.spe, record.spe_pinned, record.spe_max_buffer) == (0, 0, 0)


# ---- all attributes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("attr", [*ALL, 99])
def test_attributes_of_spe_without_the_feature_are_enxio(request_: int, attr: int) -> None:
    bare = system(SPE_CORE).create_vm().create_vcpu(0)
    without = vcpu_with_pmu(system(SPE_CORE))
    give_vgic(without.vm)
    for vcpu in (bare, without):
        with refused(ENXIO):
            attribute(vcpu, request_, attr)


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("attr", ALL)
def test_attributes_of_spe_without_a_vgic_are_enxio_before_the_value_is_read(request_: int, attr: int) -> None:
    with refused(ENXIO):
        attribute(vcpu_with_spe(vgic=False), request_, attr)


@pytest.mark.parametrize("attr", [*ALL, 99])
def test_set_after_spe_init_is_ebusy_before_the_attribute_is_looked_at(attr: int) -> None:
    with refused(EBUSY):
        attribute(ready_with_spe(), k.KVM_SET_DEVICE_ATTR, attr)


@pytest.mark.parametrize("request_", REQUESTS)
def test_an_unknown_attribute_of_spe_is_enxio(request_: int) -> None:
    with refused(ENXIO):
        attribute(vcpu_with_spe(), request_, 3)


@pytest.mark.parametrize("attr", [SPE_IRQ, SPE_MAX])
@pytest.mark.parametrize("addr", [0, 0x1234])
def test_a_value_of_spe_that_is_nowhere_is_efault(attr: int, addr: int) -> None:
    with refused(EFAULT):
        attribute(vcpu_with_spe(), k.KVM_SET_DEVICE_ATTR, attr, addr)


def test_every_attribute_of_spe_is_there_before_and_after_init() -> None:
    for vcpu in (vcpu_with_spe(), ready_with_spe()):
        assert [vcpu.has_attr(attr, group=GROUP) for attr in (*ALL, 3)] == [True, True, True, False]


def test_spe_init_can_only_be_set_enxio() -> None:
    with refused(ENXIO):
        attribute(ready_with_spe(), k.KVM_GET_DEVICE_ATTR, SPE_INIT)


@pytest.mark.parametrize("attr", [SPE_IRQ, SPE_MAX])
def test_get_of_spe_into_nowhere_is_efault(attr: int) -> None:
    with refused(EFAULT):
        attribute(ready_with_spe(), k.KVM_GET_DEVICE_ATTR, attr, 0x1234)


# ---- IRQ --------------------------------------------------------------------------------------------------


def test_the_interrupt_of_spe_set_twice_is_ebusy_before_the_value_is_read() -> None:
    vcpu = vcpu_with_spe()
    set_spe(vcpu, SPE_IRQ, 21)
    for _ in range(2):
        with refused(EBUSY):
            attribute(vcpu, k.KVM_SET_DEVICE_ATTR, SPE_IRQ)
    assert vcpu.get_attr(SPE_IRQ, group=GROUP) == 21


@pytest.mark.parametrize("irq", [0, 15, 32, 1019, 1020, -1])
def test_an_interrupt_of_spe_that_is_no_ppi_is_einval(irq: int) -> None:
    with refused(EINVAL):
        set_spe(vcpu_with_spe(), SPE_IRQ, irq)


def test_an_interrupt_of_spe_that_is_not_the_other_vcpus_is_einval() -> None:
    first = vcpu_with_spe(vgic=False)
    second = first.vm.create_vcpu(1)
    second.init(*PMU_AND_SPE)
    give_vgic(first.vm)
    set_spe(first, SPE_IRQ, 21)
    with refused(EINVAL):
        set_spe(second, SPE_IRQ, 22)
    set_spe(second, SPE_IRQ, 21)


def test_the_interrupt_of_spe_before_it_is_set_is_enxio() -> None:
    with refused(ENXIO):
        attribute(vcpu_with_spe(), k.KVM_GET_DEVICE_ATTR, SPE_IRQ)


# ---- MAX_BUFFER_SIZE --------------------------------------------------------------------------------------

SIZES = {
    PAGE: 1,
    511 * PAGE: 511,
    512 * PAGE: 1 << 9,
    1023 * PAGE: 1 << 9 | 511,
    1024 * PAGE: 2 << 9,
    1026 * PAGE: 2 << 9 | 1,
    1 << 51: 31 << 9,
    1023 << 42: 31 << 9 | 511,
}
"""The field of a number of bytes: M pages up to 511 of them, from there on 1.M by powers of two."""


@pytest.mark.parametrize("size", SIZES)
def test_the_largest_buffer_is_the_vms_and_pmbidr_says_it(size: int) -> None:
    vcpu = vcpu_with_spe()
    set_spe(vcpu, SPE_MAX, size)
    assert vcpu.get_attr(SPE_MAX, group=GROUP) == vcpu.vm.record.spe_max_buffer == size
    assert read(vcpu, "PMBIDR_EL1") >> 32 == SIZES[size]


def test_there_is_no_largest_buffer_unless_it_is_set() -> None:
    vcpu = vcpu_with_spe()
    for _ in range(2):
        assert (vcpu.get_attr(SPE_MAX, group=GROUP), read(vcpu, "PMBIDR_EL1") >> 32) == (0, 0)
        set_spe(vcpu, SPE_MAX, PAGE)
        set_spe(vcpu, SPE_MAX, 0)


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE + 1, 1025 * PAGE, (1 << 51) + PAGE, 1 << 52, 1 << 63, FULL & -PAGE])
def test_a_largest_buffer_that_pmbidr_cannot_say_is_einval(size: int) -> None:
    vcpu = vcpu_with_spe()
    with refused(EINVAL):
        set_spe(vcpu, SPE_MAX, size)
    assert vcpu.vm.record.spe_max_buffer == 0


def test_another_largest_buffer_after_some_vcpus_init_is_ebusy_and_einval_comes_before() -> None:
    first = vcpu_with_spe(vgic=False)
    second = first.vm.create_vcpu(1)
    second.init(*PMU_AND_SPE)
    give_vgic(first.vm)
    set_spe(second, SPE_MAX, 2 * PAGE)
    set_spe(first, SPE_IRQ, 21)
    set_spe(first, SPE_INIT)
    set_spe(second, SPE_MAX, 2 * PAGE)
    with refused(EBUSY):
        set_spe(second, SPE_MAX, PAGE)
    with refused(EINVAL):
        set_spe(second, SPE_MAX, 1)
    assert first.get_attr(SPE_MAX, group=GROUP) == 2 * PAGE


# ---- INIT -------------------------------------------------------------------------------------------------


def test_spe_init_without_an_interrupt_is_enxio() -> None:
    with refused(ENXIO):
        set_spe(vcpu_with_spe(), SPE_INIT)


def test_spe_init_before_the_vgic_is_initialised_is_enxio() -> None:
    vcpu = vcpu_with_spe(init=False)
    set_spe(vcpu, SPE_IRQ, 21)
    with refused(ENXIO):
        set_spe(vcpu, SPE_INIT)
    assert vcpu.vm.vgic is not None
    vcpu.vm.vgic.init()
    set_spe(vcpu, SPE_INIT)


def test_spe_init_with_the_interrupt_of_the_pmu_is_enxio() -> None:
    vcpu = vcpu_with_spe()
    vcpu.set_attr(IRQ, 23)
    vcpu.set_attr(INIT)
    set_spe(vcpu, SPE_IRQ, 23)
    with refused(ENXIO):
        set_spe(vcpu, SPE_INIT)


def test_pmu_init_with_the_interrupt_of_spe_is_eexist() -> None:
    vcpu = vcpu_with_spe()
    set_spe(vcpu, SPE_IRQ, 23)
    set_spe(vcpu, SPE_INIT)
    vcpu.set_attr(IRQ, 23)
    with refused(EEXIST):
        vcpu.set_attr(INIT)


def test_spe_init_twice_is_ebusy() -> None:
    with refused(EBUSY):
        set_spe(ready_with_spe(), SPE_INIT)


# ---- KVM_RUN ----------------------------------------------------------------------------------------------


def test_run_before_spe_init_is_einval_and_can_be_tried_again() -> None:
    vcpu = vcpu_with_spe()
    vcpu.set_attr(IRQ, 23)
    vcpu.set_attr(INIT)
    with refused(EINVAL):
        vcpu.run()
    set_spe(vcpu, SPE_IRQ, 21)
    set_spe(vcpu, SPE_MAX, PAGE)
    set_spe(vcpu, SPE_INIT)
    assert run_guest(vcpu, idle) == k.KVM_EXIT_SYSTEM_EVENT


def test_spe_without_a_vgic_never_runs_einval() -> None:
    vcpu = vcpu_with_spe(vgic=False)
    vcpu.set_attr(INIT)
    with refused(EINVAL):
        vcpu.run()
    assert not vcpu.vm.ran_once


def test_run_with_a_timers_ppi_for_spe_is_einval() -> None:
    vcpu = vcpu_with_spe()
    vcpu.set_attr(IRQ, 23)
    vcpu.set_attr(INIT)
    set_spe(vcpu, SPE_IRQ, 27)
    set_spe(vcpu, SPE_INIT)
    with refused(EINVAL):
        vcpu.run()


def test_a_cpu_that_the_vms_pmu_excludes_keeps_its_host_profiling() -> None:
    kvm = system(SPE_CORE, "cortex-a78")
    vcpu = vcpu_with_spe(kvm)
    vcpu.set_attr(k.KVM_ARM_VCPU_PMU_V3_SET_PMU, kvm.pmus[0].type)
    set_spe(vcpu, SPE_IRQ, 21)
    set_spe(vcpu, SPE_INIT)
    vcpu.set_attr(IRQ, 23)
    vcpu.set_attr(INIT)
    kvm.cpu = 1
    spu = kvm.world.host.cpus[1].spu
    spu.pmscr_el2, spu.pmblimitr, spu.pmbptr = 1, 0x8000_0001, 0x7000_0000
    assert run_guest(vcpu, idle) == k.KVM_EXIT_FAIL_ENTRY
    assert (spu.pmscr_el2, spu.pmblimitr, spu.pmbptr, vcpu.record.swapped) == (1, 0x8000_0001, 0x7000_0000, 0)


# ---- registers --------------------------------------------------------------------------------------------

SAMPLING = ["PMSCR_EL1", "PMSICR_EL1", "PMSIRR_EL1", "PMSFCR_EL1", "PMSEVFR_EL1", "PMSLATFR_EL1", "PMSIDR_EL1"]
BUFFER = ["PMBLIMITR_EL1", "PMBPTR_EL1", "PMBSR_EL1", "PMBIDR_EL1"]


def names_of_spe(vcpu: Vcpu) -> list[int]:
    without = set(vcpu_with_pmu(system(SPE_CORE)).reg_list())
    return [number for number in vcpu.reg_list() if number not in without]


def test_the_registers_of_spe_are_listed_after_the_id_register_and_before_the_pmus() -> None:
    ids = vcpu_with_spe().reg_list()
    assert ids == sorted(ids)
    assert ids[1 : 1 + len(SAMPLING + BUFFER)] == [k.sys_reg_id_of(name) for name in SAMPLING + BUFFER]
    assert ids[1 + len(SAMPLING + BUFFER)] == k.sys_reg_id_of("PMINTENSET_EL1")


def test_registers_that_come_with_features_of_spe_are_listed_with_them() -> None:
    names = ["PMSCR_EL1", "PMSNEVFR_EL1", *SAMPLING[1:], "PMBLIMITR_EL1", "PMBPTR_EL1", "PMBSR_EL1", "PMSDSFR_EL1"]
    assert names_of_spe(vcpu_with_spe(system("max"))) == [k.sys_reg_id_of(name) for name in [*names, "PMBIDR_EL1"]]


@pytest.mark.parametrize("name", ["PMSCR_EL1", "PMSIDR_EL1", "PMBSR_EL1", "PMBIDR_EL1"])
def test_the_registers_of_spe_without_the_feature_are_enoent(name: str) -> None:
    vcpu = vcpu_with_pmu(system(SPE_CORE))
    with refused(ENOENT):
        read(vcpu, name)
    with refused(ENOENT):
        write(vcpu, name, 0)


@pytest.mark.parametrize("name", ["PMSNEVFR_EL1", "PMSDSFR_EL1", "PMSCR_EL2"])
def test_a_register_of_spe_that_the_host_has_not_is_enoent(name: str) -> None:
    with refused(ENOENT):
        read(vcpu_with_spe(), name)


def test_the_list_of_a_vcpu_with_spe_is_longer_e2big() -> None:
    head = k.kvm_reg_list(n=75)
    with refused(E2BIG):
        vcpu_with_spe().ioctl(k.KVM_GET_REG_LIST, head)
    assert head.n == 75 + len(SAMPLING + BUFFER)


KEPT = {
    SPE_CORE: {
        "PMSCR_EL1": 0x7B,
        "PMSICR_EL1": 0xFFFF_FFFF,
        "PMSIRR_EL1": 0xFFFF_FF01,
        "PMSFCR_EL1": 0x7_0007,
        "PMSEVFR_EL1": 0xAA,
        "PMSLATFR_EL1": 0xFFF,
        "PMBLIMITR_EL1": FULL ^ 0xFF8,
        "PMBPTR_EL1": FULL,
        "PMBSR_EL1": 0xFC0F_FFFF,
    },
    "max": {
        "PMSNEVFR_EL1": 0x8EA,
        "PMSEVFR_EL1": 0x8EA,
        "PMSDSFR_EL1": FULL,
        "PMSFCR_EL1": 0x7_001F,
        "PMBLIMITR_EL1": FULL ^ 0xFD8,
    },
}
"""What is left of all ones: fields that are not RES0, by the registers' pages."""


@pytest.mark.parametrize(("of", "name"), [(of, name) for of, names in KEPT.items() for name in names])
def test_a_register_of_spe_keeps_the_bits_that_the_core_has(of: str, name: str) -> None:
    vcpu = vcpu_with_spe(system(of))
    write(vcpu, name, FULL)
    assert read(vcpu, name) == KEPT[of][name]


@pytest.mark.parametrize("name", ["PMSIDR_EL1", "PMBIDR_EL1"])
def test_an_id_register_of_spe_can_be_written_as_it_is_and_else_is_einval(name: str) -> None:
    vcpu = vcpu_with_spe()
    value = read(vcpu, name)
    assert value != 0
    write(vcpu, name, value)
    for other in (0, value ^ 1, value | 1 << 63):
        with refused(EINVAL):
            write(vcpu, name, other)


def test_pmbidr_of_another_largest_buffer_is_einval() -> None:
    vcpu, other = vcpu_with_spe(), vcpu_with_spe()
    set_spe(vcpu, SPE_MAX, 8 * PAGE)
    with refused(EINVAL):
        write(other, "PMBIDR_EL1", read(vcpu, "PMBIDR_EL1"))
    set_spe(other, SPE_MAX, 8 * PAGE)
    write(other, "PMBIDR_EL1", read(vcpu, "PMBIDR_EL1"))


@pytest.mark.parametrize(("of", "version"), [(SPE_CORE, 1), ("neoverse-n2", 2), ("max", 3)])
def test_pmsver_is_the_hosts_with_the_feature_and_none_without(of: str, version: int) -> None:
    assert read(vcpu_with_spe(system(of)), "ID_AA64DFR0_EL1") >> 32 & 15 == version
    assert read(vcpu_with_pmu(system(of)), "ID_AA64DFR0_EL1") >> 32 == 0


@pytest.mark.parametrize("version", [0, 1, 3])
def test_pmsver_that_is_not_the_hosts_is_einval(version: int) -> None:
    vcpu = vcpu_with_spe(system("neoverse-n2"))
    value = read(vcpu, "ID_AA64DFR0_EL1")
    write(vcpu, "ID_AA64DFR0_EL1", value)
    with refused(EINVAL):
        write(vcpu, "ID_AA64DFR0_EL1", value & ~(15 << 32) | version << 32)
    assert read(vcpu, "ID_AA64DFR0_EL1") == value


def test_pmuver_may_still_be_less_where_there_is_spe() -> None:
    vcpu = vcpu_with_spe()
    write(vcpu, "ID_AA64DFR0_EL1", 1 << 32 | 0x106)
    assert read(vcpu, "ID_AA64DFR0_EL1") == 1 << 32 | 0x106


def test_pmsver_after_a_run_is_ebusy() -> None:
    vcpu = ready_with_spe()
    run_guest(vcpu, idle)
    with refused(EBUSY):
        write(vcpu, "ID_AA64DFR0_EL1", 0x406)


def test_vcpu_init_resets_the_registers_of_spe() -> None:
    vcpu = vcpu_with_spe()
    for name in ("PMSCR_EL1", "PMBLIMITR_EL1", "PMBSR_EL1", "PMSIRR_EL1"):
        write(vcpu, name, FULL)
    vcpu.init(*PMU_AND_SPE)
    assert [read(vcpu, name) for name in ("PMSCR_EL1", "PMBLIMITR_EL1", "PMBSR_EL1")] == [0, 0, 0]


# ---- guests -----------------------------------------------------------------------------------------------


def test_registers_of_spe_are_the_guests_own_by_the_door() -> None:
    seen: list[int | None] = []

    def guest() -> Guest:
        for name, value in (("PMSIRR_EL1", 0x1234_5601), ("PMBPTR_EL1", BASE)):
            yield Write(name, value)
            seen.append((yield Read(name)))
        seen.append((yield Read("PMSCR_EL1", el=0)))
        seen.append((yield Read("PMSNEVFR_EL1")))
        seen.append((yield Write("PMSIDR_EL1", 0)))

    vcpu = ready_with_spe()
    run_guest(vcpu, guest)
    assert seen == [0x1234_5601, BASE, None, None, None]
    assert (vcpu.record.spe_direct, vcpu.record.spe_trapped) == (2, 2)
    assert (read(vcpu, "PMSIRR_EL1"), read(vcpu, "PMBPTR_EL1")) == (0x1234_5601, BASE)


def test_what_userspace_writes_of_spe_is_what_the_guest_reads() -> None:
    values = {"PMSCR_EL1": 8, "PMSICR_EL1": 77, "PMSIRR_EL1": 0x901, "PMSFCR_EL1": 5, "PMSEVFR_EL1": 0x20}
    values |= {"PMSNEVFR_EL1": 0x80, "PMSLATFR_EL1": 9, "PMSDSFR_EL1": 6}
    values |= {"PMBLIMITR_EL1": 0x5000, "PMBPTR_EL1": 0x4321, "PMBSR_EL1": 0x24 << 26 | 7}
    seen: dict[str, int | None] = {}

    def guest() -> Guest:
        for name in values:
            seen[name] = yield Read(name)

    vcpu = ready_with_spe(system("max"))
    for name, value in values.items():
        write(vcpu, name, value)
    run_guest(vcpu, guest)
    assert seen == values
    assert {name: read(vcpu, name) for name in values} == values


def test_registers_of_spe_without_the_feature_are_undefined_but_for_one_that_does_not_trap() -> None:
    seen: list[int | None] = []

    def guest() -> Guest:
        for name in ("PMSCR_EL1", "PMSIDR_EL1", "PMBPTR_EL1"):
            seen.append((yield Read(name)))
            seen.append((yield Write(name, 1)))
        # PMBIDR_EL1.P: EL2 owns the buffer, and no trap but a fine-grained one keeps a guest from reading so.
        seen.append((yield Read("PMBIDR_EL1")) and 1)

    vcpu = vcpu_with_pmu(system(SPE_CORE))
    vcpu.set_attr(INIT)
    run_guest(vcpu, guest)
    assert seen == [None] * 6 + [1]


@pytest.mark.parametrize("name", ["PMSCR_EL1", "PMBPTR_EL1", "PMBIDR_EL1"])
def test_registers_of_spe_on_a_cpu_without_it_are_undefined(name: str) -> None:
    seen: list[int | None] = []

    def guest() -> Guest:
        seen.append((yield Read(name)))

    vcpu = vcpu_with_pmu(system(LITTLE))
    vcpu.set_attr(INIT)
    run_guest(vcpu, guest)
    assert seen == [None]


def test_a_guest_that_profiles_has_a_record_for_each_interval_and_its_interrupt_when_the_buffer_is_full() -> None:
    seen: list[int | None] = []

    def guest() -> Guest:
        yield from profile(size=PAGE)
        # 64 records of 64 bytes: the last one fills the buffer. The unit holds up to four of them back.
        yield Execute(32 * PERIOD + 500)
        seen.append((yield Read("PMBPTR_EL1")))
        seen.append((yield Read("PMBSR_EL1")))
        yield Execute(64 * PERIOD)
        seen.append((yield Read("PMBPTR_EL1")))
        seen.append((yield Read("PMBSR_EL1")))

    vcpu = ready_with_spe()
    run_guest(vcpu, guest)
    # After each sample the counter takes one operation more, at which it is loaded again.
    assert seen == [BASE + 32 * 64, 0, BASE + 64 * 64, S | 1]
    assert (vcpu.record.spe_irq_level, vcpu.record.spe_injected) == (1, 1)
    assert vcpu.run_page.s.regs.device_irq_level == 0


def test_a_full_buffer_interrupts_the_guest_in_the_midst_of_what_it_executes() -> None:
    levels = []
    vcpu = ready_with_spe()

    def guest() -> Guest:
        yield from profile(size=PAGE)
        yield Execute(100 * PERIOD)
        levels.append(vcpu.record.spe_irq_level)

    run_guest(vcpu, guest)
    assert levels == [1]
    assert vcpu.system.now == 100 * PERIOD


def test_a_guest_whose_sampling_was_not_enabled_at_an_exception_level_has_no_record_of_it() -> None:
    def guest() -> Guest:
        yield from profile()
        yield Write("PMSCR_EL1", 1)
        yield Read("PMBPTR_EL1")
        yield Execute(50 * PERIOD)
        yield Execute(2 * PERIOD, el=0)
        yield Signal()

    vcpu = ready_with_spe()
    run = functools.partial(run_guest, vcpu, guest)
    with pytest.raises(InterruptedError):
        run()
    assert read(vcpu, "PMBPTR_EL1") == BASE + 64


def profiled(kvm: System, *, executed: int) -> Vcpu:
    """Return a vCPU whose guest has begun to profile, executed so much, and was interrupted."""

    def guest() -> Guest:
        yield from profile(size=PAGE)
        yield Execute(executed)
        yield Signal()

    vcpu = ready_with_spe(kvm, max_buffer=PAGE)
    with pytest.raises(InterruptedError):
        run_guest(vcpu, guest)
    return vcpu


def goes_on(vcpu: Vcpu, executed: int) -> None:
    def guest() -> Guest:
        yield Execute(executed)
        yield Preempt(0)

    run_guest(vcpu, guest)


@given(st.integers(0, 70 * PERIOD), st.integers(0, 70 * PERIOD))
@settings(max_examples=15, deadline=None)
def test_a_guest_that_was_profiling_goes_on_where_it_was_on_another_host(before: int, after: int) -> None:
    stayed = profiled(system(SPE_CORE), executed=before)
    saved = stayed.save()
    moved = ready_with_spe(system("cortex-a78", "cortex-a78"), max_buffer=PAGE)
    moved.restore(saved)
    assert moved.save() == saved
    for vcpu in (stayed, moved):
        goes_on(vcpu, after)
    assert moved.save() == stayed.save()
    assert moved.record.spe_irq_level == stayed.record.spe_irq_level
    assert moved.record.spe_irq_level == int(before + after >= 63 * (PERIOD + 1) + PERIOD)


@pytest.mark.parametrize("to", ["neoverse-n2", "max"])
def test_a_guest_that_profiles_is_not_restored_on_a_host_of_another_spe_einval(to: str) -> None:
    saved = ready_with_spe().save()
    with refused(EINVAL):
        ready_with_spe(system(to)).restore(saved)


def test_a_guest_with_spe_is_not_restored_without_it_einval() -> None:
    saved = ready_with_spe().save()
    with refused(EINVAL):
        vcpu_with_pmu(system(SPE_CORE)).restore(saved)


@pytest.mark.parametrize(("of", "field"), [("max", 2), (SPE_CORE, 0)])
def test_a_guest_finds_its_largest_buffer_in_pmbidr_where_that_can_be_trapped(of: str, field: int) -> None:
    seen: list[int | None] = []

    def guest() -> Guest:
        seen.append((yield Read("PMBIDR_EL1")))

    run_guest(ready_with_spe(system(of), max_buffer=2 * PAGE), guest)
    assert seen[0] is not None
    assert (seen[0] >> 32, seen[0] >> 4 & 1) == (field, 0)


@pytest.mark.parametrize(("pages", "status"), [(1, 0), (2, 0), (3, S | 0x1F << 26)])
@pytest.mark.parametrize("of", ["max", SPE_CORE])
def test_a_buffer_larger_than_the_vm_may_have_is_a_management_event(of: str, pages: int, status: int) -> None:
    seen: list[int | None] = []

    def guest() -> Guest:
        yield from profile(size=pages * PAGE)
        yield Execute(10 * PERIOD)
        seen.append((yield Read("PMBSR_EL1")))
        seen.append((yield Read("PMBPTR_EL1")))

    vcpu = ready_with_spe(system(of), max_buffer=2 * PAGE)
    run_guest(vcpu, guest)
    assert seen == [status, BASE if status else BASE + 9 * 64]
    assert vcpu.record.spe_irq_level == int(status != 0)
