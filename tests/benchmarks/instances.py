# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel instances: a cold report beside kerf's, validation of the largest host, transactions, and 8 at once.

What is created goes to the simulation of ``zernel simulate multikernel``: needs root and /dev/fuse.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from venv import EnvBuilder

from benchmarks.figures import REPO, Figure, median_ms
from zernel.devicetree import render
from zernel.devicetree.model import Cpus, Device, DeviceUse, Instance, Memory, NumaNode, Resources, System

PYTHON = str(REPO / ".venv/bin/python")
ZERNEL = str(REPO / ".venv/bin/zernel")
BASELINE = REPO / "docs/examples/baseline.dts"
KERF = "kerf-multikernel==0.1.0"
"""The last that reads a baseline without a multikernel kernel."""
TRANSACTIONS = 1000
REPETITIONS = int(os.environ.get("ZERNEL_BENCH_REPETITIONS", "100"))
PROCESSES = 8
_GB = 1 << 30


def measure() -> Iterator[Figure]:
    """Yield the figures of issue 3."""
    with TemporaryDirectory(prefix="zernel-bench-") as directory:
        yield from _report(Path(directory))
        yield from _validation(Path(directory))
        with _simulation(Path(directory)) as environment:
            yield from _transactions(environment)
            yield from _at_once(environment)
        with _simulation(Path(directory)) as environment:
            yield from _apply(Path(directory), environment)


# -- a cold report ------------------------------------------------------------------------------------------


def _report(directory: Path) -> Iterator[Figure]:
    ours = [ZERNEL, "init", f"--input={BASELINE}", "--report"]
    bare = [PYTHON, "-c", "pass"]
    kerf, why = _kerf(directory)
    if kerf is None:
        base, report = median_ms([bare, ours])
        yield Figure("init --report", report, "ms", None, _times(report, base))
        yield Figure("init --report: kerf", math.nan, "ms", None, why)
        return
    base, report, theirs = median_ms([bare, ours, kerf])
    yield Figure("init --report", report, "ms", None, _times(report, base))
    yield Figure("init --report: kerf", theirs, "ms", None, f"{theirs / report:.1f} x ours; {why}")


def _times(value: float, base: float) -> str:
    return f"{value / base:.1f} x bare python ({base:.1f} ms); 30 ms where that takes 9-11"


def _kerf(directory: Path) -> tuple[list[str] | None, str]:
    """Return a command of kerf that validates a baseline, from a venv of its own, and what it is; or why
    not."""
    EnvBuilder(with_pip=True).create(directory / "kerf")
    pip = [str(directory / "kerf/bin/pip"), "install", "-q", "--disable-pip-version-check"]
    if subprocess.run([*pip, KERF], capture_output=True, timeout=300).returncode == 0:
        # It reads its flat form only, and its report of that ends in "list index out of range".
        flat = directory / "flat.dts"
        flat.write_text(
            "/multikernel-v1/;\n/ {\n\tresources {\n\t\tcpus = <4 5 6 7 8 9 10 11>;\n"
            "\t\tmemory-base = <0x80000000>;\n\t\tmemory-bytes = <0x80000000>;\n\t};\n};\n"
        )
        command = [str(directory / "kerf/bin/kerf"), "init", f"--input={flat}", "--dry-run"]
        if subprocess.run(command, capture_output=True).returncode == 0:
            return command, f"{KERF}, a flat baseline without devices, no report"
    return None, "kerf cannot be installed from PyPI here, or does not run without its kernel"


# -- validation ---------------------------------------------------------------------------------------------


