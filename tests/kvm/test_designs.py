"""What holds of every design whatever the scheduler, the host's events and the guest's programs do.

The host loses nothing, a guest counts what it executed under its filter, every counter is back after a put, and every
overflow of a guest's counter is reported once.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm.machines import CYCLE, EL0, EL1, EL2, Machine
from kvm.timelines import KINDS, MS, Lab
from pmuvisor.arch.cores import core
from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED
from pmuvisor.kvm import world
from pmuvisor.kvm.vcpu import EMULATED, FIXED_COUNTERS_ONLY, LAZY, PARTITIONED
from pmuvisor.linux import arm_pmuv3, perf
from pmuvisor.linux.host import NO_VCPU, STATE_ERROR

DESIGNS = [EMULATED, PARTITIONED, LAZY, FIXED_COUNTERS_ONLY]
SEEDS = st.integers(0, 1 << 32)
P, U = 1 << 31, 1 << 30
E, LC = 1 << 0, 1 << 6


class Program:
    """What one guest has programmed: by counter, what it is to show; None once that is nobody's guess."""

    def __init__(self) -> None:
        self.shows: dict[int, int | None] = {}
        self.filters: dict[int, int] = {}
        self.enabled = 0

    def executed(self, el: int, amount: int) -> None:
        for i, excluded in self.filters.items():
            value = self.shows[i]
            if self.enabled >> i & 1 and value is not None and not excluded & (U if el == EL0 else P):
                self.shows[i] = value + amount


