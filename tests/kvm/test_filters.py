"""The VM's event filter, in PMCEID<n>_EL0 (Documentation/virt/kvm/devices/vcpu.rst; Arm ARM, PMCEID0_EL0)."""

from __future__ import annotations

import pytest

from pmuvisor import records
from pmuvisor.arch.pmu import Features
from pmuvisor.arch.sysreg import PMUV3P0, PMUV3P1, PMUV3P5
from pmuvisor.kvm.filters import allowed_pmceid
from pmuvisor.kvm.vcpu import Vm, event_mask, evtyper_mask

EVERY = (1 << 64) - 1
LOWER = (1 << 32) - 1


def vm_with(pmuver: int, words: int, denied: tuple[int, ...]) -> Vm:
    vm = records.new(Vm, {"filter_words": 1024})
    vm.pmuver, vm.filter_words = pmuver, words
    for event in denied:
        vm.denied[event // 64] |= 1 << event % 64
    return vm


@pytest.mark.parametrize("which", [0, 1])
def test_without_a_filter_nothing_is_hidden(which: int) -> None:
    for pmuver in (PMUV3P0, PMUV3P1):
        assert allowed_pmceid(vm_with(pmuver, 0, ()), which) == EVERY


def test_a_denied_event_is_hidden_wherever_its_bit_is() -> None:
    """Events from 0x0000 are in PMCEID0_EL0, from 0x0020 in PMCEID1_EL0, from 0x4000 in the upper halves."""
    vm = vm_with(PMUV3P1, 1024, (0x0003, 0x001F, 0x0025, 0x4004, 0x401F, 0x4020, 0x403F, 0x4040))
    assert allowed_pmceid(vm, 0) == EVERY ^ (1 << 3 | 1 << 31 | 1 << 36 | 1 << 63)
    assert allowed_pmceid(vm, 1) == EVERY ^ (1 << 5 | 1 << 32 | 1 << 63)


@pytest.mark.parametrize("which", [0, 1])
def test_with_a_filter_a_guest_whose_events_have_10_bits_sees_none_from_0x4000_on(which: int) -> None:
    assert allowed_pmceid(vm_with(PMUV3P0, 16, ()), which) == LOWER
    assert allowed_pmceid(vm_with(PMUV3P0, 1, ()), which) == LOWER


def test_an_event_has_10_bits_before_pmuv3p1_and_16_from_then_on() -> None:
    """kvm_pmu_event_mask(); kvm_pmu_evtyper_mask(): P, U and NSH, with EL3 NSK, NSU and M."""
    for pmuver, bits in ((PMUV3P0, 0x3FF), (PMUV3P1, 0xFFFF), (PMUV3P5, 0xFFFF)):
        vm = vm_with(pmuver, 0, ())
        assert event_mask(vm) == bits
        for el3, filters in ((0, 0xC800_0000), (1, 0xFC00_0000)):
            core = records.new(Features)
            core.el3 = el3
            assert evtyper_mask(core, vm) == filters | bits
