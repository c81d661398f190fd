/* 64-bit overflow: event counters with PMCR_EL0.LP, the cycle counter by PMCR_EL0.LC, and the divider PMCR_EL0.D. */
#define PROGRAM "overflow64"
#include "overflow.h"

.macro controls bits
    mov     x0, #(\bits)
    msr     pmcr_el0, x0
    isb
.endm

/* Counts `instructions` instructions with the cycle counter divided by 64. */
.macro divided name, instructions
    mov     x20, #CYCLE
    open    x20
    mov     x1, #((\instructions - 2) / 2)
1:  subs    x1, x1, #1
    b.ne    1b
    close   x20
    mrs     x9, pmccntr_el0
    keep    "\name", x9
.endm

main:
    mov     x27, x30
    bl      gic_init

    controls PMCR_E | PMCR_LC | PMCR_LP
    .irp    n, 0, 1, 2, 3, 4, 5, 100
    approach "long.top.\n", -4, \n
    .endr
    .irp    n, 0, 3, 4, 100
    approach "long.middle.\n", 0xfffffffc, \n
    .endr
    approach "long.sign", 0x7ffffffffffffffe, 4

    controls PMCR_E | PMCR_LC
    .irp    n, 2, 3, 100
    approach "lp0.top.\n", -4, \n
    .endr
    approach "lp0.lc1.middle", 0xfffffffc, 4

    controls PMCR_E
    .irp    n, 2, 3, 100
    approach "lc0.top.\n", -4, \n
    .endr
    .irp    n, 2, 3, 100
    approach "lc0.middle.\n", 0xfffffffc, \n
    .endr

    controls PMCR_E | PMCR_LC | PMCR_LP
    mov     x0, #-50
    msr     pmevcntr0_el0, x0
    mov     x20, #1
    interrupted "irq.event"
    mov     x0, #-50
    msr     pmccntr_el0, x0
    mov     x20, #CYCLE
    interrupted "irq.cycle"
    ldr     x0, =0xffffffce
    msr     pmevcntr0_el0, x0
    msr     pmccntr_el0, x0
    ldr     x20, =(CYCLE | 1)
    interrupted "irq.none"

    /* Whole multiples of 64 cycles, so that it does not matter where in a period of 64 the counting begins. */
    controls PMCR_E | PMCR_D
    divided "divided.64", 64
    divided "divided.6464", 6400
    quiet
    controls PMCR_E | PMCR_D | PMCR_LC
    divided "long.not.divided", 64
    quiet
    ret     x27
