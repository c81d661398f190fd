"""What VirtualPmu keeps between two looks at the PMU changes nothing: it equals one that looks at everything afresh.

Both are given the same random accesses, instructions, emulated instructions, loads and puts, on an engine that counts
what it is told to have executed and stops where it is told to, as the real one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from pmuvisor import records
from pmuvisor.arch import events, pmu, sysreg
from pmuvisor.arch.cores import Core, core, cores, make_pe
from pmuvisor.board.engine import Engine, Lane, Watch
from pmuvisor.board.lanes import LANE_OF_EVENT
from pmuvisor.board.machine import Config, own_cpus
from pmuvisor.board.vpmu import VirtualPmu
from pmuvisor.kvm import access as door
from pmuvisor.kvm import partitioned, vcpu, world
from pmuvisor.kvm.vcpu import PARTITIONED, Vm

NEEDS_DECODING = [Lane.LD, Lane.ST, Lane.MEM, Lane.BR, Lane.BR_IMMED, Lane.BR_RETURN, Lane.PC_WRITE]
KINDS = (
    (Lane.INST,),
    (Lane.INST, Lane.LD, Lane.MEM),
    (Lane.INST, Lane.ST, Lane.MEM),
    (Lane.INST, Lane.BR, Lane.BR_IMMED, Lane.PC_WRITE),
    (Lane.EXC_TAKEN,),
)
"""The lanes in which one instruction, or an exception, is counted."""


@dataclass
class Counting:
    """As much of an engine as a VirtualPmu uses."""

    executed: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, len(Lane)), np.int64))
    watches: dict[tuple[int, int], int] = field(default_factory=dict)
    """The nearest target of the same lanes at the same levels: (lanes, els) to target."""
    detail: bool = False

    def counts(self) -> npt.NDArray[np.int64]:
        return self.executed.copy()

    def watch(self, watches: Sequence[Watch]) -> None:
        self.watches = {}
        for w in watches:
            self.watches[w.lanes, w.els] = min(w.target, self.watches.get((w.lanes, w.els), w.target))

    def so_far(self, lanes: int, els: int) -> int:
        chosen = [(el, lane) for el in (0, 1) for lane in Lane if els >> el & 1 and lanes >> lane & 1]
        return sum(int(self.executed[place]) for place in chosen)

    def reached(self) -> bool:
        return any(self.so_far(*watched) >= target for watched, target in self.watches.items())


def virtual_pmu(of: Core, vm: Vm, engine: Counting, on_level: Callable[[bool], None]) -> VirtualPmu:
    kvm = own_cpus(Config(of))
    records.assign(kvm.vm, vm)
    # Zeros, as of a guest that has reset its PMU: what KVM makes of UNKNOWN would overflow at once.
    vcpu.reset_registers(make_pe(of, ()).core, kvm.vm, kvm.places[0].vcpu)
    for name in ("cnten", "inten", "ovs", "selr"):
        setattr(kvm.places[0].vcpu, name, 0)
    return VirtualPmu(kvm.places[0], cast(Engine, engine), on_level, lambda: 0)


class Afresh:
    """A VirtualPmu that keeps nothing: it asks the semantics for everything at every occasion."""

    def __init__(self, of: Core, vm: Vm, engine: Counting, on_level: Callable[[bool], None]) -> None:
        self.like = virtual_pmu(of, vm, engine, on_level)
        """Made the same; used for its records alone."""
        self.pe, self.vm, self.vcpu = self.like.pe, self.like.vm, self.like.vcpu
        self.world = self.like.place.world
        self.engine, self.on_level = engine, on_level
        self.seen = engine.counts()
        self.lanes = {event: lane for event, lane in LANE_OF_EVENT.items() if event in of.events}

    def load(self) -> None:
        self.seen = self.engine.counts()
        world.vcpu_load(self.world, 0, 0, 0)
        vcpu.guest_enter(self.pe)
        self.watch()
        self.enter()

    def put(self) -> None:
        self.sync()
        vcpu.guest_exit(self.pe)
        world.vcpu_put(self.world, 0, 0, 0)
        self.engine.watch(())

    def enter(self) -> None:
        partitioned.flush_hwstate(self.pe, self.vm, self.vcpu)
        self.on_level(self.vcpu.irq_level == 1)

    def emulated(self, el: int, *lanes: Lane) -> None:
        self.sync()
        self.seen[el, [Lane.INST, *lanes]] += 1
        self.watch()
        self.enter()

    def overflowed(self) -> None:
        self.sync()
        self.service()
        self.watch()

    def service(self) -> None:
        if pmu.check_for_pmu_overflow(self.pe):
            partitioned.handle_irq(self.pe, self.vm, self.vcpu)
            self.enter()

    def access(self, el: int, key: int, write: bool, value: int) -> tuple[int, int | None]:
        self.sync()
        outcome = door.guest_access(self.world, 0, 0, el, key, int(write), value, 0)
        if outcome == door.TO_EL1:
            return 0, sysreg.sys64_esr(key, 0, int(write))
        if outcome in (door.UNDEFINED, door.TRAPPED_UNDEFINED):
            return 0, sysreg.undefined_esr()
        self.seen[el, Lane.INST] += outcome == door.TRAPPED
        self.service()
        self.watch()
        self.on_level(self.vcpu.irq_level == 1)
        return self.vcpu.value, None

    def counting(self, i: int) -> int:
        """The levels at which counter `i` counts: bit 0 EL0, bit 1 EL1."""
        return sum((pmu.count_pmu_events(self.pe, el) >> i & 1) << el for el in (0, 1))

    def sync(self) -> None:
        pe, now = self.pe, self.engine.counts()
        counting = [pmu.count_pmu_events(pe, el) for el in (0, 1)]  # before any of what follows freezes
        for el, amounts in enumerate((now - self.seen).tolist()):
            for event, lane in self.lanes.items():
                pmu.count_events(pe, counting[el], counting[el] & pmu.selecting(pe, event), amounts[lane])
            pmu.increment_cycle_counter(pe, counting[el], amounts[Lane.INST])
            pmu.increment_instruction_counter(pe, counting[el], amounts[Lane.INST])
        self.seen = now

    def watch(self) -> None:
        pe, watches, lanes = self.pe, [], set()
        for i in range(pe.core.event_counters):
            lane, els = self.lanes.get(pe.evtyper[i] & pmu.EVENT_FIELD), self.counting(i)
            if els and lane is not None:
                edge = 1 << (64 if pmu.long_counters(pe) >> i & 1 else 32)
                watches.append(self.reaching(lane, els, edge - pe.evcntr[i] % edge))
                lanes.add(lane)
        if els := self.counting(sysreg.CYCLE):
            long, divides = pe.core.aarch32 == 0 or pe.pmcr & sysreg.PMCR_LC, pe.pmcr & sysreg.PMCR_D
            edge = 1 << (64 if long else 32)
            remaining = edge - pe.ccntr % edge
            remaining = remaining * 64 - pe.divider if divides and not long else remaining
            watches.append(self.reaching(Lane.INST, els, remaining))
        self.engine.detail = not lanes.isdisjoint(NEEDS_DECODING)
        self.engine.watch(watches)

    def reaching(self, lane: Lane, els: int, remaining: int) -> Watch:
        return Watch(1 << lane, els, sum(int(self.seen[el, lane]) for el in (0, 1) if els >> el & 1) + remaining)


class Twins:
    """The one that keeps things and the one that does not, given the same."""

    def __init__(self, name: str, fgt: bool) -> None:
        vm = records.new(Vm, {"filter_words": 0})
        vm.design, vm.use_fgt, vm.pmuver, vm.supported_pmus = PARTITIONED, int(fgt), 6, 1
        vm.nr_counters = Config(core(name)).guest_counters()
        self.engines = Counting(), Counting()
        self.levels: tuple[list[bool], list[bool]] = ([False], [False])
        self.pmus = (
            virtual_pmu(core(name), vm, self.engines[0], self.levels[0].append),
            Afresh(core(name), vm, self.engines[1], self.levels[1].append),
        )
        for one in self.pmus:
            one.load()

    def access(self, el: int, key: int, write: bool, value: int) -> None:
        done = [one.access(el, key, write, value) for one in self.pmus]
        assert done[0] == done[1]
        if done[0][1] is None:
            self.execute(el, KINDS[0], 1)

    def emulate(self, el: int, kind: tuple[Lane, ...]) -> None:
        for one in self.pmus:
            one.emulated(el, *kind[1:])
        self.execute(el, (Lane.INST, *kind[1:]), 1)

    def execute(self, el: int, kind: tuple[Lane, ...], times: int) -> None:
        """Execute, and stop at every overflow on the way."""
        for _ in range(times):
            for engine in self.engines:
                for lane in kind:
                    engine.executed[el, lane] += 1
            if self.engines[0].reached():
                for one in self.pmus:
                    one.overflowed()
            self.check()

    def reload(self) -> None:
        for one in self.pmus:
            one.put()
        self.execute(1, KINDS[1], 3)
        for one in self.pmus:
            one.load()

    def check(self) -> None:
        kept, fresh = self.engines
        assert (kept.watches, kept.detail) == (fresh.watches, fresh.detail)
        assert not kept.reached()
        assert self.levels[0][-1] == self.levels[1][-1] == bool(self.pmus[0].vcpu.irq_level)

    def finish(self) -> None:
        for one in self.pmus:
            one.put()
        assert self.pmus[0].pe == self.pmus[1].pe
        assert self.pmus[0].vcpu == self.pmus[1].vcpu


FILTERS = st.sampled_from([0, 0, 0, 1 << 31, 1 << 30])
OFTEN = [events.INST_RETIRED, events.INST_RETIRED, events.CHAIN, events.LD_RETIRED]
EVENTS = [*OFTEN * 4, *LANE_OF_EVENT, events.SW_INCR, 0x77]
TYPES = st.builds(int.__or__, st.sampled_from(EVENTS), FILTERS)
NEAR_EDGES = st.builds(int.__sub__, st.sampled_from([1 << 32, 1 << 32, 1 << 64]), st.integers(1, 40))
ALL = (1 << 64) - 1
SETS_OF_COUNTERS = st.sampled_from([ALL, ALL, ALL, 0b11, 0b100, 1 << 31, 0])
CONTROLS = st.sampled_from([0x41, 0x41, 0xC1, 0x09, 0x241, 0x241, 0x2C1, 0x40, 0x47])
"""Of PMCR_EL0: E, and with it LC, LP, D, FZO, P and C."""
COUNTERS = [*(sysreg.pmevcntr(n) for n in range(4)), sysreg.PMCCNTR_EL0]
TYPERS = [*(sysreg.pmevtyper(n) for n in range(4)), sysreg.PMCCFILTR_EL0]
SETS = [
    sysreg.PMCNTENSET_EL0,
    sysreg.PMCNTENCLR_EL0,
    sysreg.PMINTENSET_EL1,
    sysreg.PMINTENCLR_EL1,
    sysreg.PMOVSSET_EL0,
    sysreg.PMOVSCLR_EL0,
    sysreg.PMSWINC_EL0,
]
MOSTLY_EL1 = st.sampled_from([1, 1, 1, 0])
WRITES = st.one_of(
    st.tuples(st.sampled_from(COUNTERS), NEAR_EDGES),
    st.tuples(st.sampled_from(TYPERS), TYPES),
    st.tuples(st.sampled_from(SETS), SETS_OF_COUNTERS),
    st.tuples(st.sampled_from(SETS[2:6]), st.just(ALL)),
    st.tuples(st.just(sysreg.PMCR_EL0), CONTROLS),
    st.tuples(st.sampled_from(sysreg.PMU_KEYS), SETS_OF_COUNTERS | TYPES | NEAR_EDGES),
)
READS = st.sampled_from([*COUNTERS, *COUNTERS, sysreg.PMOVSCLR_EL0, *sysreg.PMU_KEYS])
EXECUTE = st.builds(lambda *a: ("execute", a), MOSTLY_EL1, st.sampled_from(KINDS), st.integers(1, 30))
STEPS = st.one_of(
    EXECUTE,
    EXECUTE,
    st.builds(lambda el, w: ("access", (el, w[0], True, w[1])), MOSTLY_EL1, WRITES),
    st.builds(lambda el, key: ("access", (el, key, False, 0)), MOSTLY_EL1, READS),
    st.builds(lambda *a: ("emulate", a), st.integers(0, 1), st.sampled_from(KINDS[:3])),
    st.just(("reload", ())),
)


@dataclass(frozen=True)
class Start:
    """How the guest has set its counters up, so that most of what follows meets some that count."""

    types: list[int]
    values: list[int]
    enabled: int
    interrupting: int
    pmcr: int

    def writes(self) -> Iterator[tuple[int, int]]:
        for n, (event, value) in enumerate(zip(self.types, self.values, strict=True)):
            yield sysreg.pmevtyper(n), event
            yield sysreg.pmevcntr(n), value
        yield sysreg.PMCCNTR_EL0, self.values[0]
        yield sysreg.PMUSERENR_EL0, 1
        yield sysreg.PMINTENSET_EL1, self.interrupting
        yield sysreg.PMCNTENSET_EL0, self.enabled
        yield sysreg.PMCR_EL0, self.pmcr


WITH_PMUV3 = sorted(name for name, of in cores().items() if of.pmuv3)
FOUR_TYPES, FOUR_VALUES = (st.lists(of, min_size=4, max_size=4) for of in (TYPES, NEAR_EDGES | st.just(0)))
CHAINED = st.just([events.INST_RETIRED, events.CHAIN, events.LD_RETIRED, events.CHAIN])
STARTS = st.builds(
    Start, CHAINED | FOUR_TYPES, FOUR_VALUES, st.just(ALL) | SETS_OF_COUNTERS, SETS_OF_COUNTERS, CONTROLS
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["max", *WITH_PMUV3]), st.booleans(), STARTS, st.lists(STEPS, min_size=15, max_size=60))
def test_what_is_kept_equals_what_is_asked_afresh(
    name: str, fgt: bool, start: Start, steps: list[tuple[str, tuple[object, ...]]]
) -> None:
    twins = Twins(name, fgt)
    for key, value in start.writes():
        twins.access(1, key, True, value)
    for step, arguments in steps:
        getattr(twins, step)(*arguments)
        twins.check()
    twins.finish()
