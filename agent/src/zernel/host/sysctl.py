# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans and applies kernel settings: asked, accepted, effective, and why. All or nothing.

A plan reads only. Applying it records what the host had, writes each live value, reads it back, and then
replaces the files that make it last through a reboot; a failure on the way puts every value back. Should the
process be killed in between, the record tells the next run which live values are ours and not the host's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from zernel import files
from zernel.errors import Problem, ZernelError, fail
from zernel.host import sysctl_record
from zernel.host.sysctl_input import Asked, Policy
from zernel.host.sysctl_knobs import (
    COUNTERPARTS,
    KNOBS,
    MAX_DIGITS,
    Decision,
    is_number,
    module_of,
    out_of_range,
    policy_of,
)
from zernel.host.sysctl_live import LiveSettings
from zernel.host.sysctl_record import FileChange, Record

LOCK_FILE = "var/lib/zernel/tuning.lock"


@dataclass
class KnobReport:
    """One setting of the report.

    ``verdict``: ``as-asked``; ``adapted`` (another value is better for this host, see ``why``); ``kept`` (the
    host's own is at least as good, nothing is written); ``unavailable`` (optional, and this kernel lacks
    it); ``released`` (no longer asked for, or no more than the host's own: back to what the host had).
    ``written`` is the key that is written: another one than ``key`` where a value is expressed otherwise.
    """

    key: str
    asked: str | None
    policy: str
    verdict: str
    written: str
    accepted: str | None
    before: str | None
    effective: str | None
    why: str = ""

    @property
    def changed(self) -> bool:
        """Whether applying changes the live value."""
        return self.verdict != "kept" and self.accepted is not None and self.accepted != self.before

    def as_dict(self) -> dict[str, object]:
        """Return the stable JSON form."""
        names = ("key", "asked", "policy", "verdict", "written", "accepted", "before", "effective")
        shown = {name: getattr(self, name) for name in names}
        return shown | {"policy": str(self.policy), "changed": self.changed, "why": self.why}


@dataclass
class Plan:
    """What an apply does. ``status``: ``planned``, ``unchanged`` or ``applied``."""

    knobs: list[KnobReport] = field(default_factory=list)
    files: list[FileChange] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    record: Record = field(default_factory=Record)
    forget: list[str] = field(default_factory=list)
    applied: bool = False

    @property
    def changed(self) -> bool:
        return any(knob.changed for knob in self.knobs) or any(change.changed for change in self.files)

    def as_dict(self) -> dict[str, object]:
        """Return the stable JSON form of ``zernel sysctl plan`` and ``apply``."""
        status = "unchanged" if not self.changed else "applied" if self.applied else "planned"
        changes = [change for change in self.files if change.changed]
        return {
            "status": status,
            "changed": self.changed,
            "knobs": [knob.as_dict() for knob in self.knobs],
            "files": [{"path": c.path, "before": c.before, "after": c.after} for c in changes],
            "warnings": self.warnings,
        }


def check(asked: list[Asked]) -> None:
    """Judge the settings by what holds on every kernel.

    :raises ZernelError: with every setting that no kernel takes.
    """
    problems = [problem for setting in asked if (problem := out_of_range(setting))]
    if problems:
        raise ZernelError(*problems)


def plan(asked: list[Asked], root: Path = Path("/")) -> Plan:
    """Decide on every setting; change nothing.

    ``asked`` is the whole desired set: a key that an earlier run wrote and that is missing here goes back
    to what the host had before.

    :raises ZernelError: with every setting that cannot be accepted.
    """
    _check_root(root)
    return _Planner(root).plan(asked)


def apply(asked: list[Asked], root: Path = Path("/")) -> Plan:
    """Plan, then do it and read every value back.

    :raises ZernelError: where the input is refused, or where a value did not take; nothing has changed then.
    """
    _check_root(root)
    with files.locked(root / LOCK_FILE):
        todo = plan(asked, root)
        if todo.changed or todo.forget or todo.record.writing:
            _execute(todo, LiveSettings(root), root)
        todo.applied = True
        return todo


def _check_root(root: Path) -> None:
    """Refuse a directory that is no host's root before anything is written below it."""
    if not (root / "proc/sys").is_dir():
        raise fail(
            "sysctl-no-root",
            "There are no kernel settings",
            subject=str(root),
            explanation=f"{root / 'proc/sys'} is no directory",
            suggestion="Mount /proc, or give the root of a host with --root",
        )


