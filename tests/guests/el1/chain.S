/* CHAIN: an odd counter counts its even neighbour's overflows at 32 bits. */
#define PROGRAM "chain"
#include "el1.h"

/* Counters 0-3 begin at `even`, `odd`, `even`, `odd`; x20 says which of them count. */
.macro pairs even, odd
    ldr     x0, =\even
    ldr     x1, =\odd
    msr     pmevcntr0_el0, x0
    msr     pmevcntr1_el0, x1
    msr     pmevcntr2_el0, x0
    msr     pmevcntr3_el0, x1
    isb
.endm

.macro keep_pairs name
    .irp    c, 0, 1, 2, 3
    counter x9, \c
    keep    "\name\().\c", x9
    .endr
    mrs     x9, pmovsset_el0
    keep    "\name\().ovs", x9
    quiet
.endm

.macro types zero, one, two, three
    ldr     x0, =\zero
    ldr     x1, =\one
    ldr     x2, =\two
    ldr     x3, =\three
    msr     pmevtyper0_el0, x0
    msr     pmevtyper1_el0, x1
    msr     pmevtyper2_el0, x2
    msr     pmevtyper3_el0, x3
    isb
.endm

main:
    mov     x27, x30

    types   INST_RETIRED, CHAIN, CPU_CYCLES, CHAIN
    mov     x20, #0xf
    .irp    n, 0, 2, 3, 4, 100
    pairs   0xfffffffc, 0
    open    x20
    nops    \n
    close   x20
    keep_pairs "count.\n"
    .endr

    pairs   0xfffffffc, 0xffffffff      /* the pair overflows */
    open    x20
    nops    5
    close   x20
    keep_pairs "both"

    mov     x20, #0x5                   /* the odd counters are off */
    pairs   0xfffffffc, 0
    open    x20
    nops    5
    close   x20
    keep_pairs "off"

    mov     x20, #0xf                   /* an odd counter's overflow feeds no even one */
    types   SW_INCR, INST_RETIRED, CHAIN, SW_INCR
    pairs   0, 0xfffffffc
    open    x20
    nops    5
    close   x20
    keep_pairs "odd"

    /* The filter of the odd counter is its own. */
    types   INST_RETIRED, CHAIN | EXCLUDE_EL1, INST_RETIRED, CHAIN | EXCLUDE_EL0
    pairs   0xfffffffc, 7
    open    x20
    nops    5
    close   x20
    keep_pairs "filtered"

    types   SW_INCR, CHAIN, SW_INCR, CHAIN
    pairs   0xffffffff, 0
    mov     x1, #1
    mov     x2, #0xf
    open    x20
    msr     pmswinc_el0, x1
    msr     pmswinc_el0, x2
    msr     pmswinc_el0, x2
    close   x20
    keep_pairs "software"

    mov     x0, #(PMCR_E | PMCR_LC | PMCR_LP)
    msr     pmcr_el0, x0                /* 64-bit counters make no chain */
    types   INST_RETIRED, CHAIN, INST_RETIRED, CHAIN
    pairs   0xfffffffc, 0
    open    x20
    nops    5
    close   x20
    keep_pairs "long"
    ret     x27
