# SPDX-License-Identifier: GPL-3.0-or-later
"""Phases of processes, roles of threads, and how tasks of each are treated: the document's policy table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What a process does. Its row in the policy table of sched_intf.h is ``POLICY_`` and the name."""

    UNKNOWN = "unknown"
    DATA_LOADING = "data_loading"
    GPU_COMPUTE = "gpu_compute"
    NCCL_COLLECTIVE = "nccl_collective"
    OPTIMIZER_STEP = "optimizer_step"


class Role(StrEnum):
    """What a thread does, as the scheduler sees it. Its enumerator is ``ROLE_`` and the name."""

    OTHER = "other"
    LAUNCHER = "launcher"
    OPTIMIZER = "optimizer"
    COLLECTIVE = "collective"
    LOADER = "loader"
    INTERACTIVE = "interactive"


class Preemption(StrEnum):
    """Whether a task that wakes waits for its turn. Its enumerator is ``PREEMPT_`` and the name."""

    STANDARD = "standard"
    YIELD = "yield"
    AGGRESSIVE = "aggressive"
    PREEMPTIVE = "preemptive"
    LOW_LATENCY = "low_latency"


@dataclass(frozen=True, slots=True)
class Policy:
    """A row: ``priority`` -20 to 20, and how soon a task that wakes should run, 0 for no matter."""

    priority: int
    preemption: Preemption
    latency_target_us: int = 0


# The enumerator of a row's index: the phases, then those that only roles have.
DEFAULTS: dict[str, Policy] = {
    "POLICY_UNKNOWN": Policy(0, Preemption.STANDARD),
    "POLICY_DATA_LOADING": Policy(10, Preemption.AGGRESSIVE, 100),
    "POLICY_GPU_COMPUTE": Policy(-5, Preemption.YIELD),
    "POLICY_NCCL_COLLECTIVE": Policy(10, Preemption.LOW_LATENCY, 50),
    "POLICY_OPTIMIZER_STEP": Policy(10, Preemption.PREEMPTIVE, 100),
    "POLICY_LAUNCHER": Policy(10, Preemption.LOW_LATENCY, 50),
    "POLICY_INTERACTIVE": Policy(5, Preemption.PREEMPTIVE, 1000),
}
