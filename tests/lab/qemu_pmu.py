"""QEMU's PMU as its target/arm/cpregs-pmu.c and helper.c behave, written down once more and with nothing of arch/.

Only what operations whose answers do not depend on time can show: `-cpu max` without EL3, six event counters, none of
them counting cycles or instructions. It stands in for QEMU where a test needs answers that no file holds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

N = 6
COUNTERS = 0x8000_003F
SKIPPED_READ = 0xBAD0_BAD0_BAD0_BAD0
MASK64 = (1 << 64) - 1

PMCR, CNTENSET, CNTENCLR, OVSCLR, SWINC, SELR, CEID0, CEID1 = range(8)
CCNTR, XEVTYPER, XEVCNTR, USERENR, OVSSET, INTENSET, INTENCLR, MMIR = range(8, 16)
EVCNTR, EVTYPER, CCFILTR = 16, 47, 78
MDCR, FGR, FGW = 200, 201, 202

# CRn, CRm, op2 of registers 0 to 15; op0 is 3, op1 is 3 but for the three of EL1.
ENCODINGS = [(9, 12, n) for n in range(8)]
ENCODINGS += [(9, 13, 0), (9, 13, 1), (9, 13, 2), (9, 14, 0), (9, 14, 3), (9, 14, 1), (9, 14, 2), (9, 14, 6)]
FGT = {CNTENSET: 16, CNTENCLR: 16, OVSCLR: 18, OVSSET: 18, INTENSET: 17, INTENCLR: 17, SELR: 19, CCNTR: 15, CCFILTR: 14}
FGT |= {XEVTYPER: 13, XEVCNTR: 12, CEID0: 58, CEID1: 58}

Answer = tuple[int, int, int]
Operation = tuple[int, int, int, int]
"""Exception level, 1 for a write, the file's register number, the value."""


def encoding(register: int) -> tuple[int, int, int]:
    """CRn, CRm and op2 of any register of the file but the three of EL2."""
    if register < EVCNTR:
        return ENCODINGS[register]
    n, base = (register - EVTYPER, 12) if register >= EVTYPER else (register - EVCNTR, 8)
    return 14, base + n // 8, n % 8


def esr_of_trap(register: int, write: int) -> int:
    crn, crm, op2 = encoding(register)
    op1 = 0 if register in (INTENSET, INTENCLR, MMIR) else 3
    return 0x6200_0000 | 3 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1 | (1 - write)


def operations_of(data: bytes) -> Iterator[Operation]:
    for el, write, register, _, _, value in struct.iter_unpack("<BBBBIQ", data):
        yield el, write, register, value


def answer_bytes(answers: list[Answer]) -> bytes:
    return b"".join(struct.pack("<QIIQ", value, el, esr, 0) for value, el, esr in answers)


