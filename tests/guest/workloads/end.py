# SPDX-License-Identifier: GPL-3.0-or-later
"""End a process and measure how long its scheduler stays: ``python3 end.py SIGNAL PID``. Prints seconds."""

import os
import signal
import sys
import time
from pathlib import Path

STATE = "/sys/kernel/sched_ext/state"

with Path(STATE).open() as stream:  # opened once: opening is the slow part
    os.kill(int(sys.argv[2]), signal.Signals[sys.argv[1]])
    started = time.monotonic()
    state = ""
    while state != "disabled" and time.monotonic() - started < 20:
        stream.seek(0)
        state = stream.read().strip()
        time.sleep(0.005)
print(f"{time.monotonic() - started:.3f}" if state == "disabled" else f"still {state}")
