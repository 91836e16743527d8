# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-playbook as a person runs it in this clone, for tests of what it refuses and reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]


def play(
    inventory: str | Path, playbook: str | Path, settings: Mapping[str, object], *options: str
) -> tuple[int, str]:
    """Run a playbook with these variables; returns the exit status and what was said, in one line."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            f"--inventory={inventory}",
            f"--extra-vars={json.dumps(settings)}",
            *options,
            playbook,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=CLONE,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(CLONE / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
        },
        timeout=900,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())
