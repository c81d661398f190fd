"""One vCPU's PMU on the board: what the engine counted, given to the semantics; what the semantics says, done.

The engine counts lanes (instructions, loads, exceptions, ...) at EL0 and EL1 without knowing of counters. Here those
counts become events of the PE on which the vCPU is loaded, whenever somebody could see a counter: at an access, an
overflow, a load or a put. In between, the engine watches for the count at which the next counter overflows.

Cycles are a model, not a measurement: one for each instruction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from pmuvisor import records
from pmuvisor.arch import events, pmu, sysreg
from pmuvisor.arch.cores import Core, make_pe
from pmuvisor.board.engine import Engine, Lane, Watch
from pmuvisor.kvm import access as door
from pmuvisor.kvm import partitioned, vcpu
from pmuvisor.kvm.vcpu import HostContext, Vcpu, Vm

_INST = 1 << Lane.INST
LANES_OF_EVENT: dict[int, int] = {
    events.LD_RETIRED: 1 << Lane.LD,
    events.ST_RETIRED: 1 << Lane.ST,
    events.INST_RETIRED: _INST,
    events.EXC_TAKEN: 1 << Lane.EXC_TAKEN,
    events.EXC_RETURN: 1 << Lane.EXC_RETURN,
    events.PC_WRITE_RETIRED: 1 << Lane.PC_WRITE,
    events.BR_IMMED_RETIRED: 1 << Lane.BR_IMMED,
    events.BR_RETURN_RETIRED: 1 << Lane.BR_RETURN,
    events.BR_RETIRED: 1 << Lane.BR,
    events.MEM_ACCESS: 1 << Lane.MEM,
    events.INST_SPEC: _INST,  # the engine speculates nothing
    events.CPU_CYCLES: _INST,
    events.BUS_CYCLES: _INST,
}
"""Which of the engine's lanes add up to an event."""
COUNTED_EVENTS = (*LANES_OF_EVENT, events.SW_INCR, events.CHAIN, events.STALL_FRONTEND, events.STALL_BACKEND)
"""The events that PMCEID<n>_EL0 may advertise: counted exactly, STALL_* as the 0 that they are in this model."""
_DECODED = {Lane.LD, Lane.ST, Lane.MEM, Lane.BR, Lane.BR_IMMED, Lane.BR_RETURN, Lane.PC_WRITE}
_NEEDS_DECODING = sum(1 << lane for lane in _DECODED)


