# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns the scheduler's service on and off, and asks it, the kernel and systemd how things are."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from zernel import files
from zernel.config import load
from zernel.errors import Problem, ZernelError, fail
from zernel.scheduler import kernel, realtime, support
from zernel.scheduler.config import DEFAULT_PATH, Config
from zernel.scheduler.tables import Telemetry

UNIT = "zernel-scheduler.service"
NAME = "zernel"
"""The scheduler's name in /sys/kernel/sched_ext/root/ops."""

SYSTEMCTL_TIMEOUT_S = 60
_ANSWER_TIMEOUT_S = 5
_MAX_ANSWER = 16 << 20
_LOCK = "run/zernel-scheduler.lock"
_SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel's view: ``state`` None without sched_ext, ``scheduler`` the name of the one loaded.

    ``enables`` grows whenever one is enabled.
    """

    state: str | None
    scheduler: str | None
    enables: int

    @property
    def ours(self) -> bool:
        """Tell whether Zernel's scheduler runs the tasks."""
        return self.state == "enabled" and self.scheduler == NAME


@dataclass(frozen=True, slots=True)
class Service:
    """systemd's view: ``active`` and ``boot`` in its words (active, failed; enabled), None where unknown."""

    active: str | None
    boot: str | None
    says: str | None


class Host:
    """This host. Tests redirect ``root`` and ``systemctl``."""

    def __init__(
        self,
        root: Path = Path("/"),
        systemctl: str = "systemctl",
        settings: Path = DEFAULT_PATH,
        check: Callable[[Path], list[Problem]] = support.check,
    ) -> None:
        self._root = root
        self._systemctl = systemctl
        self._settings = settings
        self._check = check

    def kernel(self) -> Kernel:
        """Return the kernel's view."""
        root = self._root
        return Kernel(kernel.state(root), kernel.loaded_scheduler(root), kernel.enable_sequence(root))

    def service(self) -> Service:
        """Return systemd's view; nothing is known where systemd does not run."""
        names = ("ActiveState", "UnitFileState", "StatusText")
        try:
            done = self._run("show", UNIT, *(f"--property={name}" for name in names))
        except ZernelError:
            return Service(None, None, None)
        found = dict(line.partition("=")[::2] for line in done.splitlines())
        return Service(*(found.get(name) or None for name in names))

    def realtime(self) -> list[realtime.Hog]:
        """Return the real-time threads that keep CPUs to themselves."""
        return realtime.hogs(self._root)

    def ask(self, page: str, **query: object) -> dict[str, Any]:
        """Return what the daemon answers.

        :raises ZernelError: where it does not run, or refuses.
        """
        port = self._port()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_TIMEOUT_S)
        try:
            connection.request("GET", f"{page}?{urlencode(query)}")
            answer = connection.getresponse()
            data = json.loads(answer.read(_MAX_ANSWER))
        except TimeoutError:
            raise fail(
                "scheduler-silent",
                "The scheduler's daemon does not answer",
                subject="scheduler",
                explanation=f"127.0.0.1:{port}{page}: nothing within {_ANSWER_TIMEOUT_S} s",
                suggestion="Try again; systemd ends a daemon that hangs, and starts it anew, after a minute",
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise fail(
                "scheduler-not-running",
                "The scheduler's daemon does not answer",
                subject="scheduler",
                explanation=f"127.0.0.1:{port}{page}: {error}",
                suggestion="Turn it on with 'zernel scheduler enable'; 'systemctl status zernel-scheduler' "
                "says why it is not running",
            ) from None
        finally:
            connection.close()
        if not isinstance(data, dict) or answer.status != 200:
            said = data.get("error") if isinstance(data, dict) else None
            raise fail(
                "scheduler-refused",
                str(said or f"The scheduler's daemon answered with status {answer.status}"),
                subject="scheduler",
                suggestion="'zernel scheduler status' shows what it knows",
            )
        return data

    def _port(self) -> int:
        try:
            return load(Config, self._settings).telemetry.metrics_port
        except ZernelError:
            # The daemon goes on with what it read before, most likely on the port that all have.
            return Telemetry().metrics_port

    def enable(self) -> bool:
        """Turn the scheduler on, now and at each boot; return whether that changed anything.

        :raises ZernelError: with every reason why this host cannot run it; nothing is changed then.
        """
        before = self.service()
        on = self.kernel().ours and before.active == "active"
        if on and before.boot == "enabled":
            return False
        if not on:
            self.require()
        with self.switching():
            if not on:
                self._load(was_active=before.active == "active")
            self._run("enable", UNIT)
        return True

    def _load(self, *, was_active: bool) -> None:
        try:
            # It may run, and have given up after ejections: whoever enables it wants another try.
            self._run("restart", UNIT)
            self._settle(True)
        except ZernelError:
            # What failed now must not succeed behind one's back: systemd would try again.
            if not was_active:
                with contextlib.suppress(ZernelError):
                    self._run("stop", UNIT)
            raise

    def disable(self) -> bool:
        """Turn it off, now and at boot; return whether that changed anything."""
        before = self.service()
        off = before.active in (None, "inactive", "failed")
        if off and before.boot != "enabled" and not self.kernel().ours:
            return False
        with self.switching():
            self._run("disable", "--now", UNIT)
            self._settle(False)
        return True

    @contextlib.contextmanager
    def switching(self) -> Iterator[None]:
        """Keep other commands from switching the scheduler meanwhile.

        :raises ZernelError: ``locked`` where one does; or without the rights that it takes.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(files.locked(self._root / _LOCK, "switches the scheduler"))
            except PermissionError:
                raise fail(
                    "not-root",
                    "Switching the scheduler takes root",
                    subject="scheduler",
                    suggestion="Run the command with sudo",
                ) from None
            yield

    def start(self) -> None:
        """Turn it on for now."""
        self._run("start", UNIT)
        self._settle(True)

    def stop(self) -> None:
        """Turn it off for now."""
        self._run("stop", UNIT)
        self._settle(False)

    def require(self) -> None:
        """Check that this host can run the scheduler.

        :raises ZernelError: with every reason why not.
        """
        problems = self._check(self._root)
        if self.kernel().ours:
            problems = [problem for problem in problems if problem.code != "scheduler-loaded"]
        if problems:
            raise ZernelError(*problems)

    def _settle(self, on: bool) -> None:
        """Wait until the kernel agrees."""
        deadline = time.monotonic() + _SETTLE_S
        while self.kernel().ours != on:
            if time.monotonic() >= deadline:
                state = self.kernel()
                raise fail(
                    "scheduler-state",
                    f"The scheduler is not {'on' if on else 'off'}, though its service was "
                    f"{'started' if on else 'stopped'}",
                    subject="scheduler",
                    current_state=f"sched_ext is {state.state}, scheduler: {state.scheduler or 'none'}",
                    suggestion="'journalctl -u zernel-scheduler -n 50' says what happened",
                )
            time.sleep(0.05)

    def _run(self, *words: str) -> str:
        try:
            done = subprocess.run(
                [self._systemctl, *words],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=SYSTEMCTL_TIMEOUT_S,
                # Ctrl-C goes to all of a terminal's processes: it must not end what puts the host back.
                start_new_session=True,
            )
        except FileNotFoundError:
            raise fail(
                "no-systemd",
                "This host has no systemctl",
                subject="scheduler",
                explanation="The scheduler's service is systemd's",
                suggestion="Run 'zernel-scheduler' directly, as root; it stops with Ctrl-C",
            ) from None
        except subprocess.TimeoutExpired:
            raise fail(
                "systemctl-failed",
                f"'systemctl {' '.join(words)}' did not end within {SYSTEMCTL_TIMEOUT_S} s",
                subject="scheduler",
                suggestion="'systemctl list-jobs' shows what systemd waits for",
            ) from None
        if done.returncode != 0:
            raise fail(
                "systemctl-failed",
                f"'systemctl {' '.join(words)}' failed",
                subject="scheduler",
                explanation=tuple(done.stderr.strip().splitlines()[:5]),
                suggestion="'journalctl -u zernel-scheduler -n 50' says why",
            )
        return done.stdout
