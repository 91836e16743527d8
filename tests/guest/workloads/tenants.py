# SPDX-License-Identifier: GPL-3.0-or-later
"""How tenants share the CPUs: ``python3 tenants.py SECONDS CPUS BOUND_MS WEIGHT:HOGS[:bound]...``.

Loads the scheduler itself (as root, with no other loaded), with that starvation bound. There is one tenant
for each WEIGHT:HOGS, on CPUS (a list such as ``0,1``). Its hogs run in a cgroup below the one
that it is known by; ``bound`` ones are each bound to a CPU, in turn. Tenant 0, the default one, has none.
Prints as JSON, for each tenant: its share of the CPU time that all got, measured by the kernel in the
cgroups, and what the scheduler itself says; then what part of all CPUs' time was used, and the counters.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from multiprocessing import Barrier, Process
from pathlib import Path
from typing import Any

from zernel.scheduler.config import Config, Safety
from zernel.scheduler.loader import load_checked
from zernel.scheduler.maps import Tenant

CGROUPS = Path("/sys/fs/cgroup")


def hog(cgroup: Path, cpus: list[int], start: Any, seconds: float) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    os.sched_setaffinity(0, cpus)
    start.wait()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass


def used(cgroup: Path) -> float:
    """Return the seconds of CPU time that the cgroup's processes got."""
    words = (cgroup / "cpu.stat").read_text().split()
    return int(words[words.index("usage_usec") + 1]) / 1e6


def main(seconds: float, cpus: list[int], bound_ms: int, wanted: list[str]) -> None:
    # What measures is of the default tenant, and must not have to wait for the hogs.
    cgroups, tenants, plan = {}, {0: Tenant(1_000_000)}, []
    for index, text in enumerate(wanted, start=1):
        weight, hogs, *bound = text.split(":")
        outer = CGROUPS / f"tenant{index}"
        inner = outer / "inner"
        inner.mkdir(parents=True, exist_ok=True)
        tenants[index] = Tenant(int(weight))
        cgroups[outer.stat().st_ino] = index
        plan += [(inner, [cpus[n % len(cpus)]] if bound else cpus) for n in range(int(hogs))]
    start = Barrier(len(plan) + 1)
    config = dataclasses.replace(Config(), safety=Safety(starvation_bound_ms=bound_ms))
    with load_checked(config) as scheduler:
        scheduler.maps.set_tenants(tenants, cgroups)
        # Half a second more than is measured at either end.
        processes = [Process(target=hog, args=(*what, start, seconds + 1)) for what in plan]
        for process in processes:
            process.start()
        start.wait()
        time.sleep(0.5)
        inners = [CGROUPS / f"tenant{index}/inner" for index in range(1, len(wanted) + 1)]
        before, use, began = [used(inner) for inner in inners], scheduler.maps.tenant_use(), time.monotonic()
        time.sleep(seconds)
        got = [used(inner) - then for inner, then in zip(inners, before, strict=True)]
        took, now = time.monotonic() - began, scheduler.maps.tenant_use()
        numbers = range(1, len(wanted) + 1)
        said = [now[n].run_seconds - (use[n].run_seconds if n in use else 0) for n in numbers]
        longest = [now[n].longest_wait_seconds for n in numbers]
        for process in processes:
            process.join(60)
        counters = scheduler.counters()
    for inner in inners:
        inner.rmdir()
        inner.parent.rmdir()
    report = {
        "shares": [value / sum(got) for value in got],
        "said": [value / sum(said) for value in said],
        "longest_wait_seconds": longest,
        "busy": sum(got) / (took * len(cpus)),
        "counters": counters,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(float(sys.argv[1]), [int(cpu) for cpu in sys.argv[2].split(",")], int(sys.argv[3]), sys.argv[4:])
