#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Writes the configuration files of the agent's daemons, checked by the daemons themselves."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zernel_config
short_description: Write the configuration of the agent's daemons
version_added: 0.1.0
description:
  - Writes C(/etc/zernel/scheduler.toml) and C(/etc/zernel/zerneld.toml), each only when it changes, after the
    daemon that reads it has accepted the new text. When one of them is refused, neither is written.
  - One module for both, since each task on a host costs seconds when there are thousands.
options:
  scheduler:
    description:
      - Settings of C(zernel-scheduler), section to name to value. What is not named has its default, which
        C(zernel-scheduler --dump-config) shows; with V({}) the file is the one that the package brings.
    type: dict
  observe:
    description:
      - Settings of C(zerneld), section to name to value. What is not named has its default, which
        C(zerneld --dump-config) shows; with V({}) the file is the one that the package brings.
    type: dict
  directory:
    description:
      - The directory of the files. For tests.
    type: path
    default: /etc/zernel
extends_documentation_fragment:
  - zernel.fleet.agent
  - zernel.fleet.agent.action
"""

EXAMPLES = r"""
- name: Serve the scheduler's metrics on another port
  zernel.fleet.zernel_config:
    scheduler:
      telemetry: {metrics_port: 9193}
"""

RETURN = r"""
changed_files:
  description: The files that have changed, or would.
  type: list
  elements: str
  returned: success
  sample: [/etc/zernel/scheduler.toml]
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._config import FILES, config_text, refusal
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import (
    AGENT_ARGUMENTS,
    ZernelCli,
    read_text,
    run_program,
    text_diff,
    write_text,
)


def default_text(program):
    """Return the file that the package brings: every setting with its default, explained."""
    rc, out, _err = run_program([program, "--dump-config"])
    return out if rc == 0 else None


def main():
    module = AnsibleModule(
        argument_spec={
            "scheduler": {"type": "dict"},
            "observe": {"type": "dict"},
            "directory": {"type": "path", "default": "/etc/zernel"},
            **AGENT_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    # The daemons are installed beside the command.
    programs = Path(ZernelCli(module).executable).parent
    changes, refused = [], []
    for option, (file, program) in sorted(FILES.items()):
        settings = module.params[option]
        if settings is None:
            continue
        target = Path(module.params["directory"]) / file
        before = read_text(module, target)
        command = str(programs / program)
        # Without settings of its own a host keeps the file that the package brought, with its explanations.
        after = config_text(program, settings) if settings else default_text(command)
        if after is None:
            refused.append("%s does not show its default settings ('%s --dump-config')" % (program, command))
        elif before != after:
            changes.append((target, before, after))
            why = refusal(module, [command], after)
            if why:
                refused.append("%s was not written, %s does not accept it:\n%s" % (target, program, why))
    if refused:
        module.fail_json(msg="\n".join(refused), changed_files=[])
    result = {"changed": bool(changes), "changed_files": [str(target) for target, _before, _after in changes]}
    if module._diff:
        result["diff"] = [text_diff(*change) for change in changes]
    if not module.check_mode:
        for target, _before, after in changes:
            write_text(module, target, after)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
