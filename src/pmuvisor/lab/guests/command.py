"""A command for a Linux guest: the second initramfs, with pmuvisor's /init, the command, and the user's own files.

Linux unpacks archives that follow each other one after the other (its early-userspace/buffer-format), so this one goes
behind the root that was fetched, as it is. What the command's end was is read from the machine's second serial port.
"""

from __future__ import annotations

import os
import posixpath
import re
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from elftools.elf.descriptions import describe_e_machine
from elftools.elf.enums import ENUM_E_MACHINE

from pmuvisor.board.initramfs import Directory, Entry, File, Symlink, cpio_newc
from pmuvisor.lab.guests.errors import GuestError
from pmuvisor.lab.guests.libraries import ELF_MAGIC
from pmuvisor.lab.guests.root import FOLDERS, LINKS

HOME: Final = "root"
"""Where a file goes that was given no place, and where the command starts; it is first in PATH."""
MOUNTED: Final = ("dev", "proc", "sys")
"""Where the guest mounts something over what an initramfs holds."""
MODULES: Final = "run/modules"
"""Where the modules are that /init loads."""
OWN: Final = ("init", "run/command", "run/session", "run/settings", MODULES)
"""What /init needs for itself."""
MAX_STATUS: Final = 255
COMMAND_LIMIT: Final = 128 << 10
"""Bytes of a command with its arguments; Linux takes no longer argument than this (MAX_ARG_STRLEN)."""


@dataclass(frozen=True, slots=True)
class Added:
    """A file of the user's, or a folder with all that is in it, and where it goes: a path from the guest's root."""

    source: Path
    target: str


@dataclass(frozen=True, slots=True)
class Terminal:
    """The terminal of an interactive command."""

    rows: int = 24
    columns: int = 80
    name: str = "vt100"
    """What TERM says that it is."""


def added(text: str) -> Added:
    """Return what FILE or FILE:PATH asks for. Raises GuestError for an empty one and for a path that leaves the root.

    FILE alone goes to /root, under its own name; a PATH that ends in a slash is a folder to put it into.
    """
    source, colon, path = text.partition(":")
    name = posixpath.basename(posixpath.normpath(source)) if source else ""
    if not source or (colon and not path) or "\0" in text:
        raise GuestError(f"add {text!r}: expected FILE or FILE:PATH")
    if not colon:
        path = f"/{HOME}/"
    if path.endswith("/"):
        if name in ("", ".", ".."):
            raise GuestError(f"add {text!r}: expected FILE:PATH, since FILE has no name of its own")
        path += name
    if not path.startswith("/") or ".." in path.split("/"):
        raise GuestError(f"add {text!r}: expected PATH to start with / and to have no .. in it")
    target = posixpath.normpath(path).strip("/")
    first, slash, rest = target.partition("/")
    if first in LINKS and slash:
        target = f"{LINKS[first]}/{rest}"
    own = target in OWN or target.startswith(f"{MODULES}/")
    if own or first in MOUNTED or target in LINKS or target in ("", *FOLDERS):
        raise GuestError(f"add {text!r}: PATH is the guest's own; expected a place such as /{HOME}/NAME")
    return Added(Path(source), target)


def command_initrd(
    command: Sequence[str],
    files_added: Sequence[Added],
    terminal: Terminal | None = None,
    room: int = 1 << 30,
    modules: Sequence[tuple[str, bytes]] = (),
) -> bytes:
    """Return the archive that goes behind the root's; the user's files in it have at most `room` bytes.

    With a `terminal` a person is at the command's; else its output is a socket, and its input text up to an end of
    file. `modules` are loaded before the command starts: names and contents, in the order of the names. Raises
    GuestError for a command that cannot be passed on, and for a file that cannot be read or is a program of another
    machine.
    """
    ours = files("pmuvisor.guests") / "command"
    archive = _Archive(room)
    archive.put(Directory("run"))
    archive.put(File("init", (ours / "init").read_bytes(), 0o755))
    archive.put(File("run/session", (ours / "session").read_bytes(), 0o755))
    archive.put(File("run/command", command_script(command), 0o755))
    archive.put(File("run/settings", _settings(terminal)))
    if modules:
        archive.put(Directory(MODULES))
    for name, data in modules:
        archive.put(File(f"{MODULES}/{name}", data))
    for one in files_added:
        archive.add(one.source, one.target)
    try:
        return cpio_newc(archive.entries.values())
    except ValueError as error:
        raise GuestError(f"add: {error}") from None


