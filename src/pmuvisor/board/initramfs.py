"""A writer of initial RAM disks: cpio archives in the `newc` format.

For: giving a Linux guest its user space, deterministically: no times, no owners but root, inode numbers in the order of
the entries, so the same entries give the same bytes. Not for: reading archives, hard links, compression.

The format is the one in Linux's Documentation/driver-api/early-userspace/buffer-format.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = "070701"
_TRAILER: Final = "TRAILER!!!"
_MAX_SIZE: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory. A path is relative to the root, and the directories above it come before it in the archive."""

    path: str
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class File:
    """A regular file."""

    path: str
    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link to `target`."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class CharDevice:
    """A character device node, such as /dev/console: 5, 1."""

    path: str
    major: int
    minor: int
    mode: int = 0o600


Entry = Directory | File | Symlink | CharDevice


def cpio_newc(entries: Iterable[Entry]) -> bytes:
    """An archive of the entries, in their order.

    Raises ValueError for a path that is empty, absolute, has a `..` in it or repeats an earlier one, for permission
    bits outside of 0o7777, for a device number outside of 32 bits and for a file of 4 GiB or more.
    """
    archive = bytearray()
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        _check_path(entry.path, seen)
        _append(archive, number, entry)
    _record(archive, 0, _TRAILER, 0, b"", (0, 0))
    return bytes(archive)


def _check_path(path: str, seen: set[str]) -> None:
    parts = path.split("/")
    if not all(part not in ("", ".", "..") and "\0" not in part for part in parts) or path == _TRAILER:
        raise ValueError(f"{path!r} is not a relative path of plain names")
    if path in seen:
        raise ValueError(f"{path!r} is in the archive already")
    seen.add(path)


def _append(archive: bytearray, number: int, entry: Entry) -> None:
    match entry:
        case Directory(path, mode):
            _record(archive, number, path, stat.S_IFDIR | _permissions(path, mode), b"", (0, 0))
        case File(path, data, mode):
            _record(archive, number, path, stat.S_IFREG | _permissions(path, mode), data, (0, 0))
        case Symlink(path, target):
            _record(archive, number, path, stat.S_IFLNK | 0o777, _encoded(target), (0, 0))
        case CharDevice(path, major, minor, mode):
            _record(archive, number, path, stat.S_IFCHR | _permissions(path, mode), b"", (major, minor))


def _permissions(path: str, mode: int) -> int:
    if not 0 <= mode <= 0o7777:
        raise ValueError(f"{path!r}: {mode:#o} is not a set of permission bits")
    return mode


def _record(archive: bytearray, number: int, path: str, mode: int, data: bytes, device: tuple[int, int]) -> None:
    """One header of 13 hexadecimal fields, the name and the data, the latter two padded to four bytes."""
    name = _encoded(path) + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
    if not all(0 <= field <= _MAX_SIZE for field in fields):
        raise ValueError(f"{path!r}: its size or device number does not fit in 32 bits")
    archive += (_MAGIC + "".join(f"{field:08X}" for field in fields)).encode() + name
    _pad(archive)
    archive += data
    _pad(archive)


def _encoded(path: str) -> bytes:
    """A path in bytes: those that it came from, where they were no UTF-8."""
    return path.encode("utf-8", "surrogateescape")


def _pad(archive: bytearray) -> None:
    archive += bytes(-len(archive) % 4)
