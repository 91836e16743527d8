# SPDX-License-Identifier: GPL-3.0-or-later
"""What zerneld shows Prometheus: built anew for each scrape, so that dead processes vanish.

Where a probe is not attached its figures are absent, not zero; ``zernel_probe_attached`` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from zernel import __version__
from zernel.observe import gpu_activity, gpu_mem


class Own(Protocol):
    """What each probe says about itself."""

    @property
    def drops(self) -> Mapping[str, int]:
        """Reason: how often something was not counted."""

    @property
    def runs(self) -> int:
        """Runs of its BPF programs."""

    @property
    def run_seconds(self) -> float:
        """CPU time spent in them."""


class Probe(Protocol):
    """What each probe can be asked."""

    @property
    def libraries(self) -> list[str]:
        """The libraries that it is attached to."""

    @property
    def refused(self) -> int:
        """The number of libraries that it cannot be attached to."""

    @property
    def unavailable(self) -> str | None:
        """Why it does nothing; None when it is attached."""

    def read(self) -> Own | None:
        """Return what it says about itself; None when it is not loaded."""


class Collector:
    """A prometheus_client collector of zerneld's probes."""

    def __init__(
        self, memory: gpu_mem.GpuMemory, activity: gpu_activity.GpuActivityProbe, *, cost_measured: bool
    ) -> None:
        self._memory = memory
        self._activity = activity
        self.probes: dict[str, Probe] = {gpu_mem.NAME: memory, gpu_activity.NAME: activity}
        """The probes by name."""
        self.cost_measured = cost_measured
        self.settings_in_use = True
        """Whether the settings file, as it was last read, is in use as a whole."""

    def describe(self) -> list[Any]:
        """Tell the registry that nothing can be said about names before a scrape."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the metric families of this moment."""
        yield InfoMetricFamily("zernel_build", "The version of zerneld.", value={"version": __version__})
        yield GaugeMetricFamily(
            "zernel_observe_config_reload_success",
            "1 when the settings file, as it was last read, is in use as a whole; 0 when it was refused, or "
            "when a part of it waits for a restart.",
            value=int(self.settings_in_use),
        )
        yield from self._attachments()
        memory = self._memory.read()
        readings: dict[str, Own | None] = {
            gpu_mem.NAME: memory,
            gpu_activity.NAME: self._activity.read(),
        }
        loaded = {name: reading for name, reading in readings.items() if reading is not None}
        yield from _own(loaded, self.cost_measured)
        if self._memory.unavailable is None:
            yield from _memory(memory)

    def _attachments(self) -> Iterator[Any]:
        """Yield what the probes are attached to."""
        attached = GaugeMetricFamily(
            "zernel_probe_attached", "1 when the probe is attached to something and counts.", labels=["probe"]
        )
        libraries = GaugeMetricFamily(
            "zernel_probe_libraries", "Libraries (inodes) that the probe is attached to.", labels=["probe"]
        )
        refused = GaugeMetricFamily(
            "zernel_probe_refused_libraries",
            "Libraries (inodes) that the probe cannot be attached to; the log says why.",
            labels=["probe"],
        )
        for name, probe in self.probes.items():
            attached.add_metric([name], 0 if probe.unavailable else 1)
            libraries.add_metric([name], len(probe.libraries))
            refused.add_metric([name], probe.refused)
        yield attached
        yield libraries
        yield refused


def _own(readings: Mapping[str, Own], cost_measured: bool) -> Iterator[Any]:
    """Yield what the probes say about themselves."""
    if cost_measured:
        runs = CounterMetricFamily("zernel_probe_runs", "Runs of the probe's BPF programs.", labels=["probe"])
        seconds = CounterMetricFamily(
            "zernel_probe_run_seconds", "CPU time spent in the probe's BPF programs.", labels=["probe"]
        )
        for name, reading in readings.items():
            runs.add_metric([name], reading.runs)
            seconds.add_metric([name], reading.run_seconds)
        yield runs
        yield seconds
    drops = CounterMetricFamily(
        "zernel_probe_drops", "What the probe could not count, by reason.", labels=["probe", "reason"]
    )
    for name, reading in readings.items():
        for reason, number in reading.drops.items():
            drops.add_metric([name, reason], number)
    yield drops


def _memory(reading: gpu_mem.Reading) -> Iterator[Any]:
    """Yield the figures of GPU memory."""
    labels = ["pid", "gpu_id"]
    scope = (
        "through cuMemAlloc_v2, since the probe was attached; gpu_id is the CUDA ordinal within the "
        "process's CUDA_VISIBLE_DEVICES, or 'unknown'"
    )
    used = GaugeMetricFamily("zernel_gpu_memory_used_bytes", f"GPU memory held {scope}.", labels=labels)
    peak = GaugeMetricFamily("zernel_gpu_memory_peak_bytes", f"Most GPU memory held {scope}.", labels=labels)
    for one in reading.usage:
        used.add_metric([str(one.pid), one.gpu], one.current_bytes)
        peak.add_metric([str(one.pid), one.gpu], one.peak_bytes)
    yield used
    yield peak
    yield CounterMetricFamily(
        "zernel_gpu_memory_allocations", "cuMemAlloc_v2 calls that succeeded.", value=reading.allocations
    )
    yield CounterMetricFamily(
        "zernel_gpu_memory_frees", "cuMemFree_v2 calls that succeeded.", value=reading.frees
    )
    yield CounterMetricFamily(
        "zernel_gpu_memory_unknown_frees",
        "cuMemFree_v2 calls that freed memory which the probe had not seen allocated.",
        value=reading.unknown_frees,
    )
    failures = CounterMetricFamily(
        "zernel_gpu_memory_allocation_failures",
        "cuMemAlloc_v2 calls that failed, by CUresult (2: out of memory, 3: not initialized).",
        labels=["code"],
    )
    for code, number in sorted(reading.failures.items()):
        failures.add_metric([str(code)], number)
    yield failures
