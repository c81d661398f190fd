"""Which counters count, what they hold afterwards and who reaches them, said counter by counter: an independent
formulation.

Written from the Arm ARM's prose with unbounded integers and plain conditions; it shares no code with the masks that it
checks.
"""

from __future__ import annotations

from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.traps import ALLOWED, TRAP_EL1, TRAP_EL2, TRAP_EL3, UNDEFINED

CYCLE = 31
INSTRUCTION = 32
CHAIN = 0x1E
READ_ONLY = {"PMCEID0_EL0", "PMCEID1_EL0", "PMMIR_EL1"}
WRITE_ONLY = {"PMSWINC_EL0", "PMZR_EL0"}
VERSION = {"PMMIR_EL1": 5, "PMUACR_EL1": 9, "PMZR_EL0": 9}
"""Registers that came later, by ID_AA64DFR0_EL1.PMUVer."""
OF_COUNTERS = {"PMCCNTR_EL0": CYCLE, "PMCCFILTR_EL0": CYCLE, "PMICNTR_EL0": INSTRUCTION, "PMICFILTR_EL0": INSTRUCTION}
FGT = {
    "PMXEVCNTR_EL0": 12,
    "PMXEVTYPER_EL0": 13,
    "PMCCFILTR_EL0": 14,
    "PMCCNTR_EL0": 15,
    "PMCNTENSET_EL0": 16,
    "PMCNTENCLR_EL0": 16,
    "PMINTENSET_EL1": 17,
    "PMINTENCLR_EL1": 17,
    "PMOVSSET_EL0": 18,
    "PMOVSCLR_EL0": 18,
    "PMSELR_EL0": 19,
    "PMUSERENR_EL0": 57,
}
"""The bit of HDFGRTR_EL2 and HDFGWTR_EL2 that traps a register, where both have one."""
FGT_READ = FGT | {"PMMIR_EL1": 22, "PMCEID0_EL0": 58, "PMCEID1_EL0": 58}
FGT_WRITE = FGT | {"PMSWINC_EL0": 20, "PMCR_EL0": 21}
FGT2 = {"PMICNTR_EL0": 2, "PMICFILTR_EL0": 3, "PMUACR_EL1": 4, "PMZR_EL0": 21}
"""The bit of HDFGRTR2_EL2 and HDFGWTR2_EL2 that, clear, traps a register."""


def bit(value: int, n: int) -> bool:
    return value >> n & 1 == 1


def first_range_size(pe: Pe) -> int:
    hpmn = pe.mdcr_el2 % 32
    legal = hpmn <= pe.core.event_counters and (hpmn > 0 or pe.core.hpmn0 == 1)
    return hpmn if legal else pe.core.event_counters


def follows_first(pe: Pe, n: int) -> bool:
    return n >= CYCLE or n < first_range_size(pe)


def implemented(pe: Pe) -> list[int]:
    return [*range(pe.core.event_counters), CYCLE] + [INSTRUCTION] * pe.core.icntr


def is_frozen(pe: Pe, first: bool) -> bool:
    """Freeze-on-overflow of a range: since PMUv3p7, while an event counter of it (or the instruction counter) has
    overflowed; the cycle counter's overflow freezes nothing.
    """
    if pe.core.pmuver < 7 or not (bit(pe.pmcr, 9) if first else bit(pe.mdcr_el2, 29)):
        return False
    return any(bit(pe.ovs, n) for n in implemented(pe) if n != CYCLE and follows_first(pe, n) == first)


def is_filtered(pe: Pe, el: int, control: int) -> bool:
    p, u, nsh = bit(control, 31), bit(control, 30), bit(control, 27)
    nsk = bit(control, 29) and pe.core.el3 == 1
    nsu = bit(control, 28) and pe.core.el3 == 1
    return {0: u != nsu, 1: p != nsk, 2: not nsh}[el]


def counts(pe: Pe, el: int, n: int) -> bool:
    first = follows_first(pe, n)
    on = bit(pe.pmcr, 0) if first else bit(pe.mdcr_el2, 7)
    prohibited = el == 2 and pe.core.pmuver >= 4 and first and bit(pe.mdcr_el2, 17)
    stopped = prohibited or is_frozen(pe, first)
    control = {CYCLE: pe.ccfiltr, INSTRUCTION: pe.icfiltr}.get(n)
    if control is None:
        control = pe.evtyper[n]
    if n == CYCLE:
        stopped = stopped and bit(pe.pmcr, 5)
        if el == 2 and pe.core.pmuver >= 6 and bit(pe.mdcr_el2, 23):
            stopped = True
    return on and bit(pe.cnten, n) and not stopped and not is_filtered(pe, el, control)


