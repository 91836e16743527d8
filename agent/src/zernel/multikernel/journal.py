# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock, the journal and the history that make a change to the instances a transaction.

They stand in ``/var/lib/zernel/multikernel/ROOT`` (``ZERNEL_STATE_DIR`` replaces /var/lib/zernel), one
directory for each multikernel file system: a kernel has one, wherever it is mounted and however often, and a
simulation goes by its mount. The lock is flock(2) on a file: the kernel drops it when its
holder dies, so a file that was left behind means nothing. The journal holds the change in progress, written
before the kernel is asked and removed after its answer was read; what a killed command left is settled by the
next one. The history holds the last `HISTORY` changes, one file each, for ``zernel rollback``. A deletion
that is made while the journal holds what cannot be settled has a journal of its own, ``beside`` that one.

What an entry says is true of one boot of the kernel, or one run of a simulation (``identity``): transactions
are numbered anew with each, and equal changes have equal overlays. While the change is made, the entry is
rewritten before each overlay that takes a step back. From then on it has the transaction of every step that
was taken (``made``), as the overlay that undoes one step can be byte for byte that of another, and the
steps taken back (``undone``). What settling does with it is in `zernel.multikernel.settling`.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from zernel import files
from zernel.devicetree.model import DeviceUse, Instance
from zernel.devicetree.units import device_use
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import mounts
from zernel.multikernel.changes import Step
from zernel.multikernel.fs import DEFAULT_ROOT, MultikernelFs
from zernel.record import Record

HISTORY = 64
"""Changes that are kept for a rollback."""
MAX_BYTES = 4 << 20
"""More than the largest change takes: 512 instances, before and after."""
FORMAT = 2
"""Of the entries. Those of the first had neither an identity nor the transactions of single steps."""
_JOURNAL = "The journal of instance changes"
ACTIONS = ("create", "delete", "update", "rollback", "apply")


class Entry(Record):
    """A change: what one command does, all or nothing.

    ``overlays`` are the SHA-256 of the steps' overlays, ``identity`` is `MultikernelFs.identity`; None in
    the history of an older Zernel. While it is in progress, ``before`` are the transactions that there were
    before it. Once it is being undone, ``made`` are the steps' transactions (None: there is none), and
    ``undone`` the step (its index) and the SHA-256 of each overlay that was to take a step back, in order.
    Once it is done, ``transactions`` are the kernel's numbers for its steps. ``undoes`` is the number of the
    change that a rollback took back. ``physical_ids`` says by which numbers CPUs went (`Wire.physical_ids`).
    """

    number: int
    action: str
    steps: tuple[Step, ...]
    overlays: tuple[str, ...]
    identity: str | None
    before: tuple[int, ...] = ()
    made: tuple[int | None, ...] = ()
    undone: tuple[tuple[int, str], ...] = ()
    transactions: tuple[int, ...] = ()
    undoes: int | None = None
    physical_ids: bool = False

    @property
    def command(self) -> str:
        """The command as a person gave it, without its options."""
        alone = self.action in ("create", "delete", "update")
        return f"zernel {self.action} {self.steps[0].name}" if alone else f"zernel {self.action}"

    def done(self, transactions: tuple[int, ...]) -> Entry:
        """Return the entry as the history has it."""
        return self.but(before=(), made=(), undone=(), transactions=transactions)


def directory_of(fs: MultikernelFs) -> Path:
    """Return where what Zernel knows of a multikernel file system is kept, for any of its mounts.

    Its name is the path as systemd-escape(1) writes it, so that no two paths share one.
    """
    state = Path(os.environ.get("ZERNEL_STATE_DIR") or "/var/lib/zernel")
    root = mounts.first_path(fs.root) if fs.simulated else DEFAULT_ROOT
    name = str(root).strip("/").replace("\\", "\\x5c").replace("-", "\\x2d").replace("/", "-") or "-"
    if fs.simulated and root == DEFAULT_ROOT:
        name += "~simulated"  # it must not share the kernel's inventory
    return state / "multikernel" / name


class Journal:
    """The journal of one multikernel file system, or the one ``beside`` it. Use it under its `lock`."""

    def __init__(self, fs: MultikernelFs, *, beside: bool = False) -> None:
        self.directory = directory_of(fs)
        self.locked = self.directory / "lock"
        self.first = self.directory / "journal.json"
        self.path = self.directory / "deletion.json" if beside else self.first
        self.done = self.directory / "history"

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock; raises `ZernelError` with the holder's pid when it stays taken."""
        return files.locked(self.locked, "is changing the instances")

    def is_locked(self) -> bool:
        """Say whether a command holds the lock now, as far as that can be told."""
        return files.is_locked(self.locked)

    def begin(self, entry: Entry) -> None:
        """Record a change before the kernel is asked for it; on disk when this returns."""
        files.replace(self.path, _text(entry))

    def end(self) -> None:
        """Forget the change: its outcome was read."""
        files.remove(self.path)

    def commit(self, entry: Entry) -> None:
        """Move a change that was done (`Entry.done`) into the history.

        Killed in between, it is in both; the next command moves it once more, to the same file.
        """
        files.replace(self.done / f"{entry.number}.json", _text(entry))
        for number in self._numbers()[:-HISTORY]:
            with suppress(IsADirectoryError):  # a rollback tells of it
                files.remove(self.done / f"{number}.json")
        self.end()

    def next_number(self) -> int:
        """Return the number for a new change; one that is not settled may still need its own."""
        waiting = _read(self.first, _JOURNAL)
        return max((*self._numbers(), waiting.number if waiting else 0)) + 1

    def pending(self) -> Entry | None:
        """Return the change that a command began and did not end, or None.

        Raises `ZernelError` for one that is not understood, among them those of an older Zernel: what became
        of their single steps cannot be told.
        """
        entry = _read(self.path, _JOURNAL)
        if entry is not None and entry.identity is None:
            raise fail(
                "journal-older",
                "An older version of Zernel began a change and did not finish it",
                subject=entry.steps[0].name,
                explanation=f"'{entry.command}', in {self.path}",
                suggestion="Compare 'zernel show' with what you expect, then end that change:"
                " zernel rollback --give-up",
            )
        return entry

    def history(self, foreseen: tuple[Entry, ...] = ()) -> list[Entry]:
        """Return the changes that were done, the newest first; in a dry run with those that settling would
        record."""
        found = {entry.number: entry for entry in foreseen}
        for number in self._numbers():
            entry = _read(self.done / f"{number}.json", "The history of instance changes")
            if entry is not None:
                found[entry.number] = entry
        return [found[number] for number in sorted(found, reverse=True)[:HISTORY]]

    def _numbers(self) -> list[int]:
        try:
            names = [path.stem for path in self.done.iterdir() if path.suffix == ".json"]
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 16)


