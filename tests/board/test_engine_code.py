"""Code that is written while it runs, with stores to executable memory on Unicorn's fast path and without."""

import random

import pytest

from board.engine_support import RAM_SIZE, assemble, guest, needs_assembler, no_sysreg, registers, words
from pmuvisor.board import engine_fill
from pmuvisor.board.engine import RAM_BASE, Engine, GuestMemory, Lane, Stop

pytestmark = needs_assembler

ROUTINE = RAM_BASE + 0x1_0000
TABLE = RAM_BASE + 0x40_0000
RWX = 1 | 3 << 8 | 1 << 10
NO_EXECUTE, EL0 = 3 << 53, 1 << 6
TCR = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32
RET, WFI = 0xD65F03C0, 0xD503207F


def mov(n: int) -> int:
    """MOV X0, #n."""
    return 0xD280_0000 | n << 5


@pytest.fixture(params=[True, False], ids=["direct", "plain"])
def direct(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether stores to pages that are not code are direct; what a guest sees must not depend on it."""
    if not request.param:
        monkeypatch.setattr(engine_fill, "tlb_layout", lambda: None)
    return bool(request.param)


def switch_mmu_on(engine: Engine, tables: dict[int, int]) -> None:
    """Give an engine a first-level table; `tables` from the number of the GB to the entry."""
    for gb, entry in tables.items():
        engine.ram.write(TABLE + 8 * gb, entry.to_bytes(8, "little"))
    engine.write_register(3, 0, 2, 0, 0, TABLE)
    engine.write_register(3, 0, 2, 0, 2, TCR)
    engine.write_register(3, 0, 1, 0, 0, engine.read_register(3, 0, 1, 0, 0) | 1)
    engine.flush_tlb()


def test_this_build_of_unicorn_is_understood() -> None:
    assert engine_fill.tlb_layout() is not None


# Each patches the instruction at x1 to w2; x3 is RET, and x1 begins a page.
PATCHES = {
    "word": "str w2, [x1]",
    "bytes": "".join(f"lsr w5, w2, #{8 * n}\n strb w5, [x1, #{n}]\n" for n in range(4)),
    "pair": "stp w2, w3, [x1]",
    "pair over the boundary": "stp w3, w2, [x1, #-4]",
    "doubleword over the boundary": "orr x5, x3, x2, lsl #32\n sub x6, x1, #4\n str x5, [x6]",
    "unaligned over the boundary": "lsl x5, x2, #8\n sub x6, x1, #1\n str x5, [x6]\n str w3, [x1, #4]",
    "vector": "orr x5, x2, x3, lsl #32\n fmov d0, x5\n str d0, [x1]",
    "structure": "dup v0.4s, w2\n dup v1.4s, w3\n st2 {v0.4s, v1.4s}, [x1]",
    "vector over the boundary": "dup v0.4s, w2\n sub x6, x1, #12\n str q0, [x6]",
    "exclusive": "1: ldxr w5, [x1]\n stxr w6, w2, [x1]\n cbnz w6, 1b",
    "exclusive pair": "1: ldxp w5, w7, [x1]\n stxp w6, w2, w3, [x1]\n cbnz w6, 1b",
    "release": "stlr w2, [x1]",
    "zeroed first": "dc zva, x1\n stp w2, w3, [x1]",
}

PATCHED = """
    mrs   x9, cpacr_el1
    orr   x9, x9, #(3 << 20)
    msr   cpacr_el1, x9
    mov   x10, x0
    ldr   w3, =0xd65f03c0
    mov   x19, #0
    mov   x20, #40
again:
    ldr   w2, =0xd2800000
    and   x5, x20, #15
    add   w2, w2, w5, lsl #5
    tbz   x20, #0, patch
    ldr   w2, =0xf9400140
patch:
    {patch}
    str   w3, [x1, #4]
    sub   x6, x1, #64
    str   x20, [x6]
    str   x20, [x1, #2048]
    blr   x1
    add   x19, x0, x19, lsl #1
    subs  x20, x20, #1
    b.ne  again
    wfi
"""


def expected_sum() -> int:
    """What `PATCHED` computes: odd rounds load 7, even ones move their number."""
    total = 0
    for n in range(40, 0, -1):
        total = 2 * total + (7 if n & 1 else n & 15)
    return total & (1 << 64) - 1


@pytest.mark.parametrize("mmu", [False, True])
@pytest.mark.parametrize("patch", PATCHES)
def test_code_that_was_just_stored_runs_and_is_counted(patch: str, mmu: bool, direct: bool) -> None:
    engine = guest(assemble(PATCHED.format(patch=PATCHES[patch])), detail=True)
    engine.ram.write(RAM_BASE + 0x9000, (7).to_bytes(8, "little"))
    if mmu:
        switch_mmu_on(engine, {1: RAM_BASE | RWX})
    engine.set_x(0, RAM_BASE + 0x9000)
    engine.set_x(1, ROUTINE)
    assert engine.run(100_000) is Stop.WFI
    assert engine.get_x(19) == expected_sum()
    assert engine.counts()[1, Lane.BR_RETURN] == 40
    literals = 1 + 40 + 20  # RET; in every round the MOV; in the odd ones the LDR
    exclusives = 40 if "exclusive" in patch else 0
    assert engine.counts()[1, Lane.LD] == literals + 20 + exclusives


def test_data_that_becomes_code_and_data_again(direct: bool) -> None:
    source = """
        mov x19, #0
    again:
        mov x2, #512
    1:  sub x2, x2, #1
        str x2, [x1, x2, lsl #3]
        cbnz x2, 1b
        add x5, x1, #2040
        stp w3, w4, [x5]
        blr x5
        add x19, x19, x0
        add w3, w3, #32
        subs x20, x20, #1
        b.ne again
        wfi
    """
    engine = guest(assemble(source))
    for register, value in ((1, ROUTINE), (3, mov(5)), (4, RET), (20, 20)):
        engine.set_x(register, value)
    assert engine.run(1_000_000) is Stop.WFI
    assert engine.get_x(19) == sum(range(5, 25))


def test_a_page_that_was_data_first_is_watched_through_all_its_addresses(direct: bool) -> None:
    """Stores through an executable alias are seen at once; through another, after IC."""
    source = """
        str w2, [x1, #8]
        str w2, [x11, #8]
        str w2, [x12, #8]
        stp w2, w3, [x1]
        blr x1
        mov x20, x0
        add w2, w2, #32
        str w2, [x11]
        blr x1
        mov x21, x0
        add w2, w2, #32
        str w2, [x12]
        ic  ivau, x1
        dsb ish
        isb
        blr x1
        mov x22, x0
        add w2, w2, #32
        str w2, [x11]
        blr x11
        mov x23, x0
        add w2, w2, #32
        str w2, [x1]
        blr x11
        blr x1
        mov x24, x0
        wfi
    """
    engine = guest(assemble(source))
    switch_mmu_on(engine, {1: RAM_BASE | RWX, 2: RAM_BASE | RWX, 3: RAM_BASE | RWX | NO_EXECUTE})
    values = {1: ROUTINE, 11: ROUTINE + (1 << 30), 12: ROUTINE + (2 << 30), 2: mov(1), 3: RET}
    for register, value in values.items():
        engine.set_x(register, value)
    assert engine.run(1000) is Stop.WFI
    assert [engine.get_x(n) for n in range(20, 25)] == [1, 2, 3, 4, 5]


def test_code_of_el0_that_el1_stored(direct: bool) -> None:
    """The page is executable at EL0 only: EL1's stores and EL0's fetches go by different translations."""
    source = """
        mov   x19, #0
        adr   x9, vectors
        msr   vbar_el1, x9
        ldr   w3, =0xd4000001
    again:
        stp   w2, w3, [x1]
        ldr   x5, [x1, #2048]
        ic    ivau, x1
        isb
        msr   elr_el1, x1
        msr   spsr_el1, xzr
        eret
        .balign 2048
    vectors:
        .skip 0x400
        add   x19, x0, x19, lsl #1
        add   w2, w2, #32
        subs  x20, x20, #1
        b.ne  again
        wfi
    """
    engine = guest(assemble(source))
    switch_mmu_on(engine, {1: RAM_BASE | RWX, 2: RAM_BASE | RWX | EL0})
    for register, value in ((1, ROUTINE + (1 << 30)), (2, mov(1)), (20, 10)):
        engine.set_x(register, value)
    assert engine.run(1000) is Stop.WFI
    assert engine.get_x(19) == sum(n << 10 - n for n in range(1, 11))


def test_a_read_only_address_of_a_page_is_no_way_around(direct: bool) -> None:
    """Loaded from and executed where it is read-only, stored to where it is not."""
    source = """
        ldr x5, [x11]
        stp w2, w3, [x1]
        blr x11
        mov x20, x0
        add w2, w2, #32
        stp w2, w3, [x1]
        str w2, [x1, #64]
        blr x11
        mov x21, x0
        wfi
    """
    engine = guest(assemble(source))
    switch_mmu_on(engine, {1: RAM_BASE | RWX, 2: RAM_BASE | RWX | 1 << 7})
    for register, value in ((1, ROUTINE), (11, ROUTINE + (1 << 30)), (2, mov(1)), (3, RET)):
        engine.set_x(register, value)
    assert engine.run(1000) is Stop.WFI
    assert (engine.get_x(20), engine.get_x(21)) == (1, 2)


def test_code_stored_by_another_engine_runs_once_it_was_told(direct: bool) -> None:
    ram = GuestMemory(RAM_SIZE)
    ram.write(RAM_BASE, assemble("str w2, [x1]\n str w2, [x1, #64]\n ic ivau, x1\n dsb ish\n blr x1\n wfi\n"))
    ram.write(RAM_BASE + 0x800, assemble("str x5, [x1, #128]\n blr x1\n wfi\n", RAM_BASE + 0x800))
    ram.write(ROUTINE, words(mov(0), RET))
    writer, reader = Engine(ram, no_sysreg), Engine(ram, no_sysreg)
    for n in range(1, 6):
        writer.start(RAM_BASE)
        writer.set_x(1, ROUTINE)
        writer.set_x(2, mov(n))
        assert writer.run(writer.total + 100) is Stop.WFI
        reader.invalidate_code(writer.take_code_changes())
        reader.start(RAM_BASE + 0x800)
        reader.set_x(1, ROUTINE)
        assert reader.run(reader.total + 100) is Stop.WFI
        assert (writer.get_x(0), reader.get_x(0)) == (n, n)


PAGES, SLOTS = 4, 3
ALIASES = (0, 1 << 30, 2 << 30)
STORES = ("str w2, [x1]", "stp w2, w3, [x1]", "stp w3, w2, [x1, #-4]", "strb w2, [x1]", "stlr w2, [x1]",
          "orr x5, x2, x3, lsl #32\n str x5, [x1]",
          "sub x6, x1, #2\n lsl x5, x2, #16\n str x5, [x6]\n str w3, [x1, #4]",
          "ldxr w5, [x1]\n stxr w6, w2, [x1]", "dc zva, x1\n stp w2, w3, [x1]")  # fmt: skip


def random_program(rng: random.Random, mmu: bool) -> str:
    """Stores code and data to a few pages, and calls it, in any order; a slot always holds a function."""
    lines = ["ldr w3, =0xd65f03c0", "mov x19, #0", "mov x20, #6", "again:"]
    for step in range(60):
        slot = ROUTINE + 4096 * rng.randrange(PAGES) + rng.choice((0, 64, 4096 - 64))
        alias = rng.choice(ALIASES) if mmu else 0
        kind = rng.randrange(6)
        lines.append(f"ldr x1, ={slot + (alias if kind < 3 or alias != ALIASES[2] else 0):#x}")
        if kind < 3:
            word = rng.choice((mov(rng.randrange(1 << 15)), 0xF9400140, 0x91000400, 0xF9000153))
            lines += [f"ldr w2, ={word:#x}", rng.choice(STORES)]
            if alias == ALIASES[2] or rng.random() < 0.1:  # what is stored where it cannot execute needs IC
                lines += [f"ldr x1, ={slot:#x}", "ic ivau, x1", "sub x6, x1, #4", "ic ivau, x6", "isb"]
        elif kind < 5:
            lines += ["blr x1", "add x19, x0, x19, lsl #1"]
        else:
            lines.append(rng.choice(("str x19, [x1, #16]", "ldr x19, [x1, #16]", "tlbi vmalle1", "str d0, [x1, #24]")))
        lines += ["b 1f", ".ltorg", "1:"] if step % 20 == 19 else []
    return "\n".join([*lines, "subs x20, x20, #1", "b.ne again", "wfi"])


def run_in_pieces(code: bytes, seed: int, mmu: bool) -> list[object]:
    """All that a guest can see, at random moments."""
    engine, rng = guest(code, detail=True), random.Random(seed)
    for page in range(PAGES):
        for slot in (0, 64, 4096 - 64):
            engine.ram.write(ROUTINE + 4096 * page + slot, words(mov(page), RET))
    engine.ram.write(RAM_BASE + 0x800_000 - 16, words(RET) * 4)
    if mmu:
        tables = (RAM_BASE | RWX, RAM_BASE | RWX, RAM_BASE | RWX | NO_EXECUTE)
        switch_mmu_on(engine, dict(enumerate(tables, 1)))
    engine.write_register(3, 0, 1, 0, 2, 3 << 20)
    engine._rebuild_flags(engine._env)
    engine.set_x(10, RAM_BASE + 0x9000)
    seen: list[object] = []
    stop = None
    while stop not in (Stop.WFI, Stop.STUCK, Stop.FAILED) and engine.total < 20_000:
        stop = engine.run(engine.total + rng.choice((1, 7, 50, 400)))
        memory = engine.ram.read(ROUTINE - 4096, 4096 * (PAGES + 2))
        seen.append((stop, registers(engine), engine.counts().tolist(), hash(memory)))
    return seen


@pytest.mark.parametrize("mmu", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_random_code_that_writes_code_runs_the_same_both_ways(
    seed: int, mmu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = assemble(random_program(random.Random(seed), mmu))
    fast = run_in_pieces(code, seed, mmu)
    monkeypatch.setattr(engine_fill, "tlb_layout", lambda: None)
    assert fast == run_in_pieces(code, seed, mmu)
