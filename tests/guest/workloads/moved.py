# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a hog's CPU time counts to the tenant of its cgroup as it is moved: ``python3 moved.py SECONDS``.

Loads the scheduler itself. Prints as JSON how much of a hog's time tenant 1 was charged, as a part: before
the hog was moved to that tenant's cgroup, in it, and back where it was.
"""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing import Process
from pathlib import Path

from zernel.scheduler.config import Config
from zernel.scheduler.loader import LoadedScheduler, load_checked
from zernel.scheduler.maps import Tenant

CGROUP = Path("/sys/fs/cgroup/moved")


def hog() -> None:
    while True:
        pass


def charged(scheduler: LoadedScheduler, seconds: float) -> float:
    before = scheduler.maps.tenant_use()
    time.sleep(seconds)
    after = scheduler.maps.tenant_use()
    then = before[1].run_seconds if 1 in before else 0.0
    return (after[1].run_seconds - then) / seconds if 1 in after else 0.0


def main(seconds: float) -> None:
    CGROUP.mkdir(exist_ok=True)
    home = Path("/sys/fs/cgroup" + Path("/proc/self/cgroup").read_text().rpartition(":")[2].strip())
    process = Process(target=hog, daemon=True)
    with load_checked(Config()) as scheduler:
        scheduler.maps.set_tenants({0: Tenant(100), 1: Tenant(100)}, {CGROUP.stat().st_ino: 1})
        process.start()
        report = {"before": charged(scheduler, seconds)}
        (CGROUP / "cgroup.procs").write_text(str(process.pid))
        report["new_cgroup"] = charged(scheduler, seconds)
        (home / "cgroup.procs").write_text(str(process.pid))
        report["back"] = charged(scheduler, seconds)
    os.kill(process.pid or 0, 9)
    process.join()
    CGROUP.rmdir()
    print(json.dumps(report))


if __name__ == "__main__":
    main(float(sys.argv[1]))
