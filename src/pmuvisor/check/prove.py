"""Proofs: the invariant holds of a machine as it begins, and whatever happens preserves it, for all values.

For each size a scene of variables is made, one for each place that a vCPU can be in; each section runs on it along all
paths; what must hold afterwards is asked of Z3. The sections are those of kvm/ and linux/ themselves; what is put in
the place of some, by contract or because a branch for each counter would make too many paths, is in `ASSUMED` and
`MERGED`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import z3

from pmuvisor import records
from pmuvisor.arch import pmu
from pmuvisor.arch.cores import set_features
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import PMCR_E, PMU_KEYS, name_of
from pmuvisor.check import contracts, invariants, properties, sections
from pmuvisor.check.model import DONE
from pmuvisor.check.scene import C, Scene, V
from pmuvisor.check.symbolic import MOST_TERMS, WORD, Int, merged, paths, symbolic, word
from pmuvisor.compiled import Replaced, substituted
from pmuvisor.kvm import filters, partitioned
from pmuvisor.kvm import pmu as kvm_pmu
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import LAZY, PARTITIONED, Vcpu, Vm
from pmuvisor.linux import arm_pmuv3, perf
from pmuvisor.linux.host import NO_EVENT, NO_VCPU, Cpu, Host

LOGIC = "QF_UFBV"
HERE = tuple(f"pmuvisor.check.{name}." for name in ("invariants", "sections", "contracts"))
"""Where functions are that are replaced with those of arch/, linux/ and kvm/."""
DESIGNS = {"partitioned": PARTITIONED, "lazy": LAZY}
"""The designs that can be proved."""


# ---- what is put in the place of what -------------------------------------------------------------------------


class _Chances:
    """The variables that contracts choose by in one run, and the CPU before and after each contract."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.made = 0
        self.seen: list[Cpu] = []
        self.flags: Any = 0
        self.allowed: dict[tuple[int, int], tuple[Any, Any]] = {}
        """What the filter says of an event, by the term of it."""

    def begin(self, sizes: dict[str, int]) -> None:
        self.sizes, self.made, self.seen, self.flags = sizes, 0, [], 0

    def next(self) -> Cpu:
        self.made += 1
        return symbolic(Cpu, f"chance{self.made}", self.sizes)

    def note(self, cpu: Cpu) -> None:
        self.seen.append(records.copy(cpu))


_chances = _Chances()
_denied = z3.Function("denied", z3.BitVecSort(WORD), z3.BitVecSort(1))


def any_rescheduling(host: Host, c: int, cntr_mask: int, now: int) -> None:
    """Perf puts events on the counters in `cntr_mask`, any events."""
    _chances.note(host.cpus[c])
    contracts.events_rescheduled(host.cpus[c], cntr_mask, _chances.next())
    _chances.note(host.cpus[c])


def any_handling(host: Host, c: int, flags: int) -> int:
    """The host's driver handles the overflows of its events."""
    _chances.note(host.cpus[c])
    _chances.flags = flags
    contracts.overflows_handled(host.cpus[c], flags, _chances.next())
    _chances.note(host.cpus[c])
    return 0


def any_filter(vm: Vm, event: int) -> Any:
    """A filter denies what it denies."""
    if vm.filter_words == 0:
        return 0
    return Int(z3.ZeroExt(WORD - 1, _denied(word(event))))


def allowed(vm: Vm, event: int) -> Any:
    """Whether the filter lets an event count, as one term."""
    place = word(event).get_id(), vm.filter_words
    if place not in _chances.allowed:
        _chances.allowed[place] = word(event), merged(filters.event_allowed, vm, event)
    return _chances.allowed[place][1]


def evtyper_in_one(pe: Pe, vm: Vm, evtyper: int) -> Any:
    """What the hardware is given for an event type, as one term."""
    return merged(partitioned.effective_evtyper, pe, vm, evtyper)


def ccfiltr_in_one(pe: Pe, vm: Vm, ccfiltr: int) -> Any:
    """What it is given for PMCCFILTR_EL0, as one term."""
    return merged(partitioned.effective_ccfiltr, pe, vm, ccfiltr)


