#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Brings kernel instances to a wanted state through the agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zernel_instance
short_description: Manage a kernel instance
version_added: 0.1.0
description:
  - Brings an instance of a multikernel host, and the kernel in it, to a wanted state through
    C(zernel ensure).
  - The whole way is judged before anything is changed, in check mode as well. What is refused has changed
    nothing, and every reason is given at once.
  - An instance that exists with other resources is changed in place, by the least that leads there. What
    cannot be changed in place is deleted and created anew while no kernel is loaded, and refused otherwise.
    Nothing is taken from an instance that has a kernel. It can grow as it is.
  - When a step fails, those before it stay done, and the error names them. The next run goes on from there.
options:
  name:
    description:
      - The instance's name, 1 to 63 letters, digits, dots, underscores and hyphens.
    type: str
    required: true
  state:
    description:
      - V(present), it is there, and has what is given here. Whether it has a kernel makes no difference.
      - V(loaded), the same, and a kernel is loaded. One that runs is loaded, too.
      - V(started), the same, and its kernel runs.
      - V(stopped), it is there, and its kernel does not run. A kernel that is stopped stays loaded.
      - V(absent), it is not there. One that has a kernel is deleted with O(force) only.
      - Nothing tells which kernel is loaded. V(loaded) and V(started) accept any that is there, also when
        O(kernel) is another one, and say so in RV(notes). To change the kernel, make the instance V(absent)
        with O(force), then V(started); or run C(zernel unload) first.
    type: str
    choices: [present, absent, loaded, started, stopped]
    default: present
  cpus:
    description:
      - The CPUs that it has, such as V(4-7) or V(4,5,8-11), or a list of them.
      - To create an instance, one of O(cpus) and O(cpu_count) is needed. Of an instance that exists, each
        resource that is not given stays as it is.
    type: list
    elements: str
  cpu_count:
    description:
      - How many CPUs it has. It keeps those that it has, and free ones are chosen, whole neighbouring cores
        where possible.
    type: int
  memory:
    description:
      - How much memory it has, such as V(2GB) or V(512MB). Needed to create an instance.
      - Memory is one range that grows and shrinks at its end.
    type: str
  memory_base:
    description:
      - The address where its memory begins, such as V(0x80000000). Without it, the lowest free place near its
        CPUs is chosen.
    type: str
  devices:
    description:
      - All devices that it has, such as V(eth0:vf1) and V(nvme0:ns2). An empty list means none.
    type: list
    elements: str
  numa_nodes:
    description:
      - The NUMA nodes that its CPUs are on, such as V(0) or V(0,2-3), or a list of them. Its memory is there
        too where it can be.
    type: list
    elements: str
  cpu_affinity:
    description:
      - How its CPUs are chosen. V(compact) takes few nodes and neighbouring cores, V(spread) takes evenly of
        all, V(local) is near its devices.
    type: str
    choices: [compact, spread, local]
  memory_policy:
    description:
      - Where its memory comes from. V(local) prefers O(numa_nodes), or else the nodes of its CPUs, V(bind)
        insists on them, V(interleave) takes a part of each.
    type: str
    choices: [local, interleave, bind]
  id:
    description:
      - Its id, 1 to 2047. Without it, the lowest free one is chosen.
    type: int
  kernel:
    description:
      - The kernel to load, a file on the managed host, bzImage (C(vmlinuz)) or ELF (C(vmlinux)), x86-64.
      - Needed for O(state=loaded) and O(state=started) where no kernel is loaded yet, and read only then.
    type: path
  initrd:
    description:
      - The initial RAM disk that is loaded with O(kernel).
    type: path
  cmdline:
    description:
      - The command line for O(kernel), up to 2047 bytes.
    type: str
    default: ""
  force:
    description:
      - With O(state=stopped), stop the kernel without asking it to shut down.
      - With O(state=absent), also stop a kernel so, and unload it, before the instance is deleted.
      - Of no effect for the other states.
    type: bool
    default: false
extends_documentation_fragment:
  - zernel.fleet.multikernel
  - zernel.fleet.agent
  - zernel.fleet.agent.action
seealso:
  - module: zernel.fleet.zernel_instance_info
  - module: zernel.fleet.zernel_baseline
"""

EXAMPLES = r"""
- name: Give the web server four CPUs, memory and a virtual network card
  zernel.fleet.zernel_instance:
    name: web-server
    cpus: 4-7
    memory: 2GB
    devices: [eth0:vf1]

- name: Run a kernel of its own for the database, on eight CPUs, whichever are free
  zernel.fleet.zernel_instance:
    name: database
    state: started
    cpu_count: 8
    memory: 8GB
    kernel: /boot/vmlinuz-database
    initrd: /boot/initrd.img-database
    cmdline: console=hvc0 root=/dev/nvme1n1p1

- name: Give it more memory while it runs
  zernel.fleet.zernel_instance:
    name: database
    memory: 12GB

- name: Stop it
  zernel.fleet.zernel_instance:
    name: database
    state: stopped

- name: Take an instance away, with its kernel
  zernel.fleet.zernel_instance:
    name: web-server
    state: absent
    force: true

- name: Say once where the file system is
  module_defaults:
    group/zernel.fleet.multikernel:
      multikernel_root: /run/zernel/multikernel
  block:
    - name: See what would change
      zernel.fleet.zernel_instance:
        name: database
        cpu_count: 6
      check_mode: true
