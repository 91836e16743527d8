# SPDX-License-Identifier: GPL-3.0-or-later
"""zernel.bpf against this machine's kernel: needs root, as loading any BPF program does."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from bpf_build import build_object
from zernel.bpf import BpfObject, RingBuffer, enable_run_stats, object_path, possible_cpus
from zernel.errors import ZernelError

OBJECTS = Path(__file__).parent / "objects"
RECORD = struct.Struct("<QQI8s4x")
ZERO = bytes(4)


@pytest.fixture(scope="module")
def binding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_object(OBJECTS / "binding.bpf.c", tmp_path_factory.mktemp("bpf"))


def labs_in_libc() -> tuple[Callable[[int], int], str, int]:
    """Return libc's labs(), its file and the file offset at which it starts."""
    labs = ctypes.CDLL(None).labs
    labs.argtypes, labs.restype = [ctypes.c_long], ctypes.c_long
    address = ctypes.cast(labs, ctypes.c_void_p).value
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return labs, path[0], address - start + int(offset, 16)
    raise AssertionError("labs is nowhere in this process")


def test_uprobe_constants_maps_and_ring_buffer_work_together(binding: Path) -> None:
    labs, library, offset = labs_in_libc()
    records: list[tuple[int, int, int, bytes]] = []
    with BpfObject.open(binding) as obj:
        obj.set_rodata("factor", 3)
        obj.set_rodata("label", b"set")
        obj.load()
        link = obj.program("on_call").attach_uprobe(library, offset, pid=os.getpid(), cookie=99)
        with RingBuffer(obj.map("records"), lambda data: records.append(RECORD.unpack(data))) as ring:
            assert labs(-35) == 35
            labs(1)
            assert ring.poll(1000) == 2
            link.close()
            labs(2)
            assert ring.consume() == 0
        assert records == [((7 - 35) % 2**64, 99, 3, b"set\0\0\0\0\0"), (8, 99, 3, b"set\0\0\0\0\0")]
        assert int.from_bytes(obj.bss("calls"), "little") == 2
        per_cpu = obj.map("per_cpu").lookup_percpu(ZERO)
        assert per_cpu is not None
        assert len(per_cpu) == possible_cpus()
        assert sum(int.from_bytes(value, "little") for value in per_cpu) == 2 * 3


def test_a_return_probe_sees_the_return(binding: Path) -> None:
    labs, library, offset = labs_in_libc()
    with BpfObject.open(binding) as obj:
        obj.load()
        obj.program("on_call").attach_uprobe(library, offset, retprobe=True, pid=os.getpid())
        labs(5)
        assert int.from_bytes(obj.bss("calls"), "little") == 1


def test_a_hash_map_keeps_what_it_is_given_and_refuses_what_does_not_fit(binding: Path) -> None:
    with BpfObject.open(binding) as obj:
        obj.load()
        table = obj.map("table")
        assert (table.key_size, table.value_size, table.max_entries) == (4, 8, 8)
        entries = {i.to_bytes(4, "little"): (i * i).to_bytes(8, "little") for i in range(8)}
        for key, value in entries.items():
            table.update(key, value)
        assert dict(table.items()) == entries
        assert table.delete(ZERO)
        assert not table.delete(ZERO)
        assert table.lookup(ZERO) is None
        assert set(table.keys()) == set(entries) - {ZERO}
        table.update(ZERO, bytes(8))
        with pytest.raises(ZernelError, match="write to BPF map table"):
            table.update(b"\xff" * 4, bytes(8))
        with pytest.raises(ValueError, match="keys of 4 bytes"):
            table.lookup(b"x")
        with pytest.raises(ValueError, match="values of 8 bytes"):
            table.update(ZERO, b"x")
        with pytest.raises(ValueError, match="one value per CPU"):
            obj.map("per_cpu").lookup(ZERO)


def test_a_map_can_be_sized_before_loading(binding: Path) -> None:
    with BpfObject.open(binding) as obj:
        obj.map("table").set_max_entries(2)
        obj.load()
        assert obj.map("table").max_entries == 2


