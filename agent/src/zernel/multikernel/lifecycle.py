# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a kernel in an instance: loaded, booted, halted and unloaded.

Each step is one system call (`zernel.multikernel.kexec`), made under the lock of all instance changes, with
the journal telling what was begun. A call is believed only when the instance's status shows it. What
stops a kernel waits for nothing else: neither for a change of the instances that cannot be settled, nor for a
disk that takes neither journal nor lock.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress

from zernel.devicetree.allocations import check_name
from zernel.devicetree.model import Instance
from zernel.devicetree.units import format_size
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import kexec
from zernel.multikernel.boot_files import BootFiles
from zernel.multikernel.call_journal import CallJournal
from zernel.multikernel.fs import ACTIVE, LOADED, READY, MultikernelFs
from zernel.multikernel.planning import not_there
from zernel.multikernel.transactions import change
from zernel.multikernel.wire import Wire
from zernel.record import Record

_SETTLE_SECONDS = 5
"""How long an instance may take to start or to stop. A load is over when its call returns."""

Call = Callable[[kexec.KernelCalls, int], None]


class Target(Record):
    """The instance that a command is about, by name or by id."""

    name: str | None = None
    id: int | None = None


class Step(Record):
    """One step of a kernel's life, named after its command.

    ``done`` are the statuses that it leads to, the usual one first; ``doing`` completes "The kernel did not".
    ``seconds`` is how long after the call the status may take.
    """

    verb: str
    done: tuple[str, ...]
    doing: str
    seconds: int = 0


class Result(Record):
    """What a step did to an instance. ``resources`` is None where the kernel does not show them; ``before``
    and ``after`` are statuses. ``notes`` say what was found of an earlier command that did not finish."""

    name: str
    id: int
    resources: Instance | None
    before: str
    after: str
    changed: bool
    notes: tuple[str, ...] = ()


_LOAD = Step("load", (LOADED, ACTIVE), "load the image")
_UNLOAD = Step("unload", (READY,), "unload the instance's kernel")
_BOOT = Step("exec", (ACTIVE,), "boot the instance", _SETTLE_SECONDS)
_HALT = Step("kill", (LOADED, READY), "stop the instance", _SETTLE_SECONDS)


def load(
    fs: MultikernelFs,
    target: Target,
    files: BootFiles | tuple[Problem, ...],
    *,
    dry_run: bool,
    ensure: bool,
) -> Result:
    """Load a kernel into an instance: ready becomes loaded.

    ``files`` may be what is wrong with them, which is then shown with what is wrong with the instance. With
    ``ensure``, an instance that has a kernel is left alone: the kernel does not tell which one it has.
    """

    def call(calls: kexec.KernelCalls, number: int) -> None:
        assert isinstance(files, BootFiles)
        initrd = files.initrd.descriptor if files.initrd else None
        calls.load(number, files.kernel.descriptor, initrd, os.fsencode(files.cmdline))

    return _step(fs, _LOAD, target, call, files=files, dry_run=dry_run, ensure=ensure)


def unload(fs: MultikernelFs, target: Target, *, dry_run: bool, ensure: bool) -> Result:
    """Take the kernel out of an instance: loaded becomes ready."""
    return _step(fs, _UNLOAD, target, kexec.KernelCalls.unload, dry_run=dry_run, ensure=ensure)


def boot(fs: MultikernelFs, target: Target, *, dry_run: bool, ensure: bool) -> Result:
    """Start the loaded kernel: loaded becomes active."""
    return _step(fs, _BOOT, target, kexec.KernelCalls.boot, dry_run=dry_run, ensure=ensure)


def halt(fs: MultikernelFs, target: Target, *, force: bool, dry_run: bool, ensure: bool) -> Result:
    """Stop the running kernel: active becomes loaded.

    With ``force`` it is not asked to shut down. A loaded instance may be forced too: the status changes
    before every CPU is known to have stopped, and a second halt reaches those that did not.
    """

    def call(calls: kexec.KernelCalls, number: int) -> None:
        calls.halt(number, force=force)

    return _step(fs, _HALT, target, call, force=force, dry_run=dry_run, ensure=ensure)


def check(
    verb: str, found: Result, files: BootFiles | tuple[Problem, ...] = (), *, force: bool = False
) -> list[Problem]:
    """Return why a step, named after its command, is not possible from the status in ``found.before``."""
    step = next(step for step in (_LOAD, _UNLOAD, _BOOT, _HALT) if step.verb == verb)
    problems = list(files) if isinstance(files, tuple) else []
    problems += _refusals(step, found, force=force)
    if isinstance(files, BootFiles):
        problems += _room_problems(found, files)
    return problems


