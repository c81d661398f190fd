"""perf.data files with SPE records: what the real perf reads in them, packet by packet and sample by sample."""

from __future__ import annotations

import io
import re
import shutil
import struct
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pmuvisor.lab.perfdata import KERNEL, AuxTrace, Mapping, Task, executed_at, write

GCC = "aarch64-linux-gnu-gcc"
EL0, EL1, EL2 = 0, 1, 2
OTHER, LOAD, STORE, BRANCH = (0x48, 0), (0x49, 0), (0x49, 1), (0x4A, 1)
RETIRED, MISPREDICTED = 0x02, 0x82
LOW, HIGH = 0x4000_0000, 0xFFFF_8000_0801_0000
TICKS = 16
"""Nanoseconds of a tick at 62.5 MHz."""

OF_ALL_TRACES = (
    "Only instruction-based sampling period is currently supported by Arm SPE.",  # without --itrace=i1i
    "Old SPE metadata, re-record to improve decode accuracy",  # newer ones than 6.1
)
"""What perf says of traces in general, and not of ours."""


@cache
def no_perf() -> str:
    """Why perf cannot be asked, if it cannot."""
    if not shutil.which("perf"):
        return "no perf here: Debian's package linux-perf has it"
    options = subprocess.run(["perf", "version", "--build-options"], capture_output=True, text=True).stdout
    if not re.search(r"\[ on *\] *# HAVE_AUXTRACE_SUPPORT", options):
        return "this perf is built without AUX area traces"
    return ""


needs_perf = pytest.mark.skipif(bool(no_perf()), reason=no_perf())


