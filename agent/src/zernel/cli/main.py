# SPDX-License-Identifier: GPL-3.0-or-later
"""The ``zernel`` command: finds the verb, imports that verb's module alone, shows errors in one form.

A verb is a module of this package with ``register(parser)``, which adds its options, and ``run(args)``,
which returns the exit status: 0 done or valid, 1 refused, invalid or failed; argparse itself exits 2 on
wrong usage. Only the chosen verb's module is imported, so that starting up stays cheap; what must not be
imported on the way is in tests/unit/cli/test_startup.py.
"""

from __future__ import annotations

import importlib
import os
import sys

from zernel import __version__, streams
from zernel.cli.output import print_errors
from zernel.cli.plain import NotPlain, PlainParser
from zernel.errors import ZernelError, fail, from_oserror, internal

TYPE_CHECKING = False  # as typing's, whose import would cost every command 3 ms
if TYPE_CHECKING:
    import argparse
    from types import ModuleType
    from typing import Any

# verb: (module, one line of help)
VERBS: dict[str, tuple[str, str]] = {
    "doctor": ("zernel.cli.doctor", "say what this host can run, and why not"),
    "kernel": ("zernel.cli.kernel", "report the running kernel's options for machine learning"),
    "scheduler": ("zernel.cli.scheduler", "the CPU scheduler: its state, on and off, and a comparison"),
    "sysctl": ("zernel.cli.sysctl", "plan or apply the tuned sysctls, read back"),
    "init": ("zernel.cli.init", "validate a baseline device tree; with --apply, hand it to the kernel"),
    "validate": ("zernel.cli.validate", "validate any device tree: a baseline, a whole system, an overlay"),
    "convert": ("zernel.cli.convert", "convert a valid device tree between source (DTS) and blob (DTB)"),
    "create": ("zernel.cli.create", "create a kernel instance"),
    "update": ("zernel.cli.update", "change what a kernel instance owns"),
    "delete": ("zernel.cli.delete", "delete a kernel instance"),
    "ensure": ("zernel.cli.ensure", "bring one instance, and its kernel, to a wanted state"),
    "rollback": ("zernel.cli.rollback", "undo the last change of the instances, or a named one"),
    "apply": ("zernel.cli.apply", "make the instances what /etc/zernel/instances.d declares"),
    "load": ("zernel.cli.load", "load a kernel into an instance"),
    "exec": ("zernel.cli.exec", "boot the kernel that is loaded into an instance"),
    "kill": ("zernel.cli.kill", "stop the kernel that runs in an instance"),
    "unload": ("zernel.cli.unload", "take the kernel out of an instance"),
    "show": ("zernel.cli.show", "show the baseline and the kernel instances"),
    "simulate": ("zernel.cli.simulate", "mount a simulated multikernel file system (for tests and demos)"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    streams.prepare()
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
    except SystemExit as end:  # argparse: help, version, wrong usage
        status = end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        status = 130
    except OSError as error:  # argparse could not print
        return streams.finish(0, error)
    return streams.finish(status)


def _run(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(f"zernel {__version__}")
        return 0
    verb = arguments[0] if arguments else ""
    if verb not in VERBS:
        return _without_verb(arguments)
    place, summary = VERBS[verb]
    module = importlib.import_module(place)
    try:
        plain = PlainParser()
        module.register(plain)
        args: Any = plain.parse(arguments[1:])
    except NotPlain:
        args = _parsed(verb, summary, module, arguments[1:])
    try:
        return int(module.run(args))
    except ZernelError as error:
        problems = error
    except OSError as error:
        problems = from_oserror(error, f"finish 'zernel {verb}'")
    except RecursionError:
        problems = _too_deep()
    except Exception as error:
        if os.environ.get("ZERNEL_LOG") == "debug":
            raise
        problems = internal(error)
    try:
        print_errors(problems, args.format)
    except ZernelError as lost:  # the errors were shown as text; their JSON found no room
        print_errors(lost, "text")
    return 1


def _parsed(verb: str, summary: str, module: ModuleType, words: list[str]) -> argparse.Namespace:
    """Return the options as argparse reads them; it ends the process for help and wrong usage."""
    import argparse  # 8 ms, which most command lines of 'zernel init' do without

    parser = argparse.ArgumentParser(
        prog=f"zernel {verb}",
        description=summary,
        # argparse imports shutil to learn the width, also where no help is printed: 4 ms.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=_columns() - 2),
        allow_abbrev=False,  # what '--f' means would change with each new option
    )
    module.register(parser)
    return parser.parse_args(words)


def _too_deep() -> ZernelError:
    return fail(
        "too-deep",
        "The input is nested too deeply",
        suggestion="Flatten it: nothing that Zernel reads needs this",
    )


def _columns() -> int:
    """Return the terminal's width as shutil.get_terminal_size does."""
    try:
        return int(os.environ["COLUMNS"]) or 80
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


def _without_verb(arguments: list[str]) -> int:
    """Answer --help, and a command line that does not begin with a verb."""
    import argparse

    parser = argparse.ArgumentParser(prog="zernel", description="Zernel on this host.")
    parser.add_argument("--version", action="version", version=f"zernel {__version__}")
    verbs = parser.add_subparsers(metavar="COMMAND", title="commands")
    for verb, (_, summary) in VERBS.items():
        verbs.add_parser(verb, help=summary)
    parser.parse_args(arguments)
    parser.print_help()
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
