/*
 * Printing on the PL011, and leaving by PSCI, for bare-metal guests in assembly.
 *
 * Every routine may change x0-x8 and nothing else; the macros also change x30. The UART is written without being
 * set up, and without waiting for room in its queue: the board's and QEMU's take every byte at once.
 */
#define UART0           0x09000000
#define PSCI_SYSTEM_OFF 0x84000008

/* Prints a constant string. */
.macro say text:vararg
    .pushsection .rodata.str, "a"
9990: .asciz \text
    .popsection
    adrp    x0, 9990b
    add     x0, x0, :lo12:9990b
    bl      print_string
.endm

/* Prints a register, in decimal with commas or in hexadecimal. */
.macro say_dec reg
    mov     x0, \reg
    bl      print_dec
.endm

.macro say_hex reg
    mov     x0, \reg
    bl      print_hex
.endm

    .section .text.print, "ax"
/* x0: address of a string that ends with a zero byte */
print_string:
    mov     x1, #UART0
1:  ldrb    w2, [x0], #1
    cbz     w2, 2f
    strb    w2, [x1]
    b       1b
2:  ret

/* x0: unsigned number. The digits are collected backwards below the stack pointer (26 bytes for 2^64-1). */
print_dec:
    sub     x3, sp, #16
    strb    wzr, [x3]
    mov     x4, #10
    mov     x5, #0
1:  cmp     x5, #3                      /* three digits written: a comma before the next */
    b.ne    2f
    mov     w6, #','
    strb    w6, [x3, #-1]!
    mov     x5, #0
2:  udiv    x6, x0, x4
    msub    x7, x6, x4, x0
    add     w7, w7, #'0'
    strb    w7, [x3, #-1]!
    add     x5, x5, #1
    mov     x0, x6
    cbnz    x0, 1b
    mov     x0, x3
    b       print_string

/* x0: number, printed without leading zeros */
print_hex:
    mov     x1, #UART0
    mov     w2, #'0'
    strb    w2, [x1]
    mov     w2, #'x'
    strb    w2, [x1]
    mov     x3, #60
1:  lsr     x4, x0, x3                  /* skip zero digits, but never the last */
    cbnz    x4, 2f
    cbz     x3, 2f
    sub     x3, x3, #4
    b       1b
2:  lsr     x4, x0, x3
    and     x4, x4, #15
    cmp     x4, #10
    add     x5, x4, #'0'
    add     x6, x4, #('a' - 10)
    csel    x5, x5, x6, lo
    strb    w5, [x1]
    subs    x3, x3, #4
    b.ge    2b
    ret

/* Does not return. */
power_off:
    ldr     x0, =PSCI_SYSTEM_OFF
    hvc     #0
1:  wfi                                 /* no PSCI here: stop as well as a guest can */
    b       1b
