# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules for numa-nodes, cpu-affinity and memory-policy: what was asked for is there, or it is said.

A node that does not exist, a CPU outside of the named nodes and memory outside of those it is bound to are
errors. What only costs time (memory that is not local, CPUs further apart than need be) is a warning.
"""

from __future__ import annotations

from zernel.devicetree.device_rules import InstanceCheck
from zernel.devicetree.free import (
    divided_fit,
    first_fit,
    free_memory,
    memory_shares,
    node_memory,
    within,
    without,
)
from zernel.devicetree.model import CPU_AFFINITIES, MEMORY_POLICIES, Instance, System
from zernel.devicetree.reading import Origins
from zernel.devicetree.units import format_cpus, format_size
from zernel.errors import Problem

TYPE_CHECKING = False  # as typing's, whose import would cost every command 3 ms
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def check_topology(system: System, origins: Origins) -> list[Problem]:
    """Return everything that is wrong with where the instances are on the host, given what they ask for."""
    check = _Check(system, origins)
    for index, instance in enumerate(system.instances):
        check.check(index, instance)
    return check.problems


def memory_nodes(system: System, instance: Instance) -> tuple[int, ...]:
    """Return the NUMA nodes that an instance's memory policy means: those it names, or those of its CPUs."""
    if instance.numa_nodes:
        return instance.numa_nodes
    cpus = set(instance.cpus)
    return tuple(node.node_id for node in system.resources.numa_nodes if not cpus.isdisjoint(node.cpus))


