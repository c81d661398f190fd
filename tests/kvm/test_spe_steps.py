"""Each step of KVM's switch of the profiling unit is needed: without it, something that can happen goes wrong.

The steps are the register accesses and barriers of kvm/spe.py and kvm/world.py, found in their source. Between any two
an `Adversary` does what the architecture allows: KVM's own code is sampled, writes that are not synchronized may take
effect, records leave the unit, and where interrupts are on the host's PMBIRQ handler runs. With all steps nothing ever
goes wrong; with one left out it does, for one of a number of seeds.
"""

from __future__ import annotations

import ast
import inspect
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from kvm.machines import EL0, EL1, EL2
from kvm.spe_machine import E0SPE, E1SPE, HOST, PAGE, Broken, SpeMachine, check
from pmuvisor.arch import spe, sysreg
from pmuvisor.arch.spe import Spu
from pmuvisor.arch.traps import ALLOWED
from pmuvisor.kvm import spe as kvm_spe
from pmuvisor.kvm import world
from pmuvisor.kvm.vcpu import SpeContext, Vcpu, Vm
from pmuvisor.kvm.world import World
from pmuvisor.linux import arm_spe
from pmuvisor.records import WidthError

SEEDS = 150
PRIMITIVES = ("read", "write", "isb", "psb_csync", "dsb", "write_mdcr_el2")
SHARED = ("save_sampling", "restore_sampling")
INTERRUPTS_ON = ("swap_in", "own_buffer")
"""Where a vCPU is loaded: preemption is off, interrupts are not. `put` is one section here: see the tests below."""


# ---- the steps ------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    name: str
    where: tuple[str, ...]
    """The functions that it is in, the innermost first."""
    line: int


def steps_of(function: Callable[..., Any], within: tuple[str, ...] = ()) -> Iterator[Step]:
    """Yield the steps of one function, in the order of its source."""
    lines, first = inspect.getsourcelines(function)
    seen: Counter[str] = Counter()
    calls = [node for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda call: call.lineno):
        target = call.func
        if not isinstance(target, ast.Attribute) or not isinstance(target.value, ast.Name):
            continue
        if target.value.id not in ("spe", "arch_spe") or target.attr not in PRIMITIVES:
            continue
        registers = [a.id for a in call.args if isinstance(a, ast.Name) and a.id in sysreg.BY_NAME]
        what = " ".join([target.attr, *registers])
        seen[what] += 1
        again = f" {seen[what]}" if seen[what] > 1 else ""
        where = (function.__name__, *within)
        yield Step(f"{'/'.join(reversed(where))}: {what}{again}", where, first + call.lineno - 1)


def all_steps() -> Iterator[Step]:
    whole: list[Callable[..., Any]] = [kvm_spe.drain_host, kvm_spe.swap_in, kvm_spe.put]
    whole += [kvm_spe.restore_guest_buffer, kvm_spe.save_guest_buffer, world.own_buffer, world.return_buffer]
    for function in whole:
        yield from steps_of(function)
    for shared in (kvm_spe.save_sampling, kvm_spe.restore_sampling):
        for within in ("swap_in", "put"):
            yield from steps_of(shared, (within,))


STEPS = {step.name: step for step in all_steps()}

REDUNDANT = {
    "own_buffer: isb": "restore_guest_buffer: isb",
    "save_guest_buffer: isb": "save_guest_buffer: isb 2",
}
"""Steps that can be left out as long as another is there, which comes before anything depends on either."""


# ---- the adversary --------------------------------------------------------------------------------------------


