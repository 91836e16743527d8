# SPDX-License-Identifier: GPL-3.0-or-later
"""zernel-scheduler: loads the BPF scheduler, keeps watch over it, and serves its metrics.

The scheduler lives as long as this process: when the process ends, however it ends, the kernel detaches
the scheduler and runs every task with its own again.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING

from zernel import service
from zernel.daemon import InUse, Program, Settings
from zernel.errors import ZernelError, harmless
from zernel.scheduler.config import DEFAULT_PATH, Config, default_file
from zernel.scheduler.ejection import Ejections

if TYPE_CHECKING:
    from zernel.metrics import MetricsServer
    from zernel.scheduler.kernel import Exit
    from zernel.scheduler.loader import LoadedScheduler

log = logging.getLogger("zernel.scheduler")

# How often to look whether the kernel ended the scheduler.
POLL_SECONDS = 0.5

# CPUs that come and go make the kernel ask for a new load. More often than this in a minute is no hotplug.
MAX_RESTARTS_PER_MINUTE = 10


def main() -> int:
    """Run the program and return its exit status."""
    return Program(
        "zernel-scheduler",
        "Zernel's CPU scheduler for machine learning (sched_ext).",
        Config,
        DEFAULT_PATH,
        default_file,
        _run,
    ).main()


def _run(manager: service.Service, config: Config, settings: Settings[Config]) -> int:
    with Daemon(config, settings) as daemon:
        return daemon.serve(manager)


class Daemon:
    """What runs between start and stop."""

    def __init__(self, config: Config, settings: Settings[Config]) -> None:
        # Imported here: --check-config and --dump-config need neither libbpf nor prometheus_client.
        from zernel.scheduler.engine import Engine
        from zernel.scheduler.loader import load_checked, replaces
        from zernel.scheduler.status import Status

        self._config = config
        self._settings = settings
        self._in_use = InUse()
        self._load = load_checked
        self._replaces = replaces
        self._restarts: list[float] = []
        self._ejections = Ejections(config.safety)
        self._retry_at: float | None = None
        self._fault: str | None = None
        self._server: MetricsServer | None = None
        self._scheduler: LoadedScheduler | None = None
        self._status = Status()
        self._engine = Engine(config)
        try:
            # The scheduler comes before what serves its metrics, whose import takes longer than loading it.
            # But a port that is taken must not first make the host change its scheduler back and forth.
            if _free(config.telemetry.metrics_port):
                self._start(config)
            self._server = self._listen(config.telemetry.metrics_port)
            if self._scheduler is None:
                self._start(config)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving, and return the host to the kernel's own scheduler."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._unload()
        self._engine.close()

    def serve(self, manager: service.Service) -> int:
        """Work until told to stop or until the kernel ends the scheduler; return the exit status."""
        manager.ready(self._state())
        while True:
            wake = manager.wait(min(POLL_SECONDS, self._engine.pause(time.monotonic())))
            if wake is service.Wake.STOP:
                manager.stopping()
                log.info("stopping: the kernel's own scheduler takes over")
                return 0
            if wake is service.Wake.RELOAD:
                manager.reloading()
                self._reload()
                manager.ready(self._state())
            self._retry()
            ended = self._scheduler.exit() if self._scheduler is not None else None
            if ended is not None:
                self._report(ended)
                self._unload()
                if ended.failed:
                    self._stay_off(f"ejected by the kernel: {ended.sentence()}")
                elif ended.restart and self._may_restart():
                    self._start(self._config)
                else:
                    manager.stopping()
                    return self._exit_status(ended)
            self._tick()
            manager.status(self._state())

    def _listen(self, port: int) -> MetricsServer:
        from zernel.metrics import MetricsServer
        from zernel.scheduler.collector import Collector
        from zernel.scheduler.report import Pages

        setting = f"metrics_port in [telemetry] of {self._settings.path}"
        collector = Collector(self._status, self._engine.figures)
        pages = Pages(self._status, self._engine).by_path()
        return MetricsServer(port, collector, self._not_ready, setting=setting, pages=pages)

    def _not_ready(self) -> str | None:
        """Return why the scheduler does not run the host's tasks, None if it does (for /-/ready)."""
        running = self._status.snapshot().running
        return None if running is not None and running.enabled() else "the scheduler is not enabled"

    def _start(self, config: Config) -> None:
        scheduler = self._scheduler = self._load(config)
        self._status.loaded(scheduler)
        self._engine.loaded(scheduler.maps)
        self._retry_at = None
        seconds = scheduler.load_seconds + scheduler.attach_seconds
        log.info(
            "enabled; loading and attaching took %.2f s", seconds, extra={"ZERNEL_LOAD_SECONDS": seconds}
        )

    def _unload(self) -> None:
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            # First out of the metrics, which other threads read, then out of the kernel.
            self._status.unloading()
            self._engine.unloading()
            scheduler.close()

    def _tick(self) -> None:
        """Classify, and work out figures; where that fails, the scheduler goes on without new hints."""
        try:
            classified = self._engine.tick(time.monotonic())
        except ZernelError as error:
            if str(error) != self._fault:
                for problem in error.problems:
                    log.error("processes are not classified: %s", problem.render())
            self._fault = str(error)
        else:
            if classified and self._fault is not None:
                log.info("processes are classified again")
                self._fault = None

    def _stay_off(self, why: str) -> None:
        """Leave the host to the kernel's own scheduler: for a pause, or until a person asks for more."""
        now = time.monotonic()
        pause = self._ejections.record(now)
        gave_up = pause is None
        self._retry_at = None if pause is None else now + pause
        if pause is not None:
            log.warning("the kernel's own scheduler runs the tasks; trying again in %g s", pause)
        else:
            log.critical(
                "STAYING on the kernel's own scheduler after %d ejections in %d s; 'systemctl reload "
                "zernel-scheduler' tries again",
                len(self._ejections.within(now)),
                self._config.safety.ejection_window_s,
                extra={"ZERNEL_ALERT": "scheduler-gave-up"},
            )
        self._status.stays_off(why, gave_up=gave_up)

    def _retry(self) -> None:
        """Load the scheduler again when the pause after an ejection is over."""
        if self._retry_at is None or time.monotonic() < self._retry_at:
            return
        self._retry_at = None
        try:
            self._start(self._config)
        except ZernelError as error:
            for problem in error.problems:
                log.error("not loaded: %s", problem.render())
            self._stay_off(f"not loaded: {error}")

    def _state(self) -> str:
        """Return the line for ``systemctl status``: first what a person should act on."""
        metrics = f"metrics on 127.0.0.1:{self._server.port}" if self._server else None
        now = self._status.snapshot()
        state = "enabled"
        if now.off is not None:
            what = "STAYING OFF until a reload" if now.gave_up else "off, will try again"
            state = " ".join(f"{what}: {now.off}".split())
        fault = f"processes NOT classified: {self._fault}" if self._fault else None
        return self._in_use.line(fault, state, metrics)

    def _report(self, ended: Exit) -> None:
        from zernel.scheduler import realtime

        self._status.ended(ended)
        level = logging.WARNING if ended.restart else logging.ERROR
        extra = {
            "ZERNEL_EXIT_KIND": ended.kind,
            "ZERNEL_EXIT_CODE": ended.code,
            "ZERNEL_EXIT_REASON": ended.reason,
        }
        log.log(level, "the kernel ended the scheduler (%s): %s", ended.cause, ended.sentence(), extra=extra)
        if ended.failed and ended.dump:
            log.error("the kernel's dump of the scheduler:\n%s", ended.dump, extra=extra)
        if ended.stalled:
            for hog in realtime.hogs():
                log.error("a real-time thread may be why: %s", harmless(str(hog)), extra=extra)

    def _exit_status(self, ended: Exit) -> int:
        """Return 0 where a person asked for the end: systemd then does not start the service again."""
        from zernel.scheduler.kernel import EXIT_SYSRQ

        if ended.kind == EXIT_SYSRQ:
            log.warning("ended by a person with sysrq-S: staying off until the service is started again")
            return 0
        return 1

    def _may_restart(self) -> bool:
        now = time.monotonic()
        self._restarts = [then for then in self._restarts if now - then < 60] + [now]
        return len(self._restarts) <= MAX_RESTARTS_PER_MINUTE

    def _reload(self) -> None:
        """Take over the file's settings, and remember what keeps them from being in use."""
        try:
            self._take_over()
        except ZernelError as error:
            self._in_use.refuse(error, log)
            if self._scheduler is None and self._status.snapshot().off is None:
                raise
        else:
            self._in_use.read()
            log.info("settings reloaded from %s", self._settings.path)
        self._status.reloaded(in_use=bool(self._in_use))

    def _take_over(self) -> None:
        """Take over the file's settings; when it is bad, or they do not work, keep those in use.

        :raises ZernelError: why they are not taken over.
        """
        old, new = self._config, self._settings.load()
        server = None
        if new.telemetry.metrics_port != old.telemetry.metrics_port:
            server = self._listen(new.telemetry.metrics_port)
        try:
            if self._scheduler is None:
                # Ejected before. A person who reloads wants another try, with these settings, now.
                self._ejections.forgive()
                self._retry_at = time.monotonic()
            elif self._replaces(old, new):
                self._replace(new)
            else:
                self._scheduler.apply(new)
        except BaseException:
            if server is not None:
                server.close()
            raise
        if server is not None and self._server is not None:
            self._server.close()
            self._server = server
        self._config = new
        self._engine.configure(new)
        self._ejections.configure(new.safety)

    def _replace(self, config: Config) -> None:
        """Load the scheduler with other settings; on failure load it with the old ones again."""
        self._unload()
        try:
            self._start(config)
        except ZernelError:
            self._start(self._config)
            raise


def _free(port: int) -> bool:
    """Tell whether the port can be bound now, as the metrics server will."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
