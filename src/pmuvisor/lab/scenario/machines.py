"""The tables `host`, `vm` and `task` of a scenario: what there is, and what it does."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from pmuvisor import records
from pmuvisor.arch.cores import PMU_VERSIONS, SPE_VERSIONS, Core, make_spe
from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED, SW_INCR
from pmuvisor.board.fdt import MAX_BOOTARGS
from pmuvisor.board.machine import DESIGNS, Config, CountError
from pmuvisor.kvm.uapi.abi import VGIC_V3_MAX_CPUS
from pmuvisor.lab import reading
from pmuvisor.lab.guests import BUILTIN
from pmuvisor.lab.reading import FLAG, MICROSECOND, MILLISECOND, SECOND, KeyProblem, Problem, Table
from pmuvisor.lab.run import LINUX_BOOTARGS
from pmuvisor.lab.scenario.spec import MAX_RATE, Activity, HostSpec, TaskSpec, VmSpec
from pmuvisor.lab.scenario.values import (
    NAME,
    check_implemented,
    core_named,
    core_of_host,
    cpu_list,
    cpus_of,
    event_of,
    implements,
)

MAX_CPUS = 128
MAX_THREADS = 4096
"""Tasks and vCPUs."""
MAX_ENGINES = 64
"""vCPUs of guests that have code: each has a CPU engine of its own."""
MAX_VCPUS, MAX_BUSY_VCPUS, MAX_TASKS = 8, VGIC_V3_MAX_CPUS, 1000
DEFAULT_RATES = {INST_RETIRED: MILLISECOND}
"""An instruction a nanosecond; rates are events in a millisecond."""

GUESTS = ("busy", *BUILTIN, "linux")
"""Guests that are not files."""
HOST = ("cpus", "tick", "slice", "max_guest_counters")
ACTIVITY = ("events", "user", "burst", "pause")
CODE = ("memory", "kernel", "initrd", "append", "spe")
"""Keys of a VM whose guest has code; those of `ACTIVITY` are of one that has none."""
VM = ("name", "guest", "vcpus", "core", "cpus", "counters", "design", "fgt", *CODE, *ACTIVITY)
TASK = ("name", "number", "cpus", *ACTIVITY)

DURATION = reading.time(MICROSECOND, 1000 * SECOND)
TURN = reading.time(10 * MICROSECOND, 10 * SECOND)
RATE = reading.scaled(Fraction(1, 1000), MAX_RATE // 1000, 1000, " of events in a microsecond")
SHARE = reading.scaled(Fraction(0), 1, 1000)
FILE = reading.text("the name of a file", r"[^\0]+")
WORDS = reading.text("printable ASCII, on one line", r"[ -~]*")
CPUS_EXPECTED = 'a list of cores, such as ["neoverse-n1", {core = "cortex-x1", number = 4}]'


# ---- the host ---------------------------------------------------------------------------------------------


def host_of(value: object, key: str) -> HostSpec:
    """Return the host that a table describes. Raises KeyProblem."""
    table = Table(value, key, HOST)
    cpus: list[Core] = []
    for item, at in reading.items(table.need("cpus", CPUS_EXPECTED), table.key("cpus"), CPUS_EXPECTED):
        cpus += _cores_of(item, at)
        if len(cpus) > MAX_CPUS:
            raise KeyProblem(table.key("cpus"), f"more than {MAX_CPUS} CPUs", f"1 to {MAX_CPUS}")
    return HostSpec(
        cpus=tuple(cpus),
        tick=table.take_or("tick", TURN, 4 * MILLISECOND),
        slice=table.take_or("slice", TURN, 3 * MILLISECOND),
        max_guest_counters=table.take_or("max_guest_counters", reading.number(0, 31), 31),
    )


def _cores_of(value: object, key: str) -> list[Core]:
    """Return the cores of one item of host.cpus: a name, or a table of a name and a number."""
    if not isinstance(value, dict):
        return [core_named(value, key)]
    table = Table(value, key, ("core", "number"))
    number = table.take_or("number", reading.number(1, MAX_CPUS), 1)
    return [core_named(table.need("core", "the name of a core"), table.key("core"))] * number


# ---- what threads do --------------------------------------------------------------------------------------


def _rates(value: object, key: str, on: Sequence[Core]) -> dict[int, int]:
    """Return how often events happen in a millisecond. One of the cores has to implement each."""
    if not isinstance(value, dict) or not value:
        raise KeyProblem(key, reading.shown(value), "events with their rates, such as {INST_RETIRED = 1500}")
    rates: dict[int, int] = {}
    for name, rate in value.items():
        at = reading.key_of(key, name)
        event = event_of(name, at)
        if event.number == CPU_CYCLES:
            raise KeyProblem(at, "CPU_CYCLES", "another event: cycles go by the clock of the core")
        if event.number == SW_INCR:
            raise KeyProblem(at, "SW_INCR", "another event: it counts writes to PMSWINC_EL0, which no rate describes")
        if event.number in rates:
            raise KeyProblem(at, f"{event.name} again", "each event once")
        if not any(implements(core, event) for core in on):
            check_implemented(event, at, on)
        rates[event.number] = RATE.read(rate, at)
    return rates


def _activity(table: Table, on: Sequence[Core]) -> Activity:
    rates = DEFAULT_RATES
    if "events" in table:
        rates = _rates(table.values["events"], table.key("events"), on)
    burst = table.take_or("burst", DURATION, 0)
    pause = table.take_or("pause", DURATION, 0)
    for name, other in (("burst", "pause"), ("pause", "burst")):
        if name in table and other not in table:
            raise KeyProblem(table.key(other), "missing", f"a time, where {name} is given")
    return Activity(
        rates=tuple(sorted(rates.items())), user=table.take_or("user", SHARE, 1000), burst=burst, pause=pause
    )


# ---- VMs --------------------------------------------------------------------------------------------------


def check_guests_can_have_pmus(host: HostSpec) -> None:
    """Raise KeyProblem for a host on which KVM gives guests no PMU: its CPUs differ in PMUVer.

    The kernel's sanitised ID_AA64DFR0_EL1.PMUVer is 0 there, and kvm_host_pmu_init() knows no PMU then.
    """
    for core in host.cores:
        if core.pmuver != host.cpus[0].pmuver:
            found = [f"{of.name} is {PMU_VERSIONS[of.pmuver]}" for of in (host.cpus[0], core)]
            raise KeyProblem("host.cpus", ", ".join(found), "one version of the PMU, or KVM has none for VMs")


def vm_of(table: Table, host: HostSpec, folder: Path) -> VmSpec:
    """Return the VM that a table describes; files are sought in `folder`. Raises KeyProblem."""
    name = table.take("name", NAME)
    guest = _guest(table, folder)
    busy = guest == "busy"
    _check_keys(table, CODE if busy else ACTIVITY, "guests that have code" if busy else "guest busy")
    if guest != "linux":
        _check_keys(table, ("kernel",), "guest linux")
    vcpus = table.take_or("vcpus", reading.number(1, MAX_BUSY_VCPUS if busy else MAX_VCPUS), 1)
    design = reading.chosen(table.values.get("design", "partitioned"), table.key("design"), list(DESIGNS))
    runs_anywhere = design == "fixed-counters-only" or (design == "emulated" and "core" not in table)
    core, cpus = _where(table, host, vcpus, runs_anywhere)
    return VmSpec(
        name=name,
        guest=guest,
        vcpus=vcpus,
        core=core,
        cpus=cpus,
        counters=_counters(table, core, host, design),
        design=design,
        runs_anywhere=runs_anywhere,
        fgt=table.take_or("fgt", FLAG, True),
        spe=_spe(table, host),
        activity=_activity(table, [core]) if busy else None,
        memory=0 if busy else table.take_or("memory", reading.size(1 << 20, 64 << 30), 256 << 20),
        kernel=_file(table, "kernel", folder),
        initrd=_file(table, "initrd", folder),
        append=_append(table),
    )


def _spe(table: Table, host: HostSpec) -> bool:
    """Tell whether the guest has SPE. KVM (kvm.uapi) has it only for hosts whose CPUs all have it, and the same."""
    wanted = table.take_or("spe", FLAG, False)
    units = {records.key(make_spe(core)) for core in host.cores}
    if wanted and (len(units) > 1 or host.cores[0].spe == 0):
        found = ", ".join(f"{core.name} has {SPE_VERSIONS[core.spe] if core.spe else 'none'}" for core in host.cores)
        raise KeyProblem(table.key("spe"), found, "a host whose CPUs all have the same SPE")
    return wanted


def _check_keys(table: Table, others: Sequence[str], whose: str) -> None:
    """Raise KeyProblem for a key that other guests have."""
    for name in others:
        if name in table:
            raise KeyProblem(
                table.key(name), f"not of guest {reading.shown(table.values['guest'])}", f"it of {whose} only"
            )


def _guest(table: Table, folder: Path) -> str:
    value = table.take("guest", reading.text(f"{', '.join(GUESTS)} or the name of a file", r"[^\0]+"))
    if value in GUESTS:
        return value
    return str(_existing(value, table.key("guest"), folder, f"{', '.join(GUESTS)} or a file"))


def _file(table: Table, name: str, folder: Path) -> Path | None:
    if name not in table:
        return None
    return _existing(table.take(name, FILE), table.key(name), folder, "a file")


def _existing(name: str, key: str, folder: Path, expected: str) -> Path:
    """Return the path of a file, which is beside the scenario's own where it is not absolute."""
    path = (folder / name).absolute()
    try:
        there = path.is_file()
    except OSError:  # a name that is too long
        there = False
    if not there:
        raise KeyProblem(key, f"{reading.shown(name)}: no such file", expected)
    return path


