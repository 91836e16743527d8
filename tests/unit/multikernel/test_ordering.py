# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps between two states, and the overlays that they become, for any two states."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from zernel.devicetree.model import Cpus, Device, DeviceUse, Instance, Memory, Resources
from zernel.errors import ZernelError
from zernel.multikernel.changes import Step, differences, kept, operations, same, union, within
from zernel.multikernel.ordering import order
from zernel.multikernel.planning import check_busy
from zernel.multikernel.wire_v1 import V1

PAGE = 0x1000
RESOURCES = Resources(
    Cpus(12, (), tuple(range(12))),
    Memory(1 << 40, 0, 0, 1 << 40),
    tuple(Device(f"gpu{number}", "gpu", pci_id=f"0000:0{number}:00.0") for number in range(4)),
)


@st.composite
def states(draw: st.DrawFn) -> tuple[Instance, ...]:
    """Instances that share nothing; each name has a memory base of its own, as updates keep it."""
    owners = draw(st.lists(st.sampled_from("abcd-"), min_size=12, max_size=12))
    devices = draw(st.lists(st.sampled_from("abcd-"), min_size=4, max_size=4))
    return tuple(
        Instance(
            name,
            number + 1,
            cpus,
            number << 20,
            PAGE * draw(st.integers(1, 256)),
            tuple(DeviceUse(f"gpu{at}") for at, owner in enumerate(devices) if owner == name),
        )
        for number, name in enumerate("abcd")
        if (cpus := tuple(cpu for cpu, owner in enumerate(owners) if owner == name))
    )


@given(states(), states())
def test_nothing_is_ever_owned_twice_on_the_way(
    before: tuple[Instance, ...], after: tuple[Instance, ...]
) -> None:
    now = {one.name: one for one in before}
    with suppress(ZernelError):  # all CPUs exchanged with another
        for step in order(before, after):
            assert same(now.get(step.name), step.before)
            if step.before is not None and step.after is not None:
                # The kernel takes away first: a CPU must stay.
                assert kept(step.before, step.after).cpus
            if step.after is None:
                del now[step.name]
            else:
                now[step.name] = step.after
            owned = [item for one in now.values() for item in (*one.cpus, *one.devices)]
            assert len(owned) == len(set(owned))
        assert all(same(now.pop(one.name, None), one) for one in after)
        assert not now


@given(states(), states())
def test_an_overlay_says_all_of_a_step_and_its_inverse_undoes_it(
    before: tuple[Instance, ...], after: tuple[Instance, ...]
) -> None:
    wire = V1()
    will = {one.name: one for one in after}
    for here in before:
        target = will.get(here.name)
        if target is None or same(here, target):
            continue
        there = wire.followed(here, wire.step(Step(here, target), RESOURCES), RESOURCES)
        assert same(there, target)
        assert differences(there, target) == []
        back = wire.followed(there, wire.step(Step(target, here), RESOURCES), RESOURCES)
        assert same(back, here)
        for between in (here, target, kept(here, target), union(here, target)):
            assert within(between, Step(here, target))


def test_what_is_no_part_of_a_step_is_not_taken_for_one() -> None:
    before = Instance("a", 1, (4, 5), 0, 4 * PAGE)
    step = Step(before, before.but(cpus=(4, 5, 6)))
    for other in (before.but(cpus=(4,)), before.but(cpus=(4, 5, 7)), before.but(memory_bytes=PAGE), None):
        assert not within(other, step)
        assert not within(other, Step(None, before))
    assert [str(one) for one in operations(before, before.but(cpus=(4, 5, 6)))] == ["cpu-add 6"]


def test_nothing_is_taken_from_an_instance_that_has_a_kernel() -> None:
    before = Instance("a", 1, (4, 5), 0, 4 * PAGE)
    grow, shrink, delete = (
        Step(before, before.but(cpus=(4, 5, 6))),
        Step(before, before.but(cpus=(4,))),
        Step(before, None),
    )
    for status in ("loaded", "active"):
        assert check_busy({"a": status}, [grow]) == []
        assert "cpu-remove 5" in check_busy({"a": status}, [shrink])[0].render()
        assert check_busy({"a": status}, [delete])[0].code == "instance-busy"
    assert check_busy({"a": "ready"}, [grow, shrink, delete]) == []
