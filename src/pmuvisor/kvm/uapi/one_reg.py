"""The registers of a vCPU that userspace reads and writes: KVM_GET_ONE_REG, KVM_SET_ONE_REG, KVM_GET_REG_LIST.

The registers of the PMU and SPE, in the order of KVM's table (arch/arm64/kvm/sys_regs.c), which is that of their
encodings, and ID_AA64DFR0_EL1, whose PMUVer and PMSVer say which PMU and SPE they are of. Nothing else of a vCPU is
here: core registers, the other System registers and firmware's are ENOENT. PMCEID<n>_EL0, PMMIR_EL1, PMXEVTYPER_EL0
and PMXEVCNTR_EL0 are no state of a vCPU, and KVM does not show them either.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pmuvisor.arch import spe as arch_spe
from pmuvisor.arch.spe_record import SpeFeatures
from pmuvisor.arch.sysreg import (
    CYCLE,
    ID_AA64DFR0_EL1,
    MAX_EVENT_COUNTERS,
    PMBIDR_EL1,
    PMBLIMITR_EL1,
    PMBPTR_EL1,
    PMBSR_EL1,
    PMCCFILTR_EL0,
    PMCCNTR_EL0,
    PMCNTENCLR_EL0,
    PMCNTENSET_EL0,
    PMCR_EL0,
    PMCR_N_SHIFT,
    PMINTENCLR_EL1,
    PMINTENSET_EL1,
    PMOVSCLR_EL0,
    PMOVSSET_EL0,
    PMSCR_EL1,
    PMSDSFR_EL1,
    PMSELR_EL0,
    PMSEVFR_EL1,
    PMSFCR_EL1,
    PMSICR_EL1,
    PMSIDR_EL1,
    PMSIRR_EL1,
    PMSLATFR_EL1,
    PMSNEVFR_EL1,
    PMSVER_SHIFT,
    PMSWINC_EL0,
    PMUSERENR_EL0,
    pmevcntr,
    pmevtyper,
)
from pmuvisor.kvm import emulated, restored
from pmuvisor.kvm import spe as kvm_spe
from pmuvisor.kvm.uapi.memory import error
from pmuvisor.kvm.vcpu import implemented_counter_mask

if TYPE_CHECKING:
    from pmuvisor.kvm.uapi.vcpu import Vcpu

_HALF = (1 << 32) - 1
PMUVER_SHIFT = 8
PMUVER_IMP_DEF = 0xF
DEBUGVER_IMP = 6
"""ID_AA64DFR0_EL1.DebugVer of Armv8-A, the least that there is. Of this register only PMUVer is the host's here."""


def pmu_visibility(vcpu: Vcpu) -> bool:
    """State pmu_visibility()."""
    return vcpu.vm.has_pmu()


def spe_visibility(vcpu: Vcpu) -> bool:
    """State spe_visibility() of the SPE series."""
    return vcpu.vm.has_spe()


@dataclass(frozen=True)
class Register:
    """One register as userspace has it (struct sys_reg_desc, get_user and set_user)."""

    key: int
    get: Callable[[Vcpu], int]
    set: Callable[[Vcpu, int], None]
    visible: Callable[[Vcpu], bool] = pmu_visibility
    """Tells whether the vCPU has it."""


# ---- masks of counters, and registers without one ---------------------------------------------------------


def _mask_register(key: int, field: str) -> Register:
    """Return a SET or CLR register. Either is the whole value for userspace (get_pmreg(), set_pmreg())."""

    def get(vcpu: Vcpu) -> int:
        return int(getattr(vcpu.record, field)) & implemented_counter_mask(vcpu.vm.record)

    return Register(key, get, _put(key))


def _plain_register(key: int, field: str) -> Register:
    """Return a register that is stored as it comes, as far as it has bits."""

    def get(vcpu: Vcpu) -> int:
        return int(getattr(vcpu.record, field))

    return Register(key, get, _put(key))


def _put(key: int) -> Callable[[Vcpu, int], None]:
    """Return what sets a register in the vCPU's record (kvm.restored)."""

    def put(vcpu: Vcpu, value: int) -> None:
        system = vcpu.system
        restored.set_one_reg(system.world.host, system.cpu, vcpu.vm.record, vcpu.record, key, value, system.now)

    return put


