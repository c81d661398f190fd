"""KVM_{GET,SET}_ONE_REG, KVM_GET_REG_LIST: which registers there are, KVM's masking, each errno (sys_regs.c)."""

from __future__ import annotations

import ctypes
from errno import E2BIG, EBUSY, EFAULT, EINVAL, ENOENT, ENOEXEC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuvisor.arch.cores import Core
from pmuvisor.kvm.uapi import Vcpu
from pmuvisor.kvm.uapi import abi as k

from .uapi_support import (
    BIG,
    INIT,
    PARTITION,
    PMU,
    SET_NR_COUNTERS,
    SHORT_EVENTS,
    idle,
    refused,
    run_guest,
    system,
    vcpu_with_pmu,
)

ONE_REG = (k.KVM_GET_ONE_REG, k.KVM_SET_ONE_REG)
C = 1 << 31


def read(vcpu: Vcpu, name: str) -> int:
    return vcpu.get_one_reg(k.sys_reg_id_of(name))


def write(vcpu: Vcpu, name: str, value: int) -> None:
    vcpu.set_one_reg(k.sys_reg_id_of(name), value)


def ran() -> Vcpu:
    """Return a vCPU that has run."""
    vcpu = vcpu_with_pmu()
    vcpu.set_attr(INIT)
    run_guest(vcpu, idle)
    return vcpu


# ---- the ioctls -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [*ONE_REG, k.KVM_GET_REG_LIST])
def test_a_register_of_a_vcpu_that_is_not_initialised_is_enoexec_before_the_memory_is_read(request_: int) -> None:
    with refused(ENOEXEC):
        system().create_vm().create_vcpu(0).ioctl(request_, None)


@pytest.mark.parametrize("request_", ONE_REG)
def test_one_reg_from_nowhere_is_efault(request_: int) -> None:
    with refused(EFAULT):
        vcpu_with_pmu().ioctl(request_, bytes(15))


@pytest.mark.parametrize("request_", ONE_REG)
@pytest.mark.parametrize("number", [0x2030_0000_0013_DCE0, 0x6030_0001_0013_DCE0, 0])
def test_a_register_of_another_architecture_is_einval(request_: int, number: int) -> None:
    with refused(EINVAL):
        vcpu_with_pmu().ioctl(request_, k.kvm_one_reg(id=number))


