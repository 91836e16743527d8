# SPDX-License-Identifier: GPL-3.0-or-later
import signal

# Until the command can clean up after itself there is nothing to clean up: Ctrl-C just ends it, without a
# traceback out of an import. One that is ignored stays so.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from testbed.cli import main

raise SystemExit(main())
