"""SPE shared by a host and its guests: every record in its owner's buffer, whatever KVM does in between."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm.machines import EL0, EL1, EL2, Machine
from kvm.spe_machine import E0SPE, E1SPE, FM_DISCARD, GUEST_BASE, GUEST_SIZE, PAGE, E, S, SpeMachine
from lab.test_perfdata import needs_perf, packets, written
from pmuvisor.arch import spe, sysreg
from pmuvisor.arch.cores import core, make_spe
from pmuvisor.kvm import access, world
from pmuvisor.kvm import spe as kvm_spe
from pmuvisor.lab.perfdata import AuxTrace
from pmuvisor.linux import arm_spe
from pmuvisor.linux.host import STATE_ACTIVE, STATE_INACTIVE

STAGE1_EC, STAGE2_EC = 0x24 << 26, 0x25 << 26
IMPLEMENTATION_DEFINED_EC = 0x1F << 26
TRANSLATION, PERMISSION, ALIGNMENT = 0x07, 0x0F, 0x21
ALL_REGISTERS = [
    "PMSCR_EL1", "PMSICR_EL1", "PMSIRR_EL1", "PMSFCR_EL1", "PMSEVFR_EL1", "PMSNEVFR_EL1", "PMSLATFR_EL1",
    "PMSDSFR_EL1", "PMSIDR_EL1", "PMBLIMITR_EL1", "PMBPTR_EL1", "PMBSR_EL1", "PMBIDR_EL1",
]  # fmt: skip


def machine() -> SpeMachine:
    return SpeMachine()


def in_guest(s: SpeMachine, first: int = 0, **others: int) -> SpeMachine:
    """Load the first VM's vCPU and let it profile, from `first` in its buffer on."""
    s.load(0)
    s.enter()
    s.guest_profiles(first=first, **others)
    return s


# ---- both at once ---------------------------------------------------------------------------------------------


def take_turns(s: SpeMachine, rng: random.Random, turns: int, first: int) -> None:
    """Let the host and its guests run, each for a random while, with a load and a put in each turn."""
    for _ in range(turns):
        s.host_runs(rng.choice([0, 1, 2, 5, 30]), rng.choice([EL0, EL2]))
        s.load(rng.randrange(len(s.guests)))
        for _ in range(rng.randrange(4)):
            s.enter(masked=rng.random() < 0.2)
            if not s.guest().registers:
                s.guest_profiles(first=first, PMSIRR=rng.choice([256, 4096 | 1]))
            s.guest_runs(rng.choice([0, 1, 2, 5, 30]), rng.choice([EL0, EL1]))
            s.exit()
        s.put()


@pytest.fixture(scope="module")
def thousand() -> SpeMachine:
    """A host and a guest that have both profiled through 1,000 loads and puts."""
    rng = random.Random(1)
    s = SpeMachine(rng=rng)
    s.profile(start=PAGE - 5 * 64)
    take_turns(s, rng, 1000, PAGE)
    s.finish()
    return s


def test_through_1000_loads_and_puts_each_side_finds_all_its_records_in_order_and_no_others(
    thousand: SpeMachine,
) -> None:
    s = thousand  # finish() has looked at the records
    assert s.world.vcpus[0].loads >= 1000
    assert (s.spu.lost, s.spu.misplaced, s.spu.exposed, s.dropped) == (0, 0, 0, [])
    assert s.spu.nr_pending == spe.pmbirq(s.spu) == 0
    assert s.session.spurious == s.session.truncated == 0
    # Both buffers were filled many times, and each time the side whose it is was told.
    assert min(map(len, s.formed.values())) > 5000
    assert s.guests[0].interrupts == len(s.formed[1]) // (GUEST_SIZE // 64 - PAGE // 64)
    assert s.session.interrupts > len(s.formed[0]) // (PAGE // 64) - 2


