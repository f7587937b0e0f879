# SPDX-License-Identifier: GPL-2.0-or-later
"""A Xen-compatible paravirtualizing microhypervisor whose CPU is emulated."""

__version__ = "0.1.0"
