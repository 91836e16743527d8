# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's Debian package, for tests that install it in a guest."""

from __future__ import annotations

import os
from pathlib import Path

from testbed import Guest

CLONE = Path(__file__).resolve().parents[1]


def package() -> Path:
    """Return the package that ``make build`` made, or the one that ZERNEL_AGENT_DEB names."""
    if named := os.environ.get("ZERNEL_AGENT_DEB"):
        return Path(named)
    built = sorted((CLONE / "roles/agent/files").glob("zernel-agent_*_all.deb"))
    assert built, "no package in roles/agent/files: run 'make build' first"
    return built[-1]


def install(guest: Guest) -> None:
    """Install the package with its dependencies; the services stay as they are (shipped disabled)."""
    guest.put(package(), "/root/zernel-agent.deb")
    guest.run(
        "DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends --reinstall install "
        "/root/zernel-agent.deb",
        timeout=300,
    )
    guest.run("systemctl daemon-reload && systemctl reset-failed")
