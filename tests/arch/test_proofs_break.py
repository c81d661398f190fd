"""The proofs prove something: with one line of arch/ broken, the one that is about it fails, and says where."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from arch import test_proofs as proofs
from pmuvisor.arch import pmu
from pmuvisor.arch.sysreg import BY_NAME

NO_WRITE = proofs.test_no_write_below_el2_changes_a_counter_of_the_second_range
NO_READ = proofs.test_no_read_below_el2_depends_on_a_counter_of_the_second_range
PMCR_P = proofs.test_pmcr_p_zeroes_the_first_range_and_from_el2_every_event_counter_and_nothing_else
INTERRUPT = proofs.test_the_interrupt_line_is_up_for_an_overflow_that_is_enabled_in_a_range_that_is


class Break(NamedTuple):
    """One line of arch/ broken, and what that breaks."""

    function: Callable[..., Any]
    line: str
    broken: str
    proof: Callable[..., None]
    arguments: tuple[Any, ...]
    """The core, by its name among the proofs', and the Exception level."""
    registers: tuple[str, ...]
    """What is enough to show it; empty where the proof is about no register."""
    said: str


BREAKS = {
    "EL1 reaches every event counter": Break(
        pmu.get_num_event_counters_accessible,
        "el < 2",
        "el < 1",
        NO_WRITE,
        ("p5", 1),
        ("PMCNTENSET_EL0",),
        "PMCNTENSET_EL0 written at EL1",
    ),
    "PMCR_EL0.P zeroes at EL1 what it does at EL2": Break(
        pmu.zero_pmu_counters,
        "get_pmu_write_mask(pe, el, 1)",
        "get_pmu_write_mask(pe, 2, 1)",
        PMCR_P,
        ("p5", 1),
        (),
        "counter 0 at EL1",
    ),
    "PMCR_EL0.P zeroes at EL2 what it does at EL1": Break(
        pmu.zero_pmu_counters,
        "get_pmu_write_mask(pe, el, 1)",
        "get_pmu_write_mask(pe, 1, 1)",
        PMCR_P,
        ("p5", 2),
        (),
        "counter 0 at EL2",
    ),
    "an overflow feeds a CHAIN counter of the other range": Break(
        pmu.count_events,
        "chains & ~crossing",
        "chains",
        NO_WRITE,
        ("p5", 1),
        ("PMSWINC_EL0",),
        "PMSWINC_EL0 written at EL1",
    ),
    "PMOVSCLR_EL0 leaves only what is out of reach and not named": Break(
        pmu._write_set,
        "pe.ovs &= ~(value & mask)",
        "pe.ovs &= ~mask & ~value",
        NO_WRITE,
        ("p5", 0),
        ("PMOVSCLR_EL0",),
        "PMOVSCLR_EL0 written at EL0",
    ),
    "PMOVSSET_EL0 shows every overflow": Break(
        pmu.get_pmu_read_mask,
        "get_pmu_access_mask(pe, el) & ",
        "",
        NO_READ,
        ("p9", 1),
        ("PMOVSSET_EL0",),
        "PMOVSSET_EL0 read at EL1",
    ),
    "the interrupt line does not ask HPME": Break(
        pmu.overflow_interrupts,
        "(second_range(pe) & -nonzero(pe.mdcr_el2 & MDCR_HPME))",
        "second_range(pe)",
        INTERRUPT,
        ("p5",),
        (),
        "the level",
    ),
    "HPMN = 0 is taken as it is without FEAT_HPMN0": Break(
        pmu.effective_hpmn,
        " or (hpmn == 0 and pe.core.hpmn0 == 0)",
        "",
        INTERRUPT,
        ("p5 without HPMN0",),
        (),
        "the level",
    ),
}


def broken_code(one: Break) -> types.CodeType:
    """Return the code of the function with its line broken."""
    source = inspect.getsource(one.function)
    assert source.count(one.line) == 1
    found: dict[str, Any] = {}
    exec(source.replace(one.line, one.broken), {}, found)
    code: types.CodeType = found[one.function.__name__].__code__
    return code


@pytest.mark.parametrize("name", BREAKS)
def test_a_proof_fails_where_a_line_is_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = BREAKS[name]
    if one.registers:
        monkeypatch.setattr(proofs, "PMU_KEYS", tuple(BY_NAME[register] for register in one.registers))
    # Functions are imported by name: the code of the one that there is changes for all that call it.
    monkeypatch.setattr(one.function, "__code__", broken_code(one))
    core, *el = one.arguments
    with pytest.raises(AssertionError, match=f"^{one.said}\n"):
        one.proof(proofs.CORES[core], *el)
