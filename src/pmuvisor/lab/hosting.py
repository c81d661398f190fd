"""Run a scenario: a host of several CPUs with its tasks and perf sessions, and VMs whose guests are code or rates.

One virtual time for all. What is due first happens first (kvm/timeline.py); a guest that has code is executed by its
board for a quantum at a time, so that what two vCPUs do to each other, by memory or by an interrupt, is seen within a
quantum. Nothing here depends on anything but the scenario: the same one gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pmuvisor import records
from pmuvisor.arch import events
from pmuvisor.arch.cores import SPE_INFLIGHT, SPE_LOG_BYTES, Core, make_pe, make_spe
from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED
from pmuvisor.arch.sysreg import CYCLE, PMSCR_E0SPE, PMSCR_E1SPE
from pmuvisor.arch.unpredictable import choices_reached
from pmuvisor.board.clock import COUNTED_BY_KVM
from pmuvisor.board.hosted import HostedMachine
from pmuvisor.board.lanes import COUNTED_EVENTS
from pmuvisor.board.machine import DESIGNS, Config, CountError, Kvm, Outcome, Status
from pmuvisor.board.place import HostCpu
from pmuvisor.board.vmm import create_irqchip, create_vm
from pmuvisor.kvm import timeline, world
from pmuvisor.kvm.timeline import Timeline
from pmuvisor.kvm.uapi import System
from pmuvisor.kvm.vcpu import EMULATED, FIXED_COUNTERS_ONLY, Vcpu, Vm
from pmuvisor.lab import run
from pmuvisor.lab.compiled_host import CompiledHost
from pmuvisor.lab.costs import CostTable, built_in
from pmuvisor.lab.scenario import Activity, PerfSpec, Scenario, SpeSpec, VmSpec
from pmuvisor.linux import arm_spe, perf, sched
from pmuvisor.linux.activity import NEVER
from pmuvisor.linux.host import (
    ANY_CPU,
    NO_COUNTER,
    NO_EVENT,
    NO_TASK,
    NO_VCPU,
    STATE_ERROR,
    STATE_INACTIVE,
    TASK_SLEEPING,
    PerfEvent,
)

QUANTUM_NS = 50_000
"""How long a guest's code is executed before another CPU's turn."""
AUX_ROOM = 1 << 28
"""From one AUX buffer to the next, in the kernel's memory: a model."""
PROGRESS_NS = 1_000_000
"""Virtual time between two calls of `progress`, and after which what guests printed is shown."""


# ---- results ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class VmResult:
    """One VM of a scenario."""

    name: str
    guest: str
    core: str
    design: str
    fgt: bool
    counters: int
    vcpus: int
    status: str
    reason: str
    panic: str
    """What the guest said when its kernel panicked, if it did (`run.panic_of`)."""
    console: str
    console_dropped: int
    instructions: int
    """What its vCPUs executed: counted of code, computed of rates."""
    run_seconds: float
    """Virtual time that its vCPUs spent on CPUs, together."""
    overhead_cycles: int
    """What virtualization took of that time (docs/costs.md), in cycles; 0 of a guest of rates, which feels none."""
    overhead_seconds: float
    migrations: int
    ledger: dict[str, int]
    counted: tuple[str, ...]
    """Of a guest of rates, what its counters show, a line for each, with what they ought to show."""
    unpredictable: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SessionResult:
    """One event of a perf session on one kind of core, over all CPUs or threads that it was opened on."""

    name: str
    """SESSION:EVENT, or SESSION:CORE/EVENT/ where the session is on several kinds of cores."""
    count: int
    true: int
    """What happened, while it was enabled, of what it is to count."""
    enabled: int
    """Nanoseconds, over all CPUs or threads."""
    running: int
    samples: int
    failed: int
    """On how many CPUs or threads it ended in error: a pinned event that had no counter."""

    @property
    def scaled(self) -> int:
        """Return the count as perf estimates it, for an event that did not run all the time."""
        return self.count * self.enabled // self.running if self.running else 0

    @property
    def error(self) -> float | None:
        """Return by how much that is off, as a share of the truth; None where there is nothing to compare."""
        return (self.scaled - self.true) / self.true if self.true and self.running else None

    def as_json(self) -> dict[str, Any]:
        """Return it as an object for JSON."""
        return dataclasses.asdict(self) | {"scaled": self.scaled, "error": self.error}


