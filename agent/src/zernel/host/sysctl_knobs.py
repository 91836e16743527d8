# SPDX-License-Identifier: GPL-3.0-or-later
"""What Zernel knows about single kernel settings: usual policy, reason, and when a value would do harm.

A key that is not named here can be set all the same; it then has policy ``set`` and no guard. Reasons and
limits come from the mission's kernel document and from what its values did to a real host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zernel.errors import Problem
from zernel.host.sysctl_input import Asked, Policy
from zernel.host.sysctl_live import THP_PREFIX, LiveSettings, Memory

GIB = 1 << 30

MEMORY_FLOOR = 2 * GIB
"""Bytes that huge pages never take, whatever was asked; a quarter of the memory where that is more."""

AVAILABLE_FLOOR = 512 << 20
"""Bytes that must stay available while pages are being reserved, so that nothing is killed for them."""

DIRTY_CEILINGS = {
    "vm.dirty_ratio": ("vm.dirty_bytes", 16 * GIB),
    "vm.dirty_background_ratio": ("vm.dirty_background_bytes", 4 * GIB),
}
"""Per ratio: the key that replaces it, and from how many bytes on. 40% of 2 TB are 800 GB unwritten."""

COUNTERPARTS = {
    "vm.dirty_ratio": "vm.dirty_bytes",
    "vm.dirty_bytes": "vm.dirty_ratio",
    "vm.dirty_background_ratio": "vm.dirty_background_bytes",
    "vm.dirty_background_bytes": "vm.dirty_background_ratio",
}
"""Keys of which the kernel keeps one: writing either sets the other to 0, and 0 cannot be written back."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of an asked value: the key and value to write, and why it is not as asked (if so)."""

    key: str
    value: str
    why: str = ""


MAX_DIGITS = 20
"""Characters of a number: what 64 bits need."""

_INT = (1 << 31) - 1
_LONG = (1 << 63) - 1
"""The greatest numbers of the kernel's types in which the settings are held."""

Guard = Callable[[str, LiveSettings], "Decision | Problem"]


@dataclass(frozen=True, slots=True)
class Knob:
    """A known key. ``reason`` is one line for the person who reads the written file.

    ``limits`` are the least and the greatest number that the kernel takes, for each field of the value.
    """

    policy: Policy
    reason: str
    guard: Guard | None = None
    limits: tuple[int, int] | None = None


def _swappiness(value: str, live: LiveSettings) -> Decision | Problem:
    key = "vm.swappiness"
    swaps = live.swap_in_use()
    if value != "0" or swaps == []:
        return Decision(key, value)
    where = f"this host swaps to {', '.join(swaps)}" if swaps else "whether this host has swap cannot be read"
    return Decision(key, "1", f"0 makes the kernel kill programs before it swaps, and {where}")


