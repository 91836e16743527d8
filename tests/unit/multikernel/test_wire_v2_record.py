# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels of the second version: the record of the baseline, kept, interrupted and lost."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zernel.devicetree.tree import Node
from zernel.errors import ZernelError
from zernel.multikernel import baseline, inventory_record, wire_v2
from zernel.multikernel.fs import MultikernelFs
from zernel.multikernel.inventory_record import Inventory, Recorded
from zernel.multikernel.simulate_v2 import HOST_CPUS, physical_id
from zernel.multikernel.wire import overlay
from zernel.multikernel.wire_v2 import cpu_items, fragment, pool_change

from .conftest import EXAMPLES, Host, Killed, names, state_directory, write_overlay
from .v2 import apply, pool, record, resources, shown

pytestmark = pytest.mark.parametrize("version", [2], indirect=True)


@contextmanager
def without_debugfs(host: Host) -> Iterator[None]:
    """Hide what the kernel shows of CPUs that are offline."""
    place = host.root / "SIMULATED.topology"
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def test_without_a_record_nobody_is_told_to_delete_the_instances(host: Host) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    path = record(host)
    content = path.read_bytes()
    path.unlink()
    told = host.refused(*apply(host, "minimal.dts"))
    assert "The pool that there is was not made of this baseline" in told
    assert f"Suggestion: Put back {path}, which tells" in told
    with without_debugfs(host):
        told = host.refused(*apply(host))
        assert "CPU 4-31 has no known physical id (APIC id)" in told
        assert f"Suggestion: Put back {path}, which tells" in told
    path.write_bytes(content)
    assert "Delete them first: zernel delete web" in host.refused(*apply(host, "minimal.dts"))


def test_a_lost_record_is_made_anew_from_the_same_baseline(host: Host) -> None:
    host.ok("create", "web", "--cpus=4-5", "--memory=1GB")
    before = host.json("show")
    path = record(host)
    content = path.read_bytes()
    path.unlink()
    assert host.json("show")["instances"]["web"]["cpus"] == [physical_id(4), physical_id(5)]
    planned = host.json(*apply(host), "--dry-run")
    assert not path.exists()
    done = host.json(*apply(host))
    assert planned["changed"] is done["changed"] is True
    assert host.json("show") == before
    assert path.read_bytes() == content
    assert host.json(*apply(host))["changed"] is False


def test_a_lost_record_is_not_made_anew_where_an_instance_does_not_fit(empty: Host, tmp_path: Path) -> None:
    empty.init("edge_computing.dts")
    empty.ok("create", "web", "--cpus=4", "--memory=1GB", "--devices=gpu0")
    record(empty).unlink()
    file, text = tmp_path / "other.dts", (EXAMPLES / "edge_computing.dts").read_text()
    file.write_text(text.replace("0000:01:00.0", "0000:7f:00.0"))
    assert file.read_text() != text
    told = empty.refused("init", f"--input={file}", "--apply")
    assert "The baseline cannot be replaced while there are instances" in told
    assert "The pool that there is was not made of this baseline" in told
    assert empty.json(*apply(empty, "edge_computing.dts"))["changed"]
    assert empty.instances()["web"]["devices"] == ["gpu0"]


def test_a_lost_record_is_made_anew_for_the_nodes_that_instances_are_on(empty: Host, tmp_path: Path) -> None:
    node = "node@0 { node-id = <0>; memory-base = <0x0>; memory-size = <0x400000000>; cpus = <CPUS>; };"
    cpus = " ".join(map(str, range(32)))
    text = (EXAMPLES / "baseline.dts").read_text()
    at = text.index("devices {")
    file = tmp_path / "nodes.dts"
    topology = f"topology {{ numa-nodes {{ {node.replace('CPUS', cpus)} }}; }};"
    file.write_text(f"{text[:at]}{topology}{text[at:]}")
    words = ("init", f"--input={file}", "--apply")
    empty.ok(*words)
    empty.ok("create", "web", "--cpus=4", "--memory=1GB", "--numa-nodes=0")
    record(empty).unlink()
    told = empty.refused(*apply(empty))
    assert "Suggestion: Put back" in told
    assert "  web: " in told
    empty.ok(*words)
    assert empty.instances()["web"]["numa_nodes"] == [0]


