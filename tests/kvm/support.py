"""VMs, vCPUs and hosts for the tests of kvm/."""

from __future__ import annotations

import random
from collections.abc import Iterable

from arch.support import (
    CYCLE,
    evtyper_fields,
    filter_fields,
    near_edge,
    pmcr_fields,
    randomize,
    sizes_of,
    some_counters,
)
from pmuvisor import records
from pmuvisor.arch.pmu import Pe
from pmuvisor.kvm.vcpu import PARTITIONED, HostContext, Vcpu, Vm
from pmuvisor.kvm.world import World

NSH = 1 << 27
GUEST_FIELDS = (
    *("pmcr", "cnten", "inten", "ovs", "selr", "userenr", "evcntr", "evtyper", "ccntr", "ccfiltr"),
    *("irq_level",),
)
"""What a vCPU is, apart from where it is and what it cost."""


def make_vm(nr_counters: int, *, use_fgt: int = 1, denied: Iterable[int] = ()) -> Vm:
    events = list(denied)
    words = max((event >> 6 for event in events), default=-1) + 1
    vm = records.new(Vm, {"filter_words": words}, checked=True)
    vm.design = PARTITIONED
    vm.use_fgt = use_fgt
    vm.nr_counters = nr_counters
    vm.pmuver = 6
    vm.supported_pmus = 1
    vm.filter_words = words
    for event in events:
        vm.denied[event >> 6] |= 1 << (event & 63)
    return vm


def make_vcpu(pe: Pe) -> Vcpu:
    vcpu = records.new(Vcpu, sizes_of(pe), checked=True)
    vcpu.pmcr = 1 << 6  # LC; all else is zero, as a guest leaves it that has reset its PMU
    return vcpu


def world_sizes(pe: Pe, vm: Vm) -> dict[str, int]:
    n = pe.core.event_counters
    sizes = {**sizes_of(pe), "cpus": 1, "cpu_words": 1, "tasks": 1, "events": n + 1, "context_events": n + 1}
    return sizes | {"inflight": 1, "spe_sessions": 0, "vms": 1, "vcpus": 1, "filter_words": vm.filter_words, "kinds": 1}


def make_world(pe: Pe, vm: Vm, vcpu: Vcpu) -> World:
    """Return a host of one CPU, `pe`, whose one thread runs `vcpu` of `vm`."""
    world = records.new(World, world_sizes(pe, vm))
    world.host.cpus[0].pe, world.vms[0], world.vcpus[0] = pe, vm, vcpu
    return world


def make_host() -> HostContext:
    return records.new(HostContext, checked=True)


def random_vcpu(rng: random.Random, pe: Pe, vm: Vm) -> Vcpu:
    """Return a vCPU as its guest could have left it on this core, without overflows."""
    vcpu = make_vcpu(pe)
    mine = ((1 << vm.nr_counters) - 1) | CYCLE
    vcpu.pmcr |= rng.getrandbits(10) & pmcr_fields(pe) | rng.choice([0, 1, 1])
    vcpu.pmcr &= pmcr_fields(pe) | (1 << 6)
    vcpu.cnten = some_counters(rng, vm.nr_counters) & mine
    vcpu.inten = some_counters(rng, vm.nr_counters) & mine
    vcpu.selr = rng.choice([rng.getrandbits(5), 31, rng.randrange(max(vm.nr_counters, 1))])
    vcpu.userenr = rng.choice([0, 15, rng.getrandbits(4)])
    for i in range(vm.nr_counters):
        vcpu.evcntr[i] = near_edge(rng, 64) & (pe.core.counter_mask if pe.core.pmuver >= 6 else pe.core.half_mask)
        vcpu.evtyper[i] = rng.choice([0, 0, 0x1E, 0x77, rng.getrandbits(32)]) & evtyper_fields(pe, i) & ~NSH
    vcpu.ccntr = near_edge(rng, 64)
    vcpu.ccfiltr = rng.getrandbits(32) & filter_fields(pe) & ~NSH
    return vcpu


def random_host(rng: random.Random, pe: Pe, vm: Vm) -> Pe:
    """Put `pe` into a state of a host that profiles itself and has moved its events out of the guest's counters.

    Firmware has left EL3 as Linux's booting.rst wants it, which `make_pe` has done.
    """
    mdcr_el3, scr_el3 = pe.mdcr_el3, pe.scr_el3
    randomize(pe, rng)
    mine = ((1 << vm.nr_counters) - 1) | CYCLE
    pe.cnten &= ~mine
    pe.inten &= ~mine
    pe.ovs &= ~mine
    pe.mdcr_el2 = pe.core.event_counters | rng.choice([0, 1 << 7])
    pe.hdfgrtr_el2 = pe.hdfgwtr_el2 = pe.hdfgrtr2_el2 = pe.hdfgwtr2_el2 = 0
    pe.mdcr_el3, pe.scr_el3 = mdcr_el3, scr_el3
    pe.tge = 1
    return pe


def guest_state(vcpu: Vcpu) -> dict[str, object]:
    return {name: list(value) if isinstance(value := getattr(vcpu, name), list) else value for name in GUEST_FIELDS}


def host_range(pe: Pe, vm: Vm) -> tuple[object, ...]:
    """Return all that the host keeps while the guest is loaded: its event counters and the instruction counter."""
    kept = (1 << 33) - 1 & ~(((1 << vm.nr_counters) - 1) | CYCLE)
    n = vm.nr_counters
    own = list(pe.evcntr[n:]), list(pe.evtyper[n:]), pe.icntr, pe.icfiltr
    return *own, pe.cnten & kept, pe.inten & kept, pe.ovs & kept