ASSUMED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "perf_pmu_resched_update() leaves events on any counters that it is given, with any values, the others off, and "
    "touches nothing else": (perf.perf_pmu_resched_update, any_rescheduling),
    "armv8pmu_handle_irq() loads events whose counters overflowed with any values, and touches nothing else": (
        arm_pmuv3.handle_irq,
        any_handling,
    ),
    "a VM's filter denies any set of events": (filters.event_denied, any_filter),
}
"""What is taken for granted of functions, and what stands for each. Tests hold the real functions to it."""
MERGED: Replaced = {
    kvm_pmu.set_el0: contracts.el0_switched,
    filters.event_allowed: allowed,
    partitioned.effective_evtyper: evtyper_in_one,
    partitioned.effective_ccfiltr: ccfiltr_in_one,
}
"""The same functions, said without a branch for each counter."""
ALSO_ASSUMED = (
    "no SPE, no nested virtualization; no EL of the core uses AArch32; EL3 traps nothing of the PMU",
    "a process of the host's runs only where no vCPU is loaded (KVM_RUN puts it before it returns)",
    "an access that waits for KVM was one that the guest's PMUSERENR_EL0 let through",
)
"""What else is taken for granted: how the scene is made, and what `sections` leave out."""


# ---- sizes, places ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is constant in a proof: how many counters, and what the core implements."""

    counters: int
    """N of the CPU."""
    guest: int
    """Event counters of the guest; more than N where it cannot run on this CPU."""
    pmuver: int = 6
    hpmn0: int = 0
    fgt: int = 1
    fgt2: int = 0
    icntr: int = 0
    filter_words: int = 1024

    @property
    def sizes(self) -> dict[str, int]:
        """Return the sizes of the scene's records."""
        none = ("kinds", "events", "context_events", "spe_sessions")
        one = ("cpus", "tasks", "vms", "vcpus", "cpu_words", "filter_words", "inflight")
        most = max(self.counters, self.guest)
        return {
            **dict.fromkeys(none, 0),
            **dict.fromkeys(one, 1),
            "event_counters": most,
            "counter_width": 64,
        }


SETUPS = (
    Setup(4, 2),
    Setup(1, 1),
    Setup(2, 4),
    Setup(6, 6, pmuver=4),
    Setup(8, 0, hpmn0=1),
    Setup(6, 4, pmuver=1, fgt=0, filter_words=0),
    Setup(31, 6),
)
"""The machines of a run: PMUv3p5 unless said; of (2, 4) the CPU is one that cannot run the vCPU."""


class Place(NamedTuple):
    """Where the vCPU is, and whether the host has an event; None is either."""

    loaded: int
    residency: int
    unsupported: int | None
    tge: int
    busy: int
    use_fgt: int | None

    @property
    def words(self) -> str:
        """Return what a person calls it."""
        if self.loaded == 0:
            return "not loaded"
        if self.unsupported:
            return "loaded on a CPU that cannot run it"
        return ("GUEST_OWNED" if self.residency else "FREE") + (", in KVM" if self.tge else ", in the guest")


def places(setup: Setup, design: str) -> Iterator[Place]:
    """Yield the places that the invariant leaves. Where all event counters are on loan the host has no event."""
    for busy in (0, 1):
        yield Place(0, 0, None, 1, busy, None)
        yield Place(1, 0, 1, 1, busy, None)
        if setup.guest > setup.counters:
            continue
        for tge in (1, 0):
            if design == "lazy":
                yield Place(1, 0, 0, tge, busy, None)
            if busy and setup.guest == setup.counters:
                continue
            for use_fgt in (0, 1) if setup.fgt else (None,):
                yield Place(1, 1, 0, tge, busy, use_fgt)


