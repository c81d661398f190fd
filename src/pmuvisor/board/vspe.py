"""One vCPU's Statistical Profiling Unit on the board: what the engine sampled, given to the semantics, and to memory.

The engine takes samples and forms their records; which of them find a place, where, and what happens when they do not,
is the semantics' (`arch.spe`, `kvm.spe`). Here records wait beside the unit's own, in the same order, and their bytes
go into the guest's memory as the unit writes them, through the guest's stage 1 and the VM's stage 2.

What is a choice: an operation is an instruction that retires; a direct write of a sampling register takes effect at
once (the buffer's registers trap, and every exit synchronizes); an operation takes a cycle; the pages of a buffer that
is not pinned are not mapped at stage 2 before the unit faults on them; and the unit keeps translations, as in a TLB,
until the guest writes one of the buffer's registers or another table is in use.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from pmuvisor.arch import spe, sysreg
from pmuvisor.arch.spe import Spu
from pmuvisor.board.engine import Barrier, Engine, GuestMemory, MemoryBoundsError
from pmuvisor.board.engine_profile import Profile
from pmuvisor.board.place import HostCpu
from pmuvisor.board.translation import FSC_EXTERNAL, Regime, translate_write
from pmuvisor.kvm import access as door
from pmuvisor.kvm import world as worlds

PAGE = 1 << spe.PAGE_SHIFT
MOST_RECORDS = 4096
"""Records that the engine takes at most before somebody looks."""
TLB_ENTRIES = 1024
FSC_TRANSLATION_LEVEL_3 = 0x07


class VirtualSpe:
    """The profiling of one vCPU, wherever it is loaded.

    Whatever lets the vCPU exit, enter, be loaded or put goes between `before` and `after`. `on_level` is told the level
    of the guest's PMBIRQ; `keep`, if it is given, every record that was written, as it was written.
    """

    def __init__(
        self,
        place: HostCpu,
        engine: Engine,
        memory: GuestMemory,
        on_level: Callable[[bool], None],
        keep: Callable[[bytes], None] | None = None,
    ) -> None:
        self.place = place
        self.vcpu = place.vcpu
        self.accesses: Counter[tuple[int, int]] = Counter()
        """How often each register was reached how: (key, outcome of the door) to a count."""
        self._engine = engine
        self._memory = memory
        self._on_level = on_level
        self._keep = keep
        self._waiting: deque[bytes] = deque()
        """The bytes of the records in Spu.pending."""
        self._told: Profile | None = None
        self._phase: tuple[int, int] | None = None
        """PMSICR_EL1 and the generator's state at the access that enabled sampling, which is no operation itself."""
        self._level = 0
        self._mapped = 0
        """Vcpu.spe_stage2 when it was last looked at."""
        self._tlb: dict[tuple[int, ...], tuple[int, int]] = {}
        """By what a translation depends on, and the page, what it came to."""
        self._stage2: set[int] = set()
        """Pages of unpinned buffers that are mapped at stage 2, by their intermediate physical address."""

    @property
    def spu(self) -> Spu:
        """The unit of the CPU where the vCPU is, or was last."""
        return self.place.world.host.cpus[self.place.c].spu

    # ---- around what the host does --------------------------------------------------------------------------

    def before(self) -> None:
        """The guest stops executing: bring the unit up to the instruction that the engine is at."""
        self._sync()
        self._look_up()

    def after(self, enabling: bool = False) -> None:
        """The guest is about to execute: what the unit wrote goes into memory, and sampling goes on.

        `enabling` says that the instruction at hand is the one that has enabled it, which is no operation.
        """
        self._deliver()
        if self._level != self.vcpu.spe_irq_level:
            self._level = self.vcpu.spe_irq_level
            self._on_level(self._level == 1)
        self._tell(enabling)

    def load(self) -> None:
        """The vCPU comes to a CPU: what its unit has written there before was somebody else's."""
        self.spu.nr_written = 0

    def put(self) -> None:
        """The vCPU has been put: nothing of the guest's is sampled any more."""
        self._deliver()
        self._profile(None)

    # ---- what was sampled -----------------------------------------------------------------------------------

    def _sync(self) -> None:
        """Give the unit the records that the engine has formed since the last time."""
        if self._told is None:
            return
        taken = self._engine.take_records()
        phase, self._phase = self._phase, None
        if phase is not None and taken.sampled == 0 and taken.left >= self._told.first - 1:
            self.spu.pmsicr, self.spu.random = phase
        else:
            self.spu.pmsicr, self.spu.random = taken.left, taken.random
        at = 0
        for number, size in self._runs(taken.sizes):
            self._form(taken.data[at : at + number * size], number, size)
            at += number * size

    @staticmethod
    def _runs(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return records that follow each other and have one size: how many, and the size."""
        runs: list[tuple[int, int]] = []
        for size in sizes:
            if runs and runs[-1][1] == size:
                runs[-1] = (runs[-1][0] + 1, size)
            else:
                runs.append((1, size))
        return runs

    def _form(self, data: bytes, number: int, size: int) -> None:
        """Let the unit form records of one size: but for the last ones, which it holds, they go through it."""
        spu = self.spu
        at = 0
        while number - at // size > len(spu.pending):
            if spu.nr_pending:
                self._look_up()
                spe.psb_csync(spu)
                self._deliver()
            through = min(number - at // size - len(spu.pending), self._room_here(size))
            if through == 0:
                break
            chunk = data[at : at + through * size]
            self._put(spu.pointer, chunk)
            spe.write_through(spu, through, size)
            at += len(chunk)
        source = self.place.v + 1
        for i in range(at, number * size, size):
            self._look_up()
            if not spe.discards(spu):
                self._waiting.append(data[i : i + size])
            spe.form_record(spu, size, source)
            self._deliver()

    def _room_here(self, size: int) -> int:
        """Return how many records of a size surely go into the page at the write pointer: 0 where it is not mapped."""
        spu = self.spu
        if spe.discards(spu) or not spe.profiling_buffer_enabled(spu):
            return 0
        if spu.pointer % (1 << spu.filter.core.align) or self._fault(spu.pointer):
            return 0
        return min((PAGE - spu.pointer % PAGE) // size, max(0, spe.records_to_service(spu) - 1))

    # ---- where it goes --------------------------------------------------------------------------------------

    def _regime(self) -> Regime:
        read = self._engine.read_register
        return Regime(read(3, 0, 1, 0, 0), read(3, 0, 2, 0, 2), read(3, 0, 2, 0, 0), read(3, 0, 2, 0, 1))

    def _address(self, va: int) -> tuple[int, int]:
        """Return the intermediate physical address of a write by EL1, and 0 or a fault as Spu.fault has it."""
        regime = self._regime()
        page = va & ~(PAGE - 1)
        key = (regime.sctlr & 1, regime.tcr, regime.ttbr1 if va >> 55 & 1 else regime.ttbr0, page)
        if key not in self._tlb:
            if len(self._tlb) >= TLB_ENTRIES:
                self._tlb.clear()
            self._tlb[key] = self._translate(regime, page)
        address, fault = self._tlb[key]
        return address | (va - page), fault

    def _translate(self, regime: Regime, va: int) -> tuple[int, int]:
        found = translate_write(self._memory, regime, va)
        if found.fault is not None:
            # A level 0 address size fault is all zero bits: bit 6 says no stage 2, so it has to be told from no fault.
            return 0, found.fault or FSC_TRANSLATION_LEVEL_3
        page = found.address & ~(PAGE - 1)
        if not self._memory.base <= found.address < self._memory.base + self._memory.size:
            return found.address, FSC_EXTERNAL
        if self.place.vm.spe_pinned == 0 and page not in self._stage2:
            return found.address, spe.STAGE2 | FSC_TRANSLATION_LEVEL_3
        return found.address, 0

    def _fault(self, va: int) -> int:
        return self._address(va)[1]

    def _look_up(self) -> None:
        """Give the unit the translations of the page at its write pointer, and of the next."""
        spu = self.spu
        spu.fault_page = spu.pointer >> spe.PAGE_SHIFT
        page = spu.pointer & ~(PAGE - 1)
        spu.fault[0] = self._fault(page)
        spu.fault[1] = self._fault((page + PAGE) & ((1 << 64) - 1))

    def _deliver(self) -> None:
        """Put the records that have left the unit where it wrote them, and map what it faulted on."""
        spu = self.spu
        for i in range(spu.nr_written):
            data = self._waiting.popleft()
            if spu.written_to[i] == self.place.v + 1:
                self._put(spu.written_at[i], data)
        spu.nr_written = 0
        if self.vcpu.spe_stage2 != self._mapped:
            self._mapped = self.vcpu.spe_stage2
            self._stage2.add(self._address(self.vcpu.spe.pmbptr)[0] & ~(PAGE - 1))
            self._tlb.clear()

    def _put(self, va: int, data: bytes) -> None:
        """Write records to the guest's memory; they may cross into the next page, which is mapped as well."""
        first = min(len(data), PAGE - va % PAGE)
        for at, part in ((va, data[:first]), (va + first, data[first:])):
            if part:
                try:
                    self._memory.write(self._address(at)[0], part)
                except MemoryBoundsError:  # the guest has changed its tables since the unit translated
                    return
        if self._keep is not None:
            self._keep(data)

    # ---- what is sampled now --------------------------------------------------------------------------------

    def _tell(self, enabling: bool) -> None:
        """Tell the engine what to sample from here on."""
        spu = self.spu
        els = sum(1 << el for el in (0, 1) if spe.statistical_profiling_enabled(spu, el, 0))
        if els == 0 or self.vcpu.loaded == 0:
            self._profile(None)
            return
        room = max(1, min(MOST_RECORDS, spe.records_to_service(spu) - spu.nr_pending, self._mapped_records()))
        first, random = spu.pmsicr & sysreg.PMSICR_COUNT, spu.random
        if enabling:  # the engine counts the instruction at hand: one more
            self._phase = first, random
            if first == 0 and spe.has_jitter(spu):
                random = spe.next_random(random)
            first = spe.operations_to_sample(spu) + 1
        self._profile(
            Profile(
                els=els,
                first=first,
                period=spe.interval(spu) + 1,
                filter=spu.filter,
                jitter=spe.has_jitter(spu),
                random=random,
                room=room,
                context=spe.collect_context_el1(spu, 1, 0),
                timestamp=spe.collect_timestamp(spu),
            )
        )

    def _mapped_records(self) -> int:
        """Return how many records the unit can take before one of them may fault; at least one."""
        spu = self.spu
        size = 1 << spu.filter.core.max_size
        at = spu.pointer
        end = at + MOST_RECORDS * size
        while at < end and self._fault(at & ((1 << 64) - 1)) == 0:
            at = (at & ~(PAGE - 1)) + PAGE
        return max(1, (at - spu.pointer) // size - spu.nr_pending)

    def _profile(self, profile: Profile | None) -> None:
        if profile is None and self._told is None:
            return
        self._told = profile
        self._engine.profile(profile)
        self._engine.barriers = Barrier.PSB if profile is not None else Barrier(0)

    # ---- what stops the engine ------------------------------------------------------------------------------

    def exit_and_enter(self, now: int) -> None:
        """Exit the guest, which drains its buffer, and enter it again: the host was needed for something."""
        self.before()
        worlds.vcpu_exit(self.place.world, self.place.c, self.place.v)
        self._deliver()
        worlds.vcpu_enter(self.place.world, self.place.c, self.place.v, now)
        self.after()

    def needs_service(self) -> bool:
        """Tell whether PMBIRQ is up: the host has to take it."""
        return spe.pmbirq(self.spu) == 1

    def psb_csync(self) -> None:
        """The guest has executed PSB CSYNC, and what follows waits for it: all records are in memory."""
        self.before()
        spe.psb_csync(self.spu)
        self.after()

    # ---- the guest's accesses -------------------------------------------------------------------------------

    def access(self, el: int, key: int, write: bool, value: int, now: int) -> tuple[int, int | None]:
        """Carry out the guest's MRS or MSR of an SPE register at the instruction that the engine is at.

        Return what was read and None; or the ESR_EL1 of the exception that the instruction takes instead.
        """
        place = self.place
        self.before()
        was_off = self._told is None
        outcome = door.guest_spe_access(place.world, place.c, place.v, el, key, int(write), value, now)
        if write and outcome == door.DIRECT:
            spe.take_effect(self.spu, spe.SYNC_ALL)
        self.accesses[key, outcome] += 1
        if write and key in sysreg.SPE_BUFFER_KEYS:
            self._tlb.clear()
        self.after(enabling=was_off)
        if outcome in (door.UNDEFINED, door.TRAPPED_UNDEFINED):
            return 0, sysreg.undefined_esr()
        return self.vcpu.value, None