def overflow_width(pe: Pe, n: int) -> int:
    """Return the number of bits that overflow: of an event counter by LP and HLP, of the cycle counter by LC."""
    long = pe.core.pmuver >= 6 and (bit(pe.pmcr, 7) if follows_first(pe, n) else bit(pe.mdcr_el2, 26))
    if n == CYCLE:
        long = bit(pe.pmcr, 6) or not pe.core.aarch32
    return pe.core.half_bits * (2 if long or n == INSTRUCTION else 1)


def after_event(pe: Pe, el: int, hits: set[int], amount: int) -> tuple[list[int], int]:
    """Return the event counters and PMOVS after `amount` of the event that the counters `hits` would count."""
    values = list(pe.evcntr)
    overflows = pe.ovs
    size = 1 << (pe.core.half_bits * (2 if pe.core.pmuver >= 6 else 1))
    carried = 0
    for n, before in enumerate(pe.evcntr):
        after = before
        if counts(pe, el, n):
            if n in hits:
                after += amount
            if pe.evtyper[n] & 0xFFFF == CHAIN and follows_first(pe, n) == follows_first(pe, n - 1):
                after += carried
        width = overflow_width(pe, n)
        wraps = (after >> width) - (before >> width)
        overflows |= (wraps > 0) << n
        carried = wraps if n % 2 == 0 and width == pe.core.half_bits else 0
        values[n] = after % size
    return values, overflows


def after_instructions(pe: Pe, el: int, amount: int) -> tuple[int, int]:
    """Return the instruction counter, always long, and its bit of PMOVS after `amount` instructions."""
    if not pe.core.icntr or not counts(pe, el, INSTRUCTION):
        return pe.icntr, 0
    size = 1 << 2 * pe.core.half_bits
    return (pe.icntr + amount) % size, (pe.icntr + amount >= size) << INSTRUCTION


def after_cycles(pe: Pe, el: int, cycles: int) -> tuple[int, int, int]:
    """Return the cycle counter, what is left of 64 cycles, and its bit of PMOVS after `cycles`.

    PMCR_EL0.D divides by 64, unless LC, which is 1 without AArch32, makes it overflow at its full width.
    """
    if not counts(pe, el, CYCLE):
        return pe.ccntr, pe.divider, 0
    left, width = pe.divider, overflow_width(pe, CYCLE)
    if bit(pe.pmcr, 3) and width == pe.core.half_bits:
        cycles, left = divmod(pe.divider + cycles, 64)
    after = pe.ccntr + cycles
    return after % (1 << 2 * pe.core.half_bits), left, (after >> width > pe.ccntr >> width) << CYCLE


def interrupts(pe: Pe) -> bool:
    def on(n: int) -> bool:
        return bit(pe.pmcr, 0) if follows_first(pe, n) else bit(pe.mdcr_el2, 7)

    return any(bit(pe.ovs, n) and bit(pe.inten, n) and on(n) for n in implemented(pe))


def uen(pe: Pe) -> bool:
    """PMUSERENR_EL0.UEN, from PMUv3p9: PMUACR_EL1 and ER, CR, IR decide what EL0 reaches."""
    return pe.core.pmuver >= 9 and bit(pe.userenr, 4)


def reaches(pe: Pe, el: int, n: int) -> bool:
    """Tell whether `el` reaches counter `n` at all: by HPMN, and at EL0 by PMUACR_EL1."""
    if n not in implemented(pe) or (el < 2 and not follows_first(pe, n)):
        return False
    if el == 0 and n == INSTRUCTION and not uen(pe):
        return False
    return not (el == 0 and uen(pe)) or bit(pe.uacr, n)


def hides_instructions(pe: Pe, el: int, hdfgxtr2: int, number: int) -> bool:
    """Tell whether EL3 or EL2 keep the instruction counter from `el`: MDCR_EL3.EnPM2, SCR_EL3.FGTEn2 and bit `number`
    of HDFGRTR2_EL2 or HDFGWTR2_EL2, which the host's EL0 is not subject to.
    """
    if pe.core.el3 and not bit(pe.mdcr_el3, 7):
        return True
    if el == 2 or pe.tge:
        return False
    return bool(pe.core.el3 and not bit(pe.scr_el3, 59)) or not bit(hdfgxtr2, number)


def shows(pe: Pe, el: int, n: int) -> bool:
    """Tell whether a read at `el` of a set of counters shows bit `n`."""
    return reaches(pe, el, n) and not (n == INSTRUCTION and hides_instructions(pe, el, pe.hdfgrtr2_el2, 3))


