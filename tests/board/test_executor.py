"""KVM_RUN of guests that are programs: what userspace sees of them, and that they count as guests on the board do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from errno import EINTR
from typing import Any

import pytest

from a64 import (
    CNTV_CTL_EL0,
    CNTV_CVAL_EL0,
    CNTVCT_EL0,
    HVC,
    ISB,
    NE,
    PSCI_CPU_OFF,
    PSCI_CPU_ON,
    PSCI_SYSTEM_OFF,
    PSCI_SYSTEM_RESET,
    WFI,
    Program,
    daifclr,
    mrs,
    msr,
    str_,
    subs,
)
from board.machine_support import MEMORY, RESULTS, board
from kvm.uapi_support import BIG, LITTLE, refused
from pmuvisor.arch import sysreg
from pmuvisor.arch.cores import core
from pmuvisor.board.executor import Board
from pmuvisor.board.lanes import COUNTED_EVENTS
from pmuvisor.board.machine import DESIGNS, Status
from pmuvisor.board.vmm import create_irqchip, create_vm
from pmuvisor.kvm.uapi import System, Vm, boot
from pmuvisor.kvm.uapi import abi as k
from pmuvisor.lab.guests import builtin_guest

TIMER_INTID = 27
IRQ_VECTOR = 0x280
TICK = 16


class Vmm:
    """A VMM with one VM on a host of these cores, which runs a program, or the demo."""

    def __init__(
        self,
        program: Program | None = None,
        *cores: str,
        vcpus: int = 1,
        design: str = "emulated",
        counters: int = 4,
        spe: bool = False,
        **options: Any,
    ) -> None:
        self.console = bytearray()
        kinds = [core(name) for name in cores or ("max",)]
        self.board = Board(kinds, **options)
        self.kvm = System(boot(kinds, counted=COUNTED_EVENTS), executor=self.board)
        self.vm = create_vm(self.kvm, vcpus, DESIGNS[design], counters, spe=spe)
        create_irqchip(self.vm)
        self.give(program)

    def give(self, program: Program | None) -> None:
        image = builtin_guest("demo") if program is None else program.code()
        self.board.give_guest(self.vm, image, self.console.extend, memory=MEMORY)

    def run(self, number: int = 0) -> int:
        return self.vm.vcpus[number].run()

    def run_for_a_turn(self, number: int) -> bool:
        """Run a vCPU until it is another one's turn; tell whether it has an exit instead."""
        try:
            return self.run(number) == k.KVM_EXIT_SYSTEM_EVENT
        except InterruptedError:
            return False

    def result(self, number: int = 0) -> int:
        memory = self.board.machine(self.vm).memory
        return int.from_bytes(memory.read(RESULTS + 8 * number, 8), "little")


def save(p: Program, rt: int, to: int = 0) -> Program:
    return p.mov(9, RESULTS)(str_(rt, 9, 8 * to))


def event_type(vmm: Vmm) -> int:
    return int(vmm.vm.vcpus[0].run_page.system_event.type)


# ---- guests run, and end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
def test_the_demo_counts_exactly_and_powers_off(design: str) -> None:
    vmm = Vmm(design=design, counters=0 if design == "fixed-counters-only" else 6)
    assert vmm.run() == k.KVM_EXIT_SYSTEM_EVENT
    assert event_type(vmm) == k.KVM_SYSTEM_EVENT_SHUTDOWN
    assert b"demo: all counts exact\n" in vmm.console
    assert (b"INST_RETIRED 4,500,000 expected 4,500,000 exact" in vmm.console) == (design != "fixed-counters-only")


def test_a_guest_of_a_vmm_profiles_itself_where_the_vmm_gave_it_spe() -> None:
    vmm = Vmm(design="partitioned", counters=6, spe=True)
    vmm.board.give_guest(vmm.vm, builtin_guest("spe"), vmm.console.extend, memory=MEMORY)
    assert vmm.run() == k.KVM_EXIT_SYSTEM_EVENT
    assert vmm.console.endswith(b"spe: 44 of 44 checks passed\n")


def test_the_demo_does_the_same_as_on_a_machine_of_its_own() -> None:
    vmm, alone = Vmm(design="partitioned", counters=6), board()
    assert vmm.run() == k.KVM_EXIT_SYSTEM_EVENT
    alone.run()
    machine = vmm.board.machine(vmm.vm)
    assert vmm.console == alone.console
    assert machine.instructions() == alone.machine.instructions()
    mine, other = machine.ledger(), alone.machine.ledger()
    assert (mine.pop("puts"), other.pop("puts")) == (1, 0), "KVM_RUN has returned"
    assert mine.pop("registers_swapped") > other.pop("registers_swapped")
    assert mine == other
    assert vmm.kvm.now == alone.machine.now_ns()


