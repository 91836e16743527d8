# SPDX-License-Identifier: GPL-3.0-or-later
"""What site.yml refuses on a host that has nothing of Zernel yet: with every reason, and nothing left on it.

extensions/molecule does the same on a provisioned host.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from playbook import play
from testbed import Guest
from testbed.inventory import write

# Ansible itself makes ~/.ansible/tmp, and systemd writes below /var/lib/systemd and /var/log meanwhile.
LISTING = """
find /etc /usr /opt /boot /root /tmp /var -xdev ! -path '/root/.ansible*' ! -path '/var/lib/systemd/*' \\
  ! -path '/var/log/*' ! -path '/var/tmp/systemd-*' ! -path '/tmp/systemd-*' \\
  ! -name '*.pyc' ! -name __pycache__ \\
  -printf '%p %m %s %y\\n' | sort
find /etc /usr /opt /boot -xdev -type f ! -name '*.pyc' -printf '%p %T@\\n' | sort
sysctl vm.swappiness net.core.rmem_max
"""


@pytest.fixture
def bare(guest: Guest) -> Guest:
    """The guest while it has no agent."""
    assert guest.run("dpkg-query --show zernel-agent", check=False).returncode != 0
    return guest


def refused(guest: Guest, directory: Path, settings: dict[str, Any]) -> str:
    """Run the playbook, which must fail and change nothing; returns what it said, in one line."""
    before = guest.run(LISTING).stdout
    status, said = play(write(directory / "inventory.yml", [guest]), "zernel.fleet.site", settings)
    assert status == 2, said
    assert re.search(r"changed=0 unreachable=0 failed=1", said)
    assert guest.run(LISTING).stdout == before
    return said


def test_every_setting_that_cannot_work_is_refused_at_once(bare: Guest, tmp_path: Path) -> None:
    said = refused(
        bare,
        tmp_path,
        {
            "zernel_agent_kernel_require": ["HZ_1000"],
            "zernel_agent_scheduler_enabled": True,
            "zernel_agent_scheduler_config": {"telemetry": {"metrics_prot": 9093}},
            "zernel_agent_observe_config": {"prometheus": {"port": "ninety"}},
            "zernel_tuning_extra_settings": {"vm.swapiness": 1},
            "zernel_tuning_net_ipv4_tcp_rmem": "4096 87380",
            "zernel_multikernel_instances": [{"name": "training", "cpu_count": 1, "memory": "1GB"}],
        },
    )
    reasons = [
        "nothing on it has been changed",
        "The kernel lacks CONFIG_HZ_1000=y",
        "zernel-scheduler does not accept its settings",
        "Did you mean 'metrics_port'?",
        "zerneld does not accept its settings",
        "Did you mean vm.swappiness?",
        "The value has 2 fields, and the kernel's has 3",
        "the running kernel has no multikernel file system",
    ]
    assert [reason for reason in reasons if reason not in said] == [], said


def test_a_host_that_cannot_be_split_is_refused(bare: Guest, tmp_path: Path) -> None:
    said = refused(
        bare, tmp_path, {"zernel_multikernel_simulate": True, "zernel_multikernel_host_cpus": "0-99"}
    )
    assert "Kernel instances: The host's CPUs cannot be split" in said
    assert "Not online: " in said


def test_declared_instances_are_judged_by_what_they_ask_for(bare: Guest, tmp_path: Path) -> None:
    wrong = [
        {"name": "../web", "cpu_count": 1, "memory": "64MB"},
        {"name": "web", "cpus": "0", "memory": "900GB", "state": "started", "kernel": "/boot/vmlinuz"},
        {"name": "db", "cpus": "1", "memory": "64MB", "devices": ["gpu99"]},
        {"name": "data", "cpus": "1", "memory": "64MB"},
    ]
    split = {"zernel_multikernel_simulate": True, "zernel_multikernel_host_cpus": "0"}
    said = refused(bare, tmp_path, {**split, "zernel_multikernel_instances": wrong})
    reasons = [
        "Invalid instance name: '../web'",
        "web: CPU 0 is reserved for host kernel",
        "web: 900GB of memory cannot be given",
        "db: Invalid device reference",
        "CPU allocation conflict with",
    ]
    assert [reason for reason in reasons if reason not in said] == [], said


def test_a_baseline_that_is_wanted_for_a_later_kernel_is_judged_too(bare: Guest, tmp_path: Path) -> None:
    settings = {"zernel_multikernel_enabled": "always", "zernel_multikernel_pool_size": "900GB"}
    assert "Kernel instances: " in refused(bare, tmp_path, settings)


def test_with_a_kernel_to_install_what_does_not_depend_on_it_is_judged_all_the_same(
    bare: Guest, tmp_path: Path
) -> None:
    said = refused(
        bare,
        tmp_path,
        {
            "zernel_kernel_packages": ["linux-image-amd64"],
            "zernel_kernel_release": "6.99.0-amd64",
            "zernel_agent_kernel_require": ["HZ_1000"],
            "zernel_agent_observe_config": {"prometheus": {"port": 0}},
            "zernel_tuning_extra_settings": {
                "vm.not_here_yet": 1,
                "vm.dirty_ratio": {"value": 7, "policy": "lower"},
            },
        },
    )
    assert "'lower' is not a policy" in said
    assert "zerneld does not accept its settings" in said
    assert "HZ_1000" not in said
    assert "not_here_yet" not in said


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"zernel_kernel_packages": ["linux-image-cloud-amd64"]}, "zernel_kernel_release is not"),
        ({"zernel_tuning_extra_settings": {"vm.swappiness": True}}, "write 1 or 0"),
        ({"zernel_tuning_extra_settings": "none"}, "unable to convert to dict"),
        (
            {"zernel_multikernel_enabled": "never", "zernel_multikernel_instances": [{"name": "a"}]},
            "zernel_multikernel_enabled is never",
        ),
    ],
    ids=["kernel-without-release", "boolean", "wrong-type", "instances-never"],
)
def test_a_setting_that_contradicts_itself_is_refused_before_the_host_is_looked_at(
    bare: Guest, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    assert reason in refused(bare, tmp_path, settings)
