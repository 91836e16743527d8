# SPDX-License-Identifier: GPL-3.0-or-later
"""An Ansible inventory of running guests."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path

from testbed.guest import Guest
from testbed.network import LOOPBACK
from testbed.ssh import Address


def host_variables(address: Address, private_address: str | None = None) -> dict[str, object]:
    """Return the connection variables of one guest."""
    variables: dict[str, object] = {
        "ansible_host": LOOPBACK,
        "ansible_port": address.port,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(address.private_key),
        "ansible_ssh_common_args": shlex.join(address.options()),
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    if private_address:
        variables["testbed_private_address"] = private_address
    return variables


def render(hosts: dict[str, dict[str, object]]) -> str:
    """Return an inventory in YAML. JSON is YAML, and quotes every value without a YAML library."""
    inventory = {"all": {"children": {"zernel": {"hosts": hosts}}}}
    note = "# Written by the testbed; gone or wrong once the guests are.\n"
    return note + json.dumps(inventory, indent=2) + "\n"


def write(path: Path, guests: Iterable[Guest]) -> Path:
    """Write the inventory of running guests, in one group ``zernel``."""
    hosts = {guest.spec.name: host_variables(guest.address, guest.private_address) for guest in guests}
    path.write_text(render(hosts))
    return path
