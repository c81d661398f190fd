"""Whatever a VMM does: each ioctl succeeds or is refused, and what must hold of VMs and of the host holds after it."""

from __future__ import annotations

import contextlib
import random

import pytest

from pmuvisor import records
from pmuvisor.kvm import partitioned
from pmuvisor.kvm.uapi import Execute, Mmio, Preempt, Read, Script, Signal, System, Vcpu, Vm, Write
from pmuvisor.kvm.uapi import abi as k
from pmuvisor.kvm.uapi.run import Guest, Step

from .uapi_support import BIG, LITTLE, PMU, PMU_AND_SPE, SPE_CORE, give_vgic, profile, system

REGISTERS = ["PMCR_EL0", "PMCNTENSET_EL0", "PMINTENSET_EL1", "PMOVSSET_EL0", "PMSELR_EL0", "PMCCNTR_EL0"]
REGISTERS += ["PMEVCNTR0_EL0", "PMEVCNTR5_EL0", "PMEVTYPER0_EL0", "PMEVTYPER5_EL0", "PMCCFILTR_EL0", "PMUSERENR_EL0"]
VALUES = [0, 1, 3, 0x8000_0001, 0x41, 6 << 11 | 1, 4 << 11 | 1, 7 << 11, 0x406, 0x106, 1 << 32, (1 << 64) - 1, 8, 0x11]
ATTRIBUTE_VALUES: dict[int, list[int | None]] = {
    k.KVM_ARM_VCPU_PMU_V3_IRQ: [23, 23, 40, 41, 5],
    k.KVM_ARM_VCPU_PMU_V3_INIT: [None],
    k.KVM_ARM_VCPU_PMU_V3_SET_PMU: [8, 9, 10],
    k.KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS: [0, 1, 4, 6, 7],
    k.KVM_ARM_VCPU_PMU_V3_FIXED_COUNTERS_ONLY: [None],
    k.KVM_ARM_VCPU_PMU_V3_PARTITION: [1, 3, 1, 3, 0, 2],
}
SPE_REGISTERS = ["PMSCR_EL1", "PMSICR_EL1", "PMSIRR_EL1", "PMSFCR_EL1", "PMSNEVFR_EL1", "PMSIDR_EL1", "PMBIDR_EL1"]
SPE_REGISTERS += ["PMBLIMITR_EL1", "PMBPTR_EL1", "PMBSR_EL1"]
SPE_VALUES = [*VALUES, 0x100, 0x4000_0000, 0x4000_1001, 1 << 17, 1 << 17 | 0x25 << 26]
SPE_ATTRIBUTE_VALUES: dict[int, list[int | None]] = {
    k.KVM_ARM_VCPU_SPE_IRQ: [21, 21, 23, 40, 27],
    k.KVM_ARM_VCPU_SPE_MAX_BUFFER_SIZE: [0, 0x1000, 0x3000, 7],
    k.KVM_ARM_VCPU_SPE_INIT: [None],
    3: [1],
}


def any_guest(rng: random.Random) -> Guest:
    """A guest that does anything with its PMU and SPE."""
    while True:
        if rng.random() < 0.05:
            yield from profile(size=rng.choice([0x1000, 0x3000]))
        register, el = rng.choice([*REGISTERS, *SPE_REGISTERS]), rng.choice([0, 1, 1])
        values = SPE_VALUES if register in SPE_REGISTERS else VALUES
        steps: list[Step] = [Read(register, el), Write(register, rng.choice(values), el)] * 4
        steps += [Execute(rng.randrange(1, 2000), el)] * 4
        yield rng.choice([*steps, Preempt(rng.randrange(3)), Signal(), Mmio(0x900_0000, 4, False)])


