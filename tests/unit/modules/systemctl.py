# SPDX-License-Identifier: GPL-3.0-or-later
"""A systemctl that keeps its units in files, for the modules that call it."""

from __future__ import annotations

import os
from pathlib import Path

SYSTEMCTL = """#!/bin/bash
# Units are files that hold: LoadState ActiveState UnitFileState ConditionResult
cd "$UNITS" || exit 1
words=(); for word; do [[ $word == -* ]] || words+=("$word"); done
if [ "$1" = show ]; then
  for unit in "${words[@]:1}"; do
    read -r load active file condition < <(cat "$unit" 2>/dev/null || echo not-found inactive "" no)
    status=$(cat "$unit.status" 2>/dev/null)
    # The daemon has reloaded two looks after the signal; systemd thinks so at once.
    if [ -s "$unit.reloading" ]; then
      sed -i 1d "$unit.reloading"
      if [ ! -s "$unit.reloading" ]; then
        time=2026-01-01T10:00:0$(grep -c reload log).000Z
        echo "$(cat "$unit.next" 2>/dev/null)settings read $time" > "$unit.status"
      fi
    fi
    printf '%s\\n' "Id=$unit" "LoadState=$load" "ActiveState=$active" "UnitFileState=$file" \\
      "ConditionResult=$condition" NeedDaemonReload=no \\
      "StatusText=$status" InactiveExitTimestampMonotonic=${STARTED:-0} ""
  done
  exit 0
fi
unit=${words[1]}
read -r load active file condition < "$unit"
if [ "${words[0]}" = reset-failed ]; then
  [ "$active" = failed ] && echo "$load inactive $file $condition" > "$unit"
  exit 0
fi
echo "${words[0]} $unit" >> log
case ${words[0]} in
  enable) file=enabled ;; disable) file=disabled ;;
  stop) active=inactive ;;
  start|restart)
    [ "$active" = failed ] && { echo "Start request repeated too quickly" >&2; exit 1; }
    [ "$load" = broken ] && { echo "Job failed" >&2; exit 1; }
    if [ -x "$unit.exec" ] && ! "./$unit.exec" >&2; then
      echo "$load failed $file $condition" > "$unit"
      exit 1
    fi
    rm -f "$unit.status"
    [ "$condition" = yes ] && active=active ;;
  reload) [ ! -e "$unit.status" ] || printf '1\\n2\\n' > "$unit.reloading" ;;
esac
echo "$load $active $file $condition" > "$unit"
"""


def install(directory: Path) -> tuple[Path, dict[str, str]]:
    """Put it into ``directory``; returns where its units are, and the environment in which it is found.

    UNIT is a unit; what starting it runs is UNIT.exec, if there is one. What was done is in the file ``log``.
    """
    units, programs = directory / "units", directory / "bin"
    units.mkdir()
    programs.mkdir()
    (programs / "systemctl").write_text(SYSTEMCTL)
    (programs / "journalctl").write_text("#!/bin/sh\necho the last words of $1\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    return units, {"PATH": f"{programs}:{os.environ['PATH']}", "UNITS": str(units)}
