"""Time: a cycle for each instruction, what the ledger costs, and idling; exact wherever a guest reads it."""

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from a64 import (
    CNTV_CTL_EL0,
    CNTV_CVAL_EL0,
    CNTVCT_EL0,
    GICD,
    HVC,
    ICC_IAR1_EL1,
    ICC_SGI1R_EL1,
    NOP,
    PSCI_SYSTEM_OFF,
    SMC,
    UART,
    WFI,
    XZR,
    Program,
    daifclr,
    ldrw,
    movz,
    mrs,
    msr,
    str_,
    strw,
)
from board.machine_support import MEMORY, RESULTS, Board, board
from pmuvisor.arch import sysreg
from pmuvisor.arch.cores import Core, core, cores
from pmuvisor.board import clock, memmap
from pmuvisor.board.clock import PRICED, Costs
from pmuvisor.board.fdt import virt_device_tree
from pmuvisor.board.hosted import HostedMachine
from pmuvisor.board.images import load_image, plan_layout
from pmuvisor.board.machine import Config, Status, own_cpus

PRIMES = (
    *(1009, 2003, 3001, 4001, 5003, 6007, 7001, 211, 13, 503, 307),
    *(101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151),
)
WEIGHTS = dict(zip(PRICED, PRIMES, strict=True))
COSTS = Costs(WEIGHTS)
NS_PER_TICK = 16
IRQ_VECTOR, TIMER_INTID = 0x280, 27
CLOCKS = ("max", "cortex-a76", "cortex-x1", "neoverse-n1")
"""1000, 2400, 2802 and 2500 MHz: a cycle is 1 ns, and 5/12, 500/1401 and 2/5 of one."""


def bill(ledger: dict[str, int]) -> int:
    return sum(WEIGHTS[name] * ledger.get(name, 0) for name in PRICED)


def ticks(cycles: int, of: Core) -> int:
    return cycles * 1000 // (of.mhz * NS_PER_TICK)


# ---- the rate of a core -------------------------------------------------------------------------------------------


def test_an_instruction_takes_1_ns_on_the_default_core_and_1000_by_mhz_on_any() -> None:
    assert clock.rate_of(core("max")) == clock.Rate(1, 1)
    for of in cores().values():
        rate = clock.rate_of(of)
        assert Fraction(rate.per_cycle, rate.per_ns) == Fraction(1000, of.mhz)
        assert rate.at(of.mhz)
        assert not rate.at(of.mhz + 1)


@given(st.integers(1, 100_000), st.integers(0, 1 << 80))
def test_the_cycles_up_to_a_time_are_the_fewest_that_reach_it(mhz: int, units: int) -> None:
    rate = clock.rate(mhz)
    cycles = rate.cycles_in(units)
    assert cycles * rate.per_cycle >= units > (cycles - 1) * rate.per_cycle


# ---- what has a cost ----------------------------------------------------------------------------------------------


def test_every_item_that_has_a_cost_is_in_the_ledger_and_no_other_is_left_out() -> None:
    ledger = board(Program().psci(PSCI_SYSTEM_OFF)).machine.ledger()
    assert set(PRICED) - set(ledger) == set()
    # What has none: direct accesses, which cost nothing, and the sums that others are parts of.
    assert set(ledger) - set(PRICED) == {"exits", "pmu_direct", "pmu_trapped", "spe_direct"}


