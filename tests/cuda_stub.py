# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the stub libcuda and libnccl and runs the program that uses them; see tests/stubs/."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from zernel.gpu.functions import LIBCUDA, Library
from zernel.gpu.libraries import Copy, Inode

STUBS = Path(__file__).parent / "stubs"
SOURCES = STUBS / "libcuda"
_GCC = ("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED = 0, 1, 2, 3
NO_DEVICE, INVALID_CONTEXT, ILLEGAL_ADDRESS = 100, 201, 700


def build_library(directory: Path, *, plain: bool = False) -> Path:
    """Compile ``libcuda.so.1`` into a directory; ``plain``: with functions, not NVIDIA's thunks."""
    directory.mkdir(parents=True, exist_ok=True)
    return _build_shared(SOURCES / "libcuda.c", directory / "libcuda.so.1", plain=plain)


def build_nccl(directory: Path, name: str = "libnccl.so.2") -> Path:
    """Compile a libnccl without GPUs into a directory, under ``name``."""
    directory.mkdir(parents=True, exist_ok=True)
    return _build_shared(STUBS / "libnccl" / "libnccl.c", directory / name)


def _build_shared(source: Path, output: Path, *, plain: bool = False) -> Path:
    flags = ["-DPLAIN_EXPORTS"] if plain else []
    soname = f"-Wl,-soname,{output.name}"
    command = [*_GCC, *flags, "-shared", "-fPIC", soname, "-o", str(output), str(source)]
    subprocess.run(command, check=True)
    return output


def build_workload(directory: Path) -> Path:
    """Compile the program that does what it is told."""
    output = directory / "workload"
    subprocess.run([*_GCC, "-o", output, SOURCES / "workload.c", "-ldl"], check=True)
    return output


def copy_of(path: Path, library: Library = LIBCUDA) -> Copy:
    """Return a library as it would be found."""
    status = path.stat()
    return Copy(library, Inode(status.st_dev, status.st_ino), path, str(path))


class Workload:
    """A running workload. ``do`` gives it one command and returns the answer: the CUresult, or a number."""

    def __init__(
        self,
        program: Path,
        library: Path | None = None,
        *,
        devices: int = 1,
        memory: int = 1 << 34,
        sync_us: int = 0,
        prefix: tuple[str, ...] = (),
    ) -> None:
        """Start it.

        :param sync_us: microseconds that each wait for the GPU sleeps.
        :param prefix: a command that runs it, which must exec it so that the pid is the same.
        """
        arguments = [str(library)] if library else []
        environment = os.environ | {
            "STUB_CUDA_DEVICES": str(devices),
            "STUB_CUDA_BYTES": str(memory),
            "STUB_CUDA_SYNC_US": str(sync_us),
        }
        self.process = subprocess.Popen(
            [*prefix, str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        self.pid = self.process.pid

    def do(self, command: str, timeout_s: float = 60) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
            assert ready, f"no answer to '{command}'"
            part = self.process.stdout.read(100)
            assert part, f"the workload died of '{command}': {answer!r}"
            answer += part
        return int(answer)

    def ready(self, *, device: int = 0) -> Self:
        """Initialize, ask for the number of devices, and make a context current, as the CUDA runtime does."""
        for command in ("init", "count", f"create {device}"):
            assert self.do(command) == SUCCESS, command
        return self

    def stop(self) -> None:
        """End it as a program ends, by returning from main."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