class QemuPmu:
    def __init__(self) -> None:
        self.pmcr = self.cnten = self.inten = self.ovs = self.selr = self.userenr = self.ccntr = self.ccfiltr = 0
        self.evcntr = [0] * N
        self.evtyper = [0] * N
        self.mdcr, self.fgr, self.fgw = N, 0, 0

    def answer(self, el: int, write: int, register: int, value: int) -> Answer:
        if register >= MDCR:
            self.mdcr, self.fgr, self.fgw = (
                value if register == which else old
                for which, old in ((MDCR, self.mdcr), (FGR, self.fgr), (FGW, self.fgw))
            )
            return 0, 0, 0
        skipped = 0 if write else SKIPPED_READ
        target = self.trap_target(el, write, register)
        if target < 0:
            return skipped, max(el, 1), 0x0200_0000
        if target:
            return skipped, target, esr_of_trap(register, write)
        if write:
            self.write(el, register, value)
            return 0, 0, 0
        return self.read(el, register), 0, 0

    # ---- the access functions, then fine-grained traps ----------------------------------------------------------

    def trap_target(self, el: int, write: int, register: int) -> int:
        """The Exception level that takes the access, 0 for none, -1 where the instruction is UNDEFINED."""
        if EVCNTR + N <= register < EVTYPER or EVTYPER + N <= register < CCFILTR:
            return -1  # only the implemented ones are defined
        if el == 0 and (register in (INTENSET, INTENCLR, MMIR) or (register == USERENR and write)):
            return -1
        target = self.accessfn(el, write, register)
        if not target and el < 2:
            bits = self.fgw if write else self.fgr
            if EVCNTR <= register < EVTYPER:
                bit = 12
            elif EVTYPER <= register < CCFILTR:
                bit = 13
            elif write:
                bit = {SWINC: 20, PMCR: 21}.get(register, FGT.get(register, 63))
            else:
                bit = {MMIR: 22}.get(register, FGT.get(register, 63))
            target = 2 * (bits >> bit & 1)
        return target

    def accessfn(self, el: int, write: int, register: int) -> int:
        if el == 0:
            er, cr, sw = self.userenr >> 3 & 1, self.userenr >> 2 & 1, self.userenr >> 1 & 1
            if er and (register == SELR or (not write and (register == XEVCNTR or EVCNTR <= register < EVTYPER))):
                return 0
            if (cr and register == CCNTR and not write) or (sw and register == SWINC):
                return 0
            if register != USERENR and not self.userenr & 1:
                return 1
        if el < 2 and (self.mdcr >> 6 & 1 or (self.mdcr >> 5 & 1 and register == PMCR)):
            return 2
        return 0

    # ---- reads and writes ---------------------------------------------------------------------------------------

    def read(self, el: int, register: int) -> int:
        if register == XEVTYPER:
            return self.ccfiltr if self.selr == 31 else self.evtyper[self.selr] if self.selr < N else 0
        if register == XEVCNTR:
            return self.evcntr[self.selr] if self.selr < N else 0
        if EVTYPER <= register < CCFILTR:
            return self.evtyper[register - EVTYPER]
        if EVCNTR <= register < EVTYPER:
            return self.evcntr[register - EVCNTR]
        if register == PMCR:
            n = self.mdcr & 31 if el < 2 else N
            return 0x4101_0000 | n << 11 | self.pmcr
        return {
            CNTENSET: self.cnten,
            CNTENCLR: self.cnten,
            OVSCLR: self.ovs,
            OVSSET: self.ovs,
            INTENSET: self.inten,
            INTENCLR: self.inten,
            SELR: self.selr,
            CEID0: 0x20001,
            CEID1: 0x1000_0018,
            CCNTR: self.ccntr,
            USERENR: self.userenr,
            MMIR: 0,
            CCFILTR: self.ccfiltr,
        }[register]

    def write(self, el: int, register: int, value: int) -> None:
        if register in (XEVTYPER, XEVCNTR):
            if register == XEVTYPER and self.selr == 31:
                register = CCFILTR
            elif self.selr >= N:
                return
            else:
                register = (EVTYPER if register == XEVTYPER else EVCNTR) + self.selr
        if register == CCFILTR:
            self.ccfiltr = value & 0xFC00_0000
        elif register >= EVTYPER:
            self.evtyper[register - EVTYPER] = value & 0xFE00_FFFF
        elif register >= EVCNTR:
            self.evcntr[register - EVCNTR] = value
        elif register == PMCR:
            if value & 4:
                self.ccntr = 0
            if value & 2:
                self.evcntr = [0] * N
            self.pmcr = value & 0xF9
        elif register == SWINC:
            self.software_increment(el, value)
        else:
            self.write_simple(register, value)

    def write_simple(self, register: int, value: int) -> None:
        mask = value & COUNTERS
        if register == CNTENSET:
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
        elif register == CCNTR:
            self.ccntr = value

    def software_increment(self, el: int, value: int) -> None:
        """pmswinc_write and pmu_counter_enabled: no CHAIN, and with neither EL3 nor Secure state no NSK and NSU."""
        hpmn = self.mdcr & 31
        for i in range(N):
            kind = self.evtyper[i]
            enabled = self.pmcr & 1 if i < hpmn else self.mdcr >> 7 & 1
            prohibited = el == 2 and i < hpmn and self.mdcr >> 17 & 1
            filtered = (kind >> 30 & 1, kind >> 31 & 1, 1 - (kind >> 27 & 1))[el]
            if not (value & self.cnten) >> i & 1 or not enabled or prohibited or filtered or kind & 0xFFFF:
                continue
            long = self.mdcr >> 26 & 1 if i >= hpmn else self.pmcr >> 7 & 1
            new = self.evcntr[i] + 1 & MASK64
            if self.evcntr[i] & ~new & (1 << 63 if long else 1 << 31):
                self.ovs |= 1 << i
            self.evcntr[i] = new
