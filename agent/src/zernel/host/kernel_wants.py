# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel options that the mission's kernel document asks for, each with its reason, as data.

``DOCUMENT`` are the document's, in its order; ``ZERNEL`` are those that the agent needs besides.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Want:
    """One option. ``asked`` is ``y`` or a number.

    ``module``: a module serves as well as a built-in. ``implied_by``: not a symbol of Kconfig today; it comes
    with that option. ``evidence``: a path that exists in a running kernel that has the option, for hosts
    whose configuration cannot be read. ``lack``: what is lost without it, where that needs saying.
    """

    option: str
    asked: str
    area: str
    rationale: str
    module: bool = False
    implied_by: str | None = None
    evidence: str | None = None
    lack: str = ""
    source: str = "document"


_TUNED_ONLY = "Debian builds with 250; only a kernel of one's own has 1000"

DOCUMENT: tuple[Want, ...] = (
    Want(
        "CONFIG_SCHED_CLASS_EXT",
        "y",
        "sched_ext",
        "CPU schedulers written in BPF: zernel-scheduler",
        evidence="sys/kernel/sched_ext",
        lack="zernel-scheduler cannot run; Debian has it in kernels from 7.0 on",
    ),
    Want("CONFIG_BPF", "y", "sched_ext", "The BPF machine"),
    Want(
        "CONFIG_BPF_SYSCALL",
        "y",
        "sched_ext",
        "Load BPF programs: scheduler and probes",
        evidence="proc/sys/kernel/unprivileged_bpf_disabled",
    ),
    Want(
        "CONFIG_BPF_JIT",
        "y",
        "sched_ext",
        "BPF programs as machine code; struct_ops needs it",
        evidence="proc/sys/net/core/bpf_jit_enable",
    ),
    Want(
        "CONFIG_BPF_JIT_ALWAYS_ON",
        "y",
        "sched_ext",
        "Never interpret BPF: predictable cost",
        lack="the interpreter stays in the kernel; net.core.bpf_jit_enable decides",
    ),
    Want(
        "CONFIG_TRANSPARENT_HUGEPAGE",
        "y",
        "memory",
        "Huge pages for tensors without reserving any",
        evidence="sys/kernel/mm/transparent_hugepage",
    ),
    Want(
        "CONFIG_TRANSPARENT_HUGEPAGE_ALWAYS",
        "y",
        "memory",
        "Huge pages for every program, not only those that ask",
        lack="only a default: the role tuning sets it at run time",
    ),
    Want(
        "CONFIG_HUGETLB_PAGE",
        "y",
        "memory",
        "Reserved huge pages for DMA buffers",
        evidence="proc/sys/vm/nr_hugepages",
    ),
    Want(
        "CONFIG_HUGETLBFS",
        "y",
        "memory",
        "Reserved huge pages for programs",
        evidence="proc/sys/vm/nr_hugepages",
    ),
    Want("CONFIG_HZ_1000", "y", "timers", "A scheduler tick of 1 ms", lack=_TUNED_ONLY),
    Want("CONFIG_HZ", "1000", "timers", "A scheduler tick of 1 ms", lack=_TUNED_ONLY),
    Want("CONFIG_HIGH_RES_TIMERS", "y", "timers", "Exact sleeping and profiling"),
    Want("CONFIG_NUMA", "y", "numa", "Memory near the CPU that uses it", evidence="sys/devices/system/node"),
    Want(
        "CONFIG_NUMA_BALANCING",
        "y",
        "numa",
        "Move pages to the node that uses them",
        evidence="proc/sys/kernel/numa_balancing",
    ),
    Want(
        "CONFIG_NUMA_BALANCING_DEFAULT_ENABLED",
        "y",
        "numa",
        "Move pages from the first moment",
        lack="only a default: the role tuning sets it at run time",
    ),
    Want(
        "CONFIG_MEMPOLICY",
        "y",
        "numa",
        "Programs choose the node of their memory (numactl, NCCL)",
        implied_by="CONFIG_NUMA",
    ),
    Want(
        "CONFIG_INFINIBAND",
        "y",
        "network",
        "RDMA between hosts",
        module=True,
        lack="no RDMA; Debian's cloud kernels leave it out, its ordinary ones have it",
    ),
    Want(
        "CONFIG_INFINIBAND_USER_ACCESS",
        "y",
        "network",
        "RDMA from programs: NCCL",
        module=True,
        lack="no RDMA from programs; Debian's cloud kernels leave it out",
    ),
    Want(
        "CONFIG_RDMA_RXE",
        "y",
        "network",
        "RDMA over plain Ethernet cards",
        module=True,
        lack="no RoCE in software; Debian's cloud kernels leave it out",
    ),
    Want("CONFIG_TCP_CONG_BBR", "y", "network", "BBR congestion control for training over TCP", module=True),
    Want(
        "CONFIG_IO_URING",
        "y",
        "io",
        "Asynchronous reads of datasets",
        evidence="proc/sys/kernel/io_uring_disabled",
    ),
    Want("CONFIG_BLK_DEV_NVME", "y", "io", "NVMe disks", module=True),
    Want(
        "CONFIG_NVME_MULTIPATH",
        "y",
        "io",
        "Several paths to one NVMe namespace",
        lack="no multipath; hosts with local disks lose nothing",
    ),
    Want("CONFIG_NAMESPACES", "y", "containers", "Containers", evidence="proc/self/ns"),
    Want("CONFIG_CGROUPS", "y", "containers", "Limits and accounting of tenants", evidence="proc/cgroups"),
    Want("CONFIG_CGROUP_SCHED", "y", "containers", "CPU shares of tenants"),
    Want("CONFIG_OVERLAY_FS", "y", "containers", "Container images", module=True),
)

ZERNEL: tuple[Want, ...] = (
    Want(
        "CONFIG_DEBUG_INFO_BTF",
        "y",
        "types",
        "Type information: one BPF object for every kernel",
        evidence="sys/kernel/btf/vmlinux",
        lack="neither the scheduler nor a probe can be loaded",
        source="zernel",
    ),
    Want(
        "CONFIG_UPROBE_EVENTS",
        "y",
        "probes",
        "Probes on libcuda and libnccl",
        lack="zerneld counts nothing",
        source="zernel",
    ),
    Want(
        "CONFIG_BPF_EVENTS",
        "y",
        "probes",
        "BPF programs on probes",
        lack="zerneld counts nothing",
        source="zernel",
    ),
    Want(
        "CONFIG_EXT_GROUP_SCHED",
        "y",
        "tenants",
        "CPU weights of cgroups under a BPF scheduler",
        lack="tenants are weighted by the scheduler alone",
        source="zernel",
    ),
    Want("CONFIG_NET_SCH_FQ", "y", "network", "Paces what BBR sends", module=True, source="zernel"),
)

WANTS = DOCUMENT + ZERNEL
AREAS = tuple(dict.fromkeys(want.area for want in WANTS))
