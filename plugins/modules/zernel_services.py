#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Brings the agent's services to a state, several in one task."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zernel_services
short_description: Run or stop the agent's services
version_added: 0.1.0
description:
  - Enables, starts, stops, restarts or reloads systemd services, several in one task and in the given order.
  - Unlike M(ansible.builtin.systemd_service) it looks at all of them in one call, fails with the end of the
    service's journal, and takes a service that systemd skipped because of an unmet condition for a failure.
  - A reload of one of the agent's daemons is waited for. It fails where the daemon kept its old settings, and
    becomes a restart where the daemon says that some of them need one. V(started) does the same for a daemon
    that runs without all of its settings in use.
options:
  services:
    description:
      - The services, in the order in which they are dealt with.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - The unit, such as V(zerneld.service).
        type: str
        required: true
      enabled:
        description:
          - Whether it starts at boot. Without it, that stays as it is.
        type: bool
      state:
        description:
          - V(started) and V(stopped) act only where needed, V(restarted) and V(reloaded) on a service that
            runs. Without it, that stays as it is.
        type: str
        choices: [started, stopped, restarted, reloaded]
      program:
        description:
          - A file that is newer than the running service after its program was replaced. With V(started), the
            service is then restarted.
        type: path
      settings:
        description:
          - The service's settings file. With V(started), a service that has not read it since it changed is
            reloaded.
        type: path
author:
  - The Zernel project (@zernel)
extends_documentation_fragment:
  - zernel.fleet.agent.action
"""

EXAMPLES = r"""
- name: Run the scheduler, and observation not
  zernel.fleet.zernel_services:
    services:
      - {name: zernel-scheduler.service, enabled: true, state: started}
      - {name: zerneld.service, enabled: false, state: stopped}
"""

RETURN = r"""
changed_services:
  description: The services on which something was done, or would be, with what.
  type: dict
  returned: success
  sample: {zernel-scheduler.service: [enable, start]}
