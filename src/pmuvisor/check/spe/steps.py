"""One step of a small machine: an action happens if it can, and the properties that it could break are asked for.

The rules of semantic code hold: `step` is compiled with all that it calls, and replayed by CPython.
"""

from __future__ import annotations

from pmuvisor.arch import spe
from pmuvisor.arch.spe import PAGE_SHIFT, STAGE2, Spu
from pmuvisor.arch.sysreg import FSC_TRANSLATION
from pmuvisor.check.common import breaks, forget_pmu, in_guest, resident, thread_moves, tidy_queues
from pmuvisor.check.model import BROKEN, DONE, NOT_NOW
from pmuvisor.check.spe import acts, properties
from pmuvisor.check.spe.properties import (
    DELIVERED,
    GUEST_REGISTERS,
    KEPT,
    PLACED,
    PMBIRQ,
    PROFILED,
    READS,
    RESUMED,
    TRANSLATED,
    has_spe,
    is_hosts,
)
from pmuvisor.check.spe.state import (
    ACCESS,
    CLOSE,
    ENTER,
    EXECUTE,
    EXIT,
    HANDLE,
    INTERRUPT,
    LOAD,
    MOVE,
    OPEN,
    SWITCH_IN,
    SWITCH_OUT,
    SWITCHES,
    SYNCHRONISE,
    WRITE_OUT,
    Machine,
)
from pmuvisor.kvm.vcpu import SpeContext
from pmuvisor.linux.host import NO_VCPU


def step(m: Machine, kind: int, a: int, b: int, c: int, d: int) -> int:
    """Let an action happen. Return NOT_NOW, having changed nothing; DONE; or BROKEN + the first property broken."""
    m.read = 0
    m.expected = 0
    translate(m)
    done = happen(m, kind, a, b, c, d)
    forget_translations(m)
    if done == NOT_NOW:
        return NOT_NOW
    look_at_late_writes(m)
    result = judge_step(m, kind, a)
    tidy(m)
    return result


def happen(m: Machine, kind: int, a: int, b: int, c: int, d: int) -> int:
    """Let an action happen, if it can."""
    if kind == ACCESS:
        return acts.guest_accesses(m, a, b, c, d)
    if kind == HANDLE:
        return acts.kvm_handles(m, a)
    if kind == EXECUTE:
        return acts.instructions_retire(m, a, b, c)
    if kind == ENTER:
        return acts.kvm_enters(m, a)
    if kind == EXIT:
        return acts.kvm_exits(m, a)
    if kind == INTERRUPT:
        return acts.cpu_interrupted(m, a)
    if kind == WRITE_OUT:
        return acts.record_leaves(m, a)
    if kind == SYNCHRONISE:
        return acts.cpu_synchronises(m, a)
    return host_acts(m, kind, a, b)


def host_acts(m: Machine, kind: int, a: int, b: int) -> int:
    """Let something happen that the host's scheduler, its perf or its memory management does."""
    if kind == SWITCH_OUT:
        return acts.thread_leaves(m, a)
    if kind == SWITCH_IN:
        return acts.thread_comes(m, a)
    if kind == LOAD:
        return acts.load_goes_on(m, a, b)
    if kind == MOVE:
        return thread_moves(m, a, b, SWITCHES)
    if kind == OPEN:
        return acts.session_opens(m, b)
    if kind == CLOSE:
        return acts.session_closes(m, b)
    return acts.page_unmapped(m, a)


# ---- the units ---------------------------------------------------------------------------------------------


def translate(m: Machine) -> None:
    """Let each unit find what the translation of its write pointer comes to now."""
    for c in range(len(m.world.host.cpus)):
        spu = m.world.host.cpus[c].spu
        spu.nr_written = 0
        spu.fault_page = spu.pointer >> PAGE_SHIFT
        v = resident(m, c)
        if v != NO_VCPU and in_guest(m, c) and m.mirrors[v].unmapped == 1:
            spu.fault[0] = FSC_TRANSLATION | STAGE2
            spu.fault[1] = FSC_TRANSLATION | STAGE2


