# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's guest ABI, generated from hypercall_abi.yaml."""
