# SPDX-License-Identifier: GPL-3.0-or-later
"""How tenants share the CPUs, on real kernels."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scheduler_host import Host

pytestmark = pytest.mark.quiet


def measured(host: Host, *arguments: object) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(host.workload("tenants", *arguments))
    # The scheduler's own account is the kernel's.
    for said, share in zip(report["said"], report["shares"], strict=True):
        assert said == pytest.approx(share, abs=0.05), report
    return report


@pytest.mark.parametrize("kind", ["", ":bound"])
def test_tenants_share_by_weight_however_many_tasks_they_have(any_kernel: Host, kind: str) -> None:
    cpus = int(any_kernel.guest.run("nproc").stdout)
    report = measured(any_kernel, 8, f"200:{4 * cpus}{kind}", f"600:{cpus}")
    light, heavy = report["shares"]
    assert heavy / light == pytest.approx(3.0, rel=0.2), report
    assert report["busy"] > 0.9, report


def test_what_a_tenant_does_not_want_others_get(any_kernel: Host) -> None:
    cpus = int(any_kernel.guest.run("nproc").stdout)
    report = measured(any_kernel, 6, f"200:{2 * cpus}", "600:1")
    assert report["shares"][1] == pytest.approx(1 / cpus, rel=0.2), report
    assert report["busy"] > 0.9, report


def test_the_lightest_tenant_is_served_within_the_starvation_bound(any_kernel: Host) -> None:
    cpus = int(any_kernel.guest.run("nproc").stdout)
    report = measured(any_kernel, 8, "1:1", f"10000:{2 * cpus}")
    assert report["counters"]["rescues"] > 20, report
    # 100 ms, then the slices that run on all CPUs; by weight alone it would wait for a minute.
    assert 0.05 < report["longest_wait_seconds"][0] < any_kernel.allowed(0.25), report


def test_tasks_follow_the_cgroup_that_they_are_moved_to(host: Host) -> None:
    moved: dict[str, float] = json.loads(host.workload("moved", 2))
    assert moved["before"] == 0
    assert moved["new_cgroup"] > 0.5
    assert moved["back"] < 0.1
