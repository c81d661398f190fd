"""The Statistical Profiling Unit, shared by host and guests: its context switch, its traps, its interrupt.

States the "KVM: arm64: Add Statistical Profiling Extension (SPE) support" series, v6 (VHE), arch/arm64/kvm/spe.c and
hyp/vhe/spe-sr.c. Host profiling stops when a vCPU that has SPE is loaded, and goes on when it is put. The sampling
registers are the guest's while it is loaded, directly; its buffer is in the unit only while it executes, and its buffer
registers trap, so that what KVM has in memory is what the guest wrote.

Where this decides what the series leaves to the reader: E2PB is 0b10, the EL1&0 regime with accesses trapped; TPMS is
clear; with FEAT_FGT PMBIDR_EL1 traps as well, and shows the largest buffer. Too large a one is not enabled: the guest
gets a buffer management event for an IMPLEMENTATION DEFINED reason.
"""

from __future__ import annotations

from pmuvisor.arch import spe
from pmuvisor.arch.pmu import Pe
from pmuvisor.arch.spe import Spu
from pmuvisor.arch.sysreg import (
    FGT_NPMSNEVFR,
    FGT_R_PMBIDR,
    MDCR_E2PB_SHIFT,
    MDCR_TPMS,
    PMBIDR_EL1,
    PMBIDR_MAXBUFFSIZE_SHIFT,
    PMBIDR_P,
    PMBLIMITR_E,
    PMBLIMITR_EL1,
    PMBPTR_EL1,
    PMBSR_EC_SHIFT,
    PMBSR_EC_STAGE2,
    PMBSR_EL1,
    PMBSR_S,
    PMSCR_E1SPE,
    PMSCR_EL1,
    PMSCR_EL2,
    PMSDSFR_EL1,
    PMSEVFR_EL1,
    PMSFCR_EL1,
    PMSICR_EL1,
    PMSIRR_EL1,
    PMSLATFR_EL1,
    PMSNEVFR_EL1,
)
from pmuvisor.kvm.vcpu import DONE, UNDEF, HostContext, SpeContext, Vcpu, Vm

E2PB_EL1_TRAPPED = 2
"""MDCR_EL2.E2PB while an SPE VM's vCPU is loaded."""
EC_IMPLEMENTATION_DEFINED = 0x1F
"""PMBSR_EL1.EC: a buffer management event for an IMPLEMENTATION DEFINED reason."""
SAMPLING_REGISTERS = 6
"""Swapped at load and put, the host's and the guest's each; two more with their features."""
HOST_BUFFER_REGISTERS = 4
"""PMSCR_EL2, PMBLIMITR, PMBPTR, PMBSR."""
PAGE = 4096


def is_here(vm: Vm, supported: int) -> bool:
    """Tell whether a vCPU's profiling state comes to a CPU: it has SPE, and the CPU can run it."""
    return vm.spe == 1 and supported == 1


def profiling_buffer_enabled(pmblimitr: int, pmbsr: int) -> bool:
    """State kvm_spe_profiling_buffer_enabled(), of register values."""
    return pmbsr & PMBSR_S == 0 and pmblimitr & PMBLIMITR_E != 0


# ---- what the hardware is told -------------------------------------------------------------------------------


def mdcr_el2(vm: Vm, mdcr: int) -> int:
    """Return `mdcr` for an SPE VM: the buffer is the EL1&0 regime's, and the sampling registers do not trap."""
    if vm.spe == 0:
        return mdcr
    return (mdcr & ~MDCR_TPMS) | (E2PB_EL1_TRAPPED << MDCR_E2PB_SHIFT)


def fine_grained_traps(pe: Pe, spu: Spu, vm: Vm) -> None:
    """Add what of SPE stays trapped or is let through to the fine-grained traps of a vCPU that is being loaded.

    PMBIDR_EL1 is the one register that MDCR_EL2 does not trap: without FEAT_FGT a guest without SPE can read it.
    """
    if pe.core.fgt == 0 or spu.filter.core.pmsver == 0:
        return
    pe.hdfgrtr_el2 |= 1 << FGT_R_PMBIDR
    if vm.spe == 1:
        pe.hdfgrtr_el2 |= spu.filter.core.fne << FGT_NPMSNEVFR
        pe.hdfgwtr_el2 |= spu.filter.core.fne << FGT_NPMSNEVFR


