#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Says whether a host can be provisioned, before anything on it is changed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zernel_preflight
short_description: Refuse a host that cannot work, before changing it
version_added: 0.1.0
description:
  - Looks at a host that may have nothing of Zernel yet, and fails with every reason why it cannot be
    provisioned. Changes nothing.
  - The kernel is judged by the agent itself, so that there is one place that knows what a kernel must have.
    The agent's package is unpacked into the task's temporary directory, used from there, and removed with it.
options:
  package:
    description:
      - The agent's package on the controller. Without it, the one in the role C(agent) of this collection.
    type: path
  require:
    description:
      - What the running kernel must have, see O(zernel.fleet.zernel_kernel_info#module:require).
        Leave it empty where another kernel will be installed.
    type: list
    elements: str
    default: []
  ports:
    description:
      - TCP ports on the loopback address that Zernel's own services will listen on, service to port.
    type: dict
    default: {}
  releases:
    description:
      - The Debian releases that are accepted.
    type: list
    elements: str
    default: ["12", "13"]
author:
  - The Zernel project (@zernel)
extends_documentation_fragment:
  - zernel.fleet.agent.info
"""

EXAMPLES = r"""
- name: Refuse a host that cannot run the scheduler
  zernel.fleet.zernel_preflight:
    require: [SCHED_CLASS_EXT, btf, kfuncs]
    ports:
      zerneld.service: 9091
      zernel-scheduler.service: 9093
"""

RETURN = r"""
problems:
  description: Every reason against this host.
  type: list
  elements: str
  returned: always
  sample: []
agent_version:
  description: The version of the agent that is installed, or null.
  type: str
  returned: always
  sample: 0.1.0
agent_current:
  description: Whether the installed agent is, file by file, the one in the package.
  type: bool
  returned: always
  sample: false
package_version:
  description: The version of the package.
  type: str
  returned: always
  sample: 0.1.0
package:
  description: The package on the controller that will be installed.
  type: str
  returned: success
  sample: /home/ops/zernel-agent_0.1.0_all.deb
"""

import json
import os
import platform
import re
import sys
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import run_program

LISTEN = "0A"
MODULES = "usr/lib/python3/dist-packages"
DPKG_SUMS = "/var/lib/dpkg/info/zernel-agent.md5sums"


def os_release():
    """Return the fields of /etc/os-release."""
    fields = {}
    try:
        with Path("/etc/os-release").open() as stream:
            for line in stream:
                name, equals, value = line.strip().partition("=")
                if equals:
                    fields[name] = value.strip("\"'")
    except OSError:
        pass
    return fields


def check_system(releases):
    """Return what is wrong with the distribution, the machine and the user."""
    problems = []
    fields = os_release()
    if fields.get("ID") != "debian" or fields.get("VERSION_ID") not in releases:
        problems.append(
            "This is %s; Zernel works on Debian %s. Install one of these."
            % (fields.get("PRETTY_NAME") or "an unknown system", " and ".join(releases))
        )
    if os.geteuid() != 0:
        problems.append("The tasks do not run as root. Log in as root, or run the play with 'become: true'.")
    machine = platform.machine()
    if machine != "x86_64":
        problems.append("The CPU is %s; Zernel's BPF programs are built for x86_64 alone." % machine)
    if not Path("/run/systemd/system").is_dir():
        problems.append("systemd does not run this host, and Zernel's services need it. Boot with systemd.")
    if sys.version_info < (3, 11):
        problems.append("Python is %s; the agent needs 3.11. Debian 12 has it." % platform.python_version())
    return problems


def listeners():
    """Return port to the inodes of the sockets that listen on it on a loopback or wildcard address."""
    found = {}
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with Path(path).open() as stream:
                lines = stream.readlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if len(words) > 9 and words[3] == LISTEN:
                found.setdefault(int(words[1].rpartition(":")[2], 16), set()).add(words[9])
    return found


def owner(inodes):
    """Return (name and pid, control group) of the process that holds one of the sockets, or None."""
    wanted = {"socket:[%s]" % inode for inode in inodes}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) not in wanted:
                continue
            process = link.parents[1]
            name = (process / "comm").read_text().strip()
            return "%s (pid %s)" % (name, process.name), (process / "cgroup").read_text()
        except OSError:  # it has ended in the meantime
            continue
    return None


def check_ports(ports):
    """Return the ports that a program holds which is not the service that wants them."""
    problems = []
    listening = listeners()
    for service, port in sorted(ports.items()):
        if int(port) not in listening:
            continue
        who, group = owner(listening[int(port)]) or ("another program", "")
        if "/%s" % service not in group:
            problems.append(
                "Port %s, on which %s serves metrics, is taken by %s. Stop that program, or set another port "
                "in zernel_agent_scheduler_config or zernel_agent_observe_config." % (port, service, who)
            )
    return problems


def unpack(module, package):
    """Unpack the package into the task's temporary directory; returns that, or None where it cannot be."""
    dpkg = module.get_bin_path("dpkg-deb")
    target = Path(module.tmpdir) / "agent"
    if not dpkg or run_program([dpkg, "--raw-extract", package, str(target)])[0] != 0:
        return None
    return target


def check_kernel(module, target, require):
    """Let the agent in the package judge the running kernel."""
    rc, out, err = run_program(
        [sys.executable, "-B", "-m", "zernel", "kernel", "report", "--format=json"]
        + ["--require=%s" % name for name in require],
        environ={"PYTHONPATH": str(target / MODULES)},
    )
    try:
        errors = json.loads(out)["errors"]
    except (ValueError, KeyError, TypeError):
        return ["The agent cannot look at this kernel (status %d): %s" % (rc, (err or out).strip())]
    problems = []
    for error in errors:
        text = "Kernel %s: %s." % (error.get("instance") or platform.release(), error["message"])
        problems.append(" ".join(filter(None, (text, error.get("suggestion")))))
    return problems


def package_version(target):
    """Return the version of an unpacked package."""
    match = re.search(r"^Version: (\S+)$", (target / "DEBIAN/control").read_text(), re.MULTILINE)
    return match.group(1) if match else None


def is_installed(target):
    """Whether dpkg's list of installed files and their sums is that of the package."""
    try:
        return Path(DPKG_SUMS).read_bytes() == (target / "DEBIAN/md5sums").read_bytes()
    except OSError:
        return False


def installed_agent(module):
    """Return the version of the installed agent, or None."""
    query = module.get_bin_path("dpkg-query")
    if not query:
        return None
    form = "--showformat=${db:Status-Status} ${Version}"
    rc, out, _err = run_program([query, "--show", form, "zernel-agent"])
    match = re.match(r"installed (\S+)$", out) if rc == 0 else None
    return match.group(1) if match else None


def main():
    module = AnsibleModule(
        argument_spec={
            "package": {"type": "path"},
            "require": {"type": "list", "elements": "str", "default": []},
            "ports": {"type": "dict", "default": {}},
            "releases": {"type": "list", "elements": "str", "default": ["12", "13"]},
        },
        supports_check_mode=True,
    )
    problems = check_system(module.params["releases"])
    target = unpack(module, module.params["package"])
    if target is None:
        problems.append(
            "The agent's package cannot be unpacked on this host: no dpkg-deb, or no room for it."
        )
    elif not problems and module.params["require"]:
        # Only a system that can run the agent at all can be judged by it.
        problems += check_kernel(module, target, module.params["require"])
    if sys.version_info >= (3, 11):
        problems += check_ports(module.params["ports"])
    version = installed_agent(module)
    result = {
        "problems": problems,
        "agent_version": version,
        "agent_current": bool(version and target and is_installed(target)),
        "package_version": target and package_version(target),
    }
    if problems:
        reasons = "\n".join("  - %s" % problem for problem in problems)
        module.fail_json(
            msg="This host cannot be provisioned, and nothing on it has been changed:\n" + reasons, **result
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
