"""The PMUv3 driver: counters given and programmed, periods, interrupts; counts against what happened."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arch.support import P1, P5, P9
from linux.support import Scene, check_counters, happen, make_event, make_host, take_interrupt
from pmuvisor.arch import pmu
from pmuvisor.arch.events import BR_RETIRED, CHAIN, CPU_CYCLES, INST_RETIRED
from pmuvisor.kvm import pmu as kvm_pmu
from pmuvisor.linux import arm_pmuv3
from pmuvisor.linux.arm_pmuv3 import EAGAIN
from pmuvisor.linux.host import NO_COUNTER, NO_EVENT, STATE_OFF, Cpu, Host, PerfEvent

CYCLE, INSTRUCTION = 31, 32
LP, LC, E = 1 << 7, 1 << 6, 1 << 0
"""PMCR_EL0."""
HPME = 1 << 7
"""MDCR_EL2."""
HALF_32 = (1 << 31) - 1
"""What the driver loads at the most into a counter of 32 bits: it overflows after so many events."""

all_versions = pytest.mark.parametrize("pmuver", [P1, P5])


def probed(n: int = 6, pmuver: int = P1, icntr: int = 0) -> tuple[Host, Cpu]:
    host = make_host(n=n, pmuver=pmuver, icntr=icntr)
    return host, host.cpus[0]


def add(host: Host, number: int, **attributes: int) -> PerfEvent:
    """Give event `number` a counter and let the PMU run; it must get one."""
    event, result = try_add(host, number, **attributes)
    assert result == 0
    return event


def try_add(host: Host, number: int, **attributes: int) -> tuple[PerfEvent, int]:
    event = host.events[number]
    for name, value in ({"config": INST_RETIRED, "idx": NO_COUNTER} | attributes).items():
        setattr(event, name, value)
    result = arm_pmuv3.add(host.cpus[0], event, number)
    arm_pmuv3.armpmu_enable(host.cpus[0])
    return event, result


def given_counters(cpu: Cpu, wanted: list[tuple[int, int]]) -> list[int]:
    """Ask for a counter for each (event, long) in turn; return the driver's answers, NO_COUNTER without one."""
    used = 0
    out = []
    for config, long in wanted:
        event = make_event(config=config, long=long)
        idx = arm_pmuv3.get_event_idx(cpu, event, cpu.hw.cntr_mask, used)
        if idx != NO_COUNTER:
            used |= arm_pmuv3.mask_of(cpu, event, idx)
        out.append(idx)
    return out


# ---- which counter ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("core", "wanted", "expected"),
    [
        pytest.param({}, [(INST_RETIRED, 0)] * 4, [0, 1, 2, 3], id="the lowest that is free"),
        pytest.param({"n": 2}, [(INST_RETIRED, 0)] * 3, [0, 1, NO_COUNTER], id="none is left"),
        pytest.param({}, [(BR_RETIRED, 0), (CPU_CYCLES, 0)] * 2, [0, CYCLE, 1, 2], id="cycles have a counter"),
        pytest.param({"n": 0}, [(INST_RETIRED, 0), (CPU_CYCLES, 0)], [NO_COUNTER, CYCLE], id="no event counter"),
        pytest.param(
            {"pmuver": P9, "icntr": 1},
            [(BR_RETIRED, 0), (INST_RETIRED, 0), (INST_RETIRED, 0)],
            [0, INSTRUCTION, 1],
            id="instructions have one where there is FEAT_PMUv3_ICNTR",
        ),
        pytest.param({}, [(INST_RETIRED, 1)] * 4, [1, 3, 5, NO_COUNTER], id="64 bits are two counters before p5"),
        pytest.param({"n": 5}, [(INST_RETIRED, 1)] * 3, [1, 3, NO_COUNTER], id="a fifth counter is no pair"),
        pytest.param(
            {},
            [(INST_RETIRED, 0), (INST_RETIRED, 1)] * 3,
            [0, 3, 1, 5, NO_COUNTER, NO_COUNTER],
            id="half a pair is no pair",
        ),
        pytest.param({}, [(CPU_CYCLES, 1)] * 3, [CYCLE, 1, 3], id="64 bits of cycles are the cycle counter"),
        pytest.param(
            {"pmuver": P5}, [(INST_RETIRED, 1)] * 3 + [(CPU_CYCLES, 1)], [0, 1, 2, CYCLE], id="p5 counters are long"
        ),
    ],
)
def test_an_event_is_given(core: dict[str, int], wanted: list[tuple[int, int]], expected: list[int]) -> None:
    assert given_counters(probed(**core)[1], wanted) == expected


