# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of ``zernel doctor``: GPUs and their libraries, kernel instances, IOMMU, huge pages."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from zernel.errors import ZernelError
from zernel.gpu import functions, libraries
from zernel.host.doctor_host import Finding, Host, State
from zernel.topology import nvidia_gpus

if TYPE_CHECKING:
    from zernel.multikernel.fs import MultikernelFs


def nvml(host: Host) -> Finding:
    """NVIDIA's management library, through pynvml."""
    found = nvidia_gpus(host.root)
    details: dict[str, object] = {"gpus": found}
    if not found:
        return Finding(State.NOT_NEEDED, "this host has no NVIDIA GPU", details=details)
    if not host.live:
        return Finding(State.UNKNOWN, f"{len(found)} NVIDIA GPUs{host.untried}", details=details)
    try:
        import pynvml
    except ImportError:
        reason = f"{len(found)} NVIDIA GPUs, but the Python module pynvml is not installed"
        return Finding(State.MISSING, reason, "Install Debian's package python3-pynvml", details)
    try:
        pynvml.nvmlInit()
        try:
            driver, number = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetCount()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        suggestion = "Install or reload the NVIDIA driver; 'dmesg' says more"
        return Finding(
            State.MISSING, f"{len(found)} NVIDIA GPUs, but NVML fails: {error}", suggestion, details
        )
    details |= {"driver": str(driver), "nvml_gpus": number}
    return Finding(State.OK, f"driver {driver}, {number} GPUs", details=details)


def libcuda(host: Host) -> Finding:
    """The library whose exports are probed, and how cheap its probes are."""
    copies = libraries.installed(functions.LIBCUDA, host.root)
    if not copies:
        if nvidia_gpus(host.root):
            reason = "no libcuda.so.1 is installed: CUDA programs cannot run, and there is nothing to probe"
            return Finding(State.MISSING, reason, "Install the NVIDIA driver's libcuda1")
        return Finding(State.NOT_NEEDED, "this host has no NVIDIA GPU and no libcuda.so.1")
    found: list[dict[str, object]] = []
    reasons = []
    usable = False
    for copy in copies:
        targets, unusable = libraries.usable(copy, functions.MEMORY)
        slow = [target.function for target in targets if not target.past_compare]
        usable = usable or unusable is None
        found.append(
            {"path": copy.name, "functions": len(targets), "slow_functions": slow, "unusable": unusable}
        )
        speed = "probes are cheap" if not slow else f"{len(slow)} functions with slow probes"
        reasons.append(f"{copy.name}: {unusable or f'{len(targets)} functions, {speed}'}")
    suggestion = None if usable else "Reinstall the NVIDIA driver's libcuda1"
    state = State.OK if usable else State.MISSING
    return Finding(state, "; ".join(reasons), suggestion, {"libraries": found})


def multikernel(host: Host) -> Finding:
    """The multikernel file system that ``zernel show`` would use, real or simulated."""
    from zernel.multikernel import fs

    if not host.live:
        return _multikernel_by_files(host)
    details: dict[str, object] = {"simulated": False}
    try:
        found = fs.open_fs()
    except ZernelError as error:
        problem = error.problems[0]
        details["mount"] = os.environ.get("ZERNEL_MULTIKERNEL_ROOT") or str(fs.DEFAULT_ROOT)
        reason = ": ".join((problem.category, *problem.explanation))
        suggestion = "; ".join(filter(None, (problem.suggestion, problem.alternative)))
        return Finding(State.MISSING, reason, suggestion, details)
    details |= {"mount": str(found.root), "simulated": found.simulated, "wire": _wire(found)}
    return Finding(State.OK, found.label or f"mounted at {found.root}", details=details)


def _wire(found: MultikernelFs) -> str | None:
    """Return the wire format that the kernel's tree tells; None where it tells none yet."""
    from zernel.multikernel import live_tree

    try:
        return live_tree.form(found.baseline())
    except OSError:
        return None


