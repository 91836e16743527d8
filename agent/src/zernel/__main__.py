# SPDX-License-Identifier: GPL-3.0-or-later
"""``python3 -m zernel`` is the ``zernel`` command."""

from zernel.cli.main import main

raise SystemExit(main())
