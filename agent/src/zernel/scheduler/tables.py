# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of /etc/zernel/scheduler.toml, key by key: defaults, meaning, what is accepted.

Names and defaults are those of the scheduler document, where it has them. Module ``config`` puts the tables
together to the file.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from zernel.config import option, table
from zernel.scheduler.policy import Policy, Preemption

CLASSES = ("normal", "training", "inference", "interactive", "background")
"""Priority classes of tenants."""

OWN_CLASS = "default"
"""Class of a tenant that has the ``default_priority_class``."""

MAX_TENANTS = 31
"""Tenants that can be configured: the BPF side tells 32 apart, and one is that of all other tasks."""


@dataclass(frozen=True, slots=True)
class General:
    """How often the daemon looks."""

    phase_eval_interval_ms: int = option(
        100,
        "How often processes are classified, in milliseconds. Less follows them more closely and costs more.",
        minimum=10,
        maximum=10_000,
    )
    gpu_poll_interval_ms: int = option(
        500,
        "How often NVML is asked who uses which GPU and how much, and how often the tenants' weights follow "
        "from that, in milliseconds.",
        minimum=50,
        maximum=60_000,
    )
    max_tracked_tasks: int = option(
        65536,
        "How many processes are told apart, at most; one more runs as 'unknown'. More only costs memory, and "
        "only while there are so many. A change replaces the running scheduler.",
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
        "must run soon. More costs throughput. It does not hold for threads of low_latency phases, nor for "
        "taking the CPU of a thread that yields.",
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
        "A thread, or a process, that waits for storage for more than this part of its time loads data.",
        minimum=0,
        maximum=1,
    )
    optimizer_burst_max_ns: int = option(
        5_000_000,
        "A thread, or a process, that works with the GPU, and runs for less than so many nanoseconds before "
        "it sleeps again, steps the optimizer.",
        minimum=100_000,
        maximum=1_000_000_000,
    )
    nccl_detection_enabled: bool = option(
        False,
        "Tell NCCL collectives apart: by NCCL calls, which zerneld's probes see, and futex waits.",
    )
    gpu_idle_threshold: int = option(
        10,
        "A process loads data only while its GPU utilisation is below this, in percent.",
        minimum=0,
        maximum=100,
    )
    gpu_active_threshold: int = option(
        80,
        "A process whose GPU utilisation is above this, in percent, and that does not compute itself, is in "
        "GPU compute.",
        minimum=0,
        maximum=100,
    )
    phase_stability_count: int = option(
        3,
        "A process changes its phase after so many identical classifications in a row.",
        minimum=1,
        maximum=100,
    )


@dataclass(frozen=True, slots=True)
class Row:
    """What a thread gets in one phase or role."""

    priority: int = option(
        0,
        "Order among those that wait: each step is worth priority_step_us. The share of CPU time stays.",
        minimum=-20,
        maximum=20,
    )
    preemption: str = option(
        "standard",
        "standard: waits for its turn. yield: once it has used a slice up, goes behind all others, and any "
        "task that wakes may take its CPU. aggressive: when it wakes, takes a CPU from one of lower "
        "priority, and waits in the latency queue while half of latency_budget_percent is left. preemptive: "
        "the same, while any of it is left. low_latency: the same, without a limit on how often.",
        choices=tuple(map(str, Preemption)),
    )
    latency_target_us: int = option(
        0,
        "How long after it woke it should run, in microseconds: its deadline in the latency queue. 0: it "
        "does not enter that queue, as those that are standard or yield never do.",
        minimum=0,
        maximum=100_000,
    )


@dataclass(frozen=True, slots=True)
class Policies:
    """What threads get: by the phase of their process, or by what a thread itself was seen doing."""

    data_loading: Row = table(
        Row, "Data loading: a faster pipeline keeps the GPU fed.", default=Row(10, "aggressive", 100)
    )
    gpu_compute: Row = table(
        Row,
        "GPU compute: the CPU waits for the GPU. Threads that hand the GPU its work have a row of their own.",
        default=Row(-5, "yield", 0),
    )
    nccl_collective: Row = table(
        Row, "NCCL collective: on the critical path.", default=Row(10, "low_latency", 50)
    )
    optimizer_step: Row = table(
        Row, "Optimizer step: the GPU idles meanwhile.", default=Row(10, "preemptive", 100)
    )
    unknown: Row = table(Row, "All else.")
    launcher: Row = table(
        Row, "A thread that launches GPU work, in whatever phase.", default=Row(10, "low_latency", 50)
    )
    interactive: Row = table(
        Row, "A thread of short bursts that sleeps mostly.", default=Row(5, "preemptive", 1000)
    )

    def rows(self) -> dict[str, Policy]:
        """Return the policies by the enumerators of ``enum policy_row``."""
        return {
            f"POLICY_{field.name.upper()}": Policy(
                row.priority, Preemption(row.preemption), row.latency_target_us
            )
            for field in fields(self)
            for row in (getattr(self, field.name),)
        }


