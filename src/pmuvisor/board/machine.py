"""The machine: vCPUs, memory and devices, run together in one virtual time.

Virtual time is what all vCPUs have executed, one cycle of the core for each instruction, plus the cycles that their
exits and the rest of the ledger cost (board/clock.py), plus the time that passed while every one of them waited. The
vCPUs take turns in slices, so a guest of several sees them share one processor, always in the same order: same inputs,
same bytes out. Not here: what a register access means (kvm/), and what a run is for (lab/).
"""

from __future__ import annotations

import functools
import operator
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pmuvisor.arch import spe, sysreg, traps
from pmuvisor.arch.cores import Core, make_pe
from pmuvisor.board import clock, gicv3, memmap, pl011, psci, timer, vmm
from pmuvisor.board.clock import Bill, Costs
from pmuvisor.board.engine import Action, Engine, GuestMemory, Lane, Stop
from pmuvisor.board.engine_dump import dump
from pmuvisor.board.engine_registers import MPIDR_EL1
from pmuvisor.board.images import Image, Layout
from pmuvisor.board.lanes import COUNTED_EVENTS
from pmuvisor.board.place import HostCpu, OwnCpu
from pmuvisor.board.vpmu import VirtualPmu
from pmuvisor.board.vspe import VirtualSpe
from pmuvisor.kvm import access as door
from pmuvisor.kvm import partitioned
from pmuvisor.kvm.uapi import System, boot
from pmuvisor.kvm.vcpu import EMULATED, FIXED_COUNTERS_ONLY, LAZY, PARTITIONED, Vm

SLICE = 50_000
"""Instructions that a vCPU runs before the next one's turn, where there are several."""
LONG_SLICE = 5_000_000
"""The same where only one can run."""
NEVER = 1 << 62
"""More instructions than any run has."""
EXITS_PER_SLICE = 2_000
"""Device and register accesses that end a slice early, so that a guest that polls gets its input soon."""
ALARM_PERIOD = 0.02
"""Seconds between two looks at whether the run is to end in the middle of a slice."""
CONTROL_LIMIT = 4096
"""Bytes that are kept of what the guest sends through its second serial port, from their end."""
DFR0_DEBUG = 0x10305006
"""ID_AA64DFR0_EL1 but for PMUVer and PMSVer: Armv8 debug, 6 breakpoints, 4 watchpoints, 2 context-aware; all inert."""


DESIGNS = {
    "emulated": EMULATED,
    "partitioned": PARTITIONED,
    "lazy": LAZY,
    "fixed-counters-only": FIXED_COUNTERS_ONLY,
}
"""The designs of the virtual PMU by their names (Vm.design)."""


class Status(StrEnum):
    """How a run ended."""

    POWEROFF = "poweroff"
    """The guest turned the machine off (PSCI SYSTEM_OFF)."""
    RESET = "reset"
    """The guest asked for a reset (PSCI SYSTEM_RESET)."""
    EXIT = "exit"
    """The run was ended from outside, as by Ctrl-C."""
    HUNG = "hung"
    """Nothing can ever happen again, or a vCPU takes exceptions for ever without executing anything."""
    TIMEOUT = "timeout"
    """The time given was over."""


class CountError(ValueError):
    """A number of event counters that the core cannot give to a guest."""


