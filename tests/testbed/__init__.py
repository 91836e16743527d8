# SPDX-License-Identifier: GPL-3.0-or-later
"""Real Debian guests in QEMU, for tests, benchmarks and the demo. See ``python3 -m testbed --help``."""

from testbed.errors import TestbedError
from testbed.guest import Guest, GuestSpec, boot_network
from testbed.qemu import Disk
from testbed.ssh import CommandError

__all__ = ["CommandError", "Disk", "Guest", "GuestSpec", "TestbedError", "boot_network"]
