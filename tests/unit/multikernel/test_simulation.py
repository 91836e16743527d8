# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated file system: the kernel's behaviour as it is known, and never to be taken for a kernel."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zernel.devicetree import fdt
from zernel.devicetree.model import Instance
from zernel.devicetree.tree import Node, Property, Tree
from zernel.multikernel.wire_v1 import V1

from .conftest import Host, mounted, wait_until, write_overlay


def number_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what is looked at
        call()
    return caught.value.errno


def write(host: Host, name: str, *pieces: bytes) -> None:
    descriptor = os.open(host.root / name, os.O_WRONLY)
    try:
        for piece in pieces:
            os.write(descriptor, piece)
    finally:
        os.close(descriptor)


def statuses(host: Host) -> dict[str, str]:
    overlays = host.root / "overlays"
    return {
        path.name: (path / "status").read_text().strip() for path in overlays.iterdir() if path.name != "new"
    }


def test_everything_about_the_mount_says_simulated(empty: Host) -> None:
    line = next(line for line in open("/proc/mounts") if str(empty.root) in line)  # noqa: SIM115, PTH123
    assert line.startswith("zernel-simulated ")
    assert " fuse.zernel-simulated " in line
    assert "SIMULATED" in (empty.root / "SIMULATED").read_text()


def test_the_tree_before_and_after_a_transaction(host: Host) -> None:
    assert sorted(path.name for path in host.root.iterdir()) == [
        "SIMULATED",
        "SIMULATED.calls",
        "SIMULATED.identity",
        "SIMULATED.kernels",
        "device_tree",
        "instances",
        "overlays",
    ]
    write_overlay(host, V1().create(Instance("a", None, (4,), 0x80000000, 4096)))
    transaction = host.root / "overlays/tx_2"
    assert {path.name: path.read_bytes() for path in transaction.iterdir() if path.name != "dtbo"} == {
        "id": b"2\n",
        "status": b"applied\n",
        "instance": b"a\n",
        "resources": b"cpus=4 memory-base=0x80000000 memory-bytes=0x1000\n",
    }
    assert fdt.read((transaction / "dtbo").read_bytes(), "dtbo").root.child("fragment@0")
    assert (host.root / "instances/a/id").read_text() == "1\n"
    modes = {
        name: oct((host.root / name).stat().st_mode & 0o777)
        for name in ("device_tree", "overlays/new", "instances/a/id")
    }
    assert modes == {"device_tree": "0o644", "overlays/new": "0o200", "instances/a/id": "0o444"}


@pytest.mark.parametrize(
    "change",
    [
        {"cpus": (3,)},
        {"cpus": (40,)},
        {"cpus": (5, 5)},
        {"cpus": ()},
        {"memory_base": 0x1000},
        {"memory_base": 0x80000800},
        {"memory_bytes": 0},
        {"memory_bytes": 1 << 40},
        {"id": 0},
        {"id": 3000},
        {"id": 1},
        {"name": "a"},
        {"cpus": (4,)},
        {"memory_base": 0x80000000},
    ],
)
def test_an_operation_that_fails_is_a_write_that_succeeds(host: Host, change: dict[str, object]) -> None:
    write_overlay(host, V1().create(Instance("a", 1, (4,), 0x80000000, 4096)))
    values = {"name": "b", "id": 2, "cpus": (5,), "memory_base": 0x80001000, "memory_bytes": 4096, **change}
    write_overlay(host, V1().create(Instance(**values)))  # type: ignore[arg-type]
    assert statuses(host) == {"tx_2": "applied", "tx_3": "failed"}
    assert set(host.instances()) == {"a"}


def test_what_is_no_overlay_is_refused_by_the_write(host: Host) -> None:
    good = V1().remove("a")
    wrong = fdt.write(Tree(Node("/", properties=[Property("compatible", ("other",))])))
    for blob in (b"x" * 100, b"\xd0\x0d\xfe\xed" + b"\xff" * 96, good + b"more", good[:-1], b"\xd0", wrong):
        assert number_of(lambda blob=blob: write(host, "overlays/new", blob)) == errno.EINVAL  # type: ignore[misc]
    assert number_of(lambda: write(host, "overlays/new", good, good)) == errno.EINVAL  # the offset is not 0
    # The first half of the last one was a whole overlay.
    assert statuses(host) == {"tx_2": "failed"}


def test_blobs_above_a_mebibyte_are_refused_and_large_ones_are_put_together(host: Host) -> None:
    def blob(size: int) -> bytes:
        filler = Property("filler", (bytes(size),))
        operation = Node("instance-remove", properties=[Property("instance-name", ("nobody",)), filler])
        content = Node("fragment@0", children=[Node("__overlay__", children=[operation])])
        return fdt.write(
            Tree(
                Node(
                    "/",
                    properties=[Property("compatible", ("linux,multikernel-overlay",))],
                    children=[content],
                )
            )
        )

    write_overlay(host, blob(600_000))
    assert statuses(host) == {"tx_2": "failed"}
    assert (host.root / "overlays/tx_2/dtbo").read_bytes() == blob(600_000)
    assert number_of(lambda: write(host, "overlays/new", blob(1 << 20))) == errno.EFBIG


