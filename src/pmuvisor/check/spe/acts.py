"""What may happen to a small machine, an action a function: each does it if it can, and returns NOT_NOW if not.

What a guest does happens to the unit that it believes to have as well. The rules of semantic code hold.
"""

from __future__ import annotations

from pmuvisor.arch import spe, traps
from pmuvisor.arch.spe import HOST, Spu
from pmuvisor.arch.sysreg import PMBPTR_EL1, PMBSR_EL1
from pmuvisor.check.common import in_guest, resident, spend
from pmuvisor.check.model import DONE, NOT_NOW
from pmuvisor.check.spe.properties import has_spe, is_hosts
from pmuvisor.check.spe.state import (
    ACCESSES,
    EXECUTIONS,
    GUEST_EL,
    HOST_EL,
    SESSIONS,
    SWITCHES,
    UNMAPPINGS,
    Machine,
)
from pmuvisor.kvm import lazy
from pmuvisor.kvm import spe as kvm_spe
from pmuvisor.kvm import world as worlds
from pmuvisor.kvm.vcpu import UNDEF, SpeContext
from pmuvisor.linux import arm_spe, sched
from pmuvisor.linux.host import NO_SESSION, NO_TASK, NO_VCPU

# ---- the unit ---------------------------------------------------------------------------------------------


def record_leaves(m: Machine, c: int) -> int:
    """The unit of CPU `c` writes a record, of its own accord."""
    spu = m.world.host.cpus[c].spu
    if spu.nr_pending == 0:
        return NOT_NOW
    spe.initiate(spu)
    return DONE


def cpu_synchronises(m: Machine, c: int) -> int:
    """A context synchronization event happens in the host on CPU `c`, where not all is known to the unit."""
    spu = m.world.host.cpus[c].spu
    if in_guest(m, c) or spu.unsynchronised == 0:
        return NOT_NOW
    spe.isb(spu)
    return DONE


def instructions_retire(m: Machine, c: int, el: int, sampled: int) -> int:
    """Instructions retire where they are counted: up to the next that is sampled, or one that is not."""
    cpu = m.world.host.cpus[c]
    guest = in_guest(m, c)
    if int(guest) != int(el < HOST_EL) or not spe.statistical_profiling_enabled(cpu.spu, el, cpu.pe.tge):
        return NOT_NOW
    operations = spe.operations_to_sample(cpu.spu)
    if (sampled == 0 and operations == 1) or spend(m, EXECUTIONS) == 0:
        return NOT_NOW
    if sampled == 0:
        operations = 1
    v = resident(m, c)
    if guest:
        retire(cpu.spu, operations, v + 1)
        retire(m.mirrors[v].spu, operations, v + 1)
        write_at_once(m.mirrors[v].spu)
        return DONE
    if retire(cpu.spu, operations, HOST) == 1 and cpu.spe_session != NO_SESSION:
        m.world.host.spe_sessions[cpu.spe_session].formed += 1
    m.interval[c] = cpu.spu.pmsicr
    return DONE


def retire(spu: Spu, operations: int, source: int) -> int:
    """Count operations in a unit where profiling is enabled; return 1 where the last was sampled."""
    if spe.count_operations(spu, operations) == 0:
        return 0
    spe.form_record(spu, 1 << spu.filter.core.max_size, source)
    return 1


def write_at_once(spu: Spu) -> None:
    """The unit that a guest believes to have holds nothing back."""
    spe.psb_csync(spu)
    spe.dsb(spu)
    spe.isb(spu)
    spu.nr_written = 0


# ---- the guest --------------------------------------------------------------------------------------------


def guest_accesses(m: Machine, c: int, key: int, write: int, value: int) -> int:
    """The guest on CPU `c` executes an MRS or MSR at EL1, and an ISB: the hardware carries it out, or it exits."""
    v = resident(m, c)
    if not in_guest(m, c) or not has_spe(m, v) or spend(m, ACCESSES) == 0:
        return NOT_NOW
    cpu = m.world.host.cpus[c]
    where = spe.access(cpu.pe, cpu.spu, GUEST_EL, key, write)
    if where == traps.TRAP_EL2:
        leave(m, c, v)
        m.mirrors[v].trapped = 1
        m.mirrors[v].key = key
        m.mirrors[v].write = write
        m.mirrors[v].value = value
        return DONE
    if write == 1:
        spe.write(cpu.spu, key, value)
        spe.isb(cpu.spu)
    else:
        m.read = spe.read(cpu.spu, GUEST_EL, key)
    ought_to_access(m, v, key, write, value)
    return DONE


def kvm_handles(m: Machine, c: int) -> int:
    """KVM handles the access that has exited (kvm_handle_spe_reg())."""
    v = resident(m, c)
    if v == NO_VCPU or m.loading[c] != 0 or m.mirrors[v].trapped == 0:
        return NOT_NOW
    mirror = m.mirrors[v]
    vm = m.world.vms[m.world.vm_of[v]]
    spu = m.world.host.cpus[c].spu
    if mirror.write == 1:
        undefined = kvm_spe.trapped_write(spu, vm, m.world.vcpus[v], mirror.key, mirror.value)
    else:
        undefined = kvm_spe.trapped_read(spu, vm, m.world.vcpus[v], mirror.key)
        m.read = m.world.vcpus[v].value
    if undefined == UNDEF:
        m.expected = m.read + 1
    else:
        ought_to_access(m, v, mirror.key, mirror.write, mirror.value)
    mirror.trapped = 0
    mirror.key = 0
    mirror.write = 0
    mirror.value = 0
    return DONE


