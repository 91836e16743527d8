# SPDX-License-Identifier: GPL-3.0-or-later
"""Every counter that a metric is made of is in the BPF object: one that is not would be left out silently."""

from __future__ import annotations

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
    "slices_renewed",
    "idle_remote",
)


class Running:
    """A scheduler that has counted one of everything."""

    load_seconds = attach_seconds = 0.0

    def __init__(self, counters: set[str]) -> None:
        self._counters = counters

    def enabled(self) -> bool:
        return True

    def counters(self) -> dict[str, int]:
        return dict.fromkeys(self._counters, 1)


def test_the_object_counts_what_the_metrics_are_made_of() -> None:
    with BpfObject.open(object_path("sched")) as obj:
        counters = set(Layout(obj.btf, "counters").places)
    status = Status()
    status.loaded(Running(counters))
    none = dict.fromkeys(Phase, 0)
    figures = Figures(Reading(), Totals(0, 0, none, dict.fromkeys(Phase, 0.0), {}, 0))
    registry = CollectorRegistry()
    registry.register(Collector(status, lambda: figures, Path("/nonexistent")))
    text = generate_latest(registry).decode()
    for metric in METRICS:
        assert f"zernel_scheduler_{metric}_total " in text
