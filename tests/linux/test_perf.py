"""perf's core: which events run, in which order, with which share; what each system call and each switch moves.

Who is on a counter is written as a string, a letter for each event: A on a counter, . waiting, E in error, O off.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from linux.support import INTERVAL, Scene, check_counters, make_host
from pmuvisor import records
from pmuvisor.arch.events import CHAIN, CPU_CYCLES, INST_RETIRED
from pmuvisor.linux import perf
from pmuvisor.linux.arm_pmuv3 import EINVAL
from pmuvisor.linux.host import (
    ANY_CPU,
    EVENT_CPU,
    EVENT_FLEXIBLE,
    EVENT_PINNED,
    NO_COUNTER,
    NO_EVENT,
    NO_TASK,
    STATE_ACTIVE,
    STATE_INACTIVE,
    STATE_OFF,
    PerfEvent,
)
from pmuvisor.linux.perf import ENOENT

MS = 1_000_000
CYCLE_BIT = 1 << 31


def scene_of(cpus: int = 1, n: int = 6, pmus: Iterable[int] = (), tasks: int = 2) -> Scene:
    """Return a scene in which task 0 runs on CPU 0."""
    scene = Scene(make_host(cpus=cpus, n=n, pmus=pmus, tasks=tasks))
    scene.switch(0, 0)
    return scene


def sets(scene: Scene, events: list[int], turns: int) -> list[str]:
    """Return who is on a counter now and after each of `turns` - 1 rotations."""
    out = [scene.states(events)]
    for _ in range(turns - 1):
        scene.run(INTERVAL)
        check_counters(scene.host)
        out.append(scene.states(events))
    return out


def group(scene: Scene, size: int, **attributes: int) -> list[int]:
    leader = scene.open(**attributes)
    return [leader, *(scene.open(leader=leader) for _ in range(size - 1))]


# ---- who comes first --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, "A.E."), (2, "A.A."), (3, "AAA."), (4, "AAAA")],
)
def test_cpu_pinned_then_task_pinned_then_cpu_flexible_then_task_flexible(n: int, expected: str) -> None:
    scene = scene_of(n=n)
    task_flexible = scene.open(task=0)
    cpu_flexible = scene.open()
    task_pinned = scene.open(task=0, pinned=1)
    cpu_pinned = scene.open(pinned=1)
    assert scene.states([cpu_pinned, cpu_flexible, task_pinned, task_flexible]) == expected


def test_a_pinned_event_drives_a_flexible_one_from_its_counter() -> None:
    scene = scene_of(n=2)
    flexible = [scene.open(), scene.open(task=0)]
    assert scene.states(flexible) == "AA"
    pinned = scene.open(task=0, pinned=1)
    assert scene.states([*flexible, pinned]) == "A.A"


@pytest.mark.parametrize("task", [0, NO_TASK])
def test_a_cpu_s_flexible_event_makes_room_for_any_pinned_one(task: int) -> None:
    scene = scene_of(n=1)
    flexible = scene.open()
    pinned = scene.open(task=task, cpu=0, pinned=1)
    assert scene.states([flexible, pinned]) == ".A"


def test_a_pinned_event_that_does_not_fit_is_in_error_and_stays_there() -> None:
    scene = scene_of(n=2)
    pinned = [scene.open(pinned=1) for _ in range(3)]
    assert scene.states(pinned) == "AAE"
    scene.run(10 * INTERVAL)
    scene.close(pinned[0])
    scene.run(10 * INTERVAL)
    assert scene.states(pinned[1:]) == "AE"
    assert scene.times(pinned[2]) == (0, 0)
    scene.enable(pinned[2])
    assert scene.states(pinned[1:]) == "AA"


def test_a_pinned_event_that_comes_later_pushes_a_task_s_pinned_one_into_error() -> None:
    scene = scene_of(n=2)
    of_task = [scene.open(task=0, pinned=1) for _ in range(2)]
    of_cpu = scene.open(pinned=1)
    assert scene.states([of_cpu, *of_task]) == "AAE"


# ---- groups -----------------------------------------------------------------------------------------------


def test_a_group_is_on_as_a_whole_or_not_at_all() -> None:
    scene = scene_of()
    singles = [scene.open() for _ in range(3)]
    members = group(scene, 4)
    assert scene.states([*singles, *members]) == "AAA...."
    scene.close(singles[0])
    scene.rotate()
    assert scene.states([*singles[1:], *members]) == "AAAAAA"


def test_siblings_are_tried_in_the_order_in_which_they_were_opened() -> None:
    scene = scene_of()
    members = group(scene, 4)
    assert [scene.host.events[i].idx for i in members] == [0, 1, 2, 3]


def test_a_sibling_that_is_off_needs_no_counter() -> None:
    scene = scene_of(n=2)
    leader = scene.open()
    off = [scene.open(leader=leader, state=STATE_OFF) for _ in range(3)]
    on = scene.open(leader=leader)
    assert scene.states([leader, *off, on]) == "AOOOA"


@pytest.mark.parametrize("size", [1, 2, 6])
def test_closing_a_leader_leaves_its_siblings_on_their_counters_each_a_group_of_its_own(size: int) -> None:
    scene = scene_of()
    leader, *siblings = group(scene, size)
    counters = [scene.host.events[i].idx for i in siblings]
    scene.run(3 * MS)
    scene.close(leader)
    check_counters(scene.host)
    assert [scene.host.events[i].idx for i in siblings] == counters
    assert [scene.host.events[i].leader for i in siblings] == siblings
    scene.run(2 * MS)
    assert [scene.times(i) for i in siblings] == [(5 * MS, 5 * MS)] * (size - 1)


def test_the_siblings_of_a_pinned_leader_that_is_closed_are_flexible() -> None:
    scene = scene_of(n=2)
    leader, sibling = group(scene, 2, pinned=1)
    waiting = [scene.open() for _ in range(2)]
    scene.close(leader)
    assert scene.states([*waiting, sibling]) == "..A"
    # It is the last in the list, behind those that wait. By hand, the list's order each time, of which the first that
    # runs goes to the end: xyS (S alone runs), xyS, ySx, Sxy.
    assert sets(scene, [*waiting, sibling], 4) == ["..A", "AA.", ".AA", "A.A"]


@pytest.mark.parametrize("pinned", [0, 1])
def test_a_leader_off_takes_its_group_off_and_back(pinned: int) -> None:
    scene = scene_of()
    members = group(scene, 3, pinned=pinned)
    scene.run(MS)
    scene.disable(members[0])
    assert scene.states(members) == "O.."
    scene.run(MS)
    scene.enable(members[0])
    assert scene.states(members) == "AAA"
    scene.run(MS)
    assert [scene.times(i) for i in members] == [(2 * MS, 2 * MS)] * 3


def test_a_sibling_off_leaves_the_others_on() -> None:
    scene = scene_of()
    members = group(scene, 3)
    scene.run(MS)
    scene.disable(members[1])
    assert scene.states(members) == "AOA"
    scene.run(MS)
    scene.enable(members[1])
    scene.run(MS)
    assert [scene.times(i) for i in members] == [(3 * MS, 3 * MS), (2 * MS, 2 * MS), (3 * MS, 3 * MS)]


# ---- rotation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attributes", [{}, {"task": 0}], ids=["of a CPU", "of a task"])
def test_8_events_on_6_counters_take_turns_and_run_three_quarters_of_the_time(attributes: dict[str, int]) -> None:
    scene = scene_of()
    events = [scene.open(**attributes) for _ in range(8)]
    assert sets(scene, events, 9) == [
        "AAAAAA..",
        ".AAAAAA.",
        "..AAAAAA",
        "A..AAAAA",
        "AA..AAAA",
        "AAA..AAA",
        "AAAA..AA",
        "AAAAA..A",
        "AAAAAA..",
    ]
    # Eight turns, and each was off for two of them.
    assert [scene.times(i) for i in events] == [(8 * INTERVAL, 6 * INTERVAL)] * 8


def test_after_the_first_group_that_does_not_fit_none_is_tried() -> None:
    scene = scene_of()
    leader = group(scene, 4)[0]
    singles = [scene.open() for _ in range(4)]
    # By hand, the list's order each time: gabcd, abcdg, bcdga (a would fit behind g, which does not), cdgab, dgabc.
    assert sets(scene, [leader, *singles], 6) == ["AAA..", ".AAAA", "..AAA", "A..AA", "AA..A", "AAA.."]
    shares = [scene.times(i)[1] // INTERVAL for i in [leader, *singles]]
    assert shares == [3, 3, 3, 3, 4]


def test_a_group_that_fills_the_pmu_runs_alone() -> None:
    scene = scene_of()
    big, small = group(scene, 6)[0], scene.open()
    assert sets(scene, [big, small], 5) == ["A.", ".A", "A.", ".A", "A."]


def test_pinned_events_are_not_rotated() -> None:
    scene = scene_of(n=3)
    pinned = [scene.open(pinned=1), scene.open(task=0, pinned=1)]
    flexible = [scene.open() for _ in range(3)]
    assert sets(scene, [*pinned, *flexible], 4) == ["AAA..", "AA.A.", "AA..A", "AAA.."]


def test_a_cpu_s_flexible_events_keep_a_task_s_from_ever_running() -> None:
    scene = scene_of(n=2)
    of_cpu = [scene.open() for _ in range(3)]
    of_task = scene.open(task=0)
    assert sets(scene, [*of_cpu, of_task], 4) == ["AA..", ".AA.", "A.A.", "AA.."]
    assert scene.times(of_task) == (3 * INTERVAL, 0)


def test_a_task_s_events_rotate_over_what_the_cpu_s_leave() -> None:
    scene = scene_of(n=3)
    of_cpu = scene.open()
    of_task = [scene.open(task=0) for _ in range(3)]
    assert sets(scene, [of_cpu, *of_task], 4) == ["AAA.", "A.AA", "AA.A", "AAA."]


def test_there_is_nothing_to_rotate_while_everything_fits() -> None:
    scene = scene_of()
    events = [scene.open() for _ in range(6)]
    assert scene.rotate() == 0
    scene.open()
    assert scene.rotate() == 1
    assert scene.states(events) == ".AAAAA"
    for i in events[:2]:
        scene.close(i)
    scene.open()
    assert scene.rotate() == 0


def test_the_timer_goes_on_once_after_what_waited_is_gone() -> None:
    scene = scene_of(n=1)
    scene.open(pinned=1)
    waiting = scene.open()
    assert [scene.rotate(), scene.rotate()] == [1, 1]
    scene.close(waiting)
    assert [scene.rotate(), scene.rotate()] == [1, 0]


def test_cycles_wait_for_no_event_counter() -> None:
    scene = scene_of(n=2)
    events = [scene.open(config=config) for config in (INST_RETIRED, CPU_CYCLES, INST_RETIRED)]
    assert scene.states(events) == "AAA"
    assert scene.host.events[events[1]].idx == 31


# ---- what a system call moves -----------------------------------------------------------------------------


def test_what_waits_goes_on_at_an_open_not_at_a_close_or_the_open_of_an_event_that_is_off() -> None:
    scene = scene_of(n=2)
    events = [scene.open() for _ in range(3)]
    scene.close(events[0])
    assert scene.states(events[1:]) == "A."
    off = scene.open(state=STATE_OFF)
    assert scene.states([*events[1:], off]) == "A.O"
    scene.open()
    assert scene.states(events[1:]) == "AA"


def test_what_waits_does_not_go_on_at_the_enable_of_a_sibling_whose_leader_is_not_on() -> None:
    scene = scene_of(n=2)
    leader = scene.open(state=STATE_OFF)
    sibling = scene.open(leader=leader, state=STATE_OFF)
    events = [scene.open() for _ in range(3)]
    scene.close(events[0])
    scene.enable(sibling)
    assert scene.states([leader, sibling, *events[1:]]) == "O.A."


def test_an_event_that_comes_later_is_enabled_from_then_on() -> None:
    scene = scene_of(n=1)
    first = scene.open()
    scene.run(2 * MS)
    late = scene.open()
    scene.run(MS)
    assert (scene.times(first), scene.times(late)) == ((3 * MS, 3 * MS), (MS, 0))


def test_time_in_which_a_task_has_no_events_and_does_not_run_is_none_of_a_later_event_s() -> None:
    scene = scene_of()
    scene.close(scene.open(task=0))
    scene.leave(0)
    event = scene.open(task=0)
    scene.run(5 * MS)
    scene.switch(0, 0)
    scene.run(MS)
    assert scene.times(event) == (MS, MS)


def test_a_sibling_whose_leader_is_closed_while_off_has_been_enabled_all_the_time() -> None:
    """As Linux has it: nothing takes the time into account in which it was the leader that was off."""
    scene = scene_of()
    leader, sibling = group(scene, 2)
    scene.run(MS)
    scene.disable(leader)
    scene.run(MS)
    scene.close(leader)
    scene.run(MS)
    assert scene.times(sibling) == (3 * MS, MS)


def test_an_event_opened_off_counts_from_its_enable() -> None:
    scene = scene_of()
    event = scene.open(state=STATE_OFF)
    scene.run(MS)
    scene.happen(INST_RETIRED, 5)
    scene.enable(event)
    scene.happen(INST_RETIRED, 7)
    scene.run(2 * MS)
    assert scene.times(event) == (2 * MS, 2 * MS)
    assert scene.host.events[event].count == 7


@pytest.mark.parametrize("first", ["off", "error"])
def test_disabling_what_does_not_run_does_nothing(first: str) -> None:
    scene = scene_of(n=1)
    scene.open(pinned=1)
    event = scene.open(pinned=1, state=STATE_OFF if first == "off" else STATE_INACTIVE)
    before = repr(scene.host)
    scene.disable(event)
    assert repr(scene.host) == before


def test_a_group_larger_than_its_pmu_cannot_be_opened() -> None:
    scene = scene_of()
    members = group(scene, 6)
    _, result = scene.try_open(leader=members[0])
    assert result == -EINVAL
    _, result = scene.try_open(leader=members[0], config=CPU_CYCLES)
    assert result == 0


def test_members_that_are_off_are_no_part_of_a_group_s_size_until_they_are_enabled() -> None:
    scene = scene_of(n=2)
    leader = scene.open(state=STATE_OFF)
    siblings = [scene.open(leader=leader, state=STATE_OFF) for _ in range(3)]
    for i in [leader, *siblings]:
        scene.enable(i)
    # With its third member the group has become too large, and is off for good.
    assert scene.states([leader, *siblings]) == "...."
    scene.run(4 * INTERVAL)
    assert scene.times(leader) == (4 * INTERVAL, 0)


@pytest.mark.parametrize(
    ("attributes", "error"),
    [
        pytest.param({"pinned": 1}, EINVAL, id="only a leader can be pinned"),
        pytest.param({"task": 0, "cpu": ANY_CPU}, EINVAL, id="a task's in a CPU's group"),
        pytest.param({"cpu": 1}, EINVAL, id="another CPU's"),
        pytest.param({"pmu": 1, "cpu": 2}, EINVAL, id="another PMU's"),
        pytest.param({"config": CHAIN}, EINVAL, id="CHAIN"),
        pytest.param({"cpu": 2}, ENOENT, id="a CPU of another PMU"),
    ],
)
def test_what_cannot_be_a_sibling_is_refused_and_leaves_the_group_as_it_was(
    attributes: dict[str, int], error: int
) -> None:
    scene = scene_of(cpus=3, pmus=[0, 0, 1])
    members = group(scene, 2)
    before = scene.states(members)
    number, result = scene.try_open(leader=members[0], **attributes)
    assert result == -error
    assert scene.host.events[number].attached == 0
    assert scene.host.events[members[1]].next_sibling not in (number, members[0])
    assert scene.states(members) == before


def test_a_sibling_cannot_lead() -> None:
    scene = scene_of()
    members = group(scene, 2)
    assert scene.try_open(leader=members[1])[1] == -EINVAL


def test_an_event_for_a_cpu_of_another_pmu_is_no_entry() -> None:
    scene = scene_of(cpus=2, pmus=[0, 1])
    assert scene.try_open(cpu=1, pmu=0)[1] == -ENOENT
    assert scene.try_open(cpu=1, pmu=1)[1] == 0


# ---- tasks ------------------------------------------------------------------------------------------------


def test_a_task_s_events_follow_it_and_its_time_stops_without_it() -> None:
    scene = scene_of(cpus=2)
    event = scene.open(task=0)
    on = []
    for c in (0, 1, 0):
        scene.switch(c, 0)
        on.append([cpu.hw.used_mask for cpu in scene.host.cpus])
        scene.happen(INST_RETIRED, 10, c)
        scene.run(MS)
        scene.leave(c)
        check_counters(scene.host)
        assert scene.state(event) == STATE_INACTIVE
        scene.happen(INST_RETIRED, 1000, c)
        scene.run(3 * MS)
    assert on == [[1, 0], [0, 1], [1, 0]]
    assert scene.times(event) == (3 * MS, 3 * MS)
    assert scene.host.events[event].count == 30


def test_a_task_s_event_for_one_cpu_runs_only_there() -> None:
    scene = scene_of(cpus=2)
    scene.leave(0)
    event = scene.open(task=0, cpu=1)
    for c, expected in ((0, "."), (1, "A")):
        scene.switch(c, 0)
        assert scene.states([event]) == expected
        scene.run(MS)
        scene.leave(c)
    # It is enabled on both.
    assert scene.times(event) == (2 * MS, MS)


def test_a_task_s_event_runs_only_on_cores_of_its_pmu() -> None:
    scene = scene_of(cpus=2, pmus=[0, 1])
    scene.leave(0)
    little, big = scene.open(task=0, pmu=0), scene.open(task=0, pmu=1, pinned=1)
    for c, expected in ((0, "A."), (1, ".A"), (0, "A.")):
        scene.switch(c, 0)
        assert scene.states([little, big]) == expected
        scene.run(MS)
        scene.leave(c)
    assert (scene.times(little), scene.times(big)) == ((3 * MS, 2 * MS), (3 * MS, MS))


def test_opening_an_event_for_another_pmu_moves_nobody_here() -> None:
    scene = scene_of(cpus=2, pmus=[0, 1], n=2)
    events = [scene.open(task=0) for _ in range(3)]
    scene.close(events[0])
    scene.open(task=0, pmu=1)
    assert scene.states(events[1:]) == "A."
    scene.open(task=0, pmu=0)
    assert scene.states(events[1:]) == "AA"


def test_enabling_a_task_s_event_for_another_cpu_moves_nobody_here() -> None:
    scene = scene_of(cpus=2, n=2)
    elsewhere = scene.open(task=0, cpu=1, state=STATE_OFF)
    events = [scene.open(task=0) for _ in range(3)]
    scene.close(events[0])
    scene.enable(elsewhere)
    assert scene.states([elsewhere, *events[1:]]) == ".A."


def test_a_first_event_for_another_pmu_begins_the_context_s_time() -> None:
    scene = scene_of(cpus=2, pmus=[0, 1])
    event = scene.open(task=0, pmu=1)
    scene.run(MS)
    assert scene.times(event) == (MS, 0)


def test_a_task_with_pinned_events_drives_the_cpu_s_flexible_ones_off_and_they_come_back() -> None:
    scene = scene_of(n=2)
    scene.leave(0)
    flexible = [scene.open(), scene.open()]
    pinned = scene.open(task=0, pinned=1)
    assert scene.states([pinned, *flexible]) == ".AA"
    scene.switch(0, 0)
    assert scene.states([pinned, *flexible]) == "AA."
    scene.leave(0)
    assert scene.states([pinned, *flexible]) == ".A."
    scene.rotate()
    assert scene.states([pinned, *flexible]) == ".AA"


def test_a_task_without_pinned_events_leaves_the_cpu_s_alone() -> None:
    scene = scene_of(n=2)
    scene.leave(0)
    of_cpu = [scene.open(), scene.open()]
    of_task = scene.open(task=0)
    scene.switch(0, 0)
    assert scene.states([of_task, *of_cpu]) == ".AA"


def test_tasks_take_turns_on_a_cpu_each_with_its_own_events() -> None:
    scene = scene_of()
    events = [scene.open(task=0), scene.open(task=1)]
    for task in (0, 1, 1, 0, 1):
        scene.switch(0, task)
        scene.happen(INST_RETIRED, 100 + task)
        scene.run(MS)
    assert [scene.times(i) for i in events] == [(2 * MS, 2 * MS), (3 * MS, 3 * MS)]
    assert [scene.host.events[i].count for i in events] == [200, 303]


# ---- across CPUs ------------------------------------------------------------------------------------------


def test_events_come_and_go_on_another_cpu_by_a_cross_call() -> None:
    scene = scene_of(cpus=2)
    event = scene.open(cpu=1)
    assert [cpu.hw.used_mask for cpu in scene.host.cpus] == [0, 1]
    scene.happen(INST_RETIRED, 5, 0)
    scene.happen(INST_RETIRED, 7, 1)
    scene.close(event)
    assert [cpu.hw.used_mask for cpu in scene.host.cpus] == [0, 0]
    assert scene.host.events[event].count == 7


def test_an_event_of_a_task_that_is_not_running_is_installed_without_one() -> None:
    scene = scene_of(cpus=2)
    event = scene.open(task=1)
    assert scene.states([event]) == "."
    scene.run(MS)
    scene.switch(1, 1)
    assert scene.states([event]) == "A"
    scene.run(MS)
    assert scene.times(event) == (MS, MS)


# ---- counters taken away and given back -------------------------------------------------------------------


def test_the_counters_change_while_no_event_is_on_any_of_them() -> None:
    scene = scene_of()
    events = [scene.open() for _ in range(4)]
    scene.happen(INST_RETIRED, 10)
    scene.resched_update(0b111000 | CYCLE_BIT)
    check_counters(scene.host)
    assert [scene.host.events[i].idx for i in events[:3]] == [3, 4, 5]
    assert scene.states(events) == "AAA."
    scene.happen(INST_RETIRED, 10)
    scene.resched_update(0b111111 | CYCLE_BIT)
    assert scene.states(events) == "AAAA"
    scene.happen(INST_RETIRED, 10)
    for i in events:
        scene.times(i)
    assert [scene.host.events[i].count for i in events] == [30, 30, 30, 20]


def test_what_no_longer_fits_waits_and_rotates_or_is_in_error_if_pinned() -> None:
    scene = scene_of()
    pinned = [scene.open(pinned=1) for _ in range(3)]
    flexible = [scene.open() for _ in range(3)]
    assert scene.states([*pinned, *flexible]) == "AAAAAA"
    scene.resched_update(0b110000)
    assert scene.states([*pinned, *flexible]) == "AAE..."
    # The counters come back; an error stays until somebody enables the event.
    scene.resched_update(0b111111)
    assert scene.states([*pinned, *flexible]) == "AAEAAA"
    scene.resched_update(0b001111)
    assert sets(scene, flexible, 4) == ["AA.", ".AA", "A.A", "AA."]


def test_cycles_go_to_an_event_counter_while_the_cycle_counter_is_taken() -> None:
    scene = scene_of()
    event = scene.open(config=CPU_CYCLES)
    counters = []
    for mask in (0b111000, 0b111000 | CYCLE_BIT):
        counters.append(scene.host.events[event].idx)
        scene.happen(CPU_CYCLES, 100)
        scene.resched_update(mask)
    counters.append(scene.host.events[event].idx)
    assert counters == [31, 3, 31]
    assert scene.host.events[event].count == 200


# ---- any order of anything --------------------------------------------------------------------------------


def on_counters(scene: Scene, c: int) -> set[int]:
    return {number for number in scene.host.cpus[c].hw.events if number != NO_EVENT}


def greedy(scene: Scene, counters: int) -> set[int]:
    """Say who runs after everything was scheduled anew on CPU 0: each list in order, until one group does not fit.

    For events of one counter each.
    """
    host = scene.host
    cpu = host.cpus[0]
    contexts = [cpu.ctx] + ([host.tasks[cpu.current].ctx] if cpu.current != NO_TASK else [])
    running: set[int] = set()
    lists = [list(ctx.pinned[: ctx.nr_pinned]) for ctx in contexts]
    lists += [list(ctx.flexible[: ctx.nr_flexible]) for ctx in contexts]
    for groups in lists:
        for leader in groups:
            if host.events[leader].state <= STATE_OFF or host.events[leader].cpu not in (ANY_CPU, 0):
                continue
            members, member = [], leader
            while member != NO_EVENT:
                members += [member] if host.events[member].state > STATE_OFF else []
                member = host.events[member].next_sibling
            if len(members) > counters - len(running):
                break
            running |= set(members)
    return running


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_done_counters_are_the_driver_s_groups_whole_counts_and_times_exact(seed: int) -> None:
    rng = random.Random(seed)
    scene = Scene(make_host(cpus=2, tasks=3, events=24))
    host = scene.host
    alive: set[int] = set()
    promoted: set[int] = set()
    count = [0] * 24
    running, enabled = [0] * 24, [0] * 24
    for _ in range(150):
        step(scene, rng, alive, promoted)
        check_counters(host)
        for i in alive:
            leader = host.events[host.events[i].leader]
            if host.events[i].state == STATE_ACTIVE:
                assert leader.state == STATE_ACTIVE
        # A while passes; what happens in it is counted by those that are on a counter, and by nobody else.
        c, amount, ns = rng.randrange(2), rng.randrange(1000), rng.randrange(INTERVAL)
        for i, event in enumerate(host.events):
            running[i] += ns * (event.state == STATE_ACTIVE)
            enabled[i] += ns * is_enabled(scene, event)
        for i in on_counters(scene, c):
            count[i] += amount
        scene.happen(INST_RETIRED, amount, c)
        scene.now += ns
    for i in alive - promoted:
        assert scene.times(i) == (enabled[i], running[i])
    for i in alive:
        scene.times(i)
        assert (host.events[i].count, host.events[i].total_time_running) == (count[i], running[i])


def is_enabled(scene: Scene, event: PerfEvent) -> bool:
    """Tell whether an event's enabled time runs: neither it nor its leader is off, and its task runs."""
    on = min(event.state, scene.host.events[event.leader].state) >= STATE_INACTIVE
    return on and event.task in (NO_TASK, *(cpu.current for cpu in scene.host.cpus))


