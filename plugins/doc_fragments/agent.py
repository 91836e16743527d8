# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation shared by the modules that call the agent."""

from __future__ import annotations


class ModuleDocFragment:
    """Options, requirements and attributes of every module that runs the C(zernel) command on the host."""

    DOCUMENTATION = r"""
requirements:
  - The Zernel agent on the managed host (role P(zernel.fleet.agent#role)).
options:
  executable:
    description:
      - The agent's command, a name to find on the path or an absolute path.
    type: path
    default: zernel
attributes:
  action_group:
    description: Options that several modules share are set once, in C(module_defaults) for this group.
    support: full
    membership:
      - zernel.fleet.agent
author:
  - The Zernel project (@zernel)
"""

    # Modules that change the host.
    ACTION = r"""
attributes:
  check_mode:
    support: full
    description: Can run in check mode and says what would change, without changing anything.
  diff_mode:
    support: full
    description: Returns what was there and what comes, for C(--diff).
  idempotent:
    support: full
    description: A second run with the same options changes nothing and says so.
  platform:
    support: full
    platforms: debian
    description: Debian 12 and 13.
"""

    # Modules that only read.
    INFO = r"""
attributes:
  check_mode:
    support: full
    description: Reads only, so that check mode makes no difference.
  diff_mode:
    support: N/A
    description: Nothing is changed, so that there is no difference to show.
  idempotent:
    support: full
    description: Never changes anything.
  platform:
    support: full
    platforms: debian
    description: Debian 12 and 13.
"""
