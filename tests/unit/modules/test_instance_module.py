# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules for instances, against the simulation: every state from every state, in check mode and not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from multikernel.conftest import EXAMPLES, Host, bare, empty, faulty, host, kernel, version  # noqa: F401

from .conftest import Run

RESOURCES = {"cpus": "4-7", "memory": "2GB"}
SOURCES = ("absent", "ready", "loaded", "active")
# What 'zernel ensure' is told to get an instance into a status.
LEADS_TO = {"absent": "absent", "ready": "present", "loaded": "loaded", "active": "started"}
BUSY = "instance-busy"
STEPS: dict[tuple[str, bool], tuple[list[str] | str, ...]] = {
    # state, force: the steps, or the error's code, for each of SOURCES
    ("present", False): (["create"], [], [], []),
    ("loaded", False): (["create", "load"], ["load"], [], []),
    ("started", False): (["create", "load", "exec"], ["load", "exec"], ["exec"], []),
    ("stopped", False): (["create"], [], [], ["kill"]),
    ("stopped", True): (["create"], [], [], ["kill"]),
    ("absent", False): ([], ["delete"], BUSY, BUSY),
    ("absent", True): ([], ["delete"], ["unload", "delete"], ["kill", "unload", "delete"]),
}
STATUS_AFTER = {"create": "ready", "load": "loaded", "exec": "active", "kill": "loaded", "delete": None}


class Modules:
    """This collection's modules on a host whose multikernel file system is simulated."""

    def __init__(self, run: Run, host: Host, zernel: str) -> None:  # noqa: F811
        self.host = host
        self.run = run
        self.common = {"executable": zernel, "multikernel_root": str(host.root)}

    def instance(self, check: bool = False, ok: bool = True, **options: Any) -> dict[str, Any]:
        """Run zernel_instance for the instance called web."""
        found = self.run("zernel_instance", check=check, name="web", **self.common, **options)
        assert found.get("failed", False) != ok, found
        return found

    def info(self, check: bool = False, **options: Any) -> dict[str, Any]:
        return self.run("zernel_instance_info", check=check, **self.common, **options)

    def shown(self) -> dict[str, Any] | None:
        return self.host.instances().get("web")


@pytest.fixture
def modules(module: Run, host: Host, zernel: str, monkeypatch: pytest.MonkeyPatch) -> Modules:  # noqa: F811
    monkeypatch.setenv("ZERNEL_STATE_DIR", str(host.state))
    return Modules(module, host, zernel)


