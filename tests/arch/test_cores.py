"""The data file of cores, what it may say, and what cannot be a core."""

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuvisor.arch import events, pmu
from pmuvisor.arch.cores import (
    COMMON_EVENTS,
    FIGURES,
    PMU_VERSIONS,
    Core,
    CoreError,
    Source,
    core,
    cores,
    events_as_text,
    make_pe,
    parse,
)
from pmuvisor.arch.sysreg import PMCCNTR_EL0, PMCEID0_EL0, PMCEID1_EL0, PMCR_EL0, PMEVCNTR0_EL0, PMMIR_EL1

PLAIN = Core(
    name="plain",
    about="a test",
    event_counters=6,
    pmuver=6,
    midr=0x410F_D000,
    fgt=True,
    fgt2=False,
    el3=True,
    sel2=False,
    aarch32=False,
    spe=0,
    mhz=1000,
    product="a board",
)
WITH_PMUV3 = [name for name, each in cores().items() if each.pmuv3]

# ---- the file ------------------------------------------------------------------------------------------------------


def test_the_cores_that_there_have_to_be_are_there() -> None:
    real = {"cortex-a55", "cortex-a76", "cortex-a78", "cortex-x1", "apple-m1"}
    real |= {"neoverse-n1", "neoverse-v1", "neoverse-n2", "neoverse-v2"}
    assert set(cores()) == {"max", "qemu-max", "kvm-nested"} | real
    assert next(iter(cores())) == "max"


@pytest.mark.parametrize("name", cores())
def test_every_figure_has_a_source_and_every_source_a_figure(name: str) -> None:
    of = core(name)
    only_pmuv3 = {"implementer", "idcode", "hpmn0", "icntr", "mt", "pmmir", "events"}
    optional = {"spe_fds"} - set(of.sources)
    assert set(of.sources) == set(FIGURES) - optional - ({"translated"} if of.pmuv3 else only_pmuv3)
    assert not (optional and of.spe_fds)
    assert all(len(source.text) > 10 for source in of.sources.values())


@pytest.mark.parametrize("name", WITH_PMUV3)
def test_every_core_with_pmuv3_makes_a_pe_of_its_figures(name: str) -> None:
    of = core(name)
    pe = make_pe(of, [events.CPU_CYCLES])
    assert pmu.read(pe, 2, PMCR_EL0) >> 11 == of.implementer << 13 | of.idcode << 5 | of.event_counters
    assert pmu.read(pe, 2, PMMIR_EL1) == of.pmmir
    for figure in ("pmuver", "hpmn0", "fgt", "fgt2", "icntr", "el3", "sel2", "mt", "aarch32"):
        assert getattr(pe.core, figure) == int(getattr(of, figure))


# MIDR_EL1, ID_AA64DFR0_EL1, ID_AA64MMFR0_EL1 and ID_AA64PFR0_EL1, as read on hardware (neoverse-n1: an Ampere Altra,
# apple-m1: a MacBook) or as the TRM has them.
ID_REGISTERS = {
    "cortex-a55": (0x412F_D050, 0x1030_5408, 0x0010_1122, 0x1011_2222),
    "cortex-a76": (0x414F_D0B1, 0x1030_5408, 0x0010_1122, 0x1100_0000_1011_1112),
    "neoverse-n1": (0x413F_D0C1, 0x1_1030_5408, 0x0010_1125, 0x1100_0000_1111_1112),
    "neoverse-v1": (0x411F_D402, 0x1F2_1030_5519, 0x0010_1125, 0x1101_1101_2011_1112),
    "neoverse-n2": (0x410F_D493, 0x11F2_1030_5619, 0x222_0010_1125, 0x1201_1111_2011_1112),
    "apple-m1": (0x611F_0231, 0x1030_5F09, 0x1212_0F10_0001, 0x1101_0000_1011_0111),
}


