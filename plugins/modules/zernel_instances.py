#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes kernel instances what is declared, all or nothing, through the agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zernel_instances
short_description: Make several kernel instances what is declared, all or nothing
version_added: 0.1.0
description:
  - Creates and changes the declared instances through C(zernel apply), as one change. The final state is
    planned and judged as a whole, so that their order makes no difference.
  - Instances that are not declared are left alone.
  - This is about resources. A kernel is loaded, started and stopped by M(zernel.fleet.zernel_instance), which
    also deletes.
options:
  instances:
    description:
      - The instances, each with V(name), V(memory), V(cpus) or V(cpu_count), and what else a file of
        C(/etc/zernel/instances.d) may hold, V(memory_base), V(devices), V(id), V(numa_nodes),
        V(cpu_affinity) and V(memory_policy).
      - The keys V(state), V(kernel), V(initrd), V(cmdline) and V(force) of M(zernel.fleet.zernel_instance)
        are left out, so that one list serves both modules. An instance that is to be V(absent) is refused,
        as this module does not delete.
    type: list
    elements: dict
    required: true
  dest:
    description:
      - The file that keeps the declarations for the next boot, below C(/etc/zernel/instances.d). It is
        written once the kernel has what is declared, and removed where nothing is.
    type: path
extends_documentation_fragment:
  - zernel.fleet.multikernel
  - zernel.fleet.agent
  - zernel.fleet.agent.action
seealso:
  - module: zernel.fleet.zernel_instance
"""

EXAMPLES = r"""
- name: Move two CPUs from one instance to the other
  zernel.fleet.zernel_instances:
    instances:
      - {name: web-server, cpus: 4-9, memory: 2GB}
      - {name: database, cpus: 10-11, memory: 8GB, devices: ["nvme0:ns2"]}

- name: Create one, also at each boot
  zernel.fleet.zernel_instances:
    instances:
      - {name: web-server, cpu_count: 4, memory: 2GB}
    dest: /etc/zernel/instances.d/web.yaml
"""

RETURN = r"""
plan:
  description: What is done, with V(create) and V(update), lists of steps, each with its V(instance).
  type: dict
  returned: success
  sample: {create: [], update: [{action: update, instance: web-server}], delete: []}
instances:
  description:
    - All instances, by name, as they are or, in check mode, would be. See
      RV(zernel.fleet.zernel_instance_info#module:instances).
  type: dict
  returned: success
  sample: {web-server: {name: web-server, id: 1, status: ready, cpus: [4, 5, 6, 7, 8, 9]}}
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

import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._multikernel import (
    ROOT_ARGUMENT,
    SIMULATED,
    declarations,
    environment,
    sentences,
    undeclarable,
    write_declarations,
)
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import (
    AGENT_ARGUMENTS,
    ZernelCli,
    read_text,
    remove,
    text_diff,
    write_text,
)


def keep(module):
    """Bring the file that keeps the declarations up to date; returns what C(--diff) shows of it."""
    dest = module.params["dest"]
    after = declarations(module.params["instances"])
    before = read_text(module, dest)
    if after == before and (after or not Path(dest).exists()):
        return []
    if not module.check_mode:
        if after:
            write_text(module, dest, after)
        else:
            remove(module, dest)
    return [text_diff(dest, before, after)]


def main():
    module = AnsibleModule(
        argument_spec={
            "instances": {"type": "list", "elements": "dict", "required": True},
            "dest": {"type": "path"},
            **ROOT_ARGUMENT,
            **AGENT_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    refused = undeclarable(module.params["instances"], "instances")
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as directory:
        names = write_declarations(module.params["instances"], directory, "instances")
        words = [
            "apply",
            "--directory=" + directory,
            *(["--dry-run"] if module.check_mode or refused else []),
        ]
        environ = environment(module.params["multikernel_root"])
        result = ZernelCli(module).run(words, environ=environ, check=False, names=names)
    errors = refused + result.get("errors", [])
    if errors:
        reasons = "\n".join("  - " + reason for reason in sentences("Instance", errors))
        module.fail_json(msg="The instances cannot be what is declared:\n" + reasons, errors=errors)
    if result["simulated"]:
        module.warn(SIMULATED)
    for warning in result["warnings"]:
        module.warn("%s: %s" % (warning["instance"], warning["message"]))
    kept = keep(module) if module.params["dest"] else []
    moved = {step["instance"] for steps in result["plan"].values() for step in steps}
    module.exit_json(
        instances=result["after"],
        changed=result["changed"] or bool(kept),
        diff=[
            {
                side: {name: found for name, found in result[side].items() if name in moved}
                for side in ("before", "after")
            },
            *kept,
        ],
        **{key: result[key] for key in ("plan", "simulated", "transactions", "notes")},
    )


if __name__ == "__main__":
    main()