class Adversary:
    """What can happen between two steps, chosen by a seed."""

    def __init__(
        self, s: SpeMachine, rng: random.Random, without: tuple[Step, ...], interrupts_on: tuple[str, ...]
    ) -> None:
        self.s, self.rng, self.interrupts_on = s, rng, interrupts_on
        self.without = {(step.where, step.line) for step in without}

    def step(self, where: tuple[str, ...], line: int, function: Callable[..., Any], *arguments: Any) -> Any:
        self.act(where[-1])
        if (where, line) in self.without:
            return 0
        if function in (spe.read, spe.write):
            key = arguments[1] if function is spe.write else arguments[2]
            there = spe.access(self.s.cpu.pe, self.s.spu, EL2, key, int(function is spe.write))
            check(there == ALLOWED, f"{sysreg.name_of(key)} is UNDEFINED on this core")
        return function(*arguments)

    def act(self, function: str) -> None:
        for _ in range(self.rng.choice([0, 0, 0, 1, 3, 8])):
            kind = self.rng.randrange(6)
            if kind == 0:
                self.s.operate(HOST, EL2, 1 << 40)
            elif kind == 1:
                spe.take_effect(self.s.spu, self.rng.getrandbits(6))
            elif kind == 2 and function in self.interrupts_on:
                self.interrupt(function)
            else:
                self.unit()
            check(self.s.spu.exposed == 0, "the buffer is enabled while its pointer is of another regime")

    def unit(self) -> None:
        """The unit writes a record, what it has written completes, what it did to its registers is seen."""
        spu = self.s.spu
        kind = self.rng.randrange(3)
        if kind == 0 and spu.nr_pending:
            self.s.translate()
            spe.initiate(spu)
            self.s.deliver()
        elif kind == 1:
            spe.dsb(spu)
        elif kind == 2 and spu.initiated == 0:
            if not spu.unsynchronised & spe.SYNC_PMBPTR:
                spu.pmbptr = spu.pointer
            if not spu.unsynchronised & spe.SYNC_PMBSR:
                spu.pmbsr = spu.status

    def interrupt(self, function: str) -> None:
        """The host's handler runs: PMBIRQ is raised, or was when the interrupt controller looked."""
        if function in INTERRUPTS_ON:
            check(spe.pmbirq(self.s.spu) == 0, "PMBIRQ is raised while a vCPU is loaded")
        spe.isb(self.s.spu)
        self.s.translate()
        arm_spe.irq_handler(self.s.host, 0)
        spe.isb(self.s.spu)
        self.s.deliver()
        self.s.read_aux()


class Watched:
    """A module of arch/, as KVM's code sees it: each step that it takes is the adversary's to allow."""

    def __init__(self, module: Any, adversary: Adversary) -> None:
        self.module, self.adversary = module, adversary

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        if name not in PRIMITIVES:
            return value

        def step(*arguments: Any) -> Any:
            frame = sys._getframe(1)
            where: tuple[str, ...] = (frame.f_code.co_name,)
            if where[0] in SHARED and frame.f_back is not None:
                where = (*where, frame.f_back.f_code.co_name)
            if where[0] == "vcpu_exit":  # taking an exception is one step of the hardware
                return value(*arguments)
            return self.adversary.step(where, frame.f_lineno, value, *arguments)

        return step


class Replaced(NamedTuple):
    """A function of kvm/ and what stands in its place."""

    module: Any
    name: str
    function: Callable[..., Any]


def play(
    seed: int,
    without: tuple[Step, ...] = (),
    replaced: tuple[Replaced, ...] = (),
    interrupts_on: tuple[str, ...] = INTERRUPTS_ON,
    **features: int,
) -> SpeMachine:
    """Let a host and its guests profile through a few loads and puts; raise Broken where something goes wrong."""
    rng = random.Random(seed)
    s = SpeMachine(vms=2, rng=rng, **features)
    adversary = Adversary(s, rng, without, interrupts_on)
    with pytest.MonkeyPatch.context() as patch:
        for module, name, function in replaced:
            patch.setattr(module, name, function)
        patch.setattr(kvm_spe, "spe", Watched(spe, adversary))
        patch.setattr(world, "arch_spe", Watched(spe, adversary))
        for name, value in (("PMSCR_EL1", 0x48), ("PMSNEVFR_EL1", 0x20), ("PMSDSFR_EL1", 5)):
            if s.has(name):
                spe.write(s.spu, sysreg.BY_NAME[name], value)
        pmscr = rng.choice([E0SPE | E1SPE, E1SPE, E0SPE])
        start = PAGE - 64 * rng.randrange(1, 6)
        s.profile(pmscr | 0x28, start, pmsevfr=2, pmslatfr=3, pmsfcr=rng.choice([0, 4, 1]))
        for _ in range(4):
            host_runs(s, rng, adversary)
            s.load(rng.randrange(2))
            for _ in range(rng.randrange(3)):
                s.enter(masked=rng.random() < 0.3)
                guest_runs(s, rng, adversary)
                s.exit()
            s.put()
        s.check_resumed()
        s.finish()
    return s


