# SPDX-License-Identifier: GPL-3.0-or-later
"""Typed TOML configuration, described once as frozen dataclasses.

A program describes its file as a dataclass whose fields are tables, and each table as a dataclass whose
fields are made with :func:`option`, or are tables again. From that one description come the parser with its
checks, the commented default file (``--dump-config``) and the errors, each with the file, the line and what
to write instead::

    @dataclass(frozen=True, slots=True)
    class Prometheus:
        port: int = option(9091, "TCP port of /metrics on 127.0.0.1.", minimum=1, maximum=65535)

    @dataclass(frozen=True, slots=True)
    class Config:
        prometheus: Prometheus = table(Prometheus)

    config = load(Config, Path("/etc/zernel/zerneld.toml"))

Values are bool, int, float or str (a float field also takes a whole number, never a bool). A field whose name
is a word of Python has an underscore behind it, which the file does not have (``class_``). What must hold
between keys, the file's dataclass tells in a method ``conflicts``: see :class:`Conflict`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import sys
import textwrap
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from zernel import files, toml_lines
from zernel.errors import Location, Problem, ZernelError, fail, os_suggestion

T = TypeVar("T")
Keys = toml_lines.Keys

MAX_BYTES = 1 << 20
"""Largest configuration file that is read, in bytes: far above any real one."""

MAX_DOTS = 128
"""Dots in a line, which may be levels of a key: far above any real one."""

_NAMES = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}


@dataclasses.dataclass(frozen=True, slots=True)
class Conflict:
    """A value that is wrong because of another: the paths of both keys, what is wrong, and what to write."""

    path: tuple[str, ...]
    category: str
    suggestion: str
    other: tuple[str, ...] = ()


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[Any, ...] | None = None,
    pattern: str | None = None,
    accepted: str | None = None,
    example: Any = None,
) -> Any:
    """Describe one key: its default, what it does (shown in the default file) and what is accepted.

    :param pattern: regular expression that a whole text matches; ``accepted`` says it in words.
    :param example: for a key that must be written: what to show in place of a default.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "pattern": pattern,
        "accepted": accepted,
        "example": default if example is None else example,
    }
    return dataclasses.field(default=default, metadata=metadata)


def table(schema: type[T], help: str = "", *, default: T | None = None) -> Any:
    """Describe one table of the file by its dataclass; ``default`` where it begins with other values."""
    factory = schema if default is None else lambda: default
    return dataclasses.field(default_factory=factory, metadata={"table": schema, "help": help})


def tables(schema: type[T], help: str, *, limit: int) -> Any:
    """Describe tables of one kind, ``[field.NAME]`` with any name: a dict from name to ``schema``."""
    metadata = {"tables": schema, "help": help, "limit": limit}
    return dataclasses.field(default_factory=dict, metadata=metadata)


