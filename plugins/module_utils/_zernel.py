# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs the C(zernel) command of the agent on the host: the one way in which this collection's modules act."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

AGENT_ARGUMENTS = {"executable": {"type": "path", "default": "zernel"}}
"""The options of the C(zernel.fleet.agent) documentation fragment, for a module's argument_spec."""


def run_program(command, data=None, environ=None):
    """Run a program and return its status, output and errors as text, whole.

    In place of C(AnsibleModule.run_command), which (up to ansible-core 2.19 at least) may drop the end of the
    output on a busy host: it stops reading when nothing has come for a second and the program has ended
    since. Half a JSON document is of no use.
    """
    environment = dict(os.environ, LC_ALL="C.UTF-8", **(environ or {}))
    try:
        done = subprocess.run(
            command,
            input=(data or "").encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            check=False,
        )
    except OSError as error:
        return 127, "", "%s: %s" % (command[0], error.strerror)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def read_text(module, path):
    """Return what a file holds, an empty text where there is none. Fails where it cannot."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        module.fail_json(msg="%s cannot be read: %s" % (path, error.strerror))


def write_text(module, path, text):
    """Replace a file at once; one that was there keeps its mode and owner. Fails where it cannot."""
    target = Path(path)
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=module.tmpdir)
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write(text)
        if not target.exists():
            Path(temporary).chmod(0o644)
    except OSError as error:
        module.fail_json(msg="%s cannot be written: %s" % (path, error.strerror))
    module.atomic_move(temporary, str(target), keep_dest_attrs=True)


def remove(module, path):
    """Remove a file, if it is there. Fails where it cannot."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        module.fail_json(msg="%s cannot be removed: %s" % (path, error.strerror))


def text_diff(path, before, after):
    """Return what C(--diff) shows of a text file."""
    return {"before_header": str(path), "after_header": str(path), "before": before, "after": after}


def renamed(said, names):
    """Return what the agent said, text or data, in which a person's names stand for temporary files.

    :param names: path of a file to what to call it.
    """
    if isinstance(said, str):
        for path, name in names.items():
            said = said.replace(path, name)
    elif isinstance(said, list):
        said = [renamed(one, names) for one in said]
    elif isinstance(said, dict):
        said = {key: renamed(one, names) for key, one in said.items()}
    return said


class ZernelCli:
    """The agent's command line for one module run.

    Every C(zernel) command knows C(--format=json); what it prints is returned as a dictionary. When the
    command refuses or fails, the module fails with the text that a person at the terminal would have read,
    and with the problems as data in RV(errors).
    """

    def __init__(self, module):
        self.module = module
        self.executable = self._find(module.params.get("executable") or "zernel")

    def run(self, args, data=None, environ=None, check=True, names=None):
        """Run C(zernel ARGS --format=json) and return what it printed.

        :param args: the words after C(zernel), each of which reaches the command unchanged (no shell).
        :param data: text for its standard input.
        :param environ: environment variables to add.
        :param check: whether a status other than 0 fails the module. With V(False), a dictionary is returned
            also for status 1, with the command's own C(status) and C(errors).
        :param names: what to call temporary files, see C(renamed).
        """
        command = [self.executable, *[str(arg) for arg in args], "--format=json"]
        rc, stdout, stderr = run_program(command, data, environ)
        if rc == 2:
            self._fail_usage(command, stderr)
        try:
            result = renamed(json.loads(stdout), names or {})
        except ValueError:
            result = None
        stderr = renamed(stderr, names or {})
        if not isinstance(result, dict):
            text = stderr.strip() or stdout.strip() or "it printed nothing"
            self.module.fail_json(
                msg="'%s' gave no result (status %d): %s" % (" ".join(command), rc, text), rc=rc, cmd=command
            )
        if rc != 0 and check:
            self.module.fail_json(
                msg=stderr.strip() or "'%s' failed with status %d" % (" ".join(command), rc),
                rc=rc,
                cmd=command,
                errors=result.get("errors", []),
            )
        return result

    def _find(self, executable):
        path = self.module.get_bin_path(executable)
        if path is None and self.module.check_mode:
            # Check mode on a bare host: the role agent would have installed it by now.
            self.module.warn("No Zernel agent on this host yet: check mode cannot tell what it would do")
            self.module.exit_json(changed=not self.module._name.endswith("_info"))
        if path is None:
            self.module.fail_json(
                msg="The Zernel agent is not installed on this host: no '%s'. "
                "Run the role zernel.fleet.agent first." % executable
            )
        return path

    def _fail_usage(self, command, stderr):
        """Status 2 means that the agent does not know a word of ours: it is older than this collection."""
        _rc, version, _err = run_program([self.executable, "--version"])
        self.module.fail_json(
            msg="The agent on this host (%s) does not understand '%s'; it does not fit this collection. "
            "Run the role zernel.fleet.agent to install the agent that does.\n%s"
            % (version.strip() or "of unknown version", " ".join(command), stderr.strip()),
            rc=2,
            cmd=command,
        )