class _Check(InstanceCheck):
    def __init__(self, system: System, origins: Origins) -> None:
        super().__init__(system, origins)
        self.known = {node.node_id for node in self.resources.numa_nodes}
        self.node_of = {cpu: node.node_id for node in self.resources.numa_nodes for cpu in node.cpus}
        taken = {cpu for instance in system.instances for cpu in instance.cpus}
        self.free = self.by_node(set(self.resources.cpus.available).difference(taken))
        self.device_nodes = {device.name: device.numa_node for device in self.resources.devices}

    def by_node(self, cpus: Iterable[int]) -> dict[int, list[int]]:
        """Return the CPUs by NUMA node; those on none are left out."""
        found: dict[int, list[int]] = {}
        for cpu in sorted(cpus):
            node = self.node_of.get(cpu)
            if node is not None:
                found.setdefault(node, []).append(cpu)
        return found

    def check(self, index: int, instance: Instance) -> None:
        self.check_word(index, "cpu-affinity", "CPU affinity", instance.cpu_affinity, CPU_AFFINITIES)
        self.check_word(index, "memory-policy", "Memory policy", instance.memory_policy, MEMORY_POLICIES)
        missing = sorted(set(instance.numa_nodes) - self.known)
        if missing:
            self.add(
                "numa-not-found",
                f"NUMA node {format_cpus(missing)} does not exist"
                if len(missing) == 1
                else f"NUMA nodes {format_cpus(missing)} do not exist",
                index,
                "numa-nodes",
                current_state=f"NUMA nodes: {format_cpus(self.known)}",
                suggestion="Use one of the nodes of the baseline's topology"
                if self.known
                else "Describe the host's nodes in the baseline's topology, or name no nodes",
            )
            return
        self.check_cpu_nodes(index, instance)
        if instance.cpu_affinity is not None and self.known:
            self.check_affinity(index, instance)
        if not instance.memory_bytes:
            return
        if instance.memory_policy in MEMORY_POLICIES:
            self.check_memory_policy(index, instance)
        elif instance.memory_policy is None:
            nodes = instance.numa_nodes or {self.node_of[cpu] for cpu in instance.cpus if cpu in self.node_of}
            if nodes:
                self.check_near(index, instance, nodes)

    def check_word(self, index: int, name: str, what: str, word: str | None, words: tuple[str, ...]) -> None:
        if word is None or word in words:
            return
        from difflib import get_close_matches  # 3 ms: only where there is something to say

        close = get_close_matches(word, words, 1)
        self.add(
            f"{name}-unknown",
            f"{what} '{word[:40]}' is unknown",
            index,
            name,
            explanation=(f"There are: {', '.join(words)}",),
            suggestion=f'Use "{(close or words)[0]}"',
            did_you_mean=tuple(close),
        )

    # -- CPUs -----------------------------------------------------------------------------------------------

    def check_cpu_nodes(self, index: int, instance: Instance) -> None:
        if not instance.numa_nodes:
            return
        wanted = set(instance.numa_nodes)
        outside = sorted({cpu for cpu in instance.cpus if self.node_of.get(cpu) not in wanted})
        if not outside:
            return
        free = sorted(cpu for node in wanted for cpu in self.free.get(node, ()))
        inside = [cpu for cpu in instance.cpus if cpu not in outside]
        others = sorted({self.node_of[cpu] for cpu in instance.cpus if cpu in self.node_of})
        nodes = format_cpus(instance.numa_nodes)
        verb = "is" if len(outside) == 1 else "are"
        self.add(
            "numa-cpu-outside",
            f"CPU{'s' * (len(outside) != 1)} {format_cpus(outside)} {verb} not on NUMA node {nodes}",
            index,
            "numa-nodes",
            explanation=(
                f"Requested NUMA nodes: {nodes}",
                f"Requested CPUs: {self.told(instance.cpus)}",
            ),
            suggestion=(
                f"Change {instance.name} to use CPUs {format_cpus([*inside, *free[: len(outside)]])}"
                if len(free) >= len(outside)
                else f"Use NUMA node{'s' * (len(others) != 1)} {format_cpus(others)}"
                if others
                else f"Remove CPUs {format_cpus(outside)}: they are on no NUMA node"
            ),
            locations=self.origins.at("instances", index, "numa-nodes")
            + self.origins.at("instances", index, "cpus"),
        )

    def told(self, cpus: Iterable[int]) -> str:
        """Return CPUs with their nodes: ``0-3 (node 0), 8 (node 1)``."""
        numbers = set(cpus)
        parts = [
            f"{format_cpus(found)} (node {node})" for node, found in sorted(self.by_node(numbers).items())
        ]
        nowhere = [cpu for cpu in numbers if cpu not in self.node_of]
        return ", ".join([*parts, *([f"{format_cpus(nowhere)} (no node)"] if nowhere else [])])

    def check_affinity(self, index: int, instance: Instance) -> None:
        own = {node: len(cpus) for node, cpus in self.by_node(set(instance.cpus)).items()}
        wanted = instance.numa_nodes or tuple(sorted(self.known))
        room = {node: own.get(node, 0) + len(self.free.get(node, ())) for node in wanted}
        if instance.cpu_affinity == "compact":
            self.check_compact(index, instance, own, room)
        elif instance.cpu_affinity == "spread":
            self.check_spread(index, instance, own)
        elif instance.cpu_affinity == "local":
            self.check_local(index, instance, own)

    def far(self, code: str, category: str, index: int, suggestion: str, *explanation: str) -> None:
        """Warn that CPUs are not where their affinity wants them."""
        instance = self.system.instances[index]
        self.add(
            code,
            category,
            index,
            "cpu-affinity",
            explanation=(*explanation, f"{instance.name} uses CPUs: {self.told(instance.cpus)}"),
            suggestion=suggestion,
            note="Work that crosses NUMA nodes is slower",
            severity="WARNING",
        )

    def check_compact(
        self, index: int, instance: Instance, own: dict[int, int], room: dict[int, int]
    ) -> None:
        count, needed = sum(own.values()), 0
        for most in sorted(room.values(), reverse=True):
            if count <= 0:
                break
            count -= most
            needed += 1
        if len(own) > needed and count <= 0:
            self.far(
                "cpu-not-compact",
                f"CPUs are on {len(own)} NUMA nodes, {needed} would be enough",
                index,
                f"Create {instance.name} anew with --cpu-count={len(set(instance.cpus))}"
                " --cpu-affinity=compact",
            )

    def check_spread(self, index: int, instance: Instance, own: dict[int, int]) -> None:
        wanted = instance.numa_nodes or tuple(sorted(self.known))
        most = max(own.values(), default=0)
        short = [node for node in wanted if own.get(node, 0) + 1 < most and self.free.get(node)]
        if short:
            self.far(
                "cpu-not-spread",
                "CPUs are not spread evenly over the NUMA nodes",
                index,
                f"Use more CPUs of NUMA node {format_cpus(short)}:"
                f" {format_cpus([cpu for node in short for cpu in self.free[node]])} are free",
            )

    def check_local(self, index: int, instance: Instance, own: dict[int, int]) -> None:
        attached = {
            str(use): node
            for use in instance.devices
            if (node := self.device_nodes.get(use.device)) is not None
        }
        unknown = [str(use) for use in instance.devices if str(use) not in attached]
        if unknown and len(self.known) > 1:
            self.far(
                "device-node-unknown",
                f"The NUMA node of {', '.join(unknown)} is not known",
                index,
                "Give the device its 'numa-node' in the baseline",
                "CPUs cannot be chosen near it",
            )
        if attached and not own.keys() <= set(attached.values()):
            near = [cpu for node in sorted(set(attached.values())) for cpu in self.free.get(node, ())]
            self.far(
                "cpu-not-local",
                "CPUs are not local to the devices",
                index,
                f"Use CPUs near the devices: {format_cpus(near)} are free"
                if near
                else "Free CPUs on the devices' nodes, or use other devices",
                "Devices: " + ", ".join(f"{use} (node {node})" for use, node in attached.items()),
            )
        elif not attached and len(own) > 1:
            self.far(
                "cpu-not-local",
                f"CPUs are on {len(own)} NUMA nodes",
                index,
                "Use fewer CPUs, or free some on one node",
            )

    # -- memory ---------------------------------------------------------------------------------------------

    def check_memory_policy(self, index: int, instance: Instance) -> None:
        nodes = tuple(node for node in memory_nodes(self.system, instance) if node in self.known)
        if not self.known:
            bind = instance.memory_policy == "bind"
            self.add(
                "memory-policy-without-nodes",
                f"Memory policy '{instance.memory_policy}' {'cannot be kept' if bind else 'has no effect'}",
                index,
                "memory-policy",
                explanation=("The baseline describes no NUMA nodes",),
                suggestion="Describe the host's nodes in the baseline's topology, or leave the policy out",
                severity="ERROR" if bind else "WARNING",
            )
            return
        if not nodes:
            return  # it has no CPUs on any node: that is told elsewhere, or concerns no node
        if instance.memory_policy == "interleave":
            self.check_interleave(index, instance, nodes)
        else:
            self.check_near(index, instance, nodes)

    def shares(self, instance: Instance) -> tuple[dict[int | None, int], str]:
        """Return the memory by node, and the same in words."""
        shares = memory_shares(self.resources, instance.memory_base, instance.memory_end)
        words = ", ".join(
            f"{format_size(held)} on {'no NUMA node' if node is None else f'NUMA node {node}'}"
            for node, held in shares.items()
        )
        return shares, words

    def check_near(self, index: int, instance: Instance, nodes: Collection[int]) -> None:
        shares, words = self.shares(instance)
        if shares.keys() <= set(nodes):
            return
        bind = instance.memory_policy == "bind"
        ranges = node_memory(self.resources, nodes)
        gaps = within(free_memory(self.resources.memory, without(self.system, index)), ranges)
        base = first_fit(gaps, instance.memory_bytes)
        start, end = max(gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0))
        named = format_cpus(nodes)
        self.add(
            "memory-outside-nodes" if bind else "memory-not-local",
            f"Memory is {'bound to' if bind else 'not local to'} NUMA node {named}"
            f"{' and lies outside of it' if bind else ''}",
            index,
            "memory-base" if instance.memory_policy is None else "memory-policy",
            explanation=(
                f"{instance.name} memory: {instance.memory_base:#x} - {instance.memory_end:#x}: {words}",
                *(f"Memory of NUMA node {named}: {low:#x} - {high:#x}" for low, high in ranges[:4]),
                *(() if ranges else (f"NUMA node {named} has no memory",)),
            ),
            suggestion=(
                f"Change memory-base to {base:#x}"
                if base is not None
                else f"Use {format_size(end - start)} or less: largest free block there is"
                f" {format_size(end - start)} at {start:#x}"
                if gaps
                else f"Nothing is free there: free memory on NUMA node {named}, or use other nodes"
            ),
            note=None if bind else "Memory of another node is slower",
            locations=self.origins.at("instances", index, "memory-policy")
            + self.origins.at("instances", index, "memory-base"),
            severity="ERROR" if bind else "WARNING",
        )

    def check_interleave(self, index: int, instance: Instance, nodes: tuple[int, ...]) -> None:
        """Say what of an interleave there is: an instance's memory is one range, whose pages lie in order."""
        shares, words = self.shares(instance)
        on_all = len(nodes) > 1 and set(nodes) <= shares.keys()
        better, border = None, ""
        if not on_all:
            memory, others, size = self.resources.memory, without(self.system, index), instance.memory_bytes
            better = divided_fit(self.resources, free_memory(memory, others), nodes, size)
            alone = divided_fit(self.resources, free_memory(memory, ()), nodes, size)
            if better is None and alone is not None:
                inside = [o.name for o in others if o.memory_base < alone + size and alone < o.memory_end]
                border = f"Move {' and '.join(inside[:4])} away from the nodes' border"
        self.add(
            "memory-not-interleaved",
            "Memory is divided between NUMA nodes, not interleaved"
            if on_all
            else "Memory is not interleaved",
            index,
            "memory-policy",
            explanation=(
                "A kernel instance has one range of memory, whose pages follow each other",
                f"{instance.name} memory: {instance.memory_base:#x} - {instance.memory_end:#x}: {words}",
                *(() if len(nodes) > 1 else (f"There is one NUMA node only to lie on: {nodes[0]}",)),
            ),
            suggestion=(
                f"Change memory-base to {better:#x}, which has a part of each node"
                if better is not None
                else "Interleave in the instance, where it pays: numactl --interleave=all PROGRAM"
                if on_all
                else f"{border or 'Name nodes whose memory has neighbouring addresses'},"
                " or use memory-policy local or bind"
            ),
            severity="WARNING",
        )
