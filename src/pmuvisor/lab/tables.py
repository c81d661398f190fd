"""Tables for people: plain text of at most 80 columns, the same on a terminal and in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

WIDTH = 80
Row = tuple[str, ...]


def table(head: Row, rows: Sequence[Row]) -> Table:
    """Return a table whose first column is to the left, the others to the right, with a rule below the head."""
    made = empty()
    made.add_column(head[0])
    for name in head[1:]:
        made.add_column(name, justify="right", min_width=9)
    for row in rows:
        made.add_row(*row)
    return made


def empty() -> Table:
    """Return a table in the same manner without columns."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="", padding=(0, 2, 0, 0))


def show(what: RenderableType, file: TextIO) -> None:
    """Print a table or a text, without blanks at the ends of lines."""
    console = Console(file=file, width=WIDTH, color_system=None, markup=False, highlight=False)
    with console.capture() as text:
        console.print(what)
    print(*(line.rstrip() for line in text.get().splitlines()), sep="\n", file=file)
