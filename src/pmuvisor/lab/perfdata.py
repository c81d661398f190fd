"""SPE records as a perf.data file, which `perf report -D` dumps and `perf script` makes samples of.

The file is what `perf record -e arm_spe_0//` leaves on arm64, as perf.data-file-format (tools/perf/Documentation),
include/uapi/linux/perf_event.h and perf's reader (tools/perf/util: header.c, auxtrace.c, arm-spe.c) have it. It is
tried with Debian's perf 6.1 on x86-64. What to know of perf:

- `perf script` alone makes samples of memory accesses and mispredicted branches, and says that it makes no others;
  `--itrace=i1i` makes one of each record.
- A PC at EL1 or EL2, Non-secure, has 0xff in its top byte (arm_spe_calc_ip): a guest that runs at 0x4000_0000 with its
  MMU off is seen at 0xff00_0000_4000_0000. A mapping at EL1 goes where perf will look for it.
- Who executed is what the context packets say (CONTEXTIDR_EL1). A trace without any is reported as such by perf.
- Only the file tells it from a recording of the machine that perf runs on, so what it must not take from there (the
  architecture, the core, the kernel's symbols) is in every file.
- Newer ones warn that the metadata are old: their AUXTRACE_INFO has another form, which 6.1 does not read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from pmuvisor.board.memmap import COUNTER_HZ

KERNEL = "[kernel.kallsyms]"
"""The file of a `Mapping` that is the guest's Linux kernel, or all of a guest at EL1 (perf's DSO__NAME_KALLSYMS)."""
MAX_CPUS = 4096
"""What perf can number (MAX_NR_CPUS)."""
MAX_COMM = 15
"""Bytes of a task's name (TASK_COMM_LEN without its NUL)."""
MAX_NAME = 4095
"""Bytes of a mapping's file name (PATH_MAX without its NUL)."""

_TOP_BYTE = 0xFF << 56
_PMU_TYPE = 8
"""The number of the PMU arm_spe_0: the kernel gives them out from PERF_TYPE_MAX (6) on as drivers come."""
_ATTR_SIZE = 112
"""PERF_ATTR_SIZE_VER5: it has all that is said here, and every perf that knows SPE reads it."""
_ATTR = struct.Struct("<IIQQQQQ")
_RECORD = struct.Struct("<IHH")
_FILE_HEADER = struct.Struct("<8s9Q24x")
_AUXTRACE_SIZE = 48
_SPE_ID, _DUMMY_ID = 1, 2

_SAMPLE_IP, _SAMPLE_TID, _SAMPLE_TIME, _SAMPLE_CPU = 1 << 0, 1 << 1, 1 << 2, 1 << 7
_SAMPLE_DATA_SRC, _SAMPLE_IDENTIFIER, _SAMPLE_PHYS_ADDR = 1 << 15, 1 << 16, 1 << 19
_SAMPLE = _SAMPLE_IP | _SAMPLE_TID | _SAMPLE_TIME | _SAMPLE_CPU | _SAMPLE_IDENTIFIER
_READ_ID = 1 << 2
_DISABLED, _EXCLUDE_KERNEL, _MMAP, _COMM, _TASK, _SAMPLE_ID_ALL = (1 << bit for bit in (0, 5, 8, 9, 13, 18))
_SAMPLE_ID = bytes(4 * 8)
"""What ends a COMM or MMAP (sample_id_all): TID, TIME, CPU and IDENTIFIER, all 0, as perf record makes up its own. At
time 0 perf takes them before any sample."""

_MISC_KERNEL, _MISC_USER = 1, 2
_MMAP_RECORD, _COMM_RECORD, _BUILD_ID = 1, 3, 67
_FINISHED_ROUND, _AUXTRACE_INFO, _AUXTRACE, _TIME_CONV = 68, 70, 71, 79
_PERF_AUXTRACE_ARM_SPE = 4
_BUILD_IDS, _OSRELEASE, _ARCH, _NRCPUS, _CPUID, _EVENT_DESC, _PMU_MAPPINGS, _AUXTRACE_INDEX = 2, 4, 6, 7, 9, 12, 16, 18


@dataclass(frozen=True)
class AuxTrace:
    """What the SPE of one CPU wrote."""

    cpu: int
    data: bytes
    """Whole records, in order; none at all if the CPU took no samples."""
    tid: int = -1
    """The task of samples without a context packet; -1 where that is not known."""


@dataclass(frozen=True)
class Task:
    """Who is meant by a context packet."""

    tid: int
    """What is in CONTEXTIDR_EL1: under Linux the thread's ID, if the kernel has CONFIG_PID_IN_CONTEXTIDR."""
    pid: int
    """The process, which has the mappings; the thread's own ID for the first of a process."""
    comm: str


