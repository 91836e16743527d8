# SPDX-License-Identifier: GPL-3.0-or-later
"""Tenants from cgroups and GPUs below a root that is not this machine's, and the shares that follow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.scheduler.tables import CLASSES, MAX_TENANTS, MultiTenant, PriorityClass, Tenant
from zernel.scheduler.tenants import Numbers, Share, Shares, Tenants, cgroup_of


class Host:
    """Cgroups and processes below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def cgroup(self, path: str) -> int:
        directory = Path(f"{self.root}/sys/fs/cgroup{path}")
        directory.mkdir(parents=True, exist_ok=True)
        return directory.stat().st_ino

    def process(self, pid: int, cgroup: str) -> None:
        directory = self.root / f"proc/{pid}"
        directory.mkdir(parents=True)
        (directory / "cgroup").write_text(f"12:pids:/other\n1:name=systemd:/other\n0::{cgroup}\n")

    def tenants(self, settings: MultiTenant | None = None, **configured: Tenant) -> Tenants:
        return Tenants(
            settings or MultiTenant(enabled=True), PriorityClass(), configured, Numbers(), self.root
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_weights_are_in_proportion_to_the_gpus_held_by_any_process_below(host: Host) -> None:
    a, b = host.cgroup("/ml.slice/a"), host.cgroup("/ml.slice/b")
    host.process(1, "/ml.slice/a/job")
    host.process(2, "/ml.slice/b/deep/er")
    host.process(3, "/ml.slice/b")
    tenants = host.tenants(a=Tenant("/ml.slice/a"), b=Tenant("/ml.slice/b"))
    default, one, two = tenants.parts({1: [0, 1], 2: [2, 3, 4, 5, 6], 3: [6, 7]})
    assert (one.cgroup_id, two.cgroup_id) == (a, b)
    assert (one.gpus, two.gpus) == (2, 6)
    assert (default.weight, one.weight, two.weight) == (100, 200, 600)


def test_a_gpu_that_tenants_share_is_split(host: Host) -> None:
    host.process(1, "/a")
    host.process(2, "/b")
    parts = host.tenants(a=Tenant("/a"), b=Tenant("/b")).parts({1: [0], 2: [0, 1]})
    assert [part.gpus for part in parts] == [0, 0.5, 1.5]
    assert [part.weight for part in parts] == [100, 50, 150]


def test_a_fixed_weight_and_the_class_count(host: Host) -> None:
    host.process(1, "/a")
    parts = host.tenants(
        MultiTenant(enabled=True, default_priority_class="inference", cpu_only_weight=40, weight_per_gpu=10),
        a=Tenant("/a", class_="background", weight=1000),
        b=Tenant("/b"),
    ).parts({1: [0]})
    assert [(part.priority_class, part.priority) for part in parts] == [
        ("inference", 3),
        ("background", -5),
        ("inference", 3),
    ]
    assert [part.weight for part in parts] == [
        round(40 * 1.25**3),
        round(1000 / 1.25**5),
        round(40 * 1.25**3),
    ]


@pytest.mark.parametrize("name", CLASSES)
def test_what_each_class_is_worth_is_a_setting(host: Host, name: str) -> None:
    settings, one = MultiTenant(enabled=True), {"a": Tenant("/a", class_=name, weight=1000)}
    for worth in (-7, 7):
        classes = PriorityClass(**{name: worth})
        part = Tenants(settings, classes, one, Numbers(), host.root).parts({})[1]
        assert (part.priority, part.weight) == (worth, round(1000 * 1.25**worth))


def test_the_default_tenant_keeps_its_floor_whatever_gpus_it_uses(host: Host) -> None:
    host.process(1, "/elsewhere")
    assert host.tenants(a=Tenant("/a")).parts({1: [0, 1]})[0].weight == 100


@pytest.mark.parametrize(("percent", "weight"), [(0, 100), (10, 200), (50, 1800)])
def test_the_default_tenant_has_a_floor(host: Host, percent: int, weight: int) -> None:
    settings = MultiTenant(enabled=True, default_floor_percent=percent)
    wanting = host.tenants(settings, a=Tenant("/a", weight=600), b=Tenant("/b", weight=1200))
    assert [part.weight for part in wanting.parts({})] == [weight, 600, 1200]


def test_a_cgroup_that_is_not_there_is_told_and_found_once_it_is(host: Host) -> None:
    tenants = host.tenants(a=Tenant("/a"))
    missing = tenants.parts({})[1]
    assert missing.cgroup_id is None
    assert "/sys/fs/cgroup/a" in (missing.absent or "")
    inode = host.cgroup("/a")
    assert tenants.parts({})[1].cgroup_id == inode
    assert tenants.parts({})[1].absent is None


def test_switched_off_there_is_the_default_tenant_alone(host: Host) -> None:
    parts = host.tenants(MultiTenant(), a=Tenant("/a")).parts({})
    assert [(part.index, part.name) for part in parts] == [(0, "default")]


@pytest.mark.parametrize("enabled", [False, True])
def test_gpus_are_counted_with_and_without_tenants_and_unknown_where_nobody_tells(
    host: Host, enabled: bool
) -> None:
    host.process(1, "/a")
    tenants = host.tenants(MultiTenant(enabled=enabled), a=Tenant("/a"))
    assert [part.gpus for part in tenants.parts({1: [0, 1]})] == ([0, 2] if enabled else [2])
    unknown = tenants.parts(None)
    assert {part.gpus for part in unknown} == {None}
    assert {part.weight for part in unknown} == {100}


def test_a_process_that_is_gone_holds_nothing(host: Host) -> None:
    assert host.tenants(a=Tenant("/a")).parts({77: [0]})[0].gpus == 0
    assert cgroup_of(77, host.root) is None


PARTS = st.lists(st.sampled_from(["a", "ab", "b"]), min_size=1, max_size=4).map(lambda p: "/" + "/".join(p))


@given(st.lists(PARTS, unique=True, max_size=6), PARTS)
def test_the_nearest_ancestor_decides(configured: list[str], cgroup: str) -> None:
    tenants = Tenants(
        MultiTenant(enabled=True),
        PriorityClass(),
        {f"t{number}": Tenant(path) for number, path in enumerate(configured)},
        Numbers(),
    )
    ancestors = ["/".join(cgroup.split("/")[:end]) for end in range(len(cgroup.split("/")), 1, -1)]
    nearest = next((path for path in ancestors if path in configured), None)
    index = tenants.index_of(cgroup)
    assert index == (configured.index(nearest) + 1 if nearest else 0)
    assert tenants.name_of(index) == (f"t{index - 1}" if index else "default")


NAMES = st.sampled_from([f"t{number}" for number in range(MAX_TENANTS + 9)])


@given(st.lists(st.lists(NAMES, unique=True, max_size=MAX_TENANTS), max_size=6))
def test_numbers_are_of_one_name_each_and_kept_while_there_are_others(settings: list[list[str]]) -> None:
    numbers = Numbers()
    ever: dict[str, int] = {}
    for names in settings:
        before, found = dict(ever), numbers.of(names)
        assert list(found) == names
        assert len(set(found.values())) == len(names)
        assert all(1 <= number <= MAX_TENANTS for number in found.values())
        ever |= found
        if len(ever) <= MAX_TENANTS:  # none had to be given again
            assert before.items() <= ever.items()
            assert sorted(ever.values()) == list(range(1, len(ever) + 1))


def test_the_number_of_the_tenant_that_is_gone_for_the_longest_is_given_again_first() -> None:
    names = [f"t{number}" for number in range(MAX_TENANTS)]
    numbers = Numbers()
    first = numbers.of(names)
    numbers.of([name for name in names if name != "t5"])
    numbers.of([name for name in names if name not in ("t5", "t3")])
    kept = [name for name in names if name not in ("t5", "t3", "t0")]
    assert numbers.of([*kept, "new"])["new"] == first["t5"]
    assert numbers.of([*kept, "new", "t0", "newer"])["newer"] == first["t3"]


def test_a_tenant_that_comes_back_did_not_just_get_all_that_it_ever_got() -> None:
    shares, weights = Shares(), {0: 100, 1: 100}
    shares.since_last({0: (1.0, 0.0), 1: (500.0, 9.0)}, weights)
    shares.since_last({0: (2.0, 0.0)}, {0: 100})
    found = shares.since_last({0: (3.0, 0.0), 1: (501.0, 9.0)}, weights)
    assert found == {0: Share(0.5, 0.5), 1: Share(0.5, 0.5)}


def test_shares_are_of_those_that_want_cpu_time_since_the_last_look() -> None:
    shares = Shares()
    shares.since_last({0: (100.0, 0.0), 1: (50.0, 0.0)}, {0: 100, 1: 200, 2: 600})
    found = shares.since_last({0: (100.0, 0.0), 1: (51.0, 0.0), 2: (3.0, 1.0)}, {0: 100, 1: 200, 2: 600})
    assert found == {0: Share(None, 0.0), 1: Share(0.25, 0.25), 2: Share(0.75, 0.75)}


USED = st.dictionaries(st.integers(0, 5), st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)))


@given(USED, USED, st.dictionaries(st.integers(0, 5), st.integers(1, 10_000), min_size=6))
def test_shares_add_up_to_one_also_over_a_load(
    first: dict[int, tuple[float, float]], second: dict[int, tuple[float, float]], weights: dict[int, int]
) -> None:
    shares = Shares()
    shares.since_last(first, weights)
    found = shares.since_last(second, weights).values()
    for parts in ([share.wanted for share in found], [share.received for share in found]):
        known = [part for part in parts if part is not None]
        assert all(0 <= part <= 1 for part in known)
        assert not known or sum(known) == pytest.approx(1)
