# SPDX-License-Identifier: GPL-3.0-or-later
"""``python3 -m zernel`` is the ``zernel`` command."""

import sys

try:
    from zernel.cli.main import main

    sys.exit(main())
except KeyboardInterrupt:  # also while the lines above still import
    sys.exit(130)
