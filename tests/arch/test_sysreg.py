"""Encodings, fields and event numbers as the Arm ARM has them, written down once more."""

from __future__ import annotations

import pytest

from pmuvisor.arch import events, sysreg

# C5.2 and D24: op0, op1, CRn, CRm, op2.
ENCODINGS = {
    "ID_AA64DFR0_EL1": "S3_0_C0_C5_0",
    "PMINTENSET_EL1": "S3_0_C9_C14_1",
    "PMINTENCLR_EL1": "S3_0_C9_C14_2",
    "PMUACR_EL1": "S3_0_C9_C14_4",
    "PMMIR_EL1": "S3_0_C9_C14_6",
    "PMICNTR_EL0": "S3_3_C9_C4_0",
    "PMICFILTR_EL0": "S3_3_C9_C6_0",
    "PMCR_EL0": "S3_3_C9_C12_0",
    "PMCNTENSET_EL0": "S3_3_C9_C12_1",
    "PMCNTENCLR_EL0": "S3_3_C9_C12_2",
    "PMOVSCLR_EL0": "S3_3_C9_C12_3",
    "PMSWINC_EL0": "S3_3_C9_C12_4",
    "PMSELR_EL0": "S3_3_C9_C12_5",
    "PMCEID0_EL0": "S3_3_C9_C12_6",
    "PMCEID1_EL0": "S3_3_C9_C12_7",
    "PMCCNTR_EL0": "S3_3_C9_C13_0",
    "PMXEVTYPER_EL0": "S3_3_C9_C13_1",
    "PMXEVCNTR_EL0": "S3_3_C9_C13_2",
    "PMZR_EL0": "S3_3_C9_C13_4",
    "PMUSERENR_EL0": "S3_3_C9_C14_0",
    "PMOVSSET_EL0": "S3_3_C9_C14_3",
    "PMCCFILTR_EL0": "S3_3_C14_C15_7",
    "PMSCR_EL1": "S3_0_C9_C9_0",
    "PMSNEVFR_EL1": "S3_0_C9_C9_1",
    "PMSICR_EL1": "S3_0_C9_C9_2",
    "PMSIRR_EL1": "S3_0_C9_C9_3",
    "PMSFCR_EL1": "S3_0_C9_C9_4",
    "PMSEVFR_EL1": "S3_0_C9_C9_5",
    "PMSLATFR_EL1": "S3_0_C9_C9_6",
    "PMSIDR_EL1": "S3_0_C9_C9_7",
    "PMBLIMITR_EL1": "S3_0_C9_C10_0",
    "PMBPTR_EL1": "S3_0_C9_C10_1",
    "PMBSR_EL1": "S3_0_C9_C10_3",
    "PMSDSFR_EL1": "S3_0_C9_C10_4",
    "PMBIDR_EL1": "S3_0_C9_C10_7",
    "PMSCR_EL2": "S3_4_C9_C9_0",
    "MDCR_EL2": "S3_4_C1_C1_1",
    "HDFGRTR2_EL2": "S3_4_C3_C1_0",
    "HDFGWTR2_EL2": "S3_4_C3_C1_1",
    "HDFGRTR_EL2": "S3_4_C3_C1_4",
    "HDFGWTR_EL2": "S3_4_C3_C1_5",
    **{f"PMEVCNTR{n}_EL0": f"S3_3_C14_C{8 + n // 8}_{n % 8}" for n in range(31)},
    **{f"PMEVTYPER{n}_EL0": f"S3_3_C14_C{12 + n // 8}_{n % 8}" for n in range(31)},
}


def key_of(encoding: str) -> int:
    """Return the bits of "S<op0>_<op1>_C<n>_C<m>_<op2>" as MRS has them: 1, o0 (op0 - 2), op1, CRn, CRm, op2."""
    op0, op1, crn, crm, op2 = (int(part.lstrip("SC")) for part in encoding.split("_"))
    return int(f"1{op0 - 2:b}{op1:03b}{crn:04b}{crm:04b}{op2:03b}", 2)


def test_every_register_has_its_encoding_and_its_name() -> None:
    assert {name: key_of(encoding) for name, encoding in ENCODINGS.items()} == sysreg.BY_NAME
    assert {sysreg.name_of(key) for key in sysreg.BY_NAME.values()} == set(ENCODINGS)
    for other in ("S3_7_C15_C14_5", "S2_0_C0_C15_7"):
        assert sysreg.name_of(key_of(other)) == other


