"""The VMM's memory, as far as KVM reads and writes it.

In C an ioctl's argument is an address, and so are the `addr` fields of the structures. In Python an argument may be the
object itself: a ctypes structure, a bytearray, anything with a buffer. Where a structure wants an address, the object
is mapped first and its address is a number that means something here only; so a wrong one is EFAULT, never a crash.
"""

from __future__ import annotations

import bisect
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pmuvisor.kvm.uapi.abi import PAGE_SIZE

FIRST = 0x10_0000
"""The lowest address that is given out: NULL and what is near it never are."""


def error(number: int, what: str) -> OSError:
    """Return the OSError of an errno, which says what KVM did not accept."""
    return OSError(number, f"{os.strerror(number)}: {what}")


class UserMemory:
    """Objects of the VMM at addresses, with an unmapped page between any two."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._views: list[memoryview] = []

    def map(self, thing: Any) -> int:
        """Give an object that has a buffer an address, and return it. Raises TypeError for one that has none."""
        view = memoryview(thing).cast("B")
        start = FIRST
        if self._starts:
            start = self._starts[-1] + len(self._views[-1])
            start += -start % PAGE_SIZE + PAGE_SIZE
        self._starts.append(start)
        self._views.append(view)
        return start

    def unmap(self, address: int) -> None:
        """Take an address back that `map` gave. Raises KeyError for another one."""
        at = bisect.bisect_left(self._starts, address)
        if at == len(self._starts) or self._starts[at] != address:
            raise KeyError(f"nothing is mapped at {address:#x}")
        del self._starts[at], self._views[at]

    @contextmanager
    def mapped(self, thing: Any) -> Iterator[int]:
        """Give an object an address for as long as the context lasts."""
        address = self.map(thing)
        try:
            yield address
        finally:
            self.unmap(address)

    def copy_from_user(self, at: Any, size: int, offset: int = 0) -> bytes:
        """State copy_from_user(): read `size` bytes at an address, or of an object. Raises EFAULT."""
        return bytes(self._window(at, size, offset))

    def copy_to_user(self, at: Any, data: bytes, offset: int = 0) -> None:
        """State copy_to_user(): write `data` at an address, or into an object. Raises EFAULT, also for a constant."""
        window = self._window(at, len(data), offset)
        if window.readonly:
            raise error(errno.EFAULT, "the memory cannot be written")
        window[:] = data

    def _window(self, at: Any, size: int, offset: int) -> memoryview:
        if isinstance(at, int):
            view, offset = self._at(at + offset)
        else:
            try:
                view = memoryview(at).cast("B")
            except TypeError:
                raise error(errno.EFAULT, f"{type(at).__name__} is no memory") from None
        if offset + size > len(view):
            raise error(errno.EFAULT, f"expected {size} bytes, there are {max(0, len(view) - offset)}")
        return view[offset : offset + size]

    def _at(self, address: int) -> tuple[memoryview, int]:
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0 or address - self._starts[at] >= max(1, len(self._views[at])):
            raise error(errno.EFAULT, f"nothing is mapped at {address:#x}")
        return self._views[at], address - self._starts[at]

    def get_user(self, at: Any, size: int, *, signed: bool = False) -> int:
        """State get_user() of an integer of `size` bytes. Raises EFAULT."""
        return int.from_bytes(self.copy_from_user(at, size), "little", signed=signed)

    def put_user(self, at: Any, value: int, size: int) -> None:
        """State put_user() of an integer of `size` bytes. Raises EFAULT."""
        self.copy_to_user(at, (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little"))
