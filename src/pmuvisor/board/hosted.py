"""A machine whose vCPUs are threads of a host: the host says which of them runs, where, and what time it is."""

from __future__ import annotations

from collections.abc import Callable

from pmuvisor.board.machine import NS_PER_INSTRUCTION, NS_PER_TICK, BoardCpu, Config, Kvm, Machine, Outcome


class HostedMachine(Machine):
    """A board as `Machine`, run vCPU by vCPU by somebody else's scheduler.

    Virtual time is the host's: 1 ns for each instruction while a vCPU runs.
    """

    def __init__(self, config: Config, output: Callable[[bytes], None], kvm: Kvm) -> None:
        self._now = 0
        self._running: BoardCpu | None = None
        self._total_then = 0
        super().__init__(config, output, kvm)

    def now_ns(self) -> int:
        """Return the virtual time in ns."""
        if self._running is None:
            return self._now
        return self._now + (self._running.engine.total - self._total_then) * NS_PER_INSTRUCTION

    def _scheduled_in(self, cpu: BoardCpu) -> None:
        """The host schedules a vCPU's thread, and says so by `load`."""

    def _scheduled_out(self, cpu: BoardCpu) -> None:
        """The host finds out by `can_run`."""

    # ---- for the host ---------------------------------------------------------------------------------------

    def load(self, number: int) -> None:
        """Be told that vCPU `number` has been loaded on the CPU of its place."""
        self._cpus[number].pmu.load()

    def put(self, number: int) -> None:
        """Be told that vCPU `number` is about to be put."""
        self._cpus[number].pmu.put()

    def exit(self, number: int) -> None:
        """Leave the guest: the host is going to do something with the counters of the CPU where the vCPU is loaded."""
        self._cpus[number].pmu.sync()

    def enter(self, number: int) -> None:
        """Go back to the guest of a vCPU that is loaded."""
        self._cpus[number].pmu.host_changed()

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

        Return the time that was reached, and how the guest ended, if it did.
        """
        cpu = self._cpus[number]
        self._now, self._running, self._total_then = now, cpu, cpu.engine.total
        asleep = [other for other in self._others(cpu) if not self.can_run(other.number)]
        outcome = None
        while outcome is None and self.now_ns() < until and self.can_run(number):
            outcome = self._slice(cpu, (until - self.now_ns()) // NS_PER_INSTRUCTION)
            if any(self.can_run(other.number) for other in asleep):
                break
        self._now, self._running = self.now_ns(), None
        return self._now, outcome
