# SPDX-License-Identifier: GPL-3.0-or-later
"""The provisioned guest as it looks from outside, over SSH and HTTP; also what must not have changed."""

from __future__ import annotations

import json
from typing import Any

import pytest

FETCH = (
    "python3 -c 'import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1]).read().decode())' "
)


def scrape(host: Any, port: int) -> str:
    """Fetch the metrics of a daemon on the guest's own loopback address, the only one that it serves."""
    text: str = host.check_output(f"{FETCH}http://127.0.0.1:{port}/metrics")
    return text


def test_the_bpf_scheduler_is_enabled(host: Any) -> None:
    assert host.file("/sys/kernel/sched_ext/state").content_string == "enabled\n"
    assert host.file("/sys/kernel/sched_ext/root/ops").content_string.startswith("zernel")


@pytest.mark.parametrize("unit", ["zernel-scheduler", "zerneld"])
def test_the_services_run_and_start_at_boot(host: Any, unit: str) -> None:
    service = host.service(unit)
    assert service.is_running
    assert service.is_enabled


@pytest.mark.parametrize(("port", "metric"), [(9091, "zernel_probe_attached{"), (9093, "zernel_scheduler_")])
def test_metrics_are_served_on_loopback_and_nowhere_else(host: Any, port: int, metric: str) -> None:
    lines = scrape(host, port).splitlines()
    assert any(line.startswith(metric) for line in lines), lines[:40]
    assert host.socket(f"tcp://127.0.0.1:{port}").is_listening
    assert not host.socket(f"tcp://0.0.0.0:{port}").is_listening


def test_the_scheduler_counts_decisions(host: Any) -> None:
    def decisions() -> float:
        lines = scrape(host, 9093).splitlines()
        counted = [line for line in lines if line.startswith("zernel_scheduler_") and "_total" in line]
        return sum(float(line.split()[-1]) for line in counted)

    first = decisions()
    host.check_output("for i in $(seq 50); do sleep 0.01; done")
    assert decisions() > first


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vm.swappiness", "0"),
        ("vm.dirty_ratio", "40"),
        ("vm.dirty_background_ratio", "10"),
        ("vm.overcommit_memory", "1"),
        ("vm.nr_hugepages", "0"),
        ("net.core.rmem_max", "134217728"),
        ("net.core.wmem_max", "134217728"),
        ("net.ipv4.tcp_rmem", "4096 131072 134217728"),
        ("net.ipv4.tcp_wmem", "4096 65536 134217728"),
        ("net.core.netdev_max_backlog", "250000"),
        ("net.core.default_qdisc", "fq"),
        ("net.ipv4.tcp_congestion_control", "bbr"),
        ("kernel.numa_balancing", "1"),
        ("fs.file-max", "9223372036854775807"),
        ("fs.inotify.max_user_watches", "524288"),
    ],
)
def test_the_documents_parameters_are_effective(host: Any, key: str, value: str) -> None:
    path = f"/proc/sys/{key.replace('.', '/')}"
    assert " ".join(host.file(path).content_string.split()) == value


def test_transparent_huge_pages_are_on(host: Any) -> None:
    assert "[always]" in host.file("/sys/kernel/mm/transparent_hugepage/enabled").content_string


def test_the_parameters_last_and_systemd_takes_them_as_they_are(host: Any) -> None:
    """The strict run fails for a key that does not exist and for a value that the kernel refuses."""
    assert host.run("/usr/lib/systemd/systemd-sysctl --strict /etc/sysctl.d/99-zernel.conf").rc == 0
    lines = host.file("/etc/sysctl.d/99-zernel.conf").content_string.splitlines()
    assert not [line for line in lines if "#" in line.lstrip("#")[0:] and not line.startswith("#")]


def test_the_hosts_own_values_are_on_record(host: Any) -> None:
    record = json.loads(host.file("/var/lib/zernel/tuning-before.json").content_string)
    assert record["values"]["vm.swappiness"] == "60"


def test_the_instance_is_listed_and_labelled_simulated(host: Any) -> None:
    shown = host.check_output("zernel show --format=json")
    data = json.loads(shown)
    assert "training" in json.dumps(data.get("instances"))
    assert "simulated" in shown.lower()
    assert "SIMULATED" in host.run("zernel show").stdout + host.run("zernel show").stderr


def test_the_instance_is_created_again_at_boot(host: Any) -> None:
    kept = json.loads(host.check_output("zernel apply --dry-run --format=json"))
    assert (kept["status"], kept["undeclared"]) == ("unchanged", [])
    assert list(kept["after"]) == ["training"]


def test_the_kernel_has_what_the_scheduler_needs(host: Any) -> None:
    data = json.loads(
        host.check_output("zernel kernel report --format=json --require SCHED_CLASS_EXT,btf,kfuncs")
    )
    assert data["status"] == "ok"
    assert data["btf"] == {**data["btf"], "verdict": "ok", "malformed_kfuncs": []}


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("/etc/sysctl.d", 0o755),
        ("/etc/tmpfiles.d", 0o755),
        ("/etc/modules-load.d", 0o755),
        ("/etc/ssh/sshd_config", 0o644),
        ("/tmp", 0o1777),
        ("/root", 0o700),
    ],
)
def test_permissions_have_not_changed(host: Any, path: str, mode: int) -> None:
    file = host.file(path)
    assert (file.mode, file.user, file.group) == (mode, "root", "root")


def test_no_package_source_and_no_kernel_was_added(host: Any) -> None:
    assert not host.file("/etc/apt/sources.list.d/zernel-kernel.sources").exists
    kernels = host.check_output("ls /usr/lib/modules").split()
    assert kernels == [host.check_output("uname -r")]


def test_nothing_has_failed_and_nothing_is_left_behind(host: Any) -> None:
    assert host.check_output("systemctl --failed --no-legend") == ""
    assert host.check_output("find /tmp /root -maxdepth 1 -name '*ansible*tmp*'") == ""
    assert host.check_output("find /etc -name '*.dpkg-dist' -o -name '*.dpkg-new'") == ""
