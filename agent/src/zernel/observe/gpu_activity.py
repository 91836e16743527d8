# SPDX-License-Identifier: GPL-3.0-or-later
"""The gpu_activity probe in user space: loads bpf/gpu_activity.bpf.c and attaches it to libraries.

What it sees goes to the scheduler, through the maps of :mod:`zernel.gpu.activity`; zerneld itself only says
how the probe does. Where it cannot be loaded, or is switched off, zerneld works without it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zernel.bpf import BpfObject
from zernel.errors import ZernelError, fail
from zernel.gpu import activity
from zernel.gpu.functions import COLLECTIVES, LAUNCHES, LIBCUDA, LIBNCCL, WAITS, WORK
from zernel.gpu.libraries import Copy, Inode
from zernel.observe.attachments import Attachments, Hook, Loaded
from zernel.observe.config import GpuActivity

log = logging.getLogger("zernel.observe")

NAME = "gpu_activity"

_HOOKS = {
    WORK: (
        Hook("on_wait_end", dict.fromkeys(WAITS, 0), returning=True),
        Hook("on_launch", dict.fromkeys(LAUNCHES, 0)),
    ),
    COLLECTIVES: (Hook("on_collective", dict.fromkeys(COLLECTIVES.functions, 0)),),
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What the probe says about itself; figures run since it was loaded."""

    drops: dict[str, int]
    """Reason: how often something was not noted."""
    runs: int
    run_seconds: float


class GpuActivityProbe:
    """The probe, loaded or not. One thread switches it, follows and closes; any may read."""

    def __init__(self, settings: GpuActivity, pins: Path = activity.PINS) -> None:
        """Load it, if it is switched on and can be.

        :param pins: where the maps are shared.
        """
        self._pins = pins
        # Held while the object is read and while it is loaded or freed.
        self._lock = threading.Lock()
        self._object: BpfObject | None = None
        self._attachments: Attachments | None = None
        self._why_not: str | None = None
        self.apply(settings)

    def apply(self, settings: GpuActivity) -> bool:
        """Switch it on or off, and return whether that loaded it; where it could not be, try again."""
        if not settings.enabled:
            if self._object is not None:
                activity.announce(self._object.map("gpu_probes"), 0, 0)
            self.close()
            self._why_not = "switched off by 'enabled' in [gpu_activity]"
        elif self._object is None:
            self._load()
            return self._object is not None
        return False

    def close(self) -> None:
        """Detach from everything; a second call does nothing."""
        with self._lock:
            if self._object is not None:
                self._object.close()
            self._object = self._attachments = None
            self._why_not = "zerneld is stopping"

    @property
    def libraries(self) -> list[str]:
        """The libraries that are probed, as people call them."""
        attachments = self._attachments
        return attachments.names if attachments else []

    @property
    def refused(self) -> int:
        """The number of libraries that cannot be probed."""
        attachments = self._attachments
        return attachments.refused if attachments else 0

    @property
    def unavailable(self) -> str | None:
        """Why nothing is seen; None when the probe is attached to a library."""
        attachments = self._attachments
        if attachments is None:
            return self._why_not
        return None if attachments.names else attachments.why_none(LIBCUDA)

    def follow(self, copies: Mapping[Inode, Copy], limit: int) -> None:
        """Keep attached to these libraries, see :meth:`Attachments.follow`, and tell the scheduler of it."""
        if self._object is None or self._attachments is None:
            return
        self._attachments.follow(copies, limit)
        links = [self._attachments.link(library) for library in (LIBCUDA, LIBNCCL)]
        activity.announce(self._object.map("gpu_probes"), *(link.id if link else 0 for link in links))

    def read(self) -> Reading | None:
        """Return what the probe says about itself; None when it is not loaded."""
        with self._lock:
            if self._object is None:
                return None
            programs = self._object.programs()
            return Reading(
                drops={"no_thread_state": int.from_bytes(self._object.bss("missed"), "little")},
                runs=sum(program.run_count for program in programs),
                run_seconds=sum(program.run_time_ns for program in programs) / 1e9,
            )

    def _load(self) -> None:
        programs = [hook.program for hooks in _HOOKS.values() for hook in hooks]
        try:
            with self._lock:
                loaded = Loaded.load(NAME, programs, self._share)
                self._attachments = Attachments(NAME, loaded, _HOOKS)
                self._object, self._why_not = loaded.obj, None
        except ZernelError as error:
            self._why_not = error.problems[0].category
            log.warning("%s cannot be used: %s", NAME, error, extra={"ZERNEL_PROBE": NAME})

    def _share(self, obj: BpfObject) -> None:
        why_not = activity.share(obj, self._pins)
        if why_not is not None:
            raise fail(
                "no-bpffs",
                why_not,
                suggestion="Run 'mount -t bpf bpf /sys/fs/bpf' and restart zerneld; systemd does so at boot",
            )
