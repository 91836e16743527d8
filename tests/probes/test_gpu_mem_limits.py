# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe at its limits: full tables, the older way of attaching, one library probed twice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cuda_stub import SUCCESS, Workload, copy_of
from zernel.bpf import BpfObject, enable_run_stats, uprobe_multi
from zernel.observe.config import GpuMem
from zernel.observe.gpu_mem import GpuMemory
from zerneld_run import CLONE, Zerneld

Start = Callable[..., Workload]
KIB = 1024


def followed(probe: GpuMemory, *paths: Path) -> None:
    probe.follow({copy.inode: copy for copy in map(copy_of, paths)}, 16)
    assert len(probe.libraries) == len(paths), probe.unavailable


def test_a_full_table_is_counted_and_what_is_in_it_stays_right(
    tmp_path: Path, library: Path, start: Start
) -> None:
    workload = start()
    with Zerneld(tmp_path, "[gpu_mem]\nmax_allocations = 1024") as zerneld:
        zerneld.wait_attached(library)
        workload.ready()
        assert workload.do("alloc 1000 1500") == SUCCESS
        assert zerneld.memory(workload.pid) == {"0": (1_024_000, 1_024_000)}
        assert zerneld.drops() == {"allocation_table_full": 476}
        assert zerneld.value("zernel_gpu_memory_allocations_total") == 1500
        assert workload.do("free 1500") == SUCCESS
        assert zerneld.memory(workload.pid) == {"0": (0, 1_024_000)}
        assert zerneld.value("zernel_gpu_memory_unknown_frees_total") == 476


def test_a_process_too_many_is_counted_and_the_others_stay_right(
    tmp_path: Path, library: Path, start: Start
) -> None:
    workloads = [start() for _ in range(18)]
    with Zerneld(tmp_path, "[gpu_mem]\nmax_processes = 16") as zerneld:
        zerneld.wait_attached(library)
        for workload in workloads:
            assert workload.ready().do("alloc 1024 1") == SUCCESS
        shown = [workload for workload in workloads if zerneld.memory(workload.pid)]
        assert len(shown) == 16
        assert all(zerneld.memory(workload.pid) == {"0": (KIB, KIB)} for workload in shown)
        assert zerneld.drops()["process_table_full"] >= 2
        shown[0].kill()
        late = next(workload for workload in workloads if workload not in shown)
        assert late.do("count") == SUCCESS
        assert late.do("alloc 1024 1") == SUCCESS
        assert zerneld.memory(late.pid) == {"0": (KIB, KIB)}


@pytest.mark.usefixtures("older_kernel")
def test_one_attachment_for_each_function_counts_the_same(library: Path, start: Start) -> None:
    with GpuMemory(GpuMem()) as probe:
        followed(probe, library)
        workload = start(devices=4)
        for command in ("init", "count", "create 3", "alloc 1024 9", "free 2", "create 1 4", "alloc 10 1"):
            assert workload.do(command) == SUCCESS
        reading = probe.read()
    assert [(use.pid, use.gpu, use.current_bytes, use.peak_bytes) for use in reading.usage] == [
        (workload.pid, "1", 10, 10),
        (workload.pid, "3", 7 * KIB, 9 * KIB),
    ]
    assert (reading.allocations, reading.frees) == (10, 2)


@pytest.fixture
def older_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel before 6.6, which has no link for many functions."""
    monkeypatch.setattr(uprobe_multi, "supported", lambda _: False)


def test_a_kernel_without_such_links_is_recognized() -> None:
    """Asked with a program that is not made for such links, this kernel answers as an older one does."""
    with BpfObject.open(CLONE / "bpf" / "gpu_mem.bpf.o") as loaded:
        loaded.load()
        assert not uprobe_multi.supported(loaded.program("on_enter").fd)


@pytest.fixture
def two_mounts(tmp_path: Path, library: Path) -> Iterator[tuple[Path, Path]]:
    """One directory below two overlays, as two containers of one image have it: two inodes, one file."""
    lower = tmp_path / "image"
    lower.mkdir()
    (lower / "libcuda.so.1").write_bytes(library.read_bytes())
    (lower / "libcuda.so.1").chmod(0o755)
    places = []
    try:
        for name in ("one", "two"):
            place = tmp_path / name
            for part in ("upper", "work", "merged"):
                (place / part).mkdir(parents=True)
            options = f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work"
            subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, place / "merged"], check=True)
            places.append(place / "merged")
        yield places[0] / "libcuda.so.1", places[1] / "libcuda.so.1"
    finally:
        for place in places:
            subprocess.run(["umount", "--lazy", place], check=True)


@contextmanager
def run_stats() -> Iterator[None]:
    stats = enable_run_stats()
    try:
        yield
    finally:
        os.close(stats)


@pytest.mark.parametrize("kernel", ["this", "older"])
def test_a_library_reached_through_two_mounts_is_counted_once(
    two_mounts: tuple[Path, Path], start: Start, request: pytest.FixtureRequest, kernel: str
) -> None:
    if kernel == "older":
        request.getfixturevalue("older_kernel")
    one, two = two_mounts
    assert copy_of(one).inode != copy_of(two).inode
    with GpuMemory(GpuMem()) as probe, run_stats():
        followed(probe, one, two)
        workload = start(one, devices=2)
        assert workload.do("init") == SUCCESS
        before = probe.read().runs
        for _ in range(100):
            assert workload.do("count") == SUCCESS
        # Entering and returning, each by both attachments: the kernel sees one file behind the two mounts.
        # More than that are other processes that end meanwhile.
        assert 400 <= probe.read().runs - before < 800
        for command in (
            "create 0",
            "create 1",
            "alloc 1024 10",
            "free 3",
            "pop",
            "alloc 1 1",
        ):
            assert workload.do(command) == SUCCESS
        assert workload.do("storm 4 1 500") == SUCCESS
        reading = probe.read()
    assert [(use.gpu, use.current_bytes) for use in reading.usage] == [("0", 1), ("1", 7 * KIB + 2560)]
    assert (reading.allocations, reading.frees) == (11 + 2004, 3 + 2000)
    assert not any(reading.drops.values())
