"""A vCPU's profiling unit on the board: exact records, faults and interrupts, and whatever a guest may write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a64 import DSB_SY, ISB, NE, PSCI_SYSTEM_OFF, Program, mrs, str_, subs
from board.machine_support import MEMORY, RESULTS
from pmuvisor.arch import sysreg
from pmuvisor.arch.cores import core
from pmuvisor.board import memmap, vspe
from pmuvisor.board.fdt import virt_device_tree
from pmuvisor.board.images import load_image, plan_layout
from pmuvisor.board.machine import DESIGNS, Config, Machine, Status, own_cpus

PSB_CSYNC = 0xD503_223F
BUFFER = 0x4020_0000
PAGE = 4096
RECORD = 64
E, S = 1, 1 << 17
E1SPE, TS = 1 << 1, 1 << 5
LOOP = 2
"""Instructions of a turn of `loop`."""


@dataclass
class Profiled:
    """A machine whose guest has SPE, and the records that were written."""

    machine: Machine
    records: list[bytes] = field(default_factory=list)

    def result(self, number: int = 0) -> int:
        return int.from_bytes(self.machine.memory.read(RESULTS + 8 * number, 8), "little")

    def buffer(self, size: int) -> bytes:
        return self.machine.memory.read(BUFFER, size)

    @property
    def written(self) -> bytes:
        return b"".join(self.records)


def machine(program: Program, *, design: str = "partitioned", pinned: bool = True, largest: int = 0) -> Profiled:
    """Run a program on a vCPU with SPE to its end."""
    image = load_image(program.code(), memmap.RAM_BASE, MEMORY)
    dtb = virt_device_tree(MEMORY, 1, spe=True)
    config = Config(core("max"), MEMORY, design=design, spe=True, spe_pinned=pinned)
    kvm = own_cpus(config)
    kvm.vm.spe_max_buffer = largest
    records: list[bytes] = []
    made = Machine(config, lambda data: None, kvm, on_record=lambda vcpu, data: records.append(data))
    made.boot(image, plan_layout(image, 0, len(dtb), memmap.RAM_BASE, MEMORY), dtb)
    outcome = made.run(30)
    assert outcome.status is Status.POWEROFF, outcome
    return Profiled(made, records)


def enable(
    p: Program, *, pages: int = 16, interval: int = 256, pointer: int = BUFFER, controls: int = E1SPE
) -> Program:
    """Write the unit's registers in the order of Linux's driver."""
    p.write(sysreg.PMBPTR_EL1, pointer).write(sysreg.PMBLIMITR_EL1, (BUFFER + pages * PAGE) | E)
    p.write(sysreg.PMSIRR_EL1, interval)(ISB).write(sysreg.PMSICR_EL1, 0)(ISB)
    return p.write(sysreg.PMSCR_EL1, controls)(ISB)


def loop(p: Program, turns: int, name: str = "loop") -> Program:
    return p.mov(1, turns).label(name)(subs(1, 1, 1)).b_if(NE, name)


def keep(p: Program, register: int, number: int) -> Program:
    return p(mrs(3, register)).mov(9, RESULTS)(str_(3, 9, 8 * number))


def finish(p: Program) -> Program:
    """Stop sampling and drain; leave PMBPTR_EL1 and PMBSR_EL1 as results 0 and 1."""
    p.write(sysreg.PMSCR_EL1, 0)(ISB, PSB_CSYNC, DSB_SY, ISB)
    return keep(keep(p, sysreg.PMBPTR_EL1, 0), sysreg.PMBSR_EL1, 1).psci(PSCI_SYSTEM_OFF)


# ---- exactness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
def test_one_operation_of_257_is_sampled_at_an_interval_of_256(design: str) -> None:
    got = machine(finish(loop(enable(Program()), 257 * 10)), design=design)
    # 257 x 20 operations in the loop; the ISB before and the two MOVs around it do not make another sample.
    assert got.result(0) - BUFFER == 20 * RECORD == len(got.written)
    assert got.result(1) == 0
    assert got.buffer(20 * RECORD) == got.written
    assert got.buffer(21 * RECORD)[20 * RECORD :] == bytes(RECORD), "and nothing is behind them"


def test_a_buffer_of_a_page_is_full_after_64_records_and_the_pointer_and_the_syndrome_stay() -> None:
    got = machine(finish(loop(enable(Program(), pages=1), 257 * 100)))
    assert (got.result(0), got.result(1)) == (BUFFER + PAGE, S | 1)
    assert got.machine.ledger()["spe_injected"] == 1
    assert got.buffer(2 * PAGE)[PAGE:] == bytes(PAGE)


def test_a_guest_that_serves_its_buffer_goes_on_where_it_was() -> None:
    """It polls PMBSR_EL1 after a loop that just fills the buffer, twice."""
    p = loop(enable(Program(), pages=1), 257 * 33)
    p.write(sysreg.PMBPTR_EL1, BUFFER).write(sysreg.PMBSR_EL1, 0)
    got = machine(finish(loop(p, 257 * 10, "again")))
    assert got.result(1) == 0
    assert 18 * RECORD <= got.result(0) - BUFFER <= 20 * RECORD


def test_timestamps_are_the_guests_time_and_ascend() -> None:
    got = machine(finish(loop(enable(Program(), controls=E1SPE | TS), 257 * 50)))
    times = [int.from_bytes(record[record.index(0x71, 20) + 1 :][:8], "little") for record in records_of(got.written)]
    assert times == sorted(times)
    assert times[-1] > times[0] > 0


def records_of(data: bytes) -> list[bytes]:
    return [data[at : at + RECORD] for at in range(0, len(data), RECORD)]


def test_an_interval_with_jitter_is_as_long_on_the_average_and_the_same_in_every_run() -> None:
    runs = [machine(finish(loop(enable(Program(), interval=1024 | 1), 100_000))) for _ in range(2)]
    assert runs[0].written == runs[1].written
    # 200,000 operations at 1024 + 0..255 + 1: 173.6 expected, and 5 standard deviations of the sum are 4.
    assert 169 <= len(runs[0].written) // RECORD <= 178


@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 60),
    st.sampled_from([0, 1]),
    st.sampled_from([1, 7, 4096]),
)
@settings(max_examples=25)
def test_how_many_records_the_engine_takes_at_once_makes_no_difference(
    interval: int, pages: int, skipped: int, jitter: int, most: int
) -> None:
    def run() -> Profiled:
        p = enable(Program(), pages=pages, interval=256 * interval | jitter, pointer=BUFFER + skipped * RECORD)
        return machine(finish(loop(p, 20_000)))

    whole = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vspe, "MOST_RECORDS", most)
        pieces = run()
    assert (pieces.written, pieces.result(0), pieces.result(1)) == (whole.written, whole.result(0), whole.result(1))


# ---- barriers -------------------------------------------------------------------------------------------------------


def loaded_after(*barriers: int) -> int:
    """Return the first word of the buffer as a guest finds it that has taken a few samples, behind these barriers."""
    p = loop(enable(Program()), 257 * 2)(*barriers).mov(9, BUFFER)(0xF940_0123)  # ldr x3, [x9]
    return machine(finish(p.mov(9, RESULTS)(str_(3, 9, 16)))).result(2)


def test_records_wait_in_the_unit_until_psb_csync() -> None:
    assert loaded_after(DSB_SY, ISB) == 0
    assert loaded_after(PSB_CSYNC, DSB_SY) != 0


# ---- bad buffers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pointer", "limit", "ec", "status"),
    [
        (BUFFER, BUFFER - PAGE, 0x00, 1),  # the limit is below the pointer
        (BUFFER, BUFFER, 0x00, 1),  # no bytes
        (BUFFER, 0, 0x00, 1),  # the limit is at the end of the address space, as an address of 0
        ((1 << 64) - PAGE, 0, 0x00, 1),
        (BUFFER + 8, BUFFER + PAGE, 0x24, 0x21),  # unaligned
        (0x1000, 0x3000, 0x24, 0x10),  # no memory: an external abort
        (memmap.RAM_BASE + MEMORY, memmap.RAM_BASE + MEMORY + PAGE, 0x24, 0x10),
    ],
)
def test_a_buffer_that_cannot_be_written_ends_in_a_management_event_and_nothing_is_written(
    pointer: int, limit: int, ec: int, status: int
) -> None:
    p = Program().write(sysreg.PMBPTR_EL1, pointer).write(sysreg.PMBLIMITR_EL1, limit | E)
    p.write(sysreg.PMSIRR_EL1, 256).write(sysreg.PMSICR_EL1, 0).write(sysreg.PMSCR_EL1, E1SPE)(ISB)
    got = machine(finish(loop(p, 1000)))
    assert got.result(0) == pointer
    assert got.result(1) == ec << 26 | S | status
    assert got.written == b""


def test_a_buffer_that_runs_out_of_memory_faults_at_the_first_record_beyond_it() -> None:
    end = memmap.RAM_BASE + MEMORY
    p = Program().write(sysreg.PMBPTR_EL1, end - 2 * RECORD).write(sysreg.PMBLIMITR_EL1, end + PAGE | E)
    p.write(sysreg.PMSIRR_EL1, 256).write(sysreg.PMSICR_EL1, 0).write(sysreg.PMSCR_EL1, E1SPE)(ISB)
    got = machine(finish(loop(p, 2000)))
    assert (got.result(0), got.result(1)) == (end, 0x24 << 26 | S | 0x10)
    assert len(got.written) == 2 * RECORD


def test_a_buffer_larger_than_the_vm_may_have_is_refused_and_the_guest_is_told() -> None:
    got = machine(finish(loop(enable(Program(), pages=16), 1000)), largest=8 * PAGE)
    assert got.result(1) == 0x1F << 26 | S
    assert got.written == b""
    fits = machine(finish(loop(enable(Program(), pages=8), 1000)), largest=8 * PAGE)
    assert fits.result(1) == 0
    assert fits.written != b""


def test_an_unpinned_buffer_faults_at_stage_2_once_a_page_and_the_guest_sees_none_of_it() -> None:
    pinned, unpinned = (machine(finish(loop(enable(Program()), 257 * 80)), pinned=pinned) for pinned in (True, False))
    assert len(pinned.written) == 160 * RECORD
    assert unpinned.machine.ledger()["spe_stage2"] == 3  # 160 records are two pages and a half
    assert unpinned.result(1) == 0
    assert 160 - 3 * 5 <= len(unpinned.written) // RECORD <= 160 - 3
    assert pinned.machine.ledger()["spe_stage2"] == 0


# ---- anything -------------------------------------------------------------------------------------------------------

WRITABLE = sorted({*sysreg.SPE_KEYS} - {sysreg.PMSIDR_EL1, sysreg.PMBIDR_EL1})
VALUES = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 2, 3, E | BUFFER + PAGE, E | 4 | BUFFER, BUFFER, BUFFER + PAGE - RECORD, 256, 257, S]),
)


@given(st.lists(st.tuples(st.sampled_from(WRITABLE), VALUES, st.integers(0, 600)), max_size=12))
@settings(max_examples=60)
def test_whatever_a_guest_writes_it_goes_on_and_only_its_memory_is_written(
    writes: Iterable[tuple[int, int, int]],
) -> None:
    p = Program()
    for number, (key, value, turns) in enumerate(writes):
        p.write(key, value)
        if turns:
            loop(p, turns, f"loop{number}")
    got = machine(p.psci(PSCI_SYSTEM_OFF))
    world = got.machine._kvm.places[0].world
    assert world.host.cpus[0].spu.misplaced == 0