@dataclass(frozen=True)
class Mapping:
    """Where a file is executed in a guest.

    At EL1 a file's name begins with / or [, and there are two kinds. `KERNEL`, at most once, has its symbols from
    `perf script --kallsyms FILE` and nowhere else, at the addresses of `executed_at`. If the name goes on with a symbol
    of that file, as in [kernel.kallsyms]_text, it has to be the one at the mapping's address; `perf report` warns where
    it does not. What is below this mapping perf takes for EL0. Any other file is a kernel module to perf, which reads
    the symbols of its .text, and takes that to be where the mapping begins: a mapping of more than .text gives the rest
    wrong names.

    Of a file at EL0 that it can read, perf on x86-64 says "unwind: target platform=arm64 is not supported": no matter.
    """

    address: int
    size: int
    """Bytes."""
    file: str
    pid: int | None = None
    """The process that executes it at EL0; None at EL1."""
    offset: int = 0
    """Of the mapping in the file, in bytes. At EL1 perf does without."""


def executed_at(address: int, kernel: bool) -> int:
    """Return what perf makes of a PC at EL1 or EL2, or at EL0: arm_spe_calc_ip fills or clears the top byte."""
    return address | _TOP_BYTE if kernel else address & ~_TOP_BYTE


def write(
    file: BinaryIO,
    traces: Sequence[AuxTrace],
    *,
    tasks: Sequence[Task] = (),
    mappings: Sequence[Mapping] = (),
    counter_hz: int = COUNTER_HZ,
    midr: int = 0,
    interval: int = 0,
    os_release: str = "unknown",
) -> None:
    """Write a perf.data file of some CPUs' traces; `file` need not be able to seek, and no trace is copied.

    `counter_hz` is the frequency of the counter in timestamp packets; `midr` is MIDR_EL1, by which perf reads data
    source packets; `interval` is PMSIRR_EL1's, in operations, 0 if unknown; `os_release` is the guest's `uname -r`.
    Raises ValueError, before anything is written, with one line for what cannot be in such a file.
    """
    _check_number("counter_hz", counter_hz, 1, 1 << 32)  # CNTFRQ_EL0's 32 bits
    _check_number("midr", midr, 0, 1 << 64)
    _check_number("interval", interval, 0, 1 << 64)
    _check_text("os_release", os_release, MAX_NAME)
    _check_traces(traces)
    _check_tasks(tasks)
    _check_mappings(mappings)

    events = ((_attr_of_spe(interval), _SPE_ID, "arm_spe_0/ts_enable=1,pa_enable=1/"), (_DUMMY, _DUMMY_ID, "dummy:u"))
    ids, attrs = _attributes(events)
    attrs_at = _FILE_HEADER.size + len(ids)
    data_at = attrs_at + len(attrs)
    head = _time_conv(counter_hz) + b"".join(map(_comm, tasks)) + _mmaps(mappings)
    data, index = _data([trace for trace in traces if trace.data], head, data_at)
    size = sum(map(len, data))
    cpus = max((trace.cpu for trace in traces), default=0) + 1
    features = _features(events, index, cpus, midr, os_release, bool(_kernels(mappings)))
    sections = (attrs_at, len(attrs), data_at, size, 0, 0)
    flags = sum(1 << number for number in features)
    file.write(_FILE_HEADER.pack(b"PERFILE2", _FILE_HEADER.size, _ATTR_SIZE + 16, *sections, flags))
    for piece in (ids, attrs, *data, _feature_section(features, data_at + size)):
        file.write(piece)


# ---- what cannot be in a file -------------------------------------------------------------------------------------


def _check_number(what: str, number: int, low: int, limit: int) -> None:
    if not low <= number < limit:
        raise ValueError(f"{what} {number}: expected {low} to {limit - 1}")


def _check_text(what: str, text: str, limit: int) -> None:
    if not text or not text.isprintable() or len(text.encode()) > limit:
        raise ValueError(f"{what} {text!r}: expected 1 to {limit} bytes of printable text")


def _check_traces(traces: Sequence[AuxTrace]) -> None:
    seen: set[int] = set()
    for trace in traces:
        _check_number("cpu", trace.cpu, 0, MAX_CPUS)
        _check_number("tid", trace.tid, -1, 1 << 31)
        if trace.cpu in seen:
            raise ValueError(f"cpu {trace.cpu}: expected one trace of each CPU")
        seen.add(trace.cpu)


def _check_tasks(tasks: Sequence[Task]) -> None:
    for task in tasks:
        _check_number("tid", task.tid, 0, 1 << 31)
        _check_number("pid", task.pid, 0, 1 << 31)
        _check_text("comm", task.comm, MAX_COMM)


