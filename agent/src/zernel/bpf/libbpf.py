# SPDX-License-Identifier: GPL-3.0-or-later
"""libbpf.so.1 through ctypes: the functions that Zernel calls, and libbpf's own messages as text.

libbpf 1.x has one error convention: a function that returns a pointer returns NULL and sets errno, one
that returns an int returns a negative error number. ``pointer`` and ``check`` turn both into ``ZernelError``
with the tail of what libbpf (and, inside it, the kernel's verifier) said meanwhile.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache

from zernel.errors import ZernelError, fail

SONAME = "libbpf.so.1"

# What is kept of libbpf's messages: a verifier log can be megabytes, and its end says what was wrong.
LOG_TAIL_BYTES = 16 * 1024
_EXPLAINED_LINES = 40

_LEVEL_DEBUG = 2  # LIBBPF_DEBUG of enum libbpf_print_level; 0 is a warning, 1 information
_log = logging.getLogger("zernel.bpf")


class UprobeOptions(ctypes.Structure):
    """``struct bpf_uprobe_opts`` as of libbpf 1.0; later members are optional by its size."""

    _fields_ = (
        ("sz", c_size_t),
        ("ref_ctr_offset", c_size_t),
        ("bpf_cookie", c_uint64),
        ("retprobe", c_bool),
        ("func_name", c_char_p),
    )


class ProgramInfo(ctypes.Structure):
    """``struct bpf_prog_info`` of linux/bpf.h up to ``run_cnt``; the kernel fills what fits."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("_unused", ctypes.c_uint8 * 184),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
    )


class LinkInfo(ctypes.Structure):
    """``struct bpf_link_info`` of linux/bpf.h up to ``prog_id``; the kernel fills what fits."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
    )


RingSample = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
_Print = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)

# name: (result, arguments). Opaque structures are void pointers.
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "libbpf_set_print": (c_void_p, (_Print,)),
    "libbpf_strerror": (c_int, (c_int, c_char_p, c_size_t)),
    "libbpf_num_possible_cpus": (c_int, ()),
    "libbpf_major_version": (c_uint32, ()),
    "libbpf_minor_version": (c_uint32, ()),
    "bpf_object__open_file": (c_void_p, (c_char_p, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__btf": (c_void_p, (c_void_p,)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "btf__raw_data": (c_void_p, (c_void_p, POINTER(c_uint32))),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__type": (c_int, (c_void_p,)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__max_entries": (c_uint32, (c_void_p,)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__set_pin_path": (c_int, (c_void_p, c_char_p)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "bpf_map__attach_struct_ops": (c_void_p, (c_void_p,)),
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
    "bpf_map_lookup_and_delete_batch": (
        c_int,
        (c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p),
    ),
    "bpf_map_get_next_key": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__set_expected_attach_type": (c_int, (c_void_p, c_int)),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_program__attach_uprobe_opts": (
        c_void_p,
        (c_void_p, c_int, c_char_p, c_size_t, POINTER(UprobeOptions)),
    ),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_link_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, POINTER(c_uint32))),
    "bpf_enable_stats": (c_int, (c_int,)),
    "ring_buffer__new": (c_void_p, (c_int, RingSample, c_void_p, c_void_p)),
    "ring_buffer__poll": (c_int, (c_void_p, c_int)),
    "ring_buffer__consume": (c_int, (c_void_p,)),
    "ring_buffer__epoll_fd": (c_int, (c_void_p,)),
    "ring_buffer__free": (None, (c_void_p,)),
}


class _Messages(threading.local):
    """The messages of the libbpf call under way in this thread, or None outside ``captured``."""

    lines: list[str] | None = None


_messages = _Messages()


@cache
def library() -> ctypes.CDLL:
    """Return libbpf with every function declared and its messages routed here.

    :raises ZernelError: ``libbpf-missing`` if the library or one of the functions is not there.
    """
    try:
        lib = ctypes.CDLL(SONAME, use_errno=True)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise fail(
            "libbpf-missing",
            f"{SONAME} cannot be used",
            explanation=str(error),
            suggestion="Install Debian's package libbpf1 (1.1 or later)",
        ) from error
    lib.libbpf_set_print(_print)
    return lib


def version() -> tuple[int, int]:
    """Return libbpf's (major, minor) version."""
    lib = library()
    return int(lib.libbpf_major_version()), int(lib.libbpf_minor_version())


@contextmanager
def captured() -> Iterator[list[str]]:
    """Collect what libbpf says in this thread while the block runs."""
    outer = _messages.lines
    _messages.lines = []
    try:
        yield _messages.lines
    finally:
        _messages.lines = outer


def pointer(result: int | None, doing: str, log: list[str], suggestion: str | None = None) -> int:
    """Return the pointer that libbpf returned; raise with words for NULL. ``doing`` completes "Cannot …"."""
    if not result:
        raise error(ctypes.get_errno(), doing, log, suggestion)
    return result


def check(result: int, doing: str, log: list[str], suggestion: str | None = None) -> int:
    """Return a result that is not negative; raise with words for an error number."""
    if result < 0:
        raise error(-result, doing, log, suggestion)
    return result


def error(number: int, doing: str, log: list[str], suggestion: str | None = None) -> ZernelError:
    """Build the error for libbpf's error ``number`` (positive), with the tail of its messages."""
    said = "".join(log)[-LOG_TAIL_BYTES:].splitlines()
    if number in (errno.EPERM, errno.EACCES) and os.geteuid() != 0:
        suggestion = "Run as root: loading BPF needs CAP_BPF, CAP_PERFMON and, for a scheduler, CAP_SYS_ADMIN"
    return fail(
        "bpf",
        f"Cannot {doing}: {_strerror(number)}",
        explanation=tuple(said[-_EXPLAINED_LINES:]),
        suggestion=suggestion or "Run 'zernel doctor': it says what this kernel can run, and why not",
    )


def _strerror(number: int) -> str:
    buffer = ctypes.create_string_buffer(256)
    library().libbpf_strerror(number, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") or os.strerror(number)


_libc = ctypes.CDLL(None)
_libc.vasprintf.argtypes = (POINTER(c_void_p), c_void_p, c_void_p)
_libc.free.argtypes = (c_void_p,)


def _receive(level: int, template: int, arguments: int) -> int:
    """Receive one message of libbpf: a printf template and a va_list, which only the C library can read."""
    lines = _messages.lines
    if level >= _LEVEL_DEBUG and not _log.isEnabledFor(logging.DEBUG):
        return 0
    text = c_void_p()
    length: int = _libc.vasprintf(ctypes.byref(text), template, arguments)
    if length < 0 or not text.value:
        return 0
    start = max(0, length - LOG_TAIL_BYTES)
    message = ctypes.string_at(text.value + start, length - start).decode("utf-8", "replace")
    _libc.free(text)
    if level >= _LEVEL_DEBUG or lines is None:
        _log.debug("%s", message.rstrip())
    else:
        lines.append(message)
        # Keep memory bounded when libbpf warns often: what is dropped is the oldest.
        while sum(map(len, lines)) > 2 * LOG_TAIL_BYTES and len(lines) > 1:
            del lines[0]
    return length


# libbpf keeps a pointer to it for as long as the process lives.
_print = _Print(_receive)
