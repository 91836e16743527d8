# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes, CPU lists and device names as people write them, bounded before anything is expanded."""

from __future__ import annotations

import re
from collections.abc import Callable

from zernel.devicetree.model import MAX_CPU, MAX_INSTANCE_ID, MAX_NODE, PAGE_BYTES, DeviceUse
from zernel.errors import ZernelError, fail

TYPE_CHECKING = False  # as typing's, whose import would cost every command 3 ms
if TYPE_CHECKING:
    from collections.abc import Iterable

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
# Not compiled here: re does that at the first use and remembers, and 'zernel init' uses none of them.
_SIZE = r"(?ai)(\d{1,20})(?:\.(\d{1,6}))?\s*([KMGT]?)(?:I?B)?"
_HEX = r"(?ai)0x([0-9a-f]{1,16})"
_RANGE = r"(?a)(\d{1,9})(?:-(\d{1,9}))?"
_DEVICE = r"(?a)([A-Za-z0-9][A-Za-z0-9._-]{0,62}?)(?:[:_](vf|ns)(\d{1,9}))?"


def format_size(size: int) -> str:
    """Return ``size`` bytes in the document's form: ``16GB`` is 16 × 2^30 bytes. At most two decimals."""
    for unit, shift in (("TB", 40), ("GB", 30), ("MB", 20), ("KB", 10)):
        if size >= 1 << shift and (shift < 40 or size % (1 << 40) == 0):
            return f"{size / (1 << shift):.2f}".rstrip("0").rstrip(".") + unit
    return f"{size} bytes"


