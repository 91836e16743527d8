# SPDX-License-Identifier: GPL-3.0-or-later
"""Provision a fresh guest twice: how long it takes, and how much less a second run needs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from benchmarks.figures import Figure
from demo import provision
from testbed import Guest, GuestSpec, TestbedError, image
from testbed.inventory import write


def measure() -> Iterator[Figure]:
    """Yield image build, boot, both runs of site.yml, and the scheduler's load time in the guest."""
    guest_image = image.ensure()
    yield Figure("guest image: build", _seconds(guest_image), "s", None, "when the cached image was built")
    with (
        Guest.boot(GuestSpec(name="bench"), image=guest_image) as guest,
        TemporaryDirectory(prefix="zernel-bench-") as directory,
    ):
        yield Figure("guest: boot to SSH", guest.boot_seconds, "s", None, "KVM" if guest.kvm else "emulated")
        inventory = Path(directory) / "inventory.yml"
        write(inventory, [guest])
        first = provision.site(inventory, quiet=True)
        yield Figure("site.yml, first run", first.seconds, "s", None, f"{first.changed} changed")
        started = time.monotonic()
        provision.start_workload(guest)
        demo = guest.boot_seconds + first.seconds + time.monotonic() - started
        yield Figure("make demo, image there", demo, "s", 720, "sum: boot, site.yml, workload")
        second = provision.site(inventory, quiet=True)
        share = 100 * second.seconds / first.seconds
        yield Figure("site.yml, second run", share, "% of the first", 40, f"{second.seconds:.0f} s")
        yield Figure("site.yml, second run: changed", second.changed, "tasks", 0)
        yield Figure("scheduler load and attach", _load_seconds(guest), "s", 1, "in the guest")


def _seconds(guest_image: image.Image) -> float:
    return float(str(guest_image.facts()["seconds"]))


def _load_seconds(guest: Guest) -> float:
    """Return how long the scheduler that runs now says its loading took."""
    try:
        with guest.forward(9093) as port, urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
    except OSError as error:
        text = f"(no answer: {error})"
    if found := re.search(r"^zernel_scheduler_load_seconds (\S+)", text, re.M):
        return float(found[1])
    raise TestbedError(
        "The scheduler in the guest does not say how long loading took",
        log="\n".join(text.splitlines()[:10]),
        suggestion="make demo, then in the guest: systemctl status zernel-scheduler",
    )