@pytest.mark.parametrize(
    ("cntr_mask", "wanted", "expected"),
    [
        (0b111000 | 1 << CYCLE, [(INST_RETIRED, 0)] * 4, [3, 4, 5, NO_COUNTER]),
        (0b111100, [(CPU_CYCLES, 0), (CPU_CYCLES, 1)], [2, 5]),
        # Of the pair 2 and 3 the lower one is a guest's: 4 and 5 are the only pair.
        (0b111000, [(INST_RETIRED, 1), (INST_RETIRED, 1)], [5, NO_COUNTER]),
        (0, [(INST_RETIRED, 0), (CPU_CYCLES, 0)], [NO_COUNTER] * 2),
    ],
)
def test_counters_that_were_taken_away_are_not_given(
    cntr_mask: int, wanted: list[tuple[int, int]], expected: list[int]
) -> None:
    _, cpu = probed()
    cpu.hw.cntr_mask = cntr_mask
    assert given_counters(cpu, wanted) == expected


def find_counter(free: set[int], config: int, pair: bool) -> int:
    """Say which counter is due, one by one, as armv8pmu_get_event_idx() goes through them."""
    for event, fixed in ((CPU_CYCLES, CYCLE), (INST_RETIRED, INSTRUCTION)):
        if config == event and fixed in free:
            return fixed
    for i in range(31):
        if pair and i % 2 == 1 and {i, i - 1} <= free:
            return i
        if not pair and i in free:
            return i
    return NO_COUNTER


@given(st.integers(0, (1 << 33) - 1), st.integers(0, (1 << 33) - 1), st.sampled_from([CPU_CYCLES, INST_RETIRED, 0]))
def test_the_counter_is_the_one_that_a_search_finds(cntr_mask: int, used: int, config: int) -> None:
    free = {i for i in range(33) if (cntr_mask & ~used) >> i & 1}
    for pmuver, long in itertools.product((P1, P5), (0, 1)):
        cpu = probed(31, pmuver)[1]
        event = make_event(config=config, long=long)
        expected = find_counter(free, config, long == 1 and pmuver == P1)
        assert arm_pmuv3.get_event_idx(cpu, event, cntr_mask, used) == expected


def test_an_event_without_a_counter_changes_nothing() -> None:
    host, cpu = probed(1)
    add(host, 0)
    before = repr(cpu)
    event, result = try_add(host, 1)
    assert (result, event.idx, repr(cpu)) == (-EAGAIN, NO_COUNTER, before)


# ---- programming ------------------------------------------------------------------------------------------

EXCLUDE = ("exclude_user", "exclude_kernel", "exclude_host", "exclude_guest")


def counts_at(cpu: Cpu, event: PerfEvent, el: int, tge: int) -> bool:
    cpu.pe.tge = tge
    return bool(pmu.count_pmu_events(cpu.pe, el) >> event.idx & 1)


@pytest.mark.parametrize("config", [BR_RETIRED, CPU_CYCLES, INST_RETIRED])
@pytest.mark.parametrize("bits", list(itertools.product((0, 1), repeat=4)), ids=str)
def test_an_event_counts_where_its_exclude_bits_let_it(bits: tuple[int, ...], config: int) -> None:
    user, kernel, in_host, in_guest = (not bit for bit in bits)
    host, cpu = probed(pmuver=P9, icntr=1)
    event = add(host, 0, config=config, **dict(zip(EXCLUDE, bits, strict=True)))
    assert counts_at(cpu, event, 2, 1) == (kernel and in_host)
    assert counts_at(cpu, event, 0, 1) == (user and in_host)
    # Guests come and go: KVM tells their EL0 from the host's.
    kvm_pmu.restore_guest(cpu)
    assert counts_at(cpu, event, 1, 0) == (kernel and in_guest)
    assert counts_at(cpu, event, 0, 0) == (user and in_guest)
    kvm_pmu.restore_host(cpu)
    assert counts_at(cpu, event, 0, 1) == (user and in_host)