def test_system_instructions_have_op0_of_1() -> None:
    assert sysreg.encode(1, 3, 7, 4, 1) == 0b01_011_0111_0100_001  # dc zva
    assert sysreg.name_of(sysreg.encode(0, 3, 7, 4, 1)) == "S4_3_C7_C4_1"


def test_a_trapped_system_instruction_has_its_own_op0_in_the_syndrome() -> None:
    # dc cisw, x3: op0 1 at bit 20, op2 2 at 17, op1 0 at 14, CRn 7 at 10, Rt 3 at 5, CRm 14 at 1, a write
    assert sysreg.sys64_iss(sysreg.encode(1, 0, 7, 14, 2), 3, 1) == 1 << 20 | 2 << 17 | 7 << 10 | 3 << 5 | 14 << 1


FIELDS = {
    "PMCR": ({"E": 0, "P": 1, "C": 2, "D": 3, "X": 4, "DP": 5, "LC": 6, "LP": 7, "FZO": 9}, {}),
    "PMUSERENR": ({"EN": 0, "SW": 1, "CR": 2, "ER": 3, "UEN": 4, "IR": 5, "TID": 6}, {}),
    "MDCR": (
        {
            "TPMCR": 5,
            "TPM": 6,
            "HPME": 7,
            "TDOSA": 10,
            "TDRA": 11,
            "TPMS": 14,
            "HPMD": 17,
            "TTRF": 19,
            "HCCD": 23,
            "HLP": 26,
            "HPMFZO": 29,
            "EL3_TPM": 6,
            "EL3_ENPM2": 7,
        },
        {"HPMN": (0, 5), "E2PB": (12, 2), "E2TB": (24, 2)},
    ),
    "PMSCR": ({"E0SPE": 0, "E1SPE": 1, "CX": 3, "PA": 4, "TS": 5, "PCT": 6}, {}),
    "PMSIRR": ({"RND": 0}, {}),
    "PMSICR": ({}, {"COUNT": (0, 32)}),
    "PMSFCR": ({"FE": 0, "FT": 1, "FL": 2, "FNE": 3, "FDS": 4, "B": 16, "LD": 17, "ST": 18}, {}),
    "PMBLIMITR": ({"E": 0, "FM_DISCARD": 2, "PMFZ": 5}, {"FM": (1, 2)}),
    "SCR_EL3": ({"FGTEN": 27, "FGTEN2": 59}, {}),
}
"""By register: the fields of one bit with their places, and the wider ones with place and width."""


@pytest.mark.parametrize("register", FIELDS)
def test_fields_are_where_their_registers_page_has_them(register: str) -> None:
    single, wide = FIELDS[register]
    expected = {f"{register}_{name}": 1 << place for name, place in single.items()}
    expected |= {f"{register}_{name}": ((1 << width) - 1) << place for name, (place, width) in wide.items()}
    found = {name: value for name, value in vars(sysreg).items() if name.startswith(f"{register}_")}
    found = {name: value for name, value in found.items() if not name.endswith(("_EL2", "_EL1", "_EL0", "_SHIFT"))}
    assert found == expected


