# SPDX-License-Identifier: GPL-3.0-or-later
"""The testbed keeps its promises with real guests: hardware as asked for, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import yaml

from testbed import CommandError, Guest, GuestSpec, TestbedError, boot_network, image
from testbed.cache import Cache
from testbed.cli import main
from testbed.detached import Detached
from testbed.errors import DiskFullError
from testbed.image import KERNEL_SERIES, Image
from testbed.inventory import write

TESTS = Path(__file__).parents[1]
T = TypeVar("T")


def test_the_guest_is_a_healthy_debian_13_with_a_sched_ext_kernel(guest: Guest) -> None:
    assert "VERSION_CODENAME=trixie" in guest.run("cat /etc/os-release").stdout
    assert guest.run("uname -r").stdout.startswith(f"{KERNEL_SERIES}.")
    assert guest.run("systemctl is-system-running --wait", check=False).stdout.strip() == "running"
    assert guest.run("cat /sys/kernel/sched_ext/state").stdout.strip() == "disabled"
    assert guest.run("hostname").stdout.strip() == guest.spec.name


def test_the_guest_has_the_cpus_nodes_and_disks_asked_for(guest: Guest) -> None:
    assert guest.run("nproc").stdout.strip() == "4"
    nodes = guest.run("cd /sys/devices/system/node && cat node0/cpulist node1/cpulist && ls -d node*").stdout
    assert nodes.split() == ["0-1", "2-3", "node0", "node1"]
    sizes = guest.run("cat /sys/block/vdb/size /sys/block/nvme0n1/size").stdout.split()
    assert sizes == [str(64 << 11)] * 2


def test_apt_in_the_guest_reaches_the_machines_mirror(guest: Guest) -> None:
    output = guest.run("apt-get -q update", timeout=300).stdout
    assert "trixie-backports" in output
    assert "Err:" not in output


def test_the_agents_dependencies_need_no_download(guest: Guest) -> None:
    command = "apt-get --print-uris -qq --no-install-recommends install python3-libfdt python3-cryptography"
    assert guest.run(command).stdout == ""


def test_a_command_that_fails_says_so(guest: Guest) -> None:
    with pytest.raises(CommandError, match=r"(?s)status 7.*| out.*| err") as caught:
        guest.run("echo out; echo err >&2; exit 7")
    assert (caught.value.returncode, caught.value.stdout, caught.value.stderr) == (7, "out\n", "err\n")
    assert guest.run("exit 7", check=False).returncode == 7
    assert guest.run(["echo", "a b;c"]).stdout == "a b;c\n"
    assert guest.run("cat", stdin="given\n").stdout == "given\n"
    with pytest.raises(TestbedError, match="did not end within 1 s"):
        guest.run("sleep 30", timeout=1)


def test_files_and_trees_are_copied_with_their_modes(guest: Guest, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "tool").write_text("#!/bin/sh\necho ran\n")
    (tree / "tool").chmod(0o755)
    guest.put(tree, "/opt/testbed/x.y")
    assert guest.run("/opt/testbed/x.y/tool").stdout == "ran\n"
    guest.put(tree / "tool", "/opt/testbed/one")
    assert guest.run("stat -c '%U %a' /opt/testbed/one").stdout == "root 755\n"
    guest.get("/opt/testbed/one", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tree / "tool").read_bytes()


def test_a_port_of_the_guests_loopback_can_be_reached_from_here(guest: Guest) -> None:
    guest.run("mkdir -p /opt/www && echo hello > /opt/www/page")
    guest.run("systemd-run --unit=www python3 -m http.server -b 127.0.0.1 -d /opt/www 9091")
    try:
        with guest.forward(9091) as port:
            assert _fetch(f"http://127.0.0.1:{port}/page") == b"hello\n"
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=5)
    finally:
        guest.run("systemctl stop www")


def test_the_inventory_lets_ansible_in(guest: Guest, tmp_path: Path) -> None:
    inventory = write(tmp_path / "inventory.yml", [guest])
    hosts = yaml.safe_load(inventory.read_text())["all"]["children"]["zernel"]["hosts"]
    assert list(hosts) == [guest.spec.name]
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible"), "-i", inventory, "zernel", "-m", "ansible.builtin.ping"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "SUCCESS" in done.stdout, done.stdout + done.stderr


def test_a_kernel_that_panics_ends_the_boot_with_its_last_words(guest_image: Image, tmp_path: Path) -> None:
    serial = tmp_path / "serial.log"
    # Without its initrd the image's kernel has no driver for the disk.
    spec = GuestSpec(name="panics", kernel=guest_image.kernel)
    with pytest.raises(TestbedError, match=r"(?s)panicked.*\| .*Kernel panic.*Suggestion: Build virtio_blk"):
        Guest.boot(spec, image=guest_image, serial_log=serial)
    assert "Kernel panic" in serial.read_text(errors="replace")


def test_a_guest_that_never_answers_is_given_up_with_its_last_words(guest_image: Image) -> None:
    spec = GuestSpec(name="mute", kernel_options="init=/bin/sh quiet", boot_timeout=12)
    with pytest.raises(TestbedError, match=r"(?s)did not answer over SSH in time.*\| .*Suggestion"):
        Guest.boot(spec, image=guest_image)


class _Hopeful(Cache):
    """A cache that starts a build however little room there is."""

    def ensure(self, kind: str, key: str, build: Callable[[Path], None], needs_mib: int) -> Path:
        return super().ensure(kind, key, build, 0)


@pytest.mark.parametrize("mib", [48, 160])
def test_a_disk_that_fills_up_while_the_image_is_built_is_named_and_cleaned(tmp_path: Path, mib: int) -> None:
    """In the smaller one there is no room for the package lists, in the larger one none for the packages."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", tmp_path], check=True)
    try:
        with pytest.raises(
            DiskFullError,
            match=r"(?s)the guest image: the disk is full.*(No space|MiB free).*Suggestion",
        ):
            image.ensure(cache=_Hopeful(tmp_path))
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".lock-")] == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_guests_reach_each_other_on_their_private_network(guest_image: Image) -> None:
    with boot_network([GuestSpec(name="left"), GuestSpec(name="right")], guest_image) as (left, right):
        for here, there in ((left, "guest2"), (right, "guest1")):
            banner = f"python3 -c \"import socket; print(socket.create_connection(('{there}', 22)).recv(4))\""
            assert here.run(banner).stdout.strip() == "b'SSH-'"
        assert left.private_address == "10.77.0.1"
        processes = [left.process, right.process]
        files = [left.files.directory, right.files.directory]
    assert not any(process.alive() for process in processes)
    assert not any(path.exists() for path in files)


