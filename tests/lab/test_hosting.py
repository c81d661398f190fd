"""Scenarios run: guests with code and without, beside a host that counts too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pmuvisor.arch.cores import Core, Source, core
from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED
from pmuvisor.board.clock import PRICED
from pmuvisor.board.machine import CountError
from pmuvisor.lab import guests
from pmuvisor.lab.costs import CostTable, Figure
from pmuvisor.lab.hosting import Hosting, HostingResult
from pmuvisor.lab.scenario import Activity, EventSpec, HostSpec, PerfSpec, Scenario, SpeSpec, TaskSpec, VmSpec

N1 = core("neoverse-n1")  # six event counters, 2500 MHz, no fine-grained traps
MS = 1_000_000
INST = EventSpec(name="INST_RETIRED", number=INST_RETIRED)
CYCLES = EventSpec(name="CPU_CYCLES", number=CPU_CYCLES)
BUSY = Activity(rates=((INST_RETIRED, 1_000_000),), user=600, burst=0, pause=0)
needs_linux = pytest.mark.skipif(guests.cached_linux() is None, reason="no Linux guest fetched")


def vm(name: str = "a", guest: str = "busy", vcpus: int = 1, on: int = 0b11, **more: Any) -> VmSpec:
    fields: dict[str, Any] = {"core": N1, "counters": 4, "design": "partitioned", "fgt": True, "kernel": None}
    fields |= {"initrd": None, "append": "pmuvisor.quick", "cpus": (on,) * vcpus, "runs_anywhere": False}
    fields["spe"] = False
    fields |= {"activity": BUSY, "memory": 0} if guest == "busy" else {"activity": None, "memory": 256 << 20}
    return VmSpec(name=name, guest=guest, vcpus=vcpus, **fields | more)


def perf(name: str, *events: EventSpec, duration: int, **more: Any) -> PerfSpec:
    fields: dict[str, Any] = {"groups": tuple((e,) for e in events), "cpus": 0, "tasks": (), "vm": None, "cores": (N1,)}
    fields |= {"pinned": False, "period": 0, "long": False, "start": 0, "stop": duration}
    fields |= {f"exclude_{what}": False for what in ("user", "kernel", "guest", "host")}
    return PerfSpec(name=name, **fields | more)


def spe(name: str, duration: int, **more: Any) -> SpeSpec:
    fields: dict[str, Any] = {"cpus": 0, "tasks": (), "period": 2048, "jitter": False, "buffer": 1 << 16, "read": True}
    fields |= {"exclude_user": False, "exclude_kernel": False, "start": 0, "stop": duration}
    return SpeSpec(name=name, **fields | more)


def scenario(duration: int, cpus: tuple[Core, ...] = (N1, N1), **parts: Any) -> Scenario:
    host = HostSpec(cpus=cpus, tick=4 * MS, slice=3 * MS, max_guest_counters=31)
    fields: dict[str, Any] = {
        "vms": (),
        "tasks": (),
        "perf": (),
        "spe": (),
        "kinds": (INST_RETIRED, CPU_CYCLES),
        "seed": 0,
    }
    return Scenario(path=Path("x.toml"), duration=duration, host=host, **fields | parts)


def without_wall(result: HostingResult) -> str:
    return json.dumps(dataclasses.replace(result, wall_seconds=0.0).as_json())


def test_a_session_on_a_cpu_counts_what_its_tasks_did_from_start_to_stop() -> None:
    task = TaskSpec(name="t", cpus=0b01, activity=BUSY)
    sessions = (
        perf("all", INST, CYCLES, cpus=0b11, duration=20 * MS),
        perf("late", INST, cpus=0b01, duration=20 * MS, start=5 * MS, stop=8 * MS, exclude_kernel=True),
    )
    rows = {row.name: row for row in Hosting(scenario(20 * MS, tasks=(task,), perf=sessions)).run().host_perf}
    all_inst, late = rows["all:INST_RETIRED"], rows["late:INST_RETIRED"]
    assert (all_inst.count, all_inst.true, all_inst.enabled) == (20_000_000, 20_000_000, 40 * MS)
    assert rows["all:CPU_CYCLES"].count == 50_000_000
    # 60 % of a million instructions in each of three milliseconds.
    assert (late.count, late.true, late.enabled, late.running) == (1_800_000, 1_800_000, 3 * MS, 3 * MS)


def test_a_session_of_a_vm_counts_on_its_threads_wherever_they_run() -> None:
    parts: dict[str, Any] = {"vms": (vm(vcpus=3, counters=3),)}
    parts["perf"] = (perf("vm", INST, vm=0, duration=60 * MS),)
    result = Hosting(scenario(60 * MS, **parts)).run()
    (row,) = result.host_perf
    assert row.count == row.true == result.vms[0].instructions == 120_000_000
    assert row.enabled == row.running == round(result.vms[0].run_seconds * 1e9) == 120 * MS
    # perf puts a thread's event on counter 0 before KVM comes and takes it: each load moves it.
    assert result.host["rescheduled"] == result.vms[0].ledger["loads"] == 40


def test_counters_that_a_vms_design_cannot_have_are_refused() -> None:
    # As of a VM that was emulated, when a scenario is compared: MDCR_EL2.HPMN cannot be 0 without FEAT_HPMN0.
    with pytest.raises(CountError, match=r"^vm a, partitioned: counters 0: core neoverse-n1 can give a guest 1 to 6$"):
        Hosting(scenario(MS, vms=(vm(counters=0),)))


def test_a_session_that_opens_while_a_task_runs_does_not_keep_it_from_its_sleep() -> None:
    task = TaskSpec(name="t", cpus=1, activity=Activity(rates=BUSY.rates, user=600, burst=2 * MS, pause=3 * MS))
    late = perf("late", INST, cpus=1, duration=50 * MS, start=MS + 5, stop=11 * MS)
    hosting = Hosting(scenario(50 * MS, tasks=(task,), perf=(late,)))
    (row,) = hosting.run().host_perf
    assert hosting.host.tasks[0].runtime == 20 * MS
    # It runs at 0-2, 5-7 and 10-12 ms.
    assert row.count == row.true == (MS - 5) + 2 * MS + MS


def test_a_demo_guest_checks_its_own_counts_while_its_host_shares_its_cpus_and_counters() -> None:
    parts: dict[str, Any] = {
        "vms": (vm("a", "demo"), vm("b", "demo"), vm("c", vcpus=2)),
        "tasks": (TaskSpec(name="t", cpus=0b11, activity=Activity(rates=BUSY.rates, user=900, burst=MS, pause=MS)),),
        "perf": (perf("all", INST, CYCLES, INST, CYCLES, cpus=0b11, duration=150 * MS),),
    }
    host = HostSpec(cpus=(N1, N1), tick=4 * MS, slice=MS, max_guest_counters=31)
    hosting = Hosting(dataclasses.replace(scenario(150 * MS, **parts), host=host))
    result = hosting.run()
    for guest in result.vms[:2]:
        assert (guest.status, guest.reason) == ("poweroff", "the guest powered off")
        assert "demo: all counts exact" in guest.console
        assert guest.ledger["loads"] == guest.ledger["puts"] > 3
    assert result.vms[2].status == "running"
    assert result.host["rescheduled"] > 10
    # Whatever was scheduled counted what happened meanwhile, in guests and outside.
    for number in range(hosting._events):
        assert hosting.host.events[number].count == hosting.host.events[number].seen


def test_a_guest_with_code_pays_for_its_exits_in_the_hosts_time() -> None:
    figures = {name: Figure(0, Source("free")) for name in PRICED}
    free = CostTable("x.toml", {"default": figures})
    dear = CostTable("x.toml", {"default": figures | {"exits.mmio": Figure(100_000, Source("dear"))}})
    ends = {}
    for name, table in (("free", free), ("dear", dear)):
        (guest,) = Hosting(scenario(100 * MS, vms=(vm("a", "demo", vcpus=1),)), costs=table).run().vms
        assert guest.status == "poweroff"
        assert guest.overhead_cycles == 100_000 * guest.ledger["exits.mmio"] * (name == "dear")
        # Its thread ran for as long as its instructions and exits take, 2.5 cycles a nanosecond. The last exit of all
        # turns the machine off: that is not paid any more.
        cycles = guest.instructions + guest.overhead_cycles
        assert cycles * 2 // 5 - 100_000 <= guest.run_seconds * 1e9 <= cycles * 2 / 5 + 1
        ends[name] = guest.run_seconds
    assert ends["dear"] > ends["free"] + 0.001


def test_sessions_of_spe_sample_what_tasks_did_from_start_to_stop() -> None:
    # At EL0 and EL2 in turns of three and two; a sample is each 2049th operation, the first the 2048th.
    tasks = tuple(TaskSpec(name=f"t{n}", cpus=1 << n, activity=BUSY) for n in range(2))
    sessions = (
        spe("cpus", cpus=0b11, duration=20 * MS, stop=5 * MS + 7),
        spe("user", tasks=(0,), duration=20 * MS, start=5 * MS + 7, stop=15 * MS + 7, exclude_kernel=True),
        spe("kernel", tasks=(1,), duration=20 * MS, start=8 * MS, exclude_user=True, period=5000),
    )
    hosting = Hosting(scenario(20 * MS, tasks=tasks, spe=sessions))
    cpus, user, kernel = hosting.run().host_spe
    assert (cpus.name, cpus.records) == ("cpus", 2 * (5_000_008 // 2049))
    assert user.records == 6_000_001 // 2049
    # 5000 is rounded to 4864, but for the first.
    assert kernel.records == 1 + (4_800_000 - 5000) // 4865
    for row in (cpus, user, kernel):
        assert (row.bytes, row.lost, row.padding, row.truncated) == (64 * row.records, 0, 0, 0)
        assert row.interrupts >= row.woken > 0
    assert [cpu.spe_session for cpu in hosting.host.cpus] == [0xFF, 0xFF]
    assert hosting.host.spe_open == 0


def test_a_session_of_spe_does_not_see_a_guest_with_code_nor_disturb_it() -> None:
    parts: dict[str, Any] = {"vms": (vm("a", "demo"), vm("b", vcpus=1, on=0b10))}
    parts["tasks"] = (TaskSpec(name="t", cpus=0b01, activity=BUSY), TaskSpec(name="u", cpus=0b10, activity=BUSY))
    parts["spe"] = (spe("all", cpus=0b11, duration=150 * MS),)
    hosting = Hosting(scenario(150 * MS, **parts))
    result = hosting.run()
    assert result.vms[0].status == "poweroff"
    assert "demo: all counts exact" in result.vms[0].console
    runtimes = {t: hosting.host.tasks[2 + t].runtime for t in range(2)}
    assert 0 < runtimes[1] < 150 * MS
    (row,) = result.host_spe
    assert row.records == sum((runtime + 1) // 2049 for runtime in runtimes.values())
    assert row.lost == 0


@pytest.mark.parametrize("design", ["partitioned", "lazy", "emulated"])
def test_a_guest_profiles_itself_on_cpus_that_the_host_profiles_as_well(design: str) -> None:
    # The guest shares its CPUs with two tasks that sleep now and then, and moves to where there is room.
    guest = vm("a", "spe", spe=True, design=design)
    naps = [dataclasses.replace(BUSY, burst=5 * MS, pause=2 * MS), dataclasses.replace(BUSY, burst=3 * MS, pause=MS)]
    tasks = tuple(TaskSpec(name=f"t{n}", cpus=1 << n, activity=nap) for n, nap in enumerate(naps))
    session = spe("all", cpus=0b11, duration=400 * MS)
    hosting = Hosting(scenario(400 * MS, vms=(guest,), tasks=tasks, spe=(session,)))
    result = hosting.run()
    assert result.vms[0].console.splitlines()[-1] == "spe: 40 of 40 checks passed"
    assert result.vms[0].migrations > 0
    (row,) = result.host_spe
    runtimes = [task.runtime for task in hosting.host.tasks[1:3]]
    assert row.records == sum((runtime + 1) // 2049 for runtime in runtimes)
    assert (row.lost, [cpu.spu.lost for cpu in hosting.host.cpus]) == (0, [0, 0])
    assert [cpu.spu.misplaced for cpu in hosting.host.cpus] == [0, 0]


@pytest.mark.parametrize(("start", "stop"), [(0, 150 * MS), (1, 150 * MS - 1), (10 * MS, 13 * MS), (4 * MS, 73 * MS)])
def test_a_session_of_spe_may_begin_and_end_while_a_guest_has_the_unit(start: int, stop: int) -> None:
    """Slices are 3 ms, the guest's first: at 1 ns, at 13 and at 73 ms its vCPU is loaded."""
    parts: dict[str, Any] = {"vms": (vm("a", "spe", on=0b01, spe=True), vm("b", on=0b01))}
    parts["tasks"] = (TaskSpec(name="t", cpus=0b01, activity=BUSY),)
    parts["spe"] = (spe("all", cpus=0b01, duration=0, start=start, stop=stop),)
    parts["perf"] = (perf("task", INST, tasks=(0,), duration=0, start=start, stop=stop),)
    hosting = Hosting(scenario(400 * MS, **parts))
    result = hosting.run()
    (row,) = result.host_spe
    assert row.records == (result.host_perf[0].count + 1) // 2049
    spu = hosting.host.cpus[0].spu
    assert (row.lost, row.truncated, spu.lost, spu.misplaced, spu.pmscr_el2) == (0, 0, 0, 0, 0)
    assert result.vms[0].console.splitlines()[-1] == "spe: 40 of 40 checks passed"


