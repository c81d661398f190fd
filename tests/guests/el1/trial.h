/* One exception in the middle of counted code, for programs that define SYNC_EL1 as `handler`. */

/* `instruction` after 3 others and before 2, counted; the handler is entered at EL1 and returns behind it. */
.macro trial name, instruction:vararg
    mov     x9, #0
    mov     x10, #0
    mov     x11, #0
    mov     x12, #0
    adr     x25, 2f
    adr     x26, 1f
    open    x20
    nops    3
1:  \instruction
2:  nops    2
    close   x20
    keep    "\name\().before", x9
    keep    "\name\().esr", x10
    keep    "\name\().elr", x11
    keep    "\name\().far", x12
    mrs     x9, pmevcntr0_el0
    mrs     x10, pmccntr_el0
    keep    "\name\().after", x9
    keep    "\name\().cycles", x10
    quiet
.endm

/* 9 instructions. x9: counter 0 at the first of them; x10: ESR; x11: ELR, from x26; x12: FAR; goes on at x25. */
handler:
    mrs     x9, pmevcntr0_el0
    mrs     x10, esr_el1
    mrs     x11, elr_el1
    sub     x11, x11, x26
    mrs     x12, far_el1
    msr     elr_el1, x25
    add     x13, x13, #1
    nop
    eret
