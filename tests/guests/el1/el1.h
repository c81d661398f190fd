/*
 * What the programs in this folder share: start, results, exception vectors, EL0, the interrupt controller.
 *
 * A program defines PROGRAM, its name as a string, and may define SYNC_EL1, IRQ_EL1, SYNC_EL0 and IRQ_EL0, its own
 * handlers; then it includes this file and has a `main`, entered at EL1 with the MMU off, interrupts masked, and the
 * PMU in one known state: PMCR_EL0 is E and LC, every counter 0 and off, each event counter INST_RETIRED at EL1 and EL0.
 *
 * While a program measures it neither prints nor touches a device: `keep "label", x9` notes a value (2 instructions,
 * x17 changes), and when main returns all of them are printed, one line "PROGRAM: label 0xvalue" each, in order.
 *
 * x17 and x18 belong to `keep`, x28 to `el0`; print.h changes x0-x8 and x30. All else is the program's; what a handler
 * finds it leaves in registers, to be kept afterwards, so that a label can say which trial it is about.
 */
#include "print.h"

#define PMCR_E          (1 << 0)
#define PMCR_P          (1 << 1)
#define PMCR_C          (1 << 2)
#define PMCR_D          (1 << 3)
#define PMCR_LC         (1 << 6)
#define PMCR_LP         (1 << 7)
#define CYCLE           (1 << 31)

#define SW_INCR         0x00
#define INST_RETIRED    0x08
#define CPU_CYCLES      0x11
#define CHAIN           0x1e

#define EXCLUDE_EL1     (1 << 31)       /* PMEVTYPER<n>_EL0.P */
#define EXCLUDE_EL0     (1 << 30)       /* .U */
#define NSK             (1 << 29)
#define NSU             (1 << 28)

#define PMU_INTID       23
#define VTIMER_INTID    27
#define PTIMER_INTID    30
#define SPSR_EL0        0x3c0           /* EL0, everything masked */
#define SPSR_EL0_IRQ    0x340           /* the same with interrupts unmasked */

#define ICC_PMR_EL1     s3_0_c4_c6_0
#define ICC_IAR1_EL1    s3_0_c12_c12_0
#define ICC_EOIR1_EL1   s3_0_c12_c12_1
#define ICC_SRE_EL1     s3_0_c12_c12_5
#define ICC_IGRPEN1_EL1 s3_0_c12_c12_7

.macro address reg, symbol
    adrp    \reg, \symbol
    add     \reg, \reg, :lo12:\symbol
.endm

/* Notes a value under a label. 2 instructions. */
.macro keep label, reg
    .pushsection .rodata.str, "a"
9980: .asciz "\label"
    .popsection
    adr     x17, 9980b
    stp     x17, \reg, [x18], #16
.endm

/* Reads an event counter, where its number is the variable of an .irp in a macro. */
.macro counter reg, number
    mrs     \reg, pmevcntr\number\()_el0
.endm

.macro nops number
    .rept   \number
    nop
    .endr
.endm

/* Nothing counts any more, every counter is 0 and no overflow is noted. Changes x0. */
.macro quiet
    mov     x0, #0xffffffff
    msr     pmcntenclr_el0, x0
    msr     pmintenclr_el1, x0
    msr     pmovsclr_el0, x0
    mrs     x0, pmcr_el0
    orr     x0, x0, #(PMCR_P | PMCR_C)
    msr     pmcr_el0, x0
    isb
.endm

/*
 * What is between these two is counted by the counters of a mask. They count one of the two MSRs, whichever: the first
 * where a direct write acts before its own instruction is counted, the second where after.
 */
.macro open mask
    msr     pmcntenset_el0, \mask
.endm
.macro close mask
    msr     pmcntenclr_el0, \mask
.endm

/* Runs code at EL0, up to its `leave`: 6 instructions of EL1 before it. Changes x16 and x28. */
.macro el0 label, spsr=SPSR_EL0
    adr     x28, 9970f
    mov     x16, #\spsr
    msr     spsr_el1, x16
    adr     x16, \label
    msr     elr_el1, x16
    eret
9970:
.endm

/* Goes back from EL0 to where `el0` was: an SVC, and at EL1 the two instructions of `from_el0`. */
.macro leave
    svc     #0
.endm

