# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the scheduler's user-space half."""
