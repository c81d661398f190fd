"""Sampling: each sample is the instruction that a count of all instructions, one at a time, says it is."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a64 import HVC, SVC, mrs
from board.engine_support import COMPUTE, assemble, guest, needs_assembler, words
from board.spe_programs import ADDRESSING, BRANCHES, DEVICE, LEVELS, SELF_MODIFYING, with_devices
from board.spe_reference import Expected, Operation, Recorder, everything, next_random, split
from pmuvisor.arch.spe_record import Filter
from pmuvisor.arch.sysreg import (
    PMCCNTR_EL0,
    PMSFCR_B,
    PMSFCR_FE,
    PMSFCR_FL,
    PMSFCR_FNE,
    PMSFCR_FT,
    PMSFCR_LD,
    PMSFCR_ST,
)
from pmuvisor.board.engine import RAM_BASE, Action, Engine, EngineFailure, Lane, Stop, Watch
from pmuvisor.board.engine_profile import Profile, Records

EL0, EL1, BOTH = 1, 2, 3
NOP, WFI, HERE, UDF = 0xD503201F, 0xD503207F, 0x14000000, 0
VBAR_EL1 = (3, 0, 12, 0, 0)
PROGRAMS = {
    "addressing": (ADDRESSING, 3),
    "branches": (BRANCHES, 9),
    "levels": (LEVELS, 6),
    "self modifying": (SELF_MODIFYING, 9),
    "compute": (COMPUTE, 1),
}
MOST = 2500
"""Instructions of a program that are looked at."""


@cache
def operations(program: str) -> list[Operation]:
    source, rounds = PROGRAMS[program]
    recorder = Recorder(with_devices(assemble(source), rounds))
    recorder.run(MOST)
    return recorder.operations


def started(program: str) -> Engine:
    source, rounds = PROGRAMS[program]
    return with_devices(assemble(source), rounds)


def check(taken: Records, expected: Expected) -> None:
    """All of a profile's samples at once."""
    assert split(taken.data, taken.sizes) == expected.records
    assert taken.sampled == expected.sampled
    assert taken.rejected == expected.sampled - len(expected.records)
    assert (taken.left, taken.random) == (expected.left, expected.random)


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    made = everything(
        lds=draw(st.integers(0, 1)), align=draw(st.integers(0, 6)), pmsver=draw(st.sampled_from([1, 3, 5]))
    )
    types = st.sampled_from([0, PMSFCR_B, PMSFCR_LD, PMSFCR_ST, PMSFCR_B | PMSFCR_ST])
    made.pmsfcr = draw(types) | draw(st.sampled_from([0, PMSFCR_FT, PMSFCR_FE, PMSFCR_FNE, PMSFCR_FL]))
    made.pmsevfr = draw(st.sampled_from([0, 1 << 6, 1 << 1, 1 << 7]))
    made.pmsnevfr = draw(st.sampled_from([0, 1 << 6]))
    made.pmslatfr = draw(st.integers(0, 8))
    return made


profiles = st.builds(
    Profile,
    els=st.sampled_from([EL0, EL1, BOTH, BOTH]),
    first=st.integers(0, 60) | st.integers(0, 1000),
    period=st.integers(1, 20) | st.integers(1, 1000),
    filter=filters(),
    jitter=st.booleans(),
    random=st.integers(1, 0xFFFF_FFFF),
    total_latency=st.integers(0, 9),
    context=st.booleans(),
    timestamp=st.booleans(),
)


# --- which instructions, and what of them ---------------------------------------------------------------------------


@needs_assembler
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("period", [1, 2, 3, 5, 17, 64, 257, 1000])
def test_every_sample_is_the_instruction_that_the_count_says(program: str, period: int) -> None:
    profile = Profile(BOTH, period, period, everything(), context=True, timestamp=True)
    engine = started(program)
    engine.profile(profile)
    engine.run(len(operations(program)))
    check(engine.take_records(), Expected.of(operations(program), profile))


