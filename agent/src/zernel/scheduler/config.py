# SPDX-License-Identifier: GPL-3.0-or-later
"""What /etc/zernel/scheduler.toml may say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zernel.config import dump, option, table

DEFAULT_PATH = Path("/etc/zernel/scheduler.toml")
HEADING = """Settings of zernel-scheduler, Zernel's CPU scheduler (sched_ext).

Every setting is shown with its default. Apply a change with 'systemctl reload zernel-scheduler';
check it first with 'zernel-scheduler --check-config'."""


@dataclass(frozen=True, slots=True)
class General:
    """The daemon."""

    max_tracked_tasks: int = option(
        65_536,
        "How many processes the scheduler can keep apart, at most. More only costs memory, and only while "
        "there are so many. A change replaces the running scheduler.",
        minimum=1024,
        maximum=1_048_576,
    )


@dataclass(frozen=True, slots=True)
class Scheduler:
    """How the BPF scheduler runs tasks."""

    slice_us: int = option(
        3000,
        "How long a task runs before another that waits gets its turn, in microseconds. Longer means fewer "
        "switches and warmer caches; shorter means that a task which wakes while all CPUs are busy waits "
        "less. The kernel looks at it on its timer tick: below the tick (4000 at HZ=250) less changes "
        "nothing.",
        minimum=500,
        maximum=100_000,
    )
    watchdog_timeout_ms: int = option(
        10_000,
        "The kernel ends the scheduler, and its own takes over, when a task that could run has waited so "
        "long, in milliseconds. A change replaces the running scheduler: for a moment the kernel's own runs "
        "the tasks.",
        minimum=1000,
        maximum=30_000,  # SCX_WATCHDOG_MAX_TIMEOUT of the kernel
    )

    priority_step_us: int = option(
        300,
        "What one step of priority is worth, in microseconds: so much earlier, or later, it puts a thread or "
        "a tenant in the order of those that wait. Its share of CPU time stays the same.",
        minimum=0,
        maximum=5000,
    )
    latency_budget_percent: int = option(
        30,
        "The part of each CPU's time, in percent, that threads which must run soon may take from others that "
        "wait. More protects others less from many such threads.",
        minimum=0,
        maximum=90,
    )
    preemptions_per_ms: float = option(
        1.0,
        "How often in a millisecond a CPU may be taken from the thread that it runs, for one that wakes and "
        "must run soon. More costs throughput; with 0 nobody is interrupted, low_latency phases excepted.",
        minimum=0,
        maximum=10,
    )
    short_burst_us: int = option(
        2000,
        "A thread that runs no longer than this before it sleeps again, in microseconds, is an interactive "
        "one, or launches GPU work if it works with a GPU; longer, and it is treated like all others.",
        minimum=50,
        maximum=10_000,
    )


@dataclass(frozen=True, slots=True)
class PhaseDetection:
    """How threads and processes show what they do."""

    io_wait_threshold: float = option(
        0.3,
        "A thread that waits for storage for more than this part of its time loads data.",
        minimum=0,
        maximum=1,
    )
    optimizer_burst_max_ns: int = option(
        5_000_000,
        "A thread that works with the GPU, and runs up to so many nanoseconds before it sleeps again, steps "
        "the optimizer.",
        minimum=100_000,
        maximum=1_000_000_000,
    )
    nccl_detection_enabled: bool = option(
        False,
        "Tell threads in NCCL collectives apart: by their NCCL calls and futex waits, which zerneld's probes "
        "see.",
    )


@dataclass(frozen=True, slots=True)
class Safety:
    """What holds whatever else is configured."""

    starvation_bound_ms: int = option(
        100,
        "Tasks that wait in a queue which was not served for so long, in milliseconds, come before all "
        "others, whatever their weight and priority.",
        minimum=20,
        maximum=5000,
    )
    hint_lifetime_ms: int = option(
        5000,
        "What was found out about a process holds for so long, in milliseconds, should nothing newer come; "
        "then it is treated like any other.",
        minimum=200,
        maximum=60_000,
    )


@dataclass(frozen=True, slots=True)
class Numa:
    """NUMA nodes."""

    enabled: bool = option(
        True,
        "Keep tasks on the CPUs of their NUMA node while it has free ones, with a queue for each node. When "
        "false, all CPUs are treated alike.",
    )


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What others can see."""

    metrics_port: int = option(
        9093,
        "TCP port of the metrics (Prometheus) on 127.0.0.1: /metrics, /-/healthy and /-/ready.",
        minimum=1,
        maximum=65535,
    )


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file."""

    general: General = table(General)
    scheduler: Scheduler = table(Scheduler)
    phase_detection: PhaseDetection = table(PhaseDetection)
    numa: Numa = table(Numa)
    safety: Safety = table(Safety)
    telemetry: Telemetry = table(Telemetry)


def default_file() -> str:
    """Return the file that the package installs."""
    return dump(Config(), HEADING)