def command_script(command: Sequence[str]) -> bytes:
    """Return a shell script that becomes the command with its arguments, byte for byte what they are here.

    Raises GuestError for a command that is empty, too long, or has a NUL in it.
    """
    words = [os.fsencode(word) for word in command]
    if not words or not words[0]:
        raise GuestError("command: expected the name of a program to run")
    if any(b"\0" in word for word in words):
        raise GuestError("command: expected words without a NUL in them")
    if sum(map(len, words)) > COMMAND_LIMIT:
        raise GuestError(f"command: has more than the {COMMAND_LIMIT} bytes that a guest is given")
    quoted = b" ".join(os.fsencode(shlex.quote(word)) for word in command)
    return b"#!/bin/sh\nexec " + quoted + b"\n"


def read_control(control: bytes) -> tuple[bool, int | None]:
    """Return what a guest's /init said by the second serial port: whether the command started, its exit status or None.

    A line that is not complete, or that /init does not write, says nothing; of two that do, the first one counts.
    """
    lines = control.replace(b"\r", b"").split(b"\n")[:-1]
    ends = [int(found[1]) for line in lines if (found := re.fullmatch(rb"exit (\d{1,3})", line))]
    return b"start" in lines, next((status for status in ends if status <= MAX_STATUS), None)


def _settings(terminal: Terminal | None) -> bytes:
    if terminal is None:
        return b"interactive=\nexport TERM=dumb\n"
    size = f"interactive=1 rows={terminal.rows} columns={terminal.columns}"
    return f"{size}\nexport TERM={shlex.quote(terminal.name)}\n".encode("utf-8", "surrogateescape")


class _Archive:
    """Files for a guest, by their place."""

    def __init__(self, room: int) -> None:
        self.entries: dict[str, Entry] = {}
        self._limit = self._room = room

    def put(self, entry: Entry) -> None:
        """Put something in its place, which is free."""
        self.entries[entry.path] = entry

    def add(self, source: Path, target: str) -> None:
        """Add a file of the user's, or a folder with all that is in it, and the folders above it."""
        parts = target.split("/")
        for folder in ("/".join(parts[:n]) for n in range(1, len(parts))):
            if not isinstance(self.entries.setdefault(folder, Directory(folder)), Directory):
                raise GuestError(f"add {source}: /{folder} is a file that was added before")
        if target in self.entries:
            raise GuestError(f"add {source}: /{target} was added before")
        try:
            self._add(source, target, source.stat())
        except OSError as error:
            raise GuestError(f"add {error.filename or source}: {error.strerror}") from None

    def _add(self, source: Path, target: str, status: os.stat_result) -> None:
        """Links within a folder stay links: they may lead in circles."""
        mode = stat.S_IMODE(status.st_mode) & 0o777
        if stat.S_ISDIR(status.st_mode):
            self.put(Directory(target, mode | 0o700))
            for name in sorted(os.listdir(source)):
                self._add(source / name, f"{target}/{name}", (source / name).lstat())
        elif stat.S_ISLNK(status.st_mode):
            self.put(Symlink(target, os.readlink(source)))
        elif stat.S_ISREG(status.st_mode):
            self._room -= status.st_size
            if self._room < 0:
                raise GuestError(f"add {source}: no room for it; expected at most {self._limit >> 20} MiB in all")
            self.put(File(target, _data(source, mode), mode))
        else:
            raise GuestError(f"add {source}: expected a file or a folder")


def _data(source: Path, mode: int) -> bytes:
    data = source.read_bytes()
    machine = int.from_bytes(data[18:20], "little")
    if mode & 0o111 and data.startswith(ELF_MAGIC) and machine != ENUM_E_MACHINE["EM_AARCH64"]:
        name = next((name for name, number in ENUM_E_MACHINE.items() if number == machine), "")
        what = describe_e_machine(name) if name else f"machine {machine}"
        raise GuestError(f"add {source}: is a program for {what}, expected one for AArch64")
    return data
