"""One CPU that a host and its guests profile in turn, with the bytes of all their buffers.

A sampled operation's PC says whose it is and its number; so each side's buffer tells whose operations are in it, and
which. Whatever does not go as it has to is a `Broken`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from arch.spe_packets import Record, decode
from kvm.machines import EL0, EL1, EL2, Machine
from pmuvisor import records
from pmuvisor.arch import spe, spe_record, sysreg
from pmuvisor.arch.cores import core, make_spe
from pmuvisor.arch.spe_record import RecordBytes, Sample
from pmuvisor.kvm import access, world
from pmuvisor.kvm.vcpu import PARTITIONED
from pmuvisor.linux import arm_spe
from pmuvisor.linux.host import NO_TASK, STATE_ACTIVE, SpeSession

E0SPE, E1SPE, CX, TS = 1, 2, 8, 32
FM_DISCARD = 4
E, S = 1, 1 << 17
FULL = S | 1
PAGE = 4096
HOST = 0
AUX_BASE, AUX_SIZE = 0xFFFF_8000_1000_0000, 4 * PAGE
GUEST_BASE, GUEST_SIZE = 0xFFFF_0000_2000_0000, 2 * PAGE
"""The two guests' buffers are at one address: only the translation tells them apart."""
SAMPLING = ("PMSCR", "PMSICR", "PMSIRR", "PMSFCR", "PMSEVFR", "PMSNEVFR", "PMSLATFR", "PMSDSFR")
REGISTERS = [f"{name}_EL1" for name in SAMPLING]


class Broken(AssertionError):
    """Something that must always hold did not."""


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


@dataclass
class Guest:
    """A guest that profiles itself: what it has programmed, and what it took out of its buffer."""

    v: int
    first: int = 0
    """Where in its buffer its records begin: the nearer to the limit, the sooner it is full."""
    memory: bytearray = field(default_factory=lambda: bytearray(GUEST_SIZE))
    stream: bytearray = field(default_factory=bytearray)
    registers: dict[str, int] = field(default_factory=dict)
    """Its sampling registers, as it wrote them."""
    enabled: bool = False
    """It has a buffer, and has not seen its interrupt for it."""
    interrupts: int = 0


