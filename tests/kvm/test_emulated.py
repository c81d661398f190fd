"""The emulated design against arch/arm64/kvm/pmu-emul.c and sys_regs.c of upstream Linux (6.12, and newer).

A machine's guest executes instructions, and as many cycles; what its counters ought to show is counted by hand.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from kvm.machines import CYCLE, EL0, EL1, EL2, Machine
from pmuvisor.arch import sysreg
from pmuvisor.arch.events import CHAIN, CPU_CYCLES, INST_RETIRED, SW_INCR
from pmuvisor.arch.sysreg import PMU_KEYS, name_of
from pmuvisor.kvm import access, emulated, world
from pmuvisor.kvm.vcpu import EMULATED, UNKNOWN
from pmuvisor.linux.host import NO_TASK, STATE_ACTIVE, STATE_ERROR, STATE_INACTIVE, STATE_OFF

P1_HOST, P5_HOST = "neoverse-n1", "neoverse-n2"  # six event counters each, of 32 and of 64 bits
P4, P5 = 5, 6
E, P, C, LC, LP = 1 << 0, 1 << 1, 1 << 2, 1 << 6, 1 << 7
TOP32, TOP64 = (1 << 32) - 1, (1 << 64) - 1


def machine(
    kind: str = P5_HOST, counters: int = 4, *, pmuver: int | None = None, denied: Iterable[int] = ()
) -> Machine:
    """A machine of one CPU where the only vCPU has just been loaded."""
    version = pmuver or (P5 if kind == P5_HOST else P4)
    m = Machine([kind], [(counters, 1)], design=EMULATED, pmuver=version, denied=denied)
    m.run(0)
    return m


def counting(i: int = 0, value: int = 0, m: Machine | None = None) -> Machine:
    """A machine whose guest's counter `i` counts INST_RETIRED from `value` on; PMINTEN is set for all counters."""
    m = m or machine()
    m.write("PMINTENSET_EL1", TOP32)
    if i == 31:
        m.write("PMCCNTR_EL0", value)
    else:
        m.write(f"PMEVTYPER{i}_EL0", INST_RETIRED)
        m.write(f"PMEVCNTR{i}_EL0", value)
    m.write("PMCNTENSET_EL0", 1 << i)
    m.write("PMCR_EL0", E | LC)
    return m


def value(m: Machine, i: int = 0) -> int:
    return m.read("PMCCNTR_EL0" if i == 31 else f"PMEVCNTR{i}_EL0")


# ---- a counter's value ------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", [0, 3, 31])
def test_a_counter_is_its_register_and_what_its_event_has_counted(i: int) -> None:
    m = counting(i, 1000)
    m.execute(0, EL1, 20)
    m.execute(0, EL0, 3)
    vcpu = m.world.vcpus[0]
    assert (emulated.register_value(vcpu, i), value(m, i), m.event_of(0, i).count) == (1000, 1023, 23)


def test_the_host_s_instructions_are_not_the_guest_s() -> None:
    m = counting()
    m.execute(0, EL2, 500)
    m.execute(0, EL1, 1)
    m.switch(0, sleep=True)
    m.execute(0, EL2, 500)
    m.run(0)
    assert value(m) == 1


def test_a_write_of_a_counter_makes_a_new_event_with_a_period_up_to_the_overflow() -> None:
    m = counting()
    m.execute(0, EL1, 20)
    vcpu = m.world.vcpus[0]
    created, released = vcpu.perf_created, vcpu.perf_released
    m.write("PMEVCNTR0_EL0", 0xFFFF_FF00)
    assert (vcpu.perf_created, vcpu.perf_released) == (created + 1, released + 1)
    assert (m.event_of(0, 0).count, m.event_of(0, 0).sample_period) == (0, 0x100)
    m.execute(0, EL1, 5)
    assert value(m) == 0xFFFF_FF05


def test_a_write_of_a_type_keeps_the_value_and_counts_the_new_event_from_there() -> None:
    m = counting()
    m.execute(0, EL1, 20)
    m.write("PMEVTYPER0_EL0", CPU_CYCLES | 1 << 31)  # P: not at EL1
    assert (emulated.register_value(m.world.vcpus[0], 0), value(m)) == (20, 20)
    assert m.event_of(0, 0).config == CPU_CYCLES
    m.execute(0, EL1, 100)
    m.execute(0, EL0, 7)
    assert value(m) == 27


