# SPDX-License-Identifier: GPL-3.0-or-later
"""What the checks of ``zernel doctor`` share: the host that is looked at, and the form of a finding."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from zernel.host.kernel_options import KernelReport, Source, report

if TYPE_CHECKING:
    from zernel.host.doctor_trial import Trial


class State(enum.Enum):
    """What is known of a capability."""

    OK = "ok"
    MISSING = "missing"
    NOT_NEEDED = "not-needed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check. ``details`` holds figures for programs."""

    state: State
    reason: str
    suggestion: str | None = None
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capability:
    """A finding with its capability's name."""

    name: str
    title: str
    state: State
    reason: str
    suggestion: str | None
    details: dict[str, object]

    @classmethod
    def of(cls, name: str, title: str, finding: Finding) -> Capability:
        """Join a name and a finding."""
        return cls(name, title, finding.state, finding.reason, finding.suggestion, finding.details)

    def as_dict(self, required: bool) -> dict[str, object]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "title": self.title,
            "state": self.state.value,
            "required": required,
            "reason": self.reason,
            "suggestion": self.suggestion,
            "details": self.details,
        }


class Host:
    """The host that is looked at.

    With a ``root`` other than / only files are read: whatever asks the running kernel (system calls, trial
    attachments, the NVIDIA library) is left out, and the finding says so.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.live = root.resolve() == Path("/")
        self.is_root = os.geteuid() == 0
        self.machine = os.uname().machine

    @cached_property
    def kernel(self) -> KernelReport:
        """The running kernel's options and type information."""
        return report(Source(root=self.root))

    @cached_property
    def trial(self) -> Trial | None:
        """A real load and attachment; None where it cannot be made (no root, or another root directory)."""
        if not (self.live and self.is_root):
            return None
        from zernel.host.doctor_trial import Trial

        return Trial()

    def close(self) -> None:
        """Undo the trial, if it was made."""
        trial = self.__dict__.get("trial")
        if trial is not None:
            trial.close()

    @property
    def untried(self) -> str:
        """Why no trial was made, to be added to a reason; empty when it was."""
        if self.trial is not None:
            return ""
        return "; not tried (needs root)" if self.live else "; not tried (another root directory)"

    def text(self, path: str) -> str | None:
        """Return a file below the root, stripped; None when it is not there or may not be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return None

    def mounts(self) -> list[tuple[str, str]]:
        """Return (place, file system type) of each mount that this process sees."""
        lines = (self.text("proc/self/mounts") or self.text("proc/mounts") or "").splitlines()
        return [(fields[1], fields[2]) for fields in map(str.split, lines) if len(fields) > 2]

    def option(self, name: str) -> str | None:
        """Return a kernel option's value (``y``, ``m``, ``n`` …); None where it is not known."""
        for option in self.kernel.options:
            if option.want.option == f"CONFIG_{name}":
                return option.found
        return None