@dataclass(frozen=True)
class Config:
    """What a machine is made of."""

    core: Core
    memory: int = 256 << 20
    """Bytes of RAM."""
    vcpus: int = 1
    counters: int | None = None
    """Event counters of the guest; None for all but two of the core's, at least one."""
    fgt: bool = True
    design: str = "partitioned"
    """One of `DESIGNS`."""
    costs: Costs | None = None
    """What virtualization costs the guest in time; None for nothing."""
    spe: bool = False
    """The guest has the Statistical Profiling Extension."""
    spe_pinned: bool = True
    """Its profiling buffer is pinned and mapped at stage 2 when the guest enables it."""

    def guest_counters(self) -> int:
        """Return the number of event counters that the guest gets. Raises CountError for an impossible one."""
        n = self.core.event_counters
        if DESIGNS[self.design] == FIXED_COUNTERS_ONLY:
            if self.counters:
                raise CountError(f"counters {self.counters}: fixed-counters-only has none: expected 0")
            return 0
        if DESIGNS[self.design] == EMULATED:
            return self._emulated_counters(n)
        wanted = max(n - 2, min(n, 1)) if self.counters is None else self.counters
        if wanted < 0 or partitioned.count_refused(make_pe(self.core, ()).core, wanted):
            lowest = 0 if self.core.hpmn0 else 1
            raise CountError(f"counters {wanted}: core {self.core.name} can give a guest {lowest} to {n}")
        return wanted

    def _emulated_counters(self, n: int) -> int:
        """Return how many counters are emulated: as many as the partition has by default, to be comparable."""
        wanted = max(n - 2, min(n, 1)) if self.counters is None else self.counters
        if not 0 <= wanted <= n:
            raise CountError(f"counters {wanted}: core {self.core.name} can give a guest 0 to {n}")
        return wanted


@dataclass
class Outcome:
    """How a run ended, and why, in one line."""

    status: Status
    reason: str
    registers: str = ""
    """The registers of the vCPU concerned, where they help to see what went wrong."""


@dataclass
class BoardCpu:
    """One vCPU: its engine, its PMU, and whether it runs."""

    number: int
    engine: Engine
    pmu: VirtualPmu
    spe: VirtualSpe | None = None
    """Its profiling, if the VM has SPE."""
    costs: Costs | None = None
    waiting: bool = False
    stale_code: set[int] = field(default_factory=set)
    """Physical pages whose code another vCPU changed since this one ran."""
    all_code_stale: bool = False
    tlb_stale: bool = False
    last_mmio: int = -1
    """How many instructions were retired before the last one that accessed a device."""
    exits: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(clock.COUNTED_BY_BOARD, 0)))
    overhead: int = 0
    """What its ledger came to, in cycles, when it was last looked at."""
    deadline: int = 0
    """What `engine.total` will be at the next timer, or when else the slice is over, if nothing more is charged."""
    bill: Bill = field(init=False)

    def __post_init__(self) -> None:
        """Open its bill."""
        self.bill = Bill(self.costs, self.pmu.vcpu, self.exits)

    def cycles(self) -> int:
        """Return the cycles it has taken: executed, and charged."""
        return self.engine.total + self.overhead


@dataclass(frozen=True)
class Kvm:
    """What KVM has of a machine: its VM, and for each vCPU the physical CPU where it is loaded."""

    vm: Vm
    places: Sequence[HostCpu]


def own_cpus(config: Config, counted: Iterable[int] = COUNTED_EVENTS) -> Kvm:
    """Return a host that has a CPU for each vCPU of one VM, counts the events `counted`, and does nothing else.

    Raises CountError for a number of counters that the core cannot give.
    """
    counters = config.guest_counters()
    world = boot([config.core] * config.vcpus, counted=counted, vcpus=config.vcpus)
    kvm = System(world, use_fgt=int(config.fgt))
    vm = vmm.create_vm(kvm, config.vcpus, DESIGNS[config.design], counters, spe=config.spe)
    vmm.create_irqchip(vm)
    vm.record.spe_pinned = int(config.spe and config.spe_pinned)
    for v in range(config.vcpus):
        world.host.tasks[v].allowed[0] = 1 << v
        world.host.tasks[v].cpu = v
    return Kvm(vm.record, [OwnCpu(world, v) for v in range(config.vcpus)])


