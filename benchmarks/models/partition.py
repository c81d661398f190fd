"""A partitioned PMU with lazy residency, small enough to be written twice: here, and in Promela in `partition.pml`.

Two CPUs with three counters of three bits, two vCPUs that reach the first two counters, two events of the host. A vCPU
has the counters of the CPU it is loaded on from its first access to them on; when it is put with all of them stopped it
has none again. The twin has the same variables, and one atomic step for each action here, in the same order.
"""

from __future__ import annotations

from typing import Annotated

from pmuvisor import records
from pmuvisor.check.model import BROKEN, DONE, NOT_NOW, Action, Model, Property
from pmuvisor.records import U1, U2, U3, U5, Each, Path, Role, record

CPUS = VCPUS = EVENTS = 2
COUNTERS = 3
ALL = (1 << COUNTERS) - 1
GUESTS = 0b011
"""The counters that a guest reaches while it has any."""
TOP = 7
"""The most that a counter holds."""
NEAR = 6
"""Where a counter starts: it overflows at the second tick."""
FREE, OWNED = 0, 1

Counters = Annotated[list[int], Each(COUNTERS, 3)]
OughtCounters = Annotated[list[int], Each(COUNTERS, 3), Role.GHOST]


@record
class Cpu:
    """A CPU's counters, and who has them."""

    cnten: U3
    ovs: U3
    reserved: U3
    """The counters that are the guest's, a mask."""
    vcpu: U2
    """1 + the vCPU that is loaded; 0 where none is."""
    counter: Counters
    event: Annotated[list[int], Each(COUNTERS, 2)]
    """Of each counter 1 + the host's event on it."""


@record
class Vcpu:
    """What KVM keeps of a vCPU's counters, and (ghosts) what its guest ought to find."""

    residency: U1
    cpu: U2
    """1 + the CPU that it is loaded on; 0 where it is not."""
    cnten: U3
    ovs: U3
    pending: U1
    """Its guest has an interrupt."""
    counter: Counters
    ought: OughtCounters
    ought_ovs: Annotated[U3, Role.GHOST]


@record
class Event:
    """An event of the host's."""

    cpu: U2
    """1 + the CPU that it is open on; 0 while it is closed."""
    counter: U2
    """1 + its counter; 0 while it has none."""
    count: U3
    """What it has counted, less what is in the counter."""
    ought: Annotated[int, records.Bits(3), Role.GHOST]


@record
class Machine:
    """All of it, and how much may still happen."""

    asked: U3
    ticks: U5
    accesses: U5
    cpus: Annotated[list[Cpu], Each(CPUS)]
    vcpus: Annotated[list[Vcpu], Each(VCPUS)]
    events: Annotated[list[Event], Each(EVENTS)]


# ---- the hardware -------------------------------------------------------------------------------------------


def tick(m: Machine, c: int) -> int:
    """Something happens on a CPU that every counter of it counts."""
    cpu = m.cpus[c]
    if m.ticks == 0 or cpu.cnten == 0:
        return NOT_NOW
    m.ticks -= 1
    for i in range(COUNTERS):
        if (cpu.cnten >> i) & 1:
            count_one(m, c, i)
    return DONE


def count_one(m: Machine, c: int, i: int) -> None:
    """A counter counts one."""
    cpu = m.cpus[c]
    cpu.counter[i] = (cpu.counter[i] + 1) & TOP
    if cpu.counter[i] == 0:
        cpu.ovs |= 1 << i
    if cpu.event[i]:
        event = m.events[cpu.event[i] - 1]
        event.ought = (event.ought + 1) & TOP
    elif cpu.vcpu:
        vcpu = m.vcpus[cpu.vcpu - 1]
        vcpu.ought[i] = (vcpu.ought[i] + 1) & TOP
        if vcpu.ought[i] == 0:
            vcpu.ought_ovs |= 1 << i


# ---- the host's events --------------------------------------------------------------------------------------


def start(m: Machine, c: int) -> None:
    """Give every open event of a CPU that has no counter one of those that are free, and not the guest's."""
    cpu = m.cpus[c]
    for e in range(EVENTS):
        event = m.events[e]
        for i in range(COUNTERS):
            if event.cpu == c + 1 and event.counter == 0 and cpu.event[i] == 0 and (cpu.reserved >> i) & 1 == 0:
                event.counter = i + 1
                event.count = (event.count - NEAR) & TOP
                cpu.event[i] = e + 1
                cpu.counter[i] = NEAR
                cpu.cnten |= 1 << i


def stop(m: Machine, c: int, i: int) -> None:
    """Take the event on a counter off it."""
    cpu = m.cpus[c]
    event = m.events[cpu.event[i] - 1]
    event.count = (event.count + cpu.counter[i]) & TOP
    event.counter = 0
    cpu.event[i] = 0
    cpu.counter[i] = 0
    cpu.cnten &= ~(1 << i)
    cpu.ovs &= ~(1 << i)


def reserve(m: Machine, c: int, mask: int) -> None:
    """Let the counters of `mask` be the guest's, and move the host's events accordingly."""
    for i in range(COUNTERS):
        if m.cpus[c].event[i]:
            stop(m, c, i)
    m.cpus[c].reserved = mask
    start(m, c)


