# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host had before Zernel touched it, and the files that make settings last.

The record (/var/lib/zernel/tuning-before.json) is written before the first live value changes. Per key it
holds the value of first touch; a rollback writes these back. Its form, stable::

    {"version": 1, "values": {"vm.swappiness": "60"}, "files": {"/etc/sysctl.d/99-zernel.conf": null}}

While a change is in progress, ``"writing": {"vm.swappiness": ["1"]}`` stands in it too: the values that a run
writes, several where runs were killed one after the other. A run that ends takes it out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from zernel import files
from zernel.errors import fail
from zernel.host.sysctl_live import THP_PREFIX

SYSCTL_FILE = "etc/sysctl.d/99-zernel.conf"
TMPFILES_FILE = "etc/tmpfiles.d/zernel.conf"
MODULES_FILE = "etc/modules-load.d/zernel.conf"
RECORD_FILE = "var/lib/zernel/tuning-before.json"

_HEADER = "# Written by 'zernel sysctl apply'. The next run replaces this file: change the input instead.\n"
_SYSCTL_DIRECTORIES = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")


@dataclass
class Record:
    """First-touch values and files; ``writing`` is the journal of a change that has not ended."""

    values: dict[str, str] = field(default_factory=dict)
    files: dict[str, str | None] = field(default_factory=dict)
    writing: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path) -> Record:
        """Read the record; an empty one where there is none. :raises ZernelError: for a damaged one."""
        path = root / RECORD_FILE
        text = files.read_text(path)
        if text is None:
            return cls()
        try:
            data = json.loads(text)
            if data["version"] != 1:
                raise ValueError(f"version {data['version']!r}")
            values = {str(key): str(value) for key, value in data["values"].items()}
            writing = {
                str(key): [str(word) for word in words] for key, words in data.get("writing", {}).items()
            }
            before = {str(key): None if text is None else str(text) for key, text in data["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise fail(
                "tuning-record-damaged",
                "The record of the host's previous settings cannot be read",
                subject=str(path),
                explanation=f"{type(error).__name__}: {error}",
                suggestion="Restore it from a backup; or move it away, and Zernel takes today's values "
                "as the ones to go back to",
            ) from error
        return cls(values, before, writing)

    def save(self, root: Path) -> None:
        """Write the record, for root alone; remove it when nothing is left in it."""
        path = root / RECORD_FILE
        if not self.values:
            files.remove(path)
            return
        data: dict[str, object] = {"version": 1, "values": self.values, "files": self.files}
        if self.writing:
            data["writing"] = self.writing
        files.replace(path, json.dumps(data, indent=2) + "\n", mode=0o600)


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file of ours as it is and as it becomes; None means that there is none."""

    path: str  # with a leading slash, as on the host
    before: str | None
    after: str | None

    @property
    def changed(self) -> bool:
        return self.before != self.after


def render_sysctl(lines: list[tuple[str, str, list[str]]]) -> str | None:
    """Return the text of 99-zernel.conf for (key, value, comments). A comment never shares a line."""
    parts = [
        "".join(f"# {comment}\n" for comment in comments) + f"{key} = {value}\n"
        for key, value, comments in lines
        if not key.startswith(THP_PREFIX)
    ]
    return _HEADER + "\n" + "\n".join(parts) if parts else None


def render_tmpfiles(lines: list[tuple[str, str, list[str]]]) -> str | None:
    """Return the text of the tmpfiles.d file for what no sysctl reaches."""
    parts = [
        "".join(f"# {comment}\n" for comment in comments)
        + f"w /sys/kernel/mm/transparent_hugepage/{key.removeprefix(THP_PREFIX)} - - - - {value}\n"
        for key, value, comments in lines
        if key.startswith(THP_PREFIX)
    ]
    return _HEADER + "\n" + "\n".join(parts) if parts else None


def render_modules(modules: list[str]) -> str | None:
    """Return the text of the modules-load.d file: loaded before systemd-sysctl sets what needs them."""
    return _HEADER + "".join(f"{name}\n" for name in sorted(set(modules))) if modules else None


def file_change(root: Path, relative: str, after: str | None) -> FileChange:
    """Compare a file of ours with what it should hold."""
    return FileChange("/" + relative, files.read_text(root / relative), after)


def values_in(text: str | None) -> dict[str, str]:
    """Return the settings of a sysctl.d text, without judging it."""
    found = {}
    for line in (text or "").splitlines():
        key, equals, value = line.strip().lstrip("-").partition("=")
        if equals and key and key[0] not in "#;":
            found[key.strip()] = " ".join(value.split())
    return found


def ours(root: Path) -> dict[str, str]:
    """Return every setting that our files hold."""
    found = values_in(files.read_text(root / SYSCTL_FILE))
    for line in (files.read_text(root / TMPFILES_FILE) or "").splitlines():
        words = line.split()
        if len(words) == 7 and words[0] == "w":
            found[THP_PREFIX + Path(words[1]).name] = words[6]
    return found


def overridden(root: Path, values: dict[str, str]) -> list[str]:
    """Return a warning for each of our settings that a later file of sysctl.d changes again at boot."""
    by_name: dict[str, Path] = {}
    for directory in _SYSCTL_DIRECTORIES:  # of files with one name, the first directory's counts
        for path in sorted((root / directory).glob("*.conf")):
            by_name.setdefault(path.name, path)
    warnings = []
    for name in sorted(name for name in by_name if name > Path(SYSCTL_FILE).name):
        for key, value in values_in(files.read_text(by_name[name])).items():
            if key in values and values[key] != value:
                shown = "/" + str(by_name[name].relative_to(root))
                warnings.append(
                    f"{shown} comes later at boot and sets {key} = {value}; remove the line there"
                )
    return warnings
