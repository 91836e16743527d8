# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler's service as its user meets it: ``zernel scheduler``, tenants of the settings, signals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scheduler_host import Host

pytestmark = pytest.mark.quiet

CGROUPS = "/sys/fs/cgroup"


def scheduler(host: Host, words: str, timeout: float = 120) -> dict[str, Any]:
    done = host.guest.run(f"zernel scheduler {words}", timeout=timeout)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def settings(one: str, other: str, rest: str = "") -> str:
    """Return a settings file with two tenants, which have these keys."""
    return f"""
[multi_tenant]
enabled = true
# What asks and answers is of the default tenant, and must not have to wait for the hogs.
cpu_only_weight = 2000
[tenant.one]
cgroup = "/one"
{one}
[tenant.other]
cgroup = "/other"
{other}
{rest}
"""


@contextmanager
def hogs(host: Host, **number: int) -> Iterator[None]:
    """Keep so many hogs running in each cgroup of that name, on two CPUs."""
    for name, count in number.items():
        inside = f'echo $$ > {CGROUPS}/{name}/cgroup.procs; exec taskset -c 0,1 sh -c "while :; do :; done"'
        start = f"setsid sh -c '{inside}' </dev/null >/dev/null 2>&1 &"
        host.guest.run(f"mkdir -p {CGROUPS}/{name}; for i in $(seq {count}); do {start} done")
    try:
        yield
    finally:
        for name in number:
            # A cgroup goes once its last process is gone.
            host.guest.run(
                f"echo 1 > {CGROUPS}/{name}/cgroup.kill; "
                f"until rmdir {CGROUPS}/{name} 2>/dev/null; do sleep 0.05; done",
                timeout=30,
            )


def shares(host: Host) -> dict[str, float | None]:
    """Return what part of the CPU time each tenant got in the last second."""
    told = scheduler(host, "status --format json")
    return {one["name"]: one["share_received"] for one in told["daemon"]["tenants"]}


def ratio(host: Host) -> float:
    """Return the share of tenant one, as a multiple of the other's; 0 where one of them has none."""
    got = shares(host)
    one, other = got.get("one"), got.get("other")
    return one / other if one and other else 0.0


def reload(host: Host, text: str) -> None:
    host.settings(text)
    before = host.journal().count("settings reloaded")
    host.guest.run("systemctl reload zernel-scheduler")
    host.until(lambda: host.journal().count("settings reloaded") > before, "not reloaded")


def test_tenants_of_the_settings_share_by_weight_and_class(host: Host) -> None:
    host.settings(settings("weight = 200", "weight = 600"))
    with hogs(host, one=8, other=2):
        host.start()
        host.until(lambda: 0.2 < ratio(host) < 0.45, "they do not share 1 to 3")
        pid = host.guest.run(f"head -n 1 {CGROUPS}/other/cgroup.procs").stdout.strip()
        told = scheduler(host, f"explain {pid} --format json")
        assert told["tenant"] == {"name": "other", "class": "normal", "weight": 600}
        assert told["cpus_allowed"] == "0-1"
        assert told["verdict"]["phase"] == "unknown"
        assert [one["policy"] for one in told["threads"]] == ["POLICY_UNKNOWN"]
        text = host.guest.run(f"zernel scheduler explain {pid}").stdout
        assert "tenant    other, class normal, weight 600" in text
        # By their classes alone: 1.25 for each of ten steps.
        reload(host, settings('class = "training"', 'class = "background"'))
        host.until(lambda: ratio(host) > 5, "a class of ten steps more does not get more")
        reload(
            host, settings('class = "training"', 'class = "background"', "[priority_class]\ntraining = -5\n")
        )
        host.until(lambda: 0.7 < ratio(host) < 1.4, "classes that are worth the same do not get the same")
        reload(host, "")
        host.until(lambda: shares(host).keys() == {"default"}, "tenants stay that the settings do not have")
        assert host.metrics()["zernel_scheduler_loads_total"] == 1


def test_signals_that_are_absent_say_why_and_the_documents_metrics_are_there(host: Host) -> None:
    host.start()
    delays = 'zernel_scheduler_wakeup_delay_seconds_count{role="interactive"}'
    host.until(lambda: host.metrics().get(delays, 0) > 0, "no figures")
    metrics = host.metrics()
    assert metrics['zernel_scheduler_signal_up{signal="cpu_burst_ns"}'] == 1
    assert metrics['zernel_scheduler_signal_up{signal="gpu_utilization"}'] == 0
    assert 'zernel_scheduler_phase_tasks{phase="data_loading"}' in metrics
    shown = host.guest.run("zernel scheduler status").stdout
    assert "tasks     run by Zernel's scheduler" in shown
    assert "gpu_utilization (" in shown
    assert "interactive" in shown


def test_ab_alternates_and_leaves_what_was(host: Host) -> None:
    for started in (False, True):
        if started:
            host.start()
        state = host.state()
        told = scheduler(host, "ab --rounds 2 --duration 20s --format json -- sleep 0.5", timeout=240)
        assert len(told["kernel"]) == len(told["zernel"]) == 2
        assert told["ratio_lowest"] <= told["ratio"] <= told["ratio_highest"]
        # Both sleep for as long, and two rounds are too few to tell.
        assert 0.3 < told["ratio"] < 3
        assert told["verdict"] == "unclear"
        assert host.state() == state


def test_enable_and_disable_count_now_and_at_boot(host: Host) -> None:
    for verb, state, boot in (("enable", "enabled", "enabled"), ("disable", "disabled", "disabled")):
        assert scheduler(host, f"{verb} --format json")["changed"]
        assert (host.state(), host.show("UnitFileState")) == (state, boot)
        assert not scheduler(host, f"{verb} --format json")["changed"]
        told = scheduler(host, "status --format json")
        assert told["runs_tasks"] == ("zernel" if verb == "enable" else "kernel")
    assert told["daemon"] is None
    assert "Connection refused" in told["daemon_unavailable"]
