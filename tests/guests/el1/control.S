/* The controls while counters run: PMCR_EL0.{E, P, C}, PMCNTEN, writes of counters, and what a trapped access counts. */
#define PROGRAM "control"
#include "el1.h"

.macro keep_counts name
    mrs     x9, pmevcntr0_el0
    mrs     x10, pmevcntr1_el0
    mrs     x11, pmccntr_el0
    keep    "\name\().0", x9
    keep    "\name\().1", x10
    keep    "\name\().ccntr", x11
    quiet
.endm

main:
    mov     x27, x30
    ldr     x20, =(CYCLE | 3)
    mov     x21, #(PMCR_E | PMCR_LC)
    mov     x22, #PMCR_LC
    mov     x23, #(PMCR_E | PMCR_LC | PMCR_P)
    mov     x24, #(PMCR_E | PMCR_LC | PMCR_C)
    mov     x1, #1
    mov     x2, #2

    /* E off and on again: the 7 between, and one of the two writes, are not counted. */
    open    x20
    nops    3
    msr     pmcr_el0, x22
    nops    7
    msr     pmcr_el0, x21
    nops    5
    close   x20
    keep_counts "enable"

    /* With E off nothing counts, whatever PMCNTEN says; set later it does. */
    msr     pmcr_el0, x22
    open    x20
    nops    9
    mrs     x9, pmevcntr0_el0
    msr     pmcr_el0, x21
    nops    4
    close   x20
    keep    "disabled", x9
    keep_counts "enabled.later"

    /* P zeroes the event counters, C the cycle counter; both go on. */
    open    x20
    nops    10
    msr     pmcr_el0, x23
    nops    20
    msr     pmcr_el0, x24
    nops    30
    close   x20
    keep_counts "reset"

    /* One counter after the other, off in another order. */
    open    x1
    nops    3
    open    x2
    nops    5
    close   x1
    nops    7
    close   x2
    keep_counts "apart"

    /* Switching on what is on, and off what is off, changes nothing. */
    open    x1
    nop
    open    x1
    nop
    close   x2
    nop
    close   x1
    keep_counts "again"

    /* A counter that is written while it counts; what was written is read back one later, by the write or the read. */
    mov     x3, #0x1000
    open    x20
    nops    3
    msr     pmevcntr0_el0, x3
    mrs     x12, pmevcntr0_el0
    nops    4
    msr     pmccntr_el0, x3
    mrs     x13, pmccntr_el0
    close   x20
    keep    "written.event", x12
    keep    "written.cycles", x13
    keep_counts "written"

    /* Through PMSELR_EL0 */
    msr     pmselr_el0, x1
    isb
    open    x20
    nops    3
    mrs     x12, pmxevcntr_el0
    msr     pmxevcntr_el0, x3
    mrs     x13, pmxevcntr_el0
    nops    3
    close   x20
    keep    "selected.before", x12
    keep    "selected.after", x13
    keep_counts "selected"

    /* Another event on a counter that has counted: it goes on from its value. */
    open    x20
    nops    10
    close   x20
    mov     x4, #CPU_CYCLES
    msr     pmevtyper0_el0, x4
    isb
    open    x20
    nops    20
    close   x20
    mov     x4, #0x3f                   /* an event that neither machine has */
    msr     pmevtyper0_el0, x4
    isb
    open    x20
    nops    40
    close   x20
    mov     x4, #INST_RETIRED
    msr     pmevtyper0_el0, x4
    isb
    open    x20
    close   x20
    keep_counts "event"

    /* What exits to a hypervisor is not retired there: trapped registers and devices. */
    ldr     x5, =0x09000000
    open    x20
    mrs     x6, pmovsclr_el0
    msr     pmovsclr_el0, x6
    nops    2
    mrs     x6, pmevtyper0_el0
    close   x20
    keep_counts "trapped.registers"
    open    x20
    ldr     w6, [x5, #0x18]             /* UARTFR */
    nop
    ldr     w6, [x5, #0x18]
    ldr     w7, [x5, #0x30]             /* UARTCR */
    close   x20
    keep_counts "device"
    open    x20
    mrs     x6, cntvct_el0
    mrs     x6, cntv_ctl_el0
    msr     cntv_ctl_el0, xzr
    mrs     x6, ICC_PMR_EL1
    msr     ICC_PMR_EL1, x6
    mrs     x6, id_aa64dfr0_el1
    msr     tpidr_el1, x6
    mrs     x6, pmcr_el0
    msr     pmselr_el0, xzr
    msr     pmintenclr_el1, xzr
    close   x20
    keep_counts "not.trapped"
    ret     x27