@pytest.mark.parametrize("name", ID_REGISTERS)
def test_a_real_core_is_what_its_id_registers_say(name: str) -> None:
    of = core(name)
    midr, dfr0, mmfr0, pfr0 = ID_REGISTERS[name]
    assert of.midr == midr & ~0x00F0_000F
    assert (of.pmuver, of.spe, of.hpmn0) == (dfr0 >> 8 & 15, dfr0 >> 32 & 15, bool(dfr0 >> 60))
    assert (of.fgt, of.fgt2) == (mmfr0 >> 56 & 15 >= 1, mmfr0 >> 56 & 15 >= 2)
    assert (of.el3, of.sel2) == (bool(pfr0 >> 12 & 15), bool(pfr0 >> 36 & 15))
    assert of.aarch32 == (2 in (pfr0 & 15, pfr0 >> 4 & 15, pfr0 >> 8 & 15, pfr0 >> 12 & 15))


@pytest.mark.parametrize(
    ("name", "pmcr", "pmceid0", "pmceid1"),
    [
        ("cortex-a76", 0x410B_3000, 0x7FFF_0F3F, 0x00F2_AE7F),  # TRM 100798, D5.1 and D5.4
        ("qemu-max", 0x4101_3000, 0x2_0001, 0x1000_0018),  # read on the machine
        ("kvm-nested", 0x3000, 0x4002_0001, 0x1000_0018),  # read in the guest
    ],
)
def test_a_core_that_counts_all_its_events_reads_as_the_real_one(
    name: str, pmcr: int, pmceid0: int, pmceid1: int
) -> None:
    pe = make_pe(core(name), core(name).events)
    assert pmu.read(pe, 2, PMCR_EL0) & ~0xFF == pmcr
    assert (pmu.read(pe, 2, PMCEID0_EL0), pmu.read(pe, 2, PMCEID1_EL0)) == (pmceid0, pmceid1)


def test_a_core_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(CoreError, match="core 'cortex-a1': expected one of max, "):
        core("cortex-a1")


def test_apple_m1_has_no_pmuv3_registers_but_events_that_kvm_translates() -> None:
    of = core("apple-m1")
    assert not of.pmuv3
    # INST_RETIRED, CPU_CYCLES, BR_RETIRED, BR_MIS_PRED_RETIRED
    assert of.translated == ((0x08, 0x8C), (0x11, 0x02), (0x21, 0x8D), (0x22, 0xCB))
    with pytest.raises(CoreError, match=r"^core apple-m1: it has no PMUv3 registers [^\n]*$"):
        make_pe(of, [])


# ---- PMCEID<n>_EL0 -------------------------------------------------------------------------------------------------


def test_pmceid_says_which_events_the_core_counts() -> None:
    # 0x08 and 0x11: bits 8 and 17 of PMCEID0; 0x21: bit 1 of PMCEID1; 0x4004: bit 36 of PMCEID0.
    pe = make_pe(PLAIN, [events.INST_RETIRED, events.CPU_CYCLES, events.BR_RETIRED, 0x4004])
    assert pmu.read(pe, 1, PMCEID0_EL0) == 1 << 8 | 1 << 17 | 1 << 36
    assert pmu.read(pe, 1, PMCEID1_EL0) == 1 << 1


