/* Straight-line code, loops, calls and reads, by an event counter of INST_RETIRED, one of CPU_CYCLES, and PMCCNTR. */
#define PROGRAM "loops"
#include "el1.h"

/* Counters 0 and 1 and the cycle counter. */
counters .req x20

.macro keep_counts name
    mrs     x9, pmevcntr0_el0
    mrs     x10, pmevcntr1_el0
    mrs     x11, pmccntr_el0
    keep    "\name\().inst", x9
    keep    "\name\().cycles", x10
    keep    "\name\().ccntr", x11
    quiet
.endm

main:
    mov     x27, x30
    ldr     counters, =(CYCLE | 3)
    mov     x0, #CPU_CYCLES
    msr     pmevtyper1_el0, x0
    isb

    .irp    n, 0, 1, 2, 63, 64, 65, 1000
    open    counters
    nops    \n
    close   counters
    keep_counts "straight.\n"
    .endr

    .irp    n, 1, 2, 3, 100, 65535
    mov     x1, #\n
    open    counters
1:  subs    x1, x1, #1
    b.ne    1b
    close   counters
    keep_counts "loop.\n"
    .endr

    /* 7 x 11 iterations of the inner loop of 3; 4 around it in each of 7; no branch at a block's start or end alike */
    mov     x1, #7
    open    counters
1:  mov     x2, #11
2:  sub     x2, x2, #1
    eor     x3, x3, x2
    cbnz    x2, 2b
    sub     x1, x1, #1
    tst     x1, x1
    b.ne    1b
    close   counters
    keep_counts "nested"

    /* A branch that is taken at every other iteration. */
    mov     x1, #100
    open    counters
1:  tbz     x1, #0, 2f
    nop
2:  subs    x1, x1, #1
    b.ne    1b
    close   counters
    keep_counts "alternate"

    mov     x0, #12
    open    counters
    bl      fibonacci
    close   counters
    mov     x21, x0
    keep    "fibonacci.result", x21
    keep_counts "fibonacci"

    address x1, scratch
    mov     x2, #50
    open    counters
1:  ldp     x3, x4, [x1]
    add     x3, x3, x4
    stp     x4, x3, [x1]
    ldxr    x5, [x1, #0]
    add     x5, x5, #1
    stxr    w6, x5, [x1]
    dmb     ish
    ldrb    w5, [x1, #15]
    str     x5, [x1, #16]!
    sub     x1, x1, #16
    sub     x2, x2, #1
    cbnz    x2, 1b
    close   counters
    keep_counts "memory"

    /* Reads, back to back and apart: each shows what was retired since counting began. */
    open    counters
    mrs     x9, pmevcntr0_el0
    mrs     x10, pmevcntr0_el0
    mrs     x11, pmccntr_el0
    mrs     x12, pmevcntr1_el0
    nop
    isb
    mrs     x13, pmevcntr0_el0
    mov     x1, #10
1:  subs    x1, x1, #1
    b.ne    1b
    mrs     x14, pmevcntr0_el0
    mrs     x15, pmccntr_el0
    close   counters
    keep    "read.first", x9
    keep    "read.second", x10
    keep    "read.third", x11
    keep    "read.fourth", x12
    keep    "read.fifth", x13
    keep    "read.loop", x14
    keep    "read.last", x15
    keep_counts "read"
    ret     x27

/* x0: n; returns the n-th Fibonacci number. 3 instructions for n < 2, else 13 and those of two calls. */
fibonacci:
    cmp     x0, #2
    b.lo    1f
    stp     x30, x19, [sp, #-16]!
    mov     x19, x0
    sub     x0, x0, #1
    bl      fibonacci
    sub     x1, x19, #2
    mov     x19, x0
    mov     x0, x1
    bl      fibonacci
    add     x0, x0, x19
    ldp     x30, x19, [sp], #16
1:  ret

    .bss
    .balign 16
scratch: .skip  64