def _step(
    fs: MultikernelFs,
    step: Step,
    target: Target,
    call: Call,
    *,
    dry_run: bool,
    ensure: bool,
    force: bool = False,
    files: BootFiles | tuple[Problem, ...] = (),
) -> Result:
    stops = step in (_HALT, _UNLOAD)
    with change(fs, dry_run, settle=not stops, must_lock=not stops) as (wire, journal, settled):
        fs = settled.fs
        problems = list(files) if isinstance(files, tuple) else []
        try:
            found = _find(fs, wire, target).but(notes=settled.notes)
        except ZernelError as error:
            raise ZernelError(*problems, *error.problems) from error
        needed = not (ensure and found.before in step.done)
        if needed:
            problems = check(step.verb, found, files, force=force)
        if problems:
            raise ZernelError(*problems)
        if not needed:
            return found
        planned = found.but(after=step.done[0], changed=True)
        if journal is None:
            return planned
        begun = CallJournal(journal)
        unwritten = [OSError] if stops else []
        with suppress(*unwritten):
            begun.begin(step.verb, found.name)
        refusal: OSError | None = None
        try:
            call(kexec.calls_of(fs), found.id)
        except OSError as error:
            refusal = error
        except ZernelError:
            with suppress(*unwritten):
                begun.end()  # there was no call
            raise
        after = _status_after(fs, found.name, step) if refusal is None else fs.status(found.name)
        with suppress(*unwritten):
            begun.end()
        if refusal is not None:
            raise _refused(fs, step, found, refusal, after, files)
        if after not in step.done:
            raise _without_effect(step, found, after, force=force)
        return planned.but(after=after)


# -- looking ------------------------------------------------------------------------------------------------


def _find(fs: MultikernelFs, wire: Wire, target: Target) -> Result:
    """Return the instance as it is, unchanged; raises `ZernelError` when there is none."""
    names = fs.instance_names()
    if target.name is not None:
        problems = check_name(target.name)
        if problems:
            raise ZernelError(*problems)
        if target.name not in names:
            raise not_there(target.name, names)
        names = [target.name]
    ids = []
    for name in names:
        try:
            number, status, blob = fs.instance(name)
        except FileNotFoundError:
            continue  # it was deleted since its name was read
        if target.name is not None or number == target.id:
            owns = dict(fs.foreseen).get(name) or _resources(wire, name, number, blob)
            return Result(name, number, owns, status, status, changed=False)
        ids.append(f"{number} ({name})")
    if target.name is not None:
        raise not_there(target.name, fs.instance_names())
    raise fail(
        "instance-not-found",
        f"There is no instance with id {target.id}",
        explanation=f"Ids: {', '.join(ids) or 'none'}",
        suggestion="Look at the instances: zernel show",
    )


def _resources(wire: Wire, name: str, number: int, blob: bytes) -> Instance | None:
    try:
        return wire.read_instance(name, number, blob) if blob else None
    except ZernelError:
        return None  # it can be stopped all the same


def _refusals(step: Step, found: Result, *, force: bool) -> tuple[Problem, ...]:
    """Return why the step is not possible in the instance's present status: nothing, or one problem."""
    name, status = found.name, found.before
    load, unload, boot, halt = (
        f"zernel load {name} --kernel=FILE",
        f"zernel unload {name}",
        f"zernel exec {name}",
        f"zernel kill {name}",
    )
    refusals = {
        ("load", LOADED): ("A kernel is loaded already", f"Unload it first: {unload}", f"Boot it: {boot}"),
        ("load", ACTIVE): ("A kernel is running", f"Stop and unload it first: {halt} && {unload}", None),
        ("unload", READY): ("No kernel is loaded", f"Load one: {load}", None),
        ("unload", ACTIVE): ("The kernel is running", f"Stop it first: {halt}", None),
        ("exec", READY): ("No kernel is loaded", f"Load one first: {load}", None),
        ("exec", ACTIVE): ("The kernel is running already", f"Stop it first: {halt}", None),
        ("kill", READY): ("The instance is not running", f"Load a kernel: {load}", None),
        ("kill", LOADED): (
            "The instance is not running",
            f"Unload its kernel, or boot it: {unload}, {boot}",
            f"Should a CPU of it not have stopped: {halt} --force",
        ),
    }
    refusal = refusals.get((step.verb, status))
    if refusal is None and (status in (READY, LOADED, ACTIVE) or step is _HALT):
        return ()  # the step's own status; and whatever else the kernel calls it, it may be stopped
    if force and status == LOADED:
        return ()
    if refusal is None:
        refusal = (
            f"The instance's status is '{status}'",
            f"Stop it: {halt} --force",
            "Look for the reason in the kernel log: journalctl -k -g multikernel",
        )
    category, suggestion, alternative = refusal
    return fail(
        f"{step.verb}-status",
        category,
        subject=name,
        current_state=status,
        suggestion=suggestion,
        alternative=alternative,
    ).problems