@pytest.mark.parametrize("items", [dict.fromkeys(PRICED[1:], 1), dict.fromkeys((*PRICED, "exits.foo"), 1)])
def test_a_table_with_a_gap_or_with_more_is_refused(items: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected one for each of exits.mmio, "):
        Costs(items)


# ---- the guest's clock --------------------------------------------------------------------------------------------

# Each step of a guest: its instructions, in X0 and X1 only, and what they cost beyond a cycle each. What is direct
# traps where the core has no fine-grained traps.
Step = tuple[tuple[int, ...], int]
STEPS: dict[str, Step] = {
    "nop": ((NOP,), 0),
    "direct": ((mrs(1, sysreg.PMCNTENSET_EL0),), 0),
    "direct write": ((msr(sysreg.PMCNTENCLR_EL0, XZR),), 0),
    "trap": ((mrs(1, sysreg.PMOVSCLR_EL0),), WEIGHTS["exits.pmu"]),
    "trapped write": ((msr(sysreg.PMOVSCLR_EL0, XZR),), WEIGHTS["exits.pmu"]),
    "distributor": ((ldrw(1, 20),), WEIGHTS["exits.mmio"]),
    "two in a block": ((ldrw(1, 20), strw(XZR, 21), NOP), 2 * WEIGHTS["exits.mmio"]),
    "hypercall": ((movz(0, 0x8400, 16), HVC), WEIGHTS["exits.hvc"]),
    "firmware": ((movz(0, 1), SMC), WEIGHTS["exits.hvc"]),
    "sgi": ((msr(ICC_SGI1R_EL1, XZR),), WEIGHTS["exits.sgi"]),
}
DIRECT = ("direct", "direct write")
READ_AT = 16
"""The word of RESULTS where the first reading of the clock is."""


def reader(steps: list[tuple[str, int]], fgt: bool) -> tuple[Program, list[int]]:
    """A guest that reads its clock after each step, and the cycles it has taken at each reading since it was loaded.

    Before a step, its timer is set to so many ticks: slices end there. Interrupts are masked.
    """
    p = Program().mov(20, GICD).mov(21, GICD + 0x80).mov(22, RESULTS + 8 * READ_AT).write(CNTV_CTL_EL0, 1)
    cycles, at = 0, 0
    expected = []

    def run_to_here() -> int:
        nonlocal at
        ran, at = (p.here - p.base) // 4 - at, (p.here - p.base) // 4
        return ran

    for number, (name, timer) in enumerate(steps):
        p.write(CNTV_CVAL_EL0, timer)
        words, cost = STEPS[name]
        if name in DIRECT and not fgt:
            cost = WEIGHTS["exits.pmu"]
        p(*words)
        cycles += run_to_here() + cost
        expected.append(cycles)
        p(mrs(2, CNTVCT_EL0), str_(2, 22, 8 * number))
    return p.psci(PSCI_SYSTEM_OFF), expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(CLOCKS),
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 0xFFFF)), min_size=1, max_size=60),
)
def test_a_guest_reads_the_instructions_and_charges_before_in_ticks(name: str, steps: list[tuple[str, int]]) -> None:
    program, expected = reader(steps, core(name).fgt)
    b = board(program, core_name=name, costs=COSTS)
    loaded = bill(b.machine.ledger())
    assert loaded == WEIGHTS["loads"] + b.machine.ledger()["registers_swapped"] * WEIGHTS["registers_swapped"]
    assert b.run().status is Status.POWEROFF
    read = [b.result(READ_AT + number) for number in range(len(steps))]
    assert read == [ticks(loaded + cycles, core(name)) for cycles in expected]
    ledger = b.machine.ledger()
    assert b.machine.overhead_cycles() == bill(ledger) == COSTS.of(ledger)
    assert b.machine.now_ns() == (b.machine.instructions() + bill(ledger)) * 1000 // core(name).mhz


def test_without_costs_exits_take_no_time() -> None:
    program, _ = reader([(name, 0) for name in STEPS], True)
    b = board(program)
    assert b.run().status is Status.POWEROFF
    assert b.machine.overhead_cycles() == 0
    assert b.machine.now_ns() == b.machine.instructions()


# ---- the timer ----------------------------------------------------------------------------------------------------


def handler() -> list[int]:
    h = Program()(mrs(4, CNTVCT_EL0), mrs(5, ICC_IAR1_EL1)).mov(11, RESULTS)(str_(4, 11), str_(5, 11, 8))
    return h.psci(PSCI_SYSTEM_OFF).words()


def timer_guest(cval: int, body: tuple[int, ...]) -> Program:
    """Executes `body` for ever, until its timer interrupts; the handler's first instruction reads the time."""
    p = Program().use_vectors().gic(TIMER_INTID).mov(20, GICD).write(CNTV_CVAL_EL0, cval).write(CNTV_CTL_EL0, 1)
    p(daifclr(2)).label("loop")(*body).b("loop")
    return p.vectors({IRQ_VECTOR: handler()})


def run_timer_guest(name: str, cval: int, body: tuple[int, ...]) -> tuple[Board, int, int]:
    """Run it; return also the instructions and the cycles up to its loop."""
    program = timer_guest(cval, body)
    before = (program.address("loop") - program.base) // 4
    b = board(program, core_name=name, costs=COSTS)
    cycles = before + bill(b.machine.ledger()) + 4 * WEIGHTS["exits.mmio"]  # the four of Program.gic
    assert b.run().status is Status.POWEROFF
    assert b.result(1) == TIMER_INTID
    return b, before, cycles


@pytest.mark.parametrize("name", CLOCKS)
@pytest.mark.parametrize("cval", [2001, 2002, 2003, 20_007])
def test_the_timer_interrupts_on_the_first_instruction_after_its_tick_that_exits_bring_nearer(
    name: str, cval: int
) -> None:
    body = (NOP, mrs(1, sysreg.PMOVSCLR_EL0), NOP, NOP)
    b, instructions, cycles = run_timer_guest(name, cval, body)
    takes = (1, 1 + WEIGHTS["exits.pmu"], 1, 1, 1)  # the branch is the last
    at = 0
    while ticks(cycles, core(name)) < cval:
        cycles, instructions, at = cycles + takes[at], instructions + 1, (at + 1) % len(takes)
    assert b.result(0) == ticks(cycles, core(name))
    assert b.machine.instructions() == instructions + len(handler())