def exact_size(size: int) -> str:
    """Return ``size`` bytes as `parse_size` reads it back, with nothing rounded: ``2GB``, ``4100KB``."""
    for unit, shift in (("TB", 40), ("GB", 30), ("MB", 20), ("KB", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return str(size)


def parse_size(text: str, option: str) -> int:
    """Return the bytes of ``2GB``, ``512MB``, ``1.5G``, ``0x80000000`` or ``4096``; units are powers of
    1,024.

    Raises `ZernelError` for anything else and for sizes beyond 64 bits.
    """
    match = re.fullmatch(_SIZE, text)
    size: int
    if match:
        whole, fraction, unit = match.groups()
        fraction = fraction or ""
        scaled: int = int(whole + fraction) << _UNITS[unit.upper()]
        size, rest = divmod(scaled, 10 ** len(fraction))
    else:
        digits = re.fullmatch(_HEX, text)
        size, rest = (int(digits.group(1), 16), 0) if digits else (-1, 0)
    if rest or not 0 <= size < 1 << 64:
        raise fail(
            "bad-size",
            f"{option}: '{text[:60]}' is no size",
            explanation="A size is a number of bytes below 2^64, whole, not negative, with an optional unit",
            suggestion=f"Write it as {option}=2GB, {option}=512MB or {option}=0x80000000",
        )
    return size


def parse_memory(text: str, option: str) -> int:
    """Return the bytes of a memory size: like `parse_size`, and a positive number of 4 KiB pages."""
    size = parse_size(text, option)
    if size == 0 or size % PAGE_BYTES:
        rounded = max(PAGE_BYTES, (size + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES)
        rounded = min(rounded, (1 << 64) - PAGE_BYTES)
        raise fail(
            "bad-memory-size",
            f"{option}: {size} bytes is no usable amount of memory",
            explanation="Memory is given away in whole pages of 4KB (0x1000), at least one",
            suggestion=f"Use {option}={exact_size(rounded)}" if size else f"Write it as {option}=2GB",
        )
    return size


def parse_base(text: str, option: str) -> int:
    """Return a memory address: like `parse_size`, and the first of a page."""
    base = parse_size(text, option)
    if base % PAGE_BYTES:
        raise fail(
            "memory-not-aligned",
            "Memory base address not page-aligned",
            explanation=(
                f"Requested base: {base:#x}",
                "Page size: 4KB (0x1000)",
                "Alignment requirement: Address must be multiple of 0x1000",
            ),
            suggestion=f"Use base address {base // PAGE_BYTES * PAGE_BYTES:#x} (already aligned)"
            if base > PAGE_BYTES
            else "Use an address in the memory pool: zernel show",
        )
    return base


def parse_number(text: str, option: str, highest: int) -> int:
    """Return a whole number from 1 to ``highest``; raises `ZernelError` for anything else."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= number <= highest:
        raise fail(
            "bad-number",
            f"{option}: '{text[:60]}' is not possible",
            explanation=f"It takes a whole number from 1 to {highest}",
            suggestion=f"Write it as {option}=4",
        )
    return number


def format_cpus(cpus: Iterable[int]) -> str:
    """Return a sorted CPU list in ranges, ``4-7,9``; ``none`` for no CPU."""
    parts: list[str] = []
    ordered = sorted(set(cpus))
    first = 0
    for index, cpu in enumerate(ordered):
        if index + 1 == len(ordered) or ordered[index + 1] != cpu + 1:
            start = ordered[first]
            parts.append(str(cpu) if start == cpu else f"{start}-{cpu}")
            first = index + 1
    return ",".join(parts) or "none"


def parse_cpus(text: str, option: str) -> tuple[int, ...]:
    """Return the CPUs of ``4-7,9`` in ascending order. Raises `ZernelError`; never expands beyond
    `MAX_CPU`."""
    cpus: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(_RANGE, part.strip())
        if match is None:
            raise _bad_cpus(text, option, f"'{part.strip()[:40]}' is neither a CPU number nor a range")
        first = int(match.group(1))
        last = int(match.group(2) or first)
        if first > last:
            raise _bad_cpus(
                text, option, f"The range {part.strip()} runs backwards", f"{option}={last}-{first}"
            )
        if last > MAX_CPU:
            raise _bad_cpus(text, option, f"CPU {last} cannot exist: Linux numbers CPUs from 0 to {MAX_CPU}")
        wanted = range(first, last + 1)
        twice = cpus.intersection(wanted)
        if twice:
            raise _bad_cpus(text, option, f"CPU {min(twice)} is named twice")
        cpus.update(wanted)
    return tuple(sorted(cpus))


def parse_nodes(text: str, option: str) -> tuple[int, ...]:
    """Return the NUMA nodes of ``0,2-3`` in ascending order. Raises `ZernelError`."""
    nodes: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(_RANGE, part.strip())
        first, last = (int(match.group(1)), int(match.group(2) or match.group(1))) if match else (1, 0)
        wanted = range(first, last + 1)
        if not wanted or last > MAX_NODE or not nodes.isdisjoint(wanted):
            raise fail(
                "bad-node-list",
                f"{option}: '{text[:60]}' is no list of NUMA nodes",
                explanation=f"It names nodes from 0 to {MAX_NODE}, in ascending ranges, each once",
                suggestion=f"Write it as {option}=0 or {option}=0,2-3",
            )
        nodes.update(wanted)
    return tuple(sorted(nodes))


def _bad_cpus(text: str, option: str, why: str, better: str | None = None) -> ZernelError:
    return fail(
        "bad-cpu-list",
        f"{option}: '{text[:60]}' is no CPU list",
        explanation=why,
        suggestion=f"Write it as {better or f'{option}=4-7 or {option}=4,5,8-11'}",
    )


def device_use(text: str) -> DeviceUse | None:
    """Return the device named as ``eth0:vf1``, ``eth0_vf1``, ``nvme0:ns2`` or ``gpu0``; None for other
    text."""
    match = re.fullmatch(_DEVICE, text)
    if match is None:
        return None
    device, kind, number = match.groups()
    return DeviceUse(
        device, vf=int(number) if kind == "vf" else None, namespace=int(number) if kind == "ns" else None
    )


def parse_devices(text: str, option: str) -> tuple[DeviceUse, ...]:
    """Return the devices of ``eth0:vf1,nvme0:ns2``; raises `ZernelError` for a name of another form."""
    uses = []
    for part in text.split(","):
        use = device_use(part.strip())
        if use is None:
            raise fail(
                "bad-device",
                f"{option}: '{part.strip()[:60]}' is no device",
                explanation="A device is a name, a name with a virtual function, or a name with a namespace",
                suggestion=f"Write it as {option}=eth0:vf1,nvme0:ns2",
            )
        uses.append(use)
    return tuple(uses)


RESOURCES: dict[str, Callable[[str, str], object]] = {
    "cpus": parse_cpus,
    "cpu_count": lambda text, option: parse_number(text, option, MAX_CPU + 1),
    "memory": parse_memory,
    "memory_base": parse_base,
    "devices": lambda text, option: () if text == "none" else parse_devices(text, option),
    "id": lambda text, option: parse_number(text, option, MAX_INSTANCE_ID),
    "numa_nodes": parse_nodes,
    # Which words there are is a rule for instances, however they came about.
    "cpu_affinity": lambda text, _: text,
    "memory_policy": lambda text, _: text,
}
"""What an instance can be asked to have, and what reads it: a text, and what to call it in an error. These
are options of commands, and keys of the files that declare instances."""