def _append(table: Table) -> str:
    words = table.take_or("append", WORDS, "")
    room = MAX_BOOTARGS - len(LINUX_BOOTARGS) - 1
    if len(words) > room:
        raise KeyProblem(
            table.key("append"), f"{len(words)} bytes", f"at most {room}, what Linux reads besides our own"
        )
    return words


def _where(table: Table, host: HostSpec, vcpus: int, anywhere: bool) -> tuple[Core, tuple[int, ...]]:
    """Return the PMU that the VM is tied to, and by vCPU the CPUs that it may use: by default its core's, or all."""
    key = table.key("cpus")
    masks: tuple[int, ...] = ()
    if isinstance(table.values.get("cpus"), list):
        lists = reading.items(table.values["cpus"], key, "CPU lists")
        if len(lists) != vcpus:
            raise KeyProblem(key, f"{len(lists)} CPU lists", f"one, or a list of {vcpus}: one for each vCPU")
        masks = tuple(cpu_list(item, at, host) for item, at in lists)
    elif "cpus" in table:
        masks = (cpu_list(table.values["cpus"], key, host),) * vcpus
    core = host.cpus[min((cpus_of(mask)[0] for mask in masks), default=0)]
    if "core" in table:
        core = core_of_host(table.values["core"], table.key("core"), host)
    everywhere = (1 << len(host.cpus)) - 1
    return core, masks or (everywhere if anywhere else host.mask_of(core),) * vcpus


