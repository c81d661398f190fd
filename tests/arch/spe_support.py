"""Profiling units for the tests: of any core, enabled or not, and what lets one be used."""

from __future__ import annotations

from pmuvisor import records
from pmuvisor.arch import spe
from pmuvisor.arch.spe import Spu
from pmuvisor.arch.spe_record import Sample, SpeFeatures
from pmuvisor.arch.sysreg import BY_NAME

EL0, EL1, EL2 = 0, 1, 2
V1P0, V1P1, V1P2, V1P4 = 1, 2, 3, 5
"""ID_AA64DFR0_EL1.PMSVer."""
PAGE = 4096
E, S, COLL, DL = 1, 1 << 17, 1 << 16, 1 << 19
FULL = S | 1
E2SPE = 2
BASE = 0xFFFF_8000_0010_0000


def make_core(**features: int) -> SpeFeatures:
    """Return the features of a core like Arm's own, with all that is optional, but for what is named otherwise."""
    core = records.new(SpeFeatures, checked=True)
    values = {"pmsver": V1P2, "fne": 1, "fds": 1, "ernd": 0, "lds": 1, "interval": 4, "count_size": 2}
    values |= {"max_size": 6, "align": 6}
    for name, value in (values | features).items():
        setattr(core, name, value)
    return core


def make_spu(inflight: int = 2, seed: int = 1, checked: int = 1, **features: int) -> Spu:
    """Return a unit that has just been reset."""
    spu = records.new(Spu, {"inflight": inflight}, checked=bool(checked))
    records.assign(spu.filter.core, make_core(**features))
    spe.reset(spu, seed)
    return spu


def put(spu: Spu, **registers: int) -> None:
    """Write registers, by their names without _EL1, and synchronize."""
    for name, value in registers.items():
        spe.write(spu, BY_NAME[name if name.endswith("_EL2") else f"{name}_EL1"], value)
    spe.isb(spu)


def get(spu: Spu, name: str, el: int = EL2) -> int:
    return spe.read(spu, el, BY_NAME[f"{name}_EL1"])


def enabled_spu(size: int = 2 * PAGE, first: int = 0, inflight: int = 2, **features: int) -> Spu:
    """Return a unit of the host whose buffer, of `size` bytes at BASE, is written from `first` on."""
    spu = make_spu(inflight, **features)
    put(spu, PMBPTR=BASE + first, PMBLIMITR=BASE + size | E, PMSCR_EL2=E2SPE)
    return spu


def guest_spu(size: int = 2 * PAGE, first: int = 0, inflight: int = 2, **features: int) -> Spu:
    """Return the same of a guest, 1, both pages of which are mapped."""
    spu = make_spu(inflight, **features)
    spu.guest = spu.pointer_of = 1
    spe.write_mdcr_el2(spu, 2 << 12)
    put(spu, PMBPTR=BASE + first, PMBLIMITR=BASE + size | E, PMSCR=E2SPE)
    spu.fault_page = BASE >> 12
    return spu


def synchronize(spu: Spu) -> None:
    """PSB CSYNC, DSB, ISB: all that the unit does can be read."""
    spe.psb_csync(spu)
    spe.dsb(spu)
    spe.isb(spu)


def form(spu: Spu, records: int = 1, size: int = 64, source: int = 0) -> None:
    """Form records, for as long as profiling is enabled."""
    for _ in range(records):
        if spe.profiling_buffer_enabled(spu):
            spe.form_record(spu, size, source)
            spu.nr_written = 0


def make_sample(**values: int) -> Sample:
    sample = records.new(Sample, checked=True)
    for name, value in values.items():
        setattr(sample, name, value)
    return sample
