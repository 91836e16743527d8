# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel scheduler``: how the CPU scheduler is doing, on and off, and whether it is worth it here."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from zernel.cli.output import add_format_option, print_result
from zernel.errors import ZernelError, fail
from zernel.scheduler import ab, control

_STATUS_HELP = "say what runs the tasks, and what is known of tenants and GPUs"
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


def _status(args: argparse.Namespace, host: control.Host) -> int:
    data = gather(host)
    print_result(data, args.format, lambda: "\n".join(status_lines(data)))
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
        args.wrong_usage(f"--duration {args.duration}: write for example 500ms, 30s or 2m, at most an hour")
    if not 1 <= args.rounds <= 100:
        args.wrong_usage("--rounds: 1 to 100")
    if not command:
        args.wrong_usage("the command is missing: write it behind '--'")
    try:
        pattern = re.compile(args.value) if args.value is not None else None
    except re.error as error:
        args.wrong_usage(f"--value is no regular expression: {error}")
    if args.lower_is_better and pattern is None:
        args.wrong_usage("--lower-is-better goes with --value: time is always better when it is less")
    workload = ab.Workload(command, limit or 0.0, pattern, pattern is None or args.lower_is_better)
    switch = _ServiceSwitch(host)
    result = ab.compare(workload, switch, args.rounds, lambda line: print(line, file=sys.stderr))
    data = {"status": "ok", "command": list(command), **result.as_dict()}
    print_result(data, args.format, lambda: "\n".join(result_lines(result)))
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
        "daemon": daemon,
        "daemon_unavailable": why,
    }


def status_lines(data: dict[str, Any]) -> list[str]:
    """Return the status for people."""
    of_kernel, service, daemon = data["kernel"], data["service"], data["daemon"]
    if of_kernel["state"] is None:
        state = "the kernel has no sched_ext ('zernel doctor' says what it takes)"
    else:
        loaded = f", loaded: {of_kernel['scheduler']}" if of_kernel["scheduler"] else ""
        state = f"sched_ext is {of_kernel['state']}{loaded}"
    lines = [
        f"tasks     run by {_who(data['runs_tasks'])}",
        f"kernel    {state}",
        f"service   {service['active'] or 'unknown'}, at boot: {service['boot'] or 'unknown'}",
    ]
    if service["says"]:
        lines.append(f"          {service['says']}")
    if daemon is None:
        return [*lines, f"daemon    {data['daemon_unavailable']}"]
    if daemon["off"]:
        what = "STAYING OFF until a reload" if daemon["gave_up"] else "off, will try again"
        lines.append(f"daemon    {what}: {daemon['off']}")
    lines.append(f"daemon    {daemon['loads']} loads, {daemon['ejections']} ejections")
    gpus = daemon["gpus"]
    words = gpus["unavailable"] or f"{len(gpus['list'])} known to NVML"
    lines.append(f"GPUs      {words}")
    for part in (_role_lines(daemon["roles"]), _tenant_lines(daemon["tenants"])):
        lines += ["", *part] if part else []
    return lines


def _who(name: str) -> str:
    return {"zernel": "Zernel's scheduler", "kernel": "the kernel's own scheduler"}.get(name, f"'{name}'")


def _role_lines(roles: list[dict[str, Any]]) -> list[str]:
    """Return how soon threads of each role run, once one was seen."""
    table = [("ROLE", "WAKE-UPS", "MEDIAN DELAY", "99%")]
    for one in roles:
        if one["wakeups"]:
            delays = (_below(one["delay_p50_seconds"]), _below(one["delay_p99_seconds"]))
            table.append((one["role"], str(one["wakeups"]), *delays))
    return columns(table) if len(table) > 1 else []


def _below(delay: float) -> str:
    return f"< {delay * 1000:.3g} ms"


def _tenant_lines(tenants: list[dict[str, Any]]) -> list[str]:
    if not tenants:
        return []
    table = [("TENANT", "CLASS", "GPUS", "WEIGHT", "WANTED", "GOT", "LONGEST WAIT", "CGROUP")]
    for one in tenants:
        wait = one["longest_wait_seconds"]
        table.append(
            (
                one["name"],
                one["class"],
                f"{one['gpus']:g}",
                str(one["weight"]),
                _percent(one["share_wanted"]),
                _percent(one["share_received"]),
                "-" if wait is None else f"{wait * 1000:.1f} ms",
                one["absent"] or one["cgroup"] or "all others",
            )
        )
    return columns(table)


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.0%}"


def columns(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows of words as lines, with the columns below each other."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]


def result_lines(result: ab.Result) -> list[str]:
    """Return a comparison for people."""
    rows = [("ROUND", "KERNEL", "ZERNEL", "RATIO")]
    figures = zip(result.kernel, result.zernel, result.ratios, strict=True)
    for number, (theirs, ours, ratio) in enumerate(figures, start=1):
        rows.append((str(number), f"{theirs:.4g}", f"{ours:.4g}", f"{ratio:.3f}"))
    better = "less" if result.lower_is_better else "more"
    verdict = {
        "better": "Zernel's scheduler is better for this: every round agrees",
        "worse": "the kernel's own scheduler is better for this: every round agrees",
        "unclear": f"no clear difference: it takes {ab.CLEAR_ROUNDS} rounds or more that all agree",
    }[result.verdict]
    spread = f"{min(result.ratios):.3f} to {max(result.ratios):.3f}"
    return [
        *columns(rows),
        "",
        f"Zernel / kernel: {result.ratio:.3f} (median; {spread}); {better} is better",
        verdict,
    ]
