"""The tables `spe` of a scenario: the profiling sessions of the host's SPE driver."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pmuvisor.arch.cores import Core
from pmuvisor.lab import reading
from pmuvisor.lab.reading import FLAG, KeyProblem, Table
from pmuvisor.lab.scenario.sessions import Known, excluded_of, span_of, target_of
from pmuvisor.lab.scenario.spec import MAX_SPE_SESSIONS, SpeSpec
from pmuvisor.lab.scenario.values import NAME, cpus_of

TARGETS = ("cpu", "task")
SPE = ("name", *TARGETS, "period", "jitter", "exclude", "buffer", "reader", "start", "stop")
EXCLUDE = ("user", "kernel")
READERS = ("fast", "never")
PERIOD = reading.number(1, (1 << 32) - 1)
BUFFER = reading.power_of_two(2 * 4096, 64 << 20)
DEFAULT_PERIOD = 10_000
DEFAULT_BUFFER = 4 << 20
"""What perf takes for a user who may have as much."""


def profiles_of(tables: Sequence[Table], known: Known) -> tuple[SpeSpec, ...]:
    """Return the sessions that tables describe. Raises KeyProblem, also where the driver refuses one beside another."""
    made: list[SpeSpec] = []
    opened = 0
    for table in tables:
        spec = _session(table, known)
        for number, other in enumerate(made):
            _check_exclusive(table, spec, tables[number], other, known)
        made.append(spec)
        opened += spec.cpus.bit_count() + len(spec.tasks)
        if opened > MAX_SPE_SESSIONS:
            raise KeyProblem(table.name, f"{opened} events on CPUs or tasks up to here", f"at most {MAX_SPE_SESSIONS}")
    return tuple(made)


def _session(table: Table, known: Known) -> SpeSpec:
    name = table.take("name", NAME)
    targets = [target for target in TARGETS if target in table]
    if len(targets) != 1:
        raise KeyProblem(table.name, " and ".join(targets) or "no target", f"exactly one of {', '.join(TARGETS)}")
    cpus, tasks, _ = target_of(table, targets[0], known)
    _check_cores(table, targets[0], known, cpus, tasks)
    start, stop = span_of(table, known)
    excluded = excluded_of(table, EXCLUDE)
    return SpeSpec(
        name=name,
        cpus=cpus,
        tasks=tasks,
        period=table.take_or("period", PERIOD, DEFAULT_PERIOD),
        jitter=table.take_or("jitter", FLAG, False),
        exclude_user="user" in excluded,
        exclude_kernel="kernel" in excluded,
        buffer=table.take_or("buffer", BUFFER, DEFAULT_BUFFER),
        read=reading.chosen(table.values.get("reader", "fast"), table.key("reader"), READERS) == "fast",
        start=start,
        stop=stop,
    )


def _check_cores(table: Table, target: str, known: Known, cpus: int, tasks: Iterable[int]) -> None:
    """Raise KeyProblem for CPUs without SPE. A task's are of one kind: each kind's units are a PMU of their own."""
    key = table.key(target)
    for mask in [cpus, *(known.tasks[task].cpus for task in tasks)]:
        for c in cpus_of(mask):
            if known.host.cpus[c].spe == 0:
                raise KeyProblem(key, f"CPU {c} is {known.host.cpus[c].name}, which has no SPE", "CPUs that have SPE")
    for task in tasks:
        kinds = _kinds(known, known.tasks[task].cpus)
        if len(kinds) > 1:
            names = " and ".join(core.name for core in kinds)
            raise KeyProblem(key, f"{known.tasks[task].name} runs on {names}", "tasks on CPUs of one core: its SPE PMU")


def _kinds(known: Known, cpus: int) -> list[Core]:
    return [core for core in known.host.cores if known.host.mask_of(core) & cpus]


def _check_exclusive(table: Table, spec: SpeSpec, earlier: Table, other: SpeSpec, known: Known) -> None:
    """State exclusive_event_init() and exclusive_event_installable(): raise KeyProblem where perf returns -EBUSY.

    At one time a PMU of SPE has events of CPUs or of tasks, and one only of each CPU or task.
    """
    if spec.stop <= other.start or other.stop <= spec.start:
        return
    expected = "one that is over before it starts, or begins after it: a CPU has one unit"
    if spec.cpus & other.cpus or set(spec.tasks) & set(other.tasks):
        target = "cpu" if spec.cpus else "task"
        raise KeyProblem(table.key(target), f"{earlier.name} is on the same {target} at the time", expected)
    if bool(spec.cpus) != bool(other.cpus) and _shares_pmu(spec, other, known):
        expected = "sessions of CPUs or of tasks at one time"
        raise KeyProblem(table.key("cpu" if spec.cpus else "task"), f"{earlier.name} is of the other kind", expected)


def _shares_pmu(spec: SpeSpec, other: SpeSpec, known: Known) -> bool:
    mine, theirs = (
        {core.name for mask in [s.cpus, *(known.tasks[n].cpus for n in s.tasks)] for core in _kinds(known, mask)}
        for s in (spec, other)
    )
    return bool(mine & theirs)