@needs_perf
def test_the_real_perf_reads_both_sides_records(thousand: SpeMachine, tmp_path: Path) -> None:
    streams = {0: thousand.host_stream, 1: thousand.guests[0].stream}
    for owner, stream in streams.items():
        shown = [what for _, what in packets(written(tmp_path / str(owner), AuxTrace(0, bytes(stream))))]
        assert not [what for what in shown if "Bad" in what or "RAW" in what]
        expected = [f"PC {owner << 40 | serial << 2:#x} " for serial in thousand.formed[owner]]
        found = [what for what in shown if what.startswith("PC")]
        assert len(found) == len(expected)
        assert all(what.startswith(pc) for what, pc in zip(found, expected, strict=True))


def test_two_guests_with_buffers_at_one_address_do_not_see_each_others_records() -> None:
    rng = random.Random(2)
    s = SpeMachine(2, rng)
    s.profile()
    take_turns(s, rng, 150, GUEST_SIZE - 7 * 64)
    s.finish()
    assert min(map(len, s.formed.values())) > 300
    assert s.dropped == []


def test_a_guest_that_profiles_while_the_host_does_not() -> None:
    rng = random.Random(3)
    s = machine()
    in_guest(s, GUEST_SIZE - 3 * 64)
    s.exit()
    s.put()
    take_turns(s, rng, 40, 0)
    s.finish()
    assert len(s.formed[1]) > 100
    assert s.formed[0] == []


def test_the_host_profiles_what_it_did_before_and_after_a_guest_without_a_buffer() -> None:
    s = machine()
    s.profile()
    for _ in range(5):
        s.host_runs(3)
        s.load(0)
        s.enter()
        assert not s.operate(1, EL1, 10**6)
        assert not s.operate(1, EL0, 10**6)
        s.exit()
        assert not s.operate(0, EL2, 10**6)  # KVM and the VMM, while the vCPU is loaded
        s.put()
    s.finish()
    assert len(s.formed[0]) == 15


def test_a_sample_interval_goes_on_where_it_stopped_on_either_side() -> None:
    s = machine()
    s.profile()
    s.operate(0, EL2, 100)
    host = s.spu.pmsicr
    in_guest(s)
    s.operate(1, EL1, 30)
    guest = s.spu.pmsicr
    s.exit()
    s.put()
    assert s.spu.pmsicr == host
    s.load(0)
    assert s.spu.pmsicr == guest


# ---- a VM without SPE ------------------------------------------------------------------------------------------


def test_beside_a_vm_without_spe_the_host_is_profiled_but_at_el1_and_el0() -> None:
    s = SpeMachine(0, without_spe=1)
    s.profile()
    for _ in range(3):
        s.host_runs(1)
        s.load(0)
        assert s.operate(0, EL2, 1 << 40)
        s.enter()
        assert not s.operate(1, EL1, 1 << 40)
        assert not s.operate(1, EL0, 1 << 40)
        s.exit()
        assert s.operate(0, EL2, 1 << 40)
        s.put()
    s.finish()
    assert len(s.formed[0]) == 9
    assert s.world.vcpus[0].spe_drained == 0


@pytest.mark.parametrize("name", ALL_REGISTERS)
def test_the_registers_are_undefined_in_a_vm_without_spe(name: str) -> None:
    s = SpeMachine(0, without_spe=1)
    s.load(0)
    s.enter()
    assert s.access(name) == access.TRAPPED_UNDEFINED
    expected = access.UNDEFINED if name in ("PMSIDR_EL1", "PMBIDR_EL1") else access.TRAPPED_UNDEFINED
    assert s.access(name, 1, 1) == expected
    assert s.access(name, el=EL0) == access.UNDEFINED


@pytest.mark.parametrize("name", ALL_REGISTERS)
def test_in_a_vm_with_spe_the_sampling_registers_are_the_hardwares_and_the_buffers_are_kvms(name: str) -> None:
    s = machine()
    s.load(0)
    s.enter()
    direct = name.startswith("PMS") and name != "PMSDSFR_EL1"  # HDFGxTR2_EL2 stay zero, which traps this one
    assert s.access(name) == (access.DIRECT if direct else access.TRAPPED)
    if name in ("PMSIDR_EL1", "PMBIDR_EL1"):
        assert s.access(name, 1, 1) == access.UNDEFINED
    else:
        assert s.access(name, 1, 0) == (access.DIRECT if direct else access.TRAPPED)
    assert s.access(name, el=EL0) == access.UNDEFINED


