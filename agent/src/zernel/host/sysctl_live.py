# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's settings as they are: /proc/sys, transparent huge pages, memory, swap, modules.

The only place of this package that reads or writes a live setting. ``root`` redirects all of it.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from zernel.host.sysctl_input import relative_path

THP_PREFIX = "transparent_hugepage."
"""Keys with this prefix are files of /sys/kernel/mm/transparent_hugepage, which no sysctl reaches."""

_THP_DIRECTORY = Path("sys/kernel/mm/transparent_hugepage")


@dataclass(frozen=True, slots=True)
class Memory:
    """What bounds a reservation, all in bytes (from /proc/meminfo)."""

    total: int
    available: int
    page_size: int  # of a huge page of the default size
    reserved_other: int  # held by huge pages of other sizes


class LiveSettings:
    """Reads and writes settings below ``root``."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Return the file of a key."""
        if key.startswith(THP_PREFIX):
            return self.root / _THP_DIRECTORY / key.removeprefix(THP_PREFIX)
        return self.root / "proc/sys" / relative_path(key)

    def exists(self, key: str) -> bool:
        """Whether the running kernel has the key (a directory such as net.ipv4 is none)."""
        return ".." not in relative_path(key).split("/") and self.path(key).is_file()

    def read(self, key: str) -> str:
        """Return the value with single blanks between its fields. Of a choice, the word that is chosen.

        :raises OSError: where it cannot be read.
        """
        text = " ".join(self.path(key).read_text(encoding="utf-8", errors="replace").split())
        chosen = re.search(r"\[([^][ ]+)\]", text) if key.startswith(THP_PREFIX) else None
        return chosen[1] if chosen else text

    def choices(self, key: str) -> list[str] | None:
        """Return the words that a key accepts, where the kernel tells."""
        if key.startswith(THP_PREFIX):
            words = self.path(key).read_text(errors="replace").split()
            return [word.strip("[]") for word in words] if len(words) > 1 else None
        if key == "net.ipv4.tcp_congestion_control":
            try:
                return self.read("net.ipv4.tcp_available_congestion_control").split()
            except OSError:
                return None
        return None

    def write(self, key: str, value: str) -> None:
        """Write one value in one call, as /proc/sys wants it. :raises OSError: with the kernel's reason."""
        fd = os.open(self.path(key), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, f"{value}\n".encode())
        finally:
            os.close(fd)

    def similar(self, key: str) -> list[str]:
        """Return up to three keys that exist and resemble ``key``."""
        top = self.root / "proc/sys"
        known = []
        for directory, _, files in os.walk(top):
            prefix = str(Path(directory).relative_to(top))
            known += [f"{prefix}/{name}".translate(str.maketrans("./", "/.")) for name in files]
        return difflib.get_close_matches(key, known, n=3, cutoff=0.75)

    def memory(self) -> Memory | None:
        """Return the host's memory, or None where /proc/meminfo cannot be read."""
        try:
            text = (self.root / "proc/meminfo").read_text(errors="replace")
        except OSError:
            return None
        pairs = re.findall(r"^(\w+):\s+(\d+)(?: (kB))?$", text, re.MULTILINE)
        fields = {name: int(number) * (1024 if unit else 1) for name, number, unit in pairs}
        if "MemTotal" not in fields:
            return None
        page_size = fields.get("Hugepagesize", 2 << 20)
        default_size = fields.get("HugePages_Total", 0) * page_size
        return Memory(
            total=fields["MemTotal"],
            available=fields.get("MemAvailable", 0),
            page_size=page_size,
            reserved_other=max(0, fields.get("Hugetlb", default_size) - default_size),
        )

    def swap_in_use(self) -> list[str] | None:
        """Return the active swap areas (/proc/swaps), or None where that cannot be read."""
        try:
            lines = (self.root / "proc/swaps").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []  # a kernel without CONFIG_SWAP
        except OSError:
            return None
        return [line.split()[0] for line in lines[1:] if line.strip()]

    def module_state(self, module: str) -> str | None:
        """Say how the running kernel has a module: ``builtin``, ``module``, ``absent``; None if unknown."""
        try:
            release = (self.root / "proc/sys/kernel/osrelease").read_text(errors="replace").strip()
        except OSError:
            return None
        directory = self.root / "lib/modules" / release
        wanted = f"/{module}.ko"
        seen = False
        for name, state in (("modules.builtin", "builtin"), ("modules.dep", "module")):
            try:
                text = (directory / name).read_text(errors="replace")
            except OSError:
                continue
            seen = True
            first_words = (line.partition(":")[0] for line in text.splitlines())
            if any(wanted in word.replace("-", "_") for word in first_words):
                return state
        return "absent" if seen else None
