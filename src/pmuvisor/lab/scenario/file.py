"""The file of a scenario: TOML, validated as a whole. docs/scenarios.md has it with an example of every key.

duration, seed
[host]     cpus, tick, slice, max_guest_counters
[[vm]]     name, guest, vcpus, core, cpus, counters, design, fgt
           of a guest that has code: memory, kernel, initrd, append, spe; of busy: events, user, burst, pause
[[task]]   name, number, cpus, events, user, burst, pause
[[perf]]   name, events, one of cpu, task and vm, core, pinned, period, exclude, long, start, stop
[[spe]]    name, one of cpu and task, period, jitter, exclude, buffer, reader, start, stop
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED
from pmuvisor.lab import reading
from pmuvisor.lab.reading import KeyProblem, Problem, Table
from pmuvisor.lab.scenario import machines, profiles, sessions
from pmuvisor.lab.scenario.spec import MAX_KINDS, Activity, Scenario, ScenarioError

TOP = ("duration", "seed", "host", "vm", "task", "perf", "spe")


def load(path: Path) -> Scenario:
    """Return the scenario in a file. Raises ScenarioError: one line with the file, the key and what was expected."""
    try:
        return _scenario(path, Table(reading.read_toml(path), "", TOP))
    except Problem as problem:
        name = str(path) if str(path).isprintable() else repr(str(path))
        raise ScenarioError(f"{name}: {problem}") from None


def _scenario(path: Path, top: Table) -> Scenario:
    duration = top.take("duration", machines.DURATION)
    seed = top.take_or("seed", reading.number(0, (1 << 32) - 1), 0)
    host = machines.host_of(top.need("host", "a table [host] with the key cpus"), "host")
    vm_tables = reading.tables(top, "vm", machines.VM)
    task_tables = reading.tables(top, "task", machines.TASK)
    perf_tables = reading.tables(top, "perf", sessions.PERF)
    spe_tables = reading.tables(top, "spe", profiles.SPE)
    if not vm_tables and not task_tables:
        raise KeyProblem("vm", "missing", "at least one [[vm]] or [[task]]")
    if vm_tables:
        machines.check_guests_can_have_pmus(host)
    vms = tuple(machines.vm_of(table, host, path.parent) for table in vm_tables)
    made = [machines.tasks_of(table, host) for table in task_tables]
    tasks = tuple(task for several in made for task in several)
    machines.check_threads(vms, tasks)
    _check_names(vm_tables, [{vm.name} for vm in vms])
    _check_names(task_tables, [{task.name for task in several} for several in made])
    known = sessions.Known(host, duration, vms, tasks, machines.task_numbers(task_tables, made))
    perf = sessions.sessions_of(perf_tables, known)
    spe = profiles.profiles_of(spe_tables, known)
    _check_names([*perf_tables, *spe_tables], [{of.name} for of in perf] + [{of.name} for of in spe])
    threads = [_made_by(vm.activity) for vm in vms] + [_made_by(several[0].activity) for several in made]
    counted = [{event.number for group in session.groups for event in group} for session in perf]
    kinds = _kinds([*vm_tables, *task_tables, *perf_tables], threads + counted)
    return Scenario(
        path=path,
        duration=duration,
        seed=seed,
        host=host,
        vms=vms,
        tasks=tasks,
        perf=perf,
        spe=spe,
        kinds=kinds,
    )


def _check_names(tables: Sequence[Table], made: Sequence[set[str]]) -> None:
    """Raise KeyProblem where two tables use one name, for themselves or for what they make."""
    taken: dict[str, str] = {}
    for table, names in zip(tables, made, strict=True):
        for name in sorted(names | {table.values["name"]}):
            if name in taken:
                raise KeyProblem(table.key("name"), f"{name} is a name of {taken[name]}", "one that no other has")
            taken[name] = table.name


def _made_by(activity: Activity | None) -> set[int]:
    return set() if activity is None else {number for number, _ in activity.rates}


def _kinds(tables: Iterable[Table], events: Iterable[set[int]]) -> tuple[int, ...]:
    """Return the events of all tables. Raises KeyProblem at the table that has one too many."""
    kinds = {INST_RETIRED, CPU_CYCLES}
    for table, more in zip(tables, events, strict=True):
        kinds |= more
        if len(kinds) > MAX_KINDS:
            wrong = f"{len(kinds)} different events up to here, INST_RETIRED and CPU_CYCLES with them"
            raise KeyProblem(table.key("events"), wrong, f"at most {MAX_KINDS}")
    return tuple(sorted(kinds))
