# SPDX-License-Identifier: GPL-3.0-or-later
"""Every example is what docs/instances.md says that it is."""

from __future__ import annotations

import re

import pytest

from zernel.devicetree.load import read_file
from zernel.devicetree.validate import is_valid, validate_interpretation

from .command import EXAMPLES

BASELINES = {
    # CPUs, GB, devices, NUMA nodes
    "minimal.dts": (8, 8, 0, 0),
    "baseline.dts": (32, 16, 2, 0),
    "edge_computing.dts": (16, 32, 3, 0),
    "numa_topology.dts": (64, 128, 2, 4),
    "gpu_server.dts": (128, 2048, 16, 2),
}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_have_nothing_to_complain_about(name: str) -> None:
    found = read_file(EXAMPLES / name)
    assert validate_interpretation(found, baseline=True) == []
    assert found.system is not None
    resources = found.system.resources
    assert BASELINES[name] == (
        resources.cpus.total,
        resources.memory.total_bytes >> 30,
        len(resources.devices),
        len(resources.numa_nodes),
    )


def test_the_gpu_server_has_8_gpus_and_the_edge_computer_one() -> None:
    for name, gpus in (("gpu_server.dts", 8), ("edge_computing.dts", 1)):
        system = read_file(EXAMPLES / name).system
        assert system is not None
        assert sum(device.category == "GPU" for device in system.resources.devices) == gpus


def test_the_system_is_valid_and_no_baseline() -> None:
    found = read_file(EXAMPLES / "system.dts")
    assert is_valid(validate_interpretation(found, baseline=False))
    assert not is_valid(validate_interpretation(found, baseline=True))


def test_the_conflicts_are_refused() -> None:
    found = read_file(EXAMPLES / "conflict_example.dts")
    assert not is_valid(validate_interpretation(found, baseline=False))


def test_the_table_in_the_documentation_lists_every_example() -> None:
    text = (EXAMPLES.parent / "instances.md").read_text()
    listed = re.findall(r"^\| `([a-z_]+\.dts)` \|", text, re.M)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.dts"))
