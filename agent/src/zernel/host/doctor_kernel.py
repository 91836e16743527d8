# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of ``zernel doctor``: the machine's kind, the kernel, BPF and tracing."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
from pathlib import Path

from zernel.errors import Problem, ZernelError
from zernel.host.doctor_host import Finding, Host, State

_KERNEL_SUGGESTION = (
    "Boot a kernel that has it: the role zernel.fleet.kernel installs one (Debian's 7.3 from "
    "trixie-backports, say)"
)
_SYS_BPF = 321  # x86-64

OUR_SCHEDULER = "zernel"
"""Start of the name of Zernel's own scheduler in /sys/kernel/sched_ext/root/ops."""


def architecture(host: Host) -> Finding:
    """x86-64, the only one that the BPF programs are built for."""
    if host.machine == "x86_64":
        return Finding(State.OK, "x86-64", details={"machine": host.machine})
    return Finding(
        State.MISSING,
        f"{host.machine}; Zernel's BPF programs and probes are for x86-64",
        "Use an x86-64 host",
        {"machine": host.machine},
    )


def debian(host: Host) -> Finding:
    """Debian 13, or 12 as far as its packages go (os-release(5))."""
    text = host.text("etc/os-release") or host.text("usr/lib/os-release")
    if text is None:
        return Finding(State.UNKNOWN, "there is no /etc/os-release", "Use Debian 13")
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    values = {name: value.strip("\"'") for name, value in values.items()}
    pretty = values.get("PRETTY_NAME", values.get("ID", "unknown"))
    details: dict[str, object] = {
        "id": values.get("ID"),
        "version": values.get("VERSION_ID"),
        "codename": values.get("VERSION_CODENAME"),
    }
    if values.get("ID") != "debian":
        return Finding(State.MISSING, f"{pretty} is not Debian", "Use Debian 13", details)
    version = values.get("VERSION_ID", "")
    major = int(version.split(".")[0]) if version.split(".")[0].isdecimal() else None
    if major is None:
        return Finding(State.OK, f"{pretty}: newer than Debian 13, not tried", details=details)
    if major < 12:
        return Finding(State.MISSING, f"{pretty} is too old", "Upgrade to Debian 13", details)
    if major == 12:
        reason = f"{pretty}: its own kernel and libbpf run the probes, not the scheduler"
        return Finding(State.OK, reason, "Upgrade to Debian 13 for the scheduler", details)
    return Finding(State.OK, pretty, details=details)


def root(host: Host) -> Finding:
    """Whether this very command may do all its checks."""
    if host.is_root:
        return Finding(State.OK, "running as root")
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    return Finding(
        State.MISSING, f"running as {user}: no attachment was tried", "Run 'sudo zernel doctor' to try them"
    )


def btf(host: Host) -> Finding:
    """Type information, by which one BPF object fits every kernel."""
    found = host.kernel.btf
    details: dict[str, object] = {
        "kernel": host.kernel.release,
        "malformed_kfuncs": list(found.malformed_kfuncs),
    }
    release = host.kernel.release or "(release unknown)"
    if found.verdict in ("ok", "malformed"):
        # Malformed kfuncs stop schedulers, not probes: that is told under sched_ext.
        return Finding(State.OK, f"kernel {release} has it", details=details)
    if found.verdict == "missing":
        reason = f"kernel {release} has no /sys/kernel/btf/vmlinux"
        suggestion = "Boot a kernel with CONFIG_DEBUG_INFO_BTF=y, as every Debian kernel is built"
        return Finding(State.MISSING, reason, suggestion, details)
    return Finding(State.UNKNOWN, found.why, "Run as root", details)


def bpf(host: Host) -> Finding:
    """The bpf system call, libbpf, and (as root) a load of a real object."""
    details: dict[str, object] = {"jit": _jit(host)}
    if not host.live:
        if host.option("BPF_SYSCALL") == "n":
            return Finding(State.MISSING, "the kernel has no bpf system call", _KERNEL_SUGGESTION, details)
        seen = host.text("proc/sys/kernel/unprivileged_bpf_disabled") is not None
        state = State.OK if seen or host.option("BPF_SYSCALL") == "y" else State.UNKNOWN
        word = "the kernel has the bpf system call" if state is State.OK else "cannot be told"
        return Finding(state, word + host.untried, details=details)
    number = _bpf_errno()
    if number == errno.ENOSYS:
        return Finding(State.MISSING, "the kernel has no bpf system call", _KERNEL_SUGGESTION, details)
    if number == errno.EPERM and host.is_root:
        reason = "the bpf system call is forbidden, though this is root"
        return Finding(State.MISSING, reason, "Run on the host, not in a container", details)
    try:
        from zernel.bpf import libbpf

        details["libbpf"] = ".".join(map(str, libbpf.version()))
    except ZernelError as error:
        problem = error.problems[0]
        return Finding(State.MISSING, problem.category, problem.suggestion, details)
    if host.trial is not None and host.trial.not_built:
        reason = "the kernel has the bpf system call; no object is there to try"
        return Finding(State.UNKNOWN, reason, "Install zernel-agent, or run 'make bpf'", details)
    if host.trial is not None and host.trial.load:
        return Finding(State.MISSING, host.trial.load, "See the reason; check the kernel's options", details)
    jit = {0: ", interpreted: slow", None: ""}.get(_jit(host), ", compiled")
    tried = "a program was loaded" if host.trial is not None else "the system call works"
    return Finding(State.OK, f"{tried}{jit}; libbpf {details['libbpf']}{host.untried}", details=details)


