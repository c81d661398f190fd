"""A replay of what QEMU's CPU model answered to random operations: every difference is one that its notes name.

The vectors are not part of this repository; without them there is nothing to replay.
"""

from __future__ import annotations

import collections
import gzip
import struct
from pathlib import Path

import pytest

from arch.support import make_pe
from pmuvisor.arch import pmu, sysreg, traps
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.sysreg import BY_NAME, is_pmevcntr, pmevcntr, pmevtyper

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "oracles" / "vectors"
SKIPPED_READ = 0xBAD0_BAD0_BAD0_BAD0
RT = 0x1F << 5
REGISTERS = {
    **dict(
        enumerate(
            BY_NAME[name]
            for name in (
                *("PMCR_EL0", "PMCNTENSET_EL0", "PMCNTENCLR_EL0", "PMOVSCLR_EL0", "PMSWINC_EL0", "PMSELR_EL0"),
                *("PMCEID0_EL0", "PMCEID1_EL0", "PMCCNTR_EL0", "PMXEVTYPER_EL0", "PMXEVCNTR_EL0", "PMUSERENR_EL0"),
                *("PMOVSSET_EL0", "PMINTENSET_EL1", "PMINTENCLR_EL1", "PMMIR_EL1"),
            )
        )
    ),
    **{16 + n: pmevcntr(n) for n in range(31)},
    **{47 + n: pmevtyper(n) for n in range(31)},
    78: sysreg.PMCCFILTR_EL0,
}
EL2_REGISTERS = {200: "mdcr_el2", 201: "hdfgrtr_el2", 202: "hdfgwtr_el2"}
Answer = tuple[int, int, int]
"""What was read, the Exception level that took an exception, and its ESR_ELx without Rt."""


def qemu_pe() -> Pe:
    identity, pmceid0, pmceid1 = 0x4101, 0x20001, 0x10000018
    return make_pe(6, 6, fgt2=0, checked=0, identity=identity, pmceid0=pmceid0, pmceid1=pmceid1)


def carry_out(pe: Pe, el: int, key: int, write: int, value: int) -> Answer:
    if not write:
        return pmu.read(pe, el, key), 0, 0
    pmu.write(pe, el, key, value)
    return 0, 0, 0


def answer(pe: Pe, el: int, key: int, write: int, value: int) -> Answer:
    # That machine has no EL3: NSK and NSU filter nothing. But it stores them, as if there were one.
    pe.core.el3 = 0 if key == sysreg.PMSWINC_EL0 else 1
    where = traps.access(pe, el, key, write)
    nothing = 0 if write else SKIPPED_READ
    if where == traps.ALLOWED:
        return carry_out(pe, el, key, write, value)
    if where == traps.UNDEFINED:
        return nothing, max(el, 1), sysreg.undefined_esr()
    return nothing, 1 if where == traps.TRAP_EL1 else 2, sysreg.sys64_esr(key, 0, write)


def known(pe: Pe, el: int, key: int, theirs: Answer) -> str | None:
    """Return QEMU's deviation, by its line in the vectors' notes, that explains a difference."""
    if key in (sysreg.PMXEVCNTR_EL0, sysreg.PMXEVTYPER_EL0) and pe.selr >= pe.core.event_counters:
        if theirs[:2] == (0, 0):
            return "PMXEV* with SEL >= N is RAZ/WI"
        if theirs[2] >> 26 == sysreg.EC_SYS64:
            return "PMXEV* with SEL >= N is RAZ/WI, so it can trap"
    of_er = key in (sysreg.PMSELR_EL0, sysreg.PMXEVCNTR_EL0) or is_pmevcntr(key)
    of_sw_cr = key in (sysreg.PMSWINC_EL0, sysreg.PMCCNTR_EL0)
    if el == 0 and pe.mdcr_el2 & sysreg.MDCR_TPM and theirs[1] == 0 and (of_er or of_sw_cr):
        return "PMUSERENR_EL0.{ER,SW,CR} let EL0 past MDCR_EL2.TPM"
    return None


@pytest.mark.skipif(not VECTORS.exists(), reason="no vectors in ../shared/oracles")
@pytest.mark.parametrize("name", ["bare-1", "bare-2"])
def test_qemu_differs_only_where_its_notes_say_so(name: str) -> None:
    operations = gzip.decompress((VECTORS / f"{name}.ops.gz").read_bytes())
    results = gzip.decompress((VECTORS / f"{name}.res.gz").read_bytes())
    pe = qemu_pe()
    differences: collections.Counter[str] = collections.Counter()
    pairs = zip(struct.iter_unpack("<BBBBIQ", operations), struct.iter_unpack("<QIIQ", results), strict=True)
    for turn, ((el, write, register, _, _, value), (read, taken_at, esr, _)) in enumerate(pairs):
        if register in EL2_REGISTERS:
            assert (el, write) == (2, 1)
            setattr(pe, EL2_REGISTERS[register], value)
            continue
        key = REGISTERS[register]
        if not write and key == sysreg.PMSWINC_EL0:
            continue
        theirs = (read, taken_at, esr & ~RT if esr >> 26 == sysreg.EC_SYS64 else esr)
        ours = answer(pe, el, key, write, value)
        if ours == theirs:
            continue
        rule = known(pe, el, key, theirs)
        assert rule is not None, (turn, sysreg.name_of(key), el, write, hex(value), ours, theirs)
        differences[rule] += 1
        if rule.endswith("TPM"):
            # Their access took place: let ours, so that the states stay together.
            assert carry_out(pe, el, key, write, value) == theirs
    assert set(differences) <= {
        "PMXEV* with SEL >= N is RAZ/WI",
        "PMXEV* with SEL >= N is RAZ/WI, so it can trap",
        "PMUSERENR_EL0.{ER,SW,CR} let EL0 past MDCR_EL2.TPM",
    }
    assert differences.total() < 1000, differences
