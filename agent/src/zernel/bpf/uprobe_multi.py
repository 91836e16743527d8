# SPDX-License-Identifier: GPL-3.0-or-later
"""Uprobes at many places of a file with one link (kernel 6.6 and later).

A plain uprobe is a perf event of its own, and detaching each waits for its own grace periods: 85 ms each on a
2-core machine. One link for all places waits once. The system call is made here directly: libbpf has it from
1.3 on only, Debian 12 has 1.1.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from ctypes import c_uint32, c_uint64
from dataclasses import dataclass
from pathlib import Path

ATTACH_TYPE = 48
"""BPF_TRACE_UPROBE_MULTI of enum bpf_attach_type: what a program must be loaded for."""

_SYS_BPF = 321  # x86-64
_BPF_LINK_CREATE = 28
_BPF_F_UPROBE_MULTI_RETURN = 1


@dataclass(frozen=True, slots=True)
class Place:
    """One place: bytes from the start of the file, and what ``bpf_get_attach_cookie`` gives there."""

    offset: int
    cookie: int = 0


class _LinkCreate(ctypes.Structure):
    """``union bpf_attr`` for BPF_LINK_CREATE with ``uprobe_multi`` (linux/bpf.h of 6.6)."""

    _fields_ = (
        ("prog_fd", c_uint32),
        ("target_fd", c_uint32),
        ("attach_type", c_uint32),
        ("flags", c_uint32),
        ("path", c_uint64),
        ("offsets", c_uint64),
        ("ref_ctr_offsets", c_uint64),
        ("cookies", c_uint64),
        ("count", c_uint32),
        ("multi_flags", c_uint32),
        ("pid", c_uint32),
        ("_unused", c_uint32),
    )


def create(program_fd: int, path: Path, places: Sequence[Place], *, returning: bool) -> int:
    """Attach in every process and return the link's descriptor; closing it detaches.

    :raises OSError: what the kernel says. EINVAL where it does not know such links.
    """
    offsets = (c_uint64 * len(places))(*(place.offset for place in places))
    cookies = (c_uint64 * len(places))(*(place.cookie for place in places))
    name = ctypes.create_string_buffer(os.fsencode(path))
    attr = _LinkCreate(
        prog_fd=program_fd,
        attach_type=ATTACH_TYPE,
        path=ctypes.addressof(name),
        offsets=ctypes.addressof(offsets),
        cookies=ctypes.addressof(cookies),
        count=len(places),
        multi_flags=_BPF_F_UPROBE_MULTI_RETURN if returning else 0,
    )
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_SYS_BPF, _BPF_LINK_CREATE, ctypes.byref(attr), ctypes.sizeof(attr))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return fd


def supported(program_fd: int) -> bool:
    """Tell whether the kernel makes such links, by asking for one on a directory.

    :param program_fd: a program loaded for ``ATTACH_TYPE``.
    """
    try:
        os.close(create(program_fd, Path("/"), [Place(0)], returning=False))
    except OSError as error:
        # A kernel that knows them gets as far as the path; one that does not says EINVAL.
        return error.errno == errno.EBADF
    return True