@needs_assembler
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(PROGRAMS)), profiles, st.lists(st.integers(1, 400), max_size=8))
def test_samples_are_the_same_however_the_run_is_cut_and_whenever_they_are_taken(
    program: str, profile: Profile, cuts: list[int]
) -> None:
    ops = operations(program)
    engine = started(program)
    engine.profile(profile)
    data, sizes, sampled, rejected = b"", tuple[int, ...](), 0, 0
    for limit in (*(sum(cuts[: i + 1]) for i in range(len(cuts))), len(ops)):
        engine.run(min(limit, len(ops)))
        taken = engine.take_records()
        data, sizes = data + taken.data, sizes + taken.sizes
        sampled, rejected = sampled + taken.sampled, rejected + taken.rejected
        check(
            Records(data, sizes, sampled, rejected, taken.left, taken.random), Expected.of(ops[: engine.total], profile)
        )


@needs_assembler
@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(PROGRAMS)), st.lists(st.tuples(st.integers(1, 300), st.none() | profiles), max_size=8))
def test_a_profile_set_at_any_moment_counts_from_there(program: str, changes: list[tuple[int, Profile | None]]) -> None:
    ops, engine = operations(program), started(program)
    profile, since = None, 0
    left = random = 0
    for more, following in (*changes, (1000, None)):
        engine.run(min(engine.total + more, len(ops)))
        if profile is None:
            assert engine.take_records() == Records(b"", (), 0, 0, left, random)
        else:
            taken, expected = engine.take_records(), Expected.of(ops[since : engine.total], profile)
            assert len(taken.sizes) == len(expected.records)
            if not profile.timestamp:  # the reference's clock begins at 0
                assert split(taken.data, taken.sizes) == expected.records
            left, random = expected.left, expected.random
            assert (taken.left, taken.random) == (left, random)
        engine.profile(following)
        profile, since = following, engine.total


@needs_assembler
@pytest.mark.parametrize("program", ["addressing", "levels", "compute"])
def test_a_profile_goes_on_where_another_was_taken_off(program: str) -> None:
    ops, chooser = operations(program), random.Random(5)
    profile = Profile(BOTH, 0, 3, everything(), jitter=True, random=77)
    engine = started(program)
    engine.profile(profile)
    records: list[bytes] = []
    while engine.total < len(ops):
        engine.run(min(engine.total + chooser.randrange(1, 40), len(ops)))
        taken = engine.take_records()
        records += split(taken.data, taken.sizes)
        engine.profile(replace(profile, first=taken.left, random=taken.random))
    assert tuple(records) == Expected.of(ops, profile).records


@needs_assembler
def test_sampling_changes_nothing_that_the_guest_does_and_no_count() -> None:
    for program in PROGRAMS:
        plain, sampled = started(program), started(program)
        plain.detail = sampled.detail = True
        sampled.profile(Profile(BOTH, 1, 1, everything(), jitter=True))
        for engine in (plain, sampled):
            engine.run(len(operations(program)))
        assert [plain.get_x(n) for n in range(31)] == [sampled.get_x(n) for n in range(31)]
        assert (plain.pc, plain.pstate, plain.sp) == (sampled.pc, sampled.pstate, sampled.sp)
        assert (plain.counts() == sampled.counts()).all()


def test_no_record_is_lost_where_there_are_more_than_the_buffer_holds() -> None:
    engine = guest(words(0xF94003E2, 0x17FFFFFF))  # 1: ldr x2,[sp]; b 1b
    engine.profile(Profile(EL1, 1, 1, everything(align=3)))
    assert engine.run(30_001) is Stop.LIMIT
    taken = engine.take_records()
    assert taken.sampled == len(taken.sizes) == 30_001
    records = split(taken.data, taken.sizes)
    assert len(set(records[0::2])) == len(set(records[1::2])) == 1
    assert records[0] != records[1]


# --- room -----------------------------------------------------------------------------------------------------------


@needs_assembler
@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(PROGRAMS)), profiles, st.integers(1, 40))
def test_a_run_ends_right_after_the_last_record_that_there_is_room_for(
    program: str, profile: Profile, room: int
) -> None:
    ops = operations(program)
    expected, engine = Expected.of(ops, profile), started(program)
    engine.profile(replace(profile, room=room))
    stop = engine.run(len(ops))
    if len(expected.at) < room:
        assert engine.total == len(ops)
        assert stop is not Stop.PROFILE
        return
    last = expected.at[room - 1]
    if stop is Stop.WFI:  # which was sampled
        assert last == len(ops)
        stop = engine.run(len(ops) + 1)
    assert stop is Stop.PROFILE
    assert engine.total == last
    assert engine.run(len(ops)) is Stop.PROFILE
    check(engine.take_records(), Expected.of(ops[:last], profile))
    assert engine.run(len(ops)) is Stop.PROFILE
    engine.profile(None)
    engine.run(len(ops))
    assert engine.total == len(ops)


