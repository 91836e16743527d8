# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel load``, ``exec``, ``kill`` and ``unload`` against the simulation, which serves their calls."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from host import images
from host.test_kernel_image import COMPRESSIONS, NAMES

from .conftest import BOTH, ZERNEL, Host
from .lives import bring, loaded, pending, status, words


@BOTH
def test_a_whole_life(web: Host, kernel: Path, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd.img"
    initrd.write_bytes(b"x" * 1000)
    options = (f"--kernel={kernel}", f"--initrd={initrd}", "--cmdline=root=/dev/sda1 ro")
    shown = web.ok("load", "web", *options)
    assert f"✓ Instance web loaded with {kernel}" in shown
    assert "Kernel: out of a bzImage (gzip), 1MB in memory" in shown
    assert "Command line: root=/dev/sda1 ro" in shown
    assert "SIMULATED" in shown
    size = len(images.kernel())
    assert loaded(web) == {
        "web": {"kernel_bytes": size, "initrd_bytes": 1000, "cmdline": "root=/dev/sda1 ro"}
    }
    for verb, done, after in (("exec", "booted", "active"), ("kill", "stopped", "loaded")):
        assert f"✓ Instance web {done}\n" in web.ok(verb, "web")
        assert status(web) == after
        assert f"Instance web ({after})" in web.ok("show")
        assert web.instances()["web"]["status"] == after
    assert "✓ Instance web unloaded\n" in web.ok("unload", "web")
    assert status(web) == "ready"
    assert loaded(web) == {}
    web.ok("delete", "web")


def test_the_forms_of_the_document(web: Host, kernel: Path, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd.img"
    initrd.write_bytes(b"x")
    web.ok("load", "-k", str(kernel), "-i", str(initrd), "-c", "console=ttyS0", "--id=1", "--verbose")
    assert loaded(web)["web"]["cmdline"] == "console=ttyS0"
    for line in (
        ["exec", "--verbose", "web"],
        ["kill", "--force", "web"],
        ["exec", "--id", "1"],
        ["kill", "-f", "--id=1"],
        ["unload", "--format", "text", "web"],
        ["load", "--kernel", str(kernel), "web", "--cmdline", "quiet"],
    ):
        web.ok(*line)
    assert (loaded(web)["web"]["cmdline"], loaded(web)["web"]["initrd_bytes"]) == ("quiet", None)


@BOTH
def test_the_data_of_each_step(web: Host, kernel: Path) -> None:
    done = web.json(*words("load", kernel, "--cmdline=ro"))
    assert done["kernel"] == {
        "path": str(kernel),
        "compression": "gzip",
        "elf_bytes": len(images.kernel()),
        "memory_bytes": 1 << 20,
        "entry": 0x1000000,
    }
    assert (done["initrd"], done["cmdline"]) == (None, "ro")
    assert (done["before"]["status"], done["after"]["status"]) == ("ready", "loaded")
    assert done["instance"] == web.instances()["web"]
    common = {"status", "changed", "dry_run", "simulated", "before", "after", "instance", "notes"}
    assert set(done) == common | {"kernel", "initrd", "cmdline"}
    seen = [(done["status"], done["changed"], done["simulated"])]
    for verb in ("exec", "kill", "unload"):
        done = web.json(verb, "web")
        assert set(done) == common
        seen.append((done["status"], done["changed"], done["simulated"]))
    assert [text for text, *_ in seen] == ["loaded", "active", "stopped", "unloaded"]
    assert all(rest == [True, True] for _, *rest in seen)


@pytest.mark.parametrize(
    "line",
    [
        ["load", "web"],
        ["load", "--kernel=x"],
        ["exec"],
        ["kill", "web", "--id=1"],
        ["kill", "--id=0"],
        ["kill", "--id=2048"],
        ["unload", "--id=-1"],
        ["unload", "--id=²"],
        ["exec", "web", "db"],
        ["exec", "web", "--force"],
        ["rollback", "tx_2", "--give-up"],
    ],
)
def test_wrong_usage_is_status_2(bare: Host, line: list[str]) -> None:
    assert bare.run(*line).returncode == 2


@pytest.mark.parametrize(
    ("state", "verb", "headline", "suggestion"),
    [
        ("loaded", "load", "A kernel is loaded already", "Unload it first: zernel unload web"),
        ("active", "load", "A kernel is running", "unload it first: zernel kill web && zernel unload web"),
        ("ready", "unload", "No kernel is loaded", "Load one: zernel load web --kernel=FILE"),
        ("active", "unload", "The kernel is running", "Stop it first: zernel kill web"),
        ("ready", "exec", "No kernel is loaded", "Load one first: zernel load web --kernel=FILE"),
        ("active", "exec", "The kernel is running already", "Stop it first: zernel kill web"),
        ("ready", "kill", "The instance is not running", "Load a kernel: zernel load web --kernel=FILE"),
        ("loaded", "kill", "The instance is not running", "zernel unload web, zernel exec web"),
        ("loaded", "delete", "The instance is loaded", "kernel first: zernel unload web"),
        ("active", "delete", "The instance is active", "first: zernel kill web && zernel unload web"),
    ],
)
def test_a_step_out_of_order_names_the_commands_to_run(
    web: Host, kernel: Path, state: str, verb: str, headline: str, suggestion: str
) -> None:
    bring(web, kernel, state)
    shown = web.refused(*words(verb, kernel))
    assert shown.startswith(f"ERROR: web: {headline}\n")
    assert f"Current state: {state}\n" in shown
    assert suggestion in shown
    assert "SIMULATED" in shown
    assert web.run(*words(verb, kernel, "--dry-run")).stderr == shown
    assert status(web) == state


@pytest.mark.parametrize(
    ("state", "verb"),
    [
        ("loaded", "load"),
        ("active", "load"),
        ("ready", "unload"),
        ("active", "exec"),
        ("ready", "kill"),
        ("loaded", "kill"),
    ],
)
def test_ensure_accepts_what_is_so_already(web: Host, kernel: Path, state: str, verb: str) -> None:
    bring(web, kernel, state)
    assert f"✓ Instance web is {state} already: nothing to change" in web.ok(*words(verb, kernel, "--ensure"))
    done = web.json(*words(verb, kernel, "--ensure"))
    assert (done["changed"], done["status"]) == (False, "unchanged")
    assert done["before"] == done["after"]
    assert status(web) == state


def test_ensure_still_does_what_is_to_be_done(web: Host, kernel: Path) -> None:
    for verb, after in (("load", "loaded"), ("exec", "active"), ("kill", "loaded"), ("unload", "ready")):
        assert web.json(*words(verb, kernel, "--ensure"))["changed"]
        assert status(web) == after
    assert "No kernel is loaded" in web.refused("exec", "web", "--ensure")


def test_a_dry_run_gives_the_text_of_the_real_run_and_does_nothing(web: Host, kernel: Path) -> None:
    participles = {"load": "loaded", "exec": "booted", "kill": "stopped", "unload": "unloaded"}
    for verb, done in participles.items():
        before = status(web)
        planned = web.ok(*words(verb, kernel, "--dry-run"))
        data = web.json(*words(verb, kernel, "--dry-run"))
        assert (data["status"], data["changed"], data["dry_run"]) == ("planned", True, True)
        assert status(web) == before
        assert not pending(web)
        real = web.ok(*words(verb, kernel))
        assert planned.replace(" (dry run: nothing was done)", "").replace(f"can be {done}", done) == real


def test_a_forced_halt_may_be_repeated(web: Host, kernel: Path) -> None:
    bring(web, kernel, "loaded")
    done = web.json("kill", "web", "--force")
    assert (done["changed"], done["after"]["status"]) == (True, "loaded")
    assert not web.json("kill", "web", "--force", "--ensure")["changed"]
    web.ok("unload", "web")
    assert "not running" in web.refused("kill", "web", "--force")


@pytest.mark.parametrize("verb", ["load", "exec", "kill", "unload"])
def test_an_instance_that_is_not_there(web: Host, kernel: Path, verb: str) -> None:
    more = [f"--kernel={kernel}"] if verb == "load" else []
    assert "Did you mean:\n    - web" in web.refused(verb, "wep", *more)
    assert "There is no instance with id 7\n  Ids: 1 (web)\n" in web.refused(verb, "--id=7", *more)
    for name in ("../../evil", "a/b", "", "x" * 300):
        assert web.run(verb, name, *more).returncode == 1
    # Unlike delete, nothing of the kind is "so already".
    assert "no such instance" in web.refused(verb, "wep", *more, "--ensure")


def test_everything_that_is_wrong_is_said_at_once(web: Host, kernel: Path, tmp_path: Path) -> None:
    bring(web, kernel, "loaded")
    done = web.run(
        "load", "web", "--kernel=/bin/sh", f"--initrd={tmp_path}", f"--cmdline={'x' * 3000}", "--format=json"
    )
    codes = [error["code"] for error in json.loads(done.stdout)["errors"]]
    assert codes == ["kernel-image", "initrd", "cmdline", "load-status"]
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("cmdline", "reason"),
    [("a\nb", "control character"), ("\x01", "control character"), ("x" * 2048, "2048 bytes")],
)
def test_command_lines_that_are_not_possible(web: Host, kernel: Path, cmdline: str, reason: str) -> None:
    assert reason in web.refused("load", "web", f"--kernel={kernel}", f"--cmdline={cmdline}")
    assert status(web) == "ready"


@pytest.mark.parametrize("cmdline", ["x" * 2047, "ä" * 1023, 'quote="a b" \\n %s'])
def test_command_lines_reach_the_kernel_as_they_are(web: Host, kernel: Path, cmdline: str) -> None:
    web.ok("load", "web", f"--kernel={kernel}", f"--cmdline={cmdline}")
    assert loaded(web)["web"]["cmdline"] == cmdline


def test_initrds_that_cannot_be_used(web: Host, kernel: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    with (tmp_path / "huge").open("wb") as file:
        file.truncate((4 << 30) + 1)
    for name, reason in (
        ("none", "No such file"),
        ("fifo", "no regular file"),
        ("empty", "It is empty"),
        ("huge", "larger than 4 GiB"),
    ):
        shown = web.refused("load", "web", f"--kernel={kernel}", f"--initrd={tmp_path / name}")
        assert f"ERROR: {tmp_path / name}: The initrd cannot be used\n  " in shown
        assert reason in shown
    assert status(web) == "ready"


def test_a_kernel_that_does_not_fit_is_refused(host: Host, kernel: Path, tmp_path: Path) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=2MB")
    initrd = tmp_path / "initrd.img"
    with initrd.open("wb") as file:
        file.truncate(1 << 20)
    host.ok("load", "web", f"--kernel={kernel}", f"--initrd={initrd}")
    host.ok("unload", "web")
    with initrd.open("ab") as file:
        file.truncate((1 << 20) + 1)
    shown = host.refused("load", "web", f"--kernel={kernel}", f"--initrd={initrd}")
    assert "The kernel does not fit into the instance's memory\n  Current state: 2MB at 0x80000000" in shown


@pytest.mark.parametrize("compress", COMPRESSIONS, ids=NAMES)
def test_a_bzimage_of_each_compression(web: Host, tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(images.bzimage(compress(images.kernel())))
    web.ok("load", "web", f"--kernel={image}")
    assert loaded(web)["web"]["kernel_bytes"] == len(images.kernel())


MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stderr=subprocess.PIPE, text=True)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, done.stderr)
"""
"""Runs a command and prints its status, its peak memory in KiB, and its errors. A process of its own, as
memory of the one that forks counts, too."""


@pytest.mark.parametrize("packer", ["gzip -1", "xz -0", "zstd"])
def test_what_unpacks_to_no_kernel_is_refused_before_it_takes_memory(
    web: Host, tmp_path: Path, packer: str
) -> None:
    zeros = 256 << 20
    packed = subprocess.run(
        f"head -c {zeros} /dev/zero | {packer} -c", shell=True, capture_output=True, check=True
    )
    image = tmp_path / "bzImage"
    image.write_bytes(images.bzimage(packed.stdout))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, ZERNEL, "load", "web", f"--kernel={image}"],
        env=web.environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    status, peak, shown = done.stdout.split(" ", 2)
    assert status == "1"
    assert "what it holds is no 64-bit ELF file" in shown
    assert int(peak) << 10 < zeros / 2


def test_a_kernel_that_is_an_elf_file_already(web: Host, tmp_path: Path) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(images.kernel())
    assert "an ELF file as it is" in web.ok("load", "web", f"--kernel={image}")


def debian_kernel(made: Path) -> Path:
    """Return a kernel of Debian's, as the guests of the other tests leave one behind, or else a made one."""
    cache = Path.home() / ".cache/zernel"
    found = [*Path("/boot").glob("vmlinuz-*"), *cache.glob("image-*/vmlinuz"), *cache.glob("*/bzImage")]
    return next((path for path in sorted(found) if path.stat().st_size), made)


def test_debians_kernel(web: Host, kernel: Path) -> None:
    image = debian_kernel(kernel)
    done = web.json("load", "web", f"--kernel={image}")
    assert done["kernel"]["compression"]
    assert done["kernel"]["elf_bytes"] == loaded(web)["web"]["kernel_bytes"]
    web.ok("exec", "web")


# -- a kernel that refuses, or does not do what it says -----------------------------------------------------


@pytest.mark.parametrize(
    ("faulty", "state", "verb", "says", "suggestion"),
    [
        (["load-einval"], "ready", "load", "Invalid argument (EINVAL)", "Run it again"),
        (["load-enomem"], "ready", "load", "(ENOMEM)", "Run it again: a simulation refuses"),
        (
            ["load-lost"],
            "ready",
            "load",
            "The call succeeded, and the instance does not show it",
            "Run it again",
        ),
        (["unload-lost"], "loaded", "unload", "The call succeeded", "journalctl"),
        (["boot-failed"], "loaded", "exec", "reboot(2) for id 1: Input/output error (EIO)", "Run it again"),
        (["boot-lost"], "loaded", "exec", "The call succeeded", "zernel unload web"),
        (["halt-ignored"], "active", "kill", "The call succeeded", "zernel kill web --force"),
    ],
    indirect=["faulty"],
)
def test_a_call_that_does_not_work(
    faulty: Host, kernel: Path, state: str, verb: str, says: str, suggestion: str
) -> None:
    faulty.ok("create", "web", "--cpus=4-7", "--memory=2GB")
    bring(faulty, kernel, state)
    shown = faulty.refused(*words(verb, kernel))
    assert shown.startswith("ERROR: web: The kernel did not ")
    assert says in shown
    assert f"Current state: {state}" in shown
    assert suggestion in shown.partition("Suggestion: ")[2].splitlines()[0]
    assert "SIMULATED" in shown
    assert status(faulty) == state
    assert not pending(faulty)
    faulty.ok(*words(verb, kernel, *(["--force"] if verb == "kill" else [])))


@pytest.mark.parametrize("faulty", [["load-enomem"]], indirect=True)
def test_memory_that_is_short_is_told_only_where_the_kernel_takes_much_of_it(
    faulty: Host, kernel: Path
) -> None:
    faulty.ok("create", "web", "--cpus=4-7", "--memory=1MB")
    shown = faulty.refused(*words("load", kernel))
    assert "Suggestion: Give the instance more memory: it has 1MB, kernel and initrd take 1MB" in shown


@pytest.mark.parametrize("faulty", [["boot-failed", "failed", "load-einval"]], indirect=True)
def test_a_fault_waits_for_the_call_that_it_is_for(faulty: Host, kernel: Path) -> None:
    create = ("create", "web", "--cpus=4-7", "--memory=2GB")
    for line in (create, words("load", kernel), ("exec", "web")):
        faulty.refused(*line)
        faulty.ok(*line)


def test_only_root_may(web: Host, kernel: Path) -> None:
    script = "import os, sys; os.geteuid = lambda: 1000; from zernel.cli.main import main; sys.exit(main())"
    for line, works in ((words("load", kernel), False), (words("load", kernel, "--dry-run"), True)):
        done = subprocess.run(
            [sys.executable, "-c", script, *line], env=web.environment(), capture_output=True, text=True
        )
        assert (done.returncode == 0) == works
        assert works or "Suggestion: Run the command as root" in done.stderr
    assert status(web) == "ready"


@pytest.mark.parametrize("verb", ["load", "exec", "unload"])
def test_a_status_that_nobody_knows_is_left_alone_but_for_kill(web: Host, kernel: Path, verb: str) -> None:
    script = (
        "import sys; from zernel.cli.main import main; from zernel.multikernel import fs;"
        "instance = fs.MultikernelFs.instance;"
        "fs.MultikernelFs.instance ="
        " lambda self, name: (instance(self, name)[0], 'failed', instance(self, name)[2]);"
        "sys.exit(main(sys.argv[1:]))"
    )

    def run(*line: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *line]
        return subprocess.run(command, env=web.environment(), capture_output=True, text=True)

    shown = run(*words(verb, kernel)).stderr
    assert "ERROR: web: The instance's status is 'failed'\n" in shown
    assert "Suggestion: Stop it: zernel kill web --force" in shown
    bring(web, kernel, "active")
    assert run("kill", "web", "--force").returncode == 0
    assert status(web) == "loaded"


def run_with(host: Host, patch: str, *line: str) -> subprocess.CompletedProcess[str]:
    """Run ``zernel`` with another port for its calls."""
    script = (
        "import os, sys; from zernel.cli.main import main; from zernel.multikernel import kexec;"
        f"{patch}; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *line]
    return subprocess.run(command, env=host.environment(), capture_output=True, text=True)


@pytest.mark.parametrize(
    ("number", "suggestion"),
    [
        ("ENOENT", "Another program changes the instances"),
        ("ESRCH", "Another program changes the instances"),
        ("EBUSY", "Another program changes the instances"),
        ("EPERM", "sysctl kernel.kexec_load_disabled must be 0, and lockdown must be off"),
        ("EKEYREJECTED", "Turn off the check of signatures"),
        ("ENOSYS", "Boot a kernel built with CONFIG_KEXEC_FILE"),
        ("ENOEXEC", "Give a kernel for this host's architecture"),
    ],
)
def test_each_error_says_what_to_do(web: Host, kernel: Path, number: str, suggestion: str) -> None:
    patch = (
        "import errno; error = lambda *_: (_ for _ in ()).throw("
        f"OSError(errno.{number}, os.strerror(errno.{number}))); kexec.SimulatedPort.call = error"
    )
    shown = run_with(web, patch, *words("load", kernel)).stderr
    assert f"kexec_file_load(2) for id 1: {os.strerror(getattr(errno, number))} ({number})" in shown
    assert suggestion in shown.partition("Suggestion: ")[2]
    assert not pending(web)


@pytest.mark.parametrize(("state", "verb"), [("ready", "load"), ("loaded", "exec"), ("loaded", "unload")])
def test_a_mount_that_is_no_multikernel_gets_no_call(web: Host, kernel: Path, state: str, verb: str) -> None:
    # As if the simulation had been taken for a kernel's file system: the last look still tells it apart.
    bring(web, kernel, state)
    patch = (
        "kexec.calls_of = lambda fs: kexec.KernelCalls("
        "kexec.SystemPort(fs.root, system_call=lambda *_: print('CALLED')))"
    )
    done = run_with(web, patch, *words(verb, kernel))
    assert done.returncode == 1
    assert "The system call was not made: this is no multikernel file system" in done.stderr
    assert "CALLED" not in done.stdout
    assert status(web) == state
    assert not pending(web)
