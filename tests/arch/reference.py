"""Which counters count and what they hold afterwards, said counter by counter: an independent formulation.

Written from the Arm ARM's prose with unbounded integers and plain conditions; it shares no code with the masks that it
checks.
"""

from __future__ import annotations

from pmuvisor.arch.pmu import Pe

CYCLE = 31
INSTRUCTION = 32
CHAIN = 0x1E


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
    long = pe.core.pmuver >= 6 and (bit(pe.pmcr, 7) if follows_first(pe, n) else bit(pe.mdcr_el2, 26))
    return pe.core.half_bits * (2 if long else 1)


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


def interrupts(pe: Pe) -> bool:
    def on(n: int) -> bool:
        return bit(pe.pmcr, 0) if follows_first(pe, n) else bit(pe.mdcr_el2, 7)

    return any(bit(pe.ovs, n) and bit(pe.inten, n) and on(n) for n in implemented(pe))