def test_pmcnten_lets_a_counter_stop_and_go_on() -> None:
    m = counting()
    m.execute(0, EL1, 10)
    m.write("PMCNTENCLR_EL0", 1)
    assert m.event_of(0, 0).state == STATE_OFF
    m.execute(0, EL1, 100)
    m.write("PMCNTENSET_EL0", 1)
    m.execute(0, EL1, 5)
    assert value(m) == 15
    vcpu = m.world.vcpus[0]
    # Enabled by PMCR_EL0.E and by PMCNTENSET_EL0, which before had nothing to disable.
    assert (vcpu.perf_disabled, vcpu.perf_enabled) == (1, 2)


def test_a_counter_that_was_given_a_type_only_has_an_event_that_is_off() -> None:
    m = machine()
    m.write("PMCR_EL0", E | LC)
    m.write("PMEVTYPER2_EL0", INST_RETIRED)
    assert (m.event_of(0, 2).attached, m.event_of(0, 2).state) == (1, STATE_OFF)
    m.execute(0, EL1, 100)
    assert value(m, 2) == 0


def test_pmcr_e_takes_effect_at_the_next_entry() -> None:
    """kvm_pmu_handle_pmcr() of Linux newer than 6.12 asks for KVM_REQ_RELOAD_PMU."""
    m = counting()
    vcpu, vm, host = m.world.vcpus[0], m.world.vms[0], m.host
    for pmcr, before, after in ((LC, STATE_ACTIVE, STATE_OFF), (LC | E, STATE_OFF, STATE_ACTIVE)):
        assert emulated.trapped_write(host, 0, vm, vcpu, EL1, sysreg.PMCR_EL0, pmcr, m.now) == 0
        assert (vcpu.reload_pmu, m.event_of(0, 0).state) == (1, before)
        world.vcpu_enter(m.world, 0, 0, m.now)
        world.vcpu_exit(m.world, 0, 0)
        assert (vcpu.reload_pmu, m.event_of(0, 0).state) == (0, after)
    # No request where E is as it was.
    assert emulated.trapped_write(host, 0, vm, vcpu, EL1, sysreg.PMCR_EL0, LC | E, m.now) == 0
    assert vcpu.reload_pmu == 0


def test_pmcr_p_and_c_zero_the_counters_and_are_not_kept() -> None:
    m = counting()
    m.write("PMCNTENSET_EL0", CYCLE)
    m.execute(0, EL1, 10)
    m.write("PMCR_EL0", E | LC | P)
    assert (value(m, 0), value(m, 31)) == (0, 10)
    m.write("PMCR_EL0", E | LC | C)
    assert (value(m, 0), value(m, 31)) == (0, 0)
    m.execute(0, EL1, 4)
    assert (value(m, 0), value(m, 31)) == (4, 4)
    assert m.read("PMCR_EL0") & 0x7F == E | LC


@pytest.mark.parametrize(("kind", "kept"), [(P1_HOST, 0), (P5_HOST, LP)])
def test_pmcr_lp_is_there_from_pmuv3p5_on(kind: str, kept: int) -> None:
    m = machine(kind)
    m.write("PMCR_EL0", LP | LC)
    assert m.read("PMCR_EL0") & LP == kept


def test_pmcr_keeps_its_lower_byte_and_shows_the_vm_s_count() -> None:
    """ARMV8_PMU_PMCR_MASK is 0xff; P and C are RAZ, IMP and IDCODE zero, FZO not the guest's."""
    m = machine(counters=3)
    m.write("PMCR_EL0", TOP64)
    assert m.read("PMCR_EL0") == 0xFF & ~(P | C) | 3 << 11


def test_a_reload_drops_what_userspace_has_restored_of_counters_that_the_guest_has_not() -> None:
    """kvm_vcpu_reload_pmu() masks PMOVSSET, PMINTENSET and PMCNTENSET: PMCR_EL0.N can be written after them."""
    m = Machine([P5_HOST], [(2, 1)], design=EMULATED)
    vcpu = m.world.vcpus[0]
    vcpu.cnten = vcpu.inten = vcpu.ovs = 0b111111 | CYCLE
    vcpu.reload_pmu = 1
    m.run(0)
    assert m.irq_level() == 0
    assert vcpu.cnten == vcpu.inten == vcpu.ovs == 0b11 | CYCLE


