"""The interrupt controller, held to what IHI 0069 says of it. Offsets and encodings are written out from there."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmuvisor.board.gicv3 import Gic

# Distributor; the same offsets hold in a redistributor's SGI frame.
CTLR, TYPER, IIDR = 0x0, 0x4, 0x8
IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR = 0x80, 0x100, 0x180, 0x200, 0x280
ISACTIVER, ICACTIVER, IPRIORITYR, ICFGR, IROUTER, PIDR2 = 0x300, 0x380, 0x400, 0xC00, 0x6000, 0xFFE8
WAKER, SGI_FRAME, PER_CPU = 0x14, 0x10000, 0x20000


def icc(crn: int, crm: int, op2: int) -> int:
    return 3 << 14 | 0 << 11 | crn << 7 | crm << 3 | op2


PMR = icc(4, 6, 0)
IAR0, EOIR0, HPPIR0, BPR0, AP0R0 = (icc(12, 8, n) for n in range(5))
AP1R0 = icc(12, 9, 0)
DIR, RPR, SGI1R, ASGI1R, SGI0R = (icc(12, 11, n) for n in (1, 3, 5, 6, 7))
IAR1, EOIR1, HPPIR1, BPR1, ICC_CTLR, SRE, IGRPEN0, IGRPEN1 = (icc(12, 12, n) for n in range(8))
KEYS = [PMR, IAR0, EOIR0, HPPIR0, BPR0, AP0R0, AP1R0, DIR, RPR, SGI1R, ASGI1R, SGI0R]
KEYS += [IAR1, EOIR1, HPPIR1, BPR1, ICC_CTLR, SRE, IGRPEN0, IGRPEN1]

NOTHING = 1023
SPI = 33
EOIMODE = 2
ALL_ONES = 0xFFFF_FFFF


def frame(cpu: int) -> int:
    return cpu * PER_CPU + SGI_FRAME


def ready_gic(cpus: int = 1) -> Gic:
    """All interrupts in Group 1, enabled, at priority 0xa0; interfaces open, as Linux leaves them."""
    gic = Gic(cpus)
    gic.dist_write(CTLR, 4, 0x3)
    for word in range(1, 8):
        gic.dist_write(IGROUPR + 4 * word, 4, ALL_ONES)
        gic.dist_write(ISENABLER + 4 * word, 4, ALL_ONES)
    for n in range(32, 256, 4):
        gic.dist_write(IPRIORITYR + n, 4, 0xA0A0A0A0)
    for cpu in range(cpus):
        gic.redist_write(cpu * PER_CPU + WAKER, 4, 0)
        gic.redist_write(frame(cpu) + IGROUPR, 4, ALL_ONES)
        gic.redist_write(frame(cpu) + ISENABLER, 4, ALL_ONES)
        for n in range(0, 32, 4):
            gic.redist_write(frame(cpu) + IPRIORITYR + n, 4, 0xA0A0A0A0)
        gic.icc_write(cpu, PMR, 0xF0)
        gic.icc_write(cpu, IGRPEN1, 1)
        gic.icc_write(cpu, IGRPEN0, 1)
    return gic


def take(gic: Gic, cpu: int = 0) -> int:
    intid = gic.icc_read(cpu, IAR1)
    assert intid is not None
    return intid


def end(gic: Gic, intid: int, cpu: int = 0) -> None:
    assert gic.icc_write(cpu, EOIR1, intid)


def make_edge(gic: Gic, intid: int) -> None:
    gic.dist_write(ICFGR + intid // 16 * 4, 4, 2 << (intid % 16) * 2)


# --- identification ------------------------------------------------------------------------------------------------


def test_identification_registers_say_gicv3_with_one_security_state() -> None:
    gic = Gic(2)
    assert gic.dist_read(PIDR2, 4) == 0x3B
    assert gic.redist_read(PIDR2, 4) == 0x3B
    assert gic.dist_read(CTLR, 4) == 0x50  # DS and ARE, nothing enabled, no write pending
    assert gic.dist_read(TYPER, 4) & 0x1F == 7  # 32 * (7 + 1) INTIDs
    assert gic.dist_read(TYPER, 4) >> 10 & 1 == 0  # one security state
    assert gic.dist_read(TYPER, 4) >> 17 & 1 == 0  # no LPIs
    assert gic.dist_read(TYPER, 4) >> 25 & 1 == 1  # no 1-of-N
    assert gic.dist_read(IIDR, 4) == 0x43B


def test_redistributor_typer_names_the_cpu_and_marks_the_last_one() -> None:
    gic = Gic(3)
    assert gic.redist_read(1 * PER_CPU + 0x8, 8) == 0x0000_0001_0000_0100
    assert gic.redist_read(2 * PER_CPU + 0x8, 8) == 0x0000_0002_0000_0210
    assert gic.redist_read(2 * PER_CPU + 0x8, 4) == 0x0000_0210
    assert gic.redist_read(2 * PER_CPU + 0xC, 4) == 2
    assert gic.redist_read(3 * PER_CPU + 0x8, 8) == 0


def test_cpu_interface_has_five_priority_bits() -> None:
    gic = Gic(1)
    assert gic.icc_read(0, SRE) == 7
    control = gic.icc_read(0, ICC_CTLR)
    assert control is not None
    assert control >> 8 & 7 == 4
    gic.icc_write(0, PMR, 0xFF)
    assert gic.icc_read(0, PMR) == 0xF8
    gic.dist_write(IPRIORITYR + SPI, 1, 0xFF)
    assert gic.dist_read(IPRIORITYR + SPI, 1) == 0xF8


def test_binary_points_have_a_minimum() -> None:
    gic = Gic(1)
    for register, minimum in ((BPR0, 2), (BPR1, 3)):
        assert gic.icc_read(0, register) == minimum
        gic.icc_write(0, register, 0)
        assert gic.icc_read(0, register) == minimum
        gic.icc_write(0, register, 7)
        assert gic.icc_read(0, register) == 7


def test_common_binary_point_shows_through_bpr1() -> None:
    gic = Gic(1)
    gic.icc_write(0, BPR0, 4)
    gic.icc_write(0, ICC_CTLR, 1)
    assert gic.icc_read(0, BPR1) == 5
    gic.icc_write(0, BPR1, 3)
    gic.icc_write(0, ICC_CTLR, 0)
    assert gic.icc_read(0, BPR1) == 3  # its reset value: what was written meanwhile is ignored


@pytest.mark.parametrize("key", [EOIR0, EOIR1, DIR, SGI0R, SGI1R, ASGI1R, icc(12, 9, 1), icc(12, 8, 5), icc(12, 13, 0)])
def test_write_only_and_absent_registers_cannot_be_read(key: int) -> None:
    assert ready_gic().icc_read(0, key) is None


@pytest.mark.parametrize("key", [IAR0, IAR1, HPPIR0, HPPIR1, RPR, icc(12, 9, 3), icc(12, 11, 0), 0])
def test_read_only_and_absent_registers_cannot_be_written(key: int) -> None:
    assert ready_gic().icc_write(0, key, 0) is False


def test_waker_handshakes_at_once() -> None:
    gic = Gic(1)
    assert gic.redist_read(WAKER, 4) == 0x6
    gic.redist_write(WAKER, 4, 0)
    assert gic.redist_read(WAKER, 4) == 0
    gic.redist_write(WAKER, 4, 2)
    assert gic.redist_read(WAKER, 4) == 0x6


def test_number_of_cpus_is_bounded() -> None:
    for count in (0, 9):
        with pytest.raises(ValueError):
            Gic(count)


# --- registers -----------------------------------------------------------------------------------------------------


def test_set_and_clear_registers_act_on_the_bits_written() -> None:
    gic = Gic(1)
    for set_register, clear_register in ((ISENABLER, ICENABLER), (ISPENDR, ICPENDR), (ISACTIVER, ICACTIVER)):
        gic.dist_write(set_register + 4, 4, 0x30)
        gic.dist_write(set_register + 4, 4, 0x01)
        gic.dist_write(clear_register + 4, 4, 0x10)
        assert gic.dist_read(set_register + 4, 4) == 0x21
        assert gic.dist_read(clear_register + 4, 4) == 0x21


def test_private_interrupts_are_not_in_the_distributor() -> None:
    gic = Gic(1)
    for register in (IGROUPR, ISENABLER, ISPENDR, ISACTIVER, IPRIORITYR, ICFGR):
        gic.dist_write(register, 4, ALL_ONES)
        assert gic.dist_read(register, 4) == 0
    gic.dist_write(IROUTER + 8 * 31, 8, 0)
    assert gic.dist_read(IROUTER + 8 * 31, 8) == 0


def test_each_cpu_has_its_own_private_interrupts() -> None:
    gic = Gic(2)
    gic.redist_write(frame(1) + ISENABLER, 4, 0x0880_0001)
    assert gic.redist_read(frame(1) + ISENABLER, 4) == 0x0880_0001
    assert gic.redist_read(frame(0) + ISENABLER, 4) == 0


def test_sgis_are_always_edge_triggered_and_ppis_can_be() -> None:
    gic = Gic(1)
    gic.redist_write(frame(0) + ICFGR, 4, 0)
    assert gic.redist_read(frame(0) + ICFGR, 4) == 0xAAAA_AAAA
    assert gic.redist_read(frame(0) + ICFGR + 4, 4) == 0
    gic.redist_write(frame(0) + ICFGR + 4, 4, 0xC000_0003)  # the lower bit of each field is reserved
    assert gic.redist_read(frame(0) + ICFGR + 4, 4) == 0x8000_0002


def test_priorities_can_be_accessed_by_byte_and_by_word() -> None:
    gic = Gic(1)
    gic.dist_write(IPRIORITYR + 36, 4, 0x40302010)
    assert [gic.dist_read(IPRIORITYR + n, 1) for n in range(36, 40)] == [0x10, 0x20, 0x30, 0x40]
    gic.dist_write(IPRIORITYR + 37, 1, 0xE0)
    assert gic.dist_read(IPRIORITYR + 36, 4) == 0x4030E010


def test_routes_can_be_accessed_whole_and_by_halves() -> None:
    gic = Gic(2)
    register = IROUTER + 8 * SPI
    gic.dist_write(register, 8, 0x0000_0012_8045_6701)
    assert gic.dist_read(register, 8) == 0x0000_0012_0045_6701  # no 1-of-N
    gic.dist_write(register + 4, 4, 0)
    assert gic.dist_read(register, 4) == 0x0045_6701
    assert gic.dist_read(register + 4, 4) == 0


def test_access_of_a_size_that_a_register_does_not_have_is_ignored() -> None:
    gic = Gic(1)
    for size in (1, 2, 8):
        gic.dist_write(ISENABLER + 4, size, 1)
    gic.dist_write(ISENABLER + 6, 4, 1)
    gic.dist_write(IPRIORITYR + SPI, 4, ALL_ONES)
    assert gic.dist_read(ISENABLER + 4, 4) == 0
    assert gic.dist_read(IPRIORITYR + 32, 4) == 0


# --- signalling ----------------------------------------------------------------------------------------------------


def test_an_spi_reaches_a_cpu_only_when_every_gate_is_open() -> None:
    closers: list[Callable[[Gic], object]] = [
        lambda gic: gic.dist_write(CTLR, 4, 0x1),
        lambda gic: gic.dist_write(ICENABLER + 4, 4, 2),
        lambda gic: gic.icc_write(0, IGRPEN1, 0),
        lambda gic: gic.icc_write(0, PMR, 0xA0),
        lambda gic: gic.dist_write(ISACTIVER + 4, 4, 2),
        lambda gic: gic.dist_write(IROUTER + 8 * SPI, 8, 1),
    ]
    for close in closers:
        gic = ready_gic()
        gic.set_level(SPI, True)
        assert gic.irq(0)
        close(gic)
        assert not gic.irq(0)
        assert take(gic) == NOTHING


def test_nothing_is_signalled_after_reset() -> None:
    gic = Gic(1)
    gic.set_level(SPI, True)
    gic.set_ppi(0, 27, True)
    assert not gic.irq(0)
    assert not gic.fiq(0)
    assert take(gic) == NOTHING
    assert gic.icc_read(0, RPR) == 0xFF


def test_a_level_interrupt_comes_again_while_its_line_is_up() -> None:
    gic = ready_gic()
    gic.set_ppi(0, 27, True)
    assert take(gic) == 27
    assert not gic.irq(0)
    assert gic.redist_read(frame(0) + ISPENDR, 4) == 1 << 27  # active and pending
    assert gic.redist_read(frame(0) + ISACTIVER, 4) == 1 << 27
    end(gic, 27)
    assert take(gic) == 27
    gic.set_ppi(0, 27, False)
    end(gic, 27)
    assert not gic.irq(0)
    assert take(gic) == NOTHING


def test_a_level_interrupt_whose_line_falls_before_it_is_taken_is_gone() -> None:
    gic = ready_gic()
    gic.set_level(SPI, True)
    gic.set_level(SPI, False)
    assert not gic.irq(0)


def test_an_edge_interrupt_comes_once_per_rise() -> None:
    gic = ready_gic()
    make_edge(gic, SPI)
    gic.set_level(SPI, True)
    gic.set_level(SPI, False)
    assert take(gic) == SPI
    gic.set_level(SPI, True)  # while active: pending again
    end(gic, SPI)
    assert take(gic) == SPI
    end(gic, SPI)
    assert take(gic) == NOTHING


def test_software_can_make_a_level_interrupt_pending_and_take_that_back() -> None:
    gic = ready_gic()
    gic.dist_write(ISPENDR + 4, 4, 2)
    assert gic.irq(0)
    gic.dist_write(ICPENDR + 4, 4, 2)
    assert not gic.irq(0)
    gic.set_level(SPI, True)
    gic.dist_write(ICPENDR + 4, 4, 2)
    assert gic.irq(0)  # the line still stands


def test_pended_level_interrupt_is_consumed_by_its_acknowledge() -> None:
    gic = ready_gic()
    gic.dist_write(ISPENDR + 4, 4, 2)
    assert take(gic) == SPI
    end(gic, SPI)
    assert take(gic) == NOTHING


def test_group_0_is_signalled_as_fiq_and_taken_through_iar0() -> None:
    gic = ready_gic()
    gic.dist_write(IGROUPR + 4, 4, 0)
    gic.set_level(SPI, True)
    assert gic.fiq(0)
    assert not gic.irq(0)
    assert take(gic) == NOTHING
    assert gic.icc_read(0, HPPIR1) == NOTHING
    assert gic.icc_read(0, HPPIR0) == SPI
    assert gic.icc_read(0, IAR0) == SPI
    assert gic.icc_read(0, AP0R0) == 1 << 20  # 0xa0 / 8
    end(gic, SPI)  # of the other group: ignored
    assert gic.icc_read(0, RPR) == 0xA0
    gic.icc_write(0, EOIR0, SPI)
    assert gic.icc_read(0, RPR) == 0xFF


def test_a_group_disabled_at_the_interface_does_not_hide_the_other() -> None:
    gic = ready_gic()
    gic.dist_write(IGROUPR + 4, 4, 1 << 2)  # 34 in Group 1, 33 in Group 0
    gic.dist_write(IPRIORITYR + 34, 1, 0x20)
    gic.set_level(33, True)
    gic.set_level(34, True)
    assert (gic.irq(0), gic.fiq(0)) == (True, False)
    gic.icc_write(0, IGRPEN1, 0)
    assert (gic.irq(0), gic.fiq(0)) == (False, True)


def test_highest_pending_is_shown_even_if_masked_by_priority() -> None:
    gic = ready_gic()
    gic.icc_write(0, PMR, 0)
    gic.set_level(SPI, True)
    assert gic.icc_read(0, HPPIR1) == SPI
    assert not gic.irq(0)


# --- priorities ----------------------------------------------------------------------------------------------------


def test_lower_number_is_taken_first_among_equal_priorities() -> None:
    gic = ready_gic()
    for intid in (40, 36, 200):
        gic.set_level(intid, True)
    gic.set_ppi(0, 30, True)
    gic.icc_write(0, ICC_CTLR, EOIMODE)  # end without deactivating, so that each comes once
    order = []
    for _ in range(4):
        order.append(take(gic))
        end(gic, order[-1])
    assert order == [30, 36, 40, 200]


def test_a_higher_priority_preempts_and_the_running_priority_follows() -> None:
    gic = ready_gic()
    gic.dist_write(IPRIORITYR + 40, 1, 0x80)
    gic.set_level(36, True)
    assert take(gic) == 36
    assert gic.icc_read(0, RPR) == 0xA0
    gic.set_level(37, True)
    assert not gic.irq(0)  # equal priority does not preempt
    gic.set_level(40, True)
    assert take(gic) == 40
    assert gic.icc_read(0, RPR) == 0x80
    assert gic.icc_read(0, AP1R0) == 1 << 16 | 1 << 20
    gic.set_level(40, False)
    end(gic, 40)
    assert gic.icc_read(0, RPR) == 0xA0
    gic.set_level(36, False)
    end(gic, 36)
    assert take(gic) == 37


@pytest.mark.parametrize(("binary_point", "preempts"), [(3, True), (5, True), (6, False), (7, False)])
def test_only_the_group_part_of_a_priority_preempts(binary_point: int, preempts: bool) -> None:
    """Group 1 splits at bit BPR1 - 1: with 6, bits 7 to 6 count, in which 0x80 and 0xa0 are the same."""
    gic = ready_gic()
    gic.icc_write(0, BPR1, binary_point)
    gic.dist_write(IPRIORITYR + 40, 1, 0x80)
    gic.set_level(36, True)
    take(gic)
    gic.set_level(40, True)
    assert gic.irq(0) is preempts


def test_a_binary_point_moved_later_lets_no_lower_priority_preempt() -> None:
    """With BPR1 = 6 both 0x80 and 0xb8 are in group 0x80; what runs was taken at 0x88 with a finer split."""
    gic = ready_gic()
    gic.dist_write(IPRIORITYR + 36, 1, 0x88)
    gic.dist_write(IPRIORITYR + 37, 1, 0xB8)
    gic.set_level(36, True)
    take(gic)
    gic.set_level(37, True)
    gic.icc_write(0, BPR1, 6)
    assert not gic.irq(0)


def test_an_idle_cpu_takes_an_interrupt_of_any_group_priority() -> None:
    """With BPR0 = 7 no bit of a Group 0 priority counts for preemption."""
    gic = ready_gic()
    gic.icc_write(0, BPR0, 7)
    gic.dist_write(IGROUPR + 4, 4, 0)
    gic.set_level(SPI, True)
    assert gic.fiq(0)
    gic.icc_read(0, IAR0)
    gic.dist_write(IPRIORITYR + 34, 1, 0)
    gic.set_level(34, True)
    assert not gic.fiq(0)


def test_idle_priority_is_never_signalled() -> None:
    gic = ready_gic()
    gic.dist_write(IPRIORITYR + SPI, 1, 0xFF)
    gic.icc_write(0, PMR, 0xFF)
    gic.set_level(SPI, True)
    assert not gic.irq(0)


def test_with_eoimode_an_interrupt_stays_active_until_dir() -> None:
    gic = ready_gic()
    gic.icc_write(0, ICC_CTLR, EOIMODE)
    gic.set_level(SPI, True)
    assert take(gic) == SPI
    end(gic, SPI)
    assert gic.icc_read(0, RPR) == 0xFF
    assert not gic.irq(0)
    gic.icc_write(0, DIR, SPI)
    assert gic.irq(0)


def test_dir_without_eoimode_is_ignored() -> None:
    gic = ready_gic()
    gic.set_level(SPI, True)
    take(gic)
    gic.icc_write(0, DIR, SPI)
    assert gic.dist_read(ISACTIVER + 4, 4) == 2


def test_ending_a_special_number_or_when_idle_changes_nothing() -> None:
    gic = ready_gic()
    end(gic, SPI)
    gic.set_level(SPI, True)
    take(gic)
    for number in (1020, 1023, 256, 8192):
        end(gic, number)
    assert gic.icc_read(0, RPR) == 0xA0
    assert gic.dist_read(ISACTIVER + 4, 4) == 2


# --- routing and SGIs ----------------------------------------------------------------------------------------------


def test_an_spi_goes_to_the_cpu_that_its_route_names() -> None:
    gic = ready_gic(3)
    gic.set_level(SPI, True)
    assert [gic.irq(cpu) for cpu in range(3)] == [True, False, False]
    gic.dist_write(IROUTER + 8 * SPI, 8, 2)
    assert [gic.irq(cpu) for cpu in range(3)] == [False, False, True]
    gic.dist_write(IROUTER + 8 * SPI, 8, 0x100)  # Aff1 = 1: no such CPU
    assert not any(gic.irq(cpu) for cpu in range(3))


def test_an_spi_taken_by_one_cpu_can_be_ended_after_it_was_moved() -> None:
    gic = ready_gic(2)
    gic.set_level(SPI, True)
    take(gic, 0)
    gic.dist_write(IROUTER + 8 * SPI, 8, 1)
    assert not gic.irq(1)
    end(gic, SPI, 0)
    assert gic.irq(1)


def sgi(intid: int, targets: int = 0, others: bool = False) -> int:
    return intid << 24 | targets | others << 40


def test_an_sgi_reaches_the_cpus_of_its_target_list() -> None:
    gic = ready_gic(4)
    gic.icc_write(1, SGI1R, sgi(5, targets=0b1010))
    assert [gic.irq(cpu) for cpu in range(4)] == [False, True, False, True]
    assert take(gic, 1) == 5
    assert take(gic, 3) == 5


def test_an_sgi_to_the_others_spares_its_sender() -> None:
    gic = ready_gic(3)
    gic.icc_write(1, SGI1R, sgi(1, others=True))
    assert [gic.irq(cpu) for cpu in range(3)] == [True, False, True]


def test_sgis_of_several_senders_merge() -> None:
    gic = ready_gic(4)
    for sender in range(4):
        gic.icc_write(sender, SGI1R, sgi(3, targets=1))
    assert take(gic, 0) == 3
    end(gic, 3, 0)
    assert take(gic, 0) == NOTHING


def test_an_sgi_to_another_affinity_or_range_reaches_nobody() -> None:
    gic = ready_gic(2)
    for field in (1 << 16, 1 << 32, 1 << 48, 1 << 44):
        gic.icc_write(0, SGI1R, sgi(3, targets=0xFFFF) | field)
    assert not gic.irq(0)
    assert not gic.irq(1)


def test_group_0_sgi_registers_spare_sgis_of_group_1() -> None:
    gic = ready_gic()
    gic.icc_write(0, SGI0R, sgi(4, targets=1))
    gic.icc_write(0, ASGI1R, sgi(4, targets=1))
    assert gic.redist_read(frame(0) + ISPENDR, 4) == 0
    gic.redist_write(frame(0) + IGROUPR, 4, 0)
    gic.icc_write(0, SGI0R, sgi(4, targets=1))
    assert gic.fiq(0)


# --- the owner's side ----------------------------------------------------------------------------------------------


def test_changed_names_the_cpus_to_look_at() -> None:
    gic = ready_gic(3)
    gic.changed.clear()
    gic.set_ppi(2, 27, True)
    assert gic.changed == {2}
    gic.changed.clear()
    gic.set_ppi(2, 27, True)
    assert not gic.changed
    gic.set_level(SPI, True)
    assert gic.changed == {0}
    gic.changed.clear()
    gic.icc_write(0, SGI1R, sgi(1, targets=0b10))
    assert 1 in gic.changed


@pytest.mark.parametrize("intid", [-1, 0, 31, 256, 1023])
def test_lines_that_are_not_there_are_the_callers_error(intid: int) -> None:
    with pytest.raises(ValueError):
        Gic(1).set_level(intid, True)


def test_a_cpu_that_is_turned_on_again_finds_its_interface_reset() -> None:
    gic = ready_gic(2)
    gic.set_ppi(1, 27, True)
    take(gic, 1)
    gic.reset_cpu_interface(1)
    assert gic.icc_read(1, PMR) == 0
    assert gic.icc_read(1, RPR) == 0xFF
    assert gic.icc_read(1, IGRPEN1) == 0
    assert gic.redist_read(frame(1) + ISENABLER, 4) == ALL_ONES


# --- any sequence --------------------------------------------------------------------------------------------------

OFFSETS = st.one_of(
    st.integers(0, 0x10000),
    st.builds(
        lambda base, n: base + n,
        st.sampled_from([CTLR, IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER, IPRIORITYR]),
        st.integers(0, 40),
    ),
    st.integers(IROUTER, IROUTER + 8 * 300),
    st.integers(ICFGR, ICFGR + 80),
)
VALUES = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 300), st.just(2**64 - 1))
SIZES = st.sampled_from([1, 2, 4, 8])
GUEST_OPERATIONS = st.one_of(
    st.tuples(st.just("dist"), OFFSETS, SIZES, VALUES),
    st.tuples(st.just("redist"), OFFSETS.map(lambda o: o + SGI_FRAME), SIZES, VALUES),
    st.tuples(st.just("redist"), st.integers(0, 3 * PER_CPU), SIZES, VALUES),
    st.tuples(st.just("icc"), st.sampled_from(KEYS), st.integers(0, 1), VALUES),
    st.tuples(st.just("ppi"), st.integers(16, 31), st.integers(0, 1), st.integers(0, 1)),
    st.tuples(st.just("spi"), st.integers(32, 255), st.just(0), st.integers(0, 1)),
)


def apply(gic: Gic, kind: str, where: int, detail: int, value: int) -> None:
    if kind == "dist":
        assert 0 <= gic.dist_read(where, detail) < 1 << 8 * detail
        gic.dist_write(where, detail, value)
    elif kind == "redist":
        assert 0 <= gic.redist_read(where, detail) < 1 << 8 * detail
        gic.redist_write(where, detail, value)
    elif kind == "icc":
        gic.icc_write(detail, where, value)
        result = gic.icc_read(detail, where)
        assert result is None or 0 <= result < 1 << 64
    elif kind == "ppi":
        gic.set_ppi(detail, where, bool(value))
    else:
        gic.set_level(where, bool(value))


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.lists(GUEST_OPERATIONS, max_size=40))
def test_no_sequence_of_accesses_raises_or_leaves_a_stale_line(
    opened: bool, operations: list[tuple[str, int, int, int]]
) -> None:
    """A line may only differ from what it was when `changed` has said so, and an acknowledge agrees with the line."""
    gic = ready_gic(2) if opened else Gic(2)
    known = [(gic.irq(cpu), gic.fiq(cpu)) for cpu in range(2)]
    gic.changed.clear()
    for operation in operations:
        apply(gic, *operation)
        for cpu in range(2):
            now = (gic.irq(cpu), gic.fiq(cpu))
            assert now == known[cpu] or cpu in gic.changed
            known[cpu] = now
        gic.changed.clear()
    for cpu in range(2):
        irq = gic.irq(cpu)
        assert (take(gic, cpu) != NOTHING) is irq


LIFE = st.lists(
    st.one_of(
        st.tuples(st.just("raise"), st.integers(32, 40)),
        st.tuples(st.just("raise"), st.integers(0, 15)),
        st.tuples(st.just("take"), st.just(0)),
        st.tuples(st.just("end"), st.just(0)),
        st.tuples(st.just("mask"), st.sampled_from([0x00, 0x60, 0xF0])),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0x20, 0x40, 0x80, 0xA0]), min_size=9, max_size=9), LIFE)
def test_an_edge_interrupt_is_neither_lost_nor_delivered_twice(
    priorities: list[int], life: list[tuple[str, int]]
) -> None:
    """A model of edge-triggered interrupts: raised ones merge until taken, and each is then taken exactly once."""
    gic = ready_gic()
    for n, priority in enumerate(priorities):
        make_edge(gic, 32 + n)
        gic.dist_write(IPRIORITYR + 32 + n, 1, priority)
    gic.dist_write(ICFGR + 8, 4, ALL_ONES)
    waiting: set[int] = set()
    running: list[int] = []
    for what, number in [*life, ("mask", 0xF0), *[("end", 0), ("take", 0)] * 60]:
        if what == "raise" and number < 16:
            gic.icc_write(0, SGI1R, sgi(number, targets=1))
            waiting.add(number)
        elif what == "raise":
            gic.set_level(number, True)
            gic.set_level(number, False)
            waiting.add(number)
        elif what == "mask":
            gic.icc_write(0, PMR, number)
        elif what == "take":
            taken = take(gic)
            if taken != NOTHING:
                assert taken in waiting
                assert taken not in running
                waiting.remove(taken)
                running.append(taken)
        elif running:
            end(gic, running.pop())
    assert not waiting
    assert gic.icc_read(0, RPR) == 0xFF
