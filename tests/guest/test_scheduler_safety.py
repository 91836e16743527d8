# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold whatever happens: no gap in scheduling, nobody starves, ejections are told and bounded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from scheduler_host import DROP_IN, HERE, SETTINGS, Host

from bpf_build import build_object

pytestmark = pytest.mark.quiet

RELOADS = 200
TRACKED = 1024
"""The least that max_tracked_tasks can be."""


def test_a_fork_storm_starves_nobody_and_is_counted(any_kernel: Host) -> None:
    # What is gone counts as tracked as long as a hint for it would hold.
    any_kernel.settings(
        f"[general]\nmax_tracked_tasks = {TRACKED}\n[safety]\nhint_lifetime_ms = 60000\n",
    )
    any_kernel.start()
    done: dict[str, float] = json.loads(any_kernel.workload("forks", 2 * TRACKED))
    assert done["forks"] >= 2 * TRACKED, done
    assert done["wakes"] > 10 * done["seconds"], done
    assert any_kernel.state() == "enabled"
    metrics = any_kernel.metrics()
    assert metrics["zernel_scheduler_loads_total"] == 1
    assert metrics["zernel_scheduler_untracked_total"] > 0
    # What is gone is not counted any more.
    tasks = int(any_kernel.guest.run("ls -d /proc/[0-9]*/task/* | wc -l").stdout)
    assert metrics['zernel_scheduler_tasks{type="total"}'] <= tasks + 20


def test_two_hundred_reloads_leave_no_gap(host: Host) -> None:
    host.start()
    loads = host.guest.run("cat /sys/kernel/sched_ext/enable_seq").stdout
    texts = [
        "[scheduler]\nslice_us = 1000\n[policy.unknown]\npriority = 3\n[numa]\nenabled = false\n",
        '[multi_tenant]\nenabled = true\n[tenant.a]\ncgroup = "/system.slice"\nclass = "training"\n',
        "[phase_detection]\nnccl_detection_enabled = true\n[safety]\nstarvation_bound_ms = 20\n",
    ]
    words = (host.show("MainPID"), RELOADS, SETTINGS)
    said = json.loads(host.workload("reloads", *words, stdin=json.dumps(texts)))
    host.until(lambda: host.journal().count("settings reloaded") == RELOADS, "not all were taken over")
    assert said["gaps"] == 0
    assert said["reads"] > RELOADS
    assert host.guest.run("cat /sys/kernel/sched_ext/enable_seq").stdout == loads
    metrics = host.metrics()
    assert metrics["zernel_scheduler_loads_total"] == 1
    assert metrics["zernel_scheduler_config_reload_success"] == 1


def noticed_after(host: Host) -> list[float]:
    """Return how many seconds after the kernel ended the scheduler the daemon said so, each time."""
    ended, noticed = [], []
    for line in host.journal_entries():
        text, at = str(line.get("MESSAGE")), int(line["__MONOTONIC_TIMESTAMP"]) / 1e6
        if line["_TRANSPORT"] == "kernel" and re.search(r"sched_ext: .*zernel.* disabled \(", text):
            ended.append(at)
        elif "the kernel ended the scheduler" in text:
            noticed.append(at)
    return [later - earlier for earlier, later in zip(ended, noticed, strict=True)]


def test_a_scheduler_that_forgets_tasks_is_ejected_tried_again_and_given_up(
    host: Host, tmp_path: Path
) -> None:
    host.guest.put(build_object(HERE / "objects/stall.bpf.c", tmp_path), "/root/stall.bpf.o")
    # ProtectHome hides /root from the service.
    host.guest.run("mkdir -p /opt/stall && mv /root/stall.bpf.o /opt/stall/sched.bpf.o")
    host.settings("[scheduler]\nwatchdog_timeout_ms = 1000\n[safety]\nbackoff_s = 1\n")
    host.guest.run(
        f"mkdir -p {Path(DROP_IN).parent} && cat > {DROP_IN} && systemctl daemon-reload",
        stdin="[Service]\nEnvironment=ZERNEL_BPF_DIR=/opt/stall\n",
    )
    with host.background("hogs", "for i in 1 2 3 4; do while :; do :; done & done; wait"):
        host.guest.run("systemctl start --no-block zernel-scheduler", check=False)
        # Three loads beside hogs, ten emulated seconds each.
        given_up = "STAYING on the kernel's own scheduler after 3"
        host.until(lambda: given_up in host.journal(), "not given up", 180)
    journal = host.journal()
    assert re.findall(r"trying again in (\d+) s", journal) == ["1", "2"]
    # The forgotten task may be the kernel's watchdog worker itself: then the tick notices that it is overdue.
    stalls = re.findall(
        r"runnable task stall: .*(?:failed to run|failed to check in) for ([0-9.]+)s", journal
    )
    # After the timeout of the settings, which the kernel looks at twice as often; not after the default one.
    assert len(stalls) == 3
    assert all(1 <= float(seconds) < 9 for seconds in stalls), stalls
    delays = noticed_after(host)
    assert len(delays) == 3
    assert sorted(delays)[1] < host.allowed(2), delays
    assert host.show("ActiveState") == "active"
    assert "STAYING OFF until a reload" in host.show("StatusText")
    assert host.state() == "disabled"
    metrics = host.metrics()
    assert metrics["zernel_scheduler_gave_up"] == 1
    assert metrics["zernel_scheduler_ejections_total"] == metrics["zernel_scheduler_loads_total"] == 3
    assert metrics["zernel_scheduler_enabled"] == 0
    shown = host.guest.run("zernel scheduler status").stdout
    assert "STAYING OFF until a reload: ejected by the kernel: runnable task stall" in shown
    # A person who put it right asks for another try.
    host.guest.run("cp /usr/lib/zernel/bpf/sched.bpf.o /opt/stall/ && systemctl reload zernel-scheduler")
    host.until(lambda: host.state() == "enabled", "it does not come back")
    assert host.metrics()["zernel_scheduler_gave_up"] == 0
