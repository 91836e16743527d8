# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent that is no longer what its package brought is seen, so that the playbook installs it again."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from playbook import play

PLAY = """
- hosts: all
  become: true
  gather_facts: false
  tasks:
    - zernel.fleet.zernel_preflight:
      register: found
    - ansible.builtin.debug:
        msg: "current is {{ found.agent_current }}"
"""
MODULE = "/usr/lib/python3/dist-packages/zernel/cli/show.py"
SETTINGS = "/etc/zernel/zerneld.toml"


def is_current(directory: Path) -> bool:
    playbook = directory / "play.yml"
    playbook.write_text(PLAY)
    inventory = f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/inventory"
    status, said = play(inventory, playbook, {})
    assert status == 0, said
    found = re.search(r"current is (True|False)", said)
    assert found, said
    return found[1] == "True"


def test_a_module_that_is_gone_is_missed_and_settings_may_be_anything(host: Any, tmp_path: Path) -> None:
    host.check_output(f"mv {MODULE} /root/ && cp -a {SETTINGS} /root/ && echo '# mine' >>{SETTINGS}")
    try:
        assert not is_current(tmp_path)
        host.check_output(f"mv /root/show.py {MODULE}")
        assert is_current(tmp_path)
    finally:
        host.run(f"test ! -e /root/show.py || mv /root/show.py {MODULE}")
        host.check_output(f"mv /root/zerneld.toml {SETTINGS}")
