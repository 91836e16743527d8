# SPDX-License-Identifier: GPL-3.0-or-later
"""When to try again after the kernel ejected the scheduler, and when to leave it at the kernel's own.

Pure: times are given by the caller, in seconds of CLOCK_MONOTONIC, which no change of the date moves.
"""

from __future__ import annotations

from zernel.scheduler.tables import Safety

MAX_PAUSE_S = 600
"""The longest pause: doubling ends here."""


def pause(safety: Safety, number: int) -> float:
    """Return how many seconds to wait after an ejection, the ``number``-th (from 1) within the window."""
    return float(min(MAX_PAUSE_S, safety.backoff_s * 2 ** (number - 1)))


class Ejections:
    """The ejections within the window."""

    def __init__(self, safety: Safety) -> None:
        self._safety = safety
        self._times: list[float] = []

    def configure(self, safety: Safety) -> None:
        """Take over other limits; what happened counts on."""
        self._safety = safety

    def record(self, now: float) -> float | None:
        """Note an ejection. Return the pause before the next load, in seconds; None: load no more."""
        self._times = [*self.within(now), now]
        if len(self._times) >= self._safety.max_ejections:
            return None
        return pause(self._safety, len(self._times))

    def within(self, now: float) -> list[float]:
        """Return the times of the ejections that count at ``now``."""
        return [then for then in self._times if now - then < self._safety.ejection_window_s]

    def forgive(self) -> None:
        """Forget them all: a person asked for another try."""
        self._times = []