# ---- load and put ---------------------------------------------------------------------------------------------


def drain_host(spu: Spu, host: HostContext) -> None:
    """State kvm_vcpu_spe_load() as far as interrupts are off: host profiling stops, and its buffer is drained.

    Service that the host's buffer requires is taken, so that PMBIRQ falls: its handler, if it runs before `swap_in`,
    finds it spurious.
    """
    host.pmscr_el2 = spe.read(spu, spe.EL2, PMSCR_EL2)
    spe.write(spu, PMSCR_EL2, 0)
    if host.pmscr_el2 & PMSCR_E1SPE != 0:
        spe.isb(spu)
    host.spe.pmblimitr = spe.read(spu, spe.EL2, PMBLIMITR_EL1)
    if host.spe.pmblimitr & PMBLIMITR_E != 0:
        spe.psb_csync(spu)
        spe.dsb(spu)
        spe.write(spu, PMBLIMITR_EL1, 0)
        spe.isb(spu)
    host.spe.pmbsr = spe.read(spu, spe.EL2, PMBSR_EL1)
    if host.spe.pmbsr & PMBSR_S != 0:
        spe.write(spu, PMBSR_EL1, 0)
        spe.isb(spu)


def swap_in(spu: Spu, host: HostContext, vcpu: Vcpu) -> None:
    """State the rest of kvm_vcpu_spe_load(): keep the host's write pointer, and swap the sampling registers."""
    host.spe.pmbptr = spe.read(spu, spe.EL2, PMBPTR_EL1)
    save_sampling(spu, host.spe)
    restore_sampling(spu, vcpu.spe)
    vcpu.swapped += 2 * sampling_registers(spu) + HOST_BUFFER_REGISTERS


def put(spu: Spu, host: HostContext, vcpu: Vcpu) -> None:
    """State kvm_vcpu_spe_put(), after the buffer is the host's again: its buffer is enabled last, between ISBs."""
    save_sampling(spu, vcpu.spe)
    restore_sampling(spu, host.spe)
    spe.write(spu, PMSCR_EL2, host.pmscr_el2)
    spu.pointer_of = spe.HOST
    spe.write(spu, PMBPTR_EL1, host.spe.pmbptr)
    spe.write(spu, PMBSR_EL1, host.spe.pmbsr)
    enabled = host.spe.pmblimitr & PMBLIMITR_E != 0
    if enabled:
        spe.isb(spu)
    spe.write(spu, PMBLIMITR_EL1, host.spe.pmblimitr)
    if enabled:
        spe.isb(spu)
    vcpu.swapped += 2 * sampling_registers(spu) + HOST_BUFFER_REGISTERS


def sampling_registers(spu: Spu) -> int:
    """Return how many sampling registers there are."""
    return SAMPLING_REGISTERS + spu.filter.core.fne + spu.filter.core.fds


def save_sampling(spu: Spu, ctxt: SpeContext) -> None:
    """State kvm_spe_save_sampling_regs()."""
    ctxt.pmscr_el1 = spe.read(spu, spe.EL2, PMSCR_EL1)
    if spu.filter.core.fne == 1:
        ctxt.pmsnevfr = spe.read(spu, spe.EL2, PMSNEVFR_EL1)
    ctxt.pmsicr = spe.read(spu, spe.EL2, PMSICR_EL1)
    ctxt.pmsirr = spe.read(spu, spe.EL2, PMSIRR_EL1)
    ctxt.pmsfcr = spe.read(spu, spe.EL2, PMSFCR_EL1)
    ctxt.pmsevfr = spe.read(spu, spe.EL2, PMSEVFR_EL1)
    ctxt.pmslatfr = spe.read(spu, spe.EL2, PMSLATFR_EL1)
    if spu.filter.core.fds == 1:
        ctxt.pmsdsfr = spe.read(spu, spe.EL2, PMSDSFR_EL1)


