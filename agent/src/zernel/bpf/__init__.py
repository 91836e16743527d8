# SPDX-License-Identifier: GPL-3.0-or-later
"""BPF objects, maps, links and type information, through libbpf. See ``object.py`` for an example."""

from zernel.bpf.btf import Btf, malformed_kfuncs
from zernel.bpf.maps import Map, RingBuffer
from zernel.bpf.object import (
    BpfObject,
    Link,
    Program,
    enable_run_stats,
    link_exists,
    object_path,
    possible_cpus,
)

__all__ = [
    "BpfObject",
    "Btf",
    "Link",
    "Map",
    "Program",
    "RingBuffer",
    "enable_run_stats",
    "link_exists",
    "malformed_kfuncs",
    "object_path",
    "possible_cpus",
]