def test_an_interrupted_run_has_the_sessions_of_spe_that_are_over() -> None:
    task = TaskSpec(name="t", cpus=1, activity=BUSY)
    sessions = (spe("early", cpus=1, duration=2 * MS), spe("late", cpus=1, duration=1000 * MS, start=2 * MS))
    hosting = Hosting(scenario(1000 * MS, tasks=(task,), spe=sessions))

    def stop(now: int) -> None:
        hosting.interrupted = now > 5 * MS

    assert [row.name for row in hosting.run(stop).host_spe] == ["early"]


def test_the_same_scenario_gives_the_same_result_and_another_seed_another() -> None:
    def once(seed: int) -> str:
        parts: dict[str, Any] = {"vms": (vm("a", "demo"), vm("c", vcpus=3)), "seed": seed}
        parts["perf"] = (perf("all", INST, CYCLES, INST, cpus=0b11, duration=40 * MS),)
        return without_wall(Hosting(scenario(40 * MS, **parts)).run())

    assert once(0) == once(0)
    assert once(7) == once(7) != once(8)


@pytest.mark.parametrize("design", ["emulated", "partitioned", "lazy"])
def test_a_vm_on_a_cpu_of_another_pmu_than_its_own_fails_to_enter(design: str) -> None:
    a55, x1 = core("cortex-a55"), core("cortex-x1")
    vms = (vm("little", on=0b01, core=a55, design=design), vm("stray", on=0b10, core=a55, design=design))
    result = Hosting(scenario(10 * MS, cpus=(a55, x1), vms=vms)).run()
    assert [v.status for v in result.vms] == ["running", "fail-entry"]
    assert result.vms[1].reason == "vCPU 0 cannot run on CPU 1 (KVM_EXIT_FAIL_ENTRY, CPU_UNSUPPORTED)"
    assert (result.vms[0].instructions, result.vms[1].instructions) == (10_000_000, 0)


