#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Writes a baseline device tree, and applies it, through the agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zernel_baseline
short_description: Write and apply the baseline of a multikernel host
version_added: 0.1.0
description:
  - Validates a baseline device tree and hands it to the kernel through C(zernel init --apply).
  - The kernel holds one baseline. It is not replaced while there are instances, and one that says the same
    is left as it is.
  - With O(content), the file is written first, once the agent has found it valid.
options:
  path:
    description:
      - The baseline on the managed host, as source (DTS) or blob (DTB).
    type: path
    default: /etc/zernel/baseline.dts
  content:
    description:
      - The source that O(path) shall hold. Without it, the file is there already.
    type: str
  apply:
    description:
      - Whether the kernel gets it. V(false) only writes the file, for a kernel that is booted later.
    type: bool
    default: true
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

- name: Write one for a kernel that is booted later
  zernel.fleet.zernel_baseline:
    content: "{{ lookup('ansible.builtin.file', 'baseline.dts') }}"
    apply: false
"""

RETURN = r"""
hardware:
  description: The inventory of the baseline, with V(cpus), V(memory), V(devices) and V(topology).
  type: dict
  returned: when it is applied
  sample: {cpus: {total: 8, host_reserved: [0, 1], available: [2, 3, 4, 5, 6, 7]}}
device_tree:
  description: The file of the kernel that holds it.
  type: str
  returned: when it is applied
  sample: /sys/fs/multikernel/device_tree
notes:
  description: What was found of an earlier command that did not finish.
  type: list
  elements: str
  returned: when it is applied
  sample: []
simulated:
  description: Whether a simulation stands in for the kernel.
  type: bool
  returned: when it is applied
  sample: false
errors:
  description: On failure, every problem with code, message, suggestion, file and line.
  type: list
  elements: dict
  returned: failure
  sample: [{code: cpu-not-found, message: CPU 16 does not exist, line: 11}]
"""

import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._multikernel import (
    ROOT_ARGUMENT,
    SIMULATED,
    environment,
)
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import (
    AGENT_ARGUMENTS,
    ZernelCli,
    read_text,
    text_diff,
    write_text,
)


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/zernel/baseline.dts"},
            "content": {"type": "str"},
            "apply": {"type": "bool", "default": True},
            **ROOT_ARGUMENT,
            **AGENT_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    agent, path, content = ZernelCli(module), module.params["path"], module.params["content"]
    before = read_text(module, path) if content is not None else None
    diff = [] if content == before else [text_diff(path, before, content)]
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as directory:
        judged = str(Path(directory) / "baseline.dts") if diff else path
        names = {judged: path}
        if diff:
            Path(judged).write_text(content, encoding="utf-8")
            agent.run(["init", "--input=" + judged], names=names)
            if not module.check_mode:
                write_text(module, path, content)
        if not module.params["apply"]:
            module.exit_json(changed=bool(diff), diff=diff)
        # What check mode has not written is applied from where it was judged.
        words = [
            "init",
            "--apply",
            *(["--dry-run", "--input=" + judged] if module.check_mode else ["--input=" + path]),
        ]
        environ = environment(module.params["multikernel_root"])
        result = agent.run(words, environ=environ, names=names)
    if result["simulated"]:
        module.warn(SIMULATED)
    for warning in result["warnings"]:
        module.warn("%s: %s" % (path, warning["message"]))
    module.exit_json(
        changed=bool(diff) or result["changed"],
        hardware=result["hardware"],
        device_tree=result["device_tree"],
        simulated=result["simulated"],
        notes=result["notes"],
        diff=[*diff, {"before": result["before"] or {}, "after": result["after"]}],
    )


if __name__ == "__main__":
    main()