def _text(entry: Entry) -> str:
    steps = [[_instance_data(step.before), _instance_data(step.after)] for step in entry.steps]
    return json.dumps(vars(entry) | {"steps": steps, "format": FORMAT})


def _instance_data(instance: Instance | None) -> dict[str, Any] | None:
    return None if instance is None else vars(instance) | {"devices": list(map(str, instance.devices))}


def misplaced(path: Path, *, directory: bool = False) -> list[Problem]:
    """Return the problem of what stands in the place of a file, or of a directory: a FIFO, for one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    if stat.S_ISDIR(mode) if directory else stat.S_ISREG(mode):
        return []
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFREG: "a file", stat.S_IFIFO: "a FIFO"}
    kind = kinds.get(stat.S_IFMT(mode), "a device or a socket")
    wanted = "directory" if directory else "file"
    look, remove = ("See what is in it, then remove", "rm -r") if stat.S_ISDIR(mode) else ("Remove", "rm")
    return [
        Problem(
            "state-misplaced",
            f"In the place of a {wanted} that Zernel keeps stands {kind}",
            explanation=(f"{path} is {kind}; Zernel did not make it",),
            suggestion=f"{look} it: {remove} {shlex.quote(str(path))}",
        )
    ]


def _read(path: Path, what: str) -> Entry | None:
    """Return the entry in a file, None where there is no file; raises `ZernelError` for another content."""
    if problems := misplaced(path):
        raise ZernelError(*problems)
    try:
        return _entry(json.loads(files.read_regular(path, MAX_BYTES)))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise fail(
            "journal-broken",
            f"{what} cannot be read",
            explanation=f"{path}: {error}",
            suggestion=f"Compare 'zernel show' with what you expect, then remove {path}",
        ) from error


def _entry(data: Any) -> Entry:
    """Return the entry; raises ValueError, KeyError or TypeError unless `_text` can have written it."""
    if data["action"] not in ACTIONS:
        raise ValueError(f"'action' is {data['action']!r}, none of {', '.join(ACTIONS)}")
    version = data.get("format", 1)
    if version not in (1, FORMAT):
        raise ValueError(f"its format is {str(version)[:20]!r}: a newer Zernel wrote it")
    steps = tuple(Step(_instance(before), _instance(after)) for before, after in data["steps"])
    overlays = _all(data, "overlays", str)
    if not steps or len(steps) != len(overlays):
        raise ValueError("'steps' and 'overlays' do not go together")
    if any(step.before is step.after for step in steps):
        raise ValueError("'steps' holds one of nothing")
    undoes = data["undoes"]
    made: tuple[int | None, ...] = ()
    undone: tuple[tuple[int, str], ...] = ()
    if version != 1:
        made = tuple(None if one is None else _checked(one, int) for one in _listed(data, "made"))
        undone = tuple((_checked(index, int), _checked(sha, str)) for index, sha in _listed(data, "undone"))
        if len(made) not in (0, len(steps)) or any(index not in range(len(steps)) for index, _ in undone):
            raise ValueError("'made' or 'undone' does not go with 'steps'")
    return Entry(
        _checked(data["number"], int),
        data["action"],
        steps,
        overlays,
        None if version == 1 else _checked(data["identity"], str),
        _all(data, "before", int),
        made,
        undone,
        _all(data, "transactions", int),
        None if undoes is None else _checked(undoes, int),
        _checked(data.get("physical_ids", False), bool),
    )


def _instance(data: Any) -> Instance | None:
    if data is None:
        return None
    devices = tuple(device_use(text) or DeviceUse(text) for text in _all(data, "devices", str))
    texts = [data[name] for name in ("cpu_affinity", "memory_policy")]
    return Instance(
        _checked(data["name"], str),
        None if data["id"] is None else _checked(data["id"], int),
        _all(data, "cpus", int),
        _checked(data["memory_base"], int),
        _checked(data["memory_bytes"], int),
        devices,
        _all(data, "numa_nodes", int),
        *(None if text is None else _checked(text, str) for text in texts),
    )


def _all(data: Any, name: str, kind: type) -> tuple[Any, ...]:
    return tuple(_checked(value, kind) for value in _listed(data, name))


def _listed(data: Any, name: str) -> list[Any]:
    found = data[name]
    if not isinstance(found, list):
        raise ValueError(f"'{name}' is no list")
    return found


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{str(value)[:40]!r} is no {kind.__name__}")
    return value
