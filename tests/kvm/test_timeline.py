"""Hosts, guests and perf sessions in time. Shares and counts are computed by hand from rates and times."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm.timelines import KINDS, MS, Lab
from pmuvisor.arch.events import BR_RETIRED, CPU_CYCLES, INST_RETIRED
from pmuvisor.kvm import timeline, world

N1 = "neoverse-n1"  # six event counters, 2500 MHz


# ---- the queue ------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 20)), max_size=60))
def test_the_queue_gives_the_entry_that_is_due_first_and_of_equals_the_lowest(changes: list[tuple[int, int]]) -> None:
    lab = Lab([N1] * 4, vcpus=8)
    due = list(lab.t.due)
    for entry, when in changes:
        timeline.schedule(lab.t, entry, when)
        due[entry] = when
        assert lab.t.queue[0] == min(range(12), key=lambda e: (due[e], e))
        assert [lab.t.queue[lab.t.place[e]] for e in range(12)] == list(range(12))


# ---- tasks ----------------------------------------------------------------------------------------------------


def test_a_task_counts_by_its_rate_and_its_clock() -> None:
    lab = Lab([N1], programs=1)
    events = [lab.open(config, cpu=0) for config in KINDS]
    lab.task(0, on=1, ipms=1_000_000)
    lab.run(10)
    assert [lab.event(n).count for n in events] == [10_000_000, 25_000_000, 2_500_000]


def test_tasks_of_one_cpu_take_turns() -> None:
    lab = Lab([N1], programs=3)
    events = [lab.open(INST_RETIRED, task=number) for number in range(3)]
    for number in range(3):
        lab.task(number, on=1)
    lab.run(90)  # thirty slices of 3 ms
    assert [lab.event(n).count for n in events] == [30_000_000] * 3
    assert [lab.event(n).total_time_enabled for n in events] == [30 * MS] * 3


def test_a_task_that_sleeps_leaves_the_cpu_to_another_and_comes_back() -> None:
    lab = Lab([N1], programs=2, slice_ms=50)
    events = [lab.open(INST_RETIRED, task=number) for number in range(2)]
    lab.task(0, on=1, burst=2 * MS, pause=3 * MS)
    lab.task(1, on=1)
    # Task 0: 0-2, asleep to 5; task 1 runs then, and is not preempted for its slice of 50 ms: 2-52.
    lab.run(52)
    assert [lab.event(n).count for n in events] == [2_000_000, 50_000_000]


def test_a_task_that_wakes_runs_at_once_on_an_idle_cpu() -> None:
    lab = Lab([N1, N1], programs=2, slice_ms=50)
    events = [lab.open(INST_RETIRED, task=number) for number in range(2)]
    lab.task(0, on=0b01, burst=2 * MS, pause=3 * MS)
    lab.task(1, on=0b11)
    lab.run(50)
    assert [lab.event(n).count for n in events] == [20_000_000, 50_000_000]


@pytest.mark.parametrize(("bits", "expected"), [({}, 100), ({"exclude_user": 1}, 30), ({"exclude_kernel": 1}, 70)])
def test_user_and_kernel_are_told_apart(bits: dict[str, int], expected: int) -> None:
    lab = Lab([N1], programs=1)
    event = lab.open(INST_RETIRED, cpu=0, **bits)
    lab.task(0, on=1, ipms=100, user=700)
    lab.run(1)
    assert (lab.event(event).count, lab.event(event).true) == (expected, expected)


def test_sampling_interrupts_after_each_period() -> None:
    lab = Lab([N1], programs=1)
    event = lab.open(INST_RETIRED, cpu=0, sample_period=300_000)
    lab.task(0, on=1)
    lab.run(10)
    assert lab.event(event).samples == 33
    assert lab.event(event).count == 10_000_000


@pytest.mark.parametrize(("kind", "config"), [(N1, INST_RETIRED), ("neoverse-n2", INST_RETIRED), (N1, CPU_CYCLES)])
def test_sampling_with_64_bits_interrupts_after_each_period(kind: str, config: int) -> None:
    # A Neoverse N1's counters are short: two of them are chained, but for the cycle counter.
    lab = Lab([kind], programs=1)
    lab.open(CPU_CYCLES, cpu=0, pinned=1, sample_period=1_000_000)  # has the cycle counter
    event = lab.open(config, cpu=0, long=1, sample_period=300_000)
    lab.task(0, on=1)
    lab.run(10)
    done = 10_000_000 if config == INST_RETIRED else 25_000_000
    assert (lab.event(event).count, lab.event(event).samples) == (done, done // 300_000)


# ---- multiplexing, by hand -------------------------------------------------------------------------------------


def test_eight_events_on_six_counters_run_three_quarters_of_the_time() -> None:
    lab = Lab([N1], programs=1)
    events = [lab.open(BR_RETIRED, cpu=0) for _ in range(8)]
    lab.task(0, on=1)
    lab.run(4 * 80)  # eighty turns of the multiplexing timer: ten times round
    for n in events:
        event = lab.event(n)
        assert (event.total_time_enabled, event.total_time_running) == (320 * MS, 240 * MS)
        assert event.count * 4 == event.true * 3 == 240_000_000


def test_two_cpus_four_busy_vcpus_and_sessions_that_want_every_counter() -> None:
    """The guest has 3 of 6 event counters and the cycle counter; vCPUs fill both CPUs all the time.

    The host has 3 event counters left on each CPU, for 6 events: each runs half of the time. After the run, when no
    vCPU is loaded, every counter is the host's again.
    """
    lab = Lab([N1, N1], vcpus=4, guest_counters=3)
    events = [lab.open(config, cpu=c) for c in range(2) for config in (BR_RETIRED, INST_RETIRED, CPU_CYCLES) * 2]
    excluded = [lab.open(INST_RETIRED, cpu=c, pinned=1, exclude_guest=1) for c in range(2)]
    for v in range(4):
        lab.task(v, on=0b11, user=600)
    lab.run(4 * 600)
    for n in events:
        event = lab.event(n)
        assert event.count == event.seen
        assert event.total_time_enabled == 2400 * MS
        # A pinned event keeps one of the three: six share two. A turn of the timer is 4 ms of 2400.
        assert abs(event.total_time_running - 800 * MS) <= 12 * MS
    assert [lab.event(n).count for n in excluded] == [0, 0]
    assert [lab.guest_counts(v) for v in range(4)] == [lab.executed(v) for v in range(4)]
    assert sum(lab.executed(v)[0] for v in range(4)) == 2 * 2400 * 1_000_000
    assert min(v.loads for v in lab.t.world.vcpus) > 100
    for c in range(2):
        world.switch_out(lab.t.world, c, lab.t.now)
        assert lab.t.world.host.cpus[c].hw.cntr_mask == 0x3F | 1 << 31


def test_a_vcpu_that_migrates_between_cpus_counts_as_if_it_had_not() -> None:
    lab = Lab([N1, N1], vcpus=3, slice_ms=1)
    for v in range(3):
        lab.task(v, on=0b11, burst=700_000 * (v + 1), pause=400_000, ipms=1_234_567)
    lab.run(500)
    assert sum(task.migrations for task in lab.t.world.host.tasks) > 50
    assert [lab.guest_counts(v) for v in range(3)] == [lab.executed(v) for v in range(3)]


# ---- unlike cores ----------------------------------------------------------------------------------------------


def test_an_event_of_one_pmu_never_runs_on_the_others_cpus() -> None:
    lab = Lab(["cortex-a55"] * 4 + ["cortex-x1"] * 4, programs=12, slice_ms=1)
    little = lab.open(INST_RETIRED, pmu=0, task=0)
    big = lab.open(INST_RETIRED, pmu=1, task=0)
    for number in range(12):
        lab.task(number, on=0xFF, burst=500_000 + 70_000 * number, pause=300_000)
    seen = set()
    for ms in range(1, 400):
        lab.run(ms)
        for c, cpu in enumerate(lab.t.world.host.cpus):
            here = {lab.t.world.host.events[n].pmu for n in cpu.hw.events if n != 0xFFFF}
            assert here <= {cpu.pmu}
            seen |= {(c, kind) for kind in here}
    assert {kind for _, kind in seen} == {0, 1}
    task = lab.t.world.host.tasks[0]
    assert lab.event(little).count + lab.event(big).count == task.runtime
    assert lab.event(little).total_time_running + lab.event(big).total_time_running == task.runtime


def test_a_vm_tied_to_one_pmu_counts_nothing_on_the_others_cpus() -> None:
    lab = Lab(["cortex-a55", "cortex-x1"], vcpus=1)
    lab.task(0, on=0b10)  # its VM is tied to the Cortex-A55's
    lab.run(5)
    assert lab.t.world.vcpus[0].unsupported_cpu == 1
    assert lab.t.world.host.cpus[1].hw.guest_resident == 0
    world.switch_out(lab.t.world, 1, lab.t.now)
    assert (lab.t.world.vcpus[0].evcntr[0], lab.t.world.vcpus[0].ccntr) == (0, 0)


# ---- whatever happens ------------------------------------------------------------------------------------------


def random_lab(seed: int) -> Lab:
    rng = random.Random(seed)
    cores = rng.choice([[N1, N1], ["neoverse-n2"] * 3, ["max", "max"], ["cortex-a55", "cortex-a55", "cortex-x1"]])
    guest = rng.randrange(1, 6)
    lab = Lab(cores, vcpus=3, programs=2, guest_counters=guest, slice_ms=rng.choice([1, 3]), mux_ms=rng.choice([1, 4]))
    # vCPUs stay on the CPUs of the first kind, which is that of their VM's PMU.
    own = sum(1 << c for c, name in enumerate(cores) if name == cores[0])
    for number in range(5):
        on = own if number < 3 else (1 << len(cores)) - 1
        burst = rng.choice([0, rng.randrange(100_000, 3 * MS)])
        lab.task(number, on=on, ipms=rng.randrange(1, 3_000_000), user=rng.randrange(1001), burst=burst, pause=500_000)
    for _ in range(rng.randrange(1, 14)):
        bits = {name: rng.randrange(2) for name in ("exclude_user", "exclude_kernel")}
        bits |= rng.choice([{}, {"exclude_guest": 1}, {"exclude_host": 1}])
        bits["sample_period"] = rng.choice([0, 0, rng.randrange(50_000, 5_000_000)])
        bits["pinned"] = int(rng.random() < 0.2)
        where = {"cpu": rng.randrange(2)} if rng.random() < 0.6 else {"task": rng.randrange(5)}
        lab.open(rng.choice(KINDS), **bits, **where)
    return lab


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32))
def test_counts_of_both_sides_are_exact(seed: int) -> None:
    lab = random_lab(seed)
    lab.run(60)
    for n in range(lab.opened):
        event = lab.event(n)
        assert event.count == event.seen <= event.true
    for v in range(3):
        assert lab.guest_counts(v) == lab.executed(v)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.integers(1, 39), max_size=5))
def test_looking_at_it_in_between_changes_nothing_that_is_counted(seed: int, looks: list[int]) -> None:
    once, often = random_lab(seed), random_lab(seed)
    once.run(40)
    for ms in sorted(looks):
        often.run(ms)
    often.run(40)
    for n in range(once.opened):
        a, b = once.event(n), often.event(n)
        assert (a.count, a.total_time_running, a.samples) == (b.count, b.total_time_running, b.samples)
    assert list(once.t.executed) == list(often.t.executed)