def test_a_reset_is_userspaces_to_carry_out_and_no_vcpu_runs_before() -> None:
    vmm = Vmm(save(Program().mov(1, 7), 1).psci(PSCI_SYSTEM_RESET))
    assert vmm.run() == k.KVM_EXIT_SYSTEM_EVENT
    assert event_type(vmm) == k.KVM_SYSTEM_EVENT_RESET
    with refused(EINTR):
        vmm.run()
    vmm.vm.vcpus[0].init(k.KVM_ARM_VCPU_PSCI_0_2, k.KVM_ARM_VCPU_PMU_V3)
    vmm.give(Program().psci(PSCI_SYSTEM_OFF))
    assert vmm.run() == k.KVM_EXIT_SYSTEM_EVENT
    assert event_type(vmm) == k.KVM_SYSTEM_EVENT_SHUTDOWN
    assert vmm.result() == 0, "its memory is new"


def test_the_guest_finds_what_userspace_wrote_into_its_registers() -> None:
    p = Program()
    for number, register in enumerate((sysreg.pmevcntr(2), sysreg.ID_AA64DFR0_EL1, sysreg.PMCR_EL0)):
        save(p(mrs(3, register)), 3, number)
    vmm = Vmm(p.psci(PSCI_SYSTEM_OFF))
    vcpu = vmm.vm.vcpus[0]
    vcpu.set_one_reg(k.sys_reg_id_of("ID_AA64DFR0_EL1"), 4 << 8 | 6)
    vcpu.set_one_reg(k.sys_reg_id_of("PMEVCNTR2_EL0"), 1234)
    vcpu.set_one_reg(k.sys_reg_id_of("PMCR_EL0"), 3 << 11)
    assert vmm.run() == k.KVM_EXIT_SYSTEM_EVENT
    assert (vmm.result(0), vmm.result(1) >> 8 & 15, vmm.result(2) >> 11 & 31) == (1234, 4, 3)


def test_a_vm_without_a_pmu_finds_its_registers_undefined() -> None:
    p = Program().use_vectors()(ISB, mrs(3, sysreg.PMCCNTR_EL0)).psci(PSCI_SYSTEM_OFF)
    p.vectors({0x200: [*save(Program().mov(3, 5), 3).mov(0, PSCI_SYSTEM_RESET)(HVC).words()]})
    cores = [core(BIG)]
    executor = Board(cores)
    vm = System(boot(cores, counted=COUNTED_EVENTS), executor=executor).create_vm()
    vcpu = vm.create_vcpu(0)
    vcpu.init(k.KVM_ARM_VCPU_PSCI_0_2)
    vgic = vm.create_vgic()
    vgic.set_attr(k.KVM_DEV_ARM_VGIC_GRP_ADDR, k.KVM_VGIC_V3_ADDR_TYPE_DIST, 0x800_0000)
    vgic.set_attr(k.KVM_DEV_ARM_VGIC_GRP_ADDR, k.KVM_VGIC_V3_ADDR_TYPE_REDIST, 0x80A_0000)
    vgic.set_attr(k.KVM_DEV_ARM_VGIC_GRP_CTRL, k.KVM_DEV_ARM_VGIC_CTRL_INIT)
    executor.give_guest(vm, p.code(), print, memory=MEMORY)
    assert vcpu.run() == k.KVM_EXIT_SYSTEM_EVENT
    assert vcpu.run_page.system_event.type == k.KVM_SYSTEM_EVENT_RESET


# ---- waiting, and being interrupted --------------------------------------------------------------------------------


def timer_guest(cval: int) -> Program:
    """Waits for its timer's interrupt at tick `cval`; the handler's first instruction reads the time."""
    p = Program().use_vectors().gic(TIMER_INTID)
    p.write(CNTV_CVAL_EL0, cval).write(CNTV_CTL_EL0, 1)(daifclr(2)).label("loop")(WFI).b("loop")
    handler = save(Program()(mrs(3, CNTVCT_EL0)), 3).mov(0, PSCI_SYSTEM_OFF)(HVC).words()
    return p.vectors({IRQ_VECTOR: handler})


def test_a_vcpu_that_waits_sleeps_in_kvm_run_until_its_timer_and_its_host_has_the_cpu() -> None:
    vmm = Vmm(timer_guest(1_000_000_007), design="partitioned")
    assert vmm.run() == k.KVM_EXIT_SYSTEM_EVENT
    assert vmm.result() == 1_000_000_007
    assert vmm.kvm.now // TICK == 1_000_000_007
    record = vmm.vm.vcpus[0].record
    assert (record.loads, record.puts) == (2, 2)