def forget_translations(m: Machine) -> None:
    """What was found is of this step only."""
    for c in range(len(m.world.host.cpus)):
        spu = m.world.host.cpus[c].spu
        spu.fault_page = 0
        spu.fault[0] = 0
        spu.fault[1] = 0


def look_at_late_writes(m: Machine) -> None:
    """Whatever the unit knows of writes that were left without synchronization, it must not come to harm."""
    for c in range(len(m.world.host.cpus)):
        m.world.host.cpus[c].spu.exposed |= properties.may_be_exposed(m.world.host.cpus[c].spu)


def watched_isb(spu: Spu) -> None:
    """A context synchronization event: so far the unit may have known of some late writes, and not of others."""
    spu.exposed |= properties.may_be_exposed(spu)
    spu.lost += properties.may_lose(spu)
    spe.isb(spu)


# ---- what must hold ---------------------------------------------------------------------------------------


def judge_step(m: Machine, kind: int, a: int) -> int:
    """Return DONE, or BROKEN + the first property that does not hold after an action of `kind` on `a`."""
    if breaks(m, TRANSLATED, properties.is_translated(m)):
        return BROKEN + TRANSLATED
    if breaks(m, PLACED, properties.is_placed(m)):
        return BROKEN + PLACED
    if breaks(m, KEPT, properties.is_kept(m)):
        return BROKEN + KEPT
    if kind in (ACCESS, HANDLE) and breaks(m, READS, properties.read_is_right(m)):
        return BROKEN + READS
    v = resident(m, a)
    if kind == ENTER and has_spe(m, v) and breaks(m, DELIVERED, properties.interrupt_is_delivered(m, v)):
        return BROKEN + DELIVERED
    for c in range(len(m.world.host.cpus)):
        broken = judge_cpu(m, c)
        if broken != DONE:
            return broken
    for number in range(len(m.world.vcpus)):
        skipped = not has_spe(m, number) or properties.is_under_way(m, number)
        if breaks(m, GUEST_REGISTERS, skipped or properties.registers_are_the_guests(m, number)):
            return BROKEN + GUEST_REGISTERS
    return DONE


def judge_cpu(m: Machine, c: int) -> int:
    """Return DONE, or BROKEN + the first property of a CPU's unit that does not hold."""
    if breaks(m, PMBIRQ, properties.pmbirq_is_the_hosts(m, c)):
        return BROKEN + PMBIRQ
    if is_hosts(m, c):
        if breaks(m, RESUMED, properties.host_is_profiled_as_it_said(m, c)):
            return BROKEN + RESUMED
    elif m.loading[c] == 0 and breaks(m, PROFILED, properties.is_profiled_as_it_said(m, c)):
        return BROKEN + PROFILED
    return DONE


# ---- one state, one record --------------------------------------------------------------------------------


def tidy(m: Machine) -> None:
    """Give what nobody will ever look at one value, so that equal states are equal records."""
    host = m.world.host
    for c in range(len(host.cpus)):
        if resident(m, c) == NO_VCPU:
            forget_host(m, c)
    tidy_queues(host)
    for v in range(len(m.world.vcpus)):
        m.world.vcpus[v].value = 0
        if has_spe(m, v) and properties.is_loaded(m, v):
            forget_sampling(m.world.vcpus[v].spe)
    for number in range(len(host.spe_sessions)):
        session = host.spe_sessions[number]
        session.woken -= session.noticed
        session.noticed = 0


def forget_host(m: Machine, c: int) -> None:
    """No vCPU is loaded on CPU `c`: what the host needed back has been given back."""
    saved = m.world.saved[c]
    forget_pmu(saved)
    saved.pmscr_el2 = 0
    forget_sampling(saved.spe)
    saved.spe.pmblimitr = 0
    saved.spe.pmbptr = 0
    saved.spe.pmbsr = 0


def forget_sampling(context: SpeContext) -> None:
    """Sampling registers that are in the unit will be written here before they are read."""
    context.pmscr_el1 = 0
    context.pmsicr = 0
    context.pmsirr = 0
    context.pmsfcr = 0
    context.pmsevfr = 0
    context.pmsnevfr = 0
    context.pmslatfr = 0
    context.pmsdsfr = 0
