# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon knows of its scheduler, for those who ask. Apart from the metrics, whose import is slow."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Protocol

from zernel.scheduler import kernel


class Running(Protocol):
    """What is asked of a scheduler that is loaded; from any thread."""

    load_seconds: float
    attach_seconds: float

    def enabled(self) -> bool:
        """Tell whether it runs the host's tasks: it is attached, and the kernel has not ended it."""

    def counters(self) -> dict[str, int]:
        """Return the sums of its counters, the last ones once it is closed."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment. ``base`` are the counters of schedulers that were replaced, ``ends`` counts by cause.

    ``settings_in_use``: the settings file, as it was last read, is in use. ``off`` says why no scheduler is
    loaded, where the kernel ejected it; ``gave_up`` that it is not loaded again without a person.
    """

    running: Running | None
    loads: int
    ends: dict[str, int]
    base: dict[str, int]
    settings_in_use: bool = True
    ejections: int = 0
    off: str | None = None
    gave_up: bool = False


class Status:
    """Written by the daemon, read by scrapes from other threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Snapshot(None, 0, {}, {})

    def snapshot(self) -> Snapshot:
        """Return what holds now."""
        with self._lock:
            return self._now

    def loaded(self, running: Running) -> None:
        """Note that a scheduler was loaded."""
        with self._lock:
            now = self._now
            self._now = replace(now, running=running, loads=now.loads + 1, off=None, gave_up=False)

    def unloading(self) -> None:
        """Note that the scheduler goes, and keep its counters: they must not start again with the next."""
        with self._lock:
            now = self._now
            if now.running is not None:
                self._now = replace(now, running=None, base=added(now.base, now.running.counters()))

    def ended(self, why: kernel.Exit) -> None:
        """Note an end that the kernel decided on."""
        with self._lock:
            now = self._now
            ends = added(now.ends, {why.cause: 1})
            self._now = replace(now, ends=ends, ejections=now.ejections + why.failed)

    def stays_off(self, why: str, *, gave_up: bool) -> None:
        """Note why no scheduler is loaded for now, or, when ``gave_up``, until a person asks for it."""
        with self._lock:
            self._now = replace(self._now, off=why, gave_up=gave_up)

    def reloaded(self, *, in_use: bool) -> None:
        """Note whether the settings file, as it was just read, is in use."""
        with self._lock:
            self._now = replace(self._now, settings_in_use=in_use)


def added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """Return the sums by name."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
