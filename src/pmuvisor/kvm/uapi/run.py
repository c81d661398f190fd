"""KVM_RUN: from the first checks to the exit that userspace sees (arch/arm64/kvm/arm.c).

Who executes the guest's instructions is the host's `Executor`: a board with an engine, or a `Script`. It is called with
the vCPU loaded and entered on the CPU where the calling thread is, and comes back with an exit for userspace, or
without one, when the host may run and the guest goes on.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pmuvisor.arch import sysreg
from pmuvisor.kvm.uapi import abi
from pmuvisor.kvm.uapi.memory import error

if TYPE_CHECKING:
    from pmuvisor.kvm.uapi.vcpu import Vcpu


@dataclass(frozen=True)
class Mmio:
    """The guest accessed memory that nobody in the kernel has: KVM_EXIT_MMIO."""

    phys_addr: int
    length: int
    is_write: bool
    data: int = 0


@dataclass(frozen=True)
class SystemEvent:
    """The guest asked PSCI to power off or reset: KVM_EXIT_SYSTEM_EVENT of a KVM_SYSTEM_EVENT_* type."""

    type: int


@dataclass(frozen=True)
class Signal:
    """A signal is pending for the thread: EINTR, KVM_EXIT_INTR."""


@dataclass(frozen=True)
class Preempt:
    """The thread is scheduled out while it runs the guest, and in again on a CPU: nothing that userspace sees."""

    cpu: int


Exit = Mmio | SystemEvent | Signal | Preempt


class Executor(Protocol):
    """Whoever executes guests' instructions."""

    def run(self, vcpu: Vcpu) -> Exit | None:
        """Execute the guest of `vcpu`, which is loaded and entered, until it exits.

        Accesses to PMU and SPE registers go through `vcpu.system.guest_access`. None: nothing for userspace, enter
        again; so it has to be for an interrupt of the host's: PMUIRQ where a counter has overflowed, PMBIRQ where the
        profiling buffer requires service.
        """


def run(vcpu: Vcpu) -> int:
    """State kvm_vcpu_ioctl() of KVM_RUN and kvm_arch_vcpu_ioctl_run(). Returns 0; raises OSError with KVM's errno."""
    _run_pid_change(vcpu)
    page = vcpu.run_page
    system = vcpu.system
    if page.exit_reason == abi.KVM_EXIT_MMIO and not page.mmio.is_write:
        vcpu.mmio_result = int.from_bytes(bytes(page.mmio.data)[: page.mmio.len], "little")
    if page.immediate_exit:
        raise error(errno.EINTR, "immediate_exit is set")
    system.vcpu_load(vcpu)
    try:
        page.exit_reason = abi.KVM_EXIT_UNKNOWN
        page.flags = 0
        while not _enter_once(vcpu):
            pass
    finally:
        if vcpu.vm.vgic is None:
            page.s.regs.device_irq_level = abi.KVM_ARM_DEV_PMU * vcpu.record.irq_level
        system.vcpu_put(vcpu)
    if page.exit_reason == abi.KVM_EXIT_INTR:
        raise error(errno.EINTR, "KVM_RUN was interrupted")
    return 0


def _run_pid_change(vcpu: Vcpu) -> None:
    """State kvm_arch_vcpu_run_pid_change(): what is checked before a vCPU first runs. Raises ENOEXEC and others."""
    vm = vcpu.vm
    if not vcpu.initialized:
        raise error(errno.ENOEXEC, "KVM_ARM_VCPU_INIT was not done")
    if vcpu.has_run_once:
        return
    if vm.vgic is not None:
        try:
            vm.vgic.map_resources()
        except OSError:
            vm.dead = True
            raise
        vm.vgic.enable_timers(vcpu.index)
    if vm.has_pmu():
        _pmu_v3_enable(vcpu)
    if vm.has_spe() and not vcpu.spe_initialized:
        # kvm_spe_vcpu_first_run_init(), as v5 of the series has it; v4 had EPERM.
        raise error(errno.EINVAL, "KVM_ARM_VCPU_SPE_INIT was not done")
    vm.ran_once = True
    vcpu.has_run_once = True


def _pmu_v3_enable(vcpu: Vcpu) -> None:
    """State kvm_arm_pmu_v3_enable(). An interrupt without a VGIC cannot be: IRQ is refused then. Raises EINVAL."""
    if not vcpu.pmu_created:
        raise error(errno.EINVAL, "KVM_ARM_VCPU_PMU_V3_INIT was not done")
    vgic = vcpu.vm.vgic
    if vgic is not None and not abi.irq_is_ppi(vcpu.irq_num) and not vgic.valid_spi(vcpu.irq_num):
        raise error(errno.EINVAL, f"interrupt {vcpu.irq_num} is neither a PPI nor one of the VGIC's SPIs")


