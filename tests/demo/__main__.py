# SPDX-License-Identifier: GPL-3.0-or-later
"""Boot, provision, and end with a summary a person can act on: ``PYTHONPATH=tests python -m demo``."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from urllib.request import urlopen

from demo import provision
from testbed import Guest, GuestSpec, TestbedError, image, qemu
from testbed.detached import Detached
from testbed.errors import from_oserror
from testbed.tools import require, unwind_when_ended

NAME = "demo"
MEMORY_METRIC = "zernel_gpu_memory_used_bytes"


def main() -> int:
    """Run the demo; 0 done, 1 failed with the reason on standard error."""
    parser = argparse.ArgumentParser(description="Boot a Debian 13 guest and provision it with site.yml.")
    parser.add_argument(
        "--since", type=float, default=time.time(), help="when the demo began (seconds, Unix time)"
    )
    args = parser.parse_args()
    unwind_when_ended()
    try:
        return _demo(args.since)
    except (TestbedError, OSError, subprocess.SubprocessError, ValueError) as raised:
        error = raised if isinstance(raised, TestbedError) else _unforeseen(raised)
        print(f"\n{error.render()}", file=sys.stderr)
        if Detached(NAME).state():
            print(
                "\nThe guest is left running: make demo-ssh logs in, make demo-down stops it.",
                file=sys.stderr,
            )
        return 1
    except KeyboardInterrupt:
        if Detached(NAME).state():
            print("\nThe guest is left running: make demo-down stops it.", file=sys.stderr)
        return 130


def _unforeseen(error: Exception) -> TestbedError:
    if isinstance(error, OSError):
        return from_oserror(error, "finish the demo")
    return TestbedError("Cannot finish the demo", str(error), suggestion="Look at the guest: make demo-ssh")


def _demo(began: float) -> int:
    def step(words: str) -> None:
        print(f"\n== {words} ({time.time() - began:.0f} s)", flush=True)

    # Before a minute is spent on an image that nothing could boot
    require(qemu.PROGRAM, "setpriv", "ssh")
    demo = Detached(NAME)
    step("Debian 13 guest image")
    guest_image = image.ensure(image.Recipe.for_machine(image.KERNEL_SERIES))
    if demo.state():
        step("The guest of an earlier demo runs: provisioning it again")
    else:
        step("Booting the guest")
        demo.boot(GuestSpec(name=NAME), guest_image)
    guest = demo.guest()
    inventory = demo.directory / "inventory.yml"
    inventory.write_text(demo.inventory())
    step("ansible-playbook playbooks/site.yml")
    run = provision.site(inventory)
    step("A workload to observe")
    provision.start_workload(guest)
    print(_summary(guest, run, began))
    return 0


def _summary(guest: Guest, run: provision.Run, began: float) -> str:
    release = guest.run(". /etc/os-release; echo $PRETTY_NAME").stdout.strip()
    kernel = guest.run("uname -r").stdout.strip()
    machine = "KVM" if guest.kvm else "emulated, no KVM"
    state = guest.run("cat /sys/kernel/sched_ext/state").stdout.strip()
    ops = guest.run("cat /sys/kernel/sched_ext/root/ops", check=False).stdout.strip() or "none"
    shown = json.loads(guest.run("zernel show --format=json").stdout)
    instances = [_instance(name, entry) for name, entry in sorted(shown.get("instances", {}).items())]
    label = "SIMULATED multikernel" if shown.get("simulated") else "multikernel"
    rows = [
        ("host", f"{release}, Linux {kernel} ({machine})"),
        ("scheduler", f"{state}: {ops}; {_decisions_per_second(guest):,.0f} decisions/s"),
        ("probe", f"{_memory(guest)} (demo workload on a stub libcuda: there is no GPU)"),
        *(("instance", f"{text} ({label})") for text in instances or ["none"]),
        ("playbook", f"{run.seconds:.0f} s, {run.changed} tasks changed something"),
        ("metrics", "make demo-ssh, then: curl -s 127.0.0.1:9091/metrics  (scheduler: 9093)"),
        ("log in", "make demo-ssh"),
        ("again", "make demo  (provisions the running guest once more: changed=0)"),
        ("stop", "make demo-down"),
    ]
    minutes, rest = divmod(int(time.time() - began), 60)
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name.ljust(width)}  {value}" for name, value in rows]
    return "\n".join(["", f"Zernel's demo is ready after {minutes} min {rest:02d} s", "", *lines, ""])


def _instance(name: str, entry: dict[str, object]) -> str:
    return (
        f"{name}: {entry.get('status')}, CPUs {entry.get('cpus')}, memory {entry.get('memory_bytes')} bytes"
    )


def _scrape(guest: Guest, port: int) -> str:
    with guest.forward(port) as local, urlopen(f"http://127.0.0.1:{local}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def _decisions_per_second(guest: Guest) -> float:
    def decisions() -> tuple[float, float]:
        text = _scrape(guest, 9093)
        values = re.findall(r"^zernel_scheduler_decisions_total(?:{[^}]*})? (\S+)", text, re.M)
        return time.monotonic(), sum(float(value) for value in values)

    start, before = decisions()
    time.sleep(3)
    end, after = decisions()
    return (after - before) / (end - start)


def _memory(guest: Guest) -> str:
    """Return the live series of the workload's memory; the probe may need a moment to find the library."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = re.search(rf"^{MEMORY_METRIC}{{.* (\S+)$", _scrape(guest, 9091), re.M)
        if found and float(found[1]) > 0:
            return found[0]
        time.sleep(2)
    return f"{MEMORY_METRIC}: unavailable, nothing counted within a minute"


if __name__ == "__main__":
    raise SystemExit(main())