def scene_of(setup: Setup, design: str) -> Scene:
    """Return a scene of variables, in which what never changes is given."""
    s = symbolic(Scene, "s", setup.sizes)
    blank = records.new(Scene, setup.sizes)
    cpu, vm, vcpu = s.world.host.cpus[C], s.world.vms[0], s.world.vcpus[V]
    cpu.pe.core = _core(setup, setup.counters)
    cpu.pe.mdcr_el3, cpu.pe.scr_el3 = _after_reset(setup).mdcr_el3, _after_reset(setup).scr_el3
    cpu.spu, cpu.spe_session, cpu.pmu, cpu.current = blank.world.host.cpus[C].spu, 0xFF, 0, 0
    cpu.hw.events = [NO_EVENT] * len(cpu.hw.events)
    rotate = s.world.host.tasks[0].ctx.rotate_necessary
    s.world.host.tasks[0] = blank.world.host.tasks[0]
    s.world.host.tasks[0].ctx.rotate_necessary = rotate
    supported: Any = Int(z3.ZeroExt(WORD - 1, z3.BitVec("s.supported", 1))) if setup.guest <= setup.counters else 0
    use_fgt = vm.use_fgt
    s.world.vms[0] = vm = blank.world.vms[0]
    vm.design, vm.nr_counters, vm.pmuver = DESIGNS[design], setup.guest, min(setup.pmuver, 6)
    vm.filter_words, vm.supported_pmus, vm.use_fgt = setup.filter_words, supported, use_fgt
    vcpu.spe, vcpu.task, vcpu.first_event, s.world.vm_of[V] = blank.world.vcpus[V].spe, 0, 0, 0
    s.world.saved[C].spe, s.world.saved[C].pmscr_el2 = blank.world.saved[C].spe, 0
    _give_mirror(s, setup)
    return s


def _what_is_given(setup: Setup, design: str) -> list[records.Path]:
    """Return the integers of a scene that never change."""
    s = scene_of(setup, design)
    leaves = [leaf for leaf in records.leaves(Scene, setup.sizes) if leaf.role is not records.Role.LEDGER]
    given = [leaf.path for leaf in leaves if isinstance(records.get(s, leaf.path), int)]
    vm: records.Path = ("world", "vms", 0)
    return [*given, ("selr",), ("userenr",), (*vm, "use_fgt"), (*vm, "supported_pmus")]


def first_scene(setup: Setup, design: str, use_fgt: int, twins: _Twins) -> Scene:
    """Return the scene as a machine begins: the CPU is booted, the vCPU is made, and its guest has done nothing."""
    s = scene_of(setup, design)
    blank = records.new(Scene, setup.sizes)
    cpu, vcpu, mirror = s.world.host.cpus[C], s.world.vcpus[V], s.mirror.pe
    blank.world.host.cpus[C].hw.events = cpu.hw.events
    cpu.hw, s.world.saved[C], s.world.vcpus[V] = (
        blank.world.host.cpus[C].hw,
        blank.world.saved[C],
        blank.world.vcpus[V],
    )
    vcpu = s.world.vcpus[V]
    s.world.vms[0].use_fgt, s.world.vms[0].supported_pmus = use_fgt, int(setup.guest <= setup.counters)
    twins(worlds.boot_cpu, cpu, _after_reset(setup), 0)
    cpu.current = 0
    twins(worlds.create_vcpu, s.world, V, 0, 0, 0)
    s.selr, s.userenr, s.ccfiltr, s.mirror.touched, s.mirror.trapped = 0, 0, vcpu.ccfiltr, 0, 0
    for name in ("pmcr", "cnten", "inten", "ovs", "selr", "userenr", "ccntr"):
        setattr(mirror, name, getattr(vcpu, name))
    mirror.ccfiltr = twins(invariants.cycles_count_as, s, s.ccfiltr)
    for i in range(setup.guest):
        s.mirror.evtyper[i], mirror.evcntr[i] = vcpu.evtyper[i], vcpu.evcntr[i]
        mirror.evtyper[i] = twins(invariants.counts_as, s, vcpu.evtyper[i])
    return s


def _core(setup: Setup, counters: int, **other: int) -> Any:
    core = records.new(Pe, setup.sizes).core
    features = {"hpmn0": setup.hpmn0, "fgt": setup.fgt, "fgt2": setup.fgt2, "icntr": setup.icntr, "el3": 1}
    ids = {"pmceid0": 0x7FFF_0F1F_FFFF_FFFF, "pmceid1": 0xFEF2_AE7F, "identity": 0x4103, "pmmir": 0x8}
    set_features(core, **{"event_counters": counters, "pmuver": setup.pmuver, **features, **ids, **other})
    return core


