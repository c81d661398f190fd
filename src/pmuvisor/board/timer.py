"""The generic timers of each CPU: the EL1 virtual and the EL1 physical one.

For: guests that program CNTV_* and CNTP_* and take their interrupts (PPIs `memmap.VIRT_TIMER_INTID` and
`memmap.PHYS_TIMER_INTID`). Not for: the counter itself (the owner keeps time and passes it in), CNTKCTL_EL1's traps,
counter offsets, the hypervisor and secure timers.

The rules are those of the Generic Timer chapter of the Arm Architecture Reference Manual, Arm DDI 0487. Time is in
ticks of the system counter (`memmap.COUNTER_HZ` per second); the counter is 64 bits wide and wraps. A timer's condition
is met while the counter is not below the compare value, both taken as unsigned: one set near the top of the range may
never meet it, and a condition that was met ends when the counter wraps. Where the architecture leaves a value unknown
(ISTATUS of a disabled timer) it reads zero.
"""

from typing import Final

from pmuvisor.arch.sysreg import encode
from pmuvisor.board.memmap import COUNTER_HZ

_MASK64: Final = (1 << 64) - 1
_ENABLE: Final = 1 << 0
_IMASK: Final = 1 << 1
_ISTATUS: Final = 1 << 2

CNTFRQ_EL0: Final = encode(3, 3, 14, 0, 0)
CNTPCT_EL0: Final = encode(3, 3, 14, 0, 1)
CNTVCT_EL0: Final = encode(3, 3, 14, 0, 2)
CNTP_TVAL_EL0: Final = encode(3, 3, 14, 2, 0)
CNTP_CTL_EL0: Final = encode(3, 3, 14, 2, 1)
CNTP_CVAL_EL0: Final = encode(3, 3, 14, 2, 2)
CNTV_TVAL_EL0: Final = encode(3, 3, 14, 3, 0)
CNTV_CTL_EL0: Final = encode(3, 3, 14, 3, 1)
CNTV_CVAL_EL0: Final = encode(3, 3, 14, 3, 2)

KEYS: Final = frozenset(
    (CNTFRQ_EL0, CNTPCT_EL0, CNTVCT_EL0)
    + (CNTP_TVAL_EL0, CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTV_TVAL_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0)
)
"""The keys of all registers of this module."""


class _Timer:
    __slots__ = ("compare", "control")

    def __init__(self) -> None:
        self.control = 0
        self.compare = 0

    def level(self, now: int) -> bool:
        return self.control == _ENABLE and now & _MASK64 >= self.compare

    def deadline(self, now: int) -> int | None:
        """The tick at which the line goes up, if it is to go up before the counter wraps."""
        remaining = self.compare - (now & _MASK64)
        return now + remaining if self.control == _ENABLE and remaining > 0 else None

    def read(self, register: int, now: int) -> int:
        if register == 0:
            return (self.compare - now) & 0xFFFF_FFFF
        if register == 1:
            met = self.control & _ENABLE and now & _MASK64 >= self.compare
            return self.control | (_ISTATUS if met else 0)
        return self.compare

    def write(self, register: int, value: int, now: int) -> None:
        if register == 0:
            signed = (value & 0xFFFF_FFFF ^ 0x8000_0000) - 0x8000_0000
            self.compare = (now + signed) & _MASK64
        elif register == 1:
            self.control = value & (_ENABLE | _IMASK)
        else:
            self.compare = value & _MASK64


class ArchTimer:
    """The timers of a machine's CPUs. `now`, everywhere, is the count that both counters show, in ticks."""

    __slots__ = ("_all", "_physical", "_virtual")

    def __init__(self, num_cpus: int) -> None:
        self._virtual = [_Timer() for _ in range(num_cpus)]
        self._physical = [_Timer() for _ in range(num_cpus)]
        self._all = self._virtual + self._physical

    def virtual_level(self, cpu: int, now: int) -> bool:
        """Whether a CPU's virtual timer holds its interrupt line up."""
        return self._virtual[cpu].level(now)

    def physical_level(self, cpu: int, now: int) -> bool:
        """Whether a CPU's physical timer holds its interrupt line up."""
        return self._physical[cpu].level(now)

    def next_deadline(self, now: int) -> int | None:
        """The tick after `now` at which the next line of any CPU goes up; None if none is to."""
        deadlines = [timer.deadline(now) for timer in self._all if timer.control == _ENABLE]
        return min((tick for tick in deadlines if tick is not None), default=None)

    def reset_cpu(self, cpu: int) -> None:
        """Disable a CPU's timers, as when it is turned on."""
        self._virtual[cpu].control = 0
        self._physical[cpu].control = 0

    def read(self, cpu: int, key: int, now: int) -> int | None:
        """What an MRS gives, 64 bits wide; None if it is not one of the registers named in this module.

        `key` is as `sysreg.encode` makes it.
        """
        if CNTV_TVAL_EL0 <= key <= CNTV_CVAL_EL0:
            return self._virtual[cpu].read(key - CNTV_TVAL_EL0, now)
        if CNTP_TVAL_EL0 <= key <= CNTP_CVAL_EL0:
            return self._physical[cpu].read(key - CNTP_TVAL_EL0, now)
        if key in (CNTVCT_EL0, CNTPCT_EL0):
            return now & _MASK64
        return COUNTER_HZ if key == CNTFRQ_EL0 else None

    def write(self, cpu: int, key: int, value: int, now: int) -> bool:
        """Do an MSR; False if it is not to a register that EL1 may write. `key` is as for `read`."""
        if CNTV_TVAL_EL0 <= key <= CNTV_CVAL_EL0:
            self._virtual[cpu].write(key - CNTV_TVAL_EL0, value, now)
        elif CNTP_TVAL_EL0 <= key <= CNTP_CVAL_EL0:
            self._physical[cpu].write(key - CNTP_TVAL_EL0, value, now)
        else:
            return False
        return True
