# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler knows by zerneld which threads work with a GPU: both as systemd runs them, sandboxed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scheduler_host import Host

from cuda_stub import build_library, build_nccl, build_workload

pytestmark = pytest.mark.quiet

DROP_IN = "/run/systemd/system/zerneld.service.d"
SIGNALS = ("since_gpu_sync_s", "nccl_active")

# Launches, waits 10 ms for the GPU, begins a collective, again and again. The shell becomes the process.
JOB = (
    "echo $$ > /root/pid; export STUB_CUDA_SYNC_US=10000; exec /root/workload /root/libcuda.so.1 "
    '< <(printf "init\\ncreate 0\\nopen /root/libnccl.so.2\\n"; '
    'yes "$(printf "call cuLaunchKernel\\ncall cuStreamSynchronize\\ncall ncclAllReduce")") > /dev/null'
)


@pytest.fixture
def job(any_kernel: Host, tmp_path: Path) -> Iterator[int]:
    """A process that works with the stub's GPU and never stops. If zerneld ends, it stays so."""
    guest = any_kernel.guest
    for built in (build_library(tmp_path), build_nccl(tmp_path), build_workload(tmp_path)):
        guest.put(built, f"/root/{built.name}")
    # Nothing is pinned: whoever starts first has to be able to, in its sandbox.
    guest.run("systemctl stop zerneld; rm -rf /sys/fs/bpf/zernel")
    guest.run(f"mkdir -p {DROP_IN}; printf '[Service]\\nRestart=no\\n' > {DROP_IN}/test.conf")
    guest.run("systemctl daemon-reload")
    guest.run("cat > /root/job.sh", stdin=JOB)
    guest.run("systemd-run --quiet --collect --unit=gpu-job bash /root/job.sh")
    guest.run("for i in $(seq 100); do [ -s /root/pid ] && exit; sleep 0.2; done; exit 1")
    yield int(guest.run("cat /root/pid").stdout)
    guest.run(
        f"systemctl stop gpu-job zerneld; systemctl reset-failed zerneld; rm -rf {DROP_IN} /root/pid; "
        "systemctl daemon-reload",
        check=False,
    )


def up(host: Host) -> list[float | None]:
    metrics = host.metrics()
    return [metrics.get(f'zernel_scheduler_signal_up{{signal="{signal}"}}') for signal in SIGNALS]


def explain(host: Host, pid: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.guest.run(f"zernel scheduler explain {pid} --format=json").stdout)
    return found


def roles(host: Host, pid: int) -> set[str]:
    return {thread["role"] for thread in explain(host, pid)["threads"]}


@pytest.mark.parametrize("first", ["scheduler", "zerneld"])
def test_threads_that_work_with_a_gpu_are_known_while_zerneld_runs(
    any_kernel: Host, job: int, first: str
) -> None:
    host = any_kernel
    host.settings("[phase_detection]\nnccl_detection_enabled = true\n")
    units = ["zernel-scheduler", "zerneld"]
    for unit in units if first == "scheduler" else reversed(units):
        host.guest.run(f"systemctl start {unit}")
    host.until(lambda: up(host) == [1, 1], "zerneld's probes do not reach the scheduler")
    host.until(lambda: "launcher" in roles(host, job), "the thread is not known as a launcher")
    known = explain(host, job)
    assert known["verdict"]["signals"]["since_gpu_sync_s"] < 1
    assert known["verdict"]["signals"]["nccl_active"] is True
    assert not set(SIGNALS) & known["absent"].keys()

    host.guest.run("systemctl kill --signal=KILL zerneld")
    host.until(lambda: up(host) == [0, 0], "nobody writes, but the signals are up")
    blind = explain(host, job)
    assert {blind["verdict"]["signals"][signal] for signal in SIGNALS} == {None}
    assert all("has ended" in blind["absent"][signal] for signal in SIGNALS)
    host.until(lambda: "launcher" not in roles(host, job), "it is still taken for a launcher")

    # Either may come back: it finds the other's map.
    host.guest.run("systemctl reset-failed zerneld; systemctl start zerneld")
    host.until(lambda: up(host) == [1, 1], "not after zerneld's restart")
    host.guest.run("systemctl restart zernel-scheduler")
    host.until(lambda: up(host) == [1, 1], "not after the scheduler's restart")
    host.until(lambda: "launcher" in roles(host, job), "the thread is not known again")
