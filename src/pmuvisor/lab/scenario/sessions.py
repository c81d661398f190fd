"""The tables `perf` of a scenario: the sessions of the host's perf."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Sequence

from pmuvisor import records
from pmuvisor.arch.cores import Core, make_pe
from pmuvisor.arch.sysreg import PMUV3P5
from pmuvisor.lab import reading
from pmuvisor.lab.reading import FLAG, KeyProblem, Table
from pmuvisor.lab.scenario.spec import EventSpec, HostSpec, PerfSpec, TaskSpec, VmSpec
from pmuvisor.lab.scenario.values import (
    NAME,
    check_implemented,
    core_of_host,
    cpu_list,
    cpus_of,
    event_of,
)
from pmuvisor.linux import arm_pmuv3
from pmuvisor.linux.host import NO_COUNTER, Cpu, PerfEvent

MAX_OPENED = 16384
"""Events of all sessions, counted once for each CPU or thread and PMU that they are opened on."""
MAX_LISTED = 1 << 22
"""Groups of all sessions, once for each PMU, times CPUs and threads: every context has room for all of them."""
TARGETS = ("cpu", "task", "vm")
PERF = ("name", "events", *TARGETS, "core", "pinned", "period", "exclude", "long", "start", "stop")
EXCLUDE = ("user", "kernel", "guest", "host")
PERIOD = reading.number(1, (1 << 31) - 1)
"""Not beyond half of a counter of 32 bits; what keeps times below 2^63 as well (linux/activity.py)."""
EVENT_LIST = "a list of events, a list in it being a group"


@dataclasses.dataclass(frozen=True)
class Known:
    """What a perf session can be about."""

    host: HostSpec
    duration: int
    vms: tuple[VmSpec, ...]
    tasks: tuple[TaskSpec, ...]
    task_numbers: dict[str, tuple[int, ...]]


def sessions_of(tables: Sequence[Table], known: Known) -> tuple[PerfSpec, ...]:
    """Return the sessions that tables describe. Raises KeyProblem, also where they need more than there is room for."""
    contexts = len(known.host.cpus) + len(known.tasks) + sum(vm.vcpus for vm in known.vms)
    opened = groups = 0
    sessions = []
    for table in tables:
        session = _session(table, known)
        sessions.append(session)
        opened += sum(len(group) for group in session.groups) * _places(session, known)
        groups += len(session.groups) * len(session.cores)
        for wrong, number, most in (
            ("events on CPUs or threads", opened, MAX_OPENED),
            ("groups on PMUs", groups, MAX_LISTED // contexts),
        ):
            if number > most:
                raise KeyProblem(table.key("events"), f"{number} {wrong} up to here", f"at most {most}")
    return tuple(sessions)


def _places(session: PerfSpec, known: Known) -> int:
    """Return on how many CPUs, or threads and PMUs, a session opens its events."""
    if session.cpus:
        return session.cpus.bit_count()
    threads = len(session.tasks) if session.vm is None else known.vms[session.vm].vcpus
    return threads * len(session.cores)


def _session(table: Table, known: Known) -> PerfSpec:
    name = table.take("name", NAME)
    targets = [target for target in TARGETS if target in table]
    if len(targets) != 1:
        raise KeyProblem(table.name, " and ".join(targets) or "no target", f"exactly one of {', '.join(TARGETS)}")
    cpus, tasks, vm = target_of(table, targets[0], known)
    on = _pmus(table, known, cpus, tasks, vm)
    long = table.take_or("long", FLAG, False)
    start, stop = span_of(table, known)
    excluded = excluded_of(table, EXCLUDE)
    return PerfSpec(
        name=name,
        groups=_groups(table, on, long),
        cpus=cpus,
        tasks=tasks,
        vm=vm,
        cores=on,
        pinned=table.take_or("pinned", FLAG, False),
        period=table.take_or("period", PERIOD, 0),
        exclude_user="user" in excluded,
        exclude_kernel="kernel" in excluded,
        exclude_guest="guest" in excluded,
        exclude_host="host" in excluded,
        long=long,
        start=start,
        stop=stop,
    )


def span_of(table: Table, known: Known) -> tuple[int, int]:
    """Return when a session starts and stops."""
    start = table.take_or("start", reading.time(0, known.duration), 0)
    stop = table.take_or("stop", reading.time(0, known.duration), known.duration)
    if start >= stop:
        raise KeyProblem(
            table.key("start"), reading.time_text(start), f"a time before {reading.time_text(stop)}, its stop"
        )
    return start, stop


def target_of(table: Table, target: str, known: Known) -> tuple[int, tuple[int, ...], int | None]:
    """Return what a session measures: a mask of CPUs, tasks, or a VM."""
    value, key = table.values[target], table.key(target)
    if target == "cpu":
        return cpu_list(value, key, known.host), (), None
    if target == "task":
        return 0, known.task_numbers[reading.chosen(value, key, list(known.task_numbers), "a task")], None
    names = [vm.name for vm in known.vms]
    return 0, (), names.index(reading.chosen(value, key, names, "a VM"))


def _pmus(table: Table, known: Known, cpus: int, tasks: tuple[int, ...], vm: int | None) -> tuple[Core, ...]:
    """Return the PMUs of a session: of its CPUs, or of those that its threads may use; or the one that is asked for."""
    if vm is not None:
        cpus = _guest_cpus(known.vms[vm], known.host)
    for task in tasks:
        cpus |= known.tasks[task].cpus
    if "core" not in table:
        return tuple(core for core in known.host.cores if known.host.mask_of(core) & cpus)
    core = core_of_host(table.values["core"], table.key("core"), known.host)
    if "cpu" in table:
        for c in cpus_of(cpus & ~known.host.mask_of(core)):
            raise KeyProblem(
                table.key("cpu"), f"CPU {c} is {known.host.cpus[c].name}", f"CPUs of core {core.name} only"
            )
    elif not known.host.mask_of(core) & cpus:
        raise KeyProblem(table.key("core"), core.name, "a core that its threads may run on")
    return (core,)


def _guest_cpus(vm: VmSpec, host: HostSpec) -> int:
    """Return the CPUs where vCPUs of a VM run: those of its PMU, or where it is tied to none all that they may use."""
    if not vm.runs_anywhere:
        return host.mask_of(vm.core)
    return functools.reduce(operator.or_, vm.cpus)


def _groups(table: Table, on: Sequence[Core], long: bool) -> tuple[tuple[EventSpec, ...], ...]:
    key = table.key("events")
    groups = []
    for item, at in reading.items(table.need("events", EVENT_LIST), key, EVENT_LIST):
        members = reading.items(item, at, "a group of events") if isinstance(item, list) else [(item, at)]
        group = []
        for value, where in members:
            event = event_of(value, where)
            check_implemented(event, where, on)
            group.append(event)
        for core in on:
            if not _fits(core, group, long):
                raise KeyProblem(at, f"a group of {len(group)}", f"one that fits {_room(core, long)}")
        groups.append(tuple(group))
    return tuple(groups)


@functools.cache
def _idle_cpu(core: Core) -> Cpu:
    """Return a CPU of `core` with a PMU that nobody uses."""
    sizes = {"event_counters": core.event_counters, "counter_width": 64, "context_events": 0, "inflight": 1}
    cpu = records.new(Cpu, sizes)
    cpu.pe = make_pe(core, ())
    return cpu


def _fits(core: Core, group: Iterable[EventSpec], long: bool) -> bool:
    """Tell whether a group fits a PMU that has nothing else to do, as perf.validate_group asks when it is opened."""
    cpu = _idle_cpu(core)
    event = records.new(PerfEvent, {})
    event.long = int(long)
    used = 0
    for member in group:
        event.config = member.number
        idx = arm_pmuv3.get_event_idx(cpu, event, arm_pmuv3.all_counters(cpu), used)
        if idx == NO_COUNTER:
            return False
        used |= arm_pmuv3.mask_of(cpu, event, idx)
    return True


def _room(core: Core, long: bool) -> str:
    pairs = ", two of them for each event" if long and core.pmuver < PMUV3P5 else ""
    return f"core {core.name}: {core.event_counters} event counters{pairs}, and fixed ones"


def excluded_of(table: Table, names: Sequence[str]) -> set[str]:
    """Return what a session leaves out, of `names`, in pairs of which one at least is left."""
    key = table.key("exclude")
    if "exclude" not in table:
        return set()
    listed = reading.items(table.values["exclude"], key, f"a list of any of {', '.join(names)}")
    excluded = [reading.chosen(item, at, names) for item, at in listed]
    if len(set(excluded)) < len(excluded):
        raise KeyProblem(key, "one of them twice", "each once")
    for n in range(0, len(names), 2):
        pair = names[n : n + 2]
        if set(pair) <= set(excluded):
            raise KeyProblem(key, " and ".join(pair), "one of the two at most: nothing is left to count")
    return set(excluded)