class Play:
    """A random schedule on two CPUs: three vCPUs of a design, two programs of the host, and its events."""

    def __init__(self, seed: int, design: int, *, pinned: bool) -> None:
        self.rng = rng = random.Random(seed)
        kind = rng.choice(["neoverse-n1", "neoverse-n2", "max"])
        counters = 0 if design == FIXED_COUNTERS_ONLY else rng.randrange(1, core(kind).event_counters)
        self.pinned = pinned
        # Guests have the version of the core, PMUv3p5 at most: an event counter of 32 bits or of 64.
        pmuver = min(core(kind).pmuver, 6)
        self.width = 64 if pmuver == 6 else 32
        self.m = Machine([kind, kind], [(counters, 3)], host_tasks=2, design=design, pmuver=pmuver)
        self.programs = [Program() for _ in range(3)]
        self.opened: list[int] = []
        self.counters = [*range(counters), 31]
        for task in range(5):
            self.m.wake(task)

    def write(self, c: int, i: int, value: int) -> None:
        self.m.write("PMCCNTR_EL0" if i == 31 else f"PMEVCNTR{i}_EL0", value, c)

    def read(self, c: int, i: int) -> int:
        return self.m.read("PMCCNTR_EL0" if i == 31 else f"PMEVCNTR{i}_EL0", c)

    def program(self, c: int) -> None:
        """Let the guest on CPU `c` do something with one of its counters."""
        rng, m, of = self.rng, self.m, self.programs[self.m.resident(c)]
        i, what = rng.choice(self.counters), rng.randrange(5)
        if what == 0 or i not in of.shows:
            of.filters[i] = rng.choice([0, 0, P, U])
            if i == 31:
                m.write("PMCCFILTR_EL0", of.filters[i], c)
            else:
                m.write(f"PMEVTYPER{i}_EL0", rng.choice([INST_RETIRED, CPU_CYCLES]) | of.filters[i], c)
            # Never zero: the first overflow of such a counter is what upstream does not report.
            of.shows[i] = rng.choice([1, rng.randrange(1, 1 << 31), (1 << 32) - rng.randrange(1, 20_000)])
            self.write(c, i, of.shows[i] or 0)
        elif what == 1:
            of.enabled |= 1 << i
            m.write("PMCNTENSET_EL0", 1 << i, c)
            m.write("PMCR_EL0", E | LC, c)
        elif what == 2:
            of.enabled &= ~(1 << i)
            m.write("PMCNTENCLR_EL0", 1 << i, c)
        else:
            self.check(c, i)

    def check(self, c: int, i: int) -> None:
        """Read a counter of the guest on CPU `c`."""
        v = self.m.resident(c)
        of = self.programs[v]
        if world.is_emulated(self.m.world.vms[0]) and self.m.event_of(v, i).state == STATE_ERROR:
            of.shows[i] = None  # a pinned event of the host has its counter
        value = of.shows.get(i)
        if value is not None:
            assert self.read(c, i) == (value if i == 31 else value & ((1 << self.width) - 1)), i

    def step(self) -> None:
        rng, m = self.rng, self.m
        c, what = rng.randrange(2), rng.random()
        v = m.resident(c)
        if what < 0.2:
            m.switch(c)
        elif what < 0.4 and v != NO_VCPU:
            self.program(c)
        elif what < 0.8:
            el = rng.choice([EL0, EL1, EL2] if v != NO_VCPU else [EL0, EL2])
            amount = rng.randrange(1, 5000)
            m.execute(c, el, amount)
            if v != NO_VCPU and el < EL2:
                self.programs[v].executed(el, amount)
        elif what < 0.9 and m.events < 20:
            self.open(c)
        elif what < 0.95 and self.opened:
            m.close(self.opened.pop(rng.randrange(len(self.opened))))
        else:
            perf.perf_rotate_context(m.host, c, m.now)

    def open(self, c: int) -> None:
        rng = self.rng
        attributes = {"cpu": c} if rng.random() < 0.6 else {"task": rng.randrange(5)}
        attributes |= {name: rng.randrange(2) for name in ("exclude_user", "exclude_kernel")}
        attributes |= rng.choice([{}, {"exclude_guest": 1}, {"exclude_host": 1}])
        attributes["sample_period"] = rng.choice([0, 0, rng.randrange(100, 20000)])
        attributes["pinned"] = int(self.pinned and rng.random() < 0.3)
        self.opened.append(self.m.open(config=rng.choice([INST_RETIRED, CPU_CYCLES]), **attributes))

    def check_all(self) -> None:
        """Take every vCPU off its CPU, then let each run once more and read all of its counters."""
        m = self.m
        for number in self.opened:
            event = m.event(number)
            assert event.count == event.seen, number
        for c in range(2):
            while m.switch(c, sleep=True) < 5:
                pass
            cpu = m.host.cpus[c]
            assert (cpu.hw.guest_resident, cpu.hw.cntr_mask) == (0, arm_pmuv3.all_counters(cpu))
            assert cpu.pe.mdcr_el2 == cpu.pe.core.event_counters
            assert (cpu.pe.hdfgrtr_el2, cpu.pe.hdfgwtr_el2, cpu.pe.tge) == (0, 0, 1)
            assert cpu.pe.pmcr & E == (cpu.hw.used_mask != 0)
        for v in range(3):
            m.run(v, v & 1)
            for i in self.counters:
                self.check(v & 1, i)
            m.switch(v & 1, sleep=True)


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("design", DESIGNS)
@settings(max_examples=40)
@given(seed=SEEDS)
def test_counts_of_both_sides_are_exact_whatever_happens(design: int, pinned: bool, seed: int) -> None:
    play = Play(seed, design, pinned=pinned)
    for _ in range(100):
        play.step()
    play.check_all()