@needs_assembler
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("period", "room"), [(1, 1), (2, 1), (3, 1), (7, 1), (2, 3)])
def test_room_made_again_and_again_loses_nothing(program: str, period: int, room: int) -> None:
    ops, engine = operations(program), started(program)
    profile, records = Profile(BOTH, 1, period, everything(), room=room), list[bytes]()
    expected = Expected.of(ops, profile)
    engine.profile(profile)
    while engine.run(len(ops)) is Stop.PROFILE:
        taken = engine.take_records()
        records += split(taken.data, taken.sizes)
        assert engine.total == expected.at[len(records) - 1]
        engine.profile(replace(profile, first=taken.left))
    taken = engine.take_records()
    assert tuple(records) + split(taken.data, taken.sizes) == expected.records


def test_a_filter_that_rejects_makes_no_room_necessary() -> None:
    engine = guest(words(0xF94003E2, NOP, NOP, 0xF90003E2, 0x17FFFFFC))  # 1: ldr; nop; nop; str; b 1b
    stores = everything()
    stores.pmsfcr = PMSFCR_FT | PMSFCR_ST
    engine.profile(Profile(EL1, 1, 1, stores, room=2))
    assert engine.run(100) is Stop.PROFILE
    assert (engine.total, engine.pc) == (9, RAM_BASE + 16)
    taken = engine.take_records()
    assert (taken.sampled, taken.rejected, len(taken.sizes)) == (9, 7, 2)


# --- what is an operation -------------------------------------------------------------------------------------------


def sampled_pcs(taken: Records) -> list[int]:
    """Where the instruction address packet has it, in a record without a context."""
    return [int.from_bytes(r[7:14], "little") for r in split(taken.data, taken.sizes)]


def test_an_instruction_that_faults_is_no_operation_and_the_next_one_that_retires_is() -> None:
    # mov x1,#0x1000000; nop; ldr x2,[x1]; nop. The handler: nop, wfi
    engine = guest(words(0xD2A02001, NOP, 0xF9400022, NOP))
    engine.ram.write(RAM_BASE + 0xA00, words(NOP, WFI))
    engine.write_register(*VBAR_EL1, RAM_BASE + 0x800)
    engine.profile(Profile(EL1, 3, 100, everything()))
    assert engine.run(100) is Stop.WFI
    taken = engine.take_records()
    assert sampled_pcs(taken) == [RAM_BASE + 0xA00]
    assert taken.left == 99


@pytest.mark.parametrize("word", [UDF, 0xD4200000, 0xD51BFFE0], ids=["udf", "brk", "no register"])
def test_what_is_undefined_or_traps_is_no_operation(word: int) -> None:
    engine = guest(words(NOP, word, NOP))
    engine.ram.write(RAM_BASE + 0xA00, words(NOP, WFI))
    engine.write_register(*VBAR_EL1, RAM_BASE + 0x800)
    engine.profile(Profile(EL1, 1, 1, everything()))
    assert engine.run(100) is Stop.WFI
    assert sampled_pcs(engine.take_records()) == [RAM_BASE, RAM_BASE + 0xA00, RAM_BASE + 0xA04]


@pytest.mark.parametrize(("word", "stop"), [(HVC, Stop.HVC), (WFI, Stop.WFI)])
@pytest.mark.parametrize("room", [1, 2])
def test_what_leaves_the_guest_is_an_operation_that_has_completed(word: int, stop: Stop, room: int) -> None:
    engine = guest(words(NOP, word, NOP, NOP))
    engine.profile(Profile(EL1, 2, 1, everything(), room=room))
    assert engine.run(100) is stop
    assert sampled_pcs(engine.take_records()) == [RAM_BASE + 4]
    assert engine.run(100) is Stop.PROFILE
    assert engine.total == room + 1