# ---- the guest's buffer ----------------------------------------------------------------------------------------


def test_a_full_buffer_interrupts_the_guest_until_it_clears_its_status() -> None:
    s = in_guest(machine(), GUEST_SIZE - 2 * 64)
    vcpu = s.world.vcpus[0]
    s.operate(1, EL1, 1 << 40)
    assert spe.pmbirq(s.spu) == 0
    s.operate(1, EL1, 1 << 40)
    assert spe.pmbirq(s.spu) == 1  # the host's, which makes the guest exit
    s.exit()
    assert (vcpu.spe.pmbsr, vcpu.spe.pmbptr) == (S | 1, GUEST_BASE + GUEST_SIZE)
    assert vcpu.spe_irq_level == 0
    for _ in range(2):
        s.enter(masked=True)
        assert vcpu.spe_irq_level == 1
        assert not s.operate(1, EL1, 1 << 40)
        s.exit()
    assert vcpu.spe_injected == 1
    s.enter(masked=True)
    s.write("PMBSR_EL1", 0)
    assert vcpu.spe_irq_level == 0


def test_a_guest_can_raise_its_own_interrupt_and_that_stops_its_profiling() -> None:
    s = in_guest(machine())
    s.write("PMBSR_EL1", S | 0x25 << 26 | TRANSLATION)
    vcpu = s.world.vcpus[0]
    for _ in range(3):
        assert vcpu.spe_irq_level == 1
        assert s.read("PMBSR_EL1") == S | STAGE2_EC | TRANSLATION
        assert not s.operate(1, EL1, 1 << 40)
    assert vcpu.spe_stage2 == 0


@pytest.mark.parametrize(
    ("what", "status"),
    [("unaligned", S | STAGE1_EC | ALIGNMENT), ("unmapped", S | STAGE1_EC | TRANSLATION), ("no room", S | 1)],
)
def test_a_buffer_that_cannot_be_written_is_the_guests_event(what: str, status: int) -> None:
    s = machine()
    if what == "unmapped":
        s.unmapped = lambda guest, page: TRANSLATION
    in_guest(s, {"unaligned": 8, "unmapped": 0, "no room": GUEST_SIZE - 32}[what])
    pointer = s.read("PMBPTR_EL1")
    while not spe.pmbirq(s.spu):
        s.operate(1, EL1, 1 << 40)
    s.exit()
    s.enter(masked=True)
    assert s.read("PMBSR_EL1") == status
    assert s.read("PMBPTR_EL1") == pointer
    assert s.world.vcpus[0].spe_irq_level == 1
    assert bytes(s.guests[0].memory) == bytes(GUEST_SIZE)


def test_in_discard_mode_samples_are_taken_and_nothing_is_written() -> None:
    s = in_guest(machine(), fm=FM_DISCARD)
    for _ in range(5):
        assert s.operate(1, EL1, 1 << 40)
    s.exit()
    s.put()
    assert s.spu.formed == 5
    assert (s.spu.written, s.world.vcpus[0].spe.pmbptr) == (0, GUEST_BASE)


# ---- stage 2 ---------------------------------------------------------------------------------------------------


class Stage2:
    """What KVM has mapped of a guest's buffer; it maps the page of a fault, as `vcpu_exit` asks."""

    def __init__(self, s: SpeMachine) -> None:
        self.s, self.mapped, self.resolved = s, set[int](), 0
        s.unmapped = lambda guest, page: 0 if page in self.mapped else spe.STAGE2 | TRANSLATION

    def run(self, samples: int) -> None:
        """Let the guest be sampled so often; the host exits when PMBIRQ is raised, maps, and enters again."""
        s, vcpu = self.s, self.s.world.vcpus[0]
        for _ in range(samples):
            s.operate(1, EL1, 1 << 40)
            if spe.pmbirq(s.spu):
                s.exit()
                self.map(vcpu.spe.pmbptr)
                s.enter()

    def map(self, pointer: int) -> None:
        if self.s.world.vcpus[0].spe_stage2 != self.resolved:
            self.resolved = self.s.world.vcpus[0].spe_stage2
            self.mapped.add(pointer >> 12)


