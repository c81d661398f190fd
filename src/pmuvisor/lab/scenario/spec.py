"""Scenarios: a host, VMs, tasks and perf sessions for a time, as hosting runs them.

Everything is resolved: times are nanoseconds, CPU masks have bit c for CPU c, events are numbers, names are indexes.
The order of everything is the file's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pmuvisor.arch.cores import Core


class ScenarioError(ValueError):
    """A scenario that cannot be run: one line, with the file, the key, what is wrong and what was expected."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activity:
    """What a thread does that is described by rates, not by code (linux/activity.py)."""

    rates: tuple[tuple[int, int], ...]
    """Pairs of an event's number and how often it happens in a millisecond, 1 to `MAX_RATE`; ascending by number."""
    user: int
    """How many of a thousand events are at EL0."""
    burst: int
    """Nanoseconds that it runs before it sleeps; 0 for a thread that never does."""
    pause: int
    """Nanoseconds that it sleeps; 0 exactly where `burst` is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostSpec:
    """The host: 1 to 128 CPUs."""

    cpus: tuple[Core, ...]
    """By CPU number, its core, which has PMUv3."""
    tick: int
    """Period of the multiplexing timer (perf_event_mux_interval_ms), ns."""
    slice: int
    """How long a thread runs before another one's turn, ns."""
    max_guest_counters: int
    """The PMUv3 driver's boot parameter, 0 to 31: no guest gets more event counters. 31 is no limit."""

    @property
    def cores(self) -> tuple[Core, ...]:
        """The kinds of cores, each once, in the order of their first CPU: a PMU (struct arm_pmu) for each."""
        return tuple(dict.fromkeys(self.cpus))

    def mask_of(self, core: Core) -> int:
        """Return the CPUs that are of `core` (arm_pmu.supported_cpus)."""
        return sum(1 << c for c, of in enumerate(self.cpus) if of == core)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VmSpec:
    """A VM, either with a real guest (`activity` is None) or with vCPUs that are described by rates."""

    name: str
    guest: str
    """`busy`, one of `guests.BUILTIN`, `linux`, or the path of a file."""
    vcpus: int
    core: Core
    """The PMU that the VM is tied to (KVM_ARM_VCPU_PMU_V3_SET_PMU): a core of the host."""
    cpus: tuple[int, ...]
    """By vCPU, the mask of the CPUs that it may use. On one of another core than `core` it fails to enter its guest."""
    counters: int
    """Event counters of the guest, which `core` can give it and `max_guest_counters` allows."""
    design: str
    """One of `board.machine.DESIGNS`."""
    runs_anywhere: bool
    """Its vCPUs enter their guest on every CPU of the host: of `fixed-counters-only`, which has all PMUs, and of
    `emulated` where no PMU was asked for, whose counters then stop on CPUs of another core."""
    fgt: bool
    """The host uses fine-grained traps for it, where the core has them."""
    spe: bool
    """Its guest has SPE; all CPUs of the host do, and the same. Never of `busy`."""
    activity: Activity | None
    memory: int
    """Bytes of RAM; 0 for `busy`."""
    kernel: Path | None
    initrd: Path | None
    append: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task of the host's: a table `task` with `number` n > 1 makes n of them, called name-0 to name-(n-1)."""

    name: str
    cpus: int
    """The mask of the CPUs that it may use."""
    activity: Activity


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventSpec:
    """An event to count."""

    name: str
    """As the Arm ARM calls it, or its number in hexadecimal."""
    number: int
    """PMEVTYPER<n>_EL0.evtCount, 16 bits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerfSpec:
    """A session of the host's perf. Exactly one of `cpus`, `tasks` and `vm` says what it measures.

    Of a CPU, the groups are opened on each CPU of the mask, on that one's PMU. Of threads, on each of `cores`.
    """

    name: str
    groups: tuple[tuple[EventSpec, ...], ...]
    """Each fits the PMU of each of `cores` when that has nothing else to do; an event alone is a group of one."""
    cpus: int
    """The mask of the CPUs, or 0."""
    tasks: tuple[int, ...]
    """Indexes into `Scenario.tasks`, or none."""
    vm: int | None
    """Index into `Scenario.vms`: all its vCPU threads."""
    cores: tuple[Core, ...]
    """The PMUs that the session's events are opened on, in the order of `HostSpec.cores`."""
    pinned: bool
    """perf_event_attr.pinned of each group's leader."""
    period: int
    """perf_event_attr.sample_period of each event, 1 to 2^31 - 1; 0 for a session that only counts."""
    exclude_user: bool
    exclude_kernel: bool
    exclude_guest: bool
    exclude_host: bool
    long: bool
    """perf_event_attr.config1:0: counters of 64 bits."""
    start: int
    """When it is opened, ns."""
    stop: int
    """When it is read and closed, ns: above `start`, at most the scenario's duration."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeSpec:
    """A profiling session of the host's SPE driver, opened on each CPU of `cpus`, or else for each of `tasks`."""

    name: str
    cpus: int
    """The mask of the CPUs, or 0."""
    tasks: tuple[int, ...]
    """Indexes into `Scenario.tasks`, or none."""
    period: int
    """perf_event_attr.sample_period, operations, 1 to 2^32 - 1, before the driver rounds it."""
    jitter: bool
    exclude_user: bool
    exclude_kernel: bool
    buffer: int
    """Bytes of each AUX buffer, a power of two."""
    read: bool
    """Somebody reads the buffer as soon as there is something to read; else nobody ever does."""
    start: int
    stop: int
    """As of `PerfSpec`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """A scenario as a whole: at least one VM or task."""

    path: Path
    duration: int
    """Nanoseconds, 1 to 10^12."""
    seed: int
    """32 bits."""
    host: HostSpec
    vms: tuple[VmSpec, ...]
    tasks: tuple[TaskSpec, ...]
    perf: tuple[PerfSpec, ...]
    spe: tuple[SpeSpec, ...]
    kinds: tuple[int, ...]
    """Every event that a thread makes or a session counts, INST_RETIRED and CPU_CYCLES in any case; ascending, at most
    `MAX_KINDS`."""


MAX_RATE = 7_000_000
"""Events in a millisecond: what keeps the times to an overflow below 2^63 (linux/activity.py)."""
MAX_KINDS = 16
MAX_SPE_SESSIONS = 255
"""Of the driver's events, each on a CPU or a task (`linux.host.NO_SESSION` is none)."""