UNKNOWN = {
    "a core register": 0x6030_0000_0010_0000,
    "firmware's": 0x6030_0000_0014_0000,
    "a timer's": 0x6030_0000_0013_DF19,
    "SCTLR_EL1": k.sys_reg_id_of("PMCR_EL0") & ~0xFFFF | 0xC080,
    "PMCEID0_EL0": k.sys_reg_id_of("PMCEID0_EL0"),
    "PMMIR_EL1": k.sys_reg_id_of("PMMIR_EL1"),
    "PMXEVTYPER_EL0": k.sys_reg_id_of("PMXEVTYPER_EL0"),
    "PMICNTR_EL0": k.sys_reg_id_of("PMICNTR_EL0"),
    "PMCR_EL0 of 32 bits": k.sys_reg_id_of("PMCR_EL0") & ~k.KVM_REG_SIZE_MASK | k.KVM_REG_SIZE_U32,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_register_that_is_not_there_or_not_of_this_size_is_enoent(name: str) -> None:
    vcpu = vcpu_with_pmu()
    with refused(ENOENT):
        vcpu.get_one_reg(UNKNOWN[name])
    with refused(ENOENT):
        vcpu.set_one_reg(UNKNOWN[name], 0)


def test_get_of_an_unknown_register_is_enoent_before_its_memory_is_written_and_set_is_efault() -> None:
    vcpu = vcpu_with_pmu()
    unknown = k.kvm_one_reg(id=UNKNOWN["PMMIR_EL1"])
    with refused(ENOENT):
        vcpu.ioctl(k.KVM_GET_ONE_REG, unknown)
    with refused(EFAULT):
        vcpu.ioctl(k.KVM_SET_ONE_REG, unknown)


@pytest.mark.parametrize("request_", ONE_REG)
def test_a_value_of_a_register_that_is_nowhere_is_efault(request_: int) -> None:
    with refused(EFAULT):
        vcpu_with_pmu().ioctl(request_, k.kvm_one_reg(id=k.sys_reg_id_of("PMCR_EL0"), addr=0x1234))


def test_the_registers_of_a_vcpu_without_a_pmu_are_enoent() -> None:
    vcpu = system().create_vm().create_vcpu(0)
    vcpu.init(k.KVM_ARM_VCPU_PSCI_0_2)
    with refused(ENOENT):
        read(vcpu, "PMCR_EL0")
    assert vcpu.reg_list() == [k.sys_reg_id_of("ID_AA64DFR0_EL1")]
    assert read(vcpu, "ID_AA64DFR0_EL1") >> 8 & 15 == 0


# ---- KVM_GET_REG_LIST -------------------------------------------------------------------------------------


def test_the_list_is_sorted_by_encoding_and_has_every_counter_whatever_the_pmu_has() -> None:
    ids = vcpu_with_pmu().reg_list()
    assert ids == sorted(ids)
    names = ["ID_AA64DFR0_EL1", "PMINTENSET_EL1", "PMINTENCLR_EL1", "PMCR_EL0", "PMCNTENSET_EL0", "PMCNTENCLR_EL0"]
    names += ["PMOVSCLR_EL0", "PMSWINC_EL0", "PMSELR_EL0", "PMCCNTR_EL0", "PMUSERENR_EL0", "PMOVSSET_EL0"]
    names += [f"PMEVCNTR{n}_EL0" for n in range(31)] + [f"PMEVTYPER{n}_EL0" for n in range(31)] + ["PMCCFILTR_EL0"]
    assert ids == [k.sys_reg_id_of(name) for name in names]


def test_the_list_of_registers_from_nowhere_is_efault() -> None:
    vcpu = vcpu_with_pmu()
    for arg in (None, bytes(7), bytes(8)):
        with refused(EFAULT):
            vcpu.ioctl(k.KVM_GET_REG_LIST, arg)


def test_a_list_without_room_is_e2big_and_tells_how_many_there_are() -> None:
    head = k.kvm_reg_list(n=74)
    with refused(E2BIG):
        vcpu_with_pmu().ioctl(k.KVM_GET_REG_LIST, head)
    assert head.n == 75


def test_a_list_with_less_room_than_it_says_is_efault() -> None:
    with refused(EFAULT):
        vcpu_with_pmu().ioctl(k.KVM_GET_REG_LIST, (ctypes.c_uint64 * 75)(75))


# ---- PMCR_EL0 ---------------------------------------------------------------------------------------------


def test_pmcr_resets_to_the_number_of_counters_and_lc_where_there_is_no_aarch32() -> None:
    assert read(vcpu_with_pmu(system("neoverse-v2")), "PMCR_EL0") == 6 << 11 | 1 << 6


def test_pmcr_n_sets_the_number_of_counters_before_a_run() -> None:
    vcpu = vcpu_with_pmu()
    write(vcpu, "PMCR_EL0", 2 << 11)
    assert vcpu.vm.record.nr_counters == 2


def test_pmcr_n_of_more_counters_than_there_are_is_ignored() -> None:
    vcpu = vcpu_with_pmu()
    write(vcpu, "PMCR_EL0", 7 << 11 | 1)
    assert read(vcpu, "PMCR_EL0") & ~(1 << 6) == 6 << 11 | 1


def test_pmcr_n_after_a_run_is_ignored() -> None:
    vcpu = ran()
    write(vcpu, "PMCR_EL0", 2 << 11 | 1)
    assert read(vcpu, "PMCR_EL0") & ~(1 << 6) == 6 << 11 | 1


def test_pmcr_n_of_a_partition_is_set_nr_counters_alone() -> None:
    vcpu = vcpu_with_pmu()
    vcpu.set_attr(PARTITION, 1)
    write(vcpu, "PMCR_EL0", 2 << 11)
    assert vcpu.vm.record.nr_counters == 6


def test_pmcr_keeps_its_low_eight_bits_but_p_and_c_and_n() -> None:
    vcpu = vcpu_with_pmu(system("neoverse-v2"))
    write(vcpu, "PMCR_EL0", (1 << 64) - 1 & ~(0x1F << 11) | 3 << 11)
    assert read(vcpu, "PMCR_EL0") == 3 << 11 | 0b1111_1001


def test_pmcr_p_and_c_of_userspace_zero_nothing() -> None:
    # set_pmcr() does not call kvm_pmu_handle_pmcr(), nor does kvm_vcpu_reload_pmu() any more.
    vcpu = vcpu_with_pmu()
    write(vcpu, "PMEVCNTR1_EL0", 5)
    write(vcpu, "PMCCNTR_EL0", 6)
    write(vcpu, "PMCR_EL0", 6 << 11 | 0b110)
    vcpu.set_attr(INIT)
    run_guest(vcpu, idle)
    assert (read(vcpu, "PMEVCNTR1_EL0"), read(vcpu, "PMCCNTR_EL0"), read(vcpu, "PMCR_EL0") & 0b110) == (5, 6, 0)


def test_pmcr_lp_is_gone_at_the_first_run_of_a_guest_whose_counters_are_short() -> None:
    vcpu = vcpu_with_pmu(system("neoverse-n2"))
    write(vcpu, "PMCR_EL0", 6 << 11 | 1 << 7)
    write(vcpu, "ID_AA64DFR0_EL1", 0x406)
    assert read(vcpu, "PMCR_EL0") & 1 << 7
    vcpu.set_attr(INIT)
    run_guest(vcpu, idle)
    assert read(vcpu, "PMCR_EL0") & 1 << 7 == 0


# ---- masks, counters, types -------------------------------------------------------------------------------

PAIRS = [("PMCNTENSET_EL0", "PMCNTENCLR_EL0"), ("PMINTENSET_EL1", "PMINTENCLR_EL1"), ("PMOVSSET_EL0", "PMOVSCLR_EL0")]


@pytest.mark.parametrize("pair", PAIRS)
def test_set_and_clear_registers_are_the_same_value_for_userspace(pair: tuple[str, str]) -> None:
    vcpu = vcpu_with_pmu()
    for name, value in zip((*pair, *pair), (0b101, 0b010, C | 1, 0), strict=True):
        write(vcpu, name, value)
        assert (read(vcpu, pair[0]), read(vcpu, pair[1])) == (value, value)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("n", [0, 3, 6])
def test_masks_have_the_guests_counters_and_the_cycle_counter_only(pair: tuple[str, str], n: int) -> None:
    vcpu = vcpu_with_pmu()
    vcpu.set_attr(SET_NR_COUNTERS, n)
    for name in pair:
        write(vcpu, name, (1 << 64) - 1)
        assert read(vcpu, name) == C | (1 << n) - 1


def test_a_mask_shows_fewer_counters_when_the_guest_has_fewer() -> None:
    vcpu = vcpu_with_pmu()
    write(vcpu, "PMCNTENSET_EL0", 0x3F)
    vcpu.set_attr(SET_NR_COUNTERS, 2)
    assert read(vcpu, "PMCNTENSET_EL0") == 3


def test_counters_have_64_bits_for_the_guest_from_pmuv3p5_and_the_cycle_counter_always() -> None:
    for name, expected in (("neoverse-n2", 0x1_2345_6789), (BIG, 0x2345_6789)):
        vcpu = vcpu_with_pmu(system(name))
        write(vcpu, "PMEVCNTR0_EL0", 0x1_2345_6789)
        write(vcpu, "PMCCNTR_EL0", 0x1_2345_6789)
        assert (read(vcpu, "PMEVCNTR0_EL0"), read(vcpu, "PMCCNTR_EL0")) == (expected, 0x1_2345_6789)


def test_counters_that_the_pmu_has_not_keep_what_userspace_writes() -> None:
    vcpu = vcpu_with_pmu()
    write(vcpu, "PMEVCNTR30_EL0", 7)
    write(vcpu, "PMEVTYPER30_EL0", 8)
    assert (read(vcpu, "PMEVCNTR30_EL0"), read(vcpu, "PMEVTYPER30_EL0"), read(vcpu, "PMEVCNTR29_EL0")) == (7, 8, 0)


def test_registers_without_a_mask_keep_the_bits_that_they_have() -> None:
    vcpu = vcpu_with_pmu()
    for name, bits in (("PMSELR_EL0", 31), ("PMUSERENR_EL0", 15), ("PMCCFILTR_EL0", 0xFFFF_FFFF)):
        write(vcpu, name, (1 << 64) - 1)
        assert read(vcpu, name) == bits


def test_pmswinc_reads_as_zero_and_ignores_writes() -> None:
    vcpu = vcpu_with_pmu()
    write(vcpu, "PMEVCNTR0_EL0", 0)
    write(vcpu, "PMCNTENSET_EL0", 1)
    write(vcpu, "PMSWINC_EL0", 1)
    assert (read(vcpu, "PMSWINC_EL0"), read(vcpu, "PMEVCNTR0_EL0")) == (0, 0)


# ---- ID_AA64DFR0_EL1 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "offered"), [("neoverse-n2", 6), ("max", 6), (BIG, 4)])
def test_a_guest_is_offered_the_hosts_pmu_and_pmuv3p5_at_most(name: str, offered: int) -> None:
    assert read(vcpu_with_pmu(system(name)), "ID_AA64DFR0_EL1") >> 8 & 15 == offered


def test_pmuver_may_be_less_than_what_is_offered_for_the_whole_vm() -> None:
    first = vcpu_with_pmu(system("neoverse-n2"))
    second = first.vm.create_vcpu(1)
    second.init(*PMU)
    write(first, "PMEVCNTR0_EL0", 1 << 32)
    for version in (4, 1, 0):
        write(second, "ID_AA64DFR0_EL1", version << 8 | 6)
        assert read(first, "ID_AA64DFR0_EL1") == version << 8 | 6
        assert read(first, "PMEVCNTR0_EL0") == 0


def test_pmuver_implementation_defined_means_none() -> None:
    vcpu = vcpu_with_pmu()
    write(vcpu, "ID_AA64DFR0_EL1", 0xF06)
    assert read(vcpu, "ID_AA64DFR0_EL1") == 6


@pytest.mark.parametrize("value", [0x506, 0x405, 0x407, 0x1406, 0x406 | 1 << 36])
def test_id_aa64dfr0_that_promises_what_is_not_there_is_einval(value: int) -> None:
    with refused(EINVAL):
        write(vcpu_with_pmu(), "ID_AA64DFR0_EL1", value)


def test_id_aa64dfr0_after_a_run_is_ebusy_unless_it_is_the_same() -> None:
    vcpu = ran()
    write(vcpu, "ID_AA64DFR0_EL1", 0x406)
    with refused(EBUSY):
        write(vcpu, "ID_AA64DFR0_EL1", 0x106)
    with refused(EINVAL):
        write(vcpu, "ID_AA64DFR0_EL1", 0x105)


def test_a_vm_keeps_its_pmuver_when_a_vcpu_is_initialised_again() -> None:
    vcpu = vcpu_with_pmu()
    write(vcpu, "ID_AA64DFR0_EL1", 0x106)
    vcpu.init(*PMU)
    assert read(vcpu, "ID_AA64DFR0_EL1") == 0x106


# ---- save and restore -------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, (1 << 64) - 1), min_size=75, max_size=75),
    st.sampled_from([BIG, "neoverse-n2", SHORT_EVENTS]),
)
def test_what_was_saved_is_what_is_there_after_a_restore(values: list[int], of: str | Core) -> None:
    source = vcpu_with_pmu(system(of))
    for number, value in zip(source.reg_list()[1:], values[1:], strict=True):
        source.set_one_reg(number, value)
    saved = source.save()
    target = vcpu_with_pmu(system(of))
    target.restore(saved)
    assert target.save() == saved