NUMBERS = {
    "FILTER": {"P": 31, "U": 30, "NSK": 29, "NSU": 28, "NSH": 27, "M": 26, "MT": 25, "SH": 24},
    "TYPER": {"TC_SHIFT": 61, "TE_SHIFT": 60, "TLC_SHIFT": 54, "TH_SHIFT": 32},
    "PMMIR": {"THWIDTH_SHIFT": 20, "EDGE_SHIFT": 24, "EL1": key_of("S3_0_C9_C14_6")},
    "FGT": {
        "PMEVCNTRN": 12,
        "PMEVTYPERN": 13,
        "PMCCFILTR": 14,
        "PMCCNTR": 15,
        "PMCNTEN": 16,
        "PMINTEN": 17,
        "PMOVS": 18,
        "PMSELR": 19,
        "PMUSERENR": 57,
        "W_PMSWINC": 20,
        "W_PMCR": 21,
        "R_PMMIR": 22,
        "R_PMCEIDN": 58,
        "PMBLIMITR": 23,
        "PMBPTR": 24,
        "PMBSR": 25,
        "PMSCR": 26,
        "PMSEVFR": 27,
        "PMSFCR": 28,
        "PMSICR": 29,
        "R_PMSIDR": 30,
        "PMSIRR": 31,
        "PMSLATFR": 32,
        "NPMSNEVFR": 62,
        "R_PMBIDR": 63,
    },
    "FGT2": {"NPMICNTR": 2, "NPMICFILTR": 3, "NPMUACR": 4, "NPMSDSFR": 19, "W_NPMZR": 21},
    "PMSIDR": {
        "EL1": key_of("S3_0_C9_C9_7"),
        "FILTERS": 7,
        "ARCHINST_SHIFT": 3,
        "LDS_SHIFT": 4,
        "ERND_SHIFT": 5,
        "FNE_SHIFT": 6,
        "FDS_SHIFT": 7,
        "INTERVAL_SHIFT": 8,
        "MAXSIZE_SHIFT": 12,
        "COUNTSIZE_SHIFT": 16,
    },
    "PMBSR": {
        "EL1": key_of("S3_0_C9_C10_3"),
        "FSC": 0x3F,
        "BSC_FULL": 1,
        "COLL": 1 << 16,
        "S": 1 << 17,
        "EA": 1 << 18,
        "DL": 1 << 19,
        "EC_SHIFT": 26,
        "EC_OTHER": 0,
        "EC_STAGE1": 0x24,
        "EC_STAGE2": 0x25,
    },
    "SPEV1P1": {"": 2},
    "SPEV1P2": {"": 3},
    "SPEV1P4": {"": 5},
    "PMUV3P0": {"": 1},
    "PMUV3P1": {"": 4},
    "PMUV3P4": {"": 5},
    "PMUV3P5": {"": 6},
    "PMUV3P7": {"": 7},
    "PMUV3P8": {"": 8},
    "PMUV3P9": {"": 9},
    "EC": {"UNKNOWN": 0, "SYS64": 0x18},
    "ESR": {"EC_SHIFT": 26, "IL": 1 << 25},
}


@pytest.mark.parametrize("prefix", NUMBERS)
def test_bit_numbers_and_values_are_the_manuals(prefix: str) -> None:
    expected = {f"{prefix}_{name}".rstrip("_"): number for name, number in NUMBERS[prefix].items()}
    found = {name: value for name, value in vars(sysreg).items() if name == prefix or name.startswith(f"{prefix}_")}
    assert found == expected


# D14.3
EVENTS = {
    "SW_INCR": 0x00,
    "LD_RETIRED": 0x06,
    "ST_RETIRED": 0x07,
    "INST_RETIRED": 0x08,
    "EXC_TAKEN": 0x09,
    "EXC_RETURN": 0x0A,
    "PC_WRITE_RETIRED": 0x0C,
    "BR_IMMED_RETIRED": 0x0D,
    "BR_RETURN_RETIRED": 0x0E,
    "CPU_CYCLES": 0x11,
    "MEM_ACCESS": 0x13,
    "INST_SPEC": 0x1B,
    "BUS_CYCLES": 0x1D,
    "CHAIN": 0x1E,
    "BR_RETIRED": 0x21,
    "STALL_FRONTEND": 0x23,
    "STALL_BACKEND": 0x24,
    "STALL_SLOT_BACKEND": 0x3D,
    "STALL_SLOT_FRONTEND": 0x3E,
    "STALL_SLOT": 0x3F,
}


def test_events_have_the_manuals_numbers_and_names() -> None:
    assert events.BY_NAME == EVENTS
    assert {events.name_of(number) for number in EVENTS.values()} == set(EVENTS)
    assert events.name_of(0x77) == "0x0077"


@pytest.mark.parametrize(
    ("event", "register", "bit"),
    [
        *((0x00, 0, 0), (0x1F, 0, 31), (0x20, 1, 0), (0x3F, 1, 31), (0x4000, 0, 32), (0x401F, 0, 63), (0x4020, 1, 32)),
        *((0x403F, 1, 63), (0x40, None, 0), (0x4040, None, 0), (0x8000, None, 0), (0xC000, None, 0), (0x2000, None, 0)),
    ],
)
def test_pmceid_has_a_bit_for_each_common_event(event: int, register: int | None, bit: int) -> None:
    for which in (0, 1):
        others = [number for number in (0x08, 0x21) if number != event]
        expected = (1 << 8 if which == 0 else 1 << 1) | (1 << bit if which == register else 0)
        assert events.pmceid([*others, event, event], which) == expected
