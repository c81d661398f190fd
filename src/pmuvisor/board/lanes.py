"""Which of the engine's lanes is which event of the PMU, and so which events are counted at all.

Cycles are a model, not a measurement: one for each instruction.
"""

from __future__ import annotations

from pmuvisor.arch import events
from pmuvisor.board.engine import Lane

LANE_OF_EVENT: dict[int, Lane] = {
    events.LD_RETIRED: Lane.LD,
    events.ST_RETIRED: Lane.ST,
    events.INST_RETIRED: Lane.INST,
    events.EXC_TAKEN: Lane.EXC_TAKEN,
    events.EXC_RETURN: Lane.EXC_RETURN,
    events.PC_WRITE_RETIRED: Lane.PC_WRITE,
    events.BR_IMMED_RETIRED: Lane.BR_IMMED,
    events.BR_RETURN_RETIRED: Lane.BR_RETURN,
    events.BR_RETIRED: Lane.BR,
    events.MEM_ACCESS: Lane.MEM,
    events.INST_SPEC: Lane.INST,  # the engine speculates nothing
    events.CPU_CYCLES: Lane.INST,
    events.BUS_CYCLES: Lane.INST,
}
"""The engine's lane that is an event."""
COUNTED_EVENTS = (*LANE_OF_EVENT, events.SW_INCR, events.CHAIN, events.STALL_FRONTEND, events.STALL_BACKEND)
"""The events that PMCEID<n>_EL0 may advertise: counted exactly, STALL_* as the 0 that they are in this model."""
DECODED = {Lane.LD, Lane.ST, Lane.MEM, Lane.BR, Lane.BR_IMMED, Lane.BR_RETURN, Lane.PC_WRITE}
"""Lanes that the engine counts only where it is told to look at each instruction."""
