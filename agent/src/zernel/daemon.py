# SPDX-License-Identifier: GPL-3.0-or-later
"""What zerneld and zernel-scheduler have in common: their options, how a run begins, what a reload says.

Module :mod:`zernel.service` is about systemd; this one is about the settings file.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from zernel import __version__, service, streams
from zernel.config import load
from zernel.errors import ZernelError

T = TypeVar("T")

_NOT_ASKED = object()  # an option that is not there, where None is one without its value

# The collection's module zernel_services looks for these words in a service's StatusText.
NOT_RELOADED = "settings NOT reloaded"
"""Begins a line for ``systemctl status`` while the file's settings are not in use. The module fails."""

NOT_APPLIED = "settings NOT applied: restart"
"""Stands in it while a part of them waits for a restart. The module restarts the service."""

READ_AT = "settings read "
"""Stands before the time at which the file was last read. The module waits until that changes."""


@dataclass(frozen=True, slots=True)
class Settings(Generic[T]):
    """A daemon's settings file. ``required``: a person named it, so it must exist."""

    schema: type[T]
    path: Path
    required: bool = False

    def load(self) -> T:
        """Read the file; one that does not exist, and need not, gives the defaults.

        :raises ZernelError: with every mistake in the file.
        """
        return load(self.schema, self.path, required=self.required)


@dataclass(frozen=True, slots=True)
class Program(Generic[T]):
    """A daemon as its command line sees it.

    ``run`` gets the service manager, the settings as read and the file they are from, and returns the exit
    status; what it needs beyond the settings it imports itself, for the other options need none of it.
    """

    name: str
    description: str
    schema: type[T]
    default_path: Path
    default_file: Callable[[], str]
    run: Callable[[service.Service, T, Settings[T]], int]

    def main(self) -> int:
        """Do what the command line says and return the exit status."""
        return service.main(self._main)

    def _main(self) -> int:
        args = self._parser().parse_args()
        if args.dump_config:
            streams.write(self.default_file())
            return 0
        checks = args.check_config is not _NOT_ASKED
        named = (args.check_config if checks else None) or args.config
        settings = Settings(self.schema, named or self.default_path, required=named is not None)
        config = settings.load()
        if checks:
            verdict = "valid" if settings.path.exists() else "not there; the defaults hold"
            streams.write(f"{settings.path}: {verdict}\n")
            return 0
        service.setup_logging(self.name)
        # Before any thread starts: see Service.
        return self.run(service.Service(), config, settings)

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=self.name, description=self.description)
        where = f"the settings (default: {self.default_path}, if it exists)"
        parser.add_argument("--config", type=Path, metavar="FILE", help=where)
        act = parser.add_mutually_exclusive_group()
        act.add_argument(
            "--check-config",
            nargs="?",
            type=Path,
            default=_NOT_ASKED,
            metavar="FILE",
            help="check the settings, or those in FILE, and exit",
        )
        act.add_argument("--dump-config", action="store_true", help="print the default settings and exit")
        parser.add_argument("--version", action="version", version=f"{self.name} {__version__}")
        return parser


class InUse:
    """Whether the settings file, as it was last read, is in use, and how ``systemctl status`` says that."""

    def __init__(self) -> None:
        self._why_not: str | None = None
        self._read_at = _now()

    def __bool__(self) -> bool:
        """Tell whether it is in use as a whole."""
        return self._why_not is None

    def read(self, why_not: str | None = None) -> None:
        """Note that the file was read; ``why_not`` says that it is not, or not all, in use."""
        self._why_not = why_not
        self._read_at = _now()

    def refuse(self, error: ZernelError, log: logging.Logger) -> None:
        """Note, and log, that the file was read and the settings in use stay."""
        for problem in error.problems:
            log.error("settings not reloaded, the old ones hold: %s", problem.render())
        # One line: the error may quote the file.
        self.read(" ".join(f"{NOT_RELOADED}: {error}".split()))

    def line(self, *state: str | None) -> str:
        """Return the line for ``systemctl status``: first what a person should act on."""
        return "; ".join(filter(None, (self._why_not, *state, f"{READ_AT}{self._read_at}")))


def _now() -> str:
    # With the milliseconds, so that no two reloads look alike.
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