@pytest.mark.parametrize("cval", [2001, 2002, 2003, 20_007])
def test_a_tick_that_a_device_access_brings_nearer_interrupts_at_the_end_of_its_block_at_the_latest(cval: int) -> None:
    body = (NOP, ldrw(1, 20), NOP, NOP)
    b, _, cycles = run_timer_guest("max", cval, body)
    blocks = -(-(cval * NS_PER_TICK - cycles) // (5 + WEIGHTS["exits.mmio"]))
    assert cval <= b.result(0) <= ticks(cycles + blocks * (5 + WEIGHTS["exits.mmio"]), core("max"))


def test_a_guest_that_waits_idles_less_by_what_its_exit_cost() -> None:
    cval = 100_000
    b, _, cycles = run_timer_guest("neoverse-n1", cval, (WFI,))
    ledger = b.machine.ledger()
    assert (ledger["exits.wfi"], ledger["puts"], ledger["loads"]) == (1, 1, 2)
    put = WEIGHTS["exits.wfi"] + WEIGHTS["puts"]
    load = b.result(0) * NS_PER_TICK - cval * NS_PER_TICK
    assert load >= WEIGHTS["loads"] * 1000 // 2500 - NS_PER_TICK, "loaded again after the timer's tick"
    assert b.machine.idle_ns < cval * NS_PER_TICK - (cycles + put) * 1000 // 2500
    handled = len(handler()) + WEIGHTS["exits.hvc"] + 1
    assert 0 <= b.machine.now_ns() - (b.result(0) * NS_PER_TICK + handled * 1000 // 2500) <= NS_PER_TICK


def test_several_vcpus_share_one_time_and_each_adds_its_charges() -> None:
    p = Program()
    p.adr(2, "other").mov(0, 0xC400_0003).mov(1, 1)(HVC)
    p.mov(1, UART)(*[strw(XZR, 1)] * 20).label("wait").mov(0, 0xC400_0004).mov(1, 1).mov(2, 0)(HVC)
    p.cbz(0, "wait").psci(PSCI_SYSTEM_OFF)
    p.label("other")(*[mrs(1, sysreg.PMOVSCLR_EL0)] * 30).psci(0x8400_0002)
    b = board(p, vcpus=2, costs=COSTS)
    assert b.run().status is Status.POWEROFF
    ledger = b.machine.ledger()
    assert (ledger["exits.pmu"], ledger["exits.mmio"]) == (30, 20)
    assert b.machine.now_ns() == b.machine.instructions() + bill(ledger)


# ---- on a host ----------------------------------------------------------------------------------------------------


def hosted(program: Program, of: Core) -> HostedMachine:
    config = Config(of, MEMORY, costs=COSTS)
    machine = HostedMachine(config, lambda data: None, own_cpus(config))
    image = load_image(program.code(), memmap.RAM_BASE, MEMORY)
    dtb = virt_device_tree(MEMORY, 1)
    machine.boot(image, plan_layout(image, 0, len(dtb), memmap.RAM_BASE, MEMORY), dtb)
    return machine


def clock_reader(save: Callable[[Program], Program]) -> Program:
    """Exits and looks at its clock for ever; X5 is the largest step back that it saw, X6 the last reading."""
    p = Program().mov(20, GICD).label("loop")(ldrw(1, 20), mrs(1, sysreg.PMOVSCLR_EL0), mrs(4, CNTVCT_EL0))
    return save(p).b("loop")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(1, 20_000), st.sampled_from((1000, 1800, 2500, 2802))), min_size=1, max_size=25))
def test_on_a_host_a_vcpu_pays_all_that_it_takes_and_its_clock_never_goes_back(turns: list[tuple[int, int]]) -> None:
    def save(p: Program) -> Program:
        # Keep the reading where the last one was not later; stop at once where it was.
        p(0xEB06_009F).b_if(3, "back")(0xAA04_03E6)  # cmp x4, x6; b.lo; mov x6, x4
        return p

    program = clock_reader(save)
    program.label("back").psci(PSCI_SYSTEM_OFF)
    machine = hosted(program, core("max"))
    now, before, migrations, taken = 0, 0, 0, Fraction(0)
    for length, mhz in turns:
        migrations += not machine._paces[0].rate.at(mhz)
        machine.load(0, mhz)
        reached, outcome = machine.run_vcpu(0, now, now + length)
        assert outcome is None, "its clock went back"
        assert reached == now + length, "it never waits"
        cycles = machine.instructions() + bill(machine.ledger())
        taken += Fraction((cycles - before) * 1000, mhz)
        now, before = reached, cycles
        owed = Fraction(machine._paces[0].owed, machine._paces[0].rate.per_ns)
        # What is owed is rounded up to the unit, at most a nanosecond's half, where the vCPU comes to another clock.
        assert 0 <= owed - (taken - now) <= Fraction(migrations, 2)
        machine.put(0)  # paid, with the next load, when it runs again
