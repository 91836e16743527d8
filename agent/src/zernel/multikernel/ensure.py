# SPDX-License-Identifier: GPL-3.0-or-later
"""One instance brought to a wanted state, resources and kernel alike: what ``zernel ensure`` does.

The whole way is judged first, from the state that is there, so that a dry run and the real run give one
verdict, and what is refused has changed nothing. Then each step is what the command of its name does, with
that command's own lock, journal and verdict. A step that fails leaves those before it done, and says so: the
next run goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from zernel.devicetree.allocations import check_name
from zernel.devicetree.model import DeviceUse, Instance
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import boot_files, lifecycle, operations, planning, state
from zernel.multikernel.boot_files import BootFiles
from zernel.multikernel.changes import Operation
from zernel.multikernel.changes import operations as operations_of
from zernel.multikernel.fs import ACTIVE, LOADED, READY, MultikernelFs, Transaction, has_kernel
from zernel.multikernel.settling import Settled
from zernel.multikernel.transactions import change, labelling
from zernel.multikernel.wire import Wire
from zernel.record import Record

STATES = ("present", "absent", "loaded", "started", "stopped")


class Resources(Record):
    """What an instance shall have, as in `planning.Request`; None: as it is, or for a new one, any."""

    cpus: tuple[int, ...] | None = None
    cpu_count: int | None = None
    memory_bytes: int | None = None
    memory_base: int | None = None
    devices: tuple[DeviceUse, ...] | None = None
    id: int | None = None
    numa_nodes: tuple[int, ...] | None = None
    cpu_affinity: str | None = None
    memory_policy: str | None = None

    @property
    def given(self) -> dict[str, object]:
        """What was asked for, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Wish(Record):
    """An instance and the state that it shall have, one of `STATES`.

    ``kernel``, ``initrd`` and ``cmdline`` are used when a kernel has to be loaded. ``force`` lets a kernel be
    stopped without asking it, and an instance be deleted that has one.
    """

    name: str
    state: str
    resources: Resources = Resources()
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    force: bool = False


class Ensured(Record):
    """What was done, or would be: the instance and its status before and after (None: not there).

    ``steps`` are the commands that lead there; ``operations`` is what an update among them asks of the
    kernel, or it has ``replaced`` the instance by a new one. ``placed`` is as in `operations.Outcome`.
    ``files`` are what is loaded.
    """

    before: Instance | None
    after: Instance | None
    status_before: str | None
    status_after: str | None
    steps: tuple[str, ...] = ()
    operations: tuple[Operation, ...] = ()
    replaced: bool = False
    placed: bool = True
    transactions: tuple[Transaction, ...] = ()
    files: BootFiles | None = None
    warnings: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.steps)


@contextmanager
def ensured(fs: MultikernelFs, wish: Wish, *, dry_run: bool, root: Path = Path("/")) -> Iterator[Ensured]:
    """Bring an instance to the wanted state; its boot files are open as long as the context lasts.

    ``root`` is where sys/ is, which tells of the host's cores. Raises `ZernelError`: with everything that
    speaks against it, and then nothing was changed; or with what a step met, and which were done before it.
    """
    with ExitStack() as stack:
        deletes = wish.name if wish.state == "absent" else None
        with change(fs, dry_run, deletes=deletes) as (wire, _, settled):
            planned = _Plan(settled.fs, wire, wish, settled, root, stack).run()
        if not dry_run:
            with labelling(fs):
                planned = _carried_out(fs, wish, planned, root)
        yield planned


