/* 32-bit overflow: on which instruction PMOVS is set, how the counter goes on, and where the interrupt arrives. */
#define PROGRAM "overflow32"
#include "overflow.h"

main:
    mov     x27, x30
    bl      gic_init
    approach "1-0", ((1 << 32) - 1), 0
    approach "4-0", ((1 << 32) - 4), 0
    approach "4-1", ((1 << 32) - 4), 1
    approach "4-2", ((1 << 32) - 4), 2
    approach "4-3", ((1 << 32) - 4), 3
    approach "4-4", ((1 << 32) - 4), 4
    approach "4-5", ((1 << 32) - 4), 5
    approach "4-100", ((1 << 32) - 4), 100
    approach "100-98", ((1 << 32) - 100), 98
    approach "100-99", ((1 << 32) - 100), 99
    approach "100-100", ((1 << 32) - 100), 100

    /* Overflow is noted once in 2^32: bit 32, once set, means nothing more. */
    ldr     x0, =((1 << 32) + 100)
    msr     pmevcntr0_el0, x0
    mov     x20, #1
    isb
    open    x20
    nops    9
    close   x20
    mrs     x9, pmevcntr0_el0
    mrs     x10, pmovsset_el0
    keep    "beyond.value", x9
    keep    "beyond.ovs", x10
    quiet

    /* Six counters, each one instruction later than the one before it. */
    ldr     x0, =((1 << 32) - 1)
    .irp    n, 0, 1, 2, 3, 4, 5
    msr     pmevcntr\n\()_el0, x0
    sub     x0, x0, #1
    .endr
    mov     x20, #0x3f
    isb
    .irp    n, 0, 1, 2, 3, 4
    open    x20
    close   x20
    mrs     x9, pmovsset_el0
    keep    "staircase.\n", x9
    .endr
    quiet

    ldr     x0, =((1 << 32) - 50)
    msr     pmevcntr0_el0, x0
    mov     x20, #1
    interrupted "irq.event"

    mov     x0, #PMCR_E                 /* LC = 0: the cycle counter overflows at 32 bits */
    msr     pmcr_el0, x0
    ldr     x0, =((1 << 32) - 50)
    msr     pmccntr_el0, x0
    mov     x20, #CYCLE
    interrupted "irq.cycle"

    /* PMOVS without PMINTEN interrupts nobody; PMINTEN set afterwards does. */
    mov     x14, #0
    mov     x20, #1
    msr     pmovsset_el0, x20
    msr     daifclr, #2
    isb
    nops    4
    mov     x15, x14
    adr     x26, 1f
    msr     pmintenset_el1, x20
1:  isb
    mrs     x16, pmovsset_el0           /* the overflow status is trapped: an exit, and an entry */
    nops    4
    msr     daifset, #2
    keep    "late.before", x15
    keep    "late.interrupts", x14
    keep    "late.ovs", x13
    quiet
    ret     x27
