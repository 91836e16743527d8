#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reports what a kernel has and lacks, through the agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: zernel_kernel_info
short_description: Compare a kernel with what machine learning wants of it
version_added: 0.1.0
description:
  - Reports each option of the kernel document with what was asked, what was found and why it matters, for
    the running kernel or for one that is installed and has not been booted yet, through
    C(zernel kernel report).
  - Also checks the kernel's type information (BTF), and in it the functions that BPF schedulers call. Some
    builds of good versions have these malformed, and then no BPF scheduler can be loaded.
options:
  release:
    description:
      - The kernel's release, as C(uname -r) gives it. Without it, the running kernel is looked at.
    type: str
  require:
    description:
      - What the kernel must have. The module fails when something is missing.
      - Names of options, with or without C(CONFIG_); names of areas, such as V(sched_ext); V(btf); V(kfuncs).
    type: list
    elements: str
    default: []
  root:
    description:
      - The directory that holds C(proc), C(sys), C(boot) and C(lib). For tests.
    type: path
    default: /
extends_documentation_fragment:
  - zernel.fleet.agent
  - zernel.fleet.agent.info
"""

EXAMPLES = r"""
- name: Ask whether the running kernel can run a BPF scheduler
  zernel.fleet.zernel_kernel_info:
    require: [SCHED_CLASS_EXT, btf, kfuncs]

- name: Look at a kernel before the host boots it
  zernel.fleet.zernel_kernel_info:
    release: 7.3.4+deb13-amd64
  register: candidate
"""

RETURN = r"""
kernel:
  description: The release of the kernel that was looked at.
  type: str
  returned: success
  sample: 7.3.4+deb13-cloud-amd64
running:
  description: Whether it is the running one.
  type: bool
  returned: success
  sample: true
config_source:
  description: The file that the options come from, or null where none can be read.
  type: str
  returned: success
  sample: /boot/config-7.3.4+deb13-cloud-amd64
summary:
  description: How many options are V(ok), there as a V(module), V(missing) or V(unknown).
  type: dict
  returned: success
  sample: {ok: 24, module: 3, missing: 5, unknown: 0}
btf:
  description: The kernel's type information.
  type: dict
  returned: success
  contains:
    verdict:
      description: V(ok), V(malformed), V(missing) or V(unknown).
      type: str
      sample: ok
    source:
      description: The file that was read.
      type: str
      sample: /sys/kernel/btf/vmlinux
    malformed_kfuncs:
      description: The kernel functions that no BPF program can call.
      type: list
      elements: str
      sample: []
    why:
      description: The reason for a verdict other than V(ok).
      type: str
      sample: ""
options:
  description: One entry per option.
  type: list
  elements: dict
  returned: success
  contains:
    option:
      description: The option's name.
      type: str
      sample: CONFIG_SCHED_CLASS_EXT
    asked:
      description: The value that is wanted.
      type: str
      sample: "y"
    found:
      description: The value in the kernel's configuration, or null where it is not known.
      type: str
      sample: "y"
    verdict:
      description: V(ok), V(module), V(missing) or V(unknown).
      type: str
      sample: ok
    area:
      description: The group that the option belongs to.
      type: str
      sample: sched_ext
    source:
      description: Who asks for it, V(document) or V(zernel).
      type: str
      sample: document
    rationale:
      description: What the option is good for.
      type: str
      sample: "CPU schedulers written in BPF: zernel-scheduler"
    why:
      description: What is lost without it, or why the verdict is what it is.
      type: str
      sample: ""
errors:
  description: On failure, what was required and is missing.
  type: list
  elements: dict
  returned: failure
  sample: [{code: kernel-option-missing, message: "The kernel lacks CONFIG_SCHED_CLASS_EXT=y"}]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.zernel.fleet.plugins.module_utils._zernel import AGENT_ARGUMENTS, ZernelCli

RETURNED = ("kernel", "running", "config_source", "summary", "btf", "options")


def main():
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str"},
            "require": {"type": "list", "elements": "str", "default": []},
            "root": {"type": "path", "default": "/"},
            **AGENT_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    args = ["kernel", "report", "--root=" + module.params["root"]]
    if module.params["release"]:
        args.append("--kernel=" + module.params["release"])
    args += ["--require=" + name for name in module.params["require"]]
    result = ZernelCli(module).run(args)
    module.exit_json(changed=False, **{name: result[name] for name in RETURNED})


if __name__ == "__main__":
    main()
