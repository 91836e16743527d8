# SPDX-License-Identifier: GPL-3.0-or-later
"""What a tenant's priority class is worth."""

from __future__ import annotations

from zernel.scheduler.tables import OWN_CLASS, PriorityClass

WEIGHT_STEP = 1.25
"""What one step of priority multiplies a weight by: that of a nice level in sched_prio_to_weight."""

MAX_WEIGHT = 1 << 30
"""Weights are u32 in the kernel; far above 64 GPUs at the highest priority."""


def class_priority(name: str, default: str, classes: PriorityClass) -> int:
    """Return the priority of a tenant's class; ``default`` is that of those that name none."""
    return int(getattr(classes, default if name == OWN_CLASS else name))


def scaled(weight: float, priority: int) -> int:
    """Return a tenant's weight with its class's priority, at least 1."""
    return max(1, min(MAX_WEIGHT, round(weight * WEIGHT_STEP**priority)))