def test_a_buffer_that_is_not_mapped_at_stage_2_loses_what_is_sampled_from_the_fault_to_the_next_entry() -> None:
    s = in_guest(machine(), PAGE - 20 * 64)
    stage2 = Stage2(s)
    stage2.run(60)
    s.guest_stops()
    vcpu = s.world.vcpus[0]
    assert vcpu.spe_stage2 == 2  # one for each page
    assert s.guests[0].interrupts == 0
    taken = [record.pc >> 2 & 0xFFFF for record in s.records_of(s.guests[0].stream)]
    missing = [serial for serial in s.formed[1] if serial not in taken]
    # The unit holds two records: the third makes the oldest leave, which faults, and with it the two that wait.
    assert missing == [1, 2, 3, 24, 25, 26]
    assert taken == [serial for serial in s.formed[1] if serial not in missing]


def test_a_buffer_that_is_mapped_has_no_blackout() -> None:
    s = in_guest(machine())
    stage2 = Stage2(s)
    stage2.mapped = {GUEST_BASE >> 12, (GUEST_BASE >> 12) + 1}
    stage2.run(60)
    s.exit()
    s.put()
    s.finish()
    assert s.world.vcpus[0].spe_stage2 == 0
    assert len(s.formed[1]) == 60


# ---- PMBIDR_EL1 and the largest buffer -------------------------------------------------------------------------


@given(st.integers(0, 31), st.integers(0, 511))
def test_maxbuffsize_is_decoded_as_its_page_says_and_encoded_back(exponent: int, mantissa: int) -> None:
    field = exponent << 9 | mantissa
    # PMBIDR_EL1.MaxBuffSize: mantissa:Zeros(12), or '1':mantissa:Zeros(exponent + 11).
    size = mantissa << 12 if exponent == 0 else (0x200 | mantissa) << exponent + 11
    assert kvm_spe.max_buffer_size(field) == size
    assert kvm_spe.max_buffer_field(size) == field


@given(st.integers(0, 1 << 40))
def test_maxbuffsize_is_the_largest_that_can_be_said_and_is_not_above(size: int) -> None:
    field = kvm_spe.max_buffer_field(size)
    assert kvm_spe.max_buffer_size(field) <= size < kvm_spe.max_buffer_size(field + 1)


def test_a_guest_reads_its_largest_buffer_in_pmbidr_el1() -> None:
    s = machine()
    s.world.vms[0].spe_max_buffer = 512 * PAGE
    s.load(0)
    s.enter()
    # F, EA ignored, Align 64 bytes; 512 pages of 4 KiB are 1:0 << 12.
    assert s.read("PMBIDR_EL1") == 1 << 8 | 1 << 5 | 6 | 1 << 9 << 32


@pytest.mark.parametrize(("first", "refused"), [(0, True), (PAGE - 64, True), (PAGE, False), (GUEST_SIZE - 64, False)])
def test_a_buffer_larger_than_the_vm_may_have_is_not_enabled(first: int, refused: bool) -> None:
    s = machine()
    s.world.vms[0].spe_max_buffer = PAGE
    s.load(0)
    s.enter()
    s.write("PMBPTR_EL1", GUEST_BASE + first)
    s.write("PMBLIMITR_EL1", GUEST_BASE + GUEST_SIZE | E)
    s.write("PMSCR_EL1", E1SPE)
    assert s.read("PMBSR_EL1") == (S | IMPLEMENTATION_DEFINED_EC if refused else 0)
    assert s.world.vcpus[0].spe_irq_level == int(refused)
    assert spe.statistical_profiling_enabled(s.spu, EL1, 0) == (not refused)


# ---- what else moves -------------------------------------------------------------------------------------------