def _room_problems(found: Result, files: BootFiles) -> tuple[Problem, ...]:
    instance = found.resources
    if instance is None or files.memory_bytes <= instance.memory_bytes:
        return ()
    kernel = format_size(files.kernel.layout.memory_bytes)
    initrd = f", its initrd {format_size(files.initrd.size)}" if files.initrd else ""
    return fail(
        "kernel-too-large",
        "The kernel does not fit into the instance's memory",
        subject=found.name,
        current_state=f"{format_size(instance.memory_bytes)} at {instance.memory_base:#x}",
        conflict=f"The kernel takes {kernel}{initrd}, before it has done anything",
        suggestion=f"Give the instance more memory: zernel update {found.name} --memory=SIZE",
    ).problems


def _status_after(fs: MultikernelFs, name: str, step: Step) -> str | None:
    """Return the status once the step is done, or what it is in the end; None: the instance is gone."""
    deadline = time.monotonic() + step.seconds
    while True:
        status = fs.status(name)
        if status is None or status in step.done or time.monotonic() >= deadline:
            return status
        time.sleep(0.02)


# -- errors -------------------------------------------------------------------------------------------------

_KERNEL_LOG = "Look for the reason in the kernel log: journalctl -k -g 'kexec|multikernel'"


def _refused(
    fs: MultikernelFs,
    step: Step,
    found: Result,
    refusal: OSError,
    after: str | None,
    files: BootFiles | tuple[Problem, ...],
) -> ZernelError:
    number = refusal.errno or 0
    call = "kexec_file_load(2)" if step in (_LOAD, _UNLOAD) else "reboot(2)"
    error = f"{call} for id {found.id}: {refusal.strerror} ({errno.errorcode.get(number, number)})"
    suggestion = _KERNEL_LOG
    if fs.simulated:
        suggestion = "Run it again: a simulation refuses what a --fault told it to, once for each --fault"
    if number in (errno.ENOENT, errno.ESRCH, errno.EBUSY):
        suggestion = "Another program changes the instances; look at them, then run it again: zernel show"
    elif number == errno.ENOMEM and isinstance(files, BootFiles) and found.resources is not None:
        need, have = format_size(files.memory_bytes), format_size(found.resources.memory_bytes)
        if 2 * files.memory_bytes > found.resources.memory_bytes:
            suggestion = f"Give the instance more memory: it has {have}, kernel and initrd take {need}"
        elif not fs.simulated:  # it is not the instance's memory that is short
            suggestion = "Free memory of the host, where the kernel is prepared, and run it again"
    elif number == errno.ENOEXEC:
        suggestion = "Give a kernel for this host's architecture"
    elif number == errno.EPERM and os.geteuid() == 0:
        suggestion = "Allow it: sysctl kernel.kexec_load_disabled must be 0, and lockdown must be off"
    elif number in (errno.EKEYREJECTED, errno.ENOKEY, errno.EBADMSG, errno.ENODATA):
        # The signature of a bzImage covers the whole of it, not the ELF file within.
        suggestion = "Turn off the check of signatures: what is taken out of a bzImage has none"
    elif number == errno.ENOSYS:
        suggestion = "Boot a kernel built with CONFIG_KEXEC_FILE"
    return fail(
        f"{step.verb}-refused",
        f"The kernel did not {step.doing}",
        subject=found.name,
        explanation=error,
        current_state=after or "the instance is gone",
        suggestion=suggestion,
    )


def _without_effect(step: Step, found: Result, after: str | None, *, force: bool) -> ZernelError:
    """Return the error for a call that succeeded, and whose effect the status does not show."""
    name = found.name
    suggestion, alternative = _KERNEL_LOG, None
    if after is None:
        suggestion = "Another program deleted it; look at the instances: zernel show"
    elif step is _HALT and not force:
        suggestion, alternative = f"Stop it without asking it: zernel kill {name} --force", _KERNEL_LOG
    elif step is _BOOT:
        suggestion, alternative = f"Load a kernel anew, then boot it: zernel unload {name}", _KERNEL_LOG
    elif step is _LOAD:
        suggestion, alternative = "Run it again", _KERNEL_LOG
    return fail(
        f"{step.verb}-without-effect",
        f"The kernel did not {step.doing}",
        subject=name,
        explanation="The call succeeded, and the instance " + ("does not show it" if after else "is gone"),
        current_state=f"{after}, {step.seconds} seconds after the call" if after and step.seconds else after,
        conflict=f"Its status was to be '{step.done[0]}'" if after else None,
        suggestion=suggestion,
        alternative=alternative,
    )