# ---- PMCR_EL0 ---------------------------------------------------------------------------------------------


def _get_pmcr(vcpu: Vcpu) -> int:
    """State get_pmcr(), kvm_vcpu_read_pmcr(): IMP and IDCODE read as zero."""
    return emulated.read_pmcr(vcpu.vm.record, vcpu.record)


def _set_pmcr(vcpu: Vcpu, value: int) -> None:
    """State set_pmcr(): N sets the count before the VM has run; what cannot be is ignored.

    A partitioned VM's count is SET_NR_COUNTERS' alone, as the review of its series asks: N is ignored.
    """
    n = (value >> PMCR_N_SHIFT) & 31
    vm = vcpu.vm
    if not vm.ran_once and not vm.partitioned() and n <= vm.max_counters():
        vm.set_nr_counters(n)
    restored.set_pmcr(vm.system.world.host, vcpu.record, value)


# ---- counters and their types -----------------------------------------------------------------------------


def _counter(i: int) -> Register:
    def get(vcpu: Vcpu) -> int:
        """State get_pmu_evcntr()."""
        if i >= len(vcpu.record.evcntr):
            return vcpu.beyond.get(pmevcntr(i), 0)
        return vcpu.system.counter_value(vcpu, i)

    def put(vcpu: Vcpu, value: int) -> None:
        """State set_pmu_evcntr(), kvm_pmu_set_counter_value_user()."""
        if i >= len(vcpu.record.evcntr):
            vcpu.beyond[pmevcntr(i)] = value
        else:
            _put(pmevcntr(i))(vcpu, value)

    return Register(pmevcntr(i), get, put)


def _type(i: int) -> Register:
    def get(vcpu: Vcpu) -> int:
        if i >= len(vcpu.record.evtyper):
            return vcpu.beyond.get(pmevtyper(i), 0)
        return vcpu.record.evtyper[i]

    def put(vcpu: Vcpu, value: int) -> None:
        if i >= len(vcpu.record.evtyper):
            vcpu.beyond[pmevtyper(i)] = value & _HALF
        else:
            _put(pmevtyper(i))(vcpu, value)

    return Register(pmevtyper(i), get, put)


def _get_ccntr(vcpu: Vcpu) -> int:
    return vcpu.system.counter_value(vcpu, CYCLE)


# ---- ID_AA64DFR0_EL1 --------------------------------------------------------------------------------------


def _get_dfr0(vcpu: Vcpu) -> int:
    """State read_id_reg(): the VM's."""
    return DEBUGVER_IMP | vcpu.vm.record.pmuver << PMUVER_SHIFT | vcpu.vm.pmsver() << PMSVER_SHIFT


def _set_dfr0(vcpu: Vcpu, value: int) -> None:
    """State set_id_aa64dfr0_el1() and set_id_reg(): PMUVer may be less than KVM offers. Raises EINVAL, EBUSY.

    PMSVer may not: it is not among the fields that KVM lets userspace write.
    """
    vm = vcpu.vm
    pmuver = (value >> PMUVER_SHIFT) & 0xF
    if pmuver == PMUVER_IMP_DEF:
        value &= ~(0xF << PMUVER_SHIFT)
        pmuver = 0
    if value & 0xF < DEBUGVER_IMP:
        raise error(errno.EINVAL, f"DebugVer: expected {DEBUGVER_IMP}")
    if vm.ran_once:
        if value != _get_dfr0(vcpu):
            raise error(errno.EBUSY, "a vCPU has run: ID registers are constant")
        return
    limit = vm.system.pmuver_limit if vm.has_pmu() else 0
    pmsver = vm.pmsver()
    if pmuver > limit or value != DEBUGVER_IMP | pmuver << PMUVER_SHIFT | pmsver << PMSVER_SHIFT:
        wanted = f"DebugVer 6, PMUVer 0 to {limit}, PMSVer {pmsver}, the rest 0"
        raise error(errno.EINVAL, f"ID_AA64DFR0_EL1 {value:#x}: expected {wanted}")
    vm.record.pmuver = pmuver


# ---- SPE --------------------------------------------------------------------------------------------------


def _spe_core(vcpu: Vcpu) -> SpeFeatures:
    assert vcpu.system.spe is not None
    return vcpu.system.spe


