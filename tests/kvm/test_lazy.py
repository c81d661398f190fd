"""The lazy design: nothing is swapped until the guest touches its PMU, and the guest cannot tell."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm.machines import CYCLE, EL0, EL1, EL2, Machine
from kvm.test_access import SEEN_BY_GUEST, random_guest_access
from pmuvisor import records
from pmuvisor.arch.events import INST_RETIRED
from pmuvisor.arch.sysreg import PMU_KEYS, name_of
from pmuvisor.kvm import access, world
from pmuvisor.kvm.vcpu import FREE, GUEST_OWNED, LAZY, PARTITIONED, Vcpu
from pmuvisor.records import Role

N1 = "neoverse-n1"  # six event counters
E, LC = 1 << 0, 1 << 6
HPMN, TPMCR, TPM, HPMD = 0x1F, 1 << 5, 1 << 6, 1 << 17


def machine(design: int = LAZY, *, fgt: int = 0, counters: int = 4, cpus: int = 1) -> Machine:
    m = Machine([N1] * cpus, [(counters, 1)], design=design)
    for cpu in m.host.cpus:
        cpu.pe.core.fgt = fgt
    return m


def ledger(vcpu: Vcpu) -> dict[str, int]:
    return {f.name: getattr(vcpu, f.name) for f in records.fields(Vcpu) if f.role is Role.LEDGER}


# ---- whose the registers are --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pmcr", "cnten", "residency"),
    [
        (LC, 0, FREE),
        (LC | E, 0, FREE),
        (LC, 0b1, FREE),
        (LC, CYCLE, FREE),
        (LC | E, 0b1, GUEST_OWNED),
        (LC | E, CYCLE, GUEST_OWNED),
    ],
)
def test_at_load_the_pmu_is_the_guest_s_if_a_counter_is_enabled(pmcr: int, cnten: int, residency: int) -> None:
    m = machine()
    vcpu = m.world.vcpus[0]
    vcpu.pmcr, vcpu.cnten = pmcr, cnten
    m.run(0)
    assert (vcpu.residency, m.host.cpus[0].hw.guest_resident) == (residency, residency)
    assert m.host.cpus[0].pe.mdcr_el2 & HPMN == (4 if residency == GUEST_OWNED else 6)


@pytest.mark.parametrize("fgt", [0, 1])
@pytest.mark.parametrize("el", [EL0, EL1])
def test_the_first_access_of_whatever_register_takes_one_exit_and_then_goes_as_under_partitioned(
    el: int, fgt: int
) -> None:
    for key in PMU_KEYS:
        for write in (0, 1):
            m, like = machine(fgt=fgt), machine(PARTITIONED, fgt=fgt)
            outcomes = []
            for each in (m, like):
                each.run(0)
                world.vcpu_enter(each.world, 0, 0, 0)
                outcomes.append(access.guest_access(each.world, 0, 0, el, key, write, 0, 0))
            vcpu = m.world.vcpus[0]
            if outcomes[0] == access.UNDEFINED:
                # Not by KVM but by the hardware: no such register, or no such counter.
                assert (outcomes[1], vcpu.residency, vcpu.trapped) == (access.UNDEFINED, FREE, 0), name_of(key)
                continue
            assert (outcomes[0], vcpu.residency, vcpu.trapped) == (access.AGAIN, GUEST_OWNED, 1), name_of(key)
            assert access.guest_access(m.world, 0, 0, el, key, write, 0, 0) == outcomes[1], name_of(key)
            assert vcpu.value == like.world.vcpus[0].value
            assert vcpu.trapped - 1 == like.world.vcpus[0].trapped


def test_a_put_starts_it_over() -> None:
    m = machine()
    vcpu = m.world.vcpus[0]
    m.run(0)
    m.read("PMCCNTR_EL0")
    assert vcpu.residency == GUEST_OWNED
    m.run(0)  # nothing is enabled
    assert vcpu.residency == FREE
    m.program_guest(0)
    m.run(0)
    assert vcpu.residency == GUEST_OWNED
    m.write("PMCR_EL0", LC)
    assert vcpu.residency == GUEST_OWNED
    m.run(0)
    assert vcpu.residency == FREE


def test_preempted_right_after_the_ownership_the_next_load_decides_anew() -> None:
    m = machine(cpus=2)
    vcpu = m.world.vcpus[0]
    m.run(0)
    world.set_guest_ownership(m.world, 0, 0, m.now)
    assert (vcpu.residency, m.host.cpus[0].hw.guest_resident) == (GUEST_OWNED, 1)
    m.switch(0, sleep=True)
    assert (vcpu.residency, m.host.cpus[0].hw.guest_resident) == (FREE, 0)
    m.run(0, 1)
    assert (vcpu.residency, m.host.cpus[1].hw.guest_resident) == (FREE, 0)
    m.write("PMEVCNTR0_EL0", 5, 1)  # the instruction that trapped is executed again, and traps again
    assert m.read("PMEVCNTR0_EL0", 1) == 5


@pytest.mark.parametrize(("pmcr", "level"), [(LC | E, 1), (LC, 0)])
def test_the_interrupt_level_is_kept_while_the_registers_are_nobody_s(pmcr: int, level: int) -> None:
    m = machine()
    vcpu = m.world.vcpus[0]
    vcpu.pmcr, vcpu.ovs, vcpu.inten = pmcr, 0b10, 0b11
    m.run(0)
    assert (vcpu.residency, m.irq_level()) == (FREE, level)
    m.read("PMCR_EL0")
    assert (vcpu.residency, m.irq_level()) == (GUEST_OWNED, level)
    m.write("PMOVSCLR_EL0", 0b10)
    assert m.irq_level() == 0


# ---- what it costs ------------------------------------------------------------------------------------------


def test_a_guest_that_never_touches_its_pmu_costs_nothing() -> None:
    m = machine(counters=6)
    vcpu, cpu = m.world.vcpus[0], m.host.cpus[0]
    events = [m.open(cpu=0, config=INST_RETIRED) for _ in range(6)]
    places = [m.host.events[n].idx for n in events]
    host_mdcr = cpu.pe.mdcr_el2
    for turn in range(5):
        m.run(0)
        assert [m.host.events[n].idx for n in events] == places
        assert (cpu.hw.cntr_mask, cpu.hw.guest_resident) == (0x3F | CYCLE, 0)
        # All counters the host's, none prohibited; what differs are traps, and HPME, which has no counters.
        assert cpu.pe.mdcr_el2 & (HPMN | HPMD | TPM | TPMCR) == 6 | TPM | TPMCR
        assert (cpu.pe.hdfgrtr_el2, cpu.pe.hdfgwtr_el2) == (0, 0)
        m.execute(0, EL1, 100)
        m.execute(0, EL0, 10)
        m.execute(0, EL2, 1)
        assert m.event(events[0]).count == 111 * (turn + 1)
        m.switch(0, sleep=True)
        assert cpu.pe.mdcr_el2 == host_mdcr
    assert {name for name, count in ledger(vcpu).items() if count} == {"loads", "puts"}
    assert (vcpu.loads, vcpu.puts) == (5, 5)
    for n in events:
        event = m.event(n)
        assert event.count == event.total_time_running == event.total_time_enabled == 555


def test_the_host_s_events_move_when_the_guest_touches_its_pmu_and_not_before() -> None:
    m = machine(counters=4)
    event = m.open(cpu=0, config=INST_RETIRED)
    m.run(0)
    assert (m.host.events[event].idx, m.world.vcpus[0].rescheduled) == (0, 0)
    m.execute(0, EL1, 10)
    m.read("PMCR_EL0")
    assert (m.host.events[event].idx, m.world.vcpus[0].rescheduled) == (4, 1)
    m.execute(0, EL1, 10)
    m.switch(0, sleep=True)
    m.execute(0, EL2, 10)
    assert m.event(event).count == 30


def test_a_host_event_opened_while_the_registers_are_nobody_s_goes_on_at_put() -> None:
    m = machine()
    m.run(0)
    event = m.open(cpu=0, config=INST_RETIRED)
    m.switch(0, sleep=True)
    m.execute(0, EL2, 10)
    assert m.event(event).count == 10


@pytest.mark.parametrize(
    ("fgt", "counters", "used"),
    [(1, 4, True), (0, 4, False), (1, 0, False)],  # a Neoverse N1 has no FEAT_HPMN0
)
def test_fine_grained_traps_are_for_an_owner_with_the_feature_and_a_legal_hpmn(
    fgt: int, counters: int, used: bool
) -> None:
    m = machine(fgt=fgt, counters=counters)
    pe = m.host.cpus[0].pe
    m.run(0)
    assert (pe.hdfgrtr_el2, pe.hdfgwtr_el2, pe.mdcr_el2 & TPM) == (0, 0, TPM)
    m.read("PMCR_EL0")
    assert (pe.hdfgrtr_el2 != 0, pe.hdfgwtr_el2 != 0, pe.mdcr_el2 & TPM == 0) == (used, used, used)


# ---- the guest cannot tell ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_a_guest_cannot_tell_lazy_from_partitioned(seed: int) -> None:
    rng = random.Random(seed)
    fgt, counters = rng.getrandbits(1), rng.randrange(1, 7)
    machines = [machine(design, fgt=fgt, counters=counters, cpus=2) for design in (LAZY, PARTITIONED)]
    place = 0
    for m in machines:
        m.run(0)
    for _ in range(60):
        what = rng.random()
        if what < 0.6:
            el, key, write, value = random_guest_access(rng)
            if rng.random() < 0.3:
                value = 0
            seen = [
                (SEEN_BY_GUEST[m.try_access(place, name_of(key), write, value, el)], m.world.vcpus[0].value)
                for m in machines
            ]
        elif what < 0.8:
            el, amount = rng.choice([EL0, EL1, EL2]), rng.choice([1, 100, 1 << 31])
            for m in machines:
                m.execute_late(place, el, amount)
            seen = [("level", m.irq_level(place)) for m in machines]
        else:
            to = rng.randrange(2)
            for m in machines:
                m.switch(place, sleep=True)
                m.run(0, to)
            place = to
            seen = [("level", m.irq_level(place)) for m in machines]
        assert seen[0] == seen[1]
    lazy, partitioned = (m.world.vcpus[0] for m in machines)
    assert lazy.overflows == partitioned.overflows
    assert lazy.swapped <= partitioned.swapped