class Machine:
    """A board with a guest in it. `output` is given every byte that the guest sends through its serial port.

    `on_record` is given the number of a vCPU and the bytes of each profiling record, as it is written.
    """

    def __init__(
        self,
        config: Config,
        output: Callable[[bytes], None],
        kvm: Kvm | None = None,
        on_record: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self.config = config
        self._on_record = on_record
        self._kvm = kvm or own_cpus(config)
        self.vm = self._kvm.vm
        self.memory = GuestMemory(config.memory)
        self.gic = gicv3.Gic(config.vcpus)
        self.timer = timer.ArchTimer(config.vcpus)
        self.psci = psci.Psci(config.vcpus)
        self.uart = pl011.Pl011(output, lambda level: self.gic.set_level(memmap.UART_INTID, level))
        self._control: deque[int] = deque(maxlen=CONTROL_LIMIT)
        self.on_control: Callable[[], None] | None = None
        """Called when the guest has sent something through its second serial port."""
        self._uart1 = pl011.Pl011(self._take_control, lambda level: self.gic.set_level(memmap.UART1_INTID, level))
        self.interrupted = False
        """Set, from a signal handler too, to end the run."""
        self._rate = clock.rate_of(config.core)
        self._idled = 0
        """Time in which every vCPU waited, in the rate's unit."""
        self._exits_left = 0
        self._cpus = [self._make_cpu(n) for n in range(config.vcpus)]

    # ---- building -------------------------------------------------------------------------------------------

    def _make_cpu(self, number: int) -> BoardCpu:
        def on_sysreg(key: int, write: bool, value: int) -> int:
            return self._sysreg(self._cpus[number], key, write, value)

        def on_level(level: bool) -> None:
            self.gic.set_ppi(number, memmap.PMU_INTID, level)

        engine = Engine(self.memory, on_sysreg)
        pmu = VirtualPmu(self._kvm.places[number], engine, on_level, self.now_ns)
        cpu = BoardCpu(number, engine, pmu, self._make_spe(number, engine), self.config.costs)
        self._map_devices(cpu)
        self._claim_registers(cpu)
        return cpu

    def _make_spe(self, number: int, engine: Engine) -> VirtualSpe | None:
        if self.vm.spe == 0:
            return None

        def on_level(level: bool) -> None:
            self.gic.set_ppi(number, memmap.SPE_INTID, level)

        def keep(data: bytes) -> None:
            if self._on_record is not None:
                self._on_record(number, data)

        return VirtualSpe(self._kvm.places[number], engine, self.memory, on_level, keep)

    def _map_devices(self, cpu: BoardCpu) -> None:
        windows = (
            (memmap.GICD_BASE, memmap.GICD_SIZE, self.gic.dist_read, self.gic.dist_write),
            (
                memmap.GICR_BASE,
                memmap.GICR_SIZE_PER_CPU * self.config.vcpus,
                self.gic.redist_read,
                self.gic.redist_write,
            ),
            (memmap.UART_BASE, memmap.UART_SIZE, self.uart.read, self.uart.write),
            (memmap.UART1_BASE, memmap.UART_SIZE, self._uart1.read, self._uart1.write),
        )
        for base, size, read, write in windows:
            cpu.engine.map_mmio(base, size, self._exiting_read(cpu, read), self._exiting_write(cpu, write))

    def _exiting_read(self, cpu: BoardCpu, read: Callable[[int, int], int]) -> Callable[[int, int], int]:
        def exiting(offset: int, size: int) -> int:
            value = read(offset, size)
            self._mmio_exit(cpu, Lane.LD)
            return value

        return exiting

    def _exiting_write(self, cpu: BoardCpu, write: Callable[[int, int, int], None]) -> Callable[[int, int, int], None]:
        def exiting(offset: int, size: int, value: int) -> None:
            write(offset, size, value)
            self._mmio_exit(cpu, Lane.ST)

        return exiting

    def _claim_registers(self, cpu: BoardCpu) -> None:
        engine = cpu.engine
        engine.set_action(sysreg.ID_AA64DFR0_EL1, Action.CONST, self._dfr0(cpu))
        if cpu.spe is not None:
            for key in sysreg.SPE_KEYS:
                engine.set_action(key, Action.CALL)
        engine.set_action(MPIDR_EL1, Action.CONST, (1 << 31) | memmap.cpu_mpidr(cpu.number))
        for key in (*sysreg.PMU_KEYS, *timer.KEYS, *gicv3.ICC_KEYS):
            engine.set_action(key, Action.CALL)
        for key in (timer.CNTVCT_EL0, timer.CNTPCT_EL0):  # read often, and the engine has the time
            engine.set_action(key, Action.CLOCK)

    def _dfr0(self, cpu: BoardCpu) -> int:
        """Return ID_AA64DFR0_EL1 as the guest has it."""
        pmsver = 0 if cpu.spe is None else cpu.spe.spu.filter.core.pmsver
        return DFR0_DEBUG | (self.vm.pmuver << 8) | (pmsver << sysreg.PMSVER_SHIFT)

    def boot(self, image: Image, layout: Layout, dtb: bytes, initrd: bytes = b"") -> None:
        """Put a guest into memory and turn CPU 0 on at its entry, with the device tree's address in X0.

        Its PMU is as KVM_ARM_VCPU_INIT, and whoever has written its registers since, have left it.
        """
        for segment in image.segments:
            self.memory.write(segment.address, segment.data)
        if layout.initrd is not None:
            self.memory.write(layout.initrd[0], initrd)
        self.memory.write(layout.dtb, dtb)
        self._turn_on(self._cpus[0], image.entry, layout.dtb)

    def _turn_on(self, cpu: BoardCpu, entry: int, x0: int) -> None:
        cpu.engine.invalidate_code()
        cpu.engine.flush_tlb()
        cpu.engine.start(entry, x0)
        cpu.all_code_stale = cpu.tlb_stale = cpu.waiting = False
        cpu.stale_code.clear()
        self._scheduled_in(cpu)

    # ---- the vCPU's thread ----------------------------------------------------------------------------------

    def _scheduled_in(self, cpu: BoardCpu) -> None:
        """A vCPU's thread can run: it has a CPU to itself, so it does."""
        self.load_cpu(cpu)

    def _scheduled_out(self, cpu: BoardCpu) -> None:
        """A vCPU's thread waits."""
        self.put_cpu(cpu)

    @staticmethod
    def load_cpu(cpu: BoardCpu) -> None:
        """Load a vCPU on the CPU of its place, and enter the guest."""
        if cpu.spe is not None:
            cpu.spe.load()
        cpu.pmu.load()
        if cpu.spe is not None:
            cpu.spe.after()

    @staticmethod
    def put_cpu(cpu: BoardCpu) -> None:
        """Exit the guest and put a vCPU."""
        if cpu.spe is not None:
            cpu.spe.before()
        cpu.pmu.put()
        if cpu.spe is not None:
            cpu.spe.put()

    @staticmethod
    def _exit_and_enter(cpu: BoardCpu) -> None:
        """Let the host have a vCPU's CPU for a moment, between two runs: it drains the guest's profiling buffer."""
        if cpu.spe is not None and cpu.pmu.vcpu.loaded:
            cpu.spe.exit_and_enter(cpu.pmu.now())

    # ---- time -----------------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """Return the virtual time in ns."""
        return self._now_units() // self._rate.per_ns

    @property
    def idle_ns(self) -> int:
        """Return in ns how long every vCPU waited."""
        return self._idled // self._rate.per_ns

    def _now_units(self) -> int:
        return sum(cpu.cycles() for cpu in self._cpus) * self._rate.per_cycle + self._idled

    def _ticks(self) -> int:
        return self._now_units() // self._rate.per_tick

    def _deadline_units(self, now: int) -> int | None:
        """Return when the next timer is due after `now`, both in units; None if none is to."""
        deadline = self.timer.next_deadline(now // self._rate.per_tick)
        return None if deadline is None else deadline * self._rate.per_tick

    def _charge(self, cpu: BoardCpu) -> int:
        """Bring a vCPU's overhead up to date with its ledger; return how many cycles have come to it."""
        overhead = cpu.bill.cycles()
        more = overhead - cpu.overhead
        cpu.overhead = overhead
        return more

    def _charge_in_run(self, cpu: BoardCpu) -> None:
        """The vCPU at an instruction of which has exited: time has passed, and the next timer is nearer."""
        more = self._charge(cpu)
        if more:
            cpu.engine.advance_clock(more * self._rate.per_cycle)
            cpu.deadline -= more
            cpu.engine.lower_limit(cpu.deadline)

    # ---- running --------------------------------------------------------------------------------------------

    def run(self, timeout: float | None = None, poll: Callable[[], bool] | None = None) -> Outcome:
        """Run until the guest ends, nothing can happen any more, `interrupted` is set, or `timeout` seconds passed.

        `poll` is called between slices, to give input to `uart`; it says whether more can come.
        """
        end = None if timeout is None else time.monotonic() + timeout
        over = threading.Event()
        alarm = threading.Thread(target=self._alarm, args=(end, over), name="alarm", daemon=True)
        alarm.start()
        try:
            while not self._is_to_end(end):
                outcome = self._round(end, poll() if poll is not None else False)
                if outcome is not None:
                    return outcome
        finally:
            over.set()
            alarm.join()
            for cpu in self._cpus:
                self._charge(cpu)
        if self.interrupted:
            return Outcome(Status.EXIT, "interrupted", dump(self._busiest().engine))
        return Outcome(Status.TIMEOUT, f"not over after {timeout:g} s", dump(self._busiest().engine))

    def _is_to_end(self, end: float | None) -> bool:
        return self.interrupted or (end is not None and time.monotonic() >= end)

    def _alarm(self, end: float | None, over: threading.Event) -> None:
        """Cut slices short once the run is to end: of a guest that exits at every instruction, one can take a minute.

        This asks again and again, since a request from another thread may be lost between two of the engine's own.
        """
        while not over.wait(ALARM_PERIOD):
            if self._is_to_end(end):
                for cpu in self._cpus:
                    cpu.engine.request_stop()

    def _busiest(self) -> BoardCpu:
        return next((cpu for cpu in self._cpus if self.psci.is_on(cpu.number) and not cpu.waiting), self._cpus[0])

    def _round(self, end: float | None, more_input: bool) -> Outcome | None:
        """Give every vCPU that can run one slice; where none can, let time pass."""
        self._drive_timers()
        runnable = [cpu for cpu in self._cpus if self.psci.is_on(cpu.number) and not self._still_waiting(cpu)]
        for cpu in runnable:
            outcome = self._slice(cpu, SLICE if len(runnable) > 1 else LONG_SLICE)
            if outcome is not None or self._is_to_end(end):
                return outcome
        return None if runnable else self._idle(more_input)

    def _still_waiting(self, cpu: BoardCpu) -> bool:
        if cpu.waiting and (self.gic.irq(cpu.number) or self.gic.fiq(cpu.number)):
            cpu.waiting = False
            self._scheduled_in(cpu)
            self._charge(cpu)
        return cpu.waiting

    def _idle(self, more_input: bool) -> Outcome | None:
        """Let time pass up to the next timer, since no vCPU can run."""
        now = self._now_units()
        deadline = self._deadline_units(now)
        if deadline is not None:
            self._idled += deadline - now
            return None
        if more_input:
            time.sleep(0.005)
            return None
        if not any(self.psci.is_on(cpu.number) for cpu in self._cpus):
            return Outcome(Status.HUNG, "every vCPU is off")
        return Outcome(
            Status.HUNG, "every vCPU waits for an interrupt and no device will raise one", dump(self._cpus[0].engine)
        )

    def _slice(self, cpu: BoardCpu, length: int, until: int | None = None) -> Outcome | None:
        """Run one vCPU for at most `length` instructions, and not beyond the next timer, nor `until`, in units."""
        engine = cpu.engine
        self._freshen(cpu)
        self._charge(cpu)
        self._drive_timers()
        now, total = self._now_units(), engine.total
        ends = [end for end in (self._deadline_units(now), until) if end is not None]
        cpu.deadline = total + (max(1, self._rate.cycles_in(min(ends) - now)) if ends else NEVER)
        engine.set_clock(now - total * self._rate.per_cycle, self._rate.per_cycle, self._rate.per_tick)
        engine.irq_line = self.gic.irq(cpu.number)
        self._exits_left = EXITS_PER_SLICE
        stop = engine.run(min(total + length, cpu.deadline))
        self._spread_invalidations(cpu)
        outcome = self._stopped(cpu, stop)
        self._charge(cpu)
        return outcome

    def _stopped(self, cpu: BoardCpu, stop: Stop) -> Outcome | None:
        if stop is Stop.IRQ:
            if self.gic.irq(cpu.number):
                cpu.engine.take_irq()
        elif stop is Stop.WATCH:
            cpu.exits["irq"] += 1
            self._overflowed(cpu)
        elif stop is Stop.PROFILE:
            self._profiled(cpu)
        elif stop is Stop.BARRIER:
            assert cpu.spe is not None
            cpu.spe.psb_csync()
        elif stop is Stop.WFI:
            cpu.pmu.emulated(cpu.engine.el)
            self._exit_and_enter(cpu)
            self._wait(cpu)
        elif stop is Stop.HVC:
            return self._hypercall(cpu)
        elif stop is Stop.SMC:
            cpu.exits["hvc"] += 1
            cpu.pmu.emulated(cpu.engine.el)
            self._exit_and_enter(cpu)
            cpu.engine.set_x(0, (1 << 64) - 1)
        elif stop is Stop.STUCK:
            reason = "takes exceptions for ever without executing an instruction"
            return Outcome(Status.HUNG, f"vCPU {cpu.number} {reason}", dump(cpu.engine))
        elif stop is Stop.FAILED:
            reason = f"cannot be run any further: {cpu.engine.failure}"
            return Outcome(Status.HUNG, f"vCPU {cpu.number} {reason}", dump(cpu.engine))
        return None

    @staticmethod
    def _overflowed(cpu: BoardCpu) -> None:
        """A counter overflows at the instruction that the engine is at: PMUIRQ."""
        if cpu.spe is not None:
            cpu.spe.before()
        cpu.pmu.overflowed()
        if cpu.spe is not None:
            cpu.spe.after()

    def _profiled(self, cpu: BoardCpu) -> None:
        """The profiling unit has records to write, and may require service: PMBIRQ, which is the host's to take."""
        assert cpu.spe is not None
        cpu.spe.before()
        if cpu.spe.needs_service():
            cpu.exits["irq"] += 1
            cpu.spe.exit_and_enter(cpu.pmu.now())
        else:
            cpu.spe.after()

    def _wait(self, cpu: BoardCpu) -> None:
        """WFI exits; the vCPU's thread is scheduled out unless an interrupt is there already."""
        cpu.exits["wfi"] += 1
        cpu.pmu.entry()
        self._charge(cpu)
        self._drive_timers()
        if not (self.gic.irq(cpu.number) or self.gic.fiq(cpu.number)):
            cpu.waiting = True
            self._scheduled_out(cpu)

    # ---- what one vCPU does to the others -------------------------------------------------------------------

    def _spread_invalidations(self, cpu: BoardCpu) -> None:
        """Note for the other vCPUs what this one invalidated for all; each acts on it before it next runs."""
        engine = cpu.engine
        if engine.tlb_changed:
            engine.tlb_changed = False
            for other in self._others(cpu):
                other.tlb_stale = True
        if engine.code_changed:
            pages = engine.take_code_changes()
            for other in self._others(cpu):
                other.all_code_stale |= pages is None
                other.stale_code.update(pages or ())

    def _others(self, cpu: BoardCpu) -> list[BoardCpu]:
        return [other for other in self._cpus if other is not cpu]

    @staticmethod
    def _freshen(cpu: BoardCpu) -> None:
        if cpu.all_code_stale:
            cpu.engine.invalidate_code()
        elif cpu.stale_code:
            cpu.engine.invalidate_code(sorted(cpu.stale_code))
        if cpu.tlb_stale:
            cpu.engine.flush_tlb()
        cpu.all_code_stale = cpu.tlb_stale = False
        cpu.stale_code.clear()

    def _hypercall(self, cpu: BoardCpu) -> Outcome | None:
        cpu.exits["hvc"] += 1
        engine = cpu.engine
        self._exit_and_enter(cpu)
        result = self.psci.call(cpu.number, *(engine.get_x(n) for n in range(4)))
        if result.action is psci.PsciAction.SYSTEM_OFF:
            return Outcome(Status.POWEROFF, "the guest powered off")
        if result.action is psci.PsciAction.SYSTEM_RESET:
            return Outcome(Status.RESET, "the guest asked for a reset")
        if result.action is psci.PsciAction.CPU_OFF:
            self._scheduled_out(cpu)
            return None
        if result.action is psci.PsciAction.CPU_ON:
            target = self._cpus[result.target]
            self.gic.reset_cpu_interface(target.number)
            self.timer.reset_cpu(target.number)
            target.pmu.reset()
            self._turn_on(target, result.entry, result.context)
        engine.set_x(0, result.value)
        if result.action is psci.PsciAction.SUSPEND:
            self._wait(cpu)
        else:
            cpu.pmu.entry()
        return None

    # ---- callbacks of the engine ----------------------------------------------------------------------------

    def _sysreg(self, cpu: BoardCpu, key: int, write: bool, value: int) -> int:
        engine = cpu.engine
        if traps.is_pmu_register(key):
            trapped = cpu.pmu.vcpu.trapped
            if cpu.spe is not None:
                cpu.spe.before()
            result, esr = cpu.pmu.access(engine.el, key, write, value)
            if cpu.spe is not None:
                cpu.spe.after()
            if esr is not None:
                engine.inject(esr)
            if write or cpu.pmu.vcpu.trapped != trapped:  # a read that goes to the hardware costs nothing
                self._charge_in_run(cpu)
        elif cpu.spe is not None and spe.is_spe_register(key):
            result = self._spe_register(cpu, cpu.spe, key, write, value)
        else:
            done = self._device_register(cpu, key, write, value)
            if done is None:
                engine.inject(sysreg.undefined_esr())
            result = done or 0
        self._exited(cpu)
        return result

    def _spe_register(self, cpu: BoardCpu, unit: VirtualSpe, key: int, write: bool, value: int) -> int:
        trapped = unit.vcpu.spe_trapped
        result, esr = unit.access(cpu.engine.el, key, write, value, cpu.pmu.now())
        if esr is not None:
            cpu.engine.inject(esr)
        if unit.vcpu.spe_trapped != trapped:
            cpu.pmu.trapped_elsewhere(cpu.engine.el)
            self._charge_in_run(cpu)
        return result

    def _device_register(self, cpu: BoardCpu, key: int, write: bool, value: int) -> int | None:
        """Access a register of the interrupt controller's CPU interface or of the timer; None where there is none."""
        if not write:
            result = self.gic.icc_read(cpu.number, key)
            return self.timer.read(cpu.number, key, self._ticks()) if result is None else result
        if self.gic.icc_write(cpu.number, key, value):
            if key in gicv3.SGI_KEYS:
                cpu.exits["sgi"] += 1
                self._charge_in_run(cpu)
            return 0
        if not self.timer.write(cpu.number, key, value, self._ticks()):
            return None
        self._drive_timers()
        cpu.engine.request_stop()
        return 0

    def _mmio_exit(self, cpu: BoardCpu, lane: Lane) -> None:
        """An access to an emulated device aborts at stage 2: the guest retires nothing.

        One of 64 bits, or of a pair, comes in parts, between which nothing retires: it is one exit.
        """
        at = cpu.engine.total
        if at != cpu.last_mmio:
            cpu.last_mmio = at
            cpu.exits["mmio"] += 1
            cpu.pmu.emulated(cpu.engine.el, lane)
            self._charge_in_run(cpu)
        self._exited(cpu)

    def _drive_timers(self) -> None:
        """Bring the timers' interrupt lines up to now."""
        now = self._ticks()
        for cpu in self._cpus:
            self.gic.set_ppi(cpu.number, memmap.VIRT_TIMER_INTID, self.timer.virtual_level(cpu.number, now))
            self.gic.set_ppi(cpu.number, memmap.PHYS_TIMER_INTID, self.timer.physical_level(cpu.number, now))

    def _exited(self, running: BoardCpu) -> None:
        """Give changed interrupt lines to the engines; a slice ends early where another vCPU is woken."""
        self._exits_left -= 1
        if self._exits_left <= 0:
            running.engine.request_stop()
        for number in self.gic.changed:
            cpu = self._cpus[number]
            line = self.gic.irq(number)
            if line and not cpu.engine.irq_line and cpu is not running:
                running.engine.request_stop()
            cpu.engine.irq_line = line
        self.gic.changed.clear()

    # ---- the bill -------------------------------------------------------------------------------------------

    def instructions(self) -> int:
        """Return how many instructions all vCPUs have executed."""
        return sum(cpu.engine.total for cpu in self._cpus)

    def overhead_cycles(self) -> int:
        """Return what virtualization cost all vCPUs, in cycles of their core."""
        return sum(cpu.bill.cycles() for cpu in self._cpus)

    def overhead_ns(self) -> int:
        """Return how long that took, in ns."""
        return self.overhead_cycles() * self._rate.per_cycle // self._rate.per_ns

    def _take_control(self, data: bytes) -> None:
        self._control.extend(data)
        if self.on_control is not None:
            self.on_control()

    def control(self) -> bytes:
        """Return what the guest has sent through its second serial port: the last `CONTROL_LIMIT` bytes of it."""
        return bytes(self._control)

    def unpredictable(self) -> int:
        """Return which of `arch.unpredictable.CHOICES` the run has come to depend on, as their bits."""
        return functools.reduce(operator.or_, (cpu.pmu.pe.unpredictable for cpu in self._cpus))

    def ledger(self) -> dict[str, int]:
        """Return what virtualizing the PMU cost, name to count; every name that is not a register's is always there."""
        exits: Counter[str] = Counter({"pmu": 0, "spe": 0, "mmio": 0, "hvc": 0, "wfi": 0, "irq": 0, "sgi": 0})
        by_register: Counter[str] = Counter()
        vcpus = [cpu.pmu.vcpu for cpu in self._cpus]
        for cpu in self._cpus:
            exits.update(cpu.exits)
            exits["pmu"] += cpu.pmu.vcpu.trapped
            exits["spe"] += cpu.pmu.vcpu.spe_trapped
            for (key, outcome), count in self._accesses(cpu):
                by_register[f"{_KIND[outcome]}.{sysreg.name_of(key)}"] += count
        bill = {
            "pmu_direct": sum(v.direct for v in vcpus),
            "pmu_trapped": sum(v.trapped for v in vcpus),
            "registers_swapped": sum(v.swapped for v in vcpus),
            "loads": sum(v.loads for v in vcpus),
            "puts": sum(v.puts for v in vcpus),
            "overflows": sum(v.overflows for v in vcpus),
            "interrupts_injected": sum(v.injected for v in vcpus),
            "rescheduled": sum(v.rescheduled for v in vcpus),
            "perf_created": sum(v.perf_created for v in vcpus),
            "perf_released": sum(v.perf_released for v in vcpus),
            "perf_enabled": sum(v.perf_enabled for v in vcpus),
            "perf_disabled": sum(v.perf_disabled for v in vcpus),
            "perf_read": sum(v.perf_read for v in vcpus),
            "perf_switched": sum(v.perf_switched for v in vcpus),
            "spe_direct": sum(v.spe_direct for v in vcpus),
            "spe_drained": sum(v.spe_drained for v in vcpus),
            "spe_injected": sum(v.spe_injected for v in vcpus),
            "spe_stage2": sum(v.spe_stage2 for v in vcpus),
            "exits": sum(exits.values()),
        }
        bill |= {f"exits.{name}": count for name, count in sorted(exits.items())}
        return bill | dict(sorted(by_register.items()))

    @staticmethod
    def _accesses(cpu: BoardCpu) -> Iterable[tuple[tuple[int, int], int]]:
        """Return how often a vCPU reached each register of its PMU and of its profiling unit how."""
        yield from cpu.pmu.accesses.items()
        if cpu.spe is not None:
            yield from cpu.spe.accesses.items()


_KIND = {
    door.DIRECT: "direct",
    door.TRAPPED: "trapped",
    door.UNDEFINED: "undefined",
    door.TRAPPED_UNDEFINED: "trapped",
    door.TO_EL1: "undefined",
    door.AGAIN: "trapped",
}