@given(st.sampled_from(WITH_PMUV3), st.sets(st.sampled_from([*COMMON_EVENTS, 0x40, 0x4040, 0xC000])))
def test_pmceid_shows_an_event_where_both_core_and_machine_count_it(name: str, counted: set[int]) -> None:
    pe = make_pe(core(name), counted)
    shown = (pmu.read(pe, 1, PMCEID0_EL0), pmu.read(pe, 1, PMCEID1_EL0))
    for event in range(0x40):
        for upper in (0, 1):
            number = event | upper << 14
            bit = shown[event // 32] >> (event % 32 + 32 * upper) & 1
            assert bit == (number in counted and number in core(name).events)


# ---- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"event_counters": 32}, "event_counters 32: expected 0 to 31"),
        ({"event_counters": -1}, "event_counters -1"),
        ({"event_counters": True}, "event_counters True"),
        ({"pmuver": 2}, r"pmuver 2: expected one of \[0, 1, 4, "),
        ({"implementer": 0x100}, "implementer 0x100: expected 0x0 to 0xff"),
        ({"implementer": "A"}, "implementer 'A': expected 0x0 to 0xff"),
        ({"midr": 0x4107_D000}, "midr: expected 0xf in bits 19:16"),
        ({"fgt": 1}, "fgt 1: expected true or false"),
        ({"spe": 7}, "spe 7: expected 0 to 6"),
        ({"mhz": 2.4}, "mhz 2.4: expected 0 to "),
        ({"product": ""}, "product '': expected the name"),
        ({"events": (0x11, 0x08)}, r"events \(17, 8\): expected ascending common events"),
        ({"events": (0x40,)}, r"events \(64,\): expected ascending common events"),
        ({"translated": ((0x11, 0x100),)}, "translated .*: expected pairs"),
        ({"fgt": False, "fgt2": True}, "fgt2: .* FEAT_FGT"),
        ({"fgt": False, "hpmn0": True}, "hpmn0: .* FEAT_FGT"),
        ({"icntr": True, "fgt2": True}, "icntr: .* FEAT_PMUv3p9"),
        ({"icntr": True, "pmuver": 9}, "icntr: .* FEAT_FGT2"),
        ({"pmmir": 8, "pmuver": 4}, "pmmir: expected 0: .* FEAT_PMUv3p4"),
        ({"implementer": 0x41, "pmuver": 7}, "implementer: expected 0, .* FEAT_PMUv3p7"),
        ({"idcode": 1, "pmuver": 9}, "implementer: expected 0, and idcode 0"),
        ({"pmuver": True}, r"pmuver True: expected one of \[0, 1, 4, "),
        ({"pmuver": 16}, r"pmuver 16: expected one of \[0, 1, 4, "),
        ({"idcode": 0x100}, "idcode 0x100: expected 0x0 to 0xff"),
        ({"midr": 0x1_410F_D000}, "midr 0x1410fd000: expected 0x0 to 0xffffffff"),
        ({"pmmir": 0x1000_0000}, "pmmir 0x10000000: expected 0x0 to 0xfffffff, or fields of slots, "),
        ({"mhz": 100_001}, "mhz 100001: expected 0 to 100000"),
        ({"product": 5}, "product 5: expected the name"),
        ({"events": [0x08]}, r"events \[8\]: expected ascending common events"),
        ({"events": (True,)}, r"events \(True,\): expected ascending common events"),
        ({"events": (0x08, 0x08)}, r"events \(8, 8\): expected ascending common events"),
        ({"translated": [(0x11, 1)]}, "translated .*: expected pairs"),
        ({"translated": ([0x11, 1],)}, "translated .*: expected pairs"),
        ({"translated": ((0x11, 1, 2),)}, "translated .*: expected pairs"),
        ({"translated": ((0x40, 1),)}, "translated .*: expected pairs"),
        ({"translated": ((0x22, 1), (0x11, 1))}, "translated .*: expected pairs"),
        ({"translated": ((0x11, -1),)}, "translated .*: expected pairs"),
        ({"translated": ((0x11, True),)}, "translated .*: expected pairs"),
    ],
)
def test_a_core_that_the_architecture_does_not_have_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(CoreError, match=f"^core plain: {said}"):
        dataclasses.replace(PLAIN, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"pmuver": 9, "fgt2": True, "icntr": True, "hpmn0": True},
        {"pmuver": 6, "implementer": 0x41, "idcode": 0xFF},
        {"pmuver": 5, "pmmir": 8},
        {"event_counters": 31, "events": ()},
        {"event_counters": 0, "events": (0x00, 0x3F, 0x4000, 0x403F)},
        {"idcode": 0xFF, "midr": 0xFFFF_FFFF, "mhz": 100_000, "spe": 6},
        {"pmuver": 9, "pmmir": 0xFFF_FFFF},
        {"pmuver": 1, "fgt": False},
        {"pmuver": 6, "translated": ((0x11, 0), (0x22, 0xFF))},
    ],
)
def test_a_core_at_the_edge_of_what_the_architecture_has_is_taken(change: dict[str, object]) -> None:
    of = dataclasses.replace(PLAIN, **change)  # type: ignore[arg-type]
    assert make_pe(of, [events.CPU_CYCLES]).core.pmuver == of.pmuver


