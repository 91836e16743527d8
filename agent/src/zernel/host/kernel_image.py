# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads type information out of a kernel image that is not running.

The section ``.BTF`` of the kernel's ELF file is what the kernel shows as /sys/kernel/btf/vmlinux once it
runs.
"""

from __future__ import annotations

from pathlib import Path

from zernel import vmlinux
from zernel.errors import fail

NO_BTF = "kernel-image-no-btf"
"""The error code for a kernel without type information."""


def btf_of_image(path: Path) -> bytes:
    """Return the BTF data in a bzImage or an ELF kernel.

    :raises ZernelError: ``kernel-image`` with the reason, when it cannot be read or is no kernel;
        ``kernel-image-no-btf`` for a kernel that has none.
    """
    image = vmlinux.read(path)
    found = vmlinux.section(path, image.elf, b".BTF")
    if found is None and not image.compression and vmlinux.section(path, image.elf, b".init.text") is None:
        # Every kernel has that section for what it frees after its start; no other program has.
        raise vmlinux.unreadable(path, "it is an ELF file, and not a kernel")
    if found is None:
        raise fail(
            NO_BTF,
            "The kernel image has no BTF type information",
            subject=str(path),
            suggestion="Use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        )
    return found
