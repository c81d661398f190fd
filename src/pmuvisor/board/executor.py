"""KVM_RUN of real guests: an executor of KVM's userspace API whose guests are programs on the board.

    cores = [core("cortex-a76")] * 2
    board = Board(cores)
    kvm = System(boot(cores, counted=COUNTED_EVENTS), executor=board)

A VMM then makes its ioctls, gives the VM a guest (`Board.give_guest`) and calls KVM_RUN. What KVM does in the kernel is
done inside: PSCI, the VGIC, the timers. So are the devices of the board, its two PL011: there is no KVM_EXIT_MMIO.

Everything has one thread. Virtual time, which is `System.now`, passes only while that is in KVM_RUN; where the vCPU
waits for an interrupt, KVM_RUN blocks, which is a jump to the next timer. Where another vCPU of the VM can run, KVM_RUN
returns EINTR after a slice, since only the same thread can run that one: `Board.run_all` takes turns.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from pmuvisor.arch import sysreg
from pmuvisor.arch.cores import Core
from pmuvisor.board import memmap
from pmuvisor.board.clock import Costs
from pmuvisor.board.engine import Action
from pmuvisor.board.fdt import virt_device_tree
from pmuvisor.board.hosted import HostedMachine
from pmuvisor.board.images import Image, Layout, load_image, load_initrd, plan_layout
from pmuvisor.board.machine import BoardCpu, Config, Kvm, Outcome, Status
from pmuvisor.board.place import HostCpu
from pmuvisor.kvm.uapi import Signal, SystemEvent, Vcpu, Vm, abi
from pmuvisor.kvm.uapi.memory import error

SLICE_NS = 50_000
"""How long a vCPU runs before another one's turn."""
LOOK_NS = 200_000
"""How long one runs that has no other beside it, before the executor looks whether it is to be interrupted."""

_EVENTS = {Status.POWEROFF: abi.KVM_SYSTEM_EVENT_SHUTDOWN, Status.RESET: abi.KVM_SYSTEM_EVENT_RESET}


class _VmmMachine(HostedMachine):
    """A machine of a VM that a VMM has made, which need not have a PMU. `is_over` says whether to leave KVM_RUN."""

    def __init__(self, config: Config, output: Callable[[bytes], None], kvm: Kvm, is_over: Callable[[], bool]) -> None:
        super().__init__(config, output, kvm)
        self._is_over = is_over

    def _is_to_end(self, end: float | None) -> bool:
        return self._is_over()

    def _claim_registers(self, cpu: BoardCpu) -> None:
        super()._claim_registers(cpu)
        if not self.vm.pmuver:
            for key in sysreg.PMU_KEYS:
                cpu.engine.set_action(key, Action.UNDEF)


@dataclass
class _Guest:
    """A VM's guest. Its machine is made when it first runs: until then its VM can be set up."""

    image: Image
    initrd: bytes
    bootargs: str
    layout: Layout
    memory: int
    output: Callable[[bytes], None]
    machine: HostedMachine | None = None
    places: list[HostCpu] = field(default_factory=list)
    outcome: Outcome | None = None


