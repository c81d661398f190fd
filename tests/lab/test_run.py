"""What a run keeps of a console, and what its report prints."""

import dataclasses
import io

import pytest

from pmuvisor.arch.cores import CoreError, core, variant
from pmuvisor.board.machine import Status
from pmuvisor.lab import report
from pmuvisor.lab.run import CONSOLE_LIMIT, SHOW_AT, Console, Request, Result, panic_of, run


def test_a_console_keeps_its_end_within_bounds_and_shows_everything() -> None:
    shown = bytearray()
    console = Console(shown.extend)
    block = bytes(range(65, 91)) * 10_000
    for _ in range(40):
        console.write(block)
    assert CONSOLE_LIMIT == 4 << 20
    assert len(console._kept) < 2 * CONSOLE_LIMIT
    console.flush()
    assert bytes(shown) == block * 40
    assert console.text() == (block * 40)[-CONSOLE_LIMIT:].decode()
    assert console.dropped == 40 * len(block) - CONSOLE_LIMIT


def test_a_console_shows_long_output_before_it_is_asked_to() -> None:
    shown: list[bytes] = []
    console = Console(shown.append)
    for _ in range(SHOW_AT - 1):
        console.write(b"x")
    assert shown == []
    console.write(b"y")
    assert shown == [b"x" * (SHOW_AT - 1) + b"y"]


def test_a_console_that_is_not_utf8_is_still_text() -> None:
    console = Console()
    console.write(b"caf\xc3\xa9 \xff")
    assert console.text() == "caf\u00e9 \ufffd"


@pytest.mark.parametrize(
    ("console", "panic"),
    [
        ("", ""),
        ("all is well\n", ""),
        ("[  0.5] Kernel panic - not syncing: VFS\r\n[  0.6] CPU: 0\n", "Kernel panic - not syncing: VFS"),
        ("Kernel panic - one\nKernel panic - two", "Kernel panic - two"),
        ("demo\nbugcheck: division by zero\n", "bugcheck: division by zero"),
        ("no such bugcheck: here\n", ""),
    ],
)
def test_a_panic_is_the_line_in_which_a_kernel_said_so_last(console: str, panic: str) -> None:
    assert panic_of(console) == panic


LEDGER = {"exits": 10**12, "loads": 1, "puts": 0, "registers_swapped": 23, "overflows": 0, "interrupts_injected": 0}
LEDGER |= {f"exits.{name}": 10**12 for name in ("pmu", "irq", "mmio", "sgi", "wfi", "hvc")}


def printed(result: Result, encoding: str = "utf-8") -> list[str]:
    data = io.BytesIO()
    file = io.TextIOWrapper(data, encoding=encoding)
    report.show(result, file)
    file.flush()
    return data.getvalue().decode(encoding).splitlines()


def result(ledger: dict[str, int] = LEDGER, reason: str = "the guest powered off", guest: str = "demo") -> Result:
    return Result(
        guest=guest,
        core="neoverse-n1",
        design="fixed-counters-only",
        fgt=False,
        counters=31,
        host_counters=31,
        vcpus=8,
        status=Status.HUNG,
        reason=reason,
        panic="",
        registers="X0 0",
        console="",
        console_dropped=0,
        instructions=10**15,
        virtual_seconds=1e6,
        overhead_cycles=10**12,
        overhead_seconds=3e5,
        idle_seconds=1e5,
        wall_seconds=5e6,
        ledger=ledger,
    )


def test_the_report_fits_80_columns_with_long_figures() -> None:
    lines = printed(result(LEDGER | {"direct.PMEVTYPER30_EL0": 10**15, "trapped.PMEVTYPER30_EL0": 10**15}))
    assert max(map(len, lines)) <= 80
    assert lines[:2] == ["X0 0", "demo: hung: the guest powered off"]
    rows = [line.split() for line in lines]
    assert ["PMEVTYPER30_EL0", "1,000,000,000,000,000", "1,000,000,000,000,000", "-"] in rows
    assert ["hypercalls", "(PSCI)", "1,000,000,000,000", "1,000.00"] in rows
    assert ["executing", "600000.000", "s"] in rows
    assert ["virtualization,", "30.0", "%", "300000.000", "s"] in rows
    assert ["idle", "100000.000", "s"] in rows


def test_a_guest_that_left_its_pmu_alone_is_said_to_have() -> None:
    assert "The guest did not access its PMU." in printed(result())


def test_an_open_case_that_the_run_depends_on_is_told_with_the_choice_made() -> None:
    text = " ".join(printed(dataclasses.replace(result(), unpredictable=("event", "sel"))))
    assert "leaves open (event): before PMUv3p8, PMEVTYPER<n>_EL0 selects an event" in " ".join(text.split())
    assert "(sel)" in text
    assert "Chosen here: it reads as written." in " ".join(text.split())
    assert "leaves open" not in " ".join(printed(result()))


def test_words_of_the_guest_cannot_drive_the_terminal() -> None:
    lines = printed(result(reason="reset (Kernel panic - \x1b[31mred\x07\u009b)"))
    assert lines[1] == "demo: hung: reset (Kernel panic - ?[31mred??)"


def test_a_name_that_the_terminal_cannot_show_is_escaped() -> None:
    assert printed(result(guest="g\u00e4st"), "ascii")[1] == "g\\xe4st: hung: the guest powered off"


@pytest.mark.parametrize("design", ["emulated", "partitioned", "lazy"])
def test_a_core_can_have_as_many_event_counters_as_the_architecture_allows(design: str) -> None:
    result = run(Request("demo", variant(core("neoverse-v2"), event_counters=31), design=design, counters=31))
    assert "event counters 31," in result.console
    assert "all counts exact" in result.console
    assert (result.counters, result.host_counters) == (31, 31)


def test_a_core_of_another_clock_takes_another_time_for_the_same_instructions() -> None:
    slow, fast = (run(Request("demo", variant(core("max"), mhz=mhz))) for mhz in (500, 3000))
    assert slow.instructions == fast.instructions
    assert slow.virtual_seconds == pytest.approx(6 * fast.virtual_seconds, rel=1e-6)


def test_a_core_cannot_have_more_event_counters_than_the_architecture_allows() -> None:
    with pytest.raises(CoreError, match="core neoverse-v2: event_counters 32: expected"):
        variant(core("neoverse-v2"), event_counters=32)
