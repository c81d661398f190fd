"""The fixed-counters-only design, and what it is for: unlike cores, where an emulated guest's counters stand still."""

from __future__ import annotations

import pytest

from kvm.machines import CYCLE, EL0, EL1, EL2, Machine
from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED
from pmuvisor.kvm import access, emulated
from pmuvisor.kvm.vcpu import EMULATED, FIXED_COUNTERS_ONLY
from pmuvisor.linux.host import STATE_ACTIVE, STATE_INACTIVE

LITTLE, BIG = "cortex-a55", "cortex-x1"
P4 = 5
E, LC = 1 << 0, 1 << 6
TOP64 = (1 << 64) - 1


def machine(design: int = FIXED_COUNTERS_ONLY, counters: int = 0, supported_pmus: int = 0b11) -> Machine:
    """A CPU of each of two kinds, and a vCPU that counts cycles from the first entry on, on the first CPU."""
    m = Machine([LITTLE, BIG], [(counters, 1)], design=design, pmuver=P4, supported_pmus=supported_pmus)
    m.run(0)
    m.write("PMINTENSET_EL1", CYCLE)
    m.write("PMCNTENSET_EL0", CYCLE)
    m.write("PMCR_EL0", E | LC)
    return m


def move(m: Machine, to: int) -> None:
    m.switch(1 - to, sleep=True)
    m.run(0, to)


def test_a_guest_has_no_event_counter_and_no_event() -> None:
    m = machine()
    assert m.read("PMCR_EL0") >> 11 & 0x1F == 0
    assert (m.read("PMCEID0_EL0"), m.read("PMCEID1_EL0")) == (0, 0)
    for name in ("PMEVCNTR0_EL0", "PMEVTYPER0_EL0", "PMXEVCNTR_EL0", "PMXEVTYPER_EL0"):
        m.write("PMSELR_EL0", 0)
        for write in (0, 1):
            assert m.try_access(0, name, write) == access.TRAPPED_UNDEFINED, name
    for name in ("PMCNTENSET_EL0", "PMINTENSET_EL1", "PMOVSSET_EL0"):
        m.write(name, TOP64)
        assert m.read(name) == CYCLE


def test_cycles_count_on_every_cpu_of_unlike_cores() -> None:
    m = machine()
    for turn in range(1, 6):
        c = turn & 1
        move(m, c)
        m.execute(c, EL1, 10)
        m.execute(c, EL0, 5)
        m.execute(c, EL2, 100)
        assert m.read("PMCCNTR_EL0", c) == 15 * turn


def test_a_migration_to_another_kind_of_core_asks_for_a_reload_and_gets_an_event_there() -> None:
    m = machine()
    vcpu = m.world.vcpus[0]
    m.execute(0, EL1, 10)
    event = m.event_of(0, 31)
    assert (event.pmu, event.state, vcpu.perf_created) == (0, STATE_ACTIVE, 1)
    move(m, 1)
    assert (vcpu.reload_pmu, event.pmu, event.state) == (1, 0, STATE_INACTIVE)
    m.execute(1, EL1, 10)
    # The count of the event that was released is in the register now.
    assert (vcpu.reload_pmu, event.pmu, event.state, event.count, vcpu.ccntr) == (0, 1, STATE_ACTIVE, 0, 10)
    assert (vcpu.perf_created, vcpu.perf_released) == (2, 1)
    assert m.read("PMCCNTR_EL0", 1) == 20


def test_a_migration_within_a_kind_of_core_asks_for_nothing() -> None:
    m = Machine([LITTLE, LITTLE], [(0, 1)], design=FIXED_COUNTERS_ONLY, pmuver=P4, supported_pmus=0b11)
    m.run(0)
    m.program_guest(0)
    move(m, 1)
    assert m.world.vcpus[0].reload_pmu == 0
    m.execute(1, EL1, 10)
    assert (m.read("PMCCNTR_EL0", 1), m.world.vcpus[0].perf_created) == (10, 1)


def test_a_counter_that_is_not_enabled_asks_for_nothing_until_the_guest_enables_it() -> None:
    m = machine()
    vcpu = m.world.vcpus[0]
    m.write("PMCR_EL0", LC)
    m.execute(0, EL1, 10)
    move(m, 1)
    assert vcpu.reload_pmu == 0
    m.write("PMCR_EL0", E | LC, 1)
    assert (m.event_of(0, 31).pmu, vcpu.perf_created) == (1, 2)
    m.execute(1, EL1, 10)
    assert m.read("PMCCNTR_EL0", 1) == 10


