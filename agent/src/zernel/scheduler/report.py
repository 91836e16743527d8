# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``zernel scheduler`` asks the daemon for, as JSON: the pages /status and /explain of its port."""

from __future__ import annotations

from typing import Any

from zernel import __version__
from zernel.scheduler.engine import Figures, TenantFigures
from zernel.scheduler.maps import Delay
from zernel.scheduler.status import Snapshot


def status_page(now: Snapshot, figures: Figures) -> tuple[int, dict[str, Any]]:
    """Return the daemon's view of everything."""
    running = now.running
    return 200, {
        "version": __version__,
        "enabled": running is not None and running.enabled(),
        "off": now.off,
        "gave_up": now.gave_up,
        "loads": now.loads,
        "ejections": now.ejections,
        "settings_in_use": now.settings_in_use,
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
                "delay_p50_seconds": quantile(delay, 0.5),
                "delay_p99_seconds": quantile(delay, 0.99),
            }
            for role, delay in figures.delays.items()
        ],
    }


def quantile(delay: Delay, part: float) -> float | None:
    """Return what ``part`` (0 to 1) of the delays are below, to a power of two; None where there were none.

    What is in the last bucket has no upper end: then that bucket's lower one.
    """
    total, seen = sum(delay.buckets), 0
    for number, count in enumerate(delay.buckets):
        seen += count
        if total and seen >= part * total:
            return float(2 ** min(number, len(delay.buckets) - 2) / 1e6)
    return None


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
        "longest_wait_seconds": use.longest_wait_seconds if use else None,
    }