def host(scale: int) -> System:
    """Return a full host of 64 x ``scale`` CPUs, 8 x ``scale`` instances, 64 x ``scale`` virtual functions
    and ``scale`` NUMA nodes, all of them given away, each instance on a node of its own eighth."""
    node_bytes = 64 * _GB
    reserved = tuple(range(0, 64 * scale, 64))  # one CPU of each node, and the first gigabyte
    available = tuple(cpu for cpu in range(64 * scale) if cpu % 64)
    pool = Memory(scale * node_bytes, _GB, _GB, scale * node_bytes - _GB)
    devices = tuple(
        Device(f"eth{n}", "ethernet", "intel,ice", f"0000:{n:02x}:00.0", 64, (), tuple(range(64)))
        for n in range(scale)
    )
    nodes = tuple(
        NumaNode(n, n * node_bytes, node_bytes, tuple(range(64 * n, 64 * n + 64))) for n in range(scale)
    )
    instances = []
    for n, eighth in product(range(scale), range(8)):
        cpus = nodes[n].cpus[1:]
        start = max(n * node_bytes, pool.pool_base)
        each = ((n + 1) * node_bytes - start) // 8
        instance = Instance(
            f"instance-{8 * n + eighth}",
            8 * n + eighth + 1,
            cpus[len(cpus) * eighth // 8 : len(cpus) * (eighth + 1) // 8],
            start + eighth * each,
            each,
            tuple(DeviceUse(f"eth{n}", vf=8 * eighth + k) for k in range(8)),
            (n,),
        )
        instances.append(instance)
    return System(Resources(Cpus(64 * scale, reserved, available), pool, devices, nodes), tuple(instances))


def _validation(directory: Path) -> Iterator[Figure]:
    scales = (8, 16, 32, 64)
    seconds: list[float] = []
    peak = 0
    start, _ = _best([ZERNEL, "validate", str(REPO / "docs/examples/minimal.dts")])
    for scale in scales:
        file = directory / f"host-{scale}.dts"
        file.write_text(render.source(render.system_tree(host(scale))))
        taken, peak = _best([ZERNEL, "validate", str(file)])
        seconds.append(taken)
    slope = _slope([float(scale) for scale in scales], [_beyond(start, taken) for taken in seconds])
    size = "4,096 CPUs, 512 instances, 4,096 VFs, 64 nodes"
    yield Figure("validate, largest host", seconds[-1], "s", 0.5, f"{size}; source, whole process, CPU time")
    yield Figure("validate, largest host: peak", peak / 1024, "MB", 100, "resident")
    grown = ", ".join(f"{taken:.3f}" for taken in seconds)
    detail = f"t ~ n^k for n = 1/8, 1/4, 1/2, 1: {grown} s, less {start:.3f} s for starting up"
    yield Figure("validate: growth", slope, "k", 1.2, detail)


def _best(command: list[str], runs: int = 7, environment: dict[str, str] | None = None) -> tuple[float, int]:
    """Return the least processor time in seconds and the peak resident size in KiB of a command.

    Processor time: the process never waits, and other load on the machine is not what is measured.
    """
    times, peak = [], 0
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    measured = subprocess.run(
        [PYTHON, "-c", _PEAK, *command], check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    peak = int(measured)
    return min(times), peak


# ru_maxrss of children is the largest of all so far: each command is asked about in a process of its own.
_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def _slope(sizes: list[float], values: list[float]) -> float:
    """Return the exponent k of the power law value ~ size^k that fits best (least squares of logarithms)."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    middle, level = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True)) / sum(
        (a - middle) ** 2 for a in x
    )


def _beyond(start: float, taken: float) -> float:
    """Return the seconds of a run but for starting up; a millisecond at least, below which all is noise."""
    return max(taken - start, 0.001)


# -- many declared instances --------------------------------------------------------------------------------


def _apply(
    directory: Path, environment: dict[str, str], scales: tuple[int, ...] = (8, 16, 32, 64)
) -> Iterator[Figure]:
    """Yield how long a plan for 8 x scale declared instances takes, how it grows, and how long the change."""
    seconds: list[float] = []
    start, _ = _best(_planned(directory, 1), 3, environment)
    for scale in scales:
        baseline = directory / f"baseline-{scale}.dts"
        baseline.write_text(render.source(render.system_tree(System(host(scale).resources))))
        _zernel(environment, "init", f"--input={baseline}", "--apply")
        seconds.append(_best(_planned(directory, 8 * scale), 3, environment)[0])
    count = 8 * scales[-1]
    what = f"{64 * scales[-1]} CPUs, {scales[-1]} nodes; CPU time, whole process"
    yield Figure(f"apply --dry-run, {count} instances", seconds[-1], "s", 4, what)
    slope = _slope([float(scale) for scale in scales], [_beyond(start, taken) for taken in seconds])
    grown = ", ".join(f"{taken:.3f}" for taken in seconds)
    sizes = ", ".join(str(8 * scale) for scale in scales)
    detail = f"t ~ n^k for n = {sizes}: {grown} s, less {start:.3f} s for one"
    yield Figure("apply --dry-run: growth", slope, "k", 1.7, detail)
    began = time.monotonic()
    _zernel(environment, *_planned(directory, count)[1:-1])
    detail = "in one change; the lock is held that long, and other commands wait 10 s for it; SIMULATED"
    yield Figure(f"apply, {count} new instances", time.monotonic() - began, "s", None, detail)


def _planned(directory: Path, count: int) -> list[str]:
    """Return the command that plans ``count`` declared instances."""
    declared = directory / f"declared-{count}"
    declared.mkdir(exist_ok=True)
    texts = (f"name: i{number}\ncpu_count: 4\nmemory: 1GB\n" for number in range(count))
    (declared / "all.yaml").write_text("---\n".join(texts))
    return [ZERNEL, "apply", f"--directory={declared}", "--dry-run"]


# -- transactions -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _simulation(directory: Path) -> Iterator[dict[str, str]]:
    """Mount the simulation with the document's baseline; yield the environment for commands on it."""
    root, state = directory / "multikernel", directory / "state"
    environment = {**os.environ, "ZERNEL_MULTIKERNEL_ROOT": str(root), "ZERNEL_STATE_DIR": str(state)}
    server = subprocess.Popen(
        [ZERNEL, "simulate", "multikernel", str(root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        server.stdout.readline()  # it says when it is mounted
        _zernel(environment, "init", f"--input={BASELINE}", "--apply")
        yield environment
    finally:
        server.terminate()
        server.wait(10)


def _zernel(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run([ZERNEL, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"zernel {' '.join(words)}: {done.stderr}")
    return done.stdout


# In one process: what is measured are transactions, not how long Python starts.
_MANY = """
import sys, time
from zernel.multikernel import fs, operations, planning
target = fs.open_fs()
request = planning.Request(name="bench", memory_bytes=1 << 30, cpus=(4, 5, 6, 7))
began, lost = time.monotonic(), 0
for _ in range(int(sys.argv[1]) // 2):
    operations.create(target, request, dry_run=False, ensure=False)
    lost += target.instance_names() != ["bench"]
    operations.delete(target, "bench", dry_run=False, ensure=False)
    lost += target.instance_names() != []
print(time.monotonic() - began, lost)
"""


def _transactions(environment: dict[str, str]) -> Iterator[Figure]:
    done = subprocess.run(
        [PYTHON, "-c", _MANY, str(TRANSACTIONS)], env=environment, capture_output=True, text=True, check=True
    )
    seconds, lost = done.stdout.split()
    rate = TRANSACTIONS / float(seconds)
    yield Figure("transactions lost", float(lost), f"of {TRANSACTIONS}", 0, "create and delete, SIMULATED")
    yield Figure("transactions", rate, "/s", None, "validated, journaled with fsync, read back; SIMULATED")


def _at_once(environment: dict[str, str]) -> Iterator[Figure]:
    doubled = created = 0
    began = time.monotonic()
    for _ in range(REPETITIONS):
        commands = [
            [ZERNEL, "create", f"at-once-{n}", "--cpu-count=4", "--memory=1GB"] for n in range(PROCESSES)
        ]
        running = [
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for command in commands
        ]
        succeeded = sum(process.wait(120) == 0 for process in running)
        shown = json.loads(_zernel(environment, "show", "--format=json"))["instances"].values()
        doubled += _shared(list(shown)) + abs(len(shown) - succeeded)
        created += len(shown)
        for instance in shown:
            _zernel(environment, "delete", instance["name"])
        print(f"\r  {PROCESSES} at once: {created} created", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    expected = 7 * REPETITIONS  # 28 CPUs, 4 each
    seconds = time.monotonic() - began
    detail = (
        f"{REPETITIONS} x {PROCESSES} processes, 28 CPUs for 7 of them: {created} created, {seconds:.0f} s"
    )
    yield Figure("created at once: allocated twice", doubled, "times", 0, detail)
    yield Figure(
        "created at once: too few", expected - created, "instances", 0, "who asks while there is room gets it"
    )


def _shared(instances: list[dict[str, list[int] | int]]) -> int:
    """Return how many pairs share a CPU or a byte."""
    found = 0
    for index, one in enumerate(instances):
        for other in instances[index + 1 :]:
            cpus = set(_list(one["cpus"])) & set(_list(other["cpus"]))
            starts = max(_number(one["memory_base"]), _number(other["memory_base"]))
            ends = min(
                _number(owner["memory_base"]) + _number(owner["memory_bytes"]) for owner in (one, other)
            )
            found += bool(cpus) or starts < ends
    return found


def _list(value: list[int] | int) -> list[int]:
    assert isinstance(value, list)
    return value


def _number(value: list[int] | int) -> int:
    assert isinstance(value, int)
    return value
