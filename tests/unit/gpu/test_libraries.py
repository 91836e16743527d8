# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding libcuda: by the loader's cache, the usual directories, and what processes have mapped."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuda_stub import build_nccl, copy_of
from zernel.gpu import libraries
from zernel.gpu.functions import (
    COLLECTIVES,
    LIBCUDA,
    LIBNCCL,
    LIBRARIES,
    MEMORY,
    WORK,
    Exports,
    Library,
)


def cache(*paths: tuple[str, str]) -> bytes:
    """Return an ld.so.cache of glibc's format 1.1 with (name, path) entries."""
    strings, entries = b"", b""
    base = 48 + 24 * len(paths)
    for name, path in paths:
        entries += struct.pack(
            "<iIIIQ", 0x0303, base + len(strings), base + len(strings) + len(name) + 1, 0, 0
        )
        strings += f"{name}\0{path}\0".encode()
    head = b"glibc-ld.so.cache1.1" + struct.pack("<II", len(paths), len(strings)) + bytes(20)
    return head + entries + strings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc").mkdir()
    return tmp_path


def place(library: Path, where: Path) -> None:
    where.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(library, where)


def test_the_loaders_cache_and_the_usual_directories_are_looked_at(root: Path, thunked: Path) -> None:
    place(thunked, root / "opt/driver/libcuda.so.1")
    place(thunked, root / "usr/lib64/libcuda.so.1")
    data = cache(("libc.so.6", "/usr/lib/libc.so.6"), ("libcuda.so.1", "/opt/driver/libcuda.so.1"))
    (root / "etc/ld.so.cache").write_bytes(data)
    assert [copy.name for copy in libraries.installed(LIBCUDA, root)] == [
        "/opt/driver/libcuda.so.1",
        "/usr/lib64/libcuda.so.1",
    ]


def test_the_real_cache_of_this_machine_is_understood() -> None:
    """libc is in every cache; the same code reads libcuda's entry."""
    found = list(libraries.loader_cache(Path("/"), "libc.so.6"))
    assert any(Path(path).exists() for path in found)


