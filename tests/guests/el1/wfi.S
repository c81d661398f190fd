/* WFI with a timer's wake-up: instructions and virtual time across it, with interrupts masked and unmasked. */
#define PROGRAM "wfi"
#define IRQ_EL1 timer_irq
#include "el1.h"

main:
    mov     x27, x30
    bl      gic_init
    ldr     x20, =(CYCLE | 1)

    /* Masked: it wakes up and goes on behind the WFI. */
    .irp    n, 1, 10, 1000, 65536
    mov     x14, #0
    mrs     x9, cntvct_el0
    ldr     x0, =\n
    add     x0, x0, x9
    msr     cntv_cval_el0, x0
    mov     x0, #1
    msr     cntv_ctl_el0, x0
    open    x20
    nops    5
    wfi
    nops    5
    close   x20
    mrs     x10, cntvct_el0
    mrs     x11, cntv_ctl_el0
    sub     x10, x10, x9
    mrs     x12, pmevcntr0_el0
    mrs     x13, pmccntr_el0
    msr     cntv_ctl_el0, xzr
    keep    "masked.\n\().ticks", x10
    keep    "masked.\n\().ctl", x11
    keep    "masked.\n\().inst", x12
    keep    "masked.\n\().cycles", x13
    keep    "masked.\n\().interrupts", x14
    quiet
    .endr

    /* Unmasked: the interrupt is taken behind the WFI, and its handler turns the timer off. */
    .irp    n, 10, 1000
    mov     x14, #0
    mrs     x9, cntvct_el0
    ldr     x0, =\n
    add     x0, x0, x9
    msr     cntp_cval_el0, x0
    mov     x0, #1
    msr     cntp_ctl_el0, x0
    adr     x26, 1f
    msr     daifclr, #2
    open    x20
    nops    5
    wfi
1:  nops    5
    close   x20
    msr     daifset, #2
    mrs     x10, cntvct_el0
    sub     x10, x10, x9
    sub     x11, x11, x9
    mrs     x15, pmevcntr0_el0
    mrs     x16, pmccntr_el0
    keep    "unmasked.\n\().ticks", x10
    keep    "unmasked.\n\().irq.ticks", x11
    keep    "unmasked.\n\().irq.at", x12
    keep    "unmasked.\n\().irq.intid", x13
    keep    "unmasked.\n\().interrupts", x14
    keep    "unmasked.\n\().inst", x15
    quiet
    .endr

    /* A deadline that is past: WFI does not wait. */
    mov     x14, #0
    mrs     x9, cntvct_el0
    msr     cntv_cval_el0, x9
    mov     x0, #1
    msr     cntv_ctl_el0, x0
    nops    20
    mrs     x9, cntvct_el0
    open    x20
    wfi
    wfi
    close   x20
    mrs     x10, cntvct_el0
    sub     x10, x10, x9
    mrs     x12, pmevcntr0_el0
    msr     cntv_ctl_el0, xzr
    keep    "past.ticks", x10
    keep    "past.inst", x12
    quiet
    ret     x27

/* 12 instructions. x11: the count at entry; x12: the place, from x26; x13: INTID; x14: one more. */
timer_irq:
    mrs     x11, cntvct_el0
    mrs     x12, elr_el1
    sub     x12, x12, x26
    mrs     x13, ICC_IAR1_EL1
    msr     cntp_ctl_el0, xzr
    msr     cntv_ctl_el0, xzr
    isb
    msr     ICC_EOIR1_EL1, x13
    isb
    add     x14, x14, #1
    nop
    eret
