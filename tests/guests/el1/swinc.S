/* SW_INCR: what a write of PMSWINC_EL0 counts, from EL1 and EL0, and its overflow. */
#define PROGRAM "swinc"
#define IRQ_EL1 pmu_irq
#include "el1.h"

.macro keep_all name
    .irp    c, 0, 1, 2, 3, 4, 5
    counter x9, \c
    keep    "\name\().\c", x9
    .endr
    mrs     x9, pmovsset_el0
    keep    "\name\().ovs", x9
    quiet
.endm

main:
    mov     x27, x30
    bl      gic_init
    /* 0, 1, 2: SW_INCR at both, at EL0 only, at EL1 only; 3: INST_RETIRED; 4: SW_INCR, but off; 5: SW_INCR */
    mov     x0, #SW_INCR
    msr     pmevtyper0_el0, x0
    msr     pmevtyper4_el0, x0
    msr     pmevtyper5_el0, x0
    mov     x0, #EXCLUDE_EL1
    msr     pmevtyper1_el0, x0
    mov     x0, #EXCLUDE_EL0
    msr     pmevtyper2_el0, x0
    isb
    mov     x20, #0x2f
    ldr     x21, =0xffffffff
    mov     x22, #0x21

    open    x20                         /* EL1 */
    msr     pmswinc_el0, x21
    msr     pmswinc_el0, x22
    nop
    msr     pmswinc_el0, xzr
    msr     pmswinc_el0, x22
    close   x20
    keep_all "el1"

    mov     x0, #2                      /* EL0, let in by PMUSERENR_EL0.SW */
    msr     pmuserenr_el0, x0
    open    x20
    el0     writes
    close   x20
    keep_all "el0"

    mov     x1, #1000
    open    x20
1:  msr     pmswinc_el0, x22
    subs    x1, x1, #1
    b.ne    1b
    close   x20
    keep_all "loop"

    mov     x0, #PMCR_LC                /* E = 0: nothing counts */
    msr     pmcr_el0, x0
    open    x20
    msr     pmswinc_el0, x21
    close   x20
    keep_all "disabled"
    mov     x0, #(PMCR_E | PMCR_LC)
    msr     pmcr_el0, x0

    ldr     x0, =0xfffffffe             /* overflow, of two counters at different writes */
    msr     pmevcntr0_el0, x0
    add     x0, x0, #1
    msr     pmevcntr5_el0, x0
    open    x20
    msr     pmswinc_el0, x21
    mrs     x9, pmovsset_el0
    msr     pmswinc_el0, x21
    mrs     x10, pmovsset_el0
    msr     pmswinc_el0, x21
    close   x20
    keep    "overflow.first", x9
    keep    "overflow.second", x10
    keep_all "overflow"

    mov     x0, #(PMCR_E | PMCR_LC | PMCR_LP)
    msr     pmcr_el0, x0
    ldr     x0, =0xffffffff             /* 64 bits: counter 0 overflows, 5 does not */
    msr     pmevcntr5_el0, x0
    mov     x0, #-1
    msr     pmevcntr0_el0, x0
    open    x20
    msr     pmswinc_el0, x22
    close   x20
    keep_all "long"
    mov     x0, #(PMCR_E | PMCR_LC)
    msr     pmcr_el0, x0

    /* The interrupt of a software increment comes before the next instruction. */
    mov     x14, #0
    ldr     x0, =0xffffffff
    msr     pmevcntr0_el0, x0
    mov     x0, #1
    msr     pmintenset_el1, x0
    msr     daifclr, #2
    adr     x26, 1f
    isb
    open    x20
    nop
1:  msr     pmswinc_el0, x22
    nop
    nop
    close   x20
    msr     daifset, #2
    keep_irq "irq"
    quiet
    ret     x27

writes:
    msr     pmswinc_el0, x21
    nop
    msr     pmswinc_el0, x22
    msr     pmswinc_el0, x22
    leave
