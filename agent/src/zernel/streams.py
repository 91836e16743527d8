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


class _Tolerant(io.TextIOWrapper):
    """Standard error that may be full: what cannot be said there is lost, not the work or its result."""

    def write(self, text: str) -> int:
        """Write what there is room for."""
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Flush what there is room for."""
        try:
            super().flush()
        except OSError:
            return


def prepare() -> None:
    """Make the standard streams safe to use, however the program was started.

    Descriptors that were closed are opened on /dev/null: else the next file opened would be what errors are
    written on. A terminal that lacks a character shows a replacement: no error after the work is done.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)  # gets the lowest free number
            stream = os.fdopen(number, mode, closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    # The process's own only: what somebody else put in its place would be closed with the object that it was.
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        sys.stderr.flush()
        sys.stderr = _Tolerant(sys.stderr.buffer, encoding=sys.stderr.encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def write(text: str | bytes) -> None:
    """Write on standard output, now; bytes as they are. A reader who has gone is no failure
    (``zernel show | head``).

    :raises ZernelError: when what was written is lost otherwise, such as on a full disk.
    """
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


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _discard() -> None:
    """Send what else is written on standard output nowhere, also what Python flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
