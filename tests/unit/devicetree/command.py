# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line on files: no multikernel file system, no root."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "docs/examples"
ZERNEL = str(Path(sys.executable).parent / "zernel")


def zernel(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``zernel`` and check what holds for every run: an exit status of its own, and no traceback."""
    done = subprocess.run(
        [ZERNEL, *words], capture_output=True, text=True, errors="surrogateescape", timeout=60
    )
    assert done.returncode in (0, 1, 2), done
    assert "Traceback" not in done.stderr
    assert "Internal error" not in done.stderr
    return done


def refused(*words: str | Path) -> str:
    """Run ``zernel``, which must refuse, and return its errors."""
    done = zernel(*words)
    assert done.returncode == 1, done
    assert done.stderr.startswith(("ERROR: ", "WARNING: ")), done
    return done.stderr
