"""The small machines of the profiling unit: how large they are, how each begins, and what may happen to it.

A preset is data. Buffers are near their ends, so that they are full after a few records; where intervals matter is
between two samples, so that an instruction is either the next that is sampled, or one that is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pmuvisor import records
from pmuvisor.arch import pmu, sysreg
from pmuvisor.arch import spe as arch_spe
from pmuvisor.arch.cores import set_features
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.spe_record import SpeFeatures
from pmuvisor.arch.sysreg import PMBLIMITR_E, PMBSR_S, PMSCR_E0SPE, PMSCR_E1SPE
from pmuvisor.check.model import Action, Model
from pmuvisor.check.models import PresetError
from pmuvisor.check.spe import properties, state, steps
from pmuvisor.check.spe.state import Machine
from pmuvisor.check.spe.words import words
from pmuvisor.check.words import count
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import PARTITIONED
from pmuvisor.linux import sched
from pmuvisor.linux.arm_spe import PAGE
from pmuvisor.linux.host import NO_TASK, STATE_INACTIVE, TASK_RUNNABLE

DESIGN = "spe"
"""What these machines are of: KVM's context switch of the profiling unit, and what it traps."""
RECORD = 64
"""Bytes of a record."""
HOST_BUFFER = 0x10_0000
GUEST_BUFFER = 0x20_0000
"""Where buffers are. Those of all guests are at one address: only the translation tells them apart."""
HOST_INTERVAL = 256
GUEST_INTERVAL = 512
EVERY_LEVEL = PMSCR_E0SPE | PMSCR_E1SPE


@dataclasses.dataclass(frozen=True)
class Preset:
    """A small machine."""

    name: str
    cpus: int
    spe: tuple[int, ...]
    """Of each vCPU, whose VM is its own, whether it has SPE."""
    sessions: tuple[int, ...]
    """The CPUs that somebody may profile."""
    room: int
    """Records that find room in each buffer, when it is used first."""
    accesses: int
    executions: int
    switches: int
    openings: int
    unmappings: int
    registers: tuple[tuple[str, int | None], ...]
    """What guests access: a register, and what they write; None for a read."""

    @property
    def vcpus(self) -> int:
        """Return how many vCPUs there are."""
        return len(self.spe)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Return `Machine.left` at the beginning."""
        return self.accesses, self.executions, self.switches, self.openings, self.unmappings

    @property
    def first(self) -> int:
        """Return where in a buffer the first record is to be."""
        return PAGE - self.room * RECORD


def _accesses(first: int) -> tuple[tuple[str, int | None], ...]:
    return (
        ("PMBSR_EL1", 0),
        ("PMBPTR_EL1", GUEST_BUFFER + first),
        ("PMBLIMITR_EL1", 0),
        ("PMBLIMITR_EL1", GUEST_BUFFER + PAGE | PMBLIMITR_E),
        ("PMSCR_EL1", 0),
        ("PMSCR_EL1", EVERY_LEVEL),
        ("PMBPTR_EL1", None),
        ("PMBSR_EL1", None),
    )


FEW = _accesses(PAGE - 2 * RECORD)
MANY = (
    *FEW,
    ("PMBSR_EL1", PMBSR_S),
    ("PMSICR_EL1", 2),
    ("PMSIRR_EL1", HOST_INTERVAL),
    ("PMSFCR_EL1", 0),
    ("PMSCR_EL1", None),
    ("PMSICR_EL1", None),
    ("PMBLIMITR_EL1", None),
)

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("spe", 1, (1,), (0,), 2, 2, 4, 2, 2, 0, FEW),
        Preset("spe-unpinned", 1, (1,), (), 2, 2, 4, 1, 0, 2, FEW),
        Preset("spe-beside", 1, (1, 0), (0,), 2, 1, 4, 3, 2, 0, FEW),
        Preset("spe-wide", 2, (1, 1), (0,), 2, 1, 3, 2, 1, 0, MANY),
    )
}


def model(preset: Preset) -> Model:
    """Return the model of a preset's machine."""
    size = f"{count(preset.cpus, 'CPU')}, {count(preset.vcpus, 'vCPU')}"
    return Model(
        title=f"{DESIGN}, {preset.name}: {size}",
        record=Machine,
        sizes=sizes(preset),
        begin=lambda asked: machine(preset, asked),
        step=steps.step,
        actions=tuple(actions(preset)),
        properties=properties.ALL,
        words=words,
        replaced={arch_spe.isb: steps.watched_isb},
    )


