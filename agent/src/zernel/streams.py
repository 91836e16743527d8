# SPDX-License-Identifier: GPL-3.0-or-later
"""Standard output that can be full, closed, or read by somebody who goes away.

Python notices such failures when it flushes at exit, too late for words or for an exit status. So programs
write through :func:`write` and end with :func:`finish`.
"""

from __future__ import annotations

import io
import os
import sys

from zernel.errors import ZernelError, fail


def prepare() -> None:
    """Let a terminal that lacks a character show a replacement: no error after the work is done."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def write(text: str | bytes) -> None:
    """Write on standard output, now; bytes as they are. A reader who has gone is no failure
    (``zernel show | head``).

    :raises ZernelError: when what was written is lost otherwise, such as on a full disk.
    """
    # Absent when the program was started with the descriptor closed.
    if sys.stdout is None:
        return
    try:
        if isinstance(text, bytes):
            sys.stdout.flush()
            sys.stdout.buffer.write(text)
        else:
            sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        lost(error)


def lost(error: OSError) -> None:
    """Deal with a write on standard output that failed: what else is written goes nowhere.

    :raises ZernelError: unless the reader has gone.
    """
    _discard()
    if isinstance(error, BrokenPipeError):
        return
    raise fail(
        "output-lost",
        "The result could not be printed",
        explanation=error.strerror or str(error),
        current_state="What the command did stands",
        suggestion="Give standard output a place with room; 'zernel show' tells the state of instances",
    ) from error


def finish(status: int, error: OSError | None = None) -> int:
    """Flush what is left and return the exit status, which is 1 if that is lost, or was by ``error``."""
    try:
        if error:
            lost(error)
        write("")
    except ZernelError as error:
        for problem in error.problems:
            print(problem.render(), file=sys.stderr)
        return status or 1
    return status


def _discard() -> None:
    """Send what else is written on standard output nowhere, also what Python flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
