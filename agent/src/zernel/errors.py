# SPDX-License-Identifier: GPL-3.0-or-later
"""What went wrong, in the form that every Zernel program shows it.

The form is that of the kerf document: a headline ``ERROR: <subject>: <category>``, an explanation, the
current state, the conflict, a suggestion, an alternative, and the file and line where the cause stands.
"""

from __future__ import annotations

import errno

from zernel.record import Record


class Location(Record):
    """A place in a file that a person wrote. ``line`` counts from 1; ``source`` is that line's text."""

    file: str
    line: int | None = None
    source: str | None = None


class Problem(Record):
    """One finding: an error or a warning.

    ``code`` is stable and for programs (kebab-case, e.g. ``cpu-overlap``); all else is for people.
    ``subject`` is the instance, file, device or service concerned.
    """

    code: str
    category: str
    subject: str | None = None
    explanation: tuple[str, ...] = ()
    current_state: str | None = None
    conflict: str | None = None
    suggestion: str | None = None
    alternative: str | None = None
    locations: tuple[Location, ...] = ()
    severity: str = "ERROR"
    note: str | None = None
    context: tuple[str, ...] = ()
    did_you_mean: tuple[str, ...] = ()

    def render(self) -> str:
        """Return the finding as text in the document's form, without a trailing newline."""
        headline = f"{self.subject}: {self.category}" if self.subject else self.category
        lines = [f"{self.severity}: {headline}"]
        lines += [f"  {text}" for text in self.explanation]
        if self.current_state:
            lines.append(f"  Current state: {self.current_state}")
        if self.conflict:
            lines.append(f"  Conflict: {self.conflict}")
        if self.suggestion or self.alternative or self.note:
            lines.append("")
        if self.suggestion:
            lines.append(f"  Suggestion: {self.suggestion}")
        if self.alternative:
            lines.append(f"  Alternative: {self.alternative}")
        if self.note:
            lines.append(f"  Note: {self.note}")
        file = None
        for location in self.locations:
            if location.file != file:
                lines += ["", f"  In file {location.file}{':' if location.line is not None else ''}"]
                file = location.file
            if location.line is not None:
                lines.append(f"    Line {location.line}: {(location.source or '').strip()}".rstrip())
        if self.context:
            lines += ["", "  Context:", *(f"    {text}" for text in self.context)]
        if self.did_you_mean:
            lines += ["", "  Did you mean:", *(f"    - {text}" for text in self.did_you_mean)]
        return "\n".join(harmless(line) for text in lines for line in text.split("\n"))

    def as_dict(self) -> dict[str, object]:
        """Return the finding for JSON: code, message, instance, suggestion, file, line, and more."""
        first = self.locations[0] if self.locations else None
        return {
            "code": self.code,
            "message": ": ".join(filter(None, (self.category.rstrip("."), "; ".join(self.explanation)))),
            "instance": self.subject,
            "current_state": self.current_state,
            "conflict": self.conflict,
            "suggestion": self.suggestion,
            "alternative": self.alternative,
            "note": self.note,
            "context": list(self.context),
            "did_you_mean": list(self.did_you_mean),
            "file": first.file if first else None,
            "line": first.line if first else None,
            "locations": [
                {"file": place.file, "line": place.line, "source": place.source} for place in self.locations
            ],
        }


MAX_LINE = 500
"""Characters of a line that are shown; what was read from a file may be of any length."""


def harmless(line: str) -> str:
    """Return the line as a terminal may get it: escape sequences from a file shown, not obeyed, and cut."""
    if len(line) > MAX_LINE:
        line = f"{line[:MAX_LINE]}…"
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in line)


class ZernelError(Exception):
    """One or more problems that stop a command. Programs show them and exit 1.

    Nothing has been changed, or they say what was.
    """

    def __init__(self, *problems: Problem) -> None:
        if not problems:
            raise ValueError("a ZernelError needs at least one problem")
        self.problems = problems
        super().__init__("; ".join(p.category for p in problems))


def fail(
    code: str,
    category: str,
    *,
    subject: str | None = None,
    explanation: str | tuple[str, ...] = (),
    current_state: str | None = None,
    conflict: str | None = None,
    suggestion: str,
    alternative: str | None = None,
    location: Location | None = None,
) -> ZernelError:
    """Build the error for a single problem; use as ``raise fail(...)``."""
    return ZernelError(
        Problem(
            code=code,
            category=category,
            subject=subject,
            explanation=(explanation,) if isinstance(explanation, str) else explanation,
            current_state=current_state,
            conflict=conflict,
            suggestion=suggestion,
            alternative=alternative,
            locations=(location,) if location else (),
        )
    )


def from_oserror(error: OSError, doing: str) -> ZernelError:
    """Turn an operating-system error into one with words: ``doing`` completes "Cannot ..."."""
    where = f" {error.filename}" if error.filename else ""
    return fail(
        "os-error",
        f"Cannot {doing}",
        explanation=f"{error.strerror or error}{where}",
        suggestion=os_suggestion(error, "Correct what the line above names, then run it again"),
    )


def os_suggestion(error: OSError, otherwise: str) -> str:
    """Return what to do about an operating-system error, or ``otherwise`` where its number does not tell."""
    return _OS_SUGGESTIONS.get(error.errno or 0, otherwise)


def internal(error: Exception) -> ZernelError:
    """Turn an exception that nobody foresaw into an error with words, in place of a traceback."""
    return fail(
        "internal",
        "Internal error: this is a defect in Zernel",
        explanation=f"{type(error).__name__}: {error}",
        suggestion="Run again with ZERNEL_LOG=debug and report the traceback",
    )


_OS_SUGGESTIONS: dict[int, str] = {
    errno.EACCES: "Run the command as root",
    errno.EPERM: "Run the command as root",
    errno.ENOENT: "Check that the path exists",
    errno.EISDIR: "Name a file, not a directory",
    errno.ENOTDIR: "Name a directory, not a file",
    errno.ENOSPC: "Free some space on that file system, then run it again",
    errno.EDQUOT: "Free some of the quota, then run it again",
    errno.EROFS: "Mount that file system for writing, or name a place on another one",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "Free some memory, then run it again",
    errno.EIO: "Check the disk: the kernel's log (dmesg) says what failed",
}
