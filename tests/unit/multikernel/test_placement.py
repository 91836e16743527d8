# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every machine: nobody gets what another has; CPUs and memory are where they should be."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zernel.devicetree.model import (
    CPU_AFFINITIES,
    MEMORY_POLICIES,
    PAGE_BYTES,
    Cpus,
    Device,
    DeviceUse,
    Instance,
    Memory,
    NumaNode,
    Resources,
    System,
)
from zernel.devicetree.units import parse_cpus
from zernel.devicetree.validate import is_valid, validate
from zernel.errors import ZernelError
from zernel.multikernel import allocate, planning
from zernel.multikernel.allocate import Wishes
from zernel.multikernel.placement import Layout
from zernel.topology import Topology

NOWHERE = Path("/nonexistent")
AFFINITIES = st.sampled_from([None, *CPU_AFFINITIES])


class Machine:
    """A host as a test draws it: which CPU is where, and what is free."""

    def __init__(self, system: System, topology: Topology) -> None:
        self.system, self.topology = system, topology
        self.node = {cpu: node.node_id for node in system.resources.numa_nodes for cpu in node.cpus}
        taken = {cpu for instance in system.instances for cpu in instance.cpus}
        self.free = sorted(set(system.resources.cpus.available) - taken)
        owned = taken | set(system.resources.cpus.host_reserved)
        self.whole = [cpu for cpu in self.free if owned.isdisjoint(self.core(cpu))]

    def core(self, cpu: int) -> tuple[int, ...]:
        return self.topology.siblings.get(cpu, (cpu,))

    def on(self, nodes: tuple[int, ...], cpus: list[int]) -> list[int]:
        return [cpu for cpu in cpus if not nodes or self.node.get(cpu) in nodes]


