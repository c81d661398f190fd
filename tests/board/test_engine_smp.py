"""Several engines over one memory."""

import pytest

from board.engine_support import RAM_SIZE, assemble, needs_assembler, no_sysreg, words
from pmuvisor.arch.sysreg import encode
from pmuvisor.board.engine import RAM_BASE, Engine, GuestMemory, Lane, Stop

NOP, WFI, HERE = 0xD503201F, 0xD503207F, 0x14000000
SHARED = RAM_BASE + 0x10_0000
ROUTINE = RAM_BASE + 0x1000
RET = 0xD65F03C0


def engines(code: bytes, count: int) -> list[Engine]:
    ram = GuestMemory(RAM_SIZE)
    ram.write(RAM_BASE, code)
    return [Engine(ram, no_sysreg) for _ in range(count)]


COUNTER = """
    ldr   x1, =0x40100000
1:  ldxr  x3, [x1]
    add   x3, x3, #1
    stxr  w4, x3, [x1]
    cbnz  w4, 1b
    subs  x0, x0, #1
    b.ne  1b
    wfi
"""


@needs_assembler
def test_exclusives_count_exactly_over_four_engines() -> None:
    cpus, rounds = engines(assemble(COUNTER), 4), 3000
    for cpu in cpus:
        cpu.start(RAM_BASE, rounds)
    running, turn = list(cpus), 0
    while running:
        for i, cpu in enumerate(list(running)):
            turn += 1
            if cpu.run(cpu.total + 101 + 37 * i + turn % 5) is Stop.WFI:
                running.remove(cpu)
    assert cpus[0].ram.read(SHARED, 8) == (4 * rounds).to_bytes(8, "little")


@needs_assembler
def test_a_store_exclusive_fails_after_another_engine_wrote() -> None:
    code = assemble("ldr x1, =0x40100000\nldxr x3, [x1]\nadd x3, x3, #1\nstxr w4, x3, [x1]\nwfi\n")
    first, second = engines(code, 2)
    first.run(2)
    assert second.run(100) is Stop.WFI
    assert first.run(100) is Stop.WFI
    assert (first.get_x(4), second.get_x(4)) == (1, 0)
    assert first.ram.read(SHARED, 8) == (1).to_bytes(8, "little")


@needs_assembler
def test_a_spin_lock_with_wfe_makes_progress() -> None:
    source = """
        ldr   x1, =0x40100000
        sevl
    1:  wfe
        ldaxr w3, [x1]
        cbnz  w3, 1b
        mov   w4, #1
        stxr  w5, w4, [x1]
        cbnz  w5, 1b
        ldr   x6, [x1, #8]
        add   x6, x6, #1
        str   x6, [x1, #8]
        stlr  wzr, [x1]
        subs  x0, x0, #1
        b.ne  1b
        wfi
    """
    cpus = engines(assemble(source), 3)
    for cpu in cpus:
        cpu.start(RAM_BASE, 200)
    running = list(cpus)
    for _ in range(2000):
        running = [cpu for cpu in running if cpu.run(cpu.total + 113) is not Stop.WFI]
    assert not running
    assert cpus[0].ram.read(SHARED + 8, 8) == (600).to_bytes(8, "little")


@pytest.mark.parametrize("named_pages", [True, False])
@needs_assembler
def test_code_written_by_another_engine_runs_once_it_was_told(named_pages: bool) -> None:
    source = """
        ldr   x1, =0x40001000
        str   w2, [x1]
        dc    cvau, x1
        dsb   ish
        ic    ivau, x1
        dsb   ish
        isb
        wfi
    """
    writer, reader = engines(assemble(source), 2)
    writer.ram.write(ROUTINE, words(0xD2800020, RET))  # mov x0,#1; ret
    writer.ram.write(RAM_BASE + 0x800, words(0x94000200, WFI))  # bl ROUTINE; wfi
    for expected in (1, 2, 3):
        reader.start(RAM_BASE + 0x800)
        assert reader.run(reader.total + 100) is Stop.WFI
        assert reader.get_x(0) == expected
        writer.start(RAM_BASE)
        writer.set_x(2, 0xD2800000 | (expected + 1) << 5)
        assert writer.run(writer.total + 100) is Stop.WFI
        assert writer.code_changed
        pages = writer.take_code_changes()
        assert pages == [ROUTINE]
        assert not writer.code_changed
        reader.invalidate_code(pages if named_pages else None)


