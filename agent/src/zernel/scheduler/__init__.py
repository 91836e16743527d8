# SPDX-License-Identifier: GPL-3.0-or-later
"""The CPU scheduler's user-space half: checks the host, loads bpf/sched.bpf.c, watches it, serves metrics."""