def test_baselines_that_the_kernel_would_refuse(empty: Host) -> None:
    def blob(cpus: tuple[int, ...] = (1,), base: int = 0x1000, size: int = 0x1000, *children: Node) -> bytes:
        resources = Node(
            "resources",
            properties=[
                Property("cpus", (fdt.u64(*cpus),)),
                Property("memory-base", (fdt.u64(base),)),
                Property("memory-bytes", (fdt.u64(size),)),
            ],
        )
        return fdt.write(Tree(Node("/", children=[resources, *children])))

    bad = [
        blob(()),
        blob(base=0x1001),
        blob(size=0),
        blob((1,), 0x1000, 0x1000, Node("instances", children=[Node("a")])),
        fdt.write(Tree(Node("/"))),
    ]
    for data in bad:
        assert number_of(lambda data=data: write(empty, "device_tree", data)) == errno.EINVAL  # type: ignore[misc]
    assert (empty.root / "device_tree").read_bytes() == b""
    write(empty, "device_tree", blob())
    assert (empty.root / "device_tree").read_bytes() == blob()


def test_a_baseline_in_use_is_busy(host: Host) -> None:
    write_overlay(host, V1().create(Instance("a", 1, (4,), 0x80000000, 4096)))
    blob = (host.root / "device_tree").read_bytes()
    assert number_of(lambda: write(host, "device_tree", blob)) == errno.EBUSY


def test_directories_cannot_be_made_or_removed_by_hand(host: Host) -> None:
    write_overlay(host, V1().create(Instance("a", 1, (4,), 0x80000000, 4096)))
    assert number_of((host.root / "instances/b").mkdir) == errno.EPERM
    assert number_of((host.root / "overlays/tx_2").rmdir) == errno.EPERM
    assert number_of((host.root / "file").touch) == errno.EPERM
    assert number_of((host.root / "device_tree").unlink) == errno.EPERM
    assert number_of(lambda: write(host, "instances/a/id", b"7")) in (errno.EACCES, errno.EPERM)
    assert number_of((host.root / "overlays/tx_99/status").read_text) == errno.ENOENT


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_unmounts_and_forgets_when_stopped(host: Host, how: signal.Signals) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    assert host.stop(how) == 0
    assert not mounted(host.root)
    host.start()
    assert (host.root / "device_tree").read_bytes() == b""


def test_it_ends_when_it_is_unmounted(empty: Host) -> None:
    subprocess.run(["umount", empty.root], check=True)
    assert empty.server is not None
    assert empty.server.wait(5) == 0


def test_in_the_background(bare: Host) -> None:
    data = bare.json("simulate", "multikernel", str(bare.root), "--background")
    assert (data["simulated"], data["status"]) == (True, "mounted")
    bare.init()
    assert "already" in bare.refused("simulate", "multikernel", str(bare.root), "--background")
    subprocess.run(["umount", bare.root], check=True)
    wait_until(lambda: not os.path.exists(f"/proc/{data['pid']}"))  # noqa: PTH110


def test_a_dead_simulation_is_explained_and_replaced(host: Host) -> None:
    assert host.stop(signal.SIGKILL) == -signal.SIGKILL
    assert mounted(host.root)
    shown = host.refused("show")
    assert "died and left its mount behind" in shown
    assert f"umount -l {host.root}" in shown
    host.start()
    host.init()


def test_a_file_is_no_mount_point(bare: Host) -> None:
    bare.root.touch()
    for extra in ([], ["--background"]):
        assert "is no directory" in bare.refused("simulate", "multikernel", str(bare.root), *extra)


def test_a_directory_with_files_is_no_mount_point(bare: Host) -> None:
    bare.root.mkdir()
    (bare.root / "file").touch()
    assert "is not empty" in bare.refused("simulate", "multikernel", str(bare.root))


def test_a_link_is_resolved_and_never_mounted_upon_twice(bare: Host, tmp_path: Path) -> None:
    bare.root = tmp_path / "the place"
    link = tmp_path / "link"
    bare.root.mkdir()
    link.symlink_to(bare.root)
    shown = bare.ok("simulate", "multikernel", str(link), "--background")
    assert f"umount '{bare.root}'" in shown
    for path in (link, bare.root):
        assert "mounted at" in bare.refused("simulate", "multikernel", str(path), "--background")
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    assert sum("/the\\040place " in line and str(tmp_path) in line for line in lines) == 1
    bare.environ["ZERNEL_MULTIKERNEL_ROOT"] = str(link)
    bare.init()
    subprocess.run(["umount", bare.root], check=True)


def test_the_childs_own_error_is_shown(bare: Host) -> None:
    script = (
        "import sys; from zernel.cli.main import main; from zernel.multikernel import mounts;"
        "mounts.mount = lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device'));"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "simulate", "multikernel", str(bare.root), "--background"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "root" not in done.stderr.partition("Suggestion")[2]