class _Planner:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.live = LiveSettings(root)
        self.record = Record.load(root)
        self.ours = sysctl_record.ours(root)
        self.problems: list[Problem] = []

    def plan(self, asked: list[Asked]) -> Plan:
        knobs = [knob for setting in asked if (knob := self._decide(setting)) is not None]
        self._check_written_once(knobs, asked)
        if self.problems:
            raise ZernelError(*self.problems)
        written = [knob for knob in knobs if knob.accepted is not None and knob.verdict != "kept"]
        released, forget = self._release({knob.written for knob in written})
        for at, knob in enumerate(knobs):
            back = released.pop(knob.key, None) if knob.verdict == "kept" else None
            if back is not None and back.changed:
                # One report per key: the host's own value is enough, and ours goes.
                knobs[at] = replace(back, asked=knob.asked, policy=knob.policy, why=knob.why or back.why)
        result = Plan(knobs=[*knobs, *released.values()], record=self.record, forget=forget)
        lines = [(k.written, k.accepted or "", _comments(k)) for k in written]
        modules = [
            module
            for knob in written
            if (module := module_of(knob.written, knob.accepted or ""))
            and self.live.module_state(module) == "module"
        ]
        for relative, text in (
            (sysctl_record.SYSCTL_FILE, sysctl_record.render_sysctl(lines)),
            (sysctl_record.TMPFILES_FILE, sysctl_record.render_tmpfiles(lines)),
            (sysctl_record.MODULES_FILE, sysctl_record.render_modules(modules)),
        ):
            change = sysctl_record.file_change(self.root, relative, text)
            if change.before is not None or change.after is not None:
                result.files.append(change)
        final = {knob.written: knob.accepted or "" for knob in written}
        result.warnings = sysctl_record.overridden(self.root, final)
        for knob in written:
            self._remember(knob.written)
        for change in result.files:
            self.record.files.setdefault(change.path, change.before)
        return result

    def _decide(self, asked: Asked) -> KnobReport | None:
        if problem := out_of_range(asked):
            self.problems.append(problem)
            return None
        policy = policy_of(asked)
        if not self.live.exists(asked.key):
            return self._lacking(asked, policy, self._unknown(asked))
        try:
            now = self.live.read(asked.key)
        except OSError as error:
            self.problems.append(
                Problem(
                    code="sysctl-unreadable",
                    category="The setting cannot be read, so that it could not be verified",
                    subject=asked.key,
                    explanation=(str(error.strerror),),
                    suggestion="Leave this key out; keys that only trigger an action are no settings",
                    locations=(asked.location,) if asked.location else (),
                )
            )
            return None
        problem = self._wrong_shape(asked, now)
        if problem:
            self.problems.append(problem)
            return None
        wanted, why = asked.value, ""
        if policy is Policy.RAISE:
            wanted, why = self._raised(asked.key, asked.value, now)
        knob = KNOBS.get(asked.key)
        decision = knob.guard(wanted, self.live) if knob and knob.guard else Decision(asked.key, wanted)
        if isinstance(decision, Problem):
            return self._lacking(asked, policy, decision)
        why = "; ".join(text for text in (why, decision.why) if text)
        before = self.live.read(decision.key)
        verdict = "as-asked" if (decision.key, decision.value) == (asked.key, asked.value) else "adapted"
        if policy is Policy.RAISE and decision.value == self._baseline(asked.key, now):
            verdict = "kept"
        return KnobReport(
            asked.key, asked.value, policy, verdict, decision.key, decision.value, before, before, why
        )

    def _lacking(self, asked: Asked, policy: Policy, problem: Problem) -> KnobReport | None:
        """Report an optional setting that this kernel lacks; refuse one that is not optional."""
        if asked.optional and problem.code in ("sysctl-unknown", "sysctl-no-module"):
            why = ". ".join((problem.category, *problem.explanation))
            return KnobReport(asked.key, asked.value, policy, "unavailable", asked.key, None, None, None, why)
        if asked.location and not problem.locations:
            problem = problem.but(locations=(asked.location,))
        self.problems.append(problem)
        return None

    def _unknown(self, asked: Asked) -> Problem:
        near = self.live.similar(asked.key)
        return Problem(
            code="sysctl-unknown",
            category="This kernel has no such setting",
            subject=asked.key,
            explanation=(f"There is no {self.live.path(asked.key)}",),
            suggestion=f"Did you mean {' or '.join(near)}?" if near else "Check the name with 'sysctl -a'",
        )

    def _wrong_shape(self, asked: Asked, now: str) -> Problem | None:
        """Compare number and kind of the fields with what the kernel shows for the key."""
        have, want = now.split(), asked.value.split()
        choices = self.live.choices(asked.key)
        why = suggestion = ""
        if have and all(is_number(word) for word in have):
            bad = next((word for word in want if not is_number(word)), None)
            if bad is not None:
                why, suggestion = f"'{bad}' is not a whole number", f"Write numbers, as in '{now}'"
            elif max(map(len, want), default=0) > MAX_DIGITS:
                why = f"No number of the kernel has more than {MAX_DIGITS} characters"
                suggestion = f"Write numbers, as in '{now}'"
            elif len(want) != len(have):
                why = f"The value has {len(want)} {_fields(len(want))}, and the kernel's has {len(have)}"
                suggestion = f"Write {len(have)} {_fields(len(have))}, as in '{now}'"
        elif policy_of(asked) is Policy.RAISE:
            why, suggestion = "Only a number can be raised", "Use the policy 'set' for this key"
        elif choices and asked.key.startswith("transparent_hugepage.") and asked.value not in choices:
            why, suggestion = f"'{asked.value}' is no choice", f"Choose one of {', '.join(choices)}"
        if not why:
            return None
        return Problem(
            code="sysctl-wrong-value",
            category="The value does not fit the setting",
            subject=asked.key,
            explanation=(why,),
            current_state=f"{asked.key} = {now}",
            suggestion=suggestion,
            locations=(asked.location,) if asked.location else (),
        )

    def _written_by_us(self, key: str) -> set[str]:
        """Return the values that we gave a key: our file's, and those of runs that were killed."""
        return {*self.record.writing.get(key, ()), *([self.ours[key]] if key in self.ours else [])}

    def _baseline(self, key: str, now: str) -> str:
        """Return the host's own value: the one before us, unless another has changed it since."""
        if key in self.record.values and now in self._written_by_us(key):
            return self.record.values[key]
        return now

    def _raised(self, key: str, asked: str, now: str) -> tuple[str, str]:
        """Return the fieldwise maximum of the asked value and the host's own, and why it is not as asked."""
        own = self._baseline(key, now).split()
        want = asked.split()
        if len(own) != len(want):  # a record of another kernel
            own = now.split()
        fields = [max(a, b, key=int) for a, b in zip(want, own, strict=True)]
        if fields == want:
            return asked, ""
        return " ".join(fields), f"the host's own {' '.join(own)} is higher, and a limit is never lowered"

    def _check_written_once(self, knobs: list[KnobReport], asked: list[Asked]) -> None:
        """Refuse two settings of which the kernel keeps one."""
        places = {setting.key: setting.location for setting in asked}
        written: dict[str, str] = {}
        for knob in knobs:
            rival = written.get(knob.written) or written.get(COUNTERPARTS.get(knob.written, ""))
            if knob.accepted is not None and rival:
                place = places.get(knob.key)
                self.problems.append(
                    Problem(
                        code="sysctl-conflict",
                        category="Two settings exclude each other",
                        subject=knob.key,
                        conflict=f"{rival} is set too, and writing one resets the other",
                        suggestion="Keep one of the two",
                        locations=(place,) if place else (),
                    )
                )
            written[knob.written] = knob.key

    def _release(self, written: set[str]) -> tuple[dict[str, KnobReport], list[str]]:
        """Return what goes back to the host's own value, by key, and the keys to drop from the record."""
        reports: dict[str, KnobReport] = {}
        forget: list[str] = []
        for key, own in self.record.values.items():
            partner = COUNTERPARTS.get(key)
            if key in written or partner in written:
                continue
            forget.append(key)
            ours = self._written_by_us(key)
            if not ours or not self.live.exists(key):
                # The other half of a pair, or a key that this kernel lacks: nothing of ours to take back.
                continue
            now = self.live.read(key)
            if partner and now == "0" and self._written_by_us(partner):
                continue  # our own write of the other half did that, and that half's turn tells
            if now == own:  # a killed run did not come to write it or took it back already, or another did
                if key in self.ours:
                    why = "no longer asked for: it is what the host had"
                    reports[key] = KnobReport(key, None, "release", "released", key, own, now, now, why)
                continue
            target, value = (
                (partner, self.record.values.get(partner, "")) if partner and own == "0" else (key, own)
            )
            if now not in ours:
                why = "no longer asked for; another has changed it since, so that it stays as it is"
                reports[key] = KnobReport(key, None, "release", "released", key, None, now, now, why)
                continue
            before = self.live.read(target)
            why = "no longer asked for: back to what the host had"
            reports[key] = KnobReport(key, None, "release", "released", target, value, before, before, why)
        return reports, forget

    def _remember(self, key: str) -> None:
        """Note the first-touch value of a key, and of the one that the kernel resets with it."""
        for name in (key, COUNTERPARTS.get(key)):
            if name and name not in self.record.values and self.live.exists(name):
                self.record.values[name] = self.live.read(name)


