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
from pmuvisor.arch.cores import set_features
from pmuvisor.arch.events import BR_RETIRED, CPU_CYCLES, INST_RETIRED
from pmuvisor.arch.pmu import Pe
from pmuvisor.check import properties, state, steps
from pmuvisor.check.model import Action, Model
from pmuvisor.check.state import Machine
from pmuvisor.check.words import words
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import LAZY, PARTITIONED
from pmuvisor.linux import sched
from pmuvisor.linux.host import NO_COUNTER, NO_EVENT, NO_TASK, STATE_INACTIVE, TASK_RUNNABLE
from pmuvisor.own import OwnDesign

DESIGNS = {"partitioned": PARTITIONED, "lazy": LAZY}
"""The designs that can be explored."""
DENIED = BR_RETIRED
"""What the filter of every VM denies. Every instruction is a branch."""
CYCLE = 1 << sysreg.CYCLE


@dataclasses.dataclass(frozen=True)
class HostEvent:
    """An event that somebody on the host may open on a CPU."""

    cpu: int
    config: int
    period: int = 0


@dataclasses.dataclass(frozen=True)
class Preset:
    """A small machine."""

    name: str
    counters: tuple[int, ...]
    """Of each CPU its event counters. CPUs with the same number are of one PMU, and VMs are tied to that of CPU 0."""
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
COUNTING = HostEvent(0, INST_RETIRED)
CYCLES = HostEvent(0, CPU_CYCLES, period=2)
ELSEWHERE = HostEvent(1, CPU_CYCLES)

SIX = (
    CYCLES,
    COUNTING,
    ELSEWHERE,
    HostEvent(1, INST_RETIRED, 9),
    HostEvent(1, CPU_CYCLES, 50),
    HostEvent(2, CPU_CYCLES),
)

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("tiny", (2,), 1, 1, 2, (CYCLES,), 2, 3, 2, 1, 1, FEW, 1),
        Preset("small", (2, 2), 2, 1, 2, (CYCLES, COUNTING), 2, 2, 2, 2, 0, FEW, 1),
        Preset("wide", (2, 2), 2, 1, 2, (CYCLES, ELSEWHERE), 3, 3, 2, 2, 1, MANY, 1),
        Preset("fresh", (2,), 1, 1, 2, (CYCLES,), 3, 2, 2, 2, 0, FEW, 0),
        Preset("trapped", (2,), 1, 1, 2, (CYCLES,), 2, 3, 2, 1, 1, FEW, 1, fgt=0),
        Preset("hetero", (2, 1), 1, 2, 2, (CYCLES,), 2, 2, 3, 1, 0, FEW, 1),
        Preset("icntr", (2,), 1, 1, 2, (COUNTING,), 2, 3, 2, 1, 0, FEW, 1, icntr=1),
        Preset("large", (6, 6, 4), 5, 3, 6, SIX, *(5 * (60_000,)), MANY, 3),
    )
}


def model(preset: Preset, design: str) -> Model:
    """Return the model of a preset's machine whose VM is of `design`, one of `DESIGNS`."""
    size = f"{_count(preset.cpus, 'CPU')}, {_count(preset.vcpus, 'vCPU')}"
    return Model(
        title=f"{design}, {preset.name}: {size}",
        record=Machine,
        sizes=sizes(preset),
        begin=lambda asked: machine(preset, DESIGNS[design], asked),
        step=steps.step,
        actions=tuple(actions(preset)),
        properties=properties.ALL,
        words=words,
    )


def own_model(preset: Preset, own: OwnDesign) -> Model:
    """Return the model of a preset's machine whose VM is of somebody's own design."""
    made = model(preset, own.base)
    title = f"{own.name}{made.title.removeprefix(own.base)}"
    return dataclasses.replace(made, title=title, replaced=own.replaced, homes=own.homes)


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'s' if number != 1 else ''}"


class PresetError(ValueError):
    """A machine that cannot be: the field, and what was expected."""


_LIMITS = {
    "vcpus": (1, 16),
    "guest_counters": (1, 31),
    "half_bits": (1, 32),
    "programmed": (0, 16),
    "fgt": (0, 1),
    "icntr": (0, 1),
}
"""Of a field of `Preset` the least and the most; of those that are not here, 0 and `MOST_OF_A_BUDGET`."""
MOST_OF_A_BUDGET = (1 << 16) - 1
_MOST_CPUS, _MOST_EVENTS = 8, 16
_EVENTS = {"cycles": CPU_CYCLES, "instructions": INST_RETIRED}


def adjusted(preset: Preset, changes: Mapping[str, str]) -> Preset:
    """Return a preset with other sizes and budgets, by their names in `Preset`, as a person writes them.

    Numbers; `counters` as 2,2 with one for each CPU; `events` as CPU:cycles or CPU:instructions, with :PERIOD where it
    samples, and commas between. Raises PresetError.
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
    if len(rest) not in (1, 2) or rest[0] not in _EVENTS:
        raise PresetError(f"events {text!r}: expected CPU:cycles or CPU:instructions, with :PERIOD where it samples")
    period = _number("events", rest[1], 1, MOST_OF_A_BUDGET) if len(rest) == 2 else 0
    return HostEvent(_number("events", cpu, 0, _MOST_CPUS - 1), _EVENTS[rest[0]], period)


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


def sizes(preset: Preset) -> dict[str, int]:
    """Return the sizes of a preset's record."""
    return {
        "cpus": preset.cpus,
        "cpu_words": 1,
        "kinds": 0,
        "tasks": preset.vcpus,
        "events": len(preset.events),
        "context_events": max(1, len(preset.events)),
        "vms": 1,
        "vcpus": preset.vcpus,
        "filter_words": 1,
        "event_counters": max(preset.counters),
        "counter_width": 2 * preset.half_bits,
        "inflight": 1,
        "spe_sessions": 0,
    }


