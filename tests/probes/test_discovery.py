# SPDX-License-Identifier: GPL-3.0-or-later
"""Libraries come and go, live in other mount namespaces, lose their names, or are none: zerneld follows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from cuda_stub import INVALID_VALUE, NO_DEVICE, NOT_INITIALIZED, SUCCESS, Workload, build_library, copy_of
from debian_packages import unpacked
from zernel.gpu import libraries
from zernel.gpu.functions import MEMORY, WORK
from zerneld_run import Zerneld, wait_until

Start = Callable[..., Workload]
KIB = 1024


def test_without_a_library_it_says_so_and_attaches_once_one_is_used(tmp_path: Path, start: Start) -> None:
    with Zerneld(tmp_path / "zerneld") as zerneld:
        assert "gpu_mem unavailable: no libcuda.so.1 is installed, and no process uses one" in zerneld.log
        assert any("STATUS=gpu_mem unavailable" in notice for notice in zerneld.notices)
        samples = zerneld.scrape()
        assert samples["zernel_probe_attached", frozenset({("probe", "gpu_mem")})] == 0
        assert not [name for name, _ in samples if name.startswith("zernel_gpu_memory")]
        assert zerneld.get("/-/ready") == (200, "ready\n")

        workload = start(None)
        late = build_library(tmp_path / "late")
        assert workload.do(f"open {late}") == SUCCESS
        zerneld.wait_attached(late)
        assert workload.ready().do("alloc 1024 3") == SUCCESS
        assert zerneld.memory(workload.pid) == {"0": (3 * KIB, 3 * KIB)}
        assert zerneld.value("zernel_probe_attached", probe="gpu_mem") == 1
        assert zerneld.value("zernel_probe_libraries", probe="gpu_mem") == 1

        # Nobody uses it any more: it is let go, so that its file system can be unmounted for good.
        workload.stop()
        wait_until(lambda: f"gpu_mem: no longer probing {late}" in zerneld.log, "still probed")
        assert zerneld.value("zernel_probe_attached", probe="gpu_mem") == 0
        assert not [name for name, _ in zerneld.scrape() if name.startswith("zernel_gpu_memory")]


def test_a_copy_in_another_mount_namespace_is_found(tmp_path: Path, program: Path, start: Start) -> None:
    """As in a container with an image of its own: outside, the path does not exist."""
    library = build_library(tmp_path / "outside")
    inside = tmp_path / "container"
    inside.mkdir()
    script = f"mount -t tmpfs none {inside} && cp {library} {inside} && exec {program} {inside}/libcuda.so.1"
    # The shell execs the workload, which opens the library: the pid is that of unshare.
    workload = start(None, prefix=("unshare", "--mount", "sh", "-c", script))
    with Zerneld(tmp_path / "zerneld") as zerneld:
        zerneld.wait_attached(inside / "libcuda.so.1")
        assert not (inside / "libcuda.so.1").exists()
        assert workload.ready().do("alloc 1024 7") == SUCCESS
        assert zerneld.memory(workload.pid) == {"0": (7 * KIB, 7 * KIB)}


def test_a_process_in_another_pid_namespace_has_its_pid_of_the_host(
    tmp_path: Path, program: Path, start: Start
) -> None:
    library = build_library(tmp_path / "container")
    outer = start(library, prefix=("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"))
    with Zerneld(tmp_path / "zerneld") as zerneld:
        zerneld.wait_attached(library)
        assert outer.ready().do("alloc 1024 1") == SUCCESS
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        assert zerneld.memory(int(children[0])) == {"0": (KIB, KIB)}


def test_a_deleted_library_is_still_probed(tmp_path: Path, start: Start) -> None:
    """As after an upgrade of the driver under a running job, which keeps the old file."""
    library = build_library(tmp_path / "old")
    workload = start(library)
    assert workload.do("init") == SUCCESS
    library.unlink()
    with Zerneld(tmp_path / "zerneld") as zerneld:
        zerneld.wait_attached(library)
        assert workload.ready().do("alloc 1024 7") == SUCCESS
        assert zerneld.memory(workload.pid) == {"0": (7 * KIB, 7 * KIB)}


def test_a_replaced_library_is_another_one(tmp_path: Path, start: Start) -> None:
    library = build_library(tmp_path / "driver")
    before = start(library)
    assert before.do("init") == SUCCESS
    with Zerneld(tmp_path / "zerneld") as zerneld:
        zerneld.wait_attached(library)
        replacement = build_library(tmp_path / "new")
        replacement.rename(library)
        after = start(library)
        wait_until(lambda: zerneld.value("zernel_probe_libraries", probe="gpu_mem") == 2, zerneld.log)
        for workload in (before, after):
            assert workload.ready().do("alloc 1024 2") == SUCCESS
            assert zerneld.memory(workload.pid) == {"0": (2 * KIB, 2 * KIB)}


def test_what_is_no_library_is_said_once_and_harms_nothing(
    tmp_path: Path, program: Path, library: Path, start: Start
) -> None:
    fake = tmp_path / "fake" / "libcuda.so.1"
    fake.parent.mkdir()
    fake.write_bytes(library.read_bytes()[:200] + bytes(8000))
    script = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as f: m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n"
        "print(0, flush=True); sys.stdin.readline()\n"
    )
    liar = start(None, prefix=("/usr/bin/python3", "-c", script, str(fake)))
    assert liar.process.stdout is not None
    assert liar.process.stdout.readline() == b"0\n"
    honest = start(library)
    with Zerneld(tmp_path / "zerneld") as zerneld:
        zerneld.wait_attached(library)
        said = f"gpu_mem: not probed: {fake} of process {liar.pid}"
        wait_until(lambda: said in zerneld.log, zerneld.log)
        assert honest.ready().do("alloc 1024 1") == SUCCESS
        assert zerneld.memory(honest.pid) == {"0": (KIB, KIB)}
        assert zerneld.value("zernel_probe_refused_libraries", probe="gpu_mem") == 1
        assert zerneld.log.count("gpu_mem: not probed") == 1


def test_a_library_too_many_is_said_and_probed_when_there_is_room(tmp_path: Path, start: Start) -> None:
    built = [build_library(tmp_path / name) for name in ("one", "two")]
    workloads = [start(library) for library in built]
    with Zerneld(tmp_path / "zerneld", "max_libraries = 1") as zerneld:
        wait_until(lambda: "1 libraries are probed already" in zerneld.log, zerneld.log)
        assert zerneld.value("zernel_probe_libraries", probe="gpu_mem") == 1
        probed = 0 if f"gpu_mem: probing {built[0]}" in zerneld.log else 1
        workloads[probed].stop()
        zerneld.wait_attached(built[1 - probed])
        assert workloads[1 - probed].ready().do("alloc 1024 1") == SUCCESS
        assert zerneld.memory(workloads[1 - probed].pid) == {"0": (KIB, KIB)}


def test_nvidias_own_library_is_probed_without_a_gpu(tmp_path: Path, start: Start) -> None:
    """Debian's libcuda1: its exports fire, and fail, for there is no GPU."""
    directory = unpacked("libcuda1") / "usr/lib/x86_64-linux-gnu/nvidia/current"
    real = (directory / "libcuda.so.1").resolve()
    for exports in (MEMORY, WORK):
        found, why = libraries.usable(copy_of(real), exports)
        assert why is None
        lacking = set(exports.functions) - {target.function for target in found}
        assert lacking <= {"cuCtxCreate_v4"}, "of CUDA 12.5"
        assert all(target.past_compare for target in found), "the thunks of this driver look different"

    copy = tmp_path / "libcuda.so.1"
    shutil.copy(real, copy)
    workload = start(copy)
    with Zerneld(tmp_path / "zerneld") as zerneld:
        zerneld.wait_attached(copy)
        assert workload.do("init") == NO_DEVICE
        result = workload.do("alloc 4096 25")
        assert result != SUCCESS
        assert zerneld.value("zernel_gpu_memory_allocation_failures_total", code=str(result)) == 25
        assert zerneld.value("zernel_gpu_memory_allocations_total") == 0
        assert zerneld.memory(workload.pid) == {}
        assert workload.do("badfree 4096") not in (SUCCESS, INVALID_VALUE)
        assert zerneld.value("zernel_gpu_memory_frees_total") == 0
        assert result in (NOT_INITIALIZED, NO_DEVICE)
