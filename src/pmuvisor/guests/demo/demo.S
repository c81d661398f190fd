/*
 * demo: a bare-metal guest that knows by hand what the PMU has to read.
 *
 * It counts loops of a known number of instructions with as many event counters as it is given (none is enough: the
 * cycle counter is always there), then lets a counter overflow after a chosen number of instructions and looks at
 * which instruction the interrupt arrived. It is in assembly so that its bytes, and its counts, depend on no compiler.
 *
 * Why the counts are exact. A window of counting is
 *         msr pmcntenset_el0      counting begins at this write
 *         isb
 *         blr body
 *         msr pmcntenclr_el0      and ends at this one
 *         isb
 * What it reads beyond the body's own loop is the same whatever the body: the isb, blr, body's ret, and one of the two
 * msr (none if the msr traps to a hypervisor: then it never executes here). So an empty body is measured first, and its
 * reading taken off the others; what is left is iterations x instructions in the loop, with nothing to calibrate.
 * Interrupts are masked throughout. Event types exclude nothing (P = U = 0), so EL1, where all of this runs, counts.
 */
#include "print.h"

#define GICD            0x08000000
#define GICR            0x080A0000
#define GICR_SGI        0x080B0000
#define PMU_INTID       23

#define PMCR_E          (1 << 0)
#define PMCR_P          (1 << 1)
#define PMCR_C          (1 << 2)
#define PMCR_LC         (1 << 6)
#define CYCLE_COUNTER   (1 << 31)

#define INST_RETIRED    0x08
#define SW_INCR         0x00

#define EVENTS          5               /* rows of the table events */
#define UNCHECKED       -1

/* Registers that keep their meaning throughout; a macro or a print changes x0-x8 and x30 only. */
event_counters  .req x19                /* PMCR_EL0.N */
used            .req x20                /* event counters that got an event: 0 .. used-1 */
counters        .req x21                /* mask of those, and the cycle counter */
sw_incr         .req x22                /* mask of the counter that got SW_INCR, or 0 */
failures        .req x28

    .text
    .globl  _start
_start:
    adrp    x0, stack_top
    add     x0, x0, :lo12:stack_top
    mov     sp, x0
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el1, x0
    msr     daifset, #15
    isb
    mov     failures, #0
    bl      describe
    bl      assign_events
    bl      measure_empty
    bl      measure_loops
    bl      gic_init
    bl      event_overflow
    bl      cycle_overflow
    cbnz    failures, 1f
    say     "demo: all counts exact\n"
    b       power_off
1:  say     "demo: checks that failed: "
    say_dec failures
    say     "\n"
    b       power_off

.macro fail text
    say     "demo: FAIL \text\n"
    add     failures, failures, #1
.endm

/* One row of "events": its number, its name. 32 bytes. */
.macro event number, name
    .balign 32
    .quad   \number
    .asciz  "\name"
.endm

    .section .rodata
    .balign 32
events:
    event   INST_RETIRED, "INST_RETIRED"
    event   0x21, "BR_RETIRED"
    event   0x06, "LD_RETIRED"
    event   0x07, "ST_RETIRED"
    event   SW_INCR, "SW_INCR"
    .balign 32

    .bss
    .balign 16
assigned:       .skip 8 * EVENTS        /* for each counter in use, its row of "events" */
empty:          .skip 8 * (EVENTS + 1)  /* what an empty window reads: the counters in use, and last the cycle counter */
reading:        .skip 8 * (EVENTS + 1)  /* what the last window read */
scratch:        .skip 16                /* what the loads and stores of a loop touch */

.macro address reg, symbol
    adrp    \reg, \symbol
    add     \reg, \reg, :lo12:\symbol
.endm

    .text
/* ---- The PMU, and which event goes on which counter ---- */
describe:
    mov     x27, x30
    say     "demo: pmuvisor's bare-metal guest\n"
    mrs     x9, id_aa64dfr0_el1
    ubfx    x9, x9, #8, #4              /* PMUVer: 0 none, 15 not an architected one */
    cbz     x9, 1f
    cmp     x9, #15
    b.eq    1f
    mrs     x0, pmcr_el0
    ubfx    event_counters, x0, #11, #5
    say     "demo: PMUVer "
    say_dec x9
    say     ", event counters "
    say_dec event_counters
    say     ", PMCEID0 "
    mrs     x9, pmceid0_el0
    say_hex x9
    say     ", PMCEID1 "
    mrs     x9, pmceid1_el0
    say_hex x9
    say     "\n"
    ret     x27