class Board:
    """An executor (`kvm.uapi.run.Executor`) for a host with these cores, by CPU.

    `costs` is what exits take of guests' time, None for nothing. `timeout` is after how many seconds of wall time a
    KVM_RUN, or `run_all`, is interrupted, None for never; of a guest that takes exceptions all the time it can be a few
    seconds more.
    """

    def __init__(self, cores: Sequence[Core], *, costs: Costs | None = None, timeout: float | None = None) -> None:
        self.cores = tuple(cores)
        self.costs = costs
        self.timeout = timeout
        self.interrupted = False
        """A signal is pending for the thread: KVM_RUN is EINTR as long as it is set, by a signal handler or another
        thread."""
        self._guests: WeakKeyDictionary[Vm, _Guest] = WeakKeyDictionary()
        self._end: float | None = None
        """When KVM_RUN or `run_all` is over, in seconds of time.monotonic(); None for never."""
        self._in_run_all = False
        self._turn_is_over = False
        """The last run has come back only because it is another vCPU's turn."""

    # ---- for VMMs -------------------------------------------------------------------------------------------

    def give_guest(
        self,
        vm: Vm,
        image: str | os.PathLike[str] | bytes,
        output: Callable[[bytes], None],
        *,
        memory: int = 256 << 20,
        initrd: str | os.PathLike[str] | None = None,
        bootargs: str = "",
    ) -> None:
        """Give a VM its memory, in bytes, with a guest in it, at whose entry vCPU 0 starts. It replaces an earlier one.

        `image` is a file as `pmuvisor run` takes it, or its bytes; `output` is given what the guest prints. The VM has
        a VGICv3 where the board has it, 23 is its PMU's interrupt, 21 its SPE's, and all vCPUs but the first are off.
        Raises ImageError for what cannot be loaded, and ValueError for a VM that the board cannot run.
        """
        self._check(vm)
        loaded = load_image(image, memmap.RAM_BASE, memory)
        disk = b"" if initrd is None else load_initrd(initrd, memory)
        # A device tree's size does not depend on the addresses in it.
        room = self._device_tree(vm, memory, bootargs, (0, 0) if disk else None)
        layout = plan_layout(loaded, len(disk), len(room), memmap.RAM_BASE, memory)
        self._guests[vm] = _Guest(loaded, disk, bootargs, layout, memory, output)

    def machine(self, vm: Vm) -> HostedMachine:
        """Return a VM's machine, for what it has executed and what that cost. Raises KeyError before its first run."""
        machine = self._guests[vm].machine
        if machine is None:
            raise KeyError("the VM has not run")
        return machine

    def outcome(self, vm: Vm) -> Outcome | None:
        """Return how a VM's guest ended when it last ran, or why it cannot go on; None where it can."""
        return self._guests[vm].outcome

    def run_all(self, vm: Vm) -> Vcpu:
        """Let a VM's vCPUs take turns in KVM_RUN until one has an exit for userspace; return that one.

        Each runs on the CPU where the calling thread is. Raises OSError as KVM_RUN does: EINTR where it is interrupted,
        `timeout` is over, or nothing can happen any more, which `outcome` tells.
        """
        self._set_end()
        self._in_run_all = True
        try:
            while True:
                on = [vcpu for vcpu in vm.vcpus if vcpu.mp_state == abi.KVM_MP_STATE_RUNNABLE]
                if not on:
                    raise error(errno.EINTR, "every vCPU is off")
                for vcpu in on:
                    if self._turn(vcpu):
                        return vcpu
        finally:
            self._in_run_all = False

    def _turn(self, vcpu: Vcpu) -> bool:
        """Run a vCPU; tell whether it has an exit for userspace."""
        self._turn_is_over = False
        try:
            vcpu.run()
        except InterruptedError:
            if not self._turn_is_over:
                raise
            return False
        return True

    def _set_end(self) -> None:
        if not self._in_run_all:
            self._end = None if self.timeout is None else time.monotonic() + self.timeout

    def _is_over(self) -> bool:
        """Tell whether KVM_RUN is to be interrupted."""
        return self.interrupted or (self._end is not None and time.monotonic() >= self._end)

    # ---- a VM and its guest ---------------------------------------------------------------------------------

    def _check(self, vm: Vm) -> None:
        """Raise ValueError for a VM that is not as the board is."""
        if len(vm.system.world.host.cpus) != len(self.cores):
            raise ValueError(f"the board has {len(self.cores)} cores, the host {len(vm.system.world.host.cpus)} CPUs")
        if not 1 <= len(vm.vcpus) <= memmap.MAX_CPUS:
            raise ValueError(f"the VM has {len(vm.vcpus)} vCPUs: expected 1 to {memmap.MAX_CPUS}")
        for vcpu in vm.vcpus:
            if vcpu.vcpu_id != vcpu.index or not vcpu.initialized:
                raise ValueError(f"vCPU {vcpu.vcpu_id}: expected ids from 0 on, each with KVM_ARM_VCPU_INIT done")
            if vcpu.index and vcpu.mp_state != abi.KVM_MP_STATE_STOPPED:
                raise ValueError(f"vCPU {vcpu.vcpu_id} is on: expected KVM_ARM_VCPU_POWER_OFF of all but the first")
            if vm.has_pmu() and vcpu.irq_num != memmap.PMU_INTID:
                raise ValueError(f"vCPU {vcpu.vcpu_id}: PMU interrupt {vcpu.irq_num}: expected {memmap.PMU_INTID}")
            if vm.record.spe == 1 and vcpu.spe_irq_num != memmap.SPE_INTID:
                raise ValueError(f"vCPU {vcpu.vcpu_id}: SPE interrupt {vcpu.spe_irq_num}: expected {memmap.SPE_INTID}")
        frames = (memmap.GICD_BASE, memmap.GICR_BASE)
        if vm.vgic is None or (vm.vgic.dist_base, vm.vgic.redist_base) != frames:
            raise ValueError(f"expected a VGICv3 with its frames at {frames[0]:#x} and {frames[1]:#x}")

    @staticmethod
    def _device_tree(vm: Vm, memory: int, bootargs: str, initrd: tuple[int, int] | None) -> bytes:
        spe = vm.record.spe == 1
        return virt_device_tree(memory, len(vm.vcpus), bootargs, initrd, vm.has_pmu(), spe=spe)

    def _make(self, vm: Vm, guest: _Guest) -> HostedMachine:
        """Make a VM's machine, at the entry of its guest."""
        guest.places = [HostCpu(vm.system.world, vcpu.number) for vcpu in vm.vcpus]
        config = Config(self.cores[vm.system.cpu], guest.memory, len(vm.vcpus), costs=self.costs)
        machine = _VmmMachine(config, guest.output, Kvm(vm.record, guest.places), self._is_over)
        dtb = self._device_tree(vm, guest.memory, guest.bootargs, guest.layout.initrd)
        machine.boot(guest.image, guest.layout, dtb, guest.initrd)
        return machine

    # ---- the executor ---------------------------------------------------------------------------------------

    def run(self, vcpu: Vcpu) -> Signal | SystemEvent:
        """Execute the guest of a vCPU that is loaded and entered, until there is something for userspace.

        Raises ValueError for a VM without a guest, and OSError where this computer has not the memory for it.
        """
        vm = vcpu.vm
        if vm not in self._guests:
            raise ValueError("the VM has no guest: expected Board.give_guest before KVM_RUN")
        guest = self._guests[vm]
        machine = guest.machine = guest.machine or self._make(vm, guest)
        for other in vm.vcpus:
            machine.psci.set_on(other.index, other.mp_state == abi.KVM_MP_STATE_RUNNABLE)
        guest.places[vcpu.index].c = vm.system.cpu
        guest.outcome, self._turn_is_over = None, False
        self._set_end()
        self._load(machine, vcpu)
        try:
            guest.outcome = self._execute(machine, vcpu)
        finally:
            machine.put(vcpu.index)
        event = None if guest.outcome is None else _EVENTS.get(guest.outcome.status)
        for other in vm.vcpus:  # after a system event none runs before userspace has initialised it again
            on = event is None and machine.psci.is_on(other.index)
            other.mp_state = abi.KVM_MP_STATE_RUNNABLE if on else abi.KVM_MP_STATE_STOPPED
        return Signal() if event is None else SystemEvent(event)

    def _execute(self, machine: HostedMachine, vcpu: Vcpu) -> Outcome | None:
        """Run a vCPU, or block, until the guest has ended, it is another one's turn, or it is to be interrupted."""
        system = vcpu.system
        others = [other.index for other in vcpu.vm.vcpus if other is not vcpu]
        while not self._is_over():
            turns = any(machine.can_run(other) for other in others)
            if machine.can_run(vcpu.index):
                until = system.now + (SLICE_NS if turns else LOOK_NS)
                system.now, outcome = machine.run_vcpu(vcpu.index, system.now, until)
                if outcome is not None:
                    return outcome
            elif not turns and not self._block(machine, vcpu):
                return Outcome(Status.HUNG, "no vCPU can run, and no timer will wake one")
            if any(machine.can_run(other) for other in others):
                self._turn_is_over = True
                return None
        return None

    def _load(self, machine: HostedMachine, vcpu: Vcpu) -> None:
        machine.at(vcpu.system.now)
        machine.load(vcpu.index, self.cores[vcpu.system.cpu].mhz)

    def _block(self, machine: HostedMachine, vcpu: Vcpu) -> bool:
        """State kvm_vcpu_halt(): the thread sleeps, so the vCPU is put, until the next timer. False: there is none."""
        timer, system = machine.next_timer_ns(), vcpu.system
        if timer is None:
            return False
        machine.put(vcpu.index)
        system.vcpu_exit(vcpu)
        system.handle_irq(vcpu)
        system.vcpu_put(vcpu)
        system.now = max(system.now, timer)
        system.vcpu_load(vcpu)
        system.flush_hwstate(vcpu)
        system.vcpu_enter(vcpu)
        self._load(machine, vcpu)
        return True
