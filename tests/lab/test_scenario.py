"""Scenarios as files: what a good one says, and the one line that a bad one gets."""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmuvisor import cli
from pmuvisor.lab import terminal
from pmuvisor.lab.scenario import Scenario, ScenarioError, load

MS, US = 1_000_000, 1_000
A55, X1 = "cortex-a55", "cortex-x1"  # six event counters each; of the two A55 alone implements LD_RETIRED, 0x6
DOCS = Path(__file__).parents[2] / "docs" / "scenarios.md"

GOOD: dict[str, Any] = {
    "duration": "500ms",
    "seed": 7,
    "host": {
        "cpus": [{"core": A55, "number": 4}, X1, {"core": X1}],
        "tick": "2ms",
        "slice": "1500us",
        "max_guest_counters": 5,
    },
    "vm": [
        {
            "name": "web",
            "guest": "busy",
            "vcpus": 2,
            "cpus": ["0-1,3", "2"],
            "counters": 3,
            "fgt": False,
            "design": "partitioned",
            "events": {"INST_RETIRED": 1500, "ld_retired": 300.5, "0x1b": 0.001},
            "user": 0.25,
            "burst": "1.5ms",
            "pause": "250us",
        },
        {"name": "demo", "guest": "demo", "core": X1, "memory": "1G", "append": "a=b c"},
    ],
    "task": [
        {"name": "backup", "number": 3, "cpus": "4-5"},
        {"name": "cron", "events": {"BR_RETIRED": 7000}, "user": 1},
    ],
    "perf": [
        {"name": "all", "cpu": "0-5", "events": ["INST_RETIRED", ["CPU_CYCLES", 0x21]], "pinned": True},
        {"name": "t", "task": "backup", "events": ["INST_RETIRED"], "period": 1000, "start": "1us", "stop": "0.5s"},
        {"name": "one", "task": "backup-1", "events": ["0x8"], "exclude": ["user", "guest"], "long": True},
        {"name": "any", "task": "cron", "events": ["INST_RETIRED"]},
        {"name": "v", "vm": "web", "events": ["LD_RETIRED"], "exclude": ["kernel", "host"]},
        {"name": "x", "cpu": "5", "core": X1, "events": [0x100]},
    ],
    "spe": [
        {"name": "prof", "cpu": "4-5", "stop": "100ms"},
        {
            "name": "own",
            "task": "backup",
            "period": 4096,
            "jitter": True,
            "exclude": ["kernel"],
            "buffer": "128K",
            "reader": "never",
            "start": "100ms",
            "stop": "200ms",
        },
    ],
}