def _execute(todo: Plan, live: LiveSettings, root: Path) -> None:
    """Carry out a plan; on failure put values and files back and raise."""
    writes = [(k.written, k.accepted) for k in todo.knobs if k.changed and k.accepted is not None]
    start = {name: live.read(name) for key, _ in writes for name in _pair(key) if live.exists(name)}
    record_before = files.read_text(root / sysctl_record.RECORD_FILE)
    for key, value in writes:
        values = todo.record.writing.setdefault(key, [])
        if value not in values:
            values.append(value)
    todo.record.save(root)
    done: list[str] = []
    replaced: list[FileChange] = []
    try:
        for key, value in writes:
            done.append(key)
            _write_verified(live, key, value)
        for change in todo.files:
            if change.changed:
                replaced.append(change)
                _put(root, change.path, change.after)
    except (OSError, ZernelError) as error:
        record = FileChange("/" + sysctl_record.RECORD_FILE, record_before, None)
        raise _rolled_back(error, live, root, done, start, replaced, record) from error
    if todo.forget or todo.record.writing:
        for key in todo.forget:
            todo.record.values.pop(key, None)
        todo.record.writing.clear()
        todo.record.save(root)
    for knob in todo.knobs:
        if knob.accepted is not None or knob.verdict == "kept":
            knob.effective = live.read(knob.written)


