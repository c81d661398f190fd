"""Which shared libraries a program needs: what the dynamic loader would open, found without running it.

For: AArch64 programs and libraries of a distribution, by DT_NEEDED and PT_INTERP of the ELF specification. Not for:
RPATH, libraries that a program opens by name while it runs, symbol versions.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from pmuvisor.lab.guests.errors import GuestError

ELF_MAGIC = b"\x7fELF"
_UNREADABLE = (
    ELFError, ConstructError, AssertionError, AttributeError, LookupError, OverflowError, TypeError, ValueError
)  # fmt: skip
"""What the ELF library raises of a file that is cut short or has nonsense in it."""
_MAX_NEEDED = 256
"""Libraries that one file may name: far more than any does."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What one ELF file asks for. `interpreter` is the path of its loader, empty for a library or a static program."""

    interpreter: str
    libraries: tuple[str, ...]


def needs(name: str, data: bytes) -> Needs:
    """Return what an AArch64 ELF file asks for. Raises GuestError, which names it, for a file that is none."""
    try:
        elf = ELFFile(io.BytesIO(data))
        if elf["e_machine"] != "EM_AARCH64" or elf.elfclass != 64:
            raise GuestError(f"{name} is an ELF file for {elf.get_machine_arch()}, expected one for AArch64")
        interpreter, libraries = "", list[str]()
        for segment in elf.iter_segments():
            if isinstance(segment, InterpSegment):
                interpreter = segment.get_interp_name()
            elif isinstance(segment, DynamicSegment):
                for tag in segment.iter_tags("DT_NEEDED"):
                    libraries.append(tag.needed)
                    if len(libraries) > _MAX_NEEDED:
                        raise GuestError(f"{name} names more than {_MAX_NEEDED} libraries")
    except _UNREADABLE as error:
        raise GuestError(f"{name} is no ELF file that can be read: {error or type(error).__name__}") from None
    return Needs(interpreter, tuple(libraries))


def closure(programs: Mapping[str, bytes], libraries: Mapping[str, bytes], more: Iterable[str] = ()) -> list[str]:
    """Return the names of all libraries that programs need, directly or by others, in alphabetical order.

    `libraries` are those to choose from, by name; `more` are wanted if they are there, whoever needs them. Loaders are
    among what is returned. Raises GuestError for a library that is not there, and what `needs` raises.
    """
    wanted = [(name, "") for name in more if name in libraries]
    for name, data in programs.items():
        asked = needs(name, data)
        loader = [asked.interpreter.rpartition("/")[2]] if asked.interpreter else []
        wanted += [(library, name) for library in [*loader, *asked.libraries]]
    found: set[str] = set()
    while wanted:
        library, by = wanted.pop()
        if library in found:
            continue
        if library not in libraries:
            raise GuestError(f"{by} needs {library[:80]!r}, which no package that it depends on holds")
        found.add(library)
        wanted += [(name, library) for name in needs(library, libraries[library]).libraries]
    return sorted(found)
