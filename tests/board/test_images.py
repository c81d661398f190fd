"""Guest images: what loads, where, and the one line that each bad file gets. Headers are written out by hand here."""

import gzip
import os
import struct
import time
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmuvisor.board.images import Image, ImageError, ImageKind, load_image, load_initrd, plan_layout

BASE = 0x4000_0000
SIZE = 64 << 20
MIB = 1 << 20
CODE = b"\x1f\x20\x03\xd5" * 64  # NOPs


def load(data: bytes) -> Image:
    return load_image(data, BASE, SIZE)


def kernel(text_offset: int = 0, image_size: int = 3 * MIB, flags: int = 0xA, body: bytes = CODE) -> bytes:
    """An arm64 Linux Image without an EFI stub."""
    return struct.pack("<IIQQQQQQ4sI", 0x1400_0010, 0, text_offset, image_size, flags, 0, 0, 0, b"ARM\x64", 0) + body


def efi_kernel(raw_size: int = 0x1000) -> bytes:
    """An Image with an EFI stub: a PE header at 64, one section of `raw_size` bytes from 0x1000 on."""
    pe = b"PE\0\0" + struct.pack("<HHIIIHH", 0xAA64, 1, 0, 0, 0, 8, 0x206) + bytes(8)
    pe += struct.pack("<8sIIIIIIHHI", b".text", raw_size, 0x1000, raw_size, 0x1000, 0, 0, 0, 0, 0)
    head = struct.pack("<4sIQQQQQQ4sI", b"MZ\x40\xfa", 0, 0, 2 * MIB, 0xA, 0, 0, 0, b"ARM\x64", 64)
    return (head + pe).ljust(0x1000, b"\0") + bytes(raw_size)


def segment(
    physical: int, data_at: int, data: bytes, memory_size: int | None = None, virtual: int | None = None
) -> bytes:
    size = len(data) if memory_size is None else memory_size
    address = physical if virtual is None else virtual
    return struct.pack("<IIQQQQQQ", 1, 5, data_at, address, physical, len(data), size, 4)


def elf(
    segments: list[bytes] | None = None,
    entry: int = 0x4010_0000,
    machine: int = 183,
    kind: int = 2,
    bits: int = 2,
    order: int = 1,
    header_size: int = 56,
) -> bytes:
    """An ELF file whose segments' bytes are CODE, at 0x1000."""
    if segments is None:
        segments = [segment(0x4010_0000, 0x1000, CODE, 0x2000)]
    ident = b"\x7fELF" + bytes((bits, order, 1)) + bytes(9)
    fields = (kind, machine, 1, entry, 64, 0, 0, 64, header_size, len(segments), 0, 0, 0)
    head = ident + struct.pack("<>"[order - 1] + "HHIQQQIHHHHHH", *fields)
    return (head + b"".join(segments)).ljust(0x1000, b"\0") + CODE


def zboot(payload: bytes, compression: bytes = b"gzip") -> bytes:
    head = b"MZ\0\0zimg" + struct.pack("<II", 64, len(payload)) + bytes(8) + compression.ljust(32, b"\0")
    return head.ljust(64, b"\0") + payload


# --- what loads ----------------------------------------------------------------------------------------------------


def test_a_kernel_goes_to_its_text_offset() -> None:
    image = load(kernel(text_offset=0x8_0000))
    assert (image.kind, image.entry, image.start) == (ImageKind.LINUX, BASE + 0x8_0000, BASE + 0x8_0000)
    assert image.end == BASE + 0x8_0000 + 3 * MIB  # what it needs beyond its file
    assert image.segments[0].data == kernel(text_offset=0x8_0000)


def test_a_kernel_without_text_offset_goes_2_mib_up() -> None:
    assert load(kernel()).entry == 0x4020_0000


def test_a_kernel_of_before_image_size_has_the_old_text_offset() -> None:
    data = kernel(text_offset=0x1234_5678, image_size=0)
    assert load(data).entry == BASE + 0x8_0000
    assert load(data).end == BASE + 0x8_0000 + len(data)


def test_a_kernel_with_an_efi_stub_is_a_kernel() -> None:
    assert load(efi_kernel()).kind is ImageKind.LINUX


