"""Guests that break every rule: the engine survives, and the guest gets what the architecture gives it."""

import random
import time

import pytest

from board.engine_support import assemble, guest, needs_assembler, words
from pmuvisor.board.engine import RAM_BASE, Engine, GuestMemory, Lane, MemoryBoundsError, Stop

NOP, WFI, HERE = 0xD503201F, 0xD503207F, 0x14000000
VECTORS = RAM_BASE + 0x800
SYNC_SAME = 0x200
ESR_EL1, ELR_EL1, FAR_EL1, VBAR_EL1 = (3, 0, 5, 2, 0), (3, 0, 4, 0, 1), (3, 0, 6, 0, 0), (3, 0, 12, 0, 0)
SCTLR_EL1, TTBR0_EL1, TCR_EL1, MAIR_EL1 = (3, 0, 1, 0, 0), (3, 0, 2, 0, 0), (3, 0, 2, 0, 2), (3, 0, 10, 2, 0)
DEVICE = 0x0900_0000
TABLE = RAM_BASE + 0x40_0000
TCR = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32  # 39-bit addresses, 4K granule, TTBR0 only
BLOCK = 1 | 3 << 8 | 1 << 10
"""A 1 GB block descriptor: valid, shareable, accessed, EL1 only, writable."""


def write_word64(ram: GuestMemory, address: int, value: int) -> None:
    ram.write(address, value.to_bytes(8, "little"))


def with_tables(code: bytes, entries: dict[int, int], ttbr0: int = TABLE) -> Engine:
    """A guest with the MMU on; `entries` of the first-level table, each for 1 GB."""
    engine = guest(code)
    engine.ram.write(VECTORS, words(WFI, HERE, *[NOP] * 30) * 16)
    engine.write_register(*VBAR_EL1, VECTORS)
    for index, descriptor in entries.items():
        write_word64(engine.ram, TABLE + 8 * index, descriptor)
    engine.write_register(*TTBR0_EL1, ttbr0)
    engine.write_register(*TCR_EL1, TCR)
    engine.write_register(*MAIR_EL1, 0xFF)
    engine.write_register(*SCTLR_EL1, engine.read_register(*SCTLR_EL1) | 1)
    engine.flush_tlb()
    return engine


def test_the_guests_own_tables_translate() -> None:
    # ldr x2,[x1] through an alias of RAM at 2 GB; str x2,[sp]
    engine = with_tables(words(0xF9400022, 0xF90003E2, WFI), {1: RAM_BASE | BLOCK, 2: RAM_BASE | BLOCK})
    write_word64(engine.ram, RAM_BASE + 0x1000, 0xCAFE)
    engine.set_x(1, 0x8000_1000)
    assert engine.run(100) is Stop.WFI
    assert (engine.get_x(2), engine.total) == (0xCAFE, 3)


@pytest.mark.parametrize(
    ("address", "code", "esr"),
    [
        (0xC000_1238, 0xF9400022, 0x25 << 26 | 1 << 25 | 0x05),  # load, level 1 translation fault
        (0xC000_1238, 0xF9000022, 0x25 << 26 | 1 << 25 | 0x45),
        (0x0000_1238, 0xF9000022, 0x25 << 26 | 1 << 25 | 0x4D),  # read-only: level 1 permission fault
        (0xC000_2000, 0xD61F0020, 0x21 << 26 | 1 << 25 | 0x05),
    ],
)
def test_translation_faults_carry_address_and_status(address: int, code: int, esr: int) -> None:
    engine = with_tables(words(NOP, code, NOP), {0: RAM_BASE | BLOCK | 2 << 6, 1: RAM_BASE | BLOCK})
    engine.set_x(1, address)
    assert engine.run(100) is Stop.WFI
    assert engine.read_register(*ESR_EL1) == esr
    assert engine.read_register(*FAR_EL1) == address


def test_an_alignment_fault_is_a_data_abort() -> None:
    engine = with_tables(words(NOP, 0xC85F7C22, NOP), {1: RAM_BASE | BLOCK})  # ldxr x2,[x1]
    engine.set_x(1, RAM_BASE + 0x1001)
    assert engine.run(100) is Stop.WFI
    assert engine.read_register(*ESR_EL1) in (0x25 << 26 | 1 << 25 | 0x21,)
    assert engine.read_register(*FAR_EL1) == RAM_BASE + 0x1001


def test_a_table_in_unmapped_memory_is_an_external_abort_on_the_walk() -> None:
    engine = with_tables(words(NOP), {}, ttbr0=0x10_0000_0000)
    assert engine.run(1 << 30) is Stop.STUCK
    assert engine.read_register(*ESR_EL1) >> 26 == 0x21
    assert engine.total == 0