def test_two_names_of_one_file_are_one_library(root: Path, thunked: Path) -> None:
    place(thunked, root / "usr/lib/x86_64-linux-gnu/libcuda.so.535.1")
    for name in ("usr/lib/x86_64-linux-gnu/libcuda.so.1", "usr/lib64/libcuda.so.1"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(root / "usr/lib/x86_64-linux-gnu/libcuda.so.535.1")
    assert len(libraries.installed(LIBCUDA, root)) == 1


@given(st.binary(max_size=300))
def test_a_damaged_cache_gives_nothing_but_paths(data: bytes) -> None:
    for content in (data, b"glibc-ld.so.cache1.1" + data):
        assert all(isinstance(path, str) for path in libraries.cached_paths(content, "libcuda.so.1"))


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_installed_is_no_error(root: Path, library: Library) -> None:
    assert libraries.installed(library, root) == []


@pytest.mark.parametrize("exports", [MEMORY, WORK])
def test_a_thunk_is_probed_past_its_compare(thunked: Path, plain: Path, exports: Exports) -> None:
    for library, past in ((thunked, True), (plain, False)):
        found, why = libraries.usable(copy_of(library), exports)
        assert why is None
        assert [target.function for target in found] == list(exports.functions)
        assert {target.past_compare for target in found} == {past}
        data = library.read_bytes()
        for target in found:
            # At the je of the thunk, or at the first instruction of a function.
            assert (
                data[target.offset] == 0x74
                if past
                else data[target.offset : target.offset + 2] != b"\x81\x3d"
            )


def test_a_library_without_the_two_functions_is_told_apart(tmp_path: Path) -> None:
    libc = next(Path(path) for path in libraries.loader_cache(Path("/"), "libc.so.6") if Path(path).exists())
    shutil.copy(libc, tmp_path / "libcuda.so.1")
    assert libraries.usable(copy_of(tmp_path / "libcuda.so.1"), MEMORY) == (
        [],
        "it does not export cuMemAlloc_v2, cuMemFree_v2",
    )


def test_a_library_that_vanished_is_told_apart(tmp_path: Path, thunked: Path) -> None:
    shutil.copy(thunked, tmp_path / "libcuda.so.1")
    copy = copy_of(tmp_path / "libcuda.so.1")
    copy.path.unlink()
    assert libraries.usable(copy, MEMORY) == ([], "No such file or directory")


def test_a_file_that_took_its_place_is_not_taken_for_it(tmp_path: Path, thunked: Path, plain: Path) -> None:
    """What leads to a mapped file is in the hands of the process that maps it."""
    for replacement in (lambda path: place(plain, path), os.mkfifo):
        path = tmp_path / "libcuda.so.1"
        place(thunked, path)
        copy = copy_of(path)
        path.rename(tmp_path / "old")
        replacement(path)
        assert libraries.usable(copy, MEMORY) == ([], "another file has taken its place since it was found")
        path.unlink()


def test_the_hosts_own_libraries_come_before_those_of_processes(
    root: Path, thunked: Path, plain: Path
) -> None:
    place(thunked, root / "usr/lib64/libcuda.so.1")
    own = copy_of(root / "usr/lib64/libcuda.so.1")
    of_a_process = libraries.Copy(LIBCUDA, own.inode, Path("/proc/7/map_files/0-1000"), "used by process 7")
    found = {copy_of(plain).inode: copy_of(plain), own.inode: of_a_process}
    ordered = libraries.with_installed(found, root)
    assert [copy.name for copy in ordered.values()] == ["/usr/lib64/libcuda.so.1", str(plain)]
    assert list(ordered) == [own.inode, copy_of(plain).inode]


def test_libraries_of_each_kind_are_found(root: Path, thunked: Path, tmp_path: Path) -> None:
    place(thunked, root / "usr/lib64/libcuda.so.1")
    place(build_nccl(tmp_path / "built"), root / "usr/lib/libnccl.so.2")
    found = libraries.with_installed({}, root).values()
    assert {copy.name: copy.library for copy in found} == {
        "/usr/lib64/libcuda.so.1": LIBCUDA,
        "/usr/lib/libnccl.so.2": LIBNCCL,
    }
    exports = {copy.library: WORK if copy.library is LIBCUDA else COLLECTIVES for copy in found}
    for copy in found:
        targets, why = libraries.usable(copy, exports[copy.library])
        assert why is None
        assert [target.function for target in targets] == list(exports[copy.library].functions)


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("libcuda.so.535.261.03", LIBCUDA),
        ("libnccl.so.2", LIBNCCL),
        ("libnccl.so.2.21.5+cuda12.4", LIBNCCL),
    ],
)
def test_a_mapping_of_this_process_is_found(tmp_path: Path, thunked: Path, name: str, kind: Library) -> None:
    library = tmp_path / "with space" / name
    place(thunked, library)
    scan = libraries.ProcessScan()
    with library.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ):
        scan.start()
        found = scan.step(60)
        assert found is not None
        assert f"{library} of process {os.getpid()}" in [copy.name for copy in found.values()]
        # A deleted file is found too, and can still be opened.
        status = library.stat()
        library.unlink()
        scan.start()
        found = scan.step(60)
        assert found is not None
        copy = found[libraries.Inode(status.st_dev, status.st_ino)]
        assert copy.library is kind
        assert copy.path.read_bytes() == thunked.read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        *("libcuda.so.1.bak", "notlibcuda.so.1", "libcudart.so.12", "libcuda.so.x"),
        *("libnccl-net.so", "xlibnccl.so.2"),
    ],
)
def test_other_names_are_not_taken_for_it(tmp_path: Path, thunked: Path, name: str) -> None:
    place(thunked, tmp_path / name)
    with (tmp_path / name).open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ):
        scan = libraries.ProcessScan()
        scan.start()
        found = scan.step(60)
    assert found is not None
    assert not [copy for copy in found.values() if str(tmp_path) in copy.name]


def test_a_round_goes_on_where_its_time_ended() -> None:
    scan = libraries.ProcessScan()
    scan.start()
    steps = 1
    while scan.step(0) is None:
        steps += 1
    # One process a step: there are at least this one and pid 1.
    assert steps >= 2


def test_a_pipe_of_that_name_is_left_alone(root: Path) -> None:
    (root / "usr/lib64").mkdir(parents=True)
    os.mkfifo(root / "usr/lib64/libcuda.so.1")
    assert libraries.installed(LIBCUDA, root) == []