def adjusted(preset: Preset, changes: Mapping[str, str]) -> Preset:
    """Return a preset with other sizes and budgets, by their names in `Preset`: numbers. Raises PresetError."""
    for name, text in changes.items():
        if name not in _LIMITS:
            raise PresetError(f"{name}: expected one of {', '.join(_LIMITS)}")
        least, most = _LIMITS[name]
        if not text.isdecimal() or not text.isascii() or len(text) > 3 or not least <= int(text) <= most:
            raise PresetError(f"{name} {text!r}: expected a number from {least} to {most}")
    made: dict[str, Any] = {name: int(text) for name, text in changes.items()}
    return dataclasses.replace(preset, **made)


_BUDGET = 0, 99
_LIMITS = {"cpus": (1, 8), "room": (1, 16), "accesses": _BUDGET, "executions": _BUDGET, "switches": _BUDGET}
_LIMITS |= {"openings": _BUDGET, "unmappings": _BUDGET}


def sizes(preset: Preset) -> dict[str, int]:
    """Return the sizes of a preset's record."""
    return {
        "cpus": preset.cpus,
        "cpu_words": 1,
        "kinds": 0,
        "tasks": preset.vcpus,
        "events": 0,
        "context_events": 1,
        "vms": preset.vcpus,
        "vcpus": preset.vcpus,
        "filter_words": 1,
        "event_counters": 1,
        "counter_width": 4,
        "inflight": 2,
        "spe_sessions": len(preset.sessions),
    }


def machine(preset: Preset, asked: int = properties.EVERY) -> Machine:
    """Return a preset's machine as it begins: no thread is on a CPU yet, no session is open.

    `asked` is the mask of the properties that are asked for.
    """
    m = records.new(Machine, sizes(preset))
    m.asked = asked
    for c in range(preset.cpus):
        cpu = m.world.host.cpus[c]
        worlds.boot_cpu(cpu, _pe(), 0)
        worlds.boot_spu(cpu, _features(), 1)
        cpu.spu.nr_written = 0
    for number, c in enumerate(preset.sessions):
        _begin_session(m, preset, number, c)
    for v in range(preset.vcpus):
        _begin_vcpu(m, preset, v)
    m.left[:] = preset.budgets
    return m


def _pe() -> Pe:
    pe = records.new(Pe, {"event_counters": 1, "counter_width": 4})
    features = {"hpmn0": 0, "fgt": 1, "fgt2": 0, "icntr": 0, "el3": 1}
    widths = {"half_bits": 2, "half_mask": 3, "counter_mask": 15}
    set_features(pe.core, event_counters=1, pmuver=6, counter_top=3, **features, **widths)
    pmu.reset(pe)
    return pe


def _features() -> SpeFeatures:
    features = records.new(SpeFeatures)
    features.pmsver, features.lds, features.count_size = 1, 1, 2
    features.max_size = features.align = RECORD.bit_length() - 1
    return features


def _begin_session(m: Machine, preset: Preset, number: int, c: int) -> None:
    session = m.world.host.spe_sessions[number]
    session.cpu, session.task, session.state, session.stopped, session.prompt = c, NO_TASK, STATE_INACTIVE, 1, 1
    session.pmscr, session.pmsirr, session.period_left = EVERY_LEVEL, HOST_INTERVAL, HOST_INTERVAL
    session.pmsfcr, session.pmsevfr, session.pmslatfr = 4, 2, 3
    session.base, session.size, session.watermark = HOST_BUFFER, 2 * PAGE, PAGE
    session.aux_head = session.aux_tail = session.padded = preset.first


