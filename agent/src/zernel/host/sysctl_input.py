# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the desired kernel settings that a person wrote, and refuses what would fail silently later.

Two forms. A mapping in YAML or JSON, key to value or to ``{value, policy, optional}``::

    vm.swappiness: 1
    net.core.rmem_max: {value: 134217728, policy: raise}

or lines of sysctl.d, ``key = value``. systemd-sysctl reports success on a value with a comment behind it and
on a key that does not exist; both are errors here, with file and line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from zernel.errors import Location, Problem, ZernelError, fail


class Policy(StrEnum):
    """How an asked value meets the value that is there."""

    SET = "set"
    RAISE = "raise"  # per field, never lower than what the host had


@dataclass(frozen=True, slots=True)
class Asked:
    """One setting as asked for. ``policy`` None means the key's usual policy.

    ``optional``: a kernel that lacks the key, or what it needs, is reported but is no error.
    """

    key: str
    value: str
    policy: Policy | None = None
    optional: bool = False
    location: Location | None = None


MAX_INPUT = 1 << 20
"""Bytes; a desired state has some hundred lines."""

_KEY = re.compile(r"[a-zA-Z0-9_-]+([./][a-zA-Z0-9_:@-]+)+")
_COMMENT = re.compile(r"(?:^|\s)[#;]")
_FIELDS = frozenset({"value", "policy", "optional"})


def parse(text: str, name: str, lines_form: bool = False) -> list[Asked]:
    """Return the settings of an input, in its order.

    :param name: the file's name, for messages.
    :param lines_form: the text is in the form of sysctl.d; otherwise YAML or JSON.
    :raises ZernelError: with every problem of the input, not only the first.
    """
    if len(text) > MAX_INPUT:
        raise fail(
            "sysctl-input-too-large",
            f"The desired settings are larger than {MAX_INPUT} bytes",
            subject=name,
            suggestion="Give a mapping of kernel settings",
        )
    return _Reader(name, text).read(lines_form)


class _Pairs(list[tuple[str, object]]):
    """A JSON object with its names in order, also those that are there twice."""


class _Number(str):
    """A JSON number as it was written."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Node:
    """A piece of YAML or JSON: ``kind`` is the YAML tag's last word ("str", "int", "map", ...)."""

    line: int
    kind: str
    text: str = ""
    items: list[tuple[str, _Node]] = field(default_factory=list)


