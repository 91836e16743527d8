# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Controller side of C(zernel_preflight): brings the agent's package, which then judges the host."""

from __future__ import annotations

from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

FILES = Path(__file__).resolve().parents[2] / "roles" / "agent" / "files"


class ActionModule(ActionBase):
    """Copies the package into the task's own temporary directory on the host, which is removed afterwards."""

    TRANSFERS_FILES = True  # ask for that directory

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        shell = self._connection._shell
        try:
            args = dict(self._task.args)
            package = Path(args["package"]).expanduser().resolve() if args.get("package") else built_package()
            if not package.is_file():
                raise AnsibleActionFail(
                    "There is no agent package at %s on this controller. Correct zernel_agent_package."
                    % package
                )
            remote = shell.join_path(shell.tmpdir, package.name)
            self._transfer_file(str(package), remote)
            self._fixup_perms2((shell.tmpdir, remote), execute=False)
            result = self._execute_module(module_args=dict(args, package=remote), task_vars=task_vars)
            result["package"] = str(package)
            return result
        finally:
            self._remove_tmp_path(shell.tmpdir)


def built_package():
    """Return the newest package that this collection carries."""
    found = sorted(FILES.glob("zernel-agent_*_all.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise AnsibleActionFail(
            "The agent's package is missing on this controller: there is no zernel-agent_*_all.deb in %s. "
            "Run 'make build' in a clone of Zernel first; a released collection holds it already." % FILES
        )
    return found[-1]