def _fne_visibility(vcpu: Vcpu) -> bool:
    return spe_visibility(vcpu) and _spe_core(vcpu).fne == 1


def _fds_visibility(vcpu: Vcpu) -> bool:
    return spe_visibility(vcpu) and _spe_core(vcpu).fds == 1


def _spe_register(key: int, field: str, visible: Callable[[Vcpu], bool] = spe_visibility) -> Register:
    """Return a register of `SpeContext`: the bits that the core has are stored, and act from the next entry on."""

    def get(vcpu: Vcpu) -> int:
        return int(getattr(vcpu.record.spe, field))

    def put(vcpu: Vcpu, value: int) -> None:
        setattr(vcpu.record.spe, field, value & arch_spe.writable(_spe_core(vcpu), key))

    return Register(key, get, put, visible)


def _constant(key: int, get: Callable[[Vcpu], int]) -> Register:
    """Return an ID register of SPE: to write it is to ask whether it is that (set_id_reg() without writable bits)."""

    def put(vcpu: Vcpu, value: int) -> None:
        if value != get(vcpu):
            raise error(errno.EINVAL, f"{value:#x}: expected {get(vcpu):#x}, as this VM has it on this host")

    return Register(key, get, put, spe_visibility)


def _get_pmsidr(vcpu: Vcpu) -> int:
    return arch_spe.pmsidr(_spe_core(vcpu))


def _get_pmbidr(vcpu: Vcpu) -> int:
    return kvm_spe.guest_pmbidr(vcpu.system.world.host.cpus[0].spu, vcpu.vm.record)


def _ignore(vcpu: Vcpu, value: int) -> None:
    """State set_wi_reg()."""


REGISTERS: dict[int, Register] = {
    register.key: register
    for register in sorted(
        [
            Register(ID_AA64DFR0_EL1, _get_dfr0, _set_dfr0, lambda vcpu: True),
            _spe_register(PMSCR_EL1, "pmscr_el1"),
            _spe_register(PMSNEVFR_EL1, "pmsnevfr", _fne_visibility),
            _spe_register(PMSICR_EL1, "pmsicr"),
            _spe_register(PMSIRR_EL1, "pmsirr"),
            _spe_register(PMSFCR_EL1, "pmsfcr"),
            _spe_register(PMSEVFR_EL1, "pmsevfr"),
            _spe_register(PMSLATFR_EL1, "pmslatfr"),
            _constant(PMSIDR_EL1, _get_pmsidr),
            _spe_register(PMBLIMITR_EL1, "pmblimitr"),
            _spe_register(PMBPTR_EL1, "pmbptr"),
            _spe_register(PMBSR_EL1, "pmbsr"),
            _spe_register(PMSDSFR_EL1, "pmsdsfr", _fds_visibility),
            _constant(PMBIDR_EL1, _get_pmbidr),
            _mask_register(PMINTENSET_EL1, "inten"),
            _mask_register(PMINTENCLR_EL1, "inten"),
            Register(PMCR_EL0, _get_pmcr, _set_pmcr),
            _mask_register(PMCNTENSET_EL0, "cnten"),
            _mask_register(PMCNTENCLR_EL0, "cnten"),
            _mask_register(PMOVSCLR_EL0, "ovs"),
            Register(PMSWINC_EL0, lambda vcpu: 0, _ignore),
            _plain_register(PMSELR_EL0, "selr"),
            Register(PMCCNTR_EL0, _get_ccntr, _put(PMCCNTR_EL0)),
            _plain_register(PMUSERENR_EL0, "userenr"),
            _mask_register(PMOVSSET_EL0, "ovs"),
            *(_counter(i) for i in range(MAX_EVENT_COUNTERS)),
            *(_type(i) for i in range(MAX_EVENT_COUNTERS)),
            _plain_register(PMCCFILTR_EL0, "ccfiltr"),
        ],
        key=lambda register: register.key,
    )
}
"""Every register that there is, by its key, in the order of KVM_GET_REG_LIST."""


def visible(vcpu: Vcpu) -> list[Register]:
    """Return the registers that this vCPU has, in KVM's order."""
    return [register for register in REGISTERS.values() if register.visible(vcpu)]