def test_a_guest_that_waits_for_nothing_is_eintr_and_its_vmm_is_told_why() -> None:
    vmm = Vmm(Program().label("x")(WFI).b("x"))
    for _ in range(2):
        with refused(EINTR):
            vmm.run()
        outcome = vmm.board.outcome(vmm.vm)
        assert outcome
        assert outcome.status is Status.HUNG
    assert vmm.vm.vcpus[0].mp_state == k.KVM_MP_STATE_RUNNABLE


RUNAWAYS: dict[str, Callable[[], Program]] = {
    "loop": lambda: Program().label("x").b("x"),
    "exits": lambda: Program().label("x")(mrs(3, sysreg.PMCR_EL0)).b("x"),
    "timer": lambda: Program().label("x")(mrs(3, CNTVCT_EL0)).write(CNTV_CTL_EL0, 1)(msr(CNTV_CVAL_EL0, 3)).b("x"),
}


@pytest.mark.parametrize("kind", RUNAWAYS)
def test_a_runaway_guest_is_interrupted_after_the_timeout_and_goes_on_afterwards(kind: str) -> None:
    vmm = Vmm(RUNAWAYS[kind](), timeout=0.1)
    executed = 0
    for _ in range(2):
        begin = time.monotonic()
        with refused(EINTR):
            vmm.run()
        assert time.monotonic() - begin < 5
        assert vmm.vm.vcpus[0].run_page.exit_reason == k.KVM_EXIT_INTR
        assert vmm.board.outcome(vmm.vm) is None
        now = vmm.board.machine(vmm.vm).instructions()
        assert now > executed
        executed = now


def test_another_thread_interrupts_a_guest_until_it_says_otherwise() -> None:
    vmm = Vmm(Program().label("x").b("x"), timeout=20)
    threading.Timer(0.1, lambda: setattr(vmm.board, "interrupted", True)).start()
    begin = time.monotonic()
    with refused(EINTR):
        vmm.run()
    executed = vmm.board.machine(vmm.vm).instructions()
    with refused(EINTR):
        vmm.run()
    assert time.monotonic() - begin < 10
    assert vmm.board.machine(vmm.vm).instructions() == executed


# ---- several vCPUs -------------------------------------------------------------------------------------------------


def pair() -> Program:
    """CPU 0 turns CPU 1 on and waits for its word; CPU 1 says it and turns itself off."""
    p = Program().mov(20, RESULTS).adr(2, "other").mov(0, PSCI_CPU_ON).mov(1, 1).mov(3, 99)(HVC)
    p.label("wait")(0xF940_0284).cbz(4, "wait").psci(PSCI_SYSTEM_OFF)  # ldr x4, [x20]
    return save(p.label("other"), 0).psci(PSCI_CPU_OFF)


def test_kvm_run_is_eintr_where_another_vcpu_has_to_run_which_psci_has_turned_on() -> None:
    vmm = Vmm(pair(), vcpus=2)
    states = [vcpu.mp_state for vcpu in vmm.vm.vcpus]
    assert states == [k.KVM_MP_STATE_RUNNABLE, k.KVM_MP_STATE_STOPPED]
    with refused(EINTR):
        vmm.run(0)
    assert vmm.vm.vcpus[1].mp_state == k.KVM_MP_STATE_RUNNABLE
    assert vmm.board.outcome(vmm.vm) is None
    with refused(EINTR):
        vmm.run(1)
    assert vmm.vm.vcpus[1].mp_state == k.KVM_MP_STATE_STOPPED
    assert vmm.run(0) == k.KVM_EXIT_SYSTEM_EVENT
    assert vmm.result() == 99


def test_run_all_takes_turns_until_one_exits() -> None:
    vmm = Vmm(pair(), vcpus=2)
    assert vmm.board.run_all(vmm.vm) is vmm.vm.vcpus[0]
    assert event_type(vmm) == k.KVM_SYSTEM_EVENT_SHUTDOWN
    with refused(EINTR):
        vmm.board.run_all(vmm.vm)


def test_run_all_is_over_after_the_timeout_though_each_turn_is_short() -> None:
    p = Program().adr(2, "x").mov(0, PSCI_CPU_ON).mov(1, 1)(HVC).label("x").b("x")
    vmm = Vmm(p, vcpus=2, timeout=0.2)
    begin = time.monotonic()
    with refused(EINTR):
        vmm.board.run_all(vmm.vm)
    assert 0.2 <= time.monotonic() - begin < 5


# ---- where it runs -------------------------------------------------------------------------------------------------


