# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of the second version look at."""

from __future__ import annotations

from pathlib import Path

from zernel.devicetree import load
from zernel.devicetree.model import Resources
from zernel.multikernel import live_tree
from zernel.multikernel.live_tree import Pool
from zernel.multikernel.wire_v2 import V2

from .conftest import EXAMPLES, Host, wire_of

GB = 1 << 30


def wire(host: Host) -> V2:
    found = wire_of(host)
    assert isinstance(found, V2)
    return found


def record(host: Host) -> Path:
    (path,) = host.state.rglob("inventory.json")
    return path


def pool(host: Host) -> Pool | None:
    return live_tree.pool((host.root / "device_tree").read_bytes())


def shown(host: Host, name: str) -> live_tree.LiveInstance:
    found = live_tree.instance((host.root / "instances" / name / "device_tree").read_bytes())
    assert found is not None
    return found


def apply(host: Host, example: str = "baseline.dts") -> tuple[str, ...]:
    return ("init", f"--input={EXAMPLES / example}", "--apply")


def resources(example: str = "baseline.dts") -> Resources:
    system = load.read_file(str(EXAMPLES / example)).system
    assert system is not None
    return system.resources