def burst(s: SpeMachine, rng: random.Random) -> int:
    """Return how many samples are to be taken: about as many as the buffer has room for, or a few."""
    room = spe.records_to_service(s.spu)
    return rng.choice([0, 1, 2, 3, max(0, min(room, 8) - rng.randrange(4))])


def host_runs(s: SpeMachine, rng: random.Random, adversary: Adversary) -> None:
    el = EL2 if s.session.pmscr & E1SPE else EL0
    if s.session.pmscr & E0SPE and rng.random() < 0.3:
        el = EL0
    s.host_runs(0)
    for _ in range(burst(s, rng)):
        s.operate(HOST, el, 1 << 40)
        if rng.random() < 0.7:  # else the interrupt, if there is one, is still to be taken when KVM comes
            s.host_runs(0)
        adversary.unit()
    s.operate(HOST, el, rng.randrange(1, 200))  # the counter stops in the middle of an interval


def guest_runs(s: SpeMachine, rng: random.Random, adversary: Adversary) -> None:
    guest = s.guest()
    if not guest.registers:
        first = 2 * PAGE - 64 * rng.randrange(1, 6)
        others = {
            "PMSFCR": rng.choice([0, 4, 8 * s.features().fne]),
            "PMSEVFR": 8,
            "PMSLATFR": 9,
            "PMSNEVFR": 0x40,
            "PMSDSFR": 6 + guest.v,
        }
        s.guest_profiles(E0SPE | E1SPE, first, **others)
        return
    if guest.enabled and rng.random() < 0.1:
        s.guest_stops()
        guest.registers = {}
        return
    for _ in range(burst(s, rng)):
        s.guest_runs(1, rng.choice([EL0, EL1]))
        adversary.unit()
    s.operate(guest.v + 1, EL1, rng.randrange(1, 200))


def breaks(*without: str, **others: Any) -> str | None:
    """Return what goes wrong for one of the seeds without some steps, or None."""
    for seed in range(SEEDS):
        try:
            play(seed, tuple(STEPS[name] for name in without), **others)
        except (Broken, WidthError) as broken:
            return f"seed {seed}: {broken}"
    return None


# ---- with and without -----------------------------------------------------------------------------------------


def test_with_all_steps_nothing_goes_wrong_whatever_happens_in_between() -> None:
    interrupts = [0, 0]
    for seed in range(SEEDS):
        s = play(seed)
        interrupts[0] += s.session.interrupts
        interrupts[1] += sum(guest.interrupts for guest in s.guests)
    assert min(interrupts) > SEEDS / 2


@pytest.mark.parametrize("features", [{"fne": 0, "pmsver": 1, "fds": 0}, {"fds": 0}, {"ernd": 1}], ids=str)
def test_nor_on_a_core_with_other_features(features: dict[str, int]) -> None:
    assert breaks(**features) is None


@pytest.mark.parametrize("name", [name for name in STEPS if name not in REDUNDANT])
def test_without_this_step_something_goes_wrong(name: str) -> None:
    assert breaks(name) is not None


@pytest.mark.parametrize(("name", "other"), REDUNDANT.items())
def test_this_step_can_be_left_out_as_long_as_the_other_is_there(name: str, other: str) -> None:
    assert breaks(name) is None
    assert breaks(name, other) is not None


# ---- steps in another order, and conditions left out -----------------------------------------------------------

