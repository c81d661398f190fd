"""What the programs of tests/guests/el1 must print, counted by hand from their source and the Arm ARM.

A window counts what is between its `open` and `close` and one of these two. An exception from EL1 costs the branch in
the vector besides the handler's own instructions.
"""

from __future__ import annotations

from collections.abc import Mapping

TOP = 1 << 64
HALF = 1 << 32
CYCLE = 1 << 31

Counts = dict[str, int]


def _named(name: str, values: Mapping[str, int]) -> Counts:
    return {f"{name}.{label}": value for label, value in values.items()}


def _numbered(name: str, *values: int) -> Counts:
    return {f"{name}.{n}": value for n, value in enumerate(values)}


# --- loops ----------------------------------------------------------------------------------------------------------


def _fibonacci(n: int) -> int:
    """Instructions of the recursive subroutine."""
    return 3 if n < 2 else 13 + _fibonacci(n - 1) + _fibonacci(n - 2)


WINDOWS = {f"straight.{n}": 1 + n for n in (0, 1, 2, 63, 64, 65, 1000)}
WINDOWS |= {f"loop.{n}": 1 + 2 * n for n in (1, 2, 3, 100, 65535)}
WINDOWS |= {"nested": 1 + 7 * (1 + 11 * 3 + 3), "alternate": 1 + 100 * 3 + 50, "memory": 1 + 50 * 12, "read": 31}
WINDOWS |= {"fibonacci": 2 + _fibonacci(12)}
LOOPS = {f"{window}.{counter}": n for window, n in WINDOWS.items() for counter in ("inst", "cycles", "ccntr")}
LOOPS |= {"read.first": 1, "read.second": 2, "read.third": 3, "read.fourth": 4, "read.fifth": 7, "read.loop": 29}
LOOPS |= {"read.last": 30, "fibonacci.result": 144}


# --- overflow -------------------------------------------------------------------------------------------------------


def _approach(name: str, start: int, more: int, ovs: int) -> Counts:
    value = (start + more + 1) % TOP
    return _named(name, {"value": value, "ccntr": value, "ovs": ovs})


def _irq(name: str, counter: int, cycles: int, ovs: int) -> Counts:
    """50 counts after the write at offset 0, which is the first of them: before the instruction at offset 200.

    The handler's first instruction reads the event counter, its second the cycle counter; the vector's branch is
    counted before.
    """
    values = {"counter": counter, "cycles": cycles, "at": 200, "intid": 23, "ovs": ovs, "interrupts": 1}
    return _named(name, values)


OVERFLOW32: Counts = {}
for before, more in [(1, 0), *((4, n) for n in (0, 1, 2, 3, 4, 5, 100)), (100, 98), (100, 99), (100, 100)]:
    # The cycle counter has 64 bits here (LC = 1) and passes 2^32 without overflowing.
    OVERFLOW32 |= _approach(f"{before}-{more}", HALF - before, more, int(more + 1 >= before))
OVERFLOW32 |= {"beyond.value": HALF + 110, "beyond.ovs": 0}
OVERFLOW32 |= _numbered("staircase", 0b1, 0b11, 0b111, 0b1111, 0b11111)
OVERFLOW32 |= _irq("irq.event", HALF + 1, 0, 1) | _irq("irq.cycle", 0, HALF + 2, CYCLE)
OVERFLOW32 |= {"late.before": 0, "late.interrupts": 1, "late.ovs": 1}

OVERFLOW64: Counts = {}
BOTH = CYCLE | 1
for n in (0, 1, 2, 3, 4, 5, 100):
    OVERFLOW64 |= _approach(f"long.top.{n}", TOP - 4, n, BOTH if n >= 3 else 0)
for n in (0, 3, 4, 100):
    OVERFLOW64 |= _approach(f"long.middle.{n}", HALF - 4, n, 0)
OVERFLOW64 |= _approach("long.sign", (1 << 63) - 2, 4, 0)
for n in (2, 3, 100):
    OVERFLOW64 |= _approach(f"lp0.top.{n}", TOP - 4, n, BOTH if n >= 3 else 0)
    OVERFLOW64 |= _approach(f"lc0.top.{n}", TOP - 4, n, BOTH if n >= 3 else 0)
    OVERFLOW64 |= _approach(f"lc0.middle.{n}", HALF - 4, n, BOTH if n >= 3 else 0)
