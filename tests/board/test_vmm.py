"""VMs as `pmuvisor run` and scenarios set them up: by attributes, of which KVM says what is legal."""

from __future__ import annotations

from errno import EINVAL

import pytest

from kvm.uapi_support import LITTLE, refused, system
from pmuvisor.arch.cores import cores, variant
from pmuvisor.board.machine import DESIGNS, Config, CountError, own_cpus
from pmuvisor.board.vmm import create_irqchip, create_vm, pmu_attributes
from pmuvisor.kvm.uapi import System, boot
from pmuvisor.kvm.uapi import abi as k
from pmuvisor.kvm.vcpu import FIXED_COUNTERS_ONLY

WITH_PMUV3 = [core for core in cores().values() if core.pmuv3]
WITH_PMUV3 += [variant(cores()[name], event_counters=n) for name in ("max", "cortex-a76") for n in (0, 1, 31)]


def test_designs_are_attributes_of_the_pmu() -> None:
    count, partition = k.KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, k.KVM_ARM_VCPU_PMU_V3_PARTITION
    fixed, pmu = k.KVM_ARM_VCPU_PMU_V3_FIXED_COUNTERS_ONLY, k.KVM_ARM_VCPU_PMU_V3_SET_PMU
    assert list(pmu_attributes(DESIGNS["emulated"], 3)) == [(count, 3)]
    assert list(pmu_attributes(DESIGNS["emulated"], 3, 9)) == [(pmu, 9), (count, 3)]
    assert list(pmu_attributes(DESIGNS["partitioned"], 3, 9)) == [(pmu, 9), (partition, 1), (count, 3)]
    assert list(pmu_attributes(DESIGNS["lazy"], 3)) == [(partition, 3), (count, 3)]
    assert list(pmu_attributes(DESIGNS["fixed-counters-only"], 0, 9)) == [(fixed, None)]


@pytest.mark.parametrize("design", DESIGNS)
def test_counters_that_a_run_refuses_are_those_that_the_ioctls_refuse(design: str) -> None:
    for core in WITH_PMUV3:
        for counters in (*range(core.event_counters + 2), 31):
            kvm = System(boot([core], vcpus=1))
            try:
                wanted = Config(core, counters=counters, design=design).guest_counters()
            except CountError:
                if DESIGNS[design] == FIXED_COUNTERS_ONLY:
                    vcpu = create_vm(kvm, 1, DESIGNS[design], 0).vcpus[0]
                    with refused(EINVAL):
                        vcpu.set_attr(k.KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, counters)
                else:
                    with refused(EINVAL):
                        create_vm(kvm, 1, DESIGNS[design], counters)
            else:
                vm = create_vm(kvm, 1, DESIGNS[design], wanted).record
                assert (vm.nr_counters, vm.design) == (counters, DESIGNS[design]), core.name


@pytest.mark.parametrize("design", DESIGNS)
def test_a_run_has_the_vm_that_its_options_say(design: str) -> None:
    for core in WITH_PMUV3[:5]:
        vm = own_cpus(Config(core, vcpus=2, fgt=False, design=design)).vm
        counters = 0 if design == "fixed-counters-only" else core.event_counters - 2
        assert (vm.design, vm.nr_counters, vm.use_fgt) == (DESIGNS[design], counters, 0)
        # KVM shows a guest PMUv3p5 at most.
        assert (vm.pmuver, vm.supported_pmus, vm.filter_words) == (min(core.pmuver, 6), 1, 0)


def test_a_vm_that_asked_for_a_pmu_runs_on_its_cpus_only() -> None:
    for asked, design, cpus in (
        (True, "emulated", 0b10),
        (False, "emulated", 0b11),
        (False, "partitioned", 0b10),
        (True, "fixed-counters-only", 0b11),
    ):
        kvm = system("cortex-a76", LITTLE)
        kvm.cpu = 1
        vm = create_vm(kvm, 1, DESIGNS[design], 0 if "fixed" in design else 4, kvm.pmus[1].type if asked else None)
        assert vm.supported_cpus == vm.record.supported_pmus == cpus
        assert vm.record.pmu == 1


def test_the_interrupt_controller_is_where_the_board_has_it_and_closes_the_pmus_attributes() -> None:
    vm = create_vm(system(), 2, DESIGNS["partitioned"], 4)
    vgic = create_irqchip(vm)
    assert (vgic.dist_base, vgic.redist_base, vgic.nr_spis + 32) == (0x0800_0000, 0x080A_0000, 256)
    assert [vcpu.get_attr(k.KVM_ARM_VCPU_PMU_V3_IRQ) for vcpu in vm.vcpus] == [23, 23]
    assert all(vcpu.pmu_created for vcpu in vm.vcpus)
    assert [vcpu.mp_state for vcpu in vm.vcpus] == [k.KVM_MP_STATE_RUNNABLE, k.KVM_MP_STATE_STOPPED]
