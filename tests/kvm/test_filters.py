"""The VM's event filter, in PMCEID<n>_EL0 (Documentation/virt/kvm/devices/vcpu.rst; Arm ARM, PMCEID0_EL0)."""

from __future__ import annotations

import pytest

from pmuvisor import records
from pmuvisor.arch.sysreg import PMUV3P0, PMUV3P1
from pmuvisor.kvm.filters import allowed_pmceid
from pmuvisor.kvm.vcpu import Vm

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
