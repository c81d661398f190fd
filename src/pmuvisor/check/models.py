"""The small machines that are explored: how large they are, how each begins, and what may happen to it.

A preset is data. Counters are scaled down, so that overflows are near: an event counter of a few bits, with PMUv3p5's
long counters and 32-bit overflows as the architecture has them, at fewer bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pmuvisor import records
from pmuvisor.arch import pmu, sysreg
from pmuvisor.arch import spe as arch_spe
from pmuvisor.arch.cores import set_features
from pmuvisor.arch.events import (
    BR_RETIRED,
    CHAIN,
    CPU_CYCLES,
    INST_RETIRED,
    STALL_SLOT,
    STALL_SLOT_BACKEND,
    STALL_SLOT_FRONTEND,
)
from pmuvisor.arch.pmu import Pe
from pmuvisor.check import properties, state, steps, upstream
from pmuvisor.check.model import Action, Model
from pmuvisor.check.state import Machine
from pmuvisor.check.words import count, words
from pmuvisor.kvm import emulated, spe
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import EMULATED, FIXED_COUNTERS_ONLY, LAZY, PARTITIONED
from pmuvisor.linux import arm_spe, perf, sched
from pmuvisor.linux.host import ANY_CPU, NO_COUNTER, NO_EVENT, NO_TASK, STATE_INACTIVE, TASK_RUNNABLE
from pmuvisor.own import OwnDesign

DESIGNS = {
    "partitioned": PARTITIONED,
    "lazy": LAZY,
    "emulated": EMULATED,
    "fixed-counters-only": FIXED_COUNTERS_ONLY,
}
"""The designs that can be explored."""
DENIED = BR_RETIRED
"""What the filter of every VM denies. Every instruction is a branch."""
EVERY_EVENT = (1 << 64) - 1
SLOTS = (1 << (STALL_SLOT & 31)) | (1 << (STALL_SLOT_BACKEND & 31)) | (1 << (STALL_SLOT_FRONTEND & 31))
"""Of PMCEID1_EL0 what KVM hides of emulated counters."""
PMMIR = 0x0C
"""Of a CPU; a guest reads 0."""
CYCLE = 1 << sysreg.CYCLE
NOT_EL1 = 1 << sysreg.FILTER_P
"""An event type or PMCCFILTR_EL0 that counts at EL0 only."""


@dataclasses.dataclass(frozen=True)
class HostEvent:
    """An event that somebody on the host may open on a CPU."""

    cpu: int
    config: int
    period: int = 0
    modifiers: str = ""
    """As perf has them after an event's name: of `u` and `k` which levels count, of `G` and `H` guests or the host."""

    def excludes(self) -> dict[str, int]:
        """Return what it is not to count, by the fields of perf_event_attr."""
        pairs = {"exclude_user": "u", "exclude_kernel": "k", "exclude_guest": "G", "exclude_host": "H"}
        levels, worlds = set("uk") & set(self.modifiers), set("GH") & set(self.modifiers)
        named = {letter: levels if letter in "uk" else worlds for letter in pairs.values()}
        return {field: int(named[letter] != set() and letter not in named[letter]) for field, letter in pairs.items()}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A small machine."""

    name: str
    counters: tuple[int, ...]
    """Of each CPU its event counters. CPUs with the same number are of one PMU, and VMs are tied to that of CPU 0, but
    for FIXED_COUNTERS_ONLY."""
    vcpus: int
    guest_counters: int
    half_bits: int
    """Where a short counter overflows; a long one has twice as many bits."""
    events: tuple[HostEvent, ...]
    accesses: int
    executions: int
    switches: int
    openings: int
    settings: int
    registers: tuple[tuple[str, int | None], ...]
    """What guests access: a register, and what they write; None for a read."""
    programmed: int
    """How many vCPUs have a guest that counts already; the others' guests have not touched their PMU."""
    fgt: int = 1
    """The CPUs have FEAT_FGT."""
    icntr: int = 0
    """They have FEAT_PMUv3_ICNTR."""
    pmuver: int = sysreg.PMUV3P5
    """ID_AA64DFR0_EL1.PMUVer. A guest has PMUv3p5 at most."""
    fgt2: int = 0
    """They have FEAT_FGT2."""
    fixed_registers: tuple[tuple[str, int | None], ...] = ()
    """What guests without event counters access."""
    at_el0: tuple[tuple[str, int | None], ...] = ()
    """What guests access from EL0, where they execute then as well."""
    restored: tuple[tuple[str, int], ...] = (("PMEVTYPER0_EL0", DENIED),)
    """What userspace writes to registers, if there are any settings; of event counters where there are some."""
    host_el0: int = 0
    """The host executes at EL0 as well."""
    host_userenr: int = 0
    """The host's PMUSERENR_EL0."""
    filters: tuple[int, ...] = ()
    """Events that userspace denies and allows before a vCPU has run: a VM without a filter to begin with."""

    @property
    def cpus(self) -> int:
        """Return how many CPUs there are."""
        return len(self.counters)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Return `Machine.left` at the beginning."""
        return self.accesses, self.executions, self.switches, self.openings, self.settings


FEW = (
    ("PMCNTENSET_EL0", CYCLE | 1),
    ("PMCNTENCLR_EL0", CYCLE | 3),
    ("PMCR_EL0", 1 | sysreg.PMCR_P),
    ("PMCR_EL0", 0),
    ("PMEVTYPER0_EL0", DENIED),
    ("PMOVSCLR_EL0", CYCLE | 1),
    ("PMEVCNTR0_EL0", None),
)
MANY = (
    *FEW,
    *((name, None) for name in ("PMCR_EL0", "PMCNTENSET_EL0", "PMOVSCLR_EL0")),
    ("PMINTENSET_EL1", CYCLE | 1),
    ("PMINTENCLR_EL1", CYCLE | 3),
    ("PMOVSSET_EL0", CYCLE | 1),
    ("PMSELR_EL0", 31),
    ("PMXEVTYPER_EL0", INST_RETIRED),
    ("PMXEVCNTR_EL0", 3),
    ("PMEVCNTR1_EL0", 3),
    ("PMEVTYPER0_EL0", INST_RETIRED),
    ("PMCCNTR_EL0", 3),
    ("PMCR_EL0", 1 | sysreg.PMCR_C),
    ("PMUSERENR_EL0", 1),
    ("PMSWINC_EL0", 1),
)
EVERY = (
    *MANY,
    *((name, None) for name in ("PMSELR_EL0", "PMUSERENR_EL0", "PMCCFILTR_EL0", "PMCCNTR_EL0", "PMINTENSET_EL1")),
    *((name, None) for name in ("PMXEVTYPER_EL0", "PMXEVCNTR_EL0", "PMEVTYPER0_EL0", "PMOVSSET_EL0", "PMMIR_EL1")),
    *((name, None) for name in ("PMEVCNTR2_EL0", "PMEVCNTR3_EL0", "PMEVTYPER4_EL0", "PMICNTR_EL0", "PMICFILTR_EL0")),
    ("PMCNTENSET_EL0", CYCLE | 0x3F),
    ("PMINTENSET_EL1", CYCLE | 0x3F),
    ("PMCCFILTR_EL0", NOT_EL1),
    ("PMEVTYPER2_EL0", ((1 << 64) - 1) & ~(1 << sysreg.FILTER_NSH)),
    ("PMEVTYPER1_EL0", NOT_EL1 | CPU_CYCLES),
    ("PMEVCNTR2_EL0", 0x3F),
    ("PMSELR_EL0", 2),
    ("PMSELR_EL0", 4),
    ("PMSWINC_EL0", 7),
    ("PMCR_EL0", 1 | sysreg.PMCR_LP),
    ("PMUSERENR_EL0", 0x1F),
    *((name, None) for name in ("PMCNTENCLR_EL0", "PMINTENCLR_EL1", "PMCEID0_EL0", "PMCEID1_EL0")),
    ("PMUACR_EL1", None),
    ("PMUACR_EL1", 1),
    ("PMZR_EL0", 1),
)
"""For walks: one access of almost every kind. NSH, which upstream stores of an emulated counter, is left out."""
FIXED_FEW = (
    ("PMCNTENSET_EL0", CYCLE),
    ("PMCNTENCLR_EL0", CYCLE),
    ("PMCR_EL0", 1 | sysreg.PMCR_C),
    ("PMCR_EL0", 0),
    ("PMCCFILTR_EL0", NOT_EL1),
    ("PMOVSCLR_EL0", CYCLE),
    ("PMCCNTR_EL0", None),
)
FIXED_MANY = (
    *FIXED_FEW,
    *((name, None) for name in ("PMCR_EL0", "PMCNTENSET_EL0", "PMOVSCLR_EL0", "PMCCFILTR_EL0", "PMEVCNTR0_EL0")),
    ("PMINTENSET_EL1", CYCLE),
    ("PMINTENCLR_EL1", CYCLE),
    ("PMOVSSET_EL0", CYCLE),
    ("PMSELR_EL0", 31),
    ("PMXEVTYPER_EL0", 0),
    ("PMXEVCNTR_EL0", 3),
    ("PMCCNTR_EL0", 13),
    ("PMUSERENR_EL0", 1),
)
USER = (("PMCNTENSET_EL0", CYCLE | 1), ("PMCCNTR_EL0", None), ("PMEVCNTR0_EL0", None), ("PMSELR_EL0", 31))
"""What is accessed from EL0."""
PRIVILEGED = (
    ("PMSELR_EL0", 31),
    ("PMXEVCNTR_EL0", None),
    ("PMUSERENR_EL0", 1),
    ("PMUSERENR_EL0", sysreg.PMUSERENR_CR),
    ("PMUSERENR_EL0", 0),
    ("PMCNTENCLR_EL0", CYCLE | 3),
    ("PMOVSCLR_EL0", CYCLE | 1),
    ("PMCCFILTR_EL0", INST_RETIRED),
)
OF_USERS: tuple[tuple[str, int | None], ...] = (
    ("PMUSERENR_EL0", sysreg.PMUSERENR_CR),
    ("PMUSERENR_EL0", 0),
    ("PMOVSCLR_EL0", 1),
)
AGAIN = (("PMCR_EL0", 1 | sysreg.PMCR_P), ("PMEVCNTR0_EL0", 2), ("PMOVSCLR_EL0", 1))
AGAIN_FIXED = (("PMCCNTR_EL0", 14), ("PMCCNTR_EL0", 0), ("PMOVSCLR_EL0", CYCLE))
ENABLE = (("PMCNTENSET_EL0", CYCLE | 1), ("PMCR_EL0", 1), ("PMSELR_EL0", 0), ("PMXEVTYPER_EL0", INST_RETIRED))
RESTORED = (
    ("PMEVTYPER0_EL0", DENIED),
    ("PMEVTYPER0_EL0", INST_RETIRED),
    ("PMCCFILTR_EL0", NOT_EL1),
    ("PMCNTENSET_EL0", CYCLE | 1),
    ("PMCNTENCLR_EL0", 0),
    ("PMINTENSET_EL1", CYCLE | 1),
    ("PMOVSSET_EL0", CYCLE),
    ("PMOVSCLR_EL0", 0),
    ("PMCR_EL0", 1),
    ("PMCR_EL0", 0),
    ("PMCCNTR_EL0", 14),
    ("PMEVCNTR0_EL0", 3),
    ("PMSELR_EL0", 31),
    ("PMUSERENR_EL0", 1),
)
COUNTING = HostEvent(0, INST_RETIRED)
CYCLES = HostEvent(0, CPU_CYCLES, period=2)
ELSEWHERE = HostEvent(1, CPU_CYCLES)
OF_GUESTS = HostEvent(0, INST_RETIRED, 2, "uG")
OF_HOST = HostEvent(0, INST_RETIRED, 0, "uH")

SIX = (
    CYCLES,
    COUNTING,
    HostEvent(1, CPU_CYCLES, modifiers="u"),
    HostEvent(1, INST_RETIRED, 9, "kH"),
    HostEvent(1, CPU_CYCLES, 50),
    HostEvent(2, CPU_CYCLES, modifiers="uG"),
)

LARGE: dict[str, Any] = {"fixed_registers": FIXED_MANY, "at_el0": USER, "host_el0": 1, "host_userenr": 3}

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("tiny", (2,), 1, 1, 2, (CYCLES,), 2, 3, 2, 1, 1, FEW, 1),
        Preset("small", (2, 2), 2, 1, 2, (CYCLES, COUNTING), 2, 2, 2, 2, 0, FEW, 1),
        Preset(
            *("wide", (2, 2), 2, 1, 2, (CYCLES, ELSEWHERE), 2, 1, 2, 1, 1, MANY, 1),
            fixed_registers=FIXED_MANY,
            at_el0=USER,
            restored=RESTORED,
        ),
        Preset("fresh", (2,), 1, 1, 2, (CYCLES,), 3, 2, 2, 2, 0, FEW, 0),
        Preset("trapped", (2,), 1, 1, 2, (CYCLES,), 2, 3, 2, 1, 1, FEW, 1, fgt=0),
        Preset("hetero", (2, 1), 1, 2, 2, (CYCLES,), 2, 2, 3, 1, 0, FEW, 1),
        Preset("unlike", (2, 1), 1, 2, 2, (CYCLES,), 0, 3, 4, 0, 0, FEW, 1),
        Preset("icntr", (2,), 1, 1, 2, (COUNTING,), 2, 3, 2, 1, 0, FEW, 1, icntr=1, pmuver=sysreg.PMUV3P9, fgt2=1),
        Preset("short", (2,), 1, 1, 2, (CYCLES,), 2, 3, 2, 1, 1, FEW, 1, pmuver=sysreg.PMUV3P1),
        Preset("newest", (2,), 1, 1, 2, (CYCLES,), 2, 3, 2, 1, 1, FEW, 1, pmuver=sysreg.PMUV3P9),
        Preset("first", (2,), 1, 1, 2, (CYCLES,), 2, 3, 2, 1, 1, FEW, 1, fgt=0, pmuver=sysreg.PMUV3P0),
        Preset("overflows", (2,), 1, 1, 2, (CYCLES,), 1, 5, 1, 0, 1, AGAIN, 1, fixed_registers=AGAIN_FIXED),
        Preset(
            *("el0", (2,), 1, 1, 2, (CYCLES,), 2, 2, 1, 1, 0, PRIVILEGED, 1),
            fixed_registers=PRIVILEGED,
            at_el0=USER,
        ),
        Preset("restored", (2,), 1, 1, 2, (CYCLES,), 1, 2, 2, 1, 2, FEW, 1, restored=RESTORED),
        Preset(
            *("attributes", (2, 1), 1, 1, 2, (CYCLES,), 2, 2, 1, 0, 2, ENABLE, 0),
            fixed_registers=ENABLE,
            restored=(),
            filters=(INST_RETIRED, CPU_CYCLES),
        ),
        Preset(
            *("modifiers", (2,), 1, 1, 2, (OF_GUESTS, OF_HOST), 1, 4, 1, 2, 0, OF_USERS, 1),
            at_el0=USER,
            host_el0=1,
            host_userenr=sysreg.PMUSERENR_CR,
        ),
        Preset("large", (6, 6, 4), 5, 3, 6, SIX, *(5 * (60_000,)), EVERY, 3, **LARGE),
    )
}


def model(preset: Preset, design: str, excused: int = upstream.EVERY) -> Model:
    """Return the model of a preset's machine whose VM is of `design`, one of `DESIGNS`.

    `excused` is the mask of what of upstream's inexactness is let be (`upstream.ALL`).
    """
    size = f"{count(preset.cpus, 'CPU')}, {count(preset.vcpus, 'vCPU')}"
    return Model(
        title=f"{design}, {preset.name}: {size}",
        record=Machine,
        sizes=sizes(preset, DESIGNS[design]),
        begin=lambda asked: machine(preset, DESIGNS[design], asked, excused),
        step=steps.step,
        actions=tuple(actions(preset, DESIGNS[design])),
        properties=properties.ALL,
        words=words,
        never=WITHOUT_SPE if has_events(DESIGNS[design]) else (*WITHOUT_SPE, *WITHOUT_EVENTS),
    )


WITHOUT_SPE = (
    *(arm_spe.wants, arm_spe.start, arm_spe.unschedule),
    *(arch_spe.psb_csync, arch_spe.dsb, arch_spe.read, arch_spe.write, arch_spe.write_mdcr_el2),
    *(spe.drain_host, spe.swap_in, spe.put, spe.resolve_stage2_fault),
)
"""What is never called where no VM has SPE, and the host does not profile."""
WITHOUT_EVENTS = (
    *(emulated.trapped_read, emulated.trapped_write, emulated.load_pmu, emulated.reload_pmu, emulated.note_switched),
    *(emulated.handle_overflows, emulated.counter_value, emulated.set_counter_value_user),
    *(upstream.follow, upstream.inexact_counters, upstream.pending, upstream.counter_value),
)
"""What is never called where guests' counters are no perf events."""


