"""Where a vCPU of a board runs: a CPU of a host, with its scheduler, its perf and KVM.

`HostCpu` is told where its vCPU has been loaded. `OwnCpu` has a CPU for itself: the host does nothing there but KVM's
work, and the vCPU's thread comes and goes as the guest waits.
"""

from __future__ import annotations

from pmuvisor.arch import pmu
from pmuvisor.arch.pmu import Pe
from pmuvisor.board.lanes import DECODED, LANE_OF_EVENT
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import Vcpu, Vm
from pmuvisor.kvm.world import World
from pmuvisor.linux import activity, sched
from pmuvisor.linux.host import NO_EVENT, PerfContext, PerfEvent


class HostCpu:
    """The CPU of the host on which vCPU `v` is loaded, by the host's scheduler."""

    def __init__(self, world: World, v: int, c: int = 0) -> None:
        self.world = world
        self.v = v
        self.c = c
        """Which CPU that is, or was last."""

    @property
    def pe(self) -> Pe:
        """The PMU of that CPU."""
        return self.world.host.cpus[self.c].pe

    @property
    def vm(self) -> Vm:
        """The VM."""
        return self.world.vms[self.world.vm_of[self.v]]

    @property
    def vcpu(self) -> Vcpu:
        """The vCPU."""
        return self.world.vcpus[self.v]

    # ---- what somebody on the host measures ----

    def _contexts(self) -> tuple[PerfContext, PerfContext]:
        host = self.world.host
        return host.cpus[self.c].ctx, host.tasks[self.vcpu.task].ctx

    def _measured(self) -> list[PerfEvent]:
        """Return the events here that are not KVM's own."""
        events = []
        for ctx in self._contexts():
            for leader in [*ctx.pinned[: ctx.nr_pinned], *ctx.flexible[: ctx.nr_flexible]]:
                while leader != NO_EVENT:
                    event = self.world.host.events[leader]
                    if event.overflow_handler == 0:
                        events.append(event)
                    leader = event.next_sibling
        return events

    @property
    def sees_all(self) -> bool:
        """What the guest executes is to be told to `note`, also where no counter counts it."""
        return bool(self._measured())

    @property
    def detail(self) -> bool:
        """Of what is told, loads, stores and branches are wanted as well."""
        return any(
            LANE_OF_EVENT.get(event.config) in DECODED and pmu.is_implemented(self.pe, event.config)
            for event in self._measured()
        )

    def note(self, el: int, amounts: list[int]) -> None:
        """Note in the host's events what the guest has executed at `el`, by `Lane`."""
        for event, lane in LANE_OF_EVENT.items():
            amount = amounts[lane]
            if amount and pmu.is_implemented(self.pe, event):
                el0, other = (amount, 0) if el == 0 else (0, amount)
                for ctx in self._contexts():
                    activity.note_context(self.world.host, self.c, ctx, event, 1, el0, other)

    # ---- what happens to the vCPU ----

    def load(self, now: int) -> None:
        """Enter the guest: the scheduler has loaded the vCPU."""
        worlds.vcpu_enter(self.world, self.c, self.v, now)

    def put(self, now: int) -> None:
        """Exit the guest: the host has something to do."""
        worlds.vcpu_exit(self.world, self.c, self.v)

    def interrupt(self, now: int) -> None:
        """PMUIRQ, of a counter of the guest's or the host's: exit, let the handlers run, and enter the guest again."""
        worlds.vcpu_exit(self.world, self.c, self.v)
        worlds.handle_irq(self.world, self.c, self.v)
        worlds.vcpu_enter(self.world, self.c, self.v, now)


class OwnCpu(HostCpu):
    """CPU `v` of the host, which vCPU `v` has to itself."""

    sees_all = False
    detail = False

    def __init__(self, world: World, v: int) -> None:
        super().__init__(world, v, v)

    def load(self, now: int) -> None:
        """The vCPU's thread wakes and comes to its CPU; enter the guest."""
        sched.try_to_wake_up(self.world.host, self.vcpu.task)
        worlds.switch_in(self.world, self.c, now)
        super().load(now)

    def put(self, now: int) -> None:
        """Exit the guest; the thread sleeps."""
        super().put(now)
        sched.go_to_sleep(self.world.host, self.c)
        worlds.switch_out(self.world, self.c, now)
