# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel doctor`` as root on this machine: what it says was tried was tried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zerneld_run import environment, wait_until


def doctor(*prefix: str, **variables: str) -> dict[str, dict[str, Any]]:
    command = [*prefix, sys.executable, "-m", "zernel", "doctor", "--format=json"]
    done = subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stderr == ""
    return {one["name"]: one for one in json.loads(done.stdout)["capabilities"]}


def programs() -> set[int]:
    shown = subprocess.run(["bpftool", "--json", "prog", "list"], check=True, capture_output=True, text=True)
    return {one["id"] for one in json.loads(shown.stdout) if one.get("name") in ("on_enter", "on_exit")}


def test_a_real_attachment_is_made_and_taken_away() -> None:
    before = programs()
    found = doctor()
    assert found["bpf"]["reason"].startswith("a program was loaded, compiled; libbpf 1.")
    assert found["uprobes"]["reason"] == "one was attached to this process and ran"
    assert found["tracepoints"]["reason"] == "one was attached (sched_process_exit)"
    assert {found[name]["state"] for name in ("bpf", "uprobes", "tracepoints")} == {"ok"}
    wait_until(lambda: programs() <= before, "programs left in the kernel")


def test_root_without_the_rights_is_told_apart() -> None:
    found = doctor("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    assert found["bpf"]["state"] == "missing"
    assert found["uprobes"]["state"] == "missing"


def test_objects_that_were_not_built_are_unknown_not_missing(tmp_path: Path) -> None:
    found = doctor(ZERNEL_BPF_DIR=str(tmp_path))
    assert {found[name]["state"] for name in ("bpf", "uprobes")} == {"unknown"}
    assert "make bpf" in found["bpf"]["suggestion"]


def test_colour_is_for_terminals_only() -> None:
    command = [sys.executable, "-m", "zernel", "doctor", "--require", ""]
    controller, terminal = os.openpty()
    try:
        subprocess.run(command, env=environment(), stdout=terminal, check=True, timeout=120)
        assert b"\x1b[32mok" in os.read(controller, 4096)
        subprocess.run(command, env=environment(NO_COLOR="1"), stdout=terminal, check=True, timeout=120)
        assert b"\x1b[" not in os.read(controller, 4096)
    finally:
        os.close(terminal)
        os.close(controller)


@pytest.mark.parametrize("kind", ["tmpfs"])
def test_another_file_system_is_not_taken_for_multikernel(tmp_path: Path, kind: str) -> None:
    script = f'mount -t {kind} none {tmp_path} && exec "$@"'
    found = doctor("unshare", "--mount", "sh", "-c", script, "sh", ZERNEL_MULTIKERNEL_ROOT=str(tmp_path))[
        "multikernel"
    ]
    assert found["state"] == "missing"
    assert "What is mounted there is of type 'tmpfs'" in found["reason"]
    assert found["details"]["simulated"] is False


def test_a_simulated_multikernel_is_labelled(tmp_path: Path) -> None:
    place = str(tmp_path / "multikernel")
    simulate = [sys.executable, "-m", "zernel", "simulate", "multikernel", place, "--background"]
    subprocess.run(simulate, check=True, timeout=60)
    try:
        found = doctor(ZERNEL_MULTIKERNEL_ROOT=place)["multikernel"]
    finally:
        subprocess.run(["umount", place], check=True)
    assert found["state"] == "ok"
    assert found["reason"].startswith("SIMULATED")
    assert found["details"]["simulated"] is True
