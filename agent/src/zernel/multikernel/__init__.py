# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel instances: the multikernel file system, changes to it as transactions, and a simulation of it.

``fs`` is the only module that touches the file system; ``overlay`` knows the kernel's formats; ``state``
reads what there is; ``operations`` changes it under ``lock`` and ``journal``; ``lifecycle`` loads, boots and
stops kernels through ``kexec``. ``simulate`` stands in for the kernel.
"""