def ought_to_access(m: Machine, v: int, key: int, write: int, value: int) -> None:
    """Let the access happen to the unit that the guest believes to have."""
    spu = m.mirrors[v].spu
    if write == 1:
        spe.write(spu, key, value)
        spe.isb(spu)
    else:
        m.expected = spe.read(spu, GUEST_EL, key)


# ---- KVM --------------------------------------------------------------------------------------------------


def kvm_enters(m: Machine, c: int) -> int:
    """The vCPU that is loaded on CPU `c` enters its guest."""
    v = resident(m, c)
    if in_guest(m, c) or v == NO_VCPU or m.loading[c] != 0 or m.mirrors[v].trapped == 1:
        return NOT_NOW
    worlds.vcpu_enter(m.world, c, v, 0)
    return DONE


def kvm_exits(m: Machine, c: int) -> int:
    """Something interrupts the guest on CPU `c`."""
    if not in_guest(m, c):
        return NOT_NOW
    leave(m, c, resident(m, c))
    return DONE


def leave(m: Machine, c: int, v: int) -> None:
    """Exit. After a fault at stage 2 the page is mapped again; what was sampled meanwhile is lost, untold."""
    faults = m.world.vcpus[v].spe_stage2
    worlds.vcpu_exit(m.world, c, v)
    if m.world.vcpus[v].spe_stage2 != faults:
        m.mirrors[v].unmapped = 0
        lose_what_faulted(m.mirrors[v].spu, m.world.vcpus[v].spe)


def lose_what_faulted(mirror: Spu, kept: SpeContext) -> None:
    """The unit that a guest believes to have has not written what a fault at stage 2 has lost."""
    spe.write(mirror, PMBPTR_EL1, kept.pmbptr)
    spe.write(mirror, PMBSR_EL1, 0)
    spe.isb(mirror)


def cpu_interrupted(m: Machine, c: int) -> int:
    """CPU `c` takes PMBIRQ, after an exit where a guest executes; spurious perhaps, where the host has a session."""
    host = m.world.host
    cpu = host.cpus[c]
    raised = spe.pmbirq(cpu.spu)
    if raised == 0 and (in_guest(m, c) or cpu.spe_session == NO_SESSION):
        return NOT_NOW
    if in_guest(m, c):
        leave(m, c, resident(m, c))
    spe.isb(cpu.spu)
    number = cpu.spe_session
    arm_spe.irq_handler(host, c)
    arm_spe.read_if_woken(host, number)
    spe.isb(cpu.spu)
    return DONE


# ---- the host ---------------------------------------------------------------------------------------------


def thread_leaves(m: Machine, c: int) -> int:
    """The thread on CPU `c` is preempted."""
    if in_guest(m, c) or m.loading[c] != 0 or m.world.host.cpus[c].current == NO_TASK or spend(m, SWITCHES) == 0:
        return NOT_NOW
    worlds.switch_out(m.world, c, 0)
    return DONE


def thread_comes(m: Machine, c: int) -> int:
    """The next thread comes to CPU `c`, which is idle, and its vCPU is loaded: where that has SPE, a section of it."""
    cpu = m.world.host.cpus[c]
    if cpu.current != NO_TASK or cpu.nr_queued == 0:
        return NOT_NOW
    v = m.world.host.tasks[sched.sched_in(m.world.host, c, 0)].preempt_notifier
    if has_spe(m, v):
        do_section(m, c, v)
    else:
        worlds.vcpu_load(m.world, c, v, 0)
    return DONE


def load_goes_on(m: Machine, c: int, section: int) -> int:
    """The load on CPU `c` goes on with a section, if that is the next."""
    if m.loading[c] != section:
        return NOT_NOW
    do_section(m, c, resident(m, c))
    return DONE


def do_section(m: Machine, c: int, v: int) -> None:
    """Do the next section of the load of a vCPU (`world.load_as`)."""
    residency = lazy.residency_at_load(m.world.vms[m.world.vm_of[v]], m.world.vcpus[v])
    worlds.load_section(m.world, c, v, residency, 0, m.loading[c])
    m.loading[c] = (m.loading[c] + 1) % worlds.LOAD_SECTIONS


def session_opens(m: Machine, number: int) -> int:
    """Somebody opens a session of a CPU whose unit is the host's, by an interrupt of that CPU's."""
    session = m.world.host.spe_sessions[number]
    c = session.cpu
    if session.attached == 1 or in_guest(m, c) or not is_hosts(m, c) or spend(m, SESSIONS) == 0:
        return NOT_NOW
    spe.isb(m.world.host.cpus[c].spu)
    arm_spe.open_session(m.world.host, number)
    spe.isb(m.world.host.cpus[c].spu)
    m.interval[c] = m.world.host.cpus[c].spu.pmsicr
    return DONE


def session_closes(m: Machine, number: int) -> int:
    """Somebody closes it."""
    session = m.world.host.spe_sessions[number]
    c = session.cpu
    if session.attached == 0 or in_guest(m, c) or not is_hosts(m, c) or spend(m, SESSIONS) == 0:
        return NOT_NOW
    spe.isb(m.world.host.cpus[c].spu)
    arm_spe.close_session(m.world.host, number)
    arm_spe.read_if_woken(m.world.host, number)
    spe.isb(m.world.host.cpus[c].spu)
    m.interval[c] = m.world.host.cpus[c].spu.pmsicr
    return DONE


def page_unmapped(m: Machine, v: int) -> int:
    """The host takes the page at the write pointer of a vCPU's buffer, which is not pinned, from its guest."""
    if m.mirrors[v].unmapped == 1 or not has_spe(m, v) or spend(m, UNMAPPINGS) == 0:
        return NOT_NOW
    m.mirrors[v].unmapped = 1
    return DONE
