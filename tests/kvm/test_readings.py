"""The compiled reading of linux/ and kvm/: CPython and numba go through the same states.

All of it is one compiled function over one layout, since what takes time is to compile, not to run.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import pytest

from arch.support import P1, P5, make_pe, random_core
from kvm.support import make_vm, random_host, random_vcpu
from kvm.test_access import random_guest_access
from kvm.timelines import KINDS, MS, Lab
from linux.operations import CPUS, OPEN, operate, random_operation
from linux.support import probe
from pmuvisor import records
from pmuvisor.arch.events import INST_RETIRED
from pmuvisor.arch.sysreg import PMSCR_E0SPE, name_of
from pmuvisor.compiled import compiled
from pmuvisor.kvm import timeline
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.access import AGAIN, guest_access
from pmuvisor.kvm.timeline import Timeline
from pmuvisor.kvm.vcpu import EMULATED, FIXED_COUNTERS_ONLY, LAZY, PARTITIONED
from pmuvisor.kvm.world import World
from pmuvisor.linux import arm_pmuv3

RUN, ACCESS, HOST = 0, 1, 2


def step(t: Timeline, what: int, a: int, b: int, c: int, d: int, now: int) -> int:
    """Let time pass until `now`; or let a guest make an access, or something happen to the host, with its operands."""
    if what == RUN:
        timeline.run_until(t, now)
        return t.happenings
    if what == ACCESS:
        return round_trip(t.world, a, b, c, d)
    return operate(t.world.host, a, b, c, d, now)


def round_trip(world: World, el: int, key: int, write: int, value: int) -> int:
    """Load, make one access, let the host's interrupt handlers run, put: all of a design's functions."""
    worlds.vcpu_load(world, 0, 0, 0)
    worlds.vcpu_enter(world, 0, 0, 0)
    outcome = guest_access(world, 0, 0, el, key, write, value, 0)
    if outcome == AGAIN:
        outcome = guest_access(world, 0, 0, el, key, write, value, 0)
    worlds.vcpu_exit(world, 0, 0)
    samples = worlds.handle_irq(world, 0, 0)
    worlds.vcpu_put(world, 0, 0, 0)
    return outcome | (samples << 8)


@cache
def compiled_step() -> Any:
    return compiled(step, boundscheck=True, also=("kvm.", "linux."))


def test_a_function_is_compiled_once_however_narrow_its_arguments_are() -> None:
    step_of = compiled_step().py_func.__globals__
    fast, lab = compiled_step(), make_lab()
    row = np.zeros(1, records.layout(Timeline, lab.sizes))
    records.store(lab.t, row, lab.sizes)
    fast(row[0], RUN, 0, 0, 0, 0, 0)
    # Its callers take counters and registers from fields of 5, 6, 16 and 33 bits.
    assert len(step_of["round_trip"].signatures) == len(step_of["operate"].signatures) == 1
    world = step_of["round_trip"].py_func.__globals__["worlds"]
    assert len(world.vcpu_load.signatures) == len(world.vcpu_put.signatures) == 1


def make_lab(design: int = PARTITIONED) -> Lab:
    """Return a lab of the one size that the tests here share."""
    return Lab(["neoverse-n1"] * 2, vcpus=3, programs=2, guest_counters=4, events=12, filter_words=1, design=design)


@pytest.mark.parametrize("design", [EMULATED, PARTITIONED, LAZY, FIXED_COUNTERS_ONLY])
def test_a_world_in_time_goes_through_the_same_states(design: int) -> None:
    fast, lab = compiled_step(), make_lab(design)
    if design == FIXED_COUNTERS_ONLY:
        lab.t.world.vms[0].nr_counters = 0
        for guest in lab.t.world.vcpus:
            guest.cnten = 1 << 31
    for number in range(5):
        lab.task(number, on=0b11, ipms=700_000 + 1000 * number, user=650, burst=900_000 * (number % 3), pause=400_000)
    for number in range(12):
        where = {"cpu": number % 2} if number % 3 else {"task": number % 5}
        period = 400_000 * (number % 4 == 0)
        lab.open(KINDS[number % 3], sample_period=period, exclude_guest=number % 2, **where)
    lab.profile(period=1024, cpu=0, buffer=1 << 14, jitter=1)
    lab.profile(period=1500, task=3, buffer=1 << 15, levels=PMSCR_E0SPE)
    row = np.zeros(1, records.layout(Timeline, lab.sizes))
    records.store(lab.t, row, lab.sizes)
    back = records.new(Timeline, lab.sizes)
    for ms in (1, 7, 30, 100):
        lab.run(ms)
        fast(row[0], RUN, 0, 0, 0, 0, ms * MS)
        records.load(back, row, lab.sizes)
        assert back == lab.t
    assert lab.t.happenings > 200
    assert min(session.interrupts for session in lab.t.world.host.spe_sessions) > 2


def test_accesses_of_guests_of_every_design_go_through_the_same_states() -> None:
    fast = compiled_step()
    rng = random.Random(3)
    lab = make_lab()
    row = np.zeros(1, records.layout(Timeline, lab.sizes))
    start, back = records.copy(lab.t.world), records.new(World, lab.sizes)
    for number in range(400):
        world = lab.t.world
        records.assign(world, start)
        pe = make_pe(**random_core(rng, 6))
        vm = make_vm(rng.randrange(1, 7), use_fgt=rng.getrandbits(1), denied=[INST_RETIRED])
        vm.design, vm.pmuver = number & 3, min(pe.core.pmuver, 6)
        random_host(rng, pe, vm)
        vcpu = random_vcpu(rng, pe, vm)
        vcpu.reload_pmu, vcpu.first_event = 1, lab.events
        records.assign(world.host.cpus[0].pe, pe)
        records.assign(world.vms[0], vm)
        records.assign(world.vcpus[0], vcpu)
        arm_pmuv3.reset(world.host.cpus[0])
        records.store(world, row["world"], lab.sizes)
        el, key, write, value = random_guest_access(rng)
        outcome = round_trip(world, el, key, write, value)
        signed = value - (1 << 64) if value >> 63 else value
        assert int(fast(row[0], ACCESS, el, key, write, signed, 0)) == outcome
        records.load(back, row["world"], lab.sizes)
        assert back == world, (vm.design, name_of(key), write)


@pytest.mark.parametrize("pmuver", [P1, P5])
def test_whatever_happens_to_a_host_goes_through_the_same_states(pmuver: int) -> None:
    fast, lab = compiled_step(), make_lab()
    row = np.zeros(1, records.layout(Timeline, lab.sizes))
    host, start = lab.t.world.host, records.copy(lab.t.world.host)
    back = records.copy(host)
    for seed in range(12):
        rng = random.Random(seed)
        records.assign(host, start)
        probe(host, 6, pmuver, range(CPUS))
        now = 0
        records.store(host, row["world"]["host"], lab.sizes)
        for _ in range(100):
            operation, c, number, value = random_operation(rng, host)
            if operation == OPEN:  # the attributes of the event are new
                records.store(host, row["world"]["host"], lab.sizes)
            now += rng.randrange(5_000_000)
            expected = operate(host, operation, c, number, value, now)
            assert fast(row[0], HOST, operation, c, number, value, now) == expected
            records.load(back, row["world"]["host"], lab.sizes)
            assert back == host, (seed, operation, c, number, value)
