"""The boot of Debian's arm64 kernel to our init's power-off, and where its time goes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import qemu
from benchmarks.figures import Figure, Options, Section
from pmuvisor.lab import guests
from pmuvisor.lab.run import LINUX_BOOTARGS

MEMORY_MIB = 256
QUICK = "pmuvisor.quick"
POWERED_OFF = "init: power off"
NO_KERNEL = "no kernel here: pmuvisor guest fetch linux"
HOW = f"""`pmuvisor run linux --append {QUICK}` (warm) and QEMU on the same kernel, initrd, command line and memory, 1
CPU: wall time of the whole process. Where it goes: one more boot, whose callbacks are timed (benchmarks/breakdown.py);
each line is the time spent there and nowhere deeper, and the lines add up to the time of that process."""


class BootFailure(RuntimeError):
    """The kernel did not come to its power-off."""


def measure(options: Options) -> Section:
    """Time the boot on both, then take one boot apart."""
    section = Section("linux", "Linux: boot, measure, power off", HOW)
    kernel = guests.cached_linux()
    if kernel is None:
        section.figures.append(Figure("boot to power-off", "s", (), note=NO_KERNEL))
        return section
    _boot()  # compiles the engine's hooks where nothing did yet, and warms the page cache
    wall, mips, peer = [], [], []
    for _ in range(options.rounds):
        seconds, result = _boot()
        wall.append(seconds)
        mips.append(result["instructions"] / result["wall_seconds"] / 1e6)
        if qemu.present():
            peer.append(_boot_on_qemu(kernel.image))
    note = "" if peer else qemu.ABSENT
    section.figures.append(Figure("boot to power-off, whole process", "s", wall, peer, note, digits=2))
    section.figures.append(Figure("speed of the guest", "MIPS", mips, digits=0))
    section.figures.extend(_breakdown())
    return section


def _boot() -> tuple[float, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "pmuvisor.cli", "run", "linux", "--append", QUICK]
        command += ["--memory", f"{MEMORY_MIB}M", "--json", str(out)]
        begin = time.perf_counter()
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        seconds = time.perf_counter() - begin
        result: dict[str, Any] = json.loads(out.read_text())
    if POWERED_OFF not in result["console"]:
        raise BootFailure(f"pmuvisor: {result['status']}: {result['reason']}")
    return seconds, result


def _boot_on_qemu(kernel: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder) / "initrd"
        initrd.write_bytes(guests.linux_initrd())
        words = f"{LINUX_BOOTARGS} {QUICK}"
        seconds, console = qemu.run(kernel, MEMORY_MIB, "-initrd", str(initrd), "-append", words)
    if POWERED_OFF not in console:
        raise BootFailure(f"QEMU: {console[-200:]!r}")
    return seconds


def _breakdown() -> list[Figure]:
    command = [sys.executable, "-m", "benchmarks.breakdown", "--memory", str(MEMORY_MIB), "--append", QUICK]
    begin = time.perf_counter()
    told = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True)
    wall = time.perf_counter() - begin
    spans: dict[str, dict[str, float]] = json.loads(told.stdout)
    figures = [Figure(f"  {name}", "s", [span["seconds"]], note=_often(span), digits=2) for name, span in spans.items()]
    rest = wall - sum(span["seconds"] for span in spans.values())
    return [
        Figure("where it goes", "s", [wall], digits=2),
        *figures,
        Figure("  interpreter: start and end", "s", [rest], digits=2),
    ]


def _often(span: dict[str, float]) -> str:
    count = int(span["count"])
    if count < 2:
        return ""
    return f"{count:,} x {span['seconds'] / count * 1e6:.1f} us"
