"""One vCPU's PMU on the board: what the engine counted, given to the semantics; what the semantics says, done.

The engine counts lanes (instructions, loads, exceptions, ...) at EL0 and EL1 without knowing of counters. Here those
counts become events of the PE on which the vCPU is loaded, whenever somebody could see a counter: at an access, an
overflow, a load or a put. In between, the engine watches for the count at which the next counter overflows.

Cycles are a model, not a measurement: one for each instruction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pmuvisor.arch import pmu, sysreg
from pmuvisor.arch.pmu import Pe
from pmuvisor.board.engine import Engine, Lane, Watch
from pmuvisor.board.lanes import DECODED, LANE_OF_EVENT
from pmuvisor.board.place import HostCpu
from pmuvisor.kvm import access as door
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import PARTITIONED

_PLANS = 64
"""Plans kept at most. A guest that measures has a few; one that writes anything anywhere must not fill the memory."""

_Wanted = tuple[bool, tuple[tuple[int, int, int], ...]]
"""What the engine is told: whether to decode, and of each watch its lanes, levels and target."""


@dataclass(frozen=True, slots=True)
class _Feed:
    """One lane at one exception level, and the event counters that count it there."""

    lane: Lane
    hits: int
    counters: tuple[tuple[int, int], ...]
    """Each of `hits`: its number, and 1 where it is long."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Counters that count one lane at the same levels: the next of them to overflow is the one to watch for."""

    lane: Lane
    els: int
    """Bit 0: EL0; bit 1: EL1."""
    counters: tuple[tuple[int, int], ...]
    """Event counters: the number, and the mask of the bits that overflow."""
    cycles: bool
    """The cycle counter is one of them."""
    instructions: bool
    """The instruction counter is one of them."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What counts, while the controls are as they are: all that can be said of it without the counters' values."""

    counting: tuple[int, int]
    """By exception level, as all that follows."""
    chaining: tuple[int, int]
    feeds: tuple[tuple[_Feed, ...], tuple[_Feed, ...]]
    groups: tuple[_Group, ...]
    detail: bool
    idle: bool
    """Nothing that the guest executes is counted."""


