# SPDX-License-Identifier: GPL-3.0-or-later
"""What is shown when a boot goes wrong, and what is left of it: the cause, and nothing.

QEMU is a stand-in here: it does what a test tells it to, for faults that no real one shows on demand.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from testbed import Guest, GuestSpec, TestbedError, guest, image, qemu
from testbed.cache import Cache
from testbed.cli import main
from testbed.detached import Detached
from testbed.guest import sweep
from testbed.image import Image
from testbed.tools import signals_held, unwind_when_ended

TESTS = Path(__file__).parents[2]
# A process that never answers, as a QEMU that hangs
HANGS = "exec sleep 300\n"
# One whose guest prints this on its console and never answers
PRINTS = """printf '%s\\n' 'Booting' '{}' >"$serial"; : >"$control"; exec sleep 300\n"""
PANIC = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
BOOT = """
import sys
from pathlib import Path
from testbed import Guest, GuestSpec
from testbed.detached import Detached
from testbed.image import Image
from testbed.tools import unwind_when_ended
unwind_when_ended()
spec, image = GuestSpec(name="early", kvm=False), Image(Path("image"))
if sys.argv[1:]:
    Detached("early", Path(sys.argv[1])).boot(spec, image)
else:
    Guest.boot(spec, image=image)
"""
# What each one does first
_HEAD = """#!/bin/sh
for word; do
  case $word in
    file:*serial.log) serial=${word#file:} ;;
    unix:*) control=${word#unix:}; control=${control%%,*} ;;
  esac
done
echo $$ >>"$FAKE_QEMU_PIDS"
"""


class FakeQemu:
    """A program of QEMU's name on PATH, in ``environment``; ``pids`` are those it ever ran as."""

    def __init__(self, directory: Path) -> None:
        self._program = directory / "bin/qemu-system-x86_64"
        self._program.parent.mkdir()
        self._pids = directory / "pids"
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.environment = {
            "PATH": f"{self._program.parent}{os.pathsep}{os.environ['PATH']}",
            "FAKE_QEMU_PIDS": str(self._pids),
            "TMPDIR": str(self.temporary),
            "ZERNEL_CACHE": str(directory / "cache"),
        }

    def does(self, script: str) -> None:
        """Set what it does, in sh; ``$serial`` and ``$control`` are paths from its command line."""
        self._program.write_text(_HEAD + script)
        self._program.chmod(0o755)

    @property
    def pids(self) -> list[int]:
        text = self._pids.read_text() if self._pids.exists() else ""
        return [int(line) for line in text.split()]

    @property
    def running(self) -> list[int]:
        return [pid for pid in self.pids if qemu.start_time(pid) is not None]

    def image(self) -> Image:
        """Return an image, in the cache of ``environment``, that only this QEMU boots."""
        path = Cache(Path(self.environment["ZERNEL_CACHE"])).path("image", image.Recipe.for_machine().key)
        path.mkdir(parents=True, exist_ok=True)
        return Image(path)


@pytest.fixture
def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQemu:
    """A stand-in for QEMU, on the PATH of this process and of what it starts."""
    fake = FakeQemu(tmp_path)
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(fake.temporary))
    return fake


def _until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def _boot_in_another_process(*state: Path) -> subprocess.Popen[bytes]:
    """Boot a guest, detached when ``state`` says where it is written down."""
    return subprocess.Popen(
        [sys.executable, "-c", BOOT, *map(str, state)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stderr=subprocess.DEVNULL,
        # A shell lets background jobs ignore SIGINT, nohup SIGHUP; what they start inherits that.
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)],
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_detached_guest_whose_command_is_interrupted_while_qemu_starts_is_ended(
    fake_qemu: FakeQemu, tmp_path: Path, number: signal.Signals
) -> None:
    fake_qemu.does(HANGS)
    process = _boot_in_another_process(tmp_path / "state")
    _until(lambda: fake_qemu.pids)
    process.send_signal(number)
    assert process.wait(20) != 0
    assert fake_qemu.running == []
    assert Detached("early", tmp_path / "state").state() is None


