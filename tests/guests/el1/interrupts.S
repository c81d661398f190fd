/* The virtual timer, the physical timer and the PMU interrupt one loop: where, in which order, and how often. */
#define PROGRAM "interrupts"
#define IRQ_EL1 any_irq
#include "el1.h"

#define LOOPS   3000
#define PERIOD  20                      /* ticks */

.macro timer name, ticks
    mrs     x0, cntvct_el0
    add     x0, x0, #\ticks
    msr     cnt\name\()_cval_el0, x0
    mov     x0, #1
    msr     cnt\name\()_ctl_el0, x0
.endm

main:
    mov     x27, x30
    bl      gic_init
    mov     x20, #CYCLE
    mov     x21, #0                     /* interrupts of the virtual timer, ... */
    mov     x22, #0                     /* the physical one, ... */
    mov     x23, #0                     /* and the PMU */
    mov     x24, #-777                  /* where the cycle counter begins, again after each overflow */
    adr     x26, 1f
    msr     pmccntr_el0, x24
    msr     pmintenset_el1, x20
    timer   v, PERIOD
    timer   p, (PERIOD + 7)
    mov     x1, #LOOPS
    isb
    msr     daifclr, #2
    open    x20
1:  subs    x1, x1, #1
    b.ne    1b
    close   x20
    msr     daifset, #2
    msr     cntv_ctl_el0, xzr
    msr     cntp_ctl_el0, xzr
    mrs     x9, cntvct_el0
    keep    "virtual", x21
    keep    "physical", x22
    keep    "pmu", x23
    keep    "ticks", x9
    quiet

    /* All three at once, masked until then: the interrupt controller orders what has the same priority. */
    mov     x21, #0
    mov     x22, #0
    mov     x23, #0
    mov     x24, #0
    mov     x1, #LOOPS
    msr     pmintenset_el1, x20
    msr     pmovsset_el0, x20
    timer   v, 1
    timer   p, 1
    nops    64
    adr     x26, 2f
    isb
    msr     daifclr, #2
2:  nops    8
    msr     daifset, #2
    keep    "at.once.virtual", x21
    keep    "at.once.physical", x22
    keep    "at.once.pmu", x23
    quiet
    msr     cntv_ctl_el0, xzr
    msr     cntp_ctl_el0, xzr

    /* The CPU interface: a lower limit of priority holds all of them back, a lift of it lets them through. */
    mov     x21, #0
    mov     x22, #0
    mov     x23, #0
    mov     x0, #0x80
    msr     ICC_PMR_EL1, x0
    timer   v, 1
    nops    64
    msr     daifclr, #2
    nops    4
    mov     x9, x21
    adr     x26, 3f
    mov     x0, #0xff
    msr     ICC_PMR_EL1, x0
3:  isb
    nops    4
    msr     daifset, #2
    keep    "held.back", x9
    keep    "let.through", x21
    msr     cntv_ctl_el0, xzr
    quiet
    ret     x27

/*
 * Notes of each interrupt the INTID and how many instructions of the loop of 2 were executed before it; the timer, or
 * the counter, begins again.
 */
any_irq:
    mrs     x10, elr_el1
    sub     x10, x10, x26
    mov     x13, #(2 * LOOPS)
    sub     x13, x13, x10, lsr #2
    sub     x10, x13, x1, lsl #1
    mrs     x11, ICC_IAR1_EL1
    mrs     x12, cntvct_el0
    keep    "irq.intid", x11
    keep    "irq.executed", x10
    cmp     x11, #VTIMER_INTID
    b.eq    1f
    cmp     x11, #PTIMER_INTID
    b.eq    2f
    add     x23, x23, #1
    mrs     x13, pmovsclr_el0
    keep    "irq.ovs", x13
    msr     pmovsclr_el0, x13
    msr     pmccntr_el0, x24
    b       3f
1:  add     x21, x21, #1
    add     x13, x12, #PERIOD
    msr     cntv_cval_el0, x13
    b       3f
2:  add     x22, x22, #1
    add     x13, x12, #(PERIOD + 7)
    msr     cntp_cval_el0, x13
3:  isb
    msr     ICC_EOIR1_EL1, x11
    isb
    eret
