"""KVM's PMU for a guest with a virtual EL2, as arch/arm64/kvm/{emulate-nested,sys_regs,pmu-emul}.c behave.

Written down once more and with nothing of arch/ or kvm/. Only what operations whose answers do not depend on time can
show: six event counters, no perf event that ever counts.
"""

from __future__ import annotations

from lab.qemu_pmu import (
    CCFILTR,
    CCNTR,
    CEID0,
    CEID1,
    CNTENCLR,
    CNTENSET,
    COUNTERS,
    EVCNTR,
    EVTYPER,
    FGR,
    FGT,
    INTENCLR,
    INTENSET,
    MASK64,
    MDCR,
    MMIR,
    OVSCLR,
    OVSSET,
    PMCR,
    SELR,
    SKIPPED_READ,
    SWINC,
    USERENR,
    XEVCNTR,
    XEVTYPER,
    Answer,
    N,
    esr_of_trap,
)

UNDEFINED = 0x0200_0000
CYCLE = 31


class NestedKvmPmu:
    evtyper_mask = 0xFC00_FFFF
    """kvm_pmu_evtyper_mask, of a guest that is shown EL2 and EL3."""

    def __init__(self) -> None:
        self.pmcr = self.cnten = self.inten = self.ovs = self.selr = self.userenr = 0
        self.counter = [0] * 32
        self.evtyper = [0] * 32
        self.mdcr, self.fgr, self.fgw = N, 0, 0

    def hyp(self) -> int:
        """kvm_pmu_hyp_counter_mask."""
        return 0x3F & ~((1 << (self.mdcr & 31)) - 1)

    def answer(self, el: int, write: int, register: int, value: int) -> Answer:
        if register >= MDCR:
            if register == MDCR:
                self.mdcr = value
            elif register == FGR:
                self.fgr = value
            else:
                self.fgw = value
            return 0, 0, 0
        skipped = 0 if write else SKIPPED_READ
        if el == 0 and (register in (INTENSET, INTENCLR, MMIR) or (register == USERENR and write)):
            return skipped, 1, UNDEFINED  # by the hardware, without KVM
        if EVCNTR + N <= register < EVTYPER or EVTYPER + N <= register < CCFILTR:
            return skipped, max(el, 1), UNDEFINED  # so are counters that the hardware has not
        if el < 2 and self.forwarded(write, register):
            return skipped, 2, esr_of_trap(register, write)
        read = self.emulate(el, write, register, value)
        if read is None:
            return skipped, max(el, 1), UNDEFINED
        return (0 if write else read), 0, 0

    def index(self, register: int) -> int:
        """The counter that an access is about; the cycle counter has 31."""
        if register in (XEVCNTR, XEVTYPER):
            return self.selr
        if EVCNTR <= register < EVTYPER:
            return register - EVCNTR
        if EVTYPER <= register <= CCFILTR:
            return register - EVTYPER
        return CYCLE

    def forwarded(self, write: int, register: int) -> bool:
        """triage_sysreg_trap: fine-grained traps (which do not know the PMX registers), then TPM, TPMCR and HPMN."""
        bits = self.fgw if write else self.fgr
        bit = {XEVTYPER: 63, XEVCNTR: 63}.get(register, FGT.get(register, 63))
        if EVCNTR <= register < EVTYPER:
            bit = 12
        elif EVTYPER <= register < CCFILTR:
            bit = 13
        elif write:
            bit = {SWINC: 20, PMCR: 21}.get(register, bit)
        elif register == MMIR:
            bit = 22
        if bits >> bit & 1 or self.mdcr >> 6 & 1 or (register == PMCR and self.mdcr >> 5 & 1):
            return True
        return bool(self.hyp() >> self.index(register) & 1)

    def emulate(self, el: int, write: int, register: int, value: int) -> int | None:
        """access_*: what a read gives (0 for a write), None for kvm_inject_undefined."""
        by_counter = register in (XEVCNTR, XEVTYPER) or register >= EVCNTR
        allowing = 1
        if register == SWINC:
            allowing |= 2
        if register == CCNTR and not write:
            allowing |= 4
        if register == SELR or (not write and (register == XEVCNTR or EVCNTR <= register < EVTYPER)):
            allowing |= 8
        if el == 0 and register != USERENR and not self.userenr & allowing:
            return None
        i = self.index(register)
        if by_counter and i >= N and i != CYCLE:
            return None
        if write:
            self.write(el, register, i, value)
            return 0
        return self.read(el, register, i)

    def read(self, el: int, register: int, i: int) -> int:
        if register == PMCR:
            return 0x3000 & ~0xF800 | (N if el == 2 else min(self.mdcr & 31, N)) << 11 | self.pmcr
        if register in (XEVTYPER, CCFILTR) or register >= EVTYPER:
            return self.evtyper[i]
        if register in (XEVCNTR, CCNTR) or register >= EVCNTR:
            return self.counter[i]
        return {
            CNTENSET: self.cnten,
            CNTENCLR: self.cnten,
            OVSCLR: self.ovs,
            OVSSET: self.ovs,
            INTENSET: self.inten,
            INTENCLR: self.inten,
            SELR: self.selr,
            CEID0: 0x4002_0001,
            CEID1: 0x1000_0018,
            USERENR: self.userenr,
            MMIR: 0,
        }[register]

    def write(self, el: int, register: int, i: int, value: int) -> None:
        mask = value & COUNTERS & ~(self.hyp() if el < 2 else 0)
        if register in (XEVTYPER, CCFILTR) or register >= EVTYPER:
            self.evtyper[i] = value & self.evtyper_mask
        elif register in (XEVCNTR, CCNTR) or register >= EVCNTR:
            self.counter[i] = value
        elif register == PMCR:
            if (self.pmcr ^ value) & 1 and el < 2:
                self.reload()
            self.pmcr = value & 0xF9
            if value & 4:
                self.counter[CYCLE] = 0
            for n in range(N):
                if value & 2 and (el == 2 or not self.hyp() >> n & 1):
                    self.counter[n] = 0
        elif register == CNTENSET:
            self.cnten |= mask
        elif register == CNTENCLR:
            self.cnten &= ~mask
        elif register == OVSSET:
            self.ovs |= mask
        elif register == OVSCLR:
            self.ovs &= ~mask
        elif register == INTENSET:
            self.inten |= mask
        elif register == INTENCLR:
            self.inten &= ~mask
        elif register == SELR:
            self.selr = value & 31
        elif register == USERENR:
            self.userenr = value & 15
        elif register == SWINC:
            self.increment(mask & ~(1 << CYCLE), 0)

    def reload(self) -> None:
        """KVM_REQ_RELOAD_PMU: kvm_vcpu_reload_pmu, whose mask goes by the PMCR_EL0.N that this Exception level sees."""
        self.cnten &= ~self.hyp()
        self.inten &= ~self.hyp()
        self.ovs &= ~self.hyp()

    def increment(self, mask: int, event: int) -> None:
        """kvm_pmu_counter_increment: gated by PMCR_EL0.E and PMCNTEN, by no filter and no range."""
        if not self.pmcr & 1:
            return
        for n in range(N):
            if not (mask & self.cnten) >> n & 1 or self.evtyper[n] & 0xFFFF != event:
                continue
            new = self.counter[n] = self.counter[n] + 1 & MASK64
            long = self.mdcr >> 26 & 1 if self.hyp() >> n & 1 else self.pmcr >> 7 & 1
            if new if long else new & 0xFFFF_FFFF:
                continue
            self.ovs |= 1 << n
            if n % 2 == 0 and not long:
                self.increment(2 << n, 0x1E)


class GuestKvmPmu(NestedKvmPmu):
    """The same for a guest without a virtual EL2, which runs at EL1 what it would at EL2."""

    evtyper_mask = 0xC800_FFFF
    """It is shown no EL3."""

    def answer(self, el: int, write: int, register: int, value: int) -> Answer:
        return super().answer(min(el, 1), write, register, value)
