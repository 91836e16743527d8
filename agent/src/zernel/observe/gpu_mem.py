# SPDX-License-Identifier: GPL-3.0-or-later
"""The gpu_mem probe in user space: loads bpf/gpu_mem.bpf.c, attaches it to libraries, reads its tables."""

from __future__ import annotations

import logging
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

from zernel.bpf import BpfObject, Link, object_path, uprobe_multi
from zernel.bpf.uprobe_multi import Place
from zernel.errors import ZernelError
from zernel.gpu import libcuda
from zernel.observe.config import GpuMem

log = logging.getLogger(__name__)

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

# A library that no process maps any more is let go after this many rounds, so that the probe does not keep a
# removed container's file system in use. More than one: a process may be between two mappings of it.
_ROUNDS_WITHOUT_USE = 2


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


@dataclass(slots=True)
class _Attached:
    name: str
    links: list[Link] = field(default_factory=list)
    unseen: int = 0


class GpuMemory:
    """The loaded probe. Use as a context manager: leaving it detaches and frees everything.

    One thread follows libraries and closes; any may read, also while it is closed and afterwards.
    """

    def __init__(self, settings: GpuMem) -> None:
        """Load the programs, and attach those that follow the end of processes.

        :raises ZernelError: when the kernel does not take them.
        """
        self._attached: dict[libcuda.Inode, _Attached] = {}
        self._refused: dict[libcuda.Inode, str] = {}
        # Held while the tables are read and while they are freed.
        self._tables = threading.Lock()
        self._final: Reading | None = None
        self._object = _load(settings, one_link=True)
        # One link per library and direction where the kernel has such links (6.6), else one per function.
        self._one_link = uprobe_multi.supported(self._object.program("on_enter").fd)
        if not self._one_link:
            self._object.close()
            self._object = _load(settings, one_link=False)
        try:
            self._object.program("on_exit").attach()
            self._object.program("on_exec").attach()
            self._counters = {name: self._number("counter", name) for name in (*_DROPS, *_COUNTS)}
            self._cookies = {function: self._number("function", name) for function, name in _COOKIES.items()}
        except BaseException:
            self._object.close()
            raise

    def close(self) -> None:
        """Detach from everything and free the tables; a second call does nothing."""
        with self._tables:
            if self._final is not None:
                return
            try:
                self._final = self._read()
            finally:
                self._attached.clear()
                self._object.close()

    def __enter__(self) -> GpuMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def libraries(self) -> list[str]:
        """The libraries that are probed, as people call them."""
        return [attached.name for attached in tuple(self._attached.values())]

    @property
    def unavailable(self) -> str | None:
        """Why nothing is counted; None when the probe is attached to a library."""
        if self._attached:
            return None
        if self._refused:
            return "; ".join(sorted(self._refused.values()))
        return "no libcuda.so.1 is installed, and no process uses one (no NVIDIA driver?)"

    def follow(self, copies: dict[libcuda.Inode, libcuda.Copy], limit: int) -> None:
        """Attach to the new ones of these libraries, ``limit`` in all, and let go of those that are gone.

        A library that cannot be probed is logged once, and tried again at the next call.
        """
        for inode, attached in list(self._attached.items()):
            attached.unseen = 0 if inode in copies else attached.unseen + 1
            if attached.unseen >= _ROUNDS_WITHOUT_USE:
                self._detach(inode)
        refused = {}
        for inode, copy in copies.items():
            if inode in self._attached:
                continue
            reason = (
                self._attach(copy) if len(self._attached) < limit else f"{limit} libraries are probed already"
            )
            # The process that showed it may have ended meanwhile, and nobody misses it.
            if reason is not None and copy.path.exists():
                refused[inode] = f"{copy.name}: {reason}"
        for inode, text in refused.items():
            if self._refused.get(inode) != text:
                log.warning("not probed: %s", text)
        self._refused = refused

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

    def _attach(self, copy: libcuda.Copy) -> str | None:
        """Attach to one library; return None or the reason why not, and then nothing is attached."""
        try:
            with libcuda.opened(copy) as fd:
                targets = libcuda.targets(fd, copy.name)
                # The kernel, too, must take the file that was looked into, not what is at its path by now.
                return self._attach_at(Path(f"/proc/self/fd/{fd}"), copy, targets)
        except (ZernelError, OSError) as error:
            return libcuda.reason(error)

    def _attach_at(self, path: Path, copy: libcuda.Copy, targets: list[libcuda.Target]) -> str | None:
        """Attach to the library, which ``path`` opens; return as :meth:`_attach` does."""
        attached = _Attached(copy.name)
        try:
            # The return first: a call between the two attachments is then not seen, never half seen.
            for program, returning in (("on_return", True), ("on_enter", False)):
                attached.links += self._attach_program(program, path, targets, returning)
        except ZernelError as error:
            for link in attached.links:
                link.close()
            # Without the descriptor's number: a reason that stays the same is logged once.
            return libcuda.reason(error).replace(str(path), copy.name)
        self._attached[copy.inode] = attached
        slow = sum(not target.past_compare for target in targets)
        log.info(
            "probing %s: %d functions%s",
            copy.name,
            len(targets),
            f", {slow} of them at their first instruction (slower)" if slow else "",
            extra={"ZERNEL_PROBE": NAME, "ZERNEL_LIBRARY": copy.name},
        )
        return None

    def _detach(self, inode: libcuda.Inode) -> None:
        attached = self._attached.pop(inode)
        for link in attached.links:
            link.close()
        log.info("no longer probing %s: nothing uses it", attached.name)

    def _attach_program(
        self, name: str, path: Path, targets: list[libcuda.Target], returning: bool
    ) -> list[Link]:
        program = self._object.program(name)
        places = [Place(target.offset, self._cookies[target.function]) for target in targets]
        if self._one_link:
            return [program.attach_uprobes(path, places, returning=returning)]
        links: list[Link] = []
        try:
            for place in places:
                links.append(
                    program.attach_uprobe(path, place.offset, retprobe=returning, cookie=place.cookie)
                )
        except ZernelError:
            for link in links:
                link.close()
            raise
        return links

    def _number(self, enum: str, name: str) -> int:
        number = self._object.btf.enum_value(name, enum)
        if number is None:
            raise KeyError(f"{self._object.path}: enum {enum} has no {name}")
        return number

    def _count(self, name: str) -> int:
        values = self._object.map("counters").lookup_percpu(_U32.pack(self._counters[name])) or []
        return sum(_U64.unpack(value)[0] for value in values)


def _load(settings: GpuMem, *, one_link: bool) -> BpfObject:
    """Load the object; ``one_link``: for attachments that cover many functions."""
    loaded = BpfObject.open(object_path(NAME))
    try:
        loaded.map("allocations").set_max_entries(settings.max_allocations)
        loaded.map("processes").set_max_entries(settings.max_processes)
        if one_link:
            for name in ("on_enter", "on_return"):
                loaded.program(name).set_attach_type(uprobe_multi.ATTACH_TYPE)
        loaded.load()
    except BaseException:
        loaded.close()
        raise
    return loaded


_COUNTS = ("COUNT_ALLOCATIONS", "COUNT_FREES", "COUNT_UNKNOWN_FREES")


def _usage(pid: int, values: tuple[int, ...]) -> list[Usage]:
    """Return the GPUs that a process ever had memory on, from the numbers of its struct process."""
    found = []
    for gpu in range(_MAX_GPUS + 1):
        current, peak = values[2 + 2 * gpu : 4 + 2 * gpu]
        if peak:
            found.append(Usage(pid, str(gpu) if gpu < _MAX_GPUS else UNKNOWN_GPU, current, peak))
    return found
