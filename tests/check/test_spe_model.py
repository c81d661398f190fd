"""The model of the profiling unit: sound presets, which nothing breaks; traces by hand; compiled and plain."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pmuvisor import records
from pmuvisor.arch import spe as arch_spe
from pmuvisor.arch.spe import HOST, SYNC_ALL, SYNC_E2PB, SYNC_PMBLIMITR, SYNC_PMBPTR, SYNC_PMBSR, Spu
from pmuvisor.arch.sysreg import PMBLIMITR_E, PMBSR_EL1, PMBSR_S
from pmuvisor.check import catalogue, plain, story
from pmuvisor.check.explore import Exploration
from pmuvisor.check.found import Violation
from pmuvisor.check.model import BROKEN, DONE, NOT_NOW, Model
from pmuvisor.check.spe import models, properties, state
from pmuvisor.check.spe.models import PRESETS, Preset
from pmuvisor.check.spe.state import Machine
from pmuvisor.cli import main
from pmuvisor.compiled import substituted
from pmuvisor.kvm import spe as kvm_spe
from pmuvisor.kvm.vcpu import HostContext, Vcpu, Vm

SHORT = dataclasses.replace(PRESETS["spe"], room=1, accesses=1, executions=1, switches=1, openings=1)
"""Of the same sizes as spe, and so of the same machine code; the first sample fills a buffer."""


def step_of(model: Model, replaced: dict[Callable[..., Any], Callable[..., Any]] | None = None) -> Callable[..., int]:
    return substituted(model.step, {**model.replaced, **(replaced or {})}, also=model.also)


def replaced_by(name: str) -> dict[Callable[..., Any], Callable[..., Any]]:
    defect = catalogue.defect(name)
    return {defect.sound: defect.defective}


# ---- the sound design ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_breaks_the_sound_design_in_any_preset(name: str) -> None:
    short = dataclasses.replace(PRESETS[name], accesses=1, executions=1, switches=1, openings=1)
    found = plain.explore(models.model(short), most=250)
    assert found.violation is None
    assert found.complete or found.states >= 250


def test_spe_is_explored_completely_and_has_a_hundred_thousand_states() -> None:
    found = Exploration(models.model(PRESETS["spe"])).run()
    assert (found.complete, found.violation) == (True, None)
    assert found.states >= 100_000


def test_compiled_and_plain_explorations_find_the_same_states_by_the_same_steps() -> None:
    ours, reference = Exploration(models.model(SHORT)).run(), plain.explore(models.model(SHORT))
    assert (ours.states, ours.transitions, ours.complete) == (reference.states, reference.transitions, True)
    assert reference.complete
    assert ours.depth == reference.depth


# ---- long walks ---------------------------------------------------------------------------------------------


def walk(preset: Preset, seed: int, seen: Counter[str]) -> None:
    rng, model = random.Random(seed), models.model(preset)
    step = step_of(model)
    m: Machine = model.begin(model.every)
    m.left[:] = [60 * min(1, budget) for budget in preset.budgets[:-1]] + [2 * preset.unmappings]
    for _ in range(12_000):
        action = rng.choice(model.actions)
        kind, c = action.operands[:2]
        middle = kind == state.INTERRUPT and m.loading[c] != 0
        result = step(m, *action.operands)
        assert result in (NOT_NOW, DONE), (seed, action.words, properties.ALL[result - BROKEN])
        if result == DONE:
            seen[f"kind {kind}"] += 1
            seen["in the middle of a load"] += int(middle)
    seen["the host's buffer was full"] += sum(session.interrupts for session in m.world.host.spe_sessions)
    seen["a guest was interrupted"] += sum(vcpu.spe_injected for vcpu in m.world.vcpus)
    seen["stage 2"] += sum(vcpu.spe_stage2 for vcpu in m.world.vcpus)
    records.check_widths(m, model.sizes)


@pytest.mark.parametrize("name", PRESETS)
def test_long_random_walks_break_nothing_and_come_to_all_that_matters(name: str) -> None:
    preset = PRESETS[name]
    seen: Counter[str] = Counter()
    for seed in range(10):
        walk(preset, seed, seen)
    assert seen["a guest was interrupted"] > 0
    assert all(seen[f"kind {kind}"] for kind in range(state.LOAD + 1))
    if preset.sessions:
        assert seen["the host's buffer was full"] > 0
        assert seen["in the middle of a load"] > 0
        assert all(seen[f"kind {kind}"] for kind in (state.OPEN, state.CLOSE, state.WRITE_OUT, state.SYNCHRONISE))
    if preset.unmappings:
        assert seen["stage 2"] > 0
    if preset.cpus > 1:
        assert seen[f"kind {state.MOVE}"] > 0


def test_an_action_that_is_not_possible_changes_nothing() -> None:
    model, rng = models.model(PRESETS["spe"]), random.Random(7)
    step = step_of(model)
    m: Machine = model.begin(model.every)
    m.left[:] = [9, 9, 9, 9, 0]
    for _ in range(500):
        before = records.key(m, model.sizes)
        if step(m, *rng.choice(model.actions).operands) == NOT_NOW:
            assert records.key(m, model.sizes) == before


# ---- traces by hand -----------------------------------------------------------------------------------------

COMES = "the next thread comes to CPU 0, and its vCPU is being loaded"
SECOND, THIRD = (f"the load on CPU 0 goes on, section {section} of 3" for section in (2, 3))
LEAVES = "the thread on CPU 0 is preempted, and its vCPU put"
OPENS = "the host begins to profile CPU 0"
HOST_SAMPLED = "the host on CPU 0 executes up to an instruction that is sampled"
GUEST_SAMPLED = "the guest on CPU 0 executes up to an instruction that is sampled"
PMBIRQ = "CPU 0 takes PMBIRQ"
ENTERS, EXITS = "CPU 0 enters the guest", "CPU 0 exits the guest, for an interrupt"
HANDLES = "KVM handles the access that exited on CPU 0"


def play(
    way: Sequence[str], name: str = "spe", asked: tuple[int, ...] = tuple(range(9)), defect: str | None = None
) -> tuple[Machine, list[int]]:
    """Let actions happen that are named by their words; return the machine then, and how each of them went."""
    model = models.model(PRESETS[name])
    step = step_of(model, replaced_by(defect) if defect else None)
    words = [action.words for action in model.actions]
    m: Machine = model.begin(sum(1 << number for number in asked))
    return m, [step(m, *model.actions[words.index(what)].operands) for what in way]


def test_by_hand_a_record_of_the_hosts_that_waits_is_written_into_the_guests_buffer_by_a_load_in_the_wrong_order() -> (
    None
):
    """Only whether records are placed is asked: the buffer that is enabled with another's tables comes before it."""
    way = (OPENS, HOST_SAMPLED, COMES, SECOND)
    sound, went = play(way)
    assert went == [DONE] * 4
    assert (sound.world.host.cpus[0].spu.misplaced, sound.world.host.cpus[0].spu.written) == (0, 1)
    wrong, went = play(way, asked=(properties.PLACED,), defect="spe-owner-before-drain")
    assert went == [DONE] * 3 + [BROKEN + properties.PLACED]
    assert wrong.world.host.cpus[0].spu.misplaced == 1