def _enter_once(vcpu: Vcpu) -> bool:
    """Enter the guest once, if it may. Tell whether userspace is next."""
    page = vcpu.run_page
    system = vcpu.system
    if vcpu.mp_state == abi.KVM_MP_STATE_STOPPED:
        # Nobody else runs while this thread sleeps for PSCI's CPU_ON; what ends the sleep is a signal.
        page.exit_reason = abi.KVM_EXIT_INTR
        return True
    system.flush_hwstate(vcpu)
    if should_notify_user(vcpu):
        page.exit_reason = abi.KVM_EXIT_INTR
        return True
    if vcpu.record.unsupported_cpu == 1:
        page.exit_reason = abi.KVM_EXIT_FAIL_ENTRY
        page.fail_entry.hardware_entry_failure_reason = abi.KVM_EXIT_FAIL_ENTRY_CPU_UNSUPPORTED
        page.fail_entry.cpu = system.cpu
        return True
    system.vcpu_enter(vcpu)
    try:
        why = system.executor.run(vcpu)
    finally:
        system.vcpu_exit(vcpu)
    system.handle_irq(vcpu)
    if isinstance(why, Preempt):
        system.preempt(vcpu, why.cpu)
        return False
    if why is None:
        return False
    _tell(vcpu, why)
    return True


def should_notify_user(vcpu: Vcpu) -> bool:
    """State kvm_pmu_should_notify_user(): the line has changed, and the interrupt controller is userspace's."""
    told = vcpu.run_page.s.regs.device_irq_level & abi.KVM_ARM_DEV_PMU != 0
    return vcpu.vm.vgic is None and vcpu.vm.has_pmu() and bool(vcpu.record.irq_level) != told


def _tell(vcpu: Vcpu, why: Mmio | SystemEvent | Signal) -> None:
    """Fill `kvm_run` with why the guest has exited."""
    page = vcpu.run_page
    if isinstance(why, Mmio):
        page.exit_reason = abi.KVM_EXIT_MMIO
        page.mmio.phys_addr, page.mmio.len, page.mmio.is_write = why.phys_addr, why.length, why.is_write
        page.mmio.data[:] = list(why.data.to_bytes(8, "little"))
    elif isinstance(why, SystemEvent):
        page.exit_reason = abi.KVM_EXIT_SYSTEM_EVENT
        page.system_event.type, page.system_event.ndata = why.type, 0
    else:
        page.exit_reason = abi.KVM_EXIT_INTR


# ---- a guest that is a script -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """MRS of a PMU or SPE register, by its name. The script is sent the value, or None where it was UNDEFINED."""

    register: str
    el: int = 1


@dataclass(frozen=True)
class Write:
    """MSR of a PMU or SPE register, by its name. The script is sent True, or None where it was UNDEFINED."""

    register: str
    value: int
    el: int = 1


@dataclass(frozen=True)
class Execute:
    """So many instructions, each of one cycle, at an Exception level."""

    instructions: int
    el: int = 1


Step = Read | Write | Execute | Preempt | Mmio | SystemEvent | Signal
Guest = Generator[Step, int | None, None]
"""A guest: a generator of steps. What a Read yields is the value; a read Mmio's is what userspace gave."""


class Script:
    """An executor whose guests are Python generators, one for each vCPU."""

    def __init__(self) -> None:
        self._guests: dict[int, Guest] = {}
        self._sent: dict[int, int | None] = {}
        self._interrupted: dict[int, Execute] = {}

    def set_guest(self, number: int, guest: Callable[[], Guest]) -> None:
        """Let the world's vCPU `number` execute `guest` from its beginning."""
        self._guests[number] = guest()
        self._sent[number] = None
        self._interrupted.pop(number, None)

    def run(self, vcpu: Vcpu) -> Exit | None:
        """Carry out steps until one exits. A script that has ended powers off."""
        number = vcpu.number
        if vcpu.mmio_result is not None:
            self._sent[number], vcpu.mmio_result = vcpu.mmio_result, None
        while not should_notify_user(vcpu):
            step = self._next(number)
            if isinstance(step, Execute):
                left = step.instructions - vcpu.system.execute(vcpu, step.el, step.instructions)
                if left:
                    self._interrupted[number] = Execute(left, step.el)
                    return None
            elif isinstance(step, (Read, Write)):
                write = isinstance(step, Write)
                value = step.value if isinstance(step, Write) else 0
                key = sysreg.BY_NAME[step.register]
                self._sent[number] = vcpu.system.guest_access(vcpu, step.el, key, int(write), value)
            else:
                return step
        return None

    def _next(self, number: int) -> Step:
        """Return the next step of a guest: what is left of one that was interrupted, or the script's next."""
        if number in self._interrupted:
            return self._interrupted.pop(number)
        sent, self._sent[number] = self._sent[number], None
        try:
            return self._guests[number].send(sent)
        except StopIteration:
            return SystemEvent(abi.KVM_SYSTEM_EVENT_SHUTDOWN)
