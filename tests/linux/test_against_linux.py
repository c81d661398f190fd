"""perf's core beside the real one: Debian's kernel does the same system calls in a guest, and says the same.

A scenario is a list of steps. The guest (guest/schedule.c) does them with perf_event_open on a grid of the kernel's
multiplexing interval, so that its rotations and the steps come in one known order; the semantics does the same steps
with `perf_rotate_context` at each point of the grid. What is compared is what a reader of the events sees: what each
open returned, whether a pinned event is in error, how long each event was enabled and how long it ran.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from errno import EBADF
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from linux.support import CONTEXT_EVENTS, Scene, check_counters, make_host
from pmuvisor.arch.cores import core
from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED
from pmuvisor.board.initramfs import CharDevice, Directory, File, cpio_newc
from pmuvisor.board.machine import Status
from pmuvisor.lab.guests import builtin_guest, cached_linux
from pmuvisor.lab.run import Request, run
from pmuvisor.linux.host import ANY_CPU, NO_TASK, STATE_ERROR, STATE_INACTIVE, STATE_OFF

COMPILER = "aarch64-linux-gnu-gcc"
FLAGS = (
    *("-Os", "-std=gnu11", "-ffreestanding", "-fno-stack-protector", "-fno-pic", "-fno-pie"),
    *("-fno-tree-loop-distribute-patterns", "-mgeneral-regs-only", "-march=armv8-a", "-mbranch-protection=none"),
    *("-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"),
)
SOURCE = Path(__file__).parent / "guest" / "schedule.c"


def has_compiler() -> bool:
    """Tell whether the cross compiler is here, with the kernel's headers, which its package only recommends."""
    if not shutil.which(COMPILER):
        return False
    command = [COMPILER, "-E", "-x", "c", "-include", "linux/perf_event.h", "/dev/null"]
    return subprocess.run(command, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.skipif(cached_linux() is None, reason="no Linux kernel in the cache: `pmuvisor guest fetch linux`"),
    pytest.mark.skipif(not has_compiler(), reason=f"no {COMPILER} with Linux headers here"),
]

DISABLED, PINNED, EXCLUDE_USER, EXCLUDE_KERNEL = 1 << 0, 1 << 2, 1 << 4, 1 << 5
"""Bits of struct perf_event_attr's flags (include/uapi/linux/perf_event.h)."""
START = 500_000
"""Nanoseconds after a point of the grid at which the guest begins a scenario."""
SLACK = 400_000
"""Nanoseconds by which a time may differ: the guest's system calls take time of their own, the model's none. It is a
tenth of an interval, so one rotation too many, too few or of another event shows."""


class Step(NamedTuple):
    what: str
    numbers: tuple[int, ...]


def task(config: int = INST_RETIRED, flags: int = 0, long: int = 0) -> Step:
    return Step("o", (config, flags, -1, -1, long))


def cpu(config: int = INST_RETIRED, flags: int = 0, long: int = 0) -> Step:
    return Step("o", (config, flags, -1, 0, long))


def sibling(leader: int, config: int = INST_RETIRED, flags: int = 0, *, of_cpu: bool = False, long: int = 0) -> Step:
    return Step("o", (config, flags, leader, 0 if of_cpu else -1, long))


def enable(event: int) -> Step:
    return Step("e", (event,))


def disable(event: int) -> Step:
    return Step("d", (event,))


def close(event: int) -> Step:
    return Step("c", (event,))


def ms(milliseconds: int) -> Step:
    return Step("r", (milliseconds * 1000,))


def sleep(milliseconds: int) -> Step:
    return Step("z", (milliseconds * 1000,))


