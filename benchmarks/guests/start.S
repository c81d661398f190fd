/*
 * Entry, exceptions and the way out of the benchmarks' guest. The handler of the PMU's interrupt is what a profiler's
 * would be at its shortest: acknowledge, start the next period, clear the overflow, end.
 */
#define PSCI_SYSTEM_OFF 0x84000008

    .text
    .globl  _start
_start:
    ldr     x0, =stack_top
    mov     sp, x0
    ldr     x0, =vectors
    msr     vbar_el1, x0
    msr     daifset, #15
    isb
    bl      guest
off:
    ldr     x0, =PSCI_SYSTEM_OFF
    hvc     #0
1:  wfi
    b       1b

    .section .vectors, "ax"
    .balign 2048
vectors:
    .set    offset, 0
    .rept   16
    .balign 128
    .if     offset == 0x280             /* IRQ from EL1 with its own stack pointer */
    stp     x0, x1, [sp, #-16]!
    mrs     x0, s3_0_c12_c12_0          /* ICC_IAR1_EL1 */
    ldr     x1, =reload
    ldr     x1, [x1]
    msr     pmevcntr0_el0, x1
    mov     x1, #1
    msr     pmovsclr_el0, x1
    isb                                 /* the line has fallen before the interrupt ends */
    msr     s3_0_c12_c12_1, x0          /* ICC_EOIR1_EL1 */
    ldr     x1, =samples
    ldr     x0, [x1]
    add     x0, x0, #1
    str     x0, [x1]
    ldp     x0, x1, [sp], #16
    eret
    .else
    bl      unexpected
    b       off
    .endif
    .set    offset, offset + 128
    .endr
