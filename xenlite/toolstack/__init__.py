# SPDX-License-Identifier: GPL-2.0-or-later
"""From a configuration file to a running domain."""
