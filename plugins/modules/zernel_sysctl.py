#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Applies kernel settings through the agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zernel_sysctl
short_description: Set kernel parameters, guarded and read back
version_added: 0.1.0
description:
  - Brings the kernel parameters of a host to a desired set, all or nothing, through C(zernel sysctl).
  - Every value is written, read back, and kept for later boots in C(/etc/sysctl.d/99-zernel.conf). When one
    does not take, every value and file is put back and the module fails.
  - A value that would make this host worse is not applied, and RV(knobs[].why) says why. Limits are only
    raised. Huge pages leave memory for the rest of the host.
  - Also sets transparent huge pages, under the names V(transparent_hugepage.enabled) and
    V(transparent_hugepage.defrag), kept in C(/etc/tmpfiles.d/zernel.conf).
options:
  settings:
    description:
      - The whole desired set, name to value. A value is a number or a text, or a dictionary with O(settings)
        keys V(value), V(policy) (V(set), or V(raise) for a limit that must never become lower) and
        V(optional) (whether a kernel may lack the parameter).
      - A parameter that an earlier run has set and that is missing here goes back to the value that the host
        had before. An empty dictionary takes everything back.
    type: dict
    required: true
  root:
    description:
      - The directory that holds C(proc), C(sys), C(etc) and C(var). For tests.
    type: path
    default: /
extends_documentation_fragment:
  - zernel.fleet.agent
  - zernel.fleet.agent.action
"""

EXAMPLES = r"""
- name: Tune memory and the network
  zernel.fleet.zernel_sysctl:
    settings:
      vm.swappiness: 1
      net.core.rmem_max: {value: 134217728, policy: raise}
      kernel.numa_balancing: {value: 1, optional: true}

- name: Give the host back every value that it had before
  zernel.fleet.zernel_sysctl:
    settings: {}
"""

RETURN = r"""
status:
  description: V(planned) in check mode, V(applied), or V(unchanged).
  type: str
  returned: success
  sample: applied
knobs:
  description: One entry per parameter, in the order in which they were asked for.
  type: list
  elements: dict
  returned: success
  contains:
    key:
      description: The parameter.
      type: str
      sample: vm.swappiness
    asked:
      description: The value in O(settings).
      type: str
      sample: "0"
    policy:
      description: V(set), V(raise) or V(release).
      type: str
      sample: set
    verdict:
      description: V(as-asked), V(adapted), V(kept), V(unavailable) or V(released).
      type: str
      sample: adapted
    written:
      description: The parameter that was written, another one where the value is expressed otherwise.
      type: str
      sample: vm.swappiness
    accepted:
      description: The value that was chosen for this host.
      type: str
      sample: "1"
    before:
      description: The live value before this run.
      type: str
      sample: "60"
    effective:
      description: The live value after this run, read back.
      type: str
      sample: "1"
    changed:
      description: Whether the live value changes.
      type: bool
      sample: true
    why:
      description: Why the accepted value is not the asked one.
      type: str
      sample: 0 makes the kernel kill programs before it swaps, and this host swaps to /dev/vda2
files:
  description: The files that change, with their text before and after.
  type: list
  elements: dict
  returned: success
  sample: [{path: /etc/sysctl.d/99-zernel.conf, before: null, after: "vm.swappiness = 1\n"}]
  contains:
    path:
      description: The file.
      type: str
    before:
      description: Its text, or null where there was none.
      type: str
    after:
      description: Its text, or null where there is none any more.
      type: str
warnings:
  description: Files that change one of these parameters again at the next boot.
  type: list
  elements: str
  returned: success
  sample: []
errors:
  description: On failure, the problems as data.
  type: list
  elements: dict
  returned: failure
  sample: [{code: sysctl-unknown, instance: vm.swapiness, suggestion: "Did you mean vm.swappiness?"}]
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import AGENT_ARGUMENTS, ZernelCli


def differences(result):
    """Return Ansible's diff: one entry for the live values, one per file."""
    moved = [knob for knob in result["knobs"] if knob["changed"]]
    diff = []
    if moved:
        diff.append(
            {
                "before_header": "live values",
                "after_header": "live values",
                "before": "".join("%(written)s = %(before)s\n" % knob for knob in moved),
                "after": "".join("%(written)s = %(accepted)s\n" % knob for knob in moved),
            }
        )
    for change in result["files"]:
        diff.append(
            {
                "before_header": change["path"],
                "after_header": change["path"],
                "before": change["before"] or "",
                "after": change["after"] or "",
            }
        )
    return diff


def main():
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "dict", "required": True},
            "root": {"type": "path", "default": "/"},
            **AGENT_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    action = "plan" if module.check_mode else "apply"
    result = ZernelCli(module).run(
        ["sysctl", action, "--input=-", "--root=" + module.params["root"]],
        data=json.dumps(module.params["settings"], indent=1),
    )
    for warning in result["warnings"]:
        module.warn(warning)
    answer = {name: result[name] for name in ("status", "changed", "knobs", "files")}
    if module._diff:
        answer["diff"] = differences(result)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