SCENARIOS: dict[str, list[Step]] = {
    "8 task events on 6 counters": [*[task()] * 8, ms(64)],
    "8 events of a CPU on 6 counters": [*[cpu()] * 8, ms(64)],
    "12 task events, cycles among them": [*[task(), task(CPU_CYCLES)] * 6, ms(48)],
    "7 pinned on 6 counters": [*[task(flags=PINNED)] * 7, task(), ms(20)],
    "7 pinned of a CPU": [*[cpu(flags=PINNED)] * 7, cpu(), task(), ms(20)],
    "CPU pinned before task pinned": [*[task(flags=PINNED)] * 4, *[cpu(flags=PINNED)] * 4, ms(20)],
    "CPU flexible keeps task flexible off": [*[cpu()] * 6, *[task()] * 2, ms(40)],
    "CPU flexible rotates before task flexible": [*[cpu()] * 8, *[task()] * 2, ms(40)],
    "task flexible on what is left": [*[cpu()] * 4, *[task()] * 4, ms(40)],
    "all four kinds": [
        *[task()] * 3,
        *[cpu()] * 3,
        *[task(flags=PINNED)] * 2,
        *[cpu(flags=PINNED)] * 2,
        ms(60),
    ],
    "a group of 4 and 4 singles": [task(), *[sibling(0)] * 3, *[task()] * 4, ms(80)],
    "two groups of 4 and a single": [task(), *[sibling(0)] * 3, task(), *[sibling(4)] * 3, task(), ms(60)],
    "nothing after the first group that does not fit": [
        *[task()] * 4,
        task(),
        *[sibling(4)] * 3,
        *[task()] * 2,
        ms(80),
    ],
    "a group of 7 that counts": [task(), *[sibling(0)] * 6, ms(12)],
    "a group of 7, its leader off": [task(flags=DISABLED), *[sibling(0)] * 6, enable(0), ms(12)],
    "a group of 8 that is off, then on": [
        task(flags=DISABLED),
        *[sibling(0, flags=DISABLED)] * 7,
        *[enable(i) for i in range(8)],
        task(),
        ms(20),
    ],
    "a group whose siblings go on one by one": [
        task(),
        *[sibling(0, flags=DISABLED)] * 7,
        ms(5),
        *[step for i in range(1, 8) for step in (enable(i), ms(5))],
    ],
    "a pinned sibling": [task(), sibling(0, flags=PINNED), ms(5)],
    "a sibling's sibling": [task(), sibling(0), sibling(1), ms(5)],
    "a sibling of another context": [task(), sibling(0, of_cpu=True), ms(5)],
    "a pinned event in error is enabled again": [
        *[task(flags=PINNED)] * 7,
        ms(6),
        close(0),
        ms(6),
        enable(6),
        ms(6),
    ],
    "a pinned event in error, disabled": [*[task(flags=PINNED)] * 7, ms(4), disable(6), ms(4), enable(6), ms(4)],
    "a leader is closed": [task(), *[sibling(0)] * 3, *[task()] * 4, ms(10), close(0), ms(40)],
    "a pinned leader is closed": [
        *[task(flags=PINNED), sibling(0), sibling(0)],
        *[task()] * 4,
        ms(10),
        close(0),
        ms(60),
    ],
    "a leader that is off is closed": [task(), *[sibling(0)] * 2, ms(10), disable(0), ms(10), close(0), ms(10)],
    "a leader off and on": [*[task()] * 2, sibling(0), ms(10), disable(0), ms(10), enable(0), ms(10)],
    "a sibling off and on": [*[task()] * 2, sibling(0), ms(10), disable(2), ms(10), enable(2), ms(10)],
    "a sibling on while its leader is off": [
        task(flags=DISABLED),
        sibling(0, flags=DISABLED),
        ms(4),
        enable(1),
        ms(4),
        enable(0),
        ms(4),
    ],
    "what waits does not go on at a close": [*[cpu()] * 7, close(0), ms(2)],
    "what waits goes on at the next open": [*[cpu()] * 7, close(0), cpu(), ms(2)],
    "what waits does not go on at the open of an event that is off": [
        *[cpu()] * 7,
        close(0),
        cpu(flags=DISABLED),
        ms(2),
    ],
    "what waits does not go on at a sibling's enable, its leader off": [
        *[cpu()] * 6,
        cpu(flags=DISABLED),
        sibling(6, flags=DISABLED, of_cpu=True),
        cpu(),
        close(0),
        enable(7),
        ms(2),
    ],
    "asleep for a while": [*[task()] * 7, *[cpu()] * 2, ms(20), sleep(20), ms(20)],
    "asleep, pinned": [*[task(flags=PINNED)] * 4, *[cpu()] * 4, ms(20), sleep(20), ms(20)],
    "long counters": [*[task(long=1)] * 5, *[task(CPU_CYCLES, long=1)] * 2, ms(60)],
    "long counters between short ones": [task(), task(long=1), task(), task(long=1), task(), task(long=1), ms(60)],
    "a pinned long counter without a pair": [
        *[task(flags=PINNED)] * 5,
        task(flags=PINNED, long=1),
        task(flags=PINNED),
        ms(8),
    ],
    "a group of long counters": [task(long=1), *[sibling(0, long=1)] * 3, task(long=1), ms(20)],
    "exclude bits are not scheduling": [
        *[task(flags=EXCLUDE_USER), task(flags=EXCLUDE_KERNEL)] * 4,
        ms(40),
    ],
}


