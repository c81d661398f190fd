"""What the `emulated` design answers to a guest's operations, which `conform --reference el1` compares."""

from __future__ import annotations

from pmuvisor.arch.cores import Core
from pmuvisor.arch.sysreg import sys64_esr, undefined_esr
from pmuvisor.board.machine import Config, own_cpus
from pmuvisor.kvm import access, emulated
from pmuvisor.lab.references import CONTROLS
from pmuvisor.lab.vectors import SKIPPED_READ, Answer, Operation


class GuestAnswers:
    """A guest with one vCPU and all event counters of `core`, whose PMU was just reset; no counter counts time.

    An operation at EL2 is made at EL1, as a guest without a virtual EL2 does.
    """

    def __init__(self, core: Core) -> None:
        kvm = own_cpus(Config(core, counters=core.event_counters, design="emulated"), core.events)
        self.place = kvm.places[0]
        self.place.load(0)

    def answer(self, op: Operation) -> Answer:
        """Carry out an operation, and return what the guest sees."""
        place, el = self.place, min(op.el, 1)
        skipped = 0 if op.write else SKIPPED_READ
        if op.key in CONTROLS:
            return Answer(skipped, 1, undefined_esr())
        outcome = access.guest_access(place.world, place.c, place.v, el, op.key, op.write, op.value, 0)
        if outcome in (access.UNDEFINED, access.TRAPPED_UNDEFINED):
            return Answer(skipped, 1, undefined_esr())
        if outcome == access.TO_EL1:
            return Answer(skipped, 1, sys64_esr(op.key, op.rt, op.write))
        return Answer(0 if op.write else place.vcpu.value, 0, 0)

    def event_counter_of(self, op: Operation) -> int:
        """Return the event counter that an operation is about, or 31 where it is about none."""
        return emulated.counter_index(self.place.vcpu, op.key)
