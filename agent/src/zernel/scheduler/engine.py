# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon does while the scheduler runs: classifies processes, sets tenants, works out figures.

Everything here happens in the daemon's one loop, but for NVML, whose driver may hang: it has a thread of its
own. What others see are figures that never change once they are made, and what they ask for by name.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from zernel.scheduler import classifier, gpu, maps, processes, topology
from zernel.scheduler.classifier import Classifier, Totals, Verdict
from zernel.scheduler.config import Config
from zernel.scheduler.policy import Phase, Role
from zernel.scheduler.tenants import Numbers, Part, Share, Shares, Tenants, cgroup_of

PCT_WINDOW_S = 60.0
"""The part of time that processes spent in each phase is of this last while."""

TOP_PROCESSES = 32
"""Processes that the status shows."""

MAX_THREADS = 64
"""Threads of a process that an explanation shows."""

log = logging.getLogger("zernel.scheduler")


class Maps(classifier.Maps, Protocol):
    """What is asked of :class:`zernel.scheduler.maps.SchedulerMaps`."""

    def set_tenants(self, tenants: Mapping[int, maps.Tenant], cgroups: Mapping[int, int]) -> None:
        """Say which tenants there are, and the cgroups of each."""

    def tenant_use(self, tenants: Iterable[int]) -> Mapping[int, maps.Use]:
        """Return what these tenants got since the scheduler was loaded; waits of the last epochs."""

    def delays(self) -> Mapping[Role, maps.Delay]:
        """Return how long threads of each role waited from waking up to running."""

    def task(self, thread: int) -> maps.Task | None:
        """Return what is remembered of a thread."""


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """One tenant: its part, and of the last while its share and the longest wait of a task of it.

    ``use`` are its sums since the scheduler was loaded, None until its tasks ran or waited.
    """

    part: Part
    share: Share
    use: maps.Use | None
    longest_wait_seconds: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """What was worked out last. All but ``gpus`` and ``totals`` is empty while no scheduler runs.

    ``phase_pct`` is the part of the time of processes of machine learning, in the last while, that they
    spent in each phase, in percent; empty without such processes. ``absent`` says of each signal why it is
    not measured, None where it is.
    """

    gpus: gpu.Reading
    totals: Totals
    tenants: tuple[TenantFigures, ...] = ()
    delays: Mapping[Role, maps.Delay] = field(default_factory=dict)
    phase_pct: Mapping[Phase, float] = field(default_factory=dict)
    absent: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """One process: what is known, and what follows. ``verdict`` is None for one that did nothing lately.

    ``threads`` are some of the ``thread_count`` threads that it has.
    """

    pid: int
    name: str | None
    cgroup: str | None
    tenant: Part | None
    gpus: tuple[int, ...]
    cpus_allowed: str | None
    cpus_preferred: tuple[int, ...]
    verdict: Verdict | None
    threads: Mapping[int, maps.Task]
    thread_count: int


