# SPDX-License-Identifier: GPL-3.0-or-later
"""The gpu_mem probe in user space: loads bpf/gpu_mem.bpf.c, attaches it to libraries, reads its tables."""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from zernel.bpf import BpfObject
from zernel.gpu.functions import LIBCUDA, MEMORY
from zernel.gpu.libraries import Copy, Inode
from zernel.observe.attachments import Attachments, Hook, Loaded
from zernel.observe.config import GpuMem

NAME = "gpu_mem"

# Function: its name in enum function of bpf/include/gpu_mem.h, which is the cookie of the attachment.
_COOKIES = {
    "cuMemAlloc_v2": "CU_MEM_ALLOC",
    "cuMemFree_v2": "CU_MEM_FREE",
    "cuDeviceGetCount": "CU_DEVICE_GET_COUNT",
    "cuCtxCreate_v2": "CU_CTX_CREATE_V2",
    "cuCtxCreate_v3": "CU_CTX_CREATE_V3",
    "cuCtxCreate_v4": "CU_CTX_CREATE_V4",
    "cuCtxDestroy_v2": "CU_CTX_DESTROY",
    "cuCtxSetCurrent": "CU_CTX_SET_CURRENT",
    "cuCtxPushCurrent_v2": "CU_CTX_PUSH_CURRENT",
    "cuCtxPopCurrent_v2": "CU_CTX_POP_CURRENT",
    "cuDevicePrimaryCtxRetain": "CU_DEVICE_PRIMARY_CTX_RETAIN",
    "cuDevicePrimaryCtxReset_v2": "CU_DEVICE_PRIMARY_CTX_RESET",
}

# Mirrors struct process of bpf/include/gpu_mem.h; the enums are read from the object's BTF.
_MAX_GPUS = 32
_PROCESS = struct.Struct("<QQ" + "QQ" * (_MAX_GPUS + 1))
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

UNKNOWN_GPU = "unknown"
"""Value of the gpu_id label where the context that an allocation belongs to was not seen being made."""

_DROPS = {
    "DROP_ALLOCATIONS_FULL": "allocation_table_full",
    "DROP_PROCESSES_FULL": "process_table_full",
    "DROP_CONTEXTS_FULL": "context_table_full",
    "DROP_THREAD_STATE": "no_thread_state",
    "DROP_UNREADABLE": "unreadable_result",
    "DROP_MISSED_RETURN": "missed_return",
    "DROP_PEAK_RACE": "peak_race",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process holds on one GPU, in bytes."""

    pid: int
    gpu: str
    current_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Reading:
    """The probe's tables at one moment. Counters run since the probe was loaded."""

    usage: tuple[Usage, ...]
    allocations: int
    frees: int
    unknown_frees: int
    failures: dict[int, int]
    """CUresult of a failed cuMemAlloc_v2: how often."""
    drops: dict[str, int]
    """Reason: how often something was not counted."""
    runs: int
    run_seconds: float


class GpuMemory:
    """The loaded probe. Use as a context manager: leaving it detaches and frees everything.

    One thread follows libraries and closes; any may read, also while it is closed and afterwards.
    """

    def __init__(self, settings: GpuMem) -> None:
        """Load the programs, and attach those that follow the end of processes.

        :raises ZernelError: when the kernel does not take them.
        """
        # Held while the tables are read and while they are freed.
        self._tables = threading.Lock()
        self._final: Reading | None = None

        def size(obj: BpfObject) -> None:
            obj.map("allocations").set_max_entries(settings.max_allocations)
            obj.map("processes").set_max_entries(settings.max_processes)

        loaded = Loaded.load(NAME, ("on_enter", "on_return"), size)
        self._object = loaded.obj
        try:
            self._object.program("on_exit").attach()
            self._object.program("on_exec").attach()
            self._counters = {name: self._number("counter", name) for name in (*_DROPS, *_COUNTS)}
            cookies = {function: self._number("function", name) for function, name in _COOKIES.items()}
        except BaseException:
            self._object.close()
            raise
        # The return first: a call between the two attachments is then not seen, never half seen.
        hooks = Hook("on_return", cookies, returning=True), Hook("on_enter", cookies)
        self._attachments = Attachments(NAME, loaded, {MEMORY: hooks})

    def close(self) -> None:
        """Detach from everything and free the tables; a second call does nothing."""
        with self._tables:
            if self._final is not None:
                return
            try:
                self._final = self._read()
            finally:
                self._attachments.close()
                self._object.close()

    def __enter__(self) -> GpuMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def libraries(self) -> list[str]:
        """The libraries that are probed, as people call them."""
        return self._attachments.names

    @property
    def refused(self) -> int:
        """The number of libraries that cannot be probed."""
        return self._attachments.refused

    @property
    def unavailable(self) -> str | None:
        """Why nothing is counted; None when the probe is attached to a library."""
        return self._attachments.why_none(LIBCUDA)

    def follow(self, copies: Mapping[Inode, Copy], limit: int) -> None:
        """Keep attached to these libraries; see :meth:`Attachments.follow`."""
        self._attachments.follow(copies, limit)

    def read(self) -> Reading:
        """Read the tables; once the probe is closed, return what they held last."""
        with self._tables:
            return self._final or self._read()

    def _read(self) -> Reading:
        usage = []
        for key, value in self._object.map("processes").items():
            usage += _usage(_U32.unpack(key)[0], _PROCESS.unpack(value))
        failures = {
            _U32.unpack(key)[0]: _U64.unpack(value)[0] for key, value in self._object.map("failures").items()
        }
        programs = self._object.programs()
        return Reading(
            usage=tuple(sorted(set(usage), key=lambda one: (one.pid, one.gpu))),
            allocations=self._count("COUNT_ALLOCATIONS"),
            frees=self._count("COUNT_FREES"),
            unknown_frees=self._count("COUNT_UNKNOWN_FREES"),
            failures=failures,
            drops={label: self._count(name) for name, label in _DROPS.items()},
            runs=sum(program.run_count for program in programs),
            run_seconds=sum(program.run_time_ns for program in programs) / 1e9,
        )

    def _number(self, enum: str, name: str) -> int:
        number = self._object.btf.enum_value(name, enum)
        if number is None:
            raise KeyError(f"{self._object.path}: enum {enum} has no {name}")
        return number

    def _count(self, name: str) -> int:
        values = self._object.map("counters").lookup_percpu(_U32.pack(self._counters[name])) or []
        return sum(_U64.unpack(value)[0] for value in values)


_COUNTS = ("COUNT_ALLOCATIONS", "COUNT_FREES", "COUNT_UNKNOWN_FREES")


def _usage(pid: int, values: tuple[int, ...]) -> list[Usage]:
    """Return the GPUs that a process ever had memory on, from the numbers of its struct process."""
    found = []
    for gpu in range(_MAX_GPUS + 1):
        current, peak = values[2 + 2 * gpu : 4 + 2 * gpu]
        if peak:
            found.append(Usage(pid, str(gpu) if gpu < _MAX_GPUS else UNKNOWN_GPU, current, peak))
    return found