def step(scene: Scene, rng: random.Random, alive: set[int], promoted: set[int]) -> None:
    """Do one random thing; after a rescheduling of all of CPU 0, compare with `greedy`.

    `alive` are the events that are open, `promoted` those that have lost a leader which was off.
    """
    host = scene.host
    what = rng.randrange(10)
    c = rng.randrange(2)
    if what <= 2 and scene.opened < 24:
        leaders = [i for i in alive if host.events[i].leader == i]
        attributes: dict[str, int] = {"state": rng.choice([STATE_OFF, STATE_INACTIVE, STATE_INACTIVE])}
        if leaders and rng.random() < 0.4:
            attributes["leader"] = rng.choice(leaders)
        else:
            attributes["pinned"] = int(rng.random() < 0.2)
            attributes |= rng.choice([{"task": rng.randrange(3)}, {"cpu": c}])
        number, result = scene.try_open(**attributes)
        alive |= {number} if result == 0 else set()
    elif what == 3 and alive:
        closed = rng.choice(sorted(alive))
        if host.events[closed].state <= STATE_OFF:
            promoted |= {i for i in alive if host.events[i].leader == closed}
        scene.close(closed)
        alive.discard(closed)
    elif what in (4, 5) and alive:
        (scene.enable if what == 4 else scene.disable)(rng.choice(sorted(alive)))
    elif what == 6:
        idle = [task for task in range(3) if task not in [cpu.current for cpu in host.cpus]]
        scene.switch(c, rng.choice([*idle, NO_TASK]))
    elif what in (7, 8):
        scene.rotate(c)
    elif what == 9:
        mask = rng.choice([0b111111, 0b111000, 0b110000, rng.getrandbits(6)])
        scene.resched_update(mask, 0)
        assert on_counters(scene, 0) == greedy(scene, mask.bit_count())


