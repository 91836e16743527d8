# SPDX-License-Identifier: GPL-3.0-or-later
"""What is found out about a host before anything on it is changed."""

from __future__ import annotations

import os
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .conftest import CLONE, COLLECTIONS, Run


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with nothing but this clone's agent."""
    tree = tmp_path / "tree"
    shutil.copytree(CLONE / "agent/src/zernel", tree / "usr/lib/python3/dist-packages/zernel")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: zernel-agent\nVersion: 9.9\nArchitecture: all\n"
        "Maintainer: a <a@b.invalid>\nDescription: test\n"
    )
    file = tmp_path / "zernel-agent_9.9_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, file], check=True, capture_output=True)
    return file


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def reasons(result: dict[str, Any], *parts: str) -> None:
    """Check that each part stands in a reason of its own, and that the message has them all."""
    for part in parts:
        matching = [problem for problem in result["problems"] if part in problem]
        assert len(matching) == 1, (part, result["problems"])
        assert matching[0] in result["msg"]


def test_every_reason_is_given_at_once(module: Run, package: Path, taken_port: int) -> None:
    result = module(
        "zernel_preflight",
        package=str(package),
        releases=["99"],
        ports={"zerneld.service": taken_port},
    )
    assert result["failed"]
    assert "nothing on it has been changed" in result["msg"]
    reasons(
        result, "Zernel works on Debian 99.", f"Port {taken_port}, on which zerneld.service serves metrics"
    )
    assert f"(pid {os.getpid()})" in result["msg"]


def test_a_free_port_is_no_reason(module: Run, package: Path, taken_port: int) -> None:
    result = module("zernel_preflight", package=str(package), releases=["99"], ports={"a.service": 1})
    assert "Port" not in result["msg"]


