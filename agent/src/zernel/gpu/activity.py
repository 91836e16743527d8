# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps that zerneld's probes and the scheduler share: bpf/include/gpu_activity.h says what is in them.

A signal is there while a probe that writes it is attached: :func:`announce` says by which link, and
:func:`missing` asks the kernel whether that link still is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from zernel.bpf import BpfObject, Map, link_exists

PINS = Path("/sys/fs/bpf/zernel")
"""Where the maps are."""

LAYOUT = 1
"""Part of their names there. To be raised with every change of struct gpu_activity or struct gpu_probes.

The maps outlive both programs: without it a new package would find those of the old one, and either be
refused their use or take their members for others.
"""

_MAPS = ("gpu_activity", "gpu_probes")
_ONLY = bytes(4)  # the key of a map with one entry
_PROBES = struct.Struct("<II")  # struct gpu_probes
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Missing:
    """Why it is not known what threads do with a library; None where it is."""

    libcuda: str | None = None
    libnccl: str | None = None


def share(obj: BpfObject, pins: Path = PINS) -> str | None:
    """Have an object, which is not loaded yet, use the maps of whoever came first, or pin its own.

    Return None, or why that cannot be; its maps are then its own.
    """
    if not _is_bpffs(pins.parent):
        return f"no BPF file system is mounted at {pins.parent}"
    try:
        pins.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        return f"{pins} cannot be made: {error.strerror}"
    for name in _MAPS:
        obj.map(name).set_pin_path(pins / f"{name}_{LAYOUT}")
    return None


def announce(probes: Map, libcuda_link: int, libnccl_link: int) -> None:
    """Say by which links what is written is seen; 0 for a library that no probe is attached to."""
    probes.update(_ONLY, _PROBES.pack(libcuda_link, libnccl_link))


def missing(probes: Map) -> Missing:
    """Return what is not written now, and why."""
    libcuda, libnccl = _PROBES.unpack(probes.lookup(_ONLY) or bytes(_PROBES.size))
    return Missing(_why_not(libcuda, "libcuda.so.1"), _why_not(libnccl, "libnccl.so.2"))


def _why_not(link: int, library: str) -> str | None:
    if link and link_exists(link):
        return None
    fact = f"zerneld's probe on {library} has ended" if link else f"zerneld has no probe on a {library}"
    return f"{fact}: 'systemctl status zerneld' says why"


def _is_bpffs(directory: Path) -> bool:
    """Tell whether a BPF file system is mounted there, as the uppermost."""
    try:
        with Path("/proc/self/mounts").open("rb") as stream:
            lines = stream.read(_MAX_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return False
    mounts = [line.split() for line in lines]
    kinds = [fields[2] for fields in mounts if len(fields) > 2 and fields[1] == str(directory)]
    return kinds[-1:] == ["bpf"]