def toml(value: object) -> str:
    """Return a value as TOML has it in a line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, Raw):
        return value
    return json.dumps(value)


class Raw(str):
    """A value that is TOML already."""


def document(scenario: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in scenario.items())


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "s.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(folder: Path, text: str | bytes) -> str:
    """The line that a file is refused with, without the file's name."""
    path = write(folder, text)
    with pytest.raises(ScenarioError) as error:
        load(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    return line.removeprefix(f"{path}: ")


GONE = object()


def changed(where: str, value: object) -> dict[str, Any]:
    """Return GOOD with a value set, or GONE, at a key such as `vm[0].cpus`."""
    scenario = copy.deepcopy(GOOD)
    at: Any = scenario
    *way, last = [int(part) if part.isdecimal() else part for part in re.findall(r"[\w-]+", where)]
    for part in way:
        at = at[part]
    if value is GONE:
        del at[last]
    else:
        at[last] = value
    return scenario


# ---- a good one ----------------------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path: Path) -> Scenario:
    return load(write(tmp_path, document(GOOD)))


def test_times_are_nanoseconds_and_cores_are_counted_out(good: Scenario) -> None:
    assert (good.duration, good.seed) == (500 * MS, 7)
    assert [core.name for core in good.host.cpus] == [A55] * 4 + [X1] * 2
    assert [core.name for core in good.host.cores] == [A55, X1]
    assert [good.host.mask_of(core) for core in good.host.cores] == [0b001111, 0b110000]
    assert (good.host.tick, good.host.slice, good.host.max_guest_counters) == (2 * MS, 1500 * US, 5)


def test_a_vm_has_masks_rates_in_a_millisecond_and_shares_in_a_thousand(good: Scenario) -> None:
    web, demo = good.vms
    assert (web.name, web.guest, web.vcpus, web.core.name, web.counters) == ("web", "busy", 2, A55, 3)
    assert (web.cpus, web.fgt, web.design, web.memory) == ((0b1011, 0b0100), False, "partitioned", 0)
    assert web.activity is not None
    assert web.activity.rates == ((0x06, 300_500), (0x08, 1_500_000), (0x1B, 1))
    assert (web.activity.user, web.activity.burst, web.activity.pause) == (250, 1500 * US, 250 * US)
    # Tied to the big cores' PMU: on those CPUs. All but two of six counters.
    assert (demo.core.name, demo.cpus, demo.vcpus, demo.counters, demo.fgt) == (X1, (0b110000,), 1, 4, True)
    assert (demo.activity, demo.memory, demo.append) == (None, 1 << 30, "a=b c")


@pytest.mark.parametrize(
    ("design", "core", "anywhere"),
    [
        ("partitioned", None, False),
        ("lazy", None, False),
        ("emulated", None, True),
        ("emulated", A55, False),
        ("fixed-counters-only", None, True),
        ("fixed-counters-only", X1, True),
    ],
)
def test_a_vm_without_a_pmu_of_its_own_may_run_on_all_cpus(
    tmp_path: Path, design: str, core: str | None, anywhere: bool
) -> None:
    """KVM_ARM_VCPU_PMU_V3_SET_PMU is what ties an emulated PMU to CPUs; the key `core` is that attribute."""
    wanted = {"name": "a", "guest": "elapsed", "design": design} | ({"core": core} if core else {})
    session = {"name": "p", "vm": "a", "events": ["CPU_CYCLES"]}
    scenario = load(write(tmp_path, document(GOOD | {"vm": [wanted], "perf": [session]})))
    (vm,) = scenario.vms
    assert (vm.guest, vm.core.name, vm.runs_anywhere) == ("elapsed", core or A55, anywhere)
    assert vm.cpus == (0b111111 if anywhere else 0b001111,)
    assert vm.counters == (0 if design == "fixed-counters-only" else 4)
    assert [on.name for on in scenario.perf[0].cores] == ([A55, X1] if anywhere else [A55])


def test_a_table_makes_several_tasks(good: Scenario) -> None:
    assert [task.name for task in good.tasks] == ["backup-0", "backup-1", "backup-2", "cron"]
    assert [task.cpus for task in good.tasks] == [0b110000] * 3 + [0b111111]
    first, cron = good.tasks[0].activity, good.tasks[3].activity
    assert (first.rates, first.user, first.burst, first.pause) == (((0x08, 1_000_000),), 1000, 0, 0)
    assert cron.rates == ((0x21, 7_000_000),)


def test_a_session_knows_its_groups_what_it_measures_and_on_which_pmus(good: Scenario) -> None:
    every, t, one, anywhere, v, x = good.perf
    assert [[event.number for event in group] for group in every.groups] == [[0x08], [0x11, 0x21]]
    assert [[event.name for event in group] for group in every.groups] == [
        ["INST_RETIRED"],
        ["CPU_CYCLES", "BR_RETIRED"],
    ]
    assert (every.cpus, every.tasks, every.vm, every.pinned, every.long) == (0b111111, (), None, True, False)
    assert (every.start, every.stop, every.period) == (0, 500 * MS, 0)
    assert (t.cpus, t.tasks, t.vm, t.period, t.start, t.stop) == (0, (0, 1, 2), None, 1000, US, 500 * MS)
    assert (one.tasks, one.long) == ((1,), True)
    assert (one.exclude_user, one.exclude_kernel, one.exclude_guest, one.exclude_host) == (True, False, True, False)
    assert (v.cpus, v.tasks, v.vm) == (0, (), 0)
    assert (v.exclude_user, v.exclude_kernel, v.exclude_guest, v.exclude_host) == (False, True, False, True)
    assert [[core.name for core in session.cores] for session in (every, t, one, anywhere, v, x)] == [
        [A55, X1],
        [X1],
        [X1],
        [A55, X1],
        [A55],
        [X1],
    ]


def test_a_session_of_spe_is_on_cpus_or_tasks_that_have_it(good: Scenario) -> None:
    prof, own = good.spe
    assert (prof.name, prof.cpus, prof.tasks, prof.period, prof.jitter) == ("prof", 0b110000, (), 10_000, False)
    assert (prof.buffer, prof.read, prof.start, prof.stop) == (4 << 20, True, 0, 100 * MS)
    assert (prof.exclude_user, prof.exclude_kernel) == (False, False)
    assert (own.name, own.cpus, own.tasks, own.period, own.jitter) == ("own", 0, (0, 1, 2), 4096, True)
    assert (own.buffer, own.read, own.start, own.stop) == (128 << 10, False, 100 * MS, 200 * MS)
    assert (own.exclude_user, own.exclude_kernel) == (False, True)


def test_the_kinds_are_every_event_of_tasks_vms_and_sessions(good: Scenario) -> None:
    assert good.kinds == (0x06, 0x08, 0x11, 0x1B, 0x21, 0x100)


def test_what_is_not_said_has_the_documented_value(tmp_path: Path) -> None:
    text = 'duration = "1s"\nhost.cpus = ["max", "max"]\n[[vm]]\nname = "a"\nguest = "busy"\n'
    found = load(write(tmp_path, text))
    assert (found.seed, found.host.tick, found.host.slice, found.host.max_guest_counters) == (0, 4 * MS, 3 * MS, 31)
    (vm,) = found.vms
    assert (vm.vcpus, vm.core.name, vm.cpus, vm.counters, vm.fgt) == (1, "max", (0b11,), 6, True)
    assert vm.activity is not None
    assert vm.activity.rates == ((0x08, 1_000_000),)
    assert found.kinds == (0x08, 0x11)


def test_a_vm_is_tied_to_the_pmu_of_its_lowest_cpu_and_may_stray(tmp_path: Path) -> None:
    scenario = changed("vm[0].cpus", "3-4")
    assert [load(write(tmp_path, document(scenario))).vms[0].core.name] == [A55]
    scenario["vm"][0] |= {"cpus": ["5", "4"], "events": {"INST_RETIRED": 1}}
    scenario["perf"][4]["events"] = ["INST_RETIRED"]
    found = load(write(tmp_path, document(scenario)))
    assert (found.vms[0].core.name, found.vms[0].cpus) == (X1, (0b100000, 0b010000))
    scenario["vm"][0]["core"] = A55
    assert load(write(tmp_path, document(scenario))).vms[0].core.name == A55


def test_the_hosts_limit_lowers_what_a_guest_gets_by_default(tmp_path: Path) -> None:
    assert load(write(tmp_path, document(changed("host.max_guest_counters", 3)))).vms[1].counters == 3


def test_files_are_beside_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("linux", "ram"):
        (tmp_path / "sub" / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    vm = {"name": "a", "guest": "linux", "kernel": "./linux", "initrd": str(tmp_path / "sub" / "ram")}
    text = {"duration": "1s", "host": {"cpus": ["max"]}, "vm": [vm, {"name": "b", "guest": "./linux"}]}
    (tmp_path / "sub" / "s.toml").write_text(document(text))
    first, second = load(Path("sub/s.toml")).vms
    assert (first.guest, first.kernel, first.initrd) == (
        "linux",
        tmp_path / "sub" / "linux",
        tmp_path / "sub" / "ram",
    )
    assert second.guest == str(tmp_path / "sub" / "linux")


def test_the_documented_example_is_a_scenario(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    for name in ("Image", "initrd.img"):
        (tmp_path / name).write_bytes(b"x")
    found = load(write(tmp_path, example))
    assert (len(found.vms), len(found.tasks), len(found.perf)) == (2, 3, 1)
    assert len(found.spe) == 1
    keys = {key for table in (found.host, *found.vms, *found.tasks, *found.perf, *found.spe) for key in vars(table)}
    assert keys >= {"tick", "counters", "cpus", "period", "buffer"}


# ---- bad ones ------------------------------------------------------------------------------------------------------

TIME = 'with its unit (s, ms, us, ns), such as "500ms"'
CORES = (
    "one of max, cortex-a55, cortex-a76, cortex-a78, cortex-x1, neoverse-n1, neoverse-v1, neoverse-n2, neoverse-v2, "
    "qemu-max, kvm-nested"
)
CPUS = 'a list of cores, such as ["neoverse-n1", {core = "cortex-x1", number = 4}]'
EVENT = "the name of an event or its number, 0x0 to 0xffff"
NAME = "a name of letters, digits and any of _.:- after the first, 64 at most"
RATE = "a number of events in a microsecond from 0.001 to 7000"
CPU_LIST = 'a CPU list such as "0-3,8"'
OF_HOST = "CPUs of the host, 0 to 5, the lower one first"

BAD: list[tuple[str, object, str]] = [
    ("duration", GONE, f"duration: missing: expected a time from 1us to 1000s {TIME}"),
    ("duration", "500", f"duration: '500': expected a time from 1us to 1000s {TIME}"),
    ("duration", 500, f"duration: 500: expected a time from 1us to 1000s {TIME}"),
    ("duration", "1001s", f"duration: '1001s': expected a time from 1us to 1000s {TIME}"),
    ("duration", "1000.5ns", f"duration: '1000.5ns': expected a time from 1us to 1000s {TIME}"),
    ("duration", "5min", f"duration: '5min': expected a time from 1us to 1000s {TIME}"),
    ("duration", "\u0665s", f"duration: '\u0665s': expected a time from 1us to 1000s {TIME}"),
    ("seed", -1, "seed: -1: expected a whole number from 0 to 4294967295"),
    ("seed", True, "seed: true: expected a whole number from 0 to 4294967295"),
    ("seed", 1.0, "seed: 1.0: expected a whole number from 0 to 4294967295"),
    ("seed", 1 << 200, "seed: a number of 201 bits: expected a whole number from 0 to 4294967295"),
    ("seed", Raw("2024-01-01"), "seed: a date or time: expected a whole number from 0 to 4294967295"),
    ("speed", 1, "speed: unknown key (near: seed): expected one of duration, seed, host, vm, task, perf, spe"),
    ("host", GONE, "host: missing: expected a table [host] with the key cpus"),
    ("host", [], "host: a list: expected a table"),
    ("host.cpus", [], f"host.cpus: an empty list: expected {CPUS}"),
    ("host.cpus", GONE, f"host.cpus: missing: expected {CPUS}"),
    ("host.cpus", "max", f"host.cpus: 'max': expected {CPUS}"),
    (
        "host.cpus",
        [A55, X1, "neoverse-v1"],
        "host.cpus: cortex-a55 is PMUv3p1, neoverse-v1 is PMUv3p4: "
        "expected one version of the PMU, or KVM has none for VMs",
    ),
    ("host.cpus[1]", "cortex-x2", f"host.cpus[1]: 'cortex-x2' (near: cortex-x1): expected {CORES}"),
    ("host.cpus[1]", "apple-m1", f"host.cpus[1]: 'apple-m1': expected {CORES}"),
    ("host.cpus[0].core", GONE, "host.cpus[0].core: missing: expected the name of a core"),
    ("host.cpus[0].number", 0, "host.cpus[0].number: 0: expected a whole number from 1 to 128"),
    ("host.cpus[0].number", 127, "host.cpus: more than 128 CPUs: expected 1 to 128"),
    ("host.cpus[0].count", 1, "host.cpus[0].count: unknown key: expected one of core, number"),
    ("host.tick", "1ns", f"host.tick: '1ns': expected a time from 10us to 10s {TIME}"),
    ("host.slice", "11s", f"host.slice: '11s': expected a time from 10us to 10s {TIME}"),
    ("host.max_guest_counters", 32, "host.max_guest_counters: 32: expected a whole number from 0 to 31"),
    ("vm", {}, "vm: a table: expected tables, each begun by [[vm]]"),
    ("vm[1]", 3, "vm[1]: 3: expected a table"),
    ("vm[0].name", GONE, f"vm[0].name: missing: expected {NAME}"),
    ("vm[0].name", "a b", f"vm[0].name: 'a b': expected {NAME}"),
    ("vm[1].name", "web", "vm[1].name: web is a name of vm[0]: expected one that no other has"),
    ("vm[0].guest", "x.elf", "vm[0].guest: 'x.elf': no such file: expected busy, demo, elapsed, spe, linux or a file"),
    ("vm[0].guest", "busyb", "vm[0].guest: 'busyb': no such file: expected busy, demo, elapsed, spe, linux or a file"),
    (
        "vm[0].guest",
        "x" * 5000,
        f"vm[0].guest: '{'x' * 40}'...: no such file: expected busy, demo, elapsed, spe, linux or a file",
    ),
    ("vm[0].guest", "", "vm[0].guest: '': expected busy, demo, elapsed, spe, linux or the name of a file"),
    ("vm[0].vcpus", 513, "vm[0].vcpus: 513: expected a whole number from 1 to 512"),
    ("vm[1].vcpus", 9, "vm[1].vcpus: 9: expected a whole number from 1 to 8"),
    ("vm[0].vcpu", 1, "vm[0].vcpu: unknown key (near: vcpus): expected one of name, guest, vcpus, core, cpus, "
     "counters, design, fgt, memory, kernel, initrd, append, spe, events, user, burst, pause"),
    ("vm[0].spe", True, "vm[0].spe: not of guest 'busy': expected it of guests that have code only"),
    (
        "vm[1].spe",
        True,
        f"vm[1].spe: {A55} has none, {X1} has SPE: expected a host whose CPUs all have the same SPE",
    ),
    ("vm[0].core", "max", f"vm[0].core: 'max': expected one of {A55}, {X1}"),
    ("vm[0].cpus", "9", f"vm[0].cpus: CPUs 9: expected {OF_HOST}"),
    ("vm[0].cpus", "3-1", f"vm[0].cpus: CPUs 3-1: expected {OF_HOST}"),
    ("vm[0].cpus", "0,", f"vm[0].cpus: '0,': expected {CPU_LIST}"),
    ("vm[0].cpus", ["0"], "vm[0].cpus: 1 CPU lists: expected one, or a list of 2: one for each vCPU"),
    ("vm[0].cpus", ["0", 1], f"vm[0].cpus[1]: 1: expected {CPU_LIST}"),
    ("vm[0].counters", 6, "vm[0].counters: 6: expected at most 5, host.max_guest_counters"),
    ("vm[0].counters", 0, f"vm[0].counters: 0: core {A55} can give a guest 1 to 6"),
    ("host.max_guest_counters", 0, "vm[0].counters: 3: expected at most 0, host.max_guest_counters"),
    (
        "vm[0].design",
        "magic",
        "vm[0].design: 'magic': expected one of emulated, partitioned, lazy, fixed-counters-only",
    ),
    ("vm[0].fgt", 1, "vm[0].fgt: 1: expected true or false"),
    ("vm[0].memory", "1G", "vm[0].memory: not of guest 'busy': expected it of guests that have code only"),
    ("vm[1].user", 1, "vm[1].user: not of guest 'demo': expected it of guest busy only"),
    ("vm[1].kernel", "Image", "vm[1].kernel: not of guest 'demo': expected it of guest linux only"),
    ("vm[1].initrd", "none", "vm[1].initrd: 'none': no such file: expected a file"),
    ("vm[1].memory", "1.5M", "vm[1].memory: '1.5M': expected whole MiB from 1M to 64G, such as \"256M\" or \"1G\""),
    ("vm[1].memory", 256, "vm[1].memory: 256: expected whole MiB from 1M to 64G, such as \"256M\" or \"1G\""),
    ("vm[1].append", "caf\u00e9", "vm[1].append: 'caf\u00e9': expected printable ASCII, on one line"),
    ("vm[1].append", "x" * 2048, "vm[1].append: 2048 bytes: expected at most 1997, what Linux reads besides our own"),
    ("vm[0].events", {}, "vm[0].events: a table: expected events with their rates, such as {INST_RETIRED = 1500}"),
    ("vm[0].events", {"CPU_CYCLES": 1},
     "vm[0].events.CPU_CYCLES: CPU_CYCLES: expected another event: cycles go by the clock of the core"),
    ("vm[0].events", {"SW_INCR": 1}, "vm[0].events.SW_INCR: SW_INCR: expected another event: it counts writes to "
     "PMSWINC_EL0, which no rate describes"),
    ("vm[0].events", {"CHAIN": 1},
     "vm[0].events.CHAIN: CHAIN: expected another event: the driver chains counters by itself, for long = true"),
    ("vm[0].events", {"INST": 1}, f"vm[0].events.INST: 'INST' (near: INST_SPEC): expected {EVENT}"),
    ("vm[0].events", {"INST_RETIRED": 1, "0x8": 1}, "vm[0].events.0x8: INST_RETIRED again: expected each event once"),
    ("vm[0].events", {"INST_RETIRED": 7001}, f"vm[0].events.INST_RETIRED: 7001: expected {RATE}"),
    ("vm[0].events", {"INST_RETIRED": Raw("nan")}, f"vm[0].events.INST_RETIRED: nan: expected {RATE}"),
    ("vm[0].events", {"INST_RETIRED": Raw("-inf")}, f"vm[0].events.INST_RETIRED: -inf: expected {RATE}"),
    ("vm[0].events", {"INST_RETIRED": True}, f"vm[0].events.INST_RETIRED: true: expected {RATE}"),
    ("vm[0].core", X1, f"vm[0].events.ld_retired: LD_RETIRED: expected an event that core {X1} implements"),
    ("vm[0].user", 1.5, "vm[0].user: 1.5: expected a number from 0 to 1"),
    ("vm[0].burst", GONE, "vm[0].burst: missing: expected a time, where pause is given"),
    ("vm[0].pause", GONE, "vm[0].pause: missing: expected a time, where burst is given"),
    ("vm[0].burst", "999ns", f"vm[0].burst: '999ns': expected a time from 1us to 1000s {TIME}"),
    ("task[1].name", "backup-2", "task[1].name: backup-2 is a name of task[0]: expected one that no other has"),
    ("task[1].name", "backup", "task[1].name: backup is a name of task[0]: expected one that no other has"),
    ("task[0].number", 1001, "task[0].number: 1001: expected a whole number from 1 to 1000"),
    ("task[0].cpus", "", f"task[0].cpus: '': expected {CPU_LIST}"),
    ("perf[0].name", "t", "perf[1].name: t is a name of perf[0]: expected one that no other has"),
    ("perf[0].cpu", GONE, "perf[0]: no target: expected exactly one of cpu, task, vm"),
    ("perf[0].task", "cron", "perf[0]: cpu and task: expected exactly one of cpu, task, vm"),
    ("perf[1].task", "back", "perf[1].task: 'back' (near: backup): expected one of backup, backup-0, backup-1, "
     "backup-2, cron"),
    ("perf[4].vm", "wbe", "perf[4].vm: 'wbe' (near: web): expected one of web, demo"),
    ("perf[0].events", [], "perf[0].events: an empty list: expected a list of events, a list in it being a group"),
    ("perf[0].events", GONE, "perf[0].events: missing: expected a list of events, a list in it being a group"),
    ("perf[0].events[0]", "INST_RETIERD", f"perf[0].events[0]: 'INST_RETIERD' (near: INST_RETIRED): expected {EVENT}"),
    ("perf[0].events[0]", 65536, f"perf[0].events[0]: 65536: expected {EVENT}"),
    ("perf[0].events[0]", False, f"perf[0].events[0]: false: expected {EVENT}"),
    ("perf[0].events[1]", [], "perf[0].events[1]: an empty list: expected a group of events"),
    ("perf[0].events[1]", [["CPU_CYCLES"]], f"perf[0].events[1][0]: a list: expected {EVENT}"),
    ("perf[0].events[0]", 6, f"perf[0].events[0]: LD_RETIRED: expected an event that core {X1} implements"),
    ("perf[0].events[1]", [0x21] * 7, f"perf[0].events[1]: a group of 7: expected one that fits core {A55}: 6 event "
     "counters, and fixed ones"),
    ("perf[2].events[0]", [0x21] * 4, f"perf[2].events[0]: a group of 4: expected one that fits core {X1}: 6 event "
     "counters, two of them for each event, and fixed ones"),
    ("perf[5].cpu", "3", f"perf[5].cpu: CPU 3 is {A55}: expected CPUs of core {X1} only"),
    ("perf[1].core", A55, f"perf[1].core: {A55}: expected a core that its threads may run on"),
    ("perf[0].pinned", "yes", "perf[0].pinned: 'yes': expected true or false"),
    ("perf[1].period", 0, "perf[1].period: 0: expected a whole number from 1 to 2147483647"),
    ("perf[2].exclude", ["kernel", "user"],
     "perf[2].exclude: user and kernel: expected one of the two at most: nothing is left to count"),
    ("perf[2].exclude", ["hv"], "perf[2].exclude[0]: 'hv': expected one of user, kernel, guest, host"),
    ("perf[2].exclude", ["user", "user"], "perf[2].exclude: one of them twice: expected each once"),
    ("perf[2].exclude", "user", "perf[2].exclude: 'user': expected a list of any of user, kernel, guest, host"),
    ("perf[1].stop", "501ms", f"perf[1].stop: '501ms': expected a time from 0s to 500ms {TIME}"),
    ("perf[1].stop", "1us", "perf[1].start: 1us: expected a time before 1us, its stop"),
    ("spe[0].name", "all", "spe[0].name: all is a name of perf[0]: expected one that no other has"),
    ("spe[1].name", "prof", "spe[1].name: prof is a name of spe[0]: expected one that no other has"),
    ("spe[0].cpu", GONE, "spe[0]: no target: expected exactly one of cpu, task"),
    ("spe[0].task", "backup", "spe[0]: cpu and task: expected exactly one of cpu, task"),
    ("spe[0].vm", "web", "spe[0].vm: unknown key: expected one of name, cpu, task, period, jitter, exclude, buffer, "
     "reader, start, stop"),
    ("spe[0].cpu", "3-4", f"spe[0].cpu: CPU 3 is {A55}, which has no SPE: expected CPUs that have SPE"),
    ("spe[1].task", "cron", f"spe[1].task: CPU 0 is {A55}, which has no SPE: expected CPUs that have SPE"),
    ("spe[1].task", "web", "spe[1].task: 'web': expected one of backup, backup-0, backup-1, backup-2, cron"),
    ("spe[0].period", 0, "spe[0].period: 0: expected a whole number from 1 to 4294967295"),
    ("spe[0].jitter", 1, "spe[0].jitter: 1: expected true or false"),
    ("spe[0].exclude", ["guest"], "spe[0].exclude[0]: 'guest': expected one of user, kernel"),
    ("spe[0].exclude", ["user", "kernel"],
     "spe[0].exclude: user and kernel: expected one of the two at most: nothing is left to count"),
    ("spe[0].buffer", "3M", "spe[0].buffer: '3M': expected a power of two from 8K to 64M, such as \"4M\""),
    ("spe[0].buffer", "4K", "spe[0].buffer: '4K': expected a power of two from 8K to 64M, such as \"4M\""),
    ("spe[0].buffer", "8192.5K", "spe[0].buffer: '8192.5K': expected a power of two from 8K to 64M, such as \"4M\""),
    ("spe[0].reader", "slow", "spe[0].reader: 'slow': expected one of fast, never"),
    ("spe[1].start", "200ms", "spe[1].start: 200ms: expected a time before 200ms, its stop"),
    ("spe[1].start", "99ms", "spe[1].task: spe[0] is of the other kind: expected sessions of CPUs or of tasks at one "
     "time"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "value", "line"), BAD, ids=[f"{n}-{case[0]}" for n, case in enumerate(BAD)])
def test_a_bad_value_gets_its_line(tmp_path: Path, where: str, value: object, line: str) -> None:
    assert refusal(tmp_path, document(changed(where, value))) == line


def test_a_scenario_of_nothing_is_refused(tmp_path: Path) -> None:
    expected = "vm: missing: expected at least one [[vm]] or [[task]]"
    assert refusal(tmp_path, 'duration = "1s"\nhost.cpus = ["max"]') == expected


def of(**parts: object) -> str:
    """A scenario on 128 CPUs with one task, and `parts` besides."""
    base: dict[str, Any] = {
        "duration": "1s",
        "host": {"cpus": [{"core": "max", "number": 128}]},
        "task": [{"name": "t"}],
    }
    return document(base | parts)


def busy(number: int, vcpus: int) -> list[dict[str, object]]:
    return [{"name": f"v{n}", "guest": "busy", "vcpus": vcpus} for n in range(number)]


def session(n: int, events: list[int], **target: object) -> dict[str, object]:
    return {"name": f"p{n}", "events": events, **(target or {"cpu": "0-127"})}


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"vm": busy(8, 512)}, "task: 4097 tasks and vCPUs: expected at most 4096"),
        (
            {"vm": [{"name": f"v{n}", "guest": "demo", "vcpus": 5} for n in range(13)]},
            "vm: 65 vCPUs of guests that have code: expected at most 64",
        ),
        ({"vm": busy(257, 1)}, "vm: 257 items: expected at most 256"),
        (
            {"perf": [session(n, [8] * 100) for n in range(2)]},
            "perf[1].events: 25600 events on CPUs or threads up to here: expected at most 16384",
        ),
        ({"perf": [session(0, [8] * 1025)]}, "perf[0].events: 1025 items: expected at most 1024"),
        (
            {"vm": busy(8, 500), "perf": [session(n, [8] * 1000, task="t") for n in range(2)]},
            # 128 CPUs, 4000 vCPUs and a task: 4129 lists of at most 2^22 entries together.
            "perf[1].events: 2000 groups on PMUs up to here: expected at most 1015",
        ),
        (
            {"spe": [{"name": f"s{n}", "cpu": "0-127", "start": f"{n}ms", "stop": f"{n + 1}ms"} for n in range(2)]},
            "spe[1]: 256 events on CPUs or tasks up to here: expected at most 255",
        ),
        (
            {"spe": [{"name": "a", "cpu": "0-3"}, {"name": "b", "cpu": "3", "start": "1ms"}]},
            "spe[1].cpu: spe[0] is on the same cpu at the time: expected one that is over before it starts, or begins "
            "after it: a CPU has one unit",
        ),
        (
            {"spe": [{"name": name, "task": "t"} for name in "ab"]},
            "spe[1].task: spe[0] is on the same task at the time: expected one that is over before it starts, or "
            "begins after it: a CPU has one unit",
        ),
        (
            {"host": {"cpus": ["neoverse-n1", "neoverse-v1"]}, "spe": [{"name": "a", "task": "t"}]},
            "spe[0].task: t runs on neoverse-n1 and neoverse-v1: expected tasks on CPUs of one core: its SPE PMU",
        ),
        (
            {"task": [{"name": "t", "events": {f"{n:#x}": 1 for n in range(0x100, 0x10E)}}], "perf": [session(0, [7])]},
            "perf[0].events: 17 different events up to here, INST_RETIRED and CPU_CYCLES with them: "
            "expected at most 16",
        ),
    ],
)
def test_more_than_there_is_room_for_is_refused(tmp_path: Path, parts: dict[str, object], line: str) -> None:
    assert refusal(tmp_path, of(**parts)) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("duration = ", "not TOML: Invalid value (at end of document)"),
        ("seed = 1\nseed = 2", "not TOML: Cannot overwrite a value"),
        (b"duration = '\xff'", "byte 12: not UTF-8: expected a TOML file"),
        (b"\0\0\0", "not TOML: Invalid statement (at line 1, column 1)"),
        ("x = " + "[" * 50_000, "lists or tables nested too deep: expected a few levels"),
        ("x = " + "{a=" * 50_000, "lists or tables nested too deep: expected a few levels"),
        ("\n" + "a." * 500_000 + "a = 1", "line 2: more than 64 dots: expected keys of few parts"),
        ("#" * (1 << 20) + "\n", "too large: expected at most 1 MiB"),
        ("seed = 1" + "0" * 5000, "not TOML: Exceeds the limit (4300 digits) for integer string conversion"),
        ('"\\u0007" = 1', "'\\x07': unknown key: expected one of duration, seed, host, vm, task, perf, spe"),
        (
            "x" * 5000 + " = 1",
            f"'{'x' * 40}'...: unknown key: expected one of duration, seed, host, vm, task, perf, spe",
        ),
    ],
)
def test_what_is_no_scenario_at_all_is_refused_at_once(tmp_path: Path, text: str | bytes, line: str) -> None:
    assert refusal(tmp_path, text).startswith(line)


