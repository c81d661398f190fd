"""Guest images: what a file is, where its bytes go in memory, and where the initial RAM disk and device tree go.

For: arm64 Linux kernels (the `Image` format, as such, gzip-compressed, or as an EFI zboot image with a gzip payload),
statically linked AArch64 ELF executables, gzip-compressed or not, and flat binaries. Not for: running EFI applications,
relocating position-independent executables, other compressions.

The rules are those of Linux's Documentation/arch/arm64/booting, of the ELF specification and of RFC 1952. Where they
leave a choice it is that of QEMU's `virt` machine:

- A flat binary, that is, anything not recognised, is loaded and entered 512 KiB above the start of memory.
- A kernel is loaded at the start of memory plus its text offset, and 2 MiB higher if that offset is below 4 KiB.
- The initial RAM disk goes 128 MiB, or half of memory if that is less, above the start of memory, or after the image.
- The device tree goes after the RAM disk, on a 2 MiB boundary; for an ELF image, to the start of memory if it fits.

Files are untrusted: each size is checked against the file and the guest's memory before anything of it is allocated.
Addresses are physical, sizes in bytes.
"""

import io
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, BinaryIO, Final, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.descriptions import describe_e_machine
from elftools.elf.structs import ELFStructs

_FLAT_OFFSET: Final = 0x8_0000
_2_MIB: Final = 2 << 20
_128_MIB: Final = 128 << 20
_PAGE: Final = 4096
_MAX_DTB: Final = _2_MIB

_GZIP: Final = b"\x1f\x8b\x08"
_LINUX_MAGIC: Final = b"ARM\x64"
_ELF_IDENT: Final = 16
_ELF_TYPES: Final = {"ET_REL": "a relocatable object", "ET_DYN": "position-independent", "ET_CORE": "a core dump"}
_PE_MACHINES: Final = {0x14C: "x86 (32-bit)", 0x8664: "x86-64", 0x1C2: "Arm (32-bit)", 0x5064: "RISC-V"}
_PE_AARCH64: Final = 0xAA64

_NOT_BOOTABLE: Final = {
    _GZIP: "gzip-compressed twice",
    b"\xfd7zXZ\0": "xz-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"\x02\x21\x4c\x18": "lz4-compressed",
    b"\x04\x22\x4d\x18": "lz4-compressed",
    b"BZh9": "bzip2-compressed",
    b"QFI\xfb": "a QCOW2 disk image",
    b"PK\x03\x04": "a zip archive",
    b"\xcf\xfa\xed\xfe": "a Mach-O file",
    b"\xd0\x0d\xfe\xed": "a device tree",
    b"\x27\x05\x19\x56": "a U-Boot legacy image",
    b"070701": "a cpio archive",
    b"!<arch>\n": "an ar archive",
    b"#!/": "a script",
}
_TEXT: Final = frozenset(b"\t\n\r" + bytes(range(0x20, 0x7F)))
_EXPECTED: Final = "expected an arm64 Linux Image, a static AArch64 ELF executable or a flat binary, plain or gzip"


class ImageError(ValueError):
    """A file that cannot be a guest's: one line that names the file, what is wrong with it and what was expected."""


class ImageKind(Enum):
    """What an image was recognised as."""

    LINUX = "arm64 Linux Image"
    ELF = "ELF executable"
    FLAT = "flat binary"


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes for memory: `data` at `address`, then zeros up to `size` bytes in all."""

    address: int
    data: bytes
    size: int

    @property
    def end(self) -> int:
        """The address after the last byte, zeros included."""
        return self.address + self.size


@dataclass(frozen=True, slots=True)
class Image:
    """A guest image, ready to be copied into memory: disjoint segments by rising address, and where to enter it."""

    name: str
    kind: ImageKind
    segments: tuple[Segment, ...]
    entry: int

    @property
    def start(self) -> int:
        """The address of the first byte."""
        return self.segments[0].address

    @property
    def end(self) -> int:
        """The address after the last byte that the image needs for itself."""
        return self.segments[-1].end


@dataclass(frozen=True, slots=True)
class Layout:
    """Where what an image is booted with goes. `initrd` is (first address, end address), None if there is none."""

    dtb: int
    initrd: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class _Memory:
    base: int
    size: int

    @property
    def end(self) -> int:
        return self.base + self.size

    def holds(self, address: int, size: int) -> bool:
        return self.base <= address and address + size <= self.end

    def __str__(self) -> str:
        return f"the {self.size >> 20} MiB of memory at {self.base:#x}"


class _Source:
    """An open image: a part of it is read only when it is asked for."""

    __slots__ = ("_stream", "name", "size")

    def __init__(self, name: str, stream: BinaryIO, size: int) -> None:
        self.name = name
        self.size = size
        self._stream = stream

    def part(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on; fewer only at the end."""
        if offset >= self.size:
            return b""
        try:
            self._stream.seek(offset)
            return self._stream.read(min(size, self.size - offset))
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror}") from None

    def error(self, message: str) -> ImageError:
        return ImageError(f"{self.name}: {message}")


