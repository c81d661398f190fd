"""The firmware calls of a machine: PSCI, and the part of the SMC calling convention that finds it.

For: guests that turn CPUs and the machine on and off through HVC or SMC. This module only decides: `Psci.call` gives
the value for X0 and what is to happen, and its owner makes that happen. Not for: OS-initiated suspend, trusted-OS
migration, memory protection, statistics.

The rules are those of the PSCI specification 1.1, Arm DEN0022, and of the SMC calling convention 1.1, Arm DEN0028.
CPU_SUSPEND waits for an interrupt whatever state is asked for, which the specification lets an implementation do.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

_MASK32: Final = 0xFFFF_FFFF
_MASK64: Final = (1 << 64) - 1
_SMC64: Final = 1 << 30


class Function(IntEnum):
    """The functions that are there, by their 32-bit identifiers; a 64-bit variant has bit 30 set as well."""

    SMCCC_VERSION = 0x8000_0000
    SMCCC_ARCH_FEATURES = 0x8000_0001
    PSCI_VERSION = 0x8400_0000
    CPU_SUSPEND = 0x8400_0001
    CPU_OFF = 0x8400_0002
    CPU_ON = 0x8400_0003
    AFFINITY_INFO = 0x8400_0004
    MIGRATE_INFO_TYPE = 0x8400_0006
    SYSTEM_OFF = 0x8400_0008
    SYSTEM_RESET = 0x8400_0009
    PSCI_FEATURES = 0x8400_000A


_BY_ID: Final[dict[int, Function]] = {
    **{function.value: function for function in Function},
    **{f.value | _SMC64: f for f in (Function.CPU_SUSPEND, Function.CPU_ON, Function.AFFINITY_INFO)},
}


class Status(IntEnum):
    """What PSCI functions return in X0."""

    SUCCESS = 0
    NOT_SUPPORTED = -1
    INVALID_PARAMETERS = -2
    ALREADY_ON = -4
    INVALID_ADDRESS = -9


_VERSION_1_1: Final = 1 << 16 | 1
_NO_MIGRATION: Final = 2  # there is no trusted OS that would need it
_AFFINITY_ON: Final = 0
_AFFINITY_OFF: Final = 1
_POWER_STATE: Final = 0x0301_FFFF  # power level, type and identifier; the other bits are reserved


class PsciAction(Enum):
    """What the owner of the machine does on behalf of a call."""

    RETURN = "return"
    """Nothing: only X0 changes."""
    CPU_ON = "cpu-on"
    """Start CPU `target` at `entry`, at EL1 with the MMU off and interrupts masked, with `context` in X0."""
    CPU_OFF = "cpu-off"
    """Stop the calling CPU; the call does not return."""
    SUSPEND = "suspend"
    """Have the calling CPU wait for an interrupt, then return `value`."""
    SYSTEM_OFF = "system-off"
    """End the machine; the call does not return."""
    SYSTEM_RESET = "system-reset"
    """Restart the machine, with a new `Psci`; the call does not return."""


@dataclass(frozen=True, slots=True)
class PsciResult:
    """The outcome of a call: `value` for X0 (64 bits, two's complement), and an action with its operands."""

    value: int
    action: PsciAction = PsciAction.RETURN
    target: int = 0
    entry: int = 0
    context: int = 0


def _returns(value: int) -> PsciResult:
    return PsciResult(value & _MASK64)


class Psci:
    """Which CPUs of a machine are on; CPU 0 is from the start. CPUs are numbered in Aff0 of their MPIDR."""

    __slots__ = ("_on",)

    def __init__(self, num_cpus: int) -> None:
        self._on = [cpu == 0 for cpu in range(num_cpus)]

    def is_on(self, cpu: int) -> bool:
        """Whether a CPU is on, that is, not off: one that is suspended is on."""
        return self._on[cpu]

    def set_on(self, cpu: int, on: bool) -> None:
        """Take from the owner whether a CPU is on, as KVM does from userspace (KVM_SET_MP_STATE)."""
        self._on[cpu] = on

    def call(self, cpu: int, function_id: int, x1: int = 0, x2: int = 0, x3: int = 0) -> PsciResult:
        """Decide a call of CPU `cpu`: X0 held the function identifier, of which the low 32 bits count.

        A 32-bit function takes the low halves of its arguments. What is not known returns NOT_SUPPORTED.
        """
        function_id &= _MASK32
        if not function_id & _SMC64:
            x1, x2, x3 = x1 & _MASK32, x2 & _MASK32, x3 & _MASK32
        match _BY_ID.get(function_id):
            case Function.SMCCC_VERSION | Function.PSCI_VERSION:
                return _returns(_VERSION_1_1)
            case Function.SMCCC_ARCH_FEATURES:
                present = x1 & _MASK32 in (Function.SMCCC_VERSION, Function.SMCCC_ARCH_FEATURES)
                return _returns(Status.SUCCESS if present else Status.NOT_SUPPORTED)
            case Function.PSCI_FEATURES:
                return _returns(self._features(x1 & _MASK32))
            case Function.MIGRATE_INFO_TYPE:
                return _returns(_NO_MIGRATION)
            case Function.AFFINITY_INFO:
                return _returns(self._affinity_info(x1, x2))
            case Function.CPU_SUSPEND:
                return self._suspend(x1)
            case Function.CPU_ON:
                return self._cpu_on(x1, x2, x3)
            case Function.CPU_OFF:
                self._on[cpu] = False
                return PsciResult(Status.SUCCESS, PsciAction.CPU_OFF)
            case Function.SYSTEM_OFF:
                return PsciResult(Status.SUCCESS, PsciAction.SYSTEM_OFF)
            case Function.SYSTEM_RESET:
                return PsciResult(Status.SUCCESS, PsciAction.SYSTEM_RESET)
        return _returns(Status.NOT_SUPPORTED)

    @staticmethod
    def _features(function_id: int) -> int:
        """No function that is there has a feature flag set: CPU_SUSPEND takes the original power_state format."""
        function = _BY_ID.get(function_id)
        known = function not in (None, Function.SMCCC_ARCH_FEATURES)  # a function of PSCI, or the version of SMCCC
        return Status.SUCCESS if known else Status.NOT_SUPPORTED

    @staticmethod
    def _suspend(power_state: int) -> PsciResult:
        if power_state & _MASK32 & ~_POWER_STATE:
            return _returns(Status.INVALID_PARAMETERS)
        return PsciResult(Status.SUCCESS, PsciAction.SUSPEND)

    def _cpu_on(self, target: int, entry: int, context: int) -> PsciResult:
        if target >= len(self._on):
            return _returns(Status.INVALID_PARAMETERS)
        if self._on[target]:
            return _returns(Status.ALREADY_ON)
        if entry & 3:
            return _returns(Status.INVALID_ADDRESS)
        self._on[target] = True
        return PsciResult(Status.SUCCESS, PsciAction.CPU_ON, target, entry, context)

    def _affinity_info(self, affinity: int, level: int) -> int:
        """At level n the affinity fields below Affn do not count. All CPUs share Aff1 to Aff3, and the caller is on."""
        if level == 0 and affinity < len(self._on):
            return _AFFINITY_ON if self._on[affinity] else _AFFINITY_OFF
        ignored = {1: 0xFF, 2: 0xFFFF, 3: 0xFF_FFFF}.get(level)
        if ignored is None or affinity & ~ignored:
            return Status.INVALID_PARAMETERS
        return _AFFINITY_ON
