# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of the system calls: which one a command was about to make when it was killed.

A kernel carries out such a call whole or not at all, so there is nothing to undo: the instance's status tells
what became of it, and the next command says so. The file stands beside that of the overlays' journal, and is
used under the same lock.
"""

from __future__ import annotations

import json
from contextlib import suppress

from zernel import files
from zernel.devicetree.allocations import check_name
from zernel.multikernel.fs import MultikernelFs
from zernel.multikernel.journal import Journal

VERBS = ("load", "exec", "kill", "unload")
_MAX_BYTES = 4096


class CallJournal:
    """The system call in progress, in the directory of a journal whose lock is held."""

    def __init__(self, journal: Journal) -> None:
        self.path = journal.directory / "call.json"

    def begin(self, verb: str, instance: str) -> None:
        """Record a command before its call; on disk when this returns."""
        files.replace(self.path, json.dumps({"verb": verb, "instance": instance}))

    def end(self) -> None:
        """Forget the call: its outcome was read."""
        files.remove(self.path)

    def settle(self, fs: MultikernelFs, *, dry_run: bool) -> tuple[str, ...]:
        """Forget what an earlier command left, and return a note that says what became of it, or nothing.

        A dry run forgets nothing. No command fails for this: a kernel must be stopped also where the disk is
        broken or read-only.
        """
        try:
            data = json.loads(files.read_regular(self.path, _MAX_BYTES))
            verb, instance = data["verb"], data["instance"]
            if verb not in VERBS or not isinstance(instance, str) or check_name(instance):
                raise ValueError(f"no command writes {str(data)[:100]}")
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            said = f"What an earlier load, boot or halt left in {self.path} cannot be read: {error}"
        else:
            outcome = fs.status(instance) or "gone"
            said = f"An earlier 'zernel {verb} {instance}' was interrupted: the instance is {outcome}"
        if not dry_run:
            with suppress(OSError):  # the next command says it once more
                self.end()
        return (said,)
