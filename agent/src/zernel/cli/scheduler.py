# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel scheduler``: how the CPU scheduler is doing, on and off, and whether it is worth it here."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from typing import Any

from zernel.cli import scheduler_text
from zernel.cli.output import add_format_option, print_result
from zernel.errors import ZernelError, fail, harmless
from zernel.scheduler import ab, control

_STATUS_HELP = "say what runs the tasks, and what is known of processes, tenants and GPUs"
_AB_EPILOG = """\
Without --value a run's figure is the time that COMMAND takes. With it, it is the number that the pattern's
first group matched last in the command's output; a command that goes on is then ended after --duration. A
difference is called clear when at least 5 rounds all agree. The scheduler that ran before runs again, however
this ends.
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of ``zernel scheduler``."""
    verbs = parser.add_subparsers(metavar="ACTION", title="actions", required=True)
    for name, act, summary in (
        ("status", _status, _STATUS_HELP),
        ("enable", _enable, "turn it on, now and at each boot"),
        ("disable", _disable, "turn it off, now and at boot: the kernel's own scheduler takes over"),
    ):
        verb = verbs.add_parser(name, help=summary, description=summary)
        add_format_option(verb)
        verb.set_defaults(act=act)
    summary = "say why a process is in its phase, whose it is, and which CPUs it gets"
    explain = verbs.add_parser("explain", help=summary, description=summary)
    explain.add_argument("pid", type=int, metavar="PID", help="a process")
    add_format_option(explain)
    explain.set_defaults(act=_explain)
    _register_ab(verbs.add_parser("ab", help="run a command under both schedulers in turns, and compare"))


def _register_ab(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run a command under the kernel's own scheduler and Zernel's, in turns, and compare."
    parser.epilog = _AB_EPILOG
    parser.usage = "%(prog)s [options] -- COMMAND ..."
    parser.add_argument(
        "--duration", default="30s", metavar="TIME", help="the longest that a run may take (default: 30s)"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="1 to 100 (default: 5)")
    parser.add_argument("--value", metavar="PATTERN", help="regular expression that finds a run's figure")
    parser.add_argument(
        "--lower-is-better", action="store_true", help="with --value: it counts time, not what was done in it"
    )
    add_format_option(parser)
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run, behind '--'"
    )
    parser.set_defaults(act=_ab, wrong_usage=parser.error)


def run(args: argparse.Namespace) -> int:
    """Do what the verb says."""
    return int(args.act(args, control.Host()))


def _text(lines: list[str]) -> str:
    """Return the lines as a terminal may get them: a process chooses its own name."""
    return "\n".join(map(harmless, lines))


def _status(args: argparse.Namespace, host: control.Host) -> int:
    data = gather(host)
    print_result(data, args.format, lambda: _text(scheduler_text.status_lines(data)))
    return 0


def _explain(args: argparse.Namespace, host: control.Host) -> int:
    data = {"status": "ok", **host.ask("/explain", pid=args.pid)}
    print_result(data, args.format, lambda: _text(scheduler_text.explanation_lines(data)))
    return 0


def _enable(args: argparse.Namespace, host: control.Host) -> int:
    return _switched(args, host.enable(), "on", "Zernel's scheduler runs the tasks")


def _disable(args: argparse.Namespace, host: control.Host) -> int:
    return _switched(args, host.disable(), "off", "the kernel's own scheduler runs the tasks")


def _switched(args: argparse.Namespace, changed: bool, state: str, words: str) -> int:
    data = {"status": "ok", "changed": changed, "scheduler": state}
    print_result(data, args.format, lambda: f"{words}{'' if changed else ', as before'}")
    return 0


def _ab(args: argparse.Namespace, host: control.Host) -> int:
    limit = ab.seconds(args.duration)
    command = ab.command_words(args.command)
    if limit is None:
        shown = harmless(args.duration)
        args.wrong_usage(f"--duration {shown}: write for example 500ms, 30s or 2m, at most an hour")
    if not 1 <= args.rounds <= 100:
        args.wrong_usage("--rounds: 1 to 100")
    if not command:
        args.wrong_usage("the command is missing: write it behind '--'")
    try:
        pattern = re.compile(args.value) if args.value is not None else None
    except (re.error, OverflowError, RecursionError) as error:
        args.wrong_usage(f"--value is no regular expression: {error}")
    if args.lower_is_better and pattern is None:
        args.wrong_usage("--lower-is-better goes with --value: time is always better when it is less")
    workload = ab.Workload(command, limit or 0.0, pattern, pattern is None or args.lower_is_better)
    switch = _ServiceSwitch(host)
    with host.switching():
        result = ab.compare(workload, switch, args.rounds, lambda line: print(line, file=sys.stderr))
    data = {"status": "ok", "command": list(command), **result.as_dict()}
    print_result(data, args.format, lambda: _text(scheduler_text.result_lines(result)))
    return 0


class _ServiceSwitch:
    """Changes between the schedulers by the service."""

    def __init__(self, host: control.Host) -> None:
        """Check that the service can be started and stopped here.

        :raises ZernelError: with every reason why not.
        """
        host.require()
        self._host = host
        service = host.service()
        if service.active == "active" and not host.kernel().ours:
            raise fail(
                "scheduler-off",
                "The scheduler's service runs, but its scheduler does not",
                subject="scheduler",
                current_state=service.says or "unknown",
                suggestion="'systemctl restart zernel-scheduler' tries again; see its journal for the reason",
            )

    def use(self, ours: bool) -> None:
        if self.ours() != ours:
            (self._host.start if ours else self._host.stop)()

    def ours(self) -> bool:
        return self._host.kernel().ours

    def enables(self) -> int:
        return self._host.kernel().enables


def gather(host: control.Host) -> dict[str, Any]:
    """Return all that is known; what cannot be asked is None, and ``daemon_unavailable`` says why."""
    of_kernel, service = host.kernel(), host.service()
    daemon, why = None, None
    try:
        daemon = host.ask("/status")
    except ZernelError as error:
        why = "; ".join((str(error), *error.problems[0].explanation))
    return {
        "status": "ok",
        "runs_tasks": "zernel" if of_kernel.ours else of_kernel.scheduler or "kernel",
        "kernel": {"state": of_kernel.state, "scheduler": of_kernel.scheduler},
        "service": {"active": service.active, "boot": service.boot, "says": service.says},
        "realtime": [dataclasses.asdict(one) | {"says": str(one)} for one in host.realtime()],
        "daemon": daemon,
        "daemon_unavailable": why,
    }
