# SPDX-License-Identifier: GPL-3.0-or-later
"""Run another BPF scheduler, as somebody else would: ``python3 other.py OBJECT``. Ends when it is killed."""

from __future__ import annotations

import signal
import sys

from zernel.bpf import BpfObject

with BpfObject.open(sys.argv[1]) as scheduler:
    scheduler.load()
    scheduler.attach_struct_ops("other_ops")
    signal.pause()
