"""What must always hold of the profiling unit, each property a function that tells whether it does.

`ALL` has them with their sentences, in the order in which a step asks for them.
"""

from __future__ import annotations

from pmuvisor.arch import spe
from pmuvisor.arch.spe import EL2, HOST, SYNC_E2PB, SYNC_PMBLIMITR, SYNC_PMBPTR, SYNC_PMBSR, Spu
from pmuvisor.arch.sysreg import PMBLIMITR_E, PMBSR_BSC_FULL, PMBSR_EC_SHIFT, PMBSR_EC_STAGE2, PMBSR_S
from pmuvisor.check.common import in_guest, resident
from pmuvisor.check.model import Property
from pmuvisor.check.spe.state import GUEST_EL, Machine
from pmuvisor.kvm.vcpu import SpeContext
from pmuvisor.linux.host import NO_SESSION, NO_VCPU, Cpu, SpeSession

TRANSLATED = 0
PLACED = 1
KEPT = 2
PMBIRQ = 3
RESUMED = 4
PROFILED = 5
GUEST_REGISTERS = 6
DELIVERED = 7
READS = 8

SERIES = "SPE series, v6"

ALL = (
    Property(
        "translated",
        "a buffer is enabled only while the unit is sure to translate its addresses by its owner's tables",
        f"{SERIES}, patch 22, kvm_vcpu_spe_load(); Arm ARM, ProfilingBufferOwner()",
    ),
    Property(
        "placed",
        "each record lands in the buffer of whose operation it is of, through that owner's translation",
        "Arm ARM, SPEWriteToBuffer()",
    ),
    Property(
        "kept",
        "no record is lost that the architecture does not lose, and the host finds as many as were made",
        f"{SERIES}, patch 22; Arm ARM, ProfilingSynchronizationBarrier()",
    ),
    Property(
        "pmbirq",
        "PMBIRQ is up in the host only for a host's buffer that is full, and its driver knows of it",
        f"{SERIES}, patch 22, __kvm_spe_save_guest_buffer(); arm_spe_pmu_irq_handler()",
    ),
    Property(
        "resumed",
        "where no vCPU with SPE is loaded the host is profiled as its driver said, and not if there is no session",
        f"{SERIES}, patch 22, kvm_vcpu_spe_put()",
    ),
    Property(
        "profiled",
        "a guest is profiled exactly where its own registers say so, and KVM never while its vCPU is loaded",
        f"{SERIES}, patch 22; Arm ARM, StatisticalProfilingEnabled()",
    ),
    Property(
        "guest-registers",
        "a guest's profiling registers are as it wrote them and as its own unit would have left them",
        "Arm ARM, registers of the Statistical Profiling Extension",
    ),
    Property(
        "delivered",
        "at each entry the guest's PMBIRQ has the level of its PMBSR_EL1.S",
        f"{SERIES}; Arm ARM, PMBSR_EL1.S",
    ),
    Property(
        "reads",
        "a guest reads what its own unit would have had it read",
        "Arm ARM, registers of the Statistical Profiling Extension",
    ),
)
EVERY = (1 << len(ALL)) - 1
"""`Machine.asked` for all of them."""


# ---- where things are -------------------------------------------------------------------------------------


def has_spe(m: Machine, v: int) -> bool:
    """Tell whether a vCPU, or NO_VCPU, has SPE."""
    return v != NO_VCPU and m.world.vms[m.world.vm_of[v]].spe == 1


def is_hosts(m: Machine, c: int) -> bool:
    """Tell whether the unit of CPU `c` is the host's: no vCPU with SPE is loaded, or being loaded."""
    return not has_spe(m, resident(m, c))


def is_under_way(m: Machine, v: int) -> bool:
    """Tell whether a vCPU is being loaded: its registers, and the host's, are half here, half there."""
    c = cpu_of(m, v)
    return resident(m, c) == v and m.loading[c] != 0


def is_loaded(m: Machine, v: int) -> bool:
    """Tell whether a vCPU is loaded: where it has SPE its sampling registers are its CPU's."""
    c = cpu_of(m, v)
    return resident(m, c) == v and m.loading[c] == 0


def cpu_of(m: Machine, v: int) -> int:
    """Return the CPU where a vCPU's thread is, or was last."""
    return m.world.host.tasks[m.world.vcpus[v].task].cpu


# ---- whose buffer, whose tables -----------------------------------------------------------------------------


