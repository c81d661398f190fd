"""A machine whose vCPUs are threads of a host: the host says which of them runs, where, and what time it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pmuvisor.board import clock
from pmuvisor.board.clock import NS_PER_TICK, Rate
from pmuvisor.board.machine import NEVER, BoardCpu, Config, Kvm, Machine, Outcome


@dataclass
class Pace:
    """How far a vCPU is with what it has to do, on the CPU where it is loaded, or was last."""

    rate: Rate
    accounted: int = 0
    """Cycles, of instructions and of overhead, that have become time."""
    owed: int = 0
    """Time, in the rate's unit, that it has taken but the host has not let pass yet."""

    def move(self, mhz: int) -> None:
        """Go on on a core of `mhz`. What is owed stays the same time, rounded up to the new unit."""
        if not self.rate.at(mhz):
            rate = clock.rate(mhz)
            self.owed = -(-self.owed * rate.per_ns // self.rate.per_ns)
            self.rate = rate


class HostedMachine(Machine):
    """A board as `Machine`, run vCPU by vCPU by somebody else's scheduler.

    Virtual time is the host's: a vCPU takes it while it runs, at the clock of the CPU where it is loaded. What its
    exits have cost is paid before its next instruction; where that takes longer than the host lets it run, it goes on
    paying when it runs again. The guest's own clock is ahead of the host's by what is still owed: it never goes back.
    """

    def __init__(
        self,
        config: Config,
        output: Callable[[bytes], None],
        kvm: Kvm,
        on_record: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self._now = 0
        self._running: BoardCpu | None = None
        super().__init__(config, output, kvm, on_record)
        self._paces = [Pace(self._rate) for _ in self._cpus]

    def now_ns(self) -> int:
        """Return the virtual time in ns."""
        return self._now_units() // self._rate.per_ns

    def _now_units(self) -> int:
        if self._running is None:
            return self._now * self._rate.per_ns
        return self._now * self._rate.per_ns + self._taken(self._running)

    def _taken(self, cpu: BoardCpu) -> int:
        """Return the time that a vCPU has taken and that has not passed, in units."""
        pace = self._paces[cpu.number]
        return pace.owed + (cpu.cycles() - pace.accounted) * pace.rate.per_cycle

    def _scheduled_in(self, cpu: BoardCpu) -> None:
        """The host schedules a vCPU's thread, and says so by `load`."""

    def _scheduled_out(self, cpu: BoardCpu) -> None:
        """The host finds out by `can_run`."""

    # ---- for the host ---------------------------------------------------------------------------------------

    def load(self, number: int, mhz: int) -> None:
        """Be told that vCPU `number` has been loaded on the CPU of its place, whose clock is `mhz`."""
        self._paces[number].move(mhz)
        self.load_cpu(self._cpus[number])

    def put(self, number: int) -> None:
        """Be told that vCPU `number` is about to be put."""
        self.put_cpu(self._cpus[number])

    def exit(self, number: int) -> None:
        """Leave the guest: the host is going to do something with the counters of the CPU where the vCPU is loaded."""
        cpu = self._cpus[number]
        cpu.pmu.sync()
        if cpu.spe is not None:
            cpu.spe.before()

    def enter(self, number: int) -> None:
        """Go back to the guest of a vCPU that is loaded."""
        cpu = self._cpus[number]
        cpu.pmu.host_changed()
        if cpu.spe is not None:
            cpu.spe.after()

    def at(self, now: int) -> None:
        """It is `now`: timers that are due raise their interrupts."""
        self._now = now
        self._drive_timers()

    def can_run(self, number: int) -> bool:
        """Tell whether vCPU `number` has something to execute: it is on, and does not wait or need not any more."""
        return self.psci.is_on(number) and not self._still_waiting(self._cpus[number])

    def next_timer_ns(self) -> int | None:
        """Return when the next timer is due, in the host's time, or None."""
        deadline = self.timer.next_deadline(self._ticks())
        return None if deadline is None else deadline * NS_PER_TICK

    def run_vcpu(self, number: int, now: int, until: int) -> tuple[int, Outcome | None]:
        """Run a vCPU that is loaded from `now` on: until then, or until it waits, or another one is to be woken.

        It comes back early where `interrupted` is set.

        Return the time that was reached, and how the guest ended, if it did.
        """
        cpu, pace = self._cpus[number], self._paces[number]
        asleep = [other for other in self._others(cpu) if not self.can_run(other.number)]
        self._rate, self._now, self._running = pace.rate, now, cpu
        self._charge(cpu)
        outcome, end = None, until * pace.rate.per_ns
        while outcome is None and not self._is_to_end(None) and self._now_units() < end and self.can_run(number):
            outcome = self._slice(cpu, NEVER, end)
            if any(self.can_run(other.number) for other in asleep):
                break
        taken = self._taken(cpu)
        passed = min(taken // pace.rate.per_ns, until - now)
        pace.owed, pace.accounted = taken - passed * pace.rate.per_ns, cpu.cycles()
        self._now, self._running = now + passed, None
        return self._now, outcome
