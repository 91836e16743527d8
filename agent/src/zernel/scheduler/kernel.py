# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel says about sched_ext: its files in /sys/kernel/sched_ext, and why it ended a scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path("sys/kernel/sched_ext")

# enum scx_exit_kind of include/linux/sched/ext.h (7.3: kernel/sched/ext/internal.h)
EXIT_UNREG = 64  # by user space: the link was closed
EXIT_UNREG_BPF = 65
EXIT_UNREG_KERN = 66
EXIT_SYSRQ = 67
EXIT_ERROR = 1024
EXIT_ERROR_BPF = 1025
EXIT_ERROR_STALL = 1026

# enum scx_exit_code
_CODE_RESTART = 1 << 48  # SCX_ECODE_ACT_RESTART

_CAUSES = {
    EXIT_UNREG: "detached",
    EXIT_UNREG_BPF: "ended by itself",
    EXIT_UNREG_KERN: "ended by the kernel",
    EXIT_SYSRQ: "ended with sysrq-S",
    EXIT_ERROR: "error",
    EXIT_ERROR_BPF: "error found by the scheduler itself",
    EXIT_ERROR_STALL: "a task that could run was not run in time",
    1027: "a task was queued over and over without running",  # SCX_EXIT_ERROR_REENQ, 7.2
    1028: "too much was left to the kernel's rescue",  # SCX_EXIT_ERROR_RESCUE, 7.3
}


@dataclass(frozen=True, slots=True)
class Exit:
    """Why and with what words the kernel ended the scheduler. ``dump`` is its debug dump, often empty."""

    kind: int
    code: int
    reason: str
    message: str
    dump: str = ""

    @property
    def restart(self) -> bool:
        """Tell whether the kernel asks for the scheduler to be loaded anew (a CPU came or went)."""
        return self.kind == EXIT_UNREG_KERN and bool(self.code & _CODE_RESTART)

    @property
    def failed(self) -> bool:
        """Tell whether the scheduler was ejected, for an error of its own."""
        return self.kind >= EXIT_ERROR

    @property
    def stalled(self) -> bool:
        """Tell whether a task could run and was not run in time: by the scheduler, or for want of a CPU."""
        return self.kind == EXIT_ERROR_STALL

    @property
    def cause(self) -> str:
        """The kind, as a label and in words for people."""
        return _CAUSES.get(self.kind, f"kind {self.kind}")

    def sentence(self) -> str:
        """Return the kernel's reason and message in one line."""
        said = ": ".join(part.strip() for part in (self.reason, self.message) if part.strip())
        return said or self.cause


def state(root: Path = Path("/")) -> str | None:
    """Return ``enabled``, ``disabled``, ``enabling`` or ``disabling``; None without sched_ext."""
    return _text(root / DIRECTORY / "state")


def loaded_scheduler(root: Path = Path("/")) -> str | None:
    """Return the name of the scheduler that is loaded, by whomever."""
    return _text(root / DIRECTORY / "root/ops")


def hotplug_sequence(root: Path = Path("/")) -> int:
    """Return the number that changes whenever a CPU comes or goes; 0 where it cannot be read."""
    return _number(root / DIRECTORY / "hotplug_seq")


def enable_sequence(root: Path = Path("/")) -> int:
    """Return the number that grows whenever a scheduler is enabled; 0 where it cannot be read."""
    return _number(root / DIRECTORY / "enable_seq")


def events(root: Path = Path("/")) -> dict[str, int]:
    """Return what sched_ext counts about the scheduler that is loaded; nothing before Linux 6.15."""
    pairs = (line.split() for line in (_text(root / DIRECTORY / "root/events") or "").splitlines()[:64])
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2 and words[1].isdecimal()}


def _number(path: Path) -> int:
    text = _text(path) or ""
    return int(text) if text.isdecimal() else 0


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
