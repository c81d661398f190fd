"""Fetched files in the user's cache folder: each is there whole, or not at all.

Beside a file is a note in JSON that names it, its size and what it is, and the files that belong to it with their
sizes. The note is written last, in one step: whenever a fetch is interrupted, the cache holds a whole file with its
note and all that belongs to it, the earlier one, or none.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmuvisor.lab.guests.errors import GuestError
from pmuvisor.numba_cache import cache_root


def guest_folder(name: str) -> Path:
    """Where what is fetched for a guest is kept."""
    return cache_root() / "guests" / name


@dataclass(frozen=True, slots=True)
class Cached:
    """What a slot holds in full."""

    image: Path
    facts: dict[str, Any]
    """The note, with what the one who fetched it noted of it."""
    beside: dict[str, Path]
    """The files that belong to it, by what they are to it."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one file, those that belong to it, and its note."""

    folder: Path
    note: str
    """The name of the note's file."""

    def cached(self) -> Cached | None:
        """Return the file, what is noted of it and what belongs to it, if all of it is there in full."""
        try:
            note = json.loads((self.folder / self.note).read_text())
            image = self.folder / note["image"]
            sizes, beside = {image: note["size"]}, {}
            for role, (name, size) in note.get("beside", {}).items():
                beside[role] = self.folder / name
                sizes[beside[role]] = size
            complete = all(path.stat().st_size == size for path, size in sizes.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return Cached(image, note, beside) if complete else None

    @contextmanager
    def fetching(self) -> Iterator[Path]:
        """Give a folder to work in, which goes when the fetch is over. Raises GuestError for what the disk refuses."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="fetch-", dir=self.folder) as work:
                yield Path(work)
        except OSError as error:
            raise GuestError(f"{self.folder}: {error.strerror or error}") from error

    def commit(self, fetched: Path, facts: dict[str, Any], beside: Mapping[str, Path] | None = None) -> Cached:
        """Put files from the working folder into the cache with their note, in place of the earlier ones; return them.

        `beside` are the files that belong to the one `fetched`, by what they are to it.
        """
        before = self.cached()
        others = dict(beside or {})
        note = facts | {"image": fetched.name, "size": fetched.stat().st_size}
        if others:
            note["beside"] = {role: [path.name, path.stat().st_size] for role, path in others.items()}
        draft = fetched.with_name(self.note)
        draft.write_text(json.dumps(note, indent=2) + "\n")
        places = {path: self.folder / path.name for path in (fetched, *others.values())}
        for path, place in places.items():
            path.replace(place)
        draft.replace(self.folder / self.note)
        for old in (before.image, *before.beside.values()) if before else ():
            if old not in places.values():
                old.unlink(missing_ok=True)
        return Cached(places[fetched], note, {role: places[path] for role, path in others.items()})