#ifndef SYNC_EL1
#define SYNC_EL1        unexpected
#endif
#ifndef IRQ_EL1
#define IRQ_EL1         unexpected
#endif
#ifndef SYNC_EL0
#define SYNC_EL0        from_el0
#endif
#ifndef IRQ_EL0
#define IRQ_EL0         unexpected
#endif

    .text
    .globl  _start
_start:
    address x0, stack_top
    mov     sp, x0
    address x18, kept
    address x0, vectors
    msr     vbar_el1, x0
    msr     daifset, #15
    mov     x0, #(PMCR_E | PMCR_LC)
    msr     pmcr_el0, x0
    msr     pmccfiltr_el0, xzr
    msr     pmuserenr_el0, xzr
    mov     x0, #INST_RETIRED
    .irp    n, 0, 1, 2, 3, 4, 5
    msr     pmevtyper\n\()_el0, x0
    .endr
    quiet
    bl      main
    address x19, kept
1:  cmp     x19, x18
    b.eq    2f
    say     PROGRAM
    say     ": "
    ldr     x0, [x19], #8
    bl      print_string
    say     " "
    ldr     x0, [x19], #8
    bl      print_hex
    say     "\n"
    b       1b
2:  b       power_off

    .section .vectors, "ax"
    .balign 2048
vectors:
    .set    offset, 0
    .rept   16
    .balign 128
    .if     offset == 0x200
    b       SYNC_EL1
    .elseif offset == 0x280
    b       IRQ_EL1
    .elseif offset == 0x400
    b       SYNC_EL0
    .elseif offset == 0x480
    b       IRQ_EL0
    .else
    b       unexpected
    .endif
    .set    offset, offset + 128
    .endr

/* Goes on behind the `el0` that was left; an exception from EL0 that is no SVC is not expected. */
from_el0:
    br      x28

unexpected:
    say     PROGRAM
    say     ": unexpected exception: ESR "
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

/*
 * A handler of the PMU's interrupt for programs that define IRQ_EL1 or IRQ_EL0 as it. Leaves event counter 0 and the
 * cycle counter at its first instructions in x9 and x10, the place interrupted in x11 as an offset from x26, the INTID
 * in x12 and the overflow status, which it clears, in x13; adds 1 to x14.
 */
pmu_irq:
    mrs     x9, pmevcntr0_el0
    mrs     x10, pmccntr_el0
    mrs     x11, elr_el1
    sub     x11, x11, x26
    mrs     x12, ICC_IAR1_EL1
    mrs     x13, pmovsclr_el0
    msr     pmovsclr_el0, x13
    isb
    msr     ICC_EOIR1_EL1, x12
    isb
    add     x14, x14, #1
    eret

.macro keep_irq name
    keep    "\name\().counter", x9
    keep    "\name\().cycles", x10
    keep    "\name\().at", x11
    keep    "\name\().intid", x12
    keep    "\name\().ovs", x13
    keep    "\name\().interrupts", x14
.endm

/* Private interrupts 23, 27 and 30 of this CPU: group 1, equal priority, enabled. Changes x0 and x1. */
gic_init:
    ldr     x0, =0x08000000
    mov     w1, #0x12                   /* GICD_CTLR: affinity routing, group 1 */
    str     w1, [x0]
    ldr     x0, =0x080a0000
    str     wzr, [x0, #0x14]            /* GICR_WAKER */
1:  ldr     w1, [x0, #0x14]
    tbnz    w1, #2, 1b                  /* ChildrenAsleep */
    ldr     x0, =0x080b0000
    mov     w1, #0xffffffff
    str     w1, [x0, #0x80]             /* GICR_IGROUPR0 */
    mov     w1, #0x80808080
    .irp    n, PMU_INTID, VTIMER_INTID, PTIMER_INTID
    str     w1, [x0, #(0x400 + (\n & ~3))]      /* GICR_IPRIORITYR<n> */
    .endr
    ldr     w1, =((1 << PMU_INTID) | (1 << VTIMER_INTID) | (1 << PTIMER_INTID))
    str     w1, [x0, #0x100]            /* GICR_ISENABLER0 */
    mov     x0, #1
    msr     ICC_SRE_EL1, x0
    isb
    mov     x0, #0xff
    msr     ICC_PMR_EL1, x0
    mov     x0, #1
    msr     ICC_IGRPEN1_EL1, x0
    isb
    ret

    .bss
    .balign 16
kept:   .skip   16 * 512

    .text
