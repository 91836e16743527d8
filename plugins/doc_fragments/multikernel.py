# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation shared by the modules that look at or change a multikernel file system."""

from __future__ import annotations


class ModuleDocFragment:
    """The option that says where the file system is."""

    DOCUMENTATION = r"""
options:
  multikernel_root:
    description:
      - Where the multikernel file system is mounted. Without it, the agent looks at C(/sys/fs/multikernel),
        and then for a simulation at C(/run/zernel/multikernel).
    type: path
attributes:
  action_group:
    description: Options that several modules share are set once, in C(module_defaults) for such a group.
    support: full
    membership:
      - zernel.fleet.agent
      - zernel.fleet.multikernel
notes:
  - Where C(zernel simulate multikernel) stands in for a kernel, RV(simulated) is V(true), and a warning
    says so.
"""
