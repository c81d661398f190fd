"""The guest `spe`, which knows by hand each record that it has to find, on the board's profiling unit."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from pmuvisor.arch.cores import core
from pmuvisor.cli import main
from pmuvisor.lab import report
from pmuvisor.lab.run import Request, RequestError, Result, run

PERF = shutil.which("perf")
RECORD = 64
IN_LOOP = 3_512
"""Records of its long profile: 3,600,000 operations of the loop, one sampled of 1,025."""


@cache
def profiled(design: str = "partitioned", pinned: bool = True, of: str = "max") -> tuple[Result, bytes]:
    """Run the guest; return the result and the records, as they were written."""
    kept: list[bytes] = []
    request = Request(guest="spe", core=core(of), design=design, spe=True, spe_pinned=pinned, timeout=60)
    result = run(request, on_record=lambda vcpu, data: kept.append(data))
    return result, b"".join(kept)


def lines(result: Result) -> list[str]:
    return result.console.splitlines()


@pytest.mark.parametrize("design", ["partitioned", "emulated", "lazy", "fixed-counters-only"])
def test_the_guest_finds_every_record_that_it_knows_of_whatever_the_design_of_its_pmu(design: str) -> None:
    result, _ = profiled(design)
    assert lines(result)[-1] == "spe: 44 of 44 checks passed"


def test_on_a_core_of_the_first_spe_there_is_no_filter_by_inverse_event_and_all_else_is_found() -> None:
    result, _ = profiled(of="neoverse-n1")
    assert lines(result)[-1] == "spe: 40 of 40 checks passed"
    assert "FnE" not in lines(result)[2]


def test_a_buffer_of_8_kib_is_full_after_128_records_and_each_time_the_guest_gets_one_interrupt() -> None:
    result, _ = profiled()
    full = [line for line in lines(result) if "interrupts" in line and "exact" in line]
    assert full == ["spe:   interrupts 10 expected 10 exact"]
    # Ten of them, and one each for the two buffers that cannot be written.
    assert result.ledger["spe_injected"] == 12


def test_what_is_kept_of_a_run_is_what_the_guest_found() -> None:
    result, data = profiled()
    found = [int(n.replace(",", "")) for n in re.findall(r"records ([\d,]+) expected [\d,]+ exact", result.console)]
    assert IN_LOOP in found
    assert len(data) % RECORD == 0
    assert result.ledger["spe_stage2"] == 0


def test_a_buffer_that_is_not_pinned_has_a_blackout_at_each_of_its_pages() -> None:
    pinned, data = profiled()
    result, fewer = profiled(pinned=False)
    # 3,512 records are 54.9 pages: one fault for each page that is written for the first time, and the smaller
    # buffers' pages besides.
    assert result.ledger["spe_stage2"] > 50
    lost = (len(data) - len(fewer)) // RECORD
    # What was in the unit when it faulted is lost: the record that faulted, and at most those that waited behind it.
    assert result.ledger["spe_stage2"] <= lost <= 5 * result.ledger["spe_stage2"]
    assert any("FAIL" in line for line in lines(result))
    assert not any("FAIL" in line for line in lines(pinned))


def test_a_guest_without_spe_is_told_so_and_its_registers_are_undefined() -> None:
    result = run(Request(guest="spe", core=core("max"), timeout=60))
    assert lines(result)[-1] == "spe: this CPU has no SPE"
    assert result.ledger["exits.spe"] == 0


def test_a_core_without_spe_cannot_give_it_to_a_guest() -> None:
    with pytest.raises(RequestError, match=r"^spe: core cortex-a76 has no SPE: expected one of max, cortex-a78, "):
        run(Request(guest="spe", core=core("cortex-a76"), spe=True))


# ---- --spe-out ----------------------------------------------------------------------------------------------


def test_the_real_perf_reads_every_record_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if PERF is None:
        pytest.skip("no perf here to read the file with")
    out = tmp_path / "perf.data"
    assert main(["run", "spe", "--spe-out", str(out)]) == 0
    told = re.search(r"([\d,]+) profiling records", capsys.readouterr().out)
    assert told is not None
    records = int(told[1].replace(",", ""))
    dump = subprocess.run([PERF, "report", "-D", "-i", out], capture_output=True, text=True, check=True)
    assert records == dump.stdout.count(" PC 0x") > IN_LOOP
    assert "Bad" not in dump.stdout
    script = [PERF, "script", "--itrace=i1i", "-F", "comm,ip", "-i", str(out)]
    samples = subprocess.run(script, capture_output=True, text=True, check=True).stdout.split("\n")
    assert sum(bool(line.strip()) for line in samples) == records


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        assert main(["run", "spe", "--spe-out", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_guest_that_profiles_nothing_leaves_a_file_without_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "perf.data"
    assert main(["run", "demo", "--spe-out", str(out)]) == 0
    assert f"{out}: no records: the guest profiled nothing" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"PERFILE2")


def test_a_place_that_cannot_be_written_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "spe", "--spe-out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"pmuvisor: spe-out: {tmp_path}: is a directory, expected a file to write to\n"


def test_the_report_says_what_a_profile_cost_and_of_other_guests_nothing() -> None:
    def words(guest: str, spe: bool) -> list[str]:
        file = io.StringIO()
        report.show(run(Request(guest, core("max"), spe=spe)), file)
        assert max(map(len, file.getvalue().splitlines())) <= 80
        return [line.strip().split("  ")[0] for line in file.getvalue().splitlines() if "SPE" in line]

    accesses = ["all PMU and SPE registers", "trapped SPE accesses"]
    rest = ["SPE buffer drained at exits", "SPE interrupts injected", "SPE faults at stage 2, resolved"]
    assert words("spe", spe=True) == accesses + rest
    assert words("demo", spe=True) == []
