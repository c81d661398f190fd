"""Firmware calls: identifiers and return codes written out from DEN0022 and DEN0028."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuvisor.board.psci import Psci, PsciAction, PsciResult

SUCCESS, NOT_SUPPORTED, INVALID_PARAMETERS, ALREADY_ON, INVALID_ADDRESS = 0, -1, -2, -4, -9
CPU_ON_32, CPU_ON_64 = 0x8400_0003, 0xC400_0003
AFFINITY_INFO_32, AFFINITY_INFO_64 = 0x8400_0004, 0xC400_0004


def returned(result: PsciResult) -> int:
    """X0 as a signed number, of a call that did nothing else."""
    assert result.action is PsciAction.RETURN
    return result.value - (1 << 64 if result.value >> 63 else 0)


def test_versions() -> None:
    psci = Psci(1)
    assert returned(psci.call(0, 0x8400_0000)) == 0x1_0001
    assert returned(psci.call(0, 0x8000_0000)) == 0x1_0001


def test_error_codes_are_64_bits_wide() -> None:
    assert Psci(1).call(0, 0xDEAD_BEEF).value == 0xFFFF_FFFF_FFFF_FFFF


@pytest.mark.parametrize(
    "function",
    [0x8400_0000, 0x8400_0001, 0xC400_0001, 0x8400_0002, CPU_ON_32, CPU_ON_64, AFFINITY_INFO_32, AFFINITY_INFO_64]
    + [0x8400_0006, 0x8400_0008, 0x8400_0009, 0x8400_000A, 0x8000_0000],
)
def test_features_of_what_is_there(function: int) -> None:
    assert returned(Psci(1).call(0, 0x8400_000A, function)) == SUCCESS


@pytest.mark.parametrize(
    "function", [0x8400_0005, 0x8400_0007, 0xC400_0008, 0xC400_0002, 0x8400_000F, 0xC400_0012, 0x8000_0001, 0, 0x84]
)
def test_features_of_what_is_not_there(function: int) -> None:
    assert returned(Psci(1).call(0, 0x8400_000A, function)) == NOT_SUPPORTED


@pytest.mark.parametrize("function", [0x8400_0005, 0x8400_0007, 0xC400_0008, 0x8400_0010, 0x8600_0000, 0])
def test_unknown_functions_are_not_supported(function: int) -> None:
    assert returned(Psci(2).call(0, function)) == NOT_SUPPORTED


def test_arch_features_knows_only_itself_and_the_version() -> None:
    psci = Psci(1)
    assert returned(psci.call(0, 0x8000_0001, 0x8000_0000)) == SUCCESS
    assert returned(psci.call(0, 0x8000_0001, 0x8000_0001)) == SUCCESS
    assert returned(psci.call(0, 0x8000_0001, 0x8000_8000)) == NOT_SUPPORTED


def test_there_is_no_trusted_os_to_migrate() -> None:
    assert returned(Psci(1).call(0, 0x8400_0006)) == 2


def test_cpu_on_starts_a_cpu_once() -> None:
    psci = Psci(2)
    assert not psci.is_on(1)
    assert returned(psci.call(0, AFFINITY_INFO_64, 1, 0)) == 1
    result = psci.call(0, CPU_ON_64, 1, 0x4020_0000, 0x1234_5678_9ABC_DEF0)
    assert result == PsciResult(SUCCESS, PsciAction.CPU_ON, 1, 0x4020_0000, 0x1234_5678_9ABC_DEF0)
    assert psci.is_on(1)
    assert returned(psci.call(0, AFFINITY_INFO_64, 1, 0)) == 0
    assert returned(psci.call(0, CPU_ON_64, 1, 0x4020_0000)) == ALREADY_ON
    assert returned(psci.call(0, CPU_ON_64, 0, 0x4020_0000)) == ALREADY_ON


def test_32_bit_cpu_on_takes_the_low_halves() -> None:
    result = Psci(2).call(0, CPU_ON_32, 0xFFFF_FFFF_0000_0001, 0xABCD_0000_4020_0000, 0x1_0000_0007)
    assert (result.action, result.target, result.entry, result.context) == (PsciAction.CPU_ON, 1, 0x4020_0000, 7)


@pytest.mark.parametrize("mpidr", [2, 0x100, 0x8000_0001, 1 << 32 | 1, 1 << 40, 2**64 - 1])
def test_cpu_on_of_an_affinity_that_is_not_there(mpidr: int) -> None:
    assert returned(Psci(2).call(0, CPU_ON_64, mpidr, 0x4020_0000)) == INVALID_PARAMETERS
    assert returned(Psci(2).call(0, AFFINITY_INFO_64, mpidr, 0)) == INVALID_PARAMETERS


def test_cpu_on_at_an_address_that_holds_no_instruction() -> None:
    psci = Psci(2)
    assert returned(psci.call(0, CPU_ON_64, 1, 0x4020_0002)) == INVALID_ADDRESS
    assert not psci.is_on(1)


def test_a_cpu_that_turned_itself_off_can_be_started_again() -> None:
    psci = Psci(2)
    psci.call(0, CPU_ON_64, 1, 0x4020_0000)
    assert psci.call(1, 0x8400_0002).action is PsciAction.CPU_OFF
    assert returned(psci.call(0, AFFINITY_INFO_32, 1, 0)) == 1
    assert psci.call(0, CPU_ON_64, 1, 0x4020_0000).action is PsciAction.CPU_ON


def test_affinity_info_of_a_cluster() -> None:
    psci = Psci(2)
    for level in (1, 2, 3):
        assert returned(psci.call(0, AFFINITY_INFO_64, 0, level)) == 0
        assert returned(psci.call(0, AFFINITY_INFO_64, 1 << 32, level)) == INVALID_PARAMETERS
    assert returned(psci.call(0, AFFINITY_INFO_64, 0x100, 1)) == INVALID_PARAMETERS
    assert returned(psci.call(0, AFFINITY_INFO_64, 0, 4)) == INVALID_PARAMETERS


def test_suspend_waits_for_an_interrupt_whatever_the_state() -> None:
    psci = Psci(1)
    for function in (0x8400_0001, 0xC400_0001):
        for power_state in (0, 0x1_0000, 0x0301_FFFF):
            assert psci.call(0, function, power_state, 0x4020_0000) == PsciResult(SUCCESS, PsciAction.SUSPEND)
    assert returned(psci.call(0, 0x8400_0001, 1 << 17)) == INVALID_PARAMETERS
    assert psci.is_on(0)


def test_the_machine_can_be_turned_off_and_reset() -> None:
    assert Psci(1).call(0, 0x8400_0008).action is PsciAction.SYSTEM_OFF
    assert Psci(1).call(0, 0x8400_0009).action is PsciAction.SYSTEM_RESET


FUNCTIONS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.builds(lambda a, b: a | b, st.sampled_from([0x84 << 24, 0xC4 << 24]), st.integers(0, 24)),
)
ARGUMENT = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 4))


@given(st.lists(st.tuples(st.integers(0, 2), FUNCTIONS, ARGUMENT, ARGUMENT, ARGUMENT), max_size=30))
def test_no_call_raises_and_cpus_go_on_and_off_only_by_their_actions(
    calls: list[tuple[int, int, int, int, int]],
) -> None:
    psci = Psci(3)
    on = [True, False, False]
    for cpu, *arguments in calls:
        result = psci.call(cpu, *arguments)
        assert 0 <= result.value < 1 << 64
        if result.action is PsciAction.CPU_ON:
            assert not on[result.target]
            on[result.target] = True
        elif result.action is PsciAction.CPU_OFF:
            on[cpu] = False
        assert [psci.is_on(n) for n in range(3)] == on
