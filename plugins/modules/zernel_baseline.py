#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Applies a baseline device tree through the agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zernel_baseline
short_description: Apply the baseline of a multikernel host
version_added: 0.1.0
description:
  - Validates a baseline device tree and hands it to the kernel through C(zernel init --apply).
  - The kernel holds one baseline. It is not replaced while there are instances, and one that says the same
    is left as it is.
options:
  path:
    description:
      - The baseline on the managed host, as source (DTS) or blob (DTB).
    type: path
    default: /etc/zernel/baseline.dts
extends_documentation_fragment:
  - zernel.fleet.multikernel
  - zernel.fleet.agent
  - zernel.fleet.agent.action
seealso:
  - module: zernel.fleet.zernel_instance
  - module: zernel.fleet.zernel_hardware_info
"""

EXAMPLES = r"""
- name: Apply the baseline that the role multikernel has written
  zernel.fleet.zernel_baseline:

- name: Apply another one
  zernel.fleet.zernel_baseline:
    path: /root/baseline.dts
"""

RETURN = r"""
hardware:
  description: The inventory of the baseline, with V(cpus), V(memory), V(devices) and V(topology).
  type: dict
  returned: success
  sample: {cpus: {total: 8, host_reserved: [0, 1], available: [2, 3, 4, 5, 6, 7]}}
device_tree:
  description: The file of the kernel that holds it.
  type: str
  returned: success
  sample: /sys/fs/multikernel/device_tree
notes:
  description: What was found of an earlier command that did not finish.
  type: list
  elements: str
  returned: success
  sample: []
simulated:
  description: Whether a simulation stands in for the kernel.
  type: bool
  returned: success
  sample: false
errors:
  description: On failure, every problem with code, message, suggestion, file and line.
  type: list
  elements: dict
  returned: failure
  sample: [{code: cpu-not-found, message: CPU 16 does not exist, line: 11}]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._multikernel import (
    ROOT_ARGUMENT,
    SIMULATED,
    environment,
)
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import AGENT_ARGUMENTS, ZernelCli


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/zernel/baseline.dts"},
            **ROOT_ARGUMENT,
            **AGENT_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    words = ["init", "--input=" + module.params["path"], "--apply"]
    if module.check_mode:
        words.append("--dry-run")
    result = ZernelCli(module).run(words, environ=environment(module.params["multikernel_root"]))
    if result["simulated"]:
        module.warn(SIMULATED)
    for warning in result["warnings"]:
        module.warn("%s: %s" % (module.params["path"], warning["message"]))
    module.exit_json(
        changed=result["changed"],
        hardware=result["hardware"],
        device_tree=result["device_tree"],
        simulated=result["simulated"],
        notes=result["notes"],
        diff={"before": result["before"] or {}, "after": result["after"]},
    )


if __name__ == "__main__":
    main()