def _after_reset(setup: Setup) -> Pe:
    pe = records.new(Pe, setup.sizes)
    pe.core = _core(setup, setup.counters)
    pmu.reset(pe)
    return pe


def _give_mirror(s: Scene, setup: Setup) -> None:
    """Make the mirror's PMU one that the guest's ID registers tell of, with nothing that traps."""
    pe = s.mirror.pe
    pe.core = _core(setup, setup.guest, icntr=0, fgt2=0, pmuver=min(setup.pmuver, 6), pmmir=0, hpmn0=1)
    blank = records.new(Pe, setup.sizes)
    blank.core = pe.core
    pmu.reset(blank)
    for name in ("mdcr_el2", "hdfgrtr_el2", "hdfgwtr_el2", "hdfgrtr2_el2", "hdfgwtr2_el2", "mdcr_el3", "scr_el3"):
        setattr(pe, name, getattr(blank, name))
    pe.tge, pe.uacr, pe.icntr, pe.icfiltr, pe.divider = 0, 0, 0, 0, 0
    for i in range(setup.guest, len(pe.evcntr)):
        pe.evcntr[i] = pe.evtyper[i] = s.mirror.evtyper[i] = 0
    s.mirror.key = s.mirror.write = s.mirror.value = 0


def stand_in(s: Scene, place: Place) -> None:
    """Put the vCPU of a scene of variables in a place."""
    vcpu, cpu = s.world.vcpus[V], s.world.host.cpus[C]
    vcpu.loaded, vcpu.residency, cpu.pe.tge = place.loaded, place.residency, place.tge
    if place.unsupported is not None:
        vcpu.unsupported_cpu = place.unsupported
    if place.use_fgt is not None:
        s.world.vms[0].use_fgt = place.use_fgt
    if place.busy == 0:
        cpu.hw.used_mask = 0


def settle(s: Scene) -> None:
    """Write what the invariant says to be equal to something else as just that: it changes no state that it holds in.

    Terms that are equal are then one term, and the prover has less to find out.
    """
    vcpu, cpu, mirror = s.world.vcpus[V], s.world.host.cpus[C], s.mirror.pe
    pe, saved, hw = cpu.pe, s.world.saved[C], cpu.hw
    mine, owned = invariants.of_guest(s), invariants.is_owned(s)
    hw.guest_resident = int(owned)
    hw.cntr_mask = invariants.of_cpu(s) & ~((mine | 1 << 32) if owned else 0)
    if isinstance(hw.used_mask, int):
        hw.events_host = hw.events_guest = 0
    busy = int(not isinstance(hw.used_mask, int))
    on = hw.used_mask | invariants.on_loan(s)
    pe.cnten, pe.inten, pe.ovs = pe.cnten & on, pe.inten & on, pe.ovs & on
    _settle_traps(s, busy)
    if vcpu.loaded == 1:
        saved.selr, saved.userenr, saved.mdcr_el2 = s.selr, s.userenr, pe.core.event_counters
        saved.pmcr = invariants.host_pmcr(s) | (saved.pmcr & PMCR_E)
        s.world.vms[0].supported_pmus = 1 - vcpu.unsupported_cpu
    if vcpu.loaded == 0 or vcpu.unsupported_cpu == 1:
        pe.selr, pe.userenr = s.selr, s.userenr
    elif not owned:
        pe.selr, pe.userenr = 0, 15
    if not owned:
        pe.pmcr = invariants.host_pmcr(s) | busy
    if pe.tge == 0:
        s.mirror.trapped = 0
    vcpu.ccfiltr = s.ccfiltr
    at: Pe | Vcpu = pe if owned else vcpu
    for i in range(s.world.vms[0].nr_counters):
        vcpu.evtyper[i] = s.mirror.evtyper[i]
        mirror.evcntr[i] = at.evcntr[i]
        if owned:
            pe.evtyper[i] = mirror.evtyper[i]
    mirror.ccntr, mirror.pmcr, mirror.selr, mirror.userenr = at.ccntr, at.pmcr, at.selr, at.userenr
    mirror.cnten, mirror.inten, mirror.ovs = at.cnten & mine, at.inten & mine, vcpu.ovs
    if owned:
        pe.ccfiltr = mirror.ccfiltr
        mirror.ovs = vcpu.ovs | (pe.ovs & mine)


