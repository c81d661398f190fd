"""Guests for tests of sampling: every addressing mode, kinds of branches, levels, registers, devices, faults."""

from __future__ import annotations

from pmuvisor.arch.sysreg import PMCCNTR_EL0, PMOVSCLR_EL0, PMXEVCNTR_EL0
from pmuvisor.board.engine import RAM_BASE, Action, Engine, GuestMemory

RAM_SIZE = 16 << 20
STACK = RAM_BASE + 0x80_0000
DEVICE = 0x0900_0000

ADDRESSING = """
// x0 rounds over loads and stores of every addressing mode, with bases that are written before and after.
    mrs   x1, cpacr_el1
    orr   x1, x1, #(3 << 20)
    msr   cpacr_el1, x1
    isb
    mov   x19, x0
    ldr   x20, =0x40200000
    mov   x21, #-16
    mov   w22, #-3
1:  mov   x1, x20
    ldr   x2, [x1]
    ldr   x2, [x1, #8]
    ldur  x2, [x1, #-9]
    ldr   x2, [x1], #24
    ldr   x2, [x1, #16]!
    str   x2, [x1], #-8
    strb  w2, [x1, #-1]!
    ldrsh w3, [x1, x21]
    ldr   x3, [x1, x21, lsl #3]
    ldr   w3, [x1, w22, sxtw]
    ldr   x3, [x1, w22, sxtw #3]
    add   w4, w22, #19
    ldr   x3, [x1, w4, uxtw #3]
    strh  w3, [x1, x4, sxtx #1]
    ldrb  w3, [x1, xzr]
    ldp   x5, x6, [x1]
    stp   w5, w6, [x1, #-24]
    ldp   x5, x6, [x1], #32
    stp   x5, x6, [x1, #-48]!
    ldpsw x5, x6, [x1, #4]
    ldnp  x5, x6, [x1, #16]
    ldr   x7, =0x123456789
    ldrsw x8, 9f
    b     2f
9:  .word 77
2:  prfm  pldl1keep, [x1]
    ldtr  x5, [x1, #1]
    // A chain of pointers through one register.
    add   x9, x20, #0x400
    str   x9, [x9]
    mov   x10, x9
    ldr   x10, [x10]
    ldr   x10, [x10]
    ldr   x10, [x10, #0]
    add   x10, x10, #8
    ldr   x11, [x10]
    ldr   x10, [x9]
    ldr   x12, [x10], #8
    ldr   x12, [x10], #8
    ldr   x12, [x10, #8]!
    sub   sp, sp, #32
    str   x12, [sp, #8]
    stp   x12, x11, [sp, #16]
    ldr   x12, [sp], #32
    // Exclusive and ordered.
    ldar  x13, [x9]
    stlr  x13, [x9]
    ldxr  x13, [x9]
    stxr  w14, x13, [x9]
    ldaxr w13, [x9]
    stlxr w14, w13, [x9]
    ldxp  x13, x15, [x9]
    stlxp w14, x13, x15, [x9]
    ldaxrb w9, [x9]
    add   x9, x20, #0x480
    // SIMD and floating point.
    ldr   q0, [x9]
    str   q0, [x9, #16]
    ldr   d1, [x9, x21, lsl #3]
    stur  s1, [x9, #3]
    ldr   q0, [x9], #16
    ldr   q2, [x9, w22, sxtw #4]
    ldp   q0, q1, [x9, #32]
    stp   d0, d1, [x9, #-16]!
    ldr   s3, 9b
    ld1   {v0.16b, v1.16b}, [x9]
    ld1   {v0.16b}, [x9], #16
    mov   x16, #8
    st1   {v0.8h}, [x9], x16
    ld4   {v0.4s - v3.4s}, [x9], #64
    st2   {v0.b, v1.b}[3], [x9]
    ld1   {v0.d}[1], [x9], #8
    ld1r  {v2.2d}, [x9]
    umov  w9, v0.b[3]
    fmov  d0, x20
    fmov  x9, d0
    ldr   x9, [x9, #8]
    add   x9, x20, #0x513
    dc    zva, x9
    dc    cvac, x9
    cmp   x9, x20
    csel  x17, x9, x20, ne
    ccmp  x17, x9, #0, eq
    fcsel d0, d0, d1, ne
    fccmp d0, d1, #0, ne
    cset  w17, eq
    cmp   x9, x20
    ldr   x17, [sp, #-8]
    adrp  x9, .
    ldr   x9, [x9]
    tbz   x19, #0, 3f
    ldr   x9, [x20]
3:  subs  x19, x19, #1
    b.ne  1b
    wfi
    b     .
"""

