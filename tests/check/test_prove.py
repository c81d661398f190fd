"""Proofs: what they rest on is true of the real functions, is not about nothing, and finds defects."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import z3

from pmuvisor import records
from pmuvisor.arch import pmu, traps
from pmuvisor.arch.pmu import Pe
from pmuvisor.check import contracts, defects, invariants, models, prove, steps
from pmuvisor.check.model import HERE, NOT_NOW
from pmuvisor.check.models import PRESETS
from pmuvisor.check.prove import LOGIC, NAMES, Place, Proof, Setup
from pmuvisor.check.scene import C, Scene
from pmuvisor.check.state import Machine
from pmuvisor.check.symbolic import Int, merged, paths, word
from pmuvisor.cli import main
from pmuvisor.compiled import Replaced, substituted
from pmuvisor.kvm import pmu as kvm_pmu
from pmuvisor.linux import arm_pmuv3, perf
from pmuvisor.linux.host import Cpu, Host

DESIGNS = list(prove.DESIGNS)
ALONE = ("tiny", "fresh", "trapped", "icntr")
"""The presets of one CPU and one vCPU."""
SMALL = Setup(2, 1)


# ---- the invariant ------------------------------------------------------------------------------------------


def scene(m: Machine) -> Scene:
    """Look at a machine of one CPU and one vCPU, whose host has PMSELR_EL0 and PMUSERENR_EL0 zero."""
    return Scene(m.world, m.mirrors[0], m.mirrors[0].pe.ccfiltr, 0, 0, 0, 0)


def walk(preset: str, design: str, seed: int, length: int, step: Any = steps.step) -> Iterator[Machine]:
    rng = random.Random(seed)
    actions = models.actions(PRESETS[preset])
    m = models.machine(PRESETS[preset], models.DESIGNS[design], 0)
    m.left[:] = [200] * 5
    yield m
    for _ in range(length):
        if step(m, *rng.choice(actions).operands) != NOT_NOW:
            yield m


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("preset", ALONE)
def test_the_invariant_holds_along_random_walks(preset: str, design: str) -> None:
    where = set()
    for seed in range(8):
        for m in walk(preset, design, seed, 400):
            s = scene(m)
            where.add((m.world.vcpus[0].loaded, m.world.vcpus[0].residency, m.world.host.cpus[0].pe.tge))
            for part in invariants.ALL:
                assert not any(part.wrong(s)), part.wrong.__name__
    owned, free = {(0, 0, 1), (1, 1, 0), (1, 1, 1)}, {(1, 0, 0), (1, 0, 1)}
    assert where == (owned | free if design == "lazy" else owned)


def test_each_part_of_the_invariant_refuses_some_state() -> None:
    """One bit flipped in a state that has been reached is enough for each, but for HPMN0 and what it forbids."""
    rng, refused = random.Random(1), set()
    for design, preset in itertools.product(DESIGNS, ("tiny", "fresh")):
        sizes = models.sizes(PRESETS[preset])
        leaves = [leaf for leaf in records.leaves(Machine, sizes) if leaf.path[0] in ("world", "mirrors")]
        for m in walk(preset, design, 1, 300):
            for _ in range(40):
                other, leaf = records.copy(m), rng.choice(leaves)
                records.put(other, leaf.path, records.get(m, leaf.path) ^ (1 << rng.randrange(leaf.width)))
                with contextlib.suppress(IndexError):  # a guest of more counters than there are
                    refused |= {part.wrong for part in invariants.ALL if any(part.wrong(scene(other)))}
    assert refused == {part.wrong for part in invariants.ALL}


@pytest.mark.parametrize(("setup", "design"), [(Setup(4, 2), "lazy"), (Setup(31, 6), "partitioned")])
def test_the_places_are_all_that_the_invariant_leaves_and_settling_changes_no_state_of_them(
    setup: Setup, design: str
) -> None:
    """By Z3: so a proof of the places, with equal things as one term, is one of every state."""
    replaced = {**prove.MERGED, **dict(prove.ASSUMED.values())}
    parts = [substituted(part.wrong, replaced, also=prove.HERE) for part in invariants.ALL]
    left, reached = list(prove.places(setup, design)), set()
    leaves = [leaf for leaf in records.leaves(Scene, setup.sizes) if leaf.role is not records.Role.LEDGER]
    for place in itertools.starmap(Place, itertools.product((0, 1), repeat=6)):
        s = prove.scene_of(setup, design)
        prove.stand_in(s, place)
        of = [p for p in left if all(a in (None, b) for a, b in zip(p, place, strict=True))]
        busy = [word(s.world.host.cpus[C].hw.used_mask) != 0] if place.busy else []
        for solver, wrong in paths(lambda s=s: [w for part in parts for w in part(s)], busy, LOGIC):  # type: ignore[misc]
            solver.add([word(w) == 0 for w in wrong])
            if solver.check() == z3.unsat:
                continue
            assert of, place
            reached |= set(of)
            t = records.copy(s)
            prove.settle(t)
            for leaf in leaves:
                old, new = records.get(s, leaf.path), records.get(t, leaf.path)
                assert old is new or solver.check(word(old) != word(new)) == z3.unsat, leaf.path
    assert reached == set(left)


# ---- what is assumed of functions -----------------------------------------------------------------------------

SEEN: list[str] = []


def same_cpu(one: Cpu, other: Cpu) -> bool:
    one.hw.events, one.pe.unpredictable = other.hw.events, other.pe.unpredictable
    return one.pe == other.pe and one.hw == other.hw


def watched_rescheduling(host: Host, c: int, cntr_mask: int, now: int) -> None:
    expected = records.copy(host.cpus[c])
    perf.perf_pmu_resched_update(host, c, cntr_mask, now)
    contracts.events_rescheduled(expected, cntr_mask, records.copy(host.cpus[c]))
    SEEN.append("rescheduled" if same_cpu(expected, host.cpus[c]) else "otherwise")


def watched_handling(host: Host, c: int, flags: int) -> int:
    expected = records.copy(host.cpus[c])
    samples = arm_pmuv3.handle_irq(host, c, flags)
    contracts.overflows_handled(expected, flags, records.copy(host.cpus[c]))
    SEEN.append("handled" if same_cpu(expected, host.cpus[c]) else "otherwise")
    return samples


def test_the_perf_core_does_what_its_contracts_say_and_no_more() -> None:
    SEEN.clear()
    replaced: dict[Any, Any] = {perf.perf_pmu_resched_update: watched_rescheduling}
    replaced[arm_pmuv3.handle_irq] = watched_handling
    step = substituted(steps.step, replaced, also=(HERE,))
    for preset, design, seed in itertools.product(("tiny", "small", "hetero"), DESIGNS, range(4)):
        for _ in walk(preset, design, seed, 300, step):
            pass
    assert set(SEEN) == {"rescheduled", "handled"}
    assert min(SEEN.count(what) for what in set(SEEN)) > 20


def test_el0_is_switched_at_once_as_it_is_counter_by_counter() -> None:
    rng = random.Random(2)
    for _ in range(300):
        cpu = models.machine(PRESETS["tiny"], 1).world.host.cpus[0]
        for i in range(2):
            cpu.pe.evtyper[i] = rng.getrandbits(64) & pmu.evtyper_bits(cpu.pe, i)
        cpu.pe.ccfiltr = rng.getrandbits(32) & pmu.filter_bits(cpu.pe)
        cpu.pe.icfiltr = rng.getrandbits(32) & pmu.filter_bits(cpu.pe)
        counters = rng.getrandbits(33) & (3 << 31 | 3)
        other, excluded = records.copy(cpu), rng.getrandbits(1)
        kvm_pmu.set_el0(cpu, counters, excluded)
        contracts.el0_switched(other, counters, excluded)
        assert same_cpu(other, cpu)


def test_a_function_merged_into_one_term_is_the_function() -> None:
    def stairs(x: Any) -> Any:
        if x < 3:
            return 7
        return 9 if x == 5 else x & 1

    x = Int(z3.BitVec("x", 64))
    term = merged(stairs, x).term
    for value in (0, 2, 3, 4, 5, 6, 1 << 63):
        assert z3.simplify(z3.substitute(term, (x.term, z3.BitVecVal(value, 64)))).as_long() == stairs(value)


# ---- proofs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
def test_a_sound_design_is_proved_and_every_action_happens(design: str) -> None:
    proof = Proof(design)
    proof.prove(SMALL)
    assert {name: result.counterexample for name, result in proof.results.items()} == dict.fromkeys(NAMES)
    # A write to what is read-only and a read of what is write-only never waits for KVM, nor does what the core has not.
    never = {words.split()[-3] for words, happened in proof.happened.items() if not happened}
    absent = {"PMUACR_EL1", "PMICNTR_EL0", "PMICFILTR_EL0", "PMZR_EL0"}
    one_way = {"PMMIR_EL1", "PMSWINC_EL0", "PMCEID0_EL0", "PMCEID1_EL0", "PMUSERENR_EL0"}
    assert never == absent | one_way | {"PMINTENSET_EL1", "PMINTENCLR_EL1"}
    assert all(words.startswith("KVM handles") for words, happened in proof.happened.items() if not happened)


def test_what_moves_the_registers_of_31_counters_is_proved() -> None:
    proof = Proof("partitioned")
    words = (
        "is loaded",
        "is put",
        "PMUIRQ",
        "enters",
        "PMCR_EL0 from EL1",
        "PMCNTENSET_EL0 from EL1",
        "happens at EL1",
    )
    proof.prove(Setup(31, 6), chosen=lambda action: any(each in action for each in words))
    assert all(result.proved for result in proof.results.values())
    assert sum(result.claims for result in proof.results.values()) > 100


def test_a_bit_of_pmcr_that_the_guests_pmu_has_not_is_found_where_the_core_has_it() -> None:
    """PMCR_EL0.FZO comes with PMUv3p7 and is RES0 in PMUv3p5, which the guest is shown: it keeps what is written."""
    proof = Proof("partitioned")
    proof.prove(Setup(3, 1, pmuver=9, fgt2=1, icntr=1), chosen=lambda words: "PMCR_EL0 from EL1" in words)
    assert {name for name, result in proof.results.items() if not result.proved} == {"guest-registers"}
    found = proof.results["guest-registers"].counterexample
    assert found is not None
    assert found.state["value"] & 1 << 9
    assert "a write to PMCR_EL0" in found.action


# ---- defects ----------------------------------------------------------------------------------------------------

UNSUPPORTED = Setup(2, 4)
"""A CPU that cannot run the vCPU, whose guest has more counters."""
BREAKS = {
    "pmcr-p-from-el2": ("isolation", "PMCR_EL0 from EL1", SMALL),
    "guest-mask-and": ("guest-registers", "is loaded", SMALL),
    "cycle-through-pmxevcntr": ("guest-counts", "is loaded", SMALL),
    "leave-instruction-counter": ("residency", "is loaded", Setup(2, 1, pmuver=9, fgt2=1, icntr=1)),
    "resched-skipped": ("residency", "is loaded", SMALL),
    "reservation-kept-after-put": ("residency", "is put", SMALL),
    "overflow-dropped": ("overflows", "PMUIRQ", SMALL),
    "overflow-to-host": ("overflows", "PMUIRQ", SMALL),
    "filter-at-write-only": ("filtered", "is loaded", SMALL),
    "lazy-some-registers-only": ("isolation", "an access", SMALL),
    "lazy-unguarded-transition": ("residency", "an access", SMALL),
    "lazy-directed-load": ("residency", "an access", SMALL),
    "lazy-no-upfront-load": ("guest-counts", "is loaded", SMALL),
    "lazy-zero-not-free": ("costs-nothing", "is loaded", SMALL),
    "fast-path-before-load": ("isolation", "an access", SMALL),
    "handled-on-unsupported-cpu": ("isolation", "an access", UNSUPPORTED),
    "hpmn-not-sanitised": ("hpmn-legal", "is loaded", UNSUPPORTED),
    "hpmn-zero": ("hpmn-legal", "is loaded", SMALL),
    "hpme-clear": ("residency", "is loaded", SMALL),
    "el2-counted": ("filtered", "is loaded", SMALL),
}
"""Of each defect that a proof can see a property that it breaks, the action after which, and a machine on which."""
UNSEEN = {"resched-not-between"}
"""Those in a function that is assumed to do as it should: exploration finds them."""


def test_every_defect_is_one_that_a_proof_sees_or_one_in_what_is_assumed() -> None:
    assumed = {sound for sound, _ in prove.ASSUMED.values()}
    proved = [defect for defect in defects.ALL if defect.design in prove.DESIGNS]
    assert {defect.name for defect in proved} == set(BREAKS) | UNSEEN
    assert {defect.name for defect in proved if defect.sound in assumed} == UNSEEN


@pytest.mark.parametrize("name", BREAKS)
def test_a_proof_fails_with_a_defect_by_the_property_that_it_breaks(name: str) -> None:
    defect = next(each for each in defects.ALL if each.name == name)
    broken, action, setup = BREAKS[name]
    for replaced, fails in (({defect.sound: defect.defective}, True), ({}, False)):
        proof = Proof(defect.design, broken, replaced)
        proof.prove(setup, chosen=lambda words: action in words)
        found = proof.results[broken].counterexample
        assert (found is not None) == fails
        assert found is None or action in found.action


def every_access_exits(pe: Pe, el: int, key: int, write: int) -> int:
    """Trap whatever HDFGRTR_EL2 and HDFGWTR_EL2 say."""
    return traps.TRAP_EL2


@pytest.mark.parametrize(("instead", "holds"), [({}, True), ({traps.access: every_access_exits}, False)])
def test_what_exits_without_need_is_found(instead: Replaced, holds: bool) -> None:
    """What the traps are is `residency`'s; that they are no more than needed is `direct`'s."""
    proof = Proof("partitioned", "direct", instead)
    proof.prove(SMALL, chosen=lambda words: "PMCNTENSET_EL0 from EL1" in words)
    assert proof.results["direct"].proved == holds


def test_nothing_is_said_to_be_proved_of_what_a_proof_does_not_ask(capsys: pytest.CaptureFixture[str]) -> None:
    """The VM's attributes, and that nothing comes again for ever, are only explored."""
    for name in ("attributes", "progress"):
        with pytest.raises(SystemExit):
            main(["prove", "--property", name])
        assert "expected one of" in capsys.readouterr().err


