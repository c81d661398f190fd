# A VMM for KVM's userspace API (docs/uapi.md), which runs the built-in guest.
#
# It does as VMMs do on a heterogeneous host: it looks for a PMU that covers every CPU and asks for that one by SET_PMU;
# where there is none it falls back to FIXED_COUNTERS_ONLY, with which the guest's cycle counter works on every CPU.
#
#     python examples/vmm.py cortex-a55 cortex-a55 cortex-x1

"""A VMM: a guest whose PMU covers every CPU of the host, or else has fixed counters only."""

import sys

from pmuvisor.arch.cores import core
from pmuvisor.board.executor import Board
from pmuvisor.board.lanes import COUNTED_EVENTS
from pmuvisor.kvm.uapi import System, Vm, abi, boot
from pmuvisor.lab.guests import builtin_guest


def set_up_pmu(kvm: System, vm: Vm) -> str:
    """Give the VM a PMU that all CPUs have; where none does, a cycle counter that works on all of them."""
    every_cpu = (1 << len(kvm.world.host.cpus)) - 1
    for pmu in kvm.pmus:  # /sys/bus/event_source/devices/*/cpus and type
        if pmu.cpus == every_cpu:
            vm.vcpus[0].set_attr(abi.KVM_ARM_VCPU_PMU_V3_SET_PMU, pmu.type)
            return f"SET_PMU {pmu.type}: {pmu.event_counters} event counters"
    if vm.vcpus[0].has_attr(abi.KVM_ARM_VCPU_PMU_V3_FIXED_COUNTERS_ONLY):
        vm.vcpus[0].set_attr(abi.KVM_ARM_VCPU_PMU_V3_FIXED_COUNTERS_ONLY)
        return "FIXED_COUNTERS_ONLY"
    return "the PMU of the CPU where the VMM is"


def main(names: list[str]) -> int:
    """Run the built-in guest on a host with these cores; return the type of the system event that ended it."""
    cores = [core(name) for name in names]
    board = Board(cores, timeout=60)
    kvm = System(boot(cores, counted=COUNTED_EVENTS), executor=board)
    vm = kvm.create_vm()
    vcpu = vm.create_vcpu(0)
    vcpu.init(abi.KVM_ARM_VCPU_PSCI_0_2, abi.KVM_ARM_VCPU_PMU_V3)
    print("PMU:", set_up_pmu(kvm, vm))
    vgic = vm.create_vgic()
    vgic.set_attr(abi.KVM_DEV_ARM_VGIC_GRP_ADDR, abi.KVM_VGIC_V3_ADDR_TYPE_DIST, 0x0800_0000)
    vgic.set_attr(abi.KVM_DEV_ARM_VGIC_GRP_ADDR, abi.KVM_VGIC_V3_ADDR_TYPE_REDIST, 0x080A_0000)
    vgic.set_attr(abi.KVM_DEV_ARM_VGIC_GRP_CTRL, abi.KVM_DEV_ARM_VGIC_CTRL_INIT)
    vcpu.set_attr(abi.KVM_ARM_VCPU_PMU_V3_IRQ, 23)
    vcpu.set_attr(abi.KVM_ARM_VCPU_PMU_V3_INIT)
    board.give_guest(vm, builtin_guest("demo"), lambda data: print(data.decode(), end=""))
    assert vcpu.run() == abi.KVM_EXIT_SYSTEM_EVENT
    return int(vcpu.run_page.system_event.type)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["cortex-a76"] * 2) != abi.KVM_SYSTEM_EVENT_SHUTDOWN)
