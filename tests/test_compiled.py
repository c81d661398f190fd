"""Compiled semantics: what its parts raise, keep and replace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pmuvisor.compiled import compiled

HERE = (f"{__name__}.",)


def leaf(numbers: list[int], i: int) -> int:
    if i == 3:
        raise AssertionError("three")
    return numbers[i] + 1


def other_leaf(numbers: list[int], i: int) -> int:
    return leaf(numbers, i) * 100


def middle(numbers: list[int], i: int) -> int:
    return 2 * leaf(numbers, i)


def top(numbers: list[int], n: int) -> int:
    total = 0
    for i in range(n):
        total += middle(numbers, i)
    return total


NUMBERS = np.arange(5)


def test_a_part_raises_through_the_whole() -> None:
    whole = compiled(top, also=HERE)
    assert whole(NUMBERS, 3) == 12
    with pytest.raises(AssertionError, match="three"):
        whole(NUMBERS, 4)
    assert whole(NUMBERS, 3) == 12


def test_an_index_out_of_range_is_found_in_a_part_if_asked_for() -> None:
    with pytest.raises(IndexError):
        compiled(leaf, also=HERE, boundscheck=True)(NUMBERS, 5)
    with pytest.raises(IndexError):
        compiled(middle, also=HERE, boundscheck=True)(NUMBERS, 5)


def test_what_replaces_a_function_can_call_it() -> None:
    assert compiled(top, also=HERE, replaced={leaf: other_leaf})(NUMBERS, 3) == 1200


def test_a_part_is_the_same_in_two_wholes() -> None:
    assert compiled(middle, also=HERE)(NUMBERS, 1) == 4
    assert compiled(top, also=HERE)(NUMBERS, 2) == 6


def test_cache_with_something_replaced_needs_a_name() -> None:
    with pytest.raises(ValueError, match="expected a name"):
        compiled(top, also=HERE, cache=True, replaced={leaf: other_leaf})


KEEPING = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from pmuvisor import numba_cache
from pmuvisor.compiled import compiled
import test_compiled as t
assert numba_cache.use()
replaced = {t.leaf: t.other_leaf} if sys.argv[2] == "other" else None
whole = compiled(t.top, also=("test_compiled.",), cache=sys.argv[2], replaced=replaced)
print(whole(np.arange(5), 3), sum(whole.stats.cache_hits.values()))
try:
    whole(np.arange(5), 4)
except AssertionError as error:
    print(error)
"""


def test_what_is_kept_under_one_name_is_not_taken_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = []
    for name in ("plain", "other", "plain", "other"):
        command = [sys.executable, "-c", KEEPING, str(Path(__file__).parent), name]
        said.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert said == [["12", "0", "three"], ["1200", "0", "three"], ["12", "1", "three"], ["1200", "1", "three"]]
