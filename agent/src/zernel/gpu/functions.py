# SPDX-License-Identifier: GPL-3.0-or-later
"""Which functions of which libraries Zernel's probes are on."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Library:
    """A kind of library. ``names`` matches what its files are called; ``absent`` says that there is none."""

    soname: str
    names: re.Pattern[str]
    stem: str
    """What is in all those names."""
    directories: tuple[str, ...]
    """Where it is installed; the loader's cache tells more."""
    absent: str


@dataclass(frozen=True, slots=True)
class Exports:
    """What a probe is on. Not every version of a library has all of ``functions``, but it has ``needed``."""

    library: Library
    functions: tuple[str, ...]
    needed: tuple[str, ...]


_DIRECTORIES = ("usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib")

LIBCUDA = Library(
    "libcuda.so.1",
    # libcuda.so.1 is a link to libcuda.so.VERSION, which is what maps shows.
    re.compile(r"libcuda\.so(\.[0-9.]+)?$"),
    "libcuda.so",
    (*_DIRECTORIES, "usr/lib/x86_64-linux-gnu/nvidia/current", "usr/local/nvidia/lib64"),
    "no libcuda.so.1 is installed, and no process uses one (no NVIDIA driver?)",
)
LIBNCCL = Library(
    "libnccl.so.2",
    # PyTorch brings its own, in the wheel nvidia-nccl.
    re.compile(r"libnccl\.so"),
    "libnccl.so",
    _DIRECTORIES,
    "no libnccl.so.2 is installed, and no process uses one",
)
LIBRARIES = (LIBCUDA, LIBNCCL)

MEMORY = Exports(
    LIBCUDA,
    (
        "cuMemAlloc_v2",
        "cuMemFree_v2",
        "cuDeviceGetCount",
        "cuCtxCreate_v2",
        "cuCtxCreate_v3",
        "cuCtxCreate_v4",
        "cuCtxDestroy_v2",
        "cuCtxSetCurrent",
        "cuCtxPushCurrent_v2",
        "cuCtxPopCurrent_v2",
        "cuDevicePrimaryCtxRetain",
        "cuDevicePrimaryCtxReset_v2",
    ),
    needed=("cuMemAlloc_v2", "cuMemFree_v2"),
)
"""Who holds how much memory."""

# The twins that end in _ptsz and _ptds are for programs whose default stream is the thread's own.
WAITS = (
    "cuCtxSynchronize",
    "cuStreamSynchronize",
    "cuStreamSynchronize_ptsz",
    "cuEventSynchronize",
    # A copy between two places in the GPU's memory is not waited for.
    "cuMemcpyHtoD_v2",
    "cuMemcpyHtoD_v2_ptds",
    "cuMemcpyDtoH_v2",
    "cuMemcpyDtoH_v2_ptds",
    "cuMemcpy",
    "cuMemcpy_ptds",
)
"""Return when the GPU is done."""

LAUNCHES = (
    "cuLaunchKernel",
    "cuLaunchKernel_ptsz",
    "cuLaunchKernelEx",
    "cuLaunchKernelEx_ptsz",
    "cuLaunchCooperativeKernel",
    "cuLaunchCooperativeKernel_ptsz",
    "cuGraphLaunch",
    "cuGraphLaunch_ptsz",
)
"""Give the GPU work and return at once."""

WORK = Exports(LIBCUDA, WAITS + LAUNCHES, needed=("cuStreamSynchronize", "cuLaunchKernel"))
"""Who works with a GPU."""

COLLECTIVES = Exports(
    LIBNCCL,
    (
        # ncclBcast calls ncclBroadcast.
        "ncclAllReduce",
        "ncclBroadcast",
        "ncclReduce",
        "ncclAllGather",
        "ncclReduceScatter",
        "ncclAlltoAll",
        "ncclSend",
        "ncclRecv",
        # What was begun within a group is handed over at its end.
        "ncclGroupEnd",
    ),
    needed=("ncclAllReduce",),
)
"""Who begins a collective. The calls hand it over, they do not wait for it."""