def _settle_traps(s: Scene, busy: int) -> None:
    pe = s.world.host.cpus[C].pe
    used = s.world.host.cpus[C].hw.used_mask
    s.world.host.cpus[C].hw.used_mask = busy
    pe.mdcr_el2 = invariants.mdcr_el2_ought_to_be(s)
    s.world.host.cpus[C].hw.used_mask = used
    pe.hdfgrtr_el2 = invariants.read_traps_ought_to_be(s)
    pe.hdfgwtr_el2 = invariants.write_traps_ought_to_be(s)
    pe.hdfgrtr2_el2 = pe.hdfgwtr2_el2 = 0


# ---- what is asked ------------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """Something that must be zero after a section."""

    property: str
    says: str
    wrong: Any


class Action(NamedTuple):
    """Something that may happen, with the claims that only it has to make true; None where it cannot happen."""

    words: str
    possible: Callable[[Place], bool]
    run: Callable[[_Twins, Scene, Scene], list[Claim] | None]
    assume: tuple[Any, ...] = ()


class _Twins:
    """The functions that are proved of, with others replaced."""

    def __init__(self, replaced: Replaced) -> None:
        self._replaced = {**MERGED, **dict(ASSUMED.values()), **replaced}
        self._homes = (*HERE, *sorted({f"{instead.__module__}." for instead in replaced.values()}))
        self._made: dict[Callable[..., Any], Callable[..., Any]] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if function not in self._made:
            self._made[function] = substituted(function, self._replaced, also=self._homes)
        return self._made[function](*arguments)


def _same(of: str, says: str, one: Sequence[Any], other: Sequence[Any]) -> list[Claim]:
    return [Claim(of, says, a ^ b) for a, b in zip(one, other, strict=True)]


def _access(section: Callable[..., int], el: Any, key: Any, write: Any) -> Callable[..., list[Claim] | None]:
    def run(twins: _Twins, s: Scene, before: Scene) -> list[Claim] | None:
        s.read = s.expected = 0
        s.mirror.trapped = s.world.host.cpus[C].pe.tge
        if twins(section, s, el, key, write, Int(z3.BitVec("value", WORD))) != DONE:
            return None
        claims = [Claim("reads", "what was read is what the mirror reads", s.read ^ s.expected)]
        if section is sections.guest_accesses and s.mirror.trapped == 1:
            claims.append(
                Claim("direct", "what has exited is virtual", twins(sections.need_not_exit, s, el, key, write))
            )
        if s.world.vcpus[V].residency != before.world.vcpus[V].residency:
            return claims + _kept(twins, s, before)
        everything = [twins(sections.everything_of_the_hosts, one) for one in (before, s)]
        return claims + _same("isolation", "what is the host's is as before", *everything)

    return run


def _kept(twins: _Twins, s: Scene, before: Scene, overflows: bool = True) -> list[Claim]:
    """Say that events are counted as before, apart from what contracts did to them."""
    seen = [before.world.host.cpus[C], *_chances.seen, s.world.host.cpus[C]]
    claims = []
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        pair = [twins(sections.events_of_host, cpu) for cpu in (one, other)]
        claims += _same("host-kept", "the host's events are counted as before", *pair)
        if overflows:
            pair = [twins(sections.overflows_of_events, cpu) for cpu in (one, other)]
            claims += _same("host-kept", "the host's overflows are as before", *pair)
    return claims


def _simple(section: Callable[..., int]) -> Callable[..., list[Claim] | None]:
    def run(twins: _Twins, s: Scene, before: Scene) -> list[Claim] | None:
        if twins(section, s) != DONE:
            return None
        claims = _kept(twins, s, before)
        if section is sections.kvm_enters:
            line, level = twins(sections.line_and_level, s)
            claims += [Claim("delivered", "the guest's interrupt line has the mirror's level", line ^ level)]
        return claims

    return run


