# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading values out of a tree: typed, with every problem collected, and where each value stood."""

from __future__ import annotations

from zernel.devicetree.model import DeviceUse, System
from zernel.devicetree.tree import Cells, Node, Property, Reference, Tree, WrongType
from zernel.errors import Location, Problem
from zernel.record import Record

TYPE_CHECKING = False  # as typing's, whose import would cost a tenth of the whole command
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

MAX_PROBLEMS = 1000
"""After so many the search ends: a file of 4 MiB could give a million, each with a computed suggestion."""


class TooManyProblems(Exception):
    """Raised by `Findings` when it is full; ``problems`` is what was found, with a last one that says so."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__()
        self.problems = [
            *problems,
            Problem(
                "too-many-problems",
                f"More than {MAX_PROBLEMS} problems were found; the rest is not shown",
                suggestion="Correct the first ones, then validate again",
            ),
        ]


def bounded(problems: list[Problem]) -> list[Problem]:
    """Return the problems, `MAX_PROBLEMS` at most and then one that says so."""
    return problems if len(problems) <= MAX_PROBLEMS else TooManyProblems(problems[:MAX_PROBLEMS]).problems


class Findings(list[Problem]):
    """Problems in the order in which they were found, `MAX_PROBLEMS` at most."""

    def append(self, problem: Problem) -> None:
        """Add a problem; raises `TooManyProblems` when there is no room."""
        if len(self) >= MAX_PROBLEMS:
            raise TooManyProblems(list(self))
        super().append(problem)


class Origins:
    """Where values stood: ("cpus", "available"), ("devices", 0, "pci-id"), ("instances", 2, "cpus") to a
    line of the tree.

    A key without the property's name is the node's place. Numbers count items in the model's order.
    ``places`` is for values that no tree has: those of declared instances stand in files of their own.
    """

    def __init__(self, tree: Tree | None = None) -> None:
        self.tree = tree
        self.lines: dict[tuple[str | int, ...], int] = {}
        self.places: dict[tuple[str | int, ...], tuple[Location, ...]] = {}

    def at(self, *key: str | int) -> tuple[Location, ...]:
        """Return the place of ``key``, or of the node around it, or nothing."""
        place = self.places.get(key) or self.places.get(key[:-1])
        if place:
            return place
        line = self.lines.get(key) or self.lines.get(key[:-1])
        return self.tree.location(line) if self.tree is not None and line is not None else ()


class Interpretation(Record):
    """What a tree says. ``system`` is None when the inventory cannot be read at all.

    ``dialect`` is the form it was written in: ``kerf`` (the document's), ``v1`` or ``v2`` (the kernels').
    """

    system: System | None
    origins: Origins
    problems: list[Problem]
    has_instances: bool = False
    instances_at: tuple[Location, ...] = ()
    dialect: str = "kerf"


_number, _numbers, _text, _texts = Property.number, Property.numbers, Property.text, Property.texts


class Reader:
    """Reads one tree. What is wrong goes to ``problems``, where values stood to ``origins``."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.origins = Origins(tree)
        self.problems: list[Problem] = Findings()
        self.phandles: dict[int, Node] | None = None

    # -- values ---------------------------------------------------------------------------------------------

    def targets(self, node: Node, name: str, subject: str | None = None) -> list[tuple[str, Node | None]]:
        """Return what a property refers to: a word for each target, and its node where there is one.

        Source has labels and paths; a blob, and source that was made from one, has phandles and the text of
        paths.
        """
        found = node.get(name)
        if found is None:
            return []
        targets: list[tuple[str, Node | None]] = []
        for value in found.values:
            single = Property(name, (value,), found.line)
            if isinstance(value, str) or (isinstance(value, bytes) and value.startswith(b"/")):
                targets += [
                    (path, self.tree.find(path)) for path in self.value(single, _texts, subject) or ()
                ]
                continue
            if isinstance(value, bytes):
                items: tuple[int | Reference, ...] = self.value(single, _numbers, subject) or ()
            else:
                items = value.items if isinstance(value, Cells) else (value,)
            for item in items:
                if isinstance(item, Reference):
                    targets.append((item.label, self.tree.resolve(item)))
                else:
                    target = self.by_phandle(item)
                    labels = target.labels if target else ()
                    targets.append((labels[0] if labels else f"phandle {item:#x}", target))
        return targets

    def by_phandle(self, number: int) -> Node | None:
        """Return the node whose ``phandle`` is ``number``, or None."""
        if self.phandles is None:
            self.phandles = {}
            stack = [self.tree.root]
            while stack:
                node = stack.pop()
                stack += node.children
                handle = node.get("phandle")
                numbers = self.value(handle, _numbers, None) if handle else None
                if numbers:
                    self.phandles.setdefault(numbers[0], node)
        return self.phandles.get(number)

    def value(self, found: Property, read: Callable[[Property], T], subject: str | None) -> T | None:
        try:
            return read(found)
        except WrongType as error:
            self.problem(
                "wrong-type",
                f"Property '{found.name}' {error}",
                subject=subject,
                at=found.line,
                suggestion="See docs/examples/baseline.dts for the form of every property",
            )
            return None

    def note(self, node: Node, name: str, key: tuple[str | int, ...]) -> Property | None:
        """Return the property, and remember where it stands."""
        found = node.get(name)
        if found is not None:
            self.origins.lines[(*key, name)] = found.line
        return found

    def read(
        self,
        form: Callable[[Property], T],
        node: Node,
        name: str,
        key: tuple[str | int, ...],
        required: bool,
        subject: str | None,
    ) -> T | None:
        found = self.note(node, name, key)
        if found is not None:
            return self.value(found, form, subject or node.name)
        if required:
            self.missing(node, name, subject)
        return None

    def number(
        self,
        node: Node,
        name: str,
        key: tuple[str | int, ...],
        *,
        required: bool = False,
        subject: str | None = None,
    ) -> int | None:
        return self.read(_number, node, name, key, required, subject)

    def numbers(
        self,
        node: Node,
        name: str,
        key: tuple[str | int, ...],
        *,
        required: bool = False,
        subject: str | None = None,
    ) -> tuple[int, ...] | None:
        return self.read(_numbers, node, name, key, required, subject)

    def text(
        self, node: Node, name: str, key: tuple[str | int, ...], subject: str | None = None
    ) -> str | None:
        return self.read(_text, node, name, key, False, subject)

    # -- problems -------------------------------------------------------------------------------------------

    def line_of(self, node: Node, name: str) -> int:
        found = node.get(name)
        return found.line if found else node.line

    def problem(
        self,
        code: str,
        category: str,
        *,
        subject: str | None = None,
        at: int | None = None,
        explanation: str | None = None,
        suggestion: str | None = None,
        severity: str = "ERROR",
    ) -> None:
        self.problems.append(
            Problem(
                code,
                category,
                subject=subject,
                explanation=(explanation,) if explanation else (),
                suggestion=suggestion,
                locations=self.tree.location(at or 0),
                severity=severity,
            )
        )

    def missing(self, node: Node, name: str, subject: str | None) -> None:
        self.problem(
            "missing-property",
            f"Property '{name}' is missing",
            subject=subject or node.name,
            at=node.line,
            suggestion=f"Add '{name} = <...>;' to the node '{node.name}'",
        )

    def dangling(
        self, subject: str, label: str, line: int, use: DeviceUse | None = None, *, known: bool = False
    ) -> None:
        """Report a reference to nothing, or where its target is ``known``, to something that is no device."""
        if known:
            self.problem(
                "not-a-device",
                f"Reference to '{label}', which is no device",
                subject=subject,
                at=line,
                suggestion="Refer to a device of /resources/devices, or to one of its VFs or namespaces",
            )
            return
        suggestion = "Define the label, or correct the reference"
        if use is not None and use.vf is not None:
            definition = f"ethernet-vf@{use.vf} {{ parent = <&{use.device}>; vf-id = <{use.vf}>; }};"
            suggestion = f"Define it: {label}: {definition}"
        elif use is not None and use.namespace is not None:
            number = use.namespace
            definition = f"nvme-ns@{number} {{ parent = <&{use.device}>; namespace-id = <{number}>; }};"
            suggestion = f"Define it: {label}: {definition}"
        self.problem(
            "dangling-reference",
            f"Dangling phandle reference: {label} not defined",
            subject=subject,
            at=line,
            suggestion=suggestion,
        )

    def once(self, node: Node, name: str) -> None:
        """Report a section that is written twice; the first one is read."""
        for again in [child for child in node.children if child.name == name][1:]:
            self.problem(
                "duplicate-node",
                f"Node '{name}' appears twice",
                at=again.line,
                suggestion="Merge the two nodes into one",
            )

    def known(
        self, node: Node, names: Iterable[str], subject: str | None = None, nodes: tuple[str, ...] = ()
    ) -> None:
        """Warn about properties and nodes that nothing reads: most are misspelled."""
        allowed = (*names, "phandle", "linux,phandle")
        for found in node.properties:
            if found.name not in allowed:
                self.unknown("Property", found.name, found.line, allowed, subject or node.name)
        for child in node.children:
            if child.name not in nodes:
                self.unknown("Node", child.name, child.line, nodes, subject or node.name)

    def unknown(
        self, what: str, name: str, line: int, allowed: tuple[str, ...], subject: str | None = None
    ) -> None:
        from difflib import get_close_matches  # 3 ms: only where there is something to say

        close = get_close_matches(name, allowed, 1)
        self.problem(
            f"unknown-{what.lower()}",
            f"{what} '{name}' is unknown and has no effect",
            subject=subject,
            at=line,
            suggestion=f"Did you mean '{close[0]}'?" if close else "Remove it",
            severity="WARNING",
        )
