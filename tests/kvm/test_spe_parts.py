"""What KVM's SPE code tells from single registers, value by value (Arm ARM, PMBLIMITR_EL1, PMBSR_EL1, HDFGRTR_EL2)."""

from __future__ import annotations

import pytest

from pmuvisor import records
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.spe import Spu
from pmuvisor.kvm import spe
from pmuvisor.kvm.vcpu import Vcpu, Vm

E, S, COLL, DL = 1, 1 << 17, 1 << 16, 1 << 19
PE = {"event_counters": 1, "counter_width": 64}
PMBIDR, NPMSNEVFR = 1 << 63, 1 << 62


@pytest.mark.parametrize(
    ("pmblimitr", "pmbsr", "enabled"),
    [
        (0, 0, False),
        (0x2000, 0, False),
        (E, 0, True),
        (0x2000 | E, 0, True),
        (E, S, False),
        (E, S | 1, False),
        (E, DL | COLL | 1, True),
        (0, S, False),
    ],
)
def test_the_buffer_is_enabled_with_e_while_no_service_is_needed(pmblimitr: int, pmbsr: int, enabled: bool) -> None:
    assert spe.profiling_buffer_enabled(pmblimitr, pmbsr) == enabled


@pytest.mark.parametrize("ec", range(64))
def test_service_that_is_kvms_is_a_stage_2_fault(ec: int) -> None:
    """EC 0b100101."""
    vcpu = records.new(Vcpu, PE)
    for others in (0, 7, DL | COLL):
        for service in (0, S):
            vcpu.spe.pmbsr = ec << 26 | service | others
            assert spe.is_stage2_fault(vcpu) == (ec == 0x25 and service == S)


@pytest.mark.parametrize(("fne", "fds", "number"), [(0, 0, 6), (1, 0, 7), (0, 1, 7), (1, 1, 8)])
def test_there_are_6_sampling_registers_and_one_more_with_each_of_two_features(fne: int, fds: int, number: int) -> None:
    """PMSCR, PMSICR, PMSIRR, PMSFCR, PMSEVFR, PMSLATFR; PMSNEVFR with FEAT_SPE_FnE, PMSDSFR with FEAT_SPE_FDS."""
    spu = records.new(Spu, {"inflight": 1})
    spu.filter.core.fne, spu.filter.core.fds = fne, fds
    assert spe.sampling_registers(spu) == number


@pytest.mark.parametrize("fgt", [0, 1])
@pytest.mark.parametrize("pmsver", [0, 1, 3])
@pytest.mark.parametrize("of_vm", [0, 1])
@pytest.mark.parametrize("fne", [0, 1])
def test_pmbidr_traps_from_every_guest_and_pmsnevfr_from_those_without_spe(
    fgt: int, pmsver: int, of_vm: int, fne: int
) -> None:
    """HDFGRTR_EL2.PMBIDR_EL1 is bit 63, nPMSNEVFR_EL1 bit 62; what is there already stays."""
    pe, spu, vm = records.new(Pe, PE), records.new(Spu, {"inflight": 1}), records.new(Vm, {"filter_words": 1})
    pe.core.fgt, spu.filter.core.pmsver, spu.filter.core.fne, vm.spe = fgt, pmsver, fne, of_vm
    there = 1 << 12
    pe.hdfgrtr_el2 = pe.hdfgwtr_el2 = there
    spe.fine_grained_traps(pe, spu, vm)
    any_spe = fgt == 1 and pmsver != 0
    through = NPMSNEVFR if any_spe and of_vm == 1 and fne == 1 else 0
    assert pe.hdfgrtr_el2 == there | through | (PMBIDR if any_spe else 0)
    assert pe.hdfgwtr_el2 == there | through