def test_a_guest_is_ended_when_the_interrupt_comes_before_qemu_is_known(
    fake_qemu: FakeQemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu.does(HANGS)

    def start(argv: list[str], files: qemu.Files, *, survives: bool) -> qemu.Process:
        process = original(argv, files, survives=survives)
        _until(lambda: fake_qemu.running)
        signal.raise_signal(signal.SIGINT)
        return process

    original = qemu.start
    monkeypatch.setattr(qemu, "start", start)
    with pytest.raises(KeyboardInterrupt):
        Guest.boot(GuestSpec(kvm=False), image=fake_qemu.image(), directory=tmp_path)
    assert fake_qemu.pids
    assert fake_qemu.running == []


@pytest.mark.parametrize("order", ["down", "boot"])
def test_what_a_killed_command_started_is_ended_by_the_next(
    fake_qemu: FakeQemu, tmp_path: Path, order: str
) -> None:
    fake_qemu.does(HANGS)
    place = Detached("early", tmp_path / "state")
    process = _boot_in_another_process(place.root)
    _until(lambda: qemu.Process.recorded(place.files))
    _until(lambda: fake_qemu.pids)
    process.kill()
    process.wait()
    assert len(fake_qemu.running) == 1
    if order == "down":
        assert main(["down", "--name", "early", "--state", str(place.root)]) == 0
        assert not place.directory.exists()
    else:
        fake_qemu.does("exit 1\n")
        with pytest.raises(TestbedError, match="QEMU ended"):
            place.boot(GuestSpec(name="early", kvm=False), fake_qemu.image())
    assert fake_qemu.running == []


def test_a_directory_whose_owner_was_killed_before_it_was_locked_is_swept_later(fake_qemu: FakeQemu) -> None:
    left = fake_qemu.temporary / "zernel-new-guest-left"
    left.mkdir()
    sweep()
    assert left.exists()
    then = time.time() - 3600
    os.utime(left, (then, then))
    sweep()
    assert not left.exists()


def test_the_files_of_a_killed_command_are_swept(fake_qemu: FakeQemu) -> None:
    fake_qemu.does(HANGS)
    process = _boot_in_another_process()
    _until(lambda: fake_qemu.pids)
    sweep()
    assert len(list(fake_qemu.temporary.iterdir())) == 1
    process.kill()
    process.wait()
    _until(lambda: not fake_qemu.running)
    sweep()
    assert list(fake_qemu.temporary.iterdir()) == []


@pytest.mark.parametrize("detach", [[], ["--detach"]], ids=["foreground", "detached"])
@pytest.mark.parametrize(
    ("script", "what", "state", "suggestion"),
    [
        (PRINTS.format(PANIC), "The guest's kernel panicked", PANIC, "Build virtio_blk and ext4"),
        (PRINTS.format("login:"), "did not answer over SSH in time", "login:", "with a longer --timeout"),
        (
            "echo 'no such machine' >&2; exit 1\n",
            "QEMU ended",
            "QEMU says: no such machine",
            "QEMU says above",
        ),
        ("echo 'Could not access KVM' >&2; exit 1\n", "QEMU ended", "access KVM", "with --accel tcg"),
        ("exit 1\n", "QEMU ended", "(the guest printed nothing)", "see dmesg"),
    ],
    ids=["panic", "mute", "refused", "no-kvm", "killed"],
)
def test_a_boot_that_fails_says_why_and_leaves_nothing_running(
    fake_qemu: FakeQemu, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    detach: list[str], script: str, what: str, state: str, suggestion: str,
) -> None:  # fmt: skip
    fake_qemu.image()
    fake_qemu.does(script)
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(bytes(0x202) + b"HdrS")
    options = [
        "--kernel",
        str(kernel),
        "--accel",
        "tcg",
        "--timeout",
        # Only who waits for an answer that never comes meets the limit.
        "2" if "in time" in what else "120",
        "--state",
        str(tmp_path / "state"),
    ]
    assert main(["boot", *detach, "--name", "fails", *options]) == 1
    message = capsys.readouterr().err
    assert message.startswith("ERROR: testbed: ")
    assert what in message.partition("\n")[0]
    assert state in message
    assert f"Kernel: {kernel}" in message
    assert suggestion in message.partition("Suggestion: ")[2]
    assert fake_qemu.pids
    assert fake_qemu.running == []
    assert list(fake_qemu.temporary.iterdir()) == []
    assert Detached("fails", tmp_path / "state").state() is None


def test_a_detached_guest_that_is_refused_before_its_start_leaves_no_directory(
    fake_qemu: FakeQemu, tmp_path: Path
) -> None:
    place = Detached("refused", tmp_path / "state")
    with pytest.raises(TestbedError, match="is not a file"):
        place.boot(GuestSpec(kernel=tmp_path / "none", kvm=False), fake_qemu.image())
    deep = Detached("refused", tmp_path / "state" / ("x" * 100))
    with pytest.raises(TestbedError, match="too long for a socket"):
        deep.boot(GuestSpec(kvm=False), fake_qemu.image())
    assert not place.directory.exists()
    assert not deep.directory.exists()


def test_whoever_waits_for_a_guests_lock_shares_it_with_whoever_comes_later(tmp_path: Path) -> None:
    place = Detached("old", tmp_path)
    place.down()
    (lock,) = tmp_path.glob("*.lock")
    with lock.open() as waiting:
        place.down()
        fcntl.flock(waiting, fcntl.LOCK_EX)
        assert os.fstat(waiting.fileno()).st_ino == lock.stat().st_ino


def test_a_directory_that_is_about_to_be_locked_is_not_swept(
    fake_qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu.does("exit 1\n")
    seen: list[bool] = []

    def flock(file: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            sweep()
        original(file, operation)

    def command(*arguments: object) -> list[str]:
        seen.append(any((path / "lock").exists() for path in fake_qemu.temporary.iterdir()))
        raise TestbedError("seen", suggestion="none")

    original = fcntl.flock
    monkeypatch.setattr(guest.fcntl, "flock", flock)
    monkeypatch.setattr(qemu, "command", command)
    with pytest.raises(TestbedError, match="seen"):
        Guest.boot(GuestSpec(kvm=False), image=fake_qemu.image())
    assert seen == [True]
    assert list(fake_qemu.temporary.iterdir()) == []


def test_an_interrupt_waits_for_the_end_of_a_block_that_holds_it() -> None:
    done = []

    def block() -> None:
        with signals_held():
            signal.raise_signal(signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_hang_up_that_nohup_ignores_stays_ignored() -> None:
    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        unwind_when_ended()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with pytest.raises(SystemExit, match="143"):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../x", "a b", "x" * 300])
@pytest.mark.parametrize("verb", ["down", "ssh", "inventory"])
def test_a_name_that_is_no_guests_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, verb: str
) -> None:
    state = tmp_path / "keep/state"
    (state / "guest").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert main([verb, "--state", str(state), f"--name={name}"]) == 1
    assert "cannot name a guest" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_test_run_that_is_ended_ends_with_its_fixtures_unwound(tmp_path: Path) -> None:
    """As ``make test`` ends its lanes: an exit inside of a test would be that test's failure, and no end."""
    (tmp_path / "test_it.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "import pytest\n"
        "HERE = Path(__file__).parent\n"
        "@pytest.fixture(scope='session')\n"
        "def guest():\n"
        "    yield\n"
        "    (HERE / 'unwound').touch()\n"
        "def test_one(guest):\n"
        "    (HERE / 'began').touch()\n"
        "    time.sleep(60)\n"
        "def test_two(guest):\n"
        "    (HERE / 'went-on').touch()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{TESTS / 'guest'}:{TESTS}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-c", os.devnull, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while not (tmp_path / "began").exists() and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert (tmp_path / "unwound").exists()
    assert not (tmp_path / "went-on").exists()
