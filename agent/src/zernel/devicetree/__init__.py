# SPDX-License-Identifier: GPL-3.0-or-later
"""Device trees of multikernel hosts: source and blobs in, one validated model, source and blobs out.

``dts`` and ``fdt`` read text and blobs into a ``tree``; ``interpret`` reads a tree into the ``model``;
``validate`` says what is wrong with it; ``render`` writes it out again. Nothing here touches the machine, and
nothing imports a third-party package.
"""