def load(schema: type[T], path: Path, *, required: bool = False) -> T:
    """Read ``path`` into ``schema``.

    A file that does not exist gives the defaults, unless ``required``.
    :raises ZernelError: with one problem per defect found; nothing of a defective file is used.
    """
    try:
        raw = files.read_regular(path, MAX_BYTES + 1)
    except FileNotFoundError:
        if not required:
            return schema()
        raise fail(
            "config-missing",
            "The configuration file does not exist",
            subject=str(path),
            suggestion="Check the path given with --config, or start from the output of --dump-config",
        ) from None
    except OSError as error:
        raise fail(
            "config-unreadable",
            "Cannot read the configuration",
            subject=str(path),
            explanation=error.strerror or str(error),
            suggestion=os_suggestion(error, "Name a file that this user can read"),
        ) from error
    if len(raw) > MAX_BYTES:
        raise fail(
            "config-too-large",
            f"The configuration file is larger than {MAX_BYTES} bytes",
            subject=str(path),
            suggestion="Check that the path names a configuration file",
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise fail(
            "config-not-utf8",
            "The configuration is not UTF-8 text",
            subject=str(path),
            suggestion="Save the file as UTF-8, or start again from the output of --dump-config",
            location=Location(str(path), line),
        ) from None
    return parse(schema, text, str(path))


def parse(schema: type[T], text: str, file: str = "<text>") -> T:
    """Check TOML ``text`` against ``schema``; ``file`` is its name in errors.

    :raises ZernelError: with one problem per defect found.
    """
    for number, written in enumerate(text.splitlines(), start=1):
        if written.count(".") > MAX_DOTS:
            # Their time grows with the square of the levels: a line of 100 kB would take minutes.
            raise fail(
                "config-syntax",
                f"The configuration has more than {MAX_DOTS} dots in one line",
                subject=file,
                suggestion="The output of --dump-config shows a valid file",
                location=Location(file, number, None),
            )
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        # "at end of document" has no number: the last line is where the person must look.
        line = int(found.group(1)) if found else max(1, len(text.splitlines()))
        raise fail(
            "config-syntax",
            "The configuration is not valid TOML",
            subject=file,
            explanation=str(error),
            suggestion="Correct the line below; the output of --dump-config shows a valid file",
            location=_location(text, file, line),
        ) from None
    except ValueError:
        # The one other than TOMLDecodeError: Python converts no longer number, against those who send such.
        raise fail(
            "config-syntax",
            "The configuration has a number of too many digits",
            subject=file,
            explanation=f"At most {sys.get_int_max_str_digits()} digits are read",
            suggestion="Correct the line below; the output of --dump-config shows a valid file",
            location=_location(text, file, _line_of_long_number(text)),
        ) from None
    except RecursionError:
        raise fail(
            "config-syntax",
            "The configuration is nested too deeply",
            subject=file,
            suggestion="The output of --dump-config shows a valid file",
        ) from None
    reader = _Reader(text, file)
    config = reader.read_file(schema, document)
    if reader.problems:
        raise ZernelError(*reader.problems)
    return config


def dump(config: Any, heading: str) -> str:
    """Return ``config`` as a commented TOML file; ``heading`` becomes the comment at the top.

    For the defaults, pass ``Config()``: the default file that the package installs is this text.
    """
    lines = [
        "# SPDX-License-Identifier: GPL-3.0-or-later",
        *(f"# {line}".rstrip() for line in heading.splitlines()),
    ]
    for part in dataclasses.fields(config):
        lines += _dump_part((part.name,), part.metadata, getattr(config, part.name), set())
    return "\n".join(lines) + "\n"


def _dump_part(path: Keys, metadata: Mapping[str, Any], value: Any, explained: set[Any]) -> list[str]:
    """Return a table, or tables of any name; the keys of a kind of table are explained once."""
    if "tables" not in metadata:
        has_keys = any(map(_is_option, dataclasses.fields(value)))
        header = [f"[{'.'.join(path)}]"] if has_keys else []
        return ["", *_comment(metadata["help"]), *header, *_dump_table(path, value, explained)]
    lines = ["", *_comment(metadata["help"])]
    if not value:
        example = _example(metadata["tables"])
        return [*lines, f"# [{'.'.join(path)}.NAME]", *(f"# {line}" for line in _options(example, set()))]
    for name, content in value.items():
        lines += ["", f"[{'.'.join(path)}.{_key(name)}]", *_dump_table((*path, name), content, explained)]
    return lines


def _dump_table(path: Keys, values: Any, explained: set[Any]) -> list[str]:
    lines = _options(values, explained)
    for field in dataclasses.fields(values):
        if not _is_option(field):
            lines += _dump_part((*path, field.name), field.metadata, getattr(values, field.name), explained)
    return lines


def _options(values: Any, explained: set[Any]) -> list[str]:
    lines = []
    for field in filter(_is_option, dataclasses.fields(values)):
        if type(values) not in explained:
            lines += _comment(field.metadata["help"])
            if accepted := _accepted(field):
                lines.append(f"# Accepted: {accepted}.")
        lines.append(f"{_name(field)} = {_toml(getattr(values, field.name))}")
    explained.add(type(values))
    return lines


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 100)]


