# SPDX-License-Identifier: GPL-3.0-or-later
"""On which kernels the scheduler loads, beside what it does not, and with which words it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scheduler_host import HERE, Host

from agent_package import CLONE
from bpf_build import build_object
from testbed import Guest, GuestSpec
from testbed.image import Image

pytestmark = pytest.mark.quiet


def sched_ext(guest: Guest, zernel: str = "zernel") -> dict[str, Any]:
    """Return what ``zernel doctor`` says of sched_ext."""
    told = json.loads(guest.run(f"{zernel} doctor --format=json", check=False).stdout)
    return next(one for one in told["capabilities"] if one["name"] == "sched_ext")


def test_one_object_loads_on_each_kernel(any_kernel: Host, request: pytest.FixtureRequest) -> None:
    series = {"debian": "7.3.", "6.12": "6.12."}[request.node.callspec.params["any_host"]]
    assert any_kernel.guest.run("uname -r").stdout.startswith(series)
    before = sched_ext(any_kernel.guest)
    assert (before["state"], before["reason"]) == ("ok", "usable; none is enabled")
    any_kernel.start()
    after = sched_ext(any_kernel.guest)
    assert (after["state"], after["reason"]) == ("ok", "zernel is enabled")
    complaints = any_kernel.guest.run("dmesg | grep -E 'BUG: |Oops: |WARNING: .*kernel/sched' || true").stdout
    assert complaints == ""


def test_a_kernel_without_sched_ext_is_refused() -> None:
    """This machine's own, in a name space where a scheduler could not be loaded on any kernel."""
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-m", "zernel.scheduler.daemon"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lacks_it = not Path("/sys/kernel/sched_ext/state").exists()
    assert ("ERROR: scheduler: This kernel has no sched_ext" in done.stderr) == lacks_it, done.stderr
    assert ("was built without CONFIG_SCHED_CLASS_EXT, or is older than 6.12" in done.stderr) == lacks_it


def test_isolated_cpus_are_the_reason(small_kernel: Path, guest_image: Image) -> None:
    spec = GuestSpec(name="zernel-isolated", kernel=small_kernel, kernel_options="isolcpus=1")
    with Guest.boot(spec, image=guest_image) as guest:
        guest.put(CLONE / "agent/src/zernel", "/root/zernel")
        zernel = "PYTHONPATH=/root python3 -m zernel"
        found = sched_ext(guest, zernel)
        done = guest.run(f"{zernel} scheduler enable", check=False)
    assert found["state"] == "missing"
    assert done.returncode == 1
    for said in (found["reason"], done.stderr):
        assert "The kernel was booted with isolated CPUs" in said
        assert "With isolcpus=1 it refuses every BPF scheduler" in said
    assert "Remove isolcpus=1 from the kernel command line" in found["suggestion"]


def test_another_scheduler_is_named_and_left_alone(host: Host, tmp_path: Path) -> None:
    host.guest.put(build_object(HERE / "objects/other.bpf.c", tmp_path), "/root/other.bpf.o")
    with host.background("other", "exec python3 /root/workloads/other.py /root/other.bpf.o"):
        host.until(lambda: host.state() == "enabled", "the other scheduler is not loaded")
        shown = host.guest.run("zernel scheduler status").stdout
        assert "tasks     run by 'other'" in shown
        assert "sched_ext is enabled, loaded: other" in shown
        done = host.guest.run("zernel scheduler enable", check=False)
        assert done.returncode == 1
        assert "Another BPF scheduler is loaded" in done.stderr
        assert "'other' is enabled" in done.stderr
        found = sched_ext(host.guest)
        assert found["state"] == "missing"
        assert "Another BPF scheduler is loaded" in found["reason"]
        assert host.guest.run("cat /sys/kernel/sched_ext/root/ops").stdout.strip() == "other"
    host.until(lambda: host.state() == "disabled", "the other scheduler stays")
    assert host.show("UnitFileState") == "disabled"


def test_a_real_time_thread_that_keeps_a_cpu_busy_is_named(any_kernel: Host) -> None:
    any_kernel.start()
    assert json.loads(any_kernel.guest.run("zernel scheduler status --format json").stdout)["realtime"] == []
    with any_kernel.background("robot", "exec chrt -f 50 taskset -c 1 sh -c 'while :; do :; done'"):
        shown = any_kernel.guest.run("zernel scheduler status").stdout
    line = next(line for line in shown.splitlines() if line.startswith("real-time "))
    assert line.startswith("real-time sh (thread ")
    assert "FIFO 50) uses " in line
    assert "% of CPU 1: no other scheduler's tasks run there meanwhile" in line
    assert any_kernel.state() == "enabled"
