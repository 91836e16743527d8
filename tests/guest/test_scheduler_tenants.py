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


# A starvation bound that does not get in the way: emulated CPUs are late with their ticks, which makes slices
# long.
NO_BOUND = 5000


@pytest.mark.parametrize("kind", ["", ":bound"])
def test_tenants_share_by_weight_however_many_tasks_they_have(any_kernel: Host, kind: str) -> None:
    reports = [measured(any_kernel, 8, "0,1", NO_BOUND, f"200:8{kind}", "600:2") for _ in range(3)]
    # The best of three: the emulator stops CPUs for what the machine does besides.
    ratios = [report["shares"][1] / report["shares"][0] for report in reports]
    assert min(abs(ratio - 3.0) for ratio in ratios) < 0.6, reports
    assert max(report["busy"] for report in reports) > 0.9, reports


def test_tenants_share_the_whole_host_across_its_nodes(host: Host) -> None:
    reports = [measured(host, 10, "0,1,2,3", NO_BOUND, "200:16", "600:4") for _ in range(3)]
    errors = [abs(report["shares"][0] - 0.25) for report in reports]
    assert min(errors) < 0.05, reports


def test_what_a_tenant_does_not_want_others_get(any_kernel: Host) -> None:
    report = measured(any_kernel, 6, "0,1", 100, "200:4", "600:1")
    assert report["shares"][1] == pytest.approx(0.5, rel=0.2), report
    assert report["busy"] > 0.9, report


def test_the_lightest_tenant_is_served_within_the_starvation_bound(any_kernel: Host) -> None:
    without, bounded = (measured(any_kernel, 6, "0,1", ms, "1:1", "10000:4") for ms in (NO_BOUND, 100))
    assert bounded["counters"]["rescues"] > 20, bounded
    # 100 ms, and what runs on both CPUs then; by weight alone it would wait for minutes.
    assert 0.05 < bounded["longest_wait_seconds"][0] < any_kernel.allowed(0.25), bounded
    assert without["longest_wait_seconds"][0] > 4 * bounded["longest_wait_seconds"][0], (without, bounded)


def test_tasks_follow_the_cgroup_that_they_are_moved_to(host: Host) -> None:
    moved: dict[str, float] = json.loads(host.workload("moved", 2))
    assert moved["before"] == 0
    assert moved["new_cgroup"] > 0.5
    assert moved["back"] < 0.1
