"""Guests for tests, assembled by hand: enough of A64 to write a bare-metal program without a cross compiler.

The encodings are those of the Arm ARM (DDI 0487, C6.2); a system register is named by its number as `sysreg.encode`
makes it, which is also how an MRS or MSR holds it.
"""

import struct
from collections.abc import Iterable, Mapping

FLAT_ENTRY = 0x4008_0000
"""Where a flat binary is loaded and entered."""
UART = 0x0900_0000
GICD = 0x0800_0000
GICR = 0x080A_0000
GICR_SGI_FRAME = 0x1_0000

NOP, WFI, ERET, RET, UDF = 0xD503201F, 0xD503207F, 0xD69F03E0, 0xD65F03C0, 0
ISB, DSB_SY = 0xD5033FDF, 0xD5033F9F
HVC, SMC, SVC, BRK = 0xD4000002, 0xD4000003, 0xD4000001, 0xD4200000
EQ, NE, HS, LO = 0, 1, 2, 3
XZR = SP = 31

PSCI_CPU_OFF, PSCI_CPU_ON, PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET = 0x8400_0002, 0xC400_0003, 0x8400_0008, 0x8400_0009

VBAR_EL1 = 0xC600
SCTLR_EL1 = 0xC080
ELR_EL1, SPSR_EL1 = 0xC201, 0xC200
ICC_PMR_EL1, ICC_IGRPEN1_EL1, ICC_SRE_EL1 = 0xC230, 0xC667, 0xC665
ICC_IAR1_EL1, ICC_EOIR1_EL1, ICC_SGI1R_EL1 = 0xC660, 0xC661, 0xC65D
CNTVCT_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0 = 0xDF02, 0xDF19, 0xDF1A