class _Plan:
    """Judges the way from what is there to what is wanted."""

    def __init__(
        self, fs: MultikernelFs, wire: Wire, wish: Wish, settled: Settled, root: Path, stack: ExitStack
    ) -> None:
        self.fs, self.wire, self.wish, self.settled = fs, wire, wish, settled
        self.root, self.stack = root, stack
        self.problems: list[Problem] = []

    def run(self) -> Ensured:
        name = self.wish.name
        if problems := check_name(name):
            raise ZernelError(*problems)
        before = state.load_one(self.fs, self.wire, name) if name in self.fs.instance_names() else None
        status = self.fs.status(name) if before else None
        if before is None and self.wish.state == "absent":
            # Settling may have deleted it just now.
            before = next((one for one in self.settled.removed if one.name == name), None)
        here = Ensured(before, before, status, status, notes=self.settled.notes)
        found = self.absent(here) if self.wish.state == "absent" else self.kernel(self.owned(here))
        if self.problems:
            raise ZernelError(*self.problems)
        return found

    def absent(self, here: Ensured) -> Ensured:
        if here.before is None:
            return here
        gone = here.but(after=None, status_after=None, steps=("delete",))
        status = here.status_before
        if status in (None, READY):
            return gone
        if self.wish.force:
            return gone.but(steps=(*(("kill",) if status != LOADED else ()), "unload", "delete"))
        if has_kernel(status):
            forced = "To stop its kernel and delete it all the same: --force"
            self.problems.append(planning.busy(self.wish.name, str(status)).but(alternative=forced))
        return gone

    def owned(self, here: Ensured) -> Ensured:
        """Return the state once the instance owns what it shall."""
        try:
            if here.before is None:
                request = _request(self.fs, self.wish)
                outcome = operations.create(self.fs, request, dry_run=True, ensure=False, root=self.root)
                return _changed(here.but(status_after=READY, steps=("create",)), outcome)
            if not self.wish.resources.given:
                return here
            outcome = operations.update(self.fs, _update(self.wish), dry_run=True, root=self.root)
        except ZernelError as error:
            self.problems += error.problems
            return here
        if not outcome.changed:
            return here
        return _changed(here.but(steps=("update",)), outcome)

    def kernel(self, owned: Ensured) -> Ensured:
        """Return the state once its kernel is loaded, runs or does not."""
        status, wish = owned.status_after, self.wish
        verbs: tuple[str, ...] = ()
        if wish.state == "stopped" and status not in (READY, LOADED):
            verbs = ("kill",)
        elif wish.state == "loaded" and not has_kernel(status):
            verbs = ("load",)
        elif wish.state == "started" and status != ACTIVE:
            verbs = ("exec",) if status == LOADED else ("load", "exec")
        if owned.after is None:  # it cannot be created; what is to be loaded is judged all the same
            if wish.state in ("loaded", "started"):
                self.files()
            return owned
        files: BootFiles | tuple[Problem, ...] = ()
        if "load" in verbs:
            files = self.files()
        if verbs:
            found = lifecycle.Result(
                wish.name,
                owned.after.id or 0,
                owned.after if owned.after.cpus else None,
                str(status),
                "",
                True,
            )
            self.problems += lifecycle.check(
                verbs[0], found, files if isinstance(files, BootFiles) else (), force=wish.force
            )
        if wish.kernel is not None and wish.state in ("loaded", "started") and "load" not in verbs:
            said = f"{wish.name} has a kernel already, and nothing tells which: {wish.kernel} was not loaded"
            owned = owned.but(notes=(*owned.notes, said))
        after = {"load": LOADED, "exec": ACTIVE, "kill": LOADED}
        return owned.but(
            status_after=after[verbs[-1]] if verbs else status,
            steps=(*owned.steps, *verbs),
            files=files if isinstance(files, BootFiles) else None,
        )

    def files(self) -> BootFiles | tuple[Problem, ...]:
        """Open what is to be loaded, and note what is wrong with it."""
        wish = self.wish
        if wish.kernel is None:
            found: BootFiles | tuple[Problem, ...] = fail(
                "kernel-not-given",
                "No kernel is loaded, and none is given",
                subject=wish.name,
                suggestion="Give one: --kernel=FILE",
            ).problems
        else:
            found = self.stack.enter_context(boot_files.opened(wish.kernel, wish.initrd, wish.cmdline))
        if isinstance(found, tuple):
            self.problems += found
        return found


def _request(fs: MultikernelFs, wish: Wish) -> planning.Request:
    """Return what a new instance is made of; raises `ZernelError` where too little is given for one."""
    given = wish.resources.given
    if "memory_bytes" not in given or not given.keys() & {"cpus", "cpu_count"}:
        unknown = planning.not_there(wish.name, fs.instance_names()).problems[0]
        raise ZernelError(
            unknown.but(suggestion="To create it, give its CPUs and memory: --cpu-count=4 --memory=2GB")
        )
    return planning.Request(name=wish.name, **given)  # type: ignore[arg-type]


def _update(wish: Wish) -> planning.Update:
    return planning.Update(name=wish.name, **wish.resources.given)  # type: ignore[arg-type]


def _changed(found: Ensured, outcome: operations.Outcome) -> Ensured:
    """Return ``found`` with what came, or would come, of a creation or an update."""
    before, after = outcome.before, outcome.after
    moved: list[Operation] = []
    if before is not None and after is not None and not outcome.replaced:
        moved = operations_of(before, after)
    return found.but(
        after=after,
        replaced=outcome.replaced,
        placed=outcome.placed,
        operations=tuple(moved),
        warnings=outcome.warnings,
    )


def _carried_out(fs: MultikernelFs, wish: Wish, planned: Ensured, root: Path) -> Ensured:
    """Take the steps, and return what came of them."""
    found = planned
    for index, verb in enumerate(planned.steps):
        try:
            found = _step(fs, wish, verb, found, root)
        except ZernelError as error:
            done = planned.steps[:index]
            if not done:
                raise
            said = f"Done before that: {', '.join(done)}; run it again to go on from there"
            raise ZernelError(
                *(one.but(note="; ".join(filter(None, (said, one.note)))) for one in error.problems)
            ) from error
    return found


def _step(fs: MultikernelFs, wish: Wish, verb: str, found: Ensured, root: Path) -> Ensured:
    """Take one step, as the command of its name with ``--ensure`` does."""
    name = wish.name
    target = lifecycle.Target(name)
    if verb in ("create", "update", "delete"):
        if verb == "create":
            request = _request(fs, wish)
            outcome = operations.create(fs, request, dry_run=False, ensure=True, root=root)
        elif verb == "update":
            outcome = operations.update(fs, _update(wish), dry_run=False, root=root, judged=found.before)
        else:
            outcome = operations.delete(fs, name, dry_run=False, ensure=True)
        found = found.but(
            transactions=(*found.transactions, *outcome.transactions),
            notes=tuple(dict.fromkeys((*found.notes, *outcome.notes))),
        )
        if verb == "delete":
            return found
        return _changed(found.but(status_after=outcome.status), outcome)
    if verb == "load":
        assert found.files is not None
        result = lifecycle.load(fs, target, found.files, dry_run=False, ensure=True)
    elif verb == "exec":
        result = lifecycle.boot(fs, target, dry_run=False, ensure=True)
    elif verb == "kill":
        result = lifecycle.halt(fs, target, force=wish.force, dry_run=False, ensure=True)
    else:
        result = lifecycle.unload(fs, target, dry_run=False, ensure=True)
    return found if found.after is None else found.but(status_after=result.after)
