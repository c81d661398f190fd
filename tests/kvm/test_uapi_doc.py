"""docs/uapi.md and the tests agree: each row names a test that expects its errno, each test of a refusal has a row."""

from __future__ import annotations

import ast
import errno
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "uapi.md"
ROW = re.compile(r"^\| (?P<when>.+) \| (?P<errno>\w+) \| `(?P<test>\w+)` \|$", re.MULTILINE)
ROWS = [(row["when"], row["errno"], row["test"]) for row in ROW.finditer(PAGE.read_text())]


def refusals() -> dict[str, set[str]]:
    """Return the errnos that each test refuses with, by the test's name."""
    found = {}
    for path in sorted(HERE.glob("test_uapi_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                found[node.name] = {name for name in names if name in errno.errorcode.values()}
    return found


@pytest.mark.parametrize(("when", "number", "test"), ROWS)
def test_a_row_names_a_test_that_expects_its_errno(when: str, number: str, test: str) -> None:
    tests = refusals()
    assert test in tests
    assert number in (*tests[test], "0", "ignored")


def test_every_test_of_a_refusal_has_a_row() -> None:
    # EINTR alone is how a test gets control back from a guest.
    tests = {name for name, numbers in refusals().items() if numbers - {"EINTR"}}
    assert tests - {test for _, _, test in ROWS} == set()


def test_the_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    exec("\n".join(blocks), {})