def test_run_statistics_count_runs_while_they_are_enabled(binding: Path) -> None:
    labs, library, offset = labs_in_libc()
    with BpfObject.open(binding) as obj:
        obj.load()
        program = obj.program("on_call")
        program.attach_uprobe(library, offset, pid=os.getpid())
        enabled = enable_run_stats()
        try:
            labs(1)
            labs(1)
        finally:
            os.close(enabled)
        assert program.run_count == 2
        assert program.run_time_ns > 0
        labs(1)
        assert program.run_count == 2


def test_a_failure_in_the_ring_buffer_callback_reaches_the_caller(binding: Path) -> None:
    labs, library, offset = labs_in_libc()

    def broken(_: bytes) -> None:
        raise RuntimeError("cannot take it")

    with BpfObject.open(binding) as obj:
        obj.load()
        obj.program("on_call").attach_uprobe(library, offset, pid=os.getpid())
        with RingBuffer(obj.map("records"), broken) as ring:
            labs(1)
            with pytest.raises(RuntimeError, match="cannot take it"):
                ring.poll(1000)


def test_closing_the_object_detaches_its_probes(binding: Path) -> None:
    labs, library, offset = labs_in_libc()
    before = Path("/proc/self/fd")
    open_before = len(list(before.iterdir()))
    obj = BpfObject.open(binding)
    obj.load()
    obj.program("on_call").attach_uprobe(library, offset, pid=os.getpid())
    obj.close()
    obj.close()
    labs(1)
    assert len(list(before.iterdir())) == open_before
    with pytest.raises(ValueError, match="was closed"):
        obj.map("table")


def test_constants_must_exist_and_fit(binding: Path) -> None:
    with BpfObject.open(binding) as obj:
        with pytest.raises(KeyError, match="no variable nothing"):
            obj.set_rodata("nothing", 1)
        with pytest.raises(ValueError, match="does not fit into 4 bytes"):
            obj.set_rodata("factor", 1 << 32)
        with pytest.raises(ValueError, match="9 bytes do not fit into 8"):
            obj.set_rodata("label", b"ninebytes")
        with pytest.raises(KeyError, match="no map nothing"):
            obj.map("nothing")
        with pytest.raises(KeyError, match="no program nothing"):
            obj.program("nothing")


def test_a_program_the_verifier_refuses_is_reported_with_its_reason(tmp_path: Path) -> None:
    with BpfObject.open(build_object(OBJECTS / "refused.bpf.c", tmp_path)) as obj:
        with pytest.raises(ZernelError) as caught:
            obj.load()
        text = caught.value.problems[0].render()
        assert "Cannot load" in text
        assert "map_value_or_null" in text
        assert len(text) < 20_000


def test_a_file_that_is_missing_or_no_object_is_refused_with_words(tmp_path: Path) -> None:
    with pytest.raises(ZernelError) as caught:
        BpfObject.open(tmp_path / "absent.bpf.o")
    assert "No such file" in caught.value.problems[0].render()
    garbage = tmp_path / "garbage.bpf.o"
    for content in (b"", b"not an object\n" * 100, b"\x7fELF" + bytes(60)):
        garbage.write_bytes(content)
        with pytest.raises(ZernelError, match="Cannot open the BPF object"):
            BpfObject.open(garbage)


def test_an_attachment_to_what_is_not_there_is_refused(binding: Path, tmp_path: Path) -> None:
    with BpfObject.open(binding) as obj:
        obj.load()
        with pytest.raises(ZernelError, match=r"attach BPF program on_call at .*absent\.so"):
            obj.program("on_call").attach_uprobe(tmp_path / "absent.so", 0)


def test_without_privileges_the_error_says_to_be_root(binding: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with BpfObject.open(binding) as obj:
                os.setresuid(65534, 65534, 65534)
                obj.load()
        except ZernelError as error:
            os.write(writing, error.problems[0].render().encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    assert "Operation not permitted" in said
    assert "Run as root" in said


def test_objects_are_found_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZERNEL_BPF_DIR", str(tmp_path))
    assert object_path("sched") == tmp_path / "sched.bpf.o"