def test_a_table_in_a_device_is_read_from_the_device() -> None:
    engine = guest(words(0xF9400022, NOP, WFI))
    reads: list[int] = []

    def read(offset: int, size: int) -> int:
        reads.append(offset)
        value = {8: RAM_BASE | BLOCK, 16: RAM_BASE | BLOCK}.get(offset & ~7, 0)
        return value >> 8 * (offset & 7) & (1 << 8 * size) - 1

    engine.map_mmio(DEVICE, 0x1000, read, lambda offset, size, value: None)
    engine.write_register(*TTBR0_EL1, DEVICE)
    engine.write_register(*TCR_EL1, TCR)
    engine.write_register(*SCTLR_EL1, engine.read_register(*SCTLR_EL1) | 1)
    engine.flush_tlb()
    engine.set_x(1, 0x8000_0000)
    assert engine.run(100) is Stop.WFI
    assert engine.get_x(2) == 0xD503201F_F9400022
    assert engine.total == 3
    assert reads


@needs_assembler
def test_external_aborts_do_not_depend_on_the_access() -> None:
    accesses = ("ldr x2,[x1]", "ldrb w2,[x1]", "ldp x2,x3,[x1]", "ld1 {v0.16b},[x1]", "ldxr x2,[x1]", "ldar x2,[x1]",
                "str x2,[x1]", "strh w2,[x1]", "stp x2,x3,[x1]", "st1 {v0.16b},[x1]", "stlr x2,[x1]", "dc zva, x1",
                "ldr x2,[x1,#8]!", "str x2,[x1],#8")  # fmt: skip
    for access in accesses:
        engine = guest(assemble(f"nop\n{access}\nnop\nb .\n"), detail=True)
        engine.write_register(3, 0, 1, 0, 2, 3 << 20)
        engine.ram.write(VECTORS + SYNC_SAME, words(WFI))
        engine.write_register(*VBAR_EL1, VECTORS)
        engine.set_x(1, 0x1_0000_0000)
        assert engine.run(100) is Stop.WFI, access
        assert engine.read_register(*ESR_EL1) & ~(1 << 6) == 0x25 << 26 | 1 << 25 | 0x410, access
        assert engine.read_register(*ELR_EL1) == RAM_BASE + 4, access
        assert engine.get_x(1) == 0x1_0000_0000, access
        assert engine.total == 2, access


def test_ram_that_ends_in_the_middle_of_an_access_aborts() -> None:
    engine = guest(words(0xF9400022, WFI))
    engine.ram.write(VECTORS + SYNC_SAME, words(WFI))
    engine.write_register(*VBAR_EL1, VECTORS)
    engine.set_x(1, RAM_BASE + engine.ram.size - 4)
    assert engine.run(100) is Stop.WFI
    assert engine.read_register(*ESR_EL1) >> 26 == 0x25


def test_running_off_the_end_of_ram_aborts_the_fetch() -> None:
    engine = guest(words(NOP))
    engine.ram.write(VECTORS + SYNC_SAME, words(WFI))
    engine.write_register(*VBAR_EL1, VECTORS)
    end = RAM_BASE + engine.ram.size
    engine.ram.write(end - 8, words(NOP, NOP))
    engine.pc = end - 8
    assert engine.run(100) is Stop.WFI
    assert engine.read_register(*ESR_EL1) == 0x21 << 26 | 1 << 25 | 0x10
    assert engine.read_register(*ELR_EL1) == engine.read_register(*FAR_EL1) == end
    assert engine.total == 3


@pytest.mark.parametrize("seed", range(3))
def test_garbage_code_survives(seed: int) -> None:
    chooser = random.Random(seed)
    engine = guest(words(NOP))
    engine.map_mmio(DEVICE, 0x1000, lambda offset, size: chooser.getrandbits(32), lambda *access: None)
    for _ in range(150):
        engine.start(RAM_BASE)
        engine.ram.write(RAM_BASE, chooser.randbytes(4096))
        engine.invalidate_code()
        engine.write_register(3, 0, 1, 0, 2, 3 << 20)
        engine.write_register(*VBAR_EL1, RAM_BASE + 0x1000 * chooser.randrange(2))
        for n in range(31):
            engine.set_x(n, chooser.choice((RAM_BASE + chooser.randrange(1 << 20), DEVICE, chooser.getrandbits(64))))
        limit = engine.total + 2000
        while engine.run(limit) in (Stop.WFI, Stop.HVC, Stop.SMC):
            pass
        assert engine.total <= limit
        assert not engine.failure


