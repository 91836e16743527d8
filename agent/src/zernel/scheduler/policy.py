# SPDX-License-Identifier: GPL-3.0-or-later
"""What a phase, a role and a priority class are worth, in the numbers that the BPF side takes."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from zernel.scheduler.tables import OWN_CLASS, Policies, PriorityClass

ROWS = (
    "unknown",
    "data_loading",
    "gpu_compute",
    "nccl_collective",
    "optimizer_step",
    "launcher",
    "interactive",
)
"""Rows of the policy table, by their numbers in ``enum policy_row`` of sched_intf.h: phases come first."""

WEIGHT_STEP = 1.25
"""What one step of priority multiplies a weight by: that of a nice level in sched_prio_to_weight."""

MAX_WEIGHT = 1 << 30
"""Weights are u32 in the kernel; far above 64 GPUs at the highest priority."""


class Preemption(enum.IntEnum):
    """Ways to get a CPU, by their numbers in ``enum preemption`` of sched_intf.h."""

    STANDARD = 0
    YIELD = 1
    AGGRESSIVE = 2
    PREEMPTIVE = 3
    LOW_LATENCY = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the policy table: ``struct policy`` of sched_intf.h."""

    priority: int
    preemption: Preemption
    latency_target_ns: int


def rows(policies: Policies) -> tuple[Row, ...]:
    """Return the rows that a configuration asks for, in the order of ``ROWS``."""
    table = []
    for name in ROWS:
        policy = getattr(policies, name)
        preemption = Preemption[policy.preemption.upper()]
        table.append(Row(policy.priority, preemption, policy.latency_target_us * 1000))
    return tuple(table)


def class_priority(name: str, default: str, classes: PriorityClass) -> int:
    """Return the priority of a tenant's class; ``default`` is that of those that name none."""
    return int(getattr(classes, default if name == OWN_CLASS else name))


def scaled(weight: float, priority: int) -> int:
    """Return a tenant's weight with its class's priority, at least 1."""
    return max(1, min(MAX_WEIGHT, round(weight * WEIGHT_STEP**priority)))
