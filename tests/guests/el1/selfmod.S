/* Code that changes itself, with the maintenance that the architecture asks for, and is counted. */
#define PROGRAM "selfmod"
#include "el1.h"

#define ADD_1   0x91000400              /* add x0, x0, #1 */
#define ADD_16  0x91004000              /* add x0, x0, #16 */

/* Writes an instruction and makes it visible: 6 instructions. */
.macro patch address, instruction
    str     \instruction, [\address]
    dc      cvau, \address
    dsb     ish
    ic      ivau, \address
    dsb     ish
    isb
.endm

main:
    mov     x27, x30
    ldr     x20, =(CYCLE | 1)
    ldr     w21, =ADD_1
    ldr     w22, =ADD_16

    /* A subroutine that is another one at every call. */
    adr     x23, subroutine
    mov     x0, #0
    mov     x1, #20
    open    x20
1:  tst     x1, #1
    csel    w2, w21, w22, ne
    patch   x23, w2
    bl      subroutine
    subs    x1, x1, #1
    b.ne    1b
    close   x20
    mov     x9, x0
    keep    "subroutine.result", x9
    mrs     x9, pmevcntr0_el0
    mrs     x10, pmccntr_el0
    keep    "subroutine.inst", x9
    keep    "subroutine.ccntr", x10
    quiet

    /* The very next instruction of the same straight line. */
    adr     x23, 1f
    mov     x0, #0
    open    x20
    patch   x23, w21
1:  nop
    nop
    close   x20
    mov     x9, x0
    keep    "next.result", x9
    mrs     x9, pmevcntr0_el0
    keep    "next.inst", x9
    quiet

    /* A loop that ends because it turned its own branch into something else. */
    adr     x23, 2f
    mov     x0, #0
    mov     x1, #0
    open    x20
1:  add     x1, x1, #1
    cmp     x1, #5
    b.ne    2f
    patch   x23, w22
2:  b       1b
    nop
    close   x20
    keep    "loop.iterations", x1
    mov     x9, x0
    keep    "loop.result", x9
    mrs     x9, pmevcntr0_el0
    keep    "loop.inst", x9
    quiet

    /* A branch written over a NOP makes a block shorter; a NOP over the branch, longer again. */
    adr     x23, 2f
    ldr     w21, =0x14000003            /* b 3f */
    ldr     w22, =0xd503201f            /* nop */
    mov     x1, #3
    mov     x0, #0
    open    x20
1:  patch   x23, w22
    bl      shortened
    patch   x23, w21
    bl      shortened
    subs    x1, x1, #1
    b.ne    1b
    close   x20
    mov     x9, x0
    keep    "shortened.result", x9
    mrs     x9, pmevcntr0_el0
    keep    "shortened.inst", x9
    quiet
    ret     x27

subroutine:
    nop
    ret

shortened:
    nop
2:  nop
    add     x0, x0, #1
    add     x0, x0, #1
3:  add     x0, x0, #0x100
    ret