def _example(schema: Any) -> Any:
    return schema(**{field.name: field.metadata["example"] for field in dataclasses.fields(schema)})


def _is_option(field: dataclasses.Field[Any]) -> bool:
    return "table" not in field.metadata and "tables" not in field.metadata


def _name(field: dataclasses.Field[Any]) -> str:
    """Return the key as the file has it."""
    return field.name.rstrip("_")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _accepted(field: dataclasses.Field[Any]) -> str:
    metadata = field.metadata
    if metadata["accepted"] is not None:
        return str(metadata["accepted"])
    if metadata["choices"] is not None:
        return ", ".join(_toml(choice) for choice in metadata["choices"])
    low, high = metadata["minimum"], metadata["maximum"]
    if low is not None and high is not None:
        return f"{_toml(low)} to {_toml(high)}"
    if low is not None:
        return f"{_toml(low)} or more"
    return f"{_toml(high)} or less" if high is not None else ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        return f'"{escaped}"'
    return str(value)


def _line_of_long_number(text: str) -> int | None:
    """Return the line of the number that made tomllib give up: the first that does so when it is the last."""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if len(line) > sys.get_int_max_str_digits():
            try:
                tomllib.loads("".join(lines[:number]))
            except tomllib.TOMLDecodeError:
                pass  # the lines end within a value, and no number was in the way before
            except ValueError:
                return number
    return None


def _location(text: str, file: str, line: int | None) -> Location:
    lines = text.splitlines()
    source = lines[line - 1] if line and line <= len(lines) else None
    return Location(file, line, source)