def restore_sampling(spu: Spu, ctxt: SpeContext) -> None:
    """State kvm_spe_restore_sampling_regs()."""
    spe.write(spu, PMSCR_EL1, ctxt.pmscr_el1)
    if spu.filter.core.fne == 1:
        spe.write(spu, PMSNEVFR_EL1, ctxt.pmsnevfr)
    spe.write(spu, PMSICR_EL1, ctxt.pmsicr)
    spe.write(spu, PMSIRR_EL1, ctxt.pmsirr)
    spe.write(spu, PMSFCR_EL1, ctxt.pmsfcr)
    spe.write(spu, PMSEVFR_EL1, ctxt.pmsevfr)
    spe.write(spu, PMSLATFR_EL1, ctxt.pmslatfr)
    if spu.filter.core.fds == 1:
        spe.write(spu, PMSDSFR_EL1, ctxt.pmsdsfr)


# ---- entry and exit -------------------------------------------------------------------------------------------


def restore_guest_buffer(spu: Spu, vm: Vm, vcpu: Vcpu, guest: int) -> None:
    """State __kvm_spe_restore_guest_buffer(): the guest's buffer goes into the unit, if it is enabled.

    Its service bit never does: where that is set in memory, all that keeps the unit from sampling is the buffer's
    enable. The exception return to the guest is a context synchronization event.
    """
    if vm.spe == 0 or not profiling_buffer_enabled(vcpu.spe.pmblimitr, vcpu.spe.pmbsr):
        return
    spu.pointer_of = guest
    spe.write(spu, PMBPTR_EL1, vcpu.spe.pmbptr)
    spe.isb(spu)
    spe.write(spu, PMBLIMITR_EL1, vcpu.spe.pmblimitr)


def save_guest_buffer(spu: Spu, vm: Vm, vcpu: Vcpu) -> int:
    """State __kvm_spe_save_guest_buffer(): drain, and take what the unit did to PMBPTR_EL1 and PMBSR_EL1.

    Return 1 where the unit required service.

    Whether the buffer is in the unit is asked of the registers in memory, as on entry: the guest's accesses to them
    trap, and do not reach the unit.
    """
    if vm.spe == 0 or not profiling_buffer_enabled(vcpu.spe.pmblimitr, vcpu.spe.pmbsr):
        return 0
    vcpu.spe_drained += 1
    spe.psb_csync(spu)
    spe.dsb(spu)
    spe.isb(spu)
    spe.write(spu, PMBLIMITR_EL1, 0)
    spe.isb(spu)
    vcpu.spe.pmbptr = spe.read(spu, spe.EL2, PMBPTR_EL1)
    pmbsr = spe.read(spu, spe.EL2, PMBSR_EL1)
    if pmbsr & PMBSR_S == 0:
        return 0
    spe.write(spu, PMBSR_EL1, 0)
    spe.isb(spu)
    vcpu.spe.pmbsr = pmbsr
    return 1


def is_stage2_fault(vcpu: Vcpu) -> bool:
    """Tell whether the guest's buffer requires service that is KVM's to do, not the guest's."""
    return vcpu.spe.pmbsr & PMBSR_S != 0 and (vcpu.spe.pmbsr >> PMBSR_EC_SHIFT) & 0x3F == PMBSR_EC_STAGE2


def resolve_stage2_fault(vcpu: Vcpu) -> None:
    """The page at the guest's write pointer has been mapped at stage 2: profiling goes on, and the guest sees nothing.

    But for the blackout: what was sampled from the fault to the next entry is lost.
    """
    vcpu.spe.pmbsr = 0
    vcpu.spe_stage2 += 1


def flush_hwstate(vm: Vm, vcpu: Vcpu) -> None:
    """Set the guest's PMBIRQ, on entry: its level is that of PMBSR_EL1.S in memory."""
    if vm.spe == 0:
        return
    level = int(vcpu.spe.pmbsr & PMBSR_S != 0)
    vcpu.spe_injected += level & (1 - vcpu.spe_irq_level)
    vcpu.spe_irq_level = level


# ---- trapped accesses -----------------------------------------------------------------------------------------


def max_buffer_field(size: int) -> int:
    """State max_buffer_size_to_pmbidr_el1(): PMBIDR_EL1.MaxBuffSize of a size in bytes, rounded down; 0 for any size.

    A floating-point number: a mantissa of 9 bits and above it an exponent of 5. With the exponent 0 the mantissa is
    pages of 4 KiB; else it has a further bit, which is 1, and the unit is 2 << (10 + exponent) bytes.
    """
    pages = size // PAGE
    exponent = 0
    while pages >> 10 != 0:
        pages >>= 1
        exponent += 1
    if pages >> 9 != 0:
        return ((exponent + 1) << 9) | (pages & 0x1FF)
    return pages