def random_scenario(rng: random.Random) -> list[Step]:
    """Return a scenario of random system calls, with enough open that it multiplexes."""
    steps: list[Step] = []
    opened: list[Step] = []

    def open_one() -> None:
        leaders = [i for i, step in enumerate(opened) if step.numbers[2] < 0]
        flags = rng.choice([0, 0, 0, DISABLED])
        config = rng.choice([INST_RETIRED, INST_RETIRED, INST_RETIRED, CPU_CYCLES])
        long = int(rng.random() < 0.15)
        if leaders and rng.random() < 0.4:
            leader = rng.choice(leaders)
            step = Step("o", (config, flags, leader, opened[leader].numbers[3], long))
        else:
            step = Step("o", (config, flags | rng.choice([0, 0, 0, PINNED]), -1, rng.choice([-1, -1, 0]), long))
        opened.append(step)
        steps.append(step)

    for _ in range(rng.randrange(4, 9)):
        open_one()
    for _ in range(rng.randrange(6, 14)):
        choice = rng.random()
        if choice < 0.2 and len(opened) < CONTEXT_EVENTS - 2:
            open_one()
        elif choice < 0.55:
            steps.append(Step(rng.choice("eeddc"), (rng.randrange(len(opened)),)))
        elif choice < 0.6:
            steps.append(sleep(4))
        else:
            steps.append(ms(rng.choice([4, 4, 8, 12])))
    return [*steps, ms(rng.choice([4, 8, 16]))]


RANDOM = {f"random {seed}": random_scenario(random.Random(seed)) for seed in range(40)}
ALL = SCENARIOS | RANDOM


class Reading(NamedTuple):
    """What a scenario says of an event in the end."""

    open_error: int
    closed: bool
    in_error: bool
    enabled: int
    running: int


@cache
def in_linux(core_name: str) -> tuple[int, dict[str, list[Reading]]]:
    """Boot the guest on a core; return how many event counters it has, and its readings of all scenarios."""
    lines = []
    for steps in ALL.values():
        lines += ["s", *(" ".join(map(str, (step.what, *step.numbers))) for step in steps), "p"]
    with TemporaryDirectory() as folder:
        initrd = Path(folder) / "initrd"
        initrd.write_bytes(initramfs(build(Path(folder) / "init"), "\n".join([*lines, ""])))
        result = run(Request("linux", core(core_name), counters=6, initrd=initrd, append="quiet", timeout=300))
    assert result.status is Status.POWEROFF, result.console[-2000:]
    said = result.console.replace("\r", "")
    assert re.search(r"^interval 4$", said, re.MULTILINE), said[-2000:]
    scenarios = said.split("scenario\n")[1:]
    assert len(scenarios) == len(ALL)
    readings = [[reading_of(line) for line in re.findall(r"^(?:event|closed).*$", part, re.M)] for part in scenarios]
    return result.counters, dict(zip(ALL, readings, strict=True))


