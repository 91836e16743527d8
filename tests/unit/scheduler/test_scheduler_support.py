# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts are refused before anything is loaded, and with what words."""

from __future__ import annotations

from pathlib import Path

import pytest

import btf_blob
from zernel.errors import Problem
from zernel.scheduler import support


def host(
    root: Path,
    *,
    state: str | None = "disabled",
    ops: str = "",
    btf: bytes | None = None,
    cmdline: str = "quiet",
) -> Path:
    files: dict[str, bytes] = {
        "proc/cmdline": cmdline.encode(),
        "proc/sys/kernel/osrelease": b"7.2.12-test\n",
        "sys/kernel/btf/vmlinux": btf_blob.kernel(malformed=False) if btf is None else btf,
    }
    if state is not None:
        files["sys/kernel/sched_ext/state"] = state.encode() + b"\n"
    if ops:
        files["sys/kernel/sched_ext/root/ops"] = ops.encode() + b"\n"
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def only(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, [problem.code for problem in problems]
    assert problems[0].suggestion
    return problems[0]


def test_a_good_host_has_no_problems(tmp_path: Path) -> None:
    assert support.check(host(tmp_path)) == []


def test_a_kernel_without_sched_ext_is_named_with_what_to_boot(tmp_path: Path) -> None:
    problem = only(support.check(host(tmp_path, state=None)))
    assert problem.code == "no-sched-ext"
    assert "7.2.12-test" in problem.render()
    assert "zernel.fleet.kernel" in (problem.suggestion or "")


def test_a_kernel_without_btf_is_refused(tmp_path: Path) -> None:
    root = host(tmp_path)
    (root / "sys/kernel/btf/vmlinux").unlink()
    assert only(support.check(root)).code == "no-btf"


def test_malformed_kfuncs_are_listed(tmp_path: Path) -> None:
    problem = only(support.check(host(tmp_path, btf=btf_blob.kernel(malformed=True))))
    assert problem.code == "malformed-kfuncs"
    assert "scx_bpf_kick_cpu" in problem.render()
    assert "scx_bpf_task_cpu" not in problem.render()


def test_damaged_btf_is_refused(tmp_path: Path) -> None:
    assert only(support.check(host(tmp_path, btf=b"garbage"))).code == "btf-damaged"


@pytest.mark.parametrize("state", ["enabled", "enabling", "disabling"])
def test_another_scheduler_is_named(tmp_path: Path, state: str) -> None:
    problem = only(support.check(host(tmp_path, state=state, ops="bpfland_1.0")))
    assert problem.code == "scheduler-loaded"
    assert f"'bpfland_1.0' is {state}" in problem.render()


@pytest.mark.parametrize(
    ("cmdline", "refused"),
    [
        ("quiet isolcpus=2-3", True),
        ("isolcpus=domain,managed_irq,1", True),
        ("isolcpus=nohz,1", False),
        ("nohz_full=1", False),
        ("xisolcpus=1", False),
    ],
)
def test_domain_isolation_is_refused(tmp_path: Path, cmdline: str, refused: bool) -> None:
    codes = [problem.code for problem in support.check(host(tmp_path, cmdline=cmdline))]
    assert codes == (["isolcpus"] if refused else [])


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    root = host(tmp_path, state=None, btf=btf_blob.kernel(malformed=True), cmdline="isolcpus=1")
    assert [p.code for p in support.check(root)] == ["no-sched-ext", "malformed-kfuncs", "isolcpus"]