# ---- filters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", [1, 31])
@pytest.mark.parametrize("bits", range(16))
def test_p_u_nsk_and_nsu_say_where_a_counter_counts(i: int, bits: int) -> None:
    """EL1 is excluded where P != NSK, EL0 where U != NSU: kvm_pmc_counts_at_el1() and kvm_pmc_counts_at_el0()."""
    p, u, nsk, nsu = bits >> 3 & 1, bits >> 2 & 1, bits >> 1 & 1, bits & 1
    m = counting(i)
    m.write("PMCCFILTR_EL0" if i == 31 else f"PMEVTYPER{i}_EL0", INST_RETIRED * (i != 31) | bits << 28)
    m.execute(0, EL1, 100)
    m.execute(0, EL0, 10)
    m.execute(0, EL2, 1)
    assert value(m, i) == 100 * (p == nsk) + 10 * (u == nsu)


@pytest.mark.parametrize(("kind", "kept"), [(P1_HOST, 0xFC00_FFFF), (P5_HOST, 0xFC00_FFFF)])
def test_a_type_keeps_the_bits_that_the_guest_s_id_registers_give_it(kind: str, kept: int) -> None:
    """kvm_pmu_evtyper_mask() with EL2 and EL3 in ID_AA64PFR0_EL1: P, U, NSK, NSU, NSH, M and 16 bits of an event."""
    m = machine(kind)
    m.write("PMEVTYPER0_EL0", TOP64)
    assert m.read("PMEVTYPER0_EL0") == kept


def test_a_guest_of_pmuv3p0_has_events_of_10_bits() -> None:
    m = counting(m=machine(pmuver=1))
    m.write("PMEVTYPER0_EL0", TOP64)
    assert m.read("PMEVTYPER0_EL0") == 0xFC00_03FF
    m.write("PMEVTYPER0_EL0", 0x4000 | INST_RETIRED)
    m.execute(0, EL1, 5)
    assert value(m) == 5


# ---- the event filter -------------------------------------------------------------------------------------


def test_a_denied_event_has_no_perf_event_and_its_counter_stands() -> None:
    m = counting(0, 77, m=machine(denied=[INST_RETIRED, CPU_CYCLES]))
    m.write("PMCNTENSET_EL0", CYCLE)
    m.execute(0, EL1, 100)
    assert (value(m, 0), value(m, 31)) == (77, 0)
    assert m.event_of(0, 0).attached == m.event_of(0, 31).attached == 0
    assert m.world.vcpus[0].perf_created == 0
    m.write("PMEVTYPER0_EL0", 0x09)  # EXC_TAKEN, which no filter denies
    assert m.event_of(0, 0).attached == 1


def test_pmceid_shows_chain_and_sw_incr_always_hides_stall_slots_and_what_is_denied() -> None:
    """kvm_pmu_get_pmceid(): "always support SW_INCR" and CHAIN; PMMIR_EL1 is RAZ and so no STALL_SLOT*."""
    m = machine()
    core = m.host.cpus[0].pe.core
    core.pmceid0, core.pmceid1 = 0x3_0002_0100, 0x1_FFFF_FFFF
    assert m.read("PMCEID0_EL0") == 0x3_4002_0101  # CHAIN is 0x1e, SW_INCR 0
    assert m.read("PMCEID1_EL0") == 0x1_1FFF_FFFF  # STALL_SLOT_BACKEND, _FRONTEND and STALL_SLOT are 0x3d to 0x3f
    assert m.read("PMMIR_EL1") == 0
    m = machine(denied=[0x08, 0x1E, 0x21, 0x4001])
    core = m.host.cpus[0].pe.core
    core.pmceid0, core.pmceid1 = 0x3_4002_0101, 0x1_FFFF_FFFF
    assert m.read("PMCEID0_EL0") == 0x1_0002_0001
    assert m.read("PMCEID1_EL0") == 0x1_1FFF_FFFD


def test_software_increments_and_chains_count_whatever_the_filter_says() -> None:
    """kvm_pmu_counter_increment() asks no filter, neither the VM's event filter nor P and U."""
    m = machine(P1_HOST, denied=[SW_INCR, CHAIN])
    m.write("PMEVTYPER0_EL0", SW_INCR | 3 << 30)
    m.write("PMEVTYPER1_EL0", CHAIN | 3 << 30)
    m.write("PMEVCNTR0_EL0", TOP32)
    m.write("PMCNTENSET_EL0", 0b11)
    m.write("PMSWINC_EL0", 0b1111)  # PMCR_EL0.E is clear
    assert (value(m, 0), value(m, 1)) == (TOP32, 0)
    m.write("PMCR_EL0", E | LC)
    m.write("PMSWINC_EL0", 0b1111)
    assert (value(m, 0), value(m, 1)) == (0, 1)
    m.write("PMSWINC_EL0", 0b0001)
    m.write("PMSWINC_EL0", 0b0010)  # counter 1 does not count SW_INCR
    assert (value(m, 0), value(m, 1)) == (1, 1)
    assert m.read("PMOVSSET_EL0") == 0b01
    assert m.world.vcpus[0].perf_created == 0


