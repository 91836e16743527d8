# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands for the maps of a loaded scheduler: what one in a kernel would measure, the test says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zernel.errors import ZernelError
from zernel.gpu.activity import Missing
from zernel.scheduler.maps import Activity, Delay, Hint, Task, Tenant, Use
from zernel.scheduler.policy import Role

MS = 1_000_000
S = 1000 * MS


IDLE = Activity(
    start_ticks=1,
    run_ns=MS,
    wait_ns=0,
    sleep_ns=99 * MS,
    io_wait_ns=0,
    bursts=1,
    burst_ns=MS,
    longest_burst_ns=MS,
    futexes=0,
    gpu_sync_ns=None,
    gpu_launch_ns=None,
    nccl_ns=None,
    cgroup=0,
    tenant=0,
    cpu=0,
    roles=frozenset(),
)


def activity(**did: Any) -> Activity:
    """Return what a process did in an epoch: by default one burst of 1 ms, and 99 ms of sleep."""
    return dataclasses.replace(IDLE, **did)


@dataclass
class FakeMaps:
    """Gives what the test put into ``activity``, once, and keeps the hints it was given."""

    activity: dict[int, Activity] = field(default_factory=dict)
    hints: dict[int, Hint] = field(default_factory=dict)
    writes: int = 0
    tenants: dict[int, Tenant] = field(default_factory=dict)
    cgroups: dict[int, int] = field(default_factory=dict)
    use: dict[int, Use] = field(default_factory=dict)
    delay: Delay = field(default_factory=lambda: Delay((0,) * 24, 0.0))
    tenant_writes: int = 0
    tasks: dict[int, Task] = field(default_factory=dict)
    epochs: int = 0
    fault: ZernelError | None = None
    futex_signal: bool = True
    missing: Missing = field(default_factory=Missing)

    def drain(self) -> dict[int, Activity]:
        self.epochs += 1
        if self.fault is not None:
            raise self.fault
        drained, self.activity = self.activity, {}
        return drained

    def gpu_missing(self) -> Missing:
        return self.missing

    def set_hints(self, hints: Mapping[int, Hint]) -> None:
        self.hints = dict(hints)
        self.writes += 1

    def set_tenants(self, tenants: Mapping[int, Tenant], cgroups: Mapping[int, int]) -> None:
        self.tenants, self.cgroups = dict(tenants), dict(cgroups)
        self.tenant_writes += 1

    def tenant_use(self, tenants: Iterable[int]) -> dict[int, Use]:
        return {index: self.use[index] for index in tenants if index in self.use}

    def delays(self) -> dict[Role, Delay]:
        return {Role.LAUNCHER: self.delay}

    def task(self, thread: int) -> Task | None:
        return self.tasks.get(thread)


def two_nodes(root: Path) -> None:
    """Make a host of two nodes with two CPUs each below ``root``/sys."""
    system = root / "sys/devices/system"
    for name, text in (
        ("cpu/possible", "0-3"),
        ("node/online", "0-1"),
        ("node/node0/cpulist", "0-1"),
        ("node/node1/cpulist", "2-3"),
    ):
        (system / name).parent.mkdir(parents=True, exist_ok=True)
        (system / name).write_text(f"{text}\n")


def process(
    root: Path, pid: int, *, start_ticks: int = 1, memory: str = "0-1", cgroup: str = "/", flags: int = 0
) -> None:
    """Make a process below ``root``/proc."""
    directory = root / f"proc/{pid}"
    (directory / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
    after_name = ["S", *["0"] * 5, str(flags), *["0"] * 12, str(start_ticks), *["0"] * 30]
    (directory / "stat").write_text(f"{pid} (py) th)on) {' '.join(after_name)}\n")
    (directory / "comm").write_text("py) th)on\n")
    status = f"Name:\tpy\nMems_allowed:\t3\nMems_allowed_list:\t{memory}\nCpus_allowed_list:\t0-3\n"
    (directory / "status").write_text(status)
    (directory / "cgroup").write_text(f"0::{cgroup}\n")
