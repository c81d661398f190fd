"""Commands in Debian's arm64 kernel with Debian's perf: what is counted and sampled, and how it comes out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from a64 import NE, SVC, Program, elf, movz, subs
from pmuvisor.arch.cores import core
from pmuvisor.board.machine import Status
from pmuvisor.lab.guests import Added, KernelFiles, cached_linux, cached_root
from pmuvisor.lab.run import COMMAND_MEMORY, Request, Result, run

pytestmark = pytest.mark.skipif(
    cached_linux() is None or cached_root() is None,
    reason="no Linux with perf in the cache: `pmuvisor guest fetch linux` and `pmuvisor guest fetch perf` get it",
)

LOOPS = 1_000_000
LOOP_INSTRUCTIONS = 2 * LOOPS + 5
"""Of the program below: two to make the count, two in each turn, two and a system call to end."""
SCRIPT = r"""
perf stat -x, -e instructions:u,instructions:k,cycles:u,br_retired:u looper
echo "looper $?"
perf record -q -e instructions:u -c 100000 looper
perf report --stdio --sort comm,dso
(while :; do sleep 9; done) & nosuch; echo "nosuch $?"
/etc; echo "folder $?"
tty -s || pwd; printf '[%s]' "$@"
exit 7
"""


def looper() -> bytes:
    """A program of Linux: a loop, then exit(42)."""
    p = Program(0x40_0000).mov(1, LOOPS).label("again")(subs(1, 1, 1)).b_if(NE, "again")
    return elf(p(movz(0, 42), movz(8, 93), SVC).code(), address=0x40_0000)


def test_perf_counts_samples_and_reports(tmp_path: Path) -> None:
    (tmp_path / "looper").write_bytes(looper())
    (tmp_path / "looper").chmod(0o755)
    words = ("two words", "it's\n", "")
    result = run(
        Request(
            "linux",
            core("max"),
            memory=COMMAND_MEMORY,
            timeout=120,
            command=("sh", "-c", SCRIPT, "sh", *words),
            added=(Added(tmp_path / "looper", "root/looper"),),
        )
    )
    assert (result.status, result.exit_status) == (Status.POWEROFF, 7)
    output = result.output
    # The command's part of the run: 20 samples and perf's own work, and neither the boot nor the power-off.
    part = result.of_command
    assert part is not None
    assert 0 < part.instructions < result.instructions - 100_000_000, "the boot"
    assert part.ledger["overflows"] == result.ledger["overflows"] == 20
    assert (part.ledger["exits.hvc"], part.ledger["loads"] < result.ledger["loads"]) == (0, True)
    assert part.virtual_seconds == pytest.approx(
        part.instructions / 1e9 + part.overhead_seconds + part.idle_seconds, abs=1e-6
    )
    counts = {line.split(",")[2]: line.split(",")[0] for line in output.splitlines() if line.count(",") > 4}
    assert counts["instructions:u"] == counts["cycles:u"] == str(LOOP_INSTRUCTIONS)
    assert counts["br_retired:u"] == str(LOOPS)
    assert int(counts["instructions:k"]) > 0
    assert "looper 42\n" in output
    assert re.search(r"# Samples: 20  of event 'instructions:u'\n# Event count \(approx\.\): 2000000\n", output)
    assert re.search(r"\n +100\.00%  looper +looper *\n", output)
    assert "nosuch 127\n" in output
    assert "folder 126\n" in output
    assert output.endswith("/root\n[two words][it's\n][]")
    assert (result.ledger["overflows"], result.ledger["interrupts_injected"]) == (20, 20)


def test_a_commands_input_output_and_end_are_the_command_lines() -> None:
    words = ["run", "linux", "--smp", "2", "--timeout", "120", "--", "sh", "-c", "nproc; cat; cat; kill -SEGV $$"]
    typed = b"a line\nand \x03 the rest"
    done = subprocess.run([sys.executable, "-m", "pmuvisor.cli", *words], input=typed, capture_output=True, timeout=180)
    assert done.stdout == b"2\n" + typed
    assert done.returncode == 128 + 11
    assert done.stderr.startswith(b"linux: poweroff: the guest powered off\nthe command's exit status: 139\n")


KERNEL = cached_linux()
needs_module = pytest.mark.skipif(
    KERNEL is None or KERNEL.spe_module is None, reason="the kernel came without a module"
)


def spe_run(*command: str) -> Result:
    return run(Request("linux", core("max"), memory=COMMAND_MEMORY, timeout=120, command=command, spe=True))


@needs_module
def test_the_driver_of_a_guest_with_spe_is_loaded_before_its_command() -> None:
    result = spe_run("cat", "/proc/modules", "/proc/device-tree/spe-pmu/compatible")
    assert (result.status, result.exit_status) == (Status.POWEROFF, 0)
    assert re.match(r"arm_spe_pmu \d+ .*\narm,statistical-profiling-extension-v1\0$", result.output)
    assert "insmod" not in result.console


def test_a_driver_that_the_kernel_refuses_is_named_on_the_console_and_the_command_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(KernelFiles, "modules", lambda _: (("arm_spe_pmu.ko", b"garbage"),))
    result = spe_run("cat", "/proc/modules")
    assert (result.status, result.exit_status, result.output) == (Status.POWEROFF, 0, "")
    assert "insmod: can't insert '/run/modules/arm_spe_pmu.ko': invalid module format" in result.console