# ---- width ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "i", "pmcr", "wide", "period"),
    [
        (P1_HOST, 0, 0, 0, 0x1000),
        (P1_HOST, 31, 0, 1, 0x1000),  # PMCR_EL0.LC clear: of 64 bits, overflowing at 32
        (P1_HOST, 31, LC, 1, TOP64 - 0x5_FFFF_EFFF),
        (P5_HOST, 0, 0, 1, 0x1000),
        (P5_HOST, 0, LP, 1, TOP64 - 0x5_FFFF_EFFF),
        (P5_HOST, 31, LC, 1, TOP64 - 0x5_FFFF_EFFF),
    ],
)
def test_a_counter_has_the_width_and_the_period_of_its_version(
    kind: str, i: int, pmcr: int, wide: int, period: int
) -> None:
    """compute_period(): -value, 64 bits of it where the counter is of 64 bits and overflows there, else 32."""
    m = machine(kind)
    # Both of these cores can execute AArch32 at EL0, so that PMCR_EL0.LC is the guest's to clear.
    m.host.cpus[0].pe.core.aarch32 = 1
    m.write("PMCR_EL0", E | pmcr)
    if i != 31:
        m.write(f"PMEVTYPER{i}_EL0", INST_RETIRED)
    m.write("PMCCNTR_EL0" if i == 31 else f"PMEVCNTR{i}_EL0", 0x5_FFFF_F000)
    assert value(m, i) == (0x5_FFFF_F000 if wide else 0xFFFF_F000)
    assert (m.event_of(0, i).long, m.event_of(0, i).sample_period) == (wide, period)
    m.write("PMCNTENSET_EL0", 1 << i)
    m.execute(0, EL1, 0x1001)
    assert value(m, i) == (0x6_0000_0001 if wide else 1)
    assert m.read("PMOVSCLR_EL0") == (0 if period > 0x1000 else 1 << i)


def test_64_bits_are_a_chained_pair_of_the_host_where_its_counters_are_short() -> None:
    m = machine(P1_HOST)
    taken = m.open(cpu=0, config=CPU_CYCLES, pinned=1)
    assert m.host.events[taken].idx == 31
    m.write("PMCNTENSET_EL0", CYCLE)
    m.write("PMCR_EL0", E | LC)
    m.write("PMCCNTR_EL0", TOP64 - 0x1_0000_0000)
    assert m.event_of(0, 31).idx == 1  # counters 0 and 1
    assert m.host.cpus[0].hw.used_mask == 0b11 | CYCLE
    m.execute(0, EL1, 0x1_0000_0000)
    assert (value(m, 31), m.read("PMOVSSET_EL0")) == (TOP64, 0)
    m.execute(0, EL1, 1)
    assert (value(m, 31), m.read("PMOVSSET_EL0")) == (0, CYCLE)
    assert m.event(taken).count == 0x1_0000_0001


# ---- overflow ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "i", "start"),
    [(P1_HOST, 0, TOP32 - 99), (P5_HOST, 2, TOP32 - 99), (P5_HOST, 31, TOP64 - 99), (P1_HOST, 31, TOP64 - 99)],
)
def test_an_overflow_is_at_the_very_event_and_raises_the_guest_s_interrupt(kind: str, i: int, start: int) -> None:
    m = counting(i, start, m=machine(kind))
    m.execute(0, EL1, 99)
    assert (m.irq_level(), m.read("PMOVSSET_EL0")) == (0, 0)
    m.execute(0, EL1, 1)
    assert (m.irq_level(), m.read("PMOVSSET_EL0")) == (1, 1 << i)
    assert (m.world.vcpus[0].overflows, m.world.vcpus[0].injected) == (1, 1)
    m.execute(0, EL1, 50)
    assert m.world.vcpus[0].overflows == 1
    m.write("PMOVSCLR_EL0", 1 << i)
    assert (m.irq_level(), m.world.vcpus[0].injected) == (0, 1)


@pytest.mark.parametrize("start", [1, (1 << 31) - 1, 1 << 31, (1 << 31) + 1])
@pytest.mark.parametrize("kind", [P1_HOST, P5_HOST])
def test_an_overflow_further_away_than_half_of_a_counter_is_at_the_very_event_too(kind: str, start: int) -> None:
    # The driver loads no more than half of what a counter holds, and takes interrupts in between.
    m = counting(0, start, m=machine(kind))
    m.execute(0, EL1, TOP32 - start)
    assert (value(m), m.read("PMOVSSET_EL0")) == (TOP32, 0)
    m.execute(0, EL1, 1)
    assert m.read("PMOVSSET_EL0") == 1
    assert m.world.vcpus[0].overflows == 1


