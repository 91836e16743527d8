# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``zernel scheduler`` asks the daemon for, as JSON: the pages /status and /explain of its port."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from zernel import __version__
from zernel.metrics import Page
from zernel.scheduler.classifier import Verdict
from zernel.scheduler.engine import Engine, Figures, TenantFigures
from zernel.scheduler.maps import Delay
from zernel.scheduler.status import Snapshot, Status

_NOT_SEEN = {
    "io_wait_fraction": "it has neither run nor slept since it was looked at before",
    "gpu_utilization": "NVML tells of no use of a GPU by it",
    "since_gpu_sync_s": "it has never waited for a GPU",
    "nccl_active": "it has never called NCCL",
}
"""Why a process has no such signal on a host that measures it."""


class Pages:
    """Answers from what the daemon knows, in any thread."""

    def __init__(self, status: Status, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._status = status
        self._engine = engine
        self._clock = clock

    def by_path(self) -> dict[str, Page]:
        """Return the pages by their paths."""
        return {"/status": self.status, "/explain": self.explain}

    def status(self, query: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """Return everything, with the processes that count most."""
        page = _status(self._status.snapshot(), self._engine.figures())
        top = self._engine.top(self._clock())
        page["processes"] = [self._verdict(one) | {"name": name} for name, one in top]
        return 200, page

    def explain(self, query: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """Return what is known of the process ``pid``, and why it is treated as it is."""
        text = query.get("pid", "")
        if not (text.isascii() and text.isdecimal() and len(text) <= 10):
            return 400, {"error": f"'{text[:20]}' is no process id"}
        found = self._engine.explain(int(text), self._clock())
        if found is None:
            return 404, {"error": f"There is no process {int(text)}"}
        part = found.tenant
        return 200, {
            "pid": found.pid,
            "name": found.name,
            "cgroup": found.cgroup,
            "tenant": part and {"name": part.name, "class": part.priority_class, "weight": part.weight},
            "gpus": list(found.gpus),
            "cpus_allowed": found.cpus_allowed,
            "cpus_preferred": list(found.cpus_preferred),
            "verdict": found.verdict and self._verdict(found.verdict),
            "evidence": [
                {
                    "phase": str(one.phase),
                    "signal": one.signal,
                    "condition": one.words,
                    "value": one.value,
                    "holds": one.holds,
                }
                for one in (found.verdict.evidence if found.verdict else ())
            ],
            "absent": self._absent(found.verdict),
            "threads": [
                {
                    "tid": tid,
                    "role": str(task.role),
                    "policy": task.policy,
                    "run_avg_ns": task.run_avg_ns,
                    "sleep_avg_ns": task.sleep_avg_ns,
                    "io_avg_ns": task.io_avg_ns,
                }
                for tid, task in found.threads.items()
            ],
            "thread_count": found.thread_count,
        }

    def _absent(self, verdict: Verdict | None) -> dict[str, str]:
        on_host = {name: why for name, why in self._engine.figures().absent.items() if why}
        if verdict is None:
            return on_host
        signals = dataclasses.asdict(verdict.signals)
        return {
            name: on_host.get(name) or _NOT_SEEN[name]
            for name in (*on_host, *_NOT_SEEN)
            if name in on_host or signals[name] is None
        }

    def _verdict(self, one: Verdict) -> dict[str, Any]:
        return {
            "pid": one.pid,
            "phase": str(one.phase),
            "next_phase": str(one.candidate) if one.streak else None,
            "seen_in_a_row": one.streak,
            "signals": dataclasses.asdict(one.signals),
            "roles": sorted(map(str, one.roles)),
            "tenant": self._engine.tenant_name(one.tenant),
            "node": one.node,
            "node_from": one.node_from,
            "last_cpu": one.last_cpu,
            "run_ns": one.run_ns,
            "idle_seconds": one.idle_s,
        }


def _status(now: Snapshot, figures: Figures) -> dict[str, Any]:
    running = now.running
    return {
        "version": __version__,
        "enabled": running is not None and running.enabled(),
        "off": now.off,
        "gave_up": now.gave_up,
        "loads": now.loads,
        "ejections": now.ejections,
        "settings_in_use": now.settings_in_use,
        "signals": {name: {"up": why is None, "absent": why} for name, why in figures.absent.items()},
        "phases": {
            str(phase): {"processes": number, "percent": figures.phase_pct.get(phase)}
            for phase, number in figures.totals.in_phase.items()
        },
        "gpus": {
            "unavailable": figures.gpus.unavailable,
            "list": [
                {"index": one.index, "uuid": one.uuid, "pci": one.pci, "node": one.node}
                for one in figures.gpus.gpus
            ],
        },
        "tenants": [_tenant(one) for one in figures.tenants],
        "roles": [
            {
                "role": str(role),
                "wakeups": sum(delay.buckets),
                "delay_p50": _delay(quantile(delay, 0.5)),
                "delay_p99": _delay(quantile(delay, 0.99)),
            }
            for role, delay in figures.delays.items()
        ],
    }


def quantile(delay: Delay, part: float) -> tuple[float, float | None] | None:
    """Return between which times, in seconds, a delay is that ``part`` (0 to 1) of all do not exceed.

    The last bucket has no upper end: None. Without any delay there is no such time at all.
    """
    total, seen = sum(delay.buckets), 0
    for number, count in enumerate(delay.buckets):
        seen += count
        if total and seen >= part * total:
            lower = 2 ** (number - 1) / 1e6 if number else 0.0
            return lower, 2**number / 1e6 if number < len(delay.buckets) - 1 else None
    return None


def _delay(ends: tuple[float, float | None] | None) -> dict[str, float | None] | None:
    return ends and {"above_seconds": ends[0], "below_seconds": ends[1]}


def _tenant(one: TenantFigures) -> dict[str, Any]:
    part, use = one.part, one.use
    return {
        "name": part.name,
        "cgroup": part.cgroup,
        "absent": part.absent,
        "class": part.priority_class,
        "priority": part.priority,
        "gpus": part.gpus,
        "weight": part.weight,
        "share_wanted": one.share.wanted,
        "share_received": one.share.received,
        "run_seconds": use.run_seconds if use else None,
        "wait_seconds": use.wait_seconds if use else None,
        "longest_wait_seconds": one.longest_wait_seconds,
    }
