# SPDX-License-Identifier: GPL-3.0-or-later
"""BPF maps, keys and values as bytes, and ring buffers."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from ctypes import byref, c_uint32
from pathlib import Path
from typing import Self

from zernel.bpf import libbpf

# enum bpf_map_type: the kinds whose lookup gives one value per possible CPU
_PER_CPU_TYPES = (5, 6, 10, 21)  # PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH, PERCPU_CGROUP_STORAGE

ANY, NOEXIST, EXIST = 0, 1, 2  # BPF_ANY, BPF_NOEXIST, BPF_EXIST


class Map:
    """One map of a BPF object. Keys and values must have exactly the map's sizes."""

    def __init__(self, handle: int, name: str) -> None:
        self.handle = handle
        self.name = name

    @property
    def fd(self) -> int:
        """The map's file descriptor; libbpf owns it."""
        return int(libbpf.library().bpf_map__fd(self.handle))

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return int(libbpf.library().bpf_map__key_size(self.handle))

    @property
    def value_size(self) -> int:
        """Bytes of a value, on one CPU where the map has one value per CPU."""
        return int(libbpf.library().bpf_map__value_size(self.handle))

    @property
    def max_entries(self) -> int:
        """The most entries the map holds; bytes, for a ring buffer."""
        return int(libbpf.library().bpf_map__max_entries(self.handle))

    @property
    def per_cpu(self) -> bool:
        """Tell whether each entry has one value per possible CPU."""
        return libbpf.library().bpf_map__type(self.handle) in _PER_CPU_TYPES

    def set_max_entries(self, entries: int) -> None:
        """Size the map, before the object is loaded."""
        with libbpf.captured() as log:
            result = libbpf.library().bpf_map__set_max_entries(self.handle, entries)
            libbpf.check(result, f"size BPF map {self.name} for {entries} entries", log)

    def set_pin_path(self, path: Path) -> None:
        """Share the map, before the object is loaded: use what is pinned at ``path``, or make and pin it."""
        with libbpf.captured() as log:
            result = libbpf.library().bpf_map__set_pin_path(self.handle, os.fsencode(path))
            libbpf.check(result, f"pin BPF map {self.name} at {path}", log)

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value of ``key``, or None if there is no such entry."""
        if self.per_cpu:
            raise ValueError(f"BPF map {self.name} has one value per CPU: use lookup_percpu")
        return self._lookup(key, self.value_size)

    def lookup_percpu(self, key: bytes) -> list[bytes] | None:
        """Return the value of ``key`` on each possible CPU, or None if there is no such entry."""
        if not self.per_cpu:
            raise ValueError(f"BPF map {self.name} does not have one value per CPU: use lookup")
        size = self.value_size
        stride = (size + 7) & ~7  # the kernel gives each CPU's value a multiple of 8 bytes
        with libbpf.captured() as log:
            cpus = libbpf.check(libbpf.library().libbpf_num_possible_cpus(), "count the possible CPUs", log)
        values = self._lookup(key, stride * cpus)
        return None if values is None else [values[i * stride : i * stride + size] for i in range(cpus)]

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Set the value of ``key``; ``flags`` may demand that the entry is new or is there already."""
        if self.per_cpu:
            raise ValueError(f"BPF map {self.name} has one value per CPU")
        if len(value) != self.value_size:
            raise ValueError(f"BPF map {self.name} has values of {self.value_size} bytes, not {len(value)}")
        with libbpf.captured() as log:
            result = libbpf.library().bpf_map_update_elem(self.fd, self._key(key), value, flags)
            libbpf.check(result, f"write to BPF map {self.name}", log)

    def delete(self, key: bytes) -> bool:
        """Remove an entry; tell whether it was there."""
        with libbpf.captured() as log:
            result = libbpf.library().bpf_map_delete_elem(self.fd, self._key(key))
            if result == -errno.ENOENT:
                return False
            libbpf.check(result, f"delete from BPF map {self.name}", log)
        return True

    def keys(self) -> Iterator[bytes]:
        """Yield the keys that are there. Entries made or removed meanwhile may be seen, or not.

        A key may come twice: the kernel starts again when the entry it stands at is removed.
        """
        following = ctypes.create_string_buffer(self.key_size)
        previous: bytes | None = None
        # Twice the size bounds a walk that removals by others keep sending back to the start.
        for _ in range(2 * self.max_entries + 1):
            with libbpf.captured() as log:
                result = libbpf.library().bpf_map_get_next_key(self.fd, previous, following)
                if result == -errno.ENOENT:
                    return
                libbpf.check(result, f"walk through BPF map {self.name}", log)
            previous = following.raw
            yield previous

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) of the entries that are there; those removed meanwhile are left out."""
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def drain(self) -> Iterator[tuple[bytes, bytes]]:
        """Remove every entry of a hash map and yield (key, value), in a few system calls."""
        key_size, value_size, room = self.key_size, self.value_size, 256
        position = ctypes.create_string_buffer(max(4, key_size))
        started = False
        while True:
            keys, values = (ctypes.create_string_buffer(room * size) for size in (key_size, value_size))
            count = c_uint32(room)
            with libbpf.captured() as log:
                result = libbpf.library().bpf_map_lookup_and_delete_batch(
                    self.fd, position if started else None, position, keys, values, byref(count), None
                )
                if result == -errno.ENOSPC and room < self.max_entries:
                    room *= 2  # more entries share a bucket than there is room for
                    continue
                if result != -errno.ENOENT:
                    libbpf.check(result, f"drain BPF map {self.name}", log)
            for i in range(count.value):
                yield (
                    keys.raw[i * key_size : (i + 1) * key_size],
                    values.raw[i * value_size : (i + 1) * value_size],
                )
            if result == -errno.ENOENT:
                return
            started = True

    def _lookup(self, key: bytes, size: int) -> bytes | None:
        value = ctypes.create_string_buffer(size)
        with libbpf.captured() as log:
            result = libbpf.library().bpf_map_lookup_elem(self.fd, self._key(key), value)
            if result == -errno.ENOENT:
                return None
            libbpf.check(result, f"read BPF map {self.name}", log)
        return value.raw

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.key_size:
            raise ValueError(f"BPF map {self.name} has keys of {self.key_size} bytes, not {len(key)}")
        return key


class RingBuffer:
    """Reads records that BPF programs put into a ring-buffer map."""

    def __init__(self, source: Map, callback: Callable[[bytes], None]) -> None:
        """Call ``callback`` with each record's bytes from within ``poll``."""
        self._callback = callback
        self._failure: BaseException | None = None
        # ctypes does not keep the function alive for libbpf: this object does.
        self._receive = libbpf.RingSample(self._on_sample)
        with libbpf.captured() as log:
            self._handle = libbpf.pointer(
                libbpf.library().ring_buffer__new(source.fd, self._receive, None, None),
                f"read the ring buffer {source.name}",
                log,
            )

    def poll(self, timeout_ms: int) -> int:
        """Wait for records at most ``timeout_ms`` (-1: no limit) and return how many were handed over.

        An exception of the callback stops the hand-over and is raised here. A signal ends the wait early.
        """
        return self._result(libbpf.library().ring_buffer__poll(self._open(), timeout_ms))

    def consume(self) -> int:
        """Hand over the records that are there now, without waiting, and return how many."""
        return self._result(libbpf.library().ring_buffer__consume(self._open()))

    def fileno(self) -> int:
        """Return a descriptor that polls readable when there are records."""
        return int(libbpf.library().ring_buffer__epoll_fd(self._open()))

    def close(self) -> None:
        """Free the reader; a second call does nothing."""
        handle, self._handle = self._handle, 0
        if handle:
            libbpf.library().ring_buffer__free(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> int:
        if not self._handle:
            raise ValueError("the ring buffer was closed")
        return self._handle

    def _result(self, result: int) -> int:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if result == -errno.EINTR:
            return 0
        return libbpf.check(result, "read a ring buffer", [])

    def _on_sample(self, _context: int | None, data: int, size: int) -> int:
        try:
            self._callback(ctypes.string_at(data, size))
        except BaseException as error:  # must not pass through C; poll raises it
            self._failure = error
            return -errno.ECANCELED
        return 0
