"""Random programs in the manner of tests/guests/el1, in which the board and QEMU have no known deviation.

They count with random events, filters and overflow widths, with loops, branches, loads, stores, SVCs, aborts and
stretches at EL0 between the accesses, and a timer interrupts them. They keep away from what deviates: overflow
interrupts, reads at EL0, UNDEFINED instructions, and trapped registers while something counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable

TYPES = [
    "INST_RETIRED", "CPU_CYCLES", "SW_INCR", "INST_RETIRED | EXCLUDE_EL1", "INST_RETIRED | EXCLUDE_EL0",
    "CPU_CYCLES | EXCLUDE_EL0",
]  # fmt: skip
CYCLE_FILTERS = ["0", "EXCLUDE_EL1", "EXCLUDE_EL0"]
CONTROLS = [f"PMCR_E{lc}{lp}" for lc in ("", "|PMCR_LC") for lp in ("", "|PMCR_LP")]
MASKS = [0x8000_003F, 0x8000_0000, 0x8000_000F, 0x30, 8, 4, 2, 1]
EVERYTHING = 0x8000_003F

HEAD = """\
#define PROGRAM "random"
#define SYNC_EL1 skip_el1
#define SYNC_EL0 skip_el0
#define IRQ_EL1 timer
#define IRQ_EL0 timer
#include "el1.h"
main:
    mov x27, x30
    bl gic_init
    ldr x21, =0x0b000000 /* where nothing is */
    address x22, scratch
"""
TAIL = """\
skip_el1:
    mrs x15, esr_el1
    lsr x16, x15, #26
    cmp x16, #0x15 /* SVC */
    b.eq 1f
    mrs x15, elr_el1
    add x15, x15, #4
    msr elr_el1, x15
1:  eret
skip_el0:
    mrs x15, esr_el1
    lsr x16, x15, #26
    cmp x16, #0x15
    b.ne 1f
    tst x15, #0xffff
    b.eq from_el0
    eret
1:  mrs x15, elr_el1
    add x15, x15, #4
    msr elr_el1, x15
    eret
timer: /* anywhere: it changes only x19 and x23 to x26 */
    mrs x25, pmevcntr0_el0
    mov x26, x17
    mrs x23, elr_el1
    adr x19, main
    sub x23, x23, x19
    mrs x24, ICC_IAR1_EL1
    msr cntv_ctl_el0, xzr
    keep "timer.at", x23
    keep "timer.intid", x24
    keep "timer.counter", x25
    mov x17, x26
    isb
    msr ICC_EOIR1_EL1, x24
    isb
    eret
    .bss
    .balign 16
