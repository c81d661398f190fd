"""What runs on a host without a guest's code: tasks described by the rates at which they make events.

A model: a task makes events of each kind evenly, some of them at EL0 and the rest at EL2 (a vCPU's thread: EL0 and EL1
of its guest). After r nanoseconds of run time a kind of rate f (events in a millisecond) has happened f * r / 10^6
times, rounded down, so that counts are exact in whatever pieces time passes. CPU_CYCLES go by the core's clock.
Run times stay below 2^40 ns, and rates below 2^23.
"""

from __future__ import annotations

from pmuvisor.arch.sysreg import FILTER_NSH, FILTER_P, FILTER_U
from pmuvisor.linux.host import NO_EVENT, STATE_ACTIVE, STATE_INACTIVE, Host, PerfContext, PerfEvent

MILLISECOND = 1_000_000
PER_MILLE = 1000
NEVER = (1 << 62) - 1
"""A time that does not come."""


def happened(rate: int, runtime: int) -> int:
    """Return how often an event of `rate` has happened after `runtime`."""
    return rate * runtime // MILLISECOND


def at_el0(events: int, user: int) -> int:
    """Return how many of a task's first `events` of a kind were at EL0, `user` being their share per mille."""
    return events * user // PER_MILLE


def runtime_for(rate: int, events: int) -> int:
    """Return the least run time after which an event of `rate` has happened `events` times."""
    if rate == 0:
        return NEVER
    return (events * MILLISECOND + rate - 1) // rate


def total_for(user: int, el0: int, other: int, wanted: int) -> int:
    """Return the least number of events of which `wanted` are at the levels that count: EL0, the other, or both."""
    if el0 == 1 and other == 1:
        return wanted
    if el0 == 1 and user != 0:
        return (wanted * PER_MILLE + user - 1) // user
    if other == 1 and user != PER_MILLE:
        return (wanted - 1) * PER_MILLE // (PER_MILLE - user) + 1
    return 0


def counted(user: int, el0: int, other: int, total: int) -> int:
    """Return how many of the first `total` events were at the levels that count."""
    return (at_el0(total, user) & -el0) + ((total - at_el0(total, user)) & -other)


def excludes(control: int, el: int) -> int:
    """Return 1 where the filter of PMEVTYPER<n>_EL0 keeps a counter from counting at `el`."""
    if el == 0:
        return (control >> FILTER_U) & 1
    if el == 1:
        return (control >> FILTER_P) & 1
    return 1 - ((control >> FILTER_NSH) & 1)


# ---- what events ought to have counted ---------------------------------------------------------------------


def wanted(event: PerfEvent, in_guest: int, user: int) -> int:
    """Return 1 where an event is to count: of the host or of a guest, of its user space or of its kernel."""
    not_here = (event.exclude_guest & in_guest) | (event.exclude_host & (1 - in_guest))
    not_this = (event.exclude_user & user) | (event.exclude_kernel & (1 - user))
    return 1 - (not_here | not_this)


def note_context(host: Host, c: int, ctx: PerfContext, event: int, in_guest: int, el0: int, other: int) -> None:
    """Note in every event of a context that is enabled what of its kind happened: `el0` at EL0, `other` above."""
    for i in range(ctx.nr_pinned + ctx.nr_flexible):
        if i < ctx.nr_pinned:
            number = ctx.pinned[i]
        else:
            number = ctx.flexible[i - ctx.nr_pinned]
        while number != NO_EVENT:
            of = host.events[number]
            if of.config == event and of.pmu == host.cpus[c].pmu and of.state >= STATE_INACTIVE:
                amount = (el0 & -wanted(of, in_guest, 1)) + (other & -wanted(of, in_guest, 0))
                of.true += amount
                if of.state == STATE_ACTIVE:
                    of.seen += amount
            number = of.next_sibling
