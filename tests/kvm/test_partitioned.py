"""The partitioned design: what hardware is told, what is swapped, and who gets an overflow."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arch.support import CYCLE, INSTRUCTION, MASK64, P0, P1, P4, P5, P9, make_pe, random_core
from kvm.support import guest_state, host_range, make_host, make_vcpu, make_vm, random_host, random_vcpu
from pmuvisor import records
from pmuvisor.arch import pmu
from pmuvisor.arch.pmu import Pe
from pmuvisor.kvm import filters, partitioned
from pmuvisor.kvm import vcpu as life
from pmuvisor.kvm.partitioned import flush_hwstate, handle_irq, vcpu_load, vcpu_put
from pmuvisor.kvm.vcpu import EMULATED, PARTITIONED, Vcpu, Vm

SEEDS = st.integers(0, 2**64 - 1)
P, U, NSK, NSU, NSH = 1 << 31, 1 << 30, 1 << 29, 1 << 28, 1 << 27
INST_RETIRED, CPU_CYCLES = 0x08, 0x11


# ---- what hardware is told ------------------------------------------------------------------------------------

# HPME 0x80, TDOSA 0x400, TDRA 0x800, TPMS 0x4000 and TTRF 0x80000 always: 0x84c80, and HPMN. HPMD 0x20000 from p1 and
# HCCD 0x800000 from p5. TPMCR 0x20 and TPM 0x40 without fine-grained traps.


@pytest.mark.parametrize(
    ("pmuver", "fgt", "supported", "mdcr"),
    [
        (P0, 1, 1, 0x084C84),
        (P0, 0, 1, 0x084CE4),
        (P1, 1, 1, 0x0A4C84),
        (P4, 0, 1, 0x0A4CE4),
        (P5, 1, 1, 0x8A4C84),
        (P5, 0, 1, 0x8A4CE4),
        (P9, 1, 1, 0x8A4C84),
        (
            P5,
            1,
            0,
            0x084CE6,
        ),  # cannot run it: all six counters the host's, none prohibited; all trapped
    ],
)
@pytest.mark.parametrize("without", ["core", "boot parameter"])
def test_mdcr_el2_of_a_loaded_vcpu(pmuver: int, fgt: int, supported: int, mdcr: int, without: str) -> None:
    pe = make_pe(6, pmuver, fgt=fgt if without == "core" else 1)
    vm = make_vm(4, use_fgt=fgt if without == "boot parameter" else 1)
    vcpu_load(pe, make_host(), vm, make_vcpu(pe), supported)
    assert pe.mdcr_el2 == mdcr


def test_mdcr_el2_of_a_vm_with_no_counters_or_another_design() -> None:
    pe = make_pe(6, P5, hpmn0=1)
    for vm, mdcr in ((make_vm(0), 0x8A4C80), (make_vm(4), 0x084CE6)):
        vm.design = EMULATED if vm.nr_counters else PARTITIONED
        vcpu_load(pe, make_host(), vm, make_vcpu(pe), 1)
        assert pe.mdcr_el2 == mdcr


@pytest.mark.parametrize(
    ("use_fgt", "denied", "reads", "writes"),
    [
        # PMEVTYPERn [13], PMCCFILTR [14], PMOVS [18]; of reads PMMIR [22], with a filter PMCEIDn [58]
        (1, [], 0x44_6000, 0x4_6000),
        (1, [CPU_CYCLES], 0x0400_0000_0044_6000, 0x4_6000),
        (0, [CPU_CYCLES], 0, 0),
    ],
)
def test_fine_grained_traps_of_a_loaded_vcpu(use_fgt: int, denied: list[int], reads: int, writes: int) -> None:
    pe = make_pe(6)
    host, vm, vcpu = make_host(), make_vm(4, use_fgt=use_fgt, denied=denied), make_vcpu(pe)
    vcpu_load(pe, host, vm, vcpu, 1)
    assert (pe.hdfgrtr_el2, pe.hdfgwtr_el2, pe.hdfgrtr2_el2, pe.hdfgwtr2_el2) == (reads, writes, 0, 0)
    vcpu_put(pe, host, vm, vcpu)
    assert (pe.hdfgrtr_el2, pe.hdfgwtr_el2) == (0, 0)


@pytest.mark.parametrize(
    ("n", "hpmn0", "asked", "refused"),
    [(6, 1, 0, 0), (6, 0, 0, 1), (6, 0, 1, 0), (6, 0, 6, 0), (6, 1, 7, 1), (0, 0, 0, 1), (0, 1, 0, 0), (31, 0, 31, 0)],
)
def test_a_count_that_hardware_cannot_give_is_refused(n: int, hpmn0: int, asked: int, refused: int) -> None:
    assert partitioned.count_refused(make_pe(n, hpmn0=hpmn0).core, asked) == refused


# ---- load and put -----------------------------------------------------------------------------------------------


def situation(seed: int) -> tuple[random.Random, Pe, Vm]:
    """Return a random core and a VM that it can give the counters that it asks for."""
    rng = random.Random(seed)
    n = rng.choice([1, 2, 6, 31])
    pe = make_pe(**random_core(rng, n))
    denied = rng.choice([[], [0x08], [0x11], [0x77, 0x00]])
    vm = make_vm(rng.randrange(1 - pe.core.hpmn0, n + 1), use_fgt=rng.getrandbits(1), denied=denied)
    return rng, random_host(rng, pe, vm), vm


def controls(pe: Pe) -> tuple[int, ...]:
    return pe.pmcr, pe.selr, pe.userenr, pe.mdcr_el2, pe.hdfgrtr_el2, pe.hdfgwtr_el2, pe.cnten, pe.inten, pe.ovs, pe.tge


@settings(max_examples=300, deadline=None)
@given(SEEDS)
def test_load_and_put_restore_host_and_guest(seed: int) -> None:
    rng, pe, vm = situation(seed)
    host, vcpu = make_host(), random_vcpu(rng, pe, vm)
    kept, before, mine = host_range(pe, vm), controls(pe), guest_state(vcpu)
    vcpu_load(pe, host, vm, vcpu, 1)
    assert host_range(pe, vm) == kept
    vcpu_put(pe, host, vm, vcpu)
    assert host_range(pe, vm) == kept
    assert controls(pe) == before
    assert guest_state(vcpu) == mine


def what_the_guest_has(pe: Pe, vm: Vm) -> tuple[object, ...]:
    n = vm.nr_counters
    mine = ((1 << n) - 1) | CYCLE
    own = list(pe.evcntr[:n]), list(pe.evtyper[:n]), pe.ccntr, pe.ccfiltr, pe.pmcr, pe.selr, pe.userenr
    return *own, pe.cnten & mine, pe.inten & mine


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_a_vcpu_takes_its_counters_to_another_cpu(seed: int) -> None:
    rng, pe, vm = situation(seed)
    other = random_host(rng, records.copy(pe), vm)
    host, vcpu = make_host(), random_vcpu(rng, pe, vm)
    vcpu_load(pe, host, vm, vcpu, 1)
    life.guest_enter(pe)
    for _ in range(3):
        pmu.pmu_event(pe, rng.randrange(2), rng.choice([0x00, 0x08, 0x77]), rng.getrandbits(20))
        pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, rng.randrange(2)), rng.getrandbits(40))
    life.guest_exit(pe)
    left = what_the_guest_has(pe, vm)
    overflowed = pe.ovs & life.implemented_counter_mask(vm)
    vcpu_put(pe, host, vm, vcpu)
    kept = host_range(other, vm)
    vcpu_load(other, host, vm, vcpu, 1)
    assert what_the_guest_has(other, vm) == left
    assert vcpu.ovs == overflowed
    assert host_range(other, vm) == kept
    assert other.ovs & life.implemented_counter_mask(vm) == 0


def test_on_a_cpu_that_cannot_run_it_nothing_of_the_guest_is_touched_or_loaded() -> None:
    rng = random.Random(1)
    vm = make_vm(4)
    pe = random_host(rng, make_pe(6), vm)
    pe.cnten = pe.inten = 0b111111 | CYCLE
    host, vcpu = make_host(), random_vcpu(rng, pe, vm)
    mine, everything, before = guest_state(vcpu), host_range(pe, make_vm(0)), controls(pe)
    cycles = pe.ccntr, pe.ccfiltr
    vcpu_load(pe, host, vm, vcpu, 0)
    assert vcpu.unsupported_cpu == 1
    assert (pe.pmcr, pe.cnten, pe.inten) == (before[0], 0b111111 | CYCLE, 0b111111 | CYCLE)
    assert (pe.ccntr, pe.ccfiltr) == cycles
    vcpu_put(pe, host, vm, vcpu)
    assert guest_state(vcpu) == mine
    assert host_range(pe, make_vm(0)) == everything
    assert controls(pe) == before
    assert vcpu.swapped == 0


def test_the_guest_never_counts_at_el2_whatever_userspace_restored() -> None:
    for pmuver in (P0, P1, P4, P5, P9):
        pe, vm = make_pe(6, pmuver), make_vm(6)
        vcpu = make_vcpu(pe)
        vcpu.pmcr |= 1
        vcpu.cnten = 0b111111 | CYCLE
        vcpu.ccfiltr = NSH
        for i in range(6):
            vcpu.evtyper[i] = INST_RETIRED | NSH
        vcpu_load(pe, make_host(), vm, vcpu, 1)
        assert pmu.count_pmu_events(pe, 2) == 0
        assert pmu.count_pmu_events(pe, 1) == 0b111111 | CYCLE


# ---- the event filter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", [0, P, U, NSK | NSU, P | NSK, NSH, 0x3F << 26])
def test_a_denied_type_that_userspace_restored_counts_nowhere_and_reads_as_restored(filters: int) -> None:
    pe, vm = make_pe(4), make_vm(4, denied=[INST_RETIRED])
    vcpu = make_vcpu(pe)
    vcpu.pmcr |= 1
    vcpu.cnten = 0b1111
    vcpu.evtyper[0] = INST_RETIRED | filters
    vcpu.evtyper[1] = 0x77
    vcpu_load(pe, make_host(), vm, vcpu, 1)
    for el in (0, 1, 2):
        pmu.pmu_event(pe, el, INST_RETIRED, 5)
        pmu.pmu_event(pe, el, 0x77, 5)
    assert list(pe.evcntr) == [0, 10, 0, 0]
    assert vcpu.evtyper[0] == INST_RETIRED | filters


def test_the_cycle_counter_is_filtered_as_cpu_cycles() -> None:
    for denied, counted in (([], 20), ([CPU_CYCLES], 0)):
        pe, vm = make_pe(4), make_vm(4, denied=denied)
        vcpu = make_vcpu(pe)
        vcpu.pmcr |= 1
        vcpu.cnten = CYCLE
        vcpu_load(pe, make_host(), vm, vcpu, 1)
        for el in (0, 1, 2):
            pmu.increment_cycle_counter(pe, pmu.count_pmu_events(pe, el), 10)
        assert pe.ccntr == counted


@pytest.mark.parametrize(("pmuver", "loaded"), [(P4, 0xDBAD_C0DE), (P5, 0x1DE7_EC7E_DBAD_C0DE)])
def test_a_counter_that_userspace_restored_is_as_wide_as_the_cpus(pmuver: int, loaded: int) -> None:
    """Arm ARM, PMEVCNTR<n>_EL0: before PMUv3p5 bits [63:32] are RES0. KVM_SET_ONE_REG keeps all 64 bits."""
    pe = make_pe(6, pmuver)
    vm, vcpu = make_vm(4), make_vcpu(pe)
    vcpu.evcntr[0] = 0x1DE7_EC7E_DBAD_C0DE
    vcpu_load(pe, make_host(), vm, vcpu, 1)
    assert pe.evcntr[0] == loaded


def test_software_increments_and_chains_are_never_filtered() -> None:
    # Linux Documentation/virt/kvm/devices/vcpu.rst, "Restrictions" of KVM_ARM_VCPU_PMU_V3_FILTER.
    vm = make_vm(4, denied=[0x00, 0x08, 0x1E])
    assert [filters.event_allowed(vm, event) for event in (0x00, 0x08, 0x1E)] == [1, 0, 1]
    pe, vcpu = make_pe(4), make_vcpu(make_pe(4))
    vcpu.cnten, vcpu.pmcr = 1, 1  # counter 0, PMCR_EL0.E
    partitioned.vcpu_load(pe, make_host(), vm, vcpu, 1)
    pmu.pmu_sw_increment(pe, 1, 1)
    assert pe.evcntr[0] == 1


def test_a_filter_speaks_of_the_events_in_its_words_only() -> None:
    vm = make_vm(4, denied=[0x08, 0x41])
    assert [filters.event_allowed(vm, event) for event in (0x07, 0x08, 0x40, 0x41, 0x80, 0xFFFF)] == [
        1,
        0,
        1,
        0,
        1,
        1,
    ]


# ---- overflow -------------------------------------------------------------------------------------------------------


def loaded(n: int = 6, nr_counters: int = 4) -> tuple[Pe, Vm, Vcpu]:
    pe, vm = make_pe(n, P9, icntr=1), make_vm(nr_counters)
    vcpu = make_vcpu(pe)
    vcpu_load(pe, make_host(), vm, vcpu, 1)
    return pe, vm, vcpu


def test_each_overflow_goes_to_whose_counter_it_is_once() -> None:
    pe, vm, vcpu = loaded()
    pe.ovs = 0b110101 | CYCLE | INSTRUCTION
    vcpu.ovs = 0b000010
    assert handle_irq(pe, vm, vcpu) == 0b110000 | INSTRUCTION
    assert (vcpu.ovs, pe.ovs, vcpu.overflows) == (0b000111 | CYCLE, 0, 3)
    assert handle_irq(pe, vm, vcpu) == 0
    assert (vcpu.ovs, vcpu.overflows) == (0b000111 | CYCLE, 3)


def test_without_a_guest_loaded_every_overflow_is_the_hosts() -> None:
    everything = 0b111111 | CYCLE | INSTRUCTION
    pe, vm, vcpu = loaded()
    vcpu_put(pe, make_host(), vm, vcpu)
    pe.ovs = everything
    assert handle_irq(pe, vm, vcpu) == everything
    pe, vm = make_pe(6, P9, icntr=1), make_vm(4)
    vcpu = make_vcpu(pe)
    vcpu_load(pe, make_host(), vm, vcpu, 0)
    pe.ovs = everything
    assert handle_irq(pe, vm, vcpu) == everything
    assert vcpu.ovs == 0


def test_an_overflow_that_no_interrupt_reported_goes_along_at_put() -> None:
    pe, vm, vcpu = loaded()
    pe.ovs = 0b110001 | CYCLE
    vcpu_put(pe, make_host(), vm, vcpu)
    assert vcpu.ovs == 0b000001 | CYCLE
    assert pe.ovs == 0b110000


def test_an_overflow_from_before_load_is_not_the_guests() -> None:
    pe, vm = make_pe(6), make_vm(4)
    pe.ovs = 0b010001 | CYCLE
    vcpu = make_vcpu(pe)
    vcpu_load(pe, make_host(), vm, vcpu, 1)
    assert partitioned.overflow_status(pe, vm, vcpu) == 0
    assert handle_irq(pe, vm, vcpu) == 0b010000


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_no_overflow_is_lost_or_delivered_twice(seed: int) -> None:
    """Each overflow of the hardware shows up once: in what the host's driver is told, or in the guest's PMOVS."""
    rng, pe, vm = situation(seed)
    host, vcpu = make_host(), random_vcpu(rng, pe, vm)
    implemented = ((1 << pe.core.event_counters) - 1) | CYCLE | (pe.core.icntr << 32)
    mine = life.implemented_counter_mask(vm)
    happened, told = pe.ovs, 0
    for _ in range(20):
        new = rng.getrandbits(33) & rng.getrandbits(33) & implemented & (MASK64 if vcpu.loaded else ~mine)
        happened |= new
        pe.ovs |= new
        step = rng.randrange(4)
        if step == 0 and not vcpu.loaded:
            vcpu_load(pe, host, vm, vcpu, 1)
        elif step == 1 and vcpu.loaded:
            vcpu_put(pe, host, vm, vcpu)
        elif step == 2:
            flags = handle_irq(pe, vm, vcpu)
            assert flags & mine == 0
            told |= flags
        assert (vcpu.ovs | (pe.ovs & mine)) == happened & mine
        assert (told | (pe.ovs & ~mine)) == happened & ~mine
    vcpu.ovs = 0
    pe.ovs &= ~mine
    handle_irq(pe, vm, vcpu)
    assert vcpu.ovs == 0


@pytest.mark.parametrize(
    ("virtual", "hardware", "inten", "e", "level"),
    [
        (0b01, 0, 0b01, 1, 1),
        (0, 0b01, 0b01, 1, 1),
        (CYCLE, 0, CYCLE, 1, 1),
        (0b01, 0, 0b01, 0, 0),
        (0b01, 0, 0b10, 1, 0),
        (0, 0b110000, 0b110001, 1, 0),  # the host's
        (0, INSTRUCTION, INSTRUCTION, 1, 0),
        (0, 0, 0b11, 1, 0),
    ],
)
def test_on_entry_the_guests_line_follows_the_level_rule(
    virtual: int, hardware: int, inten: int, e: int, level: int
) -> None:
    pe, vm, vcpu = loaded()
    vcpu.ovs, pe.ovs, pe.inten, pe.cnten = virtual, hardware, inten, 0
    pe.pmcr = (pe.pmcr & ~1) | e
    flush_hwstate(pe, vm, vcpu)
    assert vcpu.irq_level == level
    flush_hwstate(pe, vm, vcpu)
    assert vcpu.injected == level
    vcpu.ovs = pe.ovs = 0
    flush_hwstate(pe, vm, vcpu)
    assert (vcpu.irq_level, vcpu.injected) == (0, level)


# ---- the ledger --------------------------------------------------------------------------------------------------


def test_the_ledger_of_one_load_and_put() -> None:
    pe, vm, host = make_pe(6), make_vm(4), make_host()
    vcpu = make_vcpu(pe)
    vcpu_load(pe, host, vm, vcpu, 1)
    # Four counters and four types; PMCR, PMSELR, PMUSERENR, PMCNTEN, PMINTEN, PMOVS, PMCCNTR, PMCCFILTR; and of the
    # host PMCR, PMSELR, PMUSERENR.
    assert (vcpu.loads, vcpu.puts, vcpu.swapped) == (1, 0, 8 + 8 + 3)
    vcpu_put(pe, host, vm, vcpu)
    # Types and PMCCFILTR are trapped, so that KVM has them already.
    assert (vcpu.loads, vcpu.puts, vcpu.swapped) == (1, 1, 19 + 4 + 7 + 3)
    assert (vcpu.direct, vcpu.trapped, vcpu.injected, vcpu.overflows) == (0, 0, 0, 0)