def test_a_comment_may_have_as_many_dots_as_it_likes(tmp_path: Path) -> None:
    load(write(tmp_path, f"# {'.' * 100}\n{document(GOOD)}"))


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    for path, why in (
        (tmp_path / "none.toml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(ScenarioError) as error:
            load(path)
        assert str(error.value) == f"{path}: cannot be read: {why}"


# ---- generated ones ------------------------------------------------------------------------------------------------

WRONG: list[object] = [True, 1.5, -1, 1 << 70, "", "x y", [], {}, [[]], {"a": 1}, Raw("nan"), Raw("1979-05-27")]


def keys_of(value: object, key: str = "") -> list[str]:
    """Every key of a scenario, of tables and lists too."""
    found = []
    if isinstance(value, dict):
        found = [(f"{key}.{name}" if key else name, item) for name, item in value.items()]
    elif isinstance(value, list):
        found = [(f"{key}[{n}]", item) for n, item in enumerate(value)]
    return [name for name, _ in found] + [deeper for name, item in found for deeper in keys_of(item, name)]


def malformed(number: int) -> dict[str, Any]:
    """A scenario with one thing wrong."""
    rng = random.Random(number)
    keys = keys_of(GOOD)
    kind = number % 5
    if kind == 0:  # a key that has to be there is not
        needed = [
            key for key in keys if re.search(r"(^|\])\.?(duration|host|name|guest|events|cpu|task|vm|host.cpus)$", key)
        ]
        needed = [key for key in needed if not re.match(r"(vm|task)(\[\d\].events)?$", key) and key != "task[1].events"]
        return changed(rng.choice([*needed, "host.cpus"]), GONE)
    if kind == 1:  # a value of another type, or out of all ranges
        key = rng.choice(keys)
        wrong = [value for value in WRONG if not may_be(key, value)]
        return changed(key, rng.choice(wrong))
    if kind == 2:  # a key that nobody knows
        tables = ["host", "host.cpus[0]", "vm[0]", "vm[1]", "task[0]", "task[1]", "perf[0]", "perf[3]", "spe[0]"]
        return changed(f"{rng.choice(tables)}.{rng.choice(['nam', 'cpuz', 'x', 'Events', 'tick_ms'])}", 1)
    if kind == 3:  # what is not there
        references = {"perf[1].task": "cron-0", "perf[4].vm": "backup", "vm[1].core": "max", "perf[5].core": "max"}
        references |= {"spe[0].cpu": "6", "spe[1].task": "web"}
        references |= {"perf[0].cpu": "0-6", "task[0].cpus": "6", "vm[0].cpus[1]": "17", "host.cpus[1]": "z80"}
        key = rng.choice(list(references))
        return changed(key, references[key])
    key = rng.choice(
        ["duration", "host.tick", "host.slice", "vm[0].burst", "vm[0].pause", "perf[1].start", "perf[1].stop"]
    )
    return changed(key, rng.choice(["5", "5 minutes", "5Ms", "-5ms", "1e3ms", "5 m s", "0.1ns", "9999s", "5mss", "s"]))


def may_be(key: str, value: object) -> bool:
    """Whether a value of `WRONG` is one that the key may have."""
    if re.search(r"(pinned|fgt|long|jitter)$", key):
        return value is True
    if re.search(r"append$", key):
        return value in ("", "x y")
    if re.search(r"events\.", key):
        return value == 1.5
    return False


@pytest.mark.parametrize("number", range(100))
def test_each_of_a_hundred_malformed_scenarios_gets_one_line_and_starts_nothing(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "Hosting", lambda *args: pytest.fail("started"))
    path = write(tmp_path, document(malformed(number)))
    assert cli.main(["run", str(path), "--json", str(tmp_path / "out.json")]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(rf"pmuvisor: {re.escape(str(path))}: [^\n]+: (expected [^\n]+|core \S+ can give [^\n]+)\n", err)
    assert not (tmp_path / "out.json").exists()


TIMES = st.sampled_from(["10us", "1ms", "2.5ms", "999us", "10 s"])
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,20}", fullmatch=True)
LOAD = {
    "events": st.dictionaries(
        st.sampled_from(["INST_RETIRED", "BR_RETIRED", "0x13", "mem_access"]), st.floats(0.001, 7000), min_size=1
    ).filter(lambda events: not {"0x13", "mem_access"} <= set(events)),
    "user": st.floats(0, 1) | st.integers(0, 1),
}


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    cpus = draw(st.lists(st.sampled_from(["neoverse-n1", "cortex-a76"]), min_size=1, max_size=6))
    lists = st.lists(st.integers(0, len(cpus) - 1), min_size=1, max_size=4).map(lambda of: ",".join(map(str, of)))

    def table(name: str, needed: dict[str, Any], **more: Any) -> Any:
        return st.fixed_dictionaries({"name": st.just(name), **needed}, optional=more)

    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True).filter(no_numbers))
    tasks = [draw(table(name, {}, number=st.integers(1, 5), cpus=lists, **LOAD)) for name in names[::2]]
    vms = [
        draw(
            table(
                name,
                {"guest": st.just("busy")},
                vcpus=st.integers(1, 9),
                cpus=lists,
                counters=st.integers(1, 6),
                **LOAD,
            )
        )
        for name in names[1::2]
    ]
    events = st.lists(st.sampled_from(["CPU_CYCLES", "br_retired", 8, ["INST_RETIRED", 0x13]]), min_size=1, max_size=9)
    targets = st.one_of(
        st.fixed_dictionaries({"cpu": lists}),
        st.fixed_dictionaries({"task": st.sampled_from(names[::2])}),
        *([st.fixed_dictionaries({"vm": st.sampled_from(names[1::2])})] if vms else []),
    )
    perf = [
        draw(table(name, {"events": events}, period=st.integers(1, 99), pinned=st.booleans(), start=TIMES))
        | draw(targets)
        for name in names
    ]
    host = draw(st.fixed_dictionaries({"cpus": st.just(cpus)}, optional={"tick": TIMES, "slice": TIMES}))
    return (
        {"duration": "11s", "host": host, "vm": vms, "task": tasks, "perf": perf}
        if vms
        else {"duration": "11s", "host": host, "task": tasks, "perf": perf}
    )