def test_a_guest_that_only_computes_returns_to_python_in_time() -> None:
    """Ctrl-C and time limits are seen only between two slices."""
    engine = guest(words(NOP, 0x17FFFFFF))
    slices = []
    original = engine._slice

    def timed() -> int:
        begin = time.monotonic()
        error = original()
        slices.append(time.monotonic() - begin)
        return error

    engine._slice = timed  # type: ignore[method-assign]
    assert engine.run(60_000_000) is Stop.LIMIT
    assert len(slices) > 2
    assert sorted(slices)[len(slices) // 2] < 0.2


@needs_assembler
def test_code_that_rewrites_itself_runs_as_written() -> None:
    source = """
        adr  x1, 1f
        ldr  w2, =0x91000400    // add x0,x0,#1
        ldr  w3, =0x91000800    // add x0,x0,#2
        mov  x4, #50
    2:  str  w2, [x1]
        bl   3f
        str  w3, [x1]
        bl   3f
        subs x4, x4, #1
        b.ne 2b
        wfi
    3:  nop
    1:  nop
        ret
    """
    engine = guest(assemble(source), detail=True)
    assert engine.run(1 << 30) is Stop.WFI
    assert engine.get_x(0) == 150
    lanes = engine.counts()[1]
    assert lanes[Lane.INST] == 4 + 50 * 12 + 1
    assert lanes[Lane.ST] == 100
    assert lanes[Lane.BR_RETURN] == 100


@needs_assembler
@pytest.mark.parametrize("clean", ["ic ivau, x1", "ic ialluis"])
def test_code_rewritten_through_another_address_runs_as_written_once_cleaned(clean: str) -> None:
    source = f"""
        adr  x1, 1f
        mov  x5, #0x40000000
        add  x1, x1, x5         // the alias at 2 GB
        ldr  w2, =0x91000400    // add x0,x0,#1
        ldr  w3, =0x91000800    // add x0,x0,#2
        mov  x4, #50
    2:  str  w2, [x1]
        {clean}
        isb
        bl   1f
        str  w3, [x1]
        {clean}
        isb
        bl   1f
        subs x4, x4, #1
        b.ne 2b
        wfi
    1:  nop
        ret
    """
    engine = with_tables(assemble(source), {1: RAM_BASE | BLOCK, 2: RAM_BASE | BLOCK})
    assert engine.run(1 << 30) is Stop.WFI
    assert engine.get_x(0) == 150


@pytest.mark.parametrize("address", [1 << 44, 0xFFFF_8000_0000_0000])
def test_an_address_that_is_not_physical_is_a_size_fault_without_mmu(address: int) -> None:
    engine = guest(words(NOP, 0xF9000022, WFI))  # str x2,[x1]
    engine.ram.write(VECTORS + SYNC_SAME, words(WFI))
    engine.write_register(*VBAR_EL1, VECTORS)
    engine.set_x(1, address)
    assert engine.run(100) is Stop.WFI
    assert engine.read_register(*ESR_EL1) == 0x25 << 26 | 1 << 25 | 1 << 6
    assert engine.read_register(*ELR_EL1) == RAM_BASE + 4


@pytest.mark.parametrize("physical", [1 << 44, 0x7FFF << 33])
@pytest.mark.parametrize(("access", "write"), [(0xF9400022, 0), (0xF9000022, 1), (0xA9000822, 1)])
def test_a_table_that_names_no_physical_address_aborts_the_access(physical: int, access: int, write: int) -> None:
    code = words(NOP, access, WFI)
    engine = with_tables(code, {1: RAM_BASE | BLOCK, 3: physical | BLOCK})
    engine.set_x(1, 0xC000_1000)
    assert engine.run(100) is Stop.WFI
    assert engine.read_register(*ESR_EL1) == 0x25 << 26 | 1 << 25 | 1 << 10 | write << 6 | 0x10
    assert engine.read_register(*ELR_EL1) == RAM_BASE + 4
    assert engine.total == 2


def test_running_code_beyond_the_physical_addresses_survives() -> None:
    engine = with_tables(words(0xD61F0020), {1: RAM_BASE | BLOCK, 3: 1 << 45 | BLOCK})  # br x1
    engine.set_x(1, 0xC000_1000)
    assert engine.run(100) in (Stop.WFI, Stop.STUCK)


@needs_assembler
def test_code_that_rewrites_itself_is_counted_as_it_is_now() -> None:
    source = """
        adr  x1, 1f
        ldr  w2, =0xf9400020    // ldr x0,[x1]
        ldr  w3, =0xd503201f    // nop
        mov  x4, #50
    2:  str  w2, [x1]
        bl   1f
        str  w3, [x1]
        bl   1f
        subs x4, x4, #1
        b.ne 2b
        wfi
    1:  nop
        ret
    """
    engine = guest(assemble(source), detail=True)
    assert engine.run(1 << 30) is Stop.WFI
    assert engine.counts()[1, Lane.LD] == 2 + 50


def test_memory_outside_of_ram_is_named() -> None:
    ram = GuestMemory(8192)
    for address, length in ((RAM_BASE - 1, 1), (RAM_BASE + 8192, 1), (RAM_BASE + 8190, 3), (0, 4)):
        with pytest.raises(MemoryBoundsError, match="outside of RAM"):
            ram.read(address, length)
        with pytest.raises(MemoryBoundsError):
            ram.write(address, b"x" * length)
    ram.write(RAM_BASE + 8191, b"x")
    assert ram.read(RAM_BASE + 8190, 2) == b"\0x"
    with pytest.raises(ValueError, match="4096-byte pages"):
        GuestMemory(5000)


def test_memory_of_many_gigabytes_costs_nothing_until_used() -> None:
    ram = GuestMemory(6 << 30)
    ram.write(RAM_BASE, words(0xB9000022, WFI))  # str w2,[x1]
    engine = Engine(ram, lambda key, write, value: 0)
    engine.set_x(1, RAM_BASE + (6 << 30) - 4)
    engine.set_x(2, 0x1234)
    assert engine.run(10) is Stop.WFI
    assert ram.read(RAM_BASE + (6 << 30) - 4, 4) == words(0x1234)