def own_model(preset: Preset, own: OwnDesign) -> Model:
    """Return the model of a preset's machine whose VM is of somebody's own design."""
    made = model(preset, own.base)
    title = f"{own.name}{made.title.removeprefix(own.base)}"
    return dataclasses.replace(made, title=title, replaced=own.replaced, homes=own.homes)


class PresetError(ValueError):
    """A machine that cannot be: the field, and what was expected."""


_LIMITS = {
    "vcpus": (1, 16),
    "guest_counters": (1, 31),
    "half_bits": (1, 32),
    "programmed": (0, 16),
    "fgt": (0, 1),
    "icntr": (0, 1),
    "pmuver": (1, 9),
    "fgt2": (0, 1),
    "host_el0": (0, 1),
    "host_userenr": (0, 15),
}
"""Of a field of `Preset` the least and the most; of those that are not here, 0 and `MOST_OF_A_BUDGET`."""
MOST_OF_A_BUDGET = (1 << 16) - 1
_MOST_CPUS, _MOST_EVENTS = 8, 16
_EVENTS = {"cycles": CPU_CYCLES, "instructions": INST_RETIRED}


def adjusted(preset: Preset, changes: Mapping[str, str]) -> Preset:
    """Return a preset with other sizes and budgets, by their names in `Preset`, as a person writes them.

    Numbers; `counters` as 2,2 with one for each CPU; `events` as CPU:cycles or CPU:instructions, with :PERIOD where it
    samples, then perf's modifiers of :ukGH, and commas between. Raises PresetError.
    """
    made: dict[str, Any] = {}
    for name, text in changes.items():
        if name == "counters":
            made[name] = tuple(_number(name, part, 1, 31) for part in text.split(","))
        elif name == "events":
            made[name] = tuple(_event(part) for part in text.split(",")) if text else ()
        elif name in _NUMBERS:
            made[name] = _number(name, text, *_LIMITS.get(name, (0, MOST_OF_A_BUDGET)))
        else:
            raise PresetError(f"{name}: expected one of counters, events, {', '.join(_NUMBERS)}")
    preset = dataclasses.replace(preset, **made)
    _check(preset)
    return preset


