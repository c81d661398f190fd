/* Counters that are about to overflow. */
#define IRQ_EL1 pmu_irq
#include "el1.h"

/* Counter 0 and the cycle counter begin at `start`; `more` instructions and one of the MSRs around them are counted. */
.macro approach name, start, more
    ldr     x0, =\start
    msr     pmevcntr0_el0, x0
    msr     pmccntr_el0, x0
    ldr     x20, =(CYCLE | 1)
    isb
    open    x20
    nops    \more
    close   x20
    mrs     x9, pmevcntr0_el0
    mrs     x10, pmccntr_el0
    mrs     x11, pmovsclr_el0
    keep    "\name\().value", x9
    keep    "\name\().ccntr", x10
    keep    "\name\().ovs", x11
    quiet
.endm

/* Lets the counter of x20 overflow in a straight line, with its interrupt. */
.macro interrupted name
    mov     x9, #0
    mov     x10, #0
    mov     x11, #0
    mov     x12, #0
    mov     x13, #0
    mov     x14, #0
    adr     x26, 1f
    msr     pmintenset_el1, x20
    msr     daifclr, #2
    isb
1:  open    x20
    nops    100
    close   x20
    nop
    nop
    msr     daifset, #2
    keep_irq "\name"
    quiet
.endm

    .text