@pytest.mark.parametrize("bits", list(itertools.product((0, 1), repeat=4)), ids=str)
def test_a_chained_pair_counts_where_its_exclude_bits_let_it(bits: tuple[int, ...]) -> None:
    user, kernel, in_host, _ = (not bit for bit in bits)
    host, cpu = probed()
    event = add(host, 0, long=1, **dict(zip(EXCLUDE, bits, strict=True)))
    assert event.idx == 1
    assert (cpu.pe.evtyper[0] & 0xFFFF, cpu.pe.evtyper[1] & 0xFFFF) == (INST_RETIRED, CHAIN)
    for el, counts in ((2, kernel and in_host), (0, user and in_host)):
        before = event.count
        happen(cpu.pe, INST_RETIRED, 5, el)
        arm_pmuv3.event_update(cpu, event)
        assert event.count - before == 5 * counts


@all_versions
def test_a_counter_of_64_bits_overflows_at_32_unless_64_were_asked_for(pmuver: int) -> None:
    host, cpu = probed(pmuver=pmuver)
    short, cycles, long_cycles = (
        add(host, 0, sample_period=100),
        add(host, 1, sample_period=100, config=CPU_CYCLES),
        make_event(config=CPU_CYCLES, long=1, sample_period=100, idx=CYCLE),
    )
    upper = 0 if pmuver == P1 else 0xFFFF_FFFF << 32
    assert cpu.pe.evcntr[short.idx] == upper | 0xFFFF_FFFF - 99
    assert cpu.pe.ccntr == 0xFFFF_FFFF_FFFF_FFFF - 99
    assert arm_pmuv3.read_counter(cpu, cycles) == 0xFFFF_FFFF - 99
    assert arm_pmuv3.read_counter(cpu, long_cycles) == 0xFFFF_FFFF_FFFF_FFFF - 99


@pytest.mark.parametrize(("pmuver", "expected"), [(P1, LC), (P5, LC | LP)])
def test_the_probe_leaves_an_idle_pmu_with_counters_as_long_as_they_get(pmuver: int, expected: int) -> None:
    _, cpu = probed(pmuver=pmuver)
    assert cpu.pe.pmcr == expected
    assert (cpu.pe.cnten, cpu.pe.inten, cpu.hw.used_mask) == (0, 0, 0)
    assert cpu.hw.cntr_mask == 0b111111 | 1 << CYCLE
    assert list(cpu.hw.events) == [NO_EVENT] * 33


@all_versions
def test_a_counter_is_enabled_with_its_interrupt_and_given_back_with_neither_nor_an_overflow(pmuver: int) -> None:
    host, cpu = probed(pmuver=pmuver)
    event = add(host, 0, long=1)
    mask = 0b11 if pmuver == P1 else 0b1
    assert (cpu.pe.cnten, cpu.pe.inten) == (mask, 1 << event.idx)
    cpu.pe.ovs = 1 << event.idx | 1 << 5
    arm_pmuv3.delete(cpu, event)
    assert (cpu.pe.cnten, cpu.pe.inten, cpu.pe.ovs) == (0, 0, 1 << 5)
    assert (cpu.hw.used_mask, event.idx) == (0, NO_COUNTER)


@pytest.mark.parametrize("guest_resident", [0, 1])
def test_the_pmu_runs_while_an_event_is_on_it(guest_resident: int) -> None:
    host, cpu = probed()
    cpu.hw.guest_resident = guest_resident
    cpu.pe.mdcr_el2 = 6

    def running() -> tuple[bool, bool]:
        return bool(cpu.pe.pmcr & E), bool(cpu.pe.mdcr_el2 & HPME)

    # PMCR_EL0.E is a resident guest's: the driver has MDCR_EL2.HPME.
    on = (guest_resident == 0, guest_resident == 1)
    event = add(host, 0)
    assert running() == on
    arm_pmuv3.delete(cpu, event)
    arm_pmuv3.armpmu_enable(cpu)
    assert running() == (False, False)


# ---- periods ----------------------------------------------------------------------------------------------


