# SPDX-License-Identifier: GPL-3.0-or-later
"""Which BPF programs are loaded: ``python3 programs.py``, as root.

Prints as JSON the name of each by its id, and how many instructions the kernel's verifier went through.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct

_SIZE = 232
_VERIFIED_AT = 216  # struct bpf_prog_info: verified_insns, Linux 5.16; the name is at 64


def main() -> None:
    libbpf = ctypes.CDLL("libbpf.so.1")
    number, programs = ctypes.c_uint32(0), {}
    while libbpf.bpf_prog_get_next_id(number, ctypes.byref(number)) == 0:
        descriptor = libbpf.bpf_prog_get_fd_by_id(number)
        if descriptor < 0:
            continue  # it has just gone
        info, size = ctypes.create_string_buffer(_SIZE), ctypes.c_uint32(_SIZE)
        done = libbpf.bpf_obj_get_info_by_fd(descriptor, info, ctypes.byref(size))
        os.close(descriptor)
        if done == 0:
            name = info.raw[64:80].split(b"\0")[0].decode()
            (verified,) = struct.unpack_from("<I", info.raw, _VERIFIED_AT)
            programs[number.value] = {"name": name, "verified": verified}
    print(json.dumps(programs))


if __name__ == "__main__":
    main()
