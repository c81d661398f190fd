"""Which system registers a guest reaches, and what an access to each does, before a machine adds its own.

Everything that is not named here is UNDEFINED. The ID registers describe what the engine can do: AArch64 only, EL0 and
EL1, little endian, ARMv8.0 with CRC32 and the crypto extension, no debug events, no SVE, pointer authentication, MTE,
RAS, SPE, trace or AMU. The PMU, the interrupt controller and the timers belong to the machine.
"""

from enum import IntEnum

from pmuvisor.arch.sysreg import encode
from pmuvisor.board import native


class Action(IntEnum):
    """What an MRS, MSR or system instruction does. EL0 reaches only encodings with op1 = 3."""

    UNDEF = native.UNDEF
    PASS = native.PASS
    """Unicorn does it, with its own access checks. Only registers known to be safe."""
    CONST = native.CONST
    """Reads give the value; writes are UNDEFINED."""
    STORE = native.STORE
    """A register without effect: reads give what was written last, at first the value."""
    CLOCK = native.CLOCK
    """Reads give the engine's clock; writes are UNDEFINED."""
    CALL = native.CALL
    """The machine's `on_sysreg` does it."""


CNTFRQ_EL0, CNTPCT_EL0, CNTVCT_EL0 = (encode(3, 3, 14, 0, n) for n in range(3))
ISR_EL1 = encode(3, 0, 12, 1, 0)
MPIDR_EL1 = encode(3, 0, 0, 0, 5)
TLBI_OP2 = (0, 1, 2, 3, 5, 7)  # VMALLE1, VAE1, ASIDE1, VAAE1, VALE1, VAALE1
BREAKPOINTS, WATCHPOINTS = 6, 4

PASS = {
    "SCTLR_EL1": (3, 0, 1, 0, 0),
    "CPACR_EL1": (3, 0, 1, 0, 2),
    "TTBR0_EL1": (3, 0, 2, 0, 0),
    "TTBR1_EL1": (3, 0, 2, 0, 1),
    "TCR_EL1": (3, 0, 2, 0, 2),
    "SPSR_EL1": (3, 0, 4, 0, 0),
    "ELR_EL1": (3, 0, 4, 0, 1),
    "SP_EL0": (3, 0, 4, 1, 0),
    "SPSel": (3, 0, 4, 2, 0),
    "CurrentEL": (3, 0, 4, 2, 2),
    "ESR_EL1": (3, 0, 5, 2, 0),
    "FAR_EL1": (3, 0, 6, 0, 0),
    "PAR_EL1": (3, 0, 7, 4, 0),
    "MAIR_EL1": (3, 0, 10, 2, 0),
    "VBAR_EL1": (3, 0, 12, 0, 0),
    "CONTEXTIDR_EL1": (3, 0, 13, 0, 1),
    "TPIDR_EL1": (3, 0, 13, 0, 4),
    "CCSIDR_EL1": (3, 1, 0, 0, 0),
    "CLIDR_EL1": (3, 1, 0, 0, 1),
    "CSSELR_EL1": (3, 2, 0, 0, 0),
    "CTR_EL0": (3, 3, 0, 0, 1),
    "DCZID_EL0": (3, 3, 0, 0, 7),
    "NZCV": (3, 3, 4, 2, 0),
    "DAIF": (3, 3, 4, 2, 1),
    "FPCR": (3, 3, 4, 4, 0),
    "FPSR": (3, 3, 4, 4, 1),
    "TPIDR_EL0": (3, 3, 13, 0, 2),
    "TPIDRRO_EL0": (3, 3, 13, 0, 3),
    "IC IALLUIS": (1, 0, 7, 1, 0),
    "IC IALLU": (1, 0, 7, 5, 0),
    "IC IVAU": (1, 3, 7, 5, 1),
    "DC IVAC": (1, 0, 7, 6, 1),
    "DC ISW": (1, 0, 7, 6, 2),
    "DC CSW": (1, 0, 7, 10, 2),
    "DC CISW": (1, 0, 7, 14, 2),
    "DC ZVA": (1, 3, 7, 4, 1),
    "DC CVAC": (1, 3, 7, 10, 1),
    "DC CVAU": (1, 3, 7, 11, 1),
    "DC CIVAC": (1, 3, 7, 14, 1),
    "AT S1E1R": (1, 0, 7, 8, 0),
    "AT S1E1W": (1, 0, 7, 8, 1),
    "AT S1E0R": (1, 0, 7, 8, 2),
    "AT S1E0W": (1, 0, 7, 8, 3),
}