def test_what_is_not_said_is_not_there() -> None:
    assert (PLAIN.implementer, PLAIN.idcode, PLAIN.pmmir, PLAIN.translated) == (0, 0, 0, ())
    assert (PLAIN.hpmn0, PLAIN.icntr, PLAIN.mt) == (False, False, False)
    assert not Source("a manual").assumed


def test_a_core_can_be_a_key_whatever_its_sources() -> None:
    assert {PLAIN: 1}[dataclasses.replace(PLAIN)] == 1
    assert hash(core("max")) == hash(dataclasses.replace(core("max"), sources=PLAIN.sources))


@pytest.mark.parametrize(("pmuver", "pmuv3"), [(0, False), (1, True), (9, True), (15, False)])
def test_a_core_without_a_pmu_and_one_of_its_own_have_no_pmuv3(pmuver: int, pmuv3: bool) -> None:
    assert dataclasses.replace(PLAIN, pmuver=pmuver).pmuv3 == pmuv3


def test_versions_and_common_events_are_the_manuals() -> None:
    assert set(PMU_VERSIONS) == {0, 1, 4, 5, 6, 7, 8, 9, 15}
    assert set(COMMON_EVENTS) == {*range(0x40), *range(0x4000, 0x4040)}


def test_the_counters_of_a_pe_have_64_bits_and_overflow_at_32() -> None:
    pe = make_pe(dataclasses.replace(PLAIN, aarch32=True), [])
    assert (pe.core.half_bits, pe.core.half_mask) == (32, 0xFFFF_FFFF)
    assert (pe.core.counter_mask, pe.core.counter_top) == (0xFFFF_FFFF_FFFF_FFFF, 63)
    for key in (PMEVCNTR0_EL0, PMCCNTR_EL0):
        pmu.write(pe, 2, key, (1 << 64) - 1)
        assert pmu.read(pe, 2, key) == (1 << 64) - 1
    assert [pmu.counter_room(pe, n) for n in (0, 31)] == [1, 1]
    pmu.write(pe, 2, PMCR_EL0, 1 << 6 | 1 << 7)  # LC and LP: at 64
    pmu.write(pe, 2, PMEVCNTR0_EL0, (1 << 63) + 5)
    pmu.write(pe, 2, PMCCNTR_EL0, (1 << 64) - 7)
    assert [pmu.counter_room(pe, n) for n in (0, 31)] == [1 << 62, 7]


# ---- what the file may not say -------------------------------------------------------------------------------------

GOOD = '''[good]
about = "A core"
[[good.figures]]
source = "a manual"
event_counters = 4
pmuver = 6
implementer = 0x41
idcode = 1
midr = 0x410FD000
hpmn0 = false
fgt = true
fgt2 = false
icntr = false
el3 = true
sel2 = true
mt = false
aarch32 = false
spe = 1
pmmir = { slots = 5, bus_width = 3 }
events = "0x0 0x8-0xa 0x4000"
[[good.figures]]
assumption = """no
better one"""
mhz = 1500
product = "a board"
'''


