# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel init``: the document's reports, and when the kernel is written to."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from .conftest import EXAMPLES, ZERNEL, Host

REPORT = """\
Multikernel Device Tree Validation Report
==========================================
Status: ✓ VALID

Hardware Inventory:
  CPUs: 32 total
    Host reserved: 0-3 (4 CPUs, 12%)
    Memory pool: 4-31 (28 CPUs, 88%)
  Memory: 16GB total
    Host reserved: 2GB (12%)
    Memory pool: 14GB at 0x80000000 (88%)
  Devices: 1 network, 1 storage

✓ Baseline validation passed
"""


def test_the_documents_report(bare: Host) -> None:
    assert bare.ok("init", f"--input={EXAMPLES / 'baseline.dts'}", "--report") == REPORT


def test_apply_ends_as_the_document_shows_and_says_simulated(empty: Host) -> None:
    shown = empty.ok("init", f"--input={EXAMPLES / 'baseline.dts'}", "--apply", "--report")
    device_tree = empty.root / "device_tree"
    assert shown == REPORT + (
        "✓ Baseline applied to kernel successfully\n"
        f"  Baseline: {device_tree}\n"
        f"SIMULATED: {empty.root} is served by 'zernel simulate multikernel', no kernel is behind it\n"
    )
    assert device_tree.read_bytes()[:4] == b"\xd0\x0d\xfe\xed"


@pytest.mark.parametrize(
    "options", [[], ["--report"], ["--verbose"], ["--apply", "--dry-run"], ["--report", "--format=json"]]
)
def test_without_apply_nothing_is_written(empty: Host, options: list[str]) -> None:
    empty.ok("init", f"--input={EXAMPLES / 'baseline.dts'}", *options)
    assert (empty.root / "device_tree").read_bytes() == b""
    assert not empty.state.exists()


def test_an_invalid_baseline_is_never_applied(empty: Host) -> None:
    for name in ("conflict_example.dts", "system.dts"):
        empty.refused("init", f"--input={EXAMPLES / name}", "--apply")
    assert (empty.root / "device_tree").read_bytes() == b""


def test_a_baseline_with_instances_is_refused_in_the_documents_words(bare: Host) -> None:
    done = bare.run("init", f"--input={EXAMPLES / 'system.dts'}", "--report")
    assert done.returncode == 1
    assert "Status: ✗ INVALID" in done.stdout
    assert (
        "ERROR: Baseline must not contain instances. Instances should be created via overlays." in done.stdout
    )
    assert "  Suggestion: Remove instances section from baseline" in done.stdout
    assert "    Line 46: web-server {" in done.stdout
    assert done.stdout.endswith("✗ Validation failed with 1 error\n")


def test_the_json_report_has_the_stable_form(bare: Host) -> None:
    data = bare.json("init", f"--input={EXAMPLES / 'baseline.dts'}", "--report")
    assert list(data) == ["status", "errors", "warnings", "suggestions", "hardware", "instances"]
    assert data["status"] == "valid"
    assert data["hardware"]["cpus"] == {
        "total": 32,
        "host_reserved": [0, 1, 2, 3],
        "available": list(range(4, 32)),
    }
    assert data["hardware"]["memory"] == {
        "total_bytes": 16 << 30,
        "host_reserved_bytes": 2 << 30,
        "memory_pool_base": 0x80000000,
        "memory_pool_bytes": 14 << 30,
    }
    assert data["hardware"]["devices"]["nvme0"]["available_ns"] == [2, 3, 4]
    text = bare.ok("init", f"--input={EXAMPLES / 'baseline.dts'}", "--report", "--format=yaml")
    assert yaml.safe_load(text) == data


def test_errors_as_data(bare: Host) -> None:
    done = bare.run("init", f"--input={EXAMPLES / 'conflict_example.dts'}", "--format=json")
    assert done.returncode == 1
    data = json.loads(done.stdout)
    assert data["status"] == "invalid"
    first = next(error for error in data["errors"] if error["code"] == "cpu-not-found")
    assert first["line"] == 11
    assert first["file"].endswith("conflict_example.dts")
    assert first["suggestion"] in data["suggestions"]


