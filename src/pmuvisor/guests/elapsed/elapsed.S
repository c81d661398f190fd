/*
 * elapsed: a bare-metal guest that divides by the cycles that have elapsed, as Windows does, and dies if there were none.
 *
 * It starts the cycle counter once and for all. In each of ROUNDS rounds it does the same work, reads the counter, and
 * divides the work by the cycles since the round before. UDIV by zero gives 0 and no exception; so a compiler that is
 * to report it puts a comparison and a BRK before the division, and so does this guest. Its kernel, that is the
 * exception vector, then does what a kernel does that cannot go on: it says why in a line that begins with
 * "bugcheck: ", and asks for a reset.
 *
 * A cycle counter that stands still for a round is all that it takes: the architecture allows one to, and KVM's does on
 * a CPU whose PMU is not the VM's.
 */
#include "print.h"

#define PMCR_E              (1 << 0)
#define PMCR_C              (1 << 2)
#define PMCR_LC             (1 << 6)
#define CYCLE_COUNTER       (1 << 31)
#define PSCI_SYSTEM_RESET   0x84000009
#define ESR_BRK             0xf2000000      /* EC 0x3C, BRK of AArch64, and IL; the immediate is below */
#define DIVISION_BY_ZERO    1               /* the immediate of our BRK */

#define ROUNDS              200
#define LOOPS               500000          /* of 2 instructions */
#define WORK                (2 * LOOPS)

/* Registers that keep their meaning throughout; a macro or a print changes x0-x8 and x30 only. */
round           .req x19                    /* from 1 */
before          .req x20                    /* the cycle counter at the end of the last round */
cycles          .req x21                    /* elapsed in this one */
speed           .req x22                    /* instructions of its work in 1,000 of them */
slowest         .req x23
fastest         .req x24

    .text
    .globl  _start
_start:
    adrp    x0, stack_top
    add     x0, x0, :lo12:stack_top
    mov     sp, x0
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el1, x0
    msr     daifset, #15
    isb
    say     "elapsed: a guest that divides by elapsed cycles\n"
    mrs     x9, id_aa64dfr0_el1
    ubfx    x9, x9, #8, #4                  /* PMUVer: 0 none, 15 not an architected one */
    cbz     x9, no_pmu
    cmp     x9, #15
    b.eq    no_pmu
    bl      start_cycle_counter
    mov     round, #1
    mov     slowest, #-1
    mov     fastest, #0
1:  bl      work
    bl      divide
    add     round, round, #1
    cmp     round, #ROUNDS
    b.ls    1b
    say     "elapsed: cycles in each of "
    mov     x9, #ROUNDS
    say_dec x9
    say     " rounds: "
    say_dec slowest
    say     " to "
    say_dec fastest
    say     " instructions in 1,000 of them\n"
    b       power_off

no_pmu:
    say     "elapsed: FAIL no PMU\n"
    b       power_off

/* The cycle counter from 0, at EL1 and EL0, for ever; and no other, whatever is enabled at reset. */
start_cycle_counter:
    mov     x0, #0xffffffff
    msr     pmcntenclr_el0, x0
    msr     pmintenclr_el1, x0
    mov     x0, #(PMCR_E | PMCR_C | PMCR_LC)
    msr     pmcr_el0, x0
    msr     pmccfiltr_el0, xzr
    mov     x0, #CYCLE_COUNTER
    msr     pmcntenset_el0, x0
    isb
    mrs     before, pmccntr_el0
    ret

/* What a round does: WORK instructions. */
work:
    ldr     x0, =LOOPS
1:  subs    x0, x0, #1
    b.ne    1b
    ret

/* The division, as a compiler makes it that checks its divisor. */
divide:
    isb                                     /* the counter is read after the work */
    mrs     x9, pmccntr_el0
    sub     cycles, x9, before
    mov     before, x9
    ldr     x10, =(WORK * 1000)
    cbnz    cycles, 1f
    brk     #DIVISION_BY_ZERO
1:  udiv    speed, x10, cycles
    cmp     speed, slowest
    csel    slowest, speed, slowest, lo
    cmp     speed, fastest
    csel    fastest, speed, fastest, hi
    ret

    .section .vectors, "ax"                 /* of its own, so that only the table is aligned */
    .balign 2048
vectors:
    .rept   16
    .balign 128
    b       bugcheck
    .endr

    .section .text.bugcheck, "ax"
/* Does not return. Every exception comes here: none but the BRK of the division is expected. */
bugcheck:
    mrs     x9, esr_el1
    ldr     x10, =(ESR_BRK | DIVISION_BY_ZERO)
    cmp     x9, x10
    b.ne    1f
    say     "bugcheck: division by zero: no cycles elapsed in round "
    say_dec round
    say     "\n"
    b       reset
1:  say     "bugcheck: unexpected exception: ESR "
    say_hex x9
    say     " ELR "
    mrs     x9, elr_el1
    say_hex x9
    say     "\n"
reset:
    ldr     x0, =PSCI_SYSTEM_RESET
    hvc     #0
1:  wfi                                     /* no PSCI here: stop as well as a guest can */
    b       1b