# ---- the command ------------------------------------------------------------------------------------------------


def test_what_is_proved_is_told_with_status_0_and_what_is_assumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(prove, "SETUPS", (UNSUPPORTED,))
    out = tmp_path / "out.json"
    assert main(["prove", "--property", "hpmn-legal", "--json", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80
    assert any(line.split()[:2] == ["hpmn-legal", "yes"] for line in printed)
    written = json.loads(out.read_text())
    assert written["design"] == "partitioned"
    (result,) = written["results"]
    assert (result["property"], result["proved"], result["counterexample"]) == ("hpmn-legal", True, None)
    assert result["counters"] == [[2, 4]]
    assert any("perf_pmu_resched_update() leaves" in words for words in written["assumed"])


def test_a_counterexample_is_told_with_its_action_and_state_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prove, "SETUPS", (SMALL,))
    assert main(["prove", "--defect", "overflow-dropped", "--property", "overflows", "--json", "-"]) == 1
    captured = capsys.readouterr()
    (result,) = json.loads(captured.out)["results"]
    found = result["counterexample"]
    assert (result["proved"], found["action"]) == (False, "the CPU takes PMUIRQ")
    # An overflow of the guest's, still in the hardware, is what is lost.
    assert found["state"]["cpu.ovs"] & (1 << 31 | 1) & ~found["state"].get("vcpu.ovs", 0)
    assert all(found["state"].values())
    assert "overflows does not hold: overflows are in its pmovs" in captured.err
    assert max(map(len, captured.err.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--defect", "x"], "argument --defect: 'x': expected one of pmcr-p-from-el2,"),
        (["--property", "x"], "argument --property: 'x': expected one of hpmn-legal,"),
        (["--design", "emulated"], "argument --design: invalid choice: 'emulated'"),
    ],
)
def test_what_is_not_known_is_refused(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["prove", *arguments])
    assert end.value.code == 2
    assert line in capsys.readouterr().err


def test_a_defect_in_what_is_assumed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", "--defect", "resched-not-between"]) == 2
    assert "defect: resched-not-between: it is in perf_pmu_resched_update()" in capsys.readouterr().err


def test_without_z3_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["prove"]) == 2
    expected = "pmuvisor: prove: z3 is not installed: expected after `pip install pmuvisor[prove]`\n"
    assert capsys.readouterr().err == expected