# Drawn from a seed: hypothesis' own choices make most machines tiny, with nothing to decide on them.
SEEDS = st.integers(0, (1 << 64) - 1)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Draw up to 3 sockets of up to 2 nodes; nodes without CPUs or memory, gaps, offline and taken CPUs."""
    rng = random.Random(draw(SEEDS))
    threads = rng.choice([1, 2, 4])
    layout: list[tuple[int, int]] = []  # socket and node of each core
    nodes = 0
    for socket in range(rng.choice([1, 2, 3])):
        for _ in range(rng.choice([1, 2])):
            layout += [(socket, nodes)] * rng.choice([0, 1, 3, 5])
            nodes += 1
    layout = layout or [(0, 0)]
    numbers = list(range(len(layout) * threads + rng.choice([0, 3])))
    if rng.choice([True, False]):
        rng.shuffle(numbers)
    siblings: dict[int, tuple[int, ...]] = {}
    sockets: dict[int, int] = {}
    members: dict[int, list[int]] = {number: [] for number in range(nodes)}
    for at, (socket, node) in enumerate(layout):
        core = tuple(sorted(numbers[at :: len(layout)][:threads]))
        members[node] += core
        siblings |= dict.fromkeys(core, core)
        sockets |= dict.fromkeys(core, socket)
    cpus = sorted(siblings)
    kinds = rng.choice(["f", "fffffffh", "fffhox"])
    state = {cpu: rng.choice(kinds) for cpu in cpus}  # free, the host's, offline, another instance's
    ids = rng.sample(range(nodes + 2), nodes)
    base, ranges = PAGE_BYTES, []
    for _ in range(nodes):
        base += rng.choice([0, 0, PAGE_BYTES])
        ranges.append((base, rng.choice([0, 2, 5, 9]) * PAGE_BYTES))
        base += ranges[-1][1]
    others = tuple(
        Instance(f"i{cpu}", None, (cpu,), (1 << 40) + cpu * PAGE_BYTES, PAGE_BYTES)
        for cpu in cpus
        if state[cpu] == "x"
    )
    resources = Resources(
        Cpus(
            max(cpus) + 1,
            tuple(cpu for cpu in cpus if state[cpu] == "h"),
            tuple(cpu for cpu in cpus if state[cpu] in "fx"),
        ),
        Memory(base, PAGE_BYTES, PAGE_BYTES, max(base - PAGE_BYTES, PAGE_BYTES)),
        (),
        tuple(NumaNode(ids[at], *ranges[at], tuple(sorted(members[at]))) for at in range(nodes))
        if rng.random() < 0.8
        else (),
    )
    known = rng.random() < 0.8
    return Machine(System(resources, others), Topology(siblings if known else {}, sockets if known else {}))


@given(machines(), SEEDS)
@settings(deadline=None)
def test_a_layout_that_followed_changes_is_that_of_the_state_they_led_to(machine: Machine, seed: int) -> None:
    rng = random.Random(seed)
    followed = Layout(machine.system, machine.topology)
    owners = {one.name: one for one in machine.system.instances}
    for number in range(6):
        name = rng.choice([*owners, f"new-{number}"])
        before = owners.get(name, Instance(name, None, (), 0, PAGE_BYTES))
        free = rng.sample(followed.free, rng.randint(0, len(followed.free)))
        after = before.but(cpus=(*(cpu for cpu in before.cpus if rng.random() < 0.5), *free))
        followed.move(name, before.cpus, after.cpus)
        owners[name] = after
    fresh = Layout(machine.system.but(instances=tuple(owners.values())), machine.topology)
    assert (followed.owners, followed.split, followed.free) == (fresh.owners, fresh.split, fresh.free)


def a_count(data: st.DataObject, highest: int) -> int:
    """Draw a number from 1 to ``highest``, each as likely as the others."""
    return random.Random(data.draw(SEEDS)).randint(1, highest)


def named(machine: Machine, data: st.DataObject) -> tuple[int, ...]:
    rng = random.Random(data.draw(SEEDS))
    likely = rng.choice([0.0, 0.4, 0.8, 1.0])
    return tuple(
        sorted(node.node_id for node in machine.system.resources.numa_nodes if rng.random() < likely)
    )


def chosen(machine: Machine, count: int, wishes: Wishes) -> tuple[int, ...]:
    layout = Layout(machine.system, machine.topology)
    return allocate.choose_cpus(machine.system.resources, layout, count, "new", wishes)


def even(counts: Counter[int], room: Counter[int]) -> bool:
    """Say whether no group has two more than one that could have given another."""
    most = max(counts.values(), default=0)
    return all(counts[key] + 1 >= most or counts[key] == room[key] for key in room)


@given(machines(), st.data(), AFFINITIES)
@settings(deadline=None, max_examples=200)
def test_cpus_are_free_ones_of_the_named_nodes_and_as_many_as_asked(
    machine: Machine, data: st.DataObject, affinity: str | None
) -> None:
    nodes = named(machine, data)
    free, whole = machine.on(nodes, machine.free), machine.on(nodes, machine.whole)
    count = a_count(data, len(free) + 2) - 1
    wishes = Wishes(nodes, affinity)
    if not 0 < count <= len(free):
        with pytest.raises(ZernelError) as caught:
            chosen(machine, count, wishes)
        assert caught.value.problems[0].suggestion
        return
    found = chosen(machine, count, wishes)
    assert len(set(found)) == count
    assert list(found) == sorted(found)
    assert set(found) <= set(free)
    # No core is split while there are whole ones.
    assert set(found) <= set(whole) if count <= len(whole) else set(found) >= set(whole)
    assert found == chosen(machine, count, wishes)


@given(machines(), st.data())
@settings(deadline=None, max_examples=200)
def test_compact_uses_as_few_nodes_as_can_be_and_no_more_cores_than_it_must(
    machine: Machine, data: st.DataObject
) -> None:
    assume(machine.whole)
    count = a_count(data, len(machine.whole))
    found = chosen(machine, count, Wishes(cpu_affinity="compact"))
    rooms = sorted(Counter(machine.node.get(cpu, -1) for cpu in machine.whole).values(), reverse=True)
    fewest = next(number for number in range(1, len(rooms) + 1) if sum(rooms[:number]) >= count)
    assert len({machine.node.get(cpu, -1) for cpu in found}) == fewest
    # Where all cores have the same number of threads, at most one of them is used in part.
    sizes = {len([cpu for cpu in machine.core(one) if cpu in machine.whole]) for one in machine.whole}
    if len(sizes) == 1:
        (size,) = sizes
        assert len({machine.core(cpu) for cpu in found}) == -(-count // size)


@given(machines(), st.data())
@settings(deadline=None, max_examples=200)
def test_spread_is_even_over_nodes_sockets_and_cores(machine: Machine, data: st.DataObject) -> None:
    nodes = named(machine, data)
    whole = machine.on(nodes, machine.whole)
    assume(whole)
    count = a_count(data, len(whole))
    found = chosen(machine, count, Wishes(nodes, "spread"))

    def node(cpu: int) -> int:
        return machine.node.get(cpu, -1)

    assert even(Counter(map(node, found)), Counter(map(node, whole)))
    for one in set(map(node, whole)):
        here, room = [c for c in found if node(c) == one], [c for c in whole if node(c) == one]
        socket = machine.topology.sockets
        assert even(Counter(socket.get(c, -1) for c in here), Counter(socket.get(c, -1) for c in room))
        for where in {socket.get(c, -1) for c in room}:
            cores = Counter(machine.core(c)[0] for c in here if socket.get(c, -1) == where)
            assert even(cores, Counter(machine.core(c)[0] for c in room if socket.get(c, -1) == where))


@given(machines(), st.data())
@settings(deadline=None, max_examples=200)
def test_local_takes_all_that_the_devices_nodes_have_before_others(
    machine: Machine, data: st.DataObject
) -> None:
    assume(machine.whole and machine.system.resources.numa_nodes)
    home = data.draw(st.sampled_from(machine.system.resources.numa_nodes)).node_id
    device = Device("gpu0", "gpu", numa_node=home)
    machine.system = machine.system.but(resources=machine.system.resources.but(devices=(device,)))
    count = a_count(data, len(machine.whole))
    found = chosen(machine, count, Wishes((), "local", None, (DeviceUse("gpu0"),)))
    near = [cpu for cpu in machine.whole if machine.node.get(cpu) == home]
    assert set(found) <= set(near) if count <= len(near) else set(found) >= set(near)


@given(SEEDS, st.sampled_from([None, *MEMORY_POLICIES]))
@settings(deadline=None, max_examples=400)
def test_memory_is_free_and_where_the_policy_wants_it(seed: int, policy: str | None) -> None:
    rng = random.Random(seed)
    at, found = PAGE_BYTES, []
    for number in rng.sample(range(6), rng.choice([1, 2, 3, 4])):
        at += rng.choice([0, 0, 0, PAGE_BYTES])
        found.append(NumaNode(number, at, rng.choice([0, 2, 5, 9, 9]) * PAGE_BYTES, ()))
        at += found[-1].memory_size
    pool = Memory(at + PAGE_BYTES, 0, PAGE_BYTES, at)
    pages = range(pool.pool_base, pool.pool_end, PAGE_BYTES)
    taken = set(rng.sample(pages, rng.choice([0, 0, 1, len(pages) // 5])))
    holders = tuple(Instance(f"m{at}", None, (), at, PAGE_BYTES) for at in taken)
    system = System(Resources(Cpus(1, (), (0,)), pool, (), tuple(found)), holders)
    likely = rng.choice([0.0, 0.7, 1.0, 1.0])
    nodes = tuple(sorted(node.node_id for node in found if rng.random() < likely))
    size = rng.randint(1, 10) * PAGE_BYTES
    node_of = {
        page: node.node_id
        for node in system.resources.numa_nodes
        for page in range(node.memory_base, node.memory_base + node.memory_size, PAGE_BYTES)
    }

    def covered(base: int) -> list[int]:
        return list(range(base, base + size, PAGE_BYTES))

    free = [b for b in pages if b + size <= pool.pool_end and not taken.intersection(covered(b))]
    near = [b for b in free if all(node_of.get(page) in nodes for page in covered(b))] if nodes else free
    wanted = near if policy == "bind" else free
    if not wanted:
        with pytest.raises(ZernelError) as caught:
            allocate.choose_memory(system, size, "new", Wishes(nodes, None, policy))
        assert any("Largest free block" in line for line in caught.value.problems[0].explanation)
        return
    base = allocate.choose_memory(system, size, "new", Wishes(nodes, None, policy))
    assert base in wanted
    whole = {node.node_id for node in system.resources.numa_nodes if node.memory_size} & set(nodes)
    divided = [b for b in near if {node_of[page] for page in covered(b)} >= whole] if len(whole) > 1 else []
    if policy == "interleave" and divided:
        assert base in divided
        ends = sorted(whole, key=lambda node: next(p for p, n in sorted(node_of.items()) if n == node))

        def uneven(at: int) -> int:
            shares = Counter(node_of[page] for page in covered(at))
            return abs(shares[ends[0]] - shares[ends[-1]])

        assert uneven(base) <= min(map(uneven, divided)) + 1
    else:
        assert base == (near or free)[0]


def small(free: str, *cores: tuple[int, ...], host: tuple[int, ...] = ()) -> Machine:
    """Return a machine of one node whose CPUs in ``free`` are free."""
    cpus = parse_cpus(free, "free")
    every = [cpu for core in cores for cpu in core]
    resources = Resources(Cpus(max(every) + 1, host, cpus), Memory(1 << 20, 4096, 4096, 1 << 19))
    siblings = {cpu: core for core in cores for cpu in core}
    return Machine(System(resources), Topology(siblings, dict.fromkeys(every, 0)))


def test_compact_takes_a_whole_core_rather_than_parts_of_two() -> None:
    # CPUs 3 and 4 are offline: their cores have one CPU each that can be given.
    machine = small("0-2,5", (0, 3), (1, 4), (2, 5))
    assert chosen(machine, 2, Wishes()) == (2, 5)
    assert chosen(machine, 3, Wishes()) == (1, 2, 5)


def test_compact_takes_neighbours_although_numbers_are_missing_between_them() -> None:
    machine = small("0-1,10-13", (0,), (1,), (10,), (11,), (12,), (13,))
    assert chosen(machine, 3, Wishes()) == (0, 1, 10)


def test_spread_counts_what_it_had_to_take_of_whole_cores() -> None:
    # Node 0 has two whole cores of one thread; on both nodes there are parts of the host's cores.
    nodes = (NumaNode(0, 0, 1 << 20, (0, 1, 2, 3, 8, 9)), NumaNode(1, 1 << 20, 1 << 20, (4, 5, 6, 7)))
    machine = small("0-3,5,7", (0,), (1,), (2, 8), (3, 9), (4, 5), (6, 7), host=(4, 6, 8, 9))
    machine.system = machine.system.but(resources=machine.system.resources.but(numa_nodes=nodes))
    assert chosen(machine, 4, Wishes(cpu_affinity="spread")) == (0, 1, 5, 7)


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_all_orders_of_creating_and_deleting_keep_everyone_apart(data: st.DataObject) -> None:
    devices = (
        Device("eth0", "ethernet", sriov_vfs=4, available_vfs=(0, 1, 2, 3), numa_node=1),
        Device("gpu0", "gpu", numa_node=0),
    )
    nodes = tuple(NumaNode(at, at << 20, 1 << 20, tuple(range(at * 8, at * 8 + 8))) for at in range(2))
    memory = Memory(2 << 20, 1 << 16, 1 << 16, (2 << 20) - (1 << 16))
    system = System(Resources(Cpus(16, (0,), tuple(range(1, 16))), memory, devices, nodes))
    uses = [DeviceUse("eth0", vf=number) for number in range(4)] + [DeviceUse("gpu0")]
    for number in range(data.draw(st.integers(1, 10))):
        if system.instances and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(system.instances))
            system = system.but(instances=tuple(i for i in system.instances if i != gone))
            continue
        request = planning.Request(
            f"i{number}",
            data.draw(st.integers(1, 200)) * PAGE_BYTES,
            cpu_count=data.draw(st.integers(1, 6)),
            devices=tuple(data.draw(st.sets(st.sampled_from(uses), max_size=2))),
            numa_nodes=data.draw(st.sampled_from([(), (0,), (1,), (0, 1)])),
            cpu_affinity=data.draw(AFFINITIES),
            memory_policy=data.draw(st.sampled_from([None, *MEMORY_POLICIES])),
        )
        instance, problems = planning.plan(system, request, NOWHERE)
        assert (instance, problems) == planning.plan(system, request, NOWHERE)
        assert all(problem.suggestion for problem in problems)
        if not is_valid(problems):
            continue
        system = system.but(instances=(*system.instances, instance))
        assert is_valid(validate(system))
        owned = [cpu for one in system.instances for cpu in one.cpus]
        pages = [p for one in system.instances for p in range(one.memory_base, one.memory_end, PAGE_BYTES)]
        given_away = [use for one in system.instances for use in one.devices]
        for things in (owned, pages, given_away, [one.id for one in system.instances]):
            assert len(things) == len(set(things))
        if instance.numa_nodes:
            assert {cpu // 8 for cpu in instance.cpus} <= set(instance.numa_nodes)
        if instance.memory_policy == "bind":
            near = instance.numa_nodes or {cpu // 8 for cpu in instance.cpus}
            assert {
                page >> 20 for page in range(instance.memory_base, instance.memory_end, PAGE_BYTES)
            } <= set(near)
