# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel apply --hardware``: declarations judged on a host that has no multikernel file system yet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Host
from .test_hardware import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "instances.d"
    directory.mkdir()
    return directory


def judge(machine: Machine, directory: Path) -> tuple[str, ...]:
    return ("apply", "--hardware", f"--root={machine.root}", f"--directory={directory}", "--host-cpus=0,8")


def test_what_fits_is_planned_on_the_proposed_baseline(bare: Host, machine: Machine, directory: Path) -> None:
    (directory / "a.yaml").write_text("name: web\ncpu_count: 4\nmemory: 2GB\nnuma_nodes: 1\n")
    (directory / "b.yaml").write_text("name: db\ncpus: 1,9\nmemory: 1GB\n")
    found = bare.json(*judge(machine, directory))
    assert (found["status"], found["changed"], found["dry_run"]) == ("planned", True, True)
    assert found["hardware"]["cpus"]["host_reserved"] == [0, 8]
    assert [step["instance"] for step in found["plan"]["create"]] == ["web", "db"]
    assert set(found["after"]["web"]["cpus"]) <= {4, 5, 6, 7, 12, 13, 14, 15}
    text = bare.ok(*judge(machine, directory))
    assert "  create db: CPUs 1,9, 1GB at " in text
    assert "✓ What is declared fits the baseline proposed for this host (nothing was changed)" in text
    assert "SIMULATED" not in text


def test_all_that_is_wrong_is_said_at_once_with_its_place(
    bare: Host, machine: Machine, directory: Path
) -> None:
    (directory / "a.yaml").write_text("name: ../web\ncpu_count: 4\nmemory: 2GB\n")
    (directory / "b.yaml").write_text("name: db\ncpus: 0-1\nmemory: 900GB\ndevices: [gpu7]\n")
    (directory / "c.yaml").write_text("name: data\ncpus: 1-2\nmemory: 1GB\n")
    said = bare.refused(*judge(machine, directory))
    for part in (
        "Invalid instance name: '../web'",
        "db: CPU 0 is reserved for host kernel",
        "db: 900GB of memory cannot be given",
        "db: Invalid device reference",
        "data: CPU allocation conflict with db",
        "Line 4: devices: [gpu7]",
    ):
        assert part in said


def test_a_host_that_cannot_be_split_is_said_beside_what_is_wrong_with_a_file(
    bare: Host, machine: Machine, directory: Path
) -> None:
    (directory / "a.yaml").write_text("name: ../web\ncpu_count: 4\nmemory: 2GB\n")
    said = bare.refused(*judge(machine, directory), "--pool-size=900GB")
    assert said.count("ERROR: ") == 2


def test_wrong_words(bare: Host) -> None:
    for words in (["--hardware", "--prune"], ["--pool-size=1GB"]):
        assert bare.run("apply", *words).returncode == 2


def test_json_is_read_where_yaml_is_not_installed(
    bare: Host, machine: Machine, directory: Path, tmp_path: Path
) -> None:
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    (lacking / "yaml.py").write_text("raise ModuleNotFoundError('no yaml', name='yaml')\n")
    bare.environ["PYTHONPATH"] = str(lacking)
    declared = {"name": "web", "cpus": [1, "9"], "memory": "2GB", "devices": [], "id": 7}
    (directory / "a.yaml").write_text(json.dumps(declared))
    assert bare.json(*judge(machine, directory))["after"]["web"] | {"memory_base": 0} == {
        "name": "web",
        "id": 7,
        "status": None,
        "cpus": [1, 9],
        "memory_base": 0,
        "memory_bytes": 2 << 30,
        "devices": [],
        "numa_nodes": [],
        "cpu_affinity": None,
        "memory_policy": None,
    }
    for wrong, why in (
        ('{"name": "a", "name": "b", "cpus": {}, "memory": null}', "'name' stands there twice"),
        ('{"name": "a", "cpus": {}, "memory": "1GB"}', "'cpus' takes a list or a text"),
        ('{"name": "a", "cpus": [[1]], "memory": "1GB"}', "'cpus' takes a list or a text"),
        ('{"name": "a", "cpus": 1, "memory": ["1GB"]}', "'memory' takes a single value"),
        ('{"name": "a", "cpus": 1, "memory": null}', "'null' is no size"),
        ('{"name": true, "cpus": 1e5, "memory": NaN}', "'NaN' is no size"),
        ("[1]", "A declaration is a mapping"),
        ("name: web", "or install python3-yaml"),
        ("[" * 100_000, "nested too deeply"),
    ):
        (directory / "a.yaml").write_text(wrong[: 60 << 10])
        assert why in bare.refused(*judge(machine, directory)), wrong[:40]
