# SPDX-License-Identifier: GPL-3.0-or-later
"""What zerneld shows Prometheus: built anew for each scrape, so that dead processes vanish.

Where a probe is not attached its figures are absent, not zero; ``zernel_probe_attached`` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from zernel import __version__
from zernel.observe import gpu_mem


class Collector:
    """A prometheus_client collector of one loaded gpu_mem probe."""

    def __init__(self, probe: gpu_mem.GpuMemory, *, cost_measured: bool) -> None:
        self._probe = probe
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
        attached = GaugeMetricFamily(
            "zernel_probe_attached", "1 when the probe is attached to something and counts.", labels=["probe"]
        )
        attached.add_metric([gpu_mem.NAME], 0 if self._probe.unavailable else 1)
        yield attached
        libraries = GaugeMetricFamily(
            "zernel_probe_libraries", "Libraries (inodes) that the probe is attached to.", labels=["probe"]
        )
        libraries.add_metric([gpu_mem.NAME], len(self._probe.libraries))
        yield libraries
        reading = self._probe.read()
        yield from _own(reading, self.cost_measured)
        if self._probe.unavailable is None:
            yield from _memory(reading)


def _own(reading: gpu_mem.Reading, cost_measured: bool) -> Iterator[Any]:
    """Yield what the probe says about itself."""
    if cost_measured:
        runs = CounterMetricFamily("zernel_probe_runs", "Runs of the probe's BPF programs.", labels=["probe"])
        runs.add_metric([gpu_mem.NAME], reading.runs)
        yield runs
        seconds = CounterMetricFamily(
            "zernel_probe_run_seconds", "CPU time spent in the probe's BPF programs.", labels=["probe"]
        )
        seconds.add_metric([gpu_mem.NAME], reading.run_seconds)
        yield seconds
    drops = CounterMetricFamily(
        "zernel_probe_drops", "What the probe could not count, by reason.", labels=["probe", "reason"]
    )
    for reason, number in reading.drops.items():
        drops.add_metric([gpu_mem.NAME, reason], number)
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
