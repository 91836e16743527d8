# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of a kernel's life in an instance share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zernel.multikernel.kexec import KernelCalls, SimulatedPort

from .conftest import Host

STEPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "ready": (),
    "loaded": (("load",),),
    "active": (("load",), ("exec",)),
}


def status(host: Host, name: str = "web") -> str:
    return (host.root / "instances" / name / "status").read_text().strip()


def loaded(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((host.root / "SIMULATED.kernels").read_text())
    return found


def words(verb: str, kernel: Path, *more: str) -> tuple[str, ...]:
    return (verb, "web", *([f"--kernel={kernel}"] if verb == "load" else []), *more)


def bring(host: Host, kernel: Path, state: str) -> None:
    for (verb,) in STEPS[state]:
        host.ok(*words(verb, kernel))
    assert status(host) == state


def pending(host: Host) -> bool:
    return any(host.state.rglob("call.json"))


def calls(host: Host) -> KernelCalls:
    return KernelCalls(SimulatedPort(host.root))
