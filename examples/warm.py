# A design of one's own, in one module: docs/your-own-design.md walks through it.
#
#     python examples/warm.py check --preset fresh
#     python examples/warm.py run demo
#     python examples/warm.py compare demo --designs lazy,warm

"""`warm`: as `lazy`, but a guest that has set PMCR_EL0.E finds its registers on the CPU after every load."""

from pmuvisor import cli
from pmuvisor.arch.sysreg import PMCR_E
from pmuvisor.kvm import lazy
from pmuvisor.kvm.vcpu import GUEST_OWNED, Vcpu, Vm
from pmuvisor.own import OwnDesign


def residency_at_load(vm: Vm, vcpu: Vcpu) -> int:
    """Own the PMU at load where the guest has it running, be a counter enabled or not; else decide as `lazy` does."""
    if vcpu.pmcr & PMCR_E != 0:
        return GUEST_OWNED
    return lazy.residency_at_load(vm, vcpu)


WARM = OwnDesign("warm", base="lazy", replaced={lazy.residency_at_load: residency_at_load})

if __name__ == "__main__":
    raise SystemExit(cli.main(own=WARM))
