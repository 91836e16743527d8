# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that nobody wrote in good faith: each is answered with words, soon, by every verb that reads
files."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zernel.cli.main import main
from zernel.devicetree import fdt, render
from zernel.devicetree.load import read_file
from zernel.devicetree.reading import MAX_PROBLEMS

from .command import EXAMPLES, refused, zernel

HEAD = b"/dts-v1/;\n/ { "
INSTANCE = "{ resources { cpus = <4>; memory-base = <0x80000000>; memory-bytes = <0x1000>; }; };"


def with_instances(instances: str, rest: str = "") -> bytes:
    """Return the document's baseline with other instances and further nodes at the root."""
    text = (EXAMPLES / "baseline.dts").read_text()
    end = text.rindex("};")
    return f"{text[:end]}\ninstances {{ {instances} }};\n{rest}\n{text[end:]}".encode()


@cache
def blob(name: str = "system.dts") -> bytes:
    system = read_file(EXAMPLES / name).system
    assert system is not None
    return fdt.write(render.system_tree(system))


def shared_name(count: int, size: int) -> bytes:
    """Return a blob whose root has ``count`` properties that share one name of ``size`` bytes."""
    nodes = fdt.u32(1, 0) + fdt.u32(3, 0, 0) * count + fdt.u32(2, 9)
    start, end = 56, 56 + len(nodes)
    head = fdt.u32(fdt.MAGIC, end + size + 1, start, end, 40, 17, 16, 0, size + 1, len(nodes))
    return head + bytes(16) + nodes + b"a" * size + b"\0"