@dataclasses.dataclass(frozen=True)
class SpeResult:
    """One session of the host's SPE driver, over all CPUs or tasks that it was opened on."""

    name: str
    records: int
    """In its buffers, all together."""
    bytes: int
    """What went through its buffers: records, and padding of the driver's."""
    interrupts: int
    """How often PMBIRQ was the driver's."""
    truncated: int
    """How many AUX records are flagged: data was lost, and the event is disabled."""
    lost: int
    """Records that were formed and are in no buffer."""
    padding: int
    """Bytes."""
    woken: int
    """How often the readers were."""


@dataclasses.dataclass(frozen=True)
class HostingResult:
    """A scenario that was run."""

    scenario: str
    virtual_seconds: float
    wall_seconds: float
    interrupted: bool
    vms: tuple[VmResult, ...]
    host_perf: tuple[SessionResult, ...]
    host_spe: tuple[SpeResult, ...]
    host: dict[str, int]
    """What the host did: context switches, PMU interrupts, rotations, reschedules of its events for a guest."""

    def as_json(self) -> dict[str, Any]:
        """Return the result as an object for JSON."""
        return {
            "scenario": self.scenario,
            "virtual_seconds": self.virtual_seconds,
            "wall_seconds": self.wall_seconds,
            "interrupted": self.interrupted,
            "vms": [dataclasses.asdict(vm) for vm in self.vms],
            "host_perf": [session.as_json() for session in self.host_perf],
            "host_spe": [dataclasses.asdict(session) for session in self.host_spe],
            "host": self.host,
        }


@dataclasses.dataclass
class _Vm:
    """A VM while it runs. Its vCPUs are threads `first` and up."""

    spec: VmSpec
    first: int
    machine: HostedMachine | None = None
    places: list[HostCpu] = dataclasses.field(default_factory=list)
    console: run.Console = dataclasses.field(default_factory=run.Console)
    outcome: Outcome | None = None

    def threads(self) -> range:
        return range(self.first, self.first + self.spec.vcpus)


# ---- the host ---------------------------------------------------------------------------------------------