OVERFLOW64 |= _approach("lp0.lc1.middle", HALF - 4, 4, 1)
OVERFLOW64 |= _irq("irq.event", 1, 0, 1) | _irq("irq.cycle", 0, 2, CYCLE)
OVERFLOW64 |= {"irq.none.interrupts": 0, "divided.64": 1, "divided.6464": 101, "long.not.divided": 64}


# --- chains and software increments ---------------------------------------------------------------------------------


def _pairs(name: str, *values: int, ovs: int) -> Counts:
    return _numbered(name, *values) | {f"{name}.ovs": ovs}


CHAIN: Counts = {}
for n in (0, 2, 3, 4, 100):
    carry = int(n >= 3)
    CHAIN |= _pairs(f"count.{n}", *(HALF - 3 + n, carry) * 2, ovs=5 * carry)
CHAIN |= _pairs("both", *(HALF + 2, HALF) * 2, ovs=0b1111)
CHAIN |= _pairs("off", *(HALF + 2, 0) * 2, ovs=0b101)
CHAIN |= _pairs("odd", 0, HALF + 2, 0, HALF - 4, ovs=0b10)
CHAIN |= _pairs("filtered", HALF + 2, 7, HALF + 2, 8, ovs=0b101)
CHAIN |= _pairs("software", HALF + 2, 1, HALF + 1, 1, ovs=0b101)
CHAIN |= _pairs("long", *(HALF + 2, 0) * 2, ovs=0)

SWINC = _pairs("el1", 3, 0, 1, 6, 0, 3, ovs=0)
# At EL1 the write, 6 instructions to get there and 2 to come back; at EL0 5.
SWINC |= _pairs("el0", 3, 1, 0, 1 + 6 + 5 + 2, 0, 3, ovs=0)
SWINC |= _pairs("loop", 1000, 0, 0, 1 + 3 * 1000, 0, 1000, ovs=0)
SWINC |= _pairs("disabled", 0, 0, 0, 0, 0, 0, ovs=0)
# The two reads of the overflow status between the increments are trapped, and not counted.
SWINC |= _pairs("overflow", HALF + 1, 0, 3, 1 + 3, 0, HALF + 2, ovs=0x21)
SWINC |= {"overflow.first": 0x20, "overflow.second": 0x21}
SWINC |= _pairs("long", 0, 0, 0, 2, 0, HALF, ovs=1)
SWINC |= _named("irq", {"counter": HALF, "at": 4, "intid": 23, "ovs": 1, "interrupts": 1})


# --- levels ---------------------------------------------------------------------------------------------------------

E1 = 1 + 40 + 6 + 2
"""At EL1: the write, the NOPs, the way to EL0, the way back from it."""
E0 = 25 + 1
FILTERS = _numbered("pu", E1 + E0, E0, E1, 0, E1 + E0, E0) | {"pu.ccntr": E1 + E0}
# NSK turns what P says of Non-secure EL1 into its opposite, NSU what U says of EL0.
FILTERS |= _numbered("ns", E0, E1, E1 + E0, E1 + E0, 0, 0) | {"ns.ccntr": E0}
FILTERS |= _numbered("both", 0, E1 + E0, E1, E0, E0, E1) | {"both.ccntr": E1}
FILTERS |= _numbered("none", *[E1 + E0] * 6) | {"none.ccntr": 0}
FILTERS |= _numbered("cycles.nsu", *[E1 + E0] * 6) | {"cycles.nsu.ccntr": E1}
FILTERS |= {"changed.0": 1 + 10 + 30, "changed.1": 1 + 10 + 20 + 30}

LEVELS: Counts = {}
for n in (1, 2, 100):
    at_el0, at_el1 = 3 * n + 1, 1 + 6 + 6 * n + 5
    values = {"all": at_el0 + at_el1, "el0": at_el0, "el1": at_el1, "cycles": at_el0, "ccntr": at_el0, "handled": n}
    LEVELS |= _named(f"svc.{n}", values)
LEVELS |= _named("read", {"el0": 0, "el0.next": 1, "el1": 7, "ccntr": 3, "all": 11}) | {"measured": 21}
# 30 instructions at EL0 are 15 times the loop of 2: the interrupt is at its beginning, and EL1 is not counted.
LEVELS |= _named("irq", {"counter": 0, "cycles": 0, "at": 0, "intid": 23, "ovs": CYCLE, "interrupts": 1})
LEVELS |= _named("irq.event", {"counter": 0, "cycles": 0, "at": 0, "intid": 23, "ovs": 2, "interrupts": 1})