def _interrupted(twins: _Twins, s: Scene, before: Scene) -> list[Claim] | None:
    v = V if before.world.vcpus[V].loaded == 1 else NO_VCPU
    if twins(sections.cpu_interrupted, s, v) != DONE:
        return None
    (overflowed,) = twins(sections.overflows_of_events, before.world.host.cpus[C])
    claims = [Claim("host-kept", "the driver sees every overflow of its events", _chances.flags ^ overflowed)]
    return claims + _kept(twins, s, before, overflows=False)


def _counted(section: Callable[..., int], el: int, *amounts: Any) -> Callable[..., list[Claim] | None]:
    def run(twins: _Twins, s: Scene, before: Scene) -> list[Claim] | None:
        cpu = before.world.host.cpus[C]
        alone = records.copy(cpu.pe)
        twins(sections.make_lone, before, alone)
        pair = [twins(sections.how_events_count, cpu, pe, el) for pe in (cpu.pe, alone)]
        if twins(section, s, el, *amounts) != DONE:
            return None
        return _same("host-counts", "the host's events count as they do without a guest", *pair)

    return run


def _is_owned(place: Place) -> bool:
    return place.residency == 1


def actions() -> Iterator[Action]:
    """Yield all that may happen."""
    yield Action("the vCPU is loaded", lambda p: p.loaded == 0, _simple(sections.kvm_loads))
    yield Action("the vCPU is put", lambda p: p.loaded == 1 and p.tge == 1, _simple(sections.kvm_puts))
    yield Action("KVM enters the guest", lambda p: p.loaded == 1 and p.tge == 1, _simple(sections.kvm_enters))
    yield Action("the guest exits", lambda p: p.tge == 0, _simple(sections.kvm_exits))
    yield Action("the CPU takes PMUIRQ", lambda p: True, _interrupted)
    yield Action("the host reschedules its events", lambda p: p.tge == 1, _simple(sections.host_reschedules))
    yield from _countings()
    yield from _accesses()


def _countings() -> Iterator[Action]:
    event, amount = z3.BitVec("event", 16), z3.BitVec("amount", WORD)
    few = (z3.ULE(amount, 1 << 62),)
    wide = Int(z3.ZeroExt(WORD - 16, event))
    at: tuple[Callable[[Place], bool], ...] = (
        lambda p: p.tge == 0 or p.loaded == 0,
        lambda p: p.tge == 0,
        lambda p: p.tge == 1,
    )
    for el in (0, 1, 2):
        counted = _counted(sections.event_happens, el, wide, Int(amount))
        yield Action(f"an event happens at EL{el}", at[el], counted, few)
        yield Action(f"cycles pass at EL{el}", at[el], _counted(sections.cycles_pass, el, Int(amount)), few)


def _accesses() -> Iterator[Action]:
    key, el, write = (
        Int(z3.ZeroExt(WORD - bits, z3.BitVec(name, bits))) for name, bits in (("key", 16), ("el", 1), ("write", 1))
    )
    waits = _access(sections.kvm_handles, el, key, write)
    yield Action("KVM handles an access", lambda p: p.loaded == 1 and p.tge == 1 and not _is_owned(p), waits)
    for e in (1, 0):
        for k in PMU_KEYS:
            for w in (0, 1):
                words = f"{'a write to' if w else 'a read of'} {name_of(k)} from EL{e}"
                made = _access(sections.guest_accesses, e, k, w)
                yield Action(f"the guest executes {words}", lambda p: p.tge == 0, made)
                made = _access(sections.kvm_handles, e, k, w)
                yield Action(f"KVM handles {words}", lambda p: _is_owned(p) and p.tge == 1, made)


# ---- proving ------------------------------------------------------------------------------------------------------

NAMES = {
    **{of.name: of.sentence for of in properties.ALL if of.name not in ("attributes", "progress")},
    "residency": "residency, the counters that the driver has, MDCR_EL2, HPME and the fine-grained traps fit together",
    "host-kept": "load, put, entry, exit and PMUIRQ leave the host's events on their counters, and lose no overflow",
}
"""The properties that can be proved, with their sentences: those that are explored, and two that are asked for here."""


class VacuousError(AssertionError):
    """A proof about nothing: no state is in a place that the invariant leaves."""


@dataclasses.dataclass(frozen=True)
class Counterexample:
    """A state in which the invariant holds, and an action after which a property does not."""

    counters: tuple[int, int]
    action: str
    place: str
    says: str
    """What does not hold."""
    state: dict[str, int]
    """What matters of the state and the action, and is not zero."""