@pytest.mark.parametrize("address", ["127.0.0.2", "::1"])
def test_a_port_on_another_address_is_no_reason(module: Run, package: Path, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        ports = {"zerneld.service": server.getsockname()[1]}
        result = module("zernel_preflight", package=str(package), releases=["99"], ports=ports)
    assert "Port" not in result["msg"]


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_a_port_on_all_addresses_is_a_reason(module: Run, package: Path, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, dualstack_ipv6=":" in address) as server:
        ports = {"zerneld.service": server.getsockname()[1]}
        result = module("zernel_preflight", package=str(package), releases=["99"], ports=ports)
    reasons(result, "on which zerneld.service serves metrics, is taken by")


def test_what_is_no_port_number_does_not_stop_the_check(module: Run, package: Path) -> None:
    result = module("zernel_preflight", package=str(package), releases=["99"], ports={"a.service": "ninety"})
    reasons(result, "Zernel works on Debian 99.")


def test_the_package_is_looked_into(module: Run, package: Path, tmp_path: Path) -> None:
    result = module("zernel_preflight", package=str(package), releases=["99"])
    assert (result["package_version"], result["agent_current"]) == ("9.9", False)
    package.write_bytes(b"no package")
    reasons(module("zernel_preflight", package=str(package), releases=["99"]), "cannot be unpacked")


def test_a_collection_without_its_package_says_how_to_make_it(tmp_path: Path) -> None:
    """Also: the collection is whole with nothing but these four directories."""
    collection = tmp_path / "ansible_collections/zernel/fleet"
    for part in ("meta", "plugins", "roles", "playbooks"):
        shutil.copytree(
            CLONE / part, collection / part, ignore=shutil.ignore_patterns("*.deb", "__pycache__")
        )
    program = Path(sys.executable).with_name("ansible-playbook")
    here = '{"ansible_connection": "local", "ansible_become": false}'
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    done = subprocess.run(
        [program, "zernel.fleet.site", "--check", "--inventory=localhost,", f"--extra-vars={here}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**environment, "ANSIBLE_COLLECTIONS_PATH": str(tmp_path)},
        timeout=120,
    )
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, text
    assert "there is no zernel-agent_*_all.deb" in text
    assert "Run 'make build' in a clone of Zernel first" in text
    assert "changed=0" in text


class Judge:
    """The part of zernel_preflight that lets the agent in the package judge a host, on any machine.

    The module itself judges no host that is not Debian, or has no systemd.
    """

    def __init__(self, package: Path, directory: Path) -> None:
        sys.path.insert(0, str(COLLECTIONS))
        try:
            found = runpy.run_path(str(CLONE / "plugins/modules/zernel_preflight.py"))
        finally:
            sys.path.remove(str(COLLECTIONS))
        self.tree = directory / "unpacked"
        subprocess.run(["dpkg-deb", "--raw-extract", package, self.tree], check=True)
        self.agent = found["Agent"](SimpleNamespace(tmpdir=str(directory)), self.tree)

    def problems(self, declared: list[dict[str, Any]], **params: Any) -> list[str]:
        plan = {"baseline": False, "instances": True, "simulate": True, "declared": declared}
        proposal = {"host_cpus": "0", "pool_size": "1GB", "pool_base": None}
        kernel = {"kernel_release": "", "require": [], "sysctl": {}}
        found: list[str] = self.agent.check_host({**kernel, "multikernel": {**plan, **proposal}, **params})
        return found


@pytest.fixture
def judge(package: Path, tmp_path: Path) -> Judge:
    return Judge(package, tmp_path)


WRONG = [
    {"name": "../web", "cpu_count": 1, "memory": "1MB"},
    {"name": "web", "cpus": "0", "memory": "900GB", "state": "started", "kernel": "/boot/vmlinuz"},
    {"name": "db", "cpus": 1, "memory": "infGB"},
    {"name": "data", "cpus": [1], "memory": "1MB", "devices": ["gpu99"]},
    {"name": "bare", "cpu_count": 1},
    {"name": "more", "cpu_count": 1, "memory": "1MB", "memry": True},
]
WHY = [
    "Kernel instances: Invalid instance name: '../web'",
    "Kernel instances web: CPU 0 is reserved for host kernel",
    "Kernel instances web: 900GB of memory cannot be given in one piece",
    "'infGB' is no size",
    "Kernel instances data: Invalid device reference: Requested device: gpu99",
    "zernel_multikernel_instances, entry 5: The key 'memory' is missing",
    "zernel_multikernel_instances, entry 6: Unknown key 'memry'",
]


@pytest.mark.parametrize("yaml", [True, False], ids=["yaml", "no-yaml"])
@pytest.mark.root
def test_declared_instances_are_judged_by_what_they_ask_for(judge: Judge, yaml: bool) -> None:
    if not yaml:  # as on a host that has none of the agent's dependencies yet
        missing = "raise ModuleNotFoundError('no yaml', name='yaml')\n"
        (judge.tree / "usr/lib/python3/dist-packages/yaml.py").write_text(missing)
    said = judge.problems(WRONG)
    for part in WHY:
        assert len([problem for problem in said if part in problem]) == 1, (part, said)
    assert not any("/" in problem.replace("../web", "").replace("/sys", "") for problem in said), said
    good = {"name": "web", "cpus": "1", "memory": "100MB", "devices": [], "state": "loaded"}
    assert judge.problems([good]) == []
    conflict = judge.problems([good, {**good, "name": "db"}])
    assert any("CPU" in problem and "db" in problem for problem in conflict), conflict


@pytest.mark.root
def test_instances_for_another_kernel_are_judged_only_where_they_are_simulated(judge: Judge) -> None:
    assert judge.problems(WRONG[:1], kernel_release="6.99.0")
    plan = {"baseline": True, "instances": True, "simulate": False, "declared": WRONG[:1]}
    proposal = {"host_cpus": "0", "pool_size": "1GB", "pool_base": None}
    assert judge.agent.check_multikernel({**plan, **proposal}, other_kernel=True) == []