# --- exceptions -----------------------------------------------------------------------------------------------------


def _trial(name: str, esr: int, *, retires: bool = False, far: int | None = None) -> Counts:
    """3 NOPs before, the vector's branch and 9 instructions of the handler, 2 NOPs after."""
    before, after = 1 + 3 + retires + 1, 1 + 3 + retires + 1 + 9 + 2
    values = {"before": before, "esr": esr, "after": after, "cycles": after}
    return _named(name, values if far is None else values | {"far": far})


NO_ABORT = {"before": 0, "esr": 0, "after": 1 + 3 + 1 + 2, "cycles": 1 + 3 + 1 + 2}
UNDEFINED = 0x200_0000  # EC 0, IL

EXCEPTIONS = _trial("svc", 0x5600_0123, retires=True) | {"svc.elr": 4}
for name in ("undefined", "no.register", "read.only", "beyond.n"):
    EXCEPTIONS |= _trial(name, UNDEFINED) | {f"{name}.elr": 0}
EXCEPTIONS |= _trial("brk", 0xF200_0077) | {"brk.elr": 0}
# External aborts, DFSC 0x10; with FnV, the board's choice. Bit 6 is a write.
EXCEPTIONS |= _trial("load", 0x9600_0410) | _trial("store", 0x9600_0450) | _trial("pair", 0x9600_0410)
EXCEPTIONS |= {"load.elr": 0, "store.elr": 0, "pair.elr": 0} | _named("none", NO_ABORT)
EXCEPTIONS |= _trial("fetch", 0x8600_0010, retires=True, far=0x0B00_0000)
EXCEPTIONS |= _trial("misaligned.nowhere", 0x8A00_0000, retires=True, far=0x0B00_0002)
EXCEPTIONS |= _trial("misaligned", 0x8A00_0000, retires=True)
# For each of 1 to 8: ADR, SVC, that many NOPs, ADR, NOP, and twice the vector's branch and the handler.
EXCEPTIONS |= {"row": 1 + sum(4 + n + 2 * 10 for n in range(1, 9)), "row.handled": 16}
EXCEPTIONS |= {"el0.el0": 10, "el0.handled": 5}

SELFMOD = {"subroutine.result": 10 * 1 + 10 * 16, "subroutine.inst": 1 + 20 * 13, "subroutine.ccntr": 1 + 20 * 13}
SELFMOD |= {"next.result": 1, "next.inst": 1 + 6 + 2, "loop.iterations": 5, "loop.result": 16}
SELFMOD |= {"loop.inst": 1 + 4 * 4 + 3 + 6 + 2, "shortened.result": 3 * (2 + 2 * 0x100)}
SELFMOD |= {"shortened.inst": 1 + 3 * (6 + 1 + 6 + 6 + 1 + 4 + 2)}

MMU = _trial("load", 0x9600_0005, far=0xC000_0008) | _trial("store", 0x9600_0045, far=0xC000_0010)
MMU |= _trial("read.only", 0x9600_004D, far=0x1_0030_0018)
MMU |= _trial("fetch", 0x8600_0005, retires=True, far=0xC000_0000)
MMU |= _named("fine", NO_ABORT) | _named("address.translation", NO_ABORT)
MMU |= {"alias.inst": 1 + 2 * (1 + 122) + 1, "alias.cycles": 1 + 2 * (1 + 122) + 1, "alias.from": 0}
MMU |= {"table.esr": 0x9600_0005, "table.at": 0, "table.faults": 1, "table.inst": 1 + 9 + 10 + 1}
MMU |= {"el0.esr": 0x9200_000D, "el0.far": 0x4030_0000, "el0.faults": 2, "el0.inst": 5}


# --- time, interrupts, controls, access -----------------------------------------------------------------------------

WFI: Counts = {"past.inst": 1, "past.ticks": 0}
for ticks in (1, 10, 1000, 65536):
    WFI |= _named(f"masked.{ticks}", {"ticks": ticks, "ctl": 5, "inst": 11, "cycles": 11, "interrupts": 0})
for ticks in (10, 1000):
    values = {"irq.ticks": ticks, "irq.at": 0, "irq.intid": 30, "interrupts": 1, "inst": 1 + 5 + 5 + 1 + 12}
    WFI |= _named(f"unmasked.{ticks}", values)

