# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel convert``: what is written means what was read, is whole, and is written only when valid."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from zernel.devicetree.load import read_file

from .command import EXAMPLES, ZERNEL, refused, zernel

VALID = ["baseline", "edge_computing", "gpu_server", "minimal", "numa_topology", "system"]


@pytest.mark.parametrize("name", VALID)
def test_there_and_back_is_the_same_model_and_the_same_bytes(name: str, tmp_path: Path) -> None:
    source = EXAMPLES / f"{name}.dts"
    blob, again, blob_again = (tmp_path / f"a.{suffix}" for suffix in ("dtb", "dts", "2.dtb"))
    assert zernel("convert", source, blob).returncode == 0
    assert zernel("convert", blob, again).returncode == 0
    assert zernel("convert", f"--input={again}", f"--output={blob_again}").returncode == 0
    assert read_file(source).system == read_file(blob).system == read_file(again).system
    assert blob.read_bytes() == blob_again.read_bytes()
    done = subprocess.run(["dtc", "-q", "-I", "dts", "-O", "dtb", again], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_libfdt_reads_the_blob_as_we_do(tmp_path: Path) -> None:
    blob = tmp_path / "a.dtb"
    zernel("convert", EXAMPLES / "system.dts", blob)
    code = (
        "import libfdt, struct, sys; t = libfdt.Fdt(open(sys.argv[1], 'rb').read());"
        "cells = lambda n, name: struct.unpack('>%dI' % (len(t.getprop(n, name)) // 4), t.getprop(n, name));"
        "n = t.path_offset('/instances/database/resources');"
        "names = [t.get_name(t.node_offset_by_phandle(p)) for p in cells(n, 'devices')];"
        "print(*cells(n, 'cpus'), *names, t.getprop(n, 'memory-base').as_uint64())"
    )
    done = subprocess.run(["/usr/bin/python3", "-c", code, blob], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"8 9 10 11 12 13 14 15 ethernet-vf-eth0@2 nvme-ns-nvme0@2 {0x100000000}\n"


def test_an_invalid_tree_writes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.dtb"
    shown = refused("convert", EXAMPLES / "conflict_example.dts", target)
    assert "both host-reserved and available" in shown
    target.write_bytes(b"old")
    refused("convert", EXAMPLES / "conflict_example.dts", target)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.dtb"]


def test_the_data_says_what_was_done_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    words = ("convert", EXAMPLES / "baseline.dts", tmp_path / "a.dtb", "--format=json")
    planned = json.loads(zernel(*words, "--dry-run").stdout)
    assert not (tmp_path / "a.dtb").exists()
    first, second = json.loads(zernel(*words).stdout), json.loads(zernel(*words).stdout)
    assert [data["status"] for data in (planned, first, second)] == ["planned", "converted", "unchanged"]
    assert first["bytes"] == (tmp_path / "a.dtb").stat().st_size
    assert {**first, "status": "planned", "dry_run": True} == planned


def test_standard_output_takes_source_and_redirected_blobs_only(tmp_path: Path) -> None:
    source = EXAMPLES / "baseline.dts"
    zernel("convert", source, tmp_path / "a.dtb")
    piped = subprocess.run([ZERNEL, "convert", source, "-", "--to=dtb"], capture_output=True)
    assert piped.stdout == (tmp_path / "a.dtb").read_bytes()
    main, terminal = pty.openpty()
    done = subprocess.run(
        [ZERNEL, "convert", source, "-", "--to=dtb"], stdout=terminal, stderr=subprocess.PIPE, text=True
    )
    os.close(terminal)
    os.close(main)
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR: A blob is not written to a terminal")
    assert zernel("convert", source, "-", "--to=dts").stdout.startswith("/dts-v1/;\n")
    assert zernel("convert", source, "-").stdout.startswith("/dts-v1/;\n")


def test_the_input_is_never_overwritten_under_any_name(tmp_path: Path) -> None:
    source = tmp_path / "a.dts"
    source.write_bytes((EXAMPLES / "baseline.dts").read_bytes())
    (tmp_path / "hard.dts").hardlink_to(source)
    (tmp_path / "soft.dts").symlink_to(source)
    for target in (source, tmp_path / "hard.dts", tmp_path / "soft.dts", tmp_path / "." / "a.dts"):
        assert "Input and output are the same file" in refused("convert", source, target)
    assert source.read_bytes() == (EXAMPLES / "baseline.dts").read_bytes()


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("a.txt", (), "Add --to=dts or --to=dtb"),
        ("none/a.dtb", (), "The output's directory does not exist"),
        ("", ("--to=dtb",), "is no regular file"),
        ("fifo.dtb", (), "is no regular file"),
    ],
)
def test_outputs_that_are_no_file(tmp_path: Path, target: str, options: tuple[str, ...], says: str) -> None:
    os.mkfifo(tmp_path / "fifo.dtb")
    assert says in refused("convert", EXAMPLES / "baseline.dts", tmp_path / target, *options)


def test_a_device_is_not_replaced_by_a_file() -> None:
    assert "is no regular file" in refused("convert", EXAMPLES / "baseline.dts", "/dev/null", "--to=dtb")


def test_usage_is_explained() -> None:
    for words in ((), ("a.dts",), ("a", "b", "--input=c"), ("a", "--to=elf", "b")):
        assert zernel("convert", *words).returncode == 2


def test_an_overlay_is_refused(tmp_path: Path) -> None:
    overlay = tmp_path / "a.dts"
    overlay.write_text("/dts-v1/; /plugin/; / { fragment@0 { __overlay__ { }; }; };")
    assert "This is an overlay" in refused("convert", overlay, tmp_path / "a.dtb")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for almost nothing."""
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_the_old_file(full_disk: Path) -> None:
    target = full_disk / "a.dtb"
    target.write_bytes(b"old")
    (full_disk / "filler").write_bytes(bytes(4096))
    shown = refused("convert", EXAMPLES / "gpu_server.dts", target)
    assert "what was there is unchanged" in shown
    assert "No space left on device" in shown
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in full_disk.iterdir()) == ["a.dtb", "filler"]


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "a.dtb"
    target.write_bytes(b"old")
    target.chmod(0o600)
    assert zernel("convert", EXAMPLES / "minimal.dts", target).returncode == 0
    assert target.stat().st_mode & 0o777 == 0o600
