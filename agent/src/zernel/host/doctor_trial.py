# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof that probes work here: loads gpu_mem, attaches it to this very process, and sees it run."""

from __future__ import annotations

import os
from pathlib import Path

from zernel.bpf import BpfObject, Program, enable_run_stats, object_path
from zernel.errors import ZernelError
from zernel.gpu.elf import SharedLibrary

# A function of libc without side effects that Python can call, and a program of gpu_mem. What the program
# does depends on the attachment's cookie; with this one, nothing.
_FUNCTION = "getppid"
_PROGRAM = "on_enter"
_NO_FUNCTION = 0xFFFF


class Trial:
    """One load, one uprobe, one tracepoint. Each outcome is None when it worked, else the reason why not."""

    def __init__(self) -> None:
        self.load: str | None = None
        self.uprobe: str | None = "no BPF program could be loaded"
        self.tracepoint: str | None = "no BPF program could be loaded"
        self.not_built = not object_path("gpu_mem").exists()
        self._object: BpfObject | None = None
        try:
            self._object = BpfObject.open(object_path("gpu_mem"))
            self._object.load()
        except ZernelError as error:
            self.load = _words(error)
            return
        self.tracepoint = self._try_tracepoint()
        self.uprobe = self._try_uprobe()

    def close(self) -> None:
        """Detach and unload."""
        if self._object is not None:
            self._object.close()

    def _try_tracepoint(self) -> str | None:
        try:
            self._program("on_exit").attach().close()
        except ZernelError as error:
            return _words(error)
        return None

    def _try_uprobe(self) -> str | None:
        try:
            path, offset = _own_function(_FUNCTION)
            stats = enable_run_stats()
        except (OSError, ZernelError) as error:
            return _words(error)
        program = self._program(_PROGRAM)
        try:
            with program.attach_uprobe(path, offset, pid=os.getpid(), cookie=_NO_FUNCTION):
                before = program.run_count
                os.getppid()
                if program.run_count == before:
                    return f"attached to {path}, but the program did not run when {_FUNCTION} was called"
        except ZernelError as error:
            return _words(error)
        finally:
            os.close(stats)
        return None

    def _program(self, name: str) -> Program:
        assert self._object is not None
        return self._object.program(name)


def _own_function(name: str) -> tuple[Path, int]:
    """Return the C library that this process uses, and the function's offset in it."""
    with Path("/proc/self/maps").open() as maps:
        path = next((Path(line.split()[-1]) for line in maps if "/libc.so.6" in line), None)
    if path is None:
        raise FileNotFoundError(2, "this process maps no libc.so.6")
    with path.open("rb") as stream:
        return path, SharedLibrary(stream.fileno(), str(path)).functions([name])[name]


def _words(error: Exception) -> str:
    if not isinstance(error, ZernelError):
        return str(error)
    problem = error.problems[0]
    # Of libbpf's messages the last one says most.
    return f"{problem.category}{f' ({problem.explanation[-1]})' if problem.explanation else ''}"
