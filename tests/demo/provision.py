# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the site playbook against guests, and give a demo guest something to observe."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from testbed import Guest, TestbedError
from testbed.tools import tail

REPO = Path(__file__).resolve().parents[2]
PLAYBOOK = REPO / "playbooks/site.yml"
VARIABLES = REPO / "tests/testbed/demo-vars.yml"
WORKLOAD_UNIT = "zernel-demo-workload.service"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the playbook: its wall time in seconds, and how many tasks changed something."""

    seconds: float
    changed: int


class PlaybookError(TestbedError):
    """The playbook failed. ``log`` is the end of its output."""


def site(inventory: Path, arguments: Sequence[str] = (), *, quiet: bool = False) -> Run:
    """Run site.yml with the demo's variables.

    :raises PlaybookError: when a task failed or a host could not be reached.
    """
    command = [
        str(REPO / ".venv/bin/ansible-playbook"),
        *("-i", str(inventory)),
        *("-e", f"@{VARIABLES}"),
        *arguments,
        str(PLAYBOOK),
    ]
    start = time.monotonic()
    output: list[str] = []
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if not quiet:
                sys.stdout.write(line)
                sys.stdout.flush()
            output.append(line)
    if process.returncode != 0:
        raise PlaybookError(
            "The playbook failed",
            f"ansible-playbook {PLAYBOOK} ended with status {process.returncode}",
            log=tail("".join(output), 25),
            suggestion="The task before the recap names the cause; correct it and run the same command again",
        )
    recap = [line for line in output if "changed=" in line and "unreachable=" in line]
    changed = sum(int(word.split("=")[1]) for word in " ".join(recap).split() if word.startswith("changed="))
    return Run(time.monotonic() - start, changed)


def start_workload(guest: Guest) -> None:
    """Build the stub libcuda and its program here, copy them to the guest and run them there as a service."""
    stubs = REPO / "tests/stubs/libcuda"
    with TemporaryDirectory(prefix="zernel-demo-") as directory:
        built = Path(directory)
        compile_c = ["gcc", "-O2", "-Wall", "-pthread"]
        shared = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
        library, program = built / "libcuda.so.1", built / "workload"
        subprocess.run([*compile_c, *shared, "-o", library, stubs / "libcuda.c"], check=True)
        subprocess.run([*compile_c, "-o", program, stubs / "workload.c", "-ldl"], check=True)
        (built / "workload.sh").write_bytes((REPO / "tests/demo/workload.sh").read_bytes())
        (built / "workload.sh").chmod(0o755)
        built.chmod(0o755)
        guest.put(built, "/opt/zernel-demo")
    # One of an earlier demo may have allocated before zerneld was started anew: that would not be counted.
    guest.run(f"systemctl stop {WORKLOAD_UNIT}", check=False)
    # The workload waits until the probe is attached: to its own library, not to that of the one before.
    attached = "curl -s 127.0.0.1:9091/metrics | grep -q 'probe_attached{probe=\"gpu_mem\"} 1'"
    guest.run(f"for second in $(seq 60); do {attached} || break; sleep 1; done")
    guest.run(f"systemd-run --quiet --collect --unit={WORKLOAD_UNIT} /opt/zernel-demo/workload.sh")
