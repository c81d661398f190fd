"""The profiling unit's part of the catalogue: steps of its context switch that are left out, or come too late.

Each function here is wrong in the way that its defect's words say. Those of the sound design are in kvm/ alone.
"""

from __future__ import annotations

from pmuvisor.arch import spe as arch_spe
from pmuvisor.arch.spe import EL2, Spu
from pmuvisor.arch.sysreg import PMBLIMITR_E, PMBLIMITR_EL1, PMBPTR_EL1, PMBSR_EL1, PMBSR_S, PMSCR_E1SPE, PMSCR_EL2
from pmuvisor.check.defects import Defect
from pmuvisor.check.spe.models import DESIGN
from pmuvisor.kvm import spe
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import HostContext, Vcpu, Vm
from pmuvisor.kvm.world import World

SERIES = "SPE series, v6, patch 22 (context switch SPE state)"


def owner_before_drain(world: World, c: int, v: int, residency: int, now: int, section: int) -> None:
    """kvm_vcpu_load_debug() comes before kvm_vcpu_spe_load(): the guest owns the buffer while the host's is drained."""
    worlds.load_section(world, c, v, residency, now, (section + 2) % worlds.LOAD_SECTIONS)


def owner_not_synchronised(spu: Spu, host: HostContext, vcpu: Vcpu) -> None:
    """The host's buffer is enabled with no ISB between that and the write of MDCR_EL2 that makes it the host's."""
    spe.save_sampling(spu, vcpu.spe)
    spe.restore_sampling(spu, host.spe)
    arch_spe.write(spu, PMSCR_EL2, host.pmscr_el2)
    spu.pointer_of = arch_spe.HOST
    arch_spe.write(spu, PMBPTR_EL1, host.spe.pmbptr)
    arch_spe.write(spu, PMBSR_EL1, host.spe.pmbsr)
    arch_spe.write(spu, PMBLIMITR_EL1, host.spe.pmblimitr)
    arch_spe.isb(spu)


def irq_race(world: World, c: int, v: int, residency: int, now: int, section: int) -> None:
    """Interrupts are on again before KVM has taken the service that the host's buffer requires."""
    spu, host = world.host.cpus[c].spu, world.saved[c]
    if section == 0:
        worlds.reserve_counters(world, c, v, now)
        stop_host(spu, host)
        return
    if section == 1:
        take_service(spu, host)
    worlds.load_section(world, c, v, residency, now, section)


def stop_host(spu: Spu, host: HostContext) -> None:
    """State the first half of what kvm_vcpu_spe_load() does with interrupts off."""
    host.pmscr_el2 = arch_spe.read(spu, EL2, PMSCR_EL2)
    arch_spe.write(spu, PMSCR_EL2, 0)
    if host.pmscr_el2 & PMSCR_E1SPE != 0:
        arch_spe.isb(spu)
    host.spe.pmblimitr = arch_spe.read(spu, EL2, PMBLIMITR_EL1)
    if host.spe.pmblimitr & PMBLIMITR_E != 0:
        arch_spe.psb_csync(spu)
        arch_spe.dsb(spu)
        arch_spe.write(spu, PMBLIMITR_EL1, 0)
        arch_spe.isb(spu)


def take_service(spu: Spu, host: HostContext) -> None:
    """State the second half."""
    host.spe.pmbsr = arch_spe.read(spu, EL2, PMBSR_EL1)
    if host.spe.pmbsr & PMBSR_S != 0:
        arch_spe.write(spu, PMBSR_EL1, 0)
        arch_spe.isb(spu)


def enabled_with_service(spu: Spu, vm: Vm, vcpu: Vcpu, guest: int) -> None:
    """The guest's buffer goes into the unit where it is enabled, be service required of it or not."""
    if vm.spe == 0 or vcpu.spe.pmblimitr & PMBLIMITR_E == 0:
        return
    spu.pointer_of = guest
    arch_spe.write(spu, PMBPTR_EL1, vcpu.spe.pmbptr)
    arch_spe.isb(spu)
    arch_spe.write(spu, PMBLIMITR_EL1, vcpu.spe.pmblimitr)


def irq_left_raised(spu: Spu, vm: Vm, vcpu: Vcpu) -> int:
    """PMBSR_EL1 is taken for the guest and stays as it is in the unit, which goes on asserting PMBIRQ."""
    service = spe.save_guest_buffer(spu, vm, vcpu)
    if service == 1:
        arch_spe.write(spu, PMBSR_EL1, vcpu.spe.pmbsr)
        arch_spe.isb(spu)
    return service


def host_not_resumed(spu: Spu, host: HostContext, vcpu: Vcpu) -> None:
    """All of the host's is back but PMSCR_EL2, which KVM has cleared."""
    spe.put(spu, host, vcpu)
    arch_spe.write(spu, PMSCR_EL2, 0)
    arch_spe.isb(spu)


ALL = (
    Defect(
        "spe-owner-before-drain",
        worlds.load_section,
        owner_before_drain,
        f"{SERIES}, kvm_arch_vcpu_load()",
        "the host's last records before a guest runs are written into that guest's memory",
        DESIGN,
        "spe",
    ),
    Defect(
        "spe-owner-not-synchronised",
        spe.put,
        owner_not_synchronised,
        f"{SERIES}, kvm_vcpu_spe_put()",
        "the host's buffer is looked up in the tables of the guest that has left: its records land in guest memory",
        DESIGN,
        "spe",
    ),
    Defect(
        "spe-irq-race",
        worlds.load_section,
        irq_race,
        f"{SERIES}, kvm_vcpu_spe_load(), which turns interrupts off",
        "the host's interrupt handler enables its buffer again, and the guest gets the unit with that in it",
        DESIGN,
        "spe",
    ),
    Defect(
        "spe-enabled-with-service",
        spe.restore_guest_buffer,
        enabled_with_service,
        f"{SERIES}, __kvm_spe_restore_guest_buffer()",
        "a guest is profiled on while its interrupt is due: records go beyond what its driver looks at",
        DESIGN,
        "spe",
    ),
    Defect(
        "spe-irq-left-raised",
        spe.save_guest_buffer,
        irq_left_raised,
        f"{SERIES}, __kvm_spe_save_guest_buffer()",
        "the host is interrupted without end for a guest's full buffer",
        DESIGN,
        "spe",
    ),
    Defect(
        "spe-host-not-resumed",
        spe.put,
        host_not_resumed,
        f"{SERIES}, kvm_vcpu_spe_put()",
        "a host's profile ends, silently, when the first guest with SPE has run there",
        DESIGN,
        "spe",
    ),
)
"""In the order of the context switch."""