@dataclass(frozen=True, slots=True)
class MultiTenant:
    """Several users of one host."""

    enabled: bool = option(
        False,
        "Share CPU time among the tenants below in proportion to the GPUs that they hold, however many "
        "threads they start. Tasks of no tenant are one more, the default tenant.",
    )
    default_priority_class: str = option(
        "normal",
        "The priority class of the default tenant, and of tenants that name none.",
        choices=CLASSES,
    )
    weight_per_gpu: int = option(
        100,
        "A tenant's weight for each GPU that its processes hold. One that several tenants hold is split.",
        minimum=1,
        maximum=10_000,
    )
    cpu_only_weight: int = option(
        100,
        "The weight of the default tenant, and of a tenant that holds no GPU.",
        minimum=1,
        maximum=10_000,
    )
    default_floor_percent: int = option(
        10,
        "The part of CPU time, in percent, that the default tenant is due at least when it wants it, however "
        "much the others weigh: logins, system services and this daemon run there.",
        minimum=0,
        maximum=50,
    )


@dataclass(frozen=True, slots=True)
class PriorityClass:
    """What a class is worth."""

    training: int = option(5, "Training jobs.", minimum=-20, maximum=20)
    inference: int = option(3, "Inference serving.", minimum=-20, maximum=20)
    interactive: int = option(1, "Notebooks.", minimum=-20, maximum=20)
    normal: int = option(0, "All else.", minimum=-20, maximum=20)
    background: int = option(-5, "Batch preprocessing.", minimum=-20, maximum=20)


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant."""

    cgroup: str = option(
        help="The cgroup below /sys/fs/cgroup that holds the tenant's tasks, with all below it.",
        # No "." or "..", no empty part: one cgroup has one name.
        pattern=r"(/(?!\.{1,2}(/|$))[^/\x00-\x1f]{1,255}){1,32}",
        accepted='a path such as "/ml.slice"',
        example="/ml.slice",
    )
    class_: str = option(
        OWN_CLASS,
        "Its priority class; default: the default_priority_class.",
        choices=(OWN_CLASS, *CLASSES),
    )
    weight: int = option(
        0, "Its weight; 0: from the GPUs that its processes hold.", minimum=0, maximum=10_000
    )


@dataclass(frozen=True, slots=True)
class Numa:
    """NUMA nodes."""

    enabled: bool = option(
        True,
        "Keep tasks on the CPUs of their NUMA node while it has free ones, with queues for each node. When "
        "false, all CPUs are treated alike.",
    )
    gpu_affinity: bool = option(
        True,
        "Prefer the CPUs next to the GPUs that a process, or others in its cgroup, hold.",
    )
    memory_affinity: bool = option(
        True,
        "Prefer the CPUs next to a process's memory, where a cpuset allows it the memory of one node only.",
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
    max_ejections: int = option(
        3,
        "After so many ejections by the kernel within ejection_window_s the host stays on the kernel's own "
        "scheduler, with an alert, until the service is reloaded or restarted.",
        minimum=1,
        maximum=20,
    )
    hint_lifetime_ms: int = option(
        5000,
        "What was found out about a process holds for so long, in milliseconds, should nothing newer come; "
        "then it is treated like any other.",
        minimum=200,
        maximum=60_000,
    )
    ejection_window_s: int = option(
        600, "For how long an ejection counts, in seconds.", minimum=60, maximum=86_400
    )
    backoff_s: int = option(
        5,
        "The pause after a first ejection, in seconds, before the scheduler is loaded again. Each further "
        "one within the window doubles it.",
        minimum=1,
        maximum=600,
    )


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What others can see."""

    metrics_port: int = option(
        9093,
        "TCP port of the metrics (Prometheus) on 127.0.0.1: /metrics, /-/healthy and /-/ready; and of what "
        "'zernel scheduler status' shows: /status.",
        minimum=1,
        maximum=65535,
    )
    push_interval_ms: int = option(
        1000,
        "How often shares, waits and the other figures of a while are worked out anew, in milliseconds.",
        minimum=100,
        maximum=60_000,
    )