"""

import re
import time
from datetime import datetime
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import run_program

PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "UnitFileState",
    "ConditionResult",
    "NeedDaemonReload",
    "StatusText",
    "InactiveExitTimestampMonotonic",
)
RUNS = ("active", "reloading", "refreshing")
# What the agent's daemons say of their settings in their status line (zernel.daemon of the agent).
KEPT = "settings NOT reloaded"
NEEDS_RESTART = "settings NOT applied: restart"
READ_AT = re.compile(r"settings read (\S+)")
RELOAD_SECONDS = 60
JOURNAL_LINES = 15


def started_at(unit):
    """Return when a service was started, in seconds of Unix time, or None."""
    stamp = unit["InactiveExitTimestampMonotonic"]
    if not stamp.isdecimal() or stamp == "0":
        return None
    return time.time() - time.monotonic() + int(stamp) / 1e6


def read_at(unit):
    """Return when a daemon last read its settings, in seconds of Unix time, or None."""
    found = READ_AT.search(unit["StatusText"])
    try:
        return datetime.fromisoformat(found.group(1)).timestamp() if found else None
    except ValueError:
        return None


def changed_since(path, moment):
    """Whether a file changed after a moment; not, where one of them is not known."""
    if path is None or moment is None:
        return False
    try:
        return Path(path).stat().st_mtime > moment
    except OSError:
        return False


class Services:
    """The services of one module run."""

    def __init__(self, module):
        self.module = module
        self.systemctl = module.get_bin_path("systemctl", required=True)

    def show(self, names):
        """Return unit to its properties, for all units in one call."""
        command = [self.systemctl, "show", "--property=%s" % ",".join(PROPERTIES), "--", *names]
        rc, out, err = run_program(command)
        if rc != 0:
            self.module.fail_json(msg="systemd does not answer: %s" % err.strip(), cmd=command)
        blocks = [
            dict(line.partition("=")[::2] for line in block.splitlines())
            for block in out.strip().split("\n\n")
        ]
        return dict(zip(names, blocks, strict=True))

    def actions(self, wanted, unit):
        """Return the words that systemctl must be given for a service to be as wanted."""
        todo = []
        is_enabled = unit["UnitFileState"] in ("enabled", "enabled-runtime", "linked", "static")
        if wanted["enabled"] is not None and wanted["enabled"] != is_enabled:
            todo.append("enable" if wanted["enabled"] else "disable")
        runs = unit["ActiveState"] in RUNS
        state = wanted["state"]
        if state == "started" and not runs:
            todo.append("start")
        elif state == "started" and (
            NEEDS_RESTART in unit["StatusText"] or changed_since(wanted["program"], started_at(unit))
        ):
            todo.append("restart")
        elif state == "started" and (
            KEPT in unit["StatusText"] or changed_since(wanted["settings"], read_at(unit) or started_at(unit))
        ):
            todo.append("reload")
        elif state == "stopped" and (runs or unit["ActiveState"] == "activating"):
            todo.append("stop")
        elif state == "restarted" and runs:
            todo.append("restart")
        elif state == "reloaded" and runs:
            todo.append("reload")
        return todo

    def act(self, name, word):
        """Do one thing to one service."""
        if word in ("start", "restart"):
            # systemd counts every start against the limit, also those that a person or a play asked for.
            run_program([self.systemctl, "--quiet", "reset-failed", "--", name])
        command = [self.systemctl, "--quiet", word, "--", name]
        rc, _out, err = run_program(command)
        if rc != 0:
            self.fail(name, "'systemctl %s %s' failed: %s" % (word, name, err.strip()))

    def fail(self, name, reason):
        """Fail with what the service has said last."""
        journalctl = self.module.get_bin_path("journalctl")
        said = ""
        if journalctl:
            command = [
                journalctl,
                "--unit=%s" % name,
                "--lines=%d" % JOURNAL_LINES,
                "--no-pager",
                "--output=cat",
            ]
            said = run_program(command)[1].strip()
        self.module.fail_json(
            msg=reason + ("\nThe end of its journal:\n%s" % said if said else ""), service=name
        )

    def finish_reload(self, name, before):
        """Wait until a daemon has reloaded; restart it where that is not enough.

        'systemctl reload' only delivers the signal. The daemon's status line then gets a later time than the
        one in C(before); a service whose line has none is not waited for.
        """
        if not READ_AT.search(before):
            return []
        deadline = time.monotonic() + RELOAD_SECONDS
        while True:
            unit = self.show([name])[name]
            text = unit["StatusText"]
            read_at = READ_AT.search(text)
            if unit["ActiveState"] not in RUNS:
                return []  # check_started says what became of it
            if read_at and read_at.group() not in before:
                break
            if time.monotonic() > deadline:
                self.fail(name, "%s has not reloaded within %d seconds." % (name, RELOAD_SECONDS))
            time.sleep(0.1)
        if KEPT in text:
            self.fail(name, "%s keeps its old settings: %s" % (name, text))
        if NEEDS_RESTART in text:
            self.act(name, "restart")
            return ["restart"]
        return []

    def check_started(self, name):
        """Fail for a service that systemd did not start although it reported success."""
        unit = self.show([name])[name]
        if unit["ActiveState"] in RUNS:
            return
        if unit["ConditionResult"] == "no":
            self.fail(
                name,
                "%s was not started, since this host does not meet a condition of the unit. "
                "'systemctl status %s' shows which; 'zernel doctor' says what this host lacks."
                % (name, name),
            )
        self.fail(name, "%s was started and is %s." % (name, unit["ActiveState"]))


def main():
    module = AnsibleModule(
        argument_spec={
            "services": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "enabled": {"type": "bool"},
                    "state": {"type": "str", "choices": ["started", "stopped", "restarted", "reloaded"]},
                    "program": {"type": "path"},
                    "settings": {"type": "path"},
                },
            }
        },
        supports_check_mode=True,
    )
    services = Services(module)
    wanted = module.params["services"]
    found = services.show([service["name"] for service in wanted]) if wanted else {}
    missing = [name for name, unit in found.items() if unit["LoadState"] == "not-found"]
    if missing and not module.check_mode:
        module.fail_json(
            msg="There is no %s on this host. Run the role zernel.fleet.agent." % ", ".join(missing)
        )
    if any(unit["NeedDaemonReload"] == "yes" for unit in found.values()) and not module.check_mode:
        run_program([services.systemctl, "daemon-reload"])
    changed, diff = {}, {"before": {}, "after": {}}
    for service in wanted:
        name, unit = service["name"], found[service["name"]]
        todo = services.actions(service, unit)
        if not todo:
            continue
        changed[name] = todo
        diff["before"][name] = "%s, %s" % (unit["ActiveState"], unit["UnitFileState"] or "not installed")
        diff["after"][name] = ", ".join(todo)
        if module.check_mode:
            continue
        for word in todo:
            services.act(name, word)
        if "reload" in todo:
            changed[name] = todo + services.finish_reload(name, unit["StatusText"])
        if {"start", "restart", "reload"} & set(todo):
            services.check_started(name)
    module.exit_json(changed=bool(changed), changed_services=changed, diff=diff)


if __name__ == "__main__":
    main()
