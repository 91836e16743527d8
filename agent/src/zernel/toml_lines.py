# SPDX-License-Identifier: GPL-3.0-or-later
"""Where each key of a TOML text is written: tomllib tells values only, and an error should name the line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

Keys = tuple[str, ...]

_TOKEN = re.compile(
    r"""
      (?P<blank>[ \t]+|\#[^\n]*)
    | (?P<newline>\r?\n)
    | (?P<text>\"{3}(?:\\.|[^\\])*?\"{3,5}|'{3}.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*')
    | (?P<mark>[][{}=,])
    | (?P<bare>[^ \t\r\n#"'\][{}=,]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_OPENING, _CLOSING = "[{", "]}"

MAX_DEPTH = 8
"""Levels that are told apart: far more than any file of ours has, and a bound on what a hostile one costs."""


def key_lines(text: str) -> dict[Keys, int]:
    """Return path of a table or key → the line, from 1, where it is first written.

    ``text`` must be valid TOML. Tables within arrays are left out: they share one path.
    """
    lines: dict[Keys, int] = {}
    for path, line in _Scanner(text).statements():
        for end in range(1, len(path) + 1):
            lines.setdefault(path[:end], line)
    return lines


class _Scanner:
    """Reads a valid TOML text token by token, and tells the keys apart from the values."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = next(self._tokens, None)

    def statements(self) -> Iterator[tuple[Keys, int]]:
        """Yield the full path and the line of each header and each key."""
        table: Keys = ()
        while self._next is not None:
            kind, word, line = self._next
            if kind == "newline":
                self._advance()
            elif word == "[":
                while self._word() == "[":
                    self._advance()
                table = self._key("]")[:MAX_DEPTH]
                while self._word() == "]":
                    self._advance()
                yield table, line
            else:
                yield from self._pair(table, line)

    def _pair(self, table: Keys, line: int) -> Iterator[tuple[Keys, int]]:
        path = (table + self._key("="))[:MAX_DEPTH]
        yield path, line
        self._advance()
        if self._word() != "{":
            self._value()
            return
        self._advance()
        while self._next is not None and self._word() != "}":
            if self._word() == "," or self._next[0] == "newline":
                self._advance()
            else:
                yield from self._pair(path, self._next[2])
        self._advance()

    def _key(self, end: str) -> Keys:
        """Return the key before the mark ``end``, read by tomllib itself: it may be dotted and quoted."""
        words = []
        while self._next is not None and self._word() != end:
            words.append(self._word())
            self._advance()
        path: list[str] = []
        found = tomllib.loads(f"{' '.join(words)} = 0")
        while isinstance(found, dict) and len(path) < MAX_DEPTH:
            ((name, found),) = found.items()
            path.append(name)
        return tuple(path)

    def _value(self) -> None:
        """Pass by a value; what stands within arrays is of no interest."""
        depth = 0
        while self._next is not None:
            word, mark = self._word(), self._next[0] == "mark"
            if depth == 0 and (self._next[0] == "newline" or (mark and word in ",}")):
                return
            if mark:
                depth += (word in _OPENING) - (word in _CLOSING)
            self._advance()

    def _word(self) -> str:
        return self._next[1] if self._next is not None else ""

    def _advance(self) -> None:
        self._next = next(self._tokens, None)


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield kind, text and line of each token but blanks and comments."""
    line = 1
    for found in _TOKEN.finditer(text):
        kind, word = found.lastgroup or "", found.group()
        if kind != "blank":
            yield kind, word, line
        line += word.count("\n")
