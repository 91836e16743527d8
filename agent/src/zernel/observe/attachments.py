# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads a probe's BPF object and keeps it attached to the libraries that are in use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zernel.bpf import BpfObject, Link, object_path, uprobe_multi
from zernel.bpf.uprobe_multi import Place
from zernel.errors import ZernelError
from zernel.gpu import libraries
from zernel.gpu.functions import LIBCUDA, Exports, Library
from zernel.gpu.libraries import Copy, Inode, Target

log = logging.getLogger("zernel.observe")

# A library that no process maps any more is let go after this many rounds, so that the probe does not keep a
# removed container's file system in use. More than one: a process may be between two mappings of it.
_ROUNDS_WITHOUT_USE = 2


@dataclass(frozen=True, slots=True)
class Hook:
    """A BPF program and the functions that it runs in, each with its cookie; ``returning``: at their end."""

    program: str
    cookies: Mapping[str, int]
    returning: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """A probe's object in the kernel. ``one_link``: one link attaches to many functions (kernel 6.6)."""

    obj: BpfObject
    one_link: bool

    @classmethod
    def load(cls, name: str, programs: Sequence[str], prepare: Callable[[BpfObject], None]) -> Loaded:
        """Load object ``name``, after ``prepare`` had it.

        :param programs: those that are attached to functions.
        :raises ZernelError: when the kernel does not take it.
        """
        loaded = cls._load(name, programs, prepare, one_link=True)
        if uprobe_multi.supported(loaded.obj.program(programs[0]).fd):
            return loaded
        loaded.obj.close()
        return cls._load(name, programs, prepare, one_link=False)

    @classmethod
    def _load(
        cls, name: str, programs: Sequence[str], prepare: Callable[[BpfObject], None], *, one_link: bool
    ) -> Loaded:
        obj = BpfObject.open(object_path(name))
        try:
            prepare(obj)
            if one_link:
                for program in programs:
                    obj.program(program).set_attach_type(uprobe_multi.ATTACH_TYPE)
            obj.load()
        except BaseException:
            obj.close()
            raise
        return cls(obj, one_link)


@dataclass(slots=True)
class _Attached:
    library: Library
    name: str
    links: list[Link] = field(default_factory=list)
    unseen: int = 0


class Attachments:
    """The libraries that one probe is attached to. One thread follows; any may read the rest.

    They end with the probe's object; :meth:`close` then forgets them.
    """

    def __init__(self, probe: str, loaded: Loaded, hooks: Mapping[Exports, Sequence[Hook]]) -> None:
        """Take a loaded object, and what of it goes where; of one library, in this order."""
        self._probe = probe
        self._loaded = loaded
        self._hooks = hooks
        self._attached: dict[Inode, _Attached] = {}
        self._refused: dict[Inode, tuple[Library, str]] = {}

    def close(self) -> None:
        """Note that the probe is attached to nothing any more."""
        self._attached.clear()
        self._refused = {}

    @property
    def names(self) -> list[str]:
        """The libraries that are probed, as people call them."""
        return [attached.name for attached in tuple(self._attached.values())]

    @property
    def refused(self) -> int:
        """The number of libraries that cannot be probed."""
        return len(self._refused)

    def why_none(self, library: Library) -> str | None:
        """Return why no copy of a library is probed; None when one is."""
        if self.link(library) is not None:
            return None
        reasons = sorted(text for kind, text in self._refused.values() if kind is library)
        return "; ".join(reasons) or library.absent

    def link(self, library: Library) -> Link | None:
        """Return a link to a copy of a library, None when no copy is probed."""
        attached = (one.links[0] for one in tuple(self._attached.values()) if one.library is library)
        return next(attached, None)

    def follow(self, copies: Mapping[Inode, Copy], limit: int) -> None:
        """Attach to the new ones of these libraries, and let go of those that are gone.

        A library that cannot be probed is logged once, and tried again at the next call.

        :param limit: how many copies of each library are probed at most.
        """
        for inode, attached in list(self._attached.items()):
            attached.unseen = 0 if inode in copies else attached.unseen + 1
            if attached.unseen >= _ROUNDS_WITHOUT_USE:
                self._detach(inode)
        refused = {}
        for exports, hooks in self._hooks.items():
            for inode, copy in copies.items():
                if copy.library is not exports.library or inode in self._attached:
                    continue
                reason = self._attach(copy, exports, hooks, limit)
                # The process that showed it may have ended meanwhile, and nobody misses it.
                if reason is not None and copy.path.exists():
                    refused[inode] = copy.library, f"{copy.name}: {reason}"
        for inode, (_, text) in refused.items():
            if self._refused.get(inode, (None, None))[1] != text:
                log.warning("%s: not probed: %s", self._probe, text, extra={"ZERNEL_PROBE": self._probe})
        self._refused = refused

    def _attach(self, copy: Copy, exports: Exports, hooks: Sequence[Hook], limit: int) -> str | None:
        """Attach to one library; return None or the reason why not, and then nothing is attached."""
        if sum(one.library is copy.library for one in self._attached.values()) >= limit:
            return f"{limit} libraries are probed already"
        try:
            with libraries.opened(copy) as fd:
                targets = libraries.targets(fd, copy.name, exports)
                # The kernel, too, must take the file that was looked into, not what is at its path by now.
                return self._attach_at(Path(f"/proc/self/fd/{fd}"), copy, targets, hooks)
        except (ZernelError, OSError) as error:
            return libraries.reason(error)

    def _attach_at(
        self, path: Path, copy: Copy, targets: Sequence[Target], hooks: Sequence[Hook]
    ) -> str | None:
        """Attach to the library, which ``path`` opens; return as :meth:`_attach` does."""
        attached = _Attached(copy.library, copy.name)
        try:
            for hook in hooks:
                attached.links += self._attach_hook(hook, path, targets)
        except ZernelError as error:
            for link in attached.links:
                link.close()
            # Without the descriptor's number: a reason that stays the same is logged once.
            return libraries.reason(error).replace(str(path), copy.name)
        self._attached[copy.inode] = attached
        # Ordinary functions, as NCCL's are, begin with what needs no single step.
        slow = sum(not target.past_compare for target in targets) if copy.library is LIBCUDA else 0
        log.info(
            "%s: probing %s: %d functions%s",
            self._probe,
            copy.name,
            len(targets),
            f", {slow} of them at their first instruction (slower)" if slow else "",
            extra={"ZERNEL_PROBE": self._probe, "ZERNEL_LIBRARY": copy.name},
        )
        return None

    def _attach_hook(self, hook: Hook, path: Path, targets: Sequence[Target]) -> list[Link]:
        program = self._loaded.obj.program(hook.program)
        # By place: two names of one function are one place, where the program is to run once.
        cookies = {
            target.offset: hook.cookies[target.function]
            for target in targets
            if target.function in hook.cookies
        }
        places = [Place(offset, cookie) for offset, cookie in cookies.items()]
        if self._loaded.one_link:
            return [program.attach_uprobes(path, places, returning=hook.returning)]
        links: list[Link] = []
        try:
            for place in places:
                links.append(
                    program.attach_uprobe(path, place.offset, retprobe=hook.returning, cookie=place.cookie)
                )
        except ZernelError:
            for link in links:
                link.close()
            raise
        return links

    def _detach(self, inode: Inode) -> None:
        attached = self._attached.pop(inode)
        for link in attached.links:
            link.close()
        log.info("%s: no longer probing %s: nothing uses it", self._probe, attached.name)
