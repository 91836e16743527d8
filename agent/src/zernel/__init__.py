# SPDX-License-Identifier: GPL-3.0-or-later
"""Zernel host agent."""

__version__ = "0.1.0"
