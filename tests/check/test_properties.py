"""Properties that no defect of the catalogue breaks: something that does, made by hand, is found where it must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pmuvisor.arch.pmu import Pe
from pmuvisor.check import models, plain, properties
from pmuvisor.check.models import PRESETS
from pmuvisor.kvm import emulated, partitioned, pmu
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import FREE, HostContext, Vcpu, Vm, implemented_counter_mask
from pmuvisor.kvm.world import World
from pmuvisor.linux.host import Cpu, Host


def stays_free(world: World, c: int, v: int, now: int) -> None:
    """Forget what set_guest_ownership() is for."""
    worlds.vcpu_put(world, c, v, now)
    worlds.load_as(world, c, v, FREE, now)


def flags_left(pe: Pe, vm: Vm, vcpu: Vcpu) -> int:
    """Look at the overflow flags and leave them: PMUIRQ comes again at once."""
    flags = partitioned.handle_irq(pe, vm, vcpu)
    pe.ovs = flags | (vcpu.ovs & implemented_counter_mask(vm))
    return flags


def no_fgt(pe: Pe, vm: Vm, vcpu: Vcpu) -> bool:
    """Trap all that a guest does to its PMU."""
    return False


def users_forgotten(pe: Pe, host: HostContext, vm: Vm, vcpu: Vcpu) -> None:
    """Put a vCPU, but for the host's PMUSERENR_EL0."""
    userenr = pe.userenr
    partitioned.vcpu_put(pe, host, vm, vcpu)
    pe.userenr = userenr


def el0_as_it_is(cpu: Cpu) -> None:
    """Switch no event at EL0."""


def untold(host: Host, c: int, vm: Vm, vcpu: Vcpu, i: int) -> None:
    """Handle the overflow of a guest's perf event, but tell the guest nothing."""
    told = vcpu.ovs
    emulated.perf_overflow(host, c, vm, vcpu, i)
    vcpu.ovs = told


@pytest.mark.parametrize(
    ("function", "instead", "design", "preset", "breaks"),
    [
        (worlds.set_guest_ownership, stays_free, "lazy", "fresh", "progress"),
        (partitioned.handle_irq, flags_left, "partitioned", "tiny", "progress"),
        (partitioned.uses_fgt, no_fgt, "partitioned", "tiny", "direct"),
        (partitioned.vcpu_put, users_forgotten, "partitioned", "modifiers", "host-back"),
        (pmu.restore_guest, el0_as_it_is, "partitioned", "modifiers", "host-counts"),
        (pmu.restore_host, el0_as_it_is, "partitioned", "modifiers", "host-counts"),
        (emulated.perf_overflow, untold, "emulated", "tiny", "overflows"),
    ],
)
def test_what_breaks_a_property_is_found(
    function: Callable[..., Any], instead: Callable[..., Any], design: str, preset: str, breaks: str
) -> None:
    model = models.model(PRESETS[preset], design)
    asked = 1 << [of.name for of in properties.ALL].index(breaks)
    found = plain.explore(model, {function: instead}, asked)
    assert found.violation is not None
    assert properties.ALL[found.violation.property].name == breaks


def test_modifiers_of_an_event_are_those_of_perf() -> None:
    """perf-list(1): u and k are levels, G and H are guests and the host; one of a pair leaves the other out."""
    fields = "exclude_user", "exclude_kernel", "exclude_guest", "exclude_host"
    for modifiers, excluded in {
        "": "",
        "u": "exclude_kernel",
        "k": "exclude_user",
        "uk": "",
        "G": "exclude_host",
        "H": "exclude_guest",
        "uG": "exclude_kernel exclude_host",
        "kH": "exclude_user exclude_guest",
    }.items():
        event = models.HostEvent(0, 0, modifiers=modifiers)
        assert event.excludes() == {field: int(field in excluded.split()) for field in fields}, modifiers