# --- what callers use --------------------------------------------------------------------------------------------


def load_image(source: str | os.PathLike[str] | bytes, memory_base: int, memory_size: int) -> Image:
    """Read a guest image from a file, or from bytes, for a guest with this memory.

    `memory_base` is on a 2 MiB boundary. Raises ImageError for anything that cannot be loaded. What is not recognised
    is a flat binary, unless its first bytes say that it is something else. A kernel that was cut short is noticed if
    it has an EFI stub, as its section table then says how long the file must be.
    """
    memory = _Memory(memory_base, memory_size)
    if isinstance(source, bytes):
        return _load(_Source("image", io.BytesIO(source), len(source)), memory)
    with _open(source) as stream:
        return _load(_source(source, stream), memory)


def load_initrd(path: str | os.PathLike[str], memory_size: int) -> bytes:
    """Read an initial RAM disk, in whatever format, that a guest's memory can hold. Raises ImageError if it cannot."""
    with _open(path) as stream:
        source = _source(path, stream)
        if not source.size:
            raise source.error("is empty, expected an initial RAM disk")
        if source.size > memory_size:
            raise source.error(f"has {source.size} bytes, more than the {memory_size >> 20} MiB of memory")
        return source.part(0, source.size)


def plan_layout(image: Image, initrd_size: int, dtb_size: int, memory_base: int, memory_size: int) -> Layout:
    """Choose addresses for the initial RAM disk (none if its size is 0) and the device tree.

    They overlap neither the image nor each other; the RAM disk is on a page boundary, the device tree on a 2 MiB one
    and inside that block. Raises ImageError if they do not fit.
    """
    memory = _Memory(memory_base, memory_size)
    if dtb_size > _MAX_DTB:
        raise ImageError(f"{image.name}: its device tree has {dtb_size} bytes, a kernel takes at most {_MAX_DTB}")
    taken = [(segment.address, segment.end) for segment in image.segments]
    high = memory.base + min(memory.size // 2, _128_MIB)
    initrd = None
    if initrd_size:
        where = [high, image.end, memory.base]
        address = _place(image, "initial RAM disk", initrd_size, _PAGE, where, taken, memory)
        initrd = (address, address + initrd_size)
        taken.append(initrd)
    after = initrd[1] if initrd else high
    where = [memory.base, after] if image.kind is ImageKind.ELF else [after, memory.base]
    return Layout(_place(image, "device tree", dtb_size, _2_MIB, [*where, image.end], taken, memory), initrd)


def _place(
    image: Image,
    what: str,
    size: int,
    alignment: int,
    candidates: list[int],
    taken: list[tuple[int, int]],
    memory: _Memory,
) -> int:
    """The first candidate, rounded up, that is in memory and free."""
    for candidate in candidates:
        address = _round_up(candidate, alignment)
        if memory.holds(address, size) and all(address >= end or address + size <= start for start, end in taken):
            return address
    raise ImageError(
        f"{image.name}: no room for the {what} of {size} bytes beside the image"
        f" ({image.start:#x} to {image.end:#x}) in {memory}"
    )


def _round_up(value: int, alignment: int) -> int:
    return (value + alignment - 1) // alignment * alignment


# --- opening files -----------------------------------------------------------------------------------------------


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file. Its type is looked at first: opening a pipe would wait for somebody to write to it."""
    name = os.fspath(path)
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISREG(mode):
            return open(name, "rb")
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL in it
        raise ImageError(f"{name!r}: cannot be the name of a file") from None
    raise ImageError(f"{name}: is {'a directory' if stat.S_ISDIR(mode) else 'a special file'}, expected a regular file")


def _source(path: str | os.PathLike[str], stream: BinaryIO) -> _Source:
    return _Source(os.fspath(path), stream, os.fstat(stream.fileno()).st_size)


# --- recognising -------------------------------------------------------------------------------------------------


def _load(source: _Source, memory: _Memory) -> Image:
    if not source.size:
        raise source.error(f"is empty, {_EXPECTED}")
    if source.part(0, len(_GZIP)) == _GZIP:
        source = _inflated(source, 0, source.size, memory)
    head = source.part(0, 64)
    if head[:2] == b"MZ" and head[4:8] == b"zimg":
        source = _zboot_payload(source, head, memory)
        head = source.part(0, 64)
        if head[56:60] != _LINUX_MAGIC:
            raise source.error("is an EFI zboot image, but not of an arm64 Linux Image")
    if head[:4] == b"\x7fELF":
        return _load_elf(source, memory)
    if head[56:60] == _LINUX_MAGIC:
        return _load_linux(source, head, memory)
    _refuse_others(source, head)
    return _single(source, ImageKind.FLAT, memory.base + _FLAT_OFFSET, 0, memory)


def _refuse_others(source: _Source, head: bytes) -> None:
    """Name what is certainly not for this machine, so that it does not end as a flat binary that hangs."""
    for magic, what in _NOT_BOOTABLE.items():
        if head.startswith(magic):
            raise source.error(f"is {what}, {_EXPECTED}")
    if source.part(0x202, 4) == b"HdrS":
        raise source.error(f"is a Linux kernel for x86, {_EXPECTED}")
    if head[56:60] == b"RSC\x05":
        raise source.error(f"is a Linux kernel for RISC-V, {_EXPECTED}")
    if all(byte in _TEXT for byte in head):
        raise source.error(f"is a text file, {_EXPECTED}")
    machine = _pe_machine(source, head)
    if machine is not None:
        name = "AArch64" if machine == _PE_AARCH64 else _PE_MACHINES.get(machine, f"machine {machine:#x}")
        raise source.error(f"is an EFI application for {name}, {_EXPECTED}")


def _single(source: _Source, kind: ImageKind, address: int, size: int, memory: _Memory) -> Image:
    """An image of one piece: all of the file, and zeros up to `size` bytes if that is more."""
    size = max(size, source.size)
    if not memory.holds(address, size):
        raise source.error(f"is a {kind.value} of {size} bytes for {address:#x}, which is not inside {memory}")
    return Image(source.name, kind, (Segment(address, source.part(0, source.size), size),), address)


# --- compression -------------------------------------------------------------------------------------------------


def _inflated(source: _Source, offset: int, size: int, memory: _Memory) -> _Source:
    """The gzip data at a place of a file, decompressed: never more of it than memory holds."""
    if size > memory.size:
        raise source.error(f"has {size} bytes of gzip data, more than {memory}")
    inflater = zlib.decompressobj(wbits=31)
    try:
        data = inflater.decompress(source.part(offset, size), memory.size + 1)
    except zlib.error:
        raise source.error("is corrupt: its gzip data cannot be decompressed") from None
    if len(data) > memory.size:
        raise source.error(f"is bigger, decompressed, than {memory}")
    if not inflater.eof:
        raise source.error("is truncated: its gzip data has no end")
    if inflater.unused_data.startswith(_GZIP):
        raise source.error("is several gzip files in one, expected a single one")
    if not data:
        raise source.error(f"is empty, decompressed, {_EXPECTED}")
    return _Source(source.name, io.BytesIO(data), len(data))


def _zboot_payload(source: _Source, head: bytes, memory: _Memory) -> _Source:
    """The kernel inside of an EFI zboot image: its header has the payload's place, size and compression."""
    offset, size = struct.unpack_from("<II", head, 8) if len(head) == 64 else (0, 0)
    compression = head[24:56].split(b"\0")[0].decode("ascii", "replace")
    if compression != "gzip":
        raise source.error(f"is an EFI zboot image compressed with {compression!r}, expected gzip")
    if offset + size > source.size:
        raise source.error("is truncated: an EFI zboot image whose payload ends after the file does")
    return _inflated(source, offset, size, memory)


# --- Linux -------------------------------------------------------------------------------------------------------


def _load_linux(source: _Source, head: bytes, memory: _Memory) -> Image:
    text_offset, image_size, flags = struct.unpack_from("<QQQ", head, 8)
    if flags & 1:
        raise source.error("is a big-endian arm64 Linux Image, expected a little-endian one")
    if _pe_machine(source, head) is not None and _pe_file_size(source, head) > source.size:
        raise source.error(f"is truncated: an arm64 Linux Image whose sections do not end in its {source.size} bytes")
    if not image_size:  # before Linux 3.17: neither field was reliable
        text_offset = _FLAT_OFFSET
    if text_offset < _PAGE:
        text_offset += _2_MIB
    return _single(source, ImageKind.LINUX, memory.base + text_offset, image_size, memory)


def _pe_machine(source: _Source, head: bytes) -> int | None:
    """The machine in the PE header of an EFI application; None if the file is not one."""
    if head[:2] != b"MZ" or len(head) < 64:
        return None
    header = source.part(int.from_bytes(head[60:64], "little"), 6)
    return int.from_bytes(header[4:], "little") if len(header) == 6 and header[:4] == b"PE\0\0" else None


def _pe_file_size(source: _Source, head: bytes) -> int:
    """Where the last section's bytes end in the file, as its section table says; past the end if the table does."""
    start = int.from_bytes(head[60:64], "little")
    header = source.part(start, 24)
    if len(header) < 24:
        return source.size + 1
    count, optional = struct.unpack_from("<H12xH", header, 6)
    table = source.part(start + 24 + optional, 40 * count)
    if len(table) < 40 * count:
        return source.size + 1
    sections = struct.iter_unpack("<16xII16x", table)
    return max((size + offset for size, offset in sections if size), default=0)


# --- ELF ---------------------------------------------------------------------------------------------------------


class _Loadable(NamedTuple):
    """What a loadable segment's program header says. Sizes in bytes."""

    offset: int
    virtual: int
    physical: int
    file_size: int
    memory_size: int


def _load_elf(source: _Source, memory: _Memory) -> Image:
    """An executable's loadable segments at their physical addresses."""
    entry, headers = _elf_headers(source)
    headers.sort(key=lambda header: header.physical)
    if not headers:
        raise source.error("is an ELF executable without a loadable segment")
    for header in headers:
        _check_segment(source, header, memory)
    for below, above in pairwise(headers):
        if below.physical + below.memory_size > above.physical:
            raise source.error(f"is an ELF executable whose segments overlap at {above.physical:#x}")
    segments = tuple(Segment(h.physical, source.part(h.offset, h.file_size), h.memory_size) for h in headers)
    return Image(source.name, ImageKind.ELF, segments, _elf_entry(source, entry, headers))


def _elf_headers(source: _Source) -> tuple[int, list[_Loadable]]:
    """The (virtual) entry point of an ELF executable for this machine, and its loadable segments that are not empty.

    This takes pyelftools' structures and not its ELFFile, which also reads the sections, that nobody needs here, and
    looks through all of them for each segment.
    """
    structs, head = _elf_structs(source)
    if head.e_type != "ET_EXEC":
        what = _ELF_TYPES.get(head.e_type, f"of type {head.e_type}")
        raise source.error(f"is an ELF file that is {what}, expected an executable linked at a fixed address")
    size = structs.Elf_Phdr.sizeof()
    if head.e_phentsize != size:
        raise source.error(f"is a corrupt ELF file: its program headers have {head.e_phentsize} bytes each, not {size}")
    table = source.part(head.e_phoff, head.e_phnum * size)
    if len(table) < head.e_phnum * size:
        raise source.error(
            f"is truncated: its {head.e_phnum} ELF program headers do not end in its {source.size} bytes"
        )
    parsed = (struct_parse(structs.Elf_Phdr, io.BytesIO(table), size * i) for i in range(head.e_phnum))
    loadable = (h for h in parsed if h.p_type == "PT_LOAD" and h.p_memsz)
    return head.e_entry, [_Loadable(h.p_offset, h.p_vaddr, h.p_paddr, h.p_filesz, h.p_memsz) for h in loadable]


def _elf_structs(source: _Source) -> tuple[ELFStructs, Any]:
    """The layout of an ELF file for this machine, and its header."""
    ident = source.part(0, _ELF_IDENT)
    structs = ELFStructs(little_endian=ident[5:6] != b"\2", elfclass=32 if ident[4:5] == b"\1" else 64)
    structs.create_basic_structs()
    structs.create_advanced_structs()
    try:
        head = struct_parse(structs.Elf_Ehdr, io.BytesIO(source.part(0, structs.Elf_Ehdr.sizeof())), 0)
    except ELFError:
        raise source.error("is truncated: it ends inside of its ELF header") from None
    if head.e_machine != "EM_AARCH64":
        machine = head.e_machine
        name = f"machine {machine}" if isinstance(machine, int) else describe_e_machine(machine)
        raise source.error(f"is an ELF file for {name}, expected one for AArch64")
    if structs.elfclass != 64:
        raise source.error("is a 32-bit ELF file, expected a 64-bit one")
    if not structs.little_endian:
        raise source.error("is a big-endian ELF file, expected a little-endian one")
    return structs, head


def _check_segment(source: _Source, header: _Loadable, memory: _Memory) -> None:
    if header.file_size > header.memory_size:
        raise source.error(
            f"is a corrupt ELF file: its segment at {header.physical:#x} has more bytes than it may take"
        )
    if header.offset + header.file_size > source.size:
        raise source.error(f"is truncated: its ELF segment at {header.physical:#x} does not end in the file")
    if not memory.holds(header.physical, header.memory_size):
        raise source.error(
            f"is an ELF executable with a segment of {header.memory_size} bytes at {header.physical:#x},"
            f" which is not inside {memory}"
        )


def _elf_entry(source: _Source, entry: int, headers: list[_Loadable]) -> int:
    """The physical address of the entry point: execution starts with the MMU off."""
    for header in headers:
        into = entry - header.virtual
        if 0 <= into < header.memory_size and not entry & 3:
            return header.physical + into
    raise source.error(f"is an ELF executable whose entry point {entry:#x} is not an instruction of a segment")