@pytest.mark.parametrize(
    ("inten", "pmcr", "level"), [(0b01, E, 1), (0b10, E, 0), (0b11, E, 1), (0b01, 0, 0), (CYCLE | 1, E, 1)]
)
def test_the_line_is_pmovs_and_pminten_while_pmcr_e(inten: int, pmcr: int, level: int) -> None:
    m = counting(0, TOP32)
    m.write("PMINTENCLR_EL1", TOP32)
    m.execute(0, EL1, 1)
    m.write("PMINTENSET_EL1", inten)
    m.write("PMCR_EL0", pmcr | LC)
    assert m.irq_level() == level
    m.write("PMCNTENCLR_EL0", 1)  # which has no part in it
    assert m.irq_level() == level


def test_the_guest_s_own_pmovsset_raises_the_line() -> None:
    m = counting()
    m.write("PMOVSSET_EL0", 0b100 | 1 << 5)  # there is no counter 5
    assert (m.irq_level(), m.read("PMOVSCLR_EL0")) == (1, 0b100)


def test_an_even_counter_that_overflows_at_32_bits_counts_for_its_chained_neighbour() -> None:
    for kind, pmcr, chained in ((P1_HOST, 0, 1), (P5_HOST, 0, 1), (P5_HOST, LP, 0)):
        m = counting(2, TOP32, m=machine(kind))
        m.write("PMEVTYPER3_EL0", CHAIN)
        m.write("PMEVCNTR3_EL0", 41)
        m.write("PMCNTENSET_EL0", 1 << 3)
        m.write("PMCR_EL0", E | LC | pmcr)
        m.write("PMEVCNTR2_EL0", TOP32)
        m.execute(0, EL1, 2)
        assert (value(m, 2) & TOP32, value(m, 3)) == (1, 41 + chained)
        assert m.read("PMOVSCLR_EL0") == (0b0100 if chained else 0)


def test_a_chained_counter_overflows_as_well() -> None:
    m = counting(2, TOP32, m=machine(P1_HOST))
    m.write("PMEVTYPER3_EL0", CHAIN)
    m.write("PMEVCNTR3_EL0", TOP32)
    m.write("PMCNTENSET_EL0", 1 << 3)
    m.execute(0, EL1, 1)
    assert (value(m, 3), m.read("PMOVSCLR_EL0")) == (0, 0b1100)


def test_the_first_overflow_of_a_counter_that_begins_at_zero_is_not_reported() -> None:
    """A defect of upstream Linux, kept: compute_period() of 0 is 0, which to perf is an event that does not sample.

    (__perf_event_overflow() returns at once where is_sampling_event() is false.)
    """
    for kind in (P1_HOST, P5_HOST):
        m = counting(0, 0, m=machine(kind))
        assert m.event_of(0, 0).sample_period == 0
        m.execute(0, EL1, (1 << 32) + 5)
        assert value(m) == ((1 << 32) + 5 if kind == P5_HOST else 5)
        assert (m.read("PMOVSCLR_EL0"), m.world.vcpus[0].overflows) == (0, 0)


def test_a_counter_left_alone_overflows_too_early_the_second_time_and_then_no_more() -> None:
    """A defect of upstream Linux, kept: kvm_pmu_perf_overflow() takes the next period from perf_event.count.

    A counter that began at X has counted -X when it overflows first, so that its next period is X and not 2**32: it is
    reported at X, where its value is X again. By then 2**32 has been counted, which makes a period of 0: none is
    reported any more.
    """
    start = 0xFFFF_0000
    m = counting(0, start, m=machine(P1_HOST))
    m.execute(0, EL1, 0x1_0000)
    assert (value(m), m.read("PMOVSCLR_EL0")) == (0, 1)
    m.write("PMOVSCLR_EL0", 1)
    m.execute(0, EL1, start - 1)
    assert m.read("PMOVSCLR_EL0") == 0
    m.execute(0, EL1, 1)
    assert (value(m), m.read("PMOVSCLR_EL0")) == (start, 1)
    m.write("PMOVSCLR_EL0", 1)
    for _ in range(3):
        m.execute(0, EL1, 1 << 32)
    assert (value(m), m.read("PMOVSCLR_EL0")) == (start, 0)
    assert m.world.vcpus[0].overflows == 2


