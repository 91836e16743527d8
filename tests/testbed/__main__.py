# SPDX-License-Identifier: GPL-3.0-or-later
from testbed.cli import main

raise SystemExit(main())