def perf(path: Path, *words: str) -> list[str]:
    """The lines that perf prints of a file; it has nothing to complain of."""
    run = subprocess.run(["perf", *words, "-i", path], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    complaints = [line for line in run.stderr.splitlines() if line and line not in OF_ALL_TRACES]
    assert (run.returncode, complaints) == (0, [])
    return run.stdout.splitlines()


def samples(path: Path, fields: str, *words: str) -> list[list[str]]:
    return [line.split() for line in perf(path, "script", "--itrace=i1i", "-F", fields, *words)]


def packets(path: Path) -> list[tuple[bytes, str]]:
    """What `perf report -D` shows of AUX area traces: each packet's bytes and what it is."""
    shown = (re.match(r"\.  [0-9a-f]{8}:  ((?:[0-9a-f]{2} )+) *(.*)$", line) for line in perf(path, "report", "-D"))
    return [(bytes.fromhex(match[1]), match[2]) for match in shown if match]


def written(path: Path, *traces: AuxTrace, **facts: Any) -> Path:
    with path.open("wb") as file:
        write(file, traces, **facts)
    return path


def in_memory(*traces: AuxTrace, **facts: Any) -> bytes:
    file = io.BytesIO()
    write(file, traces, **facts)
    return file.getvalue()


# ---- packets, by the Arm ARM's "Statistical Profiling Extension sample record specification" -----------------------


def address(index: int, where: int, el: int = 0) -> bytes:
    return struct.pack("<BQ", 0xB0 | index, where & (1 << 56) - 1 | 1 << 63 | el << 61)


def virtual(where: int) -> bytes:
    return struct.pack("<BQ", 0xB2, where)


def context(task: int, el: int = EL1) -> bytes:
    return struct.pack("<BI", 0x64 | el - 1, task)


def events(bits: int) -> bytes:
    return struct.pack("<BH", 0x52, bits)


def latency(cycles: int, index: int = 0) -> bytes:
    return struct.pack("<BH", 0x98 | index, cycles)


def timestamp(ticks: int) -> bytes:
    return struct.pack("<BQ", 0x71, ticks)


END = b"\x01"


def record(*parts: bytes) -> bytes:
    return b"".join(parts).ljust(64, b"\0")


def simple(pc: int, ticks: int, task: int = 7) -> bytes:
    return record(address(0, pc, EL1), context(task), bytes(OTHER), events(RETIRED), latency(3), timestamp(ticks))


def mixed(base: int, count: int, first_tick: int, tasks: tuple[int, ...]) -> tuple[bytes, list[list[str]]]:
    """Loads, branches and others of several tasks at EL0 and EL1, and what perf 6.1 calls each packet of each."""
    data, names = b"", []
    for i in range(count):
        pc, el, task, ticks = base + 4 * i, i // 2 % 2, tasks[i % len(tasks)], first_tick + 100 * i
        what = i % 3
        parts = [address(0, pc, el), context(task)]
        parts += [address(1, base, el)] if what == 1 else []
        parts += [bytes((LOAD, BRANCH, OTHER)[what]), events((RETIRED, MISPREDICTED, RETIRED | 1)[what])]
        parts += [latency(i), latency(i % 7, 1), latency(i % 5, 2)]
        parts += [virtual(HIGH + 8 * i), address(3, LOW + 8 * i)] if what == 0 else []
        data += record(*parts, timestamp(ticks))
        low = (1 << 56) - 1
        named = [f"PC {pc & low:#x} el{el} ns=1", f"CONTEXT {task:#x} el1"]
        named += [f"TGT {base & low:#x} el{el} ns=1"] if what == 1 else []
        named += [("LD GP-REG", "B COND", "OTHER INSN-OTHER")[what]]
        named += [("EV RETIRED", "EV RETIRED MISPRED", "EV EXCEPTION-GEN RETIRED")[what]]
        named += [f"LAT {i} TOT", f"LAT {i % 7} ISSUE", f"LAT {i % 5} XLAT"]
        named += [f"VA {HIGH + 8 * i:#x}", f"PA {LOW + 8 * i:#x} ns=1 ch=0 pat=0"] if what == 0 else []
        names.append([*named, f"TS {ticks}"])
    return data, names


# ---- perf report -D -----------------------------------------------------------------------------------------------


@needs_perf
def test_every_packet_of_every_record_of_two_cpus_is_dumped(tmp_path: Path) -> None:
    (one, names), (other, more_names) = mixed(LOW, 300, 1000, (5, 6)), mixed(HIGH, 200, 1050, (8,))
    path = written(tmp_path / "perf.data", AuxTrace(0, one), AuxTrace(1, other))
    shown = packets(path)
    assert b"".join(data for data, _ in shown) == one + other
    assert [name for _, name in shown if name != "PAD"] == [n for of_one in names + more_names for n in of_one]
    dump = perf(path, "report", "-D")
    assert [line for line in dump if "ARM SPE data" in line] == [
        f". ... ARM SPE data: size {size:#x} bytes" for size in (300 * 64, 200 * 64)
    ]
    assert not [line for line in dump if re.search(r"Bad packet|failed|corrupt|invalid", line)]


@needs_perf
def test_other_packets_are_dumped_too(tmp_path: Path) -> None:
    data = record(address(0, HIGH, EL2), context(5, EL2), bytes(STORE), events(RETIRED), b"\x43\x08", END)
    shown = packets(written(tmp_path / "perf.data", AuxTrace(3, data)))
    names = [f"PC {HIGH & (1 << 56) - 1:#x} el2 ns=1", "CONTEXT 0x5 el2", "ST GP-REG", "EV RETIRED"]
    assert [name for _, name in shown if name != "PAD"] == [*names, "DATA-SOURCE 8", "END"]


@needs_perf
def test_a_trace_of_any_length_is_padded_with_padding_packets(tmp_path: Path) -> None:
    data = (simple(LOW, 100) + simple(LOW + 4, 200))[:-3]
    path = written(tmp_path / "perf.data", AuxTrace(0, data), AuxTrace(1, simple(LOW + 8, 300)))
    shown = packets(path)
    assert b"".join(part for part, _ in shown) == data + bytes(3) + simple(LOW + 8, 300)
    assert len(samples(path, "ip")) == 3


# ---- perf script --------------------------------------------------------------------------------------------------


@needs_perf
def test_each_record_is_a_sample_with_its_pc_cpu_task_and_time(tmp_path: Path) -> None:
    first = 625_000_000
    one, other = (
        b"".join(simple(base + 4 * i, first + 100 * i + n, 7 + n) for i in range(300))
        for n, base in enumerate((LOW, HIGH))
    )
    tasks = [Task(7, 7, "one"), Task(8, 7, "other")]
    path = written(tmp_path / "perf.data", AuxTrace(0, one), AuxTrace(2, other), tasks=tasks)
    expected = []
    for i in range(300):
        for cpu, base, task, comm in ((0, LOW, 7, "one"), (2, HIGH, 8, "other")):
            ns = (first + 100 * i + (cpu == 2)) * TICKS
            time = f"{ns // 10**9}.{ns % 10**9:09}:"
            expected.append([comm, f"7/{task}", f"[{cpu:03}]", time, f"{executed_at(base + 4 * i, True):x}"])
    assert samples(path, "comm,pid,tid,cpu,time,ip", "--ns") == expected


@needs_perf
def test_by_default_there_are_samples_of_accesses_and_of_mispredicted_branches(tmp_path: Path) -> None:
    data, _ = mixed(HIGH, 300, 1000, (5,))
    path = written(tmp_path / "perf.data", AuxTrace(0, data))
    found = [line.split() for line in perf(path, "script", "-F", "event,ip")]
    top = (1 << 56) - 1
    seen = [executed_at(HIGH + 4 * i, True) if i // 2 % 2 else HIGH + 4 * i & top for i in range(300)]
    assert found == [[("memory:", "branch-miss:")[i % 3], f"{pc:x}"] for i, pc in enumerate(seen) if i % 3 < 2]


@needs_perf
def test_samples_have_the_addresses_and_latency_of_their_record(tmp_path: Path) -> None:
    load = [address(0, HIGH, EL1), context(5), bytes(LOAD), events(RETIRED), latency(77), virtual(HIGH + 8)]
    load += [address(3, LOW + 16), timestamp(100)]
    path = written(tmp_path / "perf.data", AuxTrace(0, record(*load)), midr=0x410F_D0C0)
    (sample,) = samples(path, "addr,ip,phys_addr,weight")
    assert sample == [f"{HIGH + 8:x}", "77", f"{HIGH:x}", f"{LOW + 16:x}"]


@needs_perf
@pytest.mark.parametrize(("hz", "seconds"), [(62_500_000, "16.000000000"), (1_000_000_000, "1.000000000")])
def test_a_second_is_what_the_counters_frequency_makes_it(tmp_path: Path, hz: int, seconds: str) -> None:
    path = written(tmp_path / "perf.data", AuxTrace(0, simple(LOW, 1_000_000_000)), counter_hz=hz)
    assert samples(path, "time", "--ns") == [[f"{seconds}:"]]


@needs_perf
@pytest.mark.parametrize("hz", [1, 24_000_000, 19_200_000, (1 << 32) - 1])
def test_any_frequency_keeps_time_to_a_billionth(tmp_path: Path, hz: int) -> None:
    path = written(tmp_path / "perf.data", AuxTrace(0, simple(LOW, 1000 * hz)), counter_hz=hz)
    ((time,),) = samples(path, "time", "--ns")
    assert float(time.rstrip(":")) == pytest.approx(1000, rel=1e-9)


@needs_perf
def test_without_context_packets_a_sample_is_its_traces_task(tmp_path: Path) -> None:
    data = record(address(0, LOW, EL1), bytes(OTHER), events(RETIRED), timestamp(100))
    path = written(tmp_path / "perf.data", AuxTrace(0, data, tid=9), tasks=[Task(9, 9, "guest")])
    run = subprocess.run(
        ["perf", "script", "--itrace=i1i", "-F", "comm,tid", "-i", path], capture_output=True, text=True
    )
    assert run.stdout.split() == ["guest", "9"]
    assert "CONTEXT packets not found" in run.stderr


@needs_perf
def test_the_last_of_perfs_cpus_can_be_traced(tmp_path: Path) -> None:
    path = written(tmp_path / "perf.data", AuxTrace(4095, simple(LOW, 100)))
    assert samples(path, "cpu") == [["[4095]"]]


@needs_perf
@pytest.mark.parametrize("traces", [[], [AuxTrace(0, b"")], [AuxTrace(0, b""), AuxTrace(1, b"")]])
def test_where_nothing_was_traced_perf_prints_nothing(tmp_path: Path, traces: list[AuxTrace]) -> None:
    path = written(tmp_path / "perf.data", *traces)
    assert packets(path) == []
    assert perf(path, "script") == []


@needs_perf
def test_an_empty_trace_takes_nothing_from_the_others(tmp_path: Path) -> None:
    path = written(tmp_path / "perf.data", AuxTrace(0, b""), AuxTrace(1, simple(LOW, 100)), AuxTrace(2, b""))
    assert samples(path, "cpu,ip") == [["[001]", f"{executed_at(LOW, True):x}"]]


@needs_perf
def test_ten_megabytes_are_163840_samples(tmp_path: Path) -> None:
    count = 10 * 2**20 // 64
    path = written(tmp_path / "perf.data", AuxTrace(0, b"".join(simple(LOW + 4 * i, i) for i in range(count))))
    assert samples(path, "ip") == [[f"{executed_at(LOW + 4 * i, True):x}"] for i in range(count)]


# ---- what perf is told of the machine -----------------------------------------------------------------------------


@needs_perf
def test_the_header_says_that_it_is_arm64_and_which_event_it_was(tmp_path: Path) -> None:
    path = written(tmp_path / "perf.data", AuxTrace(3, simple(LOW, 1)), midr=0x410F_D0C0, os_release="6.1.0-guest")
    header = "\n".join(perf(path, "report", "--header-only"))
    for line in ("arch : aarch64", "cpuid : 0x00000000410fd0c0", "os release : 6.1.0-guest", "nrcpus avail : 4"):
        assert f"# {line}\n" in header
    assert "name = arm_spe_0/ts_enable=1,pa_enable=1/, , id = { 1 }, type = 8" in header
    assert "# pmu mappings: software = 1, arm_spe_0 = 8\n" in header
    assert "# contains AUX area data" in header


# ---- mappings -----------------------------------------------------------------------------------------------------

SOURCE = """
.text
.globl at_el1
.type at_el1, %function
at_el1: nop
        nop
.size at_el1, 8
.globl at_el0
.type at_el0, %function
at_el0: nop
        nop
.size at_el0, 8
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A guest of four instructions at LOW."""
    if not shutil.which(GCC):
        pytest.skip(f"no {GCC} here")
    source, image = tmp_path / "guest.S", tmp_path / "guest.elf"
    source.write_text(SOURCE)
    link = ["-nostdlib", "-static", f"-Wl,-Ttext={LOW:#x}", "-Wl,--build-id=none", "-Wl,-e,0"]
    subprocess.run([GCC, *link, "-o", image, source], check=True)
    return image


@needs_perf
def test_an_image_that_runs_at_el1_at_a_low_address_is_found_where_perf_sees_it(tmp_path: Path, image: Path) -> None:
    trace = AuxTrace(0, b"".join(simple(LOW + 4 * i, i, 0) for i in range(4)))
    path = written(tmp_path / "perf.data", trace, mappings=[Mapping(LOW, 16, str(image))], tasks=[Task(0, 0, "guest")])
    found = samples(path, "comm,ip,sym,symoff")
    names = ["at_el1+0x0", "at_el1+0x4", "at_el0+0x0", "at_el0+0x4"]
    assert found == [["guest", f"{0xFF << 56 | LOW + 4 * i:x}", name] for i, name in enumerate(names)]


@needs_perf
def test_a_file_that_is_not_there_still_gives_its_name(tmp_path: Path) -> None:
    data = record(address(0, LOW, EL0), context(5), bytes(OTHER), events(RETIRED), timestamp(100)) + simple(
        HIGH, 200, 5
    )
    mappings = [Mapping(LOW, 4096, "/not/there/user", pid=5), Mapping(HIGH, 4096, "[guest kernel]")]
    path = written(tmp_path / "perf.data", AuxTrace(0, data), mappings=mappings, tasks=[Task(5, 5, "user")])
    assert perf(path, "script", "--itrace=i1i", "-F", "ip,sym,dso") == [
        f"         {LOW:x} [unknown] (/not/there/user)",
        f" {HIGH:x} [unknown] ([guest kernel])",
    ]


@needs_perf
def test_the_kernels_symbols_are_the_guests_and_never_this_machines(tmp_path: Path) -> None:
    kallsyms = tmp_path / "kallsyms"
    kallsyms.write_text(f"{HIGH:x} T _text\n{HIGH + 4:x} T start_kernel\n{HIGH + 4096:x} T _etext\n")
    trace = AuxTrace(0, simple(HIGH, 1, 5) + simple(HIGH + 8, 2, 5))
    path = written(tmp_path / "perf.data", trace, mappings=[Mapping(HIGH, 4096, f"{KERNEL}_text")])
    found = samples(path, "ip,sym,symoff", "--kallsyms", str(kallsyms))
    assert found == [[f"{HIGH:x}", "_text+0x0"], [f"{HIGH + 8:x}", "start_kernel+0x4"]]
    run = subprocess.run(
        ["perf", "script", "--itrace=i1i", "-F", "ip,sym,dso", "-i", path], capture_output=True, text=True
    )
    assert run.stdout.splitlines() == [f" {pc:x} [unknown] ([kernel.kallsyms])" for pc in (HIGH, HIGH + 8)]
    assert run.stderr.splitlines() == [f"No kallsyms or vmlinux with build-id {40 * '0'} was found"]


# ---- the file -----------------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes() -> None:
    def one() -> bytes:
        return in_memory(AuxTrace(0, simple(LOW, 1)), tasks=[Task(7, 7, "guest")], mappings=[Mapping(LOW, 4, "/a")])

    assert one() == one()


def test_a_file_is_written_from_its_first_byte_to_its_last_without_a_copy_of_a_trace() -> None:
    pieces: list[bytes] = []

    class Pipe(io.BytesIO):
        def write(self, piece: Any) -> int:
            pieces.append(piece)
            return len(piece)

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

    trace = simple(LOW, 1) * 100
    write(Pipe(), [AuxTrace(0, trace)])
    assert any(piece is trace for piece in pieces)
    assert b"".join(pieces) == in_memory(AuxTrace(0, trace))


E1 = Mapping(LOW, 64, "/a.elf")


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"traces": [AuxTrace(-1, b"")]}, "cpu -1: expected 0 to 4095"),
        ({"traces": [AuxTrace(4096, b"")]}, "cpu 4096: expected 0 to 4095"),
        ({"traces": [AuxTrace(1, b""), AuxTrace(1, b"")]}, "cpu 1: expected one trace of each CPU"),
        ({"traces": [AuxTrace(1, b"", tid=-2)]}, "tid -2: expected -1 to 2147483647"),
        ({"tasks": [Task(1 << 31, 0, "a")]}, "tid 2147483648: expected 0 to 2147483647"),
        ({"tasks": [Task(0, -1, "a")]}, "pid -1: expected 0 to 2147483647"),
        ({"tasks": [Task(0, 0, "a" * 16)]}, f"comm '{'a' * 16}': expected 1 to 15 bytes of printable text"),
        ({"counter_hz": 0}, "counter_hz 0: expected 1 to 4294967295"),
        ({"midr": -1}, f"midr -1: expected 0 to {2**64 - 1}"),
        ({"interval": 1 << 64}, f"interval {2**64}: expected 0 to {2**64 - 1}"),
        ({"os_release": "a\n"}, r"os_release 'a\n': expected 1 to 4095 bytes of printable text"),
        ({"mappings": [Mapping(LOW, 1, "a")]}, "mapping 'a': expected a name that begins with / or [, as all at EL1"),
        ({"mappings": [Mapping(LOW, 0, "/a")]}, f"mapping '/a': size 0: expected 1 to {(1 << 56) - LOW}"),
        ({"mappings": [Mapping(1 << 64, 1, "/a")]}, f"mapping '/a': address {2**64}: expected 0 to {2**64 - 1}"),
        ({"mappings": [Mapping((1 << 64) - 4, 5, "/a")]}, "mapping '/a': size 5: expected 1 to 4"),
        ({"mappings": [Mapping(LOW, 1 << 64, "a", pid=0)]}, f"mapping 'a': size {2**64}: expected 1 to {2**64 - LOW}"),
        ({"mappings": [Mapping(0, 1, "a", pid=0, offset=-1)]}, f"mapping 'a': offset -1: expected 0 to {2**64 - 1}"),
        ({"mappings": [E1, Mapping(LOW + 63, 1, "[b]")]}, "mappings '/a.elf' and '[b]': expected no overlap at EL1"),
        ({"mappings": [E1, Mapping(LOW, 1, "/a.elf", pid=0)]}, "mapping '/a.elf': expected at EL1 or at EL0, not both"),
        ({"mappings": [Mapping(0, 1, KERNEL), Mapping(1, 1, KERNEL)]}, f"mapping '{KERNEL}': expected one at most"),
    ],
)  # fmt: skip
def test_what_cannot_be_in_a_file_is_refused_in_a_line_and_nothing_is_written(facts: dict[str, Any], line: str) -> None:
    file = io.BytesIO()
    with pytest.raises(ValueError) as error:
        write(file, facts.pop("traces", []), **facts)
    assert str(error.value) == line
    assert file.getvalue() == b""
