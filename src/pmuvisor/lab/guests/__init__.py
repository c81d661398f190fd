"""Guests to run: those that come with pmuvisor, and Linux, whose kernel and programs come from Debian's archive.

What is fetched is kept below the user's cache folder. `apt` asks the archive, `linux` gets a kernel, `root` the
programs of a Linux guest's root file system, and `command` puts a user's command and files on top of those.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pmuvisor.lab.guests.command import Added, Terminal, added, command_initrd, read_control
from pmuvisor.lab.guests.errors import GuestError
from pmuvisor.lab.guests.linux import KernelFiles, cached_linux, fetch_linux, linux_folder, linux_initrd
from pmuvisor.lab.guests.root import RootFiles, cached_root, fetch_root

__all__ = [
    "BUILTIN",
    "Added",
    "GuestError",
    "KernelFiles",
    "RootFiles",
    "Terminal",
    "added",
    "builtin_guest",
    "cached_linux",
    "cached_root",
    "command_initrd",
    "fetch_linux",
    "fetch_root",
    "linux_folder",
    "linux_initrd",
    "read_control",
]


BUILTIN = ("demo", "elapsed", "spe")
"""The bare-metal guests that come with pmuvisor, by name."""


def builtin_guest(name: str) -> Path:
    """The ELF file of a bare-metal guest that comes with pmuvisor. Raises GuestError for another name."""
    if name not in BUILTIN:
        raise GuestError(f"no guest {name!r} comes with pmuvisor; there are: {', '.join(BUILTIN)}")
    return Path(str(files("pmuvisor.guests"))) / name / f"{name}.elf"
