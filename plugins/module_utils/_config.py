# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The configuration files of the agent's daemons, as this collection writes them."""

from __future__ import annotations

import json
import re
import tempfile

from ansible_collections.zernel.fleet.plugins.module_utils._zernel import run_program

FILES = {"scheduler": ("scheduler.toml", "zernel-scheduler"), "observe": ("zerneld.toml", "zerneld")}
"""Option of a module: the file below /etc/zernel, and the program that reads it."""

HEADER = (
    "# SPDX-License-Identifier: GPL-3.0-or-later\n"
    "# Managed by Ansible (zernel.fleet.zernel_config).\n"
    "# What is not set here has its default: '%s --dump-config' shows all settings.\n"
)


def config_text(program, settings):
    """Return the file for a daemon's settings, section to name to value."""
    return HEADER % program + toml(settings)


def refusal(module, command, text, name="the new settings", environ=None):
    """Let a daemon, started with C(command), judge a text; returns what is wrong with it, or None.

    In what it says the text is called C(name).
    """
    with tempfile.NamedTemporaryFile("w", suffix=".toml", dir=module.tmpdir, encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        rc, out, err = run_program([*command, "--config", stream.name, "--check-config"], environ=environ)
        return None if rc == 0 else (err.strip() or out.strip()).replace(stream.name, name)


def toml(settings, path=()):
    """Return settings as TOML: plain values before the tables, names in order, so that a text is stable."""
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    lines = [
        "%s = %s\n" % (_name(key), json.dumps(value, ensure_ascii=False))
        for key, value in sorted(settings.items())
        if key not in tables
    ]
    if lines and path:
        lines.insert(0, "\n[%s]\n" % ".".join(map(_name, path)))
    return "".join(lines) + "".join(toml(tables[key], (*path, key)) for key in sorted(tables))


def _name(word):
    """Return a TOML key, quoted where it must be."""
    return word if re.match(r"[A-Za-z0-9_-]+$", word) else json.dumps(word)
