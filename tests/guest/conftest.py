# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests for tests. Where none can be booted these tests fail, with the reason; they are not skipped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from _pytest.runner import runtestprotocol
from scheduler_host import Host

from testbed import Disk, Guest, GuestSpec, TestbedError, image, kernel
from testbed.image import Image
from testbed.tools import kept_waiting, unwind_when_ended

DISTURBED = 0.05
"""A quiet test that failed runs again if this machine kept its guests waiting for more than this part."""
TRIES = 3


def pytest_configure(config: pytest.Config) -> None:
    """Let SIGTERM end the session with its fixtures unwound, as Ctrl-C does.

    Its default action would end pytest on the spot, and an exit is but one test's failure.
    """
    unwind_when_ended(lambda status: pytest.exit("ended by a signal", status))


def guests_waited() -> float:
    """Return for how long this machine kept the CPUs of our guests waiting so far, in seconds."""
    return sum(kept_waiting(child.pid) for child in psutil.Process().children(recursive=True))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a quiet test that failed again if this machine was busy with something else meanwhile."""
    if item.get_closest_marker("quiet") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for number in range(1, TRIES + 1):
        began, waited = time.monotonic(), guests_waited()
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        part = (guests_waited() - waited) / (time.monotonic() - began)
        if number == TRIES or part < DISTURBED or not any(report.failed for report in reports):
            break
        why = f"{item.nodeid} runs again: this machine kept the guests waiting for {part:.0%} of its time"
        item.warn(pytest.PytestWarning(why))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.fixture(scope="session")
def guest_image() -> Image:
    """The guest image, built on first use (half a minute)."""
    try:
        return image.ensure()
    except TestbedError as error:
        pytest.fail(error.render(), pytrace=False)


@pytest.fixture(scope="session")
def small_kernel() -> Path:
    """The bzImage of the 6.12 kernel with sched_ext that the testbed builds (minutes, on first use)."""
    try:
        return kernel.ensure()
    except TestbedError as error:
        pytest.fail(error.render(), pytrace=False)


@pytest.fixture(scope="session")
def guest(guest_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One guest for all tests: 4 CPUs on 2 NUMA nodes, two extra disks, Debian's sched_ext kernel."""
    spec = GuestSpec(
        name="zernel-test",
        cpus=4,
        memory_mib=3072,
        numa_nodes=2,
        disks=(Disk(64), Disk(64, "nvme")),
    )
    serial = tmp_path_factory.mktemp("guest") / "serial.log"
    try:
        booted = Guest.boot(spec, image=guest_image, serial_log=serial)
    except TestbedError as error:
        pytest.fail(error.render(), pytrace=False)
    with booted:
        yield booted


@pytest.fixture(scope="session", params=["debian", "6.12"])
def any_host(request: pytest.FixtureRequest) -> Host:
    """Each kernel in turn, on guests that all tests share."""
    host: Host = request.getfixturevalue("debian_host" if request.param == "debian" else "small_host")
    return host


@pytest.fixture(scope="session")
def small_host(small_kernel: Path, guest_image: Image) -> Iterator[Host]:
    """A guest with two CPUs and the 6.12 kernel."""
    with Guest.boot(GuestSpec(name="zernel-6-12", cpus=2, kernel=small_kernel), image=guest_image) as guest:
        yield Host(guest)


@pytest.fixture(scope="session")
def debian_host(guest: Guest) -> Iterator[Host]:
    """The shared guest: Debian's kernel, 4 CPUs on 2 NUMA nodes."""
    made = Host(guest)
    yield made
    made.reset()
    guest.run("apt-get -q -y remove zernel-agent; rm -rf /root/workloads", timeout=300)


@pytest.fixture
def any_kernel(any_host: Host) -> Iterator[Host]:
    any_host.reset()
    yield any_host
    any_host.reset()


@pytest.fixture
def host(debian_host: Host) -> Iterator[Host]:
    debian_host.reset()
    yield debian_host
    debian_host.reset()