def lets_change(pe: Pe, el: int, n: int, *, value: bool) -> bool:
    """Tell whether a write at `el` changes counter `n`: its `value`, else its controls."""
    read_only = {CYCLE: 2, INSTRUCTION: 5}.get(n, 3)
    if el == 0 and uen(pe) and bit(pe.userenr, read_only):
        return False
    hidden = n == INSTRUCTION and hides_instructions(pe, el, pe.hdfgwtr2_el2, 2 if value else 3)
    return reaches(pe, el, n) and not hidden


def counter_of(pe: Pe, name: str) -> int | None:
    """Return the counter that a register is about, None where it is not about one."""
    if name in ("PMXEVCNTR_EL0", "PMXEVTYPER_EL0"):
        return pe.selr
    if name.startswith(("PMEVCNTR", "PMEVTYPER")):
        return int("".join(c for c in name.removesuffix("_EL0") if c.isdigit()))
    return OF_COUNTERS.get(name)


def is_there(pe: Pe, el: int, name: str, write: int) -> bool:
    """Tell whether the register has such an accessor at `el` on this core, by the head of its page."""
    if name in (READ_ONLY if write else WRITE_ONLY) or pe.core.pmuver < VERSION.get(name, 0):
        return False
    if el == 0 and (name.endswith("_EL1") or (name == "PMUSERENR_EL0" and write)):
        return False
    counter = counter_of(pe, name)
    if counter == CYCLE:
        return name != "PMXEVCNTR_EL0"
    return counter is None or counter in implemented(pe)


def is_open_to_el0(pe: Pe, name: str, write: int) -> bool:
    """Tell whether PMUSERENR_EL0 lets EL0 through: EN and UEN to almost all, SW, CR, ER and TID to and from some."""
    if name == "PMUSERENR_EL0":
        return True
    en, sw, cr, er, tid = (bit(pe.userenr, n) for n in (0, 1, 2, 3, 6))
    if name in ("PMICNTR_EL0", "PMICFILTR_EL0"):
        return uen(pe)
    if name == "PMCR_EL0":
        return en and not uen(pe)
    if name.startswith("PMCEID") and tid:
        return False
    alone = {"PMSWINC_EL0": sw, "PMSELR_EL0": er}
    if not write:
        alone |= {"PMCCNTR_EL0": cr, "PMXEVCNTR_EL0": er}
    return en or uen(pe) or alone.get(name, not write and name.startswith("PMEVCNTR") and er)


def is_fine_grained_trap(pe: Pe, name: str, write: int) -> bool:
    """Tell whether HDFGxTR_EL2 or HDFGxTR2_EL2 trap: EL3 can switch the former off, and the latter to trapping all."""
    if name in FGT2:
        shut = pe.core.el3 and not bit(pe.scr_el3, 59)
        return bool(pe.core.fgt2 and (shut or not bit(pe.hdfgwtr2_el2 if write else pe.hdfgrtr2_el2, FGT2[name])))
    if not pe.core.fgt or (pe.core.el3 and not bit(pe.scr_el3, 27)):
        return False
    plain = name
    for numbered, selected in (("PMEVCNTR", "PMXEVCNTR_EL0"), ("PMEVTYPER", "PMXEVTYPER_EL0")):
        plain = selected if name.startswith(numbered) else plain
    number = (FGT_WRITE if write else FGT_READ).get(plain)
    return number is not None and bit(pe.hdfgwtr_el2 if write else pe.hdfgrtr_el2, number)


def where(pe: Pe, el: int, name: str, write: int) -> int:
    """Return where an access goes, by the "Accessing" part of the register's page."""
    if not is_there(pe, el, name, write):
        return UNDEFINED
    if el == 0 and not is_open_to_el0(pe, name, write):
        return TRAP_EL2 if pe.tge else TRAP_EL1
    if el < 2 and (bit(pe.mdcr_el2, 6) or (name == "PMCR_EL0" and bit(pe.mdcr_el2, 5))):
        return TRAP_EL2
    if el < 2 and not pe.tge and is_fine_grained_trap(pe, name, write):
        return TRAP_EL2
    counter = counter_of(pe, name)
    if el < 2 and counter is not None and not follows_first(pe, counter):
        return TRAP_EL2 if pe.core.fgt else UNDEFINED
    of_p9 = name in ("PMICNTR_EL0", "PMICFILTR_EL0", "PMUACR_EL1")
    if pe.core.el3 and (bit(pe.mdcr_el3, 6) or (of_p9 and not bit(pe.mdcr_el3, 7))):
        return TRAP_EL3
    return ALLOWED
