# SPDX-License-Identifier: GPL-3.0-or-later
"""Values that cannot change, for the modules that a cold ``zernel`` command imports.

A `Record` is what a frozen dataclass is, without the time that dataclasses take: their import needs
``inspect``, and each class compiles its methods from source. That was half of ``zernel init --report``.
Modules that only daemons and slower commands import use dataclasses.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, whose import would cost every command 3 ms
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_):
        """Stand in for typing's, which says something to type checkers only."""
        return lambda made: made


@dataclass_transform(frozen_default=True)
class Record:
    """A value with named fields: its class lists them as annotations, those with a default behind the others.

    Records of one class that hold the same are equal. A class of records has no subclasses.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        if cls.__bases__ != (Record,):
            raise TypeError(f"{cls.__name__}: a class of records has no subclasses")
        cls._fields = tuple(cls.__annotations__)
        cls._defaults = {name: cls.__dict__[name] for name in cls._fields if name in cls.__dict__}

    def __init__(self, *values: Any, **named: Any) -> None:
        if not named and len(values) == len(self._fields):  # the usual way, in a third of the time
            self.__dict__.update(zip(self._fields, values, strict=True))
            return
        given = dict(zip(self._fields, values, strict=False)) | named
        held = self._defaults | given
        # More values than fields, or one given twice; a name that is no field, or a field that is missing.
        if len(given) != len(values) + len(named) or held.keys() != set(self._fields):
            raise TypeError(f"{type(self).__name__} takes {', '.join(self._fields)}")
        self.__dict__.update(held)

    def but(self, **changes: Any) -> Self:
        """Return a copy with other values in the fields named."""
        return type(self)(**self.__dict__ | changes)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot change")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot go")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__[name] for name in self._fields))

    def __repr__(self) -> str:
        held = ", ".join(f"{name}={self.__dict__[name]!r}" for name in self._fields)
        return f"{type(self).__name__}({held})"
