"""What KVM does about host events that tell the host from its guests (arch/arm64/kvm/pmu.c of Linux 6.12, VHE).

EL0 is the host's processes' as well as the guests'. An event that counts it in one of the two only has its filter
switched when a vCPU is loaded and put.
"""

from __future__ import annotations

from pmuvisor.arch import pmu
from pmuvisor.arch.sysreg import FILTER_U, INSTRUCTION
from pmuvisor.linux.host import Cpu


def set_el0(cpu: Cpu, counters: int, excluded: int) -> None:
    """State kvm_vcpu_pmu_enable_el0() and kvm_vcpu_pmu_disable_el0(): `excluded` is 1 where EL0 is not to count."""
    for i in range(INSTRUCTION + 1):
        if (counters >> i) & 1 == 1:
            control = pmu.counter_control(cpu.pe, i) & ~(1 << FILTER_U)
            pmu.write_control(cpu.pe, i, control | (excluded << FILTER_U))


def restore_guest(cpu: Cpu) -> None:
    """State kvm_vcpu_pmu_restore_guest(): a vCPU is loaded, EL0 is the guest's."""
    cpu.hw.resync_el0 = 0
    set_el0(cpu, cpu.hw.events_guest, 0)
    set_el0(cpu, cpu.hw.events_host, 1)


def restore_host(cpu: Cpu) -> None:
    """State kvm_vcpu_pmu_restore_host(): no vCPU is loaded, EL0 is the host's."""
    set_el0(cpu, cpu.hw.events_host, 0)
    set_el0(cpu, cpu.hw.events_guest, 1)