def anything(rng: random.Random, vcpu: Vcpu) -> None:
    """Do one thing with a vCPU."""
    what = rng.randrange(12 if vcpu.vm.has_spe() else 10)
    if what == 0:
        vcpu.init(k.KVM_ARM_VCPU_PSCI_0_2, *rng.choice([(), (3,), (3,), (3, 9), (0, 3), (0, 3, 9)]))
    elif what <= 4:
        attr = rng.choice(list(ATTRIBUTE_VALUES))
        value = rng.choice(ATTRIBUTE_VALUES[attr])
        vcpu.set_attr(attr, value)
    elif what == 5:
        vcpu.set_filter(rng.choice([0, 8, 0x11, 0xFFF0]), rng.choice([1, 9, 60]), rng.randrange(3))
    elif what == 6:
        vcpu.set_one_reg(k.sys_reg_id_of(rng.choice([*REGISTERS, "ID_AA64DFR0_EL1"])), rng.choice(VALUES))
    elif what == 7 and vcpu.vm.vgic is None and rng.random() < 0.3:
        give_vgic(vcpu.vm, init=rng.random() < 0.8)
    elif what == 10:
        attr = rng.choice(list(SPE_ATTRIBUTE_VALUES))
        vcpu.set_attr(attr, rng.choice(SPE_ATTRIBUTE_VALUES[attr]), group=k.KVM_ARM_VCPU_SPE_CTRL)
    elif what == 11:
        vcpu.set_one_reg(k.sys_reg_id_of(rng.choice([*SPE_REGISTERS, "ID_AA64DFR0_EL1"])), rng.choice(SPE_VALUES))
    else:
        vcpu.system.cpu = rng.randrange(3)
        for _ in range(5):
            vcpu.run()


def configuration(vm: Vm) -> tuple[object, ...]:
    of = vm.record
    spe = of.spe, of.spe_pinned, of.spe_max_buffer
    return of.design, of.nr_counters, of.pmuver, of.pmu, of.supported_pmus, of.filter_words, tuple(of.denied), spe


def check(host: System, vm: Vm) -> None:
    of = vm.record
    if vm.pmu is not None:
        assert of.nr_counters <= vm.max_counters()
    if vm.partitioned():
        assert vm.pmu is not None
        assert not partitioned.count_refused(vm.pmu.core, of.nr_counters)
        assert of.supported_pmus == 1 << of.pmu
    for cpu in host.world.host.cpus:
        # Between two ioctls nothing of a guest is on a CPU: its counters and EL2's traps are the host's.
        assert (cpu.hw.cntr_mask & 0x8000_003F, cpu.hw.guest_resident) == (0x8000_003F, 0)
        assert cpu.pe.mdcr_el2 & 0x1F == cpu.pe.core.event_counters
        assert cpu.pe.cnten & cpu.hw.used_mask == cpu.pe.cnten
        assert (cpu.spu.e2pb, cpu.spu.pmblimitr, cpu.spu.pmbsr, cpu.spu.guest, cpu.spu.nr_pending) == (0, 0, 0, 0, 0)
        assert (cpu.spu.lost, cpu.spu.misplaced) == (0, 0)
    for vcpu in vm.vcpus:
        records.check_widths(vcpu.record, {"event_counters": 6, "counter_width": 64})
        assert vcpu.record.loaded == 0


@pytest.mark.parametrize("seed", range(120))
def test_anything_that_a_vmm_does_succeeds_or_is_refused_and_a_vm_that_has_run_stays_what_it_is(seed: int) -> None:
    rng = random.Random(seed)
    with_spe = seed >= 80
    cores = ("cortex-a78", SPE_CORE, SPE_CORE) if with_spe else (LITTLE, BIG, BIG)
    host = system(*cores, reserved_host_counters=rng.choice([None, 0, 2]))
    vm = host.create_vm()
    vcpus = [vm.create_vcpu(v) for v in range(2)]
    assert isinstance(host.executor, Script)
    if with_spe and rng.random() < 0.9:
        give_vgic(vm)
    for vcpu in vcpus:
        vcpu.init(*(PMU_AND_SPE if with_spe else PMU))
        if with_spe and vm.vgic is not None and rng.random() < 0.7:
            vcpu.set_attr(k.KVM_ARM_VCPU_SPE_IRQ, 21, group=k.KVM_ARM_VCPU_SPE_CTRL)
            vcpu.set_attr(k.KVM_ARM_VCPU_SPE_INIT, group=k.KVM_ARM_VCPU_SPE_CTRL)
        if with_spe and vm.vgic is not None and rng.random() < 0.7:
            vcpu.set_attr(k.KVM_ARM_VCPU_PMU_V3_IRQ, 23)
            vcpu.set_attr(k.KVM_ARM_VCPU_PMU_V3_INIT)
        host.executor.set_guest(vcpu.number, lambda: any_guest(rng))
    ran_with = None
    for _ in range(60):
        with contextlib.suppress(OSError):
            anything(rng, rng.choice(vcpus))
        check(host, vm)
        if vm.ran_once:
            ran_with = ran_with or configuration(vm)
            assert configuration(vm) == ran_with
