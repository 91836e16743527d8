# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel validate``: any tree, several at once, overlays with their baseline."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import yaml

from zernel.devicetree import fdt
from zernel.devicetree.load import read_file
from zernel.devicetree.render import system_tree
from zernel.multikernel.wire_v1 import V1

from .command import EXAMPLES, ZERNEL, refused, zernel


def test_a_whole_system_is_reported_with_its_instances() -> None:
    done = zernel("validate", EXAMPLES / "system.dts", "--report")
    assert done.returncode == 0
    assert done.stderr == ""
    for line in (
        "Status: ✓ VALID",
        "  CPUs: 32 total",
        "Instances:",
        "  Instance database",
        "    CPUs: 8-15 (8)",
        "    Devices: eth0:vf2, nvme0:ns2",
        "  Allocated CPUs: 20 of 28 (71%)",
        "  Allocated memory: 14GB of 14GB (100%)",
        "WARNING: 8 CPUs (29% of memory pool) are unallocated",
        "✓ Validation passed",
    ):
        assert line in done.stdout.split("\n")


def test_the_data_has_a_report_for_each_file() -> None:
    files = [str(EXAMPLES / name) for name in ("system.dts", "minimal.dts")]
    data = json.loads(zernel("validate", *files, "--format=json").stdout)
    assert list(data) == ["status", "files"]
    assert data["status"] == "valid"
    assert [found["file"] for found in data["files"]] == files
    assert list(data["files"][0]) == [
        *("file", "dialect", "status", "errors", "warnings", "suggestions", "hardware", "instances")
    ]
    assert data["files"][0]["instances"]["web-server"]["cpus"] == [4, 5, 6, 7]
    assert yaml.safe_load(zernel("validate", *files, "--format=yaml").stdout) == data


def test_one_bad_file_makes_the_status_and_the_others_are_still_validated(tmp_path: Path) -> None:
    bad = tmp_path / "bad.dts"
    bad.write_text("/dts-v1/;\n/ { a = <1> };\n")
    done = zernel("validate", bad, tmp_path / "none.dts", EXAMPLES / "minimal.dts")
    assert done.returncode == 1
    assert "Line 2, column 13: expected ';'" in done.stderr
    assert "Cannot read the device tree" in done.stderr
    assert done.stdout.count("✓ Validation passed") == 1
    assert done.stdout.count("✗ Validation failed with 1 error") == 2


def test_problems_stand_under_their_file_where_both_streams_go_to_one_place(tmp_path: Path) -> None:
    files = [EXAMPLES / "minimal.dts", tmp_path / "nothing.dts", EXAMPLES / "conflict_example.dts"]
    done = subprocess.run(
        [ZERNEL, "validate", *files], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    first, second, third = (done.stdout.index(f"{file}:\n") for file in files)
    assert first < done.stdout.index("✓ Validation passed") < second
    assert second < done.stdout.index("ERROR: ") < third < done.stdout.rindex("ERROR: ")


def test_verbose_lists_devices_and_nodes() -> None:
    shown = zernel("validate", EXAMPLES / "numa_topology.dts", "--report", "--verbose").stdout
    assert "    NUMA node 3: CPUs 48-63, 32GB at 0x1800000000" in shown
    assert "    eth0: ethernet, intel,i40e, 0000:01:00.0, VFs 1-7 of 8" in shown


def test_an_overlay_needs_its_baseline_and_is_validated_against_it(tmp_path: Path) -> None:
    system = read_file(EXAMPLES / "system.dts").system
    assert system is not None
    overlay = tmp_path / "web.dtbo"
    overlay.write_bytes(V1().create(system.instances[0]))
    assert "zernel validate --baseline=FILE OVERLAY" in refused("validate", overlay)
    done = zernel("validate", overlay, f"--baseline={EXAMPLES / 'baseline.dts'}", "--report")
    assert done.returncode == 0
    assert "  Instance web-server" in done.stdout.split("\n")
    shown = refused("validate", overlay, f"--baseline={EXAMPLES / 'system.dts'}")
    assert 'ERROR: Duplicate instance name: "web-server"' in shown
    assert "ERROR: web-server: CPU allocation conflict with web-server" in shown


def test_an_invalid_baseline_is_refused_before_any_overlay() -> None:
    shown = refused("validate", EXAMPLES / "minimal.dts", f"--baseline={EXAMPLES / 'conflict_example.dts'}")
    assert "pci-id '01:00.0' is no PCI address" in shown


def test_errors_name_file_and_line_in_source_and_the_file_of_a_blob(tmp_path: Path) -> None:
    source = (EXAMPLES / "minimal.dts").read_text().replace("total = <8>", "total = <7>")
    file = tmp_path / "seven.dts"
    file.write_text(source)
    assert f"In file {file}:\n    Line 11: available = <2 3 4 5 6 7>;" in refused("validate", file)
    system = read_file(EXAMPLES / "system.dts").system
    assert system is not None
    blob = tmp_path / "evil.dtb"
    blob.write_bytes(fdt.write(system_tree(system)).replace(b"web-server", b"../../evil"))
    assert refused("validate", blob).startswith("ERROR: Invalid instance name: '../../evil'\n")
    assert refused("validate", blob).endswith(f"\n  In file {blob}\n\n")