def _multikernel_by_files(host: Host) -> Finding:
    """Tell what another host's files say; the choice is that of ``zernel.multikernel.fs.open_fs``."""
    from zernel.multikernel import fs

    place = fs.DEFAULT_ROOT
    details: dict[str, object] = {"mount": str(place), "simulated": False}
    mounted = host.mounts()
    if (str(place), "multikernel") in mounted:
        return Finding(State.OK, f"mounted at {place}{host.untried}", details=details)
    supported = "multikernel" in (host.text("proc/filesystems") or "").split()
    for simulated in (place,) if supported else (place, fs.SIMULATED_ROOT):
        if (str(simulated), fs.SIMULATED_TYPE) in mounted:
            details |= {"mount": str(simulated), "simulated": True}
            label = fs.MultikernelFs(simulated, simulated=True).label
            return Finding(State.OK, f"{label}{host.untried}", details=details)
    if supported:
        suggestion = f"Run 'mount -t multikernel none {place}', or start zernel-multikernel.service"
        return Finding(
            State.MISSING, f"the kernel has it, but it is not mounted at {place}", suggestion, details
        )
    return Finding(
        State.MISSING,
        "this kernel has no multikernel support",
        "Boot a multikernel kernel; 'zernel simulate multikernel DIR' shows the commands without one",
        details,
    )


def iommu(host: Host) -> Finding:
    """Whether devices can be handed to an instance in isolation."""
    units = sorted(entry.name for entry in (host.root / "sys/class/iommu").glob("*"))
    groups = len(list((host.root / "sys/kernel/iommu_groups").glob("*")))
    asked = [
        word
        for word in (host.text("proc/cmdline") or "").split()
        if re.match(r"(intel_|amd_)?iommu[.=]", word)
    ]
    details: dict[str, object] = {"units": units, "groups": groups, "cmdline": asked}
    if units and groups:
        return Finding(State.OK, f"{len(units)} units, {groups} groups", details=details)
    if asked and any(word.endswith("=off") for word in asked):
        suggestion = f"Remove {' '.join(asked)} from the kernel command line and reboot"
        return Finding(State.MISSING, f"switched off at boot by {' '.join(asked)}", suggestion, details)
    return Finding(
        State.MISSING,
        "the kernel uses none: a device given to an instance could reach all memory",
        "Enable VT-d or AMD-Vi in the firmware, and boot with intel_iommu=on or amd_iommu=on",
        details,
    )


def hugepages(host: Host) -> Finding:
    """Huge pages of 2 MiB and 1 GiB, as reserved on each NUMA node."""
    nodes: dict[str, dict[str, dict[str, int]]] = {}
    for pool in sorted((host.root / "sys/devices/system/node").glob("node*/hugepages/hugepages-*kB")):
        size = f"{int(pool.name.removeprefix('hugepages-').removesuffix('kB')) * 1024}"
        base = str(pool.relative_to(host.root))
        nodes.setdefault(pool.parents[1].name, {})[size] = {
            "total": int(host.text(f"{base}/nr_hugepages") or 0),
            "free": int(host.text(f"{base}/free_hugepages") or 0),
        }
    details: dict[str, object] = {"nodes": nodes}
    sizes = sorted({int(size) for pools in nodes.values() for size in pools})
    if not sizes:
        return Finding(
            State.MISSING, "the kernel offers none", "Boot a kernel with CONFIG_HUGETLBFS=y", details
        )
    parts = []
    for bytes_each in sizes:
        size = str(bytes_each)
        counts = ", ".join(f"{node} {pools[size]['total']}" for node, pools in nodes.items() if size in pools)
        parts.append(f"{_size(bytes_each)}: {counts}")
    return Finding(State.OK, f"reserved {'; '.join(parts)}", details=details)


def _size(size: int) -> str:
    return f"{size >> 30} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"
