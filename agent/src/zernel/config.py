# SPDX-License-Identifier: GPL-3.0-or-later
"""Typed TOML configuration, described once as frozen dataclasses.

A program describes its file as a dataclass whose fields are tables, and each table as a dataclass whose
fields are made with :func:`option`. From that one description come the parser with its checks, the commented
default file (``--dump-config``) and the errors, each with the file, the line and what to write instead::

    @dataclass(frozen=True, slots=True)
    class Prometheus:
        port: int = option(9091, "TCP port of /metrics on 127.0.0.1.", minimum=1, maximum=65535)

    @dataclass(frozen=True, slots=True)
    class Config:
        prometheus: Prometheus = table(Prometheus)

    config = load(Config, Path("/etc/zernel/zerneld.toml"))

Values are bool, int, float or str (a float field also takes a whole number, never a bool).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import textwrap
import tomllib
import typing
from pathlib import Path
from typing import Any, TypeVar

from zernel import files
from zernel.errors import Location, Problem, ZernelError, fail, os_suggestion

T = TypeVar("T")

MAX_BYTES = 1 << 20
"""Largest configuration file that is read, in bytes: far above any real one."""

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """Describe one key: its default, what it does (shown in the default file) and what is accepted."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def table(schema: type[T]) -> Any:
    """Describe one table of the file by its dataclass."""
    return dataclasses.field(default_factory=schema, metadata={"table": schema})


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
        lines += ["", f"[{part.name}]"]
        values = getattr(config, part.name)
        for field in dataclasses.fields(values):
            lines += [f"# {line}" for line in textwrap.wrap(field.metadata["help"], 100)]
            if accepted := _accepted(field):
                lines.append(f"# Accepted: {accepted}.")
            lines.append(f"{field.name} = {_toml(getattr(values, field.name))}")
    return "\n".join(lines) + "\n"


def _accepted(field: dataclasses.Field[Any]) -> str:
    metadata = field.metadata
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
        tables = {field.name: field for field in dataclasses.fields(typing.cast(Any, schema))}
        values: dict[str, Any] = {}
        for name, content in document.items():
            line = self._line_of(name, None)
            if name not in tables:
                self._unknown("table" if isinstance(content, dict) else "key", name, list(tables), line)
            elif not isinstance(content, dict):
                self._problem(
                    "config-type", f"'{name}' must be a table", f"Write [{name}] on a line of its own", line
                )
            else:
                values[name] = self._read_table(name, tables[name].metadata["table"], content)
        return schema(**values) if not self.problems else schema()

    def _read_table(self, name: str, schema: Any, content: dict[str, Any]) -> Any:
        fields = {field.name: field for field in dataclasses.fields(schema)}
        kinds = typing.get_type_hints(schema)
        values: dict[str, Any] = {}
        for key, value in content.items():
            line = self._line_of(name, key)
            if key not in fields:
                self._unknown("key", key, list(fields), line, table=name)
                continue
            checked = self._check(f"{name}.{key}", value, kinds[key], fields[key], line)
            if checked is not None:
                values[key] = checked
        return schema(**values)

    def _check(
        self, name: str, value: Any, kind: Any, field: dataclasses.Field[Any], line: int | None
    ) -> Any:
        """Return the value when it is acceptable, else None after noting the problem."""
        example = f"For example: {field.name} = {_toml(field.default)}"
        if type(value) is not kind and not (kind is float and type(value) is int):
            self._problem("config-type", f"'{name}' must be {_KINDS[kind]}", example, line)
            return None
        accepted = _accepted(field) or "a finite number"
        if type(value) is int and value.bit_length() > 64:
            # TOML promises no more; and from some size on, Python makes neither a float nor a text of it.
            category = f"'{name}' is a number of more than 64 bits; accepted: {accepted}"
            self._problem("config-range", category, example, line)
            return None
        if kind is float:
            value = float(value)
        metadata = field.metadata
        low, high, choices = metadata["minimum"], metadata["maximum"], metadata["choices"]
        # Written so that nan, which TOML allows, fails the comparison.
        inside = (low is None or value >= low) and (high is None or value <= high)
        if (
            not inside
            or (choices is not None and value not in choices)
            or value in (float("inf"), float("-inf"))
        ):
            self._problem("config-range", f"'{name}' is {_toml(value)}; accepted: {accepted}", example, line)
            return None
        return value

    def _unknown(
        self, what: str, name: str, known: list[str], line: int | None, table: str | None = None
    ) -> None:
        near = difflib.get_close_matches(name, known, n=1)
        where = f" in [{table}]" if table else ""
        suggestion = f"Did you mean '{near[0]}'?" if near else f"Known here: {', '.join(known) or 'none'}"
        self._problem("config-unknown", f"Unknown {what} '{name}'{where}", suggestion, line)

    def _problem(self, code: str, category: str, suggestion: str, line: int | None) -> None:
        self.problems.append(
            Problem(
                code=code,
                category=category,
                subject=self.file,
                suggestion=suggestion,
                locations=(_location(self.text, self.file, line),),
            )
        )

    def _line_of(self, table: str, key: str | None) -> int | None:
        """Return the line where a table, or a key of it, is written; tomllib does not tell.

        None when the text uses a form that this plain search does not know (the error then names the key
        alone): it is never a guess at another line.
        """
        current = None
        for number, raw in enumerate(self.text.splitlines(), start=1):
            line = raw.strip()
            header = re.match(r"\[\[?\s*[\"']?([^\]\"'.]+?)[\"']?\s*[\].]", line)
            if header:
                current = header.group(1)
                if key is None and current == table:
                    return number
                continue
            assigned = re.match(r"(?:[\"']?([\w-]+)[\"']?\s*\.\s*)?[\"']?([\w-]+)[\"']?\s*=", line)
            if not assigned:
                continue
            dotted, name = assigned.groups()
            if key is None:
                if current is None and table in (dotted, name if dotted is None else None):
                    return number
            elif name == key and (dotted or current) == table and (dotted is None or current is None):
                return number
        return None
