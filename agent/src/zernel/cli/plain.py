# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines that need no argparse, whose import and set-up take as long as validating a baseline.

`PlainParser` understands what is written without any doubt: long options, spelled out, with values that do
not begin with a dash, for verbs that have nothing else. All other command lines, and every mistake, are
argparse's.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, whose import would cost every command 3 ms
if TYPE_CHECKING:
    from typing import Any


class NotPlain(Exception):
    """Argparse is needed."""


class Options:
    """The values of the options, as attributes: what argparse calls a namespace."""


class PlainParser:
    """Takes the declarations of a verb as argparse does; raises `NotPlain` for what it does not know."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.flags: set[str] = set()
        self.choices: dict[str, tuple[str, ...] | None] = {}
        self.required: set[str] = set()

    def add_argument(self, name: str, *others: str, **how: Any) -> None:
        """Declare an option that stores its value or, with ``action="store_true"``, that it is there."""
        known = {"action", "choices", "default", "help", "metavar", "required"}
        flag = how.get("action") == "store_true"
        if others or not name.startswith("--") or how.keys() - known or ("action" in how and not flag):
            raise NotPlain
        key = name[2:].replace("-", "_")
        self.values[key] = how.get("default", False if flag else None)
        if flag:
            self.flags.add(key)
        else:
            self.choices[key] = how.get("choices")
        if how.get("required"):
            self.required.add(key)

    def __getattr__(self, name: str) -> Any:
        raise NotPlain

    def parse(self, words: list[str]) -> Options:
        """Return the options in ``words``; raises `NotPlain` for all that is not perfectly plain."""
        found: dict[str, Any] = {}
        rest = iter(words)
        for word in rest:
            name, equals, value = word.partition("=")
            key = name[2:].replace("-", "_")
            if not name.startswith("--") or "_" in name:
                raise NotPlain
            if key in self.flags and not equals:
                found[key] = True
                continue
            if not equals:
                value = next(rest, "-")
                if value.startswith("-"):
                    raise NotPlain
            if key not in self.choices or value not in (self.choices[key] or (value,)):
                raise NotPlain
            found[key] = value
        if self.required - found.keys():
            raise NotPlain
        options = Options()
        options.__dict__.update(self.values | found)
        return options