scratch: .skip 64
"""


class _Writer:
    """One program as it is written."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.lines: list[str] = []
        self.el0: list[str] = []
        self.labels = 0
        self.kept = 0
        self.tick = 8
        self.controls = self.choose.choice(CONTROLS)

    def label(self) -> str:
        self.labels += 1
        return f"l{self.labels}"

    def keep(self, what: str, register: str) -> str:
        self.kept += 1
        return f'{register}; keep "{what}.{self.kept}", x9'

    def instructions(self, most: int) -> list[str]:
        """Up to `most` things that a program does when it leaves the PMU alone."""
        out: list[str] = []
        for _ in range(self.choose.randrange(1, most + 1)):
            label, kinds = self.label(), self.choose.randrange(12)
            out += [
                ["add x1, x1, #1", "nop"],
                ["ldr x2, [x22]"],
                ["str x2, [x22, #8]", "dmb ish"],
                [f"mov x3, #{self.choose.randrange(1, 40)}", f"{label}: subs x3, x3, #1", f"b.ne {label}"],
                [f"tbz x1, #{self.choose.randrange(3)}, {label}", "nop", f"{label}:"],
                ["ldp x4, x5, [x22]", "stp x5, x4, [x22]"],
                ["svc #1"],
                ["ldr x2, [x21]"],
                [f"adr x6, {label}", "br x6", "nop", f"{label}:"],
                ["isb"],
                ["add x1, x1, #3"],
                ["mul x1, x1, x1"],
            ][kinds]
        return out

    def value(self) -> int:
        """What a counter is set to: small, or soon at one of the bits that matter."""
        edge = self.choose.choice([0, 1 << 32, 1 << 64, (1 << 32) + (1 << 31)])
        return edge - self.choose.randrange(1, 300) if edge else self.choose.randrange(1000)

    def counter(self) -> str:
        return self.choose.choice(["pmccntr_el0", *[f"pmevcntr{n}_el0" for n in range(6)]])

    def enable(self) -> list[str]:
        return [f"ldr x0, ={self.choose.choice(MASKS)}", "msr pmcntenset_el0, x0"]

    def disable(self) -> list[str]:
        return [f"ldr x0, ={self.choose.choice(MASKS)}", "msr pmcntenclr_el0, x0"]

    def read(self) -> list[str]:
        return [self.keep("read", f"mrs x9, {self.counter()}")]

    def write(self) -> list[str]:
        return [f"ldr x0, ={self.value()}", f"msr {self.counter()}, x0"]

    def control(self) -> list[str]:
        bits = self.choose.choice(["", "|PMCR_P", "|PMCR_C"])
        controls = self.controls.replace("PMCR_E", self.choose.choice(["PMCR_E", "PMCR_E", "0"]))
        return [f"mov x0, #({controls}{bits})", "msr pmcr_el0, x0"]

    def increment(self) -> list[str]:
        return [f"mov x0, #{self.choose.randrange(64)}", "msr pmswinc_el0, x0"]

    def overflow(self) -> list[str]:
        """Read the overflow status, with all counters off: it is trapped, and QEMU brings it up to date only there."""
        clear = ["msr pmovsclr_el0, x0"] if self.choose.random() < 0.5 else []
        stop = [f"ldr x0, ={EVERYTHING}", "mrs x14, pmcntenset_el0", "msr pmcntenclr_el0, x0"]
        return [*stop, self.keep("ovs", "mrs x9, pmovsclr_el0"), *clear, "msr pmcntenset_el0, x14"]

    def go_to_el0(self) -> list[str]:
        label = self.label()
        self.el0 += [f"{label}:", *self.instructions(8), "leave"]
        return ["msr daifset, #2", f"el0 {label}, SPSR_EL0_IRQ", "msr daifclr, #2"]

    def set_timer(self) -> list[str]:
        """A deadline that may be past. It is no reading of the clock, which is another one's where a tick begins."""
        self.tick += self.choose.randrange(12)
        return [f"mov x0, #{self.tick}", "msr cntv_cval_el0, x0", "mov x0, #1", "msr cntv_ctl_el0, x0"]

    def program(self) -> str:
        for n in range(6):
            self.lines += [f"ldr x0, =({self.choose.choice(TYPES)})", f"msr pmevtyper{n}_el0, x0"]
        self.lines += [f"ldr x0, =({self.choose.choice(CYCLE_FILTERS)})", "msr pmccfiltr_el0, x0"]
        self.lines += [f"mov x0, #({self.controls})", "msr pmcr_el0, x0", "isb", "msr daifclr, #2"]
        steps: list[Callable[[], list[str]]] = [self.enable, self.enable, self.read, self.read, self.read, self.write]
        steps += [self.write, self.disable, self.control, self.increment, self.overflow, self.go_to_el0, self.set_timer]
        for _ in range(self.choose.randrange(30, 70)):
            self.lines += [*self.instructions(4), *self.choose.choice(steps)()]
        self.lines += ["msr daifset, #2", "msr cntv_ctl_el0, xzr", *self.overflow()]
        self.lines += [f"ldr x0, ={EVERYTHING}", "msr pmcntenclr_el0, x0"]
        counters = ["pmccntr_el0", *[f"pmevcntr{n}_el0" for n in range(6)]]
        self.lines += [self.keep("end", f"mrs x9, {counter}") for counter in counters]
        return HEAD + "".join(f"    {line}\n" for line in [*self.lines, "ret x27", *self.el0]) + TAIL


def random_program(seed: int) -> str:
    """The source of a program; the same for the same seed."""
    return _Writer(seed).program()
