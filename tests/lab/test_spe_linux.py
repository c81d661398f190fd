"""Linux's own SPE driver, and perf, in a guest that has SPE. Skipped where nothing was fetched."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pmuvisor.cli import main
from pmuvisor.lab import guests

PERF = shutil.which("perf")
KERNEL = guests.cached_linux()
needs_linux = pytest.mark.skipif(
    KERNEL is None or KERNEL.spe_module is None or guests.cached_root() is None,
    reason="no kernel with its SPE driver, or no perf for it: pmuvisor guest fetch linux, pmuvisor guest fetch perf",
)

COMMAND = """
cat /sys/bus/event_source/devices/arm_spe_0/caps/min_interval
head -c 150000 /usr/bin/perf >x
perf record -q -e arm_spe/ts_enable=1,jitter=1/ -c 8192 -m,16 -o p.data gzip -c x >y
echo samples $(perf script -i p.data --itrace=i1i -F comm,ip | wc -l)
echo gzip $(perf script -i p.data --itrace=i1i -F comm,ip | grep -c gzip)
echo interrupts $(grep arm_spe /proc/interrupts)
"""


@needs_linux
def test_perf_records_with_linux_own_driver_in_a_guest_and_the_perf_outside_finds_the_same_records(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "perf.data"
    words = ["run", "linux", "--spe-out", str(out), "--timeout", "300", "--", "sh", "-c", COMMAND]
    assert main(words) == 0
    said = capfd.readouterr().out
    assert said.splitlines()[0] == "1024"  # PMSIDR_EL1.Interval, as the driver reads it
    samples = int(re.search(r"^samples (\d+)$", said, re.MULTILINE)[1])  # type: ignore[index]
    assert samples > 2000
    # The kernel's own part of starting and ending it is sampled under the name of who did it: perf-exec, or gzip.
    assert int(re.search(r"^gzip (\d+)$", said, re.MULTILINE)[1]) > samples * 0.95  # type: ignore[index]
    # 16 pages hold 1024 records, and perf asks to be woken at half of them: so often, and not at each record.
    interrupts = int(re.search(r"^interrupts 16: (\d+) GICv3 21 Level arm_spe_pmu$", said, re.MULTILINE)[1])  # type: ignore[index]
    assert samples // 1024 - 1 <= interrupts <= samples // 256
    if PERF is None:
        pytest.skip("no perf here to read the file with")
    dump = subprocess.run([PERF, "report", "-D", "-i", out], capture_output=True, text=True, check=True).stdout
    assert dump.count(" PC 0x") == samples
    assert "Bad" not in dump


@needs_linux
def test_linux_counts_and_profiles_at_once_on_two_cpus(capfd: pytest.CaptureFixture[str]) -> None:
    command = (
        "perf record -q -a -e arm_spe//u -c 16384 -o p.data -- "
        "sh -c 'perf stat -x, -e instructions:u gzip -c /usr/bin/busybox 2>a >/dev/null & "
        "perf stat -x, -e instructions:u gzip -c /usr/bin/busybox 2>b >/dev/null & wait'; cut -d, -f1 a b; "
        "echo samples $(perf script -i p.data --itrace=i1i -F comm,cpu | grep -c gzip)"
    )
    assert main(["run", "linux", "--spe", "--smp", "2", "--timeout", "300", "--", "sh", "-c", command]) == 0
    said = capfd.readouterr().out.split()
    first, second, samples = int(said[0]), int(said[1]), int(said[3])
    assert first == second  # profiling changes nothing of what is counted
    # One operation of 16,385 at EL0 is sampled, and gzip's operations are its instructions.
    assert abs(samples - (first + second) / 16_385) < 20
