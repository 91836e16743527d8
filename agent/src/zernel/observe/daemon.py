# SPDX-License-Identifier: GPL-3.0-or-later
"""zerneld: loads the probes, keeps them attached to what appears, and serves their figures."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zernel import service
from zernel.daemon import NOT_APPLIED, InUse, Program, Settings
from zernel.errors import ZernelError, fail
from zernel.gpu import libraries
from zernel.observe.config import DEFAULT_PATH, Config, default_file

if TYPE_CHECKING:
    from zernel.metrics import MetricsServer
    from zernel.observe.collector import Probe

log = logging.getLogger("zernel.observe")

# Share of one CPU that looking through processes may take; the rest of a round waits for the next turn.
_SCAN_SHARE = 0.1
_FIRST_SCAN_S = 2.0


def main() -> int:
    """Run the program and return its exit status."""
    return Program(
        "zerneld",
        "Zernel's observability daemon: eBPF probes, served to Prometheus.",
        Config,
        DEFAULT_PATH,
        default_file,
        _run,
    ).main()


def _run(manager: service.Service, config: Config, settings: Settings[Config]) -> int:
    _preflight()
    with _Daemon(config, settings) as daemon:
        daemon.serve(manager)
    return 0


def _preflight() -> None:
    """Refuse what cannot work, with the reason.

    :raises ZernelError: not root, or a kernel without type information.
    """
    if os.geteuid() != 0:
        raise fail(
            "not-root",
            "zerneld needs root",
            explanation="BPF programs need CAP_BPF and CAP_PERFMON, finding libraries needs CAP_SYS_PTRACE",
            suggestion="Run 'systemctl start zerneld', or run it with sudo",
        )
    if not Path("/sys/kernel/btf/vmlinux").exists():
        raise fail(
            "no-btf",
            "This kernel has no BTF type information",
            explanation="/sys/kernel/btf/vmlinux does not exist; the probes cannot be fitted to the kernel",
            suggestion="Boot a Debian kernel, or build yours with CONFIG_DEBUG_INFO_BTF=y",
        )


class _Daemon:
    """What runs between start and stop, and what a reload replaces."""

    def __init__(self, config: Config, settings: Settings[Config]) -> None:
        # Imported here: --check-config and --dump-config need neither libbpf nor prometheus_client.
        from zernel.observe.collector import Collector
        from zernel.observe.gpu_activity import GpuActivityProbe
        from zernel.observe.gpu_mem import GpuMemory

        self._config = config
        self._settings = settings
        self._stats_fd: int | None = None
        self._scan = libraries.ProcessScan()
        self._found: dict[libraries.Inode, libraries.Copy] = {}
        self._last_unavailable: dict[str, str | None] = {}
        self._in_use = InUse()
        self._memory_settings = config.gpu_mem
        self._memory = GpuMemory(config.gpu_mem)
        try:
            self._activity = GpuActivityProbe(config.gpu_activity)
        except BaseException:
            self._memory.close()
            raise
        try:
            self._collector = Collector(self._memory, self._activity, cost_measured=False)
            self._measure_cost(config.probes.measure_cost)
            self._server = self._listen(config.prometheus.port)
        except BaseException:
            self._close_probes()
            raise

    def __enter__(self) -> _Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._close_probes()
        self._measure_cost(False)

    def _close_probes(self) -> None:
        self._memory.close()
        self._activity.close()

    def _listen(self, port: int) -> MetricsServer:
        from zernel.metrics import MetricsServer

        return MetricsServer(
            port, self._collector, lambda: None, setting=f"port in [prometheus] of {self._settings.path}"
        )

    def serve(self, manager: service.Service) -> None:
        """Work until told to stop."""
        self._scan.start()
        self._look(_FIRST_SCAN_S)
        manager.ready(self._status())
        log.info("serving http://127.0.0.1:%d/metrics", self._server.port)
        while True:
            wake = manager.wait(self._config.discovery.interval_s)
            if wake is service.Wake.STOP:
                manager.stopping()
                log.info("stopping")
                return
            if wake is service.Wake.RELOAD:
                manager.reloading()
                self._reload()
                manager.ready(self._status())
                continue
            self._scan.start()
            self._look(self._config.discovery.interval_s * _SCAN_SHARE)
            manager.status(self._status())

    def _look(self, budget_s: float) -> None:
        """Go on with the round through the processes; at its end, attach to what is there."""
        found = self._scan.step(budget_s)
        if found is None:
            return
        self._found = libraries.with_installed(found)
        self._follow()

    def _follow(self) -> None:
        """Attach the probes to what was found."""
        for probe in (self._memory, self._activity):
            probe.follow(self._found, self._config.discovery.max_libraries)
        for name, one in self._collector.probes.items():
            unavailable = one.unavailable
            if unavailable and unavailable != self._last_unavailable.get(name):
                log.warning("%s unavailable: %s", name, unavailable, extra={"ZERNEL_PROBE": name})
            self._last_unavailable[name] = unavailable

    def _status(self) -> str:
        """Return the line for ``systemctl status``: first what a person should act on."""
        return self._in_use.line(*(_state(name, probe) for name, probe in self._collector.probes.items()))

    def _reload(self) -> None:
        """Take over the file's settings, and remember what keeps them from being in use."""
        try:
            self._in_use.read(self._take_over())
        except ZernelError as error:
            self._in_use.refuse(error, log)
        self._collector.settings_in_use = bool(self._in_use)

    def _take_over(self) -> str | None:
        """Take over the file's settings; return why some are not in use now, None when all are.

        :raises ZernelError: the file, or its port, does not work; the settings in use stay.
        """
        new = self._settings.load()
        if new.prometheus.port != self._config.prometheus.port:
            server = self._listen(new.prometheus.port)
            self._server.close()
            self._server = server
        self._measure_cost(new.probes.measure_cost)
        self._config = new
        if self._activity.apply(new.gpu_activity):
            self._activity.follow(self._found, new.discovery.max_libraries)
        log.info("settings reloaded from %s", self._settings.path)
        if new.gpu_mem == self._memory_settings:
            return None
        # Not done here: new tables are empty, so running jobs would from then on seem to hold too little.
        log.warning("[gpu_mem] of %s changed: restart zerneld to apply it", self._settings.path)
        return f"[gpu_mem] {NOT_APPLIED} zerneld"

    def _measure_cost(self, wanted: bool) -> None:
        """Have the kernel count BPF runs, or stop it. Without the right to, run without that figure."""
        from zernel.bpf import enable_run_stats

        if wanted and self._stats_fd is None:
            try:
                self._stats_fd = enable_run_stats()
            except ZernelError as error:
                log.warning("probe cost is not measured: %s", error.problems[0].category)
        elif not wanted and self._stats_fd is not None:
            os.close(self._stats_fd)
            self._stats_fd = None
        self._collector.cost_measured = self._stats_fd is not None


def _state(name: str, probe: Probe) -> str:
    """Return what a probe does, for the line for ``systemctl status``."""
    if unavailable := probe.unavailable:
        return f"{name} unavailable: {unavailable}"
    number = len(probe.libraries)
    return f"{name} attached to {number} librar{'y' if number == 1 else 'ies'}"


if __name__ == "__main__":
    raise SystemExit(main())
