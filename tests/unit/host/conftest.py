# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's /proc and /sys as plain files."""

from __future__ import annotations

from pathlib import Path

import pytest

MIB = 1024  # in kB, as in /proc/meminfo


class FakeHost:
    """A root directory with the files that the settings need."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for key, value in {
            "vm.swappiness": "60",
            "vm.dirty_ratio": "20",
            "vm.dirty_bytes": "0",
            "vm.dirty_background_ratio": "10",
            "vm.dirty_background_bytes": "0",
            "vm.nr_hugepages": "0",
            "vm.overcommit_memory": "0",
            "net.core.rmem_max": "212992",
            "net.core.default_qdisc": "pfifo_fast",
            "net.ipv4.tcp_rmem": "4096\t131072\t6291456",
            "net.ipv4.tcp_congestion_control": "cubic",
            "net.ipv4.tcp_available_congestion_control": "reno cubic",
            "kernel.osrelease": "7.3.4-test",
            "kernel.core_pattern": "core",
            "fs.file-max": "9223372036854775807",
        }.items():
            self.set(key, value)
        self.write("proc/swaps", "Filename Type Size Used Priority\n")
        self.memory(64 * 1024 * MIB)
        self.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
        self.write("lib/modules/7.3.4-test/modules.dep", "kernel/net/ipv4/tcp_bbr.ko.xz:\n")
        self.write("lib/modules/7.3.4-test/modules.builtin", "kernel/net/sched/sch_fq.ko\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def set(self, key: str, value: str) -> None:
        self.write(f"proc/sys/{key.replace('.', '/')}", value + "\n")

    def get(self, key: str) -> str:
        return " ".join(self.read(f"proc/sys/{key.replace('.', '/')}").split())

    def memory(self, total_kb: int, available_kb: int | None = None) -> None:
        available = total_kb if available_kb is None else available_kb
        self.write(
            "proc/meminfo",
            f"MemTotal: {total_kb} kB\nMemAvailable: {available} kB\n"
            "HugePages_Total: 0\nHugepagesize: 2048 kB\n",
        )

    def snapshot(self) -> dict[str, str]:
        """Everything but the lock, to show that nothing has changed."""
        return {
            str(path.relative_to(self.root)): path.read_text()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path.suffix != ".lock"
        }


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)
