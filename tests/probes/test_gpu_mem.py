# SPDX-License-Identifier: GPL-3.0-or-later
"""The gpu_mem probe end to end: real uprobes on the stub libcuda, figures scraped over HTTP."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cuda_stub import (
    ILLEGAL_ADDRESS,
    INVALID_CONTEXT,
    INVALID_VALUE,
    OUT_OF_MEMORY,
    SUCCESS,
    Workload,
    copy_of,
)
from zernel.gpu import libraries
from zernel.gpu.functions import MEMORY
from zerneld_run import Zerneld, wait_until

Start = Callable[..., Workload]
KIB = 1024
FIRST = 0x7F0000000000  # where the stub's memory starts


def counters(zerneld: Zerneld) -> dict[str, float]:
    """Return the host-wide counters, allocation failures by code among them."""
    found = {}
    for (name, labels), value in zerneld.scrape().items():
        if name.startswith("zernel_gpu_memory_") and name.endswith("_total"):
            found[name.removeprefix("zernel_gpu_memory_") + dict(labels).get("code", "")] = value
    return found


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}


def test_every_allocation_and_free_is_counted(zerneld: Zerneld, start: Start) -> None:
    before = counters(zerneld)
    workload = start().ready()
    assert workload.do("alloc 1024 1000") == SUCCESS
    assert workload.do("alloc 4096 10") == SUCCESS
    assert zerneld.memory(workload.pid) == {"0": (1000 * KIB + 40 * KIB, 1040 * KIB)}
    assert workload.do("free 15") == SUCCESS  # the newest: 10 of 4 KiB, 5 of 1 KiB
    assert zerneld.memory(workload.pid) == {"0": (995 * KIB, 1040 * KIB)}
    assert workload.do("free 995") == SUCCESS
    assert zerneld.memory(workload.pid) == {"0": (0, 1040 * KIB)}
    assert grown(before, counters(zerneld)) == {"allocations_total": 1010, "frees_total": 1010}


def test_the_peak_grows_again_only_past_the_old_one(zerneld: Zerneld, start: Start) -> None:
    workload = start().ready()
    for command, used, peak in (
        ("alloc 1024 8", 8, 8),
        ("free 6", 2, 8),
        ("alloc 1024 3", 5, 8),
        ("alloc 1024 4", 9, 9),
    ):
        assert workload.do(command) == SUCCESS
        assert zerneld.memory(workload.pid) == {"0": (used * KIB, peak * KIB)}


def test_sizes_beyond_32_bits_are_kept(zerneld: Zerneld, start: Start) -> None:
    size = 80 << 30
    workload = start(memory=1 << 40).ready()
    assert workload.do(f"alloc {size} 2") == SUCCESS
    assert zerneld.memory(workload.pid) == {"0": (2 * size, 2 * size)}


def test_processes_and_threads_at_once_lose_nothing(zerneld: Zerneld, start: Start) -> None:
    """The stub gives a freed address to the next caller at once: the hardest case for the table."""
    threads, times = 8, 1500
    kept = sum((1 + thread) * 256 for thread in range(threads))
    before = counters(zerneld)
    workloads = [start().ready() for _ in range(4)]
    for workload in workloads:
        assert workload.process.stdin is not None
        workload.process.stdin.write(f"storm {threads} 0 {times}\n".encode())
    for workload in workloads:
        assert workload.process.stdout is not None
        assert workload.process.stdout.readline() == b"0\n"
        ((gpu, (used, peak)),) = zerneld.memory(workload.pid).items()
        assert (gpu, used) == ("0", kept)
        assert kept <= peak <= 2 * kept
    calls = len(workloads) * threads * times
    assert grown(before, counters(zerneld)) == {
        "allocations_total": calls + len(workloads) * threads,
        "frees_total": calls,
    }
    assert zerneld.drops() == {}


def test_failures_are_counted_by_their_code_and_hold_no_memory(zerneld: Zerneld, start: Start) -> None:
    before = counters(zerneld)
    workload = start(memory=10_000).ready()
    assert workload.do("alloc 4000 3") == OUT_OF_MEMORY  # two fit
    assert workload.do("alloc 0 5") == INVALID_VALUE
    assert workload.do("unset") == SUCCESS
    assert workload.do("alloc 1 7") == INVALID_CONTEXT
    assert zerneld.memory(workload.pid) == {"0": (8000, 8000)}
    assert grown(before, counters(zerneld)) == {
        "allocations_total": 2,
        "allocation_failures_total2": 1,
        "allocation_failures_total1": 5,
        "allocation_failures_total201": 7,
    }


def test_a_free_that_fails_frees_nothing(zerneld: Zerneld, start: Start) -> None:
    workload = start().ready()
    assert workload.do("alloc 1024 2") == SUCCESS
    before = counters(zerneld)
    assert workload.do("badfree 4096") == INVALID_VALUE
    assert workload.do("badfree 0") == SUCCESS  # does nothing, by definition
    assert grown(before, counters(zerneld)) == {}
    assert zerneld.memory(workload.pid) == {"0": (2 * KIB, 2 * KIB)}


def test_freeing_twice_fails_and_leaves_what_is_there_now(zerneld: Zerneld, start: Start) -> None:
    workload = start().ready()
    assert workload.do("alloc 1024 1") == SUCCESS
    assert workload.do(f"badfree {FIRST}") == SUCCESS
    assert workload.do(f"badfree {FIRST}") == INVALID_VALUE
    assert zerneld.memory(workload.pid) == {"0": (0, KIB)}
    assert workload.do("alloc 2048 1") == SUCCESS  # the same address again
    assert zerneld.memory(workload.pid) == {"0": (2 * KIB, 2 * KIB)}


def test_memory_whose_free_failed_is_still_held_and_can_be_freed_later(
    zerneld: Zerneld, start: Start
) -> None:
    workload = start().ready()
    assert workload.do("alloc 1024 1") == SUCCESS
    assert workload.do("break 1") == SUCCESS
    before = counters(zerneld)
    assert workload.do(f"badfree {FIRST}") == ILLEGAL_ADDRESS
    assert grown(before, counters(zerneld)) == {}
    assert zerneld.memory(workload.pid) == {"0": (KIB, KIB)}
    assert workload.do("break 0") == SUCCESS
    assert workload.do("free 1") == SUCCESS
    assert zerneld.memory(workload.pid) == {"0": (0, KIB)}
    assert grown(before, counters(zerneld)) == {"frees_total": 1}


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_dead_process_vanishes(zerneld: Zerneld, start: Start, end: str) -> None:
    workload, other = start().ready(), start().ready()
    for one in (workload, other):
        assert one.do("alloc 1024 100") == SUCCESS
        assert zerneld.memory(one.pid)
    getattr(workload, end)()
    assert zerneld.memory(workload.pid) == {}
    assert zerneld.memory(other.pid) == {"0": (100 * KIB, 100 * KIB)}


def test_what_a_dead_process_held_leaves_the_table(tmp_path: Path, library: Path, start: Start) -> None:
    """The table holds 1024: many processes that never free must each find it empty."""
    with start(), Zerneld(tmp_path, "[gpu_mem]\nmax_allocations = 1024") as zerneld:
        zerneld.wait_attached(library)
        for _ in range(3):
            workload = start().ready()
            assert workload.do("alloc 1024 1000") == SUCCESS
            assert zerneld.memory(workload.pid) == {"0": (1000 * KIB, 1000 * KIB)}
            workload.kill()
        assert zerneld.drops() == {}


def test_an_address_that_another_call_freed_is_counted_once(zerneld: Zerneld, start: Start) -> None:
    """cuMemFreeAsync is not probed: that the memory is gone shows when its address is given out again."""
    workload = start().ready()
    assert workload.do("alloc 1024 1") == SUCCESS
    assert workload.do(f"asyncfree {FIRST}") == SUCCESS
    assert zerneld.memory(workload.pid) == {"0": (KIB, KIB)}
    assert workload.do("alloc 4096 1") == SUCCESS
    assert zerneld.memory(workload.pid) == {"0": (4 * KIB, 4 * KIB)}


def test_exec_ends_what_the_program_held_and_the_next_one_starts_afresh(
    zerneld: Zerneld, library: Path, program: Path, start: Start
) -> None:
    script = (
        "import ctypes, os, sys\n"
        "cuda = ctypes.CDLL(sys.argv[1]); n = ctypes.c_int()\n"
        "out = ctypes.c_uint64(); ctx = ctypes.c_void_p()\n"
        "assert not cuda.cuInit(0) and not cuda.cuDeviceGetCount(ctypes.byref(n))\n"
        "assert not cuda.cuCtxCreate_v2(ctypes.byref(ctx), 0, 0)\n"
        "assert not cuda.cuMemAlloc_v2(ctypes.byref(out), ctypes.c_size_t(5000))\n"
        # A stack deeper than the probe remembers: it must not be taken for the next program's.
        "for _ in range(12): assert not cuda.cuCtxPushCurrent_v2(ctx)\n"
        "print(0, flush=True); sys.stdin.readline()\n"
        "os.execv(sys.argv[2], [sys.argv[2], sys.argv[1]])\n"
    )
    workload = start(None, devices=2, prefix=(sys.executable, "-c", script, str(library)))
    assert workload.process.stdout is not None
    assert workload.process.stdout.readline() == b"0\n"
    assert zerneld.memory(workload.pid) == {"0": (5000, 5000)}
    assert workload.process.stdin is not None
    workload.process.stdin.write(b"\n")
    wait_until(lambda: not zerneld.memory(workload.pid), "still shown after exec")
    workload.ready(device=1)
    assert workload.do("alloc 1024 1") == SUCCESS
    assert zerneld.memory(workload.pid) == {"1": (KIB, KIB)}


def test_plain_functions_are_probed_at_their_start(
    tmp_path: Path, plain_library: Path, zerneld: Zerneld, start: Start
) -> None:
    workload = start(plain_library)
    zerneld.wait_attached(plain_library)
    workload.ready()
    assert workload.do("alloc 1024 100") == SUCCESS
    assert workload.do("free 40") == SUCCESS
    assert zerneld.memory(workload.pid) == {"0": (60 * KIB, 100 * KIB)}
    assert (
        f"{plain_library} of process {workload.pid}: 12 functions, 12 of them at their first" in zerneld.log
    )


def test_thunks_are_probed_past_their_compare(zerneld: Zerneld, library: Path) -> None:
    found, _ = libraries.usable(copy_of(library), MEMORY)
    assert all(target.past_compare for target in found)
    lines = [line for line in zerneld.log.splitlines() if f"gpu_mem: probing {library}" in line]
    assert lines
    assert all(line.endswith("12 functions") for line in lines)