def movz(rd: int, value: int, shift: int = 0) -> int:
    return 0xD280_0000 | (shift // 16) << 21 | value << 5 | rd


def msr(register: int, rt: int) -> int:
    return 0xD500_0000 | register << 5 | rt


def mrs(rt: int, register: int) -> int:
    return 0xD520_0000 | register << 5 | rt


def daifset(bits: int) -> int:
    return 0xD503_40DF | bits << 8


def daifclr(bits: int) -> int:
    return 0xD503_40FF | bits << 8


def add(rd: int, rn: int, value: int) -> int:
    return 0x9100_0000 | value << 10 | rn << 5 | rd


def subs(rd: int, rn: int, value: int) -> int:
    return 0xF100_0000 | value << 10 | rn << 5 | rd


def cmp(rn: int, value: int) -> int:
    return subs(XZR, rn, value)


def copy(rd: int, rm: int) -> int:
    return 0xAA00_03E0 | rm << 16 | rd


def add_register(rd: int, rn: int, rm: int, shift: int = 0) -> int:
    return 0x8B00_0000 | rm << 16 | shift << 10 | rn << 5 | rd


def low_bits(rd: int, rn: int, bits: int) -> int:
    """AND with a mask of the lowest bits."""
    return 0x9240_0000 | bits - 1 << 10 | rn << 5 | rd


def and_register(rd: int, rn: int, rm: int) -> int:
    return 0x8A00_0000 | rm << 16 | rn << 5 | rd


def sub_register(rd: int, rn: int, rm: int) -> int:
    return 0xCB00_0000 | rm << 16 | rn << 5 | rd


def ldr(rt: int, rn: int, offset: int = 0) -> int:
    return 0xF940_0000 | offset // 8 << 10 | rn << 5 | rt


def str_(rt: int, rn: int, offset: int = 0) -> int:
    return 0xF900_0000 | offset // 8 << 10 | rn << 5 | rt


def ldrw(rt: int, rn: int, offset: int = 0) -> int:
    return 0xB940_0000 | offset // 4 << 10 | rn << 5 | rt


def strw(rt: int, rn: int, offset: int = 0) -> int:
    return 0xB900_0000 | offset // 4 << 10 | rn << 5 | rt


def br(rn: int) -> int:
    return 0xD61F_0000 | rn << 5


class Program:
    """A program under construction, to be loaded at `base`: words, labels, and branches that may lie before either."""

    def __init__(self, base: int = FLAT_ENTRY) -> None:
        self.base = base
        self._words: list[int] = []
        self._labels: dict[str, int] = {}
        self._branches: list[tuple[int, str]] = []

    def __call__(self, *words: int) -> "Program":
        self._words += words
        return self

    @property
    def here(self) -> int:
        return self.base + 4 * len(self._words)

    def label(self, name: str) -> "Program":
        assert name not in self._labels
        self._labels[name] = len(self._words)
        return self

    def align(self, size: int) -> "Program":
        while self.here % size:
            self(NOP)
        return self

    def mov(self, rd: int, value: int) -> "Program":
        self(movz(rd, value & 0xFFFF))
        for shift in (16, 32, 48):
            part = value >> shift & 0xFFFF
            if part:
                self(0xF280_0000 | shift // 16 << 21 | part << 5 | rd)
        return self

    def write(self, register: int, value: int, by: int = 9) -> "Program":
        """Write a system register through a general-purpose one."""
        return self.mov(by, value)(msr(register, by))

    def store32(self, address: int, value: int) -> "Program":
        return self.mov(9, address).mov(10, value)(strw(10, 9))

    def _branch(self, word: int, label: str) -> "Program":
        self._branches.append((len(self._words), label))
        return self(word)

    def b(self, label: str) -> "Program":
        return self._branch(0x1400_0000, label)

    def bl(self, label: str) -> "Program":
        return self._branch(0x9400_0000, label)

    def b_if(self, condition: int, label: str) -> "Program":
        return self._branch(0x5400_0000 | condition, label)

    def cbz(self, rt: int, label: str) -> "Program":
        return self._branch(0xB400_0000 | rt, label)

    def cbnz(self, rt: int, label: str) -> "Program":
        return self._branch(0xB500_0000 | rt, label)

    def adr(self, rd: int, label: str) -> "Program":
        return self._branch(0x1000_0000 | rd, label)

    def psci(self, function: int) -> "Program":
        return self.mov(0, function)(HVC)

    def gic(self, intid: int, cpu: int = 0) -> "Program":
        """Let this private interrupt through to this CPU, which still has to unmask it."""
        frame = GICR + cpu * 0x2_0000 + GICR_SGI_FRAME
        self.store32(GICD, 0x12)  # affinity routing, group 1
        self.store32(frame - GICR_SGI_FRAME + 0x14, 0)  # GICR_WAKER
        self.store32(frame + 0x80, 0xFFFF_FFFF)  # GICR_IGROUPR0
        self.store32(frame + 0x100, 1 << intid)  # GICR_ISENABLER0
        return self.write(ICC_SRE_EL1, 1)(ISB).write(ICC_PMR_EL1, 0xFF).write(ICC_IGRPEN1_EL1, 1)(ISB)

    def use_vectors(self) -> "Program":
        return self.adr(9, "vectors")(msr(VBAR_EL1, 9), ISB)

    def say(self, text: str) -> "Program":
        self.mov(9, UART)
        for byte in text.encode():
            self(movz(10, byte), strw(10, 9))
        return self

    def vectors(
        self, handlers: Mapping[int, Iterable[int]] | None = None, otherwise: Iterable[int] = (UDF,)
    ) -> "Program":
        """A vector table, labelled so: at each offset its handler's words, at all the others `otherwise`."""
        self.align(2048).label("vectors")
        for offset in range(0, 0x800, 0x80):
            self(*(handlers or {}).get(offset, otherwise))
            while self.here % 0x80:
                self(NOP)
        return self

    def address(self, label: str) -> int:
        return self.base + 4 * self._labels[label]

    def words(self) -> list[int]:
        words = list(self._words)
        for at, label in self._branches:
            words[at] |= self._offset_field(words[at], self._labels[label] - at)
        return words

    def code(self) -> bytes:
        words = self.words()
        return struct.pack(f"<{len(words)}I", *words)

    @staticmethod
    def _offset_field(word: int, distance: int) -> int:
        if word >> 26 & 0x1F == 0b00101:  # B, BL
            return distance & 0x3FF_FFFF
        return (distance & 0x7_FFFF) << 5  # B.cond, CBZ, CBNZ, and ADR to a word


def elf(code: bytes, address: int = 0x4020_0000, machine: int = 183, file_type: int = 2) -> bytes:
    """An ELF executable of one segment, entered at its first byte."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", file_type, machine, 1, address, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    header += struct.pack("<IIQQQQQQ", 1, 7, 0x1000, address, address, len(code), len(code), 0x1000)
    return header.ljust(0x1000, b"\0") + code
