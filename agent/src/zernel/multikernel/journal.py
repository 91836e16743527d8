# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock and the journal that make a change to the instances a transaction.

Both stand in ``/var/lib/zernel/multikernel/ROOT`` (``ZERNEL_STATE_DIR`` replaces /var/lib/zernel), one
directory for each multikernel file system. The lock is flock(2) on a file: the kernel drops it when its
holder dies, so a file that was left behind means nothing. The journal holds the change in progress, written
before the kernel is asked and removed after its answer was read; what a killed command left is settled by the
next one.
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path

from zernel import files
from zernel.errors import fail
from zernel.record import Record


class Entry(Record):
    """A change in progress: ``create`` or ``delete`` of ``instance`` by an overlay of this SHA-256.

    ``before`` are the transactions that there were before the overlay was written.
    """

    action: str
    instance: str
    overlay: str
    before: tuple[int, ...]


class Journal:
    """The journal of one multikernel file system. Use it under its `lock`."""

    def __init__(self, root: Path) -> None:
        state = Path(os.environ.get("ZERNEL_STATE_DIR") or "/var/lib/zernel")
        self.directory = state / "multikernel" / (str(root).strip("/").replace("/", "-") or "root")
        self.path = self.directory / "journal.json"

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock; raises `ZernelError` with the holder's pid when it stays taken."""
        return files.locked(self.directory / "lock", "is changing the instances")

    def begin(self, entry: Entry) -> None:
        """Record a change before the kernel is asked for it; on disk when this returns."""
        files.replace(self.path, json.dumps(vars(entry)))

    def end(self) -> None:
        """Forget the change: its outcome was read."""
        files.remove(self.path)

    def pending(self) -> Entry | None:
        """Return the change that a command began and did not end, or None."""
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            entry = Entry(data["action"], data["instance"], data["overlay"], tuple(data["before"]))
            _check(entry)
            return entry
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise fail(
                "journal-broken",
                "The journal of instance changes cannot be read",
                explanation=f"{self.path}: {error}",
                suggestion=f"Compare 'zernel show' with what you expect, then remove {self.path}",
            ) from error


def _check(entry: Entry) -> None:
    """Raise ValueError unless the entry is one that `Journal.begin` can have written."""
    if entry.action not in ("create", "delete"):
        raise ValueError(f"'action' is {entry.action!r}, neither 'create' nor 'delete'")
    for name, value in (("instance", entry.instance), ("overlay", entry.overlay)):
        if not isinstance(value, str):
            raise ValueError(f"'{name}' is {value!r}, no text")
    if not all(type(number) is int for number in entry.before):
        raise ValueError("'before' holds something that is no number")