class VirtualPmu:
    """The PMU of one vCPU, wherever it is loaded.

    `on_level` is told the level of the guest's PMU interrupt after every entry that may have changed it; `now` gives
    the time in ns.
    """

    def __init__(
        self, place: HostCpu, engine: Engine, on_level: Callable[[bool], None], now: Callable[[], int]
    ) -> None:
        self.vm = place.vm
        self.vcpu = place.vcpu
        self.place = place
        self.accesses: Counter[tuple[int, int]] = Counter()
        """How often each register was reached how: (key, outcome of the door) to a count."""
        self._engine = engine
        self._on_level = on_level
        self.now = now
        self._timed = place.vm.design != PARTITIONED
        """Its accesses can lead to perf, which has to know the time; those to a partition that is there cannot."""
        self._seen = [[0] * len(Lane), [0] * len(Lane)]
        """By exception level and lane, what is in the counters already. Where nothing counts it is of no meaning."""
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._told: _Wanted = (engine.detail, ())
        self._evaluated: tuple[int, ...] = ()

    @property
    def pe(self) -> Pe:
        """The PMU of the CPU where the vCPU is, or was last."""
        return self.place.pe

    # ---- life cycle -----------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset the guest's PMU, as KVM does with a vCPU that is turned on. It is not loaded."""
        worlds.vcpu_reset(self.place.world, self.place.c, self.place.v)

    def load(self) -> None:
        """Load the vCPU on its CPU and enter the guest."""
        self._forget()
        self.place.load(self.now())
        self._evaluated = ()
        self._changed()
        self.entry()

    def put(self) -> None:
        """Exit the guest and put the vCPU, as when its thread is scheduled out."""
        self.sync()
        self.place.put(self.now())
        self._tell((self._told[0], ()))

    def host_changed(self) -> None:
        """Look again at what counts: the host has programmed its counters while the vCPU is loaded."""
        self._evaluated = ()
        self._changed()
        self.entry()

    def entry(self) -> None:
        """Go through an entry to the guest: evaluate its interrupt line.

        A Linux boot enters 35,000 times, for a device nearly always. Where all that the level depends on is as it was
        after the last time, so is the level.
        """
        if self._evaluated != self._level_state():
            worlds.flush_hwstate(self.place.world, self.place.c, self.place.v)
            self._on_level(self.vcpu.irq_level == 1)
            self._evaluated = self._level_state()

    def _level_state(self) -> tuple[int, ...]:
        """Return what `flush_hwstate` reads, but for the number of the VM's counters, and what it writes."""
        pe, guest = self.pe, self.vcpu
        return guest.ovs, pe.ovs, pe.inten, pe.pmcr, guest.inten, guest.pmcr, guest.irq_level

    # ---- counting -------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Bring the counters up to the instruction that the engine is at.

        What happened since the last time happened before any overflow that it leads to, since the engine stops at each:
        it is counted by the controls as they were, whatever an overflow freezes from here on.
        """
        plan = self._plan()
        now = self._engine.counts().tolist()
        for el in (0, 1):
            before, after = self._seen[el], now[el]
            if before != after:
                self._advance(plan, el, before, after)
                if self.place.sees_all:
                    self._note(el, before, after)
        self._seen = now

    def _advance(self, plan: _Plan, el: int, before: list[int], after: list[int]) -> None:
        pe, counting = self.pe, plan.counting[el]
        for feed in plan.feeds[el]:
            amount = after[feed.lane] - before[feed.lane]
            if amount and plan.chaining[el]:
                pmu.count_events(pe, counting, feed.hits, amount)
            elif amount:  # no counter feeds another
                for i, long in feed.counters:
                    pmu.increment_event_counter(pe, i, amount, long)
        instructions = after[Lane.INST] - before[Lane.INST]
        if (counting >> sysreg.CYCLE) & 1:
            pmu.increment_cycle_counter(pe, counting, instructions)
        if (counting >> sysreg.INSTRUCTION) & 1:
            pmu.increment_instruction_counter(pe, counting, instructions)

    def _note(self, el: int, before: list[int], after: list[int]) -> None:
        amounts = [new - old for new, old in zip(after, before, strict=True)]
        if not self._engine.detail:
            for lane in DECODED:
                amounts[lane] = 0
        self.place.note(el, amounts)

    def _forget(self) -> None:
        """Leave out what the engine counted up to here: the vCPU was not loaded, or nothing was enabled."""
        self._seen = self._engine.counts().tolist()

    def emulated(self, el: int, *lanes: Lane) -> None:
        """Leave out the instruction at hand: it exits to the host, which emulates it, so the guest retires nothing.

        The engine will count it as retired at `el`, and in `lanes`. KVM goes through an entry afterwards.
        """
        for lane in (Lane.INST, *lanes):
            self._seen[el][lane] += 1
        self._changed()
        self.entry()

    def trapped_elsewhere(self, el: int) -> None:
        """Leave out the instruction at hand, a register access that KVM carries out for another unit."""
        self.sync()
        self._seen[el][Lane.INST] += 1
        self._changed()

    def overflowed(self) -> None:
        """A watched count was reached: count up to here and let the host's interrupt handler run."""
        self.sync()
        self._service()
        self._changed()

    def _service(self) -> bool:
        """Run the host's PMU interrupt handler if the interrupt line is up; say whether it was."""
        if self.pe.ovs == 0 or not pmu.check_for_pmu_overflow(self.pe):
            return False
        self.place.interrupt(self.now())
        self._evaluated = ()  # the place has entered the guest
        self.entry()
        return True

    # ---- what counts now ------------------------------------------------------------------------------------

    def _plan(self) -> _Plan:
        """Return what counts now. It is found by all state that it depends on, so no change can be missed."""
        pe = self.pe
        controls = (pe.pmcr, pe.mdcr_el2, pe.cnten, pe.ovs, pe.ccfiltr, pe.icfiltr, *pe.evtyper)
        plan = self._plans.get(controls)
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[controls] = make_plan(pe)
        return plan

    def _changed(self) -> None:
        """Look at what is counted now: tell the engine which lanes to count and what to watch for."""
        plan = self._plan()
        self._tell(
            (plan.detail or self.place.detail, tuple([(1 << g.lane, g.els, self._target(g)) for g in plan.groups]))
        )

    def _tell(self, wanted: _Wanted) -> None:
        if wanted != self._told:
            self._told = wanted
            self._engine.detail = wanted[0]
            self._engine.watch([Watch(*watch) for watch in wanted[1]])

    def _target(self, group: _Group) -> int:
        """Return how far the lane will be when the first counter of the group overflows."""
        values = self.pe.evcntr
        remaining = [mask + 1 - (values[i] & mask) for i, mask in group.counters]
        if group.cycles:
            remaining.append(self._cycles_to_overflow())
        if group.instructions:
            remaining.append((1 << 64) - self.pe.icntr)
        target = min(remaining)
        for el in (0, 1):
            if (group.els >> el) & 1:
                target += self._seen[el][group.lane]
        return target

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
        idle = self._plan().idle and not self.place.sees_all
        if not idle:
            self.sync()
        outcome = self._access(el, key, write, value)
        again = outcome == door.AGAIN
        if again:
            outcome = self._access(el, key, write, value)
        exited = again or outcome in (door.TRAPPED, door.TRAPPED_UNDEFINED)
        if exited or (write and outcome == door.DIRECT):
            self._service()
            if idle and not self._plan().idle:
                self._forget()
            self._seen[el][Lane.INST] += outcome == door.TRAPPED  # emulated by the host: the guest retires nothing
            self._changed()
        if exited:
            self._on_level(self.vcpu.irq_level == 1)
        if outcome == door.TO_EL1:
            return 0, sysreg.sys64_esr(key, 0, int(write))
        if outcome in (door.UNDEFINED, door.TRAPPED_UNDEFINED):
            return 0, sysreg.undefined_esr()
        return self.vcpu.value, None

    def _access(self, el: int, key: int, write: bool, value: int) -> int:
        place = self.place
        now = self.now() if self._timed else 0
        outcome = door.guest_access(place.world, place.c, place.v, el, key, int(write), value, now)
        self.accesses[key, outcome] += 1
        return outcome


