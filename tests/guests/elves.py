"""ELF files as a linker makes them, by hand: as much of the ELF specification as says what a file needs."""

from __future__ import annotations

import struct

LOADER = "/lib/ld-linux-aarch64.so.1"
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NULL, DT_NEEDED, DT_STRTAB, DT_STRSZ = 0, 1, 5, 10


def program(*needed: str) -> bytes:
    """A program: with a loader if it needs libraries, else a static one."""
    return _elf(needed, LOADER if needed else "", 3 if needed else 2)


def library(*needed: str, machine: int = 183) -> bytes:
    """A shared library."""
    return _elf(needed, "", 3, machine)


def _elf(needed: tuple[str, ...], interpreter: str, kind: int, machine: int = 183) -> bytes:
    """One segment that holds the file, loaded at its offset; then what describes the strings and tags in it."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    loader = interpreter.encode() + b"\0" if interpreter else b""
    count = 2 + bool(loader)
    strings_at = 64 + 56 * count
    loader_at = strings_at + len(strings)
    tags_at = (loader_at + len(loader) + 7) & ~7
    at, tags = 1, b""
    for name in needed:
        tags += struct.pack("<QQ", DT_NEEDED, at)
        at += len(name) + 1
    tags += struct.pack("<QQQQQQ", DT_STRTAB, strings_at, DT_STRSZ, len(strings), DT_NULL, 0)
    size = tags_at + len(tags)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    segments = [(PT_LOAD, 0, size), (PT_DYNAMIC, tags_at, len(tags))]
    segments += [(PT_INTERP, loader_at, len(loader))] if loader else []
    for what, offset, length in segments:
        header += struct.pack("<IIQQQQQQ", what, 5, offset, offset, offset, length, length, 8)
    return (header + strings + loader).ljust(tags_at, b"\0") + tags