def open_event(m: Machine, c: int, e: int) -> int:
    """The host opens an event on a CPU."""
    if m.events[e].cpu:
        return NOT_NOW
    m.events[e].cpu = c + 1
    start(m, c)
    return DONE


def close_event(m: Machine, e: int) -> int:
    """The host closes an event."""
    event = m.events[e]
    if event.cpu == 0:
        return NOT_NOW
    c = event.cpu - 1
    if event.counter:
        stop(m, c, event.counter - 1)
    event.cpu = 0
    event.count = 0
    event.ought = 0
    start(m, c)
    return DONE


def interrupt(m: Machine, c: int) -> int:
    """The host's handler: an overflow of its own is served, the guest's becomes an interrupt of the guest."""
    cpu = m.cpus[c]
    if cpu.ovs == 0:
        return NOT_NOW
    theirs = cpu.ovs & cpu.reserved
    cpu.ovs = 0
    if theirs:
        vcpu = m.vcpus[cpu.vcpu - 1]
        vcpu.ovs |= theirs
        vcpu.pending = 1
    return DONE


# ---- KVM ----------------------------------------------------------------------------------------------------


def take(m: Machine, c: int) -> None:
    """Give the guest on a CPU its counters, as they were."""
    reserve(m, c, GUESTS)
    cpu = m.cpus[c]
    vcpu = m.vcpus[cpu.vcpu - 1]
    for i in range(COUNTERS):
        if (GUESTS >> i) & 1:
            cpu.counter[i] = vcpu.counter[i]
    cpu.cnten |= vcpu.cnten


def give_back(m: Machine, c: int) -> None:
    """Keep the counters of the guest on a CPU, and let the host have them. All stopped: the guest needs none."""
    cpu = m.cpus[c]
    vcpu = m.vcpus[cpu.vcpu - 1]
    for i in range(COUNTERS):
        if (GUESTS >> i) & 1:
            vcpu.counter[i] = cpu.counter[i]
            cpu.counter[i] = 0
    vcpu.cnten = cpu.cnten & GUESTS
    vcpu.ovs |= cpu.ovs & GUESTS
    if cpu.ovs & GUESTS:
        vcpu.pending = 1
    if vcpu.cnten == 0:
        vcpu.residency = FREE
    cpu.cnten &= ~GUESTS
    cpu.ovs &= ~GUESTS
    reserve(m, c, 0)


def load(m: Machine, c: int, v: int) -> int:
    """A vCPU comes to a CPU."""
    if m.cpus[c].vcpu or m.vcpus[v].cpu:
        return NOT_NOW
    m.cpus[c].vcpu = v + 1
    m.vcpus[v].cpu = c + 1
    if m.vcpus[v].residency == OWNED:
        take(m, c)
    return DONE


def put(m: Machine, c: int) -> int:
    """The vCPU on a CPU leaves it."""
    cpu = m.cpus[c]
    if cpu.vcpu == 0:
        return NOT_NOW
    vcpu = m.vcpus[cpu.vcpu - 1]
    if vcpu.residency == OWNED:
        give_back(m, c)
    vcpu.cpu = 0
    cpu.vcpu = 0
    return DONE


# ---- the guest ----------------------------------------------------------------------------------------------

ENABLE, DISABLE, CLEAR, WRITE, RESET = range(5)


def access(m: Machine, c: int, register: int, operand: int) -> int:
    """The guest on a CPU writes a register; its first access traps, and it is given its counters."""
    cpu = m.cpus[c]
    if m.accesses == 0 or cpu.vcpu == 0:
        return NOT_NOW
    m.accesses -= 1
    vcpu = m.vcpus[cpu.vcpu - 1]
    if vcpu.residency == FREE:
        vcpu.residency = OWNED
        take(m, c)
    if register == ENABLE:
        cpu.cnten |= operand & cpu.reserved
    elif register == DISABLE:
        cpu.cnten &= ~(operand & cpu.reserved)
    elif register == CLEAR:
        clear(cpu, vcpu)
    elif register == WRITE:
        write(cpu, vcpu, operand, NEAR)
    else:
        for i in range(COUNTERS):
            write(cpu, vcpu, i, 0)
    return DONE


def clear(cpu: Cpu, vcpu: Vcpu) -> None:
    """The guest clears its overflows."""
    cpu.ovs &= ~cpu.reserved
    vcpu.ovs = 0
    vcpu.ought_ovs = 0
    vcpu.pending = 0


def write(cpu: Cpu, vcpu: Vcpu, i: int, value: int) -> None:
    """The guest writes a counter, if it reaches it."""
    if (cpu.reserved >> i) & 1:
        cpu.counter[i] = value
        vcpu.ought[i] = value


# ---- what may happen, and what must hold --------------------------------------------------------------------