def machine(preset: Preset, design: int, asked: int = properties.EVERY) -> Machine:
    """Return a preset's machine as it begins: no thread is on a CPU yet, no event is open.

    `asked` is the mask of the properties that are asked for.
    """
    m = records.new(Machine, sizes(preset))
    m.asked = asked
    vm = m.world.vms[0]
    vm.design, vm.use_fgt, vm.nr_counters, vm.pmuver, vm.supported_pmus = design, 1, preset.guest_counters, 6, 1
    vm.filter_words, vm.denied[0] = 1, 1 << DENIED
    for c in range(preset.cpus):
        number = preset.counters.index(preset.counters[c])
        worlds.boot_cpu(m.world.host.cpus[c], _pe(preset, preset.counters[c]), number)
    for number, of in enumerate(preset.events):
        event = m.world.host.events[number]
        event.cpu, event.task, event.config, event.sample_period = of.cpu, NO_TASK, of.config, of.period
        event.pmu = m.world.host.cpus[of.cpu].pmu
        event.leader, event.next_sibling, event.idx, event.state = number, NO_EVENT, NO_COUNTER, STATE_INACTIVE
    for v in range(preset.vcpus):
        _begin_vcpu(m, preset, v)
    m.left[:] = preset.budgets
    return m


def _pe(preset: Preset, counters: int) -> Pe:
    pe = records.new(Pe, {"event_counters": max(preset.counters), "counter_width": 2 * preset.half_bits})
    features = {"hpmn0": 0, "fgt": preset.fgt, "fgt2": 0, "icntr": preset.icntr, "el3": 1}
    bits = preset.half_bits
    widths = {"half_bits": bits, "half_mask": (1 << bits) - 1, "counter_mask": (1 << 2 * bits) - 1}
    set_features(pe.core, event_counters=counters, pmuver=6, counter_top=2 * bits - 1, **features, **widths)
    pmu.reset(pe)
    return pe


def _begin_vcpu(m: Machine, preset: Preset, v: int) -> None:
    vcpu, mirror = m.world.vcpus[v], m.mirrors[v]
    own = _pe(preset, preset.guest_counters)
    own.core.icntr = 0
    own.tge = 0
    if v < preset.programmed:
        own.pmcr |= 1
        own.cnten = own.inten = CYCLE | 1
        own.evtyper[0], own.evcntr[0] = INST_RETIRED, (1 << preset.half_bits) - 1
        mirror.touched = 1
    vcpu.pmcr, vcpu.cnten, vcpu.inten = own.pmcr, own.cnten, own.inten
    for i in range(preset.guest_counters):
        mirror.evtyper[i] = vcpu.evtyper[i] = own.evtyper[i]
        vcpu.evcntr[i] = own.evcntr[i]
    mirror.pe = own
    vcpu.task = v
    task = m.world.host.tasks[v]
    task.preempt_notifier, task.allowed[0], task.state, task.next = v, (1 << preset.cpus) - 1, TASK_RUNNABLE, NO_TASK
    sched.enqueue_task(m.world.host, v % preset.cpus, v)


# ---- what may happen --------------------------------------------------------------------------------------


def actions(preset: Preset) -> list[Action]:
    """Return all that may happen in a preset, in the order in which it is tried."""
    made = []
    for c in range(preset.cpus):
        made += list(_on_cpu(preset, c))
    for e, event in enumerate(preset.events):
        what = f"{'INST_RETIRED' if event.config == INST_RETIRED else 'CPU_CYCLES'} on CPU {event.cpu}"
        made.append(Action((state.OPEN, 0, e, 0, 0), f"the host opens event {e}, {what}"))
        made.append(Action((state.CLOSE, 0, e, 0, 0), f"the host closes event {e}, {what}"))
    if preset.settings:
        for v in range(preset.vcpus):
            words = f"userspace restores PMEVTYPER0_EL0 of vCPU {v} as {DENIED:#x}, which the filter denies"
            made.append(Action((state.WRITE_TYPE, v, 0, DENIED, 0), words))
    return made


def _on_cpu(preset: Preset, c: int) -> Iterator[Action]:
    yield Action((state.INTERRUPT, c, 0, 0, 0), f"CPU {c} takes PMUIRQ")
    yield Action((state.ENTER, c, 0, 0, 0), f"CPU {c} enters the guest")
    yield Action((state.EXIT, c, 0, 0, 0), f"CPU {c} exits the guest, for an interrupt")
    yield Action((state.HANDLE, c, 0, 0, 0), f"KVM handles the access that exited on CPU {c}")
    yield Action((state.EXECUTE, c, state.GUEST_EL, 0, 0), f"the guest on CPU {c} executes an instruction at EL1")
    yield Action((state.EXECUTE, c, state.HOST_EL, 0, 0), f"the host on CPU {c} executes an instruction at EL2")
    for name, value in preset.registers:
        key = sysreg.BY_NAME[name]
        words = f"reads {name}" if value is None else f"writes {value:#x} to {name}"
        operands = state.ACCESS, c, key, int(value is not None), value or 0
        yield Action(operands, f"the guest on CPU {c} {words}")
    yield Action((state.SWITCH_IN, c, 0, 0, 0), f"the next thread comes to CPU {c}, and its vCPU is loaded")
    yield Action((state.SWITCH_OUT, c, 0, 0, 0), f"the thread on CPU {c} is preempted, and its vCPU put")
    for to in range(preset.cpus):
        if to != c:
            yield Action((state.MOVE, c, to, 0, 0), f"the scheduler moves a thread from CPU {c} to CPU {to}")
    yield Action((state.ROTATE, c, 0, 0, 0), f"perf rotates the events of CPU {c}")