class SpeMachine:
    """A host with a session on CPU 0, which is of core `max`, and VMs of one vCPU each."""

    def __init__(self, vms: int = 1, rng: random.Random | None = None, without_spe: int = 0, **features: int) -> None:
        self.rng = rng or random.Random(0)
        self.m = Machine(["max"], [(2, 1)] * (vms + without_spe), design=PARTITIONED)
        self.world, self.host = self.m.world, self.m.host
        self.cpu = self.host.cpus[0]
        self.spu = self.cpu.spu
        of = make_spe(core("max"))
        for name, value in features.items():
            setattr(of, name, value)
        world.boot_spu(self.cpu, of, 12345)
        for vm in self.world.vms[:vms]:
            vm.spe = 1
        self.guests = [Guest(v) for v in range(vms + without_spe)]
        self.aux = bytearray(AUX_SIZE)
        self.host_stream = bytearray()
        self.waiting: deque[bytes] = deque()
        self.strays: list[tuple[int, int, bytes]] = []
        self.dropped: list[bytes] = []
        """Records that were formed and not written."""
        self.formed: dict[int, list[int]] = {owner: [] for owner in range(vms + without_spe + 1)}
        self.serial = 0
        self.resident: int | None = None
        self.in_guest = False
        self.counter: dict[int, int] = {}
        """By owner, PMSICR_EL1 as its last operation left it."""
        self.unmapped: Callable[[int, int], int] = lambda guest, page: 0
        """The fault of a page of a guest, as `Spu.fault` has it."""
        self.host_registers: dict[str, int] = {}
        self.prompt = True
        """The reader of the host's session is there whenever the driver's interrupt was."""

    # ---- what the hardware does ----

    @property
    def session(self) -> SpeSession:
        return self.host.spe_sessions[0]

    def features(self) -> spe_record.SpeFeatures:
        return self.spu.filter.core

    def translate(self) -> None:
        """The page at the write pointer is looked up, as often as need be."""
        page = self.spu.pointer >> 12
        self.spu.fault_page = page
        for i in range(2):
            self.spu.fault[i] = self.unmapped(self.spu.guest, page + i) if self.spu.guest else 0

    def operate(self, source: int, el: int, operations: int) -> bool:
        """Execute so many operations, at most up to the next that is sampled; tell whether one was."""
        spu, tge = self.spu, self.cpu.pe.tge
        if not spe.statistical_profiling_enabled(spu, el, tge):
            return False
        expected = self.counter.get(source, spu.pmsicr)
        check(spu.pmsicr == expected, f"PMSICR_EL1 of {source} is {spu.pmsicr:#x}, not {expected:#x}")
        sampled = spe.count_operations(spu, min(operations, spe.operations_to_sample(spu)))
        self.counter[source] = spu.pmsicr
        if not sampled:
            return False
        sample = self.sample(source, el)
        if spe_record.collect_record(spu.filter, sample) == 0:
            return False
        record = records.new(RecordBytes)
        spe_record.construct_record(self.features(), sample, record)
        self.translate()
        self.formed[source].append(self.serial)
        self.waiting.append(bytes(record.data[: record.size]))
        spe.form_record(spu, record.size, source)
        if spe.discards(spu):
            self.waiting.pop()
            self.formed[source].pop()
        self.deliver()
        return True

    def sample(self, source: int, el: int) -> Sample:
        """An operation of any kind that passes all filters that are set here."""
        self.serial += 1
        rng, spu, tge = self.rng, self.spu, self.cpu.pe.tge
        sample = records.new(Sample)
        sample.pc = source << 40 | self.serial << 2
        sample.el = el
        sample.op_class = rng.randrange(3)
        sample.events = 0x82 if sample.op_class == spe_record.OP_BRANCH else 2
        sample.total_latency, sample.issue_latency = rng.randrange(20, 5000), rng.randrange(20)
        if sample.op_class == spe_record.OP_BRANCH:
            sample.has_target, sample.target = 1, sample.pc + 64
        if sample.op_class == spe_record.OP_LOAD_STORE:
            sample.op_subclass = rng.randrange(2)
            sample.has_va, sample.va = 1, rng.getrandbits(48)
            sample.has_pa, sample.pa = int(spe.collect_physical_address(spu)), rng.getrandbits(40)
        sample.has_context_el1, sample.context_el1 = int(spe.collect_context_el1(spu, el, tge)), 100 + source
        sample.has_context_el2, sample.context_el2 = int(spe.collect_context_el2(spu)), 100 + source
        sample.has_timestamp, sample.timestamp = int(spe.collect_timestamp(spu)), self.serial
        return sample

    def deliver(self) -> None:
        """Put what the unit has written into the memory that it was written to."""
        spu = self.spu
        check(spu.nr_written <= len(spu.written_to), "more records left the unit than it can tell of")
        for i in range(spu.nr_written):
            record, to, at = self.waiting.popleft(), spu.written_to[i], spu.written_at[i]
            if to == spe.LOST:
                self.dropped.append(record)
                continue
            memory, base = (self.aux, AUX_BASE) if to == HOST else (self.guests[to - 1].memory, GUEST_BASE)
            offset = at - base
            if 0 <= offset <= len(memory) - len(record):
                memory[offset : offset + len(record)] = record
            else:
                self.strays.append((to, at, record))
        spu.nr_written = 0
        check(spu.nr_pending == len(self.waiting), "records have left the unit, and it does not tell of all of them")
        check(not self.strays, "a record was written outside of all buffers")
        check(spu.lost == 0, "a record was lost though nothing was wrong with the buffer")
        check(spu.misplaced == 0, "a record was written into another's buffer")

    # ---- the host ----

    def profile(self, pmscr: int = E0SPE | E1SPE | CX | TS, start: int = 0, **attributes: int) -> None:
        """The host opens a session on this CPU; its first record comes `start` bytes into its buffer."""
        values = {
            "cpu": 0,
            "task": NO_TASK,
            "pmscr": pmscr,
            "pmsirr": arm_spe.sanitised_pmsirr(self.cpu, 1024, 0),
            "base": AUX_BASE,
            "size": AUX_SIZE,
            "watermark": PAGE,
            "aux_head": start,
            "aux_tail": start,
        }
        for name, value in (values | attributes).items():
            setattr(self.session, name, value)
        self.session.aux_wakeup = start - start % self.session.watermark
        arm_spe.open_session(self.host, 0)
        spe.isb(self.spu)
        self.counter.pop(HOST, None)
        self.deliver()

    def stop_profiling(self) -> None:
        arm_spe.close_session(self.host, 0)
        self.deliver()
        self.read_aux()

    def read_aux(self) -> None:
        """The reader takes what there is, and leaves zeros."""
        session = self.session
        for i in range(session.aux_tail, session.aux_head):
            self.host_stream.append(self.aux[i % AUX_SIZE])
            self.aux[i % AUX_SIZE] = 0
        arm_spe.aux_read(session)

    def take_interrupts(self) -> None:
        """PMBIRQ goes to the host's driver, for as long as it is raised."""
        while spe.pmbirq(self.spu):
            check(self.resident is None, "PMBIRQ is raised while a vCPU is loaded")
            spe.isb(self.spu)
            handled = arm_spe.irq_handler(self.host, 0)
            self.deliver()
            if self.prompt:
                self.read_aux()
            check(handled == 1, "PMBIRQ is left raised")

    def host_runs(self, samples: int, el: int = EL2) -> None:
        """The host executes until so many of its operations have been sampled."""
        self.take_interrupts()
        self.check_resumed()
        for _ in range(samples if self.session.attached else 0):
            while not self.operate(HOST, el, self.rng.choice([1, 100, 10**6])):
                self.check_resumed()
                check(self.session.state == STATE_ACTIVE, "the host's session has been disabled")
            self.take_interrupts()

    def check_resumed(self) -> None:
        """The host is profiled, if it wants to be."""
        if self.session.state != STATE_ACTIVE or self.session.stopped:
            return
        check(self.resident is None or not self.world.vms[self.resident].spe, "an SPE VM is there")
        pmscr = self.session.pmscr
        for el, wanted in ((EL0, pmscr & E0SPE), (EL2, pmscr & E1SPE)):
            enabled = spe.statistical_profiling_enabled(self.spu, el, 1)
            check(enabled == bool(wanted), "the host's profiling has not been resumed")

    # ---- load and put ----

    def remember_host_registers(self) -> None:
        names = [*REGISTERS, "PMSCR_EL2"]
        self.host_registers = {name: self.direct(name) for name in names if name != "PMSICR_EL1" and self.has(name)}

    def has(self, name: str) -> bool:
        of = self.features()
        return not ((name == "PMSNEVFR_EL1" and not of.fne) or (name == "PMSDSFR_EL1" and not of.fds))

    def direct(self, name: str) -> int:
        return spe.read(self.spu, EL2, sysreg.BY_NAME[name])

    def load(self, v: int) -> None:
        """The vCPU's thread comes to the CPU. From here on operations are KVM's, at EL2, or the guest's."""
        self.remember_host_registers()
        self.translate()
        if self.world.vms[v].spe:
            self.resident = v
        self.m.run(v)
        assert self.m.resident(0) == v
        self.deliver()
        self.resident = v

    def put(self) -> None:
        self.translate()
        self.m.switch(0, sleep=True)
        self.deliver()
        self.resident = None
        for name, value in self.host_registers.items():
            check(self.direct(name) == value, f"{name} is not what the host had")
        self.take_interrupts()

    def enter(self, masked: bool = False) -> None:
        """Enter the guest, which takes its PMBIRQ if there is one, unless it has interrupts masked."""
        assert self.resident is not None
        self.translate()
        world.vcpu_enter(self.world, 0, self.resident, self.m.now)
        self.deliver()
        self.in_guest = True
        if not masked:
            self.guest_interrupts()

    def exit(self) -> None:
        assert self.resident is not None
        self.translate()
        world.vcpu_exit(self.world, 0, self.resident)
        self.deliver()
        self.in_guest = False
        if self.world.vms[self.resident].spe:
            check(spe.pmbirq(self.spu) == 0, "PMBIRQ is raised after the exit that it has made")

    # ---- the guest ----

    def guest(self) -> Guest:
        assert self.resident is not None
        return self.guests[self.resident]

    def access(self, name: str, write: int = 0, value: int = 0, el: int = EL1) -> int:
        """Access a register as the guest, and return how that went."""
        assert self.in_guest
        assert self.resident is not None
        self.translate()
        key = sysreg.BY_NAME[name]
        outcome = access.guest_spe_access(self.world, 0, self.resident, el, key, write, value, self.m.now)
        self.deliver()
        return outcome

    def write(self, name: str, value: int) -> None:
        assert self.access(name, 1, value) in (access.DIRECT, access.TRAPPED)
        if name in REGISTERS:
            self.guest().registers[name] = value
        if name == "PMSICR_EL1":
            self.counter[self.guest().v + 1] = value

    def read(self, name: str) -> int:
        assert self.access(name) in (access.DIRECT, access.TRAPPED)
        assert self.resident is not None
        return self.world.vcpus[self.resident].value

    def guest_profiles(self, pmscr: int = E0SPE | E1SPE | CX | TS, first: int = 0, fm: int = 0, **others: int) -> None:
        """The guest programs its unit and enables its buffer, as a driver does."""
        guest = self.guest()
        guest.first = first
        values = {"PMSFCR": 0, "PMSEVFR": 0, "PMSLATFR": 0, "PMSIRR": 256, "PMSNEVFR": 0, "PMSDSFR": 0} | others
        for name, value in values.items():
            if self.has(f"{name}_EL1"):
                self.write(f"{name}_EL1", value)
        self.write("PMBPTR_EL1", GUEST_BASE + first)
        self.write("PMBLIMITR_EL1", GUEST_BASE + GUEST_SIZE | fm | E)
        self.write("PMSICR_EL1", 0)
        self.write("PMSCR_EL1", pmscr)
        spe.isb(self.spu)
        guest.enabled = True

    def guest_stops(self) -> None:
        """The guest stops profiling, and takes what there is."""
        self.write("PMSCR_EL1", 0)
        spe.isb(self.spu)
        self.translate()
        spe.psb_csync(self.spu)
        self.deliver()
        spe.dsb(self.spu)
        self.guest_interrupts()
        self.write("PMBLIMITR_EL1", 0)
        self.guest().enabled = False
        self.guest_takes()

    def guest_interrupts(self) -> None:
        """The guest's driver takes its PMBIRQ: the buffer is full, and begins again."""
        guest = self.guest()
        vcpu = self.world.vcpus[guest.v]
        while vcpu.spe_irq_level:
            guest.interrupts += 1
            status = self.read("PMBSR_EL1")
            check(status == FULL, f"PMBSR_EL1 of a guest whose buffer is full is {status:#x}")
            self.guest_takes()
            self.write("PMBSR_EL1", 0)
            check(vcpu.spe_irq_level == 0, "the guest's PMBIRQ does not fall")

    def guest_takes(self) -> None:
        guest = self.guest()
        end = self.read("PMBPTR_EL1") - GUEST_BASE
        check(guest.first <= end <= GUEST_SIZE, "the guest's write pointer has left its buffer")
        guest.stream += guest.memory[guest.first : end]
        guest.memory[guest.first : end] = bytes(end - guest.first)
        self.write("PMBPTR_EL1", GUEST_BASE + guest.first)

    def guest_runs(self, samples: int, el: int = EL1) -> None:
        """The guest executes until so many of its operations have been sampled, if it is profiled there."""
        guest = self.guest()
        for _ in range(samples):
            if not self.guest_is_profiled(el):
                return
            while not self.operate(guest.v + 1, el, self.rng.choice([1, 100, 10**6])):
                self.guest_is_profiled(el)
            if spe.pmbirq(self.spu):
                self.exit()
                self.enter(masked=self.rng.random() < 0.3)

    def guest_is_profiled(self, el: int) -> bool:
        """Tell whether the guest is profiled, and check that it has of the unit what it wrote."""
        guest = self.guest()
        for name, value in guest.registers.items():
            if name != "PMSICR_EL1":
                check(self.direct(name) == value, f"{name} is not what the guest wrote")
        wanted = guest.enabled and guest.registers["PMSCR_EL1"] & (E1SPE if el == EL1 else E0SPE) != 0
        wanted = wanted and not self.world.vcpus[guest.v].spe.pmbsr & S
        enabled = spe.statistical_profiling_enabled(self.spu, el, 0)
        check(enabled == wanted, f"the guest is {'' if enabled else 'not '}profiled")
        return wanted

    # ---- the end ----

    def records_of(self, stream: bytearray) -> list[Record]:
        return decode(bytes(stream))

    def finish(self) -> None:
        """Everybody stops, and every record is where it belongs."""
        for guest in self.guests:
            if guest.enabled:
                self.load(guest.v)
                self.enter()
                self.guest_stops()
                self.exit()
                self.put()
        if self.session.attached:
            self.stop_profiling()
        check(self.spu.nr_pending == 0, "a record is still in the unit")
        check(spe.pmbirq(self.spu) == 0, "PMBIRQ is left raised")
        streams = {HOST: self.host_stream} | {guest.v + 1: guest.stream for guest in self.guests}
        for owner, stream in streams.items():
            found = [(record.pc >> 40, (record.pc & (1 << 40) - 1) >> 2) for record in self.records_of(stream)]
            expected = [(owner, serial) for serial in self.formed[owner]]
            check(
                found == expected, f"of the {len(expected)} records of {owner} its buffer has {len(found)}, or others"
            )