class VirtualPmu:
    """The PMU of one vCPU, and the physical one of the CPU that it has to itself.

    `on_level` is told the level of the guest's PMU interrupt after every entry that may have changed it.
    """

    def __init__(self, core: Core, vm: Vm, engine: Engine, on_level: Callable[[bool], None]) -> None:
        sizes = {"event_counters": core.event_counters, "counter_width": 64}
        self.vm = vm
        self.pe = make_pe(core, COUNTED_EVENTS)
        self.host = records.new(HostContext)
        self.vcpu = records.new(Vcpu, sizes)
        self.accesses: Counter[tuple[int, int]] = Counter()
        """How often each register was reached how: (key, outcome of the door) to a count."""
        self._engine = engine
        self._on_level = on_level
        self._seen = [[0] * len(Lane), [0] * len(Lane)]
        self._selected: list[tuple[int, list[int]]] = []
        self._counting = False
        vcpu.reset(self.vcpu)
        pmu.write(self.pe, 2, sysreg.PMCR_EL0, sysreg.PMCR_E | sysreg.PMCR_LC | sysreg.PMCR_LP)
        vcpu.guest_exit(self.pe)

    # ---- life cycle -----------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load the vCPU on its CPU and enter the guest."""
        self._forget()
        partitioned.vcpu_load(self.pe, self.host, self.vm, self.vcpu, 1)
        vcpu.guest_enter(self.pe)
        self._changed()
        self.entry()

    def put(self) -> None:
        """Exit the guest and put the vCPU, as when its thread is scheduled out."""
        self.sync()
        vcpu.guest_exit(self.pe)
        partitioned.vcpu_put(self.pe, self.host, self.vm, self.vcpu)
        self._engine.watch(())

    def entry(self) -> None:
        """Go through an entry to the guest: evaluate its interrupt line."""
        partitioned.flush_hwstate(self.pe, self.vm, self.vcpu)
        self._on_level(self.vcpu.irq_level == 1)

    # ---- counting -------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Bring the counters up to the instruction that the engine is at."""
        now = self._engine.counts().tolist()
        for el in (0, 1):
            before, after = self._seen[el], now[el]
            if before != after:
                self._advance(el, [b - a for a, b in zip(before, after, strict=True)])
        self._seen = now

    def _advance(self, el: int, lanes: list[int]) -> None:
        for event, parts in self._selected:
            amount = sum(lanes[part] for part in parts)
            if amount:
                pmu.pmu_event(self.pe, el, event, amount)
        instructions = lanes[Lane.INST]
        pmu.increment_cycle_counter(self.pe, el, instructions)
        if self.pe.core.icntr:
            pmu.increment_instruction_counter(self.pe, el, instructions)

    def _forget(self) -> None:
        """Leave out what the engine counted while the vCPU was not loaded."""
        self._seen = self._engine.counts().tolist()

    def emulated(self, el: int, *lanes: Lane) -> None:
        """Leave out the instruction at hand: it exits to the host, which emulates it, so the guest retires nothing.

        The engine will count it as retired at `el`, and in `lanes`. KVM goes through an entry afterwards.
        """
        for lane in (Lane.INST, *lanes):
            self._seen[el][lane] += 1
        if self._counting:
            self._changed()
        self.entry()

    def overflowed(self) -> None:
        """A watched count was reached: count up to here and let the host's interrupt handler run."""
        self.sync()
        self._service()
        self._changed()

    def _service(self) -> bool:
        """Run the host's PMU interrupt handler if the interrupt line is up; say whether it was."""
        if not pmu.check_for_pmu_overflow(self.pe):
            return False
        vcpu.guest_exit(self.pe)
        partitioned.handle_irq(self.pe, self.vm, self.vcpu)
        vcpu.guest_enter(self.pe)
        self.entry()
        return True

    def _changed(self) -> None:
        """Look at what is counted now: tell the engine which lanes to count and what to watch for."""
        pe = self.pe
        counting = (pmu.count_pmu_events(pe, 0), pmu.count_pmu_events(pe, 1))
        either = counting[0] | counting[1]
        self._counting = either != 0
        chosen: dict[int, int] = {}
        watches = []
        for i in range(pe.core.event_counters):
            lanes = LANES_OF_EVENT.get(pe.evtyper[i] & pmu.EVENT_FIELD, 0)
            if (either >> i) & 1 and lanes:
                chosen[pe.evtyper[i] & pmu.EVENT_FIELD] = lanes
                watches.append(self._watch(lanes, counting, i, self._to_overflow(pe.evcntr[i], pmu.is_long(pe, i))))
        if (either >> sysreg.CYCLE) & 1:
            watches.append(self._watch(_INST, counting, sysreg.CYCLE, self._cycles_to_overflow()))
        self._selected = [(event, _lane_numbers(lanes)) for event, lanes in chosen.items()]
        self._engine.detail = any(lanes & _NEEDS_DECODING for lanes in chosen.values())
        self._engine.watch(watches)

    def _watch(self, lanes: int, counting: tuple[int, int], counter: int, remaining: int) -> Watch:
        els = ((counting[0] >> counter) & 1) | (((counting[1] >> counter) & 1) << 1)
        so_far = sum(self._seen[el][lane] for el in (0, 1) if (els >> el) & 1 for lane in _lane_numbers(lanes))
        return Watch(lanes, els, so_far + remaining)

    def _to_overflow(self, value: int, long: int) -> int:
        width = 64 if long and self.pe.core.pmuver >= sysreg.PMUV3P5 else 32
        return (1 << width) - (value & ((1 << width) - 1))

    def _cycles_to_overflow(self) -> int:
        long = pmu.effective_lc(self.pe)
        remaining = (1 << 64) - self.pe.ccntr if long else (1 << 32) - (self.pe.ccntr & 0xFFFF_FFFF)
        if self.pe.pmcr & sysreg.PMCR_D and not long:
            return (remaining << 6) - self.pe.divider
        return remaining

    # ---- the guest's accesses -------------------------------------------------------------------------------

    def access(self, el: int, key: int, write: bool, value: int) -> tuple[int, int | None]:
        """Carry out the guest's MRS or MSR of a PMU register at the instruction that the engine is at.

        A direct write takes effect before its own instruction is counted: that which enables a counter is the first to
        be counted, that which disables it the first not to be. The Arm ARM leaves it open without an ISB.
        Return what was read and None; or the ESR_EL1 of the exception that the instruction takes instead, without the
        number of its general-purpose register, which only the engine knows.
        """
        self.sync()
        outcome = door.guest_access(self.pe, self.vm, self.vcpu, el, key, int(write), value)
        self.accesses[key, outcome] += 1
        if outcome == door.TO_EL1:
            return 0, sysreg.sys64_esr(key, 0, int(write))
        if outcome in (door.UNDEFINED, door.TRAPPED_UNDEFINED):
            return 0, sysreg.undefined_esr()
        if outcome == door.TRAPPED:
            self._seen[el][Lane.INST] += 1  # emulated by the host: the guest retires nothing
        if write or outcome == door.TRAPPED:
            self._service()
            self._changed()
        if outcome == door.TRAPPED:
            self._on_level(self.vcpu.irq_level == 1)
        return self.vcpu.value, None


def _lane_numbers(lanes: int) -> list[int]:
    return [lane for lane in Lane if (lanes >> lane) & 1]
