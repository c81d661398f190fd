"""Where QEMU 7.2 is known to print something else than the board, why, and what.

The reasons are from QEMU's documentation and from its source, as of that version: target/arm/helper.c for the PMU,
accel/tcg for -icount. Some are deviations from the architecture (LATE_EVENT, COUNTED_UNDEFINED), some are choices that
the architecture leaves open, some are no deviation of QEMU's but of the machine: it runs the program on a bare PE, the
board in a guest.
"""

from __future__ import annotations

from enum import Enum


class Deviation(Enum):
    """A reason."""

    NO_CHAIN = "QEMU has no CHAIN: its table pm_events holds SW_INCR, INST_RETIRED, CPU_CYCLES and STALL*"
    EVENTS = "PMCEID<n>_EL0: QEMU has STALL, which the board has not, and not what the board counts beyond QEMU's"
    LATE_EVENT = (
        "pmevcntr_op_finish() sets the timer for one count before an event counter overflows; there it sees no "
        "overflow yet and sets none again: the interrupt comes when something next touches the counter"
    )
    WRITE_ORDER = (
        "under -icount an instruction that accesses a counter is counted before it acts; on the board a direct access "
        "acts before its own instruction is counted. The Arm ARM leaves it open without an ISB. Where both ends of a "
        "count are such accesses it cancels out; at an overflow, and at a first read, it is one instruction"
    )
    COUNTED_UNDEFINED = (
        "under -icount a block is counted as a whole when it begins, and cpu_restore_state() takes back what a helper "
        "interrupts; where the translator itself raises the exception (UNDEFINED, BRK, a misaligned PC) nothing does, "
        "so an instruction that does not retire is counted"
    )
    TRAPPED = (
        "the board's host traps PMOVS*, PMEVTYPER<n> and PMCCFILTR (FEAT_FGT): an exit retires nothing in the guest"
    )
    DEVICE = "an access to an emulated device exits to the board's host, and retires nothing in the guest"
    WFI = "WFI exits to the board's host, and retires nothing in the guest"
    IDLE_TIME = (
        "QEMU's cycles are its virtual clock in ns, which also jumps to the next timer in a WFI; the board's cycle "
        "counter is a guest's, and stands still while the vCPU is not on a CPU"
    )
    NO_EL3 = (
        "QEMU's virt has no EL3 (secure=off), so NSK and NSU, RES0 there, keep what is written and filter nothing; the "
        "board's core has one"
    )
    FILTER_BITS = (
        "the bits that exist: QEMU keeps NSH, M and MT (in PMCCFILTR_EL0 NSH and M) whatever levels there are; the "
        "board has M, and not NSH, which KVM withholds, nor MT"
    )
    SELECTED = (
        "PMXEVCNTR_EL0 and PMXEVTYPER_EL0 of a counter that is not there are CONSTRAINED UNPREDICTABLE: QEMU reads "
        "zero and ignores writes; on the board the access is UNDEFINED"
    )
    PARTITION = (
        "event counter 6 exists on the board's PE, where it is the host's: at EL0 PMUSERENR_EL0 comes first; QEMU has "
        "no such counter"
    )
    FAR_NOT_VALID = "the board's external aborts say that FAR_EL1 is not valid (FnV), which the architecture allows"


D = Deviation
Labels = dict[str, int]


def _each(names: list[str], **parts: int) -> Labels:
    return {f"{name}.{part}": value for name in names for part, value in parts.items()}


CHAIN: Labels = {f"count.{n}.{odd}": 0 for n in (3, 4, 100) for odd in (1, 3)}
CHAIN |= {"both.1": 0xFFFF_FFFF, "both.3": 0xFFFF_FFFF, "both.ovs": 5, "filtered.3": 7}
CHAIN |= {"software.1": 0, "software.3": 0}

UNDEFINED = ["undefined", "no.register", "read.only", "beyond.n", "brk"]

EL1, EL0 = 49, 26
"""What tests/guests/el1/filters.S executes at each level."""