def test_a_cpu_that_the_pmu_has_not_fails_to_enter_and_the_guest_goes_on_elsewhere() -> None:
    vmm = Vmm(Program().psci(PSCI_SYSTEM_OFF), BIG, LITTLE, design="partitioned")
    vmm.kvm.cpu = 1
    assert vmm.run() == k.KVM_EXIT_FAIL_ENTRY
    assert vmm.vm.vcpus[0].run_page.fail_entry.cpu == 1
    vmm.kvm.cpu = 0
    assert vmm.run() == k.KVM_EXIT_SYSTEM_EVENT


@pytest.mark.parametrize(("design", "all_of_it"), [("fixed-counters-only", True), ("emulated", False)])
def test_only_fixed_counters_go_on_counting_on_cores_of_all_kinds(design: str, all_of_it: bool) -> None:
    # vCPU 1 only makes KVM_RUN of vCPU 0 return often, so that its thread can be moved.
    rounds = 500_000
    p = Program().adr(2, "other").mov(0, PSCI_CPU_ON).mov(1, 1)(HVC)
    p.write(sysreg.PMINTENCLR_EL1, 1 << 31).write(sysreg.PMCCFILTR_EL0, 0).write(sysreg.PMCNTENSET_EL0, 1 << 31)
    p.write(sysreg.PMCR_EL0, 0b1000101)(ISB).mov(5, rounds)
    p.label("loop")(subs(5, 5, 1)).b_if(NE, "loop")(mrs(3, sysreg.PMCCNTR_EL0))
    save(p, 3).psci(PSCI_SYSTEM_OFF).label("other").b("other")
    vmm = Vmm(p, BIG, LITTLE, vcpus=2, design=design, counters=0)
    moves = 0
    while not (moves and vmm.run_for_a_turn(1)) and not vmm.run_for_a_turn(0):
        moves += 1
        vmm.kvm.cpu = moves & 1
    assert moves > 4
    # ISB; MOV of a number that takes two instructions; the loop.
    expected = 1 + 2 + 2 * rounds
    assert (vmm.result() == expected) == all_of_it
    assert vmm.result() <= expected


# ---- what it refuses -----------------------------------------------------------------------------------------------


def made(*, vcpus: int = 1, ids: int = 0, features: tuple[int, ...] = (2, 3), irq: int = 23) -> Vm:
    vm = System(boot([core(BIG)], vcpus=16)).create_vm()
    for number in range(vcpus):
        vm.create_vcpu(number + ids).init(*features)
    vgic = vm.create_vgic()
    for frame, base in ((k.KVM_VGIC_V3_ADDR_TYPE_DIST, 0x800_0000), (k.KVM_VGIC_V3_ADDR_TYPE_REDIST, 0x80A_0000)):
        vgic.set_attr(k.KVM_DEV_ARM_VGIC_GRP_ADDR, frame, base)
    for vcpu in vm.vcpus:
        vcpu.set_attr(k.KVM_ARM_VCPU_PMU_V3_IRQ, irq)
    return vm


def without_vgic() -> Vm:
    return create_vm(System(boot([core(BIG)])), 1, DESIGNS["emulated"], 2)


@pytest.mark.parametrize(
    ("vm", "line"),
    [
        (without_vgic, "vCPU 0: PMU interrupt 0: expected 23"),
        (lambda: made(vcpus=9, features=(0, 2, 3)), "the VM has 9 vCPUs: expected 1 to 8"),
        (lambda: made(ids=1), "vCPU 1: expected ids from 0 on, each with KVM_ARM_VCPU_INIT done"),
        (lambda: made(vcpus=2), "vCPU 1 is on: expected KVM_ARM_VCPU_POWER_OFF of all but the first"),
        (lambda: made(irq=22), "vCPU 0: PMU interrupt 22: expected 23"),
        (
            lambda: System(boot([core(BIG)] * 2)).create_vm(),
            "the board has 1 cores, the host 2 CPUs",
        ),
    ],
)
def test_a_vm_that_the_board_cannot_run_is_refused_in_one_line(vm: Callable[[], Vm], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        Board([core(BIG)]).give_guest(vm(), Program().code(), print)


def test_a_vm_with_its_interrupt_controller_elsewhere_is_refused() -> None:
    vm = System(boot([core(BIG)])).create_vm()
    vm.create_vcpu(0).init(k.KVM_ARM_VCPU_PSCI_0_2)
    with pytest.raises(ValueError, match="expected a VGICv3 with its frames at 0x8000000 and 0x80a0000"):
        Board([core(BIG)]).give_guest(vm, Program().code(), print)


def test_kvm_run_without_a_guest_is_refused() -> None:
    cores = [core(BIG)]
    kvm = System(boot(cores), executor=Board(cores))
    vm = create_vm(kvm, 1, DESIGNS["emulated"], 2)
    create_irqchip(vm)
    with pytest.raises(ValueError, match=r"the VM has no guest: expected Board\.give_guest before KVM_RUN"):
        vm.vcpus[0].run()