def _counters(table: Table, core: Core, host: HostSpec, design: str) -> int:
    """Return how many event counters the guest gets. Without the key, as many as a guest alone, if the host lets it."""
    wanted = None
    limit = host.max_guest_counters
    if "counters" in table:
        wanted = table.take("counters", reading.number(0, 31))
        if wanted > limit:
            raise KeyProblem(table.key("counters"), str(wanted), f"at most {limit}, host.max_guest_counters")
    try:
        given = min(Config(core, counters=wanted, design=design).guest_counters(), limit)
        return Config(core, counters=given, design=design).guest_counters()
    except CountError as error:
        raise Problem(f"{table.key('counters')}: {str(error).removeprefix('counters ')}") from None


# ---- tasks ------------------------------------------------------------------------------------------------


def tasks_of(table: Table, host: HostSpec) -> list[TaskSpec]:
    """Return the tasks, one or more, that a table describes. Raises KeyProblem."""
    name = table.take("name", NAME)
    number = table.take_or("number", reading.number(1, MAX_TASKS), 1)
    cpus = (1 << len(host.cpus)) - 1
    if "cpus" in table:
        cpus = cpu_list(table.values["cpus"], table.key("cpus"), host)
    activity = _activity(table, host.cores)
    names = [name] if number == 1 else [f"{name}-{n}" for n in range(number)]
    return [TaskSpec(name=each, cpus=cpus, activity=activity) for each in names]


def task_numbers(tables: Sequence[Table], made: Sequence[Sequence[TaskSpec]]) -> dict[str, tuple[int, ...]]:
    """Return which tasks a name is of: one of them, or all that a table makes."""
    numbers: dict[str, tuple[int, ...]] = {}
    first = 0
    for table, several in zip(tables, made, strict=True):
        numbers[table.values["name"]] = tuple(range(first, first + len(several)))
        if len(several) > 1:
            numbers |= {task.name: (first + n,) for n, task in enumerate(several)}
        first += len(several)
    return numbers


def check_threads(vms: Sequence[VmSpec], tasks: Sequence[TaskSpec]) -> None:
    """Raise KeyProblem for more threads or engines than there is room for."""
    threads = len(tasks) + sum(vm.vcpus for vm in vms)
    if threads > MAX_THREADS:
        raise KeyProblem("task" if tasks else "vm", f"{threads} tasks and vCPUs", f"at most {MAX_THREADS}")
    engines = sum(vm.vcpus for vm in vms if vm.activity is None)
    if engines > MAX_ENGINES:
        raise KeyProblem("vm", f"{engines} vCPUs of guests that have code", f"at most {MAX_ENGINES}")
