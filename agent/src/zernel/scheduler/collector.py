# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler's metrics: built anew for each scrape from the counters in the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from zernel import __version__
from zernel.scheduler.status import Running, Snapshot, Status, added

# Counters of sched.bpf.c that each place a task once; their sum is the number of decisions.
_PLACEMENTS = {
    "idle_hits": "idle_cpu",
    "queued_node": "node_queue",
    "queued_cpu": "cpu_queue",
    "queued_local": "next",
}


# Other counters: metric (_total is appended), what it means.
_COUNTERS = {
    "idle_remote": ("zernel_scheduler_idle_remote", "Tasks that took an idle CPU of another NUMA node."),
    "dispatched": ("zernel_scheduler_dispatches", "Tasks that a CPU took from a queue."),
    "stolen": ("zernel_scheduler_steals", "Tasks that a CPU took from another NUMA node's queue."),
    "rescues": (
        "zernel_scheduler_starvation_rescues",
        "Tasks served first since their queue was not for longer than the starvation bound.",
    ),
    "preempted": ("zernel_scheduler_preemptions", "CPUs taken from a running thread for one that woke."),
    "preempt_denied": (
        "zernel_scheduler_preemptions_denied",
        "CPUs not taken, because that happened too often before.",
    ),
    "kept": ("zernel_scheduler_slices_renewed", "Tasks that went on because none was due before them."),
}


class Collector:
    """Gives the metrics of ``status``; a value that is not known now is left out."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Any]:
        """Yield the metric families (prometheus_client's custom collector)."""
        now = self._status.snapshot()
        counters = now.running.counters() if now.running is not None else {}
        yield from _state(now)
        if now.running is not None and now.running.enabled():
            yield from _present(now.running, counters)
        sums = added(now.base, counters)
        if sums:
            yield from _totals(sums)


def _state(now: Snapshot) -> Iterator[Any]:
    yield InfoMetricFamily("zernel_scheduler_build", "Version of zernel-scheduler.", {"version": __version__})
    yield GaugeMetricFamily(
        "zernel_scheduler_enabled",
        "1 while this scheduler runs the host's tasks, else 0.",
        int(now.running is not None and now.running.enabled()),
    )
    yield GaugeMetricFamily(
        "zernel_scheduler_config_reload_success",
        "1 when the settings file, as it was last read, is in use; 0 when it was refused.",
        int(now.settings_in_use),
    )
    yield CounterMetricFamily("zernel_scheduler_loads", "Times the scheduler was loaded.", now.loads)
    ends = CounterMetricFamily(
        "zernel_scheduler_exits", "Times the kernel ended the scheduler, by cause.", labels=["cause"]
    )
    for cause, number in sorted(now.ends.items()):
        ends.add_metric([cause], number)
    yield ends


def _present(running: Running, counters: dict[str, int]) -> Iterator[Any]:
    """Yield what means something only while the scheduler runs."""
    yield GaugeMetricFamily(
        "zernel_scheduler_load_seconds",
        "Time it took to load the BPF programs and to attach them.",
        running.load_seconds + running.attach_seconds,
    )
    tasks = GaugeMetricFamily(
        "zernel_scheduler_tasks", "Tasks that this scheduler runs now, asleep or not.", labels=["type"]
    )
    tasks.add_metric(["total"], counters["tasks"])
    yield tasks


def _totals(sums: dict[str, int]) -> Iterator[Any]:
    """Yield what only grows, from the first load on."""
    yield CounterMetricFamily(
        "zernel_scheduler_decisions",
        "Decisions where a task that became ready goes.",
        sum(sums[name] for name in _PLACEMENTS),
    )
    placements = CounterMetricFamily(
        "zernel_scheduler_placements", "The decisions, by where the task was put.", labels=["place"]
    )
    for name, label in _PLACEMENTS.items():
        placements.add_metric([label], sums[name])
    yield placements
    for name, (metric, help_text) in _COUNTERS.items():
        yield CounterMetricFamily(metric, help_text, sums[name])
