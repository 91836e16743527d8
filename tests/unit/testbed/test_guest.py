# SPDX-License-Identifier: GPL-3.0-or-later
"""What the testbed does without booting: refusals, identities, left-overs."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from testbed import Guest, GuestSpec, TestbedError, qemu
from testbed.cache import Cache
from testbed.cli import main
from testbed.detached import Detached
from testbed.guest import sweep
from testbed.image import Image, Recipe
from testbed.inventory import host_variables, render
from testbed.kernel import FRAGMENT, check_config
from testbed.ssh import Address

TESTS = Path(__file__).parents[2]
ADDRESS = Address(2222, Path("/cache/key with space"), Path("/cache/known_hosts"))


def _cli(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed", *words],
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_machine_without_qemu_is_told_which_package_to_install(tmp_path: Path) -> None:
    done = _cli("boot", PATH=str(tmp_path), ZERNEL_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert "ERROR: testbed: Missing programs: qemu-system-x86_64" in done.stderr
    assert "Suggestion: apt-get install" in done.stderr
    assert "qemu-system-x86" in done.stderr.partition("Suggestion")[2]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("words", [["--help"], ["boot", "--help"], ["kernel", "--help"], ["ssh", "--help"]])
def test_help_is_there(words: list[str]) -> None:
    done = _cli(*words)
    assert done.returncode == 0
    assert "usage: python3 -m testbed" in done.stdout


def test_wrong_usage_exits_2() -> None:
    assert _cli("boot", "--disk", "big").returncode == 2
    assert _cli("fly").returncode == 2


@pytest.mark.parametrize(
    "bad", [{"cpus": 0}, {"cpus": 2, "numa_nodes": 3}, {"memory_mib": 16}, {"name": "Bad Name"}, {"name": ""}]
)
def test_an_impossible_guest_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(TestbedError, match="Suggestion"):
        GuestSpec(**bad)  # type: ignore[arg-type]


def test_a_file_that_is_no_kernel_is_refused(tmp_path: Path) -> None:
    for name in ("image.json", "disk.img", "id_ed25519", "known_hosts"):
        (tmp_path / name).touch()
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(b"\x7fELF" + bytes(4096))
    with pytest.raises(TestbedError, match=r"(?s)not an x86 kernel.*Give a bzImage"):
        Guest.boot(GuestSpec(kernel=vmlinux, kvm=False), image=Image(tmp_path))
    with pytest.raises(TestbedError, match="is not a file"):
        Guest.boot(GuestSpec(kernel=tmp_path / "none", kvm=False), image=Image(tmp_path))


def test_a_machine_without_room_for_the_guests_writes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.guest._SCRATCH_MIB", 1 << 40)
    with pytest.raises(TestbedError, match="the disk is full"):
        Guest.boot(GuestSpec(kvm=False), image=Image(tmp_path))


def test_numa_nodes_share_cpus_and_memory() -> None:
    options = qemu.Machine(cpus=4, memory_mib=2048, numa_nodes=2).options()
    assert "node,nodeid=0,cpus=0-1,memdev=node0" in options
    assert "node,nodeid=1,cpus=2-3,memdev=node1" in options
    assert options.count("-object") == 2


def test_an_emulated_guest_never_has_a_thread_per_cpu() -> None:
    assert "tcg,thread=single" in qemu.Machine(kvm=False).options()


def test_an_inventory_names_every_guest_and_survives_odd_paths() -> None:
    text = render({"a": host_variables(ADDRESS), "b": host_variables(ADDRESS, "10.77.0.2")})
    hosts = yaml.safe_load(text)["all"]["children"]["zernel"]["hosts"]
    assert set(hosts) == {"a", "b"}
    assert hosts["a"]["ansible_port"] == 2222
    assert "'IdentityFile=/cache/key with space'" in hosts["a"]["ansible_ssh_common_args"]
    assert "ServerAliveInterval=5" in hosts["a"]["ansible_ssh_common_args"]
    assert hosts["b"]["testbed_private_address"] == "10.77.0.2"


def test_a_process_id_that_belongs_to_somebody_else_by_now_is_not_ours() -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        ours = qemu.Process.of(other.pid)
        assert ours.alive()
        reused = qemu.Process(other.pid, ours.started - 1)
        assert not reused.alive()
        reused.end(qemu.Files(Path("/nonexistent")))
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert not ours.alive()


def test_a_dead_guest_is_not_reported_as_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Detached("old", tmp_path)
    place.directory.mkdir()
    state = {
        "name": "old", "pid": os.getpid(), "started": 1, "port": 1, "image": "/i", "boot_seconds": 1.0,
        "private_key": "/k", "known_hosts": "/h", "kernel": "debian", "kvm": False,
    }  # fmt: skip
    (place.directory / "state.json").write_text(json.dumps(state))
    assert place.state() is None
    assert main(["status", "--state", str(tmp_path)]) == 0
    assert "old: dead" in capsys.readouterr().out
    assert main(["ssh", "--name", "old", "--state", str(tmp_path), "--", "true"]) == 1
    assert "No guest 'old' is running" in capsys.readouterr().err
    assert main(["down", "--name", "old", "--state", str(tmp_path)]) == 0
    assert not place.directory.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"name": 1}'])
def test_a_broken_state_file_counts_as_no_guest(tmp_path: Path, content: str) -> None:
    place = Detached("old", tmp_path)
    place.directory.mkdir()
    (place.directory / "state.json").write_text(content)
    assert place.state() is None


def test_clean_removes_what_is_out_of_date_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZERNEL_CACHE", str(tmp_path / "cache"))
    cache = Cache(tmp_path / "cache")
    current = cache.path("image", Recipe.for_machine().key)
    old, running = cache.path("image", "0" * 16), cache.path("image", "1" * 16)
    others = cache.root / "packages"
    for path in (current, old, running, others):
        path.mkdir(parents=True)
    # As QEMU has it, whichever clone or command booted the guest.
    with (running / "disk.img").open("w"):
        assert main(["clean"]) == 0
        assert sorted(cache.root.iterdir()) == sorted([current, running, others])
        assert main(["clean", "--all"]) == 0
        assert sorted(cache.root.iterdir()) == sorted([running, others])
    assert main(["clean", "--all"]) == 0
    assert list(cache.root.iterdir()) == [others]


def test_a_guest_whose_command_was_killed_while_it_booted_is_not_called_dead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Detached("orphan", tmp_path)
    place.directory.mkdir()
    with subprocess.Popen(["sleep", "60"]) as process:
        qemu.Process.of(process.pid).record(place.files)
        assert main(["status", "--state", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        process.kill()
    assert f"orphan: left behind by a command that was killed while it booted, pid {process.pid}" in shown
    assert "down --name orphan" in shown
    assert main(["status", "--state", str(tmp_path)]) == 0
    assert "orphan: dead" in capsys.readouterr().out


def test_left_overs_of_the_dead_are_swept_and_those_of_the_living_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, alive, other = (tmp_path / name for name in ("zernel-guest-a", "zernel-guest-b", "elsewhere"))
    for path in (dead, alive, other):
        path.mkdir()
        (path / "lock").touch()
    with (alive / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep()
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()


def test_a_kernel_option_that_was_dropped_is_named() -> None:
    with pytest.raises(TestbedError, match=r"(?s)CONFIG_B=y, got n.*Suggestion"):
        check_config("# why\nCONFIG_A=y\nCONFIG_B=y\n", "CONFIG_A=y\n# CONFIG_B is not set\n")
    with pytest.raises(TestbedError, match="CONFIG_C=n, got y"):
        check_config("CONFIG_C=n\n", "CONFIG_C=y\n")
    check_config("CONFIG_A=y\nCONFIG_C=n\n", "CONFIG_A=y\n")


def test_every_option_of_the_fragment_is_asked_for_once() -> None:
    names = [line.partition("=")[0] for line in FRAGMENT.read_text().splitlines() if line[:7] == "CONFIG_"]
    assert len(names) > 100
    assert sorted(set(names)) == sorted(names)
