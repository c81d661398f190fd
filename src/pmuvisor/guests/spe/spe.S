/*
 * spe: a bare-metal guest that profiles itself with the Statistical Profiling Extension and knows what it has to find.
 *
 * It profiles a loop of LOOP_LENGTH instructions and reads every record. It is in assembly so that its bytes, and the
 * place of every instruction, depend on no compiler.
 *
 * Why the records are known. An operation is an instruction here: PMSIDR_EL1.ArchInst says so; a core that samples
 * micro-operations is taken to have one for each of the loop's instructions. The sample counter begins at 0. An
 * operation that finds it 0 reloads it with INTERVAL; any other takes 1 from it, and is sampled when that makes it 0.
 * So one operation in PERIOD = INTERVAL + 1 is sampled: the PERIOD-th since sampling was enabled, and so on. A window
 * of sampling is
 *         msr pmscr_el1           sampling begins at this write, or with the ISB: the architecture leaves it open
 *         isb
 *         the loop
 *         mrs pmbptr_el1          for what it reads too early
 *         msr pmscr_el1
 *         isb                     and ends somewhere here
 * The loop's first operation is the first or the second of the window. Which of them the first record tells, and then
 * all the others are known: instruction, iteration, and address. The number of iterations is so chosen that none of the
 * few instructions around the loop is ever the one sampled.
 *
 * The MMU is off: the buffer's addresses are physical ones, and memory is read byte by byte where it is not aligned.
 */
#include "print.h"

/* The registers by their encodings: not every assembler has their names. */
#define PMSCR_EL1       s3_0_c9_c9_0
#define PMSNEVFR_EL1    s3_0_c9_c9_1
#define PMSICR_EL1      s3_0_c9_c9_2
#define PMSIRR_EL1      s3_0_c9_c9_3
#define PMSFCR_EL1      s3_0_c9_c9_4
#define PMSEVFR_EL1     s3_0_c9_c9_5
#define PMSLATFR_EL1    s3_0_c9_c9_6
#define PMSIDR_EL1      s3_0_c9_c9_7
#define PMBLIMITR_EL1   s3_0_c9_c10_0
#define PMBPTR_EL1      s3_0_c9_c10_1
#define PMBSR_EL1       s3_0_c9_c10_3
#define PMBIDR_EL1      s3_0_c9_c10_7
#define PSB_CSYNC       hint #17

#define PMSCR_E1SPE     (1 << 1)
#define PMSCR_CX        (1 << 3)
#define PMSCR_TS        (1 << 5)
#define PMBLIMITR_E     (1 << 0)
#define PMBIDR_P        4
#define PMBSR_S         17
#define EC_BUFFER       0x00                /* a buffer management event that is no fault; BSC says which */
#define EC_STAGE1       0x24
#define BSC_FULL        1

#define PMSFCR_FE       (1 << 0)
#define PMSFCR_FT       (1 << 1)
#define PMSFCR_FL       (1 << 2)
#define PMSFCR_FNE      (1 << 3)
#define PMSFCR_B        (1 << 16)
#define PMSFCR_LD       (1 << 17)
#define PMSFCR_ST       (1 << 18)
#define PMSIDR_FE       0                   /* numbers of bits */
#define PMSIDR_FT       1
#define PMSIDR_FL       2
#define PMSIDR_FNE      6

#define EXCEPTION       (1 << 0)            /* events */
#define RETIRED         (1 << 1)
#define NOT_TAKEN       (1 << 6)
#define OTHER           0                   /* classes of the operation type packet */
#define LOAD_STORE      1
#define BRANCH          2
#define AT_EL1          0xa0                /* the top byte of an instruction's address: Non-secure, EL1 */

#define GICD            0x08000000
#define GICR            0x080A0000
#define GICR_SGI        0x080B0000
#define SPE_INTID       21

#define INTERVAL        1024
#define PERIOD          (INTERVAL + 1)
#define LOOP_LENGTH     9                   /* instructions of the loop, and which of them is what */
#define LOAD            1
#define STORE           3
#define UNTAKEN         4
#define CLOSING         8
#define ELEMENTS        64                  /* of the arrays that the loop goes round in */
#define CONTEXT         0x50e1              /* CONTEXTIDR_EL1 */

#define BUFFER          (512 << 10)         /* enough for PROFILE_LOOPS with records of 128 bytes */
#define SMALL_BUFFER    (8 << 10)
#define PROFILE_LOOPS   400000
#define FULL_LOOPS      150040
#define FILTER_LOOPS    60000
#define SHORT_LOOPS     2000

