# SPDX-License-Identifier: GPL-3.0-or-later
"""The gpu_activity probe end to end: real uprobes on stubs, what they tell read as the scheduler reads it."""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from bpf_build import build_object
from cuda_stub import SUCCESS, Workload, build_library, build_nccl, copy_of
from zernel.bpf import BpfObject, uprobe_multi
from zernel.gpu import activity
from zernel.gpu.activity import Missing
from zernel.gpu.functions import COLLECTIVES, LAUNCHES, LIBNCCL, WAITS
from zernel.observe.config import GpuActivity
from zernel.observe.gpu_activity import GpuActivityProbe
from zernel.scheduler.maps import Layout
from zerneld_run import Zerneld, wait_until

Start = Callable[..., Workload]
MS = 1_000_000
FIELDS = ("sync_ns", "launch_ns", "nccl_ns")  # struct gpu_activity
ENDED = Missing(
    "zerneld's probe on libcuda.so.1 has ended: 'systemctl status zerneld' says why",
    "zerneld's probe on libnccl.so.2 has ended: 'systemctl status zerneld' says why",
)


class Reader:
    """What the scheduler sees of the probes."""

    def __init__(self, obj: BpfObject) -> None:
        self._activity = obj.map("gpu_activity")
        self._probes = obj.map("gpu_probes")

    def thread(self, tid: int) -> dict[str, int]:
        """Return what was seen of a thread; zeros when nothing was."""
        descriptor = os.pidfd_open(tid, os.O_EXCL)  # PIDFD_THREAD
        try:
            value = self._activity.lookup(descriptor.to_bytes(4, "little"))
        finally:
            os.close(descriptor)
        return dict(zip(FIELDS, struct.unpack("<QQQ", value or bytes(24)), strict=True))

    def missing(self) -> Missing:
        return activity.missing(self._probes)

    def wait(self, libcuda: bool, libnccl: bool) -> None:
        """Wait until these signals are there, and only these."""
        wanted = (libcuda, libnccl)
        wait_until(lambda: self.present() == wanted, f"{self.missing()}, not {wanted}")

    def present(self) -> tuple[bool, bool]:
        now = self.missing()
        return now.libcuda is None, now.libnccl is None


Reading = Callable[[], AbstractContextManager[Reader]]


@pytest.fixture(scope="module")
def reader_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Path(__file__).parent / "objects" / "gpu_reader.bpf.c"
    return build_object(source, tmp_path_factory.mktemp("reader"))


@pytest.fixture
def reading(reader_object: Path, bpffs: Path) -> Reading:
    """Begin to read what is shared in ``bpffs``."""

    @contextmanager
    def begin() -> Iterator[Reader]:
        with BpfObject.open(reader_object) as obj:
            assert activity.share(obj, bpffs / "zernel") is None
            obj.load()
            yield Reader(obj)

    return begin


def test_the_layout_that_a_number_stands_for_does_not_change(reader_object: Path) -> None:
    """Other members need another ``LAYOUT``, and then other ones here."""
    with BpfObject.open(reader_object) as obj:
        members = {
            name: {key: place[0] for key, place in Layout(obj.btf, name).places.items()}
            for name in ("gpu_activity", "gpu_probes")
        }
    assert (activity.LAYOUT, members) == (
        1,
        {
            "gpu_activity": {"sync_ns": 0, "launch_ns": 8, "nccl_ns": 16},
            "gpu_probes": {"libcuda_link": 0, "libnccl_link": 4},
        },
    )


