"""The scheduler: which task runs on which CPU, for how long.

A model, not kernel/sched/fair.c: tasks of equal weight take turns on their CPU in slices, a CPU between two tasks takes
one from a longer queue, and a task that wakes goes where the fewest are that it may use. What matters here is what the
rest of the kernel sees of it: the order of a switch (prepare_task_switch, finish_task_switch), and that a task
can be preempted at any time, put to sleep, and found again on another CPU, of another kind of core.

Who leaves and who comes is returned, so that KVM, above, can put and load the vCPU that a thread runs.
"""

from __future__ import annotations

from pmuvisor.linux import arm_spe, perf
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
    """State select_task_rq(): the CPU for a task that wakes.

    Of those that it may use, the one with the fewest tasks; of equals the one where it was last, or else the lowest.
    """
    task = host.tasks[number]
    best = ANY_CPU
    if allowed(task, task.cpu):
        best = task.cpu
    for c in range(len(host.cpus)):
        if best != ANY_CPU and nr_running(host, best) == 0:
            break
        if allowed(task, c) and (best == ANY_CPU or nr_running(host, c) < nr_running(host, best)):
            best = c
    return best


def try_to_wake_up(host: Host, number: int) -> int:
    """State try_to_wake_up(): a sleeping task becomes runnable. Return the CPU in whose queue it is."""
    c = select_task_rq(host, number)
    host.tasks[number].state = TASK_RUNNABLE
    host.tasks[number].migrations += int(host.tasks[number].cpu != c)
    enqueue_task(host, c, number)
    return c


def load_balance(host: Host, c: int) -> None:
    """State load_balance() and newidle_balance(): CPU `c`, between two tasks, takes one from the longest queue that has
    one for it, if that is longer than its own: no CPU has two tasks more than another for long.
    """
    tried = NO_TASK
    while True:
        busiest = ANY_CPU
        longest = host.cpus[c].nr_queued
        for other in range(len(host.cpus)):
            queued = host.cpus[other].nr_queued
            if queued > longest and queued < tried:
                busiest = other
                longest = queued
        if busiest == ANY_CPU:
            return
        number = dequeue_movable(host, busiest, c)
        if number != NO_TASK:
            host.tasks[number].migrations += 1
            enqueue_task(host, c, number)
            return
        tried = longest


# ---- a switch ---------------------------------------------------------------------------------------------


def sched_out(host: Host, c: int, now: int) -> int:
    """State prepare_task_switch(): the task on CPU `c` leaves it, and waits for its next turn unless it goes to sleep.

    Return the task, whose vCPU KVM now puts; NO_TASK where the CPU was idle.
    """
    number = host.cpus[c].current
    if number != NO_TASK:
        perf.perf_event_task_sched_out(host, c, now)
        arm_spe.task_sched_out(host, c)
        if host.tasks[number].state == TASK_RUNNABLE:
            enqueue_task(host, c, number)
    return number


def sched_in(host: Host, c: int, now: int) -> int:
    """State pick_next_task() and finish_task_switch(): the next task runs on the CPU, which has none.

    Return the task, whose vCPU KVM now loads; NO_TASK where the CPU stays idle.
    """
    load_balance(host, c)
    if host.cpus[c].nr_queued == 0:
        return NO_TASK
    number = dequeue_first(host, c)
    host.cpus[c].switches += 1
    perf.perf_event_task_sched_in(host, c, number, now)
    arm_spe.task_sched_in(host, c)
    return number


def go_to_sleep(host: Host, c: int) -> None:
    """The task on CPU `c` will not be runnable after the switch that follows."""
    host.tasks[host.cpus[c].current].state = TASK_SLEEPING