def test_a_detached_guest_stays_until_it_is_told_to_go(
    small_kernel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also boots a kernel of one's own, without an initrd."""
    place = Detached("stays", tmp_path / "state")
    options = ["--name", "stays", "--state", str(place.root)]
    command = [sys.executable, "-m", "testbed", "boot", "--detach", *options, "--kernel", str(small_kernel)]
    try:
        booted = _testbed(command)
        assert booted.returncode == 0, booted.stderr
        assert main(["status", "--state", str(place.root)]) == 0
        assert "stays: running" in capsys.readouterr().out
        again = _testbed(command)
        assert again.returncode == 1
        assert "is running already" in again.stderr
        guest = place.guest()
        assert guest.run("uname -r").stdout.startswith("6.12.")
        assert guest.run("cat /sys/kernel/sched_ext/state").stdout.strip() == "disabled"
        before = guest.run("cat /proc/sys/kernel/random/boot_id").stdout
        guest.reboot()
        assert guest.run("cat /proc/sys/kernel/random/boot_id").stdout != before
        guest.detach()
        process = guest.process
    finally:
        assert main(["down", *options]) == 0
    assert not process.alive()
    assert not place.directory.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_of_a_guest_survives_its_command(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "testbed", "boot", "--name", "brief"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell starts background jobs with SIGINT ignored, and what they start inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    serial = _until(lambda: next((tmp_path / "tmp").glob("zernel-guest-*/serial.log"), None))
    directory = serial.parent
    _until(lambda: serial.stat().st_size)
    assert _qemu_of(directory)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    _until(lambda: not _qemu_of(directory))
    if number == signal.SIGKILL:
        # Nobody was left to remove the files; the next boot does.
        subprocess.run([sys.executable, "-c", "from testbed.guest import sweep; sweep()"], env=environment)
    assert list((tmp_path / "tmp").iterdir()) == []


def _testbed(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def _qemu_of(directory: Path) -> list[str]:
    """Return the ids of processes whose command line names the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"file:{directory}/serial.log".encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            continue
    return found


def _until(condition: Callable[[], T | None], seconds: float = 30.0) -> T:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return result


def _fetch(url: str) -> bytes:
    """Fetch a page from a server that may still be starting."""
    for _ in range(40):
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")
