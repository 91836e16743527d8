#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reports a host's hardware and proposes a baseline for it, through the agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zernel_hardware_info
short_description: Report the hardware that kernel instances can share
version_added: 0.1.0
description:
  - Reports CPUs with sockets, cores and threads, memory, NUMA nodes, and the PCI devices that can be given
    to kernel instances, through C(zernel show --hardware).
  - Proposes a baseline that leaves the host able to work. It keeps whole cores, and devices in use stay its
    own.
options:
  host_cpus:
    description:
      - The CPUs that the host keeps, such as V(0-3). Without it, an eighth of them in whole cores, at least
        one.
    type: str
  pool_size:
    description:
      - How much memory to give away, such as V(14GB). Without it, what the kernel's C(mkkernel_pool=) option
        reserved, or else at most half of the memory.
    type: str
  pool_base:
    description:
      - The address where the memory pool begins, such as V(0x80000000).
    type: str
  plan:
    description:
      - How the host will be split. With it, the module fails where that cannot be.
    type: dict
    suboptions:
      baseline:
        description:
          - Whether a baseline is wanted, also where the kernel cannot take it yet.
        type: bool
        default: false
      instances:
        description:
          - Whether instances are declared, which takes a kernel that has the multikernel file system, or a
            simulation.
        type: bool
        default: false
      simulate:
        description:
          - Whether the file system is simulated, which is refused beside a kernel that has it.
        type: bool
        default: false
  root:
    description:
      - The directory that holds C(proc) and C(sys). For tests.
    type: path
    default: /
extends_documentation_fragment:
  - zernel.fleet.agent
  - zernel.fleet.agent.info
seealso:
  - module: zernel.fleet.zernel_baseline
"""

EXAMPLES = r"""
- name: See what the host has to give
  zernel.fleet.zernel_hardware_info:
    host_cpus: 0-3
  register: host
"""

RETURN = r"""
hardware:
  description: The host's hardware, with V(cpus), V(total_cpus), V(memory_bytes), V(ram), V(nodes),
    V(devices), V(reserved_pool) and V(multikernel), which says whether the running kernel supports
    instances.
  type: dict
  returned: success
  sample: {total_cpus: 8, memory_bytes: 8589934592, multikernel: false}
baseline:
  description: The proposed baseline, with V(cpus), V(memory), V(devices) and V(topology). Null when none is
    possible.
  type: dict
  returned: success
  sample: {cpus: {total: 8, host_reserved: [0], available: [1, 2, 3, 4, 5, 6, 7]}}
errors:
  description: Why no baseline is possible.
  type: list
  elements: dict
  returned: success
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._multikernel import (
    PLAN,
    PROPOSAL,
    conflicts,
    hardware_words,
)
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import AGENT_ARGUMENTS, ZernelCli


def main():
    module = AnsibleModule(
        argument_spec={
            **PROPOSAL,
            "plan": {"type": "dict", "options": PLAN},
            "root": {"type": "path", "default": "/"},
            **AGENT_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    words = hardware_words(module.params)
    result = ZernelCli(module).run([*words, "--root=" + module.params["root"]])
    plan = module.params["plan"]
    problems = conflicts(result, plan) if plan else []
    if problems:
        module.fail_json(
            msg="This host cannot be split as planned. " + " ".join(problems), errors=result["errors"]
        )
    module.exit_json(
        changed=False, hardware=result["hardware"], baseline=result["baseline"], errors=result["errors"]
    )


if __name__ == "__main__":
    main()
