# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of zerneld: /etc/zernel/zerneld.toml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zernel.config import dump, option, table

DEFAULT_PATH = Path("/etc/zernel/zerneld.toml")

HEADING = """Settings of zerneld, the observability daemon. Every key shows its default.
Apply changes with 'systemctl reload zerneld'; a file with a mistake is refused and the settings in use stay.
'zerneld --check-config' checks this file without touching the daemon."""


@dataclass(frozen=True, slots=True)
class Prometheus:
    """Where metrics are served."""

    port: int = option(
        9091,
        "TCP port of /metrics on 127.0.0.1. Prometheus' Pushgateway has the same default.",
        minimum=1,
        maximum=65535,
    )


@dataclass(frozen=True, slots=True)
class Discovery:
    """How libraries to probe are found."""

    interval_s: float = option(
        10.0,
        "Seconds between two looks through all processes for new copies of libcuda.so.1 and libnccl.so.2 "
        "(of containers). What a process does before its copy is found is not seen.",
        minimum=0.1,
        maximum=3600.0,
    )
    max_libraries: int = option(
        64,
        "Copies of libcuda.so.1 probed at most, and of libnccl.so.2. Each takes 4 file descriptors, about 40 "
        "before kernel 6.6.",
        minimum=1,
        maximum=1024,
    )


@dataclass(frozen=True, slots=True)
class Probes:
    """What holds for every probe."""

    measure_cost: bool = option(
        True,
        "Have the kernel count the runs and the run time of BPF programs (zernel_probe_runs_total, "
        "zernel_probe_run_seconds_total). Costs about 20 ns a run, of every BPF program on the machine.",
    )


@dataclass(frozen=True, slots=True)
class GpuMem:
    """The gpu_mem probe."""

    max_allocations: int = option(
        65536,
        "Live GPU allocations that are tracked at most, of all processes. One more is counted in "
        "zernel_probe_drops_total and in nothing else. Needs a restart.",
        minimum=1024,
        maximum=4194304,
    )
    max_processes: int = option(
        1024,
        "Processes that are tracked at most, and so the number of pid labels. Needs a restart.",
        minimum=16,
        maximum=65536,
    )


@dataclass(frozen=True, slots=True)
class GpuActivity:
    """The gpu_activity probe."""

    enabled: bool = option(
        True,
        "Tell the scheduler when a thread waited for a GPU, gave it work or called NCCL. Costs these calls "
        "about 1 us each, a wait 2. False: the scheduler knows GPUs by NVML only.",
    )


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file."""

    prometheus: Prometheus = table(Prometheus)
    discovery: Discovery = table(Discovery)
    probes: Probes = table(Probes)
    gpu_mem: GpuMem = table(GpuMem)
    gpu_activity: GpuActivity = table(GpuActivity)


def default_file() -> str:
    """Return the file that the package installs."""
    return dump(Config(), HEADING)