def test_every_fixed_counter_that_is_enabled_is_looked_at_not_only_the_cycle_counter() -> None:
    # There is no other in a guest's PMU today: a counter of lower number stands for one.
    for enabled, asked in ((1, 1), (CYCLE, 0), (0, 0)):
        m = machine()
        vcpu = m.world.vcpus[0]
        event = m.event_of(0, 0)
        event.attached, event.pmu, vcpu.cnten = 1, 1, enabled
        emulated.load_pmu(m.host, 0, vcpu)
        assert vcpu.reload_pmu == asked
        event.attached = 0


@pytest.mark.parametrize("supported", [0b11, 0b01])
def test_a_cpu_of_a_pmu_that_is_not_supported_is_refused(supported: int) -> None:
    m = machine(supported_pmus=supported)
    vcpu = m.world.vcpus[0]
    assert vcpu.unsupported_cpu == 0
    move(m, 1)
    assert vcpu.unsupported_cpu == (supported == 0b01)
    move(m, 0)
    m.execute(0, EL1, 10)
    assert (vcpu.unsupported_cpu, m.read("PMCCNTR_EL0")) == (0, 10)


def test_an_overflow_of_the_cycle_counter_across_a_migration_is_delivered_once() -> None:
    m = machine()
    m.write("PMCCNTR_EL0", TOP64 - 99)
    m.execute(0, EL1, 40)
    move(m, 1)
    m.execute(1, EL1, 40)
    move(m, 0)
    m.execute(0, EL1, 19)
    assert (m.irq_level(), m.read("PMOVSSET_EL0")) == (0, 0)
    move(m, 1)
    m.execute(1, EL1, 1)
    vcpu = m.world.vcpus[0]
    assert (m.irq_level(1), m.read("PMOVSSET_EL0", 1), m.read("PMCCNTR_EL0", 1)) == (1, CYCLE, 0)
    m.write("PMOVSCLR_EL0", CYCLE, 1)
    for c in (0, 1):
        move(m, c)
        m.execute(c, EL1, 1000)
        assert m.irq_level(c) == 0
    assert (vcpu.overflows, vcpu.injected) == (1, 1)


def test_hetero_cycle_stuck_an_emulated_guest_without_a_selected_pmu_stops_counting_on_other_cores() -> None:
    """kvm_arm_set_default_pmu(): the VM may run everywhere, and its events are those of one kind of core."""
    m = machine(EMULATED, counters=4)
    m.write("PMEVTYPER0_EL0", INST_RETIRED)
    m.write("PMCNTENSET_EL0", 1)
    m.execute(0, EL1, 10)
    move(m, 1)
    m.execute(1, EL1, 1000)
    assert m.world.vcpus[0].unsupported_cpu == 0
    assert m.guest_counts(1) == {INST_RETIRED: 10, CPU_CYCLES: 10}
    assert m.event_of(0, 0).state == m.event_of(0, 31).state == STATE_INACTIVE
    # A write of the counter there makes an event of the VM's PMU again, which waits.
    m.write("PMCCNTR_EL0", 50, 1)
    m.execute(1, EL1, 1000)
    assert m.read("PMCCNTR_EL0", 1) == 50
    move(m, 0)
    m.execute(0, EL1, 10)
    assert m.guest_counts(0) == {INST_RETIRED: 20, CPU_CYCLES: 60}


def test_an_emulated_guest_sees_the_events_of_its_own_pmu_wherever_it_is() -> None:
    """kvm_pmu_get_pmceid() of Linux newer than 6.12 goes by kvm->arch.arm_pmu, not by the CPU at hand."""
    m = machine(EMULATED, counters=4)
    own = m.read("PMCEID0_EL0"), m.read("PMCEID1_EL0")
    assert own != (m.host.cpus[1].pe.core.pmceid0 | 1 << 0x1E | 1, m.host.cpus[1].pe.core.pmceid1)
    move(m, 1)
    assert (m.read("PMCEID0_EL0", 1), m.read("PMCEID1_EL0", 1)) == own
