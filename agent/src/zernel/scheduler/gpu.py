# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses which GPU and how much, as NVML tells it (pynvml); what it does not tell is absent."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zernel.topology import nvidia_gpus, pci_numa_node

MAX_GPUS = 64
"""GPUs that are looked at; the largest hosts have 16."""

MAX_PROCESSES = 4096
"""Processes on one GPU that are believed."""

SAMPLE_S = 2.0
"""NVML samples the use by processes up to a second apart: what it said last counts for so long."""

log = logging.getLogger("zernel.scheduler")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: NVML's index, its PCI address as sysfs has it, and the NUMA node; None where not known."""

    index: int
    uuid: str
    pci: str | None
    node: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What NVML said at one moment.

    ``holders``: pid → indices of the GPUs on which it has a context. ``utilization``: pid → percent of the
    time since the reading before that its kernels ran, on the GPU where it is most; pids for which that
    cannot be told are left out. ``unavailable`` says why there is nothing at all.
    """

    gpus: tuple[Gpu, ...] = ()
    holders: dict[int, frozenset[int]] = field(default_factory=dict)
    utilization: dict[int, float] = field(default_factory=dict)
    unavailable: str | None = None


class Nvml:
    """NVML on this host. Not for use from several threads at once."""

    def __init__(
        self, library: Any = None, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Remember the library; it is loaded when first asked.

        :param library: a module with pynvml's functions, for tests; default: pynvml, where it is installed.
        :param root: where sys/ is.
        """
        self._library = library
        self._root = root
        self._clock = clock
        self._started = False
        # The newest sample of utilisation that was seen of each GPU, in NVML's microseconds.
        self._seen: dict[int, int] = {}
        # GPU → pid → the last percentage, and when it was told.
        self._last: dict[int, dict[int, tuple[float, float]]] = {}

    def read(self) -> Reading:
        """Ask NVML; never raises for what it, or the driver, does."""
        try:
            self._start()
            count = min(int(self._library.nvmlDeviceGetCount()), MAX_GPUS)
            return self._read(range(count))
        except ImportError:
            missing = "the package python3-pynvml is not installed"
            return Reading(unavailable=missing if nvidia_gpus(self._root) else "this host has no NVIDIA GPU")
        except Exception as error:  # NVMLError, and what a library and a driver of two versions raise
            # The driver was unloaded, or was never there: a later one is found anew.
            self.close()
            return Reading(unavailable=f"NVML: {error}")

    def close(self) -> None:
        """Let go of the driver."""
        if self._started:
            self._started = False
            _quietly(self._library.nvmlShutdown)

    def _start(self) -> None:
        if self._library is None:
            self._library = importlib.import_module("pynvml")
        if not self._started:
            self._library.nvmlInit()
            self._started = True

    def _read(self, indices: Iterable[int]) -> Reading:
        gpus: list[Gpu] = []
        holders: dict[int, set[int]] = {}
        utilization: dict[int, float] = {}
        for index in indices:
            # One GPU that fell off the bus must not hide the others.
            handle = _quietly(self._library.nvmlDeviceGetHandleByIndex, index)
            if handle is None:
                continue
            gpus.append(self._gpu(index, handle))
            pids = self._pids(handle)
            for pid in pids:
                holders.setdefault(pid, set()).add(index)
            for pid, percent in self._utilization(index, handle, pids).items():
                utilization[pid] = max(percent, utilization.get(pid, 0.0))
        held = {pid: frozenset(on) for pid, on in holders.items()}
        return Reading(tuple(gpus), held, utilization)

    def _gpu(self, index: int, handle: Any) -> Gpu:
        uuid = _quietly(self._library.nvmlDeviceGetUUID, handle)
        about = _quietly(self._library.nvmlDeviceGetPciInfo, handle)
        pci = sysfs_address(_text(about.busId)) if about is not None else None
        node = pci_numa_node(self._root, pci) if pci else None
        return Gpu(index, f"GPU {index}" if uuid is None else _text(uuid), pci, node)

    def _pids(self, handle: Any) -> set[int]:
        pids: set[int] = set()
        for function in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
            found = _quietly(getattr(self._library, function), handle) or []
            pids.update(int(one.pid) for one in found[:MAX_PROCESSES])
        return pids

    def _utilization(self, index: int, handle: Any, pids: set[int]) -> dict[int, float]:
        """Return pid → percent. A process of which NVML has had no sample for a while did nothing there."""
        now = self._clock()
        self._last[index] = {pid: last for pid, last in self._last.get(index, {}).items() if pid in pids}
        if not pids:
            return {}
        since = self._seen.get(index, 0)
        try:
            samples = list(self._library.nvmlDeviceGetProcessUtilization(handle, since))
        except Exception as error:
            if not self._not_found(error):
                return self._alone(handle, pids)
            samples = []  # NVML's word for "nobody used it since then"
        by_pid: dict[int, list[int]] = {}
        for sample in samples[:MAX_PROCESSES]:
            if int(sample.timeStamp) > since and 0 <= int(sample.smUtil) <= 100:
                by_pid.setdefault(int(sample.pid), []).append(int(sample.smUtil))
                self._seen[index] = max(self._seen.get(index, 0), int(sample.timeStamp))
        last = self._last[index]
        last.update((pid, (sum(of) / len(of), now)) for pid, of in by_pid.items() if pid in pids)
        recent = {pid: percent for pid, (percent, at) in last.items() if now - at < SAMPLE_S}
        return {pid: recent.get(pid, 0.0) for pid in pids}

    def _alone(self, handle: Any, pids: set[int]) -> dict[int, float]:
        """Return the GPU's utilisation as that of its only process; of several, no one can tell."""
        if len(pids) != 1:
            return {}
        rates = _quietly(self._library.nvmlDeviceGetUtilizationRates, handle)
        return {pid: float(rates.gpu) for pid in pids if rates is not None and 0 <= rates.gpu <= 100}

    def _not_found(self, error: Exception) -> bool:
        if getattr(error, "value", None) == 0:
            return True  # pynvml raises NVML's success as an error where there is no sample
        kind = getattr(self._library, "NVMLError_NotFound", None)
        return isinstance(kind, type) and isinstance(error, kind)


