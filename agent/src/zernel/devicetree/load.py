# SPDX-License-Identifier: GPL-3.0-or-later
"""A device tree file, source or blob, to its interpretation."""

from __future__ import annotations

import os
import stat
from os import PathLike

from zernel.devicetree import dts
from zernel.devicetree.interpret import interpret
from zernel.devicetree.reading import Interpretation
from zernel.devicetree.tree import Tree
from zernel.errors import ZernelError, fail, from_oserror


def read_file(path: str | PathLike[str]) -> Interpretation:
    """Read and interpret a file. Raises `ZernelError` when it cannot be read or is no device tree at all."""
    return interpret(read_tree(path))


def read_tree(path: str | PathLike[str]) -> Tree:
    """Read a file. Raises `ZernelError` when it cannot be read or is no device tree at all.

    Only a regular file is read, up to a bound: a FIFO or a device would block, or never end.
    """
    try:
        # O_NONBLOCK: without it, opening a FIFO waits for a writer. It means nothing for a regular file.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise _no_file(str(path), mode)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(dts.MAX_SOURCE_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise from_oserror(error, "read the device tree") from error
    if len(data) > dts.MAX_SOURCE_BYTES:
        raise fail(
            "file-too-large",
            "The file is too large for a device tree",
            subject=str(path),
            explanation=f"At most {dts.MAX_SOURCE_BYTES >> 20} MiB are read",
            suggestion="Check that this is the right file",
        )
    if data[:4] == b"\xd0\x0d\xfe\xed":
        from zernel.devicetree import fdt  # blobs are rare: source needs none of it

        return fdt.read(data, str(path))
    try:
        # Some editors begin UTF-8 with a byte order mark, which is no part of the source.
        text = data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        raise fail(
            "not-text",
            "The file is neither device tree source nor a blob",
            subject=str(path),
            explanation=f"Byte {error.start} is not UTF-8, and the file does not begin with a blob's magic",
            suggestion="Give a file of device tree source (.dts)",
        ) from None
    return dts.parse(text, str(path))


def _no_file(path: str, mode: int) -> ZernelError:
    kind = "a directory" if stat.S_ISDIR(mode) else "a FIFO" if stat.S_ISFIFO(mode) else "a device"
    return fail(
        "not-a-file",
        "A device tree is read from a regular file only",
        subject=path,
        explanation=f"This is {kind}",
        suggestion=f"Name a file in it, such as {path.rstrip('/')}/baseline.dts"
        if stat.S_ISDIR(mode)
        else "Save the device tree in a file, and name that",
    )
