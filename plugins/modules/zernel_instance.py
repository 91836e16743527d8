#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Creates and deletes kernel instances through the agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zernel_instance
short_description: Create or delete a kernel instance
version_added: 0.1.0
description:
  - Creates or deletes an instance of a multikernel host through C(zernel create) and C(zernel delete).
  - The full state is validated before the kernel is asked, the kernel's answer is read back, and a creation
    that failed leaves nothing behind.
  - An instance is not changed in place. When one of this name exists with other resources, the module fails
    and says what differs.
  - Where C(zernel simulate multikernel) stands in for a kernel, RV(simulated) is V(true) and the module
    warns.
options:
  name:
    description:
      - The instance's name, 1 to 63 letters, digits, dots, underscores and hyphens.
    type: str
    required: true
  state:
    description:
      - Whether the instance is there.
    type: str
    choices: [present, absent]
    default: present
  cpus:
    description:
      - The CPUs that it gets, such as V(4-7) or V(4,5,8-11).
      - One of O(cpus) and O(cpu_count) is needed to create an instance.
    type: str
  cpu_count:
    description:
      - How many CPUs it gets; free ones are chosen, whole neighbouring cores where possible.
    type: int
  memory:
    description:
      - How much memory it gets, such as V(2GB) or V(512MB). Needed to create an instance.
    type: str
  memory_base:
    description:
      - The address where its memory begins, such as V(0x80000000). Without it, the lowest free place is
        chosen.
    type: str
  devices:
    description:
      - The devices that it gets, such as V(eth0:vf1) and V(nvme0:ns2).
    type: list
    elements: str
    default: []
  numa_nodes:
    description:
      - The NUMA nodes that its CPUs are on, such as V(0) or V(0,2-3). Its memory is there too where it can
        be.
    type: str
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
  multikernel_root:
    description:
      - Where the multikernel file system is mounted. Without it, the agent looks at C(/sys/fs/multikernel),
        and then for a simulation at C(/run/zernel/multikernel).
    type: path
extends_documentation_fragment:
  - zernel.fleet.agent
  - zernel.fleet.agent.action
seealso:
  - module: zernel.fleet.zernel_baseline
"""

EXAMPLES = r"""
- name: Give the web server a kernel of its own
  zernel.fleet.zernel_instance:
    name: web-server
    cpus: 4-7
    memory: 2GB
    devices: [eth0:vf1]

- name: Give the database eight CPUs, whichever are free
  zernel.fleet.zernel_instance:
    name: database
    cpu_count: 8
    memory: 8GB

- name: Take the instance away
  zernel.fleet.zernel_instance:
    name: web-server
    state: absent
"""

RETURN = r"""
instance:
  description: The instance, as it is or, in check mode, would be. Null when it is absent.
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
      description: The kernel's word for its state. Null in check mode for one that is not there yet.
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
simulated:
  description: Whether a simulation stands in for the kernel.
  type: bool
  returned: success
  sample: false
transaction:
  description: The kernel's transaction with its id and status. Null when nothing was changed.
  type: dict
  returned: success
  sample: {id: 2, status: applied}
notes:
  description: What was found of an earlier command that did not finish.
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
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import AGENT_ARGUMENTS, ZernelCli

SIMULATED = "SIMULATED: 'zernel simulate multikernel' stands in for the kernel, the instance is not real."


def arguments(params):
    """Return the words after C(zernel) for what the task asks."""
    if params["state"] == "absent":
        return ["delete", params["name"], "--ensure"]
    words = ["create", params["name"], "--ensure", "--memory=" + params["memory"]]
    for option in ("cpus", "cpu_count", "memory_base", "id", "numa_nodes", "cpu_affinity", "memory_policy"):
        if params[option] is not None:
            words.append("--%s=%s" % (option.replace("_", "-"), params[option]))
    if params["devices"]:
        words.append("--devices=" + ",".join(params["devices"]))
    return words


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "cpus": {"type": "str"},
            "cpu_count": {"type": "int"},
            "memory": {"type": "str"},
            "memory_base": {"type": "str"},
            "devices": {"type": "list", "elements": "str", "default": []},
            "numa_nodes": {"type": "str"},
            "cpu_affinity": {"type": "str", "choices": ["compact", "spread", "local"]},
            "memory_policy": {"type": "str", "choices": ["local", "interleave", "bind"]},
            "id": {"type": "int"},
            "multikernel_root": {"type": "path"},
            **AGENT_ARGUMENTS,
        },
        mutually_exclusive=[("cpus", "cpu_count")],
        required_if=[
            ("state", "present", ("memory",)),
            ("state", "present", ("cpus", "cpu_count"), True),
        ],
        supports_check_mode=True,
    )
    if module.params["name"].startswith("-"):
        # The command would take it for an option; every other name it judges itself.
        module.fail_json(msg="Invalid instance name: %r begins with a hyphen" % module.params["name"])
    words = arguments(module.params)
    if module.check_mode:
        words.append("--dry-run")
    root = module.params["multikernel_root"]
    environ = {"ZERNEL_MULTIKERNEL_ROOT": root} if root else None
    result = ZernelCli(module).run(words, environ=environ)
    if result["simulated"]:
        module.warn(SIMULATED)
    for warning in result["warnings"]:
        module.warn("%s: %s" % (warning["instance"], warning["message"]))
    module.exit_json(
        changed=result["changed"],
        instance=result["after"],
        simulated=result["simulated"],
        transaction=result["transaction"],
        notes=result["notes"],
        diff={
            "before": {module.params["name"]: result["before"]} if result["before"] else {},
            "after": {module.params["name"]: result["after"]} if result["after"] else {},
        },
    )


if __name__ == "__main__":
    main()
