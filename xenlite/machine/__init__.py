# SPDX-License-Identifier: GPL-2.0-or-later
"""The computer: memory, frames, CPU, traps, clock. It knows no domain."""