FILES: dict[str, Callable[[], tuple[bytes, str]]] = {
    "nothing": lambda: (b"", "must begin with a version mark"),
    "garbage": lambda: (bytes(range(256)) * 64, "neither device tree source nor a blob"),
    "100 MB of braces": lambda: (HEAD + b"{" * (100 << 20), "too large for a device tree"),
    "4 MiB of braces": lambda: (HEAD + b"{" * (4_000_000), "expected a property or a node"),
    "deep nesting": lambda: (HEAD + b"a { " * 100_000, "nested deeper than"),
    "deep and closed": lambda: (HEAD + b"a { " * 50 + b"}; " * 51, "nested deeper than"),
    "NULs": lambda: (HEAD + bytes(1000), "unexpected character"),
    "Latin-1": lambda: (HEAD + b'a = "\xe4"; };', "is not UTF-8"),
    "UTF-16": lambda: ("/dts-v1/;".encode("utf-16"), "neither device tree source nor a blob"),
    "one unclosed comment": lambda: (HEAD + b"/* " + b"* /" * 1_000_000, "never closed"),
    "comments only": lambda: (b"/**/" * 1_000_000, "must begin with a version mark"),
    "one endless line": lambda: (
        HEAD + b"a = <" + b"1 " * 1_900_000,
        "the list holds more than 65536 numbers",
    ),
    "a list of a million CPUs": lambda: (
        with_instances(INSTANCE.replace("<4>", f"<{'4 ' * 1_000_000}>").replace("{", "a {", 1)),
        "holds more than 65536 numbers",
    ),
    "unknown properties": lambda: (
        HEAD + b"resources { " + b"".join(b"p%d; " % n for n in range(300_000)) + b"}; };",
        f"More than {MAX_PROBLEMS} problems were found",
    ),
    "instances in thousands": lambda: (
        with_instances("".join(f"i{n} {INSTANCE}\n" for n in range(30_000))),
        "at most 2047 are possible",
    ),
    "everything conflicts": lambda: (
        with_instances("".join(f"i{n} {INSTANCE}\n" for n in range(2000))),
        f"More than {MAX_PROBLEMS} problems were found",
    ),
    "every device twice": lambda: (
        with_instances(
            "".join(
                f"i{n} {INSTANCE.replace('0x1000>;', '0x1000>; devices = <&v1 &v2 &v3>;')}\n"
                for n in range(300)
            ),
            "".join(f"v{n}: vf@{n} {{ parent = <&eth0>; vf-id = <{n}>; }};\n" for n in (1, 2, 3)),
        ),
        "Both allocated eth0:vf1",
    ),
    "unknown devices": lambda: (
        with_instances(
            f"a {INSTANCE}".replace(
                "0x1000>;", f"0x1000>; devices = <{' '.join(f'&e{n}_vf1' for n in range(60_000))}>;"
            )
        ),
        "Invalid device reference",
    ),
    "a circle": lambda: (
        with_instances(
            f"a {INSTANCE}".replace("0x1000>;", "0x1000>; devices = <&a &b>;"),
            "a: vf@1 { parent = <&b>; vf-id = <1>; }; b: vf@2 { parent = <&a>; vf-id = <1>; };",
        ),
        "which is no device",
    ),
    "numbers beyond all bounds": lambda: (
        with_instances(f"a {INSTANCE.replace('0x1000', '0x' + 'f' * 100_000)}"),
        "does not fit in 64 bits",
    ),
    "an address space that wraps": lambda: (
        with_instances(
            f"a {INSTANCE.replace('0x80000000', '0xfffffffffffff000').replace('0x1000', '0x2000')}"
        ),
        "exceeds memory pool",
    ),
    "a name that is a path": lambda: (with_instances(f"../../evil {INSTANCE}"), "Syntax error"),
    "a name of 300 characters": lambda: (
        with_instances(f"{'x' * 300} {INSTANCE}"),
        "Invalid instance name",
    ),
    "half of a blob": lambda: (blob()[: len(blob()) // 2], "Malformed device tree blob"),
    "a blob's header": lambda: (blob()[:40], "Malformed device tree blob"),
    "a magic number": lambda: (blob()[:4], "Malformed device tree blob"),
    "a blob whose properties share a name of 200,000 bytes": lambda: (
        shared_name(60_000, 200_000),
        "The name of a property lies outside of the blob or is over 255 bytes",
    ),
    "a blob whose properties share a name of 255 bytes": lambda: (
        shared_name(60_000, 255),
        "Baseline must contain /resources",
    ),
    "a blob with a path for a name": lambda: (
        blob().replace(b"web-server", b"../../evil"),
        "Invalid instance name: '../../evil'",
    ),
    "a blob with a slash in a name": lambda: (
        blob().replace(b"web-server\0", b"web/server\0"),
        "Invalid instance name: 'web/server'",
    ),
    "a blob with an empty name": lambda: (
        blob().replace(b"web-server\0", bytes(11)),
        "Malformed device tree blob",
    ),
    "a blob with a terminal's escapes": lambda: (
        blob().replace(b"web-server", b"\x1b[2J\x1b[1;1H"[:10]),
        "Invalid instance name",
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FILES)
def test_every_verb_that_reads_files_answers_with_words(name: str, tmp_path: Path) -> None:
    content, says = FILES[name]()
    file, target = tmp_path / "hostile", tmp_path / "out.dtb"
    file.write_bytes(content)
    shown = refused("validate", file)
    assert says in shown
    assert "Suggestion: " in shown
    assert "\x1b" not in shown
    if len(content) < 1 << 20 or len(content) > 4 << 20:  # seconds for each run between these
        refused("init", f"--input={file}")
        refused("convert", file, target)
    assert not target.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"    ", b"\t"),
        lambda text: re.sub(rb"//[^\n]*", b"", text).replace(b"\n", b" "),
        lambda text: text.replace(b"//", b"// \xe2\x80\xa6"),
    ],
)
def test_what_editors_do_to_files_changes_nothing(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = tmp_path / "a.dts"
    file.write_bytes(change((EXAMPLES / "system.dts").read_bytes()))
    assert read_file(file).system == read_file(EXAMPLES / "system.dts").system


@pytest.mark.parametrize(
    "words",
    [
        ("validate", "no\0where"[:2] + "/" * 5000),
        ("validate", "x" * 5000),
        ("validate", ""),
        ("validate", "/proc/self/mem"),
        ("validate", "/dev/zero"),
        ("convert", "/dev/zero", "out.dtb"),
        ("convert", str(EXAMPLES / "baseline.dts"), "x" * 5000 + ".dtb"),
        ("convert", str(EXAMPLES / "baseline.dts"), "/proc/zernel.dtb"),
        ("convert", str(EXAMPLES / "baseline.dts"), "/dev/full", "--to=dtb"),
        ("init", "--input="),
    ],
)
def test_paths_that_lead_nowhere(words: tuple[str, ...]) -> None:
    assert "Suggestion: " in refused(*words)


def test_odd_file_names_are_no_trouble(tmp_path: Path) -> None:
    for name in (b"a b", b"-x", b"\xff\xfe", "ä".encode(), b"new\nline"):
        file = Path(str(tmp_path)) / name.decode(errors="surrogateescape")
        file.write_bytes(b"/dts-v1/;")
        assert "Syntax error" in refused("validate", "--", str(file))
    assert zernel("validate", EXAMPLES / "minimal.dts").returncode == 0


def quietly(file: Path, target: Path) -> None:
    """Run validate and convert in this process, for speed; an exception of theirs is the test's."""
    assert main(["validate", str(file), "--format=json"]) in (0, 1)
    assert main(["convert", str(file), str(target), "--to=dts"]) in (0, 1)


@given(data=st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_blobs_are_valid_or_refused(
    data: st.DataObject, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZERNEL_LOG", "debug")  # an exception that is a defect is raised
    damaged = bytearray(blob())
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(
            st.one_of(st.sampled_from([0, 1, 2, 3, 9, 0x2F, 0x80, 0xFF]), st.integers(0, 255))
        )
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    file = tmp_path / "damaged.dtb"
    file.write_bytes(bytes(damaged[:cut]) + data.draw(st.binary(max_size=8)))
    quietly(file, tmp_path / "out")
    assert "Internal error" not in capsys.readouterr().err


@given(data=st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_sources_are_valid_or_refused(
    data: st.DataObject, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZERNEL_LOG", "debug")
    words = re.findall(rb"\S+|\s+", (EXAMPLES / "system.dts").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at, other = (data.draw(st.integers(0, len(words) - 1)) for _ in range(2))
        words[at] = data.draw(st.one_of(st.just(words[other]), st.just(b""), st.binary(max_size=4)))
    file = tmp_path / "damaged.dts"
    file.write_bytes(b"".join(words))
    quietly(file, tmp_path / "out")
    assert "Internal error" not in capsys.readouterr().err
