/* What the PMU's registers read as, which of their bits exist, and what PMUSERENR_EL0 lets EL0 do. */
#define PROGRAM "access"
#define SYNC_EL1 undefined
#define SYNC_EL0 trapped
#include "el1.h"

/* Writes all ones, keeps what is read back, writes 0, and keeps that. */
.macro bits name
    mov     x0, #-1
    msr     \name, x0
    isb
    mrs     x9, \name
    keep    "bits.\name", x9
    msr     \name, xzr
    isb
    mrs     x9, \name
    keep    "zero.\name", x9
.endm

/* An access of EL0: 0 where it is allowed, else the ESR. */
.macro try value, instruction:vararg
    mov     x9, #0
    \instruction
    keep    "\value: \instruction", x9
.endm

.macro undef instruction:vararg
    mov     x9, #0
    \instruction
    keep    "\instruction", x9
.endm

.macro all_reads value
    .irp    name, pmcr_el0, pmcntenset_el0, pmcntenclr_el0, pmovsclr_el0, pmovsset_el0, pmselr_el0, pmceid0_el0, pmceid1_el0
    try     \value, mrs x0, \name
    .endr
    .irp    name, pmccntr_el0, pmxevtyper_el0, pmxevcntr_el0, pmuserenr_el0, pmevcntr0_el0, pmevtyper0_el0, pmccfiltr_el0
    try     \value, mrs x0, \name
    .endr
    .irp    name, pmintenset_el1, s3_3_c9_c12_4, pmevcntr6_el0, pmevcntr30_el0
    try     \value, mrs x0, \name
    .endr
.endm

.macro all_writes value
    .irp    name, pmcr_el0, pmcntenset_el0, pmcntenclr_el0, pmovsclr_el0, pmovsset_el0, pmselr_el0, pmswinc_el0, s3_3_c9_c12_6
    try     \value, msr \name, xzr
    .endr
    .irp    name, pmccntr_el0, pmxevtyper_el0, pmxevcntr_el0, pmuserenr_el0, pmevcntr0_el0, pmevtyper0_el0, pmccfiltr_el0
    try     \value, msr \name, xzr
    .endr
    .irp    name, pmintenclr_el1, pmevtyper6_el0
    try     \value, msr \name, xzr
    .endr
.endm

/* A pair of registers that set and clear one mask: what is set, and what both read as. */
.macro masks set, clear
    mov     x0, #-1
    mov     x1, #5
    msr     \clear, x0
    mrs     x9, \set
    keep    "\set: none", x9
    msr     \set, x0
    mrs     x9, \set
    keep    "\set: all", x9
    mrs     x9, \clear
    keep    "\clear: all", x9
    msr     \clear, x1
    mrs     x9, \clear
    keep    "\clear: but two", x9
    msr     \set, xzr
    mrs     x9, \set
    keep    "\set: but two", x9
    msr     \clear, x0
    msr     \set, x1
    mrs     x9, \clear
    keep    "\clear: two", x9
    msr     \clear, x0
.endm

main:
    mov     x27, x30
    mrs     x9, pmcr_el0
    keep    "pmcr_el0", x9
    mrs     x9, id_aa64dfr0_el1
    ubfx    x9, x9, #8, #4
    keep    "pmuver", x9
    mrs     x9, pmceid0_el0
    keep    "pmceid0_el0", x9
    mrs     x9, pmceid1_el0
    keep    "pmceid1_el0", x9

    .irp    name, pmevtyper0_el0, pmevtyper5_el0, pmccfiltr_el0, pmevcntr0_el0, pmevcntr5_el0, pmccntr_el0
    bits    \name
    .endr
    bits    pmselr_el0
    bits    pmuserenr_el0
    mov     x0, #(0xffffffff & ~(PMCR_E | PMCR_P | PMCR_C))
    msr     pmcr_el0, x0
    isb
    mrs     x9, pmcr_el0
    keep    "bits.pmcr_el0", x9
    msr     pmcr_el0, xzr
    isb
    mrs     x9, pmcr_el0
    keep    "zero.pmcr_el0", x9

    masks   pmcntenset_el0, pmcntenclr_el0
    masks   pmintenset_el1, pmintenclr_el1
    masks   pmovsset_el0, pmovsclr_el0

    /* PMSELR_EL0 leads to a counter, its type, and the cycle counter's filter. */
    mov     x0, #3
    ldr     x1, =(INST_RETIRED | EXCLUDE_EL0)
    mov     x2, #77
    msr     pmselr_el0, x0
    isb
    msr     pmxevtyper_el0, x1
    msr     pmxevcntr_el0, x2
    mrs     x9, pmevtyper3_el0
    mrs     x10, pmevcntr3_el0
    keep    "selected.type", x9
    keep    "selected.counter", x10
    mov     x0, #31
    msr     pmselr_el0, x0
    isb
    msr     pmxevtyper_el0, x1
    mrs     x9, pmccfiltr_el0
    keep    "selected.filter", x9
    msr     pmccfiltr_el0, xzr

    undef   mrs x0, s3_3_c9_c12_4       /* PMSWINC_EL0 is write-only, PMCEID0_EL0 read-only */
    undef   msr s3_3_c9_c12_6, x0
    undef   mrs x0, pmevcntr6_el0
    undef   msr pmevtyper6_el0, x0
    undef   mrs x0, pmevcntr30_el0
    undef   mrs x0, s3_3_c9_c13_3
    undef   msr s3_0_c9_c14_6, x0       /* PMMIR_EL1 is read-only */
    mrs     x9, s3_0_c9_c14_6
    keep    "pmmir_el1", x9
    mov     x0, #6
    msr     pmselr_el0, x0
    isb
    undef   mrs x0, pmxevcntr_el0       /* what is selected is not there */
    undef   msr pmxevtyper_el0, x0

    msr     pmselr_el0, xzr
    .irp    value, 0, 1, 2, 4, 8, 14
    mov     x0, #\value
    msr     pmuserenr_el0, x0
    el0     tries_\value
    .endr
    ret     x27

    /* PMUSERENR_EL0: 1 is EN, 2 SW, 4 CR, 8 ER. */
    .irp    value, 0, 1, 2, 4, 8, 14
tries_\value:
    all_reads \value
    all_writes \value
    leave
    .endr

undefined:
    mrs     x9, esr_el1
    b       skip
trapped:
    mrs     x15, esr_el1
    lsr     x14, x15, #26
    cmp     x14, #0x15                  /* SVC */
    b.eq    from_el0
    mov     x9, x15
skip:
    mrs     x15, elr_el1
    add     x15, x15, #4
    msr     elr_el1, x15
    eret
