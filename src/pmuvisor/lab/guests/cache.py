"""Fetched files in the user's cache folder: each is there whole, or not at all.

Beside a file is a note in JSON that names it, its size and what it is. The note is written last, in one step: whenever
a fetch is interrupted, the cache holds a whole file with its note, the earlier one, or none.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
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
class Slot:
    """A place for one file and its note."""

    folder: Path
    note: str
    """The name of the note's file."""

    def cached(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the file and what is noted of it, if it is there in full."""
        try:
            note = json.loads((self.folder / self.note).read_text())
            path = self.folder / note["image"]
            complete = path.stat().st_size == note["size"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (path, note) if complete else None

    @contextmanager
    def fetching(self) -> Iterator[Path]:
        """Give a folder to work in, which goes when the fetch is over. Raises GuestError for what the disk refuses."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="fetch-", dir=self.folder) as work:
                yield Path(work)
        except OSError as error:
            raise GuestError(f"{self.folder}: {error.strerror or error}") from error

    def commit(self, fetched: Path, facts: dict[str, Any]) -> Path:
        """Put a file from the working folder into the cache with its note, in place of the earlier one; return it."""
        before = self.cached()
        path = self.folder / fetched.name
        draft = fetched.with_name(self.note)
        note = facts | {"image": path.name, "size": fetched.stat().st_size}
        draft.write_text(json.dumps(note, indent=2) + "\n")
        fetched.replace(path)
        draft.replace(self.folder / self.note)
        if before and before[0] != path:
            before[0].unlink(missing_ok=True)
        return path