def test_a_gzip_compressed_kernel_is_the_kernel() -> None:
    assert load(gzip.compress(kernel())).segments == load(kernel()).segments


def test_an_efi_zboot_image_is_the_kernel_inside() -> None:
    assert load(zboot(gzip.compress(kernel()))).segments == load(kernel()).segments


def test_an_elf_executable_goes_to_its_physical_addresses() -> None:
    virtual = 0xFFFF_0000_0000_0000
    parts = [
        segment(0x4030_0000, 0x1000, CODE, virtual=virtual),
        segment(0x4010_0000, 0x1000, CODE[:8], 0x2000, virtual=virtual + 0x10_0000),
        segment(0x4050_0000, 0x1000, b""),  # empty: not there
    ]
    image = load(elf(parts, entry=virtual + 0x10))
    assert image.kind is ImageKind.ELF
    assert image.entry == 0x4030_0010
    assert [(s.address, s.data, s.size) for s in image.segments] == [
        (0x4010_0000, CODE[:8], 0x2000),
        (0x4030_0000, CODE, len(CODE)),
    ]


def test_anything_else_is_a_flat_binary() -> None:
    image = load(CODE)
    assert (image.kind, image.entry, image.end) == (ImageKind.FLAT, 0x4008_0000, 0x4008_0000 + len(CODE))