def test_a_counter_that_is_written_after_each_overflow_as_linux_does_overflows_right() -> None:
    m = counting(0, TOP32 - 999, m=machine(P1_HOST))
    for _ in range(5):
        m.execute(0, EL1, 999)
        assert m.read("PMOVSCLR_EL0") == 0
        m.execute(0, EL1, 1)
        assert m.read("PMOVSCLR_EL0") == 1
        m.write("PMEVCNTR0_EL0", TOP32 - 999)
        m.write("PMOVSCLR_EL0", 1)
    assert m.world.vcpus[0].overflows == 5


# ---- reset ------------------------------------------------------------------------------------------------


def test_reset_leaves_what_linux_leaves() -> None:
    """reset_unknown() is 0x1de7ec7edbadc0de; reset_pmu_reg(), reset_pmevcntr(), reset_pmevtyper(), reset_pmselr()."""
    m = Machine([P5_HOST], [(6, 1)], design=EMULATED)
    world.create_vcpu(m.world, 0, 0, 0, m.world.vcpus[0].first_event)
    vcpu = m.world.vcpus[0]
    assert UNKNOWN == 0x1DE7_EC7E_DBAD_C0DE
    assert vcpu.cnten == vcpu.inten == vcpu.ovs == 0xDBAD_C0DE & (0x3F | CYCLE)
    assert (vcpu.selr, vcpu.userenr, vcpu.ccfiltr, vcpu.ccntr) == (0x1E, 0, 0, UNKNOWN)
    assert list(vcpu.evcntr) == [0xDBAD_C0DE] * 6
    assert list(vcpu.evtyper) == [0xD800_C0DE] * 6  # P, U, NSK, NSU, NSH, M and the event of 0xdbadc0de
    assert vcpu.pmcr == 0  # LC is not RES1: this core can execute AArch32
    m.run(0)
    m.write("PMCR_EL0", E)
    assert m.irq_level() == 1  # PMOVS and PMINTEN are as UNKNOWN has them


def test_a_vcpu_that_is_reset_has_only_counters_that_do_not_count() -> None:
    """Linux newer than 6.12 releases no perf event at reset: its count is added to what the register is reset to."""
    m = counting()
    m.execute(0, EL1, 10)
    m.switch(0, sleep=True)
    world.vcpu_reset(m.world, 0, 0)
    m.run(0)
    m.execute(0, EL1, 10)
    assert (m.read("PMCR_EL0") & E, m.event_of(0, 0).state) == (0, STATE_OFF)
    assert value(m) == 0xDBAD_C0DE + 10
    m.write("PMEVCNTR0_EL0", 5)
    m.execute(0, EL1, 10)
    assert value(m) == 5


# ---- who may access what ----------------------------------------------------------------------------------

EN, SW, CR, ER = 1, 2, 4, 8
WRITE_ONLY = {"PMSWINC_EL0"}
READ_ONLY = {"PMCEID0_EL0", "PMCEID1_EL0"}


def el0_bits(name: str, write: int) -> int:
    """Return the bits of PMUSERENR_EL0 of which one lets EL0 at a register (sys_regs.c, the access_pm* functions)."""
    if name == "PMSWINC_EL0":
        return SW | EN
    if name == "PMCCNTR_EL0" and not write:
        return CR | EN
    if name == "PMSELR_EL0" or (name.startswith(("PMEVCNTR", "PMXEVCNTR")) and not write):
        return ER | EN
    return EN


@pytest.mark.parametrize("userenr", [0, EN, SW, CR, ER, SW | CR | ER])
def test_el0_without_leave_by_pmuserenr_gets_an_undefined_instruction(userenr: int) -> None:
    m = machine()
    m.write("PMUSERENR_EL0", userenr)
    names = [
        "PMCR_EL0",
        "PMCNTENSET_EL0",
        "PMCNTENCLR_EL0",
        "PMOVSCLR_EL0",
        "PMOVSSET_EL0",
        "PMSWINC_EL0",
        "PMSELR_EL0",
    ]
    names += ["PMCEID0_EL0", "PMCEID1_EL0", "PMCCNTR_EL0", "PMXEVTYPER_EL0", "PMXEVCNTR_EL0", "PMCCFILTR_EL0"]
    names += ["PMEVCNTR3_EL0", "PMEVTYPER3_EL0"]
    m.write("PMSELR_EL0", 1)
    for name in names:
        for write in (0, 1):
            if name in (READ_ONLY if write else WRITE_ONLY):
                continue
            allowed = userenr & el0_bits(name, write)
            expected = access.TRAPPED if allowed else access.TRAPPED_UNDEFINED
            assert m.try_access(0, name, write, 0, EL0) == expected, (name, write)
            m.write("PMSELR_EL0", 1)
    assert m.try_access(0, "PMUSERENR_EL0", 0, 0, EL0) == access.TRAPPED
    assert m.try_access(0, "PMUSERENR_EL0", 1, 0, EL0) == access.UNDEFINED
    assert m.try_access(0, "PMINTENSET_EL1", 1, 1, EL0) == access.UNDEFINED