def build(out: Path) -> bytes:
    include = f"-I{builtin_guest('demo').parents[1] / 'linux'}"
    subprocess.run([COMPILER, *FLAGS, include, str(SOURCE), "-o", str(out)], check=True, timeout=60)
    return out.read_bytes()


def initramfs(init: bytes, scenarios: str) -> bytes:
    folders = [Directory(name) for name in ("dev", "proc", "sys")]
    files = [File("init", init, 0o755), File("scenarios", scenarios.encode())]
    return cpio_newc([*folders, CharDevice("dev/console", 5, 1), *files])


def reading_of(line: str) -> Reading:
    if line == "closed":
        return Reading(0, True, False, 0, 0)
    error, got, _, enabled, running = map(int, line.split()[1:])
    # A read of an event in error is the end of the file.
    return Reading(error, False, error == 0 and got == 0, enabled, running)


def in_model(steps: list[Step], n: int, core_name: str) -> list[Reading]:
    """Do a scenario in the semantics; return its readings."""
    of = core(core_name)
    scene = Scene(make_host(n=n, pmuver=of.pmuver))
    scene.now = START
    scene.switch(0, 0)
    results: list[int] = []
    closed: set[int] = set()
    for step in steps:
        do(scene, step, results, closed)
        check_counters(scene.host)
    out = []
    for number, result in enumerate(results):
        times = (0, 0) if result != 0 or number in closed else scene.times(number)
        in_error = result == 0 and number not in closed and scene.state(number) == STATE_ERROR
        out.append(Reading(-result, number in closed, in_error, *((0, 0) if in_error else times)))
    return out


def do(scene: Scene, step: Step, results: list[int], closed: set[int]) -> None:
    """Do one step; `results` are what the opens returned. What is done to an event that is not open does nothing."""
    if step.what == "o":
        results.append(open_event(scene, step, results, closed))
    elif step.what == "r":
        scene.run(step.numbers[0] * 1000)
    elif step.what == "z":
        scene.switch(0, NO_TASK)
        scene.run(step.numbers[0] * 1000)
        scene.switch(0, 0)
    elif results[step.numbers[0]] == 0 and step.numbers[0] not in closed:
        {"e": scene.enable, "d": scene.disable, "c": scene.close}[step.what](step.numbers[0])
        closed |= set(step.numbers) if step.what == "c" else set()


def open_event(scene: Scene, step: Step, results: list[int], closed: set[int]) -> int:
    config, flags, leader, of_cpu, long = step.numbers
    attributes = {
        "config": config,
        "long": long,
        "pinned": int(flags & PINNED != 0),
        "exclude_user": int(flags & EXCLUDE_USER != 0),
        "exclude_kernel": int(flags & EXCLUDE_KERNEL != 0),
        "state": STATE_OFF if flags & DISABLED else STATE_INACTIVE,
        "cpu": ANY_CPU if of_cpu < 0 else of_cpu,
        "task": 0 if of_cpu < 0 else NO_TASK,
    }
    if leader >= 0:
        if results[leader] != 0 or leader in closed:
            scene.opened += 1
            return -EBADF
        attributes["leader"] = leader
    return scene.try_open(**attributes)[1]


@pytest.mark.parametrize("core_name", ["neoverse-n1", "neoverse-n2"])
@pytest.mark.parametrize("name", ALL)
def test_linux_schedules_the_same(name: str, core_name: str) -> None:
    n, readings = in_linux(core_name)
    expected = in_model(ALL[name], n, core_name)
    actual = readings[name]
    assert [of[:3] for of in actual] == [of[:3] for of in expected]
    for one, other in zip(actual, expected, strict=True):
        assert abs(one.enabled - other.enabled) < SLACK, (actual, expected)
        assert abs(one.running - other.running) < SLACK, (actual, expected)