def _check_mappings(mappings: Sequence[Mapping]) -> None:
    for mapping in mappings:
        _check_mapping(mapping)
    if len(_kernels(mappings)) > 1:
        raise ValueError(f"mapping {KERNEL!r}: expected one at most")
    at_el1 = sorted((mapping for mapping in mappings if mapping.pid is None), key=_executed_at)
    for one, other in pairwise(at_el1):
        if _executed_at(one) + one.size > _executed_at(other):
            raise ValueError(f"mappings {one.file!r} and {other.file!r}: expected no overlap at EL1")
    modules = {mapping.file for mapping in at_el1}
    for mapping in mappings:
        if mapping.pid is not None and mapping.file in modules:  # perf 6.1 corrupts its memory
            raise ValueError(f"mapping {mapping.file!r}: expected at EL1 or at EL0, not both")


def _check_mapping(mapping: Mapping) -> None:
    _check_text("mapping", mapping.file, MAX_NAME)
    if mapping.pid is not None:
        _check_number("pid", mapping.pid, 0, 1 << 31)
    elif mapping.file[0] not in "/[":
        raise ValueError(f"mapping {mapping.file!r}: expected a name that begins with / or [, as all at EL1")
    what = f"mapping {mapping.file!r}: "
    _check_number(f"{what}offset", mapping.offset, 0, 1 << 64)
    _check_number(f"{what}address", mapping.address, 0, 1 << 64)
    _check_number(f"{what}size", mapping.size, 1, (1 << 64) + 1 - max(mapping.address, _executed_at(mapping)))


def _executed_at(mapping: Mapping) -> int:
    return executed_at(mapping.address, mapping.pid is None)


def _kernels(mappings: Iterable[Mapping]) -> list[Mapping]:
    return [mapping for mapping in mappings if mapping.pid is None and mapping.file.startswith(KERNEL)]


# ---- events -------------------------------------------------------------------------------------------------------


def _attr(type_number: int, config: int, sample_type: int, period: int, flags: int) -> bytes:
    """A struct perf_event_attr."""
    fields = (type_number, _ATTR_SIZE, config, period, sample_type, _READ_ID, flags)
    return _ATTR.pack(*fields).ljust(_ATTR_SIZE, b"\0")


def _attr_of_spe(interval: int) -> bytes:
    """The event that has the AUX area, as arm_spe_recording_options sets it up.

    Its config has ts_enable and pa_enable (arm_spe_pmu.c); the one makes perf look at timestamps, the other is why
    perf may be asked for physical addresses. A packet that is not there reads 0.
    """
    sample_type = _SAMPLE | _SAMPLE_DATA_SRC | _SAMPLE_PHYS_ADDR
    return _attr(_PMU_TYPE, 0b11, sample_type, interval, _DISABLED | _SAMPLE_ID_ALL)


_DUMMY = _attr(1, 9, _SAMPLE, 1, _EXCLUDE_KERNEL | _MMAP | _COMM | _TASK | _SAMPLE_ID_ALL)
"""PERF_COUNT_SW_DUMMY: the event whose are the COMM and MMAP records."""

_Events = Sequence[tuple[bytes, int, str]]
"""Each event's attr, ID and name."""


def _attributes(events: _Events) -> tuple[bytes, bytes]:
    """The events' IDs, which follow the file's header, and the attr section, which says where they are."""
    ids = b"".join(struct.pack("<Q", number) for _, number, _ in events)
    attrs = (attr + struct.pack("<QQ", _FILE_HEADER.size + 8 * i, 8) for i, (attr, _, _) in enumerate(events))
    return ids, b"".join(attrs)


# ---- the data section ---------------------------------------------------------------------------------------------


def _record(kind: int, misc: int, body: bytes) -> bytes:
    return _RECORD.pack(kind, misc, _RECORD.size + len(body)) + body


def _string(text: str) -> bytes:
    """A string with its NUL, to a whole number of 8 bytes, as records have them."""
    return _padded(text.encode() + b"\0", 8)


def _padded(data: bytes, unit: int) -> bytes:
    return data + bytes(-len(data) % unit)