@pytest.mark.parametrize("design", DESIGNS)
@settings(max_examples=40)
@given(seed=SEEDS)
def test_every_overflow_of_a_guest_is_reported_once(design: int, seed: int) -> None:
    """The guest writes its counters after each overflow, as Linux's driver does."""

    rng = random.Random(seed)
    m = Machine(["neoverse-n1"] * 2, [(0 if design == FIXED_COUNTERS_ONLY else 3, 1)], design=design, pmuver=5)
    m.run(0)
    names = ["PMCCNTR_EL0"] if design == FIXED_COUNTERS_ONLY else ["PMEVCNTR0_EL0", "PMEVCNTR1_EL0", "PMCCNTR_EL0"]
    bits = {"PMEVCNTR0_EL0": 1, "PMEVCNTR1_EL0": 2, "PMCCNTR_EL0": CYCLE}
    top = {name: 1 << (64 if name == "PMCCNTR_EL0" else 32) for name in names}
    left: dict[str, int] = {}

    def rewind(name: str, c: int) -> None:
        left[name] = rng.randrange(1, 3000)
        m.write(name, top[name] - left[name], c)

    for name in names:
        if name != "PMCCNTR_EL0":
            m.write(name.replace("EVCNTR", "EVTYPER"), INST_RETIRED)
        rewind(name, 0)
    m.write("PMINTENSET_EL1", 3 | CYCLE)
    m.write("PMCNTENSET_EL0", 3 | CYCLE)
    m.write("PMCR_EL0", E | LC)
    for _ in range(rng.randrange(4)):
        m.open(cpu=rng.randrange(2), config=INST_RETIRED, sample_period=rng.choice([0, 700]))
    c = happened = 0
    for _ in range(40):
        amount = min(rng.randrange(1, 1000), *left.values(), 1 << 20)
        m.execute(c, rng.choice([EL0, EL1]), amount)
        left = {name: count - amount for name, count in left.items()}
        over = [name for name, count in left.items() if count == 0]
        happened += len(over)
        if rng.random() < 0.4:
            m.switch(c, sleep=True)
            c = rng.randrange(2)
            m.run(0, c)
        assert m.irq_level(c) == (len(over) > 0)
        assert m.read("PMOVSSET_EL0", c) == sum(bits[name] for name in over)
        for name in over:
            rewind(name, c)
        m.write("PMOVSCLR_EL0", sum(bits[name] for name in over), c)
        assert m.irq_level(c) == 0
    assert m.world.vcpus[0].overflows == happened


# ---- in time ------------------------------------------------------------------------------------------------


def random_lab(seed: int, design: int) -> Lab:
    """Return two or three CPUs, three vCPUs, two programs, and sessions of the host that pin nothing."""
    rng = random.Random(seed)
    cores = rng.choice([["neoverse-n1"] * 2, ["neoverse-n2"] * 3, ["cortex-a55", "cortex-a55", "cortex-x1"]])
    fixed = design == FIXED_COUNTERS_ONLY
    guest = 0 if fixed else rng.randrange(1, 6)
    lab = Lab(cores, vcpus=3, programs=2, guest_counters=guest, slice_ms=rng.choice([1, 3]), design=design)
    if fixed:
        lab.t.world.vms[0].supported_pmus = 0b11
        for vcpu in lab.t.world.vcpus:
            vcpu.cnten = CYCLE
    # Only a guest of fixed-counters-only counts on cores of both kinds.
    own = sum(1 << c for c, name in enumerate(cores) if name == cores[0] or fixed)
    for number in range(5):
        on = own if number < 3 else (1 << len(cores)) - 1
        burst = rng.choice([0, rng.randrange(100_000, 3 * MS)])
        lab.task(number, on=on, ipms=rng.randrange(1, 3_000_000), user=rng.randrange(1001), burst=burst, pause=500_000)
    for _ in range(rng.randrange(1, 10)):
        bits = {name: rng.randrange(2) for name in ("exclude_user", "exclude_kernel")}
        bits |= rng.choice([{}, {"exclude_guest": 1}, {"exclude_host": 1}])
        bits["sample_period"] = rng.choice([0, 0, rng.randrange(50_000, 5_000_000)])
        where = {"cpu": rng.randrange(2)} if rng.random() < 0.6 else {"task": rng.randrange(5)}
        lab.open(rng.choice(KINDS), **bits, **where)
    return lab


@pytest.mark.parametrize("design", DESIGNS)
@settings(max_examples=12)
@given(seed=SEEDS)
def test_counts_of_both_sides_are_exact_in_time(design: int, seed: int) -> None:
    lab = random_lab(seed, design)
    lab.run(40)
    for n in range(lab.opened):
        event = lab.event(n)
        assert event.count == event.seen <= event.true
    for v in range(3):
        instructions, cycles = lab.executed(v)
        assert world.counter_value(lab.t.world, v, 31, lab.t.now) == cycles
        if design != FIXED_COUNTERS_ONLY:
            assert world.counter_value(lab.t.world, v, 0, lab.t.now) == instructions
