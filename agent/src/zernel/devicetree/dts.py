# SPDX-License-Identifier: GPL-3.0-or-later
"""Device tree source text to a `Tree`.

The grammar is that of dtc (Devicetree Specification 0.4, chapter 6) with two additions that the kerf document
needs: ``/multikernel-v1/;`` as a version mark, and numbers of up to 64 bits in one cell. Files are never
included: a tree that decides who owns which memory must stand in one place.

The parser keeps its own stack and bounds size and depth, so that no input can exhaust the interpreter's.
"""

from __future__ import annotations

import re
from bisect import bisect_right

from zernel.devicetree.tree import MAX_NUMBERS, Cells, Node, Property, Reference, Tree, Value
from zernel.errors import Location, ZernelError, fail

MAX_SOURCE_BYTES = 4 << 20
"""Four times what the kernel takes as a blob; 512 instances with 4,096 virtual functions need less than 1
MiB."""
MAX_DEPTH = 32

_VERSIONS = ("/dts-v1/", "/multikernel-v1/")
# Written so that a comment can end in one place only: what follows it must not make it grow.
_SPACE = r"\s*(?:(?://[^\n]*(?![^\n])|/\*[^*]*\*+(?:[^/*][^*]*\*+)*/)\s*)*"
_TOKEN = re.compile(
    _SPACE
    + r"""(?:(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<directive>/[A-Za-z][A-Za-z0-9-]*/)
    |(?P<label>[A-Za-z_][A-Za-z0-9_]*:)
    |(?P<ref>&(?:[A-Za-z_][A-Za-z0-9_]*|\{[^}\s]*\}))
    |(?P<word>[A-Za-z0-9._+*\#?@-][A-Za-z0-9,._+*\#?@-]*)
    |(?P<mark>[{}<>\[\];=,()]|/(?![*/])))""",
    re.VERBOSE | re.DOTALL,
)
# The rest of a property that is one list of plain numbers: CPU lists have thousands, and token by token they
# would take most of the time.
_PLAIN_PROPERTY = re.compile(
    r"\s*=\s*<\s*((?:(?:0x[0-9a-fA-F]{1,16}|[1-9][0-9]{0,18}|0)(?:\s+|(?=>)))*)>\s*;"
)
_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
# Rare in sources, and so left to re to compile when they are met: that takes longer than reading a baseline.
_NUMBER = r"(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)(?:[uU]?[lL]{0,2})"
_HEX = r"(?:[0-9a-fA-F]{2})+"
_ESCAPE = rb"(?s)\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)"


def parse(text: str, file: str) -> Tree:
    """Parse device tree source. ``file`` names it in errors; raises `ZernelError` at the first syntax
    error."""
    return _Parser(text, file).parse()