def test_a_vm_that_asked_for_no_pmu_runs_where_its_counters_stand_still_or_follow_it() -> None:
    a55, x1 = core("cortex-a55"), core("cortex-x1")
    stray: dict[str, Any] = {"on": 0b10, "core": a55, "runs_anywhere": True}
    vms = (vm("default", design="emulated", **stray), vm("fixed", design="fixed-counters-only", counters=0, **stray))
    default, fixed = Hosting(scenario(12 * MS, cpus=(a55, x1), vms=vms)).run().vms
    assert (default.status, fixed.status) == ("running", "running")
    # Half of the time each, at 1000 instructions and 2802 cycles in a microsecond.
    assert (default.instructions, fixed.instructions, x1.mhz) == (6_000_000, 6_000_000, 2802)
    assert default.counted == ("vCPU 0: INST_RETIRED 0 of 6,000,000", "vCPU 0: CPU_CYCLES 0 of 16,812,000")
    assert fixed.counted == ("vCPU 0: CPU_CYCLES 16,812,000 of 16,812,000",)


def test_an_interrupted_run_says_so_and_keeps_what_there_is() -> None:
    hosting = Hosting(scenario(1000 * MS, tasks=(TaskSpec(name="t", cpus=1, activity=BUSY),)))

    def stop(now: int) -> None:
        hosting.interrupted = now > 5 * MS

    result = hosting.run(stop)
    assert result.interrupted
    assert 0.005 < result.virtual_seconds < 0.05


@needs_linux
def test_four_linux_vcpus_on_two_cpus_count_exactly_while_sessions_want_every_counter() -> None:
    sessions = (
        perf("all", *[INST, CYCLES] * 3, cpus=0b11, duration=1300 * MS),
        perf("host", INST, cpus=0b11, duration=1300 * MS, pinned=True, exclude_guest=True),
    )
    result = Hosting(scenario(1300 * MS, vms=(vm("a", "linux", 2), vm("b", "linux", 2)), perf=sessions)).run()
    for guest in result.vms:
        rounds = [line for line in guest.console.splitlines() if "  round" in line]
        assert [line.split(":", 2)[2].split()[1] for line in rounds] == ["2000004"] * 6, guest.console[-2000:]
        assert guest.console.count("every sample on its instruction") == 2
        assert guest.migrations > 0
        assert guest.status == "poweroff"
    (host,) = [row for row in result.host_perf if row.name.startswith("host")]
    assert (host.count, host.true, host.failed) == (0, 0, 0)