def no_numbers(names: list[str]) -> bool:
    """Whether no name is one that a table of several tasks could make."""
    return not any(re.search(r"-\d$", name) for name in names)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scenarios())
def test_any_valid_scenario_loads_in_its_order(tmp_path: Path, scenario: dict[str, Any]) -> None:
    found = load(write(tmp_path, document(scenario)))
    assert [vm.name for vm in found.vms] == [vm["name"] for vm in scenario.get("vm", [])]
    assert [session.name for session in found.perf] == [session["name"] for session in scenario["perf"]]
    assert len(found.tasks) == sum(task.get("number", 1) for task in scenario["task"])
    every = (1 << len(found.host.cpus)) - 1
    for mask in [task.cpus for task in found.tasks] + [mask for vm in found.vms for mask in vm.cpus]:
        assert 0 < mask <= every
    for activity in [t.activity for t in found.tasks] + [vm.activity for vm in found.vms if vm.activity is not None]:
        assert all(0 < rate < 1 << 23 and number in found.kinds for number, rate in activity.rates)
        assert 0 <= activity.user <= 1000
    assert all(0 <= session.start < session.stop == found.duration for session in found.perf)
    assert all(1 <= vm.counters <= 6 and len(vm.cpus) == vm.vcpus for vm in found.vms)