TICK, INTERRUPT, LOAD, PUT, ACCESS, OPEN, CLOSE = range(7)
WRITES = (
    (ENABLE, 0b001, "enables counter 0"),
    (ENABLE, 0b110, "enables counters 1 and 2"),
    (DISABLE, 0b101, "disables counters 0 and 2"),
    (DISABLE, 0b111, "disables all counters"),
    (CLEAR, 0, "clears its overflows"),
    (WRITE, 1, f"writes {NEAR} to counter 1"),
    (WRITE, 2, f"writes {NEAR} to counter 2"),
    (RESET, 0, "resets all counters"),
)
HOST, GUEST, OVERFLOW = range(3)
PROPERTIES = (
    Property("host-counter-kept", "No guest stops or changes a counter that is the host's.", "the partition's purpose"),
    Property("guest-counter-kept", "A guest finds its counters as it left them.", "the partition's purpose"),
    Property("overflow-kept", "No overflow of a guest's is lost, and none invented.", "the partition's purpose"),
)


def step(m: Machine, kind: int, a: int, b: int, operand: int, unused: int) -> int:
    """Let something happen, and look whether all is as it must be."""
    if kind == TICK:
        done = tick(m, a)
    elif kind == INTERRUPT:
        done = interrupt(m, a)
    elif kind == LOAD:
        done = load(m, a, b)
    elif kind == PUT:
        done = put(m, a)
    elif kind == ACCESS:
        done = access(m, a, b, operand)
    elif kind == OPEN:
        done = open_event(m, a, b)
    else:
        done = close_event(m, a)
    if done == NOT_NOW:
        return NOT_NOW
    return verdict(m)


def verdict(m: Machine) -> int:
    """Return DONE, or BROKEN and the property that is broken."""
    for c in range(CPUS):
        if (m.asked >> HOST) & 1 and not host_kept(m, c):
            return BROKEN + HOST
    for v in range(VCPUS):
        if (m.asked >> GUEST) & 1 and not guest_kept(m, v):
            return BROKEN + GUEST
        if (m.asked >> OVERFLOW) & 1 and not overflow_kept(m, v):
            return BROKEN + OVERFLOW
    return DONE


def host_kept(m: Machine, c: int) -> bool:
    """Every event on a counter of a CPU counts, and has counted what it ought to."""
    cpu = m.cpus[c]
    for i in range(COUNTERS):
        if cpu.event[i]:
            event = m.events[cpu.event[i] - 1]
            if (cpu.cnten >> i) & 1 == 0 or (event.count + cpu.counter[i]) & TOP != event.ought:
                return False
    return True


def guest_kept(m: Machine, v: int) -> bool:
    """A vCPU's counters, wherever they are, are as they ought to be."""
    vcpu = m.vcpus[v]
    for i in range(COUNTERS):
        value = vcpu.counter[i]
        if vcpu.cpu and (m.cpus[vcpu.cpu - 1].reserved >> i) & 1:
            value = m.cpus[vcpu.cpu - 1].counter[i]
        if value != vcpu.ought[i]:
            return False
    return True


def overflow_kept(m: Machine, v: int) -> bool:
    """A vCPU's overflows, wherever they are, are as they ought to be."""
    vcpu = m.vcpus[v]
    found = vcpu.ovs
    if vcpu.cpu:
        found |= m.cpus[vcpu.cpu - 1].ovs & m.cpus[vcpu.cpu - 1].reserved
    return found == vcpu.ought_ovs


# ---- the model ----------------------------------------------------------------------------------------------


def begin(asked: int, ticks: int, accesses: int) -> Machine:
    """Return the machine as it begins: nothing is loaded, nothing open."""
    m = records.new(Machine)
    m.asked, m.ticks, m.accesses = asked, ticks, accesses
    for vcpu in m.vcpus:
        vcpu.counter[:] = vcpu.ought[:] = [NEAR] * COUNTERS
    return m


def actions() -> list[Action]:
    """Return all that may happen, in the order in which it is tried."""
    made = []
    for c in range(CPUS):
        made.append(Action((TICK, c, 0, 0, 0), f"CPU {c} counts"))
        made.append(Action((INTERRUPT, c, 0, 0, 0), f"CPU {c} takes its PMU's interrupt"))
        made += [Action((LOAD, c, v, 0, 0), f"vCPU {v} is loaded on CPU {c}") for v in range(VCPUS)]
        made.append(Action((PUT, c, 0, 0, 0), f"the vCPU on CPU {c} is put"))
        made += [Action((ACCESS, c, of, operand, 0), f"the guest on CPU {c} {does}") for of, operand, does in WRITES]
        made += [Action((OPEN, c, e, 0, 0), f"the host opens event {e} on CPU {c}") for e in range(EVENTS)]
    made += [Action((CLOSE, e, 0, 0, 0), f"the host closes event {e}") for e in range(EVENTS)]
    return made


def model(ticks: int, accesses: int) -> Model:
    """Return the model with a budget of ticks and of accesses."""
    return Model(
        title=f"partition: {ticks} ticks, {accesses} accesses",
        record=Machine,
        sizes={},
        begin=lambda asked: begin(asked, ticks, accesses),
        step=step,
        actions=tuple(actions()),
        properties=PROPERTIES,
        words=_words,
        homes=("benchmarks.models.",),
    )


def _words(path: Path) -> tuple[str, dict[str, str]]:
    return " ".join(map(str, path)), {}
