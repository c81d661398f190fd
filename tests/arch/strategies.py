"""Hypothesis strategies for cores, PEs and what is done to them: they shrink to few counters and registers of zero."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st

from arch.support import (
    CYCLE,
    MASK64,
    P0,
    P1,
    P4,
    P5,
    P7,
    P8,
    P9,
    make_pe,
    pmcr_fields,
    random_core,
    randomize,
    userenr_fields,
)
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import PMU_KEYS

LEVELS = st.integers(0, 2)
KEYS = st.sampled_from(PMU_KEYS)
VALUES = st.one_of(st.sampled_from([MASK64, 0]), st.integers(0, MASK64), st.integers(0, 63).map(lambda n: 1 << n))
"""What a guest writes: 64 bits."""
SETS = st.integers(0, 2**33 - 1)
"""Sets of counters, the cycle and the instruction counter among them."""
WRITES = st.lists(st.tuples(LEVELS, KEYS, VALUES), max_size=20)
FLAGS = (5, 6, 7, 17, 23, 26, 29)
"""MDCR_EL2's bits beside HPMN: TPMCR, TPM, HPME, HPMD, HCCD, HLP, HPMFZO."""
TRAPS = st.one_of(st.just(0), st.just(MASK64), st.integers(0, 63).map(lambda n: 1 << n), st.integers(0, MASK64))


@st.composite
def cores(draw: st.DrawFn, /, **fixed: int) -> dict[str, int]:
    """Draw the arguments of `make_pe` for a core: features that need others come with them."""
    names = ("hpmn0", "fgt", "fgt2", "el3", "sel2", "mt", "aarch32", "icntr")
    drawn = draw(st.integers(0, 2 ** len(names) - 1))
    core = {name: drawn >> i & 1 for i, name in enumerate(names)}
    core["n"] = draw(st.sampled_from([0, 1, 2, 3, 4, 6, 30, 31]))
    core["pmuver"] = draw(st.sampled_from([P0, P1, P4, P5, P7, P8, P9, P9]))
    # EDGE and THWIDTH; the former comes only with the latter.
    edge, width = draw(st.sampled_from([(0, 0), (0, 1), (0, 12), (1, 7), (2, 12)]))
    core["pmmir"] = edge << 24 | width << 20 if core["pmuver"] >= P4 else 0
    core["identity"] = 0x4101 if core["pmuver"] < P7 else 0
    core |= fixed
    core["icntr"] &= core["pmuver"] == P9
    core["fgt2"] |= core["icntr"]
    core["fgt"] |= core["fgt2"]
    return core


@st.composite
def pes(draw: st.DrawFn, /, **fixed: int) -> Pe:
    """Draw a PE in a state that writes could have brought it into.

    Two of three are random as a whole, from a seed, since what is drawn number by number repeats itself. Of the others
    the registers that decide are drawn one by one: what fails shrinks to those.
    """
    if draw(st.integers(0, 2)) > 0:
        rng = random.Random(draw(st.integers(0, MASK64)))
        n = rng.choice([0, 1, 2, 3, 4, 6, 30, 31])
        return randomize(make_pe(scaled=rng.random() < 0.2, **random_core(rng, n, **fixed)), rng)
    core: dict[str, Any] = draw(cores(**fixed))
    pe = make_pe(scaled=draw(st.integers(0, 4)) == 4, **core)
    n = pe.core.event_counters
    randomize(pe, random.Random(draw(st.integers(0, MASK64))))
    counters = ((1 << n) - 1) | CYCLE | pe.core.icntr << 32
    pe.pmcr = pe.pmcr & ~pmcr_fields(pe) | draw(st.integers(0, 2**10 - 1)) & pmcr_fields(pe)
    pe.userenr = draw(st.integers(0, 2**7 - 1)) & userenr_fields(pe)
    pe.cnten = draw(st.one_of(st.just(counters), SETS)) & counters
    pe.inten, pe.ovs = draw(SETS) & counters, draw(SETS) & counters
    pe.uacr = draw(SETS) & counters if pe.core.pmuver >= P9 else 0
    pe.selr = draw(st.integers(0, 31))
    flags = draw(st.integers(0, 2 ** len(FLAGS) - 1))
    pe.mdcr_el2 = draw(st.one_of(st.integers(0, n), st.integers(0, 31)))
    pe.mdcr_el2 |= sum(1 << bit for i, bit in enumerate(FLAGS) if flags >> i & 1)
    pe.hdfgrtr_el2, pe.hdfgwtr_el2 = draw(TRAPS), draw(TRAPS)
    pe.hdfgrtr2_el2, pe.hdfgwtr2_el2 = draw(TRAPS), draw(TRAPS)
    tpm, no_enpm2, no_fgten, no_fgten2, pe.tge, others = bits(draw(st.integers(0, 63)), 6)
    pe.mdcr_el3 = tpm << 6 | (1 - no_enpm2) << 7
    pe.scr_el3 = (1 - no_fgten) << 27 | (1 - no_fgten2) << 59
    if others:  # fields that are not the PMU's
        pe.mdcr_el2 |= MASK64 & ~sum(1 << bit for bit in FLAGS) & ~31
        pe.mdcr_el3 |= MASK64 & ~(1 << 6 | 1 << 7)
        pe.scr_el3 |= MASK64 & ~(1 << 27 | 1 << 59)
    return pe


def bits(value: int, count: int) -> list[int]:
    """Return the lowest bits of a value, the lowest first."""
    return [value >> i & 1 for i in range(count)]
