# SPDX-License-Identifier: GPL-3.0-or-later
"""The instances that a host shall have, as YAML files declare them: ``/etc/zernel/instances.d/*.yaml``.

A file holds one instance in each of its documents, as a mapping of the keys in `KEYS`. Values are read as the
text that stands there, in the same forms as the options of ``zernel create``: YAML's own ideas of what is a
number would make 1:30 ninety, and 010 eight.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from zernel import files
from zernel.devicetree.allocations import check_name
from zernel.devicetree.model import MAX_INSTANCE_ID
from zernel.devicetree.reading import MAX_PROBLEMS, bounded
from zernel.devicetree.units import RESOURCES
from zernel.devicetree.validate import is_valid
from zernel.errors import Location, Problem, ZernelError, fail, os_suggestion
from zernel.multikernel.planning import Request
from zernel.record import Record

DIRECTORY = Path("/etc/zernel/instances.d")
MAX_BYTES = 64 << 10
"""The largest file that is read."""
MAX_INSTANCES = 2 * MAX_INSTANCE_ID
"""Declarations that are read; more than there can be instances, so that the error is about those."""


class Declaration(Record):
    """An instance that shall be there. ``places`` are where the keys stand; ``""`` is the document."""

    request: Request
    places: dict[str, Location]

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.request.name


KEYS = ("name", *RESOURCES)
"""The keys of a declaration; ``cpus``, ``devices`` and ``numa_nodes`` may be lists."""
_LISTS = ("cpus", "devices", "numa_nodes")
_NOTHING = "tag:yaml.org,2002:null"


def read_directory(directory: Path) -> tuple[list[Declaration], list[Problem]]:
    """Return what the files of a directory declare, in the order of their names, and warnings.

    Raises `ZernelError` with everything that is wrong in any of them.
    """
    found, problems = look_through(directory)
    if not is_valid(problems):
        raise ZernelError(*(problem for problem in problems if problem.severity != "WARNING"))
    return found, problems


def look_through(directory: Path) -> tuple[list[Declaration], list[Problem]]:
    """Return what can be read in the files of a directory, with everything that is wrong in them.

    Raises `ZernelError` where nothing of it can be judged.
    """
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise fail(
            "directory-unreadable",
            "The directory of declared instances cannot be read",
            subject=str(directory),
            explanation=error.strerror or str(error),
            suggestion=os_suggestion(error, "Name another one with --directory"),
        ) from error
    found: list[Declaration] = []
    problems: list[Problem] = []
    ignored: list[Problem] = []
    for path in paths:
        hidden = path.name.startswith(".")
        if path.suffix == ".yml" or (path.suffix == ".yaml" and hidden):
            ignored.append(
                Problem(
                    "file-ignored",
                    "The file is not read: its name begins with a dot"
                    if hidden
                    else "The file is not read: its name does not end in .yaml",
                    subject=str(path),
                    suggestion=f"Rename it to {path.with_suffix('.yaml').name.lstrip('.')}",
                    severity="WARNING",
                )
            )
        elif path.suffix == ".yaml":
            reader = _Reader(path)
            reader.read()
            found += reader.found
            problems += reader.problems
        if len(problems) > MAX_PROBLEMS:
            return found, ignored + bounded(problems)
        if len(found) > MAX_INSTANCES:
            raise fail(
                "too-many-instances",
                f"More than {MAX_INSTANCES} instances are declared",
                subject=str(directory),
                suggestion=f"A host can have {MAX_INSTANCE_ID}",
            )
    return found, ignored + problems + _duplicates(found)


def _duplicates(found: list[Declaration]) -> list[Problem]:
    first: dict[str, Declaration] = {}
    problems = []
    for one in found:
        other = first.setdefault(one.name, one)
        if other is not one:
            problems.append(
                Problem(
                    "duplicate-name",
                    f'Duplicate instance name: "{one.name}"',
                    explanation=(f'Instance name "{one.name}" is declared twice',),
                    suggestion="Rename or remove one of them",
                    note="Instance names must be unique across the entire system",
                    locations=(other.places["name"], one.places["name"]),
                )
            )
    return problems


class _Entry(Record):
    """A key and its value as texts, one or with ``listed`` several; None: something else stands there.
    ``line`` counts from 0."""

    key: str
    line: int
    texts: tuple[str, ...] | None
    listed: bool


class _Document(Record):
    """One declaration of a file; ``entries`` is None where it is no mapping. ``line`` counts from 0."""

    line: int
    entries: tuple[_Entry, ...] | None


class _Unreadable(Exception):
    """A file is no YAML. ``line`` counts from 0."""

    def __init__(self, why: str, suggestion: str, line: int | None = None) -> None:
        super().__init__(why)
        self.why, self.suggestion, self.line = why, suggestion, line


def _documents(text: str) -> list[_Document]:
    """Return the declarations of a file; raises `_Unreadable`, and RecursionError."""
    try:
        import yaml
    except ModuleNotFoundError:  # on a host that is only looked at, before the agent's dependencies come
        return [_json_document(text)]

    def entry(key: yaml.Node, value: yaml.Node) -> _Entry:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        listed = isinstance(value, yaml.SequenceNode)
        items = value.value if listed else [value]
        plain = all(isinstance(item, yaml.ScalarNode) for item in items)
        return _Entry(
            name, key.start_mark.line, tuple(item.value for item in items) if plain else None, listed
        )

    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or "It holds characters that YAML does not allow"
        raise _Unreadable(why, "Correct the line below", mark.line if mark else None) from error
    except (
        ValueError,
        OverflowError,
    ) as error:  # PyYAML makes numbers of some things, and characters of those
        raise _Unreadable(str(error), "Write it with plain values") from error
    return [
        _Document(
            node.start_mark.line,
            tuple(entry(*pair) for pair in node.value) if isinstance(node, yaml.MappingNode) else None,
        )
        for node in nodes
        if node.tag != _NOTHING
    ]


def _json_document(text: str) -> _Document:
    """Return the one declaration of a file that holds JSON, which is YAML, too."""
    import json

    def shown(value: object) -> str | None:
        if isinstance(value, bool):
            return str(value).lower()
        return value if isinstance(value, str) else "null" if value is None else None

    class Pairs(list[tuple[str, object]]):
        """A mapping, in which a key may stand twice."""

    def entry(key: str, value: object) -> _Entry:
        listed = isinstance(value, list) and not isinstance(value, Pairs)
        texts = [shown(item) for item in (value if isinstance(value, list) and listed else [value])]
        plain = tuple(one for one in texts if one is not None)
        return _Entry(key, 0, plain if len(plain) == len(texts) else None, listed)

    decoder = json.JSONDecoder(object_pairs_hook=Pairs, parse_int=str, parse_float=str, parse_constant=str)
    try:
        found = decoder.decode(text)
    except json.JSONDecodeError as error:
        suggestion = "Give one declaration as JSON, or install python3-yaml to have YAML read"
        raise _Unreadable(error.msg, suggestion, error.lineno - 1) from error
    return _Document(0, tuple(entry(*pair) for pair in found) if isinstance(found, Pairs) else None)


class _Reader:
    """Reads one file, and collects a problem for each mistake in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self.found: list[Declaration] = []
        self.problems: list[Problem] = []

    def read(self) -> None:
        try:
            data = files.read_regular(self.path, MAX_BYTES + 1)
        except OSError as error:
            self.add(
                "file-unreadable", f"Cannot be read: {error.strerror}", os_suggestion(error, "Remove it")
            )
            return
        if len(data) > MAX_BYTES:
            self.add("file-too-large", f"The file has more than {MAX_BYTES >> 10} KiB", "Split it")
            return
        try:
            text = data.decode()
            self.lines = text.splitlines()
            documents = _documents(text)
        except UnicodeDecodeError as error:
            broken = data[: error.start].count(b"\n")
            self.add("not-text", "The file is not UTF-8 text", "Save it as UTF-8", broken)
        except _Unreadable as error:
            self.add("bad-yaml", f"The file is not valid YAML: {error.why}", error.suggestion, error.line)
        except RecursionError:
            self.add("too-deep", "The file is nested too deeply", "A declaration is flat: key: value")
        else:
            for document in documents:
                if len(self.problems) <= MAX_PROBLEMS:
                    self.declaration(document)

    def declaration(self, document: _Document) -> None:
        line = document.line
        if document.entries is None:
            self.add("bad-declaration", "A declaration is a mapping", "Begin it with name: web-server", line)
            return
        before = len(self.problems)
        places = {"": self.location(line)}
        values: dict[str, Any] = {}
        for entry in document.entries:
            key, at = entry.key, entry.line
            if key not in KEYS:
                near = tuple(get_close_matches(key, KEYS, 3))
                self.add(
                    "unknown-key",
                    f"Unknown key '{key[:60]}'",
                    f"Use one of: {', '.join(KEYS)}",
                    at,
                    did_you_mean=near,
                )
            elif key in places:
                self.add("duplicate-key", f"The key '{key}' stands there twice", "Remove one of them", at)
            else:
                places[key] = self.location(at)
                values[key] = self.value(entry)
        for key in ("name", "memory"):
            if key not in places:
                self.add("missing-key", f"The key '{key}' is missing", f"Add {key}: {_EXAMPLES[key]}", line)
        if ("cpus" in places) == ("cpu_count" in places):
            both = "cpus" in places
            self.add(
                "missing-key" if not both else "conflicting-keys",
                "Both 'cpus' and 'cpu_count' are given"
                if both
                else "Neither 'cpus' nor 'cpu_count' is given",
                "Keep one of them" if both else "Add cpus: 4-7, or cpu_count: 4",
                line,
            )
        if len(self.problems) == before:
            values["memory_bytes"] = values.pop("memory")
            self.found.append(Declaration(Request(**values), places))

    def value(self, entry: _Entry) -> object:
        key, line = entry.key, entry.line
        if entry.texts is None or (entry.listed and key not in _LISTS):
            what = "a list or a text" if key in _LISTS else "a single value"
            self.add("bad-value", f"'{key}' takes {what}", f"Write it as {key}: {_EXAMPLES[key]}", line)
            return None
        if sum(map(len, entry.texts)) > MAX_BYTES:  # aliases make much of little
            self.add("bad-value", f"'{key}' is longer than a file can be", "Write it without aliases", line)
            return None
        text = ",".join(entry.texts)
        if key == "devices" and not text:
            return ()
        if key == "name":
            self.problems += [problem.but(locations=(self.location(line),)) for problem in check_name(text)]
            return text
        try:
            return RESOURCES[key](text, key)
        except ZernelError as error:
            for problem in error.problems:
                # The readers are those of the command line, whose form is OPTION=VALUE.
                suggestion = (problem.suggestion or "").replace(f"{key}=", f"{key}: ")
                self.problems.append(problem.but(suggestion=suggestion, locations=(self.location(line),)))
            return None

    def location(self, line: int) -> Location:
        """Return the place of a line, counted from 0."""
        return Location(str(self.path), line + 1, self.lines[line] if line < len(self.lines) else None)

    def add(
        self,
        code: str,
        category: str,
        suggestion: str,
        line: int | None = None,
        did_you_mean: tuple[str, ...] = (),
    ) -> None:
        where = (self.location(line),) if line is not None else ()
        self.problems.append(
            Problem(
                code,
                category,
                subject=str(self.path),
                suggestion=suggestion,
                locations=where,
                did_you_mean=did_you_mean,
            )
        )


_EXAMPLES = {
    "name": "web-server",
    "cpus": "4-7",
    "cpu_count": "4",
    "memory": "2GB",
    "memory_base": "0x80000000",
    "devices": "[eth0:vf1]",
    "id": "1",
    "numa_nodes": "[0, 1]",
    "cpu_affinity": "compact",
    "memory_policy": "local",
}