def _time_conv(counter_hz: int) -> bytes:
    """PERF_RECORD_TIME_CONV: nanoseconds are count * mult >> shift (tsc_to_perf_time), where mult has 32 bits.

    It is of most bits with the largest shift; at 62.5 MHz it is exact. AUXTRACE_INFO takes it over, so it comes first.
    """
    shift = max(shift for shift in range(32) if (10**9 << shift) // counter_hz < (1 << 32) - 1)
    mult = ((10**9 << shift) + counter_hz // 2) // counter_hz
    return _record(_TIME_CONV, 0, struct.pack("<5Q2B6x", shift, mult, 0, 0, (1 << 64) - 1, 1, 0))


def _comm(task: Task) -> bytes:
    return _record(_COMM_RECORD, 0, struct.pack("<ii", task.pid, task.tid) + _string(task.comm) + _SAMPLE_ID)


def _mmaps(mappings: Sequence[Mapping]) -> bytes:
    """The mappings, first the kernel: without that perf reads no symbols for modules, and perf report has a warning.

    Where none is given it is a byte where no PC can be, below all of EL1: perf takes what is below for EL0.
    """
    kernels = _kernels(mappings)
    others = [mapping for mapping in mappings if mapping not in kernels]
    first = [_mmap(mapping, _executed_at(mapping)) for mapping in kernels]
    first = first or [_mmap(Mapping(0, 1, f"{KERNEL}_text"), 1 << 63)]
    return b"".join(first + [_mmap(mapping, _executed_at(mapping)) for mapping in others])


def _mmap(mapping: Mapping, address: int) -> bytes:
    """A PERF_RECORD_MMAP. The kernel's has in pgoff where the symbol is that its name ends with."""
    kind, pid, tid, offset = _MISC_KERNEL, -1, 0, 0
    if mapping.pid is not None:
        kind, pid, tid, offset = _MISC_USER, mapping.pid, mapping.pid, mapping.offset
    elif mapping.file.startswith(KERNEL) and mapping.file != KERNEL:
        offset = address
    body = struct.pack("<iiQQQ", pid, tid, address, mapping.size, offset)
    return _record(_MMAP_RECORD, kind, body + _string(mapping.file) + _SAMPLE_ID)


def _data(traces: Sequence[AuxTrace], head: bytes, at: int) -> tuple[list[bytes], list[int]]:
    """The data section, which begins at `at`, in pieces; and where in the file its AUXTRACE records are.

    Where nothing was traced there is no AUXTRACE_INFO either: perf would miss context packets. A trace ends in zeros,
    which are padding packets, where the next record would not be at a multiple of 8 bytes.
    """
    info = struct.pack("<IIQQ", _PERF_AUXTRACE_ARM_SPE, 0, _PMU_TYPE, 1)  # 1: each CPU has a trace of its own
    pieces = [head, _record(_AUXTRACE_INFO, 0, info) if traces else b""]
    at += sum(map(len, pieces))
    index = []
    for queue, trace in enumerate(traces):
        padding = bytes(-len(trace.data) % 8)
        size = len(trace.data) + len(padding)
        body = struct.pack("<3QIiiI", size, 0, 0, queue, trace.tid, trace.cpu, 0)
        pieces += [_record(_AUXTRACE, 0, body), trace.data, padding]
        index.append(at)
        at += _AUXTRACE_SIZE + size
    return [*pieces, _record(_FINISHED_ROUND, 0, b"")], index


# ---- features -----------------------------------------------------------------------------------------------------


def _header_string(text: str) -> bytes:
    """A struct perf_header_string: to a whole number of 64 bytes, as perf writes it (NAME_ALIGN)."""
    data = _padded(text.encode() + b"\0", 64)
    return struct.pack("<I", len(data)) + data


def _features(
    events: _Events, index: Sequence[int], cpus: int, midr: int, os_release: str, kernel: bool
) -> dict[int, bytes]:
    """What perf would otherwise take from the machine it runs on, by HEADER_* number in ascending order."""
    descriptions = (
        attr + struct.pack("<I", 1) + _header_string(name) + struct.pack("<Q", number) for attr, number, name in events
    )
    pmus = ((1, "software"), (_PMU_TYPE, "arm_spe_0"))
    features = {
        _OSRELEASE: _header_string(os_release),
        _ARCH: _header_string("aarch64"),
        _NRCPUS: struct.pack("<II", cpus, cpus),
        _CPUID: _header_string(f"{midr:#018x}"),
        _EVENT_DESC: struct.pack("<II", len(events), _ATTR_SIZE) + b"".join(descriptions),
        _PMU_MAPPINGS: struct.pack("<I", len(pmus))
        + b"".join(struct.pack("<I", number) + _header_string(name) for number, name in pmus),
        _AUXTRACE_INDEX: struct.pack("<Q", len(index))
        + b"".join(struct.pack("<QQ", at, _AUXTRACE_SIZE) for at in index),
    }
    return ({_BUILD_IDS: _no_build_id()} | features) if kernel else features


def _no_build_id() -> bytes:
    """A build ID of zeros for the guest's kernel: without any, perf has it for the one that it runs on."""
    return _record(_BUILD_ID, _MISC_KERNEL, struct.pack("<i24x", -1) + _string(KERNEL))


def _feature_section(features: dict[int, bytes], at: int) -> bytes:
    """Where each feature is in the file, and the features; all of it begins at `at`."""
    at += 16 * len(features)
    where = b""
    for feature in features.values():
        where += struct.pack("<QQ", at, len(feature))
        at += len(feature)
    return where + b"".join(features.values())