def test_a_system_call_is_sampled_where_it_was_made() -> None:
    engine = guest(words(NOP, SVC | 5 << 5, NOP))
    engine.ram.write(RAM_BASE + 0xC00, words(NOP, WFI))
    engine.write_register(*VBAR_EL1, RAM_BASE + 0x800)
    engine.pstate = 0x3C0
    engine.profile(Profile(EL0, 2, 1, everything(), room=1))
    assert engine.run(100) is Stop.PROFILE
    assert (engine.pc, engine.total) == (RAM_BASE + 0xC00, 2)
    record = engine.take_records().data
    assert int.from_bytes(record[7:15], "little") == RAM_BASE + 4 | 1 << 63
    assert record[15:20] == bytes([0x48, 0, 0x52, 3, 0])


def test_a_branch_to_where_nothing_can_be_fetched_is_sampled_with_its_target() -> None:
    engine = guest(words(0xD2A02001, 0xD61F0020))  # mov x1,#0x1000000; br x1
    engine.ram.write(RAM_BASE + 0xA00, words(NOP, WFI))
    engine.write_register(*VBAR_EL1, RAM_BASE + 0x800)
    engine.profile(Profile(EL1, 2, 100, everything()))
    assert engine.run(100) is Stop.WFI
    record = engine.take_records().data
    assert int.from_bytes(record[16:24], "little") == 0x100_0000 | 1 << 63 | 1 << 61


def test_a_load_of_a_device_is_one_operation_and_its_address_is_virtual() -> None:
    engine = with_devices(words(0xD2A12001, 0xF8408422, 0xF9400023, WFI), 0)  # mov x1,#DEVICE; ldr x2,[x1],#8; ldr
    engine.profile(Profile(EL1, 2, 1, everything()))
    assert engine.run(100) is Stop.WFI
    records = split(*(lambda r: (r.data, r.sizes))(engine.take_records()))
    assert [int.from_bytes(r[16:24], "little") for r in records[:2]] == [DEVICE, DEVICE + 8]


# --- in callbacks ---------------------------------------------------------------------------------------------------


def with_callback(*code: int) -> tuple[Engine, list[object]]:
    """A guest whose PMCCNTR_EL0 calls what is put into the list; it takes the engine."""
    calls: list[object] = []

    def on_sysreg(key: int, write: bool, value: int) -> int:
        call = calls.pop(0)
        return call(engine) or 0  # type: ignore[operator]

    engine = guest(words(*code), on_sysreg)
    engine.set_action(PMCCNTR_EL0, Action.CALL)
    return engine, calls


def test_a_profile_set_by_a_register_access_counts_from_the_access_itself() -> None:
    read = mrs(1, PMCCNTR_EL0)
    engine, calls = with_callback(NOP, NOP, read, NOP, NOP, NOP, read, NOP, NOP, WFI)
    calls.append(lambda e: e.profile(Profile(EL1, 1, 2, everything())))
    calls.append(lambda e: e.profile(None))
    assert engine.run(100) is Stop.WFI
    taken = engine.take_records()
    assert sampled_pcs(taken) == [RAM_BASE + 8, RAM_BASE + 16]
    assert taken.left == 1


def test_records_taken_by_a_register_access_are_those_before_it() -> None:
    read, seen = mrs(1, PMCCNTR_EL0), list[Records]()
    engine, calls = with_callback(NOP, NOP, read, NOP, read, WFI)
    calls += [lambda e: seen.append(e.take_records())] * 2
    engine.profile(Profile(EL1, 2, 3, everything()))
    assert engine.run(100) is Stop.WFI
    assert [sampled_pcs(taken) for taken in seen] == [[RAM_BASE + 4], []]
    assert [taken.left for taken in seen] == [0, 1]
    assert sampled_pcs(engine.take_records()) == [RAM_BASE + 16]


def test_an_access_that_takes_an_exception_is_no_operation() -> None:
    engine, calls = with_callback(NOP, mrs(1, PMCCNTR_EL0))
    engine.ram.write(RAM_BASE + 0xA00, words(NOP, WFI))
    engine.write_register(*VBAR_EL1, RAM_BASE + 0x800)
    calls.append(lambda e: e.inject(1 << 25))
    engine.profile(Profile(EL1, 2, 100, everything()))
    assert engine.run(100) is Stop.WFI
    assert sampled_pcs(engine.take_records()) == [RAM_BASE + 0xA00]


