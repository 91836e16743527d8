# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures that Zernel promises, measured: ``make bench`` prints them as one table."""
