"""A decoder of SPE records, by the Arm ARM's "Statistical Profiling Extension sample record specification"."""

from __future__ import annotations

from dataclasses import dataclass, field

PADDING, END, TIMESTAMP = 0x00, 0x01, 0x71
EVENTS, SOURCE, CONTEXT, OPERATION = "events", "source", "context", "operation"
ADDRESS, COUNTER = "address", "counter"


@dataclass
class Record:
    """The packets of one record: by kind and index, the payload."""

    packets: dict[tuple[str, int], int] = field(default_factory=dict)
    order: list[tuple[str, int]] = field(default_factory=list)
    size: int = 0
    """Bytes, without the padding after it."""

    @property
    def pc(self) -> int:
        """The 56 bits of the PC's address."""
        return self.packets[ADDRESS, 0] & ((1 << 56) - 1)


def kind_of(header: int) -> tuple[str, int, int]:
    """Return what a header of one byte says: the kind of packet, its index, and how many bytes follow."""
    size = 1 << (header >> 4 & 3)
    if header == TIMESTAMP:
        return "timestamp", 0, size
    if header >> 6 == 0b10:
        return (COUNTER if header & 8 else ADDRESS), header & 7, size
    low = header & 0xF
    if header >> 6 == 0b01 and low >> 2 == 0b10:
        return OPERATION, low & 3, size
    if header >> 6 == 0b01 and low >> 2 == 0b01:
        return CONTEXT, low & 3, size
    if header >> 6 == 0b01 and low in (2, 3):
        return (EVENTS, SOURCE)[low - 2], 0, size
    raise ValueError(f"no packet has the header {header:#04x}")


def decode(data: bytes) -> list[Record]:
    """Return the records in some bytes; ValueError where they are not whole records and padding."""
    found: list[Record] = []
    this: Record | None = None
    at = 0
    while at < len(data):
        header = data[at]
        at += 1
        if header == PADDING:
            if this is not None:
                raise ValueError("padding in the middle of a record")
            continue
        this = this or Record()
        this.size += 1
        if header == END:
            found.append(this)
            this = None
            continue
        kind, index, size = kind_of(header)
        if (kind, index) in this.packets or at + size > len(data):
            raise ValueError(f"a packet {kind} {index} twice, or cut off")
        this.packets[kind, index] = int.from_bytes(data[at : at + size], "little")
        this.order.append((kind, index))
        this.size += size
        at += size
        if header == TIMESTAMP:
            found.append(this)
            this = None
    if this is not None:
        raise ValueError("a record without an end")
    return found
