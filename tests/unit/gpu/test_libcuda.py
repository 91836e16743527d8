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

from zernel.gpu import libcuda


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
    assert [copy.name for copy in libcuda.installed(root)] == [
        "/opt/driver/libcuda.so.1",
        "/usr/lib64/libcuda.so.1",
    ]


def test_the_real_cache_of_this_machine_is_understood() -> None:
    """libc is in every cache; the same code reads libcuda's entry."""
    found = list(libcuda.loader_cache(Path("/"), "libc.so.6"))
    assert any(Path(path).exists() for path in found)


def test_two_names_of_one_file_are_one_library(root: Path, thunked: Path) -> None:
    place(thunked, root / "usr/lib/x86_64-linux-gnu/libcuda.so.535.1")
    for name in ("usr/lib/x86_64-linux-gnu/libcuda.so.1", "usr/lib64/libcuda.so.1"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(root / "usr/lib/x86_64-linux-gnu/libcuda.so.535.1")
    assert len(libcuda.installed(root)) == 1


@given(st.binary(max_size=300))
def test_a_damaged_cache_gives_nothing_but_paths(data: bytes) -> None:
    for content in (data, b"glibc-ld.so.cache1.1" + data):
        assert all(isinstance(path, str) for path in libcuda.cached_paths(content, "libcuda.so.1"))


def test_nothing_installed_is_no_error(root: Path) -> None:
    assert libcuda.installed(root) == []


def test_a_thunk_is_probed_past_its_compare(thunked: Path, plain: Path) -> None:
    for library, past in ((thunked, True), (plain, False)):
        found, why = libcuda.usable(copy_of(library))
        assert why is None
        assert [target.function for target in found] == list(libcuda.FUNCTIONS)
        assert {target.past_compare for target in found} == {past}
        data = library.read_bytes()
        for target in found:
            # At the je of the thunk, or at the first instruction of a function.
            assert (
                data[target.offset] == 0x74
                if past
                else data[target.offset : target.offset + 2] != b"\x81\x3d"
            )


def copy_of(path: Path) -> libcuda.Copy:
    status = path.stat()
    return libcuda.Copy(libcuda.Inode(status.st_dev, status.st_ino), path, str(path))


def test_a_library_without_the_two_functions_is_told_apart(tmp_path: Path) -> None:
    libc = next(Path(path) for path in libcuda.loader_cache(Path("/"), "libc.so.6") if Path(path).exists())
    shutil.copy(libc, tmp_path / "libcuda.so.1")
    assert libcuda.usable(copy_of(tmp_path / "libcuda.so.1")) == (
        [],
        "it does not export cuMemAlloc_v2, cuMemFree_v2",
    )


def test_a_library_that_vanished_is_told_apart(tmp_path: Path, thunked: Path) -> None:
    shutil.copy(thunked, tmp_path / "libcuda.so.1")
    copy = copy_of(tmp_path / "libcuda.so.1")
    copy.path.unlink()
    assert libcuda.usable(copy) == ([], "No such file or directory")


def test_a_file_that_took_its_place_is_not_taken_for_it(tmp_path: Path, thunked: Path, plain: Path) -> None:
    """What leads to a mapped file is in the hands of the process that maps it."""
    for replacement in (lambda path: place(plain, path), os.mkfifo):
        path = tmp_path / "libcuda.so.1"
        place(thunked, path)
        copy = copy_of(path)
        path.rename(tmp_path / "old")
        replacement(path)
        assert libcuda.usable(copy) == ([], "another file has taken its place since it was found")
        path.unlink()


def test_the_hosts_own_libraries_come_before_those_of_processes(
    root: Path, thunked: Path, plain: Path
) -> None:
    place(thunked, root / "usr/lib64/libcuda.so.1")
    own = copy_of(root / "usr/lib64/libcuda.so.1")
    of_a_process = libcuda.Copy(own.inode, Path("/proc/7/map_files/0-1000"), "used by process 7")
    found = {copy_of(plain).inode: copy_of(plain), own.inode: of_a_process}
    ordered = libcuda.with_installed(found, root)
    assert [copy.name for copy in ordered.values()] == ["/usr/lib64/libcuda.so.1", str(plain)]
    assert list(ordered) == [own.inode, copy_of(plain).inode]


@pytest.mark.root
def test_a_mapping_of_this_process_is_found(tmp_path: Path, thunked: Path) -> None:
    library = tmp_path / "with space" / "libcuda.so.535.261.03"
    place(thunked, library)
    scan = libcuda.ProcessScan()
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
        copy = found[libcuda.Inode(status.st_dev, status.st_ino)]
        assert copy.path.read_bytes() == thunked.read_bytes()


@pytest.mark.parametrize("name", ["libcuda.so.1.bak", "notlibcuda.so.1", "libcudart.so.12", "libcuda.so.x"])
def test_other_names_are_not_taken_for_it(tmp_path: Path, thunked: Path, name: str) -> None:
    place(thunked, tmp_path / name)
    with (tmp_path / name).open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ):
        scan = libcuda.ProcessScan()
        scan.start()
        found = scan.step(60)
    assert found is not None
    assert not [copy for copy in found.values() if str(tmp_path) in copy.name]


def test_a_round_goes_on_where_its_time_ended() -> None:
    scan = libcuda.ProcessScan()
    scan.start()
    steps = 1
    while scan.step(0) is None:
        steps += 1
    # One process a step: there are at least this one and pid 1.
    assert steps >= 2


def test_a_pipe_of_that_name_is_left_alone(root: Path) -> None:
    (root / "usr/lib64").mkdir(parents=True)
    os.mkfifo(root / "usr/lib64/libcuda.so.1")
    assert libcuda.installed(root) == []