class _Reader:
    """Checks one parsed document, and collects a problem for each defect."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.problems: list[Problem] = []

    def read_file(self, schema: type[T], document: dict[str, Any]) -> T:
        config = self._read_table((), schema, schema(), document)
        if not self.problems and isinstance(config, _Conflicting):
            for conflict in config.conflicts():
                # Either may be a default, which no line says.
                written = [path for path in (conflict.path, conflict.other) if path in self._lines]
                self._problem("config-conflict", conflict.category, conflict.suggestion, *written)
        return typing.cast(T, config)

    def _read_table(self, path: Keys, schema: Any, default: Any, content: dict[str, Any]) -> Any:
        """Return ``default`` with what the table says; without a default the table must say all it needs."""
        fields = {_name(field): field for field in dataclasses.fields(schema)}
        kinds = typing.get_type_hints(schema) if any(map(_is_option, fields.values())) else {}
        values: dict[str, Any] = {}
        for key, value in content.items():
            here = (*path, key)
            if key not in fields:
                self._unknown(here, list(fields), is_table=isinstance(value, dict))
                continue
            field = fields[key]
            held = getattr(default, field.name, None)
            read = self._check(here, value, kinds[field.name], field) if _is_option(field) else None
            if not _is_option(field):
                read = self._read_part(here, value, held, field.metadata)
            if read is not None:
                values[field.name] = read
        if default is not None:
            return dataclasses.replace(default, **values)
        missing = [name for name, field in fields.items() if _required(field) and name not in content]
        for name in missing:
            example = f"For example: {name} = {_toml(fields[name].metadata['example'])}"
            self._problem("config-missing-key", f"[{'.'.join(path)}] needs '{name}'", example, path)
        return None if missing or self.problems else schema(**values)

    def _read_part(self, path: Keys, value: Any, held: Any, metadata: Mapping[str, Any]) -> Any:
        named = "tables" in metadata
        if not isinstance(value, dict) or (named and not all(isinstance(v, dict) for v in value.values())):
            shown = ".".join(path)
            header = f"[{shown}.NAME]" if named else f"[{shown}]"
            what = "hold tables only" if named and isinstance(value, dict) else "be a table"
            self._problem(
                "config-type", f"'{shown}' must {what}", f"Write {header} on a line of its own", path
            )
            return None
        if not named:
            return self._read_table(path, metadata["table"], held, value)
        if len(value) > metadata["limit"]:
            category = f"'{'.'.join(path)}' has {len(value)} tables; accepted: {metadata['limit']} or fewer"
            self._problem("config-range", category, "Leave some out", path)
            return None
        read = {}
        for name, content in value.items():
            here = (*path, name)
            if not re.fullmatch(_NAMES, name):
                category = f"A name of {len(name)} characters in '{'.'.join(path)}' is not accepted"
                suggestion = "Use up to 64 letters, digits, '-', '_' and '.', with a letter or digit first"
                self._problem("config-name", category, suggestion, here)
                continue
            read[name] = self._read_table(here, metadata["tables"], None, content)
        return read

    def _check(self, path: Keys, value: Any, kind: Any, field: dataclasses.Field[Any]) -> Any:
        """Return the value when it is acceptable, else None after noting the problem."""
        name = ".".join(path)
        example = f"For example: {path[-1]} = {_toml(field.metadata['example'])}"
        if type(value) is not kind and not (kind is float and type(value) is int):
            self._problem("config-type", f"'{name}' must be {_KINDS[kind]}", example, path)
            return None
        accepted = _accepted(field) or "a finite number"
        if type(value) is int and value.bit_length() > 64:
            # TOML promises no more; and from some size on, Python makes neither a float nor a text of it.
            category = f"'{name}' is a number of more than 64 bits; accepted: {accepted}"
            self._problem("config-range", category, example, path)
            return None
        if kind is float:
            value = float(value)
        if not _inside(value, field.metadata):
            choices = map(str, field.metadata["choices"] or ())
            if near := difflib.get_close_matches(str(value), choices, n=1):
                example = f"Did you mean {_toml(near[0])}?"
            self._problem("config-range", f"'{name}' is {_toml(value)}; accepted: {accepted}", example, path)
            return None
        return value

    def _unknown(self, path: Keys, known: list[str], *, is_table: bool) -> None:
        *table, name = path
        near = difflib.get_close_matches(name, known, n=1)
        what = "table" if is_table and not table else "key"
        where = f" in [{'.'.join(table)}]" if table else ""
        suggestion = f"Did you mean '{near[0]}'?" if near else f"Known here: {', '.join(known) or 'none'}"
        self._problem("config-unknown", f"Unknown {what} '{name}'{where}", suggestion, path)

    def _problem(self, code: str, category: str, suggestion: str, *paths: Keys) -> None:
        self.problems.append(
            Problem(
                code=code,
                category=category,
                subject=self.file,
                suggestion=suggestion,
                locations=tuple(
                    _location(self.text, self.file, self._lines.get(path[: toml_lines.MAX_DEPTH]))
                    for path in paths
                ),
            )
        )

    @functools.cached_property
    def _lines(self) -> dict[Keys, int]:
        """Path → line. Only a text with a mistake is read again for it."""
        return toml_lines.key_lines(self.text)


@typing.runtime_checkable
class _Conflicting(typing.Protocol):
    def conflicts(self) -> Iterable[Conflict]: ...


def _required(field: dataclasses.Field[Any]) -> bool:
    return _is_option(field) and field.default is dataclasses.MISSING


def _inside(value: Any, accepted: Mapping[str, Any]) -> bool:
    low, high, choices = accepted["minimum"], accepted["maximum"], accepted["choices"]
    # Written so that nan, which TOML allows, fails the comparison.
    if not ((low is None or value >= low) and (high is None or value <= high)):
        return False
    if accepted["pattern"] is not None and not re.fullmatch(accepted["pattern"], value):
        return False
    return (choices is None or value in choices) and value not in (float("inf"), float("-inf"))
