"""Guests for the engine's tests, and a reference that looks at one instruction at a time."""

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import capstone
import pytest
from unicorn import UC_HOOK_CODE, Uc

from pmuvisor.board.engine import RAM_BASE, Engine, GuestMemory, Lane, Stop

COMPILER = "aarch64-linux-gnu-gcc"
needs_assembler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")

RAM_SIZE = 16 << 20
STACK = RAM_BASE + 0x80_0000


@cache
def assemble(source: str, base: int = RAM_BASE) -> bytes:
    """The code of some assembly, linked to run at `base`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "guest.S").write_text(source)
        link = ["-nostdlib", "-static", f"-Wl,-Ttext={base:#x}", "-Wl,--build-id=none", "-Wl,-e,0"]
        elf, image = folder / "guest.elf", folder / "guest.bin"
        subprocess.run([COMPILER, "-march=armv8-a+crc", *link, "-o", elf, folder / "guest.S"], check=True)
        subprocess.run([COMPILER.replace("gcc", "objcopy"), "-O", "binary", elf, image], check=True)
        return image.read_bytes()


def no_sysreg(key: int, write: bool, value: int) -> int:
    raise AssertionError(f"unexpected access to {key:#x}")


def guest(
    code: bytes, on_sysreg: Callable[[int, bool, int], int] = no_sysreg, *, detail: bool = False, x0: int = 0
) -> Engine:
    """An engine about to run `code`, with a stack."""
    ram = GuestMemory(RAM_SIZE)
    ram.write(RAM_BASE, code)
    engine = Engine(ram, on_sysreg)
    engine.detail = detail
    engine.start(RAM_BASE, x0)
    engine.sp = STACK
    return engine


def words(*code: int) -> bytes:
    return struct.pack(f"<{len(code)}I", *code)


def registers(engine: Engine) -> list[int]:
    return [*(engine.get_x(n) for n in range(31)), engine.sp, engine.pc, engine.pstate]


LOADS = ("ld", "cas", "swp")
STORES = ("st", "cas", "swp")
IMMEDIATE = ("b", "bl", "cbz", "cbnz", "tbz", "tbnz")


def lanes_of(word: int, taken: bool) -> dict[Lane, int]:
    """What one instruction adds to the lanes that need decoding, by its mnemonic."""
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    name = next(decoder.disasm(struct.pack("<I", word), 0)).mnemonic
    added = dict.fromkeys(Lane, 0)
    atomic = name.startswith(("ldadd", "ldclr", "ldset", "ldeor", "ldsmax", "ldsmin", "ldumax", "ldumin"))
    added[Lane.LD] = int(name.startswith(LOADS))
    added[Lane.ST] = int(name.startswith(STORES) or atomic or word & 0xFFFFFFE0 == 0xD50B7420)
    added[Lane.MEM] = added[Lane.LD] + added[Lane.ST]
    added[Lane.BR_IMMED] = int(name in IMMEDIATE or name.startswith("b."))
    added[Lane.BR_RETURN] = int(name == "ret")
    added[Lane.BR] = int(added[Lane.BR_IMMED] or name in ("ret", "br", "blr"))
    added[Lane.PC_WRITE] = int((added[Lane.BR] and taken) or name == "eret")
    return added


class Stepper:
    """Runs an engine one instruction at a time and counts by itself."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.started: list[tuple[int, int]] = []
        self.lanes = [dict.fromkeys(Lane, 0) for _ in range(2)]
        engine._uc.hook_add(UC_HOOK_CODE, self._on_instruction)

    def _on_instruction(self, uc: Uc, address: int, size: int, _: object) -> None:
        self.started.append((address, self.engine.el))

    def step(self) -> Stop:
        """One instruction retires, or the run stops for another reason."""
        before = self.engine.total
        stop = self.engine.run(before + 1)
        if self.engine.total == before + 1:
            address, el = self.started[-1]
            word = int.from_bytes(self.engine.fetch(address) or b"", "little")
            self.lanes[el][Lane.INST] += 1
            for lane, n in lanes_of(word, self.engine.pc != address + 4).items():
                self.lanes[el][lane] += n
        return stop


COMPUTE = """
// Fills a table from a linear congruential generator, sorts it, sums it with CRCs; x0 rounds.
    mov   x19, x0
    mov   w20, #12345
    ldr   x21, =0x40100000
round:
    bl    fill
    bl    sort
    bl    sum
    str   x0, [x21, #1024]
    subs  x19, x19, #1
    b.ne  round
    wfi
    b     .
fill:
    stp   x29, x30, [sp, #-16]!
    mov   x2, #0
    ldr   w3, =1103515245
1:  mul   w20, w20, w3
    add   w20, w20, #57
    lsr   w4, w20, #7
    str   w4, [x21, x2, lsl #2]
    add   x2, x2, #1
    cmp   x2, #24
    b.lo  1b
    ldp   x29, x30, [sp], #16
    ret
sort:
    mov   x2, #23
2:  mov   x3, #0
    mov   x7, #0
3:  add   x4, x21, x3, lsl #2
    ldp   w5, w6, [x4]
    cmp   w5, w6
    b.ls  4f
    stp   w6, w5, [x4]
    mov   x7, #1
4:  add   x3, x3, #1
    cmp   x3, x2
    b.lo  3b
    cbz   x7, 5f
    subs  x2, x2, #1
    b.ne  2b
5:  ret
sum:
    stp   x29, x30, [sp, #-16]!
    mov   x0, #0
    mov   x2, #24
6:  sub   x2, x2, #1
    ldr   w3, [x21, x2, lsl #2]
    prfm  pldl1keep, [x21]
    tbnz  w3, #0, 7f
    adr   x9, mix
    blr   x9
7:  eor   x0, x0, x3
    ldxr  w4, [x21]
    stxr  w5, w4, [x21]
    cbnz  x2, 6b
    ldp   x29, x30, [sp], #16
    ret
mix:
    crc32w w0, w0, w3
    csel  x4, x0, x3, eq
    ret
"""
