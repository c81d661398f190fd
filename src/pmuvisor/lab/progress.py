"""One line on a terminal that says how far something is; nothing where stderr is not a terminal."""

from __future__ import annotations

import sys
import time

from pmuvisor.lab.tables import WIDTH

SECONDS = 0.2
"""How long a line stands at least."""


def say(what: str) -> None:
    """Say it in the place of what was said before; with "" nothing is left."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"\r\x1b[K{what[: WIDTH - 1]}", end="", file=sys.stderr, flush=True)


class Clock:
    """Tells when to say something again."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def is_due(self) -> bool:
        """Tell whether the line has stood long enough, and begin anew if it has."""
        if time.monotonic() - self._said_at <= SECONDS:
            return False
        self._said_at = time.monotonic()
        return True
