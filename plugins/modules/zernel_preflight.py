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
  - The kernel and the settings are judged by the agent itself, so that there is one place that knows them.
    Where the one that is installed is not that of the package, the package is unpacked into the task's
    temporary directory, used from there, and removed with it.
options:
  package:
    description:
      - The agent's package on the controller. Without it, the one in the role C(agent) of this collection.
    type: path
  kernel_release:
    description:
      - The kernel that the host will have booted by the time the settings are applied, as C(uname -r) shows
        it. Where another one runs now, what depends on the kernel is not judged. Empty means the running one.
    type: str
    default: ""
  require:
    description:
      - What the running kernel must have, see O(zernel.fleet.zernel_kernel_info#module:require).
    type: list
    elements: str
    default: []
  ports:
    description:
      - TCP ports on the loopback address that Zernel's own services will listen on, service to port.
    type: dict
    default: {}
  scheduler:
    description:
      - The settings that C(zernel-scheduler) will get, see O(zernel.fleet.zernel_config#module:scheduler).
    type: dict
    default: {}
  observe:
    description:
      - The settings that C(zerneld) will get, see O(zernel.fleet.zernel_config#module:observe).
    type: dict
    default: {}
  sysctl:
    description:
      - The kernel parameters that will be set, see O(zernel.fleet.zernel_sysctl#module:settings). They are
        planned against the running kernel.
    type: dict
    default: {}
  multikernel:
    description:
      - How this host will be split into kernel instances. Without it, nothing is said about that.
    type: dict
    suboptions:
      baseline:
        description:
          - See O(zernel.fleet.zernel_hardware_info#module:plan.baseline).
        type: bool
        default: false
      instances:
        description:
          - See O(zernel.fleet.zernel_hardware_info#module:plan.instances).
        type: bool
        default: false
      simulate:
        description:
          - See O(zernel.fleet.zernel_hardware_info#module:plan.simulate).
        type: bool
        default: false
      host_cpus:
        description:
          - See O(zernel.fleet.zernel_hardware_info#module:host_cpus).
        type: str
      pool_size:
        description:
          - See O(zernel.fleet.zernel_hardware_info#module:pool_size).
        type: str
      pool_base:
        description:
          - See O(zernel.fleet.zernel_hardware_info#module:pool_base).
        type: str
      declared:
        description:
          - The instances that there shall be, each as in a file of C(/etc/zernel/instances.d). They are
            planned together, on the baseline that the agent proposes for this host. Not judged where another
            kernel is to be booted first, unless they are simulated.
        type: list
        elements: dict
        default: []
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
    scheduler:
      numa: {enabled: false}
    sysctl:
      vm.swappiness: {value: 0}
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
  description: Whether the installed agent is, file by file, the one in the package, and its files are whole.
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
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._config import FILES, config_text, refusal
from ansible_collections.zernel.fleet.plugins.module_utils._multikernel import (
    PLAN,
    PROPOSAL,
    conflicts,
    hardware_words,
    judging_words,
    sentences,
    undeclarable,
    write_declarations,
)
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import renamed, run_program

LISTEN = "0A"
# As in /proc/net/tcp and tcp6: 127.0.0.1, 0.0.0.0, ::ffff:127.0.0.1 and ::. A listener on one of these keeps
# 127.0.0.1 from being bound.
IN_THE_WAY = {"0100007F", "00000000", "0000000000000000FFFF00000100007F", "0" * 32}
OURS = ("zernel-scheduler.service", "zerneld.service")
DAEMONS = {"scheduler": "zernel.scheduler.daemon", "observe": "zernel.observe.daemon"}
MODULES = "usr/lib/python3/dist-packages"
INSTALLED = Path("/")
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
            % (
                fields.get("PRETTY_NAME") or "an unknown system",
                " and ".join(releases) or "(none is accepted)",
            )
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
    """Return port to the inodes of the sockets that listen on it where a service on 127.0.0.1 would."""
    found = {}
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with Path(path).open() as stream:
                lines = stream.readlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if len(words) <= 9 or words[3] != LISTEN:
                continue
            address, _colon, port = words[1].rpartition(":")
            if address in IN_THE_WAY:
                found.setdefault(int(port, 16), set()).add(words[9])
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
    if len(set(map(str, ports.values()))) < len(ports):
        problems.append(
            "%s are to serve metrics on the same port. Give each its own." % " and ".join(sorted(ports))
        )
    for service, port in sorted(ports.items()):
        # What is no port number is refused as a setting.
        inodes = listening.get(int(port)) if str(port).isdecimal() else None
        if not inodes:
            continue
        who, group = owner(inodes) or ("another program", "")
        # One of ours may have it: the play moves or stops that one.
        if not any("/%s" % ours in group for ours in OURS):
            problems.append(
                "Port %s, on which %s serves metrics, is taken by %s. Stop that program, or set another port "
                "in zernel_agent_scheduler_config or zernel_agent_observe_config." % (port, service, who)
            )
    return problems


def unpack(module, part, package):
    """Unpack a part of the package, C(control) or C(extract), into the task's temporary directory.

    Returns where it is, or None where it cannot be unpacked.
    """
    dpkg = module.get_bin_path("dpkg-deb")
    target = Path(module.tmpdir) / part
    if not dpkg or run_program([dpkg, "--%s" % part, package, str(target)])[0] != 0:
        return None
    return target


class Agent:
    """The agent below a directory. It judges this host as it does, or would, when it is installed."""

    def __init__(self, module, root):
        self.module = module
        self.environ = {"PYTHONPATH": str(root / MODULES)}
        # What is unpacked is compiled once for all commands; nothing is left in what is installed.
        self.flags = ["-B"] if root == INSTALLED else []

    def check_host(self, params):
        """Return what the agent says against the kernel, and against what is to be done with it."""
        problems = []
        other_kernel = params["kernel_release"] not in ("", platform.release())
        if params["require"] and not other_kernel:
            words = ["kernel", "report", *("--require=%s" % name for name in params["require"])]
            problems += self.errors("Kernel", words)
        if params["sysctl"]:
            data = json.dumps(params["sysctl"], indent=1)
            # What another kernel knows and takes is seen once it runs.
            words = ["sysctl", "check" if other_kernel else "plan", "--input=-"]
            problems += self.errors("Kernel parameter", words, data)
        if params["multikernel"]:
            problems += self.check_multikernel(params["multikernel"], other_kernel)
        return problems

    def check_settings(self, params):
        """Return what the daemons say against their settings."""
        problems = []
        for option, (_file, program) in sorted(FILES.items()):
            text = config_text(program, params[option])
            command = self.command(DAEMONS[option])
            name = "zernel_agent_%s_config, as TOML" % option
            why = refusal(self.module, command, text, name, self.environ) if params[option] else None
            if why:
                problems.append("%s does not accept its settings:\n%s" % (program, why))
        return problems

    def check_multikernel(self, plan, other_kernel):
        """Return what is wrong with the host for instances, real or simulated."""
        rc, result, text = self.run(hardware_words(plan))
        if result and rc == 1:
            return sentences("Kernel instances", result["errors"])
        if result is None:
            return ["The agent cannot look at this host's hardware (status %d): %s" % (rc, text)]
        problems = conflicts(result, plan, other_kernel)
        # What memory there is to give away may be another with another kernel.
        judged = plan["declared"] and result["baseline"] and (plan["simulate"] or not other_kernel)
        return problems + (self.check_declared(plan) if judged else [])

    def check_declared(self, plan):
        """Return what is wrong with the instances that are declared for this host."""
        option = "zernel_multikernel_instances"
        with tempfile.TemporaryDirectory(dir=self.module.tmpdir) as directory:
            names = write_declarations(plan["declared"], directory, option)
            problems = sentences("Kernel instances", undeclarable(plan["declared"], option))
            problems += self.errors("Kernel instances", judging_words(plan, directory))
        return renamed(problems, names)

    def errors(self, about, words, data=None):
        """Run a command that may refuse, and return its reasons."""
        rc, result, text = self.run(words, data)
        if result is None:
            return ["The agent cannot judge this host (status %d): %s" % (rc, text)]
        return sentences(about, result.get("errors", []))

    def run(self, words, data=None):
        """Run C(zernel WORDS); returns its status, what its JSON holds or None, and what it said as text."""
        command = [*self.command("zernel"), *words, "--format=json"]
        rc, out, err = run_program(command, data, self.environ)
        try:
            return rc, json.loads(out), err
        except ValueError:
            return rc, None, (err or out).strip()

    def command(self, name):
        """Return the command for one of the package's programs, by its Python module."""
        return [sys.executable, *self.flags, "-m", name]


def package_version(control):
    """Return the version of the package with these control files."""
    match = re.search(r"^Version: (\S+)$", (control / "control").read_text(), re.MULTILINE)
    return match.group(1) if match else None


def is_installed(module, control):
    """Whether dpkg's list of installed files and their sums is the package's, and what it lists is there."""
    try:
        if Path(DPKG_SUMS).read_bytes() != (control / "md5sums").read_bytes():
            return False
    except OSError:
        return False
    rc, out, _err = run_program([module.get_bin_path("dpkg", required=True), "--verify", "zernel-agent"])
    # A line "??5??????   /usr/..." for each file that is not as it came, with a "c" for one of configuration.
    return rc == 0 and all(line.split()[1] == "c" for line in out.splitlines())


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
            "kernel_release": {"type": "str", "default": ""},
            "require": {"type": "list", "elements": "str", "default": []},
            "ports": {"type": "dict", "default": {}},
            "scheduler": {"type": "dict", "default": {}},
            "observe": {"type": "dict", "default": {}},
            "sysctl": {"type": "dict", "default": {}},
            "multikernel": {
                "type": "dict",
                "options": {
                    **PLAN,
                    **PROPOSAL,
                    "declared": {"type": "list", "elements": "dict", "default": []},
                },
            },
            "releases": {"type": "list", "elements": "str", "default": ["12", "13"]},
        },
        supports_check_mode=True,
    )
    problems = check_system(module.params["releases"])
    package = module.params["package"]
    control = unpack(module, "control", package)
    version = installed_agent(module)
    current = bool(version and control and is_installed(module, control))
    root = INSTALLED if current else control and unpack(module, "extract", package)
    if root is None:
        problems.append(
            "The agent's package cannot be unpacked on this host: it is no Debian package, or there is no "
            "dpkg-deb, or no room for it in the remote temporary directory."
        )
    elif sys.version_info >= (3, 11):
        agent = Agent(module, root)
        # Only a system that the agent is made for can be judged by it; settings can be anywhere.
        problems += agent.check_host(module.params) if not problems else []
        problems += agent.check_settings(module.params)
    if sys.version_info >= (3, 11):
        problems += check_ports(module.params["ports"])
    result = {
        "problems": problems,
        "agent_version": version,
        "agent_current": current,
        "package_version": control and package_version(control),
    }
    if problems:
        reasons = "\n".join("  - " + problem.replace("\n", "\n      ") for problem in problems)
        module.fail_json(
            msg="This host cannot be provisioned, and nothing on it has been changed:\n" + reasons, **result
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