@dataclasses.dataclass
class Result:
    """Of one property."""

    name: str
    counters: list[tuple[int, int]]
    """For which sizes (N, the guest's n)."""
    seconds: float = 0.0
    """What Z3 took for it."""
    claims: int = 0
    """How many claims were not the same term on both sides, and were asked of Z3."""
    counterexample: Counterexample | None = None

    @property
    def proved(self) -> bool:
        """Return whether it holds."""
        return self.counterexample is None


class Proof:
    """Proofs of a design for some sizes; `happened` has which actions were possible at all."""

    def __init__(self, design: str, asked: str | None = None, replaced: Replaced | None = None) -> None:
        self.design = design
        self.twins = _Twins(replaced or {})
        names = [asked] if asked else list(NAMES)
        self.results = {name: Result(name, []) for name in names}
        self.parts = [part for part in invariants.ALL if part.property in self.results]
        self.happened: dict[str, bool] = {}
        self.given: dict[Setup, list[records.Path]] = {}

    def prove(
        self,
        setup: Setup,
        progress: Callable[[str], None] = lambda words: None,
        chosen: Callable[[str], bool] = lambda words: True,
    ) -> None:
        """Prove what is asked for of a machine of one size, of all actions or those that are chosen by their words.

        What has failed already is not asked again.
        """
        for result in self.results.values():
            result.counters.append((setup.counters, setup.guest))
        self.given[setup] = _what_is_given(setup, self.design)
        self._begin(setup)
        for place in places(setup, self.design):
            base, assume = self._base(setup, place)
            for action in actions():
                if action.possible(place) and chosen(action.words) and not self._all_failed():
                    progress(f"{setup.counters}, {setup.guest}: {place.words}: {action.words}")
                    self._act(setup, place, base, assume, action)

    def _all_failed(self) -> bool:
        return not any(result.proved for result in self.results.values())

    def _begin(self, setup: Setup) -> None:
        """A machine begins: a CPU is booted, a vCPU made. There is nothing that can have been before."""
        for use_fgt in (0, 1):
            s = first_scene(setup, self.design, use_fgt, self.twins)
            begins = Action("the machine begins", lambda p: True, lambda twins, s, before: [])
            self._act(setup, Place(0, 0, None, 1, 0, use_fgt), s, [], begins)

    def _base(self, setup: Setup, place: Place) -> tuple[Scene, list[Any]]:
        """Return any scene that is in a place, and what else the invariant says of it."""
        base = scene_of(setup, self.design)
        stand_in(base, place)
        settle(base)
        wrong = [w for part in invariants.ALL for w in self.twins(part.wrong, base)]
        assume = [term for w in wrong if not z3.is_true(term := _holds(w))]
        if place.busy:
            assume.append(word(base.world.host.cpus[C].hw.used_mask) != 0)
        solver = z3.SolverFor(LOGIC)
        solver.add(*assume)
        if solver.check() != z3.sat:
            raise VacuousError(f"{place.words}: the invariant leaves no state")
        return base, assume

    def _act(self, setup: Setup, place: Place, base: Scene, assume: list[Any], action: Action) -> None:
        def run() -> list[Claim] | None:
            s = records.copy(base)
            _chances.begin(setup.sizes)
            claims = action.run(self.twins, s, base)
            if claims is None:
                return None
            claims += _given(self.given[setup], base, s)
            for part in self.parts:
                says = part.wrong.__name__.replace("_", " ")
                claims += [Claim(part.property, says, w) for w in self.twins(part.wrong, s)]
            return claims

        assumed = {term.get_id() for term in assume}
        assume = [*assume, *action.assume]
        self.happened.setdefault(action.words, False)
        for solver, claims in paths(run, assume, LOGIC):
            if claims is None:
                continue
            self.happened[action.words] = True
            for name, result in self.results.items():
                failed = _ask(solver, [claim for claim in claims if claim.property == name], assumed, result)
                if failed is not None:
                    claim, model = failed
                    relevant = _variables([word(claim.wrong), *solver.assertions()[len(assume) :]])
                    state = _state(base, setup, model, relevant)
                    counters = (setup.counters, setup.guest)
                    result.counterexample = Counterexample(counters, action.words, place.words, claim.says, state)