@dataclass
class Sampler:
    """An event that samples, on a counter, and the interrupts taken for it."""

    host: Host
    event: PerfEvent
    config: int

    def feed(self, amount: int) -> int:
        """Let the event happen `amount` times, with interrupts taken after at most 2**30; return the samples."""
        before = self.event.samples
        while amount:
            some = min(amount, 1 << 30)
            happen(self.host.cpus[0].pe, self.config, some, 2)
            take_interrupt(self.host, 0)
            amount -= some
        return self.event.samples - before


def sampler(pmuver: int, config: int, long: int, period: int) -> Sampler:
    host, _ = probed(pmuver=pmuver)
    return Sampler(host, add(host, 0, config=config, long=long, sample_period=period), config)


PERIODS = [1, 2, 1000, HALF_32, HALF_32 + 1, (1 << 32) - 1, (1 << 32) + 3, 3 << 32]


@all_versions
@pytest.mark.parametrize("config", [INST_RETIRED, CPU_CYCLES])
@pytest.mark.parametrize("long", [0, 1])
@pytest.mark.parametrize("period", PERIODS)
def test_a_sample_is_taken_after_exactly_a_period_again_and_again(
    pmuver: int, config: int, long: int, period: int
) -> None:
    s = sampler(pmuver, config, long, period)
    for _ in range(3):
        assert s.feed(period - 1) == 0
        assert s.feed(1) == 1
    assert s.event.count == 3 * period


@all_versions
@pytest.mark.parametrize("long", [0, 1])
def test_a_late_interrupt_makes_the_next_period_shorter(pmuver: int, long: int) -> None:
    s = sampler(pmuver, INST_RETIRED, long, 1000)
    assert s.feed(1100) == 1
    assert s.feed(899) == 0
    assert s.feed(1) == 1
    # More than a period late: armpmu_event_set_period() begins a whole one.
    assert s.feed(2500) == 1
    assert s.feed(999) == 0
    assert s.feed(1) == 1


@all_versions
@pytest.mark.parametrize("long", [0, 1])
@pytest.mark.parametrize("period", [1000, (1 << 32) + 3])
def test_what_is_left_of_a_period_outlasts_being_scheduled_out(pmuver: int, long: int, period: int) -> None:
    s = sampler(pmuver, INST_RETIRED, long, period)
    cpu = s.host.cpus[0]
    assert s.feed(400) == 0
    arm_pmuv3.delete(cpu, s.event)
    happen(cpu.pe, INST_RETIRED, 10_000, 2)
    assert arm_pmuv3.add(cpu, s.event, 0) == 0
    assert s.feed(period - 401) == 0
    assert s.feed(1) == 1
    assert s.event.count == period


@all_versions
def test_an_event_that_counts_goes_over_its_counter_unharmed_and_takes_no_sample(pmuver: int) -> None:
    s = sampler(pmuver, INST_RETIRED, 0, 0)
    assert s.feed(5 << 32) == 0
    assert s.event.count == 5 << 32


# ---- the interrupt ----------------------------------------------------------------------------------------


@all_versions
def test_only_the_counters_that_overflowed_are_looked_at(pmuver: int) -> None:
    host, cpu = probed(pmuver=pmuver)
    due, other = add(host, 0, config=BR_RETIRED, sample_period=10), add(host, 1, sample_period=10)
    happen(cpu.pe, BR_RETIRED, 10, 2)
    happen(cpu.pe, INST_RETIRED, 9, 2)
    assert take_interrupt(host, 0) == 1
    assert (due.samples, due.count, other.samples, other.count) == (1, 10, 0, 0)
    assert cpu.pe.ovs == 0
    assert cpu.pe.pmcr & E


def test_an_overflow_of_a_counter_without_an_event_is_left_alone() -> None:
    host, cpu = probed()
    event = add(host, 0, sample_period=10)
    cpu.pe.evcntr[3] = 7
    assert arm_pmuv3.handle_irq(host, 0, 1 << 3) == 0
    assert (cpu.pe.evcntr[3], event.samples) == (7, 0)


