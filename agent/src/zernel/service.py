# SPDX-License-Identifier: GPL-3.0-or-later
"""What every Zernel daemon needs from systemd and the kernel: readiness, watchdog, signals, logging.

The notification protocol is a datagram to ``$NOTIFY_SOCKET`` (sd_notify(3)); it is spoken here directly, so
that a daemon runs the same without systemd and without python3-systemd.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from zernel import streams
from zernel.errors import ZernelError, fail, from_oserror, internal

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
"""Values of the environment variable ``ZERNEL_LOG``; "info" where it is not set."""

NOTIFY_TIMEOUT_S = 1.0
"""How long a notification may wait for room in the manager's queue before it is lost."""

# Syslog priorities that systemd reads from "<N>" at the start of a line of standard error (sd-daemon(3)).
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Wake(enum.Enum):
    """Why :meth:`Service.wait` returned."""

    TIMEOUT = "timeout"
    RELOAD = "reload"
    STOP = "stop"


class Service:
    """One daemon's dealings with its service manager. Create it before any thread: it blocks signals.

    SIGTERM and SIGINT (stop) and SIGHUP (reload) are blocked and fetched by :meth:`wait`, so that no handler
    ever interrupts work. Threads that start later inherit the mask and never receive them.
    """

    def __init__(self) -> None:
        self._signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        self._watchdog_s = _watchdog_interval()
        self._status: str | None = None

    def ready(self, status: str) -> None:
        """Say that the daemon works, also at the end of a reload; ``systemctl status`` shows ``status``."""
        self._status = status
        notify(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Replace the line that ``systemctl status`` shows; nothing is sent when it shows that already."""
        if status != self._status:
            self._status = status
            notify(f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload began; :meth:`ready` ends it."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the daemon is on its way out."""
        notify("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog. :meth:`wait` does so; call it yourself within work longer than a few seconds."""
        if self._watchdog_s is not None:
            notify("WATCHDOG=1")

    def wait(self, seconds: float) -> Wake:
        """Sleep for ``seconds``, or until a signal comes; the watchdog is fed meanwhile."""
        deadline = time.monotonic() + seconds
        while True:
            self.alive()
            left = max(0.0, deadline - time.monotonic())
            nap = left if self._watchdog_s is None else min(left, self._watchdog_s)
            received = signal.sigtimedwait(self._signals, nap)
            if received is not None:
                return Wake.RELOAD if received.si_signo == signal.SIGHUP else Wake.STOP
            if nap == left:
                return Wake.TIMEOUT


def notify(message: str) -> None:
    """Send ``message`` (lines of NAME=value) to the service manager; without one, do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as client:
            # A manager that does not read, with a full queue, must not stop the daemon's work for good.
            client.settimeout(NOTIFY_TIMEOUT_S)
            client.sendto(message.encode(), address)
    except OSError as error:
        # A lost notification must not stop the daemon; the watchdog decides if it matters.
        logging.getLogger("zernel").debug("notification not delivered: %s", error)


def _watchdog_interval() -> float | None:
    """Return how often to feed the watchdog, in seconds: half of what systemd allows; None without one."""
    try:
        allowed_us = int(os.environ.get("WATCHDOG_USEC", "0"))
        pid = int(os.environ.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    return allowed_us / 2e6 if allowed_us > 0 and pid == os.getpid() else None


def setup_logging(program: str) -> None:
    """Send the log to the journal when systemd runs this daemon, else to standard error.

    Fields given as ``extra={"ZERNEL_X": ...}`` become journal fields where python3-systemd is installed.
    :raises ZernelError: when ``ZERNEL_LOG`` holds an unknown level.
    """
    wanted = os.environ.get("ZERNEL_LOG", "info").lower()
    if wanted not in LEVELS:
        raise fail(
            "log-level",
            f"ZERNEL_LOG is '{wanted}', which is no log level",
            suggestion=f"Set ZERNEL_LOG to one of {', '.join(LEVELS)}, or unset it",
        )
    handler: logging.Handler
    if "JOURNAL_STREAM" in os.environ:
        try:
            from systemd.journal import JournalHandler

            handler = JournalHandler(SYSLOG_IDENTIFIER=program)
            handler.setFormatter(logging.Formatter("%(message)s"))
        except ImportError:
            handler = logging.StreamHandler()
            handler.setFormatter(_PriorityFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"{program}: %(levelname)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[wanted])


class _PriorityFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        # systemd takes the prefix line by line.
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def main(run: Callable[[], int]) -> int:
    """Run a daemon's ``run`` and return its exit status; problems are shown on standard error, exit 1."""
    streams.prepare()
    try:
        status = run()
    except SystemExit as end:  # argparse: help, version, wrong usage
        status = end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        if os.environ.get("ZERNEL_LOG") == "debug" and not isinstance(error, (ZernelError, OSError)):
            raise
        for problem in _words(error).problems:
            print(problem.render(), file=sys.stderr)
        status = 1
    return streams.finish(status)


def _words(error: Exception) -> ZernelError:
    if isinstance(error, ZernelError):
        return error
    return from_oserror(error, "go on") if isinstance(error, OSError) else internal(error)
