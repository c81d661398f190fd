"""KVM_RUN: its checks in KVM's order, its exits, and what guests count when a VMM has set them up (arm.c)."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY, EINTR, EINVAL, EIO, ENOEXEC, ENXIO

import pytest

from pmuvisor.kvm.uapi import Execute, Mmio, Preempt, Read, Signal, System, SystemEvent, Vcpu, Write
from pmuvisor.kvm.uapi import abi as k
from pmuvisor.kvm.uapi.run import Guest

from .uapi_support import (
    BIG,
    FIXED,
    INIT,
    IRQ,
    LITTLE,
    PARTITION,
    SET_NR_COUNTERS,
    SET_PMU,
    give_vgic,
    idle,
    refused,
    run_guest,
    set_vgic_attr,
    system,
    vcpu_with_pmu,
)

INST_RETIRED = 8


def ready(vcpu: Vcpu | None = None, irq: int = 23) -> Vcpu:
    """Return a vCPU that can run, of a VM with a VGIC."""
    vcpu = vcpu or vcpu_with_pmu()
    give_vgic(vcpu.vm)
    vcpu.set_attr(IRQ, irq)
    vcpu.set_attr(INIT)
    return vcpu


# ---- before the first run ---------------------------------------------------------------------------------


def test_run_with_an_argument_is_einval_before_anything_else() -> None:
    vcpu = system().create_vm().create_vcpu(0)
    with refused(EINVAL):
        vcpu.ioctl(k.KVM_RUN, 1)


def test_run_without_vcpu_init_is_enoexec() -> None:
    with refused(ENOEXEC):
        system().create_vm().create_vcpu(0).run()


@pytest.mark.parametrize("frames", [(), (k.KVM_VGIC_V3_ADDR_TYPE_DIST,), (k.KVM_VGIC_V3_ADDR_TYPE_REDIST,)])
def test_run_with_a_vgic_that_has_a_frame_nowhere_is_enxio_and_the_vm_is_dead(frames: tuple[int, ...]) -> None:
    vcpu = vcpu_with_pmu()
    vgic = vcpu.vm.create_vgic()
    for frame in frames:
        set_vgic_attr(vgic, 0, frame, (0x800_0000).to_bytes(8, "little"))
    with refused(ENXIO):
        vcpu.run()
    for thing in (vcpu, vcpu.vm, vgic):
        with refused(EIO):
            thing.ioctl(k.KVM_HAS_DEVICE_ATTR, k.kvm_device_attr())


def test_run_with_frames_that_overlap_is_einval() -> None:
    # The redistributors came first, when there was no distributor to overlap with.
    vcpu = vcpu_with_pmu()
    vgic = vcpu.vm.create_vgic()
    for frame in (3, 2):
        set_vgic_attr(vgic, 0, frame, (0x800_0000).to_bytes(8, "little"))
    with refused(EINVAL):
        vcpu.run()


def test_run_with_a_vgic_that_is_not_initialised_is_ebusy() -> None:
    vcpu = vcpu_with_pmu()
    give_vgic(vcpu.vm, init=False)
    with refused(EBUSY):
        vcpu.run()


@pytest.mark.parametrize("irq", [27, 30])
def test_run_with_a_timers_ppi_is_einval(irq: int) -> None:
    with refused(EINVAL):
        ready(irq=irq).run()


def test_run_before_pmu_init_is_einval_and_can_be_tried_again() -> None:
    vcpu = vcpu_with_pmu()
    with refused(EINVAL):
        vcpu.run()
    vcpu.set_attr(SET_NR_COUNTERS, 2)
    vcpu.set_attr(INIT)
    assert run_guest(vcpu, idle) == k.KVM_EXIT_SYSTEM_EVENT


def test_run_with_a_vgic_made_after_pmu_init_and_no_interrupt_is_einval() -> None:
    vcpu = vcpu_with_pmu()
    vcpu.set_attr(INIT)
    give_vgic(vcpu.vm)
    with refused(EINVAL):
        vcpu.run()


def test_a_vcpu_without_a_pmu_runs_and_its_pmu_registers_are_undefined() -> None:
    seen: list[int | None] = []

    def guest() -> Guest:
        seen.append((yield Read("PMCR_EL0")))
        seen.append((yield Write("PMCR_EL0", 1)))

    vcpu = system().create_vm().create_vcpu(0)
    vcpu.init(k.KVM_ARM_VCPU_PSCI_0_2)
    assert run_guest(vcpu, guest) == k.KVM_EXIT_SYSTEM_EVENT
    assert seen == [None, None]


# ---- exits ------------------------------------------------------------------------------------------------


def test_run_with_immediate_exit_is_eintr_and_the_guest_does_nothing() -> None:
    vcpu = ready()
    executed: list[int] = []

    def guest() -> Guest:
        executed.append(1)
        yield from ()

    vcpu.run_page.immediate_exit = 1
    with refused(EINTR):
        run_guest(vcpu, guest)
    vcpu.run_page.immediate_exit = 0
    assert not executed
    assert vcpu.run() == k.KVM_EXIT_SYSTEM_EVENT


def test_run_of_a_stopped_vcpu_sleeps_until_a_signal_eintr() -> None:
    vcpu = ready()
    vcpu.ioctl(k.KVM_SET_MP_STATE, k.kvm_mp_state(mp_state=k.KVM_MP_STATE_STOPPED))
    with refused(EINTR):
        run_guest(vcpu, idle)
    assert vcpu.run_page.exit_reason == k.KVM_EXIT_INTR


def test_run_with_a_signal_is_eintr_and_goes_on_where_it_was() -> None:
    def guest() -> Guest:
        yield Signal()
        yield SystemEvent(k.KVM_SYSTEM_EVENT_RESET)

    vcpu = ready()
    with refused(EINTR):
        run_guest(vcpu, guest)
    assert vcpu.run_page.exit_reason == k.KVM_EXIT_INTR
    assert vcpu.run() == k.KVM_EXIT_SYSTEM_EVENT
    assert vcpu.run_page.system_event.type == k.KVM_SYSTEM_EVENT_RESET


def test_run_on_a_cpu_that_the_pmu_has_not_fails_to_enter_and_tells_which() -> None:
    vcpu = vcpu_with_pmu(system(LITTLE, BIG, BIG))
    vcpu.set_attr(SET_PMU, 8)
    vcpu.set_attr(INIT)
    vcpu.system.cpu = 2
    assert run_guest(vcpu, idle) == k.KVM_EXIT_FAIL_ENTRY
    page = vcpu.run_page
    assert (page.fail_entry.hardware_entry_failure_reason, page.fail_entry.cpu) == (1, 2)
    vcpu.system.cpu = 0
    assert vcpu.run() == k.KVM_EXIT_SYSTEM_EVENT


def test_run_that_is_moved_to_a_cpu_that_the_pmu_has_not_fails_to_enter() -> None:
    def guest() -> Guest:
        yield Preempt(1)

    vcpu = vcpu_with_pmu(system(LITTLE, BIG))
    vcpu.set_attr(SET_PMU, 8)
    vcpu.set_attr(INIT)
    assert run_guest(vcpu, guest) == k.KVM_EXIT_FAIL_ENTRY
    assert vcpu.run_page.fail_entry.cpu == 1


def test_mmio_goes_to_userspace_and_a_read_gets_its_answer() -> None:
    seen: list[int | None] = []

    def guest() -> Guest:
        seen.append((yield Mmio(0x900_0000, 4, True, 0x41)))
        seen.append((yield Mmio(0x900_0018, 2, False)))

    vcpu = ready()
    assert run_guest(vcpu, guest) == k.KVM_EXIT_MMIO
    mmio = vcpu.run_page.mmio
    assert (mmio.phys_addr, mmio.len, mmio.is_write, bytes(mmio.data)) == (0x900_0000, 4, 1, b"A" + bytes(7))
    assert vcpu.run() == k.KVM_EXIT_MMIO
    assert (mmio.phys_addr, mmio.len, mmio.is_write) == (0x900_0018, 2, 0)
    mmio.data[:2] = [0x90, 0x01]
    assert vcpu.run() == k.KVM_EXIT_SYSTEM_EVENT
    assert seen == [None, 0x190]


# ---- what guests count ------------------------------------------------------------------------------------

DESIGNS: dict[str, Callable[[Vcpu], None]] = {
    "emulated": lambda vcpu: None,
    "partitioned": lambda vcpu: vcpu.set_attr(PARTITION, k.PARTITION_ENABLE),
    "lazy": lambda vcpu: vcpu.set_attr(PARTITION, k.PARTITION_ENABLE | k.PARTITION_LAZY),
}


def reset_pmu() -> Guest:
    """Do what a guest does first, to whom KVM gives registers that are UNKNOWN."""
    yield Write("PMCNTENCLR_EL0", 0xFFFF_FFFF)
    yield Write("PMINTENCLR_EL1", 0xFFFF_FFFF)
    yield Write("PMOVSCLR_EL0", 0xFFFF_FFFF)
    yield Write("PMCR_EL0", 0b100_0110)


def counting_guest(seen: list[int | None]) -> Guest:
    """Count instructions in counter 0 and cycles, and look at them after every 1000."""
    yield from reset_pmu()
    yield Write("PMEVTYPER0_EL0", INST_RETIRED)
    yield Write("PMCNTENSET_EL0", 1 << 31 | 1)
    yield Write("PMCR_EL0", 1)
    while True:
        yield Execute(1000)
        seen.append((yield Read("PMEVCNTR0_EL0")))
        seen.append((yield Read("PMCCNTR_EL0")))
        yield Signal()


@pytest.mark.parametrize("design", DESIGNS)
def test_a_guest_counts_what_it_executes_over_exits_to_userspace(design: str) -> None:
    seen: list[int | None] = []
    vcpu = vcpu_with_pmu()
    DESIGNS[design](vcpu)
    ready(vcpu)
    with refused(EINTR):
        run_guest(vcpu, lambda: counting_guest(seen))
    with refused(EINTR):
        vcpu.run()
    assert seen == [1000, 1000, 2000, 2000]
    assert vcpu.get_one_reg(k.sys_reg_id_of("PMEVCNTR0_EL0")) == 2000


@pytest.mark.parametrize("before", DESIGNS)
@pytest.mark.parametrize("after", DESIGNS)
def test_counts_go_on_after_a_restore_on_another_host_and_in_another_design(before: str, after: str) -> None:
    seen: list[int | None] = []
    source = vcpu_with_pmu(system(BIG))
    DESIGNS[before](source)
    with refused(EINTR):
        run_guest(ready(source), lambda: counting_guest(seen))
    saved = source.save()

    def later() -> Guest:
        yield Execute(500)
        seen.append((yield Read("PMEVCNTR0_EL0")))
        seen.append((yield Read("PMCCNTR_EL0")))

    target = vcpu_with_pmu(system("neoverse-n2", "neoverse-n2"))
    DESIGNS[after](target)
    target.set_attr(SET_NR_COUNTERS, 6)
    target.restore(saved)
    assert run_guest(ready(target), later) == k.KVM_EXIT_SYSTEM_EVENT
    assert seen == [1000, 1000, 1500, 1500]
    # The other host has PMUv3p5; the guest still has the p1 that it was given.
    assert target.get_one_reg(k.sys_reg_id_of("ID_AA64DFR0_EL1")) >> 8 & 15 == 4


def counting(design: str, host: System | None = None) -> tuple[Vcpu, list[int | None]]:
    """Return a vCPU whose guest has counted 1000 instructions and cycles, and what it sees."""
    seen: list[int | None] = []
    vcpu = vcpu_with_pmu(host)
    DESIGNS[design](vcpu)
    with refused(EINTR):
        run_guest(ready(vcpu), lambda: counting_guest(seen))
    return vcpu, seen


@pytest.mark.parametrize("design", DESIGNS)
def test_what_userspace_writes_between_two_runs_is_what_counts(design: str) -> None:
    vcpu, seen = counting(design)
    for name, value in (("PMCNTENSET_EL0", 1 << 31), ("PMCCNTR_EL0", 7), ("PMCNTENSET_EL0", 1), ("PMEVCNTR0_EL0", 5)):
        vcpu.set_one_reg(k.sys_reg_id_of(name), value)
        with refused(EINTR):
            vcpu.run()
    assert seen == [1000, 1000, 1000, 2000, 1000, 1007, 2000, 1007, 1005, 1007]


@pytest.mark.parametrize("design", DESIGNS)
def test_an_overflow_that_was_saved_interrupts_where_it_is_restored(design: str) -> None:
    source, _ = counting(design)
    for name, value in (("PMOVSSET_EL0", 1), ("PMINTENSET_EL1", 1)):
        source.set_one_reg(k.sys_reg_id_of(name), value)
    target = vcpu_with_pmu()
    DESIGNS[design](target)
    target.restore(source.save())
    target.set_attr(INIT)
    with refused(EINTR):
        run_guest(target, idle)
    assert target.run_page.s.regs.device_irq_level == k.KVM_ARM_DEV_PMU


def test_a_guest_of_a_newer_pmu_is_not_restored_on_an_older_one() -> None:
    source, _ = counting("emulated", system("neoverse-n2"))
    with refused(EINVAL):
        vcpu_with_pmu().restore(source.save())


@pytest.mark.parametrize("use_fgt", [0, 1])
def test_a_partition_with_fine_grained_traps_goes_to_the_hardware(use_fgt: int) -> None:
    vcpu, seen = counting("partitioned", system("max", use_fgt=use_fgt, reserved_host_counters=2))
    assert seen == [1000, 1000]
    assert (vcpu.record.direct > 0) == bool(use_fgt)
    assert vcpu.record.trapped > 0


def test_a_partition_may_have_no_event_counters_where_hpmn_can_be_zero() -> None:
    vcpu = vcpu_with_pmu(system("max"))
    vcpu.set_attr(SET_NR_COUNTERS, 0)
    vcpu.set_attr(PARTITION, k.PARTITION_ENABLE)
    assert run_guest(ready(vcpu), idle) == k.KVM_EXIT_SYSTEM_EVENT


def test_a_partition_gives_every_counter_back_to_the_host() -> None:
    vcpu, _ = counting("partitioned")
    hw = vcpu.system.world.host.cpus[0].hw
    assert (hw.cntr_mask & 0x8000_003F, hw.guest_resident) == (0x8000_003F, 0)


def test_fixed_counters_only_goes_on_counting_on_a_host_of_other_cores() -> None:
    cycles = k.sys_reg_id_of("PMCCNTR_EL0")

    def guest() -> Guest:
        yield from reset_pmu()
        yield Write("PMCNTENSET_EL0", 1 << 31)
        yield Write("PMCR_EL0", 1)
        yield Execute(1000)

    def later() -> Guest:
        yield Execute(500)
        yield Preempt(1)
        yield Execute(500)

    source, target = (vcpu_with_pmu(system(*cores)) for cores in ((LITTLE, BIG), ("neoverse-n1", "cortex-x1")))
    for vcpu, script in ((source, guest), (target, later)):
        vcpu.set_attr(FIXED)
        if vcpu is target:
            target.restore(source.save())
        run_guest(ready(vcpu), script)
    assert (source.get_one_reg(cycles), target.get_one_reg(cycles)) == (1000, 2000)


def test_two_vms_count_for_themselves_on_one_cpu() -> None:
    host = system(vms=2)
    first, seen = counting("partitioned", host)
    second, also_seen = counting("emulated", host)
    with refused(EINTR):
        first.run()
    with refused(EINTR):
        second.run()
    assert seen == also_seen == [1000, 1000, 2000, 2000]


def test_fixed_counters_only_counts_cycles_on_every_kind_of_core() -> None:
    seen: list[int | None] = []

    def guest() -> Guest:
        yield from reset_pmu()
        seen.append((yield Read("PMCR_EL0")))
        seen.append((yield Read("PMCEID0_EL0")))
        seen.append((yield Read("PMEVCNTR0_EL0")))
        yield Write("PMCNTENSET_EL0", 1 << 31)
        yield Write("PMCR_EL0", 1)
        for cpu in (1, 0, 1):
            yield Execute(1000)
            yield Preempt(cpu)
            seen.append((yield Read("PMCCNTR_EL0")))

    vcpu = vcpu_with_pmu(system(LITTLE, BIG))
    vcpu.set_attr(FIXED)
    assert run_guest(ready(vcpu), guest) == k.KVM_EXIT_SYSTEM_EVENT
    assert seen[0] is not None
    assert seen[0] >> 11 & 31 == 0
    assert seen[1:] == [0, None, 1000, 2000, 3000]


@pytest.mark.parametrize("design", DESIGNS)
def test_a_filtered_event_that_userspace_restores_does_not_count(design: str) -> None:
    seen: list[int | None] = []

    def guest() -> Guest:
        yield Execute(1000)
        seen.append((yield Read("PMEVCNTR0_EL0")))
        seen.append((yield Read("PMEVCNTR1_EL0")))

    vcpu = vcpu_with_pmu()
    DESIGNS[design](vcpu)
    vcpu.set_filter(INST_RETIRED, 1, k.KVM_PMU_EVENT_DENY)
    counting = {"PMEVTYPER0_EL0": INST_RETIRED, "PMEVTYPER1_EL0": 0x11, "PMCNTENSET_EL0": 3, "PMOVSSET_EL0": 0}
    for name, value in (counting | {"PMEVCNTR0_EL0": 0, "PMEVCNTR1_EL0": 0}).items():
        vcpu.set_one_reg(k.sys_reg_id_of(name), value)
    vcpu.set_one_reg(k.sys_reg_id_of("PMCR_EL0"), 6 << 11 | 1)
    run_guest(ready(vcpu), guest)
    assert seen == [0, 1000]


@pytest.mark.parametrize("design", DESIGNS)
def test_an_overflow_without_a_vgic_is_told_to_userspace(design: str) -> None:
    def guest() -> Guest:
        yield from reset_pmu()
        yield Write("PMEVTYPER0_EL0", INST_RETIRED)
        yield Write("PMEVCNTR0_EL0", (1 << 32) - 600)
        yield Write("PMINTENSET_EL1", 1)
        yield Write("PMCNTENSET_EL0", 1)
        yield Write("PMCR_EL0", 1)
        yield Execute(1000)
        yield Signal()
        yield Write("PMOVSCLR_EL0", 1)
        yield Signal()

    vcpu = vcpu_with_pmu()
    DESIGNS[design](vcpu)
    vcpu.set_attr(INIT)
    levels, counts = [], []
    with refused(EINTR):
        run_guest(vcpu, guest)
    for _ in range(4):
        levels.append(vcpu.run_page.s.regs.device_irq_level)
        counts.append(vcpu.get_one_reg(k.sys_reg_id_of("PMEVCNTR0_EL0")))
        if len(levels) < 4:
            with refused(EINTR):
                vcpu.run()
    # The line has risen, on the very instruction; the first Signal; the line has fallen; the second Signal.
    assert counts == [0, 400, 400, 400]
    assert levels == [k.KVM_ARM_DEV_PMU, k.KVM_ARM_DEV_PMU, 0, 0]
    assert vcpu.run() == k.KVM_EXIT_SYSTEM_EVENT
