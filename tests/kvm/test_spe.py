"""SPE shared by a host and its guests: every record in its owner's buffer, whatever KVM does in between."""

from __future__ import annotations

import random

from kvm.machines import EL0, EL1, EL2
from kvm.spe_machine import PAGE, SpeMachine


def test_host_and_guest_profile_at_once_through_1000_loads_and_puts() -> None:
    rng = random.Random(1)
    s = SpeMachine(rng=rng)
    s.profile(start=PAGE - 5 * 64)
    s.load(0)
    s.enter()
    s.guest_profiles(first=PAGE)
    s.exit()
    s.put()
    for _ in range(999):
        s.host_runs(rng.choice([0, 1, 2, 5, 30]), rng.choice([EL0, EL2]))
        s.load(0)
        for _ in range(rng.randrange(3)):
            s.enter()
            s.guest_runs(rng.choice([0, 1, 2, 5, 30]), rng.choice([EL0, EL1]))
            s.exit()
        s.put()
    s.finish()
    assert (s.spu.lost, s.spu.misplaced, s.dropped) == (0, 0, [])
    assert s.guests[0].interrupts > 50
    assert s.session.interrupts > 50
    assert min(map(len, s.formed.values())) > 5000
    assert s.session.spurious == s.session.truncated == 0