"""

RETURN = r"""
instance:
  description:
    - The instance, as it is or, in check mode, would be. Null when it is absent.
    - Of one whose resources the kernel does not show, there are V(name), V(id) and V(status).
  type: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
      sample: web-server
    id:
      description: Its id.
      type: int
      sample: 1
    status:
      description: The kernel's word for its state, V(ready), V(loaded) or V(active).
      type: str
      sample: ready
    cpus:
      description: Its CPUs.
      type: list
      elements: int
      sample: [4, 5, 6, 7]
    memory_base:
      description: Where its memory begins.
      type: int
      sample: 2147483648
    memory_bytes:
      description: How much memory it has.
      type: int
      sample: 2147483648
    devices:
      description: Its devices.
      type: list
      elements: str
      sample: ["eth0:vf1"]
    numa_nodes:
      description: The NUMA nodes that were asked for.
      type: list
      elements: int
      sample: [0]
    cpu_affinity:
      description: The CPU affinity that was asked for. Null for none.
      type: str
      sample: compact
    memory_policy:
      description: The memory policy that was asked for. Null for none.
      type: str
      sample: local
steps:
  description: What was done, or in check mode would be, as commands of the agent. Empty when nothing changes.
  type: list
  elements: str
  returned: success
  sample: [create, load, exec]
operations:
  description: What an update among RV(steps) asks of the kernel.
  type: list
  elements: dict
  returned: success
  sample: [{operation: cpu-add, cpus: [8, 9]}]
replaced:
  description: Whether an update among RV(steps) deleted the instance and created it anew.
  type: bool
  returned: success
  sample: false
loaded:
  description: The kernel that was loaded, with V(kernel), V(initrd) and V(cmdline). Null when none was.
  type: dict
  returned: success
  sample: {kernel: {path: /boot/vmlinuz-database, compression: zstd}, initrd: null, cmdline: console=hvc0}
simulated:
  description: Whether a simulation stands in for the kernel.
  type: bool
  returned: success
  sample: false
transactions:
  description: The kernel's transactions, each with its id and status.
  type: list
  elements: dict
  returned: success
  sample: [{id: 2, status: applied}]
notes:
  description: What was found of an earlier command that did not finish, and what else is worth knowing.
  type: list
  elements: str
  returned: success
  sample: []
errors:
  description: On failure, every problem with code, message, suggestion and more.
  type: list
  elements: dict
  returned: failure
  sample: [{code: cpu-overlap, message: CPU allocation conflict with web-server}]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._multikernel import (
    ROOT_ARGUMENT,
    SIMULATED,
    STATES,
    environment,
    refuse_hyphen,
)
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import AGENT_ARGUMENTS, ZernelCli

PASSED_ON = (
    "cpus",
    "cpu_count",
    "memory",
    "memory_base",
    "numa_nodes",
    "cpu_affinity",
    "memory_policy",
    "id",
    "kernel",
    "initrd",
    "cmdline",
)
"""Options of this module that are the agent's, with the same values."""


def arguments(params):
    """Return the words after C(zernel) for what the task asks."""
    words = ["ensure", params["name"], "--state=" + params["state"]]
    for option in PASSED_ON:
        value = params[option]
        if value is not None:
            text = ",".join(value) if isinstance(value, list) else value
            words.append("--%s=%s" % (option.replace("_", "-"), text))
    if params["devices"] is not None:
        words.append("--devices=" + (",".join(params["devices"]) or "none"))
    return words + (["--force"] if params["force"] else [])


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": list(STATES), "default": "present"},
            "cpus": {"type": "list", "elements": "str"},
            "cpu_count": {"type": "int"},
            "memory": {"type": "str"},
            "memory_base": {"type": "str"},
            "devices": {"type": "list", "elements": "str"},
            "numa_nodes": {"type": "list", "elements": "str"},
            "cpu_affinity": {"type": "str", "choices": ["compact", "spread", "local"]},
            "memory_policy": {"type": "str", "choices": ["local", "interleave", "bind"]},
            "id": {"type": "int"},
            "kernel": {"type": "path"},
            "initrd": {"type": "path"},
            "cmdline": {"type": "str", "default": ""},
            "force": {"type": "bool", "default": False},
            **ROOT_ARGUMENT,
            **AGENT_ARGUMENTS,
        },
        mutually_exclusive=[("cpus", "cpu_count")],
        supports_check_mode=True,
    )
    name = module.params["name"]
    refuse_hyphen(module, name)
    words = arguments(module.params)
    if module.check_mode:
        words.append("--dry-run")
    result = ZernelCli(module).run(words, environ=environment(module.params["multikernel_root"]))
    if result["simulated"]:
        module.warn(SIMULATED)
    for warning in result["warnings"]:
        module.warn("%s: %s" % (warning["instance"], warning["message"]))
    same = ("changed", "steps", "operations", "replaced", "loaded", "simulated", "transactions", "notes")
    module.exit_json(
        instance=result["after"],
        diff={
            "before": {name: result["before"]} if result["before"] else {},
            "after": {name: result["after"]} if result["after"] else {},
        },
        **{key: result[key] for key in same},
    )


if __name__ == "__main__":
    main()
