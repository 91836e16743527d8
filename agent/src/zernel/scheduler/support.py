# SPDX-License-Identifier: GPL-3.0-or-later
"""Can this host run the scheduler, and why not: asked before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from zernel.bpf import libbpf
from zernel.bpf.btf import VMLINUX, Btf
from zernel.errors import Problem, ZernelError
from zernel.scheduler import kernel

# libbpf 1.4 is the first that lets a struct_ops map's members be set before loading.
MIN_LIBBPF = (1, 4)

_OTHER_KERNEL = (
    "Boot a kernel that runs BPF schedulers: the role zernel.fleet.kernel installs Debian's 7.3 from "
    "trixie-backports"
)


def check(root: Path = Path("/"), btf: Btf | None = None) -> list[Problem]:
    """Return what keeps the scheduler from running on this host; nothing if it can.

    ``btf`` is the kernel's type information, where it was read already. With another ``root`` only its files
    are looked at: not who runs this, nor this machine's CPU and libbpf.
    """
    problems = [] if root != Path("/") else _check_process()
    state = kernel.state(root)
    if state is None:
        problems.append(
            _problem(
                "no-sched-ext",
                "This kernel has no sched_ext",
                f"/{kernel.DIRECTORY}/state does not exist: {_release(root)} was built without "
                "CONFIG_SCHED_CLASS_EXT, or is older than 6.12",
                suggestion=_OTHER_KERNEL,
            )
        )
    problems += check_btf(root, btf)
    problems += _check_isolation(root)
    if state not in (None, "disabled"):
        problems.append(
            _problem(
                "scheduler-loaded",
                "Another BPF scheduler is loaded",
                "The kernel runs one at a time",
                current_state=f"'{kernel.loaded_scheduler(root) or 'name unknown'}' is {state}",
                suggestion="Stop the service that loaded it, or press sysrq-S to return to the kernel's own",
            )
        )
    return problems


def check_btf(root: Path = Path("/"), btf: Btf | None = None) -> list[Problem]:
    """Return the problems with the kernel's type information."""
    try:
        malformed = (btf or Btf.of_kernel(root / VMLINUX.relative_to("/"))).malformed_kfuncs()
    except ZernelError as error:
        return list(error.problems)
    if not malformed:
        return []
    return [
        _problem(
            "malformed-kfuncs",
            "This kernel's type information is malformed: no BPF scheduler can be loaded",
            f"{_release(root)} was built with a pahole that leaves an argument in the prototypes of kernel "
            f"functions that no caller can pass: {', '.join(malformed)}",
            suggestion=_OTHER_KERNEL,
        )
    ]


def _check_process() -> list[Problem]:
    problems = []
    if os.geteuid() != 0:
        problems.append(
            _problem(
                "not-root",
                "zernel-scheduler needs root",
                "Loading a scheduler needs CAP_SYS_ADMIN, CAP_BPF and CAP_PERFMON",
                suggestion="Run 'systemctl start zernel-scheduler', or run it with sudo",
            )
        )
    machine = os.uname().machine
    if machine != "x86_64":
        problems.append(
            _problem(
                "cpu",
                f"This host's CPU is {machine}",
                "The scheduler is built for and tested on x86-64 only",
                suggestion="Use an x86-64 host; the kernel's own scheduler runs on this one",
            )
        )
    try:
        version = libbpf.version()
    except ZernelError as error:
        return [*problems, *error.problems]
    if version < MIN_LIBBPF:
        problems.append(
            _problem(
                "libbpf-old",
                f"libbpf {version[0]}.{version[1]} cannot load a scheduler",
                f"It takes {MIN_LIBBPF[0]}.{MIN_LIBBPF[1]} or later",
                suggestion="Use Debian 13 (libbpf 1.5); Debian 12 can run Zernel's probes, not its scheduler",
            )
        )
    return problems


def _check_isolation(root: Path) -> list[Problem]:
    """sched_ext refuses isolcpus= in its ``domain`` meaning, which is the default one."""
    try:
        words = (root / "proc/cmdline").read_text(errors="replace").split()
    except OSError:
        return []
    found = [word for word in words if isolates_domains(word)]
    if not found:
        return []
    return [
        _problem(
            "isolcpus",
            "The kernel was booted with isolated CPUs",
            f"With {found[0]} it refuses every BPF scheduler",
            suggestion=f"Remove {found[0]} from the kernel command line and reboot; cpusets isolate too",
        )
    ]


def isolates_domains(word: str) -> bool:
    """Tell whether a boot parameter is isolcpus= with domain isolation, which is its default."""
    name, _, value = word.partition("=")
    if name != "isolcpus":
        return False
    flags = {flag for flag in value.split(",") if flag and not flag[0].isdecimal()}
    return not flags or "domain" in flags


def _release(root: Path) -> str:
    try:
        return "kernel " + (root / "proc/sys/kernel/osrelease").read_text().strip()
    except OSError:
        return "the kernel"


def _problem(
    code: str, category: str, explanation: str, *, suggestion: str, current_state: str | None = None
) -> Problem:
    return Problem(
        code=code,
        category=category,
        subject="scheduler",
        explanation=(explanation,),
        current_state=current_state,
        suggestion=suggestion,
    )
