# SPDX-License-Identifier: GPL-3.0-or-later
"""A BPF object file: open it, set its constants, load it, attach its programs.

    with BpfObject.open(object_path("gpu_mem")) as obj:
        obj.set_rodata("target_pid", 42)
        obj.load()
        link = obj.program("on_alloc").attach_uprobe(library, offset)

Closing the object detaches its links, then frees its programs and maps.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from ctypes import byref, c_size_t, c_uint32
from pathlib import Path
from types import TracebackType
from typing import Self

from zernel.bpf import libbpf, uprobe_multi
from zernel.bpf.btf import STRUCT, Btf
from zernel.bpf.maps import Map
from zernel.bpf.uprobe_multi import Place
from zernel.errors import from_oserror

PACKAGED_OBJECTS = Path("/usr/lib/zernel/bpf")
_STATS_RUN_TIME = 0  # BPF_STATS_RUN_TIME of enum bpf_stats_type


def object_path(name: str) -> Path:
    """Return where the object ``NAME.bpf.o`` is: $ZERNEL_BPF_DIR, else as packaged, else the clone's bpf/."""
    if directory := os.environ.get("ZERNEL_BPF_DIR"):
        return Path(directory) / f"{name}.bpf.o"
    # agent/src/zernel/bpf/object.py of a clone; a copy of the package alone may lie anywhere.
    around = Path(__file__).resolve().parents
    if PACKAGED_OBJECTS.is_dir() or len(around) < 5:
        return PACKAGED_OBJECTS / f"{name}.bpf.o"
    return around[4] / "bpf" / f"{name}.bpf.o"


def possible_cpus() -> int:
    """Return the number of CPUs that the kernel may ever have: the length of a per-CPU value."""
    with libbpf.captured() as log:
        return libbpf.check(libbpf.library().libbpf_num_possible_cpus(), "count the possible CPUs", log)


def enable_run_stats() -> int:
    """Make the kernel count runs and run time of BPF programs until the returned descriptor is closed.

    Costs about 20 ns per program run, on the whole machine; needs CAP_SYS_ADMIN.
    """
    with libbpf.captured() as log:
        result = libbpf.library().bpf_enable_stats(_STATS_RUN_TIME)
        # The system call's wrapper returns the negative error number, as all of libbpf 1.x does.
        return libbpf.check(result, "enable BPF run statistics", log)


def link_exists(number: int) -> bool:
    """Tell whether the kernel has a link with this id; needs CAP_SYS_ADMIN.

    A link ends with the last process that has it open, unless it is pinned. An id comes again only after 2^31
    others.
    """
    with libbpf.captured():
        fd = libbpf.library().bpf_link_get_fd_by_id(number)
    if fd < 0:
        return False
    os.close(fd)
    return True


