# SPDX-License-Identifier: GPL-3.0-or-later
"""Which wire format the kernel has: the one place that decides, by what ``device_tree`` shows.

Memory in ``memory-base`` is the first version's, anything else the second's. Before a baseline the tree may
be empty, and tells nothing: then ``zernel init --apply`` asks the kernel itself, which takes a baseline whole
or not at all (`zernel.multikernel.baseline`).
"""

from __future__ import annotations

from pathlib import Path

from zernel.multikernel import inventory_record, live_tree
from zernel.multikernel.fs import MultikernelFs
from zernel.multikernel.journal import directory_of
from zernel.multikernel.wire import Wire
from zernel.multikernel.wire_v1 import V1
from zernel.multikernel.wire_v2 import V2, Host

_BLOCK_SIZE = Path("/sys/devices/system/memory/block_size_bytes")
_BLOCK_BYTES = 128 << 20
"""The size of x86-64's memory blocks where the host does not tell it."""


def wire_for(fs: MultikernelFs) -> Wire:
    """Return the wire of this kernel as its ``device_tree`` is now; a change of the pool needs a new one."""
    blob = fs.baseline()
    if live_tree.form(blob) != "v2":
        return V1()
    pool = live_tree.pool(blob)
    directory = directory_of(fs)
    recorded = inventory_record.read(directory).believed(pool)
    granule = (pool.granule if pool else None) or _block_bytes()
    host = Host(granule, fs.iomem, inventory_record.path_in(directory))
    return V2(host, pool, recorded, () if recorded or pool is None else _lent(fs))


def _lent(fs: MultikernelFs) -> tuple[live_tree.LiveDevice, ...]:
    """Return the devices that instances have: the pool's tree lists the free ones only."""
    found: list[live_tree.LiveDevice] = []
    for name in fs.instance_names():
        try:
            shown = live_tree.instance(fs.instance(name)[2])
        except FileNotFoundError:
            continue  # it was deleted since its name was read
        found += shown.devices if shown else ()
    return tuple(found)


def _block_bytes() -> int:
    try:
        return int(_BLOCK_SIZE.read_text(encoding="ascii"), 16) or _BLOCK_BYTES
    except (OSError, ValueError):
        return _BLOCK_BYTES