class Engine:
    """The work beside the scheduler. One thread calls what changes anything; any may ask."""

    def __init__(self, config: Config, nvml: gpu.Nvml | None = None, root: Path = Path("/")) -> None:
        self._root = root
        self._maps: Maps | None = None
        # Held while the maps are used: other threads ask for explanations, and the maps may go.
        self._lock = threading.Lock()
        self._shares = Shares()
        self._numbers = Numbers()
        self._parts: list[Part] = []
        self._told: tuple[object, ...] = ()
        self._waits: dict[int, float] = {}
        self._past: deque[tuple[float, dict[Phase, float]]] = deque()
        self._config = config
        self._reading: gpu.Reading | None = None
        self._topology = topology.read(root)
        self._classifier = Classifier(classifier.Settings.of(config), self._topology, root)
        self._watch = gpu.Watch(nvml or gpu.Nvml(root=root), config.general.gpu_poll_interval_ms / 1000)
        self._figures = self._idle()
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take over settings; they count from the next tick on."""
        self._config = config
        self._watch.interval_s = config.general.gpu_poll_interval_ms / 1000
        self._tenants = Tenants(
            config.multi_tenant, config.priority_class, config.tenant, self._numbers, self._root
        )
        self._classifier.configure(classifier.Settings.of(config), self._topology)
        self._due = {"evaluate": 0.0, "tenants": 0.0, "figures": 0.0}

    def loaded(self, of: Maps) -> None:
        """Note that a scheduler runs, which knows nothing yet, on the CPUs that there are now."""
        with self._lock:
            self._maps = of
        self._topology = topology.read(self._root)
        self._shares = Shares()
        self._numbers = Numbers()
        self._told = ()
        self._waits = {}
        self._classifier.loaded()
        self.configure(self._config)
        # Not before: loading pynvml must not hold up the scheduler.
        self._watch.start()

    def unloading(self) -> None:
        """Note that the scheduler goes: its maps must not be asked any more."""
        with self._lock:
            self._maps = None
        self._figures = self._idle()

    def tick(self, now: float) -> bool:
        """Do what is due at ``now`` (seconds, CLOCK_MONOTONIC); return whether processes were classified.

        :raises ZernelError: where a map cannot be read or written; what is due next is done nevertheless.
        """
        if self._maps is None:
            self._figures = self._idle()
            return False
        general, telemetry = self._config.general, self._config.telemetry
        with self._lock:
            # First the tenants: what processes did is accounted to them.
            if self._is_due("tenants", now, general.gpu_poll_interval_ms):
                self._set_tenants(self._maps)
            classifies = self._is_due("evaluate", now, general.phase_eval_interval_ms)
            if classifies:
                self._evaluate(self._maps, now)
            if self._is_due("figures", now, telemetry.push_interval_ms):
                self._measure(self._maps, now)
        return classifies

    def pause(self, now: float) -> float:
        """Return for how long nothing is due, in seconds."""
        return max(0.0, min(self._due.values()) - now) if self._maps is not None else 1.0

    def figures(self) -> Figures:
        """Return what was worked out last."""
        return self._figures

    def top(self, now: float) -> list[tuple[str, Verdict]]:
        """Return names and verdicts of the processes that count most and are still there."""
        verdicts = self._classifier.verdicts(int(now * 1e9), TOP_PROCESSES)
        named = [(processes.name(one.pid, self._root), one) for one in verdicts if not self._replaced(one)]
        return [(name, one) for name, one in named if name is not None]

    def tenant_name(self, index: int) -> str:
        """Return a tenant's name."""
        return self._tenants.name_of(index)

    def explain(self, pid: int, now: float) -> Explanation | None:
        """Return all that is known of a process; None if there is none of that number."""
        name = processes.name(pid, self._root)
        if name is None:
            return None
        cgroup = cgroup_of(pid, self._root)
        index = self._tenants.index_of(cgroup) if cgroup is not None else 0
        verdict = self._classifier.verdict(pid, int(now * 1e9))
        if verdict is not None and self._replaced(verdict):
            verdict = None
        node = self._topology.index_of(verdict.node) if verdict is not None else None
        tids = processes.threads(pid, self._root)
        threads: dict[int, maps.Task] = {}
        with self._lock:
            for thread in tids[:MAX_THREADS]:
                task = self._maps.task(thread) if self._maps is not None else None
                if task is not None:
                    threads[thread] = task
        return Explanation(
            pid=pid,
            name=name,
            cgroup=cgroup,
            tenant=next((part for part in self._parts if part.index == index), None),
            gpus=tuple(sorted(self._watch.reading().holders.get(pid, ()))),
            cpus_allowed=processes.cpus_allowed(pid, self._root),
            cpus_preferred=() if node is None else tuple(self._topology.cpus_of(node)),
            verdict=verdict,
            threads=threads,
            thread_count=len(tids),
        )

    def close(self) -> None:
        """Stop the thread."""
        self._watch.close()

    def _replaced(self, verdict: Verdict) -> bool:
        """Tell whether another process has the pid now: what ended is remembered for a while."""
        return processes.start_ticks(verdict.pid, self._root) not in (None, verdict.start_ticks)

    def _is_due(self, what: str, now: float, interval_ms: int) -> bool:
        if now < self._due[what]:
            return False
        self._due[what] = now + interval_ms / 1000
        return True

    def _evaluate(self, of: Maps, now: float) -> None:
        reading = self._watch.reading()
        if reading is not self._reading:
            self._reading = reading
            self._classifier.see_gpus(reading)
        self._classifier.evaluate(of, int(now * 1e9))
        # A drain began a new epoch, and only the waits of the last two are remembered.
        for index, use in of.tenant_use([part.index for part in self._parts]).items():
            self._waits[index] = max(use.longest_wait_seconds, self._waits.get(index, 0.0))

    def _set_tenants(self, of: Maps) -> None:
        before = {part.name: part.absent for part in self._parts}
        reading = self._watch.reading()
        self._parts = self._tenants.parts(reading.holders if reading.unavailable is None else None)
        for part in self._parts:
            if part.absent and part.absent != before.get(part.name):
                log.warning("tenant '%s' has no tasks yet: %s", part.name, part.absent)
        told = tuple((part.index, part.weight, part.priority, part.cgroup_id) for part in self._parts)
        if told != self._told:
            tenants = {part.index: maps.Tenant(part.weight, part.priority) for part in self._parts}
            cgroups = {part.cgroup_id: part.index for part in self._parts if part.cgroup_id is not None}
            of.set_tenants(tenants, cgroups)
            self._told = told

    def _measure(self, of: Maps, now: float) -> None:
        weights = {part.index: part.weight for part in self._parts}
        use = of.tenant_use(weights)
        used = {index: (one.run_seconds, one.wait_seconds) for index, one in use.items()}
        shares = self._shares.since_last(used, weights)
        waits, self._waits = self._waits, {}
        totals = self._classifier.totals()
        self._figures = Figures(
            gpus=self._watch.reading(),
            totals=totals,
            tenants=tuple(
                TenantFigures(part, shares[part.index], use.get(part.index), waits.get(part.index))
                for part in self._parts
            ),
            delays=dict(of.delays()),
            phase_pct=self._percentages(totals, now),
            absent=self._classifier.absent(),
        )

    def _percentages(self, totals: Totals, now: float) -> dict[Phase, float]:
        self._past.append((now, totals.seconds))
        while now - self._past[0][0] > PCT_WINDOW_S:
            self._past.popleft()
        before = self._past[0][1]
        spent = {phase: seconds - before[phase] for phase, seconds in totals.seconds.items()}
        total = sum(spent.values())
        return {phase: 100 * seconds / total for phase, seconds in spent.items()} if total > 0 else {}

    def _idle(self) -> Figures:
        """Return the figures while no scheduler runs."""
        return Figures(self._watch.reading(), self._classifier.totals())
