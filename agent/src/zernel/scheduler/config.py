# SPDX-License-Identifier: GPL-3.0-or-later
"""What /etc/zernel/scheduler.toml may say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zernel.config import Conflict, dump, table, tables
from zernel.scheduler.ejection import pause
from zernel.scheduler.tables import (
    MAX_TENANTS,
    General,
    MultiTenant,
    Numa,
    PhaseDetection,
    Policies,
    PriorityClass,
    Safety,
    Scheduler,
    Telemetry,
    Tenant,
)

DEFAULT_PATH = Path("/etc/zernel/scheduler.toml")
HEADING = """Settings of zernel-scheduler, Zernel's CPU scheduler (sched_ext).

Every setting is shown with its default. Apply a change with 'systemctl reload zernel-scheduler';
check it first with 'zernel-scheduler --check-config'."""


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file."""

    general: General = table(General)
    scheduler: Scheduler = table(Scheduler)
    phase_detection: PhaseDetection = table(PhaseDetection)
    policy: Policies = table(
        Policies,
        "What a thread gets. One that shows what it does has the row for that: nccl_collective, launcher, "
        "optimizer_step, data_loading or interactive. All others have the row of their process's phase.",
    )
    numa: Numa = table(Numa)
    multi_tenant: MultiTenant = table(MultiTenant)
    priority_class: PriorityClass = table(
        PriorityClass,
        "What the priority classes of tenants are worth: each step multiplies a tenant's weight by 1.25, and "
        "puts it earlier in the order by priority_step_us.",
    )
    tenant: dict[str, Tenant] = tables(
        Tenant, f"The tenants, by any name but 'default'; at most {MAX_TENANTS}.", limit=MAX_TENANTS
    )
    safety: Safety = table(Safety)
    telemetry: Telemetry = table(Telemetry)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what contradicts itself, though each value is acceptable."""
        bound, watchdog = self.safety.starvation_bound_ms, self.scheduler.watchdog_timeout_ms
        if bound >= watchdog:
            yield Conflict(
                ("safety", "starvation_bound_ms"),
                f"'safety.starvation_bound_ms' is {bound}: the kernel ends the scheduler after {watchdog}",
                "Write less than scheduler.watchdog_timeout_ms",
                ("scheduler", "watchdog_timeout_ms"),
            )
        slice_ms = self.scheduler.slice_us / 1000
        if bound < slice_ms:
            yield Conflict(
                ("safety", "starvation_bound_ms"),
                f"'safety.starvation_bound_ms' is {bound}, and a task may run for {slice_ms:g} at a time",
                "Write more than scheduler.slice_us, which is in microseconds",
                ("scheduler", "slice_us"),
            )
        yield from self._safety_conflicts()
        lifetime, interval = self.safety.hint_lifetime_ms, self.general.phase_eval_interval_ms
        if lifetime < 2 * interval:
            yield Conflict(
                ("safety", "hint_lifetime_ms"),
                f"'safety.hint_lifetime_ms' is {lifetime}, and processes are classified every {interval}",
                "Write at least twice general.phase_eval_interval_ms",
                ("general", "phase_eval_interval_ms"),
            )
        idle, active = self.phase_detection.gpu_idle_threshold, self.phase_detection.gpu_active_threshold
        if idle > active:
            yield Conflict(
                ("phase_detection", "gpu_idle_threshold"),
                f"'phase_detection.gpu_idle_threshold' is {idle}: a GPU is active from {active} on",
                "Write no more than gpu_active_threshold",
                ("phase_detection", "gpu_active_threshold"),
            )
        yield from self._tenant_conflicts()

    def _safety_conflicts(self) -> Iterator[Conflict]:
        pauses = sum(pause(self.safety, number) for number in range(1, self.safety.max_ejections))
        if pauses >= self.safety.ejection_window_s:
            yield Conflict(
                ("safety", "backoff_s"),
                f"'safety.backoff_s' is {self.safety.backoff_s}: {self.safety.max_ejections} ejections take "
                f"{pauses:g} seconds, and are never within {self.safety.ejection_window_s}",
                "Write less, or a longer ejection_window_s",
                ("safety", "ejection_window_s"),
            )

    def _tenant_conflicts(self) -> Iterator[Conflict]:
        seen: dict[str, str] = {}
        for name, tenant in self.tenant.items():
            if name == "default":
                yield Conflict(
                    ("tenant", name),
                    "'default' is the tenant of all tasks that belong to no other",
                    "Choose another name",
                )
            if tenant.cgroup.startswith("/sys/fs/cgroup/"):
                yield Conflict(
                    ("tenant", name, "cgroup"),
                    f"The cgroup of tenant '{name}' is the path below /sys/fs/cgroup",
                    f'Write cgroup = "{tenant.cgroup.removeprefix("/sys/fs/cgroup")}"',
                )
            if tenant.cgroup in seen:
                yield Conflict(
                    ("tenant", name, "cgroup"),
                    f"The tenants '{seen[tenant.cgroup]}' and '{name}' have one cgroup, {tenant.cgroup}",
                    "Give each its own",
                    ("tenant", seen[tenant.cgroup], "cgroup"),
                )
            seen.setdefault(tenant.cgroup, name)


def default_file() -> str:
    """Return the file that the package installs."""
    return dump(Config(), HEADING)
