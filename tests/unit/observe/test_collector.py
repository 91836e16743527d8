# SPDX-License-Identifier: GPL-3.0-or-later
"""What a reading of the probe's tables becomes in Prometheus' text format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from zernel import __version__
from zernel.observe import gpu_activity
from zernel.observe.collector import Collector
from zernel.observe.gpu_mem import Reading, Usage

READING = Reading(
    usage=(Usage(17, "0", 100, 200), Usage(17, "unknown", 1, 2), Usage(18, "3", 0, 5)),
    allocations=10,
    frees=7,
    unknown_frees=1,
    failures={2: 4, 700: 1},
    drops={"allocation_table_full": 3},
    runs=34,
    run_seconds=0.5,
)


@dataclass
class Probe:
    """Stands in for a probe."""

    unavailable: str | None = None
    reading: Any = READING
    refused: int = 0

    @property
    def libraries(self) -> list[str]:
        return [] if self.unavailable else ["/usr/lib/libcuda.so.1"]

    def read(self) -> Any:
        return self.reading


OFF = Probe("switched off", None)


def served(memory: Probe, activity: Probe = OFF, *, cost: bool = True, settings: bool = True) -> list[str]:
    registry = CollectorRegistry()
    collector = Collector(memory, activity, cost_measured=cost)  # type: ignore[arg-type]
    collector.settings_in_use = settings
    registry.register(collector)
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_every_figure_has_its_place() -> None:
    activity = Probe(reading=gpu_activity.Reading({"no_thread_state": 1}, 9, 0.25), refused=2)
    assert sorted(served(Probe(), activity)) == sorted(
        [
            f'zernel_build_info{{version="{__version__}"}} 1.0',
            "zernel_observe_config_reload_success 1.0",
            'zernel_probe_attached{probe="gpu_mem"} 1.0',
            'zernel_probe_libraries{probe="gpu_mem"} 1.0',
            'zernel_probe_refused_libraries{probe="gpu_mem"} 0.0',
            'zernel_probe_attached{probe="gpu_activity"} 1.0',
            'zernel_probe_libraries{probe="gpu_activity"} 1.0',
            'zernel_probe_refused_libraries{probe="gpu_activity"} 2.0',
            'zernel_probe_runs_total{probe="gpu_activity"} 9.0',
            'zernel_probe_run_seconds_total{probe="gpu_activity"} 0.25',
            'zernel_probe_drops_total{probe="gpu_activity",reason="no_thread_state"} 1.0',
            'zernel_probe_runs_total{probe="gpu_mem"} 34.0',
            'zernel_probe_run_seconds_total{probe="gpu_mem"} 0.5',
            'zernel_probe_drops_total{probe="gpu_mem",reason="allocation_table_full"} 3.0',
            'zernel_gpu_memory_used_bytes{gpu_id="0",pid="17"} 100.0',
            'zernel_gpu_memory_used_bytes{gpu_id="unknown",pid="17"} 1.0',
            'zernel_gpu_memory_used_bytes{gpu_id="3",pid="18"} 0.0',
            'zernel_gpu_memory_peak_bytes{gpu_id="0",pid="17"} 200.0',
            'zernel_gpu_memory_peak_bytes{gpu_id="unknown",pid="17"} 2.0',
            'zernel_gpu_memory_peak_bytes{gpu_id="3",pid="18"} 5.0',
            "zernel_gpu_memory_allocations_total 10.0",
            "zernel_gpu_memory_frees_total 7.0",
            "zernel_gpu_memory_unknown_frees_total 1.0",
            'zernel_gpu_memory_allocation_failures_total{code="2"} 4.0',
            'zernel_gpu_memory_allocation_failures_total{code="700"} 1.0',
        ]
    )


def test_what_is_gone_is_shown_no_more() -> None:
    probe = Probe()
    served(probe)
    probe.reading = replace(READING, usage=(Usage(18, "3", 0, 5),))
    assert not [line for line in served(probe) if 'pid="17"' in line]


def test_figures_of_a_probe_that_is_not_attached_are_absent_not_zero() -> None:
    lines = served(Probe("no libcuda.so.1"))
    assert 'zernel_probe_attached{probe="gpu_mem"} 0.0' in lines
    assert not [line for line in lines if line.startswith("zernel_gpu_memory")]


def test_a_probe_that_is_switched_off_has_no_figures() -> None:
    lines = [line for line in served(Probe()) if "gpu_activity" in line]
    assert lines == [
        'zernel_probe_attached{probe="gpu_activity"} 0.0',
        'zernel_probe_libraries{probe="gpu_activity"} 0.0',
        'zernel_probe_refused_libraries{probe="gpu_activity"} 0.0',
    ]


def test_a_cost_that_is_not_measured_is_absent_not_zero() -> None:
    assert not [line for line in served(Probe(), cost=False) if "_run" in line]


def test_settings_that_are_not_in_use_are_shown() -> None:
    assert "zernel_observe_config_reload_success 0.0" in served(Probe(), settings=False)
