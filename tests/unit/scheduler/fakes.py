# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands for the maps of a loaded scheduler: what one in a kernel would measure, the test says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zernel.scheduler.classifier import Hint
from zernel.scheduler.maps import Delay, Tenant, Use
from zernel.scheduler.policy import Role

MS = 1_000_000
S = 1000 * MS


@dataclass
class Activity:
    """What a process did in one epoch; by default 1 ms of CPU time in one burst, and 99 ms of sleep."""

    start_ticks: int = 1
    run_ns: int = MS
    io_wait_ns: int = 0
    sleep_ns: int = 99 * MS
    bursts: int = 1
    burst_ns: int = MS
    futex_waits: int = 0
    gpu_sync_ns: int = 0
    gpu_launch_ns: int = 0
    nccl_ns: int = 0
    tenant: int = 0
    roles: frozenset[Role] = frozenset()
    last_cpu: int = 0
    cgroup: int = 1


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
    epochs: int = 0
    futex_signal: bool = True
    gpu_signal: bool = True

    def drain(self) -> dict[int, Activity]:
        drained, self.activity = self.activity, {}
        return drained

    def set_hints(self, hints: Mapping[int, Hint]) -> None:
        self.hints = dict(hints)
        self.writes += 1

    def set_tenants(self, tenants: Mapping[int, Tenant], cgroups: Mapping[int, int]) -> None:
        self.tenants, self.cgroups = dict(tenants), dict(cgroups)
        self.tenant_writes += 1

    def tenant_use(self) -> dict[int, Use]:
        return dict(self.use)

    def delays(self) -> dict[Role, Delay]:
        return {Role.LAUNCHER: self.delay}

    def next_epoch(self) -> None:
        self.epochs += 1


def process(root: Path, pid: int, *, start_ticks: int = 1, memory: str = "0-1", cgroup: str = "/") -> None:
    """Make a process below ``root``/proc."""
    directory = root / f"proc/{pid}"
    (directory / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
    after_name = ["S", *["0"] * 18, str(start_ticks), *["0"] * 30]
    (directory / "stat").write_text(f"{pid} (py) th)on) {' '.join(after_name)}\n")
    (directory / "comm").write_text("py) th)on\n")
    (directory / "status").write_text(f"Name:\tpy\nMems_allowed:\t3\nMems_allowed_list:\t{memory}\n")
    (directory / "cgroup").write_text(f"0::{cgroup}\n")