def test_a_file_is_read_and_named(tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(elf())
    assert load_image(path, BASE, SIZE).segments == load(elf()).segments
    assert load_image(str(path), BASE, SIZE).name == str(path)


def test_an_elf_may_be_bigger_than_memory_if_what_it_loads_is_not(tmp_path: Path) -> None:
    path = tmp_path / "debug.elf"
    path.write_bytes(elf())
    os.truncate(path, 2 * SIZE)  # as if by debug sections
    assert load_image(path, BASE, SIZE).kind is ImageKind.ELF


# --- what does not -------------------------------------------------------------------------------------------------

FAR = segment(0x8000_0000, 0x1000, CODE)
BAD_IMAGES = [
    (b"", "is empty"),
    (elf(machine=62), "Advanced Micro Devices X86-64, expected one for AArch64"),
    (elf(machine=243), "RISC-V, expected one for AArch64"),
    (elf(machine=40, bits=1), "ARM, expected one for AArch64"),
    (elf(machine=4242), "machine 4242, expected one for AArch64"),
    (elf(bits=1), "32-bit ELF file, expected a 64-bit one"),
    (elf(order=2), "big-endian ELF file, expected a little-endian one"),
    (elf(kind=3), "position-independent, expected an executable linked at a fixed address"),
    (elf(kind=1), "a relocatable object, expected an executable"),
    (elf(header_size=32), "program headers have 32 bytes each"),
    (elf()[:40], "truncated: it ends inside of its ELF header"),
    (elf()[:100], "truncated: its 1 ELF program headers"),
    (elf()[:-1], "truncated: its ELF segment at 0x40100000"),
    (elf([]), "without a loadable segment"),
    (elf([FAR], entry=0x8000_0000), "at 0x80000000, which is not inside the 64 MiB of memory at 0x40000000"),
    (elf([segment(0x4010_0000, 0x1000, CODE, 1 << 63)]), "not inside the 64 MiB"),
    (elf([segment(0x4010_0000, 0x1000, CODE, 4)]), "has more bytes than it may take"),
    (elf([segment(0x4010_0000, 0x1000, CODE), segment(0x4010_0080, 0x1000, CODE)]), "overlap at 0x40100080"),
    (elf(entry=0x4100_0000), "entry point 0x41000000"),
    (elf(entry=0x4010_0002), "entry point 0x40100002"),
    (kernel(image_size=1 << 40), "not inside the 64 MiB"),
    (kernel(text_offset=1 << 63), "not inside the 64 MiB"),
    (kernel(flags=1), "big-endian arm64 Linux Image"),
    (efi_kernel()[:-1], "truncated: an arm64 Linux Image"),
    (efi_kernel()[:80], "truncated: an arm64 Linux Image"),
    (gzip.compress(kernel())[:-9], "truncated: its gzip data"),
    (gzip.compress(kernel())[:40], "truncated: its gzip data"),
    (gzip.compress(kernel())[:-8] + bytes(8), "corrupt: its gzip data"),
    (gzip.compress(b""), "empty, decompressed"),
    (gzip.compress(gzip.compress(CODE)), "gzip-compressed twice"),
    (gzip.compress(CODE) * 2, "several gzip files"),
    (zboot(zlib.compress(kernel()), b"zstd"), "compressed with 'zstd', expected gzip"),
    (zboot(gzip.compress(kernel()))[:-20], "payload ends after the file"),
    (zboot(gzip.compress(CODE)), "not of an arm64 Linux Image"),
    (b"\xfd7zXZ\0" + bytes(100), "xz-compressed"),
    (b"QFI\xfb" + bytes(100), "a QCOW2 disk image"),
    (b"#!/bin/sh\necho hello\n", "a script"),
    (b"CONFIG_ARM64=y\n" * 10, "a text file"),
    (bytes(0x202) + b"HdrS" + bytes(100), "a Linux kernel for x86"),
    (bytes(56) + b"RSC\x05" + bytes(100), "a Linux kernel for RISC-V"),
    (b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0" + b"\x64\x86", "an EFI application for x86-64"),
    (b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0" + b"\x64\xaa", "an EFI application for AArch64"),
]


@pytest.mark.parametrize(("data", "message"), BAD_IMAGES, ids=[message for _, message in BAD_IMAGES])
def test_a_bad_image_gets_one_line_that_names_it(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "guest.img"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        load_image(path, BASE, SIZE)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match=message):
        load(data)


def make_missing(path: Path) -> None:
    pass


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_unreadable(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_missing, "no such file"),
        (Path.mkdir, "a directory, expected a regular file"),
        (make_pipe, "a special file, expected a regular file"),
        (make_unreadable, "cannot be read: "),
    ],
)
@pytest.mark.parametrize("read", [lambda path: load_image(path, BASE, SIZE), lambda path: load_initrd(path, SIZE)])
def test_what_is_not_a_readable_file(
    make: Callable[[Path], None], message: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "guest"
    make(path)
    with pytest.raises(ImageError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(ImageError, match="cannot be the name of a file"):
        load_image("a\0b", BASE, SIZE)


def test_a_flat_binary_bigger_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.touch()
    os.truncate(path, SIZE)  # it fits in memory, but not above its load address
    with pytest.raises(ImageError, match=f"flat binary of {SIZE} bytes"):
        load_image(path, BASE, SIZE)


def test_decompression_never_takes_more_than_memory() -> None:
    with pytest.raises(ImageError, match="bigger, decompressed, than the 1 MiB"):
        load_image(gzip.compress(bytes(32 * MIB)), BASE, MIB)


def test_a_hostile_program_header_table_takes_linear_time() -> None:
    parts = [segment(0x4010_0000 + 4 * n, 0x1000, b"", 4) for n in range(60000)]
    begin = time.perf_counter()
    data = elf(parts)
    assert load(data[:64] + data[64:].ljust(1 << 22, b"\0")).end == 0x4010_0000 + 4 * 60000
    assert time.perf_counter() - begin < 3


def test_initial_ram_disks_are_bounded_by_memory(tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    path.write_bytes(b"070701")
    assert load_initrd(path, SIZE) == b"070701"
    os.truncate(path, MIB + 1)
    with pytest.raises(ImageError, match="more than the 1 MiB"):
        load_initrd(path, MIB)
    os.truncate(path, 0)
    with pytest.raises(ImageError, match="is empty, expected an initial RAM disk"):
        load_initrd(path, MIB)


# --- layout --------------------------------------------------------------------------------------------------------


def test_ram_disk_and_device_tree_go_to_128_mib_in_a_big_memory() -> None:
    layout = plan_layout(load(kernel()), 5 * MIB + 1, 0x1000, BASE, 1 << 30)
    assert layout.initrd == (0x4800_0000, 0x4850_0001)
    assert layout.dtb == 0x4860_0000  # on the next 2 MiB boundary


def test_they_go_to_the_middle_of_a_small_memory() -> None:
    layout = plan_layout(load(kernel()), MIB, 0x1000, BASE, 64 * MIB)
    assert layout.initrd == (0x4200_0000, 0x4210_0000)
    assert layout.dtb == 0x4220_0000
    assert plan_layout(load(kernel()), 0, 0x1000, BASE, 64 * MIB).dtb == 0x4200_0000


def test_they_go_after_an_image_that_is_in_the_way() -> None:
    layout = plan_layout(load(kernel(image_size=40 * MIB)), MIB, 0x1000, BASE, SIZE)
    assert layout.initrd == (0x4020_0000 + 40 * MIB, 0x4020_0000 + 41 * MIB)
    assert layout.dtb == 0x4020_0000 + 42 * MIB


def test_the_device_tree_of_an_elf_image_goes_to_the_start_of_memory_if_it_fits() -> None:
    assert plan_layout(load(elf()), 0, 0x1000, BASE, SIZE).dtb == BASE
    assert plan_layout(load(elf()), 0, 0x10_0000, BASE, SIZE).dtb == BASE
    assert plan_layout(load(elf()), 0, 0x10_0001, BASE, SIZE).dtb == 0x4200_0000


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ImageError, match=r"image: no room for the initial RAM disk of 67108864 bytes"):
        plan_layout(load(kernel()), SIZE, 0x1000, BASE, SIZE)
    with pytest.raises(ImageError, match="no room for the device tree"):
        plan_layout(load(kernel(0x8_0000, 62 * MIB)), 0, 0x1F_FFFF, BASE, SIZE)
    with pytest.raises(ImageError, match="a kernel takes at most 2097152"):
        plan_layout(load(kernel()), 0, 2 * MIB + 1, BASE, SIZE)


@settings(deadline=None)
@given(
    st.integers(0, 30 * MIB),
    st.integers(1, 40 * MIB),
    st.integers(0, 64 * MIB),
    st.integers(1, 2 * MIB),
    st.integers(4, 256).map(lambda n: n * MIB),
)
def test_a_layout_never_overlaps(text_offset: int, image_size: int, initrd: int, dtb: int, memory: int) -> None:
    try:
        image = load_image(kernel(text_offset, image_size), BASE, memory)
        layout = plan_layout(image, initrd, dtb, BASE, memory)
    except ImageError:
        return
    ranges = [(image.start, image.end), (layout.dtb, layout.dtb + dtb)]
    if layout.initrd:
        assert layout.initrd[1] - layout.initrd[0] == initrd
        ranges.append(layout.initrd)
    ranges.sort()
    assert ranges[0][0] >= BASE
    assert ranges[-1][1] <= BASE + memory
    assert all(below[1] <= above[0] for below, above in pairwise(ranges))
    assert layout.dtb % (2 * MIB) == 0


# --- anything ------------------------------------------------------------------------------------------------------

SEEDS = [elf(), kernel(), efi_kernel(), gzip.compress(kernel()), zboot(gzip.compress(kernel())), CODE]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.integers(0, 0x1200),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
)
def test_a_damaged_image_loads_inside_of_memory_or_is_refused(
    seed: bytes, length: int, damage: list[tuple[int, int]]
) -> None:
    data = bytearray(seed[:length])
    for offset, byte in damage:
        if offset < len(data):
            data[offset] = byte
    load_or_refuse(bytes(data))


@settings(deadline=None)
@given(
    st.sampled_from([b"", b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\xb7\0", b"\x1f\x8b\x08", b"MZ\0\0zimg", b"MZ"]),
    st.binary(max_size=300),
)
def test_random_bytes_load_inside_of_memory_or_are_refused(prefix: bytes, data: bytes) -> None:
    load_or_refuse(prefix + data)


def load_or_refuse(data: bytes) -> None:
    try:
        image = load(data)
    except ImageError:
        return
    end = BASE
    for piece in image.segments:
        assert end <= piece.address
        assert len(piece.data) <= piece.size
        end = piece.end
    assert end <= BASE + SIZE
    assert image.start <= image.entry < image.end
