"""Where the board's devices are, and which interrupts they raise.

The addresses and interrupt numbers are those of QEMU's `virt` machine, so that an image made for it runs here. They
were read out of the device tree which that machine gives to its guests. Only the devices that this board has are
listed: there is no flash, no RTC, no PCIe and no virtio here.

Addresses and sizes are in bytes, physical. Interrupts are INTIDs: 0..15 SGIs, 16..31 PPIs (private to a CPU), from 32
on SPIs (shared). A device tree counts PPIs from 16 and SPIs from 32.
"""

from typing import Final

MAX_CPUS: Final = 8

GICD_BASE: Final = 0x0800_0000
GICD_SIZE: Final = 0x1_0000
GICR_BASE: Final = 0x080A_0000
GICR_SIZE_PER_CPU: Final = 0x2_0000

UART_BASE: Final = 0x0900_0000
UART_SIZE: Final = 0x1000
UART1_BASE: Final = 0x0904_0000
"""The second UART, which a run's own programs report by: where QEMU has that of the Secure world, or its second one."""

RAM_BASE: Final = 0x4000_0000

PPI_FIRST: Final = 16
SPI_FIRST: Final = 32
INTID_COUNT: Final = 256
"""How many INTIDs the interrupt controller has: 32 private to each CPU and 224 SPIs, which is what QEMU announces."""

SPE_INTID: Final = 21
"""The profiling buffer's interrupt, PMBIRQ, where Arm's Base System Architecture has it: QEMU has no SPE."""
PMU_INTID: Final = 23
HYP_PHYS_TIMER_INTID: Final = 26
VIRT_TIMER_INTID: Final = 27
SECURE_PHYS_TIMER_INTID: Final = 29
PHYS_TIMER_INTID: Final = 30
UART_INTID: Final = 33
UART1_INTID: Final = 40

COUNTER_HZ: Final = 62_500_000
"""Frequency of the system counter, in Hz: what CNTFRQ_EL0 reads."""


def cpu_mpidr(cpu: int) -> int:
    """The affinity of a CPU, as in MPIDR_EL1 without its RES1 bit: CPUs are numbered in Aff0."""
    return cpu