def test_every_register_traps_and_those_of_counters_that_the_guest_has_not_are_undefined() -> None:
    m = machine(counters=4)
    for key in PMU_KEYS:
        for write in (0, 1):
            before = m.world.vcpus[0].trapped
            outcome = m.try_access(0, name_of(key), write)
            assert outcome in (access.TRAPPED, access.TRAPPED_UNDEFINED, access.UNDEFINED), name_of(key)
            assert m.world.vcpus[0].trapped == before + (outcome != access.UNDEFINED)
    for n in range(31):
        for name in (f"PMEVCNTR{n}_EL0", f"PMEVTYPER{n}_EL0"):
            beyond = access.UNDEFINED if n >= 6 else access.TRAPPED_UNDEFINED
            assert m.try_access(0, name, 0) == (access.TRAPPED if n < 4 else beyond), name
    assert m.world.vcpus[0].direct == 0


def test_pmselr_selects_a_counter_or_with_31_the_cycle_counter_and_its_filter() -> None:
    """pmu_counter_idx_valid() lets ARMV8_PMU_CYCLE_IDX through PMXEVCNTR_EL0, where the Arm ARM has it UNDEFINED."""
    m = counting(2, 50)
    m.write("PMSELR_EL0", 2)
    m.execute(0, EL1, 5)
    assert m.read("PMXEVCNTR_EL0") == 55
    m.write("PMXEVTYPER_EL0", CPU_CYCLES)
    assert m.read("PMEVTYPER2_EL0") == CPU_CYCLES
    m.write("PMSELR_EL0", 31)
    m.write("PMXEVTYPER_EL0", 1 << 31)
    assert m.read("PMCCFILTR_EL0") == 1 << 31
    m.write("PMXEVCNTR_EL0", 9)
    assert m.read("PMCCNTR_EL0") == 9
    m.write("PMSELR_EL0", 5)
    assert m.try_access(0, "PMXEVCNTR_EL0", 0) == m.try_access(0, "PMXEVTYPER_EL0", 1) == access.TRAPPED_UNDEFINED


# ---- the host takes part ----------------------------------------------------------------------------------


def test_a_guest_s_event_goes_before_flexible_host_events_and_after_pinned_ones() -> None:
    m = counting(0, m=machine(counters=6))
    flexible = [m.open(cpu=0, config=INST_RETIRED) for _ in range(6)]
    assert m.event_of(0, 0).state == STATE_ACTIVE
    assert [m.host.events[n].state for n in flexible].count(STATE_ACTIVE) == 5
    for n in flexible:
        m.close(n)
    pinned = [m.open(cpu=0, config=INST_RETIRED, pinned=1) for _ in range(6)]
    assert [m.host.events[n].state for n in pinned] == [STATE_ACTIVE] * 6
    assert m.event_of(0, 0).state == STATE_ERROR


def test_a_counter_whose_event_has_no_counter_of_the_host_stops_for_good_and_reads_as_it_was() -> None:
    m = counting(0)
    m.execute(0, EL1, 10)
    pinned = [m.open(cpu=0, config=INST_RETIRED, pinned=1) for _ in range(6)]
    m.execute(0, EL1, 100)
    assert (m.event_of(0, 0).state, value(m)) == (STATE_ERROR, 10)
    for n in pinned:
        m.close(n)
    m.execute(0, EL1, 100)
    m.switch(0)
    m.execute(0, EL1, 100)
    assert (m.event_of(0, 0).state, value(m)) == (STATE_ERROR, 10)
    # _perf_event_enable() clears the error: the guest's write of PMCNTENSET_EL0 lets it go on.
    m.write("PMCNTENSET_EL0", 1)
    m.execute(0, EL1, 5)
    assert (m.event_of(0, 0).state, value(m)) == (STATE_ACTIVE, 15)


