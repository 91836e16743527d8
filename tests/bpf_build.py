# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiles the BPF sources that belong to a test, with the flags of bpf/Makefile."""

from __future__ import annotations

import subprocess
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]


def build_object(source: Path, directory: Path) -> Path:
    """Compile ``NAME.bpf.c`` into ``directory`` and return the object; fail with the compiler's words."""
    output = directory / source.with_suffix(".o").name
    command = ["make", "-s", "-C", CLONE / "bpf", "one", f"SOURCE={source.resolve()}", f"OUTPUT={output}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return output
