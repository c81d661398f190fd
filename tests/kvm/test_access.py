"""The door: what a guest reads and changes is the same with fine-grained traps and without, and never the host's."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arch.support import CYCLE, INSTRUCTION, MASK64, P5, P9, make_pe, near_edge, random_core
from kvm.support import (
    GUEST_FIELDS,
    guest_state,
    host_range,
    make_host,
    make_vcpu,
    make_vm,
    make_world,
    random_host,
    random_vcpu,
)
from pmuvisor import records
from pmuvisor.arch import pmu, sysreg
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import BY_NAME, PMU_KEYS, name_of, pmevcntr, pmevtyper
from pmuvisor.kvm import partitioned
from pmuvisor.kvm import vcpu as life
from pmuvisor.kvm.access import DIRECT, TO_EL1, TRAPPED, TRAPPED_UNDEFINED, UNDEFINED, guest_access
from pmuvisor.kvm.vcpu import Vcpu, Vm

SEEDS = st.integers(0, 2**64 - 1)
EL0, EL1 = 0, 1
READ, WRITE = 0, 1
SW_INCR, INST_RETIRED, CHAIN = 0x00, 0x08, 0x1E
NSH = 1 << 27


class Guest:
    """One vCPU loaded on one PE."""

    def __init__(self, pe: Pe, vm: Vm, vcpu: Vcpu) -> None:
        self.pe, self.vm, self.vcpu, self.host = pe, vm, vcpu, make_host()
        self.world = make_world(pe, vm, vcpu)
        partitioned.vcpu_load(pe, self.host, vm, vcpu, 1)
        life.guest_enter(pe)

    def access(self, el: int, key: int, write: int, value: int = 0) -> int:
        return guest_access(self.world, 0, 0, el, key, write, value, 0)

    def read(self, key: int, el: int = EL1) -> int:
        assert self.access(el, key, READ) in (DIRECT, TRAPPED), name_of(key)
        return self.vcpu.value

    def write(self, key: int, value: int, el: int = EL1) -> None:
        assert self.access(el, key, WRITE, value) in (DIRECT, TRAPPED), name_of(key)

    def interrupt(self) -> int:
        """Let the host's handler run, as an interrupt does; return what is the host's."""
        life.guest_exit(self.pe)
        flags = partitioned.handle_irq(self.pe, self.vm, self.vcpu)
        partitioned.flush_hwstate(self.pe, self.vm, self.vcpu)
        life.guest_enter(self.pe)
        return flags

    def put(self) -> None:
        life.guest_exit(self.pe)
        partitioned.vcpu_put(self.pe, self.host, self.vm, self.vcpu)


def make_guest(n: int = 6, nr_counters: int = 4, pmuver: int = P5, *, use_fgt: int = 1, **core: int) -> Guest:
    pe = make_pe(n, pmuver, **core)
    return Guest(pe, make_vm(nr_counters, use_fgt=use_fgt), make_vcpu(pe))


BOTH_WAYS = pytest.mark.parametrize("use_fgt", [1, 0])


# ---- the same with traps and without ------------------------------------------------------------------------------


def random_guest_access(rng: random.Random) -> tuple[int, int, int, int]:
    key = rng.choice([*PMU_KEYS, *[key for key in PMU_KEYS if not sysreg.PMEVCNTR0_EL0 <= key < 0xDFFF]])
    value = rng.choice([rng.getrandbits(64), near_edge(rng, 64), 1 << rng.randrange(33), rng.randrange(32), MASK64])
    if sysreg.is_pmevtyper(key) or key == sysreg.PMXEVTYPER_EL0:
        value = rng.choice([SW_INCR, SW_INCR, CHAIN, INST_RETIRED, 0x77]) | rng.choice([0, 0, rng.getrandbits(32)])
    if key == sysreg.PMCR_EL0:
        value |= rng.choice([0, 1])
    return rng.choice([EL0, EL1, EL1]), key, rng.getrandbits(1), value


SEEN_BY_GUEST = {
    DIRECT: "done",
    TRAPPED: "done",
    UNDEFINED: "undefined",
    TRAPPED_UNDEFINED: "undefined",
    TO_EL1: "trap to EL1",
}


@settings(max_examples=400, deadline=None)
@given(SEEDS)
def test_a_guest_cannot_tell_fine_grained_traps_from_trapping_everything(seed: int) -> None:
    rng = random.Random(seed)
    core = random_core(rng, rng.choice([1, 2, 6, 31]), fgt=1)
    base = make_pe(**core)
    nr_counters = rng.randrange(1 - base.core.hpmn0, base.core.event_counters + 1)
    denied = rng.choice([[], [INST_RETIRED], [0x11], [0x77, SW_INCR], [0x4005]])
    vm = make_vm(nr_counters, denied=denied)
    random_host(rng, base, vm)
    base.core.pmceid0, base.core.pmceid1 = rng.getrandbits(64), rng.getrandbits(64)
    vcpu = random_vcpu(rng, base, vm)
    guests = []
    # Traps in use; the boot parameter against them; a core that has none.
    for use_fgt, fgt in ((1, 1), (0, 1), (1, 0)):
        pe, twin = make_pe(**core), make_vcpu(base)
        records.assign(pe, base)
        records.assign(twin, vcpu)
        pe.core.fgt = fgt
        guests.append(Guest(pe, make_vm(nr_counters, use_fgt=use_fgt, denied=denied), twin))
    kept = host_range(base, vm)
    for _ in range(40):
        what = rng.random()
        if what < 0.8:
            access = random_guest_access(rng)
            outcomes = [(SEEN_BY_GUEST[guest.access(*access)], guest.vcpu.value) for guest in guests]
        elif what < 0.95:
            el, event, amount = rng.randrange(2), rng.choice([INST_RETIRED, 0x77]), rng.choice([1, 1 << 31])
            for guest in guests:
                # The host's counters are left out of it: what they count is not the guest's doing.
                enabled = guest.pe.cnten
                guest.pe.cnten &= life.implemented_counter_mask(vm)
                pmu.pmu_event(guest.pe, el, event, amount)
                pmu.increment_cycle_counter(guest.pe, pmu.count_pmu_events(guest.pe, el), amount)
                guest.pe.cnten = enabled
            outcomes = []
        else:
            outcomes = [(str(guest.interrupt()), guest.vcpu.irq_level) for guest in guests]
            kept = host_range(guests[0].pe, vm)
        assert len(set(outcomes)) <= 1, (name_of(access[1]), access)
        assert all(host_range(guest.pe, vm) == kept for guest in guests)
    for guest in guests:
        guest.interrupt()
        guest.put()
    assert guest_state(guests[1].vcpu) == guest_state(guests[0].vcpu)
    assert guest_state(guests[2].vcpu) == guest_state(guests[0].vcpu)
    assert guests[0].vcpu.trapped <= guests[1].vcpu.trapped
    assert guests[1].vcpu.direct == guests[2].vcpu.direct == 0


# ---- what must not reach the host ------------------------------------------------------------------------------------


@BOTH_WAYS
def test_pmcr_p_of_a_guest_leaves_the_hosts_counters(use_fgt: int) -> None:
    guest = make_guest(6, 4, use_fgt=use_fgt)
    for i in range(6):
        guest.pe.evcntr[i] = 100 + i
    guest.pe.ccntr = 9
    guest.write(sysreg.PMCR_EL0, 1 << 1)
    assert list(guest.pe.evcntr) == [0, 0, 0, 0, 104, 105]
    assert guest.pe.ccntr == 9
    guest.write(sysreg.PMCR_EL0, 1 << 2)
    assert guest.pe.ccntr == 0


@BOTH_WAYS
def test_mask_registers_show_and_change_the_guests_counters_only(use_fgt: int) -> None:
    guest = make_guest(6, 4, P9, use_fgt=use_fgt, icntr=1)
    mine, host = 0b001111 | CYCLE, 0b110000 | INSTRUCTION
    pe = guest.pe
    for field, set_name, clear_name in (
        ("cnten", "PMCNTENSET_EL0", "PMCNTENCLR_EL0"),
        ("inten", "PMINTENSET_EL1", "PMINTENCLR_EL1"),
        ("ovs", "PMOVSSET_EL0", "PMOVSCLR_EL0"),
    ):
        setattr(pe, field, host)
        guest.write(BY_NAME[set_name], MASK64)
        assert guest.read(BY_NAME[set_name]) == guest.read(BY_NAME[clear_name]) == mine
        assert getattr(pe, field) & host == host
        guest.write(BY_NAME[clear_name], MASK64)
        assert guest.read(BY_NAME[set_name]) == 0
        assert getattr(pe, field) == host


@BOTH_WAYS
def test_the_hosts_registers_are_undefined_for_the_guest(use_fgt: int) -> None:
    guest = make_guest(6, 4, P9, use_fgt=use_fgt, icntr=1)
    for key in (sysreg.PMICNTR_EL0, sysreg.PMICFILTR_EL0):
        assert guest.access(EL1, key, READ) == guest.access(EL1, key, WRITE) == TRAPPED_UNDEFINED
    for n in range(31):
        expected = {DIRECT, TRAPPED} if n < 4 else {TRAPPED_UNDEFINED} if n < 6 else {UNDEFINED}
        for key in (pmevcntr(n), pmevtyper(n)):
            assert guest.access(EL1, key, READ) in expected, name_of(key)
        guest.write(sysreg.PMSELR_EL0, n)
        for key in (sysreg.PMXEVCNTR_EL0, sysreg.PMXEVTYPER_EL0):
            assert guest.access(EL1, key, WRITE) in expected, (name_of(key), n)


@BOTH_WAYS
def test_pmxevcntr_never_reaches_the_cycle_counter(use_fgt: int) -> None:
    guest = make_guest(use_fgt=use_fgt)
    guest.write(sysreg.PMCCNTR_EL0, 77)
    guest.write(sysreg.PMSELR_EL0, 31)
    assert guest.access(EL1, sysreg.PMXEVCNTR_EL0, WRITE, 1) == UNDEFINED
    assert guest.read(sysreg.PMCCNTR_EL0) == 77


# ---- what a guest sees --------------------------------------------------------------------------------------------


@BOTH_WAYS
def test_pmcr_n_is_the_guests_count(use_fgt: int) -> None:
    for nr_counters in (0, 1, 4, 6):
        guest = make_guest(6, nr_counters, use_fgt=use_fgt, identity=0x4101)
        assert guest.read(sysreg.PMCR_EL0) == 0x4101_0000 | nr_counters << 11 | 1 << 6


@BOTH_WAYS
def test_pmswinc_counts_by_the_level_that_executed_it(use_fgt: int) -> None:
    guest = make_guest(6, 4, use_fgt=use_fgt)
    guest.write(sysreg.PMUSERENR_EL0, 1)
    guest.write(pmevtyper(0), SW_INCR)
    guest.write(pmevtyper(1), SW_INCR | 1 << 30)  # not at EL0
    guest.write(pmevtyper(2), INST_RETIRED)
    guest.write(sysreg.PMCNTENSET_EL0, MASK64)
    guest.write(sysreg.PMSWINC_EL0, 0xF)
    assert [guest.read(pmevcntr(n)) for n in range(4)] == [0, 0, 0, 0]  # PMCR_EL0.E is clear
    guest.write(sysreg.PMCR_EL0, 1)
    guest.write(sysreg.PMSWINC_EL0, MASK64)
    guest.write(sysreg.PMSWINC_EL0, 0b0011, EL0)
    # Counter 3's type is 0 as well: SW_INCR.
    assert [guest.read(pmevcntr(n)) for n in range(4)] == [2, 1, 0, 1]
    assert list(guest.pe.evcntr[4:]) == [0, 0]


@BOTH_WAYS
def test_pmceid_hides_denied_events(use_fgt: int) -> None:
    pe = make_pe(6, P5, pmceid0=0x0000_0003_0002_0101, pmceid1=0x0000_0001_8000_0001)
    vm = make_vm(4, use_fgt=use_fgt, denied=[0x08, 0x20, 0x4001, 0x4020])
    guest = Guest(pe, vm, make_vcpu(pe))
    assert guest.read(sysreg.PMCEID0_EL0) == 0x0000_0001_0002_0001
    assert guest.read(sysreg.PMCEID1_EL0) == 0x0000_0000_8000_0000
    assert guest.read(sysreg.PMMIR_EL1) == 0


@BOTH_WAYS
def test_a_denied_event_reads_back_and_does_not_count(use_fgt: int) -> None:
    pe = make_pe(6)
    guest = Guest(pe, make_vm(4, use_fgt=use_fgt, denied=[INST_RETIRED]), make_vcpu(pe))
    guest.write(sysreg.PMSELR_EL0, 1)
    guest.write(sysreg.PMXEVTYPER_EL0, INST_RETIRED | 3 << 28)
    guest.write(pmevtyper(0), 0x77 | NSH)
    guest.write(sysreg.PMCNTENSET_EL0, 0b11)
    guest.write(sysreg.PMCR_EL0, 1)
    for el in (0, 1, 2):
        pmu.pmu_event(pe, el, INST_RETIRED, 5)
        pmu.pmu_event(pe, el, 0x77, 5)
    assert guest.read(pmevtyper(0)) == 0x77  # NSH is RES0 to a guest
    assert guest.read(pmevtyper(1)) == INST_RETIRED | 3 << 28
    assert [guest.read(pmevcntr(0)), guest.read(pmevcntr(1))] == [10, 0]


@BOTH_WAYS
def test_an_overflow_reaches_the_guest_as_its_own_and_clearing_it_lowers_the_line(use_fgt: int) -> None:
    guest = make_guest(use_fgt=use_fgt)
    guest.write(pmevtyper(2), INST_RETIRED)
    guest.write(pmevcntr(2), 0xFFFF_FFFF)
    guest.write(sysreg.PMINTENSET_EL1, 0b0100)
    guest.write(sysreg.PMCNTENSET_EL0, 0b0100)
    guest.write(sysreg.PMCR_EL0, 1)
    pmu.pmu_event(guest.pe, EL1, INST_RETIRED, 1)
    assert pmu.check_for_pmu_overflow(guest.pe) == 1
    assert guest.interrupt() == 0
    assert pmu.check_for_pmu_overflow(guest.pe) == 0
    assert (guest.vcpu.irq_level, guest.vcpu.injected) == (1, 1)
    assert guest.read(sysreg.PMOVSSET_EL0) == 0b0100
    guest.write(sysreg.PMOVSCLR_EL0, 0b0100)
    assert guest.read(sysreg.PMOVSCLR_EL0) == 0
    assert guest.vcpu.irq_level == 0


@BOTH_WAYS
def test_a_guest_reads_and_clears_an_overflow_that_interrupted_nobody(use_fgt: int) -> None:
    guest = make_guest(use_fgt=use_fgt)
    guest.pe.ovs = 0b110010 | CYCLE
    assert guest.read(sysreg.PMOVSSET_EL0) == 0b000010 | CYCLE
    guest.write(sysreg.PMOVSCLR_EL0, CYCLE | 0b110000)
    assert guest.read(sysreg.PMOVSSET_EL0) == 0b000010
    assert guest.interrupt() == 0b110000
    assert guest.read(sysreg.PMOVSCLR_EL0) == 0b000010


@BOTH_WAYS
def test_a_guest_that_sets_its_own_overflow_gets_its_interrupt(use_fgt: int) -> None:
    guest = make_guest(use_fgt=use_fgt)
    guest.write(sysreg.PMINTENSET_EL1, 0b0001)
    guest.write(sysreg.PMCR_EL0, 1)
    guest.write(sysreg.PMOVSSET_EL0, 0b0001)
    assert guest.vcpu.irq_level == 1
    assert guest.pe.ovs == 0


@BOTH_WAYS
def test_el0_is_stopped_by_the_guests_own_pmuserenr_without_an_exit(use_fgt: int) -> None:
    guest = make_guest(use_fgt=use_fgt)
    assert guest.access(EL0, sysreg.PMCCNTR_EL0, READ) == TO_EL1
    assert guest.access(EL0, sysreg.PMINTENSET_EL1, READ) == UNDEFINED
    assert (guest.vcpu.trapped, guest.vcpu.direct) == (0, 0)
    guest.write(sysreg.PMUSERENR_EL0, 1 << 2)
    assert guest.access(EL0, sysreg.PMCCNTR_EL0, READ) in (DIRECT, TRAPPED)


def test_the_ledger_counts_direct_and_trapped_accesses() -> None:
    for use_fgt, direct, trapped in ((1, 4, 5), (0, 0, 9)):
        guest = make_guest(use_fgt=use_fgt)
        for key in (sysreg.PMCR_EL0, sysreg.PMCCNTR_EL0, pmevcntr(3), sysreg.PMCNTENSET_EL0):
            guest.read(key)  # direct with fine-grained traps
        for key in (sysreg.PMOVSSET_EL0, pmevtyper(3), sysreg.PMCCFILTR_EL0, sysreg.PMXEVTYPER_EL0):
            guest.write(key, 0)
        assert guest.access(EL1, pmevcntr(5), READ) == TRAPPED_UNDEFINED
        assert guest.access(EL1, pmevcntr(6), READ) == UNDEFINED
        assert (guest.vcpu.direct, guest.vcpu.trapped) == (direct, trapped)


def test_every_field_of_a_vcpu_is_compared_here_or_is_about_the_host() -> None:
    others = {"loaded", "residency", "reload_pmu", "task", "first_event", "unsupported_cpu", "value"}
    others |= {"spe", "spe_irq_level"}  # tests/kvm/test_spe.py has those
    ledger = {f.name for f in records.fields(Vcpu) if f.role is records.Role.LEDGER}
    assert {f.name for f in records.fields(Vcpu)} == set(GUEST_FIELDS) | others | ledger