class _Parser:
    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self.lines = text.split("\n")
        self.at = 0
        # The token in hand: its kind, its text and where it starts.
        self.kind = ""
        self.token = ""
        self.start = 0
        self.labels: dict[str, Node] = {}
        # Where each property of each node stands: a list of a node's properties would make duplicates
        # quadratic.
        self.property_lines: dict[tuple[int, str], int] = {}

    # -- tokens ---------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Take the next token; its kind is "end" after the last one."""
        match = _TOKEN.match(self.text, self.at)
        if match is not None:
            self.at = match.end()
            self.kind = kind = match.lastgroup or ""
            self.token = match.group(kind)
            self.start = match.start(kind)
            return
        space = re.compile(_SPACE, re.DOTALL).match(self.text, self.at)
        self.at = self.start = space.end() if space else self.at
        if self.at < len(self.text):
            raise self.error(*self.describe_bad_character())
        self.kind, self.token = "end", "end of file"

    def describe_bad_character(self) -> tuple[str, str]:
        rest = self.text[self.at : self.at + 2]
        if rest == "/*":
            return "a comment is opened and never closed", "Close the comment with */"
        if rest[0] == '"':
            return "a string is opened and not closed on its line", 'Close the string with "'
        return f"unexpected character {rest[0]!r}", "Remove it, or check that the file is device tree source"

    def position(self) -> tuple[int, int]:
        """Return line and column of the token in hand, both counted from 1."""
        line = bisect_right(self.starts, self.start)
        return line, self.start - self.starts[line - 1] + 1

    @property
    def line(self) -> int:
        return bisect_right(self.starts, self.start)

    def error(self, what: str, suggestion: str | None = None, line: int | None = None) -> ZernelError:
        here, column = self.position()
        where = f"Line {here}, column {column}: {what}" if line is None else f"Line {line}: {what}"
        number = line or here
        source = self.lines[number - 1].strip()[:200] if number <= len(self.lines) else None
        return fail(
            "dts-syntax",
            "Syntax error in device tree source",
            subject=self.file,
            explanation=where,
            suggestion=suggestion or "Correct the source at this place",
            location=Location(self.file, number, source),
        )

    def expect(self, mark: str, after: str) -> None:
        """Take the punctuation ``mark`` or fail, saying what it was needed ``after``."""
        if self.kind != "mark" or self.token != mark:
            raise self.error(
                f"expected '{mark}' after {after}, found {self.found()}", f"Add the missing '{mark}'"
            )
        self.advance()

    def found(self) -> str:
        return self.token if self.kind == "end" else f"'{self.token[:40]}'"

    def is_mark(self, mark: str) -> bool:
        return self.kind == "mark" and self.token == mark

    # -- grammar --------------------------------------------------------------------------------------------

    def parse(self) -> Tree:
        self.advance()
        self.parse_header()
        labels = self.take_labels()
        if not self.is_mark("/"):
            self.refuse_directive()
            raise self.error(f"expected '/ {{' to open the tree, found {self.found()}")
        root = Node("/", line=self.line)
        self.name_labels(labels, root)
        self.advance()
        self.expect("{", "'/'")
        self.parse_body(root)
        if self.kind != "end":
            # dtc would merge further blocks into the tree. Whoever reads a baseline must not have to.
            raise self.error(
                f"the tree ended above, found {self.found()}", "Write the whole tree in one '/ { ... };'"
            )
        return Tree(root, self.labels, self.file, self.lines)

    def parse_header(self) -> None:
        seen = False
        while self.kind == "directive" and self.token in (*_VERSIONS, "/plugin/"):
            seen = seen or self.token in _VERSIONS
            name = self.token
            self.advance()
            self.expect(";", name)
        self.refuse_directive()
        if not seen:
            raise self.error(
                f"the file must begin with a version mark, found {self.found()}",
                "Begin the file with '/multikernel-v1/;' or '/dts-v1/;'",
            )

    def refuse_directive(self) -> None:
        """Refuse what this parser leaves out on purpose, by name."""
        if self.token in ("/include/", "#include") or (
            self.kind == "word" and self.token.startswith("#include")
        ):
            raise self.error("includes are not supported", "Paste the included text into this file")
        if self.kind == "word" and self.token in ("#define", "#if", "#ifdef", "#ifndef", "#undef", "#pragma"):
            raise self.error("the C preprocessor is not supported", "Write the values out")
        if self.kind == "directive" and self.token not in _VERSIONS:
            raise self.error(f"'{self.token}' is not supported in multikernel device trees", "Remove it")

    def take_labels(self) -> list[str]:
        labels = []
        while self.kind == "label":
            label = self.token[:-1]
            if label in self.labels or label in labels:
                raise self.error(f"label '{label}' is used twice", "Give each node a label of its own")
            labels.append(label)
            self.advance()
        return labels

    def name_labels(self, labels: list[str], node: Node) -> None:
        self.labels.update(dict.fromkeys(labels, node))
        node.labels = tuple(labels)

    def parse_body(self, node: Node) -> None:
        """Parse properties and nodes up to the brace that closes ``node``, without recursion."""
        stack = [node]
        opened = [node.line]
        while stack:
            if self.is_mark("}"):
                self.advance()
                self.expect(";", "'}'")
                stack.pop()
                opened.pop()
                continue
            if self.kind == "end":
                raise self.error(
                    f"the brace opened on line {opened[-1]} is never closed", "Add the missing '};'"
                )
            labels = self.take_labels()
            self.refuse_directive()
            if self.kind != "word":
                raise self.error(f"expected a property or a node, found {self.found()}")
            name, line = self.token, self.line
            plain = _PLAIN_PROPERTY.match(self.text, self.at)
            if plain is not None:
                self.at = plain.end()
                self.check_property(stack[-1], name, line)
                numbers = tuple([int(number, 0) for number in plain.group(1).split()])
                stack[-1].properties.append(Property(name, (Cells(numbers),), line))
                self.advance()
                continue
            self.advance()
            if self.is_mark("{"):
                stack.append(self.open_node(stack, name, labels, line))
                opened.append(line)
            else:
                self.parse_property(stack[-1], name, line)

    def open_node(self, stack: list[Node], name: str, labels: list[str], line: int) -> Node:
        if not _is_node_name(name):
            raise self.error(
                f"'{name}' is no node name", "Use letters, digits and , . _ + - with one optional @"
            )
        if len(stack) >= MAX_DEPTH:
            raise self.error(f"nodes are nested deeper than {MAX_DEPTH} levels", "Flatten the tree")
        node = Node(name, line=line)
        stack[-1].children.append(node)
        self.name_labels(labels, node)
        self.advance()
        return node

    def check_property(self, node: Node, name: str, line: int) -> None:
        if "@" in name:  # all else that a word may hold may stand in a name
            raise self.error(f"'{name}' is no property name")
        first = self.property_lines.get((id(node), name))
        if first is not None:
            raise self.error(
                f"property '{name}' is given twice, first on line {first}", "Keep one of the two", line
            )
        self.property_lines[id(node), name] = line

    def parse_property(self, node: Node, name: str, line: int) -> None:
        self.check_property(node, name, line)
        values: list[Value] = []
        while self.is_mark("," if values else "="):
            self.advance()
            values.append(self.parse_value(name))
            self.take_labels()
        self.expect(";", f"property '{name}'")
        node.properties.append(Property(name, tuple(values), line))

    def parse_value(self, name: str) -> Value:
        self.take_labels()
        bits = 32
        if self.kind == "directive" and self.token == "/bits/":
            self.advance()
            if self.token not in ("8", "16", "32", "64"):
                raise self.error(f"/bits/ takes 8, 16, 32 or 64, found {self.found()}")
            bits = int(self.token)
            self.advance()
            if not self.is_mark("<"):
                raise self.error(f"expected '<' after /bits/, found {self.found()}")
        if self.is_mark("<"):
            return self.parse_cells(bits)
        if self.is_mark("["):
            return self.parse_bytes()
        if self.kind == "string":
            value: Value = self.unescaped()
        elif self.kind == "ref":
            value = Reference(self.token[1:], self.line)
        else:
            self.refuse_directive()
            raise self.error(
                f"expected a value for '{name}', found {self.found()}",
                "Write numbers in angle brackets and text in double quotes",
            )
        self.advance()
        return value

    def unescaped(self) -> str:
        try:
            return _unescape(self.token[1:-1])
        except UnicodeDecodeError:
            raise self.error("the string's escapes are not UTF-8", "Write the text without escapes") from None

    def parse_cells(self, bits: int) -> Cells:
        self.advance()
        items: list[int | Reference] = []
        while not self.is_mark(">"):
            if len(items) > MAX_NUMBERS:
                raise self.error(f"the list holds more than {MAX_NUMBERS} numbers", "Check that it is closed")
            if self.kind == "ref" and bits == 32:
                items.append(Reference(self.token[1:], self.line))
            elif self.kind == "word":
                items.append(self.parse_number(bits))
            elif self.is_mark("("):
                raise self.error(
                    "expressions are not supported", "Write the number that the expression gives"
                )
            elif self.kind != "label":
                raise self.error(f"expected a number or '>', found {self.found()}")
            self.advance()
        self.advance()
        return Cells(tuple(items), bits)

    def parse_number(self, bits: int) -> int:
        match = re.fullmatch(_NUMBER, self.token)
        if match is None:
            hint = "Numbers are decimal, or hexadecimal with 0x; they cannot be negative"
            raise self.error(f"'{self.token[:40]}' is no number", hint)
        digits = match.group(1)
        # Python refuses to convert very long decimal strings; nothing beyond 64 bits is of use anyway.
        value = (
            1 << 64 if len(digits) > 30 else int(digits, 8 if digits[0] == "0" and digits.isdigit() else 0)
        )
        # A 32-bit cell may hold 64 bits here, as the kerf document writes it; /bits/ means what it says.
        if value >= 1 << (64 if bits == 32 else bits):
            raise self.error(f"{digits[:40]} does not fit in {64 if bits == 32 else bits} bits")
        return value

    def parse_bytes(self) -> bytes:
        self.advance()
        found = bytearray()
        while not self.is_mark("]"):
            if self.kind != "word" or not re.fullmatch(_HEX, self.token):
                raise self.error(f"expected pairs of hexadecimal digits or ']', found {self.found()}")
            found += bytes.fromhex(self.token)
            self.advance()
        self.advance()
        return bytes(found)


def _is_node_name(word: str) -> bool:
    """Say whether a word is a node's name: an address may stand behind one @, and not all characters may be
    used."""
    name, at, address = word.partition("@")
    return bool(name) and bool(address) == bool(at) and not any(c in "*#?@" for c in name + address)


def _unescape(body: str) -> str:
    """Return the text of a string. An escape stands for one byte, so that two of them may be one character.

    Raises UnicodeDecodeError when the bytes are not UTF-8.
    """
    if "\\" not in body:
        return body

    def replace(match: re.Match[bytes]) -> bytes:
        code = match.group(1)
        if code[:1] == b"x" and len(code) > 1:
            return bytes([int(code[1:], 16)])
        if code[:1] in b"01234567":
            return bytes([int(code, 8) & 0xFF])
        return _ESCAPES.get(code, code)

    return re.sub(_ESCAPE, replace, body.encode()).decode()