_NUMBERS = tuple(field.name for field in dataclasses.fields(Preset) if field.type == "int")


def _number(name: str, text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 6 or not least <= int(text) <= most:
        raise PresetError(f"{name} {text!r}: expected a number from {least} to {most}")
    return int(text)


def _event(text: str) -> HostEvent:
    cpu, *rest = text.split(":")
    modifiers = rest.pop() if len(rest) > 1 and rest[-1].isalpha() else ""
    if len(rest) not in (1, 2) or rest[0] not in _EVENTS or not set(modifiers) <= set("ukGH"):
        raise PresetError(
            f"events {text!r}: expected CPU:cycles or CPU:instructions, with :PERIOD where it samples, and then with"
            " modifiers of u, k, G and H"
        )
    period = _number("events", rest[1], 1, MOST_OF_A_BUDGET) if len(rest) == 2 else 0
    return HostEvent(_number("events", cpu, 0, _MOST_CPUS - 1), _EVENTS[rest[0]], period, modifiers)


def _check(preset: Preset) -> None:
    if preset.cpus > _MOST_CPUS:
        raise PresetError(f"counters: {preset.cpus} CPUs: expected {_MOST_CPUS} at most")
    if preset.guest_counters > preset.counters[0]:
        raise PresetError(f"guest_counters {preset.guest_counters}: CPU 0 has only {preset.counters[0]}")
    if preset.programmed > preset.vcpus:
        raise PresetError(f"programmed {preset.programmed}: there are only {preset.vcpus} vCPUs")
    if len(preset.events) > _MOST_EVENTS:
        raise PresetError(f"events: {len(preset.events)}: expected {_MOST_EVENTS} at most")
    for event in preset.events:
        if event.cpu >= preset.cpus:
            raise PresetError(f"events: CPU {event.cpu}: there are only {preset.cpus}")


def has_events(design: int) -> bool:
    """Tell whether counters of guests are perf events."""
    return design in (EMULATED, FIXED_COUNTERS_ONLY)


def sizes(preset: Preset, design: int = PARTITIONED) -> dict[str, int]:
    """Return the sizes of a preset's record: there is room for perf events of guests if the design needs it."""
    of_vcpu = 1 + max(preset.counters) if has_events(design) else 0
    return {
        "cpus": preset.cpus,
        "cpu_words": 1,
        "kinds": 0,
        "tasks": preset.vcpus,
        "events": len(preset.events) + preset.vcpus * of_vcpu,
        "context_events": max(1, len(preset.events), of_vcpu),
        "vms": 1,
        "vcpus": preset.vcpus,
        "filter_words": 1,
        "event_counters": max(preset.counters),
        "counter_width": 2 * preset.half_bits,
        "inflight": 1,
        "spe_sessions": 0,
    }


def machine(preset: Preset, design: int, asked: int = properties.EVERY, excused: int = upstream.EVERY) -> Machine:
    """Return a preset's machine as it begins: no thread is on a CPU yet, no event is open.

    `asked` is the mask of the properties that are asked for, `excused` that of what of upstream's is let be.
    """
    m = records.new(Machine, sizes(preset, design))
    m.asked, m.excused = asked, excused if has_events(design) else 0
    m.ran, m.userenr = int(not preset.filters), preset.host_userenr
    for c in range(preset.cpus):
        number = preset.counters.index(preset.counters[c])
        pe = _pe(preset, preset.counters[c], preset.pmuver, preset.fgt2)
        worlds.boot_cpu(m.world.host.cpus[c], pe, number)
        m.world.host.cpus[c].pe.userenr = preset.host_userenr
    _begin_vm(m, preset, design)
    for number, of in enumerate(preset.events):
        event = m.world.host.events[number]
        event.cpu, event.task, event.config, event.sample_period = of.cpu, NO_TASK, of.config, of.period
        event.pmu = m.world.host.cpus[of.cpu].pmu
        for field, excluded in of.excludes().items():
            setattr(event, field, excluded)
        event.leader, event.next_sibling, event.idx, event.state = number, NO_EVENT, NO_COUNTER, STATE_INACTIVE
    for v in range(preset.vcpus):
        _begin_vcpu(m, preset, design, v)
        if has_events(design):
            _begin_events(m, preset, v)
    m.left[:] = preset.budgets
    return m


def _begin_vm(m: Machine, preset: Preset, design: int) -> None:
    """Make the VM: its PMU is that of CPU 0 (SET_PMU), or whichever there is (FIXED_COUNTERS_ONLY)."""
    vm = m.world.vms[0]
    vm.design, vm.use_fgt, vm.pmuver = design, 1, min(preset.pmuver, sysreg.PMUV3P5)
    vm.nr_counters, vm.supported_pmus = preset.guest_counters, 1
    if design == FIXED_COUNTERS_ONLY:
        vm.nr_counters = 0
        for cpu in m.world.host.cpus:
            vm.supported_pmus |= 1 << cpu.pmu
    if not preset.filters:
        vm.filter_words, vm.denied[0] = 1, 1 << DENIED


def _pe(preset: Preset, counters: int, pmuver: int, fgt2: int) -> Pe:
    pe = records.new(Pe, {"event_counters": max(preset.counters), "counter_width": 2 * preset.half_bits})
    features = {"hpmn0": 0, "fgt": preset.fgt, "fgt2": fgt2, "icntr": preset.icntr, "el3": 1}
    bits = preset.half_bits
    widths = {"half_bits": bits, "half_mask": (1 << bits) - 1, "counter_mask": (1 << 2 * bits) - 1}
    shown = {
        "pmceid0": EVERY_EVENT & ~(1 << CHAIN),
        "pmceid1": EVERY_EVENT,
        "pmmir": PMMIR if pmuver >= sysreg.PMUV3P4 else 0,
    }
    sizes = {"event_counters": counters, "counter_top": 2 * bits - 1}
    set_features(pe.core, pmuver=pmuver, **sizes, **features, **widths, **shown)
    pmu.reset(pe)
    return pe


def _begin_vcpu(m: Machine, preset: Preset, design: int, v: int) -> None:
    vcpu, mirror, counters = m.world.vcpus[v], m.mirrors[v], m.world.vms[0].nr_counters
    own = _pe(preset, counters, m.world.vms[0].pmuver, 0)
    own.core.icntr = own.core.pmmir = 0
    if has_events(design):
        own.core.pmceid0 |= 1 << CHAIN
        own.core.pmceid1 &= ~SLOTS
    own.tge = 0
    if v < preset.programmed:
        own.pmcr |= 1
        own.cnten = own.inten = CYCLE | int(counters != 0)
        if counters:
            own.evtyper[0], own.evcntr[0] = INST_RETIRED, (1 << preset.half_bits) - 1
        else:
            own.ccntr = (1 << 2 * preset.half_bits) - 1
        mirror.touched = 1
    vcpu.pmcr, vcpu.cnten, vcpu.inten = own.pmcr, own.cnten, own.inten
    vcpu.ccntr = own.ccntr
    for i in range(counters):
        mirror.evtyper[i] = vcpu.evtyper[i] = own.evtyper[i]
        vcpu.evcntr[i] = own.evcntr[i]
    mirror.pe = own
    vcpu.task = v
    task = m.world.host.tasks[v]
    task.preempt_notifier, task.allowed[0], task.state, task.next = v, (1 << preset.cpus) - 1, TASK_RUNNABLE, NO_TASK
    sched.enqueue_task(m.world.host, v % preset.cpus, v)


def _begin_events(m: Machine, preset: Preset, v: int) -> None:
    """Give a vCPU room for its perf events. The first entry makes those that it needs (KVM_REQ_RELOAD_PMU)."""
    vcpu = m.world.vcpus[v]
    vcpu.reload_pmu = 1
    vcpu.first_event = len(preset.events) + v * (len(vcpu.evcntr) + 1)
    for number in range(vcpu.first_event, vcpu.first_event + len(vcpu.evcntr) + 1):
        event = m.world.host.events[number]
        perf.init_event(event, number)
        event.cpu, event.task, event.state = ANY_CPU, vcpu.task, STATE_INACTIVE


# ---- what may happen --------------------------------------------------------------------------------------


def actions(preset: Preset, design: int = PARTITIONED) -> list[Action]:
    """Return all that may happen in a preset, in the order in which it is tried."""
    made = []
    for c in range(preset.cpus):
        made += list(_on_cpu(preset, design, c))
    for e, event in enumerate(preset.events):
        what = f"{_name(event)} on CPU {event.cpu}"
        made.append(Action((state.OPEN, 0, e, 0, 0), f"the host opens event {e}, {what}"))
        made.append(Action((state.CLOSE, 0, e, 0, 0), f"the host closes event {e}, {what}"))
    if preset.settings:
        made += list(_by_userspace(preset, design))
    return made


def _name(event: HostEvent) -> str:
    name = "INST_RETIRED" if event.config == INST_RETIRED else "CPU_CYCLES"
    return f"{name}:{event.modifiers}" if event.modifiers else name


def _on_cpu(preset: Preset, design: int, c: int) -> Iterator[Action]:
    yield Action((state.INTERRUPT, c, 0, 0, 0), f"CPU {c} takes PMUIRQ")
    yield Action((state.ENTER, c, 0, 0, 0), f"CPU {c} enters the guest")
    yield Action((state.EXIT, c, 0, 0, 0), f"CPU {c} exits the guest, for an interrupt")
    yield Action((state.HANDLE, c, 0, 0, 0), f"KVM handles the access that exited on CPU {c}")
    yield Action((state.EXECUTE, c, state.GUEST_EL, 0, 0), f"the guest on CPU {c} executes an instruction at EL1")
    if preset.at_el0:
        yield Action((state.EXECUTE, c, state.USER_EL, 0, 0), f"the guest on CPU {c} executes an instruction at EL0")
    yield Action((state.EXECUTE, c, state.HOST_EL, 0, 0), f"the host on CPU {c} executes an instruction at EL2")
    if preset.host_el0:
        yield Action((state.EXECUTE, c, state.USER_EL, 1, 0), f"the host on CPU {c} executes an instruction at EL0")
    registers = preset.registers
    if design == FIXED_COUNTERS_ONLY:
        registers = preset.fixed_registers or FIXED_FEW
    for name, value in registers:
        yield _access(c, name, value, 0, "")
    for name, value in preset.at_el0:
        yield _access(c, name, value, state.FROM_EL0, ", at EL0")
    yield Action((state.SWITCH_IN, c, 0, 0, 0), f"the next thread comes to CPU {c}, and its vCPU is loaded")
    yield Action((state.SWITCH_OUT, c, 0, 0, 0), f"the thread on CPU {c} is preempted, and its vCPU put")
    for to in range(preset.cpus):
        if to != c:
            yield Action((state.MOVE, c, to, 0, 0), f"the scheduler moves a thread from CPU {c} to CPU {to}")
    yield Action((state.ROTATE, c, 0, 0, 0), f"perf rotates the events of CPU {c}")


def _access(c: int, name: str, value: int | None, how: int, where: str) -> Action:
    words = f"reads {name}" if value is None else f"writes {value:#x} to {name}"
    operands = state.ACCESS, c, sysreg.BY_NAME[name], int(value is not None) | how, value or 0
    return Action(operands, f"the guest on CPU {c} {words}{where}")


def _by_userspace(preset: Preset, design: int) -> Iterator[Action]:
    for v in range(preset.vcpus):
        for name, value in preset.restored:
            if design == FIXED_COUNTERS_ONLY and name.startswith(("PMEVTYPER", "PMEVCNTR")):
                continue
            what = ", which the filter denies" if value == DENIED else ""
            words = f"userspace restores {name} of vCPU {v} as {value:#x}{what}"
            yield Action((state.WRITE_REGISTER, v, sysreg.BY_NAME[name], value, 0), words)
    for event in preset.filters:
        for deny in (1, 0):
            words = f"userspace lets the VM's event filter {'deny' if deny else 'allow'} event {event:#x}"
            yield Action((state.SET_FILTER, event, deny, 0, 0), words)
    if preset.filters and has_events(design):
        for number in sorted(set(map(preset.counters.index, preset.counters))):
            yield Action((state.SET_PMU, number, 0, 0, 0), f"userspace gives the VM the PMU of CPU {number}")
        yield Action((state.SET_FIXED, 0, 0, 0, 0), "userspace sets FIXED_COUNTERS_ONLY")
