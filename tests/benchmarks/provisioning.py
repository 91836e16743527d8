# SPDX-License-Identifier: GPL-3.0-or-later
"""Provision a fresh guest twice: how long it takes, and how much less a second run needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from benchmarks.figures import Figure
from demo import provision
from testbed import Guest, GuestSpec
from testbed.inventory import write


def measure() -> Iterator[Figure]:
    """Yield boot, first and second run of site.yml, and the scheduler's load time in the guest."""
    with (
        Guest.boot(GuestSpec(name="bench")) as guest,
        TemporaryDirectory(prefix="zernel-bench-") as directory,
    ):
        yield Figure("guest: boot to SSH", guest.boot_seconds, "s", None, "KVM" if guest.kvm else "emulated")
        inventory = Path(directory) / "inventory.yml"
        write(inventory, [guest])
        first = provision.site(inventory, quiet=True)
        yield Figure("site.yml, first run", first.seconds, "s", None, f"{first.changed} changed")
        second = provision.site(inventory, quiet=True)
        share = 100 * second.seconds / first.seconds
        yield Figure("site.yml, second run", share, "% of the first", 40, f"{second.seconds:.0f} s")
        yield Figure("site.yml, second run: changed", second.changed, "tasks", 0)
        with guest.forward(9093) as port, urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found = re.search(r"^zernel_scheduler_load_seconds (\S+)", text, re.M)
        if found is None:
            raise RuntimeError("the scheduler does not say how long loading took")
        yield Figure("scheduler load and attach", float(found[1]), "s", 1, "in the guest")
