# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools for people who write guest kernels."""
