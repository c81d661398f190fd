"""What can happen to a host, as one function of integers, for the readings to go through alike."""

from __future__ import annotations

import random

from linux.support import fill
from pmuvisor.arch import pmu
from pmuvisor.arch.events import BR_RETIRED, CPU_CYCLES, INST_RETIRED
from pmuvisor.linux import arm_pmuv3, perf
from pmuvisor.linux.host import ANY_CPU, NO_TASK, STATE_INACTIVE, STATE_OFF, Host

CPUS, TASKS, EVENTS = 2, 2, 12
OPEN, CLOSE, ENABLE, DISABLE, READ, ROTATE, SWITCH, RESCHED_UPDATE, HAPPEN = range(9)


def operate(host: Host, operation: int, c: int, number: int, value: int, now: int) -> int:
    """Do one of the things that can happen to a host; `value` is a CPU's mask, a task or an amount."""
    cpu = host.cpus[c]
    if operation == OPEN:
        result = perf.perf_event_open(host, c, number)
        if result == 0:
            perf.perf_install_in_context(host, number, now)
        return result
    if operation == CLOSE:
        perf.perf_remove_from_context(host, number, now)
    elif operation == ENABLE:
        perf.perf_event_enable(host, number, now)
    elif operation == DISABLE:
        perf.perf_event_disable(host, number, now)
    elif operation == READ:
        perf.perf_event_read(host, number, now)
    elif operation == ROTATE:
        return perf.perf_rotate_context(host, c, now)
    elif operation == RESCHED_UPDATE:
        perf.perf_pmu_resched_update(host, c, value, now)
    elif operation == SWITCH:
        if cpu.current != NO_TASK:
            perf.perf_event_task_sched_out(host, c, now)
        if value != NO_TASK:
            host.tasks[value].cpu = c
            perf.perf_event_task_sched_in(host, c, value, now)
    elif operation == HAPPEN:
        pmu.increment_cycle_counter(cpu.pe, pmu.count_pmu_events(cpu.pe, number), value)
        pmu.pmu_event(cpu.pe, number, INST_RETIRED, value)
        if pmu.check_for_pmu_overflow(cpu.pe) == 1:
            return arm_pmuv3.handle_irq(host, c, arm_pmuv3.getreset_flags(cpu))
    return 0


def random_event(rng: random.Random, host: Host, number: int) -> None:
    """Fill in an event to be opened, of a CPU or a task, mostly in a group that it can be in."""
    of_cpu, of_task = {"cpu": rng.randrange(CPUS)}, {"cpu": ANY_CPU, "task": rng.randrange(TASKS)}
    attributes: dict[str, int] = rng.choice([of_cpu, of_task])
    leaders = [i for i, event in enumerate(host.events) if event.attached and event.leader == i]
    if leaders and rng.random() < 0.4:
        leader = host.events[rng.choice(leaders)]
        attributes = {"leader": leader.leader, "cpu": leader.cpu, "task": leader.task, "pmu": leader.pmu}
    else:
        attributes["pmu"] = host.cpus[attributes["cpu"]].pmu if "task" not in attributes else rng.randrange(2)
        attributes["pinned"] = int(rng.random() < 0.3)
    zeros = {"count": 0, "period_left": 0, "samples": 0, "total_time_enabled": 0, "total_time_running": 0, "pinned": 0}
    others = {
        "config": rng.choice([INST_RETIRED, INST_RETIRED, CPU_CYCLES, BR_RETIRED]),
        "long": int(rng.random() < 0.3),
        "state": rng.choice([STATE_OFF, STATE_INACTIVE, STATE_INACTIVE]),
        "sample_period": rng.choice([0, 1, 1000, (1 << 31) - 1, 1 << 40]),
        "exclude_user": rng.getrandbits(1),
    }
    fill(host.events[number], number, **(zeros | {"task": NO_TASK, "pmu": 0} | others | attributes))


def random_operation(rng: random.Random, host: Host) -> tuple[int, int, int, int]:
    attached = [i for i, event in enumerate(host.events) if event.attached]
    free = [i for i in range(EVENTS) if i not in attached]
    operation = rng.choice([*range(9), OPEN, ROTATE, HAPPEN])
    c, number, value = rng.randrange(CPUS), 0, 0
    if operation in (CLOSE, ENABLE, DISABLE, READ):
        if not attached:
            return ROTATE, c, 0, 0
        number = rng.choice(attached)
    elif operation == OPEN:
        if not free:
            return ROTATE, c, 0, 0
        number = rng.choice(free)
        random_event(rng, host, number)
        c = next(c for c in range(CPUS) if host.cpus[c].pmu == host.events[number].pmu)
    elif operation == SWITCH:
        running = [cpu.current for cpu in host.cpus]
        value = rng.choice([NO_TASK, *(task for task in range(TASKS) if task not in running)])
    elif operation == RESCHED_UPDATE:
        value = rng.getrandbits(6) | rng.getrandbits(1) << 31
    elif operation == HAPPEN:
        number = rng.choice([0, 2])
        value = rng.choice([1, 999, 1 << 20, (1 << 31) - 1])
    return operation, c, number, value