class Link:
    """An attachment. Closing it detaches; so does the end of the process."""

    def __init__(self, handle: int, what: str) -> None:
        self._handle = handle
        self.what = what

    @property
    def closed(self) -> bool:
        """Tell whether the link was closed."""
        return not self._handle

    @property
    def fd(self) -> int:
        """The open link's descriptor."""
        return int(libbpf.library().bpf_link__fd(self._handle))

    @property
    def id(self) -> int:
        """The open link's number in the kernel, never 0; see :func:`link_exists`."""
        info = libbpf.LinkInfo()
        size = c_uint32(ctypes.sizeof(info))
        with libbpf.captured() as log:
            libbpf.check(
                libbpf.library().bpf_obj_get_info_by_fd(self.fd, byref(info), byref(size)),
                f"read the number of the BPF link {self.what}",
                log,
            )
        return int(info.id)

    def close(self) -> None:
        """Detach; a second call does nothing."""
        handle, self._handle = self._handle, 0
        if handle:
            libbpf.library().bpf_link__destroy(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _DescriptorLink(Link):
    """A link that libbpf does not know: its handle is a descriptor."""

    @property
    def fd(self) -> int:
        return self._handle

    def close(self) -> None:
        handle, self._handle = self._handle, 0
        if handle:
            os.close(handle)


class Program:
    """One BPF program of a loaded object."""

    def __init__(self, handle: int, name: str, owner: BpfObject) -> None:
        self._handle = handle
        self._owner = owner
        self.name = name

    @property
    def fd(self) -> int:
        """The loaded program's descriptor; libbpf owns it."""
        return int(libbpf.library().bpf_program__fd(self._handle))

    def set_attach_type(self, attach_type: int) -> None:
        """Choose, before the object is loaded, what the program attaches to (enum bpf_attach_type)."""
        with libbpf.captured() as log:
            libbpf.check(
                libbpf.library().bpf_program__set_expected_attach_type(self._handle, attach_type),
                f"choose the attach type of program {self.name}",
                log,
            )

    def attach(self) -> Link:
        """Attach where the program's section name says, e.g. ``SEC("tracepoint/sched/sched_switch")``."""
        doing = f"attach BPF program {self.name}"
        with libbpf.captured() as log:
            handle = libbpf.pointer(libbpf.library().bpf_program__attach(self._handle), doing, log)
        return self._owner.keep(Link(handle, self.name))

    def attach_uprobe(
        self, path: Path | str, offset: int, *, retprobe: bool = False, pid: int = -1, cookie: int = 0
    ) -> Link:
        """Run the program when a process executes the instruction at ``offset`` of the file ``path``.

        :param offset: bytes from the start of the file (not the address it is mapped at).
        :param retprobe: run it when the function that starts there returns.
        :param pid: only in this process; -1 is every process.
        :param cookie: what ``bpf_get_attach_cookie`` gives the program.
        """
        options = libbpf.UprobeOptions(
            sz=ctypes.sizeof(libbpf.UprobeOptions), bpf_cookie=cookie, retprobe=retprobe
        )
        where = f"{path}+{offset:#x}"
        with libbpf.captured() as log:
            handle = libbpf.pointer(
                libbpf.library().bpf_program__attach_uprobe_opts(
                    self._handle, pid, os.fsencode(path), offset, byref(options)
                ),
                f"attach BPF program {self.name} at {where}",
                log,
            )
        return self._owner.keep(Link(handle, where))

    def attach_uprobes(self, path: Path, places: Sequence[Place], *, returning: bool = False) -> Link:
        """Run the program at every one of ``places`` of a file, or when the functions there return.

        The program must have been loaded for ``uprobe_multi.ATTACH_TYPE``. Needs kernel 6.6.
        """
        try:
            fd = uprobe_multi.create(self.fd, path, places, returning=returning)
        except OSError as error:
            doing = f"attach BPF program {self.name} at {len(places)} places of {path}"
            raise libbpf.error(error.errno or errno.EINVAL, doing, []) from error
        return self._owner.keep(_DescriptorLink(fd, str(path)))

    @property
    def run_count(self) -> int:
        """Runs while run statistics were enabled (see ``enable_run_stats``)."""
        return int(self._info().run_cnt)

    @property
    def run_time_ns(self) -> int:
        """Nanoseconds spent in the program while run statistics were enabled."""
        return int(self._info().run_time_ns)

    def _info(self) -> libbpf.ProgramInfo:
        info = libbpf.ProgramInfo()
        size = c_uint32(ctypes.sizeof(info))
        with libbpf.captured() as log:
            fd = libbpf.library().bpf_program__fd(self._handle)
            libbpf.check(
                libbpf.library().bpf_obj_get_info_by_fd(fd, byref(info), byref(size)),
                f"read the statistics of BPF program {self.name}",
                log,
            )
        return info


class BpfObject:
    """A BPF object file, opened by libbpf."""

    def __init__(self, handle: int, path: Path) -> None:
        self._handle = handle
        self._btf: Btf | None = None
        self._links: list[Link] = []
        self.path = path

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open an object file without loading anything into the kernel.

        :raises ZernelError: if the file cannot be read or is no BPF object.
        """
        path = Path(path)
        try:
            path.open("rb").close()
        except OSError as error:
            raise from_oserror(error, "open a BPF object") from error
        with libbpf.captured() as log:
            handle = libbpf.pointer(
                libbpf.library().bpf_object__open_file(os.fsencode(path), None),
                f"open the BPF object {path}",
                log,
                "Install the package zernel-agent again, or run 'make bpf' in the clone",
            )
        return cls(handle, path)

    def load(self) -> None:
        """Create the maps and have the kernel verify and take the programs.

        :raises ZernelError: with the end of the verifier's log when a program is refused.
        """
        with libbpf.captured() as log:
            libbpf.check(libbpf.library().bpf_object__load(self._open()), f"load {self.path}", log)

    def close(self) -> None:
        """Detach every link, then free programs and maps; a second call does nothing."""
        for link in reversed(self._links):
            link.close()
        self._links.clear()
        handle, self._handle = self._handle, 0
        if handle:
            libbpf.library().bpf_object__close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def map(self, name: str) -> Map:
        """Return a map by the name of its variable, or a data section such as ``.bss``.

        :raises KeyError: if the object has no such map (a mistake in the caller, not in what a user gave).
        """
        handle = libbpf.library().bpf_object__find_map_by_name(self._open(), name.encode())
        if not handle:
            raise KeyError(f"{self.path} has no map {name}")
        return Map(handle, name)

    def program(self, name: str) -> Program:
        """Return a program by its function's name.

        :raises KeyError: if the object has no such program.
        """
        handle = libbpf.library().bpf_object__find_program_by_name(self._open(), name.encode())
        if not handle:
            raise KeyError(f"{self.path} has no program {name}")
        return Program(handle, name, self)

    def programs(self) -> list[Program]:
        """Return every program of the object."""
        lib, found, handle = libbpf.library(), [], None
        while handle := lib.bpf_object__next_program(self._open(), handle):
            found.append(Program(handle, lib.bpf_program__name(handle).decode(), self))
        return found

    def set_rodata(self, name: str, value: int | bytes) -> None:
        """Set a ``const volatile`` global before the object is loaded.

        :param value: an integer, stored in the variable's own size, or its bytes.
        :raises KeyError: if the object has no such constant.
        :raises ValueError: if the value does not fit.
        """
        offset, size = self._variable(".rodata", name)
        self._write_initial(".rodata", name, offset, size, value)

    def set_struct_ops_member(self, map_name: str, struct: str, member: str, value: int | bytes) -> None:
        """Set a plain member (flags, a timeout, a name) of a struct_ops map before the object is loaded.

        Needs libbpf 1.4, which first gave access to such a map's initial value.
        """
        type_id = self.btf.find(struct, STRUCT)
        if type_id is None or member not in (members := self.btf.members(type_id)):
            raise KeyError(f"{self.path}: struct {struct} has no member {member}")
        place = members[member]
        self._write_initial(map_name, member, place.offset, self.btf.size(place.type_id), value)

    def bss(self, name: str) -> bytes:
        """Return the present bytes of a zero-initialized global of the loaded object."""
        offset, size = self._variable(".bss", name)
        value = self.map(".bss").lookup(bytes(4))
        return b"" if value is None else value[offset : offset + size]

    @property
    def btf(self) -> Btf:
        """The object's own type information."""
        if self._btf is None:
            size = c_uint32()
            lib = libbpf.library()
            raw = lib.btf__raw_data(lib.bpf_object__btf(self._open()), byref(size))
            data = ctypes.string_at(raw, size.value) if raw else b""
            self._btf = Btf(data, str(self.path))
        return self._btf

    def keep(self, link: Link) -> Link:
        """Detach ``link`` when the object is closed, before what it runs is freed."""
        self._links = [kept for kept in self._links if not kept.closed]
        self._links.append(link)
        return link

    def attach_struct_ops(self, map_name: str) -> Link:
        """Register the struct_ops map (section ``.struct_ops.link``) with the kernel."""
        doing = f"attach {map_name} of {self.path}"
        with libbpf.captured() as log:
            handle = libbpf.pointer(
                libbpf.library().bpf_map__attach_struct_ops(self.map(map_name).handle), doing, log
            )
        return self.keep(Link(handle, map_name))

    def _open(self) -> int:
        if not self._handle:
            raise ValueError(f"{self.path} was closed")
        return self._handle

    def _variable(self, section: str, name: str) -> tuple[int, int]:
        variables = self.btf.variables(section)
        if name not in variables:
            raise KeyError(f"{self.path} has no variable {name} in {section}")
        return variables[name]

    def _write_initial(self, map_name: str, name: str, offset: int, size: int, value: int | bytes) -> None:
        if isinstance(value, int):
            number = value
            try:
                value = number.to_bytes(size, "little", signed=number < 0)
            except OverflowError as error:
                raise ValueError(f"{name}: {number} does not fit into {size} bytes") from error
        if len(value) > size:
            raise ValueError(f"{name}: {len(value)} bytes do not fit into {size}")
        total = c_size_t()
        start = libbpf.library().bpf_map__initial_value(self.map(map_name).handle, byref(total))
        if not start or offset + size > total.value:
            raise ValueError(f"{self.path}: the initial value of {map_name} is out of reach for {name}")
        ctypes.memmove(start + offset, value.ljust(size, b"\0"), size)
