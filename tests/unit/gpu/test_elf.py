# SPDX-License-Identifier: GPL-3.0-or-later
"""The ELF reader: the offsets are those that binutils tells, and no file harms it."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zernel.errors import ZernelError
from zernel.gpu.elf import SharedLibrary


def functions(path: Path, *names: str) -> dict[str, int]:
    with path.open("rb") as stream:
        return SharedLibrary(stream.fileno(), str(path)).functions(names)


def functions_of(data: bytes, *names: str) -> dict[str, int]:
    fd = os.memfd_create("library")
    try:
        os.write(fd, data)
        return SharedLibrary(fd, "library").functions(names)
    finally:
        os.close(fd)


def told_by_nm(path: Path) -> dict[str, int]:
    """Return the exported functions' addresses, which for the stub are file offsets too."""
    lines = subprocess.run(
        ["nm", "-D", "--defined-only", path], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return {name: int(value, 16) for value, kind, name in map(str.split, lines) if kind == "T"}


def test_offsets_are_those_of_nm(thunked: Path) -> None:
    expected = told_by_nm(thunked)
    assert expected, "nm tells nothing"
    assert functions(thunked, *expected, "cuNoSuchFunction") == expected


def test_the_offset_is_in_the_file_where_address_and_offset_differ(tmp_path: Path) -> None:
    source = tmp_path / "x.c"
    source.write_text("int one(void) { return 1; } int two(void) { return 2; }")
    library = tmp_path / "x.so"
    flags = ["-Wl,-Ttext-segment=0x10000", "-Wl,-z,separate-code"]
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", *flags, "-o", library, source], check=True)
    addresses = told_by_nm(library)
    offsets = functions(library, "one", "two")
    assert offsets["one"] == addresses["one"] - 0x10000
    # mov $2,%eax; ret
    assert library.read_bytes()[offsets["two"] :].startswith(b"\xb8\x02\x00\x00\x00\xc3")


@pytest.mark.parametrize("style", ["sysv", "gnu"])
def test_both_kinds_of_hash_table_tell_the_number_of_symbols(tmp_path: Path, style: str) -> None:
    source = tmp_path / "x.c"
    source.write_text("".join(f"int f{n}(void) {{ return {n}; }}\n" for n in range(50)))
    library = tmp_path / "x.so"
    command = ["gcc", "-shared", "-fPIC", f"-Wl,--hash-style={style}", "-o", library, source]
    subprocess.run(command, check=True)
    names = [f"f{n}" for n in range(50)]
    assert set(functions(library, *names)) == set(names)


def test_a_stripped_library_is_read_too(tmp_path: Path, thunked: Path) -> None:
    stripped = tmp_path / "libcuda.so.1"
    subprocess.run(["strip", "-o", stripped, thunked], check=True)
    assert functions(stripped, "cuMemAlloc_v2") == {"cuMemAlloc_v2": told_by_nm(stripped)["cuMemAlloc_v2"]}


def test_variables_and_imports_are_no_functions(thunked: Path) -> None:
    assert functions(thunked, "pthread_mutex_lock", "stub_state", "getenv") == {}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: b"", "too early"),
        (lambda data: b"#!/bin/sh\n" + data, "not a 64-bit x86 ELF"),
        (lambda data: data[:4] + b"\x01" + data[5:], "not a 64-bit x86 ELF"),  # 32-bit
        (lambda data: data[:18] + struct.pack("<H", 183) + data[20:], "not a 64-bit x86 ELF"),  # arm64
        (lambda data: data[:100], "too early"),
        (lambda data: data[:32] + struct.pack("<Q", 1 << 63) + data[40:], "outside itself"),
        (lambda data: data[:56] + struct.pack("<H", 65535) + data[58:], "segment table"),
        (lambda data: data[:0x1000], "too early"),
    ],
)
def test_a_damaged_library_is_refused_with_the_reason(thunked: Path, change, why: str) -> None:
    with pytest.raises(ZernelError) as caught:
        functions_of(change(thunked.read_bytes()), "cuMemAlloc_v2")
    assert why in caught.value.problems[0].category


@given(st.binary(max_size=4096))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ZernelError):
        functions_of(data, "cuMemAlloc_v2")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_library_with_bytes_changed_gives_functions_or_a_refusal(
    thunked: Path, data: st.DataObject
) -> None:
    raw = bytearray(thunked.read_bytes())
    # The header, the segments and the dynamic tables are at the start; .dynamic is near the end.
    places = st.one_of(st.integers(0, 0x1000), st.integers(0, len(raw) - 8))
    for place in data.draw(st.lists(places, min_size=1, max_size=6)):
        raw[place : place + 8] = data.draw(
            st.one_of(st.binary(min_size=8, max_size=8), st.just(b"\xff" * 8), st.just(b"\0" * 8))
        )
    began = time.monotonic()
    found, code = {}, "elf-invalid"
    try:
        found = functions_of(bytes(raw), "cuMemAlloc_v2", "cuMemFree_v2")
    except ZernelError as error:
        code = error.problems[0].code
    assert code == "elf-invalid"
    assert all(0 <= offset < len(raw) for offset in found.values())
    assert time.monotonic() - began < 2


def test_strings_without_an_end_cost_no_time(thunked: Path) -> None:
    """A string table of megabytes without a NUL must not be searched for every symbol."""
    strings, symbols = 4 << 20, 60_000
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    dynamic_at, hash_at, symbols_at = 64 + 2 * 56, 64 + 2 * 56 + 80, 64 + 2 * 56 + 80 + 16
    strings_at = symbols_at + 24 * symbols
    total = strings_at + strings
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, total, total, 4096)
    dynamic = struct.pack("<IIQQQQQQ", 2, 6, dynamic_at, dynamic_at, 0, 80, 80, 8)
    tags = struct.pack("<10Q", 4, hash_at, 5, strings_at, 6, symbols_at, 10, strings, 0, 0)
    table = b"".join(struct.pack("<IBBHQQ", n, 0x12, 0, 1, 64, 0) for n in range(symbols))
    data = header + load + dynamic + tags + struct.pack("<IIQ", 1, symbols, 0) + table + b"c" * strings
    began = time.monotonic()
    assert functions_of(data, "cuMemAlloc_v2") == {}
    assert time.monotonic() - began < 2
