# SPDX-License-Identifier: GPL-3.0-or-later
"""What is found out about a host before anything on it is changed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import CLONE, Run


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
