# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler's metrics: built anew for each scrape from the counters in the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from zernel import __version__
from zernel.scheduler import kernel
from zernel.scheduler.classifier import Totals
from zernel.scheduler.engine import Figures, TenantFigures
from zernel.scheduler.maps import Delay
from zernel.scheduler.policy import Role
from zernel.scheduler.status import Running, Snapshot, Status, added

# Counters of sched.bpf.c that each place a task once; their sum is the number of decisions.
_PLACEMENTS = {
    "idle_hits": "idle_cpu",
    "queued_node": "node_queue",
    "queued_cpu": "cpu_queue",
    "queued_local": "next",
}


# Other counters: metric (_total is appended), what it means. An object that does not count one has none.
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
    "latency_runs": ("zernel_scheduler_latency_runs", "Tasks that a CPU took from the latency queue."),
    "latency_over": (
        "zernel_scheduler_latency_over_budget",
        "Of these, tasks beyond the queue's budget, since nobody else waited.",
    ),
    "low_runs": ("zernel_scheduler_low_runs", "Tasks that a CPU took from the queue of those that yield."),
    "stale_hints": ("zernel_scheduler_stale_hints", "Hints on processes that were found to be too old."),
    "activity_lost": (
        "zernel_scheduler_activity_lost",
        "Times that what a process did could not be noted, since the table was full.",
    ),
    "role_changes": ("zernel_scheduler_role_changes", "Times that a thread's role became another."),
    "kept": ("zernel_scheduler_slices_renewed", "Tasks that went on because none was due before them."),
}


class Collector:
    """Gives the metrics of ``status``; a value that is not known now is left out."""

    def __init__(self, status: Status, figures: Callable[[], Figures], root: Path = Path("/")) -> None:
        """Remember where to ask.

        :param figures: gives what was worked out last.
        :param root: where sys/ is, for what the kernel counts itself.
        """
        self._status = status
        self._figures = figures
        self._root = root

    def collect(self) -> Iterator[Any]:
        """Yield the metric families (prometheus_client's custom collector)."""
        now = self._status.snapshot()
        counters = now.running.counters() if now.running is not None else {}
        yield from _state(now)
        if now.running is not None and now.running.enabled():
            figures = self._figures()
            yield from _present(now.running, counters, figures)
            yield from _tenants(figures.tenants)
            yield from _delays(figures.delays)
            yield from _kernel_events(kernel.events(self._root))
        sums = added(now.base, counters)
        if sums:
            yield from _totals(sums)
        yield from _phase_totals(self._figures().totals)


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
    yield GaugeMetricFamily(
        "zernel_scheduler_gave_up",
        "1 when the kernel ejected the scheduler so often that the host stays on the kernel's own.",
        int(now.gave_up),
    )
    yield CounterMetricFamily(
        "zernel_scheduler_ejections", "Times the kernel ended the scheduler for an error.", now.ejections
    )
    yield CounterMetricFamily("zernel_scheduler_loads", "Times the scheduler was loaded.", now.loads)
    ends = CounterMetricFamily(
        "zernel_scheduler_exits", "Times the kernel ended the scheduler, by cause.", labels=["cause"]
    )
    for cause, number in sorted(now.ends.items()):
        ends.add_metric([cause], number)
    yield ends


def _present(running: Running, counters: dict[str, int], figures: Figures) -> Iterator[Any]:
    """Yield what means something only while the scheduler runs."""
    yield GaugeMetricFamily(
        "zernel_scheduler_load_seconds",
        "Time it took to load the BPF programs and to attach them.",
        running.load_seconds + running.attach_seconds,
    )
    tasks = GaugeMetricFamily(
        "zernel_scheduler_tasks",
        "total: tasks that this scheduler runs now, asleep or not. ml: processes that use a GPU or are in a "
        "phase of machine learning, and did something lately.",
        labels=["type"],
    )
    tasks.add_metric(["total"], counters["tasks"])
    tasks.add_metric(["ml"], figures.totals.ml)
    yield tasks
    in_phase = GaugeMetricFamily(
        "zernel_scheduler_phase_tasks", "Processes of machine learning in each phase.", labels=["phase"]
    )
    for phase, number in figures.totals.in_phase.items():
        in_phase.add_metric([phase], number)
    yield in_phase
    percent = GaugeMetricFamily(
        "zernel_scheduler_phase_time_pct",
        "The part of the time of processes of machine learning that they spent in each phase in the last "
        "minute, in percent.",
        labels=["phase"],
    )
    for phase, part in figures.phase_pct.items():
        percent.add_metric([phase], round(part, 2))
    yield percent
    signals = GaugeMetricFamily(
        "zernel_scheduler_signal_up", "1 when a signal of phases is measured, else 0.", labels=["signal"]
    )
    for signal, why_not in figures.absent.items():
        signals.add_metric([signal], int(why_not is None))
    yield signals


