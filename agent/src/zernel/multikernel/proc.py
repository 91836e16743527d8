# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel tells about CPUs and memory that the multikernel file system names by other numbers.

`apic_ids` reads /proc/cpuinfo (x86 only: other architectures have no such line), `offline_apic_ids` debugfs,
`regions` /proc/iomem. The files are given: a simulated kernel serves its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from zernel.devicetree.model import MAX_CPU

_MAX_LINES = 1 << 20
"""More than 8,192 CPUs have in /proc/cpuinfo, and than any host has in /proc/iomem."""
_APIC_ID = re.compile(r"apicid:\s*(?:0x)?([0-9a-f]{1,8})")
_RANGE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) : mk-instance-(\d+)-(.+)-region-(\d+)")


def apic_ids(cpuinfo: Path) -> dict[int, int]:
    """Return the physical (APIC) id of each CPU that is online, by its logical number; none if unreadable."""
    found: dict[int, int] = {}
    cpu: int | None = None
    for line in _lines(cpuinfo):
        key, _, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if key in ("processor", "apicid") and value.isascii() and value.isdigit() and len(value) < 12:
            if key == "processor":
                cpu = int(value)
            elif cpu is not None and cpu <= MAX_CPU:
                found[cpu] = int(value)
    return found


def offline_apic_ids(directory: Path, cpus: Iterable[int]) -> dict[int, int]:
    """Return the physical (APIC) id of each of these CPUs that has been online since the host was started.

    ``directory`` is debugfs's x86/topo/cpus (Linux 6.7; for root), a file for each CPU. What it shows is what
    /proc/cpuinfo shows of a CPU that is online, in hexadecimal, and the kernel keeps it.
    """
    found: dict[int, int] = {}
    for cpu in cpus:
        for line in _lines(directory / str(cpu)):
            if match := _APIC_ID.fullmatch(line.strip()):
                found[cpu] = int(match[1], 16)
    return found


def regions(iomem: Path, number: int, name: str) -> list[tuple[int, int]]:
    """Return the memory regions (base, bytes) of the instance with this id and name, the oldest first.

    None where the file cannot be read; without root, its addresses read as zero, and none are returned.
    """
    found = []
    for line in _lines(iomem):
        match = _RANGE.fullmatch(line.strip())
        if match and (int(match[3]), match[4]) == (number, name):
            start, end = int(match[1], 16), int(match[2], 16)
            if end > start:
                found.append((int(match[5]), start, end - start + 1))
    return [(start, size) for _, start, size in sorted(found)]


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="ascii", errors="replace") as lines:
            return [line for line, _ in zip(lines, range(_MAX_LINES), strict=False)]
    except OSError:
        return []
