"""A world whose every step a test takes itself, for the tests of kvm/: host events, vCPUs of any design, a clock.

What was executed where is noted beside the model: in `PerfEvent.seen` for host events, in `Machine.guest` for guests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pmuvisor import records
from pmuvisor.arch import pmu, sysreg
from pmuvisor.arch.cores import core, make_pe
from pmuvisor.arch.events import CHAIN, CPU_CYCLES, INST_RETIRED
from pmuvisor.kvm import access, emulated, world
from pmuvisor.kvm.vcpu import PARTITIONED, Vcpu
from pmuvisor.kvm.world import World
from pmuvisor.linux import perf, sched
from pmuvisor.linux.host import (
    ANY_CPU,
    NO_COUNTER,
    NO_EVENT,
    NO_TASK,
    NO_VCPU,
    STATE_ACTIVE,
    STATE_INACTIVE,
    TASK_RUNNABLE,
    PerfEvent,
)

EL0, EL1, EL2 = 0, 1, 2
CYCLE = 1 << 31
LD_RETIRED = 0x06
HOST_EVENTS = 40
"""The first events of a machine are for the host; those after them are the vCPUs'."""


@dataclass
class Machine:
    """A world with a clock, and what its events and guests ought to have counted."""

    cores: list[str]
    vms: list[tuple[int, int]]
    """Of each VM its event counters, and its number of vCPUs; all of it on PMU 0."""
    host_tasks: int = 0
    design: int = PARTITIONED
    pmuver: int = 6
    denied: Iterable[int] = ()
    supported_pmus: int = 1
    events: int = 0
    now: int = 0
    guest: list[dict[int, int]] = field(default_factory=list)
    """By vCPU and event number, what its counters ought to show."""

    def __post_init__(self) -> None:
        kinds = sorted(set(self.cores), key=self.cores.index)
        vcpus = sum(number for _, number in self.vms)
        cores = [core(name) for name in self.cores]
        counters = max(c.event_counters for c in cores)
        denied = list(self.denied)
        sizes = {
            "cpus": len(cores),
            "cpu_words": 1,
            "kinds": 0,
            "tasks": vcpus + self.host_tasks,
            "events": HOST_EVENTS + vcpus * (counters + 1),
            "context_events": HOST_EVENTS,
            "vms": len(self.vms),
            "vcpus": vcpus,
            "filter_words": max((event >> 6 for event in denied), default=-1) + 1,
            "event_counters": counters,
            "counter_width": 64,
            "inflight": 2,
            "spe_sessions": 2,
        }
        self.world = records.new(World, sizes, checked=True)
        self.host = self.world.host
        for c, of in enumerate(cores):
            world.boot_cpu(self.host.cpus[c], make_pe(of, range(64)), kinds.index(self.cores[c]))
        v = 0
        for number, (of_guest, of_vm) in enumerate(self.vms):
            vm = self.world.vms[number]
            vm.design, vm.use_fgt, vm.nr_counters, vm.pmuver = self.design, 1, of_guest, self.pmuver
            vm.supported_pmus, vm.filter_words = self.supported_pmus, sizes["filter_words"]
            for event in denied:
                vm.denied[event >> 6] |= 1 << (event & 63)
            for _ in range(of_vm):
                self.world.vm_of[v] = number
                vcpu = self.world.vcpus[v]
                vcpu.task, vcpu.pmcr, vcpu.first_event = v, 1 << 6, HOST_EVENTS + v * (counters + 1)
                v += 1
        for number, task in enumerate(self.host.tasks):
            task.preempt_notifier = number if number < vcpus else NO_VCPU
            task.allowed[0] = (1 << len(cores)) - 1
        self.guest = [dict.fromkeys((INST_RETIRED, CPU_CYCLES), 0) for _ in range(vcpus)]

    # ---- host events ----

    def open(self, **attributes: int) -> int:
        number = self.events
        event = self.host.events[number]
        event.cpu, event.task, event.leader, event.next_sibling = ANY_CPU, NO_TASK, number, NO_EVENT
        event.idx, event.state = NO_COUNTER, STATE_INACTIVE
        for name, value in attributes.items():
            setattr(event, name, value)
        at = next(c for c, cpu in enumerate(self.host.cpus) if cpu.pmu == event.pmu)
        assert perf.perf_event_open(self.host, at, number) == 0
        perf.perf_install_in_context(self.host, number, self.now)
        self.events += 1
        return number

    def close(self, number: int) -> None:
        perf.perf_remove_from_context(self.host, number, self.now)

    def event(self, number: int) -> PerfEvent:
        perf.perf_event_read(self.host, number, self.now)
        return self.host.events[number]

    def event_of(self, v: int, i: int) -> PerfEvent:
        """Return the perf event of a vCPU's counter `i`, of which 31 is the cycle counter."""
        return self.host.events[emulated.event_of(self.world.vcpus[v], i)]

    # ---- what runs ----

    def wake(self, number: int, c: int = 0) -> None:
        self.host.tasks[number].state = TASK_RUNNABLE
        sched.enqueue_task(self.host, c, number)

    def switch(self, c: int, sleep: bool = False) -> int:
        """Take the task off CPU `c` and let the next one come; return that."""
        if sleep and self.host.cpus[c].current != NO_TASK:
            sched.go_to_sleep(self.host, c)
        world.switch_out(self.world, c, self.now)
        return world.switch_in(self.world, c, self.now)

    def run(self, number: int, c: int = 0) -> int:
        """Let task `number`, which sleeps, run on CPU `c`, after whatever did."""
        self.wake(number, c)
        return self.switch(c, sleep=True)

    def resident(self, c: int) -> int:
        current = self.host.cpus[c].current
        return NO_VCPU if current == NO_TASK else self.host.tasks[current].preempt_notifier

    def execute(self, c: int, el: int, instructions: int) -> None:
        """Instructions, and as many cycles, on CPU `c`: of the host at EL2 or EL0, or of the guest that is there.

        In as many pieces as it takes for an interrupt to come with the very instruction that makes a counter overflow.
        """
        cpu = self.host.cpus[c]
        while instructions:
            if self._guest_on(c, el):
                world.vcpu_enter(self.world, c, self.resident(c), self.now)
            counting = pmu.count_pmu_events(cpu.pe, el) & cpu.pe.inten
            rooms = [self._room(cpu.pe, i) for i in range(33) if counting >> i & 1]
            amount = min([instructions, *rooms])
            self._piece(c, el, amount)
            instructions -= amount

    @staticmethod
    def _room(pe: pmu.Pe, i: int) -> int:
        """Return after how many events of its own, or of the lower neighbour that it chains, a counter overflows."""
        room = pmu.counter_room(pe, i)
        if i < 31 and pe.evtyper[i] & 0xFFFF == CHAIN:
            return ((room - 1) << 32) + pmu.counter_room(pe, i - 1)
        return room

    def execute_late(self, c: int, el: int, instructions: int) -> None:
        """As `execute`, but an interrupt comes only after all of it."""
        if self._guest_on(c, el):
            world.vcpu_enter(self.world, c, self.resident(c), self.now)
        self._piece(c, el, instructions)

    def _guest_on(self, c: int, el: int) -> bool:
        return self.resident(c) != NO_VCPU and el < EL2

    def _piece(self, c: int, el: int, instructions: int) -> None:
        cpu, in_guest = self.host.cpus[c], self._guest_on(c, el)
        for event in (INST_RETIRED, CPU_CYCLES):
            pmu.pmu_event(cpu.pe, el, event, instructions)
        pmu.increment_cycle_counter(cpu.pe, pmu.count_pmu_events(cpu.pe, el), instructions)
        self._note(c, el, in_guest, instructions)
        if in_guest:
            world.vcpu_exit(self.world, c, self.resident(c))
        if pmu.check_for_pmu_overflow(cpu.pe):
            world.handle_irq(self.world, c, self.resident(c))
        self.now += instructions

    def _note(self, c: int, el: int, in_guest: bool, instructions: int) -> None:
        if in_guest:
            for counted in self.guest[self.resident(c)]:
                self.guest[self.resident(c)][counted] += instructions
        for event in self.host.events:
            wanted = not (
                (event.exclude_guest if in_guest else event.exclude_host)
                or (event.exclude_user if el == EL0 else event.exclude_kernel)
            )
            of_this = event.cpu == c or (event.task != NO_TASK and event.task == self.host.cpus[c].current)
            counts = event.attached == 1 and event.state == STATE_ACTIVE and event.config in (INST_RETIRED, CPU_CYCLES)
            if counts and wanted and of_this:
                event.seen += instructions

    # ---- what a guest does ----

    def try_access(self, c: int, name: str, write: int, value: int = 0, el: int = EL1) -> int:
        """The guest on CPU `c` reads or writes a PMU register; return how that went, once it is not AGAIN."""
        v, key = self.resident(c), sysreg.BY_NAME[name]
        world.vcpu_enter(self.world, c, v, self.now)
        outcome = access.AGAIN
        while outcome == access.AGAIN:
            outcome = access.guest_access(self.world, c, v, el, key, write, value, self.now)
        world.vcpu_exit(self.world, c, v)
        return outcome

    def access(self, c: int, name: str, write: int, value: int = 0) -> int:
        """The guest on CPU `c` reads or writes at EL1 a PMU register that it has; return what it read."""
        outcome = self.try_access(c, name, write, value)
        assert outcome in (access.DIRECT, access.TRAPPED), (name, outcome)
        return self.world.vcpus[self.resident(c)].value

    def read(self, name: str, c: int = 0) -> int:
        return self.access(c, name, 0)

    def write(self, name: str, value: int, c: int = 0) -> None:
        self.access(c, name, 1, value)

    def irq_level(self, c: int = 0) -> int:
        """Enter the guest and return the level of its PMU interrupt."""
        v = self.resident(c)
        world.vcpu_enter(self.world, c, v, self.now)
        world.vcpu_exit(self.world, c, v)
        return self.world.vcpus[v].irq_level

    def program_guest(self, c: int) -> None:
        """Counter 0, if there is one, counts instructions, the cycle counter cycles; both from now on."""
        if self.world.vms[self.world.vm_of[self.resident(c)]].nr_counters:
            self.access(c, "PMEVTYPER0_EL0", 1, INST_RETIRED)
        self.access(c, "PMCNTENSET_EL0", 1, 1 | CYCLE)
        self.access(c, "PMCR_EL0", 1, 1 | 1 << 6)

    def guest_counts(self, c: int) -> dict[int, int]:
        return {
            INST_RETIRED: self.access(c, "PMEVCNTR0_EL0", 0),
            CPU_CYCLES: self.access(c, "PMCCNTR_EL0", 0),
        }


def saved_counts(vcpu: Vcpu) -> dict[int, int]:
    return {INST_RETIRED: vcpu.evcntr[0], CPU_CYCLES: vcpu.ccntr}
