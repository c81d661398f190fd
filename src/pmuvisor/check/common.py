"""What the machines of both families have in common: threads on CPUs, budgets, properties that are asked for.

The rules of semantic code hold.
"""

from __future__ import annotations

from typing import Protocol

from pmuvisor.check.model import DONE, NOT_NOW
from pmuvisor.kvm.vcpu import HostContext
from pmuvisor.kvm.world import World
from pmuvisor.linux import sched
from pmuvisor.linux.host import NO_TASK, NO_VCPU, Host


class Explored(Protocol):
    """A state of either family."""

    world: World
    left: list[int]
    """How many actions of each sort may still happen."""
    asked: int
    """Which properties are asked for, a bit each."""


def breaks(m: Explored, number: int, holds: bool) -> bool:
    """Tell whether a property that is asked for does not hold."""
    return not holds and (m.asked >> number) & 1 == 1


def spend(m: Explored, budget: int) -> int:
    """Take one from a budget. Return whether there was one."""
    if m.left[budget] == 0:
        return 0
    m.left[budget] -= 1
    return 1


def in_guest(m: Explored, c: int) -> bool:
    """Tell whether CPU `c` executes a guest."""
    return m.world.host.cpus[c].pe.tge == 0


def resident(m: Explored, c: int) -> int:
    """Return the vCPU whose thread is on CPU `c`, or NO_VCPU."""
    current = m.world.host.cpus[c].current
    if current == NO_TASK:
        return NO_VCPU
    return m.world.host.tasks[current].preempt_notifier


def thread_moves(m: Explored, c: int, to: int, budget: int) -> int:
    """A thread that waits on CPU `c` is moved to CPU `to`."""
    if m.world.host.cpus[c].nr_queued == 0 or m.left[budget] == 0:
        return NOT_NOW
    number = sched.dequeue_movable(m.world.host, c, to)
    if number == NO_TASK:
        return NOT_NOW
    m.left[budget] -= 1
    sched.enqueue_task(m.world.host, to, number)
    return DONE


def tidy_queues(host: Host) -> None:
    """Give links of queues of threads that nobody will follow one value."""
    for c in range(len(host.cpus)):
        if host.cpus[c].nr_queued == 0:
            host.cpus[c].first = NO_TASK
            host.cpus[c].last = NO_TASK
    for number in range(len(host.tasks)):
        if host.cpus[host.tasks[number].cpu].current == number:
            host.tasks[number].next = NO_TASK


def forget_pmu(saved: HostContext) -> None:
    """No vCPU is loaded on a CPU: what the host needed back of its PMU has been given back."""
    saved.pmcr = 0
    saved.selr = 0
    saved.userenr = 0
    saved.mdcr_el2 = 0
