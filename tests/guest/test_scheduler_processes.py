# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes between the scheduler and user space about processes, on real kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scheduler_host import HERE, Host

from bpf_build import build_object

pytestmark = pytest.mark.quiet


def test_it_tells_what_processes_do_and_takes_hints_only_while_they_hold(any_kernel: Host) -> None:
    said: dict[str, Any] = json.loads(any_kernel.workload("processes"))
    hog, sleeper, reader = (said[name] for name in ("hog", "sleeper", "reader"))
    for name, ticks in said["start_ticks"].items():
        assert said[name]["start_ticks"] == ticks
    # Two seconds each. A burst that goes on counts as it grows.
    assert hog["run_ns"] + hog["wait_ns"] == pytest.approx(2e9, rel=0.2)
    assert hog["longest_burst_ns"] > 1e9
    assert hog["bursts"] == hog["sleep_ns"] == 0
    assert hog["roles"] == ["other"]
    assert sleeper["sleep_ns"] > 1e9
    assert sleeper["bursts"] > 30
    assert sleeper["io_wait_ns"] == 0
    assert "interactive" in sleeper["roles"]
    assert reader["io_wait_ns"] > 0.8 * reader["sleep_ns"] > 0
    assert "loader" in reader["roles"]
    # No probe is there to see a GPU.
    assert {hog["gpu_sync_ns"], sleeper["gpu_launch_ns"], reader["nccl_ns"]} == {None}
    assert said["fresh"] == "gpu_compute"
    assert said["stale"] is None
    assert said["other"] is None
    assert said["successor"] is None
    assert said["successors_own"] == "gpu_compute"
    assert said["gone"]
    assert said["self"]


def test_processes_run_on_the_node_of_their_gpu_if_they_may(host: Host) -> None:
    first, second, barred = json.loads(host.workload("near", 3))
    assert first < 0.2
    assert second > 0.8
    assert barred == 0


def roles(**changed: object) -> str:
    """Return the text of a settings file. Emulated CPUs are slow, disks are not: short is longer here."""
    scheduler = {"short_burst_us": changed.pop("short_burst_us", 2000)}
    detection = {"nccl_detection_enabled": True, "optimizer_burst_max_ns": 20_000_000}
    detection |= {"io_wait_threshold": 0.1, **changed}
    tables = {"scheduler": scheduler, "phase_detection": detection}
    return "".join(
        f"[{table}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for table, keys in tables.items()
    )


def test_threads_that_work_with_a_gpu_are_known_by_what_the_probes_see(
    any_kernel: Host, tmp_path: Path
) -> None:
    probe = build_object(HERE / "objects/gpu_sync.bpf.c", tmp_path)
    any_kernel.guest.put(probe, "/root/gpu_sync.bpf.o")
    texts = [
        roles(),
        roles(short_burst_us=50),
        roles(optimizer_burst_max_ns=1_000_000),
        roles(nccl_detection_enabled=False),
        roles(io_wait_threshold=1.0),
    ]
    said = json.loads(any_kernel.workload("gpu_threads", "/root/gpu_sync.bpf.o", stdin=json.dumps(texts)))
    normal, brief, shorter, blind, patient = said["working"]
    assert normal == {
        "launcher": "launcher",
        "optimizer": "optimizer",
        "collective": "collective",
        "loader": "loader",
        "bystander": "interactive",
    }
    # Each threshold flipped, and the one role that follows from it.
    assert (brief["launcher"], brief["bystander"]) == ("optimizer", "other"), said
    assert shorter["optimizer"] != "optimizer", said
    assert blind["collective"] != "collective", said
    assert patient["loader"] != "loader", said
    assert said["sync"]
    # What was seen a while ago says nothing about now.
    assert not {"launcher", "optimizer", "collective"} & set(said["idle"].values()), said
