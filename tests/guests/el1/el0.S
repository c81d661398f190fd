/* EL0 and EL1 in turn: SVC and ERET are counted where they are executed; EL0 reads the counters itself. */
#define PROGRAM "el0"
#define SYNC_EL0 sync_el0
#define IRQ_EL0 pmu_irq
#define IRQ_EL1 pmu_irq
#include "el1.h"

main:
    mov     x27, x30
    bl      gic_init
    /* 0: both, 1: EL0, 2: EL1, 3: cycles at EL0; the cycle counter: EL0 */
    mov     x0, #(INST_RETIRED)
    msr     pmevtyper0_el0, x0
    ldr     x0, =(INST_RETIRED | EXCLUDE_EL1)
    msr     pmevtyper1_el0, x0
    ldr     x0, =(INST_RETIRED | EXCLUDE_EL0)
    msr     pmevtyper2_el0, x0
    ldr     x0, =(CPU_CYCLES | EXCLUDE_EL1)
    msr     pmevtyper3_el0, x0
    mov     x0, #EXCLUDE_EL1
    msr     pmccfiltr_el0, x0
    ldr     x20, =(CYCLE | 0xf)
    mov     x0, #0xd                    /* PMUSERENR_EL0: EN, CR, ER */
    msr     pmuserenr_el0, x0
    isb

    .irp    n, 1, 2, 100
    mov     x1, #\n
    mov     x13, #0
    open    x20
    el0     calls
    close   x20
    mrs     x9, pmevcntr0_el0
    mrs     x10, pmevcntr1_el0
    mrs     x11, pmevcntr2_el0
    mrs     x12, pmevcntr3_el0
    mrs     x14, pmccntr_el0
    keep    "svc.\n\().all", x9
    keep    "svc.\n\().el0", x10
    keep    "svc.\n\().el1", x11
    keep    "svc.\n\().cycles", x12
    keep    "svc.\n\().ccntr", x14
    keep    "svc.\n\().handled", x13
    quiet
    .endr

    open    x20
    el0     reads
    close   x20
    keep    "read.el0", x9
    keep    "read.el0.next", x10
    keep    "read.el1", x11
    keep    "read.ccntr", x12
    keep    "read.all", x13
    quiet

    /* EL0 switches its counters itself. */
    mov     x1, #10
    el0     measures
    keep    "measured", x9
    quiet

    /* An overflow at EL0 of a counter of EL0 only: the cycle counter, at 64 bits. */
    mov     x0, #-30
    msr     pmccntr_el0, x0
    mov     x0, #CYCLE
    msr     pmintenset_el1, x0
    mov     x14, #0
    mov     x1, #100
    adr     x26, loop
    open    x0
    el0     loop, SPSR_EL0_IRQ
    close   x0
    keep_irq "irq"
    quiet

    /* The same of an event counter. */
    ldr     x0, =0xffffffe2
    msr     pmevcntr1_el0, x0
    mov     x0, #2
    msr     pmintenset_el1, x0
    mov     x14, #0
    mov     x1, #100
    adr     x26, loop
    open    x0
    el0     loop, SPSR_EL0_IRQ
    close   x0
    msr     daifclr, #2                 /* for who notices it late */
    nop
    msr     daifset, #2
    keep_irq "irq.event"
    quiet
    ret     x27

/* SVC 0 is `leave`; others are counted in x13 and return. */
sync_el0:
    mrs     x15, esr_el1
    ands    x15, x15, #0xffff
    b.eq    from_el0
    add     x13, x13, x15
    eret

/* x1 times 3 instructions and 5 of the handler. */
calls:
    svc     #1
    subs    x1, x1, #1
    b.ne    calls
    leave

reads:
    mrs     x9, pmevcntr1_el0
    mrs     x10, pmevcntr1_el0
    mrs     x11, pmevcntr2_el0
    mrs     x12, pmccntr_el0
    mrs     x13, pmevcntr0_el0
    leave

measures:
    mov     x0, #2
    msr     pmcntenset_el0, x0
1:  subs    x1, x1, #1
    b.ne    1b
    msr     pmcntenclr_el0, x0
    mrs     x9, pmevcntr1_el0
    leave

loop:
    subs    x1, x1, #1
    b.ne    loop
    leave