def _begin_vcpu(m: Machine, preset: Preset, v: int) -> None:
    vm, vcpu, mirror = m.world.vms[v], m.world.vcpus[v], m.mirrors[v].spu
    vm.design, vm.use_fgt, vm.nr_counters, vm.pmuver, vm.supported_pmus, vm.spe = PARTITIONED, 1, 1, 6, 1, preset.spe[v]
    worlds.create_vcpu(m.world, v, v, v, 0)
    task = m.world.host.tasks[v]
    task.allowed[0], task.state, task.next = (1 << preset.cpus) - 1, TASK_RUNNABLE, NO_TASK
    sched.enqueue_task(m.world.host, v % preset.cpus, v)
    if preset.spe[v] == 0:
        return
    kept = vcpu.spe
    kept.pmscr_el1, kept.pmsirr, kept.pmsicr = EVERY_LEVEL, GUEST_INTERVAL, GUEST_INTERVAL
    kept.pmsfcr, kept.pmsevfr, kept.pmslatfr = 1, 8, 9
    kept.pmbptr, kept.pmblimitr = GUEST_BUFFER + preset.first, GUEST_BUFFER + PAGE | PMBLIMITR_E
    mirror.filter.core = _features()
    arch_spe.reset(mirror, 1)
    mirror.e2pb, mirror.guest, mirror.pointer_of = 2, v + 1, v + 1
    mirror.pmscr_el1, mirror.pmsirr, mirror.pmsicr = kept.pmscr_el1, kept.pmsirr, kept.pmsicr
    mirror.filter.pmsfcr, mirror.filter.pmsevfr, mirror.filter.pmslatfr = kept.pmsfcr, kept.pmsevfr, kept.pmslatfr
    mirror.pmbptr, mirror.pmblimitr = kept.pmbptr, kept.pmblimitr
    mirror.unsynchronised = arch_spe.SYNC_ALL
    arch_spe.isb(mirror)
    mirror.exposed, mirror.fault_page = 0, GUEST_BUFFER // PAGE


# ---- what may happen --------------------------------------------------------------------------------------


def actions(preset: Preset) -> list[Action]:
    """Return all that may happen in a preset, in the order in which it is tried."""
    made = []
    for c in range(preset.cpus):
        made += [*_on_cpu(preset, c), *_of_the_guest(preset, c)]
    for number, c in enumerate(preset.sessions):
        made.append(Action((state.OPEN, 0, number, 0, 0), f"the host begins to profile CPU {c}"))
        made.append(Action((state.CLOSE, 0, number, 0, 0), f"the host ends profiling CPU {c}"))
    if preset.unmappings:
        for v in range(preset.vcpus):
            made.append(Action((state.UNMAP, v, 0, 0, 0), f"the host takes from vCPU {v} the page of its buffer"))
    return made


def _on_cpu(preset: Preset, c: int) -> Iterator[Action]:
    yield Action((state.SWITCH_IN, c, 0, 0, 0), f"the next thread comes to CPU {c}, and its vCPU is being loaded")
    for section in range(1, worlds.LOAD_SECTIONS):
        words = f"the load on CPU {c} goes on, section {section + 1} of {worlds.LOAD_SECTIONS}"
        yield Action((state.LOAD, c, section, 0, 0), words)
    yield Action((state.SWITCH_OUT, c, 0, 0, 0), f"the thread on CPU {c} is preempted, and its vCPU put")
    for to in range(preset.cpus):
        if to != c:
            yield Action((state.MOVE, c, to, 0, 0), f"the scheduler moves a thread from CPU {c} to CPU {to}")
    yield Action((state.ENTER, c, 0, 0, 0), f"CPU {c} enters the guest")
    yield Action((state.EXIT, c, 0, 0, 0), f"CPU {c} exits the guest, for an interrupt")
    yield Action((state.INTERRUPT, c, 0, 0, 0), f"CPU {c} takes PMBIRQ")
    yield Action((state.WRITE_OUT, c, 0, 0, 0), f"the unit of CPU {c} writes the oldest record that waits in it")
    yield Action(
        (state.SYNCHRONISE, c, 0, 0, 0), f"an exception of the host on CPU {c} synchronizes what it has written"
    )
    yield Action((state.EXECUTE, c, 2, 1, 0), f"the host on CPU {c} executes up to an instruction that is sampled")
    yield Action((state.EXECUTE, c, 2, 0, 0), f"the host on CPU {c} executes an instruction")


def _of_the_guest(preset: Preset, c: int) -> Iterator[Action]:
    yield Action((state.EXECUTE, c, 1, 1, 0), f"the guest on CPU {c} executes up to an instruction that is sampled")
    yield Action((state.EXECUTE, c, 1, 0, 0), f"the guest on CPU {c} executes an instruction")
    for name, value in preset.registers:
        words = f"reads {name}" if value is None else f"writes {value:#x} to {name}"
        operands = state.ACCESS, c, sysreg.BY_NAME[name], int(value is not None), value or 0
        yield Action(operands, f"the guest on CPU {c} {words}")
    yield Action((state.HANDLE, c, 0, 0, 0), f"KVM handles the access that exited on CPU {c}")
