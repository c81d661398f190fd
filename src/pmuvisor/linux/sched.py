"""The scheduler: which task runs on which CPU, for how long.

A model, not kernel/sched/fair.c: tasks of equal weight take turns on their CPU in slices, a CPU that runs dry pulls
from the longest queue, and a task that wakes goes to an idle CPU if there is one that it may use. What matters here is
what the rest of the kernel sees of it: the order of a switch (prepare_task_switch, finish_task_switch), and that a task
can be preempted at any time, put to sleep, and found again on another CPU, of another kind of core.

Who leaves and who comes is returned, so that KVM, above, can put and load the vCPU that a thread runs.
"""

from __future__ import annotations

from pmuvisor.linux import perf
from pmuvisor.linux.host import ANY_CPU, NO_TASK, TASK_RUNNABLE, TASK_SLEEPING, Host, Task


def allowed(task: Task, c: int) -> bool:
    """Tell whether a task may run on CPU `c` (task_struct.cpus_mask)."""
    return (task.allowed[c >> 5] >> (c & 31)) & 1 == 1


def nr_running(host: Host, c: int) -> int:
    """Return how many tasks a CPU has, the running one included (struct rq, nr_running)."""
    return host.cpus[c].nr_queued + int(host.cpus[c].current != NO_TASK)


# ---- the queue of a CPU -----------------------------------------------------------------------------------


def enqueue_task(host: Host, c: int, number: int) -> None:
    """State enqueue_task(): a task waits for its turn on CPU `c`, behind those that wait already."""
    cpu = host.cpus[c]
    task = host.tasks[number]
    task.cpu = c
    task.next = NO_TASK
    if cpu.nr_queued == 0:
        cpu.first = number
    else:
        host.tasks[cpu.last].next = number
    cpu.last = number
    cpu.nr_queued += 1


def dequeue_first(host: Host, c: int) -> int:
    """Take the task that has waited longest from a queue that is not empty."""
    cpu = host.cpus[c]
    number = cpu.first
    cpu.first = host.tasks[number].next
    cpu.nr_queued -= 1
    return number


def dequeue_movable(host: Host, c: int, to: int) -> int:
    """Take the first task of CPU `c`'s queue that may run on CPU `to`; NO_TASK where there is none."""
    cpu = host.cpus[c]
    before = NO_TASK
    number = cpu.first
    for _ in range(cpu.nr_queued):
        task = host.tasks[number]
        if allowed(task, to):
            if before == NO_TASK:
                cpu.first = task.next
            else:
                host.tasks[before].next = task.next
            if cpu.last == number:
                cpu.last = before
            cpu.nr_queued -= 1
            return number
        before = number
        number = task.next
    return NO_TASK


# ---- where a task goes ------------------------------------------------------------------------------------


def select_task_rq(host: Host, number: int) -> int:
    """State select_task_rq(): the CPU for a task that wakes: its last one if that is idle, else an idle one, else its
    last one, else the one with the fewest tasks; of those that it may use.
    """
    task = host.tasks[number]
    best = ANY_CPU
    if allowed(task, task.cpu):
        best = task.cpu
    if best != ANY_CPU and nr_running(host, best) == 0:
        return best
    for c in range(len(host.cpus)):
        if allowed(task, c):
            running = nr_running(host, c)
            if running == 0:
                return c
            if not allowed(task, task.cpu) and (best == ANY_CPU or running < nr_running(host, best)):
                best = c
    return best


def try_to_wake_up(host: Host, number: int) -> int:
    """State try_to_wake_up(): a sleeping task becomes runnable. Return the CPU in whose queue it is."""
    c = select_task_rq(host, number)
    host.tasks[number].state = TASK_RUNNABLE
    enqueue_task(host, c, number)
    return c


def newidle_balance(host: Host, c: int) -> int:
    """State newidle_balance(): CPU `c` has nothing to run, and takes a task from the longest queue that has one for it.

    Return the task, or NO_TASK.
    """
    tried = 0
    while True:
        busiest = ANY_CPU
        for other in range(len(host.cpus)):
            longest = host.cpus[busiest].nr_queued if busiest != ANY_CPU else 0
            queued = host.cpus[other].nr_queued
            if queued > longest and (tried == 0 or queued < tried):
                busiest = other
        if busiest == ANY_CPU:
            return NO_TASK
        number = dequeue_movable(host, busiest, c)
        if number != NO_TASK:
            return number
        tried = host.cpus[busiest].nr_queued


# ---- a switch ---------------------------------------------------------------------------------------------


def sched_out(host: Host, c: int, now: int) -> int:
    """State prepare_task_switch(): the task on CPU `c` leaves it, and waits for its next turn unless it goes to sleep.

    Return the task, whose vCPU KVM now puts; NO_TASK where the CPU was idle.
    """
    number = host.cpus[c].current
    if number != NO_TASK:
        perf.perf_event_task_sched_out(host, c, now)
        if host.tasks[number].state == TASK_RUNNABLE:
            enqueue_task(host, c, number)
    return number


def sched_in(host: Host, c: int, now: int) -> int:
    """State pick_next_task() and finish_task_switch(): the next task runs on the CPU, which has none.

    Return the task, whose vCPU KVM now loads; NO_TASK where the CPU stays idle.
    """
    number = NO_TASK
    if host.cpus[c].nr_queued != 0:
        number = dequeue_first(host, c)
    else:
        number = newidle_balance(host, c)
    if number != NO_TASK:
        task = host.tasks[number]
        if task.cpu != c:
            task.migrations += 1
        task.cpu = c
        host.cpus[c].switches += 1
        perf.perf_event_task_sched_in(host, c, number, now)
    return number


def go_to_sleep(host: Host, c: int) -> None:
    """The task on CPU `c` will not be runnable after the switch that follows."""
    host.tasks[host.cpus[c].current].state = TASK_SLEEPING
