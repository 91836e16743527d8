# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) The Zernel project
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a host is to be split into kernel instances, and what is against it."""

from __future__ import annotations

import json
from pathlib import Path

ROOT_ARGUMENT = {"multikernel_root": {"type": "path"}}
"""The option of the C(zernel.fleet.multikernel) documentation fragment, for a module's argument_spec."""

SIMULATED = "SIMULATED: 'zernel simulate multikernel' stands in for the kernel, and nothing of this is real."

PROPOSAL = {"host_cpus": {"type": "str"}, "pool_size": {"type": "str"}, "pool_base": {"type": "str"}}
"""Module options that shape the baseline which the agent proposes for a host."""

PLAN = {
    "baseline": {"type": "bool", "default": False},
    "instances": {"type": "bool", "default": False},
    "simulate": {"type": "bool", "default": False},
}
"""Module options: whether there must be a baseline, and instances, and whether these are simulated."""

STATES = ("present", "absent", "loaded", "started", "stopped")
"""The states of an instance and of its kernel."""

OF_KERNEL = ("state", "kernel", "initrd", "cmdline", "force")
"""What the role's list says of an instance's kernel; a declaration is about its resources."""

KEPT = (
    "# SPDX-License-Identifier: GPL-3.0-or-later\n"
    "# Managed by Ansible (zernel.fleet.zernel_instances): what 'zernel apply' creates again at boot.\n"
)
"""The head of the file that keeps declarations."""

REAL = "This host's kernel has the multikernel file system itself. Set zernel_multikernel_simulate to false."
NONE = (
    "zernel_multikernel_instances declares instances, and the running kernel has no multikernel file system. "
    "Boot a multikernel kernel, or set zernel_multikernel_simulate to true to try them without one."
)


def environment(root):
    """Return the environment in which the agent works on the multikernel file system at C(root), if any."""
    return {"ZERNEL_MULTIKERNEL_ROOT": root} if root else None


def refuse_hyphen(module, name):
    """Fail for a name that the command would take for an option; every other name it judges itself."""
    if name.startswith("-"):
        module.fail_json(msg="Invalid instance name: %r begins with a hyphen" % name)


def hardware_words(proposal):
    """Return the words after C(zernel) that show the hardware and the baseline proposed for it."""
    return ["show", "--hardware", *_proposal_words(proposal)]


def judging_words(proposal, directory):
    """Return the words after C(zernel) that judge declared instances by the baseline proposed for a host."""
    return ["apply", "--hardware", "--directory=%s" % directory, *_proposal_words(proposal)]


def _proposal_words(proposal):
    return ["--%s=%s" % (name.replace("_", "-"), proposal[name]) for name in PROPOSAL if proposal[name]]


def undeclarable(instances, option):
    """Return an error, as the agent's, for each instance of an option that is not to be there.

    A declaration says what there shall be: one of an instance that is to be C(absent), or that has a state
    which does not exist, would create it.
    """
    errors = []
    for index, instance in enumerate(instances):
        if _is_declarable(instance):
            continue
        state = instance["state"]
        said = "its state is %r" % (state,)
        what = (
            "this is about instances that there shall be" if state == "absent" else "there is no such state"
        )
        delete = "Delete it with zernel.fleet.zernel_instance, and leave it out here"
        errors.append(
            {
                "code": "not-declarable",
                "message": "%s, entry %d: %s, and %s" % (option, index + 1, said, what),
                "instance": instance.get("name"),
                "suggestion": delete if state == "absent" else "Use one of: %s" % ", ".join(STATES),
            }
        )
    return errors


def _is_declarable(instance):
    state = instance.get("state", "present")
    return state in STATES and state != "absent"


def write_declarations(instances, directory, option):
    """Write each instance of an option to a file of its own, but for those that C(undeclarable) names.

    Returns file to what to call it in a problem.
    """
    names = {}
    for index, instance in enumerate(instances):
        if not _is_declarable(instance):
            continue
        path = Path(directory) / ("%04d.yaml" % index)
        path.write_text(json.dumps(_held(instance)), encoding="utf-8")
        names[str(path)] = "%s, entry %d" % (option, index + 1)
    return names


def declarations(instances):
    """Return one file of C(/etc/zernel/instances.d) that declares all of them; none for no instances."""
    parts = [
        "".join("%s: %s\n" % (key, json.dumps(value)) for key, value in _held(one).items())
        for one in instances
    ]
    return "---\n".join([KEPT, *parts]) if parts else ""


def _held(instance):
    """Return what a declaration holds of an entry: all but what is about its kernel."""
    return {key: value for key, value in instance.items() if key not in OF_KERNEL}


def conflicts(hardware, plan, other_kernel=False):
    """Return what is wrong with a host for the plan, given what C(zernel show --hardware) said.

    With C(other_kernel), what depends on the running kernel is left out.
    """
    real = hardware["hardware"]["multikernel"]
    if real and plan["simulate"] and not other_kernel:
        return [REAL]
    if plan["instances"] and not real and not plan["simulate"] and not other_kernel:
        return [NONE]
    wanted = plan["simulate"] or plan["baseline"] or plan["instances"]
    if hardware["baseline"] is None and (real or wanted):
        return sentences("Kernel instances", hardware["errors"])
    return []


def sentences(about, errors):
    """Return the agent's errors as sentences, each with what it is about and what to do."""
    problems = []
    for error in errors:
        subject = " ".join(filter(None, (about, error.get("instance"))))
        said = "%s: %s." % (subject, error["message"].rstrip("."))
        problems.append(" ".join(filter(None, (said, error.get("suggestion")))))
    return problems