def test_by_hand_the_handler_that_comes_in_the_middle_of_a_load_finds_nothing_or_enables_the_buffer() -> None:
    way = (OPENS, HOST_SAMPLED, HOST_SAMPLED, COMES, PMBIRQ, SECOND, THIRD)
    sound, went = play(way)
    assert went == [DONE] * 7
    session = sound.world.host.spe_sessions[0]
    assert (session.spurious, session.interrupts) == (1, 0)
    assert sound.world.saved[0].spe.pmbsr == PMBSR_S | 1
    wrong, went = play(way, defect="spe-irq-race")
    assert went == [DONE] * 6 + [BROKEN + properties.TRANSLATED]
    assert wrong.world.host.spe_sessions[0].interrupts == 1
    assert wrong.world.host.cpus[0].spu.pmblimitr & PMBLIMITR_E
    assert play([*way[:4], SECOND, THIRD], defect="spe-irq-race")[1] == [DONE] * 6, "it takes the interrupt"


def test_by_hand_a_guest_whose_buffer_is_full_hears_of_it_and_the_host_does_not() -> None:
    """Its driver clears PMBSR_EL1, which traps; only then is it profiled again."""
    clears = "the guest on CPU 0 writes 0x0 to PMBSR_EL1"
    loaded = (COMES, SECOND, THIRD, ENTERS)
    way = (*loaded, GUEST_SAMPLED, GUEST_SAMPLED, PMBIRQ, ENTERS, GUEST_SAMPLED, clears, HANDLES, ENTERS)
    m, went = play(way)
    assert went == [DONE] * 8 + [NOT_NOW] + [DONE] * 3
    assert m.world.vcpus[0].spe_injected == 1
    assert m.world.vcpus[0].spe_irq_level == 0
    assert m.world.host.cpus[0].spu.lost == 0
    left, went = play((*loaded, GUEST_SAMPLED, GUEST_SAMPLED, EXITS), defect="spe-irq-left-raised")
    assert went == [DONE] * 6 + [BROKEN + properties.PMBIRQ]
    assert arch_spe.pmbirq(left.world.host.cpus[0].spu) == 1