def test_maps_of_an_older_layout_do_not_stand_in_the_way(
    bpffs: Path, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reading():
        monkeypatch.setattr(activity, "LAYOUT", activity.LAYOUT + 1)
        with reading():
            pass
    names = {path.name for path in (bpffs / "zernel").iterdir()}
    assert names == {"gpu_activity_1", "gpu_probes_1", "gpu_activity_2", "gpu_probes_2"}


@pytest.fixture(scope="module")
def nccl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A libnccl where PyTorch's wheels have theirs."""
    wheels = tmp_path_factory.mktemp("site-packages")
    return build_nccl(wheels / "nvidia" / "nccl" / "lib")


def calls(workload: Workload, reader: Reader, function: str, field: str | None) -> None:
    """Have another thread of ``workload`` call ``function``: ``field`` is set for it, and nothing else."""
    caller, main = workload.do("tid 1"), workload.do("tid")
    before = reader.thread(caller), reader.thread(main)
    began = time.monotonic_ns()
    assert workload.do(f"call {function} 1") == SUCCESS
    ended = time.monotonic_ns()
    after = reader.thread(caller)
    if field is not None:
        assert began <= after[field] <= ended, (function, field, after)
    changed = {name for name in FIELDS if after[name] != before[0][name]}
    assert changed == ({field} if field else set()), (function, changed)
    assert reader.thread(main) == before[1], function


@pytest.mark.parametrize("plain", [False, True])
def test_each_call_is_told_of_the_thread_that_made_it_and_of_no_other(
    tmp_path: Path, bpffs: Path, reading: Reading, start: Start, plain: bool
) -> None:
    library = build_library(tmp_path / "cuda", plain=plain)
    workload, bystander = start(library).ready(), start(library).ready()
    with Zerneld(tmp_path / "zerneld", bpffs=bpffs) as zerneld, reading() as reader:
        zerneld.wait_attached(library, "gpu_activity")
        reader.wait(libcuda=True, libnccl=False)
        for function in WAITS:
            calls(workload, reader, function, "sync_ns")
        for function in LAUNCHES:
            calls(workload, reader, function, "launch_ns")
        for function in ("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"):
            calls(workload, reader, function, None)
        assert set(reader.thread(bystander.pid).values()) == {0}
        assert zerneld.drops() == {}


def test_collectives_are_told_of_the_thread_that_begins_them(
    tmp_path: Path,
    library: Path,
    nccl: Path,
    bpffs: Path,
    reading: Reading,
    start: Start,
) -> None:
    workload = start(library).ready()
    with Zerneld(tmp_path, bpffs=bpffs) as zerneld, reading() as reader:
        reader.wait(libcuda=True, libnccl=False)
        assert workload.do(f"open {nccl}") == SUCCESS
        zerneld.wait_attached(nccl, "gpu_activity")
        reader.wait(libcuda=True, libnccl=True)
        for function in COLLECTIVES.functions:
            calls(workload, reader, function, "nccl_ns")
        calls(workload, reader, "ncclGroupStart", None)
        assert zerneld.value("zernel_probe_libraries", probe="gpu_activity") == 2
        workload.stop()
        # Nobody uses it any more.
        reader.wait(libcuda=False, libnccl=False)
        said = "zerneld has no probe on a libnccl.so.2"
        wait_until(lambda: said in (reader.missing().libnccl or ""), "it is still told to be probed")
        assert zerneld.value("zernel_probe_attached", probe="gpu_activity") == 0


def test_a_wait_is_told_when_it_ends(
    tmp_path: Path,
    library: Path,
    bpffs: Path,
    reading: Reading,
    start: Start,
) -> None:
    workload = start(library, sync_us=500_000).ready()
    with Zerneld(tmp_path, bpffs=bpffs) as zerneld, reading() as reader:
        zerneld.wait_attached(library, "gpu_activity")
        assert workload.process.stdin is not None
        assert workload.process.stdout is not None
        began = time.monotonic_ns()
        workload.process.stdin.write(b"call cuStreamSynchronize\n")
        during = reader.thread(workload.pid)["sync_ns"]
        if time.monotonic_ns() - began < 400 * MS:  # unless this machine was busy elsewhere
            assert during == 0
        assert workload.process.stdout.readline() == b"0\n"
        assert began + 500 * MS <= reader.thread(workload.pid)["sync_ns"] <= time.monotonic_ns()


def test_libraries_in_another_mount_namespace_are_probed(
    tmp_path: Path,
    nccl: Path,
    program: Path,
    bpffs: Path,
    reading: Reading,
    start: Start,
) -> None:
    outside, inside = build_library(tmp_path / "outside"), tmp_path / "container"
    inside.mkdir()
    script = (
        f"mount -t tmpfs none {inside} && cp {outside} {nccl} {inside} && "
        f"exec {program} {inside}/libcuda.so.1"
    )
    workload = start(None, prefix=("unshare", "--mount", "sh", "-c", script)).ready()
    with Zerneld(tmp_path / "zerneld", bpffs=bpffs) as zerneld, reading() as reader:
        zerneld.wait_attached(inside / "libcuda.so.1", "gpu_activity")
        assert not (inside / "libcuda.so.1").exists()
        calls(workload, reader, "cuStreamSynchronize", "sync_ns")
        assert workload.do(f"open {inside}/libnccl.so.2") == SUCCESS
        zerneld.wait_attached(inside / "libnccl.so.2", "gpu_activity")
        calls(workload, reader, "ncclAllReduce", "nccl_ns")


def test_whoever_comes_first_the_other_finds_its_map_also_after_a_restart(
    tmp_path: Path,
    library: Path,
    bpffs: Path,
    reading: Reading,
    start: Start,
) -> None:
    workload = start(library).ready()
    with reading() as first:
        assert first.present() == (False, False)
        with Zerneld(tmp_path / "one", bpffs=bpffs):
            first.wait(libcuda=True, libnccl=False)
            calls(workload, first, "cuLaunchKernel", "launch_ns")
            with reading() as second:
                assert second.present() == (True, False)
                calls(workload, second, "cuGraphLaunch", "launch_ns")
                assert first.thread(workload.do("tid 1")) == second.thread(workload.do("tid 1"))
        with Zerneld(tmp_path / "two", bpffs=bpffs):
            first.wait(libcuda=True, libnccl=False)
            calls(workload, first, "cuCtxSynchronize", "sync_ns")
    # The scheduler, too, may come back.
    with Zerneld(tmp_path / "three", bpffs=bpffs), reading() as third:
        third.wait(libcuda=True, libnccl=False)
        calls(workload, third, "cuCtxSynchronize", "sync_ns")


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_without_a_writer_the_signal_is_absent(
    tmp_path: Path,
    library: Path,
    nccl: Path,
    bpffs: Path,
    reading: Reading,
    start: Start,
    end: str,
) -> None:
    workload = start(library).ready()
    assert workload.do(f"open {nccl}") == SUCCESS
    with reading() as reader:
        with Zerneld(tmp_path, bpffs=bpffs) as zerneld:
            reader.wait(libcuda=True, libnccl=True)
            if end == "kill":
                zerneld.process.kill()
            else:
                assert zerneld.stop() == 0
            zerneld.process.wait(20)
            reader.wait(libcuda=False, libnccl=False)
        assert reader.missing() == ENDED
        calls(workload, reader, "ncclAllReduce", None)


def test_it_can_be_switched_off_and_on(
    tmp_path: Path,
    library: Path,
    bpffs: Path,
    reading: Reading,
    start: Start,
) -> None:
    workload = start(library).ready()
    off = "[gpu_activity]\nenabled = false"
    with Zerneld(tmp_path, off, bpffs=bpffs) as zerneld:
        zerneld.wait_attached(library)
        assert not (bpffs / "zernel").exists()
        assert zerneld.value("zernel_probe_attached", probe="gpu_activity") == 0
        assert zerneld.value("zernel_probe_runs_total", probe="gpu_activity") is None
        with reading() as reader:
            assert reader.present() == (False, False)
            zerneld.configure()
            zerneld.reload()
            assert reader.present() == (True, False)
            calls(workload, reader, "cuLaunchKernel", "launch_ns")
            assert zerneld.value("zernel_probe_attached", probe="gpu_activity") == 1
            assert (zerneld.value("zernel_probe_runs_total", probe="gpu_activity") or 0) >= 1
            zerneld.configure(off)
            zerneld.reload()
            assert "zerneld has no probe on a libcuda.so.1" in (reader.missing().libcuda or "")
            calls(workload, reader, "cuLaunchKernel", None)
            assert zerneld.value("zernel_probe_attached", probe="gpu_activity") == 0
        assert any("switched off by 'enabled' in [gpu_activity]" in notice for notice in zerneld.notices)


def test_without_a_bpf_file_system_the_rest_works_and_it_says_so(
    tmp_path: Path, library: Path, start: Start
) -> None:
    elsewhere = tmp_path / "no-bpffs"
    elsewhere.mkdir()
    workload = start(library)
    with Zerneld(tmp_path / "zerneld", bpffs=elsewhere) as zerneld:
        zerneld.wait_attached(library)
        assert "gpu_activity cannot be used: no BPF file system is mounted at /sys/fs/bpf" in zerneld.log
        assert any("gpu_activity unavailable: no BPF file" in notice for notice in zerneld.notices)
        assert zerneld.value("zernel_probe_attached", probe="gpu_activity") == 0
        assert workload.ready().do("alloc 1024 3") == SUCCESS
        assert zerneld.memory(workload.pid) == {"0": (3072, 3072)}
        assert not list(elsewhere.iterdir())


def test_a_library_that_lacks_what_is_needed_is_refused_and_counted(
    tmp_path: Path, library: Path, bpffs: Path, start: Start
) -> None:
    fake = tmp_path / "fake" / "libnccl.so.2"
    fake.parent.mkdir()
    shutil.copy(library, fake)
    workload = start(library)
    assert workload.do(f"open {fake}") == SUCCESS
    with Zerneld(tmp_path / "zerneld", bpffs=bpffs) as zerneld:
        zerneld.wait_attached(library, "gpu_activity")
        said = f"gpu_activity: not probed: {fake} of process {workload.pid}: it does not export ncclAllReduce"
        wait_until(lambda: said in zerneld.log, zerneld.log)
        assert zerneld.value("zernel_probe_refused_libraries", probe="gpu_activity") == 1
        assert zerneld.value("zernel_probe_refused_libraries", probe="gpu_mem") == 0
        assert zerneld.value("zernel_probe_attached", probe="gpu_activity") == 1


def test_one_attachment_for_each_function_tells_the_same(
    library: Path,
    nccl: Path,
    bpffs: Path,
    reading: Reading,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on kernels before 6.6."""
    monkeypatch.setattr(uprobe_multi, "supported", lambda _: False)
    copies = [copy_of(library), copy_of(nccl, LIBNCCL)]
    workload = start(library).ready()
    with reading() as reader:
        probe = GpuActivityProbe(GpuActivity(), bpffs / "zernel")
        try:
            probe.follow({copy.inode: copy for copy in copies}, 16)
            assert probe.libraries == [str(library), str(nccl)]
            assert reader.present() == (True, True)
            calls(workload, reader, "cuMemcpyDtoH_v2", "sync_ns")
            calls(workload, reader, "cuLaunchKernelEx", "launch_ns")
            assert workload.do(f"open {nccl}") == SUCCESS
            calls(workload, reader, "ncclSend", "nccl_ns")
        finally:
            probe.close()
        assert reader.missing() == ENDED
