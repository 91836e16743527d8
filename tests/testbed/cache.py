# SPDX-License-Identifier: GPL-3.0-or-later
"""What is expensive to build is built once, kept under a hash of what it was built from, and never half.

An entry is a directory ``KIND-HASH``. It is built beside its place under a lock and renamed into it, so it
is there whole or not at all. The lock is an flock: it dies with its holder, and what a killed builder left
is removed by the next.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import disk_full, from_oserror

MIB = 1 << 20
_REMOVE_TRIES = 10


def recipe_hash(inputs: Mapping[str, object]) -> str:
    """Return 16 hex digits that change when any input does. Inputs must be what JSON can hold."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tree_hash(root: Path) -> str:
    """Return a hash over the names, modes and contents of all files below ``root``, or of one file."""
    digest = hashlib.sha256()
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    for path in files:
        name = str(path.relative_to(root)) if root.is_dir() else path.name
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{name}\0{path.stat().st_mode & 0o111:o}\0{content}\n".encode())
    return digest.hexdigest()


def default_root() -> Path:
    """Return ``$ZERNEL_CACHE``, else ``zernel`` under the user's cache directory (``~/.cache``)."""
    if chosen := os.environ.get("ZERNEL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zernel"


@dataclass(frozen=True)
class Cache:
    """A directory of finished builds."""

    root: Path

    @classmethod
    def default(cls) -> Cache:
        return cls(default_root())

    def path(self, kind: str, key: str) -> Path:
        """Return where an entry is, or would be."""
        return self.root / f"{kind}-{key}"

    def get(self, kind: str, key: str) -> Path | None:
        """Return an entry that is finished, or None."""
        path = self.path(kind, key)
        return path if path.is_dir() else None

    def ensure(self, kind: str, key: str, build: Callable[[Path], None], needs_mib: int) -> Path:
        """Return an entry, building it first when it is not there.

        ``build`` fills an empty directory. ``needs_mib`` MiB must be free before it starts. When it fails,
        for whatever reason, nothing of it stays.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if found := self.get(kind, key):
                return found
            with self._locked(kind, key):
                # The one that held the lock before us may have built it.
                return self.get(kind, key) or self._build(kind, key, build, needs_mib)
        except OSError as error:
            raise from_oserror(error, f"build the {kind}") from error

    def remove(self, kind: str, key: str) -> None:
        """Forget an entry."""
        remove_tree(self.path(kind, key))

    def entries(self, *kinds: str) -> list[Path]:
        """Return the finished entries of these kinds. Others may keep things in the same directory."""
        if not self.root.is_dir():
            return []
        pattern = re.compile(rf"({'|'.join(kinds)})-[0-9a-f]{{16}}")
        return sorted(path for path in self.root.iterdir() if pattern.fullmatch(path.name))

    def in_use(self) -> set[Path]:
        """Return the entries of which a running program has a file open, as QEMU has its guest's disk image.

        Those of programs that we may not look into (see proc_pid_fd(5)) are not seen.
        """
        root = self.root.resolve()
        used = set()
        for process in Path("/proc").iterdir():
            with suppress(OSError):  # ended since, or another user's
                for link in (process / "fd").iterdir():
                    used.update(self._entry_of(link, root))
        return used

    def _entry_of(self, link: Path, root: Path) -> list[Path]:
        with suppress(OSError):  # closed since
            opened = link.readlink()
            if opened.is_relative_to(root) and opened != root:
                return [self.root / opened.relative_to(root).parts[0]]
        return []

    def _build(self, kind: str, key: str, build: Callable[[Path], None], needs_mib: int) -> Path:
        partial = self.root / f".building-{kind}-{key}"
        remove_tree(partial)
        free_mib = shutil.disk_usage(self.root).free // MIB
        if free_mib < needs_mib:
            raise disk_full(
                f"build the {kind}", f"{self.root} has {free_mib} MiB free; {needs_mib} MiB are needed."
            )
        partial.mkdir()
        try:
            build(partial)
            final = self.path(kind, key)
            partial.rename(final)
        finally:
            remove_tree(partial)
        return final

    @contextmanager
    def _locked(self, kind: str, key: str) -> Iterator[None]:
        with (self.root / f".lock-{kind}-{key}").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"Another process is building the {kind}; waiting for it", file=sys.stderr, flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def remove_tree(path: Path) -> None:
    """Remove a directory tree if it is there. A mount below it is never entered."""
    if not path.exists():
        return
    if any(os.path.ismount(p) for p in (path / "proc", path / "sys", path / "dev")):
        raise OSError(f"{path} holds a mounted file system; unmount it first")
    for attempt in range(_REMOVE_TRIES):
        try:
            shutil.rmtree(path)
            return
        except OSError as error:
            # A builder that was killed a moment ago may still be creating files.
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or attempt == _REMOVE_TRIES - 1:
                raise
            time.sleep(0.2)