/* Registers that keep their meaning throughout; a macro or a print changes x0-x8 and x30, a check x16 and x17 too. */
wrong           .req x19                    /* by aspect: whether a record of the last profile was wrong in it */
due             .req x20                    /* the next sample's operation, counted from the loop's first */
records         .req x21
iterations      .req x22                    /* of the loop, in this profile */
filtered        .req x23                    /* not 0: some samples become no records */
lead            .req x24                    /* 0 if the ISB before the loop is an operation of the window, else 1 */
largest         .req x25                    /* bytes that a record may have */
padded          .req x26                    /* and of which it has a multiple */
failures        .req x27
checks          .req x28
features        .req x29                    /* PMSIDR_EL1 */

.macro address reg, symbol
    adrp    \reg, \symbol
    add     \reg, \reg, :lo12:\symbol
.endm

.macro enter
    str     x30, [sp, #-16]!
.endm

.macro leave
    ldr     x30, [sp], #16
    ret
.endm

/* Says what was checked, and whether it holds. */
.macro check condition, text:vararg
    .pushsection .rodata.str, "a"
9991: .asciz \text
    .popsection
    cset    x16, \condition
    address x0, 9991b
    bl      report_check
.endm

    .text
    .globl  _start
_start:
    address x0, stack_top
    mov     sp, x0
    address x0, vectors
    msr     vbar_el1, x0
    msr     daifset, #15
    mov     x0, #CONTEXT
    msr     contextidr_el1, x0
    isb
    mov     failures, #0
    mov     checks, #0
    bl      describe
    bl      profile_loop
    bl      fill_buffer
    bl      apply_filters
    bl      read_early
    bl      write_nowhere
    sub     x9, checks, failures
    say     "spe: "
    say_dec x9
    say     " of "
    say_dec checks
    say     " checks passed\n"
    b       power_off

/* ---- What this CPU has ---- */
    .section .rodata
feature_names:                              /* by bit of PMSIDR_EL1 */
    .asciz  "FE ", "FT ", "FL ", "ArchInst ", "LDS ", "ERnd ", "FnE ", "FDS "
    .text

describe:
    enter
    say     "spe: pmuvisor's guest that profiles itself\n"
    mrs     x9, id_aa64dfr0_el1
    ubfx    x9, x9, #32, #4             /* PMSVer */
    cbz     x9, 1f
    mrs     x10, PMBIDR_EL1
    tbnz    x10, #PMBIDR_P, 2f
    mrs     features, PMSIDR_EL1
    say     "spe: PMSVer "
    say_dec x9
    say     ", PMBIDR "
    say_hex x10
    say     ", PMSIDR "
    say_hex features
    say     ": "
    bl      print_features
    mrs     x10, PMBIDR_EL1
    and     x10, x10, #15               /* Align */
    mov     x11, #1
    lsl     padded, x11, x10
    ubfx    x10, features, #12, #4      /* MaxSize */
    lsl     largest, x11, x10
    say     "\nspe: records of at most "
    say_dec largest
    say     " bytes, padded to "
    say_dec padded
    say     "\n"
    mov     x0, #0
    bl      set_filter
    leave
1:  say     "spe: this CPU has no SPE\n"
    b       power_off
2:  say     "spe: FAIL the profiling buffer is a higher exception level's\n"
    b       power_off

print_features:
    enter
    address x9, feature_names
    mov     x10, features
    mov     x11, #8
1:  mov     x0, x9
    tbz     x10, #0, 2f
    bl      print_string
2:  ldrb    w0, [x9], #1                /* on to the next name */
    cbnz    w0, 2b
    lsr     x10, x10, #1
    subs    x11, x11, #1
    b.ne    1b
    say     "Interval "
    ubfx    x9, features, #8, #4
    say_dec x9
    say     " MaxSize "
    ubfx    x9, features, #12, #4
    say_dec x9
    say     " CountSize "
    ubfx    x9, features, #16, #4
    say_dec x9
    leave

/* ---- A window of sampling ---- */
    .bss
    .balign 4096
buffer:         .skip BUFFER
buffer_end:
sources:        .skip 8 * ELEMENTS
destinations:   .skip 8 * ELEMENTS
began:          .skip 8                 /* CNTVCT_EL0 before the window, and after it */
ended:          .skip 8
    .text

/*
 * x0: buffer, x1: its limit. Returns x0: PMBPTR_EL1, x1: what that read at the end of the loop, x2: PMBSR_EL1.
 * Changes x3 and x10-x13; an interrupt may change x4-x7, x9, x14 and x15.
 */
profile:
    msr     PMBSR_EL1, xzr
    msr     PMBPTR_EL1, x0
    orr     x1, x1, #PMBLIMITR_E
    msr     PMBLIMITR_EL1, x1
    mov     x0, #INTERVAL               /* bits 31:8, and no random part */
    msr     PMSIRR_EL1, x0
    isb
    msr     PMSICR_EL1, xzr
    isb
    mrs     x0, cntvct_el0
    address x1, began
    str     x0, [x1]
    address x10, sources
    address x11, destinations
    mov     x1, #0
    mov     x2, iterations
    mov     x0, #(PMSCR_E1SPE | PMSCR_CX | PMSCR_TS)
    msr     PMSCR_EL1, x0
    isb
loop:
    and     x12, x1, #(ELEMENTS - 1)    /* 0 */
    ldr     x13, [x10, x12, lsl #3]     /* 1: LOAD */
    add     x13, x13, #1                /* 2 */
    str     x13, [x11, x12, lsl #3]     /* 3: STORE */
    cbz     x2, 1f                      /* 4: UNTAKEN */
    eor     x13, x13, x1                /* 5 */
    add     x1, x1, #1                  /* 6 */
    cmp     x1, x2                      /* 7 */
    b.ne    loop                        /* 8: CLOSING */
1:  mrs     x3, PMBPTR_EL1
    msr     PMSCR_EL1, xzr
    isb
    PSB_CSYNC
    dsb     nsh
    isb
    msr     PMBLIMITR_EL1, xzr
    isb
    mrs     x0, cntvct_el0
    address x1, ended
    str     x0, [x1]
    mrs     x0, PMBPTR_EL1
    mov     x1, x3
    mrs     x2, PMBSR_EL1
    ret

/* What a record of each instruction of the loop has to say. */
#define PAYLOAD         2                   /* number of the bit: bit 0 of the operation type's payload */
#define HAS_VA          3
#define HAS_TARGET      4
#define IS_NOT_TAKEN    5
    .section .rodata
instructions:
    .byte   OTHER
    .byte   LOAD_STORE | 1 << HAS_VA
    .byte   OTHER
    .byte   LOAD_STORE | 1 << PAYLOAD | 1 << HAS_VA
    .byte   BRANCH | 1 << PAYLOAD | 1 << IS_NOT_TAKEN
    .byte   OTHER, OTHER, OTHER
    .byte   BRANCH | 1 << PAYLOAD | 1 << HAS_TARGET
    .text

/*
 * Fails to assemble if a few operations more or less than the loop's would be another number of samples. What is around
 * the loop, and the last iteration's closing branch, which is not taken, are then never sampled.
 */
.macro unambiguous loops
    .if     (LOOP_LENGTH * (\loops)) % PERIOD < 100 || (LOOP_LENGTH * (\loops)) % PERIOD > 900
    .error  "another number of iterations"
    .endif
.endm
    unambiguous PROFILE_LOOPS
    unambiguous FULL_LOOPS
    unambiguous FILTER_LOOPS
    unambiguous SHORT_LOOPS

/* ---- Reading a record ---- */
/* Where the payload of each packet is kept: some have an index, which is added. */
#define PC              0
#define TARGET          1
#define VIRTUAL         2
#define PHYSICAL        3
#define TOTAL           8
#define ISSUE           9
#define CONTEXT_EL1     16
#define TYPE            20
#define EVENTS          24
#define SOURCE          25
#define TIMESTAMP       26
#define FIELDS          27

/* Packets: the header under a mask, and which bits are the index. The rest, bits 5:4, is the size of the payload. */
.macro packet mask, header, index, field
    .byte   \mask, \header, \index, \field
.endm

    .section .rodata
    .balign 4
packets:
    packet  0xf8, 0xb0, 7, PC               /* addresses */
    packet  0xf8, 0x98, 7, TOTAL            /* counters */
    packet  0xfe, 0x64, 1, CONTEXT_EL1
    packet  0xfc, 0x48, 3, TYPE             /* the index is the class */
    packet  0xcf, 0x42, 0, EVENTS
    packet  0xcf, 0x43, 0, SOURCE
    packet  0xff, 0x71, 0, TIMESTAMP
    .word   0

    .bss
    .balign 8
fields:         .skip 8 * FIELDS
counts:         .skip 8 * LOOP_LENGTH       /* records of each instruction */
reference:      .skip 8 * LOOP_LENGTH       /* the same, of the profile that filters are compared with */
    .text

/* What can be wrong: numbers of bits of "wrong", and of strings of "aspects". */
#define FORM            0
#define PLACE           1
#define KIND            2
#define DATA            3
#define BRANCHED        4
#define HAPPENED        5
#define TIME            6
#define WHOSE           7
#define LATENCY         8
#define ORDER           9
#define UNDISTURBED     10
#define ASPECTS         11

    .section .rodata
aspects:
    .asciz  "packets of the record format, padded, none too long"
    .asciz  "every PC in the loop, at EL1"
    .asciz  "operation types are the instructions'"
    .asciz  "a virtual address for loads and stores, in their array"
    .asciz  "a target for the branch that is taken, and it is the loop"
    .asciz  "all retired; not taken, only the branch that never is"
    .asciz  "timestamps ascend between two readings of CNTVCT_EL0"
    .asciz  "context is CONTEXTIDR_EL1"
    .asciz  "total latency, and no less than the issue latency"
    .asciz  "each the instruction and iteration that was due"
    .asciz  "no buffer management event"
    .text

.macro wrong_unless condition, aspect
    b.\condition unless\@
    orr     wrong, wrong, #(1 << \aspect)
unless\@:
.endm

/* x0: PMBPTR_EL1, x2: PMBSR_EL1. Reads all records of the buffer. Changes everything up to x17. */
read_records:
    enter
    mov     wrong, #0
    cmp     x2, #0
    wrong_unless eq, UNDISTURBED
    mov     records, #0
    add     due, lead, #(PERIOD - 2)
    address x9, counts
    mov     x10, #LOOP_LENGTH
1:  str     xzr, [x9], #8
    subs    x10, x10, #1
    b.ne    1b
    address x9, buffer
    mov     x10, x0
    address x11, fields
    address x0, buffer_end
    cmp     x10, x0
    wrong_unless ls, FORM
    b.hi    3f
2:  cmp     x9, x10
    b.hs    3f
    mov     x13, x9
    bl      decode_record
    cbz     x12, 2b
    bl      judge_record
    add     records, records, #1
    b       2b
3:  leave

/* x9: a record, x10: the end of all, x11: fields. Returns x9: the next record, x12: mask of fields, 0 if malformed. */
decode_record:
    mov     x12, #0
1:  cmp     x9, x10
    b.hs    malformed
    ldrb    w0, [x9], #1
    cbz     w0, 1b                          /* padding */
    cmp     w0, #1
    b.eq    5f                              /* end */
    mov     x6, #0
    and     w1, w0, #0xfc
    cmp     w1, #0x20                       /* the first byte of a header of two: an index of eight or more */
    b.ne    2f
    ldrb    w0, [x9], #1
    mov     x6, #1
2:  cmp     w0, #0x40
    b.lo    malformed
    ubfx    w1, w0, #4, #2
    mov     x2, #8
    lsl     x1, x2, x1                      /* bits of payload */
    mov     x2, #0
    mov     x3, #0
3:  ldrb    w4, [x9], #1
    lsl     x4, x4, x2
    orr     x3, x3, x4
    add     x2, x2, #8
    cmp     x2, x1
    b.ne    3b
    cbnz    x6, 1b                          /* nothing of interest has such an index */
    address x5, packets
4:  ldr     w4, [x5], #4
    cbz     w4, malformed
    and     w6, w4, w0
    ubfx    w7, w4, #8, #8
    cmp     w6, w7
    b.ne    4b
    ubfx    w6, w4, #16, #8
    and     w6, w6, w0
    add     w6, w6, w4, lsr #24
    str     x3, [x11, x6, lsl #3]
    mov     x7, #1
    lsl     x7, x7, x6
    tst     x12, x7
    b.ne    malformed                       /* twice */
    orr     x12, x12, x7
    cmp     w6, #TIMESTAMP                  /* the other end */
    b.ne    1b
5:  sub     x0, padded, #1
    add     x9, x9, x0
    bic     x9, x9, x0
    cmp     x9, x10
    b.hi    malformed
    sub     x0, x9, x13
    cmp     x0, largest
    b.hi    malformed
    ret
malformed:
    orr     wrong, wrong, #(1 << FORM)
    mov     x12, #0
    mov     x9, x10
    ret

/* x11: fields, x12: which of them there are. Changes x0-x8 and x14-x17. */
judge_record:
    tst     x12, #(1 << PC)
    wrong_unless ne, PLACE
    ldr     x0, [x11, #(8 * PC)]
    lsr     x1, x0, #56
    cmp     x1, #AT_EL1
    wrong_unless eq, PLACE
    ubfx    x0, x0, #0, #56
    address x17, loop
    sub     x14, x0, x17
    ror     x14, x14, #2                    /* which instruction: too large a number if it is misaligned */
    cmp     x14, #LOOP_LENGTH
    wrong_unless lo, PLACE
    b.hs    1f                              /* no instruction to compare with */
    address x0, counts
    ldr     x1, [x0, x14, lsl #3]
    add     x1, x1, #1
    str     x1, [x0, x14, lsl #3]
    address x0, instructions
    ldrb    w15, [x0, x14]
    mov     x8, x30
    bl      judge_kind
    bl      judge_data
    bl      judge_branch
    bl      judge_context
    bl      judge_order
    mov     x30, x8
1:  ret

/* The judges' arguments: x14: which instruction, x15: of "instructions", x17: the loop. */
judge_kind:
    and     x0, x15, #3                     /* class */
    mov     x1, #1
    lsl     x1, x1, x0
    ubfx    x2, x12, #TYPE, #4
    cmp     x1, x2                          /* one operation type packet, of this class */
    wrong_unless eq, KIND
    add     x0, x0, #TYPE
    ldr     x0, [x11, x0, lsl #3]
    and     x0, x0, #3
    ubfx    x1, x15, #PAYLOAD, #1
    cmp     x0, x1
    wrong_unless eq, KIND
    ubfx    x1, x15, #IS_NOT_TAKEN, #1
    lsl     x1, x1, #6
    orr     x1, x1, #RETIRED
    ldr     x0, [x11, #(8 * EVENTS)]
    mov     x2, #(EXCEPTION | RETIRED | NOT_TAKEN)
    and     x0, x0, x2
    cmp     x0, x1
    wrong_unless eq, HAPPENED
    tst     x12, #(1 << EVENTS)
    wrong_unless ne, HAPPENED
    ret

/* Returns x16: which element of its array was accessed. */
judge_data:
    mov     x16, #0
    ubfx    x0, x12, #VIRTUAL, #2           /* and no physical one: PMSCR_EL1.PA is 0 */
    ubfx    x1, x15, #HAS_VA, #1
    cmp     x0, x1
    wrong_unless eq, DATA
    cbz     x1, 1f
    address x0, sources
    address x1, destinations
    cmp     x14, #LOAD
    csel    x0, x0, x1, eq
    ldr     x16, [x11, #(8 * VIRTUAL)]
    sub     x16, x16, x0
    ror     x16, x16, #3                    /* too large a number if it is misaligned */
    cmp     x16, #ELEMENTS
    wrong_unless lo, DATA
1:  ret

judge_branch:
    ubfx    x0, x12, #TARGET, #1
    ubfx    x1, x15, #HAS_TARGET, #1
    cmp     x0, x1
    wrong_unless eq, BRANCHED
    cbz     x1, 1f
    ldr     x0, [x11, #(8 * TARGET)]
    mov     x1, #AT_EL1
    orr     x1, x17, x1, lsl #56
    cmp     x0, x1
    wrong_unless eq, BRANCHED
1:  ret

judge_context:
    tst     x12, #(1 << TIMESTAMP)
    wrong_unless ne, TIME
    ldr     x0, [x11, #(8 * TIMESTAMP)]
    address x1, began
    ldp     x2, x3, [x1]
    cmp     x0, x2
    wrong_unless hs, TIME
    cmp     x0, x3
    wrong_unless ls, TIME
    str     x0, [x1]                        /* no earlier than this one, the next */
    tst     x12, #(1 << CONTEXT_EL1)
    wrong_unless ne, WHOSE
    ldr     x0, [x11, #(8 * CONTEXT_EL1)]
    mov     x1, #CONTEXT
    cmp     x0, x1
    wrong_unless eq, WHOSE
    ubfx    x2, x12, #TOTAL, #2
    cmp     x2, #3
    wrong_unless eq, LATENCY
    ldp     x0, x1, [x11, #(8 * TOTAL)]     /* and the issue latency */
    cmp     x0, x1
    wrong_unless hs, LATENCY
    ret

/*
 * The record has to be that of the next sample due. Where a filter is on, those that it is not of were left out; but
 * it has to be of a later one. x16: which element of its array was accessed.
 */
judge_order:
    mov     x0, #LOOP_LENGTH
    orr     x1, records, filtered
    cbnz    x1, 1f
    cmp     x14, #((PERIOD - 2) % LOOP_LENGTH)
    cset    lead, ne
    add     due, lead, #(PERIOD - 2)
1:  udiv    x1, due, x0                     /* iteration */
    msub    x2, x1, x0, due                 /* instruction */
    add     due, due, #PERIOD
    cmp     x1, iterations
    b.hs    3f
    cmp     x2, x14
    b.ne    2f
    tbz     x15, #HAS_VA, 4f
    and     x1, x1, #(ELEMENTS - 1)
    cmp     x1, x16
    b.eq    4f
2:  cbnz    filtered, 1b
3:  orr     wrong, wrong, #(1 << ORDER)
4:  ret

/* ---- Reports ---- */
    .section .text.reports, "ax"
/* x0: text, x16: whether it holds */
report_check:
    enter
    mov     x17, x0
    add     checks, checks, #1
    cbz     x16, 1f
    say     "spe:   "
    mov     x0, x17
    bl      print_string
    say     ": ok\n"
    leave
1:  add     failures, failures, #1
    say     "spe: FAIL "
    mov     x0, x17
    bl      print_string
    say     "\n"
    leave

/* Ends a line that says what is counted. x14: how many there are, x15: how many there should be. */
report_count:
    enter
    add     checks, checks, #1
    say     " "
    say_dec x14
    say     " expected "
    say_dec x15
    cmp     x14, x15
    b.ne    1f
    say     " exact\n"
    leave
1:  add     failures, failures, #1
    say     "\nspe: FAIL the count above\n"
    leave

/* Ends a line about the records that were read. x15: how many there should be. */
report_records:
    enter
    mov     x14, records
    bl      report_count
    add     checks, checks, #1
    cbz     wrong, 1f
    add     failures, failures, #1
    say     "spe: FAIL those records, in these aspects: "
    say_hex wrong
    say     "\n"
1:  leave

/* All aspects of the records that were read. */
report_aspects:
    enter
    mov     x14, wrong
    mov     x15, #ASPECTS
    address x9, aspects
1:  eor     x16, x14, #1
    and     x16, x16, #1
    mov     x0, x9
    bl      report_check
2:  ldrb    w0, [x9], #1                    /* on to the next */
    cbnz    w0, 2b
    lsr     x14, x14, #1
    subs    x15, x15, #1
    b.ne    1b
    leave

/* Returns x15: samples that are due in this profile. */
samples_due:
    mov     x0, #LOOP_LENGTH
    mul     x15, iterations, x0
    mov     x0, #PERIOD
    udiv    x15, x15, x0
    ret

/* ---- One long profile ---- */
    .section .text.profiles, "ax"
profile_loop:
    enter
    ldr     iterations, =PROFILE_LOOPS
    say     "spe: profile of a loop of 400,000 iterations = 3,600,000 instructions, 1 in 1,025\n"
    mov     filtered, #0
    mov     lead, #0
    bl      profile_and_read
    say     "spe:   records"
    mov     x14, records
    bl      samples_due
    bl      report_count
    address x9, counts
    say     "spe:   of them loads "
    ldr     x10, [x9, #(8 * LOAD)]
    say_dec x10
    say     ", stores "
    ldr     x10, [x9, #(8 * STORE)]
    say_dec x10
    say     ", branches taken "
    ldr     x10, [x9, #(8 * CLOSING)]
    say_dec x10
    say     " and not taken "
    ldr     x10, [x9, #(8 * UNTAKEN)]
    say_dec x10
    cbnz    lead, 1f
    say     "; the ISB that enabled sampling was an operation\n"
    b       2f
1:  say     "; sampling began after the ISB that enabled it\n"
2:  bl      report_aspects
    leave

profile_and_read:
    enter
    address x0, buffer
    address x1, buffer_end
    bl      profile
    bl      read_records
    leave

/* ---- A buffer that fills, and its interrupt ---- */
/* What the handler leaves behind, in registers that the window does not use. */
interrupts      .req x9
complaints      .req x14                    /* bits: what it found wrong */
last_status     .req x15                    /* PMBSR_EL1 */

buffer_interrupt:
    mrs     x7, s3_0_c12_c12_0              /* ICC_IAR1_EL1 */
    PSB_CSYNC
    dsb     nsh
    isb
    mrs     last_status, PMBSR_EL1
    mrs     x4, PMBPTR_EL1
    cmp     x7, #SPE_INTID
    cset    x5, ne
    orr     complaints, complaints, x5
    ubfx    x5, last_status, #PMBSR_S, #1
    eor     x5, x5, #1
    orr     complaints, complaints, x5, lsl #1
    ubfx    x5, last_status, #26, #6        /* EC */
    cmp     x5, #EC_BUFFER
    cset    x5, ne
    orr     complaints, complaints, x5, lsl #2
    and     x5, last_status, #0x3f          /* BSC */
    cmp     x5, #BSC_FULL
    cset    x5, ne
    orr     complaints, complaints, x5, lsl #3
    address x5, buffer
    add     x6, x5, #SMALL_BUFFER
    sub     x4, x6, x4                      /* room that is left: less than for a record */
    cmp     x4, largest
    cset    x4, hs
    orr     complaints, complaints, x4, lsl #4
    add     interrupts, interrupts, #1
    cmp     interrupts, #1000               /* far too many: return with interrupts masked, or this never ends */
    b.lo    1f
    mrs     x4, spsr_el1
    orr     x4, x4, #(1 << 7)
    msr     spsr_el1, x4
1:  msr     PMBPTR_EL1, x5
    isb
    msr     PMBSR_EL1, xzr                  /* profiling goes on, and the line falls */
    isb
    msr     s3_0_c12_c12_1, x7              /* ICC_EOIR1_EL1 */
    isb
    eret

/*
 * With records of one size the number of interrupts is known. Nothing is sampled between a full buffer and the write of
 * PMBSR_EL1, and after that a few instructions of the handler: too few, with FULL_LOOPS, to be another sample.
 */
fill_buffer:
    enter
    bl      gic_init
    ldr     iterations, =FULL_LOOPS
    say     "spe: profile of 150,040 iterations into a buffer of 8,192 bytes\n"
    address x0, buffer
    add     x1, x0, #SMALL_BUFFER
    mov     interrupts, #0
    mov     complaints, #0
    mov     last_status, #0
    msr     daifclr, #2
    bl      profile
    msr     daifset, #2
    address x10, buffer
    sub     x10, x0, x10                    /* bytes since the last interrupt */
    mov     x11, interrupts
    mov     x12, complaints
    mov     x13, x2
    say     "spe:   the last interrupt's PMBSR "
    say_hex last_status
    say     ", and PMBPTR after all at "
    say_dec x10
    say     "\n"
    tst     x12, #1
    check   eq, "interrupts are PPI 21"
    tst     x12, #(1 << 1)
    check   eq, "the handler reads PMBSR_EL1.S 1"
    tst     x12, #(1 << 2)
    check   eq, "EC 0"
    tst     x12, #(1 << 3)
    check   eq, "BSC: the buffer is full"
    tst     x12, #(1 << 4)
    check   eq, "PMBPTR_EL1 leaves no room for a record"
    cmp     x13, #0
    check   eq, "PMBSR_EL1 stays as written"
    cmp     padded, largest
    b.ne    1f
    bl      samples_due
    mov     x9, #SMALL_BUFFER
    udiv    x9, x9, largest                 /* records that fill it */
    mov     x14, x15
    udiv    x15, x15, x9
    msub    x12, x15, x9, x14               /* and how many are left */
    mov     x14, x11
    say     "spe:   interrupts"
    bl      report_count
    udiv    x14, x10, largest
    mov     x15, x12
    say     "spe:   records after the last"
    bl      report_count
    leave
1:  say     "spe:   interrupts "
    say_dec x11
    say     ", of records that differ in size\n"
    cmp     x11, #0
    check   ne, "the buffer fills"
    leave

/* The buffer's private interrupt, alone: group 1, any priority, level. */
gic_init:
    ldr     x9, =GICD
    mov     w10, #0x12                      /* GICD_CTLR: affinity routing, group 1 */
    str     w10, [x9]
    ldr     x9, =GICR
    str     wzr, [x9, #0x14]                /* GICR_WAKER: not asleep */
1:  ldr     w10, [x9, #0x14]
    tbnz    w10, #2, 1b                     /* ChildrenAsleep */
    ldr     x9, =GICR_SGI
    mov     w10, #0xffffffff
    str     w10, [x9, #0x80]                /* GICR_IGROUPR0 */
    mov     w10, #0x80808080
    str     w10, [x9, #(0x400 + (SPE_INTID & ~3))]      /* GICR_IPRIORITYR5 */
    mov     w10, #(1 << SPE_INTID)
    str     w10, [x9, #0x100]               /* GICR_ISENABLER0 */
    mov     x10, #1
    msr     s3_0_c12_c12_5, x10             /* ICC_SRE_EL1: system registers */
    isb
    mov     x10, #0xff
    msr     s3_0_c4_c6_0, x10               /* ICC_PMR_EL1: every priority */
    mov     x10, #1
    msr     s3_0_c12_c12_7, x10             /* ICC_IGRPEN1_EL1 */
    isb
    ret

/* ---- Filters ---- */
#define ALL             ((1 << LOOP_LENGTH) - 1)
#define MINLAT          0xfff               /* more than any latency here; a counter of 12 bits can hold no more */

/*
 * One row of "filters": the bit of PMSIDR_EL1 that it needs, PMSFCR_EL1, what the register that goes with that holds,
 * the mask of the loop's instructions that pass, and a name. 48 bytes.
 */
.macro row needs, control, value, passing, name
    .word   \needs, \control, \value, \passing
9992: .asciz "\name"
    .skip   32 - (. - 9992b)
.endm

    .section .rodata
    .balign 16
filters:
    row     PMSIDR_FT,  PMSFCR_FT | PMSFCR_LD,  0,          1 << LOAD,                      "FT, loads"
    row     PMSIDR_FT,  PMSFCR_FT | PMSFCR_ST,  0,          1 << STORE,                     "FT, stores"
    row     PMSIDR_FT,  PMSFCR_FT | PMSFCR_B,   0,          1 << UNTAKEN | 1 << CLOSING,    "FT, branches"
    row     PMSIDR_FL,  PMSFCR_FL,              MINLAT,     0,                              "FL, 4,095 cycles or more"
    row     PMSIDR_FE,  PMSFCR_FE,              RETIRED,    ALL,                            "FE, retired"
    row     PMSIDR_FNE, PMSFCR_FE,              NOT_TAKEN,  1 << UNTAKEN,                   "FE, not taken"
    row     PMSIDR_FNE, PMSFCR_FNE,             NOT_TAKEN,  ALL & ~(1 << UNTAKEN),          "FnE, all but not taken"
filters_end:

    .section .text.profiles, "ax"
/* x0: PMSFCR_EL1, x1: what the register of that filter holds; the others are ignored. */
set_filter:
    msr     PMSFCR_EL1, x0
    tbz     x0, #0, 1f                      /* FE */
    msr     PMSEVFR_EL1, x1
1:  tbz     x0, #2, 2f                      /* FL */
    msr     PMSLATFR_EL1, x1
2:  tbz     x0, #3, 3f                      /* FnE; else there may be no such register */
    msr     PMSNEVFR_EL1, x1
3:  isb
    ret

/* Each filter profiles what the profile without one did, so it has to leave the same records of what passes it. */
apply_filters:
    enter
    ldr     iterations, =FILTER_LOOPS
    say     "spe: filters, each on 60,000 iterations\n"
    mov     filtered, #0
    bl      profile_and_read
    say     "spe:   none: records"
    bl      samples_due
    bl      report_records
    address x9, counts
    address x10, reference
    mov     x11, #LOOP_LENGTH
1:  ldr     x12, [x9], #8
    str     x12, [x10], #8
    subs    x11, x11, #1
    b.ne    1b
    mov     filtered, #1
    address x18, filters
2:  bl      apply_filter
    add     x18, x18, #48
    address x9, filters_end
    cmp     x18, x9
    b.ne    2b
    mov     x0, #0
    bl      set_filter
    leave

/* x18: row of "filters" */
apply_filter:
    enter
    ldp     w9, w0, [x18]
    ldr     w1, [x18, #8]
    lsr     x9, features, x9
    tbz     x9, #0, 1f
    bl      set_filter
    bl      profile_and_read
    say     "spe:   "
    add     x0, x18, #16
    bl      print_string
    say     ": records"
    bl      compare_counts
    bl      report_records
    leave
1:  say     "spe:   skipped "
    add     x0, x18, #16
    bl      print_string
    say     ": PMSIDR_EL1 does not have it\n"
    leave

/* Returns x15: how many records of the profile without a filter pass this one. */
compare_counts:
    mov     x15, #0
    ldr     w9, [x18, #12]
    address x10, reference
    address x11, counts
    mov     x12, #LOOP_LENGTH
1:  ldr     x13, [x10], #8
    tst     x9, #1
    csel    x13, x13, xzr, ne
    add     x15, x15, x13
    ldr     x14, [x11], #8
    cmp     x14, x13
    wrong_unless eq, KIND
    lsr     x9, x9, #1
    subs    x12, x12, #1
    b.ne    1b
    ret

/* ---- What is there before the barriers ---- */
read_early:
    enter
    mov     iterations, #SHORT_LOOPS
    mov     filtered, #0
    say     "spe: profile of 2,000 iterations, and PMBPTR_EL1 read before PSB CSYNC, DSB and ISB\n"
    address x0, buffer
    address x1, buffer_end
    bl      profile
    sub     x18, x0, x1
    bl      read_records
    say     "spe:   it was behind by "
    say_dec x18
    say     " bytes\nspe:   after them, records"
    bl      samples_due
    bl      report_records
    leave

/* ---- A buffer that cannot be written ---- */
    .section .rodata
address_bits:                               /* by ID_AA64MMFR0_EL1.PARange */
    .byte   32, 36, 40, 42, 44, 48, 52, 56

    .section .text.profiles, "ax"
write_nowhere:
    enter
    mov     iterations, #SHORT_LOOPS
    say     "spe: a buffer with its limit below the pointer\n"
    address x1, buffer
    add     x0, x1, #SMALL_BUFFER
    bl      expect_fault
    say     "spe: a buffer above all physical addresses\n"
    mrs     x9, id_aa64mmfr0_el1
    and     x9, x9, #7
    address x10, address_bits
    ldrb    w9, [x10, x9]
    mov     x0, #1
    lsl     x0, x0, x9
    add     x1, x0, #SMALL_BUFFER
    bl      expect_fault
    leave

/* x0: buffer, x1: its limit. A fault and a full buffer are both what the architecture allows. */
expect_fault:
    enter
    mov     x18, x0
    bl      profile
    msr     PMBSR_EL1, xzr
    mov     x9, x2
    sub     x10, x0, x18
    ubfx    x11, x9, #26, #6                /* EC */
    say     "spe:   PMBSR "
    say_hex x9
    say     ", EC "
    say_hex x11
    say     ", PMBPTR moved by "
    say_dec x10
    say     "\n"
    tst     x9, #(1 << PMBSR_S)
    check   ne, "PMBSR_EL1.S is 1"
    and     x12, x9, #0x3f                  /* BSC */
    mov     x13, #EC_STAGE1
    cmp     x11, #EC_BUFFER
    ccmp    x12, #BSC_FULL, #0, eq
    ccmp    x11, x13, #4, ne
    check   eq, "a stage 1 fault, or the buffer is full"
    cmp     x10, #0
    check   eq, "nothing is written"
    leave

/* ---- Exceptions ---- */
    .section .vectors, "ax"                 /* of its own, so that only the table is aligned */
    .balign 2048
vectors:
    .set    offset, 0
    .rept   16
    .balign 128
    .if     offset == 0x280                 /* IRQ from EL1 with its own stack pointer */
    b       buffer_interrupt
    .else
    mov     x9, #offset
    b       unexpected
    .endif
    .set    offset, offset + 128
    .endr

    .section .text.unexpected, "ax"
unexpected:
    say     "spe: FAIL unexpected exception at vector "
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
