"""A GICv3: distributor, redistributors and the ICC_* CPU interfaces of a machine of up to eight CPUs.

For: guests that take SGIs, PPIs and SPIs with affinity routing, as Linux and bare-metal images do.
Not for: LPIs and the ITS, message-based SPIs, two security states, GICv2 compatibility, a virtual CPU interface (ICH_*
and ICV_*), extended INTID ranges, NMIs.

The rules are those of the GIC architecture specification, Arm IHI 0069. Where it leaves a choice, this is the choice:

- One security state (GICD_CTLR.DS and ARE read as one). Group 0 is signalled as FIQ, Group 1 as IRQ.
- 256 INTIDs and 5 bits of priority and of preemption, as QEMU's `virt` has with its Cortex-A CPUs: ICC_CTLR_EL1.PRIbits
  reads 4, the low three bits of a priority are RAZ/WI, BPR0 is at least 2 and BPR1 at least 3.
- 1-of-N delivery is not offered: GICD_TYPER.No1N reads 1 and GICD_IROUTER.Interrupt_Routing_Mode is RAZ/WI. An SPI goes
  to the CPU that its affinity names, and to none if there is no such CPU.
- Among pending interrupts of the same priority the one with the lowest INTID is taken first.
- Interrupts of a group that is disabled, in the distributor or at the CPU interface, do not hide those of the other.
- GICR_WAKER handshakes at once, and a redistributor that sleeps still forwards its interrupts, as those of KVM and QEMU
  do: images written on these may never have woken it.
- What software must not do (a reserved register, a size or alignment that a register does not have, ending an interrupt
  of the other group) reads as zero and is ignored.

Register offsets are in bytes from the start of a region, sizes 1, 2, 4 or 8 bytes, values unsigned. Nothing that a
guest can do raises.
"""

from collections.abc import Callable
from typing import Final

from pmuvisor.arch.sysreg import encode
from pmuvisor.board.memmap import GICR_SIZE_PER_CPU, INTID_COUNT, MAX_CPUS, SPI_FIRST

SPURIOUS: Final = 1023
"""The INTID that an acknowledge register returns when there is nothing to take."""

_PRIVATE: Final = (1 << SPI_FIRST) - 1
_SHARED: Final = ((1 << INTID_COUNT) - 1) & ~_PRIVATE
_SGIS: Final = 0xFFFF

_PRIORITY_MASK: Final = 0xF8
_IDLE: Final = 0xFF
_MIN_BPR0: Final = 2
_MIN_BPR1: Final = 3

