"""The cpio writer: read back by a parser written here from the format's description, and by cpio where installed."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuvisor.board.initramfs import CharDevice, Directory, Entry, File, Symlink, cpio_newc

NAMES = ["ino", "mode", "uid", "gid", "nlink", "mtime", "filesize"]
NAMES += ["devmajor", "devminor", "rdevmajor", "rdevminor", "namesize", "check"]
ENTRIES: list[Entry] = [
    Directory("dev"),
    CharDevice("dev/console", 5, 1),
    File("init", b"#!/bin/sh\n", 0o755),
    Symlink("bin", "usr/bin"),
    File("empty", b""),
]


def parse(archive: bytes) -> list[tuple[str, dict[str, int], bytes]]:
    records: list[tuple[str, dict[str, int], bytes]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = {name: int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n, name in enumerate(NAMES)}
        name = archive[at + 110 : at + 110 + fields["namesize"]]
        assert name.endswith(b"\0")
        data_at = (at + 110 + fields["namesize"] + 3) & ~3
        data = archive[data_at : data_at + fields["filesize"]]
        at = (data_at + fields["filesize"] + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert at == len(archive)
            return records
        records.append((name[:-1].decode("utf-8", "surrogateescape"), fields, data))


def test_each_kind_of_entry_has_its_mode_and_data() -> None:
    records = {name: (fields, data) for name, fields, data in parse(cpio_newc(ENTRIES))}
    assert list(records) == ["dev", "dev/console", "init", "bin", "empty"]
    assert records["dev"][0]["mode"] == stat.S_IFDIR | 0o755
    console = records["dev/console"][0]
    assert (console["mode"], console["rdevmajor"], console["rdevminor"]) == (stat.S_IFCHR | 0o600, 5, 1)
    assert (records["init"][0]["mode"], records["init"][1]) == (stat.S_IFREG | 0o755, b"#!/bin/sh\n")
    assert (records["bin"][0]["mode"], records["bin"][1]) == (stat.S_IFLNK | 0o777, b"usr/bin")
    assert (records["empty"][0]["mode"], records["empty"][1]) == (stat.S_IFREG | 0o644, b"")


def test_the_archive_has_no_times_and_no_owners_and_inodes_of_its_own() -> None:
    fields = [fields for _, fields, _ in parse(cpio_newc(ENTRIES))]
    assert all(f["mtime"] == f["uid"] == f["gid"] == 0 for f in fields)
    assert [f["ino"] for f in fields] == [1, 2, 3, 4, 5]
    assert cpio_newc(ENTRIES) == cpio_newc(iter(ENTRIES))


def test_an_empty_archive_is_a_trailer() -> None:
    assert parse(cpio_newc([])) == []


@pytest.mark.parametrize("path", ["", "/init", "a//b", "a/", "./a", "../a", "a/../b", "a\0b", "TRAILER!!!"])
def test_paths_that_no_archive_should_have(path: str) -> None:
    with pytest.raises(ValueError, match="plain names"):
        cpio_newc([File(path, b"")])


def test_what_does_not_fit_in_a_header_is_refused() -> None:
    with pytest.raises(ValueError, match="already"):
        cpio_newc([Directory("a"), File("a", b"")])
    with pytest.raises(ValueError, match="permission"):
        cpio_newc([File("a", b"", 0o100644)])
    with pytest.raises(ValueError, match="32 bits"):
        cpio_newc([CharDevice("a", 1 << 32, 0)])


@given(st.dictionaries(st.text("abc\u00e9_- ", min_size=1), st.binary(), max_size=6))
def test_any_files_are_read_back(files: dict[str, bytes]) -> None:
    records = parse(cpio_newc(File(path, data) for path, data in files.items()))
    assert {name: data for name, _, data in records} == files


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_extracts_it(tmp_path: Path) -> None:
    entries: list[Entry] = [Directory("a"), File("a/b", b"text", 0o600), Symlink("c", "a/b")]
    subprocess.run(["cpio", "-id", "--quiet"], input=cpio_newc(entries), cwd=tmp_path, check=True)
    assert (tmp_path / "c").read_bytes() == b"text"
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o600
