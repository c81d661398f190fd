"""A PL011 UART: the guest's console.

For: drivers that poll it or take its interrupts, Linux's among them. Not for: modem lines, DMA, line errors,
loopback, baud rates. The rules are those of the PL011 technical reference manual, Arm DDI 0183, with time taken out:

- A byte that the guest writes has left at once. The transmit FIFO is therefore always empty, and each byte makes it
  pass its trigger level, which sets the transmit interrupt until the guest clears it.
- A silence of 32 bit times is over at once. The receive timeout interrupt is therefore set whenever there is something
  to read and the receive interrupt is not set.
- The enable bits of UARTCR are kept, but bytes pass without them: bare-metal images often never set them.

Input that finds the FIFO full waits in a backlog, so that the sender needs no pacing. Nothing that a guest can do
raises.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

_DR: Final = 0x00
_FR: Final = 0x18
_LCR_H: Final = 0x2C
_IFLS: Final = 0x34
_IMSC: Final = 0x38
_RIS: Final = 0x3C
_MIS: Final = 0x40
_ICR: Final = 0x44

_FR_RX_EMPTY: Final = 1 << 4
_FR_RX_FULL: Final = 1 << 6
_FR_TX_EMPTY: Final = 1 << 7
_LCR_FIFO_ENABLE: Final = 1 << 4
_INT_RX: Final = 1 << 4
_INT_TX: Final = 1 << 5
_INT_RX_TIMEOUT: Final = 1 << 6
_INT_ALL: Final = 0x7FF

_FIFO_DEPTH: Final = 16
_TRIGGERS: Final = (2, 4, 8, 12, 14, 14, 14, 14)
"""Bytes in the FIFO that set the receive interrupt: 1/8, 1/4, 1/2, 3/4 and 7/8 of it; the last three are reserved."""

_STORED: Final = {
    0x20: 0xFF,
    0x24: 0xFFFF,
    0x28: 0x3F,
    _LCR_H: 0xFF,
    0x30: 0xFF87,
    _IFLS: 0x3F,
    _IMSC: _INT_ALL,
    0x48: 0x7,
}
"""Registers that read back what was written, and their implemented bits."""

# Revision 1 of the part: the one whose FIFOs are 16 deep.
_IDS: Final = (0x11, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1)


class Pl011:
    """One UART. Offsets are in bytes into its 4 KiB, sizes 1, 2, 4 or 8 bytes, values unsigned.

    `output` is called with each byte that the guest sends. `on_irq`, if given, is called with the new level each time
    that the interrupt line changes. `backlog` bounds, in bytes, the input that waits for room in the FIFO.
    """

    __slots__ = ("_backlog", "_fifo", "_irq", "_on_irq", "_output", "_raw", "_registers", "_room")

    def __init__(
        self,
        output: Callable[[bytes], None],
        on_irq: Callable[[bool], None] | None = None,
        backlog: int = 65536,
    ) -> None:
        self._output = output
        self._on_irq = on_irq
        self._room = backlog
        self._registers = dict.fromkeys(_STORED, 0) | {0x30: 0x300, _IFLS: 0x12}
        self._fifo: deque[int] = deque()
        self._backlog: deque[int] = deque()
        self._raw = 0
        self._irq = False

    @property
    def irq(self) -> bool:
        """The level of the interrupt line."""
        return self._irq

    @property
    def waiting(self) -> int:
        """How many bytes of input the guest has not read yet."""
        return len(self._fifo) + len(self._backlog)

    @property
    def listening(self) -> bool:
        """Whether the guest has asked to be interrupted by input."""
        return bool(self._registers[_IMSC] & (_INT_RX | _INT_RX_TIMEOUT))

    def receive(self, data: bytes) -> int:
        """Give input to the guest; return how many bytes of it were taken, from the front.

        Fewer than all only if the backlog is full; the rest is the caller's to give again.
        """
        room = self._depth() - len(self._fifo) if not self._backlog else 0
        taken = min(len(data), room + self._room - len(self._backlog))
        self._backlog.extend(data[:taken])
        self._fill()
        return taken

    def read(self, offset: int, size: int) -> int:
        """Read a register. One that is not there, and an unaligned offset, reads as zero."""
        if offset == _DR:
            return self._read_data()
        if offset == _FR:
            return self._flags()
        if offset in _STORED:
            return self._registers[offset] & ((1 << size * 8) - 1)
        if offset == _RIS:
            return self._raw
        if offset == _MIS:
            return self._raw & self._registers[_IMSC]
        if 0xFE0 <= offset <= 0xFFC and not offset & 3:
            return _IDS[(offset - 0xFE0) >> 2]
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register. One that is not there or is read-only, and an unaligned offset, is ignored."""
        if offset == _DR:
            self._raw |= _INT_TX
            self._update()
            self._output(bytes((value & 0xFF,)))
        elif offset in _STORED:
            self._write_stored(offset, value & _STORED[offset])
        elif offset == _ICR:
            self._raw &= ~value
            self._update()

    def _write_stored(self, offset: int, value: int) -> None:
        self._registers[offset] = value
        if offset == _LCR_H:
            self._resize()
        elif offset == _IFLS:
            self._fill()
        self._update()

    def _depth(self) -> int:
        return _FIFO_DEPTH if self._registers[_LCR_H] & _LCR_FIFO_ENABLE else 1

    def _trigger(self) -> int:
        return min(self._depth(), _TRIGGERS[self._registers[_IFLS] >> 3 & 7])

    def _flags(self) -> int:
        flags = _FR_TX_EMPTY
        if not self._fifo:
            flags |= _FR_RX_EMPTY
        if len(self._fifo) >= self._depth():
            flags |= _FR_RX_FULL
        return flags

    def _read_data(self) -> int:
        if not self._fifo:
            return 0
        byte = self._fifo.popleft()
        if len(self._fifo) < self._trigger():
            self._raw &= ~_INT_RX
        self._fill()
        return byte

    def _resize(self) -> None:
        """The FIFO was enabled or disabled: what does not fit any more goes back to the front of the backlog."""
        while len(self._fifo) > self._depth():
            self._backlog.appendleft(self._fifo.pop())
        self._fill()

    def _fill(self) -> None:
        """Move input into the FIFO; bytes that bring it to its trigger level or above set the receive interrupt."""
        arrived = False
        while self._backlog and len(self._fifo) < self._depth():
            self._fifo.append(self._backlog.popleft())
            arrived = True
        if arrived and len(self._fifo) >= self._trigger():
            self._raw |= _INT_RX
        self._update()

    def _update(self) -> None:
        if self._fifo and not self._raw & _INT_RX:
            self._raw |= _INT_RX_TIMEOUT
        else:
            self._raw &= ~_INT_RX_TIMEOUT
        level = bool(self._raw & self._registers[_IMSC])
        if level != self._irq:
            self._irq = level
            if self._on_irq is not None:
                self._on_irq(level)
