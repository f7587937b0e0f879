# SPDX-License-Identifier: GPL-2.0-or-later
"""XenStore: the tree of small values through which domains, backends and tools meet.

Values in this room are named tuples: this is read before a domain's first instruction, and a frozen
dataclass takes 1.4 ms there, a named tuple 0.3, of some 200 ms to the kernel's first line.
"""