KNOWN: dict[str, dict[Deviation, Labels]] = {
    "access": {
        D.EVENTS: {"pmceid0_el0": 0x20101, "pmceid1_el0": 0x1000_0018},
        D.FILTER_BITS: {
            "bits.pmevtyper0_el0": 0xFE00_FFFF,
            "bits.pmevtyper5_el0": 0xFE00_FFFF,
            "bits.pmccfiltr_el0": 0xFC00_0000,
        },
        D.SELECTED: {"mrs x0,pmxevcntr_el0": 0, "msr pmxevtyper_el0,x0": 0},
        D.PARTITION: {
            **{f"{userenr}: mrs x0,pmevcntr6_el0": 0x200_0000 for userenr in (0, 2, 4)},
            **{f"{userenr}: msr pmevtyper6_el0,xzr": 0x200_0000 for userenr in (0, 2, 4, 8, 14)},
        },
    },
    "chain": {D.NO_CHAIN: CHAIN},
    "control": {
        D.TRAPPED: _each(["trapped.registers"], **{"0": 6, "1": 6, "ccntr": 6}),
        D.DEVICE: _each(["device"], **{"0": 5, "1": 5, "ccntr": 5}),
    },
    "el0": {
        D.WRITE_ORDER: {"read.el0": 1, "read.el0.next": 2, "read.el1": 6, "read.ccntr": 4},
        # Noticed at the SVC that leaves EL0, and taken where EL1 unmasks it.
        D.LATE_EVENT: {"irq.event.at": (1 << 64) - 0xB4},
    },
    "exceptions": {
        D.COUNTED_UNDEFINED: {
            **_each(UNDEFINED, before=6, after=17, cycles=17),
            **_each(["misaligned", "misaligned.nowhere"], before=7, after=18, cycles=18),
            "el0.all": 0x43,
            "el0.el0": 12,
        },
        D.FAR_NOT_VALID: {
            "load.esr": 0x9600_0010,
            "load.far": 0x0B00_0008,
            "store.esr": 0x9600_0050,
            "store.far": 0x0B00_0004,
            "pair.esr": 0x9600_0010,
            "pair.far": 0x0B00_0010,
            "el0.esrs": 0x812C_0020_7602_B000,
        },
    },
    "filters": {
        D.NO_EL3: {
            **{f"ns.{n}": count for n, count in enumerate((EL1 + EL0, EL1 + EL0, EL0, EL1, EL0, EL1))},
            **{f"both.{n}": count for n, count in enumerate((EL1 + EL0, 0, 0, 0))},
            "cycles.nsu.ccntr": EL1 + EL0,
        },
        D.TRAPPED: {"changed.0": 42, "changed.1": 63},
    },
    "interrupts": {
        # The counter is written after each overflow: the n-th is n instructions later. Behind the second a timer waits.
        D.WRITE_ORDER: {
            "irq.executed#4": 709 + 1,
            "irq.executed#9": 1390 + 2,
            "irq.executed#10": 1390 + 2,
            "irq.executed#15": 2049 + 3,
            "irq.executed#20": 2730 + 4,
            "irq.executed#26": 3389 + 5,
            "irq.executed#31": 4070 + 6,
            "irq.executed#36": 4752 + 7,
            "irq.executed#41": 5433 + 8,
        },
    },
    "overflow32": {
        D.LATE_EVENT: {"irq.event.counter": (1 << 32) + 51, "irq.event.at": 4 * 102},
        D.WRITE_ORDER: {"irq.cycle.cycles": (1 << 32) + 3, "irq.cycle.at": 4 * 51},
    },
    "overflow64": {
        D.LATE_EVENT: {"irq.event.counter": 51, "irq.event.at": 4 * 102},
        D.WRITE_ORDER: {"irq.cycle.cycles": 3, "irq.cycle.at": 4 * 51},
    },
    "swinc": {D.TRAPPED: {"overflow.3": 6}},
    "wfi": {
        D.WFI: {
            **{f"masked.{ticks}.inst": 12 for ticks in (1, 10, 1000, 65536)},
            **{f"unmasked.{ticks}.inst": 25 for ticks in (10, 1000)},
            "past.inst": 3,
        },
        D.IDLE_TIME: {
            "masked.1.cycles": 12,
            "masked.10.cycles": 0x99,
            "masked.1000.cycles": 0x3E80,
            "masked.65536.cycles": 0x10_0000,
        },
    },
}