def _jit(host: Host) -> int | None:
    """Return /proc/sys/net/core/bpf_jit_enable: 0 interpreted, 1 compiled; only root may read it."""
    text = host.text("proc/sys/net/core/bpf_jit_enable")
    return int(text) if text is not None and text.isdecimal() else None


def _bpf_errno() -> int:
    """Call bpf(2) with a command that does not exist and return the error: EINVAL, EPERM, or ENOSYS."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(_SYS_BPF, 0x7FFFFFFF, None, 0)
    return ctypes.get_errno()


def bpffs(host: Host) -> Finding:
    """Where maps that programs share are pinned."""
    if ("/sys/fs/bpf", "bpf") in host.mounts():
        return Finding(State.OK, "mounted at /sys/fs/bpf")
    return Finding(
        State.MISSING,
        "not mounted at /sys/fs/bpf: what the probes see cannot reach the scheduler",
        "Run 'mount -t bpf bpf /sys/fs/bpf'; systemd does so at boot",
    )


def uprobes(host: Host) -> Finding:
    """Probes on functions of libraries, and (as root) one that really ran."""
    kind = host.text("sys/bus/event_source/devices/uprobe/type")
    if kind is None:
        reason = "the kernel has no uprobe event source (CONFIG_UPROBE_EVENTS)"
        return Finding(State.MISSING, reason, _KERNEL_SUGGESTION)
    trial = host.trial
    if trial is not None and trial.not_built:
        return Finding(State.UNKNOWN, "the kernel has them; not tried (no BPF object)", "Run 'make bpf'")
    if trial is not None and trial.uprobe:
        return Finding(State.MISSING, trial.uprobe, "See the reason; 'zernel doctor' must be run on the host")
    tried = "one was attached to this process and ran" if trial else "the kernel has them"
    return Finding(State.OK, tried + host.untried)


def tracepoints(host: Host) -> Finding:
    """Typed tracepoints (tp_btf), by which probes follow processes."""
    trial = host.trial
    if trial is not None and not trial.not_built:
        if trial.tracepoint:
            return Finding(State.MISSING, trial.tracepoint, _KERNEL_SUGGESTION)
        return Finding(State.OK, "one was attached (sched_process_exit)")
    if host.kernel.btf.verdict in ("ok", "malformed"):
        return Finding(State.OK, f"the kernel's type information has them{host.untried}")
    return Finding(State.MISSING, "they need the kernel's type information (btf)", _KERNEL_SUGGESTION)


def tracefs(host: Host) -> Finding:
    """The tracing file system, which Zernel's own probes do without."""
    places = [place for place, kind in host.mounts() if kind == "tracefs"]
    if places:
        return Finding(State.OK, f"mounted at {places[0]}")
    return Finding(
        State.NOT_NEEDED,
        "not mounted; Zernel's probes do without, other tools want it",
        "Run 'mount -t tracefs tracefs /sys/kernel/tracing' for tools such as bpftrace",
    )


def sched_ext(host: Host) -> Finding:
    """Whether a BPF scheduler can be enabled: kernel, type information, libbpf, and who has it now."""
    from zernel.scheduler import kernel as scheduler_kernel
    from zernel.scheduler import support

    root = Path("/") if host.live else host.root
    state, name = scheduler_kernel.state(root), scheduler_kernel.loaded_scheduler(root)
    ours = name is not None and name.startswith(OUR_SCHEDULER)
    details: dict[str, object] = {
        "state": state,
        "scheduler": name,
        "malformed_kfuncs": list(host.kernel.btf.malformed_kfuncs),
    }
    # What other capabilities tell, or what is no obstacle, is left out.
    known = {"not-root", "cpu"} | ({"scheduler-loaded"} if ours else set())
    problems = [problem for problem in support.check(root) if problem.code not in known]
    if problems:
        reason = "; ".join(_sentence(problem) for problem in problems)
        suggestions = dict.fromkeys(filter(None, (problem.suggestion for problem in problems)))
        return Finding(State.MISSING, reason, "; ".join(suggestions) or None, details)
    return Finding(State.OK, f"{name} is {state}" if ours else "usable; none is enabled", details=details)


def _sentence(problem: Problem) -> str:
    return ": ".join((problem.category, *problem.explanation, *filter(None, (problem.current_state,))))