def may_be_exposed(spu: Spu) -> int:
    """Return 1 where the unit may find a buffer enabled whose owner's tables it does not use.

    Writes that are not synchronized it may know of or not, each by itself: all that comes to is looked at.
    """
    late = spu.unsynchronised
    enabled = spu.seen.pmblimitr & PMBLIMITR_E != 0
    enabled = enabled or (late & SYNC_PMBLIMITR != 0 and spu.pmblimitr & PMBLIMITR_E != 0)
    served = spu.status & PMBSR_S == 0 or (late & SYNC_PMBSR != 0 and spu.pmbsr & PMBSR_S == 0)
    if not enabled or not served:
        return 0
    before, after = regime(spu, spu.seen.e2pb), regime(spu, spu.e2pb)
    if late & SYNC_E2PB == 0:
        after = before
    stayed = spu.in_buffer_of != before or spu.in_buffer_of != after
    moved = late & SYNC_PMBPTR != 0 and (spu.pointer_of != before or spu.pointer_of != after)
    return int(stayed or moved)


def regime(spu: Spu, e2pb: int) -> int:
    """Return whose tables translate where MDCR_EL2.E2PB is `e2pb`."""
    if e2pb == 0:
        return HOST
    return spu.guest


def may_lose(spu: Spu) -> int:
    """Return 1 where the unit has been sampling the kernel up to now, and its buffer is disabled: since the last
    PSB CSYNC there may be a record that will not be written.
    """
    late = spu.unsynchronised & SYNC_PMBLIMITR != 0 and spu.pmblimitr & PMBLIMITR_E == 0
    return int(late and spe.statistical_profiling_enabled(spu, EL2, 1))


def is_translated(m: Machine) -> bool:
    """No unit has had a buffer enabled with another's tables."""
    exposed = 0
    for c in range(len(m.world.host.cpus)):
        exposed |= m.world.host.cpus[c].spu.exposed
    return exposed == 0


def is_placed(m: Machine) -> bool:
    """No record was written into another's buffer, or through another's tables."""
    misplaced = 0
    for c in range(len(m.world.host.cpus)):
        misplaced |= m.world.host.cpus[c].spu.misplaced
    return misplaced == 0


def is_kept(m: Machine) -> bool:
    """No unit has lost a record, and each session has, or will have, as many as were made of the host's operations.

    Where the driver has told of a loss, or a load is under way, its sessions are not looked at.
    """
    for c in range(len(m.world.host.cpus)):
        if m.world.host.cpus[c].spu.lost != 0:
            return False
    for number in range(len(m.world.host.spe_sessions)):
        session = m.world.host.spe_sessions[number]
        known = session.truncated == 0 and m.loading[session.cpu] == 0
        if known and records_of(m, number, session) != session.formed:
            return False
    return True


def records_of(m: Machine, number: int, session: SpeSession) -> int:
    """Return how many records a session has: what its reader can have, what is in its buffer, what is on the way."""
    cpu = m.world.host.cpus[session.cpu]
    written = session.aux_head - session.padded
    waiting = 0
    if session.handle_open == 1 and cpu.spe_session == number:
        pointer = m.world.saved[session.cpu].spe.pmbptr
        if is_hosts(m, session.cpu):
            pointer = cpu.spu.pointer
        written += pointer - session.base - session.handle_head % session.size
        for i in range(cpu.spu.nr_pending):
            waiting += int(cpu.spu.source[i] == HOST)
    return (written >> cpu.spu.filter.core.max_size) + waiting


# ---- the host's -------------------------------------------------------------------------------------------


def pmbirq_is_the_hosts(m: Machine, c: int) -> bool:
    """PMBIRQ is up, outside of guests, only where the host's session on this CPU has filled its buffer.

    In the middle of a load it is nobody's business yet: KVM has the host's until it has taken it.
    """
    cpu: Cpu = m.world.host.cpus[c]
    if in_guest(m, c) or m.loading[c] != 0 or spe.pmbirq(cpu.spu) == 0:
        return True
    if not is_hosts(m, c) or cpu.spe_session == NO_SESSION:
        return False
    full = cpu.spu.status == PMBSR_S | PMBSR_BSC_FULL and spe.room_for_record(cpu.spu, cpu.spu.pointer) == 0
    return full and m.world.host.spe_sessions[cpu.spe_session].handle_open == 1