BRANCHES = """
// x0 rounds of branches taken and not, calls, and a jump table.
    mov   x19, x0
    mov   x20, #0
1:  cmp   x20, #3
    b.lo  2f
    b.hi  2f
    b.al  2f
2:  cbz   x20, 3f
    cbnz  x20, 3f
    nop
3:  tbz   x20, #1, 4f
    tbnz  x20, #0, 4f
4:  b     5f
    nop
5:  b.eq  6f
6:  b     7f
7:  bl    function
    adr   x1, function
    blr   x1
    adr   x1, table
    and   x2, x20, #3
    add   x1, x1, x2, lsl #3
    br    x1
table:
    add   x20, x20, #1
    b     8f
    add   x20, x20, #2
    b     8f
    add   x20, x20, #3
    b     8f
    add   x20, x20, #5
    b     8f
8:  subs  x19, x19, #1
    b.ne  1b
    wfi
    b     .
function:
    cbz   x20, 1f
    stp   x29, x30, [sp, #-16]!
    bl    leaf
    ldp   x29, x30, [sp], #16
1:  ret
leaf:
    adr   x3, 2f
    ret   x3
2:  br    x30
"""

LEVELS = f"""
// x0 rounds at EL0, with system calls, faults, registers that the machine does, and a device.
    adr   x1, vectors
    msr   vbar_el1, x1
    mov   x19, x0
    ldr   x20, ={DEVICE:#x}
    ldr   x21, =0x01000000 // nothing there
    ldr   x22, =0x40300000
    msr   contextidr_el1, x20
    adr   x1, user
    msr   elr_el1, x1
    mov   x1, #0x3c0
    msr   spsr_el1, x1
    ldr   x1, =0x40700000
    msr   sp_el0, x1
    eret
    .balign 2048
vectors:
    .rept 4
    b     . ; .balign 128
    .endr
    b     sync ; .balign 128
    .rept 3
    b     . ; .balign 128
    .endr
    b     sync ; .balign 128
    .rept 7
    b     . ; .balign 128
    .endr
sync:
    stp   x0, x1, [sp, #-16]!
    mrs   x0, esr_el1
    lsr   x1, x0, #26
    cmp   x1, #0x15
    b.eq  1f
    mrs   x0, elr_el1
    add   x0, x0, #4
    msr   elr_el1, x0
    b     2f
1:  tst   x0, #1
    b.eq  2f
    msr   contextidr_el1, x19
    mrs   x1, pmccntr_el0
    ldr   w0, [x20, #8]
    str   w0, [x20, #12]
2:  ldp   x0, x1, [sp], #16
    ldr   xzr, [sp, #-16]
    eret
user:
    str   x19, [sp, #-16]!
    svc   #0
    ldr   x2, [x22], #8
    ldr   x3, [x21]
    str   x3, [x22, #8]!
    svc   #1
    mrs   x4, pmccntr_el0
    ldr   x5, [sp]
    msr   pmovsclr_el0, x5
    udf   #0
    ldr   w6, [x20]
    ldr   x7, [x20, #16]
    str   w7, [x20, #4]
    mrs   x8, pmxevcntr_el0
    mrs   x9, cntvct_el0
    brk   #3
    mrs   x10, nzcv
    msr   nzcv, x10
    ldp   x11, x12, [x22, #-16]!
    isb
    dsb   sy
    ldr   x11, [sp], #16
    subs  x19, x19, #1
    b.ne  user
    mov   x0, #7
    hint  #17 // psb csync
    wfi
    b     .
"""

SELF_MODIFYING = """
// x0 rounds; each rewrites what the next one executes: an ADD, or a load.
    mov   x19, x0
    adr   x20, patch
    adr   x21, words
    ldr   x22, =0x40200000
1:  and   x1, x19, #3
    ldr   w2, [x21, x1, lsl #2]
    str   w2, [x20]
    dc    cvau, x20
    dsb   ish
    ic    ivau, x20
    dsb   ish
    isb
    mov   x3, x22
    add   x3, x3, #8
patch:
    nop
    ldr   x4, [x3]
    subs  x19, x19, #1
    b.ne  1b
    wfi
    b     .
words:
    add   x3, x3, #8
    ldr   x5, [x3], #16
    str   x19, [x22, #32]
    cbz   x19, patch + 4
"""


def on_sysreg(key: int, write: bool, value: int) -> int:
    return key * 3


def with_devices(code: bytes, x0: int) -> Engine:
    """An engine for these programs: some registers of the PMU and a device answer."""
    ram = GuestMemory(RAM_SIZE)
    ram.write(RAM_BASE, code)
    engine = Engine(ram, on_sysreg)
    for key in (PMCCNTR_EL0, PMOVSCLR_EL0):
        engine.set_action(key, Action.CALL)
    engine.set_action(PMXEVCNTR_EL0, Action.STORE, 5)
    engine.map_mmio(DEVICE, 0x1000, lambda offset, size: offset * size, lambda offset, size, value: None)
    engine.start(RAM_BASE, x0)
    engine.sp = STACK
    engine.set_clock(0, 1, 1)
    return engine
