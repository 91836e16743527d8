# SPDX-License-Identifier: GPL-3.0-or-later
"""What a reading of the probe's tables becomes in Prometheus' text format."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry, generate_latest

from zernel import __version__
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


class Probe:
    """Stands in for the loaded probe."""

    def __init__(self, unavailable: str | None = None) -> None:
        self.unavailable = unavailable
        self.libraries = [] if unavailable else ["/usr/lib/libcuda.so.1"]
        self.reading = READING

    def read(self) -> Reading:
        return self.reading


def served(probe: Probe, *, cost: bool = True, settings: bool = True) -> list[str]:
    registry = CollectorRegistry()
    collector = Collector(probe, cost_measured=cost)  # type: ignore[arg-type]
    collector.settings_in_use = settings
    registry.register(collector)
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_every_figure_has_its_place() -> None:
    assert sorted(served(Probe())) == sorted(
        [
            f'zernel_build_info{{version="{__version__}"}} 1.0',
            "zernel_observe_config_reload_success 1.0",
            'zernel_probe_attached{probe="gpu_mem"} 1.0',
            'zernel_probe_libraries{probe="gpu_mem"} 1.0',
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


def test_a_cost_that_is_not_measured_is_absent_not_zero() -> None:
    assert not [line for line in served(Probe(), cost=False) if "_run" in line]


def test_settings_that_are_not_in_use_are_shown() -> None:
    assert "zernel_observe_config_reload_success 0.0" in served(Probe(), settings=False)