@pytest.fixture
def faulty_modules(
    module: Run,
    faulty: Host,  # noqa: F811
    zernel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Modules:
    monkeypatch.setenv("ZERNEL_STATE_DIR", str(faulty.state))
    return Modules(module, faulty, zernel)


@pytest.fixture
def boot(kernel: Path) -> dict[str, str]:  # noqa: F811
    return {**RESOURCES, "kernel": str(kernel)}


def bring(modules: Modules, kernel: str, source: str) -> dict[str, Any] | None:  # noqa: F811
    """Bring the instance into a status; returns it as it is then."""
    words = ("--cpus=4-7", "--memory=2GB", f"--kernel={kernel}", "--force")
    for state in ("absent", LEADS_TO[source]):
        modules.host.ok("ensure", "web", f"--state={state}", *words)
    found = modules.shown()
    assert (found or {"status": "absent"})["status"] == source
    return found


@pytest.mark.parametrize(("state", "force"), STEPS)
def test_every_state_is_reached_from_every_state(
    modules: Modules, boot: dict[str, str], state: str, force: bool
) -> None:
    for source, expected in zip(SOURCES, STEPS[state, force], strict=True):
        before = bring(modules, boot["kernel"], source)
        refused = isinstance(expected, str)
        asked = {"state": state, "force": force, "ok": not refused, **boot}
        planned = modules.instance(check=True, **asked)
        assert modules.shown() == before, (source, "check mode has changed something")
        done = modules.instance(**asked)
        if refused:
            assert done["errors"][0]["code"] == expected
            assert done["msg"] == planned["msg"]
            assert modules.shown() == before
            continue
        assert done["steps"] == expected, source
        assert done["changed"] == bool(expected)
        status = STATUS_AFTER[expected[-1]] if expected else before and before["status"]
        assert (done["instance"] or {"status": None})["status"] == status
        assert done["instance"] == modules.shown()
        assert done["diff"] == {
            "before": {"web": before} if before else {},
            "after": {"web": done["instance"]} if done["instance"] else {},
        }
        for key in ("changed", "steps", "instance", "diff"):
            assert planned[key] == done[key], (source, key)
        again = modules.instance(**asked)
        assert (again["changed"], again["steps"], again["instance"]) == (False, [], done["instance"])


def test_everything_is_labelled_simulated(modules: Modules) -> None:
    found = modules.instance(**RESOURCES)
    assert found["simulated"]
    assert any("SIMULATED" in str(warning) for warning in found["warnings"])
    assert found["transactions"] == [{"id": 2, "status": "applied"}]


def test_an_instance_is_changed_in_place_by_the_least_that_leads_there(
    modules: Modules, boot: dict[str, str]
) -> None:
    modules.instance(state="started", **boot)
    asked = {"cpu_count": 6, "memory": "3GB"}
    planned = modules.instance(check=True, **asked)
    grown = modules.instance(**asked)
    assert grown["steps"] == planned["steps"] == ["update"]
    assert grown["diff"] == planned["diff"]
    assert grown["operations"] == [
        {"operation": "memory-add", "memory_base": 0x100000000, "memory_bytes": 1 << 30},
        {"operation": "cpu-add", "cpus": [8, 9]},
    ]
    assert (grown["instance"]["cpus"], grown["instance"]["status"]) == ([4, 5, 6, 7, 8, 9], "active")
    assert not modules.instance(**asked)["changed"]
    assert not modules.instance()["changed"], "what is not given stays as it is"
    taken = modules.instance(ok=False, cpu_count=2)
    assert "What its kernel uses is not taken from it" in taken["msg"]


def test_all_devices_are_taken_by_an_empty_list_and_none_by_no_list(modules: Modules) -> None:
    modules.host.init("edge_computing.dts")
    modules.instance(cpu_count=2, memory="2GB", devices=["gpu0"])
    assert not modules.instance(memory="2GB")["changed"]
    emptied = modules.instance(devices=[])
    assert emptied["operations"][0]["operation"] == "device-remove"
    assert emptied["instance"]["devices"] == []


def test_what_cannot_be_changed_in_place_is_created_anew_unless_it_has_a_kernel(
    modules: Modules, boot: dict[str, str]
) -> None:
    modules.instance(**RESOURCES)
    asked = {"id": 7, "memory_base": "0x90000000", "cpu_affinity": "spread", "devices": ["eth0:vf1"]}
    planned = modules.instance(check=True, **asked)
    done = modules.instance(**asked)
    assert (done["steps"], done["replaced"], done["operations"]) == (["update"], True, [])
    assert done["diff"] == planned["diff"]
    assert {key: done["instance"][key] for key in ("id", "memory_base", "cpu_affinity", "devices")} == {
        **asked,
        "memory_base": 0x90000000,
    }
    assert not modules.instance(**asked)["changed"]
    before = modules.instance(state="loaded", kernel=boot["kernel"])["instance"]
    for check in (True, False):
        refused = modules.instance(check=check, ok=False, id=8, memory_base="0xa0000000")
        assert {error["code"] for error in refused["errors"]} == {"instance-busy"}
        assert "It would have to be deleted and created anew" in refused["msg"]
        wrong = modules.instance(check=check, ok=False, cpus="2", devices=["gpu99"])
        assert {error["code"] for error in wrong["errors"]} >= {"cpu-reserved"}
    assert modules.shown() == before


def test_resources_and_kernel_are_needed_only_where_there_are_none(
    modules: Modules, boot: dict[str, str]
) -> None:
    for state in ("present", "loaded", "started", "stopped"):
        missing = modules.instance(ok=False, state=state)
        assert "There is no such instance" in missing["msg"]
        assert "give its CPUs and memory" in missing["msg"]
    modules.instance(**RESOURCES)
    missing = modules.instance(ok=False, state="started")
    assert "No kernel is loaded, and none is given" in missing["msg"]
    modules.instance(state="loaded", kernel=boot["kernel"])
    assert modules.instance(state="started")["steps"] == ["exec"]
    other = modules.instance(state="started", kernel="/another")
    assert not other["changed"]
    assert "nothing tells which" in other["notes"][0]


def test_a_wrong_kernel_is_refused_before_the_instance_is_created(
    modules: Modules, boot: dict[str, str], tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("no kernel")
    wrong = {**boot, "kernel": str(text), "cpus": "2"}
    for check in (True, False):
        refused = modules.instance(check=check, ok=False, state="started", **wrong)
        assert str(text) in refused["msg"]
        assert "CPU 2 is reserved for host kernel" in refused["msg"], "every reason at once"
    small = {**boot, "memory": "4KB"}
    assert "does not fit" in modules.instance(ok=False, state="loaded", **small)["msg"]
    assert modules.shown() is None


def test_a_name_that_is_no_name_is_refused(modules: Modules) -> None:
    for name in ("-web", "../web", ""):
        found = modules.run("zernel_instance", name=name, **modules.common, **RESOURCES)
        assert found["failed"]
        assert "nvalid instance name" in found["msg"]


@pytest.mark.parametrize(
    ("faulty", "done", "missing"),
    [
        (["load-lost"], ["create"], ["load", "exec"]),
        (["load-einval"], ["create"], ["load", "exec"]),
        (["boot-failed"], ["create", "load"], ["exec"]),
    ],
    indirect=["faulty"],
)
def test_what_a_failure_left_undone_is_done_by_the_next_run(
    faulty_modules: Modules, boot: dict[str, str], done: list[str], missing: list[str]
) -> None:
    failed = faulty_modules.instance(ok=False, state="started", **boot)
    assert f"Done before that: {', '.join(done)}; run it again" in failed["msg"]
    status = STATUS_AFTER[done[-1]]
    shown = faulty_modules.shown()
    assert shown is not None
    assert shown["status"] == status
    again = faulty_modules.instance(state="started", **boot)
    assert again["steps"] == missing
    assert again["instance"]["status"] == "active"


@pytest.mark.parametrize("faulty", [["halt-ignored"]], indirect=True)
def test_a_kernel_that_does_not_stop_is_stopped_by_force(
    faulty_modules: Modules, boot: dict[str, str]
) -> None:
    faulty_modules.instance(state="started", **boot)
    assert "--force" in faulty_modules.instance(ok=False, state="stopped")["msg"]
    assert faulty_modules.instance(state="stopped", force=True)["steps"] == ["kill"]


def test_instances_are_reported(modules: Modules, boot: dict[str, str]) -> None:
    assert modules.info()["instances"] == {}
    web = modules.instance(state="started", **boot)["instance"]
    modules.run("zernel_instance", name="db", cpu_count=2, memory="1GB", **modules.common)
    for check in (True, False):
        found = modules.info(check=check)
        assert not found["changed"]
        assert set(found["instances"]) == {"web", "db"}
        assert found["instances"]["web"] == web
        assert (found["simulated"], found["baseline_complete"], found["root"]) == (
            True,
            True,
            str(modules.host.root),
        )
        assert found["baseline"]["cpus"]["total"] == 32
        assert any("SIMULATED" in str(warning) for warning in found["warnings"])
        assert list(modules.info(check=check, name="web")["instances"]) == ["web"]
    unknown = modules.info(name="wed")
    assert unknown["failed"]
    assert unknown["errors"][0]["did_you_mean"] == ["web"]


def test_several_instances_are_made_what_is_declared_or_none(modules: Modules) -> None:
    def declare(*instances: dict[str, Any], check: bool = False) -> dict[str, Any]:
        return modules.run("zernel_instances", check=check, instances=list(instances), **modules.common)

    web = {"name": "web", "cpus": "4-7", "memory": "2GB", "state": "started", "kernel": "/nowhere"}
    db = {"name": "db", "cpu_count": 2, "memory": "1GB"}
    planned = declare(db, web, check=True)
    assert modules.host.instances() == {}
    done = declare(db, web)
    assert done["changed"]
    assert done["instances"] == modules.host.instances()
    assert set(done["diff"][0]["after"]) == {"web", "db"}
    assert done["diff"][0]["before"] == planned["diff"][0]["before"] == {}
    assert planned["plan"] == done["plan"]
    assert not declare(db, web)["changed"]
    grown = declare({**web, "memory": "1GB"}, {**db, "cpu_count": 4})
    assert [step["instance"] for step in grown["plan"]["update"]] == ["db", "web"]
    done = {"instances": grown["instances"]}
    for check in (True, False):
        refused = declare({**web, "memory": "3GB"}, {**db, "cpus": "2"}, {"name": "x"}, check=check)
        for part in (
            "instances, entry 2: Both 'cpus' and 'cpu_count' are given",
            "instances, entry 3: The key 'memory' is missing",
        ):
            assert part in refused["msg"]
        assert "/tmp" not in str(refused["errors"])
        assert modules.host.instances() == done["instances"]
    assert not declare({**db, "cpu_count": 4})["changed"], "what is not declared is left alone"


def test_what_is_to_be_absent_is_not_declared(modules: Modules) -> None:
    web = {"name": "web", "cpus": "4-7", "memory": "2GB", "state": "absent"}
    others = [
        {"name": "db", "cpu_count": 2, "memory": "1GB"},
        {"name": "x", "memory": "1GB", "state": "gone"},
    ]
    for check in (True, False):
        refused = modules.run("zernel_instances", check=check, instances=[web, *others], **modules.common)
        assert refused["failed"]
        assert [one["code"] for one in refused["errors"]] == ["not-declarable", "not-declarable"]
        assert "entry 1: its state is 'absent'" in refused["msg"]
        assert (
            "entry 3: its state is 'gone', and there is no such state. Use one of: present" in refused["msg"]
        )
        assert modules.host.instances() == {}
    # What else is wrong is said in the same breath.
    refused = modules.run("zernel_instances", instances=[web, {"name": "y"}], **modules.common)
    assert "entry 1: its state is 'absent'" in refused["msg"]
    assert "entry 2: The key 'memory' is missing" in refused["msg"]


def test_a_baseline_is_replaced_only_while_there_are_no_instances(modules: Modules) -> None:
    def apply(name: str, check: bool = False) -> dict[str, Any]:
        path = str(EXAMPLES / name)
        return modules.run("zernel_baseline", check=check, path=path, **modules.common)

    assert not apply("baseline.dts")["changed"]
    planned = apply("minimal.dts", check=True)
    assert planned["changed"]
    assert modules.info()["baseline"] == planned["diff"][0]["before"]
    done = apply("minimal.dts")
    assert (done["changed"], done["diff"], done["notes"]) == (True, planned["diff"], [])
    assert modules.info()["baseline"] == done["diff"][0]["after"]
    assert modules.instance(cpu_count=1, memory="256MB")["changed"]
    for check in (True, False):
        refused = apply("baseline.dts", check=check)
        assert "cannot be replaced while there are instances" in refused["msg"]


def test_what_the_kernel_has_taken_is_kept_for_the_next_boot(modules: Modules, tmp_path: Path) -> None:
    dest = tmp_path / "new/instances.d/ansible.yaml"

    def declare(*instances: dict[str, Any], check: bool = False) -> dict[str, Any]:
        options = {"instances": list(instances), "dest": str(dest)}
        return modules.run("zernel_instances", check=check, **options, **modules.common)

    web = {"name": "web", "cpus": "4-7", "memory": "2GB", "state": "started", "kernel": "/nowhere"}
    db = {"name": "db", "cpu_count": 2, "memory": "0x40000000", "devices": ["eth0:vf1"]}
    assert declare(web, db, check=True)["changed"]
    assert not dest.parent.exists()
    done = declare(web, db)
    assert [one.get("after_header") for one in done["diff"]] == [None, str(dest)]
    assert (done["diff"][1]["before"], done["diff"][1]["after"]) == ("", dest.read_text())
    assert (dest.stat().st_mode & 0o777, dest.parent.stat().st_mode & 0o777) == (0o644, 0o755)
    again = modules.host.json("apply", f"--directory={dest.parent}")
    assert (again["status"], again["undeclared"], set(again["after"])) == ("unchanged", [], {"web", "db"})
    assert not declare(web, db)["changed"]

    # One that was altered by hand is put right, and keeps the mode that it was given.
    dest.write_text("{}\n")
    dest.chmod(0o600)
    assert declare(web, db)["changed"]
    assert dest.read_text() == done["diff"][1]["after"]
    assert dest.stat().st_mode & 0o777 == 0o600

    # What is refused is not kept.
    assert declare(web, {**db, "devices": ["gone0"]})["failed"]
    assert dest.read_text() == done["diff"][1]["after"]

    assert declare(check=True)["changed"]
    assert dest.exists()
    assert declare()["changed"]
    assert not dest.exists()
    assert not declare()["changed"]
    assert set(modules.host.instances()) == {"web", "db"}, "this module deletes none"


def test_a_file_that_cannot_be_kept_says_so(modules: Modules, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("/proc/nowhere")
    for dest, why in (
        ("file/x", "cannot be read: Not a directory"),
        ("link/x", "cannot be written: "),
        (".", "cannot be read: Is a directory"),
    ):
        options = {"instances": [{"name": "web", "cpus": "4", "memory": "1GB"}], "dest": str(tmp_path / dest)}
        failed = modules.run("zernel_instances", **options, **modules.common)
        assert why in failed["msg"]


def test_a_baseline_is_written_once_the_agent_finds_it_valid(modules: Modules, tmp_path: Path) -> None:
    path = tmp_path / "etc/baseline.dts"

    def write(name: str, check: bool = False, **options: Any) -> dict[str, Any]:
        content = (EXAMPLES / name).read_text()
        options = {"path": str(path), "content": content, **options}
        return modules.run("zernel_baseline", check=check, **options, **modules.common)

    assert write("minimal.dts", check=True, apply=False)["changed"]
    assert not path.exists()
    done = write("minimal.dts", apply=False)
    assert (done["changed"], "hardware" in done) == (True, False)
    assert path.read_text() == (EXAMPLES / "minimal.dts").read_text()
    assert modules.info()["baseline"]["cpus"]["total"] == 32, "the kernel has still the one it had"
    assert not write("minimal.dts", apply=False)["changed"]

    for options in ({"apply": False}, {"check": True}, {}):
        wrong = write("conflict_example.dts", **options)
        assert "CPU 16 does not exist" in wrong["msg"]
        assert {one["file"] for one in wrong["errors"]} == {str(path)}
        assert path.read_text() == (EXAMPLES / "minimal.dts").read_text()

    # Written and applied in one task: check mode says what the task does.
    write("baseline.dts", apply=False)
    planned = write("minimal.dts", check=True)
    assert path.read_text() == (EXAMPLES / "baseline.dts").read_text()
    applied = write("minimal.dts")
    assert planned["diff"] == applied["diff"]
    assert modules.info()["baseline"] == applied["diff"][1]["after"]
    assert not write("minimal.dts")["changed"]
