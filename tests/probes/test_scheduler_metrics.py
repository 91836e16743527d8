# SPDX-License-Identifier: GPL-3.0-or-later
"""Every counter of the BPF object is a metric, and every metric's counter is in the object: one that is not
would be left out silently."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prometheus_client.core import CollectorRegistry
from prometheus_client.exposition import generate_latest

from zernel.bpf import BpfObject, object_path
from zernel.scheduler.classifier import Totals
from zernel.scheduler.collector import Collector
from zernel.scheduler.engine import Figures
from zernel.scheduler.gpu import Reading
from zernel.scheduler.maps import Layout
from zernel.scheduler.policy import Phase
from zernel.scheduler.status import Status

METRICS = (
    "decisions",
    "dispatches",
    "steals",
    "starvation_rescues",
    "preemptions",
    "preemptions_denied",
    "latency_runs",
    "latency_over_budget",
    "low_runs",
    "role_changes",
    "activity_lost",
    "stale_hints",
    "slices_renewed",
    "idle_remote",
)


class Running:
    """A scheduler that has counted something else of everything."""

    load_seconds = attach_seconds = 0.0

    def __init__(self, counters: Mapping[str, int]) -> None:
        self._counters = dict(counters)

    def enabled(self) -> bool:
        return True

    def counters(self) -> dict[str, int]:
        return self._counters


def test_what_the_object_counts_and_what_is_shown_agree() -> None:
    with BpfObject.open(object_path("sched")) as obj:
        # Far from all sums of others: a number that is shown is that of one counter.
        counters = {name: 2**n for n, name in enumerate(Layout(obj.btf, "counters").places, start=20)}
    status = Status()
    status.loaded(Running(counters))
    none = dict.fromkeys(Phase, 0)
    figures = Figures(Reading(), Totals(0, 0, none, dict.fromkeys(Phase, 0.0), {}, 0))
    registry = CollectorRegistry()
    registry.register(Collector(status, lambda: figures, Path("/nonexistent")))
    text = generate_latest(registry).decode()
    for metric in METRICS:
        assert f"zernel_scheduler_{metric}_total " in text
    shown = {float(line.rpartition(" ")[2]) for line in text.splitlines() if not line.startswith("#")}
    assert [name for name, value in counters.items() if value not in shown] == []