def _hugepages(value: str, live: LiveSettings) -> Decision | Problem:
    key = "vm.nr_hugepages"
    asked, now, memory = int(value), int(live.read(key)), live.memory()
    if asked <= now:
        return Decision(key, value)
    if memory is None:
        return Decision(key, str(now), "the memory of this host cannot be read, so that nothing is reserved")
    ceiling = hugepage_ceiling(memory)
    accepted = min(asked, ceiling)
    why = ""
    if accepted < asked:
        floor = max(MEMORY_FLOOR, memory.total // 4)
        why = (
            f"{asked} pages of {_size(memory.page_size)} are {_size(asked * memory.page_size)}; "
            f"this host has {_size(memory.total)} and {_size(floor)} of it stay free of huge pages"
        )
    missing = (accepted - now) * memory.page_size
    if missing > 0 and memory.available - missing < AVAILABLE_FLOOR:
        return Problem(
            code="sysctl-no-memory",
            category="Not enough free memory to reserve huge pages now",
            subject=key,
            explanation=(
                f"{accepted - now} more pages of {_size(memory.page_size)} are {_size(missing)}",
                f"{_size(memory.available)} are available, and {_size(AVAILABLE_FLOOR)} of those must remain",
            ),
            suggestion="Ask for fewer pages, or reserve them on the kernel command line (hugepages=N)",
        )
    return Decision(key, str(accepted), why)


def hugepage_ceiling(memory: Memory) -> int:
    """Return how many huge pages of the default size a host may hold."""
    room = memory.total - max(MEMORY_FLOOR, memory.total // 4) - memory.reserved_other
    return max(0, room // memory.page_size)


def _dirty_ratio(key: str) -> Guard:
    instead, ceiling = DIRTY_CEILINGS[key]

    def guard(value: str, live: LiveSettings) -> Decision | Problem:
        memory = live.memory()
        if memory is None or memory.total * int(value) // 100 <= ceiling:
            return Decision(key, value)
        unwritten = _size(memory.total * int(value) // 100)
        return Decision(
            instead, str(ceiling), f"{value}% of {_size(memory.total)} would leave {unwritten} unwritten"
        )

    return guard


def _min_free(value: str, live: LiveSettings) -> Decision | Problem:
    key = "vm.min_free_kbytes"
    memory = live.memory()
    if memory is None or int(value) * 1024 <= memory.total // 20:
        return Decision(key, value)
    accepted = memory.total // 20 // 1024
    return Decision(key, str(accepted), f"{value} kB are more than a twentieth of {_size(memory.total)}")


def _from_module(key: str, prefix: str, always: frozenset[str], option: str) -> Guard:
    """Guard of a key whose value is the name of a kernel module."""

    def guard(value: str, live: LiveSettings) -> Decision | Problem:
        there = live.choices(key) or []
        module = module_of(key, value)
        state = live.module_state(module) if module else "builtin"
        if value in always or value in there or state in ("builtin", "module", None):
            return Decision(key, value)
        return Problem(
            code="sysctl-no-module",
            category=f"This kernel has no '{value}'",
            subject=key,
            explanation=(f"The kernel module {prefix}{value} is neither built in nor installed",),
            current_state=f"{key} = {live.read(key)}",
            suggestion=f"Install a kernel with {option}, or choose {' or '.join(sorted(there or always))}",
        )

    return guard


_PLAIN_QDISCS = frozenset({"pfifo_fast", "pfifo", "bfifo", "noqueue"})
_MODULES = {"net.ipv4.tcp_congestion_control": "tcp_", "net.core.default_qdisc": "sch_"}


def module_of(key: str, value: str) -> str | None:
    """Return the kernel module that a value needs, if any."""
    prefix = _MODULES.get(key)
    if prefix is None or value in _PLAIN_QDISCS or value == "reno":
        return None
    return prefix + value.replace("-", "_")


def _size(count: int) -> str:
    """Write a number of bytes for a person."""
    for unit, name in ((1 << 40, "TiB"), (GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"


KNOBS: dict[str, Knob] = {
    "vm.swappiness": Knob(Policy.SET, "Keep working sets in memory.", _swappiness, limits=(0, 200)),
    "vm.dirty_ratio": Knob(
        Policy.SET,
        "More unwritten pages before writers wait: large dataset writes.",
        _dirty_ratio("vm.dirty_ratio"),
        limits=(0, 100),
    ),
    "vm.dirty_background_ratio": Knob(
        Policy.SET,
        "Write back early, in the background.",
        _dirty_ratio("vm.dirty_background_ratio"),
        limits=(0, 100),
    ),
    "vm.overcommit_memory": Knob(
        Policy.SET,
        "1: never refuse address space; PyTorch and CUDA map far more than they use.",
        limits=(0, 2),
    ),
    "vm.nr_hugepages": Knob(
        Policy.RAISE,
        "Huge pages of the *default* size (2 MiB on x86-64), reserved for good.",
        _hugepages,
        limits=(0, _LONG),
    ),
    "vm.min_free_kbytes": Knob(
        Policy.RAISE, "Reserve for allocations that cannot wait.", _min_free, limits=(0, _INT)
    ),
    "vm.max_map_count": Knob(
        Policy.RAISE, "Mappings per process: loaders map many shards.", limits=(0, _INT)
    ),
    "net.core.rmem_max": Knob(
        Policy.RAISE, "Largest receive buffer that a program may ask for.", limits=(0, _INT)
    ),
    "net.core.wmem_max": Knob(
        Policy.RAISE, "Largest send buffer that a program may ask for.", limits=(0, _INT)
    ),
    "net.ipv4.tcp_rmem": Knob(Policy.RAISE, "TCP receive buffer: least, initial, largest.", limits=(1, _INT)),
    "net.ipv4.tcp_wmem": Knob(Policy.RAISE, "TCP send buffer: least, initial, largest.", limits=(1, _INT)),
    "net.core.netdev_max_backlog": Knob(
        Policy.RAISE, "Packets that may wait per CPU for processing.", limits=(0, _INT)
    ),
    "net.core.somaxconn": Knob(Policy.RAISE, "Longest queue of a listening socket.", limits=(0, _INT)),
    "net.core.default_qdisc": Knob(
        Policy.SET,
        "fq paces what BBR sends. Interfaces that are up keep their queue until the next boot.",
        _from_module("net.core.default_qdisc", "sch_", _PLAIN_QDISCS, "CONFIG_NET_SCH_FQ"),
    ),
    "net.ipv4.tcp_congestion_control": Knob(
        Policy.SET,
        "BBR keeps TCP fast on lossy paths; it does nothing for RDMA.",
        _from_module("net.ipv4.tcp_congestion_control", "tcp_", frozenset({"reno"}), "CONFIG_TCP_CONG_BBR"),
    ),
    "kernel.numa_balancing": Knob(
        Policy.SET,
        "Move pages to the node that uses them; turn off where work is pinned to nodes.",
        limits=(0, 3),
    ),
    "fs.file-max": Knob(Policy.RAISE, "Open files in the whole host.", limits=(0, _LONG)),
    "fs.inotify.max_user_watches": Knob(Policy.RAISE, "Files that one user may watch.", limits=(0, _INT)),
    "fs.inotify.max_user_instances": Knob(Policy.RAISE, "Watchers that one user may have.", limits=(0, _INT)),
    f"{THP_PREFIX}enabled": Knob(
        Policy.SET, "Transparent huge pages: always suits training, madvise suits latency-bound inference."
    ),
    f"{THP_PREFIX}defrag": Knob(Policy.SET, "Who waits for memory to be made contiguous."),
}


def policy_of(asked: Asked) -> Policy:
    """Return the policy that holds for a setting: the one asked for, else the usual one of its key."""
    if asked.policy is not None:
        return asked.policy
    knob = KNOBS.get(asked.key)
    return knob.policy if knob else Policy.SET


def out_of_range(asked: Asked) -> Problem | None:
    """Return why no kernel takes the value of a known key; None where one may.

    Source of the limits: Documentation/admin-guide/sysctl, and the types in which the kernel holds them.
    """
    knob = KNOBS.get(asked.key)
    if knob is None or knob.limits is None:
        return None
    least, most = knob.limits
    for word in asked.value.split():
        if not is_number(word):
            why = f"'{word}' is not a whole number"
        elif len(word) > MAX_DIGITS or not least <= int(word) <= most:
            why = f"{word} is not between {least} and {most}"
        else:
            continue
        return Problem(
            code="sysctl-wrong-value",
            category="The value does not fit the setting",
            subject=asked.key,
            explanation=(why,),
            suggestion=f"Write a number from {least} to {most}",
            locations=(asked.location,) if asked.location else (),
        )
    return None


def is_number(word: str) -> bool:
    """Say whether a field is a number as the kernel writes and takes them, of whatever length."""
    return word.isascii() and word.removeprefix("-").isdigit()