CONST = {
    # Implementer 0 is reserved for software: no guest looks for the errata of a real core, or works around them.
    "MIDR_EL1": ((3, 0, 0, 0, 0), 0xF << 16 | 0x505 << 4),
    "MPIDR_EL1": ((3, 0, 0, 0, 5), 1 << 31),
    "REVIDR_EL1": ((3, 0, 0, 0, 6), 0),
    "AIDR_EL1": ((3, 1, 0, 0, 7), 0),
    # CSV3 and CSV2: nothing speculates here. GIC system registers. EL1 and EL0 AArch64 only.
    "ID_AA64PFR0_EL1": ((3, 0, 0, 4, 0), 1 << 60 | 1 << 56 | 1 << 24 | 0x11),
    "ID_AA64DFR0_EL1": ((3, 0, 0, 5, 0), 1 << 28 | (WATCHPOINTS - 1) << 20 | (BREAKPOINTS - 1) << 12 | 6),
    "ID_AA64ISAR0_EL1": ((3, 0, 0, 6, 0), 0x1_1120),  # CRC32, SHA256, SHA1, AES with PMULL
    "ID_AA64MMFR0_EL1": ((3, 0, 0, 7, 0), 0x24),  # 44-bit physical addresses, 16-bit ASIDs, 4K and 64K granules
    "ISR_EL1": ((3, 0, 12, 1, 0), 0),
    "CNTFRQ_EL0": ((3, 3, 14, 0, 0), 62_500_000),
    "MDRAR_EL1": ((2, 0, 1, 0, 0), 0),
    "OSLSR_EL1": ((2, 0, 1, 1, 4), 8),  # the OS lock is implemented, and not locked
    "DBGAUTHSTATUS_EL1": ((2, 0, 7, 14, 6), 0),
    "MDCCSR_EL0": ((2, 3, 0, 1, 0), 0),
}

# Debug registers keep what is written and do nothing: no breakpoint, watchpoint or single step ever fires.
STORE = {
    "ACTLR_EL1": (3, 0, 1, 0, 1),
    "AFSR0_EL1": (3, 0, 5, 1, 0),
    "AFSR1_EL1": (3, 0, 5, 1, 1),
    "AMAIR_EL1": (3, 0, 10, 3, 0),
    "CNTKCTL_EL1": (3, 0, 14, 1, 0),
    "OSDTRRX_EL1": (2, 0, 0, 0, 2),
    "MDCCINT_EL1": (2, 0, 0, 2, 0),
    "MDSCR_EL1": (2, 0, 0, 2, 2),
    "OSDTRTX_EL1": (2, 0, 0, 3, 2),
    "OSECCR_EL1": (2, 0, 0, 6, 2),
    "OSLAR_EL1": (2, 0, 1, 0, 4),
    "OSDLR_EL1": (2, 0, 1, 3, 4),
    "DBGPRCR_EL1": (2, 0, 1, 4, 4),
    "DBGCLAIMSET_EL1": (2, 0, 7, 8, 6),
    "DBGCLAIMCLR_EL1": (2, 0, 7, 9, 6),
    "DBGDTR_EL0": (2, 3, 0, 4, 0),
    "DBGDTRRX_EL0": (2, 3, 0, 5, 0),
}

SPECIAL = {
    encode(*PASS["SCTLR_EL1"]): native.SPECIAL_SCTLR,
    encode(*PASS["TCR_EL1"]): native.SPECIAL_TCR,
    encode(*PASS["TTBR0_EL1"]): native.SPECIAL_TTBR,
    encode(*PASS["TTBR1_EL1"]): native.SPECIAL_TTBR,
    encode(*PASS["SPSR_EL1"]): native.SPECIAL_SPSR,
    encode(*PASS["IC IALLUIS"]): native.SPECIAL_IC,
    encode(*PASS["IC IALLU"]): native.SPECIAL_IC,
    encode(*PASS["IC IVAU"]): native.SPECIAL_IC,
}
"""System registers whose writes the engine must notice, or check, before Unicorn makes them."""
SPECIAL.update({encode(1, 0, 8, crm, op2): native.SPECIAL_TLBI for crm in (3, 7) for op2 in TLBI_OP2})


def defaults() -> dict[int, tuple[Action, int]]:
    """Action and value of every register that is not UNDEFINED."""
    table: dict[int, tuple[Action, int]] = {}
    for crm in range(1, 8):  # the ID space: what is not allocated reads as zero
        table.update({encode(3, 0, 0, crm, op2): (Action.CONST, 0) for op2 in range(8)})
    table.update({encode(*encoding): (Action.PASS, 0) for encoding in PASS.values()})
    table.update(dict.fromkeys(SPECIAL, (Action.PASS, 0)))
    table.update({encode(*encoding): (Action.CONST, value) for encoding, value in CONST.values()})
    table.update({encode(*encoding): (Action.STORE, 0) for encoding in STORE.values()})
    for n in range(BREAKPOINTS):
        table.update({encode(2, 0, 0, n, op2): (Action.STORE, 0) for op2 in (4, 5)})
    for n in range(WATCHPOINTS):
        table.update({encode(2, 0, 0, n, op2): (Action.STORE, 0) for op2 in (6, 7)})
    table.update({CNTPCT_EL0: (Action.CLOCK, 0), CNTVCT_EL0: (Action.CLOCK, 0)})
    return table
