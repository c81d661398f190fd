"""Where numba keeps what it compiled, so that a warm start takes milliseconds and never runs old code.

numba's own `cache=True` looks at one source file's time stamp: a changed callee or constant in another module goes
unnoticed. Here the folder's name is a hash of everything that the machine code depends on, so a cache is either exactly
right or not found. This module is not for caching anything else.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

PREFIX = "numba-"
KEEP = 4
"""How many folders of other versions survive: switching between two branches stays warm."""


def cache_root() -> Path:
    """The user's cache directory for this program (not created)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG rules: a relative one is to be ignored
        base = Path.home() / ".cache"
    return base / "pmuvisor"


def fingerprint() -> str:
    """A hash of all that machine code compiled from this package depends on, apart from its path."""
    import llvmlite.binding as llvm

    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent
    for source in sorted(root.rglob("*.py")):
        digest.update(str(source.relative_to(root)).encode())
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    parts = (sys.version, platform.machine(), version("numba"), version("llvmlite"), version("numpy"),
             llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), str(root))  # fmt: skip
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:24]


@lru_cache(maxsize=1)
def use() -> bool:
    """Point numba at this version's folder; call it before anything is compiled.

    Returns False where the folder cannot be written: the caller then compiles without a cache.
    """
    from numba import config

    try:
        folder = cache_root() / (PREFIX + fingerprint())
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
        os.utime(folder)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home directory
        return False
    config.CACHE_DIR = str(folder)
    prune(folder)
    return True


def prune(current: Path) -> None:
    """Remove all but the most recently used `KEEP` folders beside `current`."""
    with contextlib.suppress(OSError):
        others = [p for p in current.parent.glob(PREFIX + "*") if p.is_dir() and p != current]
        others.sort(key=lambda p: p.stat().st_mtime, reverse=True)
        for old in others[KEEP:]:
            shutil.rmtree(old, ignore_errors=True)