@all_versions
def test_both_halves_of_a_chained_pair_are_one_event_to_the_interrupt(pmuver: int) -> None:
    host, cpu = probed(pmuver=pmuver)
    event = add(host, 0, long=1, sample_period=(1 << 33) + 5)
    for _ in range(8):
        happen(cpu.pe, INST_RETIRED, 1 << 30, 2)
    # The lower half has overflowed twice: nobody is told.
    assert pmu.overflow_interrupts(cpu.pe) == 0
    happen(cpu.pe, INST_RETIRED, 5, 2)
    assert pmu.overflow_interrupts(cpu.pe) == 1 << event.idx
    assert take_interrupt(host, 0) == 1


def test_a_host_s_interrupt_leaves_a_resident_guest_s_enable_alone() -> None:
    host, cpu = probed()
    cpu.hw.guest_resident = 1
    cpu.hw.cntr_mask = 0b111000
    cpu.pe.mdcr_el2 = 3
    event = add(host, 0, sample_period=10)
    assert event.idx == 3
    for guest_enable in (0, 1):
        cpu.pe.pmcr = cpu.pe.pmcr & ~E | guest_enable
        happen(cpu.pe, INST_RETIRED, 10, 2)
        assert take_interrupt(host, 0) == 1
        assert (cpu.pe.pmcr & E, cpu.pe.mdcr_el2 & HPME) == (guest_enable, HPME)


# ---- counts -----------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[dict[str, int]], list[tuple[int, int, int]]]:
    """Return a PMU version, events and what is done: (0 add or delete event, 1 read event, 2 happen) with numbers."""
    events = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "config": st.sampled_from([INST_RETIRED, CPU_CYCLES, BR_RETIRED]),
                    "long": st.integers(0, 1),
                    "sample_period": st.sampled_from([0, 0, 1, 97, HALF_32, 1 << 33]),
                    "exclude_user": st.integers(0, 1),
                    "exclude_kernel": st.integers(0, 1),
                }
            ),
            min_size=1,
            max_size=8,
        )
    )
    amounts = st.sampled_from([1, 2, 96, 1000, HALF_32, 1 << 30])
    steps = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7), amounts), max_size=40)
    return draw(st.sampled_from([P1, P5])), events, draw(steps)


@given(histories())
def test_a_count_is_what_happened_while_the_event_was_on_a_counter(
    history: tuple[int, list[dict[str, int]], list[tuple[int, int, int]]],
) -> None:
    pmuver, attributes, steps = history
    host, cpu = probed(4, pmuver)
    for number, of in enumerate(attributes):
        for name, value in (of | {"idx": NO_COUNTER, "state": STATE_OFF}).items():
            setattr(host.events[number], name, value)
    expected = [0] * len(attributes)
    on: set[int] = set()
    for what, which, amount in steps:
        number = which % len(attributes)
        event = host.events[number]
        if what == 0 and number in on:
            arm_pmuv3.delete(cpu, event)
            on.discard(number)
            assert event.count == expected[number]
        elif what == 0:
            if arm_pmuv3.add(cpu, event, number) == 0:
                on.add(number)
        elif what == 1 and number in on:
            arm_pmuv3.event_update(cpu, event)
            assert event.count == expected[number]
        elif what == 2:
            config, el = (INST_RETIRED, CPU_CYCLES, BR_RETIRED)[which % 3], 2 * (which // 4)
            happen(cpu.pe, config, amount, el)
            take_interrupt(host, 0)
            for i in on:
                excluded = attributes[i]["exclude_kernel" if el == 2 else "exclude_user"]
                expected[i] += amount * (attributes[i]["config"] == config and not excluded)
        arm_pmuv3.armpmu_enable(cpu)
        assert cpu.hw.used_mask == sum(arm_pmuv3.event_mask(cpu, host.events[i]) for i in on)
        assert cpu.pe.cnten == cpu.hw.used_mask


def test_several_pmus_have_each_their_counters() -> None:
    """CPUs 0 and 1 are of different kinds; a task with an event of each kind counts where it is."""
    host = make_host(cpus=2, pmus=[0, 1])
    scene = Scene(host)
    little, big = scene.open(task=0, pmu=0), scene.open(task=0, pmu=1)
    counts = []
    for c in (0, 1, 0):
        scene.switch(c, 0)
        check_counters(host)
        scene.happen(INST_RETIRED, 100, c)
        scene.times(little)
        scene.times(big)
        counts.append((host.events[little].count, host.events[big].count))
        scene.leave(c)
    assert counts == [(100, 0), (100, 100), (200, 100)]
