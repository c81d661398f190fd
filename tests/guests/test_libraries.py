"""Which libraries a program needs, by ELF files made by hand, and what is done with those that are none."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guests.elves import LOADER, library, program
from pmuvisor.lab.guests import GuestError
from pmuvisor.lab.guests.libraries import closure, needs

SHELF = {
    "ld-linux-aarch64.so.1": library(),
    "liba.so.1": library("libb.so.2", "libc.so.6"),
    "libb.so.2": library("liba.so.1", "libb.so.2"),
    "libc.so.6": library("ld-linux-aarch64.so.1"),
    "libother.so": library("libc.so.6"),
}


def test_a_program_needs_its_loader_and_its_libraries_and_theirs() -> None:
    assert needs("p", program("liba.so.1", "libc.so.6")).interpreter == LOADER
    assert needs("p", program("liba.so.1", "libc.so.6")).libraries == ("liba.so.1", "libc.so.6")
    everything = ["ld-linux-aarch64.so.1", "liba.so.1", "libb.so.2", "libc.so.6"]
    assert closure({"p": program("liba.so.1")}, SHELF) == everything
    assert closure({"p": program("libc.so.6")}, SHELF) == ["ld-linux-aarch64.so.1", "libc.so.6"]
    assert closure({"p": program()}, SHELF) == []


def test_a_library_that_is_asked_for_comes_with_what_it_needs_if_it_is_there() -> None:
    assert closure({}, SHELF, ["libother.so", "libabsent.so"]) == ["ld-linux-aarch64.so.1", "libc.so.6", "libother.so"]


def test_a_library_that_is_not_there_is_named_with_who_needs_it() -> None:
    shelf = SHELF | {"libb.so.2": library("libgone.so.3")}
    with pytest.raises(GuestError, match=r"^libb\.so\.2 needs 'libgone\.so\.3', which no package"):
        closure({"p": program("liba.so.1")}, shelf)


def test_another_machine_is_told_from_aarch64() -> None:
    with pytest.raises(GuestError, match=r"^libc\.so\.6 is an ELF file for x64, expected one for AArch64$"):
        closure({"p": program("libc.so.6")}, SHELF | {"libc.so.6": library(machine=62)})


def test_more_libraries_than_any_file_needs_are_refused() -> None:
    with pytest.raises(GuestError, match="names more than 256 libraries"):
        needs("many", library(*(f"l{n}" for n in range(257))))


WHOLE = program("liba.so.1", "libc.so.6")


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=12))
def test_a_damaged_file_is_read_or_refused_in_one_line(at: int, patch: bytes) -> None:
    for data in (WHOLE[:at], WHOLE[:at] + patch + WHOLE[at + len(patch) :]):
        with contextlib.suppress(GuestError):
            found = needs("damaged", data)
            assert all(isinstance(name, str) for name in found.libraries)


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF", WHOLE[:40]])
def test_what_is_no_elf_file_is_named(data: bytes) -> None:
    with pytest.raises(GuestError, match=r"^it is no ELF file that can be read: "):
        needs("it", data)
