# SPDX-License-Identifier: GPL-3.0-or-later
"""What site.yml refuses on a host that has nothing of Zernel yet: with every reason, and nothing left on it.

extensions/molecule does the same on a provisioned host.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed import Guest
from testbed.inventory import write

CLONE = Path(__file__).parents[2]
LISTING = """
find /etc /usr /opt /boot /var/lib /var/cache/zernel -xdev -type f \\
  ! -path '/var/lib/systemd/*' ! -name '*.pyc' -printf '%p %m %s %T@\\n' 2>/dev/null | sort
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
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            f"--inventory={write(directory / 'inventory.yml', [guest])}",
            f"--extra-vars={json.dumps(settings)}",
            "zernel.fleet.site",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=CLONE,
        env={**os.environ, "ANSIBLE_CONFIG": str(CLONE / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        timeout=600,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(r"changed=0 +unreachable=0 +failed=1", done.stdout)
    assert guest.run(LISTING).stdout == before
    return " ".join((done.stdout + done.stderr).split())


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
    assert "Kernel instances" in said
    assert "99" in said


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
