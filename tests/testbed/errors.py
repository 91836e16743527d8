# SPDX-License-Identifier: GPL-3.0-or-later
"""What stops the testbed, shown in the form of Zernel's own errors, without needing Zernel installed."""

from __future__ import annotations

import errno


class TestbedError(Exception):
    """A failure that a person can act on. The command line prints it and exits 1."""

    __test__ = False  # pytest would take the name for a test class

    def __init__(self, category: str, *explanation: str, suggestion: str, log: str = "") -> None:
        """``log`` is the end of a log that shows the cause, printed last and indented."""
        self.category = category
        self.explanation = explanation
        self.suggestion = suggestion
        self.log = log
        super().__init__(self.render())

    def render(self) -> str:
        """Return the error as text without a trailing newline."""
        lines = [f"ERROR: testbed: {self.category}"]
        lines += [f"  {line}" for text in self.explanation for line in text.splitlines()]
        if self.log:
            lines += ["", *(f"  | {line}" for line in self.log.splitlines())]
        return "\n".join([*lines, "", f"  Suggestion: {self.suggestion}"])


class DiskFullError(TestbedError):
    """There is not enough room; whatever was half-written has been removed."""


def from_oserror(error: OSError, doing: str) -> TestbedError:
    """Turn an operating-system error into one with words; ``doing`` completes "Cannot ..."."""
    where = f": {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(doing, f"{error.strerror}{where}")
    suggestion = "Run it as root" if isinstance(error, PermissionError) else "Check the path and try again"
    return TestbedError(f"Cannot {doing}", f"{error.strerror or error}{where}", suggestion=suggestion)


def disk_full(doing: str, explanation: str) -> DiskFullError:
    """Return the error for a file system without room."""
    return DiskFullError(
        f"Cannot {doing}: the disk is full",
        explanation,
        "What was half-written has been removed.",
        suggestion="Free some space, or point ZERNEL_CACHE at a directory on a larger file system",
    )
