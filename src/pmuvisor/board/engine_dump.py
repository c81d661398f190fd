"""The registers of an engine as text, for a person who asks why a guest stopped."""

import capstone

from pmuvisor.board.engine import Engine
from pmuvisor.board.engine_registers import PASS

CONTROL = ("ELR", "ESR", "FAR", "SPSR", "VBAR")


def dump(engine: Engine) -> str:
    """Return the registers and the instruction at the PC, in lines of at most 80 columns."""
    pairs = [("PC", engine.pc), ("PSTATE", engine.pstate), ("SP", engine.sp)]
    pairs += [(name, engine.read_register(*PASS[f"{name}_EL1"])) for name in CONTROL]
    general = [(f"X{n}", engine.get_x(n)) for n in range(31)]
    lines = [*_columns(pairs), *_columns(general), instruction(engine)]
    return "\n".join(lines)


def _columns(pairs: list[tuple[str, int]]) -> list[str]:
    cells = [f"{name:>6} {value:016x}" for name, value in pairs]
    return ["  ".join(cells[i : i + 3]) for i in range(0, len(cells), 3)]


def instruction(engine: Engine) -> str:
    """The instruction at the PC, or that there is none."""
    pc = engine.pc
    code = engine.fetch(pc)
    if code is None:
        return f"{pc:#x}: no memory"
    for one in capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM).disasm(code, pc):
        return f"{pc:#x}: {one.mnemonic} {one.op_str}".rstrip()[:80]
    return f"{pc:#x}: .inst {int.from_bytes(code, 'little'):#010x}"
