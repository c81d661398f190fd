"""The peer: QEMU's virt board, counting instructions as pmuvisor does (-icount), with all time virtual."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

PROGRAM = "qemu-system-aarch64"
MACHINE = ("-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-icount", "shift=0,sleep=off")
ABSENT = f"no {PROGRAM} here"


def present() -> bool:
    """Whether there is a QEMU to compare with."""
    return shutil.which(PROGRAM) is not None


def version() -> str:
    """QEMU's own word for its version, or that there is none."""
    if not present():
        return ABSENT
    said = subprocess.run([PROGRAM, "--version"], check=True, capture_output=True, text=True).stdout
    return said.splitlines()[0].replace("emulator version ", "")


def run(kernel: Path, memory_mib: int, *options: str) -> tuple[float, str]:
    """Run a guest to its power-off: the whole process's wall time, and the console."""
    command = [PROGRAM, *MACHINE, "-m", str(memory_mib), "-nographic", "-monitor", "none", "-serial", "stdio"]
    command += ["-nic", "none", "-no-reboot", "-kernel", str(kernel), *options]
    begin = time.perf_counter()
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=600)
    return time.perf_counter() - begin, result.stdout.decode("utf-8", "replace")
