# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares a workload under the kernel's own scheduler and under Zernel's, in turns."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import signal
import statistics
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol

from zernel.errors import fail

if TYPE_CHECKING:
    import psutil

CLEAR_ROUNDS = 5
"""Rounds that must all agree before a difference is called clear: by chance they do in 1 of 16."""

KEPT_OUTPUT = 1 << 20
"""Bytes of a run's output that are looked at: the last ones."""

_CHUNK = 1 << 16
_GRACE_S = 5.0
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Switch(Protocol):
    """Changes between the schedulers."""

    def use(self, ours: bool) -> None:
        """Let Zernel's scheduler run the tasks, or the kernel's own."""

    def ours(self) -> bool:
        """Tell which runs them."""


class WatchedSwitch(Switch, Protocol):
    """One that tells of what it did not do itself, too."""

    def enables(self) -> int:
        """Return a number that grows whenever a scheduler is enabled, by whomever."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is compared.

    ``value`` is a pattern for the output: the last match's first group is a run's figure. Without one, it is
    the time that the command takes, in seconds. ``limit_s`` is the longest that a run may take; with a
    pattern, a run that goes on is ended then.
    """

    command: tuple[str, ...]
    limit_s: float
    value: re.Pattern[str] | None = None
    lower_is_better: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of each round, and what they say. ``ratios`` are Zernel's figure / the kernel's own."""

    kernel: tuple[float, ...]
    zernel: tuple[float, ...]
    lower_is_better: bool

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return the ratio of each round."""
        return tuple(ours / theirs for ours, theirs in zip(self.zernel, self.kernel, strict=True))

    @property
    def ratio(self) -> float:
        """Return the median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def verdict(self) -> str:
        """Return ``better``, ``worse`` or ``unclear``: clear is what all of enough rounds agree on."""
        lower, higher = all(one < 1 for one in self.ratios), all(one > 1 for one in self.ratios)
        if len(self.ratios) < CLEAR_ROUNDS or not (lower or higher):
            return "unclear"
        return "better" if lower == self.lower_is_better else "worse"

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "kernel": list(self.kernel),
            "zernel": list(self.zernel),
            "ratios": list(self.ratios),
            "ratio": self.ratio,
            "ratio_lowest": min(self.ratios),
            "ratio_highest": max(self.ratios),
            "lower_is_better": self.lower_is_better,
            "verdict": self.verdict,
        }


def compare(
    workload: Workload,
    switch: WatchedSwitch,
    rounds: int,
    progress: Callable[[str], None] = lambda line: None,
) -> Result:
    """Run the workload ``rounds`` times under each scheduler, after one run that does not count.

    Each round runs it under both, in turn the one and the other first, so that what changes with time
    (caches, heat, neighbours) falls on both. However this ends, the scheduler that ran before runs again.

    :raises ZernelError: if a run fails, or gives no figure.
    """
    figures: dict[bool, list[float]] = {False: [], True: []}
    with _adopting(), _restored(switch) as interrupts:
        progress("a first run, which does not count")
        _measure(workload, interrupts)
        for number in range(rounds):
            for ours in (False, True) if number % 2 == 0 else (True, False):
                # What systemd was asked for it does, though its asker ends.
                interrupts.hold()
                switch.use(ours)
                interrupts.release()
                enables = switch.enables()
                figure = _measure(workload, interrupts)
                # One that was ejected early in a long run is enabled again before its end.
                if switch.ours() != ours or switch.enables() != enables:
                    raise fail(
                        "ab-switched",
                        "The scheduler changed during a run",
                        subject="scheduler",
                        explanation="The kernel may have ejected it, or somebody started or stopped it",
                        suggestion="'zernel scheduler status' and 'journalctl -u zernel-scheduler' say why",
                    )
                figures[ours].append(figure)
                progress(f"round {number + 1} of {rounds}, {'zernel' if ours else 'kernel'}: {figure:g}")
    return Result(tuple(figures[False]), tuple(figures[True]), workload.lower_is_better)


class _Interrupts:
    """Turns signals that end a program into KeyboardInterrupt, but not where things would be half done."""

    def __init__(self) -> None:
        self._held = self._pending = False

    def hold(self) -> None:
        """Let signals wait."""
        self._held = True

    def release(self) -> None:
        """Let them come again: one that waited comes now."""
        self._held = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def signalled(self, number: int, frame: object) -> None:
        """Handle a signal."""
        if self._held:
            self._pending = True
        else:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _restored(switch: Switch) -> Iterator[_Interrupts]:
    """Put back the scheduler that ran before, whatever happens; nothing interrupts that."""
    before = switch.ours()
    interrupts = _Interrupts()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.signal(number, interrupts.signalled) for number in signals}
    try:
        yield interrupts
    finally:
        interrupts.hold()
        try:
            if switch.ours() != before:
                switch.use(before)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _measure(workload: Workload, interrupts: _Interrupts) -> float:
    """Run it once and return its figure."""
    others = _below_us()
    began = time.monotonic()
    interrupts.hold()
    try:
        # A session of its own: it is ended with all that it started, and Ctrl-C is ours to handle.
        process = subprocess.Popen(
            workload.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise fail(
            "ab-command",
            f"Cannot run {workload.command[0]}",
            explanation=error.strerror or str(error),
            suggestion="Check the command behind '--'",
        ) from None
    tail = _Tail(process.stdout)
    try:
        interrupts.release()
        try:
            status = process.wait(workload.limit_s)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        took = time.monotonic() - began
    finally:
        interrupts.hold()
        _end(process, others)
        tail.close()
    interrupts.release()
    if not ended and workload.value is None:
        raise fail(
            "ab-endless",
            f"The command did not end within {workload.limit_s:g} s",
            explanation="Without --value a run's figure is the time that it takes",
            suggestion="Give a longer --duration, or with --value a pattern for a figure in its output",
        )
    if ended and status != 0:
        raise fail(
            "ab-failed",
            f"The command {_how(status)}",
            explanation=tuple(tail.text().splitlines()[-5:]),
            suggestion="Run it by hand until it works: figures of failed runs mean nothing",
        )
    figure = took if workload.value is None else _figure(workload.value, tail.text())
    if not 0 < figure < math.inf:
        raise fail(
            "ab-figure",
            f"A run's figure is {figure:g}",
            suggestion="Choose a figure that is always above 0, and finite: ratios are made of it",
        )
    return figure


def _figure(pattern: re.Pattern[str], text: str) -> float:
    last: str | None = None
    for found in pattern.finditer(text):
        last = found.group(1) if pattern.groups else found.group()
    try:
        return float(last or "")
    except ValueError:
        raise fail(
            "ab-figure",
            f"No number was found in the output with '{pattern.pattern}'",
            explanation=tuple(text.splitlines()[-5:]) if last is None else f"found: {last!r}",
            suggestion="Its first group must match a number, for example: --value 'steps/s: ([0-9.]+)'",
        ) from None


def _how(status: int) -> str:
    if status >= 0:
        return f"failed with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Be the parent of those below us whose own parent ends before them: see prctl(2)."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _below_us() -> set[psutil.Process]:
    import psutil  # not before it is needed: all of 'zernel scheduler' would wait for it

    return set(psutil.Process().children(recursive=True))


def _end(process: subprocess.Popen[bytes], others: set[psutil.Process]) -> None:
    """End all that the command started: politely where it still runs, then for good.

    What left its session must not go on either: the next run would compete with it. ``others`` were there
    before.
    """
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    import psutil

    while rest := _below_us() - others:
        for child in rest:
            with contextlib.suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(rest, timeout=_GRACE_S)


class _Tail:
    """Reads a stream to its end and keeps the last part: a workload that writes much must not wait for us."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._kept: deque[bytes] = deque()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self) -> str:
        with self._lock:
            return b"".join(self._kept).decode(errors="replace")

    def close(self) -> None:
        # Who left the session may hold the other end for ever.
        self._thread.join(1.0)

    def _read(self) -> None:
        size = 0
        while self._stream is not None and (chunk := os.read(self._stream.fileno(), _CHUNK)):
            with self._lock:
                self._kept.append(chunk)
                size += len(chunk)
                while size > KEPT_OUTPUT:
                    size -= len(self._kept.popleft())


def seconds(text: str) -> float | None:
    """Return a duration such as ``30s``, ``500ms``, ``2m`` or ``90`` in seconds; None for what is none."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m|)", text)
    if found is None:
        return None
    value = float(found.group(1)) * {"ms": 0.001, "s": 1, "m": 60, "": 1}[found.group(2)]
    return value if 0.001 <= value <= 3600 else None


def command_words(words: Sequence[str]) -> tuple[str, ...]:
    """Return the command behind ``--``."""
    return tuple(words[1:] if words and words[0] == "--" else words)