def test_a_vcpu_takes_its_sampling_registers_from_cpu_to_cpu_and_leaves_none_behind() -> None:
    m = Machine(["max", "max"], [(2, 1)])
    for cpu in m.host.cpus:
        world.boot_spu(cpu, make_spe(core("max")), 7)
    m.world.vms[0].spe = 1
    names = ALL_REGISTERS[:8]
    values = dict.fromkeys(names, 2) | {"PMSIRR_EL1": 0x100, "PMSCR_EL1": E0SPE | E1SPE, "PMSICR_EL1": 77}
    for turn in range(4):
        c = turn % 2
        before = [spe.read(m.host.cpus[c].spu, EL2, sysreg.BY_NAME[name]) for name in names]
        m.run(0, c)
        world.vcpu_enter(m.world, c, 0, m.now)
        for name in names:
            if turn == 0:
                outcome = access.guest_spe_access(m.world, c, 0, EL1, sysreg.BY_NAME[name], 1, values[name], m.now)
                assert outcome in (access.DIRECT, access.TRAPPED)
            access.guest_spe_access(m.world, c, 0, EL1, sysreg.BY_NAME[name], 0, 0, m.now)
            assert m.world.vcpus[0].value == values[name], name
        world.vcpu_exit(m.world, c, 0)
        m.switch(c, sleep=True)
        assert [spe.read(m.host.cpus[c].spu, EL2, sysreg.BY_NAME[name]) for name in names] == before


def test_a_vcpu_on_a_cpu_that_cannot_run_it_leaves_the_hosts_profiling_alone() -> None:
    s = machine()
    s.world.vms[0].supported_pmus = 0
    s.profile()
    s.world.vms[0].spe = 1
    before = [s.direct(name) for name in (*ALL_REGISTERS, "PMSCR_EL2")]
    s.load(0)
    assert [s.direct(name) for name in (*ALL_REGISTERS, "PMSCR_EL2")] == before
    assert s.operate(0, EL2, 1 << 40)
    s.put()
    s.finish()
    assert len(s.formed[0]) == 1


def test_a_reset_guest_does_not_profile_and_has_no_interrupt() -> None:
    s = in_guest(machine(), GUEST_SIZE - 64)
    s.operate(1, EL1, 1 << 40)
    s.exit()
    s.put()
    world.vcpu_reset(s.world, 0, 0)
    s.load(0)
    s.enter()
    assert s.world.vcpus[0].spe_irq_level == 0
    assert not spe.statistical_profiling_enabled(s.spu, EL1, 0)
    assert s.read("PMBLIMITR_EL1") & E == 0
    assert s.read("PMBSR_EL1") & S == 0


def test_the_hosts_interrupt_that_comes_after_its_buffer_was_drained_is_spurious() -> None:
    s = machine()
    s.profile(start=PAGE - 64)
    s.operate(0, EL2, 1 << 40)
    assert spe.pmbirq(s.spu) == 1
    s.load(0)
    assert spe.pmbirq(s.spu) == 0
    assert arm_spe.irq_handler(s.host, 0) == 0
    assert s.session.spurious == 1
    s.put()  # where the event comes back, and is taken
    assert s.session.interrupts == 1
    s.host_runs(3)
    s.finish()


def test_a_session_of_the_vcpus_own_thread_ends_with_the_hosts_pointer_and_not_the_guests() -> None:
    s = machine()
    s.profile(task=0)
    for _ in range(3):
        s.load(0)
        assert s.session.state == STATE_ACTIVE
        s.host_registers = {}  # the session's, which leaves with its thread
        s.enter()
        if not s.guest().registers:
            s.guest_profiles()
        s.guest_runs(5)
        s.exit()
        s.put()
        assert s.session.state == STATE_INACTIVE
        assert not spe.profiling_buffer_enabled(s.spu)
    s.finish()
    # The thread is only ever KVM's and the guest's, which the host does not see.
    assert (len(s.formed[0]), len(s.formed[1]), s.session.aux_head) == (0, 15, 0)