_drain, _swap, _own, _put = kvm_spe.drain_host, kvm_spe.swap_in, world.own_buffer, kvm_spe.put
_restore, _save = kvm_spe.restore_guest_buffer, kvm_spe.save_guest_buffer
_save_sampling = kvm_spe.save_sampling


def owner_first(of: World, c: int, v: int) -> None:
    _own(of, c, v)
    _drain(of.host.cpus[c].spu, of.saved[c])
    _swap(of.host.cpus[c].spu, of.saved[c], of.vcpus[v])


def put_first(of: World, c: int, v: int) -> None:
    cpu = of.host.cpus[c]
    _put(cpu.spu, of.saved[c], of.vcpus[v])
    spe.write_mdcr_el2(cpu.spu, cpu.pe.mdcr_el2)
    cpu.spu.guest = HOST


def nothing(*_: object) -> None:
    pass


def as_if_serviced(spu: Spu, vm: Vm, vcpu: Vcpu, guest: int) -> None:
    """Restore a guest's buffer whatever its service bit is in memory."""
    status, vcpu.spe.pmbsr = vcpu.spe.pmbsr, 0
    _restore(spu, vm, vcpu, guest)
    vcpu.spe.pmbsr = status


def always_saved(spu: Spu, vm: Vm, vcpu: Vcpu) -> None:
    """Drain a guest's buffer though it may not be in the unit."""
    limit, status = vcpu.spe.pmblimitr, vcpu.spe.pmbsr
    vcpu.spe.pmblimitr, vcpu.spe.pmbsr = limit | 1, 0
    _save(spu, vm, vcpu)
    vcpu.spe.pmblimitr, vcpu.spe.pmbsr = limit, vcpu.spe.pmbsr or status


def saves_what_there_may_be(spu: Spu, ctxt: SpeContext) -> None:
    """Save the registers of optional features on any core, through whatever KVM takes for its module."""
    _save_sampling(spu, ctxt)
    through: Any = vars(kvm_spe)["spe"]
    ctxt.pmsnevfr = through.read(spu, EL2, sysreg.PMSNEVFR_EL1)
    ctxt.pmsdsfr = through.read(spu, EL2, sysreg.PMSDSFR_EL1)


def test_the_owner_of_the_buffer_does_not_change_before_the_hosts_records_are_out() -> None:
    order = (
        Replaced(kvm_spe, "drain_host", nothing),
        Replaced(kvm_spe, "swap_in", nothing),
        Replaced(world, "own_buffer", owner_first),
    )
    assert breaks(replaced=order) is not None


def test_the_hosts_buffer_is_not_enabled_before_it_is_the_hosts() -> None:
    assert breaks(replaced=(Replaced(world, "return_buffer", put_first),)) is not None


def test_a_guests_buffer_that_requires_service_does_not_come_into_the_unit() -> None:
    assert breaks(replaced=(Replaced(kvm_spe, "restore_guest_buffer", as_if_serviced),)) is not None


def test_a_guests_buffer_that_is_not_in_the_unit_is_not_saved_from_there() -> None:
    assert breaks(replaced=(Replaced(kvm_spe, "save_guest_buffer", always_saved),)) is not None


@pytest.mark.parametrize("features", [{"fne": 0, "pmsver": 1}, {"fds": 0}], ids=str)
def test_a_register_of_a_feature_that_is_not_there_is_not_accessed(features: dict[str, int]) -> None:
    broken = breaks(replaced=(Replaced(kvm_spe, "save_sampling", saves_what_there_may_be),), **features)
    assert broken is not None
    assert "is UNDEFINED" in broken


@pytest.mark.parametrize("function", ["drain_host", "put", "save_guest_buffer"])
def test_interrupts_are_off(function: str) -> None:
    """The series turns them off in kvm_vcpu_spe_load(), and enters and leaves the guest with them off; in
    kvm_vcpu_spe_put() it does not, which is right where the scheduler calls it, but not from vcpu_put().
    """
    assert breaks(interrupts_on=(*INTERRUPTS_ON, function)) is not None
