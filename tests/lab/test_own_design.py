"""A design of somebody's own: run, compared and explored from one module (docs/your-own-design.md)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

from pmuvisor import cli
from pmuvisor.arch.sysreg import PMCR_E
from pmuvisor.check import models, plain, prove
from pmuvisor.kvm import access, lazy, partitioned, vcpu, world
from pmuvisor.kvm.vcpu import FREE, GUEST_OWNED, LAZY, Vcpu, Vm
from pmuvisor.own import DesignError, OwnDesign
from pmuvisor.records import new

EXAMPLES = Path(__file__).parents[2] / "examples"


def example() -> types.ModuleType:
    """Return the worked example as a module."""
    spec = importlib.util.spec_from_file_location("warm", EXAMPLES / "warm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["warm"] = module
    spec.loader.exec_module(module)
    return module


WARM: OwnDesign = example().WARM


def free_while_an_overflow_waits(vm: Vm, of: Vcpu) -> int:
    """Load a vCPU as FREE where its guest has an interrupt to take first, which traps anyway. It counts meanwhile."""
    if vm.design == LAZY and of.ovs != 0:
        return FREE
    return lazy.residency_at_load(vm, of)


HASTY = OwnDesign("hasty", base="lazy", replaced={lazy.residency_at_load: free_while_an_overflow_waits})


# ---- explored ---------------------------------------------------------------------------------------------------


def test_the_example_breaks_nothing_in_what_cpython_explores_of_it() -> None:
    for preset in ("tiny", "fresh", "hetero"):
        assert plain.explore(models.own_model(models.PRESETS[preset], WARM), most=400).violation is None


def test_an_own_design_that_is_wrong_is_found_to_be() -> None:
    model = models.own_model(models.PRESETS["tiny"], HASTY)
    found = plain.explore(model, most=8000)
    assert found.violation is not None
    assert model.properties[found.violation.property].name == "guest-counts"
    assert model.title == "hasty, tiny: 1 CPU, 1 vCPU"


@pytest.mark.parametrize(("own", "status"), [(WARM, 0), (HASTY, 1)])
def test_an_own_design_is_proved_or_not(
    own: OwnDesign, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prove, "SETUPS", (prove.Setup(2, 1),))
    assert cli.main(["prove", "--property", "guest-counts"], own=own) == status
    printed = capsys.readouterr().out
    assert printed.startswith(f"{own.name}: counters and registers of 64 bits")
    assert ("a free guest counts nothing" in printed) == (own is HASTY)


def test_a_design_on_an_emulated_base_is_not_proved(capsys: pytest.CaptureFixture[str]) -> None:
    own = OwnDesign("mine", "emulated", {lazy.residency_at_load: free_while_an_overflow_waits})
    assert cli.main(["prove"], own=own) == 2
    assert "design: mine begins with emulated: expected one of partitioned, lazy" in capsys.readouterr().err


# ---- run and compared -------------------------------------------------------------------------------------------


def test_the_example_runs_and_compares_as_a_program() -> None:
    program = [sys.executable, str(EXAMPLES / "warm.py")]
    done = subprocess.run([*program, "run", "demo"], capture_output=True, text=True, check=True)
    assert "warm" in done.stdout
    done = subprocess.run(
        [*program, "compare", "demo", "--designs", "lazy,warm"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[3].split() == ["lazy", "warm"]
    assert "equal" in done.stdout


def test_a_run_goes_by_the_functions_that_are_replaced_and_nothing_is_left_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {name: vars(of)[name] for of in (lazy, world, access, partitioned) for name in vars(of)}
    assert cli.main(["compare", "demo", "--designs", "lazy,hasty", "--smp", "1"], own=HASTY) in (0, 1)
    assert "hasty" in capsys.readouterr().out
    assert before == {name: vars(of)[name] for of in (lazy, world, access, partitioned) for name in vars(of)}


def test_while_it_is_installed_every_module_of_ours_calls_what_replaces() -> None:
    vm, of = new(Vm, {"filter_words": 1}), new(Vcpu, {"event_counters": 1, "counter_width": 64})
    vm.design, of.pmcr = LAZY, PMCR_E
    original = lazy.residency_at_load
    assert lazy.residency_at_load(vm, of) == FREE
    with WARM.installed():
        assert lazy.residency_at_load(vm, of) == GUEST_OWNED
        of.pmcr = 0
        assert lazy.residency_at_load(vm, of) == FREE, "by what it replaces, which it calls"
    assert lazy.residency_at_load is original


def test_what_is_installed_is_gone_after_an_error() -> None:
    original = world.vcpu_load
    with pytest.raises(KeyError):
        _fail_while_it_is_installed()
    assert world.vcpu_load is original


def _fail_while_it_is_installed() -> None:
    original = world.vcpu_load
    with WARM.installed():
        assert world.vcpu_load is not original
        raise KeyError


# ---- what cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "base", "line"),
    [
        ("lazy", "lazy", "name 'lazy': expected a new one"),
        ("My own", "lazy", "name 'My own': expected a new one of small letters"),
        ("mine", "none", "base 'none': expected one of emulated, partitioned, lazy, fixed-counters-only"),
    ],
)
def test_a_design_that_cannot_be_is_refused(name: str, base: str, line: str) -> None:
    with pytest.raises(DesignError, match=line):
        OwnDesign(name, base, {lazy.residency_at_load: free_while_an_overflow_waits})


def test_only_functions_of_the_semantics_can_be_replaced() -> None:
    with pytest.raises(DesignError, match="expected one of arch, linux or kvm"):
        OwnDesign("mine", "lazy", {cli.main: free_while_an_overflow_waits})
    with pytest.raises(DesignError, match="expected functions"):
        OwnDesign("mine", "lazy", {vcpu.Vcpu: free_while_an_overflow_waits})


def test_a_scenario_is_not_run_under_an_own_design(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["run", str(EXAMPLES / "demo.toml")], own=WARM)
    assert end.value.code == 2
    assert "a scenario has our designs only" in capsys.readouterr().err