def make_plan(pe: Pe) -> _Plan:
    """Ask the semantics what counts now."""
    counting = (pmu.count_pmu_events(pe, 0), pmu.count_pmu_events(pe, 1))
    feeds = (_feeds(pe, counting[0]), _feeds(pe, counting[1]))
    return _Plan(
        counting,
        (pmu.chained_counters(pe, counting[0]), pmu.chained_counters(pe, counting[1])),
        feeds,
        _groups(pe, counting),
        detail=any(feed.lane in DECODED for feed in (*feeds[0], *feeds[1])),
        idle=not any(feeds) and (counting[0] | counting[1]) >> sysreg.CYCLE == 0,
    )


def _counters_of_lanes(pe: Pe, counting: int) -> Iterator[tuple[int, Lane]]:
    for i in range(pe.core.event_counters):
        event = pe.evtyper[i] & pmu.EVENT_FIELD
        lane = LANE_OF_EVENT.get(event)
        if (counting >> i) & 1 and lane is not None and pmu.is_implemented(pe, event):
            yield i, lane


def _feeds(pe: Pe, counting: int) -> tuple[_Feed, ...]:
    long = pmu.long_counters(pe)
    by_lane: dict[Lane, list[int]] = {}
    for i, lane in _counters_of_lanes(pe, counting):
        by_lane.setdefault(lane, []).append(i)
    return tuple(
        _Feed(lane, sum(1 << i for i in counters), tuple((i, (long >> i) & 1) for i in counters))
        for lane, counters in by_lane.items()
    )


def _groups(pe: Pe, counting: tuple[int, int]) -> tuple[_Group, ...]:
    long, either = pmu.long_counters(pe), counting[0] | counting[1]
    members: dict[tuple[Lane, int], list[int]] = {}
    counters = [*_counters_of_lanes(pe, either)]
    if (either >> sysreg.CYCLE) & 1:
        counters.append((sysreg.CYCLE, Lane.INST))
    if (either >> sysreg.INSTRUCTION) & 1:
        counters.append((sysreg.INSTRUCTION, Lane.INST))
    for i, lane in counters:
        els = ((counting[0] >> i) & 1) | (((counting[1] >> i) & 1) << 1)
        members.setdefault((lane, els), []).append(i)
    return tuple(
        _Group(
            lane,
            els,
            tuple((i, (1 << (64 if (long >> i) & 1 else 32)) - 1) for i in group if i < sysreg.CYCLE),
            sysreg.CYCLE in group,
            sysreg.INSTRUCTION in group,
        )
        for (lane, els), group in members.items()
    )