class Hosting:
    """A scenario, ready to run. Raises what `run.prepare` raises, before anything has been started.

    `compiled` runs it as machine code (lab/compiled_host.py), with the same results: RequestError for a scenario with a
    guest that has code. `costs` is what virtualization takes of a guest's time: the built-in table unless given.
    """

    def __init__(
        self,
        scenario: Scenario,
        show: Callable[[str, bytes], None] | None = None,
        *,
        compiled: bool = False,
        costs: CostTable | None = None,
    ) -> None:
        if compiled:
            _check_no_code(scenario)
        self.scenario = scenario
        self._costs = costs or built_in()
        self.interrupted = False
        """Set, from a signal handler too, to end the run."""
        self._vms: list[_Vm] = []
        first = 0
        for spec in scenario.vms:
            self._vms.append(_Vm(spec, first))
            first += spec.vcpus
        self._vcpus = first
        self._counters = max(core.event_counters for core in scenario.host.cpus)
        emulated = any(DESIGNS[vm.design] in (EMULATED, FIXED_COUNTERS_ONLY) for vm in scenario.vms)
        self._pmcs = self._counters + 1 if emulated else 0
        """Perf events of a vCPU for its own counters; those of all vCPUs come before those of sessions."""
        self.t: Timeline = records.new(Timeline, self._sizes())
        self.host = self.t.world.host
        self._events = self._vcpus * self._pmcs
        self._opened: dict[str, list[tuple[str, list[int]]]] = {}
        self._closed: dict[str, list[SessionResult]] = {}
        self._profiles: dict[str, list[int]] = {}
        """Of each session of SPE its numbers in `Host.spe_sessions`, from when it is opened."""
        self._profiled: dict[str, SpeResult] = {}
        self._set_up(show)
        self._compiled = CompiledHost(self.t, self._sizes()) if compiled else None

    # ---- building ----

    def _sizes(self) -> dict[str, int]:
        s = self.scenario
        tasks = self._vcpus + len(s.tasks)
        events = sum(len(group) * self._targets(spec) for spec in s.perf for group in spec.groups)
        return {
            "cpus": len(s.host.cpus),
            "cpu_words": (len(s.host.cpus) + 31) // 32,
            "tasks": tasks,
            "events": max(1, events + self._vcpus * self._pmcs),
            "context_events": max(1, self._pmcs + sum(len(spec.groups) * len(spec.cores) for spec in s.perf)),
            "vms": max(1, len(s.vms)),
            "vcpus": max(1, self._vcpus),
            "filter_words": 0,
            "event_counters": self._counters,
            "counter_width": 64,
            "inflight": SPE_INFLIGHT,
            "spe_sessions": sum(spec.cpus.bit_count() + len(spec.tasks) for spec in s.spe),
            "kinds": len(s.kinds),
            "entries": len(s.host.cpus) + tasks,
            "executed": max(1, self._vcpus) * len(s.kinds),
        }

    def _targets(self, spec: PerfSpec) -> int:
        """Return on how many CPUs or threads a session opens each of its groups, all kinds of cores together."""
        if spec.cpus:
            return spec.cpus.bit_count()
        threads = self.scenario.vms[spec.vm].vcpus if spec.vm is not None else len(spec.tasks)
        return threads * len(spec.cores)

    def _set_up(self, show: Callable[[str, bytes], None] | None) -> None:
        t, s = self.t, self.scenario
        for kind, event in enumerate(s.kinds):
            t.kinds[kind] = event
        t.cpu_count, t.slice_ns, t.mux_ns, t.quantum_ns = len(s.host.cpus), s.host.slice, s.host.tick, QUANTUM_NS
        for entry in range(len(t.queue)):
            t.queue[entry] = t.place[entry] = entry
            t.due[entry] = NEVER
        for c, core in enumerate(s.host.cpus):
            self._set_up_cpu(c, core)
        kvm = System(t.world, vcpu_events=self._pmcs)
        for vm in self._vms:
            self._set_up_vm(kvm, vm, show)
        for number, spec in enumerate(s.tasks):
            self._set_up_task(self._vcpus + number, spec.cpus, spec.activity)
        self._start_threads()

    def _set_up_cpu(self, c: int, core: Core) -> None:
        pe = make_pe(core, COUNTED_EVENTS)
        world.boot_cpu(self.host.cpus[c], pe, self.scenario.host.cores.index(core))
        world.boot_spu(self.host.cpus[c], make_spe(core), self.scenario.seed + c + 1)
        self.t.mhz[c] = core.mhz
        self.t.mux_at[c] = self.scenario.host.tick

    def _set_up_vm(self, kvm: System, vm: _Vm, show: Callable[[str, bytes], None] | None) -> None:
        """Do as the VM's VMM, whose thread is on a CPU of its core: a VM that runs anywhere has not asked for a PMU."""
        spec, of = vm.spec, self.t.world
        kvm.use_fgt = int(spec.fgt)
        kvm.cpu = self.scenario.host.cpus.index(spec.core)
        pmu = None if spec.runs_anywhere else kvm.probe_armpmu().type
        check_counters(spec)
        made = create_vm(kvm, spec.vcpus, DESIGNS[spec.design], spec.counters, pmu, spe=spec.spe)
        for v, cpus in zip(vm.threads(), spec.cpus, strict=True):
            if spec.activity is not None:
                self._program_guest(of.vcpus[v], spec.counters)
            self._set_up_task(v, cpus, spec.activity, v)
        if spec.activity is None:
            create_irqchip(made)
            self._set_up_machine(vm, made.record, show)

    @staticmethod
    def _program_guest(guest: Vcpu, counters: int) -> None:
        """A guest that is described by rates counts its cycles all the time, and its instructions if it can."""
        guest.pmcr |= 1
        guest.cnten = 1 << 31
        guest.inten = guest.ovs = guest.ccntr = 0
        if counters:
            guest.cnten |= 1
            guest.evtyper[0], guest.evcntr[0] = INST_RETIRED, 0

    def _set_up_machine(self, vm: _Vm, guest: Vm, show: Callable[[str, bytes], None] | None) -> None:
        spec = vm.spec
        request = run.Request(
            guest=spec.guest,
            core=spec.core,
            design=spec.design,
            fgt=spec.fgt,
            counters=spec.counters,
            kernel=spec.kernel,
            initrd=spec.initrd,
            append=spec.append,
            memory=spec.memory,
            vcpus=spec.vcpus,
            spe=spec.spe,
            costs=self._costs,
        )
        if show is not None:
            vm.console = run.Console(lambda data: show(spec.name, data))
        vm.places = [HostCpu(self.t.world, v) for v in vm.threads()]
        kvm = Kvm(guest, vm.places)

        def make(config: Config, output: Callable[[bytes], None]) -> HostedMachine:
            return HostedMachine(config, output, kvm)

        vm.machine = run.prepare_as(make, request, vm.console.write)

    def _set_up_task(self, number: int, cpus: int, of: Activity | None, v: int = NO_VCPU) -> None:
        task = self.host.tasks[number]
        task.preempt_notifier = v
        for word in range(len(task.allowed)):
            task.allowed[word] = cpus >> (32 * word) & 0xFFFF_FFFF
        task.cpu = (cpus & -cpus).bit_length() - 1
        if of is None:
            task.has_code = 1
            return
        rates = dict(of.rates)
        for kind, event in enumerate(self.scenario.kinds):
            task.rate[kind] = rates.get(event, 0)
        task.user, task.burst, task.burst_left, task.pause = of.user, of.burst, of.burst, of.pause

    def _start_threads(self) -> None:
        """Threads start at time 0 in their order; with a seed, in another one and within the first slice."""
        rng = random.Random(self.scenario.seed)
        for number, task in enumerate(self.host.tasks):
            at = rng.randrange(self.t.slice_ns) if self.scenario.seed else 0
            vm = self._vm_of(number)
            if vm is None or vm.machine is None or vm.machine.can_run(number - vm.first):
                timeline.schedule(self.t, self.t.cpu_count + number, at)
            task.state = TASK_SLEEPING

    # ---- running ----

    def run(self, progress: Callable[[int], None] = lambda now: None) -> HostingResult:
        """Run to the end of the scenario, or until `interrupted` is set; `progress` is told the time in ns."""
        begin = time.perf_counter()
        for at, _, act in sorted(self._agenda(), key=lambda item: item[:2]):
            self._advance(at, progress)
            if self.interrupted:
                break
            act()
        self._show_consoles()
        return self._result(time.perf_counter() - begin)

    def _agenda(self) -> Iterator[tuple[int, int, Callable[[], None]]]:
        """Yield what happens from outside, when, and in which order at one time: sessions close before others open."""
        for spec in self.scenario.perf:
            yield spec.start, 1, lambda spec=spec: self._open_session(spec)  # type: ignore[misc]
            yield spec.stop, 0, lambda spec=spec: self._close_session(spec)  # type: ignore[misc]
        for profile in self.scenario.spe:
            yield profile.start, 1, lambda spec=profile: self._open_profile(spec)  # type: ignore[misc]
            yield profile.stop, 0, lambda spec=profile: self._close_profile(spec)  # type: ignore[misc]
        yield self.scenario.duration, 2, lambda: None

    def _advance(self, until: int, progress: Callable[[int], None]) -> None:
        """Let everything happen that is due before `until`, and bring all CPUs to that time."""
        if self._compiled is not None:
            self._compiled.happen_until(until, lambda now: self._goes_on(now, progress))
        else:
            self._happen_until(until, progress)
        if self.interrupted:
            return
        for c in range(self.t.cpu_count):
            self._reach(c, until)
        self.t.now = until
        for c in range(self.t.cpu_count):
            timeline.account(self.t, c, until)

    def _show_consoles(self) -> None:
        for vm in self._vms:
            vm.console.flush()

    def _happen_until(self, until: int, progress: Callable[[int], None]) -> None:
        shown = self.t.now
        while self.t.due[self.t.queue[0]] < until and not self.interrupted:
            self._step()
            if self.t.now - shown >= PROGRESS_NS:
                shown = self.t.now
                self._show_consoles()
                progress(shown)

    def _goes_on(self, now: int, progress: Callable[[int], None]) -> bool:
        progress(now)
        return not self.interrupted

    def _step(self) -> None:
        """The next event happens."""
        entry = self.t.queue[0]
        due = self.t.due[entry]
        self.t.happenings += 1
        if entry >= self.t.cpu_count:
            self.t.now = max(self.t.now, due)
            self._wake(entry - self.t.cpu_count)
        elif self._reach(entry, due):
            self.t.now = max(self.t.now, due)
            if self._only_a_quantum(entry):
                timeline.plan(self.t, entry)
            else:
                self._on_host(entry, lambda: timeline.cpu_event(self.t, entry))

    def _only_a_quantum(self, c: int) -> bool:
        """Tell whether the host has nothing to do on a CPU where a guest's code runs."""
        if self._code_on(c) is None or self.t.slice_end[c] <= self.t.now:
            return False
        return not (timeline.needs_rotation(self.t, c) and self.t.mux_at[c] <= self.t.now)

    def _on_host(self, c: int, act: Callable[[], None]) -> None:
        """Do something on CPU `c` as its host: a guest that is there is left, and whoever is there then is entered."""
        left = self._code_on(c)
        if left is not None:
            vm, number = left
            assert vm.machine is not None
            vm.machine.put(number)
        act()
        self._arrive(c)

    def _arrive(self, c: int) -> None:
        """Enter the guest of the vCPU that CPU `c` has come to, if it has code. That of a VM that is over ends."""
        while True:
            here = self._code_on(c)
            if here is None:
                break
            vm, number = here
            if vm.outcome is None:
                assert vm.machine is not None
                vm.places[number].c = c
                vm.machine.load(number, self.t.mhz[c])
                break
            sched.go_to_sleep(self.host, c)
            timeline.change_task(self.t, c)
        timeline.plan(self.t, c)

    # ---- guests' code ----

    def _vm_of(self, number: int) -> _Vm | None:
        return next((vm for vm in self._vms if number in vm.threads()), None)

    def _code_on(self, c: int) -> tuple[_Vm, int] | None:
        """Return the VM and the vCPU's number in it whose code runs on CPU `c`."""
        current = self.host.cpus[c].current
        if current == NO_TASK or not self.host.tasks[current].has_code:
            return None
        vm = self._vm_of(current)
        assert vm is not None
        return vm, current - vm.first

    def _reach(self, c: int, until: int) -> bool:
        """Execute the guest's code on CPU `c`, if there is any, up to `until`; tell whether it got there."""
        here = self._code_on(c)
        if here is None:
            return True
        vm, number = here
        machine = vm.machine
        assert machine is not None
        while self.t.accounted[c] < until:
            reached, outcome = machine.run_vcpu(number, self.t.accounted[c], until)
            timeline.account(self.t, c, reached)
            vm.outcome = vm.outcome or outcome
            if vm.outcome is not None or not machine.can_run(number):
                self.t.now = max(self.t.now, reached)
                self._on_host(c, lambda: self._leave(c))
                self._arm(vm)
                return False
            self._arm(vm)
        return True

    def _leave(self, c: int) -> None:
        """The vCPU on CPU `c` has nothing to execute: its thread sleeps."""
        self.t.accounted[c] = self.t.now
        sched.go_to_sleep(self.host, c)
        timeline.change_task(self.t, c)

    def _arm(self, vm: _Vm) -> None:
        """Set when the sleeping threads of a VM are to be looked at: now, at its next timer, or never."""
        machine = vm.machine
        assert machine is not None
        timer = machine.next_timer_ns()
        for v in vm.threads():
            if self.host.tasks[v].state == TASK_SLEEPING:
                due = NEVER if timer is None else timer
                if vm.outcome is not None:
                    due = NEVER
                elif machine.can_run(v - vm.first):
                    due = self.t.now
                timeline.schedule(self.t, self.t.cpu_count + v, max(due, self.t.now))

    def _wake(self, number: int) -> None:
        """A thread is due to wake: one whose guest has code only if that has something to do."""
        vm = self._vm_of(number)
        if vm is not None and vm.machine is not None:
            vm.machine.at(self.t.now)
            if vm.outcome is not None or not vm.machine.can_run(number - vm.first):
                self._arm(vm)
                return
        idle = [c for c in range(self.t.cpu_count) if self.host.cpus[c].current == NO_TASK]
        timeline.wake(self.t, number)
        for c in idle:
            if self.host.cpus[c].current != NO_TASK:
                self._arrive(c)

    # ---- perf sessions ----

    def _open_session(self, spec: PerfSpec) -> None:
        rows: dict[tuple[int, int, int], tuple[str, list[int]]] = {}
        for target in self._places_of(spec):
            for g, group in enumerate(spec.groups):
                leader = NO_EVENT
                for e, of in enumerate(group):
                    number = self._open(spec, of.number, leader, target)
                    leader = number if leader == NO_EVENT else leader
                    row = rows.setdefault((g, e, target[0]), (self._row_name(spec, of.name, target[0]), []))
                    row[1].append(number)
        self._opened[spec.name] = [rows[place] for place in sorted(rows)]

    def _row_name(self, spec: PerfSpec, event: str, pmu_number: int) -> str:
        """Return SESSION:EVENT; where the session is on cores of several kinds, with the core, as perf names a PMU."""
        if len(spec.cores) == 1:
            return f"{spec.name}:{event}"
        return f"{spec.name}:{self.scenario.host.cores[pmu_number].name}/{event}/"

    def _places_of(self, spec: PerfSpec) -> list[tuple[int, int, int]]:
        """Return the PMU, CPU and task of each place where a session opens its groups."""
        cores = self.scenario.host.cores
        if spec.cpus:
            return [(self.host.cpus[c].pmu, c, NO_TASK) for c in range(self.t.cpu_count) if spec.cpus >> c & 1]
        threads = [self._vcpus + n for n in spec.tasks] if spec.vm is None else list(self._vms[spec.vm].threads())
        return [(cores.index(core), ANY_CPU, thread) for core in spec.cores for thread in threads]

    def _open(self, spec: PerfSpec, config: int, leader: int, target: tuple[int, int, int]) -> int:
        number = self._events
        self._events += 1
        event = self.host.events[number]
        event.pmu, event.cpu, event.task = target
        event.config, event.leader, event.next_sibling = config, number if leader == NO_EVENT else leader, NO_EVENT
        event.idx, event.state, event.sample_period = NO_COUNTER, STATE_INACTIVE, spec.period
        event.pinned = int(spec.pinned and leader == NO_EVENT)
        event.long = int(spec.long)
        event.exclude_user, event.exclude_kernel = int(spec.exclude_user), int(spec.exclude_kernel)
        event.exclude_guest, event.exclude_host = int(spec.exclude_guest), int(spec.exclude_host)
        at = next(c for c, cpu in enumerate(self.host.cpus) if cpu.pmu == event.pmu)
        result = perf.perf_event_open(self.host, at, number)
        assert result == 0, f"event {config:#x} of {spec.name}: {result}"
        self._with_its_cpu(event, lambda: perf.perf_install_in_context(self.host, number, self.t.now))
        return number

    def _with_its_cpu(self, event: PerfEvent, act: Callable[[], None]) -> None:
        """Do something to an event on the CPU where its context is, as perf's cross call does, if it is on one."""
        c = perf.where_active(self.host, event)
        if c == ANY_CPU:
            act()
        else:
            self._on_host(c, act)

    def _close_session(self, spec: PerfSpec) -> None:
        for _, numbers in self._opened[spec.name]:
            for number in numbers:
                self._with_its_cpu(self.host.events[number], lambda n=number: self._read(n))  # type: ignore[misc]
        self._closed[spec.name] = [self._session_result(*row) for row in self._opened[spec.name]]
        for _, numbers in self._opened[spec.name]:
            for number in numbers:
                event = self.host.events[number]
                self._with_its_cpu(event, lambda n=number: self._remove(n))  # type: ignore[misc]

    def _read(self, number: int) -> None:
        perf.perf_event_read(self.host, number, self.t.now)

    def _remove(self, number: int) -> None:
        perf.perf_remove_from_context(self.host, number, self.t.now)

    def _session_result(self, name: str, numbers: list[int]) -> SessionResult:
        of = [self.host.events[number] for number in numbers]
        return SessionResult(
            name=name,
            count=sum(e.count for e in of),
            true=sum(e.true for e in of),
            enabled=sum(e.total_time_enabled for e in of),
            running=sum(e.total_time_running for e in of),
            samples=sum(e.samples for e in of),
            failed=sum(e.state == STATE_ERROR for e in of),
        )

    # ---- sessions of SPE ----

    def _open_profile(self, spec: SpeSpec) -> None:
        first = sum(map(len, self._profiles.values()))
        cpus = [c for c in range(self.t.cpu_count) if spec.cpus >> c & 1]
        targets = [(c, NO_TASK) for c in cpus] + [(ANY_CPU, self._vcpus + n) for n in spec.tasks]
        self._profiles[spec.name] = list(range(first, first + len(targets)))
        for number, (c, task) in zip(self._profiles[spec.name], targets, strict=True):
            self._init_profile(spec, number, c, task)
            self._with_unit(number, lambda n=number: arm_spe.open_session(self.host, n))  # type: ignore[misc]

    def _init_profile(self, spec: SpeSpec, number: int, c: int, task: int) -> None:
        """Do as arm_spe_pmu_event_init() and arm_spe_pmu_setup_aux(): a reader is woken for each half of the buffer."""
        session = self.host.spe_sessions[number]
        session.cpu, session.task = c, task
        on = self.host.cpus[self.host.tasks[task].cpu if c == ANY_CPU else c]
        session.pmscr = (0 if spec.exclude_user else PMSCR_E0SPE) | (0 if spec.exclude_kernel else PMSCR_E1SPE)
        session.pmsirr = arm_spe.sanitised_pmsirr(on, spec.period, int(spec.jitter))
        session.period_left = spec.period
        session.base, session.size, session.watermark = (number + 1) * AUX_ROOM, spec.buffer, spec.buffer >> 1
        session.prompt = int(spec.read)

    def _with_unit(self, number: int, act: Callable[[], None]) -> None:
        """Do something to a session of SPE on the CPU where it is or can be at once, as perf's cross call does."""
        session = self.host.spe_sessions[number]
        on = (c for c, cpu in enumerate(self.host.cpus) if session.cpu == c or session.task == cpu.current != NO_TASK)
        c = next(on, ANY_CPU)
        if c == ANY_CPU:
            act()
        else:
            self._on_host(c, lambda: self._with_its_unit(c, act))

    def _with_its_unit(self, c: int, act: Callable[[], None]) -> None:
        """Do something with the unit of CPU `c` as the host has it: a vCPU with SPE is put meanwhile.

        A choice: the series says nothing of a session of a CPU that begins or ends while such a vCPU is loaded. The
        driver would program the guest's unit, or KVM, at put, bring back a session that is over.
        """
        v = timeline.resident(self.t, c)
        of = self.t.world
        if v == NO_VCPU or of.vms[of.vm_of[v]].spe == 0:
            act()
            return
        world.vcpu_put(of, c, v, self.t.now)
        act()
        world.vcpu_load(of, c, v, self.t.now)

    def _close_profile(self, spec: SpeSpec) -> None:
        numbers = self._profiles[spec.name]
        for number in numbers:
            self._with_unit(number, lambda n=number: arm_spe.close_session(self.host, n))  # type: ignore[misc]
        self._profiled[spec.name] = self._profile_result(spec.name, numbers)

    def _profile_result(self, name: str, numbers: list[int]) -> SpeResult:
        of = [self.host.spe_sessions[number] for number in numbers]
        written, padding = sum(s.aux_head for s in of), sum(s.padded for s in of)
        records_ = (written - padding) >> SPE_LOG_BYTES
        return SpeResult(
            name=name,
            records=records_,
            bytes=written,
            interrupts=sum(s.interrupts for s in of),
            truncated=sum(s.truncated for s in of),
            lost=sum(s.formed for s in of) - records_,
            padding=padding,
            woken=sum(s.woken for s in of),
        )

    # ---- what came of it ----

    def _result(self, wall: float) -> HostingResult:
        return HostingResult(
            scenario=str(self.scenario.path),
            virtual_seconds=self.t.now / 1e9,
            wall_seconds=wall,
            interrupted=self.interrupted,
            vms=tuple(self._vm_result(number, vm) for number, vm in enumerate(self._vms)),
            host_perf=tuple(row for spec in self.scenario.perf for row in self._closed.get(spec.name, ())),
            host_spe=tuple(self._profiled[spec.name] for spec in self.scenario.spe if spec.name in self._profiled),
            host={
                "switches": sum(cpu.switches for cpu in self.host.cpus),
                "interrupts": self.t.interrupts,
                "rotations": self.t.rotations,
                "rescheduled": sum(v.rescheduled for v in self.t.world.vcpus),
            },
        )

    def _vm_result(self, number: int, vm: _Vm) -> VmResult:
        spec, of = vm.spec, self.t.world
        status, reason = self._status(vm)
        console = vm.console.text()
        panic = run.panic_of(console) if status != Status.POWEROFF else ""
        if vm.machine is not None:
            instructions, ledger = vm.machine.instructions(), vm.machine.ledger()
        else:
            kind = self.scenario.kinds.index(INST_RETIRED)
            kinds = len(self.scenario.kinds)
            instructions = sum(self.t.executed[v * kinds + kind] for v in vm.threads())
            ledger = _ledger([of.vcpus[v] for v in vm.threads()])
        unpredictable = 0
        for cpu in self.host.cpus:
            if (of.vms[number].supported_pmus >> cpu.pmu) & 1:
                unpredictable |= cpu.pe.unpredictable
        return VmResult(
            name=spec.name,
            guest=spec.guest,
            core=spec.core.name,
            design=spec.design,
            fgt=spec.fgt and spec.core.fgt,
            counters=spec.counters,
            vcpus=spec.vcpus,
            status=status,
            reason=run.with_panic(reason, panic),
            panic=panic,
            console=console,
            console_dropped=vm.console.dropped,
            instructions=instructions,
            run_seconds=sum(self.host.tasks[v].runtime for v in vm.threads()) / 1e9,
            overhead_cycles=0 if vm.machine is None else vm.machine.overhead_cycles(),
            overhead_seconds=0.0 if vm.machine is None else vm.machine.overhead_ns() / 1e9,
            migrations=sum(self.host.tasks[v].migrations for v in vm.threads()),
            ledger=ledger,
            counted=tuple(self._counted(vm)) if vm.machine is None else (),
            unpredictable=tuple(choice.name for choice in choices_reached(unpredictable)),
        )

    def _counted(self, vm: _Vm) -> Iterator[str]:
        """Yield what the counters show of a guest without code, which counts all the time."""
        kinds = self.scenario.kinds
        for v in vm.threads():
            for event, i in ((INST_RETIRED, 0), (CPU_CYCLES, CYCLE)):
                if i < vm.spec.counters or i == CYCLE:
                    count = world.counter_value(self.t.world, v, i, self.t.now)
                    happened = self.t.executed[v * len(kinds) + kinds.index(event)]
                    yield f"vCPU {v - vm.first}: {events.name_of(event)} {count:,} of {happened:,}"

    def _status(self, vm: _Vm) -> tuple[str, str]:
        if vm.outcome is not None:
            return str(vm.outcome.status), vm.outcome.reason
        for v in vm.threads():
            if self.t.world.vcpus[v].unsupported_cpu == 1:
                where = f"vCPU {v - vm.first} cannot run on CPU {self.host.tasks[v].cpu}"
                return "fail-entry", f"{where} (KVM_EXIT_FAIL_ENTRY, CPU_UNSUPPORTED)"
        if self.interrupted:
            return str(Status.EXIT), "interrupted"
        return "running", "the scenario's time was over"


def check_counters(spec: VmSpec) -> None:
    """Raise CountError for what the ioctls would refuse: of the designs that a scenario is run under, some can."""
    try:
        Config(spec.core, counters=spec.counters, design=spec.design).guest_counters()
    except CountError as error:
        raise CountError(f"vm {spec.name}, {spec.design}: {error}") from None


def _check_no_code(scenario: Scenario) -> None:
    for spec in scenario.vms:
        if spec.activity is None:
            raise run.RequestError(f"compile: vm {spec.name} runs {spec.guest}: expected busy, a guest without code")


def _ledger(vcpus: list[Vcpu]) -> dict[str, int]:
    """Return what the vCPUs of a guest without code cost, name to count."""
    bill = Counter[str]()
    for v in vcpus:
        bill.update(pmu_direct=v.direct, pmu_trapped=v.trapped)
        bill.update({name: getattr(v, field) for name, field in COUNTED_BY_KVM.items()})
    return dict(bill)