def test_by_hand_a_fault_at_stage_2_loses_what_is_sampled_until_the_next_entry_and_tells_the_guest_nothing() -> None:
    takes = "the host takes from vCPU 0 the page of its buffer"
    way = (COMES, SECOND, THIRD, ENTERS, takes, GUEST_SAMPLED, GUEST_SAMPLED, PMBIRQ, ENTERS, GUEST_SAMPLED, EXITS)
    m, went = play(way, "spe-unpinned")
    assert went == [DONE] * len(way)
    vcpu = m.world.vcpus[0]
    assert (vcpu.spe_stage2, vcpu.spe_injected, vcpu.spe.pmbsr) == (1, 0, 0)
    assert vcpu.spe.pmbptr == models.GUEST_BUFFER + PRESETS["spe-unpinned"].first + models.RECORD


def test_a_story_says_who_owns_the_buffer_and_that_it_is_full() -> None:
    exploration = Exploration(models.model(PRESETS["spe"]), replaced_by("spe-irq-race"))
    words = [action.words for action in exploration.model.actions]
    way = (OPENS, HOST_SAMPLED, HOST_SAMPLED, COMES, PMBIRQ, SECOND, THIRD)
    violation = Violation(properties.TRANSLATED, tuple(map(words.index, way)))
    lines = story.tell(exploration.model, exploration.replay(violation), violation)
    told = [line.strip() for line in lines]
    assert "CPU 0: PMBSR_EL1: 0 -> service, full" in told
    assert "CPU 0: MDCR_EL2.E2PB: the host's -> the guest's" in told
    assert told[-2].startswith("broken: translated: a buffer is enabled only while")


# ---- each property can be broken ------------------------------------------------------------------------------


def no_barrier(spu: Spu, host: HostContext) -> None:
    """The host's records are not asked out of the unit before its buffer is disabled."""
    waiting = spu.nr_pending
    spu.nr_pending = 0
    kvm_spe.drain_host(spu, host)
    spu.nr_pending = waiting


def nothing_for_the_guest(vm: Vm, vcpu: Vcpu) -> None:
    """No entry looks at the guest's PMBSR_EL1."""


def status_without_service(spu: Spu, vm: Vm, vcpu: Vcpu, key: int) -> int:
    """A guest reads PMBSR_EL1 without S."""
    done = kvm_spe.trapped_read(spu, vm, vcpu, key)
    if key == PMBSR_EL1:
        vcpu.value &= ~PMBSR_S
    return done


def host_registers_kept(spu: Spu, host: HostContext, vcpu: Vcpu) -> None:
    """The guest gets what the host has programmed for itself."""
    kvm_spe.swap_in(spu, host, vcpu)
    kvm_spe.restore_sampling(spu, host.spe)


