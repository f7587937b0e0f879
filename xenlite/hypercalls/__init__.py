# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypercall table, one file per family. It holds no state."""
