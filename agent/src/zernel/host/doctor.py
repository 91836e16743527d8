# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host can do for Zernel, and why not: the checks behind ``zernel doctor``.

The JSON form, stable from version 0.1 on (fields and capabilities may be added, none changes its meaning)::

    {"status": "ok" | "missing" | "unknown",     # of what is required: all, not all, cannot be told
     "required": ["architecture", ...],          # names of capabilities
     "simulated": false,                         # true when any capability is a simulation
     "capabilities": [
       {"name": "sched_ext",                     # see CHECKS
        "title": "BPF schedulers",
        "state": "ok" | "missing" | "not-needed" | "unknown",
        "required": true,
        "reason": "why it has that state",
        "suggestion": "what to do" | null,
        "details": {...}}]}                      # figures, by name; may be empty
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from zernel.errors import fail
from zernel.host import doctor_hardware as hardware
from zernel.host import doctor_kernel as kernel
from zernel.host.doctor_host import Capability, Finding, Host, State

CHECKS: dict[str, tuple[str, Callable[[Host], Finding]]] = {
    "architecture": ("CPU architecture", kernel.architecture),
    "debian": ("Debian release", kernel.debian),
    "root": ("Rights", kernel.root),
    "btf": ("Kernel type information", kernel.btf),
    "bpf": ("BPF programs", kernel.bpf),
    "bpffs": ("BPF file system", kernel.bpffs),
    "uprobes": ("Probes in libraries", kernel.uprobes),
    "tracepoints": ("Kernel tracepoints", kernel.tracepoints),
    "tracefs": ("Tracing file system", kernel.tracefs),
    "sched_ext": ("BPF schedulers", kernel.sched_ext),
    "nvml": ("NVIDIA management library", hardware.nvml),
    "libcuda": ("CUDA driver library", hardware.libcuda),
    "multikernel": ("Kernel instances", hardware.multikernel),
    "iommu": ("IOMMU", hardware.iommu),
    "hugepages": ("Huge pages", hardware.hugepages),
}
"""Capability: (title, check), in the order in which they are shown."""

REQUIRED = ("architecture", "debian", "btf", "bpf", "uprobes", "tracepoints", "sched_ext")
"""What the daemons cannot do without: the default of ``--require``."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The whole finding."""

    required: tuple[str, ...]
    capabilities: tuple[Capability, ...] = field(default_factory=tuple)

    @property
    def status(self) -> State:
        """Sum up the required capabilities: missing when one is, else unknown when one is."""
        states = {one.state for one in self.capabilities if one.name in self.required}
        for state in (State.MISSING, State.UNKNOWN):
            if state in states:
                return state
        return State.OK

    @property
    def simulated(self) -> bool:
        """Tell whether any capability is a simulation."""
        return any(one.details.get("simulated") for one in self.capabilities)

    def as_dict(self) -> dict[str, object]:
        """Return the JSON form; see this module's text."""
        return {
            "status": self.status.value,
            "required": list(self.required),
            "simulated": self.simulated,
            "capabilities": [one.as_dict(one.name in self.required) for one in self.capabilities],
        }


def diagnose(host: Host, required: Sequence[str] = REQUIRED) -> Diagnosis:
    """Run every check.

    :param required: names of capabilities that must be there.
    :raises ZernelError: for a name that is none.
    """
    for name in required:
        if name not in CHECKS:
            near = difflib.get_close_matches(name, CHECKS, n=1)
            raise fail(
                "unknown-capability",
                f"There is no capability '{name}'",
                suggestion=f"Did you mean '{near[0]}'?" if near else f"Use one of: {', '.join(CHECKS)}",
            )
    try:
        found = tuple(
            Capability.of(name, title, _checked(check, host)) for name, (title, check) in CHECKS.items()
        )
    finally:
        host.close()
    return Diagnosis(tuple(required), found)


def _checked(check: Callable[[Host], Finding], host: Host) -> Finding:
    """Run one check; a file that cannot be read makes that capability unknown, not the command fail."""
    try:
        return check(host)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return Finding(State.UNKNOWN, f"cannot be checked: {error.strerror}{where}", "Run as root")
