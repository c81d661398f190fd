"""Worlds in time for the tests of kvm/timeline: hosts of some cores, vCPU threads and tasks that run by rates."""

from __future__ import annotations

from dataclasses import dataclass, field

from pmuvisor import records
from pmuvisor.arch.cores import core, make_pe, make_spe
from pmuvisor.arch.events import BR_RETIRED, CPU_CYCLES, INST_RETIRED
from pmuvisor.arch.sysreg import PMSCR_E0SPE, PMSCR_E1SPE
from pmuvisor.kvm import timeline, world
from pmuvisor.kvm.timeline import Timeline
from pmuvisor.kvm.vcpu import PARTITIONED
from pmuvisor.linux import arm_spe, perf
from pmuvisor.linux.activity import NEVER
from pmuvisor.linux.host import (
    ANY_CPU,
    NO_COUNTER,
    NO_EVENT,
    NO_TASK,
    NO_VCPU,
    STATE_INACTIVE,
    PerfEvent,
    SpeSession,
)

KINDS = (INST_RETIRED, CPU_CYCLES, BR_RETIRED)
MS = 1_000_000


@dataclass
class Lab:
    """A timeline under construction, and then running. Tasks 0 and up run the vCPUs, the rest the host's programs."""

    cores: list[str]
    vcpus: int = 0
    programs: int = 0
    guest_counters: int = 3
    design: int = PARTITIONED
    events: int = 24
    filter_words: int = 0
    slice_ms: int = 3
    mux_ms: int = 4
    t: Timeline = field(init=False)
    sizes: dict[str, int] = field(init=False)
    opened: int = 0
    profiled: int = 0

    def __post_init__(self) -> None:
        cpus, tasks = len(self.cores), self.vcpus + self.programs
        counters = max(core(name).event_counters for name in self.cores)
        self.sizes = {"cpus": cpus, "cpu_words": (cpus + 31) // 32, "tasks": tasks}
        self.sizes |= {"events": self.events + self.vcpus * (counters + 1)}
        self.sizes |= {
            "context_events": self.events + counters + 1,
            "vms": 1,
            "vcpus": max(1, self.vcpus),
            "filter_words": self.filter_words,
        }
        self.sizes |= {"event_counters": counters, "counter_width": 64, "kinds": len(KINDS), "entries": cpus + tasks}
        self.sizes |= {"inflight": 4, "spe_sessions": 2}
        self.sizes |= {"executed": max(1, self.vcpus) * len(KINDS)}
        self.t = records.new(Timeline, self.sizes)
        for number, kind in enumerate(KINDS):
            self.t.kinds[number] = kind
        for c, name in enumerate(self.cores):
            self._make_cpu(c, name)
        vm = self.t.world.vms[0]
        vm.design, vm.use_fgt, vm.nr_counters, vm.pmuver = self.design, 1, self.guest_counters, 6
        vm.supported_pmus = 1
        for v in range(self.vcpus):
            guest = self.t.world.vcpus[v]
            guest.task, guest.first_event, guest.reload_pmu = v, self.events + v * (counters + 1), 1
            # What a guest has that counts its instructions and cycles all the time.
            guest.evtyper[0], guest.cnten, guest.pmcr = INST_RETIRED, 1 | 1 << 31, 1 | 1 << 6
        self.t.slice_ns, self.t.mux_ns, self.t.cpu_count = self.slice_ms * MS, self.mux_ms * MS, cpus
        for entry in range(cpus + tasks):
            self.t.queue[entry] = self.t.place[entry] = entry
            self.t.due[entry] = NEVER
        for number, task in enumerate(self.t.world.host.tasks):
            task.preempt_notifier = number if number < self.vcpus else NO_VCPU
            task.user = 1000

    def _make_cpu(self, c: int, name: str) -> None:
        of = core(name)
        number = sorted(set(self.cores), key=self.cores.index).index(name)
        world.boot_cpu(self.t.world.host.cpus[c], make_pe(of, range(64)), number)
        world.boot_spu(self.t.world.host.cpus[c], make_spe(of), c + 1)
        self.t.mhz[c] = of.mhz
        self.t.mux_at[c] = self.t.mux_ns or self.mux_ms * MS

    def task(
        self, number: int, *, on: int, ipms: int = 1_000_000, user: int = 1000, burst: int = 0, pause: int = 0
    ) -> None:
        """Let a task begin at time 0: `on` is the mask of its CPUs, `ipms` its instructions in a millisecond."""
        task = self.t.world.host.tasks[number]
        for word in range(len(task.allowed)):
            task.allowed[word] = on >> (32 * word) & 0xFFFF_FFFF
        task.rate[0], task.rate[2], task.user = ipms, ipms // 4, user
        task.burst = task.burst_left = burst
        task.pause = pause
        task.cpu = (on & -on).bit_length() - 1
        timeline.schedule(self.t, len(self.cores) + number, 0)

    def open(self, config: int, **attributes: int) -> int:
        number, host = self.opened, self.t.world.host
        event = host.events[number]
        event.cpu, event.task, event.leader, event.next_sibling = ANY_CPU, NO_TASK, number, NO_EVENT
        event.idx, event.state, event.config = NO_COUNTER, STATE_INACTIVE, config
        for name, value in attributes.items():
            setattr(event, name, value)
        at = next(c for c, cpu in enumerate(host.cpus) if cpu.pmu == event.pmu)
        assert perf.perf_event_open(host, at, number) == 0
        perf.perf_install_in_context(host, number, self.t.now)
        for c in range(len(self.cores)):
            timeline.plan(self.t, c)
        self.opened += 1
        return number

    def profile(
        self,
        *,
        period: int,
        levels: int = PMSCR_E0SPE | PMSCR_E1SPE,
        jitter: int = 0,
        buffer: int = 1 << 20,
        **more: int,
    ) -> int:
        """Open an SPE session for the cpu or the task in `more`."""
        number, host = self.profiled, self.t.world.host
        session = host.spe_sessions[number]
        session.cpu, session.task, session.pmscr, session.period_left = ANY_CPU, NO_TASK, levels, period
        session.pmsirr = arm_spe.sanitised_pmsirr(host.cpus[0], period, jitter)
        session.base, session.size, session.watermark, session.prompt = (number + 1) << 28, buffer, buffer >> 1, 1
        for name, value in more.items():
            setattr(session, name, value)
        arm_spe.open_session(host, number)
        self.profiled += 1
        return number

    def session(self, number: int) -> SpeSession:
        """Close an SPE session and return it."""
        arm_spe.close_session(self.t.world.host, number)
        return self.t.world.host.spe_sessions[number]

    def run(self, ms: int) -> None:
        timeline.run_until(self.t, ms * MS)

    def event(self, number: int) -> PerfEvent:
        perf.perf_event_read(self.t.world.host, number, self.t.now)
        return self.t.world.host.events[number]

    def guest_counts(self, v: int) -> tuple[int, int]:
        """What the guest would read: from the hardware while it is loaded, else what was saved."""
        for c, cpu in enumerate(self.t.world.host.cpus):
            if timeline.resident(self.t, c) == v:
                return cpu.pe.evcntr[0], cpu.pe.ccntr
        return self.t.world.vcpus[v].evcntr[0], self.t.world.vcpus[v].ccntr

    def executed(self, v: int) -> tuple[int, int]:
        return self.t.executed[v * len(KINDS)], self.t.executed[v * len(KINDS) + 1]
