"""What the proofs take for granted of the host's perf core: each contract a function that says all it may have done.

A contract does what the function must do, and takes what it may do from `chance`, a CPU of which every register is any
value. So it is used twice: with variables in the place of the function, and with what the real function made of a CPU,
where it must come to that very CPU (tests).
"""

from __future__ import annotations

from pmuvisor.arch import pmu
from pmuvisor.arch.sysreg import CYCLE, FILTER_U, INSTRUCTION
from pmuvisor.linux import arm_pmuv3
from pmuvisor.linux.host import Cpu


def instead(old: int, new: int, chosen: int) -> int:
    """Return `new` where the mask `chosen` is set, `old` elsewhere."""
    return (old & ~chosen) | (new & chosen)


def events_rescheduled(cpu: Cpu, cntr_mask: int, chance: Cpu) -> None:
    """What perf_pmu_resched_update() does: afterwards events are on counters of `cntr_mask` only.

    Which, with which values, is perf's. A counter that has lost its event is off. Others are left alone. At the end the
    PMU is enabled if an event is on it.
    """
    hw, had = cpu.hw, cpu.hw.used_mask
    hw.cntr_mask = cntr_mask
    hw.used_mask = chance.hw.used_mask & cntr_mask
    hw.events_host = chance.hw.events_host & hw.used_mask
    hw.events_guest = chance.hw.events_guest & hw.used_mask
    for name in ("cnten", "inten", "ovs"):
        new = getattr(chance.pe, name) & hw.used_mask
        setattr(cpu.pe, name, instead(getattr(cpu.pe, name), new, had | hw.used_mask))
    _any_values(cpu, had | hw.used_mask, chance)
    arm_pmuv3.armpmu_enable(cpu)


def overflows_handled(cpu: Cpu, flags: int, chance: Cpu) -> None:
    """What armv8pmu_handle_irq() does: the events whose counters overflowed get the next period loaded."""
    arm_pmuv3.stop(cpu)
    _any_values(cpu, flags & cpu.hw.used_mask, chance)
    arm_pmuv3.start(cpu)


def _any_values(cpu: Cpu, counters: int, chance: Cpu) -> None:
    """Give the counters of a mask any value, and let them count any event that the core's types can name."""
    pe, new = cpu.pe, chance.pe
    for i in range(pe.core.event_counters):
        mine = -((counters >> i) & 1)
        pe.evcntr[i] = instead(pe.evcntr[i], new.evcntr[i] & pmu.event_counter_mask(pe), mine)
        pe.evtyper[i] = instead(pe.evtyper[i], new.evtyper[i] & pmu.evtyper_bits(pe, i), mine)
    pe.ccntr = instead(pe.ccntr, new.ccntr, -((counters >> CYCLE) & 1))
    pe.icntr = instead(pe.icntr, new.icntr, -((counters >> INSTRUCTION) & 1))
    pe.ccfiltr = instead(pe.ccfiltr, new.ccfiltr & pmu.filter_bits(pe), -((counters >> CYCLE) & 1))
    pe.icfiltr = instead(pe.icfiltr, new.icfiltr & pmu.filter_bits(pe), -((counters >> INSTRUCTION) & 1))


def el0_switched(cpu: Cpu, counters: int, excluded: int) -> None:
    """What kvm/pmu.set_el0() does, without a branch for each counter."""
    pe = cpu.pe
    for i in range(pe.core.event_counters):
        mine = ((counters >> i) & 1) << FILTER_U
        pe.evtyper[i] = instead(pe.evtyper[i], excluded << FILTER_U, mine)
    pe.ccfiltr = instead(pe.ccfiltr, excluded << FILTER_U, ((counters >> CYCLE) & 1) << FILTER_U)
    pe.icfiltr = instead(pe.icfiltr, excluded << FILTER_U, ((counters >> INSTRUCTION) & 1) << FILTER_U)