def test_a_thread_that_is_scheduled_out_and_migrated_takes_its_counts_along() -> None:
    m = Machine([P5_HOST, P5_HOST], [(4, 1)], host_tasks=1, design=EMULATED)
    m.run(0)
    m.program_guest(0)
    m.execute(0, EL1, 10)
    for turn, c in enumerate((1, 0, 0, 1)):
        m.switch(0, sleep=True)
        m.switch(1, sleep=True)
        assert (m.event_of(0, 0).state, m.event_of(0, 0).idx) == (STATE_INACTIVE, 63)
        m.run(1, c)
        m.execute(c, EL0, 1000)
        m.run(0, c)
        m.execute(c, EL1, 10)
        assert m.guest_counts(c) == {INST_RETIRED: 20 + 10 * turn, CPU_CYCLES: 20 + 10 * turn}
    assert m.host.cpus[0].hw.used_mask == 0


def test_an_overflow_is_reported_where_the_vcpu_has_migrated_to() -> None:
    m = Machine([P1_HOST, P1_HOST], [(4, 1)], design=EMULATED, pmuver=P4)
    m.run(0)
    m.write("PMINTENSET_EL1", 1)
    m.program_guest(0)
    m.write("PMEVCNTR0_EL0", TOP32 - 9)
    m.execute(0, EL1, 6)
    m.switch(0, sleep=True)
    m.run(0, 1)
    m.execute(1, EL1, 3)
    assert m.irq_level(1) == 0
    m.execute(1, EL1, 1)
    assert (m.irq_level(1), m.read("PMOVSSET_EL0", 1)) == (1, 1)


def test_a_host_event_that_is_opened_while_a_vcpu_is_loaded_goes_on_when_it_is_put() -> None:
    m = machine()
    event = m.open(cpu=0, config=INST_RETIRED)
    m.execute(0, EL1, 100)
    m.switch(0, sleep=True)
    assert m.host.cpus[0].current == NO_TASK
    m.execute(0, EL2, 10)
    assert m.event(event).count == m.event(event).seen == 110


def test_with_no_event_left_the_host_s_pmu_stops_whenever_the_vcpu_is_put() -> None:
    m = Machine([P5_HOST], [(4, 1)], design=EMULATED)
    event = m.open(cpu=0, config=INST_RETIRED)
    m.run(0)
    m.close(event)
    m.switch(0, sleep=True)
    assert m.host.cpus[0].pe.pmcr & E == 0


# ---- the ledger -------------------------------------------------------------------------------------------


def test_the_ledger_of_a_guest_that_programs_and_reads_a_counter() -> None:
    m = machine()
    vcpu = m.world.vcpus[0]

    def ledger() -> tuple[int, ...]:
        return vcpu.perf_created, vcpu.perf_released, vcpu.perf_enabled, vcpu.perf_disabled, vcpu.perf_read

    assert ledger() == (0, 0, 0, 0, 0)
    m.write("PMEVTYPER0_EL0", INST_RETIRED)  # an event, off
    assert ledger() == (1, 0, 0, 0, 0)
    m.write("PMCNTENSET_EL0", 1)  # PMCR_EL0.E is clear: what is off stays so
    assert ledger() == (1, 0, 0, 0, 0)
    m.write("PMCR_EL0", E | LC)  # at the next entry it is enabled; no other counter has an event
    assert ledger() == (1, 0, 1, 0, 0)
    m.read("PMEVCNTR0_EL0")
    assert ledger() == (1, 0, 1, 0, 1)
    m.write("PMEVTYPER0_EL0", CPU_CYCLES)  # read, released, another
    assert ledger() == (2, 1, 1, 0, 2)
    m.write("PMEVCNTR0_EL0", 7)  # released unread, another
    assert ledger() == (3, 2, 1, 0, 2)
    m.write("PMCR_EL0", LC)  # disabled at the next entry
    assert ledger() == (3, 2, 1, 1, 2)
    assert (vcpu.trapped, vcpu.direct, vcpu.swapped, vcpu.rescheduled) == (7, 0, 0, 0)


def test_the_ledger_of_a_thread_that_comes_and_goes() -> None:
    """A switch is entered at the next entry of the guest; one is a counter given to an event, or taken from it."""
    m = machine()
    vcpu = m.world.vcpus[0]
    # Counter 0's event goes on; for that of the cycle counter ctx_resched() takes it off, and both go on.
    m.program_guest(0)
    assert vcpu.perf_switched == 1 + 1 + 2
    m.switch(0, sleep=True)
    m.run(0)
    m.irq_level()
    assert (vcpu.perf_switched, vcpu.loads, vcpu.puts) == (4 + 2 + 2, 2, 1)
    m.write("PMCNTENCLR_EL0", CYCLE)
    assert vcpu.perf_switched == 9
    m.switch(0, sleep=True)
    m.run(0)
    m.irq_level()
    assert vcpu.perf_switched == 9 + 1 + 1
