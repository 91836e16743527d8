# SPDX-License-Identifier: GPL-3.0-or-later
"""Type information out of kernel images that do not run."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zernel import vmlinux
from zernel.errors import ZernelError
from zernel.host.kernel_image import btf_of_image

from . import images


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


def refused(path: Path, code: str = "kernel-image") -> str:
    with pytest.raises(ZernelError) as caught:
        btf_of_image(path)
    (problem,) = caught.value.problems
    assert problem.code == code
    assert problem.suggestion
    return problem.render()


def lzma_alone(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE)


def lz4(data: bytes) -> bytes:
    # The kernel's build writes the legacy frame: lz4 -l.
    return subprocess.run(["lz4", "-lqc"], input=data, capture_output=True, check=True).stdout


COMPRESSIONS = [gzip.compress, bz2.compress, lzma.compress, lzma_alone, zstd, lz4]
NAMES = ["gzip", "bzip2", "xz", "lzma", "zstd", "lz4"]
each_compression = pytest.mark.parametrize("compress", COMPRESSIONS, ids=NAMES)


@each_compression
def test_the_type_information_comes_out_whole(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    wanted = images.btf(malformed=False)
    image = tmp_path / "vmlinuz"
    image.write_bytes(images.bzimage(compress(images.elf({".text": b"code", ".BTF": wanted}))))
    assert btf_of_image(image) == wanted


@each_compression
def test_a_small_image_cannot_take_all_memory(
    tmp_path: Path, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vmlinux, "MAX_KERNEL", 1 << 20)
    image = tmp_path / "vmlinuz"
    kernel = images.elf({".BTF": images.btf(malformed=False)})
    image.write_bytes(images.bzimage(compress(kernel.ljust(1 << 20, b"\0"))))
    assert btf_of_image(image) == images.btf(malformed=False)
    image.write_bytes(images.bzimage(compress(kernel.ljust(8 << 20, b"\0"))))
    assert "its compressed part is larger than 1 MiB" in refused(image)


@pytest.mark.parametrize(("compress", "name"), list(zip(COMPRESSIONS, NAMES, strict=True)), ids=NAMES)
def test_what_was_compressed_comes_out_or_nothing_does(
    tmp_path: Path, compress: Callable[[bytes], bytes], name: str
) -> None:
    image = tmp_path / "vmlinuz"
    kernel = images.kernel() + os.urandom(100_000)
    packed = compress(kernel)
    image.write_bytes(images.bzimage(packed))
    assert vmlinux.read(image) == vmlinux.Image(kernel, name)
    # A stream that was cut off gives an error, and not the part of the kernel that came out.
    for size in (len(packed) // 2, len(packed) - 12):
        image.write_bytes(images.bzimage(packed[:size]))
        with pytest.raises(ZernelError):
            vmlinux.read(image)


def test_an_uncompressed_kernel_is_read_too(tmp_path: Path) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(images.elf({".BTF": b"data"}))
    assert btf_of_image(image) == b"data"


def test_a_kernel_without_type_information_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(images.bzimage(gzip.compress(images.elf({".text": b"code"}))))
    assert "no BTF" in refused(image, "kernel-image-no-btf")
    image.write_bytes(images.elf({".text": b"code", ".init.text": b"code"}))
    assert "no BTF" in refused(image, "kernel-image-no-btf")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither a bzImage"),
        (images.elf({".text": b"any program"}), "not a kernel"),
        (b"#!/bin/sh\n" * 100, "neither a bzImage"),
        (images.bzimage(b"\x1f\x8b broken"), "damaged"),
        (images.bzimage(b"????????"), "not known"),
        (images.bzimage(zstd(b"no kernel")), "zstd: "),
        (images.bzimage(b"\x28\xb5\x2f\xfd broken"), "zstd: "),
        (images.bzimage(gzip.compress(b"no kernel")), "no 64-bit ELF"),
        (images.bzimage(gzip.compress(images.elf({".BTF": b"data"})))[:-40], "outside the file"),
    ],
)
def test_what_is_no_kernel_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(content)
    assert reason in refused(image)


def layout(elf: bytes) -> vmlinux.Layout:
    return vmlinux.layout(Path("vmlinux"), elf)


def test_what_a_kernel_takes_in_memory() -> None:
    assert layout(images.kernel(memory=1 << 20)) == vmlinux.Layout(0x1000000, 1 << 20)


SECTIONS = {".text": b"code", ".init.text": b"code"}


@pytest.mark.parametrize(
    ("elf", "reason"),
    [
        (b"", "no 64-bit ELF"),
        (b"\x7fELF\x01\x01" + bytes(100), "no 64-bit ELF"),
        (images.kernel(machine=183), "another machine (e_machine 183"),
        (images.kernel(kind=3), "not a kernel"),
        (images.elf({".text": b"code"}, (1, 64, 0, 8, 8)), "not a kernel"),
        (images.elf(SECTIONS, (1, 64, 0, 8, 8), (3, 64, 0, 8, 8)), "not a kernel"),
        (images.elf(SECTIONS), "no segment to load"),
        (images.elf(SECTIONS, (1, 64, 0, 1 << 30, 1 << 30)), "outside the file"),
        (images.elf(SECTIONS, (1, 64, 0, 8, 4)), "outside the file"),
        (images.elf(SECTIONS, *[(1, 64, 0, 8, 8)] * 65), "program headers are damaged"),
        (images.kernel()[:5000], "section table is damaged"),
    ],
)
def test_what_cannot_be_loaded_is_told_apart(elf: bytes, reason: str) -> None:
    with pytest.raises(ZernelError, match="cannot be read") as caught:
        layout(elf)
    assert reason in caught.value.problems[0].render()


@settings(max_examples=200)
@given(st.data())
def test_damage_to_a_kernel_is_an_error_and_never_a_crash(data: st.DataObject) -> None:
    whole = bytearray(images.kernel())
    # The header, the program headers, and the section table at the end.
    position = data.draw(st.integers(0, 175) | st.integers(len(whole) - 256, len(whole) - 1))
    whole[position] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.just(len(whole)) | st.integers(0, len(whole)))])
    try:
        found = layout(cut)
    except ZernelError:
        return
    assert found.memory_bytes >= 0x1000


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none")


def test_what_may_never_end_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        assert "Not a regular file" in refused(path)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate((1 << 30) + 1)
    assert "far larger" in refused(tmp_path / "huge")


@settings(max_examples=150)
@given(st.data())
def test_damage_anywhere_is_an_error_and_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(images.elf({".text": b"code", ".BTF": images.btf(malformed=True)}))
    position = data.draw(st.integers(4, len(whole) - 1))
    whole[position] = data.draw(st.integers(0, 255))
    image = tmp_path_factory.mktemp("image") / "vmlinux"
    image.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        found = btf_of_image(image)
    except ZernelError:
        found = b""
    assert len(found) <= len(whole)
