/* PMEVTYPER<n>_EL0.{P, U, NSK, NSU} and PMCCFILTR_EL0: one stretch at EL1 and one at EL0, counted by six filters. */
#define PROGRAM "filters"
#include "el1.h"

#define AT_EL1  40
#define AT_EL0  25

.macro stretches name
    open    x20
    nops    AT_EL1
    el0     at_el0
    close   x20
    .irp    c, 0, 1, 2, 3, 4, 5
    counter x9, \c
    keep    "\name\().\c", x9
    .endr
    mrs     x9, pmccntr_el0
    keep    "\name\().ccntr", x9
    quiet
.endm

.macro types cycles, filters:vararg
    ldr     x0, =(\cycles)
    msr     pmccfiltr_el0, x0
    .set    number, 0
    .irp    filter, \filters
    ldr     x0, =(INST_RETIRED | \filter)
    mov     x1, #number
    msr     pmselr_el0, x1
    isb
    msr     pmxevtyper_el0, x0
    .set    number, number + 1
    .endr
    isb
.endm

main:
    mov     x27, x30
    ldr     x20, =(CYCLE | 0x3f)
    types   0, 0, EXCLUDE_EL1, EXCLUDE_EL0, EXCLUDE_EL1|EXCLUDE_EL0, 0, EXCLUDE_EL1
    stretches "pu"
    types   EXCLUDE_EL1, NSK, NSU, EXCLUDE_EL1|NSK, EXCLUDE_EL0|NSU, EXCLUDE_EL1|NSU, EXCLUDE_EL0|NSK
    stretches "ns"
    types   EXCLUDE_EL0, NSK|NSU, EXCLUDE_EL1|EXCLUDE_EL0|NSK|NSU, EXCLUDE_EL1|EXCLUDE_EL0|NSK, EXCLUDE_EL1|EXCLUDE_EL0|NSU, EXCLUDE_EL1, EXCLUDE_EL0
    stretches "both"
    types   EXCLUDE_EL1|EXCLUDE_EL0, 0, 0, 0, 0, 0, 0
    stretches "none"
    types   NSU, 0, 0, 0, 0, 0, 0
    stretches "cycles.nsu"

    /* A filter that changes while its counter counts. The write is trapped, so it retires nothing. */
    types   0, 0, 0, 0, 0, 0, 0
    ldr     x1, =(INST_RETIRED | EXCLUDE_EL1)
    mov     x2, #INST_RETIRED
    open    x20
    nops    10
    msr     pmevtyper0_el0, x1
    nops    20
    msr     pmevtyper0_el0, x2
    nops    30
    close   x20
    mrs     x9, pmevcntr0_el0
    mrs     x10, pmevcntr1_el0
    keep    "changed.0", x9
    keep    "changed.1", x10
    quiet
    ret     x27

at_el0:
    nops    AT_EL0
    leave
