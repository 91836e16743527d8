# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether KVM works here: found out by booting, because /dev/kvm may be there and still not work.

With a broken one QEMU aborts on an MSR, or the guest dies at once, or hangs.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from testbed import qemu
from testbed.cache import Cache
from testbed.image import Image
from testbed.tools import dies_with_parent, environment, require, tail

DEVICE = Path("/dev/kvm")
# Under KVM the kernel reaches its init in one or two seconds.
DEADLINE = 12.0
_REACHED = "Run /init as init process"


@dataclass(frozen=True)
class Verdict:
    """``works``, and the reason in words."""

    works: bool
    reason: str


def usable(image: Image) -> bool:
    """Say whether guests can use KVM."""
    return verdict(image).works


def verdict(image: Image, cache: Cache | None = None) -> Verdict:
    """Probe once per boot of this machine; afterwards answer from the cache."""
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Verdict(False, f"{DEVICE} is not there, or may not be opened")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    memory = (cache or Cache.default()).root / "kvm.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_text())
        if known["boot"] == boot:
            return Verdict(bool(known["works"]), str(known["reason"]))
    found = probe(image)
    with suppress(OSError):
        partial = memory.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"boot": boot, **asdict(found)}))
        partial.replace(memory)
    return found


def probe(image: Image) -> Verdict:
    """Boot the image's kernel under KVM until it starts the first program of the initrd."""
    require(qemu.PROGRAM, "setpriv")
    with tempfile.TemporaryDirectory(prefix="zernel-kvm-") as name:
        files = qemu.Files(Path(name))
        argv = [qemu.PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += [*qemu.BOARD, *qemu.KVM, "-smp", "2", "-m", "512M", "-serial", f"file:{files.serial}"]
        argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        argv += ["-append", "console=ttyS0 panic=-1"]
        with files.messages.open("wb") as messages:
            process = subprocess.Popen(
                dies_with_parent(argv, "KILL"), stdout=messages, stderr=messages, env=environment()
            )
        try:
            deadline = time.monotonic() + DEADLINE
            while time.monotonic() < deadline:
                with suppress(OSError):
                    if _REACHED in files.serial.read_text(errors="replace"):
                        return Verdict(True, "a probe boot reached its first program")
                if process.poll() is not None:
                    said = tail(files.messages.read_text(errors="replace"), 2)
                    return Verdict(False, f"the probe boot died: {said or 'no message'}")
                time.sleep(0.05)
            return Verdict(False, f"the probe boot did not reach its first program in {DEADLINE:g} s")
        finally:
            process.kill()
            process.wait()
