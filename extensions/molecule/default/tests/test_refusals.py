# SPDX-License-Identifier: GPL-3.0-or-later
"""What a provisioned host must refuse: with the reason, a failed task, and nothing changed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from playbook import play

PORT = 9393
# A lock file names its last holder: that one was looked for is no change of the host.
LISTING = """
find /etc /usr/bin /usr/lib/zernel /var/lib/zernel /var/cache/zernel -type f ! -name '*.lock' \\
  -printf '%p %m %s %T@\\n' | sort
sysctl vm.swappiness vm.dirty_ratio net.core.rmem_max
systemctl is-active zernel-scheduler zerneld
"""


@pytest.fixture(scope="module")
def taken_port(host: Any) -> Iterator[int]:
    """A port that a program of someone else listens on."""
    host.check_output(f"systemd-run --quiet --collect --unit=port-taker python3 -m http.server {PORT}")
    host.check_output(f"timeout 60 sh -c 'until ss -ltn | grep -q :{PORT}; do sleep 0.5; done'")
    yield PORT
    host.check_output("systemctl stop port-taker")


def refused(host: Any, settings: dict[str, Any], *options: str) -> str:
    """Run the playbook, which must fail and change nothing; returns what it said, in one line."""
    inventory = f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/inventory"
    before = host.check_output(LISTING)
    status, said = play(inventory, "zernel.fleet.site", settings, *options)
    assert status == 2, said
    assert host.check_output(LISTING) == before
    assert re.search(r"changed=0 unreachable=0 failed=1", said)
    return said


def test_a_kernel_that_lacks_an_option(host: Any) -> None:
    """Debian's kernels have HZ=250, so that this is a real refusal of a real kernel."""
    said = refused(host, {"zernel_agent_kernel_require": ["HZ_1000"]})
    assert "The kernel lacks CONFIG_HZ_1000=y" in said
    assert "Install a kernel that has it" in said


def test_every_reason_at_once(host: Any, taken_port: int) -> None:
    settings = {
        "zernel_agent_debian_releases": ["11"],
        "zernel_agent_scheduler_enabled": True,
        "zernel_agent_scheduler_config": {"telemetry": {"metrics_port": taken_port}},
    }
    said = refused(host, settings)
    assert (
        f"Port {taken_port}, on which zernel-scheduler.service serves metrics, is taken by python3 (pid "
        in said
    )
    assert "This is Debian GNU/Linux 13 (trixie); Zernel works on Debian 11." in said
    assert "nothing on it has been changed" in said


def test_a_user_without_rights(host: Any) -> None:
    host.check_output("id molecule >/dev/null 2>&1 || useradd --create-home molecule")
    host.check_output("install -d -m 700 -o molecule /home/molecule/.ssh")
    host.check_output(
        "install -m 600 -o molecule /root/.ssh/authorized_keys /home/molecule/.ssh/authorized_keys"
    )
    said = refused(host, {"ansible_user": "molecule", "ansible_become": False})
    assert "The tasks do not run as root" in said


def test_a_setting_that_the_daemon_does_not_know(host: Any) -> None:
    settings = {"zernel_agent_scheduler_config": {"telemetry": {"metrics_prot": 9093}}}
    said = refused(host, settings)
    assert "zernel-scheduler does not accept its settings" in said
    assert "Did you mean 'metrics_port'?" in said


def test_a_package_that_is_not_there(host: Any) -> None:
    said = refused(host, {"zernel_agent_package": "/nowhere/zernel-agent_0_all.deb"})
    assert "There is no agent package at /nowhere/zernel-agent_0_all.deb on this controller" in said


@pytest.mark.parametrize(
    ("settings", "reasons"),
    [
        ({"zernel_tuning_extra_settings": {"vm.swappiness": True}}, ["write 1 or 0"]),
        ({"zernel_tuning_vm_swappiness": "0  # Never swap"}, ["Put the comment on a line of its own"]),
        (
            {
                "zernel_tuning_extra_settings": {"vm.swapiness": 1, "vm.dirty_ratio": 7},
                "zernel_tuning_net_ipv4_tcp_rmem": "4096 87380",
                "zernel_tuning_vm_nr_hugepages": "many",
            },
            [
                "Did you mean vm.swappiness?",
                "The value has 2 fields, and the kernel's has 3",
                "'many' is not a whole number",
            ],
        ),
    ],
    ids=["boolean", "comment", "every-reason-at-once"],
)
def test_kernel_parameters_that_would_fail_in_silence(
    host: Any, settings: dict[str, Any], reasons: list[str]
) -> None:
    said = refused(host, settings)
    assert [reason for reason in reasons if reason not in said] == []


def test_kernel_packages_without_their_release(host: Any) -> None:
    said = refused(host, {"zernel_kernel_packages": ["linux-image-cloud-amd64"]})
    assert "zernel_kernel_release is not" in said