def host_is_profiled_as_it_said(m: Machine, c: int) -> bool:
    """What the driver has programmed the unit knows, or there is nothing where no session could write."""
    cpu: Cpu = m.world.host.cpus[c]
    spu = cpu.spu
    limit = spu.pmblimitr & PMBLIMITR_E
    if cpu.spe_session == NO_SESSION or m.world.host.spe_sessions[cpu.spe_session].stopped == 1:
        return limit == 0 and spu.pmscr_el2 == 0
    session = m.world.host.spe_sessions[cpu.spe_session]
    changed = (spu.pmscr_el2 ^ session.pmscr) | (spu.pmsirr ^ session.pmsirr) | (spu.filter.pmsfcr ^ session.pmsfcr)
    changed |= (spu.filter.pmsevfr ^ session.pmsevfr) | (spu.filter.pmslatfr ^ session.pmslatfr)
    changed |= (spu.pmsicr ^ m.interval[c]) | spu.pmscr_el1 | spu.e2pb
    changed |= (spu.seen.pmscr_el2 ^ spu.pmscr_el2) | (spu.seen.pmblimitr ^ spu.pmblimitr)
    return changed == 0 and limit == PMBLIMITR_E


# ---- a guest's --------------------------------------------------------------------------------------------


def is_profiled_as_it_said(m: Machine, c: int) -> bool:
    """What is sampled on CPU `c` while a vCPU with SPE is loaded is what its guest has asked for, and nothing else.

    From a fault at stage 2 to the next entry nothing is, which the guest is not told.
    """
    spu = m.world.host.cpus[c].spu
    if not in_guest(m, c):
        return not spe.statistical_profiling_enabled(spu, EL2, 1)
    enabled = spe.statistical_profiling_enabled(spu, GUEST_EL, 0)
    if not enabled and is_stage2(spu.status):
        return True
    return int(enabled) == int(spe.statistical_profiling_enabled(m.mirrors[resident(m, c)].spu, GUEST_EL, 0))


def is_stage2(status: int) -> bool:
    """Tell whether PMBSR_EL1 says that a write of a record faulted at stage 2."""
    return status & PMBSR_S != 0 and (status >> PMBSR_EC_SHIFT) & 0x3F == PMBSR_EC_STAGE2


def registers_are_the_guests(m: Machine, v: int) -> bool:
    """A guest's registers are its own unit's, wherever they are: the buffer's in memory while it does not execute."""
    mirror = m.mirrors[v].spu
    c = cpu_of(m, v)
    kept = m.world.vcpus[v].spe
    if is_loaded(m, v):
        changed = sampling_in_unit(m.world.host.cpus[c].spu, mirror)
    else:
        changed = sampling_in_memory(kept, mirror)
    changed |= kept.pmblimitr ^ mirror.pmblimitr
    if resident(m, c) != v or not in_guest(m, c):
        changed |= (kept.pmbptr ^ mirror.pmbptr) | (kept.pmbsr ^ mirror.pmbsr)
    return changed == 0


def sampling_in_unit(spu: Spu, mirror: Spu) -> int:
    """Return 0 where the sampling registers of two units are equal."""
    changed = (spu.pmscr_el1 ^ mirror.pmscr_el1) | (spu.pmsicr ^ mirror.pmsicr) | (spu.pmsirr ^ mirror.pmsirr)
    changed |= (spu.filter.pmsfcr ^ mirror.filter.pmsfcr) | (spu.filter.pmsevfr ^ mirror.filter.pmsevfr)
    changed |= (spu.filter.pmsnevfr ^ mirror.filter.pmsnevfr) | (spu.filter.pmsdsfr ^ mirror.filter.pmsdsfr)
    return changed | (spu.filter.pmslatfr ^ mirror.filter.pmslatfr)


def sampling_in_memory(kept: SpeContext, mirror: Spu) -> int:
    """Return 0 where the sampling registers that KVM has are a unit's."""
    changed = (kept.pmscr_el1 ^ mirror.pmscr_el1) | (kept.pmsicr ^ mirror.pmsicr) | (kept.pmsirr ^ mirror.pmsirr)
    changed |= (kept.pmsfcr ^ mirror.filter.pmsfcr) | (kept.pmsevfr ^ mirror.filter.pmsevfr)
    changed |= (kept.pmsnevfr ^ mirror.filter.pmsnevfr) | (kept.pmsdsfr ^ mirror.filter.pmsdsfr)
    return changed | (kept.pmslatfr ^ mirror.filter.pmslatfr)


def interrupt_is_delivered(m: Machine, v: int) -> bool:
    """The level of the guest's PMBIRQ, as set on entry, is that of a unit of its own."""
    return m.world.vcpus[v].spe_irq_level == spe.pmbirq(m.mirrors[v].spu)


def read_is_right(m: Machine) -> bool:
    """What the last access read is what it ought to have."""
    return m.read == m.expected