def test_records_taken_in_an_mmio_callback_are_those_before_the_access() -> None:
    seen: list[Records] = []

    def read(offset: int, size: int) -> int:
        seen.append(engine.take_records())
        return 0

    # mov x1,#0x9000000; nop; ldr w2,[x1]; nop; ldr w2,[x1]; nop; wfi: one block
    engine = guest(words(0xD2A12001, NOP, 0xB9400022, NOP, 0xB9400022, NOP, WFI))
    engine.map_mmio(DEVICE, 0x1000, read, lambda offset, size, value: None)
    engine.profile(Profile(EL1, 2, 2, everything()))
    assert engine.run(100) is Stop.WFI
    assert [sampled_pcs(taken) for taken in seen] == [[RAM_BASE + 4], [RAM_BASE + 12]]
    assert [(taken.left, taken.sampled) for taken in seen] == [(0, 1), (0, 1)]
    assert sampled_pcs(engine.take_records()) == [RAM_BASE + 20]


def test_an_mmio_callback_cannot_change_what_is_sampled() -> None:
    engine = guest(words(0xD2A12001, 0xB9400022, WFI))
    engine.map_mmio(DEVICE, 0x1000, lambda offset, size: engine.profile(None) or 0, lambda offset, size, value: None)  # type: ignore[func-returns-value]
    engine.profile(Profile(EL1, 1, 1, everything()))
    with pytest.raises(EngineFailure, match="MMIO"):
        engine.run(100)


def test_a_timestamp_has_the_time_that_passed_in_callbacks_before_it_only() -> None:
    engine, calls = with_callback(NOP, mrs(1, PMCCNTR_EL0), NOP, 0xD2A12001, 0xB9400022, NOP, NOP, WFI)
    calls.append(lambda e: e.advance_clock(1000))
    engine.map_mmio(DEVICE, 0x1000, lambda o, s: engine.advance_clock(50_000) or 0, lambda o, s, v: None)  # type: ignore[func-returns-value]
    engine.set_clock(7, 1, 1)
    engine.profile(Profile(EL1, 1, 1, everything(align=0), timestamp=True))
    assert engine.run(100) is Stop.WFI
    taken = engine.take_records()
    times = [int.from_bytes(r[-8:], "little") for r in split(taken.data, taken.sizes)]
    # The time of an operation that the machine does is that when it is done.
    assert times == [7, 1008, 1009, 1010, 51011, 51012, 51013, 51014]


# --- beside other things --------------------------------------------------------------------------------------------


@needs_assembler
def test_watches_and_samples_do_not_disturb_each_other() -> None:
    ops, chooser = operations("levels"), random.Random(3)
    profile = Profile(BOTH, 1, 3, everything(), jitter=True, random=9)
    engine = started("levels")
    engine.profile(profile)
    records: list[bytes] = []
    while engine.total < len(ops):
        target = min(engine.total + chooser.randrange(1, 30), len(ops))
        engine.watch([Watch(1 << Lane.INST, BOTH, target)])
        engine.run(len(ops))
        assert engine.total == target
        taken = engine.take_records()
        records += split(taken.data, taken.sizes)
    assert tuple(records) == Expected.of(ops, profile).records


def test_the_generator_is_that_of_the_semantics() -> None:
    from pmuvisor.arch import spe

    state = 1
    for _ in range(1000):
        assert spe.next_random(state) == next_random(state)
        state = next_random(state)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("els", 0),
        ("els", 4),
        ("first", -1),
        ("period", 0),
        ("random", 1 << 32),
        ("room", 0),
        ("total_latency", 1 << 16),
    ],
)
def test_a_profile_that_cannot_be_is_refused_and_the_one_before_stays(field: str, value: int) -> None:
    engine, good = guest(words(HERE)), Profile(EL1, 2, 2, everything())
    engine.profile(good)
    with pytest.raises(ValueError, match=f"^{field} of a profile is {value}: expected"):
        engine.profile(replace(good, **{field: value}))  # type: ignore[arg-type]
    engine.run(10)
    assert engine.take_records().sampled == 5


def test_without_a_profile_there_are_no_records_and_nothing_is_compiled_for_them() -> None:
    program = (
        f"import sys\nsys.path[:] = {sys.path}\nfrom board.engine_support import guest, words\n"
        "engine = guest(words(0x14000000))\nengine.profile(None)\nengine.run(1000)\n"
        "assert engine.take_records().sizes == ()\n"
        "assert not any(name.endswith(('native_spe', 'native_operands')) for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
