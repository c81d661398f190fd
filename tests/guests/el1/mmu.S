/* With the MMU on: faults of translation and permission in counted code, code at another address, a changed table. */
#define PROGRAM "mmu"
#define SYNC_EL1 handler
#define SYNC_EL0 handler_el0
#include "el1.h"
#include "trial.h"

#define BLOCK       0x401               /* a valid block with the access flag */
#define NORMAL      ((1 << 2) | (3 << 8))
#define DEVICE      ((1 << 53) | (1 << 54))
#define EL0_TOO     (1 << 6)
#define READ_ONLY   (1 << 7)
#define RAM         0x40000000

/* Virtual gigabytes */
#define ALIAS       (2 << 30)           /* RAM again */
#define NOTHING     (3 << 30)
#define CONSTANT    (4 << 30)           /* RAM, read-only */
#define USER        (5 << 30)           /* RAM, for EL0 too */

main:
    mov     x27, x30
    address x0, table
    ldr     x1, =(BLOCK | DEVICE)
    str     x1, [x0]
    ldr     x1, =(RAM | BLOCK | NORMAL)
    str     x1, [x0, #8]
    str     x1, [x0, #16]
    orr     x2, x1, #READ_ONLY
    str     x2, [x0, #32]
    orr     x2, x1, #EL0_TOO
    str     x2, [x0, #40]
    dsb     sy
    msr     ttbr0_el1, x0
    mov     x1, #0xff00                 /* attribute 0 is Device-nGnRnE, 1 write-back */
    msr     mair_el1, x1
    ldr     x1, =((2 << 32) | (1 << 23) | 0x3500 | 25)      /* 39 bits of address, 4 KiB granule, no TTBR1 */
    msr     tcr_el1, x1
    isb
    mrs     x1, sctlr_el1
    ldr     x2, =0x1005                 /* M, C, I */
    orr     x1, x1, x2
    msr     sctlr_el1, x1
    isb

    ldr     x20, =(CYCLE | 1)
    ldr     x21, =NOTHING
    ldr     x22, =(CONSTANT + 0x300000)
    ldr     x23, =(ALIAS + 0x300000)
    msr     far_el1, xzr
    trial   "load", ldr x0, [x21, #8]
    trial   "store", str x0, [x21, #16]
    trial   "read.only", str x0, [x22, #24]
    trial   "fetch", br x21
    trial   "fine", ldr x0, [x23]
    trial   "address.translation", at s1e1r, x21
    mrs     x9, par_el1
    keep    "address.translation.par", x9

    /* The same code at its other address. */
    adr     x0, somewhere
    ldr     x1, =(ALIAS - RAM)
    add     x1, x0, x1
    mov     x2, #30
    open    x20
    blr     x0
    mov     x2, #30
    blr     x1
    close   x20
    mov     x12, x3
    mrs     x9, pmevcntr0_el0
    mrs     x10, pmccntr_el0
    keep    "alias.inst", x9
    keep    "alias.cycles", x10
    sub     x12, x12, x1
    keep    "alias.from", x12
    quiet

    /* A table entry is made, used, and taken away, while it is counted. */
    address x0, table
    ldr     x1, [x0, #16]
    mov     x13, #0
    adr     x26, 2f
    adr     x25, 3f
    open    x20
    str     x1, [x0, #24]
    dsb     ish
    isb
    ldr     x2, [x21]
    str     xzr, [x0, #24]
    dsb     ish
    tlbi    vmalle1
    dsb     ish
    isb
2:  ldr     x3, [x21]
3:  nop
    close   x20
    keep    "table.esr", x10
    keep    "table.at", x11
    keep    "table.faults", x13
    mrs     x9, pmevcntr0_el0
    keep    "table.inst", x9
    quiet

    /* EL0 has its own gigabyte; EL1's is not for it. */
    ldr     x0, =(INST_RETIRED | EXCLUDE_EL1)
    msr     pmevtyper0_el0, x0
    adr     x0, user
    ldr     x1, =(USER - RAM)
    add     x0, x0, x1
    adr     x28, 4f
    mov     x2, #SPSR_EL0
    msr     spsr_el1, x2
    msr     elr_el1, x0
    ldr     x22, =(USER + 0x300000)
    ldr     x23, =(RAM + 0x300000)
    mov     x13, #0
    open    x20
    eret
4:  close   x20
    mrs     x12, pmevcntr0_el0
    keep    "el0.esr", x9
    keep    "el0.far", x10
    keep    "el0.faults", x13
    keep    "el0.inst", x12
    quiet
    ret     x27

/* x2 times 4 instructions, and 2; leaves where it is in x3. */
somewhere:
    adr     x3, somewhere
1:  ldr     x4, [x23]
    add     x4, x4, x2
    subs    x2, x2, #1
    b.ne    1b
    ret

user:
    ldr     x0, [x22]
    str     x0, [x22]
    nop
    ldr     x0, [x23]
    nop
    str     x0, [x23]
    leave

/* Goes on behind an abort; leaves the first one's ESR and FAR in x9 and x10, and counts them in x13. */
handler_el0:
    mrs     x15, esr_el1
    lsr     x16, x15, #26
    cmp     x16, #0x15                  /* SVC */
    b.eq    from_el0
    cbnz    x13, 1f
    mov     x9, x15
    mrs     x10, far_el1
1:  add     x13, x13, #1
    mrs     x15, elr_el1
    add     x15, x15, #4
    msr     elr_el1, x15
    eret

    .bss
    .balign 4096
table:
    .skip   4096