1:  say     "demo: FAIL no PMU\n"
    b       power_off

/* Gives the events of the table to counters 0, 1, ... in order, as far as both last. */
assign_events:
    mov     x27, x30
    mov     x0, #(PMCR_E | PMCR_P | PMCR_C | PMCR_LC)
    msr     pmcr_el0, x0
    mov     x0, #0xffffffff
    msr     pmcntenclr_el0, x0
    msr     pmintenclr_el1, x0
    msr     pmovsclr_el0, x0
    msr     pmccfiltr_el0, xzr
    isb
    mov     used, #0
    mov     sw_incr, #0
    address x10, events
    add     x11, x10, #(32 * EVENTS)
1:  bl      assign_event
    add     x10, x10, #32
    cmp     x10, x11
    b.ne    1b
    mov     counters, #1
    lsl     counters, counters, used
    sub     counters, counters, #1
    orr     counters, counters, #CYCLE_COUNTER
    ret     x27

/* x10: row of "events". Changes x12, x13. */
assign_event:
    mov     x26, x30
    ldr     x12, [x10]
    mrs     x13, pmceid0_el0            /* bits 31:0 are events 0-31 ... */
    tbz     x12, #5, 1f
    mrs     x13, pmceid1_el0            /* ... and here events 32-63 */