def test_ic_iallu_alone_brings_in_what_another_engine_wrote() -> None:
    ic_iallu = 0xD5000000 | encode(1, 0, 7, 5, 0) << 5 | 31
    (cpu,) = engines(words(0x94000400, ic_iallu, 0x940003FE, WFI), 1)  # bl ROUTINE; ic iallu; bl ROUTINE; wfi
    cpu.ram.write(ROUTINE, words(0x91000400, RET))  # add x0,x0,#1; ret
    assert cpu.run(4) is Stop.LIMIT
    cpu.ram.write(ROUTINE, words(0x91004000, RET))  # add x0,x0,#16
    assert cpu.run(100) is Stop.WFI
    assert cpu.get_x(0) == 17
    assert cpu.take_code_changes() == []


def test_ic_for_everybody_names_all_pages() -> None:
    ic_ialluis = 0xD5000000 | encode(1, 0, 7, 1, 0) << 5 | 31
    (cpu,) = engines(words(ic_ialluis, WFI), 1)
    assert cpu.run(100) is Stop.WFI
    assert cpu.code_changed
    assert cpu.take_code_changes() is None


def test_tlbi_is_marked_only_when_it_concerns_others() -> None:
    vmalle1, vmalle1is = (0xD5000000 | encode(1, 0, 8, crm, 0) << 5 | 31 for crm in (7, 3))
    (cpu,) = engines(words(vmalle1, WFI, vmalle1is, WFI), 1)
    cpu.run(100)
    assert not cpu.tlb_changed
    cpu.run(100)
    assert cpu.tlb_changed
    cpu.tlb_changed = False
    assert not cpu.tlb_changed


TABLE = RAM_BASE + 0x40_0000
BLOCK = 1 | 3 << 8 | 1 << 10


def test_a_changed_table_is_seen_after_flush_tlb_and_counted_as_it_leads_now() -> None:
    cpu, other = engines(words(HERE), 2)
    for cpu_ in (cpu, other):
        cpu_.write_register(3, 0, 2, 0, 0, TABLE)
        cpu_.write_register(3, 0, 2, 0, 2, 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32)
    ram = cpu.ram
    # Two pages of code, either of which is at 2 GB + 0x1000: one loads, one does not.
    ram.write(RAM_BASE + 0x20_1000, words(0xF94003E2, WFI))
    ram.write(RAM_BASE + 0x40_1000, words(NOP, WFI))
    ram.write(TABLE + 8, (RAM_BASE | BLOCK).to_bytes(8, "little"))
    ram.write(TABLE + 16, ((TABLE + 0x10_0000) | 3).to_bytes(8, "little"))
    for turn, target in enumerate((0x20_0000, 0x40_0000, 0x20_0000)):
        ram.write(TABLE + 0x10_0000, ((RAM_BASE + target) | BLOCK).to_bytes(8, "little"))
        cpu.start(0x8000_1000)
        cpu.write_register(3, 0, 2, 0, 0, TABLE)
        cpu.write_register(3, 0, 2, 0, 2, 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32)
        cpu.write_register(3, 0, 1, 0, 0, cpu.read_register(3, 0, 1, 0, 0) | 1)
        cpu.flush_tlb()
        cpu.sp = SHARED
        cpu.detail = True
        assert cpu.run(cpu.total + 100) is Stop.WFI
        assert cpu.counts()[1, Lane.LD] == (1, 1, 2)[turn]


def test_engines_do_not_share_registers_or_counts() -> None:
    first, second = engines(words(0x91000400, 0x17FFFFFF), 2)  # 1: add x0,x0,#1; b 1b
    first.run(100)
    second.run(40)
    first.run(200)
    assert (first.get_x(0), second.get_x(0)) == (100, 20)
    assert (first.total, second.total) == (200, 40)