def test_a_file_is_read_with_the_source_of_each_figure() -> None:
    of = parse(GOOD, "x.toml")["good"]
    assert (of.about, of.event_counters, of.mhz, of.product) == ("A core", 4, 1500, "a board")
    assert of.events == (0x0, 0x8, 0x9, 0xA, 0x4000)
    assert of.pmmir == 5 | 3 << 16
    assert (of.sources["spe"].text, of.sources["spe"].assumed) == ("a manual", False)
    assert (of.sources["mhz"].text, of.sources["mhz"].assumed) == ("no better one", True)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("mhz = 1500\n", "", "core good: mhz: missing, expected 0 to 100000, with its source"),
        ('source = "a manual"', "", "core good: figures: expected each group to have one 'source' or"),
        (
            'source = "a manual"',
            'source = "a"\nassumption = "b"',
            "core good: figures: expected each group to have one",
        ),
        ('source = "a manual"', 'source = " "', "core good: source ' ': expected a text"),
        ("mhz = 1500\nproduct", '[[good.figures]]\nsource = "b"\nproduct', "expected a figure that it is for"),
        ("mhz = 1500", "mhz = 1500\nspe = 1", "core good: spe: expected once, with one source"),
        ("mhz = 1500", "mhz = 1500\ncpi = 2", "core good: cpi: expected one of event_counters, pmuver, "),
        ("mhz = 1500", "mhz = 1500\ntranslated = []", "core good: translated: expected none in a core with PMUv3"),
        ("pmuver = 6", "pmuver = 15", "core good: implementer: expected none in a core without PMUv3"),
        ("pmuver = 6", "pmuver = 3", "core good: pmuver 3: expected one of [0, 1, 4, "),
        ("0x8-0xa", "0xa-0x8", "core good: events '0x0 0xa-0x8 0x4000': expected ascending common events"),
        ("0x8-0xa", "0x9 0x8", "core good: events (0, 9, 8, 16384): expected ascending common events"),
        ("0x8-0xa", "eight", "core good: events '0x0 eight 0x4000': expected ascending common events"),
        ("0x8-0xa", "0x8-0xffffffff", "core good: events '0x0 0x8-0xffffffff 0x4000': expected ascending common"),
        (
            "slots = 5",
            "slots = 256",
            "pmmir {'slots': 256, 'bus_width': 3}: expected 0x0 to 0xfffffff, or fields of slots, ",
        ),
        ('"0x0 0x8-0xa 0x4000"', "[8]", "core good: events [8]: expected ascending common events"),
        ('about = "A core"', "about = 5", "core good: expected a table of the text 'about' and of tables 'figures'"),
        ('source = "a manual"', "source = 5", "core good: source 5: expected a text"),
        ("pmuver = 6", "pmuver = 0", "core good: implementer: expected none in a core without PMUv3"),
        ("slots = 5", "slots = true", "pmmir {'slots': True, 'bus_width': 3}: expected 0x0 to 0xfffffff, or fields of"),
        ("slots = 5", "lots = 5", "pmmir {'lots': 5, 'bus_width': 3}: expected 0x0 to 0xfffffff, or fields of slots, "),
        ('about = "A core"\n', "", "core good: expected a table of the text 'about' and of tables 'figures'"),
        ("[[good.figures]]", "[[good.figure]]", "core good: expected a table of the text 'about' and of tables"),
        ("pmuver = 6", "pmuver = ", "Invalid value (at line 6, column 10)"),
        ("[good]", "top = 1\n[good]", "core top: expected a table of the text 'about' and of tables 'figures'"),
    ],
)
def test_a_file_that_says_something_else_is_refused_in_one_line(old: str, new: str, said: str) -> None:
    with pytest.raises(CoreError) as refused:
        parse(GOOD.replace(old, new), "x.toml")
    assert str(refused.value).startswith("x.toml: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("figures", ["3", "[3]"])
def test_figures_that_are_no_table_are_refused(figures: str) -> None:
    with pytest.raises(CoreError, match="core x: figures: expected each group to have one 'source' or one"):
        parse(f'[x]\nabout = "a"\nfigures = {figures}\n', "x.toml")


FOREIGN = re.sub("(implementer|idcode|hpmn0|icntr|mt|pmmir|events) = .*\n", "", GOOD).replace(
    "pmuver = 6", "pmuver = 15"
)


def test_a_core_without_pmuv3_has_its_translation_and_one_table_of_figures_is_enough() -> None:
    foreign = FOREIGN.replace("[[good.figures]]\nassum", "translated = [[0x11, 2], [0x22, 3]]\n[[good.figures]]\nassum")
    assert parse(foreign, "x.toml")["good"].translated == ((0x11, 2), (0x22, 3))
    one = GOOD.replace('[[good.figures]]\nassumption = """no\nbetter one"""\n', "").replace("[[good", "[good")
    assert parse(one.replace("figures]]", "figures]"), "x.toml")["good"].mhz == 1500


@pytest.mark.parametrize("translated", ['"x"', "[5]", "[[0x11]]", "5"])
def test_a_translation_of_another_form_is_refused(translated: str) -> None:
    with pytest.raises(CoreError, match=r"^x.toml: core good: translated [^\n]*: expected pairs of a common event"):
        parse(FOREIGN.replace("spe = 1", f"spe = 1\ntranslated = {translated}"), "x.toml")


PMMIR = {"slots": (0, 8), "bus_slots": (8, 8), "bus_width": (16, 4), "thwidth": (20, 4), "edge": (24, 4)}
"""PMMIR_EL1: the lowest bit and the width of each field (Arm ARM D24.5)."""


@pytest.mark.parametrize("field", PMMIR)
def test_a_field_of_pmmir_is_where_its_page_has_it(field: str) -> None:
    lowest, width = PMMIR[field]
    most = (1 << width) - 1
    pmmir = GOOD.replace("slots = 5, bus_width = 3", f"{field} = {most}")
    assert parse(pmmir, "x.toml")["good"].pmmir == most << lowest
    with pytest.raises(CoreError, match="expected 0x0 to 0xfffffff, or fields of slots, "):
        parse(pmmir.replace(f"{most} }}", f"{most + 1} }}"), "x.toml")


def test_all_fields_of_pmmir_can_be_given_and_the_last_event_too() -> None:
    whole = GOOD.replace("slots = 5, bus_width = 3", "slots = 1, bus_slots = 2, bus_width = 3, thwidth = 4, edge = 5")
    of = parse(whole.replace('"0x0 0x8-0xa 0x4000"', '"0x0-0x1 0x403e-0x403f"'), "x.toml")["good"]
    assert of.pmmir == 0x543_0201
    assert of.events == (0x0, 0x1, 0x403E, 0x403F)


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ((), ""),
        ((0x8,), "0x8"),
        ((0x0, 0x1, 0x2, 0x8, 0x11, 0x12), "0x0-0x2 0x8 0x11-0x12"),
        (COMMON_EVENTS, "all"),
        (COMMON_EVENTS[:-1], "0x0-0x3f 0x4000-0x403e"),
    ],
)
def test_events_are_written_as_runs(events: tuple[int, ...], text: str) -> None:
    assert events_as_text(events) == text


def test_a_pe_of_a_core_is_reset() -> None:
    pe = make_pe(core("max"), [])
    # HPMN is N, EL3's firmware has opened what it can, and without AArch32 LC is 1.
    assert (pe.mdcr_el2, pe.mdcr_el3, pe.scr_el3) == (8, 1 << 7, 1 << 27 | 1 << 59)
    assert pe.pmcr == (0 if core("max").aarch32 else 1 << 6)


@given(st.sets(st.sampled_from(COMMON_EVENTS)))
def test_events_are_written_as_they_are_read(chosen: set[int]) -> None:
    text = events_as_text(sorted(chosen))
    assert parse(GOOD.replace("0x0 0x8-0xa 0x4000", text), "x.toml")["good"].events == tuple(sorted(chosen))