1:  and     x0, x12, #31
    lsr     x13, x13, x0
    tbz     x13, #0, 3f
    cmp     used, event_counters
    b.hs    4f
    msr     pmselr_el0, used
    isb
    msr     pmxevtyper_el0, x12
    isb
    address x0, assigned
    str     x10, [x0, used, lsl #3]
    cmp     x12, #SW_INCR
    mov     x0, #1
    lsl     x0, x0, used
    csel    sw_incr, x0, sw_incr, eq
    say     "demo: counter "
    say_dec used
    say     " counts "
    add     x0, x10, #8
    bl      print_string
    say     "\n"
    add     used, used, #1
    ret     x26
3:  bl      say_skipped
    say     "PMCEID does not advertise it\n"
    ret     x26
4:  bl      say_skipped
    say     "no event counter left\n"
    ret     x26

say_skipped:
    mov     x25, x30
    say     "demo: skipped "
    add     x0, x10, #8
    bl      print_string
    say     ": "
    ret     x25

/* ---- Counting ---- */
/* x0: body, x1: its iterations, x2: where the readings go. A body may change x1, x12 and x13. */
measure:
    mov     x9, x30
    mrs     x3, pmcr_el0
    orr     x3, x3, #(PMCR_P | PMCR_C)
    msr     pmcr_el0, x3
    isb
    msr     pmcntenset_el0, counters
    isb
    blr     x0
    msr     pmcntenclr_el0, counters
    isb
    mov     x4, #0
1:  cmp     x4, used
    b.eq    2f
    msr     pmselr_el0, x4
    isb
    mrs     x5, pmxevcntr_el0
    str     x5, [x2, x4, lsl #3]
    add     x4, x4, #1
    b       1b
2:  mrs     x5, pmccntr_el0
    str     x5, [x2, #(8 * EVENTS)]
    ret     x9

/* Measured twice: the first time through is the one that costs something, were there caches. */
measure_empty:
    mov     x27, x30
    address x0, empty_body
    address x2, empty
    bl      measure
    address x0, empty_body
    address x2, empty
    bl      measure
    say     "demo: an empty window, taken off all that follows:"
    address x10, empty
    address x12, assigned
    mov     x11, #0
1:  cmp     x11, used
    b.eq    2f
    say     " "
    ldr     x0, [x12, x11, lsl #3]
    add     x0, x0, #8
    bl      print_string
    say     " "
    ldr     x9, [x10, x11, lsl #3]
    say_dec x9
    say     ","
    add     x11, x11, #1
    b       1b
2:  say     " cycles "
    ldr     x9, [x10, #(8 * EVENTS)]
    say_dec x9
    say     "\n"
    ret     x27

empty_body:
    ret

/* 2 instructions in an iteration, 1 of them a branch. */
plain_body:
    subs    x1, x1, #1
    b.ne    plain_body
    ret

/* 9 instructions in an iteration: 4 loads, 3 stores (a pair is one instruction), 1 branch. x10: scratch */
memory_body:
    ldr     x12, [x10]
    str     x12, [x10, #8]
    ldrb    w12, [x10, #1]
    ldp     x12, x13, [x10]
    stp     x12, x13, [x10]
    strb    w12, [x10, #2]
    ldr     w12, [x10, #4]
    sub     x1, x1, #1
    cbnz    x1, memory_body
    ret

/* 1 software increment in an iteration. How many instructions it retires is not checked: the write may trap. */
software_body:
    msr     pmswinc_el0, sw_incr
    subs    x1, x1, #1
    b.ne    software_body
    ret

#define PLAIN_LOOPS     1000000
#define MEMORY_LOOPS    500000
#define SOFTWARE_LOOPS  100

    .section .rodata
    .balign 8
/*              INST_RETIRED        BR_RETIRED      LD_RETIRED          ST_RETIRED          SW_INCR */
plain_counts:
    .quad       2 * PLAIN_LOOPS,    PLAIN_LOOPS,    0,                  0,                  0
memory_counts:
    .quad       9 * MEMORY_LOOPS,   MEMORY_LOOPS,   4 * MEMORY_LOOPS,   3 * MEMORY_LOOPS,   0
software_counts:
    .quad       UNCHECKED,          SOFTWARE_LOOPS, 0,                  0,                  SOFTWARE_LOOPS
    .text

measure_loops:
    mov     x27, x30
    say     "demo: loop of 1,000,000 iterations = 2,000,000 instructions\n"
    address x0, plain_body
    ldr     x1, =PLAIN_LOOPS
    address x23, plain_counts
    bl      measure_and_report
    say     "demo: loop of 500,000 iterations with loads and stores = 4,500,000 instructions\n"
    address x0, memory_body
    address x10, scratch
    ldr     x1, =MEMORY_LOOPS
    address x23, memory_counts
    bl      measure_and_report
    cbz     sw_incr, 1f
    say     "demo: loop of 100 software increments\n"
    address x0, software_body
    mov     x1, #SOFTWARE_LOOPS
    address x23, software_counts
    bl      measure_and_report
1:  ret     x27

/* x0: body, x1: its iterations, x23: what each event of "events" should read */
measure_and_report:
    mov     x26, x30
    address x2, reading
    bl      measure
    mov     x11, #0
1:  cmp     x11, used
    b.eq    2f
    bl      report_counter
    add     x11, x11, #1
    b       1b
2:  address x10, reading
    ldr     x9, [x10, #(8 * EVENTS)]
    address x10, empty
    ldr     x12, [x10, #(8 * EVENTS)]
    say     "demo:   cycles "
    sub     x12, x9, x12
    say_dec x12
    say     "\n"
    cbnz    x9, 3f
    fail    "the cycle counter stands still"
3:  ret     x26

/* x11: counter, x23: expected counts */
report_counter:
    mov     x25, x30
    address x10, reading
    ldr     x12, [x10, x11, lsl #3]
    address x10, empty
    ldr     x13, [x10, x11, lsl #3]
    sub     x12, x12, x13
    address x10, assigned
    ldr     x10, [x10, x11, lsl #3]
    address x13, events
    sub     x13, x10, x13               /* 32 bytes a row here, 8 in the expected counts */
    lsr     x13, x13, #2
    ldr     x13, [x23, x13]
    cmn     x13, #1                     /* UNCHECKED */
    b.eq    2f
    say     "demo:   "
    add     x0, x10, #8
    bl      print_string
    say     " "
    say_dec x12
    say     " expected "
    say_dec x13
    cmp     x12, x13
    b.ne    1f
    say     " exact\n"
    ret     x25
1:  say     "\n"
    fail    "the count above"
2:  ret     x25

/* ---- Overflow ---- */
/* The PMU's private interrupt, alone: group 1, any priority, level. */
gic_init:
    mov     x27, x30
    ldr     x9, =GICD
    mov     w10, #0x12                  /* GICD_CTLR: affinity routing, group 1 */
    str     w10, [x9]
    ldr     x9, =GICR
    str     wzr, [x9, #0x14]            /* GICR_WAKER: not asleep */
    mov     x11, #10000
1:  ldr     w10, [x9, #0x14]
    tbz     w10, #2, 2f                 /* ChildrenAsleep */
    subs    x11, x11, #1
    b.ne    1b
    fail    "the redistributor does not wake"
2:  ldr     x9, =GICR_SGI
    mov     w10, #0xffffffff
    str     w10, [x9, #0x80]            /* GICR_IGROUPR0 */
    mov     w10, #0x80808080
    str     w10, [x9, #(0x400 + (PMU_INTID & ~3))]      /* GICR_IPRIORITYR5 */
    mov     w10, #(1 << PMU_INTID)
    str     w10, [x9, #0x100]           /* GICR_ISENABLER0 */
    mov     x10, #1
    msr     s3_0_c12_c12_5, x10         /* ICC_SRE_EL1: system registers */
    isb
    mov     x10, #0xff
    msr     s3_0_c4_c6_0, x10           /* ICC_PMR_EL1: every priority */
    mov     x10, #1
    msr     s3_0_c12_c12_7, x10         /* ICC_IGRPEN1_EL1 */
    isb
    ret     x27

/*
 * What the interrupt handler leaves behind. It runs only during overflow_window, which uses none of these,
 * so that it needs no memory and its first instruction can already read the counter.
 */
interrupts      .req x11                /* how many were taken */
overflowed      .req x12                /* PMOVSCLR_EL0 before it was cleared */
event_counter   .req x13                /* set by the window: not 0 when it is an event counter that overflows */
counter_value   .req x14                /* event counter 0 at the handler's second instruction */
interrupted_at  .req x15                /* ELR_EL1 */
iterations_left .req x16
intid           .req x17

    .section .vectors, "ax"/* of its own, so that only the table is aligned */
    .balign 2048
vectors:
    .set    offset, 0
    .rept   16
    .balign 128
    .if     offset == 0x280             /* IRQ from EL1 with its own stack pointer */
    cbz     event_counter, 1f           /* event counter 0 may not exist */
    mrs     counter_value, pmevcntr0_el0
1:  mov     w14, w14                    /* from PMUv3p5 on, it goes on above the 32 bits where it overflows */
    mrs     interrupted_at, elr_el1
    mov     iterations_left, x1
    mrs     intid, s3_0_c12_c12_0       /* ICC_IAR1_EL1 */
    mrs     overflowed, pmovsclr_el0
    msr     pmovsclr_el0, overflowed
    isb                                 /* the line has fallen before the interrupt ends */
    msr     s3_0_c12_c12_1, intid       /* ICC_EOIR1_EL1 */
    isb
    add     interrupts, interrupts, #1
    cmp     interrupts, #2              /* one too many: return with interrupts masked, or this never ends */
    b.lo    2f
    mrs     x9, spsr_el1
    orr     x9, x9, #(1 << 7)
    msr     spsr_el1, x9
2:  eret
    .else
    mov     x9, #offset
    b       unexpected
    .endif
    .set    offset, offset + 128
    .endr

    .section .text.overflow, "ax"
unexpected:
    say     "demo: FAIL unexpected exception at vector "
    say_hex x9
    say     ": ESR "
    mrs     x9, esr_el1
    say_hex x9
    say     " ELR "
    mrs     x9, elr_el1
    say_hex x9
    say     " FAR "
    mrs     x9, far_el1
    say_hex x9
    say     "\n"
    b       power_off

#define OVERFLOW_LOOPS  1000000
#define OVERFLOW_AFTER  200001          /* instructions of the loop below: odd, so that subs is the last of them */
#define CYCLES_BEFORE   100000

/* x3: mask of the counter that is about to overflow, already preloaded */
overflow_window:
    mov     interrupts, #0
    mov     intid, #0
    ldr     x1, =OVERFLOW_LOOPS
    msr     pmovsclr_el0, x3
    msr     pmintenset_el1, x3
    msr     daifclr, #2
    isb
    msr     pmcntenset_el0, x3
    isb
overflow_loop:
    subs    x1, x1, #1
    b.ne    overflow_loop
    msr     pmcntenclr_el0, x3
    msr     daifset, #2
    msr     pmintenclr_el1, x3
    isb
    ret

/*
 * Event counter 0 is preloaded to overflow on the OVERFLOW_AFTER-th instruction of the loop. What the window counts
 * before the loop's first instruction (the isb, and the msr if that counts itself) is measured first, by reading the
 * counter where the loop would begin. The interrupt belongs before the next instruction: at loop+4, in iteration
 * 100,001, with the counter at 0. The handler's first instruction is counted too, so its second reads 1.
 */
event_overflow:
    mov     x27, x30
    cbz     used, 1f
    address x10, assigned
    ldr     x10, [x10]
    ldr     x10, [x10]
    cmp     x10, #INST_RETIRED
    b.eq    2f
1:  say     "demo: skipped the overflow of an event counter: none counts INST_RETIRED\n"
    ret     x27
2:  say     "demo: overflow after 200,001 instructions of a loop\n"
    mov     x3, #1
    msr     pmevcntr0_el0, xzr
    isb
    msr     pmcntenset_el0, x3
    isb
    mrs     x4, pmevcntr0_el0
    msr     pmcntenclr_el0, x3
    isb
    ldr     x5, =OVERFLOW_AFTER
    add     x5, x5, x4
    neg     w5, w5                      /* 32 bits: without PMCR_EL0.LP a counter overflows there */
    msr     pmevcntr0_el0, x5
    isb
    mov     event_counter, #1
    bl      overflow_window
    mov     x24, #1
    bl      report_interrupt
    cbz     interrupts, 3f
    bl      report_place
3:  ret     x27

/* The cycle counter overflows too. How many instructions that takes is the model's affair: only the interrupt is checked. */
cycle_overflow:
    mov     x27, x30
    say     "demo: overflow after 100,000 cycles\n"
    ldr     x5, =-CYCLES_BEFORE
    msr     pmccntr_el0, x5             /* 64 bits: PMCR_EL0.LC */
    isb
    mov     event_counter, #0
    mov     x3, #CYCLE_COUNTER
    bl      overflow_window
    mov     x24, #CYCLE_COUNTER
    bl      report_interrupt
    cbz     interrupts, 1f
    say     "\n"
1:  ret     x27

/* x24: what PMOVSCLR_EL0 should have read in the handler. Leaves its line open when an interrupt was taken. */
report_interrupt:
    mov     x26, x30
    cbnz    interrupts, 1f
    fail    "no overflow interrupt"
    ret     x26
1:  cmp     interrupts, #1
    b.eq    2f
    fail    "the overflow interrupt came again after it was cleared"
2:  cmp     intid, #PMU_INTID
    b.eq    3f
    fail    "interrupt number"
3:  cmp     overflowed, x24
    b.eq    4f
    fail    "overflow status in the handler"
4:  mrs     x9, pmovsset_el0
    cbz     x9, 5f
    fail    "overflow status is still set"
5:  say     "demo:   interrupt "
    say_dec intid
    say     ", overflow status "
    say_hex overflowed
    say     ", at loop+"
    address x9, overflow_loop
    sub     x9, interrupted_at, x9
    say_hex x9
    ret     x26

/* Of the event counter's interrupt: the place in the loop, and what the counter read there. */
report_place:
    mov     x26, x30
    address x9, overflow_loop
    sub     x9, interrupted_at, x9
    cmp     x9, #4
    b.hi    1f
    ldr     x10, =OVERFLOW_LOOPS
    sub     x10, x10, iterations_left   /* how often subs was executed: this iteration included at loop+4, not at loop+0 */
    eor     x9, x9, #4
    add     x11, x10, x9, lsr #2        /* the iteration, from 1 */
    add     x9, x10, x11
    sub     x9, x9, #1                  /* executed: x10 times subs and x11 - 1 times b.ne */
    ldr     x10, =OVERFLOW_AFTER
    sub     x9, x9, x10                 /* late by this many instructions */
    say     ", in iteration "
    say_dec x11
    say     ", late by "
    say_dec x9
    say     ", counter "
    say_dec counter_value
    cbnz    x9, 2f
    say     ": exact\n"
    b       3f
1:  say     ", counter "
    say_dec counter_value
    say     "\n"
    fail    "the interrupt came after the loop"
    ret     x26
2:  say     "\n"
    fail    "the interrupt is not on its instruction"
3:  add     x9, x9, #1
    cmp     x9, counter_value
    b.eq    4f
    fail    "the counter in the handler does not agree with the place"
4:  ret     x26
