#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reports kernel instances through the agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zernel_instance_info
short_description: Report the kernel instances of a host
version_added: 0.1.0
description:
  - Reports the instances of a multikernel host, and the baseline that they are taken from, as the kernel
    shows them, through C(zernel show).
  - Which kernel is loaded into an instance is not reported. No multikernel kernel tells it. V(status) tells
    whether there is one, and whether it runs.
options:
  name:
    description:
      - The instance to report. Without it, all are. It is an error if there is none of this name.
    type: str
extends_documentation_fragment:
  - zernel.fleet.multikernel
  - zernel.fleet.agent
  - zernel.fleet.agent.info
seealso:
  - module: zernel.fleet.zernel_instance
  - module: zernel.fleet.zernel_hardware_info
"""

EXAMPLES = r"""
- name: Look at all instances
  zernel.fleet.zernel_instance_info:
  register: found

- name: Show which of them run
  ansible.builtin.debug:
    msg: "{{ found.instances.values() | selectattr('status', 'eq', 'active') | map(attribute='name') }}"

- name: Look at one
  zernel.fleet.zernel_instance_info:
    name: web-server
"""

RETURN = r"""
instances:
  description: The instances, by name.
  type: dict
  returned: success
  sample: {web-server: {name: web-server, id: 1, status: active, cpus: [4, 5, 6, 7]}}
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
baseline:
  description: What there is to give, with V(cpus), V(memory), V(devices) and V(topology).
  type: dict
  returned: success
  sample: {cpus: {total: 8, host_reserved: [0, 1], available: [2, 3, 4, 5, 6, 7]}}
baseline_complete:
  description: Whether the whole baseline is known. V(false) where another program applied one that holds
    the pool only; totals, what the host keeps and the devices' types are V(null) in RV(baseline) then.
  type: bool
  returned: success
  sample: true
root:
  description: Where the multikernel file system is mounted.
  type: str
  returned: success
  sample: /sys/fs/multikernel
simulated:
  description: Whether a simulation stands in for the kernel.
  type: bool
  returned: success
  sample: false
errors:
  description: On failure, every problem with code, message, suggestion and more.
  type: list
  elements: dict
  returned: failure
  sample: [{code: instance-not-found, message: There is no such instance, did_you_mean: [web-server]}]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._multikernel import (
    ROOT_ARGUMENT,
    SIMULATED,
    environment,
    refuse_hyphen,
)
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import AGENT_ARGUMENTS, ZernelCli


def main():
    module = AnsibleModule(
        argument_spec={"name": {"type": "str"}, **ROOT_ARGUMENT, **AGENT_ARGUMENTS},
        supports_check_mode=True,
    )
    name = module.params["name"]
    if name is not None:
        refuse_hyphen(module, name)
    words = ["show"] if name is None else ["show", name]
    result = ZernelCli(module).run(words, environ=environment(module.params["multikernel_root"]))
    if result["simulated"]:
        module.warn(SIMULATED)
    module.exit_json(
        changed=False,
        instances=result["instances"],
        baseline=result["hardware"],
        baseline_complete=result["baseline_complete"],
        root=result["root"],
        simulated=result["simulated"],
    )


if __name__ == "__main__":
    main()
