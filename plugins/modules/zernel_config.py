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
        C(zernel-scheduler --dump-config) shows.
    type: dict
  observe:
    description:
      - Settings of C(zerneld), section to name to value. What is not named has its default, which
        C(zerneld --dump-config) shows.
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

import json
import os
import re
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import (
    AGENT_ARGUMENTS,
    ZernelCli,
    run_program,
)

FILES = {"scheduler": ("scheduler.toml", "zernel-scheduler"), "observe": ("zerneld.toml", "zerneld")}
HEADER = (
    "# SPDX-License-Identifier: GPL-3.0-or-later\n"
    "# Managed by Ansible (zernel.fleet.zernel_config).\n"
    "# What is not set here has its default: '%s --dump-config' shows all settings.\n"
)


def name(word):
    """Return a TOML key, quoted where it must be."""
    return word if re.match(r"[A-Za-z0-9_-]+$", word) else json.dumps(word)


def toml(settings, path=()):
    """Return settings as TOML: plain values before the tables, names in order, so that a text is stable."""
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    lines = [
        "%s = %s\n" % (name(key), json.dumps(value, ensure_ascii=False))
        for key, value in sorted(settings.items())
        if key not in tables
    ]
    if lines and path:
        lines.insert(0, "\n[%s]\n" % ".".join(map(name, path)))
    return "".join(lines) + "".join(toml(tables[key], (*path, key)) for key in sorted(tables))


def check(module, program, text):
    """Let the daemon judge a text; returns what is wrong with it, or None."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", dir=module.tmpdir, encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        rc, out, err = run_program([program, "--config", stream.name, "--check-config"])
        return None if rc == 0 else (err.strip() or out.strip()).replace(stream.name, "the new settings")


def write(module, target, text):
    """Replace a file; one that was there keeps its mode and owner."""
    fd, temporary = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(fd, "w", encoding="utf-8") as stream:
        stream.write(text)
    if not target.exists():
        Path(temporary).chmod(0o644)
    module.atomic_move(temporary, str(target), keep_dest_attrs=True)


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
        if module.params[option] is None:
            continue
        target = Path(module.params["directory"]) / file
        before = target.read_text(encoding="utf-8") if target.exists() else ""
        after = HEADER % program + toml(module.params[option])
        if before != after:
            changes.append((target, before, after))
            why = check(module, str(programs / program), after)
            if why:
                refused.append("%s was not written, %s does not accept it:\n%s" % (target, program, why))
    if refused:
        module.fail_json(msg="\n".join(refused), changed_files=[])
    result = {"changed": bool(changes), "changed_files": [str(target) for target, _before, _after in changes]}
    if module._diff:
        result["diff"] = [
            {"before_header": str(target), "after_header": str(target), "before": before, "after": after}
            for target, before, after in changes
        ]
    if not module.check_mode:
        for target, _before, after in changes:
            write(module, target, after)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
