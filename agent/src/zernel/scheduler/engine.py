# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon does while the scheduler runs: watches GPUs, sets tenants, works out figures.

Everything here happens in the daemon's one loop, but for NVML, whose driver may hang: it has a thread of its
own. What others see are figures that never change once they are made.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from zernel.scheduler import gpu, maps
from zernel.scheduler.config import Config
from zernel.scheduler.policy import Role
from zernel.scheduler.tenants import Part, Share, Shares, Tenants

log = logging.getLogger("zernel.scheduler")


class Maps(Protocol):
    """What is asked of :class:`zernel.scheduler.maps.SchedulerMaps` here."""

    def set_tenants(self, tenants: Mapping[int, maps.Tenant], cgroups: Mapping[int, int]) -> None:
        """Say which tenants there are, and the cgroups of each."""

    def tenant_use(self) -> Mapping[int, maps.Use]:
        """Return what each tenant got since the scheduler was loaded."""

    def delays(self) -> Mapping[Role, maps.Delay]:
        """Return how long threads of each role waited from waking up to running."""

    def next_epoch(self) -> None:
        """Forget the longest waits of the epoch before the present one."""


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """One tenant: its part, the share of the last while, and its sums since the scheduler was loaded.

    ``use`` is None until its tasks ran or waited.
    """

    part: Part
    share: Share
    use: maps.Use | None


@dataclass(frozen=True, slots=True)
class Figures:
    """What was worked out last. All but ``gpus`` is empty while no scheduler runs."""

    gpus: gpu.Reading
    tenants: tuple[TenantFigures, ...] = ()
    delays: Mapping[Role, maps.Delay] = field(default_factory=dict)


class Engine:
    """The work beside the scheduler. One thread calls all methods but ``figures``."""

    def __init__(self, config: Config, nvml: gpu.Nvml | None = None, root: Path = Path("/")) -> None:
        self._root = root
        self._maps: Maps | None = None
        self._shares = Shares()
        self._parts: list[Part] = []
        self._told: tuple[object, ...] = ()
        self._tenants_at = self._figures_at = 0.0
        self._watch = gpu.Watch(nvml or gpu.Nvml(root=root), config.general.gpu_poll_interval_ms / 1000)
        self._figures = Figures(self._watch.reading())
        self.configure(config)
        self._watch.start()

    def configure(self, config: Config) -> None:
        """Take over settings; they count from the next tick on."""
        self._config = config
        self._watch.interval_s = config.general.gpu_poll_interval_ms / 1000
        self._tenants = Tenants(config.multi_tenant, config.priority_class, config.tenant, self._root)
        self._tenants_at = self._figures_at = 0.0

    def loaded(self, of: Maps) -> None:
        """Note that a scheduler runs, which knows nothing yet."""
        self._maps = of
        self._shares = Shares()
        self._told = ()
        self._tenants_at = self._figures_at = 0.0

    def unloading(self) -> None:
        """Note that the scheduler goes: its maps must not be asked any more."""
        self._maps = None
        self._figures = Figures(self._watch.reading())

    def tick(self, now: float) -> None:
        """Do what is due at ``now`` (seconds, CLOCK_MONOTONIC)."""
        if self._maps is None:
            self._figures = Figures(self._watch.reading())
            return
        if now >= self._tenants_at:
            self._tenants_at = now + self._config.general.gpu_poll_interval_ms / 1000
            self._set_tenants(self._maps)
        if now >= self._figures_at:
            self._figures_at = now + self._config.telemetry.push_interval_ms / 1000
            self._measure(self._maps)

    def pause(self, now: float) -> float:
        """Return for how long nothing is due, in seconds."""
        return max(0.0, min(self._tenants_at, self._figures_at) - now) if self._maps is not None else 1.0

    def figures(self) -> Figures:
        """Return what was worked out last; from any thread."""
        return self._figures

    def close(self) -> None:
        """Stop the thread."""
        self._watch.close()

    def _set_tenants(self, of: Maps) -> None:
        before = {part.name: part.absent for part in self._parts}
        self._parts = self._tenants.parts(self._watch.reading().holders)
        for part in self._parts:
            if part.absent and part.absent != before.get(part.name):
                log.warning("tenant '%s' has no tasks yet: %s", part.name, part.absent)
        told = tuple((part.index, part.weight, part.priority, part.cgroup_id) for part in self._parts)
        if told != self._told:
            tenants = {part.index: maps.Tenant(part.weight, part.priority) for part in self._parts}
            cgroups = {part.cgroup_id: part.index for part in self._parts if part.cgroup_id is not None}
            of.set_tenants(tenants, cgroups)
            self._told = told

    def _measure(self, of: Maps) -> None:
        use = of.tenant_use()
        of.next_epoch()
        used = {index: (one.run_seconds, one.wait_seconds) for index, one in use.items()}
        weights = {part.index: part.weight for part in self._parts}
        shares = self._shares.since_last(used, weights)
        tenants = tuple(TenantFigures(part, shares[part.index], use.get(part.index)) for part in self._parts)
        self._figures = Figures(self._watch.reading(), tenants, dict(of.delays()))