class _Reader:
    """Collects settings and problems of one input."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.lines = text.splitlines()
        self.problems: list[Problem] = []
        self.asked: dict[str, Asked] = {}

    def read(self, lines_form: bool) -> list[Asked]:
        if lines_form:
            self._read_lines()
        else:
            self._read_mapping()
        if self.problems:
            raise ZernelError(*self.problems)
        if lines_form and not self.asked:
            raise self._empty()
        return list(self.asked.values())

    def _empty(self) -> ZernelError:
        """An empty text would take every setting back: more likely it is a slip."""
        return fail(
            "sysctl-empty-input",
            "There are no settings in the input",
            subject=self.name,
            explanation="The input is the whole desired set: an empty one takes back all that is set now",
            suggestion="Write the settings; to take everything back, give the empty mapping {} as YAML",
        )

    def _location(self, line: int) -> Location:
        return Location(self.name, line, self.lines[line - 1] if 0 < line <= len(self.lines) else None)

    def _problem(self, code: str, category: str, line: int, why: str, suggestion: str, key: str = "") -> None:
        self.problems.append(
            Problem(
                code=code,
                category=category,
                subject=key or None,
                explanation=(why,),
                suggestion=suggestion,
                locations=(self._location(line),),
            )
        )

    def _add(self, line: int, key: str, value: str, policy: Policy | None, optional: bool) -> None:
        name = dotted(key)
        if not _KEY.fullmatch(key):
            self._problem(
                "sysctl-bad-key",
                "Not the name of a kernel setting",
                line,
                f"'{key}' is not of the form vm.swappiness",
                "Write the name as below /proc/sys, with dots",
                key,
            )
        elif name in self.asked:
            first = self.asked[name].location
            self._problem(
                "sysctl-duplicate",
                "The setting is there twice",
                line,
                f"It is already set in line {first.line if first else '?'}",
                "Keep one of the two lines",
                key,
            )
        elif self._check_value(line, key, value):
            normal = " ".join(value.split())
            self.asked[name] = Asked(name, normal, policy, optional, self._location(line))

    def _check_value(self, line: int, key: str, value: str) -> bool:
        if not value.strip():
            self._problem(
                "sysctl-empty",
                "The setting has no value",
                line,
                "An empty value sets nothing",
                "Write a value",
                key,
            )
            return False
        if _COMMENT.search(value):
            self._problem(
                "sysctl-comment-in-value",
                "A comment stands inside the value",
                line,
                "The kernel would get the comment with the value; systemd-sysctl then fails in silence",
                "Put the comment on a line of its own",
                key,
            )
            return False
        if any(letter != "\t" and not letter.isprintable() for letter in value):
            self._problem(
                "sysctl-control-character",
                "The value has control characters or several lines",
                line,
                f"The value is {value!r}",
                "Write the value on one line",
                key,
            )
            return False
        return True

    def _read_lines(self) -> None:
        for number, raw in enumerate(self.lines, 1):
            line = raw.strip()
            if not line or line[0] in "#;":
                continue
            optional = line.startswith("-")  # sysctl.d: failure to set this one is ignored
            key, equals, value = line.removeprefix("-").partition("=")
            if not equals:
                self._problem(
                    "sysctl-syntax",
                    "Not a setting",
                    number,
                    "A line is 'key = value' or a comment",
                    "Add the equals sign and a value",
                )
                continue
            self._add(number, key.strip(), value, None, optional)

    def _read_mapping(self) -> None:
        try:
            node = self._yaml()
        except ModuleNotFoundError:  # on a host that is only looked at, before the agent's dependencies come
            node = self._json()
        if node is None:
            return
        if node.kind != "map":
            self._problem(
                "sysctl-syntax",
                "Not a mapping of settings",
                node.line,
                "The input must map names to values",
                "Write lines such as 'vm.swappiness: 1'",
            )
            return
        for key, value in node.items:
            self._read_entry(key, value)

    def _json(self) -> _Node | None:
        """Return what the text says; None after noting a problem."""
        import json

        decoder = json.JSONDecoder(
            object_pairs_hook=_Pairs, parse_int=_Number, parse_float=_Number, parse_constant=_Number
        )
        try:
            return self._from_json("", decoder.decode(self.text), 1)
        except json.JSONDecodeError as error:
            suggestion = "Give JSON, or install python3-yaml to have YAML read"
            self._problem("sysctl-syntax", "Not valid JSON", error.lineno, error.msg, suggestion)
            return None

    def _from_json(self, key: str, value: object, start: int) -> _Node:
        """Return a decoded value, with the first line from ``start`` on that has its key."""
        import json

        quoted = json.dumps(key)
        numbered = enumerate(self.lines[start - 1 :], start)
        line = next((number for number, text in numbered if quoted in text), start) if key else start
        if isinstance(value, _Pairs):
            return _Node(line, "map", items=[(k, self._from_json(k, v, line)) for k, v in value])
        if isinstance(value, list):
            return _Node(line, "seq")
        if isinstance(value, bool):
            return _Node(line, "bool", str(value).lower())
        if isinstance(value, _Number):
            return _Node(line, "int" if value.lstrip("-").isdigit() else "float", str(value))
        return _Node(line, "null", "null") if value is None else _Node(line, "str", str(value))

    def _yaml(self) -> _Node | None:
        """Return what the text says; None after noting a problem."""
        import yaml  # 20 ms: only for this form

        def node(raw: yaml.Node) -> _Node:
            kind = raw.tag.rpartition(":")[2]
            line = raw.start_mark.line + 1
            if isinstance(raw, yaml.MappingNode):
                named = [(k.value if isinstance(k, yaml.ScalarNode) else "?", v) for k, v in raw.value]
                return _Node(line, kind, items=[(name, node(value)) for name, value in named])
            return _Node(line, kind, raw.value if isinstance(raw, yaml.ScalarNode) else "")

        try:
            composed = yaml.compose(self.text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            self._problem(
                "sysctl-syntax",
                "Not valid YAML or JSON",
                mark.line + 1 if mark else 1,
                error.problem or "the text cannot be read",
                "Correct the line below",
            )
            return None
        except yaml.YAMLError as error:
            self._problem("sysctl-syntax", "Not valid YAML or JSON", 1, str(error), "Correct the input")
            return None
        if composed is None:
            raise self._empty()
        return node(composed)

    def _read_entry(self, key: str, node: _Node) -> None:
        if node.kind != "map":
            value = self._scalar(key, node)
            if value is not None:
                self._add(node.line, key, value, None, False)
            return
        names = [name for name, _ in node.items]
        fields = dict(node.items)
        unknown = sorted(set(names) - _FIELDS)
        twice = next((name for name in names if names.count(name) > 1), None)
        if unknown or twice or "value" not in fields:
            what = f"'{twice}' is there twice" if twice else "'value' is missing"
            what = f"'{unknown[0]}' is not known" if unknown else what
            self._problem(
                "sysctl-bad-entry",
                "The entry cannot be read",
                node.line,
                what,
                "Use value, policy and optional, each once",
                key,
            )
            return
        policy: Policy | None = None
        if "policy" in fields:
            word = fields["policy"].text or fields["policy"].kind
            if word not in list(Policy):
                self._problem(
                    "sysctl-bad-policy",
                    "Unknown policy",
                    fields["policy"].line,
                    f"'{word}' is not a policy",
                    "Use 'set', or 'raise' for a limit that must never become lower",
                    key,
                )
                return
            policy = Policy(word)
        optional = False
        if "optional" in fields:
            if fields["optional"].kind != "bool":
                self._problem(
                    "sysctl-bad-entry",
                    "The entry cannot be read",
                    node.line,
                    "'optional' is true or false",
                    "Write 'optional: true'",
                    key,
                )
                return
            optional = fields["optional"].text.lower() in ("true", "yes", "on", "y")
        value = self._scalar(key, fields["value"])
        if value is not None:
            self._add(fields["value"].line, key, value, policy, optional)

    def _scalar(self, key: str, node: _Node) -> str | None:
        """Return a value as the text that the kernel gets, or None after noting the problem."""
        text = node.text
        if node.kind == "str" or (node.kind == "int" and re.fullmatch(r"-?(0|[1-9][0-9]*)", text)):
            return text
        wrong = {
            "bool": (f"'{text}' is a boolean", "Write 1 or 0"),
            "null": ("There is no value", "Write a value, or leave the line out"),
            "float": (f"'{text}' is not a whole number", "Write a whole number"),
            "int": (f"'{text}' is not a plain decimal number", "Write the number in decimal"),
            "map": ("The value is a mapping", "Write a number or a text in quotes"),
            "seq": ("The value is a list", "Write the fields in one text: '4096 87380 6291456'"),
        }
        what = f"'{text}' is of type {node.kind}" if text else f"It is of type {node.kind}"
        why, suggestion = wrong.get(node.kind, (what, "Write a number or a text in quotes"))
        self._problem("sysctl-bad-type", "The value has the wrong type", node.line, why, suggestion, key)
        return None


def dotted(key: str) -> str:
    """Return a key in the form with dots. As in sysctl, a key whose first separator is a slash is a path."""
    first = next((char for char in key if char in "./"), ".")
    return key if first == "." else key.translate(str.maketrans("./", "/."))


def relative_path(key: str) -> str:
    """Return the path of a dotted key below /proc/sys; a slash in a key stands for a dot in a file's name."""
    return key.translate(str.maketrans("./", "/."))
