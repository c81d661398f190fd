"""The folder of compiled code: one for each version of everything, pruned, and optional."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmuvisor import numba_cache


def test_the_fingerprint_is_stable_and_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "numba_cache.py").write_text("")
    module = tmp_path / "sub" / "module.py"
    module.write_text("x = 1\n")
    monkeypatch.setattr(numba_cache, "__file__", str(tmp_path / "numba_cache.py"))
    first = numba_cache.fingerprint()
    assert numba_cache.fingerprint() == first
    module.write_text("x = 2\n")
    assert numba_cache.fingerprint() != first


def test_old_folders_are_pruned_and_others_left(tmp_path: Path) -> None:
    folders = [tmp_path / f"{numba_cache.PREFIX}{n}" for n in range(8)]
    for n, folder in enumerate(folders):
        folder.mkdir()
        (folder / "code.nbc").write_bytes(b"x")
        os.utime(folder, (1000 + n, 1000 + n))
    (tmp_path / "downloads").mkdir()
    numba_cache.prune(folders[0])
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"downloads", folders[0].name, *(f.name for f in folders[-numba_cache.KEEP :])}


def run(cache: Path, code: str) -> str:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return result.stdout


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run(blocked, "from pmuvisor import numba_cache; print(numba_cache.use())") == "False\n"


def test_the_cache_lies_in_the_users_cache_directory(tmp_path: Path) -> None:
    assert run(tmp_path, "from pmuvisor import numba_cache; print(numba_cache.use())") == "True\n"
    (folder,) = (tmp_path / "pmuvisor").iterdir()
    assert folder.name.startswith("numba-")
