# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules and the role, run by Ansible on this machine against the simulation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from modules import systemctl

from zernel.devicetree.load import read_file

from .conftest import EXAMPLES, REPOSITORY, ZERNEL, Host

BIN = Path(sys.executable).parent


@pytest.fixture
def ansible_environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which this clone is the collection zernel.fleet, and 'zernel' is this clone's."""
    collections = tmp_path / "collections/ansible_collections/zernel"
    collections.mkdir(parents=True)
    (collections / "fleet").symlink_to(REPOSITORY)
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "collections"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "ansible"),
        "ANSIBLE_REMOTE_TEMP": str(tmp_path / "ansible"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
    }


class Play:
    """Runs tasks on localhost and returns each one's result."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment

    def run(self, *tasks: dict[str, Any], check: bool = False, **variables: Any) -> list[dict[str, Any]]:
        """Run the tasks; each may fail, and its result is returned."""
        results = self.directory / "results.json"
        names = [f"r{index}" for index in range(len(tasks))]
        play = [
            {
                "hosts": "localhost",
                "connection": "local",
                "gather_facts": False,
                "vars": {"ansible_python_interpreter": sys.executable, **variables},
                "tasks": [
                    *(
                        {**task, "register": f"r{index}", "ignore_errors": True}
                        for index, task in enumerate(tasks)
                    ),
                    {
                        "ansible.builtin.copy": {
                            "dest": str(results),
                            "mode": "0600",
                            "content": f"{{{{ [{', '.join(names)}] | to_json }}}}",
                        },
                        "check_mode": False,
                    },
                ],
            }
        ]
        self.playbook(play, check=check)
        found: list[dict[str, Any]] = json.loads(results.read_text())
        return found

    def playbook(self, play: list[dict[str, Any]], *words: str, check: bool = False, ok: bool = True) -> str:
        file = self.directory / "play.yml"
        file.write_text(yaml.safe_dump(play))
        command = [
            BIN / "ansible-playbook",
            "-i",
            "localhost,",
            "--diff",
            file,
            *(["--check"] if check else []),
            *words,
        ]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def play(tmp_path: Path, ansible_environment: dict[str, str]) -> Play:
    return Play(tmp_path, ansible_environment)


def instance(host: Host, **options: Any) -> dict[str, Any]:
    common = {"executable": str(ZERNEL), "multikernel_root": str(host.root)}
    task = {"zernel.fleet.zernel_instance": {**common, **options}}
    return {**task, "environment": {"ZERNEL_STATE_DIR": str(host.state)}}


def baseline(host: Host, name: str) -> dict[str, Any]:
    options = {"executable": str(ZERNEL), "multikernel_root": str(host.root), "path": str(EXAMPLES / name)}
    return {"zernel.fleet.zernel_baseline": options, "environment": {"ZERNEL_STATE_DIR": str(host.state)}}


def test_an_instance_comes_stays_and_goes(host: Host, play: Play) -> None:
    web = {"name": "web", "cpus": "4-7", "memory": "2GB", "devices": ["eth0:vf1"]}
    (planned,) = play.run(instance(host, **web), check=True)
    assert planned["changed"]
    assert host.instances() == {}
    created, again, gone, gone_again = play.run(
        instance(host, **web),
        instance(host, **web),
        instance(host, name="web", state="absent"),
        instance(host, name="web", state="absent"),
    )
    assert created["changed"]
    assert created["instance"] == planned["instance"]
    assert created["instance"]["status"] == "ready"
    assert created["simulated"]
    assert any("SIMULATED" in warning for warning in created["warnings"])
    assert created["diff"] == {"before": {}, "after": {"web": created["instance"]}}
    assert [one["status"] for one in created["transactions"]] == ["applied"]
    assert not again["changed"]
    assert gone["changed"]
    assert gone["diff"]["before"] == {"web": created["instance"]}
    assert not gone_again["changed"]
    assert host.instances() == {}


def test_wishes_for_a_place_are_passed_on_and_warnings_shown(host: Host, play: Play) -> None:
    wishes = {"cpu_affinity": "compact", "memory_policy": "local"}
    created, again, nodes = play.run(
        instance(host, name="web", cpu_count=2, memory="1GB", **wishes),
        instance(host, name="web", cpu_count=2, memory="1GB", **wishes),
        instance(host, name="db", cpu_count=2, memory="1GB", numa_nodes="0"),
    )
    assert {key: created["instance"][key] for key in wishes} == wishes
    # The document's baseline describes no nodes.
    assert any("web: Memory policy 'local' has no effect" in warning for warning in created["warnings"])
    assert not again["changed"]
    assert "NUMA node 0 does not exist" in nodes["msg"]


def test_what_cannot_be_fails_with_the_words_of_the_command(host: Host, play: Play) -> None:
    refused, hyphen, nothing = play.run(
        instance(host, name="web", cpus="2", memory="1GB"),
        instance(host, name="-web", cpus="4", memory="1GB"),
        instance(host, name="web"),
    )
    assert "web: CPU 2 is reserved for host kernel" in refused["msg"]
    assert refused["errors"][0]["code"] == "cpu-reserved"
    assert hyphen["failed"]
    assert nothing["failed"]
    assert host.instances() == {}


def test_options_that_modules_share_are_set_once(host: Host, play: Play) -> None:
    common = {"executable": str(ZERNEL), "multikernel_root": str(host.root)}
    defaults = {"group/zernel.fleet.multikernel": common}
    state = {"environment": {"ZERNEL_STATE_DIR": str(host.state)}, "module_defaults": defaults}
    made, found, hardware = play.run(
        {"zernel.fleet.zernel_instance": {"name": "web", "cpus": "4", "memory": "1GB"}, **state},
        {"zernel.fleet.zernel_instance_info": {}, **state},
        {
            "zernel.fleet.zernel_hardware_info": {},
            "module_defaults": {"group/zernel.fleet.agent": {"executable": "/nowhere/zernel"}},
        },
    )
    assert made["changed"]
    assert found["instances"] == {"web": made["instance"]}
    assert "/nowhere/zernel" in hardware["msg"]


class Role:
    """Runs the last act of the role multikernel on this machine; units are files."""

    def __init__(self, host: Host, play: Play, tmp_path: Path) -> None:
        self.play, self.directory = play, tmp_path
        self.kept = tmp_path / "instances.d/ansible.yaml"
        self.units, environment = systemctl.install(tmp_path)
        play.environment |= {
            "ZERNEL_MULTIKERNEL_ROOT": str(host.root),
            "ZERNEL_STATE_DIR": str(host.state),
            "UNITS": environment["UNITS"],
            "PATH": f"{BIN}:{environment['PATH']}",
        }
        for name in ("zernel-multikernel-simulated", "zernel-multikernel", "zernel-instances"):
            (self.units / f"{name}.service").write_text("loaded inactive disabled yes\n")
        boot = self.units / "zernel-instances.service.exec"
        boot.write_text(f"#!/bin/sh\n! test -e {self.kept} || zernel apply --directory={self.kept.parent}\n")
        boot.chmod(0o755)

    def run(
        self,
        *instances: dict[str, Any],
        check: bool = False,
        ok: bool = True,
        baseline: str = "baseline.dts",
    ) -> str:
        known = {
            "_zernel_multikernel_baseline": str(EXAMPLES / baseline),
            "_zernel_multikernel_declarations": str(self.kept),
            "_zernel_multikernel_host": {"hardware": {"multikernel": True}},
            "_zernel_multikernel_file": {"changed": False},
        }
        task = role(self.directory, "run", zernel_multikernel_instances=list(instances), **known)
        head = {"hosts": "localhost", "connection": "local", "gather_facts": False}
        head["vars"] = {"ansible_python_interpreter": sys.executable}
        return self.play.playbook([{**head, "tasks": [task]}], check=check, ok=ok)

    def unit(self, name: str) -> str:
        return (self.units / f"{name}.service").read_text()


@pytest.fixture
def last_act(host: Host, play: Play, tmp_path: Path) -> Role:
    return Role(host, play, tmp_path)


def test_the_role_brings_the_instances_about_and_keeps_them_for_the_next_boot(
    host: Host, last_act: Role, kernel: Path
) -> None:
    run, kept = last_act.run, last_act.kept
    web = {"name": "web", "cpus": "4-7", "memory": "2GB", "state": "started", "kernel": str(kernel)}
    db = {"name": "db", "cpu_count": 2, "memory": "0x40000000", "id": 9, "devices": ["eth0:vf1"]}
    assert "changed=2" in run(web, db, check=True)  # nothing is mounted yet, so that it cannot tell more
    assert host.instances() == {}
    # The mount, the instances, the unit, the kernels.
    assert "changed=4" in run(web, db)
    assert last_act.unit("zernel-multikernel") == "loaded active enabled yes\n"
    assert last_act.unit("zernel-instances") == "loaded active enabled yes\n"
    assert last_act.unit("zernel-multikernel-simulated") == "loaded inactive disabled yes\n"
    found = host.instances()
    assert (found["web"]["status"], found["db"]["status"]) == ("active", "ready")
    assert "changed=0" in run(web, db)
    again = host.json("apply", f"--directory={kept.parent}")
    assert (again["status"], again["undeclared"], set(again["after"])) == ("unchanged", [], {"web", "db"})

    # What goes makes room for what comes, and one may take what another gives up.
    data = {"name": "data", "cpus": "4-7", "memory": "1GB"}
    run(data, {"name": "web", "state": "absent", "force": True}, db)
    assert set(host.instances()) == {"data", "db"}
    del db["cpu_count"]
    run({**data, "cpus": "6-9"}, {**db, "cpus": "4-5"})
    found = host.instances()
    assert (found["data"]["cpus"], found["db"]["cpus"]) == ([6, 7, 8, 9], [4, 5])
    run({"name": "data", "state": "absent"}, {"name": "db", "state": "absent"})
    assert host.instances() == {}
    assert not kept.exists()


@pytest.mark.parametrize("cpus", ["", "4-7"], ids=["none", "one"])
def test_check_mode_judges_no_instances_on_a_baseline_that_is_still_to_be_applied(
    empty: Host, play: Play, tmp_path: Path, cpus: str
) -> None:
    declared = [{"name": "web", "cpus": cpus, "memory": "2GB"}] if cpus else []
    role = Role(empty, play, tmp_path)
    (role.units / "zernel-multikernel.service").write_text("loaded active enabled yes\n")
    role.run(*declared, check=True)
    assert (empty.root / "device_tree").read_bytes() == b""


def test_the_role_repairs_a_boot_that_failed(host: Host, last_act: Role) -> None:
    """A device that was kept for the boot is gone; the list is corrected, and the role is run again."""
    last_act.kept.parent.mkdir()
    last_act.kept.write_text("{name: web, cpus: 4-7, memory: 2GB, devices: [gone0]}\n")
    failed = "loaded failed enabled yes\n"
    (last_act.units / "zernel-instances.service").write_text(failed)
    web = {"name": "web", "cpus": "4-7", "memory": "2GB", "devices": ["gone0"]}
    assert "gone0" in last_act.run(web, ok=False)
    assert last_act.unit("zernel-instances") == failed
    last_act.run({**web, "devices": []})
    assert host.instances()["web"]["devices"] == []
    assert last_act.unit("zernel-instances") == "loaded active enabled yes\n"


def test_a_kernel_that_cannot_be_loaded_does_not_keep_the_boot_from_what_is_declared(
    host: Host, last_act: Role
) -> None:
    web = {"name": "web", "cpus": "4-7", "memory": "2GB"}
    last_act.run(web)
    last_act.run({**web, "cpus": "4-9", "state": "started", "kernel": "/nowhere/vmlinuz"}, ok=False)
    assert len(host.instances()["web"]["cpus"]) == 6
    again = host.json("apply", f"--directory={last_act.kept.parent}")
    assert (again["status"], again["undeclared"]) == ("unchanged", [])


def test_what_is_absent_is_not_in_the_way_of_another_baseline(host: Host, last_act: Role) -> None:
    last_act.run({"name": "web", "cpus": "4-7", "memory": "2GB"})
    absent = {"name": "web", "state": "absent"}
    last_act.run(absent, check=True, baseline="minimal.dts")
    assert set(host.instances()) == {"web"}
    last_act.run(absent, baseline="minimal.dts")
    shown = host.json("show")
    assert (shown["instances"], shown["hardware"]["cpus"]["total"]) == ({}, 8)


def test_a_key_that_no_declaration_has_is_refused_and_not_dropped(last_act: Role) -> None:
    assert "Unknown key 'cpu_share'" in last_act.run(
        {"name": "web", "cpus": "4-7", "memory": "2GB", "cpu_share": "5"}, ok=False
    )
    assert not last_act.kept.exists()


def test_a_baseline_is_applied_once(empty: Host, play: Play) -> None:
    (planned,) = play.run(baseline(empty, "baseline.dts"), check=True)
    assert planned["changed"]
    assert (empty.root / "device_tree").read_bytes() == b""
    first, second, wrong = play.run(
        baseline(empty, "baseline.dts"),
        baseline(empty, "baseline.dts"),
        baseline(empty, "conflict_example.dts"),
    )
    assert (first["changed"], second["changed"], first["simulated"]) == (True, False, True)
    assert first["diff"][0]["after"]["cpus"]["total"] == 32
    assert "CPU 16 does not exist" in wrong["msg"]
    assert {"cpu-not-found", "pci-id-form"} <= {error["code"] for error in wrong["errors"]}


def test_hardware_is_reported(play: Play) -> None:
    (found,) = play.run({"zernel.fleet.zernel_hardware_info": {"executable": str(ZERNEL)}})
    assert not found["changed"]
    assert len(found["hardware"]["cpus"]) >= 1
    assert found["hardware"]["multikernel"] is False


def role(tmp_path: Path, task: str, **variables: Any) -> dict[str, Any]:
    names = {"name": "zernel.fleet.multikernel", "tasks_from": task, "rolespec_validate": False}
    file = {"_zernel_multikernel_baseline": str(tmp_path / "baseline.dts")}
    return {"ansible.builtin.import_role": names, "vars": {**file, **variables}}


def roles(tmp_path: Path, **variables: Any) -> list[dict[str, Any]]:
    tasks = [role(tmp_path, task, **variables) for task in ("preflight", "inspect", "configure")]
    head = {"hosts": "localhost", "connection": "local", "gather_facts": False}
    return [{**head, "vars": {"ansible_python_interpreter": sys.executable}, "tasks": tasks}]


@pytest.mark.root
def test_the_role_renders_a_valid_baseline_of_this_machine(play: Play, tmp_path: Path) -> None:
    text = play.playbook(roles(tmp_path, zernel_multikernel_simulate=True))
    assert "changed=1" in text
    found = read_file(tmp_path / "baseline.dts")
    assert not found.problems
    assert found.system is not None
    shown = subprocess.run([ZERNEL, "show", "--hardware", "--format=json"], capture_output=True, check=True)
    proposal = json.loads(shown.stdout)["baseline"]
    resources = found.system.resources
    assert list(resources.cpus.available) == proposal["cpus"]["available"]
    assert resources.memory.pool_base == proposal["memory"]["memory_pool_base"]
    assert [device.name for device in resources.devices] == list(proposal["devices"])
    assert "changed=0" in play.playbook(roles(tmp_path, zernel_multikernel_simulate=True))


def test_the_role_refuses_what_cannot_be_and_leaves_other_hosts_alone(play: Play, tmp_path: Path) -> None:
    everything = {"zernel_multikernel_enabled": "always", "zernel_multikernel_host_cpus": "0-4000"}
    assert "cannot be split" in play.playbook(roles(tmp_path, **everything), ok=False)
    declared = {"zernel_multikernel_instances": [{"name": "web", "cpus": "1", "memory": "1GB"}]}
    assert "zernel_multikernel_simulate" in play.playbook(roles(tmp_path, **declared), ok=False)
    text = play.playbook(roles(tmp_path))
    assert "no multikernel file system: no baseline is written" in text
    assert "changed=0" in text
    assert not (tmp_path / "baseline.dts").exists()
