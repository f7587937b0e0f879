# SPDX-License-Identifier: GPL-2.0-or-later
"""The control domain, whose kernel is Python."""
