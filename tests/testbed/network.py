# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports on loopback, and a private network between guests that needs no bridge and no privileges."""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
# rootfs/usr/local/sbin/testbed-network gives addresses by the last byte of the card's.
MAX_GUESTS = 4
WAN_MAC = "52:54:00:12:34:56"


def free_port() -> int:
    """Return a TCP port of loopback that nobody listened on a moment ago.

    Another process may take it before it is used: whoever uses it must be ready to ask for another one.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class PrivateNetwork:
    """A network segment of QEMU processes on this machine: a multicast group on the loopback interface."""

    group: str
    port: int

    @classmethod
    def create(cls) -> PrivateNetwork:
        """Return a segment of its own: group and port at random among 2^24 times 16,000 (RFC 2365)."""
        chance = random.SystemRandom()
        group = ".".join(str(part) for part in (239, *(chance.randint(1, 254) for _ in range(3))))
        return cls(group, chance.randint(32768, 49151))

    @staticmethod
    def address(index: int) -> str:
        """Return the address of the guest with this index (1 to 4)."""
        return f"10.77.0.{index}"

    def qemu_options(self, index: int) -> list[str]:
        """Return the options that join a guest to the segment."""
        return [
            "-netdev",
            f"socket,id=private,mcast={self.group}:{self.port},localaddr={LOOPBACK}",
            "-device",
            f"virtio-net-pci,netdev=private,romfile=,mac=52:54:01:00:00:{index:02x}",
        ]