def _write_verified(live: LiveSettings, key: str, value: str) -> None:
    try:
        live.write(key, value)
    except OSError as error:
        raise fail(
            "sysctl-refused",
            "The kernel refused the value",
            subject=key,
            explanation=f"Writing '{value}' to {live.path(key)}: {error.strerror}",
            suggestion="Run as root on the host itself"
            if isinstance(error, PermissionError)
            else "Use another value",
        ) from error
    now = live.read(key)
    if now != value:
        raise fail(
            "sysctl-not-effective",
            "The value did not take",
            subject=key,
            explanation=f"'{value}' was written without an error, and the kernel now shows '{now}'",
            suggestion="Use the value that this host can hold, or find what else sets this key",
        )


def _put(root: Path, path: str, text: str | None) -> None:
    target = root / path.lstrip("/")
    if text is None:
        files.remove(target)
    else:
        files.replace(target, text)


def _rolled_back(
    error: OSError | ZernelError,
    live: LiveSettings,
    root: Path,
    done: list[str],
    start: dict[str, str],
    replaced: list[FileChange],
    record: FileChange,
) -> ZernelError:
    """Put everything back and return the error to raise, which says whether that worked."""
    stuck: list[str] = []

    def put_back(change: FileChange) -> None:
        try:
            _put(root, change.path, change.before)
        except OSError as failure:
            stuck.append(f"{change.path} ({failure.strerror})")

    for change in reversed(replaced):
        put_back(change)
    for key in reversed(done):
        # Of a pair, the half that is not 0 restores both.
        name = next((half for half in _pair(key) if start.get(half, "0") != "0"), key)
        try:
            if live.read(name) != start[name]:
                live.write(name, start[name])
        except OSError as failure:
            stuck.append(f"{name} = {start[name]} ({failure.strerror})")
    if not stuck:  # the record knows what the host had, and is needed as long as anything else is not back
        put_back(record)
    outcome = (
        f"Could not be put back: {', '.join(stuck)}" if stuck else "Every value and file is as it was before"
    )
    if isinstance(error, ZernelError):
        return ZernelError(*(problem.but(current_state=outcome) for problem in error.problems))
    return fail(
        "sysctl-write-failed",
        "The settings could not be written",
        subject=error.filename,
        explanation=str(error.strerror or error),
        current_state=outcome,
        suggestion="Make room on the disk, or make the file system writable, and run again",
    )


def _pair(key: str) -> tuple[str, ...]:
    partner = COUNTERPARTS.get(key)
    return (key, partner) if partner else (key,)


def _comments(knob: KnobReport) -> list[str]:
    """Return the comment lines above a setting: what it is for, and why it is not as asked."""
    known = KNOBS.get(knob.key)
    comments = [known.reason] if known else []
    if knob.verdict == "adapted":
        comments.append(f"Asked: {knob.key} = {knob.asked}; {knob.why}")
    return [" ".join(comment.split()) for comment in comments]


def _fields(count: int) -> str:
    return "field" if count == 1 else "fields"