_CTLR_GROUPS: Final = 0x3
_CTLR_FIXED: Final = 1 << 4 | 1 << 6  # ARE, DS
_GICD_TYPER: Final = 1 << 25 | 1 << 24 | 15 << 19 | (INTID_COUNT // 32 - 1)  # No1N, A3V, IDbits, ITLinesNumber
_IIDR: Final = 0x43B  # Implementer: Arm
_AFFINITY: Final = 0xFF_00FF_FFFF  # Aff3 and Aff2.Aff1.Aff0, as in MPIDR_EL1 and GICD_IROUTER
_WAKER_SLEEP: Final = 1 << 1
_WAKER_CHILDREN_ASLEEP: Final = 1 << 2
_SGI_FRAME: Final = 0x1_0000

_ICC_CTLR_FIXED: Final = 1 << 15 | 4 << 8  # A3V, PRIbits
_CBPR: Final = 1 << 0
_EOIMODE: Final = 1 << 1

# PIDR4..7, PIDR0..3, CIDR0..3. PIDR2 is 0x3b: architecture revision 3, a JEDEC code. The parts are those of a GIC-500.
_DIST_ID: Final = (0x44, 0, 0, 0, 0x92, 0xB4, 0x3B, 0, 0x0D, 0xF0, 0x05, 0xB1)
_REDIST_ID: Final = (0x44, 0, 0, 0, 0x93, 0xB4, 0x3B, 0, 0x0D, 0xF0, 0x05, 0xB1)


def _id_register(table: tuple[int, ...], offset: int) -> int:
    return table[(offset - 0xFFD0) >> 2] if 0xFFD0 <= offset <= 0xFFFC else 0


def _spread(bits: int) -> int:
    """16 one-bit values as the upper bits of 16 two-bit fields, the form of GICD_ICFGR."""
    return sum(2 << (2 * n) for n in range(16) if bits >> n & 1)


def _gather(fields: int) -> int:
    """The inverse of `_spread`."""
    return sum(1 << n for n in range(16) if fields >> (2 * n + 1) & 1)


class _Bank:
    """The state of a set of interrupts: one CPU's SGIs and PPIs, or all SPIs.

    Each field but the priorities is a mask with one bit per INTID; the bits outside of `valid` stay zero, which makes
    the registers of interrupts that are not here RAZ/WI by itself. Distributor and redistributor give these registers
    the same offsets.
    """

    __slots__ = ("active", "edge", "enabled", "group", "latched", "level", "priority", "valid")

    def __init__(self, valid: int) -> None:
        self.valid = valid
        self.group = 0
        self.enabled = 0
        self.latched = 0
        self.level = 0
        self.active = 0
        self.edge = valid & _SGIS
        self.priority = bytearray(valid.bit_length())

    def pending(self) -> int:
        return self.latched | (self.level & ~self.edge)

    def ready(self) -> int:
        return (self.latched | (self.level & ~self.edge)) & self.enabled & ~self.active

    def drive(self, bit: int, level: bool) -> bool:
        """Set the line of one interrupt; say whether it changed."""
        if bool(self.level & bit) == level:
            return False
        self.level ^= bit
        if level:
            self.latched |= bit & self.edge
        return True

    def read(self, offset: int, size: int) -> int:
        if 0x400 <= offset < 0x800:
            return self._read_priority(offset - 0x400, size)
        if size != 4 or offset & 3:
            return 0
        if 0xC00 <= offset < 0xD00:
            return _spread(self.edge >> ((offset - 0xC00) * 4) & 0xFFFF)
        return self._read_mask(offset >> 7) >> ((offset & 0x7F) * 8) & 0xFFFF_FFFF

    def write(self, offset: int, size: int, value: int) -> None:
        if 0x400 <= offset < 0x800:
            self._write_priority(offset - 0x400, size, value)
        elif size == 4 and not offset & 3:
            if 0xC00 <= offset < 0xD00:
                self._write_config((offset - 0xC00) * 4, value)
            else:
                self._write_mask(offset >> 7, (offset & 0x7F) * 8, value & 0xFFFF_FFFF)

    def _read_mask(self, register: int) -> int:
        if register == 1:
            return self.group
        if register in (2, 3):
            return self.enabled
        if register in (4, 5):
            return self.pending()
        if register in (6, 7):
            return self.active
        return 0

    def _write_mask(self, register: int, shift: int, value: int) -> None:
        bits = value << shift & self.valid
        if register == 1:
            self.group = self.group & ~(0xFFFF_FFFF << shift) | bits
        elif register == 2:
            self.enabled |= bits
        elif register == 3:
            self.enabled &= ~bits
        elif register == 4:
            self.latched |= bits
        elif register == 5:
            self.latched &= ~bits
        elif register == 6:
            self.active |= bits
        elif register == 7:
            self.active &= ~bits

    def _read_priority(self, intid: int, size: int) -> int:
        if size not in (1, 4) or intid % size:
            return 0
        return int.from_bytes(self.priority[intid : intid + size], "little")

    def _write_priority(self, intid: int, size: int, value: int) -> None:
        if size not in (1, 4) or intid % size:
            return
        for n in range(intid, intid + size):
            if self.valid >> n & 1:
                self.priority[n] = value & _PRIORITY_MASK
            value >>= 8

    def _write_config(self, shift: int, value: int) -> None:
        writable = 0xFFFF << shift & self.valid & ~_SGIS  # SGIs are always edge-triggered
        self.edge = self.edge & ~writable | _gather(value) << shift & writable


class _Cpu:
    """One CPU: its redistributor's interrupts, its CPU interface, and what it would take now, which is cached."""

    __slots__ = (
        "active0", "active1", "best", "best_priority", "bpr0", "bpr1", "ctlr", "enable0", "enable1", "fiq", "irq",
        "number", "pmr", "private", "routed", "stale", "waker",
    )  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.private = _Bank(_PRIVATE)
        self.routed = 0
        self.waker = _WAKER_SLEEP | _WAKER_CHILDREN_ASLEEP
        self.reset_interface()

    def reset_interface(self) -> None:
        self.pmr = 0
        self.bpr0 = _MIN_BPR0
        self.bpr1 = _MIN_BPR1
        self.ctlr = 0
        self.enable0 = False
        self.enable1 = False
        self.active0 = 0
        self.active1 = 0
        self.best = SPURIOUS
        self.best_priority = _IDLE
        self.irq = False
        self.fiq = False
        self.stale = True

    def running_priority(self) -> int:
        """The priority of what this CPU handles: bit n of an active priorities register stands for priority 8 * n."""
        active = self.active0 | self.active1
        return ((active & -active).bit_length() - 1) << 3 if active else _IDLE

    def group_priority(self, priority: int, group1: bool) -> int:
        """The part of a priority that decides preemption. BPR1 counts one bit less than BPR0 does."""
        if group1 and not self.ctlr & _CBPR:
            return priority & (0xFF << self.bpr1)
        return priority & (0xFF << (self.bpr0 + 1))

    def preempts(self, priority: int, group1: bool) -> bool:
        """Whether a pending priority is in a higher group than what runs, both split at the pending one's binary point.

        What runs may have been taken with another split: compared with that, a lower priority could seem the higher.
        """
        running = self.running_priority()
        if running == _IDLE:
            return True
        return self.group_priority(priority, group1) < self.group_priority(running, group1)


class Gic:
    """The interrupt controller of a machine.

    `changed` holds the numbers of the CPUs whose IRQ or FIQ line may have changed since the owner last emptied it; the
    owner asks `irq` for those and empties it.
    """

    __slots__ = ("_cpus", "_ctlr", "_route", "_shared", "changed")

    def __init__(self, num_cpus: int) -> None:
        """Raises ValueError for less than one or more than `memmap.MAX_CPUS` CPUs."""
        if not 1 <= num_cpus <= MAX_CPUS:
            raise ValueError(f"a machine has 1 to {MAX_CPUS} CPUs, not {num_cpus}")
        self.changed: set[int] = set()
        self._ctlr = 0
        self._shared = _Bank(_SHARED)
        self._cpus = [_Cpu(n) for n in range(num_cpus)]
        self._route = [0] * INTID_COUNT
        self._cpus[0].routed = _SHARED  # GICD_IROUTER resets to affinity 0

    # --- the lines -----------------------------------------------------------------------------------------------

    def irq(self, cpu: int) -> bool:
        """Whether the IRQ line to a CPU is up: a Group 1 interrupt is pending that it could take now."""
        c = self._cpus[cpu]
        if c.stale:
            self._refresh(c)
        return c.irq

    def fiq(self, cpu: int) -> bool:
        """Whether the FIQ line to a CPU is up: a Group 0 interrupt is pending that it could take now."""
        c = self._cpus[cpu]
        if c.stale:
            self._refresh(c)
        return c.fiq

    def set_level(self, intid: int, level: bool) -> None:
        """Drive the line of an SPI. Raises ValueError if `intid` is not one (32..255)."""
        if not SPI_FIRST <= intid < INTID_COUNT:
            raise ValueError(f"INTID {intid} is not an SPI of this machine")
        if self._shared.drive(1 << intid, level):
            self._touch_spi(intid)

    def set_ppi(self, cpu: int, intid: int, level: bool) -> None:
        """Drive the line of a PPI of one CPU. Raises ValueError if `intid` is not one (16..31)."""
        if not 16 <= intid < SPI_FIRST:
            raise ValueError(f"INTID {intid} is not a PPI")
        c = self._cpus[cpu]
        if c.private.drive(1 << intid, level):
            self._touch(c)

    def reset_cpu_interface(self, cpu: int) -> None:
        """Bring a CPU's ICC_* registers to their reset values, as when it is turned on. Its redistributor keeps on."""
        c = self._cpus[cpu]
        c.reset_interface()
        self._touch(c)

    def _touch(self, c: _Cpu) -> None:
        c.stale = True
        self.changed.add(c.number)

    def _touch_spi(self, intid: int) -> None:
        target = self._route[intid]
        if target < len(self._cpus):
            self._touch(self._cpus[target])

    def _touch_all(self) -> None:
        for c in self._cpus:
            self._touch(c)

    def _refresh(self, c: _Cpu) -> None:
        """Find the highest priority pending interrupt of a CPU, and what it does to its lines."""
        c.stale = False
        ready = c.private.ready() | (self._shared.ready() & c.routed)
        group = c.private.group | self._shared.group
        if not (self._ctlr & 2 and c.enable1):
            ready &= ~group
        if not (self._ctlr & 1 and c.enable0):
            ready &= group
        c.best, c.best_priority = self._highest(c, ready)
        group1 = bool(group >> c.best & 1)
        taken = c.best_priority < c.pmr and c.preempts(c.best_priority, group1)
        c.irq = taken and group1
        c.fiq = taken and not group1

    def _highest(self, c: _Cpu, ready: int) -> tuple[int, int]:
        best, best_priority = SPURIOUS, _IDLE
        while ready:
            intid = (ready & -ready).bit_length() - 1
            priority = (c.private if intid < SPI_FIRST else self._shared).priority[intid]
            if priority < best_priority:
                best, best_priority = intid, priority
            ready &= ready - 1
        return best, best_priority

    # --- distributor ---------------------------------------------------------------------------------------------

    def dist_read(self, offset: int, size: int) -> int:
        """Read `size` bytes at an offset in the distributor's 64 KiB."""
        if 0x80 <= offset < 0xD00:
            return self._shared.read(offset, size)
        if 0x6000 <= offset < 0x8000:
            return self._read_route(offset, size)
        if size != 4:
            return 0
        if offset == 0x0:
            return self._ctlr | _CTLR_FIXED
        if offset == 0x4:
            return _GICD_TYPER
        if offset == 0x8:
            return _IIDR
        return _id_register(_DIST_ID, offset)

    def dist_write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at an offset in the distributor's 64 KiB."""
        if 0x80 <= offset < 0xD00:
            self._shared.write(offset, size, value)
        elif 0x6000 <= offset < 0x8000:
            self._write_route(offset, size, value)
        elif offset == 0x0 and size == 4:
            self._ctlr = value & _CTLR_GROUPS
        self._touch_all()

    def _read_route(self, offset: int, size: int) -> int:
        intid, within = (offset - 0x6000) >> 3, offset & 7
        if size not in (4, 8) or within % size or not SPI_FIRST <= intid < INTID_COUNT:
            return 0
        return self._route[intid] >> (within * 8) & ((1 << size * 8) - 1)

    def _write_route(self, offset: int, size: int, value: int) -> None:
        intid, within = (offset - 0x6000) >> 3, offset & 7
        if size not in (4, 8) or within % size or not SPI_FIRST <= intid < INTID_COUNT:
            return
        field = ((1 << size * 8) - 1) << (within * 8)
        affinity = (self._route[intid] & ~field | value << (within * 8) & field) & _AFFINITY
        self._route[intid] = affinity
        for c in self._cpus:
            c.routed = c.routed & ~(1 << intid) | (c.number == affinity) << intid

    # --- redistributors ------------------------------------------------------------------------------------------

    def redist_read(self, offset: int, size: int) -> int:
        """Read `size` bytes at an offset in the region of all redistributors, 128 KiB for each CPU in order."""
        number, within = divmod(offset, GICR_SIZE_PER_CPU)
        if not 0 <= number < len(self._cpus):
            return 0
        c = self._cpus[number]
        if within >= _SGI_FRAME:
            within -= _SGI_FRAME
            return c.private.read(within, size) if 0x80 <= within < 0xD00 else 0
        if within in (0x8, 0xC):
            typer = number << 32 | number << 8 | (number == len(self._cpus) - 1) << 4
            return self._part(typer, within & 7, size)
        if size != 4:
            return 0
        if within == 0x4:
            return _IIDR
        if within == 0x14:
            return c.waker
        return _id_register(_REDIST_ID, within)

    def redist_write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at an offset in the region of all redistributors."""
        number, within = divmod(offset, GICR_SIZE_PER_CPU)
        if not 0 <= number < len(self._cpus):
            return
        c = self._cpus[number]
        if _SGI_FRAME + 0x80 <= within < _SGI_FRAME + 0xD00:
            c.private.write(within - _SGI_FRAME, size, value)
            self._touch(c)
        elif within == 0x14 and size == 4:
            c.waker = _WAKER_SLEEP | _WAKER_CHILDREN_ASLEEP if value & _WAKER_SLEEP else 0

    @staticmethod
    def _part(register: int, within: int, size: int) -> int:
        """A 64-bit register, or the half of it at byte `within`."""
        if size not in (4, 8) or within % size:
            return 0
        return register >> (within * 8) & ((1 << size * 8) - 1)

    # --- CPU interface -------------------------------------------------------------------------------------------

    def icc_read(self, cpu: int, key: int) -> int | None:
        """What an MRS of an ICC_* register gives, 64 bits wide; None if there is no such register to read.

        `key` is as `sysreg.encode` makes it. Reading ICC_IARn_EL1 acknowledges.
        """
        reader = _READERS.get(key)
        return None if reader is None else reader(self, self._cpus[cpu])

    def icc_write(self, cpu: int, key: int, value: int) -> bool:
        """Do an MSR to an ICC_* register; False if there is no such register to write. `key` is as for `icc_read`."""
        writer = _WRITERS.get(key)
        if writer is None:
            return False
        c = self._cpus[cpu]
        writer(self, c, value)
        self._touch(c)
        return True

    def _acknowledge0(self, c: _Cpu) -> int:
        return self._activate(c, False) if self.fiq(c.number) else SPURIOUS

    def _acknowledge1(self, c: _Cpu) -> int:
        return self._activate(c, True) if self.irq(c.number) else SPURIOUS

    def _activate(self, c: _Cpu, group1: bool) -> int:
        """Take the best interrupt: it becomes active and what was latched of it is consumed.

        The line of a level-sensitive interrupt still stands if its device has more to say: active and pending.
        """
        intid = c.best
        bank = c.private if intid < SPI_FIRST else self._shared
        bank.active |= 1 << intid
        bank.latched &= ~(1 << intid)
        level = 1 << (c.group_priority(c.best_priority, group1) >> 3)
        if group1:
            c.active1 |= level
        else:
            c.active0 |= level
        self._touch(c)
        return intid

    def _end0(self, c: _Cpu, value: int) -> None:
        lowest = c.active0 & -c.active0
        if (value & 0xFF_FFFF) < INTID_COUNT and lowest and not c.active1 & (lowest - 1):
            c.active0 ^= lowest
            self._after_end(c, value)

    def _end1(self, c: _Cpu, value: int) -> None:
        lowest = c.active1 & -c.active1
        if (value & 0xFF_FFFF) < INTID_COUNT and lowest and not c.active0 & (lowest | lowest - 1):
            c.active1 ^= lowest
            self._after_end(c, value)

    def _after_end(self, c: _Cpu, value: int) -> None:
        if not c.ctlr & _EOIMODE:
            self._deactivate(c, value & 0xFF_FFFF)

    def _write_dir(self, c: _Cpu, value: int) -> None:
        intid = value & 0xFF_FFFF
        if c.ctlr & _EOIMODE and intid < INTID_COUNT:
            self._deactivate(c, intid)

    def _deactivate(self, c: _Cpu, intid: int) -> None:
        if intid < SPI_FIRST:
            c.private.active &= ~(1 << intid)
        else:
            self._shared.active &= ~(1 << intid)
            self._touch_spi(intid)

    def _pending0(self, c: _Cpu) -> int:
        return self._pending_of(c, False)

    def _pending1(self, c: _Cpu) -> int:
        return self._pending_of(c, True)

    def _pending_of(self, c: _Cpu, group1: bool) -> int:
        if c.stale:
            self._refresh(c)
        group = c.private.group | self._shared.group
        return c.best if bool(group >> c.best & 1) == group1 else SPURIOUS

    def _read_bpr1(self, c: _Cpu) -> int:
        return min(c.bpr0 + 1, 7) if c.ctlr & _CBPR else c.bpr1

    def _write_bpr0(self, c: _Cpu, value: int) -> None:
        c.bpr0 = max(value & 7, _MIN_BPR0)

    def _write_bpr1(self, c: _Cpu, value: int) -> None:
        if not c.ctlr & _CBPR:
            c.bpr1 = max(value & 7, _MIN_BPR1)

    def _write_pmr(self, c: _Cpu, value: int) -> None:
        c.pmr = value & _PRIORITY_MASK

    def _write_ctlr(self, c: _Cpu, value: int) -> None:
        c.ctlr = value & (_CBPR | _EOIMODE)

    def _write_enable0(self, c: _Cpu, value: int) -> None:
        c.enable0 = bool(value & 1)

    def _write_enable1(self, c: _Cpu, value: int) -> None:
        c.enable1 = bool(value & 1)

    def _write_active0(self, c: _Cpu, value: int) -> None:
        c.active0 = value & 0xFFFF_FFFF

    def _write_active1(self, c: _Cpu, value: int) -> None:
        c.active1 = value & 0xFFFF_FFFF

    def _ignore(self, c: _Cpu, value: int) -> None:
        """ICC_SRE_EL1: the system register interface is the only one, all of it is fixed."""

    def _write_sgi1r(self, c: _Cpu, value: int) -> None:
        self._send_sgi(c, value, either_group=True)

    def _write_sgi0r(self, c: _Cpu, value: int) -> None:
        self._send_sgi(c, value, either_group=False)

    def _send_sgi(self, c: _Cpu, value: int, either_group: bool) -> None:
        """Generate an SGI on its targets.

        With one security state ICC_SGI1R_EL1 reaches an SGI of either group, and the other two only one of Group 0.
        """
        intid = value >> 24 & 0xF
        for target in self._sgi_targets(c, value):
            if either_group or not target.private.group >> intid & 1:
                target.private.latched |= 1 << intid
                self._touch(target)

    def _sgi_targets(self, c: _Cpu, value: int) -> list[_Cpu]:
        if value >> 40 & 1:
            return [other for other in self._cpus if other is not c]
        # CPUs are numbered in Aff0 below 16: no CPU has another affinity, or is in another range of the target list.
        if value & (0xFF << 48 | 0xF << 44 | 0xFF << 32 | 0xFF << 16):
            return []
        return [target for target in self._cpus if value >> target.number & 1]


_PMR: Final = encode(3, 0, 4, 6, 0)
_IAR0, _EOIR0, _HPPIR0, _BPR0, _AP0R0 = (encode(3, 0, 12, 8, n) for n in range(5))
_AP1R0: Final = encode(3, 0, 12, 9, 0)
_DIR, _RPR, _SGI1R, _ASGI1R, _SGI0R = (encode(3, 0, 12, 11, n) for n in (1, 3, 5, 6, 7))
_IAR1, _EOIR1, _HPPIR1, _BPR1, _CTLR, _SRE, _IGRPEN0, _IGRPEN1 = (encode(3, 0, 12, 12, n) for n in range(8))

_READERS: Final[dict[int, Callable[[Gic, _Cpu], int]]] = {
    _PMR: lambda gic, c: c.pmr,
    _IAR0: Gic._acknowledge0,
    _HPPIR0: Gic._pending0,
    _BPR0: lambda gic, c: c.bpr0,
    _AP0R0: lambda gic, c: c.active0,
    _AP1R0: lambda gic, c: c.active1,
    _RPR: lambda gic, c: c.running_priority(),
    _IAR1: Gic._acknowledge1,
    _HPPIR1: Gic._pending1,
    _BPR1: Gic._read_bpr1,
    _CTLR: lambda gic, c: c.ctlr | _ICC_CTLR_FIXED,
    _SRE: lambda gic, c: 7,
    _IGRPEN0: lambda gic, c: int(c.enable0),
    _IGRPEN1: lambda gic, c: int(c.enable1),
}

_WRITERS: Final[dict[int, Callable[[Gic, _Cpu, int], None]]] = {
    _PMR: Gic._write_pmr,
    _EOIR0: Gic._end0,
    _BPR0: Gic._write_bpr0,
    _AP0R0: Gic._write_active0,
    _AP1R0: Gic._write_active1,
    _DIR: Gic._write_dir,
    _SGI1R: Gic._write_sgi1r,
    _ASGI1R: Gic._write_sgi0r,
    _SGI0R: Gic._write_sgi0r,
    _EOIR1: Gic._end1,
    _BPR1: Gic._write_bpr1,
    _CTLR: Gic._write_ctlr,
    _SRE: Gic._ignore,
    _IGRPEN0: Gic._write_enable0,
    _IGRPEN1: Gic._write_enable1,
}

ICC_KEYS: Final = frozenset(_READERS) | frozenset(_WRITERS)
"""The keys of all registers of the CPU interface."""

SGI_KEYS: Final = frozenset((_SGI1R, _ASGI1R, _SGI0R))
"""The keys of the registers that send interrupts to other CPUs."""
