"""What upstream's emulated PMU does not do is found where it is not excused; to look at perf events changes none."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from pmuvisor import records
from pmuvisor.arch.sysreg import PMCNTENSET_EL0
from pmuvisor.check import models, plain, properties, state, steps, upstream
from pmuvisor.check.explore import Exploration, ReplayError
from pmuvisor.check.model import BROKEN, DONE, NOT_NOW
from pmuvisor.check.models import PRESETS
from pmuvisor.kvm import emulated
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import Vcpu, Vm
from pmuvisor.linux.host import Host, PerfEvent

STEPS = {
    "overflow-from-zero": 9,
    "next-overflow": 9,
    "late-interrupt": 5,
    "type-not-told": 8,
    "pmxevcntr-31": 7,
    "el0-undefined": 4,
    "filter-of-fixed": 2,
    "event-in-ccfiltr": 4,
}
"""How long the shortest way to each is, as docs/check.md has it."""


@pytest.mark.parametrize("number", range(len(upstream.ALL)), ids=[inexact.name for inexact in upstream.ALL])
def test_what_upstream_does_not_do_is_found_where_it_is_not_excused(number: int) -> None:
    inexact = upstream.ALL[number]
    preset = PRESETS[inexact.preset]
    model = models.model(preset, inexact.design, upstream.EVERY & ~(1 << number))
    found = plain.explore(model, asked=model.every)
    assert found.violation is not None
    assert properties.ALL[found.violation.property].name == inexact.breaks
    assert len(found.violation.actions) == STEPS[inexact.name]
    excused = models.model(preset, inexact.design)
    with pytest.raises(ReplayError):
        Exploration(excused).replay(found.violation)


def test_nothing_is_excused_of_a_design_whose_counters_are_real_ones() -> None:
    for name, design in models.DESIGNS.items():
        excused = upstream.EVERY if name in ("emulated", "fixed-counters-only") else 0
        assert models.machine(PRESETS["tiny"], design).excused == excused


@pytest.mark.parametrize("design", models.DESIGNS)
def test_a_counter_is_looked_at_without_changing_it_and_is_what_kvm_would_find(design: str) -> None:
    preset = PRESETS["tiny"]
    sizes, actions = models.sizes(preset, models.DESIGNS[design]), models.actions(preset, models.DESIGNS[design])
    seen = set()
    for seed in range(6):
        rng = random.Random(seed)
        m = models.machine(preset, models.DESIGNS[design])
        m.left[:] = [60] * 5
        for _ in range(100):
            steps.step(m, *rng.choice(actions).operands)
            before = records.key(m, sizes)
            looked = {i: properties.counter_value(m, 0, i) for i in (*range(m.world.vms[0].nr_counters), 31)}
            assert records.key(m, sizes) == before
            found = records.copy(m)
            assert looked == {i: worlds.counter_value(found.world, 0, i, 0) for i in looked}
            seen |= set(looked.values())
    assert len(seen) > 1


# ---- userspace ----------------------------------------------------------------------------------------------


def do(m: state.Machine, *operands: int) -> int:
    return steps.step(m, *operands, *[0] * (5 - len(operands)))


def test_attributes_are_set_before_a_vcpu_has_run_only() -> None:
    attributes = [(state.SET_FILTER, 8, 1), (state.SET_PMU, 0), (state.SET_FIXED,)]
    for operands in attributes:
        fresh = models.machine(PRESETS["attributes"], models.DESIGNS["emulated"])
        assert do(fresh, *operands) == DONE
        m = models.machine(PRESETS["attributes"], models.DESIGNS["emulated"])
        assert do(m, state.SWITCH_IN, 0) == DONE
        assert do(m, *operands) == NOT_NOW


def test_the_last_of_set_pmu_and_fixed_counters_only_says_what_the_guest_has() -> None:
    m = models.machine(PRESETS["attributes"], models.DESIGNS["emulated"])
    vm, mirror = m.world.vms[0], m.mirrors[0].pe.core
    assert do(m, state.SET_FIXED) == DONE
    assert (vm.nr_counters, mirror.event_counters, vm.supported_pmus) == (0, 0, 0b11)
    assert do(m, state.SET_PMU, 1) == DONE
    assert (vm.nr_counters, mirror.event_counters, vm.supported_pmus, vm.pmu) == (1, 1, 0b10, 1)


def test_userspace_writes_the_whole_of_a_mask_of_a_vcpu_that_is_not_loaded() -> None:
    m = models.machine(PRESETS["restored"], models.DESIGNS["emulated"])
    key = PMCNTENSET_EL0
    assert m.world.vcpus[0].cnten == models.CYCLE | 1
    assert do(m, state.WRITE_REGISTER, 0, key, 1) == DONE
    assert m.world.vcpus[0].cnten == m.mirrors[0].pe.cnten == 1
    assert do(m, state.SWITCH_IN, 0) == DONE
    assert do(m, state.WRITE_REGISTER, 0, key, 0) == NOT_NOW


def test_a_mirror_that_missed_what_userspace_wrote_would_be_noticed() -> None:
    m = models.machine(PRESETS["restored"], models.DESIGNS["partitioned"])
    m.mirrors[0].pe.cnten = 0
    assert do(m, state.SWITCH_IN, 0) == BROKEN + properties.GUEST_REGISTERS


# ---- what is excused hides little ---------------------------------------------------------------------------


def deaf(host: Host, c: int, vm: Vm, vcpu: Vcpu) -> None:
    """Nobody is told that events have overflowed."""


def forgetful(host: Host, c: int, vm: Vm, vcpu: Vcpu, i: int, now: int) -> None:
    """A counter that stops loses what its event has counted."""
    emulated.release_perf_event(host, vcpu, i, now)


def open_to_the_host(event: PerfEvent, control: int) -> None:
    """An event of a guest's counts the host as well."""
    emulated.set_exclusions(event, control)
    event.exclude_host = 0


@pytest.mark.parametrize(
    ("sound", "broken", "preset", "breaks"),
    [
        (emulated.handle_overflows, deaf, "overflows", "overflows"),
        (emulated.stop_counter, forgetful, "tiny", "filtered"),
        (emulated.set_exclusions, open_to_the_host, "tiny", "guest-counts"),
    ],
)
def test_an_emulated_design_that_is_broken_is_found_with_all_that_is_excused(
    sound: Callable[..., Any], broken: Callable[..., Any], preset: str, breaks: str
) -> None:
    found = plain.explore(models.model(PRESETS[preset], "emulated"), {sound: broken}, most=2000)
    assert found.violation is not None
    assert properties.ALL[found.violation.property].name == breaks