def _given(paths_given: Sequence[records.Path], before: Scene, s: Scene) -> list[Claim]:
    """Say that what never changes has not: it is given, not assumed."""
    claims = []
    for path in paths_given:
        old, new = records.get(before, path), records.get(s, path)
        if old is not new:
            claims.append(Claim("residency", f"{_dotted(path)} never changes", new ^ old))
    return claims


_known: dict[int, tuple[Any, Any]] = {}
"""What claims come to, by the term that must be zero, which is kept so that no other has its identity."""


def _holds(wrong: Any) -> Any:
    """Return the term that says that something is zero, simplified."""
    term = word(wrong)
    if id(term) not in _known:
        if len(_known) >= MOST_TERMS:
            _known.clear()
        _known[id(term)] = term, z3.simplify(term == 0)
    return _known[id(term)][1]


def _ask(solver: Any, claims: list[Claim], assumed: set[int], result: Result) -> tuple[Claim, Any] | None:
    """Return a claim that does not hold on a path, with a model; None where all do."""
    if not result.proved:
        return None
    begin = time.perf_counter()
    found = None
    for claim in claims:
        if word(claim.wrong) is word(0):
            continue
        holds = _holds(claim.wrong)
        if z3.is_true(holds) or holds.get_id() in assumed:
            continue
        result.claims += 1
        if solver.check(z3.Not(holds)) != z3.unsat:
            found = claim, solver.model()
            break
    result.seconds += time.perf_counter() - begin
    return found


def prove(
    design: str,
    asked: str | None = None,
    setups: Sequence[Setup] = SETUPS,
    replaced: Replaced | None = None,
    progress: Callable[[str], None] = lambda words: None,
) -> list[Result]:
    """Prove a property, or all, of a design for machines of some sizes, with some functions replaced.

    `progress` is told what is being proved. Raises VacuousError.
    """
    proof = Proof(design, asked, replaced)
    for setup in setups:
        proof.prove(setup, progress)
    return list(proof.results.values())


# ---- a counterexample ---------------------------------------------------------------------------------------------


def _variables(terms: Sequence[Any]) -> set[str]:
    """Return the names of the variables in some terms."""
    names, seen, todo = set(), set(), list(terms)
    while todo:
        term = todo.pop()
        if term.get_id() not in seen:
            seen.add(term.get_id())
            todo += term.children()
            if z3.is_const(term) and term.decl().kind() == z3.Z3_OP_UNINTERPRETED:
                names.add(term.decl().name())
    return names


def _state(base: Scene, setup: Setup, model: Any, relevant: set[str]) -> dict[str, int]:
    """Return the integers that a counterexample is about and that are not zero; of equal ones only the first."""
    state: dict[str, int] = {}
    told = set()
    for leaf in records.leaves(Scene, setup.sizes):
        term = word(records.get(base, leaf.path))
        if leaf.role is records.Role.LEDGER or term.get_id() in told or not _variables([term]) & relevant:
            continue
        told.add(term.get_id())
        if value := model.eval(term, model_completion=True).as_long():
            state[_dotted(leaf.path)] = value
    for name in ("value", "event", "amount", "key", "el", "write"):
        bits = {"event": 16, "key": 16, "el": 1, "write": 1}.get(name, WORD)
        if name in relevant and (value := model.eval(z3.BitVec(name, bits), model_completion=True).as_long()):
            state[name] = value
    return state


_WHERE = {
    ("world", "host", "cpus", 0, "pe"): "cpu",
    ("world", "host", "cpus", 0, "hw"): "driver",
    ("world", "vcpus", 0): "vcpu",
    ("world", "vms", 0): "vm",
    ("world", "saved", 0): "saved",
    ("mirror", "pe"): "mirror",
}


def _dotted(path: records.Path) -> str:
    """Return a person's name of an integer of a scene: cpu.evcntr[3], vcpu.cnten, mirror.ovs."""
    for start, short in _WHERE.items():
        if path[: len(start)] == start:
            path = (short, *path[len(start) :])
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
