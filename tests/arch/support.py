"""PEs for the tests: of any core, in a chosen or a random state."""

from __future__ import annotations

import random

from pmuvisor import records
from pmuvisor.arch import pmu
from pmuvisor.arch.pmu import Pe

CYCLE = 1 << 31
INSTRUCTION = 1 << 32
P0, P1, P4, P5, P7, P8, P9 = 1, 4, 5, 6, 7, 8, 9
"""ID_AA64DFR0_EL1.PMUVer."""
EVENTS = (0x00, 0x08, 0x11, 0x1E, 0x77)
"""SW_INCR, INST_RETIRED, CPU_CYCLES, CHAIN and one that nothing here counts."""
MASK64 = (1 << 64) - 1


def sizes_of(pe: Pe) -> dict[str, int]:
    return {"event_counters": pe.core.event_counters, "counter_width": pe.core.counter_top + 1}


def make_pe(
    n: int = 6, pmuver: int = P5, *, hpmn: int | None = None, scaled: int = 0, checked: int = 1, **core: int
) -> Pe:
    """Return a PE that has just been reset: N = `n`, all optional features but those named otherwise, FEAT_PMUv3_ICNTR
    and FEAT_SEL2 only where named. `scaled` gives it counters of 4 bits, of which 2 are the lower half.
    """
    width = 4 if scaled else 64
    pe = records.new(Pe, {"event_counters": n, "counter_width": width}, checked=bool(checked))
    features = {"hpmn0": 1, "fgt": 1, "fgt2": 1, "icntr": 0, "el3": 1, "sel2": 0, "mt": 1, "aarch32": 1} | core
    for name, value in features.items():
        setattr(pe.core, name, value)
    pe.core.event_counters = n
    pe.core.pmuver = pmuver
    pe.core.half_bits = width // 2
    pe.core.half_mask = (1 << width // 2) - 1
    pe.core.counter_mask = (1 << width) - 1
    pe.core.counter_top = width - 1
    pmu.reset(pe)
    if hpmn is not None:
        pe.mdcr_el2 = hpmn
    return pe


def random_core(rng: random.Random, n: int, **fixed: int) -> dict[str, int]:
    """Return the arguments of `make_pe` for a random core. FEAT_PMUv3_ICNTR comes with FEAT_FGT2, as it must."""
    core = {name: rng.getrandbits(1) for name in ("hpmn0", "fgt", "fgt2", "icntr", "el3", "sel2", "mt", "aarch32")}
    core |= {"n": n, "pmuver": rng.choice([P0, P1, P4, P5, P7, P8, P9]), "pmmir": random_pmmir(rng)} | fixed
    if core["icntr"]:
        core["pmuver"] = P9
    core["fgt2"] |= core["icntr"]
    core["fgt"] |= core["fgt2"]
    return core


def random_pmmir(rng: random.Random) -> int:
    """Return a PMMIR_EL1, mostly one without FEAT_PMUv3_TH; EDGE is there only with THWIDTH."""
    width = rng.choice([0, 0, 1, 7, 12])
    return (rng.randrange(3) << 24 | width << 20 if width else 0) | rng.getrandbits(8)


def near_edge(rng: random.Random, width: int) -> int:
    """Return a value of `width` bits, often one about to wrap, in its lower half or in all of it."""
    top = 1 << width
    half = 1 << width // 2
    value = rng.choice([0, 1, half - 1, half - 2, half, top - 1, top - 2, top - half, rng.getrandbits(width)])
    return value - rng.choice([0, 0, 1, 3]) & (top - 1)


def random_evtyper(rng: random.Random) -> int:
    filters = rng.choice([0, 0, 1 << 27, rng.getrandbits(8) << 24])
    return filters | rng.choice(EVENTS)


def some_counters(rng: random.Random, n: int) -> int:
    """Return a set of counters that mostly exist, the cycle and the instruction counter among them."""
    mask = ((1 << n) - 1) | CYCLE | INSTRUCTION
    return mask & rng.choice([mask, 0, rng.getrandbits(33), rng.getrandbits(33) | rng.getrandbits(33)])


def randomize(pe: Pe, rng: random.Random) -> Pe:
    """Put `pe` into a state that registers writes could have brought it into."""
    n = pe.core.event_counters
    counters = ((1 << n) - 1) | CYCLE | (pe.core.icntr << 32)
    pe.pmcr = (pe.pmcr & ~pmcr_fields(pe)) | (rng.getrandbits(10) & pmcr_fields(pe)) | rng.choice([0, 1, 1])
    pe.cnten = some_counters(rng, n) & counters
    pe.inten = some_counters(rng, n) & counters
    pe.ovs = rng.choice([0, some_counters(rng, n)]) & counters
    pe.selr = rng.choice([rng.getrandbits(5), 31, rng.randrange(max(n, 1))])
    pe.userenr = rng.choice([0, rng.getrandbits(7)]) & userenr_fields(pe)
    pe.uacr = rng.choice([counters, rng.getrandbits(33)]) & counters if pe.core.pmuver >= P9 else 0
    width = pe.core.counter_top + 1
    for i in range(n):
        # Short counters, before PMUv3p5, have the lower half only.
        pe.evcntr[i] = near_edge(rng, width) & (pe.core.half_mask if pe.core.pmuver < P5 else pe.core.counter_mask)
        pe.evtyper[i] = (random_evtyper(rng) | rng.choice([0, rng.getrandbits(32)]) << 32) & evtyper_fields(pe, i)
    pe.ccntr = near_edge(rng, width)
    pe.icntr = near_edge(rng, width) * pe.core.icntr
    pe.ccfiltr = random_evtyper(rng) & filter_fields(pe)
    pe.icfiltr = random_evtyper(rng) & filter_fields(pe) * pe.core.icntr
    pe.divider = rng.getrandbits(6)
    pe.mdcr_el2 = rng.choice([n, rng.getrandbits(5), rng.randrange(n + 1)])
    for position in (5, 6, 7, 17, 23, 26, 29):  # TPMCR, TPM, HPME, HPMD, HCCD, HLP, HPMFZO
        pe.mdcr_el2 |= (rng.random() < 0.4) << position
    pe.hdfgrtr_el2 = rng.choice([0, 0, 1 << rng.randrange(64), rng.getrandbits(64)])
    pe.hdfgwtr_el2 = rng.choice([0, 0, 1 << rng.randrange(64), rng.getrandbits(64)])
    pe.hdfgrtr2_el2 = rng.choice([0, 12, rng.getrandbits(64)])
    pe.hdfgwtr2_el2 = rng.choice([0, 12, rng.getrandbits(64)])
    pe.mdcr_el3 = rng.choice([1 << 7, 1 << 7, rng.getrandbits(64)])
    pe.scr_el3 = rng.choice([1 << 27 | 1 << 59, rng.getrandbits(64)])
    pe.tge = rng.choice([0, 0, 1])
    return pe


def pmcr_fields(pe: Pe) -> int:
    """Return the writable fields of PMCR_EL0 by its page: E, X; DP with EL3 or from p1; D and LC with AArch32; LP from
    p5; FZO from p7.
    """
    fields = 1 << 0 | 1 << 4
    if pe.core.el3 or pe.core.pmuver >= P1:
        fields |= 1 << 5
    if pe.core.aarch32:
        fields |= 1 << 3 | 1 << 6
    if pe.core.pmuver >= P5:
        fields |= 1 << 7
    if pe.core.pmuver >= P7:
        fields |= 1 << 9
    return fields


def userenr_fields(pe: Pe) -> int:
    """Return the fields of PMUSERENR_EL0: EN, SW, CR, ER; from p9 UEN and TID; IR with FEAT_PMUv3_ICNTR."""
    return 0xF | (pe.core.pmuver >= P9) * (1 << 4 | 1 << 6) | pe.core.icntr << 5


def filter_fields(pe: Pe) -> int:
    """Return the filter fields by PMEVTYPER<n>_EL0's page: P, U, NSH; NSK, NSU, M with EL3; SH with FEAT_SEL2 too."""
    fields = 1 << 31 | 1 << 30 | 1 << 27
    if pe.core.el3:
        fields |= 1 << 29 | 1 << 28 | 1 << 26
        if pe.core.sel2:
            fields |= 1 << 24
    return fields


def evtyper_fields(pe: Pe, n: int) -> int:
    """Return the fields of PMEVTYPER<n>_EL0: filters, MT if multithreaded, evtCount of 10 bits, from p1 of 16; by
    PMMIR_EL1 TH (THWIDTH bits) and TC, TE (EDGE >= 1), and on odd counters TLC (EDGE >= 2).
    """
    fields = filter_fields(pe) | pe.core.mt << 25 | (0x3FF if pe.core.pmuver < P1 else 0xFFFF)
    width, edge = pe.core.pmmir >> 20 & 15, pe.core.pmmir >> 24 & 15
    fields |= ((1 << width) - 1) << 32 | (7 << 61 if width else 0)
    fields |= (1 << 60 if edge >= 1 else 0) | (3 << 54 if edge >= 2 and n % 2 else 0)
    return fields


def second_range_of(pe: Pe) -> tuple[object, ...]:
    """Return all there is of the counters that a hypervisor keeps: values, types, enables, overflows, interrupts."""
    n = pe.core.event_counters
    hpmn = pe.mdcr_el2 & 31
    if hpmn > n or (hpmn == 0 and pe.core.hpmn0 == 0):
        hpmn = n
    kept = ((1 << n) - 1) >> hpmn << hpmn
    return list(pe.evcntr[hpmn:]), list(pe.evtyper[hpmn:]), pe.cnten & kept, pe.ovs & kept, pe.inten & kept
