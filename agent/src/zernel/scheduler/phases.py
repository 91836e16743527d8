# SPDX-License-Identifier: GPL-3.0-or-later
"""Which phase of machine learning a process is in: the scheduler document's table, and nothing else.

Pure: signals in, phase out. A signal that is absent (None) never satisfies a condition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zernel.scheduler.policy import Phase
from zernel.scheduler.tables import PhaseDetection

RECENT_S = 1.0
"""A GPU sync or an NCCL call counts for so long; the BPF side uses the same span for its roles."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What was measured of one process in one interval. None: not measured, which says nothing.

    ``io_wait_fraction`` is the part (0 to 1) of its threads' time that they waited for I/O; ``cpu_burst_ns``
    the mean time that its threads ran from waking to sleeping, 0 when none ran; ``gpu_utilization`` percent;
    ``since_gpu_sync_s`` the age of its last wait for the GPU; ``nccl_active`` whether it called NCCL within
    ``RECENT_S``; ``futex_waits`` how often its threads waited on a futex.
    """

    io_wait_fraction: float | None = None
    cpu_burst_ns: int | None = None
    gpu_utilization: float | None = None
    since_gpu_sync_s: float | None = None
    nccl_active: bool | None = None
    futex_waits: int | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a phase: a signal, what is asked of it in words, and the question itself."""

    signal: str
    words: str
    holds: Callable[[float], bool]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One condition of a phase, put to a process: ``value`` None where the signal is absent."""

    phase: Phase
    signal: str
    words: str
    value: float | None
    holds: bool


class Rules:
    """The document's heuristics with the thresholds of a configuration."""

    def __init__(self, thresholds: PhaseDetection, short_burst_ns: int) -> None:
        """Take the thresholds.

        :param short_burst_ns: a mean burst up to this counts as none for GPU compute. Handing the GPU its
            next piece of work takes that long, and a process that does no more waits for the GPU.
        """
        io_wait, idle = thresholds.io_wait_threshold, thresholds.gpu_idle_threshold
        active, burst = thresholds.gpu_active_threshold, thresholds.optimizer_burst_max_ns
        # In the order in which they are tried. A collective keeps the GPU busy, and the data loader of a
        # process that has synced a moment ago still loads data: the more telling verdict comes first.
        self.conditions: dict[Phase, tuple[Condition, ...]] = {
            Phase.NCCL_COLLECTIVE: (
                Condition("nccl_active", "true", bool),
                Condition("futex_waits", "above 0", lambda waits: waits > 0),
            ),
            Phase.GPU_COMPUTE: (
                Condition("gpu_utilization", f"above {active}%", lambda used: used > active),
                Condition(
                    "cpu_burst_ns",
                    f"at most {short_burst_ns / 1e6:g} ms (a launch)",
                    lambda ns: ns <= short_burst_ns,
                ),
            ),
            Phase.DATA_LOADING: (
                Condition("io_wait_fraction", f"above {io_wait:g}", lambda part: part > io_wait),
                Condition("gpu_utilization", f"below {idle}%", lambda used: used < idle),
            ),
            Phase.OPTIMIZER_STEP: (
                Condition("cpu_burst_ns", f"above 0, below {burst / 1e6:g} ms", lambda ns: 0 < ns < burst),
                Condition(
                    "since_gpu_sync_s", f"at most {RECENT_S:g} s ago", lambda age: 0 <= age <= RECENT_S
                ),
            ),
        }
        self._tests = tuple(
            (phase, tuple((condition.signal, condition.holds) for condition in conditions))
            for phase, conditions in self.conditions.items()
        )

    def classify(self, signals: Signals) -> Phase:
        """Return the first phase all of whose conditions hold, else ``UNKNOWN``."""
        for phase, tests in self._tests:
            for signal, holds in tests:
                value = getattr(signals, signal)
                if value is None or not holds(value):
                    break
            else:
                return phase
        return Phase.UNKNOWN

    def evidence(self, signals: Signals) -> list[Evidence]:
        """Return each condition of each phase with the signal's value, in the order of trying."""
        found = []
        for phase, conditions in self.conditions.items():
            for one in conditions:
                value = getattr(signals, one.signal)
                holds = value is not None and one.holds(value)
                found.append(Evidence(phase, one.signal, one.words, value, holds))
        return found


class Stability:
    """The phase of one process: it changes after some identical classifications in a row."""

    __slots__ = ("candidate", "phase", "streak")

    def __init__(self) -> None:
        self.phase = Phase.UNKNOWN
        self.candidate = Phase.UNKNOWN
        self.streak = 0

    def observe(self, seen: Phase, count: int) -> bool:
        """Take in one classification; tell whether the phase changed, which takes ``count`` in a row."""
        if seen is self.phase:
            self.streak = 0
            return False
        self.streak = self.streak + 1 if seen is self.candidate else 1
        self.candidate = seen
        if self.streak < count:
            return False
        self.phase, self.streak = seen, 0
        return True