def test_applying_again_changes_nothing(host: Host) -> None:
    before = (host.root / "device_tree").stat().st_size
    data = host.json("init", f"--input={EXAMPLES / 'baseline.dts'}", "--apply")
    assert (data["changed"], data["simulated"]) == (False, True)
    assert (host.root / "device_tree").stat().st_size == before


def test_another_baseline_replaces_it_and_the_dry_run_says_so(host: Host) -> None:
    words = ("init", f"--input={EXAMPLES / 'minimal.dts'}", "--apply")
    planned = host.json(*words, "--dry-run")
    assert planned["changed"]
    assert host.json("show")["hardware"]["cpus"]["total"] == 32
    done = host.json(*words)
    assert (done["before"], done["after"]) == (planned["before"], planned["after"])
    assert done["before"]["cpus"]["total"] == 32
    assert host.json("show")["hardware"]["cpus"]["total"] == 8


def test_a_baseline_in_use_is_not_replaced(host: Host) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    for extra in ([], ["--dry-run"]):
        shown = host.refused("init", f"--input={EXAMPLES / 'minimal.dts'}", "--apply", *extra)
        assert "zernel delete web" in shown
        assert "SIMULATED" in shown


def test_the_inventory_comes_back_whole_from_the_kernel(host: Host) -> None:
    shown = host.json("show")
    report = host.json("init", f"--input={EXAMPLES / 'baseline.dts'}")
    assert shown["hardware"] == report["hardware"]
    assert shown["baseline_complete"]


def test_validating_the_kernels_own_blob_does_not_write_to_it(host: Host) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    host.run("init", f"--input={host.root / 'device_tree'}", "--report")
    assert set(host.instances()) == {"web"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "must begin with a version mark"),
        (b"\xff\xfe\x00binary", "neither device tree source nor a blob"),
        (b"\xd0\x0d\xfe\xed garbage", "Malformed device tree blob"),
        (b"/dts-v1/;\n/ {" + b"{" * (5 << 20), "too large for a device tree"),
        (b"/dts-v1/;\n/ {" + b"a{" * 100_000, "nested deeper"),
    ],
)
def test_files_that_are_no_device_tree(bare: Host, content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.dts"
    file.write_bytes(content)
    assert says in bare.refused("init", f"--input={file}")


def test_only_regular_files_are_read_and_a_fifo_does_not_block(bare: Host, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, kind in ((fifo, "a FIFO"), (tmp_path, "a directory"), (Path("/dev/zero"), "a device")):
        shown = bare.refused("init", f"--input={path}")
        assert f"This is {kind}" in shown
        assert "Suggestion: " in shown


def test_a_byte_order_mark_is_skipped(bare: Host, tmp_path: Path) -> None:
    file = tmp_path / "marked.dts"
    file.write_bytes(b"\xef\xbb\xbf" + (EXAMPLES / "baseline.dts").read_bytes())
    assert bare.ok("init", f"--input={file}", "--report") == REPORT


@pytest.mark.parametrize("path", ["/nonexistent.dts", "/", "/dev/zero"])
def test_paths_that_are_no_file(bare: Host, path: str) -> None:
    bare.refused("init", f"--input={path}")


def test_no_multikernel_file_system_says_how_to_get_one(bare: Host, tmp_path: Path) -> None:
    tmp_path.joinpath("multikernel").mkdir()
    shown = bare.refused("init", f"--input={EXAMPLES / 'baseline.dts'}", "--apply")
    assert "ZERNEL_MULTIKERNEL_ROOT says so: unset it" in shown
    assert "zernel simulate multikernel" in shown


def test_another_file_system_is_never_written_to(bare: Host) -> None:
    bare.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", bare.root], check=True)
    (bare.root / "device_tree").write_bytes(b"")
    shown = bare.refused("init", f"--input={EXAMPLES / 'baseline.dts'}", "--apply")
    assert "of type 'tmpfs'" in shown
    assert (bare.root / "device_tree").read_bytes() == b""


def test_without_a_terminal_or_an_input_usage_is_explained() -> None:
    done = subprocess.run([ZERNEL, "init"], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 2
    assert "--input" in done.stderr
