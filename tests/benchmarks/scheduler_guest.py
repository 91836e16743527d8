# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest in which the scheduler is measured: two CPUs, the agent, and programs that give them work."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from c_build import build_program
from cuda_stub import build_library, build_nccl, build_workload
from debian_packages import unpacked
from guest.scheduler_host import HERE, Host
from testbed import Guest, GuestSpec, image
from testbed.tools import kept_waiting

PROGRAMS = "/root/bench"
CPUS = 2
# 4 GiB are too few for 64,000 threads; what is not used is not taken from this machine.
MEMORY_MIB = 8192
RUN_TIMEOUT = 180.0
_LAUNCHED = 'zernel_scheduler_wakeup_delay_seconds_count{role="launcher"}'
_DATA = "/var/tmp/dataset"
_GPU_SIGNAL = 'zernel_scheduler_signal_up{signal="since_gpu_sync_s"}'
# Between two runs nothing else uses the libraries, and zerneld would have to find them anew.
_HOLDER = (
    f"{{ printf 'init\\ncreate 0\\nopen {PROGRAMS}/libnccl.so.2\\n'; sleep infinity; }} | "
    f"{PROGRAMS}/workload {PROGRAMS}/libcuda.so.1"
)

# The daemon, which is Python, is ten times slower in an emulated guest: it looks as much less often, so as to
# take the part of the CPUs that it takes on a host. What it costs has figures of its own.
SETTINGS = "[general]\nphase_eval_interval_ms = 1000\ngpu_poll_interval_ms = 5000\n"

# What an interpreter does most: objects, dictionaries, strings.
_WORK = """
import time
best = 1e9
for _ in range(3):
    began = time.process_time()
    table = {}
    for n in range(100000):
        table[n % 1000] = (n, str(n), [n] * 3)
    best = min(best, time.process_time() - began)
print(best)
"""


@dataclass(frozen=True, slots=True)
class Loop:
    """One run of training.c: see there. Times in milliseconds; ``hogs`` in rounds per second.

    ``prompt_ms`` are the steps without what their threads slept too long.
    """

    steps_ms: list[float]
    prompt_ms: list[float]
    waits_ms: list[float]
    cpu: float
    hogs: float


@dataclass
class Bench:
    """A guest with what is to be measured: a :class:`benchmarks.turns.Machine`."""

    host: Host
    _slowness: float | None = field(default=None)

    @property
    def guest(self) -> Guest:
        return self.host.guest

    def reset(self) -> None:
        self.host.reset()
        self.host.settings(SETTINGS)

    def use(self, ours: bool) -> None:
        if self.ours() != ours:
            self.guest.run(f"systemctl {'start' if ours else 'stop'} zernel-scheduler")

    def ours(self) -> bool:
        return self.host.state() == "enabled"

    def kept_waiting(self) -> float:
        if self.guest.spec.counted and not self.guest.kvm:
            return 0.0  # its clock stood still meanwhile
        return kept_waiting(self.guest.process.pid)

    def program(self, name: str, *arguments: object, timeout: float = RUN_TIMEOUT, **environment: int) -> str:
        """Run one of the programs and return what it printed."""
        words = [f"{PROGRAMS}/{name}", *map(str, arguments)]
        settings = [f"{key}={value}" for key, value in environment.items()]
        return self.guest.run(shlex.join(["env", *settings, *words]), timeout=timeout).stdout

    def training(self, **settings: object) -> Loop:
        """Run the training loop: the arguments are those of training.c."""
        report = json.loads(self.program("training", *training_words(**settings)))
        if self.ours() and not self.metrics().get(_LAUNCHED):
            # Something else would be measured than what the figure says.
            raise RuntimeError("no thread was taken for one that launches GPU work")
        return loop(report)

    def metrics(self) -> dict[str, float]:
        """Return the scheduler's metrics."""
        with self.guest.forward(9093) as port:
            return scrape(port)

    def slowness(self) -> float:
        """Return how many times longer Python takes in the guest than on this machine; 1 or so with KVM."""
        if self._slowness is None:
            there = float(self.guest.run(["python3", "-c", _WORK]).stdout)
            here = subprocess.run(
                ["/usr/bin/python3", "-c", _WORK], check=True, capture_output=True, text=True
            ).stdout
            self._slowness = there / float(here)
        return self._slowness

    def service_cpu(self, seconds: int) -> float:
        """Return what part of a CPU the scheduler's service used in the next ``seconds``."""
        show = "echo $(cut -d' ' -f1 /proc/uptime) $(systemctl show zernel-scheduler --value -p CPUUsageNSec)"
        text = self.guest.run(f"{show}; sleep {seconds}; {show}", timeout=seconds + 60).stdout
        before, after = ([float(word) for word in line.split()] for line in text.splitlines())
        return (after[1] - before[1]) / 1e9 / (after[0] - before[0])

    def service_rss(self) -> float:
        """Return the resident memory of the scheduler's daemon, in MiB."""
        status = self.guest.run(f"grep VmRSS: /proc/{self.host.show('MainPID')}/status").stdout
        return int(status.split()[1]) / 1024

    @contextmanager
    def threads(self, processes: int, threads: int, active: int) -> Iterator[None]:
        """Have so many processes with so many threads each, all asleep but one in ``active`` of them."""
        unit = f"bench-threads-{processes}-{threads}"
        options = {"Type": "forking", "TasksMax": "infinity", "TimeoutStartSec": 300, "KillSignal": "SIGKILL"}
        self.start(unit, options, f"{PROGRAMS}/threads", processes, threads, active)
        try:
            yield
        finally:
            self.guest.run(f"systemctl stop {unit}", timeout=300)

    def start(self, unit: str, properties: Mapping[str, object], *command: object) -> None:
        """Start a command as a service of its own."""
        words = [f"--property={name}={value}" for name, value in properties.items()]
        self.guest.run(
            ["systemd-run", "--quiet", "--collect", f"--unit={unit}", *words, *map(str, command)], timeout=400
        )


