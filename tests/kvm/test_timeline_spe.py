"""The host's SPE sessions in time. Operations, samples and interrupts are counted by hand.

A session of period 2048 samples operation 2048, and since the one after a sample reloads the counter, each 2049th from
there: of n operations (n + 1) // 2049. A record is 64 bytes.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm.timelines import MS, Lab
from pmuvisor.arch import spe
from pmuvisor.arch.sysreg import PMSCR_E0SPE, PMSCR_E1SPE
from pmuvisor.kvm import timeline
from pmuvisor.linux.host import STATE_OFF, SpeSession

N1 = "neoverse-n1"  # SPE, 1024 operations at least
PERIOD = 2048
RECORD = 64


def sampled(operations: int) -> int:
    return (operations + 1) // (PERIOD + 1)


def records_of(lab: Lab, number: int) -> int:
    """Close a session and return how many records are in its buffer, where no record was lost or went astray."""
    session = lab.session(number)
    for cpu in lab.t.world.host.cpus:
        assert (cpu.spu.lost, cpu.spu.misplaced, cpu.spu.unpredictable) == (0, 0, 0)
    assert (session.aux_head - session.padded) % RECORD == 0
    records = (session.aux_head - session.padded) // RECORD
    assert records == session.formed
    return records


# ---- how many records -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ipms", [1_000_000, 6_999_999, 123_457])
def test_a_task_alone_is_sampled_each_time_the_counter_has_run_down(ipms: int) -> None:
    lab = Lab([N1], programs=1)
    session = lab.profile(period=PERIOD, cpu=0, buffer=1 << 16)
    lab.task(0, on=1, ipms=ipms)
    lab.run(10)
    assert records_of(lab, session) == sampled(10 * ipms)


@pytest.mark.parametrize(
    ("period", "first", "interval"), [(3000, 3000, 11 * 256), (1279, 1279, 1024), (100, 100, 1024), (4096, 4096, 4096)]
)
def test_the_first_interval_is_what_was_asked_for_and_the_others_what_the_unit_takes(
    period: int, first: int, interval: int
) -> None:
    lab = Lab([N1], programs=1)
    session = lab.profile(period=period, cpu=0)
    lab.task(0, on=1)
    lab.run(3)
    assert records_of(lab, session) == 1 + (3_000_000 - first) // (interval + 1)


@pytest.mark.parametrize(("levels", "operations"), [(PMSCR_E0SPE, 7_000_000), (PMSCR_E1SPE, 3_000_000)])
def test_user_space_or_the_kernel_can_be_sampled_alone(levels: int, operations: int) -> None:
    lab = Lab([N1], programs=1)
    session = lab.profile(period=PERIOD, cpu=0, levels=levels)
    lab.task(0, on=1, user=700)
    lab.run(10)
    assert records_of(lab, session) == sampled(operations)


@pytest.mark.parametrize(("levels", "user"), [(PMSCR_E0SPE, 0), (PMSCR_E1SPE, 1000)])
def test_a_task_that_is_never_at_the_level_is_never_sampled(levels: int, user: int) -> None:
    lab = Lab([N1], programs=1)
    session = lab.profile(period=PERIOD, cpu=0, levels=levels)
    lab.task(0, on=1, user=user)
    lab.run(10)
    assert records_of(lab, session) == 0


def test_each_sample_is_of_the_level_where_its_operation_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab([N1], programs=1)
    lab.profile(period=PERIOD, cpu=0)
    lab.task(0, on=1, user=400)
    levels = []
    take = timeline.take_sample

    def taken(t: timeline.Timeline, c: int, at_el0: int) -> None:
        take(t, c, at_el0)
        levels.append(t.sample.el)

    monkeypatch.setattr(timeline, "take_sample", taken)
    lab.run(10)
    at = [PERIOD + n * (PERIOD + 1) for n in range(sampled(10_000_000))]
    # Of operations 1, 2, 3, ... two in five are at EL0: those at which 400 k / 1000 gets to another whole number.
    assert levels == [0 if k * 400 // 1000 > (k - 1) * 400 // 1000 else 2 for k in at]
    assert {0, 2} == set(levels)


def test_jitter_makes_intervals_longer_by_half_of_256_on_average() -> None:
    lab = Lab([N1], programs=1)
    session = lab.profile(period=PERIOD, cpu=0, jitter=1)
    lab.task(0, on=1)
    lab.run(100)
    assert abs(records_of(lab, session) - 100_000_000 / (PERIOD + 1 + 127.5)) < 100


# ---- whose operations -----------------------------------------------------------------------------------------


def test_a_session_of_a_cpu_samples_all_its_tasks_as_one() -> None:
    lab = Lab([N1, N1], programs=3)
    session = lab.profile(period=PERIOD, cpu=0)
    lab.task(0, on=1, ipms=1_500_000)
    lab.task(1, on=1, ipms=500_000)
    lab.task(2, on=2)
    lab.run(30)  # ten slices of 3 ms
    assert records_of(lab, session) == sampled(15 * 1_500_000 + 15 * 500_000)


def test_a_session_of_a_task_finds_its_own_operations_wherever_it_runs() -> None:
    lab = Lab([N1, N1], programs=4, slice_ms=1)
    sessions = [lab.profile(period=PERIOD, task=number, buffer=1 << 15) for number in range(2)]
    for number in range(4):
        lab.task(number, on=0b11, ipms=1_000_000, burst=700_000 * (number + 1), pause=400_000)
    lab.run(300)
    tasks = lab.t.world.host.tasks
    for number in range(2):
        assert tasks[number].migrations > 20
        assert tasks[number].runtime > 50 * MS
        assert records_of(lab, sessions[number]) == sampled(tasks[number].runtime)
        assert lab.t.world.host.spe_sessions[number].interrupts > 10


@pytest.mark.parametrize("with_spe", [0, 1])
def test_nothing_is_sampled_while_a_guest_runs(with_spe: int) -> None:
    """A guest without SPE leaves the unit as it is, and PMSCR_EL1 is 0; one that has SPE stops it."""
    lab = Lab([N1], vcpus=1, programs=1)
    lab.t.world.vms[0].spe = with_spe
    session = lab.profile(period=PERIOD, cpu=0, buffer=1 << 14)
    for number in range(2):
        lab.task(number, on=1, user=600)
    for ms in range(1, 60):
        lab.run(ms)
        spu = lab.t.world.host.cpus[0].spu
        assert [spe.statistical_profiling_enabled(spu, el, 0) for el in (0, 1)] == [False, False]
        of_host = timeline.resident(lab.t, 0) != 0
        assert spe.statistical_profiling_enabled(spu, 2, 1) == (of_host or with_spe == 0)
    lab.run(60)
    assert lab.t.world.vcpus[0].loads >= 10
    assert lab.executed(0)[0] == 30_000_000
    assert records_of(lab, session) == sampled(30_000_000)


# ---- the buffer -----------------------------------------------------------------------------------------------


def test_an_interrupt_comes_for_each_half_of_the_buffer_and_for_its_page_that_is_left() -> None:
    """The reader is woken for each half, after the handler has gone on.

    So the handler never has a whole half: one byte of the buffer stays free, and the unit writes whole pages. Of 1024
    records the first half is 512; from there on each half is 448 and, when the other half was read, the page's 64.
    """
    lab = Lab([N1], programs=1)
    number = lab.profile(period=PERIOD, cpu=0, buffer=1024 * RECORD)
    lab.task(0, on=1)
    lab.run(10)
    records = records_of(lab, number)
    assert records == 4880
    session = lab.t.world.host.spe_sessions[number]
    assert session.interrupts == len([n for n in range(1, records + 1) if n % 512 == 0 or (n > 512 and n % 512 == 448)])
    assert (session.interrupts, session.woken, session.spurious) == (17, 9, 0)
    assert (session.truncated, session.padded) == (0, 0)


def test_a_buffer_that_nobody_reads_is_truncated_once_and_the_session_is_off() -> None:
    lab = Lab([N1], programs=1)
    number = lab.profile(period=PERIOD, cpu=0, buffer=1 << 16, prompt=0)
    lab.task(0, on=1)
    looks = {}
    for ms in (1, 2, 5, 10):
        lab.run(ms)
        session = lab.t.world.host.spe_sessions[number]
        looks[ms] = (session.interrupts, session.truncated, session.state == STATE_OFF)
    # All but the last page: 960 records, the last at operation 960 * 2049 - 1. The page but a byte is padding.
    assert looks == {1: (0, 0, False), 2: (2, 1, True), 5: (2, 1, True), 10: (2, 1, True)}
    assert records_of(lab, number) == 960
    assert (session.padded, session.aux_head) == (4095, 65535)
    assert lab.t.world.host.cpus[0].spu.formed == 960


def test_a_buffer_of_two_pages_is_truncated_however_fast_its_reader_is() -> None:
    lab = Lab([N1], programs=1)
    number = lab.profile(period=PERIOD, cpu=0, buffer=1 << 13)
    lab.task(0, on=1)
    lab.run(3)
    session = lab.t.world.host.spe_sessions[number]
    # One byte stays free, so that there is less than a page when the first half is full.
    assert (session.state, session.truncated, session.interrupts, session.padded) == (STATE_OFF, 1, 1, 4095)
    assert records_of(lab, number) == 64


def test_an_interrupt_is_at_the_very_operation() -> None:
    lab = Lab([N1], programs=1)
    session = lab.t.world.host.spe_sessions[lab.profile(period=PERIOD, cpu=0, buffer=1 << 16)]
    lab.task(0, on=1)
    at = 512 * (PERIOD + 1) - 1
    timeline.run_until(lab.t, at - 1)
    assert (session.interrupts, lab.t.world.host.cpus[0].spu.formed) == (0, 511)
    timeline.run_until(lab.t, at)
    assert (session.interrupts, session.aux_tail) == (1, 1 << 15)


# ---- whatever happens -----------------------------------------------------------------------------------------


def random_lab(seed: int) -> Lab:
    rng = random.Random(seed)
    lab = Lab([N1, N1], vcpus=1, programs=3, slice_ms=rng.choice([1, 3]))
    lab.t.world.vms[0].spe = rng.randrange(2)
    of_cpus = rng.randrange(2)
    for number in range(2):
        levels = rng.choice([PMSCR_E0SPE, PMSCR_E1SPE, PMSCR_E0SPE | PMSCR_E1SPE])
        size = 1 << rng.randrange(14, 18)
        more = {"jitter": rng.randrange(2), "buffer": size, "prompt": int(rng.random() < 0.8), "levels": levels}
        lab.profile(period=rng.randrange(1000, 9000), **more, **({"cpu": number} if of_cpus else {"task": number + 1}))
    for number in range(4):
        burst = rng.choice([0, rng.randrange(100_000, 3 * MS)])
        ipms = rng.randrange(1, 7_000_000)
        lab.task(number, on=0b11, ipms=ipms, user=rng.randrange(1001), burst=burst, pause=500_000)
    return lab


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.integers(1, 12 * MS), max_size=8))
def test_samples_are_the_same_in_whatever_pieces_time_passes(seed: int, looks: list[int]) -> None:
    once, often = random_lab(seed), random_lab(seed)
    for at in sorted(looks):
        timeline.run_until(often.t, at)
    found: list[list[SpeSession]] = []
    for lab in (once, often):
        timeline.run_until(lab.t, 12 * MS)
        for number in range(2):
            records_of(lab, number)
        found.append(list(lab.t.world.host.spe_sessions))
    assert found[0] == found[1]
    assert [cpu.spu for cpu in once.t.world.host.cpus] == [cpu.spu for cpu in often.t.world.host.cpus]
