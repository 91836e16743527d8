# SPDX-License-Identifier: GPL-3.0-or-later
"""zerneld as systemd runs it on Debian 13: the package's unit with its sandbox, settings and journal."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent_package import install
from cuda_stub import build_library, build_workload
from testbed import Guest

METRICS = "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:9091/metrics\").read().decode())'"
KEEP_SETTINGS = "cp /etc/zernel/zerneld.toml /root/zerneld.toml"
RESTORE_SETTINGS = "cp /root/zerneld.toml /etc/zernel/zerneld.toml"


@pytest.fixture(scope="module")
def host(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """The guest with the agent installed, zerneld running, the stub libcuda and the workload in /root."""
    directory = tmp_path_factory.mktemp("guest-cuda")
    guest.put(build_library(directory), "/root/libcuda.so.1")
    guest.put(build_workload(directory), "/root/workload")
    install(guest)
    guest.run("systemctl restart zerneld")
    guest.run(KEEP_SETTINGS)
    yield guest
    guest.run(f"{RESTORE_SETTINGS}; systemctl stop zerneld; apt-get -q -y remove zernel-agent", timeout=300)


def metrics(host: Guest) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(host.run(METRICS).stdout)
        for sample in family.samples
    }


def value(host: Guest, name: str, **labels: str) -> float | None:
    return metrics(host).get((name, frozenset(labels.items())))


def journal(host: Guest, since: str) -> str:
    return host.run(f"journalctl --sync; journalctl -u zerneld -o cat --since=@{since}").stdout


def now(host: Guest) -> str:
    return host.run("date +%s").stdout.strip()


def test_the_unit_starts_and_says_what_it_lacks(host: Guest) -> None:
    assert host.run("systemctl is-active zerneld").stdout.strip() == "active"
    shown = host.run("systemctl show zerneld -p Type -p WatchdogUSec -p StatusText").stdout
    assert "Type=notify" in shown
    assert "WatchdogUSec=30s" in shown
    assert "StatusText=gpu_mem unavailable: no libcuda.so.1" in shown
    assert value(host, "zernel_probe_attached", probe="gpu_mem") == 0


def test_inside_its_sandbox_it_finds_probes_and_counts(host: Guest) -> None:
    """The library is in /root, which ProtectHome hides: it is found as the process has it."""
    # Opened for reading and writing, the pipe never ends; nothing of the session's stays open.
    job = (
        "exec 3<>/root/commands; echo $$ > /root/pid; "
        "exec /root/workload /root/libcuda.so.1 <&3 >/root/answers"
    )
    host.run(f"mkfifo /root/commands; setsid sh -c '{job}' </dev/null >/dev/null 2>&1 &")
    pid = host.run("for i in $(seq 60); do [ -s /root/pid ] && cat /root/pid && exit; sleep 0.2; done").stdout
    pid = pid.strip()
    try:
        host.run("printf 'init\\n' > /root/commands")
        probed = "journalctl -u zerneld -o cat | grep -q 'probing /root'"
        host.run(f"for i in $(seq 60); do {probed} && exit; sleep 0.5; done; exit 1")
        host.run("printf 'count\\ncreate 0\\nalloc 1048576 300\\nfree 100\\nalloc 0 7\\n' > /root/commands")
        host.run("for i in $(seq 60); do [ $(wc -l < /root/answers) = 6 ] && exit; sleep 0.2; done; exit 1")
        where = {"gpu_id": "0", "pid": pid}
        assert value(host, "zernel_gpu_memory_used_bytes", **where) == 200 << 20
        assert value(host, "zernel_gpu_memory_peak_bytes", **where) == 300 << 20
        assert value(host, "zernel_gpu_memory_allocation_failures_total", code="1") == 7
        assert value(host, "zernel_probe_attached", probe="gpu_mem") == 1
        runs = value(host, "zernel_probe_runs_total", probe="gpu_mem")
        assert runs is not None, "BPF_ENABLE_STATS is not allowed in the sandbox"
        assert runs >= 2 * (300 + 100 + 7)
    finally:
        host.run(f"kill {pid}; rm -f /root/commands /root/answers /root/pid")
    assert not [name for name, labels in metrics(host) if ("pid", pid) in labels]


def test_a_reload_with_a_mistake_keeps_it_running_and_says_why(host: Guest) -> None:
    since = now(host)
    try:
        host.run("printf '[prometheus]\\nprot = 1\\n' > /etc/zernel/zerneld.toml; systemctl reload zerneld")
        assert host.run("systemctl is-active zerneld").stdout.strip() == "active"
        assert metrics(host)
        said = journal(host, since)
        assert "Unknown key 'prot' in [prometheus]" in said
        assert "Line 2: prot = 1" in said
    finally:
        host.run(RESTORE_SETTINGS)
    host.run("systemctl reload zerneld")


def test_a_start_with_a_mistake_fails_with_the_reason(host: Guest) -> None:
    since = now(host)
    try:
        host.run("printf '[prometheus]\\nport = 0\\n' > /etc/zernel/zerneld.toml")
        assert host.run("systemctl restart zerneld", check=False).returncode != 0
        said = journal(host, since)
        assert "'prometheus.port' is 0; accepted: 1 to 65535" in said
        assert "Traceback" not in said
    finally:
        host.run(f"{RESTORE_SETTINGS}; systemctl stop zerneld; systemctl reset-failed zerneld || true")
    host.run("systemctl start zerneld")


def test_a_hang_is_ended_by_the_watchdog_and_it_comes_back(host: Guest) -> None:
    drop_in = "/run/systemd/system/zerneld.service.d"
    try:
        host.run(f"mkdir -p {drop_in}; printf '[Service]\\nWatchdogSec=3\\n' > {drop_in}/test.conf")
        host.run("systemctl daemon-reload && systemctl restart zerneld")
        hung = host.run("systemctl show -P MainPID zerneld").stdout.strip()
        host.run(f"kill -STOP {hung}")
        restarted = (
            "for i in $(seq 120); do p=$(systemctl show -P MainPID zerneld); "
            f"[ $p != {hung} ] && [ $p != 0 ] && systemctl is-active -q zerneld && exit; "
            "sleep 0.5; done; exit 1"
        )
        host.run(restarted)
        assert metrics(host)
    finally:
        host.run(f"rm -r {drop_in}; systemctl daemon-reload; systemctl restart zerneld")


def test_doctor_finds_a_host_that_can_run_everything(host: Guest) -> None:
    done = host.run("zernel doctor --format=json", check=False)
    found = {one["name"]: one for one in json.loads(done.stdout)["capabilities"]}
    missing = {name: one["reason"] for name, one in found.items() if one["required"] and one["state"] != "ok"}
    assert (done.returncode, missing) == (0, {})
    assert found["uprobes"]["reason"] == "one was attached to this process and ran"
    assert found["debian"]["details"]["version"] == "13"
    assert found["bpffs"]["state"] == "ok"