def test_a_record_that_was_used_before_becomes_an_event_that_has_never_counted() -> None:
    """As perf_event_alloc() does. Whose it is, and where it counts, the caller says; what it has cost is owed."""
    event, never = records.new(PerfEvent), records.new(PerfEvent)
    for leaf in records.leaves(PerfEvent):
        records.put(event, leaf.path, 1)
    perf.init_event(event, 7)
    never.leader, never.next_sibling, never.idx = 7, NO_EVENT, NO_COUNTER
    kept = {"attached", "pmu", "cpu", "task", "config", "state", "tstamp", "switched"}
    for leaf in records.leaves(PerfEvent):
        expected = 1 if leaf.path[0] in kept else records.get(never, leaf.path)
        assert records.get(event, leaf.path) == expected, leaf.path


@pytest.mark.parametrize(
    ("attributes", "event_type", "stays"),
    [
        ({"task": 0}, EVENT_FLEXIBLE, [True, True, True, False]),
        ({"task": 0, "pinned": 1}, EVENT_PINNED, [True, False, False, False]),
        ({}, EVENT_FLEXIBLE | EVENT_CPU, [True, True, False, False]),
        ({"pinned": 1}, EVENT_PINNED | EVENT_CPU, [False, False, False, False]),
    ],
)
def test_what_comes_later_takes_off_its_own_priority_and_what_is_below(
    attributes: dict[str, int], event_type: int, stays: list[bool]
) -> None:
    """CPU pinned, task pinned, CPU flexible, task flexible: ctx_resched() of events/core.c."""
    scene = scene_of()
    others = [scene.open(**of) for of in ({"pinned": 1}, {"task": 0, "pinned": 1}, {}, {"task": 0})]
    assert perf.event_type_of(scene.host.events[scene.open(**attributes)]) == event_type
    assert all(scene.host.events[number].state == STATE_ACTIVE for number in others)
    perf.resched_out(scene.host, 0, event_type, scene.now)
    assert [scene.host.events[number].state == STATE_ACTIVE for number in others] == stays