def _phase_totals(totals: Totals) -> Iterator[Any]:
    """Yield what was counted of phases since the daemon started."""
    yield CounterMetricFamily(
        "zernel_scheduler_phase_transitions",
        "Times that a process changed its phase.",
        sum(totals.changes.values()),
    )
    changes = CounterMetricFamily(
        "zernel_scheduler_phase_changes", "The same, by the phases.", labels=["from", "to"]
    )
    for (before, after), number in sorted(totals.changes.items()):
        changes.add_metric([before, after], number)
    yield changes
    seconds = CounterMetricFamily(
        "zernel_scheduler_phase_seconds",
        "Time that processes of machine learning spent in each phase.",
        labels=["phase"],
    )
    for phase, spent in totals.seconds.items():
        seconds.add_metric([phase], spent)
    yield seconds
    yield CounterMetricFamily(
        "zernel_scheduler_untracked",
        "Times that a process was not classified, since max_tracked_tasks others were tracked.",
        totals.untracked,
    )


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
        if name in sums:
            yield CounterMetricFamily(metric, help_text, sums[name])


# Gauges of each tenant: metric, what it means, the figure (None: left out).
_TENANT_GAUGES: tuple[tuple[str, str, Callable[[TenantFigures], float | None]], ...] = (
    ("zernel_scheduler_tenant_weight", "A tenant's weight.", lambda one: one.part.weight),
    (
        "zernel_scheduler_tenant_gpus",
        "GPUs that a tenant's processes hold; one that several tenants hold is split.",
        lambda one: one.part.gpus,
    ),
    (
        "zernel_scheduler_tenant_share_wanted_ratio",
        "A tenant's weight, as a part of those of the tenants that ran or waited in the last while.",
        lambda one: one.share.wanted,
    ),
    (
        "zernel_scheduler_tenant_share_received_ratio",
        "The part of the CPU time that all tasks got in the last while that a tenant's got.",
        lambda one: one.share.received,
    ),
    (
        "zernel_scheduler_longest_wait_seconds",
        "The longest that a task of a tenant that could run has waited in the last while.",
        lambda one: one.longest_wait_seconds,
    ),
)


def _tenants(tenants: tuple[TenantFigures, ...]) -> Iterator[Any]:
    for metric, help_text, figure in _TENANT_GAUGES:
        family = GaugeMetricFamily(metric, help_text, labels=["tenant"])
        for one in tenants:
            value = figure(one)
            if value is not None:
                family.add_metric([one.part.name], value)
        yield family


# Buckets of the BPF side that are shown: each ends at so many microseconds, a power of two. What is above the
# last, a second, is in +Inf.
_BUCKETS = range(4, 21)


def _delays(delays: Mapping[Role, Delay]) -> Iterator[Any]:
    if not delays:
        return
    family = HistogramMetricFamily(
        "zernel_scheduler_wakeup_delay_seconds",
        "From waking up to running, by the thread's role, since the scheduler was loaded.",
        labels=["role"],
    )
    for role, delay in delays.items():
        shown = [(f"{2**n / 1e6:g}", sum(delay.buckets[: n + 1])) for n in _BUCKETS]
        family.add_metric([role], [*shown, ("+Inf", sum(delay.buckets))], delay.sum_seconds)
    yield family


def _kernel_events(events: dict[str, int]) -> Iterator[Any]:
    if events:
        family = CounterMetricFamily(
            "zernel_scheduler_kernel_events",
            "What sched_ext itself counts about the scheduler that is loaded (Linux 6.15 and later).",
            labels=["event"],
        )
        for name, number in sorted(events.items()):
            family.add_metric([name], number)
        yield family