def sysfs_address(bus: str) -> str | None:
    """Return NVML's PCI address (``00000000:3B:00.0``) as sysfs has it (``0000:3b:00.0``)."""
    domain, _, rest = bus.lower().partition(":")
    try:
        return f"{int(domain, 16):04x}:{rest}" if rest else None
    except ValueError:
        return None


def _text(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _quietly(ask: Callable[..., Any], *arguments: Any) -> Any:
    """Return what NVML answers, None for any of its errors: one question less is answered."""
    try:
        return ask(*arguments)
    except Exception as error:
        log.debug("NVML: %s", error)
        return None


class Watch:
    """Asks NVML again and again in a thread of its own: a driver that hangs must hold up nobody else."""

    def __init__(self, nvml: Nvml, interval_s: float) -> None:
        self.interval_s = interval_s
        self._nvml = nvml
        self._stop = threading.Event()
        self._reading = Reading(unavailable="NVML has not answered yet")
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)

    def start(self) -> None:
        """Begin to ask, unless that began before."""
        if self._thread.ident is None:
            self._thread.start()

    def reading(self) -> Reading:
        """Return the last answer."""
        return self._reading

    def close(self) -> None:
        """Stop asking; a question that NVML never answers is left to the end of the process."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            reading = self._nvml.read()
            if reading.unavailable != self._reading.unavailable:
                log.info("GPUs: %s", reading.unavailable or f"NVML tells of {len(reading.gpus)}")
            self._reading = reading
            # A driver that is not there comes with a new package at the earliest.
            self._stop.wait(self.interval_s if reading.unavailable is None else max(self.interval_s, 10.0))
        self._nvml.close()