INTERRUPTS = {"pmu": 8, "at.once.virtual": 1, "at.once.physical": 1, "at.once.pmu": 1}
# Before the PMU's first interrupt come the virtual timer's, the physical one's, and the virtual one's again: 22, 23 and
# 22 instructions, counted like those of the loop, and the write that enabled the counter.
INTERRUPTS |= {"irq.intid": 27, "irq.intid#2": 30, "irq.intid#3": 27, "irq.intid#4": 23}
INTERRUPTS |= {"irq.executed#4": 777 - 1 - (22 + 23 + 22), "irq.ovs": CYCLE}
INTERRUPTS |= {"held.back": 0, "let.through": 1}

CONTROL: Counts = {"disabled": 0, "written.event": 0x1001, "written.cycles": 0x1001}
CONTROL |= {"selected.before": 4, "selected.after": 0x1001}
for name, first, second, cycles in [
    ("enable", 10, 10, 10),  # the write that enables counts, that which disables does not
    ("enabled.later", 5, 5, 5),
    ("reset", 1 + 20 + 1 + 30, 1 + 20 + 1 + 30, 1 + 30),
    ("apart", 1 + 3 + 1 + 5, 1 + 5 + 1 + 7, 0),
    ("again", 6, 0, 0),
    ("written", 0x1000 + 8, 12, 0x1000 + 2),
    ("selected", 10, 0x1000 + 5, 10),
    ("event", 11 + 21 + 0 + 1, 11 + 21 + 41 + 1, 11 + 21 + 41 + 1),
    ("trapped.registers", 1 + 2, 1 + 2, 1 + 2),
    ("device", 1 + 1, 1 + 1, 1 + 1),
    ("not.trapped", 1 + 10, 1 + 10, 1 + 10),
]:
    CONTROL |= _named(name, {"0": first, "1": second, "ccntr": cycles})

ALL = CYCLE | 0x3F
ACCESS: Counts = {"pmcr_el0": 0x4101_3041, "pmuver": 6, "pmmir_el1": 0}
for mask, clear in [("pmcntenset_el0", "pmcntenclr_el0"), ("pmintenset_el1", "pmintenclr_el1"),
                    ("pmovsset_el0", "pmovsclr_el0")]:  # fmt: skip
    ACCESS |= {f"{mask}: none": 0, f"{mask}: all": ALL, f"{clear}: all": ALL, f"{clear}: two": 5}
    ACCESS |= {f"{mask}: but two": ALL & ~5, f"{clear}: but two": ALL & ~5}
# A trap of MRS or MSR: EC 0x18, IL; op2, op1, CRn, Rt, CRm and, for MRS, bit 0.
TRAP_READ = {"pmcr_el0": 0x6230_E419, "pmccntr_el0": 0x6230_E41B, "pmselr_el0": 0x623A_E419}
TRAP_READ |= {"pmevcntr0_el0": 0x6230_F811, "pmxevcntr_el0": 0x6234_E41B}
LETS_READ = {
    "pmccntr_el0": (1, 4, 14),
    "pmselr_el0": (1, 8, 14),
    "pmevcntr0_el0": (1, 8, 14),
    "pmxevcntr_el0": (1, 8, 14),
}
for register, esr in TRAP_READ.items():
    for userenr in (0, 1, 2, 4, 8, 14):
        ACCESS[f"{userenr}: mrs x0,{register}"] = 0 if userenr in LETS_READ.get(register, (1,)) else esr
for userenr in (0, 1, 2, 4, 8, 14):
    ACCESS[f"{userenr}: msr pmswinc_el0,xzr"] = 0 if userenr in (1, 2, 14) else 0x6238_E7F8
    ACCESS[f"{userenr}: msr pmccntr_el0,xzr"] = 0 if userenr == 1 else 0x6230_E7FA
    ACCESS[f"{userenr}: mrs x0,pmuserenr_el0"] = 0
    ACCESS[f"{userenr}: msr pmuserenr_el0,xzr"] = UNDEFINED
    ACCESS[f"{userenr}: mrs x0,pmintenset_el1"] = UNDEFINED

BY_HAND: dict[str, Counts] = {
    "access": ACCESS,
    "chain": CHAIN,
    "control": CONTROL,
    "el0": LEVELS,
    "exceptions": EXCEPTIONS,
    "filters": FILTERS,
    "interrupts": INTERRUPTS,
    "loops": LOOPS,
    "mmu": MMU,
    "overflow32": OVERFLOW32,
    "overflow64": OVERFLOW64,
    "selfmod": SELFMOD,
    "swinc": SWINC,
    "wfi": WFI,
}