def max_buffer_size(field: int) -> int:
    """Return the bytes that PMBIDR_EL1.MaxBuffSize stands for."""
    exponent = (field >> 9) & 0x1F
    if exponent == 0:
        return (field & 0x1FF) * PAGE
    return (0x200 | (field & 0x1FF)) << (11 + exponent)


def guest_pmbidr(spu: Spu, vm: Vm) -> int:
    """Return PMBIDR_EL1 as KVM shows it: the guest may program the buffer, and has a largest one."""
    size = max_buffer_field(vm.spe_max_buffer) << PMBIDR_MAXBUFFSIZE_SHIFT
    return (spe.pmbidr(spu, spe.EL1) & ~PMBIDR_P) | size


def trapped_read(spu: Spu, vm: Vm, vcpu: Vcpu, key: int) -> int:
    """State kvm_spe_read_sysreg(): carry out a guest's trapped MRS; the value is left in `vcpu.value`."""
    if vm.spe == 0:
        return UNDEF
    if key == PMBLIMITR_EL1:
        vcpu.value = vcpu.spe.pmblimitr
    elif key == PMBPTR_EL1:
        vcpu.value = vcpu.spe.pmbptr
    elif key == PMBSR_EL1:
        vcpu.value = vcpu.spe.pmbsr
    elif key == PMBIDR_EL1:
        vcpu.value = guest_pmbidr(spu, vm)
    else:
        vcpu.value = spe.read(spu, spe.EL1, key)
    return DONE


def trapped_write(spu: Spu, vm: Vm, vcpu: Vcpu, key: int, value: int) -> int:
    """State kvm_spe_write_sysreg(): carry out a guest's trapped MSR. Return DONE or UNDEF."""
    if vm.spe == 0:
        return UNDEF
    value &= spe.writable(spu.filter.core, key)
    if key == PMBLIMITR_EL1:
        vcpu.spe.pmblimitr = value
        refuse_large_buffer(vm, vcpu)
    elif key == PMBPTR_EL1:
        vcpu.spe.pmbptr = value
    elif key == PMBSR_EL1:
        vcpu.spe.pmbsr = value
    else:
        spe.write(spu, key, value)
    return DONE


def buffer_size(vcpu: Vcpu) -> int:
    """Return how many bytes there are from the guest's write pointer to its limit; 0 where that is not above."""
    limit = vcpu.spe.pmblimitr & ~spe.OFFSET
    if spe.below(vcpu.spe.pmbptr, limit) == 0:
        return 0
    return spe.wrap(limit - vcpu.spe.pmbptr)


def refuse_large_buffer(vm: Vm, vcpu: Vcpu) -> None:
    """A guest that enables a buffer larger than its VM may have gets a management event instead."""
    if vm.spe_max_buffer == 0 or vcpu.spe.pmblimitr & PMBLIMITR_E == 0:
        return
    if spe.below(vm.spe_max_buffer, buffer_size(vcpu)) == 1:
        vcpu.spe.pmbsr = PMBSR_S | (EC_IMPLEMENTATION_DEFINED << PMBSR_EC_SHIFT)


def reset_registers(vcpu: Vcpu, unknown: int) -> None:
    """Reset the guest's profiling registers: PMBLIMITR_EL1.E is 0, and what is UNKNOWN becomes what KVM makes of it.

    PMBSR_EL1.S is left clear: a guest that never profiles is not to have an interrupt raised.
    """
    vcpu.spe.pmscr_el1 = 0
    vcpu.spe.pmsicr = unknown & 0xFFFF_FFFF
    vcpu.spe.pmsirr = 0
    vcpu.spe.pmsfcr = 0
    vcpu.spe.pmsevfr = 0
    vcpu.spe.pmsnevfr = 0
    vcpu.spe.pmslatfr = 0
    vcpu.spe.pmsdsfr = 0
    vcpu.spe.pmblimitr = 0
    vcpu.spe.pmbptr = unknown
    vcpu.spe.pmbsr = 0
    vcpu.spe_irq_level = 0