def never_profiled(spu: Spu, vm: Vm, vcpu: Vcpu, guest: int) -> None:
    """The guest's buffer does not come into the unit."""


def service_not_taken(spu: Spu, host: HostContext) -> None:
    """The service that the host's buffer requires is left to its handler."""
    pmbsr = 0
    if spu.nr_pending == 0:
        pmbsr = spu.status
    kvm_spe.drain_host(spu, host)
    arch_spe.write(spu, PMBSR_EL1, pmbsr)
    arch_spe.isb(spu)


@pytest.mark.parametrize(
    ("name", "sound", "instead"),
    [
        ("kept", kvm_spe.drain_host, no_barrier),
        ("delivered", kvm_spe.flush_hwstate, nothing_for_the_guest),
        ("reads", kvm_spe.trapped_read, status_without_service),
        ("guest-registers", kvm_spe.swap_in, host_registers_kept),
        ("profiled", kvm_spe.restore_guest_buffer, never_profiled),
        ("pmbirq", kvm_spe.drain_host, service_not_taken),
    ],
)
def test_each_property_can_be_broken(name: str, sound: Callable[..., Any], instead: Callable[..., Any]) -> None:
    model = models.model(PRESETS["spe"])
    asked = 1 << [each.name for each in properties.ALL].index(name)
    found = plain.explore(model, {sound: instead}, asked, most=4000)
    assert found.violation is not None
    assert properties.ALL[found.violation.property].name == name


# ---- the command --------------------------------------------------------------------------------------------


def test_a_property_of_the_other_family_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, first in (
        (["--property", "placed"], "hpmn-legal"),
        (
            ["--preset", "spe", "--property", "isolation"],
            "translated",
        ),
    ):
        assert main(["check", *arguments]) == 2
        assert f"property {arguments[-1]!r}: expected one of {first}, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("rooms=2", "set: rooms: expected one of cpus, room, accesses,"),
        ("room=0", "set: room '0': expected a number from 1 to 16"),
        ("cpus", "set: cpus '': expected a number from 1 to 8"),
    ],
)
def test_a_size_that_cannot_be_is_refused(change: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--preset", "spe", "--set", change]) == 2
    assert line in capsys.readouterr().err


def test_sizes_and_budgets_can_be_set() -> None:
    model = catalogue.named("spe", changes={"cpus": "2", "room": "1", "accesses": "7"})
    m: Machine = model.begin(model.every)
    assert model.title == "spe, spe: 2 CPUs, 1 vCPU"
    assert m.left[state.ACCESSES] == 7
    assert m.world.vcpus[0].spe.pmbptr == models.GUEST_BUFFER + 4096 - models.RECORD


# ---- what the unit may know ---------------------------------------------------------------------------------


def test_a_buffer_may_be_exposed_where_some_of_the_late_writes_are_enough_for_that() -> None:
    """By trying each subset of the late writes, on units of all kinds."""
    rng = random.Random(1)
    found = Counter[int]()
    for _ in range(600):
        spu = records.new(Spu, {"inflight": 1})
        spu.guest, spu.e2pb, spu.seen.e2pb = rng.randrange(2), rng.choice([0, 2]), rng.choice([0, 2])
        spu.pmblimitr, spu.seen.pmblimitr = rng.randrange(2), rng.randrange(2)
        spu.pmbsr, spu.status = PMBSR_S * rng.randrange(2), PMBSR_S * rng.randrange(2)
        spu.pointer_of, spu.in_buffer_of = rng.randrange(2), rng.randrange(2)
        spu.unsynchronised = rng.getrandbits(6)
        expected = 0
        for which in range(SYNC_ALL + 1):
            told = records.copy(spu)
            arch_spe.take_effect(told, which & (SYNC_E2PB | SYNC_PMBLIMITR | SYNC_PMBPTR | SYNC_PMBSR))
            expected |= told.exposed
        assert properties.may_be_exposed(spu) == expected
        found[expected] += 1
    assert min(found[0], found[1]) > 60
    assert properties.regime(records.new(Spu, {"inflight": 1}), 0) == HOST