def training_words(**settings: object) -> list[str]:
    """Return the arguments of training.c: its threads use the stubs and, if there are loaders, a data set."""
    plain = {"cuda": f"{PROGRAMS}/libcuda.so.1", "data": _DATA}
    return [f"{name}={value}" for name, value in {**plain, **settings}.items()]


def loop(report: Mapping[str, Any]) -> Loop:
    """Return what training.c printed."""
    names = ("steps_us", "late_us", "waits_us")
    steps, late, waits = ([value / 1000 for value in report[name]] for name in names)
    if not steps:
        raise RuntimeError("the training loop did not finish a step")
    prompt = [step - slept for step, slept in zip(steps, late, strict=True)]
    return Loop(steps, prompt, waits, float(report["cpu"]), float(report["hogs"]))


def scrape(port: int) -> dict[str, float]:
    """Return the metrics on a port of this machine's loopback."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


@contextmanager
def booted(counted: bool) -> Iterator[Bench]:
    """Boot the guest, install the agent and bring the programs there; ``counted``: see :class:`GuestSpec`."""
    guest_image = image.ensure()
    spec = GuestSpec(name="bench", cpus=CPUS, memory_mib=MEMORY_MIB, counted=counted)
    with TemporaryDirectory(prefix="zernel-bench-") as directory:
        programs = Path(directory)
        for name in ("training", "pingpong", "threads"):
            build_program(HERE / f"workloads/{name}.c", programs)
        build_library(programs)
        build_nccl(programs)
        build_workload(programs)
        (programs / "hackbench").write_bytes((unpacked("rt-tests") / "usr/bin/hackbench").read_bytes())
        for path in programs.iterdir():
            path.chmod(0o755)
        with Guest.boot(spec, image=guest_image) as guest:
            bench = Bench(Host(guest))
            guest.put(programs, PROGRAMS)
            guest.run(f"dd if=/dev/urandom of={_DATA} bs=1M count=16 oflag=direct status=none")
            bench.reset()
            # Under either scheduler: what the probe costs is no difference between them.
            guest.run("systemctl start zerneld")
            bench.start("bench-holder", {}, "sh", "-c", _HOLDER)
            bench.use(True)
            bench.host.until(lambda: bench.metrics().get(_GPU_SIGNAL) == 1, "zerneld's probe sees no GPU")
            bench.use(False)
            kind = "KVM" if guest.kvm else "emulated, instructions counted" if counted else "emulated"
            print(f"  {kind}, {time.strftime('%H:%M:%S')}", file=sys.stderr)
            yield bench
