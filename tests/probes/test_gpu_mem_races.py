# SPDX-License-Identifier: GPL-3.0-or-later
"""What may happen at the same moment: a process exchanges what it maps, a scrape meets the stop."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cuda_stub import SUCCESS, Workload, build_library, copy_of
from zernel.bpf import Map
from zernel.gpu import libraries
from zernel.observe.config import GpuMem
from zernel.observe.gpu_mem import GpuMemory

Start = Callable[..., Workload]

# Maps one page of a file; at each line that it reads, another file's first page at the same address.
_EXCHANGING = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
def show(path, address, flags):
    with open(path) as file:
        found = libc.mmap(address, 4096, 1, 2 | flags, file.fileno(), 0)
    assert found != 2**64 - 1
    print("done", flush=True)
    return found
address = show(sys.argv[1], None, 0)
for line in sys.stdin:
    show(line.strip(), address, 0x10)  # MAP_FIXED
"""


@contextmanager
def exchanging(path: Path) -> Iterator[tuple[int, Callable[[Path], None]]]:
    """Run a process that maps ``path``; give its pid, and what makes it map another file in its place."""
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", _EXCHANGING, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"

        def exchange(other: Path) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{other}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"

        yield process.pid, exchange
        process.stdin.close()


def scanned(pid: int) -> dict[libraries.Inode, libraries.Copy]:
    scan = libraries.ProcessScan()
    scan.start()
    while (found := scan.step(60)) is None:
        pass
    return {inode: copy for inode, copy in found.items() if copy.name.endswith(f" of process {pid}")}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two libraries that could both be probed."""
    return build_library(tmp_path / "shown"), build_library(tmp_path / "other")


@pytest.fixture(params=["this", "older"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This kernel's way of attaching, and that of kernels before 6.6."""
    if request.param == "older":
        monkeypatch.setattr("zernel.bpf.uprobe_multi.supported", lambda _: False)


def allocations_seen(probe: GpuMemory, workload: Workload) -> int:
    before = probe.read().allocations
    assert workload.ready().do("alloc 64 5") == SUCCESS
    return probe.read().allocations - before


@pytest.mark.usefixtures("kernel")
def test_a_file_exchanged_before_it_is_opened_is_not_probed(two: tuple[Path, Path], start: Start) -> None:
    shown, other = two
    with exchanging(shown) as (pid, exchange), GpuMemory(GpuMem()) as probe:
        found = scanned(pid)
        assert len(found) == 1
        exchange(other)
        probe.follow(found, 16)
        assert probe.libraries == []
        assert probe.unavailable == (
            f"{shown} of process {pid}: another file has taken its place since it was found"
        )
        workload = start(other)
        assert allocations_seen(probe, workload) == 0
        workload.stop()
        # What is there now is a library like any other, found in the next round.
        probe.follow(scanned(pid), 16)
        assert probe.libraries == [f"{other} of process {pid}"]


@pytest.mark.usefixtures("kernel")
def test_a_file_exchanged_after_it_was_looked_into_does_not_get_its_probes(
    two: tuple[Path, Path], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, other = two
    with exchanging(shown) as (pid, exchange), GpuMemory(GpuMem()) as probe:
        found = scanned(pid)
        look = libraries.targets

        def look_then_exchange(*arguments: object) -> list[libraries.Target]:
            result = look(*arguments)  # type: ignore[arg-type]
            exchange(other)
            return result

        monkeypatch.setattr(libraries, "targets", look_then_exchange)
        probe.follow(found, 16)
        assert probe.libraries == [f"{shown} of process {pid}"]
        assert allocations_seen(probe, start(other)) == 0
        assert allocations_seen(probe, start(shown)) == 5


def test_the_tables_are_not_freed_while_they_are_read(
    library: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    items = Map.items

    def slow(table: Map) -> object:
        if threading.current_thread() is reader:
            inside.set()
            assert go_on.wait(60)
        return items(table)

    workload = start()
    probe = GpuMemory(GpuMem())
    copy = copy_of(library)
    probe.follow({copy.inode: copy}, 16)
    assert allocations_seen(probe, workload) == 5
    readings = []
    monkeypatch.setattr(Map, "items", slow)
    reader = threading.Thread(target=lambda: readings.append(probe.read()))
    closer = threading.Thread(target=probe.close)
    reader.start()
    assert inside.wait(60)
    closer.start()
    closer.join(0.5)
    assert closer.is_alive(), "closed while another thread reads"
    go_on.set()
    for thread in (reader, closer):
        thread.join(60)
        assert not thread.is_alive()
    # A scrape that comes too late is given the last figures; a second close does nothing.
    probe.close()
    for reading in (*readings, probe.read()):
        assert (reading.allocations, [use.pid for use in reading.usage]) == (5, [workload.pid])
    assert len(readings) == 1
    assert probe.libraries == []