def test_what_debugfs_tells_is_not_taken_from_cpus_that_the_pool_does_not_have(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZERNEL_STATE_DIR", str(host.state))
    record(host).unlink()
    for cpu in range(4, 32):
        # CPU 31 had once an id that is an online CPU's now.
        (tmp_path / str(cpu)).write_text(f"apicid: {physical_id(cpu if cpu < 31 else 0):x}\n")
    monkeypatch.setattr(MultikernelFs, "cpu_topology", tmp_path)
    with pytest.raises(ZernelError) as caught:
        baseline.apply_baseline(MultikernelFs(host.root, simulated=True), resources(), dry_run=False)
    (problem,) = caught.value.problems
    assert problem.category == "CPU 31 has no known physical id (APIC id)"
    assert "mount debugfs: mount -t debugfs none /sys/kernel/debug" in str(problem.suggestion)


@pytest.mark.parametrize("how", ["lost", "corrupt", "cut", "stale"])
def test_without_a_record_that_agrees_only_the_pool_is_known(host: Host, how: str, tmp_path: Path) -> None:
    path = record(host)
    content = path.read_bytes()
    if how == "lost":
        path.unlink()
    elif how == "corrupt":
        path.write_bytes(content.replace(b'"total": 32', b'"total": 33'))
        assert path.read_bytes() != content
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        taken = Node("cpu-remove", children=cpu_items([physical_id(31)]))
        write_overlay(host, overlay(fragment(0, "/resources", taken)))
    data = host.json("show")
    assert data["baseline_complete"] is False
    last = 31 if how != "stale" else 30
    assert data["hardware"]["cpus"]["available"] == [physical_id(cpu) for cpu in range(4, last + 1)]
    text = host.ok("show")
    assert "only the pool is known" in text
    # What another program's pool does not tell is not guessed.
    cpus, memory = data["hardware"]["cpus"], data["hardware"]["memory"]
    assert (cpus["total"], cpus["host_reserved"]) == (None, None)
    assert (memory["total_bytes"], memory["host_reserved_bytes"]) == (None, None)
    assert "  CPUs: total unknown\n    Host reserved: unknown\n    Memory pool: " in text
    assert "  Memory: total unknown\n    Host reserved: unknown\n    Memory pool: " in text
    assert "CPUs are shown by their physical ids" in text
    # Commands take what is shown.
    why = (
        "Linux's numbers for these CPUs, and what the host keeps, are not known:"
        f" {path} is missing, damaged or of another pool"
    )
    last_id = physical_id(last)
    for numbers in ("4", "0", "3000", f"4,{last_id + 1}"):  # in Linux's numbers the first is in the pool
        told = host.refused("create", "web", f"--cpus={numbers}", "--memory=1GB")
        verb = "are" if "," in numbers else "is"
        assert f"CPU{'s' * (verb == 'are')} {numbers} {verb} not in the pool\n  {why}\n" in told
        assert "WARNING: web: CPUs are shown and taken by their physical (APIC) ids" in told
        assert "reserved" not in told
        assert "exist" not in told
    told = host.ok("create", "web", f"--cpus={physical_id(4)}", "--memory=1GB")
    assert f"WARNING: web: CPUs are shown and taken by their physical (APIC) ids\n  {why}\n" in told
    assert "zernel init --input=FILE --apply" in told
    assert shown(host, "web").cpus == (physical_id(4),)
    assert "CPU 5 is not in the pool" in host.refused("update", "web", "--add-cpus=5")
    (warning,) = host.json("update", "web", f"--add-cpus={physical_id(5)}")["warnings"]
    assert (warning["code"], warning["instance"]) == ("cpu-physical-ids", "web")
    assert host.json("update", "web", f"--cpus={physical_id(4)}")["warnings"] == []
    (tmp_path / "db.yaml").write_text("name: db\ncpu_count: 1\nmemory: 1GB\n")
    declared = ("apply", f"--directory={tmp_path}")
    assert [one["code"] for one in host.json(*declared)["warnings"]] == ["cpu-physical-ids"]
    assert host.json(*declared)["warnings"] == []
    host.ok("delete", "db")
    host.ok("delete", "web")
    with without_debugfs(host):
        done = host.run(*apply(host))
        assert "has no known physical id" in done.stderr
    host.ok(*apply(host))
    assert host.json("show")["baseline_complete"]


def test_a_change_is_not_rolled_back_by_other_numbers_for_cpus(host: Host) -> None:
    host.ok("create", "web", "--cpus=4-5", "--memory=1GB")
    host.ok("delete", "web")
    path = record(host)
    content = path.read_bytes()
    path.unlink()
    told = host.refused("rollback")
    assert "It names CPUs by Linux's numbers, and they go by their physical ids now" in told
    assert f"{path} is missing" in told
    host.ok("create", "db", f"--cpus={physical_id(8)}", "--memory=1GB", "--id=5")
    path.write_bytes(content)
    assert "by their physical ids, and they go by Linux's numbers now" in host.refused("rollback")
    host.ok("rollback", "tx_3")
    assert host.instances()["web"]["cpus"] == [4, 5]


def test_what_was_interrupted_is_not_settled_by_other_numbers_for_cpus(host: Host, killed: Killed) -> None:
    replaced = ("ensure", "web", "--state=present", "--id=7")
    host.ok("create", "web", "--cpus=4-5", "--memory=1GB")
    host.ok("create", "db", "--cpus=8", "--memory=1GB")
    moment = 0
    while "web" in names(host):
        assert killed(moment, *replaced)[0] == -signal.SIGKILL
        moment += 1
    path = record(host)
    content = path.read_bytes()
    path.unlink()
    another = ("create", "other", f"--cpus={physical_id(9)}", "--memory=1GB")
    told = host.refused(*another)
    assert "It names CPUs by Linux's numbers, and they go by their physical ids now" in told
    assert f"{path} is missing" in told
    assert "To create web as it was: zernel create web --cpus=4-5 --memory=1GB --id=1" in told
    assert host.refused(*another, "--dry-run") == told
    host.ok("delete", "db")
    assert names(host) == set()
    path.write_bytes(content)
    assert (
        "web: it was deleted, and was created again" in host.json("delete", "nobody", "--ensure")["notes"][0]
    )
    assert host.instances()["web"]["cpus"] == [4, 5]


def test_a_record_of_before_a_reboot_is_not_believed(host: Host) -> None:
    host.stop()
    host.start()
    assert "No baseline is applied" in host.refused("show")
    host.init()
    assert host.json("show")["baseline_complete"]


@pytest.mark.parametrize("before", [None, "minimal.dts"])
def test_sigkill_at_every_moment_of_an_init(empty: Host, killed: Killed, before: str | None) -> None:
    moment, outcomes, status = 0, [], -signal.SIGKILL
    wanted = resources().cpus.available
    while status == -signal.SIGKILL:
        if before is not None:
            assert killed(-1, *apply(empty, before))[0] == 0
        elif moment:
            take_back(empty)
        status, _ = killed(moment, *apply(empty))
        moment += 1
        now = pool(empty)
        # Reading needs no repair: the record of what was begun is believed once the pool is there.
        if now is not None:
            data = json.loads(killed(-1, "show", "--format=json")[1])
            assert data["baseline_complete"]
        done = now is not None and now.cpus == tuple(map(physical_id, wanted))
        outcomes.append(done)
        begun = any(json.loads(path.read_text())["begun"] for path in empty.state.rglob("inventory.json"))
        code, output = killed(-1, *apply(empty), "--format=json")
        assert code == 0
        data = json.loads(output)
        assert data["changed"] is not done
        said = "the baseline is applied" if done else "it changed nothing"
        notes = [note for note in data["notes"] if "interrupted" in note]
        assert notes == ([f"An earlier 'zernel init --apply' was interrupted: {said}"] if begun else [])
        assert json.loads(record(empty).read_text())["begun"] is None
    assert status == 0
    assert min(outcomes.count(True), outcomes.count(False)) > 1


def test_a_pool_between_two_baselines_is_brought_back(host: Host) -> None:
    directory, before = record(host).parent, host.json("show")["hardware"]
    wanted = resources("minimal.dts")
    applied = inventory_record.read(directory).applied
    assert applied is not None
    # As a command leaves it that is killed while the kernel has done a part of what it was asked.
    begun = Recorded(wanted, applied.ids)
    inventory_record.write(directory, Inventory(applied, begun))
    taken = Node("cpu-remove", children=cpu_items([physical_id(31)]))
    write_overlay(host, overlay(fragment(0, "/resources", taken)))
    done = host.json("create", "web", "--cpus=31", "--memory=1GB")
    assert done["notes"] == [
        "An earlier 'zernel init --apply' was interrupted: the pool before it was brought back"
    ]
    assert host.json("show")["hardware"] == before
    # With an instance on it, it is left as it is.
    inventory_record.write(directory, Inventory(applied, begun))
    taken = Node("cpu-remove", children=cpu_items([physical_id(30)]))
    write_overlay(host, overlay(fragment(0, "/resources", taken)))
    told = host.refused("create", "db", "--cpus=5", "--memory=1GB")
    assert "the pool is neither the old nor the new one, and in use" in told
    assert host.json("show")["baseline_complete"] is False


def test_another_programs_pool_is_not_taken_back_for_ours(empty: Host) -> None:
    # As a command leaves it that is killed before its write, on a pool that another program made.
    ids = {cpu: physical_id(cpu) for cpu in range(HOST_CPUS)}
    begun = Recorded(resources(), ids)
    foreign = Recorded(resources("minimal.dts"), ids)
    (empty.root / "device_tree").write_bytes(wire_v2.baseline(foreign))
    before = pool(empty)
    directory = state_directory(empty)
    inventory_record.write(directory, Inventory(None, begun))
    done = empty.json("create", "web", f"--cpus={physical_id(2)}", "--memory=1GB")
    assert done["notes"] == [
        "An earlier 'zernel init --apply' was interrupted: the pool is another program's, and was left alone"
    ]
    assert pool(empty) == before


def test_a_pool_in_pieces_that_a_killed_init_left_is_given_back(empty: Host) -> None:
    ids = {cpu: physical_id(cpu) for cpu in range(HOST_CPUS)}
    begun = Recorded(resources("numa_topology.dts"), ids)
    (empty.root / "device_tree").write_bytes(wire_v2.baseline(begun))
    directory = state_directory(empty)
    inventory_record.write(directory, Inventory(None, begun))
    done = empty.json(*apply(empty))
    assert done["notes"][0].endswith("interrupted: the pool was given back to the host: nothing was changed")
    assert empty.json("show")["baseline_complete"]


def take_back(host: Host) -> None:
    """Return the pool to the host, as another program does."""
    found = pool(host)
    assert found is not None
    blob = pool_change(found, None)
    assert blob is not None
    write_overlay(host, blob)
    assert pool(host) is None


def test_the_record_is_for_everyone_to_read(host: Host) -> None:
    assert stat.S_IMODE(record(host).stat().st_mode) == 0o644
