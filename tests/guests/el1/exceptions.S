/* Exceptions in the middle of straight-line code: what is retired before, in and after, and what the handler is told. */
#define PROGRAM "exceptions"
#define SYNC_EL1 handler
#define SYNC_EL0 handler_el0
#include "el1.h"
#include "trial.h"

#define NOWHERE 0x0b000000              /* a physical address at which neither machine has anything */

main:
    mov     x27, x30
    ldr     x20, =(CYCLE | 1)
    ldr     x21, =NOWHERE
    msr     far_el1, xzr
    trial   "svc", svc #0x123
    trial   "undefined", .inst 0
    trial   "no.register", mrs x0, s3_0_c15_c15_7
    trial   "read.only", .inst 0xd5180000       /* msr midr_el1, x0 */
    trial   "beyond.n", mrs x0, pmevcntr6_el0
    trial   "brk", brk #0x77
    trial   "load", ldr x0, [x21, #8]
    trial   "store", str w0, [x21, #4]
    trial   "pair", ldp x0, x1, [x21, #16]
    msr     far_el1, xzr
    trial   "none", nop

    /* An instruction abort: the branch itself retires, what it leads to does not. */
    trial   "fetch", br x21
    add     x22, x21, #2                /* a PC alignment fault comes before an abort of the fetch */
    trial   "misaligned.nowhere", br x22
    sub     x22, x27, #2
    trial   "misaligned", br x22

    /* Eight in a row, with one instruction between: blocks of every length are left midway. */
    mov     x13, #0
    open    x20
    .irp    n, 1, 2, 3, 4, 5, 6, 7, 8
    adr     x25, 1f
    svc     #\n
1:  nops    \n
    adr     x25, 2f
    ldr     x0, [x21]
2:  nop
    .endr
    close   x20
    mrs     x9, pmevcntr0_el0
    keep    "row", x9
    keep    "row.handled", x13
    quiet

    /* At EL0: undefined, an abort, BRK, and SVC, each left behind by the handler. */
    mov     x13, #0
    ldr     x0, =(INST_RETIRED | EXCLUDE_EL1)
    msr     pmevtyper1_el0, x0
    mov     x20, #3
    isb
    open    x20
    el0     below
    close   x20
    mrs     x9, pmevcntr0_el0
    mrs     x10, pmevcntr1_el0
    keep    "el0.all", x9
    keep    "el0.el0", x10
    keep    "el0.esrs", x14
    keep    "el0.handled", x13
    quiet
    ret     x27

below:
    mov     x14, #0
    adr     x25, 1f
    .inst   0
1:  nop
    adr     x25, 2f
    ldr     x0, [x21]
2:  adr     x25, 3f
    mrs     x0, sctlr_el1
3:  nops    2
    adr     x25, 4f
    svc     #1
4:  leave

/* x14 collects the ESRs, each over the last one. */
handler_el0:
    mrs     x15, esr_el1
    eor     x14, x15, x14, ror #13
    add     x13, x13, #1
    lsr     x16, x15, #26
    cmp     x16, #0x15                  /* SVC ... */
    b.ne    1f
    tst     x15, #0xffff                /* ... 0 */
    b.eq    from_el0
1:  msr     elr_el1, x25
    eret
